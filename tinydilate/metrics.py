"""How good is a labelling? Confusion matrix, intersection over union, pixel accuracy.

Everything starts from the confusion matrix M (C, C): M[t, p] counts the pixels of true class t that
were labelled p. Matrices of several images simply add up, so a test set of any size is scored as

    matrix = sum(confusion_matrix(truth, prediction, C) for truth, prediction in pairs)
    print(Score.of(matrix, classes))

    IoU of class c          M[c, c] / (row sum c + column sum c - M[c, c])  intersection / union
    mean IoU                mean over the classes
    accuracy of class c     M[c, c] / row sum c        part of its pixels that were found
    mean accuracy           mean over the classes
    pixel accuracy          trace / sum                part of all pixels that are right
    frequency weighted IoU  sum over c of (row sum c / sum) * IoU of class c

The names are those of Long, Shelhamer and Darrell (CVPR 2015). The last two are mostly about the
largest classes, road or background, which is why the paper speaks of mean IoU.

**The mean includes the background.** The paper's tables list 20 classes of VOC, yet its means are
over 21; a mean without the background would not be comparable. That is why a `Score` always says
which classes it is a mean of, and gives the mean without the background beside it.

**Absent classes.** A class that is neither in the truth nor in the prediction has the union 0 and
no IoU: it is nan, and left out of the mean. A class that is predicted but never true has IoU 0, and
counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinydilate.errors import DataError, DtypeError, ShapeError

Counts = NDArray[np.int64]

BACKGROUND = "background"  # the name of the class that is nothing in particular


def confusion_matrix(
    truth: ArrayLike, prediction: ArrayLike, num_classes: int, ignore_index: int = 255
) -> Counts:
    """Count the pixels of each true class (row) that got each label (column).

    Parameters
    ----------
    truth, prediction : integers of one shape, usually (N, H, W) or (H, W)
        Labels 0 .. C-1. Where the truth is `ignore_index` the pixel is not counted, whatever the
        prediction says there.
    num_classes : int
        C, the background included.
    ignore_index : int
        The label of pixels without an answer.

    Returns
    -------
    int64 (C, C)

    Raises
    ------
    ShapeError
        Truth and prediction of different shapes.
    DtypeError
        Labels that are not whole numbers: scores need an argmax over the classes first.
    DataError
        Labels out of range.
    """
    if num_classes < 1:
        raise DataError(
            f"expected num_classes >= 1, got {num_classes}; count the background as a class"
        )
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ShapeError(
            "expected truth and prediction of one shape, "
            f"got {truth.shape} and {prediction.shape}; resize the scores to the labels first"
        )
    counted = truth != ignore_index
    t = _labels("truth", truth[counted], num_classes, ignore_index)
    p = _labels("prediction", prediction[counted], num_classes, ignore_index)
    # Each pair (t, p) is one number in base C, so one histogram counts them all.
    pairs = np.bincount(t * num_classes + p, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def _labels(name: str, labels: NDArray[Any], num_classes: int, ignore_index: int) -> Counts:
    """Labels as int64 (a uint8 would overflow in t * C + p), or a named error."""
    if labels.dtype.kind not in "iu":
        raise DtypeError(
            f"expected {name} as integer labels, got {labels.dtype}; "
            "take the argmax of the scores over the classes"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise DataError(
            f"expected {name} labels in 0..{num_classes - 1} (or {ignore_index} in the truth for "
            f"pixels that do not count), got {labels.min()}..{labels.max()}; "
            "check num_classes and the label files"
        )
    return labels.astype(np.int64)


def class_iou(matrix: Counts) -> NDArray[np.float64]:
    """Intersection over union of every class, float64 (C,); nan for a class that is absent."""
    _check_matrix(matrix)
    right = np.diag(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - right
    iou = np.full(len(right), np.nan)
    np.divide(right, union, out=iou, where=union > 0)
    return iou


def mean_iou(matrix: Counts) -> float:
    """Mean of `class_iou` over the classes present, background included; nan if none is."""
    return _mean(class_iou(matrix))


def pixel_accuracy(matrix: Counts) -> float:
    """Share of the counted pixels that got their true label; nan if none was counted."""
    _check_matrix(matrix)
    return float(np.trace(matrix) / matrix.sum()) if matrix.any() else math.nan


def class_accuracy(matrix: Counts) -> NDArray[np.float64]:
    """Part of each class's pixels that got its label, float64 (C,); nan for a class without any."""
    _check_matrix(matrix)
    true = matrix.sum(axis=1)
    accuracy = np.full(len(true), np.nan)
    np.divide(np.diag(matrix), true, out=accuracy, where=true > 0)
    return accuracy


def frequency_weighted_iou(matrix: Counts) -> float:
    """IoU of each class, weighted by its share of the true pixels; nan if none was counted."""
    iou, true = class_iou(matrix), matrix.sum(axis=1)
    return float((iou[true > 0] * true[true > 0]).sum() / true.sum()) if true.any() else math.nan


def group_classes(matrix: Counts, group: Sequence[int]) -> Counts:
    """Confusion matrix of groups of classes: what is confused within a group is right.

    Parameters
    ----------
    matrix : int64 (C, C)
    group : sequence of C integers
        Number of the group of each class, 0 .. G-1.

    Returns
    -------
    int64 (G, G)

    Raises
    ------
    ShapeError
        If there is not one number for each class.
    """
    _check_matrix(matrix)
    if len(group) != len(matrix):
        raise ShapeError(
            f"expected a group for each of the {len(matrix)} classes, got {len(group)}; "
            "a class of its own is a group too"
        )
    member = np.zeros((max(group) + 1, len(group)), np.int64)  # (G, C)
    member[list(group), range(len(group))] = 1
    return np.asarray(member @ matrix @ member.T)


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of those that are not nan; nan if none is."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else math.nan


class Row(NamedTuple):
    """A line of a table of results, in per cent, as the paper prints them.

    Attributes
    ----------
    name : str
        Of the system.
    columns : tuple of str
        The classes, without the background, as in the paper.
    values : tuple of float or None
        IoU of each class; None where the class is absent, or nothing was published.
    mean : float or None
        Mean IoU, the background included where there is one.
    """

    name: str
    columns: tuple[str, ...]
    values: tuple[float | None, ...]
    mean: float | None


class Score(NamedTuple):
    """The scores of a labelling, and the classes that they speak of."""

    classes: tuple[str, ...]
    iou: tuple[float, ...]  # one a class, nan where absent
    accuracy: tuple[float, ...]  # one a class, nan where it is never true
    mean_iou: float
    mean_iou_without_background: float  # the same number where no class is called background
    mean_accuracy: float
    pixel_accuracy: float
    frequency_weighted_iou: float
    pixels: int  # how many were counted

    @classmethod
    def of(cls, matrix: Counts, classes: Sequence[str]) -> Score:
        """Score a confusion matrix whose class c is called classes[c]."""
        if len(classes) != len(matrix):
            raise ShapeError(
                f"expected a name for each of the {len(matrix)} classes, got {len(classes)} names; "
                "the background needs one too"
            )
        iou, accuracy = class_iou(matrix), class_accuracy(matrix)
        foreground = np.array([name != BACKGROUND for name in classes], bool)
        return cls(
            classes=tuple(classes),
            iou=tuple(iou.tolist()),
            accuracy=tuple(accuracy.tolist()),
            mean_iou=mean_iou(matrix),
            mean_iou_without_background=_mean(iou[foreground]),
            mean_accuracy=_mean(accuracy),
            pixel_accuracy=pixel_accuracy(matrix),
            frequency_weighted_iou=frequency_weighted_iou(matrix),
            pixels=int(matrix.sum()),
        )

    @property
    def present(self) -> tuple[str, ...]:
        """The classes that the mean is taken over."""
        return tuple(
            name for name, iou in zip(self.classes, self.iou, strict=True) if not math.isnan(iou)
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no nan: an absent class becomes None."""
        return {
            "mean_iou": _or_none(self.mean_iou),
            "mean_over": list(self.present),
            "mean_iou_without_background": _or_none(self.mean_iou_without_background),
            "mean_accuracy": _or_none(self.mean_accuracy),
            "pixel_accuracy": _or_none(self.pixel_accuracy),
            "frequency_weighted_iou": _or_none(self.frequency_weighted_iou),
            "pixels": self.pixels,
            "iou": self._by_class(self.iou),
            "accuracy": self._by_class(self.accuracy),
        }

    def _by_class(self, values: tuple[float, ...]) -> dict[str, float | None]:
        return {name: _or_none(value) for name, value in zip(self.classes, values, strict=True)}

    def row(self, name: str = "yours") -> Row:
        """The scores as a line of the paper's tables: per cent, one decimal, no background column.

        The mean is over all classes, as in the paper, the background among them.
        """
        shown = [(c, iou) for c, iou in zip(self.classes, self.iou, strict=True) if c != BACKGROUND]
        return Row(
            name,
            tuple(c for c, _ in shown),
            tuple(_per_cent(iou) for _, iou in shown),
            _per_cent(self.mean_iou),
        )

    def __str__(self) -> str:
        return (
            f"mean IoU {self.mean_iou:.3f} over {len(self.present)} of {len(self.classes)} classes "
            f"({', '.join(self.present)}), pixel accuracy {self.pixel_accuracy:.3f}"
        )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _per_cent(value: float) -> float | None:
    return None if math.isnan(value) else round(100 * value, 1)


def _check_matrix(matrix: Counts) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(
            f"expected a confusion matrix (C, C), got {matrix.shape}; confusion_matrix makes one"
        )
