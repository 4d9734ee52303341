"""Writing a file so that it is whole or not there.

A program can be killed, and a disk can be full, in the middle of a write. So a file is written
under a temporary name in the same folder, forced to the disk, and then renamed, which the file
system does in one step. Whoever looks at the real name sees the old file or the new one, never
half of one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinydilate.errors import DataError


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file in one step: whole, or not at all.

    Parameters
    ----------
    path : path
        An earlier file of that name is replaced, and stays as it was if anything goes wrong.
    content : bytes

    Raises
    ------
    DataError
        If it cannot be written: full disk, no such folder, no permission.
    """
    write_parts(path, [content], len(content))


def write_parts(path: Path | str, parts: Iterable[Any], size: int) -> None:
    """`write_bytes` for a file that is too large to hold in memory.

    Parameters
    ----------
    path : path
    parts : iterable of bytes, or of contiguous arrays
        Asked for one after the other; whatever they raise leaves the file as it was.
    size : int
        How many bytes they are together, for the message if there is no room.
    """
    path = Path(path)
    # The process number keeps two programs, should they share a folder, out of each other's file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _force_folder(path.parent)
    except OSError as error:
        raise DataError(
            f"expected to write {size:,} bytes to {path}; the system said: "
            f"{error.strerror or error}. Make room or choose another folder; "
            "a file that stood there before is as it was."
        ) from None
    finally:
        with contextlib.suppress(OSError):  # it is gone already if all went well
            temporary.unlink()


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` for text, as UTF-8."""
    write_bytes(path, text.encode())


def _force_folder(folder: Path) -> None:
    """Force a rename to the disk; Windows does not let a folder be opened for that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
