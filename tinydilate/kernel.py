"""Kernels: one name, one meaning, an implementation for each device.

``@kernel`` marks a plain NumPy function as the reference, which is the specification.
``@name.cpu``, ``@name.cuda`` and ``@name.meta`` add its twins: host functions of the same
arguments that return the same result on their device. Calling the kernel picks the twin by the
device of its arguments. The registry `KERNELS` knows them all: the table of ops, the tests and the
documentation walk it.

What a page needs to write them comes from here: ``@jit`` and its sisters (compiling.py), ``cuda``
and the names of its arrays (launching.py), and the tap rule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from tinydilate import buffers, window
from tinydilate.compiling import (
    Function,
    Jitted,
    around,
    body,
    cached,
    decorating,
    jit,
    jit_fused,
    jit_relaxed,
    jit_uncounted,
)
from tinydilate.device import CudaArray, MetaArray, device_of
from tinydilate.errors import DeviceError, DtypeError, KernelError
from tinydilate.launching import (
    ByteArray,
    CudaElementwise,
    Float32Array,
    Float64Array,
    Int32Array,
    Int64Array,
    LaunchError,
    add_in_pairs,
    cuda,
    in_planes,
    is_last_block,
    number_at,
    pair_at,
    place_of,
    put_at,
    ravel,
    unravel,
)
from tinydilate.threads import WORTH_A_THREAD, share, worth_a_thread
from tinydilate.window import Window

__all__ = [
    "KERNELS",
    "ByteArray",
    "CudaElementwise",
    "Elementwise",
    "Float32Array",
    "Float64Array",
    "Int32Array",
    "Int64Array",
    "Kernel",
    "Launch",
    "add_in_pairs",
    "cuda",
    "in_planes",
    "is_last_block",
    "jit",
    "jit_fused",
    "jit_relaxed",
    "jit_uncounted",
    "kernel",
    "number_at",
    "pair_at",
    "place_of",
    "put_at",
    "ravel",
    "tap",
    "tapped_by",
    "unravel",
    "use",
    "watching",
]


class Elementwise:
    """A rule of scalars as a NumPy ufunc, compiled when it is first called: it broadcasts.

    A rule that is a ufunc already is taken as it is. Of any other there is one ufunc for each
    dtype, and its signature says so: a ufunc that knew float64 alone would take float32 too, and a
    rule with whole numbers in it would answer in float64.

    With ``shared``, large arrays of one shape are computed by a loop that the threads share. That
    pays where memory sets the pace; NumPy computes an exponential faster than a plain loop does.
    """

    def __init__(self, rule: Callable[..., Any], shared: bool = False) -> None:
        self.rule = rule
        self.loop = loop_over(rule) if shared else None
        self._compiled: dict[np.dtype[Any], Callable[..., Any]] = {}
        self._kept: list[Any] = []  # Numba's objects, which own the ufuncs' machine code

    def __call__(self, *arrays: Any) -> Any:
        first, last = arrays[0], arrays[-1]
        if self.loop is None or first.size < WORTH_A_THREAD or first.shape != last.shape:
            return (self._compiled.get(first.dtype) or self._ufunc(first.dtype))(*arrays)
        out = buffers.empty_like(first)
        lines = [array.reshape(-1) for array in (*arrays, out)]
        share(self.loop, first.size, *lines, least=worth_a_thread())
        return out

    def _ufunc(self, dtype: np.dtype[Any]) -> Callable[..., Any]:
        with decorating:
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
        compiled: Any = cached(self.rule, lambda cache: numba.vectorize(cache=cache))  # type: ignore[no-untyped-call]
        compiled.add(signature)
        self._kept.append(compiled)
        # Numba's object looks at every argument in Python first; the ufunc inside does not.
        return compiled.ufunc  # type: ignore[no-any-return]


def loop_over(rule: Callable[..., Any]) -> Jitted:
    """A loop over flat arrays that applies a rule of one or two numbers."""
    compiled = rule if isinstance(rule, np.ufunc) else jit(rule)
    inputs = rule.nin if isinstance(rule, np.ufunc) else rule.__code__.co_argcount
    loop = around(_over_one if inputs == 1 else _over_two, compiled)
    loop.__qualname__ += f".{rule.__name__}"  # the name under which machine code is kept
    return Jitted(loop)


# Counting from 0, Numba need not ask whether n < 0.


def _over_one(start: int, stop: int, a: Any, out: Any) -> None:
    a, out = a[start:stop], out[start:stop]
    for n in range(len(out)):
        out[n] = body(a[n])


def _over_two(start: int, stop: int, a: Any, b: Any, out: Any) -> None:
    a, b, out = a[start:stop], b[start:stop], out[start:stop]
    for n in range(len(out)):
        out[n] = body(a[n], b[n])


def _in_python(rule: Callable[..., Any], dtype: np.dtype[Any]) -> Callable[..., Any]:
    """A rule of scalars as something that is called like a ufunc."""
    slow = np.vectorize(rule, otypes=[dtype])

    def ufunc(*arrays: Any, out: Any = None) -> Any:
        result = slow(*arrays)
        return result if out is None else np.copyto(out, result)

    return ufunc


tap = jit(window.tap)  # the tap rule, for use inside compiled loops
tapped_by = jit(window.tapped_by)


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
        name = _ready(arguments)  # the common cases, settled by one walk over the arguments
        if not name:
            name = _common_device(self.name, arguments)
            arguments = tuple([_at_the_door(argument) for argument in arguments])
        if _forced or name not in self.implementations:
            name = self._choose(name)
        implementation = self.implementations[name]
        begin = time.perf_counter() if _watchers else 0.0
        try:
            result = implementation(*arguments)
        except LaunchError as error:
            raise KernelError(f"{self.name}: {error}") from error
        if isinstance(result, np.generic):  # NumPy's answer in place of an array without axes
            result = np.asarray(result)
        if not _watchers:
            return result
        launch = Launch(self.name, name, arguments, result, time.perf_counter() - begin)
        for watcher in tuple(_watchers):
            watcher(launch)
        return result

    def _choose(self, device: str) -> str:
        """The implementation for a device: the last one forced that there is, or its own."""
        if device != "meta":
            for name in reversed(_forced):
                if name in self.implementations and (name[:4] == "cuda") == (device == "cuda"):
                    return name
        if device in self.implementations:
            return device
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


# What arrays come in; here subclasses of ndarray, too.
_HOLDERS = (np.ndarray, CudaArray, MetaArray, list)
_NO_HOLDERS = {type(None), bool, int, float, str, tuple, Window}  # sooner asked than the above


def _ready(arguments: tuple[Any, ...]) -> str:
    """The device that all arrays are on, or "" where somebody has to look more closely.

    They are of one floating-point dtype and lie in memory as wanted, so there is nothing to refuse
    and nothing to copy.
    """
    found = None
    for argument in arguments:
        kind = type(argument)
        if kind is np.ndarray:
            if not argument.flags.carray:
                return ""
            dtype = argument.dtype
            if dtype is not found and dtype.kind == "f":
                if found is not None and dtype != found:
                    return ""
                found = dtype
        elif kind is list:
            return _ready(_taken_apart(arguments)) if _hold_arrays(arguments) else ""
        elif kind is CudaArray or (kind not in _NO_HOLDERS and isinstance(argument, _HOLDERS)):
            return _ready_on_gpu(arguments)
    return "cpu"


def _ready_on_gpu(arguments: tuple[Any, ...]) -> str:
    """Return "cuda" if that is where all of them are."""
    found = None
    for argument in arguments:
        kind = type(argument)
        if kind is CudaArray:
            dtype = argument.dtype
            if dtype is not found and dtype.kind == "f":
                if found is not None and dtype != found:
                    return ""
                found = dtype
        elif kind is list:
            return _ready_on_gpu(_taken_apart(arguments)) if _hold_arrays(arguments) else ""
        elif kind not in _NO_HOLDERS and isinstance(argument, _HOLDERS):
            return ""
    return "cuda"


def _hold_arrays(arguments: tuple[Any, ...]) -> bool:
    """Whether all lists hold arrays, of NumPy's or on the GPU, and nothing else."""
    kinds = {type(each) for argument in arguments if type(argument) is list for each in argument}
    return kinds in ({np.ndarray}, {CudaArray})


def _taken_apart(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments with the arrays of each list in its place."""
    apart: list[Any] = []
    for argument in arguments:
        if type(argument) is list:
            apart += argument
        else:
            apart.append(argument)
    return tuple(apart)


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
