"""What tiles cost: labels of the demo's network for wide scenes, whole and tile by tile.

Scenes of 192 x 192 pixels are labelled twice, at once and in nine tiles of 64 x 64 (84 with their
border), as the published code would. Printed, by the distance to the nearest seam: the share of
pixels whose label differs, and the largest difference of a probability. Beside it the mean IoU of
both with the truth, and the same for the run's front end alone, which has no padding inside. With
--picture, one scene is drawn.

    tinydilate train --out runs/demo
    python benchmarks/seams.py runs/demo --json seams.json --picture docs/_static/seams.png
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import parser, table, write_json

from tinydilate.data import digits
from tinydilate.metrics import Score, confusion_matrix
from tinydilate.predict import as_original, load_network, parts_of, whole_image
from tinydilate.see.canvas import INK, save

SIDE, TILE = 192, 64
BINS = (0, 2, 4, 8, 16, 32)  # pixels from the nearest seam
METHODS = ("whole", "tiles")


def scenes(count: int) -> tuple[Any, Any]:
    """Wide scenes as full of digits as the demo's: (N, 1, 192, 192), (N, 192, 192)."""
    return digits.scenes("test", count, 7, size=SIDE, digits=(27, 36))


def both(network: Any, image: Any) -> dict[str, Any]:
    """Probabilities (C, H, W) of the whole image, and of its tiles put together."""
    tile = TILE + 2 * parts_of(network).border
    return {
        "whole": whole_image(network, image),
        "tiles": as_original(network, image, (tile, tile)),
    }


def distance_to_seam() -> Any:
    """Pixels from each pixel to the nearest seam, 0 beside it: (192, 192)."""
    seams = np.arange(TILE, SIDE, TILE) - 0.5
    along = np.abs(np.arange(SIDE)[:, None] - seams).min(1)
    return np.minimum(along[:, None], along[None, :]) - 0.5


def compare(network: Any, images: Any, truth: Any) -> dict[str, Any]:
    """Scores of both ways, and how much they differ by the distance to a seam."""
    found = [both(network, image) for image in images]
    classes = len(digits.CLASSES)
    labels = {m: np.stack([each[m].argmax(0) for each in found]) for m in METHODS}
    differ = labels["whole"] != labels["tiles"]
    largest = np.stack([abs(each["whole"] - each["tiles"]).max(0) for each in found])
    distance, bands = distance_to_seam(), []
    for near, far in pairwise(BINS):
        there = (distance >= near) & (distance < far)
        bands.append(
            {
                "pixels": f"{near} to {far - 1}",
                "labels": float(differ[:, there].mean()),
                "probability": float(largest[:, there].max()),
            }
        )
    scores = {
        m: Score.of(confusion_matrix(truth, labels[m], classes), digits.CLASSES).mean_iou
        for m in METHODS
    }
    return {"mean_iou": scores, "bands": bands, "labels": float(differ.mean())}


def draw(path: Path, network: Any, image: Any) -> None:
    """The scene, its labels both ways, and where they differ; seams are drawn in."""
    from matplotlib.figure import Figure

    found = {name: each.argmax(0) for name, each in both(network, image).items()}
    grey = digits.grey(image)[0]
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    differ = np.where((found["whole"] != found["tiles"])[..., None], np.uint8((213, 94, 0)), white)
    pictures = {
        "a scene": np.repeat((grey * 255).astype(np.uint8)[..., None], 3, 2),
        "labels, whole image": digits.PALETTE[found["whole"]],
        "labels, tile by tile": digits.PALETTE[found["tiles"]],
        "where they differ": differ,
    }
    figure = Figure(figsize=(10, 2.7), layout="constrained", facecolor="white")
    for axes, (title, pixels) in zip(figure.subplots(1, 4), pictures.items(), strict=True):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        if "whole" not in title:
            for seam in range(TILE, SIDE, TILE):
                axes.axvline(seam - 0.5, color="#888888", linewidth=0.6, linestyle=(0, (4, 3)))
                axes.axhline(seam - 0.5, color="#888888", linewidth=0.6, linestyle=(0, (4, 3)))
    save(figure, path, dpi=140)


def main() -> None:
    """Compare the two ways and print how they differ."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("run", help="a run folder of tinydilate train")
    arguments.add_argument("--scenes", type=int, default=20, help="how many (default: 20)")
    arguments.add_argument("--picture", type=Path, metavar="FILE", help="draw the first scene here")
    options = arguments.parse_args()
    images, truth = scenes(options.scenes)
    network = load_network(options.run).network
    found = compare(network, images, truth)
    alone = compare(load_network(options.run, "front").network, images, truth)
    rows = [
        [b["pixels"], f"{b['labels']:.2%}", f"{b['probability']:.3f}", f"{a['probability']:.1e}"]
        for b, a in zip(found["bands"], alone["bands"], strict=True)
    ]
    header = ["pixels to a seam", "other label", "probability, most", "front end alone, most"]
    print(table(header, rows))
    scores = {m: f"{score:.3f}" for m, score in found["mean_iou"].items()}
    print(f"mean IoU: whole {scores['whole']}, tiles {scores['tiles']}")
    write_json(options.json, {"scenes": options.scenes, "context": found, "front end": alone})
    if options.picture:
        draw(options.picture, network, images[0])


if __name__ == "__main__":
    main()
