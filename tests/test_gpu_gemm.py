"""The register tiles of the GPU: every tail of every tile, parts of sums, strides and groups.

`test_ops` compares them with the references on drawn cases. Here are the sizes that cross an edge:
in the simulator a tile has 8 x 4, 4 x 8 or 2 x 8 numbers, and eight or sixteen steps in k.
"""

import numpy as np
import pytest
from guarded_cuda import guarded
from mutants import GPU_MUTANTS, planted

from tinydilate import device, gpu_gemm
from tinydilate.errors import KernelError
from tinydilate.functional.convolution import (
    _folds,
    conv2d_forward,
    conv2d_grad_input,
    conv2d_grad_weight,
)
from tinydilate.functional.products import matmul_forward
from tinydilate.functional.unfolding import fold_forward, unfold_forward
from tinydilate.window import Window

pytestmark = pytest.mark.gpu
tiles = pytest.mark.parametrize("tile", gpu_gemm.plain_tiles())  # test_gpu_tf32 has others


def numbers(*shape, dtype=np.float32):
    """Small whole numbers: their sums are exact, in any order."""
    rng = np.random.default_rng(sum(shape))
    return rng.integers(-3, 4, shape).astype(dtype)


def on_both(kernel, name, *arguments):
    """The result of one implementation on the GPU, between guards, equals the reference's."""
    expected = kernel.implementations["numpy"](*arguments)
    with guarded():
        moved = [device.move(a, "cuda") if isinstance(a, np.ndarray) else a for a in arguments]
        result = device.move(kernel.implementations[name](*moved), "cpu")
    np.testing.assert_array_equal(result, expected)


def convolution(name, images, weights, window, groups=1):
    """Forward with bias and relu, and both gradients, by one implementation."""
    x, w, b = numbers(*images), numbers(*weights), numbers(weights[0])
    grad = numbers(images[0], weights[0], *window.output_size(images[2:]))
    on_both(conv2d_forward, name, x, w, b, window, groups, True)
    on_both(conv2d_grad_input, name, grad, w, images[2:], window, groups)
    on_both(conv2d_grad_weight, name, x, grad, window, groups)


# ---- tails -----------------------------------------------------------------------------------


@tiles
@pytest.mark.parametrize("filters", [1, 4, 9])
@pytest.mark.parametrize("columns", [3, 8, 9])
def test_tiles_end_anywhere_in_rows_and_columns(tile, filters, columns):
    """One row less or more than a tile, or than two; and so the columns."""
    convolution(f"cuda:{tile}", (1, 2, 1, columns), (filters, 2, 1, 1), Window.of(1))


@tiles
@pytest.mark.parametrize("channels", [7, 8, 9])
def test_channels_end_anywhere_in_a_round_of_eight(tile, channels):
    convolution(f"cuda:{tile}", (2, channels, 2, 3), (3, channels, 1, 2), Window.of((1, 2)))


@tiles
def test_pixels_of_several_images_lie_in_one_tile(tile):
    convolution(f"cuda:{tile}", (3, 1, 1, 3), (2, 1, 1, 1), Window.of(1))


# ---- windows and groups ----------------------------------------------------------------------


@tiles
def test_strides_dilation_and_uneven_padding(tile):
    """The gradient by the input has places that no output read, and must find the others."""
    window = Window((2, 3), (3, 2), ((2, 0), (1, 3)), (2, 1))
    convolution(f"cuda:{tile}", (1, 2, 6, 4), (3, 2, 2, 3), window)


@tiles
def test_each_group_has_its_own_channels(tile):
    convolution(f"cuda:{tile}", (2, 6, 2, 2), (9, 2, 2, 1), Window.of((2, 1)), groups=3)


def test_the_readable_way_takes_all_of_it_as_well():
    window = Window((2, 3), (3, 2), ((2, 0), (1, 3)), (2, 1))
    convolution("cuda:readable", (2, 4, 6, 4), (6, 2, 2, 3), window, groups=2)


@tiles
def test_nan_stays_where_it_is_read(tile):
    """Behind the channels, and the relu, nan times nothing would be nan."""
    x, w = numbers(2, 3, 2, 2), numbers(2, 3, 1, 1)
    x[1] = np.nan
    on_both(conv2d_forward, f"cuda:{tile}", x, w, None, Window.of(1), 1, True)


# ---- parts of a sum --------------------------------------------------------------------------


@tiles
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_a_sum_in_parts_is_the_whole_sum(tile, parts):
    """33 pixels are five rounds of eight: more parts than that there cannot be."""
    parts_agree(tile, parts)


@tiles
@pytest.mark.parametrize("parts", [2, 3, 20])
@pytest.mark.parametrize("relu", [False, True])
def test_a_map_in_parts_is_the_whole_map(tile, parts, relu):
    """Two taps of nine channels are four rounds of eight steps; some begin in the middle of one."""
    map_in_parts_agrees(tile, parts, relu)


def map_in_parts_agrees(tile="tile128", parts=3, relu=True):
    window = Window.of((1, 2), padding=(0, 1))
    x, w, b = numbers(2, 18, 2, 3), numbers(10, 9, 1, 2), numbers(10)
    expected = conv2d_forward.implementations["numpy"](x, w, b, window, 2, relu)
    gather = gpu_gemm.forward_gather(window, (2, 4))
    with guarded():
        moved = [device.move(array, "cuda") for array in (x, w, b)]
        result = gpu_gemm.gathered_product(*moved, gather, 2, relu, tile=tile, parts=parts)
        result = device.move(result, "cpu")
    np.testing.assert_array_equal(result, expected)


def parts_agree(tile="tile128", parts=2):
    window = Window.of((1, 2), padding=(0, 1))
    x, grad = numbers(3, 2, 1, 10), numbers(3, 3, 1, 11)
    expected = conv2d_grad_weight.implementations["numpy"](x, grad, window, 1)
    gather = gpu_gemm.forward_gather(window, (1, 11))
    with guarded():
        moved = device.move(x, "cuda"), device.move(grad, "cuda")
        result = gpu_gemm.gathered_outer(*moved, gather, tile=tile, parts=parts)
        result = device.move(result, "cpu")
    np.testing.assert_array_equal(result, expected)


@tiles
@pytest.mark.parametrize("parts", [1, 3])
def test_a_plain_product_may_end_anywhere(tile, parts):
    """A window of one pixel: its sum runs on into the next image, and begins in the middle of one.

    With one filter or channel more and less than tiles have, in the last of two groups as well.
    """
    for filters, channels, pixels in ((9, 3, 11), (1, 17, 5), (8, 16, 8)):
        plain_product_agrees(tile, parts, filters, channels, pixels)


def plain_product_agrees(tile="tile128", parts=3, filters=9, channels=3, pixels=11):
    x, grad = numbers(4, 2 * channels, 1, pixels), numbers(4, 2 * filters, 1, pixels)
    expected = conv2d_grad_weight.implementations["numpy"](x, grad, Window.of(1), 2)
    gather = gpu_gemm.forward_gather(Window.of(1), (1, pixels))
    with guarded():
        moved = device.move(x, "cuda"), device.move(grad, "cuda")
        result = gpu_gemm.gathered_outer(*moved, gather, 2, tile=tile, parts=parts)
        result = device.move(result, "cpu")
    np.testing.assert_array_equal(result, expected)


@tiles
@pytest.mark.parametrize(("filters", "channels"), [(16, 8), (8, 16), (9, 8), (16, 9)])
def test_weights_that_lie_in_order_are_not_packed(tile, filters, channels):
    """Those of an adjoint of one tap, in full tiles and steps; others are."""
    grad, w = numbers(2, filters, 2, 3), numbers(filters, channels, 1, 1)
    on_both(conv2d_grad_input, f"cuda:{tile}", grad, w, (2, 3), Window.of(1))


def test_many_parts_are_shared_by_several_threads():
    """So many that each adds some, one after the other, and a tail of numbers is left."""
    sums = np.random.default_rng(0).integers(-9, 9, (23, 7)).astype(np.float32)
    with guarded():
        moved, result = device.move(sums, "cuda"), device.empty((7,), np.float32)
        grid, threads = gpu_gemm._adding(7, len(sums))
        gpu_gemm._add_parts[grid, threads](moved, result, len(sums))
        result = device.move(result, "cpu")
    assert threads[1] > 1
    np.testing.assert_array_equal(result, sums.sum(axis=0))


def test_the_number_of_parts_fills_the_card_and_leaves_each_enough(monkeypatch):
    card = device.card()._replace(multiprocessors=132)
    monkeypatch.setattr(gpu_gemm, "card", lambda: card)
    tile = gpu_gemm.Tile(128, 128, 8, 8, vector=4, blocks=2, share=0.8)
    assert gpu_gemm._parts(4, 10**6, tile) == 132  # 528 blocks: two times two for each
    assert gpu_gemm._parts(1000, 10**6, tile) == 1
    assert gpu_gemm._parts(4, 600, tile) == 2  # 256 pixels a part at least
    assert gpu_gemm._parts(4, 9, tile) == 1


@pytest.mark.usefixtures("h100")
def test_few_filters_get_a_small_tile():
    pixels = 4 * 90_000
    for channels in (3, 8, 21):  # sixteen steps would be more of nothing than eight are
        assert gpu_gemm.fastest_cut(21, pixels, 1, channels, 9).tile == "tile32"
    for filters, tile in ((11, "tile32_16"), (64, "tile64"), (512, "tile128")):
        assert gpu_gemm.fastest_cut(filters, pixels, 1, 64, 9) == (tile, 1)
        assert gpu_gemm.outer_cut(filters, 9 * 512, 1, pixels).tile == tile


@pytest.mark.usefixtures("h100")
def test_a_small_map_of_many_channels_is_summed_in_parts():
    tile, parts = gpu_gemm.fastest_cut(512, 44 * 44, 1, 512, 9)  # conv5 of a 500x500 crop
    blocks = parts * 512 // gpu_gemm.TILES[tile].rows * -(-44 * 44 // 128)
    assert 132 < blocks <= 8 * 132
    assert gpu_gemm.fastest_cut(21, 66 * 66, 1, 21, 9)[1] == 1, "a part has 128 steps at least"


@pytest.mark.usefixtures("h100")
def test_parts_bring_work_to_multiprocessors_that_wait():
    """Measured: 256 blocks of 128x128 beat as many of 64x128, four of which have room at a time."""
    assert gpu_gemm.fastest_cut(4096, 256, 1, 4096, 1) == ("tile128", 4)  # fc7 of the crop
    small, large = gpu_gemm.TILES["tile64"], gpu_gemm.TILES["tile128"]
    busy = [gpu_gemm._busy(small, blocks) for blocks in (1, 2, 3, 4, 9)]
    assert busy == sorted(busy)
    assert busy[1] == gpu_gemm._busy(large, 1) == pytest.approx(0.7)
    assert busy[3] == busy[4] == gpu_gemm._busy(large, 2) == 1


@pytest.mark.usefixtures("h100")
def test_columns_are_folded_unless_they_take_too_much_memory():
    """A layer of stride 2, forwards (N, 64, 2s, 2s) -> (N, 128, s, s)."""
    w, window = (128, 64, 3, 3), Window.of(3, stride=2, padding=1)
    for images, side, folds in ((1, 64, True), (14, 256, True), (16, 512, False)):
        grad = (images, 128, side, side)
        assert _folds(grad, w, (2 * side, 2 * side), window, 1, tf32=False) == folds


# ---- products --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cuda", "cuda:readable"])
@pytest.mark.parametrize("shape", [(5, 9, 3), (4, 4, 8), (1, 3, 9)])
def test_products_end_anywhere_in_a_tile(name, shape):
    rows, inner, columns = shape
    on_both(matmul_forward, name, numbers(2, rows, inner), numbers(2, inner, columns))


def test_a_batch_is_repeated_where_the_other_has_more():
    on_both(matmul_forward, "cuda:readable", numbers(2, 1, 3, 2), numbers(3, 2, 5))


# ---- planted bugs ----------------------------------------------------------------------------


def check_tails():
    convolution("cuda:tile128", (1, 9, 2, 3), (9, 9, 2, 1), Window.of((2, 1)))


def check_window():
    window = Window((2, 2), (2, 2), ((1, 0), (0, 1)), (2, 1))
    convolution("cuda:tile64", (2, 2, 4, 3), (5, 2, 2, 2), window)


def check_parts():
    parts_agree("tile128", 2)


def check_products():
    on_both(matmul_forward, "cuda:readable", numbers(5, 9), numbers(9, 3))


def check_columns():
    window = Window((2, 2), (2, 2), ((1, 0), (0, 1)), (2, 1))
    on_both(fold_forward, "cuda", numbers(1, 1, 2, 2, 2, 2), (4, 3), window)
    on_both(unfold_forward, "cuda", numbers(1, 2, 4, 3), window)


def check_map_in_parts():
    map_in_parts_agrees()


def check_plain():
    plain_product_agrees()


def check_order():
    grad, w = numbers(2, 8, 2, 3), numbers(8, 8, 1, 2)
    on_both(conv2d_grad_input, "cuda:tile128", grad, w, (2, 4), Window.of((1, 2)))


CHECKS = [
    check_tails,
    check_window,
    check_parts,
    check_map_in_parts,
    check_plain,
    check_order,
    check_products,
    check_columns,
]


@pytest.mark.skipif(not device.SIMULATED, reason="bugs are planted in Python")
@pytest.mark.parametrize("mutant", GPU_MUTANTS, ids=[mutant.name for mutant in GPU_MUTANTS])
def test_a_planted_bug_is_noticed(mutant):
    check = {check.__name__: check for check in CHECKS}[mutant.killer]
    with planted(mutant), pytest.raises((AssertionError, KernelError)):
        check()


@pytest.mark.parametrize("check", CHECKS)
def test_without_a_bug_the_checks_pass(check):
    with planted(GPU_MUTANTS[0], really=False):
        check()
