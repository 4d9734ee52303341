"""The blocked products at odd sizes: tails of rows, of columns, and steps beyond one block."""

import numpy as np
import pytest
from cases import conv2d_oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydilate import gemm, get_num_threads, set_num_threads
from tinydilate.simd import host_tile
from tinydilate.window import Window

TILE = host_tile()


def close(result, desired, inner):
    """Within float32's rounding of a sum of ``inner`` products of numbers around one."""
    np.testing.assert_allclose(result, desired, rtol=0, atol=4e-7 * (inner + 10))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


# One less, equal, one more than: a tile's rows, a tile's columns, a block of steps or pixels.
ROWS = [1, TILE.rows - 1, TILE.rows, TILE.rows + 1, 2 * TILE.rows + 3]
COLUMNS = [1, TILE.columns - 1, TILE.columns, TILE.columns + 1, gemm.PIXELS - 1, gemm.PIXELS + 1]
STEPS = [1, 2, gemm.STEPS - 1, gemm.STEPS, gemm.STEPS + 1, 2 * gemm.STEPS + 5]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("steps", STEPS)
def test_matmul_of_odd_sizes(rows, columns, steps):
    a, b = numbers(rows, steps), numbers(steps, columns, seed=1)
    close(gemm.matmul(a, b), a.astype(np.float64) @ b.astype(np.float64), steps)


def test_results_beyond_the_last_row_and_column_are_not_touched():
    """The tail of a tile is masked: the numbers after the result stay as they were."""
    for rows, columns in ((1, 1), (TILE.rows + 1, TILE.columns + 1)):
        a, b = numbers(rows, 3), numbers(3, columns, seed=1)
        result = gemm.matmul(a, b)
        assert result.shape == (rows, columns)
        close(result, a.astype(np.float64) @ b.astype(np.float64), 3)


def test_nothing_to_add_leaves_the_bias():
    out = gemm.gathered_product(
        np.zeros((2, 1, 3, 3), np.float32),
        numbers(5, 1, 1, 1),
        np.arange(5, dtype=np.float32),
        gemm.forward_gather(Window.of(1), (3, 3)),
    )
    np.testing.assert_array_equal(out, np.broadcast_to(np.arange(5.0)[:, None, None], out.shape))


def test_nan_and_inf_spread_no_further_than_their_sums():
    a, b = numbers(TILE.rows + 1, 7), numbers(7, TILE.columns + 1, seed=1)
    a[1, 3], b[2, 4] = np.nan, np.inf
    result = gemm.matmul(a, b)
    assert np.isnan(result[1]).all()
    assert not np.isfinite(result[:, 4]).any()
    assert np.isfinite(np.delete(np.delete(result, 1, 0), 4, 1)).all()


@settings(max_examples=40)
@given(st.data())
def test_convolution_of_odd_sizes(data):
    """Larger than the cases of the ops: several tiles of filters, several blocks of pixels."""
    groups = data.draw(st.integers(1, 2))
    channels, each = data.draw(st.integers(1, 9)), data.draw(st.integers(1, TILE.rows + 2))
    kernel, dilation, stride = (data.draw(st.integers(1, 3)) for _ in range(3))
    extent = dilation * (kernel - 1) + 1
    padding = data.draw(st.integers(0, 2))
    height = data.draw(st.integers(0, 6)) + extent
    width = data.draw(st.integers(0, 40)) + extent
    relu = data.draw(st.booleans())
    x = numbers(2, groups * channels, height, width)
    w = numbers(groups * each, channels, kernel, kernel, seed=1)
    b = numbers(groups * each, seed=2)
    window = Window.of(kernel, stride, padding, dilation)
    gather = gemm.forward_gather(window, window.output_size((height, width)))
    out = gemm.gathered_product(x, w, b, gather, groups, relu)
    wide = [array.astype(np.float64) for array in (x, w, b)]
    expected = conv2d_oracle(*wide, stride, padding, dilation, groups)
    close(out, np.maximum(expected, 0) if relu else expected, w[0].size)
    # The gradient of the weights, as the product that it is: <grad, conv(x, e)> for each weight e.
    grad = numbers(*out.shape, seed=3)
    result = gemm.gathered_outer(x, grad, gather, groups)
    for position in [tuple(data.draw(st.integers(0, n - 1)) for n in w.shape) for _ in range(3)]:
        unit = np.zeros(w.shape)
        unit[position] = 1
        desired = (
            conv2d_oracle(wide[0], unit, None, stride, padding, dilation, groups) * grad
        ).sum()
        close(result[position], desired, grad[0, 0].size * 2)


@pytest.mark.parametrize("pixels", [15, 16, 17, gemm.DOT_PIXELS - 1, gemm.DOT_PIXELS + 1])
@pytest.mark.parametrize("rows", [1, gemm.DOT_STEPS - 1, gemm.DOT_STEPS + 1])
def test_outer_product_of_odd_sizes(pixels, rows):
    x, grad = numbers(2, rows, 1, pixels), numbers(2, 5, 1, pixels, seed=1)
    gather = gemm.forward_gather(Window.of(1), (1, pixels))
    result = gemm.gathered_outer(x, grad, gather)
    desired = np.einsum("nfij,ncij->fc", grad.astype(np.float64), x.astype(np.float64))
    close(result[:, :, 0, 0], desired, 2 * pixels)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_any_number_of_threads_computes_the_same_sums(number):
    """Parts of the pixels for each thread, or parts of the rows: both cuts."""
    before = get_num_threads()
    x, grad = numbers(3, 9, 20, 20), numbers(3, 6, 18, 18, seed=1)
    gather = gemm.forward_gather(Window.of(3), (18, 18))
    desired = gemm.gathered_outer(x.astype(np.float32), grad, gather)
    set_num_threads(number)
    try:
        close(gemm.gathered_outer(x, grad, gather), desired, grad[0, 0].size * 3)
    finally:
        set_num_threads(before)


def test_rows_are_packed_step_by_step():
    matrix = np.arange(2.0 * (TILE.rows + 1)).reshape(TILE.rows + 1, 2).astype(np.float32)
    packed = gemm.pack_rows(matrix)
    assert packed.shape == (2, 2, TILE.rows)
    np.testing.assert_array_equal(packed[0, :, 0], matrix[0])
    np.testing.assert_array_equal(packed[1, :, 0], matrix[TILE.rows])
    assert not packed[1, :, 1:].any()
