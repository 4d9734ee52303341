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
* its adjoint by the input, at stride 1: input y reads the gradient ``y + padding - u*dilation``;
* an ordinary matrix product, which is a 1x1 convolution over an image of one row.

`Gather` holds such a rule, and `gathered_product` computes all three. `gathered_outer` computes the
gradient of the weights, whose inner dimension is the pixels. And `folded_product` goes the other
way for adjoints that would gather mostly zeros, because the output is much smaller than the input
(a stride, or a large kernel without padding): it multiplies first and folds the columns back.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tinydilate import buffers
from tinydilate.compiling import jit
from tinydilate.device import Array
from tinydilate.simd import copy_runs, fetch_ahead, host_tile, outer_tile, transpose_block
from tinydilate.threads import get_num_threads, least_jobs, share
from tinydilate.window import Pair, Window

# Block sizes, in numbers. A panel of 256 x 192 floats is 192 KB: it stays in the second-level cache
# while every filter is multiplied with it. A tile of weights, 8 x 256 floats or 8 KB, stays in the
# first-level cache while it passes over the panel's four tiles. With 256 steps a tile does 256 * 24
# multiply-adds of vectors between loading its 24 sums and storing them again: 1 in 128.
STEPS, PIXELS = 256, 192
WIDE = 256  # pixels of a block whose columns are folded
# The gradient of the weights sums over pixels: so many at a time.
PIXEL_STEPS = 256
PACKED_BYTES = 16 << 20  # weights are packed so many at a time: fc6 has 400 MB of them
FAR = 1 << 14  # pixels of a plane of which the near caches do not keep the last few rows
AHEAD = 16  # numbers behind a run that are asked for: those before them came with the run
_WORTH_A_THREAD = 200_000  # multiply-adds: some 4 microseconds' work


class Gather(NamedTuple):
    """The rule by which output position p and tap u read the input along each axis.

    ``source = p*step + origin + u*spacing``, zero where that lies outside the image. Each field is
    (rows, columns).
    """

    kernel: Pair
    output: Pair
    step: Pair
    origin: Pair
    spacing: Pair


def forward_gather(window: Window, output: Pair) -> Gather:
    """The tap rule: what a convolution reads."""
    top, left = window.before
    return Gather(window.kernel, output, window.stride, (-top, -left), window.dilation)


def adjoint_gather(window: Window, size: Pair) -> Gather:
    """The tap rule of stride 1, solved for the output: which outputs an input pixel went into."""
    rows, columns = window.dilation
    return Gather(window.kernel, size, (1, 1), window.before, (-rows, -columns))


def _in_one_row(images: Array, gather: Gather) -> tuple[Array, Gather]:
    """The same with the image as one long row, where each pixel reads itself alone."""
    if gather == Gather((1, 1), images.shape[2:], (1, 1), (0, 0), gather.spacing):
        pixels = images.shape[2] * images.shape[3]
        images = images.reshape(*images.shape[:2], 1, pixels)
        gather = gather._replace(output=(1, pixels))
    return images, gather


def _even_blocks(count: int, most: int) -> int:
    """Size of blocks of at most ``most`` that cut ``count`` into nearly equal parts."""
    return -(-count // -(-count // most))


def _multiple(count: int, of: int) -> int:
    """The smallest multiple of ``of`` that is at least ``count``."""
    return -(-count // of) * of


# ---- gathering panels of the column matrix ---------------------------------------------------


@jit
def _find_runs(
    runs: Array, pixels: tuple[int, int], breadth: int, columns: int, tile_pitch: int
) -> int:
    """Cut pixels [p0, p1) into runs that lie in one output row and in one tile of the panel.

    Writes (output row i, first column j, length, place in the panel) for each; returns how many.
    """
    count = 0
    p = pixels[0]
    while p < pixels[1]:
        i, j = p // breadth, p % breadth
        tile, within = (p - pixels[0]) // columns, (p - pixels[0]) % columns
        length = min(breadth - j, pixels[1] - p, columns - within)
        runs[count, 0], runs[count, 1] = i, j
        runs[count, 2], runs[count, 3] = length, tile * tile_pitch + within
        p += length
        count += 1
    return count


@jit
def _gather_panel(
    panel: Array,
    pitch: int,
    runs: Array,
    images: Array,
    channels: tuple[int, int, int],
    gather: Gather,
) -> None:
    """Rows of the column matrix of image n, channels [c0, c1), for the pixels of ``runs``.

    Row ``(c - c0) * taps + tap`` of the panel begins ``pitch`` numbers after the one before. Where
    a tap of a run falls is the same in every channel, so it is worked out once and the run copied
    channel after channel.
    """
    n, c0, c1 = channels
    kernel_h, kernel_w = gather.kernel
    taps = kernel_h * kernel_w
    height, breadth = images.shape[2:]
    flat = images.reshape(-1)
    plane = height * breadth
    first = (n * images.shape[1] + c0) * plane
    deep = taps * pitch  # from one channel to the next
    step, nothing = gather.step[1], images.dtype.type(0)
    # Planes that lie a multiple of 4 KB apart share a few lines of the first-level cache. To take
    # three taps of a row from there, do not read many such planes in between.
    together = 6 if plane % 1024 == 0 else max(1, c1 - c0)
    far = plane > FAR
    for r in range(len(runs)):
        length = runs[r, 2]
        for c in range(0, c1 - c0, together):
            count = min(together, c1 - c0 - c)
            for t in range(taps):
                u, v = t // kernel_w, t % kernel_w
                y = runs[r, 0] * gather.step[0] + gather.origin[0] + u * gather.spacing[0]
                z = runs[r, 1] * step + gather.origin[1] + v * gather.spacing[1]
                to, come = runs[r, 3] + c * deep + t * pitch, first + c * plane + y * breadth
                if far and v == 0:  # what the next run will read, in each channel at another place
                    for n in range(count):
                        fetch_ahead(flat, come + n * plane + z + (length + AHEAD) * step, 1)
                if y < 0 or y >= height or step == 1:
                    # Neighbours read neighbours; of a row that does not exist nothing is read.
                    inside = (-z, breadth - z) if 0 <= y < height else (0, 0)
                    copy_runs(
                        panel, (to, deep), flat, (come + z, plane), length, inside, count, True
                    )
                else:
                    for n in range(count):
                        for m in range(length):
                            read = 0 <= z + m * step < breadth
                            value = flat[come + n * plane + z + m * step] if read else nothing
                            panel[to + n * deep + m] = value


# ---- weights times columns -------------------------------------------------------------------


@jit
def _pack(
    start: int,
    stop: int,
    weights: Array,
    first: int,
    count: int,
    pitches: Pair,
    packed: Array,
    lanes: int,
) -> None:
    """Tiles [start, stop) of ``packed`` (tiles, C, taps, ROWS): the tile's rows, step by step.

    Row r, channel c, tap t of the matrix is ``weights[first + r*pitches[0] + c*pitches[1] + t]``;
    rows from ``count`` on are zero.
    """
    _, channels, taps, rows = packed.shape
    flat = packed.reshape(-1)
    # Numbers that follow each other in memory along the inner dimension.
    span = channels * taps if pitches[1] == taps else taps
    depth = channels if pitches[0] != 1 else 32  # channels at a time: they lie in so many pages
    for c0 in range(0, channels, depth):
        c1 = min(c0 + depth, channels)
        for tile in range(start, stop):
            for m in range(0, rows, lanes):
                here = min(lanes, rows - m)
                there = max(0, min(here, count - tile * rows - m))
                at = first + (tile * rows + m) * pitches[0] + c0 * pitches[1]
                to = (tile * channels + c0) * taps * rows + m
                if pitches[0] == 1:  # rows that follow each other: no need to turn them over
                    inside = (0, there)
                    copy_runs(
                        flat, (to, rows), weights, (at, pitches[1]), here, inside, c1 - c0, False
                    )
                    continue
                for c in range((c1 - c0) * taps // span):
                    for k in range(0, span, lanes):
                        columns = min(lanes, span - k)
                        transpose_block(
                            flat,
                            (to + (c * span + k) * rows, rows),
                            weights,
                            (at + c * pitches[1] + k, pitches[0]),
                            (there, columns),
                            (0, columns),
                            here,
                        )


@jit
def _product(
    start: int,
    stop: int,
    room: Array,
    images: Array,
    tiles: Array,
    bias: Array,
    out: Array,
    first_channel: int,
    filters: tuple[int, int],
    gather: Gather,
    relu: bool,
    jobs: Pair,
    block_channels: int,
    tile: tuple[int, int, int],
) -> None:
    """Jobs [start, stop) of `gathered_product`: a block of pixels times a part of the filters."""
    rows, columns, lanes = tile
    blocks, parts = jobs
    f0, f1 = filters
    _, channels, taps, _ = tiles.shape
    inner = channels * taps
    pixels = out.shape[2]
    vectors = (pixels + lanes - 1) // lanes
    tile_pitch = block_channels * taps * columns
    runs = np.empty((2 * PIXELS, 4), np.int64)
    flat_tiles, flat_out = tiles.reshape(-1), out.reshape(-1)
    for job in range(start, stop):
        part, block = job % parts, job // parts
        n, block = block // blocks, block % blocks
        p0, p1 = vectors * block // blocks * lanes, vectors * (block + 1) // blocks * lanes
        p1 = min(p1, pixels)
        found = _find_runs(runs, (p0, p1), gather.output[1], columns, tile_pitch)
        first_tile, last_tile = len(tiles) * part // parts, len(tiles) * (part + 1) // parts
        for c0 in range(0, channels, block_channels):
            c1 = min(c0 + block_channels, channels)
            where = (n, first_channel + c0, first_channel + c1)
            _gather_panel(room, columns, runs[:found], images, where, gather)
            steps = (c1 - c0) * taps
            # While a tile of weights passes over the panel, the next one comes nearer, piece by
            # piece with each tile of pixels. It lies elsewhere: no processor would foresee where.
            piece = steps * rows // ((p1 - p0 + columns - 1) // columns)
            for which in range(first_tile, last_tile):
                f = f0 + which * rows
                weights = (which * inner + c0 * taps) * rows
                for q in range(p0, p1, columns):
                    ahead = weights + inner * rows + (q - p0) // columns * piece
                    fetch_ahead(flat_tiles, ahead, piece)
                    outer_tile(
                        flat_out,
                        ((n * out.shape[1] + f) * pixels + q, pixels),
                        (f1 - f, p1 - q),
                        flat_tiles,
                        (weights, 1, rows),
                        room,
                        ((q - p0) // columns * tile_pitch, columns),
                        steps,
                        bias,
                        f,
                        c0 == 0,
                        relu and c1 == channels,
                    )


def gathered_product(
    images: Array,
    weights: Array,
    bias: Array | None,
    gather: Gather,
    groups: int = 1,
    relu: bool = False,
    *,
    adjoint: bool = False,
) -> Array:
    """Weights times the gathered column matrix, plus bias, for every image.

    Parameters
    ----------
    images : (N, C, H, W)
    weights : (F, C/groups, KH, KW)
    bias : (F,) or None
    relu : bool
        Whether negative results become zero on the way out.
    adjoint : bool
        Whether filters and channels change places, as in the gradient by the input: ``images``
        then has F channels and the result has C.

    Returns
    -------
    (N, F, OH, OW), or (N, C, OH, OW) of the adjoint
    """
    filters, channels, kernel_h, kernel_w = weights.shape
    if adjoint:
        filters, channels = channels * groups, filters // groups
    shape = (filters, channels, kernel_h * kernel_w)
    dtype, size = images.dtype, gather.output
    images, gather = _in_one_row(images, gather)
    plan = _plan(len(images), gather.output[0] * gather.output[1], shape, groups, adjoint, dtype)
    out = buffers.empty((len(images), filters, *size), dtype)
    start = np.zeros(filters, dtype) if bias is None else bias
    flat, flat_out = weights.reshape(-1), out.reshape(len(images), filters, plan.pixels)
    packed = buffers.empty(plan.packed, dtype)
    for slab in plan.slabs:
        tiles = packed[: slab.tiles]
        share(
            _pack,
            slab.tiles,
            flat,
            slab.first_weight,
            slab.filters[1] - slab.filters[0],
            plan.pitches,
            tiles,
            plan.tile[2],
            least=slab.least_tiles,
        )
        share(
            _product,
            slab.jobs,
            images,
            tiles,
            start,
            flat_out,
            slab.first_channel,
            slab.filters,
            gather,
            relu,
            (plan.blocks, slab.parts),
            plan.block_channels,
            plan.tile,
            least=slab.least_jobs,
            room=plan.room,
            dtype=dtype,
        )
    return out


class Slab(NamedTuple):
    """Filters of one group that are packed and multiplied together."""

    filters: Pair  # from, to
    first_channel: int
    first_weight: int
    tiles: int
    least_tiles: int  # see `share`
    parts: int  # that the filters are cut into, where there are few pixels
    jobs: int
    least_jobs: int


class Plan(NamedTuple):
    """How `gathered_product` cuts its work; it depends on sizes alone."""

    pixels: int
    pitches: Pair  # of the weights: from row to row of the matrix, from channel to channel
    packed: tuple[int, ...]
    blocks: int  # of pixels, for each image
    block_channels: int
    tile: tuple[int, int, int]  # rows, columns, lanes
    room: int
    slabs: list[Slab]


def _plan(
    images: int, pixels: int, shape: tuple[int, int, int], groups: int, adjoint: bool, dtype: Any
) -> Plan:
    """Look up the plan for a product, or make it; ``shape`` is (F, C/groups, taps)."""
    return _made_plan(
        images, pixels, shape, groups, adjoint, dtype, get_num_threads(), PACKED_BYTES
    )


@lru_cache(4096)
def _made_plan(
    images: int,
    pixels: int,
    shape: tuple[int, int, int],
    groups: int,
    adjoint: bool,
    dtype: Any,
    threads: int,
    packed_bytes: int,
) -> Plan:
    tile = host_tile()
    lanes, columns = tile.lanes(dtype), tile.columns(dtype)
    filters, channels, taps = shape[0] // groups, shape[1], shape[2]
    inner = channels * taps
    pitches = (taps, filters * taps) if adjoint else (inner, taps)
    block_channels = _even_blocks(channels, max(1, STEPS // taps))
    # As many filters at a time as may be packed, in whole tiles.
    fit = max(1, packed_bytes // (inner * tile.rows * dtype.itemsize)) * tile.rows
    slab = -(-_even_blocks(filters, fit) // tile.rows) * tile.rows
    # A block of pixels is a job. Few jobs become as many as threads can share evenly, and if there
    # are not enough pixels for that they are cut by their filters as well.
    blocks = -(-pixels // PIXELS)
    if blocks * images < 32 * threads and blocks * images % threads:
        blocks = min(_multiple(blocks, threads), -(-pixels // columns))
    slabs = []
    for group in range(groups):
        for f0 in range(0, filters, slab):
            here = min(slab, filters - f0)
            tiles = -(-here // tile.rows)
            parts = max(1, min(tiles, -(-threads // max(1, blocks * images))))
            jobs = images * blocks * parts
            slabs.append(
                Slab(
                    (group * filters + f0, group * filters + f0 + here),
                    group * channels,
                    group * filters * inner + f0 * pitches[0],
                    tiles,
                    _least(4 * tiles * tile.rows * inner, tiles),
                    parts,
                    jobs,
                    _least(pixels * images * here * inner, jobs),
                )
            )
    return Plan(
        pixels,
        pitches,
        (-(-min(slab, filters) // tile.rows), channels, taps, tile.rows),
        blocks,
        block_channels,
        (tile.rows, columns, lanes),
        block_channels * taps * (PIXELS + columns),
        slabs,
    )


def _least(work: int, jobs: int) -> int:
    """Smallest number of jobs that is worth waking a thread for."""
    return least_jobs(work, jobs, _WORTH_A_THREAD)


def matmul(a: Array, b: Array) -> Any:
    """(M, K) @ (K, N) -> (M, N): a 1x1 convolution of an image of one row."""
    inner, columns = b.shape
    rule = Gather((1, 1), (1, columns), (1, 1), (0, 0), (1, 1))
    image = b.reshape(1, inner, 1, columns)
    return gathered_product(image, a.reshape(*a.shape, 1, 1), None, rule).reshape(len(a), columns)


# ---- gradients times columns -----------------------------------------------------------------


@jit
def _outer(
    start: int,
    stop: int,
    room: Array,
    images: Array,
    gradient: Array,
    parts: Array,
    first_channel: int,
    filters: tuple[int, int],
    gather: Gather,
    block_channels: int,
    breadth: int,
    tile: tuple[int, int, int],
) -> None:
    """Jobs [start, stop) of `gathered_outer`: a part of the pixels and a block of channels."""
    rows, columns, lanes = tile
    f0, f1 = filters
    splits, _, inner = parts.shape
    taps = gather.kernel[0] * gather.kernel[1]
    channels = inner // taps
    blocks = (channels + block_channels - 1) // block_channels
    pixels = gradient.shape[2]
    chunks = (pixels + PIXEL_STEPS - 1) // PIXEL_STEPS
    stripes = (f1 - f0 + breadth - 1) // breadth
    # Three buffers: the panel, a stripe of the gradient turned over, and the sums.
    most = block_channels * taps
    panel = room[: most * PIXEL_STEPS]
    turned = room[most * PIXEL_STEPS :][: PIXEL_STEPS * breadth + columns]
    sums = room[most * PIXEL_STEPS + PIXEL_STEPS * breadth + columns :]
    nothing = np.zeros(rows, images.dtype)
    runs = np.empty((2 * PIXEL_STEPS, 4), np.int64)
    flat_gradient, flat_parts = gradient.reshape(-1), parts.reshape(-1)
    for job in range(start, stop):
        split, c0 = job // blocks, job % blocks * block_channels
        c1 = min(c0 + block_channels, channels)
        here = (c1 - c0) * taps
        every = len(images) * chunks
        begin, end = every * split // splits, every * (split + 1) // splits
        for chunk in range(begin, end):
            n, p0 = chunk // chunks, chunk % chunks * PIXEL_STEPS
            p1 = min(p0 + PIXEL_STEPS, pixels)
            found = _find_runs(runs, (p0, p1), gather.output[1], columns, columns)
            where = (n, first_channel + c0, first_channel + c1)
            _gather_panel(panel, len(panel) // most, runs[:found], images, where, gather)
            for stripe in range(stripes):
                # The gradient of `breadth` filters, from (filters, pixels) to (pixels, filters).
                f = f0 + stripe * breadth
                for down in range(0, min(breadth, f1 - f), lanes):
                    for p in range(p0, p1, lanes):
                        transpose_block(
                            turned,
                            ((p - p0) * breadth + down, breadth),
                            flat_gradient,
                            ((n * gradient.shape[1] + f + down) * pixels + p, pixels),
                            (f1 - f - down, min(lanes, p1 - p)),
                            (0, p1 - p),
                            lanes,
                        )
                for k in range(0, here, rows):
                    outer_tile(
                        sums,
                        ((stripe * most + k) * breadth, breadth),
                        (here - k, breadth),
                        panel,
                        (k * PIXEL_STEPS, PIXEL_STEPS, 1),
                        turned,
                        (0, breadth),
                        p1 - p0,
                        nothing,
                        0,
                        chunk == begin,
                        False,
                    )
        for stripe in range(stripes):  # the sums, from (taps, filters) to (filters, taps)
            for down in range(0, here, lanes):
                for f in range(stripe * breadth, min((stripe + 1) * breadth, f1 - f0), lanes):
                    valid_rows = min(lanes, here - down)
                    valid = (valid_rows, min(lanes, f1 - f0 - f))
                    transpose_block(
                        flat_parts,
                        ((split * (f1 - f0) + f) * inner + c0 * taps + down, inner),
                        sums,
                        ((stripe * most + down) * breadth + f - stripe * breadth, breadth),
                        valid,
                        (0, lanes),
                        valid_rows,
                    )


def gathered_outer(images: Array, gradient: Array, gather: Gather, groups: int = 1) -> Array:
    """Gradient of the weights: ``gradient (F, P) @ columns (K, P).T``, summed over images.

    The inner dimension is the pixels, so both factors are wanted pixel by pixel. The panel of
    columns serves as it is: the tile may take A's numbers from anywhere. The gradient is turned
    over, a block of pixels and filters at a time.

    Parameters
    ----------
    images : (N, C, H, W)
    gradient : (N, F, OH, OW)

    Returns
    -------
    (F, C/groups, KH, KW)
    """
    tile, dtype, kernel = host_tile(), images.dtype, gather.kernel
    count, filters = gradient.shape[0], gradient.shape[1] // groups
    channels, taps = images.shape[1] // groups, kernel[0] * kernel[1]
    if not count:  # nothing to sum over
        return buffers.zeros((groups * filters, channels, *kernel), dtype)
    images, gather = _in_one_row(images, gather)
    flat = gradient.reshape(count, -1, gather.output[0] * gather.output[1])
    lanes = tile.lanes(dtype)
    stripes, breadth = tile.stripes(filters, dtype)
    threads = get_num_threads()
    blocks = -(-channels // max(1, STEPS // taps))
    if blocks >= 4 * threads:  # then threads share the channels, evenly
        blocks = _multiple(blocks, threads)
    block_channels = -(-channels // blocks)
    blocks = -(-channels // block_channels)
    chunks = count * -(-flat.shape[2] // PIXEL_STEPS)
    # Threads share the channels where these fall into equal parts; otherwise each takes a part of
    # the pixels, and the partial sums are added in a fixed order.
    splits = 1 if blocks >= 4 * threads or blocks % threads == 0 else max(1, min(threads, chunks))
    result = buffers.empty((groups * filters, channels, *kernel), dtype)
    total = result.reshape(groups, filters, channels * taps)
    parts = total[:, None]  # the result itself, if nobody else adds to it
    if splits > 1:
        parts = buffers.empty((groups, splits, filters, channels * taps), dtype)
    most = block_channels * taps
    for group in range(groups):
        share(
            _outer,
            splits * blocks,
            images,
            flat,
            parts[group],
            group * channels,
            (group * filters, (group + 1) * filters),
            gather,
            block_channels,
            breadth,
            (tile.rows, tile.columns(dtype), lanes),
            least=_least(flat.shape[2] * count * filters * channels * taps, splits * blocks),
            room=(most + breadth) * PIXEL_STEPS + tile.columns(dtype) + stripes * most * breadth,
            dtype=dtype,
        )
    if splits > 1:
        parts.sum(axis=1, out=total)
    return result


# ---- columns, then folded --------------------------------------------------------------------


@jit
def _fold_panel(
    columns: Array,
    pitch: int,
    runs: Array,
    result: Array,
    channels: tuple[int, int, int],
    gather: Gather,
) -> None:
    """`_gather_panel` turned round: add the column matrix to the pixels it was read from."""
    n, c0, c1 = channels
    kernel_h, kernel_w = gather.kernel
    step = gather.step[1]
    height, breadth = result.shape[2:]
    for c in range(c0, c1):
        for u in range(kernel_h):
            for v in range(kernel_w):
                row = columns[((c - c0) * kernel_h * kernel_w + u * kernel_w + v) * pitch :]
                for r in range(len(runs)):
                    y = runs[r, 0] * gather.step[0] + gather.origin[0] + u * gather.spacing[0]
                    z = runs[r, 1] * step + gather.origin[1] + v * gather.spacing[1]
                    if 0 <= y < height:
                        # m such that 0 <= z + m*step < breadth
                        first = max(0, -(z // step))
                        last = min(runs[r, 2], (breadth - z + step - 1) // step)
                        if last > first:
                            run = row[runs[r, 3] + first : runs[r, 3] + last]
                            line = result[n, c, y, z + first * step :]
                            for m in range(len(run)):
                                line[m * step] += run[m]


@jit
def _folded(
    start: int,
    stop: int,
    room: Array,
    gradient: Array,
    weights: Array,
    result: Array,
    filters: Pair,
    first_channel: int,
    gather: Gather,
    jobs: Pair,
    width: int,
    tile: tuple[int, int, int],
) -> None:
    """Jobs [start, stop) of `folded_product`: some channels of one image."""
    rows, columns, lanes = tile
    blocks, block_channels = jobs
    f0, f1 = filters
    taps = gather.kernel[0] * gather.kernel[1]
    channels = weights.shape[0] // gradient.shape[1] // taps
    inner = channels * taps
    pixels = gradient.shape[3]
    most = (block_channels * taps + rows - 1) // rows * rows
    tiles = room[: most * STEPS]
    panel = room[most * STEPS :][: (width + columns) * STEPS]
    product = room[most * STEPS + (width + columns) * STEPS :]
    nothing = np.zeros(rows, gradient.dtype)
    runs = np.empty((2 * width, 4), np.int64)
    itself = Gather((1, 1), (1, pixels), (1, 1), (0, 0), (1, 1))
    for job in range(start, stop):
        n, c0 = job // blocks, job % blocks * block_channels
        c1 = min(c0 + block_channels, channels)
        here = (c1 - c0) * taps
        where = (n, first_channel + c0, first_channel + c1)
        for c in range(where[1], where[2]):
            for y in range(result.shape[2]):
                line = result[n, c, y]
                for z in range(len(line)):
                    line[z] = 0
        for p0 in range(0, pixels, width):
            p1 = min(p0 + width, pixels)
            for f in range(f0, f1, STEPS):
                steps = min(f1 - f, STEPS)
                # One filter after the other, as its weights lie in memory, each cut into tiles.
                for step in range(steps):
                    at = (f + step) * inner + c0 * taps
                    for m in range(0, rows, lanes):
                        run, to = min(lanes, rows - m), (step * rows + m, rows * STEPS)
                        whole = here // rows
                        copy_runs(tiles, to, weights, (at + m, rows), run, (0, run), whole, True)
                        rest = max(0, min(run, here - whole * rows - m))
                        if whole * rows < here:
                            to, come = (whole * rows * STEPS + to[0], 0), (at + whole * rows + m, 0)
                            copy_runs(tiles, to, weights, come, run, (0, rest), 1, True)
                found = _find_runs(runs, (p0, p1), pixels, columns, columns * STEPS)
                _gather_panel(panel, columns, runs[:found], gradient, (n, f, f + steps), itself)
                for q in range(0, p1 - p0, columns):
                    for k in range(0, here, rows):
                        outer_tile(
                            product,
                            (k * width + q, width),
                            (here - k, p1 - p0 - q),
                            tiles,
                            (k * STEPS, 1, rows),
                            panel,
                            (q * STEPS, columns),
                            steps,
                            nothing,
                            0,
                            f == f0,
                            False,
                        )
            found = _find_runs(runs, (p0, p1), gather.output[1], columns, columns)
            _fold_panel(product, width, runs[:found], result, where, gather)


def folded_product(
    gradient: Array, weights: Array, window: Window, size: Pair, groups: int = 1
) -> Array:
    """Gradient by the input as columns ``weights.T @ gradient``, folded, a few channels at a time.

    Parameters
    ----------
    gradient : (N, F, OH, OW)
    weights : (F, C/groups, KH, KW)
    size : (H, W)

    Returns
    -------
    (N, C, H, W)
    """
    tile, dtype = host_tile(), gradient.dtype
    count, filters, out_h, out_w = gradient.shape
    gather = forward_gather(window, (out_h, out_w))
    channels, taps = weights.shape[1], window.taps
    result = buffers.empty((count, channels * groups, *size), dtype)
    block_channels = _even_blocks(channels, max(1, STEPS // taps))
    blocks = -(-channels // block_channels)
    if blocks * count < get_num_threads():
        block_channels = _even_blocks(channels, -(-channels // get_num_threads()))
        blocks = -(-channels // block_channels)
    each = filters // groups
    most = -(-block_channels * taps // tile.rows) * tile.rows
    columns = tile.columns(dtype)
    # The weights are packed again for each block of pixels: fc6's 16x16 outputs fit into one.
    width = _even_blocks(out_h * out_w, WIDE)
    for group in range(groups):
        share(
            _folded,
            count * blocks,
            gradient.reshape(count, filters, 1, out_h * out_w),
            weights.reshape(-1),
            result,
            (group * each, (group + 1) * each),
            group * channels,
            gather,
            (blocks, block_channels),
            width,
            (tile.rows, columns, tile.lanes(dtype)),
            least=_least(out_h * out_w * count * each * channels * taps, count * blocks),
            room=most * (STEPS + width + columns) + (width + columns) * STEPS,
            dtype=dtype,
        )
    return result


def input_gradient(
    gradient: Array, weights: Array, window: Window, size: Pair, groups: int = 1
) -> Array:
    """Gradient by the input, by gathering or by folding, whichever multiplies less.

    Arguments and result are those of `folded_product`. Gathering computes every tap of each of the
    H*W input pixels, folding every tap of each of the OH*OW outputs, and then has to add them up.
    """
    outputs = gradient.shape[2] * gradient.shape[3]
    if window.stride == (1, 1) and 3 * outputs > 2 * size[0] * size[1]:
        gather = adjoint_gather(window, size)
        return gathered_product(gradient, weights, None, gather, groups, adjoint=True)
    return folded_product(gradient, weights, window, size, groups)
