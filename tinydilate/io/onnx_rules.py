"""How each op is said in ONNX: one rule for each class of op.

A rule adds nodes to a `Sketch` and returns the name of the last one's result. Most ops have a
namesake and take one line. Those that take more are where two worlds count differently:

* Pooling with ``ceil_mode``: both have it, but they disagree about a last window that would begin
  in the padding. Where that can happen, the padding is written out instead.
* A reflection wider than the image: ONNX reflects once. Reflecting what has been reflected gives
  the same, so several ``Pad`` nodes stand in a row, each less wide than what it is given.
* Resizing: our half-pixel centres are ``half_pixel``, aligned corners are ``align_corners``, the
  nearest pixel is ``asymmetric`` rounded down.
* A copy through a `View` (permute, transpose, indexing) is taken apart into ``Slice``,
  ``Transpose`` and ``Reshape``.
* Unfolding is a convolution whose filters are one tap each; folding is its transpose.

An op of your own takes part once it has a rule:

    @rule(LeakyReLU)
    def leaky_relu(sketch, op, inputs, result):
        return sketch.node("LeakyRelu", *inputs, alpha=op.slope)

Source: the ONNX operator reference, versions 15 to 21 of the operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydilate.autograd import Cast, Move, Op, Tensor
from tinydilate.device import Array
from tinydilate.errors import ConfigError
from tinydilate.functional.arithmetic import Add, Div, Exp, Log, Mul, Neg, Pow, Sub
from tinydilate.functional.convolution import Convolution
from tinydilate.functional.padding import Pad
from tinydilate.functional.pooling import AvgPool, MaxPool, covering
from tinydilate.functional.products import MatMul
from tinydilate.functional.rectifier import ReLU
from tinydilate.functional.reduction import MaxOfRows, Sum
from tinydilate.functional.resizing import Axis, ResizeBilinear, ResizeNearest
from tinydilate.functional.shaping import Cat, CopyView, Reshape, View
from tinydilate.functional.softmax_loss import LogSoftmax, Softmax
from tinydilate.functional.transposed import TransposedConvolution
from tinydilate.functional.unfolding import Fold, Unfold
from tinydilate.io.onnx_format import NUMBER_TYPES
from tinydilate.window import Pair, Window

END = 2**63 - 1  # as the end of a slice: the end of the axis, however long


class Numbers(NamedTuple):
    """Whole numbers that a node reads: sizes, positions, axes.

    Attributes
    ----------
    values : tuple of int
    from_end : tuple of int, optional
        The same, counted from the end of the axis: of a cut that leaves the last pixel away it is
        these that stay when the axis grows.
    may_infer : bool
        Whether one of them may be -1 for "what the others leave", as in a new shape.
    """

    values: tuple[int, ...]
    from_end: tuple[int, ...] = ()
    may_infer: bool = False


class Node(NamedTuple):
    """One node of an ONNX graph, and the layer that it belongs to."""

    kind: str
    inputs: tuple[str | Numbers, ...]
    output: str
    attributes: dict[str, Any]
    layer: str


class Sketch:
    """The ONNX graph of one run, in which sizes are still those of that run.

    Parameters
    ----------
    known : mapping from the id of a leaf to its name
        The image and the network's parameters and buffers.
    opset : int
        Version of the operators.
    moving : bool
        Whether height or width may be any: then nothing may depend on those of this run.

    Attributes
    ----------
    nodes : list of Node
    constants : dict of names to arrays
    layer : str
        The layer whose ops are being translated.
    """

    def __init__(self, known: Mapping[int, str], opset: int, moving: bool) -> None:
        self.known, self.opset, self.moving = dict(known), opset, moving
        self.taken = set(known.values())
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self.outputs: set[str] = set()
        self.layer = ""

    def node(self, kind: str, *inputs: str | Numbers, **attributes: Any) -> str:
        """Add a node; returns the name of its result."""
        name = self.free_name(kind)
        self.nodes.append(Node(kind, inputs, name, attributes, self.layer))
        return name

    def constant(self, array: Any) -> str:
        """Add an array of numbers; returns its name."""
        name = self.free_name("constant")
        self.constants[name] = np.asarray(array)
        return name

    def free_name(self, what: str) -> str:
        """A name that nothing else has, with the layer's name in front."""
        wanted = name = f"{self.layer}/{what}" if self.layer else what
        number = 1
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name

    def name_of(self, tensor: Tensor) -> str:
        """Name of a tensor of the run: a leaf, or the result of an op that was translated.

        Raises
        ------
        ConfigError
            If it is a leaf that is no part of the network.
        """
        key = id(tensor if tensor.op is None else tensor.op)
        number = getattr(tensor.data, "number", None)
        if key not in self.known and number is not None:  # the 2 of x * 2
            return self.constant(np.array(number, tensor.dtype))
        if key not in self.known:
            raise self.refuse(
                f"a tensor of shape {tensor.shape} that no op computed",
                "Keep constant arrays as nn.Buffer; comparisons, argmax and detach leave the "
                "graph: apply them to the network's output.",
            )
        return self.known[key]

    def call(self, name: str, wanted: str) -> None:
        """Give the result called ``name`` the name that is wanted of it."""
        at = [node for node in self.nodes if node.output == name]
        if not at or name in self.outputs:  # a leaf as it is, or one result returned twice
            self.nodes.append(Node("Identity", (name,), wanted, {}, ""))
            return
        for n, node in enumerate(self.nodes):
            inputs = tuple(wanted if each == name else each for each in node.inputs)
            output = wanted if node.output == name else node.output
            self.nodes[n] = node._replace(inputs=inputs, output=output)
        self.outputs.add(wanted)
        self.known = {key: wanted if old == name else old for key, old in self.known.items()}

    def drop_unused(self, wanted: set[str]) -> None:
        """Leave out the nodes whose results nothing needs."""
        needed, kept = set(wanted), []
        for node in reversed(self.nodes):
            if node.output in needed:
                needed |= {each for each in node.inputs if isinstance(each, str)}
                kept.append(node)
        self.nodes = kept[::-1]

    def refuse(self, what: str, advice: str) -> ConfigError:
        """The error that says that something has no translation."""
        where = f" in the layer {self.layer}" if self.layer else ""
        return ConfigError(f"expected a network of ops that ONNX has; got {what}{where}. {advice}")


Rule = Callable[[Sketch, Any, list[str], Tensor], str]
RULES: dict[type[Op], Rule] = {}


def rule(*kinds: type[Op]) -> Callable[[Rule], Rule]:
    """Register how ops of these classes are said in ONNX."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


def translate(sketch: Sketch, op: Op, result: Tensor) -> None:
    """Add the nodes of an op, whose inputs have been translated.

    Raises
    ------
    ConfigError
        If the op has no rule, or none for this case.
    """
    found = RULES.get(type(op))
    if found is None:
        known = ", ".join(sorted(kind.__name__ for kind in RULES))
        advice = _ADVICE.get(type(op).__name__, _WRITE_A_RULE)
        raise sketch.refuse(f"the op {type(op).__name__}", f"{advice} Known: {known}.")
    inputs = [sketch.name_of(tensor) for tensor in op.inputs]
    sketch.known[id(op)] = found(sketch, op, inputs, result)


_WRITE_A_RULE = "Give it a rule: from tinydilate.io.onnx_rules import rule."
_ADVICE = {
    "Dropout": "It drops in evaluation too: use nn.Dropout, or pass training=self.training.",
    "CrossEntropy": "It is a loss: export the network that gives the scores.",
}


# ---- element by element ----------------------------------------------------------------------

_NAMESAKES: dict[type[Op], str] = {
    Add: "Add",
    Sub: "Sub",
    Mul: "Mul",
    Pow: "Pow",
    Neg: "Neg",
    Exp: "Exp",
    Log: "Log",
    ReLU: "Relu",
    MatMul: "MatMul",
    Move: "Identity",
}


@rule(*_NAMESAKES)
def _namesake(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    return sketch.node(_NAMESAKES[type(op)], *inputs)


@rule(Cast)
def _cast(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    return sketch.node("Cast", *inputs, to=NUMBER_TYPES[result.dtype.name])


@rule(Div)
def _div(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    total, divisor = (tensor for tensor in op.inputs)
    if isinstance(total.op, Sum) and getattr(divisor.data, "number", None) is not None:
        summed, axes = total.op.inputs[0], total.op.axes
        if axes and divisor.data.number == math.prod(summed.shape[axis] for axis in axes):
            x = sketch.name_of(summed)  # a sum divided by how many were summed, of any size
            return _reduce(sketch, "ReduceMean", x, axes, total.op.keepdim)
    return sketch.node("Div", *inputs)


# ---- along axes ------------------------------------------------------------------------------


@rule(Sum)
def _sum(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    if not op.axes:  # of a single number
        return sketch.node("Identity", *inputs)
    return sketch.node("ReduceSum", *inputs, Numbers(op.axes), keepdims=int(op.keepdim))


@rule(MaxOfRows)
def _max_of_rows(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    return _reduce(sketch, "ReduceMax", inputs[0], (1,), keepdim=False)


def _reduce(sketch: Sketch, kind: str, x: str, axes: tuple[int, ...], keepdim: bool) -> str:
    """Maximum or mean: the axes were an attribute before version 18, and are an input since."""
    if sketch.opset < 18:
        return sketch.node(kind, x, axes=axes, keepdims=int(keepdim))
    return sketch.node(kind, x, Numbers(axes), keepdims=int(keepdim))


@rule(Softmax, LogSoftmax)
def _softmax(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    if not result.shape:
        raise sketch.refuse("a softmax of a single number", "It is always 1: leave it out.")
    return sketch.node(type(op).__name__, *inputs, axis=op.axis)


# ---- convolutions ----------------------------------------------------------------------------


@rule(Convolution)
def _convolution(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    out = sketch.node("Conv", *inputs, **_of_window(op.window), group=op.groups)
    return sketch.node("Relu", out) if op.relu else out


@rule(TransposedConvolution)
def _transposed(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    extra = _output_padding(op.window, op.inputs[0].shape[2:], op.size)
    options = {**_of_window(op.window), "output_padding": extra, "group": op.groups}
    return sketch.node("ConvTranspose", *inputs, **options)


@rule(Unfold)
def _unfold(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    """Each channel by itself through one filter for each tap, which is 1 at that tap."""
    count, channels, *size = op.shape
    planes = Numbers((count * channels, 1, *size), may_infer=True)
    x = sketch.node("Reshape", *inputs, planes)  # (N*C, 1, H, W)
    taps = _single_taps(sketch, op.window, result.dtype)
    columns = sketch.node("Conv", x, taps, **_of_window(op.window))  # (N*C, KH*KW, OH, OW)
    return sketch.node("Reshape", columns, Numbers(result.shape, may_infer=True))


@rule(Fold)
def _fold(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    """Each channel by itself through the transpose of that convolution."""
    count, channels = result.shape[:2]
    output = op.window.output_size(op.size)
    maps = Numbers((count * channels, op.window.taps, *output), may_infer=True)
    columns = sketch.node("Reshape", *inputs, maps)  # (N*C, KH*KW, OH, OW)
    taps = _single_taps(sketch, op.window, result.dtype)
    extra = _output_padding(op.window, output, op.size)
    options = {**_of_window(op.window), "output_padding": extra}
    planes = sketch.node("ConvTranspose", columns, taps, **options)  # (N*C, 1, H, W)
    return sketch.node("Reshape", planes, Numbers(result.shape, may_infer=True))


def _of_window(window: Window) -> dict[str, Any]:
    """The attributes that say what a window is."""
    (top, bottom), (left, right) = window.padding
    return {
        "kernel_shape": window.kernel,
        "strides": window.stride,
        "pads": (top, left, bottom, right),
        "dilations": window.dilation,
    }


def _output_padding(window: Window, inputs: Sequence[int], outputs: Sequence[int]) -> Pair:
    """Rows and columns that a transposed convolution has beyond what its last window covers."""
    covered = [
        (count - 1) * stride + extent - before - after
        for count, stride, extent, (before, after) in zip(
            inputs, window.stride, window.extent, window.padding, strict=True
        )
    ]
    return outputs[0] - covered[0], outputs[1] - covered[1]


def _single_taps(sketch: Sketch, window: Window, dtype: Any) -> str:
    """(KH*KW, 1, KH, KW): for each tap a filter that is 1 at that tap and 0 elsewhere."""
    return sketch.constant(np.eye(window.taps, dtype=dtype).reshape(-1, 1, *window.kernel))


# ---- pooling ---------------------------------------------------------------------------------


@rule(MaxPool)
def _max_pool(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    x, window = inputs[0], _agreed(sketch, op.window, op.size)
    sides = zip(window.padding, window.kernel, strict=True)
    if any(max(around) >= taps for around, taps in sides):  # more than engines take
        (top, bottom), (left, right) = window.padding
        lowest = sketch.constant(np.array(-np.inf, result.dtype))
        border = _pads([(0, 0), (0, 0), (top, bottom), (left, right)])
        x = sketch.node("Pad", x, border, lowest, mode="constant")
        window = window._replace(padding=((0, 0), (0, 0)))
    return sketch.node("MaxPool", x, **_of_window(window), ceil_mode=int(window.ceil_mode))


@rule(AvgPool)
def _avg_pool(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    window, include_pad, divisor = op.options
    x, padding = inputs[0], window.padding
    if divisor is not None:  # the sum, divided by a number of the user's
        window = _written_out(sketch, window, op.size)
        mean = _average(sketch, x, window, count_include_pad=1)
        factor = np.array(window.taps / divisor, result.dtype)
        return sketch.node("Mul", mean, sketch.constant(factor))
    window = _agreed(sketch, window, op.size)
    if not include_pad or not np.any(padding):
        return _average(sketch, x, window, count_include_pad=0)
    if window.padding == padding and not window.ceil_mode:
        return _average(sketch, x, window, count_include_pad=1)
    # The zeros count, and what hangs over beyond them does not: so the zeros become pixels.
    image = sketch.node("Pad", x, _pads([(0, 0), (0, 0), *padding]), mode="constant")
    beyond = [
        (0, after - zeros) for (_, after), (_, zeros) in zip(window.padding, padding, strict=True)
    ]
    window = window._replace(padding=(beyond[0], beyond[1]))
    return _average(sketch, image, window, count_include_pad=0)


def _average(sketch: Sketch, x: str, window: Window, count_include_pad: int) -> str:
    options = _of_window(window)
    del options["dilations"]  # it has none
    return sketch.node(
        "AveragePool",
        x,
        **options,
        ceil_mode=int(window.ceil_mode),
        count_include_pad=count_include_pad,
    )


def _agreed(sketch: Sketch, window: Window, size: Pair) -> Window:
    """The window as it is, or without ``ceil_mode`` where engines might count other windows.

    Ours drops a last window that would begin in the padding after the image, ONNX (before version
    22) keeps it. Where the stride is small enough there is no such window. Even so, with padding,
    ``ceil_mode`` is used only if the size may be any: not every engine gets both right.
    """
    axes = zip(window.stride, window.extent, window.padding, strict=True)
    same = all(stride <= extent - after for stride, extent, (_, after) in axes)
    if same and (sketch.moving or not np.any(window.padding)):
        return window
    return _written_out(sketch, window, size)


def _written_out(sketch: Sketch, window: Window, size: Pair) -> Window:
    """The window without ``ceil_mode``, padded so that its last place fits in."""
    if not window.ceil_mode:
        return window
    if sketch.moving:
        raise sketch.refuse(
            "a pooling with ceil_mode whose padding depends on the image's size",
            "Export it for one height and width.",
        )
    return covering(window, size)._replace(ceil_mode=False)


# ---- borders ---------------------------------------------------------------------------------


@rule(Pad)
def _pad(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    """First the border, then what negative numbers crop: a reflection may show what is cropped."""
    x, first = inputs[0], len(op.shape) - len(op.borders)
    added = [(0, 0)] * first + [(max(b, 0), max(a, 0)) for b, a in op.borders]
    if np.any(added):
        x = _BORDERS[op.mode](sketch, x, op, added)
    cut = [(axis, pair) for axis, pair in enumerate(op.borders, first) if min(pair) < 0]
    if cut:
        starts = tuple(max(-before, 0) for _, (before, _) in cut)
        ends = tuple(after if after < 0 else END for _, (_, after) in cut)
        axes = tuple(axis for axis, _ in cut)
        x = sketch.node("Slice", x, Numbers(starts), Numbers(ends), Numbers(axes))
    return x if np.any(added) or cut else sketch.node("Identity", x)


Added = list[tuple[int, int]]  # for each axis, positions added before and after


def _constant_border(sketch: Sketch, x: str, op: Any, added: Added) -> str:
    value = sketch.constant(np.array(op.value, op.inputs[0].dtype))
    return sketch.node("Pad", x, _pads(added), value, mode="constant")


def _edge_border(sketch: Sketch, x: str, op: Any, added: Added) -> str:
    return sketch.node("Pad", x, _pads(added), mode="edge")


def _reflect_border(sketch: Sketch, x: str, op: Any, added: Added) -> str:
    """Reflect, at most as far as the image reaches, then the reflection, and so on."""
    if sketch.moving:
        for axis, (before, after) in enumerate(added):
            if before or after:
                x = _reflect_any_size(sketch, x, axis, before, after)
        return x
    sizes = list(op.shape)
    flat = [pair if size == 1 else (0, 0) for pair, size in zip(added, sizes, strict=True)]
    if np.any(flat):  # one pixel has nothing beside it to reflect: it is repeated
        x = sketch.node("Pad", x, _pads(flat), mode="edge")
    left = [(0, 0) if size == 1 else pair for pair, size in zip(added, sizes, strict=True)]
    while np.any(left):
        steps = [
            (_reach(before, size, now), _reach(after, size, now))
            for (before, after), size, now in zip(left, op.shape, sizes, strict=True)
        ]
        x = sketch.node("Pad", x, _pads(steps), mode="reflect")
        sizes = [size + sum(step) for size, step in zip(sizes, steps, strict=True)]
        left = [(b - c, a - d) for (b, a), (c, d) in zip(left, steps, strict=True)]
    return x


def _reach(left: int, size: int, now: int) -> int:
    """How far one reflection goes where ``left`` pixels are left to add.

    The image had ``size`` pixels and has grown to ``now``. Unless it is the last, a reflection ends
    at a mirror, and mirrors stand size - 1 pixels apart: 0 1 2 | 1 0 | 1 2 | 1 ...
    """
    return left if left < now else (now - 1) // (size - 1) * (size - 1)


def _reflect_any_size(sketch: Sketch, x: str, axis: int, before: int, after: int) -> str:
    """Read one axis through its index map, worked out in the graph; see `index_map`."""
    number = {value: sketch.constant(np.array(value, np.int64)) for value in (1, 2, before, after)}
    sizes = sketch.node("Shape", x, start=axis, end=axis + 1)
    size = sketch.node("Squeeze", sizes, Numbers((0,)))
    end = sketch.node("Add", size, number[after])
    start = sketch.node("Neg", number[before])
    places = sketch.node("Range", start, end, number[1])  # -before, ..., size + after - 1
    last = sketch.node("Sub", size, number[1])
    period = sketch.node("Mul", last, number[2])  # there and back: 0 1 2 3 2 1 | 0 1 2 3 2 1
    period = sketch.node("Max", period, number[1])  # for an image of one pixel
    there = sketch.node("Mod", places, period)
    back = sketch.node("Sub", period, there)
    one_pixel = sketch.node("Min", there, back)
    return sketch.node("Gather", x, one_pixel, axis=axis)


_BORDERS: dict[str, Callable[[Sketch, str, Any, Added], str]] = {
    "constant": _constant_border,
    "replicate": _edge_border,
    "reflect": _reflect_border,
}


def _pads(added: Added) -> Numbers:
    """ONNX's order: before every axis, then after every axis."""
    return Numbers((*(before for before, _ in added), *(after for _, after in added)))


# ---- resizing --------------------------------------------------------------------------------


@rule(ResizeNearest)
def _resize_nearest(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resize(sketch, op, inputs[0], result, mode="nearest", **options)


@rule(ResizeBilinear)
def _resize_bilinear(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    where = "align_corners" if op.rows.align_corners else "half_pixel"
    return _resize(
        sketch, op, inputs[0], result, mode="linear", coordinate_transformation_mode=where
    )


def _resize(sketch: Sketch, op: Any, x: str, result: Tensor, **options: str) -> str:
    """By factors where the user gave factors that decide where pixels stand, else by sizes."""
    rows, columns = op.rows, op.columns
    if rows.scale is None or rows.align_corners:
        return sketch.node("Resize", x, "", "", Numbers(result.shape), **options)
    factors = np.array([1, 1, _factor(rows), _factor(columns)], np.float32)
    return sketch.node("Resize", x, "", sketch.constant(factors), **options)


def _factor(axis: Axis) -> np.float32:
    """A factor in float32, as ONNX has it, that still gives our number of pixels: 10 * 0.7 is 7."""
    factor = np.float32(axis.scale)
    while math.floor(float(factor) * axis.size) < axis.output:
        factor = np.nextafter(factor, np.float32(np.inf))
    return factor


# ---- shapes ----------------------------------------------------------------------------------


@rule(Reshape)
def _reshape(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    keep = {"allowzero": 1} if 0 in result.shape else {}  # or a 0 means "the size as it was"
    return sketch.node("Reshape", *inputs, Numbers(result.shape, may_infer=True), **keep)


@rule(Cat)
def _cat(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    return sketch.node("Concat", *inputs, axis=op.dim)


class Walk(NamedTuple):
    """How a view runs along one axis of the array that it reads."""

    start: int
    length: int
    step: int


@rule(CopyView)
def _copy_view(sketch: Sketch, op: Any, inputs: list[str], result: Tensor) -> str:
    """Cut, drop axes, reorder, add axes: in that order, each only where it does something."""
    if 0 in op.view.shape:
        raise sketch.refuse("an index that leaves nothing", "Leave it out.")
    walks, order = _taken_apart(sketch, op.view, op.shape)
    x = _slice(sketch, inputs[0], walks, op.shape)
    kept = [axis for axis in order if axis is not None]
    dropped = tuple(axis for axis in range(len(op.shape)) if axis not in kept)
    if dropped:
        x = sketch.node("Squeeze", x, Numbers(dropped))
    if kept != sorted(kept):
        x = sketch.node("Transpose", x, perm=[sorted(kept).index(axis) for axis in kept])
    new = tuple(n for n, axis in enumerate(order) if axis is None)
    if new:
        x = sketch.node("Unsqueeze", x, Numbers(new))
    return sketch.node("Identity", x) if x == inputs[0] else x


def _taken_apart(
    sketch: Sketch, view: View, shape: tuple[int, ...]
) -> tuple[list[Walk], list[int | None]]:
    """A view as a walk along each axis, and for each axis of the result the axis it comes from.

    The place of an element on the line is a number whose digits are its indices: in a (2, 3, 4)
    array, place 17 is (1, 1, 1). One step along an axis of the view changes one digit.
    """
    strides = View.whole(shape).strides

    def indices(place: int) -> list[int]:
        return [place // step % size for step, size in zip(strides, shape, strict=True)]

    first = indices(view.offset)
    walks = [Walk(start, 1, 1) for start in first]
    order: list[int | None] = []
    for size, stride in zip(view.shape, view.strides, strict=True):
        second = indices(view.offset + stride) if size > 1 else first
        changed = [axis for axis in range(len(shape)) if second[axis] != first[axis]]
        if size > 1 and len(changed) != 1:
            raise sketch.refuse("a view that reads places twice", "Build it by public functions.")
        order.append(changed[0] if changed else None)
        for axis in changed:
            walks[axis] = Walk(first[axis], size, second[axis] - first[axis])
    # An axis of length 1 in the result is one of those that are left, if there are any.
    left = iter([axis for axis in range(len(shape)) if axis not in order])
    return walks, [next(left, None) if axis is None else axis for axis in order]


def _slice(sketch: Sketch, x: str, walks: list[Walk], shape: tuple[int, ...]) -> str:
    """One node for each axis that is cut: for another size an axis may need no cut."""
    for axis, size in enumerate(shape):
        start, length, step = walks[axis]
        end = start + (length - 1) * step + (1 if step > 0 else -1)
        if (start, length, step) == (0, size, 1):
            continue
        if 0 <= end < size:
            ends = Numbers((end,), (end - size,))
        else:  # to the end, or backwards to the beginning
            ends = Numbers((END if step > 0 else -END,))
        starts = Numbers((start,), (start - size,))
        x = sketch.node("Slice", x, starts, ends, Numbers((axis,)), Numbers((step,)))
    return x
