"""Writing protocol buffers: the few rules of the wire format that ONNX files are made of.

A message is a row of fields, and a field is a key and a value. The key is one number,

    key = 8 * number of the field + wire type

and the wire type says how to find the end of the value:

=========  ==============================================================================
wire type  value
=========  ==============================================================================
0          a whole number, as a varint
2          bytes, after their length as a varint: text, an array's numbers, a message inside
5          four bytes: a float32
=========  ==============================================================================

A varint holds a whole number in as many bytes as it needs: seven bits in each, the lowest first,
and the eighth bit says that more follow. 300 is 10_0101100 in bits, so 0xAC 0x02.

A length stands before what it measures. So a message is kept as a list of pieces until all of it
is there: a piece may be a view of half a gigabyte of weights, which is measured and written, and
never copied.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

import struct

from tinydilate.io.files import Piece

Message = list[Piece]


def varint(number: int) -> bytes:
    """A whole number of at most 64 bits; a negative one counts as 2**64 more."""
    rest = number % 2**64
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def length(message: Message) -> int:
    """Bytes of a message."""
    return sum(map(len, message))


def whole_number(field: int, number: int) -> Message:
    """A field of type int32, int64, bool or enum."""
    return [varint(8 * field) + varint(number)]


def float_number(field: int, number: float) -> Message:
    """A field of type float."""
    return [varint(8 * field + 5) + struct.pack("<f", number)]


def text(field: int, characters: str) -> Message:
    """A field of type string."""
    return inside(field, [characters.encode()])


def inside(field: int, message: Message) -> Message:
    """A field that holds bytes, or another message."""
    return [varint(8 * field + 2) + varint(length(message)), *message]
