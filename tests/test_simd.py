"""The instruction sequences beside their Python twins, and the tile of every kind of processor."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydilate.compiling import jit
from tinydilate.simd import (
    TILE_SHAPES,
    Sandwich,
    copy_runs,
    fetch_ahead,
    host_tile,
    outer_tile,
    transpose_block,
)

TILE = host_tile()
MARGIN = 7.0  # stands wherever nothing may be written; nan wherever nothing may be read
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}
dtypes = st.sampled_from([np.float32, np.float64])
offsets = st.integers(0, 5)

# A row of zeros, a first weight of -1, fractions, and more rows than columns.
MATRIX = np.array([[0, 0, 0], [-1, 0, 1], [0.5, -1, 2], [1, 1, -0.25]])
sandwich = Sandwich("sandwich", MATRIX)


@jit
def _outer(out, out_at, valid, a, a_at, b, b_at, steps, bias, bias_at, first, relu):
    outer_tile(out, out_at, valid, a, a_at, b, b_at, steps, bias, bias_at, first, relu)


@jit
def _copy(out, out_at, source, at, run, inside, count, alone):
    copy_runs(out, out_at, source, at, run, inside, count, alone)


@jit
def _transpose(out, out_at, source, at, valid, inside, wide):
    transpose_block(out, out_at, source, at, valid, inside, wide)


@jit
def _sandwich(out, out_at, x, x_at, relu):
    sandwich(out, out_at, x, x_at, relu)


def filled(dtype, places, seed, around=np.nan):
    """A flat array with random numbers in ``places``, and ``around`` everywhere else.

    There is much of that behind the places: a wrong instruction is to fail a test, not to end it.
    """
    places = np.asarray(places)
    array = np.full(int(places.max(initial=0)) + 2048, around, dtype)
    array[places] = np.random.default_rng(seed).normal(size=places.shape)
    return array


def both(intrinsic, twin, out, written, *arguments):
    """Run the two on copies of ``out``: the same numbers, and none but in ``written``."""
    results = []
    for function in (intrinsic, twin):
        result = out.copy()
        function(result, *arguments)
        results.append(result)
    tolerance = TOLERANCE[out.dtype.type]
    np.testing.assert_allclose(*results, rtol=tolerance, atol=tolerance)
    assert np.isfinite(results[0][written]).all(), "read what it must not, or wrote too little"
    for result in results:
        beside = np.delete(result, written)
        np.testing.assert_array_equal(beside, np.delete(out, written), "wrote beside its place")
    return results[0]


# ---- the register tile -----------------------------------------------------------------------


@settings(max_examples=80)
@given(st.data(), dtypes, st.booleans(), st.booleans(), st.integers(0, 9))
def test_the_outer_tile_is_its_twin(data, dtype, first, relu, steps):
    """All valid rows and columns, whatever the pitches; what lies beyond them stays as it was."""
    draw = data.draw
    most = TILE.columns(dtype)
    valid = draw(st.integers(1, TILE.rows + 2)), draw(st.integers(1, most + 2))
    rows, columns = min(valid[0], TILE.rows), min(valid[1], most)
    out_at = draw(offsets), columns + draw(offsets)
    # A's rows follow each other, as packed weights do; or its steps do, as a panel's pixels.
    a_at = draw(offsets), *draw(st.sampled_from([(1, TILE.rows + 1), (steps + 2, 1), (3, 40)]))
    b_at, bias_at = (draw(offsets), most + draw(st.integers(-most, 2))), draw(offsets)
    m, k, column = np.ogrid[:rows, :steps, :columns]
    a = filled(dtype, a_at[0] + m * a_at[1] + k * a_at[2], 1)
    b = filled(dtype, b_at[0] + k * b_at[1] + column, 2)
    bias = filled(dtype, bias_at + np.arange(rows), 3)
    written = (out_at[0] + m * out_at[1] + column).ravel()
    out = filled(dtype, written, 4, around=MARGIN)
    if first:
        out[written] = np.nan  # what stood there does not count
    else:
        bias[:] = np.nan
    arguments = out_at, valid, a, a_at, b, b_at, steps, bias, bias_at, first, relu
    both(_outer, outer_tile.body, out, written, *arguments)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_tail_of_the_tile_is_right(dtype):
    check_every_tail(dtype)


def check_every_tail(dtype=np.float32):
    """Each number of rows with each number of vectors: all the code there is.

    Three steps in a first call, two more in a second.
    """
    lanes, most = TILE.lanes(dtype), TILE.columns(dtype)
    a, b = filled(dtype, np.arange(5 * TILE.rows), 1), filled(dtype, np.arange(5 * most), 2)
    bias = filled(dtype, np.arange(TILE.rows), 3)
    left, right = a[: 5 * TILE.rows].reshape(5, -1).T, b[: 5 * most].reshape(5, -1)
    desired = left @ right + bias[: TILE.rows, None]
    limits = {limit + more for limit in range(0, most + 1, lanes) for more in (-1, 0, 1)}
    for rows in range(1, TILE.rows + 1):
        for columns in sorted(limits & set(range(1, most + 1))):
            valid, out = (rows, columns), np.full(TILE.rows * most, MARGIN, dtype)
            for k, steps in ((0, 3), (3, 2)):
                a_at, b_at = (k * TILE.rows, 1, TILE.rows), (k * most, most)
                _outer(out, (0, most), valid, a, a_at, b, b_at, steps, bias, 0, k == 0, False)
            tile = out.reshape(TILE.rows, most)
            np.testing.assert_allclose(
                tile[:rows, :columns], desired[:rows, :columns], atol=10 * TOLERANCE[dtype]
            )
            assert (tile[rows:] == MARGIN).all()
            assert (tile[:, columns:] == MARGIN).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_passes_the_tiles_relu(dtype):
    """max(nan, 0) is nan, in vectors as on the page of relu."""
    columns = TILE.columns(dtype)
    a, b, bias = np.ones(TILE.rows, dtype), np.ones(columns, dtype), np.zeros(TILE.rows, dtype)
    a[0], a[1] = np.nan, -1
    for function in (_outer, outer_tile.body):
        out = np.zeros(TILE.rows * columns, dtype)
        valid, at = (TILE.rows, columns), (0, columns)
        function(out, at, valid, a, (0, 1, 0), b, (0, 0), 1, bias, 0, True, True)
        result = out.reshape(TILE.rows, columns)
        assert np.isnan(result[0]).all()
        assert not result[1].any()
        assert (result[2:] == 1).all()


def test_tiles_fit_their_registers():
    """Sums, one row of B and one spread number of A, for 32 registers or 16."""
    for name, tile in TILE_SHAPES.items():
        registers = 16 if name in ("avx2", "plain") else 32
        assert tile.rows * tile.vectors + tile.vectors + 1 <= registers
        for dtype in (np.float32, np.float64):
            assert tile.lanes(dtype) * np.dtype(dtype).itemsize == tile.width
            assert tile.columns(dtype) == tile.vectors * tile.lanes(dtype)


# ---- moving vectors --------------------------------------------------------------------------


@settings(max_examples=150)
@given(st.data(), dtypes, st.integers(0, 4), offsets)
def test_the_copy_of_runs_is_its_twin(data, dtype, count, at):
    """Zeros outside [first, last); nothing is read outside of it, nothing written after a run."""
    draw = data.draw
    run = draw(st.integers(1, TILE.columns(dtype)))
    inside = draw(st.integers(-4, run + 4)), draw(st.integers(-4, run + 4))
    source_at = draw(st.integers(6, 9)), draw(st.integers(0, run + 9))
    out_at = at, run + draw(offsets)
    real = np.arange(max(0, inside[0]), min(run, inside[1]))
    n = np.arange(count)[:, None]
    source = filled(dtype, source_at[0] + n * source_at[1] + real, 1)
    written = (out_at[0] + n * out_at[1] + np.arange(run)).ravel()
    out = filled(dtype, written, 2, around=MARGIN)
    arguments = out_at, source, source_at, run, inside, count, draw(st.booleans())
    both(_copy, copy_runs.body, out, written, *arguments)


@settings(max_examples=150)
@given(st.data(), dtypes)
def test_the_transposed_block_is_its_twin(data, dtype):
    """Zeros for columns outside [first, last) and rows that do not exist, which are not read."""
    draw, lanes = data.draw, TILE.lanes(dtype)
    valid = draw(st.integers(1, lanes + 2)), draw(st.integers(1, lanes))
    wide = draw(st.integers(1, lanes))
    inside = draw(st.integers(-20, lanes)), draw(st.integers(0, lanes + 20))
    at = draw(offsets), draw(st.integers(lanes, 3 * lanes))
    out_at = draw(offsets), wide + draw(offsets)
    rows, columns = min(valid[0], lanes), valid[1]
    m, j = np.ogrid[:rows, max(0, inside[0]) : max(0, min(inside[1], lanes))]
    source = filled(dtype, at[0] + m * at[1] + j, 1)
    written = (out_at[0] + np.arange(columns)[:, None] * out_at[1] + np.arange(wide)).ravel()
    out = filled(dtype, written, 2, around=MARGIN)
    arguments = out_at, source, at, valid, inside, wide
    both(_transpose, transpose_block.body, out, written, *arguments)


def test_limits_far_outside_are_cut_before_they_are_narrowed():
    """Masks are made of 32-bit numbers: 2**32 must not become 0, nor -(2**32)."""
    row = np.arange(20, dtype=np.float32)
    for inside in ((-(2**32), 2**32), (-(2**31), 2**31), (-(2**40), 2**33 + 1)):
        out = np.full(8, MARGIN, np.float32)
        _copy(out, (0, 6), row, (3, 6), 6, inside, 1, False)
        assert out.tolist() == [3, 4, 5, 6, 7, 8, MARGIN, MARGIN]
    for inside in ((2**32, 2**33), (-(2**33), -(2**32))):
        out = np.full(8, MARGIN, np.float32)
        _copy(out, (0, 6), row, (3, 6), 6, inside, 1, False)
        assert out.tolist() == [0] * 6 + [MARGIN] * 2


def test_runs_that_lie_outside_their_row_read_nothing():
    """The addresses of such runs name no memory of ours at all."""
    row = np.full(4, np.nan, np.float32)
    for inside in ((0, 0), (5, 3), (-9, -2), (70, 90)):
        out = np.full(12, MARGIN, np.float32)
        _copy(out, (0, 6), row, (2**40, 2**41), 6, inside, 2, False)
        assert not out.any()
        out = np.full(12, MARGIN, np.float32)
        _transpose(out, (0, 3), row, (2**40, 2**41), (3, 4), inside, 3)
        assert not out.any()


@jit
def _fetch(array, at, count):
    fetch_ahead(array, at, count)


def test_fetching_ahead_asks_for_lines_wherever_they_are_and_reads_nothing():
    for dtype in (np.float32, np.float64):
        array = np.arange(40, dtype=dtype)
        for at in (0, 39, 2**40, -(2**40)):  # far outside there is no memory of ours
            _fetch(array, at, 100)
        assert (array == np.arange(40)).all()
    compiled = _fetch.compiled
    if hasattr(compiled, "inspect_llvm"):  # Numba may be switched off
        codes = compiled.inspect_llvm().values()
        assert all("call void @llvm.prefetch" in code for code in codes)


# ---- sandwiches ------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data(), dtypes, st.booleans())
def test_the_sandwich_is_its_twin_and_a_product_of_matrices(data, dtype, relu):
    draw, lanes = data.draw, TILE.lanes(dtype)
    rows, inner = MATRIX.shape

    def pitches(size):
        column = lanes + draw(offsets)
        return draw(offsets), size * column + draw(offsets), column

    out_at, x_at = pitches(rows), pitches(inner)

    def places(at, size):
        i, j, lane = np.ogrid[:size, :size, :lanes]
        return at[0] + i * at[1] + j * at[2] + lane

    x = filled(dtype, places(x_at, inner), 1)
    written = places(out_at, rows).ravel()
    out = filled(dtype, written, 2, around=MARGIN)
    result = both(_sandwich, sandwich._twin, out, written, out_at, x, x_at, relu)
    values = np.moveaxis(x[places(x_at, inner)], -1, 0)  # (lanes, inner, inner)
    desired = MATRIX @ values @ MATRIX.T
    desired = np.maximum(desired, 0) if relu else desired
    found = np.moveaxis(result[places(out_at, rows)], -1, 0)
    np.testing.assert_allclose(found, desired, rtol=1e-4, atol=10 * TOLERANCE[dtype])


def test_nan_passes_the_sandwichs_relu_and_keeps_to_its_lane():
    lanes = TILE.lanes(np.float32)
    x = np.ones(9 * lanes, np.float32)
    x[::lanes] = np.nan
    for function in (_sandwich, sandwich._twin):
        out = np.zeros(16 * lanes, np.float32)
        function(out, (0, 4 * lanes, lanes), x, (0, 3 * lanes, lanes), True)
        result = out.reshape(4, 4, lanes)
        assert np.isnan(result[2, 2, 0])
        assert np.isfinite(result[..., 1:]).all()


# ---- other processors ------------------------------------------------------------------------

PRODUCTS = """
import numpy as np
from tinydilate import gemm
from tinydilate.functional.convolution import conv2d_forward, conv2d_grad_input, conv2d_grad_weight
from tinydilate.simd import host_tile
from tinydilate.window import Window
from tinydilate.winograd import winograd_outer, winograd_product

def check(result, kernel, *arguments):
    wide = [a.astype(float) if isinstance(a, np.ndarray) else a for a in arguments]
    desired = kernel.implementations["numpy"](*wide)
    error = np.abs(result - desired).max() / np.abs(desired).max()
    assert error < (3e-5 if result.dtype == np.float32 else 1e-12), (kernel, error)

rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    x, w, b = (rng.normal(size=s).astype(dtype) for s in ((2, 17, 9, 29), (19, 17, 3, 3), (19,)))
    for stride in (1, 2):
        window = Window.of(3, stride, 2, 2)
        size = window.output_size(x.shape[2:])
        grad = rng.normal(size=(2, 19, *size)).astype(dtype)
        rule = gemm.forward_gather(window, size)
        forward = conv2d_forward, x, w, b, window, 1, True
        inward = conv2d_grad_input, grad, w, x.shape[2:], window
        outward = conv2d_grad_weight, x, grad, window
        check(gemm.gathered_product(x, w, b, rule, 1, True), *forward)
        check(gemm.gathered_outer(x, grad, rule), *outward)
        check(gemm.folded_product(grad, w, window, x.shape[2:]), *inward)
        for side in (2, 4) if stride == 1 else ():
            check(winograd_product(x, w, b, window, size, 1, True, side=side), *forward)
            back = winograd_product(grad, w, None, window, x.shape[2:], side=side, adjoint=True)
            check(back, *inward)
            check(winograd_outer(x, grad, window, side=side), *outward)
    a, c = x[0, 0], x[0, 1].T.copy()
    np.testing.assert_allclose(gemm.matmul(a, c), a @ c, atol=1e-4)
print(host_tile().name)
"""


def run_with_tile(name, program=PRODUCTS):
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TINYDILATE_TILE": name},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TILE_SHAPES if name != TILE.name])
def test_every_tile_computes_right_wherever_it_runs(name):
    """A tile made for another processor is slower here, but as right. Ours has all other tests."""
    run = run_with_tile(name)
    assert run.stdout.strip() == name, run.stderr


def test_an_unknown_tile_is_refused():
    run = run_with_tile("avx1024", "from tinydilate.simd import host_tile; host_tile()")
    assert run.returncode == 1
    assert (
        "expected TINYDILATE_TILE to be one of avx512, avx2, neon, plain; got 'avx1024'. "
        "Unset it to use the one for this processor."
    ) in run.stderr
