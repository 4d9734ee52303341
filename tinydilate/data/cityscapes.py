"""Cityscapes: streets of 50 cities (paper, appendix A.3).

    FOLDER/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    FOLDER/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png

2,975 images for training, 500 for validation, 1,525 for test, whose labels are kept by the
evaluation server; 2048 x 1024 pixels.

The label files hold *ids*, 0 to 33, of which networks learn 19; these have numbers of their own,
*trainIds*, 0 to 18. `TABLE` says which is which. A file ``..._gtFine_labelTrainIds.png``, which the
official scripts make, is read where there is one, and needs no table.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from tinydilate.classes import CITYSCAPES, IGNORE, Colour
from tinydilate.data.labelled import LabelledImages, Member
from tinydilate.data.layout import check_files, check_split, find_root
from tinydilate.data.pixels import Code, plain_code, read_labels
from tinydilate.errors import DataError

ADVICE = (
    "Register at https://www.cityscapes-dataset.com/, download leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip, and unpack both into one folder."
)
SPLITS = ("train", "val", "test")
IMAGE_END, IDS_END, TRAIN_IDS_END = (
    "_leftImg8bit",
    "_gtFine_labelIds.png",
    "_gtFine_labelTrainIds.png",
)


class Row(NamedTuple):
    """A row of the data set's list of labels; the trainId is 255 where it does not count."""

    name: str
    id: int
    train_id: int
    category: str
    colour: Colour


# As in the official cityscapesScripts, helpers/labels.py; there the trainId of a plate is -1.
TABLE = (
    Row("unlabeled", 0, 255, "void", (0, 0, 0)),
    Row("ego vehicle", 1, 255, "void", (0, 0, 0)),
    Row("rectification border", 2, 255, "void", (0, 0, 0)),
    Row("out of roi", 3, 255, "void", (0, 0, 0)),
    Row("static", 4, 255, "void", (0, 0, 0)),
    Row("dynamic", 5, 255, "void", (111, 74, 0)),
    Row("ground", 6, 255, "void", (81, 0, 81)),
    Row("road", 7, 0, "flat", (128, 64, 128)),
    Row("sidewalk", 8, 1, "flat", (244, 35, 232)),
    Row("parking", 9, 255, "flat", (250, 170, 160)),
    Row("rail track", 10, 255, "flat", (230, 150, 140)),
    Row("building", 11, 2, "construction", (70, 70, 70)),
    Row("wall", 12, 3, "construction", (102, 102, 156)),
    Row("fence", 13, 4, "construction", (190, 153, 153)),
    Row("guard rail", 14, 255, "construction", (180, 165, 180)),
    Row("bridge", 15, 255, "construction", (150, 100, 100)),
    Row("tunnel", 16, 255, "construction", (150, 120, 90)),
    Row("pole", 17, 5, "object", (153, 153, 153)),
    Row("polegroup", 18, 255, "object", (153, 153, 153)),
    Row("traffic light", 19, 6, "object", (250, 170, 30)),
    Row("traffic sign", 20, 7, "object", (220, 220, 0)),
    Row("vegetation", 21, 8, "nature", (107, 142, 35)),
    Row("terrain", 22, 9, "nature", (152, 251, 152)),
    Row("sky", 23, 10, "sky", (70, 130, 180)),
    Row("person", 24, 11, "human", (220, 20, 60)),
    Row("rider", 25, 12, "human", (255, 0, 0)),
    Row("car", 26, 13, "vehicle", (0, 0, 142)),
    Row("truck", 27, 14, "vehicle", (0, 0, 70)),
    Row("bus", 28, 15, "vehicle", (0, 60, 100)),
    Row("caravan", 29, 255, "vehicle", (0, 0, 90)),
    Row("trailer", 30, 255, "vehicle", (0, 0, 110)),
    Row("train", 31, 16, "vehicle", (0, 80, 100)),
    Row("motorcycle", 32, 17, "vehicle", (0, 0, 230)),
    Row("bicycle", 33, 18, "vehicle", (119, 11, 32)),
    Row("license plate", -1, 255, "vehicle", (0, 0, 142)),
)

# Categories in the order of the paper's Table 8.
CATEGORIES = ("flat", "nature", "object", "sky", "construction", "human", "vehicle")
CATEGORY_OF = {row.train_id: row.category for row in TABLE if row.train_id != IGNORE}
ID_OF = {row.train_id: row.id for row in TABLE if row.train_id != IGNORE}

# Two rows of one colour: it stands for the first that counts (a pole, not a group of poles).
_COLOURS = {row.colour: row.train_id for row in TABLE if row.train_id == IGNORE}
_COLOURS |= {row.colour: row.train_id for row in TABLE if row.train_id != IGNORE}
IDS = Code({row.id: row.train_id for row in TABLE}, _COLOURS)
TRAIN_IDS = plain_code(CITYSCAPES.palette, _COLOURS)


def open_cityscapes(
    folder: Path | str, split: str, size: tuple[int, int] | None = None
) -> LabelledImages:
    """Open a split of Cityscapes, labelled by trainIds.

    Parameters
    ----------
    folder : path
        With ``leftImg8bit`` and ``gtFine``.
    split : {"train", "val", "test"}
        The test split comes without labels.
    size : (H, W), optional
        Resize to this.

    Raises
    ------
    ConfigError, DataError
        An unknown split; a file that is missing, which is named.
    """
    check_split("cityscapes", split, SPLITS)
    root = find_root(folder, [".", "cityscapes"], f"leftImg8bit/{split}", ADVICE)
    found = {
        path.stem.removesuffix(IMAGE_END) for path in root.glob(f"leftImg8bit/{split}/*/*.png")
    }
    if not found:
        raise DataError(
            f"expected images such as {root}/leftImg8bit/{split}/CITY/CITY_000000_000019"
            f"{IMAGE_END}.png; got none. {ADVICE}"
        )
    # No list says what should be there; but no image lacks its labels, and no labels their image.
    for end in (IDS_END, TRAIN_IDS_END):
        found |= {path.name.removesuffix(end) for path in root.glob(f"gtFine/{split}/*/*{end}")}
    members = [_member(root, split, name) for name in sorted(found)]
    check_files((member.image for member in members), "an image", ADVICE)
    check_files((member.labels for member in members if member.labels), "labels", ADVICE)
    return LabelledImages(CITYSCAPES, members, size)


def _member(root: Path, split: str, name: str) -> Member:
    city = name.partition("_")[0]  # aachen_000000_000019
    image = root / "leftImg8bit" / split / city / f"{name}{IMAGE_END}.png"
    if split == "test":  # the label files that stand there are filled with "out of roi"
        return Member(name, image)
    folder = root / "gtFine" / split / city
    path, code = folder / f"{name}{TRAIN_IDS_END}", TRAIN_IDS
    if not path.exists():
        path, code = folder / f"{name}{IDS_END}", IDS
    return Member(name, image, path, partial(read_labels, path, code))
