"""Pictures without a screen, and what is said where one cannot be written."""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

from inception_jax.errors import UserError


def save(figure, out: Path) -> None:
    """Writes a figure and closes it.

    Args:
      figure: of pyplot.
      out: the file; its ending is the format.

    Raises:
      UserError: the file cannot be written, or matplotlib does not know the format.
    """
    try:
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(
            f"could not write {out}: {getattr(error, 'strerror', None) or error}"
        ) from None
    finally:
        plt.close(figure)
