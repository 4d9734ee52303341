"""What a step sees: crops of images, or stored feature maps, each with labels.

Both sources answer the same two questions, and each answer depends on its arguments alone, so that
a run can go on at any step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tinydilate.data import LabelledImages, joined, open_dataset
from tinydilate.data.crops import Batch, Crop, draw, draw_steps, feature_labels
from tinydilate.data.sets import batch_members
from tinydilate.errors import ConfigError
from tinydilate.io.feature_file import Features
from tinydilate.recipes.stored import Canvas
from tinydilate.recipes.table import Recipe, kind_and_split

# ---- data sets -------------------------------------------------------------------------------


class Images(NamedTuple):
    """What a recipe learns from, and what it is scored on."""

    train: LabelledImages
    validation: LabelledImages


def open_images(recipe: Recipe, folders: Sequence[Path | str]) -> Images:
    """Open a recipe's data sets.

    Parameters
    ----------
    recipe : Recipe
    folders : sequence of path
        One for each entry of ``train``, in its order.

    Raises
    ------
    ConfigError
        If their numbers differ, or the validation set's folder cannot be told.
    DataError
        If a data set is not where it should be.
    """
    wanted = [kind_and_split(which) for which in recipe.train]
    if len(folders) != len(wanted):
        raise ConfigError(
            f"expected one --data FOLDER for each of {', '.join(recipe.train)}, in this order; got "
            f"{len(folders)}."
        )
    where = {kind: folder for (kind, _), folder in reversed([*zip(wanted, folders, strict=True)])}
    kind, split = kind_and_split(recipe.validation)
    if kind not in where:
        raise ConfigError(
            f"expected to score on a data set that is learnt from, {', '.join(where)}; got "
            f"{recipe.validation!r}. Change validation."
        )
    size = (recipe.size[0], recipe.size[1]) if recipe.size else None
    sets = [
        open_dataset(name, folder, part, size)
        for (name, part), folder in zip(wanted, folders, strict=True)
    ]
    together = sets[0]
    for other in sets[1:]:
        together = joined(together, other)
    return Images(together, open_dataset(kind, where[kind], split, size))


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers 0 to count - 1, evenly spread."""
    return sorted({int(n) for n in np.linspace(0, count - 1, min(count, most))})


# ---- sources ---------------------------------------------------------------------------------


class Source(Protocol):
    """Where batches come from."""

    def steps(self, steps: range) -> Iterator[Batch]:
        """The batches of some training steps, one after the other."""

    def scored(self) -> Iterator[Batch]:
        """What is scored, one image at a time."""


class CropSource:
    """Crops of images with their border; the middle of each where they are scored.

    Parameters
    ----------
    images : Images
    recipe : Recipe
    crop : Crop
    """

    def __init__(self, images: Images, recipe: Recipe, crop: Crop) -> None:
        self.images, self.recipe, self.crop = images, recipe, crop

    def steps(self, steps: range) -> Iterator[Batch]:
        """See `Source`."""
        recipe = self.recipe
        return draw_steps(self.images.train, self.crop, recipe.seed, 0, steps, recipe.batch)

    def scored(self) -> Iterator[Batch]:
        """See `Source`."""
        images = self.images.validation
        middle = self.crop._replace(centre=True, mirror=False)
        for number in spread(len(images), self.recipe.validate_images):
            yield draw(images, [number], middle, np.random.default_rng(0))


class Maps(NamedTuple):
    """Stored feature maps of some images of a data set.

    Attributes
    ----------
    features : Features
    images : LabelledImages
    numbers : sequence of int
        Image of each map.
    canvas : Canvas
    """

    features: Features
    images: LabelledImages
    numbers: Sequence[int]
    canvas: Canvas

    def one(
        self, k: int, stride: int, flip: str = "none"
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Map and labels number ``k``.

        Parameters
        ----------
        k : int
        stride : int
            Pixels from label to label: the front end's for labels of cells, 1 for those of pixels.
        flip : {"none", "image", "features"}
            "image" is the stored map of the mirrored image, "features" turns maps and sampled
            labels round.

        Returns
        -------
        float32 (C, h, w), and int64 (h, w) or finer
        """
        canvas = self.canvas
        finer = canvas.stride // stride
        size = (canvas.cells[0] * finer, canvas.cells[1] * finer)
        mirrored = flip == "image"
        place = len(self.numbers) + k if mirrored else k
        labels = feature_labels(self.images.labels(self.numbers[k]), size, stride, mirrored)
        maps = self.features.take([place])[0]
        return (maps[..., ::-1], labels[:, ::-1]) if flip == "features" else (maps, labels)


class StoredSource:
    """Stored feature maps.

    Parameters
    ----------
    train, validation : Maps
    recipe : Recipe
    stride : int
        Pixels from label to label.
    """

    def __init__(self, train: Maps, validation: Maps, recipe: Recipe, stride: int) -> None:
        self.train, self.validation, self.recipe, self.stride = train, validation, recipe, stride

    def steps(self, steps: range) -> Iterator[Batch]:
        """See `Source`."""
        return (self._batch(step) for step in steps)

    def _batch(self, step: int) -> Batch:
        recipe = self.recipe
        members = batch_members(recipe.seed, 0, step, recipe.batch, len(self.train.numbers))
        pairs = []
        for place, k in enumerate(members):
            rng = np.random.default_rng([recipe.seed, 0, step * recipe.batch + place, 1])
            turned = recipe.mirror != "none" and rng.random() < 0.5
            pairs.append(self.train.one(int(k), self.stride, recipe.mirror if turned else "none"))
        return _stacked(pairs)

    def scored(self) -> Iterator[Batch]:
        """See `Source`."""
        for k in range(len(self.validation.numbers)):
            yield _stacked([self.validation.one(k, self.stride)])


def _stacked(pairs: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]) -> Batch:
    maps, labels = zip(*pairs, strict=True)
    return Batch(np.stack(maps), np.stack(labels))
