"""Image files, opened with Pillow: what every reader of them does alike.

Absurd sizes are refused before anything is decoded, and what is wrong with a file is said in a
sentence that names it. Pixels come in many modes; `plain` makes three of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydilate.errors import DataError

_LARGEST = 2**16 - 1  # of a 16-bit grey image


class Advice(NamedTuple):
    """What to do about a file, as sentences: each ends an error's text."""

    missing: str = "Check the path."
    large: str = "Shrink it with an image editor."
    unknown: str = "Save it as PNG or JPEG."
    broken: str = "Copy or save it again."


@contextmanager
def opened(path: Path, advice: Advice) -> Iterator[Any]:
    """Open an image file: Pillow's object, of which only the head has been read.

    Raises
    ------
    DataError
        If there is no such file, or it is no image, or absurdly large; and whatever goes wrong
        with the file within the block, for Pillow decodes when the pixels are asked for.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    try:
        if path.is_dir():  # opening one fails in another way on each system
            raise DataError(f"expected an image file; {path} is a folder. Name a file in it.")
        with _bombs_refused():
            file = Image.open(path)
        with file:
            yield file
    except DataError:  # a sentence already; it is a ValueError, too
        raise
    except FileNotFoundError:
        raise DataError(
            f"expected an image at {path}; there is no such file. {advice.missing}"
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(
            f"expected an image of at most {Image.MAX_IMAGE_PIXELS or 0:,} pixels; {path} claims "
            f"more, which may be a trap that fills the memory. {advice.large}"
        ) from None
    except UnidentifiedImageError:
        raise DataError(
            f"expected an image; got {path}, which is none that Pillow knows. {advice.unknown}"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, MemoryError) as error:
        # Pillow's decoders answer broken files with any of these.
        raise DataError(
            f"expected a whole image; {path} cannot be read: {error}. {advice.broken}"
        ) from None


@contextmanager
def _bombs_refused() -> Iterator[None]:
    """Make an error of Pillow's warning that a file claims very many pixels."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(file: Any, frame: int = 0) -> None:
    """Have the pixels read, of an animation those of a frame."""
    with _bombs_refused():
        if frame:
            file.seek(frame)  # what a frame leaves as it was is filled in by Pillow
        file.load()
    if file.mode == "F":
        low, high = file.getextrema()
        if high > 2 or low < -1:  # a little beyond comes from resizing
            raise ValueError(f"its numbers go from {low:g} to {high:g} instead of from 0 to 1")


def plain(image: Any) -> Any:
    """The image in one of three modes: grey, as "L" or "F" (from 0 to 1), or "RGB".

    Transparent pixels lie on white; 16-bit grey keeps its 65,536 levels.
    """
    from PIL import Image

    if image.mode in ("L", "RGB", "F"):
        return image
    if image.mode.startswith("I"):  # whole numbers, which convert("L") would clip at 255
        numbers = np.asarray(image)
        return Image.fromarray((numbers / _white(image.mode, numbers)).astype(np.float32))
    if image.mode in ("PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("L" if image.mode == "1" else "RGB")


def _white(mode: str, numbers: NDArray[Any]) -> int:
    """The number that is white: of 16 bits the largest; of 32 what their size suggests."""
    low, high = int(numbers.min()), int(numbers.max())
    if mode == "I" and (low < 0 or high > _LARGEST):
        raise ValueError(f"its numbers go from {low} to {high}, which is neither 8 nor 16 bits")
    return 255 if mode == "I" and high <= 255 else _LARGEST


def levels(image: Any, channels: int) -> NDArray[np.float32]:
    """Levels from 0 to 1: (H, W) for 1 channel, grey, or (H, W, 3) for 3."""
    image = plain(image)
    if image.mode == "F":
        grey = np.asarray(image, dtype=np.float32)
        if not np.isfinite(grey).all():
            raise ValueError("it holds numbers that are not finite")
        grey = np.clip(grey, 0, 1)
        return grey if channels == 1 else np.stack([grey] * 3, axis=-1)
    converted = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(converted, dtype=np.float32) / np.float32(255)
