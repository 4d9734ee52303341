"""Starting values of the weights.

Every function gives a weight new numbers (its ``data`` becomes a new array) and returns what it was
given. It takes a `Parameter`, or a layer that has a ``weight``: the layer's bias then becomes 0, as
in the paper's code. A weight on the meta device has no values and is left alone. Weights are
(F, C, K, K): F filters (maps out), C channels (maps in); of a linear layer (F, C).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from tinydilate.autograd import Tensor
from tinydilate.device import Array, move
from tinydilate.errors import ConfigError, ShapeError
from tinydilate.functional.dropping import chance

Target = TypeVar("Target")
Fill = Callable[[tuple[int, ...], np.random.Generator], Array]
Seed = np.random.Generator | int | None


def generator(rng: Seed) -> np.random.Generator:
    """The generator itself, a fresh one from a seed, or for None one that follows `manual_seed`.

    Every None is one more of the random calls that `tinydilate.get_rng_state` counts, so a seed
    gives the same network, and one state resumes dropout and initialisation alike.

    Raises
    ------
    ConfigError
        If ``rng`` is something else.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None:
        return np.random.default_rng(chance.draw())
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer) or rng < 0:
        raise ConfigError(
            "expected rng to be a numpy Generator, a whole number of at least 0, or None; got "
            f"{rng!r}. Write rng=0, or rng=np.random.default_rng(0)."
        )
    return np.random.default_rng(int(rng))


def _fill(target: Target, rng: Seed, fill: Fill) -> Target:
    """Give a weight the values ``fill(shape, generator)``, and the bias beside it zeros."""
    weight = getattr(target, "weight", target)
    if not isinstance(weight, Tensor):
        raise ConfigError(
            f"expected a parameter, or a layer with a weight; got {type(target).__name__}. "
            "To initialise a whole network, call this for each of its layers."
        )
    if weight.device != "meta":
        values = fill(weight.shape, generator(rng))
        weight.data = move(np.ascontiguousarray(values, weight.dtype), weight.device)
    bias = getattr(target, "bias", None)
    if isinstance(bias, Tensor):
        zeros_(bias)
    return target


# ---- identity (paper, section 3) -------------------------------------------------------------


def identity_(
    target: Target,
    num_groups: int,
    noise: float = 0.01,
    absolute: bool = False,
    rng: Seed = None,
) -> Target:
    """Start a layer as the identity of groups of maps, whatever its width.

    Equation 5 of the paper, for the Large context module. The c_in maps in and the c_out maps out
    are cut into C groups, one a class. With map a in, map b out, tap t counted from the centre,

        k_b(t, a) = C / c_out   where t = 0 and floor(a*C / c_in) = floor(b*C / c_out)
        k_b(t, a) = epsilon     elsewhere, Gaussian with mean 0 and sigma much below C / c_out.

    Each map out is the sum of its group's maps in, times C / c_out. A group has c_out / C maps out,
    so the sum over a group stays what it was: **group sums are preserved, not single maps**.
    Without noise all maps of a group would remain copies of each other for ever.

    Equation 4, for the Basic context module, is the case c_in = c_out = C without noise: each map
    out is the map in of its number, and with the rectifier behind it the layer returns max(x, 0).

    Parameters
    ----------
    target : Parameter or layer
        Weight of shape (c_out, c_in, K, K), K odd.
    num_groups : int
        C, the number of classes; it divides c_in and c_out.
    noise : float
        Sigma in units of C / c_out: 0.01 is one hundredth of the signal's weight at every width.
    absolute : bool
        Take ``noise`` as sigma itself. The paper's code does, with 0.01 everywhere; beside the 1/32
        of the widest layer that is no longer small: its noise comes out as strong as its signal.
    rng : Generator, int or None

    Raises
    ------
    ShapeError
        If ``num_groups`` does not divide both numbers of maps, or the kernel has no centre.
    """
    weight = getattr(target, "weight", target)
    if isinstance(weight, Tensor) and (
        isinstance(num_groups, bool)
        or not isinstance(num_groups, int)
        or num_groups < 1
        or any(maps % num_groups for maps in weight.shape[:2])
    ):
        raise ShapeError(
            "identity_ expected num_groups, the number of classes, to divide the maps in and out; "
            f"got {num_groups!r} for a weight of shape {weight.shape}."
        )

    def fill(shape: tuple[int, ...], random: np.random.Generator) -> Array:
        if len(shape) != 4 or shape[2] % 2 == 0 or shape[3] % 2 == 0:
            raise ShapeError(
                "an identity needs a centre tap: expected a weight of shape (maps out, maps in, K, "
                f"K) with K odd; got {shape}."
            )
        c_out, c_in = shape[:2]
        signal = num_groups / c_out
        values = _normal(shape, noise if absolute else noise * signal, random)
        group_out = np.arange(c_out) * num_groups // c_out  # floor(b*C / c_out)
        group_in = np.arange(c_in) * num_groups // c_in  # floor(a*C / c_in)
        same = group_out[:, None] == group_in[None, :]  # (c_out, c_in)
        values[same, shape[2] // 2, shape[3] // 2] = signal
        return values

    return _fill(target, rng, fill)


# ---- random ----------------------------------------------------------------------------------


def _normal(
    shape: tuple[int, ...], std: float, random: np.random.Generator, mean: float = 0.0
) -> Array:
    """Gaussian numbers in float32; exactly the mean, and no draw, where ``std`` is 0."""
    if not 0 <= std < math.inf:
        raise ConfigError(f"expected a standard deviation of at least 0; got {std!r}.")
    if std == 0:
        return np.full(shape, mean, np.float32)
    values = random.standard_normal(shape, np.float32)
    values *= np.float32(std)
    if mean:
        values += np.float32(mean)
    return values


def _uniform(shape: tuple[int, ...], bound: float, random: np.random.Generator) -> Array:
    """Numbers spread evenly over [-bound, bound), in float32."""
    values = random.random(shape, np.float32)
    values -= np.float32(0.5)
    values *= np.float32(2 * bound)
    return values


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Products behind one number: (on the way forward, on the way back), or (fan_in, fan_out).

    A weight (F, C, K, K) sums C*K*K products into each output, and on the way back F*K*K products
    into each input's gradient.

    Raises
    ------
    ShapeError
        If the weight has fewer than two axes.
    """
    if len(shape) < 2:
        raise ShapeError(
            f"expected a weight of at least two axes, (F, C, ...); got shape {shape}. "
            "Biases start at zero: use zeros_."
        )
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


def gaussian_(target: Target, std: float = 0.01, mean: float = 0.0, rng: Seed = None) -> Target:
    """Gaussian numbers of one width everywhere: w ~ N(mean, std**2).

    The paper's code starts the front end's last layer so, with std 0.001: all logits are then
    nearly 0, all classes equally likely, and the first loss is ln(number of classes).

    Raises
    ------
    ConfigError
        If ``std`` is negative.
    """
    return _fill(target, rng, lambda shape, random: _normal(shape, std, random, mean))


def uniform_(target: Target, bound: float, rng: Seed = None) -> Target:
    """Evenly from [-bound, bound)."""
    return _fill(target, rng, lambda shape, random: _uniform(shape, bound, random))


def glorot_uniform_(target: Target, gain: float = 1.0, rng: Seed = None) -> Target:
    """Evenly from [-b, b), b = gain * sqrt(6 / (fan_in + fan_out)).

    The width that keeps the variance both forward and backward in a linear network (Glorot and
    Bengio 2010, equation 16; Caffe's "xavier" averages the two fans only on request).
    """

    def fill(shape: tuple[int, ...], random: np.random.Generator) -> Array:
        return _uniform(shape, gain * math.sqrt(6 / sum(fans(shape))), random)

    return _fill(target, rng, fill)


def glorot_normal_(target: Target, gain: float = 1.0, rng: Seed = None) -> Target:
    """Gaussian, std = gain * sqrt(2 / (fan_in + fan_out)); see `glorot_uniform_`."""

    def fill(shape: tuple[int, ...], random: np.random.Generator) -> Array:
        return _normal(shape, gain * math.sqrt(2 / sum(fans(shape))), random)

    return _fill(target, rng, fill)


def he_uniform_(target: Target, slope: float = 0.0, rng: Seed = None) -> Target:
    """Evenly from [-b, b), b = sqrt(6 / ((1 + slope**2) * fan_in)).

    Behind a rectifier half of the signal is lost, so the weights are larger by sqrt(2) than in a
    linear network (He et al. 2015, equation 15). ``slope`` is a leaky rectifier's. PyTorch's
    layers start with slope sqrt(5), which makes b = 1 / sqrt(fan_in).
    """

    def fill(shape: tuple[int, ...], random: np.random.Generator) -> Array:
        return _uniform(shape, math.sqrt(6 / ((1 + slope**2) * fans(shape)[0])), random)

    return _fill(target, rng, fill)


def he_normal_(target: Target, slope: float = 0.0, rng: Seed = None) -> Target:
    """Gaussian, std = sqrt(2 / ((1 + slope**2) * fan_in)); see `he_uniform_`."""

    def fill(shape: tuple[int, ...], random: np.random.Generator) -> Array:
        return _normal(shape, math.sqrt(2 / ((1 + slope**2) * fans(shape)[0])), random)

    return _fill(target, rng, fill)


# ---- fixed -----------------------------------------------------------------------------------


def zeros_(target: Target) -> Target:
    """Every number 0; the usual start of a bias."""
    return _fill(target, 0, lambda shape, random: np.zeros(shape, np.float32))


def bilinear_(target: Target) -> Target:
    """Make a transposed convolution upsample by bilinear interpolation.

    With f = ceil(K / 2), the taps along one axis are a tent, 1 - abs(u - (K-1)/2) / f. A kernel of
    K = 2f pixels with stride f and padding f/2 enlarges f times: at every phase two taps meet, and
    they add up to 1, except at the border, beyond which the input is taken as 0. For f = 8 the
    taps are 1/16, 3/16 ... 15/16, 15/16 ... 1/16, and cell i lands at pixel 8i + 3.5 (Long et al.
    2015; the paper's Cityscapes network ends so).

    Parameters
    ----------
    target : Parameter or layer
        Weight of shape (C, 1, K, K): a `ConvTranspose2d` with ``groups=C``, so that classes do not
        mix.

    Raises
    ------
    ShapeError
        If the weight connects different maps.
    """

    def tent(taps: int) -> Array:
        from_centre = np.abs(np.arange(taps) - (taps - 1) / 2)
        return np.asarray(1 - from_centre / ((taps + 1) // 2))

    def fill(shape: tuple[int, ...], random: np.random.Generator) -> Array:
        if len(shape) != 4 or shape[1] != 1:
            raise ShapeError(
                f"bilinear_ expected a weight of shape (C, 1, K, K); got {shape}. "
                "Make the transposed convolution with groups equal to its channels."
            )
        return np.tile(np.outer(tent(shape[2]), tent(shape[3])), (shape[0], 1, 1, 1))

    return _fill(target, 0, fill)
