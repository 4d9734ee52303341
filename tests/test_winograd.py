"""Winograd's convolution: exact in one dimension, right at any dilation, and how much it rounds."""

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydilate import gemm, set_num_threads, winograd
from tinydilate.functional.convolution import conv2d_forward, conv2d_grad_input, conv2d_grad_weight
from tinydilate.simd import host_tile
from tinydilate.window import Window
from tinydilate.winograd import fastest_side, winograd_outer, winograd_product

TILE = host_tile()
LANES, MOST = TILE.lanes(), TILE.columns()
# Of sums of numbers around one. F(4x4) multiplies and divides by up to 24 on the way.
FLOAT32, FLOAT64 = {2: 6e-6, 4: 1e-4}, {2: 2e-14, 4: 2e-13}
sides = pytest.mark.parametrize("side", [2, 4])


pytestmark = pytest.mark.usefixtures("memory_is_full_of_nan")


# ---- the algorithm ---------------------------------------------------------------------------


def fractions(matrix):
    """The matrix with its thirds, as they are meant."""
    return np.array([[Fraction(x).limit_denominator(1000) for x in row] for row in matrix])


@sides
@given(data=st.data())
def test_the_matrices_are_the_algorithm(side, data):
    """In fractions, without any rounding: y = A.T [(G g) * (B.T x)] is the correlation."""
    numbers = st.integers(-99, 99).map(Fraction)
    g = np.array([data.draw(numbers) for _ in range(3)])
    x = np.array([data.draw(numbers) for _ in range(side + 2)])
    image, kernel, output = (
        fractions(m[side]) for m in (winograd.IMAGE, winograd.KERNEL, winograd.OUTPUT)
    )
    y = output @ ((kernel @ g) * (image @ x))
    assert y.tolist() == [sum(x[i : i + 3] * g) for i in range(side)]
    # Its transpose, by which the gradient of the weights is computed.
    dy = np.array([data.draw(numbers) for _ in range(side)])
    dg = kernel.T @ ((output.T @ dy) * (image @ x))
    assert dg.tolist() == [sum(x[u : u + side] * dy) for u in range(3)]


@sides
def test_a_number_at_the_point_1_comes_out_everywhere(side):
    """Where the bias is put: point (1, 1), number side + 3 of a tile."""
    tile = np.zeros((side + 2) ** 2)
    tile[side + 3] = 1
    tile, output = tile.reshape(side + 2, side + 2), winograd.OUTPUT[side]
    np.testing.assert_array_equal(output @ tile @ output.T, 1)


@given(st.integers(1, 60), st.integers(1, 9), st.sampled_from([2, 4]))
def test_tiles_cover_each_output_once(size, dilation, side):
    grid = winograd.grid_of(side, 1, (size, 1), (dilation, 1), (0, 0))
    outputs = [
        winograd._origin(n, side, dilation) + i * dilation
        for n in range(grid.tiles[0])
        for i in range(side)
    ]
    assert len(set(outputs)) == len(outputs)
    assert set(range(size)) <= set(outputs)
    assert all(winograd._origin(n, side, dilation) < size for n in range(grid.tiles[0]))


# ---- beside the reference --------------------------------------------------------------------


def numbers(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def check(side, dtype, count, channels, filters, size, window, groups=1, relu=False):
    """The layer and its gradients beside the references in float64."""
    x = numbers(count, groups * channels, *size, dtype=dtype)
    w = numbers(groups * filters, channels, 3, 3, seed=1, dtype=dtype)
    b = numbers(groups * filters, seed=2, dtype=dtype)
    output = window.output_size(size)
    grad = numbers(count, groups * filters, *output, seed=3, dtype=dtype)
    wide = [array.astype(np.float64) for array in (x, w, b, grad)]

    tolerance = (FLOAT32 if dtype == np.float32 else FLOAT64)[side]

    def close(result, desired, inner):
        assert result.shape == desired.shape
        assert result.dtype == dtype
        error = np.abs(result - desired).max() / np.sqrt(inner)  # sums of so many are so large
        assert error <= tolerance  # nan is not

    result = winograd_product(x, w, b, window, output, groups, relu, side=side)
    desired = conv2d_forward.implementations["numpy"](*wide[:3], window, groups, relu)
    close(result, desired, 1 + 9 * channels)
    result = winograd_product(grad, w, None, window, size, groups, side=side, adjoint=True)
    desired = conv2d_grad_input.implementations["numpy"](wide[3], wide[1], size, window, groups)
    close(result, desired, 9 * filters)
    result = winograd_outer(x, grad, window, groups, side=side)
    desired = conv2d_grad_weight.implementations["numpy"](wide[0], wide[3], window, groups)
    close(result, desired, count * output[0] * output[1])


@st.composite
def layers(draw):
    """Arguments of `check` after the dtype: any dilation, padding and size."""
    dilation = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    padding = draw(st.integers(0, 8)), draw(st.integers(0, 8))
    size = tuple(
        max(1, draw(st.integers(1, most)) + 2 * d - 2 * p)
        for most, d, p in zip((9, 40), dilation, padding, strict=True)
    )
    maps = st.sampled_from([1, 2, LANES - 1, LANES, LANES + 1, 2 * LANES + 3, MOST + 1])
    window = Window.of(3, 1, padding, dilation)
    count, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2]))
    return count, draw(maps), draw(maps), size, window, groups, draw(st.booleans())


@sides
@settings(max_examples=60)
@given(layer=layers(), dtype=st.sampled_from([np.float32, np.float64]))
def test_any_layer_and_its_gradients(side, layer, dtype):
    check(side, dtype, *layer)


@sides
@settings(max_examples=25)
@given(layer=layers(), threads=st.integers(2, 9))
def test_any_number_of_threads_computes_the_same(side, layer, threads):
    """Right, and the same bits each time."""
    set_num_threads(threads)
    check(side, np.float32, *layer)
    count, channels, filters, size, window, groups, relu = layer
    x, w = numbers(count, groups * channels, *size), numbers(groups * filters, channels, 3, 3)
    output = window.output_size(size)
    grad = numbers(count, groups * filters, *output)
    for product in (
        lambda: winograd_product(x, w, None, window, output, groups, relu, side=side),
        lambda: winograd_outer(x, grad, window, groups, side=side),
    ):
        np.testing.assert_array_equal(product(), product())


@sides
@pytest.mark.parametrize("dilation", [1, 3, 50])
def test_one_pixel_through_one_channel(side, dilation):
    for padding in (dilation, 3 * dilation):  # the kernel's middle alone; mostly padding
        window = Window.of(3, 1, padding, dilation)
        check(side, np.float32, 1, 1, 1, (1, 1), window)
    check(side, np.float32, 1, 1, 1, (2 * dilation + 1,) * 2, Window.of(3, 1, 0, dilation))


@sides
@pytest.mark.parametrize("across", [1, 3, winograd.TILES, winograd.TILES + 1])
@pytest.mark.parametrize("tiles", [1.0, 2.3])
def test_rows_wider_than_a_job(side, across, tiles):
    """Cut within the row, where a whole number of phases ends."""
    width = int(tiles * winograd.TILES * side) + across
    check(side, np.float32, 2, 3, 2, (5, width), Window.of(3, 1, (1, across), (1, across)))


@sides
def test_many_blocks_and_sums_that_fit_no_cache(monkeypatch, side):
    """The settings of memory do not change the result: a few tiles at a time."""
    monkeypatch.setattr(winograd, "TILES", 5)
    for bytes_at_most in (1, 20_000, 1 << 40):
        for setting in ("BAND_BYTES", "SUMS_BYTES"):
            monkeypatch.setattr(winograd, setting, bytes_at_most)
        for threads in (1, 3):
            set_num_threads(threads)
            check(side, np.float32, 3, 20, 35, (11, 37), Window.of(3, 1, 2, (1, 2)), 2, True)


@pytest.mark.plain
@sides
def test_sums_of_a_row_of_tiles_at_a_time(monkeypatch, side):
    for setting in ("BAND_BYTES", "SUMS_BYTES"):
        monkeypatch.setattr(winograd, setting, 1)
    check(side, np.float32, 2, 3, 2, (5, 9), Window.of(3, 1, 2, (1, 2)))


@sides
def test_more_tiles_than_are_summed_at_once(side):
    """The first of them begin the sums, the others add to them."""
    wide = winograd.TILE_STEPS * side // 4 + 2 * side
    check(side, np.float32, 2, 3, 2, (4 * side, wide), Window.of(3, 1, 1))


@sides
def test_nan_passes_the_relu(side):
    x, w = np.ones((1, 1, 6, 6), np.float32), -np.ones((1, 1, 3, 3), np.float32)
    window, b = Window.of(3, 1, 1), np.array([np.nan], np.float32)
    assert np.isnan(winograd_product(x, w, b, window, (6, 6), 1, True, side=side)).all()
    assert not winograd_product(x, w, None, window, (6, 6), 1, True, side=side).any()


# ---- rounding --------------------------------------------------------------------------------


# Bounds of the largest error over the result's standard deviation, about twice what was measured:
# (the result and the gradient of the input, the gradient of the weights). Tiles of two add fewer
# products in a row than direct multiplication does, and so round less.
ROUNDING = {
    128: {0: (1.2e-5, 1.2e-5), 2: (5e-6, 7e-6), 4: (1e-4, 5e-5)},
    512: {0: (3e-5, 1.3e-5), 2: (1e-5, 8e-6), 4: (2.5e-4, 5e-5)},
}


@pytest.mark.parametrize("channels", ROUNDING)
def test_the_error_beside_float64(channels):
    errors = rounding_errors(channels)
    for side, (maps, weights) in ROUNDING[channels].items():
        forward, inward, outward = errors[side]
        assert max(forward, inward) < maps
        assert outward < weights
    assert errors[4][0] > 3 * errors[2][0], "the bounds tell nothing if all ways are one"


def rounding_errors(channels, size=(28, 28)):
    """{0, 2, 4: (forward, gradient of the input, gradient of the weights)} of a layer."""
    x, w = numbers(1, channels, *size), numbers(channels, channels, 3, 3, seed=1)
    grad, window = numbers(1, channels, *size, seed=2), Window.of(3, 1, 2, 2)
    rule, back = gemm.forward_gather(window, size), gemm.adjoint_gather(window, size)
    wide = [array.astype(np.float64) for array in (x, w, grad)]
    truth = (
        gemm.gathered_product(wide[0], wide[1], None, rule),
        gemm.gathered_product(wide[2], wide[1], None, back, adjoint=True),
        gemm.gathered_outer(wide[0], wide[2], rule),
    )
    results = {
        0: (
            gemm.gathered_product(x, w, None, rule),
            gemm.gathered_product(grad, w, None, back, adjoint=True),
            gemm.gathered_outer(x, grad, rule),
        )
    }
    for side in (2, 4):
        results[side] = (
            winograd_product(x, w, None, window, size, side=side),
            winograd_product(grad, w, None, window, size, side=side, adjoint=True),
            winograd_outer(x, grad, window, side=side),
        )
    return {
        side: tuple(
            float(np.abs(mine - true).max() / true.std())
            for mine, true in zip(found, truth, strict=True)
        )
        for side, found in results.items()
    }


# ---- the choice ------------------------------------------------------------------------------

NINE = Window.of(3, 1, 1)


@pytest.mark.parametrize(
    ("window", "channels", "dtype"),
    [
        (Window.of(5, 1, 2), 256, np.float32),
        (Window.of((3, 1), 1, 1), 256, np.float32),
        (Window.of(3, 2, 1), 256, np.float32),
        (Window.of(3, (1, 2), 1), 256, np.float32),
        (Window.of(3, 1, 1, 1025), 256, np.float32),
        (NINE, 256, np.float64),
        (NINE, 3, np.float32),
    ],
)
def test_what_is_multiplied_directly(window, channels, dtype):
    """Other windows, dilations beyond reason, float64, and too few channels."""
    assert fastest_side(1, channels, channels, window, (56, 56), dtype) == 0


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_wide_layers_are_computed_by_tiles_of_four(dilation):
    window = Window.of(3, 1, dilation, dilation)
    for channels, size in ((256, (56, 56)), (512, (66, 66)), (128, (112, 112))):
        assert fastest_side(1, channels, channels, window, size, np.float32) == 4


def test_nobody_computes_nothing_by_tiles():
    assert fastest_side(0, 512, 512, NINE, (56, 56), np.float32) == 0
    x, w = np.zeros((0, 512, 9, 9), np.float32), np.zeros((8, 512, 3, 3), np.float32)
    for side in (None, 2, 4):
        forward = conv2d_forward.implementations[f"cpu:winograd{side}" if side else "cpu"]
        assert forward(x, w, None, NINE).shape == (0, 8, 9, 9)


CHOICE = """
import numpy as np
from tinydilate.window import Window
from tinydilate.winograd import fastest_side
print(fastest_side(1, 512, 512, Window.of(3, 1, 1), (56, 56), np.float32))
"""


def choice(setting):
    return subprocess.run(
        [sys.executable, "-c", CHOICE],
        env={**os.environ, "TINYDILATE_WINOGRAD": setting},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_environment_forbids_it():
    assert choice("on").stdout.strip() == "4"
    assert choice("off").stdout.strip() == "0"


def test_an_unknown_setting_is_refused():
    run = choice("false")
    assert run.returncode == 1
    assert (
        "expected TINYDILATE_WINOGRAD to be on or off; got 'false'. "
        "Unset it to let each layer choose the faster way."
    ) in run.stderr
