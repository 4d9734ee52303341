"""Shared loops: each index once, errors reported, the same bits whoever computes them."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinydilate
import tinydilate.functional as F
from tinydilate import buffers, get_num_threads, handover, set_num_threads, tensor, threads
from tinydilate.compiling import Jitted, jit
from tinydilate.errors import ConfigError
from tinydilate.handover import ASLEEP, TAKEN, look, write
from tinydilate.threads import share

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3, 16, 16)).astype(np.float32)
W = RNG.normal(size=(8, 3, 3, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def usual_number_of_threads():
    before = get_num_threads()
    yield
    set_num_threads(before)


def step(dilation=2):
    """Forward and backward of a small convolution: three arrays."""
    x, w = tensor(X, requires_grad=True), tensor(W, requires_grad=True)
    out = F.conv2d(x, w, padding=dilation, dilation=dilation)
    (out * out).mean().backward()
    return out.data, x.grad.data, w.grad.data


@jit
def count_up(start, stop, covered, starts):
    for n in range(start, stop):
        covered[n] += 1
    starts[start] = stop


@settings(max_examples=100)
@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 20))
def test_each_index_is_covered_once(count, number, least):
    set_num_threads(number)
    covered, stops = np.zeros(count, int), np.zeros(count + 1, int)
    share(count_up, count, covered, stops, least=least)
    assert (covered == 1).all()
    sizes = [int(stop) - start for start, stop in enumerate(stops) if stop > start]
    assert len(sizes) <= number
    assert len(sizes) < 2 or min(sizes) >= least, "a part too small to be worth a thread"


@jit
def count_in_room(start, stop, room, covered, rooms):
    room[0] += stop - start
    rooms[start] = len(room)
    for n in range(start, stop):
        covered[n] += room[0] > 0


@pytest.mark.parametrize("number", [1, 2, 5])
def test_each_thread_has_room_of_its_own(number, monkeypatch):
    """Whoever computes a part: what two parts write into their rooms at once does not mix."""
    handed_out = []
    monkeypatch.setattr(
        buffers,
        "empty",
        lambda shape, dtype: handed_out.append(np.zeros(shape, dtype)) or handed_out[-1],
    )
    set_num_threads(number)
    covered, rooms = np.zeros(50, int), np.zeros(50, int)
    share(count_in_room, 50, covered, rooms, room=20, dtype=np.float64)
    assert (covered == 1).all()
    assert set(rooms[rooms > 0]) == {32}, "rounded up to whole lines of the cache"
    (room,) = handed_out
    assert room.shape == (number, 32)
    assert room.dtype == np.float64
    assert room[:, 0].sum() == 50
    assert not room[:, 1:].any()


@jit
def meet(start, stop, arrived, everybody):
    """Wait until as many threads are in the loop: passes only if they run at once."""
    for n in range(start, stop):
        write(arrived, n, 1)
        looks = 0
        while arrived[:everybody].sum() < everybody and looks < 100_000_000:
            looks += look(arrived, n)
        write(arrived, everybody + n, int(arrived[:everybody].sum()))


def test_parts_run_on_several_threads_at_once():
    set_num_threads(3)
    share(meet, 1, np.zeros(2, np.int64), 1)  # compiled; meanwhile the helpers fall asleep
    for _ in range(3):
        arrived = np.zeros(6, np.int64)
        share(meet, 3, arrived, 3)
        assert arrived.tolist() == [1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize("asleep", [False, True])
def test_threads_help_whether_they_watch_or_sleep(asleep):
    set_num_threads(2)
    share(meet, 1, np.zeros(2, np.int64), 1)
    share(meet, 2, np.zeros(4, np.int64), 2)
    words = threads._crew.board
    while asleep and not words[ASLEEP]:
        time.sleep(0.001)
    arrived = np.zeros(4, np.int64)
    share(meet, 2, arrived, 2)
    assert arrived[2:].tolist() == [2, 2]


@jit
def stumble(start, stop, at, finished):
    if start == at:
        raise ZeroDivisionError("at a part")
    finished[start] = 1


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_exception_in_a_part_reaches_the_caller(failing):
    set_num_threads(3)
    finished = np.zeros(3, int)
    with pytest.raises(ZeroDivisionError, match="at a part"):
        share(stumble, 3, failing, finished)
    assert finished.sum() == 2, "the other parts ran to their end"
    share(stumble, 3, -1, finished)  # and the threads are still there
    assert finished.all()


@jit
def stumble_in_room(start, stop, room, at):
    room[0] = start
    if start == at:
        raise ZeroDivisionError("at a part")


@pytest.mark.plain
@pytest.mark.parametrize("number", [1, 2])
def test_an_exception_in_a_room_reaches_the_caller(number):
    set_num_threads(number)
    for failing in range(number):
        with pytest.raises(ZeroDivisionError, match="at a part"):
            share(stumble_in_room, number, failing, room=1)
    share(stumble_in_room, number, -1, room=1)


def test_a_caller_who_finds_the_board_taken_computes_alone():
    set_num_threads(2)
    share(count_up, 2, np.zeros(2, int), np.zeros(3, int))
    board = threads._crew.board
    board[TAKEN] = 1
    covered, stops = np.zeros(8, int), np.zeros(9, int)
    share(count_up, 8, covered, stops)
    board[TAKEN] = 0
    assert covered.all()
    assert stops.tolist() == [4, 0, 0, 0, 8, 0, 0, 0, 0], "cut as always"


def test_the_protocol_is_sound_in_plain_python():
    """The caller and a helper on one board, step by step; the intrinsics by their twins."""
    board, done = [0] * handover.board_size(1), []
    take, compute = handover.take.body, handover.compute.body
    with pytest.MonkeyPatch.context() as patch:
        for thing in vars(handover).values():
            if isinstance(thing, Jitted):
                patch.setattr(thing, "_compiled", thing.body)
        job = handover.address.body(lambda start, stop: done.append((start, stop)), ())
        assert handover.drive(board, job, 3, 10) == -1
        assert done == [(0, 3), (3, 6), (6, 10)]
        assert take(board, 0) == -1, "nothing is left"
        board[handover.TICKET] += 2 << 16  # two more parts for the helper
        assert take(board, 5) == -1, "a sixth thread has no room"
        for part in (3, 4):
            assert take(board, 1) == part
            compute(board, part, 1)
        assert board[handover.DONE] == 5
        assert handover.serve(board, 1), "nothing comes: the helper says that it sleeps"
        assert board[ASLEEP] == 1
        board[handover.STOP] = 1
        assert not handover.serve(board, 1)


def test_two_python_threads_at_once_compute_the_same_bits():
    set_num_threads(2)
    alone = step(1), step(2)
    results = {}

    def work(name, dilation):
        results[name] = [step(dilation) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(n, 1 + n % 2)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for name, several in results.items():
        for result in several:
            for mine, theirs in zip(result, alone[name % 2], strict=True):
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_same_number_of_threads_gives_the_same_bits(number):
    set_num_threads(number)
    first = step()
    set_num_threads(number)  # with new threads
    for mine, theirs in zip(step(), first, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_another_number_of_threads_changes_no_more_than_rounding():
    results = []
    for number in (1, 2, 3):
        set_num_threads(number)
        results.append(step())
    for other in results[1:]:
        for mine, theirs in zip(other, results[0], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_of_a_process_that_used_threads_makes_its_own():
    """In a process of its own: the child of a fork must not run the tests' clean-up."""
    code = """
import os, numpy as np
import tinydilate.functional as F
from tinydilate import set_num_threads
set_num_threads(2)
x = np.ones((4, 3, 32, 32), np.float32); w = np.ones((8, 3, 3, 3), np.float32)
before = F.conv2d(x, w).numpy()
child = os.fork()
if child == 0:
    same = (F.conv2d(x, w).numpy() == before).all()
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert (F.conv2d(x, w).numpy() == before).all()
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def helpers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("tinydilate")]


def test_the_threads_of_another_count_are_let_go():
    set_num_threads(1)
    for left in helpers():
        left.join(10)
    set_num_threads(3)
    step()
    assert len(helpers()) == 2
    mine = helpers()
    set_num_threads(1)
    for thread in mine:
        thread.join(10)
    assert not helpers()


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_the_number_of_threads_is_a_positive_integer(count):
    with pytest.raises(ConfigError, match=r"^the number of threads should be an integer >= 1, got"):
        set_num_threads(count)


def test_the_number_of_threads_comes_from_the_environment():
    def answer(setting):
        environment = {**os.environ, "NUMBA_NUM_THREADS": setting}
        code = "import tinydilate; print(tinydilate.get_num_threads())"
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert answer("1").stdout.strip() == "1"
    assert answer("").stdout.strip() == str(threads.available_cores())
    wrong = answer("many")
    assert wrong.returncode == 1
    assert "NUMBA_NUM_THREADS should be a whole number of at least 1, got 'many'" in wrong.stderr


def test_one_thread_needs_no_helper():
    set_num_threads(1)
    for left in helpers():
        left.join(10)
    step()
    assert not helpers()
    assert tinydilate.get_num_threads() == 1


TRAINING = """
import hashlib, statistics, time
import numpy as np
import tinydilate as td
import tinydilate.functional as F
from tinydilate import models, optim
td.manual_seed(0)
random = np.random.default_rng(0)
images = random.normal(size=(4, 1, 32, 32)).astype(np.float32)
labels = random.integers(0, 5, size=(4, 32, 32))
network = models.small_front_end(5)
optimizer = optim.Adam(network.parameters())
seconds = []
for _ in range(20):
    begin = time.perf_counter()
    optimizer.zero_grad()
    scores = F.interpolate(network(images), size=(32, 32), mode="bilinear")
    F.cross_entropy(scores, labels).backward()
    optimizer.step()
    seconds.append(time.perf_counter() - begin)
digest = hashlib.sha256()
for parameter in network.parameters():
    digest.update(parameter.data.tobytes())
print(digest.hexdigest(), statistics.median(seconds))
"""


@pytest.mark.parametrize("number", ["1", "2"])
def test_two_processes_training_at_once_get_the_same_bits_and_do_not_collapse(number):
    def start():
        command = [sys.executable, "-c", TRAINING]
        environment = {**os.environ, "NUMBA_NUM_THREADS": number}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def answer(process):
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        digest, seconds = out.split()
        return digest, float(seconds)

    alone, usual = answer(start())
    for digest, seconds in [answer(process) for process in (start(), start())]:
        assert digest == alone
        # Half the processor makes a step twice as slow. Threads that wait by spinning, while the
        # thread that they wait for has no core, make it hundreds of times slower.
        assert seconds < 20 * usual


MEETING = """
import gc, sys, threading
import numba
import tinydilate.functional
from tinydilate import compiling

loops = [loop for loop in gc.get_objects() if type(loop) is compiling.Jitted]
assert len(loops) > 20
before = numba.config.CACHE_DIR
sys.setswitchinterval(1e-6)
for _ in range(20):
    for loop in loops:
        loop._compiled = None
    start = threading.Barrier(4)
    found = [[], [], [], []]

    def ask(mine):
        start.wait()
        mine += [loop.compiled for loop in loops]

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == found[0] for mine in found), "one dispatcher for all threads"
    assert numba.config.CACHE_DIR == before, numba.config.CACHE_DIR
"""


def test_threads_that_meet_in_a_first_call_leave_numbas_cache_folder_alone(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", MEETING],
        env={**os.environ, "TINYDILATE_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]  # none in the working folder
