"""Receptive fields: how long an analysis, a check and the paper's claims take, and their memory.

Every figure is of a fresh Python process whose kernels are compiled already: seconds of the call
alone, without the interpreter's start and the import; and the largest memory of the whole process.

    python benchmarks/receptive_field.py --json receptive_field.json
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from side_by_side import median, parser, table, write_json


def analyse_voc() -> None:
    """The published network for VOC 2012, front end and Large context, on shapes alone."""
    from memory import voc_network

    from tinydilate.receptive_field import analyse

    fields = analyse(voc_network(device="meta"), (1, 3, 900, 900))
    assert fields.output.extent == (908, 908)


def verify_context() -> None:
    """The Basic context module: every layer's analysis against a measurement."""
    from tinydilate import models
    from tinydilate.receptive_field import verify

    assert verify(models.context(21), (1, 21, 67, 67)).agrees


def check_claims() -> None:
    """Everything that the paper says of receptive fields."""
    from tinydilate.receptive_field import claims

    assert all(claim.agrees for claim in claims())


TASKS: dict[str, Callable[[], None]] = {
    "analyse the VOC network": analyse_voc,
    "verify the Basic context module": verify_context,
    "all claims": check_claims,
}


def measured(name: str) -> dict[str, float]:
    """Seconds and bytes of one task in a process of its own."""
    command = [sys.executable, __file__, "--task", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def report(name: str) -> None:
    """Run a task here, and print what it took."""
    begin = time.perf_counter()
    TASKS[name]()
    seconds = time.perf_counter() - begin
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def main() -> None:
    """Time the tasks and print them."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--task", help="run this one here, and print JSON")
    options = arguments.parse_args()
    if options.task:
        return report(options.task)
    rows, figures = [], {}
    for name in TASKS:
        measured(name)  # compiles, if need be
        runs = [measured(name) for _ in range(max(3, options.repeats // 3))]
        figures[name] = {key: median([run[key] for run in runs]) for key in runs[0]}
        peak = figures[name]["peak_bytes"] / 2**20
        rows.append([name, f"{figures[name]['seconds']:.2f}", f"{peak:.0f}"])
    print(table(["task", "seconds", "peak MiB"], rows))
    found: dict[str, Any] = {"tasks": figures}
    write_json(options.json, found)
    return None


if __name__ == "__main__":
    main()
