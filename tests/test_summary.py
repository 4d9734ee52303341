"""The table of a network: published counts, costs and fields, without the memory."""

import json
import time
import tracemalloc

import numpy as np
import pytest

from tinydilate import Op, models, nn
from tinydilate.errors import ShapeError
from tinydilate.field import Field
from tinydilate.see.summary import format_table, summarise, to_json


def voc(border=False):
    return nn.Sequential(
        ("front_end", models.front_end(21, border=border, device="meta")),
        ("context", models.context(21, "large", padding="buffer", prefix="ct", device="meta")),
    )


@pytest.fixture(scope="module")
def published():
    return summarise(voc(), (1, 3, 900, 900))


def test_costs_of_the_voc_network(published):
    rows = {row.name.partition(".")[2]: row for row in published.rows}
    assert published.parameters == published.trainable == 141_149_720
    assert published.parameter_bytes == 4 * published.parameters
    front = sum(row.macs for row in published.rows if row.name.startswith("front_end"))
    context = published.macs - front
    assert round(front / 1e9) == 792
    assert round(context / 1e9, 1) == 34.8
    assert round(rows["fc6"].macs / 1e9) == 448
    assert round(rows["fc7"].macs / 1e9) == 73
    assert rows["conv1_2"].macs == 896 * 896 * 64 * 64 * 9
    convolutions = [row for row in published.rows if row.type == "Conv2d"]
    front_memory = sum(r.activation_bytes for r in convolutions if r.name.startswith("front_end"))
    assert round(front_memory / 2**30, 2) == 0.95
    assert rows["fc6"].output_shape == (1, 4096, 66, 66)
    assert rows["fc6"].parameters == 102_764_544
    assert rows["pool1"].parameters == rows["pool1"].macs == 0


@pytest.mark.parametrize(
    ("classes", "size", "ceil_mode", "gmacs", "fc6", "fc7", "gib"),
    [
        (21, (500, 500), True, 105, 26, 4, 0.25),
        (21, (900, 900), True, 792, 448, 73, 0.95),
        (11, (900, 1100), True, 1053, 617, 101, 1.19),
        (11, (852, 1640), False, 1614, 974, 159, 1.72),
        (19, (1396, 1396), True, 2647, 1684, 275, 2.52),
    ],
)
def test_costs_of_the_front_ends(classes, size, ceil_mode, gmacs, fc6, fc7, gib):
    net = models.front_end(classes, border=False, ceil_mode=ceil_mode, device="meta")
    summary = summarise(net, (1, 3, *size))
    macs = {row.name: row.macs for row in summary.rows}
    assert summary.macs / 1e9 == pytest.approx(gmacs, abs=0.51)
    assert (round(macs["fc6"] / 1e9), round(macs["fc7"] / 1e9)) == (fc6, fc7)
    memory = sum(row.activation_bytes for row in summary.rows if row.type == "Conv2d")
    assert round(memory / 2**30, 2) == gib


def test_fields_of_the_voc_network(published):
    fields = {row.name.partition(".")[2]: row.field for row in published.rows}
    assert fields["final"] == (Field(380, 8, 189.5, 380),) * 2
    context = [row for row in published.rows if row.name.startswith("context")]
    cells = [(row.field[0].extent - 380) // 8 + 1 for row in context]
    assert cells == [3, 5, 9, 17, 33, 65, 67, 67]
    assert fields["ct_final"] == (Field(908, 8, 189.5, 908),) * 2
    with_border = summarise(voc(border=True), (1, 3, 528, 528)).rows[-1]
    assert with_border.field[0] == Field(908, 8, 3.5, 908)
    assert with_border.output_shape == (1, 21, 66, 66)


def test_table_1_alone():
    rows = summarise(models.context(21, device="meta"), (1, 21, 66, 66)).rows
    assert [row.field[0].extent for row in rows] == [3, 5, 9, 17, 33, 65, 67, 67]
    assert all(row.field[1] == (row.field[0].extent, 1, 0, row.field[0].extent) for row in rows)
    assert all(row.reached == 1 for row in rows)


def test_it_takes_no_memory_and_no_time():
    tracemalloc.start()
    begin = time.process_time()  # of others that compute meanwhile nothing counts
    text = format_table(summarise(voc(), (1, 3, 900, 900)))
    seconds = time.process_time() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "141,149,720" in text
    assert seconds < 1
    assert peak < 5e6  # the weights alone would be 565e6 bytes


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.Dropout(0.5))
    before = model.state_dict()
    summarise(model, (1, 1, 8, 8))
    assert model.training
    assert model[0].weight.device == "cpu"
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def test_rectangles():
    model = nn.Sequential(
        nn.ZeroPad2d((1, 0, 2, 2)), nn.Conv2d(1, 4, (5, 3), stride=(1, 2)), nn.AvgPool2d((1, 2))
    )
    row = summarise(model, (2, 1, 9, 11)).rows[-1]
    assert row.output_shape == (2, 4, 9, 2)
    assert row.field == (Field(5, 1, 0, 5), Field(5, 4, 1, 5))
    assert "5x5" not in format_table(summarise(model, (2, 1, 9, 11)))
    assert "  1x4  " in format_table(summarise(model, (2, 1, 9, 11)))


class Twice(nn.Module):
    """One layer, run twice, and a sum that no layer makes."""

    def __init__(self):
        self.conv = nn.Conv2d(2, 2, 3, padding=1, rng=0)
        self.unused = nn.Linear(3, 3)
        self.last = nn.Conv2d(2, 1, 1)

    def forward(self, x):
        y = self.conv(self.conv(x))
        return self.last(y + x)


def test_a_layer_that_runs_twice_is_counted_once():
    summary = summarise(Twice().requires_grad_(False), (1, 2, 6, 6))
    assert [row.name for row in summary.rows] == ["conv", "conv", "last"]
    assert [row.parameters for row in summary.rows] == [38, 0, 3]
    assert summary.parameters == 38 + 3 + 12
    assert summary.trainable == 0
    assert [row.field and row.field[0].extent for row in summary.rows] == [3, 5, 5]
    assert [row.macs for row in summary.rows] == [36 * 36, 36 * 36, 36 * 2]
    assert "53 (53 fixed)" in format_table(summary)


class Sum(nn.ReLU):
    """A layer that looks at two inputs."""

    def forward(self, a, b):
        return a + b


class Skip(nn.Module):
    def __init__(self):
        self.conv, self.sum = nn.Conv2d(1, 1, 3, padding=1), Sum()

    def forward(self, x):
        return self.sum(x, self.conv(x))


def test_a_layer_of_two_inputs_sees_what_both_see():
    rows = summarise(Skip(), (1, 1, 5, 5)).rows
    assert [row.field and row.field[0].extent for row in rows] == [3, 3]


class Unknown(Op):
    def forward(self, x):
        return x

    def backward(self, grad):
        return grad


class Strange(nn.Module):
    def forward(self, x):
        return Unknown()(x)


def test_holes_and_ops_without_a_rule():
    layers = [nn.Conv2d(1, 1, 3, padding=2, dilation=2) for _ in range(3)]
    summary = summarise(nn.Sequential(*layers, Strange(), nn.ReLU()), (1, 1, 20, 20))
    assert [row.field and row.field[0].reached for row in summary.rows] == [3, 5, 7, None, None]
    assert summary.rows[2].reached == 49 / 169
    lines = format_table(summary).splitlines()
    assert [line.split()[-2:] for line in lines[4:6]] == [["29", "%"], ["-", "-"]]
    assert json.loads(to_json(summary))["layers"][2]["reached"] == 49 / 169


def test_memory_of_what_is_handed_through():
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.5), nn.ReLU())
    training = summarise(model, (1, 2, 4, 8)).rows
    assert [row.activation_bytes for row in training] == [0, 256, 256]
    evaluation = summarise(model.eval(), (1, 2, 4, 8)).rows
    assert [row.activation_bytes for row in evaluation] == [0, 0, 256]
    assert [row.field[0].extent for row in evaluation] == [1, 1, 1]


def test_features_have_no_field():
    assert [row.field for row in summarise(nn.ReLU(), (2, 5)).rows] == [None]


def test_layers_that_see_everything():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 16, 5), nn.ReLU())
    rows = summarise(model, (3, 1, 6, 6)).rows
    assert [row.field is None for row in rows] == [False, True, True, True]
    assert rows[2].macs == 3 * 32 * 5
    assert rows[2].output_shape == (3, 5)


def test_upsampling_and_deconvolution():
    model = models.FrontEndWithContext(models.small_front_end(4), models.context(4))
    rows = summarise(model, (1, 1, 64, 64)).rows
    assert rows[-1].name == "enlarge"
    assert rows[-1].field[0] == Field(22 + 2 * 66 + 2, 1, 0, 156)
    layer = models.bilinear_upsampling(3, 8)
    row = summarise(layer, (1, 3, 5, 5)).rows[0]
    assert (row.name, row.type) == ("", "ConvTranspose2d")
    assert row.macs == 3 * 25 * 256
    assert row.field[0] == Field(2, 1 / 8, -7 / 16, 2)
    assert "(itself)" in format_table(summarise(layer, (1, 3, 5, 5)))


def test_table_and_json(published):
    lines = format_table(published).splitlines()
    assert lines[0].split() == [
        "layer", "type", "output", "shape", "parameters", "MACs", "memory", "field", "stride",
        "centre", "reached",
    ]  # fmt: skip
    fc6 = next(line for line in lines if "fc6" in line)
    assert " ".join(fc6.split()) == (
        "front_end.fc6 Conv2d 1 x 4096 x 66 x 66 102,764,544 447.6 G 68.1 MiB 380 8 189.5 100 %"
    )
    assert len({len(line) for line in lines[2:30]}) == 1
    assert lines[-2].split() == ["MACs", "826.4", "G"]
    written = json.loads(to_json(published))
    assert written["parameters"] == 141_149_720
    assert len(written["layers"]) == len(published.rows)
    assert written["layers"][0]["name"] == "front_end.conv1_1"
    final = written["layers"][-1]
    assert (final["field"], final["stride"], final["centre"]) == ([908] * 2, [8] * 2, [189.5] * 2)
    nothing = json.loads(to_json(summarise(nn.Flatten(), (1, 2, 3))))
    assert nothing["layers"][0]["field"] is None


@pytest.mark.parametrize("size", [(), (1, 3, 0, 4), (1, 3, 4.5, 4), (True, 3, 4, 4)])
def test_refuses_sizes_that_are_none(size):
    with pytest.raises(ShapeError, match="expected an input size of whole numbers"):
        summarise(nn.ReLU(), size)


def test_a_wrong_input_is_the_layer_s_own_error():
    with pytest.raises(ShapeError, match="channels"):
        summarise(models.small_front_end(3), (1, 3, 64, 64))
