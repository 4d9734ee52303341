"""Images and animations in, label maps and overlays out.

A label map is written as a PNG with a palette: the pixel *is* the class number, and the palette
only says in which colour a viewer shows it. That is the format of the VOC labels. An animation of
label maps is a GIF with the same palette.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydilate.classes import IGNORE
from tinydilate.device import Array
from tinydilate.errors import DataError, ShapeError
from tinydilate.io.files import write_bytes
from tinydilate.pictures import Advice, decode, levels, opened, plain


def read_image(path: Path | str, channels: int = 3, scale: float = 1.0) -> NDArray[np.float32]:
    """Read a PNG, JPEG or any other image that Pillow knows.

    Turned upright as its EXIF note asks; transparent pixels lie on white; of an animation the
    first frame; 16-bit grey keeps its 65,536 levels.

    Parameters
    ----------
    path : path
    channels : {1, 3}
        1 for grey (luma of a colour image), 3 for red, green, blue.
    scale : float
        Size of the result by size of the file's image; greater than 0.

    Returns
    -------
    float32 (channels, H, W), 0 is black and 1 is white

    Raises
    ------
    DataError
        If there is no such file, or it is no image, cut short, or absurdly large.
    """
    _check(channels, scale)
    path = Path(path)
    with opened(path, Advice()) as file:
        decode(file)
        return _planes(file, channels, scale)


def _check(channels: int, scale: float) -> None:
    if channels not in (1, 3):
        raise DataError(f"expected channels 1 (grey) or 3 (colour); got {channels!r}.")
    if not 0 < scale <= 16:
        raise DataError(f"expected a scale above 0 and at most 16; got {scale}. 1 keeps the size.")


def _planes(image: Any, channels: int, scale: float) -> NDArray[np.float32]:
    """An image of Pillow's, upright and in its final size -> (channels, H, W) in [0, 1]."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if scale != 1:
        size = [max(1, round(side * scale)) for side in image.size]
        image = plain(image).resize((size[0], size[1]), Image.Resampling.LANCZOS)
    pixels = levels(image, channels)  # (H, W) or (H, W, 3)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


# ---- animations and folders ------------------------------------------------------------------

_ANIMATED = ("GIF", "PNG", "WEBP")  # of other forms, such as a camera's JPEG, the first frame


class Animation(NamedTuple):
    """What an animation's file says of itself.

    Attributes
    ----------
    frames : int
    loop : int or None
        How often it is shown, 0 for ever; None once.
    """

    frames: int
    loop: int | None


def animation_of(path: Path | str) -> Animation | None:
    """Number of frames of an animated GIF, PNG or WebP; None for any other image.

    Raises
    ------
    DataError
        If there is no such file, or it is no image.
    """
    path = Path(path)
    with opened(path, Advice()) as file:
        frames = getattr(file, "n_frames", 1)
        if file.format not in _ANIMATED or frames < 2:
            return None
        return Animation(frames, file.info.get("loop"))


def read_frames(
    path: Path | str, channels: int = 3, scale: float = 1.0
) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Read an animation frame by frame; the parameters are those of `read_image`.

    Yields
    ------
    frame : float32 (channels, H, W), 0 is black and 1 is white
    duration : int
        Milliseconds that it is shown; 100 where the file does not say.

    Raises
    ------
    DataError
        If there is no such file, or it is no image or cut short.
    """
    _check(channels, scale)
    path = Path(path)
    with opened(path, Advice()) as file:
        for number in range(getattr(file, "n_frames", 1)):
            decode(file, number)
            duration = round(file.info.get("duration", 0)) or 100
            yield _planes(file, channels, scale), duration


def image_files(folder: Path | str) -> list[Path]:
    """The images in a folder, by their names; of numbers in them 2 comes before 10.

    Raises
    ------
    DataError
        If there are none.
    """
    from PIL import Image

    folder = Path(folder)
    known = {ending for ending, form in Image.registered_extensions().items() if form in Image.OPEN}
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in known and path.is_file() and not path.name.startswith(".")
    ]
    if not files:
        raise DataError(
            f"expected images in the folder {folder}; there are none that Pillow knows. Folders "
            "in it are not searched."
        )
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """A key to sort by: text by its letters, numbers by their size."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


# ---- written ---------------------------------------------------------------------------------


def write_labels(path: Path | str, labels: Array, palette: Array) -> None:
    """Write a label map as a PNG whose pixels are class numbers, shown in the palette's colours.

    Parameters
    ----------
    path : path
    labels : integers (H, W), 0..255
    palette : uint8 (K, 3)
        Colour of class k, red, green, blue; classes beyond K are shown white.

    Raises
    ------
    ShapeError, DataError
        If labels or palette cannot be stored so, or the file cannot be written.
    """
    _write_png(path, _paletted(labels, palette))


def _paletted(labels: Array, palette: Array) -> Any:
    """A label map as an image of Pillow's."""
    from PIL import Image

    if labels.ndim != 2 or palette.ndim != 2 or palette.shape[1] != 3 or len(palette) > 256:
        raise ShapeError(
            "expected labels (H, W) and a palette (K, 3) with K <= 256; got "
            f"{labels.shape} and {palette.shape}."
        )
    if labels.dtype.kind not in "iu" or (
        labels.size and not 0 <= labels.min() <= labels.max() < 256
    ):
        raise DataError(
            f"expected whole numbers 0..255 as labels, one byte a pixel; got {labels.dtype}"
            + (f" from {labels.min()} to {labels.max()}." if labels.size else ".")
        )
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(palette)] = palette
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(colours.tobytes())
    return image


def write_rgb(path: Path | str, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG of uint8 (H, W, 3) or, as grey, (H, W)."""
    from PIL import Image

    _write_png(path, Image.fromarray(pixels))


class Frames:
    """An animation in the making: frames are given one by one, and the file is written at the end.

    Parameters
    ----------
    loop : int or None
        How often the animation is shown, 0 for ever; None once.
    """

    def __init__(self, loop: int | None = 0) -> None:
        self.loop = loop
        self.images: list[Any] = []
        self.durations: list[int] = []

    def add_labels(self, labels: Array, palette: Array, duration: int) -> None:
        """A label map; see `write_labels`. ``duration`` is in milliseconds."""
        self._add(_paletted(labels, palette), duration)

    def add_rgb(self, pixels: NDArray[np.uint8], duration: int) -> None:
        """Colours, uint8 (H, W, 3); a GIF keeps 256 of them for each frame."""
        from PIL import Image

        self._add(Image.fromarray(pixels).quantize(256), duration)

    def _add(self, image: Any, duration: int) -> None:
        self.images.append(image)
        self.durations.append(duration)

    def write(self, path: Path | str) -> None:
        """Write a GIF, whole or not at all.

        Raises
        ------
        DataError
            If there are no frames, or the file cannot be written.
        """
        if not self.images:
            raise DataError("expected an animation with frames; got none. Add one first.")
        content = io.BytesIO()
        options: dict[str, Any] = {} if self.loop is None else {"loop": self.loop}
        self.images[0].save(
            content,
            format="GIF",
            save_all=True,
            append_images=self.images[1:],
            duration=self.durations,
            optimize=False,  # or colours change their numbers
            **options,
        )
        write_bytes(path, content.getvalue())


def _write_png(path: Path | str, image: Any) -> None:
    content = io.BytesIO()
    image.save(content, format="PNG")
    write_bytes(path, content.getvalue())


def overlay(
    image: NDArray[np.float32], labels: Array, palette: Array, strength: float = 0.55
) -> NDArray[np.uint8]:
    """Lay the labels' colours over an image; where the label is none (255), the image stays.

    Parameters
    ----------
    image : float32 (C, H, W) in [0, 1], C = 1 or 3
    labels : integers (H, W)
    palette : uint8 (K, 3)
    strength : float in [0, 1]
        Share of the colour in each pixel.

    Returns
    -------
    uint8 (H, W, 3)
    """
    if image.shape[1:] != labels.shape or image.shape[0] not in (1, 3):
        raise ShapeError(
            "expected an image (1 or 3, H, W) and labels (H, W) of one size; got "
            f"{image.shape} and {labels.shape}."
        )
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(palette)] = palette
    levels = np.broadcast_to(image, (3, *labels.shape)).transpose(1, 2, 0) * 255  # (H, W, 3)
    share = np.where(labels == IGNORE, 0, np.float32(strength))[..., None]  # (H, W, 1)
    mixed = levels * (1 - share) + colours[labels] * share
    pixels: NDArray[np.uint8] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return pixels
