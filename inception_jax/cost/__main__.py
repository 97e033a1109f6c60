"""What a config's network costs: parameters and multiply-adds, layer by layer, of one image.

python -m inception_jax.cost --config=configs/imagenet.py
python -m inception_jax.cost --config=configs/imagenet.py --compare="alexnet vgg16 googlenet"
python -m inception_jax.cost --config=configs/imagenet.py --compare="model.module=reduced \
model.module=naive"
"""

import json
import shlex
import sys
from pathlib import Path

from absl import flags

from inception_jax import config as config_lib
from inception_jax import init_from, process, validate
from inception_jax.errors import UserError

FORMATS = ("table", "json", "csv")
FLAGS_HELP = """\
  --compare="A B ..."       several side by side, each an ARGUMENT of the config file or one
                            FIELD=VALUE, without spaces
  --format=table|json|csv   what to print; table if not given
  --plot=FILE.png           draws it, too; .svg and .pdf work as well
"""


@process.command(__doc__, config_lib.HELP + FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""

    def define(values):
        flags.DEFINE_string("compare", "", "", flag_values=values)
        flags.DEFINE_string("format", "table", "", flag_values=values)
        flags.DEFINE_string("plot", "", "", flag_values=values)

    def parse(argv):
        values, config = config_lib.parse(argv, define)
        init_from.adopt(config, config_lib.given(argv))
        return values, config

    values, config = parse(argv)
    if values.format not in FORMATS:
        raise UserError(f"--format is {values.format!r}; known: {', '.join(FORMATS)}")
    source = config_lib.source_of(argv)
    variants = _split(values.compare)
    path, _, argument = source.partition(":")
    configs = {variant: parse([*argv, _override(path, variant)])[1] for variant in variants}
    configs = configs or {"-".join(filter(None, [Path(path).stem, argument])): config}
    for each in configs.values():
        validate.check(each)
    process.quiet()

    import jax

    from inception_jax.cost import render
    from inception_jax.cost.report import Report
    from inception_jax.data import datasets

    if any(each.model.dtype == "float64" for each in configs.values()):
        jax.config.update("jax_enable_x64", True)
    reports = [
        Report(name, each, datasets.count_classes(each.data)) for name, each in configs.items()
    ]
    if values.plot:  # before the table, so that a mistake is not told below it
        from inception_jax.cost import draw

        draw.draw(reports, Path(values.plot))
        print(f"drawn in {values.plot}", file=sys.stderr)
    if values.format == "table":
        print(render.text(reports), end="")
    elif values.format == "csv":
        print(render.as_csv(reports), end="")
    else:
        found = render.as_json(reports)
        print(json.dumps(found if variants else found[0], indent=1))


def _split(compare):
    try:
        variants = shlex.split(compare)
    except ValueError as error:
        raise UserError(f"--compare={compare}: {error}") from None
    if len({name.removeprefix("config.") for name in variants}) < len(variants):
        raise UserError(f"--compare={compare} names one of them twice")
    if len(variants) == 1:
        raise UserError(f"--compare={compare} needs two or more, as in --compare='alexnet vgg16'")
    return variants


def _override(path, variant):
    """The argument that makes this variant, where it comes last."""
    field, is_field, value = variant.partition("=")
    if is_field:
        return f"--config.{field.removeprefix('config.')}={value}"
    return f"--config={path}:{variant}"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
