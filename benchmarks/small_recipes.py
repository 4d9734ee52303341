"""The paper's three stages in small, by the recipes that run on a processor.

Writes scenes of the demo's handwriting to a plain folder, as a data set of one's own would be, and
runs ``small-1-front-end``, ``small-2-context`` and ``small-3-joint`` on it, each from the one
before. Mean IoU is that on the labels of every second pixel of the validation images.

    python benchmarks/small_recipes.py --json benchmarks/results/small_recipes.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from side_by_side import table, write_json

from tinydilate.data import digits
from tinydilate.recipes.preparing import Call
from tinydilate.recipes.stage import run_recipe
from tinydilate.recipes.table import read_recipe

STAGES = ("small-1-front-end", "small-2-context", "small-3-joint")


def write_scenes(folder: Path, counts: dict[str, int]) -> None:
    """A plain folder of images and labels; see tinydilate/data/folder.py."""
    for part in ("images", "labels"):
        (folder / part).mkdir()
    colours = [" ".join(map(str, colour)) for colour in digits.PALETTE.tolist()]
    lines = [f"{name} {colour}" for name, colour in zip(digits.CLASSES, colours, strict=True)]
    (folder / "classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, count in counts.items():
        kind: Any = "train" if split == "train" else "validation"
        images, labels = digits.scenes(kind, count)
        names = [f"{split}{number:04}" for number in range(count)]
        for name, image, label in zip(names, images, labels, strict=True):
            grey = np.clip(digits.grey(image[0]) * 255, 0, 255).astype(np.uint8)
            Image.fromarray(grey).convert("RGB").save(folder / "images" / f"{name}.png")
            Image.fromarray(label).save(folder / "labels" / f"{name}.png")
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Mean IoU and seconds of each stage."""
    found: dict[str, Any] = {"images": options.images, "validation": 20, "stages": {}}
    with tempfile.TemporaryDirectory() as place:
        folder, before = Path(place), None
        (folder / "data").mkdir()
        write_scenes(folder / "data", {"train": options.images, "val": 20})
        for stage in STAGES:
            begin = time.perf_counter()
            call = Call([folder / "data"], folder / stage, before)
            results = run_recipe(read_recipe(stage), call)
            figures = {"mean_iou": results["mean_iou"], "seconds": time.perf_counter() - begin}
            found["stages"][stage] = figures
            before = folder / stage
    return found


def main() -> None:
    """Train, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400, help="of training (default: 400)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    found = run(options)
    rows = [
        [stage, f"{figures['mean_iou']:.3f}", f"{figures['seconds']:.0f}"]
        for stage, figures in found["stages"].items()
    ]
    print(table(["stage", "mean IoU", "seconds"], rows))
    write_json(options.json, found)


if __name__ == "__main__":
    main()
