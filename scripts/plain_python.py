"""Run the tests marked `plain` without compiling, and count which lines of the loops that reaches.

Machine code cannot be watched line by line. With NUMBA_DISABLE_JIT=1, set here, each loop runs in
the interpreter, and each instruction sequence by its Python twin; coverage.py sees every line.

Prints the loops by file, and each line that never ran. Every line has to: it exits with 1 where one
did not, but for those that `EXCUSED` names with a reason, and where an excuse is no longer needed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import CodeType, FunctionType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
ON_THE_GPU = "only kernels on the GPU call it: `make simulator`"
WATCHED = "one thread waits for another, and here is only one: tests/test_threads.py"
RAISED = "in Python an exception comes through by itself: tests/test_threads.py"
NOTHING = "its twin does nothing: it is a sentence"

EXCUSED = {
    "tinydilate/functional/padding.py:_run_of": ON_THE_GPU,
    "tinydilate/functional/pooling.py:_seen_by": ON_THE_GPU,
    "tinydilate/functional/pooling.py:_unsigned": ON_THE_GPU,
    "tinydilate/functional/reduction.py:_larger": ON_THE_GPU,
    "tinydilate/functional/softmax_loss.py:_first_score": ON_THE_GPU,
    "tinydilate/functional/softmax_loss.py:_is_class": ON_THE_GPU,
    "tinydilate/gpu_tf32.py:multiply_fragments": ON_THE_GPU,
    "tinydilate/gpu_tf32.py:rounded": ON_THE_GPU,
    "tinydilate/launching.py:number_at": ON_THE_GPU,
    "tinydilate/launching.py:pair_at": ON_THE_GPU,
    "tinydilate/launching.py:place_of": ON_THE_GPU,
    "tinydilate/launching.py:put_at": ON_THE_GPU,
    "tinydilate/launching.py:ravel": ON_THE_GPU,
    "tinydilate/launching.py:unravel": ON_THE_GPU,
    "tinydilate/window.py:tapped_by": ON_THE_GPU,
    "tinydilate/handover.py:compute": WATCHED,
    "tinydilate/handover.py:drive": WATCHED,
    "tinydilate/handover.py:serve": WATCHED,
    "tinydilate/handover.py:wait": NOTHING,
    "tinydilate/simd.py:fetch_ahead": NOTHING,
    "tinydilate/handover.py:together": RAISED,
    "tinydilate/handover.py:together_in_rooms": RAISED,
}


class Loop(NamedTuple):
    """One compiled function and the lines of it that never ran.

    Attributes
    ----------
    name : str
        ``file:function``, the file relative to the repository.
    lines : int
        How many lines there are to run.
    missed : tuple of int
        The numbers of those that never ran.
    """

    name: str
    lines: int
    missed: tuple[int, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", metavar="FILE", help="write every loop and its missed lines")
    options, for_pytest = parser.parse_known_args()

    os.environ["NUMBA_DISABLE_JIT"] = "1"  # before Numba is imported

    import coverage
    import pytest

    watcher = coverage.Coverage(data_file=None, config_file=False, include=["*/tinydilate/*"])
    watcher.clear_exclude()  # no comment excuses a line
    watcher.start()  # before tinydilate is imported
    marked = [
        str(path)
        for path in sorted(TESTS.glob("test_*.py"))
        if "mark.plain" in path.read_text("utf-8")
    ]
    failed = pytest.main(["-m", "plain", "-p", "no:cacheprovider", *for_pytest, *marked])
    watcher.stop()
    loops = list(measured(watcher, compiled_functions()))
    print("\n".join(table(loops)))
    if options.json:
        rows = [loop._asdict() | {"excused": EXCUSED.get(loop.name)} for loop in loops]
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    complaints = objections(loops, EXCUSED)
    print("\n".join(complaints))
    return int(failed) or bool(complaints)


def compiled_functions() -> list[CodeType]:
    """Every function of the package that Numba would compile for the processor."""
    import tinydilate
    from tinydilate import handover
    from tinydilate.compiling import Jitted
    from tinydilate.kernel import Elementwise

    for module in walk_packages(tinydilate.__path__, "tinydilate."):
        if not module.name.endswith(".__main__"):
            import_module(module.name)
    functions: list[Any] = [handover.together, handover.together_in_rooms]  # used or not
    gc.unfreeze()  # the tests hide from Python's search for cycles what was loaded before them
    for thing in gc.get_objects():
        kind = type(thing)  # not isinstance: it would ask objects that answer with a warning
        if issubclass(kind, Jitted):
            functions += [thing.body, *thing._within]
        elif issubclass(kind, Elementwise):
            functions.append(thing.rule)
    gc.freeze()
    plain = (getattr(function, "__func__", function) for function in functions)
    return list({each.__code__ for each in plain if isinstance(each, FunctionType)})


def measured(watcher: Any, codes: list[CodeType]) -> Iterator[Loop]:
    """The functions of the package, in the order of the files, and what ``watcher`` saw of them."""
    for code in sorted(codes, key=lambda code: (code.co_filename, code.co_firstlineno)):
        path = Path(code.co_filename)
        if not path.is_relative_to(ROOT / "tinydilate"):  # a loop that a test made
            continue
        _, statements, _, missing, _ = watcher.analysis2(str(path))
        own = set(lines_of(code))
        if not own:  # a body on the line of its head: that ran when it was defined, used or not
            own, missing = {code.co_firstlineno}, [code.co_firstlineno]
        missed = tuple(line for line in missing if line in own)
        name = f"{path.relative_to(ROOT).as_posix()}:{code.co_name}"
        yield Loop(name, len(own.intersection(statements)), missed)


def lines_of(code: CodeType) -> Iterator[int]:
    """Numbers of a function's lines below its head, inner functions included."""
    yield from (line for _, _, line in code.co_lines() if line and line != code.co_firstlineno)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from lines_of(constant)


def table(loops: list[Loop]) -> Iterator[str]:
    """A line for each file: its compiled functions, their lines, and how many of them ran."""
    yield f"{'compiled functions in':<44} {'loops':>5} {'lines':>5} {'ran':>6}"
    files = dict.fromkeys(loop.name.partition(":")[0] for loop in loops)
    for name in [*files, ""]:  # the last is all of them
        own = [loop for loop in loops if loop.name.startswith(name)]
        lines, missed = sum(loop.lines for loop in own), sum(len(loop.missed) for loop in own)
        share = f"{1 - missed / max(1, lines):.1%}"
        yield f"{name or 'all':<44} {len(own):>5} {lines:>5} {share:>6}"


def objections(loops: list[Loop], excused: Mapping[str, str]) -> list[str]:
    """What is wrong: lines that nobody ran or excused, and excuses that nobody needs."""
    found = [
        f"{loop.name}: line{'s' if len(loop.missed) > 1 else ''} "
        f"{', '.join(map(str, loop.missed))} never ran as plain Python. Give it a test that gets "
        "there, and mark that test `plain`."
        for loop in loops
        if loop.missed and loop.name not in excused
    ]
    wanted = {loop.name for loop in loops if loop.missed}
    found += [
        f"{name}: excused, but all of its lines ran, or there is no such loop. Take the name out "
        "of EXCUSED in scripts/plain_python.py."
        for name in excused
        if name not in wanted
    ]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
