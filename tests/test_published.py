"""The four published networks: names, sizes, counts, fields and costs, as in their files."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest

from tinydilate import Tensor, models, nn
from tinydilate.classes import CLASSES
from tinydilate.device import MetaArray
from tinydilate.errors import ConfigError, DataError, DeviceError
from tinydilate.field import Field
from tinydilate.models import PUBLISHED
from tinydilate.receptive_field import analyse
from tinydilate.see.summary import summarise

NETWORKS = list(PUBLISHED.values())
EACH = pytest.mark.parametrize("network", NETWORKS, ids=list(PUBLISHED))

# What the front end prints at 900 x 900: name, maps, cells a side, field, parameters.
FRONT_END = """
conv1_1 64 898 3 1792
conv1_2 64 896 5 36928
pool1 64 448 6 0
conv2_1 128 446 10 73856
conv2_2 128 444 14 147584
pool2 128 222 16 0
conv3_1 256 220 24 295168
conv3_2 256 218 32 590080
conv3_3 256 216 40 590080
pool3 256 108 44 0
conv4_1 512 106 60 1180160
conv4_2 512 104 76 2359808
conv4_3 512 102 92 2359808
conv5_1 512 98 124 2359808
conv5_2 512 94 156 2359808
conv5_3 512 90 188 2359808
fc6 4096 66 380 102764544
drop6 4096 66 380 0
fc7 4096 66 380 16781312
drop7 4096 66 380 0
"""


def meta(*shape):
    return Tensor(MetaArray(shape))


def count(module):
    return sum(parameter.size for parameter in module.parameters())


def names(module):
    return [name for name, _ in module.named_children()]


@pytest.mark.parametrize(
    ("name", "parameters", "size", "out"),
    [
        ("dilation8_voc", 141_149_720, (900, 900), (21, 66, 66)),
        ("dilation8_camvid", 134_313_443, (900, 1100), (11, 66, 91)),
        ("dilation7_kitti", 134_312_343, (852, 1640), (11, 60, 159)),
        ("dilation10_cityscapes", 134_373_043, (1396, 1396), (19, 1024, 1024)),
    ],
)
def test_counts_and_sizes_of_the_files(name, parameters, size, out):
    network = getattr(models, name)(device="meta")
    assert count(network) == parameters
    assert PUBLISHED[name].input_size == size
    assert network(meta(1, 3, *size)).shape == (1, *out)
    assert isinstance(network, nn.Sequential)
    assert not any(isinstance(layer, nn.Sequential) for layer in network)  # one flat line


def test_what_is_known_of_each():
    assert [network.name for network in NETWORKS] == list(PUBLISHED)
    assert [network.classes for network in NETWORKS] == list(CLASSES.values())
    assert [network.zoom for network in NETWORKS] == [8, 8, 8, 1]
    assert {(network.border, network.stride) for network in NETWORKS} == {(186, 8)}


@EACH
def test_border_and_stride_are_those_that_follow_from_the_layers(network):
    front = network.build(part="front end", border=True, device="meta")
    assert front.border.width == network.border
    assert analyse(front, (1, 3, 380, 380)).output.stride == (network.stride,) * 2
    bordered = network.build(border=True, device="meta")
    whole = network.build(device="meta")
    padded = 2 * network.border
    for height, width in itertools.product((8, 100, 375), (16, 500)):
        out = bordered(meta(1, 3, height, width)).shape
        assert out == whole(meta(1, 3, height + padded, width + padded)).shape
        cells = (math.ceil(height / 8), math.ceil(width / 8))
        assert out[2:] == tuple(side * 8 // network.zoom for side in cells)


@EACH
def test_the_front_end_layer_by_layer(network):
    final = "fc-final" if network.name == "dilation8_voc" else "final"
    classes = len(network.classes.names)
    table = [line.split() for line in FRONT_END.split("\n")[1:-1]]
    table.append([final, classes, 66, 380, 4096 * classes + classes])
    expected = [(name, *map(int, numbers)) for name, *numbers in table]
    rows = summarise(network.build(device="meta"), (1, 3, 900, 900)).rows
    front = network.build(part="front end", device="meta")
    assert names(front) == [row[0] for row in expected]
    found = [
        (row.name, *row.output_shape[1:3], row.field[0].extent, row.parameters)
        for row in rows[: len(expected)]
    ]
    assert found == expected


@pytest.mark.parametrize(
    ("name", "prefix", "blocks", "maps", "pads"),
    [
        (
            "dilation8_voc", "ct", "1_1 1_2 2_1 3_1 4_1 5_1",
            [42, 42, 84, 168, 336, 672, 672, 21], [33, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            "dilation8_camvid", "ctx", "1_1 1_2 2_1 3_1 4_1 5_1",
            [11] * 8, [1, 1, 2, 4, 8, 16, 1, 0],
        ),
        ("dilation7_kitti", "ctx", "1_1 1_2 2_1 3_1 4_1", [11] * 7, [1, 1, 2, 4, 8, 1, 0]),
        (
            "dilation10_cityscapes", "ctx", "1_1 1_2 2_1 3_1 4_1 5_1 6_1 7_1",
            [19] * 10, [1, 1, 2, 4, 8, 16, 32, 64, 1, 0],
        ),
    ],
)  # fmt: skip
def test_the_context_modules_as_shipped(name, prefix, blocks, maps, pads):
    network = getattr(models, name)(device="meta")
    front = PUBLISHED[name].build(part="front end", device="meta")
    behind = list(network.named_children())[len(front) :]
    upsample = [behind.pop()] if name == "dilation10_cityscapes" else []
    expected = [f"{prefix}_conv{block}" for block in blocks.split()]
    assert [each for each, _ in behind] == [*expected, f"{prefix}_fc1", f"{prefix}_final"]
    layers = [layer for _, layer in behind]
    assert [layer.out_channels for layer in layers] == maps
    assert [layer.padding for layer in layers] == pads
    assert [layer.relu for layer in layers] == [True] * (len(layers) - 1) + [False]
    assert [layer.window.kernel[0] for layer in layers] == [3] * (len(layers) - 1) + [1]
    for each, layer in upsample:
        assert each == "ctx_upsample"
        assert layer.weight.shape == (19, 1, 16, 16)
        assert (layer.window.stride, layer.window.before) == ((8, 8), (4, 4))
        assert (layer.groups, layer.bias, layer.weight.requires_grad) == (19, None, False)


def test_maps_of_the_voc_context_module():
    rows = summarise(models.dilation8_voc(device="meta"), (1, 3, 900, 900)).rows
    sides = [row.output_shape[2] for row in rows if row.name.startswith("ct_")]
    assert sides == [130, 128, 124, 116, 100, 68, 66, 66]


@pytest.mark.parametrize(
    ("name", "gmacs", "extent"),
    [
        ("dilation8_voc", (792, 34.8), 908),
        ("dilation8_camvid", (1053, 0.05), 908),
        ("dilation7_kitti", (1622, 0.06), 652),
        ("dilation10_cityscapes", (2647, 0.49), 2444),
    ],
)
def test_costs_and_fields(name, gmacs, extent):
    known = PUBLISHED[name]
    rows = summarise(known.build(device="meta"), (1, 3, *known.input_size)).rows
    rows = [row for row in rows if row.type != "ConvTranspose2d"]
    behind = sum(row.macs for row in rows if row.name.startswith("ct"))
    front = sum(row.macs for row in rows) - behind
    assert front / 1e9 == pytest.approx(gmacs[0], abs=0.51)
    assert behind / 1e9 == pytest.approx(gmacs[1], rel=0.15 if gmacs[1] < 0.1 else 0.02)
    assert rows[-1].field == (Field(extent, 8, 189.5, extent),) * 2


def test_names_of_the_weights_are_those_of_the_files():
    state = models.dilation10_cityscapes(device="meta").state_dict()
    assert list(state)[:2] == ["conv1_1.weight", "conv1_1.bias"]
    assert list(state)[-3:] == ["ctx_final.weight", "ctx_final.bias", "ctx_upsample.weight"]
    assert "final.bias" in state
    assert {"fc-final.weight", "ct_fc1.bias"} <= set(
        models.dilation8_voc(device="meta").state_dict()
    )


def test_parts():
    """The front end alone is what stands in front in the whole; it can be read from there, too."""
    for name, known in PUBLISHED.items():
        front = known.build(part="front end", device="meta")
        whole = known.build(device="meta")
        assert names(whole)[: len(front)] == names(front)
        assert names(front)[-1] == known.final_name
        assert names(whole)[-1] == {
            "dilation8_voc": "ct_final",
            "dilation10_cityscapes": "ctx_upsample",
        }.get(name, "ctx_final")


@pytest.fixture
def narrow(monkeypatch):
    """The same networks with a hundredth of the maps, to be built with numbers."""

    def front_end(classes, **options):
        rows = [
            row._replace(maps=max(4, row.maps // 64)) if isinstance(row, models.Conv) else row
            for row in models.VGG_16
        ]
        return models.front_end(classes, rows=rows, **options)

    monkeypatch.setattr("tinydilate.models.published.front_end", front_end)


@pytest.mark.usefixtures("narrow")
def test_a_seed_gives_the_same_numbers_in_the_part_and_in_the_whole():
    whole = models.dilation8_camvid(rng=1).state_dict()
    part = models.dilation8_camvid(rng=1, part="front end").state_dict()
    other = models.dilation8_camvid(rng=2).state_dict()
    assert all(np.array_equal(array, whole[name]) for name, array in part.items())
    assert not np.array_equal(whole["conv1_1.weight"], other["conv1_1.weight"])
    assert not np.array_equal(whole["conv1_1.weight"][:4], whole["conv1_2.weight"][:, :3])
    assert np.abs(whole["ctx_fc1.weight"][0, 0, 1, 1]) == 1  # the identity
    double = models.dilation8_camvid(rng=1, dtype=np.float64)
    assert {parameter.dtype.name for parameter in double.parameters()} == {"float64"}


@pytest.mark.usefixtures("narrow")
def test_weights_that_follow():
    """Zeros, but for what is fixed; loading fills them; nothing is drawn meanwhile."""
    network = models.dilation10_cityscapes(weights="zeros")
    state = network.state_dict()
    fixed = state.pop("ctx_upsample.weight")
    assert not any(array.any() for array in state.values())
    assert np.array_equal(fixed, models.bilinear_upsampling(19, 8).weight.data)
    assert not network.ctx_upsample.weight.requires_grad
    assert network.conv1_1.weight.requires_grad
    random = models.dilation10_cityscapes(rng=0)
    network.load_state_dict(random.state_dict())
    image = np.random.default_rng(0).standard_normal((1, 3, 380, 388)).astype(np.float32)
    assert np.array_equal(network.eval()(image).data, random.eval()(image).data)


RESIDENT = Path("/proc/self/statm")  # pages: all, resident, ...


@pytest.mark.skipif(not RESIDENT.exists(), reason="the system does not tell")
def test_weights_that_follow_take_no_memory_before():
    before = int(RESIDENT.read_text().split()[1])
    network = models.dilation8_voc(weights="zeros")
    after = int(RESIDENT.read_text().split()[1])
    assert count(network) == 141_149_720
    assert (after - before) * os.sysconf("SC_PAGE_SIZE") < 20e6  # of 565e6, once written to


def test_memory_that_is_given_later():
    layer = nn.Conv2d(2, 3, 3, device="meta")
    weight = layer.weight
    assert layer.to_empty("cpu") is layer
    assert layer.weight is weight  # an optimiser that holds it needs no telling
    assert weight.data.shape == (3, 2, 3, 3)
    assert not weight.data.any()
    layer.load_state_dict(nn.Conv2d(2, 3, 3, rng=0).state_dict())
    assert weight.data.any()
    layer.weight.grad = layer.weight
    assert layer.to_empty("meta").weight.device == "meta"
    assert layer.weight.grad is None
    with pytest.raises(DeviceError, match="expected a device"):
        layer.to_empty("tpu")
    with pytest.raises(DeviceError, match=r'or give it memory first with to_empty\("cpu"\)'):
        layer.load_state_dict(nn.Conv2d(2, 3, 3, rng=0).state_dict())


def test_names_that_are_missing_are_told():
    network = nn.as_meta(models.small_front_end(3, rng=0)).to_empty("cpu")
    with pytest.raises(DataError, match=r"missing conv1_1\.weight"):
        network.load_state_dict({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "context"}, "expected part to be 'whole' or 'front end'; got 'context'"),
        ({"weights": "ones"}, "expected weights to be 'random' or 'zeros'; got 'ones'"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        models.dilation7_kitti(device="meta", **options)
