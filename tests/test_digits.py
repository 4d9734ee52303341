"""The handwriting, its splits, and the scenes made of it."""

import hashlib
import runpy
from importlib.resources import files
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from tinydilate.data import digits
from tinydilate.data.digits import (
    BACKGROUND,
    CLASSES,
    IGNORE,
    IGNORE_COLOUR,
    PALETTE,
    SPLITS,
    enlarging,
    grey,
    handwriting,
    scenes,
    split_members,
)
from tinydilate.errors import DataError, ShapeError

# ---------------------------------------------------------------------------- the handwriting


def test_handwriting_is_the_published_one():
    ink, shows = handwriting()
    assert ink.shape == (1797, 8, 8)
    assert ink.dtype == np.float32
    assert ink.min() == 0
    assert ink.max() == 1
    # The class counts that UCI and scikit-learn state, and a checksum of every pixel.
    assert np.bincount(shows).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pixels = (ink * 16).astype(np.uint8).tobytes() + shows.tobytes()
    assert (
        hashlib.sha256(pixels).hexdigest()
        == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    )


def test_the_file_is_small():
    assert len(files("tinydilate.data").joinpath("digits.npz").read_bytes()) < 100_000


def test_the_shared_arrays_cannot_be_written_to():
    ink, shows = handwriting()
    for array in (ink, shows, split_members("train"), enlarging(8, 24)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_script_writes_the_same_bytes_twice(tmp_path):
    script = Path(__file__).parent.parent / "scripts" / "make_digits.py"
    archive = runpy.run_path(str(script))["archive"]
    arrays = {"images": np.arange(128, dtype=np.uint8).reshape(2, 8, 8)}
    assert archive(arrays) == archive(arrays)
    (tmp_path / "a.npz").write_bytes(archive(arrays))
    with ZipFile(tmp_path / "a.npz") as members:  # whose times tell two seconds apart
        assert {member.date_time for member in members.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["images"], arrays["images"])


# ---------------------------------------------------------------------------- the splits


def test_splits_share_no_image_and_leave_none_out():
    sizes = {split: len(split_members(split)) for split in SPLITS}
    assert sizes == {"train": 1193, "validation": 318, "test": 286}
    together = np.concatenate([split_members(split) for split in SPLITS])
    assert sorted(together) == list(range(1797))


def test_splits_share_no_identical_pixels():
    ink, _ = handwriting()
    seen = [{ink[i].tobytes() for i in split_members(split)} for split in SPLITS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


@pytest.mark.parametrize("split", SPLITS)
def test_every_digit_is_in_every_split(split):
    _, shows = handwriting()
    assert np.bincount(shows[split_members(split)], minlength=10).min() >= 15


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_draws_from_its_own_split_alone(split, monkeypatch):
    ink, _ = handwriting()
    owner = np.empty(len(ink), dtype=np.uint8)  # "shows" now says whose image it is
    for s, name in enumerate(SPLITS):
        owner[split_members(name)] = s
    monkeypatch.setattr(digits, "handwriting", lambda: (ink, owner))
    _, labels = scenes(split, 40)
    assert set(np.unique(labels)) == {SPLITS.index(split), BACKGROUND, IGNORE}


# ---------------------------------------------------------------------------- enlarging


def test_enlarging_to_the_same_size_changes_nothing():
    np.testing.assert_array_equal(enlarging(8, 8), np.eye(8))


@pytest.mark.parametrize("target", [13, 24, 27, 30])
def test_cubic_interpolation_reproduces_a_parabola(target):
    matrix = enlarging(8, target).astype(np.float64)
    at = (np.arange(target) + 0.5) * 8 / target - 0.5
    inside = (at >= 1) & (at <= 6)  # all four taps exist
    x = np.arange(8.0)
    np.testing.assert_allclose((matrix @ x**2)[inside], at[inside] ** 2, atol=1e-5)


def test_a_digit_is_taller_than_the_front_ends_window():
    # The docstring's claim, on the smallest scale: 97 in 100 do not fit into 22 pixels.
    ink, _ = handwriting()
    blow_up = enlarging(8, 24)
    inked = ((blow_up @ ink @ blow_up.T) > 0.55).any(axis=2)  # (1797, 24): rows with stroke
    top = inked.argmax(axis=1)
    bottom = 23 - inked[:, ::-1].argmax(axis=1)
    assert np.mean(bottom - top + 1 > 22) > 0.965


# ---------------------------------------------------------------------------- the scenes


def test_shapes_types_and_labels():
    images, labels = scenes("train", 30, seed=3)
    assert images.shape == (30, 1, 64, 64)
    assert images.dtype == np.float32
    assert labels.shape == (30, 64, 64)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {*range(len(CLASSES)), IGNORE}
    assert CLASSES[BACKGROUND] == "background"


def test_about_zero_mean_and_unit_variance():
    images, _ = scenes("train", 200)
    assert abs(images.mean()) < 0.1
    assert 0.9 < images.std() < 1.1
    levels = grey(images)
    assert levels.dtype == np.float32
    assert levels.min() >= 0
    assert levels.max() <= 1


def test_strokes_are_brighter_than_the_ground_and_the_rim_lies_between():
    images, labels = scenes("test", 50)
    levels = grey(images)[:, 0]
    ground = levels[labels == BACKGROUND].mean()
    rim = levels[labels == IGNORE].mean()
    stroke = levels[labels < 10].mean()
    assert ground + 0.1 < rim < stroke - 0.1


def test_most_is_background_and_some_is_ignored():
    _, labels = scenes("train", 100)
    assert 0.65 < np.mean(labels == BACKGROUND) < 0.85
    assert 0.02 < np.mean(labels == IGNORE) < 0.08


def test_scene_k_depends_on_split_seed_and_k_alone():
    images, labels = scenes("train", 6, seed=5)
    again, labels_again = scenes("train", 2, seed=5, first=3)
    np.testing.assert_array_equal(again, images[3:5])
    np.testing.assert_array_equal(labels_again, labels[3:5])


@pytest.mark.parametrize(
    ("split", "seed", "first"), [("test", 0, 0), ("train", 1, 0), ("train", 0, 1)]
)
def test_another_split_seed_or_number_is_another_scene(split, seed, first):
    images, _ = scenes("train", 1)
    other, _ = scenes(split, 1, seed, first=first)
    assert np.mean(images != other) > 0.9


def test_digits_overlap_and_the_later_lies_on_top(monkeypatch):
    # Two solid squares of 30 pixels in 56: the later one is whole, the earlier is cut.
    ink = np.ones((1797, 8, 8), dtype=np.float32)
    shows = (np.arange(1797) % 10).astype(np.uint8)
    monkeypatch.setattr(digits, "handwriting", lambda: (ink, shows))
    _, labels = scenes("train", 60, size=56, digits=(2, 2), scale=(30, 30))
    whole = 30**2 - 4  # the four corners are rounded off
    cut = 0
    for image in labels:
        areas = sorted(n for n in np.bincount(image.ravel(), minlength=256)[:10] if n)
        if len(areas) == 2:  # both squares placed, of different class
            assert areas[1] == whole
            cut += areas[0] < whole
    assert cut > 20


def test_options():
    _, few = scenes("train", 20, digits=(1, 1))
    assert all(len(set(np.unique(image)) - {BACKGROUND, IGNORE}) == 1 for image in few)
    images, labels = scenes("train", 2, size=96, scale=(40, 48))
    assert images.shape == (2, 1, 96, 96)
    assert labels.shape == (2, 96, 96)


def test_the_smallest_scene_holds_its_digit():
    _, labels = scenes("train", 3, size=34)
    assert (labels < 10).any(axis=(1, 2)).all()


def test_progress_bar_on_request(capsys):
    scenes("test", 2)
    assert capsys.readouterr().err == ""
    scenes("test", 2, progress=True)
    assert "test scenes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"split": "val"}, DataError, r'"train", "validation" or "test", got \'val\'; choose'),
        ({"count": 0}, DataError, "expected count >= 1, got 0; ask for at least one scene"),
        ({"count": -3}, DataError, "expected count >= 1, got -3"),
        ({"seed": -1}, DataError, "got seed -1 and first 0; scenes and seeds are numbered from 0"),
        ({"first": -1}, DataError, "got seed 0 and first -1"),
        ({"digits": (0, 3)}, DataError, r"1 <= fewest <= most, got \(0, 3\)"),
        ({"digits": (4, 3)}, DataError, r"1 <= fewest <= most, got \(4, 3\)"),
        ({"size": 33}, ShapeError, "expected size >= 34, the largest digit and its rim, got 33;"),
        ({"scale": (30, 24)}, ShapeError, r"smallest <= largest, got \(30, 24\)"),
        ({"scale": (7, 24)}, ShapeError, r"with 8 <= smallest <= largest, got \(7, 24\)"),
    ],
)
def test_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        scenes(**{"split": "train", "count": 1} | arguments)


# ---------------------------------------------------------------------------- the palette

# What an eye without one kind of cones sees, as a matrix on linear RGB: G. M. Machado, M. M.
# Oliveira, L. A. F. Fernandes, A physiologically-based model for simulation of color vision
# deficiency, IEEE TVCG 15(6), 2009, severity 1.
EYES = {
    "all cones": np.eye(3),
    "no red": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "no green": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "no blue": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def lab(linear):
    """CIE L*a*b* (1976) of linear sRGB under D65."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = np.clip(linear, 0, 1) @ to_xyz.T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("eye", EYES)
def test_colours_stay_apart(eye):
    assert PALETTE.shape == (len(CLASSES), 3)
    colours = np.vstack([PALETTE, IGNORE_COLOUR]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    points = lab(linear @ EYES[eye].T)
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    assert distance[np.triu_indices(len(points), 1)].min() > 28
