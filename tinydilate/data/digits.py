"""Scenes of handwritten digits: real handwriting, a label for every pixel, nothing to download.

The strokes are the 1,797 handwritten digits of UCI's Optdigits (8x8, written by 13 people), which
ship with the package. A scene scatters three to five of them, each enlarged to 24-30 pixels, on a
textured ground. They may overlap; the later digit lies on top.

**Classes.** The class of digit d is d, and class 10 is the background, so there are eleven. Label
255 (`IGNORE`) marks the rim of a stroke, where ink and ground mix and no answer is right; neither
the loss nor the metrics count those pixels.

**Why context matters here, and honestly so.** An output of the small front end sees 22 x 22 pixels;
a digit is enlarged to 24-30, and even at 24 some 97 in 100 are taller than 22. So hardly any output
ever sees a whole digit: one end of a 7 could be that of a 1, the lower half of a 9 that of a 3 or a
5, and neighbouring outputs are free to disagree. The context module reads what its neighbours think
and sees beyond the largest digit. Nothing was hidden from the front end: this is ordinary reading,
through a window that is a little too small.

**Splits.** The handwriting is divided, not only the scenes: of the 1,797 images, 1,193 belong to
"train", 318 to "validation" and 286 to "test". An image's split follows from a checksum of its own
pixels, so two identical images could never be separated, and no version of any random generator
can move one. (The same 13 people wrote all three: the source does not say who wrote what.)

**Recreating a scene.** Scene k is a function of (split, seed, k) and of the options, and of nothing
else: `scenes("test", 1, seed, first=k)` draws it again without drawing those before it.

Source of the handwriting: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
Machine Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0.
"""

from __future__ import annotations

import zlib
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinydilate.classes import IGNORE as IGNORE
from tinydilate.errors import DataError, ShapeError

Split = Literal["train", "validation", "test"]
FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CLASSES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "background")
BACKGROUND = 10

# RGB. Found by a search for ten colours that stay apart, from each other, from the near-black
# ground and from the white of pixels that do not count, for readers with full colour vision and
# without red, green or blue cones: the closest pair is 28 units of CIE Lab (1976) apart, and a test
# holds it.
PALETTE: ByteArray = np.array(
    [
        (102, 0, 255),  # 0 violet
        (221, 136, 51),  # 1 orange
        (170, 153, 204),  # 2 lavender
        (153, 51, 0),  # 3 brown
        (136, 238, 153),  # 4 mint
        (102, 85, 102),  # 5 grey
        (85, 153, 102),  # 6 green
        (204, 102, 255),  # 7 pink
        (255, 204, 0),  # 8 yellow
        (153, 17, 153),  # 9 purple
        (26, 26, 26),  # background
    ],
    dtype=np.uint8,
)
IGNORE_COLOUR = (255, 255, 255)

# Grey levels lie in [0, 1]; networks get (grey - MEAN) / STD, which is close to mean 0, variance 1.
MEAN = 0.37
STD = 0.19

SMALLEST_SCALE = 8  # a digit is never shrunk below its own 8 pixels


# ---------------------------------------------------------------------------- the handwriting


@cache
def handwriting() -> tuple[FloatArray, ByteArray]:
    """All digit images, float32 (1797, 8, 8), ink in [0, 1]; and what they show, uint8 (1797,)."""
    with files("tinydilate.data").joinpath("digits.npz").open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        images, digits = archive["images"], archive["digits"]
    ink = images.astype(np.float32) / 16  # 16 = every pixel of a 4x4 block of the scan was inked
    ink.setflags(write=False)
    digits.setflags(write=False)
    return ink, digits


@cache
def split_members(split: Split) -> NDArray[np.int64]:
    """Indices of the digit images that belong to `split`, ascending.

    One sixth of the images (by checksum) is "test", one sixth "validation", the rest "train".
    """
    _check_split(split)
    ink, _ = handwriting()
    sixth = np.array([zlib.crc32((image * 16).astype(np.uint8).tobytes()) % 6 for image in ink])
    wanted = {"test": sixth == 0, "validation": sixth == 1, "train": sixth >= 2}[split]
    members = np.flatnonzero(wanted)
    members.setflags(write=False)
    return members


# ---------------------------------------------------------------------------- drawing


@cache
def enlarging(source: int, target: int, margin: int = 0) -> FloatArray:
    """Cubic interpolation as a matrix (target + 2 * margin, source).

    `enlarging(8, 24) @ image @ enlarging(8, 24).T` enlarges an 8x8 image to 24x24. Pixel centres
    lie at half-integers; the kernel is that of Catmull and Rom (cubic, a = -1/2), which passes
    through the samples. Beyond the edge lies 0, and `margin` more pixels on either side show how
    the image fades into it.
    """
    pixel = np.arange(-margin, target + margin)
    centre = (pixel + 0.5) * source / target - 0.5  # in source pixels
    t = np.abs(centre[:, None] - np.arange(source))  # (target + 2 * margin, source) distances
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    matrix = np.where(t < 1, near, np.where(t < 2, far, 0)).astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def _margin(pixels: int) -> int:
    """Pixels that a stroke at the edge of a digit of this size needs to fade out: half a sample."""
    return -(-pixels // 16)


def _ground(rng: np.random.Generator, size: int) -> FloatArray:
    """A textured ground, float32 (size, size): soft clouds, a weak grating, and grain."""
    coarse = rng.standard_normal((9, 9), dtype=np.float32)
    blow_up = enlarging(9, size)  # (size, 9)
    clouds = blow_up @ coarse @ blow_up.T  # (size, size)

    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    wavelength = rng.uniform(5, 12)  # pixels, about as fine as the strokes
    y = np.arange(size, dtype=np.float32)
    along = (np.cos(angle) * y[:, None] + np.sin(angle) * y) * (2 * np.pi / wavelength)
    grating = np.sin(along + phase)

    grain = rng.standard_normal((size, size), dtype=np.float32)
    level = rng.uniform(0.22, 0.34)
    return np.asarray(level + 0.07 * clouds + 0.04 * grating + 0.035 * grain, dtype=np.float32)


def _corner(
    rng: np.random.Generator, pixels: int, size: int, centres: list[tuple[float, float]]
) -> tuple[int, int] | None:
    """Top left corner of a digit of `pixels` a side, not too close to the digits before it.

    Two centres keep 0.55 of its side apart: digits may overlap, and none is buried. None if twelve
    tries found no room.
    """
    margin = _margin(pixels)
    for _ in range(12):
        top, left = (int(edge) for edge in rng.integers(margin, size - pixels - margin + 1, 2))
        y, x = top + pixels / 2, left + pixels / 2
        if all(max(abs(y - v), abs(x - u)) >= 0.55 * pixels for v, u in centres):
            centres.append((y, x))
            return top, left
    return None


def _draw(
    split: Split, seed: int, k: int, size: int, digits: tuple[int, int], scale: tuple[int, int]
) -> tuple[FloatArray, ByteArray]:
    """Scene k: grey levels in [0, 1], float32 (size, size), and labels, uint8 (size, size)."""
    rng = np.random.default_rng([seed, SPLITS.index(split), k])
    ink, shows = handwriting()
    members = split_members(split)
    image = _ground(rng, size)
    labels = np.full((size, size), BACKGROUND, dtype=np.uint8)
    centres: list[tuple[float, float]] = []

    for _ in range(rng.integers(digits[0], digits[1] + 1)):
        chosen = members[rng.integers(len(members))]
        pixels = int(rng.integers(scale[0], scale[1] + 1))
        corner = _corner(rng, pixels, size, centres)
        brightness = rng.uniform(0.6, 0.95)
        if corner is None:
            continue
        margin = _margin(pixels)
        top, left = corner[0] - margin, corner[1] - margin
        outer = pixels + 2 * margin
        box = np.s_[top : top + outer, left : left + outer]
        blow_up = enlarging(8, pixels, margin)  # (outer, 8)
        stroke = blow_up @ ink[chosen] @ blow_up.T  # (outer, outer)
        # The enlarged stroke fades over 3 or 4 pixels; a steeper ramp gives it the edge of a pen.
        cover = np.clip(2 * stroke - 0.5, 0, 1)
        image[box] += cover * (brightness - image[box])
        patch = labels[box]  # a view: what is written here stands in `labels`
        patch[cover > 0.15] = IGNORE
        patch[cover > 0.6] = shows[chosen]
    return np.clip(image, 0, 1), labels


# ---------------------------------------------------------------------------- the public function


def scenes(
    split: Split,
    count: int,
    seed: int = 0,
    *,
    first: int = 0,
    size: int = 64,
    digits: tuple[int, int] = (3, 5),
    scale: tuple[int, int] = (24, 30),
    progress: bool = False,
) -> tuple[FloatArray, ByteArray]:
    """Scenes `first` to `first + count - 1` of a split: images and a label for every pixel.

    Parameters
    ----------
    split : "train", "validation" or "test"
        Whose handwriting is used; no digit image stands in two splits.
    count : int
        Number of scenes N, at least 1.
    seed : int
        Not negative. Scene k depends on (split, seed, k) and the options alone.
    first : int
        Number of the first scene.
    size : int
        Height and width in pixels; the largest digit must fit.
    digits : (int, int)
        Fewest and most digits in a scene. A crowded scene may get fewer: a digit that finds no
        room is left out.
    scale : (int, int)
        Smallest and largest digit, in pixels a side.
    progress : bool
        Show a progress bar.

    Returns
    -------
    images : float32 (N, 1, size, size)
        About zero mean and unit variance; `grey` turns them into pictures again.
    labels : uint8 (N, size, size)
        0..9 the digit, 10 the background, 255 the rim of a stroke, which does not count.

    Raises
    ------
    DataError
        An unknown split, a count below 1, a negative seed or first, fewest above most.
    ShapeError
        Digits that do not fit into the scene, or below 8 pixels.
    """
    _check_split(split)
    _check_numbers(count, seed, first, digits)
    _check_sizes(size, scale)
    images = np.empty((count, 1, size, size), dtype=np.float32)
    labels = np.empty((count, size, size), dtype=np.uint8)
    for n in tqdm(range(count), desc=f"{split} scenes", unit="scene", disable=not progress):
        images[n, 0], labels[n] = _draw(split, seed, first + n, size, digits, scale)
    images -= MEAN
    images /= STD
    return images, labels


def grey(images: FloatArray) -> FloatArray:
    """Network input turned back into grey levels in [0, 1], same shape."""
    levels: FloatArray = np.clip(images * STD + MEAN, 0, 1)
    return levels


# ---------------------------------------------------------------------------- at the door


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise DataError(
            f'expected split "train", "validation" or "test", got {split!r}; choose one of them'
        )


def _check_numbers(count: int, seed: int, first: int, digits: tuple[int, int]) -> None:
    if count < 1:
        raise DataError(f"expected count >= 1, got {count}; ask for at least one scene")
    if seed < 0 or first < 0:
        raise DataError(
            f"expected seed >= 0 and first >= 0, got seed {seed} and first {first}; "
            "scenes and seeds are numbered from 0"
        )
    if not 1 <= digits[0] <= digits[1]:
        raise DataError(
            f"expected digits = (fewest, most) with 1 <= fewest <= most, got {digits}; "
            "try digits=(3, 5)"
        )


def _check_sizes(size: int, scale: tuple[int, int]) -> None:
    if not SMALLEST_SCALE <= scale[0] <= scale[1]:
        raise ShapeError(
            f"expected scale = (smallest, largest) with {SMALLEST_SCALE} <= smallest <= largest, "
            f"got {scale}; try scale=(24, 30)"
        )
    least = scale[1] + 2 * _margin(scale[1])
    if size < least:
        raise ShapeError(
            f"expected size >= {least}, the largest digit and its rim, got {size}; "
            "make the scene larger or the digits smaller with scale=(smallest, largest)"
        )
