"""A data set of a few small images in a folder, and a network that learns it in no time."""

from pathlib import Path

import numpy as np
from PIL import Image

from tinydilate.recipes.table import Recipe

NAMES = ("ground", "red", "green")
COLOURS = np.array([(90, 90, 90), (200, 40, 40), (40, 200, 40)], np.uint8)


def write_folder(folder: Path, counts=(6, 3), size=(24, 28), seed=0, sizes=None) -> Path:
    """A plain folder: rectangles of two colours on grey, with noise; some labels do not count."""
    rng = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
    number = 0
    for split, count in zip(("train", "val"), counts, strict=True):
        names = []
        for _ in range(count):
            height, width = size if sizes is None else sizes[number % len(sizes)]
            labels = np.zeros((height, width), np.uint8)
            for kind in (1, 2):
                y, x = rng.integers(0, height - 8), rng.integers(0, width - 8)
                labels[y : y + 10, x : x + 10] = kind
            noise = rng.integers(-30, 31, (height, width, 3))
            image = np.clip(COLOURS[labels] + noise, 0, 255).astype(np.uint8)
            labels[rng.random((height, width)) < 0.1] = 255
            names.append(f"picture{number}")
            Image.fromarray(image).save(folder / "images" / f"{names[-1]}.png")
            Image.fromarray(labels).save(folder / "labels" / f"{names[-1]}.png")
            number += 1
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


# Field 12, stride 2, border 5: a crop of 26 pixels gives 8 x 8 cells.
SMALL = {
    "train": ["folder:train"],
    "validation": "folder:val",
    "crop": 26,
    "front_end": "table",
    "table": ["conv1_1 3 1 8", "pool1 pool", "conv2_1 3 2 16", "drop2 drop 0.5"],
    "divisor": 64,
    "final_std": 0.01,
    "batch": 4,
    "steps": 6,
    "lr": 0.01,
    "validate_every": 2,
    "validate_images": 2,
    "save_every": 2,
}


def recipe(**changed) -> Recipe:
    """The recipe of a front end, with some keys changed."""
    return Recipe.of({**SMALL, "learns": "front end", **changed})


def context_recipe(**changed) -> Recipe:
    """The recipe of a context module on stored features."""
    options = {"context": "basic", "dilations": [1, 2], "learns": "context", "start": "front end"}
    return Recipe.of({**SMALL, **options, **changed})


def joint_recipe(**changed) -> Recipe:
    """The recipe of both together."""
    options = {"context": "basic", "dilations": [1, 2], "learns": "all", "start": "network"}
    return Recipe.of({**SMALL, **options, **changed})
