"""The pictures of a run: what is drawn, and that odd runs can be drawn as well."""

from typing import NamedTuple

import numpy as np
import pytest
from drawn import drawn, hexes
from PIL import Image

from tinydilate.data.digits import BACKGROUND, CLASSES, IGNORE, IGNORE_COLOUR, PALETTE
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


BEGIN = {"front": 0, "context": 40, "joint": 50, "alone": 40}
INK, BLUE, VERMILION = "#222222", "#0072b2", "#d55e00"
COLOUR = {"front": INK, "context": BLUE, "joint": BLUE, "alone": VERMILION}


def log(stages):
    """No two stages have the same numbers."""
    for n, stage in enumerate(stages):
        for step in range(1, stage.steps + 1):
            yield {"stage": stage.name, "step": step, "loss": (2.4 - 0.2 * n) * 0.97**step}
            if step % 10 == 0:
                score = step / 100 + 0.07 * n
                yield {"stage": stage.name, "step": step, "validation_mean_iou": score}


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


def curves():
    """The two axes of all four stages."""
    figure = drawn(lambda path: draw_curves(path, list(log(STAGES)), STAGES, CLASSES)).figure
    return figure.axes


def numbers_of(stage, key):
    """(step, value) of a stage, its steps counted from where its branch begins."""
    entries = [entry for entry in log(STAGES) if entry["stage"] == stage and key in entry]
    return [(BEGIN[stage] + entry["step"], entry[key]) for entry in entries]


def test_scores_stand_at_their_steps_and_go_on_from_the_stage_before():
    _, lower = curves()
    found = {}
    for line in lower.get_lines():
        if line.get_marker() == "o":
            found.setdefault(line.get_color().lower(), []).append(line.get_xydata().tolist())
    scores = {stage: numbers_of(stage, "validation_mean_iou") for stage in BEGIN}
    ends = {"context": scores["front"][-1:], "joint": scores["context"][-1:]}
    ends["alone"] = scores["front"][-1:]
    desired = {}
    for stage, points in scores.items():
        whole = [list(point) for point in [*ends.get(stage, []), *points]]
        desired.setdefault(COLOUR[stage], []).append(whole)
    assert found == desired
    assert lower.get_ylabel() == "validation mean IoU, 11 classes"
    assert lower.get_ylim() == (0, 1)
    legend = lower.get_legend()
    lines = [hexes(line.get_color()) for line in legend.get_lines()]
    names = [text.get_text() for text in legend.get_texts()]
    assert dict(zip(names, lines, strict=True)) == {
        "front end, stage 1": [INK],
        "front end + context": [BLUE],
        "front end alone, as many steps": [VERMILION],
    }


def test_losses_stand_at_their_steps_under_a_running_mean():
    upper, _ = curves()
    lines = [line for line in upper.get_lines() if len(line.get_xdata()) > 2]
    for stage, pale, thick in zip(BEGIN, lines[::2], lines[1::2], strict=True):
        steps, losses = np.transpose(numbers_of(stage, "loss"))
        np.testing.assert_array_equal(pale.get_xydata(), np.stack([steps, losses], axis=1))
        np.testing.assert_array_equal(thick.get_xdata(), steps)
        np.testing.assert_allclose(thick.get_ydata(), smoothed(losses))
        assert hexes([pale.get_color(), thick.get_color()]) == [COLOUR[stage]]
        assert pale.get_alpha() < 0.5
    assert upper.get_ylabel() == "loss (thick: running mean)"
    assert upper.get_yscale() == "log"


def test_stages_are_named_above_their_steps_and_ignorance_has_its_line():
    upper, lower = curves()
    places = {text.get_text(): text.xy for text in upper.texts}
    stages = {name: at[0] for name, at in places.items() if name[0].isdigit()}
    assert stages == {"1 front end": 20, "2 context": 45, "3 joint": 65}
    for axes in (upper, lower):
        upright = [line.get_xdata() for line in axes.get_lines() if len(line.get_xdata()) == 2]
        assert {xs[0] for xs in upright if xs[0] == xs[1]} == {40, 50}
    assert places["ln 11: knowing nothing"][1] == pytest.approx(np.log(11))
    dotted = [line.get_ydata() for line in upper.get_lines() if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dotted, [[np.log(11)] * 2])


def test_curves_of_a_run_whose_batches_were_all_skipped(tmp_path):
    entries = [{"stage": "front", "step": n, "skipped": True} for n in range(1, 41)]
    draw_curves(tmp_path / "a.png", entries, STAGES[:1], CLASSES)
    assert (tmp_path / "a.png").exists()


def test_colours():
    np.testing.assert_array_equal(coloured(np.array([[3, IGNORE]]))[0, 0], PALETTE[3])
    np.testing.assert_array_equal(coloured(np.array([[3, IGNORE]]))[0, 1], IGNORE_COLOUR)


SIDE = 8  # pixels
TITLES = ("front end", "front end + context")


def scenes():
    """Three scenes of random labels, and two networks that err each in its own places."""
    rng = np.random.default_rng(0)
    shape = (3, SIDE, SIDE)
    images, truth = rng.uniform(0.2, 0.8, shape), rng.integers(0, BACKGROUND, shape)
    truth[rng.random(shape) < 0.4] = BACKGROUND
    networks = {}
    for title, errors in zip(TITLES, (0.5, 0.2), strict=True):
        guessed = rng.integers(0, len(CLASSES), shape)
        networks[title] = np.where(rng.random(shape) < errors, guessed, truth)
    truth[rng.random(shape) < 0.1] = IGNORE
    return images, truth, networks


def sheet(images, truth, networks):
    """The drawing, and its axes in rows and columns."""
    drawing = drawn(lambda path: draw_predictions(path, images, truth, networks, CLASSES))
    return drawing, np.reshape(drawing.figure.axes, (2 + len(networks), len(images)))


def test_each_row_shows_what_its_title_says_of_each_scene():
    images, truth, networks = scenes()
    drawing, grid = sheet(images, truth, networks)
    colour_of = {**dict(enumerate(PALETTE.tolist())), IGNORE: [255, 255, 255]}
    rows = {"image": np.round(255 * images)[..., None] * [1, 1, 1]}
    for title, labels in {"truth": truth, **networks}.items():
        rows[title] = np.reshape([colour_of[label] for label in labels.flat], (*labels.shape, 3))
    y, x = np.mgrid[:SIDE, :SIDE]
    for line, (title, desired) in zip(grid, rows.items(), strict=True):
        assert [axes.get_ylabel() for axes in line] == [title, "", ""]
        seen = [drawing.colours(axes, x, y) for axes in line]
        np.testing.assert_allclose(seen, desired, atol=2, err_msg=title)  # grey is rounded


def test_a_line_goes_around_each_mistake_and_nothing_else():
    images, truth, networks = scenes()
    _, grid = sheet(images, truth, networks)
    for line, labels in zip(grid[2:], networks.values(), strict=True):
        for axes, is_said, is_true in zip(line, labels, truth, strict=True):
            wrong = (is_said != is_true) & (is_true != IGNORE)
            # Half way between a pixel that is wrong and a neighbour that is not.
            sides = {(x, y + 0.5) for y, x in np.argwhere(wrong[1:] != wrong[:-1])}
            sides |= {(x + 0.5, y) for y, x in np.argwhere(wrong[:, 1:] != wrong[:, :-1])}
            (outline,) = axes.collections
            assert {tuple(at) for path in outline.get_paths() for at in path.vertices} == sides
            assert hexes(outline.get_edgecolor()) == ["#00ccff"]


def test_the_share_that_is_right_counts_the_strokes():
    images, truth, networks = scenes()
    _, grid = sheet(images, truth, networks)
    shares = []
    for line, labels in zip(grid[2:], networks.values(), strict=True):
        for axes, is_said, is_true in zip(line, labels, truth, strict=True):
            pairs = zip(is_said.flat, is_true.flat, strict=True)
            right = [said == true for said, true in pairs if true not in (BACKGROUND, IGNORE)]
            shares.append(sum(right) / len(right))
            assert axes.get_xlabel() == f"{shares[-1]:.0%} of the strokes right"
    assert len(set(shares)) == len(shares)


def test_the_legend_names_each_class_beside_its_colour():
    drawing, _ = sheet(*scenes())
    (legend,) = drawing.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [*CLASSES, "does not count", "around mistakes"]
    faces = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    np.testing.assert_allclose(np.multiply(faces, 255), [*PALETTE, IGNORE_COLOUR])
    assert hexes([line.get_color() for line in legend.get_lines()]) == ["#00ccff"]


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
