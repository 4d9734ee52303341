"""Every op against its oracle, its derivative, its adjoint and its twins: a walk over the cases."""

import json
from collections import Counter

import numpy as np
import pytest
from cases import CASES, Call, Case, axes, convolutions, pairs, poolings, twins_of
from guarded_cuda import guarded
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import tinydilate
import tinydilate.functional as F
from tinydilate import Tensor, device, gradcheck, kernel, tensor, use, watching
from tinydilate.autograd import FUNCTIONS
from tinydilate.device import CudaArray, MetaArray
from tinydilate.functional.padding import reflect_border

# Rounding, relative to the largest number of the result (and at least to one).
TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-12}
dtypes = st.sampled_from([np.float32, np.float64])

each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def close(actual, desired, dtype):
    """Equal but for rounding in ``dtype``, nan and inf included."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.shape == desired.shape
    finite = np.abs(desired[np.isfinite(desired)])
    size = max(1.0, float(finite.max(initial=0.0)))
    np.testing.assert_allclose(actual, desired, rtol=0, atol=TOLERANCE[np.dtype(dtype)] * size)


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers, lying differently in memory."""
    if layout == "reversed axes":
        return array.T.copy(order="C").T
    if layout == "every other":
        wide = np.zeros((*array.shape, 2), array.dtype)
        wide[..., 0] = array
        return wide[..., 0]
    if layout == "backwards":
        return array[..., ::-1].copy(order="C")[..., ::-1] if array.ndim else array.copy()
    result = array.copy()
    result.flags.writeable = layout != "read-only"
    return result


layouts = st.sampled_from(["contiguous", "reversed axes", "every other", "backwards", "read-only"])


def run(case: Case, arrays, call: Call, requires_grad=False):
    """(leaves, result) of the public function, on other arrays than the call's own."""
    leaves = [tensor(array, requires_grad) for array in arrays]
    return leaves, case.run(getattr(F, case.function), leaves, call)


def launches_of(case: Case, call: Call, dtype) -> list:
    """Every kernel launch of one step forwards and backwards."""
    seen: list = []
    arrays = [array.astype(dtype) for array in call.arrays]
    with watching(seen.append):
        _, out = run(case, arrays, call, case.differentiable)
        if out.requires_grad:
            out.backward(np.random.default_rng(0).normal(size=out.shape).astype(dtype))
    return seen


# ---- the list itself -------------------------------------------------------------------------


def test_every_public_function_has_a_case():
    named = {case.function for case in CASES}
    assert named == set(F.__all__), "cases.py and functional/__init__.py name different functions"


def test_every_registered_function_is_exported():
    assert set(FUNCTIONS) == set(F.__all__)


def test_every_kernel_has_a_case_and_every_case_its_kernels():
    """Of the pages: autograd's own kernel is tested with the graph, the optimisers' with them."""
    named = {name for case in CASES for name in case.kernels}
    on_pages = {
        name
        for name, entry in kernel.KERNELS.items()
        if entry.__module__.startswith("tinydilate.functional.")
    }
    missing, unknown = on_pages - named, named - on_pages
    assert not missing, f"kernels without a case in tests/cases.py: {sorted(missing)}"
    assert not unknown, f"cases name kernels that do not exist: {sorted(unknown)}"


def test_every_kernel_has_a_cpu_twin_and_a_shape_rule():
    for name, entry in kernel.KERNELS.items():
        assert {"numpy", "cpu", "meta"} <= entry.implementations.keys(), name


@each_case
@given(data=st.data())
def test_each_launched_kernel_is_named(case, data):
    launches = launches_of(case, data.draw(case.calls), np.float64)
    assert {launch.kernel for launch in launches} <= set(case.kernels)


@each_case
def test_each_named_kernel_is_launched(case):
    for name in case.kernels:
        find(
            case.calls,
            lambda call, name=name: any(
                launch.kernel == name for launch in launches_of(case, call, np.float64)
            ),
            settings=settings(max_examples=200, phases=[Phase.generate]),
        )


def test_dilation_is_common_among_the_drawn_convolutions():
    """In at least 40 % of them some axis has several taps with gaps between them."""
    counts = Counter()

    @settings(max_examples=100)
    @given(call=convolutions())
    def draw(call):
        taps = call.arrays[1].shape[2:]
        gaps = pairs(call.options["dilation"])
        counts[any(k > 1 and d > 1 for k, d in zip(taps, gaps, strict=True))] += 1

    draw()
    assert counts[True] >= 0.4 * counts.total()


@given(axis=axes())
def test_windows_are_drawn_to_fit(axis):
    room = axis.size + 2 * axis.padding - (axis.dilation * (axis.kernel - 1) + 1)
    assert axis.size >= 1
    assert room // axis.stride + 1 == axis.output


# ---- values ----------------------------------------------------------------------------------


@each_case
@given(data=st.data(), dtype=dtypes, layout=layouts)
def test_forward_is_the_oracles(case, data, dtype, layout):
    check_forward(case, data.draw(case.calls), dtype, layout)


def check_forward(case: Case, call: Call, dtype=np.float64, layout="contiguous"):
    arrays = [laid_out(array.astype(dtype), layout) for array in call.arrays]
    before = [array.copy() for array in arrays]
    _, out = run(case, arrays, call)
    expected = case.run(case.oracle, [array.astype(np.float64) for array in before], call)
    close(out.numpy(), expected, dtype)
    if case.differentiable:
        assert out.dtype == dtype
    assert out.data.flags.c_contiguous
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy, err_msg="an input was changed")


@each_case
@given(data=st.data())
def test_backward_changes_neither_inputs_nor_result(case, data):
    if not case.differentiable:
        pytest.skip("no gradient")
    call = data.draw(case.calls)
    leaves, out = run(case, [array.copy() for array in call.arrays], call, True)
    result, gradient = out.data.copy(), np.ones(out.shape)
    out.backward(gradient)
    np.testing.assert_array_equal(out.data, result)
    np.testing.assert_array_equal(gradient, 1)
    for leaf, array in zip(leaves, call.arrays, strict=True):
        np.testing.assert_array_equal(leaf.data, array)
        assert leaf.grad.shape == leaf.shape
        assert leaf.grad.dtype == leaf.dtype
        assert not np.shares_memory(leaf.grad.data, leaf.data)
        assert not np.shares_memory(leaf.grad.data, gradient)


@each_case
@given(data=st.data())
def test_gradient_is_the_slope(case, data):
    if not case.differentiable:
        pytest.skip("no gradient")
    check_slope(case, data.draw(case.calls))


def check_slope(case: Case, call: Call):
    def function(*tensors: Tensor) -> Tensor:
        return case.run(getattr(F, case.function), tensors, call)

    gradcheck(function, *call.arrays, directions=1)


@pytest.mark.parametrize(
    ("case", "position"),
    [(case, position) for case in CASES for position in case.linear],
    ids=[f"{case.name}-{position}" for case in CASES for position in case.linear],
)
@given(data=st.data())
def test_backward_is_the_adjoint(case, position, data):
    check_adjoint(case, data.draw(case.calls), position)


def check_adjoint(case: Case, call: Call, position=0):
    """<A x, y> = <x, A' y>, to the last digits, where A is the op as a function of one array."""
    leaves = [tensor(a, requires_grad=n == position) for n, a in enumerate(call.arrays)]
    zeros = [np.zeros_like(a) if n == position else a for n, a in enumerate(call.arrays)]
    out = case.run(getattr(F, case.function), leaves, call)
    constant = run(case, zeros, call)[1]
    y = np.random.default_rng(1).normal(size=out.shape)
    out.backward(y)
    left = np.sum((out.data - constant.data) * y)
    right = np.sum(leaves[position].data * leaves[position].grad.data)
    scale = max(1.0, float(np.abs(out.data * y).sum()))
    assert abs(left - right) <= 1e-12 * scale
    assert all(leaf.grad is None for n, leaf in enumerate(leaves) if n != position)


# ---- twins -----------------------------------------------------------------------------------


@pytest.mark.plain
@each_case
@given(data=st.data(), dtype=dtypes)
def test_twins_agree(case, data, dtype):
    check_twins(case, data.draw(case.calls), dtype)


def check_twins(case: Case, call: Call, dtype=np.float64, way=""):
    """Every implementation of every kernel that the case runs, on the arrays that it ran on.

    Or that ``way`` alone.
    """
    for launch in launches_of(case, call, dtype):
        twins = kernel.KERNELS[launch.kernel].implementations
        expected = flat(twins["numpy"](*copied(launch.arguments)))
        for name, twin in twins.items():
            if name == "meta" or name.startswith("cuda") or way not in ("", name):
                continue
            arguments = copied(launch.arguments)
            result = flat(twin(*arguments))
            for mine, theirs in zip(result, expected, strict=True):
                assert mine.dtype == theirs.dtype, f"{launch.kernel} by {name}"
                close(mine, theirs, dtype)
            for after, before in zip(flat(arguments), flat(launch.arguments), strict=True):
                np.testing.assert_array_equal(after, before, f"{launch.kernel} by {name}")
        shapes = flat(twins["meta"](*as_meta(launch.arguments)))
        assert [(m.shape, m.dtype) for m in shapes] == [(a.shape, a.dtype) for a in expected]


# conv2d-3x3 is there for Winograd's tiles, which the GPU does not use, and its images are large.
ON_CUDA = [
    case
    for case in CASES
    if any("cuda" in twins_of(name) for name in case.kernels) and case.name != "conv2d-3x3"
]


@pytest.mark.gpu
@pytest.mark.parametrize("case", ON_CUDA, ids=[case.name for case in ON_CUDA])
@settings(max_examples=3)
@given(data=st.data(), dtype=dtypes)
def test_cuda_twins_agree(case, data, dtype):
    check_cuda_twins(case, data.draw(case.calls.filter(is_small)), dtype)


def is_small(call: Call) -> bool:
    """Whether the simulator, which takes a millisecond for a few threads, is soon done with it."""
    return sum(array.size for array in call.arrays) <= 300


# What is said of each tile of the engines is said in test_gpu_gemm, test_gpu_winograd and
# test_gpu_tf32. On a GPU, where that takes no time, here as well, but for TF32, which rounds more.
ENGINES = ("cuda:tile", "cuda:winograd", "cuda:tf32")


def check_cuda_twins(case: Case, call: Call, dtype=np.float64, way=""):
    """As `check_twins`, on the GPU or in the simulator, between guards and in memory full of nan.

    Neither the inputs nor what lies before and behind each array may change.
    """
    with use("numpy"):  # which compiles nothing
        launches = launches_of(case, call, dtype)
    for launch in launches:
        twins = kernel.KERNELS[launch.kernel].implementations
        expected = flat(twins["numpy"](*copied(launch.arguments)))
        for name, twin in twins.items():
            if not name.startswith("cuda") or way not in ("", name):
                continue
            if device.SIMULATED and not way and name.startswith(ENGINES):
                continue
            if name.startswith("cuda:tf32"):
                continue
            if name.startswith(ENGINES) and dtype == np.float64:
                continue  # the tiles are float32: this would be the readable way once more
            with guarded():
                arguments = on(launch.arguments, "cuda")
                result = twin(*arguments)
                results, after = flat(on(result, "cpu")), flat(on(arguments, "cpu"))
            assert len(results) == len(expected)
            for mine, theirs in zip(results, expected, strict=True):
                assert mine.dtype == theirs.dtype, f"{launch.kernel} by {name}"
                close(mine, theirs, dtype)
            for array, before in zip(after, flat(launch.arguments), strict=True):
                np.testing.assert_array_equal(array, before, f"{launch.kernel} by {name}")


def on(value, place):
    """Arguments or results with their arrays moved to a device."""
    if isinstance(value, np.ndarray | CudaArray):
        return device.move(value, place)
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(on(part, place) for part in value)
    return value


def flat(value) -> list:
    """The arrays among arguments or results, lists and tuples opened."""
    if isinstance(value, np.ndarray | np.generic | MetaArray):
        return [value]
    if isinstance(value, list | tuple):
        return [array for part in value for array in flat(part)]
    return []


def copied(value):
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(copied(part) for part in value)
    return value


def as_meta(value):
    if isinstance(value, np.ndarray):
        return MetaArray(value.shape, value.dtype)
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(as_meta(part) for part in value)
    return value


FORCED = [
    (case, variant)
    for case in CASES
    for variant in sorted({name for k in case.kernels for name in twins_of(k)} - {"cpu", "meta"})
    if not variant.startswith("cuda")
]


@pytest.mark.parametrize(
    ("case", "variant"), FORCED, ids=[f"{case.name}-{variant}" for case, variant in FORCED]
)
@settings(max_examples=5)
@given(data=st.data(), dtype=dtypes, layout=layouts)
def test_a_forced_variant_runs_and_agrees(case, variant, data, dtype, layout):
    """With the reference, forwards and backwards; the reference itself with what runs unforced."""
    having = {n for n in case.kernels if variant in kernel.KERNELS[n].implementations}
    call = data.draw(case.calls)
    results = []
    for forced in ("cpu" if variant == "numpy" else "numpy", variant):
        launches: list = []
        arrays = [laid_out(array.astype(dtype), layout) for array in call.arrays]
        with use(forced), watching(launches.append):
            leaves, out = run(case, arrays, call, case.differentiable)
            if out.requires_grad:
                out.backward(laid_out(np.ones(out.shape, dtype), layout))
        results.append([out.data, *(leaf.grad.data for leaf in leaves if leaf.grad is not None)])
    for launch in launches:
        assert launch.implementation == (variant if launch.kernel in having else "cpu")
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs, dtype)


def test_a_convolution_can_be_forced_to_every_way_of_computing_it():
    ways = {"cpu:direct", "cpu:winograd2", "cpu:winograd4", "cpu:loops", "numpy"}
    for name in ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight"):
        assert ways <= kernel.KERNELS[name].implementations.keys()
        assert ways <= {variant for case, variant in FORCED if name in case.kernels}


# ---- shapes alone ----------------------------------------------------------------------------


@each_case
@given(data=st.data())
def test_meta_tensors_have_the_real_shapes(case, data):
    call = data.draw(case.calls)
    _, real = run(case, call.arrays, call)
    leaves = [tensor(array, case.differentiable, device="meta") for array in call.arrays]
    out = case.run(getattr(F, case.function), leaves, call)
    assert out.device == "meta"
    assert (out.shape, out.dtype) == (real.shape, real.dtype)
    if case.differentiable:
        out.backward(tensor(MetaArray(out.shape, out.dtype), device="meta"))
        assert [leaf.grad.shape for leaf in leaves] == [leaf.shape for leaf in leaves]


# ---- batches ---------------------------------------------------------------------------------

batched = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.batched],
    ids=[case.name for case in CASES if case.batched],
)


@batched
@given(data=st.data())
def test_without_a_batch_axis(case, data):
    call = data.draw(case.calls.filter(lambda call: len(call.arrays[0])))
    x, *others = call.arrays
    whole = run(case, (x[:1], *others), call, True)
    single = run(case, (x[0], *others), call, True)
    close(single[1].data, whole[1].data[0], np.float64)
    whole[1].backward(np.ones(whole[1].shape))
    single[1].backward(np.ones(single[1].shape))
    close(single[0][0].grad.data, whole[0][0].grad.data[0], np.float64)
    for mine, theirs in zip(single[0][1:], whole[0][1:], strict=True):
        close(mine.grad.data, theirs.grad.data, np.float64)


@batched
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=3)
@given(data=st.data())
def test_an_empty_batch(case, dtype, data):
    call = data.draw(case.calls)
    x, *others = (array.astype(dtype) for array in call.arrays)
    usual = run(case, (np.ones((2, *x.shape[1:]), dtype), *others), call)[1]
    leaves, out = run(case, (x[:0], *others), call, True)
    assert out.shape == (0, *usual.shape[1:])
    out.backward(np.ones(out.shape, dtype))
    assert leaves[0].grad.shape == (0, *x.shape[1:])
    for leaf in leaves[1:]:  # nothing was seen, so nothing is learnt
        np.testing.assert_array_equal(leaf.grad.data, np.zeros(leaf.shape))


@given(call=convolutions())
def test_batch_members_do_not_see_each_other(call):
    x, *others = call.arrays
    out = F.conv2d(x, *others, **call.options).numpy()
    for n in range(len(x)):
        close(F.conv2d(x[n], *others, **call.options).numpy(), out[n], np.float64)


# ---- what the cases do not reach -------------------------------------------------------------


@given(
    st.lists(st.integers(0, 9), min_size=4, max_size=4),
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)),
)
def test_a_border_wider_than_the_image_is_reflected_again(borders, shape):
    """As NumPy does, which reflects to and fro until the border is full."""
    top, bottom, left, right = borders
    x = np.random.default_rng(0).normal(size=shape)
    out = reflect_border(x, top, bottom, left, right).numpy()
    np.testing.assert_array_equal(out, np.pad(x, ((0, 0), (top, bottom), (left, right)), "reflect"))
    gradcheck(lambda x: reflect_border(x, top, bottom, left, right), x, directions=1)


@given(data=st.data(), dtype=dtypes)
def test_positions_of_maxima_point_at_them(data, dtype):
    call = data.draw(poolings("max"))
    x = call.arrays[0].astype(dtype)
    out, where = F.max_pool2d(x, **call.options, return_indices=True)
    assert where.dtype == np.int64
    assert out.shape == where.shape
    for n, c in np.ndindex(*x.shape[:2]):
        np.testing.assert_array_equal(x[n, c].ravel()[where.data[n, c]], out.data[n, c])


def test_the_first_of_equal_maxima_wins():
    x = np.ones((1, 1, 4, 4))
    _, where = F.max_pool2d(x, 3, 1, return_indices=True)
    assert where.data.ravel().tolist() == [0, 1, 4, 5]


def test_dropout_keeps_its_share_and_the_mean():
    x = np.ones(100_000)
    for p in (0.1, 0.5, 0.9):
        out = F.dropout(x, p).numpy()
        assert set(np.unique(out)) == {0.0, 1 / (1 - p)}
        assert abs(np.mean(out == 0) - p) < 0.006, "five standard deviations at p = 1/2"


def test_dropout_goes_on_from_a_state():
    x = np.ones((8, 8))
    tinydilate.manual_seed(7)
    first, state = F.dropout(x).numpy(), tinydilate.get_rng_state()
    second = F.dropout(x).numpy()
    assert (first != second).any()
    tinydilate.set_rng_state(json.loads(json.dumps(state)))
    np.testing.assert_array_equal(F.dropout(x).numpy(), second)
    tinydilate.manual_seed(7)
    np.testing.assert_array_equal(F.dropout(x).numpy(), first)
    tinydilate.manual_seed(8)
    assert (F.dropout(x).numpy() != first).any()


def test_a_batch_without_a_pixel_that_counts_has_no_mean():
    x = tensor(np.zeros((2, 3)), requires_grad=True)
    labels = np.full(2, 255)
    assert np.isnan(F.cross_entropy(x, labels, ignore_index=255).item())
    assert F.cross_entropy(x, labels, ignore_index=255, reduction="sum").item() == 0


def test_cross_entropy_of_extreme_scores_is_finite():
    x = tensor(np.array([[1e4, -1e4, 0.0]]), requires_grad=True)
    loss = F.cross_entropy(x, np.array([1]))
    loss.backward()
    assert loss.item() == 2e4
    np.testing.assert_allclose(x.grad.numpy(), [[1.0, -1.0, 0.0]])


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 6e-5), (np.float64, 1e-12)])
def test_a_sum_of_many_numbers_keeps_its_digits(dtype, error):
    """At most 1024 numbers meet in float32: 1024 roundings, where a million cost 1 %."""
    x = np.full(1_000_000, 0.1, dtype)
    desired = np.sum(x, dtype=np.float64)
    assert abs(np.cumsum(x)[-1] - desired) > error * desired or dtype == np.float64
    np.testing.assert_allclose(F.sum(x).item(), desired, rtol=error)
