"""Loops that take a short cut: each way through them, beside the plain definition."""

import gc
import warnings

import numpy as np
import pytest

import tinydilate
import tinydilate.functional as F
from tinydilate import buffers
from tinydilate.compiling import _without_collecting, jit
from tinydilate.functional.padding import (
    IndexMaps,
    _longest_run,
    index_map,
    pad_backward,
    pad_forward,
)
from tinydilate.functional.pooling import avg_pool2d_forward
from tinydilate.functional.softmax_loss import _copy_labels, exp_down_rule, exp_rule, log_rule
from tinydilate.kernel import use
from tinydilate.threads import WORTH_A_THREAD, share
from tinydilate.window import Window


@jit
def _exponentials(x, out):
    for n in range(len(x)):
        out[n] = exp_rule(x[n])


@jit
def _powers_below_1(x, out):
    for n in range(len(x)):
        out[n] = exp_down_rule(x[n])


@jit
def _logarithms(x, out):
    for n in range(len(x)):
        out[n] = log_rule(x[n])


def places_off(loop, x, exact):
    """Largest error of a loop's results, in units in the last place."""
    out = np.empty_like(x)
    loop(x, out)
    units = np.spacing(np.maximum(np.abs(exact), np.finfo(x.dtype).tiny).astype(x.dtype))
    return np.max(np.abs(out - exact) / units)


def test_the_exponential_is_hardly_more_than_one_place_off():
    x = np.linspace(-103, 88.7, 1_000_001).astype(np.float32)
    assert places_off(_exponentials, x, np.exp(x.astype(np.float64))) <= 1.05


def test_the_exponential_from_0_down_is_as_near_and_ends_in_0():
    x = np.linspace(-87, 0, 1_000_001).astype(np.float32)
    assert places_off(_powers_below_1, x, np.exp(x.astype(np.float64))) <= 1.05
    x = np.array([0, -0.0, -87.0, -87.001, -100, -1e30, -np.inf, np.nan], np.float32)
    out = np.empty_like(x)
    _powers_below_1(x, out)
    assert out[2] > np.finfo(np.float32).tiny
    np.testing.assert_array_equal(out[[0, 1, 3, 4, 5, 6, 7]], [1, 1, 0, 0, 0, 0, np.nan])


def test_nan_with_anything_in_its_bits_stays_nan():
    bits = np.array([0x7FC00000, 0x7FC00001, 0x7F800001, 0xFFC00123, 0xFFFFFFFF], np.uint32)
    out = np.zeros(len(bits), np.float32)
    for rule in (_exponentials, _powers_below_1):
        rule(bits.view(np.float32), out)
        assert np.isnan(out).all()
    scores = np.zeros((len(bits), 3, 1), np.float32)
    scores[:, 1, 0] = bits.view(np.float32)
    assert np.isnan(F.softmax(scores, 1).data).all()


def test_the_logarithm_is_two_places_off_at_most():
    near_1 = 1 + np.logspace(-7, 0, 100_001)
    x = np.concatenate([near_1, 1 / near_1, np.logspace(-37, 38, 1_000_001)]).astype(np.float32)
    assert places_off(_logarithms, x, np.log(x.astype(np.float64))) <= 2


def test_all_rules_call_the_library_in_float64_and_keep_nan():
    x = np.array([0.5, 1.0, 7.0])
    for loop, rule in (
        (_exponentials, np.exp),
        (_powers_below_1, np.exp),
        (_logarithms, np.log),
    ):
        out, odd = np.empty(3), np.full(1, np.nan, np.float32)
        loop(x, out)
        np.testing.assert_array_equal(out, rule(x))
        loop(odd, odd)
        assert np.isnan(odd[0])


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 3, 1), marks=pytest.mark.plain),
        pytest.param((2, 5, 17), marks=pytest.mark.plain),
        (1, 2, 2049),
        (3, 4, 4111),
    ],
)
def test_softmaxes_and_losses_of_blocks_that_do_not_come_out_even(shape):
    rng = np.random.default_rng(0)
    x, grad = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    labels = rng.integers(-1, shape[1], (shape[0], shape[2]))
    labels[0, 0] = 0
    weight = rng.random(shape[1]).astype(np.float32)
    functions = (
        lambda x: F.softmax(x, 1) * grad,
        lambda x: F.log_softmax(x, 1) * grad,
        lambda x: F.cross_entropy(x, labels, weight, ignore_index=-1, reduction="none"),
        lambda x: F.cross_entropy(x, labels, weight, ignore_index=-1, label_smoothing=0.1),
    )
    for function in functions:
        results = []
        for way in ("numpy", "cpu"):
            with use(way):
                leaf = tinydilate.tensor(x, requires_grad=True)
                out = function(leaf)
                out.sum().backward()
                results.append((out.data, leaf.grad.data))
        for expected, got in zip(*results, strict=True):
            np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


def test_labels_of_any_whole_numbers_and_layout_are_copied():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    x = tinydilate.tensor(x, requires_grad=True)
    labels = np.arange(40).reshape(2, 4, 5) % 3
    expected = F.cross_entropy(x, labels).item()
    for dtype in (np.uint8, np.int32, np.uint64, ">i8"):
        assert F.cross_entropy(x, labels.astype(dtype)).item() == expected
    frozen = labels.copy()
    frozen.flags.writeable = False
    before = len(_copy_labels.compiled.signatures)
    assert F.cross_entropy(x, frozen).item() == expected
    assert len(_copy_labels.compiled.signatures) == before  # nothing compiled for it
    strided = np.repeat(labels, 2, axis=2)[:, :, ::2]
    loss = F.cross_entropy(x, strided)
    strided[:] = 99  # no class: the derivative must not look for it
    loss.backward()
    assert loss.item() == expected
    assert np.isfinite(x.grad.data).all()


def test_losses_that_are_kept_keep_nothing_else():
    x = np.zeros((1, 4, 256, 256), np.float32)
    buffers.empty_cache()
    before = buffers.statistics().in_use
    losses = F.cross_entropy(x, np.zeros((1, 256, 256), int), reduction="none")
    assert buffers.statistics().in_use - before == losses.data.nbytes


MAPS = {
    "zeros": index_map(5, 2, 1, "constant"),
    "reflected": index_map(5, 3, 4, "reflect"),
    "reflected to and fro": index_map(3, 7, 7, "reflect"),
    "cropped": index_map(5, -1, -2, "constant"),
    "nothing seen": np.full(4, -1),
    "nothing at all": np.zeros(0, np.int64),
    "enlarged": np.repeat(np.arange(5), 3),
    "enlarged to twice the size": np.repeat(np.arange(5), 2),
    "enlarged, but one": np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, -1]),
    "two rows in turns": np.array([0, 1, 0, 1, 1, -1, -1, 1]),
    "backwards": np.arange(5)[::-1].copy(),
}


@pytest.mark.plain
@pytest.mark.parametrize("columns", MAPS)
@pytest.mark.parametrize("rows", MAPS)
def test_every_kind_of_map_is_read_and_written_back(rows, columns):
    maps = IndexMaps(MAPS[rows], MAPS[columns])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 5)).astype(np.float32)
    grad = rng.normal(size=(2, len(maps.rows), len(maps.columns))).astype(np.float32)
    reference = pad_forward.implementations["numpy"](x, maps, 0.5)
    np.testing.assert_array_equal(pad_forward(x, maps, 0.5), reference)
    reference = pad_backward.implementations["numpy"](grad, maps, (5, 5))
    np.testing.assert_allclose(pad_backward(grad, maps, (5, 5)), reference, rtol=1e-5, atol=1e-5)


def test_an_image_of_twice_the_size_sends_back_both_neighbours():
    x = tinydilate.tensor(np.zeros((1, 1, 1, 2), np.float32), requires_grad=True)
    F.interpolate(x, size=(1, 4)).backward(np.float32([[[[1, 2, 4, 8]]]]))
    np.testing.assert_array_equal(x.grad.data, [[[[3, 12]]]])


@pytest.mark.plain
def test_the_longest_run_is_found():
    for numbers, run in (
        ([], (0, 0)),
        ([-1, -1], (0, 0)),
        ([2, 1, 0], (0, 1)),
        ([-1, 0, 1, 2, -1], (1, 4)),
        ([2, 1, 0, 1, 2, 3, 2], (2, 6)),
        ([0, 1, 5, 6, 7], (2, 5)),
    ):
        assert _longest_run(np.array(numbers, np.int64)) == run


@pytest.mark.plain
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (1, 5000), (3, 1023), (2, 2049)])
def test_sums_of_rows_and_of_columns(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for dim in (0, 1, (0, 1)):
        np.testing.assert_allclose(F.sum(x, dim).data, x.sum(dim), rtol=1e-5, atol=1e-4)


@pytest.mark.plain
def test_many_numbers_go_through_loops_of_our_own():
    """Few go through NumPy's, which are called sooner."""
    a, b = np.random.default_rng(0).normal(size=(2, WORTH_A_THREAD + 5)).astype(np.float32)
    a[:2] = np.nan, -0.0
    np.testing.assert_array_equal(F.relu(a).data, np.maximum(a, 0))
    np.testing.assert_array_equal(F.neg(a).data, -a)
    np.testing.assert_array_equal(F.div(a, b).data, a / b)


@pytest.mark.plain
def test_nan_is_the_largest_and_the_first_one_is_found():
    rows = np.array([[1, np.nan, 9, np.nan], [3, 3, 1, 2]], np.float32)
    assert F.argmax(rows, 1).data.tolist() == [1, 0]


@pytest.mark.plain
def test_windows_that_see_no_row_have_the_mean_0():
    """No public function lets that much padding through; the kernel bears it."""
    x, window = np.ones((1, 1, 2, 3), np.float32), Window.of(2, 1, padding=(3, 1))
    twins = avg_pool2d_forward.implementations
    result = twins["cpu"](x, window)
    np.testing.assert_array_equal(result, twins["numpy"](x, window))
    assert not result[0, 0, :2].any()


@pytest.mark.plain
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [(2, 2, 0), (2, 1, 1), (3, 2, 1), (3, 1, 1), ((1, 5), (2, 3), (0, 2)), (3, 2, 1, 3), (2, 9, 0)],
)
def test_maxima_among_infinities_and_nan_stand_where_the_definition_has_them(options, dtype):
    rng = np.random.default_rng(0)
    x = rng.choice([-np.inf, -1, 0, 1, np.inf, np.nan], (2, 2, 9, 40), p=[0.7] + [0.06] * 5)
    x[0, 0] = -np.inf  # nothing beats the padding here
    x = x.astype(dtype)
    with use("numpy"):
        expected, places = F.max_pool2d(x, *options, return_indices=True)
    for way in ("cpu", "cpu:loops"):
        with use(way):
            got, where = F.max_pool2d(x, *options, return_indices=True)
        np.testing.assert_array_equal(got.data, expected.data)
        np.testing.assert_array_equal(where.data, places.data)


@pytest.mark.plain
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("width", [5, 7, 64, 65])
@pytest.mark.parametrize("options", [(2, 2), (3, 2, 1), (3, 1, 1), (4, 3, 2), (1, 2), (5, 7, 2)])
def test_means_and_their_gradients_at_the_ends_of_vectors(options, width, ceil_mode):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 9, width)).astype(np.float32)
    results = []
    for way in ("numpy", "cpu"):
        with use(way):
            leaf = tinydilate.tensor(x, requires_grad=True)
            out = F.avg_pool2d(leaf, *options, ceil_mode=ceil_mode, count_include_pad=False)
            out.backward(np.cos(np.arange(out.size, dtype=np.float32)).reshape(out.shape))
            results.append((out.data, leaf.grad.data))
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@jit
def _with_a_default(x, k=2):
    return x * k


@jit
def _of_a_type(typing):
    return typing + 1


@jit
def _calls_rules(start, stop, x, out):
    for n in range(start, stop):
        out[n] = _with_a_default(x[n]) + _with_a_default(x[n], 3) + _of_a_type(x[n])


def test_rules_may_have_defaults_and_any_names():
    x, out = np.arange(5.0), np.empty(5)
    share(_calls_rules, 5, x, out)
    np.testing.assert_array_equal(out, 6 * x + 1)


def test_the_garbage_collector_is_as_it_was_after_compiling():
    before = gc.isenabled()
    try:
        for on in (True, False):
            (gc.enable if on else gc.disable)()
            with _without_collecting():
                with _without_collecting():
                    assert not gc.isenabled()
                assert not gc.isenabled()
            assert gc.isenabled() is on
    finally:
        (gc.enable if before else gc.disable)()


def test_small_sums_of_what_is_too_large_are_answered_without_a_warning():
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        assert np.isnan(F.sum(np.array([np.inf, -np.inf], np.float32)).item())
        assert F.sum(np.full(3, 3e38, np.float32)).item() == np.inf
