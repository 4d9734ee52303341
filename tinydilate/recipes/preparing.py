"""A stage, ready to run: its data, its networks with their first weights, and what it will take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydilate import nn
from tinydilate.autograd import Tensor
from tinydilate.classes import CLASSES, VOC, Classes, voc_palette
from tinydilate.data.crops import Batch, Crop
from tinydilate.device import MetaArray
from tinydilate.errors import ConfigError
from tinydilate.functional.dropping import get_rng_state, set_rng_state
from tinydilate.models import Plan
from tinydilate.models.rows import check_count
from tinydilate.recipes.batches import (
    CropSource,
    Images,
    Maps,
    Source,
    StoredSource,
    open_images,
    spread,
)
from tinydilate.recipes.estimates import (
    Estimate,
    check_shape,
    estimate,
    fitting_iter_size,
    free_memory,
    rehearse,
    told_bytes,
    told_seconds,
)
from tinydilate.recipes.starting import Start, load_start
from tinydilate.recipes.stepping import OPTIMIZERS, batch_gradient
from tinydilate.recipes.stored import Canvas, canvas_of, store_features
from tinydilate.recipes.table import Recipe, kind_and_split

_HOT = 0.02  # lr / (1 - momentum): twice the largest of the paper's settings for VGG-16


class Call(NamedTuple):
    """How a recipe is run: where things are, and where to compute.

    Attributes
    ----------
    data : sequence of path
        A folder for each entry of the recipe's ``train``.
    init : path, optional
        First weights: a file, or the folder of the run before.
    folder : path
        The run folder.
    features : path, optional
        Folder of stored features, which several runs may share; by default features/ in the run
        folder.
    device : {"cpu", "cuda"}
    progress : bool
        Show bars and remarks on stderr.
    """

    data: Sequence[Path]
    folder: Path
    init: Path | None = None
    features: Path | None = None
    device: str = "cpu"
    progress: bool = True

    def say(self, sentence: str) -> None:
        """Write a remark to stderr."""
        if self.progress:
            print(sentence, file=sys.stderr)


# ---- what is trained -------------------------------------------------------------------------


class Parts(NamedTuple):
    """The networks of a stage.

    Attributes
    ----------
    plan : Plan
    learning : nn.Sequential
        What is trained: the front end, the context module, or both.
    front : nn.Sequential or None
        The frozen front end, where the context module is trained.
    border, stride : int
        Of the front end, in pixels.
    label_stride : int
        Pixels from label to label: `stride`, or fewer where the network upsamples by itself.
    """

    plan: Plan
    learning: nn.Sequential
    front: nn.Sequential | None
    border: int
    stride: int
    label_stride: int

    def whole(self) -> dict[str, Any]:
        """The arrays of the network that the stage leaves."""
        before = {} if self.front is None else self.front.state_dict()
        return {**before, **self.learning.state_dict()}


def build_parts(recipe: Recipe, plan: Plan, device: str = "cpu") -> Parts:
    """Build what a recipe trains, with its first weights.

    Raises
    ------
    ConfigError
        If the network's numbers make no sense.
    """
    options: dict[str, Any] = {
        "final_std": recipe.final_std,
        "noise": recipe.noise,
        "absolute_noise": recipe.absolute_noise,
        "device": device,
        "rng": None if device == "meta" else recipe.seed,
    }
    border, stride = plan.cells()
    if recipe.upsample and stride % recipe.upsample:
        raise ConfigError(
            f"expected upsample to divide the front end's stride of {stride} pixels; got "
            f"{recipe.upsample}. The published Cityscapes network has 8."
        )
    part = {"all": "whole"}.get(recipe.learns, recipe.learns)
    learning = plan.build(part, **options)
    front = plan.build("front end", **options) if recipe.learns == "context" else None
    return Parts(plan, learning, front, border, stride, stride // (recipe.upsample or 1))


def crop_of(recipe: Recipe, parts: Parts) -> Crop:
    """How images are cut.

    Raises
    ------
    ShapeError
        If the crop leaves no whole number of cells.
    """
    size, mirrored = (recipe.crop, recipe.crop), recipe.mirror == "image"
    cells = Crop(size, parts.border, parts.stride, mirrored)
    _ = cells.outputs  # refuses what is no number of cells
    return cells._replace(stride=parts.label_stride)


def input_shape_of(recipe: Recipe, parts: Parts, cells: tuple[int, int]) -> tuple[int, int, int]:
    """Shape of one input of what is trained, (C, H, W); ``cells`` are those of stored features."""
    if recipe.learns == "context":
        return (len(parts.plan.classes.names), *cells)
    return (3, recipe.crop, recipe.crop)


def estimate_recipe(recipe: Recipe, classes: int | None = None) -> Estimate:
    """What a recipe's step takes, without its data: those of a known data set's classes.

    Parameters
    ----------
    recipe : Recipe
    classes : int, optional
        Their number, for another data set; 21 where nothing is said.
    """
    kind = kind_and_split(recipe.train[0])[0]
    known = CLASSES.get(kind, VOC)
    if classes is not None:
        check_count(classes, "classes")
        names = tuple(f"class {number}" for number in range(classes))
        known = Classes(kind, names, voc_palette(classes), VOC.mean)
    parts = build_parts(recipe, recipe.plan(known), "meta")
    cells = (recipe.label_shape[0], recipe.label_shape[1]) if recipe.label_shape else (32, 32)
    shape = input_shape_of(recipe, parts, cells)
    check_shape(parts.learning, shape)
    return estimate(parts.learning, shape, recipe.batch, recipe.iter_size, _remembered(recipe))


def _remembered(recipe: Recipe) -> int:
    """Numbers that the recipe's optimiser remembers for each one that learns."""
    return OPTIMIZERS[recipe.optimizer].remembered


# ---- a stage, ready to run -------------------------------------------------------------------


class Stage:
    """A recipe with its data, its networks and their first weights.

    Parameters
    ----------
    recipe : Recipe
    call : Call

    Raises
    ------
    ConfigError, DataError, ShapeError
        If the data, the weights and the recipe do not fit each other.
    """

    def __init__(self, recipe: Recipe, call: Call) -> None:
        self.recipe, self.call = recipe, call
        self.images: Images = open_images(recipe, call.data)
        plan = recipe.plan(self.images.train.classes)
        # Shapes first: a crop that is too small is refused before 540 MB are read.
        shapes = build_parts(recipe, plan, "meta")
        self.crop = crop_of(recipe, shapes) if recipe.learns != "context" else None
        self.canvas = self._canvas(shapes)
        self.input_shape = input_shape_of(recipe, shapes, self.canvas.cells)
        check_shape(shapes.learning, self.input_shape)
        self.estimate: Estimate = estimate(
            shapes.learning,
            self.input_shape,
            recipe.batch,
            recipe.iter_size,
            _remembered(recipe),
        )
        self.parts = build_parts(recipe, plan)
        self.start: Start | None = None

    def _canvas(self, parts: Parts) -> Canvas:
        recipe = self.recipe
        shape, mirrored = recipe.label_shape, recipe.mirror == "image"
        if recipe.learns != "context":
            shape = (1, 1)  # nothing is stored
        return canvas_of(self.images.train, shape, parts.border, parts.stride, mirrored)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.parts.plan.classes.names

    def begin(self) -> None:
        """Load first weights and go to the device."""
        recipe, parts, call = self.recipe, self.parts, self.call
        if call.init is not None:
            first = parts.learning if parts.front is None else parts.front
            mean = parts.plan.classes.mean
            fresh = recipe.fresh if parts.front is None else ()
            self.start = load_start(first, call.init, mean, fresh, call.progress)
            if parts.front is not None and recipe.start == "network":  # its context module, too
                load_start(parts.learning, call.init, mean, recipe.fresh, call.progress)
        self.move()

    def move(self) -> None:
        """Go to the device."""
        self.parts.learning.to(self.call.device)
        if self.parts.front is not None:
            self.parts.front.to(self.call.device)

    def source(self) -> Source:
        """Where batches come from; stored features are computed here if they are missing."""
        if self.crop is not None:
            return CropSource(self.images, self.recipe, self.crop)
        train = self._maps("train", range(len(self.images.train)), self.canvas)
        scored = spread(len(self.images.validation), self.recipe.validate_images)
        plain = self.canvas._replace(mirrored=False)
        validation = self._maps("validation", scored, plain)
        return StoredSource(train, validation, self.recipe, self.parts.label_stride)

    def _maps(self, name: str, numbers: Sequence[int], canvas: Canvas) -> Maps:
        images = getattr(self.images, name)
        folder = self.call.features or self.call.folder / "features"
        assert self.parts.front is not None  # features are those of a frozen front end
        features = store_features(
            folder / f"{name}.features",
            self.parts.front,
            images,
            numbers,
            canvas,
            self.recipe.feature_dtype,
            self.call.progress,
        )
        return Maps(features, images, numbers, canvas)

    def one_image(self) -> Callable[[], Any]:
        """A step of one image, of noise: what it takes is a part of what a step takes."""
        shadow = nn.as_meta(self.parts.learning)
        inputs = np.random.default_rng(0).standard_normal((1, *self.input_shape), np.float32)
        scores = shadow(Tensor(MetaArray(inputs.shape, inputs.dtype)))
        labels = np.zeros((1, *scores.shape[2:]), np.int64)

        def step() -> None:
            batch_gradient(self.parts.learning, Batch(inputs, labels))
            self.parts.learning.zero_grad()

        return step

    def seconds_per_step(self) -> float:
        """Seconds of a step, from a rehearsal with one image; it changes nothing."""
        random = get_rng_state()
        seconds = rehearse(self.one_image())
        set_rng_state(random)
        return seconds * self.recipe.batch

    def forecast(self, seconds: float) -> dict[str, Any]:
        """Memory and time of the run, as numbers."""
        recipe, guess = self.recipe, self.estimate
        free = free_memory(self.call.device)
        fits = free is None or guess.memory <= free
        advice = None
        if free is not None and not fits:
            shape = self.input_shape
            advice = fitting_iter_size(
                self.parts.learning, shape, recipe.batch, free, _remembered(recipe)
            )
        return {
            "images": len(self.images.train),
            "classes": len(self.classes),
            "input_shape": list(guess.input_shape),
            "parameters": guess.parameters,
            "trainable": guess.trainable,
            "macs_per_step": guess.macs,
            "memory_bytes": guess.memory,
            "free_bytes": free,
            "fits": fits,
            "iter_size_that_fits": advice,
            "seconds_per_step": seconds,
            "seconds": seconds * recipe.steps,
            "steps": recipe.steps,
        }


def told_forecast(recipe: Recipe, forecast: dict[str, Any]) -> str:
    """A forecast in sentences."""
    shape = " x ".join(map(str, forecast["input_shape"]))
    free = forecast["free_bytes"]
    lines = [
        f"{recipe.title}: {forecast['images']:,} images, {forecast['classes']} classes; "
        f"{recipe.batch} in a step, computed {shape} at a time.",
        f"Memory: about {told_bytes(forecast['memory_bytes'])}"
        + (f"; there are {told_bytes(free)}." if free else "."),
        f"Time: about {told_seconds(forecast['seconds_per_step'])} a step, "
        f"{told_seconds(forecast['seconds'])} for {recipe.steps:,} steps.",
    ]
    if not forecast["fits"]:
        advice = forecast["iter_size_that_fits"]
        lines.append(
            f"It will not fit. The same step in more parts would: --set iter_size={advice}."
            if advice
            else "It will not fit, not even one image at a time. Take a smaller crop, or a machine "
            "with more memory."
        )
    if (recipe.front_end, recipe.optimizer) == ("vgg-16", "sgd") and recipe.heat > _HOT:
        lines.append(
            f"lr / (1 - momentum) is {recipe.heat:.2g}; the paper's largest is 0.01. Steps this "
            "long have been seen to diverge (fyu/dilation, issue 25)."
        )
    return "\n".join(lines)
