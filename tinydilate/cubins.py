"""Machine code of GPU kernels, kept on disk: the next process need not compile it again.

To compile a kernel takes Numba up to two seconds, and a network has dozens. What comes out is a
*cubin*, the code of one kernel for one kind of card. It is kept beside the machine code of the
processor, in a folder that bears a digest of all our sources (compiling.py), under the digest of a
`recipe`: everything else that decides what the code is.

A file is read as bytes and nothing else: a line that says what it is, the kernel's name in the
code, a checksum, the code. One that is cut short, damaged, or of another recipe is as good as none,
and the kernel is compiled and written anew. It is written under another name first, so that nobody
reads half of one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from tinydilate import compiling

_FIRST_LINE = b"tinydilate cubin 1"
_MOST = 1024  # files: several times what there are kernels
_LEFT_BEHIND = 3600  # seconds after which a part is no longer being written
_PACKAGES = ("numba-cuda", "cuda-bindings", "cuda-toolkit", "llvmlite")
_LIBRARIES = ("nvvm", "nvjitlink", "cuda-nvrtc")
_SETTINGS = ("NUMBA_OPT", "NUMBA_FORCE_CUDA_CC", "CUDA_HOME", "CUDA_PATH")
# Modules and classes of these are known: ours are in the folder's digest, and so are the versions
# of NumPy and Numba; what a kernel may take of the rest is Python's own.
_KNOWN = ("tinydilate", "numpy", "numba", "math", "operator", "_operator", "builtins", "ctypes")


class Cubin(NamedTuple):
    """A kernel's machine code, and the name that it has there."""

    entry: str
    code: bytes


# ---- the recipe ------------------------------------------------------------------------------


def recipe(body: Callable[..., Any], *facts: Any) -> str | None:
    """Digest of a kernel's body, of all that it takes from outside, and of further facts.

    None for a kernel that is not to be kept: a body that is not ours, or takes something that is
    not, may change without an edit of our sources; so may an object that we know nothing of.
    """
    digest = hashlib.sha256()
    ingredients = _ingredients(body)
    if ingredients is None:
        return None
    for fact in (*ingredients, *map(repr, facts), *compilers()):
        digest.update(fact.encode() + b"\0")
    return digest.hexdigest()


@cache
def compilers() -> list[str]:
    """What makes machine code: the packages, as far as they are installed, and Numba's settings."""
    names = [f"nvidia-{name}{suffix}" for name in _LIBRARIES for suffix in ("", "-cu12")]
    found = [f"{name} {value}" for name, value in sorted(os.environ.items()) if _sets(name)]
    for name in (*_PACKAGES, *names):
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found


def _sets(name: str) -> bool:
    return name.startswith("NUMBA_CUDA") or name in _SETTINGS


def _ingredients(body: Callable[..., Any]) -> list[str] | None:
    """A line for each function and each constant that a kernel's body leads to, or None."""
    found: list[str] = []
    waiting: list[Any] = [body]
    seen: dict[int, int] = {}  # functions by their id, numbered as they were met
    while waiting:
        value = waiting.pop()
        if not isinstance(value, FunctionType | ModuleType | type):
            # What @jit and @cuda.jit have wrapped.
            value = getattr(value, "__dict__", {}).get("body", value)
        if isinstance(value, FunctionType):
            if id(value) in seen:  # what it leads to is known, but not that it stands here, too
                found.append(f"again {seen[id(value)]}")
                continue
            seen[id(value)] = len(seen)
            if not Path(value.__code__.co_filename).is_relative_to(compiling.PACKAGE):
                return None
            found.append(f"{value.__module__}.{value.__qualname__}")
            for code in _codes(value.__code__):
                found.append(f"{code.co_code.hex()} {code.co_names} {code.co_varnames}")
                waiting += [each for each in code.co_consts if not isinstance(each, CodeType)]
                waiting += [value.__globals__[n] for n in code.co_names if n in value.__globals__]
            waiting += [cell.cell_contents for cell in value.__closure__ or ()]
            waiting += value.__defaults__ or ()
            for name, default in (value.__kwdefaults__ or {}).items():
                waiting += name, default
        elif isinstance(value, tuple):
            found.append(f"{type(value).__name__} of {len(value)}")
            waiting += value
        elif (line := _constant(value)) is not None:
            found.append(line)
        else:
            return None
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and those of the functions inside it."""
    waiting = [code]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [each for each in code.co_consts if isinstance(each, CodeType)]


def _constant(value: Any) -> str | None:
    """A value in words that are the same in every process; None if there are none for it."""
    if value is None or isinstance(value, bool | int | float | str | np.generic | np.dtype):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, ModuleType):
        return f"module {value.__name__}" if _is_known(value.__name__) else None
    if isinstance(value, type | BuiltinFunctionType):
        module = str(value.__module__)
        return f"{module}.{value.__qualname__}" if _is_known(module) else None
    if isinstance(value, np.ufunc):
        return f"ufunc {value.__name__}"
    stands_for = getattr(value, "stands_for", None)  # the name `cuda`
    return f"stands for {stands_for}" if isinstance(stands_for, str) else None


def _is_known(module: str) -> bool:
    return module.partition(".")[0] in _KNOWN


# ---- the files -------------------------------------------------------------------------------


def folder() -> Path | None:
    """Where they are, or None where nothing can be written."""
    home = compiling.cache_folder()
    return home and home / "cuda"


def load(name: str) -> Cubin | None:
    """The machine code that was kept under a recipe's digest, if it is there and whole."""
    home = folder()
    if home is None:
        return None
    path = home / f"{name}.cubin"
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with suppress(OSError):  # a folder that we may only read
        os.utime(path)  # used now: those that nobody asks for make room
    first, entry, checksum, code = (*content.split(b"\n", 3), b"", b"", b"")[:4]
    if first != _FIRST_LINE or checksum != _checksum(name, entry, code):
        return None
    return Cubin(entry.decode(), code)


def keep(name: str, cubin: Cubin) -> None:
    """Write machine code under a recipe's digest, whole or not at all."""
    home = folder()
    if home is None:
        return
    entry = cubin.entry.encode()
    lines = _FIRST_LINE, entry, _checksum(name, entry, cubin.code), cubin.code
    with suppress(OSError):  # no room, say: the next process will compile it once more
        home.mkdir(exist_ok=True)
        _write(home / f"{name}.cubin", b"\n".join(lines))
        _forget_the_oldest(home)


def _checksum(name: str, entry: bytes, code: bytes) -> bytes:
    parts = name.encode(), entry, code
    return hashlib.sha256(b"\n".join(parts)).hexdigest().encode()


def _write(path: Path, content: bytes) -> None:
    handle, beside = tempfile.mkstemp(suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            Path(beside).unlink()
        raise


def _forget_the_oldest(home: Path) -> None:
    """Delete what is beyond the most that are kept, and parts that a process left behind."""
    used: list[tuple[float, Path]] = []
    left_behind: list[Path] = []
    for path in home.iterdir():
        with suppress(OSError):  # another process deletes, too
            when = path.stat().st_mtime
            if path.suffix != ".part":
                used.append((when, path))
            elif when < time.time() - _LEFT_BEHIND:
                left_behind.append(path)
    oldest = [path for _, path in sorted(used)[: max(0, len(used) - _MOST)]]
    for path in (*left_behind, *oldest):
        with suppress(OSError):  # one that cannot be deleted keeps no other from it
            path.unlink()
