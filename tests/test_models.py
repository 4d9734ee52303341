"""The paper's networks: names, sizes, counts, fields, and what they compute at the start."""

import itertools
import math

import numpy as np
import pytest

from tinydilate import Tensor, models, nn, use
from tinydilate import functional as F
from tinydilate.device import MetaArray
from tinydilate.errors import ConfigError, ShapeError
from tinydilate.field import field_of
from tinydilate.models import DILATIONS_7, DILATIONS_10, Conv, Drop, Pool
from tinydilate.models.rows import readers_of, stride_of


def meta(*shape):
    return Tensor(MetaArray(shape))


def count(module):
    return sum(parameter.size for parameter in module.parameters())


def names(module):
    return [name for name, _ in module.named_children()]


def image(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- front end -------------------------------------------------------------------------------


def test_vgg_16_layer_by_layer():
    net = models.front_end(21, device="meta")
    rows = [
        (name, layer.weight.shape, layer.window.dilation[0], layer.relu, layer.weight.size + f)
        for name, layer in net.named_children()
        if isinstance(layer, nn.Conv2d)
        for f in layer.bias.shape
    ]
    assert rows == [
        ("conv1_1", (64, 3, 3, 3), 1, True, 1_792),
        ("conv1_2", (64, 64, 3, 3), 1, True, 36_928),
        ("conv2_1", (128, 64, 3, 3), 1, True, 73_856),
        ("conv2_2", (128, 128, 3, 3), 1, True, 147_584),
        ("conv3_1", (256, 128, 3, 3), 1, True, 295_168),
        ("conv3_2", (256, 256, 3, 3), 1, True, 590_080),
        ("conv3_3", (256, 256, 3, 3), 1, True, 590_080),
        ("conv4_1", (512, 256, 3, 3), 1, True, 1_180_160),
        ("conv4_2", (512, 512, 3, 3), 1, True, 2_359_808),
        ("conv4_3", (512, 512, 3, 3), 1, True, 2_359_808),
        ("conv5_1", (512, 512, 3, 3), 2, True, 2_359_808),
        ("conv5_2", (512, 512, 3, 3), 2, True, 2_359_808),
        ("conv5_3", (512, 512, 3, 3), 2, True, 2_359_808),
        ("fc6", (4096, 512, 7, 7), 4, True, 102_764_544),
        ("fc7", (4096, 4096, 1, 1), 1, True, 16_781_312),
        ("final", (21, 4096, 1, 1), 1, False, 86_037),
    ]
    others = {name for name in names(net) if not isinstance(net[name], nn.Conv2d)}
    assert others == {"border", "pool1", "pool2", "pool3", "drop6", "drop7"}
    assert names(net)[3] == "pool1"
    assert names(net)[-5:] == ["fc6", "drop6", "fc7", "drop7", "final"]
    assert net.drop6.p == net.drop7.p == 0.5
    assert names(models.front_end(21, final_name="fc-final", device="meta"))[-1] == "fc-final"


def test_field_of_the_front_end():
    net = models.front_end(21, device="meta")
    fields = {
        name: field_of(readers_of(list(net)[1 : place + 1]))
        for place, name in enumerate(names(net))
        if place
    }
    extents = [3, 5, 6, 10, 14, 16, 24, 32, 40, 44, 60, 76, 92, 124, 156, 188, *[380] * 5]
    assert [field.extent for field in fields.values()] == extents
    assert fields["final"] == (380, 8, 189.5, 380)
    assert net.border.width == 186 == (380 - 8) // 2
    assert field_of(readers_of(net)) == (380, 8, 3.5, 380)


@pytest.mark.parametrize("size", [500, 628, 852, 884, 900, 1100, 1396])
def test_sizes_without_the_border(size):
    for ceil_mode in (True, False):
        net = models.front_end(11, border=False, ceil_mode=ceil_mode, device="meta")
        cells = math.ceil((size - 372) / 8) if ceil_mode else (size - 372) // 8
        assert net(meta(1, 3, size, 380)).shape == (1, 11, cells, 1)
    assert (size - 372) % 8 == 0


def test_kitti_needs_ceil_mode():
    for ceil_mode, columns in ((True, 159), (False, 158)):
        net = models.front_end(11, border=False, ceil_mode=ceil_mode, device="meta")
        assert net(meta(1, 3, 852, 1640)).shape == (1, 11, 60, columns)


def test_the_window_must_fit_without_a_border():
    net = models.front_end(11, border=False, device="meta")
    with pytest.raises(ShapeError, match="the window does not fit"):
        net(meta(1, 3, 360, 380))


def test_an_image_of_any_size_gives_its_map():
    net = models.front_end(5, device="meta")
    small = models.small_front_end(5, device="meta")
    for height, width in itertools.product((1, 7, 8, 9, 64, 375), (1, 16, 500)):
        assert net(meta(1, 3, height, width)).shape[2:] == (-(-height // 8), -(-width // 8))
        assert small(meta(1, 1, height, width)).shape[2:] == (-(-height // 2), -(-width // 2))
    floor = models.front_end(5, ceil_mode=False, device="meta")
    assert floor(meta(1, 3, 375, 501)).shape[2:] == (375 // 8, 501 // 8)


def test_the_small_front_end():
    net = models.small_front_end(11, rng=0)
    assert names(net) == [
        "border", "conv1_1", "conv1_2", "pool1", "conv2_1", "conv2_2", "conv3_1", "fc", "final",
    ]  # fmt: skip
    assert count(net) == 39_739
    assert net.border.width == 10
    assert field_of(readers_of(net)) == (22, 2, 0.5, 22)
    assert net(image(2, 1, 64, 64)).shape == (2, 11, 32, 32)
    assert net(image(1, 1, 3, 1)).shape == (1, 11, 2, 1)


def test_a_cell_depends_on_its_field_and_on_nothing_else():
    net = models.small_front_end(2, border=False, rng=0)
    for parameter in net.parameters():  # positive everywhere: no rectifier hides a pixel
        parameter.data = np.abs(parameter.data) + np.float32(0.01)
    brighter = np.ones((40 + 44, 1, 40, 44), np.float32)
    for row in range(40):
        brighter[row, 0, row, :] = 2
    for column in range(44):
        brighter[40 + column, 0, :, column] = 2
    # In Winograd's tiles a pixel beyond the field still changes the rounding.
    with use("cpu:direct"):
        before = net(np.ones((1, 1, 40, 44), np.float32)).data[0, 0, 3, 4]
        changed = net(brighter).data[:, 0, 3, 4] != before  # (40 rows + 44 columns,)
    assert np.flatnonzero(changed[:40]).tolist() == list(range(6, 6 + 22))
    assert np.flatnonzero(changed[40:]).tolist() == list(range(8, 8 + 22))


def test_tiles_meet_without_a_seam():
    net = models.small_front_end(3, rng=0)
    whole = image(1, 1, 24, 40)
    bordered = net.border(whole).data
    inside = net[1:]
    with use("cpu:direct"):  # Winograd's tiles lie elsewhere in a part, and round otherwise
        tiles = [inside(bordered[..., start : start + 20 + 20]).data for start in (0, 20)]
        joined = np.concatenate(tiles, axis=3)
        np.testing.assert_allclose(joined, net(whole).data, rtol=1e-5, atol=1e-7)


def test_the_first_loss_is_ln_of_the_number_of_classes():
    net = models.small_front_end(11, final_std=0.001, rng=0)
    labels = np.random.default_rng(1).integers(0, 11, (2, 16, 16))
    loss = F.cross_entropy(net(image(2, 1, 32, 32)), labels).item()
    assert loss == pytest.approx(math.log(11), abs=0.02)
    assert net.final.weight.data.std() == pytest.approx(0.001, rel=0.1)
    assert net.conv3_1.weight.data.std() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)
    assert not any(np.any(layer.bias.data) for layer in net if isinstance(layer, nn.Conv2d))


def test_a_table_of_your_own():
    rows = [Conv("a", 3, 1, 4), Pool("p"), Drop("d", 0.25), Conv("b", 5, 2, 6)]
    net = models.front_end(3, rows=rows, in_channels=2, rng=0)
    assert names(net) == ["border", "a", "p", "d", "b", "final"]
    assert net.border.width == (4 + 2 * 8 - 2) // 2
    assert net(image(1, 2, 10, 6)).shape == (1, 3, 5, 3)
    assert models.front_end(
        3, rows=rows, in_channels=2, rng=0, dtype=np.float64
    ).a.weight.dtype == (np.float64)
    with pytest.raises(ConfigError, match=r"each a Conv, Pool, Average or Drop; got \('conv', 3\)"):
        models.front_end(3, rows=[("conv", 3)])
    with pytest.raises(ConfigError, match="got an empty one"):
        models.front_end(3, rows=[])
    with pytest.raises(ShapeError, match="an even number of pixels"):
        models.front_end(3, rows=[Conv("even", 2, 1, 4)])


@pytest.mark.parametrize("classes", [0, -3, 2.5, True, None])
def test_classes_are_counted_in_whole_numbers(classes):
    for build in (models.small_front_end, models.context):
        with pytest.raises(ConfigError, match="expected num_classes, a whole number"):
            build(classes)


def test_seeds():
    one, two, other = (models.small_front_end(3, rng=seed).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["fc.weight"], other["fc.weight"])


# ---- context module --------------------------------------------------------------------------


def test_table_1():
    for variant, maps in (
        ("basic", (1, 1, 1, 1, 1, 1, 1, 1)),
        ("large", (2, 2, 4, 8, 16, 32, 32, 1)),
    ):
        net = models.context(21, variant, device="meta")
        assert [layer.window.kernel[0] for layer in net] == [3, 3, 3, 3, 3, 3, 3, 1]
        assert [layer.window.dilation[0] for layer in net] == [1, 1, 2, 4, 8, 16, 1, 1]
        assert [layer.relu for layer in net] == [True] * 7 + [False]
        assert [layer.out_channels for layer in net] == [21 * wide for wide in maps]
        layers = list(net)
        extents = [field_of(readers_of(layers[: n + 1])).extent for n in range(8)]
        assert extents == [3, 5, 9, 17, 33, 65, 67, 67]


@pytest.mark.parametrize(
    ("classes", "basic", "large"),
    [(21, 28_392, 6_803_139), (19, 23_256, 5_569_185), (11, 7_832, 1_867_129)],
)
def test_counts_of_the_context_modules(classes, basic, large):
    assert count(models.context(classes, device="meta")) == basic == 64 * classes**2 + 8 * classes
    assert count(models.context(classes, "large", device="meta")) == large
    assert large == 15_422 * classes**2 + 97 * classes


@pytest.mark.parametrize(
    ("total", "classes", "options"),
    [
        (141_149_720, 21, {"variant": "large", "padding": "buffer", "prefix": "ct"}),
        (134_313_443, 11, {}),
        (134_312_343, 11, {"dilations": DILATIONS_7}),
        (134_373_043, 19, {"dilations": DILATIONS_10, "upsample": 8}),
    ],
    ids=["VOC", "CamVid", "KITTI", "Cityscapes"],
)
def test_counts_of_the_published_networks(total, classes, options):
    front = models.front_end(classes, device="meta")
    assert count(front) + count(models.context(classes, device="meta", **options)) == total


def test_names():
    blocks = ["conv1_1", "conv1_2", "conv2_1", "conv3_1", "conv4_1", "conv5_1"]
    assert names(models.context(3)) == [f"ctx_{name}" for name in (*blocks, "fc1", "final")]
    assert names(models.context(3, "large", prefix="ct")) == [
        f"ct_{name}" for name in (*blocks, "fc1", "final")
    ]
    seven = models.context(3, dilations=DILATIONS_7)
    assert names(seven) == [f"ctx_{name}" for name in (*blocks[:-1], "fc1", "final")]
    ten = models.context(19, dilations=DILATIONS_10, upsample=8, device="meta")
    tail = ["conv6_1", "conv7_1", "fc1", "final", "upsample"]
    assert names(ten) == [f"ctx_{name}" for name in (*blocks, *tail)]
    own = models.context(3, dilations=(2, 2, 2, 5, 1, 1))
    assert names(own)[:5] == [f"ctx_conv{n}" for n in ("1_1", "1_2", "1_3", "2_1", "3_1")]
    assert names(models.context(3, dilations=[4])) == ["ctx_fc1", "ctx_final"]


@pytest.mark.parametrize(("dilations", "extent"), [(DILATIONS_7, 35), (DILATIONS_10, 259)])
def test_fields_of_the_street_networks(dilations, extent):
    assert field_of(readers_of(models.context(2, dilations=dilations))).extent == extent
    front = models.front_end(2, device="meta")
    whole = field_of(readers_of([*front, *models.context(2, dilations=dilations)]))
    size = {35: 652, 259: 2444}[extent]
    assert whole == (size, 8, 3.5, size)


def test_buffer_or_padding_in_each_layer():
    sizes = []
    net = models.context(21, "large", padding="buffer", device="meta")
    with nn.watching_modules(lambda call: sizes.append(call.output.shape[2])):
        out = net(meta(1, 21, 66, 66))
    assert sizes[:-1] == [130, 128, 124, 116, 100, 68, 66, 66]
    assert out.shape == (1, 21, 66, 66)
    assert net[0].padding == sum(models.DILATIONS) == 33
    assert models.context(3, dilations=(1, 2, 4), padding="buffer")[0].padding == 7
    layers = models.context(21, "large", device="meta")
    assert [layer.padding for layer in layers] == [1, 1, 2, 4, 8, 16, 1, 0]
    for size in (1, 5, 66):
        assert net(meta(1, 21, size, 66)).shape == layers(meta(1, 21, size, 66)).shape
        assert net(meta(1, 21, size, 66)).shape == (1, 21, size, 66)


@pytest.mark.parametrize("padding", ["layers", "buffer"])
def test_the_context_module_starts_as_the_truncated_identity(padding):
    x = image(1, 3, 9, 14)
    basic = models.context(3, padding=padding, noise=0)(x).data
    expected = np.maximum(x, 0)
    assert np.array_equal(basic.view(np.uint32), expected.view(np.uint32))
    with use("cpu:direct"):  # Winograd's transforms round even what passes unchanged
        large = models.context(3, "large", padding=padding, noise=0)(x).data
    np.testing.assert_allclose(large, expected, rtol=1e-6)
    # Probabilities are not those of the front end where a score was negative.
    scores = np.array([-1, 2, -0.5], np.float32).reshape(1, 3, 1, 1)
    basic = models.context(3, noise=0)
    before, after = F.softmax(scores, 1).data.ravel(), F.softmax(basic(scores), 1).data.ravel()
    assert before.argmax() == after.argmax() == 1
    assert (before[1], after[1]) == pytest.approx((0.88, 0.79), abs=0.005)


def test_noise_stays_small_beside_the_signal_of_large():
    x = np.abs(image(1, 3, 12, 12)) + 1
    truth = np.maximum(x, 0)
    for seed in range(3):
        relative = models.context(3, "large", rng=seed)(x).data
        absolute = models.context(3, "large", absolute_noise=True, rng=seed)(x).data
        error = [np.sqrt(np.mean((y - truth) ** 2)) for y in (relative, absolute)]
        assert error[0] < error[1] / 2
    weight = models.context(3, "large", rng=0).ctx_fc1.weight.data
    assert weight[:, :, 0].std() == pytest.approx(0.01 / 32, rel=0.05)


def test_upsampling_layer():
    net = models.context(2, noise=0, upsample=8)
    layer = net.ctx_upsample
    assert layer.weight.shape == (2, 1, 16, 16)
    assert (layer.window.stride, layer.window.before, layer.bias) == ((8, 8), (4, 4), None)
    assert not layer.weight.requires_grad
    assert "ctx_upsample.weight" in net.state_dict()
    ramp = np.broadcast_to(np.arange(5, dtype=np.float32), (1, 2, 5, 5))
    out = net(ramp).data
    assert out.shape == (1, 2, 40, 40)
    assert np.allclose(out[0, :, 4:36, 4:36], (np.arange(4, 36) - 3.5) / 8, atol=1e-6)
    for factor in (1, 2, 3, 4):
        assert models.bilinear_upsampling(2, factor)(ramp).shape == (1, 2, 5 * factor, 5 * factor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "huge"}, "expected a variant out of basic, large; got 'huge'"),
        ({"padding": "same"}, "expected a padding out of layers, buffer; got 'same'"),
        ({"dilations": ()}, r"expected dilations.*got \(\)\. The paper's are"),
        ({"dilations": (1, 0)}, r"got \(1, 0\)"),
        ({"dilations": (1, 2.0)}, r"got \(1, 2\.0\)"),
        ({"noise": -1}, "standard deviation"),
        ({"upsample": 0}, "expected upsample, a whole number of at least 1; got 0"),
    ],
)
def test_context_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        models.context(3, **options)


# ---- front end, context module and upsampling ------------------------------------------------


def test_whole_network():
    front = models.small_front_end(4, rng=0)
    context = models.context(4, dilations=DILATIONS_7, rng=0)
    net = models.FrontEndWithContext(front, context)
    assert net.stride == stride_of(front) == 2
    assert count(net) == count(front) + count(context)
    assert {name.partition(".")[0] for name in net.state_dict()} == {"front_end", "context"}
    x = image(2, 1, 20, 26)
    assert net(x).shape == (2, 4, 20, 26)
    alone = models.FrontEndWithContext(front)
    expected = F.interpolate(front(x), scale_factor=2, mode="bilinear")
    assert np.array_equal(alone(x).data, expected.data)
    coarse = models.FrontEndWithContext(front, context, upsample=False)
    assert np.array_equal(coarse(x).data, context(front(x)).data)
    assert net(image(1, 1, 7, 1)).shape == (1, 4, 7, 1)
    assert models.FrontEndWithContext(models.front_end(3, device="meta"))(
        meta(1, 3, 375, 500)
    ).shape == (1, 3, 375, 500)


@pytest.mark.parametrize("width", [16, 17])
def test_upsampling_puts_cells_where_they_came_from(width):
    # A front end that returns the mean position of each cell's pixels, which is its centre.
    front = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True))
    net = models.FrontEndWithContext(front)
    ramp = np.broadcast_to(np.arange(width, dtype=np.float32), (1, 1, 5, width))
    inside = net(ramp).data[0, 0, :, 1:14]
    assert np.allclose(inside, np.arange(1, 14), atol=1e-5)


def test_upsampling_wants_cells_that_cover_the_image():
    for options in ({"border": False}, {"ceil_mode": False}):
        net = models.FrontEndWithContext(models.small_front_end(3, rng=0, **options))
        with pytest.raises(ShapeError, match="cells that cover the image of 41 x 41 pixels; got"):
            net(image(1, 1, 41, 41))


def test_the_front_end_must_be_made_of_windows():
    with pytest.raises(
        ConfigError, match="layers that slide a window over their input; got Flatten"
    ):
        models.FrontEndWithContext(nn.Sequential(nn.Flatten()))
