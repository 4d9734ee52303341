"""Padding: a border around the image, made of a constant or of the image itself.

Definition: along each axis an index map says which input position an output position shows,

    out[i] = input[m[i]],     or the constant where m[i] = -1 (no position)

and a padding of ``before`` and ``after`` pixels makes the map from p = i - before:

    constant    m[i] = p inside the image, -1 outside
    replicate   m[i] = the nearest position inside the image
    reflect     m[i] = p mirrored about the first or the last pixel, which is not repeated:
                ... 2 1 | 0 1 2 3 | 2 1 ...

Negative padding crops: the map simply starts later or ends earlier. Several axes at once need
one map each, because the position along one axis does not depend on the others.

The paper pads its images by reflection ("filled by reflecting the image about each edge",
section 4), by more pixels than a small image has: see `reflect_border`.

Derivative: the adjoint of reading through a map. Each output's gradient is added to the input
position that it showed; what showed the constant is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from operator import index
from typing import Any, NamedTuple

import numpy as np

from tinydilate import buffers, device
from tinydilate.autograd import Op, Tensor, as_tensors, public
from tinydilate.device import Array, CudaArray, MetaArray, cover_planes
from tinydilate.errors import ShapeError
from tinydilate.kernel import (
    Int32Array,
    Int64Array,
    cuda,
    in_planes,
    jit,
    jit_uncounted,
    kernel,
    ravel,
)
from tinydilate.threads import share, worth_a_thread
from tinydilate.window import Pair

# ---- the index maps --------------------------------------------------------------------------


class IndexMaps(NamedTuple):
    """For each output row and column the input row and column that it shows; -1 shows none."""

    rows: Array  # (OH,) int64
    columns: Array  # (OW,) int64


def index_map(size: int, before: int, after: int, mode: str) -> Array:
    """Index map of one axis, ``before + size + after`` positions long.

    Parameters
    ----------
    size : int
        Input positions along the axis.
    before, after : int
        Positions to add at either end; negative ones are cropped.
    mode : {"constant", "reflect", "replicate"}
        What the new positions show. A reflection wider than the image is reflected again.

    Returns
    -------
    (before + size + after,) int64
    """
    p = np.arange(-before, size + after, dtype=np.int64)
    if mode == "constant":
        return np.where((p >= 0) & (p < size), p, -1)
    if mode == "replicate" or size == 1:  # one pixel has nothing beside it to reflect
        return np.clip(p, 0, size - 1)
    period = 2 * (size - 1)  # there and back: 0 1 2 3 2 1 | 0 1 2 3 2 1 | ...
    p %= period
    return np.minimum(p, period - p)


def merge(outer: Array, inner: Array, inner_size: int) -> Array:
    """Index map of two neighbouring axes taken as one: (OA,), (OB,) -> (OA*OB,)."""
    both = outer[:, None] * inner_size + inner  # (OA, OB)
    both[outer < 0] = -1
    both[:, inner < 0] = -1
    return both.reshape(-1)


@lru_cache(256)
def index_maps(sizes: tuple[int, ...], borders: tuple[Pair, ...], mode: str) -> IndexMaps:
    """The two maps that the kernels take, for axes of these sizes: any before the last are rows.

    Each step of training asks for the same ones, so they are kept. Nobody writes to them.
    """
    maps = [index_map(size, *border, mode) for size, border in zip(sizes, borders, strict=True)]
    rows = np.zeros(1, np.int64)
    for outer, size in zip(maps[:-1], sizes[:-1], strict=True):
        rows = merge(rows, outer, size)
    return IndexMaps(rows, maps[-1])


class Showing(NamedTuple):
    """An index map the other way round: for each input position the outputs that show it.

    Those of position y are ``outputs[first[y]:first[y + 1]]``, in their order.
    """

    first: Array  # (size + 1,) int32
    outputs: Array  # (outputs that show something,) int32


def showing(map: Array, size: int) -> Showing:
    """Turn an index map round."""
    seen = np.flatnonzero(map >= 0)
    order = np.argsort(map[seen], kind="stable")
    counts = np.bincount(map[seen], minlength=size)
    first = np.concatenate([[0], np.cumsum(counts)])
    return Showing(first.astype(np.int32), seen[order].astype(np.int32))


# ---- forward ---------------------------------------------------------------------------------


@kernel
def pad_forward(x: Array, maps: IndexMaps, value: float) -> Array:
    """(P, H, W) -> (P, OH, OW): the planes read through the maps; ``value`` at -1."""
    out = np.full((len(x), len(maps.rows), len(maps.columns)), value, x.dtype)
    i, j = np.flatnonzero(maps.rows >= 0), np.flatnonzero(maps.columns >= 0)
    out[:, i[:, None], j] = x[:, maps.rows[i][:, None], maps.columns[j]]
    return out


@pad_forward.cpu
def pad_forward_cpu(x: Array, maps: IndexMaps, value: float) -> Array:
    out = buffers.empty((len(x), len(maps.rows), len(maps.columns)), x.dtype)
    jobs, least = out.shape[0] * out.shape[1], worth_a_thread(out.shape[2])
    share(_pad, jobs, x, maps.rows, maps.columns, x.dtype.type(value), out, least=least)
    return out


@jit_uncounted
def _longest_run(columns: Array) -> tuple[int, int]:
    """Where the map's longest run of neighbours m, m + 1, m + 2, ... begins and ends.

    It is the inside of a padded row, which is copied in one piece.
    """
    begin, end, first = 0, 0, 0
    for j in range(len(columns)):
        if columns[j] < 0:
            first = j + 1
        elif j > first and columns[j] != columns[j - 1] + 1:
            first = j
        if j + 1 - first > end - begin:
            begin, end = first, j + 1
    return begin, end


@jit_uncounted
def _is_alone(columns: Array, begin: int, end: int) -> bool:
    """Whether the map shows nothing outside its longest run, as where zeros are added."""
    shown = 0
    for column in columns:
        shown += column >= 0
    return bool(shown == end - begin)


@jit_uncounted
def _pad(
    start: int, stop: int, x: Array, rows: Array, columns: Array, value: Any, out: Array
) -> None:
    """Job p*OH + i is one output row."""
    begin, end = _longest_run(columns)
    alone = _is_alone(columns, begin, end)
    mirrors = _falls(columns[:begin]), _falls(columns[end:])
    for job in range(start, stop):
        plane, i = divmod(job, len(rows))
        target = out[plane, i]
        if rows[i] < 0:
            _fill(target, value)
        elif i > 0 and job > start and rows[i] == rows[i - 1]:  # as when an image is enlarged
            _copy(out[plane, i - 1], target)
        else:
            source = x[plane, rows[i]]
            if alone:
                _fill(target[:begin], value)
                _fill(target[end:], value)
            else:
                _read_row(source, columns[:begin], value, mirrors[0], target[:begin])
                _read_row(source, columns[end:], value, mirrors[1], target[end:])
            if begin < end:
                _copy(source[columns[begin] :], target[begin:end])


@jit_uncounted
def _falls(columns: Array) -> bool:
    """Whether a map is one run m, m - 1, m - 2, ..., as where a row is reflected."""
    falling = 0
    for j in range(len(columns)):
        falling += columns[j] >= 0 and columns[j] == columns[0] - j
    return bool(falling == len(columns) and falling > 0)


@jit_uncounted
def _fill(target: Array, value: Any) -> None:
    for j in range(len(target)):
        target[j] = value


@jit_uncounted
def _copy(source: Array, target: Array) -> None:
    """As many numbers as the target takes."""
    for j in range(len(target)):
        target[j] = source[j]


@jit_uncounted
def _read_row(source: Array, columns: Array, value: Any, mirrored: bool, target: Array) -> None:
    """Part of a row, number by number, or turned round as a whole."""
    if mirrored:
        _copy(source[columns[-1] : columns[0] + 1][::-1], target)
    else:
        for j in range(len(target)):
            c = columns[j]
            number = source[c if c >= 0 else 0]  # in any case: a choice of values needs no jump
            target[j] = number if c >= 0 else value


@pad_forward.cuda
def pad_forward_cuda(x: CudaArray, maps: IndexMaps, value: float) -> CudaArray:
    out = device.empty((len(x), len(maps.rows), len(maps.columns)), x.dtype)
    rows, columns = map(device.kept, maps)
    value = x.dtype.type(value)  # inf where it is too large for float32
    _pad_cuda[cover_planes(*out.shape)](x, rows, columns, value, out, *x.shape)
    return out


@cuda.jit
def _pad_cuda(
    x: Array,
    rows: Int64Array,
    columns: Int64Array,
    value: float,
    out: Array,
    planes: int,
    height: int,
    width: int,
) -> None:
    """A thread has one column of the output, and there a number of some rows and planes."""
    j, i, first, down, deep = in_planes()
    if j >= columns.size:
        return
    z = np.int32(columns[j])
    while i < rows.size:
        y = np.int32(rows[i])
        inside = y >= 0 and z >= 0
        plane = first
        while plane < planes:
            seen = x[ravel(plane, y, z, height, width)] if inside else value
            out[ravel(plane, i, j, rows.size, columns.size)] = seen
            plane = np.uint32(plane + deep)
        i = np.uint32(i + down)


@pad_forward.meta
def pad_forward_meta(x: MetaArray, maps: IndexMaps, value: float) -> MetaArray:
    return MetaArray((x.shape[0], len(maps.rows), len(maps.columns)), x.dtype)


# ---- its adjoint -----------------------------------------------------------------------------


@kernel
def pad_backward(grad: Array, maps: IndexMaps, size: Pair) -> Array:
    """(P, OH, OW) -> (P, H, W): each number added to the position that it showed."""
    result = np.zeros((len(grad), *size), grad.dtype)
    i, j = np.flatnonzero(maps.rows >= 0), np.flatnonzero(maps.columns >= 0)
    seen: Any = (slice(None), maps.rows[i][:, None], maps.columns[j])
    np.add.at(result, seen, grad[:, i[:, None], j])
    return result


class Run(NamedTuple):
    """A run of neighbouring output positions that shows neighbouring input positions."""

    showing: int  # its first output position
    shown: int  # its first input position
    length: int


def only_run(map: Array) -> Run | None:
    """The run of a map that has one and shows nothing outside it; None for any other map."""
    begin, end = _longest_run(map)
    if begin == end or not _is_alone(map, begin, end):
        return None
    return Run(begin, int(map[begin]), end - begin)


@pad_backward.cpu
def pad_backward_cpu(grad: Array, maps: IndexMaps, size: Pair) -> Array:
    result = buffers.empty((len(grad), *size), grad.dtype)
    rows, columns = only_run(maps.rows), only_run(maps.columns)
    if rows is not None and columns is not None:  # as where zeros were added: it is a cut-out
        least = worth_a_thread(size[1])
        share(_cut_out, len(grad) * size[0], grad, rows, columns, result, least=least)
        return result
    # Threads share planes, so no two of them add to one position.
    share(
        *(_pad_backward, len(grad), grad, maps.rows, maps.columns, result),
        least=worth_a_thread(len(maps.rows) * len(maps.columns)),
        room=max(1, len(maps.columns)),
        dtype=grad.dtype,
    )
    return result


@jit_uncounted
def _cut_out(start: int, stop: int, grad: Array, rows: Run, columns: Run, result: Array) -> None:
    """Job p*H + y is one row of the result: a piece of one row of the gradient, or zeros."""
    height, begin, end = result.shape[1], columns.shown, columns.shown + columns.length
    for job in range(start, stop):
        plane, y = job // height, job % height
        target, nothing = result[plane, y], result.dtype.type(0)
        if not 0 <= y - rows.shown < rows.length:
            _fill(target, nothing)
            continue
        _fill(target[:begin], nothing)
        _fill(target[end:], nothing)
        source = grad[plane, y - rows.shown + rows.showing]
        _copy(source[columns.showing :], target[begin:end])


@jit_uncounted
def _pad_backward(
    start: int, stop: int, room: Array, grad: Array, rows: Array, columns: Array, result: Array
) -> None:
    begin, end = _longest_run(columns)
    sums, times = room[: len(columns)], _times(columns, result.shape[2])
    for plane in range(start, stop):
        for y in range(result.shape[1]):
            _fill(result[plane, y], result.dtype.type(0))
        i = 0
        while i < len(rows):
            y, line, i = rows[i], grad[plane, i], i + 1
            if i < len(rows) and rows[i] == y:  # neighbours that showed the same row: sum them
                _copy(line, sums)
                while i < len(rows) and rows[i] == y:
                    _add(grad[plane, i], sums)
                    i += 1
                line = sums
            if y < 0:
                continue
            target = result[plane, y]
            if times > 0:
                _add_neighbours(line, times, target)
                continue
            if begin < end:
                _add(line[begin:end], target[columns[begin] :])
            _add_row(line[:begin], columns[:begin], target)
            _add_row(line[end:], columns[end:], target)


@jit_uncounted
def _times(columns: Array, width: int) -> int:
    """How often a map shows each position, if that is 0 0 0 1 1 1 ..., as where it enlarges; or 0.

    Once is not enough: that is a run, which is added as it is.
    """
    times, ordered = len(columns) // max(1, width), 0
    for j in range(len(columns)):
        ordered += columns[j] == j // max(1, times)
    return times if times > 1 and ordered == times * width == len(columns) else 0


@jit_uncounted
def _add_neighbours(line: Array, times: int, target: Array) -> None:
    """Add to each position the so many neighbours that showed it.

    One by one, as in `_add_row`, each would wait until the one before it is written.
    """
    if times == 2:  # said apart: vectors can take every second number, if they know it
        for z in range(len(target)):
            target[z] += line[2 * z] + line[2 * z + 1]
    else:
        for z in range(len(target)):
            total = target[z]
            for j in range(z * times, (z + 1) * times):
                total += line[np.uint64(j)]
            target[z] = total


@jit_uncounted
def _add(line: Array, target: Array) -> None:
    """All of the line."""
    for j in range(len(line)):
        target[j] += line[j]


@jit_uncounted
def _add_row(line: Array, columns: Array, target: Array) -> None:
    """Part of a row, each number added to the position that it showed."""
    for j in range(len(line)):
        if columns[j] >= 0:
            target[columns[j]] += line[j]


# On the GPU, too, it may be a cut-out: if no position was shown twice, as where zeros were added,
# the kernel of `pad_forward` finds each gradient by the maps turned round. Otherwise a thread has
# an input position and adds up the outputs that showed it: no two threads add to one position, and
# the order of adding is always the same.


@pad_backward.cuda
def pad_backward_cuda(grad: CudaArray, maps: IndexMaps, size: Pair) -> CudaArray:
    result = device.empty((len(grad), *size), grad.dtype)
    back = [device.tables(turned, [map], n) for map, n in zip(maps, size, strict=True)]
    grid = cover_planes(*result.shape)
    if all(back):
        (rows,), (columns,) = back
        _pad_cuda[grid](grad, rows, columns, grad.dtype.type(0), result, *grad.shape)
    else:
        by_row, by_column = (
            device.tables(showing, [map], n) for map, n in zip(maps, size, strict=True)
        )
        _pad_backward_cuda[grid](grad, *by_row, *by_column, result, *grad.shape)
    return result


def turned(map: Array, size: int) -> list[Array]:
    """The map that says which output shows an input position; none if one is shown by two."""
    seen = np.flatnonzero(map >= 0)
    outputs = np.full(size, -1)
    outputs[map[seen]] = seen
    return [outputs] if np.count_nonzero(outputs >= 0) == len(seen) else []


@cuda.jit
def _pad_backward_cuda(
    grad: Array,
    first_of_row: Int32Array,
    rows: Int32Array,
    first_of_column: Int32Array,
    columns: Int32Array,
    result: Array,
    planes: np.uint32,
    height: np.uint32,
    width: np.uint32,
) -> None:
    """A position that was shown once, as most are, gets its one number without a loop."""
    z, y, start, down, deep = in_planes()
    size = np.uint32(first_of_row.size - 1), np.uint32(first_of_column.size - 1)
    if z >= size[1]:
        return
    left, across = _run_of(first_of_column, z)
    while y < size[0]:
        top, high = _run_of(first_of_row, y)
        once = high == 1 and across == 1
        i, j = np.int32(rows[top] if once else 0), np.int32(columns[left] if once else 0)
        plane = start
        while plane < planes:
            total = grad.dtype.type(0)
            if once:
                total = grad[ravel(plane, i, j, height, width)]
            else:
                a = np.uint32(0)
                while a < high:
                    row, b = rows[np.uint32(top + a)], np.uint32(0)
                    while b < across:
                        column = columns[np.uint32(left + b)]
                        total += grad[ravel(plane, row, column, height, width)]
                        b = np.uint32(b + np.uint32(1))
                    a = np.uint32(a + np.uint32(1))
            result[ravel(plane, y, z, size[0], size[1])] = total
            plane = np.uint32(plane + deep)
        y = np.uint32(y + down)


@jit
def _run_of(first: Array, y: Any) -> Any:
    """Of the outputs that showed position y: where they begin, and how many; see `Showing`."""
    begin, end = first[y], first[np.uint32(y + np.uint32(1))]
    return np.uint32(begin), np.uint32(end - begin)


@pad_backward.meta
def pad_backward_meta(grad: MetaArray, maps: IndexMaps, size: Pair) -> MetaArray:
    return MetaArray((grad.shape[0], *size), grad.dtype)


# ---- the operation ---------------------------------------------------------------------------


class Pad(Op):
    """The input read through one index map for each of its last axes."""

    def __init__(self, borders: Sequence[Pair], mode: str, value: float = 0.0) -> None:
        self.borders, self.mode, self.value = tuple(borders), mode, value

    def forward(self, x: Any) -> Any:
        first = x.ndim - len(self.borders)  # the first axis with a border
        self.shape, lead, padded = x.shape, x.shape[:first], x.shape[first:]
        self.index = index_maps(padded, self.borders, self.mode)
        self.planes = math.prod(lead), math.prod(padded[:-1]), padded[-1]  # (P, H, W)
        out = pad_forward(x.reshape(*self.planes), self.index, self.value)  # (P, OH, OW)
        sizes = zip(padded, self.borders, strict=True)
        return out.reshape(*lead, *(size + before + after for size, (before, after) in sizes))

    def backward(self, grad: Any) -> Any:
        count, *size = self.planes
        grad = grad.reshape(count, len(self.index.rows), len(self.index.columns))  # (P, OH, OW)
        return pad_backward(grad, self.index, tuple(size)).reshape(*self.shape)


@public
def pad(input: Any, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Pad the last axes of a tensor, or crop them by negative numbers.

    Parameters
    ----------
    input : Tensor or array
        Of any shape for ``"constant"``. The other modes take one axis of a 2-D or 3-D input, two
        of a 3-D or 4-D input, three of a 4-D or 5-D input.
    pad : sequence of int
        Positions to add (before, after) along the last axis, then along the last but one, and so
        on: (left, right, top, bottom) for an image.
    mode : {"constant", "reflect", "replicate"}
        ``"reflect"`` mirrors the image about its edge pixels and needs less padding than the axis
        is long (`reflect_border` does not); ``"replicate"`` repeats the edge pixels.
    value : float
        What ``"constant"`` fills in.

    Returns
    -------
    Tensor, each padded axis longer by before + after

    Raises
    ------
    ShapeError
        If the padding does not fit the input's axes or the mode, or crops more than there is.
    """
    (x,) = as_tensors(input)
    pairs = _read_pad(pad, x, mode, value)
    first = x.ndim - len(pairs)
    for axis, (before, after) in enumerate(pairs, first):
        _check_fits(axis, x.shape[axis], before, after, mode)
    if not pairs:
        return x
    return Pad(pairs, mode, float(value))(x)


def reflect_border(input: Any, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Surround an image by its own reflection, however wide the border (Yu & Koltun, section 4).

    Each edge pixel is a mirror and is not repeated. Where the border is wider than the image the
    reflection is reflected again, to and fro; an image of one pixel is repeated. NumPy calls this
    ``mode="reflect"``, OpenCV ``BORDER_REFLECT_101``. `pad` refuses such a border, as its namesake
    in PyTorch does.

    Parameters
    ----------
    input : (..., H, W)
    top, bottom, left, right : int
        Pixels to add at each edge, 0 or more.

    Returns
    -------
    Tensor, (..., top + H + bottom, left + W + right)

    Raises
    ------
    ShapeError
        If the input has no pixels, or a border is negative.
    """
    (x,) = as_tensors(input)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ShapeError(
            f"reflect_border expected an image of shape (..., H, W) with pixels; got {x.shape}."
        )
    borders = [_whole(border, "a border") for border in (top, bottom, left, right)]
    if min(borders) < 0:
        raise ShapeError(
            f"reflect_border expected borders of at least 0 pixels; got {tuple(borders)}. "
            "Crop by indexing: image[..., 1:-1, 1:-1]."
        )
    return Pad([(borders[0], borders[1]), (borders[2], borders[3])], "reflect")(x)


def _whole(number: Any, what: str) -> int:
    try:
        if isinstance(number, bool):
            raise TypeError
        return index(number)
    except TypeError:
        raise ShapeError(f"{what} should be an integer number of pixels, got {number!r}.") from None


def _read_pad(pad: Sequence[int], x: Tensor, mode: str, value: float) -> list[Pair]:
    """The (before, after) of each padded axis, in the order of the axes."""
    if mode not in ("constant", "reflect", "replicate"):
        raise ShapeError(
            f'pad expected a mode out of "constant", "reflect", "replicate"; got {mode!r}.'
        )
    if not isinstance(pad, Sequence) or isinstance(pad, str) or len(pad) % 2:
        raise ShapeError(
            "pad expected (before, after) for the last axis, then for the one before it, and so "
            f"on; got {pad!r}. For an image write (left, right, top, bottom)."
        )
    numbers = [_whole(number, "padding") for number in pad]
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))[::-1]
    if len(pairs) > x.ndim:
        raise ShapeError(
            f"pad expected at most {2 * x.ndim} numbers for an input of shape {x.shape}; got "
            f"{len(numbers)}. Give two numbers for each axis to pad, the last axis first."
        )
    if mode == "constant":
        return pairs
    if not 1 <= len(pairs) <= 3:
        raise ShapeError(
            f'pad with mode="{mode}" takes the last one, two or three axes; got {len(pairs)}.'
        )
    if x.ndim not in (len(pairs) + 1, len(pairs) + 2):
        raise ShapeError(
            f'pad with mode="{mode}" along {len(pairs)} axes takes an input of {len(pairs) + 1} or '
            f"{len(pairs) + 2} axes, channels and batch before them; got {x.shape}. Reshape it."
        )
    if value != 0:
        raise ShapeError(
            f'pad with mode="{mode}" fills in the image itself; got value={value!r} as well. '
            'Leave value out, or use mode="constant".'
        )
    return pairs


def _check_fits(axis: int, size: int, before: int, after: int, mode: str) -> None:
    """Refuse a crop larger than the axis, and a border that the mode cannot fill."""
    if mode == "constant":
        fits = size + min(before, 0) + min(after, 0) >= 0
    else:
        fits = size >= 1 and size + before + after >= 1
    if not fits:
        raise ShapeError(
            f'pad with mode="{mode}" cannot add ({before}, {after}) to axis {axis} of {size}: it '
            "would crop more than there is. Crop less, or give a longer input."
        )
    if mode == "reflect" and max(before, after) >= size:
        raise ShapeError(
            f'pad with mode="reflect" needs less padding than the axis is long; got ({before}, '
            f"{after}) along axis {axis} of {size}. Use functional.padding.reflect_border, which "
            "reflects repeatedly."
        )
