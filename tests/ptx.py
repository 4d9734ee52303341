"""Runs what NVIDIA's compiler makes of a GPU kernel, on a machine without a GPU.

Numba's simulator runs a kernel's Python: numbers have NumPy's types there, and nothing is compiled.
What a card runs comes from PTX, the assembly that the compiler writes: there a sum of two 32-bit
numbers may have 64 bits, a comparison the wrong sign, an address the wrong width. `Program` reads
that text and turns each of its basic blocks (instructions without a jump between them) into Python,
in which a register is an array with a number for each thread of a grid, its *lane*.

Threads that have jumped elsewhere are masked. Of all blocks at which lanes stand the first in the
text is run next: lanes that took different ways meet again where these come together. Lanes at a
barrier wait until all of their block do. Up to there some warps, drawn anew each time, go before
the others: what these should have written is missing then if a barrier is. Each load and store is
checked: whether its address is aligned, and whether it lies in memory that was asked for.

What our kernels need is here, and nothing else: an instruction that it does not know is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

LANES = 8192  # threads that are run together, about: those of whole blocks
WARP = 32  # lanes that a card runs together
REGISTER, DIGITS = r"(?:rs|rd|fd|[rfp])\d+", "0123456789"
DTYPES = {  # of registers, by the letters that their names begin with
    "p": "bool",
    "rs": "uint16",
    "r": "uint32",
    "rd": "uint64",
    "f": "float32",
    "fd": "float64",
}
RUNS = -1  # the barrier at which a lane stands that waits at none
EXIT = 2**31 - 1  # where a lane stands that has ended
MOST_BLOCKS, MOST_THREADS = (2**31 - 1, 65_535, 65_535), (1024, 1024, 64)  # along each axis
Three = tuple[int, int, int]


class EmulationError(Exception):
    """What a card would have answered with wrong numbers or not at all."""


# ---- memory ----------------------------------------------------------------------------------


NUMBERS = [np.dtype(f"uint{width}") for width in (8, 16, 32, 64)]
NUMBERS += [np.dtype(np.float32), np.dtype(np.float64)]


class Memory:
    """The card's main memory: some of the processor's, and a note of what was asked for."""

    def __init__(self, size: int = 2**33) -> None:  # the system gives what is written to
        memory = np.zeros(size, np.uint8)
        self.numbers = {dtype: memory.view(dtype) for dtype in NUMBERS}
        self.base, self.size = memory.ctypes.data, size
        self.asked_for = np.zeros(size // 4, np.bool_)  # every four bytes
        self.next = 0
        self.sizes: dict[int, int] = {}  # by where they begin
        self.free: dict[int, list[int]] = {}  # where they begin, by size

    def take(self, size: int) -> int:
        """The address of so many bytes, the first of them nan, with room to the next."""
        waiting = self.free.get(size)
        start = waiting.pop() if waiting else self.next
        if start == self.next:
            self.next += -(-size // 256) * 256 + 256
            if self.next > self.size:
                raise MemoryError
        self.sizes[start] = size
        self.ask_for(self.base + start, size)
        self.numbers[NUMBERS[0]][start : start + min(size, 2**22)] = 255
        return self.base + start

    def ask_for(self, address: int, size: int, wanted: bool = True) -> None:
        """Take note that so many bytes may be read and written, or may not."""
        start = address - self.base
        self.asked_for[start // 4 : (start + size + 3) // 4] = wanted

    def give_back(self, address: int) -> None:
        size = self.sizes.pop(address - self.base)
        self.ask_for(address, size, wanted=False)
        self.free.setdefault(size, []).append(address - self.base)

    def places(self, address: Any, width: int) -> Any:
        """Which numbers of so many bytes stand at some addresses; checked."""
        start = address - np.uint64(self.base)  # one before the first is a very large one
        inside = not np.any(start > np.uint64(self.size - width))
        ends = (start, start + np.uint64(width - 1)) if inside else ()
        if not inside or not all(np.all(self.asked_for[end // np.uint64(4)]) for end in ends):
            raise EmulationError(f"{width} bytes of the card's memory that nobody asked for")
        return start // np.uint64(width)


# ---- reading ---------------------------------------------------------------------------------


class Block(NamedTuple):
    """Instructions without a jump between them.

    Attributes
    ----------
    body : function of a grid and a mask
        Runs them. It returns where all lanes go on: the number of a block; or a condition, and the
        numbers for the lanes where it is true and where it is not.
    barrier : bool
        Whether the lanes wait at its end for the others.
    """

    body: Callable[[Any, Any], Any]
    barrier: bool


class Program:
    """A kernel's PTX, read.

    Attributes
    ----------
    blocks : list of Block
    registers : list of str
    parameters : int
        How many there are, of eight bytes each.
    shared_size : int
        Bytes of shared memory a block.
    most : int
        Threads that a block may have.
    """

    def __init__(self, text: str) -> None:
        text = re.sub(r"//[^\n]*", "", text)
        start = text.index(".entry")
        begin = text.index("{", start)
        header, code = text[start:begin], text[begin:].partition(".func")[0]
        self.parameters = len(re.findall(r"\.param", header))
        most = re.search(r"\.maxntid (\d+), (\d+), (\d+)", header)
        self.most = int(np.prod([int(n) for n in most.groups()])) if most else 1024
        self.registers = sorted(set(re.findall(rf"%({REGISTER})", code)))
        shared = re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\];", text)
        self.shared_size, places = 0, {}
        for align, name, size in shared:
            places[name] = -(-self.shared_size // int(align)) * int(align)
            self.shared_size = places[name] + int(size)
        parts, labels = _split(code)
        self.blocks = [
            Writer(places, labels).block(number, part) for number, part in enumerate(parts)
        ]

    def run(self, memory: Memory, blocks: Three, threads: Three, words: bytes) -> None:
        """Run a grid; ``words`` are its arguments, of eight bytes each."""
        size = int(np.prod(threads))
        if size > self.most:
            raise EmulationError(f"{size} threads a block; its launch bounds allow {self.most}")
        for given, most in ((blocks, MOST_BLOCKS), (threads, MOST_THREADS)):
            if any(not 1 <= n <= limit for n, limit in zip(given, most, strict=True)):
                raise EmulationError(f"a grid or block of {given}; a card takes {most} at most")
        count, each = int(np.prod(blocks)), max(1, LANES // size)
        with np.errstate(all="ignore"):
            for first in range(0, count, each):
                numbers = np.arange(first, min(count, first + each))
                Grid(self, memory, blocks, threads, numbers, words).run()


def _split(code: str) -> tuple[list[list[str]], dict[str, int]]:
    """The statements of each block, and the numbers of those that have a label."""
    code = "\n".join(line for line in code.splitlines() if line.strip() not in ("{", "}"))
    code = re.sub(r"(?<=\s)\.(pragma|reg|param)\b[^;]*;", "", code)
    code = re.sub(r"(\$\w+):", r"\1:;", code)
    parts: list[list[str]] = [[]]
    labels: dict[str, int] = {}
    for statement in (" ".join(each.split()) for each in code.split(";")):
        if statement.endswith(":"):
            if parts[-1]:
                parts.append([])
            labels[statement[:-1]] = len(parts) - 1
        elif statement:
            parts[-1].append(statement)
            if re.match(r"(@\S+ )?(bra|ret|bar)\b", statement):
                parts.append([])
    return parts, labels


class Writer:
    """Writes a block's instructions as Python, in which ``R`` is the grid and ``m`` the mask."""

    def __init__(self, places: dict[str, int], labels: dict[str, int]) -> None:
        self.places, self.labels = places, labels  # in shared memory, and of blocks
        self.constants: dict[str, Any] = {}

    def block(self, number: int, statements: list[str]) -> Block:
        lines, goes_on, barrier = [], f"return {number + 1}", False
        for statement in statements:
            guard = re.fullmatch(r"@(!?)(%p\d+) bra (?:\.uni )?(\S+)", statement)
            if guard:
                negated, name, label = guard.groups()
                condition = ("~" if negated else "") + self.read(name, "pred")
                goes_on = f"return {condition}, {self.labels[label]}, {number + 1}"
            elif re.match(r"bra(\.uni)? ", statement):
                goes_on = f"return {self.labels[statement.split()[-1]]}"
            elif statement == "ret":
                goes_on = f"return {EXIT}"
            elif statement == "bar.sync 0":
                barrier = True
            else:
                lines += self.instruction(statement)
        source = "def body(R, m):\n" + "".join(f"    {line}\n" for line in [*lines, goes_on])
        names = {**self.constants, **HELPERS}
        exec(compile(source, "<a block of PTX>", "exec"), names)
        return Block(names["body"], barrier)

    # Operands.

    def read(self, text: str, kind: str) -> str:
        """An operand as Python; what is written as a number has the width of the type."""
        text = text.strip()
        if text.startswith("%"):
            return f"R.{text[1:].replace('.', '_')}"
        if text.startswith("0f"):
            return self.constant(np.uint32(int(text[2:], 16)).view(np.float32))
        if text.startswith("0d"):
            return self.constant(np.uint64(int(text[2:], 16)).view(np.float64))
        if kind == "pred":
            return self.constant(np.bool_(int(text)))
        value = self.places[text] if text in self.places else int(text, 0)
        width = int(re.sub(r"\D", "", kind))
        return self.constant(np.dtype(f"uint{width}").type(value % 2**width))

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        return name

    def address(self, text: str) -> str:
        """What stands in brackets: a register or a name, and bytes from there."""
        base, _, offset = text.strip("[] ").partition("+")
        base = self.read(base, "u64")
        return f"({base} + {self.constant(np.uint64(int(offset) % 2**64))})" if offset else base

    def write(self, register: str, value: str) -> str:
        name = register.strip("% ")
        return f"R.{name} = put(m, R.{name}, {value}, {DTYPES[name.rstrip(DIGITS)]!r})"

    # Instructions.

    def instruction(self, statement: str) -> list[str]:
        name, _, rest = statement.partition(" ")
        kinds = name.split(".")
        operands = [part.strip() for part in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s][^,]*", rest)]
        if kinds[0] in ("ld", "st"):
            return self.access(kinds, operands)
        if name == "membar.gl":  # a lane sees at once what another wrote
            return []
        if kinds[0] == "call":
            return self.call(rest)
        if name == "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32":
            return self.product(operands)
        if name == "mov.b64" and "{" in rest:
            return self.halves(operands)
        if name == "atom.global.add.u32":
            address, value = self.address(operands[1]), self.read(operands[2], "u32")
            added = self.write(operands[0], f"R.add_up(m, {address}, {value})")
            return [f"check_alignment(m, {address}, 4)", added]
        rule = rule_of(name)
        if rule is None:
            raise EmulationError(f"an instruction that the emulation does not know: {statement}")
        types = [kinds[-1]] * 3 + ["u32"] * 2
        types[1] = "u32" if kinds[0] in ("shl", "shr") else types[1]
        types[2] = {"selp": "pred", "bfi": "u32"}.get(kinds[0], types[2])
        values = [self.read(text, kind) for text, kind in zip(operands[1:], types, strict=False)]
        return [self.write(operands[0], rule(kinds, *values))]

    def access(self, kinds: list[str], operands: list[str]) -> list[str]:
        """A load, ``ld.space.type value, [place]``; a store, ``st.space.type [place], value``."""
        loads, space, kind = kinds[0] == "ld", kinds[1], kinds[-1]
        value, place = operands if loads else reversed(operands)
        if space == "param":
            return self.pass_on(loads, value, place, kind)
        if space not in ("global", "shared"):
            raise EmulationError(f"a memory that the emulation does not know: {'.'.join(kinds)}")
        address, width = self.address(place), int(re.sub(r"\D", "", kind)) // 8
        names = re.findall(r"[%\w]+", value) if value.startswith("{") else [value]
        lines = [f"place = {address}", f"check_alignment(m, place, {width * len(names)})"]
        for n, name in enumerate(names):
            at = f"place + {self.constant(np.uint64(n * width))}"
            if loads:
                found = f"R.load(m, {space!r}, {at}, {kind!r})"
                lines.append(self.write(name, f"extended({found}, {kind!r})"))
            else:
                lines.append(f"R.store(m, {space!r}, {at}, {self.read(name, kind)}, {kind!r})")
        return lines

    def pass_on(self, loads: bool, value: str, place: str, kind: str) -> list[str]:
        """The kernel's arguments, and those of a function that it calls."""
        own = re.search(r"_param_(\d+)\]", place)
        if own:
            return [self.write(value, f"extended(R.argument({own.group(1)}, {kind!r}), {kind!r})")]
        name = re.sub(r"\W.*", "", place.strip("["))
        if loads:
            return [self.write(value, f"R.{name}")]
        return [f"R.{name} = {self.read(value, kind)}"]

    def call(self, rest: str) -> list[str]:
        name = re.search(r"\), (\w+), \(", rest).group(1)
        if name not in FUNCTIONS:
            raise EmulationError(f"a function that the emulation does not know: {name}")
        given = ", ".join(f"R.{each}" for each in re.findall(r"\bparam\d+", rest))
        return [f"R.retval0 = FUNCTIONS[{name!r}]({given})"]

    def halves(self, operands: list[str]) -> list[str]:
        """``mov.b64`` of two registers into one, or the other way."""
        if operands[0].startswith("{"):
            whole = f"as_bits({self.read(operands[1], 'b64')})"
            names = re.findall(r"[%\w]+", operands[0])
            parts = zip(names, (whole, f"({whole} >> HALF)"), strict=True)
            return [self.write(to, f"{x}.astype('uint32')") for to, x in parts if to != "%temp"]
        low, high = (self.read(name, "b32") for name in re.findall(r"[%\w]+", operands[1]))
        return [
            self.write(operands[0], f"{low}.astype('uint64') | ({high}.astype('uint64') << HALF)")
        ]

    def product(self, operands: list[str]) -> list[str]:
        """``mma.sync``: see `tensor_cores`."""
        sums, *parts = [re.findall(r"%\w+", operand) for operand in operands]
        given = ", ".join(f"({', '.join(self.read(x, 'f32') for x in part)})" for part in parts)
        lines = [f"sums = tensor_cores(m, {given})"]
        return lines + [self.write(name, f"sums[{n}]") for n, name in enumerate(sums)]


# ---- running ---------------------------------------------------------------------------------


class Grid:
    """Some blocks of a grid while they run.

    Each register is an attribute: an array with a number for each lane, or one number if it is that
    of all lanes.
    """

    def __init__(
        self,
        program: Program,
        memory: Memory,
        blocks: Three,
        threads: Three,
        numbers: Any,
        words: bytes,
    ) -> None:
        self.program, self.memory, self.words = program, memory, words
        self.chance = np.random.default_rng(int(numbers[0]))
        self.size = int(np.prod(threads))  # of a block
        self.lanes = self.size * len(numbers)
        thread = np.tile(np.arange(self.size), len(numbers))
        self._tell("tid", threads, thread)
        self._tell("ctaid", blocks, np.repeat(numbers, self.size))
        for name in program.registers:
            setattr(self, name, np.dtype(DTYPES[name.rstrip(DIGITS)]).type(0))
        room = -(-program.shared_size // 16) * 16
        shared = np.full(max(16, room * len(numbers)), 255, np.uint8)
        self.shared = {dtype: shared.view(dtype) for dtype in NUMBERS}
        self.base = np.repeat(np.arange(len(numbers), dtype=np.uint64) * np.uint64(room), self.size)

    def _tell(self, name: str, counts: Three, given: Any) -> None:
        """Where each lane is along three axes, and how many there are."""
        x, y, _ = counts
        along = given % x, given // x % y, given // (x * y)
        for axis, count, place in zip("xyz", counts, along, strict=True):
            setattr(self, f"{name}_{axis}", place.astype(np.uint32))
            setattr(self, f"n{name}_{axis}", np.uint32(count))

    def run(self) -> None:
        """Run blocks until all lanes have ended."""
        at = np.zeros(self.lanes, np.int64)  # where each lane stands
        waits = np.full(self.lanes, RUNS)  # at which barrier
        ahead = self._draw()
        while True:
            running = (waits == RUNS) & (at != EXIT)
            if not running.any():
                if (waits == RUNS).all():
                    return
                self._check_who_waits(waits.reshape(-1, self.size))
                waits[:], ahead = RUNS, self._draw()
                continue
            first = running & ahead
            running = first if first.any() else running
            number = int(at[running].min())
            mask = running & (at == number)
            block = self.program.blocks[number]
            goes_on = block.body(self, None if mask.all() else mask)
            if isinstance(goes_on, tuple):
                goes_on = np.where(*goes_on)
            at = np.where(mask, goes_on, at)
            if block.barrier:
                waits = np.where(mask, number, waits)

    def _draw(self) -> Any:
        """The lanes that go before the others up to the next barrier: some warps of each block.

        Without shared memory they have nothing to tell each other, and all go together.
        """
        if not self.program.shared_size:
            return np.ones(self.lanes, np.bool_)
        warps = -(-self.size // WARP)
        drawn = self.chance.random((self.lanes // self.size, warps)) < 0.5
        return np.repeat(drawn, WARP, axis=1)[:, : self.size].reshape(-1)

    def _check_who_waits(self, waits: Any) -> None:
        """Of each block (a row) either all lanes wait, at one barrier, or none."""
        waiting = waits != RUNS
        if np.any(waiting & (waits != waits.max(axis=1, keepdims=True))):
            raise EmulationError("threads of one block that wait at different barriers")
        if np.any(waiting.any(axis=1) & ~waiting.all(axis=1)):
            raise EmulationError(
                "threads that wait at a barrier for others of their block, which ended"
            )

    # What instructions ask for.

    def argument(self, number: int, kind: str) -> Any:
        return np.frombuffer(self.words, dtype_of(kind), 1, 8 * number)[0]

    def load(self, mask: Any, space: str, address: Any, kind: str) -> Any:
        places, numbers = self._places(mask, space, address, kind)
        found = numbers[places]
        if mask is None or not np.ndim(found):
            return found
        spread = np.zeros(self.lanes, found.dtype)
        spread[mask] = found
        return spread

    def store(self, mask: Any, space: str, address: Any, value: Any, kind: str) -> None:
        places, numbers = self._places(mask, space, address, kind)
        value = value.view(numbers.dtype)
        if np.ndim(value):
            value = value if mask is None else value[mask]
            value = value if np.ndim(places) else value[-1]  # all to one place: the last lane's
        numbers[places] = value

    def _places(self, mask: Any, space: str, address: Any, kind: str) -> tuple[Any, Any]:
        """Where the lanes of a mask read or write, and in what; checked."""
        dtype = dtype_of(kind)
        if mask is not None and np.ndim(address):
            address = address[mask]
        if space == "global":
            return self.memory.places(address, dtype.itemsize), self.memory.numbers[dtype]
        width = np.uint64(dtype.itemsize)
        last = self.program.shared_size - dtype.itemsize
        if last < 0 or np.any(address > np.uint64(last)):
            raise EmulationError("shared memory that the block does not have")
        base = self.base if mask is None else self.base[mask]
        return (address + base) // width, self.shared[dtype]

    def add_up(self, mask: Any, address: Any, value: Any) -> Any:
        """Add to the numbers at some places, one lane after the other; what was there before."""
        lanes = np.arange(self.lanes) if mask is None else np.flatnonzero(mask)
        before, numbers = np.zeros(self.lanes, np.uint32), self.memory.numbers[dtype_of("u32")]
        address, value = (np.broadcast_to(each, self.lanes) for each in (address, value))
        places = self.memory.places(address[lanes], 4)
        for lane, place in zip(lanes, places, strict=True):
            before[lane] = numbers[place]
            numbers[place] += value[lane]
        return before


def extended(value: Any, kind: str) -> Any:
    """What was read as a number with a sign, in as many bits as a register may have."""
    return value.view(f"int{kind[1:]}").astype("int64").view("uint64") if kind[0] == "s" else value


@cache
def dtype_of(kind: str) -> np.dtype[Any]:
    """Of a type in PTX, without its sign."""
    width = re.sub(r"\D", "", kind)
    return np.dtype(f"float{width}" if kind[0] == "f" else f"uint{width}")


def put(mask: Any, before: Any, value: Any, dtype: str) -> Any:
    """A register's next value: in bits what was computed, in as many as it has."""
    if value.dtype != dtype:
        bits = value.dtype.kind == "f" or dtype[0] == "f"
        if bits and value.dtype.itemsize != np.dtype(dtype).itemsize:
            raise EmulationError(f"{value.dtype} for a register of {dtype}")
        value = value.view(dtype) if bits else value.astype(dtype)
    return value if mask is None else np.where(mask, value, before)


def check_alignment(mask: Any, address: Any, width: int) -> None:
    address = address[mask] if mask is not None and np.ndim(address) else address
    if np.any(address % np.uint64(width)):
        raise EmulationError(f"{width} bytes at an address that is no multiple of {width}")


# ---- what instructions do --------------------------------------------------------------------


def signed(text: str, kinds: list[str]) -> str:
    """An operand with its sign, if the instruction's type has one."""
    return f"{text}.view('int{kinds[-1][1:]}')" if kinds[-1][0] == "s" else text


def both_signed(form: str) -> Callable[..., str]:
    return lambda kinds, a, b: form.format(signed(a, kinds), signed(b, kinds))


def setp(kinds: list[str], a: str, b: str) -> str:
    """A comparison; with a u behind it one that is true where there is a nan."""
    a, b = signed(a, kinds), signed(b, kinds)
    relation = kinds[1]
    if relation == "num":
        return f"({a} == {a}) & ({b} == {b})"
    if relation == "nan":
        return f"({a} != {a}) | ({b} != {b})"
    if relation == "ne" and kinds[-1][0] == "f":
        return f"({a} < {b}) | ({a} > {b})"
    if relation == "equ":
        return f"~(({a} < {b}) | ({a} > {b}))"
    opposites = {"neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
    if relation in opposites:
        return f"~({a} {opposites[relation]} {b})"
    relations = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    return f"{a} {relations[relation]} {b}"


def cvt(kinds: list[str], a: str) -> str:
    to, source = kinds[-2], kinds[-1]
    way = kinds[1]
    if way == "sat":
        return f"saturated({a})"
    if kinds[1:] == ["rna", "tf32", "f32"]:
        return f"tf32({a})"
    if source[0] == "f" and to[0] == "f":
        rounding = {"rmi": "np.floor", "rni": "np.rint", "rzi": "np.trunc", "rpi": "np.ceil"}
        return f"{rounding[way]}({a})" if way in rounding else f"{a}.astype('float{to[1:]}')"
    if source[0] == "f":
        assert way == "rzi", kinds
        return f"whole({a}, {to!r})"
    a = signed(f"{a}.astype('uint{source[1:]}')", kinds)  # of a wider register the lower half
    if to[0] == "f":
        return f"{a}.astype('float{to[1:]}')"
    return f"{a}.astype('{'int' if source[0] == 's' else 'uint'}{to[1:]}').astype('uint{to[1:]}')"


def quotient(a: Any, b: Any) -> Any:
    """Towards zero, as C does; of a division by zero PTX says nothing."""
    b = np.where(b == 0, 1, b).astype(b.dtype)
    down = a // b
    return (down + ((a - down * b != 0) & ((a < 0) != (b < 0)))).astype(a.dtype)


def remainder(a: Any, b: Any) -> Any:
    """What the quotient leaves, with the sign of a."""
    return (a - quotient(a, b) * b).astype(a.dtype)


def shifted(a: Any, by: Any, left: bool) -> Any:
    """Shifts by the width or more leave zeros, or the sign."""
    width = 8 * a.dtype.itemsize
    by = np.minimum(by, width - 1 if a.dtype.kind == "i" else width)
    far = by >= width
    by = np.where(far, 0, by).astype(a.dtype)
    moved = a << by if left else a >> by
    return np.where(far, 0, moved).astype(a.dtype)


def high_product(a: Any, b: Any) -> Any:
    """The upper half of a product of twice the width."""
    width = 8 * a.dtype.itemsize
    upper = (np.asarray(a).astype(object) * np.asarray(b).astype(object)) >> width
    return np.asarray(upper % 2**width).astype(f"uint{width}")


def wide_product(a: Any, b: Any) -> Any:
    """A product of 32-bit numbers in 64 bits."""
    wide = "int64" if a.dtype.kind == "i" else "uint64"
    return (a.astype(wide) * b.astype(wide)).view("uint64")


def fused(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once, or nearly so: in float32 by way of float64, which holds the product
    and rounds the sum; in float64 by way of the processor's longest floats.
    """
    if a.dtype == np.float32:
        return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(
            np.float32
        )
    long = np.longdouble
    return (a.astype(long) * b.astype(long) + c.astype(long)).astype(np.float64)


def fused_down(a: Any, b: Any, c: Any) -> Any:
    """The same in float32, rounded towards minus infinity (what float64 has of the sum)."""
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    near = exact.astype(np.float32)
    return np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)


def inserted(a: Any, b: Any, start: Any, length: Any) -> Any:
    mask = ((np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)) << start.astype(np.uint64)
    placed = (a.astype(np.uint64) << start.astype(np.uint64)) & mask
    return ((b.astype(np.uint64) & ~mask) | placed).astype(np.uint32)


def saturated(a: Any) -> Any:
    return np.where(a > 0, np.minimum(a, np.float32(1)), np.float32(0)).astype(np.float32)


def tf32(a: Any) -> Any:
    """The nearest number with ten bits of mantissa, ties away from zero; as its bits."""
    bits = a.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(a), rounded, bits).astype(np.uint32)


def whole(a: Any, kind: str) -> Any:
    """A float cut to a whole number, or to the nearest that there is; of nan the card makes
    the number with the first bit alone.
    """
    info = np.iinfo(f"{'int' if kind[0] == 's' else 'uint'}{kind[1:]}")
    cut = np.trunc(a.astype(np.float64))
    inside = np.where((cut > info.min) & (cut < info.max), cut, 0).astype(info.dtype)
    found = np.where(cut >= info.max, info.max, np.where(cut <= info.min, info.min, inside))
    bits = found.astype(info.dtype).view(f"uint{kind[1:]}")
    return np.where(np.isnan(a), 2 ** (int(kind[1:]) - 1), bits).astype(bits.dtype)


def tensor_cores(mask: Any, a: Any, b: Any, c: Any) -> Any:
    """Sums c + a @ b, (16, 8) by (8, 8), of which each of a warp's 32 lanes holds some numbers."""
    if mask is not None and np.any(mask.reshape(-1, 32) != mask.reshape(-1, 32)[:, :1]):
        raise EmulationError("a product of matrices by some of a warp's lanes")
    lanes = len(next(each for each in (*a, *b, *c) if np.ndim(each)))
    # Of 23 bits of a mantissa the tensor cores look at ten.
    a, b = (
        [(x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in y] for y in (a, b)
    )
    a, b = ([np.broadcast_to(x, lanes).reshape(-1, 32) for x in y] for y in (a, b))
    c = [np.broadcast_to(x, lanes).reshape(-1, 32) for x in c]
    warps, lane = lanes // 32, np.arange(32)
    g, t = lane // 4, lane % 4
    left, right, sums = (np.zeros((warps, *s), np.float64) for s in ((16, 8), (8, 8), (16, 8)))
    for n, (row, k) in enumerate([(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)]):
        left[:, row, k] = a[n]
    for n, k in enumerate([t, t + 4]):
        right[:, k, g] = b[n]
    places = [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)]
    for n, (row, column) in enumerate(places):
        sums[:, row, column] = c[n]
    sums += left @ right
    return [sums[:, row, column].astype(np.float32).reshape(-1) for row, column in places]


FUNCTIONS = {"__internal_accurate_pow": np.power}  # of a positive number, in libdevice
HELPERS = {
    "np": np,
    "put": put,
    "check_alignment": check_alignment,
    "as_bits": lambda x: x.view(np.uint64),
    "HALF": np.uint64(32),
    "FUNCTIONS": FUNCTIONS,
}
for helper in (
    extended,
    quotient,
    remainder,
    shifted,
    high_product,
    wide_product,
    fused,
    fused_down,
    inserted,
    saturated,
    tf32,
    whole,
    tensor_cores,
):
    HELPERS[helper.__name__] = helper
WIDE = both_signed("wide_product({}, {})")
WHOLE, FLOAT = r"[su](16|32|64)", r"f(32|64)"
BITS = r"(b16|b32|b64|pred)"
# Instructions by their whole names: one with a part that is not here (".sat", another rounding) is
# another instruction. To each belongs what writes it as Python, of its name's parts and operands.
RULES: list[tuple[str, Callable[..., str]]] = [
    (rf"add\.{WHOLE}|add(\.rn)?\.{FLOAT}", lambda kinds, a, b: f"{a} + {b}"),
    (rf"sub\.{WHOLE}|sub(\.rn)?\.{FLOAT}", lambda kinds, a, b: f"{a} - {b}"),
    (rf"mul\.lo\.{WHOLE}|mul(\.rn)?\.{FLOAT}", lambda kinds, a, b: f"{a} * {b}"),
    (rf"mad\.lo\.{WHOLE}", lambda kinds, a, b, c: f"{a} * {b} + {c}"),
    (r"mul\.hi\.[su](32|64)", both_signed("high_product({}, {})")),
    (r"mul\.wide\.[su]32", WIDE),
    (r"mad\.wide\.[su]32", lambda kinds, a, b, c: f"{WIDE(kinds, a, b)} + {c}"),
    (rf"fma\.rn\.{FLOAT}", lambda kinds, a, b, c: f"fused({a}, {b}, {c})"),
    (r"fma\.rm\.f32", lambda kinds, a, b, c: f"fused_down({a}, {b}, {c})"),
    (rf"div\.{WHOLE}", both_signed("quotient({}, {})")),
    (rf"div\.rn\.{FLOAT}", lambda kinds, a, b: f"{a} / {b}"),
    (rf"rem\.{WHOLE}", both_signed("remainder({}, {})")),
    (rf"min\.{WHOLE}", both_signed("np.minimum({}, {})")),
    (rf"max\.{WHOLE}", both_signed("np.maximum({}, {})")),
    (rf"min\.{FLOAT}", lambda kinds, a, b: f"np.fmin({a}, {b})"),  # of a nan and a number
    (rf"max\.{FLOAT}", lambda kinds, a, b: f"np.fmax({a}, {b})"),  # they give the number
    (rf"abs\.({FLOAT}|s(32|64))", lambda kinds, a: f"np.abs({signed(a, kinds)})"),
    (rf"neg\.({FLOAT}|s(32|64))", lambda kinds, a: f"-{a}"),
    (rf"sqrt\.rn\.{FLOAT}", lambda kinds, a: f"np.sqrt({a})"),
    (rf"rcp\.(rn|approx\.ftz)\.{FLOAT}", lambda kinds, a: f"{a}.dtype.type(1) / {a}"),
    (r"ex2\.approx\.ftz\.f32", lambda kinds, a: f"np.exp2({a})"),
    (rf"and\.{BITS}", lambda kinds, a, b: f"{a} & {b}"),
    (rf"or\.{BITS}", lambda kinds, a, b: f"{a} | {b}"),
    (rf"xor\.{BITS}", lambda kinds, a, b: f"{a} ^ {b}"),
    (rf"not\.{BITS}", lambda kinds, a: f"~{a}"),
    (r"shl\.b(32|64)", lambda kinds, a, by: f"shifted({a}, {by}, True)"),
    (r"shr\.[su](32|64)", lambda kinds, a, by: f"shifted({signed(a, kinds)}, {by}, False)"),
    (r"bfi\.b32", lambda kinds, a, b, start, length: f"inserted({a}, {b}, {start}, {length})"),
    (r"selp\.[busf](16|32|64)", lambda kinds, a, b, p: f"np.where({p}, {a}, {b})"),
    (rf"setp\.(eq|ne|l[te]|g[te])\.({WHOLE}|b(16|32|64))", setp),
    (rf"setp\.(eq|ne|l[te]|g[te]|equ|neu|l[te]u|g[te]u|num|nan)\.{FLOAT}", setp),
    (r"mov\.([busf](16|32|64)|pred)", lambda kinds, a: a),
    (r"cvta\.to\.global\.u64", lambda kinds, a: a),
    (r"cvt\.[su](8|16|32|64)\.[su](8|16|32|64)", cvt),
    (r"cvt\.rn\.f(32|64)\.[su](32|64)|cvt\.f64\.f32|cvt\.rn\.f32\.f64", cvt),
    (r"cvt\.r[nmpz]i\.(f32\.f32|f64\.f64)|cvt\.rzi\.[su](32|64)\.f(32|64)", cvt),
    (r"cvt\.sat\.f32\.f32|cvt\.rna\.tf32\.f32", cvt),
]


@cache
def rule_of(name: str) -> Callable[..., str] | None:
    return next((rule for names, rule in RULES if re.fullmatch(names, name)), None)
