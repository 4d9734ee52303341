"""First weights: what a stage takes over from a file, and what it starts anew.

A front end starts from VGG-16, a context module as the identity behind a trained front end, the
last stage from both. Layers are told apart by their names. Those that a recipe calls fresh keep the
start that they were built with; **every other one has to be in the file**, in its shape. (Caffe
leaves a layer that is missing at zero and trains on, which nobody notices for a day.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from tinydilate import nn
from tinydilate.errors import ConfigError, DataError
from tinydilate.io.weights import Weights, load_weights, read_weights
from tinydilate.recipes.table import Recipe

RESULT = "network.safetensors"  # what a run leaves in its folder


class Start(NamedTuple):
    """Which layers came from the file, which started anew, and what was left over in it."""

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    left_over: tuple[str, ...]


def weights_file(path: Path | str) -> Path:
    """The file of weights that is meant by a path: itself, or the result of a run's folder.

    Raises
    ------
    DataError
        If it is a folder without a result.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / RESULT).exists():
        raise DataError(
            f"expected a file of weights, or the folder of a finished run; {path} holds no "
            f"{RESULT}. Finish that run first, with --resume (delete results.json if it has one)."
        )
    return path / RESULT


def check_start(recipe: Recipe, init: Path | str | None) -> None:
    """Refuse a run that would learn from nothing what it should have been given.

    Raises
    ------
    ConfigError
        If the recipe asks for weights and there are none, or the other way round.
    """
    told = {
        "vgg-16": "VGG-16's weights, trained on ImageNet",
        "front end": "a trained front end: the folder of the run before",
        "network": "the network of the stage before: the folder of its run",
    }
    if init is None and recipe.start != "nothing":
        raise ConfigError(
            f"expected --init with {told[recipe.start]}; got none. To start from random weights "
            "all the same, add --set start=nothing."
        )
    if init is not None and recipe.start == "nothing":
        raise ConfigError(
            f"expected no --init, for the recipe starts from random weights; got {init}. Leave it "
            'out, or add --set "start=network".'
        )


def load_start(
    network: nn.Module,
    path: Path | str,
    mean: tuple[float, float, float],
    fresh: Sequence[str] = (),
    progress: bool = False,
) -> Start:
    """Give a network the weights of a file, but for the layers that start anew.

    Parameters
    ----------
    network : nn.Module
    path : path
        A file in any format that `tinydilate.io.weights` reads, or a run folder.
    mean : (blue, green, red)
        What the images have subtracted; torchvision's VGG-16 needs to know.
    fresh : sequence of str
        Names of the layers that keep their own start, such as ``"ctx_*"``; what the file has for
        them is not looked at.
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    DataError
        If the file cannot be read, or lacks a layer, or has it in another shape.
    ConfigError
        If ``fresh`` names a layer that there is not.
    """
    found = read_weights(weights_file(path))
    names = list(network.state_dict())
    for pattern in fresh:
        if not any(_is_of(name, [pattern]) for name in names):
            raise ConfigError(
                f"expected fresh to name layers of the network, such as final or ctx_*; got "
                f"{pattern!r}. Its layers are {', '.join(_layers(names))}."
            )
    ignored = [name for name in found if _is_of(name, fresh)]
    kept = {name: stored for name, stored in found.stored.items() if name not in ignored}
    # What is fixed, such as an upsampling, has its numbers already: a file may have it or not.
    fixed = [name for name, p in network.named_parameters() if not p.requires_grad]
    try:
        report = load_weights(
            network,
            Weights(found.file, found.format, kept, found.note),
            allow_missing=[*fresh, *fixed],
            mean=mean,
            progress="first weights" if progress else "",
        )
    except DataError as error:
        missing = [layer for layer in _layers(names) if not any(_is_of(n, [layer]) for n in kept)]
        first = ", ".join(f'"{layer}"' for layer in missing or _layers(names)[-1:])
        raise DataError(
            f"{error} (In a recipe, layers that start anew are called fresh: --set "
            f"'fresh=[{first}]'. If a stage comes before this one, give the folder of its run.)"
        ) from None
    loaded = tuple(each.name for each in report.loaded)
    anew = tuple(name for name in names if name not in loaded and name not in fixed)
    return Start(loaded, anew, (*report.left_over, *ignored))


def _is_of(name: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter belongs to a layer that a pattern names."""
    return any(fnmatchcase(name.rpartition(".")[0], pattern) for pattern in patterns)


def _layers(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over the names and numbers of a network: the same for the same weights only."""
    digest = hashlib.sha256()
    for name, array in network.state_dict().items():
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(memoryview(array).cast("B") if array.size else b"")
    return digest.hexdigest()
