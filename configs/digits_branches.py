"""What the larger filters of a module are worth, on handwritten digits.

    python -m launch.sweep --config=configs/digits_branches.py --workdir=runs/branches --seeds=2

Result: none that two seeds and 360 images could tell from noise. Top-1 is 98.75 % with all
branches, 98.75 % without 5x5, 99.31 % without 3x3, 98.06 +- 1.57 % without either; eight trials
take five minutes on two cores (Intel Xeon).
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    """The digits recipe for a third of its time."""
    config = digits.get_config()
    config.epochs = 10.0
    config.schedule.warmup_epochs = 1.0
    return config


def sweep() -> Iterator[dict[str, str]]:
    """Every module with and without its 3x3 and 5x5 branches."""
    for branches in ("1x1,3x3,5x5,pool", "1x1,3x3,pool", "1x1,5x5,pool", "1x1,pool"):
        yield {"model.branches": branches}
