"""Arrays between guard pages: whoever reads or writes one number beside them ends the process.

The instruction sequences of `tinydilate.simd` address memory themselves, so NUMBA_BOUNDSCHECK does
not see what they read. The processor does: the page before such an array and the page behind it may
not be touched. An array lies at one end of its pages, so there is a guard right behind it or right
before it; and it is full of nan, so that a number which was never written is seen in the result.

A process of its own runs this file (see test_guarded.py).
"""

import ctypes
import mmap
import sys

import numpy as np

from tinydilate import buffers, gemm, set_num_threads
from tinydilate.compiling import jit
from tinydilate.functional.convolution import conv2d_forward, conv2d_grad_input, conv2d_grad_weight
from tinydilate.simd import copy_runs
from tinydilate.window import Window
from tinydilate.winograd import winograd_outer, winograd_product

LIBRARY = ctypes.CDLL(None, use_errno=True)
NOTHING = 0  # PROT_NONE


class Guarded:
    """Makes arrays whose guard is "before" or "behind" them."""

    def __init__(self, guard: str) -> None:
        self.guard = guard
        self.made = 0

    def empty(self, shape, dtype) -> np.ndarray:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        inside = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, inside + 2 * mmap.PAGESIZE)
        first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (first, first + mmap.PAGESIZE + inside):
            failed = LIBRARY.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, NOTHING)
            assert not failed, ctypes.get_errno()
        at = mmap.PAGESIZE + (inside - size if self.guard == "behind" else 0)
        array = np.frombuffer(memory, dtype, size // dtype.itemsize, at).reshape(shape)
        array.fill(np.nan)
        self.made += 1
        return array

    def copy(self, array: np.ndarray) -> np.ndarray:
        result = self.empty(array.shape, array.dtype)
        result[...] = array
        return result


def check(result, kernel, *arguments) -> None:
    """Compare with the kernel's reference in float64."""
    wide = [a.astype(float) if isinstance(a, np.ndarray) else a for a in arguments]
    desired = kernel.implementations["numpy"](*wide)
    error = np.abs(result - desired).max() / np.abs(desired).max()
    assert error < (3e-5 if result.dtype == np.float32 else 1e-12), (kernel, arguments[3:], error)


def convolve(guarded, dtype, count, channels, filters, size, window, groups) -> None:
    """Every way to compute a convolution and its gradients."""
    rng = np.random.default_rng(channels)

    def numbers(*shape):
        return guarded.copy(rng.normal(size=shape).astype(dtype))

    x = numbers(count, groups * channels, *size)
    w = numbers(groups * filters, channels, *window.kernel)
    b, output = numbers(groups * filters), window.output_size(size)
    grad = numbers(count, groups * filters, *output)
    rule = gemm.forward_gather(window, output)
    forward = conv2d_forward, x, w, b, window, groups, True
    inward = conv2d_grad_input, grad, w, size, window, groups
    outward = conv2d_grad_weight, x, grad, window, groups
    check(gemm.gathered_product(x, w, b, rule, groups, True), *forward)
    check(gemm.gathered_outer(x, grad, rule, groups), *outward)
    check(gemm.folded_product(grad, w, window, size, groups), *inward)
    if window.stride == (1, 1):
        back = gemm.adjoint_gather(window, size)
        check(gemm.gathered_product(grad, w, None, back, groups, adjoint=True), *inward)
    if window.stride == (1, 1) and window.kernel == (3, 3):
        for side in (2, 4):
            check(winograd_product(x, w, b, window, output, groups, True, side=side), *forward)
            back = winograd_product(grad, w, None, window, size, groups, side=side, adjoint=True)
            check(back, *inward)
            check(winograd_outer(x, grad, window, groups, side=side), *outward)


def convolve_all() -> None:
    for threads, guard in ((1, "before"), (1, "behind"), (3, "before"), (3, "behind")):
        set_num_threads(threads)
        guarded = Guarded(guard)
        buffers.empty = guarded.empty  # every result, and all room to work in
        for dtype in (np.float32, np.float64):
            for count, channels, filters, size, window, groups in (
                (1, 1, 1, (1, 1), Window.of(1), 1),
                (2, 3, 5, (4, 7), Window.of(3, 1, 1, 1), 1),
                (1, 17, 19, (9, 21), Window.of(3, 1, (2, 5), (2, 3)), 1),
                (1, 33, 9, (5, 50), Window.of(3, 1, 0, (1, 2)), 2),
                (2, 5, 7, (12, 31), Window.of((2, 3), (2, 3), (3, 1), (2, 1)), 2),
                (1, 40, 50, (3, 230), Window.of(3, 1, 1, (1, 7)), 1),
                (1, 300, 3, (2, 9), Window.of(1), 1),
            ):
                convolve(guarded, dtype, count, channels, filters, size, window, groups)
        assert guarded.made > 100
    print("done")


@jit
def _copy(out, source, start, inside):
    copy_runs(out, (0, 6), source, (start, 6), 6, inside, 1, False)


def read_beside(guard: str) -> None:
    """Copy an array of five numbers, and then one more."""
    out, source = np.zeros(6, np.float32), Guarded(guard).copy(np.ones(5, np.float32))
    start = -1 if guard == "before" else 0
    _copy(out, source, start, (-start, 5 - start))  # the five that there are
    assert out.sum() == 5
    print("so far", flush=True)
    _copy(out, source, start, (0, 6))
    print("and beyond")


if __name__ == "__main__":
    convolve_all() if sys.argv[1] == "convolve" else read_beside(sys.argv[1])
