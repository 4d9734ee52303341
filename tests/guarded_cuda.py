"""Arrays on the GPU between guards: numbers before and behind each that no kernel may change.

And full of nan, or of 77 where they are whole, so that a number which was never written is seen in
the result. Without a GPU the same is done in Numba's simulator.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np
import pytest

from tinydilate import device
from tinydilate.device import CudaArray

WIDTH = 64  # numbers of a guard; as many bytes at least keep an array aligned


@contextmanager
def guarded() -> Iterator[None]:
    """Within the block every array on the GPU has guards; at its end they are looked at."""
    made: list[tuple[CudaArray, int, float]] = []
    plain = device.empty

    def empty(shape, dtype):
        dtype, count = np.dtype(dtype), prod(shape)
        if count == 0:
            return plain(shape, dtype)
        fill = np.nan if dtype.kind == "f" else dtype.type(77)
        whole = plain((count + 2 * WIDTH,), dtype)
        device.write(np.full(whole.shape, fill, dtype), whole)
        made.append((whole, count, fill))
        line = whole.flat[WIDTH : WIDTH + count]
        return CudaArray(line, tuple(shape), dtype, whole.memory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "empty", empty)
        forget_what_is_kept()
        yield
        forget_what_is_kept()
    for whole, count, fill in made:
        numbers = device.move(whole, "cpu")
        assert_untouched(numbers[:WIDTH], fill, f"before an array of {count}")
        assert_untouched(numbers[WIDTH + count :], fill, f"behind an array of {count}")


def forget_what_is_kept() -> None:
    """Let go of the tables on the GPU, so that those of the block have guards, and only those."""
    for cached in device._CACHES:
        cached.cache_clear()


def assert_untouched(guard: np.ndarray, fill: float, place: str) -> None:
    np.testing.assert_array_equal(guard, np.full_like(guard, fill), f"a kernel wrote {place}")
