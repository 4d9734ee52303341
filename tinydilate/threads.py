"""Sharing a loop among the processor's cores.

A Numba kernel here is an ordinary serial function of a range, ``body(start, stop, ...)``, compiled
with the global interpreter lock released. `share` cuts a range into one part a thread and calls
the body once for each. That is all there is to it, and it answers the three questions that a
threading layer raises: any number of Python threads may call tinydilate at once (only a leaf's
``.grad`` should not be added to by two backward passes at a time); a forked child makes its own
threads; the same number of threads cuts the same parts, so the same bits come out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np

from tinydilate import buffers
from tinydilate.errors import ConfigError

_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_count: int | None = None


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def get_num_threads() -> int:
    """Threads that a kernel is shared among: ``NUMBA_NUM_THREADS``, or every available core."""
    global _count
    if _count is None:
        text = os.environ.get("NUMBA_NUM_THREADS") or str(available_cores())
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError(
                f"NUMBA_NUM_THREADS should be a whole number of at least 1, got {text!r}. "
                "Set it to the number of cores to use, or unset it."
            )
        _count = int(text)
    return _count


def set_num_threads(count: int) -> None:
    """Share kernels among ``count`` threads from now on (1 = no threads of our own)."""
    global _count, _pool
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"the number of threads should be an integer >= 1, got {count!r}.")
    with _lock:
        _count, _pool = count, None


def share(
    body: Callable[..., Any],
    count: int,
    *arguments: Any,
    least: int = 1,
    room: int = 0,
    dtype: Any = np.float32,
) -> None:
    """Call ``body(start, stop, *arguments)`` for disjoint parts that cover ``range(count)``.

    ``least`` is the smallest part worth a thread of its own (waking one costs some 20
    microseconds): a small loop stays on the calling thread. With ``room``, each part is given an
    array of so many numbers of its own to work in: ``body(start, stop, room, *arguments)``. What
    it holds at first is what the last user left.
    """
    parts = 1 if count < max(2, 2 * least) else min(get_num_threads(), count // max(1, least))
    rooms = [(buffers.empty((room,), dtype),) if room else () for _ in range(parts)]
    if parts == 1:
        body(0, count, *rooms[0], *arguments)
        return
    cuts = [count * part // parts for part in range(parts + 1)]
    workers = _workers()
    try:
        waiting = [
            workers.submit(body, cuts[part], cuts[part + 1], *rooms[part], *arguments)
            for part in range(1, parts)
        ]
    except RuntimeError:  # the interpreter is ending and starts no threads any more
        body(0, count, *rooms[0], *arguments)
        return
    try:
        body(cuts[0], cuts[1], *rooms[0], *arguments)
    finally:
        errors = [future.exception() for future in waiting]  # waits for every part
    for error in errors:
        if error is not None:
            raise error


def least_jobs(work: int, count: int, worth: int) -> int:
    """How many of ``count`` jobs, ``work`` together, come to ``worth``: `share`'s least."""
    return max(1, worth * count // max(1, work))


def _workers() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, get_num_threads() - 1), "tinydilate")
        return _pool


def _forget_workers() -> None:
    """A forked child has none of its parent's threads: start afresh there."""
    global _pool, _lock
    _pool, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
