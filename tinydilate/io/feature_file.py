"""Feature maps on disk: one file for a data set, each map with its checksum, read without loading.

A context module is trained on what a front end says of every image, and the front end stays as it
is. So it is asked once, and its answers are stored. The original stores bare numbers behind a type
code and a shape; given a list of JPEG images it read "JFIF" as a shape and stopped with

    count == shape_size (2328 vs 1179258880)

(fyu/dilation, issue 36). Here every byte is accounted for:

====================  =============================================================
bytes                 what
====================  =============================================================
8                     magic number, ``TDFEATS`` and a newline
4                     version of the format, 1
4                     length of the header
4                     CRC-32 of the header
that length           the header: JSON, filled up with spaces to a multiple of 64
4 + 4 + C*h*w*size    record 0: CRC-32 of the rest of the record, 0, the map
...                   record 1 and so on; all of one length
====================  =============================================================

Whole numbers are unsigned and little-endian, as the maps are. The header says the shape, the number
type, how many records there are, and the *identity*: what the maps were made from, in any words
that JSON holds. Features of another identity are refused.

While it is written, the file has ".part" behind its name. Every record that is whole counts, so
writing goes on where it was interrupted.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tinydilate.device import Array
from tinydilate.errors import DataError, PositionError, ShapeError
from tinydilate.io.recognition import HEAD, foreign

MAGIC = b"TDFEATS\n"
VERSION = 1
DTYPES = ("float32", "float16")

_FIXED = 20  # bytes in front of the header's text
_LONGEST = 2**20  # bytes of a header: more is damage
_LARGEST = 2**29 - 4  # numbers in a map; NumPy's records have less than 2 GiB
_SETTLED = 64  # records after which what was written is forced to the disk


class Layout(NamedTuple):
    """What a file of features holds.

    Attributes
    ----------
    shape : (C, h, w)
        Of each map.
    dtype : {"float32", "float16"}
    records : int
    identity : mapping
        What the maps were made from.
    """

    shape: tuple[int, int, int]
    dtype: str
    records: int
    identity: Mapping[str, Any]

    @property
    def record(self) -> np.dtype[Any]:
        """One record as NumPy reads it."""
        number = np.dtype(self.dtype).newbyteorder("<")
        return np.dtype([("crc", "<u4"), ("place", "<u4"), ("map", number, self.shape)])

    @property
    def head(self) -> bytes:
        """All bytes in front of the first record."""
        fields = {**self._asdict(), "identity": dict(self.identity)}
        text = json.dumps(fields, sort_keys=True).encode()
        text += b" " * (-(_FIXED + len(text)) % 64)
        sizes = np.array([VERSION, len(text), zlib.crc32(text)], "<u4")
        return MAGIC + sizes.tobytes() + text

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.head) + self.records * self.record.itemsize


# ---- writing ---------------------------------------------------------------------------------


class FeatureWriter:
    """Writes a file of features, record after record; goes on with one that was begun.

    Parameters
    ----------
    path : path
    layout : Layout

    Attributes
    ----------
    done : int
        Records that are written; ask for it first, and begin with that one.

    Raises
    ------
    DataError
        If a file that was begun holds something else, or cannot be written to.
    """

    def __init__(self, path: Path | str, layout: Layout) -> None:
        self.path, self.layout = Path(path), _checked(layout)
        self.part = self.path.with_name(f"{self.path.name}.part")
        try:
            self.done = self._whole_records()
            self._file = self.part.open("r+b" if self.part.exists() else "w+b")
            if self.done == 0:
                self._file.write(layout.head)
            self._file.truncate(len(layout.head) + self.done * layout.record.itemsize)
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._failed(error) from None

    def _whole_records(self) -> int:
        """How many records of the part that is there are whole."""
        if not self.part.exists() or self.part.stat().st_size < len(self.layout.head):
            return 0
        begun = read_layout(self.part)
        _check_identity(self.part, begun, self.layout)
        count = (self.part.stat().st_size - len(begun.head)) // begun.record.itemsize
        if count == 0:
            return 0
        records = _mapped(self.part, begun._replace(records=min(count, begun.records)))
        damaged = (n for n, record in enumerate(records) if not _is_whole(record, n))
        return next(damaged, len(records))

    def append(self, features: Array) -> None:
        """Write the next map.

        Raises
        ------
        ShapeError
            If its shape is another one, or there are as many already as there should be.
        DataError
            If a number is not finite, or the disk is full.
        """
        if features.shape != self.layout.shape or self.done == self.layout.records:
            raise ShapeError(
                f"expected {self.layout.records} maps of shape {self.layout.shape}; got number "
                f"{self.done} of shape {features.shape}."
            )
        record = np.zeros((), self.layout.record)
        record["place"] = self.done
        with np.errstate(over="ignore"):  # what is too large for float16 is refused below
            record["map"] = features
        if not np.isfinite(record["map"]).all():
            raise DataError(
                f"expected finite features; got nan or infinity in number {self.done}. Check the "
                "front end's weights"
                + (", or store float32." if self.layout.dtype == "float16" else ".")
            )
        record["crc"] = zlib.crc32(record.tobytes()[4:])
        try:
            self._file.write(record.tobytes())
            self.done += 1
            if self.done % _SETTLED == 0:
                self._settle()
        except OSError as error:
            raise self._failed(error) from None

    def finish(self) -> None:
        """Give the file its name, now that it is whole.

        Raises
        ------
        DataError
            If records are missing, or the file cannot be renamed.
        """
        if self.done < self.layout.records:
            raise DataError(
                f"expected {self.layout.records} maps in {self.path}; got {self.done}. Write the "
                "others first."
            )
        try:
            self._settle()
            self._file.close()
            os.replace(self.part, self.path)
        except OSError as error:
            raise self._failed(error) from None

    def _settle(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _failed(self, error: OSError) -> DataError:
        return DataError(
            f"expected to write {self.layout.size:,} bytes of features to {self.path}; the system "
            f"said: {error.strerror or error}. Make room or choose another place with --features; "
            "what was written so far is kept."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


# ---- reading ---------------------------------------------------------------------------------


class Features:
    """A file of features, mapped into memory: only what is asked for is read, and checked.

    Parameters
    ----------
    path : path
    expected : Layout, optional
        What the file should hold; anything else is refused.

    Raises
    ------
    DataError
        If there is no such file, or it is something else, cut short, or made from something else.
    """

    def __init__(self, path: Path | str, expected: Layout | None = None) -> None:
        self.path = Path(path)
        self.layout = read_layout(self.path)
        if expected is not None:
            _check_identity(self.path, self.layout, expected)
        found = self.path.stat().st_size
        if found != self.layout.size:
            raise DataError(
                f"expected {self.layout.size:,} bytes in {path}, as its header says; got {found:,}."
                " It was cut short or written to since. Delete it, and the features are computed "
                "again."
            )
        self._records = _mapped(self.path, self.layout)

    def __len__(self) -> int:
        return self.layout.records

    def __getitem__(self, number: int) -> Array:
        """Map ``number``, a copy (C, h, w).

        Raises
        ------
        DataError
            If its checksum is wrong.
        PositionError
            If there is none of that number.
        """
        if not 0 <= number < len(self):
            raise PositionError(f"expected a number of 0 to {len(self) - 1}; got {number}.")
        record = self._records[number]
        if not _is_whole(record, number):
            raise DataError(
                f"expected the features of {self.path} as they were written; record {number} has "
                "another checksum: the disk or a program has changed it. Delete the file, and the "
                "features are computed again."
            )
        return np.array(record["map"])

    def take(self, numbers: Iterable[int]) -> NDArray[np.float32]:
        """Some maps as a batch, float32 (B, C, h, w)."""
        return np.stack([self[int(number)] for number in numbers]).astype(np.float32, copy=False)


def read_layout(path: Path | str) -> Layout:
    """Read what a file of features says about itself.

    Raises
    ------
    DataError
        If there is no such file, or it is none of features, or its header is damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(_FIXED)
            if not start.startswith(MAGIC):
                what = foreign(start + file.read(HEAD - len(start)))
                what = what or f"is another kind of file, and begins with {start[:8]!r}"
                raise DataError(
                    f"expected a file of features, which begins with {MAGIC!r}; {path} {what}. "
                    "Features are computed by `tinydilate recipe run` with a context recipe; name "
                    "their file with --features."
                )
            version, length, crc = (int(n) for n in np.frombuffer(start[8:].ljust(12), "<u4"))
            if len(start) == _FIXED and version != VERSION:
                raise DataError(
                    f"expected features in version {VERSION} of the format; {path} has version "
                    f"{version}. Delete it, and the features are computed again."
                )
            text = file.read(length) if len(start) == _FIXED and length <= _LONGEST else b""
    except OSError as error:
        raise DataError(
            f"expected a file of features at {path}; the system said: {error.strerror or error}. "
            "Check the path."
        ) from None
    try:
        if len(text) != length or zlib.crc32(text) != crc:
            raise ValueError("its checksum is wrong")
        fields = json.loads(text)
        shape = tuple(int(side) for side in fields.pop("shape"))
        return _checked(Layout(shape, **fields))  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(
            f"expected the header of a file of features in {path}; it is damaged ({error}). Delete "
            "the file, and the features are computed again."
        ) from None


def _checked(layout: Layout) -> Layout:
    if (
        len(layout.shape) != 3
        or min(layout.shape) < 1
        or layout.dtype not in DTYPES
        or layout.records < 1
        or math.prod(layout.shape) > _LARGEST
    ):
        raise DataError(
            f"expected features of shape (C, h, w), stored as {' or '.join(DTYPES)}, at least one, "
            f"of at most {_LARGEST:,} numbers; got shape {tuple(layout.shape)}, {layout.dtype}, "
            f"{layout.records} of them."
        )
    return layout


def _mapped(path: Path, layout: Layout) -> Any:
    """The records, mapped into memory."""
    offset = len(layout.head)
    return np.memmap(path, layout.record, "r", offset, (layout.records,))


def _is_whole(record: Any, number: int) -> bool:
    return int(record["place"]) == number and zlib.crc32(record.tobytes()[4:]) == int(record["crc"])


def _check_identity(path: Path, found: Layout, expected: Layout) -> None:
    mine, theirs = _told(expected), _told(found)
    odd = [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
    if odd:
        told = "; ".join(
            f"{name}: {theirs.get(name)!s:.40} there, {mine.get(name)!s:.40} here"
            for name in sorted(odd)
        )
        raise DataError(
            f"expected features of this front end and these images; those in {path} are stale or "
            f"of something else ({told}). Delete the file, and the features are computed again, or "
            "name another one with --features."
        )


def _told(layout: Layout) -> dict[str, Any]:
    """Everything about a layout in one dictionary, as JSON would return it."""
    fields = {"shape": layout.shape, "dtype": layout.dtype, "records": layout.records}
    together: dict[str, Any] = json.loads(json.dumps({**fields, **layout.identity}))
    return together
