"""What a network is made of: a table with one row for each layer that runs.

The network is sent one input on the meta device, which has shapes but no numbers, so the table of
a network with 141 million parameters takes no memory and a fraction of a second.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydilate import nn
from tinydilate.autograd import Tensor
from tinydilate.device import MetaArray
from tinydilate.field import Field
from tinydilate.receptive_field.analysis import Layer, layer_of, number
from tinydilate.receptive_field.graph import Called, Run, check_size, first_of, walk


class SummaryRow(NamedTuple):
    """One call of one layer.

    Attributes
    ----------
    name : str
        Dotted name in the network.
    type : str
        Class of the layer.
    output_shape : tuple of int
    parameters : int
        Numbers in its parameters; 0 at a further call of the same layer.
    macs : int
        Multiply-accumulate operations, biases not counted.
    activation_bytes : int
        Memory of its output; 0 where that is the input itself.
    field : (Field, Field) or None
        Receptive field in pixels of the network's input, along rows and columns; None behind a
        layer that looks at everything.
    reached : float or None
        Share of the field's pixels that an output sees: 1 unless there are holes.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int
    field: tuple[Field, Field] | None
    reached: float | None


class Summary(NamedTuple):
    """A network's rows and totals; `format_table` prints it, `to_json` writes it.

    Attributes
    ----------
    input_shape : tuple of int
    rows : list of SummaryRow
        In the order in which the layers run.
    parameters : int
        Numbers in all parameters, each parameter counted once, fixed ones included.
    trainable : int
        Those that are learnt.
    macs : int
    parameter_bytes, activation_bytes : int
        Memory of the parameters and buffers, and of all rows' outputs together, which is about
        what training keeps for the way back.
    """

    input_shape: tuple[int, ...]
    rows: list[SummaryRow]
    parameters: int
    trainable: int
    macs: int
    parameter_bytes: int
    activation_bytes: int


def summarise(model: nn.Module, input_size: Sequence[int], dtype: Any = np.float32) -> Summary:
    """Send an input of shapes only through a network and write down each layer's call.

    Parameters
    ----------
    model : nn.Module
        On any device; it is left as it is. In training (`nn.Module.train`) dropout makes new maps,
        in evaluation it hands its input on.
    input_size : sequence of int
        (N, C, H, W).
    dtype : float32 or float64
        Of the input, as of the parameters.

    Raises
    ------
    ShapeError
        If the sizes are not whole numbers of at least 1, or the network cannot take them.
    """
    size = check_size(input_size, axes=1)
    shadow = nn.as_meta(model)
    names = {id(module): name for name, module in shadow.named_modules()}
    image = Tensor(MetaArray(size, dtype), requires_grad=True)  # so that the graph is recorded
    calls: list[nn.Call] = []
    with nn.watching_modules(calls.append):
        shadow(image)
    rows = _rows(names, image, calls)
    tensors = [*shadow.parameters(), *shadow.buffers()]
    return Summary(
        input_shape=size,
        rows=rows,
        parameters=sum(parameter.size for parameter in shadow.parameters()),
        trainable=sum(p.size for p in shadow.parameters() if p.requires_grad),
        macs=sum(row.macs for row in rows),
        parameter_bytes=sum(tensor.size * tensor.dtype.itemsize for tensor in tensors),
        activation_bytes=sum(row.activation_bytes for row in rows),
    )


def _rows(names: dict[int, str], image: Tensor, calls: list[nn.Call]) -> list[SummaryRow]:
    """A row for each call of a layer; modules made of layers have none of their own."""
    calls = [c for c in calls if next(c.module.children(), None) is None and id(c.module) in names]
    run = Run(image, image, [_called(names, call) for call in calls])
    seen = walk(run, misaligned="union", unknown="mark") if image.ndim > 2 else {}
    counted: set[int] = set()  # parameters that stand in a row already
    rows = []
    for call, called in zip(calls, run.calls, strict=True):
        module, result = call.module, called.output
        fresh = [p for p in module.parameters() if id(p) not in counted]
        counted.update(id(parameter) for parameter in fresh)
        handed_through = call.output is call.inputs[0]  # dropout in evaluation, for one
        layer = layer_of(called, run, seen)
        field, reached = _field(layer)
        rows.append(
            SummaryRow(
                name=called.name,
                type=called.type,
                output_shape=result.shape,
                parameters=sum(parameter.size for parameter in fresh),
                macs=module.macs(call.inputs[0].shape, result.shape),
                activation_bytes=0 if handed_through else result.size * result.dtype.itemsize,
                field=field,
                reached=reached,
            )
        )
    return rows


def _called(names: dict[int, str], call: nn.Call) -> Called:
    result = first_of(call.output)  # pooling may add indices
    return Called(names[id(call.module)], type(call.module).__name__, call.inputs, result)


def _field(layer: Layer) -> tuple[tuple[Field, Field] | None, float | None]:
    """A layer's field and the share of it that is reached, where there is one."""
    return (layer.fields, layer.share) if layer.has_fields else (None, None)


# ---- the table -------------------------------------------------------------------------------


def format_table(summary: Summary) -> str:
    """Write a summary as text: a header, a row for each layer, and the totals.

    The field's columns are those along rows, with those along columns behind an "x" where they
    differ: its extent, its stride (pixels from one output to the next), the centre of output 0, and
    how much of it is reached, which is less than all where dilation leaves holes.
    """
    header = ("layer", "type", "output shape", "parameters", "MACs", "memory", *_FIELD_COLUMNS)
    lines = [_cells(row) for row in summary.rows]
    widths = [max(len(line[k]) for line in [header, *lines]) for k in range(len(header))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

    def written(cells: Sequence[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
        return "  ".join([*left, *right]).rstrip()

    fixed = summary.parameters - summary.trainable
    totals = [
        f"input         {_shape(summary.input_shape)}",
        f"parameters    {summary.parameters:,}" + (f" ({fixed:,} fixed)" if fixed else ""),
        f"MACs          {_count(summary.macs)}",
        f"memory        parameters {_bytes(summary.parameter_bytes)}, "
        f"outputs {_bytes(summary.activation_bytes)}",
    ]
    return "\n".join([written(header), rule, *map(written, lines), rule, *totals])


_FIELD_COLUMNS = ("field", "stride", "centre", "reached")


def _cells(row: SummaryRow) -> tuple[str, ...]:
    return (
        row.name or "(itself)",
        row.type,
        _shape(row.output_shape),
        f"{row.parameters:,}" if row.parameters else "-",
        _count(row.macs) if row.macs else "-",
        _bytes(row.activation_bytes) if row.activation_bytes else "-",
        *(_along_both(row.field, column) for column in ("extent", "stride", "centre")),
        "-" if row.reached is None else f"{100 * row.reached:.3g} %",
    )


def _along_both(fields: tuple[Field, Field] | None, column: str) -> str:
    if fields is None:
        return "-"
    rows, columns = (f"{float(getattr(field, column)):g}" for field in fields)
    return rows if rows == columns else f"{rows}x{columns}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _count(number: int) -> str:
    """A large number in thousands, millions or milliards."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B"


def to_json(summary: Summary) -> str:
    """Write a summary as JSON: the totals, and "layers" with an object for each row.

    "field", "stride" and "centre" are [along rows, along columns], or null; "reached" is a share.
    """
    totals = {**summary._asdict(), "layers": [_row_object(row) for row in summary.rows]}
    del totals["rows"]
    return json.dumps(totals, indent=2)


def _row_object(row: SummaryRow) -> dict[str, Any]:
    fields = row.field

    def both(column: str) -> list[float] | None:
        return None if fields is None else [number(getattr(field, column)) for field in fields]

    values = {**row._asdict(), "field": both("extent")}
    return {**values, "stride": both("stride"), "centre": both("centre")}
