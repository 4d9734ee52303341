"""Image files and label files of data sets, decoded to bytes; and both at another size.

An image comes out as uint8 (H, W, 3), red, green, blue. Label files are PNGs of three kinds:

* **Class numbers.** One byte a pixel: the number of its class, and 255 where none counts.
  Cityscapes stores them in grey, VOC with a palette, so that a viewer shows colours.
* **A colour map.** Red, green, blue of the class's colour, as CamVid and KITTI come.
* **A palette that is only about colours.** Some programs save a colour map with a palette in an
  order of their own: the numbers in the file then mean nothing, and its colours everything.

`read_labels` tells them apart by looking, and turns colours into class numbers where it knows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydilate.classes import IGNORE, Colour
from tinydilate.errors import DataError
from tinydilate.pictures import Advice, decode, levels, opened, plain

_ADVICE = Advice(
    missing="Unpack the data set again, or check the folder's name.",
    large="Remove it.",
    unknown="Unpack the data set again.",
    broken="Unpack or download it again.",
)
Bytes = NDArray[np.uint8]


class Code(NamedTuple):
    """What the pixels of a data set's label files mean.

    Attributes
    ----------
    numbers : mapping of int to int
        Number in the file -> class, or 255.
    colours : mapping of (red, green, blue) to int
        Colour in the file -> class, or 255.
    """

    numbers: Mapping[int, int]
    colours: Mapping[Colour, int]


def plain_code(palette: tuple[Colour, ...], extra: Mapping[Colour, int] | None = None) -> Code:
    """Class numbers that stand for themselves, 255 for no class; and the colours of a palette.

    ``extra`` holds further colours. Of two classes with one colour neither is known by it.
    """
    numbers = {number: number for number in range(len(palette))} | {IGNORE: IGNORE}
    colours = {colour: number for number, colour in enumerate(palette)}
    for colour in palette:
        if palette.count(colour) > 1:
            colours.pop(colour, None)
    return Code(numbers, colours | dict(extra or {}))


def read_image(path: Path) -> Bytes:
    """Decode an image file, turned upright as its EXIF note asks: uint8 (H, W, 3), RGB.

    Transparent pixels lie on white; of 16-bit grey the nearest of 256 levels remains.

    Raises
    ------
    DataError
        If there is no such file, or it is no image, cut short, or absurdly large.
    """
    from PIL import ImageOps

    with opened(path, _ADVICE) as file:
        decode(file)
        image = plain(ImageOps.exif_transpose(file))
        if image.mode == "F":
            return np.rint(levels(image, 3) * 255).astype(np.uint8)
        return np.ascontiguousarray(np.asarray(image.convert("RGB"), dtype=np.uint8))


def read_labels(path: Path, code: Code) -> Bytes:
    """Decode a label file to class numbers, 255 where none counts: uint8 (H, W).

    Raises
    ------
    DataError
        If the file cannot be read, or holds numbers or colours that the data set does not have, or
        numbers and colours that contradict each other.
    """
    with opened(path, _ADVICE) as file:
        decode(file)
        image = file.copy()
    return _labels_of(image, path, code)


def _labels_of(image: Any, path: Path, code: Code) -> Bytes:
    if image.mode == "P":
        return _from_palette(image, path, code)
    if image.mode in ("L", "1") or image.mode.startswith("I"):
        return number_labels(np.asarray(image), path, code)
    if image.mode in ("RGB", "RGBA"):
        return _from_colours(np.asarray(image.convert("RGB")), path, code)
    raise DataError(
        f"expected labels as class numbers (grey or palette) or as a colour map (RGB); {path} is "
        f"an image of mode {image.mode}. Save it as an 8-bit PNG."
    )


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image file as `read_image` would return it, from its head alone."""
    with opened(path, _ADVICE) as file:
        width, height = file.size
        if file.format == "TIFF":  # whose size new versions of Pillow have turned already
            width, height = file.tag_v2[256], file.tag_v2[257]
        turned = file.getexif().get(0x0112, 1) >= 5  # 5 to 8: the camera lay on its side
    return (width, height) if turned else (height, width)


def resize_image(image: Bytes, size: tuple[int, int]) -> Bytes:
    """Resize uint8 (H, W, 3) to (h, w): cubic interpolation to enlarge, area means to reduce.

    The cubic is Pillow's (Keys, a = -0.5); OpenCV, which the original used, takes a = -0.75.
    """
    from PIL import Image

    larger = size[0] * size[1] > image.shape[0] * image.shape[1]
    way = Image.Resampling.BICUBIC if larger else Image.Resampling.BOX
    return np.asarray(Image.fromarray(image).resize(size[::-1], way))


def resize_labels(labels: Bytes, size: tuple[int, int]) -> Bytes:
    """Resize uint8 (H, W) to (h, w) by the nearest pixel: a mean of two classes is none."""
    from PIL import Image

    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


# ---- numbers and colours ---------------------------------------------------------------------


def number_labels(numbers: NDArray[Any], path: Path, code: Code) -> Bytes:
    """Numbers in the file -> classes."""
    found = np.unique(numbers).tolist()
    unknown = [number for number in found if number not in code.numbers]
    if unknown:
        raise DataError(_unknown_numbers(unknown, numbers, path, code))
    table = np.full(256, IGNORE, np.uint8)
    for number, label in code.numbers.items():
        if number >= 0:  # -1 is a number of a list and never of a byte
            table[number] = label
    return np.asarray(table[numbers.astype(np.uint8)])


def _unknown_numbers(unknown: list[int], numbers: NDArray[Any], path: Path, code: Code) -> str:
    count = int(np.isin(numbers, unknown).sum())
    text = (
        f"expected labels {_ranges(code.numbers)} in {path}; got "
        f"{', '.join(map(str, unknown[:5]))}{' and more' if len(unknown) > 5 else ''} in "
        f"{count:,} of {numbers.size:,} pixels. "
    )
    greys = {round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in code.colours}
    if greys and set(unknown) <= greys:
        return text + "These look like a colour map that was saved in grey: take the original file."
    return text + (
        "Check that the data set is of the kind that was named; in classes.txt of a plain folder "
        "each line is a class, counted from 0."
    )


def _ranges(numbers: Mapping[int, int]) -> str:
    """{0, 1, 2, 255} -> "0..2 or 255"."""
    runs: list[list[int]] = []
    for number in sorted(number for number in numbers if number >= 0):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return " or ".join(texts)


def _from_colours(pixels: Bytes, path: Path, code: Code) -> Bytes:
    """Colours (H, W, 3) -> classes, through one number a colour: red, green, blue in base 256."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    packed = (red << 16) | (green << 8) | blue  # (H, W)
    if not code.colours:
        if (red == green).all() and (red == blue).all():  # numbers, stored three times
            return number_labels(red, path, code)
        raise DataError(
            f"expected labels as class numbers; {path} is a colour map, and the colours of its "
            "classes are not known. Write one class a line as NAME RED GREEN BLUE into classes.txt."
        )
    colours = sorted((r << 16 | g << 8 | b, label) for (r, g, b), label in code.colours.items())
    keys = np.array([key for key, _ in colours], np.int32)
    labels = np.array([label for _, label in colours], np.uint8)
    places = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    known = keys[places] == packed
    if not known.all():
        if (red == green).all() and (red == blue).all():
            return number_labels(red, path, code)
        raise DataError(_unknown_colours(packed, known, path, code))
    return np.asarray(labels[places])


def _unknown_colours(packed: NDArray[Any], known: NDArray[Any], path: Path, code: Code) -> str:
    y, x = np.argwhere(~known)[0]
    value = int(packed[y, x])
    colour = (value >> 16, value >> 8 & 255, value & 255)
    kinds = len(np.unique(packed[~known]))
    text = (
        f"expected the {len(code.colours)} colours of the data set's classes in {path}; got "
        f"{kinds} other{'s' * (kinds > 1)} in {int((~known).sum()):,} of {known.size:,} pixels, "
        f"the first of them red {colour[0]}, green {colour[1]}, blue {colour[2]} "
        f"in row {y}, column {x}. "
    )
    if kinds > 20:
        return text + (
            "So many shades come from JPEG, or from resizing with smoothing: take the original "
            "PNG, and resize labels by the nearest pixel."
        )
    return text + (
        "Check that the data set is of the kind that was named; in classes.txt of a plain folder "
        "each colour stands behind its class, as NAME RED GREEN BLUE."
    )


def _from_palette(image: Any, path: Path, code: Code) -> Bytes:
    """Numbers with a palette -> classes, by the numbers or by the colours, whichever speak."""
    numbers = np.asarray(image)
    used = np.unique(numbers)
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.concatenate([palette, np.zeros((256 - len(palette), 3), np.uint8)])
    by_number = [code.numbers.get(number) for number in used.tolist()]
    by_colour = [code.colours.get(tuple(colour)) for colour in palette[used].tolist()]
    grey = (palette[used] == used[:, None]).all()  # a grey scale says nothing of its own
    if grey or None in by_colour:
        return number_labels(numbers, path, code)
    # Its own colour beside each number is VOC's way. 255 is often painted like no class at all.
    if None in by_number:
        return _from_colours(palette[numbers], path, code)
    if by_number == by_colour:
        return number_labels(numbers, path, code)
    raise DataError(
        f"expected numbers and colours of one meaning in {path}; got a palette in which number "
        f"{used[0]} has the colour of class {by_colour[0]}, and so on: both could be meant. Save "
        "it as RGB if the colours are right, as 8-bit grey if the numbers are."
    )
