"""Tables of options: what each is called, what it means, what it may be and where it is checked.

A table is a frozen dataclass that derives from `Options`; each of its fields is one `option`, with
a default, a meaning and a range. The tables are `tinydilate.config.Config`, of the demo's training
run, and `tinydilate.recipes.table.Recipe`, of a stage of the paper. Both can be written as TOML,
and what is wrong with a value is said in the same words wherever it came from.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tinydilate.errors import ConfigError, meant

PLACES = ("cpu", "cuda")
_ANY_LENGTH = (1, 1_000)  # of a list


def option(
    default: Any,
    meaning: str,
    least: float | None = None,
    below: float = math.inf,
    choices: tuple[str, ...] = (),
    length: tuple[int, int] = _ANY_LENGTH,
) -> Any:
    """Make one line of a table.

    Parameters
    ----------
    default : the value where none is given
    meaning : str
        Stands in ``--help`` and, as a comment, in files.
    least, below : float
        Numbers are finite and lie in [least, below).
    choices : tuple of str
        All that a text may be; any text if there are none.
    length : (least, most)
        How many values a list may hold.
    """
    notes = {
        "meaning": meaning,
        "least": least,
        "below": below,
        "choices": choices,
        "length": length,
    }
    return dataclasses.field(default=default, metadata=notes)


@dataclass(frozen=True)
class Options:
    """A table of options; see `option`."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))

    @classmethod
    def of(cls, options: Mapping[str, Any], source: str = "") -> Self:
        """Make a table of some options; the others keep their defaults.

        Raises
        ------
        ConfigError
            If a name is unknown, or a value is of the wrong kind or out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                hint = meant(name, known) or f" They are {', '.join(known)}."
                where = f" in {source}" if source else ""
                raise ConfigError(
                    f"expected known options{where}; got {name!r}, which is none.{hint}"
                )
        try:
            return cls(**options)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}" if source else str(error)) from None

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Make a table of a TOML file; see `read_options`."""
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
            # JSON's texts are TOML's, but for characters in two halves and one that TOML refuses.
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            lines.append(f"{field.name} = {text}  # {field.metadata['meaning']}")
        return "\n".join(lines) + "\n"

    def differences(self, other: Self) -> list[str]:
        """``"name: this here, that there"`` for every option in which two tables differ."""
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
        "str": "a text",
        "tuple[int, ...]": "whole numbers such as 1,1,2,4, each",
        "tuple[str, ...]": 'a list of texts, written ["..."]',
    }[str(field.type)]
    if notes["least"] is not None:
        kind += f" of at least {notes['least']:g}"
    if notes["below"] != math.inf:
        kind += f" and below {notes['below']:g}"
    least, most = notes["length"]
    if str(field.type).startswith("tuple") and (least, most) != _ANY_LENGTH:
        kind += f", {least} to {most} of them"
    return kind


def checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return the value in the option's type, or refuse it.

    Raises
    ------
    ConfigError
        If the value is of another kind, or out of range.
    """
    kind = str(field.type)
    if kind.startswith("tuple"):
        fits = _is_text if "str" in kind else _is_number
        least, most = field.metadata["length"]
        listed = isinstance(value, list | tuple) and least <= len(value) <= most
        if listed and all(fits(field, one) for one in value):
            return tuple(value)
    elif kind == "bool":
        if isinstance(value, bool):
            return value
    elif kind == "str":
        if _is_text(field, value):
            return value
    elif _is_number(field, value):
        return float(value) if kind == "float" else value
    raise ConfigError(f"expected {field.name} to be {expectation(field)}; got {value!r:.200}.")


def _is_text(field: dataclasses.Field[Any], value: Any) -> bool:
    choices = field.metadata["choices"]
    return isinstance(value, str) and (not choices or value in choices)


def _is_number(field: dataclasses.Field[Any], value: Any) -> bool:
    whole = not str(field.type).startswith("float")
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    least, below = field.metadata["least"], field.metadata["below"]
    # The first comparison turns nan away, the second whole numbers too large for a float.
    return abs(value) <= sys.float_info.max and (least is None or value >= least) and value < below
