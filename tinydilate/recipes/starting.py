"""First weights: what a stage takes over from a file, and what it starts anew.

A front end starts from VGG-16, a context module as the identity behind a trained front end, the
last stage from both. Layers are told apart by their names. Those that a recipe calls fresh keep the
start that they were built with; **every other one has to be in the file**, in its shape. (Caffe
leaves a layer that is missing at zero and trains on, which nobody notices for a day.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tinydilate import nn
from tinydilate.device import Array
from tinydilate.errors import ConfigError, DataError
from tinydilate.io.checkpoint import load_checkpoint
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
            f"{RESULT}. Finish that run first, with --resume."
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


def load_start(network: nn.Module, path: Path | str, fresh: tuple[str, ...] = ()) -> Start:
    """Give a network the weights of a file, but for the layers that start anew.

    Parameters
    ----------
    network : nn.Module
    path : path
        A file, or a run folder.
    fresh : tuple of str
        How the names of the layers begin that keep their own start.

    Raises
    ------
    DataError
        If the file cannot be read, or lacks a layer, or has it in another shape.
    """
    file = weights_file(path)
    found = read_arrays(file)
    own = network.state_dict()
    anew = {name for name in own if name.startswith(fresh)} if fresh else set()
    # What is fixed, such as an upsampling, has its numbers already.
    fixed = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    wanted = [name for name in own if name not in anew and (name in found or name not in fixed)]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"expected every layer but the fresh ones in {file}; {len(missing)} are missing, the "
            f"first of them {missing[0]}. It holds {_listed(found)}. Name another file, or let a "
            f"layer start anew: --set 'fresh=[\"{missing[0].rpartition('.')[0]}\"]'."
        )
    for name in wanted:
        if found[name].shape != own[name].shape:
            raise DataError(
                f"expected {name} of shape {own[name].shape}; {file} has it as "
                f"{found[name].shape}. Its network has other classes or another table: name "
                f"another file, or let the layer start anew: --set "
                f"'fresh=[\"{name.rpartition('.')[0]}\"]'."
            )
    network.load_state_dict({name: found[name] for name in wanted}, strict=False)
    left_over = tuple(name for name in found if name not in own or name in anew)
    return Start(tuple(wanted), tuple(sorted(anew)), left_over)


def read_arrays(path: Path) -> Mapping[str, Array]:
    """The arrays of a file of weights, by name."""
    return load_checkpoint(path)[0]


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over the names and numbers of a network: the same for the same weights only."""
    digest = hashlib.sha256()
    for name, array in network.state_dict().items():
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(memoryview(array).cast("B") if array.size else b"")
    return digest.hexdigest()


def _listed(names: Mapping[str, Array], most: int = 4) -> str:
    shown = ", ".join(list(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "nothing"
