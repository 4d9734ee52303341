"""The blocked matrix product that convolution stands on, without ever writing im2col down.

A convolution is the product of two matrices: the weights, one row of K = C*KH*KW numbers for each
filter, and the im2col matrix, one column of K numbers for each output pixel.

    out (F, P)  =  weights (F, K)  @  columns (K, P)          P = OH*OW pixels

The column matrix repeats every input pixel once for each tap, so for a 3x3 kernel it is nine
times larger than the image, and writing it to memory would cost more than the product. Instead
a *panel* of it, some hundred rows of some hundred columns, is gathered from the image into the
cache, multiplied, and overwritten by the next:

                                      p0      p1
                                 +----+-------+--------+
               k0   k1           |    :       :        |
        +------+----+------+  k0 |....+-------+........|
        |      :    :      |     |    | panel |        |     one block of pixels:
     f0 |......+----+......|  k1 |....+-------+........|       for every panel down the columns,
        |      |tile|      |     |    :       :        |         for every tile of filters,
        |......+----+......|     |    columns (K, P)   |           out[f0:, p0:p1] += tile @ panel
        |  weights (F, K)  |     +---------------------+
        +------------------+

Three products need the same gathering, and differ only in the rule by which it reads:

* convolution: output i reads input ``i*stride - padding + u*dilation``;
* its adjoint by the input, which is the transposed convolution: input y reads the gradient at
  ``(y + padding - u*dilation) / stride``, where that is a whole number;
* an ordinary matrix product, which is a 1x1 convolution over an image of one row.

`Gather` holds such a rule. `gathered_product` computes all three; `gathered_outer` computes the
gradient of the weights, whose inner dimension is the pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tinydilate import buffers
from tinydilate.device import Array
from tinydilate.kernel import jit
from tinydilate.simd import copy_run, dot_tile, host_tile, outer_tile
from tinydilate.threads import get_num_threads, share
from tinydilate.window import Pair, Window

# Block sizes, in numbers. A panel of STEPS x PIXELS floats is 192 KB: it stays in the second-level
# cache while every filter is multiplied with it; a tile of weights, 8 x STEPS floats or 8 KB, stays
# in the first-level cache while it passes over the panel. PIXELS is a multiple of every tile's
# columns (simd.TILE_SHAPES).
STEPS, PIXELS = 256, 192
# For the gradient of the weights: rows of the column matrix at a time, and pixels at a time.
# Each dot product of DOT_PIXELS is long enough to hide the summing of the vector at its end.
DOT_STEPS, DOT_PIXELS = 64, 1024


class Gather(NamedTuple):
    """The rule by which output position p and tap u read the input along each axis.

    ``source = (p*step + origin + u*spacing) / divide``, zero where that is not a whole number or
    lies outside the image. Each field is (rows, columns).
    """

    kernel: Pair
    output: Pair
    step: Pair
    origin: Pair
    spacing: Pair
    divide: Pair


def forward_gather(window: Window, output: Pair) -> Gather:
    """The tap rule: what a convolution reads."""
    top, left = window.before
    return Gather(window.kernel, output, window.stride, (-top, -left), window.dilation, (1, 1))


def adjoint_gather(window: Window, size: Pair) -> Gather:
    """The tap rule solved for the output: which outputs an input pixel went into, tap by tap."""
    rows, columns = window.dilation
    return Gather(window.kernel, size, (1, 1), window.before, (-rows, -columns), window.stride)


@jit
def _find_runs(runs: Array, pixels: tuple[int, int], breadth: int) -> int:
    """Cut pixels [p0, p1) into runs within one output row.

    Writes (output row i, first column j, length, place in the panel's row) for each; returns how
    many.
    """
    count = 0
    p = pixels[0]
    while p < pixels[1]:
        i, j = p // breadth, p % breadth
        length = min(breadth - j, pixels[1] - p)
        runs[count, 0], runs[count, 1] = i, j
        runs[count, 2], runs[count, 3] = length, p - pixels[0]
        p += length
        count += 1
    return count


@jit
def _gather_panel(
    panel: Array,
    pitch: int,
    runs: Array,
    image: Array,
    rows: tuple[int, int],
    gather: Gather,
) -> None:
    """Fill ``panel`` with rows [k0, k1) of the column matrix of one (C, H, W) image.

    The pixels are those of ``runs``; each row of the panel begins ``pitch`` numbers after the one
    before.
    """
    kernel_w, taps = gather.kernel[1], gather.kernel[0] * gather.kernel[1]
    height, breadth = image.shape[1:]
    flat = image.reshape(-1)
    side_by_side = gather.step[1] == 1 and gather.divide[1] == 1  # neighbours read neighbours
    for k in range(rows[0], rows[1]):
        channel, tap_index = k // taps, k % taps
        up = gather.origin[0] + tap_index // kernel_w * gather.spacing[0]
        left = gather.origin[1] + tap_index % kernel_w * gather.spacing[1]
        base = (k - rows[0]) * pitch
        for r in range(len(runs)):
            length, at = runs[r, 2], base + runs[r, 3]
            y = runs[r, 0] * gather.step[0] + up
            z = runs[r, 1] * gather.step[1] + left
            exact = True
            if gather.divide[0] != 1:
                exact = y % gather.divide[0] == 0
                y = y // gather.divide[0]
            row_at = (channel * height + y) * breadth  # where image row y begins, if there is one
            if not exact or y < 0 or y >= height:
                copy_run(panel, at, flat, 0, length, 0, 0)  # zeros
            elif side_by_side:
                copy_run(panel, at, flat, row_at + z, length, max(0, -z), breadth - z)
            else:
                for n in range(length):
                    source = z // gather.divide[1]
                    inside = 0 <= source < breadth and source * gather.divide[1] == z
                    panel[at + n] = flat[row_at + source] if inside else 0.0
                    z += gather.step[1]


@jit
def _product(
    start: int,
    stop: int,
    images: Array,
    tiles: Array,
    bias: Array,
    out: Array,
    channels: tuple[int, int],
    filters: tuple[int, int],
    gather: Gather,
    relu: bool,
    tile: tuple[int, int],
) -> None:
    """Blocks [start, stop) of `gathered_product`; a block is up to PIXELS pixels of one image."""
    rows, columns = tile
    all_filters, pixels = out.shape[1:]
    inner = tiles.shape[1]
    blocks = (pixels + PIXELS - 1) // PIXELS
    panel = np.empty(PIXELS * STEPS, np.float32)
    runs = np.empty((PIXELS, 4), np.int64)
    flat_tiles, flat_out = tiles.reshape(-1), out.reshape(-1)
    for block in range(start, stop):
        n, p0 = block // blocks, block % blocks * PIXELS
        p1 = min(p0 + PIXELS, pixels)
        image = images[n, channels[0] : channels[1]]
        count = _find_runs(runs, (p0, p1), gather.output[1])
        for k0 in range(0, inner, STEPS):
            k1 = min(k0 + STEPS, inner)
            _gather_panel(panel, PIXELS, runs[:count], image, (k0, k1), gather)
            for f0 in range(0, filters[1] - filters[0], rows):
                for q in range(p0, p1, columns):
                    outer_tile(
                        flat_out,
                        (n * all_filters + filters[0] + f0) * pixels + q,
                        pixels,
                        (filters[1] - filters[0] - f0, p1 - q),
                        k0 == 0,
                        relu and k1 == inner,
                        bias,
                        f0,
                        flat_tiles,
                        f0 * inner + k0 * rows,
                        panel,
                        q - p0,
                        PIXELS,
                        k1 - k0,
                    )


def pack_rows(matrix: Array) -> Array:
    """(F, K) -> (tiles, K, ROWS): rows in groups of a tile, laid out step by step."""
    rows = host_tile().rows
    count, inner = matrix.shape
    padded = buffers.zeros((-(-count // rows) * rows, inner), np.float32)
    padded[:count] = matrix
    return np.ascontiguousarray(padded.reshape(-1, rows, inner).transpose(0, 2, 1))


def gathered_product(
    images: Array,
    weights: Array,
    bias: Array | None,
    gather: Gather,
    groups: int = 1,
    relu: bool = False,
) -> Array:
    """Weights times the gathered column matrix, plus bias, for every image; float32.

    Parameters
    ----------
    images : (N, C, H, W)
    weights : (F, C/groups, KH, KW)
    bias : (F,) or None
    relu : bool
        Whether negative results become zero on the way out.

    Returns
    -------
    (N, F, OH, OW)
    """
    filters, per_group = weights.shape[:2]
    count, (out_h, out_w) = len(images), gather.output
    tile = host_tile()
    out = buffers.empty((count, filters, out_h * out_w), np.float32)
    each = filters // groups
    starts = np.zeros((groups, -(-each // tile.rows) * tile.rows), np.float32)
    if bias is not None:
        starts[:, :each] = bias.reshape(groups, each)
    for group in range(groups):
        mine = slice(group * each, (group + 1) * each)
        packed = pack_rows(weights[mine].reshape(each, -1))
        channels = (group * per_group, (group + 1) * per_group)
        work = out_h * out_w * each * weights[0].size
        blocks = count * -(-out_h * out_w // PIXELS)
        share(
            _product,
            blocks,
            images,
            packed,
            starts[group],
            out,
            channels,
            (mine.start, mine.stop),
            gather,
            relu,
            (tile.rows, tile.columns),
            least=_least(work * count, blocks),
        )
    return out.reshape(count, filters, out_h, out_w)


@jit
def _outer(
    start: int,
    stop: int,
    images: Array,
    gradient: Array,
    parts: Array,
    channels: tuple[int, int],
    filters: tuple[int, int],
    gather: Gather,
    tile: tuple[int, int],
) -> None:
    """Jobs [start, stop) of `gathered_outer`; a job is a part of the pixels and DOT_STEPS rows."""
    rows, columns = tile
    count, pixels = gradient.shape[0], gradient.shape[2]
    inner = parts.shape[2]
    row_blocks = (inner + DOT_STEPS - 1) // DOT_STEPS
    blocks = (pixels + DOT_PIXELS - 1) // DOT_PIXELS
    lines = filters[1] - filters[0]
    # Lines and rows beyond the last are zero, so that every tile is a whole one.
    left = np.zeros((lines + rows, DOT_PIXELS), np.float32)
    panel = np.zeros((DOT_STEPS + columns) * DOT_PIXELS, np.float32)
    flat_left, flat_gradient = left.reshape(-1), gradient.reshape(-1)
    runs = np.empty((DOT_PIXELS, 4), np.int64)
    sums = np.empty(rows * columns, np.float32)
    for job in range(start, stop):
        part, row_block = divmod(job, row_blocks)
        k0 = row_block * DOT_STEPS
        k1 = min(k0 + DOT_STEPS, inner)
        result = parts[part]
        result[:, k0:k1] = 0.0
        all_blocks = count * blocks
        first = all_blocks * part // parts.shape[0]
        last = all_blocks * (part + 1) // parts.shape[0]
        for block in range(first, last):
            n, at = divmod(block, blocks)
            p0 = at * DOT_PIXELS
            p1 = min(p0 + DOT_PIXELS, pixels)
            # Whole vectors, of 16 numbers at most; beyond p1 both sides are zero.
            length = (p1 - p0 + 15) // 16 * 16
            for f in range(lines):
                at_gradient = ((n * gradient.shape[1]) + filters[0] + f) * pixels + p0
                copy_run(flat_left, f * DOT_PIXELS, flat_gradient, at_gradient, length, 0, p1 - p0)
            for k in range(k1 - k0):
                copy_run(panel, k * DOT_PIXELS + p1 - p0, panel, 0, length - (p1 - p0), 0, 0)
            found = _find_runs(runs, (p0, p1), gather.output[1])
            image = images[n, channels[0] : channels[1]]
            _gather_panel(panel, DOT_PIXELS, runs[:found], image, (k0, k1), gather)
            for f0 in range(0, lines, rows):
                for j0 in range(0, k1 - k0, columns):
                    dot_tile(
                        sums,
                        flat_left,
                        f0 * DOT_PIXELS,
                        DOT_PIXELS,
                        panel,
                        j0 * DOT_PIXELS,
                        DOT_PIXELS,
                        length,
                    )
                    for f in range(f0, min(f0 + rows, lines)):
                        for j in range(j0, min(j0 + columns, k1 - k0)):
                            result[f, k0 + j] += sums[(f - f0) * columns + j - j0]


def gathered_outer(images: Array, gradient: Array, gather: Gather, groups: int = 1) -> Array:
    """Gradient of the weights: ``gradient (F, P) @ columns (K, P).T``, summed over images.

    Parameters
    ----------
    images : (N, C, H, W)
    gradient : (N, F, OH, OW)

    Returns
    -------
    (F, C/groups, KH, KW)
    """
    count, filters = gradient.shape[:2]
    per_group = images.shape[1] // groups
    each = filters // groups
    inner = per_group * gather.kernel[0] * gather.kernel[1]
    flat = gradient.reshape(count, filters, gather.output[0] * gather.output[1])
    tile = host_tile()
    row_blocks = -(-inner // DOT_STEPS)
    blocks = count * -(-flat.shape[2] // DOT_PIXELS)
    # Threads share the rows of the column matrix where there are enough of them; otherwise each
    # takes a part of the pixels, and the partial sums are added in a fixed order.
    splits = 1 if row_blocks >= 4 * get_num_threads() else min(get_num_threads(), max(1, blocks))
    results = []
    for group in range(groups):
        parts = buffers.empty((splits, each, inner), np.float32)
        share(
            _outer,
            splits * row_blocks,
            images,
            flat,
            parts,
            (group * per_group, (group + 1) * per_group),
            (group * each, (group + 1) * each),
            gather,
            (tile.dot_rows, tile.dot_columns),
            least=_least(flat.shape[2] * count * each * inner, splits * row_blocks),
        )
        results.append(parts.sum(axis=0))
    return np.concatenate(results).reshape(filters, per_group, *gather.kernel)


_WORTH_A_THREAD = 500_000  # multiply-adds: some 4 microseconds' work


def _least(work: int, jobs: int) -> int:
    """Smallest number of jobs that is worth waking a thread for."""
    return max(1, int(_WORTH_A_THREAD * jobs // max(1, work)))


def matmul(a: Array, b: Array) -> Any:
    """(M, K) @ (K, N) -> (M, N) in float32: a 1x1 convolution of an image of one row."""
    inner, columns = b.shape
    rule = Gather((1, 1), (1, columns), (1, 1), (0, 0), (1, 1), (1, 1))
    image = b.reshape(1, inner, 1, columns)
    return gathered_product(image, a.reshape(*a.shape, 1, 1), None, rule).reshape(len(a), columns)
