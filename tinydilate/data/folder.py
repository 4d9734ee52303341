"""A data set of your own: a plain folder of images and label PNGs.

    FOLDER/images/*.jpg        or .png, .bmp, ...
    FOLDER/labels/*.png        the same names; class numbers or a colour map; 255 = not counted
    FOLDER/classes.txt         one class a line: NAME, or NAME RED GREEN BLUE; the first is class 0
    FOLDER/train.txt, val.txt  names without endings, one a line: the images of each split

The split "all" is every image, and needs no list. Without colours in ``classes.txt`` the classes
get those of VOC's palette. A line ``mean BLUE GREEN RED`` at the end of ``classes.txt`` tells the
mean pixel of the training images (``tinydilate data check folder FOLDER --mean`` works it out);
without it VOC's is taken, which is close to ImageNet's, whose weights one usually starts from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tinydilate.classes import VOC, Classes, Colour, voc_palette
from tinydilate.data.labelled import LabelledImages, Member
from tinydilate.data.layout import (
    check_files,
    find_root,
    images_in,
    read_list,
    safe_path,
)
from tinydilate.data.pixels import plain_code, read_labels
from tinydilate.errors import DataError, meant

ADVICE = (
    "A plain folder holds images/, labels/ with a PNG of the same name for each image, classes.txt "
    "with one class a line, and SPLIT.txt with the names of each split's images."
)
ALL = "all"


def open_folder(
    folder: Path | str, split: str, size: tuple[int, int] | None = None
) -> LabelledImages:
    """Open a plain folder of images and labels.

    Parameters
    ----------
    folder : path
    split : str
        The images listed in ``SPLIT.txt``; "all" is every image.
    size : (H, W), optional
        Resize to this.

    Raises
    ------
    DataError
        If a file is missing or makes no sense.
    """
    root = find_root(folder, ["."], "images", ADVICE)
    classes = read_classes(root / "classes.txt")
    images = {path.stem: path for path in images_in(root / "images", ADVICE)}
    if split == ALL:
        names = sorted({*images, *(path.stem for path in (root / "labels").glob("*.png"))})
    else:
        source = root / f"{split}.txt"
        names = _names_of(source, images)
    code = plain_code(classes.palette)
    members = []
    for name in names:
        labels = root / "labels" / f"{name}.png"
        image = images.get(name, root / "images" / f"{name}.jpg")
        members.append(Member(name, image, labels, partial(read_labels, labels, code)))
    check_files((member.image for member in members), "an image", ADVICE)
    check_files((root / "labels" / f"{name}.png" for name in names), "labels", ADVICE)
    return LabelledImages(classes, members, size)


def _names_of(source: Path, images: Mapping[str, Path]) -> list[str]:
    """The names in a split's list, which are those of images without their endings."""
    advice = ADVICE
    if not source.exists():
        lists = sorted({ALL, *(path.stem for path in source.parent.glob("*.txt"))} - {"classes"})
        advice = f"There are {', '.join(lists)}.{meant(source.stem, lists)} {ADVICE}"
    names = read_list(source, advice)
    for name in names:
        safe_path(source.parent, name, source)
        if name not in images and Path(name).stem in images:
            raise DataError(
                f"expected names without endings in {source}; got {name!r}. Write "
                f"{Path(name).stem}."
            )
    return names


def read_classes(path: Path) -> Classes:
    """Read ``classes.txt``: a class a line, and perhaps the mean pixel.

    Raises
    ------
    DataError
        If a line is neither.
    """
    lines = read_list(path, ADVICE)
    mean = VOC.mean
    if lines[-1].split()[0] == "mean":
        try:
            blue, green, red = map(float, lines.pop().split()[1:])
        except ValueError:
            raise DataError(
                f"expected 'mean BLUE GREEN RED' as the last line of {path}, three numbers 0 to "
                "255. Correct it or leave it out."
            ) from None
        mean = (blue, green, red)
    names, palette = [], list(voc_palette(len(lines)))
    for number, line in enumerate(lines):
        words = line.split()
        if words[0] == "mean" and len(words) == 4:
            raise DataError(
                f"expected the mean pixel as the last line of {path}; got it as line {number + 1}. "
                "Move it to the end."
            )
        if re.fullmatch(r"#[0-9a-fA-F]{6}|\d+,\d+,\d+,?", words[-1]):
            raise DataError(
                f"expected a class's colour as three numbers in {path}, such as 'road 128 64 128'; "
                f"got {line!r}."
            )
        if len(words) >= 4 and all(word.isdecimal() for word in words[-3:]):
            palette[number] = _colour(words[-3:], path, line)
            words = words[:-3]
        names.append(" ".join(words))
    if len(names) > 255:
        raise DataError(f"expected at most 255 classes in {path}; got {len(names)}.")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"expected each class once in {path}; got {twice!r} twice.")
    if len(set(palette)) != len(palette):
        twice_drawn = next(colour for colour in palette if palette.count(colour) > 1)
        alike = " and ".join(n for n, c in zip(names, palette, strict=True) if c == twice_drawn)
        raise DataError(
            f"expected a colour for each class in {path}; got {twice_drawn} for {alike}. (A class "
            "without one is drawn in VOC's colour of its number: then give all of them one.)"
        )
    return Classes(path.parent.resolve().name, tuple(names), tuple(palette), mean)


def _colour(words: list[str], path: Path, line: str) -> Colour:
    red, green, blue = map(int, words)
    if max(red, green, blue) > 255:
        raise DataError(f"expected colours of 0 to 255 in {path}; got the line {line!r}.")
    return red, green, blue
