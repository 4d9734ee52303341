"""Matrix products, and the fully connected layer that is one of them.

Definition: ``c[m, n] = sum over k of a[m, k] * b[k, n]``, for (M, K) and (K, N) matrices. Axes
before the last two are batches of matrices and broadcast; a vector is a matrix with one row on the
left, with one column on the right, and the axis of length 1 is dropped from the result.

Derivative: ``c[m, n]`` grows with ``a[m, k]`` as fast as b[k, n] says, so ``da = dc @ b.T``, and
likewise ``db = a.T @ dc``: two more matrix products. A matrix that was repeated over the batch
gets the sum.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydilate import buffers, device, gemm, gpu_gemm
from tinydilate.autograd import Op, Tensor, as_tensors, public
from tinydilate.device import SIMULATED, Array, CudaArray, MetaArray
from tinydilate.errors import ShapeError
from tinydilate.functional.arithmetic import broadcast_shape, unbroadcast
from tinydilate.functional.shaping import View, copy_view, transpose
from tinydilate.kernel import Int32Array, cuda, jit, kernel, place_of
from tinydilate.threads import share

_LEAST = 500_000  # multiply-adds worth a thread

# ---- c = a @ b:  da = dc @ b.T,  db = a.T @ dc -----------------------------------------------


@kernel
def matmul_forward(a: Array, b: Array) -> Array:
    """(..., M, K), (..., K, N) -> (..., M, N): a product for each matrix of the batch."""
    return np.asarray(np.matmul(a, b))


@matmul_forward.cpu
def matmul_forward_cpu(a: Array, b: Array) -> Array:
    if a.dtype != np.float32:  # the register tiles are float32
        return matmul_forward_loops(a, b)
    out = buffers.zeros(product_shape(a.shape, b.shape), a.dtype)
    if out.size and a.shape[-1]:
        for left, right, result in _pairs(a, b, out):
            result[:] = gemm.matmul(left, right)
    return out


@matmul_forward.variant("cpu:loops")
def matmul_forward_loops(a: Array, b: Array) -> Array:
    out = buffers.zeros(product_shape(a.shape, b.shape), a.dtype)
    least = 1 + _LEAST // (1 + b.shape[-2] * b.shape[-1])
    for left, right, result in _pairs(a, b, out):
        share(_matmul, len(left), left, right, result, least=least)
    return out


def product_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the product of two batches of matrices."""
    return (*broadcast_shape(a[:-2], b[:-2]), a[-2], b[-1])


def _pairs(a: Array, b: Array, out: Array) -> list[tuple[Array, Array, Array]]:
    """Matrix of ``a``, matrix of ``b`` and the place of their product, all through the batch."""
    batch, stacks = out.shape[:-2], []
    for array in (a, b, out):
        matrices = array.reshape(math.prod(array.shape[:-2]), *array.shape[-2:])
        numbers = np.arange(len(matrices)).reshape(array.shape[:-2])
        stacks.append([matrices[n] for n in np.broadcast_to(numbers, batch).reshape(-1)])
    return list(zip(*stacks, strict=True))


@jit
def _matmul(start: int, stop: int, a: Array, b: Array, out: Array) -> None:
    """Rows [start, stop): each is a sum of rows of b, so that the inner loop runs along memory."""
    for m in range(start, stop):
        for k in range(a.shape[1]):
            for n in range(b.shape[1]):
                out[m, n] += a[m, k] * b[k, n]


@matmul_forward.variant("cuda:readable")
def matmul_forward_readable(a: CudaArray, b: CudaArray) -> CudaArray:
    (rows, inner), columns = a.shape[-2:], b.shape[-1]
    out = device.empty(product_shape(a.shape, b.shape), a.dtype)
    batch = out.shape[:-2] or (1,)
    table = device.constants(*batch, *_matrix_steps(a, batch), *_matrix_steps(b, batch))
    across, down = -(-columns // _SIDE), -(-rows // _SIDE)
    blocks = math.prod(batch) * down * across
    _matmul_cuda[blocks, (_SIDE, _SIDE)](a, b, out, rows, inner, columns, len(batch), table)
    return out


def _matrix_steps(array: CudaArray, batch: tuple[int, ...]) -> list[int]:
    """Matrices of ``array`` from one index of each batch axis to the next; 0 where it repeats."""
    sizes = (1,) * (len(batch) - (array.ndim - 2)) + array.shape[:-2]
    return [0 if size == 1 else math.prod(sizes[axis + 1 :]) for axis, size in enumerate(sizes)]


# The textbook's product in tiles. A thread that computed one number of the result by itself would
# read a row of `a` and a column of `b` from the GPU's memory, two numbers for each multiply-add.
# But the threads of a block have their rows and columns in common. So the block first copies a tile
# of `a` and a tile of `b` into shared memory, each thread one number of both, and then every thread
# reads from there. A number that was copied is used _SIDE times, so the traffic is 1/_SIDE of what
# it was. gpu_gemm.py goes on from here.

_SIDE = 4 if SIMULATED else 16  # of a square tile


@cuda.jit(launch_bounds=_SIDE * _SIDE)
def _matmul_cuda(
    a: Array,
    b: Array,
    out: Array,
    rows: np.uint32,
    inner: np.uint32,
    columns: np.uint32,
    axes: int,
    table: Int32Array,
) -> None:
    x, y = np.uint32(cuda.threadIdx.x), np.uint32(cuda.threadIdx.y)
    block = np.uint32(cuda.blockIdx.x)
    across, down = (columns + _SIDE - 1) // _SIDE, (rows + _SIDE - 1) // _SIDE
    matrix = np.uint32(block // (across * down))  # of the batch
    n = np.uint32(block % across * _SIDE + x)  # this thread's column and row of the result
    m = np.uint32(block // across % down * _SIDE + y)
    first_a = np.uint32(place_of(matrix, 0, axes, table)) * rows * inner
    first_b = np.uint32(place_of(matrix, 1, axes, table)) * inner * columns
    tile_a = cuda.shared.array((_SIDE, _SIDE), a.dtype)
    tile_b = cuda.shared.array((_SIDE, _SIDE), a.dtype)
    total = a.dtype.type(0)
    for k in range(np.uint32(0), inner, np.uint32(_SIDE)):
        in_a, in_b = m < rows and k + x < inner, k + y < inner and n < columns
        tile_a[y, x] = a[first_a + m * inner + k + x] if in_a else a.dtype.type(0)
        tile_b[y, x] = b[first_b + (k + y) * columns + n] if in_b else a.dtype.type(0)
        cuda.syncthreads()  # both tiles are complete
        for step in range(_SIDE):
            total += tile_a[y, step] * tile_b[step, x]
        cuda.syncthreads()  # nobody reads them any more
    if m < rows and n < columns:
        out[(matrix * rows + m) * columns + n] = total


@matmul_forward.cuda
def matmul_forward_cuda(a: CudaArray, b: CudaArray) -> CudaArray:
    if a.dtype != np.float32 or a.shape[:-2] != b.shape[:-2] or 0 in (a.size, b.size):
        return matmul_forward_readable(a, b)
    return gpu_gemm.matmul(a, b)


@matmul_forward.meta
def matmul_forward_meta(a: MetaArray, b: MetaArray) -> MetaArray:
    return MetaArray(product_shape(a.shape, b.shape), a.dtype)


class MatMul(Op):
    """Product of matrices, or of batches of them."""

    def forward(self, a: Any, b: Any) -> Any:
        self.a, self.b = a, b
        return matmul_forward(a, b)

    def backward(self, grad: Any) -> Any:
        da = db = None
        if self.needs[0]:
            da = unbroadcast(matmul_forward(grad, transposed(self.b)), self.a.shape)
        if self.needs[1]:
            db = unbroadcast(matmul_forward(transposed(self.a), grad), self.b.shape)
        return da, db


def transposed(x: Any) -> Any:
    """(..., M, K) -> (..., K, M), a copy."""
    batch = range(len(x.shape) - 2)
    return copy_view(x, View.whole(x.shape).permuted((*batch, len(x.shape) - 1, len(x.shape) - 2)))


@public
def matmul(input: Any, other: Any) -> Tensor:
    """Matrix product, ``input @ other``.

    Parameters
    ----------
    input : (..., M, K) or (K,)
    other : (..., K, N) or (K,)
        Axes before the last two broadcast.

    Returns
    -------
    Tensor, (..., M, N); without M or N where the input or the other is a vector

    Raises
    ------
    ShapeError
        If one of them is a single number, the inner sizes differ, or the batches do not broadcast.
    """
    a, b = as_tensors(input, other)
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(
            f"matmul expected vectors, matrices or batches of them; got shapes {a.shape} and "
            f"{b.shape}. To multiply by a number, write *."
        )
    inner = b.shape[0] if b.ndim == 1 else b.shape[-2]
    if a.shape[-1] != inner:
        raise ShapeError(
            f"matmul expected the last axis of the first as long as the "
            f"{'only axis' if b.ndim == 1 else 'last axis but one'} of the second; got "
            f"{a.shape[-1]} and {inner} (shapes {a.shape} and {b.shape}). Transpose one of them?"
        )
    left = a.reshape(1, *a.shape) if a.ndim == 1 else a  # (..., M, K)
    right = b.reshape(*b.shape, 1) if b.ndim == 1 else b  # (..., K, N)
    shape = product_shape(left.shape, right.shape)
    if right.ndim == 2:  # one matrix for the whole batch: its rows are the rows of one product
        left = left.reshape(math.prod(left.shape[:-1]), inner)
    result = MatMul()(left, right)
    rows = shape[:-2] if a.ndim == 1 else shape[:-1]
    return result.reshape(rows if b.ndim == 1 else (*rows, shape[-1]))  # type: ignore[no-any-return]


# ---- the fully connected layer ---------------------------------------------------------------


@public
def linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    """Fully connected layer: ``input @ weight.T + bias``.

    Parameters
    ----------
    input : (..., C)
    weight : (F, C), or (C,) for a single filter
    bias : (F,), or () for a single filter; optional

    Returns
    -------
    Tensor, (..., F), or (...) for a single filter

    Raises
    ------
    ShapeError
        If the sizes do not fit each other.
    """
    tensors = as_tensors(*((input, weight) if bias is None else (input, weight, bias)))
    x, w = tensors[:2]
    if w.ndim not in (1, 2) or x.ndim == 0 or x.shape[-1] != w.shape[-1]:
        raise ShapeError(
            f"linear expected an input (..., C) and a weight (F, C); got {x.shape} and {w.shape}. "
            "The weight's last axis is the input's: one row of weights for each filter."
        )
    result = matmul(x, transpose(w, 0, 1) if w.ndim == 2 else w)
    if bias is None:
        return result  # type: ignore[no-any-return]
    if tensors[2].shape != w.shape[:-1]:
        raise ShapeError(
            f"expected a bias of shape {w.shape[:-1]}, one number a filter; got {tensors[2].shape}."
        )
    return result + tensors[2]  # type: ignore[no-any-return]
