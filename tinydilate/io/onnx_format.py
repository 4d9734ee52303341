"""The messages of an ONNX file: which field of which message says what.

An ONNX file is one message, a `model`. It holds a graph: nodes in an order in which each comes
after those that it reads, weights ("initialisers"), and what goes in and comes out. Everything is
joined by names: a node reads the results, inputs and weights that it names.

    ModelProto
        ir_version, producer, opset_import       which version of the format and of the operators
        graph: GraphProto
            node: NodeProto ...                  op_type, input and output names, attributes
            initializer: TensorProto ...         name, shape, type, numbers
            input, output: ValueInfoProto ...    name, type, shape
        metadata_props                           texts by name

Source: ``onnx.proto`` of ONNX 1.17 (Apache License 2.0), whose field numbers these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinydilate.io.files import bytes_of
from tinydilate.io.wire_writer import Message, float_number, inside, text, whole_number

# What ONNX calls a number type.
NUMBER_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7,
    "bool": 9, "float16": 10, "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip

# The file's own version that came with each version of the operators, from the first that we write.
IR_VERSIONS = {15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}

_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7  # types of attributes

Dimension = int | str | None  # a size, the name of a size that may be any, or one that is not known


def tensor(name: str, array: Any) -> Message:
    """A TensorProto; the numbers are a view of the array."""
    return [
        *(piece for size in array.shape for piece in whole_number(1, size)),
        *whole_number(2, NUMBER_TYPES[array.dtype.name]),
        *text(8, name),
        *inside(9, [bytes_of(array)]),
    ]


def attribute(name: str, value: Any) -> Message:
    """An AttributeProto: a whole number, a float, a text, or whole numbers."""
    if isinstance(value, str):
        kind, content = _STRING, text(4, value)
    elif isinstance(value, float):
        kind, content = _FLOAT, float_number(2, value)
    elif isinstance(value, int | np.integer):
        kind, content = _INT, whole_number(3, int(value))
    else:
        kind, content = _INTS, [piece for number in value for piece in whole_number(8, number)]
    return [*text(1, name), *content, *whole_number(20, kind)]


def node(
    kind: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    name: str,
    attributes: Mapping[str, Any],
) -> Message:
    """A NodeProto; an input that is left out is called ""."""
    return [
        *(piece for each in inputs for piece in text(1, each)),
        *(piece for each in outputs for piece in text(2, each)),
        *text(3, name),
        *text(4, kind),
        *(piece for key in attributes for piece in inside(5, attribute(key, attributes[key]))),
    ]


def value_info(name: str, dtype: Any, shape: Sequence[Dimension]) -> Message:
    """A ValueInfoProto: the name, number type and shape of what goes in or comes out."""
    sizes: Message = []
    for size in shape:
        known = [] if size is None else text(2, size) if isinstance(size, str) else (
            whole_number(1, size)
        )  # fmt: skip
        sizes += inside(1, known)
    kind = whole_number(1, NUMBER_TYPES[np.dtype(dtype).name])
    return [*text(1, name), *inside(2, inside(1, [*kind, *inside(2, sizes)]))]


def graph(
    name: str,
    nodes: Sequence[Message],
    weights: Sequence[Message],
    inputs: Sequence[Message],
    outputs: Sequence[Message],
) -> Message:
    """A GraphProto."""
    fields = ((1, nodes), (5, weights), (11, inputs), (12, outputs))
    content = [piece for field, each in fields for m in each for piece in inside(field, m)]
    return [*text(2, name), *content]


def model(graph: Message, opset: int, version: str, metadata: Mapping[str, str]) -> Message:
    """A ModelProto."""
    entries = [[*text(1, key), *text(2, value)] for key, value in metadata.items()]
    return [
        *whole_number(1, IR_VERSIONS[opset]),
        *text(2, "tinydilate"),
        *text(3, version),
        *inside(8, whole_number(2, opset)),  # no domain: the standard operators
        *inside(7, graph),
        *(piece for entry in entries for piece in inside(14, entry)),
    ]
