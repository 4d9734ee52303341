"""From the scores of cells to probabilities of pixels, band by band.

Where cell i stands at pixel S*i ("corner", the published networks but Cityscapes), the original
code takes the softmax of the cells first and then blends *probabilities*: pixel p lies between
cells floor(p/S) and floor(p/S) + 1, at p/S. Its `interp_map` reads the second of these even where
there is none, beyond the array; here the last cell is repeated.

Where cells stand at the centre of their pixels ("centre"), *scores* are blended, by the network's
own transposed convolution or by bilinear interpolation about half-pixel centres, and the softmax
comes last. The transposed convolution finds zeros beyond the edge, so within half a cell of the
image's edge all scores shrink by one factor: the probabilities there are more even, the label is
the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tinydilate import functional as F
from tinydilate.autograd import Tensor
from tinydilate.device import Array
from tinydilate.predict.labelling import beside
from tinydilate.predict.parts import Parts, halo
from tinydilate.window import Pair

Band = tuple[slice, Array]  # rows of the image, and their probabilities (C, rows, W)


def in_bands(parts: Parts, scores: Array, size: Pair, band: int | None = None) -> Iterator[Band]:
    """Probabilities of an image's pixels from the scores of its cells.

    Parameters
    ----------
    parts : Parts
        Of the network; it says where cells stand.
    scores : float (C, h, w)
    size : (H, W)
        Of the image. Enlarged cells beyond it are cut off.
    band : int, optional
        Rows of cells to enlarge at a time; by default all.

    Yields
    ------
    rows : slice
    probabilities : float (C, rows, W)
    """
    stride, around = parts.stride, halo(parts.upsampling)
    if parts.place == "corner":
        scores = _softmax(beside(parts.front, scores[None])).numpy()[0]
        scores = _repeated(scores, size, stride)
    count = scores.shape[1]
    band = count if band is None else band
    for top in range(0, -(-size[0] // stride), band):
        start, stop = max(0, top - around), min(count, top + band + around)
        cells = beside(parts.front, scores[None, :, start:stop])
        rows = slice(top * stride, min((top + band) * stride, size[0]))
        inside = slice(rows.start - start * stride, rows.stop - start * stride)
        pixels = _enlarged(parts, cells)[..., inside, : size[1]]  # (1, C, rows, W)
        yield rows, (pixels if parts.place == "corner" else _softmax(pixels)).numpy()[0]


def _enlarged(parts: Parts, cells: Tensor) -> Tensor:
    """(1, C, h, w) cells -> (1, C, about S*h, about S*w) pixels; the first is that of cell 0."""
    enlarged: Tensor
    if parts.upsampling is not None:
        enlarged = parts.upsampling(cells)
    elif parts.place == "centre":
        enlarged = F.interpolate(cells, scale_factor=parts.stride, mode="bilinear")
    else:  # pixel p at cell p/S: from the first cell's pixel to the last one's
        height, width = (parts.stride * (side - 1) + 1 for side in cells.shape[2:])
        enlarged = F.interpolate(cells, size=(height, width), mode="bilinear", align_corners=True)
    return enlarged


def _repeated(scores: Array, size: Pair, stride: int) -> Array:
    """Scores with the last cells once more, where pixels lie beyond them: the clamp."""
    short = [
        max(0, -(-(side - 1) // stride) + 1 - count)
        for side, count in zip(size, scores.shape[1:], strict=True)
    ]
    return np.pad(scores, ((0, 0), (0, short[0]), (0, short[1])), mode="edge")


def _softmax(scores: Tensor) -> Tensor:
    probabilities: Tensor = F.softmax(scores, 1)
    return probabilities
