"""Winograd's convolution on the GPU: the formula of winograd.py, the products of gpu_gemm.py.

A 3x3 layer of stride 1, at any dilation, forwards and for both gradients:

    image  (N, C, H, W)   -> (points, C, T)    B.T X B for each tile and channel
    kernel (F, C, 3, 3)   -> (points, C', F')  G g G.T, in the order in which blocks read weights
    product[point] (F, T) =  kernel[point].T (F, C)  @  image[point] (C, T)
    result (N, F, OH, OW) <- (points, F, T)    A.T m A, the bias, the rectifier

T tiles of M x M outputs, and points = (M + 2)^2. The products are 1x1 convolutions of ``points``
groups on one row of T pixels, so the kernels of gpu_gemm.py do them as they are. For the gradient
of the weights the tiles of images and gradients are transformed, multiplied, and summed over T.

What is saved in multiplications is paid for in memory: a transformed image has 36 / 16 times the
numbers of the image. One thread transforms one tile of one channel, in registers, and neighbouring
threads have neighbouring tiles, so they write neighbouring numbers. Where the transformed images
are too large, the tiles are taken in bands.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tinydilate import device, gpu_gemm
from tinydilate.device import CudaArray, cover
from tinydilate.gpu_gemm import Gather
from tinydilate.kernel import Float32Array, Int32Array, cuda
from tinydilate.launching import CudaElementwise, CudaKernel
from tinydilate.window import Pair, Window
from tinydilate.winograd import Grid, fits, grid_of, is_switched_on

BAND_BYTES = 512 << 20  # transformed images and products are held so many at a time

TWO, FOUR, FIVE, EIGHT = (np.float32(number) for number in (2, 4, 5, 8))
HALF, QUARTER, SIXTH = (np.float32(1 / number) for number in (2, 4, 6))
TWELFTH, TWENTY_FOURTH = (np.float32(1 / number) for number in (12, 24))


# ---- one line of a tile ----------------------------------------------------------------------

# Each rule multiplies a line of numbers by a matrix of winograd.py: those at ``at``, ``at + step``,
# ... of ``v`` are replaced by the result, which may be longer or shorter.


@cuda.jit(device=True)
def _image_2(v: Any, at: Any, step: Any) -> None:
    a, b, c, d = v[at], v[at + step], v[at + 2 * step], v[at + 3 * step]
    v[at] = a - c
    v[at + step] = b + c
    v[at + 2 * step] = c - b
    v[at + 3 * step] = b - d


@cuda.jit(device=True)
def _image_4(v: Any, at: Any, step: Any) -> None:
    a, b, c = v[at], v[at + step], v[at + 2 * step]
    d, e, f = v[at + 3 * step], v[at + 4 * step], v[at + 5 * step]
    v[at] = FOUR * a - FIVE * c + e
    v[at + step] = (d + e) - FOUR * (b + c)
    v[at + 2 * step] = (e - d) + FOUR * (b - c)
    v[at + 3 * step] = (e - c) + TWO * (d - b)
    v[at + 4 * step] = (e - c) - TWO * (d - b)
    v[at + 5 * step] = FOUR * b - FIVE * d + f


@cuda.jit(device=True)
def _kernel_2(v: Any, at: Any, step: Any) -> None:
    a, b, c = v[at], v[at + step], v[at + 2 * step]
    v[at + step] = HALF * (a + b + c)
    v[at + 2 * step] = HALF * (a - b + c)
    v[at + 3 * step] = c


@cuda.jit(device=True)
def _kernel_4(v: Any, at: Any, step: Any) -> None:
    a, b, c = v[at], v[at + step], v[at + 2 * step]
    v[at] = QUARTER * a
    v[at + step] = -SIXTH * (a + b + c)
    v[at + 2 * step] = -SIXTH * (a - b + c)
    v[at + 3 * step] = TWENTY_FOURTH * a + TWELFTH * b + SIXTH * c
    v[at + 4 * step] = TWENTY_FOURTH * a - TWELFTH * b + SIXTH * c
    v[at + 5 * step] = c


@cuda.jit(device=True)
def _output_2(v: Any, at: Any, step: Any) -> None:
    a, b, c, d = v[at], v[at + step], v[at + 2 * step], v[at + 3 * step]
    v[at] = a + b + c
    v[at + step] = b - c - d


@cuda.jit(device=True)
def _output_4(v: Any, at: Any, step: Any) -> None:
    a, b, c = v[at], v[at + step], v[at + 2 * step]
    d, e, f = v[at + 3 * step], v[at + 4 * step], v[at + 5 * step]
    v[at] = a + (b + c) + (d + e)
    v[at + step] = (b - c) + TWO * (d - e)
    v[at + 2 * step] = (b + c) + FOUR * (d + e)
    v[at + 3 * step] = (b - c) + EIGHT * (d - e) + f


@cuda.jit(device=True)
def _gradient_2(v: Any, at: Any, step: Any) -> None:
    a, b = v[at], v[at + step]
    v[at + step] = a + b
    v[at + 2 * step] = a - b
    v[at + 3 * step] = -b


@cuda.jit(device=True)
def _gradient_4(v: Any, at: Any, step: Any) -> None:
    a, b, c, d = v[at], v[at + step], v[at + 2 * step], v[at + 3 * step]
    v[at + step] = (a + c) + (b + d)
    v[at + 2 * step] = (a + c) - (b + d)
    v[at + 3 * step] = (a + FOUR * c) + (TWO * b + EIGHT * d)
    v[at + 4 * step] = (a + FOUR * c) - (TWO * b + EIGHT * d)
    v[at + 5 * step] = d


@cuda.jit(device=True)
def _weights_2(v: Any, at: Any, step: Any) -> None:
    a, b, c, d = v[at], v[at + step], v[at + 2 * step], v[at + 3 * step]
    v[at] = a + HALF * (b + c)
    v[at + step] = HALF * (b - c)
    v[at + 2 * step] = HALF * (b + c) + d


@cuda.jit(device=True)
def _weights_4(v: Any, at: Any, step: Any) -> None:
    a, b, c = v[at], v[at + step], v[at + 2 * step]
    d, e, f = v[at + 3 * step], v[at + 4 * step], v[at + 5 * step]
    v[at] = QUARTER * a - SIXTH * (b + c) + TWENTY_FOURTH * (d + e)
    v[at + step] = SIXTH * (c - b) + TWELFTH * (d - e)
    v[at + 2 * step] = SIXTH * (d + e - b - c) + f


# ---- the kernels -----------------------------------------------------------------------------

# What they have to know of a layer, as a table: one argument in place of sixteen.
TILES, FIRST_TILE, PLANES, HEIGHT, WIDTH, ROWS, COLUMNS = range(7)
DOWN, ACROSS, ABOVE, LEFT, TILE_ROWS, TILE_COLUMNS, BIASED, RELU = range(7, 15)


@cuda.jit(device=True)
def _own_tile(layer: Any) -> Any:
    """What a thread transforms: (its number, of how many, the tile, of which plane)."""
    tiles, n = np.uint32(layer[TILES]), np.uint32(cuda.grid(1))
    count = np.uint32(tiles * np.uint32(layer[PLANES]))
    return n, count, np.uint32(n % tiles), np.uint32(n // tiles)


@cuda.jit(device=True)
def _corner(tile: Any, side: Any, layer: Any) -> Any:
    """The image of a tile of the band, and its first output: see `winograd._origin`."""
    tile = np.uint32(tile + np.uint32(layer[FIRST_TILE]))
    down, across = np.uint32(layer[DOWN]), np.uint32(layer[ACROSS])
    wide, high = np.uint32(layer[TILE_COLUMNS]), np.uint32(layer[TILE_ROWS])
    column, row = np.uint32(tile % wide), np.uint32(tile // wide)
    image, row = np.uint32(row // high), np.uint32(row % high)
    y = np.int32(row % down + row // down * side * down)
    z = np.int32(column % across + column // across * side * across)
    return image, y, z


def _reading_kernel(name: str, side: int, reach: int, rule: Any) -> CudaKernel:
    """Tiles of images (reach = M + 2) or of gradients (reach = M), transformed."""
    POINTS_ALONG, POINTS = side + 2, (side + 2) ** 2
    SIDE = np.uint32(side)

    @cuda.jit(dtypes=(np.float32,))
    def read(source: Float32Array, result: Float32Array, layer: Int32Array) -> None:
        """(N, C, H, W) -> (points, C, T): thread c*T + t has tile t of channel c."""
        n, count, t, c = _own_tile(layer)
        if n >= count:
            return
        image, y0, z0 = _corner(t, SIDE, layer)
        y0, z0 = np.int32(y0 - layer[ABOVE]), np.int32(z0 - layer[LEFT])
        height, width = layer[HEIGHT], layer[WIDTH]
        first = np.uint32((image * np.uint32(layer[PLANES]) + c) * np.uint32(height * width))
        v = cuda.local.array(POINTS, np.float32)
        for i in range(reach):
            y = np.int32(y0 + np.int32(i) * layer[DOWN])
            for j in range(reach):
                z = np.int32(z0 + np.int32(j) * layer[ACROSS])
                value = np.float32(0)
                if 0 <= y < height and 0 <= z < width:
                    value = source[np.uint32(first + np.uint32(y * width + z))]
                v[i * POINTS_ALONG + j] = value
        for j in range(reach):
            rule(v, j, POINTS_ALONG)
        for i in range(POINTS_ALONG):
            rule(v, i * POINTS_ALONG, 1)
        for point in range(POINTS):
            result[np.uint32(np.uint32(point) * count + n)] = v[point]

    made: CudaKernel = read
    made.name = f"gpu_winograd.{name} {side}"
    return made


def _packing_kernel(side: int, rule: Any) -> CudaKernel:
    POINTS_ALONG, POINTS = side + 2, (side + 2) ** 2

    @cuda.jit(dtypes=(np.float32,))
    def pack(
        weights: Float32Array,
        packed: Float32Array,
        groups: np.uint32,
        filters: np.uint32,
        channels: np.uint32,
        deep: np.uint32,
        wide: np.uint32,
        filter_step: np.uint32,
        channel_step: np.uint32,
        turned: bool,
    ) -> None:
        """(G*F, C, 3, 3) -> (points*G, C', F'), transformed; zeros fill the last tiles.

        Thread (g*C' + c)*F' + f has one filter of one channel. ``turned`` is by 180 degrees.
        """
        n = np.uint32(cuda.grid(1))
        count = np.uint32(groups * deep * wide)
        if n >= count:
            return
        f, c, group = n % wide, n // wide % deep, n // wide // deep
        v = cuda.local.array(POINTS, np.float32)
        first = np.uint32(group * filters * channels * np.uint32(9))
        first = np.uint32(first + f * filter_step + c * channel_step)
        there = f < filters and c < channels
        for i in range(3):
            for j in range(3):
                place = np.uint32(i * 3 + j)
                if turned:
                    place = np.uint32(np.uint32(8) - place)
                v[i * POINTS_ALONG + j] = weights[first + place] if there else np.float32(0)
        for j in range(3):
            rule(v, j, POINTS_ALONG)
        for i in range(POINTS_ALONG):
            rule(v, i * POINTS_ALONG, 1)
        for point in range(POINTS):
            packed[np.uint32(np.uint32(point) * count + n)] = v[point]

    made: CudaKernel = pack
    made.name = f"gpu_winograd.pack {side}"
    return made


def _writing_kernel(side: int, rule: Any) -> CudaKernel:
    POINTS_ALONG, POINTS = side + 2, (side + 2) ** 2
    SIDE = np.uint32(side)

    @cuda.jit(dtypes=(np.float32,))
    def write(
        products: Float32Array, bias: Float32Array, out: Float32Array, layer: Int32Array
    ) -> None:
        """(points, F, T) -> (N, F, OH, OW): thread f*T + t has tile t of filter f."""
        n, count, t, f = _own_tile(layer)
        if n >= count:
            return
        v = cuda.local.array(POINTS, np.float32)
        for point in range(POINTS):
            v[point] = products[np.uint32(np.uint32(point) * count + n)]
        for j in range(POINTS_ALONG):
            rule(v, j, POINTS_ALONG)
        for i in range(side):
            rule(v, i * POINTS_ALONG, 1)
        image, y0, z0 = _corner(t, SIDE, layer)
        rows, columns = layer[ROWS], layer[COLUMNS]
        first = np.uint32((image * np.uint32(layer[PLANES]) + f) * np.uint32(rows * columns))
        for i in range(side):
            y = np.int32(y0 + np.int32(i) * layer[DOWN])
            for j in range(side):
                z = np.int32(z0 + np.int32(j) * layer[ACROSS])
                if y < rows and z < columns:
                    total = v[i * POINTS_ALONG + j]
                    if layer[BIASED] != 0:
                        total += bias[f]
                    if layer[RELU] != 0 and total < 0:  # nan < 0 is false: nan passes
                        total = np.float32(0)
                    out[np.uint32(first + np.uint32(y * columns + z))] = total

    made: CudaKernel = write
    made.name = f"gpu_winograd.write {side}"
    return made


def _gathering_kernel(side: int, rule: Any) -> CudaKernel:
    POINTS_ALONG, POINTS = side + 2, (side + 2) ** 2

    @cuda.jit(dtypes=(np.float32,))
    def gather(sums: Float32Array, result: Float32Array) -> None:
        """(points, F*C) -> (F*C, 3, 3): the weights' gradient, one thread a kernel."""
        n = np.uint32(cuda.grid(1))
        count = np.uint32(result.size // np.uint32(9))
        if n >= count:
            return
        v = cuda.local.array(POINTS, np.float32)
        for point in range(POINTS):
            v[point] = sums[np.uint32(np.uint32(point) * count + n)]
        for j in range(POINTS_ALONG):
            rule(v, j, POINTS_ALONG)
        for i in range(3):
            rule(v, i * POINTS_ALONG, 1)
        for i in range(3):
            for j in range(3):
                result[np.uint32(n * np.uint32(9) + np.uint32(i * 3 + j))] = v[i * POINTS_ALONG + j]

    made: CudaKernel = gather
    made.name = f"gpu_winograd.gather {side}"
    return made


_READ = {
    2: _reading_kernel("read image", 2, 4, _image_2),
    4: _reading_kernel("read image", 4, 6, _image_4),
}
_READ_GRADIENT = {
    2: _reading_kernel("read gradient", 2, 2, _gradient_2),
    4: _reading_kernel("read gradient", 4, 4, _gradient_4),
}
_PACK = {2: _packing_kernel(2, _kernel_2), 4: _packing_kernel(4, _kernel_4)}
_WRITE = {2: _writing_kernel(2, _output_2), 4: _writing_kernel(4, _output_4)}
_add = CudaElementwise(np.add)
_GATHER = {2: _gathering_kernel(2, _weights_2), 4: _gathering_kernel(4, _weights_4)}


# ---- the choice ------------------------------------------------------------------------------


@lru_cache(4096)
def fastest_side(
    images: int,
    channels: int,
    filters: int,
    window: Window,
    size: Pair,
    groups: int = 1,
    *,
    outward: bool = False,
    tf32: bool = False,
) -> int:
    """Side of the tiles that suit a layer best, or 0 where direct multiplication is faster.

    ``channels`` are summed over and ``filters`` come out, or in the weights' gradient (``outward``)
    each meets each; both are those of one group, and ``size`` is that of the map that the tiles
    cover. With ``tf32`` direct multiplication may use it. The tiles' own products never do:
    Winograd's formula enlarges what its inputs were rounded by, too much for TF32.
    """
    if not fits(window) or not images or not is_switched_on():
        return 0
    pixels, chosen = images * size[0] * size[1], 0
    if outward:
        best = gpu_gemm.outer_clocks(filters, 9 * channels, groups, pixels, tf32)
    else:
        best = gpu_gemm.product_clocks(filters, pixels, groups, channels, 9, tf32)
    for side in (4, 2):
        grid = grid_of(side, images, size, window.dilation, window.before)
        tiles, products = images * grid.tiles[0] * grid.tiles[1], grid.points * groups
        if outward:
            clocks = gpu_gemm.outer_clocks(filters, channels, products, tiles)
        else:
            clocks = gpu_gemm.product_clocks(filters, tiles, products, channels, 1)
        moved = groups * (channels + filters) * (pixels + 2 * grid.points * tiles)
        moved += 2 * products * channels * filters
        clocks += 4 * moved / gpu_gemm.BYTES_A_CLOCK + 2 * gpu_gemm.LAUNCH  # two kernels more
        if clocks < gpu_gemm.SURE * best:
            best, chosen = clocks, side
    return chosen


# ---- forward, and the gradient by the input --------------------------------------------------


class _Band(NamedTuple):
    """Tiles ``first`` to ``first + tiles``, counted through all images."""

    first: int
    tiles: int


def _bands(grid: Grid, planes: int) -> list[_Band]:
    """All tiles, so many at a time that ``planes`` transformed ones of each fit in a band."""
    tiles = grid.images * grid.tiles[0] * grid.tiles[1]
    most = max(1, BAND_BYTES // (4 * grid.points * planes))
    parts = -(-tiles // most)
    each = -(-tiles // parts)
    return [_Band(first, min(each, tiles - first)) for first in range(0, tiles, each)]


def _layer(
    grid: Grid, band: _Band, planes: int, size: Pair, biased: bool = False, relu: bool = False
) -> CudaArray:
    """The table, for an image of ``size`` and ``planes`` maps."""
    return device.constants(
        *(band.tiles, band.first, planes, *size, *grid.output, *grid.dilation, *grid.before),
        *(*grid.tiles, int(biased), int(relu)),
    )


def convolution(
    images: CudaArray,
    weights: CudaArray,
    bias: CudaArray | None,
    window: Window,
    size: Pair,
    groups: int = 1,
    relu: bool = False,
    *,
    side: int,
    adjoint: bool = False,
) -> CudaArray:
    """(N, G*C, H, W) -> (N, G*F, OH, OW), by tiles of ``side`` x ``side`` outputs.

    The weights are those of the convolution, (G*F, C, 3, 3), and for its ``adjoint``
    (G*C, F, 3, 3): ``images`` is then the gradient by the output, ``size`` that of the input.
    """
    count, channels = images.shape[0], images.shape[1] // groups
    filters = weights.shape[1] if adjoint else weights.shape[0] // groups
    # Turned round, a window reads as far before a pixel as it read behind it.
    before = tuple(2 * d - b for d, b in zip(window.dilation, window.before, strict=True))
    grid = grid_of(side, count, size, window.dilation, before if adjoint else window.before)  # type: ignore[arg-type]
    out = device.empty((count, groups * filters, *size), images.dtype)
    if not out.size:
        return out
    points = grid.points
    bands = _bands(grid, images.shape[1] + groups * filters)
    cut = gpu_gemm.fastest_cut(filters, bands[0].tiles, points * groups, channels, taps=1)
    packed = _packed(weights, groups, filters, channels, side, cut.tile, adjoint)
    for band in bands:
        tiles = device.empty((1, points * images.shape[1], 1, band.tiles), images.dtype)
        layer = _layer(grid, band, images.shape[1], (images.shape[2], images.shape[3]))
        _READ[side][cover(band.tiles * images.shape[1])](images, tiles, layer)
        row = Gather((1, 1), (1, band.tiles), (1, 1), (0, 0), (1, 1))
        products = gpu_gemm.product(
            tiles, packed, None, row, filters, points * groups, False, cut
        )  # (1, points*G*F, 1, T)
        layer = _layer(grid, band, groups * filters, size, bias is not None, relu)
        other = products if bias is None else bias
        _WRITE[side][cover(band.tiles * groups * filters)](products, other, out, layer)
    return out


def _packed(
    weights: CudaArray,
    groups: int,
    filters: int,
    channels: int,
    side: int,
    tile: str,
    adjoint: bool,
) -> CudaArray:
    """Transformed kernels as `gpu_gemm.product` takes them: (points*G, C', F')."""
    deep, wide = gpu_gemm.TILES[tile].padded(channels, filters)
    packed = device.empty(((side + 2) ** 2 * groups, deep, wide), weights.dtype)
    steps = (9, filters * 9) if adjoint else (channels * 9, 9)
    _PACK[side][cover(groups * deep * wide)](
        weights, packed, groups, filters, channels, deep, wide, *steps, adjoint
    )
    return packed


# ---- the gradient by the weights -------------------------------------------------------------


def weight_gradient(
    images: CudaArray, grads: CudaArray, window: Window, groups: int = 1, *, side: int
) -> CudaArray:
    """(N, G*C, H, W), (N, G*F, OH, OW) -> (G*F, C, 3, 3), by tiles of ``side`` x ``side``."""
    channels, filters = images.shape[1] // groups, grads.shape[1] // groups
    size = grads.shape[2], grads.shape[3]
    if not images.size or not grads.size:
        return device.zeros((groups * filters, channels, 3, 3), images.dtype)
    result = device.empty((groups * filters, channels, 3, 3), images.dtype)
    grid = grid_of(side, images.shape[0], size, window.dilation, window.before)
    bands = _bands(grid, images.shape[1] + grads.shape[1])
    points = grid.points
    sums = None  # of the bands so far, (points, G*F*C): in their order, in the memory of one
    for band in bands:
        tiles = device.empty((1, points * images.shape[1], 1, band.tiles), images.dtype)
        layer = _layer(grid, band, images.shape[1], (images.shape[2], images.shape[3]))
        _READ[side][cover(band.tiles * images.shape[1])](images, tiles, layer)
        of_grads = device.empty((1, points * grads.shape[1], 1, band.tiles), grads.dtype)
        unpadded = grid._replace(before=(0, 0))
        layer = _layer(unpadded, band, grads.shape[1], size)
        _READ_GRADIENT[side][cover(band.tiles * grads.shape[1])](grads, of_grads, layer)
        row = Gather((1, 1), (1, band.tiles), (1, 1), (0, 0), (1, 1))
        part = gpu_gemm.gathered_outer(tiles, of_grads, row, points * groups)
        sums = part if sums is None else _add(sums, part)
    _GATHER[side][cover(result.size // 9)](sums, result)
    return result
