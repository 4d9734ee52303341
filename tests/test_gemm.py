"""The blocked products at odd sizes: tails of rows, of columns, and steps beyond one block."""

import numpy as np
import pytest
from cases import conv2d_oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydilate import gemm, set_num_threads, threads
from tinydilate.functional.convolution import conv2d_forward, conv2d_grad_input, conv2d_grad_weight
from tinydilate.simd import host_tile
from tinydilate.window import Window

TILE = host_tile()
LANES, MOST = TILE.lanes(), TILE.columns()
dtypes = st.sampled_from([np.float32, np.float64])


pytestmark = pytest.mark.usefixtures("memory_is_full_of_nan")


def close(result, desired, inner):
    """Within the rounding of a sum of ``inner`` products of numbers around one."""
    assert result.shape == desired.shape
    each = 4e-7 if result.dtype == np.float32 else 1e-15
    np.testing.assert_allclose(result, desired, rtol=0, atol=each * (inner + 10))


def numbers(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


def around(*sizes):
    """One less, equal, one more."""
    return [size + more for size in sizes for more in (-1, 0, 1) if size + more > 0]


# ---- one product -----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, *around(TILE.rows), 2 * TILE.rows + 3])
@pytest.mark.parametrize("columns", [*around(1, LANES, MOST, gemm.PIXELS), 2 * gemm.PIXELS + 1])
@pytest.mark.parametrize("steps", [*around(1, gemm.STEPS), 2 * gemm.STEPS + 5])
def test_matmul_of_odd_sizes(rows, columns, steps):
    a, b = numbers(rows, steps), numbers(steps, columns, seed=1)
    close(gemm.matmul(a, b), a.astype(np.float64) @ b.astype(np.float64), steps)


def test_nothing_to_add_leaves_the_bias():
    out = gemm.gathered_product(
        np.zeros((2, 1, 3, 3), np.float32),
        numbers(5, 1, 1, 1),
        np.arange(5, dtype=np.float32),
        gemm.forward_gather(Window.of(1), (3, 3)),
    )
    np.testing.assert_array_equal(out, np.broadcast_to(np.arange(5.0)[:, None, None], out.shape))


def test_nan_and_inf_spread_no_further_than_their_sums():
    a, b = numbers(TILE.rows + 1, 7), numbers(7, MOST + 1, seed=1)
    a[1, 3], b[2, 4] = np.nan, np.inf
    result = gemm.matmul(a, b)
    assert np.isnan(result[1]).all()
    assert not np.isfinite(result[:, 4]).any()
    assert np.isfinite(np.delete(np.delete(result, 1, 0), 4, 1)).all()


# ---- packing and gathering -------------------------------------------------------------------


@given(st.data(), dtypes, st.booleans())
def test_weights_are_packed_step_by_step(data, dtype, adjoint):
    """The adjoint's rows follow each other in memory: vectors copy them as they lie."""
    filters, channels = data.draw(st.integers(1, 2 * TILE.rows + 1)), data.draw(st.integers(1, 70))
    taps = data.draw(st.sampled_from([1, 2, 9, 17, 49]))
    first, count = data.draw(st.integers(0, 5)), data.draw(st.integers(1, filters))
    pitches = (taps, filters * taps) if adjoint else (channels * taps, taps)
    weights = numbers(first + filters * channels * taps, dtype=dtype)
    tiles = -(-count // TILE.rows)
    packed = np.full((tiles, channels, taps, TILE.rows), np.nan, dtype)
    for tile in range(tiles):  # each on its own, as threads do
        lanes = TILE.lanes(dtype)
        gemm._pack(tile, tile + 1, weights, first, count, pitches, packed, lanes)
    row, c, t = np.ogrid[:count, :channels, :taps]
    desired = weights[first + row * pitches[0] + c * pitches[1] + t]
    rows = packed.transpose(0, 3, 1, 2).reshape(tiles * TILE.rows, channels, taps)
    np.testing.assert_array_equal(rows[:count], desired)
    assert not rows[count:].any()


@settings(max_examples=60)
@given(
    st.integers(1, 60), st.integers(0, 99), st.integers(1, 3 * MOST), st.sampled_from([LANES, MOST])
)
def test_runs_cover_each_pixel_once(breadth, p0, count, columns):
    """In one output row and in one tile each; the places in a panel follow the pixels."""
    runs = np.full((count, 4), -1, np.int64)
    found = gemm._find_runs(runs, (p0, p0 + count), breadth, columns, 1000)
    places = {}
    for i, j, length, place in runs[:found].tolist():
        assert length >= 1
        assert j + length <= breadth
        assert place % 1000 + length <= columns
        places |= {i * breadth + j + m: place + m for m in range(length)}
    within = range(count)
    assert places == {p0 + n: n // columns * 1000 + n % columns for n in within}
    assert sum(runs[:found, 2]) == count


# ---- convolution and its gradients -----------------------------------------------------------


@st.composite
def layers(draw):
    """(x, w, b, grad, window, groups): larger than the cases of the ops."""
    dtype = draw(dtypes)
    groups, channels = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 9, 17, 40]))
    filters = draw(st.sampled_from([1, *around(TILE.rows), LANES + 1, MOST + 1]))
    kernel, stride, dilation = (tuple(draw(st.integers(1, 3)) for _ in range(2)) for _ in range(3))
    padding = tuple(draw(st.integers(0, 5)) for _ in range(2))
    size = tuple(
        max(1, draw(st.integers(0, most)) + d * (k - 1) + 1 - 2 * p)
        for most, k, d, p in zip((9, 70), kernel, dilation, padding, strict=True)
    )
    window = Window.of(kernel, stride, padding, dilation)
    count = draw(st.integers(1, 2))
    x = numbers(count, groups * channels, *size, dtype=dtype)
    w = numbers(groups * filters, channels, *kernel, seed=1, dtype=dtype)
    b = numbers(groups * filters, seed=2, dtype=dtype)
    output = window.output_size(size)
    grad = numbers(count, groups * filters, *output, seed=3, dtype=dtype)
    return x, w, b, grad, window, groups


def check_layer(layer, relu=False):
    """Every product of the layer beside the reference in float64."""
    x, w, b, grad, window, groups = layer
    size, output = x.shape[2:], grad.shape[2:]
    rule = gemm.forward_gather(window, output)
    wide = [array.astype(np.float64) for array in (x, w, b, grad)]

    desired = conv2d_forward.implementations["numpy"](*wide[:3], window, groups, relu)
    close(gemm.gathered_product(x, w, b, rule, groups, relu), desired, w[0].size)

    inner = len(w) // groups * window.taps
    desired = conv2d_grad_input.implementations["numpy"](wide[3], wide[1], size, window, groups)
    close(gemm.folded_product(grad, w, window, size, groups), desired, inner)
    close(gemm.input_gradient(grad, w, window, size, groups), desired, inner)
    if window.stride == (1, 1):
        back = gemm.adjoint_gather(window, size)
        result = gemm.gathered_product(grad, w, None, back, groups, adjoint=True)
        close(result, desired, inner)

    desired = conv2d_grad_weight.implementations["numpy"](wide[0], wide[3], window, groups)
    close(gemm.gathered_outer(x, grad, rule, groups), desired, len(x) * grad[0, 0].size)


@settings(max_examples=80)
@given(layers(), st.booleans())
def test_convolution_of_odd_sizes(layer, relu):
    check_layer(layer, relu)


@settings(max_examples=30)
@given(layers(), st.integers(2, 9))
def test_any_number_of_threads_computes_the_same_sums(layer, number):
    """Cut by pixels, by filters, by channels, by images: right, and the same bits each time."""
    set_num_threads(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm, "_WORTH_A_THREAD", 0)
        gemm._made_plan.cache_clear()
        check_layer(layer)
        x, w, b, grad, window, groups = layer
        rule = gemm.forward_gather(window, grad.shape[2:])
        for product in (
            lambda: gemm.gathered_product(x, w, b, rule, groups),
            lambda: gemm.gathered_outer(x, grad, rule, groups),
            lambda: gemm.folded_product(grad, w, window, x.shape[2:], groups),
        ):
            np.testing.assert_array_equal(product(), product())


def test_the_references_are_the_oracles():
    """Everything here is compared with the references: once with what shares nothing with them."""
    x, w, b = (numbers(*shape, dtype=np.float64) for shape in ((2, 6, 9, 8), (4, 3, 2, 3), (4,)))
    window = Window.of((2, 3), (2, 1), (1, 2), (3, 2))
    result = conv2d_forward.implementations["numpy"](x, w, b, window, 2)
    close(result, conv2d_oracle(x, w, b, (2, 1), (1, 2), (3, 2), 2), 0)


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tiles", [1, 2])
def test_weights_packed_slab_by_slab(monkeypatch, adjoint, groups, tiles):
    """As fc6's, which are too many to be packed at once."""
    channels, filters = (4 * TILE.rows + 1, 5) if adjoint else (5, 4 * TILE.rows + 1)
    inner = 9 * min(channels, filters)
    monkeypatch.setattr(gemm, "PACKED_BYTES", tiles * TILE.rows * inner * 4)
    packed = []

    def share(body, count, *arguments, **options):
        if body is gemm._pack:
            packed.append(count)
        threads.share(body, count, *arguments, **options)

    monkeypatch.setattr(gemm, "share", share)
    window = Window.of(3, 1, 1)
    x, w = numbers(2, groups * channels, 4, 6), numbers(groups * filters, channels, 3, 3, seed=1)
    b = numbers(groups * filters, seed=2)
    grad = numbers(2, groups * filters, 4, 6, seed=3)
    check_layer((x, w, b, grad, window, groups))
    assert max(packed) == tiles
    assert len(packed) >= groups * (4 // tiles + 1), "several slabs a group"


@pytest.mark.parametrize("steps", around(gemm.STEPS))
def test_folding_more_filters_than_a_block_of_steps(steps):
    window = Window.of(2, 2)
    x, w = numbers(1, 3, 4, 4), numbers(steps, 3, 2, 2, seed=1)
    check_layer((x, w, numbers(steps), numbers(1, steps, 2, 2, seed=3), window, 1))


@pytest.mark.parametrize("pixels", [*around(LANES, gemm.PIXEL_STEPS), 2 * gemm.PIXEL_STEPS + 3])
@pytest.mark.parametrize("channels", [1, *around(gemm.STEPS)])
def test_outer_product_of_odd_sizes(pixels, channels):
    x, grad = numbers(2, channels, 1, pixels), numbers(2, 5, 1, pixels, seed=1)
    gather = gemm.forward_gather(Window.of(1), (1, pixels))
    result = gemm.gathered_outer(x, grad, gather)
    desired = np.einsum("nfij,ncij->fc", grad.astype(np.float64), x.astype(np.float64))
    close(result[:, :, 0, 0], desired, 2 * pixels)


@pytest.mark.plain
@pytest.mark.parametrize("width", [129, 200])
def test_planes_larger_than_the_near_caches(width):
    """Of these the next run is asked for ahead, beyond the end of the last plane too."""
    x, w = numbers(1, 2, gemm.FAR // width + 1, width), numbers(1, 2, 1, 3, seed=1)
    window = Window.of((1, 3), 1, (0, 1))
    arguments = x, w, None, window
    desired = conv2d_forward.implementations["numpy"](*arguments)
    close(
        gemm.gathered_product(*arguments[:3], gemm.forward_gather(window, x.shape[2:])), desired, 6
    )


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_batch_teaches_the_weights_nothing(count):
    window, w = Window.of(3, 1, 1), numbers(4, 3, 3, 3)
    x, grad = np.zeros((count, 3, 5, 6), np.float32), np.zeros((count, 4, 5, 6), np.float32)
    rule = gemm.forward_gather(window, (5, 6))
    assert gemm.gathered_product(x, w, None, rule).shape == grad.shape
    assert gemm.folded_product(grad, w, window, (5, 6)).shape == x.shape
    assert gemm.input_gradient(grad, w, window, (5, 6)).shape == x.shape
    np.testing.assert_array_equal(gemm.gathered_outer(x, grad, rule), np.zeros(w.shape))
