"""A forward pass of a published network over an input of its file's size, beside PyTorch.

Each figure is of a fresh process that does nothing else: it builds the network, fills it with
random weights, runs it once, which compiles and allocates, and is then timed. The sides take turns.
The peak is the largest resident set of that process: interpreter, libraries, weights and their
packed copies, machine code, everything counts. Both sides get the same weights and the same image,
and their scores are compared: they must agree, or the comparison is void.

    pip install torch
    python benchmarks/published.py --json published.json
    python benchmarks/published.py --network dilation10_cityscapes
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from typing import Any

import numpy as np
from memory import peak
from side_by_side import median, paired_ratio, parser, table, write_json

# The parent imports neither side: what a parent had resident may count as its child's.

SIDES = ("tinydilate", "torch")


def fill(weight: Any, random: np.random.Generator) -> None:
    """He's start in place, so that it takes no memory of its own."""
    random.standard_normal(dtype=np.float32, out=weight)
    weight *= np.float32(math.sqrt(2 / math.prod(weight.shape[1:])) if weight.ndim > 1 else 0.1)


def image(size: tuple[int, int]) -> Any:
    """Noise with the range of an image less its mean: (1, 3, H, W)."""
    return np.random.default_rng(1).uniform(-120, 140, (1, 3, *size)).astype(np.float32)


def ours(name: str, threads: int) -> Any:
    """The network in tinydilate: a function from an image to scores."""
    import tinydilate as td
    from tinydilate import models

    td.set_num_threads(threads)
    random = np.random.default_rng(0)
    network = models.PUBLISHED[name].build(weights="zeros").eval()
    for parameter in network.parameters():
        if parameter.requires_grad:
            fill(parameter.data, random)

    def run(x: Any) -> Any:
        with td.no_grad():
            return network(x).numpy()

    return run


def theirs(name: str, threads: int) -> Any:
    """The network in PyTorch."""
    import torch
    from train_step import as_torch

    from tinydilate import models

    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    layers = models.PUBLISHED[name].build(device="meta")
    network = as_torch(layers).eval()
    for parameter, own in zip(network.parameters(), layers.parameters(), strict=True):
        if own.requires_grad:
            fill(parameter.detach().numpy(), random)
        else:
            bilinear = models.bilinear_upsampling(own.shape[0], 8)
            parameter.detach().copy_(torch.from_numpy(bilinear.weight.numpy()))

    def run(x: Any) -> Any:
        with torch.no_grad():
            return network(torch.from_numpy(x)).numpy()

    return run


def run_here(side: str, name: str, threads: int) -> None:
    """In the child: seconds, peak and a sample of the scores, as JSON on the last line."""
    from tinydilate import models

    run = (theirs if side == "torch" else ours)(name, threads)
    x = image(models.PUBLISHED[name].input_size)
    run(x)
    begin = time.perf_counter()
    scores = run(x)
    seconds = time.perf_counter() - begin
    sample = scores[0].reshape(-1)[::97].tolist()
    print(json.dumps({"seconds": seconds, "bytes": peak(), "sample": sample}))


def in_a_child(side: str, name: str, threads: int) -> dict[str, Any]:
    """What a fresh process measured."""
    command = [sys.executable, __file__, "--child", side, "--network", name]
    command += ["--threads", str(threads)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def check(found: dict[str, list[dict[str, Any]]]) -> float:
    """The largest difference of the scores, as a share of the largest; stop if it is much."""
    sides = [np.array(found[side][0]["sample"]) for side in SIDES]
    error = float(np.abs(sides[0] - sides[1]).max() / np.abs(sides[1]).max())
    if not error < 1e-4:
        raise SystemExit(f"the scores differ by {error:.1e} of the largest: not the same network")
    return error


def main() -> None:
    """Measure both sides in turns and print time, memory and ratios."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--network", default="dilation8_voc", help="(default: dilation8_voc)")
    arguments.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    arguments.set_defaults(repeats=3)
    options = arguments.parse_args()
    if options.child:
        run_here(options.child, options.network, options.threads)
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        for side in SIDES:
            found[side].append(in_a_child(side, options.network, options.threads))
    error = check(found)
    seconds = {side: [each["seconds"] for each in found[side]] for side in SIDES}
    largest = {side: max(each["bytes"] for each in found[side]) for side in SIDES}
    ratio = paired_ratio(seconds["torch"], seconds["tinydilate"])
    rows = [
        ["seconds", *(f"{median(seconds[side]):.2f}" for side in SIDES), f"{ratio:.2f}"],
        ["peak MiB", *(f"{largest[side] / 2**20:.0f}" for side in SIDES)],
    ]
    rows[1].append(f"{largest['torch'] / largest['tinydilate']:.2f}")
    print(f"{options.network}, forward, {options.threads} threads, {options.repeats} turns")
    print(table(["", "tinydilate", "PyTorch", "PyTorch / ours"], rows))
    print(f"scores differ by {error:.1e} of the largest")
    figures = {
        "network": options.network,
        "threads": options.threads,
        **{f"{side}_seconds": median(seconds[side]) for side in SIDES},
        **{f"{side}_bytes": largest[side] for side in SIDES},
        "torch_over_tinydilate": ratio,
        "torch_over_tinydilate_bytes": largest["torch"] / largest["tinydilate"],
        "difference": error,
    }
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
