"""What this installation consists of, what works, and what to do about what does not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

import tinydilate
from tinydilate import functional as F
from tinydilate import gpu_checkup
from tinydilate.compiling import cache_folder, cache_home
from tinydilate.gpu_checkup import Finding
from tinydilate.threads import available_cores, get_num_threads, set_num_threads


def examine() -> list[Finding]:
    """Run every check; a check that breaks is a finding itself."""
    findings: list[Finding] = []
    for what, check in CHECKS.items():
        try:
            found = check(what)
            findings += found if isinstance(found, list) else [found]
        except Exception as error:  # a doctor does not fall ill of the patient
            findings.append(
                Finding(
                    "fail",
                    what,
                    f"{type(error).__name__}: {error}",
                    "Install tinydilate anew into an empty environment; if that does not help, "
                    "report this line.",
                )
            )
    return findings


def _versions(what: str) -> Finding:
    packages = (
        "numpy",
        "numba",
        "llvmlite",
        "scipy",
        "matplotlib",
        "pillow",
        "tqdm",
        "safetensors",
    )
    found = [f"tinydilate {tinydilate.__version__}", f"Python {platform.python_version()}"]
    missing = []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        return Finding(
            "fail",
            what,
            f"missing: {', '.join(missing)}",
            f"Install them: {sys.executable} -m pip install {' '.join(missing)}",
        )
    return Finding("ok", what, ", ".join(found))


def _machine(what: str) -> Finding:
    return Finding("ok", what, f"{platform.system()} {platform.machine()}")


def _threads(what: str) -> Finding:
    count, cores = get_num_threads(), available_cores()
    found = f"{count} of {cores} cores"
    if count > cores:
        return Finding(
            "note", what, found,
            f"More threads than cores slow each other down: set NUMBA_NUM_THREADS={cores}.",
        )  # fmt: skip
    if count < cores:
        return Finding(
            "note", what, found, "Unset NUMBA_NUM_THREADS to use every core, if that is wanted."
        )
    return Finding("ok", what, found)


def _tiny_convolution() -> Any:
    """Something that runs on our threads."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 8, 40, 40), np.float32)
    w = rng.standard_normal((8, 8, 3, 3), np.float32)
    return F.conv2d(x, w, dilation=2).data


def _two_threads(what: str) -> Finding:
    """The rule of threads.py, tried: any number of Python threads may call tinydilate at once."""
    before = get_num_threads()
    set_num_threads(2)  # so that kernels share their work even on one core
    try:
        expected = _tiny_convolution()
        results: list[Any] = []
        callers = [
            threading.Thread(target=lambda: results.extend(_tiny_convolution() for _ in range(5)))
            for _ in range(2)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(timeout=60)
    finally:
        set_num_threads(before)
    if len(results) == 10 and all(np.array_equal(result, expected) for result in results):
        return Finding("ok", what, "agree with one, each kernel sharing its work")
    return Finding(
        "fail", what, "differ from one, or hang",
        "Set NUMBA_NUM_THREADS=1, which needs no threads, and report this.",
    )  # fmt: skip


def _fork_a_child() -> None:
    """End with the exit code of a forked child that has computed, within a minute, or not."""
    set_num_threads(2)
    _tiny_convolution()  # so that there are threads, none of which the child has
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        _tiny_convolution()
        os._exit(0)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _fork(what: str) -> Finding:
    """A forked child makes threads of its own."""
    if not hasattr(os, "fork"):
        return Finding("ok", what, "not on this system")
    # In a process of its own: forking one that has other libraries' threads is their affair.
    program = "from tinydilate import doctor; doctor._fork_a_child()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return Finding("ok", what, "works, with threads of its own")
    return Finding(
        "fail", what, f"ends with exit code {done.returncode}",
        'Start processes with multiprocessing\'s method "spawn" instead, and report this.',
    )  # fmt: skip


def _simd(what: str) -> Finding:
    from tinydilate.simd import host_tile

    tile = host_tile()
    found = f"{tile.name}: {tile.lanes()} numbers a vector, tiles of {tile.rows} x {tile.columns()}"
    if tile.name == "plain":
        return Finding(
            "note", what, found,
            "This processor has no vector unit that tinydilate knows (AVX2, AVX-512, NEON); "
            "convolutions work, but slowly.",
        )  # fmt: skip
    return Finding("ok", what, found)


def _compiling(what: str) -> Finding:
    import numba

    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return Finding(
            "note", what, "switched off by NUMBA_DISABLE_JIT",
            "Unset NUMBA_DISABLE_JIT: without compiling, kernels are very slow.",
        )  # fmt: skip
    expected = _tiny_convolution()
    with tinydilate.use("numpy"):
        reference = _tiny_convolution()
    error = float(np.abs(expected - reference).max() / np.abs(reference).max())
    if error < 1e-5:
        return Finding("ok", what, f"a convolution agrees with its reference to {error:.0e}")
    return Finding(
        "fail", what, f"a convolution differs from its reference by {error:.0e}",
        "Delete the cache folder below and try again; if it stays, report the processor.",
    )  # fmt: skip


def _cache(what: str) -> Finding:
    folder = cache_folder()
    if folder is None:
        return Finding(
            "fail", what, f"{cache_home()} cannot be written to",
            "Set TINYDILATE_CACHE to a folder that can: without it kernels are compiled anew in "
            "every process.",
        )  # fmt: skip
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    older = len(list(folder.parent.glob("numba-*"))) - 1
    found = f"{folder}, {size:.1f} MiB, {older} older version{'' if older == 1 else 's'} beside it"
    if not (folder / "warm-all").exists():
        return Finding(
            "note", what, found, "Run tinydilate warmup to compile every kernel in advance."
        )
    return Finding("ok", what, found)


def _disk(what: str) -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    if free < 0.5:
        return Finding(
            "note", what, f"{free:.2f} GiB free in the working folder",
            "Make room before training: a run writes a few megabytes, and caches grow.",
        )  # fmt: skip
    return Finding("ok", what, f"{free:.0f} GiB free in the working folder")


def _gpu(what: str) -> list[Finding]:
    """As many lines as there are steps, up to the first that needs something done."""
    return gpu_checkup.examine()


CHECKS: dict[str, Callable[[str], Finding | list[Finding]]] = {
    "versions": _versions,
    "machine": _machine,
    "threads": _threads,
    "register tile": _simd,
    "compiled kernels": _compiling,
    "two callers at once": _two_threads,
    "a forked child": _fork,
    "kernel cache": _cache,
    "disk": _disk,
    "GPU": _gpu,
}
