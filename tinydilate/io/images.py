"""Images in, label maps and overlays out.

A label map is written as a PNG with a palette: the pixel *is* the class number, and the palette
only says in which colour a viewer shows it. That is the format of the VOC labels.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydilate.device import Array
from tinydilate.errors import DataError, ShapeError
from tinydilate.io.files import write_bytes

_LARGEST = 2**16 - 1  # of a 16-bit grey image


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
    if channels not in (1, 3):
        raise DataError(f"expected channels 1 (grey) or 3 (colour); got {channels!r}.")
    if not 0 < scale <= 16:
        raise DataError(f"expected a scale above 0 and at most 16; got {scale}. 1 keeps the size.")
    pixels = _decode(Path(path), channels, scale)  # (H, W) or (H, W, 3)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def _decode(path: Path, channels: int, scale: float) -> NDArray[np.float32]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    if path.is_dir():  # opening one fails in another way on each system
        raise DataError(f"expected an image file; {path} is a folder. Name a file in it.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                file.load()
                image = ImageOps.exif_transpose(file)
        if scale != 1:
            size = [max(1, round(side * scale)) for side in image.size]
            image = _plain(image).resize((size[0], size[1]), Image.Resampling.LANCZOS)
        return _levels(image, channels)
    except FileNotFoundError:
        raise DataError(
            f"expected an image at {path}; there is no such file. Check the path."
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(
            f"expected an image of at most {Image.MAX_IMAGE_PIXELS or 0:,} pixels; {path} claims "
            "more, which may be a trap that fills the memory. Shrink it with an image editor."
        ) from None
    except UnidentifiedImageError:
        raise DataError(
            f"expected an image; got {path}, which is none that Pillow knows. "
            "Save it as PNG or JPEG."
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, MemoryError) as error:
        # Pillow's decoders answer broken files with any of these.
        raise DataError(
            f"expected a whole image; {path} cannot be read: {error}. Copy or save it again."
        ) from None


def _plain(image: Any) -> Any:
    """The image in one of the modes that `_levels` takes: grey of any depth, RGB."""
    from PIL import Image

    if image.mode in ("L", "RGB", "F"):
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which convert("L") would clip at 255
        return Image.fromarray((np.asarray(image) / _LARGEST).astype(np.float32))
    if image.mode in ("PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("L" if image.mode == "1" else "RGB")


def _levels(image: Any, channels: int) -> NDArray[np.float32]:
    """Levels in [0, 1], (H, W) or (H, W, 3)."""
    image = _plain(image)
    if image.mode == "F":
        grey = np.asarray(image, dtype=np.float32)
        if not np.isfinite(grey).all():
            raise ValueError("it holds numbers that are not finite")
        grey = np.clip(grey, 0, 1)
        return grey if channels == 1 else np.stack([grey] * 3, axis=-1)
    converted = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(converted, dtype=np.float32) / np.float32(255)


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
    _write_png(path, image)


def write_rgb(path: Path | str, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG of uint8 (H, W, 3) or, as grey, (H, W)."""
    from PIL import Image

    _write_png(path, Image.fromarray(pixels))


def _write_png(path: Path | str, image: Any) -> None:
    content = io.BytesIO()
    image.save(content, format="PNG")
    write_bytes(path, content.getvalue())


def overlay(
    image: NDArray[np.float32], labels: Array, palette: Array, strength: float = 0.55
) -> NDArray[np.uint8]:
    """Lay the labels' colours over an image.

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
    mixed = levels * (1 - strength) + colours[labels] * strength
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
