"""Softmax, its logarithm, and the cross-entropy that every network here is trained with.

Definition: the softmax turns C scores x (the paper's logits) into probabilities, pixel by pixel:

    p[c] = exp(x[c]) / sum over k of exp(x[k])

and the cross-entropy is the surprise at the true class t, ``loss = -log p[t]``. Both are unchanged
when the same number is taken from all scores. So we first take away the largest one: the exponents
are then at most 0, nothing overflows, and the sum is at least 1:

    peak = max over c of x[c]         total = sum over c of exp(x[c] - peak)
    log p[c] = (x[c] - peak) - log(total)

Derivative: for the softmax ``dx = p * (dp - sum(dp * p))``; for its logarithm
``dx = dlogp - p * sum(dlogp)``; and for the cross-entropy the famous ``dx = p - onehot(t)``: what
the network says less what it should say. Class weights and label smoothing change what it should
say: the target ``q[c] = w[c] * ((1 - s) * [c = t] + s / C)`` gives ``loss = -sum(q * log p)`` and
``dx = p * sum(q) - q``.

The kernels see an array as (N, C, M): M pixels whose C scores lie M numbers apart. The inner loop
runs along a block of neighbouring pixels, which vector instructions take sixteen at a time. On the
GPU each pixel has a thread, which goes through its classes: neighbours read neighbouring numbers.
A thread asks for eight of them before it uses the first, since memory answers late.
"""

from __future__ import annotations

import math
from operator import index as as_integer
from typing import Any

import numpy as np

from tinydilate import buffers, device
from tinydilate.autograd import Op, Tensor, as_tensors, public
from tinydilate.device import SIMULATED, Array, CudaArray, MetaArray, cover, move
from tinydilate.errors import ConfigError, DataError, DtypeError, GraphError, ShapeError
from tinydilate.functional.arithmetic import sum_to_shape
from tinydilate.functional.reduction import sum as sum_over
from tinydilate.functional.shaping import check_dim
from tinydilate.kernel import (
    Int32Array,
    Int64Array,
    add_in_pairs,
    cuda,
    is_last_block,
    jit,
    jit_fused,
    jit_relaxed,
    jit_uncounted,
    kernel,
)
from tinydilate.threads import share, worth_a_thread

_BLOCK = 2048  # neighbouring pixels that a loop treats together, at most
_JOBS = 8  # that a loop is cut into, at least, for threads to share
_LINES = 5  # numbers a pixel that a loop works with; the last two are for `_peaks`
_LEAST = 4_096  # exponentials worth a thread
LARGEST_LABEL = 2**63 - 1

# ---- the exponential function and the logarithm ----------------------------------------------

# e**r = 1 + r + r*r*q(r) for |r| <= log(2)/2: q by a weighted least-squares fit that was repeated
# until the error had level peaks; 3.1e-9 relative, a twentieth of float32's rounding.
_Q4, _Q3, _Q2 = np.float32(1.38144672e-3), np.float32(8.36878084e-3), np.float32(4.16683927e-2)
_Q1, _Q0 = np.float32(1.66665196e-1), np.float32(0.49999994)
_PER_LOG_2 = np.float32(1.0 / math.log(2.0))
# log(2) in two parts. The first has nine binary digits, so a whole number below 2**15 times it is
# exact; the second is the rest.
_LOG_2_HIGH, _LOG_2_LOW = np.float32(355 / 512), np.float32(math.log(2.0) - 355 / 512)
_ONE = np.float32(1.0)
_LEAST_POWER, _LARGEST_POWER = np.float32(-104.0), np.float32(89.0)  # e**x is 0, or inf, beyond
# Numbers around 1.5 * 2**23 are spaced one apart: adding this rounds to a whole number, which then
# stands in the lowest bits.
_ROUND, _ROUND_BITS = np.float32(1.5 * 2**23), 0x4B400000


@jit_fused
def exp_rule(x: Any) -> Any:
    """``e ** x``: in float32 without a branch or a call, at most 1.05 units in the last place off.

    Mathematical libraries compute one exponential a call, which a vector loop cannot hold. The
    rule for float32 is ``e**x = 2**k * e**r`` with k the whole number next to x / log(2), and
    arithmetic only, so the compiler computes sixteen at a time. float64 calls the library.
    """
    if isinstance(x, np.float32):
        bounded = _LEAST_POWER if x < _LEAST_POWER else x  # comparisons with nan are false,
        bounded = _LARGEST_POWER if bounded > _LARGEST_POWER else bounded  # so nan stays nan
        shifted = bounded * _PER_LOG_2 + _ROUND
        k = shifted - _ROUND
        r = bounded - k * _LOG_2_HIGH - k * _LOG_2_LOW
        q = (((_Q4 * r + _Q3) * r + _Q2) * r + _Q1) * r + _Q0
        power = q * (r * r) + r + _ONE
        # 2**k is a float whose exponent bits hold k + 127. In two factors, since k + 127 may be
        # below 1 (results under 1.2e-38, which lose digits gradually) or above 254.
        whole = np.float32(shifted).view(np.int32) - _ROUND_BITS
        half = whole >> 1
        scale = np.int32((half + 127) << 23).view(np.float32)
        return power * scale * np.int32((whole - half + 127) << 23).view(np.float32)
    return np.exp(x)


# The smallest power computed there is 1.6e-38. So k can be added to the exponent in the bits of
# e**r, which is at least sqrt(1/2): the result is no number that has lost digits.
_LEAST_NORMAL, _ZERO = np.float32(-87.0), np.float32(0.0)


@jit_fused
def exp_down_rule(x: Any) -> Any:
    """`exp_rule` for x from 0 down, where a softmax needs it: a quarter fewer instructions.

    As precise down to -87; from there on the result is 0 instead of a number below 1.7e-38, beside
    the 1 of the largest score. Of an x above 0 it says nothing.
    """
    if isinstance(x, np.float32):
        bounded = _LEAST_NORMAL if x < _LEAST_NORMAL else x  # nan stays nan
        shifted = bounded * _PER_LOG_2 + _ROUND
        k = shifted - _ROUND
        r = bounded - k * _LOG_2_HIGH - k * _LOG_2_LOW
        q = (((_Q4 * r + _Q3) * r + _Q2) * r + _Q1) * r + _Q0
        power = np.float32(q * (r * r) + r + _ONE)
        moved = np.float32(shifted).view(np.int32) << 23  # k, where an exponent stands
        scaled = np.int32(power.view(np.int32) + moved).view(np.float32)
        # A nan may have lost its mark to the sum of bits; nan - nan is nan, all else gives 0.
        return _ZERO if x < _LEAST_NORMAL else scaled + (x - x)
    return np.exp(x)


_THIRD, _FIFTH = np.float32(1 / 3), np.float32(1 / 5)
_SEVENTH, _NINTH = np.float32(1 / 7), np.float32(1 / 9)
_ROOT_HALF_BITS = 0x3F3504F3  # of sqrt(1/2)


@jit_fused
def log_rule(x: Any) -> Any:
    """``log(x)`` of positive numbers from 1.2e-38 on, at most 2 units in the last place off.

    In float32 again by arithmetic alone. ``x = 2**k * m`` with m from sqrt(1/2) to sqrt(2), and
    ``log m = 2 * (s + s**3/3 + s**5/5 + ...)`` with ``s = (m - 1) / (m + 1)``, at most 0.172.
    """
    if isinstance(x, np.float32):
        bits = np.float32(x).view(np.int32)
        k = (bits - _ROOT_HALF_BITS) >> 23
        m = np.int32(bits - (k << 23)).view(np.float32)
        s = (m - _ONE) / (m + _ONE)
        q = s * s
        series = ((_NINTH * q + _SEVENTH) * q + _FIFTH) * q + _THIRD
        log_m = (s + s) + (s + s) * (q * series)
        whole = np.float32(k)
        return whole * _LOG_2_HIGH + (whole * _LOG_2_LOW + log_m) + (x - x)  # nan if x is
    return np.log(x)


# ---- softmax ---------------------------------------------------------------------------------


@kernel
def softmax_forward(x: Array) -> Array:
    """(N, C, M) -> (N, C, M): probabilities over C."""
    with np.errstate(all="ignore"):  # scores that are all -inf have no softmax: nan
        powers = np.exp(x - peak_of(x))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def peak_of(x: Array) -> Array:
    """(N, C, M) -> (N, 1, M): the largest score of each pixel."""
    return np.asarray(np.max(x, axis=1, keepdims=True, initial=-np.inf))


@softmax_forward.cpu
def softmax_forward_cpu(x: Array) -> Array:
    out = buffers.empty_like(x)
    _share(_softmax, x, x, out)
    return out


def _share(body: Any, x: Array, *arguments: Any) -> None:
    """Have blocks of the pixels of ``x`` computed, with room for `_LINES` numbers a pixel.

    A class's scores lie far from those of the next one, so each row of a block is a place of its
    own for the processor to find. In rows of two pages its prefetching gets going: those of 256
    pixels took twice as long wherever the scores do not fit into the second-level cache.
    """
    items, classes, pixels = x.shape
    block = max(1, min(_BLOCK, pixels, -(-items * pixels // _JOBS)))
    block = -(-block // 16) * 16  # whole vectors, and lines of the cache
    jobs = items * -(-pixels // block) if x.size else 0
    least = max(1, _LEAST // max(1, classes * min(block, pixels)))
    share(body, jobs, *arguments, least=least, room=_LINES * block, dtype=x.dtype)


@jit_uncounted
def _block(job: int, block: int, pixels: int) -> tuple[int, int, int]:
    """Item, first pixel and number of pixels of a job: the items' blocks are numbered through."""
    n, number = divmod(job, (pixels + block - 1) // block)
    return n, number * block, min(block, pixels - number * block)


@jit_uncounted
def _peaks(x: Array, n: int, first: int, lines: Array, peaks: Array) -> None:
    """For len(peaks) pixels from ``first`` on: the largest score.

    ``peak = score if score > peak else peak`` in one array would leave most of it as it was, and a
    compiler turns that into writes under a mask, ten cycles each on processors without AVX-512.
    So each class reads the largest so far from one row and writes to the other.
    """
    count, classes = len(peaks), x.shape[1]
    larger, so_far = lines[_LINES - 2], lines[_LINES - 1]
    for m in range(count):
        larger[m] = x[n, 0, first + m]
    for c in range(1, classes):
        so_far, larger = larger, so_far
        scores = x[n, c, first : first + count]
        for m in range(count):
            larger[m] = scores[m] if scores[m] > so_far[m] else so_far[m]
    for m in range(count):
        peaks[m] = larger[m]


@jit_uncounted
def _logs_of_totals(x: Array, n: int, first: int, peaks: Array, totals: Array, logs: Array) -> None:
    """For len(peaks) pixels from ``first`` on: the sum of exp(score - peak), and its logarithm."""
    count = len(peaks)
    for m in range(count):
        totals[m] = 0
    for c in range(x.shape[1]):
        scores = x[n, c, first : first + count]
        for m in range(count):
            totals[m] += exp_down_rule(scores[m] - peaks[m])
    for m in range(count):
        logs[m] = log_rule(totals[m])


@jit_uncounted
def _softmax(start: int, stop: int, room: Array, x: Array, out: Array) -> None:
    lines = room.reshape(_LINES, len(room) // _LINES)
    peaks, totals = lines[0], lines[1]
    one = x.dtype.type(1)
    for job in range(start, stop):
        n, first, count = _block(job, lines.shape[1], x.shape[2])
        _peaks(x, n, first, lines, peaks[:count])
        for m in range(count):
            totals[m] = 0
        for c in range(x.shape[1]):
            scores, result = x[n, c, first : first + count], out[n, c, first : first + count]
            for m in range(count):
                result[m] = exp_down_rule(scores[m] - peaks[m])
            for m in range(count):
                totals[m] += result[m]
        for m in range(count):
            totals[m] = one / totals[m]  # once: a division takes as long as ten multiplications
        for c in range(x.shape[1]):
            result = out[n, c, first : first + count]
            for m in range(count):
                result[m] *= totals[m]


@softmax_forward.cuda
def softmax_forward_cuda(x: CudaArray) -> CudaArray:
    out = device.empty_like(x)
    count, classes, pixels = _sizes(x)
    _softmax_cuda[cover(count)](x, out, count, classes, pixels)
    return out


def _sizes(x: CudaArray) -> tuple[int, int, int]:
    """Of (N, C, M): all pixels, each of which has a thread, classes, and pixels of an item."""
    items, classes, pixels = x.shape
    return items * pixels if x.size else 0, classes, pixels


@jit
def _first_score(pixel: Any, classes: Any, pixels: Any) -> Any:
    """Where the scores of a pixel begin, the pixels of all items counted.

    The only division of a thread: it goes through all its classes from here.
    """
    item = np.uint32(pixel // pixels)
    return np.uint32(pixel + np.uint32(item * np.uint32(classes - 1)) * pixels)


_AT_ONCE = 8  # scores that a thread asks for before it uses the first


@cuda.jit(device=True)
def _ask(
    x: Array, first: Any, c: Any, classes: Any, pixels: Any, scores: Array, beyond: Any
) -> None:
    """The next scores of a pixel, from class c on, into registers; ``beyond`` the last class."""
    for k in range(_AT_ONCE):
        each = np.uint32(c + np.uint32(k))
        scores[k] = beyond
        if each < classes:
            scores[k] = x[np.uint32(first + each * pixels)]


@cuda.jit(device=True)
def _peak_and_total(x: Array, first: Any, classes: Any, pixels: Any) -> Any:
    """Largest score of the pixel whose scores begin at ``first``, and sum of exp(score - peak).

    Both in one walk (Milakov and Gimelshein, 2018): where a larger score comes up, what was summed
    so far is scaled down to it.
    """
    scores = cuda.local.array(_AT_ONCE, x.dtype)
    peak, total, c = x.dtype.type(-np.inf), x.dtype.type(0), np.uint32(0)
    while c < classes:
        _ask(x, first, c, classes, pixels, scores, -np.inf)
        before = peak
        for k in range(_AT_ONCE):
            peak = scores[k] if scores[k] > peak else peak
        lowered = peak if peak > -np.inf else x.dtype.type(0)  # -inf less -inf would be nan
        total *= math.exp(before - lowered)
        for k in range(_AT_ONCE):
            total += math.exp(scores[k] - lowered)
        c = np.uint32(c + np.uint32(_AT_ONCE))
    if not total > 0:  # scores that are all -inf have no softmax
        total = x.dtype.type(np.nan)
    return peak, total


@cuda.jit
def _softmax_cuda(
    x: Array, out: Array, count: np.uint32, classes: np.uint32, pixels: np.uint32
) -> None:
    pixel = np.uint32(cuda.grid(1))
    if pixel < count:
        first = _first_score(pixel, classes, pixels)
        peak, total = _peak_and_total(x, first, classes, pixels)
        share = x.dtype.type(1) / total  # one division for all
        scores, c = cuda.local.array(_AT_ONCE, x.dtype), np.uint32(0)
        while c < classes:
            _ask(x, first, c, classes, pixels, scores, -np.inf)
            for k in range(_AT_ONCE):
                each = np.uint32(c + np.uint32(k))
                if each < classes:
                    out[np.uint32(first + each * pixels)] = math.exp(scores[k] - peak) * share
            c = np.uint32(c + np.uint32(_AT_ONCE))


@softmax_forward.meta
def softmax_forward_meta(x: MetaArray) -> MetaArray:
    return x


@kernel
def softmax_backward(grad: Array, out: Array) -> Array:
    """(N, C, M) each -> (N, C, M): ``p * (dp - sum(dp * p))``."""
    return np.asarray(out * (grad - (grad * out).sum(axis=1, keepdims=True)))


@softmax_backward.cpu
def softmax_backward_cpu(grad: Array, out: Array) -> Array:
    result = buffers.empty_like(grad)
    _share(_softmax_backward, grad, grad, out, result)
    return result


@jit_uncounted
def _softmax_backward(
    start: int, stop: int, room: Array, grad: Array, out: Array, result: Array
) -> None:
    lines = room.reshape(_LINES, len(room) // _LINES)
    sums = lines[0]
    for job in range(start, stop):
        n, first, count = _block(job, lines.shape[1], grad.shape[2])
        for m in range(count):
            sums[m] = 0
        for c in range(grad.shape[1]):
            given, p = grad[n, c, first : first + count], out[n, c, first : first + count]
            for m in range(count):
                sums[m] += given[m] * p[m]
        for c in range(grad.shape[1]):
            given, p = grad[n, c, first : first + count], out[n, c, first : first + count]
            row = result[n, c, first : first + count]
            for m in range(count):
                row[m] = p[m] * (given[m] - sums[m])


@softmax_backward.cuda
def softmax_backward_cuda(grad: CudaArray, out: CudaArray) -> CudaArray:
    result = device.empty_like(grad)
    count, classes, pixels = _sizes(grad)
    _softmax_backward_cuda[cover(count)](grad, out, result, count, classes, pixels)
    return result


@cuda.jit
def _softmax_backward_cuda(
    grad: Array,
    out: Array,
    result: Array,
    count: np.uint32,
    classes: np.uint32,
    pixels: np.uint32,
) -> None:
    pixel = np.uint32(cuda.grid(1))
    if pixel < count:
        first = _first_score(pixel, classes, pixels)
        given = cuda.local.array(_AT_ONCE, grad.dtype)
        p = cuda.local.array(_AT_ONCE, grad.dtype)
        total, c = grad.dtype.type(0), np.uint32(0)
        while c < classes:
            _ask(grad, first, c, classes, pixels, given, 0)
            _ask(out, first, c, classes, pixels, p, 0)
            for k in range(_AT_ONCE):
                total += given[k] * p[k]
            c = np.uint32(c + np.uint32(_AT_ONCE))
        while c > 0:  # backwards: what was read last is still in the cache
            c = np.uint32(c - np.uint32(_AT_ONCE))
            _ask(grad, first, c, classes, pixels, given, 0)
            _ask(out, first, c, classes, pixels, p, 0)
            for k in range(_AT_ONCE):
                each = np.uint32(c + np.uint32(k))
                if each < classes:
                    result[np.uint32(first + each * pixels)] = p[k] * (given[k] - total)


@softmax_backward.meta
def softmax_backward_meta(grad: MetaArray, out: MetaArray) -> MetaArray:
    return grad


# ---- its logarithm ---------------------------------------------------------------------------


@kernel
def log_softmax_forward(x: Array) -> Array:
    """(N, C, M) -> (N, C, M): logarithms of the probabilities over C."""
    with np.errstate(all="ignore"):
        below = x - peak_of(x)
        return np.asarray(below - np.log(np.exp(below).sum(axis=1, keepdims=True)))


@log_softmax_forward.cpu
def log_softmax_forward_cpu(x: Array) -> Array:
    out = buffers.empty_like(x)
    _share(_log_softmax, x, x, out)
    return out


@jit_uncounted
def _log_softmax(start: int, stop: int, room: Array, x: Array, out: Array) -> None:
    lines = room.reshape(_LINES, len(room) // _LINES)
    peaks, totals, logs = lines[0], lines[1], lines[2]
    for job in range(start, stop):
        n, first, count = _block(job, lines.shape[1], x.shape[2])
        _peaks(x, n, first, lines, peaks[:count])
        _logs_of_totals(x, n, first, peaks[:count], totals[:count], logs[:count])
        for c in range(x.shape[1]):
            scores, result = x[n, c, first : first + count], out[n, c, first : first + count]
            for m in range(count):
                result[m] = scores[m] - peaks[m] - logs[m]


@log_softmax_forward.cuda
def log_softmax_forward_cuda(x: CudaArray) -> CudaArray:
    out = device.empty_like(x)
    count, classes, pixels = _sizes(x)
    _log_softmax_cuda[cover(count)](x, out, count, classes, pixels)
    return out


@cuda.jit
def _log_softmax_cuda(
    x: Array, out: Array, count: np.uint32, classes: np.uint32, pixels: np.uint32
) -> None:
    pixel = np.uint32(cuda.grid(1))
    if pixel < count:
        first = _first_score(pixel, classes, pixels)
        peak, total = _peak_and_total(x, first, classes, pixels)
        log, c = math.log(total), np.uint32(0)
        scores = cuda.local.array(_AT_ONCE, x.dtype)
        while c < classes:
            _ask(x, first, c, classes, pixels, scores, -np.inf)
            for k in range(_AT_ONCE):
                each = np.uint32(c + np.uint32(k))
                if each < classes:
                    out[np.uint32(first + each * pixels)] = scores[k] - peak - log
            c = np.uint32(c + np.uint32(_AT_ONCE))


@log_softmax_forward.meta
def log_softmax_forward_meta(x: MetaArray) -> MetaArray:
    return x


@kernel
def log_softmax_backward(grad: Array, out: Array) -> Array:
    """(N, C, M) each -> (N, C, M): ``dlogp - p * sum(dlogp)``."""
    return np.asarray(grad - np.exp(out) * grad.sum(axis=1, keepdims=True))


@log_softmax_backward.cpu
def log_softmax_backward_cpu(grad: Array, out: Array) -> Array:
    result = buffers.empty_like(grad)
    _share(_log_softmax_backward, grad, grad, out, result)
    return result


@jit_uncounted
def _log_softmax_backward(
    start: int, stop: int, room: Array, grad: Array, out: Array, result: Array
) -> None:
    lines = room.reshape(_LINES, len(room) // _LINES)
    sums = lines[0]
    for job in range(start, stop):
        n, first, count = _block(job, lines.shape[1], grad.shape[2])
        for m in range(count):
            sums[m] = 0
        for c in range(grad.shape[1]):
            given = grad[n, c, first : first + count]
            for m in range(count):
                sums[m] += given[m]
        for c in range(grad.shape[1]):
            given, log_p = grad[n, c, first : first + count], out[n, c, first : first + count]
            row = result[n, c, first : first + count]
            for m in range(count):
                row[m] = given[m] - exp_rule(log_p[m]) * sums[m]


@log_softmax_backward.cuda
def log_softmax_backward_cuda(grad: CudaArray, out: CudaArray) -> CudaArray:
    result = device.empty_like(grad)
    count, classes, pixels = _sizes(grad)
    _log_softmax_backward_cuda[cover(count)](grad, out, result, count, classes, pixels)
    return result


@cuda.jit
def _log_softmax_backward_cuda(
    grad: Array,
    out: Array,
    result: Array,
    count: np.uint32,
    classes: np.uint32,
    pixels: np.uint32,
) -> None:
    pixel = np.uint32(cuda.grid(1))
    if pixel < count:
        first = _first_score(pixel, classes, pixels)
        given = cuda.local.array(_AT_ONCE, grad.dtype)
        log_p = cuda.local.array(_AT_ONCE, grad.dtype)
        total, c = grad.dtype.type(0), np.uint32(0)
        while c < classes:
            _ask(grad, first, c, classes, pixels, given, 0)
            for k in range(_AT_ONCE):
                total += given[k]
            c = np.uint32(c + np.uint32(_AT_ONCE))
        while c > 0:  # backwards, as in `_softmax_backward_cuda`
            c = np.uint32(c - np.uint32(_AT_ONCE))
            _ask(grad, first, c, classes, pixels, given, 0)
            _ask(out, first, c, classes, pixels, log_p, 0)
            for k in range(_AT_ONCE):
                each = np.uint32(c + np.uint32(k))
                if each < classes:
                    at = np.uint32(first + each * pixels)
                    result[at] = given[k] - math.exp(log_p[k]) * total


@log_softmax_backward.meta
def log_softmax_backward_meta(grad: MetaArray, out: MetaArray) -> MetaArray:
    return grad


# ---- cross-entropy with labels ---------------------------------------------------------------


@kernel
def cross_entropy_forward(
    x: Array, labels: Array, weights: Array, ignore_index: int, smoothing: float
) -> tuple[Array, Array, Array]:
    """(N, C, M), (N, M), (C,) -> three of (N, M): loss of each pixel, its peak and its total.

    The loss is 0 where the label is ``ignore_index``. The other two are kept for the derivative.
    """
    with np.errstate(all="ignore"):
        peaks = peak_of(x)[:, 0]
        totals = np.exp(x - peaks[:, None]).sum(axis=1)
        log_p = x - peaks[:, None] - np.log(totals)[:, None]  # (N, C, M)
        known = labels != ignore_index
        safe = np.where(known, labels, 0)
        losses = -weights[safe] * np.take_along_axis(log_p, safe[:, None], axis=1)[:, 0]
        if smoothing > 0:
            evenly = -(weights[:, None] * log_p).sum(axis=1)
            losses = (1 - smoothing) * losses + smoothing / x.shape[1] * evenly
    return np.where(known, losses, 0).astype(x.dtype), peaks, totals


@cross_entropy_forward.cpu
def cross_entropy_forward_cpu(
    x: Array, labels: Array, weights: Array, ignore_index: int, smoothing: float
) -> tuple[Array, Array, Array]:
    losses = buffers.empty(labels.shape, x.dtype)  # whoever keeps them should not keep the others
    peaks, totals = buffers.empty((2, *labels.shape), x.dtype)
    arrays = x, labels, weights, losses, peaks, totals
    _share(_cross_entropy, x, *arrays, ignore_index, float(smoothing))
    return losses, peaks, totals


@jit_uncounted
def _cross_entropy(
    start: int,
    stop: int,
    room: Array,
    x: Array,
    labels: Array,
    weights: Array,
    losses: Array,
    peaks: Array,
    totals: Array,
    ignore_index: int,
    smoothing: float,
) -> None:
    lines = room.reshape(_LINES, len(room) // _LINES)
    logs, evenly = lines[0], lines[1]
    to_label, to_each = x.dtype.type(1 - smoothing), x.dtype.type(smoothing / x.shape[1])
    for job in range(start, stop):
        n, first, count = _block(job, lines.shape[1], x.shape[2])
        peak, total = peaks[n, first : first + count], totals[n, first : first + count]
        label, loss = labels[n, first : first + count], losses[n, first : first + count]
        _peaks(x, n, first, lines, peak)
        _logs_of_totals(x, n, first, peak, total, logs[:count])
        for m in range(count):  # without a jump, so that vectors can do it
            known = label[m] != ignore_index
            c = label[m] if known else 0
            surprise = weights[c] * (peak[m] - x[n, c, first + m] + logs[m])
            loss[m] = surprise if known else 0
        if smoothing > 0:
            for m in range(count):
                evenly[m] = 0
            for c in range(x.shape[1]):
                scores, weight = x[n, c, first : first + count], weights[c]
                for m in range(count):
                    evenly[m] += weight * (peak[m] - scores[m] + logs[m])
            for m in range(count):
                smoothed = to_label * loss[m] + to_each * evenly[m]
                loss[m] = smoothed if label[m] != ignore_index else 0


@cross_entropy_forward.cuda
def cross_entropy_forward_cuda(
    x: CudaArray, labels: CudaArray, weights: CudaArray, ignore_index: int, smoothing: float
) -> tuple[CudaArray, CudaArray, CudaArray]:
    losses, peaks, totals = (device.empty(labels.shape, x.dtype) for _ in range(3))
    _cross_entropy_cuda[cover(labels.size)](
        *(x, labels, weights, losses, peaks, totals),
        *x.shape[1:],
        ignore_index,
        *_shares(smoothing, x.shape[1]),
    )
    return losses, peaks, totals


def _shares(smoothing: float, classes: int) -> tuple[float, float]:
    """What of the target the label gets, and what each class gets in any case."""
    return 1 - smoothing, smoothing / classes


@jit
def _is_class(label: Any, classes: Any) -> Any:
    """Labels that are on the GPU already were not looked at: to wait for them takes time."""
    return (label >= 0) & (label < np.int64(classes))


@cuda.jit
def _cross_entropy_cuda(
    x: Array,
    labels: Int64Array,
    weights: Array,
    losses: Array,
    peaks: Array,
    totals: Array,
    classes: np.uint32,
    pixels: np.uint32,
    ignore_index: np.int64,
    to_label: float,
    to_each: float,
) -> None:
    pixel = np.uint32(cuda.grid(1))
    if pixel >= losses.size:
        return
    first, label = _first_score(pixel, classes, pixels), labels[pixel]
    peak, total = _peak_and_total(x, first, classes, pixels)
    peaks[pixel], totals[pixel] = peak, total
    log = math.log(total)
    if label == ignore_index:
        losses[pixel] = 0
    elif _is_class(label, classes):
        c = np.uint32(label)
        loss = to_label * weights[c] * (peak - x[np.uint32(first + c * pixels)] + log)
        if to_each > 0:
            for each in range(classes):
                surprise = peak - x[np.uint32(first + np.uint32(each) * pixels)] + log
                loss += to_each * weights[np.uint32(each)] * surprise
        losses[pixel] = loss
    else:
        losses[pixel] = np.nan


@cross_entropy_forward.meta
def cross_entropy_forward_meta(
    x: MetaArray, labels: MetaArray, weights: MetaArray, ignore_index: int, smoothing: float
) -> tuple[MetaArray, MetaArray, MetaArray]:
    return (MetaArray(labels.shape, x.dtype),) * 3


@kernel
def cross_entropy_backward(
    grad: Array,
    divisor: Array | None,
    x: Array,
    peaks: Array,
    totals: Array,
    labels: Array,
    weights: Array,
    ignore_index: int,
    smoothing: float,
) -> Array:
    """(N, M) or (), (N, C, M), ... -> (N, C, M): ``p * sum(q) - q``, times a pixel's gradient.

    A gradient without axes is that of every pixel. Where the losses were summed and divided by a
    number, the gradients are divided by it, too.
    """
    classes = np.arange(x.shape[1])[:, None]  # (C, 1)
    true = labels[:, None] == classes  # (N, C, M)
    with np.errstate(all="ignore"):
        grad = grad if divisor is None else grad / divisor
        p = np.exp(x - peaks[:, None]) / totals[:, None]
        q = weights[:, None] * ((1 - smoothing) * true + smoothing / x.shape[1])
        scale = np.where(labels != ignore_index, grad, 0)[:, None]  # (N, 1, M)
        return np.asarray((p * q.sum(axis=1, keepdims=True) - q) * scale, x.dtype)


@cross_entropy_backward.cpu
def cross_entropy_backward_cpu(
    grad: Array,
    divisor: Array | None,
    x: Array,
    peaks: Array,
    totals: Array,
    labels: Array,
    weights: Array,
    ignore_index: int,
    smoothing: float,
) -> Array:
    result = buffers.empty_like(x)
    if divisor is not None:
        with np.errstate(all="ignore"):  # a mean of nothing is nan, and so is its gradient
            grad = np.asarray(grad / divisor)
    if not grad.ndim:
        one, grad = grad, buffers.empty(labels.shape, x.dtype)
        grad[:] = one
    arrays = grad, x, peaks, totals, labels, weights, result
    _share(_cross_entropy_backward, x, *arrays, ignore_index, float(smoothing))
    return result


@jit_uncounted
def _cross_entropy_backward(
    start: int,
    stop: int,
    room: Array,
    grad: Array,
    x: Array,
    peaks: Array,
    totals: Array,
    labels: Array,
    weights: Array,
    result: Array,
    ignore_index: int,
    smoothing: float,
) -> None:
    lines = room.reshape(_LINES, len(room) // _LINES)
    said, evenly, own = lines[0], lines[1], lines[2]
    all_weights = x.dtype.type(0)
    for weight in weights:
        all_weights += weight
    to_label = x.dtype.type(1 - smoothing)
    to_each = x.dtype.type(smoothing / x.shape[1])
    for job in range(start, stop):
        n, first, count = _block(job, lines.shape[1], x.shape[2])
        peak, total = peaks[n, first : first + count], totals[n, first : first + count]
        label, given = labels[n, first : first + count], grad[n, first : first + count]
        for m in range(count):  # q is own[m] at the label and evenly[m] * weights[c] everywhere
            known = label[m] != ignore_index
            own[m] = given[m] * to_label * weights[label[m]] if known else 0
            evenly[m] = given[m] * to_each if known else 0
            said[m] = (own[m] + evenly[m] * all_weights) / total[m]
        for c in range(x.shape[1]):
            scores, row = x[n, c, first : first + count], result[n, c, first : first + count]
            weight = weights[c]
            for m in range(count):
                row[m] = exp_down_rule(scores[m] - peak[m]) * said[m] - evenly[m] * weight
        for m in range(count):
            if label[m] != ignore_index:
                result[n, label[m], first + m] -= own[m]


@cross_entropy_backward.cuda
def cross_entropy_backward_cuda(
    grad: CudaArray,
    divisor: CudaArray | None,
    x: CudaArray,
    peaks: CudaArray,
    totals: CudaArray,
    labels: CudaArray,
    weights: CudaArray,
    ignore_index: int,
    smoothing: float,
) -> CudaArray:
    result = device.empty_like(x)
    divided = divisor is not None
    _cross_entropy_backward_cuda[cover(labels.size)](
        *(grad, divisor if divided else grad, x, peaks, totals, labels, weights, result),
        *(min(1, grad.ndim), divided, *x.shape[1:]),
        ignore_index,
        *_shares(smoothing, x.shape[1]),
    )
    return result


@cuda.jit
def _cross_entropy_backward_cuda(
    grad: Array,
    divisor: Array,
    x: Array,
    peaks: Array,
    totals: Array,
    labels: Int64Array,
    weights: Array,
    result: Array,
    step: np.uint32,
    divided: bool,
    classes: np.uint32,
    pixels: np.uint32,
    ignore_index: np.int64,
    to_label: float,
    to_each: float,
) -> None:
    """From a pixel's gradient it is ``step`` numbers to the next one's: 1, or 0 for one number."""
    pixel = np.uint32(cuda.grid(1))
    if pixel >= labels.size:
        return
    first, label = _first_score(pixel, classes, pixels), labels[pixel]
    peak, total = peaks[pixel], totals[pixel]
    scores, c = cuda.local.array(_AT_ONCE, x.dtype), np.uint32(0)
    _ask(x, first, c, classes, pixels, scores, -np.inf)  # before they are needed
    given = grad[np.uint32(pixel * step)] if label != ignore_index else grad.dtype.type(0)
    if divided and label != ignore_index:
        given /= divisor[0]
    # q is own at the label and evenly * weights[c] everywhere; said is its sum over the total.
    own, evenly = grad.dtype.type(0), given * to_each
    if _is_class(label, classes):
        own = given * to_label * weights[np.uint32(label)]
    elif label != ignore_index:
        own = given * grad.dtype.type(np.nan)
    said = own
    if to_each > 0:
        for n in range(classes):
            said += evenly * weights[np.uint32(n)]
    said /= total
    while c < classes:
        for k in range(_AT_ONCE):
            each = np.uint32(c + np.uint32(k))
            if each < classes:
                q = own if each == label else grad.dtype.type(0)
                if to_each > 0:
                    q += evenly * weights[each]
                result[np.uint32(first + each * pixels)] = math.exp(scores[k] - peak) * said - q
        c = np.uint32(c + np.uint32(_AT_ONCE))
        _ask(x, first, c, classes, pixels, scores, -np.inf)


@cross_entropy_backward.meta
def cross_entropy_backward_meta(
    grad: MetaArray,
    divisor: MetaArray | None,
    x: MetaArray,
    peaks: MetaArray,
    totals: MetaArray,
    labels: MetaArray,
    weights: MetaArray,
    ignore_index: int,
    smoothing: float,
) -> MetaArray:
    return x


@kernel
def mean_loss(
    losses: Array, labels: Array, weights: Array, ignore_index: int
) -> tuple[Array, Array]:
    """(N, M) twice, (C,) -> two of (): the sum of the losses over that of their weights, and that.

    A pixel weighs what its class does, and nothing where its label is ``ignore_index``.
    """
    known = labels != ignore_index
    divisor = weights[labels[known]].sum()
    with np.errstate(all="ignore"):  # where no pixel counts it is 0/0, nan
        return np.asarray(losses.sum() / divisor), np.asarray(divisor)


@mean_loss.cpu
def mean_loss_cpu(
    losses: Array, labels: Array, weights: Array, ignore_index: int
) -> tuple[Array, Array]:
    lines = losses.reshape(-1), labels.reshape(-1)
    sums = np.empty((-(-losses.size // _SHORT), 2))  # float64
    share(_sum_losses, len(sums), *lines, weights, ignore_index, sums, least=worth_a_thread(_SHORT))
    total, divisor = sums.sum(axis=0).tolist()
    # Where no pixel counts it is 0/0: nan in NumPy, an error in Python.
    mean = total / divisor if divisor else total * math.copysign(math.inf, divisor)
    return np.asarray(mean, losses.dtype), np.asarray(divisor, losses.dtype)


_SHORT = 1024  # numbers that are summed in their own dtype; see `sum_to_shape`


@jit_relaxed
def _sum_losses(
    start: int,
    stop: int,
    losses: Array,
    labels: Array,
    weights: Array,
    ignore_index: int,
    sums: Array,
) -> None:
    """Job n is a run of `_SHORT` pixels: the sum of their losses, and that of their weights."""
    for job in range(start, stop):
        run = slice(job * _SHORT, (job + 1) * _SHORT)
        loss, label = losses[run], labels[run]
        total = weight = losses.dtype.type(0)
        for m in range(len(loss)):
            total += loss[m]
        for m in range(len(label)):
            known = label[m] != ignore_index
            of_class = weights[label[m] if known else 0]  # read in any case: it needs no jump
            weight += of_class if known else 0
        sums[job, 0], sums[job, 1] = total, weight


# On the GPU a block takes a short run of pixels, as `_sum_losses` does, and the last one to finish
# adds up what all of them found, in float64. Who adds what is settled by the number of pixels.

_THREADS = 8 if SIMULATED else 256  # of a block; a power of two
_EACH = 4  # pixels of a thread
_PART = _EACH * _THREADS


@mean_loss.cuda
def mean_loss_cuda(
    losses: CudaArray, labels: CudaArray, weights: CudaArray, ignore_index: int
) -> tuple[CudaArray, CudaArray]:
    parts = max(1, -(-losses.size // _PART))
    sums = device.empty((2, parts), losses.dtype)
    mean, divisor = device.empty((), losses.dtype), device.empty((), losses.dtype)
    arrays = losses, labels, weights, sums, mean, divisor, device.counters(1)
    _mean_loss_cuda[parts, _THREADS](*arrays, losses.size, ignore_index)
    return mean, divisor


@cuda.jit(launch_bounds=_THREADS)
def _mean_loss_cuda(
    losses: Array,
    labels: Int64Array,
    weights: Array,
    sums: Array,
    mean: Array,
    divisor: Array,
    counters: Int32Array,
    count: np.uint32,
    ignore_index: np.int64,
) -> None:
    """A block has the sum of its pixels' losses in the first row of ``sums``, of weights below.

    The last block makes two numbers of (2, parts).
    """
    block, thread = np.uint32(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x)
    parts = np.uint32(cuda.gridDim.x)
    loss_of = cuda.shared.array(_THREADS, np.float64)
    weight_of = cuda.shared.array(_THREADS, np.float64)
    loss = weight = nothing = losses.dtype.type(0)
    if count > 0:
        for k in range(_EACH):
            n = np.uint32(block * _PART + k * _THREADS + thread)
            at = n if n < count else np.uint32(0)  # read in any case: so all are asked for at once
            label = labels[at]
            known = (n < count) & (label != ignore_index) & _is_class(label, weights.size)
            of_class = weights[np.uint32(label if known else 0)]
            loss += losses[at] if n < count else nothing
            weight += of_class if known else nothing
    loss_of[thread], weight_of[thread] = loss, weight
    add_in_pairs(loss_of, thread, _THREADS)
    add_in_pairs(weight_of, thread, _THREADS)
    if thread == 0:
        sums[block], sums[np.uint32(parts + block)] = loss_of[0], weight_of[0]
    if not is_last_block(counters, 0, parts):
        return
    all_losses = all_weights = np.float64(0)
    part = thread
    while part < parts:
        all_losses += sums[part]
        all_weights += sums[np.uint32(parts + part)]
        part = np.uint32(part + np.uint32(_THREADS))
    loss_of[thread], weight_of[thread] = all_losses, all_weights
    add_in_pairs(loss_of, thread, _THREADS)
    add_in_pairs(weight_of, thread, _THREADS)
    if thread == 0:
        mean[0] = loss_of[0] / weight_of[0]  # 0/0 is nan where no pixel counts
        divisor[0] = weight_of[0]


@mean_loss.meta
def mean_loss_meta(
    losses: MetaArray, labels: MetaArray, weights: MetaArray, ignore_index: int
) -> tuple[MetaArray, MetaArray]:
    return (MetaArray((), losses.dtype),) * 2


# ---- the operations --------------------------------------------------------------------------


def around(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """Shape as (N, C, M): the product of the axes before ``axis``, its size, of those after it."""
    sizes = shape or (1,)
    return math.prod(sizes[:axis]), sizes[axis], math.prod(sizes[axis + 1 :])


class Softmax(Op):
    """Probabilities along an axis."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, x: Any) -> Any:
        self.out = softmax_forward(x.reshape(around(x.shape, self.axis)))
        return self.out.reshape(x.shape)

    def backward(self, grad: Any) -> Any:
        return softmax_backward(grad.reshape(self.out.shape), self.out).reshape(grad.shape)


class LogSoftmax(Op):
    """Logarithms of probabilities along an axis."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, x: Any) -> Any:
        self.out = log_softmax_forward(x.reshape(around(x.shape, self.axis)))
        return self.out.reshape(x.shape)

    def backward(self, grad: Any) -> Any:
        return log_softmax_backward(grad.reshape(self.out.shape), self.out).reshape(grad.shape)


class CrossEntropy(Op):
    """Surprise at the labels, pixel by pixel or summed up."""

    def __init__(
        self, labels: Any, weights: Any, ignore_index: int, reduction: str, smoothing: float
    ) -> None:
        self.labels, self.weights, self.ignore_index = labels, weights, ignore_index
        self.reduction, self.smoothing = reduction, smoothing
        self.divisor = None

    def forward(self, x: Any) -> Any:
        before, classes, after = around(x.shape, min(1, len(x.shape) - 1))
        self.x = x.reshape(before, classes, after)  # (N, C, M)
        self.x_shape, self.losses_shape = x.shape, self.labels.shape
        self.labels = self.labels.reshape(before, after)
        self.options = self.labels, self.weights, self.ignore_index, self.smoothing
        losses, self.peaks, self.totals = cross_entropy_forward(self.x, *self.options)
        if self.reduction == "none":
            return losses.reshape(self.losses_shape)
        if self.reduction == "sum":
            return sum_to_shape(losses, ())
        loss, self.divisor = mean_loss(losses, self.labels, self.weights, self.ignore_index)
        return loss

    def backward(self, grad: Any) -> Any:
        every_pixel = self.reduction != "none"  # they get one number
        grad = grad.reshape(() if every_pixel else self.labels.shape)
        kept = self.divisor, self.x, self.peaks, self.totals, *self.options
        return cross_entropy_backward(grad, *kept).reshape(self.x_shape)


@public
def softmax(input: Any, dim: int) -> Tensor:
    """Probabilities along an axis: ``exp(input)``, divided by its sum.

    Parameters
    ----------
    input : Tensor or array of any shape
    dim : int
        The axis of the classes, 1 for (N, C, H, W); negative axes count from the last. It has no
        default, since a wrong guess would go unseen.

    Returns
    -------
    Tensor of the input's shape

    Raises
    ------
    ShapeError
        If there is no such axis.
    """
    (x,) = as_tensors(input)
    return Softmax(check_dim("softmax", dim, x.ndim))(x)


@public
def log_softmax(input: Any, dim: int) -> Tensor:
    """Logarithm of the `softmax`, right even where the probability itself is too small to store.

    Parameters
    ----------
    input : Tensor or array of any shape
    dim : int
        The axis of the classes; negative axes count from the last.

    Returns
    -------
    Tensor of the input's shape

    Raises
    ------
    ShapeError
        If there is no such axis.
    """
    (x,) = as_tensors(input)
    return LogSoftmax(check_dim("log_softmax", dim, x.ndim))(x)


# ---- the loss --------------------------------------------------------------------------------


@public
def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of scores with labels, or with probabilities, for each pixel.

    Parameters
    ----------
    input : (N, C, H, W), (N, C), (N, C, ...) or (C,)
        Scores, not probabilities: the softmax is part of the loss.
    target : integers of shape (N, H, W), (N,), (N, ...) or (); or numbers of the input's shape
        The class of each pixel, 0 to C-1; or a probability for each class and pixel.
    weight : (C,), optional
        What one pixel of each class counts. It is not differentiated.
    ignore_index : int
        Label of pixels that do not count. Probabilities cannot be ignored.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the weights of the pixels that count, as PyTorch does (for
        probabilities: by the number of pixels). Where no pixel counts it is 0/0, nan.
    label_smoothing : float, from 0 to 1
        Share of the target that is spread evenly over all classes.

    Returns
    -------
    Tensor
        One number, or with ``reduction="none"`` one for each pixel.

    Raises
    ------
    DataError
        If a label is neither a class nor ``ignore_index``.
    ShapeError, DtypeError
        If target or weight do not fit the input.
    ConfigError
        If an option has no such value.

    Notes
    -----
    PyTorch's deprecated ``size_average`` and ``reduce`` are left out, so the options after
    ``weight`` are given by name. Losses are summed in float64, on the GPU by short sums of sums.
    Labels that are on the GPU already are not checked, which would mean to wait for them: the loss
    of one that is no class is nan.
    """
    (x,) = as_tensors(input)
    if x.ndim == 0 or x.shape[min(1, x.ndim - 1)] == 0:
        raise ShapeError(
            f"cross_entropy expected scores of shape (N, C, ...) or (C,) with at least one class; "
            f"got {x.shape}."
        )
    _check_options(ignore_index, reduction, label_smoothing)
    classes = x.shape[min(1, x.ndim - 1)]
    weights = _class_weights(weight, classes, x)
    given = target.data if isinstance(target, Tensor) else target
    if not isinstance(given, MetaArray | CudaArray):
        given = np.asarray(given)
    if given.shape == x.shape and given.dtype.kind == "f":
        soft = target if isinstance(target, Tensor) else given
        return _soft_cross_entropy(x, soft, weights, reduction, label_smoothing)
    labels = _labels(given, x.shape, ignore_index)
    if weights is None:
        ones = np.ones(classes, x.dtype)
        weights = device.kept(ones) if x.device == "cuda" else move(ones, x.device)
    labels = move(labels, x.device)
    return CrossEntropy(labels, weights, ignore_index, reduction, float(label_smoothing))(x)


def _soft_cross_entropy(
    x: Tensor, target: Any, weights: Any, reduction: str, smoothing: float
) -> Tensor:
    """Cross-entropy with probabilities, written out in the operations above."""
    axis = min(1, x.ndim - 1)
    classes = x.shape[axis]
    target = as_tensors(target)[0].to(x.device)
    if smoothing > 0:
        target = target * (1 - smoothing) + smoothing / classes
    surprise = -log_softmax(x, axis) * target
    if weights is not None:
        surprise = surprise * Tensor(weights.reshape((classes,) + (1,) * (x.ndim - axis - 1)))
    if reduction == "none":
        return sum_over(surprise, axis)  # type: ignore[no-any-return]
    loss = sum_over(surprise)
    return loss / (x.size // classes) if reduction == "mean" else loss  # type: ignore[no-any-return]


def _class_weights(weight: Any, classes: int, x: Tensor) -> Any:
    """The weights as an array on the input's device, or None."""
    if weight is None:
        return None
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise GraphError(
            "expected class weights outside the graph; got a tensor that requires grad. They are "
            "constants of the loss: pass weight.detach()."
        )
    (given,) = as_tensors(weight)
    if given.shape != (classes,):
        raise ShapeError(
            f"expected class weights of shape ({classes},), one number a class; got {given.shape}."
        )
    if given.dtype != x.dtype:
        raise DtypeError(
            f"expected class weights of {x.dtype}, as the scores are; got {given.dtype}. "
            f"Convert them with .astype({x.dtype.name!r})."
        )
    return move(given.data, x.device)


def _labels(given: Any, shape: tuple[int, ...], ignore_index: int) -> Any:
    """Labels as int64, checked: their shape, their dtype and every single one of them."""
    classes = shape[min(1, len(shape) - 1)]
    wanted = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    if given.shape != wanted:
        raise ShapeError(
            f"cross_entropy expected labels of shape {wanted}, the scores' {shape} without its "
            f"class axis, or probabilities of shape {shape}; got {given.dtype} of shape "
            f"{given.shape}. Labels hold class numbers: one-hot integers become labels by "
            ".argmax along the class axis."
        )
    if given.dtype.kind not in "iu":
        raise DtypeError(
            f"cross_entropy expected integer labels from 0 to {classes - 1}; got {given.dtype}. "
            "Make them with np.array([...]), or convert them with .to(np.int64) or, an array, "
            f".astype(np.int64). Probabilities take the shape of the scores, {shape}."
        )
    if isinstance(given, MetaArray):
        return given
    if isinstance(given, CudaArray):
        return given if given.dtype == np.int64 else given.astype(np.int64)
    labels = buffers.empty(given.shape, np.int64)  # a copy, for the user may edit theirs
    if given.dtype == np.uint64:  # the largest would turn negative, and might be ignored
        given = np.minimum(given, LARGEST_LABEL)
    if given.dtype != np.int64 or not given.flags.carray:
        given = given.astype(np.int64, order="C")
    if not _copy_labels(given.reshape(-1), classes, labels.reshape(-1)):
        return labels  # the common case
    wrong = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if wrong.any():
        where = tuple(int(place) for place in np.argwhere(wrong)[0])
        label = int(labels[where])
        raise DataError(
            f"expected labels from 0 to {classes - 1}, or {ignore_index} (ignore_index) for pixels "
            f"that do not count; got {label} at {where}. {_advice(label, classes)}"
        )
    return labels


def _advice(label: int, classes: int) -> str:
    if label == classes:  # likely counted from 1, or the network has an output too few
        return (
            "Labels count from 0: subtract 1, or give the network an output more; or pass "
            f"ignore_index={label} if it is no class."
        )
    return f"Map it to a class, or pass ignore_index={label}."


@jit_uncounted
def _copy_labels(given: Array, classes: int, labels: Array) -> int:
    """Copy them, and count those that are no class."""
    others = 0
    for n in range(len(labels)):
        label = given[n]
        labels[n] = label
        others += (label < 0) | (label >= classes)
    return others


def _check_options(ignore_index: int, reduction: str, smoothing: float) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ConfigError(f'reduction should be "mean", "sum" or "none", got {reduction!r}.')
    if not isinstance(smoothing, int | float) or not 0 <= smoothing <= 1:
        raise ConfigError(
            f"label_smoothing should lie between 0 and 1, got {smoothing!r}. "
            "It is the share of the target that is spread over all classes; 0.1 is usual."
        )
    try:
        fits = abs(as_integer(ignore_index)) <= LARGEST_LABEL
    except TypeError:
        raise ConfigError(f"ignore_index should be an integer, got {ignore_index!r}.") from None
    if not fits:
        raise ConfigError(
            f"ignore_index should be a number that a label can be, of 64 bits; got {ignore_index}."
        )
