"""What the second process does: it compiles loops that the first will need, the last ones first.

Which loops those are, nobody has to write down: the same tiny steps are run that warm up a
training run, but no loop of theirs. It is noted, with the types of its arguments, and what it would
have computed stays empty memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from tinydilate import second_process, train, warmup
from tinydilate.compiling import Needed, noting
from tinydilate.config import Config
from tinydilate.kept import locked


def tiny_training_steps() -> None:
    """One step of each stage of the demo."""
    train.tiny_steps(Config())


WORK: dict[str, list[Callable[[], Any]]] = {
    second_process.STEP: [tiny_training_steps],
    second_process.EVERYTHING: [tiny_training_steps, warmup.every_kernel],
}


def needed_by(work: list[Callable[[], Any]]) -> list[Needed]:
    """The loops that some work would run, in the order in which it first does."""
    with np.errstate(all="ignore"), noting() as needed:  # of empty memory anything may come
        for each in work:
            each()
    return list(needed)


def main(folder: str, what: str) -> None:
    """The second process: work through the list, and end.

    ``folder`` is where the first process keeps machine code: where this one would keep it elsewhere
    it would be of no use.
    """
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    done = second_process.stamp(what)
    if done is None or str(done.parent) != folder:
        return
    with locked(done.with_name("second-process"), patience=0) as alone:
        if alone:
            for needed in reversed(needed_by(WORK[what])):
                needed.compile()
            done.touch()
    os._exit(0)  # nothing is left to be tidied up


def _end_with_the_first() -> None:
    """Nothing ever comes from the first process but the end of its output."""
    while os.read(0, 1):
        pass
    os._exit(0)
