"""What a network is made of: a table with one row for each layer that runs.

The network is sent one input on the meta device, which has shapes but no numbers, so the table of
a network with 141 million parameters takes no memory and a fraction of a second.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from tinydilate import nn
from tinydilate.autograd import Tensor, no_grad
from tinydilate.device import MetaArray
from tinydilate.errors import ShapeError
from tinydilate.field import Field, Reader, field_of

Chain = tuple[tuple[Reader, ...], tuple[Reader, ...]]  # the layers so far, along rows and columns


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
        layer that looks at everything, or at more than one input.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int
    field: tuple[Field, Field] | None


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
    size = _check_size(input_size)
    shadow = nn.as_meta(model)
    names = {id(module): name for name, module in shadow.named_modules()}
    image = Tensor(MetaArray(size, dtype))
    recorder = _Recorder(names, image)
    with nn.watching_modules(recorder), no_grad():
        shadow(image)
    rows = recorder.rows
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


class _Recorder:
    """Writes a row for each call of a layer, and follows which tensor saw what of the input."""

    def __init__(self, names: dict[int, str], image: Tensor) -> None:
        self.names = names
        self.rows: list[SummaryRow] = []
        self.counted: set[int] = set()  # parameters that stand in a row already
        self.kept: list[Any] = [image]  # as long as it lives, no other tensor gets its id
        self.chains: dict[int, Chain | None] = {id(image): ((), ())}

    def __call__(self, call: nn.Call) -> None:
        module, output = call.module, call.output
        if next(module.children(), None) is not None or id(module) not in self.names:
            return  # its layers have their own rows
        result = output[0] if isinstance(output, tuple) else output  # pooling may add indices
        handed_through = output is call.inputs[0]  # dropout in evaluation, for one
        chain = self.chains.get(id(output)) if handed_through else self._extend(call, result)
        self.kept.append(result)
        self.chains[id(result)] = chain
        fresh = [p for p in module.parameters() if id(p) not in self.counted]
        self.counted.update(id(parameter) for parameter in fresh)
        row = SummaryRow(
            name=self.names[id(module)],
            type=type(module).__name__,
            output_shape=result.shape,
            parameters=sum(parameter.size for parameter in fresh),
            macs=module.macs(call.inputs[0].shape, result.shape),
            activation_bytes=0 if handed_through else result.size * result.dtype.itemsize,
            field=None if chain is None else (field_of(chain[0]), field_of(chain[1])),
        )
        self.rows.append(row)

    def _extend(self, call: nn.Call, result: Tensor) -> Chain | None:
        before = self.chains.get(id(call.inputs[0]))
        if before is None or len(call.inputs) != 1 or result.ndim < 3:
            return None
        readers = call.module.readers(call.inputs[0].shape, result.shape)
        if readers is None:
            return None
        return (*before[0], readers[0]), (*before[1], readers[1])


def _check_size(input_size: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(input_size)
    if not sizes or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
        raise ShapeError(
            "expected an input size of whole numbers of at least 1, such as (1, 3, 500, 500) for "
            f"(N, C, H, W); got {input_size!r}."
        )
    return sizes


# ---- the table -------------------------------------------------------------------------------


def format_table(summary: Summary) -> str:
    """Write a summary as text: a header, a row for each layer, and the totals.

    The field's columns are those along rows, with those along columns behind an "x" where they
    differ: its extent, its stride (pixels from one output to the next) and the centre of output 0.
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


_FIELD_COLUMNS = ("field", "stride", "centre")


def _cells(row: SummaryRow) -> tuple[str, ...]:
    return (
        row.name or "(itself)",
        row.type,
        _shape(row.output_shape),
        f"{row.parameters:,}" if row.parameters else "-",
        _count(row.macs) if row.macs else "-",
        _bytes(row.activation_bytes) if row.activation_bytes else "-",
        *(_along_both(row.field, column) for column in ("extent", "stride", "centre")),
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

    "field", "stride" and "centre" are [along rows, along columns], or null.
    """
    totals = {**summary._asdict(), "layers": [_row_object(row) for row in summary.rows]}
    del totals["rows"]
    return json.dumps(totals, indent=2)


def _row_object(row: SummaryRow) -> dict[str, Any]:
    fields = row.field

    def both(column: str) -> list[float] | None:
        return None if fields is None else [_number(getattr(field, column)) for field in fields]

    values = {**row._asdict(), "field": both("extent")}
    return {**values, "stride": both("stride"), "centre": both("centre")}


def _number(value: Fraction | int) -> float | int:
    return int(value) if value == int(value) else float(value)
