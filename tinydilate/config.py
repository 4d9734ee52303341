"""The options of a training run: one table, read by the command line, TOML files and ``--help``.

An option is a field of `Config` with its default, what it means and what it may be. Everything
else follows from the table: how it is written on the command line (``front_lr`` becomes
``--front-lr``), how it is checked, and how it is kept in a run folder (``config.toml``).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinydilate.errors import ConfigError

PLACES = ("cpu", "cuda")
SCHEDULES = ("constant", "step", "poly")


def _option(
    default: Any,
    meaning: str,
    least: float | None = None,
    below: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """Make one line of the table; numbers are finite and lie in [least, below)."""
    notes = {"meaning": meaning, "least": least, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata=notes)


@dataclass(frozen=True)
class Config:
    """Everything that a training run depends on. The defaults are the demo of the README."""

    seed: int = _option(0, "makes scenes, first weights and the order of batches", 0)

    train_scenes: int = _option(3000, "scenes to learn from", 1)
    validation_scenes: int = _option(100, "scenes scored while learning, for the curves", 1)
    test_scenes: int = _option(300, "scenes scored at the end, for the table", 1)
    scene_size: int = _option(64, "height and width of a scene in pixels", 36, 4096)

    batch: int = _option(16, "scenes in a step", 1)
    optimizer: str = _option("adam", "rule of the steps", choices=("adam", "sgd"))
    momentum: float = _option(0.9, "momentum of sgd", 0, 1)
    weight_decay: float = _option(0.0, "pull of the weights, not the biases, towards zero", 0)

    bias_rate: float = _option(2.0, "how much faster biases learn than weights", 0)

    front_steps: int = _option(400, "steps of stage 1, the front end", 1)
    front_lr: float = _option(4e-3, "learning rate of stage 1", 0)
    front_schedule: str = _option("constant", "its course over stage 1", choices=SCHEDULES)

    context_steps: int = _option(100, "steps of stage 2, the context on the frozen front end", 1)
    context_lr: float = _option(4e-3, "learning rate of stage 2", 0)
    context_schedule: str = _option("constant", "its course over stage 2", choices=SCHEDULES)

    joint_steps: int = _option(300, "steps of stage 3, both together", 1)
    joint_lr: float = _option(2e-3, "learning rate of stage 3", 0)
    joint_schedule: str = _option("poly", "its course over stage 3", choices=SCHEDULES)

    comparison: bool = _option(
        True, "train the front end alone, too, for as many steps as stages 2 and 3"
    )
    alone_lr: float = _option(4e-3, "learning rate of the comparison", 0)
    alone_schedule: str = _option("poly", "its course over the comparison", choices=SCHEDULES)

    poly_power: float = _option(0.9, "the schedule poly is (1 - step / steps) ** power", 0)
    step_every: int = _option(100, "the schedule step multiplies by step-gamma every so often", 1)
    step_gamma: float = _option(0.1, "see step-every", 0)

    variant: str = _option("basic", "width of the context module", choices=("basic", "large"))
    dilations: tuple[int, ...] = _option((1, 1, 2, 4, 8, 1), "of the context's 3x3 layers", 1)
    noise: float = _option(0.01, "on the identity that the context module starts from", 0)

    validate_every: int = _option(50, "steps between two points of the validation curve", 1)
    save_every: int = _option(50, "steps between two checkpoints", 1)

    device: str = _option("cpu", "where to compute: on the processor or a GPU", choices=PLACES)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))

    @classmethod
    def of(cls, options: Mapping[str, Any], source: str = "") -> Config:
        """Make a configuration of some options; the others keep their defaults.

        Raises
        ------
        ConfigError
            If a name is unknown, or a value is of the wrong kind or out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"They are {', '.join(known)}."
                where = f" in {source}" if source else ""
                raise ConfigError(
                    f"expected known options{where}; got {name!r}, which is none. {hint}"
                )
        try:
            return cls(**options)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}" if source else str(error)) from None

    @classmethod
    def read(cls, path: Path | str) -> Config:
        """Make a configuration of a TOML file; see `read_options`."""
        return cls.of(read_options(path), str(path))

    def to_dict(self) -> dict[str, Any]:
        """All options by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to_toml(self) -> str:
        """The options as a TOML file that `read` understands, each with what it means."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            value = list(value) if isinstance(value, tuple) else value
            lines.append(f"{field.name} = {json.dumps(value)}  # {field.metadata['meaning']}")
        return "\n".join(lines) + "\n"

    def differences(self, other: Config) -> list[str]:
        """``"name: this here, that there"`` for every option in which two configurations differ."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [f"{n}: {mine[n]} here, {theirs[n]} there" for n in mine if mine[n] != theirs[n]]


def read_options(path: Path | str) -> dict[str, Any]:
    """Read the options that a TOML file holds.

    Raises
    ------
    ConfigError
        If there is no such file or it is no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"expected a configuration file at {path}; the system said: "
            f"{error.strerror or error}. Check the path."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"expected a TOML file; {path} is none: {error}. Write lines such as batch = 16."
        ) from None


# ---- checking --------------------------------------------------------------------------------


def expectation(field: dataclasses.Field[Any]) -> str:
    """Say what an option may be: ``"a whole number of at least 1"``."""
    notes = field.metadata
    if notes["choices"]:
        return f"one of {', '.join(notes['choices'])}"
    kind = {
        "int": "a whole number",
        "float": "a finite number",
        "bool": "true or false",
        "tuple[int, ...]": "whole numbers such as 1,1,2,4, each",
    }[str(field.type)]
    if notes["least"] is not None:
        kind += f" of at least {notes['least']:g}"
    if notes["below"] != math.inf:
        kind += f" and below {notes['below']:g}"
    return kind


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return the value in the option's type, or refuse it."""
    if str(field.type).startswith("tuple"):
        numbers = tuple(value) if isinstance(value, list | tuple) else ()
        if numbers and all(_is_number(field, number) for number in numbers):
            return numbers
    elif field.type == "bool":
        if isinstance(value, bool):
            return value
    elif field.type == "str":
        if value in field.metadata["choices"]:
            return value
    elif _is_number(field, value):
        return float(value) if field.type == "float" else value
    raise ConfigError(f"expected {field.name} to be {expectation(field)}; got {value!r}.")


def _is_number(field: dataclasses.Field[Any], value: Any) -> bool:
    kinds = int | float if field.type == "float" else int
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    least, below = field.metadata["least"], field.metadata["below"]
    return math.isfinite(value) and value >= least and value < below


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
            return _checked(self.field, self._value(text))
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
            pass  # `_checked` refuses the text itself, in one sentence
        return text
