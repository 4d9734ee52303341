"""Writing a file so that it is whole or not there.

A program can be killed, and a disk can be full, in the middle of a write. So a file is written
under a temporary name in the same folder, forced to the disk, and then renamed, which the file
system does in one step. Whoever looks at the real name sees the old file or the new one, never
half of one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from tinydilate.device import Array, CudaArray, move
from tinydilate.errors import DataError

Piece = bytes | memoryview  # part of a file; a memoryview shows numbers without copying them
CHUNK = 2**24  # bytes between two moves of a bar


@contextlib.contextmanager
def whole_file(path: Path | str, size: int) -> Iterator[BinaryIO]:
    """Open a file to be written in one step: whole, or not at all.

    Parameters
    ----------
    path : path
        An earlier file of that name is replaced at the end of the ``with`` block, and stays as it
        was if anything goes wrong before.
    size : int
        Bytes that will be written, or about so many; an error tells it.

    Raises
    ------
    DataError
        If it cannot be written: full disk, no such folder, no permission.
    """
    path = Path(path)
    # The process number keeps two programs, should they share a folder, out of each other's file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _force_folder(path.parent)
    except OSError as error:
        advice = "Make room or choose another folder" if path.parent.is_dir() else "Make its folder"
        raise DataError(
            f"expected to write {size:,} bytes to {path}; the system said: "
            f"{error.strerror or error}. {advice}; a file that stood there before is as it was."
        ) from None
    finally:
        with contextlib.suppress(OSError):  # it is gone already if all went well
            temporary.unlink()


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file in one step; see `whole_file`."""
    write_parts(path, [content], len(content))


def write_parts(path: Path | str, parts: Iterable[Any], size: int) -> None:
    """`write_bytes` for a file that is too large to hold in memory.

    Parameters
    ----------
    path : path
        See `whole_file`.
    parts : iterable of bytes, or of contiguous arrays
        Asked for one after the other; whatever they raise leaves the file as it was.
    size : int
        How many bytes they are together, for the message if there is no room.
    """
    with whole_file(path, size) as file:
        for part in parts:
            file.write(part)


def chunks(pieces: Iterable[Piece], watch: Callable[[int], Any]) -> Iterator[Piece]:
    """Pieces cut up, so that a progress bar moves: ``watch`` is told each chunk's bytes."""
    for piece in pieces:
        for start in range(0, len(piece), CHUNK):
            chunk = piece[start : start + CHUNK]
            yield chunk
            watch(len(chunk))


def byte_bar(size: int, progress: str) -> Any:
    """A bar of bytes; it shows where there is a title and the work takes longer than a second."""
    return tqdm(
        total=size, desc=progress, unit="B", unit_scale=True, leave=False, delay=1,
        disable=not progress,
    )  # fmt: skip


def bytes_of(array: Any) -> memoryview:
    """The bytes of an array in C order, the lowest byte first; not copied where they lie so.

    safetensors, PyTorch and ONNX all store numbers like this. An array on the GPU is fetched.
    """
    numbers: Array = move(array, "cpu") if isinstance(array, CudaArray) else np.asarray(array)
    little = numbers.dtype.newbyteorder("<")
    flat = np.ascontiguousarray(numbers, dtype=little).reshape(-1)
    return memoryview(flat.view(np.uint8).data)


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
