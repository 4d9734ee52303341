"""Prediction exactly as the code that was published with the paper does it.

1. The image is given a border of 186 pixels, its own reflection (`reflect_border`).
2. It is cut into *tiles*. The deploy file fixes the network's input, 900 x 900 pixels for VOC, so a
   tile yields 900 - 372 = 528 pixels, and tiles begin at multiples of that.
3. A tile that hangs over the bordered image is filled up by a second reflection, below and on the
   right: of the bordered image this time.
4. Forward. The layers of the context module pad by zeros at the edge *of the tile*.
5. Softmax; the tiles' probabilities are put side by side.
6. Probabilities of cells 8 pixels apart are enlarged ("corner", see `pixels`). Networks that
   upsample by themselves have their pixels already, whose softmax was taken in step 5.
7. The most likely class.

Step 4 is why tiles show. The front end is exact across a seam, for 186 pixels of true neighbours
come with each tile. But near the seam the context module takes zeros for what the neighbouring
tile knows: within 33 cells, 264 pixels, in the networks with Table 1's dilations; in Dilation10
within 129 cells, more than the whole tile has. `whole` is the better default, this is for comparing
figures with the original's.

Two things differ from the original code. Its enlarging reads beyond the array where tiles end with
the image; here the last cell is repeated. And it never cut off what tiles of a network with its
own upsampling have beyond the image, so it failed but for multiples of 1024 pixels; here it is cut
off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinydilate import nn, no_grad
from tinydilate.device import Array
from tinydilate.errors import ConfigError
from tinydilate.functional.padding import reflect_border
from tinydilate.predict.labelling import evaluating
from tinydilate.predict.parts import Parts, parts_of
from tinydilate.predict.pixels import Band, in_bands
from tinydilate.predict.whole import check_image, gathered, run
from tinydilate.window import Pair


def as_original(
    network: nn.Module,
    image: Array,
    tile: Pair | None,
    *,
    place: str | None = None,
    progress: str = "",
) -> NDArray[Any]:
    """Probabilities of every pixel's classes, tile by tile as in the published code.

    Parameters
    ----------
    network, image, place, progress
        See `whole_image`.
    tile : (H, W)
        Pixels that the network is given at a time, border included: `Published.input_size`.

    Returns
    -------
    float (C, H, W)

    Raises
    ------
    ShapeError
        If the image is no (channels, H, W) with pixels.
    ConfigError
        If a tile is all border, or the network is not of this kind.
    """
    bands = original_bands(network, image, tile, place=place, progress=progress)
    return gathered(bands, image.shape[1:])


def original_bands(
    network: nn.Module,
    image: Array,
    tile: Pair | None,
    *,
    place: str | None = None,
    progress: str = "",
) -> Iterator[Band]:
    """`as_original` as bands of rows; see `whole_bands`."""
    parts = parts_of(network, place)
    check_image(image)
    if tile is None:
        raise ConfigError(
            "expected a published network for the method original, whose file says how large a "
            "tile is; got the network of a run. Use the method whole."
        )
    useful = tile[0] - 2 * parts.border, tile[1] - 2 * parts.border
    if min(useful) < 1:
        raise ConfigError(
            f"expected tiles larger than their border, {parts.border} pixels on each side; got "
            f"{tile[0]} x {tile[1]}."
        )
    with evaluating(network), no_grad():
        yield from _bands(parts, image, tile, useful, progress)


def _bands(parts: Parts, image: Array, tile: Pair, useful: Pair, progress: str) -> Iterator[Band]:
    height, width = image.shape[1:]
    down, across = -(-height // useful[0]), -(-width // useful[1])
    dtype = next(parts.front.parameters()).dtype
    border = (parts.border,) * 4
    bordered = reflect_border(np.require(image, dtype, "C"), *border).numpy()
    rows: list[Array] = []
    with tqdm(
        total=down * across, desc=progress, unit="tile", leave=False, disable=not progress
    ) as bar:
        for y in range(down):
            row = []
            for x in range(across):
                row.append(_tile_result(parts, bordered, (y * useful[0], x * useful[1]), tile))
                bar.update()
            rows.append(np.concatenate(row, axis=2))  # (C, h or H of a tile, all columns)
            if parts.place == "centre":  # these are pixels: done with them
                top = y * useful[0]
                stop = min(top + useful[0], height)
                yield slice(top, stop), rows.pop()[:, : stop - top, :width]
    if rows:
        yield from in_bands(parts, np.concatenate(rows, axis=1), (height, width))


def _tile_result(parts: Parts, bordered: Array, corner: Pair, tile: Pair) -> Array:
    """Scores of a tile's cells or, where cells stand at the centre, its pixels' probabilities."""
    (y, x), (height, width) = corner, tile
    seen = bordered[:, y : y + height, x : x + width]
    missing = height - seen.shape[1], width - seen.shape[2]
    filled = reflect_border(seen, 0, missing[0], 0, missing[1]).numpy()  # the second reflection
    scores = run(parts.context, run(parts.front, filled))  # (C, h, w)
    if parts.place == "corner":
        return scores
    size = height - 2 * parts.border, width - 2 * parts.border
    return gathered(in_bands(parts, scores, size), size)
