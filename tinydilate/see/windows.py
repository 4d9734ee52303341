"""Sliding windows drawn: which pixels an output reads, and where im2col writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydilate.device import Array
from tinydilate.errors import ShapeError
from tinydilate.see import canvas
from tinydilate.window import Pair, Window, tap

MOST_PIXELS = 32  # along an axis, padding included; smaller squares could not be read
MOST_TAPS, MOST_OUTPUTS = 36, 64  # rows and columns of a column matrix that can still be read

_SQUARE = 0.4  # inches: a pixel
_MARGIN, _BETWEEN, _TITLE = 0.45, 0.9, 0.45  # around, between the two grids, above them


class Grid:
    """Squares in rows and columns; ``first`` is the (row, column) of the one at the top left."""

    def __init__(self, axes: Any, x: float, y: float, size: Pair, first: Pair, side: float) -> None:
        self.axes, self.x, self.y, self.side = axes, x, y, side
        self.size, self.first = size, first

    @property
    def width(self) -> float:
        """Inches."""
        return self.size[1] * self.side

    @property
    def height(self) -> float:
        """Inches."""
        return self.size[0] * self.side

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """Top left corner of a square, in inches."""
        return (
            self.x + (column - self.first[1]) * self.side,
            self.y + (row - self.first[0]) * self.side,
        )

    def centre(self, row: int, column: int) -> tuple[float, float]:
        """Middle of a square, in inches."""
        x, y = self.corner(row, column)
        return x + self.side / 2, y + self.side / 2

    def square(self, row: int, column: int, inset: float = 0.0, **style: Any) -> None:
        """Draw a square, smaller by ``inset`` of its side all around."""
        self.box(row, column, 1, 1, inset, **style)

    def box(
        self, row: int, column: int, rows: int, columns: int, inset: float = 0.0, **style: Any
    ) -> None:
        """Draw a rectangle over whole squares."""
        from matplotlib.patches import Rectangle

        (x, y), gap = self.corner(row, column), inset * self.side
        width, height = columns * self.side - 2 * gap, rows * self.side - 2 * gap
        self.axes.add_patch(Rectangle((x + gap, y + gap), width, height, **style))

    def strip(self, row: int, column: int, start: float, width: float, **style: Any) -> None:
        """Draw an upright strip of a square, from ``start`` on, both as parts of its side."""
        from matplotlib.patches import Rectangle

        x, y = self.corner(row, column)
        corner = x + start * self.side, y
        self.axes.add_patch(Rectangle(corner, width * self.side, self.side, **style))

    def write(self, row: int, column: int, text: str, **style: Any) -> None:
        """Write into a square."""
        self.axes.text(*self.centre(row, column), text, **{**_TEXT, "fontsize": 8, **style})

    def number(self, rows: int, columns: int) -> None:
        """Number the first ``rows`` and ``columns`` along the left and the upper edge."""
        for row in range(rows):
            _, y = self.centre(row, 0)
            self.axes.text(self.x - 0.14, y, str(row), **{**_TEXT, **_NOTE})
        for column in range(columns):
            x, _ = self.centre(0, column)
            self.axes.text(x, self.y - 0.14, str(column), **{**_TEXT, **_NOTE})

    def title(self, text: str) -> None:
        """Write above the numbers."""
        style = {**_TEXT, "fontsize": _TITLE_POINTS, "weight": "bold", "ha": "left"}
        self.axes.text(self.x, self.y - 0.42, text, **style)


_TEXT: dict[str, Any] = {
    "ha": "center", "va": "center_baseline", "family": canvas.TEXT_FONT, "color": canvas.INK,
    "fontsize": 9, "parse_math": False,
}  # fmt: skip
_TITLE_POINTS = 11.0
_NOTE: dict[str, Any] = {"fontsize": 7.5, "color": "#777777"}
_LINE: dict[str, Any] = {"facecolor": "white", "edgecolor": canvas.PALE, "linewidth": 0.8}
_HATCH: dict[str, Any] = {**_LINE, "facecolor": "#F4F4F4", "hatch": "////", "hatch_linewidth": 0.5}


# ---- one window ------------------------------------------------------------------------------


def draw_window(window: Window, size: Sequence[int], output: Sequence[int], path: Any) -> None:
    """Draw which input pixels one output reads.

    On the left the input with its padding, which is hatched; the taps of the output are filled and
    bear their numbers (u, v), and a frame shows the window's extent. On the right the outputs.

    Parameters
    ----------
    window : Window
    size : (H, W)
        Pixels of the input.
    output : (i, j)
        The output whose window is drawn.
    path : path
        Of the PNG; an earlier one is replaced.

    Raises
    ------
    ShapeError
        If the window does not fit, there is no such output, or the input has more than 32 pixels
        along an axis.
    DataError
        If the file cannot be written.
    """
    height, width = int(size[0]), int(size[1])
    outputs = window.output_size((height, width))
    i, j = _existing(output, outputs)
    shown = _padded_size(window, (height, width), outputs)
    _refuse_large(shown)
    top, left = window.before
    titles = _described(window, (height, width)), "outputs"
    note = _counted(window, (i, j), (height, width))
    axes, image, result = _two_grids(titles, shown, (-top, -left), outputs, note)
    _draw_padded(image, (height, width))
    image.number(height, width)
    for place in np.ndindex(*outputs):
        result.square(*place, **_LINE)
    result.number(*outputs)
    result.square(i, j, **_filled(canvas.BLUE))
    _draw_taps(image, window, (i, j), (height, width))
    _draw_beam(image, window, result, (i, j))
    canvas.save(axes.figure, path)


def _two_grids(
    titles: tuple[str, str], left: Pair, first: Pair, right: Pair, note: str = ""
) -> tuple[Any, Grid, Grid]:
    """A sheet with room for two grids side by side, their titles and a note below."""
    widths = [
        max(size[1] * _SQUARE, canvas.text_width(title, _TITLE_POINTS, bold=True))
        for size, title in zip((left, right), titles, strict=True)
    ]
    width = max(sum(widths) + _BETWEEN, canvas.text_width(note, _TEXT["fontsize"]))
    y = _MARGIN + _TITLE
    end = y + max(left[0], right[0]) * _SQUARE + (0.35 if note else 0.1)
    _, axes = canvas.sheet(2 * _MARGIN + width, end + _MARGIN / 2)
    axes.text(_MARGIN, end - 0.09, note, **{**_TEXT, "ha": "left"})
    grids = (
        Grid(axes, _MARGIN, y, left, first, _SQUARE),
        Grid(axes, _MARGIN + widths[0] + _BETWEEN, y, right, (0, 0), _SQUARE),
    )
    for grid, title in zip(grids, titles, strict=True):
        grid.title(title)
    return axes, *grids


def _draw_beam(image: Grid, window: Window, result: Grid, output: Pair) -> None:
    """Lines from the window's right edge to the output that it becomes."""
    rows, columns = _taps(window, output)
    right = columns[0] + window.extent[1]
    for begin, end in (
        (image.corner(rows[0], right), result.corner(*output)),
        (
            image.corner(rows[0] + window.extent[0], right),
            result.corner(output[0] + 1, output[1]),
        ),
    ):
        style = {"color": canvas.VERMILION, "linewidth": 0.9, "alpha": 0.65}
        image.axes.plot(*zip(begin, end, strict=True), **style)


def _draw_padded(image: Grid, size: Pair) -> None:
    for row in range(image.first[0], image.first[0] + image.size[0]):
        for column in range(image.first[1], image.first[1] + image.size[1]):
            inside = 0 <= row < size[0] and 0 <= column < size[1]
            image.square(row, column, **(_LINE if inside else _HATCH))
    image.box(0, 0, *size, fill=False, edgecolor=canvas.INK, linewidth=1.6)


def _draw_taps(image: Grid, window: Window, output: Pair, size: Pair) -> None:
    rows, columns = _taps(window, output)
    for u, row in enumerate(rows):
        for v, column in enumerate(columns):
            inside = 0 <= row < size[0] and 0 <= column < size[1]
            style = _filled(canvas.BLUE) if inside else _filled(canvas.BLUE, hatch="////")
            image.square(row, column, **style)
            image.write(row, column, f"{u},{v}", color="white" if inside else canvas.INK)
    style = {"fill": False, "edgecolor": canvas.VERMILION, "linewidth": 2, "linestyle": (0, (4, 2))}
    image.box(rows[0], columns[0], *window.extent, -0.04, **style)


def _filled(colour: str, hatch: str = "") -> dict[str, Any]:
    """Style of a highlighted square; hatched ones are pale, so that the hatching is seen."""
    if hatch:
        pale = canvas.tinted(colour, 0.3)
        return {"facecolor": pale, "edgecolor": colour, "hatch": hatch, "hatch_linewidth": 0.5}
    return {"facecolor": colour, "edgecolor": "white", "linewidth": 0.8}


def _taps(window: Window, output: Pair) -> tuple[list[int], list[int]]:
    """Input rows and columns that the taps of an output read: the tap rule."""
    (i, j), (top, left) = output, window.before
    return (
        [tap(i, u, window.stride[0], top, window.dilation[0]) for u in range(window.kernel[0])],
        [tap(j, v, window.stride[1], left, window.dilation[1]) for v in range(window.kernel[1])],
    )


def _counted(window: Window, output: Pair, size: Pair) -> str:
    """How many pixels an output reads, and how many of its taps lie in the padding."""
    rows, columns = _taps(window, output)
    seen = sum(0 <= y < size[0] for y in rows) * sum(0 <= z < size[1] for z in columns)
    text = f"output {output} reads {seen} pixel{'s' if seen != 1 else ''}"
    outside = window.taps - seen
    if outside:
        text += f"; {outside} tap{'s lie' if outside > 1 else ' lies'} in the padding"
    return text


def _described(window: Window, size: Pair) -> str:
    kernel = f"{window.kernel[0]}×{window.kernel[1]} window"
    padding = window.before if all(a == b for a, b in window.padding) else window.padding
    options = [
        f"{name} {value[0]}" if value[0] == value[1] else f"{name} {value}"
        for name, value, usual in (
            ("stride", window.stride, (1, 1)),
            ("padding", padding, (0, 0)),
            ("dilation", window.dilation, (1, 1)),
        )
        if value != usual
    ]
    return ", ".join([f"{kernel} on {size[0]}×{size[1]} pixels", *options])


def _padded_size(window: Window, size: Pair, outputs: Pair) -> Pair:
    """Rows and columns with the padding, and with what the last window hangs over (ceil_mode)."""
    whole = []
    for axis in range(2):
        before, after = window.padding[axis]
        last = (outputs[axis] - 1) * window.stride[axis] + window.extent[axis]
        whole.append(max(before + size[axis] + after, last))
    return whole[0], whole[1]


def _existing(output: Sequence[int], outputs: Pair) -> Pair:
    i, j = int(output[0]), int(output[1])
    if not (0 <= i < outputs[0] and 0 <= j < outputs[1]):
        raise ShapeError(
            f"expected one of the {outputs[0]}x{outputs[1]} outputs; got ({i}, {j}). "
            "Count rows and columns from 0."
        )
    return i, j


def _refuse_large(size: Pair) -> None:
    if max(size) > MOST_PIXELS:
        raise ShapeError(
            f"expected at most {MOST_PIXELS} pixels along each axis, padding included; got "
            f"{size[0]}x{size[1]}. Draw a smaller image: the rule is the same."
        )


# ---- im2col ----------------------------------------------------------------------------------

# Light, middle and dark, so that they stay apart in grey as well.
_TINTS = ((canvas.ORANGE, 0.45), (canvas.SKY, 0.85), (canvas.GREEN, 1.0))


def draw_im2col(image: Array, window: Window, path: Path | str) -> None:
    """Draw an image beside its column matrix, a few windows in the same colours in both.

    Parameters
    ----------
    image : (H, W)
        Numbers of one channel; those of up to four letters are written into the squares.
    window : Window
    path : path
        Of the PNG; an earlier one is replaced.

    Raises
    ------
    ShapeError
        If the image is no plane, the window does not fit, or either side is too large to be read:
        more than 32 pixels along an axis, 36 taps or 64 outputs.
    DataError
        If the file cannot be written.
    """
    image = np.asarray(image)
    if image.ndim != 2:
        raise ShapeError(
            f"draw_im2col expected an image of shape (H, W); got {image.shape}. Take one channel."
        )
    size = image.shape[0], image.shape[1]
    outputs = window.output_size(size)
    shown = _padded_size(window, size, outputs)
    _refuse_large(shown)
    count = outputs[0] * outputs[1]
    if window.taps > MOST_TAPS or count > MOST_OUTPUTS:
        raise ShapeError(
            f"expected at most {MOST_TAPS} taps and {MOST_OUTPUTS} outputs; got {window.taps} and "
            f"{count}. Draw a smaller image or window: the rule is the same."
        )
    titles = (
        _described(window, size),
        f"im2col: {window.taps} taps u,v × {count} outputs i,j",
    )
    top, left = window.before
    axes, grid, matrix = _two_grids(titles, shown, (-top, -left), (window.taps, count))
    _draw_padded(grid, size)
    grid.number(*size)
    chosen = _chosen(outputs)
    _draw_seen(grid, window, chosen, size)
    grid.box(0, 0, *size, fill=False, edgecolor=canvas.INK, linewidth=1.6)
    for y, z in np.ndindex(*size):
        grid.write(y, z, _short(image[y, z]), path_effects=_halo())
    _draw_matrix(matrix, image, window, outputs, chosen)
    canvas.save(axes.figure, path)


def _draw_seen(grid: Grid, window: Window, chosen: list[Pair], size: Pair) -> None:
    """Colour what the chosen outputs read; a pixel that several read is cut into strips."""
    readers: dict[Pair, list[int]] = {}
    for rank, output in enumerate(chosen):
        rows, columns = _taps(window, output)
        for place in ((y, z) for y in rows for z in columns):
            readers.setdefault(place, []).append(rank)
    for place, ranks in readers.items():
        inside = 0 <= place[0] < size[0] and 0 <= place[1] < size[1]
        for strip, rank in enumerate(ranks):
            part = strip / len(ranks), 1 / len(ranks)
            grid.strip(*place, *part, **_tint(rank, inside))
        grid.square(*place, fill=False, edgecolor="white", linewidth=0.8)


def _draw_matrix(
    matrix: Grid, image: Array, window: Window, outputs: Pair, chosen: list[Pair]
) -> None:
    """The column matrix: a row for each tap, a column for each output."""
    for column, output in enumerate(np.ndindex(*outputs)):
        rows, columns = _taps(window, (output[0], output[1]))
        rank = chosen.index(output) if output in chosen else None
        for row, (y, z) in enumerate((y, z) for y in rows for z in columns):
            inside = 0 <= y < image.shape[0] and 0 <= z < image.shape[1]
            matrix.square(row, column, **(_LINE if inside else _HATCH))
            if rank is not None:
                matrix.strip(row, column, 0, 1, **_tint(rank, inside))
            matrix.write(row, column, _short(image[y, z]) if inside else "0", path_effects=_halo())
        x, _ = matrix.centre(0, column)
        style: dict[str, Any] = {**_TEXT, **_NOTE}
        if rank is not None:
            style |= {"color": canvas.INK, "weight": "bold"}
        matrix.axes.text(x, matrix.y - 0.14, f"{output[0]},{output[1]}", **style)
    for row, (u, v) in enumerate(np.ndindex(*window.kernel)):
        _, y_middle = matrix.centre(row, 0)
        matrix.axes.text(matrix.x - 0.2, y_middle, f"{u},{v}", **{**_TEXT, **_NOTE})


def _chosen(outputs: Pair) -> list[Pair]:
    """Up to three outputs far from one another: the first, the middle, the last."""
    last = outputs[0] - 1, outputs[1] - 1
    candidates = [(0, 0), (last[0] // 2, last[1] // 2), last]
    return list(dict.fromkeys(candidates))


def _tint(rank: int, inside: bool) -> dict[str, Any]:
    """Style of a chosen window's pixels; those in the padding stay hatched."""
    style: dict[str, Any] = {"facecolor": canvas.tinted(*_TINTS[rank]), "linewidth": 0}
    return style if inside else {**style, "hatch": "////", "edgecolor": "white"}


def _halo() -> list[Any]:
    """A white rim around letters, so that they can be read on any colour."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground="white", alpha=0.75)]


def _short(number: Any) -> str:
    """A number in at most four letters, or nothing."""
    for text in (f"{number:g}", f"{number:.2f}", f"{number:.1f}", f"{number:.0f}"):
        if len(text) <= 4:
            return text
    return ""
