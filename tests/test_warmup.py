"""Warming up: everything is called, once, and announced."""

import numpy as np
import pytest

from tinydilate import get_num_threads, kernel, warmup
from tinydilate.autograd import Tensor
from tinydilate.config import Config
from tinydilate.kernel import KERNELS, watching
from tinydilate.train import tiny_steps
from tinydilate.warmup import every_kernel, warm_up


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "cache_folder", lambda: tmp_path)
    return tmp_path


def test_every_kernel_is_called():
    launched = set()
    with watching(lambda launch: launched.add((launch.kernel, launch.implementation))):
        every_kernel()
    assert {name for name, _ in launched} == set(KERNELS)
    assert {implementation for _, implementation in launched} == {"cpu"}


def test_the_steps_of_a_run_are_called(monkeypatch):
    launched = set()
    with watching(lambda launch: launched.add(launch.kernel)):
        tiny_steps(Config(optimizer="sgd"))
    assert {"conv2d_forward", "conv2d_grad_weight", "max_pool2d_backward", "sgd_step"} <= launched
    assert "adam_step" not in launched


def test_only_once(folder, capsys):
    calls = []

    def work():
        calls.append(kernel._forced[-1:] == ["numpy"])
        (Tensor(np.ones(3, np.float32)) + 1).exp()

    assert warm_up("a", work) > 0
    assert calls == [True, False]  # counted in the references, then compiled
    assert "compiling kernels (once): 100%" in capsys.readouterr().err
    assert warm_up("a", work) == 0
    assert capsys.readouterr().err == ""
    assert len(calls) == 2
    assert warm_up("b", work, progress=False) > 0
    assert warm_up("a", work, progress=False, again=True) > 0
    assert capsys.readouterr().err == ""
    assert len(calls) == 6


def test_where_nothing_can_be_kept_it_is_done_each_time(monkeypatch):
    monkeypatch.setattr(warmup, "cache_folder", lambda: None)
    calls = []
    for _ in range(2):
        warm_up("a", lambda: calls.append(1), progress=False)
    assert len(calls) == 4


def test_a_folder_that_vanishes_does_no_harm(tmp_path, monkeypatch):
    """Old versions' folders are deleted, also from under a process that still runs one."""
    monkeypatch.setattr(warmup, "cache_folder", lambda: tmp_path / "gone")
    assert warm_up("a", lambda: None, progress=False) > 0


def test_a_failure_leaves_no_stamp_and_the_threads_as_they_were(folder):
    before = get_num_threads()
    with pytest.raises(ZeroDivisionError):
        warm_up("a", lambda: 1 / 0, progress=False)
    assert get_num_threads() == before
    assert not list(folder.iterdir())
