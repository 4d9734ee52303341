"""Weights from PyTorch's ``.pth``: a state dictionary, in either of its two layouts.

Both hold the same three things: a pickle that says which tensors there are and where in which
storage each lies (read by `tinydilate.io.opcodes`, never by Python's own reader), and the storages,
lines of numbers.

**The zip layout**, since PyTorch 1.6 (2020): a zip archive, nothing in it compressed.

==================  ========================================================================
``NAME/data.pkl``   the pickle
``NAME/data/0``     a storage, and so on, each at a multiple of 64 bytes
``NAME/byteorder``  "little" or "big"; older files have none, and are little
==================  ========================================================================

**The legacy layout**, before that, in which torchvision's VGG-16 was published: pickles one behind
the other, then the storages.

1. the number 0x1950a86a20f9469cfc6c
2. the layout's version, 1001
3. a dictionary about the machine, with "little_endian"
4. the state
5. a list of the storages' names; after it come the storages, each with its length in front, a
   number of 8 bytes

A tensor is a window into a storage: an offset, a shape, and strides, the steps from one number to
the next along each axis. Several may share a storage, and a transposed one has its strides in
another order.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from tinydilate.io.archives import Member
from tinydilate.io.mapped import BFloat16, InFile, MappedFile, Stored, Strided
from tinydilate.io.opcodes import LONGEST, Machine, Storage, TensorNote
from tinydilate.io.recognition import DamagedError, UnwantedError

_Order = Literal["<", ">"]  # of bytes: little-endian, or big-endian

_PICKLE = "/data.pkl"
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_STATES = ("state_dict", "model")  # where training programs keep the state among other things
_PARALLEL = "module."  # what DataParallel puts in front of every name
_SHARED = 4  # tensors may share numbers, but not without end


def read_zip_layout(file: MappedFile, members: dict[str, Member]) -> dict[str, Stored]:
    """The tensors of a state dictionary by name, from an archive.

    Raises
    ------
    DamagedError
        If the archive holds anything else, or a storage is missing or too short.
    """
    pickle = _pickle_of(members)
    folder = pickle.name.removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise UnwantedError(
            "it is a TorchScript program. In PyTorch, save the state alone: "
            "torch.save(network.state_dict(), path)"
        )
    if pickle.offset < 0 or pickle.size > LONGEST:
        raise DamagedError(f"{pickle.name!r} is compressed, or longer than {LONGEST:,} bytes")
    state = Machine(file.bytes, pickle.offset, pickle.offset + pickle.size).run()
    order = _byteorder(file, members.get(f"{folder}byteorder"))
    tensors = _tensors(state)
    offsets: dict[str, int] = {}
    for storage in {note.storage.key: note.storage for note in tensors.values()}.values():
        member = members.get(f"{folder}data/{storage.key}")
        if member is None or member.offset < 0:
            raise DamagedError(
                f"the storage {storage.key[:40]!r} is missing from it, or compressed"
            )
        _check_length(storage, member.size)
        offsets[storage.key] = member.offset
    return _located(file, tensors, offsets, order)


def is_zip_layout(members: dict[str, Member]) -> bool:
    """Whether an archive is one that PyTorch wrote."""
    return any(name.endswith(_PICKLE) for name in members)


def _pickle_of(members: dict[str, Member]) -> Member:
    found = [member for name, member in members.items() if name.endswith(_PICKLE)]
    if len(found) != 1:
        raise DamagedError(f"it has {len(found)} members called data.pkl")
    return found[0]


def _byteorder(file: MappedFile, member: Member | None) -> _Order:
    if member is None:
        return "<"
    content = file.bytes[member.offset : member.offset + min(member.size, 16)].tobytes()
    if member.offset < 0 or content not in (b"little", b"big"):
        raise DamagedError("it has an unknown order of bytes")
    return "<" if content == b"little" else ">"


def read_legacy_layout(file: MappedFile) -> dict[str, Stored]:
    """The tensors of a state dictionary by name, from a file of before PyTorch 1.6.

    Raises
    ------
    DamagedError
        If the file holds anything else, or is cut short.
    """
    position = 0
    objects: list[Any] = []
    storages: dict[str, Storage] = {}
    for _ in range(5):
        machine = Machine(file.bytes, position, file.size)
        objects.append(machine.run())
        position = machine.position
        storages |= machine.storages
        if objects[0] != _MAGIC:
            raise DamagedError("it is a pickle that PyTorch did not write")
    _, version, about, state, keys = objects
    if version != _VERSION or not isinstance(about, dict) or not isinstance(keys, list):
        raise DamagedError("it is of a version of PyTorch's layout that is not known")
    order: _Order = "<" if about.get("little_endian", True) else ">"
    tensors = _tensors(state)
    offsets: dict[str, int] = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise DamagedError("it lists a storage that nothing in it uses")
        length = int.from_bytes(file.bytes[position : position + 8].tobytes(), "little")
        position += 8
        if length != storage.length:
            raise DamagedError(
                f"the storage {key[:40]!r} has another length than its tensors expect"
            )
        offsets[key] = position
        position += length * np.dtype(storage.type.dtype).itemsize
        if position > file.size:
            raise DamagedError(
                f"it should go on until byte {position:,}, and ends at {file.size:,}: "
                "it is cut short"
            )
    missing = [key for key in storages if key not in offsets]
    if missing:
        raise DamagedError(f"the storage {missing[0][:40]!r} is missing from it")
    return _located(file, tensors, offsets, order)


# ---- tensors ---------------------------------------------------------------------------------


def _tensors(state: Any) -> dict[str, TensorNote]:
    """The tensors of a state by name; what else stands there, such as an epoch, is left out."""
    for name in _STATES:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict):
        raise DamagedError("it holds no dictionary of tensors")
    tensors = {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, TensorNote)
    }
    if not tensors:
        raise DamagedError("it holds a dictionary without a single tensor")
    if all(name.startswith(_PARALLEL) for name in tensors):
        tensors = {name.removeprefix(_PARALLEL): note for name, note in tensors.items()}
    return tensors


def _check_length(storage: Storage, size: int) -> None:
    expected = storage.length * np.dtype(storage.type.dtype).itemsize
    if size != expected:
        raise DamagedError(
            f"the storage {storage.key[:40]!r} has {size:,} bytes where its tensors expect "
            f"{expected:,}"
        )


def _located(
    file: MappedFile, tensors: dict[str, TensorNote], offsets: dict[str, int], order: _Order
) -> dict[str, Stored]:
    together = sum(math.prod(note.shape) for note in tensors.values())
    stored = {note.storage.key: note.storage.length for note in tensors.values()}
    if together > _SHARED * sum(stored.values()):
        raise DamagedError(f"its tensors claim {together:,} numbers of {sum(stored.values()):,}")
    return {
        name: _locate(file, name, note, offsets[note.storage.key], order)
        for name, note in tensors.items()
    }


def _locate(file: MappedFile, name: str, note: TensorNote, start: int, order: _Order) -> Stored:
    storage, shape = note.storage, note.shape
    dtype = np.dtype(storage.type.dtype).newbyteorder(order)
    steps = [(size - 1) * stride for size, stride in zip(shape, note.strides, strict=True)]
    count = math.prod(shape)
    # The last number that the window reaches; an empty one reaches none.
    last = note.offset + sum(steps) if count else 0
    if last >= max(1, storage.length) or count > storage.length:
        raise DamagedError(
            f"the tensor {name[:80]!r} of shape {shape} reaches beyond its storage of "
            f"{storage.length:,} numbers"
        )
    offset = start + note.offset * dtype.itemsize if count else start
    if _in_c_order(shape, note.strides):
        runs = [(offset, count, dtype.itemsize)]
        stored: Stored = InFile(file, runs, shape, dtype)
    else:
        strides = tuple(stride * dtype.itemsize for stride in note.strides)
        stored = Strided(file, offset, strides, shape, dtype)
    return BFloat16(stored) if storage.type.name == "BFloat16Storage" else stored


def _in_c_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether numbers that follow each other in C order follow each other in the storage."""
    expected = 1
    for size, stride in zip(shape[::-1], strides[::-1], strict=True):
        if size > 1 and stride != expected:  # the step along an axis of one is never taken
            return False
        expected *= size
    return True
