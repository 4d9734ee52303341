"""Networks and their weights in files: those of a run, and published ones.

A network checkpoint says everything that is needed to use it: which network to build, what the
classes are called and coloured, and how its input images are prepared. Checkpoints of the demo say
it in full (`DemoRecipe`). A converted file of published weights names the network
(`PublishedRecipe`), and `models.PUBLISHED` knows the rest. What a recipe's run leaves has a plan
(`PlannedRecipe`).
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydilate import models, nn
from tinydilate.config import Config
from tinydilate.errors import ConfigError, DataError, ShapeError, program
from tinydilate.io.checkpoint import load_checkpoint, save_checkpoint
from tinydilate.io.weights import Weights, load_weights, read_weights
from tinydilate.models import FrontEndWithContext

NETWORKS = ("joint", "context", "alone", "front")  # stages whose networks a run keeps; best first


class DemoRecipe(NamedTuple):
    """What a checkpoint of a run says about its network, beside the weights."""

    config: Config
    context: bool  # whether a context module follows the front end
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # red, green, blue of each class
    mean: float  # network input = (grey level in [0, 1] - mean) / std
    std: float

    @property
    def channels(self) -> int:
        """Images are read in grey."""
        return 1

    @property
    def tile(self) -> None:
        """No published file says how large the pieces are that it is given."""
        return None

    def build(self) -> FrontEndWithContext:
        """The network, with first weights from the configuration's seed."""
        config, count = self.config, len(self.classes)
        front = models.small_front_end(count, rng=np.random.default_rng([config.seed, 0]))
        if not self.context:
            return FrontEndWithContext(front)
        context = models.context(
            count,
            config.variant,
            dilations=config.dilations,
            noise=config.noise,
            rng=np.random.default_rng([config.seed, 1]),
        )
        return FrontEndWithContext(front, context)

    def prepare(self, levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Grey levels (1, H, W) in [0, 1] -> what the network takes, (1, H, W)."""
        return (levels - np.float32(self.mean)) / np.float32(self.std)


class PublishedRecipe(NamedTuple):
    """What a file of published weights says: which of the networks it belongs to."""

    published: models.Published
    part: str = "whole"  # or "front end"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, by number."""
        return self.published.classes.names

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """Red, green, blue of each class."""
        return self.published.classes.palette

    @property
    def channels(self) -> int:
        """Images are read in colour."""
        return 3

    @property
    def tile(self) -> tuple[int, int]:
        """Pixels that the original code gives the network at a time, border included."""
        return self.published.input_size

    def prepare(self, levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Red, green, blue (3, H, W) in [0, 1] -> blue, green, red, 0 to 255 minus the mean."""
        return _blue_green_red(levels, self.published.classes.mean)


class PlannedRecipe(NamedTuple):
    """What the result of a recipe's run says: the plan of its network."""

    plan: models.Plan

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, by number."""
        return self.plan.classes.names

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """Red, green, blue of each class."""
        return self.plan.classes.palette

    @property
    def channels(self) -> int:
        """Images are read in colour."""
        return 3

    @property
    def tile(self) -> None:
        """No published file says how large the pieces are that it is given."""
        return None

    @property
    def border(self) -> int:
        """Pixels that the network needs around the image on each side."""
        return self.plan.cells()[0]

    @property
    def input_size(self) -> tuple[int, int]:
        """Of an input with its border that suits the network, (H, W); any other does as well."""
        border, stride = self.plan.cells()
        return (2 * border + 16 * stride, 2 * border + 16 * stride)

    def prepare(self, levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Red, green, blue (3, H, W) in [0, 1] -> blue, green, red, 0 to 255 minus the mean."""
        return _blue_green_red(levels, self.plan.classes.mean)


def _blue_green_red(
    levels: NDArray[np.float32], mean: tuple[float, float, float]
) -> NDArray[np.float32]:
    if levels.ndim != 3 or levels.shape[0] != 3:
        raise ShapeError(
            f"expected an image (3, H, W): red, green, blue; got {levels.shape}. Of (H, W, 3) take "
            ".transpose(2, 0, 1)."
        )
    if levels.dtype.kind != "f" or not levels.max(initial=0) <= 2:  # a sharpened one may pass 1
        raise DataError(
            f"expected levels in [0, 1]; got {levels.dtype} up to {levels.max(initial=0):g}. "
            "Divide by 255, or read the file with tinydilate.io.images.read_image."
        )
    return levels[::-1] * np.float32(255) - np.array(mean, np.float32)[:, None, None]


class Trained(NamedTuple):
    """A network with its weights."""

    network: FrontEndWithContext
    recipe: DemoRecipe
    path: Path


class TrainedPublished(NamedTuple):
    """A published network with its weights."""

    network: nn.Sequential
    recipe: PublishedRecipe
    path: Path


class TrainedPlanned(NamedTuple):
    """The network that a recipe's run left."""

    network: nn.Sequential
    recipe: PlannedRecipe
    path: Path


AnyTrained = Trained | TrainedPublished | TrainedPlanned

# ---- checkpoints of runs ---------------------------------------------------------------------


def save_network(path: Path | str, network: nn.Module, recipe: DemoRecipe) -> None:
    """Write a network's weights and its recipe to one file."""
    note = {**recipe._asdict(), "config": recipe.config.to_dict()}
    save_checkpoint(path, network.state_dict(), {"network": note})


def load_network(path: Path | str, name: str | None = None, device: str = "cpu") -> Trained:
    """Read a network from its checkpoint, or from the folder of the run that trained it.

    Parameters
    ----------
    path : path of a file or of a run folder
    name : {"joint", "context", "alone", "front"}, optional
        Which of a run's networks; the first of these that is there by default.
    device : {"cpu", "cuda"}
        Where it will compute, which need not be where it was trained.

    Raises
    ------
    DataError
        If there is none, or the file is damaged.
    DeviceError
        If the device cannot be used.
    """
    path = _network_file(Path(path), name)
    arrays, note = load_checkpoint(path)
    try:
        fields = dict(note["network"])
        recipe = DemoRecipe(
            Config.of(fields.pop("config"), str(path)),
            classes=tuple(fields.pop("classes")),
            palette=tuple(tuple(colour) for colour in fields.pop("palette")),
            **fields,
        )
    except (TypeError, KeyError, ValueError):
        raise DataError(
            f"expected the checkpoint of a trained network; {path} holds other things. Name a run "
            "folder, or a file such as checkpoints/joint.safetensors in it."
        ) from None
    network = recipe.build()
    network.load_state_dict(arrays)
    return Trained(network.to(device).eval(), recipe, path)


def _network_file(path: Path, name: str | None) -> Path:
    result = path / "network.safetensors"  # of a recipe
    if name is None and result.exists():
        return result
    if not path.is_dir():
        if name is not None:
            raise ConfigError(
                f"expected a run folder to take the network {name!r} from; got the file {path}. "
                "Leave the name out."
            )
        return path
    for candidate in NETWORKS if name is None else (name,):
        file = path / "checkpoints" / f"{candidate}.safetensors"
        if file.exists():
            return file
    raise DataError(_no_network(path, name))


def _no_network(path: Path, name: str | None) -> str:
    """What a folder lacks, and what helps: of a complete run, --resume has nothing to finish."""
    complete, place = (path / "results.json").exists(), shlex.quote(str(path))
    recipe = (path / "recipe.toml").exists()
    if recipe and name is not None and (path / "network.safetensors").exists():
        return (
            f"expected no name of a network for the run of a recipe, which has one; got {name!r}. "
            "Leave it out."
        )
    if recipe:
        first = f"Delete {path / 'results.json'}, then" if complete else "Finish the run, by"
        return (
            f"expected the run's network at {path / 'network.safetensors'}; there is no such file. "
            f"{first}: {program()} recipe run {place}/recipe.toml --resume --out {place} "
            "--data FOLDER"
        )
    what = f"expected a run folder with {name or 'a network'} in its checkpoints/; got {path}"
    if not complete and not (path / "config.toml").exists():
        return f"{what}, which holds no run. Name the folder that training wrote (its --out)."
    if complete:
        return f"{what}, whose run is complete: they were deleted. {train_again(path)}"
    return f"{what}. Train first, or finish the run with: {program()} train --resume --out {place}"


def train_again(folder: Path) -> str:
    """Advice for a run whose checkpoints are gone."""
    config = shlex.quote(str(folder / "config.toml"))
    return (
        "Put them back, or train them again with: "
        f"{program()} train --config {config} --out another-folder"
    )


# ---- published weights -----------------------------------------------------------------------


def load_any(path: Path | str, name: str | None = None, device: str = "cpu") -> AnyTrained:
    """`load_network`, which also takes published weights and what recipes leave.

    Published weights are what ``tinydilate convert`` writes: safetensors with a note that names the
    network, as in ``{"published": {"name": "dilation8_voc"}}``; ``"part": "front end"`` beside the
    name says that it ends there. A recipe's run notes ``{"plan": ...}``; see
    `tinydilate.models.Plan`.

    Raises
    ------
    DataError
        If the file is damaged, or holds other things.
    """
    path = _network_file(Path(path), name)
    if not path.is_file():
        return load_network(path, None, device)  # which says what is wrong
    weights = read_weights(path)  # a look at the names: no numbers yet
    if weights.format != "safetensors":
        raise DataError(
            f"expected the checkpoint of a network; got {path} ({weights.format}), which does not "
            f"say what its network is. Convert it: {program()} convert {path} OUT.safetensors"
        )
    note = weights.note if isinstance(weights.note, dict) else {}
    if "plan" in note and "published" not in note:
        return _planned(weights, device)
    if "published" not in note:
        return load_network(path, None, device)
    recipe = _published_recipe(path, note["published"])
    network = recipe.published.build(part=recipe.part, weights="zeros")
    # A fixed upsampling has its numbers already: the file may have it or not.
    layers = network.named_children()
    fixed = [layer for layer, module in layers if isinstance(module, nn.ConvTranspose2d)]
    load_weights(network, weights, allow_missing=fixed)
    return TrainedPublished(network.to(device).eval(), recipe, path)


def _planned(weights: Weights, device: str) -> TrainedPlanned:
    try:
        recipe = PlannedRecipe(models.plan_of_note(weights.note["plan"]))
    except DataError as error:
        raise DataError(f"{weights.path}: {error}") from None
    network = recipe.plan.build(rng=0)
    load_weights(network, weights)
    return TrainedPlanned(network.to(device).eval(), recipe, weights.path)


def _published_recipe(path: Path, note: Any) -> PublishedRecipe:
    note = note if isinstance(note, dict) else {"name": note}
    name = note.get("name")
    if name not in models.PUBLISHED:
        raise DataError(
            f"expected the weights of a published network, {', '.join(models.PUBLISHED)}; {path} "
            f"is for {name!r}. Label images with one of those."
        )
    return PublishedRecipe(models.PUBLISHED[name], str(note.get("part", "whole")))
