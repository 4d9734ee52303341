"""Checkpoints: named arrays and a note, in one safetensors file.

The format is a length, a JSON header with names, shapes and offsets, and the numbers. Nothing in
it can be executed, which is why it is used instead of pickle. The note (any JSON) stands in the
header's metadata under the key "tinydilate".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinydilate.device import Array
from tinydilate.errors import DataError
from tinydilate.io.files import write_parts
from tinydilate.io.mapped import BFloat16, InFile, InMemory, MappedFile, Stored
from tinydilate.io.recognition import DamagedError, foreign, is_pickle, is_safetensors, is_zip

_NOTE = "tinydilate"
_HEADER = 8  # bytes that hold the length of the header in front of it
_LONGEST_HEADER = 4 * 2**20  # VGG-16 takes some 3,000 bytes

# What the header calls a dtype; the numbers are little-endian.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "|b1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items() if name != "BF16"}


def save_checkpoint(path: Path | str, arrays: Mapping[str, Array], note: Any = None) -> None:
    """Write arrays and a note to a safetensors file, in one step.

    Parameters
    ----------
    path : path
        Usually ends in ``.safetensors``. A file that stands there is replaced at the very end.
    arrays : mapping of names to arrays
    note : anything that JSON can hold, optional

    Raises
    ------
    DataError
        If the file cannot be written, or these are no arrays by their names.
    """
    if not isinstance(arrays, Mapping):
        raise DataError(
            f"expected arrays by their names, as state_dict() returns them; got "
            f"{type(arrays).__name__}. Pass module.state_dict()."
        )
    write_stored(path, {name: InMemory(np.asarray(array)) for name, array in arrays.items()}, note)


def _as_json(note: Any) -> str:
    try:
        return json.dumps(note)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"expected a note that JSON can hold: numbers, texts, lists, dicts; got {error}. "
            "Convert it, an array with .tolist(), or save it among the arrays."
        ) from None


def write_stored(
    path: Path | str,
    arrays: Mapping[str, Stored],
    note: Any = None,
    watch: Callable[[int], Any] = lambda size: None,
) -> None:
    """`save_checkpoint` for arrays that need not be in memory: each is copied part by part.

    Parameters
    ----------
    path, note
        As for `save_checkpoint`.
    arrays : mapping of names to Stored
    watch : function of an int
        Is told after each part how many bytes it had, for a progress bar.
    """
    # Numbers have to begin at multiples of their width, so the widest come first.
    order = sorted(arrays, key=lambda name: -_written_as(arrays[name]).itemsize)
    header: dict[str, Any] = {"__metadata__": {_NOTE: _as_json(note)}}
    end = 0
    for name in order:
        stored, dtype = arrays[name], _written_as(arrays[name])
        begin, end = end, end + stored.size * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype], "shape": list(stored.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER)

    def parts() -> Iterator[Any]:
        yield len(text).to_bytes(_HEADER, "little") + text
        for name in order:
            dtype = _written_as(arrays[name])
            for part in arrays[name].parts():
                yield np.ascontiguousarray(part, dtype)
                watch(part.nbytes)

    write_parts(path, parts(), _HEADER + len(text) + end)


def _written_as(stored: Stored) -> np.dtype[Any]:
    """The dtype in the file."""
    dtype: np.dtype[Any] = stored.dtype.newbyteorder("<")
    if dtype not in _NAMES:
        raise DataError(f"expected arrays of numbers to save; got one of {dtype}. Leave it out.")
    return dtype


def map_checkpoint(file: MappedFile) -> tuple[dict[str, Stored], Any]:
    """`load_checkpoint` without reading the numbers: arrays in a mapped file, and the note.

    The library checks the header, and that the arrays fill the file without gaps.

    Raises
    ------
    DamagedError
        If it is no safetensors file, or cut short, or holds numbers that NumPy does not know.
    """
    from safetensors import SafetensorError, safe_open

    length = int.from_bytes(file.head(_HEADER), "little")
    if length > _LONGEST_HEADER:
        raise DamagedError(f"its header claims {length:,} bytes")
    try:
        with safe_open(file.path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
        header = json.loads(file.bytes[_HEADER : _HEADER + length].tobytes())
        note = json.loads(metadata.get(_NOTE, "null"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"it is damaged or cut short ({error})") from None
    arrays: dict[str, Stored] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            arrays[name] = _mapped(file, name, entry, _HEADER + length)
    return arrays, note


def _mapped(file: MappedFile, name: str, entry: Any, start: int) -> Stored:
    """One array of a header that the library has checked."""
    if entry["dtype"] not in _DTYPES:
        raise DamagedError(
            f"{name!r:.80} has numbers of type {entry['dtype']}, which NumPy cannot hold"
        )
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if start + end > file.size or math.prod(shape) * dtype.itemsize != end - begin:
        raise DamagedError(f"{name!r:.80} does not fit its place")
    runs = [(start + begin, math.prod(shape), dtype.itemsize)]
    stored = InFile(file, runs, shape, dtype)
    return BFloat16(stored) if entry["dtype"] == "BF16" else stored


def load_checkpoint(path: Path | str) -> tuple[dict[str, Array], Any]:
    """Read what `save_checkpoint` wrote.

    Returns
    -------
    arrays : dict of names to arrays
    note : the note; None for a safetensors file that another program wrote

    Raises
    ------
    DataError
        If there is no such file, or it is cut short, or no safetensors file at all.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            note = (file.metadata() or {}).get(_NOTE, "null")
        return arrays, json.loads(note)
    except FileNotFoundError:
        raise DataError(
            f"expected a checkpoint at {path}; there is no such file. Check the path; a run folder "
            "keeps its own in checkpoints/, or in network.safetensors."
        ) from None
    except OSError as error:
        raise DataError(
            f"expected to read a checkpoint at {path}; the system said: "
            f"{error.strerror or error}. Check the path and its permissions."
        ) from None
    except (SafetensorError, json.JSONDecodeError, TypeError, AttributeError) as error:
        raise DataError(
            f"expected a safetensors file; got {path}, {_what_it_is(head, path)}. "
            f"Copy or download it again. (The reader said: {error}.)"
        ) from None


def _what_it_is(head: bytes, path: Path) -> str:
    """What a file looks like that is no safetensors file."""
    if what := foreign(head):
        return f"which {what}"
    if is_zip(head) or is_pickle(head):
        return "which looks like a PyTorch file (pickle)"
    if is_safetensors(head):
        return f"which is damaged or cut short at {path.stat().st_size:,} bytes"
    return "which is another kind of file"
