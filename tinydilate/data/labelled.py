"""Images with a label for every pixel, read from the disk when they are asked for.

Every reader of a data set ends here: it says where things lie and how a label is decoded, and
returns `LabelledImages`. Training, scoring and pictures know nothing else.

    dataset = open_dataset("voc", "VOCdevkit", "val")
    dataset.image(0)   # uint8 (H, W, 3), red, green, blue
    dataset.labels(0)  # uint8 (H, W), class numbers, 255 = not counted
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from tinydilate.classes import Classes
from tinydilate.data.pixels import (
    Bytes,
    image_size,
    read_image,
    resize_image,
    resize_labels,
)
from tinydilate.errors import ConfigError, DataError, PositionError, ShapeError

CACHE = 256 * 2**20  # bytes of decoded images that a data set keeps


class Member(NamedTuple):
    """One image of a data set.

    Attributes
    ----------
    name : str
        As in the data set's lists.
    image : path
    labels : path or None
        The file that holds its labels; None where there are none, as in a test split.
    decode : function or None
        Reads them: uint8 (H, W).
    """

    name: str
    image: Path
    labels: Path | None = None
    decode: Callable[[], Bytes] | None = None


class LabelledImages:
    """A data set, or one split of it.

    Parameters
    ----------
    classes : Classes
    members : sequence of Member
        At least one.
    size : (H, W), optional
        Resize every image and its labels to this; by default they keep the size of their files.
    cache : int
        Bytes of decoded images and labels that are kept, those used last.

    Attributes
    ----------
    classes : Classes
    names : tuple of str
    members : tuple of Member
    size : (H, W) or None

    Raises
    ------
    DataError
        If there are no members, or two of one name.
    """

    def __init__(
        self,
        classes: Classes,
        members: Sequence[Member],
        size: tuple[int, int] | None = None,
        cache: int = CACHE,
    ) -> None:
        if not members:
            raise DataError(f"expected images in the data set {classes.dataset}; got none.")
        if size is not None and not (len(size) == 2 and min(size) >= 1):
            raise ShapeError(f"expected a size (height, width) of at least 1 each; got {size}.")
        self.classes = classes
        self.members = tuple(members)
        self.names = tuple(member.name for member in members)
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise DataError(
                f"expected each image once in the data set {classes.dataset}; got {twice!r} twice. "
                "Remove one of the two lines from its list."
            )
        self.size = size
        self._cache = _Cache(cache)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def labelled(self) -> bool:
        """Whether every image has labels; those of a test split are often kept secret."""
        return all(member.decode is not None for member in self.members)

    def image(self, i: int) -> Bytes:
        """Image number ``i``, uint8 (H, W, 3), RGB; read-only, for it may be kept.

        Raises
        ------
        DataError
            If the file is missing or broken.
        PositionError
            If there is no number ``i``.
        """
        return self._cache.get(("image", self._place(i)), self._read_image)

    def labels(self, i: int) -> Bytes:
        """Labels of image ``i``, uint8 (H, W): class numbers, 255 where none counts; read-only.

        Raises
        ------
        DataError
            If there are none, or their file is missing, broken, of another size than the image, or
            holds what is no class.
        PositionError
            If there is no number ``i``.
        """
        return self._cache.get(("labels", self._place(i)), self._read_labels)

    def _place(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise PositionError(f"expected the number of an image, 0 to {len(self) - 1}; got {i}.")
        return int(i)

    def _read_image(self, i: int) -> Bytes:
        image = read_image(self.members[i].image)
        return image if self.size is None else resize_image(image, self.size)

    def _read_labels(self, i: int) -> Bytes:
        member = self.members[i]
        if member.decode is None:
            raise DataError(
                f"expected labels for {member.name}; this split of {self.classes.dataset} has "
                "none. Choose another split, or predict and submit the results."
            )
        labels, size = member.decode(), image_size(member.image)
        if labels.shape != size:
            raise DataError(
                f"expected an image and labels of one size; {member.image} has {size[0]} x "
                f"{size[1]} pixels (height x width) and {member.labels} {labels.shape[0]} x "
                f"{labels.shape[1]}. One of the two was resized or belongs to another image."
            )
        return labels if self.size is None else resize_labels(labels, self.size)


def joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    """Both data sets as one, ``first`` at the front; for VOC with COCO (section 4 of the paper).

    Raises
    ------
    ConfigError
        If their classes or their sizes differ.
    """
    if first.classes.names != second.classes.names or first.size != second.size:
        raise ConfigError(
            f"expected two data sets of the same classes and size to join; got "
            f"{first.classes.dataset} ({len(first.classes.names)} classes, size {first.size}) and "
            f"{second.classes.dataset} ({len(second.classes.names)} classes, size {second.size})."
        )
    return LabelledImages(first.classes, first.members + second.members, first.size)


class _Cache:
    """Arrays, those used last, up to a number of bytes; safe to share among threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.kept: OrderedDict[tuple[str, int], Bytes] = OrderedDict()
        self.lock = Lock()

    def get(self, key: tuple[str, int], read: Callable[[int], Bytes]) -> Bytes:
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        array = np.ascontiguousarray(read(key[1]))  # outside of the lock: others may read meanwhile
        array.setflags(write=False)
        with self.lock:
            if key not in self.kept and array.nbytes <= self.limit:
                self.kept[key] = array
                self.used += array.nbytes
                while self.used > self.limit:
                    _, oldest = self.kept.popitem(last=False)
                    self.used -= oldest.nbytes
        return array
