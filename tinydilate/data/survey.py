"""What a data set is made of: sizes, how often each class occurs, the mean pixel."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tinydilate.classes import IGNORE
from tinydilate.data.labelled import LabelledImages
from tinydilate.errors import DataError


class Survey(NamedTuple):
    """What `survey` counted.

    Attributes
    ----------
    images : int
    sizes : tuple of ((H, W), count)
        The sizes of the label maps, the most frequent first.
    classes : tuple of str
    pixels : tuple of int
        Of each class.
    shown_in : tuple of int
        Number of images in which each class occurs.
    ignored : int
        Pixels that do not count.
    mean : (blue, green, red) or None
    """

    images: int
    sizes: tuple[tuple[tuple[int, int], int], ...]
    classes: tuple[str, ...]
    pixels: tuple[int, ...]
    shown_in: tuple[int, ...]
    ignored: int
    mean: tuple[float, float, float] | None

    @property
    def shares(self) -> tuple[float, ...]:
        """Part of the counted pixels that each class has; 0 where nothing was counted."""
        total = max(1, sum(self.pixels))
        return tuple(count / total for count in self.pixels)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": self.images,
            "sizes": [{"size": list(size), "images": count} for size, count in self.sizes],
            "classes": {
                name: {"pixels": pixels, "share": share, "images": images}
                for name, pixels, share, images in zip(
                    self.classes, self.pixels, self.shares, self.shown_in, strict=True
                )
            },
            "ignored": self.ignored,
            "mean": None if self.mean is None else list(self.mean),
        }


def survey(dataset: LabelledImages, mean: bool = False, progress: str = "") -> Survey:
    """Read every image's labels, and count.

    Parameters
    ----------
    dataset : LabelledImages
        A split without labels has its images read instead, and no class counted.
    mean : bool
        Read the images too, for their mean pixel.
    progress : str
        Title of a bar; none without it.

    Raises
    ------
    DataError
        If a file cannot be read, labels do not fit their image, or a label is no class.
    """
    count = len(dataset.classes.names)
    pixels = np.zeros(256, np.int64)
    shown_in = np.zeros(256, np.int64)
    sizes: dict[tuple[int, int], int] = {}
    sums, seen = np.zeros(3), 0
    for i in tqdm(
        range(len(dataset)), desc=progress, unit="image", leave=False, disable=not progress
    ):
        if mean or not dataset.labelled:
            image = dataset.image(i)
            sums += image.sum(axis=(0, 1), dtype=np.int64)
            seen += image.shape[0] * image.shape[1]
            size = image.shape[:2]
        if dataset.labelled:
            labels = dataset.labels(i)
            found = np.bincount(labels.reshape(-1), minlength=256)
            _check_labels(dataset, i, found, count)
            pixels += found
            shown_in += found > 0
            size = labels.shape
        sizes[size[0], size[1]] = sizes.get((size[0], size[1]), 0) + 1
    red, green, blue = (sums / max(1, seen)).tolist()
    return Survey(
        images=len(dataset),
        sizes=tuple(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))),
        classes=dataset.classes.names,
        pixels=tuple(pixels[:count].tolist()),
        shown_in=tuple(shown_in[:count].tolist()),
        ignored=int(pixels[IGNORE]),
        mean=(blue, green, red) if mean else None,
    )


def _check_labels(dataset: LabelledImages, i: int, found: Any, count: int) -> None:
    """Readers map what they read; a data set of one's own may hold anything."""
    wrong = [label for label in np.flatnonzero(found).tolist() if count <= label != IGNORE]
    if wrong:
        raise DataError(
            f"expected labels 0..{count - 1} or {IGNORE} in {dataset.names[i]}; got {wrong[0]}. "
            "Check the reader, or the number of classes."
        )
