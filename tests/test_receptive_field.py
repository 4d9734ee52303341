"""Receptive fields over graphs: the known ones, drawn ones against measurements, and errors."""

import json
import re
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinydilate.functional as F
from tinydilate import Op, Tensor, models, nn, tensor
from tinydilate.errors import ConfigError, FieldError, PositionError, ShapeError
from tinydilate.receptive_field import (
    analyse,
    claims,
    closed_form_sigma,
    effective,
    format_table,
    measure,
    pointwise,
    probes,
    rule,
    verify,
)
from tinydilate.receptive_field.analysis import layer_as_dict
from tinydilate.receptive_field.effective_field import narrowest
from tinydilate.receptive_field.paper_claims import stack
from tinydilate.receptive_field.rules import RULES

CASES = json.loads(Path(__file__).with_name("field_cases.json").read_text(encoding="utf-8"))


def network(layers):
    """A case's layers as a network of one map, without weights."""
    return nn.Sequential(
        nn.Identity(),
        *(
            nn.Conv2d(
                1,
                1,
                layer["kernel"],
                layer["stride"],
                layer["padding"],
                layer["dilation"],
                device="meta",
            )
            if layer["kind"] == "conv"
            else nn.MaxPool2d(layer["kernel"], layer["stride"], layer["padding"])
            for layer in layers
        ),
    )


class Graph(nn.Module):
    """Modules as attributes, and a function of them and the image."""

    def __init__(self, function, **modules):
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def conv(kernel=3, **options):
    return nn.Conv2d(1, 1, kernel, rng=0, **options)


# ---- known fields ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_known_fields(case):
    size = max(8, case["extent"] + 2 * int(case["stride"]))
    if not case["layers"]:
        return  # no op at all: an output that is the image itself
    last = analyse(network(case["layers"]), (1, 1, size, size)).output
    assert last.extent == (case["extent"],) * 2
    assert last.stride == (case["stride"],) * 2
    assert last.centre == (case["centre"],) * 2
    assert [field.reached for field in last.fields] == [case["reached"]] * 2
    assert last.share == pytest.approx(case["share_2d"], abs=1e-12)
    assert last.holes == case["extent"] ** 2 - case["reached"] ** 2
    assert last.period == (1, 1)
    assert last.separable


def test_holes_of_three_layers_of_dilation_two():
    last = analyse(stack([2, 2, 2]), (1, 1, 32, 32)).output
    corner, mask = last.field_of((10, 20))
    assert corner == (4, 14)
    assert mask.shape == (13, 13)
    assert mask.sum() == last.reached == 49
    assert mask[::2, ::2].all()
    assert not mask[1::2].any()
    assert not mask[:, 1::2].any()


def test_phases_of_an_upsampling():
    net = nn.Sequential(
        conv(3, stride=2, padding=1), nn.Upsample(scale_factor=2), conv(3, padding=1)
    )
    last = analyse(net, (1, 1, 16, 16)).output
    assert [pixels.positions() for pixels in last.phases[0]] == [
        [-3, -2, -1, 0, 1],
        [-1, 0, 1, 2, 3],
    ]
    assert last.period == (2, 2)
    assert last.stride == (1, 1)
    assert last.padding == (3, 3)


def test_rows_and_columns_apart():
    net = nn.Sequential(conv((3, 5), stride=(1, 2), padding=(0, 4), dilation=(2, 1)))
    layer = analyse(net, (1, 1, 20, 20))["0"]
    assert layer.extent == (5, 5)
    assert layer.stride == (1, 2)
    assert layer.centre == (2, -2)
    assert layer.padding == (0, 4)
    assert layer.reached == 3 * 5
    assert layer.share == 3 / 5
    assert layer.outside((0, 0)) == 4 / 5
    assert layer.seen_by((0, 0)).nonzero()[1].tolist() == [0] * 3
    assert layer.outside((3, 4)) == 0


def cross():
    """1x5 beside 3x1."""
    tall, wide = conv((3, 1), padding=(1, 0)), conv((1, 5), padding=(0, 2))
    return Graph(lambda net, x: net.tall(x) + net.wide(x), tall=tall, wide=wide)


def test_a_field_that_is_no_product():
    once = analyse(cross(), (1, 1, 12, 12)).output
    assert not once.separable
    assert once.field_of((0, 0)).mask.astype(int).tolist() == [
        [0, 0, 1, 0, 0],
        [1, 1, 1, 1, 1],
        [0, 0, 1, 0, 0],
    ]
    assert (once.reached, once.holes) == (7, 8)
    last = analyse(nn.Sequential(cross(), cross()), (1, 1, 16, 16)).output
    assert last.field_of((5, 5)).mask.astype(int).tolist() == [
        [0, 0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("method", ["gradient", "impulse"])
def test_crosses_are_measured(method):
    assert verify(nn.Sequential(cross(), cross()), (1, 1, 16, 16), method).agrees


@pytest.mark.parametrize("method", ["gradient", "impulse"])
def test_images_are_run_one_by_one_where_they_would_fill_the_memory(method, monkeypatch, capsys):
    net, size = stack([1, 2]), (1, 1, 12, 12)
    at_once = []

    def recorded(model, image, record=probes.record_probe):
        at_once.append(len(image))
        return record(model, image)

    monkeypatch.setattr(probes, "record_probe", recorded)
    found = verify(net, size, method, progress=True)
    assert max(at_once) > 1
    assert "measuring fields" in capsys.readouterr().err
    at_once.clear()
    monkeypatch.setattr(probes, "_ROOM", 0)
    assert str(verify(net, size, method)) == str(found)
    assert max(at_once) == 1
    assert not capsys.readouterr().err


def test_a_skip_connection():
    """The net that a known tool gives a field of 11."""
    net = Graph(
        lambda net, x: net.a(x) + net.c(net.b(net.a(x))),
        a=conv(3, padding=1),
        b=conv(3, padding=1),
        c=conv(5, padding=2),
    )
    analysis = analyse(net, (1, 1, 20, 20))
    assert analysis.output.extent == (9, 9)
    assert analysis["a"].extent == (3, 3)
    assert [layer.name for layer in analysis.steps] == ["a", "a", "b", "c", "Add"]


def test_the_front_end_with_its_mirrored_border():
    net = models.small_front_end(2, rng=0)
    last = analyse(net, (1, 1, 64, 64)).output
    assert last.extent == (22, 22)
    assert last.centre == (0.5, 0.5)
    assert last.outside((0, 0)) == pytest.approx(1 - (12 / 22) ** 2)
    seen = last.seen_by((0, 0))
    assert np.argwhere(seen).max() == 11  # the mirror shows nothing that the field does not hold


def test_mirrored_pixels_are_measured():
    assert verify(models.small_front_end(2, rng=0), (1, 1, 44, 44)).agrees


def test_a_function_with_arrays_of_its_own():
    weight = np.ones((1, 1, 3, 3), np.float32)

    def blur(x):
        return F.conv2d(F.relu(F.conv2d(x, weight, padding=1)), weight, dilation=2)

    last = analyse(blur, (1, 1, 12, 12)).output
    assert last.extent == (7, 7)
    assert last.centre == (2, 2)
    assert [layer.type for layer in analyse(blur, (1, 1, 12, 12))] == [
        "Convolution",
        "ReLU",
        "Convolution",
    ]
    for method in ("gradient", "impulse"):
        assert verify(blur, (1, 1, 12, 12), method).agrees


def test_channels_may_be_moved_summed_and_joined():
    def mixed(x):
        y = F.softmax(F.cat([x, x * 2], dim=1), dim=1).sum(dim=1, keepdim=True)
        rows_last = y.permute(0, 3, 1, 2)  # (N, W, C, H)
        return rows_last.permute(0, 2, 3, 1)[:, :, 2:, 1::2].reshape(1, 1, 1, 8, 5)

    last = analyse(mixed, (1, 2, 10, 11)).output
    assert last.seen.axes == (3, 4)
    assert (last.stride, last.centre, last.extent) == ((1, 2), (2, 1), (1, 1))
    unbatched = analyse(conv(3), (1, 9, 9)).output
    assert (unbatched.extent, unbatched.size) == ((3, 3), (7, 7))


def test_flipping():
    last = analyse(lambda x: x[:, :, ::-1], (1, 1, 6, 5)).output
    assert last.stride == (-1, 1)
    assert last.centre == (5, 0)
    assert np.argwhere(last.seen_by((1, 2))).tolist() == [[4, 2]]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.mean(dim=(2, 3)), "a sum over rows or columns looks at the whole image"),
        (lambda x: x.flatten(1), "a reshape joins rows and columns with other axes"),
        (lambda x: x[:, :, 3], "an index takes single rows or columns out of the image"),
        (lambda x: F.softmax(x, dim=2), "a softmax along rows or columns looks at all of them"),
        (lambda x: F.cat([x, x], dim=3), "images are joined side by side"),
        (lambda x: x @ np.ones((6, 6), np.float32), "MatMul looks at more than windows"),
        (lambda x: x + x.transpose(2, 3), "rows and columns lie along other axes"),
        (lambda x: F.conv2d(x.permute(0, 2, 3, 1), np.ones((1, 6, 1, 1), np.float32)), "last two"),
        (lambda x: F.conv2d(np.ones((1, 1, 9, 9), np.float32), x), "weights of a convolution are"),
    ],
)
def test_what_has_no_field_says_why(function, reason):
    last = analyse(function, (1, 1, 6, 6)).output
    assert reason in last.reason
    assert layer_as_dict(last)["reason"] == last.reason
    with pytest.raises(FieldError, match=r"expected a layer of which every output sees its own"):
        last.fields  # noqa: B018


def test_a_pattern_that_does_not_repeat():
    def corners(x):
        for more in (1, 2, 3):
            size = tuple(2 * n - more for n in x.shape[2:])
            x = F.interpolate(x, size, mode="bilinear", align_corners=True)[..., 1:, 1:]
        return x

    last = analyse(corners, (1, 1, 41, 41)).output
    text = r"repeats only after [0-9,]+ of them, and at most 4,096 are followed; resize by simple"
    assert re.search(text, last.reason)


def test_layers_behind_what_has_no_field():
    net = nn.Sequential(conv(3), nn.Flatten(), nn.Linear(16, 2, rng=0))
    analysis = analyse(net, (1, 1, 6, 6))
    assert [layer.reason is None for layer in analysis] == [True, False, False]
    assert analysis["0"].extent == (3, 3)
    checks = verify(net, (1, 1, 6, 6))
    assert checks.agrees
    assert "1: not checked, 1: a reshape joins rows and columns" in str(checks)
    assert str(checks).endswith("agree on 1 of 3 layers; the others are not checked")
    assert format_table(analysis).splitlines()[-1].split() == ["2", "Linear", "-"]


# ---- drawn networks --------------------------------------------------------------------------

few = st.integers(1, 3)


@st.composite
def layers(draw):
    """One layer, and whether it keeps the size."""
    kind = draw(st.sampled_from(["conv", "pool", "mean", "up", "spread", "border", "crop"]))
    kernel, dilation = draw(st.tuples(few, few)), draw(st.tuples(few, few))
    stride, padding = draw(st.tuples(few, few)), draw(st.tuples(st.integers(0, 2), few))
    if kind == "conv":
        return conv(kernel, stride=stride, padding=padding, dilation=dilation)
    if kind == "pool":
        return nn.MaxPool2d(kernel, stride, 0, dilation, ceil_mode=draw(st.booleans()))
    if kind == "mean":
        return nn.AvgPool2d(kernel, stride, tuple(k // 2 for k in kernel))
    if kind == "up":
        linear = draw(st.booleans())
        mode, corners = ("bilinear", draw(st.booleans())) if linear else ("nearest", None)
        scale = draw(st.tuples(*[st.sampled_from([2, 1.5, 0.5])] * 2))
        return nn.Upsample(scale_factor=scale, mode=mode, align_corners=corners)
    if kind == "spread":
        return nn.ConvTranspose2d(1, 1, kernel, stride, 0, 0, rng=0, dilation=dilation)
    if kind == "border":
        pad = draw(st.tuples(*[st.integers(0, 3)] * 4))
        mode = draw(st.sampled_from(["constant", "reflect", "replicate"]))
        return Graph(lambda net, x: F.pad(x, pad, mode))
    top, left = draw(few), draw(st.integers(0, 2))
    return Graph(lambda net, x: x[..., top:, left:-1])


chains = st.lists(layers(), min_size=1, max_size=4).map(lambda chain: nn.Sequential(*chain))


def joined(net, x):
    """Two branches, cut to the smaller of their sizes, added or joined as channels."""
    a, b = net.first(x).relu(), net.second(x)
    rows, columns = (min(p, q) for p, q in zip(a.shape[2:], b.shape[2:], strict=True))
    a, b = a[..., :rows, :columns], b[..., :rows, :columns]
    return net.last(F.cat([a, b], dim=1).sum(dim=1, keepdim=True) if net.join else a + b)


graphs = st.builds(
    lambda first, second, last, join: (
        net := Graph(joined, first=first, second=second, last=last),
        setattr(net, "join", join),
    )[0],
    chains,
    chains | st.just(nn.Identity()),
    layers(),
    st.booleans(),
)
images = st.tuples(st.just(1), st.just(1), st.integers(9, 13), st.integers(9, 13))


def check_measured(net, size, method, outputs):
    try:
        last = analyse(net, size, misaligned="union").output
    except FieldError as error:  # a window that does not fit
        assert "an image of shape" in str(error)  # noqa: PT017
        return
    if last.reason is not None:
        assert "pattern repeats only after" in last.reason
        return
    rows, columns = last.size
    if not rows * columns:  # all was cropped
        return
    for i, j in outputs:
        place = i % rows, j % columns
        np.testing.assert_array_equal(
            last.seen_by(place), measure(net, size, place, method=method), str(place)
        )
        corner, mask = last.field_of(place)
        assert mask.any(axis=1)[[0, -1]].all() if mask.size else not last.seen_by(place).any()
        check_places_without_end(last, place, corner, mask)


def check_places_without_end(last, place, corner, mask):
    """Where nothing was cut off, both views of the field are one."""
    products = last.seen.products
    if all(p.rows.whole[place[0]] and p.columns.whole[place[1]] for p in products):
        seen = {(y + corner[0], z + corner[1]) for y, z in np.argwhere(mask).tolist()}
        assert seen == set(map(tuple, np.argwhere(last.seen_by(place)).tolist()))


places = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=3, max_size=3)


@settings(max_examples=60)
@given(chains, images, places)
def test_drawn_chains_agree_with_their_gradient(net, size, outputs):
    check_measured(net, size, "gradient", outputs)


@settings(max_examples=15)
@given(chains, images, places)
def test_drawn_chains_agree_with_their_impulses(net, size, outputs):
    check_measured(net, size, "impulse", outputs[:1])


@settings(max_examples=40)
@given(graphs, images, places)
def test_drawn_graphs_agree_with_their_gradient(net, size, outputs):
    check_measured(net, size, "gradient", outputs)


@settings(max_examples=10)
@given(graphs, images, places)
def test_drawn_graphs_agree_with_their_impulses(net, size, outputs):
    check_measured(net, size, "impulse", outputs[:1])


@settings(max_examples=30)
@given(chains)
def test_periods_repeat(net):
    """What output i sees, output i + P sees P strides further; measured, not only said."""
    size = (1, 1, 40, 40)
    try:
        last = analyse(net, size).output
    except FieldError:
        return
    if last.reason is not None:
        return
    whole = last.whole_outputs()
    for axis in (0, 1):
        period, stride = last.period[axis], last.stride[axis]
        for i in whole[axis]:
            if i + period in whole[axis]:
                first, second = (last.seen.products[0][axis].inside[k] for k in (i, i + period))
                assert second == first << int(period * stride) or stride < 0


# ---- branches --------------------------------------------------------------------------------


def test_misaligned_branches_name_both_paths_and_the_shift():
    net = Graph(
        lambda net, x: net.straight(x) + net.shifted(x).relu()[:, :, :-2],
        straight=conv(3, padding=1),
        shifted=conv(3, padding=(2, 1)),
    )
    with pytest.raises(FieldError) as caught:
        analyse(net, (1, 1, 20, 20))
    assert str(caught.value) == (
        "expected branches that are aligned where they meet, in Add; got one through straight, "
        "with stride 1 and output 0 centred at pixel 0, and one through shifted, ReLU, CopyView, "
        "with stride 1 and output 0 centred at pixel (-1, 0): they lie (1, 0) pixels apart (rows, "
        "columns where two numbers stand). Pad or crop one of them on one side more than on the "
        'other, or pass misaligned="union" to have what both see.'
    )
    last = analyse(net, (1, 1, 20, 20), misaligned="union").output
    assert last.extent == (4, 3)
    assert verify(net, (1, 1, 20, 20)).agrees


def test_branches_of_two_strides():
    net = Graph(
        lambda net, x: net.half(x) + net.full(x)[..., :5, :5],
        half=conv(3, stride=2, padding=1),
        full=conv(3, padding=1),
    )
    with pytest.raises(FieldError, match=r"with stride 2 .* with stride 1 .*: their strides diff"):
        analyse(net, (1, 1, 10, 10))
    last = analyse(net, (1, 1, 10, 10), misaligned="union").output
    seen = np.argwhere(last.seen_by((3, 3)))
    assert seen.min() == 2  # from 3 - 1 on by the one, up to 6 + 1 by the other
    assert seen.max() == 7
    assert verify(net, (1, 1, 10, 10)).agrees
    with pytest.raises(FieldError, match=r"expected branches of one stride; in Add branches of se"):
        last.extent  # noqa: B018
    assert "several strides" in layer_as_dict(last)["reason"]
    with pytest.raises(ConfigError, match=r"""misaligned="raise" or "union"; got 'no'"""):
        analyse(net, (1, 1, 10, 10), misaligned="no")


def test_a_pyramid_of_pooled_branches_is_aligned():
    """Halved and enlarged again, cells stay over the middle of what they saw."""
    net = Graph(
        lambda net, x: net.side(x) + net.up(net.deep(net.down(x))),
        side=conv(3, padding=1),
        down=nn.MaxPool2d(2),
        deep=conv(3, padding=1),
        up=nn.Upsample(scale_factor=2, mode="bilinear"),
    )
    last = analyse(net, (1, 1, 24, 24)).output
    assert last.centre == (0, 0)
    assert last.period == (2, 2)
    assert verify(net, (1, 1, 24, 24)).agrees


# ---- errors ----------------------------------------------------------------------------------


class Cube(Op):
    def forward(self, x):
        return x

    def backward(self, grad):
        return grad


def test_an_op_without_a_rule_names_itself():
    net = Graph(lambda net, x: Cube()(net.a(x)), a=conv(3))
    with pytest.raises(FieldError) as caught:
        analyse(net, (1, 1, 9, 9))
    assert str(caught.value) == (
        "expected ops whose reading is known; got Cube, in Cube. Say which inputs its outputs "
        "read: from tinydilate.receptive_field import rule, pointwise; then @rule(Cube) on a "
        "function of (op, number, axes) that returns a Reading, such as pointwise(axes) for one "
        "that reads each place alone."
    )
    rule(Cube)(lambda op, number, axes: pointwise(axes))
    try:
        assert analyse(net, (1, 1, 9, 9)).output.extent == (3, 3)
    finally:
        del RULES[Cube]


def test_every_op_of_ours_has_a_rule():
    ops = {kind for kind in Op.__subclasses__() if kind.__module__.startswith("tinydilate.")}
    assert ops <= RULES.keys()


def test_images_that_are_too_small_say_which_size_would_do():
    net = models.front_end(2, border=False, device="meta")
    with pytest.raises(FieldError, match=r"does not fit.* An image of shape \(1, 3, 373, 473\) wo"):
        analyse(net, (1, 3, 100, 200))
    assert analyse(net, (1, 3, 373, 473)).output.size == (1, 13)
    text = (
        r"whole field of an output of 2, 15 x 15 pixels; got one of 12 x 30\. "
        r"15 x 30 would do \(--size 15x30 on the command line\)\."
    )
    with pytest.raises(FieldError, match=text):
        verify(stack([1, 2, 4]), (1, 1, 12, 30))
    assert verify(stack([1, 2, 4]), (1, 1, 15, 30)).agrees
    with pytest.raises(FieldError, match=r"3 x 3 pixels; got one of 2 x 2\. Give it a larger one"):
        verify(lambda x: F.conv2d(x, np.ones((1, 1, 3, 3), np.float32), padding=1), (1, 1, 2, 2))


def test_a_network_that_fails_says_with_which_image():
    def fails(x):
        if x.device == "cpu" and x.numpy().max() > 0:
            raise ValueError("no light, please")
        return F.relu(x)

    def fails_on_light(x):
        if x.device == "cpu" and x.data.max() > 0:
            raise ValueError("no light, please")
        return F.relu(x)

    with pytest.raises(FieldError, match=r"of shape \(1, 1, 4, 4\); it failed on one, with ValueE"):
        measure(fails_on_light, (1, 1, 4, 4))
    with pytest.raises(FieldError, match=r"failed on one, with GraphError"):
        measure(fails, (1, 1, 4, 4))
    with pytest.raises(
        FieldError, match=r"expected finite numbers from the probe; the network giv"
    ):
        measure(lambda x: F.log(x * 0), (1, 1, 4, 4))
    with pytest.raises(FieldError, match=r"returns a tensor computed from its image; got NoneType"):
        analyse(lambda x: None, (1, 1, 4, 4))
    with pytest.raises(FieldError, match=r"got a tensor that is not\. Compute with ops on tensors"):
        analyse(lambda x: x.detach(), (1, 1, 4, 4))


@pytest.mark.parametrize("size", [(), (4,), (1, 1, 0, 4), (1, 1, 4, 4.0), (1, 1, True, 4)])
def test_sizes_that_are_none(size):
    with pytest.raises(ShapeError, match=r"expected an input size of whole numbers of at least 1"):
        analyse(stack([1]), size)


def test_outputs_and_layers_that_are_not_there():
    net = stack([1, 2])
    with pytest.raises(
        ConfigError, match=r"expected the name of a layer; got '7'\. There are 0, 1"
    ):
        measure(net, (1, 1, 9, 9), layer="7")
    with pytest.raises(PositionError, match=r"within 9 rows and 9 columns; got \(9, 0\)"):
        measure(net, (1, 1, 9, 9), (9, 0))
    with pytest.raises(PositionError, match=r"rows and columns from 0 to 8 and 8; got \(0, -1\)"):
        analyse(net, (1, 1, 9, 9)).output.seen_by((0, -1))
    with pytest.raises(
        ConfigError, match=r"expected a method out of gradient, impulse; got 'guess"
    ):
        measure(net, (1, 1, 9, 9), method="guess")
    with pytest.raises(FieldError, match=r"expected an image \(N, C, H, W\) or \(C, H, W\); got"):
        measure(net, (9, 9))


# ---- measurement -----------------------------------------------------------------------------


def test_a_dead_network_is_measured_all_the_same():
    """Weights of zero, shut rectifiers, Winograd's tiles: nothing of that hides a pixel."""
    net = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1, rng=0, relu=True) for _ in range(2)))
    for parameter in net.parameters():
        parameter.data[...] = -1 if parameter.ndim == 1 else 0
    seen = measure(net, (1, 16, 12, 12), (5, 6))
    assert np.argwhere(seen).tolist() == [[y, z] for y in range(3, 8) for z in range(4, 9)]
    assert all((p.data == (-1 if p.ndim == 1 else 0)).all() for p in net.parameters())


def test_one_filter_stands_for_all_where_weights_are_positive():
    """The first filters see nothing, and the last one's gradient is that of one place."""
    for groups in (1, 2):
        layer = nn.Conv2d(4, 6, 3, padding=1, dilation=2, groups=groups, bias=False, rng=0)
        layer.requires_grad_(False).weight.data[:] = abs(layer.weight.data) + 0.1
        x = Tensor(np.ones((2, 4, 7, 6), np.float32), requires_grad=True)
        out = layer(x)
        seed = np.zeros(out.shape, np.float32)
        seed[1, -1, 2, 3] = 1
        found = probes.pull_back(out, seed, x, np.random.default_rng(0))
        exact = probes.pull_back(out, seed, x)  # numbers count here, and all filters
        out.backward(seed)
        np.testing.assert_array_equal(found != 0, x.grad.numpy() != 0)
        np.testing.assert_allclose(exact, x.grad.numpy(), rtol=1e-6)
        assert found.any()


def test_a_function_of_a_network_that_learns():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, rng=0), nn.ReLU(), nn.Conv2d(2, 2, 3, dilation=2, rng=1)
    )
    assert net[0].weight.requires_grad
    found = measure(lambda x: net(x), (1, 1, 15, 15))
    np.testing.assert_array_equal(found, measure(net, (1, 1, 15, 15)))


@pytest.mark.parametrize("zero", [(0, 0), (1, 2)])
def test_a_function_with_a_weight_of_zero_reads_nothing_there(zero):
    w = np.ones((3, 1, 3, 3))
    w[:, :, zero[0], zero[1]] = 0

    def function(x):
        return F.conv2d(x, tensor(w.astype(x.dtype), device=x.device))

    mask = measure(function, (1, 1, 5, 5), output=(1, 1))
    expected = np.zeros((5, 5), bool)
    expected[1:4, 1:4] = w[0, 0] != 0
    np.testing.assert_array_equal(mask, expected)


def test_a_maximum_shows_all_its_pixels():
    seen = measure(nn.MaxPool2d((2, 3)), (1, 1, 6, 6), (1, 1))
    assert np.argwhere(seen).tolist() == [[y, z] for y in (2, 3) for z in (3, 4, 5)]


def test_a_wrong_analysis_shows_its_counterexample(monkeypatch):
    from tinydilate.functional.convolution import Convolution

    net = nn.Sequential(("a", conv(3, padding=1)), ("b", conv(3, padding=2, dilation=2)))
    right = RULES[Convolution]

    def forgets_dilation(op, number, axes):
        op.window = op.window._replace(dilation=(1, 1), padding=((1, 1), (1, 1)))
        return right(op, number, axes)

    monkeypatch.setitem(RULES, Convolution, forgets_dilation)
    found = verify(net, (1, 1, 12, 12))
    assert not found.agrees
    assert [check.counterexample is None for check in found.checks] == [True, False]
    assert found.checks[1].counterexample == ((0, 0), (0, 3), False, True)
    assert str(found).splitlines()[1:] == [
        "b: output (0, 0) does not see pixel (0, 3), says the analysis; measured, it does",
        "analysis and measurement by gradient DIFFER",
    ]


def test_verify_takes_every_phase():
    net = nn.Sequential(nn.MaxPool2d(2), nn.ConvTranspose2d(1, 1, (3, 2), (3, 2), rng=0))
    checks = verify(net, (1, 1, 18, 18)).checks
    middle = [output for output in checks[1].outputs if 0 not in output and 26 not in output]
    assert {i % 3 for i, _ in middle} == {0, 1, 2}
    assert {j % 2 for _, j in middle} == {0, 1}


# ---- the effective field ---------------------------------------------------------------------


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(few, st.integers(1, 4), st.sampled_from([1, 1, 2]), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_closed_form_is_the_variance_of_uniform_kernels(rows):
    """Against plain convolutions of uniform kernels, and against the measured gradient."""
    profile, jump, chain = np.ones(1), 1, []
    for kernel, dilation, stride, pool in rows:
        dilation = 1 if pool else dilation
        taps = np.zeros((kernel - 1) * dilation * jump + 1)
        taps[:: dilation * jump] = 1 / kernel
        profile = np.convolve(profile, taps)
        jump *= stride
        chain.append(
            nn.MaxPool2d(kernel, stride)
            if pool
            else conv(kernel, stride=stride, dilation=dilation, relu=True)
        )
    place = np.arange(len(profile))
    sigma = np.sqrt(profile @ (place - profile @ place) ** 2)
    net, size = nn.Sequential(*chain), (1, 1, len(profile), len(profile))
    assert closed_form_sigma(net, size) == pytest.approx((sigma, sigma), abs=1e-12)
    heat = effective(net, size, (0, 0), weights="uniform")
    np.testing.assert_allclose(heat.along(0), profile, atol=1e-12)
    np.testing.assert_allclose(heat.heat, np.outer(profile, profile), atol=1e-12)
    assert heat.sigma == pytest.approx((sigma, sigma), abs=1e-6)


def test_effective_fields_of_the_paper():
    context = models.context(1, rng=0)
    heat = effective(context, (1, 1, 67, 67), weights="uniform")
    assert heat.width() == (56, 56)
    assert heat.sigma == pytest.approx((15.12, 15.12), abs=0.005)
    assert heat.centre == pytest.approx((33, 33))
    assert heat.mass_within(1) == pytest.approx(1)
    assert heat.mass_within(0.5) == pytest.approx(0.684**2, abs=0.001)  # one sigma is 15 of 33


def test_closed_form_of_the_front_end():
    front = models.front_end(1, border=False, device="meta")
    assert closed_form_sigma(front, (1, 3, 380, 380)) == pytest.approx((69.14, 69.14), abs=0.005)
    with pytest.raises(FieldError, match=r"expected a chain of layers for the closed form; got br"):
        closed_form_sigma(lambda x: x.relu() + x, (1, 1, 4, 4))
    with pytest.raises(FieldError, match=r"got ResizeNearest, which is none\. Measure it with eff"):
        closed_form_sigma(lambda x: F.interpolate(x, scale_factor=2), (1, 1, 4, 4))


def test_random_weights_spread_like_uniform_ones_on_average():
    net = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=d, dilation=d, rng=0) for d in (1, 1, 2)))
    heat = effective(net, (1, 8, 15, 15), weights="random", draws=40)
    sigma, _ = closed_form_sigma(net, (1, 8, 15, 15))
    assert heat.sigma == pytest.approx((sigma, sigma), rel=0.05)
    assert heat.heat.sum() == pytest.approx(1)


def test_the_identity_looks_at_one_pixel():
    net = models.context(3, noise=0.0, rng=0)
    heat = effective(net, (1, 3, 67, 67), draws=3)
    assert heat.heat[33, 33] == pytest.approx(1)
    assert heat.sigma == pytest.approx((0, 0), abs=1e-6)
    assert heat.width() == (1, 1)


def test_effective_refuses_what_makes_no_sense():
    net = stack([1])
    for parameter in net.parameters():
        parameter.data[...] = 0
    with pytest.raises(
        FieldError, match=r"expected a gradient of output \(2, 2\) of 0 by an image"
    ):
        effective(net, (1, 1, 5, 5))
    with pytest.raises(
        ConfigError, match=r"expected weights out of own, random, uniform; got 'hea"
    ):
        effective(net, (1, 1, 5, 5), weights="heavy")
    with pytest.raises(
        ConfigError, match=r"expected an nn\.Module to give random weights; got a f"
    ):
        effective(F.relu, (1, 1, 5, 5), weights="random")
    with pytest.raises(ConfigError, match=r"expected draws, a whole number of at least 1; got 0\."):
        effective(net, (1, 1, 5, 5), draws=0)
    with pytest.raises(ConfigError, match=r"expected a share from 0 to 1; got 95\."):
        narrowest(np.ones(1), 95)
    with pytest.raises(ConfigError, match=r"expected a part of the field from 0 to 1; got 2"):
        effective(stack([1]), (1, 1, 5, 5)).mass_within(2)
    with pytest.raises(PositionError, match=r"within 5 rows and 5 columns; got \(-1, 0\)"):
        effective(stack([1]), (1, 1, 5, 5), output=(-1, 0))


# ---- claims, tables, cost --------------------------------------------------------------------


def test_the_papers_claims_hold():
    found = claims()
    assert [claim for claim in found if not claim.agrees] == []
    numbers = [claim.claimed for claim in found]
    assert numbers[:8] == [3, 5, 9, 17, 33, 65, 67, 67]
    assert numbers[8:14] == [3, 7, 15, 31, 63, 127]
    assert numbers[-4:] == [380, 908, 652, 2444]


def test_the_size_that_is_advised_does_for_every_layer():
    net = nn.Sequential(conv(3, padding=1), nn.MaxPool2d(2), *stack([1, 4, 8]))
    with pytest.raises(FieldError, match=r"output of 0, 3 x 3 .* would do") as raised:
        verify(net, (1, 1, 2, 64))
    height, width = map(int, re.search(r"(\d+) x (\d+) would do", str(raised.value)).groups())
    assert verify(net, (1, 1, height, width)).agrees


def test_a_table_ends_with_what_comes_out():
    """The pooling is no module: it had no row."""
    layer = conv(3)
    rows = format_table(analyse(lambda x: F.max_pool2d(layer(x), 4), (1, 1, 16, 16))).splitlines()
    assert rows[-1].split()[1:4] == ["output", "6", "4"]
    assert len(rows) == 4


def test_only_images_are_measured():
    with pytest.raises(FieldError, match=r"^expected an image .* got \(8, 8\)\. Add channels\.$"):
        verify(nn.ReLU(), (8, 8))


def test_a_size_that_is_one_number_is_refused():
    with pytest.raises(ShapeError, match=r"^expected an input size of whole numbers .*; got 64\.$"):
        analyse(stack([1]), 64)


def test_table_and_json():
    analysis = analyse(stack([2, 2, 2]), (1, 1, 32, 32))
    assert format_table(analysis).splitlines()[-1].split() == [
        *("2", "Conv2d", "13", "1", "0", "6", "49", "29", "%", "1")
    ]
    found = json.loads(json.dumps(layer_as_dict(analysis.output)))
    assert found["phases"] == [[[-6, -4, -2, 0, 2, 4, 6]]] * 2
    assert found["share"] == 49 / 169


def test_the_whole_network_is_cheap():
    net = models.FrontEndWithContext(
        models.front_end(21, device="meta"),
        models.context(21, "large", padding="buffer", device="meta"),
    )
    begin = time.process_time()
    last = analyse(net, (1, 3, 500, 500)).output
    assert time.process_time() - begin < 1.0
    tracemalloc.start()
    analyse(net, (1, 3, 500, 500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 2**20
    assert last.extent == (916, 916)
    assert last.period == (8, 8)
    assert last.centre == (Fraction(0), Fraction(0))


def test_nothing_is_changed_by_looking():
    net = nn.Sequential(conv(3), nn.Dropout(0.5))
    before = {name: array.copy() for name, array in net.state_dict().items()}
    verify(net, (1, 1, 9, 9))
    effective(net, (1, 1, 9, 9), draws=1)
    assert net.training
    assert all((before[name] == array).all() for name, array in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    x = tensor(np.ones((1, 1, 9, 9), np.float32))
    assert isinstance(net(x), Tensor)


def test_a_class_in_the_place_of_a_network_is_named():
    with pytest.raises(
        ConfigError, match=r"^expected a network; got the class ReLU\. Make one: ReL"
    ):
        analyse(nn.ReLU, (1, 1, 6, 6))
