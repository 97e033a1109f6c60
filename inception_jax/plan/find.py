"""The largest batch that fits, found by compiling for as few as will show it."""

from collections.abc import Callable

from inception_jax.plan.weigh import Step, TooLarge


def largest(weigh: Callable[[int], Step], guess: int) -> tuple[Step | None, int]:
    """Looks for the largest share of the batch with which a step fits.

    What a step computes in between grows about in proportion to the batch, so that the next guess
    is where it would fill the memory; where that does not halve what is left, it is the middle.

    Args:
      weigh: compiles a step with so many granules of images a device; may raise TooLarge.
      guess: to begin with.

    Returns:
      The largest step that fits, or None if even one granule does not, and one granule more than
      it has, which did not.
    """
    best: Step | None = None
    low, high, ahead = 0, None, 1
    while high is None or high - low > 1:
        before = high and high - low
        try:
            step = weigh(guess)
            memory = step.memory
        except TooLarge as error:
            step, memory = None, error.memory
        if step and memory.fits:
            best, low = step, guess
        else:
            high = guess
        target = guess + int((memory.available - memory.needed) // (memory.changing / guess))
        if high is None:
            guess, ahead = max(target, low + ahead), 2 * ahead
        elif low < target < high and (before is None or high - low <= before / 2):
            guess = target
        else:
            guess = (low + high) // 2
    return best, high
