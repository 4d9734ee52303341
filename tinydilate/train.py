"""Training as in the paper: front end, then context on top of it, then both together.

    stage     starts from            learns
    front     first weights          the front end (section 4)
    context   front, identity        the context module, on the frozen front end (section 3)
    joint     context                both
    alone     front                  the front end, for as many steps as context and joint together

The last one is the comparison: what would the same number of steps have brought without context?
Every stage starts from the checkpoint file of another one, so nothing hidden is handed on.

**A run is defined by steps, not by seconds**, and everything in it follows from its configuration:
the scenes from the seed, the scenes of a batch from (seed, stage, step). So a run can be killed at
any moment and goes on from its latest checkpoint, bit for bit; see `tinydilate.running`.

A run folder holds config.toml, log.jsonl, checkpoints/, and at the end results.json, curves.png,
predictions.png and example.png, a scene to try ``tinydilate predict`` on.
"""

from __future__ import annotations

import shlex
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tinydilate import functional as F
from tinydilate import optim
from tinydilate.autograd import Tensor, no_grad
from tinydilate.config import Config
from tinydilate.data import digits
from tinydilate.data.sets import Data, Scenes, batch_members, check_data
from tinydilate.device import Array, check_device, cuda_empty_cache, write
from tinydilate.errors import ConfigError, DataError, program
from tinydilate.functional.dropping import manual_seed
from tinydilate.io.files import write_text
from tinydilate.io.images import write_rgb
from tinydilate.io.logbook import read_log
from tinydilate.models import FrontEndWithContext
from tinydilate.predict import DemoRecipe, beside, label_maps, load_network, save_network, score
from tinydilate.predict.checkpoints import train_again
from tinydilate.recording import Recording, record
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

# ---- data ------------------------------------------------------------------------------------


def make_scenes(config: Config, progress: bool = True) -> Data:
    """The scenes of handwritten digits that a configuration asks for."""
    counts = (config.train_scenes, config.validation_scenes, config.test_scenes)
    # The run's seed makes its training scenes; it is scored on the same ones as every other run.
    seeds = (config.seed, 0, 0)
    train, validation, test = (
        Scenes(*digits.scenes(split, count, seed, size=config.scene_size, progress=progress))
        for split, count, seed in zip(digits.SPLITS, counts, seeds, strict=True)
    )
    return Data(train, validation, test, digits.CLASSES)


# ---- stages ----------------------------------------------------------------------------------


class Stage(NamedTuple):
    """One stretch of training: where it starts, what learns, for how long and how fast."""

    name: str
    start: str  # the stage whose checkpoint it starts from; "" for first weights
    context: bool  # whether the network has a context module
    frozen: bool  # whether the front end stays as it is
    steps: int
    lr: float
    schedule: str

    @property
    def title(self) -> str:
        """Name for people."""
        return {"front": "front end", "alone": "front end alone"}.get(self.name, self.name)


def stages_of(config: Config) -> list[Stage]:
    """The stages of a run, in order."""
    c = config
    alone = c.context_steps + c.joint_steps  # as many steps as its competitor takes after stage 1
    stages = [  # name, start, context, frozen, steps, lr, schedule
        Stage("front", "", False, False, c.front_steps, c.front_lr, c.front_schedule),
        Stage("context", "front", True, True, c.context_steps, c.context_lr, c.context_schedule),
        Stage("joint", "context", True, False, c.joint_steps, c.joint_lr, c.joint_schedule),
        Stage("alone", "front", False, False, alone, c.alone_lr, c.alone_schedule),
    ]
    return stages if c.comparison else stages[:3]


def schedule_of(config: Config, stage: Stage) -> optim.Schedule:
    """Factor on the stage's learning rate, by the number of steps done."""
    if stage.schedule == "poly":
        return optim.poly(stage.steps, config.poly_power)
    if stage.schedule == "step":
        return optim.stepped(config.step_every, config.step_gamma)
    return optim.constant()


def recipe_of(
    config: Config, context: bool, classes: tuple[str, ...] = digits.CLASSES
) -> DemoRecipe:
    """What is needed to build a network for the digits and to feed it."""
    palette = tuple((int(r), int(g), int(b)) for r, g, b in digits.PALETTE)
    return DemoRecipe(config, context, classes, palette, digits.MEAN, digits.STD)


def make_optimizer(config: Config, stage: Stage, network: FrontEndWithContext) -> optim.Optimizer:
    """The stage's optimiser; biases learn at a rate of their own and do not decay."""
    named = [
        (name, parameter)
        for name, parameter in network.named_parameters()
        if not (stage.frozen and name.startswith("front_end."))
    ]
    groups = optim.weights_and_biases(named, stage.lr, config.weight_decay, config.bias_rate)
    if config.optimizer == "sgd":
        return optim.SGD(groups, momentum=config.momentum)
    return optim.Adam(groups)


def batch_loss(
    network: FrontEndWithContext,
    images: Array | Tensor,
    labels: Array | Tensor,
    frozen: bool = False,
) -> Tensor:
    """Cross entropy at full resolution, mean over the pixels that count.

    ``frozen`` keeps the graph out of the front end: its maps are then nothing but input.
    """
    inputs = beside(network, images)
    if frozen:
        with no_grad():
            maps = network.front_end(inputs)  # (N, classes, h, w)
        height, width = inputs.shape[2:]
        scores = network.to_pixels(network.context(maps), (height, width))  # type: ignore[misc]
    else:
        scores = network(inputs)  # (N, classes, H, W)
    return F.cross_entropy(scores, labels, ignore_index=digits.IGNORE)  # type: ignore[no-any-return]


class Gradients:
    """The loss and the gradients of one batch after the other, all of the same size.

    On a GPU the launches of the first are recorded, and repeated for the others without Python, on
    memory that their numbers are written to; see `tinydilate.recording`.
    """

    def __init__(
        self, network: FrontEndWithContext, optimizer: optim.Optimizer, frozen: bool
    ) -> None:
        self.network, self.optimizer, self.frozen = network, optimizer, frozen
        self.batch: tuple[Tensor, Tensor] | None = None  # on the GPU
        self.recorded: Recording

    def __call__(self, images: Array, labels: Array) -> Tensor:
        """(N, 1, H, W), (N, H, W) -> (), the loss."""
        if next(self.network.parameters()).device == "cpu":
            return self._of(images, labels)
        if self.batch is None:
            whole = labels.astype(np.int64)  # so the loss converts none while it is recorded
            batch = beside(self.network, images), beside(self.network, whole)
            self.recorded = record(lambda: self._of(*batch))
            self.batch = batch
        for numbers, there in zip((images, labels), self.batch, strict=True):
            write(numbers, there.data)
        loss: Tensor = self.recorded()
        return loss

    def _of(self, images: Array | Tensor, labels: Array | Tensor) -> Tensor:
        loss = batch_loss(self.network, images, labels, self.frozen)
        self.optimizer.zero_grad()
        loss.backward()
        return loss


def tiny_steps(config: Config) -> None:
    """One step of every stage on two images of 16 x 16 pixels: calls every kernel of a run."""
    images = np.random.default_rng(0).standard_normal((2, 1, 16, 16), np.float32)
    labels = np.zeros((2, 16, 16), np.uint8)
    for stage in stages_of(config)[:3]:
        network = recipe_of(config, stage.context).build()
        batch_loss(network, images, labels, stage.frozen).backward()
        make_optimizer(config, stage, network).step()
        label_maps(network, images)


# ---- a run -----------------------------------------------------------------------------------


def train(
    config: Config | None,
    folder: Path | str,
    resume: bool = False,
    data: Data | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run every stage of a training run and write its results.

    Parameters
    ----------
    config : Config
        May be None with ``resume``: the run folder keeps it.
    folder : path
        The run folder: a new one, or with ``resume`` that of an interrupted run.
    resume : bool
        Go on with the run in ``folder``.
    data : Data, optional
        Scenes of handwritten digits, as the configuration says, if not given.
    progress : bool
        Show bars on stderr.

    Returns
    -------
    dict
        What results.json holds.

    Raises
    ------
    ConfigError
        If the folder already holds a run, or none to resume, or one of another configuration; or
        if training diverges.
    DataError
        If the data cannot be used or a file cannot be written.
    DeviceError
        If the configuration asks for a GPU and there is none.
    Interrupted
        After Ctrl-C; the state is saved.
    """
    folder = Path(folder)
    if config is not None:
        check_device(config.device)  # before a folder is made
    config = _resumed_config(folder, config) if resume else _new_run(folder, config or Config())
    results = folder / "results.json"
    if results.exists():
        return read_results(results, "networks")
    data = make_scenes(config, progress) if data is None else data
    check_data(data)
    if config.device == "cpu":  # on a GPU each kernel is compiled by its first launch
        warm_up(f"training-{config.optimizer}", lambda: tiny_steps(config), progress)
    run = Run(config, folder, data, progress)
    try:
        with deferred_interrupt() as interrupted:
            run.all_stages(interrupted)
            return run.finish()
    finally:
        run.sitting.log.close()


def _new_run(folder: Path, config: Config) -> Config:
    """Make the run folder and put the configuration there."""
    make_run_folder(folder, "config.toml")
    write_text(folder / "config.toml", config.to_toml())
    return config


def _resumed_config(folder: Path, config: Config | None) -> Config:
    """The configuration of the run in a folder, which is the given one if any is given."""
    if not (folder / "config.toml").exists():
        raise ConfigError(
            f"expected a run to resume in {folder}; there is no config.toml. Check --out, or start "
            "a new run in a new folder, without --resume."
        )
    kept = Config.read(folder / "config.toml")
    if config is not None and config != kept:
        raise ConfigError(
            f"expected the configuration that the run in {folder} was started with; got another "
            f"({'; '.join(config.differences(kept))}). Leave these options out, or start a new run "
            "with another --out."
        )
    return kept


class Run:
    """A training run in progress."""

    def __init__(self, config: Config, folder: Path, data: Data, progress: bool) -> None:
        self.config, self.folder, self.data, self.bars = config, folder, data, progress
        self.stages = stages_of(config)
        self.checkpoints = folder / "checkpoints"
        self.checkpoints.mkdir(exist_ok=True)  # of a run that goes on it may have been deleted
        self.standing = Standing()
        self.network: FrontEndWithContext
        self.optimizer: optim.Optimizer
        if latest_of(folder).exists():
            self._load()
        else:
            self._begin_stage()
        self.sitting = Sitting(folder, self.standing)

    # Beginning, saving and loading.

    def recipe(self, stage: Stage) -> DemoRecipe:
        """What is needed to build a stage's network and to feed it."""
        return recipe_of(self.config, stage.context, self.data.classes)

    def path(self, stage: str) -> Path:
        """The checkpoint of a finished stage."""
        return self.checkpoints / f"{stage}.safetensors"

    def _begin_stage(self) -> None:
        """Build the stage's network and optimiser, and load what it starts from."""
        stage = self.stages[self.standing.stage]
        manual_seed(self.config.seed)
        self.network = self.recipe(stage).build().to(self.config.device)
        if stage.start:
            start = load_network(self.path(stage.start)).network.state_dict()
            self.network.load_state_dict(start, strict=False)
        self.optimizer = make_optimizer(self.config, stage, self.network)
        self.gradients = Gradients(self.network, self.optimizer, stage.frozen)
        if self.config.device == "cuda":  # a recording takes none of what the stage before left
            cuda_empty_cache()
        self.schedule = schedule_of(self.config, stage)
        self.standing.step, self.standing.recent = 0, []

    def _load(self) -> None:
        saved = SavedState(latest_of(self.folder), self.standing)
        self._check_finished()
        if self.standing.stage == len(self.stages):
            return
        step, recent = self.standing.step, self.standing.recent
        self._begin_stage()
        self.standing.step, self.standing.recent = step, recent
        saved.put_back(self.network, self.optimizer)

    def _check_finished(self) -> None:
        """Refuse to go on without the networks of finished stages: all are scored in the end."""
        done = [self.path(stage.name) for stage in self.stages[: self.standing.stage]]
        missing = [str(path) for path in done if not path.exists()]
        if missing:
            raise DataError(
                "expected the networks of the stages that this run has finished; there is no "
                f"{', no '.join(missing)}. {train_again(self.folder)}"
            )

    # Stepping.

    def all_stages(self, interrupted: threading.Event) -> None:
        """Run from where the run stands to the end of the last stage."""
        state = self.standing
        while state.stage < len(self.stages):
            stage = self.stages[state.stage]
            title = f"{state.stage + 1}/{len(self.stages)} {stage.title}"
            with tqdm(
                total=stage.steps,
                initial=state.step,
                desc=title,
                unit="step",
                disable=not self.bars,
            ) as bar:
                while state.step < stage.steps:
                    self._step(stage, bar)
                    if interrupted.is_set():
                        self.sitting.save(self.network, self.optimizer)
                        raise Interrupted(self._how_to_go_on(stage))
                    if state.step % self.config.save_every == 0:
                        self.sitting.save(self.network, self.optimizer)
            save_network(self.path(stage.name), self.network, self.recipe(stage))
            state.stage += 1
            if state.stage < len(self.stages):
                self._begin_stage()
            self.sitting.save(self.network, self.optimizer)

    def _step(self, stage: Stage, bar: Any) -> None:
        """One step: batch, loss, gradients, new weights, log."""
        state, config = self.standing, self.config
        images, labels = self.data.train
        seed, number = config.seed, state.stage
        members = batch_members(seed, number, state.step, config.batch, len(images))
        state.step += 1
        if (labels[members] == digits.IGNORE).all():
            self.sitting.skip(stage=stage.name)
        else:
            loss = self.gradients(images[members], labels[members])
            self.optimizer.lr_factor = self.schedule(state.step - 1)
            self.optimizer.step()
            self._record(stage, loss.item())
            bar.set_postfix(loss=f"{np.mean(state.recent):.3f}", refresh=False)
        bar.update()
        if state.step % config.validate_every == 0 or state.step == stage.steps:
            found = score(self.network, *self.data.validation, self.data.classes)
            self.sitting.log.write(
                stage=stage.name, step=state.step, validation_mean_iou=found.mean_iou
            )

    def _record(self, stage: Stage, loss: float) -> None:
        """Log a step's loss, and stop where it makes no sense to go on."""
        lr = stage.lr * self.optimizer.lr_factor
        wrong = self.sitting.take_in(loss, lr, len(self.data.classes), stage=stage.name)
        if wrong:
            raise ConfigError(self._gone_astray(stage, wrong))

    def _gone_astray(self, stage: Stage, loss: str) -> str:
        count = len(self.data.classes)
        usual = getattr(Config(), f"{stage.name}_lr")
        size = f"Its learning rate is {stage.lr:g}"
        if self.config.optimizer == "sgd":  # what a gradient adds up to in the end
            size = f"Its learning rate over 1 - momentum is {self._final_size(stage):.3g}"
        told = astray(loss, f"step {self.standing.step} of stage {stage.name}", count)
        return (
            f"{told} {size}: make that smaller, for example by a new run with "
            f"--{stage.name}-lr {min(usual, stage.lr / 10):g} --out another-folder."
        )

    def _final_size(self, stage: Stage) -> float:
        return stage.lr / (1 - self.config.momentum)

    def _how_to_go_on(self, stage: Stage) -> str:
        again = f"{program()} train --resume --out {shlex.quote(str(self.folder))}"
        return (
            f"stopped after step {self.standing.step} of {stage.steps} of stage {stage.name}; all "
            f"is saved. Go on with: {again}"
        )

    # Finishing.

    def finish(self) -> dict[str, Any]:
        """Score every stage's network on the test scenes; write results and pictures."""
        found = {stage.name: self._trained(stage) for stage in self.stages}
        networks = {stage.name: self._scored(stage, found[stage.name]) for stage in self.stages}
        front = "alone" if self.config.comparison else "front"
        steps = {name: f"{network['steps']} steps" for name, network in networks.items()}
        self._draw(
            {
                f"front end,\n{steps[front]}": found[front],
                f"front end + context,\n{steps['joint']}": found["joint"],
            }
        )
        results = {
            "networks": networks,
            "gain": networks["joint"]["mean_iou"] - networks[front]["mean_iou"],
            "compared_with": front,
            "classes": list(self.data.classes),
            "skipped_batches": self.standing.skipped,
            "config": self.config.to_dict(),
        }
        return self.sitting.finish(results)

    def _trained(self, stage: Stage) -> FrontEndWithContext:
        return load_network(self.path(stage.name), device=self.config.device).network

    def _scored(self, stage: Stage, network: FrontEndWithContext) -> dict[str, Any]:
        bar = f"scoring {stage.title}" if self.bars else ""
        found = score(network, *self.data.test, self.data.classes, progress=bar)
        return {
            "title": stage.title,
            "context": stage.context,
            "steps": stage.steps + self._steps_before(stage),
            "parameters": sum(parameter.size for parameter in network.parameters()),
            **found.to_dict(),
        }

    def _draw(self, networks: dict[str, FrontEndWithContext]) -> None:
        """Write the pictures: curves, what the networks say of six scenes, one scene as it is."""
        from tinydilate.see.training import draw_curves, draw_predictions

        folder, classes = self.folder, self.data.classes
        images, truth = self.data.test.images[:6], self.data.test.labels[:6]
        greys = digits.grey(images[:, 0])  # (6, H, W)
        labels = {title: label_maps(network, images) for title, network in networks.items()}
        draw_curves(folder / "curves.png", read_log(self.sitting.log.path), self.stages, classes)
        draw_predictions(folder / "predictions.png", greys, truth, labels, classes)
        write_rgb(folder / "example.png", np.rint(greys[0] * 255).astype(np.uint8))

    def _steps_before(self, stage: Stage) -> int:
        """Steps of the stages that a stage builds on."""
        by_name = {other.name: other for other in self.stages}
        steps = 0
        while stage.start:
            stage = by_name[stage.start]
            steps += stage.steps
        return steps
