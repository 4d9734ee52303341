"""PASCAL VOC 2012, and SBD, which labels 9,000 more of its images (paper, sections 4 and 5).

    FOLDER/VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg
                             SegmentationClass/2007_000032.png    class numbers with a palette
                             ImageSets/Segmentation/{train,val,trainval,test}.txt
    FOLDER/benchmark_RELEASE/dataset/{train,val}.txt              SBD
                             dataset/img/2008_000002.jpg
                             dataset/cls/2008_000002.mat          MATLAB: GTcls.Segmentation

=============  ======  =============================================================
VOC's split    images  its labels
=============  ======  =============================================================
train           1,464  VOC's, with a border of 255 around each object
val             1,449  VOC's
trainval        2,913  VOC's
test            1,456  none: they are kept by the evaluation server
trainaug       10,582  VOC's train, and all of SBD that is in neither train nor val
=============  ======  =============================================================

The paper trains on trainaug ("VOC-2012 train and the annotations of Hariharan et al.; no image of
the VOC-2012 validation set"). An image that both label has VOC's labels here. SBD's have no border.
SBD has splits of its own, train (8,498) and val (2,857); many images of VOC's val are in its train.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from tinydilate.classes import IGNORE, VOC, voc_palette
from tinydilate.data.labelled import LabelledImages, Member
from tinydilate.data.layout import check_files, check_split, find_root, read_list, safe_path
from tinydilate.data.pixels import Bytes, number_labels, plain_code, read_labels
from tinydilate.errors import DataError

VOC_ADVICE = (
    "Download VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and "
    "unpack it there; it makes VOCdevkit/VOC2012. (The images of the test split are in the test "
    "archive of the evaluation server, http://host.robots.ox.ac.uk:8080/.)"
)
SBD_ADVICE = (
    "Download benchmark.tgz from "
    "http://home.bharathh.info/pubs/codes/SBD/download.html and unpack it beside VOCdevkit; it "
    "makes benchmark_RELEASE."
)
VOC_SPLITS = ("train", "val", "trainval", "test", "trainaug")
SBD_SPLITS = ("train", "val")
CODE = plain_code(VOC.palette, {voc_palette(256)[IGNORE]: IGNORE})


def open_voc(folder: Path | str, split: str, size: tuple[int, int] | None = None) -> LabelledImages:
    """Open a split of VOC 2012.

    Parameters
    ----------
    folder : path
        Where the archives were unpacked, or VOC2012 itself.
    split : {"train", "val", "trainval", "test", "trainaug"}
    size : (H, W), optional
        Resize to this.

    Raises
    ------
    ConfigError, DataError
        An unknown split; a file that is missing, which is named.
    """
    check_split("voc", split, VOC_SPLITS)
    places = [".", "VOC2012", "VOCdevkit/VOC2012"]
    root = find_root(folder, places, "ImageSets/Segmentation", VOC_ADVICE)
    members = _voc_members(root, "train" if split == "trainaug" else split)
    if split == "trainaug":
        members += _rest_of_sbd(Path(folder), root, {member.name for member in members})
    return LabelledImages(VOC, members, size)


def open_sbd(folder: Path | str, split: str, size: tuple[int, int] | None = None) -> LabelledImages:
    """Open one of SBD's own splits, "train" or "val"; parameters and errors of `open_voc`."""
    check_split("sbd", split, SBD_SPLITS)
    root = _sbd_root(folder)
    return LabelledImages(VOC, _sbd_members(root, _names(root / f"{split}.txt", SBD_ADVICE)), size)


def _voc_members(root: Path, split: str) -> list[Member]:
    names = _names(root / "ImageSets" / "Segmentation" / f"{split}.txt", VOC_ADVICE)
    images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    check_files(images, "an image", VOC_ADVICE)
    if split == "test":
        return [Member(name, image) for name, image in zip(names, images, strict=True)]
    labels = [root / "SegmentationClass" / f"{name}.png" for name in names]
    check_files(labels, "labels", VOC_ADVICE)
    return [
        Member(name, image, label, partial(read_labels, label, CODE))
        for name, image, label in zip(names, images, labels, strict=True)
    ]


def _rest_of_sbd(folder: Path, voc: Path, taken: set[str]) -> list[Member]:
    """What SBD has beside the images taken, without VOC's val."""
    root = _sbd_root(folder, voc)
    val = set(_names(voc / "ImageSets" / "Segmentation" / "val.txt", VOC_ADVICE))
    names = [name for split in SBD_SPLITS for name in _names(root / f"{split}.txt", SBD_ADVICE)]
    return _sbd_members(root, [name for name in names if name not in taken | val])


def _sbd_members(root: Path, names: list[str]) -> list[Member]:
    images = [root / "img" / f"{name}.jpg" for name in names]
    labels = [root / "cls" / f"{name}.mat" for name in names]
    check_files(images, "an image", SBD_ADVICE)
    check_files(labels, "labels", SBD_ADVICE)
    return [
        Member(name, image, label, partial(read_sbd, label))
        for name, image, label in zip(names, images, labels, strict=True)
    ]


def _sbd_root(folder: Path | str, voc: Path | None = None) -> Path:
    """The folder ``benchmark_RELEASE/dataset``: in the one that was named, or beside VOC's."""
    places = [".", "dataset", "benchmark_RELEASE/dataset"]
    for place in [] if voc is None else [voc.resolve().parent, voc.resolve().parent.parent]:
        if (place / "benchmark_RELEASE" / "dataset").is_dir():
            return place / "benchmark_RELEASE" / "dataset"
    return find_root(folder, places, "cls", SBD_ADVICE)


def _names(path: Path, advice: str) -> list[str]:
    names = read_list(path, advice)
    for name in names:
        safe_path(path.parent, name, path)
    return names


def read_sbd(path: Path) -> Bytes:
    """Read the labels of one of SBD's MATLAB files: uint8 (H, W).

    Raises
    ------
    DataError
        If it is no such file.
    """
    from scipy.io import loadmat

    try:
        labels = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        if labels.ndim != 2 or labels.dtype.kind not in "iuf":
            raise ValueError(f"Segmentation is {labels.dtype} {labels.shape}")
    except FileNotFoundError:
        raise DataError(f"expected labels at {path}; there is no such file. {SBD_ADVICE}") from None
    except Exception as error:  # SciPy answers a damaged file with nearly any
        raise DataError(
            f"expected a MATLAB file of SBD with GTcls.Segmentation; {path} is none "
            f"({type(error).__name__}: {error}). {SBD_ADVICE}"
        ) from None
    return number_labels(np.asarray(labels).astype(np.int64), path, CODE)
