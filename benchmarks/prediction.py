"""Whole-image prediction: the memory that was promised, the memory that was taken, and the time.

Each figure is of a fresh Python process with random weights that does nothing else: the largest
resident set, interpreter, libraries, weights and machine code included, beside the estimate from
which `tinydilate.predict.memory` chose the pieces; and the seconds of the prediction alone.

    python benchmarks/prediction.py --json prediction.json
    python benchmarks/prediction.py --only voc-2GB city-2GB
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any, NamedTuple

import numpy as np
from side_by_side import parser, table, write_json

# The parent imports no engine: what a parent had resident may count as its child's.


class Case(NamedTuple):
    """A network, the image's height and width, and the bound of memory."""

    network: str
    size: tuple[int, int]
    memory: str


CASES = {
    "voc-2GB": Case("dilation8_voc", (375, 500), "2GB"),
    "voc-1.2GB": Case("dilation8_voc", (375, 500), "1.2GB"),
    "city-4GB": Case("dilation10_cityscapes", (1024, 2048), "4GB"),
    "city-2GB": Case("dilation10_cityscapes", (1024, 2048), "2GB"),
    "city-1.3GB": Case("dilation10_cityscapes", (1024, 2048), "1.3GB"),
}


def random_network(name: str) -> Any:
    """A published network; its numbers are drawn in place, without a copy."""
    from tinydilate import models

    network = models.PUBLISHED[name].build(weights="zeros")
    random = np.random.default_rng(0)
    for parameter in network.parameters():
        if parameter.requires_grad:
            random.standard_normal(dtype=np.float32, out=parameter.data)
            parameter.data *= np.float32((2 / max(1, parameter.data[0].size)) ** 0.5)
    return network


def peak() -> int:
    """Bytes of this process that were resident at once, at most."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # elsewhere in kilobytes


def run_here(case: Case, threads: int) -> None:
    """In the child: label one image, and print what it took as JSON on the last line."""
    import tinydilate as td
    from tinydilate.predict.memory import plan
    from tinydilate.predict.parts import parts_of
    from tinydilate.predict.whole import whole_bands

    td.set_num_threads(threads)
    network = random_network(case.network)
    image = np.random.default_rng(1).integers(-120, 120, (3, *case.size)).astype(np.float32)
    labels = np.empty(case.size, np.uint8)
    kept = labels.nbytes
    before = peak()
    begin = time.perf_counter()
    for rows, probabilities in whole_bands(network, image, memory=case.memory, kept=kept):
        labels[rows] = probabilities.argmax(0)
    seconds = time.perf_counter() - begin
    cut = plan(parts_of(network), case.size, case.memory, kept)
    figures = {"seconds": seconds, "peak_bytes": peak(), "estimate_bytes": cut.peak}
    figures |= {"before_bytes": before, "cells": cut.cells, "piece": cut.front}
    print(json.dumps(figures))


def in_a_child(name: str, threads: int) -> dict[str, Any]:
    """What a case took, in a fresh process."""
    command = [sys.executable, __file__, "--child", name, "--threads", str(threads)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measure the cases and print them."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    arguments.add_argument("--only", choices=CASES, nargs="+", help="some of the cases")
    options = arguments.parse_args()
    if options.child:
        run_here(CASES[options.child], options.threads)
        return
    rows, figures = [], {}
    for name in options.only or CASES:
        case, found = CASES[name], in_a_child(name, options.threads)
        taken, told = found["peak_bytes"], found["estimate_bytes"]
        row = [case.network, f"{case.size[1]}x{case.size[0]}", case.memory]
        row += ["{}x{}".format(*found["piece"]), f"{told / 1e9:.2f}", f"{taken / 1e9:.2f}"]
        rows.append([*row, f"{found['seconds']:.0f}"])
        figures[name] = {**case._asdict(), **found}
    header = ["network", "image", "bound", "cells of a piece", "estimated GB", "taken GB", "s"]
    print(f"{options.threads} threads, a fresh process for each figure")
    print(table(header, rows))
    write_json(options.json, {"threads": options.threads, **figures})


if __name__ == "__main__":
    main()
