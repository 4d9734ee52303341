"""What a kept pooling costs: the small front end and the networks it is compared with, trained.

The four ways of `tinydilate.models.comparisons` to make up for the last pooling, on the demo's
handwriting: deleted, kept at stride 1, kept at stride 1 in DeepLab's manner, kept with a skip as in
FCN. Same scenes, same steps (Adam, a rate that falls to nothing), same first weights where layers
are the same. Mean IoU on the test scenes, background included.

    python benchmarks/poolings.py --json poolings.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import table, write_json
from tqdm import tqdm

import tinydilate as td
from tinydilate import functional as F
from tinydilate import models, nn, optim
from tinydilate.data import digits
from tinydilate.metrics import confusion_matrix, mean_iou

CLASSES = len(digits.CLASSES)
BATCH, RATE = 16, 4e-3


def enlarged(build: Callable[..., nn.Sequential]) -> Callable[..., nn.Module]:
    """A network of cells, with its scores enlarged to pixels."""
    return lambda classes, rng: models.FrontEndWithContext(build(classes, rng=rng))


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "deleted": enlarged(models.small_front_end),
    "stride 1": enlarged(models.small_pooled_front_end),
    "stride 1, 3x3, and fc dilated": enlarged(models.small_large_fov),
    "stride 2, with a skip": models.small_fcn,
}


def trained(network: nn.Module, scenes: tuple[Any, Any], steps: int, seed: int) -> nn.Module:
    """Steps on batches drawn from the scenes."""
    images, labels = scenes
    groups = optim.weights_and_biases(
        [(name, p) for name, p in network.named_parameters() if p.requires_grad], RATE
    )
    optimizer, rate = optim.Adam(groups), optim.poly(steps, 0.9)
    rates = [group["lr"] for group in optimizer.param_groups]
    random = np.random.default_rng([seed, 2])
    for step in tqdm(range(steps), leave=False, unit="step"):
        for group, first in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = first * rate(step)
        chosen = random.integers(0, len(images), BATCH)
        optimizer.zero_grad()
        target = labels[chosen].astype(np.int64)
        F.cross_entropy(network(images[chosen]), target, ignore_index=digits.IGNORE).backward()
        optimizer.step()
    return network.eval()


def score(network: nn.Module, scenes: tuple[Any, Any]) -> float:
    """Mean IoU over all classes."""
    images, labels = scenes
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        with td.no_grad():
            found = network(images[part]).argmax(1).numpy()
        matrix += confusion_matrix(labels[part], found, CLASSES)
    return mean_iou(matrix)


def main() -> None:
    """Train all, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=400, help="a network (default: 400)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    test = digits.scenes("test", 300, 0)
    runs = []
    for seed in options.seeds:
        scenes = digits.scenes("train", 3000, seed)
        scores: dict[str, float] = {}
        for name, build in NETWORKS.items():
            begin = time.perf_counter()
            network = build(CLASSES, rng=np.random.default_rng([seed, 0]))
            scores[name] = score(trained(network, scenes, options.steps, seed), test)
            print(f"seed {seed}, {name}: {scores[name]:.3f}, {time.perf_counter() - begin:.0f} s")
        runs.append({"seed": seed, **scores})
        write_json(options.json, {"steps": options.steps, "runs": runs}, finished=False)
    means = {name: statistics.mean(run[name] for run in runs) for name in NETWORKS}
    rows = [[run["seed"], *(f"{run[name]:.3f}" for name in NETWORKS)] for run in runs]
    rows.append(["mean", *(f"{means[name]:.3f}" for name in NETWORKS)])
    print("\nMean IoU on the test scenes, 11 classes, background included; the last pooling is")
    print(table(["seed", *NETWORKS], rows))
    write_json(options.json, {"steps": options.steps, "runs": runs, "mean": means})


if __name__ == "__main__":
    main()
