"""The demo's claim over several seeds: mean IoU with context, and without for equal steps.

Runs ``tinydilate train`` with its defaults once a seed (about two minutes each), with one more
network for those who ask what exactly helps: the same context module with every dilation set to 1,
so with as many parameters, layers and multiplications, but a small view (``--control``).

    python benchmarks/demo_seeds.py --json demo_seeds.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import table, write_json

from tinydilate.config import Config
from tinydilate.train import train


def run(config: Config) -> dict[str, Any]:
    """Train in a folder of its own; returns what results.json holds."""
    with tempfile.TemporaryDirectory() as folder:
        return train(config, Path(folder) / "run")


def main() -> None:
    """Train, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--control", action="store_true", help="also train without any dilation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()

    columns = ["front end", "front end alone", "with context"]
    runs = []
    for seed in options.seeds:
        begin = time.perf_counter()
        results = run(Config(seed=seed))
        scores = {
            name: results["networks"][stage]["mean_iou"]
            for name, stage in zip(columns, ("front", "alone", "joint"), strict=True)
        }
        if options.control:
            flat = (1,) * len(Config().dilations)
            control = run(Config(seed=seed, dilations=flat, comparison=False))
            scores["context, dilation 1"] = control["networks"]["joint"]["mean_iou"]
        scores["gain"] = scores["with context"] - scores["front end alone"]
        runs.append({"seed": seed, "seconds": time.perf_counter() - begin, **scores})

    names = list(scores)
    means = {name: statistics.mean(one[name] for one in runs) for name in names}
    rows = [[one["seed"], *(f"{one[name]:.3f}" for name in names)] for one in runs]
    rows.append(["mean", *(f"{means[name]:.3f}" for name in names)])
    steps = {name: results["networks"][stage]["steps"] for name, stage in
             zip(columns, ("front", "alone", "joint"), strict=True)}  # fmt: skip
    print("\nMean IoU on the test scenes, 11 classes, background included")
    print(table(["seed", *names], rows))
    print("steps: " + ", ".join(f"{name} {count}" for name, count in steps.items()))
    write_json(options.json, {"runs": runs, "mean": means, "steps": steps})


if __name__ == "__main__":
    main()
