"""Numba's simulator with another order of its threads: one at a time, each up to the next barrier.

The simulator makes each thread of a block one of Python's and lets Python change between them when
it likes: 0.2 milliseconds a thread, some 20 for a barrier, and a barrier that is missing shows or
not as chance has it. Here the threads of a block are greenlets, functions that can be left in the
middle and gone on with. Each runs alone until it waits or ends, in an order that is shuffled anew
for each block and barrier, but in the same way in every run. What a thread needs from another
before a barrier is then not there yet unless that one happened to come first, and what it may not
overwrite yet is gone.
"""

import random
from types import SimpleNamespace

import numpy as np
from greenlet import getcurrent, greenlet


class Thread(greenlet):
    """One thread of a block: the simulator asks it where it is, and to wait."""

    def __init__(self, body, block, place):
        super().__init__(body)
        self.block, self.blockIdx, self.threadIdx = block, block.index, place
        size = block.size
        self.thread_id = place.x + size.x * (place.y + size.y * place.z)

    def syncthreads(self):
        self.parent.switch()

    def syncthreads_count(self, value):
        self.block.said[self.thread_id] = bool(value)
        self.syncthreads()
        count = sum(self.block.said.values())
        self.syncthreads()
        return count

    def syncthreads_and(self, value):
        return int(self.syncthreads_count(value) == len(self.block.said))

    def syncthreads_or(self, value):
        return int(self.syncthreads_count(value) > 0)


class Block:
    """In place of the simulator's ``BlockManager``: runs the threads of one block of a grid.

    Each block has another order. With the same one in all of them, two threads whose barrier is
    missing would come in the right order always, or never.
    """

    chance = random.Random(0)

    def __init__(self, body, grid, size, debug):
        from numba.cuda.simulator.kernelapi import Dim3

        self.body, self.size, self.dim3, self.said = body, Dim3(*size), Dim3, {}

    def run(self, index, *arguments):
        self.index = self.dim3(*index)
        places = [self.dim3(*place) for place in np.ndindex(*self.size)]
        running = [Thread(self.body, self, place) for place in places]
        while running:
            self.chance.shuffle(running)
            for thread in running:
                self.go_on(thread, *arguments)
            arrived = [thread for thread in running if not thread.dead]
            if arrived and len(arrived) < len(running):
                raise RuntimeError(
                    f"{len(running) - len(arrived)} of {len(running)} threads of block "
                    f"{list(index)} ended and the others wait at a barrier"
                )
            running, arguments = arrived, ()

    def go_on(self, thread, *arguments):
        try:
            thread.switch(*arguments)
        except Exception as error:
            where = f"tid={list(thread.threadIdx)} ctaid={list(self.index)}"
            text = f"{where}: {error}" if str(error) else where
            raise type(error)(text).with_traceback(error.__traceback__) from None


def install():
    """Have kernels of this process run so."""
    from numba import cuda  # noqa: F401 - the simulator is complete only with it
    from numba.cuda.simulator import kernel, kernelapi

    kernel.BlockManager = Block
    kernelapi.threading = SimpleNamespace(current_thread=getcurrent)
