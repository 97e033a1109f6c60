"""What was compiled stays in a folder: a restart, or another run of the same, begins sooner.

The folder is that of JAX's persistent compilation cache, which writes its entries in place. So a
run that was killed may leave half of one, which JAX would neither read nor replace. Such entries
are removed when the next run starts. One that another run is still writing goes with them: that
run has compiled it already, and the next one writes it anew.
"""

import contextlib
import stat
import tempfile
from pathlib import Path

import jax

from inception_jax.errors import UserError


def use(folder: str) -> None:
    """Keeps what is compiled from now on; call it before the first compilation.

    Args:
      folder: config.compile_cache; if it is empty, JAX's own settings stay.

    Raises:
      UserError: the folder cannot be made or written.
    """
    if not folder:
        return
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to config.compile_cache {path}: {error.strerror}; take another folder,"
            " or leave it empty"
        ) from None
    for entry in path.glob("*-cache"):
        _check(entry)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _check(entry):
    """Removes it unless it is whole; then it becomes read-only, so that it is looked at once."""
    from jax._src.compilation_cache import decompress_executable  # it has no public name

    with contextlib.suppress(OSError):  # another run has removed it, or it is another user's
        if not entry.stat().st_mode & stat.S_IWUSR:
            return
        packed = entry.read_bytes()
        try:
            decompress_executable(packed)
        except Exception:  # zlib's or zstandard's own, as JAX packs with either
            entry.unlink()
        else:
            entry.chmod(0o444)
