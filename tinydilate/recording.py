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
cannot be is refused: copies from and to the processor, dropout, an optimiser's step, a gradient
that is added to one from before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinydilate import device
from tinydilate.errors import DeviceError


class Recording:
    """What `record` returns; call it to repeat. See the module's text."""

    def __init__(self, function: Callable[[], Any]) -> None:
        device.check_device("cuda")
        for _ in range(2):  # compiles, and makes the tables that a kernel keeps
            function()
        self.recorded = device.capture(function)
        # Each tensor that got a gradient, where its numbers lie, and the gradient.
        leaves = self.recorded.leaves.values()
        self.leaves = [(leaf, leaf.data.memory, leaf.grad) for leaf in leaves]

    def __call__(self) -> Any:
        """Put all launches into the queue, and return what the function returned.

        The same tensors each time, which have new numbers once the GPU is there. So has the
        ``.grad`` of each parameter, whatever became of it since the last time.

        Raises
        ------
        DeviceError
            If a parameter's numbers lie elsewhere by now, so that the launches would miss them.
        """
        for leaf, memory, _ in self.leaves:
            if getattr(leaf.data, "memory", None) is not memory:
                raise DeviceError(
                    f"expected each parameter where it was recorded; got one of shape {leaf.shape} "
                    "that has been moved. Copy new numbers to where it is (load_state_dict, "
                    "device.write), or record anew."
                )
        result = device.repeat(self.recorded)
        if not device.SIMULATED:  # there the function itself has run, and left its gradients
            for leaf, _, gradient in self.leaves:
                leaf.grad = gradient
        return result


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
