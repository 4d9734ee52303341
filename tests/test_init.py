"""Starting values: the paper's identities, random widths, bilinear upsampling."""

import math

import numpy as np
import pytest

import tinydilate
from tinydilate import init, nn
from tinydilate.errors import ConfigError, ShapeError

LARGE = ((1, 2), (2, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 32), (32, 1))  # in units of C


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.uint32)


def weight(*shape):
    return nn.Parameter(np.full(shape, 7, np.float32))


# ---- identity --------------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [1, 2, 4, 8, 16])
def test_basic_identity_returns_the_truncated_input_bit_for_bit(dilation):
    x = np.random.default_rng(0).standard_normal((2, 5, 11, 7)).astype(np.float32)
    layer = nn.Conv2d(5, 5, 3, padding=dilation, dilation=dilation, relu=True)
    assert init.identity_(layer, 5, noise=0) is layer
    assert np.array_equal(bits(layer(x).detach().numpy()), bits(np.maximum(x, 0)))
    layer.relu = False
    assert np.array_equal(layer(x).detach().numpy(), x)


def test_basic_identity_is_equation_4():
    w = init.identity_(weight(3, 3, 5, 3), 3, noise=0).data
    for b, a, u, v in np.ndindex(w.shape):
        assert w[b, a, u, v] == (1 if (u, v) == (2, 1) and a == b else 0)


@pytest.mark.parametrize(("wide_in", "wide_out"), LARGE)
def test_identity_preserves_group_sums_but_not_single_maps(wide_in, wide_out):
    classes, rng = 3, np.random.default_rng(1)
    x = rng.integers(-8, 9, (1, wide_in * classes, 6, 5)).astype(np.float32)
    layer = nn.Conv2d(wide_in * classes, wide_out * classes, 3, padding=1)
    y = init.identity_(layer, classes, noise=0)(x).detach().numpy()
    sums_in = x.reshape(1, classes, wide_in, 6, 5).sum(2)
    sums_out = y.reshape(1, classes, wide_out, 6, 5).sum(2)
    assert np.array_equal(sums_out, sums_in)  # the weights are powers of 1/2: no rounding
    for group in np.split(y, classes, axis=1):
        assert np.array_equal(group, np.broadcast_to(group[:, :1], group.shape))


@pytest.mark.parametrize("classes", [11, 19, 21])
@pytest.mark.parametrize(("wide_in", "wide_out"), LARGE)
def test_equation_5_is_the_group_filler_of_the_published_code(classes, wide_in, wide_out):
    c_in, c_out = wide_in * classes, wide_out * classes
    w = init.identity_(weight(c_out, c_in, 1, 1), classes, noise=0).data[:, :, 0, 0]
    # The filler counts groups by their size; equation 5 by floor(a*C / c).
    filler = np.zeros((c_out, c_in), np.float32)
    for group in range(classes):
        rows = slice(group * c_out // classes, (group + 1) * c_out // classes)
        columns = slice(group * c_in // classes, (group + 1) * c_in // classes)
        filler[rows, columns] = np.float32(classes / c_out)
    assert np.array_equal(w, filler)


def test_noise_is_measured_against_the_signal_unless_asked_otherwise():
    signal = 4 / 128
    for absolute, sigma in ((False, 0.1 * signal), (True, 0.1)):
        w = weight(128, 64, 3, 3)
        init.identity_(w, 4, noise=0.1, absolute=absolute, rng=0)
        centre = np.zeros(w.shape, bool)
        centre[:, :, 1, 1] = np.arange(128)[:, None] // 32 == np.arange(64)[None, :] // 16
        assert np.all(w.data[centre] == np.float32(signal))
        assert np.std(w.data[~centre]) == pytest.approx(sigma, rel=0.02)
        assert abs(np.mean(w.data[~centre])) < 0.02 * sigma
    basic = init.identity_(weight(40, 40, 3, 3), 40, noise=0.01, rng=0).data
    assert np.std(basic[:, :, 0]) == pytest.approx(0.01, rel=0.05)


def test_identity_refuses_what_has_no_identity():
    with pytest.raises(ShapeError, match="to divide the maps in and out; got 3 for a weight of"):
        init.identity_(weight(6, 4, 3, 3), 3)
    with pytest.raises(ShapeError, match="to divide the maps"):
        init.identity_(weight(4, 4, 3, 3), 0)
    with pytest.raises(ShapeError, match="needs a centre tap"):
        init.identity_(weight(4, 4, 2, 3), 4)
    with pytest.raises(ShapeError, match="needs a centre tap"):
        init.identity_(nn.Linear(4, 4), 4)
    with pytest.raises(ConfigError, match="standard deviation of at least 0; got -1"):
        init.identity_(weight(4, 4, 3, 3), 4, noise=-1)


# ---- random ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fill", "std", "bound"),
    [
        (lambda w: init.gaussian_(w, 0.02, rng=0), 0.02, math.inf),
        (lambda w: init.uniform_(w, 0.5, rng=0), 0.5 / math.sqrt(3), 0.5),
        (lambda w: init.glorot_normal_(w, rng=0), math.sqrt(2 / (450 + 900)), math.inf),
        (lambda w: init.glorot_uniform_(w, rng=0), math.sqrt(2 / 1350), math.sqrt(6 / 1350)),
        (lambda w: init.glorot_uniform_(w, 2, 0), math.sqrt(8 / 1350), math.sqrt(24 / 1350)),
        (lambda w: init.he_normal_(w, rng=0), math.sqrt(2 / 450), math.inf),
        (lambda w: init.he_uniform_(w, rng=0), math.sqrt(2 / 450), math.sqrt(6 / 450)),
        (lambda w: init.he_uniform_(w, math.sqrt(5), 0), math.sqrt(1 / 1350), math.sqrt(1 / 450)),
    ],
)
def test_widths(fill, std, bound):
    w = weight(100, 50, 3, 3)  # fan_in 450, fan_out 900
    assert fill(w) is w
    assert np.std(w.data) == pytest.approx(std, rel=0.02)
    assert abs(np.mean(w.data)) < 0.02 * std
    largest = np.abs(w.data).max()
    assert largest <= bound * (1 + 1e-6)
    assert bound == math.inf or largest > 0.99 * bound


def test_gaussian_has_a_mean():
    assert np.mean(init.gaussian_(weight(100, 100), 0.1, mean=3, rng=0).data) == pytest.approx(
        3, abs=0.01
    )


def test_fans():
    assert init.fans((100, 50, 3, 5)) == (750, 1500)
    assert init.fans((7, 4)) == (4, 7)
    with pytest.raises(ShapeError, match="at least two axes"):
        init.he_normal_(weight(4))


def test_a_layer_is_filled_with_its_bias_at_zero_and_in_its_own_dtype():
    layer = nn.Conv2d(3, 4, 3, dtype=np.float64)
    assert np.any(layer.bias.data)
    before = layer.weight
    init.he_normal_(layer, rng=0)
    assert layer.weight is before
    assert layer.weight.dtype == np.float64
    assert not np.any(layer.bias.data)
    assert not np.any(init.zeros_(layer).weight.data)


def test_meta_weights_are_left_alone():
    layer = nn.Conv2d(4, 4, 3, device="meta")
    assert init.identity_(layer, 4) is layer
    assert layer.weight.device == "meta"


def test_seeds():
    def draw(rng):
        return init.gaussian_(weight(3, 3), rng=rng).data

    assert np.array_equal(draw(5), draw(np.random.default_rng(5)))
    assert not np.array_equal(draw(5), draw(6))
    generator = np.random.default_rng(5)
    assert not np.array_equal(draw(generator), draw(generator))
    tinydilate.manual_seed(1)
    first, second = draw(None), draw(None)
    assert not np.array_equal(first, second)
    tinydilate.manual_seed(1)
    assert np.array_equal(draw(None), first)
    tinydilate.manual_seed(2)
    assert not np.array_equal(draw(None), first)


@pytest.mark.parametrize("rng", [-1, 1.5, True, "0", np.random])
def test_refuses_what_is_no_seed(rng):
    with pytest.raises(ConfigError, match="expected rng to be a numpy Generator"):
        init.gaussian_(weight(3, 3), rng=rng)


def test_refuses_what_has_no_weight():
    with pytest.raises(ConfigError, match="a layer with a weight; got Sequential"):
        init.zeros_(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(ConfigError, match="got ndarray"):
        init.zeros_(np.zeros(3))


# ---- bilinear --------------------------------------------------------------------------------


def test_bilinear_taps():
    taps = np.array([1, 3, 5, 7, 9, 11, 13, 15, 15, 13, 11, 9, 7, 5, 3, 1]) / 16
    w = init.bilinear_(weight(2, 1, 16, 16)).data
    assert np.array_equal(w[0, 0], np.outer(taps, taps).astype(np.float32))
    assert np.array_equal(w[0], w[1])


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 8])
def test_every_phase_of_the_bilinear_kernel_adds_up_to_1(factor):
    for kernel in {2 * factor, 2 * factor - factor % 2}:
        w = init.bilinear_(weight(1, 1, kernel, kernel)).data[0, 0]
        line = w.sum(0) / w.sum() * factor
        for phase in range(factor):
            assert line[phase::factor].sum() == pytest.approx(1, abs=1e-6)


def test_a_ramp_stays_a_ramp_with_cell_i_at_pixel_8i_and_a_half():
    layer = init.bilinear_(nn.ConvTranspose2d(2, 2, 16, 8, 4, groups=2, bias=False))
    ramp = np.broadcast_to(np.arange(6, dtype=np.float32), (1, 2, 6, 6))
    up = layer(ramp).detach().numpy()
    assert up.shape == (1, 2, 48, 48)
    pixels = np.arange(4, 44)
    expected = np.broadcast_to((pixels - 3.5) / 8, (40, 40))
    assert np.allclose(up[0, 0, 4:44, 4:44], expected, atol=1e-6)
    assert np.array_equal(up[0, 0], up[0, 1])
    assert np.all(up[0, 0, 24, 44:] < 5)  # beyond the last cell it fades to the zeros outside


def test_bilinear_refuses_to_mix_maps():
    with pytest.raises(ShapeError, match=r"shape \(C, 1, K, K\); got \(2, 2, 4, 4\)"):
        init.bilinear_(weight(2, 2, 4, 4))
