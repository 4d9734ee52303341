"""Pooling: the largest number, or the mean, of what a window sees, channel by channel.

Definition: with the tap rule of every window,

    y = i * stride - padding + u * dilation          (rows)
    z = j * stride - padding + v * dilation          (columns)

    max_pool2d:  out[n, c, i, j] = max  over u, v of  input[n, c, y, z]
    avg_pool2d:  out[n, c, i, j] = sum over u, v of  input[n, c, y, z]  /  number of taps

The padding never wins a maximum and adds nothing to a sum. The paper's front end keeps three max
poolings of 2x2 with stride 2 and deletes VGG-16's last two: what they would have halved stays
sharp, and the layers after them are dilated instead.

Derivative: a maximum passes its gradient to the one pixel that won (the first of equals; nan
wins over numbers), so the forward pass notes who won. A mean gives each of its pixels an equal
share. Pixels that several windows see get the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tinydilate import buffers, device
from tinydilate.autograd import Op, Tensor, as_tensors, public
from tinydilate.device import Array, CudaArray, MetaArray, cover, cover_planes
from tinydilate.errors import ShapeError
from tinydilate.functional.unfolding import check_axes, padded, seen_by_tap, window_table
from tinydilate.kernel import (
    Int32Array,
    Int64Array,
    cuda,
    in_planes,
    jit,
    jit_uncounted,
    kernel,
    pair_at,
    ravel,
    tap,
    tapped_by,
    unravel,
)
from tinydilate.threads import share, worth_a_thread
from tinydilate.window import Pair, Window, are_plain, pair

_HALVING = Window((2, 2), (2, 2))  # the pooling that all networks here use


def covering(window: Window, size: Sequence[int]) -> Window:
    """Widen the padding at the end until every tap lies in the padded input.

    Only ``ceil_mode`` needs it, whose last window may hang over the edge.
    """
    padding = []
    for axis, count in enumerate(window.output_size(size)):
        before, after = window.padding[axis]
        last = (count - 1) * window.stride[axis] + window.extent[axis]  # where the last one ends
        padding.append((before, max(after, last - before - size[axis])))
    return window._replace(padding=(padding[0], padding[1]))


def output_shape(x: Any, window: Window) -> tuple[int, int, int, int]:
    """(N, C, H, W) -> (N, C, OH, OW)."""
    return (*x.shape[:2], *window.output_size(x.shape[2:]))


# ---- maximum ---------------------------------------------------------------------------------


@kernel
def max_pool2d_forward(x: Array, window: Window) -> tuple[Array, Array]:
    """(N, C, H, W) -> the maxima and their positions y*W + z, both (N, C, OH, OW)."""
    shape, wide = output_shape(x, window), covering(window, x.shape[2:])
    image = padded(x, wide)  # (N, C, PH, PW)
    plane = np.arange(x.shape[2] * x.shape[3]).reshape(1, 1, *x.shape[2:])  # y*W + z
    position = padded(plane + 1, wide) - 1  # (1, 1, PH, PW), -1 in the padding
    values = np.full(shape, -np.inf, x.dtype)
    indices = np.full(shape, -1, np.int64)
    for u in range(window.kernel[0]):
        for v in range(window.kernel[1]):
            value = seen_by_tap(image, wide, shape[2:], u, v)  # (N, C, OH, OW)
            index = np.broadcast_to(seen_by_tap(position, wide, shape[2:], u, v), shape)
            wins = (index >= 0) & ((indices < 0) | (value > values) | np.isnan(value))
            values, indices = np.where(wins, value, values), np.where(wins, index, indices)
    return values, indices


@max_pool2d_forward.cpu
def max_pool2d_forward_cpu(x: Array, window: Window) -> tuple[Array, Array]:
    if not _halves(x, window):
        return max_pool2d_forward_loops(x, window)
    return _run_max_pool(_max_pool_2x2, x, window)


def _halves(x: Any, window: Window) -> bool:
    """Whether it is the pooling of 2x2 with stride 2, and every window has four pixels."""
    if window[:4] != _HALVING[:4]:  # whatever the ceil_mode
        return False
    return not (window.ceil_mode and (x.shape[2] % 2 or x.shape[3] % 2))  # none hangs over


@max_pool2d_forward.variant("cpu:loops")
def max_pool2d_forward_loops(x: Array, window: Window) -> tuple[Array, Array]:
    (_, outs), (_, reach) = window.output_size(x.shape[2:]), _reach(window)
    windows = _whole_turns((outs - 1) * window.stride[1] + 1)
    tap_offsets, count_with = _offsets(window, x.shape[3]), _COUNTERS[x.dtype.itemsize]
    options = window.kernel, window.stride, window.before, window.dilation
    return _run_max_pool(
        *(_max_pool, x, window, windows, *options, tap_offsets, count_with),
        room=5 * windows + reach,
    )


# Whole numbers as wide as the numbers that are compared: a vector holds as many of both.
_COUNTERS = {4: np.empty(0, np.int32), 8: np.empty(0, np.int64)}
_TURN = 32  # numbers that a compiled loop takes in one turn, in several vectors


def _whole_turns(count: int) -> int:
    """Round up: what a loop has left after its last whole turn it does one by one."""
    return -(-count // _TURN) * _TURN


def _reach(window: Window) -> Pair:
    """From the first tap to the last."""
    return window.extent[0] - 1, window.extent[1] - 1


@lru_cache(1024)
def _offsets(window: Window, width: int) -> Array:
    """(taps,) int64: how far behind the window's first pixel each tap reads, in a plane."""
    rows, columns = (
        np.arange(count, dtype=np.int64) * apart
        for count, apart in zip(window.kernel, window.dilation, strict=True)
    )
    return np.add.outer(rows * width, columns).reshape(-1)


def _run_max_pool(
    body: Any, x: Array, window: Window, *options: Any, room: int = 0
) -> tuple[Array, Array]:
    shape = output_shape(x, window)
    values, indices = buffers.empty(shape, x.dtype), buffers.empty(shape, np.int64)
    count, size = shape[0] * shape[1], shape[2:]
    arrays = x.reshape(count, *x.shape[2:]), values.reshape(count, *size)
    share(
        *(body, count * size[0], *arrays, indices.reshape(count, *size), *options),
        least=worth_a_thread(shape[3] * window.taps),
        room=room,
        dtype=x.dtype,
    )
    return values, indices


@jit_uncounted
def _max_pool(
    start: int,
    stop: int,
    room: Array,
    x: Array,
    values: Array,
    indices: Array,
    windows: int,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    offsets: Array,
    counters: Array,
) -> None:
    """Job plane*OH + i is one output row: tap after tap challenges the largest number so far.

    That is done for a window at every column, for then each tap reads neighbours and vectors can
    do it; what the stride keeps is picked out at the end. Column p is z + padding, and where there
    is no pixel stands -inf, which beats nothing.
    """
    height, width = x.shape[1:]
    line, rows = room[: len(room) - 4 * windows], room[len(room) - 4 * windows :]
    line[:] = -np.inf
    first, last = min(padding[1], len(line)), min(padding[1] + width, len(line))
    old = rows[:windows], rows[windows : 2 * windows].view(counters.dtype)
    new = rows[2 * windows : 3 * windows], rows[3 * windows :].view(counters.dtype)
    for job in range(start, stop):
        plane, i = divmod(job, values.shape[1])
        old[0][:], old[1][:] = -np.inf, -1
        for u in range(kernel[0]):
            y = tap(i, u, stride[0], padding[0], dilation[0])
            if 0 <= y < height:
                _copy(x[plane, y], line[first:last])
                for v in range(kernel[1]):
                    number = counters.dtype.type(u * kernel[1] + v)
                    _challenge(line[v * dilation[1] :], number, old, new)
                    old, new = new, old
        corner = tap(i, 0, stride[0], padding[0], 1) * width - padding[1]
        given = values[plane, i], indices[plane, i]
        if stride[1] == 2:  # said apart: vectors can take every second number, if they know it
            complete = _keep(old, 2, corner, offsets, given)
        else:
            complete = _keep(old, stride[1], corner, offsets, given)
        if not complete:
            _look_again(x[plane], i, old[1], kernel, stride, padding, dilation, given)


@jit_uncounted
def _challenge(
    line: Array, number: Any, old: tuple[Array, Array], new: tuple[Array, Array]
) -> None:
    """Let what a tap reads challenge the largest number of each window, and the tap its holder.

    It reads one row of numbers and writes another: a number that stays where it is would be
    written under a mask, which takes ten cycles on processors without AVX-512.
    """
    (tops, holders), (raised, raised_by) = old, new
    for p in range(len(raised)):
        value, top, holder = line[p], tops[p], holders[p]
        wins = _beats(value, top)
        raised[p] = value if wins else top
        raised_by[p] = number if wins else holder


@jit
def _beats(value: float, best: float) -> bool:
    """Whether a number takes the place of the best before it: equals do not, nan always does."""
    return (value > best) | (value != value)  # nan is not itself


@jit_uncounted
def _keep(
    best: tuple[Array, Array], stride: int, corner: int, offsets: Array, given: tuple[Array, Array]
) -> bool:
    """Pick out the windows that the stride keeps; whether each of them has a winner."""
    (tops, holders), (values, where) = best, given
    losers = 0
    for j in range(len(values)):
        values[j], holder = tops[j * stride], holders[j * stride]
        losers += holder < 0
        where[j] = corner + j * stride + offsets[holder]
    return losers == 0


@jit_uncounted
def _look_again(
    image: Array,
    i: int,
    holders: Array,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    given: tuple[Array, Array],
) -> None:
    """Where nothing beat -inf: the first pixel that the window sees, if it sees any, is -inf."""
    height, width = image.shape
    values, where = given
    for j in range(len(values)):
        if holders[j * stride[1]] >= 0:
            continue
        values[j], where[j] = -np.inf, -1
        for u in range(kernel[0] - 1, -1, -1):  # the first comes last, and stays
            y = tap(i, u, stride[0], padding[0], dilation[0])
            for v in range(kernel[1] - 1, -1, -1):
                z = tap(j, v, stride[1], padding[1], dilation[1])
                if 0 <= y < height and 0 <= z < width:
                    where[j] = y * width + z


@jit_uncounted
def _copy(row: Array, target: Array) -> None:
    """As many numbers of the row as the target takes."""
    for z in range(len(target)):
        target[z] = row[z]


@jit_uncounted
def _max_pool_2x2(start: int, stop: int, x: Array, values: Array, indices: Array) -> None:
    """`_max_pool` of 2x2 with stride 2 and no padding: four numbers, no questions, vectors."""
    width = x.shape[2]
    for job in range(start, stop):
        plane, i = divmod(job, values.shape[1])
        upper, lower = x[plane, 2 * i], x[plane, 2 * i + 1]
        best, where = values[plane, i], indices[plane, i]
        for j in range(len(best)):
            left, right = upper[2 * j], upper[2 * j + 1]
            wins = _beats(right, left)
            top, top_at = (right, 1) if wins else (left, 0)
            left, right = lower[2 * j], lower[2 * j + 1]
            wins = _beats(right, left)
            bottom, bottom_at = (right, width + 1) if wins else (left, width)
            wins = _beats(bottom, top)
            best[j] = bottom if wins else top
            where[j] = 2 * (i * width + j) + (bottom_at if wins else top_at)


@max_pool2d_forward.cuda
def max_pool2d_forward_cuda(x: CudaArray, window: Window) -> tuple[CudaArray, CudaArray]:
    if not _halves(x, window):
        return max_pool2d_forward_windows(x, window)
    values, indices = _for_maxima(x, window)
    (height, width), (rows, columns) = x.shape[2:], values.shape[2:]
    _max_pool_2x2_cuda[cover(values.size)](x, values, indices, height, width, rows, columns)
    return values, indices


@max_pool2d_forward.variant("cuda:windows")
def max_pool2d_forward_windows(x: CudaArray, window: Window) -> tuple[CudaArray, CudaArray]:
    values, indices = _for_maxima(x, window)
    table = window_table(window, x.shape[2:], values.shape[2:])
    _max_pool_cuda[cover(values.size)](x, values, indices, table)
    return values, indices


def _for_maxima(x: CudaArray, window: Window) -> tuple[CudaArray, CudaArray]:
    shape = output_shape(x, window)
    return device.empty(shape, x.dtype), device.empty(shape, np.int64)


@cuda.jit
def _max_pool_cuda(x: Array, values: Array, indices: Int64Array, table: Int32Array) -> None:
    """The definition: a thread looks through one window."""
    n = np.uint32(cuda.grid(1))
    if n >= values.size:
        return
    (height, width), (rows, columns) = pair_at(table, 0), pair_at(table, 1)
    kernel, stride = pair_at(table, 2), pair_at(table, 3)
    padding, dilation = pair_at(table, 4), pair_at(table, 5)
    plane, i, j = unravel(n, rows, columns)
    best, where = x.dtype.type(-np.inf), -1
    for u in range(kernel[0]):
        y = tap(i, u, stride[0], padding[0], dilation[0])
        for v in range(kernel[1]):
            z = tap(j, v, stride[1], padding[1], dilation[1])
            if 0 <= y < height and 0 <= z < width:
                value = x[ravel(plane, y, z, height, width)]
                if where < 0 or _beats(value, best):
                    best, where = value, y * width + z
    values[n], indices[n] = best, where


@cuda.jit
def _max_pool_2x2_cuda(
    x: Array, values: Array, indices: Int64Array, height: int, width: int, rows: int, columns: int
) -> None:
    """`_max_pool_cuda` of 2x2 with stride 2 and no padding: four numbers, no questions."""
    n = np.uint32(cuda.grid(1))
    if n < values.size:
        plane, i, j = unravel(n, rows, columns)
        first = ravel(plane, 2 * i, 2 * j, height, width)
        best, where = x[first], 0
        for tap_number in range(1, 4):
            at = tap_number // 2 * width + tap_number % 2  # 1, width, width + 1
            value = x[first + np.uint32(at)]
            if _beats(value, best):
                best, where = value, at
        values[n], indices[n] = best, 2 * (i * width + j) + where


@max_pool2d_forward.meta
def max_pool2d_forward_meta(x: MetaArray, window: Window) -> tuple[MetaArray, MetaArray]:
    shape = output_shape(x, window)
    return MetaArray(shape, x.dtype), MetaArray(shape, np.int64)


# ---- its derivative --------------------------------------------------------------------------


@kernel
def max_pool2d_backward(grad: Array, indices: Array, size: Pair, window: Window) -> Array:
    """(N, C, OH, OW) twice -> (N, C, H, W): each gradient added to the pixel that won.

    The window tells nothing that the winners do not; but who starts from a pixel finds by it
    the outputs that the pixel may have won.
    """
    planes, outs = grad.shape[0] * grad.shape[1], grad.shape[2] * grad.shape[3]
    grads, winners = grad.reshape(planes, outs), indices.reshape(planes, outs)
    result = np.zeros((planes, size[0] * size[1]), grad.dtype)
    plane, out = np.nonzero(winners >= 0)  # a window that saw only padding has no winner
    np.add.at(result, (plane, winners[plane, out]), grads[plane, out])
    return result.reshape(*grad.shape[:2], *size)


@max_pool2d_backward.cpu
def max_pool2d_backward_cpu(grad: Array, indices: Array, size: Pair, window: Window) -> Array:
    result = buffers.empty((*grad.shape[:2], *size), grad.dtype)
    planes, outs = grad.shape[0] * grad.shape[1], grad.shape[2] * grad.shape[3]
    pixels = size[0] * size[1]
    grads, winners = grad.reshape(planes, outs), indices.reshape(planes, outs)
    # Threads share planes, so no two of them add to one pixel.
    arrays = grads, winners, result.reshape(planes, pixels)
    share(_give_to_winners, planes, *arrays, least=worth_a_thread(pixels))
    return result


@jit_uncounted
def _give_to_winners(start: int, stop: int, grad: Array, indices: Array, result: Array) -> None:
    for plane in range(start, stop):
        image, given, winners = result[plane], grad[plane], indices[plane]
        for pixel in range(len(image)):
            image[pixel] = 0
        for out in range(len(given)):
            if winners[out] >= 0:
                image[winners[out]] += given[out]


# On the GPU a thread has a pixel, and asks each output that saw it whether the pixel won there. So
# no two threads add to one pixel, and what is added comes in the order of the taps.


@max_pool2d_backward.cuda
def max_pool2d_backward_cuda(
    grad: CudaArray, indices: CudaArray, size: Pair, window: Window
) -> CudaArray:
    if window[:4] != _HALVING[:4]:  # whatever the ceil_mode
        return max_pool2d_backward_windows(grad, indices, size, window)
    result = device.empty((*grad.shape[:2], *size), grad.dtype)
    planes = grad.shape[0] * grad.shape[1]
    blocks = planes * -(-size[0] // 2) * -(-size[1] // 2)  # of 2x2 pixels, those cut off as well
    sizes = (*size, *grad.shape[2:])
    _give_to_one_of_four_cuda[cover(blocks)](grad, indices, result, planes, *sizes)
    return result


@max_pool2d_backward.variant("cuda:windows")
def max_pool2d_backward_windows(
    grad: CudaArray, indices: CudaArray, size: Pair, window: Window
) -> CudaArray:
    result = device.empty((*grad.shape[:2], *size), grad.dtype)
    table = window_table(window, size, grad.shape[2:])
    _take_what_was_won_cuda[cover(result.size)](grad, indices, result, table)
    return result


@cuda.jit
def _take_what_was_won_cuda(
    grad: Array, indices: Int64Array, result: Array, table: Int32Array
) -> None:
    n = np.uint32(cuda.grid(1))
    if n >= result.size:
        return
    (height, width), (rows, columns) = pair_at(table, 0), pair_at(table, 1)
    kernel, stride = pair_at(table, 2), pair_at(table, 3)
    padding, dilation = pair_at(table, 4), pair_at(table, 5)
    plane, y, z = unravel(n, height, width)
    total = grad.dtype.type(0)
    for u in range(kernel[0]):
        i = tapped_by(y, u, stride[0], padding[0], dilation[0], rows)
        for v in range(kernel[1]):
            j = tapped_by(z, v, stride[1], padding[1], dilation[1], columns)
            if i >= 0 and j >= 0:
                out = ravel(plane, i, j, rows, columns)
                if indices[out] == y * width + z:
                    total += grad[out]
    result[n] = total


@cuda.jit
def _give_to_one_of_four_cuda(
    grad: Array,
    indices: Int64Array,
    result: Array,
    planes: int,
    height: int,
    width: int,
    rows: int,
    columns: int,
) -> None:
    """The same of 2x2 with stride 2: no two windows share a pixel, so a thread has a window.

    Pixels at the end of an odd side are in no window; there the winner's number is none.
    """
    n = np.uint32(cuda.grid(1))
    plane, i, j = unravel(n, (height + 1) // 2, (width + 1) // 2)
    if plane >= planes:
        return
    winner, given = np.int32(-1), grad.dtype.type(0)
    if i < rows and j < columns:
        out = ravel(plane, i, j, rows, columns)
        winner, given = np.int32(indices[out]), grad[out]
    for u in range(2):
        for v in range(2):
            y, z = np.int32(2 * i + u), np.int32(2 * j + v)
            if y < height and z < width:
                won = y * width + z == winner
                result[ravel(plane, y, z, height, width)] = given if won else grad.dtype.type(0)


@max_pool2d_backward.meta
def max_pool2d_backward_meta(
    grad: MetaArray, indices: MetaArray, size: Pair, window: Window
) -> MetaArray:
    return MetaArray((*grad.shape[:2], *size), grad.dtype)


# ---- mean ------------------------------------------------------------------------------------


def divisors(window: Window, size: Sequence[int], include_pad: bool, divisor: int | None) -> Array:
    """What each output's sum is divided by: (OH, OW)."""
    return np.outer(*_counts(window, tuple(size), include_pad, divisor))


@lru_cache(256)
def _counts(
    window: Window, size: tuple[int, ...], include_pad: bool, divisor: int | None
) -> list[Array]:
    """The two factors of an output's divisor, one for its row and one for its column: (OH,), (OW,).

    They make ``divisor`` if it is given; else the window's pixels, the padding among them if
    ``include_pad``, but never what hangs over the padding in ``ceil_mode``.
    """
    output = window.output_size(size)
    if divisor is not None:
        return [np.full(output[0], divisor), np.ones(output[1], np.int64)]
    counts = []
    for axis, count in enumerate(output):
        before, after = window.padding[axis]
        first = np.arange(count) * window.stride[axis] - before  # tap 0 of each output
        last = first + window.kernel[axis]
        low, high = (-before, size[axis] + after) if include_pad else (0, size[axis])
        counts.append(np.minimum(last, high) - np.maximum(first, low))
    return counts


@kernel
def avg_pool2d_forward(
    x: Array, window: Window, include_pad: bool = True, divisor: int | None = None
) -> Array:
    """(N, C, H, W) -> (N, C, OH, OW): the sum of what each tap reads, divided."""
    shape, wide = output_shape(x, window), covering(window, x.shape[2:])
    image = padded(x, wide)  # (N, C, PH, PW)
    total = np.zeros(shape, x.dtype)
    for u in range(window.kernel[0]):
        for v in range(window.kernel[1]):
            total += seen_by_tap(image, wide, shape[2:], u, v)
    total /= divisors(window, x.shape[2:], include_pad, divisor)
    return total


@avg_pool2d_forward.cpu
def avg_pool2d_forward_cpu(
    x: Array, window: Window, include_pad: bool = True, divisor: int | None = None
) -> Array:
    shape = output_shape(x, window)
    out = buffers.empty(shape, x.dtype)
    count, size = shape[0] * shape[1], shape[2:]
    share(
        *(_avg_pool, count * size[0], x.reshape(count, *x.shape[2:]), out.reshape(count, *size)),
        *_known_counts(x.dtype, window, x.shape[2:], include_pad, divisor),
        *(window.kernel, window.stride, window.before),
        least=worth_a_thread(shape[3] * window.taps),
        room=2 * ((shape[3] - 1) * window.stride[1] + window.kernel[1]),
        dtype=x.dtype,
    )
    return out


@lru_cache(1024)
def _known_counts(dtype: Any, *options: Any) -> list[Array]:
    return [factor.astype(dtype) for factor in _counts(*options)]


@jit_uncounted
def _avg_pool(
    start: int,
    stop: int,
    room: Array,
    x: Array,
    out: Array,
    by_row: Array,
    by_column: Array,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
) -> None:
    """Job plane*OH + i is one output row, found in three passes along neighbours.

    First the sum of each column of the padded image, among the rows that the window sees; from
    those the sum of a window at every column; then the windows that the stride keeps.
    """
    height, width = x.shape[1:]
    columns, windows = room[: len(room) // 2], room[len(room) // 2 :]
    columns[:] = 0
    first, last = min(padding[1], len(columns)), min(padding[1] + width, len(columns))
    for job in range(start, stop):
        plane, i = divmod(job, out.shape[1])
        top = tap(i, 0, stride[0], padding[0], 1)
        seen = x[plane, max(top, 0) : max(min(top + kernel[0], height), 0)]  # (rows, W)
        _sum_rows(seen, columns[first:last])
        _sum_windows(columns, kernel[1], windows[: len(windows) - kernel[1] + 1])
        _keep_means(windows, stride[1], by_row[i], by_column, out[plane, i])


@jit_uncounted
def _sum_rows(rows: Array, total: Array) -> None:
    """(R, W) -> (W,), two rows at once."""
    if len(rows) == 0:
        total[:] = 0
    elif len(rows) == 1:
        _copy(rows[0], total)
    else:
        _sum_two(rows[0], rows[1], total)
    for r in range(2, len(rows)):
        _add(rows[r], total)


@jit_uncounted
def _sum_windows(line: Array, taps: int, total: Array) -> None:
    """Sum of the window of so many taps that begins at each position, two taps at once."""
    if taps == 1:
        _copy(line, total)
    else:
        _sum_two(line, line[1:], total)
    for v in range(2, taps):
        _add(line[v:], total)


@jit_uncounted
def _sum_two(a: Array, b: Array, total: Array) -> None:
    for n in range(len(total)):
        total[n] = a[n] + b[n]


@jit_uncounted
def _add(row: Array, total: Array) -> None:
    for n in range(len(total)):
        total[n] += row[n]


@jit_uncounted
def _keep_means(windows: Array, stride: int, by_row: float, by_column: Array, means: Array) -> None:
    if stride == 2:  # said apart: vectors can take every second number, if they know it is those
        for j in range(len(means)):
            means[j] = windows[2 * j] / (by_row * by_column[j])
    else:
        for j in range(len(means)):
            means[j] = windows[j * stride] / (by_row * by_column[j])


@avg_pool2d_forward.cuda
def avg_pool2d_forward_cuda(
    x: CudaArray, window: Window, include_pad: bool = True, divisor: int | None = None
) -> CudaArray:
    if not _halves(x, window):
        return avg_pool2d_forward_windows(x, window, include_pad, divisor)
    out = device.empty(output_shape(x, window), x.dtype)
    planes, count = out.shape[0] * out.shape[1], 4 if divisor is None else divisor
    sizes = planes, *x.shape[2:], *out.shape[2:]
    _avg_pool_2x2_cuda[cover_planes(planes, *out.shape[2:])](x, out, x.dtype.type(count), *sizes)
    return out


@avg_pool2d_forward.variant("cuda:windows")
def avg_pool2d_forward_windows(
    x: CudaArray, window: Window, include_pad: bool = True, divisor: int | None = None
) -> CudaArray:
    out = device.empty(output_shape(x, window), x.dtype)
    factors = _counts_on_cuda(x.dtype, window, x.shape[2:], include_pad, divisor)
    table, planes = window_table(window, x.shape[2:], out.shape[2:]), out.shape[0] * out.shape[1]
    _avg_pool_cuda[cover_planes(planes, *out.shape[2:])](x, out, *factors, table, planes)
    return out


def _counts_on_cuda(dtype: Any, *options: Any) -> list[CudaArray]:
    return [device.kept(factor.astype(dtype)) for factor in _counts(*options)]


@cuda.jit
def _avg_pool_cuda(
    x: Array, out: Array, by_row: Array, by_column: Array, table: Int32Array, planes: int
) -> None:
    """The definition: a thread sums up what the windows at one place see, plane after plane."""
    (height, width), (rows, columns) = pair_at(table, 0), pair_at(table, 1)
    kernel, stride, padding = pair_at(table, 2), pair_at(table, 3), pair_at(table, 4)
    j, i, first, down, deep = in_planes()
    if j >= columns:
        return
    z = tap(j, 0, stride[1], padding[1], 1)  # what of the window is in the image:
    left, right = np.int32(max(z, 0)), np.int32(min(z + kernel[1], width))
    while i < rows:
        y = tap(i, 0, stride[0], padding[0], 1)
        top, bottom = np.int32(max(y, 0)), np.int32(min(y + kernel[0], height))
        count = by_row[i] * by_column[j]
        plane = first
        while plane < planes:
            total = x.dtype.type(0)
            for row in range(top, bottom):
                for column in range(left, right):
                    total += x[ravel(plane, row, column, height, width)]
            out[ravel(plane, i, j, rows, columns)] = total / count
            plane = np.uint32(plane + deep)
        i = np.uint32(i + down)


@cuda.jit
def _avg_pool_2x2_cuda(
    x: Array,
    out: Array,
    count: float,
    planes: np.uint32,
    height: np.uint32,
    width: np.uint32,
    rows: np.uint32,
    columns: np.uint32,
) -> None:
    """`_avg_pool_cuda` of 2x2 with stride 2 and no padding: four numbers, all asked for at once."""
    j, i, first, down, deep = in_planes()
    if j >= columns:
        return
    while i < rows:
        plane = first
        while plane < planes:
            upper = ravel(plane, 2 * i, 2 * j, height, width)
            lower = np.uint32(upper + width)
            top = x[upper] + x[np.uint32(upper + np.uint32(1))]
            bottom = x[lower] + x[np.uint32(lower + np.uint32(1))]
            out[ravel(plane, i, j, rows, columns)] = (top + bottom) / count
            plane = np.uint32(plane + deep)
        i = np.uint32(i + down)


@avg_pool2d_forward.meta
def avg_pool2d_forward_meta(
    x: MetaArray, window: Window, include_pad: bool = True, divisor: int | None = None
) -> MetaArray:
    return MetaArray(output_shape(x, window), x.dtype)


# ---- its adjoint -----------------------------------------------------------------------------


@kernel
def avg_pool2d_backward(
    grad: Array, size: Pair, window: Window, include_pad: bool = True, divisor: int | None = None
) -> Array:
    """(N, C, OH, OW) -> (N, C, H, W): each gradient divided, and added to all it was made of."""
    wide = covering(window, size)
    parts = grad / divisors(window, size, include_pad, divisor).astype(grad.dtype)
    image = padded(np.zeros((*grad.shape[:2], *size), grad.dtype), wide)  # (N, C, PH, PW)
    for u in range(window.kernel[0]):
        for v in range(window.kernel[1]):
            view = seen_by_tap(image, wide, grad.shape[2:], u, v)
            view += parts
    top, left = window.before
    return image[:, :, top : top + size[0], left : left + size[1]].copy()


@avg_pool2d_backward.cpu
def avg_pool2d_backward_cpu(
    grad: Array, size: Pair, window: Window, include_pad: bool = True, divisor: int | None = None
) -> Array:
    result = buffers.empty((*grad.shape[:2], *size), grad.dtype)
    (count, outs), reach = (grad.shape[0] * grad.shape[1], grad.shape[3]), window.kernel[1] - 1
    spread = reach + max(outs * window.stride[1], window.before[1] + size[1])
    # Threads share planes, so no two of them add to one pixel.
    share(
        *(_avg_pool_backward, count),
        *(grad.reshape(count, *grad.shape[2:]), result.reshape(count, *size)),
        *_known_counts(grad.dtype, window, size, include_pad, divisor),
        *(window.kernel, window.stride, window.before),
        least=worth_a_thread(size[0] * size[1]),
        room=spread + size[1],
        dtype=grad.dtype,
    )
    return result


@jit_uncounted
def _avg_pool_backward(
    start: int,
    stop: int,
    room: Array,
    grad: Array,
    result: Array,
    by_row: Array,
    by_column: Array,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
) -> None:
    """The three passes of `_avg_pool` backwards: set apart, sum the windows, give to the rows.

    Pixel z gets from output j where ``j * stride = z + padding - v`` for one of the taps v. With
    the outputs ``stride`` apart and zeros between them, those are a window again.
    """
    height, width = result.shape[1:]
    apart, windows = room[: len(room) - width], room[len(room) - width :]
    apart[:] = 0
    for plane in range(start, stop):
        begun = 0  # rows that hold something
        for i in range(grad.shape[1]):
            top = tap(i, 0, stride[0], padding[0], 1)
            first, last = min(max(top, 0), height), min(top + kernel[0], height)
            _set_apart(grad[plane, i], stride[1], by_row[i], by_column, apart[kernel[1] - 1 :])
            _sum_windows(apart[padding[1] :], kernel[1], windows)
            result[plane, begun:first] = 0
            for y in range(first, last):
                if y < begun:
                    _add(windows, result[plane, y])
                else:
                    _copy(windows, result[plane, y])
            begun = max(begun, first, last)
        result[plane, begun:] = 0


@jit_uncounted
def _set_apart(grad: Array, stride: int, by_row: float, by_column: Array, apart: Array) -> None:
    """Each output's part, so many places apart; in between there are zeros already."""
    if stride == 2:  # said apart: vectors are written whole, the zeros in between included
        for j in range(len(grad)):
            apart[2 * j] = grad[j] / (by_row * by_column[j])
            apart[2 * j + 1] = 0
    else:
        for j in range(len(grad)):
            apart[j * stride] = grad[j] / (by_row * by_column[j])


@avg_pool2d_backward.cuda
def avg_pool2d_backward_cuda(
    grad: CudaArray,
    size: Pair,
    window: Window,
    include_pad: bool = True,
    divisor: int | None = None,
) -> CudaArray:
    apart = all(step >= taps for step, taps in zip(window.stride, window.kernel, strict=True))
    if not apart or window.stride[0] > _TALLEST:
        return avg_pool2d_backward_windows(grad, size, window, include_pad, divisor)
    result = device.empty((*grad.shape[:2], *size), grad.dtype)
    factors = _counts_on_cuda(grad.dtype, window, size, include_pad, divisor)
    table, planes = window_table(window, size, grad.shape[2:]), grad.shape[0] * grad.shape[1]
    strips = -(-(size[0] + window.before[0]) // window.stride[0])
    _avg_pool_backward_apart_cuda[cover_planes(planes, strips, size[1])](
        grad, result, *factors, table, planes, strips
    )
    return result


_TALLEST = 16  # rows that one thread writes; of more it is better to have more threads


@avg_pool2d_backward.variant("cuda:windows")
def avg_pool2d_backward_windows(
    grad: CudaArray,
    size: Pair,
    window: Window,
    include_pad: bool = True,
    divisor: int | None = None,
) -> CudaArray:
    result = device.empty((*grad.shape[:2], *size), grad.dtype)
    factors = _counts_on_cuda(grad.dtype, window, size, include_pad, divisor)
    table, planes = window_table(window, size, grad.shape[2:]), grad.shape[0] * grad.shape[1]
    _avg_pool_backward_cuda[cover_planes(planes, *size)](grad, result, *factors, table, planes)
    return result


@jit
def _seen_by(y: Any, kernel: Any, stride: Any, padding: Any, outputs: Any) -> Any:
    """Outputs from the first to before the last whose windows, without dilation, see pixel y."""
    last = (y + padding) // stride  # the one whose tap 0 is there, or nearest before it
    first = -((kernel - 1 - y - padding) // stride)  # the one that has its last tap there
    return np.int32(max(first, 0)), np.int32(min(last + 1, outputs))


@cuda.jit
def _avg_pool_backward_cuda(
    grad: Array, result: Array, by_row: Array, by_column: Array, table: Int32Array, planes: int
) -> None:
    """A thread sums up the parts that one pixel has in the outputs that saw it, plane by plane."""
    (height, width), (rows, columns) = pair_at(table, 0), pair_at(table, 1)
    kernel, stride, padding = pair_at(table, 2), pair_at(table, 3), pair_at(table, 4)
    z, y, first, down, deep = in_planes()
    if z >= width:
        return
    left, right = _seen_by(np.int32(z), kernel[1], stride[1], padding[1], columns)
    while y < height:
        top, bottom = _seen_by(np.int32(y), kernel[0], stride[0], padding[0], rows)
        plane = first
        while plane < planes:
            total = grad.dtype.type(0)
            for i in range(top, bottom):
                for j in range(left, right):
                    part = grad[ravel(plane, i, j, rows, columns)]
                    total += part / (by_row[np.uint32(i)] * by_column[np.uint32(j)])
            result[ravel(plane, y, z, height, width)] = total
            plane = np.uint32(plane + deep)
        y = np.uint32(y + down)


@cuda.jit
def _avg_pool_backward_apart_cuda(
    grad: Array,
    result: Array,
    by_row: Array,
    by_column: Array,
    table: Int32Array,
    planes: np.uint32,
    strips: np.uint32,
) -> None:
    """The same where no two windows share a pixel: a thread has what one column of a window gets.

    That is one number, which is read and divided once. Strip i of the padded image is ``stride``
    rows high; the rows of output i are its first ones, if there is such an output.
    """
    (height, width), (rows, columns) = _unsigned(table, 0), _unsigned(table, 1)
    kernel, stride, padding = _unsigned(table, 2), _unsigned(table, 3), _unsigned(table, 4)
    z, i, first, down, deep = in_planes()
    if z >= width:
        return
    j = np.uint32(np.uint32(z + padding[1]) // stride[1])
    seen = np.uint32(z + padding[1] - j * stride[1]) < kernel[1] and j < columns
    tall = min(stride[0], np.uint32(height + padding[0]))  # a strip may be taller than the image
    while i < strips:
        y = np.uint32(i * stride[0] - padding[0])  # above the image it wraps around: beyond it
        seen_too = seen and i < rows
        count = by_row[i] * by_column[j] if seen_too else grad.dtype.type(1)
        plane = first
        while plane < planes:
            part = grad.dtype.type(0)
            if seen_too:
                part = grad[ravel(plane, i, j, rows, columns)] / count
            u = np.uint32(0)
            while u < tall:
                row = np.uint32(y + u)
                if row < height:
                    given = part if u < kernel[0] else grad.dtype.type(0)
                    result[ravel(plane, row, z, height, width)] = given
                u = np.uint32(u + np.uint32(1))
            plane = np.uint32(plane + deep)
        i = np.uint32(i + down)


@jit
def _unsigned(table: Any, k: int) -> Any:
    """`pair_at` as numbers without a sign."""
    first, second = pair_at(table, k)
    return np.uint32(first), np.uint32(second)


@avg_pool2d_backward.meta
def avg_pool2d_backward_meta(
    grad: MetaArray,
    size: Pair,
    window: Window,
    include_pad: bool = True,
    divisor: int | None = None,
) -> MetaArray:
    return MetaArray((*grad.shape[:2], *size), grad.dtype)


# ---- the operations --------------------------------------------------------------------------


class MaxPool(Op):
    """The largest number in each window."""

    def __init__(self, window: Window) -> None:
        self.window = window

    def forward(self, x: Any) -> Any:
        self.size = x.shape[2:]
        out, self.indices = max_pool2d_forward(x, self.window)
        return out

    def backward(self, grad: Any) -> Any:
        return max_pool2d_backward(grad, self.indices, self.size, self.window)


class AvgPool(Op):
    """The mean of each window."""

    def __init__(self, window: Window, include_pad: bool, divisor: int | None) -> None:
        self.options = window, include_pad, divisor

    def forward(self, x: Any) -> Any:
        self.size = x.shape[2:]
        return avg_pool2d_forward(x, *self.options)

    def backward(self, grad: Any) -> Any:
        return avg_pool2d_backward(grad, self.size, *self.options)


@public
def max_pool2d(
    input: Any,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Largest number in each window.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W)
    kernel_size : int or (rows, columns)
    stride : int or (rows, columns), optional
        Pixels from one window to the next; ``kernel_size`` if not given, so that windows touch.
    padding : int or (rows, columns)
        Pixels around the input that never win; at most half the kernel.
    dilation : int or (rows, columns)
        Pixels from one tap to the next.
    ceil_mode : bool
        Whether a last window counts that hangs over the edge, so that no pixel is left out.
    return_indices : bool
        Whether to return as well where each maximum stands.

    Returns
    -------
    Tensor, (N, C, OH, OW), or without N for an unbatched input
        With ``return_indices`` a pair: the maxima, and int64 positions y*W + z in the input's
        plane. A window that sees nothing but padding gives -inf and position -1.

    Raises
    ------
    ShapeError
        If the window does not fit into the padded input, or the padding exceeds half the kernel.
    """
    (x,) = as_tensors(input)
    window = _pooling_window(kernel_size, stride, padding, dilation, ceil_mode)
    op = MaxPool(window)
    out = op(_batched("max_pool2d", x))
    if x.ndim == 3:
        out = out.reshape(*out.shape[1:])
    return (out, Tensor(op.indices.reshape(*out.shape))) if return_indices else out


@public
def avg_pool2d(
    input: Any,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean of each window.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W)
    kernel_size : int or (rows, columns)
    stride : int or (rows, columns), optional
        Pixels from one window to the next; ``kernel_size`` if not given, so that windows touch.
    padding : int or (rows, columns)
        Zeros around the input; at most half the kernel.
    ceil_mode : bool
        Whether a last window counts that hangs over the edge, so that no pixel is left out.
    count_include_pad : bool
        Whether the zeros count as pixels of the mean.
    divisor_override : int, optional
        Divide every sum by this instead of by the number of pixels.

    Returns
    -------
    Tensor, (N, C, OH, OW), or without N for an unbatched input

    Raises
    ------
    ShapeError
        If the window does not fit into the padded input, the padding exceeds half the kernel, or
        ``divisor_override`` is 0.
    """
    (x,) = as_tensors(input)
    divisor = _divisor(divisor_override)
    window = _pooling_window(kernel_size, stride, padding, 1, ceil_mode)
    op = AvgPool(window, bool(count_include_pad), divisor)
    out = op(_batched("avg_pool2d", x))
    return out if x.ndim == 4 else out.reshape(*out.shape[1:])


def _divisor(given: Any) -> Any:
    """What avg_pool2d is told to divide by, if anything, as a Python number."""
    if given is None:
        return None
    if not isinstance(given, int | float | np.integer | np.floating) or given == 0:
        raise ShapeError(
            f"avg_pool2d expected a number other than 0 as its divisor_override; got {given!r}. "
            "Leave it out to divide by the number of pixels."
        )
    return given if isinstance(given, int) else float(given)


def _pooling_window(
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    ceil_mode: bool,
) -> Window:
    """The window, its stride the kernel's size by default, its padding at most half the kernel."""
    options = (kernel_size, stride, padding, dilation, bool(ceil_mode))
    if are_plain(kernel_size, 1 if stride is None else stride, padding, dilation):
        return _known_window(*options)  # see conv2d
    return _checked_window(*options)


def _checked_window(
    kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Window:
    around = pair(padding, "padding", 0)
    steps = kernel_size if stride is None else stride
    window = Window.of(kernel_size, steps, around, dilation, ceil_mode)
    if any(2 * added > taps for added, taps in zip(around, window.kernel, strict=True)):
        raise ShapeError(
            f"pooling expected a padding of at most {tuple(taps // 2 for taps in window.kernel)}, "
            f"half its kernel of {window.kernel}; got {around}. Pad less, or take a larger kernel."
        )
    return window


_known_window = lru_cache(4096)(_checked_window)


def _batched(name: str, x: Tensor) -> Tensor:
    """(C, H, W) -> (1, C, H, W); refuse other numbers of axes, and images without pixels."""
    if x.ndim == 3:
        x = x.reshape(1, *x.shape)
    check_axes(name, x.shape, 4, "(N, C, H, W) or (C, H, W)")
    if 0 in x.shape[2:]:
        raise ShapeError(f"{name} expected images with pixels; got shape {x.shape}.")
    return x
