"""Winograd's convolution on the GPU: its rules, any layer and its gradients, bands, the choice."""

import numpy as np
import pytest
from guarded_cuda import guarded
from mutants import GPU_WINOGRAD_MUTANTS, planted

from tinydilate import device, gpu_winograd, winograd
from tinydilate.errors import KernelError
from tinydilate.functional.convolution import conv2d_forward, conv2d_grad_input, conv2d_grad_weight
from tinydilate.window import Window

pytestmark = pytest.mark.gpu
sides = pytest.mark.parametrize("side", [2, 4])
TOLERANCE = {2: 1e-5, 4: 1e-4}  # of sums of some numbers around one

RULES = {  # rule, the matrix that it is
    "image": (winograd.IMAGE, {2: gpu_winograd._image_2, 4: gpu_winograd._image_4}),
    "kernel": (winograd.KERNEL, {2: gpu_winograd._kernel_2, 4: gpu_winograd._kernel_4}),
    "output": (winograd.OUTPUT, {2: gpu_winograd._output_2, 4: gpu_winograd._output_4}),
    "gradient": (
        {side: matrix.T for side, matrix in winograd.OUTPUT.items()},
        {2: gpu_winograd._gradient_2, 4: gpu_winograd._gradient_4},
    ),
    "weights": (
        {side: matrix.T for side, matrix in winograd.KERNEL.items()},
        {2: gpu_winograd._weights_2, 4: gpu_winograd._weights_4},
    ),
}


@sides
@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_its_matrix(name, side):
    """On a line of the unit vectors, at any place and distance."""
    matrices, rules = RULES[name]
    matrix = matrices[side]
    rows, columns = matrix.shape
    for column in range(columns):
        line = np.zeros(40, np.float32)
        line[3 + 5 * column] = 1
        rules[side].body(line, 3, 5)
        np.testing.assert_allclose(line[3 : 3 + 5 * rows : 5], matrix[:, column], rtol=1e-6)


def drawn(*shape):
    return np.random.default_rng(sum(shape)).uniform(-1, 1, shape).astype(np.float32)


def agrees(kernel, side, *arguments):
    expected = kernel.implementations["numpy"](
        *(a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in arguments)
    )
    with guarded():
        moved = [device.move(a, "cuda") if isinstance(a, np.ndarray) else a for a in arguments]
        result = kernel.implementations[f"cuda:winograd{side}"](*moved)
        result = device.move(result, "cpu")
    np.testing.assert_allclose(result, expected, atol=TOLERANCE[side] * abs(expected).max())


def layer_agrees(side, images, weights, window, groups=1):
    """Forward with bias and relu, and both gradients."""
    x, w, b = drawn(*images), drawn(*weights), drawn(weights[0])
    grad = drawn(images[0], weights[0], *window.output_size(images[2:]))
    agrees(conv2d_forward, side, x, w, b, window, groups, True)
    agrees(conv2d_grad_input, side, grad, w, images[2:], window, groups)
    agrees(conv2d_grad_weight, side, x, grad, window, groups)


LAYERS = {
    "one tile": ((1, 1, 4, 4), (1, 1, 3, 3), Window.of(3, padding=1), 1),
    "one pixel": ((1, 1, 1, 1), (1, 1, 3, 3), Window.of(3, padding=1), 1),
    "a pixel more than a tile": ((2, 2, 5, 6), (3, 2, 3, 3), Window.of(3, padding=1), 1),
    "no padding": ((1, 2, 6, 5), (2, 2, 3, 3), Window.of(3), 1),
    "dilation": ((1, 2, 5, 4), (1, 2, 3, 3), Window.of(3, padding=(2, 3), dilation=(2, 3)), 1),
    "more padding than a window": ((1, 1, 2, 3), (1, 1, 3, 3), Window.of(3, padding=4), 1),
    "uneven padding": (
        (1, 1, 4, 5),
        (2, 1, 3, 3),
        Window((3, 3), (1, 1), ((2, 0), (1, 3)), (2, 1)),
        1,
    ),
    "groups": ((1, 4, 3, 4), (6, 2, 3, 3), Window.of(3, padding=1), 2),
    "more channels than a round": ((1, 9, 3, 3), (2, 9, 3, 3), Window.of(3, padding=1), 1),
}


@sides
@pytest.mark.parametrize("name", LAYERS)
def test_any_layer_and_its_gradients(name, side):
    images, weights, window, groups = LAYERS[name]
    layer_agrees(side, images, weights, window, groups)


def bands_agree():
    with pytest.MonkeyPatch.context() as patch:
        # Three tiles of 2 + 3 planes in a band: the last band has one.
        patch.setattr(gpu_winograd, "BAND_BYTES", 4 * 16 * 5 * 3)
        layer_agrees(2, (1, 2, 5, 4), (3, 2, 3, 3), Window.of(3, padding=1))


def test_tiles_are_taken_in_bands():
    bands_agree()


def test_nothing_in_gives_nothing():
    window, grad = Window.of(3, padding=1), drawn(0, 3, 4, 4)
    x, w = (device.move(array, "cuda") for array in (drawn(0, 2, 4, 4), drawn(3, 2, 3, 3)))
    out = gpu_winograd.convolution(x, w, None, window, (4, 4), side=4)
    assert out.shape == (0, 3, 4, 4)
    result = gpu_winograd.weight_gradient(x, device.move(grad, "cuda"), window, side=4)
    assert not device.move(result, "cpu").any()


@pytest.mark.parametrize(
    ("channels", "filters", "size", "side"),
    [
        (256, 256, 118, 4),  # conv3_2 of a 500x500 crop
        (512, 512, 54, 4),  # conv4_2
        (64, 64, 496, 0),  # conv1_2: the transforms take as long as what they save
        (21, 21, 66, 0),  # the context module: a launch takes longer than the layer
    ],
)
@pytest.mark.usefixtures("h100")
def test_wide_layers_are_computed_by_tiles(channels, filters, size, side):
    window = Window.of(3)
    assert gpu_winograd.fastest_side(1, channels, filters, window, (size, size)) == side
    assert gpu_winograd.fastest_side(0, channels, filters, window, (size, size)) == 0
    other = Window.of(3, stride=2)
    assert gpu_winograd.fastest_side(1, channels, filters, other, (size, size)) == 0


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize(
    ("channels", "size", "outward", "side"),
    [
        (128, 244, False, 0),  # conv2_2 of a 500x500 crop
        (512, 54, True, 4),  # conv4_2, by the weights
        (672, 66, True, 4),  # the widest layer of the Large context
    ],
)
def test_where_tf32_is_allowed_fewer_layers_need_tiles(channels, size, outward, side):
    """As was measured on an H100, where each of these is the faster way."""
    layer = 1, channels, channels, Window.of(3), (size, size)
    choose = gpu_winograd.fastest_side
    assert choose(*layer, outward=outward) == 4
    assert choose(*layer, outward=outward, tf32=True) == side


# ---- planted bugs ----------------------------------------------------------------------------


def check_padding():
    layer_agrees(4, (2, 2, 5, 6), (3, 2, 3, 3), Window.of(3, padding=1))


def check_phases():
    layer_agrees(2, (1, 2, 5, 4), (1, 2, 3, 3), Window.of(3, padding=(2, 3), dilation=(2, 3)))


def check_bands():
    bands_agree()


def check_no_padding():
    layer_agrees(2, (1, 1, 5, 4), (1, 1, 3, 3), Window.of(3))


CHECKS = [check_padding, check_no_padding, check_phases, check_bands]


@pytest.mark.skipif(not device.SIMULATED, reason="bugs are planted in Python")
@pytest.mark.parametrize("mutant", GPU_WINOGRAD_MUTANTS, ids=[m.name for m in GPU_WINOGRAD_MUTANTS])
def test_a_planted_bug_is_noticed(mutant):
    check = {check.__name__: check for check in CHECKS}[mutant.killer]
    with planted(mutant), pytest.raises((AssertionError, KernelError)):
        check()


@pytest.mark.parametrize("check", CHECKS)
def test_without_a_bug_the_checks_pass(check):
    with planted(GPU_WINOGRAD_MUTANTS[0], really=False):
        check()
