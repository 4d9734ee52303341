"""Microsoft COCO with the classes of VOC (paper, section 5: more data for the front end).

    FOLDER/annotations/instances_train2014.json    and val2014; or 2017, where there is no 2014
    FOLDER/train2014/COCO_train2014_000000000009.jpg

COCO draws 80 kinds of objects, 20 of which are VOC's under other names (`VOC_NAME`). As in the
paper, the images are those that show at least one of these 20, and all other objects are
background. Every object is an outline (polygons), or a mask in run lengths:

* Objects are painted from the largest to the smallest, so that what stands in front of something
  large stays visible: COCO does not say which of two overlapping objects is in front.
* A crowd (a group that was not taken apart) is 255: not counted. It is painted first, under the
  single objects.

An outline counts a pixel where it contains the pixel's centre. The masks of COCO's own tools differ
by up to a pixel along the outline.
"""

from __future__ import annotations

from array import array
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydilate.classes import IGNORE, VOC
from tinydilate.data.json_arrays import json_entries, read_span, utf8
from tinydilate.data.labelled import LabelledImages, Member
from tinydilate.data.layout import check_files, check_split, find_root, safe_path
from tinydilate.data.pixels import Bytes
from tinydilate.errors import DataError

ADVICE = (
    "Download train2014.zip, val2014.zip and annotations_trainval2014.zip (or those of 2017) from "
    "https://cocodataset.org/#download and unpack all into one folder."
)
SPLITS = ("train", "val", "trainval")
YEARS = ("2014", "2017")  # the paper's first

# COCO's name of each of VOC's classes, where it has another one.
_OTHER_NAMES = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}
VOC_NAME = {name: name for name in VOC.names[1:]} | _OTHER_NAMES
_MOST_PIXELS = 2**26  # of an image, by its entry: more is a broken file


def open_coco(
    folder: Path | str, split: str, size: tuple[int, int] | None = None
) -> LabelledImages:
    """Open a split of COCO, labelled by VOC's classes.

    Reading the list takes half a minute; the outlines stay in the file until they are wanted.

    Parameters
    ----------
    folder : path
        With ``annotations`` and the folders of images.
    split : {"train", "val", "trainval"}
    size : (H, W), optional
        Resize to this.

    Raises
    ------
    ConfigError, DataError
        An unknown split; a file that is missing, which is named, or that is no list of COCO's.
    """
    check_split("coco", split, SPLITS)
    root = find_root(folder, [".", "coco"], "annotations", ADVICE)
    members: list[Member] = []
    for part in ("train", "val") if split == "trainval" else (split,):
        members += _members(root, part)
    return LabelledImages(VOC._replace(dataset="coco"), members, size)


def _members(root: Path, split: str) -> list[Member]:
    lists = {f"{split}{y}": root / "annotations" / f"instances_{split}{y}.json" for y in YEARS}
    name = next((name for name, path in lists.items() if path.is_file()), f"{split}{YEARS[0]}")
    instances = read_instances(lists[name])
    members = []
    for number, image in instances.images.items():
        path = safe_path(root / name, image.file, lists[name])
        decode = partial(instances.labels, number)
        members.append(Member(path.stem, path, lists[name], decode))
    check_files((member.image for member in members), "an image", ADVICE)
    return members


class Picture(NamedTuple):
    """An image in a list of COCO's."""

    file: str
    height: int
    width: int


class Instances(NamedTuple):
    """What is kept of a list of COCO's: which objects an image has, and where they are described.

    Attributes
    ----------
    path : path
    images : dict
        Number -> Picture, of those that show an object of a class of VOC's, ascending.
    spans : dict
        Number of an image -> int64 (objects, 3): first byte, last byte + 1, class.
    """

    path: Path
    images: dict[int, Picture]
    spans: dict[int, NDArray[np.int64]]

    def labels(self, number: int) -> Bytes:
        """Paint the labels of image ``number``: uint8 (H, W)."""
        picture = self.images[number]
        canvas = np.zeros((picture.height, picture.width), np.uint8)
        objects = [
            (_object(self.path, start, stop), int(label))
            for start, stop, label in self.spans[number].tolist()
        ]
        objects.sort(key=lambda each: (not each[0].get("iscrowd", 0), -_area(each[0])))
        for entry, label in objects:
            try:
                mask = object_mask(entry["segmentation"], canvas.shape)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise DataError(
                    f"expected outlines or run lengths of object {entry.get('id')} in {self.path}; "
                    f"got something else ({error}). Download the file again."
                ) from None
            canvas[mask] = IGNORE if entry.get("iscrowd", 0) else label
        return canvas


def _object(path: Path, start: int, stop: int) -> dict[str, Any]:
    """Read an object's description again."""
    entry = read_span(path, start, stop)
    if not isinstance(entry, dict):
        raise DataError(
            f"expected {path} as it was when the data set was opened; byte {start:,} holds "
            "something else now. Open the data set again."
        )
    return entry


def _area(entry: dict[str, Any]) -> float:
    area = entry.get("area", 0)
    return float(area) if isinstance(area, int | float) else 0.0


def read_instances(path: Path) -> Instances:
    """Read a list of COCO's, ``instances_*.json``, without keeping its outlines.

    Raises
    ------
    DataError
        If there is no such file or it is another one.
    """
    pictures: dict[int, Picture] = {}
    class_of: dict[int, int] = {}  # COCO's number -> VOC's
    table = array("q")  # image, COCO's class, whether a crowd, first byte, last byte + 1
    for entry in json_entries(path, ADVICE):
        value = entry.value
        try:
            if entry.array == "annotations":
                crowd = int(bool(value.get("iscrowd", 0)))
                table.extend(
                    (value["image_id"], value["category_id"], crowd, entry.start, entry.stop)
                )
            elif entry.array == "images":
                pictures[value["id"]] = _picture(value)
            elif entry.array == "categories" and value["name"] in VOC_NAME:
                class_of[value["id"]] = VOC.names.index(VOC_NAME[value["name"]])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise DataError(
                f"expected a list of COCO's objects; entry {entry.array!r} at byte "
                f"{entry.start:,} of {path} lacks {error}. {ADVICE}"
            ) from None
    if not class_of or not pictures or not table:
        raise DataError(
            f"expected images, annotations and categories in {path}; got {len(pictures):,} images, "
            f"{len(table) // 5:,} annotations and {len(class_of)} categories of VOC's. "
            "Take instances_*.json, not captions_ or person_keypoints_."
        )
    rows = np.array(table, np.int64).reshape(-1, 5)
    rows = rows[np.isin(rows[:, 1], list(class_of))]
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    images, spans = {}, {}
    starts = (
        np.flatnonzero(np.diff(rows[:, 0], prepend=rows[0, 0] - 1)) if len(rows) else rows[:0, 0]
    )
    for part in np.split(rows, starts[1:]):
        if not len(part) or part[:, 2].all():  # nothing but crowds: nothing to learn
            continue
        number = int(part[0, 0])
        if number not in pictures:
            raise DataError(
                f"expected an image {number} in {path}, for it has objects; there is none. {ADVICE}"
            )
        images[number] = pictures[number]
        labels = [class_of[category] for category in part[:, 1].tolist()]
        spans[number] = np.column_stack([part[:, 3:], labels])
    return Instances(path, images, spans)


def _picture(value: dict[str, Any]) -> Picture:
    height, width = int(value["height"]), int(value["width"])
    if min(height, width) < 1 or height * width > _MOST_PIXELS:
        raise ValueError(f"a sensible size ({height} x {width})")
    return Picture(utf8(value["file_name"]), height, width)


# ---- masks -----------------------------------------------------------------------------------


def object_mask(segmentation: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Mask of an object, bool (H, W), from any of COCO's three forms.

    Parameters
    ----------
    segmentation : list of polygons, or dict
        Polygons [x0, y0, x1, y1, ...]; or ``{"size": [H, W], "counts": ...}`` with run lengths as
        a list, or as the text that COCO's tools compress them to.
    shape : (H, W)

    Raises
    ------
    ValueError, KeyError, TypeError
        If it is none of these.
    """
    height, width = shape
    if isinstance(segmentation, list):
        mask = np.zeros((height, width), bool)
        for polygon in segmentation:
            mask |= polygon_mask(np.asarray(polygon, np.float64), (height, width))
        return mask
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"size {segmentation['size']} in an image of {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = expand_counts(counts)
    return run_length_mask(counts, (height, width))


def polygon_mask(corners: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centre lies inside a polygon: bool (H, W).

    Along the line of centres y = row + 1/2, each edge that crosses it switches between outside and
    inside, from its crossing on to the right.

    Parameters
    ----------
    corners : float64 (2 corners,): x0, y0, x1, y1, ...
        0, 0 is the outer corner of the first pixel, whose centre is 0.5, 0.5.
    shape : (H, W)
    """
    height, width = shape
    if corners.ndim != 1 or len(corners) % 2 or not np.isfinite(corners).all():
        raise ValueError("a polygon that is no list of x, y, x, y, ...")
    switches = np.zeros((height, width + 1), np.int32)
    x0, y0 = corners.reshape(-1, 2).T.clip(-1e6, 1e6)
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)  # the next corner; after the last comes the first
    top, bottom = np.minimum(y0, y1), np.maximum(y0, y1)
    first = np.ceil(top - 0.5).clip(0, height).astype(np.int64)
    stop = (
        np.ceil(bottom - 0.5).clip(0, height).astype(np.int64)
    )  # a centre on a corner counts once
    edges = np.repeat(np.arange(len(x0)), stop - first)  # each edge, once for each row it crosses
    if len(edges):
        rows = np.concatenate([np.arange(a, b) for a, b in zip(first, stop, strict=True)])
        along = (rows + 0.5 - y0[edges]) / (y1[edges] - y0[edges])
        x = x0[edges] + along * (x1[edges] - x0[edges])
        columns = np.ceil(x - 0.5).clip(0, width).astype(np.int64)  # first centre to the right
        np.add.at(switches, (rows, columns), 1)
    return np.asarray(switches[:, :width].cumsum(axis=1) % 2 == 1)


def run_length_mask(counts: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask from run lengths, column after column: so many outside, so many inside, and so on."""
    lengths = np.asarray(counts, np.int64)
    pixels = shape[0] * shape[1]
    fits = lengths.ndim == 1 and ((lengths >= 0) & (lengths <= pixels)).all()
    if not fits or lengths.sum() != pixels:
        raise ValueError(f"run lengths that do not add up to the {shape[0]} x {shape[1]} pixels")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.asarray(np.repeat(inside, lengths).reshape(shape[::-1]).T)


def expand_counts(text: str) -> list[int]:
    """Run lengths from COCO's compressed text.

    A number is written in groups of five bits, the lowest first, one letter each, from "0" on; 32
    is added to all but its last letter, whose bit 4 is the sign. From the fourth number on it is
    the difference to the number two before.
    """
    counts: list[int] = []
    number = bits = 0
    for letter in text:
        group = ord(letter) - 48
        if not 0 <= group < 64:
            raise ValueError(f"compressed run lengths with the letter {letter!r}")
        number |= (group & 31) << bits
        bits += 5
        if bits > 40:
            raise ValueError("compressed run lengths with a number too large")
        if group & 32:
            continue
        if group & 16:
            number -= 1 << bits
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = bits = 0
    if bits:
        raise ValueError("compressed run lengths that end within a number")
    return counts
