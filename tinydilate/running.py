"""What every training run needs: to be stopped, to go on, and to notice that it has gone astray.

A run is defined by steps, and everything in it follows from its configuration. So the latest
checkpoint holds weights, the optimiser's state, the random state and a `Standing`: where the run
stands, and how long its log was. Going on from there gives, bit for bit, the run that was never
interrupted (on the same machine, with the same number of threads).
"""

from __future__ import annotations

import json
import math
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import tinydilate
from tinydilate.device import Array
from tinydilate.errors import ConfigError, DataError
from tinydilate.functional.dropping import get_rng_state, set_rng_state
from tinydilate.io.checkpoint import load_checkpoint, save_checkpoint
from tinydilate.io.files import write_text
from tinydilate.io.logbook import Log
from tinydilate.nn import Module
from tinydilate.optim import Optimizer
from tinydilate.threads import get_num_threads

LATEST = "latest.safetensors"
WATCHED = 20  # steps whose mean loss tells whether training has gone astray


def latest_of(folder: Path) -> Path:
    """The checkpoint that the run in a folder goes on from."""
    return folder / "checkpoints" / LATEST


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after everything was saved; the message says how to go on."""


# ---- where a run stands ----------------------------------------------------------------------


class Standing:
    """Where a run stands: everything that a checkpoint holds beside arrays."""

    def __init__(self) -> None:
        self.stage = 0  # number of the stage
        self.step = 0  # steps of it that are done
        self.skipped = 0  # batches without a pixel that counts
        self.log_bytes = 0  # length of the log
        self.seconds = 0.0  # spent so far, over all sittings
        self.recent: list[float] = []  # the last losses of this stage
        self.threads = get_num_threads()

    def take_in(self, loss: float, classes: int) -> str:
        """Remember a step's loss; says what is wrong with it, or with the last ones, or ``""``.

        A network that knows nothing finds all classes equally likely, a loss of ln(classes). Four
        times that over `WATCHED` steps, or a loss that is no number, is not a bad patch: the steps
        are too long. Losses are above 0, so where the first few are too much for all of those
        steps, there is nothing to wait for. The very first says nothing yet: no step led to it.
        """
        if not math.isfinite(loss):
            return f"{loss}"
        self.recent = [*self.recent, loss][-WATCHED:]
        count, total = len(self.recent), sum(self.recent)
        if count > 1 and total > WATCHED * 4 * math.log(classes):
            return f"{total / count:.3g} over {count} steps"
        return ""


def save_state(path: Path, standing: Standing, network: Module, optimizer: Optimizer) -> None:
    """Write a checkpoint from which a run can go on bit for bit."""
    note = {**vars(standing), "random": get_rng_state()}
    arrays = {f"network.{name}": array for name, array in network.state_dict().items()}
    for name, array in optimizer.state_dict().items():
        arrays[f"optimizer.{name}"] = array
    save_checkpoint(path, arrays, {"run": note})


class SavedState:
    """What `save_state` wrote: where the run stood is read at once, the rest put back on demand.

    Parameters
    ----------
    path : path
    standing : Standing
        Gets what the checkpoint says.

    Raises
    ------
    DataError
        If the file cannot be read, or is the checkpoint of something else.
    """

    def __init__(self, path: Path, standing: Standing) -> None:
        try:
            self.arrays, note = load_checkpoint(path)
        except DataError as error:
            raise DataError(
                f"expected a checkpoint to go on from; this run has none that can be read. Start a "
                f"new one with another --out, or delete {path.parent.parent}. ({error})"
            ) from None
        try:
            state = dict(note["run"])
            self.random = state.pop("random")
            if set(state) != set(vars(standing)):
                raise KeyError("another version's checkpoint")
        except (TypeError, KeyError) as error:
            raise DataError(
                f"expected the checkpoint of a run; {path} is another one "
                f"({error}). Start a new run with another --out."
            ) from None
        if state["threads"] != get_num_threads():
            print(
                f"This run was begun with {state['threads']} threads and goes on with "
                f"{get_num_threads()}: sums may round differently in the last bit.",
                file=sys.stderr,
            )
        vars(standing).update(state)

    def put_back(self, network: Module, optimizer: Optimizer) -> None:
        """Give a network and its optimiser the numbers that they had, and chance its state."""
        network.load_state_dict(self._part("network."))
        optimizer.load_state_dict(self._part("optimizer."))
        set_rng_state(self.random)

    def _part(self, prefix: str) -> dict[str, Array]:
        return {
            name.removeprefix(prefix): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }


class Sitting:
    """One sitting of a run: from its start, or from where it stood, until it ends or is stopped.

    Parameters
    ----------
    folder : path
        Of the run: with its log, its checkpoints and in the end its results.
    standing : Standing
        Where the run stands; it is kept up to date.
    """

    def __init__(self, folder: Path, standing: Standing) -> None:
        self.folder, self.standing = folder, standing
        self.log = Log(folder / "log.jsonl", standing.log_bytes)
        self._begun = time.perf_counter()

    def seconds(self) -> float:
        """Seconds that the run has taken, over all sittings."""
        now = time.perf_counter()
        self.standing.seconds += now - self._begun
        self._begun = now
        return self.standing.seconds

    def save(self, network: Module, optimizer: Optimizer) -> None:
        """Write the latest checkpoint: from here the run can go on bit for bit."""
        self.standing.log_bytes = self.log.settle()
        self.seconds()
        save_state(latest_of(self.folder), self.standing, network, optimizer)

    def skip(self, **where: str) -> None:
        """Log a step whose batch has no pixel that counts."""
        self.standing.skipped += 1
        self.log.write(**where, step=self.standing.step, skipped=True)

    def take_in(self, loss: float, lr: float, classes: int, **where: str) -> str:
        """Log a step's loss; what is wrong with it, as `Standing.take_in` says."""
        wrong = self.standing.take_in(loss, classes)
        if math.isfinite(loss):
            seconds = round(self.seconds(), 3)
            self.log.write(**where, step=self.standing.step, loss=loss, lr=lr, seconds=seconds)
        return wrong

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Write results.json, with what decided the numbers; returns all of it."""
        results |= {"threads": get_num_threads(), "versions": versions()}
        results |= {"seconds": round(self.seconds(), 3)}
        write_text(self.folder / "results.json", json.dumps(results, indent=2) + "\n")
        return results


def astray(wrong: str, place: str, classes: int) -> str:
    """The first sentence of an error about losses that do not fall."""
    return (
        f"expected a loss that falls from ln {classes} = {math.log(classes):.2f}; got {wrong} at "
        f"{place}."
    )


# ---- folders, interrupts, versions -----------------------------------------------------------


def make_run_folder(folder: Path, configuration: str) -> None:
    """Make the folder of a new run, with room for checkpoints; ``configuration`` names its file.

    Raises
    ------
    ConfigError
        If it holds a run already, or anything that a run would write over, or cannot be made.
    """
    if (folder / configuration).exists():
        raise ConfigError(
            f"expected a new run folder; {folder} holds a run already. Go on with it by adding "
            "--resume, or choose another folder with --out."
        )
    if (folder / "log.jsonl").exists() or latest_of(folder).exists():
        raise ConfigError(
            f"expected a new run folder; {folder} holds a log or a checkpoint, which a run would "
            "write over. Choose another folder with --out."
        )
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"expected a folder that can be written to; {folder}: {error.strerror or error}. "
            "Choose another one with --out."
        ) from None


def read_results(path: Path, key: str) -> dict[str, Any]:
    """What a finished run found, its results.json; ``key`` is one that each of its kind has.

    Raises
    ------
    DataError
        If it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and key in found:
            return found
    except ValueError:
        pass
    raise DataError(
        f"expected the results of a finished run in {path}; it is damaged. Delete that file: "
        "--resume writes it again."
    )


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    import numba

    return {
        "tinydilate": tinydilate.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
    }


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Within the block, the first Ctrl-C only sets an event; the second one acts as always.

    A step changes weights and the optimiser's state one after the other. Only between two steps do
    they belong together and can be saved.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # Python lets only the main thread handle signals
        return

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        tqdm.write("Stopping after this step (Ctrl-C again: at once) ...", file=sys.stderr)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
