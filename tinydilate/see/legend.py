"""A legend for label maps: the classes' names beside their colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinydilate.classes import Colour
from tinydilate.see.canvas import INK, TEXT_FONT, save, sheet, text_width

_ROW, _SQUARE, _POINTS, _MARGIN = 0.24, 0.16, 9, 0.12  # inches, but for the points
_IN_A_COLUMN = 12


def draw_legend(
    path: Path | str,
    names: Sequence[str],
    palette: Sequence[Colour],
    only: Sequence[str] = (),
) -> None:
    """Draw the classes' names beside their colours, in columns of twelve.

    Parameters
    ----------
    path : path
        Of the PNG.
    names, palette : sequences
        Of all classes, by their numbers.
    only : sequence of str
        Names of the classes to show; empty, all.
    """
    shown = [
        (name, colour)
        for name, colour in zip(names, palette, strict=True)
        if not only or name in only
    ]
    wide = max(text_width(name, _POINTS) for name, _ in shown) + _SQUARE + 3 * _MARGIN
    columns = -(-len(shown) // _IN_A_COLUMN)
    rows = -(-len(shown) // columns)
    figure, axes = sheet(columns * wide + _MARGIN, rows * _ROW + 2 * _MARGIN)
    for number, (name, colour) in enumerate(shown):
        left = _MARGIN + number // rows * wide
        middle = _MARGIN + (number % rows + 0.5) * _ROW
        _draw_class(axes, left, middle, name, colour)
    save(figure, path)


def _draw_class(axes: Any, left: float, middle: float, name: str, colour: Colour) -> None:
    from matplotlib.patches import Rectangle

    face = [level / 255 for level in colour]
    corner = left, middle - _SQUARE / 2
    axes.add_patch(Rectangle(corner, _SQUARE, _SQUARE, facecolor=face, edgecolor=INK, lw=0.5))
    axes.text(
        left + _SQUARE + _MARGIN, middle, name, fontsize=_POINTS, color=INK, va="center",
        family=TEXT_FONT,
    )  # fmt: skip
