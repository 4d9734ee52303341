"""The analysis of a network: for each layer, and each tensor, what it sees of the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from tinydilate.device import Array
from tinydilate.errors import ConfigError, FieldError, PositionError
from tinydilate.field import Field, Line, Pixels, joined
from tinydilate.receptive_field.graph import (
    Blind,
    Called,
    Model,
    Run,
    Seen,
    check_size,
    depends_on,
    names_of,
    number_of,
    ops_of,
    record_shapes,
    walk,
)
from tinydilate.window import Pair


class Patch(NamedTuple):
    """What one output sees, at places without end.

    Attributes
    ----------
    corner : (int, int)
        Row and column of the image that the mask begins at; negative before the image.
    mask : (rows, columns) bool
        Which pixels of the field's box are seen.
    """

    corner: Pair
    mask: Array


class Layer(NamedTuple):
    """What the outputs of one layer, or of one op, see of the image.

    Pairs are (rows, columns). Numbers that depend on the output's phase, behind an upsampling, are
    the largest ones; `phases` has them all. Positions are not cut at the image's border; `seen_by`
    cuts them.

    Attributes
    ----------
    name, type : str
    output_shape : tuple of int
    seen : Seen or Blind
    image_size : (H, W)
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    seen: Seen | Blind
    image_size: Pair

    @property
    def reason(self) -> str | None:
        """Why there is no field, such as for what looks at the whole image; None if there is."""
        return self.seen.reason if isinstance(self.seen, Blind) else None

    @property
    def has_fields(self) -> bool:
        """Whether there is one field along rows and one along columns, so that numbers tell it.

        There is none where the layer looks at everything, or branches of several strides join.
        """
        return not isinstance(self.seen, Blind) and None not in map(self.seen.line, (0, 1))

    def sight(self) -> Seen:
        """What is seen.

        Raises
        ------
        FieldError
            If there is no telling, with the reason.
        """
        if isinstance(self.seen, Blind):
            raise FieldError(
                f"expected a layer of which every output sees its own part of the image; got "
                f"{self.name}, where {self.seen.reason}. Look at the layers before it."
            )
        return self.seen

    @property
    def size(self) -> Pair:
        """Rows and columns of the output."""
        rows, columns = self.sight().axes
        return self.output_shape[rows], self.output_shape[columns]

    def line(self, axis: int) -> Line:
        """What outputs see along rows (0) or columns (1).

        Raises
        ------
        FieldError
            If branches of several strides were joined: then it is no one line.
        """
        line = self.sight().line(axis)
        if line is None:
            raise FieldError(
                f"expected branches of one stride; in {self.name} branches of several were joined. "
                "Ask for single outputs, with field_of(output) or seen_by(output)."
            )
        return line

    @property
    def fields(self) -> tuple[Field, Field]:
        """Extent, stride, centre and reached pixels along rows and along columns."""
        return self.line(0).field(), self.line(1).field()

    @property
    def extent(self) -> Pair:
        """Pixels from the first that an output sees to the last."""
        rows, columns = self.fields
        return rows.extent, columns.extent

    @property
    def stride(self) -> tuple[Fraction, Fraction]:
        """Pixels from one output's field to the next one's."""
        rows, columns = self.fields
        return rows.stride, columns.stride

    @property
    def centre(self) -> tuple[Fraction, Fraction]:
        """Pixel at the centre of output 0's field; output i's is ``i * stride`` further."""
        rows, columns = self.fields
        return rows.centre, columns.centre

    @property
    def padding(self) -> Pair:
        """Pixels by which output 0's field begins before the image; negative if inside it."""
        top, left = self.field_of((0, 0)).corner
        return -top, -left

    @property
    def period(self) -> Pair:
        """Phases: how many neighbouring outputs see differently before the pattern repeats."""
        return self.line(0).period, self.line(1).period

    @property
    def phases(self) -> tuple[tuple[Pixels, ...], tuple[Pixels, ...]]:
        """What the outputs of each phase see along rows, and along columns."""
        return self.line(0).phases, self.line(1).phases

    @property
    def separable(self) -> bool:
        """Whether the field is all pixels in certain rows and columns; else it is a map."""
        return len(self.sight().products) == 1

    def _seen_at(self, output: Pair) -> list[tuple[Pixels, Pixels]]:
        """The rows and the columns of each product, without those that are empty."""
        both = [
            (product.rows.line.seen(output[0]), product.columns.line.seen(output[1]))
            for product in self.sight().products
        ]
        return [(rows, columns) for rows, columns in both if rows.bits and columns.bits]

    def field_of(self, output: Pair) -> Patch:
        """The exact set that an output sees, at places without end: nothing is cut off."""
        seen = self._seen_at(output)
        top, left = joined(rows for rows, _ in seen), joined(columns for _, columns in seen)
        mask = np.zeros((top.extent, left.extent), bool)
        for rows, columns in seen:
            y, z = rows.first - top.first, columns.first - left.first
            block = np.outer(bits_to_mask(rows.bits), bits_to_mask(columns.bits))
            mask[y : y + rows.extent, z : z + columns.extent] |= block
        return Patch((top.first, left.first), mask)

    def _densest(self) -> tuple[int, int]:
        """Pixels reached, and pixels of the box, of the phase that reaches the most."""
        if self.separable:
            rows, columns = self.fields
            return rows.reached * columns.reached, rows.extent * columns.extent
        every = np.ndindex(*self.period)
        masks = [self.field_of(phase).mask for phase in every]
        return max((int(mask.sum()), mask.size) for mask in masks)

    @property
    def reached(self) -> int:
        """Pixels that an output sees."""
        return self._densest()[0]

    @property
    def holes(self) -> int:
        """Pixels of the field's box that the output does not see."""
        reached, box = self._densest()
        return box - reached

    @property
    def share(self) -> float:
        """Pixels reached as a share of the field's box; 1 is a field without holes."""
        reached, box = self._densest()
        return reached / box if box else 0.0

    def seen_by(self, output: Pair) -> Array:
        """The pixels of the image that an output really sees, (H, W) bool.

        At a border this is less than `field_of`: zeros stand there for pixels, at each layer, or
        it is other pixels, where the border mirrors the image.

        Raises
        ------
        PositionError
            If there is no such output.
        """
        for position, size in zip(output, self.size, strict=True):
            if not 0 <= position < size:
                raise PositionError(
                    f"expected an output of {self.name}, rows and columns from 0 to "
                    f"{self.size[0] - 1} and {self.size[1] - 1}; got {output}."
                )
        mask = np.zeros(self.image_size, bool)
        for product in self.sight().products:
            rows = bits_to_mask(product.rows.inside[output[0]], self.image_size[0])
            columns = bits_to_mask(product.columns.inside[output[1]], self.image_size[1])
            mask |= np.outer(rows, columns)
        return mask

    def outside(self, output: Pair) -> float:
        """The share of an output's field that lies beyond the image's border."""
        (top, left), mask = self.field_of(output)
        height, width = self.image_size
        inside = mask[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
        return 1 - int(inside.sum()) / max(1, int(mask.sum()))

    def whole_outputs(self) -> tuple[list[int], list[int]]:
        """Rows and columns of outputs that see their whole field: nothing in between is cut off."""
        rows, columns = (
            [i for i in range(size) if all(p[axis].whole[i] for p in self.sight().products)]
            for axis, size in enumerate(self.size)
        )
        return rows, columns


def bits_to_mask(bits: int, size: int | None = None) -> Array:
    """The bits of a number, the lowest first, as an array of so many booleans."""
    size = bits.bit_length() if size is None else size
    octets = np.frombuffer(bits.to_bytes(-(-size // 8), "little"), np.uint8)
    return np.unpackbits(octets, bitorder="little")[:size].astype(bool)


class Analysis:
    """What each layer of a network sees of an image.

    Attributes
    ----------
    input_size : tuple of int
    layers : list of Layer
        One for each call of a module without modules inside, in the order in which they ran.
    steps : list of Layer
        One for each op, those that no module made included.
    output : Layer
        The network's result.
    """

    def __init__(self, run: Run, misaligned: str = "raise") -> None:
        self.input_size = run.image.shape
        image_size = run.image.shape[-2], run.image.shape[-1]
        seen, names = walk(run, misaligned), names_of(run)
        self.steps = []
        for op, result in ops_of(run):
            if op.number in seen:
                name, kind = names.get(op.number, type(op).__name__), type(op).__name__
                self.steps.append(Layer(name, kind, result.shape, seen[op.number], image_size))
        self.layers = [layer_of(call, run, seen) for call in run.calls]
        made_by = number_of(run.output)
        name = "image" if run.output.op is None else type(run.output.op).__name__
        name = name if made_by is None else names.get(made_by, name)
        self.output = Layer(name, "output", run.output.shape, seen[made_by], image_size)

    def __iter__(self) -> Iterator[Layer]:
        """The layers; of a function that calls no modules, the ops."""
        return iter(self.layers or self.steps)

    def __getitem__(self, name: str) -> Layer:
        """A layer by its name, at its last call."""
        layers: list[Layer] = [*self]
        for layer in reversed(layers):
            if layer.name == name:
                return layer
        raise ConfigError(
            f"expected the name of a layer; got {name!r}. There are "
            f"{', '.join(dict.fromkeys(layer.name for layer in self))}."
        )


def layer_of(call: Called, run: Run, seen: dict[int | None, Seen | Blind]) -> Layer:
    """One call of a layer, with what it sees."""
    sight: Seen | Blind = Blind("nothing is computed from the image")
    if depends_on(run.image, call.output):
        sight = seen.get(number_of(call.output), sight)
    image_size = (run.image.shape[-2], run.image.shape[-1]) if run.image.ndim > 1 else (1, 1)
    return Layer(call.name, call.type, call.output.shape, sight, image_size)


def analyse(model: Model, input_size: Sequence[int], misaligned: str = "raise") -> Analysis:
    """Work out what each layer of a network sees.

    The network runs once on shapes alone, so no weights are allocated and nothing is computed.

    Parameters
    ----------
    model : nn.Module, or a function of one Tensor
        Sequential or any other graph of our ops; it is left as it is. A function that brings
        arrays of its own is run on zeros instead.
    input_size : sequence of int
        (N, C, H, W) or (C, H, W).
    misaligned : {"raise", "union"}
        What to do where branches meet of which one output sees places that lie apart: refuse, or
        take all that both see.

    Raises
    ------
    FieldError
        If branches are not aligned, an op has no rule (see `tinydilate.receptive_field.rule`), or
        the network does not take such an image.

    Examples
    --------
    >>> from tinydilate import nn
    >>> layers = [nn.Conv2d(1, 1, 3, padding=d, dilation=d, device="meta") for d in (2, 2, 2)]
    >>> last = analyse(nn.Sequential(*layers), (1, 1, 32, 32)).output
    >>> last.extent, last.reached, round(last.share, 2)
    ((13, 13), 49, 0.29)
    """
    if misaligned not in ("raise", "union"):
        raise ConfigError(f'expected misaligned="raise" or "union"; got {misaligned!r}.')
    return Analysis(record_shapes(model, check_size(input_size)), misaligned)


# ---- the table -------------------------------------------------------------------------------


def layer_as_dict(layer: Layer) -> dict[str, Any]:
    """A layer's numbers for JSON; ``reason`` says why there are none."""
    head = {"name": layer.name, "type": layer.type, "output_shape": list(layer.output_shape)}
    if not layer.has_fields:
        return {**head, "reason": layer.reason or "branches of several strides were joined"}
    return {
        **head,
        "extent": list(layer.extent),
        "stride": [number(value) for value in layer.stride],
        "centre": [number(value) for value in layer.centre],
        "padding": list(layer.padding),
        "reached": layer.reached,
        "holes": layer.holes,
        "share": layer.share,
        "separable": layer.separable,
        "phases": [[pixels.positions() for pixels in axis] for axis in layer.phases],
    }


def number(value: Fraction | int) -> int | float:
    """A fraction as a whole number if it is one, else as a float."""
    return int(value) if value == int(value) else float(value)


def and_output(layers: list[Layer], analysis: Analysis) -> list[Layer]:
    """Layers of an analysis, and behind them its output, if that is none of theirs."""
    if any(layer.seen is analysis.output.seen for layer in layers):
        return layers
    return [*layers, analysis.output]


def format_table(analysis: Analysis) -> str:
    """Write an analysis as text: a row for each layer, (rows, columns) as one number if alike.

    A last one for the output, if that is no layer's: ops behind the last module made it.
    """
    header = ("layer", "type", "field", "stride", "centre", "padding", "reached", "share", "phases")
    lines = [header, *(_cells(layer) for layer in and_output([*analysis], analysis))]
    widths = [max(len(line[k]) for line in lines if k < len(line)) for k in range(len(header))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def _cells(layer: Layer) -> tuple[str, ...]:
    if not layer.has_fields:
        return layer.name, layer.type, "-"
    return (
        layer.name,
        layer.type,
        _both(layer.extent),
        _both(layer.stride),
        _both(layer.centre),
        _both(layer.padding),
        f"{layer.reached:,}",
        f"{100 * layer.share:.3g} %",
        _both(layer.period),
    )


def _both(pair: tuple[Any, Any]) -> str:
    rows, columns = (f"{float(value):g}" for value in pair)
    return rows if rows == columns else f"{rows}x{columns}"
