"""Weights from Caffe's ``.caffemodel``: a network description that carries its numbers.

The file is one message, ``NetParameter``, in the encoding of `tinydilate.io.wire`. It has a field
for each layer; of a layer we read its name, its type and its blobs; of a blob its shape and its
numbers. Everything else is stepped over. That is more than laziness: the fork of Caffe in which
the paper's street networks were trained gave field 143 of a layer another meaning than Caffe did
later, and Caffe itself cannot read those files any more.

===================  =====  ======  ==========================================================
what                 V1     V2      meaning
===================  =====  ======  ==========================================================
layer of the net     2      100     V1 was written until 2014: VGG-16 is of that time
name                 4      1
type                 5      2       V1 a number (14 is InnerProduct), V2 a text
blobs                6      7       first the weights, then the bias
===================  =====  ======  ==========================================================

Of a blob: ``data`` 5 (floats) or ``double_data`` 8, which counts where both are there; ``shape``
7, or in older files ``num``, ``channels``, ``height`` and ``width``, 1 to 4, which count where
both are there (all of this is Caffe's own rule). Old shapes have always four axes: a bias is
(1, 1, 1, n), the weights of an inner product (1, 1, out, in).

A convolution's weights are (out, in / group, kh, kw), a deconvolution's (in, out / group, kh, kw),
as in PyTorch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tinydilate.io.mapped import MOST_AXES, InFile, MappedFile, Shape, Stored
from tinydilate.io.recognition import DamagedError
from tinydilate.io.wire import BYTES, FIXED32, FIXED64, VARINT, Field, Wire, signed

# Numbers of fields, from caffe.proto.
_LAYERS = {2: "V1", 100: "V2"}
_NAME = {"V1": 4, "V2": 1}
_TYPE = {"V1": 5, "V2": 2}
_BLOBS = {"V1": 6, "V2": 7}
_V0_LAYER = 1  # of a V1 layer: the layer as it was described before V1
_INNER_PRODUCT = 14  # a V1 type
_LEGACY = (1, 2, 3, 4)  # of a blob: num, channels, height, width
_DATA, _SHAPE, _DOUBLE = 5, 7, 8
_DIM = 1  # of a shape

_FIRST_TAGS = frozenset(
    (number << 3 | kind)
    for number, kind in [(1, 2), (2, 2), (3, 2), (4, 0), (5, 0), (6, 2), (8, 2)]
)
_FIRST_LAYER = b"\xa2\x06"  # the tag of field 100

_MOST_LAYERS = 10_000
_MOST_RUNS = 1000  # pieces that a blob may lie in; Caffe writes one
PARAMETERS = ("weight", "bias")  # what PyTorch, and we, call blobs 0 and 1


def may_be_caffe(head: bytes) -> bool:
    """Whether a file begins as a network description does; it has no magic number."""
    return head[:2] == _FIRST_LAYER or (len(head) > 1 and head[0] in _FIRST_TAGS)


class _Layer(NamedTuple):
    name: str
    inner_product: bool
    blobs: list[Field]


def read_caffe(file: MappedFile) -> dict[str, Stored]:
    """Arrays of a ``.caffemodel`` under the names "layer.weight" and "layer.bias".

    Further blobs, such as batch normalisation has, are called "layer.blob2" and so on.

    Raises
    ------
    DamagedError
        If the file is cut short, or no network description, or has no weights.
    """
    wire = Wire(file.bytes)
    arrays: dict[str, Stored] = {}
    count = 0
    for field in wire.fields(0, file.size):
        if field.number not in _LAYERS or field.kind != BYTES:
            continue
        count += 1
        if count > _MOST_LAYERS:
            raise DamagedError(f"it has more than {_MOST_LAYERS:,} layers")
        layer = _read_layer(wire, field, _LAYERS[field.number])
        if layer.blobs and f"{layer.name}.{PARAMETERS[0]}" in arrays:
            raise DamagedError(f"it has two layers called {layer.name!r}, both with weights")
        for number, blob in enumerate(layer.blobs):
            what = PARAMETERS[number] if number < len(PARAMETERS) else f"blob{number}"
            name = f"{layer.name}.{what}"
            axes = 1 if number else 2 if layer.inner_product else 4
            arrays[name] = _read_blob(file, wire, blob, name, axes)
    if not arrays:
        raise DamagedError(f"none of its {count} layers has weights")
    return arrays


def _read_layer(wire: Wire, message: Field, version: str) -> _Layer:
    name, inner_product, v0 = "", False, False
    blobs: list[Field] = []
    for field in wire.fields(message.start, message.stop):
        if field.number == _NAME[version]:
            name = wire.text(field)
        elif field.number == _TYPE[version]:
            v1 = version == "V1"
            kind = field.value if v1 else wire.text(field)
            inner_product = kind == (_INNER_PRODUCT if v1 else "InnerProduct")
        elif field.number == _BLOBS[version] and field.kind == BYTES:
            blobs.append(field)
        elif version == "V1" and field.number == _V0_LAYER and field.kind == BYTES:
            v0 = True
    if v0 and not name:
        raise DamagedError(
            "it was written by a Caffe of before 2014; Caffe's upgrade_net_proto_binary makes a "
            "newer file of it"
        )
    if blobs and not name:
        raise DamagedError(f"the layer at byte {message.start:,} has weights and no name")
    return _Layer(name, inner_product, blobs)


def _read_blob(file: MappedFile, wire: Wire, blob: Field, name: str, axes: int) -> Stored:
    """One array, with so many axes that a shape of four may lose leading ones down to them."""
    legacy: dict[int, int] = {}
    dims: list[int] | None = None
    runs: dict[int, list[tuple[int, int, int]]] = {_DATA: [], _DOUBLE: []}
    for field in wire.fields(blob.start, blob.stop):
        if field.number in _LEGACY and field.kind == VARINT:
            legacy[field.number] = signed(field.value)
        elif field.number == _SHAPE and field.kind == BYTES:
            dims = [*(dims or []), *_read_shape(wire, field)]
        elif field.number in runs:
            run = _run(field, name)
            if run is not None:
                runs[field.number].append(run)
        if max(map(len, runs.values())) > _MOST_RUNS:
            raise DamagedError(f"the numbers of {name} lie in more than {_MOST_RUNS:,} pieces")
    chosen = _DOUBLE if runs[_DOUBLE] else _DATA
    shape = _legacy_shape(legacy, axes) if legacy else tuple(dims or ())
    count = sum(run[1] for run in runs[chosen])
    if any(dim < 1 for dim in shape):
        raise DamagedError(f"{name} has the impossible shape {shape}")
    if math.prod(shape) != count:
        raise DamagedError(f"{name} has the shape {shape}, and {count:,} numbers")
    return InFile(file, runs[chosen], shape, np.dtype("<f8" if chosen == _DOUBLE else "<f4"))


def _run(field: Field, name: str) -> tuple[int, int, int] | None:
    """Offset, count and step of the numbers in a field of `_DATA` or `_DOUBLE`."""
    fixed, width = (FIXED32, 4) if field.number == _DATA else (FIXED64, 8)
    if field.kind == fixed:  # not packed: each number behind a tag of its own
        return field.start, field.repeats, field.step
    if field.kind != BYTES or field.start == field.stop:
        return None
    length = field.stop - field.start
    if length % width:
        raise DamagedError(f"the numbers of {name} take {length:,} bytes, no multiple of {width}")
    return field.start, length // width, width


def _read_shape(wire: Wire, message: Field) -> list[int]:
    dims: list[int] = []
    for field in wire.fields(message.start, message.stop):
        if field.number == _DIM and field.kind == BYTES:
            dims += map(signed, wire.varints(field.start, field.stop, MOST_AXES))
        elif field.number == _DIM and field.kind == VARINT:
            dims.append(signed(field.value))
        if len(dims) > MOST_AXES:
            raise DamagedError(f"a shape at byte {message.start:,} has more than {MOST_AXES} axes")
    return dims


def _legacy_shape(legacy: dict[int, int], axes: int) -> Shape:
    """(num, channels, height, width), without the leading ones that only fill it up to four."""
    shape = tuple(legacy.get(number, 0) for number in _LEGACY)
    while len(shape) > axes and shape[0] == 1:
        shape = shape[1:]
    return shape
