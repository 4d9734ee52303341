"""Pictures of receptive fields: that what they say is right, and what they refuse."""

from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from drawn import drawn, frames, hexes, rgb
from PIL import Image

from tinydilate import models, nn
from tinydilate.errors import ConfigError, DataError, FieldError, ShapeError
from tinydilate.field import Slide, line_of
from tinydilate.receptive_field import analyse
from tinydilate.receptive_field.effective_field import EffectiveField
from tinydilate.receptive_field.hybrid_rule import largest_gap
from tinydilate.receptive_field.paper_claims import stack
from tinydilate.see import fields

BLUE, VERMILION, ORANGE, INK = "#0072B2", "#D55E00", "#E69F00", "#222222"
SEEN, HOLE, WHITE = rgb(BLUE), rgb("#F7D9C8"), (255, 255, 255)


def shades(path):
    with Image.open(path) as image:
        return len(np.unique(np.asarray(image.convert("L"))))


def reached(dilations):
    """What an output at 0 reads along an axis: one step of each 3-tap layer after another."""
    return {sum(steps) for steps in product(*((-d, 0, d) for d in dilations))}


def box_of(patch):
    """Left, top, width and height of a rectangle."""
    return (*patch.get_xy(), patch.get_width(), patch.get_height())


def title_of(axes):
    return axes.get_title(loc="left")


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


def test_growth_is_drawn_as_squares_and_as_curves():
    networks = {"doubling": stack((1, 2, 4)), "ordinary": stack((1, 1, 1))}
    drawing = drawn(lambda path: fields.draw_growth(path, networks, (1, 1, 32, 32)))
    left, right = drawing.figure.axes
    boxes = [box_of(patch) for patch in left.patches]
    assert boxes == [(-side / 2, -side / 2, side, side) for side in (15, 7, 3)]  # small ones on top
    labels = sorted((text.get_position()[1], text.get_text()) for text in left.texts)
    assert [label for _, label in labels] == ["0: 3", "1: 7", "2: 15"]
    assert title_of(left) == "doubling: what an output of each layer spans"
    found = {line.get_label(): line.get_xydata().tolist() for line in right.get_lines()}
    assert found == {
        "doubling": [[10, 3], [20, 7], [30, 15]],
        "ordinary": [[10, 3], [20, 5], [30, 7]],
    }
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert names == ["doubling", "ordinary"]


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


STACKS = [(2, 2, 2), (1, 2, 4)]


def coverage():
    """The drawing of both stacks, with its axes and the dilations up to each panel's layer."""
    drawing = drawn(lambda path: fields.draw_coverage(path, STACKS))
    layers = [dilations[:n] for dilations in STACKS for n in (1, 2, 3)]
    return drawing, list(zip(drawing.figure.axes, layers, strict=True))


def test_what_a_stack_sees_is_filled_and_what_it_spans_is_pale():
    drawing, panels = coverage()
    places = list(product(range(-8, 9), repeat=2))
    for axes, dilations in panels:
        seen, far = reached(dilations), sum(dilations)
        desired = [
            SEEN if {y, x} <= seen else HOLE if max(abs(y), abs(x)) <= far else WHITE
            for y, x in places
        ]
        y, x = np.transpose(places) + 0.35  # beside the dots and crosses
        np.testing.assert_array_equal(drawing.colours(axes, x, y), desired, err_msg=title_of(axes))


def test_taps_have_dots_and_holes_have_crosses():
    _, panels = coverage()
    for axes, dilations in panels:
        marks = {
            hexes(group.get_edgecolor())[0]: {tuple(at) for at in group.get_offsets()}
            for group in axes.collections
        }
        seen, far, last = reached(dilations), sum(dilations), dilations[-1]
        spanned = set(product(range(-far, far + 1), repeat=2))
        assert marks == {
            INK: set(product((-last, 0, last), repeat=2)),
            VERMILION.lower(): spanned - set(product(seen, repeat=2)),
        }
        counted = f"{len(seen) ** 2} of {len(spanned)} pixels"
        if len(seen) ** 2 == len(spanned):
            counted = f"all of {2 * far + 1}×{2 * far + 1}"
        assert title_of(axes) == f"layer {len(dilations)}, dilation {last}\n{counted}"


def test_each_stack_has_its_verdict_and_the_legend_its_colours():
    drawing, _ = coverage()
    verdicts = [part.get_suptitle() for part in drawing.figure.subfigs]
    assert verdicts == [fields._verdict(dilations, 3) for dilations in STACKS]
    (legend,) = drawing.figure.legends
    square, hole, tap = legend.legend_handles
    assert hexes(square.get_facecolor()) == [BLUE.lower()]
    assert (hole.get_marker(), tap.get_marker()) == ("x", "o")
    assert [text.get_text() for text in legend.get_texts()] == [
        "seen by the output",
        "hole: spanned, not seen",
        "tap of the layer",
    ]


@pytest.mark.parametrize(("stacks", "kernel"), [([(1, 1, 2, 4, 8, 16, 1)], 3), ([(3,)], 2)])
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


SIZE = (16, 12)


def on_an_image(image, output):
    """A drawing of what two layers of dilation 2 see."""
    layer = analyse(stack((2, 2)), (1, 1, *SIZE)).output
    return drawn(lambda path: fields.draw_field(path, layer, image, output))


def seen_from(output):
    """The pixels that these layers see from an output, bool (H, W)."""
    steps = [*reached((2, 2))]
    rows, columns = (np.isin(np.arange(n) - at, steps) for n, at in zip(SIZE, output, strict=True))
    return np.outer(rows, columns)


def test_what_an_output_sees_keeps_its_light_and_the_rest_is_dimmed():
    image = np.random.default_rng(0).normal(size=SIZE)  # any range
    levels = (image - image.min()) / np.ptp(image)
    for output, shown in ((None, [(8, 6), (0, 0)]), ((11, 3), [(11, 3), (0, 0)])):
        drawing = on_an_image(image, output)
        for axes, place in zip(drawing.figure.axes, shown, strict=True):
            mask = seen_from(place)
            y, x = np.indices(SIZE) + 0.3  # beside the cross and the frame
            colours = drawing.colours(axes, x, y) / 255
            red, _, blue = np.moveaxis(colours, -1, 0)
            np.testing.assert_array_equal(blue - red > 0.1, mask)
            order = np.argsort(levels[~mask])
            dark, dimmed = levels[~mask][order], colours[~mask].mean(axis=1)[order]
            assert (np.diff(dimmed) >= 0).all()
            assert dimmed.max() < 0.6
            assert (colours[mask].mean(axis=1) > np.interp(levels[mask], dark, dimmed)).all()


def test_an_image_in_colour_keeps_its_colours():
    image = np.random.default_rng(0).random((*SIZE, 3))
    drawing = on_an_image(image, (11, 3))
    y, x = np.indices(SIZE) + 0.3
    colours = drawing.colours(drawing.figure.axes[0], x, y)
    for mask in (seen_from((11, 3)), ~seen_from((11, 3))):
        for channel in range(3):
            order = np.argsort(image[mask, channel])
            assert (np.diff(colours[mask, channel][order].astype(int)) >= 0).all()


def test_a_frame_a_cross_and_a_sentence_say_where_the_field_is():
    drawing = on_an_image(np.zeros(SIZE), (11, 3))
    outside = {(11, 3): "20%", (0, 0): "64%"}  # of 25 pixels 5 and 16
    for axes, (place, share) in zip(drawing.figure.axes, outside.items(), strict=True):
        row, column = place
        beyond, frame = axes.patches
        assert box_of(frame) == box_of(beyond) == (column - 4.5, row - 4.5, 9, 9)
        assert hexes(frame.get_edgecolor()) == [VERMILION.lower()]
        assert (frame.get_fill(), beyond.get_hatch()) == (False, "////")
        assert beyond.zorder < axes.images[0].zorder < frame.zorder
        (cross,) = axes.get_lines()
        assert cross.get_xydata().tolist() == [[column, row]]
        assert title_of(axes) == (
            f"1, output {place}: field 9×9\nsees {seen_from(place).sum()} pixels of the image; "
            f"{share} of its field lies outside"
        )


def test_an_output_in_the_corner_is_drawn_once():
    (axes,) = on_an_image(np.zeros(SIZE), (0, 0)).figure.axes
    assert title_of(axes).startswith("1, output (0, 0)")


def test_an_image_of_one_level_can_be_drawn(tmp_path):
    layer = analyse(stack((1,)), (1, 1, 9, 9)).output
    fields.draw_field(tmp_path / "a.png", layer, np.ones((9, 9)))


def test_an_image_of_another_size_is_refused():
    layer = analyse(stack((1,)), (1, 1, 9, 9)).output
    with pytest.raises(ShapeError, match=r"that was analysed, 9 x 9; got \(9, 8\)\. Analyse the"):
        fields.draw_field("a.png", layer, np.ones((9, 8)))


# ---- effective, and moving -------------------------------------------------------------------


COLUMNS = np.array([1, 2, 4, 2, 1]) / 10  # from column 6 on; their variance is 1.2


def effective_field():
    """A field of 5 x 7 pixels with known heat, which lies one column beside the middle, 7."""
    net = nn.Sequential(
        nn.Conv2d(1, 1, (3, 5), padding=(1, 2), rng=0), nn.Conv2d(1, 1, 3, padding=1, rng=0)
    )
    heat = np.zeros((11, 17))
    heat[3:6, 6:11] = np.outer(np.array([1, 2, 1]) / 4, COLUMNS)
    return EffectiveField(heat, (4, 7), analyse(net, (1, 1, 11, 17)).output)


def test_an_effective_field_shows_its_heat_in_the_box_of_the_theory():
    field = effective_field()
    drawing = drawn(lambda path: fields.draw_effective(path, field, None, "equal weights"))
    left, _, bar = drawing.figure.axes
    (image,) = left.images
    np.testing.assert_allclose(image.get_array() ** 2, field.heat / field.heat.max())
    assert image.get_clim() == (0, 1)
    y, x = np.indices(field.heat.shape)
    light = drawing.colours(left, x, y + 0.3).sum(axis=-1)
    order = np.argsort(field.heat, axis=None, kind="stable")
    assert (np.diff(light.ravel()[order].astype(int)) >= 0).all()
    labels = [float(label.get_text()) for label in bar.get_yticklabels()]
    np.testing.assert_allclose(np.square(bar.get_yticks()), labels)
    (frame,) = left.patches
    assert box_of(frame) == (3.5, 1.5, 7, 5)
    assert hexes(frame.get_edgecolor()) == [ORANGE.lower()]
    assert title_of(left) == "equal weights\ndashed: the field, 7 pixels wide"


def test_an_effective_field_stands_beside_the_gaussian_of_the_closed_form():
    field = effective_field()
    drawing = drawn(lambda path: fields.draw_effective(path, field, 1.6))
    axes = drawing.figure.axes[1]
    lines = {line.get_label(): line for line in axes.get_lines()}
    measured, bell = lines["measured"], lines["Gaussian of the closed form, σ = 1.60"]
    columns = np.arange(17) - 7
    for line in (measured, bell):
        np.testing.assert_array_equal(line.get_xdata(), columns)
    np.testing.assert_allclose(measured.get_ydata(), [0] * 6 + [*COLUMNS] + [0] * 6)
    np.testing.assert_allclose(bell.get_ydata(), [*map(NormalDist(0, 1.6).pdf, columns)])
    edges = [line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert edges == [-3.5, 3.5]
    sigma = np.sqrt(1.2)
    arrow = next(text for text in axes.texts if not text.get_text())
    np.testing.assert_allclose(sorted([arrow.xy[0], arrow.xyann[0]]), [1 - sigma, 1 + sigma])
    assert f"±σ = ±{sigma:.2f}" in [text.get_text() for text in axes.texts]
    assert title_of(axes) == "summed over rows: 95.45 % of it in 5 of 7 pixels"


def test_without_a_closed_form_there_is_no_gaussian():
    drawing = drawn(lambda path: fields.draw_effective(path, effective_field()))
    labels = [line.get_label() for line in drawing.figure.axes[1].get_lines()]
    assert [label for label in labels if not label.startswith("_")] == ["measured"]


def test_the_animation_marks_what_is_new_in_each_layer():
    analysis = analyse(stack((2, 2)), (1, 1, 20, 20))
    first, second = frames(lambda path: fields.animate_growth(path, analysis))
    before, now = reached((2,)), reached((2, 2))
    places = list(product(range(-5, 6), repeat=2))
    for number, (drawing, seen, old) in enumerate(((first, before, set()), (second, now, before))):
        desired = []
        for y, x in places:
            spanned = max(abs(y), abs(x)) <= max(seen)
            fresh = rgb(ORANGE) if not {y, x} <= old else SEEN
            desired.append(fresh if {y, x} <= seen else HOLE if spanned else WHITE)
        left, right = drawing.figure.axes
        y, x = np.transpose(places) + 0.35  # beside the crosses
        colours = drawing.colours(left, x, y).astype(int)
        np.testing.assert_allclose(colours, desired, atol=6)  # a GIF has few colours
        pale, blue = right.get_lines()
        assert pale.get_ydata().tolist() == [5, 9]
        assert blue.get_ydata().tolist() == [5, 9][: number + 1]
        holes = (2 * max(seen) + 1) ** 2 - len(seen) ** 2
        sentence = f"sees {len(seen) ** 2} pixels, {holes} holes"
        assert title_of(left) == f"{number} (Conv2d)\n{sentence}"


class Branches(nn.Module):
    """A wide branch, and then a narrow one."""

    def __init__(self):
        self.first = nn.Conv2d(1, 1, 3, padding=1, rng=0)
        self.wide = nn.Conv2d(1, 1, 3, padding=4, dilation=4, rng=0)
        self.narrow = nn.Conv2d(1, 1, 3, padding=1, rng=0)

    def forward(self, x):
        x = self.first(x)
        return self.wide(x) + self.narrow(x)


def test_what_another_branch_has_seen_is_not_new():
    analysis = analyse(Branches(), (1, 1, 30, 30))
    drawings = frames(lambda path: fields.animate_growth(path, analysis))
    assert [title_of(each.figure.axes[0]).partition(" ")[0] for each in drawings] == [
        "first", "wide", "narrow",
    ]  # fmt: skip
    orange = []
    for drawing in drawings:
        y, x = np.transpose(list(product(range(-5, 6), repeat=2))) + 0.35
        colours = drawing.colours(drawing.figure.axes[0], x, y).astype(int)
        orange.append(int((abs(colours - rgb(ORANGE)).max(axis=1) < 7).sum()))
    # Nine pixels; nine squares of nine, but for the one in the middle; and of 5x5 what lies between
    # the middle's square and those around it, which reach from the third pixel on.
    assert orange == [9, 72, 16]


def test_a_network_with_a_skip_is_animated(tmp_path):
    analysis = analyse(models.small_fcn(3, device="meta"), (1, 1, 64, 64))
    fields.animate_growth(tmp_path / "a.gif", analysis)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames > 5


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
