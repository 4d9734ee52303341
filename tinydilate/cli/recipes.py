"""``recipe``: the stages of training of the paper and of its code."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinydilate.cli.common import add_device, columns, command, show

_TITLE = "List, show and run recipes: stages of training as the paper and its code have them"
_RUN = (
    "Prints what it will take in memory and time first. Ctrl-C saves. --dry-run runs exactly one "
    "step and writes nothing."
)


def add(commands: Any) -> None:
    """The command ``recipe`` with its own commands."""
    parser = commands.add_parser("recipe", help=_TITLE, description=f"{_TITLE}.")
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command(parts, "list", _list, "List the recipes that come with tinydilate")
    _add_show(command(parts, "show", _show, "Show a recipe with its sources, and what it takes"))
    _add_run(command(parts, "run", _run, "Run a recipe on a data set", _RUN))


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a recipe's name, or a TOML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="give a key another value, for example batch=4; may come several times",
    )  # fmt: skip


# ---- list and show ---------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> int:
    from tinydilate.recipes.table import read_recipe, recipe_names

    recipes = {name: read_recipe(name) for name in recipe_names()}
    value = {name: recipe.to_dict() for name, recipe in recipes.items()}

    def table() -> str:
        rows: list[Sequence[str]] = [
            ("recipe", "learns", "batch", "lr", "momentum", "steps", "source")
        ]
        for name, r in recipes.items():
            momentum = f"{r.momentum:g}" if r.optimizer == "sgd" else r.optimizer.capitalize()
            numbers = (str(r.batch), f"{r.lr:g}", momentum, f"{r.steps:,}")
            rows.append((name, r.learns, *numbers, r.source))
        return columns(rows, right=(2, 3, 4, 5))

    show(value, arguments.json, table)
    return 0


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument(
        "--classes", type=int, default=None, metavar="C",
        help="number of classes, for a data set that is yours (default: 21)",
    )  # fmt: skip


def _show(arguments: argparse.Namespace) -> int:
    from tinydilate.recipes.estimates import told_bytes
    from tinydilate.recipes.preparing import estimate_recipe
    from tinydilate.recipes.table import read_recipe, recipe_path

    recipe = read_recipe(arguments.name, arguments.settings)
    guess = estimate_recipe(recipe, arguments.classes)
    value = {"recipe": recipe.to_dict(), "estimate": {**guess._asdict(), "memory": guess.memory}}

    def table() -> str:
        # The file as it was written has the sources; with --set it would not be what is run.
        text = (
            recipe.to_toml()
            if arguments.settings
            else recipe_path(arguments.name).read_text(encoding="utf-8")
        )
        rest = guess.memory - guess.weight_bytes - guess.optimizer_bytes - guess.pass_bytes
        # As comments of TOML, so that what is printed can be kept as a recipe of one's own.
        return (
            f"{text}\n"
            f"# {guess.parameters:,} parameters, {guess.trainable:,} of them learn; "
            f"{guess.macs / 1e9:,.0f} billion multiplications a step.\n"
            f"# A step takes about {told_bytes(guess.memory)} of memory: weights "
            f"{told_bytes(guess.weight_bytes)}, optimiser {told_bytes(guess.optimizer_bytes)},\n"
            f"# maps and gradients {told_bytes(guess.pass_bytes)}, program, images and what "
            f"lies between {told_bytes(rest)}."
        )

    show(value, arguments.json, table)
    return 0


# ---- run -------------------------------------------------------------------------------------


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument(
        "--data", action="append", required=True, metavar="FOLDER",
        help="where a data set lies; once for each entry of the recipe's train, in its order",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help="the run folder (not with --dry-run)")
    parser.add_argument(
        "--init", metavar="WEIGHTS",
        help="first weights: a file, or the folder of the run before (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--features", metavar="FOLDER",
        help="where feature maps of a frozen front end are kept (default: features/ in --out)",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--dry-run", action="store_true", help="one step, and nothing is written")
    add_device(parser)


def _run(arguments: argparse.Namespace) -> int:
    from tinydilate.errors import ConfigError
    from tinydilate.recipes.preparing import Call, told_forecast
    from tinydilate.recipes.stage import dry_run, run_recipe
    from tinydilate.recipes.table import read_recipe

    recipe = read_recipe(arguments.name, arguments.settings)
    if not arguments.dry_run and arguments.out is None:
        raise ConfigError("expected --out FOLDER for the run; got none. Or add --dry-run.")
    if arguments.dry_run and arguments.resume:
        raise ConfigError("expected --dry-run or --resume; got both. Leave one out.")
    call = Call(
        data=[Path(folder) for folder in arguments.data],
        folder=Path(arguments.out or "."),
        init=Path(arguments.init) if arguments.init else None,
        features=Path(arguments.features) if arguments.features else None,
        device=arguments.device,
    )
    if arguments.dry_run:
        found = dry_run(recipe, call)
        show(found, arguments.json, lambda: f"{told_forecast(recipe, found)}\n{_told_step(found)}")
        return 0
    results = run_recipe(recipe, call, arguments.resume)
    show(results, arguments.json, lambda: _results_table(results))
    return 0


def _told_step(found: dict[str, Any]) -> str:
    from tinydilate.recipes.estimates import told_seconds

    loss = "no label counted" if found["loss"] is None else f"loss {found['loss']:.4f}"
    text = f"One step was run: {loss}. Nothing was written. Later steps of a run can be faster."
    if "seconds_per_image" in found:
        each, count = found["seconds_per_image"], found["images"]
        text += (
            f"\nFeatures: about {told_seconds(each)} an image, {told_seconds(each * count)} for "
            f"all, once."
        )
    return text


def _results_table(results: dict[str, Any]) -> str:
    rows: list[Sequence[str]] = [("class", "IoU")]
    for name, iou in results["iou"].items():
        rows.append((name, "absent" if iou is None else f"{iou:.3f}"))
    mean = results["mean_iou"]
    return (
        f"{columns(rows, right=(1,))}\n\n"
        f"Mean IoU {'none' if mean is None else f'{mean:.3f}'} over {len(results['mean_over'])} "
        f"classes after {results['steps']:,} steps, on the labels that are trained on, in "
        f"{results['scored_images']} images of {results['scored_on']}.\n"
        f"The network is in {results['network']}."
    )
