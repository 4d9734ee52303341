"""Every reader on a tiny data set in the true format, and what each says when things are wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_datasets as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinydilate.classes import CAMVID, CITYSCAPES, IGNORE, KITTI, VOC, voc_palette
from tinydilate.data import joined, open_dataset, pixels
from tinydilate.data.camvid import RAW, split_of
from tinydilate.data.cityscapes import CATEGORIES, TABLE
from tinydilate.data.coco import (
    VOC_NAME,
    expand_counts,
    object_mask,
    polygon_mask,
    read_instances,
    run_length_mask,
)
from tinydilate.data.json_arrays import json_entries, read_span
from tinydilate.data.labelled import LabelledImages, Member
from tinydilate.data.opening import KINDS
from tinydilate.data.pixels import (
    image_size,
    plain_code,
    read_image,
    read_labels,
    resize_image,
    resize_labels,
)
from tinydilate.errors import ConfigError, DataError, PositionError, ShapeError


def check(dataset, truth, classes):
    """Names, images and labels are those that were written."""
    assert dataset.names == tuple(truth)
    assert dataset.classes.names == classes.names
    assert len(dataset) == len(truth)
    assert dataset.labelled
    for i, labels in enumerate(truth.values()):
        image, found = dataset.image(i), dataset.labels(i)
        assert (image.shape, image.dtype) == ((*tiny.SIZE, 3), np.uint8)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, labels)


# ---- each kind -------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc(tmp_path, inside):
    truth = tiny.write_voc(tmp_path)
    for split in ("train", "val"):
        check(open_dataset("voc", tmp_path / inside, split), truth[split], VOC)
    both = truth["train"] | truth["val"]
    check(open_dataset("voc", tmp_path / inside, "trainval"), both, VOC)


def test_voc_images_are_red_green_blue(tmp_path):
    tiny.write_voc(tmp_path)
    red = np.tile(np.array([250, 5, 5], np.uint8), (*tiny.SIZE, 1))
    tiny.save(tmp_path / "VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg", red, quality=98)
    image = open_dataset("voc", tmp_path, "train").image(0)
    assert abs(image.astype(int) - red).max() < 8


def test_voc_test_has_images_and_no_labels(tmp_path):
    tiny.write_voc(tmp_path)
    dataset = open_dataset("voc", tmp_path, "test")
    assert not dataset.labelled
    assert dataset.image(0).shape == (*tiny.SIZE, 3)
    with pytest.raises(DataError, match=r"expected labels for 2008_000006; this split of voc has"):
        dataset.labels(0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_sbd(tmp_path, split):
    truth = tiny.write_sbd(tmp_path)
    check(open_dataset("sbd", tmp_path, split), truth[split], VOC)


@pytest.mark.parametrize("inside", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_trainaug_is_voc_train_and_the_sbd_images_outside_of_voc_val(tmp_path, inside):
    voc, sbd = tiny.write_voc(tmp_path), tiny.write_sbd(tmp_path)
    dataset = open_dataset("voc", tmp_path / inside, "trainaug")
    expected = voc["train"] | {
        "2008_000002": sbd["train"]["2008_000002"],
        "2008_000008": sbd["val"]["2008_000008"],
    }
    check(dataset, expected, VOC)


def test_camvid_of_segnet(tmp_path):
    truth = tiny.write_camvid_segnet(tmp_path)
    for split in truth:
        check(open_dataset("camvid", tmp_path, split), truth[split], CAMVID)


def test_camvid_as_it_was(tmp_path):
    truth = tiny.write_camvid_raw(tmp_path)
    for split in truth:
        check(open_dataset("camvid", tmp_path, split), truth[split], CAMVID)


def test_camvid_has_32_colours_for_11_classes():
    assert len(RAW) == 32
    assert len({colour for colour, _ in RAW.values()}) == 32
    assert {name for _, name in RAW.values()} == {*CAMVID.names, None}
    # The paper's classes have the same colours in both tables.
    for name, colour in zip(CAMVID.names, CAMVID.palette, strict=True):
        assert (colour, name) in RAW.values()


def test_camvid_is_split_as_by_segnet():
    """The frames of each sequence, as SegNet's three lists have them: 367, 101 and 233."""
    tp = [f"0001TP_{n:06d}" for n in range(6690, 10381, 30)]
    assert [split_of(name) for name in tp] == ["train"] * 62 + ["test"] * 62
    at_15_hz = [f"0016E5_{n:05d}" for n in range(7959, 8160, 2)]
    assert [split_of(name) for name in at_15_hz] == ["val"] * 101
    assert split_of("0016E5_07980") == split_of("0016E5_08640") == "train"
    assert split_of("0006R0_f00930") == "train"
    assert split_of("Seq05VD_f05100") == "test"
    assert split_of("holiday") is split_of("holiday_0001") is None


def test_kitti(tmp_path):
    truth = tiny.write_kitti(tmp_path)
    for split in truth:
        check(open_dataset("kitti", tmp_path, split), truth[split], KITTI)


@pytest.mark.parametrize("train_ids", [False, True])
def test_cityscapes(tmp_path, train_ids):
    truth = tiny.write_cityscapes(tmp_path, train_ids)
    for split in ("train", "val"):
        check(open_dataset("cityscapes", tmp_path, split), truth[split], CITYSCAPES)
    test = open_dataset("cityscapes", tmp_path, "test")
    assert (test.names, test.labelled) == (("berlin_000000_000019",), False)


def test_cityscapes_table():
    assert [row.id for row in TABLE] == [*range(34), -1]
    counted = {row.train_id: row for row in TABLE if row.train_id != IGNORE}
    assert [counted[k].name for k in sorted(counted)] == list(CITYSCAPES.names)
    assert [counted[k].colour for k in sorted(counted)] == list(CITYSCAPES.palette)
    assert {row.category for row in counted.values()} == set(CATEGORIES)


@pytest.mark.parametrize("indent", [None, 2])
def test_coco(tmp_path, indent):
    truth = tiny.write_coco(tmp_path, indent=indent)
    # By number: image 9 before 42. The image with a stop sign and the one with a crowd are left out
    ordered = dict(sorted(truth.items()))
    dataset = open_dataset("coco", tmp_path, "train")
    check(dataset, ordered, VOC)
    for i, labels in enumerate(ordered.values()):
        np.testing.assert_array_equal(dataset.labels(i), labels)


def test_coco_takes_2017_where_there_is_no_2014_and_joins_its_splits(tmp_path):
    train = tiny.write_coco(tmp_path, "train", "2017")
    val = tiny.write_coco(tmp_path, "val", "2017")
    both = open_dataset("coco", tmp_path, "trainval")
    assert both.names == (*sorted(train), *sorted(val))


def test_coco_has_a_name_for_every_class_of_voc():
    assert set(VOC_NAME.values()) == set(VOC.names[1:])


def test_folder(tmp_path):
    truth = tiny.write_folder(tmp_path)
    dataset = open_dataset("folder", tmp_path, "all")
    check(dataset, truth, dataset.classes)
    assert dataset.classes.names == ("ground", "animal")
    assert dataset.classes.palette == ((0, 0, 0), (255, 0, 0))
    assert dataset.classes.mean == VOC.mean
    assert open_dataset("folder", tmp_path, "train").names == ("ant", "bee")


def test_folder_with_colour_maps_and_a_mean(tmp_path):
    truth = tiny.write_folder(
        tmp_path, classes="ground 10 20 30\nwild animal 255 0 0\nmean 1 2.5 3\n"
    )
    for name, labels in truth.items():
        labels[labels == IGNORE] = 0
        colours = tiny.in_colours(labels, [(10, 20, 30), (255, 0, 0)])
        tiny.save(tmp_path / "labels" / f"{name}.png", colours)
    dataset = open_dataset("folder", tmp_path, "all")
    check(dataset, truth, dataset.classes)
    assert dataset.classes.names == ("ground", "wild animal")
    assert dataset.classes.mean == (1, 2.5, 3)


# ---- at another size, joined, kept -----------------------------------------------------------


def test_another_size(tmp_path):
    truth = tiny.write_kitti(tmp_path)["train"]
    dataset = open_dataset("kitti", tmp_path, "train", size=(6, 8))
    assert dataset.image(0).shape == (6, 8, 3)
    labels = dataset.labels(0)
    assert labels.shape == (6, 8)
    assert set(np.unique(labels)) <= set(np.unique(truth["000000"]))


def test_resizing_means_areas_and_keeps_classes():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    means = image.reshape(2, 2, 3, 2, 3).mean(axis=(1, 3))
    assert abs(resize_image(image, (2, 3)) - means).max() <= 0.5
    larger = resize_image(np.full((2, 3, 3), 77, np.uint8), (8, 9))
    assert (larger.shape, set(larger.ravel())) == ((8, 9, 3), {77})
    labels = np.array([[0, 9], [20, 255]], np.uint8)
    np.testing.assert_array_equal(resize_labels(labels, (4, 4)), labels.repeat(2, 0).repeat(2, 1))


def test_joined(tmp_path):
    voc = tiny.write_voc(tmp_path)["train"]
    coco = dict(sorted(tiny.write_coco(tmp_path).items()))
    both = joined(open_dataset("voc", tmp_path, "train"), open_dataset("coco", tmp_path, "train"))
    check(both, voc | coco, VOC)
    assert both.classes.mean == VOC.mean
    tiny.write_kitti(tmp_path / "k")
    with pytest.raises(ConfigError, match=r"same classes and size to join; got voc \(21 classes"):
        joined(both, open_dataset("kitti", tmp_path / "k", "train"))


def counting(tmp_path, cache):
    """Three images of 300 bytes and labels of 100, and how often each was decoded."""
    tiny.save(tmp_path / "a.png", np.zeros((10, 10, 3), np.uint8))
    calls = []

    def decode(k):
        calls.append(k)
        return np.full((10, 10), k, np.uint8)

    members = [
        Member(f"n{k}", tmp_path / "a.png", tmp_path / "a.png", lambda k=k: decode(k))
        for k in range(3)
    ]
    return LabelledImages(VOC, members, cache=cache), calls


def test_what_was_read_last_is_kept_up_to_a_number_of_bytes(tmp_path):
    dataset, calls = counting(tmp_path, cache=200)  # room for the labels of two images
    for i in (0, 1, 0, 2, 0, 1):
        assert (dataset.labels(i) == i).all()
    assert calls == [0, 1, 2, 1]
    dataset, calls = counting(tmp_path, cache=99)
    assert (dataset.labels(1) == dataset.labels(1)).all()
    assert calls == [1, 1]


def test_what_is_kept_cannot_be_written_to(tmp_path):
    dataset, _ = counting(tmp_path, cache=10**6)
    for array in (dataset.labels(0), dataset.image(0)):
        with pytest.raises(ValueError, match=r"read-only"):
            array[0] = 1


@pytest.mark.parametrize("i", [-1, 3])
def test_no_such_number(tmp_path, i):
    dataset, _ = counting(tmp_path, cache=0)
    with pytest.raises(PositionError, match=f"number of an image, 0 to 2; got {i}"):
        dataset.labels(i)


def test_empty_twice_and_sizes(tmp_path):
    member = Member("a", tmp_path / "a.png")
    with pytest.raises(DataError, match=r"expected images in the data set voc; got none"):
        LabelledImages(VOC, [])
    with pytest.raises(DataError, match=r"each image once in the data set voc; got 'a' twice"):
        LabelledImages(VOC, [member, member])
    with pytest.raises(ShapeError, match=r"a size \(height, width\) of at least 1 each; got \(0"):
        LabelledImages(VOC, [member], size=(0, 4))


# ---- label files -----------------------------------------------------------------------------

CODE = plain_code(VOC.palette, {voc_palette(256)[255]: 255})


def test_colour_maps_are_recognised(tmp_path):
    labels = tiny.some_labels("colours", 21)
    colours = tiny.in_colours(labels, VOC.palette, void=voc_palette(256)[255])
    tiny.save(tmp_path / "a.png", colours)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", CODE), labels)
    tiny.save(tmp_path / "b.png", Image.fromarray(colours).convert("RGBA"))
    np.testing.assert_array_equal(read_labels(tmp_path / "b.png", CODE), labels)


def test_a_palette_in_an_order_of_its_own_is_read_by_its_colours(tmp_path):
    labels = np.array([[3, 3, 7], [20, 0, 3]], np.uint8)
    image = Image.fromarray(tiny.in_colours(labels, VOC.palette)).quantize(16)
    order = np.asarray(image)
    assert not np.array_equal(order, labels)  # or the test would show nothing
    # Numbers 200 and up are no classes, so only the colours can be meant.
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 3), np.uint8)
    palette[200 : 200 + len(colours)] = colours
    tiny.save(tmp_path / "a.png", tiny.with_palette(order + 200, palette))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", CODE), labels)


def test_numbers_and_colours_that_contradict_each_other_are_refused(tmp_path):
    palette = np.array(voc_palette(256))
    palette[[3, 7]] = palette[[7, 3]]
    tiny.save(tmp_path / "a.png", tiny.with_palette(np.array([[3, 7]], np.uint8), palette))
    with pytest.raises(
        DataError, match=r"number 3 has the colour of class 7, and so on: both could"
    ):
        read_labels(tmp_path / "a.png", CODE)


@pytest.mark.parametrize("palette", ["grey", "unknown"])
def test_a_palette_that_says_nothing_leaves_the_numbers(tmp_path, palette):
    labels = tiny.some_labels("numbers", 21)
    ramp = np.arange(256)[:, None].repeat(3, 1)
    colours = ramp if palette == "grey" else (ramp * [7, 5, 3] + 1) % 256
    tiny.save(tmp_path / "a.png", tiny.with_palette(labels, colours))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", CODE), labels)


def test_numbers_stored_three_times(tmp_path):
    labels = tiny.some_labels("thrice", 21)
    labels[0] = 1  # no colour of VOC's is (1, 1, 1)
    tiny.save(tmp_path / "a.png", labels[..., None].repeat(3, 2))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", CODE), labels)


def test_one_bit(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png", CODE).tolist() == [[1, 0]]


def test_sixteen_bits(tmp_path):
    Image.fromarray(np.array([[0, 20, 255]], np.uint16)).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png", CODE).tolist() == [[0, 20, 255]]
    Image.fromarray(np.array([[0, 20, 300]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"labels 0..20 or 255 in .*; got 300 in 1 of 3 pixels"):
        read_labels(tmp_path / "a.png", CODE)


def refused(tmp_path, pixels, text, code=CODE, **options):
    tiny.save(tmp_path / "a.png", pixels, **options)
    with pytest.raises(DataError, match=text):
        read_labels(tmp_path / "a.png", code)


def test_label_files_that_are_refused(tmp_path):
    refused(
        tmp_path,
        np.array([[0, 21], [22, 21]], np.uint8),
        r"labels 0..20 or 255 in .*a.png; got 21, 22 in 3 of 4 pixels. Check that",
    )
    refused(
        tmp_path,
        np.array([[[0, 0, 0], [1, 2, 3]]], np.uint8),
        r"the 22 colours of the data set's classes in .*; got 1 other in 1 of 2 pixels, the first "
        r"of them red 1, green 2, blue 3 in row 0, column 1. Check",
    )
    refused(
        tmp_path,
        tiny.noise("jpeg"),
        r"got \d+ others in \d+ of 192 pixels.* So many shades come from JPEG, or from resizing",
    )
    refused(
        tmp_path,
        Image.fromarray(tiny.in_colours(np.array([[15, 5, 7]], np.uint8), VOC.palette)).convert(
            "L"
        ),
        r"got 53, 128, 147 in 3 of 3 pixels. These look like a colour map that was saved in grey",
    )
    refused(
        tmp_path,
        np.array([[[9, 8, 7]]], np.uint8),
        r"is a colour map, and the colours of its classes are not known. Write one class a line",
        code=plain_code(())._replace(numbers={0: 0}),
    )
    tiny.save(tmp_path / "c.jpg", Image.new("CMYK", (4, 4)))
    with pytest.raises(DataError, match=r"is an image of mode CMYK. Save it as an 8-bit PNG"):
        read_labels(tmp_path / "c.jpg", CODE)


def test_sizes_that_differ_are_named(tmp_path):
    tiny.write_kitti(tmp_path)
    tiny.save(tmp_path / "Training_00" / "RGB" / "000010.png", tiny.noise("x", (9, 16)))
    dataset = open_dataset("kitti", tmp_path, "train")
    dataset.labels(0)
    with pytest.raises(
        DataError,
        match=r"RGB.000010.png has 9 x 16 pixels \(height x width\) and .*GT.000010.png 12 x 16",
    ):
        dataset.labels(1)


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_images_are_turned_upright(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = tiny.noise("turned", (4, 6))
    tiny.save(tmp_path / name, pixels, exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / name), np.rot90(pixels, k=-1))
    assert image_size(tmp_path / name) == (6, 4)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            b"<html>not found</html>",
            "expected an image; got .*a.png, which is none that Pillow knows",
        ),
        (b"", "expected an image; got .*a.png, which is none that Pillow knows"),
        (None, "expected a whole image; .*a.png cannot be read"),
    ],
)
def test_broken_images(tmp_path, content, text):
    path = tmp_path / "a.png"
    tiny.save(path, tiny.noise("broken", (40, 40)))
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    for read in (read_image, lambda path: read_labels(path, CODE)):
        with pytest.raises(DataError, match=text):
            read(path)
    with pytest.raises(DataError, match=r"expected an image at .*b.png; there is no such file"):
        read_image(tmp_path / "b.png")


def test_what_is_wrong_is_said_once(tmp_path):
    """A sentence about the pixels is not taken for what Pillow says of a broken file."""
    tiny.save(tmp_path / "a.png", np.full((2, 2), 77, np.uint8))
    with pytest.raises(DataError, match=r"^expected labels .* counted from 0\.$"):
        read_labels(tmp_path / "a.png", CODE)
    with pytest.raises(DataError, match=r"^expected an image file; .* is a folder\. Name a file"):
        read_image(tmp_path)


def test_images_of_other_modes_look_as_they_do_to_predict(tmp_path):
    """16-bit grey was cut off at 255, and what is transparent was black."""
    deep, clear = np.uint16([[0, 257 * 100, 65535]]), np.uint8([[[9, 8, 7, 255], [9, 8, 7, 0]]])
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "deep.png")[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]
    assert read_image(tmp_path / "clear.png")[0].tolist() == [[9, 8, 7], [255] * 3]


@pytest.mark.parametrize(
    ("numbers", "levels"), [([0, 100, 255], [0, 100, 255]), ([0, 257 * 100, 65535], [0, 100, 255])]
)
def test_whole_numbers_of_32_bits_are_of_8_or_16(tmp_path, numbers, levels):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.int32([numbers])).save(path)
    assert read_image(path)[0, :, 0].tolist() == levels
    Image.fromarray(np.int32([[0, 200_000]])).save(path)
    with pytest.raises(DataError, match="from 0 to 200000, which is neither 8 nor 16 bits"):
        read_image(path)


def test_a_bug_of_ours_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    tiny.save(tmp_path / "a.png", np.zeros((2, 2), np.uint8))

    def broken(*arguments):
        raise IndexError("ours")

    monkeypatch.setattr(pixels, "number_labels", broken)
    with pytest.raises(IndexError, match="ours"):
        read_labels(tmp_path / "a.png", CODE)


def test_an_image_that_claims_to_be_huge(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    tiny.save(tmp_path / "a.png", np.zeros((11, 11), np.uint8))
    with pytest.raises(DataError, match=r"at most 100 pixels; .*a.png claims more"):
        read_image(tmp_path / "a.png")


# ---- layouts ---------------------------------------------------------------------------------

WRITERS = {
    "voc": tiny.write_voc,
    "sbd": tiny.write_sbd,
    "coco": tiny.write_coco,
    "camvid": tiny.write_camvid_raw,
    "kitti": tiny.write_kitti,
    "cityscapes": tiny.write_cityscapes,
    "folder": tiny.write_folder,
}


def test_every_kind_is_tested():
    assert set(WRITERS) == set(KINDS)


def test_every_place_that_was_looked_at_is_told(tmp_path):
    text = r"expected \S+.cls or \S+dataset.cls or \S+benchmark_RELEASE.dataset.cls; there is none"
    with pytest.raises(DataError, match=text):
        open_dataset("sbd", tmp_path, "train")


@pytest.mark.parametrize("kind", WRITERS)
def test_an_empty_folder_says_what_to_download(tmp_path, kind):
    split = KINDS[kind].splits[0]
    with pytest.raises(DataError, match=r"there is none\. (Download|Either|A plain|Register)"):
        open_dataset(kind, tmp_path, split)
    with pytest.raises(DataError, match=r"expected a folder at .*nowhere; there is none"):
        open_dataset(kind, tmp_path / "nowhere", split)


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", WRITERS)
def test_any_file_that_is_missing_is_named(tmp_path, kind):
    """Take away one file after the other: opening names it, or does not need it."""
    WRITERS[kind](tmp_path)
    split = KINDS[kind].splits[0]
    used = files_below(tmp_path)
    noticed = 0
    for path in used:
        content = path.read_bytes()
        path.unlink()
        said = ""
        try:
            open_dataset(kind, tmp_path, split)
        except DataError as error:
            said = str(error)
        assert not said or path.stem in said or f"images in {path.parent}" in said
        noticed += bool(said)
        path.write_bytes(content)
    members = open_dataset(kind, tmp_path, split).members
    # The images and labels of this split, and the lists; a folder's own list was not asked for.
    assert noticed >= (len(members) + 1 if kind == "coco" else 2 * len(members))


@pytest.mark.parametrize(
    ("kind", "split", "folder", "text"),
    [
        (
            "kitti",
            "train",
            "Training_00/RGB",
            "expected images in .*RGB; got none. Download the KITTI",
        ),
        ("cityscapes", "val", "leftImg8bit/val/lindau", "images such as .*; got none. Register"),
        ("cityscapes", "val", "leftImg8bit/val", "images such as .*; got none. Register"),
        ("camvid", "val", "701_StillsRaw_full", "images in .*StillsRaw_full; got none. Either"),
        ("folder", "all", "images", "images in .*images; got none. A plain folder holds"),
    ],
)
def test_a_folder_without_images(tmp_path, kind, split, folder, text):
    WRITERS[kind](tmp_path)
    shutil.rmtree(tmp_path / folder)
    (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match=text):
        open_dataset(kind, tmp_path, split)


def test_camvid_without_the_frames_of_a_split(tmp_path):
    tiny.write_camvid_raw(tmp_path)
    for path in tmp_path.glob("*/0016E5*"):
        path.unlink()
    with pytest.raises(DataError, match=r"images of the split val in .*, such as 0016E5_07959.png"):
        open_dataset("camvid", tmp_path, "val")


def test_the_number_of_missing_files_is_told(tmp_path):
    tiny.write_voc(tmp_path)
    for path in (tmp_path / "VOCdevkit/VOC2012/SegmentationClass").glob("*.png"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"2007_000032.png; .* \(2 of 2 are missing\). Download VOC"
    ):
        open_dataset("voc", tmp_path, "train")


@pytest.mark.parametrize("kind", WRITERS)
def test_unknown_splits(tmp_path, kind):
    WRITERS[kind](tmp_path)
    error = DataError if kind == "folder" else ConfigError
    with pytest.raises(error, match=r"validation"):
        open_dataset(kind, tmp_path, "validation")


def test_unknown_kind(tmp_path):
    with pytest.raises(ConfigError, match=r"kind of data set: voc, sbd, coco, .*; got 'pascal'"):
        open_dataset("pascal", tmp_path, "train")


def test_names_may_not_lead_out_of_the_folder(tmp_path):
    tiny.write_voc(tmp_path)
    lists = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    for name in ("../../secret", "/etc/passwd"):
        (lists / "train.txt").write_text(f"{name}\n")
        with pytest.raises(DataError, match=r"names of files inside .* in .*train.txt; got "):
            open_dataset("voc", tmp_path, "train")


def test_lists_that_are_refused(tmp_path):
    tiny.write_voc(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"
    path.write_text("\n\n")
    with pytest.raises(DataError, match=r"expected names in .*train.txt; it is empty"):
        open_dataset("voc", tmp_path, "train")
    path.write_bytes(b"\xff\xd8\xff\xe0 a JPEG")
    with pytest.raises(DataError, match=r"one a line; .*train.txt cannot be read: 'utf-8' codec"):
        open_dataset("voc", tmp_path, "train")
    tiny.write_camvid_segnet(tmp_path)
    (tmp_path / "val.txt").write_text("val/a.png\n")
    with pytest.raises(DataError, match=r"two paths, of an image and of its labels, in each line"):
        open_dataset("camvid", tmp_path, "val")


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ("a\nb\na\n", "each class once in .*classes.txt; got 'a' twice"),
        ("mean 1 2 3\na\nb\n", "the mean pixel as the last line of .*; got it as line 1. Move it"),
        (
            "a #00ff00\nb\n",
            "colour as three numbers in .*, such as 'road 128 64 128'; got 'a #00ff",
        ),
        ("a 0,1,2\nb\n", "colour as three numbers in .*; got 'a 0,1,2'"),
        ("a 1 2 3\nb 1 2 3\n", r"a colour for each class in .*; got \(1, 2, 3\) for a and b"),
        ("a 1 2 300\n", "colours of 0 to 255 in .*; got the line 'a 1 2 300'"),
        ("a\nmean 1 2\n", "expected 'mean BLUE GREEN RED' as the last line"),
        ("a\nmean 1 2 x\n", "expected 'mean BLUE GREEN RED' as the last line"),
        ("".join(f"c{k}\n" for k in range(256)), "at most 255 classes in .*; got 256"),
    ],
)
def test_classes_that_are_refused(tmp_path, classes, text):
    tiny.write_folder(tmp_path, classes=classes)
    with pytest.raises(DataError, match=text):
        open_dataset("folder", tmp_path, "all")


def test_lists_of_a_folder_that_are_refused(tmp_path):
    truth = tiny.write_folder(tmp_path)
    first = next(iter(truth))
    (tmp_path / "val.txt").write_text(f"{first}.jpg\n")
    with pytest.raises(
        DataError, match=rf"without endings in .*val\.txt; got '{first}\.jpg'\. Write"
    ):
        open_dataset("folder", tmp_path, "val")
    with pytest.raises(
        DataError, match=r"There are all, .*val\. Did you mean val\? A plain folder"
    ):
        open_dataset("folder", tmp_path, "vla")


# ---- SBD's files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>" * 20, b"MATLAB 5.0 MAT-file" + bytes(109)]
)
def test_broken_mat_files(tmp_path, content):
    tiny.write_sbd(tmp_path)
    path = tmp_path / "benchmark_RELEASE/dataset/cls/2007_000032.mat"
    path.write_bytes(content)
    dataset = open_dataset("sbd", tmp_path, "train")
    with pytest.raises(
        DataError, match=r"MATLAB file of SBD with GTcls.Segmentation; .*000032.mat"
    ):
        dataset.labels(0)


def test_mat_files_cut_anywhere(tmp_path):
    tiny.write_sbd(tmp_path)
    path = tmp_path / "benchmark_RELEASE/dataset/cls/2007_000032.mat"
    whole = path.read_bytes()
    dataset = open_dataset("sbd", tmp_path, "train")
    for stop in range(0, len(whole) - 1, 23):
        path.write_bytes(whole[:stop])
        with pytest.raises(DataError, match=r"000032.mat"):
            dataset._read_labels(0)


def test_a_mat_file_of_something_else(tmp_path):
    from scipy.io import savemat

    tiny.write_sbd(tmp_path)
    path = tmp_path / "benchmark_RELEASE/dataset/cls/2007_000032.mat"
    for content in ({"other": 1}, {"GTcls": np.eye(3)}, {"GTcls": {"Segmentation": "text"}}):
        savemat(path, content)
        with pytest.raises(DataError, match=r"000032.mat is none"):
            open_dataset("sbd", tmp_path, "train").labels(0)
    savemat(path, {"GTcls": {"Segmentation": np.full(tiny.SIZE, 33, np.uint8)}})
    with pytest.raises(DataError, match=r"labels 0..20 or 255 in .*000032.mat; got 33"):
        open_dataset("sbd", tmp_path, "train").labels(0)


# ---- masks -----------------------------------------------------------------------------------


@given(
    corners=st.lists(st.tuples(st.integers(-4, 24), st.integers(-4, 20)), min_size=3, max_size=9)
)
def test_polygons_against_testing_each_pixel(corners):
    """The even-odd rule, one pixel centre at a time; corners lie off the centres, so no ties."""
    points = np.add(corners, [0.3, 0.2])
    mask = polygon_mask(points.ravel(), (12, 16))
    for row in range(12):
        for column in range(16):
            x, y = column + 0.5, row + 0.5
            inside = False
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
                if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
                    inside = not inside
            assert mask[row, column] == inside, (row, column)


def test_rectangles_cover_whole_pixels():
    mask = object_mask(tiny.rectangle(1, 2, 4, 7), (6, 9))
    expected = np.zeros((6, 9), bool)
    expected[1:4, 2:7] = True
    np.testing.assert_array_equal(mask, expected)
    beyond = object_mask(tiny.rectangle(-5, -5, 50, 3), (6, 9))
    assert beyond[:, :3].all()
    assert not object_mask([], (6, 9)).any()


def test_an_object_in_two_pieces_is_their_union():
    both = tiny.rectangle(0, 0, 3, 3) + tiny.rectangle(1, 1, 5, 5)
    expected = np.zeros((6, 6), bool)
    expected[:3, :3] = expected[1:5, 1:5] = True
    np.testing.assert_array_equal(object_mask(both, (6, 6)), expected)


@given(bits=st.lists(st.booleans(), min_size=1, max_size=60), width=st.integers(1, 5))
def test_run_lengths_come_back(bits, width):
    bits = bits[: len(bits) // width * width] or [True] * width
    mask = np.array(bits).reshape(-1, width)
    counts = tiny.run_lengths(mask)
    np.testing.assert_array_equal(run_length_mask(counts, mask.shape), mask)
    compressed = {"size": list(mask.shape), "counts": tiny.compress_counts(counts)}
    np.testing.assert_array_equal(object_mask(compressed, mask.shape), mask)


@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=12))
def test_compressed_run_lengths_come_back(counts):
    assert expand_counts(tiny.compress_counts(counts)) == counts


def test_compressed_run_lengths_by_hand():
    # 6, 1, 40, 4: 40 = 8 + 32 * 1 takes two letters, 8 with 32 added, then 1; 4 - 1 = 3.
    assert expand_counts("61X13") == [6, 1, 40, 4]
    assert expand_counts("999M") == [9, 9, 9, 6]  # 6 - 9 = -3: 29 = 16 + 13 -> chr(48 + 29) = "M"


@pytest.mark.parametrize(
    ("segmentation", "text"),
    [
        ({"size": [3, 2], "counts": [1, 2]}, r"run lengths that do not add up to the 3 x 2"),
        ({"size": [3, 2], "counts": [7, -1]}, r"run lengths that do not add up"),
        (
            {"size": [3, 2], "counts": [2**62, 2**62, 2**62, 2**62, 6]},
            r"do not add up",
        ),  # 2**64 + 6
        ({"size": [2, 3], "counts": [6]}, r"size \[2, 3\] in an image of \[3, 2\]"),
        ({"size": [3, 2], "counts": "\x7f"}, r"run lengths with the letter '\\x7f'"),
        ({"size": [3, 2], "counts": "o" * 9}, r"with a number too large"),
        ({"size": [3, 2], "counts": "o"}, r"that end within a number"),
        ([[1, 2, 3]], r"a polygon that is no list of x, y"),
        ([[1, 2, 3, float("nan")]], r"a polygon that is no list of x, y"),
    ],
)
def test_masks_that_are_refused(segmentation, text):
    with pytest.raises(ValueError, match=text):
        object_mask(segmentation, (3, 2))


def test_broken_masks_name_object_and_file(tmp_path):
    tiny.write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2014.json"
    for wrong in (
        '"counts": "?"',
        '"count": 1',
        '"counts": {}',
        '"counts": [1e99, 10000000000000000000000]',
    ):
        content = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(content)
        counts = json.dumps(content["annotations"][3]["segmentation"]["counts"])
        broken = tmp_path / "broken.json"
        broken.write_text(text.replace(f'"counts": {counts}', wrong))
        with pytest.raises(DataError, match=r"run lengths of object 4 in .*broken.json; got some"):
            read_instances(broken).labels(9)


# ---- JSON in pieces --------------------------------------------------------------------------


def entries(path, text):
    path.write_text(text, encoding="utf-8")
    return list(json_entries(path))


def test_entries_and_where_they_stand(tmp_path):
    path = tmp_path / "a.json"
    text = (
        ' {"über": 3, "a" : [1, {"b": [2, "ü]"]} ,"x"],\n"c": [], "d": {"e": [1]}, "f": [-2.5e3]} '
    )
    found = entries(path, text)
    assert [entry.array for entry in found] == ["a", "a", "a", "f"]
    values = [read_span(path, entry.start, entry.stop) for entry in found]
    assert values == [1, {"b": [2, "ü]"]}, "x", -2500]


TEXTS = st.text(alphabet='aü"\\]},', max_size=4)


@given(
    arrays=st.dictionaries(
        TEXTS, st.lists(st.one_of(st.integers(), TEXTS, st.lists(st.just(0.5)))), max_size=3
    ),
    chunk=st.integers(1, 40),
)
def test_any_window_gives_the_same_entries(tmp_path_factory, arrays, chunk):
    from tinydilate.data import json_arrays

    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(arrays, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "_CHUNK", chunk)
        found = [read_span(path, entry.start, entry.stop) for entry in json_entries(path)]
    assert found == [value for values in arrays.values() for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at byte 0 it should have '{', found its end"),
        ("<html>", "at byte 0 it should have '{', found '<'"),
        ('{"a": [1, 2', "at byte 11 it should have ',', found its end"),
        ('{"a": [1, {"b": 2', "at byte 10 it should have an entry, found"),
        ('{"a": [1 2]}', "at byte 9 it should have ',', found '2'"),
        ('{"a" [1]}', r"at byte 5 it should have ':', found '\['"),
        ('{"a": [1]', "it should have ',', found its end"),
        ('{"a": [' + "[" * 100_000, "brackets nested too deeply|an entry, found"),
    ],
)
def test_broken_json(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        entries(tmp_path / "a.json", text)


def test_an_entry_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    from tinydilate.data import json_arrays

    monkeypatch.setattr(json_arrays, "_LARGEST", 1000)
    monkeypatch.setattr(json_arrays, "_CHUNK", 100)
    with pytest.raises(DataError, match=r"entries of at most 1,000 bytes, found a longer one"):
        entries(tmp_path / "a.json", '{"a": ["' + "x" * 10_000 + '"]}')


def test_a_list_that_has_changed_since(tmp_path):
    tiny.write_coco(tmp_path)
    dataset = open_dataset("coco", tmp_path, "train")
    path = tmp_path / "annotations" / "instances_train2014.json"
    content = path.read_text(encoding="utf-8")
    path.write_text("x" + content, encoding="utf-8")
    with pytest.raises(DataError, match=r"as it was when the data set was opened; it has changed"):
        dataset.labels(0)
    path.write_text("7" + " " * len(content) * 2, encoding="utf-8")
    with pytest.raises(DataError, match=r"was opened; it has changed"):
        dataset.labels(0)
    start = dataset.members[0].decode.args  # the image's number; its first object starts here
    first = int(dataset.members[0].decode.func.__self__.spans[start[0]][0, 0])
    path.write_bytes(b" " * first + b"7" + b" " * 10_000)
    with pytest.raises(DataError, match=rf"byte {first:,} holds something else now. Open the data"):
        dataset.labels(0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"categories": []}, r"got 4 images, 8 annotations and 0 categories of VOC's. Take inst"),
        (
            {"annotations": [{"id": 1}]},
            r"entry 'annotations' at byte [\d,]+ of .* lacks 'image_id'",
        ),
        ({"images": [7]}, r"entry 'images' at byte [\d,]+ of .* lacks"),
        (
            {"images": [{"id": 1, "file_name": "a", "height": 10**6, "width": 10**6}]},
            r"lacks a sensible size \(1000000 x 1000000\)",
        ),
        (
            {"images": [{"id": 1, "file_name": "a", "height": 4, "width": 4}]},
            r"expected an image 9 in .*, for it has objects; there is none",
        ),
    ],
)
def test_lists_of_coco_that_are_refused(tmp_path, change, text):
    tiny.write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=text):
        open_dataset("coco", tmp_path, "train")


def test_outlines_are_not_kept(tmp_path):
    """Of each object three numbers are kept, whatever its outline takes."""
    tiny.write_coco(tmp_path)
    instances = read_instances(Path(tmp_path) / "annotations" / "instances_train2014.json")
    assert sum(spans.size for spans in instances.spans.values()) == 3 * 5


# ---- damage ----------------------------------------------------------------------------------


def damaged(content, place, byte, cut):
    """One byte changed, and perhaps the end cut off."""
    place = int(place * (len(content) - 1))
    changed = content[:place] + bytes([byte]) + content[place + 1 :]
    return changed[: int(cut * len(changed))] if cut < 0.5 else changed


@pytest.fixture(scope="module")
def a_data_set_of_each_kind(tmp_path_factory):
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in WRITERS}
    for kind, folder in folders.items():
        WRITERS[kind](folder)
    return folders


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's and SciPy's, about the damage
@given(
    kind=st.sampled_from(sorted(WRITERS)),
    which=st.integers(0, 10**6),
    place=st.floats(0, 1),
    byte=st.integers(0, 255),
    cut=st.floats(0, 1),
)
@settings(max_examples=60)
def test_damaged_files_are_read_or_refused(a_data_set_of_each_kind, kind, which, place, byte, cut):
    """Any one file of a data set is damaged; nothing else than our errors may come out."""
    files = files_below(a_data_set_of_each_kind[kind])
    path = files[which % len(files)]
    content = path.read_bytes()
    path.write_bytes(damaged(content, place, byte, cut))
    try:
        dataset = open_dataset(kind, a_data_set_of_each_kind[kind], KINDS[kind].splits[0])
        for i in range(len(dataset)):
            assert dataset.image(i).ndim == 3
            assert set(np.unique(dataset.labels(i))) <= {*range(len(dataset.classes.names)), IGNORE}
    except (DataError, ConfigError):
        pass
    finally:
        path.write_bytes(content)
