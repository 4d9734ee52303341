"""Receptive fields along one axis: which inputs an output reads through a chain of layers.

Each layer answers one question: output i reads which inputs? For a window it is the tap rule at
each of its taps. The field of a chain is the answer of every layer, asked one after the other:

    inputs of output i = union of the fields of all that the last layer reads for output i

That is all; the well-known sums come out of it by themselves, for example
1 + 2 * (1 + 1 + 2 + 4 + 8 + 16 + 1) = 67 for the paper's Table 1. And because sets are followed
rather than their first and last element, pixels that are jumped over show: three layers of
dilation 2 span 13 pixels and reach 7 of them.

A set of positions is kept as the bits of one whole number, so that a union is one instruction.

Outputs are countless, but after a *period* the pattern repeats: output i + P sees what output i
sees, moved by P strides. Windows have period 1. Behind an upsampling neighbours differ.

Positions are not cut off at the image's border: the field of output 0 may begin at -3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import ceil, floor, gcd, lcm
from typing import NamedTuple, Protocol

from tinydilate.errors import FieldError, ShapeError
from tinydilate.window import Window, tap

# ---- sets of positions -----------------------------------------------------------------------


class Pixels(NamedTuple):
    """A set of positions along an axis.

    Attributes
    ----------
    first : int
        The lowest position of the set; 0 for the empty set.
    bits : int
        Bit k says whether position ``first + k`` is in the set; 0 is the empty set.
    """

    first: int
    bits: int

    @property
    def last(self) -> int:
        """The highest position of the set."""
        return self.first + self.extent - 1

    @property
    def extent(self) -> int:
        """Positions from the first to the last, both counted, those between included."""
        return self.bits.bit_length()

    @property
    def number(self) -> int:
        """Positions in the set."""
        return self.bits.bit_count()

    def positions(self) -> list[int]:
        """The positions, in their order."""
        return [self.first + k for k in range(self.extent) if self.bits >> k & 1]

    def moved(self, by: int) -> Pixels:
        """The set, each position ``by`` further."""
        return Pixels(self.first + by, self.bits) if self.bits else self

    def within(self, other: Pixels) -> bool:
        """Whether the other set holds all positions of this one."""
        return joined([self, other]) == other


def joined(sets: Iterable[Pixels]) -> Pixels:
    """The union of sets."""
    filled = [pixels for pixels in sets if pixels.bits]
    if not filled:
        return Pixels(0, 0)
    first, bits = min(pixels.first for pixels in filled), 0
    for pixels in filled:
        bits |= pixels.bits << (pixels.first - first)
    return Pixels(first, bits)


# ---- layers ----------------------------------------------------------------------------------


class Reader(Protocol):
    """A layer along one axis."""

    @property
    def step(self) -> Fraction:
        """Inputs from one output's place to the next one's."""

    @property
    def period(self) -> int:
        """Neighbouring outputs that read in different ways before the pattern repeats."""

    def inputs(self, output: int) -> Iterable[int]:
        """The inputs that an output reads."""


class Slide(NamedTuple):
    """A sliding window: convolution, pooling, and with one tap anything element by element.

    ``before`` is the padding before the first input; a negative one is a crop. A stride of 0 is
    broadcasting: every output reads the same.
    """

    kernel: int
    stride: int
    before: int
    dilation: int = 1

    @property
    def step(self) -> Fraction:
        """The stride."""
        return Fraction(self.stride)

    @property
    def period(self) -> int:
        """1: every output reads alike."""
        return 1

    def inputs(self, output: int) -> list[int]:
        """The tap rule at every tap."""
        taps = range(self.kernel)
        return [tap(output, u, self.stride, self.before, self.dilation) for u in taps]


class Spread(NamedTuple):
    """A transposed convolution: its output is what a window would read, its input what it gives."""

    kernel: int
    stride: int
    before: int
    dilation: int = 1

    @property
    def step(self) -> Fraction:
        """A part of an input: ``stride`` outputs lie between two inputs."""
        return Fraction(1, self.stride)

    @property
    def period(self) -> int:
        """The stride: each phase meets other taps."""
        return self.stride

    def inputs(self, output: int) -> list[int]:
        """The tap rule solved for the window's place, at every tap that meets the output."""
        steps = [output + self.before - u * self.dilation for u in range(self.kernel)]
        return [step // self.stride for step in steps if step % self.stride == 0]


class Resize(NamedTuple):
    """Upsampling or downsampling by interpolation.

    ``scale`` is inputs per output, and output p lies at input (p + 1/2) * scale - 1/2, or at
    p * scale where the corners are aligned; "nearest" reads input floor(p * scale).
    """

    scale: Fraction
    linear: bool
    align_corners: bool

    @property
    def step(self) -> Fraction:
        """The scale."""
        return self.scale

    @property
    def period(self) -> int:
        """Outputs after which the positions repeat: the denominator of the scale."""
        return self.scale.denominator

    def inputs(self, output: int) -> set[int]:
        """The pixels beside the output's position; one alone if it lies on a pixel."""
        if not self.linear:
            return {floor(output * self.scale)}
        half = Fraction(0 if self.align_corners else 1, 2)
        position = (output + half) * self.scale - half
        return {floor(position), ceil(position)}


def sliding(window: Window, axis: int) -> Slide:
    """The reader of a window along an axis (0 rows, 1 columns)."""
    return Slide(
        window.kernel[axis], window.stride[axis], window.before[axis], window.dilation[axis]
    )


def spreading(window: Window, axis: int) -> Spread:
    """The reader of a window that is used backwards, in a transposed convolution."""
    return Spread(*sliding(window, axis))


# ---- chains ----------------------------------------------------------------------------------


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
    reached : int
        Pixels that an output sees: the extent less the holes. The largest, as for the extent.
    """

    extent: int
    stride: Fraction
    centre: Fraction
    reached: int


MOST_PHASES = 4096


def _check_period(period: int) -> None:
    """Refuse to follow more phases than a computer holds.

    Resizing with aligned corners, 39 pixels to 79 and later 77 to 153, has no common pattern.
    """
    if period > MOST_PHASES:
        raise FieldError(
            f"the outputs' pattern repeats only after {period:,} of them, and at most "
            f"{MOST_PHASES:,} are followed; resize by simple factors, without align_corners"
        )


class Line(NamedTuple):
    """What every output sees of the input along one axis.

    Attributes
    ----------
    stride : Fraction
        Input pixels from one output's field to the next one's, on average.
    phases : tuple of Pixels
        What outputs 0 .. P - 1 see; the others see the same, moved by P strides.
    """

    stride: Fraction
    phases: tuple[Pixels, ...]

    @property
    def period(self) -> int:
        """P, the number of phases."""
        return len(self.phases)

    def seen(self, output: int) -> Pixels:
        """What an output sees."""
        periods, phase = divmod(output, self.period)
        return self.phases[phase].moved(int(periods * self.period * self.stride))

    def through(self, reader: Reader) -> Line:
        """What the outputs of one more layer see.

        Raises
        ------
        FieldError
            If the pattern repeats after too many outputs.
        """
        # So many outputs of the layer that what they read has moved by whole periods of ours.
        period = reader.period * (self.period // gcd(self.period, reader.step.numerator))
        _check_period(period)
        union = [joined(map(self.seen, reader.inputs(i))) for i in range(period)]
        return Line(self.stride * reader.step, tuple(union)).shortened()

    def with_(self, other: Line) -> Line:
        """What outputs see that see both; the strides are the same."""
        period = lcm(self.period, other.period)
        _check_period(period)
        union = [joined([self.seen(i), other.seen(i)]) for i in range(period)]
        return Line(self.stride, tuple(union)).shortened()

    def within(self, other: Line) -> bool:
        """Whether no output sees anything here that it does not see there."""
        if self.stride != other.stride:
            return False
        outputs = range(lcm(self.period, other.period))
        return all(self.seen(i).within(other.seen(i)) for i in outputs)

    def shortened(self) -> Line:
        """The same in as few phases as will do."""
        for period in range(1, self.period):
            shift = period * self.stride
            if self.period % period == 0 and shift.denominator == 1:
                ahead = [self.seen(i + period) for i in range(self.period)]
                if ahead == [pixels.moved(int(shift)) for pixels in self.phases]:
                    return Line(self.stride, self.phases[:period])
        return self

    def field(self) -> Field:
        """Extent, stride, centre and number of pixels."""
        seen = [(i, pixels) for i, pixels in enumerate(self.phases) if pixels.bits]
        centres = [Fraction(p.first + p.last, 2) - i * self.stride for i, p in seen]
        centre = sum(centres, Fraction(0)) / max(1, len(centres))
        extent = max((pixels.extent for _, pixels in seen), default=0)
        reached = max((pixels.number for _, pixels in seen), default=0)
        return Field(extent, self.stride, centre, reached)


ITSELF = Line(Fraction(1), (Pixels(0, 1),))  # the input: each position sees itself


def line_of(readers: Iterable[Reader]) -> Line:
    """What the outputs of a chain of layers see, the first layer first."""
    line = ITSELF
    for reader in readers:
        line = line.through(reader)
    return line


def field_of(readers: Sequence[Reader]) -> Field:
    """Receptive field of the last layer's outputs, in pixels of the first layer's input.

    Parameters
    ----------
    readers : sequence of Reader
        The layers along one axis, the first layer first.

    Examples
    --------
    >>> [field_of([Slide(3, 1, d, d) for d in (1, 1, 2, 4)[:n]]).extent for n in (1, 2, 3, 4)]
    [3, 5, 9, 17]
    >>> field_of([Slide(3, 1, 2, 2)] * 3).reached  # of 13
    7
    """
    return line_of(readers).field()


def border_of(readers: Sequence[Reader]) -> int:
    """Pixels to add on each side so that an image of n strides gives n outputs: (extent-stride)/2.

    Raises
    ------
    ShapeError
        If the two sides would have to differ.
    """
    extent, stride, *_ = field_of(readers)
    twice = extent - stride
    if twice.denominator != 1 or twice % 2 or twice < 0:
        raise ShapeError(
            "expected layers whose receptive field exceeds their stride by an even number of "
            f"pixels, half of it for each side; got a field of {extent} and a stride of {stride}. "
            "Add or take away one 2x2 pooling, or one tap."
        )
    return int(twice) // 2
