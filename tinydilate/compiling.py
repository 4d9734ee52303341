"""Compiling loops, and keeping their machine code.

``@jit`` marks a loop for Numba. Numba itself is imported, and a loop compiled, when it is first
called. Machine code is kept on disk in a folder named after a digest of our sources, so that an
edit is never answered with stale code.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from tinydilate.kept import Kept

Function = TypeVar("Function", bound=Callable[..., Any])
PACKAGE = Path(__file__).parent

# Threads meet in a loop's first call. One makes Numba's dispatcher and the others use it; and the
# cache folder, which is a setting of the whole process, is changed by one at a time.
decorating = threading.RLock()
_switched_off = 0  # threads that compile while the garbage collector is off


def _forget_lock() -> None:
    """A forked child may have been born while another thread of its parent held the lock.

    Or while it compiled: then nobody there would switch the garbage collector on again.
    """
    global decorating, _switched_off
    decorating = threading.RLock()
    if _switched_off:
        gc.enable()
    _switched_off = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


# error_model: 1/0 is inf, as in NumPy. nogil: the threads run loops side by side. A wrapper for
# callers in C would be compiled for nobody.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


@cache
def import_numba() -> Any:
    """Numba, made to import SciPy's linear algebra only when a loop asks for it.

    Left alone it does so at once, to know whether it is there: a third of a second, where SciPy is
    installed, in each process. No loop of ours asks for it.
    """
    import numba

    if "numba.np.arraymath" not in sys.modules:
        with suppress(ImportError, AttributeError):  # in another version it may have moved
            _put_off_scipy()
    return numba


def _put_off_scipy() -> None:
    import numba.np.linalg as linalg

    at_once = linalg.ensure_blas

    def only_look() -> None:
        linalg.ensure_blas = at_once  # whoever asks next needs it
        if not find_spec("scipy"):
            raise ImportError("SciPy is not installed")

    linalg.ensure_blas = only_look


class Jitted:
    """A loop that Numba compiles when it is first called.

    The rules that a loop names among its globals (other ``@jit`` functions) are compiled with it.
    """

    def __init__(self, body: Callable[..., Any], **options: Any) -> None:
        self.body = body
        self.options = options
        self._compiled: Callable[..., Any] | None = None
        self._inlined: Callable[..., Any] | None = None
        self._within: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.__doc__ = body.__doc__
        self.__name__ = body.__name__

    def __call__(self, *arguments: Any) -> Any:
        return (self._compiled or self.compiled)(*arguments)

    @property
    def compiled(self) -> Callable[..., Any]:
        """Numba's dispatcher for the loop."""
        with decorating:
            if self._compiled is None:
                self._compiled = self._compile()
            return self._compiled

    def _compile(self) -> Callable[..., Any]:
        numba = import_numba()
        return cached(self.body, lambda cache: numba.njit(cache=cache, **_OPTIONS, **self.options))

    @property
    def inlined(self) -> Callable[..., Any]:
        """What another loop's code calls in this one's place: an intrinsic, or as it is, Python."""
        with decorating:
            if self._inlined is None:
                self._inlined = self._inline()
            return self._inlined

    def _inline(self) -> Callable[..., Any]:
        dispatcher = self._uncached()
        compiles = hasattr(dispatcher, "overloads")  # or Numba is switched off
        return _as_part(dispatcher) if compiles and _is_plain(self.body) else dispatcher

    def _uncached(self) -> Any:
        numba = import_numba()
        return numba.njit(**_OPTIONS, **self.options)(_with_inlined_globals(self.body))

    def within(self, frame: Callable[..., Any]) -> Callable[..., Any]:
        """Numba's dispatcher for ``frame``, with this loop for what it calls ``body``."""
        with decorating:
            if frame not in self._within:
                self._within[frame] = self._compile_within(frame)
            return self._within[frame]

    def call_within(self, frame: Callable[..., Any], *arguments: Any) -> None:
        """Call ``frame`` with this loop within it."""
        ready = self._within.get(frame)
        if ready is not None:
            ready(*arguments)
        else:
            with _without_collecting():
                self.within(frame)(*arguments)

    def _compile_within(self, frame: Callable[..., Any]) -> Callable[..., Any]:
        import numba

        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            return around(frame, self.body)
        outer = around(frame, self._uncached())
        outer.__module__ = self.body.__module__
        outer.__qualname__ = f"{self.body.__qualname__}.{frame.__name__}"  # the name it is kept by
        return cached(outer, lambda cache: numba.njit(cache=cache, **_OPTIONS), self.body)


class Needed(NamedTuple):
    """A loop that would have been run, and for which types of arguments."""

    dispatcher: Any
    types: tuple[Any, ...]

    def compile(self) -> None:
        """Compile it, unless its machine code is on disk."""
        self.dispatcher.compile(self.types)


@contextmanager
def noting() -> Iterator[dict[Needed, None]]:
    """Within the block, note the loops that are shared among threads instead of running them.

    Results are whatever stood in the memory that they were to be written to.
    """
    needed: dict[Needed, None] = {}  # without doubles, in order

    def note(loop: Jitted, frame: Callable[..., Any], *arguments: Any) -> None:
        dispatcher: Any = loop.within(frame)
        named = cast(FunctionType, frame).__code__.co_argcount
        passed = (*arguments[:named], arguments[named:])  # *arguments arrives as a tuple
        needed[Needed(dispatcher, tuple(map(dispatcher.typeof_pyval, passed)))] = None

    run = Jitted.call_within
    Jitted.call_within = note  # type: ignore[method-assign, assignment]
    try:
        yield needed
    finally:
        Jitted.call_within = run  # type: ignore[method-assign]


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Put off Python's search for cycles: of all that a compiler makes, it would find little.

    That search takes a tenth of the time in which a loop is compiled for its first call.
    """
    global _switched_off
    with decorating:
        if _switched_off == 0 and not gc.isenabled():  # the program does without it
            mine = 0
        else:
            mine = 1
            gc.disable()
        _switched_off += mine
    try:
        yield
    finally:
        with decorating:
            _switched_off -= mine
            if mine and _switched_off == 0:
                gc.enable()


def body(*arguments: Any) -> Any:
    """Stands in a frame for the loop or the rule that it is put `around`."""


def around(frame: Callable[..., Any], body: Callable[..., Any]) -> FunctionType:
    """``frame`` with ``body`` for what it calls so."""
    function = cast(FunctionType, frame)
    return _copy(frame, {**function.__globals__, "body": body}, function.__closure__)


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

    def _inline(self) -> Callable[..., Any]:
        return self.compiled


def compile_part(context: Any, dispatcher: Any, arguments: Any) -> Any:
    """Compile a dispatcher's loop for ``arguments``, its types, as a part of the code of another.

    Numba, left alone, makes a library of each loop that another one calls: it is optimised and
    turned into machine code that nobody will run, for the caller takes in its code and optimises it
    once more.
    """
    from numba.core import compiler as numba_compiler
    from numba.core.codegen import JITCodeLibrary

    class Parts(JITCodeLibrary):
        """Code that is only ever taken into another library, and is optimised there."""

        def add_llvm_module(self, module: Any) -> None:
            self._final_module.link_in(module)

        def finalize(self) -> None:
            for library in dict.fromkeys(self._linking_libraries):
                self._final_module.link_in(library._get_module_for_linking(), preserve=True)
            self._finalized = True

    if isinstance(dispatcher, Jitted):
        dispatcher = dispatcher._uncached()
    making, compiler = dispatcher._compiler, cast(Any, numba_compiler)
    flags = compiler.Flags()
    making.targetdescr.options.parse_as_flags(flags, making.targetoptions)
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    body = making.py_func
    library = Parts(context.codegen(), body.__qualname__)  # type: ignore[no-untyped-call]
    typing = context.typing_context
    context = context.subtarget(enable_nrt=flags.nrt)  # without counting for `jit_uncounted`
    return compiler.compile_internal(typing, context, library, body, arguments, None, flags, {})


def _is_plain(body: Callable[..., Any]) -> bool:
    """Whether a rule takes each argument by position, as an intrinsic does."""
    parameters = inspect.signature(body).parameters
    return "typing" not in parameters and all(
        each.kind is each.POSITIONAL_OR_KEYWORD and each.default is each.empty
        for each in parameters.values()
    )


def _as_part(dispatcher: Any) -> Callable[..., Any]:
    """An intrinsic that is called like the dispatcher's loop, whose code becomes the caller's."""
    from numba.extending import intrinsic

    made: dict[Any, Any] = {}
    body, context = dispatcher.py_func, dispatcher.targetctx

    def part(typing: Any, *arguments: Any) -> Any:
        if arguments not in made:
            made[arguments] = compile_part(context, dispatcher, arguments)
        signature = made[arguments].signature

        def emit(context: Any, builder: Any, _: Any, values: Any) -> Any:
            context.add_linking_libs([made[arguments].library])
            return context.call_internal(builder, made[arguments].fndesc, signature, values)

        return signature, emit

    head = inspect.signature(part).parameters["typing"]
    own = inspect.signature(body).parameters.values()
    cast(Any, part).__signature__ = inspect.Signature([head, *own])
    part.__name__ = body.__name__
    return cast(Callable[..., Any], intrinsic(part))


def bound(body: Callable[..., Any], bind: Callable[[Any], Any]) -> FunctionType:
    """Copy a function so that its outer names mean what ``bind`` makes of them."""
    function = cast(FunctionType, body)
    scope = dict(function.__globals__)
    for name in _names(function.__code__):
        if name in scope:
            scope[name] = bind(scope[name])
    cells = tuple(CellType(bind(cell.cell_contents)) for cell in function.__closure__ or ())
    return _copy(function, scope, cells or None)


def _with_inlined_globals(body: Callable[..., Any]) -> FunctionType:
    """Copy a function so that the jitted names outside it are what Numba can compile with it."""
    return bound(body, lambda value: value.inlined if isinstance(value, Jitted) else value)


def _copy(
    body: Callable[..., Any], scope: dict[str, Any], closure: tuple[CellType, ...] | None
) -> FunctionType:
    """A function like ``body`` that finds its outer names in ``scope`` and ``closure``."""
    function = cast(FunctionType, body)
    copy = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, closure)
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


def jit_uncounted(body: Function) -> Function:
    """`jit` for a loop that makes no arrays, only views of those it is given, and returns none.

    Numba counts who holds an array, with two calls for each view that a loop takes: along rows of
    64 numbers that costs as much as the numbers do. Whoever calls the loop holds its arrays all the
    while, so here nothing is counted. Memory to work in comes from `share`'s ``room``.
    """
    return cast(Function, Jitted(body, _nrt=False))


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


def cached(
    function: Callable[..., Any],
    decorator: Callable[[bool], Callable[..., Any]],
    source: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Decorate a loop, with Numba's cache in our own folder if it is a loop of ours.

    ``source`` is the loop, if the function is only a frame around it. The folder knows of every
    edit in our sources, but of none elsewhere: there Numba would miss that a rule has changed which
    the loop takes from another file. The setting is put back at once: the user's own kernels are
    cached where they always were.

    Nothing is compiled, read or written yet; what happens then is on the page kept.py.
    """
    numba = import_numba()
    written = Path(cast(FunctionType, source or function).__code__.co_filename)
    function, folder = _with_inlined_globals(function), cache_folder()
    if folder is None or not written.is_relative_to(PACKAGE):
        return cast(Callable[..., Any], decorator(False)(function))
    before = numba.config.CACHE_DIR
    try:
        numba.config.CACHE_DIR = str(folder)
        made: Any = decorator(True)(function)
    except (OSError, RuntimeError):  # Numba has found that it cannot write there
        return cast(Callable[..., Any], decorator(False)(function))
    finally:
        numba.config.CACHE_DIR = before
    # A ufunc has a dispatcher within it, which calls its cache by another name.
    for owner, name in ((made, "_cache"), (getattr(made, "_dispatcher", None), "cache")):
        if hasattr(owner, name):
            files = Kept(getattr(owner, name), folder / _LOCK, lambda: when_missing(), _no_room)
            setattr(owner, name, files)
    return cast(Callable[..., Any], made)


def source_digest() -> str:
    """Digest of the package's sources and of the settings that change the machine code."""
    import numba

    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode())
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
_DAY = 24 * 3600.0
_LOCK = "lock"  # a file, see kept.py


def _no_room(error: OSError) -> None:
    """Say once that machine code cannot be kept: the disk is full, or a quota is."""
    global _cache_folder
    if _cache_folder is not None:
        warnings.warn(
            f"machine code could not be kept in {_cache_folder} ({error.strerror or error}): the "
            "next process will compile it again. Make room, or set TINYDILATE_CACHE to another "
            "folder.",
            stacklevel=2,
        )
        _cache_folder = None  # what is decorated from here on is not kept


def when_missing() -> None:
    """Called before a loop is compiled that is not on disk; second_process.py listens here."""


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
