"""Machine code on disk that several processes read and write at once.

Numba keeps two kinds of files for each loop: an index, which says for which types of arguments
there is code and in which file, and the files with the code. Each is written under another name and
then put in its place, so nobody ever reads half a file. Two things are left to see to:

* To add code is to read the index, choose the next free number, and write both files. Of two
  processes that do so at once, one for float32 and one for float64, both may choose the same
  number, and the index of the one then names the code of the other. A lock lets one in at a time.
* A file may be damaged: by a disk that was full, by a computer that lost its power. Then the loop
  is compiled anew, as if there were none.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
    """

    def __init__(self, cache: Any, lock: Path, missing: Callable[[], None]) -> None:
        self._cache, self._lock, self._missing = cache, lock, missing

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The loop's code for these types, or None."""
        found = None
        try:
            found = self._cache.load_overload(signature, context)
        except OSError:
            raise
        except Exception:  # whatever a reader may say of damaged bytes
            pass
        if found is None:
            self._missing()
        return found

    def save_overload(self, signature: Any, code: Any) -> None:
        """Keep the loop's code for these types."""
        with locked(self._lock) as alone:
            if not alone:  # somebody has the lock and does not move: this code is not kept
                return
            try:
                self._cache.save_overload(signature, code)
            except OSError:
                raise
            except Exception:  # the index is damaged, and with it is lost what it knew
                self._cache.flush()
                self._cache.save_overload(signature, code)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


@contextmanager
def locked(path: Path, patience: float = PATIENCE) -> Iterator[bool]:
    """Hold the lock of a file within the block; False if another process does not let go of it.

    The system takes the lock from a process that ends, however it ends. Where a folder's files
    cannot be locked, as on some network drives, nobody is kept waiting.
    """
    try:
        file = path.open("ab")
    except OSError:
        yield True
        return
    with file:  # whoever closes it gives back the lock
        yield _acquire(file, patience)


def _acquire(file: IO[bytes], patience: float) -> bool:
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


def _lock(file: IO[bytes]) -> None:
    """Lock the file, or fail at once."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file.fileno(), 0, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
