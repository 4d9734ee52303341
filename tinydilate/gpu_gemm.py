"""The matrix product that convolution stands on, on the GPU: tiles within tiles.

As gemm.py says, a convolution is the product of two matrices, weights and im2col columns, and the
columns need never be written down:

    out (F, P)  =  weights (F, K)  @  columns (K, P)          P = N*OH*OW pixels, K = taps*C

What limits it is not arithmetic but getting the numbers to where it is done. By its data sheet an
H100 multiplies and adds 33 * 10**12 times a second and reads 0.8 * 10**12 floats from its memory in
that time, so each number that was read must be used 40 times at least. That is what tiles are for.

* A **block** of 256 threads computes 128 x 128 numbers of the result. For one step in k it needs
  128 weights and 128 pixels, 256 numbers, and does 128 * 128 multiply-adds with them: 64 for each
  number read. The numbers lie in *shared memory*, which the threads of a block have in common; a
  multiprocessor has some 100 to 228 KB of it.
* A **thread** computes 8 x 8 of them. Shared memory is quick, but not so quick that each
  multiply-add could fetch two numbers from it: reading 8 weights and 8 pixels, 16 numbers, for
  64 multiply-adds it is 4 for each number. All 64 sums stay in *registers*, the 65,536 numbers that
  a multiprocessor holds for its threads' own use.

The tile of a block, and what it needs of both matrices for eight steps:

                      pixels p0 ... p0 + 127
                     +----------------------+
              k ...  |    8 x 128 columns   |      eight steps in k lie in shared memory:
                     +----------------------+      128 weights and 128 pixels for each
     +-------+       +----------------------+
     |       |       |   ....      ....     |
  f0 | 128   |       |   ....      ....     |      the thread at (ty, tx) has 8 rows and
     |  x 8  |       |                      |      8 columns of the tile, four and four, half
     |       |       |   ....      ....     |      a tile apart, so that neighbours read
     +-------+       |   ....      ....     |      neighbouring numbers, four (128 bits) at once
      weights        +----------------------+

**Two buffers.** While the block multiplies eight steps, each thread already fetches its share of
the next eight into registers: memory answers after some 500 cycles, which is about what the
multiplications take. Then it writes them to the other of two buffers in shared memory. With two, no
thread waits until the slowest has read the old numbers: one barrier a round is enough.

**The order of k.** Taps come first, and the channels within a tap. So which pixel a thread reads,
and whether it lies in the padding, is worked out when the tap changes, and then the thread walks
through the channels by adding the size of a plane.

**One kernel for forward and backward.** Output p reads through tap u the pixel

    y = (p * step + origin + u * spacing) / divisor           if that is a whole number in the image

Forward: step = stride, origin = -padding, spacing = dilation, divisor = 1. The gradient by the
input is the same sum turned around, as in `fold`: step = 1, origin = +padding, spacing = -dilation,
divisor = stride. Nothing is flipped, and no two threads add to one number.

**Split-K.** The gradient of the weights has a small result and a long sum: (F, K) numbers, P
products each. There may be four tiles of the result, and 132 multiprocessors want work. So the sum
is cut into parts: each part has blocks of its own, which write their sums into a workspace, and a
last kernel adds the parts, always in the same order: the same numbers give the same bits, which
adding by atomics would not. A small map of many channels (conv5, fc6, fc7) is in the same case
forwards, where the sum runs over taps and channels.

**TF32.** Where it is allowed, tensor cores multiply: gpu_tf32.py says with what rounding, and how
the lanes of a warp share the work. Such a tile is cut among its threads in another way and lies in
another order in shared memory, sixteen steps in k of it; all the rest is the same, so the kernels
are, too. What differs is a tile's `Way`.

float32 only. With other numbers convolution and products take the readable way of their pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tinydilate import device, gpu_tf32
from tinydilate.device import SIMULATED, CudaArray, card
from tinydilate.gpu_tf32 import place_left
from tinydilate.kernel import Float32Array, Int32Array, cuda
from tinydilate.launching import OLDEST, CudaKernel
from tinydilate.window import Pair, Window

TENSOR_STEPS = np.uint32(gpu_tf32.STEPS)  # of TF32


class Gather(NamedTuple):
    """The rule by which output p and tap u read an image: (p*step + origin + u*spacing) / divisor.

    Each field is (rows, columns).
    """

    kernel: Pair
    output: Pair
    step: Pair
    origin: Pair
    spacing: Pair
    divisor: Pair = (1, 1)

    def taps(self) -> list[int]:
        """How far each tap reads from the first, before the division: row, column, row, ..."""
        return [
            place
            for u in range(self.kernel[0])
            for v in range(self.kernel[1])
            for place in (u * self.spacing[0], v * self.spacing[1])
        ]


def forward_gather(window: Window, output: Pair) -> Gather:
    """The tap rule: what a convolution reads."""
    top, left = window.before
    return Gather(window.kernel, output, window.stride, (-top, -left), window.dilation)


def adjoint_gather(window: Window, size: Pair) -> Gather:
    """The tap rule solved for the output: which outputs an input pixel went into."""
    rows, columns = window.dilation
    return Gather(window.kernel, size, (1, 1), window.before, (-rows, -columns), window.stride)


class Tile(NamedTuple):
    """How the result is cut: numbers of a block, and of a thread, in rows (filters) and columns.

    So many ``steps`` in k lie in shared memory for a round. A thread's rows and columns come in
    pieces of ``vector``, which it reads from there at once. ``blocks`` of them have room on a
    multiprocessor of an H100 at a time. ``share`` of the instructions of a round within a tap are
    multiply-adds: counted in the machine code for an H100, forward, and for tiles of 32 rows a
    tenth less, for they read more numbers for each, and on the card took so much longer. ``tf32``
    tiles are multiplied by tensor cores; their share is of the cores' time, as it was measured on
    an H100 (docs/gpu.md).
    """

    rows: int
    columns: int
    thread_rows: int
    thread_columns: int
    vector: int
    blocks: int
    share: float
    steps: int = 8
    tf32: bool = False

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)

    def padded(self, channels: int, filters: int) -> tuple[int, int]:
        """Both as packed weights have them: in full rounds, and in full tiles."""
        deep = -(-channels // self.steps) * self.steps
        return deep, -(-filters // self.rows) * self.rows

    @property
    def registers(self) -> int:
        """Of a thread, that leave room for ``blocks``: in steps of eight, of 65,536."""
        return min(255, 65_536 // (self.blocks * self.threads) // 8 * 8)

    @property
    def speed(self) -> float:
        """Multiply-adds a clock, on a multiprocessor that has nothing else to wait for."""
        capability = card().capability
        rate = AREA_A_CLOCK.get(capability, 128)
        return self.share * (TENSOR_AREA_A_CLOCK.get(capability, rate) if self.tf32 else rate)

    @property
    def instruction(self) -> str:
        """What its machine code must contain."""
        return gpu_tf32.INSTRUCTION if self.tf32 else ""

    @property
    def capability(self) -> tuple[int, int]:
        """Of the first cards that have all its instructions."""
        return gpu_tf32.CAPABILITY if self.tf32 else OLDEST


# A layer of few filters would leave most rows of a large tile without work. The small tile has
# little to do in a round, and memory answers no sooner: where channels are many, or pixels are what
# is added up, it takes sixteen steps in place of eight. In the simulator, where each thread costs
# time, the tiles are small, and cut in the same ways.
TILES_OF_CARDS = {
    "tile128": Tile(128, 128, 8, 8, vector=4, blocks=2, share=0.84),
    "tile64": Tile(64, 128, 8, 8, vector=4, blocks=4, share=0.82),
    "tile32": Tile(32, 128, 4, 8, vector=4, blocks=4, share=0.66),
    "tile32_16": Tile(32, 128, 4, 8, vector=4, blocks=4, share=0.70, steps=16),
    "tf32_128": Tile(
        128, 128, 8, 8, vector=4, blocks=2, share=0.2, steps=gpu_tf32.STEPS, tf32=True
    ),
    "tf32_64": Tile(64, 128, 8, 8, vector=4, blocks=3, share=0.2, steps=gpu_tf32.STEPS, tf32=True),
}
TILES_IN_THE_SIMULATOR = {
    "tile128": Tile(8, 4, 2, 2, vector=1, blocks=1, share=0.84),
    "tile64": Tile(4, 8, 2, 2, vector=1, blocks=1, share=0.82),
    "tile32": Tile(2, 8, 1, 2, vector=1, blocks=1, share=0.66),
    "tile32_16": Tile(4, 8, 1, 2, vector=1, blocks=1, share=0.70, steps=16),
    # A warp has 32 lanes, so these are larger: one warp of 16x16, or two beside each other.
    "tf32_128": Tile(16, 16, 2, 4, vector=1, blocks=1, share=0.2, steps=gpu_tf32.STEPS, tf32=True),
    "tf32_64": Tile(16, 32, 2, 4, vector=1, blocks=1, share=0.2, steps=gpu_tf32.STEPS, tf32=True),
}
TILES = TILES_IN_THE_SIMULATOR if SIMULATED else TILES_OF_CARDS


class Cut(NamedTuple):
    """The tile of a product, and in how many parts its sums are taken."""

    tile: str
    parts: int


# Multiply-adds of a multiprocessor in FP32, and of its tensor cores in TF32 without sparsity, by
# compute capability and NVIDIA's architecture white papers (Turing, A100, GA102, Ada, H100,
# Blackwell). Cards that are not named are taken to have 128, and in TF32 no more than in FP32, as
# consumer cards from 8.6 on: it is not chosen there.
AREA_A_CLOCK = {(7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 9): 128, (9, 0): 128, (12, 0): 128}
TENSOR_AREA_A_CLOCK = {(8, 0): 512, (9, 0): 1024}
if SIMULATED:
    TENSOR_AREA_A_CLOCK[0, 0] = 1024  # it chooses as an H100 would
HALF_BUSY = 384  # so many threads of a multiprocessor get half done of what countless ones would
BYTES_A_CLOCK = 1400  # that all of the card reads and writes: 2.4 TB/s at 1.75 GHz
LAUNCH = 10_000  # clocks of one kernel more
OUTWARD = 1.4  # times as long as TF32's products its sums over pixels take, measured like its share
WORTH = 0.8  # of the clocks in FP32 that TF32 may take, for its rounding to be worth it
SURE = 0.85  # of the plain way's clocks that another may take: the count is no surer than that
LEAST_STEPS = 128  # in k, of a part, which has to begin and to write its sums


def _clocks(cut: Cut, rows: int, columns: int, groups: int, rounds: int) -> float:
    """What the multiprocessor with the most work takes, for sums of so many rounds.

    The constants are an H100's, rounded: they decide between ways that give the same numbers, or
    with TF32 rounded ones.
    """
    tile, processors = TILES[cut.tile], card().multiprocessors
    blocks = cut.parts * groups * -(-rows // tile.rows) * -(-columns // tile.columns)
    each = -(-blocks // processors)
    work = float(each * -(-rounds // cut.parts) * tile.steps * tile.rows * tile.columns)
    work /= tile.speed * _busy(tile, each)
    if cut.parts == 1:
        return work
    moved = 4 * (2 * cut.parts + 1) * groups * rows * columns
    return work + moved / BYTES_A_CLOCK + LAUNCH


def _busy(tile: Tile, blocks: int) -> float:
    """How fast a multiprocessor with so many blocks is, beside one with as many as it holds.

    While some threads wait for memory others multiply, if there are others. (Twice as many of 256
    got 1.43 times as much done.)
    """
    most = tile.blocks * tile.threads
    threads = min(most, max(1, blocks) * tile.threads)  # of an empty batch there are none
    return threads / most * (most + HALF_BUSY) / (threads + HALF_BUSY)


@lru_cache(4096)
def fastest_cut(
    rows: int,
    columns: int,
    groups: int,
    channels: int,
    taps: int,
    tile: str = "",
    tf32: bool = False,
) -> Cut:
    """The tile, and the parts, by which `_gather_kernel` is done first.

    A sum runs over ``channels`` and ``taps``. A tile that is given is taken.
    """

    def rounds(name: str) -> int:
        return rounds_of(channels, taps, TILES[name].steps)

    def cuts(name: str) -> list[Cut]:
        most = min(32, rounds(name) * TILES[name].steps // LEAST_STEPS)
        return [Cut(name, parts) for parts in range(1, max(1, most) + 1)]

    def clocks(cut: Cut) -> float:
        return _clocks(cut, rows, columns, groups, rounds(cut.tile))

    def fastest(names: list[str]) -> Cut:
        return min((cut for name in names for cut in cuts(name)), key=clocks)

    return _worth_rounding(fastest, clocks, tile, tf32)


def _worth_rounding(
    fastest: Callable[[list[str]], Cut], clocks: Callable[[Cut], float], tile: str, tf32: bool
) -> Cut:
    """The fastest of the tile that is given; or of FP32's, or of TF32's if that gains something."""
    if tile:
        return fastest([tile])
    plain, names = fastest(plain_tiles()), faster_tiles() if tf32 else []
    if not names:
        return plain
    rounded = fastest(names)
    return rounded if clocks(rounded) < WORTH * clocks(plain) else plain


def plain_tiles() -> list[str]:
    """The tiles of FP32."""
    return [name for name, tile in TILES.items() if not tile.tf32]


def faster_tiles() -> list[str]:
    """The tiles of TF32 that multiply faster than any of FP32 on this card: all or none."""
    fastest = max(TILES[name].speed for name in plain_tiles())
    return [name for name, tile in TILES.items() if tile.tf32 and tile.speed > fastest]


def product_clocks(
    rows: int, columns: int, groups: int, channels: int, taps: int, tf32: bool = False
) -> float:
    """What `_gather_kernel` takes with the cut of `fastest_cut`."""
    cut = fastest_cut(rows, columns, groups, channels, taps, "", tf32)
    rounds = rounds_of(channels, taps, TILES[cut.tile].steps)
    return _clocks(cut, rows, columns, groups, rounds)


def rounds_of(channels: int, taps: int, steps: int) -> int:
    """Of so many steps in k, in a sum over taps and channels."""
    return taps * -(-channels // steps)


# ---- a thread's multiply-adds ----------------------------------------------------------------


class Way(NamedTuple):
    """What the kernels leave to the tile: functions that become part of them, and numbers.

    * ``place_a(row, k)`` and ``place_b(column, k)``: where a number lies in shared memory.
    * ``beside_b(place, n)``: of a thread's share of one column, the n-th, from the place of the
      first; ``together(place, other)``: of row a + b, from those of a and b.
    * ``rounded(number)``: how it is written there.
    * ``first_row(thread)`` and ``first_column(thread)``: of the thread's own sums. They come in
      pieces of neighbours, and the pieces are so far apart.
    * ``multiply(tile_a, tile_b, read_a, read_b, thread, sums)``: a round, from two buffers.
    """

    place_a: Any
    place_b: Any
    beside_b: Any
    together: Any
    rounded: Any
    first_row: Any
    first_column: Any
    multiply: Any
    piece_rows: int
    piece_columns: int
    apart_rows: int
    apart_columns: int


@cuda.jit(device=True)
def _sum(place: Any, other: Any) -> Any:
    return place + other


@cuda.jit(device=True)
def _as_it_is(number: Any) -> Any:
    return number


def _engine(tile: Tile) -> Callable[[Callable[..., Any]], Any]:
    """`cuda.jit` with what both engines declare of a tile: what they may take, and must hold."""
    return cuda.jit(
        launch_bounds=(tile.threads, tile.blocks),
        registers=tile.registers,
        dtypes=(np.float32,),
        wide_loads=tile.vector == 4,
        instruction=tile.instruction,
        capability=tile.capability,
    )


def _way(tile: Tile, margin: int = 0) -> Way:
    """Rows of FP32's buffers lie ``margin`` numbers further apart than they are long."""
    return _tensor_way(tile) if tile.tf32 else _plain_way(tile, margin)


def _tensor_way(tile: Tile) -> Way:
    shared = gpu_tf32.warps(tile.columns, tile.threads, tile.thread_rows, tile.thread_columns)
    places = gpu_tf32.place_left, gpu_tf32.place_right, gpu_tf32.beside_right, gpu_tf32.together
    return Way(*places, gpu_tf32.rounded, *shared, 1, 2, 8, 8)


def _plain_way(tile: Tile, margin: int) -> Way:
    PITCH_A, PITCH_B = np.uint32(tile.rows + margin), np.uint32(tile.columns + margin)
    VECTOR = np.uint32(tile.vector)
    ACROSS = np.uint32(tile.columns // tile.thread_columns)  # threads beside each other
    SIXTEEN, EIGHT = tile.steps == 16, np.uint32(8)
    multiply_add = _multiplier(tile)

    @cuda.jit(device=True)
    def place_a(row: Any, k: Any) -> Any:
        return k * PITCH_A + row

    @cuda.jit(device=True)
    def place_b(column: Any, k: Any) -> Any:
        return k * PITCH_B + column

    @cuda.jit(device=True)
    def beside_b(to: Any, n: Any) -> Any:
        return to + n * PITCH_B

    @cuda.jit(device=True)
    def first_row(thread: Any) -> Any:
        return np.uint32(thread // ACROSS * VECTOR)

    @cuda.jit(device=True)
    def first_column(thread: Any) -> Any:
        return np.uint32(thread % ACROSS * VECTOR)

    @cuda.jit(device=True)
    def eight_steps(tile_a: Any, tile_b: Any, a: Any, b: Any, sums: Any) -> None:
        multiply_add(tile_a, tile_b, a, b, sums)
        multiply_add(tile_a, tile_b, a + PITCH_A, b + PITCH_B, sums)
        multiply_add(tile_a, tile_b, a + 2 * PITCH_A, b + 2 * PITCH_B, sums)
        multiply_add(tile_a, tile_b, a + 3 * PITCH_A, b + 3 * PITCH_B, sums)
        multiply_add(tile_a, tile_b, a + 4 * PITCH_A, b + 4 * PITCH_B, sums)
        multiply_add(tile_a, tile_b, a + 5 * PITCH_A, b + 5 * PITCH_B, sums)
        multiply_add(tile_a, tile_b, a + 6 * PITCH_A, b + 6 * PITCH_B, sums)
        multiply_add(tile_a, tile_b, a + 7 * PITCH_A, b + 7 * PITCH_B, sums)

    @cuda.jit(device=True)
    def multiply(
        tile_a: Any, tile_b: Any, read_a: Any, read_b: Any, thread: Any, sums: Any
    ) -> None:
        a = np.uint32(read_a + thread // ACROSS * VECTOR)
        b = np.uint32(read_b + thread % ACROSS * VECTOR)
        eight_steps(tile_a, tile_b, a, b, sums)
        if SIXTEEN:
            eight_steps(tile_a, tile_b, a + EIGHT * PITCH_A, b + EIGHT * PITCH_B, sums)

    return Way(
        *(place_a, place_b, beside_b, _sum, _as_it_is, first_row, first_column, multiply),
        piece_rows=tile.vector,
        piece_columns=tile.vector,
        apart_rows=tile.rows * tile.vector // tile.thread_rows,
        apart_columns=tile.columns * tile.vector // tile.thread_columns,
    )


def _multiplier(tile: Tile) -> Any:
    """The innermost part: one step in k, for one thread.

    A function of its own because the compiler unrolls its loops, 64 multiply-adds, but not those of
    eight steps at once. Only when all are unrolled do ``a``, ``b`` and ``sums`` become registers.
    """
    rows, columns, vector = tile.thread_rows, tile.thread_columns, tile.vector
    apart_a = tile.rows * vector // rows  # from one piece of a thread's rows to the next
    apart_b = tile.columns * vector // columns

    @cuda.jit(device=True)
    def multiply_add(tile_a: Any, tile_b: Any, at_a: Any, at_b: Any, sums: Any) -> None:
        a = cuda.local.array(rows, np.float32)
        b = cuda.local.array(columns, np.float32)
        for i in range(rows):
            a[i] = tile_a[at_a + np.uint32(i // vector * apart_a + i % vector)]
        for j in range(columns):
            b[j] = tile_b[at_b + np.uint32(j // vector * apart_b + j % vector)]
        for i in range(rows):
            for j in range(columns):
                sums[i * columns + j] += a[i] * b[j]

    return multiply_add


# ---- forward, and the gradient by the input --------------------------------------------------

# What a kernel has to know of a layer comes as a table of whole numbers, one argument in place of
# twenty. These are their places; after them follows how far each tap reads, row and column.
PIXELS, CHANNELS, FILTERS, GROUPS, HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH = range(8)
STEP_Y, STEP_Z, ORIGIN_Y, ORIGIN_Z, DIVISOR_Y, DIVISOR_Z = range(8, 14)
PADDED, ROUNDS, ROUNDS_EACH, BIASED, RELU = range(14, 19)  # of `_gather_kernel`
TAPS, EACH = range(14, 16)  # of `_outer_kernel`
FIRST_TAP = np.uint32(19)
NOWHERE = np.uint32(0xFFFFFFFF)  # a place beyond the end of every plane
FAR_ABOVE = np.int32(-0x40000000)  # a row from which no tap reaches the image


# A network asks for the same layers in every step. So what follows from shapes alone is worked out
# once, as a plan, and a step finds it again: a launch takes Python no longer than that.


class _Plan(NamedTuple):
    """A product as it is launched, or a sum over pixels."""

    shape: tuple[int, ...]  # of the result
    tile: str
    grid: tuple[int, int]  # blocks, threads a block; without blocks there is nothing to do
    layer: tuple[int, ...] = ()  # the numbers of its table
    parts: int = 1
    finish: tuple[int, ...] = ()  # numbers for the kernel that adds the parts
    tf32: bool = False
    plain: bool = False  # of sums over pixels


def _layer(
    pixels: int,
    channels: int,
    filters: int,
    groups: int,
    size: tuple[int, ...],
    gather: Gather,
    *others: int,
) -> tuple[int, ...]:
    """Numbers of a table; ``others`` are those that one kernel needs and the other does not."""
    places = *size, *gather.output, *gather.step, *gather.origin, *gather.divisor
    rest = (0,) * (5 - len(others))
    return pixels, channels, filters, groups, *places, *others, *rest, *gather.taps()


def _gather_kernel(name: str, tile: Tile) -> CudaKernel:
    ROWS, COLUMNS = np.uint32(tile.rows), np.uint32(tile.columns)
    THREADS, THREAD_ROWS, THREAD_COLUMNS = tile.threads, tile.thread_rows, tile.thread_columns
    SUMS, STEPS = THREAD_ROWS * THREAD_COLUMNS, tile.steps
    SIZE_A, SIZE_B = np.uint32(STEPS) * ROWS, np.uint32(STEPS) * COLUMNS  # of a buffer
    SQUARE = tile.rows == tile.columns
    BOTH_A, BOTH_B = int(2 * SIZE_A), int(2 * SIZE_B)
    TILE_ROWS, TILE_COLUMNS = tile.rows, tile.columns
    SHARE_A, SHARE_B = int(SIZE_A) // THREADS, int(SIZE_B) // THREADS  # that a thread fetches
    IN_ORDER = tile.tf32  # whether weights lie in memory as they are to lie in shared memory
    FIRST_A, FURTHER_A = (1, THREADS) if IN_ORDER else (SHARE_A, 1)
    way = _way(tile)
    place_b, beside_b, rounded, multiply = way.place_b, way.beside_b, way.rounded, way.multiply
    first_row, first_column = way.first_row, way.first_column
    PIECE_ROWS, APART_ROWS = way.piece_rows, way.apart_rows
    PIECE_COLUMNS, APART_COLUMNS = way.piece_columns, way.apart_columns

    @cuda.jit(device=True)
    def locate(tap: Any, y0: Any, z0: Any, layer: Any) -> Any:
        """Where a pixel's tap lies in its plane, or a number beyond every plane."""
        y = np.int32(y0 + layer[FIRST_TAP + np.uint32(2) * tap])
        z = np.int32(z0 + layer[FIRST_TAP + np.uint32(2) * tap + np.uint32(1)])
        if y < 0 or z < 0:
            return NOWHERE
        over_y, over_z = np.uint32(layer[DIVISOR_Y]), np.uint32(layer[DIVISOR_Z])
        row, column = np.uint32(np.uint32(y) // over_y), np.uint32(np.uint32(z) // over_z)
        if np.uint32(row * over_y) != np.uint32(y) or np.uint32(column * over_z) != np.uint32(z):
            return NOWHERE
        if row >= np.uint32(layer[HEIGHT]) or column >= np.uint32(layer[WIDTH]):
            return NOWHERE
        return np.uint32(row * np.uint32(layer[WIDTH]) + column)

    @_engine(tile)
    def gathered(
        images: Float32Array,
        weights: Float32Array,
        bias: Float32Array,
        out: Float32Array,
        layer: Int32Array,
    ) -> None:
        pixels, channels, filters = (
            np.uint32(layer[PIXELS]),
            np.uint32(layer[CHANNELS]),
            np.uint32(layer[FILTERS]),
        )
        padded, rounds = np.uint32(layer[PADDED]), np.uint32(layer[ROUNDS])
        each, groups = np.uint32(layer[ROUNDS_EACH]), np.uint32(layer[GROUPS])
        plane = np.uint32(layer[HEIGHT] * layer[WIDTH])
        out_w, out_plane = (
            np.uint32(layer[OUT_WIDTH]),
            np.uint32(layer[OUT_HEIGHT] * layer[OUT_WIDTH]),
        )
        thread = np.uint32(cuda.threadIdx.x)
        # Blocks of one group beside each other; those of the same pixels next, for the cache.
        block, down = np.uint32(cuda.blockIdx.x), padded // ROWS
        f0 = np.uint32(block % down * ROWS)
        block = np.uint32(block // down)
        across = (pixels + COLUMNS - np.uint32(1)) // COLUMNS
        p0 = np.uint32(block % across * COLUMNS)
        block = np.uint32(block // across)
        group, part = np.uint32(block % groups), np.uint32(block // groups)
        start = np.uint32(part * each)  # this part's rounds of the sum
        steps = np.uint32(min(each, np.uint32(rounds - start)))

        tile_a = cuda.shared.array(BOTH_A, np.float32, alignment=16)
        tile_b = cuda.shared.array(BOTH_B, np.float32, alignment=16)
        next_a = cuda.local.array(SHARE_A, np.float32)
        next_b = cuda.local.array(SHARE_B, np.float32)
        sums = cuda.local.array(SUMS, np.float32)
        for n in range(SUMS):
            sums[n] = np.float32(0)

        # For the end: where each row's map begins, what is added to it, and where each column lies
        # in a map. They wait in shared memory, for registers are short. A column is pixel number
        # p = image * out_plane + rest of all images. It lies at image * all_filters * out_plane +
        # rest: that is p, and (all_filters - 1) maps for each image before. A part's sums lie
        # behind those of the parts before it.
        maps = cuda.shared.array(TILE_ROWS, np.uint32)
        biases = cuda.shared.array(TILE_ROWS, np.float32)
        places = cuda.shared.array(TILE_COLUMNS, np.uint32, alignment=16)
        all_filters = np.uint32(groups * filters)
        for n in range(thread, ROWS, THREADS):
            row = np.uint32(f0 + np.uint32(n))
            maps[n], biases[n] = NOWHERE, np.float32(0)
            if row < filters:
                row = np.uint32(group * filters + row)
                maps[n] = np.uint32(row * out_plane)
                if layer[BIASED] != 0:
                    biases[n] = bias[row]
        for n in range(thread, COLUMNS, THREADS):
            p = np.uint32(p0 + np.uint32(n))
            others = np.uint32(p // out_plane * (all_filters - np.uint32(1)) * out_plane)
            beyond = np.uint32(part * pixels * all_filters)
            places[n] = np.uint32(beyond + others + p) if p < pixels else NOWHERE

        # This thread's share of the weights: neighbouring filters in one step of k ...
        to_a = np.uint32(thread * np.uint32(FIRST_A))
        k_a, m_a = to_a // ROWS, to_a % ROWS
        at_a = np.uint32((group * rounds + start) * np.uint32(STEPS))
        if IN_ORDER:  # (or every so many numbers of the whole tile)
            at_a = np.uint32(at_a * padded + f0 * np.uint32(STEPS) + to_a)
        else:
            at_a = np.uint32((at_a + k_a) * padded + f0 + m_a)
        # ... and of the columns: one pixel, in neighbouring steps of k.
        k_b = np.uint32(thread // COLUMNS * np.uint32(SHARE_B))
        p_b = np.uint32(thread % COLUMNS)
        to_b = place_b(p_b, k_b)
        p = np.uint32(p0 + p_b)
        image = np.uint32(p // out_plane)
        rest = np.uint32(p % out_plane)
        y0 = np.int32(np.int32(rest // out_w) * layer[STEP_Y] + layer[ORIGIN_Y])
        z0 = np.int32(np.int32(rest % out_w) * layer[STEP_Z] + layer[ORIGIN_Z])
        if p >= pixels:
            y0 = FAR_ABOVE  # no tap is in the image
        first = np.uint32(((image * groups + group) * channels + k_b) * plane)
        in_a_tap = np.uint32((channels + np.uint32(STEPS - 1)) // np.uint32(STEPS))  # rounds
        tap = np.uint32(start // in_a_tap)
        c0 = np.uint32(start % in_a_tap * np.uint32(STEPS))  # the first of a round's channels
        place = locate(tap, y0, z0, layer)
        at_b = np.uint32(first + c0 * plane + place)

        read_a, read_b = np.uint32(0), np.uint32(0)
        step = np.uint32(0)
        while step <= steps:
            # Fetch what the next round multiplies ...
            if step < steps:
                for n in range(SHARE_A):
                    next_a[n] = weights[at_a + np.uint32(n * FURTHER_A)]
                at_a = np.uint32(at_a + np.uint32(STEPS) * padded)
                left = np.uint32(channels - c0)  # of the tap
                if place < plane and left >= np.uint32(STEPS):  # as most are: nothing to ask
                    for n in range(SHARE_B):
                        next_b[n] = images[np.uint32(at_b + np.uint32(n) * plane)]
                else:
                    for n in range(SHARE_B):
                        value = np.float32(0)
                        if place < plane and np.uint32(k_b + np.uint32(n)) < left:
                            value = images[np.uint32(at_b + np.uint32(n) * plane)]
                        next_b[n] = value
                c0 = np.uint32(c0 + np.uint32(STEPS))
                at_b = np.uint32(at_b + np.uint32(STEPS) * plane)
                if c0 >= channels:
                    tap, c0 = np.uint32(tap + np.uint32(1)), np.uint32(0)
                    if np.uint32(step + np.uint32(1)) < steps:
                        place = locate(tap, y0, z0, layer)
                    at_b = np.uint32(first + place)
            # ... multiply this round's, of which there are none at first ...
            if step > 0:
                multiply(tile_a, tile_b, read_a, read_b, thread, sums)
                read_a, read_b = np.uint32(read_a ^ SIZE_A), np.uint32(read_b ^ SIZE_B)
                if SQUARE:  # a register less
                    read_b = read_a
            # ... and put what was fetched where the next round reads.
            for n in range(SHARE_A):
                tile_a[read_a + to_a + np.uint32(n * FURTHER_A)] = next_a[n]
            for n in range(SHARE_B):
                tile_b[read_b + beside_b(to_b, np.uint32(n))] = rounded(next_b[n])
            cuda.syncthreads()
            step = np.uint32(step + np.uint32(1))

        relu = layer[RELU] != 0
        for i in range(THREAD_ROWS):
            row = np.uint32(
                first_row(thread) + np.uint32(i // PIECE_ROWS * APART_ROWS + i % PIECE_ROWS)
            )
            if maps[row] != NOWHERE:
                for j in range(THREAD_COLUMNS):
                    beside = np.uint32(j // PIECE_COLUMNS * APART_COLUMNS + j % PIECE_COLUMNS)
                    place = places[first_column(thread) + beside]
                    total = np.float32(sums[i * THREAD_COLUMNS + j] + biases[row])
                    if relu and total < 0:  # nan < 0 is false: nan passes
                        total = np.float32(0)
                    if place != NOWHERE:
                        out[np.uint32(maps[row] + place)] = total

    made: CudaKernel = gathered
    made.name = f"gpu_gemm.gathered {name}"
    return made


_GATHERED = {name: _gather_kernel(name, tile) for name, tile in TILES.items()}


def gathered_product(
    images: CudaArray,
    weights: CudaArray,
    bias: CudaArray | None,
    gather: Gather,
    groups: int = 1,
    relu: bool = False,
    adjoint: bool = False,
    tile: str = "",
    parts: int = 0,
    tf32: bool = False,
) -> CudaArray:
    """(N, G*C, H, W) -> (N, G*F, OH, OW): weights times what is gathered from the images.

    The weights are those of the convolution, (G*F, C, KH, KW), and for its ``adjoint``
    (G*C, F, KH, KW). The tile, and into how many parts the sum is cut, are chosen by size, unless
    they are given; with ``tf32`` among the tiles of tensor cores as well.
    """
    plan = _packing(images.shape, weights.shape, gather, groups, adjoint, tile, parts, tf32)
    if plan.in_order:
        packed = weights.reshape(plan.shape)
    else:
        if plan.tf32:
            gpu_tf32.check_card()
        packed = device.empty(plan.shape, weights.dtype)
        _PACK[plan.tf32][plan.grid](weights, packed, *plan.numbers)
    return product(images, packed, bias, gather, plan.filters, groups, relu, plan.cut)


def product(
    images: CudaArray,
    packed: CudaArray,
    bias: CudaArray | None,
    gather: Gather,
    filters: int,
    groups: int,
    relu: bool,
    cut: Cut,
) -> CudaArray:
    """The same with weights that are packed already, (G, taps*C', F'), for the tile of the cut."""
    finish = int(bias is not None), int(relu)
    plan = _product(images.shape, packed.shape, gather, filters, groups, finish, cut)
    out = device.empty(plan.shape, images.dtype)
    if not plan.grid[0]:
        return out
    sums = out if plan.parts == 1 else device.empty((plan.parts, out.size), out.dtype)
    layer = device.constants(*plan.layer)
    other = packed if bias is None else bias  # read only if the layer says that there is one
    _GATHERED[plan.tile][plan.grid](images, packed, other, sums, layer)
    if plan.parts > 1:
        _finish_parts[_adding(out.size, plan.parts)](sums, other, out, *plan.finish)
    return out


@lru_cache(4096)
def _product(
    images: tuple[int, ...],
    packed: tuple[int, ...],
    gather: Gather,
    filters: int,
    groups: int,
    finish: tuple[int, int],
    cut: Cut,
) -> _Plan:
    """`product` of arrays of these shapes; ``finish``: with a bias, cut at zero."""
    count, channels, *size = images
    channels //= groups
    shape = count, groups * filters, *gather.output
    tile, plane = TILES[cut.tile], math.prod(gather.output)
    if not math.prod(shape):
        return _Plan(shape, cut.tile, (0, tile.threads))
    pixels = count * plane
    padded, rounds = packed[2], packed[1] // tile.steps
    each = -(-rounds // cut.parts)
    parts = -(-rounds // each)  # those that have any
    others = padded, rounds, each, *(finish if parts == 1 else (0, 0))
    layer = _layer(pixels, channels, filters, groups, tuple(size), gather, *others)
    grid = parts * groups * (padded // tile.rows) * -(-pixels // tile.columns), tile.threads
    numbers = parts, plane, groups * filters, *finish
    return _Plan(shape, cut.tile, grid, layer, parts, numbers, tile.tf32)


ADDERS = 8 if SIMULATED else 256  # threads of a block that adds parts
FEWEST = 1 if SIMULATED else 4  # parts that a thread adds, before it shares them with another


@lru_cache(4096)
def _adding(count: int, parts: int) -> tuple[int, tuple[int, int]]:
    """Blocks, and threads side by side and below each other, that add the parts of each number.

    Neighbours along a row have neighbouring numbers. Where parts are many, a number's are shared by
    the threads of a column: a small result would keep few processors busy otherwise, each waiting
    for its memory a thousand times.
    """
    down = 1
    while down < ADDERS // 2 and down < 16 and parts >= 2 * FEWEST * down:
        down *= 2
    across = ADDERS // down
    return -(-count // across), (across, down)


@cuda.jit(device=True)
def _sum_of_parts(sums: Any, count: Any, parts: Any) -> Any:
    """A number, and the sum of its parts if this thread is the first of its column (else a piece).

    Who adds which parts, and the order, depend on the sizes alone: the same bits each time.
    """
    found = cuda.shared.array(ADDERS, np.float32)
    x, y = np.uint32(cuda.threadIdx.x), np.uint32(cuda.threadIdx.y)
    across, down = np.uint32(cuda.blockDim.x), np.uint32(cuda.blockDim.y)
    n = np.uint32(np.uint32(cuda.blockIdx.x) * across + x)
    total, part = np.float32(0), y
    while n < count and part < parts:
        total += sums[np.uint32(part * count + n)]
        part = np.uint32(part + down)
    found[np.uint32(y * across + x)] = total
    cuda.syncthreads()
    below = np.uint32(1)
    while y == 0 and below < down:
        total += found[np.uint32(below * across + x)]
        below = np.uint32(below + np.uint32(1))
    return n, total


@cuda.jit(dtypes=(np.float32,), launch_bounds=ADDERS)
def _finish_parts(
    sums: Float32Array,
    bias: Float32Array,
    out: Float32Array,
    parts: np.uint32,
    plane: np.uint32,
    filters: np.uint32,
    biased: bool,
    relu: bool,
) -> None:
    """Add the parts, and do what a block does at its end that has whole sums."""
    n, total = _sum_of_parts(sums, out.size, parts)
    if n < out.size and cuda.threadIdx.y == 0:
        if biased:
            total += bias[n // plane % filters]
        if relu and total < 0:
            total = np.float32(0)
        out[n] = total


SIDE, HIGH = (4, 2) if SIMULATED else (32, 8)  # of `_pack`'s squares, and of its blocks' threads
SQUARE = SIDE * (SIDE + 1)


class _Packing(NamedTuple):
    """Weights in the order in which the blocks read them, with zeros to fill the last tiles.

    (G, taps*C', F'): C' channels in full steps, F' filters in full tiles. For TF32 they are
    rounded, and each round's of a tile lie in the order of shared memory.
    """

    cut: Cut
    filters: int  # of a group
    shape: tuple[int, ...]
    grid: tuple[int, Pair]
    numbers: tuple[int, ...]  # for the kernel that packs
    tf32: bool
    in_order: bool  # whether they lie so already


@lru_cache(4096)
def _packing(
    images: tuple[int, ...],
    weights: tuple[int, ...],
    gather: Gather,
    groups: int,
    adjoint: bool,
    tile: str,
    parts: int,
    tf32: bool,
) -> _Packing:
    """How `gathered_product` cuts its work, and how weights are packed for that."""
    channels, taps = images[1] // groups, weights[2] * weights[3]
    filters = weights[1] if adjoint else weights[0] // groups
    pixels = images[0] * math.prod(gather.output)
    cut = fastest_cut(filters, pixels, groups, channels, taps, tile, tf32)
    cut = cut._replace(parts=parts or cut.parts)
    of = TILES[cut.tile]
    deep, wide = of.padded(channels, filters)
    # From one filter's weights to the next one's, and from one channel's to the next one's.
    steps = (taps, filters * taps) if adjoint else (channels * taps, taps)
    squares = -(-wide // SIDE) * -(-taps * deep // SIDE)
    numbers = squares, filters, channels, taps, deep, wide, *steps
    # All along one axis of the grid: the second one ends at 65,535, and matrices may be more.
    grid = squares * groups, (SIDE, HIGH)
    in_order = adjoint and taps == 1 and (deep, wide) == (channels, filters) and not of.tf32
    shape = groups, taps * deep, wide
    return _Packing(cut, filters, shape, grid, numbers, of.tf32, in_order)


@cuda.jit(device=True)
def _in_rows(k: Any, f: Any, wide: Any) -> Any:
    """A row of filters for each step in k."""
    return np.uint32(k * wide + f)


@cuda.jit(device=True)
def _in_tiles(k: Any, f: Any, wide: Any) -> Any:
    """For each sixteen steps, tile by tile what lies in shared memory."""
    in_round = np.uint32(k % TENSOR_STEPS)
    return np.uint32((k - in_round) * wide + place_left(f, in_round))


def _packing_kernel(name: str, address: Any, rounded: Any, capability: Any) -> CudaKernel:
    @cuda.jit(dtypes=(np.float32,), capability=capability)
    def pack(
        weights: Float32Array,
        packed: Float32Array,
        squares: np.uint32,
        filters: np.uint32,
        channels: np.uint32,
        taps: np.uint32,
        deep: np.uint32,
        wide: np.uint32,
        filter_step: np.uint32,
        channel_step: np.uint32,
    ) -> None:
        """Turn the weights over, a square of 32 filters and 32 taps of channels at a time.

        In memory a filter's taps are neighbours, and packed, the filters. Neighbouring threads read
        neighbouring numbers all the same, and in FP32 they write them, too: the square lies in
        shared memory in between. Its rows are one number longer than they need to be, so that a
        column is spread over all banks. For TF32 the writes are scattered (`place_left`): filters f
        and f + 8 are neighbours, and f + 1 lies 16 numbers after f.
        """
        square = cuda.shared.array(SQUARE, np.float32)
        x, y = np.uint32(cuda.threadIdx.x), np.uint32(cuda.threadIdx.y)
        block = np.uint32(cuda.blockIdx.x)
        block, group = np.uint32(block % squares), np.uint32(block // squares)
        down = (wide + np.uint32(SIDE - 1)) // np.uint32(SIDE)
        f0, k0 = (
            np.uint32(block % down * np.uint32(SIDE)),
            np.uint32(block // down * np.uint32(SIDE)),
        )
        first = np.uint32(group * filters * channels * taps)
        k = np.uint32(k0 + x)  # numbered as in memory: channel by channel, tap by tap
        c, tap = np.uint32(k // taps), np.uint32(k % taps)
        for row in range(y, SIDE, HIGH):
            f = np.uint32(f0 + np.uint32(row))
            value = np.float32(0)
            if f < filters and c < channels:
                value = weights[first + f * filter_step + c * channel_step + tap]
            square[np.uint32(row) * np.uint32(SIDE + 1) + x] = value
        cuda.syncthreads()
        f = np.uint32(f0 + x)
        for row in range(y, SIDE, HIGH):
            k = np.uint32(k0 + np.uint32(row))
            c, tap = np.uint32(k // taps), np.uint32(k % taps)
            if f < wide and c < deep:
                k = np.uint32((group * taps + tap) * deep + c)
                value = square[x * np.uint32(SIDE + 1) + np.uint32(row)]
                packed[address(k, f, wide)] = rounded(value)

    made: CudaKernel = pack
    made.name = f"gpu_gemm.{name}"
    return made


_PACK = {
    False: _packing_kernel("pack", _in_rows, _as_it_is, OLDEST),
    True: _packing_kernel("pack tf32", _in_tiles, gpu_tf32.rounded, gpu_tf32.CAPABILITY),
}


def matmul(a: CudaArray, b: CudaArray) -> CudaArray:
    """(..., M, K), (..., K, N) -> (..., M, N), the batches alike: 1x1 convolutions of one row.

    Each matrix of the batch is a group: M filters, K channels, N pixels.
    """
    (rows, inner), columns = a.shape[-2:], b.shape[-1]
    batch = math.prod(a.shape[:-2])
    gather = Gather((1, 1), (1, columns), (1, 1), (0, 0), (1, 1))
    images = b.reshape(1, batch * inner, 1, columns)
    out = gathered_product(images, a.reshape(batch * rows, inner, 1, 1), None, gather, batch)
    return out.reshape(*a.shape[:-1], columns)


# ---- the gradient of the weights -------------------------------------------------------------


def _fetcher(share: int, apart: int) -> Any:
    """What fetches a thread's share of one pixel: every so many rows of a matrix (rows, pixels)."""

    @cuda.jit(device=True)
    def fetch(matrix: Any, first: Any, row: Any, left: Any, numbers: Any) -> None:
        """From place ``first``; a row has ``row`` numbers, and ``left`` rows are left."""
        if left > np.int32((share - 1) * apart):  # as most are: nothing to ask
            for n in range(share):
                numbers[n] = matrix[np.uint32(first + np.uint32(n * apart) * row)]
        else:
            for n in range(share):
                value = np.float32(0)
                if np.int32(n * apart) < left:
                    value = matrix[np.uint32(first + np.uint32(n * apart) * row)]
                numbers[n] = value

    return fetch


def _outer_kernel(name: str, tile: Tile, plain: bool = False) -> CudaKernel:
    """The product for a tile, or for the ``plain`` case: the images' pixels are the columns.

    So it is for windows of one pixel, and in Winograd's formula. Most of what a thread does beside
    multiplying is to find pixels; here it reads on to its right.
    """
    PLAIN = plain
    ROWS, COLUMNS = np.uint32(tile.rows), np.uint32(tile.columns)
    THREADS, THREAD_ROWS, THREAD_COLUMNS = tile.threads, tile.thread_rows, tile.thread_columns
    SUMS, STEPS = THREAD_ROWS * THREAD_COLUMNS, tile.steps
    # Rows of a buffer lie 4 numbers further apart than they are long: eight threads write to the
    # same column of eight rows, which then are in different banks of shared memory. (Of sixteen
    # threads and steps two share a bank and take turns; a row has to begin at a multiple of 4, so
    # there is no better distance. TF32 has no need of it.)
    margin = 0 if tile.tf32 else 4
    way = _way(tile, margin)
    SIZE_A, SIZE_B = np.uint32(STEPS * (ROWS + margin)), np.uint32(STEPS * (COLUMNS + margin))
    SQUARE = tile.rows == tile.columns
    BOTH_A, BOTH_B, PLACES = int(2 * SIZE_A), int(2 * SIZE_B), 4 * tile.columns
    SHARE_A, SHARE_B = STEPS * tile.rows // THREADS, STEPS * tile.columns // THREADS
    APART = THREADS // STEPS  # rows, and columns, from one that a thread fetches to the next
    fetch_a, fetch_b = _fetcher(SHARE_A, APART), _fetcher(SHARE_B, APART)
    place_a, place_b = way.place_a, way.place_b
    together = way.together if APART < gpu_tf32.ADD_UP else _sum
    rounded, multiply = way.rounded, way.multiply
    first_row, first_column = way.first_row, way.first_column
    PIECE_ROWS, APART_ROWS = way.piece_rows, way.apart_rows
    PIECE_COLUMNS, APART_COLUMNS = way.piece_columns, way.apart_columns

    @_engine(tile)
    def outer(
        images: Float32Array, grads: Float32Array, parts: Float32Array, layer: Int32Array
    ) -> None:
        pixels, channels, filters = (
            np.uint32(layer[PIXELS]),
            np.uint32(layer[CHANNELS]),
            np.uint32(layer[FILTERS]),
        )
        taps, each, groups = (
            np.uint32(layer[TAPS]),
            np.uint32(layer[EACH]),
            np.uint32(layer[GROUPS]),
        )
        height, width = layer[HEIGHT], layer[WIDTH]
        plane = np.uint32(height * width)
        out_w, out_plane = (
            np.uint32(layer[OUT_WIDTH]),
            np.uint32(layer[OUT_HEIGHT] * layer[OUT_WIDTH]),
        )
        columns = np.uint32(channels * taps)
        thread, block = np.uint32(cuda.threadIdx.x), np.uint32(cuda.blockIdx.x)
        down = (filters + ROWS - np.uint32(1)) // ROWS
        across = (columns + COLUMNS - np.uint32(1)) // COLUMNS
        f0 = np.uint32(block % down * ROWS)
        block = np.uint32(block // down)
        column0 = np.uint32(block % across * COLUMNS)
        block = np.uint32(block // across)
        group, part = np.uint32(block % groups), np.uint32(block // groups)

        tile_a = cuda.shared.array(BOTH_A, np.float32, alignment=16)
        tile_b = cuda.shared.array(BOTH_B, np.float32, alignment=16)
        places = cuda.shared.array(PLACES, np.int32, alignment=16)
        next_a = cuda.local.array(SHARE_A, np.float32)
        next_b = cuda.local.array(SHARE_B, np.float32)
        sums = cuda.local.array(SUMS, np.float32)
        for n in range(SUMS):
            sums[n] = np.float32(0)

        # Each column is a channel and a tap. How far it reads from an output's first pixel: rows,
        # columns, and both with the channel in numbers. (In the plain case nobody asks, and the
        # compiler leaves the table out.)
        for n in range(thread, COLUMNS, THREADS):
            column = np.uint32(column0 + np.uint32(n))
            tap, at = np.uint32(column % taps), np.uint32(np.uint32(n) * np.uint32(4))
            down_by = layer[FIRST_TAP + np.uint32(2) * tap]
            right_by = layer[FIRST_TAP + np.uint32(2) * tap + np.uint32(1)]
            if column >= columns:
                down_by = FAR_ABOVE  # never in the image
            places[at] = down_by
            places[at + np.uint32(1)] = right_by
            offset = np.int32(column // taps) * height * width + down_by * width + right_by
            places[at + np.uint32(2)] = np.int32(offset)
            places[at + np.uint32(3)] = np.int32(0)
        cuda.syncthreads()

        # A thread fetches from one pixel of a round: from some rows of gradients and some columns.
        k, line = np.uint32(thread % np.uint32(STEPS)), np.uint32(thread // np.uint32(STEPS))
        filters_left = np.int32(np.int32(filters) - np.int32(f0 + line))
        columns_left = np.int32(np.int32(columns) - np.int32(column0 + line))
        p0 = np.uint32(part * each)  # the first of a round's pixels
        last = min(pixels, np.uint32((part + np.uint32(1)) * each))
        j, y0, z0 = out_w, np.int32(0), np.int32(0)
        at_a, at_b = np.uint32(0), np.int32(0)
        to_a, to_b = place_a(line, k), place_b(line, k)
        read_a, read_b = np.uint32(0), np.uint32(0)
        begun = False
        while True:
            # Fetch what the next round multiplies ...
            more = p0 < last
            if more:
                p = np.uint32(p0 + k)
                if j >= out_w:  # the first pixel, or one beyond the end of its row
                    image = np.uint32(p // out_plane)
                    rest = np.uint32(p % out_plane)
                    j = np.uint32(rest % out_w)
                    y0 = np.int32(np.int32(rest // out_w) * layer[STEP_Y] + layer[ORIGIN_Y])
                    block = np.uint32(image * np.uint32(layer[GROUPS]) + group)  # of channels
                    at_a = np.uint32((block * filters + f0 + line) * out_plane + rest)
                    if PLAIN:
                        channel = np.uint32(block * channels + column0 + line)
                        at_b = np.int32(channel * plane + rest)
                    else:
                        at_b = np.int32(
                            np.int32(block * np.uint32(layer[CHANNELS]) * plane) + y0 * width
                        )
                if PLAIN:
                    here = p < last
                    fetch_a(grads, at_a, plane, filters_left if here else np.int32(0), next_a)
                    fetch_b(images, at_b, plane, columns_left if here else np.int32(0), next_b)
                    at_b = np.int32(at_b + np.int32(STEPS))
                else:
                    z0 = np.int32(np.int32(j) * layer[STEP_Z] + layer[ORIGIN_Z])
                    for n in range(SHARE_A):
                        value = np.float32(0)
                        row = np.uint32(np.uint32(n * APART) + f0 + line)
                        if p < last and row < filters:
                            value = grads[np.uint32(at_a + np.uint32(n * APART) * out_plane)]
                        next_a[n] = value
                    for n in range(SHARE_B):
                        at = np.uint32((line + np.uint32(n * APART)) * np.uint32(4))
                        y = np.int32(y0 + places[at])
                        z = np.int32(z0 + places[at + np.uint32(1)])
                        value = np.float32(0)
                        if p < last and 0 <= y < height and 0 <= z < width:
                            at = np.uint32(np.int32(at_b + z0 + places[at + np.uint32(2)]))
                            value = images[at]
                        next_b[n] = value
                p0, j = np.uint32(p0 + np.uint32(STEPS)), np.uint32(j + np.uint32(STEPS))
                at_a = np.uint32(at_a + np.uint32(STEPS))
            # ... multiply this round's, of which there are none at first ...
            if begun:
                multiply(tile_a, tile_b, read_a, read_b, thread, sums)
                read_a, read_b = np.uint32(read_a ^ SIZE_A), np.uint32(read_b ^ SIZE_B)
                if SQUARE:  # a register less
                    read_b = read_a
                if not more:
                    break
            # ... and put what was fetched where the next round reads.
            for n in range(SHARE_A):
                to = together(to_a, place_a(np.uint32(n * APART), np.uint32(0)))
                tile_a[read_a + to] = rounded(next_a[n])
            for n in range(SHARE_B):
                to = together(to_b, place_b(np.uint32(n * APART), np.uint32(0)))
                tile_b[read_b + to] = rounded(next_b[n])
            cuda.syncthreads()
            begun = True

        from_a, from_b = f0 + first_row(thread), column0 + first_column(thread)
        for m in range(THREAD_ROWS):
            below = np.uint32(m // PIECE_ROWS * APART_ROWS + m % PIECE_ROWS)
            row = np.uint32(from_a + below)
            if row < filters:
                first = ((part * groups + group) * filters + row) * columns + from_b
                for n in range(THREAD_COLUMNS):
                    beside = np.uint32(n // PIECE_COLUMNS * APART_COLUMNS + n % PIECE_COLUMNS)
                    if from_b + beside < columns:
                        parts[first + beside] = sums[m * THREAD_COLUMNS + n]

    made: CudaKernel = outer
    made.name = f"gpu_gemm.outer {name}{' plain' if PLAIN else ''}"
    return made


_OUTER = {
    (name, plain): _outer_kernel(name, tile, plain)
    for name, tile in TILES.items()
    for plain in (False, True)
}


def gathered_outer(
    images: CudaArray,
    grads: CudaArray,
    gather: Gather,
    groups: int = 1,
    tile: str = "",
    parts: int = 0,
    tf32: bool = False,
) -> CudaArray:
    """(N, G*C, H, W), (N, G*F, OH, OW) -> (G*F, C, KH, KW): gradients times columns.

    The tile, and into how many parts the sum over the pixels is cut, are chosen by size, unless
    they are given; with ``tf32`` among the tiles of tensor cores as well.
    """
    plan = _outer(images.shape, grads.shape, gather, groups, tile, parts, tf32)
    if not plan.grid[0]:
        return device.zeros(plan.shape, images.dtype)
    if plan.tf32:
        gpu_tf32.check_card()
    result = device.empty(plan.shape, images.dtype)
    sums = result if plan.parts == 1 else device.empty((plan.parts, result.size), images.dtype)
    layer = device.constants(*plan.layer)
    _OUTER[plan.tile, plan.plain][plan.grid](images, grads, sums, layer)
    if plan.parts > 1:
        _add_parts[_adding(result.size, plan.parts)](sums, result, plan.parts)
    return result


@lru_cache(4096)
def _outer(
    images: tuple[int, ...],
    grads: tuple[int, ...],
    gather: Gather,
    groups: int,
    tile: str,
    parts: int,
    tf32: bool,
) -> _Plan:
    """`gathered_outer` of arrays of these shapes."""
    count, channels, *size = images
    channels //= groups
    filters, taps = grads[1] // groups, math.prod(gather.kernel)
    pixels = count * math.prod(gather.output)
    shape = groups * filters, channels, *gather.kernel
    name, parts = outer_cut(filters, channels * taps, groups, pixels, tile, parts, tf32)
    cut = TILES[name]
    if not pixels:
        return _Plan(shape, name, (0, cut.threads))
    down, across = -(-filters // cut.rows), -(-channels * taps // cut.columns)
    each = -(-pixels // parts // cut.steps) * cut.steps  # pixels of a part
    parts = -(-pixels // each)  # those that have any
    shown = size[0], size[1]
    plain = gather == Gather((1, 1), shown, (1, 1), (0, 0), gather.spacing)
    if plain:  # a product of two matrices: the pixels of an image in one row
        shown = 1, math.prod(shown)
        gather = gather._replace(output=shown)
    layer = _layer(pixels, channels, filters, groups, shown, gather, taps, each)
    grid = parts * groups * down * across, cut.threads
    return _Plan(shape, name, grid, layer, parts, tf32=cut.tf32, plain=plain)


@lru_cache(4096)
def outer_cut(
    rows: int,
    columns: int,
    groups: int,
    pixels: int,
    tile: str = "",
    parts: int = 0,
    tf32: bool = False,
) -> Cut:
    """`fastest_cut` for `_outer_kernel`, whose sums run over pixels.

    A tile that is given is taken, and so are parts.
    """

    def fastest(names: list[str]) -> Cut:
        name = min(names, key=lambda name: _outer_cost(TILES[name], rows, columns))
        blocks = groups * -(-rows // TILES[name].rows) * -(-columns // TILES[name].columns)
        return Cut(name, parts or _parts(blocks, pixels, TILES[name]))

    def clocks(cut: Cut) -> float:
        return _outer_clocks(cut, rows, columns, groups, pixels)

    return _worth_rounding(fastest, clocks, tile, tf32)


def outer_clocks(rows: int, columns: int, groups: int, pixels: int, tf32: bool = False) -> float:
    """What `_outer_kernel` takes with the cut of `outer_cut`."""
    cut = outer_cut(rows, columns, groups, pixels, tf32=tf32)
    return _outer_clocks(cut, rows, columns, groups, pixels)


def _outer_clocks(cut: Cut, rows: int, columns: int, groups: int, pixels: int) -> float:
    tile = TILES[cut.tile]
    clocks = _clocks(cut, rows, columns, groups, -(-pixels // tile.steps))
    return OUTWARD * clocks if tile.tf32 else clocks


def _outer_cost(tile: Tile, rows: int, columns: int) -> float:
    """Clocks of one step: least by the tile that leaves the fewest of its numbers without use."""
    blocks = -(-rows // tile.rows) * -(-columns // tile.columns)
    return blocks * tile.rows * tile.columns / tile.speed


def _parts(blocks: int, pixels: int, tile: Tile) -> int:
    """How many parts give each multiprocessor twice as many blocks as it holds at a time.

    No part has fewer than 256 pixels: it also has to write its sums.
    """
    wanted = 2 * card().multiprocessors * tile.blocks // blocks
    return max(1, min(wanted, pixels // 256))


@cuda.jit(dtypes=(np.float32,), launch_bounds=ADDERS)
def _add_parts(sums: Float32Array, result: Float32Array, parts: np.uint32) -> None:
    n, total = _sum_of_parts(sums, result.size, parts)
    if n < result.size and cuda.threadIdx.y == 0:
        result[n] = total
