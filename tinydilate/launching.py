"""Compiling and launching GPU kernels.

``@cuda.jit`` marks the body of a GPU kernel, as ``numba.cuda.jit`` does, and ``body[blocks,
threads](...)`` launches it. `cuda` here stands for ``numba.cuda``, which is not imported before
the first launch. Rules of scalars marked with ``@jit`` are written once and compiled for both.
"""

from __future__ import annotations

import ctypes
import inspect
import math
import operator
import os
import struct
import threading
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from types import FunctionType
from typing import Any, cast, overload

import numpy as np

from tinydilate import compiling, cubins, device
from tinydilate.compiling import Jitted, Native, bound, jit, native
from tinydilate.device import SIMULATED, Array, CudaArray, DriverError, cover
from tinydilate.errors import DeviceError, DtypeError, KernelError

OLDEST = (7, 5)  # compute capability of the oldest card that kernels are compiled for
DEBUG = os.environ.get("TINYDILATE_CUDA_DEBUG") == "1"

# Arrays in the signature of a kernel's body; `Array` stands for the dtype that the kernel runs in.
Float32Array = Array
Float64Array = Array
Int32Array = Array
Int64Array = Array
ByteArray = Array

_ARRAYS: dict[str, Any] = {
    "Array": None,
    "Float32Array": np.dtype(np.float32),
    "Float64Array": np.dtype(np.float64),
    "Int32Array": np.dtype(np.int32),
    "Int64Array": np.dtype(np.int64),
    "ByteArray": np.dtype(np.uint8),
}
_SCALARS: dict[str, Any] = {
    "float": None,
    "int": np.dtype(np.int32),
    "bool": np.dtype(np.bool_),
    "np.uint32": np.dtype(np.uint32),
    "np.int64": np.dtype(np.int64),
    "np.uint64": np.dtype(np.uint64),
    "np.float32": np.dtype(np.float32),
    "np.float64": np.dtype(np.float64),
}

CUDA_KERNELS: list[CudaKernel] = []  # every one, for scripts/compile_kernels.py


class LaunchError(KernelError):
    """A GPU kernel that could not be compiled or launched, or in the simulator failed."""

    def __init__(self, name: str, shape: tuple[Any, ...], error: Exception) -> None:
        super().__init__(
            f"the GPU kernel {name} failed on {shape[0]} blocks of {shape[1]} threads: "
            f"{type(error).__name__}: {error}"
        )


class _Compiled:
    """A kernel for one dtype as the driver launches it.

    Numba would launch it, too, but looks at each argument again, in Python, and makes an object for
    each number: 60 microseconds on the machine of an H100, where PyTorch needs 10.
    """

    def __init__(self, function: Any, forms: str, owner: Any = None) -> None:
        self.function, self.driver = function, device.driver()
        self.owner = owner  # without it, the machine code would be unloaded
        # A number takes eight bytes, an array seven times eight.
        self.packing = struct.Struct(forms)
        self.arguments = ctypes.create_string_buffer(self.packing.size)
        count, first = self.packing.size // 8, ctypes.addressof(self.arguments)
        self.places = (ctypes.c_void_p * count)(*(first + 8 * n for n in range(count)))
        self.address = ctypes.addressof(self.places)
        self.lock = threading.Lock()  # the driver has read the arguments when it returns

    def launch(self, shape: tuple[int, ...], words: Sequence[Any]) -> None:
        with self.lock:
            self.packing.pack_into(self.arguments, 0, *words)
            self.driver.launch(self.function, shape, self.address)


_WORDS = {  # of a number among a kernel's arguments
    np.dtype(np.int32): "i4x",
    np.dtype(np.uint32): "I4x",
    np.dtype(np.int64): "q",
    np.dtype(np.uint64): "Q",
    np.dtype(np.bool_): "?7x",
    np.dtype(np.float32): "f4x",
    np.dtype(np.float64): "d",
}
_WORDS_OF_A_LINE = "56s"  # seven words, see `device.Line`


class CudaKernel:
    """The body of a GPU kernel: compiled when first launched, once for each dtype; see `_Cuda.jit`.

    ``body[blocks, threads](...)`` launches it, as in ``numba.cuda``. Its parameters' annotations
    are its signature: an ``Array`` holds numbers of the dtype that the kernel runs in, and a
    ``float`` is one; other arrays say what they hold (``Int64Array``); an ``int`` has 32 bits.
    """

    def __init__(self, body: Callable[..., Any], dtypes: Sequence[Any], **options: Any) -> None:
        self.body = body
        self.dtypes = tuple(np.dtype(dtype) for dtype in dtypes)
        self.wide_loads = options.pop("wide_loads")
        self.registers = options.pop("registers")
        self.instruction = options.pop("instruction", "")
        self.capability = options.pop("capability", OLDEST)
        self.options = {name: value for name, value in options.items() if value}
        self.name = f"{body.__module__.rpartition('.')[2]}.{body.__qualname__}"
        self.name = self.name.replace(".<locals>", "")
        self.__doc__, self.__name__ = body.__doc__, body.__name__
        self._compiled: dict[np.dtype[Any], Any] = {}
        self._launchers: dict[tuple[Any, ...], _Launcher] = {}
        self.parameters = [self._parameter(item) for item in _annotations(body)]
        CUDA_KERNELS.append(self)

    def _parameter(self, item: tuple[str, str]) -> tuple[bool, Any]:
        """(whether it is an array, its dtype or None for the kernel's)."""
        name, annotation = item
        if annotation in _ARRAYS:
            return True, _ARRAYS[annotation]
        if annotation in _SCALARS:
            return False, _SCALARS[annotation]
        raise KernelError(
            f"expected {self.name} to annotate {name} with one of "
            f"{', '.join([*_ARRAYS, *_SCALARS])}; got {annotation!r}. They are the "
            "signature that it is compiled for, read as they are written: the module begins with "
            "`from __future__ import annotations`."
        )

    def __getitem__(self, shape: tuple[Any, ...]) -> _Launcher:
        """Blocks, threads a block (each an int or a tuple), bytes of dynamic shared memory."""
        launcher = self._launchers.get(shape)
        if launcher is None:
            if len(self._launchers) > 256:  # a new shape in every call: keep none for ever
                self._launchers.clear()
            launcher = self._launchers[shape] = _Launcher(self, *shape)
        return launcher

    def compiled(self, dtype: np.dtype[Any]) -> Any:
        """For one dtype, what can be launched; in the simulator, Numba's own object."""
        with compiling.decorating:
            if dtype not in self._compiled:
                self._compiled[dtype] = self._compile(dtype)
            return self._compiled[dtype]

    def _compile(self, dtype: np.dtype[Any]) -> Any:
        if dtype not in self.dtypes:
            raise DtypeError(
                f"{self.name} expected {' or '.join(d.name for d in self.dtypes)}; got {dtype}. "
                "Convert the tensors with .to(np.float32)."
            )
        numba_cuda = device.numba_cuda()
        if SIMULATED:
            return numba_cuda.jit(_quiet(self.source()))
        recipe = self.recipe(dtype)
        if recipe and (loaded := _load(recipe)):
            return _Compiled(*loaded[:1], self.forms(dtype), *loaded[1:])
        with device.driver().at_home():
            built = numba_cuda.jit(self.signature(dtype), **self.options)(self.source())
            (overload,) = built.overloads.values()
            library = overload._codelibrary  # Numba has no public name for it
            function = library.get_cufunc()
        if recipe:
            cubins.keep(recipe, cubins.Cubin(library._entry_name, library.get_cubin().code))
        return _Compiled(function.handle, self.forms(dtype), built)

    def forms(self, dtype: np.dtype[Any]) -> str:
        """How its arguments are packed for one dtype, in the letters of `struct`."""
        words = [
            _WORDS_OF_A_LINE if is_array else _WORDS[own or dtype]
            for is_array, own in self.parameters
        ]
        return "<" + "".join(words)

    def recipe(self, dtype: np.dtype[Any]) -> str | None:
        """What the machine code for one dtype is kept under; see cubins.py."""
        options = [  # a set comes in any order
            (name, sorted(value) if isinstance(value, set) else value)
            for name, value in sorted(self.options.items())
        ]
        facts = self.parameters, dtype, options, device.card().capability, device.driver().version
        return cubins.recipe(self.body, *facts)

    def source(self) -> FunctionType:
        """The body with its outer names bound for the GPU: what Numba is given."""
        return bound(self.body, _for_kernels)

    def signature(self, dtype: np.dtype[Any]) -> Any:
        """The body's types as Numba writes them, for a kernel that runs in ``dtype``."""
        from numba import from_dtype, void

        types = []
        for is_array, own in self.parameters:
            scalar = from_dtype(own or dtype)
            types.append(scalar[::1] if is_array else scalar)
        return void(*types)

    def code_for(self, dtype: np.dtype[Any], capability: tuple[int, int], output: str) -> Any:
        """What the compiler makes of it for a card that need not be here: "ptx" or "ltoir"."""
        names = ("fastmath", "launch_bounds", "debug", "lineinfo", "opt")  # not the linker's
        options: Any = {name: self.options[name] for name in names if name in self.options}
        options |= {"device": False, "abi": "numba", "output": output, "cc": capability}
        source, signature = self.source(), self.signature(dtype)
        code, _ = device.numba_cuda().compile(source, signature, **options)
        return code

    def __call__(self, *arguments: Any) -> Any:
        raise KernelError(
            f"expected {self.name}[blocks, threads](...); got a call without blocks and threads. "
            f"Write {self.name}[cover(count)](...) for one thread an element."
        )


def _load(recipe: str) -> tuple[Any, Any] | None:
    """A kernel that an earlier process compiled, and what keeps it loaded."""
    kept = cubins.load(recipe)
    if kept is None:
        return None
    try:
        return device.driver().load(kept.code, kept.entry)
    except DriverError:  # code that this driver cannot take is as good as none
        return None


def _annotations(body: Callable[..., Any]) -> list[tuple[str, str]]:
    parameters = inspect.signature(body).parameters
    return [(name, str(each.annotation)) for name, each in parameters.items()]


def _three(sizes: Any) -> tuple[int, int, int]:
    """Sizes of a grid or a block along three axes; those not given are 1."""
    x, y, z, *_ = *(sizes if isinstance(sizes, tuple) else (sizes,)), 1, 1
    return x, y, z


class _Launcher:
    """A kernel with its blocks and threads."""

    __slots__ = ("kernel", "ready", "runs", "shape", "sizes")

    def __init__(self, kernel: CudaKernel, blocks: Any, threads: Any, shared: int = 0) -> None:
        self.kernel = kernel
        self.shape = blocks, threads, shared
        self.sizes = *_three(blocks), *_three(threads), shared
        self.runs = 0 not in self.sizes[:3]
        self.ready: dict[tuple[Any, ...], Callable[..., None]] = {}

    def __call__(self, *arguments: Any) -> None:
        """Launch, and do not wait; without blocks there is nothing to launch."""
        words: list[Any] = []
        dtypes: list[Any] = []  # of each argument, None for numbers
        for argument in arguments:
            if type(argument) is CudaArray:
                dtypes.append(argument.dtype)
                words.append(argument.flat if SIMULATED else argument.flat.words)
            else:
                dtypes.append(None)
                words.append(argument)
        seen = tuple(dtypes)
        launch = self.ready.get(seen)
        if launch is None:
            dtype = self._check(arguments)
            if not self.runs:
                return
            launch = self.ready[seen] = self._launch_of(dtype)
        if device.being_recorded:
            device.being_recorded.keep(arguments)
        try:
            launch(self.sizes, words)
            # The simulator waits by itself, and a launch that is recorded does not run.
            if DEBUG and not SIMULATED and not device.being_recorded:
                device.stream().synchronize()
        except DeviceError:  # of a kernel before this one
            raise
        except Exception as error:
            raise LaunchError(self.kernel.name, self.shape, error) from error

    def _launch_of(self, dtype: np.dtype[Any]) -> Callable[..., None]:
        """What launches it for one dtype."""
        if SIMULATED:
            return partial(self._simulate, dtype)
        try:
            return cast(Callable[..., None], self.kernel.compiled(dtype).launch)
        except Exception as error:
            raise LaunchError(self.kernel.name, self.shape, error) from error

    def _check(self, arguments: tuple[Any, ...]) -> np.dtype[Any]:
        """The dtype that the kernel runs in; once for all arguments of the same types.

        A compiled kernel does not look at what it is given, so this is the place to look.
        """
        parameters = self.kernel.parameters
        if len(arguments) != len(parameters):
            raise KernelError(
                f"{self.kernel.name} expected {len(parameters)} arguments; got {len(arguments)}."
            )
        dtype = None
        for (is_array, own), argument in zip(parameters, arguments, strict=True):
            if not is_array:
                if isinstance(argument, CudaArray):
                    raise DtypeError(
                        f"{self.kernel.name} expected a number; got an array of shape "
                        f"{argument.shape}. Take .item()."
                    )
                continue
            if type(argument) is not CudaArray or argument.dtype != (
                own or dtype or argument.dtype
            ):
                raise self._refused(argument, own or dtype)
            dtype = dtype if own else argument.dtype
        return dtype or self.kernel.dtypes[0]

    def _simulate(self, dtype: np.dtype[Any], sizes: tuple[int, ...], values: list[Any]) -> None:
        typed = [
            value if is_array else (own or dtype).type(value)
            for (is_array, own), value in zip(self.kernel.parameters, values, strict=True)
        ]
        blocks, threads, shared = self.shape
        self.kernel.compiled(dtype)[blocks, threads, 0, shared](*typed)

    def _refused(self, argument: Any, dtype: Any) -> Exception:
        expected = (
            f"expected arrays of {dtype} on the GPU" if dtype else "expected arrays on the GPU"
        )
        if isinstance(argument, CudaArray):
            return DtypeError(f"{self.kernel.name} {expected}; got one of {argument.dtype}.")
        return DeviceError(f"{self.kernel.name} {expected}; got {type(argument).__name__}.")


def _for_kernels(value: Any) -> Any:
    """What a name outside a GPU kernel's body means inside it."""
    if value is cuda:
        return device.cuda_in_kernels()
    if isinstance(value, Native):  # the simulator runs Python, so it runs the twin
        return bound(value.body, _for_kernels) if SIMULATED else value.emit()
    if isinstance(value, Jitted | CudaFunction):
        with compiling.decorating:
            return _device_function(value.body)
    return value


@cache
def _device_function(body: Callable[..., Any]) -> Callable[..., Any]:
    """A function for the bodies of GPU kernels, which becomes part of each that calls it."""
    function = bound(body, _for_kernels)
    if SIMULATED:
        return function
    compiled = device.numba_cuda().jit(device=True, inline="always")(function)
    return cast(Callable[..., Any], compiled)


def _quiet(body: FunctionType) -> Callable[..., Any]:
    """A body whose every thread takes inf, nan and numbers that wrap around for what they are."""

    def thread(*arguments: Any) -> None:
        with np.errstate(all="ignore"):
            body(*arguments)

    return thread


class CudaFunction:
    """A function that GPU kernels call, made by ``@cuda.jit(device=True)``."""

    def __init__(self, body: Callable[..., Any]) -> None:
        self.body = body
        self.__doc__, self.__name__ = body.__doc__, body.__name__


class _Cuda:
    """Stands for ``numba.cuda``, which is imported when the first kernel is launched.

    Inside the bodies of kernels, `cuda` is the real one (in the simulator, the simulator's).
    """

    stands_for = "numba.cuda"

    @overload
    def jit(self, body: Callable[..., Any]) -> CudaKernel: ...

    @overload
    def jit(self, body: None = None, **options: Any) -> Callable[[Callable[..., Any]], Any]: ...

    def jit(
        self,
        body: Callable[..., Any] | None = None,
        *,
        device: bool = False,
        dtypes: Sequence[Any] = (np.float32, np.float64),
        launch_bounds: Any = None,
        registers: int = 128,
        fastmath: Any = False,
        wide_loads: bool = False,
        instruction: str = "",
        capability: tuple[int, int] = OLDEST,
        **options: Any,
    ) -> Any:
        """Mark the body of a GPU kernel, or with ``device`` a function that such bodies call.

        Parameters
        ----------
        body : function
            Its annotations are its signature; see `CudaKernel`.
        device : bool
            Whether it is a function for kernels' bodies and not a kernel.
        dtypes : sequence of dtypes
            Those that it runs in.
        launch_bounds : int or (int, int), optional
            The most threads a block, and the fewest blocks that a multiprocessor should hold at a
            time: the compiler allots registers for that.
        registers : int
            How many registers a thread may take; checked when the kernels are compiled for a test.
        fastmath : bool
            Leave to reorder sums and to assume that there is neither nan nor inf.
        wide_loads : bool
            Whether it must read shared memory by 128 bits at a time; checked as the registers are.
        instruction : str
            What its machine code must contain; checked likewise.
        capability : (int, int)
            Of the first cards that it can be compiled for.
        **options
            Further options of ``numba.cuda.jit``.
        """

        def mark(body: Callable[..., Any]) -> Any:
            if device:
                return CudaFunction(body)
            return CudaKernel(
                body,
                dtypes,
                launch_bounds=launch_bounds,
                registers=registers,
                fastmath=fastmath,
                wide_loads=wide_loads,
                instruction=instruction,
                capability=capability,
                **options,
            )

        return mark if body is None else mark(body)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise KernelError(
            f"expected cuda.{name} inside the body of a kernel; got it outside. Mark the function "
            "with @cuda.jit, or with @cuda.jit(device=True) if kernels call it."
        )


cuda = _Cuda()


@jit
def place_of(n: Any, row: int, axes: int, table: Array) -> Any:
    """Where element n of an array is read, by one row of strides.

    ``table`` holds the array's sizes, and then rows of strides, each of ``axes`` numbers.
    """
    at = 0
    for back in range(axes):  # the last axis runs fastest
        axis = axes - 1 - back
        size = table[axis]
        at += n % size * table[(row + 1) * axes + axis]
        n //= size
    return at


@jit
def unravel(n: Any, height: Any, width: Any) -> Any:
    """Plane, row and column of element n of an array (P, H, W), as numbers with a sign."""
    height, width = np.uint32(height), np.uint32(width)  # division is quicker without one
    return np.int32(n // width // height), np.int32(n // width % height), np.int32(n % width)


@jit
def ravel(plane: Any, y: Any, z: Any, height: Any, width: Any) -> Any:
    """Number of an element of an array (P, H, W): `unravel` backwards, in 32 bits throughout."""
    row = np.uint32(np.uint32(plane) * np.uint32(height) + np.uint32(y))
    return np.uint32(row * np.uint32(width) + np.uint32(z))


@cuda.jit(device=True)
def in_planes() -> Any:
    """Where a thread of `device.cover_planes` stands in an array (P, H, W).

    Its column, its first row and its first plane, and how far it is to its next row and plane. It
    counts on by ``while``: for a ``range`` with steps that are not known the GPU divides.
    """
    column, row, plane = cuda.grid(3)
    _, down, deep = cuda.gridsize(3)
    return np.uint32(column), np.uint32(row), np.uint32(plane), np.uint32(down), np.uint32(deep)


@jit
def pair_at(table: Array, k: int) -> Any:
    """Pair number k of a table: its numbers 2*k and 2*k + 1."""
    return table[2 * k], table[2 * k + 1]


@cuda.jit(device=True)
def add_in_pairs(numbers: Any, thread: Any, threads: int) -> None:
    """Leave the sum of a block's shared array, a number a thread, in its first place.

    Half of the threads add the others' numbers to theirs, then half of those, and so on.
    """
    half = np.uint32(threads // 2)
    while half > 0:
        cuda.syncthreads()
        if thread < half:
            numbers[thread] += numbers[thread + half]
        half >>= np.uint32(1)


@cuda.jit(device=True)
def is_last_block(counters: Any, number: Any, blocks: Any) -> Any:
    """Whether all the other blocks that count here have finished, and what they wrote can be read.

    Each asks once, all its threads together, when its thread 0 has written what the block found.
    `device.counters` are zero before and after a launch.
    """
    before = cuda.shared.array(1, np.int32)
    if cuda.threadIdx.x == 0:
        cuda.threadfence()  # whoever sees the count sees what was written as well
        before[0] = cuda.atomic.add(counters, number, np.int32(1))
        cuda.threadfence()
        if before[0] == np.int32(blocks - 1):
            counters[number] = 0
    cuda.syncthreads()
    return before[0] == np.int32(blocks - 1)


@cache
def _emit_number_at() -> Any:
    """Numba intrinsic for `number_at`."""
    from numba import types
    from numba.cuda.extending import intrinsic

    @intrinsic
    def number_at(typing: Any, address: Any, n: Any, like: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _emit_place(builder, context.get_data_type(like.dtype), *arguments[:2])
            return builder.load(place)

        return like.dtype(types.int64, types.int64, like), emit

    return number_at


@cache
def _emit_put_at() -> Any:
    """Numba intrinsic for `put_at`."""
    from numba import types
    from numba.cuda.extending import intrinsic

    @intrinsic
    def put_at(typing: Any, address: Any, n: Any, number: Any, like: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _emit_place(builder, context.get_data_type(like.dtype), *arguments[:2])
            builder.store(context.cast(builder, arguments[2], number, like.dtype), place)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, number, like), emit

    return put_at


def _emit_place(builder: Any, kind: Any, address: Any, n: Any) -> Any:
    """A pointer to number n of a type from an address on, in the card's main memory."""
    from llvmlite import ir

    first = builder.inttoptr(address, ir.PointerType(kind, addrspace=1))
    return builder.gep(first, [n])


@native(_emit_number_at)
def number_at(address: Any, n: Any, like: Array) -> Any:
    """Number n of those that begin at an address, of the type that another array holds."""
    return _place_at(address, n, like.dtype)[0]


@native(_emit_put_at)
def put_at(address: Any, n: Any, number: Any, like: Array) -> None:
    """Write number n of those that begin at an address, as `number_at` reads it."""
    _place_at(address, n, like.dtype)[0] = number


def _place_at(address: Any, n: Any, dtype: np.dtype[Any]) -> Any:
    """An array of one number, which is there; in the simulator all memory is the processor's."""
    place: Any = (ctypes.c_byte * dtype.itemsize).from_address(int(address + n * dtype.itemsize))
    return np.frombuffer(place, dtype)


class CudaElementwise:
    """A rule of one or two scalars as a function of arrays on the GPU: it broadcasts.

    The rule is a function of ours, or a ufunc of NumPy, of which there the scalar part is meant.
    """

    def __init__(self, rule: Callable[..., Any]) -> None:
        self.rule = rule
        count = rule.nin if isinstance(rule, np.ufunc) else len(inspect.signature(rule).parameters)
        inside = CudaFunction(rule) if isinstance(rule, FunctionType) else _scalar_form(rule)
        self._alike = (_unary if count == 1 else _binary)(inside)
        self._spread = _binary_spread(inside) if count == 2 else None

    def __call__(self, *arrays: CudaArray) -> CudaArray:
        first, last = arrays[0], arrays[-1]
        if first.shape == last.shape:
            out = device.empty(first.shape, first.dtype)
            self._alike[cover(out.size)](*arrays, out)
            return out
        shape, axes, numbers = _broadcast(first.shape, last.shape)
        out = device.empty(shape, first.dtype)
        table = device.constants(*numbers)
        cast(Any, self._spread)[cover(out.size)](first, last, out, axes, table)
        return out


def _scalar_form(rule: Any) -> Any:
    """What a ufunc does to one number, in the words that Numba knows on the GPU.

    The simulator gets the ufunc itself: ``math.exp`` has no inf to answer with.
    """
    forms = {
        np.add: operator.add,
        np.subtract: operator.sub,
        np.negative: operator.neg,
        np.multiply: operator.mul,
        np.divide: operator.truediv,
        np.power: operator.pow,
        np.exp: math.exp,
        np.log: math.log,
    }
    return rule if SIMULATED else forms[rule]


@lru_cache(4096)
def _broadcast(
    first: tuple[int, ...], last: tuple[int, ...]
) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    """Of the result of two arrays: its shape, how many axes, and the table for `place_of`."""
    shape = np.broadcast_shapes(first, last)
    strides = *_broadcast_strides(first, shape), *_broadcast_strides(last, shape)
    return shape, max(1, len(shape)), (*(shape or (1,)), *strides)


def _broadcast_strides(shape: tuple[int, ...], full: tuple[int, ...]) -> list[int]:
    """Elements from one index to the next along each axis of ``full``; 0 repeats."""
    strides, step = [0] * max(1, len(full)), 1
    for back, size in enumerate(reversed(shape), 1):
        strides[-back] = step if size != 1 else 0
        step *= size
    return strides


def _unary(rule: Any) -> Any:
    @cuda.jit
    def alike(a: Array, out: Array) -> None:
        n = np.uint32(cuda.grid(1))
        if n < out.size:
            out[n] = rule(a[n])

    return _named_after(rule, alike)


def _binary(rule: Any) -> Any:
    @cuda.jit
    def alike(a: Array, b: Array, out: Array) -> None:
        n = np.uint32(cuda.grid(1))
        if n < out.size:
            out[n] = rule(a[n], b[n])

    return _named_after(rule, alike)


def _binary_spread(rule: Any) -> Any:
    @cuda.jit
    def spread(a: Array, b: Array, out: Array, axes: int, table: Int32Array) -> None:
        n = np.uint32(cuda.grid(1))
        if n < out.size:
            at_a, at_b = place_of(n, 0, axes, table), place_of(n, 1, axes, table)
            out[n] = rule(a[np.uint32(at_a)], b[np.uint32(at_b)])

    return _named_after(rule, spread)


def _named_after(rule: Any, kernel: CudaKernel) -> CudaKernel:
    kernel.name = f"elementwise {rule.__name__} {kernel.__name__}"
    return kernel
