"""Labelling images with a trained network: one label for every pixel.

A network checkpoint says everything that is needed to use it: which network to build, what the
classes are called and coloured, and how its input images were prepared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinydilate import models
from tinydilate.autograd import Tensor, no_grad, tensor
from tinydilate.config import Config
from tinydilate.device import Array
from tinydilate.errors import ConfigError, DataError, program
from tinydilate.io.checkpoint import load_checkpoint, save_checkpoint
from tinydilate.io.images import overlay, read_image, write_labels, write_rgb
from tinydilate.metrics import Score, confusion_matrix
from tinydilate.models import FrontEndWithContext
from tinydilate.nn import Module

NETWORKS = ("joint", "context", "alone", "front")  # stages whose networks a run keeps; best first


class Recipe(NamedTuple):
    """What a checkpoint says about its network, beside the weights."""

    config: Config
    context: bool  # whether a context module follows the front end
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # red, green, blue of each class
    mean: float  # network input = (grey level in [0, 1] - mean) / std
    std: float

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


class Trained(NamedTuple):
    """A network with its weights."""

    network: FrontEndWithContext
    recipe: Recipe
    path: Path


# ---- checkpoints of networks -----------------------------------------------------------------


def save_network(path: Path | str, network: Module, recipe: Recipe) -> None:
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
        recipe = Recipe(
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
    raise DataError(
        f"expected a run folder with {name or 'a network'} in its checkpoints/; got {path}. Train "
        f"first, or finish the run with: {program()} train --resume --out {path}"
    )


# ---- labelling -------------------------------------------------------------------------------


def beside(network: Module, images: Array) -> Tensor:
    """Images as a tensor on the device where the network's parameters are."""
    first = next(network.parameters(), None)
    return tensor(images, device=None if first is None else first.device)


def label_maps(
    network: Module, images: Array, batch: int = 32, progress: str = ""
) -> NDArray[np.uint8]:
    """The most likely class of every pixel: (N, C, H, W) -> uint8 (N, H, W).

    ``progress`` is the title of a bar; none is shown without it.
    """
    labels = np.empty((len(images), *images.shape[2:]), np.uint8)
    training = network.training
    network.eval()
    try:
        for part in _batches(len(images), batch, progress):
            with no_grad():
                scores = network(beside(network, images[part]))  # (B, classes, H, W)
            labels[part] = scores.argmax(1).numpy()
    finally:
        network.train(training)
    return labels


def _batches(count: int, batch: int, progress: str) -> Iterator[slice]:
    bar = tqdm(total=count, desc=progress, unit="image", leave=False, disable=not progress)
    with bar:
        for start in range(0, count, batch):
            part = slice(start, min(count, start + batch))
            yield part
            bar.update(part.stop - part.start)


def score(
    network: Module,
    images: Array,
    labels: Array,
    classes: Sequence[str],
    batch: int = 32,
    progress: str = "",
) -> Score:
    """Score a network's labels against the true ones, (N, C, H, W) and (N, H, W)."""
    found = label_maps(network, images, batch, progress)
    return Score.of(confusion_matrix(labels, found, len(classes)), classes)


class Prediction(NamedTuple):
    """What `predict_file` wrote and found."""

    labels: Path
    overlay: Path
    shares: dict[str, float]  # part of the image's pixels that each class got


def predict_file(
    trained: Trained,
    image: Path | str,
    folder: Path | str | None = None,
    scale: float = 1.0,
    invert: bool = False,
) -> Prediction:
    """Label an image file; write a label map and an overlay beside it.

    Parameters
    ----------
    trained : Trained
    image : path
        Read in grey.
    folder : path, optional
        Where ``NAME-labels.png`` and ``NAME-overlay.png`` go; the image's own folder by default.
    scale : float
        Size to work at by size of the file's image. The demo network knows digits of 24 to 30
        pixels: a photograph of larger ones wants a scale below 1.
    invert : bool
        Exchange black and white. The demo network knows bright strokes on a dark ground.

    Raises
    ------
    DataError
        If the image cannot be read or the results cannot be written.
    """
    image = Path(image)
    levels = read_image(image, channels=1, scale=scale)  # (1, H, W)
    levels = 1 - levels if invert else levels
    recipe = trained.recipe
    prepared = (levels - np.float32(recipe.mean)) / np.float32(recipe.std)
    labels = label_maps(trained.network, prepared[None])[0]  # (H, W)
    palette = np.array(recipe.palette, np.uint8)
    folder = image.parent if folder is None else Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"expected a folder for the results; {folder}: {error.strerror or error}. "
            "Choose another one with --out."
        ) from None
    paths = [folder / f"{image.stem}-{kind}.png" for kind in ("labels", "overlay")]
    write_labels(paths[0], labels, palette)
    write_rgb(paths[1], overlay(levels, labels, palette))
    counts = np.bincount(labels.reshape(-1), minlength=len(recipe.classes))
    shares = dict(zip(recipe.classes, (counts / labels.size).tolist(), strict=True))
    return Prediction(paths[0], paths[1], shares)
