"""The instruction sequences beside their Python twins, and the tile of every kind of processor."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydilate.kernel import jit
from tinydilate.simd import TILE_SHAPES, copy_run, dot_tile, host_tile, outer_tile

TILE = host_tile()
MARGIN = 7.0  # stands wherever nothing may be written


@jit
def _outer(out, at, pitch, valid, first, relu, bias, bias_at, a, a_at, b, b_at, b_pitch, steps):
    outer_tile(out, at, pitch, valid, first, relu, bias, bias_at, a, a_at, b, b_at, b_pitch, steps)


@jit
def _copy(out, at, row, start, run, first, last):
    copy_run(out, at, row, start, run, first, last)


@jit
def _dot(sums, a, a0, a_pitch, b, b0, b_pitch, n):
    dot_tile(sums, a, a0, a_pitch, b, b0, b_pitch, n)


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=100)
@given(
    st.integers(1, TILE.rows),
    st.integers(1, TILE.columns),
    st.integers(0, 9),
    st.booleans(),
    st.booleans(),
    st.integers(0, 5),
)
def test_the_outer_tile_is_its_twin(rows, columns, steps, first, relu, offset):
    """Every number of valid rows and columns; what lies beyond them stays as it was."""
    pitch = TILE.columns + 3
    out = np.full(offset + TILE.rows * pitch, MARGIN, np.float32)
    a, b = numbers(1, offset + steps * TILE.rows), numbers(2, offset + steps * (TILE.columns + 2))
    bias = numbers(3, offset + TILE.rows)
    results = []
    for function in (_outer, outer_tile.body):
        result = out.copy()
        function(
            result,
            offset,
            pitch,
            (rows, columns),
            first,
            relu,
            bias,
            offset,
            a,
            offset,
            b,
            offset,
            TILE.columns + 2,
            steps,
        )
        results.append(result)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)
    written = np.zeros(out.size, bool)
    for m in range(rows):
        written[offset + m * pitch : offset + m * pitch + columns] = True
    assert (results[0][~written] == MARGIN).all()


@given(st.integers(-4, 4), st.integers(0, 3 * TILE.lanes), st.data(), st.integers(0, 3))
def test_the_copy_of_a_run_is_its_twin(start, run, data, at):
    """Zeros outside [first, last); nothing is read outside of it, nothing written after the run."""
    first = data.draw(st.integers(max(0, -start), run)) if run >= -start else run
    last = data.draw(st.integers(first, run))
    row = numbers(1, 4 * TILE.lanes + 8)
    results = []
    for function in (_copy, copy_run.body):
        out = np.full(at + run + TILE.lanes, MARGIN, np.float32)
        function(out, at, row, start, run, first, last)
        results.append(out)
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0][:at] == MARGIN).all()
    assert (results[0][at + run :] == MARGIN).all()


def test_a_run_that_lies_outside_its_row_reads_nothing():
    """Limits beyond either end of the run are cut: what they name is not read."""
    row = np.full(4, np.nan, np.float32)
    for first, last in ((0, 0), (5, 3), (-9, -2)):
        out = np.full(6, MARGIN, np.float32)
        _copy(out, 0, row, 100, 6, max(0, first), last)
        assert not out.any()


@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 5))
def test_the_dot_tile_is_its_twin(vectors, a0, b0):
    n = vectors * TILE.lanes
    a, b = numbers(1, a0 + TILE.dot_rows * (n + 1)), numbers(2, b0 + TILE.dot_columns * (n + 2))
    results = []
    for function in (_dot, dot_tile.body):
        sums = np.full(TILE.dot_rows * TILE.dot_columns + 1, MARGIN, np.float32)
        function(sums, a, a0, n + 1, b, b0, n + 2, n)
        results.append(sums)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)
    assert results[0][-1] == MARGIN


def test_nan_passes_the_tiles_relu():
    """max(nan, 0) is nan, in vectors as on the page of relu."""
    out = np.zeros(TILE.rows * TILE.columns, np.float32)
    a, b = np.ones(TILE.rows, np.float32), np.ones(TILE.columns, np.float32)
    a[0], a[1] = np.nan, -1
    bias = np.zeros(TILE.rows, np.float32)
    for function in (_outer, outer_tile.body):
        valid = TILE.rows, TILE.columns
        function(out, 0, TILE.columns, valid, True, True, bias, 0, a, 0, b, 0, 0, 1)
        result = out.reshape(TILE.rows, TILE.columns)
        assert np.isnan(result[0]).all()
        assert not result[1].any()
        assert (result[2:] == 1).all()


def test_tiles_fit_their_registers():
    """Sums, one row of B and one spread number of A, for 32 registers or 16."""
    for name, tile in TILE_SHAPES.items():
        registers = 16 if name in ("avx2", "plain") else 32
        vectors = tile.columns // tile.lanes
        assert tile.columns % tile.lanes == 0
        assert tile.rows * vectors + vectors + 1 <= registers
        assert tile.dot_rows * tile.dot_columns + tile.dot_rows + 1 <= registers


PRODUCT = """
import numpy as np
from tinydilate import gemm
from tinydilate.simd import host_tile
rng = np.random.default_rng(0)
a, b = rng.normal(size=(13, 37)).astype(np.float32), rng.normal(size=(37, 51)).astype(np.float32)
np.testing.assert_allclose(gemm.matmul(a, b), a.astype(float) @ b.astype(float), atol=1e-4)
x, g = a.reshape(1, 13, 1, 37), b.T[:7, :37].reshape(1, 7, 1, 37).copy()
rule = gemm.Gather((1, 1), (1, 37), (1, 1), (0, 0), (1, 1), (1, 1))
result = gemm.gathered_outer(x, g, rule)[:, :, 0, 0]
np.testing.assert_allclose(result, g[0, :, 0].astype(float) @ x[0, :, 0].T, atol=1e-4)
print(host_tile().name)
"""


def run_with_tile(name):
    return subprocess.run(
        [sys.executable, "-c", PRODUCT],
        env={**os.environ, "TINYDILATE_TILE": name},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TILE_SHAPES)
def test_every_tile_computes_right_wherever_it_runs(name):
    """A tile made for another processor is slower here, but as right."""
    run = run_with_tile(name)
    assert run.stdout.strip() == name, run.stderr


def test_an_unknown_tile_is_refused():
    run = run_with_tile("avx1024")
    assert run.returncode == 1
    assert (
        "expected TINYDILATE_TILE to be one of avx512, avx2, neon, plain; got 'avx1024'. "
        "Unset it to use the one for this processor."
    ) in run.stderr
