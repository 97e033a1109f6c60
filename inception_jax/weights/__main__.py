"""Turns public weights into a checkpoint: ONNX Model Zoo, torchvision, safetensors.

python -m inception_jax.weights vgg16-397923af.pth --model=vgg16 --out=weights/vgg16
python -m inception_jax.weights googlenet-12.onnx --model=googlenet --out=weights/googlenet
"""

import sys
from pathlib import Path

from absl import flags

from inception_jax import models, process
from inception_jax.errors import UserError

FLAGS_HELP = """\
  --model=NAME          the network that the file holds: alexnet, googlenet, vgg16, zfnet512, ...
  --out=DIR             folder to make, for --config.init_from=DIR and inception_jax.evaluate
  --preprocessing=NAME  what the network expects as input, where the file does not tell:
                        caffe        BGR minus (104, 117, 123)
                        vgg          BGR minus (103.939, 116.779, 123.68)
                        torchvision  RGB in [0, 1], minus its mean, divided by its deviation
                        inception    RGB in [-1, 1]
"""


@process.command(__doc__, FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""
    values = flags.FlagValues()
    for name in ("model", "out", "preprocessing"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    try:
        files = values(argv)[1:]
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from None
    if len(files) != 1 or not values.model or not values.out:
        raise UserError("name one file, --model and --out; see --help")
    if values.model not in models.NAMES:
        raise UserError(f"--model is {values.model!r}; known: {', '.join(models.NAMES)}")
    process.quiet()

    from inception_jax.weights import importer

    out = Path(values.out).expanduser()
    told = importer.convert_file(Path(files[0]), values.model, out, values.preprocessing)
    print(told)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
