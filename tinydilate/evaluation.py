"""Scoring a whole data set: one confusion matrix, filled image by image.

Intersection and union are summed over all images before they are divided, as VOC and Cityscapes do
it. (The mean of each image's IoU would be another, much noisier number.) Pixels whose truth is 255
do not count; every other pixel must have been given a class.

Cityscapes is scored twice: by its 19 classes (the paper's Table 7), and by the 7 categories that
they fall into (Table 8), where taking a truck for a car is no mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinydilate.classes import CAMVID, CITYSCAPES, VOC, Classes
from tinydilate.data import cityscapes
from tinydilate.data.camvid import RAW_CODE as CAMVID_CODE
from tinydilate.data.labelled import LabelledImages
from tinydilate.data.layout import IMAGE_ENDINGS
from tinydilate.data.pixels import Bytes, Code, plain_code, read_labels
from tinydilate.data.voc import CODE as VOC_CODE
from tinydilate.errors import DataError, ShapeError
from tinydilate.metrics import Counts, Score, confusion_matrix, group_classes

# What different programs append to an image's name for its labels, the longest first.
ENDS = (
    "_gtFine_labelTrainIds",
    "_pred_labelTrainIds",
    "_gtFine_labelIds",
    "_pred_labelIds",
    "_leftImg8bit-labels",
    "_leftImg8bit",
    "-labels",
    "_L",
)


class Evaluation(NamedTuple):
    """How good the labels of a data set are.

    Attributes
    ----------
    classes : Classes
    matrix : int64 (C, C)
        True class (row) by label (column), pixels of all images.
    images : int
    """

    classes: Classes
    matrix: Counts
    images: int

    @property
    def score(self) -> Score:
        """By classes."""
        return Score.of(self.matrix, self.classes.names)

    @property
    def categories(self) -> Score | None:
        """By Cityscapes' seven categories; None for other classes."""
        if self.classes.names != CITYSCAPES.names:
            return None
        numbers = [
            cityscapes.CATEGORIES.index(cityscapes.CATEGORY_OF[label])
            for label in range(len(self.classes.names))
        ]
        return Score.of(group_classes(self.matrix, numbers), cityscapes.CATEGORIES)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        categories = self.categories
        return {
            "images": self.images,
            "classes": self.score.to_dict(),
            "categories": None if categories is None else categories.to_dict(),
            "confusion": self.matrix.tolist(),
        }


def evaluate(
    pairs: Iterable[tuple[str, Bytes, NDArray[Any]]], classes: Classes, progress: str = ""
) -> Evaluation:
    """Compare labels with the truth, image by image.

    Parameters
    ----------
    pairs : iterable of (name, truth, labels)
        Integers (H, W) each; 255 in the truth does not count.
    classes : Classes
    progress : str
        Title of a bar; none without it.

    Raises
    ------
    ShapeError, DtypeError, DataError
        Sizes that differ, labels that are no classes; the image is named.
    """
    matrix = np.zeros((len(classes.names),) * 2, np.int64)
    images = 0
    for name, truth, labels in tqdm(
        pairs, desc=progress, unit="image", leave=False, disable=not progress
    ):
        try:
            matrix += confusion_matrix(truth, labels, len(classes.names))
        except (ShapeError, DataError) as error:
            raise type(error)(f"{name}: {error}") from None
        images += 1
    if not images:
        raise DataError("expected images to score; got none.")
    return Evaluation(classes, matrix, images)


def evaluate_dataset(
    dataset: LabelledImages, label: Callable[[int], NDArray[Any]], progress: str = ""
) -> Evaluation:
    """Score a function that labels the images of a data set.

    Parameters
    ----------
    dataset : LabelledImages
    label : function
        Number of an image -> integers (H, W), its labels as predicted.
    progress : str
        Title of a bar; none without it.
    """
    numbers = tqdm(
        range(len(dataset)), desc=progress, unit="image", leave=False, disable=not progress
    )
    pairs = ((dataset.names[i], dataset.labels(i), label(i)) for i in numbers)
    return evaluate(pairs, dataset.classes)


# ---- folders of label files ------------------------------------------------------------------


def evaluate_files(
    predicted: Path | str, dataset: LabelledImages, progress: str = ""
) -> Evaluation:
    """Score a folder of label PNGs against a data set; each image needs one.

    Raises
    ------
    DataError
        If one is missing, which is named, or cannot be read.
    """
    found = label_files(predicted)
    _check_there(dataset.names, found, Path(predicted))

    def label(i: int) -> Bytes:
        path = found[dataset.names[i]]
        return read_labels(path, code_of(path, dataset.classes))

    return evaluate_dataset(dataset, label, progress)


def evaluate_folders(
    predicted: Path | str, true: Path | str, classes: Classes, progress: str = ""
) -> Evaluation:
    """Score a folder of label PNGs against another folder of them.

    Files belong together that have one name, but for what programs append to it (`ENDS`). Files of
    Cityscapes that end in ``labelIds.png`` hold ids, all others trainIds.

    Raises
    ------
    DataError
        If a file of ``true`` has no counterpart, which is named, or cannot be read.
    """
    truth, found = label_files(true), label_files(predicted)
    if not truth:
        raise DataError(f"expected label PNGs in {true}; got none. Check the folder's name.")
    _check_there(list(truth), found, Path(predicted))
    pairs = (
        (
            name,
            read_labels(truth[name], code_of(truth[name], classes)),
            read_labels(found[name], code_of(found[name], classes)),
        )
        for name in tqdm(truth, desc=progress, unit="image", leave=False, disable=not progress)
    )
    return evaluate(pairs, classes)


def label_files(folder: Path | str) -> dict[str, Path]:
    """The label files below a folder by the names of their images, sorted.

    Raises
    ------
    DataError
        If there is no such folder, or two files belong to one image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"expected a folder of label PNGs at {folder}; there is none.")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_ENDINGS or _is_picture(path.stem):
            continue
        name = next((path.stem.removesuffix(e) for e in ENDS if path.stem.endswith(e)), path.stem)
        if name in files:
            raise DataError(
                f"expected one label file for each image below {folder}; got {files[name]} and "
                f"{path} for {name}. Move one of the two away."
            )
        files[name] = path
    return files


def _is_picture(stem: str) -> bool:
    """Whether a file beside label files only shows something: pictures are not scored."""
    return stem == "legend" or stem.endswith(("-overlay", "_gtFine_color", "_gtFine_instanceIds"))


def code_of(path: Path, classes: Classes) -> Code:
    """What the numbers and colours in a label file mean, by its name and the classes."""
    if classes.names == CITYSCAPES.names:
        return cityscapes.IDS if path.stem.endswith("labelIds") else cityscapes.TRAIN_IDS
    if classes.names == CAMVID.names:  # KITTI's too; both draw what does not count in black
        return CAMVID_CODE
    return VOC_CODE if classes.names == VOC.names else plain_code(classes.palette)


def _check_there(names: Iterable[str], found: dict[str, Path], folder: Path) -> None:
    wanted = list(names)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"expected a label PNG for {missing[0]} below {folder}; there is none "
            f"({len(missing):,} of {len(wanted):,} are missing). Name it {missing[0]}.png or "
            f"{missing[0]}-labels.png."
        )
