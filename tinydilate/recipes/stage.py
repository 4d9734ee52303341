"""Running a recipe: a stage of training from its first weights to the network that it leaves.

A run folder holds

* recipe.toml, the recipe as it was run, with every key;
* start.json, what was started from: data sets, and which layers came from where;
* log.jsonl, a line for each step and each score;
* checkpoints/latest.safetensors, from which the run goes on bit for bit (`tinydilate.running`);
* features/, where a context module is trained (`tinydilate.recipes.stored`), unless another folder
  was named;
* at the end network.safetensors and results.json.

The network's file says what it is: its plan, and for a published network its name.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tinydilate import nn
from tinydilate.autograd import Tensor, no_grad, tensor
from tinydilate.classes import CLASSES, VOC, Classes, voc_palette
from tinydilate.data.crops import Batch, Crop, feature_labels
from tinydilate.device import MetaArray, check_device
from tinydilate.errors import ConfigError, DataError, program
from tinydilate.functional.dropping import get_rng_state, manual_seed, set_rng_state
from tinydilate.io.checkpoint import load_checkpoint, save_checkpoint
from tinydilate.io.conversion import describe
from tinydilate.io.files import write_text
from tinydilate.io.logbook import Log
from tinydilate.metrics import Score
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
from tinydilate.recipes.starting import RESULT, Start, check_start, load_start
from tinydilate.recipes.stepping import (
    batch_gradient,
    make_optimizer,
    schedule_of,
    score_network,
    tiny_step,
)
from tinydilate.recipes.stored import Canvas, canvas_input, canvas_of, store_features
from tinydilate.recipes.table import Recipe, kind_and_split
from tinydilate.running import (
    LATEST,
    Interrupted,
    SavedState,
    Standing,
    deferred_interrupt,
    make_run_folder,
    save_state,
    versions,
)
from tinydilate.threads import get_num_threads
from tinydilate.warmup import warm_up

RECIPE = "recipe.toml"
FRONT = "front.safetensors"
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
    return estimate(parts.learning, shape, recipe.batch, recipe.iter_size)


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
            shapes.learning, self.input_shape, recipe.batch, recipe.iter_size
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
            advice = fitting_iter_size(self.parts.learning, shape, recipe.batch, free)
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


# ---- running ---------------------------------------------------------------------------------


def dry_run(recipe: Recipe, call: Call) -> dict[str, Any]:
    """Run exactly one step and write nothing.

    Returns
    -------
    dict
        The forecast, and the step's loss. Where a context module is trained, its step sees one
        image's features again and again, and "seconds_per_image" is what computing those took.

    Raises
    ------
    ConfigError, DataError
        If the recipe, the data and the weights do not fit each other.
    """
    check_device(call.device)
    check_start(recipe, call.init)
    stage = Stage(recipe, call)
    stage.begin()
    _compile(call)
    made: dict[str, Any] = {}
    if stage.crop is not None:
        source = CropSource(stage.images, recipe, stage.crop)
        batch = next(iter(source.steps(range(1))))
    else:
        batch, made["seconds_per_image"] = _one_map(stage)
    optimizer = make_optimizer(recipe, stage.parts.learning)
    begun = time.perf_counter()
    loss = batch_gradient(stage.parts.learning, batch, recipe.iter_size)
    optimizer.step()
    seconds = time.perf_counter() - begun
    return {**stage.forecast(seconds), **made, "loss": loss}


def _one_map(stage: Stage) -> tuple[Batch, float]:
    """A batch of one image's features, and the seconds that they took."""
    front, canvas = stage.parts.front, stage.canvas
    assert front is not None
    image = canvas_input(stage.images.train, 0, canvas, mirrored=False)
    begun = time.perf_counter()
    with no_grad():
        maps = front.eval()(tensor(image[None], device=stage.call.device)).numpy()
    seconds = time.perf_counter() - begun
    finer = stage.parts.stride // stage.parts.label_stride
    size = (canvas.cells[0] * finer, canvas.cells[1] * finer)
    labels = feature_labels(stage.images.train.labels(0), size, stage.parts.label_stride)
    count = stage.recipe.batch
    return Batch(np.repeat(maps, count, 0), np.repeat(labels[None], count, 0)), seconds


def run_recipe(recipe: Recipe, call: Call, resume: bool = False) -> dict[str, Any]:
    """Run a stage of training and leave its network.

    Parameters
    ----------
    recipe : Recipe
    call : Call
    resume : bool
        Go on with the run in the folder.

    Returns
    -------
    dict
        What results.json holds.

    Raises
    ------
    ConfigError
        If the folder already holds a run, or none to resume, or one of another recipe; or if
        training diverges.
    DataError
        If data or weights cannot be used, or a file cannot be written.
    Interrupted
        After Ctrl-C; the state is saved.
    """
    check_device(call.device)
    results = call.folder / "results.json"
    if resume:
        _check_resumed(recipe, call.folder)
    if resume and results.exists():
        return _read_results(results)
    saved = resume and (call.folder / "checkpoints" / LATEST).exists()
    if not saved:
        check_start(recipe, call.init)
    stage = Stage(recipe, call)
    if saved:
        _read_start(stage)
    else:
        stage.begin()  # before there is a folder: what is refused leaves nothing behind
        _write_start(stage, new=not resume)
    _compile(call)
    run = StageRun(stage, saved)
    try:
        with deferred_interrupt() as interrupted:
            run.all_steps(interrupted)
            return run.finish()
    finally:
        run.log.close()


def _read_results(path: Path) -> dict[str, Any]:
    """What a finished run found."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and "mean_iou" in found:
            return found
    except ValueError:
        pass
    raise DataError(
        f"expected the results of a finished run in {path}; it is damaged. Delete that file: "
        "--resume writes it again."
    )


def _compile(call: Call) -> None:
    """Compile kernels with a word about it, rather than in the middle of the first step."""
    if call.device == "cpu":
        warm_up("recipes", tiny_step, call.progress)


def _check_resumed(recipe: Recipe, folder: Path) -> None:
    if not (folder / RECIPE).exists():
        raise ConfigError(
            f"expected a run to resume in {folder}; there is no {RECIPE}. Check --out, or start a "
            "new run, without --resume."
        )
    kept = Recipe.read(folder / RECIPE)
    if kept != recipe:
        raise ConfigError(
            f"expected the recipe that the run in {folder} was started with; got another one "
            f"({'; '.join(recipe.differences(kept))}). Use the same settings, or start a new run "
            "with another --out."
        )


def _identity(stage: Stage) -> dict[str, Any]:
    """What the images of a run are known by."""
    told = {}
    for part, images in zip(("train", "validation"), stage.images, strict=True):
        names = hashlib.sha256("\n".join(images.names).encode()).hexdigest()
        told[part] = {"images": len(images), "names": names}
    return told


def _write_start(stage: Stage, new: bool) -> None:
    folder, parts = stage.call.folder, stage.parts
    if new:
        make_run_folder(folder, RECIPE)
        write_text(folder / RECIPE, stage.recipe.to_toml())
    if parts.front is not None:  # the run's own copy: it may go on when the file has moved
        save_checkpoint(folder / "checkpoints" / FRONT, parts.front.state_dict())
    start = None if stage.start is None else stage.start._asdict()
    told = {"images": _identity(stage), "init": str(stage.call.init), "weights": start}
    write_text(folder / "start.json", json.dumps(told, indent=2) + "\n")


def _read_start(stage: Stage) -> None:
    """Put back what a run started from, and refuse other images."""
    folder, front = stage.call.folder, stage.parts.front
    try:
        told = json.loads((folder / "start.json").read_text(encoding="utf-8"))
        kept = told["images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"expected {folder / 'start.json'} to say what the run started from; it cannot be "
            f"read: {error}. Start a new run with another --out."
        ) from None
    if kept != _identity(stage):
        raise DataError(
            "expected the images that the run was started with; got others (their names or their "
            "number differ). Check --data, or start a new run with another --out."
        )
    if front is not None:
        front.load_state_dict(load_checkpoint(folder / "checkpoints" / FRONT)[0])
    stage.move()


class StageRun:
    """A run of a recipe in progress."""

    def __init__(self, stage: Stage, saved: bool) -> None:
        self.stage, self.recipe, self.call = stage, stage.recipe, stage.call
        self.network = stage.parts.learning
        self.optimizer = make_optimizer(self.recipe, self.network)
        self.schedule = schedule_of(self.recipe)
        self.standing = Standing()
        self.latest = self.call.folder / "checkpoints" / LATEST
        self._begun = time.perf_counter()
        manual_seed(self.recipe.seed)  # dropout; whatever ran before
        if saved:
            SavedState(self.latest, self.standing).put_back(self.network, self.optimizer)
        self.log = Log(self.call.folder / "log.jsonl", self.standing.log_bytes)
        self.forecast: dict[str, Any] = {}

    def save(self) -> None:
        """Write the latest checkpoint."""
        self.standing.log_bytes = self.log.settle()
        self.seconds()
        save_state(self.latest, self.standing, self.network, self.optimizer)

    def seconds(self) -> float:
        """Seconds that the run has taken, over all sittings."""
        now = time.perf_counter()
        self.standing.seconds += now - self._begun
        self._begun = now
        return self.standing.seconds

    def all_steps(self, interrupted: threading.Event) -> None:
        """Run from where the run stands to its last step."""
        standing, recipe = self.standing, self.recipe
        if standing.step == recipe.steps:
            return
        self.forecast = self.stage.forecast(self.stage.seconds_per_step())
        self.call.say(told_forecast(recipe, self.forecast))
        source = self.stage.source()
        with tqdm(
            total=recipe.steps,
            initial=standing.step,
            desc=recipe.title[:40] or "steps",
            unit="step",
            disable=not self.call.progress,
        ) as bar:
            for batch in source.steps(range(standing.step, recipe.steps)):
                self._step(batch)
                if standing.recent:
                    bar.set_postfix(loss=f"{np.mean(standing.recent):.3f}", refresh=False)
                bar.update()
                last = standing.step == recipe.steps
                if not last and standing.step % recipe.validate_every == 0:
                    self._validate(source)
                if last or interrupted.is_set() or standing.step % recipe.save_every == 0:
                    self.save()
                if interrupted.is_set() and not last:
                    raise Interrupted(self._how_to_go_on())

    def _step(self, batch: Batch) -> None:
        """One step: gradients, new weights, log."""
        standing = self.standing
        self.optimizer.lr_factor = self.schedule(standing.step)
        standing.step += 1
        self.network.train()
        loss = batch_gradient(self.network, batch, self.recipe.iter_size)
        if loss is None:
            standing.skipped += 1
            self.log.write(step=standing.step, skipped=True)
            return
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._record(loss)

    def _record(self, loss: float) -> None:
        """Log a step's loss; warn of a bad first one, stop where it makes no sense to go on."""
        standing, count = self.standing, len(self.stage.classes)
        wrong = standing.take_in(loss, count)
        if math.isfinite(loss):
            lr = self.recipe.lr * self.optimizer.lr_factor
            self.log.write(step=standing.step, loss=loss, lr=lr, seconds=round(self.seconds(), 3))
        if wrong:
            raise ConfigError(self._gone_astray(wrong))
        if standing.step == 1 and loss > 2 * math.log(count) + 1:
            self.call.say(
                f"The first loss is {loss:.3g}. A network that knows nothing has ln {count} = "
                f"{math.log(count):.2f}: much more means weights that do not belong to these "
                "images (blue, green, red, minus the mean?) or labels of other classes."
            )

    def _gone_astray(self, loss: str) -> str:
        recipe, count = self.recipe, len(self.stage.classes)
        size = f"The learning rate is {recipe.lr:g}"
        if recipe.optimizer == "sgd":
            size = (
                f"The learning rate over 1 - momentum is {recipe.heat:.3g} (the paper's: 0.01 for "
                "front ends and context, 0.001 or less for both together)"
            )
        return (
            f"expected a loss that falls from ln {count} = {math.log(count):.2f}; got {loss} at "
            f"step {self.standing.step}. {size}. Make that smaller by a new run: "
            f"--set lr={recipe.lr / 10:g} --out another-folder."
        )

    def _validate(self, source: Source) -> Score:
        """Score the network on the validation images, and log it."""
        score = score_network(self.network, source.scored(), self.stage.classes)
        self.log.write(
            step=self.standing.step,
            validation_mean_iou=None if math.isnan(score.mean_iou) else score.mean_iou,
        )
        return score

    def _how_to_go_on(self) -> str:
        folder, features = shlex.quote(str(self.call.folder)), self.call.features
        return (
            f"stopped after step {self.standing.step:,} of {self.recipe.steps:,}; all is saved. Go "
            f"on with: {program()} recipe run {folder}/{RECIPE} --resume --out {folder}"
            + "".join(f" --data {shlex.quote(str(path))}" for path in self.call.data)
            + (f" --features {shlex.quote(str(features))}" if features else "")
            + (f" --device {self.call.device}" if self.call.device != "cpu" else "")
        )

    def finish(self) -> dict[str, Any]:
        """Write the network and what it reached."""
        recipe, stage, folder = self.recipe, self.stage, self.call.folder
        score = self._validate(stage.source())
        note: dict[str, Any] = {"plan": stage.parts.plan.to_note(), "recipe": recipe.to_dict()}
        if stage.parts.plan.published:
            note["published"] = describe(stage.parts.plan.published)
        save_checkpoint(folder / RESULT, stage.parts.whole(), note)
        results = {
            "title": recipe.title,
            "steps": recipe.steps,
            "skipped_batches": self.standing.skipped,
            "scored_on": recipe.validation,
            "scored_images": len(spread(len(stage.images.validation), recipe.validate_images)),
            **score.to_dict(),
            "network": str(folder / RESULT),
            "forecast": self.forecast,
            "threads": get_num_threads(),
            "versions": versions(),
            "seconds": round(self.seconds(), 3),
        }
        write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
        return results
