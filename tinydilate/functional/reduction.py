"""Sums, means and maxima over axes.

Definition: with ``dim`` a set of axes, ``out[kept] = sum (or max) over dim of x[kept, dim]``. No
``dim`` means all axes; ``keepdim`` leaves each of them in place with length 1.

Derivative: every number of a sum gets the sum's gradient, ``dx = dout`` repeated along ``dim``:
the adjoint of a sum is broadcasting. Of a maximum the largest number gets all. Where several are
equally large there is no derivative; they share it evenly, as in PyTorch's ``amax``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydilate import buffers, device
from tinydilate.autograd import Op, Tensor, as_tensors, no_grad, public
from tinydilate.device import SIMULATED, Array, CudaArray, MetaArray
from tinydilate.errors import ShapeError
from tinydilate.functional.arithmetic import sum_to_shape
from tinydilate.functional.shaping import View, check_dim, copy_view, integers, permute, reshape
from tinydilate.kernel import Int64Array, cuda, jit, kernel
from tinydilate.threads import share, worth_a_thread

Dims = int | Sequence[int] | None


def check_dims(name: str, dim: Dims, ndim: int) -> tuple[int, ...]:
    """Axes as sorted numbers from 0 on; None or () stand for all of them.

    Raises
    ------
    ShapeError
        If there is no such axis, or one is named twice.
    """
    given = () if dim is None else integers((dim,), name)
    if not given:
        return tuple(range(ndim))
    axes = tuple(sorted(check_dim(name, number, ndim) for number in given))
    if len(set(axes)) < len(axes):
        raise ShapeError(f"{name} expected each axis once; got dim={dim}. Name it once.")
    return axes if ndim else ()


def _reduced(shape: tuple[int, ...], axes: tuple[int, ...], keepdim: bool) -> tuple[int, ...]:
    """Shape after a reduction: the axes gone, or of length 1."""
    if len(axes) == len(shape):  # the common case
        return (1,) * len(shape) if keepdim else ()
    if keepdim:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


# ---- the largest of each row -----------------------------------------------------------------


@kernel
def max_forward(rows: Array) -> Array:
    """(R, S) -> (R,): the largest number of each row; nan if there is one."""
    return np.asarray(np.max(rows, axis=1))


@max_forward.cpu
def max_forward_cpu(rows: Array) -> Array:
    out = buffers.empty((len(rows),), rows.dtype)
    share(_max, len(rows), rows, out, least=worth_a_thread(rows.shape[1]))
    return out


@jit
def _max(start: int, stop: int, rows: Array, out: Array) -> None:
    for r in range(start, stop):
        best = rows[r, 0]
        for s in range(rows.shape[1]):
            number = rows[r, s]
            best = number if number > best or number != number else best  # nan is not itself
        out[r] = best


# On the GPU a block takes a row. Each of its threads goes over some of the row's numbers; then the
# block's findings meet in shared memory, in pairs: half of the threads take one each from the
# other half, then a quarter, and so on.

_THREADS = 8 if SIMULATED else 256  # of a block at most; a power of two
_SHORT = 4 if SIMULATED else 32  # of a block for a short row


def _block_of(rows: CudaArray) -> int:
    """Threads for a row: no more than have something to do."""
    return _SHORT if rows.shape[1] <= 4 * _SHORT else _THREADS


@jit
def _larger(number: float, best: float) -> bool:
    """Whether a number takes the place of the best so far; nan does, and nothing takes nan's."""
    return number > best or (number != number and best == best)


@max_forward.cuda
def max_forward_cuda(rows: CudaArray) -> CudaArray:
    out = device.empty(rows.shape[:1], rows.dtype)
    _max_cuda[len(rows), _block_of(rows)](rows, out, rows.shape[1])
    return out


@cuda.jit(launch_bounds=_THREADS)
def _max_cuda(rows: Array, out: Array, length: np.uint32) -> None:
    row, thread = np.uint32(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x)
    best_of = cuda.shared.array(_THREADS, rows.dtype)
    best = rows[row * length]
    for s in range(thread, length, cuda.blockDim.x):
        number = rows[row * length + np.uint32(s)]
        best = number if _larger(number, best) else best
    best_of[thread] = best
    half = np.uint32(cuda.blockDim.x // 2)
    while half > 0:
        cuda.syncthreads()
        if thread < half and _larger(best_of[thread + half], best_of[thread]):
            best_of[thread] = best_of[thread + half]
        half >>= np.uint32(1)
    if thread == 0:
        out[row] = best_of[0]


@max_forward.meta
def max_forward_meta(rows: MetaArray) -> MetaArray:
    return MetaArray(rows.shape[:1], rows.dtype)


@kernel
def max_backward(grad: Array, rows: Array, out: Array) -> Array:
    """(R,), (R, S), (R,) -> (R, S): the gradient, shared evenly by those equal to the maximum."""
    largest = rows == out[:, None]
    with np.errstate(all="ignore"):  # a nan equals nothing: 0/0, and the gradient is nan as well
        result = grad[:, None] * largest / largest.sum(axis=1, keepdims=True)
    return np.asarray(result, rows.dtype)


@max_backward.cpu
def max_backward_cpu(grad: Array, rows: Array, out: Array) -> Array:
    result = buffers.empty_like(rows)
    share(_max_backward, len(rows), grad, rows, out, result, least=worth_a_thread(rows.shape[1]))
    return result


@jit
def _max_backward(
    start: int, stop: int, grad: Array, rows: Array, out: Array, result: Array
) -> None:
    for r in range(start, stop):
        ties = 0
        for s in range(rows.shape[1]):
            ties += rows[r, s] == out[r]
        for s in range(rows.shape[1]):
            result[r, s] = (grad[r] if rows[r, s] == out[r] else 0 * grad[r]) / ties


@max_backward.cuda
def max_backward_cuda(grad: CudaArray, rows: CudaArray, out: CudaArray) -> CudaArray:
    result = device.empty_like(rows)
    if rows.size:
        shape = len(rows), _block_of(rows)
        _max_backward_cuda[shape](grad, rows, out, result, rows.shape[1])
    return result


@cuda.jit(launch_bounds=_THREADS)
def _max_backward_cuda(
    grad: Array, rows: Array, out: Array, result: Array, length: np.uint32
) -> None:
    row, thread = np.uint32(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x)
    ties_of = cuda.shared.array(_THREADS, np.int32)
    ties = np.int32(0)
    for s in range(thread, length, cuda.blockDim.x):
        ties += np.int32(rows[row * length + np.uint32(s)] == out[row])
    ties_of[thread] = ties
    half = np.uint32(cuda.blockDim.x // 2)
    while half > 0:
        cuda.syncthreads()
        if thread < half:
            ties_of[thread] += ties_of[thread + half]
        half >>= np.uint32(1)
    cuda.syncthreads()
    share = grad[row] / rows.dtype.type(ties_of[0])
    for s in range(thread, length, cuda.blockDim.x):
        n = row * length + np.uint32(s)
        result[n] = share if rows[n] == out[row] else 0 * share  # nan equals nothing: 0 * nan


@max_backward.meta
def max_backward_meta(grad: MetaArray, rows: MetaArray, out: MetaArray) -> MetaArray:
    return rows


# ---- and where it stands ---------------------------------------------------------------------


@kernel
def argmax_forward(rows: Array) -> Array:
    """(R, S) -> (R,) of int64: index of the first of the largest numbers, or of the first nan."""
    return np.asarray(np.argmax(rows, axis=1))


@argmax_forward.cpu
def argmax_forward_cpu(rows: Array) -> Array:
    out = buffers.empty((len(rows),), np.int64)
    share(_argmax, len(rows), rows, out, least=worth_a_thread(rows.shape[1]))
    return out


@jit
def _argmax(start: int, stop: int, rows: Array, out: Array) -> None:
    for r in range(start, stop):
        best = 0
        for s in range(rows.shape[1]):
            number = rows[r, s]
            if number != number:  # nan is not itself
                best = s
                break
            if number > rows[r, best]:
                best = s
        out[r] = best


@argmax_forward.cuda
def argmax_forward_cuda(rows: CudaArray) -> CudaArray:
    out = device.empty(rows.shape[:1], np.int64)
    _argmax_cuda[len(rows), _block_of(rows)](rows, out, rows.shape[1])
    return out


@cuda.jit(launch_bounds=_THREADS)
def _argmax_cuda(rows: Array, out: Int64Array, length: np.uint32) -> None:
    row, thread = np.uint32(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x)
    best_of = cuda.shared.array(_THREADS, np.uint32)
    start = row * length
    best = thread if thread < length else np.uint32(0)
    for s in range(best, length, cuda.blockDim.x):
        if _larger(rows[start + np.uint32(s)], rows[start + best]):
            best = np.uint32(s)
    best_of[thread] = best
    half = np.uint32(cuda.blockDim.x // 2)
    while half > 0:
        cuda.syncthreads()
        if thread < half:
            mine, other = best_of[thread], best_of[thread + half]
            number, best_number = rows[start + other], rows[start + mine]
            # Of equal numbers the first counts, and of several nan.
            equal = not (_larger(number, best_number) or _larger(best_number, number))
            if _larger(number, best_number) or (equal and other < mine):
                best_of[thread] = other
        half >>= np.uint32(1)
    if thread == 0:
        out[row] = best_of[0]


@argmax_forward.meta
def argmax_forward_meta(rows: MetaArray) -> MetaArray:
    return MetaArray(rows.shape[:1], np.int64)


# ---- the operations --------------------------------------------------------------------------


class Sum(Op):
    """Sum over axes."""

    def __init__(self, axes: tuple[int, ...], keepdim: bool) -> None:
        self.axes, self.keepdim = axes, keepdim

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        shape = _reduced(x.shape, self.axes, self.keepdim)
        if self.keepdim or not shape:  # nothing is lost between axes that stay
            return sum_to_shape(x, shape)
        return sum_to_shape(x, _reduced(x.shape, self.axes, keepdim=True)).reshape(shape)

    def backward(self, grad: Any) -> Any:
        # A view whose stride is 0 along the summed axes repeats the gradient there.
        strides = list(View.whole(_reduced(self.shape, self.axes, keepdim=True)).strides)
        for axis in self.axes:
            strides[axis] = 0
        return copy_view(grad, View(self.shape, tuple(strides)))


class MaxOfRows(Op):
    """Largest number of each row."""

    def forward(self, rows: Any) -> Any:
        self.rows = rows
        self.out = max_forward(rows)
        return self.out

    def backward(self, grad: Any) -> Any:
        return max_backward(grad, self.rows, self.out)


@public
def sum(input: Any, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Sum over axes.

    Parameters
    ----------
    input : Tensor or array
    dim : int or tuple of int, optional
        The axes to sum over; negative ones count from the last. All of them by default.
    keepdim : bool
        Whether the axes stay, with length 1.

    Raises
    ------
    ShapeError
        If there is no such axis, or one is named twice.
    """
    (x,) = as_tensors(input)
    return Sum(check_dims("sum", dim, x.ndim), keepdim)(x)


@public
def mean(input: Any, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Mean over axes, the sum divided by the number of elements; nan where there are none.

    Takes the arguments of `sum`.
    """
    (x,) = as_tensors(input)
    axes = check_dims("mean", dim, x.ndim)
    count = math.prod(x.shape[axis] for axis in axes)
    return Sum(axes, keepdim)(x) / count  # type: ignore[no-any-return]


@public
def max(input: Any, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Largest number over axes, the values only; `argmax` gives their positions.

    It is ``torch.amax``, not ``torch.max``: ``v, i = a.max(dim=1)`` would unpack the rows of the
    result, not values and indices. Takes the arguments of `sum`; nan where there is one.
    Numbers that are equally large share the gradient evenly.

    Raises
    ------
    ShapeError
        If there is no such axis, one is named twice, or there is nothing to choose from.
    """
    (x,) = as_tensors(input)
    axes = check_dims("max", dim, x.ndim)
    return reshape(MaxOfRows()(_rows("max", x, axes)), _reduced(x.shape, axes, keepdim))  # type: ignore[no-any-return]


@public
def argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Index of the largest number along an axis, the first of several; int64, without a gradient.

    Parameters
    ----------
    input : Tensor or array
    dim : int, optional
        The axis; a negative one counts from the last. By default the index counts through the
        flattened input.
    keepdim : bool
        Whether the axis stays, with length 1.

    Raises
    ------
    ShapeError
        If there is no such axis, or there is nothing to choose from.
    """
    (x,) = as_tensors(input)
    axes = check_dims("argmax", dim, x.ndim) if dim is None else (check_dim("argmax", dim, x.ndim),)
    with no_grad():
        rows = _rows("argmax", x, axes if x.ndim else ())
    return Tensor(argmax_forward(rows.data).reshape(_reduced(x.shape, axes, keepdim)))


def _rows(name: str, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Any shape -> (R, S): the axes to reduce joined as S, the others before them as R."""
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    rows = math.prod(x.shape[axis] for axis in kept)
    size = math.prod(x.shape[axis] for axis in axes)
    if rows and not size:
        raise ShapeError(
            f"{name} expected at least one number to choose from; got shape {x.shape}, empty along "
            f"the axes {axes}. A sum of nothing is 0, but a maximum of nothing is nothing."
        )
    ordered = x if (*kept, *axes) == tuple(range(x.ndim)) else permute(x, (*kept, *axes))
    return reshape(ordered, (rows, size))  # type: ignore[no-any-return]
