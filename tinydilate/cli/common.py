"""What every command needs: how it is added, how tables and JSON are printed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tinydilate.errors import ConfigError, meant
from tinydilate.options import PLACES

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence, instead of printing the usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is left over here, where the command is known, not in the parser above."""
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            hint = meant(rest[0].split("=")[0], self._option_string_actions)
            if any(action.nargs == "+" for action in self._actions) and rest[0][:1] != "-":
                hint = " Write options before or after all the paths, not between them"
            self.error(f"unrecognized arguments: {' '.join(rest)}{'.' * bool(hint)}{hint}")
        return namespace, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Of a command or another choice that there is not, name the nearest."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = meant(str(value), map(str, action.choices or ()))
            error.message += f".{hint}" if hint else ""
            raise

    def error(self, message: str) -> NoReturn:
        stop = "" if message.endswith(("?", ".")) else "."
        raise ConfigError(f"{message}{stop} Run {self.prog} --help for what there is.")


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], title: str, more: str = ""
) -> argparse.ArgumentParser:
    """A new command, or one of a command's own; ``run`` takes what was parsed, returns the code."""
    sub: argparse.ArgumentParser = commands.add_parser(
        name, help=title, description=f"{title}. {more}".strip(), allow_abbrev=False
    )
    sub.set_defaults(run=run)
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return sub


def show(value: Any, as_json: bool, table: Callable[[], str]) -> None:
    """Print a command's result: its JSON, or the table that ``table`` makes of it."""
    print(json.dumps(value, indent=2) if as_json else table())


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of text in columns, the first row as a header; ``right`` are the columns of numbers."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option --device."""
    parser.add_argument(
        "--device", default="cpu", choices=PLACES, help="where to compute (default: cpu)"
    )


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from "500x400", or from "500" for both."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"expected --size as in 500x500; got {text!r}.")
    return int(parts[0]), int(parts[-1])
