"""Checkpoints: named arrays and a note, in one safetensors file.

The format is a length, a JSON header with names, shapes and offsets, and the numbers. Nothing in
it can be executed, which is why it is used instead of pickle. The note (any JSON) stands in the
header's metadata under the key "tinydilate". Any program that reads safetensors reads the arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinydilate.device import Array
from tinydilate.errors import DataError
from tinydilate.io.files import bytes_of, write_pieces

_NOTE = "tinydilate"

# What the header calls a number type.
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def save_checkpoint(
    path: Path | str, arrays: Mapping[str, Array], note: Any = None, progress: str = ""
) -> None:
    """Write arrays and a note to a safetensors file, in one step and without a second copy.

    Parameters
    ----------
    path : path
        Usually ends in ``.safetensors``. A file that stands there is replaced at the very end.
    arrays : mapping of names to arrays
    note : anything that JSON can hold, optional
    progress : str
        Title of a bar, shown where it takes longer than a second; none without it.

    Raises
    ------
    DataError
        If the file cannot be written, or an array has a type that the format does not know.
    """
    # The widest types first: then all numbers lie at a multiple of their own width.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {_NOTE: json.dumps(note)}}
    end = 0
    for name in names:
        array = arrays[name]
        begin, end = end, end + array.size * array.dtype.itemsize
        header[name] = {
            "dtype": _dtype(name, array),
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    numbers = [bytes_of(arrays[name]) for name in names]
    write_pieces(path, [len(text).to_bytes(8, "little"), text, *numbers], progress)


def _dtype(name: str, array: Any) -> str:
    kind = array.dtype.name
    if kind not in _DTYPES:
        raise DataError(
            f"expected numbers to save; {name} is an array of {kind}. Convert it with "
            ".astype(np.float32), or put it into the note as JSON."
        )
    return _DTYPES[kind]


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
            "keeps its own in checkpoints/."
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
    start = head.lstrip()[:64].lower()
    if not head:
        return "which is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "which is a web page: the download went wrong"
    if start.startswith(b"version https://git-lfs"):
        return "which is a Git LFS pointer: the file itself was not fetched"
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        return "which looks like a PyTorch file (pickle)"
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header < 100_000_000:
        return f"which is damaged or cut short at {path.stat().st_size:,} bytes"
    return "which is another kind of file"
