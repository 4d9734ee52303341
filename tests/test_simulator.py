"""The order in which `simulator` runs the threads of a kernel, and what it makes visible."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tinydilate import device
from tinydilate.device import Array
from tinydilate.errors import KernelError
from tinydilate.launching import cuda

if device.SIMULATED:
    from simulator import Block

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not device.SIMULATED, reason="a GPU has an order of its own"),
]

THREADS = 8


@cuda.jit
def _neighbours(out: Array, waits: int) -> None:
    """Each thread's number, passed on by way of shared memory; the first barrier may be missing."""
    line = cuda.shared.array(8, np.float32)
    n = cuda.threadIdx.x
    line[n] = n
    if waits:
        cuda.syncthreads()
    out[n] = line[(n + 1) % 8]
    cuda.syncthreads()
    line[n] = 0


@cuda.jit
def _sum(out: Array, last: int) -> None:
    """A block's numbers added in pairs; the barrier before the last pairs may be missing."""
    line = cuda.shared.array(8, np.float32)
    n = cuda.threadIdx.x
    line[n] = 1
    half = 4
    while half > 0:
        if half >= last:
            cuda.syncthreads()
        if n < half:
            line[n] += line[n + half]
        half //= 2
    if n == 0:
        out[cuda.blockIdx.x] = line[0]


@cuda.jit
def _one_stays_away(out: Array) -> None:
    if cuda.threadIdx.x != 3:
        cuda.syncthreads()
    out[cuda.threadIdx.x] = 1


@cuda.jit
def _one_divides_by_zero(out: Array) -> None:
    cuda.syncthreads()
    if cuda.threadIdx.x == 5:
        out[0] = 1 // 0


@cuda.jit
def _votes(out: Array) -> None:
    n = cuda.threadIdx.x
    out[n] = 100 * cuda.syncthreads_count(n < 3)
    out[n] += 10 * cuda.syncthreads_and(n < 8) + cuda.syncthreads_or(n == 8)


def run(kernel, *numbers):
    out = device.empty((THREADS,), np.float32)
    kernel[1, THREADS](out, *numbers)
    return device.move(out, "cpu")


def test_threads_meet_at_a_barrier():
    np.testing.assert_array_equal(run(_neighbours, 1), (np.arange(THREADS) + 1) % THREADS)


def test_without_the_barrier_numbers_are_missing_each_time_the_same(monkeypatch):
    found = []
    for _ in range(2):
        monkeypatch.setattr(Block, "chance", random.Random(0))
        found.append(run(_neighbours, 0))
    assert 0 < np.isnan(found[0]).sum() < THREADS
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("last", [2, 4])
def test_a_barrier_that_matters_to_two_threads_is_missed_in_some_block(monkeypatch, last):
    """Two threads come in the right order by chance, so the order must not be the same in each."""
    monkeypatch.setattr(Block, "chance", random.Random(0))  # whatever ran before
    out = device.empty((96,), np.float32)
    _sum[96, THREADS](out, 1)
    np.testing.assert_array_equal(device.move(out, "cpu"), np.full(96, 8))
    _sum[96, THREADS](out, last)
    right = device.move(out, "cpu") == 8
    assert 0 < right.sum() < 96


def test_a_thread_that_ends_while_others_wait_is_told():
    with pytest.raises(KernelError, match=r"1 of 8 threads of block \[0, 0, 0\] ended"):
        run(_one_stays_away)


def test_an_error_says_which_thread_had_it():
    with pytest.raises(KernelError, match=r"tid=\[5, 0, 0\] ctaid=\[0, 0, 0\]: integer div"):
        run(_one_divides_by_zero)
    test_threads_meet_at_a_barrier()  # those that were left waiting are in nobody's way


def test_threads_are_counted_at_a_barrier():
    np.testing.assert_array_equal(run(_votes), np.full(THREADS, 310))
