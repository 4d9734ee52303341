"""The measurement: which pixels change an output, found by running the network.

Nothing of the analysis is used here. Two ways lead to the same set, through other kernels:

    impulse     One pixel of a black image is lit at a time, and we look which outputs change. The
                forward kernels run as they are.
    gradient    The gradient of one output by the image, with the real backward kernels. A pixel
                belongs to the field where it is not zero.

Both fail on a network as it was trained: a rectifier or a maximum lets nothing through where
another pixel won, weights cancel, numbers underflow. So the network is probed with other weights,
positive ones without biases. Then every layer grows with its input, and a lit pixel shows: each
rectifier is open and each maximum sees it. For the gradient, the few ops that decide between their
inputs have a *probe*, which lets all of them through: a maximum gives every pixel of its window a
share, a rectifier passes everything. And after each op all that counts is what is not zero; it
goes on as positive random numbers, so that nothing cancels or underflows in a deep network.

Numbers are float64 and products direct: Winograd's tiles would spoil exact zeros by rounding.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tinydilate import buffers, nn
from tinydilate.autograd import Op, Tensor
from tinydilate.device import Array
from tinydilate.errors import ConfigError, DtypeError, FieldError, PositionError
from tinydilate.functional.convolution import Convolution, conv2d_grad_input
from tinydilate.functional.dropping import Dropout
from tinydilate.functional.pooling import MaxPool, covering
from tinydilate.functional.rectifier import ReLU
from tinydilate.functional.softmax_loss import LogSoftmax, Softmax
from tinydilate.functional.unfolding import fold_forward
from tinydilate.kernel import use
from tinydilate.receptive_field.analysis import Analysis, Layer, analyse
from tinydilate.receptive_field.graph import Called, Model, Run, check_size, ops_of, record
from tinydilate.window import Pair

METHODS = ("gradient", "impulse")
_IMPULSES = 64  # images that are run at once, at most
_ROOM = 2**30  # bytes that their maps may fill: the published front end's are 1 GB for each image

# ---- probes: backward without decisions ------------------------------------------------------

PROBES: dict[type[Op], Callable[[Any, Array], Any]] = {}


def probe(*kinds: type[Op]) -> Callable[[Callable[[Any, Array], Any]], Callable[[Any, Array], Any]]:
    """Register what stands for ``backward`` of ops of these classes: (op, gradient) -> gradients.

    An op needs one if its derivative is zero by a decision that other numbers would turn round.
    """

    def register(function: Callable[[Any, Array], Any]) -> Callable[[Any, Array], Any]:
        PROBES.update(dict.fromkeys(kinds, function))
        return function

    return register


@probe(ReLU, Dropout)
def _let_through(op: Any, grad: Array) -> Array:
    return grad


@probe(Convolution)
def _without_rectifier(op: Any, grad: Array) -> tuple[Any, ...]:
    dx = conv2d_grad_input(grad, op.w, op.x.shape[2:], op.window, op.groups)
    return (dx, *[None] * (len(op.inputs) - 1))


def _thin_convolution(op: Any, grad: Array) -> tuple[Any, ...]:
    """For positive weights: the adjoint of one filter and one channel of each group, for all.

    It has other numbers, and zeros in the same places. A number of the adjoint is not zero where a
    tap leads to one of any filter's gradient, and then it is so in all channels: with 512 of each
    that is a quarter of a million times the same.
    """
    count, filters, rows, columns = grad.shape
    grads = grad.reshape(count, op.groups, filters // op.groups, rows, columns)
    any_filter = (grads != 0).any(axis=2).astype(grad.dtype)  # (N, G, OH, OW)
    one_each = np.ascontiguousarray(op.w[:: filters // op.groups, :1])  # (G, 1, KH, KW)
    dx = conv2d_grad_input(any_filter, one_each, op.x.shape[2:], op.window, op.groups)
    every_channel = count, op.groups, op.w.shape[1], *dx.shape[2:]
    dx = np.broadcast_to(dx[:, :, None], every_channel).reshape(op.x.shape)  # (N, C, H, W)
    return (dx, *[None] * (len(op.inputs) - 1))


@probe(MaxPool)
def _share_the_maximum(op: Any, grad: Array) -> Array:
    """Every pixel of a window gets the window's gradient."""
    count, channels, rows, columns = grad.shape
    kernel = op.window.kernel
    shares = buffers.empty((count, channels, *kernel, rows, columns), grad.dtype)
    shares[:] = grad[:, :, None, None]
    window = covering(op.window, op.size)
    result: Array = fold_forward(shares, op.size, window)
    return result


@probe(Softmax, LogSoftmax)
def _share_along_the_axis(op: Any, grad: Array) -> Array:
    """Every score counts in every probability."""
    total = grad.sum(axis=op.axis, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(total, grad.shape))


# ---- the network to be probed ----------------------------------------------------------------


def probing(model: Model, rng: np.random.Generator) -> Model:
    """A copy of a network with positive random weights and no biases, in evaluation.

    A function keeps what it brings: its weights are not ours to change.
    """
    if not isinstance(model, nn.Module):
        return model

    def positive(name: str, shape: tuple[int, ...]) -> Array:
        if is_bias(name):
            return np.zeros(shape)
        return rng.uniform(0.5, 1.5, shape) / math.sqrt(math.prod(shape[1:]))

    return reweighted(model, positive, np.dtype(np.float64))


def reweighted(
    model: nn.Module, weigh: Callable[[str, tuple[int, ...]], Array], dtype: np.dtype[Any]
) -> nn.Module:
    """A copy on the CPU as it acts in evaluation, its parameters ``weigh(name, shape)``."""
    copy = nn.as_meta(model).requires_grad_(False).eval()
    for name, parameter in copy.named_parameters():
        parameter.data = weigh(name, parameter.shape)
    values = dict(model.named_buffers())
    for name, buffer in copy.named_buffers():
        buffer.data = values[name].to("cpu").data.astype(dtype)
    return copy


def is_bias(name: str) -> bool:
    """Whether a parameter of this name is a bias."""
    return name.rpartition(".")[2] == "bias"


def record_probe(model: Model, image: Array) -> Run:
    """Run the network on an image of float64, or of float32 if it brings arrays of that.

    Raises
    ------
    FieldError
        If it fails, or a number comes out that is not finite.
    """
    try:
        run = record(model, Tensor(image, requires_grad=True))
    except FieldError as error:
        if not isinstance(error.__cause__, DtypeError):
            raise
        run = record(model, Tensor(image.astype(np.float32), requires_grad=True))
    for call in [*run.calls, Called("the network", "", (), run.output)]:
        if not np.isfinite(call.output.data).all():
            raise FieldError(
                f"expected finite numbers from the probe; {call.name} gives nan or infinity for an "
                f"image of shape {image.shape} with numbers from {image.min():.3g} to "
                f"{image.max():.3g} and the weights positive. Probe the network without the layers "
                "that divide by what may be 0 or take its logarithm."
            )
    return run


# ---- by gradient -----------------------------------------------------------------------------


def pull_back(
    target: Tensor, seed: Array, image: Tensor, rng: np.random.Generator | None = None
) -> Array:
    """Gradient of a tensor by the image, through the probes; zeros where it does not see it.

    With ``rng``, what is not zero is replaced after each op by positive random numbers.
    """
    gradients: dict[int, Array] = {}
    waiting: list[tuple[int, Op]] = []
    result = np.zeros(image.shape, seed.dtype)

    def give(tensor: Tensor, gradient: Array) -> None:
        nonlocal result
        if rng is not None:
            gradient = _drawn(rng, gradient != 0, seed.dtype)
        if tensor is image:
            result = result + gradient
        elif tensor.op is not None and tensor.op.number in gradients:
            gradients[tensor.op.number] = gradients[tensor.op.number] + gradient
        elif tensor.op is not None:
            gradients[tensor.op.number] = gradient
            heapq.heappush(waiting, (-tensor.op.number, tensor.op))

    give(target, seed)
    while waiting:
        op = heapq.heappop(waiting)[1]
        backward: Callable[[Any, Array], Any] = PROBES.get(type(op)) or type(op).backward
        if rng is not None and type(op) is Convolution and (op.w > 0).all():
            backward = _thin_convolution
        given = backward(op, gradients.pop(op.number))
        given = given if isinstance(given, tuple) else (given,)
        for tensor, needed, gradient in zip(op.inputs, op.needs, given, strict=True):
            if needed and gradient is not None:  # a probe gives weights none
                give(tensor, gradient)
    return result


def _drawn(rng: np.random.Generator, where: Array, dtype: Any) -> Array:
    """Positive random numbers where that is true, and zeros.

    Products of one number for each map and one for each place: to draw them all would take longer
    than the network does, and so would asking the system for memory that the pool has.
    """
    maps = *where.shape[:-2], *(1 for _ in where.shape[-2:])
    result = buffers.empty(where.shape, dtype)
    np.multiply(where, rng.uniform(0.5, 1.5, maps).astype(dtype), out=result)
    result *= rng.uniform(0.5, 1.5, where.shape[-2:]).astype(dtype)
    return result


def _by_gradient(
    model: Model,
    size: tuple[int, ...],
    targets: Sequence[Target],
    rng: np.random.Generator,
    bar: tqdm,
) -> list[Array]:
    """For each target a stack of masks, (outputs, H, W)."""
    batched = len(size) == 4
    image = rng.uniform(0.5, 1.5, (1, *size[1:]) if batched else size)
    run, most = _measured_run(model, image)
    together = min(most, max(len(target.outputs) for target in targets)) if batched else 1
    if together > 1:
        run = record_probe(model, np.repeat(image, together, axis=0))
    bar.reset(sum(len(target.outputs) for target in targets))
    masks = []
    for target in targets:
        tensor = target.find(run)
        found: list[Array] = []
        for start in range(0, len(target.outputs), together):
            seed = np.zeros(tensor.shape, tensor.dtype)
            part = target.outputs[start : start + together]
            for n, output in enumerate(part):
                seed[target.place_of(tensor, output, n if batched else None)] = 1
            gradient = pull_back(tensor, seed, run.image, rng)
            seen = (gradient != 0).any(axis=-3).reshape(together, *size[-2:])
            found.extend(seen[: len(part)])
            bar.update(len(part))
        masks.append(np.stack(found))
    return masks


# ---- by impulse ------------------------------------------------------------------------------


def _by_impulse(
    model: Model,
    size: tuple[int, ...],
    targets: Sequence[Target],
    rng: np.random.Generator,
    bar: tqdm,
) -> list[Array]:
    """For each target a stack of masks, (outputs, H, W)."""
    height, width = size[-2:]
    masks = [np.zeros((len(target.outputs), height, width), bool) for target in targets]
    batched = len(size) == 4
    dark, most = _measured_run(model, np.zeros((1, *size[1:]) if batched else size))
    dtype = dark.image.dtype
    each = min(_IMPULSES, most) if batched else 1
    bar.reset(height * width)
    places = list(np.ndindex(height, width))
    for start in range(0, height * width, each):
        lit = places[start : start + each]
        images = np.zeros((len(lit), *size[-3:]) if batched else size, dtype)
        for n, (y, z) in enumerate(lit):
            images[(n, ..., y, z) if batched else (..., y, z)] = 1
        run = record_probe(model, images)
        for target, mask in zip(targets, masks, strict=True):
            tensor, before = target.find(run), target.find(dark)
            changed = tensor.data != before.data
            for n, (y, z) in enumerate(lit):
                for k, output in enumerate(target.outputs):
                    index = target.place_of(tensor, output, n if batched else None)
                    mask[k, y, z] = changed[index].any()
        del run, tensor, changed  # or the next run would stand beside this one
        bar.update(len(lit))
    return masks


def _measured_run(model: Model, image: Array) -> tuple[Run, int]:
    """Run the network on one image; and how many such runs `_ROOM` holds, one at least."""
    run = record_probe(model, image)
    taken = sum(result.data.nbytes for _, result in ops_of(run))
    return run, max(1, _ROOM // max(1, taken))


# ---- outputs to be measured ------------------------------------------------------------------


class Target(NamedTuple):
    """Outputs of one layer.

    Attributes
    ----------
    call : int or None
        Which of the run's layer calls; None is the network's output.
    axes : (int, int)
        Rows and columns of the layer's output, counted from its last axis: (-2, -1).
    outputs : tuple of (int, int)
    """

    call: int | None
    axes: Pair
    outputs: tuple[Pair, ...]

    def find(self, run: Run) -> Tensor:
        """The tensor in a run."""
        return run.output if self.call is None else run.calls[self.call].output

    def place_of(self, tensor: Tensor, output: Pair, item: int | None) -> tuple[Any, ...]:
        """Where the numbers of an output stand, all channels, of one item of the batch."""
        index: list[Any] = [slice(None)] * tensor.ndim
        index[self.axes[0]], index[self.axes[1]] = output
        if item is not None:
            index[0] = item
        return tuple(index)


def measure_targets(
    model: Model,
    size: tuple[int, ...],
    targets: Sequence[Target],
    method: str,
    seed: int = 0,
    progress: bool = False,
) -> list[Array]:
    """For each target the pixels that change its outputs, (outputs, H, W) bool."""
    if method not in METHODS:
        raise ConfigError(f"expected a method out of {', '.join(METHODS)}; got {method!r}.")
    rng = np.random.default_rng(seed)
    copy = probing(model, rng)
    way = _by_gradient if method == "gradient" else _by_impulse
    unit = "output" if method == "gradient" else "pixel"
    with (
        use("cpu:direct"),
        tqdm(desc="measuring fields", unit=unit, leave=False, disable=not progress) as bar,
    ):
        return way(copy, size, targets, rng, bar)


def check_image_size(input_size: Sequence[int]) -> tuple[int, ...]:
    """An image's size as a tuple; one without channels is refused."""
    size = check_size(input_size)
    if len(size) < 3:
        raise FieldError(f"expected an image (N, C, H, W) or (C, H, W); got {size}. Add channels.")
    return size


def measure(
    model: Model,
    input_size: Sequence[int],
    output: Pair | None = None,
    layer: str | None = None,
    method: str = "gradient",
) -> Array:
    """Measure which pixels change an output of a network.

    Parameters
    ----------
    model : nn.Module, or a function of one Tensor
        Of a module a copy is probed, in float64, with positive random weights; it is left as it
        is. A function is probed with the weights that it brings: a weight of 0 reads nothing.
    input_size : sequence of int
        (N, C, H, W) or (C, H, W); N does not matter.
    output : (int, int), optional
        Row and column; by default the one in the middle.
    layer : str, optional
        The layer whose output it is (its last call); by default the network's.
    method : {"gradient", "impulse"}
        See the top of this page. An impulse for each pixel takes H * W runs.

    Returns
    -------
    (H, W) bool

    Raises
    ------
    FieldError
        If the network fails on the probe or gives numbers that are not finite.
    ConfigError
        If there is no such layer or method.
    PositionError
        If there is no such output.
    """
    size = check_image_size(input_size)
    _, target = chosen(analyse(model, size, misaligned="union"), output, layer)
    mask: Array = measure_targets(model, size, [target], method)[0][0]
    return mask


def chosen(analysis: Analysis, output: Pair | None, layer: str | None) -> tuple[Layer, Target]:
    """A layer by its name, at its last call, or the network's output; and one of its outputs.

    Raises
    ------
    ConfigError, PositionError
        If there is no such layer, or no such output; None is the one in the middle.
    """
    call = None if layer is None else layer_number(analysis, layer)
    looked_at = analysis.output if call is None else analysis.layers[call]
    rows, columns = looked_at.size
    place = (rows // 2, columns // 2) if output is None else output
    if not (0 <= place[0] < rows and 0 <= place[1] < columns):
        raise PositionError(
            f"expected an output within {rows} rows and {columns} columns; got {place}."
        )
    return looked_at, target_of(call, looked_at, (place,))


def layer_number(analysis: Analysis, name: str) -> int:
    """Which of a run's calls is the last one of the layer of this name.

    Raises
    ------
    ConfigError
        If there is no such layer.
    """
    analysis[name]  # says which names there are
    found = [n for n, layer in enumerate(analysis.layers) if layer.name == name]
    if not found:
        raise ConfigError(f"expected the name of a module; got the op {name!r}. Make it a module.")
    return found[-1]


def target_of(call: int | None, layer: Layer, outputs: tuple[Pair, ...]) -> Target:
    """Outputs of a layer as a target; the analysis says only which axes are rows and columns."""
    rows, columns = layer.sight().axes
    ndim = len(layer.output_shape)
    return Target(call, (rows - ndim, columns - ndim), outputs)
