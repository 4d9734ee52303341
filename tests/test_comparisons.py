"""Networks that keep poolings: their fields and counts, where cells lie, and what is the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydilate import Tensor, models, nn, use
from tinydilate import functional as F
from tinydilate.device import MetaArray
from tinydilate.errors import ConfigError
from tinydilate.models import Average, Conv, Pool
from tinydilate.receptive_field import analyse, verify

ORIGINAL = {"rows": models.VGG_16_FCN, "border": False}
REFLECTED = {"rows": models.VGG_16_STRIDED, "border": True}


def meta(*shape):
    return Tensor(MetaArray(shape))


def count(module):
    return sum(parameter.size for parameter in module.parameters())


def narrow(rows, maps=2):
    """The same table with few maps, to be built with numbers."""
    return [row._replace(maps=maps) if isinstance(row, Conv) else row for row in rows]


# ---- fields, counts, sizes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "parameters", "field"),
    [
        (models.front_end, 134_346_581, (380, 8, 3.5)),
        (models.pooled_front_end, 134_346_581, (404, 8, 3.5)),
        (models.deeplab_large_fov, 20_505_429, (435, 8, 0)),
    ],
)
def test_cells_of_the_large_networks(build, parameters, field):
    network = build(21, device="meta")
    assert count(network) == parameters
    output = analyse(network, (1, 3, 500, 375)).output
    assert (output.extent[0], output.stride[0], output.centre[0]) == field


@pytest.mark.parametrize(
    ("build", "classes", "parameters", "field"),
    [
        (models.small_front_end, 11, 39_739, (22, 2, 0.5)),
        (models.small_pooled_front_end, 11, 39_739, (24, 2, 0.5)),
        (models.small_large_fov, 11, 72_507, (43, 2, 0)),
    ],
)
def test_cells_of_the_small_networks(build, classes, parameters, field):
    network = build(classes, device="meta")
    assert count(network) == parameters
    output = analyse(network, (1, 1, 64, 64)).output
    assert (output.extent[0], output.stride[0], output.centre[0]) == field


@pytest.mark.parametrize("options", [ORIGINAL, REFLECTED], ids=["zeros", "reflection"])
def test_fields_inside_fcn_8s(options):
    network = models.fcn_8s(21, device="meta", **options)
    assert count(network) == 134_368_799
    analysis = analyse(network, (1, 3, 500, 375))
    fields = {
        name: (analysis[name].extent[0], analysis[name].stride[0])
        for name in ("score_pool3", "score_pool4", "score_fr", "upscore2", "upscore8")
    }
    assert fields == {
        "score_pool3": (44, 8), "score_pool4": (100, 16), "score_fr": (404, 32),
        "upscore2": (404 + 32, 16), "upscore8": (404 + 32 + 32, 1),
    }  # fmt: skip
    assert analysis.output.centre == (0, 0)  # of pixel 0: nothing is moved


def test_a_measurement_finds_the_same_fields():
    for build in (models.small_pooled_front_end, models.small_large_fov, models.small_fcn):
        assert verify(build(2, rng=0), (1, 1, 52, 48)).agrees


def test_names_and_cuts_of_fcn_8s():
    """Those of the original file, whose offsets are written there as numbers."""
    network = models.fcn_8s(21, device="meta")
    names = [name for name, _ in network.named_children()]
    assert names[-9:] == [
        "drop6", "fc7", "drop7", "score_fr",
        "upscore2", "score_pool4", "upscore_pool4", "score_pool3", "upscore8",
    ]  # fmt: skip
    assert [(f.tap, f.offset) for f in network.fusions] == [("pool4", 5), ("pool3", 9)]
    assert network.offset == 31
    assert [getattr(network, name).window.kernel[0] for name in ("upscore2", "upscore8")] == [4, 16]
    assert network.conv1_1.padding == 100
    assert network.conv5_3.padding == 1
    assert network.fc6.padding == 0
    bordered = models.fcn_8s(21, device="meta", **REFLECTED)
    assert bordered.border.width == 186
    assert ([f.offset for f in bordered.fusions], bordered.offset) == ([8, 18], 28)
    coarse = models.fcn_8s(21, skips=(), device="meta")
    assert (coarse.last, coarse.offset) == ("upscore32", 19)


@pytest.mark.parametrize("options", [ORIGINAL, REFLECTED], ids=["zeros", "reflection"])
@given(height=st.integers(1, 300), width=st.integers(1, 300))
def test_an_image_of_any_size_gives_its_pixels(options, height, width):
    for skips in (("pool4", "pool3"), ("pool4",), ()):
        network = models.fcn_8s(3, skips=skips, device="meta", **options)
        assert network(meta(2, 3, height, width)).shape == (2, 3, height, width)
    small = (models.small_fcn, models.small_pooled_front_end, models.small_large_fov)
    for build in small:
        network = build(3, device="meta")
        if build is not models.small_fcn:
            network = models.FrontEndWithContext(network)
        assert network(meta(1, 1, height, width)).shape == (1, 3, height, width)


def test_cells_of_deeplab():
    network = models.deeplab_large_fov(21, device="meta")
    for side in (1, 8, 9, 321, 500):
        cells = -(-(side - 1) // 8) + 1
        assert network(meta(1, 3, side, 321)).shape == (1, 21, cells, 41)


# ---- what is the same ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooled", "strided", "channels", "size", "step"),
    [
        (models.SMALL_POOLED, models.SMALL_STRIDED, 1, (40, 36), 2),
        (models.VGG_16_POOLED, models.VGG_16_STRIDED, 3, (404 + 64, 404 + 32), 4),
    ],
    ids=["small", "VGG-16"],
)
def test_dilated_poolings_compute_what_strided_ones_do(pooled, strided, channels, size, step):
    options = {"in_channels": channels, "border": False, "final_std": 1, "rng": 0}
    dense = models.front_end(3, rows=narrow(pooled, 3), **options).eval()
    coarse = models.front_end(3, rows=narrow(strided, 3), **options).eval()
    coarse.load_state_dict(dense.state_dict())
    image = np.random.default_rng(0).standard_normal((1, channels, *size)).astype(np.float32)
    with use("cpu:direct"):
        everywhere, there = dense(image).data, coarse(image).data
    assert np.ptp(there) > 0
    assert everywhere.shape[2] == step * (there.shape[2] - 1) + 1
    np.testing.assert_allclose(everywhere[..., ::step, ::step], there, rtol=1e-4, atol=1e-6)


def test_without_its_poolings_it_is_the_front_end():
    names = ("pool4", "pool5")
    assert [row for row in models.VGG_16_POOLED if row.name not in names] == [*models.VGG_16]
    assert [row for row in models.SMALL_POOLED if row.name != "pool2"] == [*models.SMALL]


# ---- where cells lie -------------------------------------------------------------------------


def passing_positions_on(network, weights):
    """Have each layer hand the first map on, so that on a ramp each cell holds its position.

    A pooling takes the last pixel of its window, which lies so many pixels behind the middle;
    ``weights`` has, for each layer of scores, its share in the sum and those pixels.
    """
    for name, layer in network.named_children():
        if not isinstance(layer, nn.Conv2d):
            continue
        share, behind = weights.get(name, (1, 0))
        middle = layer.window.kernel[0] // 2
        layer.weight.data[:] = 0
        layer.weight.data[0, 0, middle, middle] = share
        layer.bias.data[:] = -share * behind


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("options", [ORIGINAL, REFLECTED], ids=["zeros", "reflection"])
def test_fcn_8s_adds_scores_of_the_same_pixels(options, axis):
    options = {**options, "rows": narrow(options["rows"])}
    network = models.fcn_8s(2, rng=0, **options).eval()
    shares = {"score_fr": (0.5, 15.5), "score_pool4": (0.3, 7.5), "score_pool3": (0.2, 3.5)}
    passing_positions_on(network, shares)
    ramp = np.arange(230, dtype=np.float32)
    image = np.moveaxis(np.broadcast_to(ramp, (1, 3, 97, 230)), 3, axis)
    out = np.moveaxis(network(image).data, axis, 3)[0, 0, 48]
    np.testing.assert_allclose(out[80:150], ramp[80:150], atol=1e-3)


def test_small_fcn_adds_scores_of_the_same_pixels():
    network = models.small_fcn(2, rng=0)
    passing_positions_on(network, {"score_fr": (0.6, 1.5), "score_pool1": (0.4, 0.5)})
    ramp = np.broadcast_to(np.arange(61, dtype=np.float32), (1, 1, 32, 61))

    def inside(maps):  # at the rim the upsampling fades: beyond the last cell it reads zeros
        return maps[0, 0, 8:24, 12:48]

    np.testing.assert_allclose(inside(network(ramp).data), inside(ramp), atol=1e-4)


@pytest.mark.parametrize("width", [32, 33])
def test_cells_at_corners_stay_there(width):
    front = nn.Sequential(nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3, 2, 1))
    network = models.FrontEndWithContext(front)
    assert network.enlarge.extra_repr() == "stride=4"
    ramp = np.broadcast_to(np.arange(width, dtype=np.float32), (1, 1, 33, width))
    out = network(ramp).data[0, 0, 8:24, 4:27]
    np.testing.assert_allclose(out, np.broadcast_to(np.arange(4, 27), (16, 23)), atol=1e-5)


def test_coarse_scores_alone_at_the_start():
    network = models.small_fcn(3, rng=0)
    assert not network.score_pool1.weight.data.any()
    image = np.random.default_rng(0).standard_normal((1, 1, 20, 24)).astype(np.float32)
    before = network(image).data
    network.score_pool1.weight.data[:] = 1
    assert not np.array_equal(network(image).data, before)


# ---- learning --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [models.small_fcn, models.small_pooled_front_end, models.small_large_fov]
)
def test_what_learns_and_what_is_fixed(build):
    network = build(3, rng=0)
    whole = network if build is models.small_fcn else models.FrontEndWithContext(network)
    random = np.random.default_rng(0)
    image = random.standard_normal((1, 1, 20, 24)).astype(np.float32)
    F.cross_entropy(whole(image), random.integers(0, 3, (1, 20, 24))).backward()
    for name, parameter in network.named_parameters():
        if name.startswith("upscore"):
            assert parameter.grad is None, name
        else:
            assert parameter.grad.data.any(), name


# ---- rows, and what is refused ---------------------------------------------------------------


def test_rows_of_poolings():
    rows = [Conv("a", 3, 1, 4), Pool("p", 3, stride=1, dilation=2, padding=1), Average("m", 5)]
    network = models.front_end(2, rows=rows, in_channels=1, border=False, rng=0)
    assert repr(network.p) == (
        "MaxPool2d(kernel_size=3, stride=1, padding=1, dilation=2, ceil_mode=True)"
    )
    assert (network.m.kernel_size, network.m.stride, network.m.padding) == (5, 1, 2)
    assert network(meta_like(network, 1, 1, 20, 21)).shape == (1, 2, 16, 17)


def meta_like(network, *shape):
    network.to("meta")
    return meta(*shape)


@pytest.mark.parametrize(
    ("skips", "message"),
    [
        (("pool9",), r"expected skips out of the trunk's layers, conv1_1, .*, drop7; got 'pool9'"),
        (("pool3", "pool4"), "from coarse to fine.*got pool4, with a stride of 16 behind 8"),
    ],
)
def test_skips_that_make_no_sense(skips, message):
    with pytest.raises(ConfigError, match=message):
        models.fcn_8s(3, skips=skips, device="meta")


def test_a_trunk_whose_cells_lie_between():
    rows = [Conv("a", 3, 1, 2, padding=1), Pool("p"), Conv("b", 2, 1, 2), Pool("q")]
    with pytest.raises(ConfigError, match="lies on a cell of p; it lies on number"):
        models.FCN(2, rows, ("p",), border=False, device="meta")
