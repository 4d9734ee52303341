"""Where arrays live: ``"cpu"`` (NumPy), ``"cuda"`` (a GPU), ``"meta"`` (a shape and nothing else).

A meta array costs no memory. Sent through a network, it answers how large every layer's output
is, which is all that a summary or a receptive field needs, so networks of 141 million parameters
can be studied on a laptop.

A `CudaArray` is a line of numbers in the memory of a GPU, and a shape. There is one memory layout
only, the C-contiguous one, so a kernel takes the line and never asks for strides. This module is
the only one that speaks to the GPU's driver and to Numba's CUDA interface from the host's side: it
loads them when the first array goes to the GPU, keeps the memory, copies to and fro, launches, and
measures time. What is launched is compiled by launching.py.

Everything runs on one stream, a queue of work that the GPU does in order. So memory whose array
died while the GPU still reads it can be given to the next array at once: what fills it comes later
in the queue. The stream also waits for, and is waited for by, CUDA's default stream, which is where
PyTorch and CuPy work unless they are told otherwise.

``NUMBA_ENABLE_CUDASIM=1`` in the environment puts Numba's simulator in place of the GPU: slow, but
with every kernel in plain Python, open to a debugger.
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
import sys
import threading
import time
import warnings
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tinydilate import buffers, dlpack
from tinydilate.errors import DeviceError, DtypeError, ShapeError

DEVICES = ("cpu", "cuda", "meta")
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

Array = npt.NDArray[Any]
Made = TypeVar("Made")


class MetaArray:
    """A shape and a dtype, without any numbers.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    number : float or None
        The 2 of ``x * 2``, which a recorded graph would not know otherwise; else None.
    """

    __slots__ = ("dtype", "number", "shape")

    def __init__(
        self, shape: Sequence[int], dtype: Any = np.float32, number: float | None = None
    ) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)
        self.number = number

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements that an array of this shape would have."""
        return math.prod(self.shape)

    def reshape(self, *shape: Any) -> MetaArray:
        """The same number of elements in another shape: sizes, all given, or a tuple of them."""
        return MetaArray(shape[0] if shape and isinstance(shape[0], tuple) else shape, self.dtype)

    def astype(self, dtype: Any) -> MetaArray:
        """The same shape with another number type."""
        return MetaArray(self.shape, dtype)

    def copy(self) -> MetaArray:
        """Itself: there is nothing to copy."""
        return self

    def __repr__(self) -> str:
        return f"MetaArray(shape={self.shape}, dtype={self.dtype})"


class CudaArray:
    """Numbers on the GPU: a line of them, and the shape in which to read it.

    Attributes
    ----------
    flat : Line
        The line: what kernels are given. In the simulator, the simulator's array of one axis.
    shape : tuple of int
    dtype : numpy.dtype
    memory : object
        Keeps the memory alive: a lease from the pool, or the array of another library.
    base : object or None
        Whose memory this is, if it is not this array's alone; as NumPy's ``base``.
    """

    __array_ufunc__ = None  # so that ndarray + CudaArray is refused and not taken apart
    __slots__ = ("__weakref__", "base", "dtype", "flat", "memory", "shape")

    def __init__(
        self, flat: Any, shape: tuple[int, ...], dtype: np.dtype[Any], memory: Any, base: Any = None
    ) -> None:
        self.flat, self.shape, self.dtype = flat, shape, dtype
        self.memory, self.base = memory, base

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize

    def reshape(self, *shape: Any) -> CudaArray:
        """The same line in another shape, sharing the memory; one size may be -1."""
        new = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if -1 in new:
            rest = -math.prod(new)
            new = tuple(self.size // rest if rest and size == -1 else size for size in new)
        if math.prod(new) != self.size or min(new, default=0) < 0:
            raise ShapeError(
                f"expected sizes for {self.size} elements (shape {self.shape}); got {new}. The "
                "product of the sizes must be the same."
            )
        return CudaArray(self.flat, tuple(new), self.dtype, self.memory, self)

    def as_own(self, shape: tuple[int, ...]) -> CudaArray:
        """`reshape` of an array that nobody else will use: the result is no view of another."""
        return CudaArray(self.flat, shape, self.dtype, self.memory, self.base)

    def copy(self) -> CudaArray:
        """The same numbers in memory of their own."""
        result = empty(self.shape, self.dtype)
        if self.size:
            copy_into(self, result)
        return result

    def astype(self, dtype: Any) -> CudaArray:
        """The same numbers in another type; by way of the processor, since it is rarely needed."""
        return _upload(_download(self).astype(dtype))

    def item(self) -> Any:
        """The one number of an array with one element, as a Python number."""
        return _download(self).item()

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("expected an array with axes; got a single number. Take .item().")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        raise DeviceError(
            "expected an array on the cpu to take elements of; got one on cuda. Index the tensor, "
            'or move it with .to("cpu"); a kernel of Numba\'s takes its line, x.data.flat.'
        )

    def _in_place(self, other: Any) -> Any:
        raise DeviceError(
            "expected an array on the cpu to change in place; got one on cuda. Take an optimiser, "
            "or tinydilate.device.write(numbers, array)."
        )

    __iadd__ = __isub__ = __imul__ = __itruediv__ = _in_place

    def __deepcopy__(self, memo: dict[int, Any]) -> CudaArray:
        return self.copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise DeviceError(
            f"expected an array on the cpu; got one of shape {self.shape} on cuda. NumPy does not "
            'reach there: move it with .to("cpu") first.'
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Where the numbers lie, for PyTorch, CuPy and others, which read them without a copy."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (_address(self.flat) if self.size else 0, False),  # False: not read-only
            "strides": None,
            "stream": 1,  # whoever works on CUDA's default stream waits for ours
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """The kind of device by DLPack's numbers, and which one of them."""
        return (dlpack.CPU, 0) if SIMULATED else (dlpack.GPU, driver().card)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Any = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The numbers for ``torch.from_dlpack`` and its like, without a copy; see dlpack.py."""
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(
                f"expected to hand the numbers over where they are, on cuda; got device "
                f'{dl_device}. Move them with .to("cpu") first.'
            )
        beside = stream not in (None, -1, 1)  # CUDA's default stream and ours wait for each other
        if beside:
            synchronize()
        source = self.copy() if copy else self
        place = _address(source.flat) if self.size else 0
        at_its_end = _wait_for_all_streams if beside else None
        there = self.__dlpack_device__()
        return dlpack.capsule(place, self.shape, self.dtype, there, source, at_its_end)

    def __repr__(self) -> str:
        return f"CudaArray(shape={self.shape}, dtype={self.dtype})"


# ---------------------------------------------------------------------------------------------
# Numba's CUDA interface


@cache
def numba_cuda() -> Any:
    """``numba.cuda``, imported when first asked for.

    numba-cuda 0.30 asks NumPy for ``row_stack`` while it is imported, which NumPy 2.5 no longer
    has: it is lent to NumPy for that long.
    """
    import numba

    lent = not hasattr(np, "row_stack")
    if lent:
        setattr(np, "row_stack", np.vstack)  # noqa: B010 - mypy knows NumPy's names
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy 2.5, of its timedelta64
            from numba import cuda

            if not SIMULATED and cuda.implementation == "NVIDIA":
                import numba.cuda.np.arrayobj
    finally:
        if lent:
            delattr(np, "row_stack")
    # A small array cannot fill a GPU, and that is no news. That an array was copied to the GPU
    # unasked is news: the other warning stays on.
    settings: Any
    for settings in (numba.config, getattr(getattr(cuda, "core", None), "config", None)):
        if settings is not None:
            settings.CUDA_LOW_OCCUPANCY_WARNINGS = 0
    return cuda


_INSTALL = f'Install it: {sys.executable} -m pip install "tinydilate[cuda13]" (or cuda12, for '
_INSTALL += "drivers older than R580)."


DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def driver_library() -> ctypes.CDLL | None:
    """CUDA's driver, by ctypes; None where there is none, and so no GPU to use."""
    try:
        return ctypes.CDLL(os.environ.get("NUMBA_CUDA_DRIVER") or DRIVER)
    except OSError:
        return None


@cache
def cuda_problem() -> str | None:
    """Why there is no computing on the GPU, and the next command; None where there is."""
    try:
        cuda = numba_cuda()
    except Exception as error:  # whatever stops an import: missing libraries, above all
        reason = str(error).strip().splitlines() or [""]
        return f"numba.cuda cannot be loaded ({type(error).__name__}: {reason[0]}). {_INSTALL}"
    if SIMULATED:
        return None
    if getattr(cuda, "implementation", "") != "NVIDIA":
        if driver_library() is None:  # then the package would not help
            return f"there is no NVIDIA GPU here, or no driver for it (no {DRIVER})."
        return f"the package numba-cuda is missing. {_INSTALL}"
    try:
        if cuda.is_available():
            return None
        reason = str(cuda.cuda_error() or "no device answers").strip().splitlines()
    except Exception as error:  # the driver's library is there and cannot be used
        reason = [f"{type(error).__name__}: {error}"]
    return (
        f"numba-cuda found no GPU or no driver ({reason[0]}). If this machine has a GPU, see what "
        "`nvidia-smi` and `tinydilate doctor` say."
    )


def _once(make: Callable[[], Made]) -> Callable[[], Made]:
    """`cache` for what there may be one of only, also where two threads ask for it at once."""
    lock, made = threading.RLock(), cache(make)

    @wraps(make, updated=())
    def ask() -> Made:
        with lock:
            return made()

    return ask


@_once
def _home() -> tuple[Any, Any]:
    """The context that we work in, see `_Driver`, and the queue in it.

    Of the card that is current when the first array goes to the GPU, and so for good: whoever makes
    another one current later, as `torch.cuda.set_device` does, does not move our queue.
    """
    cuda = numba_cuda()
    return cuda.current_context(), cuda.stream()


def stream() -> Any:
    """The queue that all our work goes through."""
    return _home()[1]


class _Driver:
    """CUDA's driver: its functions by their names, with errors raised.

    It knows of a *context*, what a process has on a card, and of a current one for each thread of
    Python's; Numba makes the one that PyTorch and CuPy use as well. Whichever is current, all of
    ours is in our queue's.
    """

    def __init__(self) -> None:
        from cuda.bindings import driver  # comes with numba-cuda

        self.bindings = driver
        self.context, queue = _home()
        self.card = int(self.context.device.id)  # that the queue is on
        self.several = len(numba_cuda().gpus) > 1
        self.queue = driver.CUstream(int(queue.handle))
        self.here = threading.local()

    def enter(self) -> None:
        """Let the calling thread speak to a GPU: to our card, if to none so far."""
        code, current = self.bindings.cuCtxGetCurrent()
        if code or not int(current):
            self.bindings.cuCtxPushCurrent(self.context.handle)
        self.here.entered = True

    @contextmanager
    def at_home(self) -> Iterator[None]:
        """Make our context the current one within the block."""
        (code,) = self.bindings.cuCtxPushCurrent(self.context.handle)
        if code:
            raise _failure("cuCtxPushCurrent", code)
        try:
            yield
        finally:
            self.bindings.cuCtxPopCurrent()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function; its result, if it has one."""
        if not hasattr(self.here, "entered"):
            self.enter()
        with self.at_home():
            code, *results = getattr(self.bindings, name)(*arguments)
        if code:
            raise _failure(name, code)
        return results[0] if results else None

    @property
    def version(self) -> int:
        """The latest CUDA that it knows, as 13000 for 13.0."""
        return int(self.call("cuDriverGetVersion"))

    def load(self, code: bytes, entry: str) -> tuple[Any, Any]:
        """A kernel of some machine code, and the module that holds it: loaded for good."""
        place = np.frombuffer(code, np.uint8)
        module = self.call("cuModuleLoadData", place.ctypes.data)
        return self.call("cuModuleGetFunction", module, entry.encode()), module

    def launch(self, function: Any, shape: tuple[int, ...], arguments: int) -> None:
        """Put a kernel into the queue: blocks (3), threads (3), bytes of shared memory.

        ``arguments`` is where the addresses of its arguments stand.
        """
        try:
            self.here.entered  # noqa: B018 - asked for sooner than by hasattr
        except AttributeError:
            self.enter()
        with self.at_home() if self.several else _HERE:  # of one card, no other can be current
            (code,) = self.bindings.cuLaunchKernel(function, *shape, self.queue, arguments, 0)
        if code:
            raise _failure("cuLaunchKernel", code)


class DriverError(Exception):
    """What the driver answers if something is wrong."""

    def __init__(self, function: str, code: Any) -> None:
        super().__init__(f"{function}: {getattr(code, 'name', code)}")


_HERE: Any = nullcontext()

# What the driver answers to whatever it is asked, once a kernel has failed; never to the launch of
# that kernel, for the GPU works on its own.
_BROKEN = {
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
}


def _failure(function: str, code: Any) -> Exception:
    """What to raise for an answer of the driver's: of this call, or of a kernel before it."""
    error = DriverError(function, code)
    return _failed_earlier(error) if getattr(code, "name", "") in _BROKEN else error


def _failed_earlier(error: Exception) -> DeviceError:
    return DeviceError(
        f"expected the GPU to finish its work; a kernel failed earlier on ({error}). Set "
        "TINYDILATE_CUDA_DEBUG=1 to wait after each kernel and be told which, then start "
        "Python anew: the GPU takes no further work from this process."
    )


driver = _once(_Driver)


class Card(NamedTuple):
    """What there is to know of the GPU: name, compute capability, processors, bytes of memory."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int


@cache
def card() -> Card:
    """The GPU in use; in the simulator, one with a single multiprocessor."""
    check_device("cuda")
    if SIMULATED:
        return Card("Numba's simulator", (0, 0), 1, 0)
    context = _home()[0]
    device = context.device
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    major, minor = device.compute_capability
    with _at_home():
        memory = int(context.get_memory_info().total)
    return Card(name, (major, minor), int(device.MULTIPROCESSOR_COUNT), memory)


_THREADS = 8 if SIMULATED else 256


def cover(count: int, threads: int = _THREADS) -> tuple[int, int]:
    """(blocks, threads a block) that give each of ``count`` elements a thread, and a few more.

    In the simulator a block has few threads: each costs 0.2 milliseconds there, and several blocks
    show more than one.
    """
    return -(-count // threads), threads


_FULL = 16 * _THREADS  # threads that a multiprocessor has work for, twice those that it holds
_HIGHEST = 65_535  # blocks along the second and the third axis of a grid

Three = tuple[int, int, int]


@lru_cache(4096)
def cover_planes(planes: int, rows: int, columns: int) -> tuple[Three, Three]:
    """Blocks and threads along columns, rows and planes of an array (P, H, W).

    So that a thread knows its row and its column without a division, which takes a GPU as long as
    twenty additions. Along a row stand up to 32 threads, who read and write neighbours together; a
    block of a small map has several rows, and of a tiny one several planes. Where there are planes
    enough to keep the card busy, a thread takes up to four of them, one after the other: what it
    looked up for its row and column serves them all. See `launching.in_planes`.
    """
    along = _power_of_2(columns, 4 if SIMULATED else 32)
    down = _power_of_2(rows, _THREADS // along)
    deep = _power_of_2(planes, min(64, _THREADS // (along * down)))
    across, high = -(-columns // along), min(_HIGHEST, -(-rows // down))
    busy = -(-_FULL * card().multiprocessors // max(1, _THREADS * across * high))
    layers = -(-planes // deep)
    return (across, high, min(_HIGHEST, layers, max(-(-layers // 4), busy))), (along, down, deep)


def _power_of_2(count: int, most: int) -> int:
    """The least power of 2 that is ``count`` or more, but at most ``most``, which is one."""
    return min(most, 1 << max(0, count - 1).bit_length())


def synchronize() -> None:
    """Wait until the GPU has done all that it was given."""
    check_device("cuda")
    refuse_while_recording("a wait for the GPU", "Wait after each repetition.")
    with _failures_explained():
        stream().synchronize()


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """How long the GPU takes for what a function launches: the time between two events.

    The events stand in the same queue as the work, so the time that Python took beforehand is not
    counted. In the simulator it is the time by the clock.
    """
    check_device("cuda")
    refuse_while_recording("a measurement of time", "Measure the repetitions.")
    if SIMULATED:
        begin = time.perf_counter()
        function(*arguments)
        return time.perf_counter() - begin
    cuda = numba_cuda()
    with _at_home():
        before, after = cuda.event(), cuda.event()
    before.record(stream())
    function(*arguments)
    after.record(stream())
    with _failures_explained():
        after.synchronize()
    return float(cuda.event_elapsed_time(before, after)) / 1000


@contextmanager
def _failures_explained() -> Iterator[None]:
    """The GPU works on its own, so a kernel's failure shows where somebody waits for it."""
    try:
        yield
    except (DriverError, numba_cuda().cudadrv.driver.CudaAPIError) as error:
        raise _failed_earlier(error) from error


def _at_home() -> Any:
    """Our context as the current one within a block; in the simulator there are none."""
    return _HERE if SIMULATED else driver().at_home()


def _wait_for_all_streams() -> None:
    """Before memory that another library's stream has worked on is used again.

    Called while an array dies, where nobody could catch an error; the next call has it, too. While
    launches are recorded nothing may be waited for.
    """
    if not SIMULATED and not being_recorded:
        with suppress(DriverError, DeviceError):
            driver().call("cuCtxSynchronize")


# ---------------------------------------------------------------------------------------------
# Memory


_SEVEN = struct.Struct("<7Q")


class Line:
    """Numbers of one type, one after the other, in the GPU's memory.

    Attributes
    ----------
    address : int
    size : int
        How many there are.
    dtype : numpy.dtype
    words : bytes
        How a compiled kernel is told of them: as Numba's array of one axis, which is two owners,
        of which it has none on a GPU, the count, bytes of a number, the address, and the shape and
        the strides. Packed once, for the line is launched with again and again.
    """

    __slots__ = ("address", "dtype", "size", "words")

    def __init__(self, address: int, size: int, dtype: np.dtype[Any]) -> None:
        self.address, self.size, self.dtype = address, size, dtype
        width = dtype.itemsize
        self.words = _SEVEN.pack(0, 0, size, width, address, size, width)

    def __getitem__(self, part: slice) -> Line:
        start, stop, _ = part.indices(self.size)
        return Line(self.address + start * self.dtype.itemsize, stop - start, self.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (self.size,),
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": 1,
            "version": 3,
        }


_LINES = 32  # that a piece of memory remembers


class _Memory:
    """A piece of the GPU's memory, and the lines of numbers that it was read as so far.

    A training step asks for the same arrays as the step before, so the lines are found again.

    It is freed when the pool says so and not when Python has forgotten it: what Python's garbage
    collector finds in a cycle it may bring back to life, as it does when a dying array returns its
    block to the pool; but its memory would be gone by then.
    """

    __slots__ = ("address", "lines", "simulated", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.lines: dict[tuple[int, np.dtype[Any]], Any] = {}
        self.simulated: Any = None
        if SIMULATED:
            self.simulated = numba_cuda().device_array(size, np.uint8)
        else:
            self.address = int(driver().call("cuMemAlloc", size))

    def line(self, count: int, dtype: np.dtype[Any]) -> Any:
        """The first ``count`` numbers of a type, kept among the lines."""
        if SIMULATED:
            line = self.simulated[: count * dtype.itemsize].view(dtype)
        else:
            line = Line(self.address, count, dtype)
        if len(self.lines) >= _LINES:  # images of all sizes, say: nobody asks for the first again
            self.lines.clear()
        self.lines[count, dtype] = line
        return line

    def free(self) -> None:
        """Give it back to the driver."""
        if not SIMULATED:
            driver().call("cuMemFree", self.address)


class _CudaPool:
    """The GPU's memory, in blocks of some sizes: those in use, and those that wait for a next use.

    Like PyTorch's, it keeps what it was given until the driver has no more. To ask the driver takes
    as long as a small layer does, and to give memory back waits until the GPU has done all its
    work.

    Arrays die at any moment, on any thread. A dying one only appends its block to a deque, which in
    Python is a single step, and so is taking one from its end: no lock is held.
    """

    def __init__(self, outside: _CudaPool | None = None) -> None:
        self.waiting = defaultdict[int, deque[_Memory]](deque)  # by size; the latest is the last
        self.in_use = self.peak = self.made = 0
        self.outside = outside  # of a recording's pool, the one beside it
        self.heir: _CudaPool | None = None

    def take(self, size: int) -> _Memory:
        """A block of ``size`` bytes: one that waits, the one used last, or a new one."""
        try:
            memory = self.waiting[size].pop()
        except IndexError:
            memory = self._make(size)
        self.in_use += size
        if self.in_use > self.peak:
            self.peak = self.in_use
        return memory

    def give_back(self, memory: _Memory) -> None:
        """Called by a dying array."""
        pool = self.heir or self
        pool.in_use -= memory.size
        pool.waiting[memory.size].append(memory)

    def dissolve(self) -> None:
        """Leave all memory to the pool outside, and what is in use as soon as it comes back."""
        heir = self.heir = self.outside
        if heir is not None:
            heir.in_use += self.in_use
            heir.peak = max(heir.peak, heir.in_use)
            heir.made += self.made
            for size, blocks in self.waiting.items():
                heir.waiting[size].extend(blocks)
            self.waiting.clear()

    def _make(self, size: int) -> _Memory:
        try:
            memory = _Memory(size)
        except DriverError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            self._let_go()  # and once more with all that waited
            memory = _Memory(size)
        self.made += 1
        return memory

    def _let_go(self) -> None:
        if self.outside is not None:  # launches that are recorded know this pool's addresses
            self.outside._let_go()
            return
        for blocks in list(self.waiting.values()):
            with suppress(IndexError):  # the last may go to another thread before we take it
                while True:
                    blocks.pop().free()

    def empty_cache(self) -> None:
        """Let go of every block that waits, and count the peak from here on."""
        self._let_go()
        self.peak = self.in_use

    def statistics(self) -> buffers.Statistics:
        """What there is at this moment."""
        held = sum(size * len(blocks) for size, blocks in list(self.waiting.items()))
        return buffers.Statistics(self.in_use, held, self.peak, self.made)


class _Lease:
    """A block in use; it comes back when the last array in it is gone."""

    __slots__ = ("memory", "pool")

    def __init__(self, pool: _CudaPool, memory: _Memory) -> None:
        self.pool, self.memory = pool, memory

    def __del__(self) -> None:
        self.pool.give_back(self.memory)


_pool = _CudaPool()
_LEAST = 512  # bytes: the driver gives no less
_LONGEST = 2**31 - 1  # elements: kernels count with 32 bits


def empty(shape: tuple[int, ...], dtype: Any) -> CudaArray:
    """An array on the GPU for a result: whatever numbers happen to be in it.

    Raises
    ------
    DeviceError
        If there is no GPU, or not enough memory on it.
    ShapeError
        If it has more elements than a kernel can count.
    """
    shape, dtype, numbers, size = _needed(shape, dtype)
    try:
        memory = _pool.take(size)
    except DriverError as error:
        if "OUT_OF_MEMORY" not in str(error):
            raise
        raise DeviceError(_out_of_memory(size)) from None
    line = memory.lines.get(numbers) or memory.line(*numbers)
    return CudaArray(line, shape, dtype, _Lease(_pool, memory))


@lru_cache(4096)
def _needed(shape: tuple[int, ...], dtype: Any) -> tuple[Any, ...]:
    """(shape, dtype, numbers of the line: how many and of what type, bytes of the block)."""
    dtype, count = np.dtype(dtype), math.prod(shape)
    if count > _LONGEST:
        raise ShapeError(
            f"expected at most {_LONGEST} elements in an array on cuda; got {count} for shape "
            f"{shape}. Use smaller batches or crops."
        )
    size = buffers.block_size(max(_LEAST, count * dtype.itemsize))
    # Of an array without elements no kernel reads the line, but it has one.
    return tuple(map(int, shape)), dtype, (max(1, count), dtype), size


def _out_of_memory(size: int) -> str:
    now = _pool.statistics()
    total = f" of {_size(card().memory)}" if card().memory else ""
    return (
        f"expected {_size(size)} more memory on the GPU; it has no room for them. Arrays of this "
        f"process hold {_size(now.in_use)}{total}, at most {_size(now.peak)} so far. Use a smaller "
        "batch or crop, compute without gradients inside no_grad(), let go of tensors that still "
        "hold a graph (keep loss.item(), not loss), or stop other programs on the GPU (nvidia-smi)."
    )


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.2f} GiB"


def empty_like(array: CudaArray) -> CudaArray:
    """`empty` of another array's shape and dtype."""
    return empty(array.shape, array.dtype)


def as_own(array: Any, shape: tuple[int, ...]) -> Any:
    """`reshape` of an array on any device that nobody else will use.

    On the GPU the result is no view of another, so a leaf's gradient need not be a copy of it.
    """
    return array.as_own(shape) if type(array) is CudaArray else array.reshape(shape)


def zeros(shape: tuple[int, ...], dtype: Any) -> CudaArray:
    """An array of zeros on the GPU."""
    array = empty(shape, dtype)
    if array.size and SIMULATED:
        array.flat[:] = 0
    elif array.size:
        driver().call("cuMemsetD8Async", array.flat.address, 0, array.nbytes, driver().queue)
    return array


def copy_into(source: CudaArray, target: CudaArray) -> None:
    """Copy an array's numbers to those of another one of its size."""
    if being_recorded:
        being_recorded.keep((source, target))
    if SIMULATED:
        target.flat.copy_to_device(source.flat)
    elif source.size:
        arguments = target.flat.address, source.flat.address, source.nbytes, driver().queue
        driver().call("cuMemcpyDtoDAsync", *arguments)


@lru_cache(maxsize=1024)
def constants(*numbers: int) -> CudaArray:
    """Whole numbers as an int32 array on the GPU, kept for the next who asks for the same ones.

    For what would be too many arguments of a kernel: sizes and strides of any number of axes.
    """
    return _upload(np.asarray(numbers, np.int32))


def kept(array: Array) -> CudaArray:
    """An array as it is on the GPU, kept for the next who asks for the same numbers.

    For short ones, such as index maps: it is by their bytes that they are found again.
    """
    return _kept(array.tobytes(), array.shape, array.dtype)


@lru_cache(maxsize=256)
def _kept(numbers: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> CudaArray:
    return _upload(np.frombuffer(numbers, dtype).reshape(shape))


def tables(rule: Callable[..., Any], arrays: Sequence[Array], *numbers: int) -> list[CudaArray]:
    """What a rule makes of short arrays, a tuple of arrays, on the GPU: worked out once and `kept`.

    The rule is a function of a module, for it is found again by its name and what it was given.
    """
    given = tuple((array.tobytes(), array.shape, array.dtype) for array in arrays)
    return _tables(rule, given, numbers)


@lru_cache(maxsize=256)
def _tables(rule: Callable[..., Any], given: tuple[Any, ...], numbers: Any) -> list[CudaArray]:
    arrays = (np.frombuffer(data, dtype).reshape(shape) for data, shape, dtype in given)
    return [_upload(np.asarray(made)) for made in rule(*arrays, *numbers)]


def counters(count: int) -> CudaArray:
    """Some int32 zeros, kept, for the blocks of a launch to count in; it leaves them zero.

    There are ``count`` or more. Launches come one after the other, so all may share them.
    """
    return _counters(1 << max(8, (count - 1).bit_length()))


@lru_cache(maxsize=32)
def _counters(count: int) -> CudaArray:
    return _upload(np.zeros(count, np.int32))


def pieces(*lists: Sequence[CudaArray]) -> tuple[CudaArray, int]:
    """Lists of arrays, cut into pieces for the blocks of one launch: a table, and how many pieces.

    Array k of each list has as many numbers, which a launch reads and writes together. A row of the
    table, of int64, is a piece: for each list the address where its numbers begin, and their count.

    The pool deals the same memory out in the same few orders, step after step of a training, so the
    tables are found again. (Where the orders do not come back, one is made and sent in each step.)

    Raises
    ------
    ShapeError
        If the lists do not have as many arrays, of as many numbers.
    """
    sizes, *others = [tuple([array.size for array in arrays]) for arrays in lists]
    for other in others:
        if other != sizes:
            raise ShapeError(
                f"expected lists of arrays with as many numbers; got {sizes} and {other}. A "
                "parameter's gradient and state have its shape."
            )
    if being_recorded:
        for arrays in lists:
            being_recorded.keep(tuple(arrays))
    addresses = tuple([_address(array.flat) for arrays in lists for array in arrays])
    return _pieces(addresses, sizes, lists[0][0].dtype.itemsize)


_PIECE = 4 * _THREADS  # numbers of a piece, if all are few
_PIECES = 32  # for each multiprocessor, about, if all are many


@lru_cache(maxsize=64)
def _pieces(
    addresses: tuple[int, ...], sizes: tuple[int, ...], itemsize: int
) -> tuple[CudaArray, int]:
    most = _PIECE * max(1, -(-sum(sizes) // (_PIECES * card().multiprocessors * _PIECE)))
    size = np.asarray(sizes, np.int64)
    count = -(-size // most)  # pieces of each array
    array = np.repeat(np.arange(len(size)), count)  # of each piece
    start = most * (np.arange(len(array)) - np.repeat(np.cumsum(count) - count, count))
    begin = np.asarray(addresses, np.int64).reshape(-1, len(size))  # (lists, arrays)
    rows = [*(begin[:, array] + itemsize * start), np.minimum(most, size[array] - start)]
    return _upload(np.stack(rows, axis=1)), len(array)


_CACHES = constants, _kept, _tables, _counters, _pieces


def cuda_statistics() -> buffers.Statistics:
    """How much of the GPU's memory is in use and held, in bytes; see `buffers.Statistics`."""
    return _pool.statistics()


def cuda_empty_cache() -> None:
    """Give all of the GPU's memory that waits for a next use back, and count the peak anew.

    Tables that are kept for kernels are let go as well, and made again when they are needed. A
    recording keeps its own; while one is made no table can be made again, so they stay.
    """
    for cached in () if being_recorded else _CACHES:
        cached.cache_clear()
    _pool.empty_cache()


# ---------------------------------------------------------------------------------------------
# Recording


class Recorded:
    """Launches that the driver repeats as one: what it made of them, and the memory they use.

    They know addresses. So what the function takes from the pool comes from a pool of its own, and
    nobody else gets it; and what was there before is kept here, whoever else forgets it: the tables
    of kernels, a gradient that a later one replaced, images that only the function knew.
    """

    def __init__(self, outside: _CudaPool) -> None:
        self.pool = _CudaPool(outside)
        self.kept: dict[int, Any] = {}  # memory from outside, by its id
        self.leaves: dict[int, Any] = {}  # tensors that were given a gradient, by their ids
        self.thread = threading.get_ident()  # others may go on, on the processor
        self.graph: Any = None
        self.result: Any = None
        self.at_its_end(self.pool.dissolve)

    def at_its_end(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Call a function when the recording is gone, unless Python ends and the driver with it."""
        weakref.finalize(self, call, *arguments).atexit = False

    def keep(self, arguments: tuple[Any, ...]) -> None:
        """Keep the memory of arrays, save those in the pool of the recording's own."""
        for argument in arguments:
            memory = argument.memory if isinstance(argument, CudaArray) else None
            if memory is not None and getattr(memory, "pool", None) is not self.pool:
                self.kept[id(memory)] = memory

    def gradient_of(self, leaf: Any) -> None:
        """Remember a tensor that is about to be given a gradient.

        Raises
        ------
        DeviceError
            If it has one from before, to which each repetition would add again, or is not on the
            GPU, where alone anything is repeated.
        """
        if threading.get_ident() != self.thread:
            return
        if not isinstance(leaf.data, CudaArray):
            refuse_while_recording("a gradient on the cpu", 'Move all to the GPU: .to("cuda").')
        if leaf.grad is not None and id(leaf) not in self.leaves:
            refuse_while_recording(
                "a gradient added to one from before",
                "Forget that one at the beginning of the function: optimizer.zero_grad().",
            )
        self.leaves[id(leaf)] = leaf


being_recorded: Recorded | None = None


def refuse_while_recording(what: str, instead: str) -> None:
    """Refuse what a repetition could not repeat.

    Raises
    ------
    DeviceError
        While `capture` runs.
    """
    if being_recorded:
        raise DeviceError(f"expected launches alone while they are recorded; got {what}. {instead}")


def capture(function: Callable[[], Any]) -> Recorded:
    """Let a function put its launches into a *CUDA graph* in place of the queue: nothing runs."""
    global _pool, being_recorded
    refuse_while_recording("another recording", "Record one after the other.")
    recorded = Recorded(_pool)
    outside, _pool, being_recorded = _pool, recorded.pool, recorded
    try:
        if SIMULATED:
            recorded.graph, recorded.result = function, function()
        else:
            _capture(function, recorded)
    finally:
        _pool, being_recorded = outside, None
    return recorded


def _capture(function: Callable[[], Any], recorded: Recorded) -> None:
    mode = driver().bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    driver().call("cuStreamBeginCapture", driver().queue, mode)
    try:
        recorded.result = function()
    except BaseException:
        with suppress(DriverError, DeviceError):  # what went wrong before is what there is to say
            driver().call("cuGraphDestroy", driver().call("cuStreamEndCapture", driver().queue))
        raise
    graph = driver().call("cuStreamEndCapture", driver().queue)
    try:
        recorded.graph = driver().call("cuGraphInstantiate", graph, 0)
    finally:
        driver().call("cuGraphDestroy", graph)  # what is launched is a copy of it
    recorded.at_its_end(driver().call, "cuGraphExecDestroy", recorded.graph)


def repeat(recorded: Recorded) -> Any:
    """Put all recorded launches into the queue at once; the function's result."""
    if SIMULATED:
        return recorded.graph()
    driver().call("cuGraphLaunch", recorded.graph, driver().queue)
    return recorded.result


# ---------------------------------------------------------------------------------------------
# Copies


class _Staging:
    """Two halves of pinned memory, which the GPU reads and writes by itself.

    A copy between the GPU and ordinary memory has to pass through such memory in any case. Through
    ours it goes in pieces: while the GPU moves one, the processor fills or empties the other. A
    piece on its way up needs nobody to wait for it.
    """

    piece = 2**22  # bytes

    def __init__(self) -> None:
        cuda = numba_cuda()
        self.lock = threading.Lock()
        quick = {} if SIMULATED else {"timing": False}
        with _at_home():
            self.halves = [cuda.pinned_array(self.piece, np.uint8) for _ in range(2)]
            self.events = [cuda.event(**quick) for _ in range(2)]
        self.next = 0

    def up(self, source: Array, target: CudaArray) -> None:
        """Bytes of the processor to the GPU; returns when ``source`` may be changed."""
        with self.lock:
            for start in range(0, len(source), self.piece):
                self.next = 1 - self.next
                half, event = self.halves[self.next], self.events[self.next]
                part = source[start : start + self.piece]
                event.synchronize()  # the GPU has read what was here before
                half[: len(part)] = part
                _send(half, target, start, len(part))
                event.record(stream())

    def down(self, source: CudaArray, target: Array) -> None:
        """Numbers of the GPU to bytes of the processor."""
        waiting: tuple[Any, Array, Array] | None = None
        with self.lock:
            for start in range(0, len(target), self.piece):
                self.next = 1 - self.next
                half, event = self.halves[self.next], self.events[self.next]
                part = target[start : start + self.piece]
                event.synchronize()
                _fetch(half, source, start, len(part))
                event.record(stream())
                _arrive(waiting)
                waiting = event, half, part
            _arrive(waiting)


def _send(half: Array, target: CudaArray, start: int, size: int) -> None:
    """Bytes of pinned memory to an array's bytes from ``start`` on."""
    if SIMULATED:
        target.flat.view(np.uint8)[start : start + size].copy_to_device(half[:size])
    else:
        to, source = target.flat.address + start, half.ctypes.data
        driver().call("cuMemcpyHtoDAsync", to, source, size, driver().queue)


def _fetch(half: Array, source: CudaArray, start: int, size: int) -> None:
    """The other way."""
    if SIMULATED:
        source.flat.view(np.uint8)[start : start + size].copy_to_host(half[:size])
    else:
        to, place = half.ctypes.data, source.flat.address + start
        driver().call("cuMemcpyDtoHAsync", to, place, size, driver().queue)


def _arrive(waiting: tuple[Any, Array, Array] | None) -> None:
    if waiting:
        event, half, part = waiting
        event.synchronize()
        part[:] = half[: len(part)]


_staging = _once(_Staging)


def _upload(array: Array) -> CudaArray:
    result = empty(array.shape, array.dtype)
    _write(array, result)
    return result


def _write(array: Array, target: CudaArray) -> None:
    refuse_while_recording(
        "a copy to the GPU", "Make the array before; between repetitions, device.write changes it."
    )
    if target.size:
        line = np.ascontiguousarray(array).reshape(-1)
        with _failures_explained():
            _staging().up(line.view(np.uint8), target)


def _download(array: CudaArray) -> Array:
    refuse_while_recording("a copy from the GPU", "Look at what it returns after each repetition.")
    result = np.empty(array.shape, array.dtype)
    if array.size:
        with _failures_explained():
            _staging().down(array, result.reshape(-1).view(np.uint8))
    return result


# ---------------------------------------------------------------------------------------------
# Arrays of other libraries


def is_foreign(data: Any) -> bool:
    """Whether it is an array of another library on a GPU, such as a tensor of PyTorch."""
    if isinstance(data, np.ndarray | CudaArray | MetaArray):
        return False
    if hasattr(data, "__cuda_array_interface__"):
        return True
    on = getattr(data, "__dlpack_device__", None)
    return on is not None and int(on()[0]) == 2  # a GPU's number in the DLPack protocol


def adopt(data: Any) -> CudaArray:
    """The numbers of an array of another library, in its own memory: nothing is copied.

    Unless it may not be written to, as an optimiser would: of such an array it is a copy.

    Raises
    ------
    DeviceError
        If there is no GPU here, or the array is on another one.
    ShapeError, DtypeError
        If its numbers do not lie in C order, or are none that kernels compute with.
    """
    check_device("cuda")
    interface = getattr(data, "__cuda_array_interface__", None)
    owner = data
    if interface is None:
        interface, owner = _interface_of_dlpack(data)
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and math.prod(shape) and tuple(strides) != _c_strides(shape, dtype):
        wanted = [n for n, size in enumerate(shape) if size != 1]
        right = _c_strides(shape, dtype)
        if any(strides[n] != right[n] for n in wanted):
            raise ShapeError(
                f"expected an array in C order; got strides {tuple(strides)} for shape {shape}. "
                "Make it contiguous first: x.contiguous(), cupy.ascontiguousarray(x)."
            )
    if dtype.kind not in "biuf" or not dtype.isnative or dtype == np.float16:
        raise DtypeError(
            f"expected whole numbers, float32 or float64; got an array of dtype {dtype}. Convert "
            "it first."
        )
    if interface.get("mask") is not None:
        raise DtypeError("expected an array without a mask; got one with. Fill its gaps first.")
    if not math.prod(shape):
        return empty(shape, dtype)
    place, read_only = interface["data"]
    if place % dtype.itemsize:
        raise ShapeError(
            f"expected {dtype} at an address that {dtype.itemsize} divides; got {place:#x}. Copy "
            "the array first: x.clone(), x.copy()."
        )
    _needed(shape, dtype)  # refuses more than a kernel can count
    array = CudaArray(_line_of(interface, math.prod(shape), dtype), shape, dtype, owner, owner)
    return array.copy() if read_only else array


def _c_strides(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    return tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class _Described:
    """Memory of the processor behind an interface of the GPU's form: in the simulator, all is."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = {**interface, "stream": None}


def _line_of(interface: dict[str, Any], count: int, dtype: np.dtype[Any]) -> Any:
    """A line where another library's numbers are, once the work on them is in our queue's past."""
    if SIMULATED:
        described = _Described({**interface, "shape": (count,), "strides": None})
        return numba_cuda().cudadrv.devicearray.FakeCUDAArray(np.asarray(described))
    place = int(interface["data"][0])
    _check_card(place)
    queue = interface.get("stream")
    if queue not in (None, 1):  # 1 is CUDA's default stream, for which ours waits by itself
        driver().call("cuStreamSynchronize", queue)
    return Line(place, count, dtype)


def _check_card(place: int) -> None:
    """Refuse memory of another card than the one that kernels are launched on."""
    attribute = driver().bindings.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    try:
        there = int(driver().call("cuPointerGetAttribute", attribute, place))
    except DriverError:  # not the driver's memory, so on no card
        return
    here = driver().card
    if there != here:
        raise DeviceError(
            f"expected an array on the GPU that computes here, number {here}; got one on number "
            f"{there}. Copy it there first (x.to('cuda:{here}')), or make the other one the first: "
            f"CUDA_VISIBLE_DEVICES={there} before Python starts."
        )


def _address(line: Any) -> int:
    return int(line.ctypes.data) if SIMULATED else line.address


def _interface_of_dlpack(data: Any) -> tuple[dict[str, Any], Any]:
    from cuda.core.utils import StridedMemoryView  # comes with numba-cuda

    view = StridedMemoryView.from_dlpack(data, stream_ptr=1)  # CUDA's default stream
    dtype = np.dtype(view.dtype)
    strides = view.strides and tuple(stride * dtype.itemsize for stride in view.strides)
    interface = {
        "shape": tuple(view.shape),
        "typestr": dtype.str,
        "data": (int(view.ptr), bool(view.readonly)),
        "strides": strides or None,
        "version": 3,
    }
    return interface, view


# ---------------------------------------------------------------------------------------------
# Where an array is, and moving it


def device_of(array: Any) -> str:
    """Name of the device that an array lives on."""
    if isinstance(array, np.ndarray):
        return "cpu"
    if isinstance(array, CudaArray):
        return "cuda"
    if isinstance(array, MetaArray):
        return "meta"
    raise DeviceError(f"expected an array on one of {', '.join(DEVICES)}; got {type(array)}.")


def is_device(target: Any) -> bool:
    """Whether it is a device's name and no dtype's, or PyTorch's for one of several cards."""
    return isinstance(target, str) and (target in DEVICES or target.startswith("cuda:"))


def check_device(device: str) -> str:
    """Return ``device`` if a tensor can be put there; say why not otherwise."""
    if device not in DEVICES:
        raise DeviceError(
            f"expected a device out of {', '.join(DEVICES)}; got {device!r}. "
            + (
                'One card is used, by the name "cuda"; CUDA_VISIBLE_DEVICES chooses it before '
                "Python starts."
                if str(device).startswith("cuda")
                else 'Write "cpu", or "cuda" for a GPU.'
            )
        )
    if device == "cuda" and cuda_problem():
        raise DeviceError(
            f'expected a GPU to compute on; {cuda_problem()} Without one, stay on device="cpu", '
            "or step through the kernels in Numba's simulator: set NUMBA_ENABLE_CUDASIM=1 before "
            "Python starts."
        )
    return device


def move(array: Any, device: str) -> Any:
    """Copy an array to another device; an array that is there already is returned as it is."""
    source = device_of(array)
    check_device(device)
    if source == device:
        return array
    if device == "meta":
        return MetaArray(array.shape, array.dtype)
    if source == "meta":
        raise DeviceError(
            f"expected an array with numbers to move to {device}; got one on {source}, which has a "
            "shape only. Make the tensor or the module on the device where it is to compute."
        )
    return _download(array) if device == "cpu" else _upload(array)


def write(array: Array, target: Any) -> None:
    """Copy an array's numbers into memory that is there already, on the processor or the GPU.

    Raises
    ------
    ShapeError
        If the memory holds numbers of another shape.
    """
    if array.shape != target.shape:
        raise ShapeError(
            f"expected numbers for an array of shape {target.shape}; got some of shape "
            f"{array.shape}. Memory that is there already keeps its size."
        )
    if isinstance(target, CudaArray):
        _write(array.astype(target.dtype, copy=False), target)
    else:
        np.copyto(target, array, casting="unsafe")


# ---------------------------------------------------------------------------------------------
# The simulator, with what it lacks


class _Simulated:
    """``numba.cuda`` as a kernel in the simulator sees it.

    The simulator's own arrays in shared and local memory take no ``alignment``. These do; and they
    are full of nan for each block, which shows a number that is read before it was written.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.launch: Any = None  # kept, so that no later launch can be taken for it
        self.block: tuple[int, ...] = ()
        self.allocated: dict[tuple[Any, int], Array] = {}
        self.shared = _Allocator(self._shared)
        self.local = _Allocator(_full_of_nan)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever asks for protocols, asks outside a kernel
            raise AttributeError(name)
        return getattr(_simulated_context(), name)

    def _shared(self, shape: Any, dtype: Any) -> Array:
        """The one array that all threads of the block get at this line of the kernel."""
        caller = sys._getframe(2)  # _shared, array, the kernel
        place = caller.f_code, caller.f_lineno
        with self.lock:
            launch, block = _simulated_context(), tuple(_simulated_context().blockIdx)
            if launch is not self.launch or block != self.block:
                self.launch, self.block, self.allocated = launch, block, {}
            if place not in self.allocated:
                self.allocated[place] = _full_of_nan(shape, dtype)
            return self.allocated[place]


class _Allocator:
    """Has the method ``array``, as ``cuda.shared`` and ``cuda.local`` do."""

    def __init__(self, make: Callable[[Any, Any], Array]) -> None:
        self.make = make

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Array:
        return self.make(shape, dtype)


def _full_of_nan(shape: Any, dtype: Any) -> Array:
    dtype = np.dtype(getattr(dtype, "name", dtype))  # Numba's types have names, too
    return np.full(shape, np.nan if dtype.kind == "f" else 77, dtype)


def _simulated_context() -> Any:
    from numba.cuda.simulator.kernel import _get_kernel_context

    return _get_kernel_context()  # type: ignore[no-untyped-call]


@cache
def cuda_in_kernels() -> Any:
    """What the name ``cuda`` means inside a kernel's body."""
    return _Simulated() if SIMULATED else numba_cuda()
