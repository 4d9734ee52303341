"""The tests' own caretaker: a test that leaks is failed, and named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

LEAKS = """
import os
from pathlib import Path
import numpy as np
import tinydilate
from tinydilate import autograd, kernel

def test_watcher(): kernel._watchers.append(print)
def test_forced(): kernel._forced.append("numpy")
def test_mode(): autograd.no_grad().__enter__()
def test_threads(): tinydilate.set_num_threads(tinydilate.get_num_threads() + 1)
def test_errors(): np.seterr(divide="raise")
def test_random(): np.random.seed(1)
def test_file(): Path("left.txt").write_text("here")
def test_environment(): os.environ["LEFT"] = "here"
def test_kernel(): kernel.KERNELS.popitem()
def test_numba():
    import numba
def test_numba_setting():
    import numba
    numba.config.CACHE_DIR = "elsewhere"
def test_clean(): tinydilate.manual_seed(5)
"""


def test_leaks_are_failures(tmp_path):
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    failed = [line for line in run.stdout.splitlines() if line.startswith("ERROR ")]
    names = {line.split("::")[1].split(" ")[0] for line in failed}
    assert names == {
        "test_watcher",
        "test_forced",
        "test_mode",
        "test_threads",
        "test_errors",
        "test_random",
        "test_file",
        "test_environment",
        "test_kernel",
        "test_numba_setting",
    }, run.stdout
    assert "the test changed and did not put back: watchers" in run.stdout
