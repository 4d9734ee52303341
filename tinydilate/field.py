"""Receptive fields: which inputs an output sees through a chain of layers, along one axis.

Each layer answers one question: outputs ``first .. last`` read which inputs? For a window it is the
tap rule at its first and its last tap. The field of a chain is the answer of every layer, asked
from the last layer back to the first. That is all; the well-known sums come out of it by
themselves, for example 1 + 2 * (1 + 1 + 2 + 4 + 8 + 16 + 1) = 67 for the paper's Table 1.

Positions are not cut off at the image's border: the field of output 0 may begin at -3.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor, prod
from typing import NamedTuple, Protocol

from tinydilate.errors import ShapeError
from tinydilate.window import Window


class Reader(Protocol):
    """A layer along one axis."""

    @property
    def period(self) -> int:
        """Neighbouring outputs that read in different ways before the pattern repeats."""

    def reads(self, first: int, last: int) -> tuple[int, int]:
        """First and last input that the outputs ``first .. last`` read."""


class Slide(NamedTuple):
    """A sliding window: convolution, pooling, and with one tap anything element by element."""

    extent: int
    stride: int
    before: int

    @property
    def period(self) -> int:
        """1: every output reads alike."""
        return 1

    def reads(self, first: int, last: int) -> tuple[int, int]:
        """The tap rule at the first output's first tap and the last output's last tap."""
        start = first * self.stride - self.before
        return start, last * self.stride - self.before + self.extent - 1


class Spread(NamedTuple):
    """A transposed convolution: its output is what a window would read, its input what it gives."""

    extent: int
    stride: int
    before: int

    @property
    def period(self) -> int:
        """The stride: each phase meets other taps."""
        return self.stride

    def reads(self, first: int, last: int) -> tuple[int, int]:
        """Inputs i whose window, from i * stride - before on, covers one of the outputs."""
        start = -((self.extent - 1 - first - self.before) // self.stride)  # rounded up
        return start, (last + self.before) // self.stride


class Resize(NamedTuple):
    """Upsampling or downsampling from ``inputs`` to ``outputs`` pixels by interpolation.

    ``scale`` is inputs per output, and output p lies at input (p + 1/2) * scale - 1/2, or at
    p * scale where the corners are aligned; "nearest" reads input floor(p * scale).
    """

    scale: Fraction
    linear: bool
    align_corners: bool

    @property
    def period(self) -> int:
        """Outputs after which the positions repeat: the denominator of the scale."""
        return self.scale.denominator

    def reads(self, first: int, last: int) -> tuple[int, int]:
        """The pixels beside the positions of the first and of the last output."""
        if not self.linear:
            return floor(first * self.scale), floor(last * self.scale)
        start, end = self._position(first), self._position(last)
        return floor(start), -floor(-end)  # a position on a pixel reads that pixel alone

    def _position(self, output: int) -> Fraction:
        if self.align_corners:
            return output * self.scale
        half = Fraction(1, 2)
        return (output + half) * self.scale - half


class Field(NamedTuple):
    """Receptive field along one axis, in input pixels.

    Attributes
    ----------
    extent : int
        Pixels from the first to the last that an output sees, both counted. Behind an upsampling
        it may differ from output to output: this is the largest.
    stride : Fraction
        Pixels from one output's field to the next one's (on average, behind an upsampling).
    centre : Fraction
        Pixel at the centre of output 0's field, counted from the input's first pixel; output i is
        centred at ``centre + i * stride`` (on average over the phases of an upsampling).
    """

    extent: int
    stride: Fraction
    centre: Fraction


def sliding(window: Window, axis: int) -> Slide:
    """The reader of a window along an axis (0 rows, 1 columns)."""
    return Slide(window.extent[axis], window.stride[axis], window.before[axis])


def spreading(window: Window, axis: int) -> Spread:
    """The reader of a window that is used backwards, in a transposed convolution."""
    return Spread(window.extent[axis], window.stride[axis], window.before[axis])


def seen_by(first: int, last: int, readers: Sequence[Reader]) -> tuple[int, int]:
    """First and last input that outputs ``first .. last`` see through the chain of readers."""
    for reader in reversed(readers):
        first, last = reader.reads(first, last)
    return first, last


def field_of(readers: Sequence[Reader]) -> Field:
    """Receptive field of the last layer's outputs, in pixels of the first layer's input.

    Parameters
    ----------
    readers : sequence of Reader
        The layers along one axis, the first layer first.

    Examples
    --------
    >>> [field_of([Slide(2 * d + 1, 1, d) for d in (1, 1, 2, 4)[:n]]).extent for n in (1, 2, 3, 4)]
    [3, 5, 9, 17]
    """
    period = prod(reader.period for reader in readers)
    spans = [seen_by(i, i, readers) for i in range(period + 1)]
    stride = Fraction(spans[period][0] - spans[0][0], period)
    spans = spans[:period]
    centres = [Fraction(first + last, 2) - i * stride for i, (first, last) in enumerate(spans)]
    extent = max(last - first + 1 for first, last in spans)
    return Field(extent, stride, sum(centres, Fraction(0)) / period)


def border_of(readers: Sequence[Reader]) -> int:
    """Pixels to add on each side so that an image of n strides gives n outputs: (extent-stride)/2.

    Raises
    ------
    ShapeError
        If the two sides would have to differ.
    """
    extent, stride, _ = field_of(readers)
    twice = extent - stride
    if twice.denominator != 1 or twice % 2 or twice < 0:
        raise ShapeError(
            "expected layers whose receptive field exceeds their stride by an even number of "
            f"pixels, half of it for each side; got a field of {extent} and a stride of {stride}. "
            "Add or take away one 2x2 pooling, or one tap."
        )
    return int(twice) // 2
