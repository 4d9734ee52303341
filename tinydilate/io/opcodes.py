"""The instructions of a pickle, carried out for tensors and nothing else.

A pickle is a program for a small machine with a stack. Most of its instructions push a number, a
text or an empty list, or put what lies on top into the list below. Two are dangerous: GLOBAL names
any function of any Python module, and REDUCE calls it. Python's own reader carries them out, so
that opening a file can run whatever its author wished.

This machine knows the same instructions, and a short list of names. Each stands for something that
we build here, from plain values; no name is ever looked up in Python, nothing is imported, and
whatever is not on the list is refused by name. What the machine makes is lists, tuples,
dictionaries, texts, numbers, and `TensorNote`: where a tensor's numbers lie, not the numbers.

===============  ===========================================================================
instruction      what it does
===============  ===========================================================================
GLOBAL           push something by its name; here only names that we know
REDUCE           call the thing below the top with the tuple on top; here only those we know
BUILD            give the thing below the top a state; here only read over
BINPERSID        push what lies outside the pickle: here a storage, the numbers of a tensor
BINPUT, BINGET   remember the top under a number, push what was remembered
MARK             note the height of the stack, for lists and tuples of any length
===============  ===========================================================================

Reference: Python's pickletools, which describes every instruction; PyTorch's serialization.py for
what the persistent ids mean.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydilate.io.mapped import MOST_AXES
from tinydilate.io.recognition import DamagedError, UnwantedError

# Bounds what a hostile file can cost: VGG-16 takes some 1,000 instructions and 4 KB.
MOST_INSTRUCTIONS = 1_000_000
LONGEST = 4 * 2**20


class StorageType(NamedTuple):
    """A kind of numbers that PyTorch stores: its name there, and the dtype, little-endian."""

    name: str
    dtype: str


class Storage(NamedTuple):
    """A line of numbers beside the pickle."""

    key: str
    type: StorageType
    length: int


class TensorNote(NamedTuple):
    """Where a tensor's numbers lie: a window into a storage.

    Attributes
    ----------
    storage : Storage
    offset : int
        Of the first number.
    shape, strides : tuple of int
        Strides in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Slice(NamedTuple):
    """A storage from a place on: tensors count from there."""

    storage: Storage
    start: int


STORAGE_TYPES = {
    kind.name: kind
    for kind in (
        StorageType("FloatStorage", "<f4"),
        StorageType("DoubleStorage", "<f8"),
        StorageType("HalfStorage", "<f2"),
        StorageType("BFloat16Storage", "<u2"),  # the upper halves of float32
        StorageType("LongStorage", "<i8"),
        StorageType("IntStorage", "<i4"),
        StorageType("ShortStorage", "<i2"),
        StorageType("CharStorage", "|i1"),
        StorageType("ByteStorage", "|u1"),
        StorageType("BoolStorage", "|b1"),
    )
}

# ---- what the names stand for ----------------------------------------------------------------


class _Name(NamedTuple):
    """Something that REDUCE may call: takes plain values, returns plain values."""

    name: str
    call: Callable[[tuple[Any, ...]], Any]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """OrderedDict(), or OrderedDict([[key, value], ...]) as Python 2 wrote it."""
    made: dict[Any, Any] = {}
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DamagedError("it has a dictionary that is made of other things than pairs")
        made[_key(pair[0])] = pair[1]
    return made


def _tensor(arguments: tuple[Any, ...]) -> TensorNote:
    """Make a tensor of (storage, offset, shape, strides, ...): `_rebuild_tensor`, `..._v2`."""
    if len(arguments) < 4 or not isinstance(arguments[0], _Slice):
        raise DamagedError("it has a tensor without a storage")
    part, offset, shape, strides = arguments[:4]
    for sizes in (shape, strides):
        if not isinstance(sizes, tuple) or len(sizes) > MOST_AXES:
            raise DamagedError(
                f"it has a tensor whose shape is no tuple of up to {MOST_AXES} numbers"
            )
    whole = [offset, *shape, *strides]
    if any(type(number) is not int or number < 0 for number in whole):
        raise DamagedError("it has a tensor with an impossible shape, stride or offset")
    if len(shape) != len(strides):
        raise DamagedError("it has a tensor with another number of strides than of axes")
    return TensorNote(part.storage, part.start + offset, tuple(shape), tuple(strides))


def _parameter(arguments: tuple[Any, ...]) -> TensorNote:
    """Parameter(tensor, ...) is its tensor."""
    if not arguments or not isinstance(arguments[0], TensorNote):
        raise DamagedError("it has a parameter without a tensor")
    return arguments[0]


_NAMES: dict[str, Any] = {
    each.name: each
    for each in (
        _Name("collections.OrderedDict", _ordered_dict),
        _Name("torch._utils._rebuild_tensor", _tensor),
        _Name("torch._utils._rebuild_tensor_v2", _tensor),
        _Name("torch._utils._rebuild_parameter", _parameter),
        _Name("torch.nn.parameter.Parameter", _parameter),
    )
}
for _type in STORAGE_TYPES.values():
    _NAMES[f"torch.{_type.name}"] = _type
    _NAMES[f"torch.cuda.{_type.name}"] = _type


def _key(value: Any) -> Any:
    # Anything else may be a tuple of tuples of tuples..., which takes forever to compare.
    if not isinstance(value, str | int):
        raise DamagedError(f"it has a dictionary with a key of type {type(value).__name__}")
    return value


# ---- the machine -----------------------------------------------------------------------------

_MARK = object()


class Machine:
    """Carries out a pickle.

    Parameters
    ----------
    data : uint8 (size,)
        The file; pickles may lie one behind the other.
    start, stop : int
        Where the pickle begins, and where it has to have ended.

    Attributes
    ----------
    position : int
        Of the next byte; after `run`, of the first behind the pickle.
    storages : dict of names to Storage
        All that the pickle speaks of.
    """

    def __init__(self, data: NDArray[np.uint8], start: int, stop: int) -> None:
        self._bytes = data.data
        self.position = start
        self._stop = min(stop, start + LONGEST)
        self._stack: list[Any] = []
        self._left = MOST_INSTRUCTIONS
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """The object that the pickle describes.

        Raises
        ------
        DamagedError
            If the pickle is cut short or makes no sense, or wants anything but tensors.
        """
        begin = self.position
        if self._whole(1) != 0x80 or not 2 <= self._whole(1) <= 5:
            raise DamagedError(f"no pickle of protocol 2 to 5 begins at byte {begin:,}")
        while self._left > 0:
            self._left -= 1
            code = self._whole(1)
            if code == _STOP:
                return self._pop()
            step = _STEPS.get(code)
            if step is None:
                raise DamagedError(
                    f"byte {self.position - 1:,} holds the instruction {code:#04x}, which no file "
                    "of tensors needs"
                )
            step(self)
        raise DamagedError(f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions")

    # Reading what follows an instruction.

    def _take(self, count: int) -> bytes:
        if count > self._stop - self.position:
            raise DamagedError(f"its pickle is cut short at byte {self._stop:,}")
        self.position += count
        return bytes(self._bytes[self.position - count : self.position])

    def _skip(self, count: int) -> None:
        self._take(count)

    def _whole(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self._take(width), "little", signed=signed)

    def _line(self) -> str:
        letters = bytearray()
        while (letter := self._take(1)) != b"\n":
            letters += letter
            if len(letters) > 1000:
                raise DamagedError("it asks for something whose name has no end")
        return letters.decode("ascii", errors="replace")

    def _text(self, width: int, encoding: str = "utf-8") -> None:
        content = self._take(self._whole(width))
        self._push(content.decode(encoding, errors="replace"))

    # The stack.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise DamagedError(
                f"its pickle takes something from an empty stack at {self.position:,}"
            )
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        items: list[Any] = []
        while True:
            if not self._stack:
                raise DamagedError(
                    f"its pickle has no mark where it needs one, at {self.position:,}"
                )
            item = self._stack.pop()
            if item is _MARK:
                return items[::-1]
            items.append(item)

    def _top(self, kind: Any) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise DamagedError(
                f"its pickle fills something that cannot be filled at {self.position:,}"
            )
        return self._stack[-1]

    def _tuple(self, count: int) -> None:
        self._push(tuple([self._pop() for _ in range(count)][::-1]))

    def _append(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2:
            raise DamagedError("its pickle has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _pair(self) -> list[Any]:
        value, key = self._pop(), self._pop()
        return [key, value]

    # The memo.

    def _remember(self, number: int) -> None:
        self._memo[number] = self._top(object)

    def _recall(self, number: int) -> None:
        if number not in self._memo:
            raise DamagedError(f"its pickle recalls what it never remembered at {self.position:,}")
        self._push(self._memo[number])

    # Names, calls, storages.

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedError("it asks for something without a name")
        asked = f"{module}.{name}"
        if asked not in _NAMES:
            raise UnwantedError(
                f"it asks for {asked!r:.100}, and only tensors in dictionaries are read: anything "
                "else could run code. In PyTorch, save the state alone: "
                "torch.save(network.state_dict(), path)"
            )
        self._push(_NAMES[asked])

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise DamagedError("it calls something that is no function")
        if arguments and isinstance(arguments[0], list):  # these become a dictionary, each time
            self._left -= len(arguments[0])
        self._push(function.call(arguments))

    def _build(self) -> None:
        """A state: of an OrderedDict notes on versions, of a parameter whether it learns."""
        self._pop()
        self._top((dict, TensorNote))

    def _persistent(self) -> None:
        """('storage', type, key, where it was, count[, view]) -> the storage."""
        note = self._pop()
        if not isinstance(note, tuple) or not 5 <= len(note) <= 6 or note[0] != "storage":
            raise UnwantedError(
                "it holds more than a state: a whole network, perhaps. In PyTorch, save the state "
                "alone: torch.save(network.state_dict(), path)"
            )
        kind, key, count, view = note[1], note[2], note[4], (*note, None)[5]
        if not isinstance(kind, StorageType) or not isinstance(key, str) or type(count) is not int:
            raise DamagedError("it has a storage without type, name or length")
        storage = self.storages.setdefault(key, Storage(key, kind, count))
        if storage != Storage(key, kind, count):
            raise DamagedError(f"it describes the storage {key[:40]!r} in two ways")
        start = 0
        if view is not None:  # (name, offset, count): how parts of a storage were written once
            whole = isinstance(view, tuple) and len(view) == 3 and type(view[1]) is int
            start = view[1] if whole else -1
        if start < 0:
            raise DamagedError(f"it has an impossible part of the storage {key[:40]!r}")
        self._push(_Slice(storage, start))


_STOP = ord(".")
_STEPS: dict[int, Callable[[Machine], None]] = {
    # numbers and constants
    ord("N"): lambda m: m._push(None),  # NONE
    0x88: lambda m: m._push(True),  # NEWTRUE
    0x89: lambda m: m._push(False),  # NEWFALSE
    ord("K"): lambda m: m._push(m._whole(1)),  # BININT1
    ord("M"): lambda m: m._push(m._whole(2)),  # BININT2
    ord("J"): lambda m: m._push(m._whole(4, signed=True)),  # BININT
    0x8A: lambda m: m._push(m._whole(m._whole(1), signed=True)),  # LONG1
    ord("G"): lambda m: m._push(struct.unpack(">d", m._take(8))[0]),  # BINFLOAT
    # texts; Python 2 wrote its own as bytes (BINSTRING)
    ord("X"): lambda m: m._text(4),  # BINUNICODE
    0x8C: lambda m: m._text(1),  # SHORT_BINUNICODE
    ord("T"): lambda m: m._text(4, "latin-1"),  # BINSTRING
    ord("U"): lambda m: m._text(1, "latin-1"),  # SHORT_BINSTRING
    # containers
    ord("}"): lambda m: m._push({}),  # EMPTY_DICT
    ord("]"): lambda m: m._push([]),  # EMPTY_LIST
    ord(")"): lambda m: m._push(()),  # EMPTY_TUPLE
    ord("("): lambda m: m._push(_MARK),  # MARK
    ord("t"): lambda m: m._push(tuple(m._since_mark())),  # TUPLE
    0x85: lambda m: m._tuple(1),  # TUPLE1
    0x86: lambda m: m._tuple(2),  # TUPLE2
    0x87: lambda m: m._tuple(3),  # TUPLE3
    ord("a"): lambda m: m._append([m._pop()]),  # APPEND
    ord("e"): lambda m: m._append(m._since_mark()),  # APPENDS
    ord("s"): lambda m: m._set(m._pair()),  # SETITEM
    ord("u"): lambda m: m._set(m._since_mark()),  # SETITEMS
    # the memo
    ord("q"): lambda m: m._remember(m._whole(1)),  # BINPUT
    ord("r"): lambda m: m._remember(m._whole(4)),  # LONG_BINPUT
    0x94: lambda m: m._remember(len(m._memo)),  # MEMOIZE
    ord("h"): lambda m: m._recall(m._whole(1)),  # BINGET
    ord("j"): lambda m: m._recall(m._whole(4)),  # LONG_BINGET
    # names, calls, storages
    ord("c"): lambda m: m._global(m._line(), m._line()),  # GLOBAL
    0x93: lambda m: m._global(*m._pair()),  # STACK_GLOBAL
    ord("R"): Machine._call,  # REDUCE
    0x81: Machine._call,  # NEWOBJ
    ord("b"): Machine._build,  # BUILD
    ord("Q"): Machine._persistent,  # BINPERSID
    0x95: lambda m: m._skip(8),  # FRAME: how far to read ahead
}
