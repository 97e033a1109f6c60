"""Draws what the network will see: each image as it is, as in evaluation, and patches of it.

python -m inception_jax.data.show --config=configs/imagenet.py --out=imagenet.png
python -m inception_jax.data.show --config=configs/digits.py --config.data.mixup=0.2 --out=mixup.png

A row is an example of the training split, its patches are those of the first epochs. They come the
way they come in training, over the host and the device, less the normalisation. Where images are
mixed, the other one is that of the row above, and of the last row for the first.
"""

import sys
from pathlib import Path

from absl import flags

from inception_jax import config as config_lib
from inception_jax import init_from, process, validate
from inception_jax.errors import UserError

FLAGS_HELP = """\
  --out=FILE.png            the picture; show.png if not given
  --rows=N                  examples; 6 if not given
  --columns=N               patches of each; 6 if not given
"""


@process.command(__doc__, config_lib.HELP + FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""

    def define(values):
        flags.DEFINE_string("out", "show.png", "", flag_values=values)
        flags.DEFINE_integer("rows", 6, "", flag_values=values)
        flags.DEFINE_integer("columns", 6, "", flag_values=values)

    values, config = config_lib.parse(argv, define)
    init_from.adopt(config, config_lib.given(argv))
    validate.check(config)
    for name in ("rows", "columns"):
        if not 1 <= values[name].value <= 100:
            raise UserError(f"--{name} is {values[name].value}: it must be from 1 to 100")
    process.quiet()

    from inception_jax.data import datasets

    data = datasets.load(config.data)
    draw(config, data, min(values.rows, len(data.train)), values.columns, Path(values.out))
    print(f"drawn in {values.out}")


def draw(config, data, count: int, columns: int, out: Path) -> None:
    """Draws `count` examples, the first of the first epoch, and `columns` patches of each.

    Raises:
      UserError: an example cannot be read, or the picture cannot be written.
    """
    import jax
    import numpy as np
    from matplotlib import pyplot as plt

    from inception_jax import figures
    from inception_jax.data import augment, device, order, pipeline

    examples = order.permutation(len(data.train), config.seed, 0)[:count]

    def rows(epoch):
        return order.Rows(np.full(count, epoch, np.int32), examples, np.ones(count, bool))

    every = slice(0, count)
    seen = pipeline.training(data.train, rows, every, range(columns), config.data, config.seed)
    changed = jax.jit(device.make_augment(config.data, config.seed))
    seen = list(seen)
    patches = [np.asarray(changed(batch)) for batch in seen]
    examples = seen[0]["example"]  # what cannot be read is skipped
    [evaluated] = pipeline.evaluation(data.train, rows, every, range(1), config.data)
    originals = [augment.decode(data.train.read(int(example))[0]) for example in examples]

    shown = {"original": originals, "evaluation": evaluated["image"]}
    shown |= {f"epoch {epoch + 1}": images for epoch, images in enumerate(patches)}
    figure, axes = plt.subplots(
        count, len(shown), figsize=(1.5 * len(shown), 1.6 * count), squeeze=False
    )
    for column, (title, images) in enumerate(shown.items()):
        axes[0, column].set_title(title, fontsize=9)
        for axis, image in zip(axes[:, column], images, strict=True):
            axis.imshow(np.clip(np.round(image), 0, 255).astype(np.uint8))
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, label in zip(axes[:, 0], evaluated["label"], strict=True):
        axis.set_ylabel(data.class_names[label] if data.class_names else label, fontsize=8)
    figure.tight_layout(pad=0.4)
    figures.save(figure, out)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
