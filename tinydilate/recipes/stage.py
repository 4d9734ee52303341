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
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tinydilate.autograd import no_grad, tensor
from tinydilate.data.crops import Batch, feature_labels
from tinydilate.device import check_device
from tinydilate.errors import ConfigError, DataError, listed, program
from tinydilate.functional.dropping import manual_seed
from tinydilate.io.checkpoint import load_checkpoint, save_checkpoint
from tinydilate.io.conversion import describe
from tinydilate.io.files import write_text
from tinydilate.metrics import Score
from tinydilate.recipes.batches import (
    CropSource,
    Source,
    spread,
)
from tinydilate.recipes.preparing import Call, Stage, told_forecast
from tinydilate.recipes.starting import RESULT, check_start
from tinydilate.recipes.stepping import (
    batch_gradient,
    make_optimizer,
    schedule_of,
    score_network,
    tiny_step,
)
from tinydilate.recipes.stored import canvas_input
from tinydilate.recipes.table import Recipe
from tinydilate.running import (
    Interrupted,
    SavedState,
    Sitting,
    Standing,
    astray,
    deferred_interrupt,
    latest_of,
    make_run_folder,
    read_results,
)
from tinydilate.warmup import warm_up

RECIPE = "recipe.toml"
FRONT = "front.safetensors"


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
        return read_results(results, "mean_iou")
    saved = resume and latest_of(call.folder).exists()
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
        run.get_ready()
        with deferred_interrupt() as interrupted:
            run.all_steps(interrupted)
            return run.finish()
    finally:
        run.sitting.log.close()


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
    """What the images of a run are known by, and what their labels mean."""
    classes = stage.parts.plan.classes
    told: dict[str, Any] = {
        "classes": list(classes.names),
        "colours": [list(colour) for colour in classes.palette],
        "mean pixel": list(classes.mean),
    }
    for part, images in zip(("train", "validation"), stage.images, strict=True):
        names = hashlib.sha256("\n".join(images.names).encode()).hexdigest()
        told[part] = {"images": len(images), "names": names}
    return told


def _write_start(stage: Stage, new: bool) -> None:
    folder, parts = stage.call.folder, stage.parts
    if new:
        make_run_folder(folder, RECIPE)
        write_text(folder / RECIPE, stage.recipe.to_toml())
    (folder / "checkpoints").mkdir(exist_ok=True)  # of a run that goes on it may have been deleted
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
    now = _identity(stage)
    other = [what for what in now if not isinstance(kept, dict) or kept.get(what) != now[what]]
    if other:
        raise DataError(
            "expected the images that the run was started with; got others (what differs: "
            f"{', '.join(other)}). Check --data, or start a new run with another --out."
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
        manual_seed(self.recipe.seed)  # dropout; whatever ran before
        if saved:
            latest = latest_of(self.call.folder)
            SavedState(latest, self.standing).put_back(self.network, self.optimizer)
        self.sitting = Sitting(self.call.folder, self.standing)
        self.forecast: dict[str, Any] = {}
        self.source: Source

    def get_ready(self) -> None:
        """Say what is coming, and store the features that are missing."""
        both = {*self.stage.images.train.names} & {*self.stage.images.validation.names}
        if both:
            self.call.say(
                f"{len(both)} of {len(self.stage.images.validation)} validation images are trained "
                f"on as well ({listed(sorted(both), 3)}): scores on them say little about others."
            )
        if self.standing.step < self.recipe.steps:
            self.forecast = self.stage.forecast(self.stage.seconds_per_step())
            self.call.say(told_forecast(self.recipe, self.forecast))
        try:
            self.source = self.stage.source()
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped while features were stored; those that are done are kept. Go on with the "
                "same command and --resume."
            ) from None

    def all_steps(self, interrupted: threading.Event) -> None:
        """Run from where the run stands to its last step."""
        standing, recipe = self.standing, self.recipe
        with tqdm(
            total=recipe.steps,
            initial=standing.step,
            desc=recipe.title[:40] or "steps",
            unit="step",
            disable=not self.call.progress,
        ) as bar:
            for batch in self.source.steps(range(standing.step, recipe.steps)):
                self._step(batch)
                if standing.recent:
                    bar.set_postfix(loss=f"{np.mean(standing.recent):.3f}", refresh=False)
                bar.update()
                last = standing.step == recipe.steps
                if not last and standing.step % recipe.validate_every == 0:
                    self._validate()
                if last or interrupted.is_set() or standing.step % recipe.save_every == 0:
                    self.sitting.save(self.network, self.optimizer)
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
            self.sitting.skip()
            return
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._record(loss)

    def _record(self, loss: float) -> None:
        """Log a step's loss; warn of a bad first one, stop where it makes no sense to go on."""
        standing, count = self.standing, len(self.stage.classes)
        wrong = self.sitting.take_in(loss, self.recipe.lr * self.optimizer.lr_factor, count)
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
                f"The learning rate over 1 - momentum is {recipe.heat:.3g} (the paper's: 0.01 at "
                "most for front ends and context, 0.001 or less for both together)"
            )
        return (
            f"{astray(loss, f'step {self.standing.step}', count)} {size}. Make that smaller by a "
            f"new run: --set lr={recipe.lr / 10:g} --out another-folder."
        )

    def _validate(self) -> Score:
        """Score the network on the validation images, and log it."""
        score = score_network(self.network, self.source.scored(), self.stage.classes)
        self.sitting.log.write(
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
        score = self._validate()
        note: dict[str, Any] = {"plan": stage.parts.plan.to_note(), "recipe": recipe.to_dict()}
        if stage.parts.plan.published:
            note["published"] = describe(stage.parts.plan.published)
        save_checkpoint(folder / RESULT, stage.parts.whole(), note)
        found = {
            "title": recipe.title,
            "steps": recipe.steps,
            "skipped_batches": self.standing.skipped,
            "scored_on": recipe.validation,
            "scored_images": len(spread(len(stage.images.validation), recipe.validate_images)),
            **score.to_dict(),
            "network": str(folder / RESULT),
            "forecast": self.forecast,
        }
        return self.sitting.finish(found)
