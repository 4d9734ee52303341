"""The register tile: the few instructions in which a matrix product spends its time.

**Why a tile.** Take a processor core that in one cycle can multiply and add two vectors of 16
floats (AVX-512), but can load only two vectors in that time. The obvious loop over
``total += a[k] * b[k]`` loads two vectors for each multiply-add, so half of the arithmetic units
stand idle, at best. The cure is to use each number several times once it is loaded: hold a small
tile of the *result* in registers and, at every step along the inner dimension, load one column of
A and one row of B and combine each with each.

    out (ROWS, COLUMNS)  +=  a[:, k] (ROWS)  outer product  b[k, :] (COLUMNS)

A tile of 8 x 48 loads 8 numbers (each spread over a vector) and 3 vectors, and does 24
multiply-adds of vectors with them: two for each load, where the obvious loop has one half.

**How large a tile.** All sums have to stay in registers, together with one row of B and one spread
number of A. With 32 registers: 8 * 3 + 3 + 1 = 28. With 16, as AVX2 has: 6 * 2 + 2 + 1 = 15. And
the sums must be many enough to hide the time that one multiply-add takes: 4 cycles, at two a cycle,
need 8 sums that do not wait for each other. 24 are plenty; 3, the tail of one row, are not.

NumPy-like code cannot say "keep this in registers", so the tile is written in LLVM's own language,
through Numba's ``@intrinsic``; so are three helpers that move vectors about. The Python twin of
each stands below it. It says what the instructions compute, and it is what runs when Numba is
switched off (NUMBA_DISABLE_JIT=1).

* `outer_tile` adds steps of outer products to a tile of the result.
* `fetch_ahead` has numbers brought into the first-level cache while others are multiplied.
* `copy_runs` copies runs of image rows into a panel, with zeros beyond the image's edge.
* `transpose_block` turns a block of pixels of 16 channels into 16 channels of each pixel.
* `Sandwich` computes ``M X M.T`` for a small constant matrix M: Winograd's transforms.

At the edges a vector is only partly valid. A *mask* says which lanes are read and written, so that
no edge needs a loop of its own. float32 has twice as many lanes as float64; nothing else differs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tinydilate.compiling import Native, native
from tinydilate.device import Array
from tinydilate.errors import ConfigError


class TileShape(NamedTuple):
    """The tile of one kind of processor: ROWS x (VECTORS * lanes) results."""

    name: str
    width: int  # bytes in one vector register
    rows: int
    vectors: int
    registers: int

    def lanes(self, dtype: Any = np.float32) -> int:
        """Numbers in one vector."""
        return self.width // int(np.dtype(dtype).itemsize)

    def columns(self, dtype: Any = np.float32) -> int:
        """Numbers in one row of the tile."""
        return self.vectors * self.lanes(dtype)

    def stripes(self, count: int, dtype: Any = np.float32) -> tuple[int, int]:
        """(number, breadth) of equal stripes of whole vectors that a row cuts ``count`` into."""
        vectors = -(-count // self.lanes(dtype))
        number = -(-vectors // self.vectors)
        return number, -(-vectors // number) * self.lanes(dtype)


LINE = 64  # bytes that come into the cache together

TILE_SHAPES = {
    "avx512": TileShape("avx512", 64, 8, 3, 32),
    "avx2": TileShape("avx2", 32, 6, 2, 16),
    "neon": TileShape("neon", 16, 8, 3, 32),
    "plain": TileShape("plain", 16, 4, 2, 16),
}


@cache
def host_tile() -> TileShape:
    """The tile shape for this processor; ``TINYDILATE_TILE`` chooses another by name."""
    import llvmlite.binding as llvm

    wanted = os.environ.get("TINYDILATE_TILE")
    if wanted is not None:
        if wanted not in TILE_SHAPES:
            raise ConfigError(
                f"expected TINYDILATE_TILE to be one of {', '.join(TILE_SHAPES)}; got {wanted!r}. "
                "Unset it to use the one for this processor."
            )
        return TILE_SHAPES[wanted]
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return TILE_SHAPES["avx512"]
    if features.get("avx2") and features.get("fma"):
        return TILE_SHAPES["avx2"]
    if llvm.get_default_triple().startswith(("aarch64", "arm64")):
        return TILE_SHAPES["neon"]
    return TILE_SHAPES["plain"]


# ---- the register tile -----------------------------------------------------------------------


def _emit_outer_tile() -> Any:
    """Numba intrinsic for `outer_tile`."""
    from numba.extending import intrinsic

    @intrinsic
    def outer_tile(
        typing: Any,
        out: Any,
        out_at: Any,
        valid: Any,
        a: Any,
        a_at: Any,
        b: Any,
        b_at: Any,
        steps: Any,
        bias: Any,
        bias_at: Any,
        first: Any,
        relu: Any,
    ) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = _Emitter(context, builder, out.dtype)
            out_first, (pitch,) = code.place(arguments, signature, 0)
            a_first, (a_row, a_step) = code.place(arguments, signature, 3)
            b_first, (b_step,) = code.place(arguments, signature, 5)
            steps, _, bias_at, first, relu = arguments[7:]
            bias_first = code.offset(code.pointer(arguments[8], signature.args[8]), bias_at)
            rows, columns = code.numbers(arguments[2])

            def tile(line: Any, height: int, vectors: int) -> None:
                """Rows [line, line + height) of the tile, ``vectors`` vectors wide."""
                lines = code.lines(out_first, line, pitch, height)
                a_lines = code.lines(a_first, line, a_row, height)
                # Only the last vector of a row may have lanes that do not exist.
                before_last = code.integer((vectors - 1) * code.lanes)
                mask = code.between(code.integer(0), builder.sub(columns, before_last))

                def from_bias() -> list[Any]:
                    spread = [code.spread(code.offset(bias_first, line), m) for m in range(height)]
                    return [value for value in spread for _ in range(vectors)]

                def from_memory() -> list[Any]:
                    return [
                        code.load_masked(lines[m], v * code.lanes, mask)
                        if v == vectors - 1
                        else code.load(lines[m], v * code.lanes)
                        for m in range(height)
                        for v in range(vectors)
                    ]

                def step(k: Any, totals: list[Any]) -> list[Any]:
                    b_row = code.offset(b_first, builder.mul(k, b_step))
                    a_column = builder.mul(k, a_step)
                    loaded = [code.load(b_row, v * code.lanes) for v in range(vectors)]
                    for m in range(height):
                        spread = code.spread(code.offset(a_lines[m], a_column), 0)
                        for v in range(vectors):
                            i = m * vectors + v
                            totals[i] = code.multiply_add(spread, loaded[v], totals[i])
                    return totals

                totals = code.loop(steps, code.choose(first, from_bias, from_memory), step)
                least = code.least(relu)
                results = [code.at_least(least, total) for total in totals]
                last = vectors - 1
                for i, result in enumerate(results):
                    if i % vectors != last:
                        code.store(result, lines[i // vectors], i % vectors * code.lanes)
                valid = builder.sub(columns, before_last)
                with builder.if_else(code.is_whole(valid)) as (then, otherwise):  # see copy_runs
                    with then:
                        for line, result in zip(lines, results[last::vectors], strict=True):
                            code.store(result, line, last * code.lanes)
                    with otherwise:
                        for line, result in zip(lines, results[last::vectors], strict=True):
                            code.store_masked(result, line, last * code.lanes, mask)

            shape = host_tile()
            for vectors in range(1, shape.vectors + 1):
                least = code.integer((vectors - 1) * code.lanes)
                most = code.integer(vectors * code.lanes)
                fits = builder.icmp_signed(">", columns, least)
                if vectors < shape.vectors:
                    fits = builder.and_(fits, builder.icmp_signed("<=", columns, most))
                with builder.if_then(fits):
                    whole = builder.icmp_signed(">=", rows, code.integer(shape.rows))
                    with builder.if_else(whole) as (then, otherwise):
                        with then:
                            tile(code.integer(0), shape.rows, vectors)
                        with otherwise:  # fewer rows: first four of them, then up to three
                            four = builder.and_(rows, code.integer(4))
                            if shape.rows > 4:
                                with builder.if_then(code.is_not_zero(four)):
                                    tile(code.integer(0), 4, vectors)
                            rest = builder.and_(rows, code.integer(3))
                            for size in (1, 2, 3):
                                some = builder.icmp_signed("==", rest, code.integer(size))
                                with builder.if_then(some):
                                    tile(four, size, vectors)
            return context.get_dummy_value()

        arguments = (out, out_at, valid, a, a_at, b, b_at, steps, bias, bias_at, first, relu)
        return _void(arguments), emit

    return outer_tile


@native(_emit_outer_tile)
def outer_tile(
    out: Array,
    out_at: tuple[int, int],
    valid: tuple[int, int],
    a: Array,
    a_at: tuple[int, int, int],
    b: Array,
    b_at: tuple[int, int],
    steps: int,
    bias: Array,
    bias_at: int,
    first: bool,
    relu: bool,
) -> None:
    """Add ``steps`` outer products to a tile of ``out``, all arrays flat and of one dtype.

    Parameters
    ----------
    out, out_at : array, (place, pitch)
        Row m of the tile begins at ``out[place + m*pitch]``.
    valid : (rows, columns)
        How much of the tile exists: ROWS or more count as ROWS, COLUMNS or more as COLUMNS.
    a, a_at : array, (place, row, step)
        A's number for row m at step k is ``a[place + m*row + k*step]``.
    b, b_at : array, (place, step)
        B's row for step k is the COLUMNS numbers from ``b[place + k*step]`` on. Whole vectors are
        read, so up to a vector beyond the valid columns; what they hold does not matter.
    steps : int
    bias, bias_at : array, place
        On the ``first`` call for a tile the sums of row m start from ``bias[bias_at + m]``;
        otherwise they start from what stands in ``out``.
    first, relu : bool
        With ``relu``, on the last call, negative results become zero.
    """
    shape = host_tile()
    rows = min(valid[0], shape.rows)
    columns = min(valid[1], shape.columns(out.dtype))
    ahead = np.arange(steps)
    left = a[a_at[0] + np.arange(rows)[:, None] * a_at[1] + ahead * a_at[2]]  # (ROWS, steps)
    right = b[b_at[0] + ahead[:, None] * b_at[1] + np.arange(columns)]  # (steps, COLUMNS)
    sums = left @ right
    for m in range(rows):
        line = out[out_at[0] + m * out_at[1] :][:columns]
        total = sums[m] + (bias[bias_at + m] if first else line)
        line[:] = total * ~(total < 0) if relu else total


# ---- moving vectors --------------------------------------------------------------------------


def _emit_fetch_ahead() -> Any:
    """Numba intrinsic for `fetch_ahead`."""
    from numba.extending import intrinsic

    @intrinsic
    def fetch_ahead(typing: Any, array: Any, at: Any, count: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = _Emitter(context, builder, array.dtype)
            first = code.offset(code.pointer(arguments[0], signature.args[0]), arguments[1])
            line = code.integer(LINE // code.align)
            lines = builder.sdiv(
                builder.add(arguments[2], builder.sub(line, code.integer(1))), line
            )

            def step(n: Any, _: list[Any]) -> list[Any]:
                code.fetch(code.offset(first, builder.mul(n, line)))
                return []

            code.loop(lines, [], step)
            return context.get_dummy_value()

        return _void((array, at, count)), emit

    return fetch_ahead


@native(_emit_fetch_ahead)
def fetch_ahead(array: Array, at: int, count: int) -> None:
    """Ask for the ``count`` numbers from ``array[at]`` on; nobody waits until they have come.

    Numbers that lie in a row the processor fetches ahead by itself, but it does not know where the
    next tile begins. What is asked for need not exist: nothing is read into a register.
    """


def _emit_copy_runs() -> Any:
    """Numba intrinsic for `copy_runs`."""
    from numba.extending import intrinsic

    @intrinsic
    def copy_runs(
        typing: Any,
        out: Any,
        out_at: Any,
        source: Any,
        at: Any,
        run: Any,
        inside: Any,
        count: Any,
        alone: Any,
    ) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = _Emitter(context, builder, out.dtype)
            out_first, (out_pitch,) = code.place(arguments, signature, 0)
            source_first, (pitch,) = code.place(arguments, signature, 2)
            run, inside, count, alone = arguments[4:]
            low, high = code.numbers(inside)
            whole = builder.and_(code.less_than(low, 1), builder.icmp_signed(">=", high, run))

            written = code.between(code.integer(0), run)

            def with_mask(values: Any, to: Any) -> None:
                code.store_masked(values, to, 0, written)

            def blended(values: Any, to: Any) -> None:
                code.store(builder.select(written, values, code.load(to, 0)), to, 0)

            def copy(vectors: int, edge: bool, store: Any = None) -> None:
                """Runs of so many vectors; at an ``edge`` of the image only some lanes are read."""
                starts = [code.integer(v * code.lanes) for v in range(vectors)]
                if vectors > 1:  # the last one ends where the run does and overlaps its neighbour
                    starts[-1] = builder.sub(run, code.integer(code.lanes))
                read = [
                    code.between(builder.sub(low, start), builder.sub(high, start))
                    for start in starts
                ]

                def step(n: Any, _: list[Any]) -> list[Any]:
                    to = code.offset(out_first, builder.mul(n, out_pitch))
                    come = code.offset(source_first, builder.mul(n, pitch))
                    for start, mask in zip(starts, read, strict=True):
                        here, there = code.offset(come, start), code.offset(to, start)
                        values = code.load_masked(here, 0, mask) if edge else code.load(here, 0)
                        store(values, there) if store else code.store(values, there, 0)
                    return []

                code.loop(count, [], step)

            # A store with a mask takes AVX2 as long as ten without. Only a run shorter than a
            # vector gets one, and only if it may not write back what it finds behind itself.
            short = code.less_than(run, code.lanes)
            with builder.if_then(builder.and_(short, alone)):
                copy(1, True, blended)
            with builder.if_then(builder.and_(short, builder.not_(alone))):
                copy(1, True, with_mask)
            for vectors in range(1, host_tile().vectors + 1):
                least = max(code.lanes, (vectors - 1) * code.lanes + 1)
                fits = builder.and_(
                    builder.not_(code.less_than(run, least)),
                    code.less_than(run, vectors * code.lanes + 1),
                )
                with builder.if_then(fits), builder.if_else(whole) as (then, otherwise):
                    with then:
                        copy(vectors, False)
                    with otherwise:
                        copy(vectors, True)
            return context.get_dummy_value()

        return _void((out, out_at, source, at, run, inside, count, alone)), emit

    return copy_runs


@native(_emit_copy_runs)
def copy_runs(
    out: Array,
    out_at: tuple[int, int],
    source: Array,
    at: tuple[int, int],
    run: int,
    inside: tuple[int, int],
    count: int,
    alone: bool,
) -> None:
    """Copy ``count`` runs of ``run`` numbers, at most a tile's COLUMNS; all arrays flat.

    Run n goes from ``source[at[0] + n*at[1]]`` to ``out[out_at[0] + n*out_at[1]]``. Only the
    numbers in [first, last) = ``inside`` are read, so a run may begin before the image's row or end
    behind it; the others become zero. ``alone`` says that no other thread is writing to the vector
    in which a run ends: then a short run may read and write back what stands behind it there.
    """
    first, last = max(inside[0], 0), min(inside[1], run)
    for n in range(count):
        to, come = out_at[0] + n * out_at[1], at[0] + n * at[1]
        out[to : to + run] = 0.0
        if last > first:
            out[to + first : to + last] = source[come + first : come + last]


def _emit_transpose_block() -> Any:
    """Numba intrinsic for `transpose_block`."""
    from numba.extending import intrinsic

    @intrinsic
    def transpose_block(
        typing: Any, out: Any, out_at: Any, source: Any, at: Any, valid: Any, inside: Any, wide: Any
    ) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = _Emitter(context, builder, out.dtype)
            out_first, (out_pitch,) = code.place(arguments, signature, 0)
            source_first, (pitch,) = code.place(arguments, signature, 2)
            rows, columns = code.numbers(arguments[4])
            low, high = code.numbers(arguments[5])
            numbers, nothing = range(code.lanes), code.between(code.integer(0), code.integer(0))
            sources = [
                code.offset(source_first, builder.mul(pitch, code.integer(m))) for m in numbers
            ]

            def every() -> list[Any]:
                return [code.load(line, 0) for line in sources]

            def some() -> list[Any]:
                read = code.between(low, high)
                masks = [builder.select(code.less(m, rows), read, nothing) for m in numbers]
                return [
                    code.load_masked(line, 0, mask)
                    for line, mask in zip(sources, masks, strict=True)
                ]

            # Inside an image nearly every block is whole, and the masks take as long as the rest.
            inside = builder.and_(code.less_than(low, 1), code.is_whole(high))
            block = code.choose(builder.and_(inside, code.is_whole(rows)), every, some)
            block = code.transposed(block)
            lines = [
                code.offset(out_first, builder.mul(out_pitch, code.integer(j)))
                for j in range(code.lanes)
            ]
            written = code.between(code.integer(0), arguments[6])
            whole = builder.and_(code.is_whole(columns), code.is_whole(arguments[6]))
            with builder.if_else(whole) as (then, other):  # see copy_runs
                with then:
                    for line, values in zip(lines, block, strict=True):
                        code.store(values, line, 0)
                with other:
                    for j, values in enumerate(block):
                        mask = builder.select(code.less(j, columns), written, nothing)
                        code.store_masked(values, lines[j], 0, mask)
            return context.get_dummy_value()

        return _void((out, out_at, source, at, valid, inside, wide)), emit

    return transpose_block


@native(_emit_transpose_block)
def transpose_block(
    out: Array,
    out_at: tuple[int, int],
    source: Array,
    at: tuple[int, int],
    valid: tuple[int, int],
    inside: tuple[int, int],
    wide: int,
) -> None:
    """Transpose a block of at most lanes x lanes numbers; both arrays flat.

    ``out[out_at[0] + j*out_at[1] + m] = source[at[0] + m*at[1] + j]`` for row m and column j of the
    ``valid`` (rows, columns). Only columns in [first, last) = ``inside`` are read, the others count
    as zero, and so do rows beyond the valid ones: ``wide`` numbers are written for each column.
    """
    rows, columns = valid
    first, last = max(inside[0], 0), inside[1]
    for j in range(columns):
        for m in range(wide):
            real = m < rows and first <= j < last
            value = source[at[0] + m * at[1] + j] if real else 0.0
            out[out_at[0] + j * out_at[1] + m] = value


class Sandwich(Native):
    """``out = M X M.T`` for a constant matrix M, on vectors: one such product in every lane.

    Called as ``sandwich(out, (place, row, column), x, (place, row, column), relu)``, arrays flat:
    number (i, j) of X is the vector from ``x[place + i*row + j*column]`` on, and those of out
    alike. With ``relu`` negative results become zero. The zeros and ones of M cost nothing, which
    is why Winograd's matrices have so many of them.
    """

    def __init__(self, name: str, matrix: Array) -> None:
        self.matrix = matrix
        super().__init__(self._twin, self._emit)
        self.__name__ = name

    def _twin(self, out: Array, out_at: Any, x: Array, x_at: Any, relu: bool) -> None:
        rows, inner = self.matrix.shape
        lane = np.arange(host_tile().lanes(out.dtype))

        def places(at: tuple[int, int, int], size: int) -> Array:
            line = np.arange(size)
            grid = at[0] + line[:, None] * at[1] + line * at[2]
            return grid[..., None] + lane  # (size, size, lanes)

        values = x[places(x_at, inner)]
        result = np.einsum("ia,abl,jb->ijl", self.matrix, values, self.matrix)
        out[places(out_at, rows)] = np.where(relu & (result < 0), 0, result)

    def _emit(self) -> Any:
        from numba.extending import intrinsic

        matrix = self.matrix
        rows, inner = matrix.shape

        @intrinsic
        def sandwich(typing: Any, out: Any, out_at: Any, x: Any, x_at: Any, relu: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                code = _Emitter(context, builder, out.dtype)
                out_first, out_pitches = code.place(arguments, signature, 0)
                x_first, x_pitches = code.place(arguments, signature, 2)

                def place(first: Any, pitches: Any, i: int, j: int) -> Any:
                    row = builder.mul(pitches[0], code.integer(i))
                    return code.offset(
                        first, builder.add(row, builder.mul(pitches[1], code.integer(j)))
                    )

                least = code.least(arguments[4])
                columns = []  # M X, one column after the other
                for b in range(inner):
                    column = [code.load(place(x_first, x_pitches, a, b), 0) for a in range(inner)]
                    columns.append([code.combined(weights, column) for weights in matrix])
                for i in range(rows):
                    row = [column[i] for column in columns]
                    for j in range(rows):
                        to = place(out_first, out_pitches, i, j)
                        total = code.combined(matrix[j], row)
                        code.store(code.at_least(least, total), to, 0)
                return context.get_dummy_value()

            return _void((out, out_at, x, x_at, relu)), emit

        return sandwich


# ---- LLVM's language -------------------------------------------------------------------------


def _void(arguments: tuple[Any, ...]) -> Any:
    """Signature of an intrinsic that returns nothing: whole numbers as machine words."""
    from numba import types

    def plain(kind: Any) -> Any:
        if isinstance(kind, types.BaseTuple):
            return types.UniTuple(types.intp, len(kind))  # type: ignore[no-untyped-call]
        return kind if isinstance(kind, types.Array | types.Boolean) else types.intp

    return types.void(*(plain(kind) for kind in arguments))


class _Emitter:
    """The handful of LLVM instructions that the above are made of; vectors of one float type."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        from llvmlite import ir

        self.context, self.builder = context, builder
        bits = dtype.bitwidth
        self.float = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.align = bits // 8
        self.lanes = lanes = host_tile().width // self.align
        self.index = ir.IntType(64)
        self.vector = vector = ir.VectorType(self.float, lanes)
        self.kind = f"v{lanes}f{bits}"
        # One instruction where the processor has it; "fma" would call a function where it has not.
        self.fma = self._declare("fmuladd", vector, [vector] * 3)
        mask, pointer = ir.VectorType(ir.IntType(1), lanes), ir.PointerType()
        self.masked_load = self._declare("masked.load", vector, [pointer, mask, vector])
        self.masked_store = self._declare("masked.store", ir.VoidType(), [vector, pointer, mask])

    def _declare(self, name: str, result: Any, arguments: list[Any]) -> Any:
        """One of LLVM's own functions for our vectors."""
        from llvmlite import ir

        module = self.builder.module
        alignment = name.startswith("masked")
        name = f"llvm.{name}.{self.kind}" + (".p0" if alignment else "")
        kind = ir.FunctionType(result, arguments)
        return module.globals.get(name) or ir.Function(module, kind, name)

    # numbers and places

    def integer(self, value: int) -> Any:
        return self.index(value)

    def zero(self) -> Any:
        return self.constant(0.0)

    def constant(self, value: float) -> Any:
        from llvmlite import ir

        return ir.Constant(self.vector, [value] * self.lanes)

    def numbers(self, pair: Any) -> list[Any]:
        """The numbers of a tuple."""
        return [self.builder.extract_value(pair, i) for i in range(len(pair.type.elements))]

    def place(self, arguments: Any, signature: Any, which: int) -> tuple[Any, list[Any]]:
        """Address that an (array, (place, pitches...)) pair of arguments names, and its pitches."""
        first, *pitches = self.numbers(arguments[which + 1])
        return self.offset(self.pointer(arguments[which], signature.args[which]), first), pitches

    def pointer(self, array: Any, kind: Any) -> Any:
        """Address of an array's first number."""
        return self.context.make_array(kind)(self.context, self.builder, array).data

    def offset(self, pointer: Any, count: Any) -> Any:
        return self.builder.gep(pointer, [count], source_etype=self.float)

    def lines(self, first: Any, line: Any, pitch: Any, count: int) -> list[Any]:
        """Addresses of ``count`` rows from row ``line`` on."""
        numbers = [self.builder.add(line, self.integer(m)) for m in range(count)]
        return [self.offset(first, self.builder.mul(pitch, number)) for number in numbers]

    # memory

    def load(self, pointer: Any, count: int) -> Any:
        at = self.offset(pointer, self.integer(count))
        return self.builder.load(at, align=self.align, typ=self.vector)

    def store(self, value: Any, pointer: Any, count: int) -> None:
        at = self.offset(pointer, self.integer(count))
        at = self.builder.bitcast(at, self.vector.as_pointer())
        self.builder.store(value, at, align=self.align)

    def load_masked(self, pointer: Any, count: int, mask: Any) -> Any:
        """Load the lanes of the mask; the others are zero and their memory is not touched."""
        at = self.offset(pointer, self.integer(count))
        return self.builder.call(self.masked_load, [at, mask, self.zero()])

    def store_masked(self, value: Any, pointer: Any, count: int, mask: Any) -> None:
        at = self.offset(pointer, self.integer(count))
        self.builder.call(self.masked_store, [value, at, mask])

    def fetch(self, pointer: Any) -> None:
        """Ask for a line of the cache: to be read, and kept as near as can be."""
        from llvmlite import ir

        number, module = ir.IntType(32), self.builder.module
        name = "llvm.prefetch.p0"
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), number, number, number])
        function = module.globals.get(name) or ir.Function(module, kind, name)
        self.builder.call(function, [pointer, number(0), number(3), number(1)])

    def spread(self, pointer: Any, count: int) -> Any:
        """Load one number and copy it to every lane."""
        at = self.offset(pointer, self.integer(count))
        return self.spread_value(
            self.builder.load(at, align=self.align, typ=self.float), self.vector
        )

    def spread_value(self, number: Any, kind: Any) -> Any:
        """Copy one number to every lane of a vector type."""
        from llvmlite import ir

        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, number, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, mask)

    # masks

    def between(self, low: Any, high: Any) -> Any:
        """Mask of the lanes whose number lies in [low, high); the limits may lie far outside."""
        from llvmlite import ir

        number = ir.IntType(32)
        kind = ir.VectorType(number, self.lanes)
        numbers = ir.Constant(kind, [number(lane) for lane in range(self.lanes)])
        limits = [self.spread_value(self.clipped(limit, number), kind) for limit in (low, high)]
        above = self.builder.icmp_signed(">=", numbers, limits[0])
        return self.builder.and_(above, self.builder.icmp_signed("<", numbers, limits[1]))

    def clipped(self, value: Any, kind: Any) -> Any:
        """A number cut to [-1, lanes + 1], as a narrow integer."""
        for limit, order in ((-1, "<"), (self.lanes + 1, ">")):
            beyond = self.builder.icmp_signed(order, value, self.integer(limit))
            value = self.builder.select(beyond, self.integer(limit), value)
        return self.builder.trunc(value, kind)

    def less(self, number: int, limit: Any) -> Any:
        return self.builder.icmp_signed("<", self.integer(number), limit)

    def less_than(self, value: Any, limit: int) -> Any:
        return self.builder.icmp_signed("<", value, self.integer(limit))

    def is_whole(self, lanes: Any) -> Any:
        """Whether as many lanes as a vector has, or more, are valid."""
        return self.builder.icmp_signed(">=", lanes, self.integer(self.lanes))

    def is_not_zero(self, value: Any) -> Any:
        return self.builder.icmp_signed("!=", value, self.integer(0))

    # arithmetic

    def multiply_add(self, a: Any, b: Any, total: Any) -> Any:
        return self.builder.call(self.fma, [a, b, total])

    def combined(self, weights: Any, values: list[Any]) -> Any:
        """Sum of constant weights times vectors."""
        total = None
        for weight, value in zip(weights, values, strict=True):
            if weight == 0:
                continue
            if total is None:
                total = value if weight == 1 else self.builder.fmul(value, self.constant(weight))
            elif weight == 1:
                total = self.builder.fadd(total, value)
            elif weight == -1:
                total = self.builder.fsub(total, value)
            else:
                total = self.multiply_add(value, self.constant(weight), total)
        return self.zero() if total is None else total

    def least(self, relu: Any) -> Any:
        """What no result may be below: zero with ``relu``, and minus infinity without.

        So relu costs one instruction, the larger of two vectors, whether it is wanted or not. To
        choose between each result and its larger one would take registers for both.
        """
        from llvmlite import ir

        zero, lowest = (ir.Constant(self.float, value) for value in (0.0, -math.inf))
        return self.spread_value(self.builder.select(relu, zero, lowest), self.vector)

    def at_least(self, least: Any, total: Any) -> Any:
        """The larger of the two; nan, which is neither smaller nor larger, stays."""
        below = self.builder.fcmp_ordered("<", total, least)
        return self.builder.select(below, least, total)

    def transposed(self, block: list[Any]) -> list[Any]:
        """Transpose lanes x lanes numbers: swap ever larger blocks across the diagonal."""
        from llvmlite import ir

        number, size = ir.IntType(32), 1
        while size < self.lanes:
            following = list(block)
            for m in range(self.lanes):
                if m & size:
                    continue
                low, high = block[m], block[m + size]
                # Row m keeps its own columns without the bit `size` and takes those of the partner.
                keep = [lane if not lane & size else self.lanes + lane - size
                        for lane in range(self.lanes)]  # fmt: skip
                take = [lane + size if not lane & size else self.lanes + lane
                        for lane in range(self.lanes)]  # fmt: skip
                kind = ir.VectorType(number, self.lanes)
                for row, lanes in ((m, keep), (m + size, take)):
                    following[row] = self.builder.shuffle_vector(
                        low, high, ir.Constant(kind, [number(lane) for lane in lanes])
                    )
            block, size = following, 2 * size
        return block

    # control

    def choose(
        self, condition: Any, yes: Callable[[], list[Any]], no: Callable[[], list[Any]]
    ) -> list[Any]:
        """Vectors of the one branch or of the other."""
        builder, branches = self.builder, []
        with builder.if_else(condition) as both:
            for branch, make in zip(both, (yes, no), strict=True):
                with branch:
                    branches.append((make(), builder.basic_block))
        chosen = []
        for values in zip(*(made for made, _ in branches), strict=True):
            phi = builder.phi(self.vector)
            for value, (_, block) in zip(values, branches, strict=True):
                phi.add_incoming(value, block)
            chosen.append(phi)
        return chosen

    def loop(self, count: Any, start: list[Any], step: Any) -> list[Any]:
        """Run ``totals = step(k, totals)`` for k in range(count), totals in registers."""
        builder = self.builder
        before = builder.basic_block
        head = builder.append_basic_block("tile.head")
        body = builder.append_basic_block("tile.body")
        after = builder.append_basic_block("tile.after")
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(self.index)
        totals = [builder.phi(self.vector) for _ in start]
        builder.cbranch(builder.icmp_signed("<", k, count), body, after)
        builder.position_at_end(body)
        results = step(k, list(totals))
        following = builder.add(k, self.integer(1))
        end = builder.basic_block
        builder.branch(head)
        k.add_incoming(self.integer(0), before)
        k.add_incoming(following, end)
        for phi, first, result in zip(totals, start, results, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(result, end)
        builder.position_at_end(after)
        return totals
