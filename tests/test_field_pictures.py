"""Pictures of receptive fields: that what they say is right, and what they refuse."""

import numpy as np
import pytest
from PIL import Image

from tinydilate import nn
from tinydilate.errors import ConfigError, DataError, FieldError, ShapeError
from tinydilate.field import Slide, line_of
from tinydilate.receptive_field import analyse, closed_form_sigma, effective
from tinydilate.receptive_field.hybrid_rule import largest_gap
from tinydilate.receptive_field.paper_claims import stack
from tinydilate.see import fields


def shades(path):
    with Image.open(path) as image:
        return len(np.unique(np.asarray(image.convert("L"))))


# ---- the rule of thumb -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dilations", "gap"),
    [((1, 2, 5), 2), ((1, 2, 9), 5), ((2, 2, 2), 2), ((1, 2, 4), 2), ((3, 4), 4), ((2, 4, 8), 4)],
)
def test_the_gaps_of_the_rule(dilations, gap):
    assert largest_gap(dilations) == gap


def test_the_rule_says_nothing_of_one_layer():
    with pytest.raises(ConfigError, match=r"of at least two layers, .*; got \(2,\)\. One layer of"):
        largest_gap((2,))


def test_the_rule_is_a_rule_of_thumb():
    """From 1 on it never lets holes pass, and rejects stacks without; from 2 on it errs."""

    def full(dilations):
        line = line_of(Slide(3, 1, 0, d) for d in dilations)
        return line.phases[0].extent == line.phases[0].number

    places = [(1, a, b, c) for a in range(1, 9) for b in range(1, 9) for c in range(1, 9)]
    passed = {d for d in places if largest_gap(d) <= 3}
    covered = {d for d in places if full(d)}
    assert passed < covered
    assert largest_gap((2, 2, 2)) <= 3
    assert not full((2, 2, 2))
    assert {full(d) for d in ((1, 2, 4), (4, 2, 1), (2, 1, 4))} == {True}  # no matter which order


# ---- growth ----------------------------------------------------------------------------------


def test_growth_counts_each_parameter_once():
    shared = nn.Conv2d(1, 1, 3, padding=1, rng=0)
    net = nn.Sequential(("a", shared), ("relu", nn.ReLU()), ("b", nn.Conv2d(1, 1, 1, rng=0)))
    assert fields.growth(net, (1, 1, 8, 8)) == [fields.Step(("a", "relu", "b"), 3, 10)]
    steps = fields.growth(stack((1, 2, 4)), (1, 1, 32, 32))
    assert [step.extent for step in steps] == [3, 7, 15]
    assert [step.parameters for step in steps] == [10, 20, 30]
    assert fields.Step(("a", "b"), 3, 1).label == "a, b: 3"
    assert fields.Step(("a", "b", "c"), 3, 1).label == "a to c: 3"
    assert fields.Step(("a",), 3, 1).label == "a: 3"


def test_growth_is_drawn(tmp_path):
    networks = {"doubling": stack((1, 2, 4)), "ordinary": stack((1, 1, 1))}
    fields.draw_growth(tmp_path / "a.png", networks, (1, 1, 32, 32))
    assert shades(tmp_path / "a.png") > 20
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_growth_refuses():
    with pytest.raises(ConfigError, match=r"expected from 1 to 3 networks; got 0\."):
        fields.draw_growth("a.png", {}, (1, 1, 8, 8))
    with pytest.raises(FieldError, match=r"expected a network with layers that have a field"):
        fields.growth(nn.Sequential(nn.Flatten(), nn.Linear(64, 2, rng=0)), (1, 1, 8, 8))


# ---- coverage --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dilations", "text"),
    [
        (
            (2, 2, 2),
            "dilations 2, 2, 2: 7 of 13 pixels along an axis, 6 holes\n"
            "hybrid-dilation rule: M₂ = 2 ≤ K = 3, so no holes: wrong here",
        ),
        (
            (1, 2, 4),
            "dilations 1, 2, 4: 15 of 15 pixels along an axis, no holes\n"
            "hybrid-dilation rule: M₂ = 2 ≤ K = 3, so no holes",
        ),
        (
            (1, 2, 9),
            "dilations 1, 2, 9: 21 of 25 pixels along an axis, 4 holes\n"
            "hybrid-dilation rule: M₂ = 5 > K = 3, so holes",
        ),
        ((2,), "dilations 2: 3 of 5 pixels along an axis, 2 holes"),
    ],
)
def test_the_verdict_on_a_stack(dilations, text):
    assert fields._verdict(dilations, 3) == text


@pytest.mark.parametrize(
    ("stacks", "kernel"), [([(2, 2, 2), (1, 2, 4)], 3), ([(1, 1, 2, 4, 8, 16, 1)], 3), ([(3,)], 2)]
)
def test_coverage_is_drawn(tmp_path, stacks, kernel):
    fields.draw_coverage(tmp_path / "a.png", stacks, kernel)
    assert shades(tmp_path / "a.png") > 10


@pytest.mark.parametrize(
    ("stacks", "pattern"),
    [
        ([()], r"expected from 1 to 8 dilations and a kernel.*got \(\) and 3"),
        ([(1,) * 9], r"expected from 1 to 8 dilations"),
        ([(1, 0)], r"whole numbers of at least 1; got \(1, 0\) and 3"),
        ([(1, 1.5)], r"whole numbers of at least 1; got \(1, 1\.5\)"),
        ([], r"expected at least one stack of dilations, such as"),
    ],
)
def test_coverage_refuses(stacks, pattern):
    with pytest.raises(ConfigError, match=pattern):
        fields.draw_coverage("a.png", stacks)


# ---- on an image -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 3)])
@pytest.mark.parametrize("output", [None, (0, 0), (39, 3)])
def test_a_field_on_an_image(tmp_path, shape, output):
    layer = analyse(stack((2, 2)), (1, 1, 40, 30)).output
    image = np.random.default_rng(0).normal(size=shape)  # any range
    fields.draw_field(tmp_path / "a.png", layer, image, output)
    assert shades(tmp_path / "a.png") > 20


def test_an_image_of_one_level_can_be_drawn(tmp_path):
    layer = analyse(stack((1,)), (1, 1, 9, 9)).output
    fields.draw_field(tmp_path / "a.png", layer, np.ones((9, 9)))


def test_an_image_of_another_size_is_refused():
    layer = analyse(stack((1,)), (1, 1, 9, 9)).output
    with pytest.raises(ShapeError, match=r"that was analysed, 9 x 9; got \(9, 8\)\. Analyse the"):
        fields.draw_field("a.png", layer, np.ones((9, 8)))


# ---- effective, and moving -------------------------------------------------------------------


def test_an_effective_field_is_drawn(tmp_path):
    net = stack((1, 2))
    found = effective(net, (1, 1, 15, 15), weights="uniform")
    fields.draw_effective(tmp_path / "a.png", found)
    sigma = closed_form_sigma(net, (1, 1, 15, 15))[1]
    fields.draw_effective(tmp_path / "b.png", found, sigma, "equal weights")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_the_animation_shows_each_layer_that_adds(tmp_path):
    net = nn.Sequential(*stack((2, 2)), nn.ReLU(), nn.Conv2d(1, 1, 1, rng=0))
    fields.animate_growth(tmp_path / "a.gif", analyse(net, (1, 1, 20, 20)), seconds=0.5)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 2
        assert image.info["duration"] == 500
        image.seek(1)
        assert image.info["duration"] == 1500
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_no_animation_of_nothing(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, rng=0))
    with pytest.raises(FieldError, match=r"layers that have a field; got none"):
        fields.animate_growth(tmp_path / "a.gif", analyse(net, (1, 1, 8, 8)))
    assert not [*tmp_path.iterdir()]
    with pytest.raises(DataError, match=r"expected to write"):
        fields.animate_growth(tmp_path / "no/a.gif", analyse(stack((1,)), (1, 1, 8, 8)))


def test_what_is_no_layer_and_no_network_by_its_title_is_refused(tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 1, 3))
    analysis = analyse(network, (1, 1, 9, 9))
    with pytest.raises(ConfigError, match=r"got Analysis\. .* or analysis\.output\.$"):
        fields.draw_field(tmp_path / "a.png", analysis, np.zeros((9, 9)))
    with pytest.raises(ConfigError, match=r"^expected networks by their titles; got Sequential\."):
        fields.draw_growth(tmp_path / "a.png", network, (1, 1, 9, 9))
    with pytest.raises(
        ShapeError, match=r"got ndarray of shape \(1, 1, 9, 9\)\. Pass its shape\.$"
    ):
        analyse(network, np.zeros((1, 1, 9, 9)))
    assert not [*tmp_path.iterdir()]
