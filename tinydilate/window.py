"""The sliding window: the one place for window arithmetic.

A window has ``kernel`` taps along each axis, ``dilation`` pixels from tap to tap. It is laid on
an input that is padded by ``padding`` pixels, and moves by ``stride`` pixels from one output to
the next. Along one axis, output ``i`` reads, through its tap ``u``, the input

    y = i * stride - padding + u * dilation                                  (the tap rule)

Convolution, pooling, im2col, the receptive-field analysis and the figures all use this rule.
Equation 2 of the paper is this rule with stride 1, no padding and dilation l.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import index
from typing import Any, NamedTuple

from tinydilate.errors import ShapeError

Pair = tuple[int, int]
LARGEST = 2**31 - 1  # of strides and the like: products of two still fit the machine's integers


def tap(i: int, u: int, stride: int, padding: int, dilation: int) -> int:
    """Input position that output ``i`` reads through tap ``u``, along one axis."""
    return i * stride - padding + u * dilation


def tapped_by(y: int, u: int, stride: int, padding: int, dilation: int, outputs: int) -> int:
    """Output that reads input ``y`` through tap ``u``: the tap rule solved for i; -1 if none."""
    steps = y + padding - u * dilation
    i = steps // stride
    return i if steps >= 0 and steps == i * stride and i < outputs else -1


def pair(value: int | Sequence[int], name: str, least: int) -> Pair:
    """Read an integer, or one for (rows, columns), as a pair; refuse less than ``least``."""
    rows, columns = value if type(value) is tuple and len(value) == 2 else (value, value)
    if (
        type(rows) is type(columns) is int
        and least <= rows <= LARGEST
        and least <= columns <= LARGEST
    ):
        return rows, columns  # the common case
    try:
        numbers = tuple(value) if isinstance(value, Sequence) else (value, value)
        if any(isinstance(number, bool) for number in numbers):
            raise TypeError
        rows, columns = (index(number) for number in numbers)
    except (TypeError, ValueError):
        raise ShapeError(
            f"{name} should be an integer or a pair of integers, got {value!r}. "
            f"Write {name}=2, or {name}=(2, 1) for rows and columns."
        ) from None
    if max(rows, columns) > LARGEST:
        raise ShapeError(f"{name} should be at most {LARGEST}, got {value!r}. No image is so wide.")
    if min(rows, columns) < least:
        raise ShapeError(
            f"{name} should be at least {least}, got {value!r}."
            + (f" An ordinary window has {name}=1." if name in ("stride", "dilation") else "")
        )
    return rows, columns


def are_plain(*values: Any) -> bool:
    """Whether options of a window are integers or pairs of them, not what merely equals one."""
    for value in values:
        if type(value) is not int and not (
            type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int
        ):
            return False
    return True


class Window(NamedTuple):
    """A window in two dimensions; every field is (rows, columns).

    Build it with `Window.of`, which checks what it is given.

    Attributes
    ----------
    kernel : (KH, KW)
        Number of taps.
    stride : (int, int)
        Pixels from one output's window to the next one's.
    padding : ((top, bottom), (left, right))
        Pixels added around the input; the two sides may differ ("same" with an even kernel).
    dilation : (int, int)
        Pixels from one tap to the next; 1 is the ordinary window.
    ceil_mode : bool
        Whether a last window that hangs over the padded edge counts (pooling only).
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    @classmethod
    def of(
        cls,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
    ) -> Window:
        """Build a window from integers, pairs, or ``padding="same"`` / ``"valid"``.

        Raises
        ------
        ShapeError
            If a number is not an integer, is too small, or "same" is asked for with a stride.
        """
        taps = pair(kernel, "kernel_size", 1)
        steps = pair(stride, "stride", 1)
        gaps = pair(dilation, "dilation", 1)
        if isinstance(padding, str):
            return cls(taps, steps, _named_padding(padding, taps, steps, gaps), gaps, ceil_mode)
        rows, columns = pair(padding, "padding", 0)
        return cls(taps, steps, ((rows, rows), (columns, columns)), gaps, ceil_mode)

    @property
    def extent(self) -> Pair:
        """Pixels from the first tap to the last, both counted: dilation * (kernel - 1) + 1."""
        return (
            self.dilation[0] * (self.kernel[0] - 1) + 1,
            self.dilation[1] * (self.kernel[1] - 1) + 1,
        )

    @property
    def before(self) -> Pair:
        """Padding before the first row and the first column: what the tap rule subtracts."""
        return self.padding[0][0], self.padding[1][0]

    @property
    def taps(self) -> int:
        """Number of taps, KH * KW."""
        return self.kernel[0] * self.kernel[1]

    def output_size(self, size: Sequence[int]) -> Pair:
        """(H, W) -> (OH, OW): how often the window fits into the padded input.

        Raises
        ------
        ShapeError
            If the window does not fit even once.
        """
        return _output_size(self, (size[0], size[1]))

    def _output_along(self, axis: int, size: int) -> int:
        if size < 1:
            raise ShapeError(
                f"expected an image of at least one pixel along each axis; got {size} "
                f"{('rows', 'columns')[axis]}. Only the batch may be empty."
            )
        before, after = self.padding[axis]
        extent, stride = self.extent[axis], self.stride[axis]
        room = size + before + after - extent
        if room <= (-stride if self.ceil_mode else -1):  # ceil_mode's only window may hang over
            taps, gap = self.kernel[axis], self.dilation[axis]
            padding = f"2*{before}" if before == after else f"({before} + {after})"
            raise ShapeError(
                f"the window does not fit: a {taps}-tap kernel with dilation {gap} spans {extent} "
                f"pixels, but the input has {size} + {padding} padding = {size + before + after}. "
                f"Pad by at least {before + -(room // 2)}"
                + (" or dilate less." if gap > 1 else " or use a smaller kernel.")
            )
        if not self.ceil_mode:
            return room // stride + 1
        count = -(-room // stride) + 1
        # A last window that would start inside the padding after the input is dropped.
        return count - 1 if (count - 1) * stride >= size + before else count

    def input_size(self, output: Sequence[int], extra: Sequence[int] = (0, 0)) -> Pair:
        """(OH, OW) -> (H, W): the inverse of `output_size`, for the transposed convolution.

        With a stride, several input sizes give the same output size; ``extra`` rows and columns
        (``output_padding``) choose among them.
        """
        return self._input_along(0, output[0], extra[0]), self._input_along(1, output[1], extra[1])

    def _input_along(self, axis: int, output: int, extra: int) -> int:
        before, after = self.padding[axis]
        size = (output - 1) * self.stride[axis] + self.extent[axis] - before - after + extra
        if size < 1:
            raise ShapeError(
                f"the transposed convolution leaves nothing: {output} outputs of a window that "
                f"spans {self.extent[axis]} pixels, less {before} + {after} padding, give a size "
                f"of {size}. Use less padding."
            )
        return size


@lru_cache(4096)
def _output_size(window: Window, size: Pair) -> Pair:
    """`Window.output_size`, worked out once for each window and size."""
    return window._output_along(0, size[0]), window._output_along(1, size[1])


def _named_padding(name: str, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """Padding by name: "valid" is none; "same" keeps the size and needs stride 1."""
    if name == "valid":
        return (0, 0), (0, 0)
    if name != "same":
        raise ShapeError(f'padding should be an integer, a pair, "same" or "valid", got {name!r}.')
    if stride != (1, 1):
        raise ShapeError(
            f'padding="same" keeps the size, so it needs stride 1, got stride {stride}. '
            "Give the padding as a number."
        )
    # An even kernel needs an odd total; the extra pixel goes after, as in PyTorch.
    rows, columns = (gap * (taps - 1) for taps, gap in zip(kernel, dilation, strict=True))
    return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)
