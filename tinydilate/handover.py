"""Handing parts of a loop to other threads within a microsecond.

Python's own way (a queue, a lock, a thread that wakes up and then waits for the interpreter) takes
some 50 microseconds. A layer of a context network takes 300. So a thread that has just worked does
not go to sleep at once: for a moment it watches a few words of memory, the *board*, and what is
written there it begins to compute without asking the interpreter.

* The caller writes on the board where the compiled loop and its arguments are, and into how many
  parts the loop is cut. Then it takes parts itself, until none is left.
* Whoever is awake takes parts as well. A part is counted off on the board in one indivisible step
  (compare and exchange), so nobody computes it twice.
* When all parts are done, the caller returns. It waits only for parts that somebody has begun: a
  thread that sleeps, or that the system has put aside, costs nothing but its help.

How a loop is cut depends on the number of threads and not on who computes which part: so the bits
of the result do not depend on it either.

Numba compiles what stands below. The caller's side, `drive`, is compiled once, and every loop finds
its address on the board. All of it can be said in Python but six things: to read a word that other
threads write, to write it, to exchange it, to wait a moment, to name an address, and to call what
stands there. Those are *intrinsics*, written in LLVM's own language at the end of the page.
threads.py has Python's side: it starts the threads, and wakes those that have gone to sleep.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from tinydilate.compiling import body, compile_part, jit, native

# Words of the board. Those that are written by different threads lie in different lines of the
# cache, 8 words each, so that writing the one does not take the other away from its reader.
TICKET = 0  # number of the job << 32 | its parts << 16 | the next part that is free
DONE = 8  # parts that are finished
LOOP, ARGUMENTS, COUNT, FAILED = 16, 17, 18, 19  # two addresses; range(COUNT); a part that raised
DRIVE = 20  # address of `drive`, which every caller's loop is handed to
TAKEN = 24  # 1 while a caller has the board
STOP = 32  # 1 when the threads are to end
ASLEEP = 40  # and 8 words further for each further thread: 1 while it sleeps

PATIENCE = 3000  # looks at the board before a thread goes to sleep: some 200 microseconds
YIELDING = 500  # looks after which a waiting thread lets others have the processor


def board_size(helpers: int) -> int:
    """Words of the board for ``helpers`` threads beside the caller."""
    return ASLEEP + 8 * helpers


# ---- the protocol ----------------------------------------------------------------------------


@jit
def take(board: Any, who: int) -> Any:
    """Count off the next part of the job on the board for thread ``who``; -1 if there is none.

    A job of few parts is one for the first few threads: it has no room for more.
    """
    while True:
        ticket = look(board, TICKET)
        part, parts = ticket & 0xFFFF, (ticket >> 16) & 0xFFFF
        if part >= parts or who >= parts:
            return -1
        if exchange(board, TICKET, ticket, ticket + 1):
            return part


@jit
def compute(board: Any, part: int, who: int) -> None:
    """Compute a part that was taken. Until it is done the caller keeps the job on the board."""
    parts = (look(board, TICKET) >> 16) & 0xFFFF
    job = look(board, LOOP), look(board, ARGUMENTS)
    if call(job, look(board, COUNT), part, parts, who) != 0:
        write(board, FAILED, part)
    done = look(board, DONE)
    while not exchange(board, DONE, done, done + 1):
        done = look(board, DONE)


@jit
def drive(board: Any, job: Any, parts: int, count: int) -> Any:
    """The caller's side: have all parts computed; the number of one that raised, or -1."""
    if parts == 1 or not exchange(board, TAKEN, 0, 1):  # another Python thread has the board
        for part in range(parts):
            if call(job, count, part, parts, 0) != 0:
                return part
        return -1
    write(board, LOOP, job[0])
    write(board, ARGUMENTS, job[1])
    write(board, COUNT, count)
    write(board, FAILED, -1)
    write(board, DONE, 0)
    number = ((look(board, TICKET) >> 32) + 1) & 0x7FFFFFFF
    write(board, TICKET, number << 32 | parts << 16)  # from here on the others take parts
    part = take(board, 0)
    while part >= 0:
        compute(board, part, 0)
        part = take(board, 0)
    looks = 0
    while look(board, DONE) < parts:
        wait(looks)
        looks += 1
    failed = look(board, FAILED)
    write(board, TAKEN, 0)
    return failed


@jit
def serve(board: Any, who: int) -> bool:
    """Take parts of whatever job comes up: thread ``who``, from 1. False: it is to end.

    True: nothing has come for a while, and the board says that the thread is asleep.
    """
    write(board, DRIVE, entry(board))  # before any caller comes; who wakes up writes the same
    looks, mine = 0, ASLEEP + 8 * (who - 1)
    while look(board, STOP) == 0:
        part = take(board, who)
        if part >= 0:
            compute(board, part, who)
            looks = 0
        elif looks < PATIENCE:
            wait(looks)
            looks += 1
        else:
            write(board, mine, 1)
            # A job that came up just before that: its caller saw nobody asleep and rang no bell.
            part = take(board, who)
            if part < 0:
                return True
            compute(board, part, who)
            if not exchange(board, mine, 1, 0):  # a bell has been rung meanwhile
                return True
            looks = 0
    return False


def together(board: Any, parts: int, count: int, *arguments: Any) -> None:
    """Compute ``body(start, stop, *arguments)`` for ``parts`` parts of ``range(count)``."""
    job = address(body, arguments)
    failed = hand_over(board, job, parts, count)
    if failed >= 0:
        call_again(job, count, failed, parts, 0)  # to raise what it raised


def together_in_rooms(board: Any, parts: int, count: int, *arguments: Any) -> None:
    """The same for ``body(start, stop, room, *arguments)``: each thread has a row as its room."""
    job = address_in_rooms(body, arguments)
    failed = hand_over(board, job, parts, count)
    if failed >= 0:
        call_again(job, count, failed, parts, 0)


# ---- intrinsics ------------------------------------------------------------------------------


def _word(builder: Any, context: Any, signature: Any, arguments: Any) -> Any:
    """Address of ``board[index]``, the first two arguments."""
    from llvmlite import ir

    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.gep(data, [arguments[1]], source_etype=ir.IntType(64))


def _emit_look() -> Any:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def look(typing: Any, board: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            at = _word(builder, context, signature, arguments)
            return builder.load_atomic(at, "seq_cst", 8, typ=ir.IntType(64))

        return types.intp(board, types.intp), emit

    return look


@native(_emit_look)
def look(board: Any, index: int) -> Any:
    """``board[index]`` as it is now."""
    return board[index]


def _emit_write() -> Any:
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def write(typing: Any, board: Any, index: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            at = _word(builder, context, signature, arguments)
            builder.atomic_rmw("xchg", at, arguments[2], "seq_cst")
            return context.get_dummy_value()

        return types.void(board, types.intp, types.intp), emit

    return write


@native(_emit_write)
def write(board: Any, index: int, value: int) -> None:
    """``board[index] = value``; whoever sees it also sees all that was written before."""
    board[index] = value


def _emit_exchange() -> Any:
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def exchange(typing: Any, board: Any, index: Any, before: Any, after: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            at = _word(builder, context, signature, arguments)
            pair = builder.cmpxchg(at, arguments[2], arguments[3], "seq_cst")
            return builder.extract_value(pair, 1)

        return types.boolean(board, types.intp, types.intp, types.intp), emit

    return exchange


@native(_emit_exchange)
def exchange(board: Any, index: int, before: int, after: int) -> bool:
    """Put ``after`` in the place of ``before``, if that is what stands there: whether it was."""
    same: bool = board[index] == before
    if same:
        board[index] = after
    return same


def _emit_wait() -> Any:
    from llvmlite import ir
    from numba import types
    from numba.core.cgutils import get_or_insert_function
    from numba.extending import intrinsic

    number = ir.IntType(32)

    @intrinsic
    def wait(typing: Any, looks: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def run(name: str, result: Any, *values: Any) -> None:
                kind = ir.FunctionType(result, [value.type for value in values])
                function = get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
                builder.call(function, values)

            if builder.module.triple.startswith(("x86_64", "i686")):
                run("llvm.x86.sse2.pause", ir.VoidType())
            elif builder.module.triple.startswith(("aarch64", "arm64")):
                run("llvm.aarch64.hint", ir.VoidType(), number(1))
            many = builder.icmp_signed(">", arguments[0], arguments[0].type(YIELDING))
            with builder.if_then(many):
                run("SwitchToThread" if sys.platform == "win32" else "sched_yield", number)
            return context.get_dummy_value()

        return types.void(types.intp), emit

    return wait


@native(_emit_wait)
def wait(looks: int) -> None:
    """Let a moment pass between two looks; after many of them, let another thread run."""


def _emit_entry() -> Any:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def entry(typing: Any, board: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            part = compile_part(context, drive, _drive_kinds(board))
            context.add_linking_libs([part.library])
            function = context.declare_function(builder.module, part.fndesc)
            return builder.ptrtoint(function, ir.IntType(64))

        return types.intp(board), emit

    return entry


@native(_emit_entry)
def entry(board: Any) -> Any:
    """Address of `drive`: it is compiled once, and not as a part of each loop's frame."""
    return drive


def _drive_kinds(board: Any) -> tuple[Any, ...]:
    """Types of `drive`'s arguments."""
    from numba import types

    pair = types.UniTuple(types.intp, 2)  # type: ignore[no-untyped-call]
    return board, pair, types.intp, types.intp


def _emit_hand_over() -> Any:
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def hand_over(typing: Any, board: Any, job: Any, parts: Any, count: Any) -> Any:
        kinds = _drive_kinds(board)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            place = context.get_constant(types.intp, DRIVE)
            address = builder.load(_word(builder, context, signature, [values[0], place]))
            kind = context.call_conv.get_function_type(types.intp, kinds)
            function = builder.inttoptr(address, kind.as_pointer())
            _, failed = context.call_conv.call_function(
                builder, function, types.intp, kinds, values
            )
            return failed

        return types.intp(*kinds), emit

    return hand_over


@native(_emit_hand_over)
def hand_over(board: Any, job: Any, parts: int, count: int) -> Any:
    """`drive`, found on the board."""
    return look(board, DRIVE)(board, job, parts, count)


def _emit_address(in_rooms: bool) -> Any:
    from llvmlite import ir
    from numba import types
    from numba.core.cgutils import alloca_once_value
    from numba.extending import intrinsic

    word = ir.IntType(64)

    @intrinsic
    def address(typing: Any, body: Any, arguments: Any) -> Any:
        kinds = list(arguments.types)
        if in_rooms:
            kinds[0] = kinds[0].copy(ndim=1)  # of the rooms, a row
        called = types.void(types.intp, types.intp, *kinds)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            bridge = _bridge(context, builder, body, called, arguments, in_rooms)
            # On the caller's stack.
            place = alloca_once_value(builder, values[1])  # type: ignore[no-untyped-call]
            pair = [builder.ptrtoint(bridge, word), builder.ptrtoint(place, word)]
            return context.make_tuple(builder, signature.return_type, pair)

        pair = types.UniTuple(types.intp, 2)  # type: ignore[no-untyped-call]
        return pair(body, arguments), emit

    return address


@native(partial(_emit_address, in_rooms=False))
def address(body: Any, arguments: Any) -> Any:
    """(loop, arguments): where a bridge to the loop begins, and where its arguments lie.

    A bridge is called with (arguments, count, part, parts, who). It works out where the part
    begins and ends, takes the arguments from where they lie, and calls the loop.
    """
    return lambda start, stop, who: body(start, stop, *arguments), None


@native(partial(_emit_address, in_rooms=True))
def address_in_rooms(body: Any, arguments: Any) -> Any:
    """`address`, where the first argument is an array of rooms and ``who`` chooses among them."""
    rooms, *others = arguments
    return lambda start, stop, who: body(start, stop, rooms[who], *others), None


def _bridge_kind(context: Any) -> Any:
    """Type of every bridge, in Numba's calling convention."""
    from numba import types

    return context.call_conv.get_function_type(types.none, [types.intp] * 5)


def _bridge(
    context: Any, builder: Any, body: Any, called: Any, arguments: Any, in_rooms: bool
) -> Any:
    """Write a bridge to a loop, and the loop itself beside it."""
    from llvmlite import ir

    loop = compile_part(context, body.dispatcher, called.args)
    context.add_linking_libs([loop.library])
    module = builder.module
    bridge = ir.Function(module, _bridge_kind(context), module.get_unique_name("bridge"))
    bridge.linkage = "internal"
    code = ir.IRBuilder(bridge.append_basic_block())
    place, count, part, parts, who = context.call_conv.get_arguments(bridge)
    kind = context.get_value_type(arguments)
    packed = code.load(code.inttoptr(place, kind.as_pointer()), typ=kind)
    values = [
        _uncounted(context, code, each, code.extract_value(packed, n))
        for n, each in enumerate(arguments.types)
    ]
    if in_rooms:
        values[0] = _row(context, code, arguments.types[0], values[0], who)
    start = code.udiv(code.mul(count, part), parts)
    stop = code.udiv(code.mul(count, code.add(part, part.type(1))), parts)
    # Where the loop raises, this returns at once.
    context.call_internal(code, loop.fndesc, called, [start, stop, *values])
    context.call_conv.return_value(code, context.get_dummy_value())
    return bridge


def _uncounted(context: Any, code: Any, kind: Any, value: Any) -> Any:
    """An array whose references nobody counts: the caller holds on to it while the loop runs.

    A loop counts with each slice that it takes, and two threads that count on one counter take it
    out of each other's cache: pooling took four times as long on two threads as on one.
    """
    from numba import types

    if not isinstance(kind, types.Array):
        return value
    array = context.make_array(kind)(context, code, value)
    array.meminfo, array.parent = (each.type(None) for each in (array.meminfo, array.parent))
    return array._getvalue()


def _row(context: Any, code: Any, kind: Any, rooms: Any, who: Any) -> Any:
    """``rooms[who]`` of a two-dimensional array."""
    from numba.np.arrayobj import populate_array

    rooms = context.make_array(kind)(context, code, rooms)
    row = context.make_array(kind.copy(ndim=1))(context, code)
    size, stride = code.extract_value(rooms.shape, 1), code.extract_value(rooms.strides, 1)
    number = context.get_data_type(kind.dtype)
    populate_array(  # type: ignore[no-untyped-call]
        row,
        data=code.gep(rooms.data, [code.mul(who, size)], source_etype=number),
        shape=[size],
        strides=[stride],
        itemsize=rooms.itemsize,
        meminfo=None,
        parent=rooms.parent,
    )
    return row._getvalue()


def _emit_call(raising: bool) -> Any:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def call(typing: Any, job: Any, count: Any, part: Any, parts: Any, who: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            loop, place = (builder.extract_value(values[0], n) for n in range(2))
            bridge = builder.inttoptr(loop, _bridge_kind(context).as_pointer())
            status, _ = context.call_conv.call_function(
                builder, bridge, types.none, [types.intp] * 5, [place, *values[1:]]
            )
            if raising:
                with builder.if_then(status.is_error):
                    context.call_conv.return_status_propagate(builder, status)
            return builder.zext(status.is_error, ir.IntType(64))

        return types.intp(job, *[types.intp] * 4), emit

    return call


@native(partial(_emit_call, raising=False))
def call(job: Any, count: int, part: int, parts: int, who: int) -> int:
    """Compute a part of a job as thread ``who``; 1 if it raised, 0 if not.

    This twin raises at once what the loop raises: in Python nobody has to carry it.
    """
    return call_again(job, count, part, parts, who)


@native(partial(_emit_call, raising=True))
def call_again(job: Any, count: int, part: int, parts: int, who: int) -> int:
    """`call` that raises what the loop raises."""
    job[0](count * part // parts, count * (part + 1) // parts, who)
    return 0
