"""Networks as ONNX files, which other engines run.

The network is run once on the meta device, where shapes are computed and no numbers, with every
parameter requiring grad, so that every op is recorded. The recorded graph is then walked in the
order in which its ops were made, and each op says itself in ONNX's operators (see `onnx_rules`).

What may vary? A run shows sizes, not where they came from: is 64 the image's height, or the number
of maps? So where an axis of the image may be of any size, the network is run with nine sizes of
that axis, one after the other, and the graphs are laid side by side. What is equal in all of them
is a constant. What grows evenly with the image, such as twice the height less one, is worked out
in the graph from the shape of the image. Anything else is refused with the name of its layer. The
first size is a prime, which no stride divides: at a size that a stride divides, a network may
leave out the step that cuts off what is too much, and the step must be in the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydilate import __version__, nn
from tinydilate.autograd import Tensor, ops_behind
from tinydilate.device import Array, MetaArray
from tinydilate.errors import ConfigError, DataError, DeviceError, FieldError
from tinydilate.io import onnx_format as proto
from tinydilate.io.files import byte_bar, chunks, write_parts
from tinydilate.io.onnx_format import IR_VERSIONS, Dimension
from tinydilate.io.onnx_rules import Node, Numbers, Sketch, translate
from tinydilate.io.wire_writer import Message, length
from tinydilate.receptive_field.graph import Run, check_size, names_of, record

OPSET = 17
PLACES = {"batch": 0, "height": 2, "width": 3}  # axes of an image that may be of any size
LARGEST = 2**31 - 1  # bytes of one protocol buffer


class Exported(NamedTuple):
    """What an ONNX file holds.

    Attributes
    ----------
    path : Path
    size : int
        Bytes.
    opset : int
    inputs, outputs : dict of names to shapes
        A size that may be any is given by its name, one that is not known as None.
    operators : dict of names to int
        How many nodes there are of each kind.
    parameters : int
        Numbers in the weights.
    """

    path: Path
    size: int
    opset: int
    inputs: dict[str, tuple[Dimension, ...]]
    outputs: dict[str, tuple[Dimension, ...]]
    operators: dict[str, int]
    parameters: int


def export_onnx(
    network: nn.Module,
    path: Path | str,
    input_shape: Sequence[int],
    *,
    dynamic: Sequence[str] = (),
    opset: int = OPSET,
    metadata: Mapping[str, Any] | None = None,
    progress: str = "",
) -> Exported:
    """Write a network to an ONNX file, as it is in evaluation, in one step.

    The graph's input is called "input", its output "output" (a second one "output_2"). Weights keep
    their names from the state dictionary, nodes are called by their layers.

    Parameters
    ----------
    network : nn.Module
        Takes one tensor, returns one or a tuple of them. It is left as it is.
    path : path
        Usually ends in ``.onnx``. A file that stands there is replaced at the very end.
    input_shape : sequence of int
        Such as (1, 3, 500, 500) for (N, C, H, W).
    dynamic : sequence of {"batch", "height", "width"}
        Axes of the input that may have any size when the file is used. The others are fixed.
    opset : int
        Version of ONNX's operators, 15 to 21.
    metadata : mapping of names to texts or anything that JSON can hold, optional
        Stands in the file's ``metadata_props``, such as classes and mean.
    progress : str
        Title of a bar, shown where it takes longer than a second; none without it.

    Raises
    ------
    ConfigError
        If an option makes no sense, the network fails on such an input, an op has no translation,
        or depends on the size of an axis that may be any.
    ShapeError
        If ``input_shape`` is not a shape.
    DeviceError
        If the network is on the meta device: there are no numbers to write.
    DataError
        If the file would be larger than 2 GiB, or cannot be written.
    """
    _check_options(network, dynamic, opset)
    shape = check_size(input_shape, axes=1)
    weights = {name: tensor.data for name, tensor in _named_tensors(network)}
    if any(isinstance(array, MetaArray) for array in weights.values()):
        raise DeviceError(
            "expected a network with numbers to export; got one on the meta device, which has "
            'shapes only. Build it with device="cpu".'
        )
    plan = _settle(_outlines(network, shape, tuple(dynamic), opset))
    used = {name for node in plan.nodes for name in node.inputs}
    arrays = {name: array for name, array in weights.items() if name in used}
    constants = {name: array for name, array in plan.constants.items() if name in used}
    content = _model(plan, {**arrays, **constants}, opset, metadata or {})
    size = length(content)
    _refuse_too_large(size)
    with byte_bar(size, progress) as bar:
        write_parts(path, chunks(content, bar.update), size)
    kinds = [node.kind for node in plan.nodes]
    return Exported(
        Path(path),
        size,
        opset,
        {name: value.shape for name, value in plan.inputs.items()},
        {name: value.shape for name, value in plan.outputs.items()},
        {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        sum(array.size for array in arrays.values()),
    )


def _check_options(network: Any, dynamic: Sequence[str], opset: Any) -> None:
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"expected a network, an nn.Module, to export; got {type(network).__name__}. Put what "
            "it does into the forward of a module."
        )
    wrong = [axis for axis in dynamic if axis not in PLACES]
    if isinstance(dynamic, str) or wrong:
        raise ConfigError(
            f"expected dynamic axes out of {', '.join(PLACES)}, as in ('batch',); got {dynamic!r}."
        )
    if type(opset) is not int or opset not in IR_VERSIONS:
        first, last = min(IR_VERSIONS), max(IR_VERSIONS)
        raise ConfigError(
            f"expected an opset from {first} to {last}; got {opset!r}. {OPSET} is read by nearly "
            "every engine."
        )


def _refuse_too_large(size: int) -> None:
    if size > LARGEST:
        raise DataError(
            "expected a network of less than 2 GiB, which is what an ONNX file can hold; got one "
            f"of {size:,} bytes. Export it in float32, or in parts."
        )


def _named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name: those of the state dictionary, not copied."""
    return [*network.named_parameters(), *network.named_buffers()]


# ---- runs ------------------------------------------------------------------------------------


class Value(NamedTuple):
    """What goes in or comes out."""

    dtype: Any
    shape: tuple[Dimension, ...]


class Outline(NamedTuple):
    """The graph of one run, in which sizes are still those of that run.

    Attributes
    ----------
    axis : str or None
        Which axis of the image this run varies; None for the first run.
    shape : tuple of int
        Of the image.
    dtype : numpy.dtype
    outputs : dict of names to tensors
    """

    axis: str | None
    shape: tuple[int, ...]
    dtype: Any
    sketch: Sketch
    outputs: dict[str, Tensor]


def _outlines(
    network: nn.Module, shape: tuple[int, ...], dynamic: tuple[str, ...], opset: int
) -> list[Outline]:
    """One run, and two more for each axis that may be of any size."""
    moving = "height" in dynamic or "width" in dynamic
    if not dynamic:
        return [_outline(network, shape, opset, moving)]
    if len(shape) != 4:
        raise ConfigError(
            f"expected an input of shape (N, C, H, W) for dynamic axes; got {shape}. Leave them "
            "out."
        )

    def runs(sizes: Callable[[int], Sequence[int]]) -> list[Outline]:
        tried = {a: range(2, 7) if a == "batch" else sizes(shape[PLACES[a]]) for a in dynamic}
        base = list(shape)
        for axis in dynamic:
            base[PLACES[axis]] = tried[axis][0]
        found = [_outline(network, tuple(base), opset, moving)]
        for axis in dynamic:
            for size in tried[axis][1:]:
                other = base.copy()
                other[PLACES[axis]] = size
                found.append(_outline(network, tuple(other), opset, moving, axis))
        return found

    try:
        return runs(_from_a_prime_on)
    except ConfigError as error:
        try:  # a network may take nothing but multiples of its stride
            return runs(lambda size: range(size, size + 5 * 64, 64))
        except ConfigError:
            raise error from None


def _from_a_prime_on(size: int) -> range:
    """Nine sizes, which leave every remainder by strides of 2, 4 and 8; at least ``size``."""
    first = max(size, 11)
    while not all(first % divisor for divisor in range(2, math.isqrt(first) + 1)):
        first += 1
    return range(first, first + 9)


def _outline(
    network: nn.Module,
    shape: tuple[int, ...],
    opset: int,
    moving: bool,
    axis: str | None = None,
) -> Outline:
    """Run the network on the shape of an image and translate what it did."""
    shadow = nn.as_meta(network).eval()
    named = _named_tensors(shadow)
    for _, tensor in named:
        tensor.requires_grad = True  # so that what is computed from weights alone is recorded too
    dtype = next((tensor.dtype for tensor in shadow.parameters()), np.dtype(np.float32))
    image = Tensor(MetaArray(shape, dtype), requires_grad=True)
    run, results = _run(shadow, image)
    outputs = {"output" + (f"_{n}" if n > 1 else ""): out for n, out in enumerate(results, 1)}
    known = {id(tensor): name for name, tensor in named} | {id(image): "input"}
    sketch = Sketch(known, opset, moving)
    sketch.taken.update(outputs)
    layers = names_of(run)
    for op, result in ops_behind(results):
        sketch.layer = layers.get(op.number, "")
        translate(sketch, op, result)
    sketch.layer = ""
    for name, tensor in outputs.items():
        sketch.call(sketch.name_of(tensor), name)
    sketch.drop_unused(set(outputs))
    return Outline(axis, shape, dtype, sketch, outputs)


def _run(shadow: nn.Module, image: Tensor) -> tuple[Run, list[Tensor]]:
    """Run a network; returns what was recorded, and all that it returned."""
    returned: list[Any] = []

    def watcher(call: nn.Call) -> None:
        if call.module is shadow:
            returned[:] = call.output if isinstance(call.output, tuple) else [call.output]

    try:
        with nn.watching_modules(watcher):
            run = record(shadow, image)
    except FieldError as error:
        raise ConfigError(str(error)) from error
    except DeviceError as error:
        raise ConfigError(
            "expected a network whose arrays are all parameters or nn.Buffer, so that it runs on "
            f"shapes alone; got one with other arrays. (The run said: {error})"
        ) from error
    if not all(isinstance(each, Tensor) for each in returned):
        kinds = ", ".join(type(each).__name__ for each in returned)
        raise ConfigError(
            f"expected a network that returns a tensor or a tuple of tensors; got {kinds}."
        )
    return run, returned


# ---- several runs side by side ---------------------------------------------------------------


class Plan(NamedTuple):
    """A graph whose sizes are settled: every input of a node is a name."""

    nodes: list[Node]
    constants: dict[str, Array]
    inputs: dict[str, Value]
    outputs: dict[str, Value]


def _settle(outlines: list[Outline]) -> Plan:
    """Lay the runs side by side; see the top of this module."""
    settling = _Settling(outlines)
    base = outlines[0].sketch.nodes
    others = [_aligned(base, outline.sketch.nodes) for outline in outlines[1:]]
    for n, node in enumerate(base):
        settling.add(node, [nodes[n] for nodes in others])
    first = outlines[0]
    inputs = {"input": Value(first.dtype, settling.shape([o.shape for o in outlines]))}
    outputs = {
        name: Value(tensor.dtype, settling.shape([o.outputs[name].shape for o in outlines]))
        for name, tensor in first.outputs.items()
    }
    return Plan(settling.nodes, settling.constants, inputs, outputs)


def _aligned(base: list[Node], other: list[Node]) -> list[Node | None]:
    """The nodes of another run in the places of the first run's, with the first run's names.

    None stands for a cut that the other run could do without.
    """
    aligned: list[Node | None] = []
    names: dict[str, str] = {}  # what the other run calls it -> what the first one calls it
    waiting = iter(other)
    theirs = next(waiting, None)
    for ours in base:
        if theirs is not None and _alike(ours, theirs):
            renamed = (names.get(n, n) if isinstance(n, str) else n for n in theirs.inputs)
            aligned.append(theirs._replace(inputs=tuple(renamed), output=ours.output))
            names[theirs.output] = ours.output
            theirs = next(waiting, None)
        elif ours.kind == "Slice":
            aligned.append(None)
            names = {n: ours.output if m == ours.inputs[0] else m for n, m in names.items()}
        else:
            break
    if theirs is not None or len(aligned) < len(base):
        raise ConfigError(
            "expected a network that does the same for an image of any size; got one that takes "
            "other steps where the image is larger. Export it for one size, without dynamic axes."
        )
    return aligned


def _alike(ours: Node, theirs: Node) -> bool:
    """Whether two nodes may be the same step: of one kind, and a cut along the same axis."""
    axis = 3  # the input of Slice that says so
    return ours.kind == theirs.kind and (
        ours.kind != "Slice" or ours.inputs[axis] == theirs.inputs[axis]
    )


class Growing(NamedTuple):
    """A number that grows evenly with an axis of the image: ``factor * size + rest``."""

    axis: int
    factor: int
    rest: int


class _Settling:
    """Turns the numbers of several runs into constants, and into what the graph works out."""

    def __init__(self, outlines: list[Outline]) -> None:
        self.outlines = outlines
        self.nodes: list[Node] = []
        self.constants = dict(outlines[0].sketch.constants)
        self.names: dict[Any, str] = {}  # what was made already
        self.sketch = outlines[0].sketch  # it knows which names are taken

    def add(self, node: Node, others: Sequence[Node | None]) -> None:
        """Add the node that the runs have at one place."""
        self.sketch.layer = node.layer
        there = {0: node} | {k: each for k, each in enumerate(others, 1) if each is not None}
        for other in there.values():
            if len(other.inputs) != len(node.inputs) or other.attributes != node.attributes:
                raise self._depends(node.kind)
        inputs = []
        for n in range(len(node.inputs)):
            inputs.append(self._input(node, {k: other.inputs[n] for k, other in there.items()}))
        self.nodes.append(node._replace(inputs=tuple(inputs)))

    def _depends(self, what: str) -> ConfigError:
        return self.sketch.refuse(
            f"{what} that depends on the size of the image",
            "Export it for one size, without dynamic axes.",
        )

    def _input(self, node: Node, runs: dict[int, str | Numbers]) -> str:
        """The name of an input that the runs call so, or of the numbers that they have there."""
        first = runs[0]
        if isinstance(first, Numbers):
            return self._numbers(node, {k: n for k, n in runs.items() if isinstance(n, Numbers)})
        if set(runs.values()) != {first}:
            raise self._depends(node.kind)
        constants = [self.outlines[k].sketch.constants for k in runs]
        if first in constants[0] and any(
            not np.array_equal(each[first], constants[0][first]) for each in constants[1:]
        ):
            raise self._depends(f"a number in {node.kind}")
        return first

    def _numbers(self, node: Node, runs: dict[int, Numbers]) -> str:
        """The name of whole numbers; ``runs`` are those of each run that has them."""
        first = runs[0]
        if len({len(run.values) for run in runs.values()}) > 1:
            raise self._depends(node.kind)
        settled: list[int | Growing] = []
        for n in range(len(first.values)):
            values = {k: run.values[n] for k, run in runs.items()}
            growing = self._growing(values)
            from_end = {run.from_end[n] for run in runs.values()} if first.from_end else set()
            if len(set(values.values())) == 1:
                settled.append(values[0])
            elif growing is not None:
                settled.append(growing)
            elif len(from_end) == 1:
                settled.append(from_end.pop())
            elif first.may_infer and -1 not in settled:
                settled.append(-1)
            else:
                raise self._depends(node.kind)
        return self._vector(settled)

    def _growing(self, values: dict[int, int]) -> Growing | None:
        """How a number grows with one axis of the image: evenly, and with no other; else None."""
        moved = {self.outlines[k].axis for k, value in values.items() if value != values[0]}
        if len(moved) != 1:
            return None
        place = PLACES[str(moved.pop())]
        sizes = {k: self.outlines[k].shape[place] for k in values}
        k = next(k for k, value in values.items() if value != values[0])
        factor = (values[k] - values[0]) // (sizes[k] - sizes[0])
        rest = values[0] - factor * sizes[0]
        even = all(values[k] == factor * sizes[k] + rest for k in values)
        return Growing(place, factor, rest) if even else None

    def _vector(self, settled: list[int | Growing]) -> str:
        """The name of a vector of numbers, part of which the graph may have to work out."""
        parts: list[str] = []
        known: list[int] = []
        for number in [*settled, None]:
            if isinstance(number, int):
                known.append(number)
                continue
            if known:
                parts.append(self._constant(tuple(known)))
                known = []
            if number is not None:
                parts.append(self._worked_out(number))
        if len(parts) < 2:
            return parts[0] if parts else self._constant(())
        return self._made(tuple(parts), "Concat", *parts, axis=0)

    def _worked_out(self, number: Growing) -> str:
        axis, factor, rest = number
        name = self._made(axis, "Shape", "input", start=axis, end=axis + 1)
        if factor != 1:
            name = self._made((axis, factor), "Mul", name, self._constant((factor,)))
        if rest != 0:
            name = self._made(number, "Add", name, self._constant((rest,)))
        return name

    def _constant(self, values: tuple[int, ...]) -> str:
        key = ("constant", values)
        if key not in self.names:
            self.names[key] = self.sketch.free_name("numbers")
            self.constants[self.names[key]] = np.array(values, np.int64)
        return self.names[key]

    def _made(self, key: Any, kind: str, *inputs: str, **attributes: Any) -> str:
        """The result of a node, which is made once."""
        if (kind, key) not in self.names:
            name = self.names[kind, key] = self.sketch.free_name(kind)
            self.nodes.append(Node(kind, inputs, name, attributes, self.sketch.layer))
        return self.names[kind, key]

    def shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[Dimension, ...]:
        """A shape with names for sizes that are the image's, None for others that vary."""
        found: list[Dimension] = []
        for sizes in zip(*shapes, strict=True):
            growing = self._growing(dict(enumerate(sizes)))
            if len(set(sizes)) == 1:
                found.append(sizes[0])
            elif growing is not None and growing[1:] == (1, 0):
                found.append({place: axis for axis, place in PLACES.items()}[growing.axis])
            else:
                found.append(None)
        return tuple(found)


# ---- the file --------------------------------------------------------------------------------


def _model(
    plan: Plan, arrays: Mapping[str, Any], opset: int, metadata: Mapping[str, Any]
) -> Message:
    """The whole file as a message."""
    nodes = [
        proto.node(
            node.kind, [str(n) for n in node.inputs], [node.output], node.output, node.attributes
        )
        for node in plan.nodes
    ]
    graph = proto.graph(
        "network",
        nodes,
        [proto.tensor(name, array) for name, array in arrays.items()],
        [proto.value_info(name, *value) for name, value in plan.inputs.items()],
        [proto.value_info(name, *value) for name, value in plan.outputs.items()],
    )
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }
    return proto.model(graph, opset, __version__, texts)
