"""Winograd's convolution: fewer multiplications for 3x3 kernels, at any dilation.

**The idea, in one dimension.** Three taps over four pixels give two outputs:

    y0 = x0 g0 + x1 g1 + x2 g2          y1 = x1 g0 + x2 g1 + x3 g2

which is six multiplications. Four are enough:

    m0 = (x0 - x2) g0                        m1 = (x1 + x2) (g0 + g1 + g2) / 2
    m3 = (x1 - x3) g2                        m2 = (x2 - x1) (g0 - g1 + g2) / 2
    y0 = m0 + m1 + m2                        y1 = m1 - m2 - m3

In matrices: ``y = A.T [(G g) * (B.T x)]``, with * number by number. It is the product of two
polynomials, worked out by their values at the points 0, 1, -1 and infinity. In two dimensions each
matrix stands on both sides, ``Y = A.T [(G g G.T) * (B.T X B)] A``. A tile of M x M outputs then
takes (M+2)^2 multiplications instead of 9 M^2:

    F(2x2, 3x3):  16 instead of  36, 2.25 times fewer     points 0, 1, -1, infinity
    F(4x4, 3x3):  36 instead of 144, 4 times fewer        points 0, 1, -1, 2, -2, infinity

What is saved is paid for with transforms. But an image's transform serves every filter and a
filter's every tile, so the more channels, the less they weigh. And with rounding: the larger points
make numbers grow before they cancel again (docs/measurements.md has the error).

**As matrix products.** For each of the (M+2)^2 numbers of a tile, called ``point`` below, the sum
over channels is one product of matrices, done by the register tile:

    product[point] (T, F)  =  image[point] (T, C)  @  kernels[point] (C, F)         T tiles

The sandwiches ``B.T X B`` are done by `simd.Sandwich` on vectors of channels, so the image is
turned over first: from planes to pixels of 16 channels.

**Dilation.** A window with dilation d reads only pixels whose column has the same remainder modulo
d. So the image falls into d x d interleaved images, its *phases*, and in each of them the window is
an ordinary one. No phase is ever copied out: a tile just reads pixels that lie d apart. Along an
axis, tile n of phase n % d begins at ``n % d + (n // d) * M * d``; in this order of tiles each run
of d tiles covers M * d neighbouring pixels.

**Adjoints.** The input's gradient is a convolution with the kernel turned round, filters and
channels exchanged. The weights' gradient follows from the formula, linear in g: transform image and
gradient, multiply, sum over the tiles, and transform back with the transposed matrices,
``dg = G.T [sum over tiles (A dY A.T) * (B.T X B)] G``.
"""

from __future__ import annotations

import os
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from tinydilate import buffers
from tinydilate.compiling import jit
from tinydilate.device import Array
from tinydilate.errors import ConfigError
from tinydilate.simd import Sandwich, host_tile, outer_tile, transpose_block
from tinydilate.threads import get_num_threads, least_jobs, share
from tinydilate.window import Pair, Window

# B.T, G and A.T for tiles of M = 2 and M = 4 outputs.
IMAGE = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float),
    4: np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        float,
    ),
}
KERNEL = {
    2: np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    4: np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
}
OUTPUT = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float),
    4: np.array(
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float
    ),
}

image_2, image_4 = (Sandwich("image", IMAGE[m]) for m in (2, 4))
kernel_2, kernel_4 = (Sandwich("kernel", KERNEL[m]) for m in (2, 4))
output_2, output_4 = (Sandwich("output", OUTPUT[m]) for m in (2, 4))
gradient_2, gradient_4 = (Sandwich("gradient", OUTPUT[m].T) for m in (2, 4))
weights_2, weights_4 = (Sandwich("weights", KERNEL[m].T) for m in (2, 4))

TILES = 96  # of a job: their products, 36 x 96 x 48 floats, are 650 KB
TILE_STEPS = 256  # of the weights' gradient: tiles summed between loading sums and storing them
LARGEST_DILATION = 1024  # a row of pixels that tiles read is at least six times as long
BAND_BYTES = 24 << 20  # transformed images are held so many at a time
_WORTH_A_THREAD = 200_000  # multiply-adds of a transformed tile
SUMS_BYTES = 1 << 20  # sums that stay in a core's second-level cache


class Grid(NamedTuple):
    """The tiles of a layer; pairs are (rows, columns)."""

    side: int  # M, outputs along a tile's side
    output: Pair
    dilation: Pair
    before: Pair  # padding before the first row and column
    tiles: Pair  # number of tiles along each axis
    images: int

    @property
    def points(self) -> int:
        """Numbers of a transformed tile."""
        return (self.side + 2) ** 2


def grid_of(side: int, images: int, output: Pair, dilation: Pair, before: Pair) -> Grid:
    """Lay tiles of ``side`` x ``side`` outputs over every phase of the output."""

    def along(axis: int) -> int:
        full, rest = divmod(output[axis], side * dilation[axis])
        return full * dilation[axis] + min(rest, dilation[axis])

    return Grid(side, output, dilation, before, (along(0), along(1)), images)


class Costs(NamedTuple):
    """What a layer costs, in multiply-adds of vectors. Measured, and rounded: the order counts."""

    direct: float  # of a direct multiply-add, with all that goes with it
    gathered: float  # to gather a vector of the column matrix
    tile_in: float  # to transform a tile of one vector of channels
    spread: float  # how much longer that takes where the tile's pixels fill the first-level cache
    tile_out: float  # to transform a tile of one vector of filters back
    turned: float  # to turn over a pixel of one vector of channels
    kernel: float  # to transform the kernels of one channel and one vector of filters


# By the number of vector registers: 16 do not hold a tile of 6 x 6 on its way.
COSTS = {
    32: Costs(1.25, 0, 400, 0, 500, 6, 300),
    16: Costs(1.06, 10, 900, 900, 700, 6, 300),
}
FIRST_LEVEL = 32 << 10  # bytes of cache


@cache
def is_switched_on() -> bool:
    """Whether layers may choose Winograd's convolution: ``TINYDILATE_WINOGRAD=off`` forbids it."""
    wanted = os.environ.get("TINYDILATE_WINOGRAD", "on")
    if wanted not in ("on", "off"):
        raise ConfigError(
            f"expected TINYDILATE_WINOGRAD to be on or off; got {wanted!r}. "
            "Unset it to let each layer choose the faster way."
        )
    return wanted == "on"


def fits(window: Window) -> bool:
    """Whether the tiles can compute this window: a 3x3 kernel, stride 1, no absurd dilation."""
    nine_taps = window.kernel == (3, 3) and window.stride == (1, 1)
    return nine_taps and max(window.dilation) <= LARGEST_DILATION


@lru_cache(4096)
def fastest_side(
    images: int, channels: int, filters: int, window: Window, size: Pair, dtype: Any
) -> int:
    """Side of the tiles that suit a layer best, or 0 where direct multiplication is faster.

    ``channels`` and ``filters`` are those of one group, ``size`` is that of the map that the tiles
    cover. float64, which is asked for where rounding matters, is always multiplied directly.
    """
    if not fits(window) or dtype != np.float32 or not images or not is_switched_on():
        return 0
    tile, chosen = host_tile(), 0
    lanes, cost_of = tile.lanes(dtype), COSTS[tile.registers]
    vectors_in, vectors_out = -(-channels // lanes), -(-filters // lanes)
    read = 9 * images * size[0] * size[1] * channels / lanes  # vectors of the column matrix
    best = read * (cost_of.direct * filters + cost_of.gathered)
    for side in (2, 4):
        grid = grid_of(side, images, size, window.dilation, window.before)
        share_of_4 = (side + 2) ** 2 / 36
        wide = row_of_pixels(grid.tiles[1], side, side + 2, window.dilation[1], lanes)
        pixels = (side + 2) * wide  # of a row of tiles
        filled = min(1.0, pixels * tile.width / FIRST_LEVEL)
        tile_in = (cost_of.tile_in + filled * cost_of.spread) * vectors_in
        each = share_of_4 * (tile_in + cost_of.tile_out * vectors_out)
        each += grid.points * channels * vectors_out
        cost = images * grid.tiles[0] * grid.tiles[1] * each
        cost += cost_of.turned * images * grid.tiles[0] * pixels * vectors_in
        cost += share_of_4 * cost_of.kernel * channels * vectors_out
        if cost < best:
            best, chosen = cost, side
    return chosen


def row_of_pixels(tiles: int, side: int, reach: int, dilation: int, lanes: int) -> int:
    """Pixels from the first to the last that a row of tiles reads, in whole vectors."""
    wide = ((tiles - 1) // dilation * side + reach) * dilation
    return (wide + lanes - 1) // lanes * lanes


_row_of_pixels = jit(row_of_pixels)


def spaced(count: int, lanes: int) -> int:
    """Numbers from one point's matrix to the next one's, at least ``count``.

    A transform touches all points of a tile at once. At distances of whole pages these would be
    sent to the same few lines of the cache and push each other out, so they lie a vector further.
    """
    page = 64 * lanes
    return (count + page - 1) // page * page + lanes


_spaced = jit(spaced)


@jit
def _origin(n: int, side: int, dilation: int) -> int:
    """First output of tile n along an axis."""
    return n % dilation + n // dilation * side * dilation


# ---- images and gradients, tile by tile ------------------------------------------------------


class Block(NamedTuple):
    """A rectangle of tiles: rows [r0, r1), counted through all images, and tiles [t0, t1) of each.

    t0 is a multiple of the dilation, so that the block spans whole runs of neighbouring pixels.
    """

    r0: int
    r1: int
    t0: int
    t1: int


def block_count(size: Pair, grid: Grid) -> int:
    """Number of blocks of ``size`` = (rows, tiles of a row) that cover the tiles of all images."""
    rows = (grid.images * grid.tiles[0] + size[0] - 1) // size[0]
    return rows * ((grid.tiles[1] + size[1] - 1) // size[1])


_block_count = jit(block_count)


@jit
def _block(number: int, size: Pair, grid: Grid) -> Block:
    """The block of this number, counted row by row; the last ones may be smaller than ``size``."""
    high, long = size
    across = (grid.tiles[1] + long - 1) // long
    r0, t0 = number // across * high, number % across * long
    return Block(r0, min(r0 + high, grid.images * grid.tiles[0]), t0, min(t0 + long, grid.tiles[1]))


@jit
def _transform(
    result: Array,
    pitches: Pair,
    pixels: Array,
    source: Array,
    block: Block,
    channels: Pair,
    grid: Grid,
    reach: int,
    lanes: int,
) -> None:
    """Turn over and transform the tiles of a block.

    ``source`` is (N, C, H, W), channels [c0, c1) of it count; a tile reads ``reach`` pixels along
    each axis, M + 2 of an image and M of a gradient. ``result`` is (points, tiles, C'), flat;
    ``pitches`` lead from point to point and from tile to tile. ``pixels`` is room for those that a
    row of tiles reads, (reach, wide, lanes).
    """
    c0, c1 = channels
    side, points = grid.side, grid.side + 2
    padding = grid.before if reach > side else (0, 0)
    height, breadth = source.shape[2:]
    plane = height * breadth
    down, across = grid.dilation
    point, pitch = pitches
    flat = source.reshape(-1)
    count = block.t1 - block.t0
    wide = _row_of_pixels(count, side, reach, across, lanes)
    for row in range(block.r0, block.r1):
        n, top = row // grid.tiles[0], _origin(row % grid.tiles[0], side, down) - padding[0]
        for c in range(c0, c1, lanes):
            for i in range(reach):
                y = top + i * down
                there = 0 <= y < height
                for z in range(0, wide, lanes):
                    left = z + block.t0 * side - padding[1]
                    at = (n * source.shape[1] + c) * plane + y * breadth + left
                    transpose_block(
                        pixels,
                        ((i * wide + z) * lanes, lanes),
                        flat,
                        (at if there else 0, plane),
                        (min(lanes, c1 - c), lanes),
                        (-left, breadth - left) if there else (0, 0),
                        lanes,
                    )
            for t in range(count):
                place = ((row - block.r0) * count + t) * pitch + c - c0
                to = (place, points * point, point)
                come = (_origin(t, side, across) * lanes, wide * lanes, across * lanes)
                if reach == 6:
                    image_4(result, to, pixels, come, False)
                elif reach == 4 and side == 2:
                    image_2(result, to, pixels, come, False)
                elif reach == 4:
                    gradient_4(result, to, pixels, come, False)
                else:
                    gradient_2(result, to, pixels, come, False)


# ---- forward ---------------------------------------------------------------------------------


@jit
def _transform_kernels(
    start: int,
    stop: int,
    room: Array,
    weights: Array,
    first: int,
    pitches: Pair,
    turned: bool,
    result: Array,
    filters: int,
    side: int,
    lanes: int,
) -> None:
    """Jobs [start, stop): kernels of a stripe and 32 channels, to (stripes, points, C, breadth).

    The nine taps of filter f, channel c begin at ``weights[first + f*pitches[0] + c*pitches[1]]``;
    they are read backwards where the kernel is to be ``turned`` round.
    """
    _, points, channels, breadth = result.shape
    flat = result.reshape(-1)
    taps = (8 * lanes, -3 * lanes, -lanes) if turned else (0, 3 * lanes, lanes)
    blocks = (channels + 31) // 32
    for job in range(start, stop):
        stripe, c0 = job // blocks, job % blocks * 32
        for c in range(c0, min(c0 + 32, channels)):
            for within in range(0, breadth, lanes):
                # From taps of filters to filters of taps; filters that do not exist are zero.
                f = stripe * breadth + within
                at = first + f * pitches[0] + c * pitches[1]
                filters_here = max(0, min(lanes, filters - f))
                for t in range(0, 9, lanes):
                    there = min(lanes, 9 - t)
                    transpose_block(
                        room,
                        (t * lanes, lanes),
                        weights,
                        (at + t, pitches[0]),
                        (filters_here, there),
                        (0, there),
                        lanes,
                    )
                place = (stripe * points * channels + c) * breadth + within
                to = (place, (side + 2) * channels * breadth, channels * breadth)
                if side == 4:
                    kernel_4(flat, to, room, taps, False)
                else:
                    kernel_2(flat, to, room, taps, False)


@jit
def _product(
    start: int,
    stop: int,
    room: Array,
    source: Array,
    kernels: Array,
    bias: Array,
    out: Array,
    channels: Pair,
    filters: Pair,
    grid: Grid,
    relu: bool,
    block_size: Pair,
    tile: Pair,
) -> None:
    """Jobs [start, stop): blocks of tiles, from the image to the result.

    ``kernels`` is (stripes, points, C, breadth).
    """
    rows, lanes = tile
    side = grid.side
    high, long = block_size
    stripes, points, inner, breadth = kernels.shape
    pitch = (inner + lanes - 1) // lanes * lanes
    image_point = _spaced(high * long * pitch, lanes)
    product_point = _spaced(high * long * breadth, lanes)
    image = room[: points * image_point]  # (points, tiles, C')
    products = room[points * image_point :][: points * product_point]  # (points, tiles, breadth)
    pixels = room[points * (image_point + product_point) :]
    flat_kernels = kernels.reshape(-1)
    nothing = np.zeros(rows, kernels.dtype)
    for job in range(start, stop):
        block = _block(job, block_size, grid)
        count = (block.r1 - block.r0) * (block.t1 - block.t0)
        pitches = (image_point, pitch)
        _transform(image, pitches, pixels, source, block, channels, grid, side + 2, lanes)
        for stripe in range(stripes):
            f0 = filters[0] + stripe * breadth
            # The bias: a number at the point (1, 1) comes out at every pixel of the tile, for the
            # polynomial's value at 1 has the weight 1 in each output.
            begin = (side + 3) * product_point
            for n in range(count):
                for j in range(breadth):
                    value = bias[f0 + j] if f0 + j < filters[1] else nothing[0]
                    products[begin + n * breadth + j] = value
            for point in range(points):
                for n in range(0, count, rows):
                    outer_tile(
                        products,
                        (point * product_point + n * breadth, breadth),
                        (count - n, breadth),
                        image,
                        (point * image_point + n * pitch, pitch, 1),
                        flat_kernels,
                        ((stripe * points + point) * inner * breadth, breadth),
                        inner,
                        nothing,
                        0,
                        point != side + 3,
                        False,
                    )
            here = (f0, min(f0 + breadth, filters[1]))
            _write(out, products, product_point, breadth, pixels, block, here, grid, relu, lanes)


@jit
def _write(
    out: Array,
    products: Array,
    point: int,
    breadth: int,
    pixels: Array,
    block: Block,
    filters: Pair,
    grid: Grid,
    relu: bool,
    lanes: int,
) -> None:
    """Transform a block's products back and turn them over, to filters [f0, f1) of the result."""
    f0, f1 = filters
    side, across = grid.side, grid.dilation[1]
    out_h, out_w = grid.output
    plane = out_h * out_w
    count = block.t1 - block.t0
    flat = out.reshape(-1)
    first = block.t0 * side  # the block's first column
    wide = (count + across - 1) // across * across * side
    end = min(wide, out_w - first)
    for row in range(block.r0, block.r1):
        n = row // grid.tiles[0]
        top = _origin(row % grid.tiles[0], side, grid.dilation[0])
        for f in range(f0, f1, lanes):
            for t in range(count):
                place = ((row - block.r0) * count + t) * breadth + f - f0
                come = (place, (side + 2) * point, point)
                to = (_origin(t, side, across) * lanes, wide * lanes, across * lanes)
                if side == 4:
                    output_4(pixels, to, products, come, relu)
                else:
                    output_2(pixels, to, products, come, relu)
            for i in range(side):
                y = top + i * grid.dilation[0]
                if y < out_h:
                    for z in range(0, end, lanes):
                        there = min(lanes, end - z)
                        transpose_block(
                            flat,
                            ((n * out.shape[1] + f) * plane + y * out_w + first + z, plane),
                            pixels,
                            ((i * wide + z) * lanes, lanes),
                            (there, min(lanes, f1 - f)),
                            (0, lanes),
                            there,
                        )


def _block_size(grid: Grid) -> Pair:
    """Tiles of a job: whole rows of them, or a part of one row that spans whole phases."""
    rows, columns = grid.images * grid.tiles[0], grid.tiles[1]
    across = grid.dilation[1]
    if columns <= TILES:
        return min(max(1, TILES // columns), -(-rows // get_num_threads())), columns
    units = -(-columns // across)
    most = max(1, TILES // across)
    return 1, -(-units // -(-units // most)) * across


def _room(grid: Grid, size: Pair, channels: int, breadth: int, lanes: int) -> int:
    """Numbers that `_product` works in: transformed image, products, and pixels of either."""
    pitch, tiles, across = -(-channels // lanes) * lanes, size[0] * size[1], grid.dilation[1]
    read = (grid.side + 2) * row_of_pixels(size[1], grid.side, grid.side + 2, across, lanes)
    return grid.points * (spaced(tiles * pitch, lanes) + spaced(tiles * breadth, lanes)) + (
        read * lanes
    )


def winograd_product(
    images: Array,
    weights: Array,
    bias: Array | None,
    window: Window,
    size: Pair,
    groups: int = 1,
    relu: bool = False,
    *,
    side: int = 4,
    adjoint: bool = False,
) -> Array:
    """Convolution by a 3x3 kernel with stride 1, or its gradient by the input.

    Parameters
    ----------
    images : (N, C, H, W)
    weights : (F, C/groups, 3, 3)
    bias : (F,) or None
    window : Window
        Of the convolution; its stride must be 1.
    size : (OH, OW)
        Of the result: the window's output, or the input of which the gradient is taken.
    relu : bool
        Whether negative results become zero on the way out.
    side : int
        Outputs along a tile's side: 2 or 4.
    adjoint : bool
        Whether ``images`` are gradients (N, F, H, W) and the result is the input's.

    Returns
    -------
    (N, F, OH, OW), or (N, C, OH, OW) of the adjoint
    """
    tile, dtype = host_tile(), images.dtype
    lanes = tile.lanes(dtype)
    filters, channels = weights.shape[0] // groups, weights.shape[1]
    group_size = filters * channels * 9
    pitches, before = (channels * 9, 9), window.before
    if adjoint:  # filters and channels exchanged, the kernel turned round
        filters, channels = channels, filters
        pitches = pitches[::-1]
        before = 2 * window.dilation[0] - before[0], 2 * window.dilation[1] - before[1]
    grid = grid_of(side, len(images), size, window.dilation, before)
    out = buffers.empty((len(images), filters * groups, *size), dtype)
    start = np.zeros(filters * groups, dtype) if bias is None else bias
    number, breadth = tile.stripes(filters, dtype)
    kernels = buffers.empty((number, grid.points, channels, breadth), dtype)
    block = _block_size(grid)
    jobs = block_count(block, grid)
    work = grid.points * grid.images * grid.tiles[0] * grid.tiles[1] * channels * filters
    for group in range(groups):
        share(
            _transform_kernels,
            number * -(-channels // 32),
            weights.reshape(-1),
            group * group_size,
            pitches,
            adjoint,
            kernels,
            filters,
            side,
            lanes,
            least=1 + 60 // (breadth // lanes),
            room=(9 + lanes) * lanes,
            dtype=dtype,
        )
        share(
            _product,
            jobs,
            images,
            kernels,
            start,
            out,
            (group * channels, (group + 1) * channels),
            (group * filters, (group + 1) * filters),
            grid,
            relu,
            block,
            (tile.rows, lanes),
            least=least_jobs(work, jobs, _WORTH_A_THREAD),
            room=_room(grid, block, channels, breadth, lanes),
            dtype=dtype,
        )
    return out


# ---- gradient by the weights -----------------------------------------------------------------


@jit
def _transform_rows(
    start: int,
    stop: int,
    room: Array,
    source: Array,
    result: Array,
    pitches: Pair,
    channels: Pair,
    grid: Grid,
    reach: int,
    first_row: int,
    lanes: int,
) -> None:
    """Jobs [start, stop): rows of tiles from ``first_row`` on, of one vector of channels each."""
    c0, c1 = channels
    vectors = (c1 - c0 + lanes - 1) // lanes
    for job in range(start, stop):
        row, c = job // vectors, job % vectors * lanes
        block = Block(first_row + row, first_row + row + 1, 0, grid.tiles[1])
        here = (c0 + c, min(c0 + c + lanes, c1))
        to = result[row * grid.tiles[1] * pitches[1] + c :]
        _transform(to, pitches, room, source, block, here, grid, reach, lanes)


@jit
def _outer(
    start: int,
    stop: int,
    image: Array,
    image_point: int,
    gradient: Array,
    gradient_point: int,
    sums: Array,
    tiles: int,
    first: bool,
    parts: int,
    breadth: int,
    rows: int,
) -> None:
    """Jobs [start, stop): one point, a part of the channels: sums (points, C', F') of products."""
    _, channels, filters = sums.shape
    flat_sums = sums.reshape(-1)
    nothing = np.zeros(rows, sums.dtype)
    groups = (channels + rows - 1) // rows
    for job in range(start, stop):
        point, part = job // parts, job % parts
        c0, c1 = groups * part // parts * rows, groups * (part + 1) // parts * rows
        c1 = min(c1, channels)
        for t0 in range(0, tiles, TILE_STEPS):
            t1 = min(t0 + TILE_STEPS, tiles)
            for f in range(0, filters, breadth):
                for c in range(c0, c1, rows):
                    # `&`: with `and`, a branch before every tile, small layers take a tenth longer.
                    outer_tile(
                        flat_sums,
                        ((point * channels + c) * filters + f, filters),
                        (c1 - c, min(breadth, filters - f)),
                        image,
                        (point * image_point + t0 * channels + c, 1, channels),
                        gradient,
                        (point * gradient_point + t0 * filters + f, filters),
                        t1 - t0,
                        nothing,
                        0,
                        first & (t0 == 0),
                        False,
                    )


@jit
def _outer_of_blocks(
    start: int,
    stop: int,
    room: Array,
    source: Array,
    gradient: Array,
    sums: Array,
    channels: Pair,
    filters: Pair,
    grid: Grid,
    block_size: Pair,
    breadth: int,
    tile: Pair,
) -> None:
    """Parts [start, stop) of the blocks, each with sums (points, C', F') of its own."""
    rows, lanes = tile
    side = grid.side
    parts, points, c_pitch, f_pitch = sums.shape
    high, long = block_size
    c_point = _spaced(high * long * c_pitch, lanes)
    f_point = _spaced(high * long * f_pitch, lanes)
    image = room[: points * c_point]
    other = room[points * c_point :][: points * f_point]
    pixels = room[points * (c_point + f_point) :]
    blocks = _block_count(block_size, grid)
    for part in range(start, stop):
        begin, end = blocks * part // parts, blocks * (part + 1) // parts
        for job in range(begin, end):
            block = _block(job, block_size, grid)
            _transform(
                image,
                (c_point, c_pitch),
                pixels,
                source,
                block,
                channels,
                grid,
                side + 2,
                lanes,
            )
            _transform(
                other,
                (f_point, f_pitch),
                pixels,
                gradient,
                block,
                filters,
                grid,
                side,
                lanes,
            )
            count = (block.r1 - block.r0) * (block.t1 - block.t0)
            _outer(
                0,
                points,
                image,
                c_point,
                other,
                f_point,
                sums[part],
                count,
                job == begin,
                1,
                breadth,
                rows,
            )


@jit
def _transform_weights(
    start: int, stop: int, room: Array, sums: Array, result: Array, side: int, lanes: int
) -> None:
    """Channels [start, stop) of the sums (points, C', F'), to weights (F, C, 9)."""
    _, pitch, breadth = sums.shape
    filters, channels, _ = result.shape
    flat, flat_result = sums.reshape(-1), result.reshape(-1)
    for c in range(start, stop):
        for f in range(0, filters, lanes):
            come = (c * breadth + f, (side + 2) * pitch * breadth, pitch * breadth)
            if side == 4:
                weights_4(room, (0, 3 * lanes, lanes), flat, come, False)
            else:
                weights_2(room, (0, 3 * lanes, lanes), flat, come, False)
            for t in range(0, 9, lanes):
                there = min(lanes, 9 - t)
                transpose_block(
                    flat_result,
                    ((f * channels + c) * 9 + t, channels * 9),
                    room,
                    (t * lanes, lanes),
                    (there, min(lanes, filters - f)),
                    (0, lanes),
                    there,
                )


def winograd_outer(
    images: Array, gradient: Array, window: Window, groups: int = 1, *, side: int = 4
) -> Array:
    """Gradient of the weights of a 3x3 kernel with stride 1.

    Parameters
    ----------
    images : (N, C, H, W)
    gradient : (N, F, OH, OW)
    side : int
        Outputs along a tile's side: 2 or 4.

    Returns
    -------
    (F, C/groups, 3, 3)
    """
    tile, dtype = host_tile(), images.dtype
    lanes = tile.lanes(dtype)
    filters, channels = gradient.shape[1] // groups, images.shape[1] // groups
    size = (gradient.shape[2], gradient.shape[3])
    grid = grid_of(side, len(images), size, window.dilation, window.before)
    c_pitch, f_pitch = (-(-count // lanes) * lanes for count in (channels, filters))
    _, breadth = tile.stripes(filters, dtype)
    result = buffers.empty((groups * filters, channels, 3, 3), dtype)
    taps = result.reshape(groups * filters, channels, 9)
    # The sums of small layers stay in the cache: each thread keeps its own and takes its own tiles,
    # a block at a time. Large ones are shared: all tiles are transformed, then each thread takes
    # its own points and channels.
    small = grid.points * c_pitch * f_pitch * dtype.itemsize <= SUMS_BYTES
    block = _block_size(grid)
    parts = min(get_num_threads(), block_count(block, grid)) if small else 1
    sums = buffers.empty((parts, grid.points, c_pitch, f_pitch), dtype)
    for group in range(groups):
        spans = (group * channels, (group + 1) * channels)
        mine = (group * filters, (group + 1) * filters)
        arguments = (images, gradient, sums, spans, mine, grid, breadth, (tile.rows, lanes))
        total = _sums_by_blocks(*arguments, block) if small else _sums_by_points(*arguments)
        share(
            _transform_weights,
            channels,
            total,
            taps[group * filters : (group + 1) * filters],
            side,
            lanes,
            least=1 + 2000 // filters,
            room=9 * lanes,
            dtype=dtype,
        )
    return result


def _sums_by_blocks(
    images: Array,
    gradient: Array,
    sums: Array,
    channels: Pair,
    filters: Pair,
    grid: Grid,
    breadth: int,
    tile: Pair,
    block: Pair,
) -> Array:
    """Sums (points, C', F') over the tiles: each part of the tiles by a thread of its own."""
    parts, _, c_pitch, f_pitch = sums.shape
    work = grid.images * grid.tiles[0] * grid.tiles[1] * sums[0].size
    share(
        _outer_of_blocks,
        parts,
        images,
        gradient,
        sums,
        channels,
        filters,
        grid,
        block,
        breadth,
        tile,
        least=least_jobs(work, parts, _WORTH_A_THREAD),
        room=_room(grid, block, c_pitch, f_pitch, tile[1]),
        dtype=sums.dtype,
    )
    total: Array = sums[0] if parts == 1 else sums.sum(axis=0)
    return total


def _sums_by_points(
    images: Array,
    gradient: Array,
    sums: Array,
    channels: Pair,
    filters: Pair,
    grid: Grid,
    breadth: int,
    tile: Pair,
) -> Array:
    """Sums (points, C', F') over the tiles, in bands of BAND_BYTES: threads share the points."""
    _, _, c_pitch, f_pitch = sums.shape
    rows, lanes = tile
    dtype, points, columns = sums.dtype, grid.points, grid.tiles[1]
    all_rows = grid.images * grid.tiles[0]
    of_a_row = points * (c_pitch + f_pitch) * columns * dtype.itemsize
    bands = -(-all_rows // max(1, BAND_BYTES // of_a_row))
    most = -(-all_rows // bands) * columns
    c_point, f_point = spaced(most * c_pitch, lanes), spaced(most * f_pitch, lanes)
    image = buffers.empty((points * c_point,), dtype)
    other = buffers.empty((points * f_point,), dtype)
    # 36 points fall evenly on few threads; for many, the channels are cut as well.
    parts = max(1, min(-(-2 * get_num_threads() // 9), c_pitch // lanes))
    for band in range(bands):
        r0, r1 = all_rows * band // bands, all_rows * (band + 1) // bands
        for source, result, pitches, spans, is_image in (
            (images, image, (c_point, c_pitch), channels, True),
            (gradient, other, (f_point, f_pitch), filters, False),
        ):
            reach = grid.side + 2 if is_image else grid.side
            share(
                _transform_rows,
                (r1 - r0) * (pitches[1] // lanes),
                source,
                result,
                pitches,
                spans,
                grid,
                reach,
                r0,
                lanes,
                least=1 + 500 // columns,
                room=reach
                * row_of_pixels(columns, grid.side, reach, grid.dilation[1], lanes)
                * lanes,
                dtype=dtype,
            )
        share(
            _outer,
            points * parts,
            image,
            c_point,
            other,
            f_point,
            sums[0],
            (r1 - r0) * columns,
            band == 0,
            parts,
            breadth,
            rows,
        )
    total: Array = sums[0]
    return total
