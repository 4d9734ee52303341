"""Compiling kernels once, announced, instead of silently whenever one is first called.

Numba keeps machine code on disk, in a folder that belongs to this very version of our sources (see
kernel.py). A stamp in that folder says that a piece of work has been warmed up; then there is
nothing to do. Which kernels the work needs, nobody has to write down: the work is run on tiny
arrays.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from tinydilate import functional as F
from tinydilate import optim, second_process
from tinydilate.autograd import Tensor, tensor
from tinydilate.compiling import cache_folder
from tinydilate.kernel import Launch, use, watching
from tinydilate.threads import get_num_threads, set_num_threads


def warm_up(
    name: str, work: Callable[[], Any], progress: bool = True, again: bool = False
) -> float:
    """Run ``work``, so that its kernels are compiled, unless that was done before.

    Parameters
    ----------
    name : str
        Of the stamp.
    work : callable
        Something quick, on tiny arrays, that calls the kernels.
    progress : bool
        Show a bar on stderr.
    again : bool
        Run it even if the stamp is there.

    Returns
    -------
    float
        Seconds taken; 0 if there was nothing to do.
    """
    folder = cache_folder()
    stamp = folder / f"warm-{name}" if folder else None
    if stamp and stamp.exists() and not again:
        return 0.0
    begun = time.perf_counter()
    second_process.start()
    # The bar needs to know how many kernel calls there will be: count them in the NumPy references,
    # which need no compiling. One thread does for tiny arrays.
    threads = get_num_threads()
    launches: list[Launch] = []
    set_num_threads(1)
    try:
        with use("numpy"), watching(launches.append):
            work()
        with (
            tqdm(
                total=len(launches),
                desc="compiling kernels (once)",
                unit="call",
                disable=not progress,
            ) as bar,
            watching(lambda launch: bar.update()),
        ):
            work()
    finally:
        set_num_threads(threads)
    if stamp:
        with contextlib.suppress(OSError):  # the folder may be gone or the disk full by now
            stamp.touch()
    return time.perf_counter() - begun


def every_kernel() -> None:
    """Call every float32 kernel, forwards and backwards, on tiny arrays."""
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> Tensor:
        return tensor(rng.uniform(0.5, 1.5, shape).astype(np.float32), requires_grad=True)

    x, w, b = numbers(2, 4, 6, 6), numbers(4, 4, 3, 3), numbers(4)
    row = numbers(6)
    labels = rng.integers(0, 4, (2, 6, 6))
    for result in (
        x + row, x - row, x * row, x / row, x**row, -x, x.exp(), x.log(), x.relu(),
        x.sum((0, 2)), x.mean(1), x.max(1)[0], x.max(),
        x.reshape(8, 36), x.permute(3, 1, 0, 2), x.transpose(1, 2), F.cat([x, x], 1),
        x[:, 1], x[..., ::2],
        F.linear(numbers(3, 5), numbers(2, 5), numbers(2)), numbers(2, 3) @ numbers(3, 2),
        F.pad(x, (1, 1, 1, 1)), F.pad(x, (1, 1, 1, 1), "reflect"),
        F.pad(x, (1, 1, 1, 1), "replicate"),
        F.unfold(x, 3), F.fold(numbers(2, 36, 16), 6, 3),
        F.conv2d(x, w, b, padding=2, dilation=2), F.conv2d(x, w, b, relu=True),
        F.conv_transpose2d(x, w, b, stride=2),
        F.max_pool2d(x, 2), F.avg_pool2d(x, 2),
        x.softmax(1), x.log_softmax(1), F.cross_entropy(x, labels, ignore_index=3),
        F.cross_entropy(x, x.softmax(1).detach()),
        F.interpolate(x, scale_factor=2), F.interpolate(x, scale_factor=2, mode="bilinear"),
        F.dropout(x, 0.5),
    ):  # fmt: skip
        (result + result).sum().backward()
    x.argmax(1)  # has no gradient
    for optimizer in (optim.SGD([x], lr=0.1), optim.Adam([x], lr=0.1)):
        optimizer.step()
