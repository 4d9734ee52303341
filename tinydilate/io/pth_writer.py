"""State dictionaries that PyTorch loads: ``torch.load("net.pth", weights_only=True)``.

A ``.pth`` file is a zip archive whose members are stored as they are, not compressed:

=================  ===========================================================================
member             content
=================  ===========================================================================
NAME/data.pkl      a pickle: names, shapes, and for each array the number of its storage
NAME/byteorder     "little"
NAME/data/0, 1...  the storages: the numbers themselves, each at a multiple of 64 bytes
NAME/version       "3"
=================  ===========================================================================

A pickle is a program for a machine with a stack: each opcode, one letter, pushes something or joins
what was pushed. Python's pickle module can write a program that calls any function, which is why
such files are dangerous to read. We write only what a state dictionary needs, a dozen opcodes, and
for each array the same few lines. For one of shape (2, 3):

    _rebuild_tensor_v2(                         c    a function, by its module and name
        ("storage", FloatStorage, "0", "cpu", 6)     t Q  a storage, which the reader has to find
        0,                                      K    where in the storage the array begins
        (2, 3), (3, 1),                         t    its shape and its strides
        False,                                       whether it requires grad
        OrderedDict(),                          )R   hooks: none
    )                                           tR   call it

Source: the pickle opcodes of Python's ``pickletools``; the layout is that of ``torch.save``.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinydilate.errors import DataError
from tinydilate.io.files import Piece, byte_bar, bytes_of, chunks, whole_file
from tinydilate.io.opcodes import STORAGE_TYPES

# What PyTorch calls a storage of numbers of a type.
_STORAGES = {
    np.dtype(kind.dtype).name: kind.name
    for kind in STORAGE_TYPES.values()
    if kind.name != "BFloat16Storage"  # NumPy has no such numbers
}

_ALIGNMENT = 64  # bytes; torch can then map the file into memory
_ZIP64 = 2**31 - 1  # what Python's zipfile takes for the largest member of a plain zip file


def save_state_dict(path: Path | str, arrays: Mapping[str, Any], progress: str = "") -> None:
    """Write arrays by name to a file that ``torch.load`` reads, in one step and without a copy.

    Parameters
    ----------
    path : path
        Usually ends in ``.pth``. A file that stands there is replaced at the very end.
    arrays : mapping of names to arrays
        Arrays on the GPU are fetched one after the other.
    progress : str
        Title of a bar, shown where it takes longer than a second; none without it.

    Raises
    ------
    DataError
        If the file cannot be written, or an array has a type that is not one of PyTorch's.
    """
    path = Path(path)
    folder = path.stem or "archive"
    size = sum(array.size * array.dtype.itemsize for array in arrays.values())
    program = _program(arrays)  # before the file is opened: it may refuse an array
    with (
        whole_file(path, size + len(program)) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        byte_bar(size + len(program), progress) as bar,
    ):
        add = _Members(file, archive, folder, bar).add
        add("data.pkl", program)
        add("byteorder", b"little")
        for number, array in enumerate(arrays.values()):
            add(f"data/{number}", bytes_of(array))
        add("version", b"3\n")


class _Members:
    """Adds members to an archive so that the content of each begins at a multiple of 64 bytes."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str, bar: Any) -> None:
        self.file, self.archive, self.folder, self.bar = file, archive, folder, bar

    def add(self, name: str, content: Piece) -> None:
        info = zipfile.ZipInfo(f"{self.folder}/{name}")  # dated 1980: equal weights, equal files
        info.file_size = len(content)
        large = len(content) * 1.05 > _ZIP64  # zipfile's own rule
        # Before the content stand a header of 30 bytes, the name, and the extra fields: ours, and
        # for a large member one of 20 bytes. Ours makes up what is missing to the next multiple.
        start = self.file.tell() + 30 + len(info.filename.encode()) + 4 + 20 * large
        missing = -start % _ALIGNMENT
        info.extra = b"FB" + missing.to_bytes(2, "little") + b"Z" * missing
        with self.archive.open(info, "w", force_zip64=large) as member:
            for chunk in chunks([content], self.bar.update):
                member.write(chunk)


# ---- the pickle ------------------------------------------------------------------------------


def _program(arrays: Mapping[str, Any]) -> bytes:
    """The pickle of an ordered dictionary of arrays: protocol 2, as ``torch.save`` writes it."""
    parts = [b"\x80\x02", _EMPTY_DICTIONARY, b"("]
    for number, (name, array) in enumerate(arrays.items()):
        parts += [_text(name), _tensor(str(number), name, array)]
    return b"".join([*parts, b"u", b"."])  # u: set the pairs since "("; .: stop


def _tensor(key: str, name: str, array: Any) -> bytes:
    kind = array.dtype.name
    if kind not in _STORAGES:
        raise DataError(
            f"expected numbers of a type that PyTorch has; {name} is an array of {kind}. Convert "
            f"it first, for example with .astype(np.float32). It has {', '.join(_STORAGES)}."
        )
    place = _tuple(
        _text("storage"),
        _function("torch", _STORAGES[kind]),
        _text(key),
        _text("cpu"),
        _whole_number(array.size),
    )
    shape = tuple(array.shape)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    arguments = _tuple(
        place + b"Q",  # Q: leave it to the reader to find this thing
        _whole_number(0),
        _tuple(*map(_whole_number, shape)),
        _tuple(*map(_whole_number, strides)),
        b"\x89",  # False
        _EMPTY_DICTIONARY,
    )
    return _function("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"  # R: call it


def _text(characters: str) -> bytes:
    content = characters.encode()
    return b"X" + len(content).to_bytes(4, "little") + content


def _whole_number(number: int) -> bytes:
    """A number from 0 on, in one byte where it fits, else in as many as it takes."""
    if number < 256:
        return b"K" + number.to_bytes(1, "little")
    width = number.bit_length() // 8 + 1  # with room for the sign
    return b"\x8a" + width.to_bytes(1, "little") + number.to_bytes(width, "little")


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"  # (: mark the place; t: join what was pushed since


def _function(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


_EMPTY_DICTIONARY = _function("collections", "OrderedDict") + b")R"  # call it with nothing
