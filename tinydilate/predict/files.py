"""Image files in, label maps out: single images, folders of them, animations.

For each image NAME.*, in the folder for results:

* ``NAME-labels.png``: the pixels are class numbers, shown in the classes' colours;
* ``NAME-overlay.png``: the colours laid over the image;
* ``NAME-probabilities.npz``, if asked for: "probabilities", float16 (C, H, W), and "classes", their
  names. float16 keeps three digits, in half the space of what the network computes.

An animation (GIF, PNG or WebP) makes ``NAME-labels.gif`` and ``NAME-overlay.gif``, which are as
long as it is.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinydilate.classes import IGNORE
from tinydilate.device import Array
from tinydilate.errors import ConfigError, DataError, meant
from tinydilate.io.files import write_bytes
from tinydilate.io.images import (
    Animation,
    Frames,
    animation_of,
    image_files,
    overlay,
    read_frames,
    read_image,
    write_labels,
    write_rgb,
)
from tinydilate.predict.checkpoints import AnyTrained
from tinydilate.predict.memory import MEMORY
from tinydilate.predict.original import original_bands
from tinydilate.predict.pixels import Band
from tinydilate.predict.whole import whole_bands

METHODS = ("whole", "original")
Thing = TypeVar("Thing")


class Options(NamedTuple):
    """How images are read, labelled and written.

    Attributes
    ----------
    scale : float
        Size to work at by size of the file's image. The demo network knows digits of 24 to 30
        pixels: a photograph of larger ones wants a scale below 1.
    invert : bool
        Exchange black and white. The demo network knows bright strokes on a dark ground.
    method : {"whole", "original"}
        See `tinydilate.predict.whole` and `tinydilate.predict.original`.
    memory : str or bytes
        Bound of the process for the method "whole".
    overlay, probabilities : bool
        Whether to write these files.
    classes : tuple of str
        Names of those that count: the pixels of others get the label 255, "none", and stay as they
        are in the overlay. Empty: all count.
    """

    scale: float = 1.0
    invert: bool = False
    method: str = "whole"
    memory: str | float = MEMORY
    overlay: bool = True
    probabilities: bool = False
    classes: tuple[str, ...] = ()


class Prediction(NamedTuple):
    """What was written for an image or an animation, and found in it."""

    image: Path
    labels: Path
    overlay: Path | None
    probabilities: Path | None
    shares: dict[str, float]  # part of the pixels that each class got


class Labelled(NamedTuple):
    """An image's labels."""

    labels: NDArray[np.uint8]  # (H, W)
    probabilities: NDArray[np.float16] | None  # (C, H, W), where they were asked for


# ---- one image in memory ---------------------------------------------------------------------


def label_image(
    trained: AnyTrained,
    levels: NDArray[np.float32],
    options: Options | None = None,
    progress: str = "",
) -> Labelled:
    """Label an image.

    Parameters
    ----------
    trained : Trained or TrainedPublished
    levels : float32 (channels, H, W)
        Grey, or red, green and blue, from 0 to 1; as `read_image` returns them.
    options : Options, optional
    progress : str
        Title of a bar; none is shown without it.

    Raises
    ------
    ConfigError
        If an option makes no sense for this network, or the memory does not suffice.
    """
    options = options or Options()
    kept_classes = _chosen(trained, options)
    levels = 1 - levels if options.invert else levels
    size = levels.shape[1:]
    labels = np.empty(size, np.uint8)
    kept: NDArray[np.float16] | None = None
    for rows, probabilities in _bands(trained, levels, options, progress):
        labels[rows] = probabilities.argmax(0)
        if options.probabilities:
            if kept is None:
                kept = np.empty((len(kept_classes), *size), np.float16)
            kept[:, rows] = probabilities[kept_classes]
    if options.classes:
        labels[~np.isin(labels, kept_classes)] = IGNORE
    return Labelled(labels, kept)


def _bands(
    trained: AnyTrained, levels: NDArray[np.float32], options: Options, progress: str
) -> Iterator[Band]:
    image, recipe = trained.recipe.prepare(levels), trained.recipe
    if options.method == "whole":
        # What stays beside the network's work: levels, labels, overlay; probabilities.
        kept = levels.nbytes + 4 * levels[0].size
        kept += 2 * len(recipe.classes) * levels[0].size * options.probabilities
        return whole_bands(
            trained.network, image, memory=options.memory, kept=kept, progress=progress
        )
    if options.method != "original":
        raise ConfigError(f"expected a method out of {', '.join(METHODS)}; got {options.method!r}.")
    return original_bands(trained.network, image, recipe.tile, progress=progress)


def _chosen(trained: AnyTrained, options: Options) -> list[int]:
    """Numbers of the classes that count.

    Raises
    ------
    ConfigError
        If a name is none of the network's.
    """
    names = trained.recipe.classes
    for name in options.classes:
        if name not in names:
            hint = meant(name, names)
            raise ConfigError(f"expected classes out of {', '.join(names)}; got {name!r}.{hint}")
    return [n for n, name in enumerate(names) if not options.classes or name in options.classes]


# ---- files -----------------------------------------------------------------------------------


def predict_file(
    trained: AnyTrained,
    image: Path | str,
    folder: Path | str | None = None,
    options: Options | None = None,
    progress: str = "",
) -> Prediction:
    """Label an image file or an animation; write label map and overlay.

    Parameters
    ----------
    trained : Trained or TrainedPublished
    image : path
        Read in grey for the demo's networks, in colour for published ones.
    folder : path, optional
        Where the results go; the image's own folder by default.
    options : Options, optional
    progress : str
        Title of a bar; none is shown without it.

    Raises
    ------
    DataError
        If the image cannot be read or the results cannot be written.
    ConfigError
        See `label_image`.
    """
    image, options = Path(image), options or Options()
    folder = image.parent if folder is None else Path(folder)
    animation = animation_of(image)
    if animation is not None:
        return _predict_animation(trained, image, folder, options, animation, progress)
    levels = read_image(image, trained.recipe.channels, options.scale)  # (channels, H, W)
    found = label_image(trained, levels, options, progress)
    palette = np.array(trained.recipe.palette, np.uint8)
    _make(folder)
    prediction = _names(image, folder, options, "png", _shares(trained, [found.labels], options))
    write_labels(prediction.labels, found.labels, palette)
    if prediction.overlay is not None:
        shown = 1 - levels if options.invert else levels
        write_rgb(prediction.overlay, overlay(shown, found.labels, palette))
    if prediction.probabilities is not None and found.probabilities is not None:
        names = [trained.recipe.classes[n] for n in _chosen(trained, options)]
        _write_probabilities(prediction.probabilities, found.probabilities, names)
    return prediction


def _predict_animation(
    trained: AnyTrained,
    path: Path,
    folder: Path,
    options: Options,
    animation: Animation,
    progress: str,
) -> Prediction:
    """Label every frame."""
    if options.probabilities:
        raise ConfigError(
            f"expected images to write probabilities for; {path} is an animation of "
            f"{animation.frames} frames. Save its frames as images in a folder, and name that."
        )
    palette = np.array(trained.recipe.palette, np.uint8)
    maps, overlays = Frames(animation.loop), Frames(animation.loop)
    labels = []
    frames = read_frames(path, trained.recipe.channels, options.scale)
    for levels, duration in _bar(frames, animation.frames, progress, "frame"):
        labels.append(label_image(trained, levels, options).labels)
        maps.add_labels(labels[-1], palette, duration)
        if options.overlay:
            shown = 1 - levels if options.invert else levels
            overlays.add_rgb(overlay(shown, labels[-1], palette), duration)
    _make(folder)
    prediction = _names(path, folder, options, "gif", _shares(trained, labels, options))
    maps.write(prediction.labels)
    if prediction.overlay is not None:
        overlays.write(prediction.overlay)
    return prediction


def predict_files(
    trained: AnyTrained,
    sources: Sequence[Path | str],
    folder: Path | str | None = None,
    options: Options | None = None,
    progress: str = "",
) -> list[Prediction]:
    """`predict_file` for image files, and for all that lie in folders, such as a video's frames.

    Parameters
    ----------
    trained, options, progress
        See `predict_file`.
    sources : sequence of paths
        Of files and folders. Results of a folder's images go to its ``predicted`` by default. If
        earlier results lie beside the images, they are left out.
    folder : path, optional
        Where all results go.

    Raises
    ------
    DataError, ConfigError
        See `predict_file`; and if two images would write to one file.
    """
    jobs = _jobs([Path(source) for source in sources], folder)
    if len(jobs) == 1:
        return [predict_file(trained, *jobs[0], options, progress)]
    return [
        predict_file(trained, image, place, options)
        for image, place in _bar(jobs, len(jobs), progress, "image")
    ]


def _jobs(sources: Sequence[Path], folder: Path | str | None) -> list[tuple[Path, Path]]:
    """Each image, and the folder of its results."""
    jobs: list[tuple[Path, Path]] = []
    for source in sources:
        if source.is_dir():
            place = source / "predicted" if folder is None else Path(folder)
            jobs += [(image, place) for image in _without_results(image_files(source))]
        else:
            jobs.append((source, source.parent if folder is None else Path(folder)))
    taken: dict[Path, Path] = {}
    for image, place in jobs:
        other = taken.setdefault(place / image.stem, image)
        if other is not image:
            raise DataError(
                f"expected images of different names; the results of {other} and {image} would go "
                f"to one file, {place / image.stem}-labels. Give each a run of its own, with --out."
            )
    return jobs


def _without_results(images: Sequence[Path]) -> list[Path]:
    """Leave out what an earlier run wrote beside its images: with --out, into their own folder.

    A name alone tells little, wine-labels.png may be a picture; but not beside wine.jpg.
    """
    stems = {image.stem for image in images}
    results = [image for image in images if _image_of(image) in stems]
    legend = {"legend.png"} if results else set()
    return [image for image in images if image not in results and image.name not in legend]


def _image_of(path: Path) -> str | None:
    """NAME of a file that is called as the results for NAME are; None of any other."""
    name, _, kind = path.stem.rpartition("-")
    return name if kind in ("labels", "overlay") and path.suffix in (".png", ".gif") else None


def _bar(things: Iterable[Thing], count: int, progress: str, unit: str) -> Iterable[Thing]:
    return tqdm(things, total=count, desc=progress, unit=unit, leave=False, disable=not progress)  # type: ignore[no-any-return]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"expected a folder for the results; {folder}: {error.strerror or error}. "
            "Choose another one with --out."
        ) from None


def _names(
    image: Path, folder: Path, options: Options, ending: str, shares: dict[str, float]
) -> Prediction:
    base = folder / image.stem
    return Prediction(
        image,
        Path(f"{base}-labels.{ending}"),
        Path(f"{base}-overlay.{ending}") if options.overlay else None,
        Path(f"{base}-probabilities.npz") if options.probabilities else None,
        shares,
    )


def _shares(trained: AnyTrained, labels: Sequence[Array], options: Options) -> dict[str, float]:
    """Part of the pixels that each class that counts got."""
    counts = np.sum([np.bincount(each.reshape(-1), minlength=256) for each in labels], axis=0)
    total = sum(each.size for each in labels)
    names = trained.recipe.classes
    return {names[n]: float(counts[n] / total) for n in _chosen(trained, options)}


def _write_probabilities(
    path: Path, probabilities: NDArray[np.float16], names: Sequence[str]
) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, probabilities=probabilities, classes=np.array(names))
    write_bytes(path, content.getvalue())
