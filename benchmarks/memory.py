"""The most memory that the published networks take at once, beside PyTorch.

Three cases: a forward pass of the VOC network, front end and Large context (141 million
parameters), over an image of 900 x 900 pixels; one training step, SGD with momentum, of the front
end and the Basic context on a crop of 500 x 500; and three such steps, since from the second on
there is the momentum's memory during the passes as well. Every figure is the largest resident set
of a fresh Python process that does nothing else: interpreter, libraries, weights and their packed
copies, machine code, everything counts. Of ours there are two: the first process in a new
environment compiles as well, every later one finds machine code on disk.

    pip install torch
    python benchmarks/memory.py --json memory.json
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from side_by_side import parser, table, write_json

# The parent imports neither side: what a parent had resident may count as its child's.

CLASSES = 21  # 20 kinds of objects, and background
CASES = {
    "forward": "VOC network, forward, 900x900",
    "step": "front end + Basic context, training step, 500x500",
    "steps": "the same, three steps",
}


def voc_network(**options: Any) -> Any:
    """The published VOC network; 900 pixels, their border among them, give 66 cells."""
    from tinydilate import models

    return models.dilation8_voc(**options)


def crop_network(**options: Any) -> Any:
    """Front end and Basic context; a crop of 500 pixels gives 16 cells."""
    from tinydilate import models, nn

    front_end = models.front_end(CLASSES, border=False, **options)
    return nn.Sequential(front_end, models.context(CLASSES, **options))


def image(size: int) -> Any:
    """A batch of one image of noise: (1, 3, size, size)."""
    return np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)


def labels() -> Any:
    """A label for each of the crop's cells: (1, 16, 16)."""
    return np.random.default_rng(1).integers(0, CLASSES, (1, 16, 16))


def our_forward() -> None:
    """The forward pass in tinydilate."""
    import tinydilate as td

    network = voc_network(rng=0).eval()
    with td.no_grad():
        assert network(image(900)).shape == (1, CLASSES, 66, 66)


def their_forward() -> None:
    """The forward pass in PyTorch."""
    import torch
    from train_step import as_torch

    network = as_torch(voc_network(device="meta")).eval()
    with torch.no_grad():
        assert network(torch.from_numpy(image(900))).shape == (1, CLASSES, 66, 66)


def our_steps(count: int) -> None:
    """Training steps in tinydilate."""
    from tinydilate import functional as F
    from tinydilate import optim

    network = crop_network(rng=0)
    optimizer = optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(network(image(500)), labels()).backward()
        optimizer.step()


def their_steps(count: int) -> None:
    """Training steps in PyTorch."""
    import torch
    from train_step import as_torch

    network = as_torch(crop_network(device="meta"))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    crop, target = torch.from_numpy(image(500)), torch.from_numpy(labels())
    for _ in range(count):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(crop), target).backward()
        optimizer.step()


def peak() -> int:
    """Bytes of this process that were resident at once, at most."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # elsewhere in kilobytes


def run_here(side: str, case: str, threads: int) -> None:
    """In the child: one case of one side, and the peak on the last line."""
    if side == "torch":
        import torch as engine
    else:
        import tinydilate as engine
    engine.set_num_threads(threads)
    if case == "forward":
        (their_forward if side == "torch" else our_forward)()
    else:
        (their_steps if side == "torch" else our_steps)(3 if case == "steps" else 1)
    print(peak())


def in_a_child(side: str, case: str, threads: int, cache: str) -> int:
    """Peak of a fresh process, in bytes; ``cache`` is the folder of our machine code."""
    command = [sys.executable, __file__, "--child", side, case, "--threads", str(threads)]
    environment = os.environ | {"TINYDILATE_CACHE": cache}
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return int(run.stdout.split()[-1])


def peaks(case: str, threads: int) -> dict[str, int]:
    """Peaks of a case, in bytes: ours, ours in a process that compiles as well, and PyTorch's."""
    with TemporaryDirectory() as cache:
        compiling, ours, theirs = (
            in_a_child(side, case, threads, cache) for side in ("ours", "ours", "torch")
        )
    return {
        "tinydilate_bytes": ours,
        "tinydilate_compiling_bytes": compiling,
        "torch_bytes": theirs,
    }


def main() -> None:
    """Measure both sides of both cases and print them."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments.add_argument("--only", choices=CASES, help="one of the cases")
    options = arguments.parse_args()
    if options.child:
        run_here(*options.child, options.threads)
        return
    rows, figures = [], {}
    for case in [options.only] if options.only else CASES:
        figures[case] = peaks(case, options.threads)
        ours, compiling, theirs = figures[case].values()
        rows.append([CASES[case], *(f"{each / 2**20:.0f}" for each in figures[case].values())])
        rows[-1] += [f"{theirs / ours:.2f}", f"{theirs / compiling:.2f}"]
    header = ["peak of resident memory", "tinydilate MiB", "compiling as well", "PyTorch MiB"]
    header += ["PyTorch / ours", "/ compiling"]
    print(f"{options.threads} threads, a fresh process for each figure")
    print(table(header, rows))
    write_json(options.json, {"threads": options.threads, **figures})


if __name__ == "__main__":
    main()
