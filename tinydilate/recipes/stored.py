"""Feature maps of a frozen front end: computed once, stored, and read again in every step.

A context module is trained on the front end's scores, and the front end does not change. For VOC
its 134 million weights take 25 times the work of the module behind it, so they are asked once for
each image, without dropout, and the answers go to a file (`tinydilate.io.feature_file`).

The image stands in the corner of a canvas of cells, [66, 66] for VOC: 528 pixels. What is beyond
the image is filled by reflection, as the original does, and its labels count nowhere.

**Stale features** are the danger: the file says which front end and which images it was made from,
by a SHA-256 of the front end's weights, of the images' names, and of the pixels of a sample of
them. A file of anything else is refused.

**Mirroring.** "features" is the original's way: it flips the stored maps and their labels. But cell
i was trained to answer for pixel 8*i, 3.5 pixels left of the middle of what it sees. Flipped, the
answer lies 3.5 pixels to the right, so the module meets two conventions, one in every second
sample. "image" stores the maps of every image and of its mirror image, and costs the disk twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinydilate import nn
from tinydilate.autograd import no_grad, tensor
from tinydilate.data.crops import bgr_minus_mean, reflect
from tinydilate.data.labelled import LabelledImages
from tinydilate.errors import DataError
from tinydilate.io.feature_file import Features, FeatureWriter, Layout
from tinydilate.recipes.starting import fingerprint

_SAMPLE = 8  # images whose pixels are looked at when a file is opened


class Canvas(NamedTuple):
    """How an image becomes a feature map.

    Attributes
    ----------
    cells : (h, w)
        Of the map.
    border, stride : int
        Of the front end, in pixels.
    mirrored : bool
        Whether the maps of the mirrored images are stored as well, behind the others.
    """

    cells: tuple[int, int]
    border: int
    stride: int
    mirrored: bool


def canvas_of(
    images: LabelledImages, shape: tuple[int, ...], border: int, stride: int, mirrored: bool
) -> Canvas:
    """The canvas for a data set.

    Parameters
    ----------
    images : LabelledImages
    shape : (h, w), or ()
        In cells; where nothing is said, as many as the first image has.
    border, stride, mirrored
        See `Canvas`.
    """
    height, width = images.labels(0).shape
    cells = (shape[0], shape[1]) if shape else (-(-height // stride), -(-width // stride))
    return Canvas(cells, border, stride, mirrored)


def canvas_input(
    images: LabelledImages, number: int, canvas: Canvas, mirrored: bool
) -> NDArray[np.float32]:
    """What the front end is given of one image: (3, h*stride + 2*border, w*stride + 2*border).

    Raises
    ------
    DataError
        If the image is larger than the canvas; or smaller, where the canvas was made by another
        image's size.
    """
    image = images.image(number)  # (H, W, 3)
    image = image[:, ::-1] if mirrored else image
    axes = []
    for length, cells in zip(image.shape[:2], canvas.cells, strict=True):
        if -(-length // canvas.stride) > cells:
            h, w = (-(-side // canvas.stride) for side in image.shape[:2])
            raise DataError(
                f"expected images of at most {canvas.cells[0]} x {canvas.cells[1]} cells of "
                f"{canvas.stride} pixels; {images.names[number]} has {image.shape[0]} x "
                f"{image.shape[1]} pixels. Raise label_shape to the largest image's, or resize all "
                f'of them by size; for this one: --set "label_shape=[{h}, {w}]".'
            )
        # Rows of the canvas, counted from the image's first: first folded about the edges of image
        # and border, then about the image's. The original reflects twice, too.
        rows = np.arange(-canvas.border, cells * canvas.stride + canvas.border)
        in_border = reflect(rows + canvas.border, length + 2 * canvas.border)
        axes.append(reflect(in_border - canvas.border, length))
    pixels = image.take(axes[0], 0).take(axes[1], 1)
    return bgr_minus_mean(pixels, images.classes.mean)


def identity_of(
    front: nn.Module, images: LabelledImages, numbers: Iterable[int], canvas: Canvas
) -> dict[str, object]:
    """What stored features depend on, in words that a file can hold."""
    listed = [int(number) for number in numbers]
    names = hashlib.sha256("\n".join(images.names[n] for n in listed).encode())
    sample = hashlib.sha256()
    for n in listed[:: max(1, len(listed) // _SAMPLE)][:_SAMPLE]:
        image = images.image(n)
        sample.update(f"{image.shape}".encode())
        sample.update(np.ascontiguousarray(image).tobytes())
    return {
        "front end": fingerprint(front),
        "names of images": names.hexdigest(),
        "pixels of images": sample.hexdigest(),
        "mean pixel": list(images.classes.mean),
        "border": canvas.border,
        "stride": canvas.stride,
        "mirror images": canvas.mirrored,
    }


def store_features(
    path: Path,
    front: nn.Module,
    images: LabelledImages,
    numbers: Iterable[int],
    canvas: Canvas,
    dtype: str = "float32",
    progress: bool = True,
) -> Features:
    """Open the features of some images, after computing those that are missing.

    Parameters
    ----------
    path : path
    front : nn.Module
        The front end, without a border; dropout is off.
    images : LabelledImages
    numbers : whole numbers
        Of the images; map k belongs to the k-th of them.
    canvas : Canvas
    dtype : {"float32", "float16"}
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    DataError
        If the file there is stale, broken or none of features; or an image does not fit.
    """
    listed = [int(number) for number in numbers]
    classes = len(images.classes.names)
    turns = (False, True) if canvas.mirrored else (False,)
    identity = identity_of(front, images, listed, canvas)
    layout = Layout((classes, *canvas.cells), dtype, len(turns) * len(listed), identity)
    if path.exists():
        return Features(path, layout)
    path.parent.mkdir(parents=True, exist_ok=True)
    tasks = [(number, turned) for turned in turns for number in listed]
    front.eval()
    device = next(front.parameters()).device
    with FeatureWriter(path, layout) as writer, no_grad():
        bar = tqdm(
            tasks[writer.done :],
            desc=f"features of {images.classes.dataset}",
            initial=writer.done,
            total=len(tasks),
            unit="image",
            disable=not progress,
        )
        for number, turned in bar:
            image = canvas_input(images, number, canvas, turned)
            writer.append(front(tensor(image[None], device=device)).numpy()[0])  # (C, h, w)
        writer.finish()
    return Features(path, layout)
