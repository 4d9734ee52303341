"""The tests of the tests: every planted bug must be noticed by the check that is there for it."""

import importlib
import itertools
from functools import cache

import numpy as np
import pytest
import test_ops
import test_simd
from cases import CASES
from hypothesis import Phase, given, settings
from mutants import (
    GPU_MUTANTS,
    GPU_PAGE_MUTANTS,
    INSTRUCTION_MUTANTS,
    MUTANTS,
    planted,
    planted_in_instructions,
)

import tinydilate.functional as F
from tinydilate import buffers, gemm, get_num_threads, kernel, set_num_threads, tensor, winograd
from tinydilate.device import SIMULATED
from tinydilate.errors import KernelError
from tinydilate.functional.convolution import conv2d_forward, conv2d_grad_input, conv2d_grad_weight
from tinydilate.simd import host_tile
from tinydilate.window import Window
from tinydilate.winograd import winograd_outer, winograd_product

EXAMPLES = 60
TILE = host_tile()
BY_NAME = {case.name: case for case in CASES}

# Bugs are planted in what is loaded, so that comes first: all tests that must notice one.
for mutant in MUTANTS:
    if mutant.killer.startswith("test_") and not mutant.killer.startswith("test_mutants "):
        importlib.import_module(mutant.killer.split(" ")[0])


def check_products(count, channels, filters, size, window):
    """Every way to compute a layer, beside the references, in memory full of nan."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(count, channels, *size)), rng.normal(size=(filters, channels, 3, 3))
    w, b = w[..., : window.kernel[0], : window.kernel[1]].copy(), rng.normal(size=filters)
    output = window.output_size(size)
    grad = rng.normal(size=(count, filters, *output))
    rule = gemm.forward_gather(window, output)
    forward = conv2d_forward.implementations["numpy"](x, w, b, window, 1, True)
    inward = conv2d_grad_input.implementations["numpy"](grad, w, size, window)
    outward = conv2d_grad_weight.implementations["numpy"](x, grad, window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "empty", lambda shape, dtype: np.full(shape, np.nan, dtype))
        results = [
            (gemm.gathered_product(x, w, b, rule, 1, True), forward),
            (gemm.folded_product(grad, w, window, size), inward),
            (gemm.gathered_outer(x, grad, rule), outward),
        ]
        if winograd.fits(window):
            back = winograd_product(grad, w, None, window, size, side=2, adjoint=True)
            results += [
                (winograd_product(x, w, b, window, output, 1, True, side=2), forward),
                (back, inward),
                (winograd_outer(x, grad, window, side=2), outward),
            ]
    for result, desired in results:
        np.testing.assert_allclose(result, desired, atol=1e-9)


def blocks_of_steps():
    """More channels, and more filters, than a block of steps holds."""
    check_products(1, gemm.STEPS + 3, 2, (1, 2), Window.of(1))
    check_products(1, 2, gemm.STEPS + 3, (1, 2), Window.of(1))


def slabs_of_weights():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm, "PACKED_BYTES", 1)
        check_products(1, 1, 2 * TILE.rows + 1, (1, 3), Window.of(1))


def parts_for_threads():
    """Three threads share the filters of a few pixels, or the pixels of a few channels."""
    before = get_num_threads()
    set_num_threads(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm, "_WORTH_A_THREAD", 0)
        try:
            check_products(1, 1, 3 * TILE.rows, (1, 3), Window.of(1))
            check_products(3, 1, 1, (4, 5), Window.of(3, 1, 1))
        finally:
            set_num_threads(before)


def stripes_of_filters():
    columns = TILE.columns(np.float64)
    check_products(1, 1, columns + 3, (3, 3), Window.of(3, 1, 0))


def blocks_of_tiles():
    """A few tiles of a row at a time, with and without phases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "TILES", 3)
        for dilation in (1, 2):
            check_products(1, 1, 1, (3, 21), Window.of(3, 1, dilation, dilation))


def bands_of_tiles():
    """A few rows of tiles at a time, and of these two tiles."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SUMS_BYTES", 0), ("BAND_BYTES", 1), ("TILE_STEPS", 2)):
            patch.setattr(winograd, name, value)
        check_products(1, 1, 1, (5, 7), Window.of(3, 1, 1))


def nan_stays_nan():
    for count in (1, 20_000):  # NumPy's loop, and ours
        assert np.isnan(F.relu(np.full(count, np.nan)).numpy()).all()


def first_of_equals():
    assert F.argmax(np.array([1.0, 2.0, 2.0])).item() == 1


def ignored_pixels_do_not_count():
    scores = np.zeros((3, 2))  # each pixel's loss is log 2
    loss = F.cross_entropy(scores, np.array([1, 255, 0]), ignore_index=255)
    np.testing.assert_allclose(loss.item(), np.log(2))


def gradients_share_no_memory():
    a, b = tensor(np.ones(2), requires_grad=True), tensor(np.ones(2), requires_grad=True)
    (a + b).backward(np.ones(2))
    assert not np.shares_memory(a.grad.data, b.grad.data)


def killer(mutant):
    """The check that must fail, as a function without arguments."""
    first, second = mutant.killer.split(" ")
    if first == "test_mutants":
        return globals()[second]
    if first.startswith("test_"):
        return getattr(importlib.import_module(first), second)
    case = BY_NAME[second]
    check = {
        "forward": test_ops.check_forward,
        "slope": test_ops.check_slope,
        "adjoint": test_ops.check_adjoint,
        "twins": test_ops.check_twins,
    }.get(first, lambda case, call: test_ops.check_twins(case, call, way=first))

    @settings(max_examples=EXAMPLES, phases=[Phase.generate])  # one that fails is enough
    @given(call=case.calls)
    def walk(call):
        check(case, call)

    return walk


# A bug shows as a wrong number or as an error of the arithmetic; any other exception would mean
# that the mutant is not a program.
NOTICED = (AssertionError, ValueError, IndexError, RuntimeError, KernelError)


def fails(check) -> bool:
    """Whether a check notices; several failures at once must be such, each of them."""
    try:
        check()
    except BaseExceptionGroup as several:
        return several.split(NOTICED)[1] is None
    except NOTICED:
        return True
    return False


@cache
def assert_sound(check: str, file: str) -> None:
    """What must notice the bugs of a file notices none in plain Python; once for all of them."""
    mutant = next(mutant for mutant in MUTANTS if (mutant.killer, mutant.file) == (check, file))
    with planted(mutant, really=False):
        killer(mutant)()


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.filterwarnings("ignore:divide by zero encountered")
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_planted_bug_is_noticed(mutant):
    assert_sound(mutant.killer, mutant.file)
    with planted(mutant):
        assert fails(killer(mutant)), f"the mutant {mutant.name!r} survives {mutant.killer!r}"


@pytest.mark.parametrize(
    "mutant", INSTRUCTION_MUTANTS, ids=[mutant.name for mutant in INSTRUCTION_MUTANTS]
)
def test_a_bug_planted_in_the_instructions_is_noticed(mutant):
    check = getattr(test_simd, mutant.killer)
    with planted_in_instructions(mutant, test_simd):
        assert fails(check), f"the mutant {mutant.name!r} survives {mutant.killer!r}"


def killer_on_the_gpu(mutant, examples=EXAMPLES):
    """`killer` of a bug in the body of a GPU kernel."""
    if mutant.killer.startswith("test_"):
        return lambda: each_of(getattr(importlib.import_module("test_on_the_gpu"), mutant.killer))
    case = BY_NAME[mutant.killer]

    @settings(max_examples=examples, phases=[Phase.generate])
    @given(call=case.calls)
    def walk(call):
        test_ops.check_cuda_twins(case, call)

    return walk


def each_of(test):
    """Call a test with each of the values that it is parametrised by."""
    names = [mark.args[0] for mark in getattr(test, "pytestmark", ())]
    values = [mark.args[1] for mark in getattr(test, "pytestmark", ())]
    for chosen in itertools.product(*values):
        test(**dict(zip(names, chosen, strict=True)))


@pytest.mark.gpu
@pytest.mark.skipif(not SIMULATED, reason="a bug in the bounds would stop a real GPU for good")
@pytest.mark.parametrize(
    "mutant", GPU_PAGE_MUTANTS, ids=[mutant.name for mutant in GPU_PAGE_MUTANTS]
)
def test_a_bug_planted_in_a_gpu_kernel_is_noticed(mutant):
    with planted(mutant, really=False):
        killer_on_the_gpu(mutant, examples=3)()
    with planted(mutant):
        assert fails(killer_on_the_gpu(mutant)), (
            f"the mutant {mutant.name!r} survives {mutant.killer!r}"
        )


def test_planting_leaves_no_trace():
    mutant = MUTANTS[0]
    assert Window.of(3).extent == (3, 3)
    with planted(mutant):
        assert Window.of(3).extent == (2, 3)
    assert Window.of(3).extent == (3, 3)
    assert kernel.tap(1, 1, 1, 0, 2) == 3


def test_no_two_mutants_bear_one_name():
    every = MUTANTS + INSTRUCTION_MUTANTS + GPU_MUTANTS + GPU_PAGE_MUTANTS
    names = [mutant.name for mutant in every]
    assert len(set(names)) == len(names) >= 25
