"""Analysis against measurement, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from math import ceil
from typing import NamedTuple

import numpy as np

from tinydilate import nn
from tinydilate.device import Array
from tinydilate.errors import FieldError, TinydilateError
from tinydilate.receptive_field.analysis import Analysis, Layer, analyse, and_output
from tinydilate.receptive_field.graph import Model
from tinydilate.receptive_field.probes import check_image_size, measure_targets, target_of
from tinydilate.window import Pair


class Counterexample(NamedTuple):
    """The first pixel on which analysis and measurement differ.

    Attributes
    ----------
    output, pixel : (int, int)
        Row and column.
    analysed, measured : bool
        Whether the pixel changes the output, says either.
    """

    output: Pair
    pixel: Pair
    analysed: bool
    measured: bool


class Check(NamedTuple):
    """A layer's check.

    Attributes
    ----------
    layer : Layer
    outputs : tuple of (int, int)
        The outputs that were measured; none where the layer has no field.
    counterexample : Counterexample or None
    """

    layer: Layer
    outputs: tuple[Pair, ...]
    counterexample: Counterexample | None

    def __str__(self) -> str:
        if self.layer.reason is not None:
            return f"{self.layer.name}: not checked, {self.layer.reason}"
        if self.counterexample is None:
            return f"{self.layer.name}: {len(self.outputs)} outputs agree"
        output, pixel, analysed, _ = self.counterexample
        said, found = ("sees", "does not") if analysed else ("does not see", "does")
        return (
            f"{self.layer.name}: output {output} {said} pixel {pixel}, says the analysis; "
            f"measured, it {found}"
        )


class Verification(NamedTuple):
    """The checks of a network's layers; ``print`` shows them.

    Attributes
    ----------
    method : str
    checks : list of Check
        One for each layer, and one for the network's output if it is no layer's.
    """

    method: str
    checks: list[Check]

    @property
    def agrees(self) -> bool:
        """Whether analysis and measurement agree on every pixel of every output measured."""
        return all(check.counterexample is None for check in self.checks)

    def __str__(self) -> str:
        verdict = "agree" if self.agrees else "DIFFER"
        measured = sum(bool(check.outputs) for check in self.checks)
        if measured < len(self.checks):
            verdict += f" on {measured} of {len(self.checks)} layers; the others are not checked"
        return "\n".join(
            [*map(str, self.checks), f"analysis and measurement by {self.method} {verdict}"]
        )


def verify(
    model: Model, input_size: Sequence[int], method: str = "gradient", progress: bool = False
) -> Verification:
    """Check the analysis of every layer against a measurement.

    Of each layer outputs at the corners are measured, and one in the middle of each phase, whose
    whole field lies in the image. Every pixel of the image must agree. In the middle the field is
    compared at places without end as well, so that what is cut off at borders hides nothing.

    Parameters
    ----------
    model : nn.Module, or a function of one Tensor
    input_size : sequence of int
        (N, C, H, W) or (C, H, W), large enough for the largest field.
    method : {"gradient", "impulse"}
        See `measure`.
    progress : bool
        Show a bar on stderr: the published networks take minutes.

    Raises
    ------
    FieldError
        If the image is too small for some layer's field, with a size that would do; or if the
        network fails on the probe.
    """
    size = check_image_size(input_size)
    analysis = analyse(model, size, misaligned="union")
    layers = and_output(analysis.layers, analysis)
    targets, looked_at = [], []
    for number, layer in enumerate(layers):
        if layer.reason is None:
            call = number if number < len(analysis.layers) else None  # the output's is none
            outputs = _outputs_to_measure(layer, model, analysis, size)
            targets.append(target_of(call, layer, outputs))
            looked_at.append(layer)
    masks = measure_targets(model, size, targets, method, progress=progress) if targets else []
    checks = [
        Check(layer, target.outputs, _compare(layer, target.outputs, found))
        for layer, target, found in zip(looked_at, targets, masks, strict=True)
    ]
    unseen = [Check(layer, (), None) for layer in layers if layer.reason is not None]
    return Verification(method, [*checks, *unseen])


def _outputs_to_measure(
    layer: Layer, model: Model, analysis: Analysis, size: tuple[int, ...]
) -> tuple[Pair, ...]:
    """Corners, and the middle with each phase along rows and along columns."""
    bottom, right = layer.size[0] - 1, layer.size[1] - 1
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    if not layer.has_fields:
        return tuple(dict.fromkeys([*corners, (bottom // 2, right // 2)]))
    whole = layer.whole_outputs()
    if not all(whole):
        raise FieldError(
            f"expected an image that holds the whole field of an output of {layer.name}, "
            f"{layer.extent[0]} x {layer.extent[1]} pixels; got one of {size[-2]} x {size[-1]}. "
            + _advice(model, analysis, size)
        )
    rows, columns = (_middle(r, period) for r, period in zip(whole, layer.period, strict=True))
    longer = max(len(rows), len(columns))
    middle = zip(islice(cycle(rows), longer), islice(cycle(columns), longer), strict=True)
    return tuple(dict.fromkeys([*corners, *middle]))


def _middle(outputs: list[int], period: int) -> list[int]:
    """As many outputs as there are phases, or as there are, from the middle."""
    number = min(period, len(outputs))
    first = (len(outputs) - number) // 2
    return outputs[first : first + number]


def _advice(model: Model, analysis: Analysis, size: tuple[int, ...]) -> str:
    """A size that would do for all layers, found by trying: with strides not all larger do."""
    if isinstance(model, nn.Module):
        measured = [layer for layer in and_output(analysis.layers, analysis) if layer.has_fields]
        extent = [max(layer.extent[axis] for layer in measured) for axis in (0, 1)]
        stride = [max(ceil(abs(layer.stride[axis])) for layer in measured) for axis in (0, 1)]
        for more in range(64):
            wider = [max(size[axis - 2], extent[axis] + stride[axis] * more) for axis in (0, 1)]
            try:
                larger = analyse(model, (*size[:-2], *wider), "union")
            except TinydilateError:
                continue
            if all(
                all(each.whole_outputs())
                for each in and_output(larger.layers, larger)
                if each.has_fields
            ):
                size_option = f"--size {wider[0]}x{wider[1]}"
                return f"{wider[0]} x {wider[1]} would do ({size_option} on the command line)."
    return "Give it a larger one."


def _compare(layer: Layer, outputs: tuple[Pair, ...], masks: Array) -> Counterexample | None:
    """The first pixel on which they differ, of the first output on which they do."""
    for output, measured in zip(outputs, masks, strict=True):
        for analysed in _analysed(layer, output):
            differ = np.argwhere(analysed != measured)
            if len(differ):
                pixel = int(differ[0][0]), int(differ[0][1])
                return Counterexample(output, pixel, bool(analysed[pixel]), bool(measured[pixel]))
    return None


def _analysed(layer: Layer, output: Pair) -> list[Array]:
    """What the output sees, cut off at borders; and as a place without end, if nothing is."""
    masks = [layer.seen_by(output)]
    if not layer.has_fields:
        return masks
    rows, columns = layer.whole_outputs()
    if output[0] in rows and output[1] in columns:
        (top, left), mask = layer.field_of(output)
        whole = np.zeros(layer.image_size, bool)
        whole[top : top + len(mask), left : left + mask.shape[1]] = mask
        masks.append(whole)
    return masks
