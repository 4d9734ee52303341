"""Resizing images: nearest pixel, or a blend of the four nearest.

Definition: output pixel i stands at position y of the input, a real number of pixels. The nearest
mode takes the pixel there; the bilinear one blends the neighbours below and above, first along
the columns, then along the rows:

    out[i] = (1 - w) * input[lower] + w * input[upper]       lower = floor(y),  w = y - lower

Where does pixel i stand? There are two conventions, and mixing them shifts the picture.

    half-pixel centres (align_corners=False)    y = (i + 1/2) * H / OH - 1/2
        A pixel is a small square with its centre at 1/2. The edges of the images coincide.
    corners (align_corners=True)                y = i * (H - 1) / (OH - 1)
        A pixel is a point. The centres of the corner pixels coincide.

A network of stride 8 whose layers keep the middle of their windows, such as the front end, puts
the centre of cell i's field at pixel 8*i + 3.5. Enlarged 8 times about half-pixel centres, cell i
stands at exactly that pixel: (8*i + 3.5 + 1/2) / 8 - 1/2 = i. So this is the convention that keeps
each cell over what it has seen. The authors' published weights are the exception: they were
trained with the label of pixel 8*i for cell i, so their scores belong 3.5 pixels further up and
left, at the positions p / 8, and neither convention here places them there.

Derivative: both modes are linear, so the adjoint spreads each output's gradient over the pixels
that it was blended from, with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tinydilate import buffers, device
from tinydilate.autograd import Op, Tensor, as_tensors, public
from tinydilate.device import SIMULATED, Array, CudaArray, MetaArray, cover_planes
from tinydilate.errors import ShapeError
from tinydilate.functional.padding import IndexMaps, pad_backward, pad_forward
from tinydilate.functional.unfolding import check_axes
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
from tinydilate.window import Pair, pair

# ---- where output pixels stand ---------------------------------------------------------------


class Axis(NamedTuple):
    """One axis of a resized image.

    Attributes
    ----------
    size, output : int
        Pixels before and after.
    scale : float or None
        The factor that the user asked for; it may differ from output / size, which is rounded.
    align_corners : bool
        Whether the corner pixels' centres coincide, rather than the images' edges.
    """

    size: int
    output: int
    scale: float | None = None
    align_corners: bool = False

    def step(self, dtype: Any) -> Any:
        """Input pixels from one output pixel to the next."""
        real = np.dtype(dtype).type
        if self.align_corners:
            return real(self.size - 1) / real(max(self.output - 1, 1))
        return real(self.size) / real(self.output) if self.scale is None else real(1 / self.scale)


class Neighbours(NamedTuple):
    """For each output position of one axis, the input positions that it blends."""

    lower: Array  # (O,) int64
    upper: Array  # (O,) int64, lower + 1 except at the end of the axis
    weight: Array  # (O,), the share of the upper neighbour, in [0, 1]


@lru_cache(256)
def nearest(axis: Axis, dtype: Any) -> Array:
    """Input position of each output pixel, rounded down: an index map, (O,) int64.

    The arithmetic is done in the image's ``dtype``, as in PyTorch: near whole numbers the
    rounding decides.
    """
    y: Array = np.floor(np.arange(axis.output).astype(dtype) * axis.step(dtype))
    return np.minimum(y.astype(np.int64), axis.size - 1)


@lru_cache(256)
def neighbours(axis: Axis, dtype: Any) -> Neighbours:
    """The two neighbours of each output pixel, and the weight of the upper one."""
    i = np.arange(axis.output).astype(dtype)
    half = i.dtype.type(0 if axis.align_corners else 0.5)
    y = np.maximum((i + half) * axis.step(dtype) - half, 0)  # before the first centre: the edge
    lower = np.minimum(y.astype(np.int64), axis.size - 1)
    weight = np.clip(y - lower.astype(dtype), 0, 1)
    return Neighbours(lower, np.minimum(lower + 1, axis.size - 1), weight)


# ---- bilinear: forward -----------------------------------------------------------------------


@kernel
def bilinear_forward(x: Array, rows: Neighbours, columns: Neighbours) -> Array:
    """(P, H, W) -> (P, OH, OW): neighbours blended along the columns, then along the rows."""
    low, high, w = columns
    wide = (1 - w) * x[:, :, low] + w * x[:, :, high]  # (P, H, OW)
    low, high, w = rows.lower, rows.upper, rows.weight[:, None]  # (OH, 1), for all columns
    out: Array = (1 - w) * wide[:, low] + w * wide[:, high]  # (P, OH, OW)
    return out


@bilinear_forward.cpu
def bilinear_forward_cpu(x: Array, rows: Neighbours, columns: Neighbours) -> Array:
    out = buffers.empty((len(x), len(rows.lower), len(columns.lower)), x.dtype)
    share(
        *(_bilinear, len(x), x, *rows, *columns, out),
        least=worth_a_thread(out.shape[1] * out.shape[2]),
        room=2 * out.shape[2],
        dtype=x.dtype,
    )
    return out


@jit_uncounted
def _bilinear(
    start: int,
    stop: int,
    room: Array,
    x: Array,
    y_low: Array,
    y_high: Array,
    y_weight: Array,
    z_low: Array,
    z_high: Array,
    z_weight: Array,
    out: Array,
) -> None:
    """An input row is blended along the columns when the first output row asks for it.

    Neighbours lie one row apart, so of the rows that were widened two are kept, an even and an odd
    one: they stay in the cache next to the processor, as a whole plane would not.
    """
    width = out.shape[2]
    for plane in range(start, stop):
        even = odd = -1  # the rows that are kept
        for i in range(out.shape[1]):
            for y in (y_low[i], y_high[i]):
                if y % 2 == 0 and y != even:
                    _widen(x[plane, y], z_low, z_high, z_weight, room[:width])
                    even = y
                elif y % 2 == 1 and y != odd:
                    _widen(x[plane, y], z_low, z_high, z_weight, room[width : 2 * width])
                    odd = y
            low = room[y_low[i] % 2 * width :]
            high = room[y_high[i] % 2 * width :]
            _blend_rows(low, high, y_weight[i], out[plane, i])


@jit_uncounted
def _widen(row: Array, z_low: Array, z_high: Array, z_weight: Array, target: Array) -> None:
    """A row blended along the columns."""
    for j in range(len(target)):
        target[j] = _blend(row[z_low[j]], row[z_high[j]], z_weight[j])


@jit_uncounted
def _blend_rows(low: Array, high: Array, w: float, target: Array) -> None:
    for j in range(len(target)):
        target[j] = _blend(low[j], high[j], w)


@jit
def _blend(low: float, high: float, w: float) -> Any:
    """The share ``w`` of the upper neighbour, the rest of the lower one."""
    return (type(w)(1) - w) * low + w * high


# On the GPU a thread goes down some rows of one column of the result, in some planes at once: so an
# input row is widened once for all rows that blend it, and a weight is read once for all planes.

_STRIP = 2 if SIMULATED else 8  # rows of a thread
_ABREAST = 2 if SIMULATED else 4  # its planes
_NONE = np.uint32(0xFFFFFFFF)


@bilinear_forward.cuda
def bilinear_forward_cuda(x: CudaArray, rows: Neighbours, columns: Neighbours) -> CudaArray:
    out = device.empty((len(x), len(rows.lower), len(columns.lower)), x.dtype)
    blends = [device.kept(array) for array in (*rows, *columns)]
    groups, strips = -(-len(x) // _ABREAST), -(-out.shape[1] // _STRIP)
    _bilinear_cuda[cover_planes(groups, strips, out.shape[2])](x, *blends, out, *x.shape)
    return out


@cuda.jit
def _bilinear_cuda(
    x: Array,
    y_low: Int64Array,
    y_high: Int64Array,
    y_weight: Array,
    z_low: Int64Array,
    z_high: Int64Array,
    z_weight: Array,
    out: Array,
    planes: np.uint32,
    height: np.uint32,
    width: np.uint32,
) -> None:
    """(P, H, W) -> (P, OH, OW): of the rows above and below, widened, a thread keeps its column."""
    j, strip, first, down, deep = in_planes()
    if j >= z_low.size:
        return
    left, right, w = np.uint32(z_low[j]), np.uint32(z_high[j]), z_weight[j]
    rows, columns, last = np.uint32(y_low.size), np.uint32(z_low.size), np.uint32(planes - 1)
    above = cuda.local.array(_ABREAST, x.dtype)
    below = cuda.local.array(_ABREAST, x.dtype)
    top = np.uint32(strip * _STRIP)
    while top < rows:
        plane = np.uint32(first * _ABREAST)
        while plane < planes:
            i, stop = top, min(rows, np.uint32(top + _STRIP))
            kept_low = kept_high = _NONE  # the input rows in above and below
            while i < stop:
                low, high, share = np.uint32(y_low[i]), np.uint32(y_high[i]), y_weight[i]
                if low != kept_low or high != kept_high:  # alike in a row
                    for k in range(_ABREAST):
                        one = min(np.uint32(plane + k), last)  # past the end, the last once more
                        if low == kept_high:
                            above[k] = below[k]
                        else:
                            above[k] = _widened(
                                x, ravel(one, low, 0, height, width), left, right, w
                            )
                        below[k] = _widened(x, ravel(one, high, 0, height, width), left, right, w)
                    kept_low, kept_high = low, high
                for k in range(_ABREAST):
                    one = np.uint32(plane + k)
                    if one < planes:
                        out[ravel(one, i, j, rows, columns)] = _blend(above[k], below[k], share)
                i = np.uint32(i + 1)
            plane = np.uint32(plane + deep * _ABREAST)
        top = np.uint32(top + down * _STRIP)


@cuda.jit(device=True)
def _widened(x: Array, row: Any, left: Any, right: Any, w: Any) -> Any:
    """A number of the row that begins at ``row``, blended along the columns."""
    return _blend(x[np.uint32(row + left)], x[np.uint32(row + right)], w)


@bilinear_forward.meta
def bilinear_forward_meta(x: MetaArray, rows: Neighbours, columns: Neighbours) -> MetaArray:
    return MetaArray((x.shape[0], len(rows.lower), len(columns.lower)), x.dtype)


# ---- bilinear: adjoint -----------------------------------------------------------------------


@kernel
def bilinear_backward(grad: Array, rows: Neighbours, columns: Neighbours, size: Pair) -> Array:
    """(P, OH, OW) -> (P, H, W): gradients spread along the rows, then along the columns."""
    tall = np.zeros((len(grad), size[0], grad.shape[2]), grad.dtype)  # (P, H, OW)
    for i, (low, high, w) in enumerate(zip(*rows, strict=True)):
        tall[:, low] += (1 - w) * grad[:, i]
        tall[:, high] += w * grad[:, i]
    result = np.zeros((len(grad), *size), grad.dtype)
    for j, (low, high, w) in enumerate(zip(*columns, strict=True)):
        result[:, :, low] += (1 - w) * tall[:, :, j]
        result[:, :, high] += w * tall[:, :, j]
    return result


@bilinear_backward.cpu
def bilinear_backward_cpu(grad: Array, rows: Neighbours, columns: Neighbours, size: Pair) -> Array:
    result = buffers.empty((len(grad), *size), grad.dtype)
    # Threads share planes, so no two of them add to one pixel.
    share(
        *(_bilinear_backward, len(grad), grad, *rows, *columns),
        *(_begins(columns.lower, size[1]), _begins(columns.upper, size[1]), result),
        least=worth_a_thread(grad.shape[1] * grad.shape[2]),
        room=max(1, (size[0] + 2) * grad.shape[2]),
        dtype=grad.dtype,
    )
    return result


def _begins(positions: Array, size: int) -> Array:
    """Positions in ascending order -> (size + 1,): those of z are [begins[z], begins[z + 1])."""
    return np.searchsorted(positions, np.arange(size + 1)).astype(np.int64)


@jit_uncounted
def _bilinear_backward(
    start: int,
    stop: int,
    room: Array,
    grad: Array,
    y_low: Array,
    y_high: Array,
    y_weight: Array,
    z_low: Array,
    z_high: Array,
    z_weight: Array,
    lows: Array,
    highs: Array,
    result: Array,
) -> None:
    """Each plane is spread along the rows, then each of its rows along the columns.

    Neighbours along the columns go to one pixel. Added to it in memory one after the other, each
    would wait until the one before is written; a pixel's two runs of them are summed in registers.
    """
    one, width = grad.dtype.type(1), grad.shape[2]
    to_low, to_high, tall = room[:width], room[width : 2 * width], room[2 * width :]
    for plane in range(start, stop):
        tall[:] = 0
        for i in range(grad.shape[1]):
            w = y_weight[i]
            _add_share(grad[plane, i], one - w, tall[y_low[i] * width :])
            _add_share(grad[plane, i], w, tall[y_high[i] * width :])
        for y in range(result.shape[1]):
            source, target = tall[y * width :], result[plane, y]
            for j in range(width):
                to_low[j] = (one - z_weight[j]) * source[j]
                to_high[j] = z_weight[j] * source[j]
            for z in range(len(target)):
                total = grad.dtype.type(0)
                for j in range(lows[z], lows[z + 1]):
                    total += to_low[np.uint64(j)]
                other = grad.dtype.type(0)
                for j in range(highs[z], highs[z + 1]):
                    other += to_high[np.uint64(j)]
                target[z] = total + other


@jit_uncounted
def _add_share(source: Array, w: float, target: Array) -> None:
    for j in range(len(source)):
        target[j] += w * source[j]


# On the GPU, too, gradients go along the rows first and then along the columns. Each number of a
# result has a thread, which adds up its shares: no two threads add to one number. Eight times
# enlarged those are 16 and 16 terms; at once they would be 256, and few threads to add them.


class Shares(NamedTuple):
    """`Neighbours` the other way round: for each input position the outputs that blend it.

    They stand side by side: those of position y begin with ``first[y]``, ``counts[y]`` of them, and
    its share in the k-th is ``weights[k, y]``.
    """

    first: Array  # (size,) int32
    counts: Array  # (size,) int32
    weights: Array  # (most, size)


def shares(lower: Array, upper: Array, weight: Array, size: int) -> Shares:
    """Turn `Neighbours` round: position y is blended where ``lower <= y <= upper``.

    Both ascend, so the first of these outputs is the first whose upper neighbour is not below y.
    """
    y = np.arange(size)
    first = np.searchsorted(upper, y)
    counts = np.searchsorted(lower, y, "right") - first
    i = first + np.arange(counts.max(initial=0))[:, None]  # (most, size)
    i = np.minimum(i, len(lower) - 1)  # beyond the count it does not matter
    weights = np.where(lower[i] == y, 1 - weight[i], 0) + np.where(upper[i] == y, weight[i], 0)
    return Shares(first.astype(np.int32), counts.astype(np.int32), weights.astype(weight.dtype))


@bilinear_backward.cuda
def bilinear_backward_cuda(
    grad: CudaArray, rows: Neighbours, columns: Neighbours, size: Pair
) -> CudaArray:
    planes, (height, width) = len(grad), size
    along_rows = device.tables(shares, rows, height)
    along_columns = device.tables(shares, columns, width)
    tall = device.empty((planes, height, grad.shape[2]), grad.dtype)
    result = device.empty((planes, height, width), grad.dtype)
    groups, lines = -(-planes // _ABREAST), planes * height
    _add_shares_cuda[cover_planes(groups, height, grad.shape[2])](
        *(grad, *along_rows, tall, *grad.shape)
    )
    _add_shares_cuda[cover_planes(-(-lines // _ABREAST), width, 1)](
        *(tall, *along_columns, result, lines, grad.shape[2], 1)
    )
    return result


@cuda.jit
def _add_shares_cuda(
    grad: Array,
    first: Int32Array,
    counts: Int32Array,
    weights: Array,
    result: Array,
    planes: np.uint32,
    height: np.uint32,
    width: np.uint32,
) -> None:
    """(P, H, W) -> (P, size, W): for each position the sum of its shares along the middle axis."""
    z, y, start, down, deep = in_planes()
    size, last = np.uint32(first.size), np.uint32(planes - 1)
    if z >= width:
        return
    begins = cuda.local.array(_ABREAST, np.uint32)
    totals = cuda.local.array(_ABREAST, grad.dtype)
    while y < size:
        i, count, plane = first[y], np.uint32(counts[y]), np.uint32(start * _ABREAST)
        while plane < planes:
            for k in range(_ABREAST):
                one = min(np.uint32(plane + k), last)  # past the end, the last once more
                begins[k], totals[k] = ravel(one, i, z, height, width), grad.dtype.type(0)
            n = np.uint32(0)
            while n < count:
                share = weights[np.uint32(n * size + y)]
                for k in range(_ABREAST):
                    totals[k] += share * grad[np.uint32(begins[k] + n * width)]
                n = np.uint32(n + 1)
            for k in range(_ABREAST):
                one = np.uint32(plane + k)
                if one < planes:
                    result[ravel(one, y, z, size, width)] = totals[k]
            plane = np.uint32(plane + deep * _ABREAST)
        y = np.uint32(y + down)


@bilinear_backward.meta
def bilinear_backward_meta(
    grad: MetaArray, rows: Neighbours, columns: Neighbours, size: Pair
) -> MetaArray:
    return MetaArray((grad.shape[0], *size), grad.dtype)


# ---- the operations --------------------------------------------------------------------------


class ResizeNearest(Op):
    """The nearest input pixel at each output pixel: reading through index maps, as `pad` does."""

    def __init__(self, rows: Axis, columns: Axis) -> None:
        self.rows, self.columns = rows, columns

    def forward(self, x: Any) -> Any:
        self.maps = IndexMaps(nearest(self.rows, x.dtype), nearest(self.columns, x.dtype))
        planes = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])  # (N*C, H, W)
        out = pad_forward(planes, self.maps, 0.0)  # (N*C, OH, OW)
        return out.reshape(*x.shape[:2], *out.shape[1:])

    def backward(self, grad: Any) -> Any:
        planes = grad.reshape(grad.shape[0] * grad.shape[1], *grad.shape[2:])  # (N*C, OH, OW)
        size = self.rows.size, self.columns.size
        return pad_backward(planes, self.maps, size).reshape(*grad.shape[:2], *size)


class ResizeBilinear(Op):
    """A blend of the four nearest input pixels at each output pixel."""

    def __init__(self, rows: Axis, columns: Axis) -> None:
        self.rows, self.columns = rows, columns

    def forward(self, x: Any) -> Any:
        self.blend = neighbours(self.rows, x.dtype), neighbours(self.columns, x.dtype)
        planes = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])  # (N*C, H, W)
        out = bilinear_forward(planes, *self.blend)  # (N*C, OH, OW)
        return out.reshape(*x.shape[:2], *out.shape[1:])

    def backward(self, grad: Any) -> Any:
        planes = grad.reshape(grad.shape[0] * grad.shape[1], *grad.shape[2:])  # (N*C, OH, OW)
        size = self.rows.size, self.columns.size
        return bilinear_backward(planes, *self.blend, size).reshape(*grad.shape[:2], *size)


@public
def interpolate(
    input: Any,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """Enlarge or shrink images.

    Parameters
    ----------
    input : (N, C, H, W)
    size : int or (OH, OW), optional
        Pixels of the result.
    scale_factor : float or (rows, columns), optional
        Instead of ``size``: the result has floor(H * scale_factor) rows, and output pixels stand
        1 / scale_factor input pixels apart.
    mode : {"nearest", "bilinear"}
    align_corners : bool, optional
        For ``"bilinear"`` only. Whether the centres of the corner pixels coincide; by default the
        edges of the images do, which keeps each cell of a network over the middle of its field.
        With True, ``scale_factor`` decides nothing but the size.

    Returns
    -------
    Tensor, (N, C, OH, OW)

    Raises
    ------
    ShapeError
        If neither or both of ``size`` and ``scale_factor`` are given, the mode is unknown, or an
        image would have no pixels.
    """
    (x,) = as_tensors(input)
    check_axes("interpolate", x.shape, 4, "(N, C, H, W)")
    if mode not in ("nearest", "bilinear"):
        raise ShapeError(f'interpolate expected a mode out of "nearest", "bilinear"; got {mode!r}.')
    if mode == "nearest" and align_corners is not None:
        raise ShapeError(
            'interpolate with mode="nearest" blends nothing, so it has no align_corners; got '
            f'{align_corners!r}. Leave it out, or use mode="bilinear".'
        )
    if 0 in x.shape[2:]:
        raise ShapeError(f"interpolate expected images with pixels; got shape {x.shape}.")
    height, width = x.shape[2:]
    output, (by_rows, by_columns) = _output((height, width), size, scale_factor)
    corners = bool(align_corners)
    rows = Axis(height, output[0], by_rows, corners)
    columns = Axis(width, output[1], by_columns, corners)
    return (ResizeNearest if mode == "nearest" else ResizeBilinear)(rows, columns)(x)


def _output(
    size: Pair, output: int | Sequence[int] | None, scale: float | Sequence[float] | None
) -> tuple[Pair, tuple[float | None, float | None]]:
    """Pixels of the result, and the factors if the user gave factors."""
    if (output is None) == (scale is None):
        raise ShapeError(
            "interpolate expected either size or scale_factor; got "
            + ("neither." if scale is None else "both.")
            + " Write size=(64, 64), or scale_factor=2."
        )
    if scale is None:
        assert output is not None
        return pair(output, "size", 1), (None, None)
    factors = tuple(scale) if isinstance(scale, Sequence) else (scale, scale)
    usable = all(isinstance(f, int | float) and 0 < f < math.inf for f in factors)
    if len(factors) != 2 or isinstance(scale, str) or not usable:
        raise ShapeError(
            f"scale_factor should be a positive number or a pair of them, got {scale!r}. "
            "Write scale_factor=2, or scale_factor=(2, 1.5) for rows and columns."
        )
    rows, columns = float(factors[0]), float(factors[1])
    result = math.floor(size[0] * rows), math.floor(size[1] * columns)
    if min(result) < 1:
        raise ShapeError(
            f"scale_factor should leave at least one pixel, got {scale!r}, which makes {result} "
            f"of {size}. Scale less, or give the size."
        )
    return result, (rows, columns)
