"""Kernels: one name, one meaning, an implementation for each device.

``@kernel`` marks a plain NumPy function as the reference, which is the specification.
``@name.cpu``, ``@name.cuda`` and ``@name.meta`` add its twins: host functions of the same
arguments that return the same result on their device. Calling the kernel picks the twin by the
device of its arguments. The registry `KERNELS` knows them all: the table of ops, the tests and the
documentation walk it.

``@jit`` marks the loops inside a CPU twin for Numba. Numba itself is imported, and a loop
compiled, when it is first called. Machine code is kept on disk in a folder named after a digest of
our sources, so that an edit is never answered with stale code.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from tinydilate import buffers, window
from tinydilate.device import MetaArray, device_of
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


def _with_compiled_globals(body: Callable[..., Any]) -> FunctionType:
    """Copy a function so that the jitted names among its globals are Numba's dispatchers."""
    function = cast(FunctionType, body)
    scope = dict(function.__globals__)
    for name in _names(function.__code__):
        if isinstance(scope.get(name), Jitted):
            scope[name] = scope[name].compiled
    copy = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


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
        if device == "cpu" and _forced:
            for name in reversed(_forced):
                if name in self.implementations:
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


_HOLDERS = (np.ndarray, MetaArray, list)  # what arrays come in; here subclasses of ndarray, too


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
        if isinstance(argument, np.ndarray | MetaArray):
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
