"""Data sets of a few small images, written in the true formats of the large ones.

Each function writes one below a folder and returns what its labels must come out as: a dict from
split to a dict from name to uint8 (H, W). Images are photographs of noise.
"""

import json

import numpy as np
from PIL import Image

from tinydilate.classes import CAMVID, CITYSCAPES, IGNORE, KITTI, voc_palette

SIZE = (12, 16)


def noise(name, size=SIZE, channels=3):
    rng = np.random.default_rng(list(name.encode()))
    return rng.integers(0, 256, (*size, channels), dtype=np.uint8)


def some_labels(name, count, size=SIZE):
    """Blocks of classes, so that a label map looks like one, and a few pixels of 255."""
    rng = np.random.default_rng([*name.encode(), 1])
    blocks = rng.integers(0, count, (size[0] // 4, size[1] // 4), dtype=np.uint8)
    labels = blocks.repeat(4, 0).repeat(4, 1)
    labels[0, :3] = IGNORE
    return labels


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def with_palette(labels, palette):
    image = Image.fromarray(labels)
    image.putpalette(np.array(palette, np.uint8).tobytes())
    return image


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def in_colours(labels, palette, void=(0, 0, 0)):
    """uint8 (H, W) -> colour map (H, W, 3)."""
    table = np.tile(np.array(void, np.uint8), (256, 1))
    table[: len(palette)] = palette
    return table[labels]


# ---- VOC and SBD -----------------------------------------------------------------------------

VOC_LISTS = {
    "train": ["2007_000032", "2007_000039"],
    "val": ["2007_000033", "2007_000042"],
    "test": ["2008_000006"],
}
SBD_LISTS = {
    "train": ["2007_000032", "2007_000033", "2008_000002"],  # VOC's train, VOC's val, new
    "val": ["2007_000042", "2008_000008"],  # VOC's val, new
}


def write_voc(folder):
    root = folder / "VOCdevkit" / "VOC2012"
    truth = {}
    for split, names in VOC_LISTS.items():
        write_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", names)
        truth[split] = {}
        for name in names:
            save(root / "JPEGImages" / f"{name}.jpg", noise(name))
            if split != "test":
                labels = truth[split][name] = some_labels(name, 21)
                path = root / "SegmentationClass" / f"{name}.png"
                save(path, with_palette(labels, voc_palette(256)))
    write_lines(
        root / "ImageSets" / "Segmentation" / "trainval.txt", VOC_LISTS["train"] + VOC_LISTS["val"]
    )
    return truth


def write_sbd(folder):
    from scipy.io import savemat

    root = folder / "benchmark_RELEASE" / "dataset"
    (root / "cls").mkdir(parents=True)
    truth = {}
    for split, names in SBD_LISTS.items():
        write_lines(root / f"{split}.txt", names)
        truth[split] = {}
        for name in names:
            save(root / "img" / f"{name}.jpg", noise(name))
            labels = some_labels(f"sbd {name}", 21)
            labels[labels == IGNORE] = 0  # SBD has no border
            truth[split][name] = labels
            # As SBD's files: a struct with the map, its boundaries (a cell array) and its classes.
            boundaries = np.empty((20, 1), object)
            boundaries[:] = [[np.zeros((2, 2), np.uint8)]]
            struct = {
                "Segmentation": labels,
                "Boundaries": boundaries,
                "CategoriesPresent": np.unique(labels),
            }
            savemat(root / "cls" / f"{name}.mat", {"GTcls": struct}, do_compression=True)
    return truth


# ---- streets ---------------------------------------------------------------------------------

CAMVID_LISTS = {
    "train": ["0001TP_006690", "0006R0_f00930", "0016E5_00390"],
    "val": ["0016E5_07959", "0016E5_08159"],
    "test": ["0001TP_008550", "Seq05VD_f00000"],
}
_ORDER = "sky building pole road sidewalk tree sign fence car pedestrian bicyclist"
SEGNET_ORDER = _ORDER.split()


def write_camvid_segnet(folder):
    ours = [SEGNET_ORDER.index(name) for name in CAMVID.names]  # class -> SegNet's number
    to_segnet = np.full(256, 11, np.uint8)
    to_segnet[:11] = ours
    truth = {}
    for split, names in CAMVID_LISTS.items():
        lines, truth[split] = [], {}
        for name in names:
            labels = truth[split][name] = some_labels(name, 11)
            save(folder / split / f"{name}.png", noise(name))
            save(folder / f"{split}annot" / f"{name}.png", to_segnet[labels])
            start = "/SegNet/CamVid"
            lines.append(f"{start}/{split}/{name}.png {start}/{split}annot/{name}.png")
        write_lines(folder / f"{split}.txt", lines)
    return truth


# Two of the 32 colours for each of some of the 11 classes.
CAMVID_TWINS = {"building": (192, 0, 128), "road": (192, 0, 64), "tree": (192, 192, 0)}


def write_camvid_raw(folder):
    truth = {}
    for split, names in CAMVID_LISTS.items():
        truth[split] = {}
        for name in names:
            labels = truth[split][name] = some_labels(name, 11)
            colours = in_colours(labels, CAMVID.palette)
            for twin, colour in CAMVID_TWINS.items():  # in half of the rows
                half = colours[::2]
                half[labels[::2] == CAMVID.names.index(twin)] = colour
            save(folder / "701_StillsRaw_full" / f"{name}.png", noise(name))
            save(folder / "LabeledApproved_full" / f"{name}_L.png", colours)
    return truth


def write_kitti(folder):
    truth = {}
    for split, part, names in (
        ("train", "Training_00", ["000000", "000010"]),
        ("test", "Validation_07", ["000100"]),
    ):
        truth[split] = {}
        for name in names:
            labels = truth[split][name] = some_labels(part + name, 11)
            save(folder / part / "RGB" / f"{name}.png", noise(part + name))
            save(folder / part / "GT" / f"{name}.png", in_colours(labels, KITTI.palette))
    return truth


CITY_FRAMES = {
    "train": ["aachen_000000_000019", "zurich_000001_000019"],
    "val": ["lindau_000000_000019"],
    "test": ["berlin_000000_000019"],
}


def write_cityscapes(folder, train_ids=False):
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    to_id = np.full(256, 3, np.uint8)  # 255 -> "out of roi"
    to_id[:19] = ids
    truth = {}
    for split, names in CITY_FRAMES.items():
        truth[split] = {}
        for name in names:
            city = name.partition("_")[0]
            save(folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", noise(name))
            labels = truth[split][name] = some_labels(name, len(CITYSCAPES.names))
            start = folder / "gtFine" / split / city / name
            if split == "test":
                labels = np.full(SIZE, 255, np.uint8)
            if train_ids:
                save(start.with_name(f"{name}_gtFine_labelTrainIds.png"), labels)
            else:
                save(start.with_name(f"{name}_gtFine_labelIds.png"), to_id[labels])
    return truth


# ---- COCO ------------------------------------------------------------------------------------


def compress_counts(counts):
    """COCO's compressed run lengths, written from the description in its rleToString."""
    text = ""
    for place, count in enumerate(counts):
        number = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            group = number & 31
            number >>= 5
            more = number != (-1 if group & 16 else 0)
            text += chr(48 + (group | 32 if more else group))
    return text


def run_lengths(mask):
    """Run lengths, column after column, the first of them outside."""
    flat = mask.T.reshape(-1).astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    return np.diff([0, *changes, len(flat)]).tolist()


def rectangle(top, left, bottom, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


def write_coco(folder, split="train", year="2014", indent=None):
    """Four images: polygons and both run lengths; a crowd; nothing of VOC's; a crowd alone."""
    height, width = SIZE
    mask = np.zeros(SIZE, bool)
    mask[2:9, 3:11] = True
    mask[4, 5] = False
    corner = np.zeros(SIZE, bool)
    corner[:2, :2] = True
    crowd = np.zeros(SIZE, bool)
    crowd[6:, 8:] = True

    def thing(number, image, category, segmentation, area, iscrowd=0):
        return {
            "segmentation": segmentation,
            "area": area,
            "iscrowd": iscrowd,
            "image_id": image,
            "bbox": [0, 0, 1, 1],
            "category_id": category,
            "id": number,
        }

    def lengths(mask, compressed=False):
        counts = run_lengths(mask)
        return {
            "size": [height, width],
            "counts": compress_counts(counts) if compressed else counts,
        }

    annotations = [
        thing(1, 42, 1, rectangle(1, 1, 4, 5), 12.0),  # a small person, in front of ...
        thing(2, 42, 63, rectangle(0, 0, 6, 8), 48.0),  # ... a couch, listed later
        thing(3, 42, 13, rectangle(8, 8, 12, 12), 16.0),  # a stop sign: background
        thing(4, 9, 72, lengths(mask, compressed=True), 55.0),  # tv
        thing(5, 9, 64, lengths(corner), 4.0),  # potted plant
        thing(6, 9, 1, lengths(crowd), 48.0, iscrowd=1),
        thing(7, 7, 13, rectangle(0, 0, 3, 3), 9.0),  # an image with nothing of VOC's
        thing(8, 5, 17, lengths(crowd), 48.0, iscrowd=1),  # an image with a crowd of cats alone
    ]
    first = np.zeros(SIZE, np.uint8)
    first[0:6, 0:8] = 18  # sofa
    first[1:4, 1:5] = 15  # person
    second = np.zeros(SIZE, np.uint8)
    second[crowd] = IGNORE
    second[mask] = 20  # tvmonitor
    second[corner] = 16  # pottedplant
    files = {number: f"COCO_{split}{year}_{number:012d}.jpg" for number in (42, 9, 7, 5)}
    content = {
        "info": {"year": int(year), "description": "eine Szene über alles, [1, 2], {}"},
        "images": [
            {"file_name": name, "height": height, "width": width, "id": number, "license": 3}
            for number, name in files.items()
        ],
        "licenses": [{"name": "Attribution"}],
        "annotations": annotations,
        "categories": [
            {"supercategory": "person", "id": 1, "name": "person"},
            {"supercategory": "outdoor", "id": 13, "name": "stop sign"},
            {"supercategory": "animal", "id": 17, "name": "cat"},
            {"supercategory": "furniture", "id": 63, "name": "couch"},
            {"supercategory": "furniture", "id": 64, "name": "potted plant"},
            {"supercategory": "electronic", "id": 72, "name": "tv"},
        ],
    }
    path = folder / "annotations" / f"instances_{split}{year}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
    for name in files.values():
        save(folder / f"{split}{year}" / name, noise(name))
    return {files[42][:-4]: first, files[9][:-4]: second}


# ---- a plain folder --------------------------------------------------------------------------


def write_folder(folder, names=("ant", "bee", "cow"), classes="ground\nanimal 255 0 0\n"):
    truth = {}
    for name in names:
        truth[name] = some_labels(name, 2)
        save(folder / "images" / f"{name}.png", noise(name))
        save(folder / "labels" / f"{name}.png", truth[name])
    (folder / "classes.txt").write_text(classes)
    write_lines(folder / "train.txt", names[:2])
    return truth
