"""A log that can be cut back: one JSON object a line, as long as a checkpoint knows it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinydilate.errors import DataError


class Log:
    """A file that grows by lines.

    Parameters
    ----------
    path : path
    length : int
        Bytes to keep of what stands there already. What was written after the latest checkpoint
        will be written again.

    Raises
    ------
    DataError
        If the file is shorter than that, or cannot be written to.
    """

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        found = path.stat().st_size if path.exists() else 0
        if found < length:
            raise DataError(
                f"expected {path} to hold the {length:,} bytes that it had at the latest "
                f"checkpoint; got {found:,}. Put the file back, or start a new run."
            )
        with self._in_a_sentence():
            self._file = path.open("ab")
            self._file.truncate(length)

    def write(self, **entry: Any) -> None:
        """Add a line."""
        with self._in_a_sentence():
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()

    def settle(self) -> int:
        """Force the lines to the disk; returns the length in bytes."""
        with self._in_a_sentence():
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextmanager
    def _in_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"expected to write to {self.path}; the system said: {error.strerror or error}. "
                "Make room, then go on with --resume: what the latest checkpoint holds is safe."
            ) from None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that was cut off in the middle is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]
