"""Tests of samples against distributions."""

import numpy as np


def assert_even(values, low, high):
    """Kolmogorov and Smirnov's test, at 0.1 %, of numbers that should be even from low to high."""
    values = (np.sort(np.asarray(values, np.float64)) - low) / (high - low)
    assert values[0] >= -1e-6 and values[-1] <= 1 + 1e-6
    steps = np.arange(len(values) + 1) / len(values)
    distance = max(np.abs(values - steps[1:]).max(), np.abs(values - steps[:-1]).max())
    assert distance < 1.95 / np.sqrt(len(values)), distance
