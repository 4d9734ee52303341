"""What kind of file it is, by its first bytes: a name can be wrong, and often is.

A download that failed leaves a web page; a repository that keeps large files elsewhere leaves a
pointer of three lines. Both bear the name of the weights. So whoever opens a file looks first.
"""

from __future__ import annotations

from tinydilate.errors import DataError

HEAD = 512  # bytes that tell

# First bytes -> what such a file is. What we read ourselves comes in `is_...` below.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer: the file itself was not fetched"),
    (b"\xff\xd8\xff", "is a JPEG image"),
    (b"\x89PNG\r\n", "is a PNG image"),
    (b"GIF8", "is a GIF image"),
    (b"%PDF", "is a PDF document"),
    (b"\x89HDF\r\n", "is an HDF5 file, as Keras writes"),
    (b"\x93NUMPY", "is another kind of file: a single array (.npy); name the arrays in an .npz"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"BZh", "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first"),
    (b"7z\xbc\xaf", "is a 7-Zip archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x08", "is another kind of file: Caffe's mean image or solver state, perhaps; no network"),
)
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head")
_PROTOTXT = (b"name:", b"layer", b"input:", b"input_", b"#")
_TAR = slice(257, 262)  # where "ustar" stands in a tar archive


class DamagedError(DataError):
    """What is wrong inside a file, as a clause; who knows the path makes a sentence of it."""


class UnwantedError(DamagedError):
    """The file may be whole and holds something else; the clause says what to do."""


def is_zip(head: bytes) -> bool:
    """A zip archive: what PyTorch writes since version 1.6, and NumPy's .npz."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def is_pickle(head: bytes) -> bool:
    """A pickle of protocol 2 or later: what PyTorch wrote before version 1.6."""
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def is_safetensors(head: bytes) -> bool:
    """The length of a header, and the brace that opens it."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _is_text(head: bytes) -> bool:
    """Whether all of it can be read; a .caffemodel begins with a name, which alone could be."""
    return all(byte >= 32 or byte in b"\t\n\r" for byte in head) and head.isascii()


def foreign(head: bytes) -> str:
    """What a file is that we do not read, as the end of "the file ..."; "" if it may be ours."""
    if not head:
        return "is empty"
    if is_safetensors(head) or is_zip(head) or is_pickle(head):  # a length may look like anything
        return ""
    start = head.lstrip()[:64].lower()
    if start.startswith(_WEB_PAGE):
        return "is a web page: the download went wrong"
    if head[_TAR] == b"ustar":
        return "is a tar archive: unpack it first (or, if PyTorch of before 2017 wrote it, load \
and save it again with a newer one)"
    if start.startswith(_PROTOTXT) and _is_text(head[:64]):
        return "is text, such as Caffe's description of a network: the weights are in another file"
    for first, what in _FOREIGN:
        if head.startswith(first):
            return what
    return ""
