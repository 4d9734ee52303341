"""Memory for results, used again.

A training step makes the same arrays as the step before and drops them again. To the system that is
memory given back and asked for anew, and a page of fresh memory is cleared by the system when it is
first touched: that alone takes longer than many a loop that fills it. So the kernels get their
results from here. `empty` hands out an array in a *block* of memory; when the array and the last
view of it are gone, the block comes back by itself and waits for the next array of its size.

* A block is up to one eighth larger than asked for, so that arrays of nearly one size share it.
* Every array begins at a multiple of 64 bytes, the longest vector and the line of a cache. Arrays
  of less than 64 KB are NumPy's own: its allocator already keeps small memory.
* Held memory hardly raises the peak. When no held block fits, the blocks that have waited longest
  are let go first, until what is held, what is in use and the new block together are little more
  than was ever in use at once: an eighth, or 64 MB. (Without any more, the largest blocks would be
  let go and made again in every step.) And at most 2 GiB are held; `empty_cache` lets go of all.

Three lines could tell the C library to keep freed memory (mallopt), as fast to a few per cent. But
they exist on one system, change the allocator under the whole program that imported us, keep memory
without a bound, and align to 16 bytes.
"""

from __future__ import annotations

import math
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Result = TypeVar("Result")

ALIGNMENT = 64  # bytes
_LEAST = 65_536  # bytes from which on an array gets a block
_FEW = _LEAST // 8  # fewer numbers are fewer bytes, whichever of our numbers they are


class Statistics(NamedTuple):
    """Bytes in blocks: with arrays in them, waiting, the most that was ever in use at once.

    And the number of blocks that were made so far.
    """

    in_use: int
    held: int
    peak: int
    made: int


@dataclass(slots=True, eq=False)
class Block:
    """A piece of memory."""

    memory: Any  # an array of bytes, which keeps the memory alive
    address: int  # the first multiple of ALIGNMENT in it
    size: int  # bytes from there on
    number: int = 0  # how many came back before it did, and it as well


class _Lease:
    """A block while it is in use: the base of its array and, through that, of every view.

    NumPy makes an array of whatever describes memory by this interface, and keeps it alive as long
    as the memory is seen.
    """

    __slots__ = ("__array_interface__", "block", "pool")

    def __init__(self, pool: Pool, block: Block, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self.pool, self.block = pool, block
        self.__array_interface__ = {
            "data": (block.address, False),  # False: not read-only
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    def __del__(self) -> None:
        self.pool.give_back(self.block)


def block_size(size: int) -> int:
    """The size of the block for ``size`` bytes: eight sizes from one power of two to the next."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


class Pool:
    """Blocks in waiting, and the count of those in use.

    Arrays die at any moment: on another thread, or in the middle of `take`, when Python's garbage
    collector happens to run there. So a dying array never waits for the lock. It leaves its block
    in ``returned``, and whoever holds the lock looks there, and once more after letting it go.
    """

    held_at_most, spare = 2**31, 2**26  # bytes

    # What a dying array runs uses no name of the module: at the interpreter's end there are none.
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.inside = False  # whether the lock's holder is changing what follows
        self.returned: deque[Block] = deque()
        self.waiting = defaultdict[int, deque[Block]](deque)  # by size; the latest is the last
        self.in_use = self.held = self.peak = self.made = self.came_back = 0

    def take(self, size: int) -> Block:
        """A block of ``size`` bytes."""
        with self.lock:
            block = self._alone(self._pick, size) or self._make(size)
            self.in_use += size
            self.peak = max(self.peak, self.in_use)
        self._look()
        return block

    def give_back(self, block: Block) -> None:
        """Called by a dying array."""
        self.returned.append(block)
        self._look()

    def _look(self) -> None:
        while self.returned and not self.inside and self.lock.acquire(blocking=False):
            try:
                self._alone(self._settle)
            finally:
                self.lock.release()

    def _alone(self, work: Callable[..., Result], *arguments: Any) -> Result | None:
        """Do what needs the lock, unless a finaliser has led us here out of the middle of it."""
        if self.inside:
            return None
        self.inside = True
        try:
            return work(*arguments)
        finally:
            self.inside = False

    def _pick(self, size: int) -> Block:
        """A block that waits, the one used last; or a new one."""
        if self.returned:
            self._settle()
        blocks = self.waiting[size]
        if not blocks:
            most = self.peak + max(self.peak // 8, self.spare)
            self._let_go(most - self.in_use - size)
            return self._make(size)
        self.held -= size
        return blocks.pop()

    def _settle(self) -> None:
        """Take in what dying arrays left."""
        while self.returned:
            block = self.returned.popleft()
            self.came_back += 1
            block.number = self.came_back
            self.waiting[block.size].append(block)
            self.in_use -= block.size
            self.held += block.size
        if self.held > self.held_at_most:
            self._let_go(self.held_at_most)

    def _let_go(self, keep: int) -> None:
        """Give blocks to the system, those that came back first, until ``keep`` bytes are held."""
        while self.held > max(0, keep):
            waiting = [blocks for blocks in self.waiting.values() if blocks]
            oldest = min(waiting, key=lambda blocks: blocks[0].number).popleft()
            self.held -= oldest.size

    def _make(self, size: int) -> Block:
        try:
            memory, address = self.allocate(size)
        except MemoryError:
            self._let_go(0)  # and once more with all that was held
            memory, address = self.allocate(size)
        self.made += 1
        return Block(memory, address, size)

    def allocate(self, size: int) -> tuple[Any, int]:
        """Fresh memory, and where in it an aligned block of ``size`` bytes begins."""
        memory = np.empty(size + ALIGNMENT, np.uint8)
        begin = memory.ctypes.data
        return memory, begin + -begin % ALIGNMENT

    def empty_cache(self) -> None:
        """Let go of every block that waits, and count the peak from here on."""
        with self.lock:
            self._alone(self._settle)
            self._alone(self._let_go, 0)
            self.peak = self.in_use

    def statistics(self) -> Statistics:
        """What there is at this moment."""
        with self.lock:
            self._alone(self._settle)
            return Statistics(self.in_use, self.held, self.peak, self.made)


_pool = Pool()

# A fork copies one thread only: let no other be in the middle of something here.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_pool.lock.acquire,
        after_in_parent=_pool.lock.release,
        after_in_child=_pool.lock.release,
    )


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array for a result, as `numpy.empty`: whatever numbers happen to be in it."""
    count = math.prod(shape)
    if count < _FEW:
        return np.empty(shape, dtype)
    dtype = np.dtype(dtype)
    size = count * dtype.itemsize
    if size < _LEAST:
        return np.empty(shape, dtype)
    block = _pool.take(block_size(size))
    return np.asarray(_Lease(_pool, block, shape, dtype))


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array of zeros for a result, as `numpy.zeros`."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


def empty_like(array: Array) -> Array:
    """`empty` of another array's shape and dtype."""
    if array.nbytes < _LEAST:
        return np.empty(array.shape, array.dtype)
    return empty(array.shape, array.dtype)


def is_view(array: Any) -> bool:
    """Whether an array looks into memory that something else looks into as well, or may."""
    base = getattr(array, "base", None)
    return not (base is None or isinstance(base, _Lease))


def statistics() -> Statistics:
    """How much memory is in use and held, in bytes."""
    return _pool.statistics()


def empty_cache() -> None:
    """Give all memory that waits for a next use back to the system."""
    _pool.empty_cache()
