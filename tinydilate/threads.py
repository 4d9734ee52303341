"""Sharing a loop among the processor's cores.

A Numba kernel here is an ordinary serial function of a range, ``body(start, stop, ...)``, compiled
with the global interpreter lock released. `share` cuts a range into parts and has the body called
for each. That is all there is to it, and it answers the three questions that a threading layer
raises: any number of Python threads may call tinydilate at once (only a leaf's ``.grad`` should not
be added to by two backward passes at a time); a forked child makes its own threads; the same number
of threads cuts the same parts, so the same bits come out.

handover.py says how a part reaches a thread.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from contextlib import suppress
from threading import Lock, Thread
from typing import Any, cast

import numpy as np

from tinydilate import buffers
from tinydilate.compiling import Jitted
from tinydilate.errors import ConfigError
from tinydilate.handover import (
    ASLEEP,
    STOP,
    board_size,
    serve,
    together,
    together_in_rooms,
)

_lock = Lock()
_crew: _Crew | None = None
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
    global _count
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"the number of threads should be an integer >= 1, got {count!r}.")
    _dismiss()
    _count = count


def share(
    body: Callable[..., Any],
    count: int,
    *arguments: Any,
    least: int = 1,
    room: int = 0,
    dtype: Any = np.float32,
) -> None:
    """Call ``body(start, stop, *arguments)`` for disjoint parts that cover ``range(count)``.

    ``body`` is a loop marked with ``@jit``.
    ``least`` is the smallest part worth a thread of its own: a small loop stays on the calling
    thread. With ``room``, each thread is given an array of so many numbers of its own to work in:
    ``body(start, stop, room, *arguments)``. What it holds at first is what the last user left.
    """
    threads = get_num_threads()
    parts = 1 if threads == 1 or count < 2 * least else min(threads, count // max(1, least))
    crew, loop = _crew or _gather(), cast(Jitted, body)
    if parts > 1:
        crew.wake(parts - 1)
    if room:
        pitch = -(-room // 16) * 16  # so that every room begins where a line of the cache does
        rooms = buffers.empty((parts, pitch), dtype)
        loop.call_within(together_in_rooms, crew.board, parts, count, rooms, *arguments)
    else:
        loop.call_within(together, crew.board, parts, count, *arguments)


WORTH_A_THREAD = 16_384  # simple steps, such as reading a number and writing one


def worth_a_thread(steps: int = 1) -> int:
    """How many jobs of so many simple steps each are worth a thread: `share`'s least."""
    return max(1, WORTH_A_THREAD // max(1, steps))


def least_jobs(work: int, count: int, worth: int) -> int:
    """How many of ``count`` jobs, ``work`` together, come to ``worth``: `share`'s least."""
    return max(1, worth * count // max(1, work))


class _Crew:
    """The threads that help, what they watch, and what wakes them."""

    def __init__(self, helpers: int) -> None:
        self.board, self.bells = _aligned_words(board_size(helpers)), []
        watched = hasattr(cast(Any, serve).compiled, "overloads")
        if not watched:  # Numba is switched off: nobody can watch it
            self.board = [0] * len(self.board)
        self.board[STOP] = 1
        serve(self.board, 1)  # puts the address of `drive` on the board, and returns at once
        self.board[STOP] = 0
        if not watched:
            return
        self.words = memoryview(self.board)  # quicker to read one word from
        for who in range(1, helpers + 1):
            bell = Lock()
            bell.acquire()  # rung by letting go of it
            try:
                Thread(
                    target=_help,
                    args=(self.board, bell, who),
                    name=f"tinydilate-{who}",
                    daemon=True,
                ).start()
            except RuntimeError:  # the interpreter is ending and starts no threads any more
                return
            self.bells.append(bell)

    def wake(self, wanted: int) -> None:
        """Wake threads that sleep; those that are awake will see the job by themselves."""
        for n in range(min(wanted, len(self.bells))):
            if self.words[ASLEEP + 8 * n]:
                self.words[ASLEEP + 8 * n] = 0
                with suppress(RuntimeError):  # rung already, by another caller
                    self.bells[n].release()

    def dismiss(self) -> None:
        """End the threads."""
        self.board[STOP] = 1
        for bell in self.bells:
            with suppress(RuntimeError):
                bell.release()


def _help(board: Any, bell: Any, who: int) -> None:
    """What a thread does all its life: take parts, and sleep when none come."""
    while serve(board, who):
        bell.acquire()


def _aligned_words(count: int) -> Any:
    """Zeros, int64, from the beginning of a line of the cache on."""
    words = np.zeros(count + 8, np.int64)
    return words[-(words.ctypes.data // 8) % 8 :][:count]


def _gather() -> _Crew:
    global _crew
    with _lock:
        if _crew is None:
            _crew = _Crew(get_num_threads() - 1)
        return _crew


def _dismiss() -> None:
    """End the threads; the next loop that is shared starts new ones."""
    global _crew
    with _lock:
        if _crew is not None:
            _crew.dismiss()
        _crew = None


atexit.register(_dismiss)


def _forget_crew() -> None:
    """A forked child has none of its parent's threads: start afresh there."""
    global _crew, _lock
    _crew, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_crew)
