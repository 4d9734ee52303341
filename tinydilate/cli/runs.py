"""``train`` and ``eval``: the demo's networks."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinydilate.cli.common import add_device, columns, command, show
from tinydilate.config import Config, add_arguments, given_options
from tinydilate.errors import program
from tinydilate.options import read_options


def add(commands: Any) -> None:
    """The commands of runs."""
    _add_train(command(commands, "train", _train, "Train the networks of the demo", _TRAIN))
    _add_eval(command(commands, "eval", _eval, "Score trained networks on scenes"))


# ---- train -----------------------------------------------------------------------------------

_TRAIN = (
    "Stage 1 trains the front end, stage 2 the context module on the frozen front end, stage 3 "
    "both; then, for comparison, the front end alone for as many steps. Ctrl-C saves."
)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="runs/demo", metavar="FOLDER", help="the run folder (default: runs/demo)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the interrupted run in the folder"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a TOML file of options such as batch = 16 (default: none)"
    )
    add_arguments(parser.add_argument_group("what to train (each can stand in the file, too)"))


def _train(arguments: argparse.Namespace) -> int:
    # The command line has the last word, then the file, then the defaults.
    options = read_options(arguments.config) if arguments.config else {}
    Config.of(options, arguments.config or "")  # so that a complaint names the file
    options |= given_options(arguments)
    if arguments.resume:
        kept = Path(arguments.out) / "config.toml"
        options = (read_options(kept) if kept.exists() else {}) | options
    config = Config.of(options)

    from tinydilate.train import train

    results = train(config, arguments.out, arguments.resume)
    show(results, arguments.json, lambda: results_table(results, arguments.out))
    return 0


def results_table(results: dict[str, Any], folder: str) -> str:
    """What a run found, to read."""
    rows: list[Sequence[str]] = [("network", "steps", "parameters", "mean IoU", "pixel accuracy")]
    told = {
        "front": "front end",
        "context": "front end (frozen) + context",
        "joint": "front end + context",
        "alone": "front end, more steps",
    }
    for name, network in results["networks"].items():
        scores = [f"{network[key]:.3f}" for key in ("mean_iou", "pixel_accuracy")]
        counts = [f"{network[key]:,}" for key in ("steps", "parameters")]
        rows.append((f"{name}: {told[name]}", *counts, *scores))
    classes = results["classes"]
    rival = {
        "alone": "the front end alone, trained for as many steps",
        "front": "the front end after stage 1, trained for fewer steps",
    }[results["compared_with"]]
    return (
        f"{columns(rows, right=(1, 2, 3, 4))}\n\n"
        f"Mean IoU over {len(classes)} classes, background included: {', '.join(classes)}.\n"
        f"On {results['config']['test_scenes']} test scenes (the curves: on "
        f"{results['config']['validation_scenes']} validation scenes).\n"
        f"Context gains {results['gain']:+.3f} over {rival}.{_what_to_look_at(folder)}"
    )


def _what_to_look_at(folder: str) -> str:
    """Of what a run leaves, what is still there."""
    place, sentences = shlex.quote(folder), []
    pictures = [f"{folder}/{name}.png" for name in ("predictions", "curves")]
    there = [picture for picture in pictures if Path(picture).exists()]
    if there:
        sentences.append(f"Look at {' and '.join(there)}.")
    needed = ("example.png", "checkpoints/joint.safetensors")
    if all(Path(folder, name).exists() for name in needed):
        sentences.append(f"Label an image:\n{program()} predict {place} {place}/example.png")
    return "\n\n" + " ".join(sentences) if sentences else ""


# ---- eval ------------------------------------------------------------------------------------


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a run folder or a network's checkpoint")
    add_network(parser)
    parser.add_argument(
        "--split", default="test", choices=("train", "validation", "test"),
        help="whose handwriting (default: test)",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=300, metavar="N", help="scenes (default: 300)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of them (default: 0)")
    add_device(parser)


def add_network(parser: argparse.ArgumentParser) -> None:
    """The option --network, of a run."""
    parser.add_argument(
        "--network", choices=("joint", "context", "alone", "front"),
        help="which of a run folder's networks (default: the first of these that is there)",
    )  # fmt: skip


def _eval(arguments: argparse.Namespace) -> int:
    from tinydilate.data import digits
    from tinydilate.predict import load_network, score

    trained = load_network(arguments.path, arguments.network, arguments.device)
    size = trained.recipe.config.scene_size
    images, labels = digits.scenes(arguments.split, arguments.count, arguments.seed, size=size)
    found = score(trained.network, images, labels, trained.recipe.classes, progress="scoring")

    def table() -> str:
        rows = [("class", "IoU")]
        for name, iou in zip(found.classes, found.iou, strict=True):
            rows.append((name, f"{iou:.3f}" if iou == iou else "absent"))  # only nan is not itself
        return f"{trained.path}\n\n{columns(rows, right=(1,))}\n\n{found}"

    show({"checkpoint": str(trained.path), **found.to_dict()}, arguments.json, table)
    return 0
