"""What holds for every test: examples drawn the same way each time, and the world left as found."""

import gc
import os
import random
import shutil
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# No test is helped behind its back, and none helps itself to a second core.
os.environ.setdefault("TINYDILATE_SECOND_PROCESS", "off")

from tinydilate import (
    buffers,
    compiling,
    device,
    gemm,
    get_rng_state,
    gpu_gemm,
    gpu_winograd,
    is_grad_enabled,
    kernel,
    manual_seed,
    set_num_threads,
    set_rng_state,
    threads,
)
from tinydilate.functional import convolution

if device.SIMULATED:
    import simulator

    simulator.install()

EMULATED = os.environ.get("TINYDILATE_EMULATED_GPU") == "1"
if EMULATED and device.SIMULATED:
    raise pytest.UsageError(
        "expected the emulated GPU or the simulator; got both. Unset TINYDILATE_EMULATED_GPU or "
        "NUMBA_ENABLE_CUDASIM."
    )
if EMULATED:
    import emulated_gpu

    emulated_gpu.install()

# `HYPOTHESIS_PROFILE=thorough make check` draws new examples each time, and more of them.
# The database of failures stays off: a draw that fails prints the line that repeats it.
settings.register_profile(
    "default",
    deadline=None,  # the first call of a kernel compiles it
    derandomize=True,
    max_examples=12,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "thorough",
    settings.get_profile("default"),
    derandomize=False,
    max_examples=100,
    print_blob=True,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items):
    """Leave out what the emulated GPU is none for."""
    for item in items if EMULATED else ():
        reason = emulated_gpu.LEFT_OUT.get(getattr(item, "originalname", item.name))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish():
    """Leave what is loaded by now out of Python's search for cycles, which takes 0.85 s with it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def empty_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("working-folder")


def _world(folder: Path) -> dict[str, object]:
    """Everything global that a test could change and leave changed."""
    numba = sys.modules.get("numba")
    generator = np.random.get_state()  # noqa: NPY002 - to see that nobody uses it
    return {
        "kernels": {name: dict(entry.implementations) for name, entry in kernel.KERNELS.items()},
        "forced implementations": list(kernel._forced),
        "watchers": list(kernel._watchers),
        "cache folder of kernels": compiling._cache_folder if compiling._cache_settled else None,
        "number of threads": threads.get_num_threads(),
        "recording of gradients": is_grad_enabled(),
        "cache folder of the user's kernels": numba and numba.config.CACHE_DIR,
        "NumPy's error state": np.geterr(),
        "NumPy's error handler": np.geterrcall(),
        "NumPy's print options": np.get_printoptions(),
        "NumPy's global generator": (generator[1].tobytes(), generator[2:]),
        "Python's global generator": random.getstate(),
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "working folder": Path.cwd(),
        "files in the working folder": sorted(path.name for path in folder.iterdir()),
    }


@pytest.fixture(autouse=True)
def the_world_is_left_as_found(empty_folder):
    """Fail a test that leaks global state into the next one."""
    home = Path.cwd()
    os.chdir(empty_folder)
    chance = get_rng_state()
    manual_seed(0)  # a test draws the same whatever ran before it
    before = _world(empty_folder)
    yield
    set_rng_state(chance)
    after = _world(empty_folder)
    os.chdir(home)
    for path in empty_folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if before["cache folder of kernels"] is None:  # settled by the first kernel of the session
        del before["cache folder of kernels"]
    if before["cache folder of the user's kernels"] is None:  # Numba was imported just now
        del before["cache folder of the user's kernels"]
    leaks = [what for what, value in before.items() if after[what] != value]
    assert not leaks, f"the test changed and did not put back: {', '.join(leaks)}"


@pytest.fixture
def memory_is_full_of_nan(monkeypatch):
    """Results, and room to work in, hold what the last user left: here what shows when it counts.

    The number of threads is put back as well.
    """

    def empty(shape, dtype):
        return np.full(shape, np.nan, dtype)

    monkeypatch.setattr(buffers, "empty", empty)
    before = threads.get_num_threads()
    yield
    set_num_threads(before)
    gemm._made_plan.cache_clear()  # some tests have plans made for more threads than are worth it


Cached = type(lru_cache(len))


@pytest.fixture
def h100(monkeypatch):
    """The tiles and the card of an H100, to choose among; call it for another capability."""

    def patch(capability=(9, 0), multiprocessors=132):
        card = device.Card("patched", capability, multiprocessors, 2**36)
        monkeypatch.setattr(gpu_gemm, "card", lambda: card)
        monkeypatch.setattr(gpu_gemm, "TILES", gpu_gemm.TILES_OF_CARDS)
        forget()

    def forget():
        for module in (gpu_gemm, gpu_winograd, convolution):
            for known in list(vars(module).values()):
                if isinstance(known, Cached):  # a choice, or a plan
                    known.cache_clear()

    patch()
    yield patch
    forget()
