"""Downloads a TFDS set and stores it so that it can be read by index.

python -m inception_jax.data.prepare mnist --data_dir=~/tensorflow_datasets
python -m inception_jax.data.prepare imagenet --manual_dir=DIR

ImageNet, imagenet2012 to TFDS, is made from ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and,
if it is there, ILSVRC2012_img_test.tar in DIR, from https://image-net.org/download-images. It takes
as much disk as these. The images are stored as they are; at the end it tells which cannot be read.
Stop it when you like, even with kill -9: the same line starts again, and what is not whole is never
read.
"""

import contextlib
import os
import signal
import sys
import tarfile
from pathlib import Path

from absl import flags

from inception_jax import process
from inception_jax.console import Console
from inception_jax.data import datasets
from inception_jax.errors import UserError

NAMES = {"imagenet": "imagenet2012"}
FLAGS_HELP = """\
  --data_dir=DIR    where to store it; ~/tensorflow_datasets if not given; gs://BUCKET/FOLDER will
                    do, and needs as much disk in $TMPDIR (or /tmp) on the way
  --manual_dir=DIR  where files are that have to be fetched by hand, for sets that need such;
                    downloads/manual in data_dir (or ~/tensorflow_datasets) if not given
"""


@process.command(__doc__, FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""
    values = flags.FlagValues()
    flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "", flag_values=values)
    flags.DEFINE_string("manual_dir", None, "", flag_values=values)
    try:
        names = values(argv)[1:]
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from None
    if len(names) != 1:
        raise UserError("name one data set, as in: python -m inception_jax.data.prepare mnist")
    process.quiet()
    ends = (signal.SIGINT, signal.SIGTERM)  # a shell's background job would ignore the first
    before = {end: signal.signal(end, signal.default_int_handler) for end in ends}
    try:
        prepare(names[0], os.path.expanduser(values.data_dir), values.manual_dir)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; nothing half made is left to be read, and the same line starts again"
        ) from None
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)


def prepare(name: str, data_dir: str, manual_dir: str | None) -> None:
    """Downloads and stores a TFDS set as array_record; does nothing where that is done already.

    Args:
      name: as TFDS names it, or imagenet.
      data_dir: folder of TFDS sets.
      manual_dir: folder of files that TFDS cannot download, if the set needs any.

    Raises:
      UserError: TFDS does not know the set, or could not get or store it.
    """
    import tensorflow_datasets as tfds

    from inception_jax.data import cloud

    name = NAMES.get(name, name)
    if name in ("digits", "image_folder"):
        raise UserError(f"{name} needs no preparation: train with --config.data.name={name}")
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if not cloud.is_remote(data_dir):
        print(f"{name} is in {_prepare(name, data_dir, manual_dir)}")
        return

    cloud.reach(data_dir)
    manual_dir = os.path.expanduser(manual_dir or f"{datasets.TFDS}/downloads/manual")
    files = sorted(path for path in Path(manual_dir).glob("*") if path.is_file())
    key = [name, data_dir, *((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)]
    with _told(name, manual_dir), cloud.staging(repr(key)) as staging:
        where = Path(_builder(name, str(staging)).data_dir).relative_to(staging)
        target = f"{data_dir.rstrip('/')}/{where}"
        if cloud.is_whole(target):
            stored = tfds.builder_from_directory(target).info.file_format
            _refuse_others(name, target, stored)
        else:
            cloud.start(target)
            _prepare(name, str(staging), manual_dir)
            cloud.copy(staging / where, target, Console())
    print(f"{name} is in {target}")


def _prepare(name, data_dir, manual_dir):
    """Stores a set in a folder of this machine, and returns the folder of its version."""

    builder = _builder(name, data_dir)
    stored = builder.info.file_format if os.path.isdir(builder.data_dir) else None
    if stored:
        _refuse_others(name, builder.data_dir, stored)
    else:
        with _told(name, manual_dir or data_dir):
            _store(_builder(name, data_dir, file_format="array_record"), data_dir, manual_dir)
    return builder.data_dir


def _refuse_others(name, folder, stored):
    if stored.value != "array_record":
        raise UserError(
            f"{folder} holds {name} as {stored.value}, which cannot be read by index: move it away,"
            " or take another --data_dir"
        )


def _builder(name, data_dir, **options):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir, **options)
    except (tfds.core.registered.DatasetNotFoundError, ValueError):
        known = [*NAMES, *tfds.list_builders(with_community_datasets=False)]
        raise UserError(f"TFDS knows no data set {name!r}{datasets.hint(name, known)}") from None


def _store(builder, data_dir, manual_dir):
    import tensorflow_datasets as tfds

    by_hand = datasets.BY_HAND.get(builder.name)
    if not by_hand:
        config = tfds.download.DownloadConfig(manual_dir=manual_dir)
        builder.download_and_prepare(download_config=config)
        return
    folder = os.path.expanduser(manual_dir or by_hand.folder(data_dir))
    missing = [file for file in by_hand.files if not os.path.isfile(f"{folder}/{file}")]
    if missing:
        raise UserError(
            f"{folder} lacks {' and '.join(missing)}: download what is missing from"
            f" {by_hand.source}, or set --manual_dir to where it is"
        )
    from inception_jax.data import imagenet

    imagenet.prepare(builder, folder, Console())


@contextlib.contextmanager
def _told(name, source):
    """Turns what TFDS raises into a UserError; `source` is the folder of the files it reads."""
    import requests
    import tensorflow as tf
    import tensorflow_datasets as tfds

    try:
        yield
    except requests.RequestException as error:
        where = error.request.url if error.request else "its source"
        raise UserError(f"could not download {name}: no connection to {where}") from None
    except (tarfile.TarError, tf.errors.OutOfRangeError) as error:
        raise UserError(
            f"could not prepare {name}: an archive in {source} is cut short or damaged"
            f" ({' '.join(str(error).split())}): download it again"
        ) from None
    except (
        OSError,
        RuntimeError,  # array_record's, where a disk is full
        AssertionError,
        tf.errors.OpError,
        tfds.download.DownloadError,
    ) as error:
        raise UserError(f"could not prepare {name}: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv))
