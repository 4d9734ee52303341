"""Whole-image prediction without seams, in bounded memory.

The network is run as if the whole image went through it at once, border, context module and all.
Only the order of the work differs, so that no more than a piece of the large maps is in memory:

1. **Front end, piece by piece.** A piece of n cells needs S*n + 2*border pixels: for VGG-16, the
   372 = 2*186 pixels beyond its own are shared with its neighbours. They are the true ones; only at
   the image's edge is there a reflection. Layers inside do not pad and pieces begin at whole
   strides, so every cell is computed from the numbers that it would have in the whole image.
2. **Stitching.** The scores are put side by side on the coarse grid, (C, h, w): an image 64 times
   smaller, which is kept as a whole.
3. **Context module.** Over the whole coarse map. If even that is too much, in pieces that overlap
   by what the module sees (33 cells for Table 1, 129 for Dilation10). Its zero padding disturbs as
   many cells inside a cut; these are thrown away, so padding counts at the image's edge only.
4. **Pixels, band by band.** Enlarged by the network's own convention (see `parts`), turned into
   probabilities, and handed to the caller before the next band begins.

The result is that of the network on the whole image, up to rounding. The original code does
otherwise, see `original`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinydilate import nn, no_grad
from tinydilate.device import Array
from tinydilate.errors import ShapeError
from tinydilate.functional.padding import IndexMaps, index_map, pad_forward
from tinydilate.predict.labelling import beside, evaluating
from tinydilate.predict.memory import MEMORY, Plan, plan
from tinydilate.predict.parts import Parts, parts_of
from tinydilate.predict.pixels import Band, in_bands
from tinydilate.window import Pair


def whole_image(
    network: nn.Module,
    image: Array,
    *,
    place: str | None = None,
    memory: str | float | None = MEMORY,
    progress: str = "",
) -> NDArray[Any]:
    """Probabilities of every pixel's classes, as from the whole image at once.

    Parameters
    ----------
    network : FrontEndWithContext, or nn.Sequential
        Front end, context module or none, upsampling or none; with or without its border. It is
        left as it was, training mode included.
    image : float (channels, H, W)
        Prepared for the network (mean subtracted), without a border. Of any size.
    place : {"corner", "centre"}, optional
        Where cell i stands, pixel S*i or S*i + (S-1)/2; see `parts_of` for the default.
    memory : str or bytes
        Bound of the whole process, which decides on the size of the pieces: "2GB". None: one piece.
    progress : str
        Title of a bar; none is shown without it.

    Returns
    -------
    float (C, H, W)
        In the network's dtype. Sums to 1 over the classes.

    Raises
    ------
    ShapeError
        If the image is no (channels, H, W) with pixels, or not of the network's channels.
    ConfigError
        If memory is too small for the smallest pieces, or the network is not of this kind.
    """
    bands = whole_bands(network, image, place=place, memory=memory, progress=progress, keep=True)
    return gathered(bands, image.shape[1:])


def whole_bands(
    network: nn.Module,
    image: Array,
    *,
    place: str | None = None,
    memory: str | float | None = MEMORY,
    progress: str = "",
    keep: bool = False,
    kept: int = 0,
) -> Iterator[Band]:
    """`whole_image` as bands of rows, from top to bottom, so that not all need be in memory.

    ``keep`` says that the caller keeps all probabilities, ``kept`` how many bytes it keeps beside
    them: both count in what ``memory`` allows.

    Yields
    ------
    rows : slice
    probabilities : float (C, rows, W)
    """
    parts = parts_of(network, place)
    check_image(image)
    size = image.shape[1:]
    cut = plan(parts, size, memory, kept, keep)
    with evaluating(network), no_grad():
        scores = coarse_scores(parts, image, cut, progress)
        yield from in_bands(parts, scores, size, cut.band)


def coarse_scores(parts: Parts, image: Array, cut: Plan, progress: str = "") -> Array:
    """Scores of every cell behind the context module, (channels, H, W) -> (C, h, w)."""
    maps = [
        index_map(side, parts.border, parts.border + more, "reflect")
        for side, more in zip(image.shape[1:], cut.beyond, strict=True)
    ]
    pieces = len(list(_cuts(cut.cells, cut.front)))
    pieces += len(list(_cuts(cut.cells, cut.context))) if len(parts.context) else 0
    with tqdm(total=pieces, desc=progress, unit="piece", leave=False, disable=not progress) as bar:
        scores = _front_scores(parts, image, IndexMaps(*maps), cut, bar)
        return _context_scores(parts, scores, cut, bar) if len(parts.context) else scores


def _front_scores(parts: Parts, image: Array, maps: IndexMaps, cut: Plan, bar: Any) -> Array:
    """(channels, H, W) -> (C, h, w), piece by piece; ``maps`` make the border."""
    dtype = next(parts.front.parameters()).dtype
    image = np.require(image, dtype, "C")
    scores = np.empty((cut.classes, *cut.cells), dtype)
    for rows, columns in _cuts(cut.cells, cut.front):
        tile = IndexMaps(
            maps.rows[_pixels_of(rows, parts)], maps.columns[_pixels_of(columns, parts)]
        )
        scores[:, rows, columns] = run(parts.front, pad_forward(image, tile, 0.0))
        bar.update()
    return scores


def _pixels_of(cells: slice, parts: Parts) -> slice:
    """Pixels of the bordered image that cells are computed from.

    Where the image is no whole number of cells it ends before that, and the last cells pool what
    is left (ceil_mode).
    """
    return slice(cells.start * parts.stride, cells.stop * parts.stride + 2 * parts.border)


def _context_scores(parts: Parts, scores: Array, cut: Plan, bar: Any) -> Array:
    """(C, h, w) -> (C, h, w), in pieces that overlap by what the module sees."""
    result = np.empty_like(scores)
    for rows, columns in _cuts(cut.cells, cut.context):
        seen_rows, inner_rows = _with_reach(rows, parts.reach, cut.cells[0])
        seen_columns, inner_columns = _with_reach(columns, parts.reach, cut.cells[1])
        seen = scores[:, seen_rows, seen_columns]
        out = run(parts.context, seen)
        if out.shape != seen.shape:
            raise ShapeError(
                f"expected a context module that gives as many cells as it takes, {seen.shape}; "
                f"got {out.shape}. Pad each layer by its dilation, or the first one by the sum."
            )
        result[:, rows, columns] = out[:, inner_rows, inner_columns]
        bar.update()
    return result


def _with_reach(cells: slice, reach: int, count: int) -> tuple[slice, slice]:
    """What cells see, cut off at the edges of the map; and where in it the cells themselves are."""
    start, stop = max(0, cells.start - reach), min(count, cells.stop + reach)
    return slice(start, stop), slice(cells.start - start, cells.stop - start)


def _cuts(cells: Pair, piece: Pair) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each piece."""
    for r in range(0, cells[0], piece[0]):
        for c in range(0, cells[1], piece[1]):
            yield (
                slice(r, min(r + piece[0], cells[0])),
                slice(c, min(c + piece[1], cells[1])),
            )


def run(layers: nn.Sequential, maps: Array) -> Array:
    """Run layers over one image, (channels, H, W) -> (C, h, w), on the device of their weights."""
    out: Array = layers(beside(layers, maps[None])).numpy()[0]
    return out


def gathered(bands: Iterator[Band], size: Pair) -> Array:
    """Bands as one array, (C, H, W)."""
    result: Array | None = None
    for rows, probabilities in bands:
        if result is None:
            result = np.empty((len(probabilities), *size), probabilities.dtype)
        result[:, rows] = probabilities
    assert result is not None, "an image has at least one row"
    return result


def check_image(image: Array) -> None:
    """Refuse what is no image.

    Raises
    ------
    ShapeError
        If it is no float array (channels, H, W) with pixels.
    """
    if image.ndim != 3 or 0 in image.shape or image.dtype.kind != "f":
        raise ShapeError(
            "expected an image prepared for the network, a float array (channels, H, W) with "
            f"pixels; got {image.dtype} of shape {image.shape}."
        )
