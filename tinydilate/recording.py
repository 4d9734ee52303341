"""A training step recorded once and repeated at once, on a GPU.

A small network's kernels take a GPU some microseconds each, and Python a multiple of that to
launch them. A *CUDA graph* is a list of launches that the driver keeps and repeats as one:

    def gradients():
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        return loss

    step = tinydilate.record(gradients)         # runs it three times, the last time to record
    for batch, truth in batches:
        device.write(batch, images.data)        # new numbers in the same memory
        device.write(truth, labels.data)
        loss = step()                           # all its launches; loss and .grad have new numbers
        optimizer.step()

Python's part of the function runs while it is recorded and then no more: only launches are
repeated, on the same memory. So all that changes from step to step has to be in arrays, and what
cannot be is refused: copies from and to the processor, dropout, an optimiser's step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinydilate import device


class Recording:
    """What `record` returns; call it to repeat. See the module's text."""

    def __init__(self, function: Callable[[], Any]) -> None:
        device.check_device("cuda")
        for _ in range(2):  # compiles, and makes the tables that a kernel keeps
            function()
        self.recorded = device.capture(function)

    def __call__(self) -> Any:
        """Put all launches into the queue, and return what the function returned.

        The same tensors each time, which have new numbers once the GPU is there.
        """
        return device.repeat(self.recorded)


def record(function: Callable[[], Any]) -> Recording:
    """Record a function's launches on the GPU, to repeat them without Python.

    Parameters
    ----------
    function : callable without arguments
        Reads and writes tensors that are on the GPU already, whose memory stays the same.

    Returns
    -------
    Recording
        Call it to repeat.

    Raises
    ------
    DeviceError
        If there is no GPU, or the function does what could not be repeated.
    """
    return Recording(function)
