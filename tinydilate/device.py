"""Where arrays live: ``"cpu"`` (NumPy), ``"meta"`` (a shape and nothing else), ``"cuda"``.

A meta array costs no memory. Sent through a network, it answers how large every layer's output
is, which is all that a summary or a receptive field needs, so networks of 141 million parameters
can be studied on a laptop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tinydilate.errors import DeviceError

DEVICES = ("cpu", "cuda", "meta")

Array = npt.NDArray[Any]


class MetaArray:
    """A shape and a dtype, without any numbers."""

    __slots__ = ("dtype", "shape")

    def __init__(self, shape: Sequence[int], dtype: Any = np.float32) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements that an array of this shape would have."""
        return math.prod(self.shape)

    def reshape(self, *shape: Any) -> MetaArray:
        """The same number of elements in another shape: sizes, all given, or a tuple of them."""
        return MetaArray(shape[0] if shape and isinstance(shape[0], tuple) else shape, self.dtype)

    def astype(self, dtype: Any) -> MetaArray:
        """The same shape with another number type."""
        return MetaArray(self.shape, dtype)

    def copy(self) -> MetaArray:
        """Itself: there is nothing to copy."""
        return self

    def __repr__(self) -> str:
        return f"MetaArray(shape={self.shape}, dtype={self.dtype})"


def device_of(array: Any) -> str:
    """Name of the device that an array lives on."""
    if isinstance(array, np.ndarray):
        return "cpu"
    if isinstance(array, MetaArray):
        return "meta"
    raise DeviceError(f"expected an array on one of {', '.join(DEVICES)}; got {type(array)}.")


def check_device(device: str) -> str:
    """Return ``device`` if a tensor can be put there; say why not otherwise."""
    if device not in DEVICES:
        raise DeviceError(f"expected a device out of {', '.join(DEVICES)}; got {device!r}.")
    if device == "cuda":
        raise DeviceError(
            "expected a device that this version computes on (cpu, meta); got 'cuda', whose "
            'kernels are not written yet. Stay on device="cpu".'
        )
    return device


def move(array: Any, device: str) -> Any:
    """Copy an array to another device; an array that is there already is returned as it is."""
    source = device_of(array)
    check_device(device)
    if source == device:
        return array
    if device == "meta":
        return MetaArray(array.shape, array.dtype)
    raise DeviceError(
        f"expected an array with numbers to move to {device}; got one on {source}, which has a "
        "shape only. Make the tensor or the module on the device where it is to compute."
    )
