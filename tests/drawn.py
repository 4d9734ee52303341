"""Pictures as their readers see them: the colour at a place, and what is written where."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageSequence


class Drawing(NamedTuple):
    """A figure, and the pixels of the file that it became."""

    figure: Any
    pixels: np.ndarray

    def colours(self, axes, xs, ys) -> np.ndarray:
        """RGB of the file at places of the axes; the last axis is the colour's."""
        xs, ys = np.broadcast_arrays(xs, ys)
        places = axes.transData.transform(np.stack([xs.ravel(), ys.ravel()], axis=1))
        # The axes count in pixels of the figure's own size, and upwards.
        across, up = (places * self.pixels.shape[1] / self.figure.bbox.width).astype(int).T
        return self.pixels[len(self.pixels) - 1 - up, across].reshape(*xs.shape, 3)


def frames(draw: Callable[[Path], None]) -> list[Drawing]:
    """What ``draw`` writes to the path it is given: a drawing for each frame of the file."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    original = Figure.draw

    def watched(figure, renderer):
        if figure not in figures:  # it is drawn more than once, to be laid out
            figures.append(figure)
        original(figure, renderer)

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", watched)
        path = Path(folder) / "picture"
        draw(path)
        assert [*Path(folder).iterdir()] == [path]
        with Image.open(path) as image:
            pixels = [np.asarray(one.convert("RGB")) for one in ImageSequence.Iterator(image)]
    return [Drawing(*both) for both in zip(figures, pixels, strict=True)]


def drawn(draw: Callable[[Path], None]) -> Drawing:
    """`frames` of a picture that has one."""
    (drawing,) = frames(draw)
    return drawing


def rgb(colour: str) -> tuple[int, ...]:
    """Red, green and blue of ``"#RRGGBB"``."""
    return tuple(bytes.fromhex(colour[1:]))


def hexes(colours) -> list[str]:
    """Matplotlib's colours as ``"#rrggbb"``, each once."""
    from matplotlib.colors import to_hex, to_rgba_array

    return list(dict.fromkeys(map(to_hex, to_rgba_array(colours))))
