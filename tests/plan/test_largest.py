"""Looking for the largest batch that fits."""

import pytest

from inception_jax.plan import find
from inception_jax.plan.weigh import GIB, Memory, Step, TooLarge, exceeded


def pretend(needs, available, refuses):
    """A compiler that needs so much for so many granules; refuses beyond a number."""
    tried = []

    def weigh(granules):
        tried.append(granules)
        memory = Memory(10, 0, int(needs(granules)), 0, available)
        if granules > refuses:
            raise TooLarge(memory)
        return Step(224, granules, memory, 0, 0, 0, [])

    return weigh, tried


@pytest.mark.parametrize("guess", [1, 3, 40, 100_000])
@pytest.mark.parametrize(
    ("needs", "largest"),
    [
        (lambda n: 100 * n, 99),  # 10 are held
        (lambda n: 5000 + 100 * n, 49),
        (lambda n: 100 * n if n < 50 else 5000 + 20 * (n - 50), 299),  # computes some of it again
        (lambda n: n**2, 99),
    ],
)
def test_it_is_the_largest_whatever_the_guess(needs, largest, guess):
    weigh, tried = pretend(needs, available=10_000, refuses=10**9)
    best, above = find.largest(weigh, guess)
    assert (best.images, above) == (largest, largest + 1)
    assert {largest, largest + 1} <= set(tried)
    assert len(tried) == len(set(tried)) <= 24


def test_in_proportion_it_takes_few():
    weigh, tried = pretend(lambda n: 100 * n, available=10_000, refuses=10**9)
    find.largest(weigh, 16)
    assert len(tried) <= 4


def test_what_the_compiler_refuses_does_not_fit():
    weigh, _ = pretend(lambda n: 100 * n, available=10_000, refuses=20)
    best, above = find.largest(weigh, 64)
    assert (best.images, above) == (20, 21)


def test_nothing_fits():
    weigh, _ = pretend(lambda n: 20_000 + n, available=10_000, refuses=10**9)
    assert find.largest(weigh, 8) == (None, 1)


@pytest.mark.parametrize(
    ("message", "temporaries"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total"
            " memory required for HLO temporaries (46.51G) exceeds available HBM (15.75G).",
            46.51,
        ),
        ("Ran out of memory in memory space hbm. Used 15.77G of 15.75G hbm. Exceeded", 14.77),
        ("INTERNAL: something else", None),
    ],
)
def test_what_the_compiler_says_of_memory(message, temporaries):
    """As version 0.0.42 of it words the two; of the second, 1 GiB is what is held."""
    found = exceeded(message, held=GIB)
    assert found == (temporaries and pytest.approx(temporaries * GIB))
