"""Machine code on disk that several processes read and write at once.

Numba keeps two kinds of files for each loop: an index, which says for which types of arguments
there is code and in which file, and the files with the code. Each is written under another name and
then put in its place, so nobody ever reads half a file. Three things are left to see to:

* To add code is to read the index, choose the next free number, and write both files. Of two
  processes that do so at once, one for float32 and one for float64, both may choose the same
  number, and the index of the one then names the code of the other. A lock lets one in at a time.
* A file may be cut short by a disk that was full, belong to somebody else, or hold the code for
  other types than the index says. Then the loop is compiled, as if there were no file.
* There may be no room to write. Then the loop is compiled all the same, and not kept.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PATIENCE = 5.0  # seconds; to write takes some milliseconds


class Kept:
    """Numba's cache of one loop, for several processes at once and with damaged files.

    Parameters
    ----------
    cache : Numba's
    lock : path
        Of a file that every process locks while it writes.
    missing : callable
        Called when a loop is not there and will be compiled.
    no_room : callable
        Called with the system's error when code cannot be written.
    """

    patience = PATIENCE  # for all loops of this process

    def __init__(
        self,
        cache: Any,
        lock: Path,
        missing: Callable[[], None],
        no_room: Callable[[OSError], None],
    ) -> None:
        self._cache, self._lock = cache, lock
        self._missing, self._no_room = missing, no_room

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The loop's code for these types, or None."""
        found = None
        with suppress(Exception):  # whatever is said of damaged bytes, or of another user's file
            found = self._cache.load_overload(signature, context)
        if found is not None and found.signature.args == _arguments(signature):
            return found
        self._missing()
        return None

    def save_overload(self, signature: Any, code: Any) -> None:
        """Keep the loop's code for these types."""
        with locked(self._lock, self.patience) as alone:
            if not alone:  # whoever has the lock does not move: nothing more is kept while it is so
                Kept.patience = 0.0
                return
            try:
                self._save(signature, code)
            except OSError as error:
                self._no_room(error)

    def _save(self, signature: Any, code: Any) -> None:
        try:
            self._cache.save_overload(signature, code)
        except OSError:
            raise
        except Exception:  # the index is damaged, and with it is lost what it knew
            self._cache.flush()
            self._cache.save_overload(signature, code)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _arguments(signature: Any) -> Any:
    """Types of the arguments, of which Numba's caches are given a tuple or a signature."""
    return getattr(signature, "args", signature)


@contextmanager
def locked(path: Path, patience: float = PATIENCE) -> Iterator[bool]:
    """Hold the lock of a file within the block; False if another process does not let go of it.

    The system takes the lock from a process that ends, however it ends. Where a folder's files
    cannot be locked, as on some network drives, nobody is kept waiting.
    """
    try:
        file = _open(path)
    except OSError:
        yield True
        return
    try:
        yield _acquire(file, patience)
    finally:
        # Closing alone would leave it to a child that was forked within the block.
        with suppress(OSError):
            _unlock(file)
        os.close(file)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # another user's; to lock it one need only read it
        return os.open(path, os.O_RDONLY)


def _acquire(file: int, patience: float) -> bool:
    end = time.monotonic() + patience
    while True:
        try:
            _lock(file)
            return True
        except (BlockingIOError, PermissionError):  # POSIX; Windows
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        except OSError:  # no locks here
            return True


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        """Lock the file, or fail at once."""
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

    def _unlock(file: int) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: int) -> None:
        """Lock the file, or fail at once."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
