"""The command ``tinydilate``: reading arguments, calling the library, printing.

What a command needs is imported inside it, so that ``--help`` answers at once. Tables go to stdout,
with ``--json`` as JSON and nothing else; progress and errors go to stderr. What is wrong with the
input is said in one sentence, with exit code 2. Ctrl-C ends with exit code 130.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tinydilate import __version__
from tinydilate.cli import (
    conversion,
    datasets,
    export,
    fields,
    machine,
    networks,
    predict,
    runs,
)
from tinydilate.cli.common import BAD_INPUT, INTERRUPTED, Parser
from tinydilate.errors import TinydilateError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 means done, 1 that doctor found something broken or a claim or check of a receptive field
    failed, 2 bad input, 130 Ctrl-C.
    """
    try:
        parsed = make_parser().parse_args(arguments)
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        return _complain(str(stop) or "stopped.", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `tinydilate ops | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TinydilateError as error:
        return _complain(str(error), BAD_INPUT)
    except MemoryError as error:
        return _complain(
            f"expected enough memory; there is not ({error}). Take smaller or fewer images, or a "
            "smaller batch.",
            BAD_INPUT,
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}.", BAD_INPUT)


def _complain(sentence: str, code: int) -> int:
    print(f"tinydilate: {sentence}", file=sys.stderr)
    return code


def make_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = Parser(
        prog="tinydilate",
        description="Dilated convolutions from scratch: train, look, understand.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tinydilate {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # In the order of --help.
    for part in (runs, predict, datasets, networks, fields, conversion, export, machine):
        part.add(commands)
    return parser
