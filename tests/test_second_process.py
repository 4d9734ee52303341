"""The second process that compiles along: when it is started, what it leaves, and how it ends."""

import importlib
import json
import math
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from tinydilate import cli, compiling, compiling_ahead, second_process, warmup
from tinydilate import functional as F
from tinydilate.autograd import tensor
from tinydilate.compiling import Jitted, jit, noting
from tinydilate.errors import ConfigError
from tinydilate.functional.rectifier import relu_backward
from tinydilate.kept import locked
from tinydilate.second_process import SETTING, STEP, reason_against
from tinydilate.threads import share

LIMIT_OF_CONTAINER = second_process._limit_of_container


@pytest.fixture
def allowed(tmp_path, monkeypatch):
    """A machine on which it may be started, whatever this one is like; returns the folder."""
    monkeypatch.setenv(SETTING, "on")
    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(second_process, "available_cores", lambda: 2)
    monkeypatch.setattr(second_process, "get_num_threads", lambda: 2)
    monkeypatch.setattr(second_process, "_is_a_worker", lambda: False)
    monkeypatch.setattr(second_process, "_limit_of_container", lambda: 2.0)
    monkeypatch.setattr(second_process, "_process", None)
    monkeypatch.setattr(second_process, "_missing", 0)
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert reason_against(STEP) == ""
    return tmp_path


@pytest.fixture
def started(allowed, monkeypatch):
    """What would be started: (command, options) of each."""
    found = []

    def popen(command, **options):
        found.append((command, options))
        pipe = types.SimpleNamespace(close=lambda: None)
        return types.SimpleNamespace(pid=0, stdin=pipe, wait=lambda: 0)

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(os, "setpriority", lambda *_: None, raising=False)
    return found


# ---- whether it is started -------------------------------------------------------------------


def test_the_setting(allowed, monkeypatch):
    monkeypatch.setenv(SETTING, "off")
    assert reason_against(STEP) == "TINYDILATE_SECOND_PROCESS=off"
    monkeypatch.setenv(SETTING, "")
    assert reason_against(STEP) == ""
    monkeypatch.setenv(SETTING, "no")
    monkeypatch.setattr(second_process, "_missing", 2)
    for _ in range(2):  # not only the first time
        with pytest.raises(ConfigError) as caught:
            compiling.when_missing()
    assert str(caught.value) == (
        "expected TINYDILATE_SECOND_PROCESS to be on or off; got 'no'. "
        "Unset it to compile on two cores when loops are compiled for the first time."
    )


@pytest.mark.parametrize(
    ("what", "name", "value", "reason"),
    [
        (second_process, "available_cores", lambda: 1, "one core or one thread"),
        (second_process, "get_num_threads", lambda: 1, "one core or one thread"),
        (second_process, "_is_a_worker", lambda: True, "this process is itself one of several"),
        (compiling, "cache_folder", lambda: None, "there is no folder for machine code"),
        (sys, "frozen", True, "this program is not a Python interpreter"),
        (sys, "executable", "/opt/blender/blender", "this program is not a Python interpreter"),
        (sys, "executable", None, "this program is not a Python interpreter"),
    ],
)
def test_where_it_is_not_started(started, monkeypatch, what, name, value, reason):
    monkeypatch.setattr(what, name, value, raising=False)
    assert reason_against(STEP) == reason
    assert not second_process.start()
    assert not started


def test_it_is_of_no_use_where_numba_is_switched_off(started, monkeypatch):
    monkeypatch.setattr(compiling.import_numba().config, "DISABLE_JIT", 1)
    assert reason_against(STEP) == "Numba is switched off"


def test_not_again_when_its_list_is_done(started, allowed):
    (allowed / "ahead-step").touch()
    assert not second_process.start()
    assert second_process.start(second_process.EVERYTHING)
    assert not second_process.start(second_process.EVERYTHING)  # one at a time
    assert len(started) == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "what is this?"}, math.inf),
    ],
)
def test_the_limit_of_a_container(started, monkeypatch, tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(second_process, "CONTROL", tmp_path)
    monkeypatch.setattr(second_process, "_limit_of_container", LIMIT_OF_CONTAINER)
    assert second_process._limit_of_container() == cores
    assert second_process.start() == (cores >= 2)


def test_a_process_of_multiprocessing_starts_none(monkeypatch):
    assert not second_process._is_a_worker()
    multiprocessing = types.SimpleNamespace(parent_process=lambda: "the first")
    monkeypatch.setitem(sys.modules, "multiprocessing.process", multiprocessing)
    assert second_process._is_a_worker()


def test_it_is_started_by_the_third_loop_that_is_missing(started):
    compiling.when_missing()
    compiling.when_missing()
    assert not started
    for _ in range(3):
        compiling.when_missing()
    assert len(started) == 1


def test_what_it_is_told(started, allowed, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", Path("/somewhere")])
    second_process.start()
    ((command, options),) = started
    assert command[:3] == ["/usr/bin/python3", "-P", "-c"]
    assert "compiling_ahead import main" in command[3]
    assert json.loads(command[4]) == ["", os.sep + "somewhere"]
    assert command[5:] == [str(allowed), "step"]
    assert options["env"][SETTING] == "off"  # it starts none of its own
    assert (options["stdin"], options["stdout"]) == (subprocess.PIPE, subprocess.DEVNULL)


def test_without_leave_to_start_processes_all_goes_on(allowed, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert not second_process.start()


def test_it_is_started_once_even_where_priorities_cannot_be_set(started, monkeypatch):
    def refuse(*_):
        raise PermissionError("not here")

    monkeypatch.setattr(os, "setpriority", refuse, raising=False)
    for _ in range(6):
        compiling.when_missing()
    assert len(started) == 1


def test_two_threads_start_one(started):
    barrier = threading.Barrier(4)

    def start():
        barrier.wait()
        second_process.start()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1


# ---- what it does ----------------------------------------------------------------------------


def step_of_a_rectifier():
    numbers = np.linspace(-1, 1, 6, dtype=np.float32)
    return relu_backward(numbers, numbers)


def test_loops_are_noted_and_not_run():
    run = Jitted.call_within
    x = tensor(np.ones((1, 2, 6, 6), np.float32), requires_grad=True)
    with noting() as needed:
        for _ in range(2):
            F.max_pool2d(x, 2).sum().backward()
            share(count_up, 1, np.zeros(1, np.float32))
    assert Jitted.call_within is run
    assert not counted
    names = [each.dispatcher.py_func.__qualname__.partition(".")[0] for each in needed]
    assert {"_max_pool_2x2", "count_up"} <= set(names)
    assert len(names) == len(set(names))  # in spite of two rounds


counted = []


@jit
def count_up(start, stop, out):
    counted.append(1)  # Numba could not even compile it


def test_the_list_is_that_of_a_training_step():
    names = {
        each.dispatcher.py_func.__qualname__.partition(".")[0]
        for each in compiling_ahead.needed_by(compiling_ahead.WORK[STEP])
    }
    assert {"_pad", "_product", "_cross_entropy", "_outer", "_adam"} <= names


AHEAD = """
import sys
sys.path.insert(0, {tests!r})
from test_second_process import step_of_a_rectifier
from tinydilate import cli, compiling, compiling_ahead, second_process
compiling_ahead.WORK["step"] = [step_of_a_rectifier]
"""
WORK_AHEAD = AHEAD + "compiling_ahead.main(str(compiling.cache_folder()), 'step')"
FOUND = AHEAD + "print(step_of_a_rectifier().tobytes().hex(), second_process._missing)"


def in_another_process(program, folder, **options):
    program = program.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "TINYDILATE_CACHE": str(folder), SETTING: "off"}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment, **options},
        text=True,
    )


def output_of(program, folder, **options):
    with in_another_process(program, folder, **options) as process:
        printed = process.stdout.read().strip()
    assert process.returncode == 0
    return printed


def test_what_was_compiled_ahead_is_found_and_has_the_same_bits(tmp_path):
    assert output_of(WORK_AHEAD, tmp_path) == ""
    assert list(tmp_path.rglob("ahead-step"))
    bits = step_of_a_rectifier().tobytes().hex()
    assert output_of(FOUND, tmp_path) == f"{bits} 0"
    # Damaged files are as good as none.
    for path in (*tmp_path.rglob("*.nbi"), *tmp_path.rglob("*.nbc")):
        path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    answer, missing = output_of(FOUND, tmp_path).split()
    assert answer == bits
    assert int(missing) > 0


ENDLESS = """
import time
from tinydilate import compiling_ahead
compiling_ahead.WORK["step"] = [lambda: time.sleep(600)]
"""
# The first process, and its second one with a work that does not end.
FIRST = f"""
import os
from tinydilate import second_process, threads
second_process.available_cores = second_process.get_num_threads = lambda: 2
second_process.LOWEST = 0  # the test need not wait until the machine idles
second_process._PROGRAM = second_process._PROGRAM.replace("from tiny", {ENDLESS!r} + "from tiny")
os.environ["TINYDILATE_SECOND_PROCESS"] = "on"
print(second_process.start(), flush=True)
input()
"""
# The same where a file of the user's bears the name of a module that the second process needs.
BESIDE = """
import os, sys
del sys.path[0]
sys.path = [folder for folder in sys.path if folder]
os.environ["TINYDILATE_SECOND_PROCESS"] = "on"
from tinydilate import compiling, second_process
second_process.available_cores = second_process.get_num_threads = lambda: 2
second_process.LOWEST = 0  # the test need not wait until the machine idles
second_process._limit_of_container = lambda: 2.0
program = "; import pathlib; pathlib.Path('ran').touch(); import os; os._exit(0)"
second_process._PROGRAM = second_process._PROGRAM.partition("; from")[0] + program
os.chdir(os.environ["BESIDE"])
print(second_process.start())
second_process._process.wait()
import time
while second_process._process.stdin.closed is False:
    time.sleep(0.01)
print(os.listdir())
"""


def test_it_runs_nothing_that_lies_about(tmp_path):
    (tmp_path / "json.py").write_text("open('harm', 'w').close()")
    printed = output_of(BESIDE, tmp_path / "kept", BESIDE=str(tmp_path))
    assert printed.splitlines()[0] == "True"
    assert "'ran'" in printed
    assert "harm" not in printed


@pytest.mark.parametrize("how", ["it ends", "it is killed"])
def test_it_ends_with_the_first_process(tmp_path, how):
    with in_another_process(FIRST, tmp_path) as first:
        assert first.stdout.readline() == "True\n"
        assert held(tmp_path, within=60), "the second process does not work"
        if how == "it ends":
            first.stdin.write("\n")
        else:
            first.kill()
    assert not held(tmp_path, within=0, until_free=20)
    assert not list(tmp_path.rglob("ahead-step"))  # it has not come to its end


def held(folder, within, until_free=0.0):
    """Whether a second process works for this folder."""
    end = time.monotonic() + within
    while True:
        for path in folder.rglob("second-process"):
            with locked(path, patience=until_free) as free:
                if not free:
                    return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)


def test_only_one_works_for_a_folder(tmp_path, monkeypatch):
    worked = []
    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(compiling_ahead, "WORK", {STEP: [lambda: worked.append(1)]})
    monkeypatch.setattr(compiling_ahead, "_end_with_the_first", lambda: None)
    monkeypatch.setattr(os, "_exit", lambda code: None)
    compiling_ahead.main(str(tmp_path / "another"), STEP)
    with locked(tmp_path / "second-process"):
        compiling_ahead.main(str(tmp_path), STEP)
    assert not worked
    compiling_ahead.main(str(tmp_path), STEP)
    assert worked == [1]


def test_a_forked_child_lets_go_of_it(monkeypatch):
    closed = []
    pipe = types.SimpleNamespace(close=lambda: closed.append(1))
    process = types.SimpleNamespace(stdin=pipe, returncode=None)
    monkeypatch.setattr(second_process, "_process", process)
    monkeypatch.setattr(second_process, "_missing", 2)
    second_process._forget()
    assert (closed, process.returncode) == ([1], 0)
    assert (second_process._process, second_process._missing) == (None, 0)


# ---- who asks for it -------------------------------------------------------------------------


def test_warming_up_asks_for_help_at_once(started, monkeypatch, tmp_path):
    monkeypatch.setattr(warmup, "cache_folder", lambda: tmp_path)
    warmup.warm_up("a", lambda: None, progress=False)
    assert len(started) == 1
    monkeypatch.setattr(second_process, "_process", None)
    warmup.warm_up("a", lambda: None, progress=False)  # there is nothing to do
    assert len(started) == 1


def test_the_command_asks_for_every_loop(started, monkeypatch, capsys):
    monkeypatch.setattr(warmup, "warm_up", lambda *_, **__: 0.0)
    assert cli.main(["warmup"]) == 0
    assert "compiled before" in capsys.readouterr().out
    ((command, _),) = started
    assert command[-1] == "all"


@pytest.mark.slow
def test_a_first_step_has_the_same_bits_with_help_and_without(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    program = importlib.import_module("startup").STEP.replace('print("finished", flush=True)', "")
    program += (
        "import tinydilate.second_process as second; second.end(); "
        "print(loss.data.tobytes().hex(), *(p.data.tobytes().hex() for p in net.parameters()))"
    )
    alone, helped = (
        output_of(program, tmp_path / setting, **{SETTING: setting, "NUMBA_NUM_THREADS": "2"})
        for setting in ("off", "on")
    )
    assert alone == helped
