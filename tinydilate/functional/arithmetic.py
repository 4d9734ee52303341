"""Arithmetic of tensors, element by element, with NumPy's broadcasting.

Definition: ``c[i] = f(a[i], b[i])``, where an axis of length 1, or a missing one, is repeated.

Derivative: by the chain rule ``da = dc * df/da``, element by element. Where ``a`` was repeated,
every copy sends back its share and the shares add up: the adjoint of broadcasting is a sum.

Every operation is one rule of scalars as a NumPy ufunc, which brings the broadcasting and the loop:
NumPy's own where it has one, else one that Numba compiles. `Elementwise` shares it among the
threads, `CudaElementwise` gives each element of the result a thread of the GPU.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from tinydilate import buffers, device
from tinydilate.autograd import Op, Tensor, public
from tinydilate.device import SIMULATED, Array, CudaArray, MetaArray, card, cover
from tinydilate.errors import ShapeError
from tinydilate.kernel import (
    CudaElementwise,
    Elementwise,
    Int32Array,
    add_in_pairs,
    cuda,
    is_last_block,
    jit_relaxed,
    kernel,
)
from tinydilate.threads import share


def broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Common shape of arrays that are combined element by element.

    Raises
    ------
    ShapeError
        If two sizes differ along an axis and neither is 1.
    """
    if shapes[0] == shapes[-1] and len(shapes) == 2:  # the common case
        return shapes[0]
    return _broadcast_shape(*shapes)


@lru_cache(4096)
def _broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        got = " and ".join(map(str, shapes))
        if all(len(shape) == 4 for shape in shapes) and len({shape[:2] for shape in shapes}) == 1:
            raise ShapeError(
                f"expected maps of one size; got {got}. Pad the layers of the smaller one "
                '(padding="same"), or crop the larger one: x[:, :, 1:-1, 1:-1].'
            ) from None
        raise ShapeError(
            f"expected shapes that broadcast; got {got}. Counted from the last axis, two sizes "
            "must be equal or one of them 1: reshape one of them."
        ) from None


def broadcast_meta(*arrays: MetaArray) -> MetaArray:
    """Shape rule of every element-by-element kernel."""
    return MetaArray(broadcast_shape(*(a.shape for a in arrays)), arrays[0].dtype)


# ---- the sum that broadcasting calls for on the way back -------------------------------------


@kernel
def sum_to_shape(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum ``x`` over the axes that were repeated when ``shape`` was broadcast to ``x.shape``."""
    lead = x.ndim - len(shape)
    repeated = [axis for axis in range(lead, x.ndim) if shape[axis - lead] != x.shape[axis]]
    total: Array = np.sum(x, axis=(*range(lead), *repeated), keepdims=True)
    return total.reshape(shape)


_FEW = 1024  # numbers that are summed in their own dtype, here and in the loops below


@sum_to_shape.cpu
def sum_to_shape_cpu(x: Array, shape: tuple[int, ...]) -> Array:
    if x.size < _FEW and math.prod(shape) == 1:  # NumPy's own loop is called sooner
        with np.errstate(all="ignore"):  # as below: inf and nan are answers
            total = np.add.reduce(x.reshape(-1), dtype=x.dtype)
        return total.reshape(shape)  # type: ignore[no-any-return]
    full = (1,) * (x.ndim - len(shape)) + shape
    end = x.ndim
    while end > 0:  # runs of neighbouring axes that are all summed, the last run first
        if full[end - 1] == x.shape[end - 1]:
            end -= 1
            continue
        start = end
        while start > 0 and full[start - 1] != x.shape[start - 1]:
            start -= 1
        # The run as one axis: (A, R, B) -> (A, B)
        before, after = math.prod(x.shape[:start]), math.prod(x.shape[end:])
        summed = buffers.empty(x.shape[:start] + full[start:end] + x.shape[end:], x.dtype)
        parts = x.reshape(before, math.prod(x.shape[start:end]), after)
        least = max(1, 16_384 // max(1, parts[:1].size))
        if after == 1:
            share(
                _sum_rows, before, parts.reshape(parts.shape[:2]), summed.reshape(-1), least=least
            )
        else:
            share(_sum_middle, before, parts, summed.reshape(before, after), least=least)
        x, end = summed, start
    return x.reshape(shape)


# In float32, a sum that has grown swallows what is added to it: 2**24 + 1 is 2**24. So both loops
# sum every `_FEW` numbers for themselves, and then these short sums.


@jit_relaxed
def _sum_rows(start: int, stop: int, x: Array, total: Array) -> None:
    """(A, R) -> (A,): sum of each row, for a in [start, stop)."""
    for a in range(start, stop):
        exact = 0.0  # the sum of the short sums, in float64
        for first in range(0, x.shape[1], _FEW):
            part, short = x[a, first : first + _FEW], x.dtype.type(0)
            for r in range(len(part)):
                short += part[r]
            exact += short
        total[a] = exact


@jit_relaxed
def _sum_middle(start: int, stop: int, x: Array, total: Array) -> None:
    """(A, R, B) -> (A, B): sum over the middle axis, for a in [start, stop)."""
    short = np.empty(x.shape[2], x.dtype)
    for a in range(start, stop):
        sums = total[a]
        for b in range(len(sums)):
            sums[b] = 0
        for first in range(0, x.shape[1], _FEW):
            for b in range(len(short)):
                short[b] = 0
            for r in range(first, min(first + _FEW, x.shape[1])):
                row = x[a, r]
                for b in range(len(short)):
                    short[b] += row[b]
            for b in range(len(short)):
                sums[b] += short[b]


# On the GPU a long sum is cut into parts, so that there is work for all processors: a block adds
# each part, and the last block to finish adds what they found. Who adds what is settled by the
# sizes and the card, so there the same numbers give the same bits.

_THREADS = 8 if SIMULATED else 256  # of a block that adds a part; a power of two
_EACH = 4  # numbers that a thread asks for at a time
_PART = _EACH * _THREADS  # numbers of a part
_MOST = 16 if SIMULATED else 1024  # parts of a sum
_BUSY = 16  # blocks for each multiprocessor keep a card busy: longer sums get longer parts


@sum_to_shape.cuda
def sum_to_shape_cuda(x: CudaArray, shape: tuple[int, ...]) -> CudaArray:
    given = x
    if 0 in x.shape:
        return device.zeros(shape, x.dtype)
    for middle, launch, count, parts, numbers in _sums(x.shape, shape):
        total = device.empty((count,), x.dtype)
        if middle:
            _sum_parts_of_middles[launch](x, total, *numbers)
        else:
            sums = total if parts == 1 else device.empty((count, parts), x.dtype)
            counters = device.counters(count if parts > 1 else 1)
            _sum_around[launch](x, sums, total, counters, *numbers)
        x = total
    return x.reshape(shape) if x is given else x.as_own(shape)


@lru_cache(4096)
def _sums(given: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """The launches that it takes: along a middle or not, blocks and threads, sums, parts, sizes.

    A network sums the same shapes in every step.
    """
    launches: list[tuple[Any, ...]] = []
    full = (1,) * (len(given) - len(shape)) + shape
    runs: list[tuple[int, int]] = []  # of neighbouring axes that are all summed, the last run first
    for axis in reversed(range(len(given))):
        if full[axis] != given[axis]:
            joined = runs and runs[-1][0] == axis + 1
            runs.append((axis, runs.pop()[1] if joined else axis + 1))
    if len(runs) == 2 and runs[0][1] == len(given) and runs[1][0] == 0:  # a bias's gradient
        (start, _), (_, end) = runs
        return [_around(*map(math.prod, (given[:end], given[end:start], given[start:])))]
    for start, end in runs:
        before, run = math.prod(given[:start]), math.prod(given[start:end])
        after = math.prod(full[end:])
        if after == 1:
            launches.append(_around(1, before, run))
        while after > 1 and run > 1:  # (A, R, B) -> (A, parts, B), until there is one part left
            parts = -(-run // _PART)
            count = before * parts * after
            launches.append((True, cover(count), count, parts, (run, parts, after)))
            run = parts
    return launches


def _around(before: int, count: int, after: int) -> tuple[Any, ...]:
    """The launch that sums (A, B, C) -> (B,)."""
    run = before * after
    enough = _BUSY * card().multiprocessors
    size = _PART * max(1, -(-run // (_PART * _MOST)), run * count // (_PART * enough))
    parts = -(-run // size)
    ahead = divmod(_THREADS, after)  # from a thread's number to its next one, in rows and columns
    return False, (count * parts, _THREADS), count, parts, (run, after, *ahead, size, parts)


@cuda.jit(launch_bounds=_THREADS)
def _sum_around(
    x: Array,
    sums: Array,
    total: Array,
    counters: Int32Array,
    run: np.uint32,
    after: np.uint32,
    rows_ahead: np.uint32,
    columns_ahead: np.uint32,
    part_size: np.uint32,
    parts: np.uint32,
) -> None:
    """(A, B, C) -> (B,): a block has a part of the A*C numbers of one b.

    Every thread adds some, then they add in pairs. The last block of a b adds its parts' sums.
    """
    block, thread = np.uint32(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x)
    b, part = np.uint32(block // parts), np.uint32(block % parts)
    sum_of = cuda.shared.array(_THREADS, x.dtype)
    mine = nothing = x.dtype.type(0)
    n = np.uint32(part * part_size + thread)  # of the A*C numbers
    end = min(run, np.uint32((part + np.uint32(1)) * part_size))
    # Number n stands in row n // after of its A rows; from one to the next it is B*C numbers.
    to_next = np.uint32(np.uint32(total.size) * after)
    column = np.uint32(n % after)
    at = np.uint32(np.uint32(np.uint32(n // after) * to_next) + np.uint32(b * after + column))
    ahead = np.uint32(np.uint32(rows_ahead * to_next) + columns_ahead)
    while n < end:
        for _ in range(_EACH):
            # Read in any case, so that all are asked for at once.
            number = x[at if n < end else np.uint32(0)]
            mine += number if n < end else nothing
            n = np.uint32(n + np.uint32(_THREADS))
            at, column = np.uint32(at + ahead), np.uint32(column + columns_ahead)
            if column >= after:  # in the next row
                at, column = np.uint32(at + np.uint32(to_next - after)), np.uint32(column - after)
    sum_of[thread] = mine
    add_in_pairs(sum_of, thread, _THREADS)
    if thread == 0:
        sums[block] = sum_of[0]
    if parts > 1 and is_last_block(counters, b, parts):
        mine, n = nothing, thread
        while n < parts:
            mine += sums[np.uint32(b * parts + n)]
            n = np.uint32(n + np.uint32(_THREADS))
        sum_of[thread] = mine
        add_in_pairs(sum_of, thread, _THREADS)
        if thread == 0:
            total[b] = sum_of[0]


@cuda.jit
def _sum_parts_of_middles(
    x: Array, sums: Array, run: np.uint32, parts: np.uint32, after: np.uint32
) -> None:
    """(A, R, B) -> (A, parts, B), a thread each; neighbours in b read neighbours in memory."""
    n = np.uint32(cuda.grid(1))
    if n < sums.size:
        b, part, a = n % after, n // after % parts, n // after // parts
        total = x.dtype.type(0)
        for r in range(part * _PART, min(run, (part + 1) * _PART)):
            total += x[(a * run + np.uint32(r)) * after + b]
        sums[n] = total


@sum_to_shape.meta
def sum_to_shape_meta(x: MetaArray, shape: tuple[int, ...]) -> MetaArray:
    return MetaArray(shape, x.dtype)


def unbroadcast(grad: Any, shape: tuple[int, ...]) -> Any:
    """Gradient of a repeated array -> gradient of the array before it was repeated."""
    return grad if grad.shape == shape else sum_to_shape(grad, shape)


# ---- c = a + b:  da = dc,  db = dc -----------------------------------------------------------


@kernel
def add_forward(a: Array, b: Array) -> Array:
    """``a + b``."""
    return np.add(a, b)


add_forward.cpu(Elementwise(np.add, shared=True))
add_forward.cuda(CudaElementwise(np.add))
add_forward.meta(broadcast_meta)


class Add(Op):
    """Sum of two tensors."""

    def forward(self, a: Any, b: Any) -> Any:
        self.shapes = a.shape, b.shape
        broadcast_shape(*self.shapes)
        return add_forward(a, b)

    def backward(self, grad: Any) -> Any:
        return tuple(unbroadcast(grad, shape) for shape in self.shapes)


@public
def add(input: Any, other: Any) -> Tensor:
    """``input + other``, broadcast.

    Parameters
    ----------
    input, other : Tensor, array or number

    Raises
    ------
    ShapeError
        If the shapes do not broadcast.
    """
    return Add()(input, other)


# ---- c = a - b:  da = dc,  db = -dc ----------------------------------------------------------


@kernel
def sub_forward(a: Array, b: Array) -> Array:
    """``a - b``."""
    return np.subtract(a, b)


sub_forward.cpu(Elementwise(np.subtract, shared=True))
sub_forward.cuda(CudaElementwise(np.subtract))
sub_forward.meta(broadcast_meta)


class Sub(Op):
    """Difference of two tensors."""

    def forward(self, a: Any, b: Any) -> Any:
        self.shapes = a.shape, b.shape
        broadcast_shape(*self.shapes)
        return sub_forward(a, b)

    def backward(self, grad: Any) -> Any:
        return unbroadcast(grad, self.shapes[0]), unbroadcast(neg_forward(grad), self.shapes[1])


@public
def sub(input: Any, other: Any) -> Tensor:
    """``input - other``, broadcast; see `add`."""
    return Sub()(input, other)


# ---- b = -a:  da = -db -----------------------------------------------------------------------


@kernel
def neg_forward(a: Array) -> Array:
    """``-a``."""
    return np.negative(a)


neg_forward.cpu(Elementwise(np.negative, shared=True))
neg_forward.cuda(CudaElementwise(np.negative))
neg_forward.meta(broadcast_meta)


class Neg(Op):
    """The opposite sign."""

    def forward(self, a: Any) -> Any:
        return neg_forward(a)

    def backward(self, grad: Any) -> Any:
        return neg_forward(grad)


@public
def neg(input: Any) -> Tensor:
    """``-input``."""
    return Neg()(input)


# ---- c = a * b:  da = dc * b,  db = dc * a ---------------------------------------------------


@kernel
def mul_forward(a: Array, b: Array) -> Array:
    """``a * b``."""
    return np.multiply(a, b)


mul_forward.cpu(Elementwise(np.multiply, shared=True))
mul_forward.cuda(CudaElementwise(np.multiply))
mul_forward.meta(broadcast_meta)


class Mul(Op):
    """Product of two tensors, element by element."""

    def forward(self, a: Any, b: Any) -> Any:
        broadcast_shape(a.shape, b.shape)
        self.a, self.b = a, b
        return mul_forward(a, b)

    def backward(self, grad: Any) -> Any:
        a, b = self.a, self.b
        return (
            unbroadcast(mul_forward(grad, b), a.shape) if self.needs[0] else None,
            unbroadcast(mul_forward(grad, a), b.shape) if self.needs[1] else None,
        )


@public
def mul(input: Any, other: Any) -> Tensor:
    """``input * other``, element by element, broadcast; see `add`."""
    return Mul()(input, other)


# ---- c = a / b:  da = dc / b,  db = -dc * c / b ----------------------------------------------


@kernel
def div_forward(a: Array, b: Array) -> Array:
    """``a / b``; a division by zero gives inf or nan, as in IEEE 754."""
    with np.errstate(all="ignore"):
        return np.divide(a, b)


_divide = Elementwise(np.divide, shared=True)


@div_forward.cpu
def div_forward_cpu(a: Array, b: Array) -> Any:
    with np.errstate(all="ignore"):
        return _divide(a, b)


div_forward.cuda(CudaElementwise(np.divide))
div_forward.meta(broadcast_meta)


class Div(Op):
    """Quotient of two tensors."""

    def forward(self, a: Any, b: Any) -> Any:
        broadcast_shape(a.shape, b.shape)
        self.a_shape, self.b = a.shape, b
        self.c = div_forward(a, b)
        return self.c

    def backward(self, grad: Any) -> Any:
        da = div_forward(grad, self.b)
        if not self.needs[1]:
            return unbroadcast(da, self.a_shape), None
        db = neg_forward(mul_forward(da, self.c))
        return unbroadcast(da, self.a_shape), unbroadcast(db, self.b.shape)


@public
def div(input: Any, other: Any) -> Tensor:
    """``input / other``, broadcast; see `add`. Division by zero gives inf or nan."""
    return Div()(input, other)


# ---- c = a ** b:  da = dc * b * a**(b-1),  db = dc * c * log(a) ------------------------------


@kernel
def pow_forward(a: Array, b: Array) -> Array:
    """``a ** b``."""
    with np.errstate(all="ignore"):
        return np.power(a, b)


@kernel
def pow_slope_base(a: Array, b: Array) -> Array:
    """``b * a**(b-1)``, the slope of a**b along a; zero where b is zero, even at a = 0."""
    with np.errstate(all="ignore"):
        return np.where(b == 0, 0, b * np.power(a, b - 1)).astype(a.dtype)


@kernel
def pow_slope_exponent(a: Array, b: Array) -> Array:
    """``a**b * log(a)``, the slope of a**b along b; zero where a is zero and b is not negative."""
    with np.errstate(all="ignore"):
        return np.where((a == 0) & (b >= 0), 0, np.power(a, b) * np.log(a)).astype(a.dtype)


def _slope_base(a: Any, b: Any) -> Any:
    return b * a ** (b - 1) if b != 0 else b


def _slope_exponent(a: Any, b: Any) -> Any:
    return a if a == 0 and b >= 0 else a**b * np.log(a)


def _quietly(rule: Elementwise) -> Any:
    """The ufunc without NumPy's warnings: inf and nan are answers."""

    def twin(*arrays: Array) -> Any:
        with np.errstate(all="ignore"):
            return rule(*arrays)

    return twin


pow_forward.cpu(_quietly(Elementwise(np.power)))
pow_slope_base.cpu(_quietly(Elementwise(_slope_base)))
pow_slope_exponent.cpu(_quietly(Elementwise(_slope_exponent)))
pow_forward.cuda(CudaElementwise(np.power))
pow_slope_base.cuda(CudaElementwise(_slope_base))
pow_slope_exponent.cuda(CudaElementwise(_slope_exponent))
pow_forward.meta(broadcast_meta)
pow_slope_base.meta(broadcast_meta)
pow_slope_exponent.meta(broadcast_meta)


class Pow(Op):
    """Power of two tensors."""

    def forward(self, a: Any, b: Any) -> Any:
        broadcast_shape(a.shape, b.shape)
        self.a, self.b = a, b
        return pow_forward(a, b)

    def backward(self, grad: Any) -> Any:
        a, b = self.a, self.b
        da = mul_forward(grad, pow_slope_base(a, b)) if self.needs[0] else None
        db = mul_forward(grad, pow_slope_exponent(a, b)) if self.needs[1] else None
        return (
            None if da is None else unbroadcast(da, a.shape),
            None if db is None else unbroadcast(db, b.shape),
        )


@public
def pow(input: Any, exponent: Any) -> Tensor:
    """``input ** exponent``, broadcast; see `add`. A negative base needs a whole exponent."""
    return Pow()(input, exponent)


# ---- b = exp(a):  da = db * b ----------------------------------------------------------------


@kernel
def exp_forward(a: Array) -> Array:
    """``e ** a``."""
    with np.errstate(all="ignore"):
        return np.exp(a)


exp_forward.cpu(_quietly(Elementwise(np.exp)))
exp_forward.cuda(CudaElementwise(np.exp))
exp_forward.meta(broadcast_meta)


class Exp(Op):
    """The exponential function."""

    def forward(self, a: Any) -> Any:
        self.b = exp_forward(a)
        return self.b

    def backward(self, grad: Any) -> Any:
        return mul_forward(grad, self.b)


@public
def exp(input: Any) -> Tensor:
    """``e ** input``, element by element."""
    return Exp()(input)


# ---- b = log(a):  da = db / a ----------------------------------------------------------------


@kernel
def log_forward(a: Array) -> Array:
    """Natural logarithm; -inf at zero, nan below."""
    with np.errstate(all="ignore"):
        return np.log(a)


log_forward.cpu(_quietly(Elementwise(np.log)))
log_forward.cuda(CudaElementwise(np.log))
log_forward.meta(broadcast_meta)


class Log(Op):
    """The natural logarithm."""

    def forward(self, a: Any) -> Any:
        self.a = a
        return log_forward(a)

    def backward(self, grad: Any) -> Any:
        return div_forward(grad, self.a)


@public
def log(input: Any) -> Tensor:
    """Natural logarithm, element by element: -inf at zero, nan below."""
    return Log()(input)
