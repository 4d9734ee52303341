"""KITTI, as labelled by Ros et al. 2015: 146 images of its odometry drives (paper, appendix A.2).

    FOLDER/Training_00/RGB/*.png     100 images of drive 00
    FOLDER/Training_00/GT/*.png      colour maps with CamVid's colours, black for no class
    FOLDER/Validation_07/RGB/*.png   46 images of drive 07, the paper's test set
    FOLDER/Validation_07/GT/*.png

The images have about 1226 x 370 pixels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tinydilate.classes import IGNORE, KITTI
from tinydilate.data.labelled import LabelledImages, Member
from tinydilate.data.layout import check_files, check_split, find_root, images_in
from tinydilate.data.pixels import plain_code, read_labels

ADVICE = (
    "Download the KITTI labels of Ros et al. from http://adas.cvc.uab.es/s2uad/ and unpack them "
    "there; the archive holds Training_00 and Validation_07, each with RGB and GT."
)
FOLDERS = {"train": "Training_00", "test": "Validation_07"}
CODE = plain_code(KITTI.palette, {(0, 0, 0): IGNORE})


def open_kitti(
    folder: Path | str, split: str, size: tuple[int, int] | None = None
) -> LabelledImages:
    """Open a split of KITTI.

    Parameters
    ----------
    folder : path
        With ``Training_00`` and ``Validation_07``, or one that holds KITTI_SEMANTIC.
    split : {"train", "test"}
    size : (H, W), optional
        Resize to this.

    Raises
    ------
    ConfigError, DataError
        An unknown split; a file that is missing, which is named.
    """
    check_split("kitti", split, tuple(FOLDERS))
    root = find_root(folder, [".", "KITTI_SEMANTIC"], FOLDERS[split], ADVICE) / FOLDERS[split]
    images, labels = (find_root(root, ["."], part, ADVICE) / part for part in ("RGB", "GT"))
    # No list says what should be there; but no image lacks its labels, and no labels their image.
    names = sorted({path.stem for path in images_in(images, ADVICE) + images_in(labels, ADVICE)})
    check_files((images / f"{name}.png" for name in names), "an image", ADVICE)
    check_files((labels / f"{name}.png" for name in names), "labels", ADVICE)
    members = [
        Member(
            name,
            images / f"{name}.png",
            labels / f"{name}.png",
            partial(read_labels, labels / f"{name}.png", CODE),
        )
        for name in names
    ]
    return LabelledImages(KITTI, members, size)
