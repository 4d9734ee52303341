"""Reading a JSON file of any size piece by piece.

A file of COCO is one JSON object of 450 MB, which `json.load` would turn into several GB of
dictionaries. But nearly all of it is a few long arrays of small entries. So the file is read
through a window, one entry at a time, and where an entry stands is told too: it can be read again
later, alone, with `read_span`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from tinydilate.errors import DataError

_CHUNK = 2**20  # bytes read at a time
_LARGEST = 2**26  # bytes of one entry; COCO's largest have some 100,000
_BLANKS = " \t\r\n"
_QUICK = 2**25  # bytes below which no progress is shown: less than two seconds


class Entry(NamedTuple):
    """An entry of one of the arrays in the file's outermost object.

    Attributes
    ----------
    array : str
        Name of the array.
    value : anything JSON
        Text in it that is not ASCII comes as Latin-1; `utf8` mends it.
    start, stop : int
        Bytes of the file where it stands.
    """

    array: str
    value: Any
    start: int
    stop: int


def json_entries(path: Path, advice: str = "") -> Iterator[Entry]:
    """Yield the entries of all arrays directly inside a file's outermost object, in its order.

    Raises
    ------
    DataError
        If there is no such file, or it is no JSON object, or cut short.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            bar = tqdm(
                total=size,
                desc=path.name,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=size < _QUICK,
            )
            with bar:
                yield from _Window(file, path, bar).entries()
    except FileNotFoundError:
        raise DataError(f"expected a JSON file at {path}; there is none. {advice}") from None
    except OSError as error:
        raise DataError(f"expected a JSON file; {path} cannot be read: {error}.") from None


def read_span(path: Path, start: int, stop: int) -> Any:
    """Read again what stands at some bytes of a JSON file.

    Raises
    ------
    DataError
        If the file has changed since.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            return json.loads(file.read(stop - start))
    except (OSError, ValueError) as error:
        raise DataError(
            f"expected {path} as it was when the data set was opened; it has changed ({error}). "
            "Open the data set again."
        ) from None


def utf8(text: str) -> str:
    """Text of an `Entry`, which was decoded byte by byte, as it was meant."""
    return text.encode("latin-1", "surrogatepass").decode("utf-8", "replace")


class _Window:
    """A stretch of the file as text, one letter a byte, and a place in it."""

    def __init__(self, file: BinaryIO, path: Path, bar: Any) -> None:
        self.file, self.path, self.bar = file, path, bar
        self.text = ""
        self.at = 0  # place in the text
        self.base = 0  # byte of the file where the text begins
        self.ended = False
        self.decoder = json.JSONDecoder()

    def entries(self) -> Iterator[Entry]:
        self.expect("{")
        while self.peek() == '"':
            name = self.value()[0]
            self.expect(":")
            if self.peek() != "[":
                self.value()  # something else than an array: not wanted
            else:
                self.at += 1
                while self.peek() != "]":
                    value, start, stop = self.value()
                    yield Entry(name, value, start, stop)
                    if self.peek() != "]":
                        self.expect(",")
                self.at += 1
            if self.peek() != "}":
                self.expect(",")
        self.expect("}")

    def peek(self) -> str:
        """The next letter that is no blank; "" at the end of the file."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in _BLANKS:
                    return self.text[self.at]
                self.at += 1
            if self.ended:
                return ""
            self.more()

    def expect(self, letter: str) -> None:
        found = self.peek()
        if found != letter:
            raise self.broken(
                f"{letter!r}, found {found!r}" if found else f"{letter!r}, found its end"
            )
        self.at += 1

    def value(self) -> tuple[Any, int, int]:
        """The value that begins here, and the bytes where it stands."""
        self.peek()
        while True:
            try:
                value, stop = self.decoder.raw_decode(self.text, self.at)
            except RecursionError:
                raise self.broken("an entry, found brackets nested too deeply") from None
            except json.JSONDecodeError as error:
                if self.ended:
                    raise self.broken(f"an entry, found {error.msg!r}") from None
            else:
                if stop < len(self.text) or self.ended:  # else a number could go on
                    span = (self.base + self.at, self.base + stop)
                    self.at = stop
                    return value, *span
            self.more()

    def more(self) -> None:
        """Read on, and forget what lies behind."""
        if len(self.text) - self.at > _LARGEST:
            raise self.broken(f"entries of at most {_LARGEST:,} bytes, found a longer one or none")
        # An entry that is longer than the window is tried again each time: double it.
        chunk = self.file.read(max(_CHUNK, len(self.text) - self.at))
        self.bar.update(len(chunk))
        self.text = self.text[self.at :] + chunk.decode("latin-1")
        self.base += self.at
        self.at = 0
        self.ended = not chunk

    def broken(self, what: str) -> DataError:
        return DataError(
            f"expected JSON in {self.path}; at byte {self.base + self.at:,} it should have {what}. "
            "The file is cut short or another one: unpack or download it again."
        )
