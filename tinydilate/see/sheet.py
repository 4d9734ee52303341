"""A contact sheet: images of a data set in a grid, each with the colours of its labels over it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinydilate.data.labelled import LabelledImages
from tinydilate.data.pixels import Bytes, resize_image, resize_labels
from tinydilate.errors import ConfigError
from tinydilate.io.images import overlay

_GAP = 4  # pixels between cells


def contact_sheet(
    dataset: LabelledImages, numbers: Sequence[int], columns: int = 4, width: int = 240
) -> Bytes:
    """Draw images and, below each, the same image under its labels.

    Parameters
    ----------
    dataset : LabelledImages
    numbers : sequence of int
        Which images.
    columns : int
        Images beside each other.
    width : int
        Pixels of each; heights follow, each row as high as its highest image.

    Returns
    -------
    uint8 (H, W, 3), on white

    Raises
    ------
    ConfigError
        If there is nothing to show, or no room for it.
    """
    if not numbers or columns < 1 or not 8 <= width <= 4096:
        raise ConfigError(
            f"expected images to show, in 1 or more columns of 8 to 4096 pixels; got "
            f"{len(numbers)} images, {columns} columns, width {width}."
        )
    cells = [_cell(dataset, i, width) for i in numbers]
    rows = [
        _in_a_row(cells[k : k + columns], columns, width) for k in range(0, len(cells), columns)
    ]
    return np.concatenate(rows)


def _cell(dataset: LabelledImages, i: int, width: int) -> Bytes:
    """One image above the same with its labels; without labels it stands alone."""
    image = dataset.image(i)
    size = (max(1, round(image.shape[0] * width / image.shape[1])), width)
    small = resize_image(image, size)
    if not dataset.labelled:
        return small
    labels = resize_labels(dataset.labels(i), size)
    levels = small.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    palette: NDArray[np.uint8] = np.array(dataset.classes.palette, np.uint8)
    return np.concatenate([small, overlay(levels, labels, palette)])


def _in_a_row(cells: Sequence[Bytes], columns: int, width: int) -> Bytes:
    height = max(len(cell) for cell in cells) + _GAP
    row = np.full((height, columns * (width + _GAP), 3), 255, np.uint8)
    for k, cell in enumerate(cells):
        left = k * (width + _GAP)
        row[: len(cell), left : left + width] = cell
    return row
