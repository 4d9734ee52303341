"""What all pictures share: a figure that needs no display, colours, and a file in one step.

The colours are those of Okabe and Ito, which stay apart for readers of any colour vision; where a
picture may be printed in grey, shape and hatching say the same as colour.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from tinydilate.io.files import write_bytes

INK, PALE = "#222222", "#BBBBBB"
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7",
)  # fmt: skip
TEXT_FONT = "DejaVu Sans"  # comes with matplotlib, so a picture is the same on every machine


def sheet(width: float, height: float) -> tuple[Any, Any]:
    """Make a white figure, and axes whose unit is the inch with y downwards, as in an image.

    Parameters
    ----------
    width, height : float
        Inches.

    Returns
    -------
    Figure, Axes
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return figure, axes


def save(figure: Any, path: Path | str, dpi: int = 150) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def text_width(text: str, points: float, bold: bool = False) -> float:
    """Inches that a line of text takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    font = FontProperties(family=TEXT_FONT, weight="bold" if bold else "normal")
    path = TextPath((0, 0), text, size=points, prop=font, usetex=False)
    return float(path.get_extents().width) / 72


def tinted(colour: str, strength: float) -> tuple[float, float, float]:
    """A colour mixed with white: all white at strength 0, itself at 1."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return red, green, blue
