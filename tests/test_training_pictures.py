"""The pictures of a run: what is drawn, and that odd runs can be drawn as well."""

from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tinydilate.data.digits import CLASSES, IGNORE, IGNORE_COLOUR, PALETTE
from tinydilate.see.training import coloured, draw_curves, draw_predictions, smoothed


class Stage(NamedTuple):
    name: str
    title: str
    start: str
    steps: int


STAGES = [
    Stage("front", "front end", "", 40),
    Stage("context", "context", "front", 10),
    Stage("joint", "joint", "context", 30),
    Stage("alone", "front end alone", "front", 40),
]


def log(stages):
    for stage in stages:
        for step in range(1, stage.steps + 1):
            yield {"stage": stage.name, "step": step, "loss": 2.4 * 0.97**step}
            if step % 10 == 0:
                yield {"stage": stage.name, "step": step, "validation_mean_iou": step / 100}


def colours(path):
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(2**20)}


def test_the_running_mean_begins_at_the_first_value():
    np.testing.assert_allclose(smoothed(np.full(5, 3.0)), 3)
    values = smoothed(np.array([4.0, 0.0]), memory=0.5)
    np.testing.assert_allclose(values, [4, 2 / 1.5])
    assert len(smoothed(np.zeros(0))) == 0


@pytest.mark.parametrize("count", [1, 3, 4])
def test_curves_of_every_branch(tmp_path, count):
    draw_curves(tmp_path / "a.png", list(log(STAGES[:count])), STAGES[:count], CLASSES)
    seen = colours(tmp_path / "a.png")
    assert ((0, 114, 178) in seen) == (count > 1)
    assert ((213, 94, 0) in seen) == (count == 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_curves_of_a_run_whose_batches_were_all_skipped(tmp_path):
    entries = [{"stage": "front", "step": n, "skipped": True} for n in range(1, 41)]
    draw_curves(tmp_path / "a.png", entries, STAGES[:1], CLASSES)
    assert (tmp_path / "a.png").exists()


def test_colours():
    np.testing.assert_array_equal(coloured(np.array([[3, IGNORE]]))[0, 0], PALETTE[3])
    np.testing.assert_array_equal(coloured(np.array([[3, IGNORE]]))[0, 1], IGNORE_COLOUR)


def test_predictions(tmp_path):
    truth = np.full((2, 20, 20), 10)
    truth[:, 5:15, 5:15] = 3
    truth[:, 4, 4:16] = IGNORE
    wrong = np.where(truth == 3, 8, 10)
    images = np.linspace(0, 1, 800).reshape(2, 20, 20)
    networks = {"front end": wrong, "front end + context": np.where(truth == 3, 3, 10)}
    draw_predictions(tmp_path / "a.png", images, truth, networks, CLASSES)
    seen = colours(tmp_path / "a.png")
    for c in (3, 8, 10):
        assert tuple(int(level) for level in PALETTE[c]) in seen
    with Image.open(tmp_path / "a.png") as image:
        assert image.height > 800  # four rows


def pixels_of(path, colour):
    with Image.open(path) as image:
        return int((np.asarray(image.convert("RGB")) == colour).all(-1).sum())


def test_a_colour_means_one_thing(tmp_path):
    """White is what does not count, and the lines around mistakes have a colour of their own."""
    truth = np.full((1, 20, 20), 10)
    truth[:, 5:15, 5:15] = 3
    for name, labels in {"right": truth, "wrong": np.full_like(truth, 10)}.items():
        image = np.zeros(truth.shape)
        draw_predictions(tmp_path / name, image, truth, {"network": labels}, CLASSES)
    line = (0, 204, 255)
    legend = pixels_of(tmp_path / "right", line)
    assert 10 < legend < 100
    assert pixels_of(tmp_path / "wrong", line) > legend + 200
    assert line not in {tuple(colour) for colour in PALETTE.tolist()}
