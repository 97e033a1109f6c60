"""Random numbers for many examples at once: TensorFlow's stateless generators, in NumPy.

They are counter-based (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3), so the
numbers of an example depend on its key alone. TensorFlow's own draw for one key at a time, which
takes longer than resizing an image does.
"""

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_KEY = (0x3EC8F720, 0x02461E29)  # with which TensorFlow scrambles a seed
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


def uniform(seeds: np.ndarray, count: int) -> np.ndarray:
    """What tf.random.stateless_uniform((count,), seed) draws for each seed.

    Args:
      seeds: int64 (B, 2).
      count: of numbers.

    Returns:
      float32 (B, count), in [0, 1) in steps of 2^-23.
    """
    key, counter = _generator(seeds)
    words = []
    for block in range(-(-count // 4)):
        counter[:, 0] = block
        words.append(_philox(counter, key))
    mantissa = np.concatenate(words, 1)[:, :count] & np.uint32(0x7FFFFF)
    return (mantissa | np.uint32(127 << 23)).view(np.float32) - np.float32(1)


def fold_in(seeds: np.ndarray, data: np.ndarray) -> np.ndarray:
    """What tf.random.experimental.stateless_fold_in makes of each seed and int64.

    Args:
      seeds: int64 (B, 2).
      data: integers (B,).

    Returns:
      int64 (B, 2).
    """
    key, counter = _generator(seeds)
    words = _philox(counter, key).astype(np.uint64)
    first = words[:, 0] | words[:, 1] << _32
    return np.stack([first.view(np.int64), data.astype(np.int64)], 1)


def _generator(seeds):
    """The key and the first counter that TensorFlow makes of each seed."""
    counter = np.ascontiguousarray(seeds.astype("<i8")).view("<u4")
    mix = _philox(counter, np.broadcast_to(np.array(_KEY, np.uint32), (len(seeds), 2)))
    return mix[:, :2], np.concatenate([np.zeros_like(mix[:, :2]), mix[:, 2:]], 1)


def _philox(counter, key):
    """Philox 4x32 with 10 rounds: four words of uint32 for each counter and key."""
    a, b, c, d = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key[:, 0].copy(), key[:, 1].copy()
    for _ in range(10):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = second >> _32 ^ b ^ k0, second & _LOW, first >> _32 ^ d ^ k1, first & _LOW
        k0 += _WEYL[0]
        k1 += _WEYL[1]
    return np.stack([a, b, c, d], 1).astype(np.uint32)
