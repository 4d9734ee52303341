"""What the benchmark programs share: alternating blocks, medians, a table, JSON.

Both sides run in one process, in turns, so that both see the same machine in the same minute.
A short pause before each block lets the other side's worker threads fall asleep first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinydilate.compiling import jit
from tinydilate.simd import host_tile, outer_tile
from tinydilate.threads import get_num_threads, share

# What is compiled beside a measurement would disturb it; startup.py measures that itself.
os.environ.setdefault("TINYDILATE_SECOND_PROCESS", "off")


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    made.add_argument("--repeats", type=int, default=9, help="blocks a side (default: 9)")
    made.add_argument("--threads", type=int, default=2, help="threads a side (default: 2)")
    return made


PATIENCE = 5.0  # seconds of one call beyond which a comparison makes do with few


def alternate(
    sides: dict[str, Callable[[], Any]], repeats: int, calls: int = 5, pause: float = 0.05
) -> dict[str, list[float]]:
    """Seconds a call for each side: ``repeats`` blocks of ``calls`` calls, sides taking turns.

    Where one call of a side takes longer than ``PATIENCE``, there are two blocks of one call, and
    no call before each: nobody waits half an hour for a figure that is clear after a minute.
    """
    long = False
    for run in sides.values():  # compile, fill caches, allocate
        run()
        begin = time.perf_counter()
        run()
        long |= time.perf_counter() - begin > PATIENCE
    repeats, calls = (2, 1) if long else (repeats, calls)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            time.sleep(pause)
            if not long:
                run()  # wakes this side's threads
            begin = time.perf_counter()
            for _ in range(calls):
                run()
            seconds[name].append((time.perf_counter() - begin) / calls)
    return seconds


@jit
def _tile_on_cached_numbers(
    start: int, stop: int, out: Any, rounds: int, a: Any, b: Any, zeros: Any, shape: tuple[int, int]
) -> None:
    rows, columns = shape
    for _ in range(start, stop):
        for _ in range(rounds):
            outer_tile(
                out,
                (0, columns),
                shape,
                a,
                (0, 1, rows),
                b,
                (0, columns),
                STEPS,
                zeros,
                0,
                True,
                False,
            )


STEPS = 128  # of the tile that finds the peak: 4 KB of A and 24 KB of B


def arithmetic(flop: float) -> tuple[Callable[[], None], float]:
    """What the processor's peak is measured by, and its multiplications and additions.

    All threads run the register tile on numbers in the first-level cache, about ``flop`` operations
    together. On a shared machine the peak is another one in each second, so it takes turns with
    what it is compared with.
    """
    tile = host_tile()
    rows, columns, threads = tile.rows, tile.columns(), get_num_threads()
    a, b = np.ones(STEPS * rows, np.float32), np.ones(STEPS * columns, np.float32)
    once = 2 * rows * columns * STEPS * threads
    rounds = max(1, round(flop / once))
    arguments = (rounds, a, b, np.zeros(rows, np.float32), (rows, columns))

    def run() -> None:
        share(_tile_on_cached_numbers, threads, *arguments, room=rows * columns)

    return run, float(once * rounds)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    import numba
    import numpy

    import tinydilate

    found = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "tinydilate": tinydilate.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    try:
        import torch

        found["torch"] = torch.__version__
    except ImportError:
        pass
    return found


def median(values: list[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def paired_ratio(theirs: list[float], ours: list[float]) -> float:
    """Median over the blocks of (their seconds / our seconds); above 1 we are faster."""
    return median([t / o for t, o in zip(theirs, ours, strict=True)])


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Columns aligned for reading; numbers to the right."""
    cells = [header, *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write_json(path: Path | None, figures: dict[str, Any], finished: bool = True) -> None:
    """Write the figures with the machine that they were taken on.

    A long program writes after each row, ``finished=False``: what was measured is kept if it ends.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    head = {"machine": machine()} if finished else {"machine": machine(), "finished": False}
    temporary.write_text(json.dumps({**head, **figures}, indent=2) + "\n")
    temporary.replace(path)
    if finished:
        print(f"\nwritten: {path}")
