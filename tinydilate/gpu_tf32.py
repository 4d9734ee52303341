"""TF32 on tensor cores: products of rounded numbers, many times as many.

**The numbers.** A float32 has a sign, 8 bits of exponent and 23 of mantissa. TF32 keeps 10 of the
23:

    float32   s eeeeeeee mmmmmmmmmm mmmmmmmmmmmmm
    TF32      s eeeeeeee mmmmmmmmmm                 the same range, a unit of 2**-10

Each number is rounded to the nearest of these, and where two are equally near to the larger in
size, which is what ``cvt.rna`` does: add half a unit to the bits, then drop the last 13. So a
normal number, up to the largest of TF32, is off by at most 2**-11 of itself, and a product of two
by a little over 2**-10. (What is larger than the largest by half a unit becomes inf; of subnormal
numbers the units are as large as those of the smallest normal ones.) Products are exact, and added
up to about float32's precision: NVIDIA does not say how, and the last bits of a sum may be cut off
where float32 would round them, which is off by a unit in place of half a one. For a whole sum of n
products that makes

    |error|  <=  (2**-10 + 2**-22) * (sum of |weight * pixel|)  +  what is lost in adding up,
                                                                   n * 2**-23 of the same sum

where the last is what to expect of adding up like this, not what anyone guarantees. And that is all
that TF32 changes: what is stored stays float32. It is off unless asked for, by
`set_tf32` or ``TINYDILATE_TF32=on``, and float64 never uses it.

**The instruction.** A *tensor core* multiplies small matrices at once. The 32 threads of a *warp*,
here its *lanes*, ask for it together, and none of them holds a whole matrix:
``mma.sync.m16n8k8`` adds the product of a matrix of 16x8 and one of 8x8 to sums of 16x8, and each
lane brings 4, 2 and 4 numbers of these. Which, NVIDIA's manual of PTX lays down. With
g = lane // 4 and t = lane % 4:

    left (16 rows, 8 k)            right (8 k, 8 columns)        sums (16 rows, 8 columns)
    a0   row g      k t            b0   k t       column g       c0   row g      column 2t
    a1   row g + 8  k t            b1   k t + 4   column g       c1   row g      column 2t + 1
    a2   row g      k t + 4                                      c2   row g + 8  column 2t
    a3   row g + 8  k t + 4                                      c3   row g + 8  column 2t + 1

So lanes 0 to 3 hold row 0 of the left matrix, two numbers each, and lane 5 (g = 1, t = 1) gets the
sums at columns 2 and 3 of rows 1 and 9.

**A warp's share.** A block's tile of 128x128 results has eight warps, four beside each other and
two below: each computes 64x32, 4 x 4 products of 16x8, and each lane owns 8 rows x 8 columns of
sums, as a thread of the FP32 tile does: rows 8 apart, columns in pairs 8 apart. For a step of 8 in
k a warp reads (64 + 32) * 8 numbers from shared memory and does 64 * 32 * 8 multiply-adds with
them.

**Which k is which does not matter** to a sum, as long as both matrices agree. Sixteen steps in k
lie in shared memory at a time, enough for two products, and the lanes with t take the four
neighbours 4t ... 4t + 3: the first two for their "k t" and "k t + 4" of the first product, the
other two for those of the second.

**Banks.** Shared memory has 32 banks, each a number wide, and serves a load of 128 bits to eight
lanes at a time: quickly if their eight pieces of four numbers lie in eight different groups of four
banks. Stores of single numbers are quick if 32 lanes write to 32 banks.

*The right tile*: a row of 16 steps in k for each column, half the banks. Its pieces of four trade
places, or every other column would have the same place for the same piece:

    piece q of column r lies at   16 * r + 4 * (q ^ (r // 2 % 4))       (`place_right`)
    and so in group               4 * (r % 2)  +  (q ^ (r // 2 % 4))    of eight

* Loads: lanes 0-7 ask for pieces 0-3 of columns r and r + 1, r even. r // 2 is the same for both,
  so they get groups 0-3 and 4-7 in some order. So do the other lanes.
* Stores forward: a thread has one pixel and neighbouring k. Lanes 0-7 store piece q of eight
  columns in sequence: r % 2 and r // 2 % 4 take all eight values. Without the ``^`` it would be two
  groups, four lanes waiting for each other.
* Stores of the weights' gradient: 16 lanes write the 16 numbers of one column, 16 those of the
  next.

*The left tile*: the four numbers a0 ... a3 that a lane brings must stand in neighbouring registers
when the instruction begins. So they are neighbours in shared memory: one load, and nothing to move.

    for 16 rows and one product, lane after lane     (`place_left`)

* Loads: eight lanes, eight pieces one after the other.
* Stores forward: the weights are packed in this very order, so lane after lane as well.
* Stores of the weights' gradient: 16 lanes have the 16 steps in k of one row, 16 those of the next.
  Row and k // 4 give the group, k % 2 the place in it, and the product nothing: 16 banks, each
  twice. So half of that kernel's stores take two turns; what would help costs registers.

The simulator has no tensor cores, and no lane of it sees another's registers. There the lanes lay
their numbers out in shared memory and each computes its own sums from the table above, so that all
but the instruction itself is tested without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tinydilate.compiling import native
from tinydilate.device import SIMULATED, Array, card, check_device
from tinydilate.errors import ConfigError, DeviceError
from tinydilate.kernel import cuda

CAPABILITY = (8, 0)  # of the first cards that have the instruction
INSTRUCTION = "HMMA.1688.F32.TF32"  # its name in machine code
STEPS = 16  # in k, that lie in shared memory at a time
LANES = 32

# ---- the option ------------------------------------------------------------------------------

_wanted: bool | None = None


def get_tf32() -> bool:
    """Whether convolutions on the GPU may use TF32; at first what ``TINYDILATE_TF32`` says."""
    global _wanted
    if _wanted is None:
        text = os.environ.get("TINYDILATE_TF32", "off")
        if text not in ("on", "off"):
            raise ConfigError(
                f"expected TINYDILATE_TF32 to be on or off; got {text!r}. Unset it to multiply "
                "float32 as float32."
            )
        _wanted = text == "on"
    return _wanted


def set_tf32(wanted: bool) -> None:
    """Let convolutions of float32 on the GPU round their inputs to TF32 where that is worth it.

    Forwards and for both gradients. An input then has 10 bits of mantissa, and each product is off
    by at most 2**-10 of itself (and a millionth more); results, weights and gradients stay float32,
    and sums are added to about its precision. Computed as without it are layers that would gain
    less than a fifth of their time (small ones, and wide 3x3 ones, which Winograd's tiles serve as
    well), matrix products, all of float64, and everything on cards whose tensor cores are no faster
    in TF32 (8.6, for example: docs/gpu.md). PyTorch calls the same
    ``torch.backends.cudnn.allow_tf32``.

    Raises
    ------
    DeviceError
        If there is no GPU, or it is older than compute capability 8.0 (Ampere, 2020).
    """
    global _wanted
    if not isinstance(wanted, bool | np.bool_):
        raise ConfigError(f"expected True or False for TF32; got {wanted!r}. Write set_tf32(True).")
    if wanted:
        check_card()
    _wanted = bool(wanted)


def is_wanted() -> bool:
    """Whether to use it, on a card that can."""
    if not get_tf32():
        return False
    check_card()
    return True


def check_card() -> None:
    """Refuse TF32 where there is no GPU, or one without the instruction."""
    check_device("cuda")
    here = card()
    if not SIMULATED and here.capability < CAPABILITY:
        raise DeviceError(
            "expected a GPU of compute capability 8.0 or later (Ampere, 2020) for TF32; got "
            f"{here.name}, which has {'.'.join(map(str, here.capability))}. Leave TF32 off: "
            "set_tf32(False), and unset TINYDILATE_TF32."
        )


# ---- rounding --------------------------------------------------------------------------------

_UNIT = 1 << 13  # of the last bit that TF32 keeps, in those of a float32


def as_tf32(numbers: Any) -> Array:
    """float32 rounded to TF32, ties away from zero; inf and nan stay.

    On a card a nan may become inf if only its last 13 bits tell it from inf. Arithmetic makes none
    of that kind: a nan of NumPy's or of a card's has the first bit of its mantissa set.
    """
    single = np.asarray(numbers, np.float32)
    bits = single.view(np.uint32).astype(np.uint64)  # with room for a carry
    near = ((bits + _UNIT // 2) & ~np.uint64(_UNIT - 1)).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(single), near, single)


@cache
def _emit_rounded() -> Any:
    """Numba intrinsic for `rounded`."""
    from llvmlite import ir
    from numba import types
    from numba.cuda.extending import intrinsic

    @intrinsic
    def rounded(typing: Any, number: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            function = ir.FunctionType(ir.IntType(32), [ir.FloatType()])
            code = "cvt.rna.tf32.f32 $0, $1;"
            bits = builder.asm(function, code, "=r,f", arguments, side_effect=False)
            return builder.bitcast(bits, ir.FloatType())

        return types.float32(types.float32), emit

    return rounded


@native(_emit_rounded)
def rounded(number: Any) -> Any:
    """A float32 as a lane hands it to a tensor core."""
    return np.float32(as_tf32(number))


# ---- the instruction -------------------------------------------------------------------------


class Registers(NamedTuple):
    """Where a lane keeps what one instruction takes: places in its arrays left, right and sums."""

    left: tuple[int, int, int, int]
    right: tuple[int, int]
    sums: tuple[int, int, int, int]


def registers(m: int, n: int, step: int, columns: int) -> Registers:
    """Of a warp's product in row m and column n of its products, for the first or second step.

    ``left`` holds four numbers for each product of 16 rows, ``right`` four of column g for both
    steps, ``sums`` rows of ``columns`` numbers.
    """
    left, right = 4 * (2 * m + step), 4 * n + 2 * step
    sums = 2 * m * columns + 2 * n
    return Registers(
        left=(left, left + 1, left + 2, left + 3),
        right=(right, right + 1),
        sums=(sums, sums + 1, sums + columns, sums + columns + 1),
    )


def _all_registers(thread_rows: int, thread_columns: int) -> list[Registers]:
    """One entry an instruction, in the order in which they are given."""
    return [
        registers(m, n, step, thread_columns)
        for m in range(thread_rows // 2)
        for n in range(thread_columns // 2)
        for step in range(2)
    ]


def _fragments_product(threads: int, thread_rows: int, thread_columns: int) -> Callable[..., Any]:
    """All instructions of a warp for sixteen steps in k."""
    LEFT, RIGHT = 4 * thread_rows, 2 * thread_columns

    @cache
    def emit() -> Any:
        return _emit_products(_all_registers(thread_rows, thread_columns))

    @native(emit)
    def multiply_fragments(sums: Any, left: Any, right: Any) -> None:
        """What the tensor cores do, said with what all lanes hold laid out in shared memory."""
        thread = int(cuda.threadIdx.x)
        lanes_left = cuda.shared.array((threads, LEFT), np.float32)
        lanes_right = cuda.shared.array((threads, RIGHT), np.float32)
        lanes_left[thread], lanes_right[thread] = left, right
        cuda.syncthreads()
        lane0, g, t = thread // LANES * LANES, thread % LANES // 4, thread % 4
        for held in _all_registers(thread_rows, thread_columns):
            for e in range(4):  # c0 ... c3
                row, column = g + 8 * (e // 2), 2 * t + e % 2
                for k in range(8):
                    a = held.left[row // 8 + 2 * (k // 4)]  # a0 ... a3 of the lane that has it
                    b = held.right[k // 4]
                    of_row = lanes_left[lane0 + 4 * (row % 8) + k % 4, a]
                    sums[held.sums[e]] += of_row * lanes_right[lane0 + 4 * column + k % 4, b]
        # Before anyone lays out the next round's numbers, the kernel itself waits for all.

    return multiply_fragments


def _emit_products(instructions: list[Registers]) -> Any:
    """Numba intrinsic for `multiply_fragments`: every instruction, written one after the other.

    The arrays are local ones, and each place is a constant: the compiler makes them registers.
    """
    from llvmlite import ir
    from numba import types
    from numba.cuda.extending import intrinsic

    single, word = ir.FloatType(), ir.IntType(32)
    four = ir.LiteralStructType([single] * 4)
    function = ir.FunctionType(four, [word] * 6 + [single] * 4)
    code = (
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
    )
    constraints = "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f"

    @intrinsic
    def multiply_fragments(typing: Any, sums: Any, left: Any, right: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            first = [
                context.make_array(kind)(context, builder, value).data
                for kind, value in zip(signature.args, arguments, strict=True)
            ]

            def place(array: int, at: int) -> Any:
                return builder.gep(first[array], [word(at)])

            def bits(array: int, at: int) -> Any:
                return builder.bitcast(builder.load(place(array, at)), word)

            for held in instructions:
                operands = [bits(1, at) for at in held.left] + [bits(2, at) for at in held.right]
                operands += [builder.load(place(0, at)) for at in held.sums]
                result = builder.asm(function, code, constraints, operands, side_effect=False)
                result.attributes.add("convergent")  # all lanes of a warp together, or none
                for n, at in enumerate(held.sums):
                    builder.store(builder.extract_value(result, n), place(0, at))
            return context.get_dummy_value()

        return types.void(sums, left, right), emit

    return multiply_fragments


# ---- a block's tile --------------------------------------------------------------------------


@cuda.jit(device=True)
def place_left(row: Any, k: Any) -> Any:
    """Where step k of a row lies in the left tile in shared memory: see Banks above."""
    lane = np.uint32(np.uint32(4) * (row % np.uint32(8)) + k // np.uint32(4))
    product = np.uint32(row // np.uint32(16) * np.uint32(2) + k // np.uint32(2) % np.uint32(2))
    register = np.uint32(row // np.uint32(8) % np.uint32(2) + np.uint32(2) * (k % np.uint32(2)))
    return np.uint32(np.uint32(4) * (product * np.uint32(LANES) + lane) + register)


@cuda.jit(device=True)
def place_right(column: Any, k: Any) -> Any:
    """Where step k of a column lies in the right tile."""
    swap = np.uint32(np.uint32(2) * column & np.uint32(12))
    return np.uint32(np.uint32(STEPS) * column + (k ^ swap))


@cuda.jit(device=True)
def beside_right(to: Any, n: Any) -> Any:
    """Further by n steps in the same column; ``to`` is the place of step 0 or of a multiple of 4.

    As many as a thread stores: n below 4, below 8 from a multiple of 8, or any.
    """
    return np.uint32((to ^ (n & np.uint32(12))) + (n & np.uint32(3)))


ADD_UP = 8  # the places of row a and row b * 8 add up to that of row a + b * 8


@cuda.jit(device=True)
def together(place: Any, other: Any) -> Any:
    """The place of row a + b, where a and b have no bit in common, from the places of both."""
    return np.uint32(place ^ other)


class Warps(NamedTuple):
    """Functions of a thread's number: the first of its sums' rows and columns, and a round."""

    first_row: Any
    first_column: Any
    multiply: Any


def warps(columns: int, threads: int, thread_rows: int, thread_columns: int) -> Warps:
    """How the warps of a block share a tile ``columns`` wide, of which a lane owns a part."""
    WARP_ROWS, WARP_COLUMNS = np.uint32(8 * thread_rows), np.uint32(4 * thread_columns)
    ACROSS = np.uint32(columns) // WARP_COLUMNS  # warps beside each other
    DOWN, BESIDE = thread_rows // 2, thread_columns // 2  # products of 16x8 of a warp
    LEFT, RIGHT = 8 * DOWN, 4 * BESIDE
    ONE_WARP, FOUR = np.uint32(LANES), np.uint32(4)
    multiply_fragments = _fragments_product(threads, thread_rows, thread_columns)

    @cuda.jit(device=True)
    def first_row(thread: Any) -> Any:
        warp, lane = np.uint32(thread // ONE_WARP), np.uint32(thread % ONE_WARP)
        return np.uint32(warp // ACROSS * WARP_ROWS + lane // FOUR)

    @cuda.jit(device=True)
    def first_column(thread: Any) -> Any:
        warp, lane = np.uint32(thread // ONE_WARP), np.uint32(thread % ONE_WARP)
        return np.uint32(warp % ACROSS * WARP_COLUMNS + np.uint32(2) * (lane % FOUR))

    @cuda.jit(device=True)
    def multiply(
        tile_a: Any, tile_b: Any, read_a: Any, read_b: Any, thread: Any, sums: Any
    ) -> None:
        """Sixteen steps in k: load this lane's numbers of both tiles, and multiply them."""
        left = cuda.local.array(LEFT, np.float32)
        right = cuda.local.array(RIGHT, np.float32)
        warp, lane = np.uint32(thread // ONE_WARP), np.uint32(thread % ONE_WARP)
        first = np.uint32(warp // ACROSS * WARP_ROWS * np.uint32(STEPS))
        at_left = np.uint32(read_a + first + FOUR * lane)
        column = np.uint32(warp % ACROSS * WARP_COLUMNS + lane // FOUR)
        at_right = np.uint32(read_b + place_right(column, np.uint32(FOUR * (lane % FOUR))))
        for i in range(2 * DOWN):  # product after product of sixteen rows, two steps each
            for n in range(4):
                left[4 * i + n] = tile_a[at_left + np.uint32(4 * LANES * i + n)]
        for j in range(BESIDE):
            for n in range(4):
                right[4 * j + n] = tile_b[at_right + np.uint32(8 * STEPS * j + n)]
        multiply_fragments(sums, left, right)

    return Warps(first_row, first_column, multiply)
