"""Protocol Buffers as they lie on the disk, read without their library.

A message is a sequence of fields. Each begins with a tag, ``number << 3 | kind``, and the kind says
how long the value is:

======  ===========  ====================================================
kind    name         what follows the tag
======  ===========  ====================================================
0       VARINT       a whole number, 7 bits a byte, the lowest first; the 8th bit says "go on"
1       FIXED64      8 bytes: a double
2       BYTES        a length (a varint) and so many bytes: text, a message, or a packed array
5       FIXED32      4 bytes: a float
======  ===========  ====================================================

So a reader can step over every field that it does not know, whatever that field means. A library
that has been told another meaning for the same number cannot: see io/caffe.py.

Reference: Protocol Buffers documentation, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydilate.io.recognition import DamagedError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIDTH = {FIXED64: 8, FIXED32: 4}

MOST_FIELDS = 200_000  # VGG-16 has some 500. Bounds what a hostile file can cost: a second.


class Field(NamedTuple):
    """One field, or a run of equal ones.

    Attributes
    ----------
    number, kind : int
    value : int
        Of a varint, 0 to 2**64 - 1.
    start, stop : int
        Where the content of BYTES begins and ends; of fixed kinds, where the first value begins
        and the last one ends.
    repeats, step : int
        Fixed kinds only: values in the run, and bytes from one to the next, its tag included.
    """

    number: int
    kind: int
    value: int = 0
    start: int = 0
    stop: int = 0
    repeats: int = 1
    step: int = 0


class Wire:
    """A file's bytes as messages.

    Parameters
    ----------
    data : uint8 (size,)
    most_fields : int
        How many fields are read, in all messages together, before the file is refused.
    """

    def __init__(self, data: NDArray[np.uint8], most_fields: int = MOST_FIELDS) -> None:
        self._data = data
        self._bytes = data.data
        self._left = most_fields

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message that lies from ``start`` to ``stop``.

        Raises
        ------
        DamagedError
            If a value reaches beyond the message, or no such kind exists, or there are too many.
        """
        position = start
        while position < stop:
            self._left -= 1
            if self._left < 0:
                raise DamagedError(f"it has more than {MOST_FIELDS:,} fields, which no network has")
            begin = position
            tag, position = self.varint(position, stop)
            number, kind = tag >> 3, tag & 7
            if number == 0 or number >= 2**29:
                raise DamagedError(f"byte {begin:,} should begin a field, and does not")
            if kind == VARINT:
                value, position = self.varint(position, stop)
                yield Field(number, kind, value)
            elif kind == BYTES:
                length, position = self.varint(position, stop)
                if length > stop - position:
                    raise DamagedError(
                        f"a field of {length:,} bytes begins at byte {position:,}, where only "
                        f"{stop - position:,} are left"
                    )
                yield Field(number, kind, 0, position, position + length)
                position += length
            elif kind in _WIDTH:
                width, tag_length = _WIDTH[kind], position - begin
                if width > stop - position:
                    raise DamagedError(f"a number at byte {position:,} is cut off")
                step = tag_length + width
                count = self._run(begin, stop, tag_length, step)
                last = position + (count - 1) * step
                yield Field(number, kind, 0, position, last + width, count, step)
                position = last + width
            else:
                raise DamagedError(
                    f"byte {begin:,} begins a field of kind {kind}, which is not used"
                )

    def varint(self, position: int, stop: int) -> tuple[int, int]:
        """A whole number of 64 bits, and the position behind it."""
        value = 0
        for shift in range(0, 70, 7):
            if position >= stop:
                raise DamagedError(f"a number at byte {position:,} is cut off")
            byte = self._bytes[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (2**64 - 1), position
        raise DamagedError(f"a number before byte {position:,} has more than ten bytes")

    def varints(self, start: int, stop: int, most: int) -> list[int]:
        """At most so many whole numbers, packed one after the other."""
        values: list[int] = []
        position = start
        while position < stop:
            if len(values) == most:
                raise DamagedError(f"byte {start:,} begins a list of more than {most} numbers")
            value, position = self.varint(position, stop)
            values.append(value)
        return values

    def text(self, field: Field, most: int = 1000) -> str:
        """A field's bytes as text; "" if it is no field of bytes."""
        if field.kind != BYTES:
            return ""
        content = bytes(self._bytes[field.start : min(field.stop, field.start + most)])
        return content.decode("utf-8", errors="replace")

    def _run(self, begin: int, stop: int, tag_length: int, step: int) -> int:
        """How many values of a fixed kind follow each other, each behind the same tag.

        An array that is not packed is such a run. In large steps, for it may have millions.
        """
        tag = self._data[begin : begin + tag_length]
        most = (stop - begin) // step
        count, chunk = 1, 16
        while count < most:
            some = min(chunk, most - count)
            at = begin + count * step
            rows = self._data[at : at + some * step].reshape(some, step)  # a tag and a value each
            other = np.flatnonzero((rows[:, :tag_length] != tag).any(axis=1))
            if other.size:
                return count + int(other[0])
            count += some
            chunk = min(2 * chunk, 2**20)
        return count


def signed(value: int) -> int:
    """A varint as a signed number: negative ones are written as 2**64 more."""
    return value - 2**64 if value >= 2**63 else value
