"""Crops against padding the whole image first; determinism; and the 3.5 pixels."""

import os

import numpy as np
import pytest
import tiny_datasets as tiny
from hypothesis import given
from hypothesis import strategies as st

from tinydilate.classes import IGNORE, VOC
from tinydilate.data.crops import (
    Crop,
    bgr_minus_mean,
    cut,
    draw,
    draw_step,
    draw_steps,
    feature_labels,
    reflect,
)
from tinydilate.data.labelled import LabelledImages, Member
from tinydilate.errors import ConfigError, DataError, ShapeError

NONE = (0.0, 0.0, 0.0)


def member(tmp_path, name, size):
    tiny.save(tmp_path / f"{name}.png", tiny.noise(name, size))
    rows, columns = np.indices(size)
    labels = ((3 * rows + columns) % 21).astype(np.uint8)
    return Member(name, tmp_path / f"{name}.png", tmp_path, lambda: labels)


@pytest.fixture
def dataset(tmp_path):
    sizes = {"wide": (40, 60), "high": (70, 30), "small": (9, 11)}
    return LabelledImages(VOC, [member(tmp_path, n, s) for n, s in sizes.items()])


# ---- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "outputs"), [(500, 16), (628, 32), (852, 60), (884, 64), (900, 66), (1396, 128)]
)
def test_the_papers_crops(size, outputs):
    assert Crop((size, size)).outputs == (outputs, outputs)


@pytest.mark.parametrize("crop", [Crop((500, 501)), Crop((372, 500)), Crop((5, 5)), Crop(stride=0)])
def test_sizes_that_are_refused(crop):
    with pytest.raises(ShapeError, match=r"expected a crop of 372 \+ a multiple of [80] pixels"):
        _ = crop.outputs


# ---- one crop against the original's way -----------------------------------------------------


def the_original_way(image, labels, start, crop, flip):
    """Pad everything, then cut, then mirror, then sample, as ImageLabelDataLayer does."""
    border = crop.border
    image = np.pad(image, ((border, border), (border, border), (0, 0)), mode="reflect")
    labels = np.pad(labels, border, constant_values=IGNORE)
    spare = [max(0, c - n) for c, n in zip(crop.size, labels.shape, strict=True)]
    around = [(s // 2, s - s // 2) for s in spare]
    image = np.pad(image, (*around, (0, 0)), mode="reflect")
    labels = np.pad(labels, around, constant_values=IGNORE)
    window = tuple(slice(s, s + c) for s, c in zip(start, crop.size, strict=True))
    image, labels = image[window], labels[window]
    if flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    rows, columns = (border + crop.stride * np.arange(n) for n in crop.outputs)
    return image[..., ::-1].transpose(2, 0, 1), labels[np.ix_(rows, columns)]


@given(
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    border=st.integers(0, 9),
    stride=st.integers(1, 8),
    outputs=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    flip=st.booleans(),
)
def test_against_padding_the_whole_image(height, width, border, stride, outputs, place, flip):
    size = tuple(2 * border + stride * n for n in outputs)
    crop = Crop(size, border, stride)
    image = tiny.noise("crop", (height, width))
    labels = tiny.noise("labels", (height, width), 1)[..., 0]
    rooms = [max(0, n + 2 * border - c) for n, c in zip((height, width), size, strict=True)]
    start = tuple(round(p * room) for p, room in zip(place, rooms, strict=True))
    found, sampled = cut(image, labels, start, crop, flip, NONE)
    expected, expected_labels = the_original_way(image, labels, start, crop, flip)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(sampled, expected_labels)
    assert (found.dtype, sampled.dtype) == (np.float32, np.int64)


def test_the_true_numbers():
    """500 x 375, VOC's usual size: label j is that of image pixel start + 8j."""
    image, labels = tiny.noise("voc", (375, 500)), tiny.noise("l", (375, 500), 1)[..., 0]
    found, sampled = cut(image, labels, (100, 37), Crop(), False, VOC.mean)
    assert (found.shape, sampled.shape) == ((3, 500, 500), (16, 16))
    np.testing.assert_array_equal(sampled, labels[100 : 100 + 128 : 8, 37 : 37 + 128 : 8])
    blue = image[100, 37, 2] - np.float32(VOC.mean[0])  # the file's third channel is blue
    assert found[0, 186, 186] == pytest.approx(blue)


def test_labels_beyond_the_image_do_not_count():
    """KITTI's joint crop: 900 x 900 around 370 rows leaves 158 rows of 528 without labels."""
    image, labels = np.zeros((370, 1226, 3), np.uint8), np.zeros((370, 1226), np.uint8)
    _, sampled = cut(image, labels, (0, 0), Crop((900, 900), stride=1), False, NONE)
    assert sampled.shape == (528, 528)
    outside = (sampled == IGNORE).all(axis=1)
    assert (outside.sum(), outside[:79].sum(), outside[-79:].sum()) == (158, 79, 79)


@pytest.mark.oracle
def test_the_border_is_opencvs(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))  # importing OpenCV writes there
    cv2 = pytest.importorskip("cv2")

    image = tiny.noise("border", (20, 31))
    labels = np.zeros((20, 31), np.uint8)
    found, _ = cut(image, labels, (0, 0), Crop((60, 71), 20, 1), False, NONE)
    expected = cv2.copyMakeBorder(image, 20, 20, 20, 20, cv2.BORDER_REFLECT_101)
    np.testing.assert_array_equal(found, expected[..., ::-1].transpose(2, 0, 1))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_reflection_by_walking(length):
    """Walk back and forth over the pixels."""
    walk = [*range(length), *range(length - 2, 0, -1)] or [0]
    places = np.arange(-25, 26)
    assert reflect(places, length).tolist() == [walk[p % len(walk)] for p in places]


def test_blue_green_red_minus_mean():
    image = np.array([[[200, 100, 50]]], np.uint8)
    found = bgr_minus_mean(image.repeat(4, 0).repeat(5, 1), (1.0, 2.0, 3.0))
    assert found[:, 3, 4].tolist() == [49, 98, 197]
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((3, 4, 5), np.float32, True)


# ---- chance ----------------------------------------------------------------------------------

SMALL = Crop((36, 36), border=10, stride=8)


def test_shapes_and_types(dataset):
    batch = draw(dataset, [0, 1, 2, 0], SMALL, np.random.default_rng(0))
    assert (batch.images.shape, batch.images.dtype) == ((4, 3, 36, 36), np.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((4, 2, 2), np.int64)


def test_every_place_is_drawn_and_half_are_mirrored(dataset):
    crop = Crop((60, 76), border=10, stride=8)  # 1 x 5 places in 60 x 80
    image, labels = dataset.image(0), dataset.labels(0)
    possible = {
        (start, flip): cut(image, labels, (0, start), crop, flip, VOC.mean)[0].tobytes()
        for start in range(5)
        for flip in (False, True)
    }
    batch = draw(dataset, [0] * 300, crop, np.random.default_rng(0))
    drawn = [image.tobytes() for image in batch.images]
    counts = {key: drawn.count(content) for key, content in possible.items()}
    assert sum(counts.values()) == 300
    assert min(counts.values()) > 15
    mirrored = sum(count for (_, flip), count in counts.items() if flip)
    assert 120 < mirrored < 180


def test_without_mirror_and_chance(dataset):
    crop = SMALL._replace(mirror=False, centre=True)
    batch = draw(dataset, [0], crop, np.random.default_rng(5))
    # 60 x 80 with its border: the middle begins at 12 and 22.
    image, labels = cut(dataset.image(0), dataset.labels(0), (12, 22), SMALL, False, VOC.mean)
    np.testing.assert_array_equal(batch.images[0], image)
    np.testing.assert_array_equal(batch.labels[0], labels)


def test_another_mean(dataset):
    crop = SMALL._replace(mirror=False, centre=True)
    rng = np.random.default_rng(0)
    found = (
        draw(dataset, [0], crop, rng, mean=(1, 2, 3)).images - draw(dataset, [0], crop, rng).images
    )
    expected = np.array(VOC.mean, np.float32) - [1, 2, 3]
    np.testing.assert_allclose(
        found[0], np.broadcast_to(expected[:, None, None], (3, 36, 36)), atol=1e-4
    )


def test_a_step_is_a_function_of_its_arguments(dataset):
    first = draw_step(dataset, SMALL, seed=3, stage=1, step=7, batch=2)
    again = draw_step(dataset, SMALL, seed=3, stage=1, step=7, batch=2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for other in ({"seed": 4}, {"stage": 2}, {"step": 8}):
        differs = draw_step(dataset, SMALL, **({"seed": 3, "stage": 1, "step": 7} | other), batch=2)
        assert (differs.images != first.images).any()


def test_batches_in_parts_hold_the_same_crops(dataset):
    whole = draw_step(dataset, SMALL, seed=0, stage=0, step=1, batch=4)
    parts = [draw_step(dataset, SMALL, seed=0, stage=0, step=step, batch=2) for step in (2, 3)]
    np.testing.assert_array_equal(whole.images, np.concatenate([part.images for part in parts]))
    np.testing.assert_array_equal(whole.labels, np.concatenate([part.labels for part in parts]))


def test_an_epoch_sees_each_image_once(dataset):
    crop = Crop((30, 30), border=11, stride=8, mirror=False, centre=True)
    middles = {
        draw(dataset, [i], crop, np.random.default_rng(0)).images.tobytes() for i in range(3)
    }
    epoch = draw_step(dataset, crop, seed=0, stage=0, step=0, batch=3)
    assert {image[None].tobytes() for image in epoch.images} == middles


def test_steps_ahead_are_the_same_steps(dataset):
    steps = range(4, 9)
    for step, batch in zip(steps, draw_steps(dataset, SMALL, 0, 0, steps, 2), strict=True):
        expected = draw_step(dataset, SMALL, 0, 0, step, 2)
        np.testing.assert_array_equal(batch.images, expected.images)
    assert list(draw_steps(dataset, SMALL, 0, 0, range(3, 3), 2)) == []


def test_an_error_in_the_thread_arrives(dataset):
    with pytest.raises(ShapeError, match="expected a crop"):
        next(draw_steps(dataset, Crop((5, 5)), 0, 0, range(3), 2))


def test_stopping_early_leaves_no_thread(dataset):
    import threading

    before = threading.active_count()
    steps = draw_steps(dataset, SMALL, 0, 0, range(100), 2)
    next(steps)
    steps.close()
    assert threading.active_count() == before


def test_random_scale(tmp_path):
    """A picture of three stripes stays one, and its labels stay classes."""
    image = np.zeros((60, 60, 3), np.uint8)
    labels = np.zeros((60, 60), np.uint8)
    image[20:40], labels[20:40] = 255, 7
    tiny.save(tmp_path / "a.png", image)
    dataset = LabelledImages(VOC, [Member("a", tmp_path / "a.png", tmp_path, lambda: labels)])
    crop = Crop((160, 160), border=0, stride=1, scale=(0.5, 2), mirror=False, centre=True)
    batch = draw(dataset, [0] * 20, crop, np.random.default_rng(0), mean=NONE)
    heights = {int((labels == 7).any(axis=1).sum()) for labels in batch.labels}
    assert heights <= set(range(10, 41))
    assert len(heights) > 8
    assert set(np.unique(batch.labels)) == {0, 7, 255}
    for pixels, labels in zip(batch.images, batch.labels, strict=True):
        inside = pixels[0][labels == 7]
        assert inside.mean() > 220  # but for the smoothed edges
    with pytest.raises(ConfigError, match=r"0 < smallest <= largest <= 16; got \(2, 1\)"):
        draw(dataset, [0], crop._replace(scale=(2, 1)), np.random.default_rng(0))


def test_a_split_without_labels_cannot_be_trained_on(tmp_path):
    tiny.write_voc(tmp_path)
    from tinydilate.data import open_dataset

    with pytest.raises(DataError, match="expected labels for 2008_000006"):
        draw_step(open_dataset("voc", tmp_path, "test"), SMALL, 0, 0, 0, 1)


# ---- stored features -------------------------------------------------------------------------


def test_labels_of_stored_features():
    labels = np.arange(20 * 20, dtype=np.uint16).reshape(20, 20) % 251
    found = feature_labels(labels.astype(np.uint8), (4, 2))
    assert found.shape == (4, 2)
    np.testing.assert_array_equal(found[:3], labels[::8, ::8][:, :2])
    assert (found[3] == IGNORE).all()  # row 24 lies beyond the image


def test_the_label_keeps_its_place_in_the_field_when_mirrored():
    """Trap 2: the centre of cell j's field lies 3.5 pixels to the right of its label, mirrored too.

    The features are a picture of the columns themselves: cell j, whose field is centred on 8j + 3.5
    of the image that the network saw, says which column of the original that is.
    """
    width = 64
    columns = np.tile(np.arange(width, dtype=np.uint8), (8, 1))  # the label is the column
    centres = 8 * np.arange(8) + 3.5
    plain = feature_labels(columns, (1, 8))[0]
    np.testing.assert_array_equal(plain - centres, -3.5)
    seen = width - 1 - centres  # column of the original below the centre of the mirrored field
    mirrored = feature_labels(columns, (1, 8), mirrored=True)[0]
    to_the_left = (width - 1 - mirrored) - (width - 1 - seen)  # measured in the mirrored image
    np.testing.assert_array_equal(to_the_left, -3.5)
    # The original's way, stored features and sampled labels turned round: +3.5.
    np.testing.assert_array_equal((width - 1 - plain[::-1]) - (width - 1 - centres[::-1]), 3.5)
