"""Zip archives, of which PyTorch and NumPy make their files: what is in them, and where.

A zip file ends with a directory. We read that, by Python's own ``zipfile``, and look at members
that are stored as they are where they lie in the mapped file. Members that are compressed are
unpacked when they are asked for, one at a time.

A zip bomb is a small file whose directory, or whose members, unpack to more than the memory
holds. So the directory's size is looked at before it is read, and what the members claim to hold
together is compared with the file that they came in.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

from tinydilate.io.mapped import MappedFile
from tinydilate.io.recognition import DamagedError

_END = b"PK\x05\x06"  # opens the record behind the directory; its size stands 12 bytes further
_END_LENGTH = 22
_LONG_END, _LONG_SIZE = b"PK\x06\x06", 40  # the same for archives beyond 4 GB
_LONGEST_COMMENT = 2**16
_LOCAL, _LOCAL_LENGTH = b"PK\x03\x04", 30  # stands before each member

_LARGEST_DIRECTORY = 4 * 2**20  # bytes, some 40,000 members
_RATIO, _SMALL = 100, 2**26  # unpacked by packed size; below 64 MiB nobody minds


class Member(NamedTuple):
    """One file in the archive.

    Attributes
    ----------
    name : str
    size : int
        In bytes, unpacked.
    offset : int
        Where its bytes begin in the archive if they are stored as they are, else -1.
    """

    name: str
    size: int
    offset: int


def read_directory(file: MappedFile) -> dict[str, Member]:
    """The members of a zip archive by name.

    Raises
    ------
    DamagedError
        If there is no directory, or it does not fit the file, or it describes a bomb.
    """
    _check_directory_size(file)
    with _failures_explained(), zipfile.ZipFile(file.path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(_SMALL, _RATIO * file.size):
        raise DamagedError(
            f"its {file.size:,} bytes would unpack to {unpacked:,}, which may be a trap that fills "
            "the memory"
        )
    members: dict[str, Member] = {}
    for entry in entries:
        if entry.flag_bits & 1:
            raise DamagedError(f"{entry.filename!r} in it is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DamagedError(f"{entry.filename!r} in it is compressed in a way that is not used")
        if entry.filename in members:
            raise DamagedError(f"it has two members called {entry.filename!r}")
        offset = _offset(file, entry) if entry.compress_type == zipfile.ZIP_STORED else -1
        members[entry.filename] = Member(entry.filename, entry.file_size, offset)
    return members


@contextmanager
def unpacking(file: MappedFile, member: Member) -> Iterator[IO[bytes]]:
    """Within the block, a member's bytes as a stream, checksum included.

    Raises
    ------
    DamagedError
        If they cannot be unpacked.
    """
    with (
        _failures_explained(),
        zipfile.ZipFile(file.path) as archive,
        archive.open(member.name) as stream,
    ):
        yield stream


@contextmanager
def _failures_explained() -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError,
        UnicodeDecodeError,
    ) as error:  # fmt: skip
        raise DamagedError(f"the archive is damaged or cut short ({error!s:.100})") from None


def _check_directory_size(file: MappedFile) -> None:
    tail_start = max(0, file.size - _LONGEST_COMMENT - _END_LENGTH)
    tail = file.bytes[tail_start:].tobytes()
    at = tail.rfind(_END)
    if at < 0:
        raise DamagedError("the archive has no directory at its end: it is cut short")
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    if size == 2**32 - 1:  # "look in the long record"
        at = tail.rfind(_LONG_END)
        size = int.from_bytes(tail[at + _LONG_SIZE : at + _LONG_SIZE + 8], "little")
    if size > _LARGEST_DIRECTORY:
        raise DamagedError(f"its directory claims {size:,} bytes")


def _offset(file: MappedFile, entry: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind a header of its own, with its name once more."""
    start = entry.header_offset
    header = file.bytes[max(0, start) : max(0, start) + _LOCAL_LENGTH].tobytes()
    if start < 0 or len(header) < _LOCAL_LENGTH or not header.startswith(_LOCAL):
        raise DamagedError(f"{entry.filename!r} is not where the archive's directory says")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = start + _LOCAL_LENGTH + names
    if entry.file_size != entry.compress_size or offset + entry.file_size > file.size:
        raise DamagedError(f"{entry.filename!r} reaches beyond the end of the archive")
    return offset
