"""Memory used again: never by two arrays at once, and never more of it than without."""

import gc
import os
import subprocess
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydilate import buffers

KB, MB = 2**10, 2**20


@pytest.fixture
def pool(monkeypatch):
    """A pool of the test's own."""
    made = buffers.Pool()
    monkeypatch.setattr(buffers, "_pool", made)
    return made


def address(array):
    return array.__array_interface__["data"][0]


# ---- arrays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.bool_])
def test_an_array_is_an_ordinary_one_and_begins_at_a_multiple_of_64_bytes(pool, dtype):
    for _ in range(5):
        array = buffers.empty((3, 1000, 100), dtype)
        assert type(array) is np.ndarray
        assert array.shape == (3, 1000, 100)
        assert array.dtype == dtype
        assert array.flags.carray
        assert address(array) % 64 == 0
        array.fill(1)
        assert array.sum() == 300_000
    assert pool.made == 2, "the new one while there is still the old one, in turns"


def test_small_arrays_are_numpys_own(pool):
    assert buffers.empty((100, 100), np.float32).base is None
    assert buffers.empty((), np.float32).shape == ()
    assert buffers.empty((0, 5), np.float32).size == 0
    assert pool.statistics() == (0, 0, 0, 0)


def test_zeros_are_zeros_in_memory_that_was_used(pool):
    used = buffers.empty((100, 1000), np.float32)
    used.fill(7)
    place = address(used)
    del used
    zeros = buffers.zeros((100, 1000), np.float32)
    assert address(zeros) == place
    assert not zeros.any()
    assert not buffers.zeros((10,), np.float32).any()


def test_empty_like_has_the_shape_and_the_dtype(pool):
    array = buffers.empty_like(np.ones((20, 5000), np.float64).T)
    assert (array.shape, array.dtype) == ((5000, 20), np.float64)
    assert array.flags.carray


def test_a_view_is_told_from_an_array_of_its_own(pool):
    array = buffers.empty((100, 1000), np.float32)
    assert not buffers.is_view(array)
    assert not buffers.is_view(np.ones(3))
    assert buffers.is_view(array[:1])
    assert buffers.is_view(array.reshape(-1))
    assert buffers.is_view(np.ones(3)[:1])
    assert buffers.is_view(np.frombuffer(b"abcd", np.uint8))


# ---- blocks ----------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.integers(1, 2**40))
def test_at_most_an_eighth_is_wasted(size):
    block = buffers.block_size(size)
    assert size <= block <= size * 9 / 8
    assert buffers.block_size(block) == block
    assert buffers.block_size(size + 1) >= block


def test_arrays_of_nearly_one_size_share_a_block(pool):
    first = buffers.empty((64, 498, 498), np.float32)
    place = address(first)
    del first
    assert address(buffers.empty((64, 496, 496), np.float32)) == place
    assert pool.made == 1


def test_a_block_comes_back_with_the_last_view(pool):
    array = buffers.empty((100, 1000), np.float32)
    size = buffers.block_size(array.nbytes)
    part = array.reshape(-1)[500:].T
    assert pool.statistics() == (size, 0, size, 1)
    del array
    assert pool.statistics() == (size, 0, size, 1), "the view still sees it"
    other = memoryview(part)
    del part
    assert pool.statistics() == (size, 0, size, 1), "and whatever the view lent it to"
    del other
    assert pool.statistics() == (0, size, size, 1)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(65_536, 400_000), st.integers(0, 5)), max_size=60))
def test_no_two_arrays_overlap_and_the_peak_is_that_of_the_arrays(steps):
    pool, alive, peak = buffers.Pool(), [], 0
    pool.spare = 0
    for size, position in steps:
        if position < len(alive):
            pool.give_back(alive.pop(position))
        alive.append(pool.take(buffers.block_size(size)))
        in_use = sum(block.size for block in alive)
        peak = max(peak, in_use)
        now = pool.statistics()
        assert (now.in_use, now.peak) == (in_use, peak)
        assert now.in_use + now.held <= peak * 9 / 8, "hardly more than without a pool"
        waiting = [block for blocks in pool.waiting.values() for block in blocks]
        assert sum(block.size for block in waiting) == now.held
        blocks = sorted(alive + waiting, key=lambda block: block.address)
        for before, after in pairwise(blocks):
            assert before.address + before.size <= after.address
        for block in blocks:
            begin = address(block.memory)
            assert begin <= block.address
            assert block.address % 64 == 0
            assert block.address + block.size <= begin + block.memory.nbytes


def test_the_blocks_that_waited_longest_are_let_go_first(pool):
    pool.spare = 0
    arrays = [buffers.empty((size * KB,), np.uint8) for size in (512, 1024, 2048)]
    del arrays[2], arrays[0], arrays[0]  # the largest, the smallest, the middle one
    buffers.empty((768 * KB,), np.uint8)  # 1/8 of the peak, 448 KB, is not enough for it
    assert [size // KB for size, blocks in pool.waiting.items() if blocks] == [512, 1024, 768]


def test_a_few_megabytes_are_held_whatever_the_peak(pool):
    pool.spare = 1000 * KB
    for size in (64, 128, 256, 512, 448):
        buffers.empty((size * KB,), np.uint8)
    assert [size // KB for size, blocks in pool.waiting.items() if blocks] == [
        64,
        128,
        256,
        512,
        448,
    ]
    buffers.empty((384 * KB,), np.uint8)  # the peak, 512 KB, and 1000 KB are not enough for all
    assert [size // KB for size, blocks in pool.waiting.items() if blocks] == [512, 448, 384]


def test_what_is_held_is_bounded(pool):
    pool.held_at_most = 300 * KB
    arrays = [buffers.empty((100 * KB,), np.uint8) for _ in range(5)]
    assert pool.statistics().in_use == 5 * 104 * KB
    arrays.clear()
    assert pool.statistics()[:2] == (0, 2 * 104 * KB)


def test_the_cache_can_be_emptied(pool):
    kept = buffers.zeros((MB,), np.uint8)
    buffers.zeros((3 * MB,), np.uint8)
    assert buffers.statistics() == (MB, 3 * MB, 4 * MB, 2)
    buffers.empty_cache()
    assert buffers.statistics() == (MB, 0, MB, 2)
    assert not kept.any()


def test_when_memory_runs_out_what_is_held_is_let_go(pool, monkeypatch):
    both = [buffers.empty((MB,), np.uint8) for _ in range(2)]
    both.clear()
    pool.spare = 0
    real, refused = np.empty, []

    def scarce(*arguments):
        if pool.held:
            refused.append(arguments)
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(buffers.np, "empty", scarce)
    array = buffers.empty((100 * KB,), np.uint8)
    monkeypatch.undo()
    assert len(refused) == 1
    assert array.size == 100 * KB
    assert pool.held == 0


# ---- at any moment ---------------------------------------------------------------------------


def test_threads_do_not_get_each_others_memory(pool):
    wrong = []

    def work(name):
        random = np.random.default_rng(name)
        mine = []
        for _ in range(500):
            mine.append(buffers.empty((int(random.integers(65_536, 100_000)),), np.uint8))
            mine[-1].fill(name)
            if len(mine) > 5:
                array = mine.pop(int(random.integers(5)))
                wrong.extend([name] * int((array != name).any()))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    assert pool.statistics().in_use == 0


def test_arrays_may_die_and_be_made_wherever_the_garbage_collector_runs(pool):
    """In a cycle, arrays die when the collector runs, in the middle of `take`, say."""

    class Computes:
        def __init__(self):
            self.me = self
            self.array = buffers.empty((100 * KB,), np.uint8)

        def __del__(self):
            buffers.zeros((100 * KB,), np.uint8)
            finished.append(True)

    finished, before = [], gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(300):
            Computes()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert len(finished) == 300
    assert pool.statistics().in_use == 0


def test_a_finaliser_in_the_middle_of_take_gets_memory_of_its_own(pool, monkeypatch):
    pool.give_back(pool.take(64 * KB))
    inner = []
    real = pool._settle

    def interrupted():
        if not inner:
            inner.append(pool.take(64 * KB))
            pool.give_back(inner[0])
        real()

    monkeypatch.setattr(pool, "_settle", interrupted)
    pool.returned.append(pool.take(64 * KB))
    outer = pool.take(64 * KB)
    assert pool.statistics().in_use == 64 * KB
    del outer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_of_a_process_whose_other_threads_allocate():
    code = """
import os, threading
import numpy as np
from tinydilate import buffers
going = True

def work():
    while going:
        buffers.empty((100_000,), np.uint8)

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        array = buffers.zeros((100_000,), np.uint8)
        before = buffers.statistics().in_use
        del array
        os._exit(0 if before - buffers.statistics().in_use == 106_496 else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
going = False
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_an_array_that_outlives_the_interpreters_end_dies_quietly():
    code = """
import numpy as np
from tinydilate import buffers
class Keeper: pass
keeper = Keeper(); keeper.me = keeper
keeper.array = np.__kept = buffers.zeros((100_000,), np.uint8)
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, timeout=300, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
