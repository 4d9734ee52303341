"""Files of weights in the true formats, written byte by byte: no library of theirs takes part.

What is written here is meant to be read by `tinydilate.io`, and, in the oracle tests, by OpenCV and
PyTorch.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

# ---- Protocol Buffers ------------------------------------------------------------------------


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def tag(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


def whole(number: int, value: int) -> bytes:
    return tag(number, 0) + varint(value)


def block(number: int, content: bytes | str) -> bytes:
    """A text, a message or a packed array."""
    content = content.encode() if isinstance(content, str) else content
    return tag(number, 2) + varint(len(content)) + content


# ---- Caffe -----------------------------------------------------------------------------------

# V1 wrote numbers for types.
V1_TYPES = {"Convolution": 4, "Deconvolution": 39, "InnerProduct": 14, "Data": 5, "ReLU": 18}


def blob(
    array: np.ndarray,
    *,
    legacy: bool = False,
    double: bool = False,
    packed: bool = True,
    pieces: int = 1,
    both: bool = False,
) -> bytes:
    """A BlobProto. ``both`` adds wrong float data beside the doubles that count."""
    if legacy:
        four = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(whole(number + 1, size) for number, size in enumerate(four))
    else:
        shape = block(7, block(1, b"".join(map(varint, array.shape))))
    number, dtype, kind = (8, "<f8", 1) if double else (5, "<f4", 5)
    flat = array.astype(dtype).reshape(-1)
    if packed:
        data = b"".join(block(number, part.tobytes()) for part in np.array_split(flat, pieces))
    else:
        data = b"".join(tag(number, kind) + value.tobytes() for value in flat)
    wrong = block(5, np.zeros(array.size, "<f4").tobytes()) if both else b""
    return shape + wrong + data


def layer(
    name: str, arrays: list[np.ndarray], *, v1: bool = False, kind: str = "Convolution",
    extra: bytes = b"", **options: Any,
) -> bytes:  # fmt: skip
    """A layer of NetParameter, its tag included."""
    blobs = [blob(array, **options) for array in arrays]
    if v1:
        inside = block(2, "bottom") + block(4, name) + whole(5, V1_TYPES[kind])
        return block(2, inside + b"".join(block(6, each) for each in blobs) + extra)
    inside = block(1, name) + block(2, kind) + block(3, "bottom") + block(4, name)
    return block(100, inside + b"".join(block(7, each) for each in blobs) + extra)


def caffemodel(state: dict[str, np.ndarray], *, name: str = "net", **options: Any) -> bytes:
    """A whole NetParameter of arrays called layer.weight and layer.bias."""
    layers: dict[str, list[np.ndarray]] = {}
    for key, array in state.items():
        layers.setdefault(key.rpartition(".")[0], []).append(array)
    dense = {key for key, arrays in layers.items() if arrays[0].ndim == 2}
    parts = [
        layer(key, arrays, kind="InnerProduct" if key in dense else "Convolution", **options)
        for key, arrays in layers.items()
    ]
    data = layer("data", [], kind="Data", v1=options.get("v1", False))
    return block(1, name) + data + b"".join(parts)


# ---- pickle, by its instructions -------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    width = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([width]) + value.to_bytes(width, "little", signed=True)


def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


ORDERED = name_of("collections", "OrderedDict") + b")R"
STORAGES = {
    "<f4": "FloatStorage", "<f8": "DoubleStorage", "<f2": "HalfStorage", "<i8": "LongStorage",
    "bfloat16": "BFloat16Storage",
}  # fmt: skip


def tensor(
    key: str, kind: str, count: int, shape: tuple[int, ...], strides: tuple[int, ...],
    offset: int = 0, legacy: bool = False, view: tuple[int, int] | None = None,
) -> bytes:  # fmt: skip
    """What `_rebuild_tensor_v2` is called with, and the call."""
    seen = b"N" if legacy else b""
    if view is not None:
        seen = b"(" + text("view") + number(view[0]) + number(view[1]) + b"t"
    storage = (
        b"(" + text("storage") + name_of("torch", STORAGES[kind]) + text(key) + text("cpu")
        + number(count) + seen + b"tQ"
    )  # fmt: skip
    inside = storage + number(offset) + sizes(shape) + sizes(strides) + b"\x89" + ORDERED
    return name_of("torch._utils", "_rebuild_tensor_v2") + b"(" + inside + b"tR"


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def pickled_state(
    arrays: dict[str, np.ndarray], kind: str = "<f4", legacy: bool = False
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The pickle of a state dictionary, and its storages: (name, numbers)."""
    items, storages = b"", []
    for place, (name, array) in enumerate(arrays.items()):
        key, shape = str(place), array.shape
        items += text(name) + tensor(key, kind, array.size, shape, c_strides(shape), legacy=legacy)
        storages.append((key, numbers(array, kind)))
    return b"\x80\x02" + ORDERED + b"(" + items + b"u.", storages


def numbers(array: np.ndarray, kind: str) -> bytes:
    """An array's bytes; bfloat16 is the upper half of float32."""
    if kind == "bfloat16":
        return (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return array.astype(kind).tobytes()


def zip_layout(
    path: Path, pickle: bytes, storages: list[tuple[str, bytes]], *, byteorder: str = "little",
    method: int = zipfile.ZIP_STORED,
) -> None:  # fmt: skip
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickle)
        if byteorder:
            archive.writestr("archive/byteorder", byteorder)
        for key, content in storages:
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")


def legacy_layout(
    pickle: bytes, storages: list[tuple[str, bytes]], width: int = 4, little: bool = True
) -> bytes:
    magic = 0x1950A86A20F9469CFC6C
    about = b"}(" + text("protocol_version") + number(1001) + text("little_endian")
    about += (b"\x88" if little else b"\x89") + b"u"
    keys = b"](" + b"".join(text(key) for key, _ in storages) + b"e"
    head = b"".join(b"\x80\x02" + part + b"." for part in (number(magic), number(1001), about))
    tail = b"".join(struct.pack("<q", len(data) // width) + data for _, data in storages)
    return head + pickle + b"\x80\x02" + keys + b"." + tail
