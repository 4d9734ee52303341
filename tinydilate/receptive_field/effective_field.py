"""The effective receptive field: how much each pixel of the field counts.

A pixel in the middle of the field reaches the output on many paths, one at its edge on a single
one. So the middle counts more (Luo, Li, Urtasun and Zemel, "Understanding the Effective Receptive
Field in Deep Convolutional Neural Networks", 2016). How much a pixel counts is read off the
gradient of the output by the pixel:

    heat[y, z] = mean over draws, sum over channels of (d output / d pixel (y, z)) ** 2

Each draw has another random image, and the output is a random mixture of its channels. Why the
square? Random weights have mean 0, so the gradient has too. The mean of its square adds up over
paths as the paths' numbers do, layer by layer: one 3x3 layer of independent weights spreads it
evenly over 3x3 pixels.

Hence a closed form. Spreading evenly over k taps that stand d * jump pixels apart has the variance
(d * jump)**2 * (k**2 - 1) / 12 along an axis, and variances of layers add up:

    sigma**2 = sum over layers of (jump * dilation)**2 * (kernel**2 - 1) / 12

where jump is the stride of the layer's input in pixels of the image. It is exact for layers whose
weights are all equal; for the mean over random weights it is exact but for borders and rectifiers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydilate import init, nn
from tinydilate.autograd import Op, Tensor
from tinydilate.device import Array
from tinydilate.errors import ConfigError, FieldError
from tinydilate.field import Slide
from tinydilate.receptive_field.analysis import Layer, analyse
from tinydilate.receptive_field.graph import (
    Blind,
    Model,
    check_size,
    depends_on,
    number_of,
    record,
    record_shapes,
    walk,
)
from tinydilate.receptive_field.probes import (
    chosen,
    is_bias,
    layer_number,
    pull_back,
    reweighted,
)
from tinydilate.receptive_field.rules import RULES, Reading
from tinydilate.window import Pair

WEIGHTS = ("own", "random", "uniform")


class EffectiveField(NamedTuple):
    """How much each pixel counts for one output.

    Attributes
    ----------
    heat : (H, W)
        Not negative, of sum 1.
    output : (int, int)
        Row and column of the output.
    layer : Layer
        The layer that it belongs to, with its theoretical field.
    """

    heat: Array
    output: Pair
    layer: Layer

    def along(self, axis: int) -> Array:
        """The heat summed over the other axis: along rows (0) or columns (1)."""
        profile: Array = self.heat.sum(axis=1 - axis)
        return profile

    @property
    def centre(self) -> tuple[float, float]:
        """Mean row and column."""
        rows, columns = (
            float(self.along(axis) @ np.arange(self.heat.shape[axis])) for axis in (0, 1)
        )
        return rows, columns

    @property
    def sigma(self) -> tuple[float, float]:
        """Standard deviation in pixels along rows and along columns."""
        rows, columns = (_sigma(self.along(axis)) for axis in (0, 1))
        return rows, columns

    def width(self, share: float = 0.9545) -> Pair:
        """The fewest neighbouring rows, and columns, that hold this share of the heat.

        0.9545 is what a Gaussian holds within two sigma to either side.
        """
        return narrowest(self.along(0), share), narrowest(self.along(1), share)

    def mass_within(self, part: float) -> float:
        """Share of the heat in the middle of the theoretical field, ``part`` of it along each axis.

        A pixel on the edge of the part counts as far as it lies within.
        """
        if not 0 <= part <= 1:
            raise ConfigError(f"expected a part of the field from 0 to 1; got {part!r}.")
        weights = []
        for axis in (0, 1):
            field = self.layer.line(axis).seen(self.output[axis])
            middle, half = (field.first + field.last) / 2, part * field.extent / 2
            place = np.arange(self.heat.shape[axis])
            low = np.maximum(place - 0.5, middle - half)
            high = np.minimum(place + 0.5, middle + half)
            weights.append(np.clip(high - low, 0, 1))
        return float(weights[0] @ self.heat @ weights[1])


def _sigma(profile: Array) -> float:
    place = np.arange(len(profile))
    mean = profile @ place
    return math.sqrt(max(0.0, float(profile @ (place - mean) ** 2)))


def narrowest(profile: Array, share: float) -> int:
    """The fewest neighbouring positions that hold this share of a profile of sum 1."""
    if not 0 < share <= 1:
        raise ConfigError(f"expected a share from 0 to 1; got {share!r}. Two sigma are 0.9545.")
    sums = np.concatenate([[0.0], np.cumsum(profile)])
    share = min(share, float(sums[-1]))
    ends = np.searchsorted(sums, sums + share - 1e-12)  # for each start the first end that will do
    widths = [end - start for start, end in enumerate(ends) if end < len(sums)]
    return int(min(widths))


def effective(
    model: Model,
    input_size: Sequence[int],
    output: Pair | None = None,
    layer: str | None = None,
    weights: str = "own",
    draws: int = 10,
    rng: init.Seed = 0,
) -> EffectiveField:
    """How much each pixel counts for an output; what that means stands at the top of this page.

    Parameters
    ----------
    model : nn.Module, or a function of one Tensor
        It is left as it is, and acts as in evaluation.
    input_size : sequence of int
        (N, C, H, W) or (C, H, W); N does not matter. Numbers of the image are drawn from a normal
        distribution.
    output : (int, int), optional
        Row and column; by default the one in the middle.
    layer : str, optional
        The layer whose output it is; by default the network's.
    weights : {"own", "random", "uniform"}
        "own": those of the network, from a checkpoint or from its start. "random": drawn anew
        each time, as `init.he_normal_` draws them, without biases. "uniform": all of a layer's
        weights equal, rectifiers open and maxima taken for means; the heat is then the gradient
        itself and not its square, and `closed_form_sigma` is exact.
    draws : int
        Images, and with "random" weights too, over which the mean is taken.
    rng : Generator, int or None

    Raises
    ------
    FieldError
        If no image of those drawn gets a gradient, or the network fails on one.
    ConfigError
        If an argument makes no sense.
    PositionError
        If there is no such output.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"expected weights out of {', '.join(WEIGHTS)}; got {weights!r}.")
    if weights != "own" and not isinstance(model, nn.Module):
        raise ConfigError(
            f'expected an nn.Module to give {weights} weights; got a function. Pass weights="own".'
        )
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ConfigError(f"expected draws, a whole number of at least 1; got {draws!r}.")
    size = check_size(input_size)
    size = (1, *size[1:]) if len(size) == 4 else size
    looked_at, target = chosen(analyse(model, size, misaligned="union"), output, layer)
    (place,) = target.outputs
    random = init.generator(rng)
    heat = np.zeros(size[-2:])
    for _ in range(1 if weights == "uniform" else draws):
        network = _weighted(model, weights, random)
        dtype = np.dtype(np.float64) if weights == "uniform" else _dtype(model)
        image = Tensor(random.normal(size=size).astype(dtype), requires_grad=True)
        run = record(network, image)
        tensor = target.find(run)
        index = target.place_of(tensor, place, 0 if len(size) == 4 else None)
        seed = np.zeros(tensor.shape, tensor.dtype)
        if weights == "uniform":
            seed[index] = 1
            gradient = pull_back(tensor, seed, image)
        else:
            seed[index] = random.normal(size=seed[index].shape)
            tensor.backward(seed)
            gradient = np.zeros(size) if image.grad is None else image.grad.numpy() ** 2
        heat += gradient.reshape(-1, *size[-2:]).sum(axis=0, dtype=np.float64)
    if not np.isfinite(heat).all() or heat.sum() == 0:
        what = "none" if heat.sum() == 0 else "nan or infinity"
        raise FieldError(
            f"expected a gradient of output {place} of {looked_at.name} by an image; got {what} in "
            f"{draws} draws of normal numbers of shape {size}. Its rectifiers may all be shut: "
            'draw more, choose another output, or pass weights="random".'
        )
    return EffectiveField(heat / heat.sum(), place, looked_at)


def _dtype(model: Model) -> np.dtype[Any]:
    parameters = [*model.parameters()] if isinstance(model, nn.Module) else []
    return parameters[0].dtype if parameters else np.dtype(np.float32)


def _weighted(model: Model, weights: str, random: np.random.Generator) -> Model:
    """The network, or a copy with other weights, as it acts in evaluation and without learning."""
    if not isinstance(model, nn.Module):
        return model
    dtype = np.dtype(np.float64) if weights == "uniform" else _dtype(model)
    own = dict(model.named_parameters())

    def weigh(name: str, shape: tuple[int, ...]) -> Any:
        if weights == "own":
            return own[name].to("cpu").data  # shared, not copied
        if is_bias(name):
            return np.zeros(shape, dtype)
        if weights == "random" and len(shape) > 1:
            drawn = Tensor(np.empty(shape, dtype))
            init.he_normal_(drawn, rng=random)
            return drawn.data
        return np.full(shape, 1 / math.prod(shape[1:]), dtype)

    return reweighted(model, weigh, dtype)


# ---- the closed form -------------------------------------------------------------------------


def closed_form_sigma(
    model: Model, input_size: Sequence[int], layer: str | None = None
) -> tuple[float, float]:
    """Sigma of the effective field along rows and columns, for layers of equal weights.

    ``sqrt(sum over layers of (jump * dilation)**2 * (kernel**2 - 1) / 12)``, far from borders.
    Maxima count as means.

    Parameters
    ----------
    model, input_size, layer
        See `effective`.

    Raises
    ------
    FieldError
        If the layers are no chain of windows: there is no such form where branches join or images
        are enlarged.

    Examples
    --------
    >>> from tinydilate import models
    >>> rows, _ = closed_form_sigma(models.context(1, device="meta"), (1, 1, 67, 67))
    >>> round(rows, 2)
    15.12
    """
    run = record_shapes(model, check_size(input_size))
    target = run.output
    if layer is not None:
        target = run.calls[layer_number(analyse(model, input_size, "union"), layer)].output
    seen = walk(run, misaligned="union")
    variance = [0.0, 0.0]
    while target is not run.image:
        op = target.op
        inputs = [
            (number, tensor)
            for number, tensor in enumerate(op.inputs if op else ())
            if depends_on(run.image, tensor) and number_of(tensor) in seen
        ]
        if op is None or len(inputs) != 1:
            raise FieldError(
                "expected a chain of layers for the closed form; got branches that meet in "
                f"{type(op).__name__}. Measure it with effective(...)."
            )
        number, target = inputs[0]
        before = seen[number_of(target)]
        if isinstance(before, Blind):
            raise FieldError(f"expected a chain of windows for the closed form; {before.reason}.")
        for axis, reader in enumerate(_windows(op, number, before.axes)):
            line = before.line(axis)
            jump = 1.0 if line is None else float(line.stride)
            variance[axis] += (jump * reader.dilation) ** 2 * (reader.kernel**2 - 1) / 12
    return math.sqrt(variance[0]), math.sqrt(variance[1])


def _windows(op: Op, number: int, axes: Pair) -> tuple[Slide, Slide]:
    """How an op slides along rows and columns."""
    reading = RULES[type(op)](op, number, axes)
    if isinstance(reading, Reading):
        rows, columns = reading.rows.reader, reading.columns.reader
        if isinstance(rows, Slide) and isinstance(columns, Slide):
            return rows, columns
    raise FieldError(
        "expected a chain of windows for the closed form; got "
        f"{type(op).__name__}, which is none. Measure it with effective(...)."
    )
