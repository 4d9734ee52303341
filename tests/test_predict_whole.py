"""Large images in pieces and in tiles: beside the network itself, and beside a slow original."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydilate import models, nn, no_grad
from tinydilate.errors import ConfigError, ShapeError
from tinydilate.models.rows import Conv, Drop, Pool
from tinydilate.predict import as_original, parts_of, whole_image
from tinydilate.predict.memory import plan

CLASSES = 3
ROWS = (Conv("conv1", 3, 1, 4), Pool("pool1"), Conv("conv2", 3, 1, 5), Drop("drop", 0.5))
# Field 8, stride 2: a border of 3 pixels.
DEEPER = (*ROWS[:3], Pool("pool2"), Conv("conv3", 3, 2, 5))  # field 26, stride 4, border 11


def flat(rows=ROWS, upsample=None, dilations=(1, 2, 1), dtype=np.float64, border=False, **options):
    """A network in one line of layers, as the published ones are, with weights that say something.

    In training mode, with dropout, which prediction must switch off.
    """
    front = models.front_end(CLASSES, rows=rows, border=border, final_std=1.0, dtype=dtype, rng=0)
    context = models.context(
        CLASSES, dilations=dilations, noise=1.0, upsample=upsample, dtype=dtype, rng=1, **options
    )
    return nn.Sequential(*front.named_children(), *context.named_children())


def nested(dtype=np.float64):
    front = models.front_end(CLASSES, rows=ROWS, final_std=1.0, dtype=dtype, rng=0)
    context = models.context(CLASSES, dilations=(1, 2), noise=1.0, dtype=dtype, rng=1)
    return models.FrontEndWithContext(front, context)


def noise(*size, seed=0):
    return np.random.default_rng(seed).standard_normal((3, *size))


def softmax(scores, axis=0):
    powers = np.exp(scores - scores.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def zoomed(probabilities, stride, height, width):
    """The original's `interp_map`, pixel by pixel, its indices kept inside."""
    out = np.empty((len(probabilities), height, width))
    last = probabilities.shape[1] - 1, probabilities.shape[2] - 1
    for y in range(height):
        for z in range(width):
            r, c = y // stride, z // stride
            below, right = min(r + 1, last[0]), min(c + 1, last[1])
            down, across = y / stride - r, z / stride - c
            upper = (1 - across) * probabilities[:, r, c] + across * probabilities[:, r, right]
            lower = (1 - across) * probabilities[:, below, c] + (
                across * probabilities[:, below, right]
            )
            out[:, y, z] = (1 - down) * upper + down * lower
    return out


def scores_of(network, image):
    """The network on one image, in evaluation mode."""
    network.eval()
    with no_grad():
        return network(image[None]).numpy()[0]


def slow_original(network, image, tile, border, stride=None):
    """Tiles by NumPy alone; ``stride`` enlarges, None is a network that does it itself."""
    height, width = image.shape[1:]
    useful = tile[0] - 2 * border, tile[1] - 2 * border
    around = (border, border)
    bordered = np.pad(image, ((0, 0), around, around), mode="reflect")
    rows = []
    for y in range(0, height, useful[0]):
        row = []
        for z in range(0, width, useful[1]):
            cut = bordered[:, y : y + tile[0], z : z + tile[1]]
            missing = (0, tile[0] - cut.shape[1]), (0, tile[1] - cut.shape[2])
            filled = np.pad(cut, ((0, 0), *missing), mode="reflect")
            row.append(softmax(scores_of(network, filled)))
        rows.append(np.concatenate(row, axis=2))
    result = np.concatenate(rows, axis=1)
    if stride is None:
        return result[:, :height, :width]
    return zoomed(result, stride, height, width)


# ---- taking networks apart -------------------------------------------------------------------


def test_parts():
    parts = parts_of(flat(DEEPER))
    assert parts[3:] == (11, 4, 4, "corner")
    assert [len(parts.front), len(parts.context)] == [6, 4]
    assert parts_of(flat(border=True))[3:] == (3, 2, 4, "corner")
    assert parts_of(flat(upsample=2))[3:] == (3, 2, 4, "centre")
    assert parts_of(nested())[3:] == (3, 2, 3, "centre")
    assert parts_of(nested(), "corner").place == "corner"
    alone = models.front_end(CLASSES, rows=ROWS)
    assert parts_of(alone)[3:] == (3, 2, 0, "corner")
    assert parts_of(nn.Sequential(alone, models.context(CLASSES, dilations=(1,)))).reach == 1


@pytest.mark.parametrize(
    ("name", "border", "reach", "place"),
    [
        ("dilation8_voc", 186, 33, "corner"),
        ("dilation8_camvid", 186, 33, "corner"),
        ("dilation7_kitti", 186, 17, "corner"),
        ("dilation10_cityscapes", 186, 129, "centre"),
    ],
)
def test_parts_of_the_published_networks(name, border, reach, place):
    network = models.PUBLISHED[name].build(device="meta")
    assert parts_of(network)[3:] == (border, 8, reach, place)


def test_other_networks_are_refused():
    with pytest.raises(ConfigError, match="expected a front end: layers that do not pad"):
        parts_of(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1)))
    with pytest.raises(ConfigError, match=r"keep each cell in its place .* a stride of 2"):
        parts_of(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3, padding=1), nn.MaxPool2d(2)))
    with pytest.raises(ConfigError, match="slide a window"):
        parts_of(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Softmax(1)))
    with pytest.raises(ConfigError, match="expected an upsampling by the front end's stride, 2"):
        parts_of(flat(upsample=4))
    with pytest.raises(ConfigError, match="expected a place out of corner, centre; got 'middle'"):
        parts_of(flat(), "middle")
    with pytest.raises(ConfigError, match="expected no place for cells but 'centre'"):
        parts_of(flat(upsample=2), "corner")
    with pytest.raises(ConfigError, match=r"expected a border of 3 pixels.*got 5"):
        parts_of(
            nn.Sequential(nn.ReflectionBorder(5), *models.front_end(3, rows=ROWS, border=False))
        )


# ---- the whole image at once -----------------------------------------------------------------


def whole_by_the_network(network, image):
    """Probabilities as from one pass; a network of one line gets its border by NumPy."""
    if isinstance(network, models.FrontEndWithContext):
        return softmax(scores_of(network, image))
    parts = parts_of(network)
    height, width = image.shape[1:]
    beyond = 0, 0
    if parts.place == "corner":  # cells to both sides of the last pixel
        beyond = tuple(-(-(n - 1) // parts.stride) * parts.stride + parts.stride - n
                       for n in (height, width))  # fmt: skip
    border = [(parts.border, parts.border + more) for more in beyond]
    scores = scores_of(network, np.pad(image, ((0, 0), *border), mode="reflect"))
    if parts.place == "centre":
        return softmax(scores[:, :height, :width])
    return zoomed(softmax(scores), parts.stride, height, width)


NETWORKS = {
    "corner": flat(DEEPER),
    "buffer": flat(padding="buffer"),
    "upsampling": flat(DEEPER, upsample=4),
    "nested": nested(),
    "front end": models.front_end(CLASSES, rows=DEEPER, border=False, final_std=1.0,
                                  dtype=np.float64, rng=0),
}  # fmt: skip


def in_pieces(network, image, front, context, band):
    """`whole_image` with pieces of our choice."""
    with pytest.MonkeyPatch.context() as patch:
        real = plan

        def chosen(*arguments):
            cut = real(*arguments)
            return cut._replace(front=front, context=context, band=band)

        patch.setattr("tinydilate.predict.whole.plan", chosen)
        return whole_image(network, image)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (8, 8), (13, 21), (16, 5), (33, 30)])
def test_whole_is_the_network_on_the_whole_image(name, size):
    """Images smaller than the border, of one pixel, of no whole number of cells."""
    image = noise(*size)
    found = whole_image(NETWORKS[name], image)
    assert found.shape == (CLASSES, *size)
    np.testing.assert_allclose(found, whole_by_the_network(NETWORKS[name], image), atol=1e-12)
    np.testing.assert_allclose(found.sum(0), 1)


sides = st.integers(1, 40)
cells = st.tuples(st.integers(1, 12), st.integers(1, 12))


@pytest.mark.parametrize("name", NETWORKS)
@given(st.tuples(sides, sides), cells, cells, st.integers(1, 12))
def test_pieces_of_any_size_change_nothing(name, size, front, context, band):
    image = noise(*size)
    found = in_pieces(NETWORKS[name], image, front, context, band)
    np.testing.assert_allclose(found, whole_image(NETWORKS[name], image), atol=1e-12)


def test_pieces_of_single_precision_differ_by_rounding_only():
    network = flat(DEEPER, dtype=np.float32)
    image = noise(70, 90).astype(np.float32)
    found = in_pieces(network, image, (7, 5), (6, 4), 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole_image(network, image), atol=1e-5)


def test_a_network_is_left_as_it_was():
    network = flat()
    for mode in (True, False):
        network.train(mode)
        whole_image(network, noise(9, 9))
        as_original(network, noise(9, 9), (10, 10))
        assert all(module.training is mode for module in network.modules())


def test_no_image():
    for image in (np.zeros((3, 0, 4)), np.zeros((4, 4)), np.zeros((3, 4, 4), np.uint8)):
        with pytest.raises(ShapeError, match=r"expected an image prepared for the network"):
            whole_image(flat(), image)
        with pytest.raises(ShapeError, match=r"expected an image prepared for the network"):
            as_original(flat(), image, (20, 20))
    with pytest.raises(ShapeError, match="channels"):
        whole_image(flat(), np.zeros((1, 4, 4)))


def test_cells_that_do_not_cover_the_image():
    front = models.front_end(CLASSES, rows=ROWS, ceil_mode=False)
    with pytest.raises(ShapeError, match="expected cells that cover the image of 5 x 4 pixels"):
        whole_image(models.FrontEndWithContext(front), np.zeros((3, 5, 4), np.float32))


# ---- where a cell stands ---------------------------------------------------------------------


def test_each_network_keeps_the_place_of_its_cells():
    """A front end that says the level of the pixel in the middle of its field, on a ramp.

    Corner: pixel p gets the answer of cell p/S, whose field is centred at pixel p + (S-1)/2.
    Centre: it gets what lies at p.
    """
    front = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 2, 1))  # field and stride 2
    front[1].weight.data[:, 0, 0, 0] = 0, 1
    front[1].bias.data[:] = 0
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32), (1, 20, 20)).copy() / 5
    score = np.log(whole_image(front, ramp)[:, :, 4:15])
    at_corner = (score[1] - score[0])[10]
    np.testing.assert_allclose(at_corner[::2], np.arange(4.5, 15, 2) / 5, atol=1e-5)
    score = np.log(whole_image(front, ramp, place="centre")[:, :, 4:15])
    np.testing.assert_allclose((score[1] - score[0])[10], np.arange(4, 15) / 5, atol=1e-5)


# ---- as the original -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (7, 30), (14, 14), (15, 29), (40, 13)])
def test_original_beside_a_slow_one(size):
    image = noise(*size)
    network = NETWORKS["corner"]
    found = as_original(network, image, (36, 42))  # tiles of 14 x 20 pixels: 3.5 x 5 cells
    expected = slow_original(network, image, (36, 42), 11, stride=4)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 35), (50, 9)])
def test_original_with_the_networks_own_upsampling(size):
    image = noise(*size)
    network = NETWORKS["upsampling"]
    found = as_original(network, image, (38, 42))  # tiles of 16 x 20 pixels
    np.testing.assert_allclose(found, slow_original(network, image, (38, 42), 11), atol=1e-12)


def test_tiles_that_are_all_border():
    with pytest.raises(ConfigError, match="expected tiles larger than their border, 11 pixels"):
        as_original(NETWORKS["corner"], noise(9, 9), (22, 40))


def test_original_and_whole_differ_near_seams_only():
    """By what the context module sees, and the cell that is blended with the next one."""
    network = flat(DEEPER)
    image = noise(60, 200)
    difference = abs(as_original(network, image, (82, 102)) - whole_image(network, image)).max(0)
    reach = (4 + 1) * 4  # pixels; tiles of 60 x 80 have seams at columns 80 and 160
    for left, right in ((0, 80), (80, 160)):
        inner = slice(left + (reach if left else 0), right - reach)
        assert difference[:-reach, inner].max() < 1e-12
    assert difference[:40, 70:90].max() > 0.01
    alone = NETWORKS["front end"]  # has true neighbours on both sides of a seam
    difference = abs(as_original(alone, image, (82, 102)) - whole_image(alone, image)).max(0)
    assert difference[:56, :196].max() < 1e-12


# ---- on the GPU ------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("upsample", [None, 2])
def test_on_the_gpu_as_on_the_processor(upsample):
    rows = Conv("conv1", 3, 1, 2), Pool("pool1")  # border 1, stride 2; the simulator is slow
    network = flat(rows, upsample=upsample, dilations=(1,), dtype=np.float32)
    image = noise(3, 4).astype(np.float32)
    expected = whole_image(network, image), as_original(network, image, (4, 6))
    network.to("cuda")
    found = in_pieces(network, image, (1, 2), (1, 1), 1), as_original(network, image, (4, 6))
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
