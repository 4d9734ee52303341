"""The options of a training run: one table, read by the command line, TOML files and ``--help``.

An option is a field of `Config` with its default, what it means and what it may be. Everything
else follows from the table: how it is written on the command line (``front_lr`` becomes
``--front-lr``), how it is checked (see `tinydilate.options`), and how it is kept in a run folder
(``config.toml``).
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

from tinydilate.errors import ConfigError
from tinydilate.options import PLACES, Options, checked, option

SCHEDULES = ("constant", "step", "poly")


@dataclass(frozen=True)
class Config(Options):
    """Everything that a training run depends on. The defaults are the demo of the README."""

    seed: int = option(0, "makes scenes, first weights and the order of batches", 0)

    train_scenes: int = option(3000, "scenes to learn from", 1)
    validation_scenes: int = option(100, "scenes scored while learning, for the curves", 1)
    test_scenes: int = option(300, "scenes scored at the end, for the table", 1)
    scene_size: int = option(64, "height and width of a scene in pixels", 36, 4096)

    batch: int = option(16, "scenes in a step", 1)
    optimizer: str = option("adam", "rule of the steps", choices=("adam", "sgd"))
    momentum: float = option(0.9, "momentum of sgd", 0, 1)
    weight_decay: float = option(0.0, "pull of the weights, not the biases, towards zero", 0)

    bias_rate: float = option(2.0, "how much faster biases learn than weights", 0)

    front_steps: int = option(400, "steps of stage 1, the front end", 1)
    front_lr: float = option(4e-3, "learning rate of stage 1", 0)
    front_schedule: str = option("constant", "its course over stage 1", choices=SCHEDULES)

    context_steps: int = option(100, "steps of stage 2, the context on the frozen front end", 1)
    context_lr: float = option(4e-3, "learning rate of stage 2", 0)
    context_schedule: str = option("constant", "its course over stage 2", choices=SCHEDULES)

    joint_steps: int = option(300, "steps of stage 3, both together", 1)
    joint_lr: float = option(2e-3, "learning rate of stage 3", 0)
    joint_schedule: str = option("poly", "its course over stage 3", choices=SCHEDULES)

    comparison: bool = option(
        True, "train the front end alone, too, for as many steps as stages 2 and 3"
    )
    alone_lr: float = option(4e-3, "learning rate of the comparison", 0)
    alone_schedule: str = option("poly", "its course over the comparison", choices=SCHEDULES)

    poly_power: float = option(0.9, "the schedule poly is (1 - step / steps) ** power", 0)
    step_every: int = option(100, "the schedule step multiplies by step-gamma every so often", 1)
    step_gamma: float = option(0.1, "see step-every", 0)

    variant: str = option("basic", "width of the context module", choices=("basic", "large"))
    dilations: tuple[int, ...] = option((1, 1, 2, 4, 8, 1), "of the context's 3x3 layers", 1)
    noise: float = option(0.01, "on the identity that the context module starts from", 0)

    validate_every: int = option(50, "steps between two points of the validation curve", 1)
    save_every: int = option(50, "steps between two checkpoints", 1)

    device: str = option("cpu", "where to compute: on the processor or a GPU", choices=PLACES)


# ---- the command line ------------------------------------------------------------------------


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Give a parser, or a group of its options, one ``--option`` for each line of the table.

    What was not given is left out of the result, so that a file can hold it.
    """
    for field in dataclasses.fields(Config):
        flag, meaning = "--" + field.name.replace("_", "-"), field.metadata["meaning"]
        if field.type == "bool":
            parser.add_argument(
                flag,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=f"{meaning} (default: {'yes' if field.default else 'no'})",
            )
            continue
        default = field.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        choices = field.metadata["choices"]
        parser.add_argument(
            flag,
            type=_Reader(field),
            default=argparse.SUPPRESS,
            metavar="|".join(choices) or {"float": "X", "int": "N"}.get(str(field.type), "N,N"),
            help=f"{meaning} (default: {shown})",
        )


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the table that were given on the command line."""
    names = [field.name for field in dataclasses.fields(Config)]
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


class _Reader:
    """Reads one option's text; the sentence of a refusal is the same as for a file."""

    def __init__(self, field: dataclasses.Field[Any]) -> None:
        self.field = field

    def __call__(self, text: str) -> Any:
        try:
            return checked(self.field, self._value(text))
        except ConfigError as error:  # a ValueError, for which argparse has words of its own
            raise argparse.ArgumentTypeError(str(error)) from None

    def _value(self, text: str) -> Any:
        try:
            if self.field.type == "int":
                return int(text)
            if self.field.type == "float":
                return float(text)
            if str(self.field.type).startswith("tuple"):
                return tuple(int(part) for part in text.split(","))
        except ValueError:
            pass  # `checked` refuses the text itself, in one sentence
        return text
