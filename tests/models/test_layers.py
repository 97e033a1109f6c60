"""The layers that flax lacks, against plain NumPy loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import bin_pool_loop, jit, lrn_loop, lrn_within_loop

from inception_jax.models import layers


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def max_pool_loop(x, dy, window, stride, padding):
    """Output and input gradient of max pooling; the first maximum of a window takes its share."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-np.inf)
    dpadded = np.zeros(padded.shape)
    y = np.empty(dy.shape, x.dtype)
    for b, i, j, c in np.ndindex(dy.shape):
        rows, columns = i * stride, j * stride
        patch = padded[b, rows : rows + window, columns : columns + window, c]
        p, q = np.unravel_index(np.argmax(patch), patch.shape)
        y[b, i, j, c] = patch[p, q]
        dpadded[b, rows + p, columns + q, c] += dy[b, i, j, c]
    (top, _), (left, _) = padding
    return y, dpadded[:, top : top + x.shape[1], left : left + x.shape[2]]


def conv_loop(x, kernel, stride, padding, groups):
    """A filter at a time: it sees its group of the channels only."""
    x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    window, _, inputs, filters = kernel.shape
    rows, columns = ((side - window) // stride + 1 for side in x.shape[1:3])
    y = np.zeros((len(x), rows, columns, filters))
    for i, j, f in np.ndindex(rows, columns, filters):
        top, left, first = i * stride, j * stride, f // (filters // groups) * inputs
        seen = x[:, top : top + window, left : left + window, first : first + inputs]
        y[:, i, j, f] = (seen * kernel[..., f]).sum(axis=(1, 2, 3))
    return y


@pytest.mark.parametrize(
    "channels, options",
    [
        (12, {}),
        (12, {"size": 3, "alpha": 0.5, "k": 2.0}),
        (12, {"size": 7, "alpha": 2.0, "beta": 0.5}),
        (2, {"alpha": 1.0}),  # fewer channels than the window
    ],
)
def test_lrn_is_caffes_formula_up_to_the_edge_channels(channels, options):
    x = 30 * images(2, 3, 3, channels)  # so large that even alpha = 1e-4 shows
    expected = lrn_loop(x, **{"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0} | options)
    np.testing.assert_allclose(layers.lrn(x, **options), expected, rtol=1e-5)


def test_lrn_divides_alpha_by_the_size():
    """By hand: (1 + 5/5 * 4 * 3)^-1 around channel 0, whose window holds three of the channels."""
    x = jnp.full((1, 1, 1, 5), 2.0)
    got = layers.lrn(x, size=5, alpha=5.0, beta=1.0)
    np.testing.assert_allclose(got.ravel(), 2 / np.array([13, 17, 21, 17, 13]), rtol=1e-6)


def test_lrn_of_bfloat16_is_computed_in_float32():
    """Only the result is rounded, so it is within half a step (2^-8) of the exact one."""
    x = jnp.asarray(images(2, 4, 4, 16), jnp.bfloat16)
    got = layers.lrn(x, alpha=1.0)
    assert got.dtype == jnp.bfloat16
    exact = lrn_loop(np.asarray(x, np.float64), 5, 1.0, 0.75, 1.0)
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=2**-8)


@pytest.mark.parametrize("options", [{}, {"size": 5, "alpha": 2.0, "beta": 0.5}])
@pytest.mark.parametrize("sides", [(7, 4), (2, 1)])
def test_lrn_within_is_caffes_formula_up_to_the_edge_pixels(sides, options, x64):
    x = 100 * images(2, *sides, 3).astype(np.float64)  # so large that even alpha = 5e-5 shows
    expected = lrn_within_loop(x, **{"size": 3, "alpha": 5e-5, "beta": 0.75} | options)
    np.testing.assert_allclose(layers.lrn_within(x, **options), expected, rtol=1e-12)


def test_lrn_within_divides_by_the_whole_window_at_the_edge():
    """By hand: (1 + 9/9 * 4 * 4)^-1 in a corner, whose window holds four of the pixels."""
    got = layers.lrn_within(jnp.full((1, 3, 3, 1), 2.0), alpha=9.0, beta=1.0)
    expected = 2 / np.array([[17, 25, 17], [25, 37, 25], [17, 25, 17]])
    np.testing.assert_allclose(got[0, :, :, 0], expected, rtol=1e-6)


def test_lrn_within_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(images(2, 4, 4, 16), jnp.bfloat16)
    got = layers.lrn_within(x, alpha=1.0)
    assert got.dtype == jnp.bfloat16
    exact = lrn_within_loop(np.asarray(x, np.float64), 3, 1.0, 0.75)
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=2**-8)


@pytest.mark.parametrize("reduce, expected", [(jnp.max, np.max), (jnp.mean, np.mean)])
def test_bins_reach_from_floor_to_ceil_of_their_share(reduce, expected, x64):
    maps = {n: images(2, n, 18 - n, 3).astype(np.float64) for n in range(5, 14)}
    cases = [(n, bins) for n in maps for bins in range(1, 7) if bins <= min(n, 18 - n)]
    pools = jit(lambda maps: [layers.bin_pool(maps[n], bins, reduce) for n, bins in cases])
    for (n, bins), got in zip(cases, pools(maps), strict=True):
        np.testing.assert_allclose(
            got, bin_pool_loop(maps[n], bins, expected), rtol=1e-12, atol=1e-12
        )


def test_bins_of_13_pixels_are_the_papers_sliding_windows():
    """He et al. 2014, section 2.3: windows of ceil(a/n) pixels, floor(a/n) apart."""
    x = images(1, 13, 13, 4)
    for bins, window, stride in ((6, 3, 2), (3, 5, 4), (2, 7, 6), (1, 13, 13)):
        slid = nn.max_pool(x, (window, window), (stride, stride))
        np.testing.assert_array_equal(layers.bin_pool(x, bins), slid)


@pytest.mark.parametrize("bins", [1, 2, 3])
@pytest.mark.parametrize("reduce", [jnp.max, jnp.mean])
def test_a_bins_gradient_is_that_of_finite_differences(reduce, bins, x64):
    """A wrong share sends the error signal to the wrong pixel; training just gets worse."""
    rng = np.random.default_rng(0)
    x = rng.permutation(np.arange(70.0)).reshape(1, 7, 5, 2)  # no two values nearer than 1
    dy = rng.normal(size=(1, bins, bins, 2))
    pool = functools.partial(layers.bin_pool, bins=bins, reduce=reduce)
    got = jit(lambda x, dy: jax.vjp(pool, x)[1](dy)[0])(x, dy)
    numpys = {jnp.max: np.max, jnp.mean: np.mean}[reduce]
    expected = np.empty(x.shape)
    for place in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[place] = 0.25
        up, down = (bin_pool_loop(x + sign * step, bins, numpys) for sign in (1, -1))
        expected[place] = (dy * (up - down)).sum() / 0.5
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    "window, stride, padding, sides",
    [(3, 1, 1, (7, 6)), (5, 2, 0, (9, 8)), (3, 2, 2, (5, 7)), (1, 3, 1, (4, 5))],
)
def test_a_unit_convolves_groups_of_channels_apart(window, stride, padding, sides, groups, x64):
    x = images(2, *sides, 8).astype(np.float64)
    unit = layers.Unit(0.5, jnp.dtype("float64"), False, nn.initializers.normal(1.0))

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return unit.conv(x, "conv", 24, window, stride, padding, groups, bias=0.25)

    got, variables = jit(Layer().init_with_output)(jax.random.key(0), x)
    kernel = variables["params"]["conv"]["kernel"]
    assert kernel.shape == (window, window, 8 // groups, 12)
    np.testing.assert_array_equal(variables["params"]["conv"]["bias"], np.full(12, 0.25))
    expected = np.maximum(conv_loop(x, np.asarray(kernel), stride, padding, groups) + 0.25, 0)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sides", [(16, 12), (15, 13), (9, 8)])
@pytest.mark.parametrize(("size", "padding"), [(7, 3), (7, 2), (5, 2), (3, 1), (4, 1), (1, 0)])
def test_a_convolution_of_blocks_is_the_same_as_that_of_pixels(size, padding, sides, x64):
    """Its gradients, too; the pixel convolution is XLA's own."""
    x_BHWC = images(2, *sides, 3).astype(np.float64)
    kernel = images(size, size, 3, 5, seed=1).astype(np.float64)
    around = ((padding, padding),) * 2
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolve(conv, x_BHWC, kernel):
        return conv(x_BHWC, kernel, (2, 2), around, dimension_numbers=numbers)

    def both(conv):
        out, pull = jax.vjp(functools.partial(convolve, conv), x_BHWC, kernel)
        return out, *pull(images(*out.shape, seed=2).astype(np.float64))

    for found, expected in zip(
        both(layers.conv_of_blocks), both(jax.lax.conv_general_dilated), strict=True
    ):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_blocks_need_a_stride_of_two():
    with pytest.raises(ValueError, match="blocks of 2x2 need strides of 2"):
        layers.conv_of_blocks(images(1, 8, 8, 3), images(3, 3, 3, 1), (1, 1), ((1, 1), (1, 1)))


def test_ceil_mode_counts_every_window_needed_to_reach_the_edge():
    for size, window, stride in itertools.product(range(3, 40), (2, 3), (1, 2)):
        outputs = 1
        while (outputs - 1) * stride + window < size:
            outputs += 1
        assert layers.ceil_pool_size(size, window, stride) == outputs, (size, window, stride)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 9])
def test_ceil_mode_windows_start_at_the_first_pixel(size):
    """As SAME does on even sizes; on odd ones SAME would shift every window up and left."""
    x = images(1, size, size, 2)
    y = np.asarray(layers.max_pool_ceil(x))
    starts = [s for s in range(0, size, 2) if s == 0 or s + 1 < size]
    expected = [[x[0, i : i + 3, j : j + 3].max(axis=(0, 1)) for j in starts] for i in starts]
    np.testing.assert_array_equal(y[0], expected)
    same = np.asarray(nn.max_pool(x, (3, 3), (2, 2), "SAME"))
    assert (same.shape == y.shape and np.array_equal(same, y)) == (size % 2 == 0)


def test_ceil_mode_treats_height_and_width_apart():
    x = images(1, 5, 8, 1)
    rows, columns = (0, 2), (0, 2, 4, 6)
    expected = [[x[0, i : i + 3, j : j + 3, 0].max() for j in columns] for i in rows]
    np.testing.assert_array_equal(layers.max_pool_ceil(x)[0, :, :, 0], expected)


def test_pooling_a_map_that_vanishes_names_its_size():
    with pytest.raises(ValueError, match="a 1-pixel map is too small for 3x3/2 pooling"):
        layers.max_pool_ceil(jnp.zeros((1, 4, 1, 1)))


POOLS = list(
    itertools.product(
        (2, 3),  # window
        (1, 2, 3),  # stride
        (((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (1, 0))),  # padding
        ((7, 7), (6, 9)),  # height, width
    )
)


def max_pool_value_and_gradient(pool, x, dy):
    y, pull = jax.vjp(pool, x)
    return y, pull(dy)[0]


@pytest.mark.parametrize("window, stride, padding, sides", POOLS)
def test_max_pool_and_its_gradient_are_those_of_a_loop_and_of_xla(window, stride, padding, sides):
    """A wrong share sends the error signal to the wrong pixel; training just gets worse."""
    outputs = [(n + sum(p) - window) // stride + 1 for n, p in zip(sides, padding, strict=True)]
    ours, xla = (
        jax.jit(functools.partial(max_pool_value_and_gradient, pool))
        for pool in (
            lambda x: layers.max_pool(x, window, stride, padding),
            lambda x: nn.max_pool(x, (window, window), (stride, stride), padding),
        )
    )
    distinct = images(2, *sides, 3)
    tied = np.maximum(np.round(distinct), 0)  # as after a ReLU: windows hold several maxima
    dy = images(2, *outputs, 3, seed=1)
    for x in (distinct, tied):
        expected_y, expected_dx = max_pool_loop(x, dy, window, stride, padding)
        for y, dx in (ours(x, dy), xla(x, dy)):
            np.testing.assert_array_equal(y, expected_y)
            np.testing.assert_allclose(dx, expected_dx, rtol=1e-6, atol=1e-6)


def test_max_pool_has_the_same_values_with_and_without_a_gradient():
    """Training takes the one way, evaluation the other."""
    x = images(2, 9, 8, 3)
    for pool in (layers.max_pool_ceil, lambda x: layers.max_pool(x, 3, 1, ((1, 1), (1, 1)))):
        np.testing.assert_array_equal(jax.vjp(pool, x)[0], pool(x))


def test_max_pool_of_bfloat16_keeps_the_type_of_its_gradient():
    x = jnp.asarray(images(1, 7, 7, 2), jnp.bfloat16)
    y, pull = jax.vjp(layers.max_pool_ceil, x)
    (dx,) = pull(jnp.ones_like(y))
    assert y.dtype == dx.dtype == jnp.bfloat16
    _, expected = max_pool_loop(np.asarray(x, np.float32), np.ones(y.shape), 3, 2, ((0, 0), (0, 0)))
    np.testing.assert_array_equal(np.asarray(dx, np.float32), expected)  # whole numbers: exact


@pytest.mark.parametrize("differentiated", [False, True])
def test_nan_in_a_map_reaches_the_loss(differentiated):
    """Else a diverged run would go on with numbers that look sound."""
    pool = functools.partial(layers.max_pool, window=3, stride=1, padding=((1, 1), (1, 1)))
    for i, j in np.ndindex(4, 4):
        x = images(1, 4, 4, 1)
        x[0, i, j] = np.nan
        y = jax.vjp(pool, x)[0] if differentiated else pool(x)
        holds = [[abs(a - i) <= 1 and abs(b - j) <= 1 for b in range(4)] for a in range(4)]
        np.testing.assert_array_equal(np.isnan(y[0, :, :, 0]), holds)


@pytest.mark.parametrize("shape, fan_in", [((3, 3, 64, 96), 576), ((512, 300), 512)])
def test_xavier_is_uniform_within_the_references_bounds(shape, fan_in):
    """Caffe's filler: uniform in +-sqrt(3 / fan_in), so of variance 1 / fan_in."""
    bound = np.sqrt(3 / fan_in)
    weights = np.asarray(layers.XAVIER(jax.random.key(0), shape)).ravel()
    assert bound * 0.999 < weights.max() <= bound
    assert -bound <= weights.min() < -bound * 0.999
    np.testing.assert_allclose(weights.var(), 1 / fan_in, rtol=0.02)  # five standard errors
    counts, _ = np.histogram(weights, bins=10, range=(-bound, bound))
    np.testing.assert_allclose(counts, weights.size / 10, rtol=0.05)
