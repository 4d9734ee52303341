"""Kernels: one name, one meaning, an implementation for each device.

``@kernel`` marks a plain NumPy function as the reference, which is the specification.
``@name.cpu``, ``@name.cuda`` and ``@name.meta`` add its twins: host functions of the same
arguments that return the same result on their device. Calling the kernel picks the twin by the
device of its arguments. The registry `KERNELS` knows them all: the table of ops, the tests and the
documentation walk it.

``@jit`` marks the loops inside a CPU twin for Numba. Numba itself is imported, and a loop
compiled, when it is first called. Machine code is kept on disk in a folder named after a digest of
our sources, so that an edit is never answered with stale code.

``@cuda.jit`` marks the bodies of GPU kernels, as ``numba.cuda.jit`` does, and ``body[blocks,
threads](...)`` launches them. `cuda` here stands for ``numba.cuda``, which is not imported before
the first launch. Rules of scalars marked with ``@jit`` are written once and compiled for both.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import operator
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple, TypeVar, cast, overload

import numpy as np

from tinydilate import buffers, device, window
from tinydilate.device import SIMULATED, Array, CudaArray, MetaArray, cover, device_of
from tinydilate.errors import DeviceError, DtypeError, KernelError
from tinydilate.threads import share

Function = TypeVar("Function", bound=Callable[..., Any])
_LEAST = 65_536  # elements worth a thread

# ---------------------------------------------------------------------------------------------
# Compiling loops

# Threads meet in a loop's first call. One makes Numba's dispatcher and the others use it; and the
# cache folder, which is a setting of the whole process, is changed by one at a time.
_decorating = threading.RLock()


def _forget_lock() -> None:
    """A forked child may have been born while another thread of its parent held the lock."""
    global _decorating
    _decorating = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


class Jitted:
    """A loop that Numba compiles when it is first called.

    The rules that a loop names among its globals (other ``@jit`` functions) are compiled with it.
    """

    def __init__(self, body: Callable[..., Any], **options: Any) -> None:
        self.body = body
        self.options = options
        self._compiled: Callable[..., Any] | None = None
        self._in_kernels: Callable[..., Any] | None = None
        self.__doc__ = body.__doc__
        self.__name__ = body.__name__

    def __call__(self, *arguments: Any) -> Any:
        try:
            return (self._compiled or self.compiled)(*arguments)
        except OSError as error:
            return _without_room(error, self.compiled, arguments)

    @property
    def compiled(self) -> Callable[..., Any]:
        """Numba's dispatcher for the loop."""
        with _decorating:
            if self._compiled is None:
                self._compiled = self._compile()
            return self._compiled

    @property
    def in_kernels(self) -> Callable[..., Any]:
        """The same rule for the bodies of GPU kernels."""
        with _decorating:
            if self._in_kernels is None:
                self._in_kernels = _device_function(self.body)
            return self._in_kernels

    def _compile(self) -> Callable[..., Any]:
        import numba

        # error_model: 1/0 is inf, as in NumPy. nogil: `share` runs bodies side by side.
        options = {"nogil": True, "error_model": "numpy", **self.options}
        return _cached(self.body, lambda cache: numba.njit(cache=cache, **options))


def _without_room(error: OSError, compiled: Callable[..., Any], arguments: Any) -> Any:
    """Call a loop whose machine code could not be kept on disk: it is full, or a quota is.

    Numba compiles, then saves, then runs. What it could not save is compiled all the same, so each
    new call gets one loop further: this one, or one that it calls.
    """
    global _cache_folder
    if _cache_folder is not None:
        warnings.warn(
            f"machine code could not be kept in {_cache_folder} ({error.strerror or error}): the "
            "next process will compile it again. Make room, or set TINYDILATE_CACHE to another "
            "folder.",
            stacklevel=3,
        )
        _cache_folder = None  # from here on nothing more is kept
    for _ in range(_LOOPS_IN_A_LOOP):
        with suppress(OSError):
            return compiled(*arguments)
    return compiled(*arguments)


class Native(Jitted):
    """A loop written in LLVM's own language (see simd.py), with a Python twin for reading."""

    def __init__(self, body: Callable[..., Any], emit: Callable[[], Any]) -> None:
        super().__init__(body)
        self.emit = emit

    def _compile(self) -> Callable[..., Any]:
        import numba

        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            return self.body
        return cast(Callable[..., Any], self.emit())


def _with_compiled_globals(
    body: Callable[..., Any], bind: Callable[[Any], Any] | None = None
) -> FunctionType:
    """Copy a function so that what is jitted among its outer names is compiled for a device."""
    bind = bind or _for_the_cpu
    function = cast(FunctionType, body)
    scope = dict(function.__globals__)
    for name in _names(function.__code__):
        if name in scope:
            scope[name] = bind(scope[name])
    cells = tuple(CellType(bind(cell.cell_contents)) for cell in function.__closure__ or ())
    copy = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, cells or None
    )
    copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _for_the_cpu(value: Any) -> Any:
    return value.compiled if isinstance(value, Jitted) else value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a generator or an inner function of the body
            yield from _names(constant)


def jit(body: Function) -> Function:
    """Have Numba compile a loop when it is first called."""
    return cast(Function, Jitted(body))


def jit_relaxed(body: Function) -> Function:
    """`jit`, with leave to reorder sums and to fuse multiply-adds, so that they use vectors.

    NaN and infinity keep their meaning: only the order of rounding changes.
    """
    return cast(Function, Jitted(body, fastmath={"reassoc", "contract", "arcp", "nsz"}))


def jit_fused(body: Function) -> Function:
    """`jit`, with leave to fuse multiply-adds, and nothing else."""
    return cast(Function, Jitted(body, fastmath={"contract"}))


def native(emit: Callable[[], Any]) -> Callable[[Function], Function]:
    """Mark a Python function as the readable twin of an instruction sequence made by ``emit``."""

    def mark(body: Function) -> Function:
        return cast(Function, Native(body, emit))

    return mark


class Elementwise:
    """A rule of scalars as a NumPy ufunc, compiled when it is first called: it broadcasts.

    A rule that is a ufunc already is taken as it is. Of any other there is one ufunc for each
    dtype, and its signature says so: a ufunc that knew float64 alone would take float32 too, and a
    rule with whole numbers in it would answer in float64.
    """

    def __init__(self, rule: Callable[..., Any]) -> None:
        self.rule = rule
        self._compiled: dict[np.dtype[Any], Callable[..., Any]] = {}
        self._kept: list[Any] = []  # Numba's objects, which own the ufuncs' machine code

    def __call__(self, *arrays: Any) -> Any:
        first, last = arrays[0], arrays[-1]
        ufunc = self._compiled.get(first.dtype) or self._ufunc(first.dtype)
        if first.size < _LEAST or first.shape != last.shape:
            return ufunc(*arrays)
        out = buffers.empty_like(first)
        lines, result = [array.reshape(-1) for array in arrays], out.reshape(-1)

        def part(start: int, stop: int) -> None:
            with np.errstate(all="ignore"):  # a setting of the thread; inf and nan are answers
                ufunc(*(line[start:stop] for line in lines), out=result[start:stop])

        share(part, first.size, least=_LEAST)
        return out

    def _ufunc(self, dtype: np.dtype[Any]) -> Callable[..., Any]:
        with _decorating:
            if dtype not in self._compiled:
                self._compiled[dtype] = self._compile(dtype)
            return self._compiled[dtype]

    def _compile(self, dtype: np.dtype[Any]) -> Callable[..., Any]:
        if isinstance(self.rule, np.ufunc):
            return self.rule
        import numba

        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            return _in_python(self.rule, dtype)
        inputs = ", ".join([dtype.name] * self.rule.__code__.co_argcount)
        signature = f"{dtype.name}({inputs})"  # "float32(float32, float32)"
        compiled = _cached(self.rule, lambda cache: numba.vectorize([signature], cache=cache))  # type: ignore[no-untyped-call]
        self._kept.append(compiled)
        # Numba's object looks at every argument in Python first; the ufunc inside does not.
        return cast(Any, compiled).ufunc  # type: ignore[no-any-return]


def _in_python(rule: Callable[..., Any], dtype: np.dtype[Any]) -> Callable[..., Any]:
    """A rule of scalars as something that is called like a ufunc."""
    slow = np.vectorize(rule, otypes=[dtype])

    def ufunc(*arrays: Any, out: Any = None) -> Any:
        result = slow(*arrays)
        return result if out is None else np.copyto(out, result)

    return ufunc


# ---------------------------------------------------------------------------------------------
# Compiling and launching GPU kernels

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
        self.options = {name: value for name, value in options.items() if value}
        self.name = f"{body.__module__.rpartition('.')[2]}.{body.__qualname__}"
        self.name = self.name.replace(".<locals>", "")
        self.__doc__, self.__name__ = body.__doc__, body.__name__
        self._compiled: dict[np.dtype[Any], Any] = {}
        self._launchers: dict[tuple[Any, Any, int], _Launcher] = {}
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
        blocks, threads, *rest = shape
        key = blocks, threads, rest[0] if rest else 0
        launcher = self._launchers.get(key)
        if launcher is None:
            if len(self._launchers) > 256:  # a new shape in every call: keep none for ever
                self._launchers.clear()
            launcher = self._launchers[key] = _Launcher(self, *key)
        return launcher

    def compiled(self, dtype: np.dtype[Any]) -> Any:
        """Numba's dispatcher for one dtype."""
        with _decorating:
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
        return numba_cuda.jit(self.signature(dtype), **self.options)(self.source())

    def source(self) -> FunctionType:
        """The body with its outer names bound for the GPU: what Numba is given."""
        return _with_compiled_globals(self.body, _for_kernels)

    def signature(self, dtype: np.dtype[Any]) -> Any:
        """The body's types as Numba writes them, for a kernel that runs in ``dtype``."""
        from numba import from_dtype, void

        types = []
        for is_array, own in self.parameters:
            scalar = from_dtype(own or dtype)
            types.append(scalar[::1] if is_array else scalar)
        return void(*types)

    def __call__(self, *arguments: Any) -> Any:
        raise KernelError(
            f"expected {self.name}[blocks, threads](...); got a call without blocks and threads. "
            f"Write {self.name}[cover(count)](...) for one thread an element."
        )


def _annotations(body: Callable[..., Any]) -> list[tuple[str, str]]:
    parameters = inspect.signature(body).parameters
    return [(name, str(each.annotation)) for name, each in parameters.items()]


class _Launcher:
    """A kernel with its blocks and threads."""

    __slots__ = ("configured", "kernel", "runs", "shape")

    def __init__(self, kernel: CudaKernel, blocks: Any, threads: Any, shared: int) -> None:
        self.kernel = kernel
        self.runs = blocks != 0 and not (isinstance(blocks, tuple) and 0 in blocks)
        self.shape = blocks, threads, shared
        self.configured: dict[np.dtype[Any], Any] = {}

    def __call__(self, *arguments: Any) -> None:
        """Launch, and do not wait; without blocks there is nothing to launch."""
        parameters = self.kernel.parameters
        if len(arguments) != len(parameters):
            raise KernelError(
                f"{self.kernel.name} expected {len(parameters)} arguments; got {len(arguments)}."
            )
        dtype, values = None, []
        for (is_array, own), argument in zip(parameters, arguments, strict=True):
            if not is_array:
                values.append(argument)
                continue
            # A compiled kernel does not look at what it is given, so this is the place to look.
            if type(argument) is not CudaArray or argument.dtype != (
                own or dtype or argument.dtype
            ):
                raise self._refused(argument, own or dtype)
            dtype = dtype if own else argument.dtype
            values.append(argument.flat)
        if not self.runs:
            return
        dtype = dtype or self.kernel.dtypes[0]
        if SIMULATED:
            self._simulate(dtype, values)
            return
        configured = self.configured.get(dtype)
        if configured is None:
            blocks, threads, shared = self.shape
            configured = self.kernel.compiled(dtype)[blocks, threads, device.stream(), shared]
            self.configured[dtype] = configured
        try:
            configured(*values)
            if DEBUG:
                device.stream().synchronize()
        except Exception as error:
            raise KernelError(_what_failed(self.kernel.name, self.shape, error)) from error

    def _simulate(self, dtype: np.dtype[Any], values: list[Any]) -> None:
        typed = [
            value if is_array else (own or dtype).type(value)
            for (is_array, own), value in zip(self.kernel.parameters, values, strict=True)
        ]
        blocks, threads, shared = self.shape
        try:
            self.kernel.compiled(dtype)[blocks, threads, 0, shared](*typed)
        except Exception as error:
            raise KernelError(_what_failed(self.kernel.name, self.shape, error)) from error

    def _refused(self, argument: Any, dtype: Any) -> Exception:
        expected = (
            f"expected arrays of {dtype} on the GPU" if dtype else "expected arrays on the GPU"
        )
        if isinstance(argument, CudaArray):
            return DtypeError(f"{self.kernel.name} {expected}; got one of {argument.dtype}.")
        return DeviceError(f"{self.kernel.name} {expected}; got {type(argument).__name__}.")


def _what_failed(name: str, shape: tuple[Any, ...], error: Exception) -> str:
    """The kernel and the op that launched it, found among the functions that are running."""
    twins = {
        twin.__code__: entry.name
        for entry in KERNELS.values()
        for twin in entry.implementations.values()
        if isinstance(twin, FunctionType)
    }
    frame, op = inspect.currentframe(), "no op"
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Kernel):
            op = frame.f_locals["self"].name
            break
        if frame.f_code in twins:
            op = twins[frame.f_code]
            break
        frame = frame.f_back
    return (
        f"the GPU kernel {name}, launched by {op} on {shape[0]} blocks of {shape[1]} threads, "
        f"failed: {type(error).__name__}: {error}"
    )


def _for_kernels(value: Any) -> Any:
    """What a name outside a GPU kernel's body means inside it."""
    if value is cuda:
        return device.cuda_in_kernels()
    if isinstance(value, Jitted | CudaFunction):
        return value.in_kernels
    return value


def _device_function(body: Callable[..., Any]) -> Callable[..., Any]:
    """A function for the bodies of GPU kernels, which becomes part of each that calls it."""
    function = _with_compiled_globals(body, _for_kernels)
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
        self._in_kernels: Callable[..., Any] | None = None
        self.__doc__, self.__name__ = body.__doc__, body.__name__

    @property
    def in_kernels(self) -> Callable[..., Any]:
        """What Numba makes of it."""
        with _decorating:
            if self._in_kernels is None:
                self._in_kernels = _device_function(self.body)
            return self._in_kernels


class _Cuda:
    """Stands for ``numba.cuda``, which is imported when the first kernel is launched.

    Inside the bodies of kernels, `cuda` is the real one (in the simulator, the simulator's).
    """

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
        shape = np.broadcast_shapes(first.shape, last.shape)
        out = device.empty(shape, first.dtype)
        strides = [_broadcast_strides(array.shape, shape) for array in arrays]
        axes = max(1, len(shape))
        table = device.constants(*(shape or (1,)), *strides[0], *strides[1])
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


def _cached(
    body: Callable[..., Any], decorator: Callable[[bool], Callable[..., Any]]
) -> Callable[..., Any]:
    """Decorate a loop, with Numba's cache in our own folder where there is one.

    The setting is put back at once: the user's own kernels are cached where they always were.
    """
    import numba

    function = _with_compiled_globals(body)
    folder = cache_folder()
    if folder is None or not Path(function.__code__.co_filename).exists():
        return cast(Callable[..., Any], decorator(False)(function))
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    try:
        numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
        return cast(Callable[..., Any], decorator(True)(function))
    except OSError:  # no room to keep what was compiled
        return cast(Callable[..., Any], decorator(False)(function))
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]


tap = jit(window.tap)  # the tap rule, for use inside compiled loops


def source_digest() -> str:
    """Digest of the package's sources and of the settings that change the machine code."""
    import numba

    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    digest.update(f"{numba.__version__} {np.__version__} {sys.version}".encode())
    bounds = numba.config.BOUNDSCHECK  # type: ignore[attr-defined]
    digest.update(f"{bounds} {os.environ.get('TINYDILATE_TILE')}".encode())
    return digest.hexdigest()[:16]


def cache_home() -> Path:
    """The folder that holds machine code: ``TINYDILATE_CACHE`` or the system's cache folder."""
    chosen = os.environ.get("TINYDILATE_CACHE")
    if chosen:
        return Path(chosen).absolute()  # the program may change its working folder
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tinydilate"


_cache_folder: Path | None = None
_cache_settled = False
_KEPT_DIGESTS = 4
_LOOPS_IN_A_LOOP = 16
_DAY = 24 * 3600.0


def cache_folder() -> Path | None:
    """The folder for this version's machine code, or None where nothing can be written."""
    global _cache_folder, _cache_settled
    if not _cache_settled:
        _cache_settled = True
        try:
            folder = cache_home() / f"numba-{source_digest()}"
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
            _prune(folder)
            _cache_folder = folder if os.access(folder, os.W_OK) else None
        except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
            _cache_folder = None
    return _cache_folder


def _prune(current: Path) -> None:
    """Delete the machine code of all but the versions used last, or within a day.

    A process that still runs may be using a version that was started within a day.
    """
    older = sorted(
        (path for path in current.parent.glob("numba-*") if path != current),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )[_KEPT_DIGESTS - 1 :]
    for path in older:
        if path.stat().st_mtime < time.time() - _DAY:
            shutil.rmtree(path, ignore_errors=True)


# ---------------------------------------------------------------------------------------------
# Kernels, their twins and the registry


class Launch(NamedTuple):
    """What a watcher is told about one kernel call."""

    kernel: str
    implementation: str
    arguments: tuple[Any, ...]
    result: Any
    seconds: float


KERNELS: dict[str, Kernel] = {}
_watchers: list[Callable[[Launch], None]] = []
_forced: list[str] = []


class Kernel:
    """One meaning with an implementation for each device; made by `kernel`."""

    def __init__(self, reference: Callable[..., Any]) -> None:
        self.name = reference.__name__
        self.page = reference.__module__.rpartition(".")[2]
        self.__doc__ = reference.__doc__
        self.__name__ = self.name
        self.__module__ = reference.__module__
        self.implementations: dict[str, Callable[..., Any]] = {"numpy": reference}
        if self.name in KERNELS:
            raise KernelError(f"expected one kernel named {self.name}; got a second. Rename it.")
        KERNELS[self.name] = self

    def cpu(self, twin: Function) -> Function:
        """Add the twin for NumPy arrays, with its loops in Numba."""
        return self.variant("cpu")(twin)

    def cuda(self, twin: Function) -> Function:
        """Add the twin for arrays on the GPU."""
        return self.variant("cuda")(twin)

    def meta(self, twin: Function) -> Function:
        """Add the shape rule: the same arguments as meta arrays, the result as a meta array."""
        return self.variant("meta")(twin)

    def variant(self, name: str) -> Callable[[Function], Function]:
        """Add an implementation that can be forced with `use`, such as ``"cpu:loops"``."""

        def add(implementation: Function) -> Function:
            self.implementations[name] = implementation
            return implementation

        return add

    def __call__(self, *arguments: Any) -> Any:
        if _ready(arguments):  # the common case, settled by one short walk over the arguments
            name, implementation = self._choose("cpu")
        else:
            name, implementation = self._choose(_common_device(self.name, arguments))
            arguments = tuple(_at_the_door(argument) for argument in arguments)
        if not _watchers:
            return _at_the_exit(implementation(*arguments))
        begin = time.perf_counter()
        result = _at_the_exit(implementation(*arguments))
        launch = Launch(self.name, name, arguments, result, time.perf_counter() - begin)
        for watcher in tuple(_watchers):
            watcher(launch)
        return result

    def _choose(self, device: str) -> tuple[str, Callable[..., Any]]:
        if _forced and device != "meta":
            for name in reversed(_forced):
                if name in self.implementations and (name[:4] == "cuda") == (device == "cuda"):
                    return name, self.implementations[name]
        if device in self.implementations:
            return device, self.implementations[device]
        raise KernelError(
            f"{self.name} has no {device} kernel yet; it has {', '.join(self.implementations)}. "
            'Move the tensors with .to("cpu"), or add the twin on the page '
            f"tinydilate/functional/{self.page}.py."
        )

    def __repr__(self) -> str:
        return f"<kernel {self.name}: {', '.join(self.implementations)}>"


def kernel(reference: Callable[..., Any]) -> Kernel:
    """Make a kernel of its NumPy reference."""
    return Kernel(reference)


_HOLDERS = (
    np.ndarray,
    CudaArray,
    MetaArray,
    list,
)  # what arrays come in; here subclasses of ndarray, too


def _ready(arguments: tuple[Any, ...]) -> bool:
    """Whether all arrays are on the CPU, of one floating-point dtype, and lie in memory as wanted.

    Then there is nothing to refuse and nothing to copy.
    """
    found = None
    for argument in arguments:
        if type(argument) is np.ndarray:
            dtype = argument.dtype
            if not argument.flags.carray or (dtype.kind == "f" and dtype is not (found or dtype)):
                return False
            found = dtype if dtype.kind == "f" else found
        elif isinstance(argument, _HOLDERS):
            return False
    return True


def _arrays(arguments: tuple[Any, ...]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, np.ndarray | CudaArray | MetaArray):
            yield argument
        elif isinstance(argument, list):
            yield from argument


def _common_device(name: str, arguments: tuple[Any, ...]) -> str:
    """The one device of all arrays; floating-point arrays must share one dtype as well."""
    device, dtype = "", None
    for array in _arrays(arguments):
        if device and device_of(array) != device:
            raise DeviceError(
                f"{name} expected its arrays on one device; got {device} and {device_of(array)}. "
                "Move one of them with .to(...)."
            )
        device = device_of(array)
        if array.dtype.kind == "f":
            if dtype is not None and array.dtype != dtype:
                raise DtypeError(
                    f"{name} expected arrays of one dtype; got {dtype} and {array.dtype}. "
                    f"Convert one of them, for example with .to({dtype.name!r})."
                )
            dtype = array.dtype
    return device or "cpu"


def _at_the_door(argument: Any) -> Any:
    """Make an array C-contiguous, aligned and writable: each other layout is one more compile."""
    if isinstance(argument, np.ndarray) and not argument.flags.carray:
        return np.array(argument, order="C")
    if isinstance(argument, list):
        return [_at_the_door(array) for array in argument]
    return argument


def _at_the_exit(result: Any) -> Any:
    """Make NumPy's scalars arrays again: it returns them in place of arrays without axes."""
    return np.asarray(result) if isinstance(result, np.generic) else result


@contextmanager
def use(implementation: str) -> Iterator[None]:
    """Within the block, run every kernel that has it by the named implementation.

    ``with use("numpy"):`` runs the references that stand at the top of each page. Kernels that
    lack the implementation run as they always do. The choice holds for every thread.
    """
    known = {name for entry in KERNELS.values() for name in entry.implementations}
    if implementation not in known:
        raise KernelError(
            f"expected an implementation out of {', '.join(sorted(known))}; got {implementation!r}."
        )
    _forced.append(implementation)
    try:
        yield
    finally:
        _forced.reverse()  # of two blocks with the same name the inner one ends first
        _forced.remove(implementation)
        _forced.reverse()


@contextmanager
def watching(watcher: Callable[[Launch], None]) -> Iterator[None]:
    """Within the block, call ``watcher`` with a `Launch` after every kernel call."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
