"""Reshaping, reordering, cutting and joining tensors: no number changes, only its place.

Definition: an array is a line of numbers and a rule that says where on the line each element
stands. Element ``(i, j, k)`` of a C-contiguous (A, B, C) array stands at ``i*B*C + j*C + k``: each
axis has a *stride*, the way from one index to the next, here (B*C, C, 1). Permuting axes permutes
the strides; a slice ``start:stop:step`` moves the beginning by ``start`` strides and multiplies the
stride by ``step``. So every permutation and every basic index is one rule, a `View`:

    out[i, j, ...] = line[offset + i*strides[0] + j*strides[1] + ...]

and one kernel, a strided copy. NumPy and PyTorch return such views without copying and pay for it
with arrays whose memory lies in any order; here every tensor is C-contiguous, so that a kernel
meets one layout only. ``reshape`` changes no place on the line and shares the memory.

Derivative: where a number went, its gradient comes from. The adjoint of the copy writes each
number back to the place that it was read from, and adds where one place was read several times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import index as as_integer
from typing import Any, NamedTuple

import numpy as np

from tinydilate import buffers, device
from tinydilate.autograd import Op, Tensor, as_tensors, public
from tinydilate.device import Array, CudaArray, MetaArray, cover
from tinydilate.errors import PositionError, ShapeError
from tinydilate.kernel import Int32Array, cuda, jit, kernel, place_of
from tinydilate.threads import share, worth_a_thread


class View(NamedTuple):
    """Where each element of an array is read on a line of numbers.

    Attributes
    ----------
    shape : tuple of int
        Sizes of the array's axes.
    strides : tuple of int
        Elements (not bytes) from one index to the next, for each axis; 0 repeats, negative
        strides read backwards.
    offset : int
        Where the first element stands.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @classmethod
    def whole(cls, shape: Sequence[int]) -> View:
        """The C-contiguous array itself: the last axis runs fastest."""
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return cls(tuple(shape), strides)

    def permuted(self, dims: Sequence[int]) -> View:
        """Axis ``dims[n]`` becomes axis n."""
        return View(
            tuple(self.shape[dim] for dim in dims),
            tuple(self.strides[dim] for dim in dims),
            self.offset,
        )

    def sliced(self, dim: int, start: int, size: int, step: int = 1) -> View:
        """Along one axis, ``size`` elements from ``start`` on, ``step`` apart."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + start * strides[dim]
        shape[dim], strides[dim] = size, strides[dim] * step
        return View(tuple(shape), tuple(strides), offset)

    def places(self) -> Array:
        """Place on the line of every element, int64, of the view's shape."""
        places = np.array(self.offset, np.int64)
        for size, stride in zip(self.shape, self.strides, strict=True):
            places = places[..., None] + np.arange(size) * stride
        return places

    def simplified(self) -> View:
        """The same places in the same order, in as few axes as will do, at least one."""
        shape, strides = [1], [0]
        for size, stride in zip(self.shape, self.strides, strict=True):
            if size == 1:
                continue
            if shape[-1] == 1 or strides[-1] == size * stride:  # runs on where the axis before ends
                shape[-1], strides[-1] = shape[-1] * size, stride
            else:
                shape.append(size)
                strides.append(stride)
        return View(tuple(shape), tuple(strides), self.offset)


# ---- copy through a view ---------------------------------------------------------------------


@kernel
def copy_view(x: Array, view: View) -> Array:
    """Any shape -> ``view.shape``: read the numbers of ``x`` where the view says."""
    return x.reshape(-1)[view.places()]


@copy_view.cpu
def copy_view_cpu(x: Array, view: View) -> Array:
    out = buffers.empty(view.shape, x.dtype)
    if out.size:
        starts, length, stride = rows_of(view)
        least = worth_a_thread(length)
        share(_copy_rows, len(starts), x.reshape(-1), out.reshape(-1), starts, stride, least=least)
    return out


def rows_of(view: View) -> tuple[Array, int, int]:
    """A view, row by row: where each row starts on the line, its length, and its stride."""
    simple = view.simplified()
    starts = View(simple.shape[:-1], simple.strides[:-1], simple.offset).places()
    return starts.reshape(-1), simple.shape[-1], simple.strides[-1]


@jit
def _copy_rows(start: int, stop: int, x: Array, out: Array, starts: Array, stride: int) -> None:
    length = len(out) // len(starts)
    for row in range(start, stop):
        first, target = starts[row], out[row * length : (row + 1) * length]
        if stride == 1:  # said apart: the common case, which compiles to a block copy
            source = x[first : first + length]
            for n in range(length):
                target[n] = source[n]
        else:
            for n in range(length):
                target[n] = x[first + n * stride]


@copy_view.cuda
def copy_view_cuda(x: CudaArray, view: View) -> CudaArray:
    out = device.empty(view.shape, x.dtype)
    _copy_view_cuda[cover(out.size)](x, out, *_table_of(view))
    return out


def _table_of(view: View) -> tuple[int, int, CudaArray]:
    """A view as a kernel takes it: the offset, the number of axes, and `place_of`'s table."""
    simple = view.simplified()
    return view.offset, len(simple.shape), device.constants(*simple.shape, *simple.strides)


@cuda.jit
def _copy_view_cuda(x: Array, out: Array, offset: int, axes: int, table: Int32Array) -> None:
    n = np.uint32(cuda.grid(1))
    if n < out.size:
        out[n] = x[np.uint32(offset + place_of(n, 0, axes, table))]


@copy_view.meta
def copy_view_meta(x: MetaArray, view: View) -> MetaArray:
    return MetaArray(view.shape, x.dtype)


# ---- its adjoint -----------------------------------------------------------------------------


@kernel
def place_view(grad: Array, view: View, shape: tuple[int, ...]) -> Array:
    """``view.shape`` -> ``shape``: each number added where `copy_view` read it, zero elsewhere."""
    result = np.zeros(math.prod(shape), grad.dtype)
    np.add.at(result, view.places(), grad)
    return result.reshape(shape)


@place_view.cpu
def place_view_cpu(grad: Array, view: View, shape: tuple[int, ...]) -> Array:
    result = buffers.zeros(shape, grad.dtype)
    if grad.size:  # on one thread, since two rows of a view may read the same numbers
        starts, _, stride = rows_of(view)
        _place_rows(grad.reshape(-1), result.reshape(-1), starts, stride)
    return result


@jit
def _place_rows(grad: Array, result: Array, starts: Array, stride: int) -> None:
    length = len(grad) // len(starts)
    for row in range(len(starts)):
        first, at = starts[row], row * length
        for n in range(length):
            result[first + n * stride] += grad[at + n]


@place_view.cuda
def place_view_cuda(grad: CudaArray, view: View, shape: tuple[int, ...]) -> CudaArray:
    result = device.zeros(shape, grad.dtype)
    # Threads that added to one place at the same time would lose something. The views that slices
    # and permutations make read no place twice; any other is left to a single thread.
    grid = cover(grad.size) if reads_no_place_twice(view) else (min(1, grad.size), 1)
    _place_view_cuda[grid](grad, result, *_table_of(view))
    return result


def reads_no_place_twice(view: View) -> bool:
    """Whether each axis steps beyond all that the finer ones reach; enough, though not needed."""
    reach = 0
    for stride, size in sorted(
        (abs(step), n) for step, n in zip(view.strides, view.shape, strict=True)
    ):
        if size > 1:
            if stride <= reach:
                return False
            reach += stride * (size - 1)
    return True


@cuda.jit
def _place_view_cuda(grad: Array, result: Array, offset: int, axes: int, table: Int32Array) -> None:
    for n in range(cuda.grid(1), grad.size, cuda.gridsize(1)):
        result[np.uint32(offset + place_of(n, 0, axes, table))] += grad[np.uint32(n)]


@place_view.meta
def place_view_meta(grad: MetaArray, view: View, shape: tuple[int, ...]) -> MetaArray:
    return MetaArray(shape, grad.dtype)


# ---- joining ---------------------------------------------------------------------------------


@kernel
def cat_forward(arrays: list[Array], dim: int) -> Array:
    """Arrays of shape (..., C1, ...), (..., C2, ...) -> (..., C1 + C2, ...) along axis ``dim``."""
    return np.concatenate(arrays, axis=dim)


@cat_forward.cpu
def cat_forward_cpu(arrays: list[Array], dim: int) -> Array:
    shape = joined_shape(arrays, dim)
    out = buffers.empty(shape, arrays[0].dtype)
    rows = out.reshape(math.prod(shape[:dim]), math.prod(shape[dim:]))
    at = 0
    for array in arrays:
        part = array.reshape(len(rows), math.prod(array.shape[dim:]))
        least = worth_a_thread(part.shape[1])
        share(_copy_columns, len(rows), part, rows, at, least=least)
        at += part.shape[1]
    return out


@jit
def _copy_columns(start: int, stop: int, part: Array, rows: Array, at: int) -> None:
    """Rows [start, stop) of ``part`` to columns ``at`` and on of ``rows``."""
    for row in range(start, stop):
        source, target = part[row], rows[row, at : at + part.shape[1]]
        for n in range(len(source)):
            target[n] = source[n]


@cat_forward.cuda
def cat_forward_cuda(arrays: list[CudaArray], dim: int) -> CudaArray:
    shape = joined_shape(arrays, dim)
    out = device.empty(shape, arrays[0].dtype)
    columns, at = math.prod(shape[dim:]), 0
    for array in arrays:
        part = math.prod(array.shape[dim:])
        _copy_columns_cuda[cover(array.size)](array, out, part, columns, at)
        at += part
    return out


@cuda.jit
def _copy_columns_cuda(
    part: Array, rows: Array, width: np.uint32, columns: np.uint32, at: np.uint32
) -> None:
    """An array of rows of ``width`` to columns ``at`` and on of ``rows``."""
    n = np.uint32(cuda.grid(1))
    if n < part.size:
        rows[n // width * columns + at + n % width] = part[n]


@cat_forward.meta
def cat_forward_meta(arrays: list[MetaArray], dim: int) -> MetaArray:
    return MetaArray(joined_shape(arrays, dim), arrays[0].dtype)


def joined_shape(arrays: Sequence[Any], dim: int) -> tuple[int, ...]:
    """Shape of arrays joined along axis ``dim``."""
    shape = list(arrays[0].shape)
    shape[dim] = sum(array.shape[dim] for array in arrays)
    return tuple(shape)


# ---- the operations --------------------------------------------------------------------------


class Reshape(Op):
    """The same numbers in the same order, in other axes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x: Any) -> Any:
        self.before = x.shape
        return x.reshape(self.shape)

    def backward(self, grad: Any) -> Any:
        return grad.reshape(self.before)


class CopyView(Op):
    """Copy through a view."""

    def __init__(self, view: View) -> None:
        self.view = view

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        return copy_view(x, self.view)

    def backward(self, grad: Any) -> Any:
        return place_view(grad, self.view, self.shape)


class Cat(Op):
    """Tensors joined along an axis."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, *arrays: Any) -> Any:
        self.sizes = [array.shape[self.dim] for array in arrays]
        return cat_forward(list(arrays), self.dim)

    def backward(self, grad: Any) -> Any:
        whole, start, gradients = View.whole(grad.shape), 0, []
        for size in self.sizes:
            gradients.append(copy_view(grad, whole.sliced(self.dim, start, size)))
            start += size
        return tuple(gradients)


# ---- reshape and flatten ---------------------------------------------------------------------


@public
def reshape(input: Any, *shape: Any) -> Tensor:
    """The same numbers in the same order, in other axes; shares the input's memory.

    Parameters
    ----------
    input : Tensor or array
    *shape : int, or one tuple
        The new sizes. One of them may be -1: it becomes what the others leave.

    Raises
    ------
    ShapeError
        If the sizes do not multiply to the number of elements, or -1 stands for no one size.
    """
    (x,) = as_tensors(input)
    return Reshape(_full_shape(x.shape, integers(shape, "reshape")))(x)


def _full_shape(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """``new`` with its -1, if any, replaced by what the other sizes leave."""
    elements, known = math.prod(old), math.prod(size for size in new if size != -1)
    if any(size < -1 for size in new) or new.count(-1) > 1:
        raise ShapeError(
            f"reshape expected sizes of at least 0, at most one of them -1; got {new}. "
            "Write the sizes out, and -1 for the one that follows from the others."
        )
    if -1 not in new and known == elements:
        return new
    if -1 in new and known and elements % known == 0:
        return tuple(elements // known if size == -1 else size for size in new)
    if -1 in new and known == elements == 0:
        raise ShapeError(
            f"reshape expected sizes that settle -1; got {new} for an array without elements, "
            "where any size would do. Write the size instead of -1."
        )
    raise ShapeError(
        f"reshape expected sizes for {elements} elements (shape {old}); got {new}, which "
        f"hold {'a multiple of ' if -1 in new else ''}{known}. The product of the sizes must be "
        "the same."
    )


@public
def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Join the axes from ``start_dim`` to ``end_dim``, both included, into one.

    Parameters
    ----------
    input : Tensor or array
    start_dim, end_dim : int
        Negative axes count from the last.

    Raises
    ------
    ShapeError
        If there is no such axis, or ``start_dim`` comes after ``end_dim``.
    """
    (x,) = as_tensors(input)
    first, last = check_dim("flatten", start_dim, x.ndim), check_dim("flatten", end_dim, x.ndim)
    if first > last:
        raise ShapeError(
            f"flatten expected start_dim before end_dim; got {start_dim} and {end_dim} for "
            f"{x.ndim} axes. Exchange them."
        )
    joined = math.prod(x.shape[first : last + 1])
    return Reshape((*x.shape[:first], joined, *x.shape[last + 1 :]))(x)


# ---- permute and transpose -------------------------------------------------------------------


@public
def permute(input: Any, *dims: Any) -> Tensor:
    """Reorder the axes: axis ``dims[n]`` of the input becomes axis n.

    Parameters
    ----------
    input : Tensor or array
    *dims : int, or one tuple
        Each axis once; negative axes count from the last.

    Raises
    ------
    ShapeError
        If an axis is missing or named twice.
    """
    (x,) = as_tensors(input)
    given = integers(dims, "permute")
    order = tuple(check_dim("permute", dim, x.ndim) for dim in given)
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(
            f"permute expected each of {x.ndim} axes once; got {given} for shape {x.shape}."
            f" To exchange two axes, use transpose."
        )
    return CopyView(View.whole(x.shape).permuted(order))(x)


@public
def transpose(input: Any, dim0: int, dim1: int) -> Tensor:
    """Exchange two axes.

    Parameters
    ----------
    input : Tensor or array
    dim0, dim1 : int
        Negative axes count from the last.

    Raises
    ------
    ShapeError
        If there is no such axis.
    """
    (x,) = as_tensors(input)
    order = list(range(x.ndim))
    a, b = check_dim("transpose", dim0, x.ndim), check_dim("transpose", dim1, x.ndim)
    if order:
        order[a], order[b] = b, a
    return CopyView(View.whole(x.shape).permuted(order))(x)


# ---- cat -------------------------------------------------------------------------------------


@public
def cat(tensors: Iterable[Any], dim: int = 0) -> Tensor:
    """Join tensors along an axis that they have.

    Parameters
    ----------
    tensors : sequence of Tensor or array
        Equal in shape, except along ``dim``.
    dim : int
        Negative axes count from the last.

    Raises
    ------
    ShapeError
        If there are no tensors, or their other axes differ.
    """
    if isinstance(tensors, Tensor | np.ndarray):
        raise ShapeError(
            f"cat expected a list of tensors; got one of shape {tensors.shape}. Write cat([a, b])."
        )
    parts = as_tensors(*tensors)
    if not parts or parts[0].ndim == 0:
        raise ShapeError(
            f"cat expected at least one tensor, with axes; got {len(parts)} of them"
            f"{', the first a single number' if parts else ''}. Reshape numbers to (1,)."
        )
    axis = check_dim("cat", dim, parts[0].ndim)
    for number, part in enumerate(parts):
        rest = [(*t.shape[:axis], *t.shape[axis + 1 :]) for t in (parts[0], part)]
        if part.ndim != parts[0].ndim or rest[0] != rest[1]:
            raise ShapeError(
                f"cat expected shapes that differ along axis {axis} only; got {parts[0].shape} "
                f"and, as tensor {number}, {part.shape}. Reshape or cut one of them."
            )
    return Cat(axis)(*parts)


# ---- indexing --------------------------------------------------------------------------------


@public
def getitem(input: Any, index: Any) -> Tensor:
    """``input[index]`` with integers, slices, None and ``...``; a copy, unlike NumPy's view.

    Parameters
    ----------
    input : Tensor or array
    index : int, slice, None, Ellipsis, or a tuple of them
        Slices may have negative steps.

    Raises
    ------
    PositionError
        If an integer lies beyond the end of its axis.
    ShapeError
        If there are more indices than axes, or an index is an array or a list.
    """
    (x,) = as_tensors(input)
    return CopyView(_indexed(View.whole(x.shape), index))(x)


def _indexed(view: View, index: Any) -> View:
    """The view that basic indexing makes of another."""
    parts = list(index) if isinstance(index, tuple) else [index]
    for part in parts:
        _check_index(part)
    used = sum(part is not None and part is not Ellipsis for part in parts)
    dots = [n for n, part in enumerate(parts) if part is Ellipsis]
    if used > len(view.shape) or len(dots) > 1:
        raise ShapeError(
            f"expected at most {len(view.shape)} indices and one ... for shape {view.shape}; got "
            f"{used} indices{f' and ... {len(dots)} times' if len(dots) > 1 else ''}. "
            "Leave some out; None adds an axis."
        )
    at = dots[0] if dots else len(parts)  # ... stands for all the axes that no index names
    parts[at : at + 1] = [slice(None)] * (len(view.shape) - used)

    shape: list[int] = []
    strides: list[int] = []
    offset, axis = view.offset, 0
    for part in parts:
        if part is None:  # a new axis of length 1
            shape.append(1)
            strides.append(0)
            continue
        size, stride = view.shape[axis], view.strides[axis]
        axis += 1
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            shape.append(len(range(start, stop, step)))
            strides.append(stride * step)
            offset += stride * start
            continue
        position = as_integer(part)
        if not -size <= position < size:
            raise PositionError(
                f"expected an index from {-size} to {size - 1} along axis {axis - 1} of shape "
                f"{view.shape}; got {position}."
                if size
                else f"expected an axis with elements to index; got shape {view.shape}, whose "
                f"axis {axis - 1} has none."
            )
        offset += stride * (position % size)
    return View(tuple(shape), tuple(strides), offset)


def _check_index(part: Any) -> None:
    """Refuse all but integers, slices of integers, None and ``...``."""
    if part is None or part is Ellipsis:
        return
    numbers = (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)
    for number in numbers:
        whole = hasattr(number, "__index__") and not isinstance(number, bool | np.ndarray)
        if not whole and not (isinstance(part, slice) and number is None):
            raise ShapeError(
                "expected an index of integers, slices, None and ...; got "
                f"{type(number).__name__}. Indexing by arrays, lists and masks is for NumPy: "
                "index .numpy(), or multiply by a mask."
            )
    if isinstance(part, slice) and part.step is not None and as_integer(part.step) == 0:
        raise ShapeError("expected a slice with a step other than 0; got 0. Leave the step out.")


# ---- reading axes ----------------------------------------------------------------------------


def check_dim(name: str, dim: Any, ndim: int) -> int:
    """An axis as a number from 0 on; negative ones count from the last.

    A single number (no axes) is taken for one axis of length 1, as PyTorch does.
    """
    axes = max(1, ndim)
    if isinstance(dim, tuple | list):
        raise ShapeError(f"{name} expected one axis; got {dim}. Give one integer.")
    (number,) = integers((dim,), name)
    if not -axes <= number < axes:
        raise ShapeError(
            f"{name} expected an axis from {-axes} to {axes - 1}, since the tensor has {ndim}; "
            f"got {number}."
        )
    return number % axes


def integers(values: tuple[Any, ...], name: str) -> tuple[int, ...]:
    """Read integers given one by one or as one tuple or list."""
    if len(values) == 1 and isinstance(values[0], tuple | list):
        values = tuple(values[0])
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError
        return tuple(as_integer(value) for value in values)
    except TypeError:
        raise ShapeError(
            f"{name} expected integers; got {', '.join(map(repr, values))}. "
            "Axes and sizes are whole numbers."
        ) from None
