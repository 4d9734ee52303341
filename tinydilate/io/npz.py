"""Weights from NumPy's ``.npz``: a zip archive with one ``.npy`` for each array.

A ``.npy`` is a short header, which says dtype and shape as a Python literal, and the numbers. It
can also hold any Python object, as a pickle; those are refused.
"""

from __future__ import annotations

import math
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from tinydilate.device import Array
from tinydilate.io.archives import Member, unpacking
from tinydilate.io.mapped import MappedFile, Stored
from tinydilate.io.recognition import DamagedError

_ENDING = ".npy"


def read_npz(file: MappedFile, members: dict[str, Member]) -> dict[str, Stored]:
    """The arrays of an archive by name; of each only the header is read.

    Raises
    ------
    DamagedError
        If a member is no array of numbers, or holds another count than its header says.
    """
    return {
        member.name.removesuffix(_ENDING): _describe(file, member) for member in members.values()
    }


def is_npz(members: dict[str, Member]) -> bool:
    """Whether every member is a ``.npy``."""
    return bool(members) and all(name.endswith(_ENDING) for name in members)


class _Zipped(Stored):
    """An array in an archive, unpacked when it is asked for."""

    def __init__(
        self, file: MappedFile, member: Member, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        super().__init__(shape, dtype)
        self._file, self._member = file, member

    def numbers(self) -> Array:
        with unpacking(self._file, self._member) as stream:
            try:
                array: Array = npy.read_array(stream, allow_pickle=False)
            except ValueError as error:
                raise DamagedError(f"{self._member.name!r} cannot be unpacked ({error})") from None
            if stream.read(1):
                raise DamagedError(f"{self._member.name!r} is longer than its header says")
        return array


def _describe(file: MappedFile, member: Member) -> Stored:
    with unpacking(file, member) as stream:
        shape, dtype = _header(stream, member.name)
        header = stream.tell()
    if dtype.kind not in "biuf":
        raise DamagedError(
            f"{member.name!r} is an array of {dtype}: only numbers are read, for anything else may "
            "run code when it is opened"
        )
    if any(dim < 0 for dim in shape) or header + math.prod(shape) * dtype.itemsize != member.size:
        raise DamagedError(
            f"{member.name!r} holds another number of bytes than its shape {shape} takes"
        )
    return _Zipped(file, member, shape, dtype)


def _header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        version = npy.read_magic(stream)
        shape, _, dtype = readers[version](stream)
    except (ValueError, TypeError, SyntaxError, KeyError, RecursionError, MemoryError) as error:
        raise DamagedError(f"{name!r} in it is no array ({type(error).__name__})") from None
    return shape, dtype
