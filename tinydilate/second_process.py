"""A second process that compiles along, the first time.

A training step needs some twenty loops. Numba compiles one at a time, whatever threads one gives
it, so the first step keeps one core busy for many seconds while the others idle. A second process
can use one of them. It takes the same loops from the other end and keeps their machine code on
disk, where the first process finds it:

    first process     serve, pad, product, ...            -->  (found) (found) (found) done
    second process    adam step, sums, outer product, ... -->  ends

Neither waits for the other: a loop that both are at is compiled twice. So on cores that have other
work to do nothing takes longer than without. The code is the same, and so are the bits of every
result.

It is somebody else's computer. So the second process

* is started only when a process has found several loops missing, or has been asked to compile; and
  never again when it has once come to the end of its list, which is kept with the machine code;
* runs alone: however many processes begin at once, one of their helpers works and the others end;
* ends with the process that started it, however that ends;
* has the lowest priority: it uses cores that would idle, and gives way to every other program;
* runs no code but ours: neither the user's program nor anything of it is read;
* needs two cores that a container may use in full, two threads (``NUMBA_NUM_THREADS``), and some
  250 MB of memory;
* is switched off by ``TINYDILATE_SECOND_PROCESS=off``.

What it does is on the page compiling_ahead.py.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from tinydilate import compiling
from tinydilate.errors import ConfigError
from tinydilate.threads import available_cores, get_num_threads

SETTING = "TINYDILATE_SECOND_PROCESS"
STEP, EVERYTHING = "step", "all"  # what it compiles: the loops of a training step, or all
MISSING = 3  # loops that a process finds missing before it gets help: one op alone needs two
CONTROL = Path("/sys/fs/cgroup")
LOWEST = 19  # of the priorities that a POSIX system has

# The program of the second process: it finds its modules where this process does.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from tinydilate.compiling_ahead import main; main(*sys.argv[2:])"
)

_process: Any = None
_missing = 0
_starting = Lock()


def is_switched_on() -> bool:
    """Whether a second process may be started: ``TINYDILATE_SECOND_PROCESS=off`` forbids it."""
    wanted = os.environ.get(SETTING) or "on"
    if wanted not in ("on", "off"):
        raise ConfigError(
            f"expected {SETTING} to be on or off; got {wanted!r}. "
            "Unset it to compile on two cores when loops are compiled for the first time."
        )
    return wanted == "on"


def stamp(what: str) -> Path | None:
    """The file that says that a second process has come to the end of its list."""
    folder = compiling.cache_folder()
    return folder and folder / f"ahead-{what}"


def reason_against(what: str) -> str:
    """Why there is to be no second process; "" if there may be one."""
    done = stamp(what)
    if not is_switched_on():
        return f"{SETTING}=off"
    if compiling.import_numba().config.DISABLE_JIT:
        return "Numba is switched off"
    if done is None:
        return "there is no folder for machine code"
    if done.exists():
        return "it has been done"
    if min(available_cores(), get_num_threads(), _limit_of_container()) < 2:
        return "one core or one thread"
    if _is_a_worker():
        return "this process is itself one of several"
    if getattr(sys, "frozen", False) or not _is_python(sys.executable):
        return "this program is not a Python interpreter"
    return ""


def _limit_of_container() -> float:
    """How many cores' time Linux gives this container; infinite where there is no limit."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):
            quota, period = " ".join((CONTROL / name).read_text() for name in files).split()
            return float(quota) / float(period) if float(quota) > 0 else math.inf
    return math.inf


def _is_a_worker() -> bool:
    """Whether `multiprocessing` has started this process."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    return multiprocessing is not None and multiprocessing.parent_process() is not None


def _is_python(executable: str | None) -> bool:
    """Whether a program can be asked to run Python: Python may be a part of a larger one."""
    return Path(executable or "").name.lower().startswith(("python", "pypy"))


def start(what: str = STEP) -> bool:
    """Start a second process, if there may be one: whether it was."""
    global _process
    with _starting:
        if _process is not None or reason_against(what):
            return False
        with suppress(OSError, RuntimeError):  # no memory for it, or no leave: then without
            _process = _started(what)
            Thread(target=_wait_for, args=(_process,), daemon=True).start()
        return _process is not None


def _started(what: str) -> Any:
    import json
    import subprocess

    paths = json.dumps([str(path) for path in sys.path])
    # -P: not even `json` may come from the folder that we happen to be in.
    command = [sys.executable, "-P", "-c", _PROGRAM, paths, str(compiling.cache_folder()), what]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if sys.platform == "win32":
        quiet["creationflags"] = subprocess.CREATE_NO_WINDOW | subprocess.IDLE_PRIORITY_CLASS
    # While we live we hold the other end of its input; it reads, and ends when that does.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, env={**os.environ, SETTING: "off"}, **quiet
    )
    with suppress(AttributeError, OSError):  # Windows has been told; elsewhere it may be forbidden
        os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST)
    return process


def _wait_for(process: Any) -> None:
    """What a thread does: no process that has ended stays in the system's list."""
    process.wait()
    process.stdin.close()


def end() -> None:
    """End the second process. Each file that it has kept is whole."""
    global _process
    if _process is not None:
        _process.kill()
        _process.stdin.close()
        _process.wait()
    _process = None


atexit.register(end)


def _count_missing() -> None:
    """Called for each loop that is not on disk, before it is compiled."""
    global _missing
    _missing += 1
    if _missing >= MISSING:
        start()


compiling.when_missing = _count_missing


def _forget() -> None:
    """In a forked child: the second process is its parent's, and not to be held alive from here."""
    global _process, _missing, _starting
    if _process is not None:
        _process.stdin.close()
        _process.returncode = 0  # or Python would warn of a process that nobody has waited for
    _process, _missing, _starting = None, 0, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
