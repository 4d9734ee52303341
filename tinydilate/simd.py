"""The register tile: the few instructions in which a matrix product spends its time.

A processor core multiplies and adds two vectors of 16 floats in every cycle (AVX-512), but it can
load only two vectors in that time. A loop that loads both factors of each multiplication
is therefore limited by its loads. The cure is to reuse what has been loaded: hold a small tile of
the result in registers and, for every step along the inner dimension, load a few numbers and
combine each with each.

* `outer_tile` holds ROWS x COLUMNS results. A step loads COLUMNS numbers of B as vectors, spreads
  each of ROWS numbers of A over a vector, and adds ROWS x COLUMNS products: an outer product.
  With 8 x 48 that is 8 + 3 loads for 24 multiply-adds. Both factors are laid out step by step.
* `dot_tile` holds DOT_ROWS x DOT_COLUMNS results, each as a vector of partial sums, for factors
  that are both laid out *along* the inner dimension. A step loads 4 + 4 vectors for 16
  multiply-adds, and the vectors are summed at the end.

* `copy_run` moves a run of one image row into a panel, vector by vector, with zeros where the run
  lies outside the row.

At the edges a vector is only partly valid. A *mask* says which lanes are read and written, so
no edge needs a loop of its own.

NumPy-like code cannot say "keep this in registers", so the three are written in LLVM's own
language, through Numba's ``@intrinsic``. The Python twin of each stands below it, and it is what
runs when Numba is switched off (NUMBA_DISABLE_JIT=1).

The shape of the tiles follows the host: its number of vector registers and their width.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tinydilate.device import Array
from tinydilate.errors import ConfigError
from tinydilate.kernel import native


class TileShape(NamedTuple):
    """Sizes of the two tiles, in numbers (not vectors)."""

    name: str
    lanes: int  # numbers in one vector register
    rows: int
    columns: int
    dot_rows: int
    dot_columns: int


# 32 registers of 16 lanes: 8*3 sums + 3 of B + 1 of A.  16 registers of 8: 6*2 sums + 2 + 1.
TILE_SHAPES = {
    "avx512": TileShape("avx512", 16, 8, 48, 4, 4),
    "avx2": TileShape("avx2", 8, 6, 16, 4, 2),
    "neon": TileShape("neon", 4, 8, 12, 4, 4),
    "plain": TileShape("plain", 4, 4, 8, 4, 2),
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


def _emit_outer_tile() -> Any:
    """Numba intrinsic for `outer_tile`."""
    from numba import types
    from numba.extending import intrinsic

    shape = host_tile()
    rows, vectors, lanes = shape.rows, shape.columns // shape.lanes, shape.lanes

    @intrinsic
    def outer_tile(
        typing: Any,
        out: Any,
        at: Any,
        pitch: Any,
        valid: Any,
        first: Any,
        relu: Any,
        bias: Any,
        bias_at: Any,
        a: Any,
        a_at: Any,
        b: Any,
        b_at: Any,
        b_pitch: Any,
        steps: Any,
    ) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, at, pitch, valid, first, relu, bias, bias_at, *rest = arguments
            a, a_at, b, b_at, b_pitch, steps = rest
            code = _Emitter(context, builder, lanes)
            arrays = zip((out, bias, a, b), (at, bias_at, a_at, b_at), (0, 6, 8, 10), strict=True)
            out_first, bias_first, a_first, b_first = (
                code.offset(code.pointer(array, signature.args[place]), start)
                for array, start, place in arrays
            )
            lines = [
                code.offset(out_first, builder.mul(pitch, code.integer(m))) for m in range(rows)
            ]
            valid_rows, valid_columns = (builder.extract_value(valid, i) for i in (0, 1))
            # masks[m][v]: lanes of vector v that exist in row m
            columns = [code.between(code.integer(0), valid_columns, v) for v in range(vectors)]
            masks = [
                [code.only_if(builder.icmp_signed("<", code.integer(m), valid_rows), column)
                 for column in columns]
                for m in range(rows)
            ]  # fmt: skip

            def step(k: Any, totals: list[Any]) -> list[Any]:
                b_row = code.offset(b_first, builder.mul(k, b_pitch))
                a_row = code.offset(a_first, builder.mul(k, code.integer(rows)))
                loaded = [code.load(b_row, v * lanes) for v in range(vectors)]
                for m in range(rows):
                    spread = code.spread(a_row, m)
                    for v in range(vectors):
                        i = m * vectors + v
                        totals[i] = code.multiply_add(spread, loaded[v], totals[i])
                return totals

            totals = code.loop(steps, [code.zero()] * (rows * vectors), step)
            for m in range(rows):
                start = code.spread(bias_first, m)
                for v in range(vectors):
                    mask, total = masks[m][v], totals[m * vectors + v]
                    before = code.load_masked(lines[m], v * lanes, mask)
                    total = builder.fadd(total, builder.select(first, start, before))
                    negative = builder.fcmp_ordered("<", total, code.zero())
                    cut = builder.select(negative, code.zero(), total)
                    total = builder.select(relu, cut, total)
                    code.store_masked(total, lines[m], v * lanes, mask)
            return context.get_dummy_value()

        number = types.intp
        return (
            types.void(
                out,
                number,
                number,
                types.UniTuple(number, 2),  # type: ignore[no-untyped-call]
                types.boolean,
                types.boolean,
                bias,
                number,
                a,
                number,
                b,
                number,
                number,
                number,
            ),
            emit,
        )

    return outer_tile


@native(_emit_outer_tile)
def outer_tile(
    out: Array,
    at: int,
    pitch: int,
    valid: tuple[int, int],
    first: bool,
    relu: bool,
    bias: Array,
    bias_at: int,
    a: Array,
    a_at: int,
    b: Array,
    b_at: int,
    b_pitch: int,
    steps: int,
) -> None:
    """Add ``steps`` outer products to a tile of ``out``, all arrays flat.

    Row m of the tile is ``out[at + m*pitch :]``; of its ROWS x COLUMNS numbers the ``valid`` ones
    are written. ``a[a_at:]`` holds ROWS numbers a step; step k of b is the COLUMNS numbers from
    ``b[b_at + k*b_pitch]`` on. On the ``first`` call for a tile the sums start from
    ``bias[bias_at + m]`` instead of from what stands in ``out``; with ``relu``, on the last one,
    negative results become zero.
    """
    tile = host_tile()
    rows, columns = min(valid[0], tile.rows), min(valid[1], tile.columns)
    left = a[a_at : a_at + steps * tile.rows].reshape(steps, tile.rows)
    right = b[b_at + np.arange(steps)[:, None] * b_pitch + np.arange(columns)]
    sums = left.T @ right  # (ROWS, valid columns); beyond them anything may stand
    for m in range(rows):
        line = out[at + m * pitch :][:columns]
        total = sums[m] + (bias[bias_at + m] if first else line)
        line[:] = total * ~(total < 0) if relu else total


def _emit_copy_run() -> Any:
    """Numba intrinsic for `copy_run`."""
    from numba import types
    from numba.extending import intrinsic

    lanes = host_tile().lanes

    @intrinsic
    def copy_run(
        typing: Any, out: Any, at: Any, row: Any, start: Any, run: Any, first: Any, last: Any
    ) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, at, row, start, run, first, last = arguments
            code = _Emitter(context, builder, lanes)
            out_at = code.offset(code.pointer(out, signature.args[0]), at)
            row_at = code.offset(code.pointer(row, signature.args[2]), start)

            def step(k: Any, _: list[Any]) -> list[Any]:
                done = builder.mul(k, code.integer(lanes))
                left, low, high = (builder.sub(limit, done) for limit in (run, first, last))
                read, written = code.between(low, high, 0), code.between(code.integer(0), left, 0)
                values = code.load_masked(code.offset(row_at, done), 0, read)
                code.store_masked(values, code.offset(out_at, done), 0, written)
                return []

            steps = builder.sdiv(builder.add(run, code.integer(lanes - 1)), code.integer(lanes))
            code.loop(steps, [], step)
            return context.get_dummy_value()

        number = types.intp
        return types.void(out, number, row, number, number, number, number), emit

    return copy_run


@native(_emit_copy_run)
def copy_run(out: Array, at: int, row: Array, start: int, run: int, first: int, last: int) -> None:
    """``out[at + n] = row[start + n]`` for n in range(run); zero outside [first, last).

    Only the numbers in [first, last) are read, so ``start`` may lie before the row.
    """
    out[at : at + run] = 0.0
    last = min(last, run)  # the row may go on where the run ends
    if last > first:
        out[at + first : at + last] = row[start + first : start + last]


def _emit_dot_tile() -> Any:
    """Numba intrinsic for `dot_tile`."""
    from numba import types
    from numba.extending import intrinsic

    shape = host_tile()
    rows, columns, lanes = shape.dot_rows, shape.dot_columns, shape.lanes

    @intrinsic
    def dot_tile(
        typing: Any, sums: Any, a: Any, a0: Any, a_pitch: Any, b: Any, b0: Any, b_pitch: Any, n: Any
    ) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            sums, a, a0, a_pitch, b, b0, b_pitch, n = arguments
            code = _Emitter(context, builder, lanes)
            sums_at, a_at, b_at = (
                code.pointer(array, signature.args[place])
                for array, place in ((sums, 0), (a, 1), (b, 4))
            )

            def lines(start: Any, first: Any, pitch: Any, count: int) -> list[Any]:
                start = code.offset(start, first)
                return [
                    code.offset(start, builder.mul(pitch, code.integer(line)))
                    for line in range(count)
                ]

            a_lines = lines(a_at, a0, a_pitch, rows)
            b_lines = lines(b_at, b0, b_pitch, columns)

            def step(k: Any, totals: list[Any]) -> list[Any]:
                at = builder.mul(k, code.integer(lanes))
                left = [code.load(code.offset(line, at), 0) for line in a_lines]
                right = [code.load(code.offset(line, at), 0) for line in b_lines]
                return [
                    code.multiply_add(left[m], right[j], totals[m * columns + j])
                    for m in range(rows)
                    for j in range(columns)
                ]

            steps = builder.udiv(n, code.integer(lanes))
            totals = code.loop(steps, [code.zero()] * (rows * columns), step)
            for at, total in enumerate(totals):
                code.store_number(code.total(total), sums_at, at)
            return context.get_dummy_value()

        signature = types.void(
            sums, a, types.intp, types.intp, b, types.intp, types.intp, types.intp
        )
        return signature, emit

    return dot_tile


@native(_emit_dot_tile)
def dot_tile(
    sums: Array, a: Array, a0: int, a_pitch: int, b: Array, b0: int, b_pitch: int, n: int
) -> None:
    """Dot products of DOT_ROWS lines of ``a`` with DOT_COLUMNS lines of ``b``, to ``sums``.

    Line m of ``a`` is ``a[a0 + m*a_pitch :]``; ``n`` numbers are read of each, a multiple of the
    vector's lanes.
    """
    shape = host_tile()
    for m in range(shape.dot_rows):
        for j in range(shape.dot_columns):
            left = a[a0 + m * a_pitch : a0 + m * a_pitch + n]
            right = b[b0 + j * b_pitch : b0 + j * b_pitch + n]
            sums[m * shape.dot_columns + j] = left @ right


class _Emitter:
    """The handful of LLVM instructions that the tiles are made of; vectors of float32."""

    def __init__(self, context: Any, builder: Any, lanes: int) -> None:
        from llvmlite import ir

        self.context, self.builder = context, builder
        self.float, self.index = ir.FloatType(), ir.IntType(64)
        self.vector = ir.VectorType(self.float, lanes)
        self.lanes = lanes
        vector = self.vector
        # One instruction where the processor has it; "fma" would call a function where it has not.
        self.fma = self._declare("fmuladd", vector, [vector] * 3)
        self.sum = self._declare("vector.reduce.fadd", self.float, [self.float, vector])
        mask, pointer = ir.VectorType(ir.IntType(1), lanes), ir.PointerType()
        self.masked_load = self._declare("masked.load", vector, [pointer, mask, vector])
        self.masked_store = self._declare("masked.store", ir.VoidType(), [vector, pointer, mask])

    def _declare(self, name: str, result: Any, arguments: list[Any]) -> Any:
        """One of LLVM's own functions for our vectors."""
        from llvmlite import ir

        module = self.builder.module
        name = f"llvm.{name}.v{self.lanes}f32" + (".p0" if name.startswith("masked") else "")
        kind = ir.FunctionType(result, arguments)
        return module.globals.get(name) or ir.Function(module, kind, name)

    def integer(self, value: int) -> Any:
        return self.index(value)

    def zero(self) -> Any:
        from llvmlite import ir

        return ir.Constant(self.vector, [0.0] * self.lanes)

    def pointer(self, array: Any, kind: Any) -> Any:
        """Address of an array's first number."""
        return self.context.make_array(kind)(self.context, self.builder, array).data

    def offset(self, pointer: Any, count: Any) -> Any:
        return self.builder.gep(pointer, [count], source_etype=self.float)

    def load(self, pointer: Any, count: int) -> Any:
        at = self.offset(pointer, self.integer(count))
        return self.builder.load(at, align=4, typ=self.vector)

    def load_masked(self, pointer: Any, count: int, mask: Any) -> Any:
        """Load the lanes of the mask; the others are zero and their memory is not touched."""
        at = self.offset(pointer, self.integer(count))
        return self.builder.call(self.masked_load, [at, mask, self.zero()])

    def store_masked(self, value: Any, pointer: Any, count: int, mask: Any) -> None:
        at = self.offset(pointer, self.integer(count))
        self.builder.call(self.masked_store, [value, at, mask])

    def between(self, low: Any, high: Any, vector: int) -> Any:
        """Mask of the lanes whose number, counted from vector 0, lies in [low, high)."""
        from llvmlite import ir

        kind = ir.VectorType(self.index, self.lanes)
        lanes = [vector * self.lanes + lane for lane in range(self.lanes)]
        numbers = ir.Constant(kind, [self.index(lane) for lane in lanes])
        above = self.builder.icmp_signed(">=", numbers, self.spread_value(low, kind))
        below = self.builder.icmp_signed("<", numbers, self.spread_value(high, kind))
        return self.builder.and_(above, below)

    def only_if(self, condition: Any, mask: Any) -> Any:
        """The mask where the condition holds, no lane where it does not."""
        from llvmlite import ir

        none = ir.Constant(mask.type, [ir.IntType(1)(0)] * self.lanes)
        return self.builder.select(condition, mask, none)

    def store_number(self, value: Any, pointer: Any, count: int) -> None:
        self.builder.store(value, self.offset(pointer, self.integer(count)), align=4)

    def spread(self, pointer: Any, count: int) -> Any:
        """Load one number and copy it to every lane."""
        at = self.offset(pointer, self.integer(count))
        return self.spread_value(self.builder.load(at, align=4, typ=self.float), self.vector)

    def spread_value(self, number: Any, kind: Any) -> Any:
        """Copy one number to every lane of a vector type."""
        from llvmlite import ir

        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, number, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, mask)

    def multiply_add(self, a: Any, b: Any, total: Any) -> Any:
        return self.builder.call(self.fma, [a, b, total])

    def total(self, vector: Any) -> Any:
        """Sum of the lanes, in the processor's favourite order."""
        return self.builder.call(self.sum, [self.float(0.0), vector], fastmath=["reassoc"])

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
