"""TF32 on tensor cores: rounding, which lane holds what, layers and their edges, the option.

In the simulator a block's tile has 16 x 16 or 16 x 32 numbers, of one warp or two, and sixteen
steps in k. Small whole numbers are TF32 numbers, so their products and sums are exact.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from guarded_cuda import guarded
from mutants import GPU_TF32_MUTANTS, planted
from test_gpu_gemm import convolution, numbers, on_both

from tinydilate import device, get_tf32, gpu_gemm, gpu_tf32, set_tf32, tensor, use
from tinydilate import functional as F
from tinydilate.device import Card
from tinydilate.errors import ConfigError, DeviceError, KernelError
from tinydilate.functional.convolution import (
    conv2d_forward,
    conv2d_grad_input,
    conv2d_grad_weight,
)
from tinydilate.kernel import Float32Array, cuda
from tinydilate.window import Window

TILES = [name for name, tile in gpu_gemm.TILES.items() if tile.tf32]
tiles = pytest.mark.parametrize("tile", TILES)


def card_can():
    return device.cuda_problem() is None and (
        device.SIMULATED or device.card().capability >= gpu_tf32.CAPABILITY
    )


@pytest.fixture
def tensor_cores():
    if not card_can():
        pytest.skip("needs a GPU of compute capability 8.0 or later, or the simulator")


on_tensor_cores = pytest.mark.usefixtures("tensor_cores")

# ---- rounding --------------------------------------------------------------------------------

ULP = 2.0**-10  # of a TF32 number between 1 and 2
ROUNDED = {
    1.0: 1.0,
    1 + ULP: 1 + ULP,
    1 + 0.49 * ULP: 1.0,
    1 + 0.5 * ULP: 1 + ULP,  # as near to both: the larger
    1 + 1.5 * ULP: 1 + 2 * ULP,
    -1 - 0.5 * ULP: -1 - ULP,
    2 - 0.5 * ULP: 2.0,  # into the next power of two
    0.0: 0.0,
    3.4028235e38: np.inf,  # the largest float32, half a unit below the next
    np.inf: np.inf,
    -np.inf: -np.inf,
}


def test_rounding_to_the_nearest_and_ties_away_from_zero():
    for number, expected in ROUNDED.items():
        assert gpu_tf32.as_tf32(number) == expected, number
    assert np.isnan(gpu_tf32.as_tf32(np.array([np.nan, -np.nan], np.float32))).all()
    assert np.signbit(gpu_tf32.as_tf32(-0.0))


def test_rounding_is_off_by_half_a_unit_at_most():
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    error = np.abs(gpu_tf32.as_tf32(x).astype(np.float64) - x)
    assert (error <= 2.0**-11 * np.abs(x)).all()
    assert error.max() > 2.0**-12 * np.abs(x).max() / 8
    assert (gpu_tf32.as_tf32(x).view(np.uint32) % 2**13 == 0).all()


_rounded = gpu_tf32.rounded


@cuda.jit(dtypes=(np.float32,), capability=gpu_tf32.CAPABILITY)
def round_all(x: Float32Array, out: Float32Array) -> None:
    n = np.uint32(cuda.grid(1))
    if n < x.size:
        out[n] = _rounded(x[n])


@pytest.mark.gpu
@on_tensor_cores
def test_kernels_round_alike():
    random = np.random.default_rng(0).standard_normal(20).astype(np.float32)
    x = np.array([*ROUNDED, np.nan, 1e-40, *random], np.float32)
    out = device.empty(x.shape, x.dtype)
    round_all[device.cover(x.size)](device.move(x, "cuda"), out)
    np.testing.assert_array_equal(device.move(out, "cpu"), gpu_tf32.as_tf32(x))


# ---- lanes -----------------------------------------------------------------------------------


def probe(rows, columns, thread_rows, thread_columns):
    """A kernel of one block that multiplies two tiles, (rows, 16) and (16, columns)."""
    THREADS = rows // thread_rows * (columns // thread_columns)
    SUMS, SIZE_A, SIZE_B = thread_rows * thread_columns, 16 * rows, 16 * columns
    first_row, first_column, multiply = gpu_tf32.warps(
        columns, THREADS, thread_rows, thread_columns
    )
    place_left, place_right = gpu_tf32.place_left, gpu_tf32.place_right

    @cuda.jit(launch_bounds=THREADS, dtypes=(np.float32,), capability=gpu_tf32.CAPABILITY)
    def multiplied(a: Float32Array, b: Float32Array, out: Float32Array) -> None:
        tile_a = cuda.shared.array(SIZE_A, np.float32, alignment=16)
        tile_b = cuda.shared.array(SIZE_B, np.float32, alignment=16)
        sums = cuda.local.array(SUMS, np.float32)
        thread = np.uint32(cuda.threadIdx.x)
        for n in range(SUMS):
            sums[n] = out[np.uint32(0)]  # every sum begins with this number
        for n in range(thread, SIZE_A, THREADS):
            row, k = (
                np.uint32(np.uint32(n) // np.uint32(16)),
                np.uint32(np.uint32(n) % np.uint32(16)),
            )
            tile_a[place_left(row, k)] = a[n]
        for n in range(thread, SIZE_B, THREADS):
            column = np.uint32(np.uint32(n) % np.uint32(columns))
            tile_b[place_right(column, np.uint32(np.uint32(n) // np.uint32(columns)))] = b[n]
        cuda.syncthreads()
        multiply(tile_a, tile_b, np.uint32(0), np.uint32(0), thread, sums)
        for i in range(thread_rows):
            row = first_row(thread) + np.uint32(8 * i)
            for j in range(thread_columns):
                column = first_column(thread) + np.uint32(j // 2 * 8 + j % 2)
                out[np.uint32(row * np.uint32(columns) + column)] = sums[i * thread_columns + j]

    return multiplied, THREADS


PROBES = {
    "one product": probe(16, 8, 2, 2),
    "two by two warps": probe(32, 32, 2, 4),
    "a warp of 64x32": probe(64, 32, 8, 8),
}


def lanes_multiply(name, a, b, start=0.0):
    """``a @ b``, added to ``start``, by the warps of one block."""
    kernel, threads = PROBES[name]
    out = np.full((len(a), b.shape[1]), np.float32(start))
    with guarded():
        moved = [device.move(array, "cuda") for array in (a, b, out)]
        kernel[1, threads](*moved)
        return device.move(moved[2], "cpu")


def lanes_agree(name="one product"):
    """Every product of a unit with a number of its own must come out at its place, and no other."""
    rows, columns = {"one product": (16, 8), "two by two warps": (32, 32)}.get(name, (64, 32))
    a = np.arange(1, 16 * rows + 1, dtype=np.float32).reshape(rows, 16)  # 11 bits: all are TF32
    b = np.random.default_rng(0).integers(-4, 5, (16, columns)).astype(np.float32)
    np.testing.assert_array_equal(lanes_multiply(name, a, b, start=3), a @ b + 3)


@pytest.mark.gpu
@on_tensor_cores
@pytest.mark.parametrize("name", PROBES)
def test_each_sum_is_its_row_times_its_column(name):
    lanes_agree(name)


@pytest.mark.gpu
@on_tensor_cores
def test_products_of_random_numbers_are_those_of_the_definition():
    """On a GPU this compares the instruction with what all other tests take it for."""
    random = np.random.default_rng(1)
    a, b = (
        gpu_tf32.as_tf32(random.standard_normal(shape)).astype(np.float32)
        for shape in ((16, 16), (16, 8))
    )
    exact = a.astype(np.float64) @ b.astype(np.float64)
    room = 32 * 2.0**-23 * (np.abs(a) @ np.abs(b))  # the cores' sums may drop bits, not round them
    assert (np.abs(lanes_multiply("one product", a, b) - exact) <= room).all()


@pytest.mark.parametrize("rows", [16, 64])
def test_every_number_has_a_place_of_its_own(rows):
    for place in (gpu_tf32.place_left, gpu_tf32.place_right):
        places = {
            int(place.body(np.uint32(r), np.uint32(k))) for r in range(rows) for k in range(16)
        }
        assert places == set(range(16 * rows))


def banks(places):
    """How many turns a store of a warp's lanes takes: the most that fall upon one bank."""
    found = np.bincount(np.array(places) % 32, minlength=32)
    return int(found.max())


def test_what_is_said_of_banks():
    left = lambda r, k: int(gpu_tf32.place_left.body(np.uint32(r), np.uint32(k)))  # noqa: E731
    right = lambda r, k: int(gpu_tf32.place_right.body(np.uint32(r), np.uint32(k)))  # noqa: E731
    for lanes in np.arange(32).reshape(4, 8):  # loads of 128 bits: g = lane // 4, t = lane % 4
        pieces = [right(lane // 4, 4 * (lane % 4)) for lane in lanes]
        assert len({place // 4 % 8 for place in pieces}) == 8
        assert all(place % 4 == 0 for place in pieces)
    for k in (0, 4, 8, 12):  # stores forward, of 128 bits: eight columns in sequence
        assert len({right(column, k) // 4 % 8 for column in range(8)}) == 8
    warp = [(lane // 16, lane % 16) for lane in range(32)]  # stores of the weights' gradient
    assert banks([right(*lane) for lane in warp]) == 1
    assert banks([left(*lane) for lane in warp]) == 2


# ---- layers ----------------------------------------------------------------------------------


@pytest.mark.gpu
@on_tensor_cores
@tiles
@pytest.mark.parametrize(("filters", "channels", "pixels"), [(1, 1, 1), (16, 16, 33), (17, 17, 15)])
def test_tiles_end_anywhere(tile, filters, channels, pixels):
    """One row, step or column more or less than a tile."""
    convolution(f"cuda:{tile}", (1, channels, 1, pixels), (filters, channels, 1, 1), Window.of(1))


@pytest.mark.gpu
@on_tensor_cores
def test_strides_dilation_uneven_padding_and_groups():
    window = Window((2, 2), (3, 2), ((2, 0), (1, 3)), (2, 1))
    convolution("cuda:tf32_128", (1, 4, 6, 4), (6, 2, 2, 2), window, groups=2)


def map_in_parts(tile="tf32_128"):
    window = Window.of((1, 2), padding=(0, 1))
    x, w, b = numbers(2, 34, 1, 3), numbers(4, 17, 1, 2), numbers(4)  # four rounds: a tap has two
    expected = conv2d_forward.implementations["numpy"](x, w, b, window, 2, True)
    gather = gpu_gemm.forward_gather(window, (1, 4))
    with guarded():
        moved = [device.move(array, "cuda") for array in (x, w, b)]
        result = gpu_gemm.gathered_product(*moved, gather, 2, True, tile=tile, parts=3)
        result = device.move(result, "cpu")
    np.testing.assert_array_equal(result, expected)


def gradient_in_parts(tile="tf32_64"):
    window = Window.of((1, 2), padding=(0, 1))
    x, grad = numbers(3, 2, 1, 20), numbers(3, 3, 1, 21)
    expected = conv2d_grad_weight.implementations["numpy"](x, grad, window, 1)
    gather = gpu_gemm.forward_gather(window, (1, 21))
    with guarded():
        moved = device.move(x, "cuda"), device.move(grad, "cuda")
        result = gpu_gemm.gathered_outer(*moved, gather, tile=tile, parts=2)
        result = device.move(result, "cpu")
    np.testing.assert_array_equal(result, expected)


@pytest.mark.gpu
@on_tensor_cores
def test_a_sum_in_parts_is_the_whole_sum():
    map_in_parts()
    gradient_in_parts()


def errors_are_bounded():
    """Beside float64, by what gpu_tf32.py says; and larger than FP32's, or it was not TF32."""
    random, window = np.random.default_rng(0), Window.of(2, dilation=2)
    x, w = (random.standard_normal(s).astype(np.float32) for s in ((1, 5, 4, 5), (3, 5, 2, 2)))
    grad = random.standard_normal((1, 3, 2, 3)).astype(np.float32)
    for kernel, first, second, rest in (
        (conv2d_forward, x, w, (None, window)),
        (conv2d_grad_input, grad, w, ((4, 5), window)),
        (conv2d_grad_weight, x, grad, (window,)),
    ):
        reference = kernel.implementations["numpy"]
        exact = reference(first.astype(np.float64), second.astype(np.float64), *rest)
        sizes = reference(
            np.abs(first).astype(np.float64), np.abs(second).astype(np.float64), *rest
        )
        with guarded():
            moved = device.move(first, "cuda"), device.move(second, "cuda")
            result = device.move(kernel.implementations["cuda:tf32_128"](*moved, *rest), "cpu")
        error = np.abs(result - exact)
        assert (error <= (2.0**-10 + 2.0**-18) * sizes).all()
        assert error.max() > 2.0**-16 * sizes.max()
        rounded = (gpu_tf32.as_tf32(part).astype(np.float64) for part in (first, second))
        np.testing.assert_allclose(result, reference(*rounded, *rest), atol=1e-4)


@pytest.mark.gpu
@on_tensor_cores
def test_errors_are_bounded():
    errors_are_bounded()


@pytest.mark.gpu
@on_tensor_cores
def test_nan_stays_where_it_is_read():
    x, w = numbers(2, 3, 2, 2), numbers(2, 3, 1, 1)
    x[1] = np.nan
    on_both(conv2d_forward, "cuda:tf32_128", x, w, None, Window.of(1), 1, True)


@pytest.mark.gpu
@pytest.mark.skipif(not device.SIMULATED, reason="on a GPU these are the tiles anyway")
def test_the_tile_of_a_gpu_in_the_simulator(monkeypatch):
    """All eight warps of it, four beside each other and two below."""
    tile = gpu_gemm.Tile(128, 128, 8, 8, vector=4, blocks=1, share=0.2, steps=16, tf32=True)
    monkeypatch.setitem(gpu_gemm.TILES, "whole", tile)
    monkeypatch.setitem(gpu_gemm._GATHERED, "whole", gpu_gemm._gather_kernel("whole", tile))
    for plain in (False, True):
        outer = gpu_gemm._outer_kernel("whole", tile, plain)
        monkeypatch.setitem(gpu_gemm._OUTER, ("whole", plain), outer)
    x, w, grad = numbers(1, 1, 1, 100), numbers(100, 1, 1, 1), numbers(1, 100, 1, 100)
    packed = np.zeros((1, 16, 128), np.float32)  # by hand: `pack` takes long to simulate
    for f in range(100):
        place = gpu_tf32.place_left.body(np.uint32(f), np.uint32(0))
        packed.reshape(-1)[int(place)] = w[f, 0, 0, 0]
    gather = gpu_gemm.forward_gather(Window.of(1), (1, 100))
    with guarded():
        moved = [device.move(array, "cuda") for array in (x, packed, grad)]
        cut = gpu_gemm.Cut("whole", 1)
        out = gpu_gemm.product(moved[0], moved[1], None, gather, 100, 1, False, cut)
        out = device.move(out, "cpu")
    np.testing.assert_array_equal(out, x * w.reshape(1, 100, 1, 1))
    x = numbers(1, 120, 1, 20)
    grad = numbers(1, 100, 1, 20)
    with guarded():
        moved = [device.move(array, "cuda") for array in (x, grad)]
        gather = gpu_gemm.forward_gather(Window.of(1), (1, 20))
        result = gpu_gemm.gathered_outer(*moved, gather, tile="whole", parts=1)
        result = device.move(result, "cpu")
    np.testing.assert_array_equal(result[:, :, 0, 0], grad[0, :, 0] @ x[0, :, 0].T)
    window = Window.of((1, 2), padding=(0, 1))  # not the plain case
    x, grad = numbers(1, 60, 1, 20), numbers(1, 100, 1, 21)
    expected = conv2d_grad_weight.implementations["numpy"](x, grad, window, 1)
    with guarded():
        moved = [device.move(array, "cuda") for array in (x, grad)]
        gather = gpu_gemm.forward_gather(window, (1, 21))
        result = gpu_gemm.gathered_outer(*moved, gather, tile="whole", parts=1)
        result = device.move(result, "cpu")
    np.testing.assert_array_equal(result, expected)


# ---- the option ------------------------------------------------------------------------------


@pytest.fixture
def unsettled(monkeypatch):
    """As in a fresh process; afterwards as before."""
    monkeypatch.setattr(gpu_tf32, "_wanted", None)
    monkeypatch.delenv("TINYDILATE_TF32", raising=False)
    return monkeypatch


def test_it_is_off_unless_asked_for(unsettled):
    assert not get_tf32()
    unsettled.setattr(gpu_tf32, "_wanted", None)
    unsettled.setenv("TINYDILATE_TF32", "on")
    assert get_tf32()
    set_tf32(False)
    assert not get_tf32()


@pytest.mark.usefixtures("unsettled")
def test_what_is_neither_on_nor_off_is_refused(monkeypatch):
    monkeypatch.setenv("TINYDILATE_TF32", "1")
    with pytest.raises(ConfigError) as caught:
        get_tf32()
    assert str(caught.value) == (
        "expected TINYDILATE_TF32 to be on or off; got '1'. Unset it to multiply float32 as "
        "float32."
    )
    with pytest.raises(ConfigError) as caught:
        set_tf32("on")
    assert str(caught.value) == "expected True or False for TF32; got 'on'. Write set_tf32(True)."


def test_a_card_without_tensor_cores_for_it_is_refused(unsettled):
    unsettled.setattr(gpu_tf32, "SIMULATED", False)
    unsettled.setattr(gpu_tf32, "check_device", lambda name: name)
    unsettled.setattr(gpu_tf32, "card", lambda: Card("Tesla T4", (7, 5), 40, 2**34))
    said = (
        "expected a GPU of compute capability 8.0 or later (Ampere, 2020) for TF32; got Tesla T4, "
        "which has 7.5. Leave TF32 off: set_tf32(False), and unset TINYDILATE_TF32."
    )
    with pytest.raises(DeviceError) as caught:
        set_tf32(True)
    assert str(caught.value) == said
    assert not get_tf32()
    unsettled.setattr(gpu_tf32, "_wanted", True)  # as the environment may have said
    with pytest.raises(DeviceError) as caught:
        gpu_tf32.is_wanted()
    assert str(caught.value) == said


@pytest.mark.gpu
def test_an_old_card_still_takes_the_tile_that_it_is_told(unsettled):
    """With TINYDILATE_TF32=on nothing but the choice of a tile asks for the instruction."""

    def refuse():
        raise DeviceError("expected a GPU of compute capability 8.0 or later.")

    unsettled.setattr(gpu_tf32, "_wanted", True)
    unsettled.setattr(gpu_tf32, "check_card", refuse)
    for name in ("cuda:tile32", "cuda:winograd2"):
        convolution(name, (1, 2, 4, 4), (3, 2, 3, 3), Window.of(3))
    with pytest.raises(DeviceError):
        convolution("cuda:tf32_64", (1, 2, 4, 4), (3, 2, 3, 3), Window.of(3))


@pytest.mark.skipif(device.cuda_problem() is None, reason="there is a GPU, or the simulator")
@pytest.mark.usefixtures("unsettled")
def test_without_a_gpu_the_reason_is_said():
    with pytest.raises(DeviceError, match="expected a GPU to compute on"):
        set_tf32(True)


@pytest.mark.gpu
def test_an_older_card_is_refused_before_anything_is_launched(monkeypatch):
    """Not even its weights are packed: the compiler has no such rounding for it."""

    def refuse():
        raise DeviceError("older")

    launched = []
    monkeypatch.setattr(gpu_tf32, "check_card", refuse)
    monkeypatch.setitem(gpu_gemm._PACK, True, Spy("pack", launched))
    with pytest.raises(DeviceError, match=r"^older$"):
        convolution("cuda:tf32_64", (1, 2, 4, 4), (3, 2, 3, 3), Window.of(3))
    assert not launched


@pytest.mark.gpu
@on_tensor_cores
@pytest.mark.usefixtures("unsettled")
def test_wide_layers_use_it_and_no_others(monkeypatch):
    """Forwards and for both gradients; float64 never."""
    seen = []
    for name in list(gpu_gemm._GATHERED):
        monkeypatch.setitem(gpu_gemm._GATHERED, name, Spy(name, seen))
    for name, plain in list(gpu_gemm._OUTER):
        monkeypatch.setitem(gpu_gemm._OUTER, (name, plain), Spy(name, seen))

    def run(channels, dtype=np.float32):
        seen.clear()
        x = tensor(numbers(1, channels, 1, pixels, dtype=dtype), requires_grad=True, device="cuda")
        w = tensor(
            numbers(channels, channels, 1, 1, dtype=dtype), requires_grad=True, device="cuda"
        )
        F.conv2d(x, w).sum().backward()
        return [name[:4] for name in seen]

    wide, pixels = (32, 16) if device.SIMULATED else (2048, 8192)
    assert run(wide) == ["tile"] * 3
    set_tf32(True)
    assert run(wide) == ["tf32" if gpu_gemm.faster_tiles() else "tile"] * 3
    assert run(1)[:2] == ["tile"] * 2  # (the sum of the weights' gradient is long)
    assert run(wide, np.float64) == []
    with use("cuda:tile128"):
        assert run(wide) == ["tile"] * 3


class Spy:
    """In a kernel's place: it notes that it was launched, and computes nothing."""

    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    def __getitem__(self, shape):
        return lambda *arguments: self.seen.append(self.name)


# Of a large layer, from a card's multiply-adds a clock in TF32 and in FP32, and the shares of the
# tiles in the time.
GAINS = {
    (7, 5): 1,
    (8, 0): 512 * 0.2 / (64 * 0.84),
    (8, 6): 1,
    (9, 0): 1024 * 0.2 / (128 * 0.84),
    (99, 0): 1,
}


@pytest.fixture(params=GAINS)
def capability(request, unsettled, h100):
    """Of a card that is patched in, with TF32 wanted."""
    h100(request.param)
    unsettled.setattr(gpu_tf32, "is_wanted", lambda: True)
    return request.param


def test_what_a_card_gains(capability):
    """A product of whole tiles, as many as there are multiprocessors."""
    size = 128 * 12, 128 * 33, 1, 1024, 1
    plain, tf32 = (gpu_gemm.product_clocks(*size, tf32=wanted) for wanted in (False, True))
    assert plain / tf32 == pytest.approx(GAINS[capability], rel=0.05)


def test_slower_tiles_are_not_chosen(capability):
    names = [gpu_gemm.fastest_cut(512, 4 * 90_000, 1, 512, 9, tf32=True).tile]
    names.append(gpu_gemm.outer_cut(512, 9 * 512, 1, 4 * 90_000, tf32=True).tile)
    assert [gpu_gemm.TILES[name].tf32 for name in names] == [GAINS[capability] > 1] * 2


def test_the_environment_reaches_a_fresh_process():
    code = "import tinydilate as td; print(td.get_tf32())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TINYDILATE_TF32": "on"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"


# ---- planted bugs ----------------------------------------------------------------------------


def check_lanes():
    lanes_agree()


def check_warps():
    lanes_agree("two by two warps")


def check_errors():
    errors_are_bounded()


def check_layer():
    convolution("cuda:tf32_64", (1, 17, 1, 9), (17, 17, 1, 1), Window.of(1))


def check_parts():
    map_in_parts()


CHECKS = [check_lanes, check_warps, check_errors, check_layer, check_parts]


@pytest.mark.gpu
@pytest.mark.skipif(not device.SIMULATED, reason="bugs are planted in Python")
@pytest.mark.parametrize("mutant", GPU_TF32_MUTANTS, ids=[m.name for m in GPU_TF32_MUTANTS])
def test_a_planted_bug_is_noticed(mutant):
    check = {check.__name__: check for check in CHECKS}[mutant.killer]
    with planted(mutant), pytest.raises((AssertionError, KernelError)):
        check()


@pytest.mark.gpu
@on_tensor_cores
@pytest.mark.parametrize("check", CHECKS)
def test_without_a_bug_the_checks_pass(check):
    with planted(GPU_TF32_MUTANTS[0], really=False):
        check()
