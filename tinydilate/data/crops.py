"""The original's crops: what a network is trained on, cut out of images of any size.

A network of the paper pads nothing inside, and loses 186 pixels at each side of its input. So the
image first gets a border of 186 pixels, reflected about its edges, and a crop of 500 x 500 gives
(500 - 2 * 186) / 8 = 16 x 16 outputs. Output j stands for row 186 + 8j of the crop, and its label
is that of this one pixel:

    image (H, W)  --border of 186-->  (H + 372, W + 372)  --window-->  crop (500, 500)
    crop, then perhaps its mirror image, BGR minus the mean pixel      (3, 500, 500)
    labels at rows and columns 186, 194, ..., 306 of the same crop     (16, 16)

The border carries the label 255, but it is hardly ever sampled: the window of labels lies 186
pixels inside the crop, as the image lies in its border. Only where the image is smaller than
crop - 372 do labels reach beyond it. Then image and border together are smaller than the crop, and
are put into its middle, with more reflection around them.

**The half-cell offset.** The receptive field of output j is centred on pixel 189.5 + 8j of the crop
(380 pixels, from 8j on), but its label lies at 186 + 8j, 3.5 pixels up and to the left. The network
learns this shift, for it is always the same. Mirroring the image *before* it is seen keeps it the
same. Mirroring *stored feature maps and their sampled labels* does not: the label of each output
then lies 3.5 pixels to the right of its field. `feature_labels` is how to avoid that.

Source: `ImageLabelDataLayer` of the authors' branch of Caffe; the paper's appendix A says only
"randomly sampled from the reflection-padded image". Where an image is smaller than the crop by an
odd number of columns, the original puts the spare one on the left; here it is on the right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydilate.classes import IGNORE
from tinydilate.data.labelled import LabelledImages
from tinydilate.data.pixels import Bytes, resize_image, resize_labels
from tinydilate.data.sets import batch_members
from tinydilate.errors import ConfigError, ShapeError

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


class Batch(NamedTuple):
    """What one training step sees: float32 (B, 3, H, W), BGR minus mean; int64 (B, h, w)."""

    images: Floats
    labels: Indices


class Crop(NamedTuple):
    """How to cut.

    Attributes
    ----------
    size : (H, W)
        Of the network's input, border included: (500, 500) for VOC, (628, 628) for the front ends
        of the street scenes.
    border : int
        Pixels that the network loses at each side; 186 for the paper's front end.
    stride : int
        Pixels from output to output; 8, or 1 for labels of every pixel.
    mirror : bool
        Whether to flip left and right in half of the draws.
    centre : bool
        Take the middle instead of a random place, as the original does for testing.
    scale : (smallest, largest), optional
        Resize by a random factor first. The original can; its published settings do not.
    """

    size: tuple[int, int] = (500, 500)
    border: int = 186
    stride: int = 8
    mirror: bool = True
    centre: bool = False
    scale: tuple[float, float] | None = None

    @property
    def outputs(self) -> tuple[int, int]:
        """Rows and columns of labels, (h, w).

        Raises
        ------
        ShapeError
            If the size leaves none, or no whole number of them.
        """
        inner = [side - 2 * self.border for side in self.size]
        if (
            self.border < 0
            or self.stride < 1
            or min(inner) < 1
            or any(s % self.stride for s in inner)
        ):
            raise ShapeError(
                f"expected a crop of {2 * self.border} + a multiple of {self.stride} pixels each "
                f"way; got {self.size[0]} x {self.size[1]}. The paper's are 500, 628, 852, 900 and "
                "1396."
            )
        return inner[0] // self.stride, inner[1] // self.stride


def draw(
    dataset: LabelledImages,
    numbers: Iterable[int],
    crop: Crop,
    rng: np.random.Generator,
    mean: tuple[float, float, float] | None = None,
) -> Batch:
    """Cut one crop out of each of some images.

    Parameters
    ----------
    dataset : LabelledImages
    numbers : integers
        Which images; one may come twice.
    crop : Crop
    rng : numpy Generator
        Draws scale, place and mirror of one crop after the other.
    mean : (blue, green, red), optional
        Subtracted from every pixel; that of the data set's classes by default.

    Returns
    -------
    Batch
        Images float32 (B, 3, H, W), blue, green, red; labels int64 (B, h, w), 255 = not counted.
    """
    return _stack([_cut(dataset, int(i), crop, rng, mean) for i in numbers])


def draw_step(
    dataset: LabelledImages,
    crop: Crop,
    seed: int,
    stage: int,
    step: int,
    batch: int,
    mean: tuple[float, float, float] | None = None,
) -> Batch:
    """The batch of one training step, a function of its arguments alone.

    Each epoch visits each image once. Every crop has a generator of its own, seeded by its place in
    the run; so a batch of 14 and two halves of 7 (with twice as many steps) hold the same crops.
    """
    members = batch_members(seed, stage, step, batch, len(dataset))
    parts = []
    for k, i in enumerate(members):
        rng = np.random.default_rng([seed, stage, step * batch + k, 1])
        parts.append(_cut(dataset, int(i), crop, rng, mean))
    return _stack(parts)


def draw_steps(
    dataset: LabelledImages,
    crop: Crop,
    seed: int,
    stage: int,
    steps: range,
    batch: int,
    mean: tuple[float, float, float] | None = None,
) -> Iterator[Batch]:
    """`draw_step` for one step after the other; a thread cuts the next batch meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = [
            reader.submit(draw_step, dataset, crop, seed, stage, step, batch, mean)
            for step in steps[:1]
        ]
        for step in steps:
            ready = waiting.pop().result()
            if step != steps[-1]:
                after = step + steps.step
                waiting.append(
                    reader.submit(draw_step, dataset, crop, seed, stage, after, batch, mean)
                )
            yield ready


# ---- one crop --------------------------------------------------------------------------------


def _cut(
    dataset: LabelledImages,
    i: int,
    crop: Crop,
    rng: np.random.Generator,
    mean: tuple[float, float, float] | None,
) -> tuple[Floats, Indices]:
    image, labels = dataset.image(i), dataset.labels(i)  # (H, W, 3), (H, W)
    if crop.scale is not None:
        image, labels = _rescale(image, labels, crop.scale, rng)
    sides = zip(labels.shape, crop.size, strict=True)
    starts = [_start(n + 2 * crop.border, c, crop, rng) for n, c in sides]
    flip = crop.mirror and rng.random() < 0.5
    return cut(image, labels, (starts[0], starts[1]), crop, flip, mean or dataset.classes.mean)


def cut(
    image: Bytes,
    labels: Bytes,
    start: tuple[int, int],
    crop: Crop,
    flip: bool,
    mean: tuple[float, float, float],
) -> tuple[Floats, Indices]:
    """Cut the crop whose first pixel is pixel ``start`` of the image with its border.

    Parameters
    ----------
    image : uint8 (H, W, 3), RGB
    labels : uint8 (H, W)
    start : (row, column)
        0, 0 is the corner of the border.
    crop : Crop
    flip : bool
        Whether to mirror the crop, left to right.
    mean : (blue, green, red)

    Returns
    -------
    float32 (3, *crop.size), BGR minus mean; int64 (h, w)
    """
    outputs = crop.outputs
    rows = _places(labels.shape[0], crop.size[0], crop.border, start[0])
    columns = _places(labels.shape[1], crop.size[1], crop.border, start[1])
    if flip:
        columns = columns[::-1]
    pixels = image.take(_reflected(rows, labels.shape[0], crop.border), axis=0)
    pixels = pixels.take(_reflected(columns, labels.shape[1], crop.border), axis=1)  # (*size, 3)
    y = rows[crop.border :: crop.stride][: outputs[0]]
    x = columns[crop.border :: crop.stride][: outputs[1]]
    inside_y, inside_x = (y >= 0) & (y < labels.shape[0]), (x >= 0) & (x < labels.shape[1])
    sampled = np.full(outputs, IGNORE, np.int64)
    sampled[np.ix_(inside_y, inside_x)] = labels[np.ix_(y[inside_y], x[inside_x])]
    return bgr_minus_mean(pixels, mean), sampled


def bgr_minus_mean(image: Bytes, mean: tuple[float, float, float]) -> Floats:
    """uint8 (H, W, 3), RGB -> float32 (3, H, W), BGR minus mean: what the networks take."""
    channels = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))  # (3, H, W), BGR
    return channels - np.array(mean, np.float32)[:, None, None]


def _places(length: int, size: int, border: int, start: int) -> Indices:
    """Row of the image for each row of the crop; rows of the border lie below 0 or beyond H."""
    spare = max(0, size - (length + 2 * border))  # the crop is larger than image and border
    return np.arange(size) + start - spare // 2 - border


def _reflected(places: Indices, length: int, border: int) -> Indices:
    """Where reflection finds each row: first about the border's edges, then about the image's.

    The two are done one after the other because the original does so. It matters only for a crop
    that reaches beyond the border.
    """
    in_border = reflect(places + border, length + 2 * border)
    return reflect(in_border - border, length)


def reflect(places: Indices, length: int) -> Indices:
    """Fold any index into 0..length - 1 about the first and the last pixel, neither repeated.

    3 2 1 | 0 1 2 3 | 2 1 0: OpenCV's BORDER_REFLECT_101, NumPy's mode "reflect".
    """
    if length == 1:
        return np.zeros_like(places)
    period = 2 * (length - 1)
    folded = places % period
    return np.minimum(folded, period - folded)


def _start(padded: int, size: int, crop: Crop, rng: np.random.Generator) -> int:
    """First row of the crop in the image with its border; 0 if the crop is the larger."""
    room = max(0, padded - size)
    return room // 2 if crop.centre else int(rng.integers(room + 1))


def _rescale(
    image: Bytes, labels: Bytes, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[Bytes, Bytes]:
    low, high = scale
    if not 0 < low <= high <= 16:
        raise ConfigError(
            f"expected scales (smallest, largest) with 0 < smallest <= largest <= 16; got {scale}."
        )
    factor = rng.uniform(low, high)
    size = (max(1, round(labels.shape[0] * factor)), max(1, round(labels.shape[1] * factor)))
    return resize_image(image, size), resize_labels(labels, size)


def _stack(parts: list[tuple[Floats, Indices]]) -> Batch:
    images, labels = zip(*parts, strict=True)
    return Batch(np.stack(images), np.stack(labels))


# ---- stored features -------------------------------------------------------------------------


def feature_labels(
    labels: Bytes, cells: tuple[int, int], stride: int = 8, mirrored: bool = False
) -> Indices:
    """Labels of a stored feature map (cells[0], cells[1]) of a whole image: int64, 255 beyond it.

    Cell j has the label of pixel 8j. With ``mirrored`` the features must be those *of the mirrored
    image*, and the labels are mirrored before they are sampled; so the
    3.5 pixels between the centre of a cell's field and its label keep their direction.

    The original mirrors the stored features of the image as it was, together with its sampled
    labels. That halves the storage, and turns the offset round in every second sample: the label
    lies 3.5 pixels to the right of the field's centre instead of to the left. A front end that has
    learnt its shift perfectly speaks of pixel 8j in both, and nothing is lost; as far as it has
    not, the context module is shown two shifts, and can settle only for their middle.
    """
    labels = labels[:, ::-1] if mirrored else labels
    found = np.full(cells, IGNORE, np.int64)
    sampled = labels[::stride, ::stride][: cells[0], : cells[1]]
    found[: sampled.shape[0], : sampled.shape[1]] = sampled
    return found
