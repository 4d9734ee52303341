"""Thousands of steps in the memory of a few."""

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

import tinydilate.functional as F
from tinydilate import buffers, nn, optim

MB = 2**20
STATM = Path("/proc/self/statm")


def resident():
    """Bytes of this process in memory; where the system does not say, the most there ever were."""
    resource = pytest.importorskip("resource")
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def training():
    """A network with every kind of layer, whose maps are large enough for the pool."""
    random = np.random.default_rng(0)
    images = random.normal(size=(2, 1, 64, 64)).astype(np.float32)
    labels = random.integers(0, 3, size=(2, 64, 64))
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, relu=True),  # (2, 4, 64, 64): 128 KB
        nn.MaxPool2d(2),
        nn.Dropout(0.1),
        nn.Conv2d(4, 3, 3, padding=2, dilation=2),
    )
    optimizer = optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step():
        optimizer.zero_grad()
        scores = F.interpolate(network(images), scale_factor=2, mode="bilinear")
        loss = F.cross_entropy(scores, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def check_that_nothing_grows(steps):
    gc.collect()
    buffers.empty_cache()
    in_use = buffers.statistics().in_use
    step = training()
    for _ in range(50):
        step()
    gc.collect()
    first, objects, pool = resident(), len(gc.get_objects()), buffers.statistics()
    assert pool.peak > in_use, "the steps use the pool"
    for _ in range(steps):
        step()
    assert buffers.statistics().in_use == pool.in_use, "what a step took came back with its end"
    gc.collect()
    later = buffers.statistics()
    assert later.peak == pool.peak
    assert later.in_use + later.held == pool.in_use + pool.held
    assert len(gc.get_objects()) <= objects + 50
    assert resident() - first < 8 * MB


def test_hundreds_of_steps_take_the_memory_of_fifty():
    check_that_nothing_grows(300)


@pytest.mark.slow
def test_ten_thousand_steps_take_the_memory_of_fifty():
    check_that_nothing_grows(10_000)


def test_a_step_takes_its_memory_from_the_pool_again(monkeypatch):
    step = training()
    for _ in range(20):
        step()
    taken, before = [], buffers.statistics().made
    take = buffers._pool.take
    monkeypatch.setattr(buffers._pool, "take", lambda size: (taken.append(size), take(size))[1])
    for _ in range(10):
        step()
    made = buffers.statistics().made - before
    assert len(taken) >= 50, "results of forward and backward"
    assert made == 0
