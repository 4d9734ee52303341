"""Kernels between guard pages: nothing is read or written beside an array, not even by vectors."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="page protection is POSIX")


def process(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", *arguments],
        env=dict(os.environ),
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_kernels_stay_in_their_arrays_and_wait_for_no_cleared_memory():
    run = process("guarded.py", "convolve")
    assert run.stdout.strip() == "done", run.stderr


@pytest.mark.parametrize("guard", ["before", "behind"])
def test_a_guard_ends_who_reads_one_number_beside_its_array(guard):
    run = process("guarded.py", guard)
    assert run.stdout == "so far\n", run.stderr
    assert run.returncode in (-signal.SIGSEGV, -signal.SIGBUS)
