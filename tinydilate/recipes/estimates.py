"""What a step will take: memory and time, before it is taken.

**Memory.** The network is sent a batch on the meta device, which has shapes but no numbers. The
graph that this leaves says what every op keeps for its backward pass. Then the backward pass is
played through: from the last op to the first, each makes the gradients of its inputs, and lets go
of what it kept. The most that is there at any moment, with weights, their gradients and what the
optimiser remembers, is the estimate; the pool of `tinydilate.buffers` holds up to an eighth more,
and kernels need some room to work in.

**Time.** Multiplications are counted by the layers, a backward pass takes twice those of the
forward pass, and how many a second this machine does is measured on one image: `rehearse`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydilate import functional as F
from tinydilate import nn
from tinydilate.autograd import Op, Tensor, ops_behind
from tinydilate.classes import IGNORE
from tinydilate.device import MetaArray, card
from tinydilate.errors import ConfigError

PROGRAM = 250 * 2**20  # bytes of interpreter, libraries and machine code
WORKING = 64 * 2**20  # that kernels take for packed weights and transformed tiles
_LONG = 120  # seconds after which a rehearsal is not repeated


class Estimate(NamedTuple):
    """What a training step takes.

    Attributes
    ----------
    input_shape : tuple of int
        Of the part of a batch that is computed at once, (B, C, H, W).
    parameters : int
        Numbers in the network.
    trainable : int
        Those of them that learn.
    macs : int
        Multiply-accumulate operations of a whole step, forward and backward.
    weight_bytes, optimizer_bytes : int
        Of all weights, and of what the optimiser remembers of those that learn.
    pass_bytes : int
        What a forward and backward pass needs beside: gradients and maps, at their peak.
    batch_bytes : int
        The images of a step and their labels, and those of the next one, which are made meanwhile.
    """

    input_shape: tuple[int, ...]
    parameters: int
    trainable: int
    macs: int
    weight_bytes: int
    optimizer_bytes: int
    pass_bytes: int
    batch_bytes: int

    @property
    def memory(self) -> int:
        """Bytes at the peak of a step, the program's own included."""
        pooled = self.optimizer_bytes + self.pass_bytes
        return self.weight_bytes + pooled * 9 // 8 + self.batch_bytes + WORKING + PROGRAM


def estimate(
    network: nn.Module,
    input_shape: tuple[int, ...],
    batch: int,
    iter_size: int = 1,
    remembered: int = 1,
) -> Estimate:
    """Estimate a training step.

    Parameters
    ----------
    network : nn.Module
        On any device; it is copied without its numbers.
    input_shape : (C, H, W)
        Of one image, or of one map of stored features.
    batch : int
        Images in a step.
    iter_size : int
        Parts that they are computed in.
    remembered : int
        Numbers, by the optimiser, for each one that learns; see `optim.Optimizer`.
    """
    shadow = nn.as_meta(network).train()
    at_once = (-(-batch // iter_size), *input_shape)
    calls: list[nn.Call] = []
    with nn.watching_modules(calls.append):
        scores = shadow(Tensor(MetaArray(at_once, np.float32)))
    labels = MetaArray((scores.shape[0], *scores.shape[2:]), np.int64)
    loss = F.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="sum")
    forward = sum(
        call.module.macs(call.inputs[0].shape, call.output.shape)
        for call in calls
        if next(call.module.children(), None) is None
    )
    sizes = {id(p.data): (p.size * 4, p.requires_grad) for p in shadow.parameters()}
    weights = sum(size for size, _ in sizes.values())
    learning = sum(size for size, learns in sizes.values() if learns)
    peak = _peak(loss, sizes, later=iter_size > 1)
    # Labels are whole numbers of 8 bytes.
    one = 4 * int(np.prod(input_shape)) + 8 * int(np.prod(scores.shape[2:]))
    return Estimate(
        at_once,
        weights // 4,
        learning // 4,
        macs=3 * forward * batch // at_once[0],
        weight_bytes=weights,
        optimizer_bytes=remembered * learning,
        pass_bytes=peak,
        batch_bytes=2 * batch * one + 4 * int(np.prod(at_once)),
    )


def _peak(loss: Tensor, parameters: dict[int, tuple[int, bool]], later: bool) -> int:
    """The most bytes of maps and gradients at once, from the end of the forward pass on.

    ``later`` says that gradients of an earlier part are there already, to which new ones are added.
    """
    ops = [op for op, _ in reversed(ops_behind([loss]))]
    kept = {op.number: _kept(op, parameters) for op in ops}
    holders: dict[int, int] = {}  # array -> ops that keep it
    for arrays in kept.values():
        for array in arrays:
            holders[array] = holders.get(array, 0) + 1
    sizes = {array: size for arrays in kept.values() for array, size in arrays.items()}
    alive = sum(sizes.values())
    gradients = {loss.op.number: 4} if loss.op is not None else {}  # op -> bytes of its output's
    learnt = sum(size for size, learns in parameters.values() if learns) if later else 0
    peak = alive + learnt
    for op in ops:
        outer = gradients.pop(op.number, 0)
        made = [(t, 4 * t.size) for t in op.inputs if t.requires_grad]
        inner = sum(size for _, size in made)
        masked = outer if getattr(op, "relu", False) else 0  # the gradient behind a rectifier
        peak = max(peak, alive + learnt + sum(gradients.values()) + outer + masked + inner)
        for array in kept[op.number]:
            holders[array] -= 1
            if holders[array] == 0:
                alive -= sizes[array]
        for tensor, size in made:
            if tensor.op is not None:
                gradients[tensor.op.number] = size
            elif not later:
                learnt += size
            else:  # old, new, and their sum
                peak = max(peak, alive + learnt + sum(gradients.values()) + 2 * size)
    return peak


def _kept(op: Op, parameters: dict[int, Any]) -> dict[int, int]:
    """Bytes of each array that an op keeps, by the array; parameters are counted elsewhere."""
    arrays = {id(a): a for a in vars(op).values() if isinstance(a, MetaArray)}
    arrays |= {id(t.data): t.data for t in op.inputs if isinstance(t.data, MetaArray)}
    return {
        key: array.size * array.dtype.itemsize
        for key, array in arrays.items()
        if key not in parameters
    }


# ---- what there is ---------------------------------------------------------------------------


def free_memory(device: str) -> int | None:
    """Bytes that a program may still take on a device; None where the system does not say."""
    if device == "cuda":
        return card().memory or None
    listing = Path("/proc/meminfo")
    if listing.exists():
        for line in listing.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return None


def fitting_iter_size(
    network: nn.Module, input_shape: tuple[int, ...], batch: int, memory: int, remembered: int = 1
) -> int | None:
    """The fewest parts of a batch with which a step fits into so many bytes; None if none does."""
    for parts in range(1, batch + 1):
        if batch % parts and -(-batch // parts) == -(-batch // (parts - 1)):
            continue  # as many images at once as with one part less
        if estimate(network, input_shape, batch, parts, remembered).memory <= memory:
            return parts
    return None


def rehearse(step: Callable[[], Any]) -> float:
    """Seconds that a piece of a step takes; a quick one is repeated, for the first run compiles."""
    for _ in range(2):
        begun = time.perf_counter()
        step()
        seconds = time.perf_counter() - begun
        if seconds > _LONG:
            break
    return seconds


# ---- for people ------------------------------------------------------------------------------


def told_bytes(number: float) -> str:
    """``"1.9 GiB"``."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 2**10:.0f} KiB"


def told_seconds(seconds: float) -> str:
    """``"3 days"``, ``"2 h 5 min"``, ``"41 s"``."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:,.0f} days"
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def check_shape(network: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Refuse images that are too small for a network, before anything is read.

    Raises
    ------
    ConfigError
        If nothing would be left of them.
    """
    try:
        nn.as_meta(network)(Tensor(MetaArray((1, *input_shape), np.float32)))
    except ValueError as error:
        raise ConfigError(
            f"expected an input that the network can take; got {input_shape}: {error} Raise crop "
            "or label_shape."
        ) from None
