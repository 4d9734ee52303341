"""On the GPU or in Numba's simulator: what the cases of test_ops do not draw.

Edges of the pages, the optimisers, and whole steps of training, beside the processor.
"""

import json

import numpy as np
import pytest
from guarded_cuda import guarded
from hypothesis import given
from hypothesis import strategies as st
from test_optim import MAKERS

import tinydilate.functional as F
from tinydilate import device, launching, manual_seed, nn, optim, tensor, use
from tinydilate.autograd import Tensor
from tinydilate.config import Config
from tinydilate.data.sets import Data, Scenes
from tinydilate.errors import ShapeError
from tinydilate.functional import arithmetic, pooling, softmax_loss
from tinydilate.functional.padding import IndexMaps, showing
from tinydilate.functional.resizing import Axis, neighbours, shares
from tinydilate.models import FrontEndWithContext
from tinydilate.predict import DemoRecipe, label_maps, load_network
from tinydilate.train import train
from tinydilate.window import Window

pytestmark = pytest.mark.gpu


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that the test launches."""
    names = []
    plain = launching._Launcher.__call__

    def launch(launcher, *arguments):
        names.append(launcher.kernel.__name__)
        plain(launcher, *arguments)

    monkeypatch.setattr(launching._Launcher, "__call__", launch)
    return names


def on_both(function, *arrays, **options):
    """Results and gradients: the references' on the processor, and the kernels' between guards."""
    found = []
    for place in ("cpu", "cuda"):
        with use("numpy"), guarded():
            leaves = [tensor(array.copy(), True, device=place) for array in arrays]
            out = function(*leaves, **options)
            out.backward(np.linspace(-1, 1, out.size, dtype=out.dtype).reshape(out.shape))
            assert out.device == place
            found.append([out.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])
    return found


def check(function, *arrays, **options):
    here, there = on_both(function, *arrays, **options)
    for mine, theirs in zip(there, here, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        tolerance = 1e-5 if mine.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    return there


def assert_same(mine, theirs, tolerance):
    """Two arrays on the GPU."""
    mine, theirs = (device.move(array, "cpu") for array in (mine, theirs))
    np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


def image(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


# ---- pooling ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 2, "ceil_mode": True},
        {"kernel_size": 3, "stride": 1, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)},
    ],
    ids=str,
)
def test_maxima_of_odd_images(options):
    with_ties = np.round(image(1, 2, 5, 7))  # the first of equals wins, and gets the gradient
    check(F.max_pool2d, with_ties, **options)
    indices = [
        F.max_pool2d(tensor(with_ties, device=place), return_indices=True, **options)[1].numpy()
        for place in ("cpu", "cuda")
    ]
    np.testing.assert_array_equal(*indices)


@pytest.mark.parametrize("window", [2, 3])
def test_nan_is_a_maximum_on_the_gpu(window):
    x = image(1, 1, 6, 6)
    x[0, 0, 1, 1] = x[0, 0, 4, 0] = np.nan
    out, _ = check(F.max_pool2d, x, kernel_size=window)
    assert np.isnan(out).sum() == 2


def test_a_window_that_sees_only_padding_gives_no_gradient():
    """With a dilation, the two taps of a window may both miss the one pixel."""
    options = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 2}
    out, grad = check(F.max_pool2d, image(1, 1, 1, 2), **options)
    assert np.isneginf(out).any()
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 1, "padding": 1},
        {"kernel_size": 2},
        {"kernel_size": 2, "divisor_override": 3},
        {"kernel_size": 2, "ceil_mode": True},
        {"kernel_size": 2, "padding": 1},
        {"kernel_size": 3, "padding": 1, "ceil_mode": True, "count_include_pad": False},
        {"kernel_size": (2, 1), "stride": (3, 4), "padding": (1, 0)},  # not all pixels are seen
        {"kernel_size": (1, 3), "stride": (5, 2), "padding": (0, 1)},  # and some are seen twice
        {"kernel_size": (5, 7)},
        {"kernel_size": (3, 2), "stride": 2**31 - 1, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        {"kernel_size": (3, 2), "stride": (2, 1), "divisor_override": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_means_of_odd_images(options, dtype):
    check(F.avg_pool2d, image(2, 3, 5, 7, dtype=dtype), **options)


@pytest.mark.parametrize("size", [(6, 8), (7, 7)], ids=str)
def test_both_ways_to_a_mean_of_four_agree(size):
    x, window = device.move(image(2, 3, *size), "cuda"), Window((2, 2), (2, 2))
    out = pooling.avg_pool2d_forward_cuda(x, window)
    assert_same(out, pooling.avg_pool2d_forward_windows(x, window), 1e-6)
    back = pooling.avg_pool2d_backward_cuda(out, size, window)
    assert_same(back, pooling.avg_pool2d_backward_windows(out, size, window), 0)


def test_batches_without_images():
    x = image(0, 2, 4, 4)
    for function in (
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.softmax(x, 1),
        lambda x: F.log_softmax(x, 1),
        lambda x: F.cross_entropy(x, np.zeros((0, 4, 4), np.int64), reduction="sum"),
        lambda x: F.dropout(x, 0.5),
        lambda x: F.pad(x, (1, 2, 0, 1), "replicate"),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.conv2d(x, ones(3, 2, 3, 3, device=x.device)),
        lambda x: F.conv2d(x, ones(3, 2, 1, 1, device=x.device)),
        lambda x: F.conv_transpose2d(x, ones(2, 3, 4, 4, device=x.device), stride=2),
    ):
        check(function, x)


def ones(*shape, device):
    return tensor(np.ones(shape, np.float32), device=device)


# ---- the loss --------------------------------------------------------------------------------

LABELS = np.array([[[0, 2, 255], [1, 1, 2]]])  # (1, 2, 3)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_every_option_of_the_loss(reduction, smoothing):
    options = {"ignore_index": 255, "reduction": reduction, "label_smoothing": smoothing}
    weight = np.array([0.5, 2.0, 0.0])
    for x in (image(1, 3, 2, 3, dtype=np.float64), 1e4 + image(1, 3, 2, 3, dtype=np.float64)):
        check(F.cross_entropy, x, target=LABELS, **options)
        for place in ("cpu", "cuda"):
            check(F.cross_entropy, x, target=LABELS, weight=tensor(weight, device=place), **options)


def test_nothing_but_ignored_pixels():
    ignored = np.full((1, 2, 3), 255)
    x = image(1, 3, 2, 3)
    loss, grad = check(F.cross_entropy, x, target=ignored, ignore_index=255, reduction="sum")
    assert loss == 0
    assert not grad.any()
    loss, _ = check(F.cross_entropy, x, target=ignored, ignore_index=255)
    assert np.isnan(loss), "a mean of nothing, as on the processor"


PART, BLOCK = softmax_loss._PART, softmax_loss._THREADS


@pytest.mark.parametrize("count", [0, 1, PART - 1, PART, PART + 1, (BLOCK + 1) * PART + 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mean_of_so_many_losses(count, dtype):
    """Less than a block takes, some blocks and a rest, more blocks than a block has threads."""
    rng = np.random.default_rng(count)
    labels = rng.integers(-1, 4, (1, count))  # -1 is ignored, and 3 is no class
    losses, weights = image(1, count, dtype=dtype), np.array([0.5, 2, 1], dtype)
    with guarded():
        arrays = (device.move(array, "cuda") for array in (losses, labels, weights))
        mean, divisor = (device.move(a, "cpu") for a in softmax_loss.mean_loss_cuda(*arrays, -1))
    of_labels = np.array([*weights, 0, 0])[labels]
    exact = losses.sum(dtype=np.float64), of_labels.sum(dtype=np.float64)
    assert (mean.dtype, divisor.dtype, mean.shape, divisor.shape) == (dtype, dtype, (), ())
    np.testing.assert_allclose(divisor, exact[1], rtol=1e-6)
    if exact[1]:
        np.testing.assert_allclose(mean, exact[0] / exact[1], rtol=1e-5, atol=1e-6)
    else:
        assert np.isnan(mean) or count


def test_a_class_may_be_ignored():
    target, weight = np.array([[[0, 2, 1], [1, 1, 2]]]), np.array([0.5, 2.0, 1.0], np.float32)
    for place in ("cpu", "cuda"):
        options = {"weight": tensor(weight, device=place), "ignore_index": 1}
        check(F.cross_entropy, image(1, 3, 2, 3), target=target, **options)


def test_one_class_and_one_pixel():
    check(F.cross_entropy, image(1, 1, 1, 1), target=np.zeros((1, 1, 1), np.int64))
    check(F.cross_entropy, image(5), target=np.array(3))


def test_large_scores_keep_the_small_differences():
    """Near 10000 the numbers of float32 are 0.001 apart, but a loss of 1e-6 can be told from 0."""
    x = np.array([[10_000.0, 9_987.0]], np.float32)
    loss, _ = check(F.cross_entropy, x, target=np.array([0]))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-13.0)), rtol=0.05)
    assert loss > 0


SOFTMAXES = [lambda x: F.softmax(x, 1), lambda x: F.log_softmax(x, 1)]


@pytest.mark.parametrize("classes", [1, 7, 8, 9, 16, 21])
def test_as_many_classes_as_are_asked_for_at_once_and_others(classes):
    x, labels = image(2, classes, 5), np.arange(10).reshape(2, 5) % classes
    for function in SOFTMAXES:
        check(function, 9 * x)
    for smoothing in (0.0, 0.1):
        check(F.cross_entropy, 9 * x, target=labels, label_smoothing=smoothing)


@pytest.mark.parametrize("odd", [-np.inf, np.inf, np.nan])
@pytest.mark.parametrize(
    "places", [[0], [7], [8], [12], range(8), range(8, 13), range(13)], ids=str
)
def test_scores_that_are_no_numbers(odd, places):
    """The first few of a pixel's scores, the next few, all of them."""
    x = np.tile(image(1, 13, 1), 3)
    x[:, list(places), 1] = odd
    found = []
    for place in ("cpu", "cuda"):
        with use("numpy"), guarded():
            given = tensor(x, device=place)
            found.append([function(given).numpy() for function in SOFTMAXES])
    for here, there in zip(*found, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_labels_that_are_on_the_gpu_already(dtype):
    x = tensor(image(1, 3, 2, 3), device="cuda")
    there = tensor(LABELS.astype(dtype), device="cuda")
    losses = [F.cross_entropy(x, labels, ignore_index=255).item() for labels in (LABELS, there)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("wrong", [3, -1, 2**40])
def test_a_label_on_the_gpu_that_is_no_class_makes_the_loss_nan(wrong):
    """Nobody looked at it beforehand, so the kernels must, and read nothing out of bounds."""
    labels = np.array([[0, wrong, 2]])
    with guarded():
        x = tensor(image(1, 3, 3), requires_grad=True, device="cuda")
        loss = F.cross_entropy(x, tensor(labels, device="cuda"), reduction="none")
        loss.backward(np.ones((1, 3), np.float32))
        losses, grads = loss.detach().numpy(), x.grad.numpy()
    np.testing.assert_array_equal(np.isnan(losses), labels == wrong)
    np.testing.assert_array_equal(np.isnan(grads).all(axis=1), labels == wrong)
    np.testing.assert_array_equal(np.isnan(grads).any(axis=1), labels == wrong)
    assert np.isnan(F.cross_entropy(x, tensor(labels, device="cuda")).item())


# ---- chance, borders, sizes ------------------------------------------------------------------


def test_the_same_numbers_are_dropped():
    manual_seed(7)
    here = F.dropout(np.ones(41, np.float32), 0.3).numpy()
    manual_seed(7)
    there = F.dropout(tensor(np.ones(41, np.float32), device="cuda"), 0.3).numpy()
    np.testing.assert_array_equal(here, there)
    assert 0 < np.count_nonzero(here == 0) < 41


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 5), {"pad": (2, -1, -1, 3), "value": 0.5}),
        ((1, 2, 3), {"pad": (-3, 0)}),  # nothing is left
        ((2, 3, 2, 3), {"pad": (1, 1, 0, 1, 2, 1), "mode": "reflect"}),
        ((1, 1, 2, 3, 2), {"pad": (0, 1, 2, 2, 1, 0), "mode": "replicate"}),
        ((2, 1, 3), {"pad": (3, 4, 0, 2), "mode": "constant", "value": -np.inf}),
    ],
    ids=str,
)
def test_borders(shape, options):
    check(F.pad, image(*shape), **options)


def test_a_border_wider_than_the_image():
    def reflected(x):
        return F.padding.reflect_border(x, 5, 4, 3, 7)

    check(reflected, image(2, 2, 3))


def test_an_index_map_turned_round():
    map = np.array([2, -1, 0, 2, 0, 0])
    first, outputs = showing(map, 4)
    np.testing.assert_array_equal(first, [0, 3, 3, 5, 5])
    np.testing.assert_array_equal(outputs, [2, 4, 5, 0, 3])


@pytest.mark.parametrize("sizes", [(3, 24), (5, 7), (7, 3), (4, 4), (1, 5), (6, 1)], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_neighbours_turned_round(sizes, align_corners):
    """A table of shares, written out as a matrix, is that of the blends."""
    axis = Axis(*sizes, align_corners=align_corners)
    low, high, weight = neighbours(axis, np.dtype(np.float64))
    blends = np.zeros(sizes)  # (positions, outputs)
    np.add.at(blends, (low, np.arange(len(low))), 1 - weight)
    np.add.at(blends, (high, np.arange(len(low))), weight)
    first, counts, weights = shares(low, high, weight, axis.size)
    mine = np.zeros(sizes)
    for y, (begin, count) in enumerate(zip(first, counts, strict=True)):
        mine[y, begin : begin + count] = weights[:count, y]
    np.testing.assert_array_equal(mine, blends)


def test_maps_are_moved_to_the_gpu_once():
    maps = IndexMaps(np.array([0, 1, 1]), np.array([1, 0]))
    assert device.kept(maps.rows) is device.kept(maps.rows.copy())
    assert device.kept(maps.rows) is not device.kept(maps.rows.astype(np.int32))
    np.testing.assert_array_equal(device.move(device.kept(maps.columns), "cpu"), [1, 0])


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (4, 9), (24, 40)])
def test_sizes(mode, size):
    """Of images of 9x5: nine rows become four, so some are jumped over."""
    x = image(1, 3, 9, 5)
    check(F.interpolate, x, size=size, mode=mode)
    if mode == "bilinear":
        check(F.interpolate, x, size=size, mode=mode, align_corners=True)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.pad(x, (1, 0, 2, 1), value=0.5),
        lambda x: F.pad(x, (1, 1, 1, 2), mode="reflect"),
        lambda x: F.interpolate(x, size=(9, 4), mode="bilinear"),
        lambda x: F.avg_pool2d(x, 3, stride=1, padding=1),
    ],
    ids=["pad", "reflect", "bilinear", "mean"],
)
def test_a_thread_takes_all_that_a_grid_has_no_blocks_for(function):
    device.cover_planes.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_HIGHEST", 1)  # as if there were more than a grid is high and deep
        check(function, image(3, 5, 7, 2))
    device.cover_planes.cache_clear()


# ---- sums ------------------------------------------------------------------------------------

SUM = arithmetic._PART


@pytest.mark.parametrize(
    "shapes",
    [
        ((1,), ()),
        ((SUM - 1,), ()),
        ((SUM,), ()),
        ((SUM + 1,), ()),
        ((SUM * arithmetic._MOST + 7,), ()),  # a part has more numbers then
        ((3, 5 * SUM - 11), (3, 1)),
        ((2, 3, 1, 5), (1, 3, 1, 1)),  # rows shorter than a block has threads
        ((3, 2, 2, 4), (1, 2, 1, 1)),
        ((5, 2, 3, 3), (1, 2, 1, 1)),
        ((9, 2, 5, SUM // 2 - 3), (1, 2, 1, 1)),
        ((9 * SUM, 2, 2), (1, 2, 1)),
        ((2, 3, 2, 3), (2, 1, 2, 1)),
        ((2, 3, 2, 3), (1, 3, 1, 3)),
        ((2, 2 * SUM + 6, 3), (3,)),
        ((2, 3, 4), (2, 1, 1)),
        ((2, 3, 4), (2, 3, 4)),
        ((2, 0, 4), (2, 1, 4)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_so_many_numbers(shapes, dtype):
    """Twice, for the first launch has to leave its counters as it found them."""
    shape, summed = shapes
    x = image(*shape, dtype=dtype)
    with guarded():
        there = device.move(x, "cuda")
        found = [device.move(arithmetic.sum_to_shape(there, summed), "cpu") for _ in range(2)]
    exact = arithmetic.sum_to_shape.implementations["numpy"](x.astype(np.float64), summed)
    tolerance = 2e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(found[0], exact, rtol=tolerance, atol=3 * tolerance * x.size**0.5)
    np.testing.assert_array_equal(*found)
    assert found[0].shape == summed
    assert found[0].dtype == dtype


def test_sums_without_parts_keep_no_counters():
    x = device.move(image(40, 2), "cuda")
    arithmetic.sum_to_shape(x, (40, 1))
    before = device.cuda_statistics().in_use
    x = device.move(image(600, 2), "cuda")
    arithmetic.sum_to_shape(x, (600, 1))
    del x
    assert device.cuda_statistics().in_use <= before


def test_a_biass_gradient_is_one_launch(launched):
    grad = device.move(image(9, 2, 5, 13), "cuda")
    arithmetic.sum_to_shape(grad, (1, 2, 1, 1))
    assert launched == ["_sum_around"]


def test_a_mean_of_losses_is_one_launch(launched):
    scores = tensor(image(2, 3, 5, 13), device="cuda")
    F.cross_entropy(scores, tensor(np.zeros((2, 5, 13), np.int64)).to("cuda"))
    assert launched == ["_cross_entropy_cuda", "_mean_loss_cuda"]


# ---- optimisers ------------------------------------------------------------------------------

SHAPES = [(3, 2, 3), (), (0, 4), (9,), (7, 9), (32,)]  # in the simulator a piece has 32 numbers


def parameters(place, dtype=np.float32):
    rng = np.random.default_rng(0)
    numbers = [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]
    return [tensor(number, requires_grad=True, device=place) for number in numbers]


def steps(optimizer, tensors, first, last):
    """Some steps, each with gradients of its own."""
    for step in range(first, last):
        rng = np.random.default_rng(step)
        for w in tensors:
            given = np.asarray(rng.standard_normal(w.shape), w.dtype)
            w.grad = Tensor(device.move(given, w.device))
        optimizer.step()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", MAKERS)
def test_optimisers_agree(name, dtype):
    with use("numpy"), guarded():
        here, there = parameters("cpu", dtype), parameters("cuda", dtype)
        before = [w.data for w in there]
        optimizers = [MAKERS[name](optim, tensors) for tensors in (here, there)]
        for optimizer, tensors in zip(optimizers, (here, there), strict=True):
            steps(optimizer, tensors, 0, 3)
        assert all(w.data is data for w, data in zip(there, before, strict=True)), "in place"
        found = [w.detach().numpy() for w in there]
        states = [optimizer.state_dict() for optimizer in optimizers]
    tolerance = 1e-6 if dtype == np.float32 else 1e-13
    for mine, w in zip(found, here, strict=True):
        np.testing.assert_allclose(mine, w.data, rtol=tolerance, atol=tolerance)
    for key, array in states[0].items():
        assert isinstance(states[1][key], np.ndarray)
        np.testing.assert_allclose(states[1][key], array, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["decay", "adam"])
def test_the_state_goes_to_the_host_and_back(name):
    straight, halves = parameters("cuda"), parameters("cuda")
    steps(MAKERS[name](optim, straight), straight, 0, 4)
    first = MAKERS[name](optim, halves)
    steps(first, halves, 0, 2)
    second = MAKERS[name](optim, halves)
    second.load_state_dict(first.state_dict())
    steps(second, halves, 2, 4)
    kept = {key: array for key, array in second.state[0].items() if key != "step"}
    assert {device.device_of(array) for array in kept.values()} == {"cuda"}
    for a, b in zip(straight, halves, strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


@pytest.mark.parametrize("name", ["decay", "adam"])
def test_a_step_of_all_parameters_is_one_launch(name, launched):
    tensors = parameters("cuda")
    steps(MAKERS[name](optim, tensors), tensors, 0, 1)
    assert launched == ["_adam_cuda" if name == "adam" else "_sgd_cuda"]


def test_lists_of_unlike_arrays_are_refused():
    w, g = (device.move(image(size), "cuda") for size in (5, 4))
    with pytest.raises(ShapeError, match=r"as many numbers; got \(5,\) and \(4,\)"):
        optim.sgd_step([w], [g], [w], 0.1, 0.0, 0.0)
    with pytest.raises(ShapeError, match=r"got \(5, 5\) and \(5,\)"):
        optim.sgd_step([w, w], [w], [w], 0.1, 0.0, 0.0)


def test_what_a_recorded_step_changes_is_kept():
    w, g, v = (device.move(image(5), "cuda") for _ in range(3))
    optim.sgd_step([w], [g], [v], 0.1, 0.0, 0.0)  # makes the table
    recorded = device.capture(lambda: optim.sgd_step([w], [g], [v], 0.1, 0.0, 0.0))
    assert {id(array.memory) for array in (w, g, v)} <= set(recorded.kept)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.sampled_from([4, 8]))
def test_pieces_are_all_of_the_arrays(sizes, itemsize):
    rng = np.random.default_rng(sum(sizes))
    addresses = rng.integers(0, 2**40, (3, len(sizes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_PIECE", 8)
        patch.setattr(device, "_PIECES", 4)  # so that pieces of 8, 16, ... come up
        table, count = device._pieces.__wrapped__(tuple(addresses.flat), tuple(sizes), itemsize)
    rows = device.move(table, "cpu")
    assert rows.shape == (count, 4)
    assert rows[:, 3].min(initial=1) > 0
    for begins, column in zip(addresses, rows.T, strict=False):
        assert places(column, rows[:, 3], itemsize) == places(begins, sizes, itemsize)


def places(begins, sizes, itemsize):
    """Addresses of all numbers of some runs."""
    runs = zip(begins, sizes, strict=True)
    return [begin + itemsize * n for begin, size in runs for n in range(size)]


# ---- training --------------------------------------------------------------------------------


def small_network():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, rng=0),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Conv2d(2, 3, 1, rng=1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    )


@pytest.mark.parametrize("name", ["decay", "adam"])
def test_two_steps_of_training_agree(name, monkeypatch):
    """And nothing comes back to the processor on the way but the loss."""
    downloads = []
    plain = device._download
    monkeypatch.setattr(
        device, "_download", lambda array: downloads.append(array.shape) or plain(array)
    )
    found = []
    for place in ("cpu", "cuda"):
        manual_seed(0)
        net = small_network().to(place)
        optimizer = MAKERS[name](optim, list(net.parameters()))
        rng, losses = np.random.default_rng(0), []
        for _ in range(2):
            x = tensor(rng.standard_normal((2, 1, 4, 6)).astype(np.float32), device=place)
            loss = F.cross_entropy(net(x), rng.integers(0, 3, (2, 4, 6)), ignore_index=2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert downloads == ([] if place == "cpu" else [(), ()])
        found.append({"losses": np.array(losses), **net.state_dict()})
    for key, here in found[0].items():
        np.testing.assert_allclose(found[1][key], here, rtol=1e-5, atol=1e-6)


STEPS = {"batch": 1, "front_steps": 2, "context_steps": 1, "joint_steps": 1, "comparison": False}


def tiny_data():
    rng = np.random.default_rng(0)

    def part(count):
        images = rng.standard_normal((count, 1, 4, 4)).astype(np.float32)
        return Scenes(images, rng.integers(0, 3, (count, 4, 4)).astype(np.uint8))

    return Data(part(2), part(1), part(1), ("background", "one", "two"))


def tiny_network(recipe):
    """In place of the demo's, whose 60 maps would keep the simulator busy for an hour."""
    front = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, rng=0), nn.ReLU(), nn.MaxPool2d(2))
    context = nn.Sequential(nn.Conv2d(3, 3, 3, padding=2, dilation=2, rng=1))
    return FrontEndWithContext(front, context if recipe.context else None)


def test_a_run_on_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(DemoRecipe, "build", tiny_network)
    results = {}
    for place in ("cpu", "cuda"):
        config = Config(**STEPS, device=place)
        train(config, tmp_path / place, data=tiny_data(), progress=False)
        log = (tmp_path / place / "log.jsonl").read_text().splitlines()
        results[place] = [line["loss"] for line in map(json.loads, log) if "loss" in line]
    assert len(results["cuda"]) == 4
    np.testing.assert_allclose(results["cuda"], results["cpu"], rtol=1e-4)
    assert Config.read(tmp_path / "cuda/config.toml").device == "cuda"
    images = tiny_data().test.images
    here = load_network(tmp_path / "cuda").network
    there = load_network(tmp_path / "cuda", device="cuda").network
    assert {w.device for w in there.parameters()} == {"cuda"}
    np.testing.assert_array_equal(label_maps(there, images), label_maps(here, images))
