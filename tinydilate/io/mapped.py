"""Numbers that lie in a file, looked at without reading the file first.

A mapped file is memory whose content the system fetches when somebody looks at it. An array over
it costs nothing until then, and copying it into a parameter is the only copy there is. Bytes that
were looked at stay in memory until something else needs the room; `MappedFile.forget` gives them
back at once, so that loading takes the room of the weights and no more.

(Whoever cuts a file shorter while it is mapped pulls the ground from under the program, which the
system then ends. Our own files are replaced in one step and never shortened; see io/files.py.)
"""

from __future__ import annotations

import copy
import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydilate.device import Array
from tinydilate.errors import DataError
from tinydilate.io.recognition import DamagedError

Shape = tuple[int, ...]

PART = 2**20  # numbers that are copied at once: 4 MiB of float32
MOST_AXES = 32  # of Caffe's blobs
_LONGEST_AXIS = 2**40


class MappedFile:
    """A file as a read-only line of bytes.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    path : Path
    size : int
        In bytes.
    bytes : uint8 (size,)

    Raises
    ------
    DataError
        If there is no such file, or it cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                # The system maps no empty file.
                self._map: Any = b""
                if self.size:
                    self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise DataError(
                f"expected a file of weights at {path}; there is no such file. Check the path."
            ) from None
        except (OSError, ValueError) as error:  # ValueError: longer than the address space
            raise DataError(
                f"expected to read {path}; the system said: "
                f"{getattr(error, 'strerror', None) or error}. Check the path and its permissions."
            ) from None
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def head(self, count: int) -> bytes:
        """The first bytes."""
        return bytes(self._map[:count])

    def view(self, offset: int, shape: Shape, dtype: Any, strides: Shape | None = None) -> Array:
        """Look at bytes as an array; ``strides`` in bytes, None for one number after the other."""
        return np.ndarray(shape, dtype, self._map, offset, strides)

    def forget(self, start: int, stop: int) -> None:
        """Give back the memory of these bytes; who looks again gets them from the file again."""
        if not hasattr(mmap, "MADV_DONTNEED"):  # Windows sees to it by itself
            return
        first = start - start % mmap.PAGESIZE
        if stop > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, stop - first)


class Stored(ABC):
    """An array that is not read yet.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
        Of the numbers that come out.
    kind : str
        What they are in the file: the dtype's name, or "bfloat16".

    Raises
    ------
    DamagedError
        If no array can have that shape.
    """

    def __init__(self, shape: Shape, dtype: Any, kind: str = "") -> None:
        if len(shape) > MOST_AXES or any(not 0 <= size < _LONGEST_AXIS for size in shape):
            raise DamagedError(f"it has an array of the impossible shape {shape}"[:300])
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.kind = kind or self.dtype.newbyteorder("=").name

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @abstractmethod
    def numbers(self) -> Array:
        """All numbers, in any shape whose C order is ours: a view of the file where it can be."""

    def array(self) -> Array:
        """The array in its shape, a read-only view of the file where it can be."""
        return self.numbers().reshape(self.shape)

    def parts(self) -> Iterator[Array]:
        """The numbers in C order, in pieces (n,) that take little memory."""
        flat = self.numbers().reshape(-1)
        for start in range(0, flat.size, PART):
            yield flat[start : start + PART]

    def reshaped(self, shape: Shape) -> Stored:
        """The same numbers, in the same order, in another shape."""
        assert math.prod(shape) == self.size
        other = copy.copy(self)
        other.shape = shape
        return other


class InMemory(Stored):
    """An array that is there already."""

    def __init__(self, array: Array) -> None:
        super().__init__(array.shape, array.dtype)
        self._array = array

    def numbers(self) -> Array:
        return self._array


class InFile(Stored):
    """Numbers in one or several runs of a mapped file.

    Parameters
    ----------
    file : MappedFile
    runs : list of (offset, count, step)
        Each in bytes, numbers, bytes from one number to the next.
    shape, dtype
    """

    def __init__(
        self, file: MappedFile, runs: list[tuple[int, int, int]], shape: Shape, dtype: Any
    ) -> None:
        super().__init__(shape, dtype)
        self._file, self._runs = file, runs

    def _run(self, offset: int, count: int, step: int) -> Array:
        return self._file.view(offset, (count,), self.dtype, (step,))

    def numbers(self) -> Array:
        runs = [self._run(*run) for run in self._runs]
        return runs[0] if len(runs) == 1 else np.concatenate(runs)

    def parts(self) -> Iterator[Array]:
        for offset, count, step in self._runs:
            for start in range(0, count, PART):
                begin, length = offset + start * step, min(PART, count - start)
                yield self._run(begin, length, step)
                self._file.forget(begin, begin + length * step)


class Strided(Stored):
    """Numbers of a mapped file with gaps between them, or in another order than C's.

    Parameters
    ----------
    file : MappedFile
    offset : int
        Of the first number, in bytes.
    strides : tuple of int
        Bytes from one number to the next along each axis.
    shape, dtype
    """

    def __init__(
        self, file: MappedFile, offset: int, strides: Shape, shape: Shape, dtype: Any
    ) -> None:
        super().__init__(shape, dtype)
        self._view = file.view(offset, shape, dtype, strides)

    def numbers(self) -> Array:
        return self._view


class BFloat16(Stored):
    """bfloat16, the upper half of a float32, which NumPy does not know: widened, exactly.

    Parameters
    ----------
    halves : Stored
        The same array as 16-bit whole numbers.
    """

    def __init__(self, halves: Stored) -> None:
        super().__init__(halves.shape, np.float32, "bfloat16")
        self._halves = halves

    def numbers(self) -> Array:
        return _widened(self._halves.numbers())

    def parts(self) -> Iterator[Array]:
        for part in self._halves.parts():
            yield _widened(part)


def _widened(halves: Array) -> Array:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def copy_numbers(part: Array, target: Array) -> None:
    """Copy (n,) numbers into (n,) of the target's dtype, which become floats if it says so."""
    if part.dtype == target.dtype and part.flags.c_contiguous:
        # As bytes: in a .caffemodel numbers do not begin at multiples of four, and NumPy would
        # copy them one by one.
        target.view(np.uint8)[:] = part.view(np.uint8)
    else:
        with np.errstate(all="ignore"):  # a float64 that is too large becomes infinite
            np.copyto(target, part, casting="same_kind")


def check_finite(numbers: Array) -> None:
    """Refuse (n,) numbers among which there is a nan or an infinity.

    Raises
    ------
    DamagedError
    """
    if numbers.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        # Either makes the sum not finite. So can an overflow, which is rare: then look at each.
        if not np.isfinite(numbers.sum()) and not np.isfinite(numbers).all():
            raise DamagedError("some numbers are infinite or not numbers at all")
