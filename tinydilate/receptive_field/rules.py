"""What each op reads: one rule for each class of op.

A rule answers one question. Given the op, the number of one of its inputs, and which axes of that
input are the image's rows and columns: how does the result read it along the rows, how along the
columns, and which axes of the result are rows and columns? The answer is a `Reading`, or a text
that says why there is none, such as for a mean over the whole image.

An op of your own takes part once it has a rule:

    @rule(LeakyReLU)
    def leaky_relu(op, number, axes):
        return pointwise(axes)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from tinydilate.autograd import Cast, Move, Op
from tinydilate.field import Reader, Resize, Slide, sliding, spreading
from tinydilate.functional.arithmetic import Add, Div, Exp, Log, Mul, Neg, Pow, Sub, broadcast_shape
from tinydilate.functional.convolution import Convolution
from tinydilate.functional.dropping import Dropout
from tinydilate.functional.padding import Pad
from tinydilate.functional.pooling import AvgPool, MaxPool
from tinydilate.functional.products import MatMul
from tinydilate.functional.rectifier import ReLU
from tinydilate.functional.reduction import MaxOfRows, Sum
from tinydilate.functional.resizing import Axis, ResizeBilinear, ResizeNearest
from tinydilate.functional.shaping import Cat, CopyView, Reshape
from tinydilate.functional.softmax_loss import CrossEntropy, LogSoftmax, Softmax
from tinydilate.functional.transposed import TransposedConvolution
from tinydilate.functional.unfolding import Fold, Unfold
from tinydilate.window import Pair, Window


class Along(NamedTuple):
    """How an op reads along one axis.

    Attributes
    ----------
    reader : Reader
    edge : {"constant", "reflect", "replicate"}
        What a position beyond the input shows, as in `tinydilate.functional.pad`: nothing of the
        image, the image mirrored, or its edge.
    """

    reader: Reader
    edge: str = "constant"


class Reading(NamedTuple):
    """How the result of an op reads one of the op's inputs.

    Attributes
    ----------
    rows, columns : Along
    axes : (int, int)
        Which axes of the result are rows and columns.
    """

    rows: Along
    columns: Along
    axes: Pair


Rule = Callable[[Any, int, Pair], Reading | str]
RULES: dict[type[Op], Rule] = {}

EACH = Along(Slide(1, 1, 0))  # output i reads input i
FIRST = Along(Slide(1, 0, 0))  # every output reads input 0: broadcasting


def rule(*kinds: type[Op]) -> Callable[[Rule], Rule]:
    """Register what ops of these classes read."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


def pointwise(axes: Pair) -> Reading:
    """Each place reads that place alone."""
    return Reading(EACH, EACH, axes)


@rule(ReLU, Neg, Exp, Log, Dropout, Cast, Move)
def _one_by_one(op: Any, number: int, axes: Pair) -> Reading:
    return pointwise(axes)


@rule(Add, Sub, Mul, Div, Pow)
def _broadcast(op: Any, number: int, axes: Pair) -> Reading:
    shapes = [tensor.shape for tensor in op.inputs]
    shape = broadcast_shape(*shapes)
    more = len(shape) - len(shapes[number])  # axes that broadcasting puts in front
    after = axes[0] + more, axes[1] + more
    rows, columns = (
        EACH if shapes[number][old] == shape[new] else FIRST
        for old, new in zip(axes, after, strict=True)
    )
    return Reading(rows, columns, after)


# ---- windows ---------------------------------------------------------------------------------


def _last_two(op: Any, axes: Pair, rows: Along, columns: Along) -> Reading | str:
    """A reading of ops that take the last two axes for rows and columns."""
    last = len(op.inputs[0].shape)
    if axes != (last - 2, last - 1):
        return (
            f"{type(op).__name__} slides over its last two axes; here the image's rows and columns "
            f"are axes {axes[0]} and {axes[1]}"
        )
    return Reading(rows, columns, axes)


def _slides(op: Any, axes: Pair, window: Window) -> Reading | str:
    return _last_two(op, axes, Along(sliding(window, 0)), Along(sliding(window, 1)))


@rule(Convolution)
def _convolution(op: Any, number: int, axes: Pair) -> Reading | str:
    if number:
        return "the weights of a convolution are computed from the image, which all outputs see"
    return _slides(op, axes, op.window)


@rule(MaxPool)
def _max_pool(op: Any, number: int, axes: Pair) -> Reading | str:
    return _slides(op, axes, op.window)


@rule(AvgPool)
def _avg_pool(op: Any, number: int, axes: Pair) -> Reading | str:
    return _slides(op, axes, op.options[0])


@rule(TransposedConvolution)
def _transposed(op: Any, number: int, axes: Pair) -> Reading | str:
    if number:
        return "the weights of a convolution are computed from the image, which all outputs see"
    rows, columns = Along(spreading(op.window, 0)), Along(spreading(op.window, 1))
    return _last_two(op, axes, rows, columns)


# ---- borders, and other sizes ----------------------------------------------------------------


@rule(Pad)
def _pad(op: Any, number: int, axes: Pair) -> Reading:
    first = len(op.inputs[0].shape) - len(op.borders)  # the first axis with a border

    def along(axis: int) -> Along:
        return Along(Slide(1, 1, op.borders[axis - first][0]), op.mode) if axis >= first else EACH

    return Reading(along(axes[0]), along(axes[1]), axes)


@rule(ResizeNearest, ResizeBilinear)
def _resize(op: Any, number: int, axes: Pair) -> Reading | str:
    linear = isinstance(op, ResizeBilinear)
    return _last_two(op, axes, _resizing(op.rows, linear), _resizing(op.columns, linear))


def _resizing(axis: Axis, linear: bool) -> Along:
    """Positions as exact fractions; a factor like 0.1 is taken for 1/10."""
    if axis.align_corners:
        scale = Fraction(axis.size - 1, max(axis.output - 1, 1))
    elif axis.scale is None:
        scale = Fraction(axis.size, axis.output)
    else:
        scale = 1 / Fraction(axis.scale).limit_denominator(1000)
    return Along(Resize(scale, linear, axis.align_corners), "replicate")


# ---- axes that are moved, cut, joined or summed ----------------------------------------------


@rule(CopyView)
def _view(op: Any, number: int, axes: Pair) -> Reading | str:
    rows, columns = (_axis_in_view(op.inputs[0].shape, op.view, axis) for axis in axes)
    if rows is None or columns is None:
        return "an index takes single rows or columns out of the image, so no place is left"
    return Reading(rows[1], columns[1], (rows[0], columns[0]))


def _axis_in_view(shape: tuple[int, ...], view: Any, axis: int) -> tuple[int, Along] | None:
    """Which axis of a view shows an axis of the array, and how: (axis, start and step)."""
    line = math.prod(shape[axis + 1 :])  # elements from one position of the axis to the next
    start = view.offset // line % shape[axis] if line * shape[axis] else 0  # no pixels, no start
    for place, (size, stride) in enumerate(zip(view.shape, view.strides, strict=True)):
        if size > 1 and line <= abs(stride) < line * shape[axis]:
            return place, Along(Slide(1, stride // line, -start))
    if len(view.shape) == len(shape) and view.shape[axis] <= 1:  # cut down to one position
        return axis, Along(Slide(1, 1, -start))
    return None


@rule(Reshape)
def _reshape(op: Any, number: int, axes: Pair) -> Reading | str:
    old, new = op.inputs[0].shape, op.shape
    rows, columns = (_axis_after_reshape(old, new, axis) for axis in axes)
    if rows is None or columns is None:
        return "a reshape joins rows and columns with other axes, so no place is left"
    return Reading(EACH, EACH, (rows, columns))


def _axis_after_reshape(old: tuple[int, ...], new: tuple[int, ...], axis: int) -> int | None:
    """The axis of the new shape that has the old one's size and as many elements behind it."""
    behind = math.prod(old[axis + 1 :])
    for place in reversed(range(len(new))):
        if new[place] == old[axis] and math.prod(new[place + 1 :]) == behind:
            return place
    return None


@rule(Cat)
def _cat(op: Any, number: int, axes: Pair) -> Reading | str:
    if op.dim in axes:
        return "images are joined side by side, so the field depends on which of them one is in"
    return pointwise(axes)


@rule(Sum)
def _sum(op: Any, number: int, axes: Pair) -> Reading | str:
    if set(op.axes) & set(axes):
        return "a sum over rows or columns looks at the whole image"
    if op.keepdim:
        return pointwise(axes)
    before = [sum(gone < axis for gone in op.axes) for axis in axes]
    return pointwise((axes[0] - before[0], axes[1] - before[1]))


@rule(Softmax, LogSoftmax)
def _softmax(op: Any, number: int, axes: Pair) -> Reading | str:
    if op.axis % len(op.inputs[0].shape) in axes:
        return "a softmax along rows or columns looks at all of them"
    return pointwise(axes)


@rule(MatMul, MaxOfRows, CrossEntropy, Unfold, Fold)
def _no_place(op: Any, number: int, axes: Pair) -> str:
    return f"{type(op).__name__} looks at more than windows of the image"
