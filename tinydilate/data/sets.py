"""What a training run learns from and is scored on, checked; and which scenes make a batch."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydilate.classes import IGNORE
from tinydilate.device import Array
from tinydilate.errors import DataError


class Scenes(NamedTuple):
    """Images (N, C, H, W), float32, and labels (N, H, W), class numbers or 255."""

    images: Array
    labels: Array


class Data(NamedTuple):
    """The three parts of a data set."""

    train: Scenes
    validation: Scenes
    test: Scenes
    classes: tuple[str, ...]  # names, the background among them


def check_data(data: Data) -> None:
    """Refuse data that cannot be learnt from.

    Raises
    ------
    DataError
        If a part is empty, sizes do not fit, a pixel is not finite, or a label is no class.
    """
    for name, scenes in zip(("train", "validation", "test"), data[:3], strict=True):
        _check_images(name, *scenes)
        _check_labels(name, scenes.labels, len(data.classes))


def _check_images(name: str, images: Array, labels: Array) -> None:
    if len(images) == 0:
        raise DataError(f"expected {name} images; got none. Give at least one.")
    if images.ndim != 4 or labels.shape != (len(images), *images.shape[2:]):
        raise DataError(
            f"expected {name} images (N, C, H, W) and labels (N, H, W); got {images.shape} "
            f"and {labels.shape}."
        )
    broken = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
    if len(broken):
        raise DataError(
            f"expected finite numbers in the {name} images; got nan or infinity in "
            f"{len(broken)} of {len(images)}, the first of them number {broken[0]}. "
            "Check how they were made."
        )


def _check_labels(name: str, labels: Array, classes: int) -> None:
    found = np.unique(labels)
    if (found == IGNORE).all():
        raise DataError(
            f"expected {name} labels that count; got {IGNORE} everywhere. Label some pixels."
        )
    wrong = found[(found != IGNORE) & ((found < 0) | (found >= classes))]
    if len(wrong):
        raise DataError(
            f"expected {name} labels 0..{classes - 1}, or {IGNORE} for pixels that do not count; "
            f"got {', '.join(map(str, wrong[:5]))}. Check the number of classes."
        )


@lru_cache(maxsize=8)
def _order(seed: int, stage: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Order in which an epoch visits the scenes."""
    return np.random.default_rng([seed, stage, epoch]).permutation(count)


def batch_members(seed: int, stage: int, step: int, batch: int, count: int) -> NDArray[np.int64]:
    """Numbers of the scenes in one step's batch; each epoch visits each of ``count`` scenes once.

    A function of its arguments alone, so that a run can go on at any step.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    return np.array([_order(seed, stage, int(p) // count, count)[p % count] for p in places])
