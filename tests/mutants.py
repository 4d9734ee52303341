# ruff: noqa: E501 - the mutants quote whole lines
"""Bugs that the field really had, planted one at a time; the tests must notice each.

A `Mutant` is a replacement of a line or two of our sources. `planted` compiles the mutated text
and gives its code to the functions that are loaded already, for as long as the block lasts, so a
mutant costs a fraction of a second. The compiled loops run as plain Python meanwhile, on sizes
small enough for that.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import NamedTuple

import numpy as np
import pytest

import tinydilate
from tinydilate import compiling, device, threads
from tinydilate.compiling import Jitted, Native, around
from tinydilate.handover import together, together_in_rooms
from tinydilate.kernel import Elementwise
from tinydilate.launching import CUDA_KERNELS

PACKAGE = Path(tinydilate.__file__).parent


class Mutant(NamedTuple):
    """One planted bug.

    Attributes
    ----------
    name : str
        What is wrong.
    file : str
        Below ``tinydilate/``.
    old, new : str
        The text that stands there once, and what replaces it.
    killer : str
        What must fail: ``"forward conv2d"``, a check of ``test_ops`` on a case of ``cases``
        (forward, slope, adjoint, twins, or an implementation such as ``cpu:direct``), or a test,
        ``"test_autograd test_name"``.
    """

    name: str
    file: str
    old: str
    new: str
    killer: str


@contextmanager
def planted(mutant: Mutant, really: bool = True) -> Iterator[None]:
    """Within the block the package has the bug; with ``really=False`` it only runs as Python."""
    path = PACKAGE / mutant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, (
        f"mutant {mutant.name!r}: its text stands {text.count(mutant.old)} times in {mutant.file}, "
        "expected once; the source has changed, so change the mutant as well"
    )
    before = codes(compile(text, str(path), "exec"))
    after = codes(compile(text.replace(mutant.old, mutant.new), str(path), "exec"))
    assert len(before) == len(after), f"mutant {mutant.name!r} adds or removes a function"
    changed = {
        place(old): new
        for old, new in zip(before, after, strict=True)
        if meaning(old) != meaning(new)
    }
    functions = [
        function
        for function in loaded(FunctionType)
        if function.__code__.co_filename == str(path) and place(function.__code__) in changed
    ]
    assert functions, f"mutant {mutant.name!r} changes no function"
    loops = loaded(Jitted)
    rules = [
        rule
        for rule in loaded(Elementwise)
        if isinstance(rule.rule, FunctionType) and rule.rule.__code__.co_filename == str(path)
    ]
    originals = [(function, function.__code__) for function in functions]
    compiled = [(thing, thing._compiled) for thing in (*loops, *rules)]
    compiled += [(kernel, kernel._compiled) for kernel in CUDA_KERNELS]
    shared = [(loop, loop._within) for loop in loops]
    forget_what_was_worked_out()
    try:
        if really:
            for function in functions:
                function.__code__ = changed[place(function.__code__)]
        for loop in loops:
            loop._compiled = loop.body
            loop._within = {
                frame: around(frame, loop.body) for frame in (together, together_in_rooms)
            }
        for kernel in CUDA_KERNELS:
            kernel._compiled = {}  # the simulator makes them anew, of the functions above
        for rule in rules:
            rule._compiled = {
                np.dtype(dtype): np.vectorize(rule.rule, otypes=[dtype])
                for dtype in (np.float32, np.float64)
            }
        yield
    finally:
        for function, code in originals:
            function.__code__ = code
        for thing, machine_code in compiled:
            thing._compiled = machine_code
        for loop, machine_code in shared:
            loop._within = machine_code
        forget_what_was_worked_out()


def forget_what_was_worked_out() -> None:
    """Empty the caches of our functions: what they hold was computed with the bug, or without.

    And let the threads go: they run compiled code, or, with a bug planted, are not there. Until they
    are gone: one that wakes up later would run what its loop is then.
    """
    threads._dismiss()
    for thread in threading.enumerate():
        if thread.name.startswith("tinydilate-"):
            thread.join()
    for function in loaded(type(loaded)):
        module = function.__module__ or ""
        # What device.py keeps is no result: the queue that kernels are in, above all. But tables are.
        if module.startswith("tinydilate.") and module != "tinydilate.device":
            function.cache_clear()
    device._tables.cache_clear()


@contextmanager
def planted_in_instructions(mutant: Mutant, tests: ModuleType) -> Iterator[None]:
    """Within the block the loops of ``tests`` compile instructions that have the bug."""
    path = PACKAGE / mutant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, (
        f"mutant {mutant.name!r}: its text does not stand there once"
    )
    module = ModuleType("tinydilate.simd")
    exec(compile(text.replace(mutant.old, mutant.new), str(path), "exec"), module.__dict__)
    module.sandwich = module.Sandwich("sandwich", tests.MATRIX)
    with pytest.MonkeyPatch.context() as patch:
        for name, thing in list(vars(tests).items()):
            if isinstance(thing, Native):
                patch.setattr(tests, name, getattr(module, name))
            elif isinstance(thing, Jitted):
                patch.setattr(thing, "_compiled", None)
        patch.setattr(compiling, "_cache_settled", True)
        patch.setattr(compiling, "_cache_folder", None)  # nothing of this is kept
        yield


@cache
def loaded(kind: type) -> list:
    """Our functions, loops or rules; looked for once among all objects, since it takes a while."""
    gc.unfreeze()  # what conftest.py has put aside
    things = [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]
    gc.freeze()
    if kind is FunctionType:
        return [f for f in things if f.__code__.co_filename.startswith(str(PACKAGE))]
    return things


def codes(code: CodeType) -> list[CodeType]:
    """A module's functions, at every depth, in the order of the text."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [code, *(deeper for one in inner for deeper in codes(one))]


def place(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def meaning(code: CodeType) -> tuple:
    """What a function and the functions inside it do, without their places in the file."""
    constants = [meaning(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, *constants


CONV, UNFOLD, POOL = (f"functional/{page}.py" for page in ("convolution", "unfolding", "pooling"))
LOSS, SHAPE, SUMS = (f"functional/{page}.py" for page in ("softmax_loss", "shaping", "reduction"))

MUTANTS = [
    # ---- the window
    Mutant(
        "extent as k*d - 1",
        "window.py",
        "self.dilation[0] * (self.kernel[0] - 1) + 1,",
        "self.dilation[0] * self.kernel[0] - 1,",
        "test_window test_output_size_counts_the_windows",
    ),
    Mutant(
        "extent of an undilated kernel",
        "window.py",
        "self.dilation[1] * (self.kernel[1] - 1) + 1,",
        "self.kernel[1],",
        "forward conv2d",
    ),
    Mutant(
        "padding on one side only",
        "window.py",
        "room = size + before + after - extent",
        "room = size + before - extent",
        "test_window test_output_size_counts_the_windows",
    ),
    Mutant(
        'the odd pixel of "same" goes before',
        "window.py",
        "return (rows // 2, rows - rows // 2), (",
        "return (rows - rows // 2, rows // 2), (",
        "forward conv2d-named-padding",
    ),
    Mutant(
        "ceil_mode keeps a window that begins in the padding",
        "window.py",
        "(count - 1) * stride >= size + before",
        "(count - 1) * stride > size + before",
        "test_window test_ceil_mode_counts_windows_that_hang_over",
    ),
    # ---- unfolding
    Mutant(
        "taps flipped",
        UNFOLD,
        "columns[:, :, u, v] = seen_by_tap(image, window, output, u, v)",
        "columns[:, :, -1 - u, -1 - v] = seen_by_tap(image, window, output, u, v)",
        "twins unfold",
    ),
    Mutant(
        "stride and dilation exchanged",
        UNFOLD,
        "share(_unfold, len(planes), planes, result, window.stride, window.before, window.dilation)",
        "share(_unfold, len(planes), planes, result, window.dilation, window.before, window.stride)",
        "forward unfold",
    ),
    Mutant(
        "fold overwrites where windows meet",
        UNFOLD,
        "x[plane, y, z] += columns[plane, u, v, i, j]",
        "x[plane, y, z] = columns[plane, u, v, i, j]",
        "adjoint unfold",
    ),
    Mutant(
        "the border row of the padding is read",
        UNFOLD,
        "inside = 0 <= y < height and 0 <= z < width\n                        columns",
        "inside = 0 <= z < width and -1 <= y < height\n                        columns",
        "forward unfold",
    ),
    # ---- convolution
    Mutant(
        "dilation applied twice",
        CONV,
        "options = window.stride, window.before, window.dilation, groups\n    if few",
        "options = window.stride, window.before,"
        " (window.dilation[0] ** 2, window.dilation[1] ** 2), groups\n    if few",
        "cpu:loops conv2d",
    ),
    Mutant(
        "dilation ignored in the gradient of the input",
        CONV,
        "share(_spread, jobs, grad, w, result, window.stride, window.before, window.dilation)",
        "share(_spread, jobs, grad, w, result, window.stride, window.before, (1, 1))",
        "cpu:loops conv2d",
    ),
    Mutant(
        "dilation ignored in the gradient of the weights",
        CONV,
        "share(_correlate, jobs, x, grad, result, window.stride, window.before, window.dilation, groups)",
        "share(_correlate, jobs, x, grad, result, window.stride, window.before, (1, 1), groups)",
        "cpu:loops conv2d",
    ),
    Mutant(
        "groups ignored",
        CONV,
        "first = f // (filters // groups) * channels",
        "first = 0 * f // (filters // groups) * channels",
        "cpu:loops conv2d",
    ),
    Mutant(
        "the gradient of the bias averaged over the batch",
        CONV,
        "db = as_own(sum_to_shape(grad, (1, filters, 1, 1)), (filters,))",
        "db = as_own(sum_to_shape(grad, (1, filters, 1, 1)), (filters,)) / max(1, len(grad))",
        "slope conv2d",
    ),
    Mutant(
        "the gradient does not pass the fused relu",
        CONV,
        "grad = relu_backward(grad, self.out)",
        "grad = grad + 0 * self.out",
        "slope conv2d-relu",
    ),
    # ---- the blocked product
    Mutant(
        "the adjoint reads with the sign of the forward",
        "gemm.py",
        "(1, 1), window.before, (-rows, -columns))",
        "(1, 1), window.before, (rows, columns))",
        "cpu:direct conv2d-3x3",
    ),
    Mutant(
        "filters and channels not exchanged in the packing of the adjoint",
        "gemm.py",
        "pitches = (taps, filters * taps) if adjoint else (inner, taps)",
        "pitches = (inner, taps)",
        "cpu:direct conv2d-3x3",
    ),
    Mutant(
        "every group multiplied by the first one's weights",
        "gemm.py",
        "group * filters * inner + f0 * pitches[0],",
        "f0 * pitches[0],",
        "cpu:direct conv2d",
    ),
    Mutant(
        "the first slab's weights packed for every slab",
        "gemm.py",
        "group * filters * inner + f0 * pitches[0],",
        "group * filters * inner,",
        "test_mutants slabs_of_weights",
    ),
    Mutant(
        "the parts of the filters all written where the first belongs",
        "gemm.py",
        "f = f0 + which * rows",
        "f = f0 + (which - first_tile) * rows",
        "test_mutants parts_for_threads",
    ),
    Mutant(
        "a run goes on from one row of the output into the next",
        "gemm.py",
        "length = min(breadth - j, pixels[1] - p, columns - within)",
        "length = min(pixels[1] - p, columns - within)",
        "cpu:direct conv2d",
    ),
    Mutant(
        "one number beyond the image's right edge gathered",
        "gemm.py",
        "inside = (-z, breadth - z)",
        "inside = (-z, breadth - z + 1)",
        "cpu:direct conv2d",
    ),
    Mutant(
        "the number before the image's left edge gathered at a stride",
        "gemm.py",
        "read = 0 <= z + m * step < breadth",
        "read = -1 <= z + m * step < breadth",
        "cpu:direct conv2d",
    ),
    Mutant(
        "the bias added in every block of channels",
        "gemm.py",
        "c0 == 0,\n",
        "c0 >= 0,\n",
        "test_mutants blocks_of_steps",
    ),
    Mutant(
        "relu before the last block of channels",
        "gemm.py",
        "relu and c1 == channels,",
        "relu,",
        "test_mutants blocks_of_steps",
    ),
    Mutant(
        "the sums over pixels begin anew in every block of pixels",
        "gemm.py",
        "chunk == begin,",
        "chunk >= begin,",
        "cpu:direct conv2d",
    ),
    Mutant(
        "only the first thread's sums over pixels begin at nothing",
        "gemm.py",
        "chunk == begin,",
        "chunk == 0,",
        "test_mutants parts_for_threads",
    ),
    Mutant(
        "the fold begins a pixel before the image",
        "gemm.py",
        "first = max(0, -(z // step))",
        "first = max(0, -z // step)",
        "cpu:direct conv2d",
    ),
    Mutant(
        "the fold ends before the last pixel of the image",
        "gemm.py",
        "last = min(runs[r, 2], (breadth - z + step - 1) // step)",
        "last = min(runs[r, 2], (breadth - z) // step)",
        "cpu:direct conv2d",
    ),
    Mutant(
        "the folded columns begin anew in every block of filters",
        "gemm.py",
        "f == f0,",
        "f >= f0,",
        "test_mutants blocks_of_steps",
    ),
    # ---- Winograd's convolution
    Mutant(
        "tiles laid side by side, whatever the dilation",
        "winograd.py",
        "return n % dilation + n // dilation * side * dilation",
        "return n * side",
        "cpu:winograd2 conv2d-3x3",
    ),
    Mutant(
        "a phase's tiles begin one pixel apart",
        "winograd.py",
        "return n % dilation + n // dilation * side * dilation",
        "return n % dilation + n // dilation * side",
        "cpu:winograd4 conv2d-3x3",
    ),
    Mutant(
        "the kernel not turned round for the adjoint",
        "winograd.py",
        "taps = (8 * lanes, -3 * lanes, -lanes) if turned else (0, 3 * lanes, lanes)",
        "taps = (0, 3 * lanes, lanes)",
        "cpu:winograd4 conv2d-3x3",
    ),
    Mutant(
        "the padding not turned round for the adjoint",
        "winograd.py",
        "before = 2 * window.dilation[0] - before[0], 2 * window.dilation[1] - before[1]",
        "before = before[0], before[1]",
        "cpu:winograd2 conv2d-3x3",
    ),
    Mutant(
        "the bias put at the point (1, 0)",
        "winograd.py",
        "begin = (side + 3) * product_point",
        "begin = (side + 2) * product_point",
        "cpu:winograd4 conv2d-3x3",
    ),
    Mutant(
        "the bias put there and overwritten",
        "winograd.py",
        "point != side + 3,",
        "point >= 0,",
        "cpu:winograd2 conv2d-3x3",
    ),
    Mutant(
        "the first stripe's bias for every stripe of filters",
        "winograd.py",
        "value = bias[f0 + j] if",
        "value = bias[filters[0] + j] if",
        "test_mutants stripes_of_filters",
    ),
    Mutant(
        "gradients read with the image's padding",
        "winograd.py",
        "padding = grid.before if reach > side else (0, 0)",
        "padding = grid.before",
        "cpu:winograd2 conv2d-3x3",
    ),
    Mutant(
        "results written beyond the end of their row",
        "winograd.py",
        "end = min(wide, out_w - first)",
        "end = wide",
        "cpu:winograd4 conv2d-3x3",
    ),
    Mutant(
        "every block of a row reads the first one's pixels",
        "winograd.py",
        "left = z + block.t0 * side - padding[1]",
        "left = z - padding[1]",
        "test_mutants blocks_of_tiles",
    ),
    Mutant(
        "every block of a row is written over the first",
        "winograd.py",
        "first = block.t0 * side  #",
        "first = 0 * block.t0  #",
        "test_mutants blocks_of_tiles",
    ),
    Mutant(
        "blocks that end within a phase",
        "winograd.py",
        "return 1, -(-units // -(-units // most)) * across",
        "return 1, -(-units // -(-units // most))",
        "test_mutants blocks_of_tiles",
    ),
    Mutant(
        "each block of tiles begins the sums anew",
        "winograd.py",
        "job == begin,",
        "job >= begin,",
        "test_mutants blocks_of_tiles",
    ),
    Mutant(
        "only the first thread's sums over tiles begin at nothing",
        "winograd.py",
        "job == begin,",
        "job == 0,",
        "test_mutants parts_for_threads",
    ),
    Mutant(
        "each band of tiles begins the sums anew",
        "winograd.py",
        "first & (t0 == 0),",
        "t0 == 0,",
        "test_mutants bands_of_tiles",
    ),
    Mutant(
        "each step within a band begins the sums anew",
        "winograd.py",
        "first & (t0 == 0),",
        "first,",
        "test_mutants bands_of_tiles",
    ),
    # ---- pooling
    Mutant(
        "max pooling pads with 0 instead of -inf",
        POOL,
        "line[:] = -np.inf",
        "line[:] = 0",
        "forward max_pool2d",
    ),
    Mutant(
        "count_include_pad the wrong way round",
        POOL,
        "AvgPool(window, bool(count_include_pad), divisor)",
        "AvgPool(window, not count_include_pad, divisor)",
        "forward avg_pool2d",
    ),
    # ---- padding and resizing
    Mutant(
        "reflection repeats the edge",
        "functional/padding.py",
        "return np.minimum(p, period - p)",
        "return np.clip(np.minimum(p, period - p - 1), 0, size - 1)",
        "forward pad-reflect",
    ),
    Mutant(
        "align_corners the wrong way round",
        "functional/resizing.py",
        "corners = bool(align_corners)",
        "corners = not align_corners",
        "forward interpolate-bilinear",
    ),
    Mutant(
        "half a pixel forgotten",
        "functional/resizing.py",
        "half = i.dtype.type(0 if axis.align_corners else 0.5)",
        "half = i.dtype.type(0 if axis.align_corners else 0.0)",
        "forward interpolate-bilinear",
    ),
    Mutant(
        "of two neighbours that showed a pixel the first counts twice",
        "functional/padding.py",
        "target[z] += line[2 * z] + line[2 * z + 1]",
        "target[z] += line[2 * z] + line[2 * z]",
        "test_loops test_an_image_of_twice_the_size_sends_back_both_neighbours",
    ),
    # ---- arithmetic and reduction
    Mutant(
        "no sum over the repeats of broadcasting",
        "functional/arithmetic.py",
        "return grad if grad.shape == shape else sum_to_shape(grad, shape)",
        "return grad",
        "slope add",
    ),
    Mutant(
        "a - b sends both the same sign",
        "functional/arithmetic.py",
        "return unbroadcast(grad, self.shapes[0]), unbroadcast(neg_forward(grad), self.shapes[1])",
        "return unbroadcast(grad, self.shapes[0]), unbroadcast(grad, self.shapes[1])",
        "slope sub",
    ),
    Mutant(
        "relu passes the gradient at zero",
        "functional/rectifier.py",
        "result[n] = value if out[n] > 0 else 0",
        "result[n] = value if out[n] >= 0 else 0",
        "slope relu",
    ),
    Mutant(
        "nan becomes 0 in relu",
        "functional/rectifier.py",
        "out[n] = value if not value < 0 else x.dtype.type(0)",
        "out[n] = value if value > 0 else x.dtype.type(0)",
        "test_mutants nan_stays_nan",
    ),
    Mutant(
        "the last of several maxima instead of the first",
        SUMS,
        "if number > rows[r, best]:",
        "if number >= rows[r, best]:",
        "test_mutants first_of_equals",
    ),
    # ---- shaping
    Mutant(
        "a gradient overwrites where indexing repeats",
        SHAPE,
        "result[first + n * stride] += grad[at + n]",
        "result[first + n * stride] = 2 * grad[at + n]",
        "adjoint getitem",
    ),
    Mutant(
        "cat hands out the gradients in the wrong places",
        SHAPE,
        "gradients.append(copy_view(grad, whole.sliced(self.dim, start, size)))",
        "gradients.append(copy_view(grad, whole.sliced(self.dim, 0, size)))",
        "slope cat",
    ),
    # ---- softmax and its loss
    Mutant(
        "softmax without the largest taken away",
        LOSS,
        "result[m] = exp_down_rule(scores[m] - peaks[m])",
        "result[m] = exp_down_rule(scores[m])",
        "forward softmax",
    ),
    Mutant(
        "ignored pixels counted in the mean",
        LOSS,
        "weight += of_class if known else 0",
        "weight += of_class if known else 1",
        "test_mutants ignored_pixels_do_not_count",
    ),
    Mutant(
        "the mean over pixels instead of over weights",
        LOSS,
        "of_class = weights[label[m] if known else 0]",
        "of_class = losses.dtype.type(1)",
        "forward cross_entropy",
    ),
    Mutant(
        "ignored pixels push the scores",
        LOSS,
        "evenly[m] = given[m] * to_each if known else 0",
        "evenly[m] = given[m] * to_each",
        "slope cross_entropy",
    ),
    Mutant(
        "label smoothing spreads over the other classes only",
        LOSS,
        "smoothed = to_label * loss[m] + to_each * evenly[m]",
        "smoothed = to_label * loss[m]"
        " + smoothing / max(1, x.shape[1] - 1) * (evenly[m] - loss[m])",
        "forward cross_entropy",
    ),
    # ---- dropout
    Mutant(
        "what dropout leaves is not scaled up",
        "functional/dropping.py",
        "return 1 / (1 - p) if p < 1 else 0.0",
        "return 1.0 if p < 1 else 0.0",
        "forward dropout",
    ),
    Mutant(
        "dropout drops other numbers on the way back",
        "functional/dropping.py",
        "return dropout_forward(grad, *self.options)",
        "return dropout_forward(grad, self.options[0], self.options[1], self.options[2] + 1)",
        "slope dropout",
    ),
    # ---- memory
    Mutant(
        "a lock that somebody else has is taken for ours",
        "kept.py",
        "yield _acquire(file, patience)",
        "yield True",
        "test_kept test_two_writers_at_once_keep_both",
    ),
    Mutant(
        "a block comes back twice, and two arrays get it",
        "buffers.py",
        "self.returned.append(block)",
        "self.returned.extend((block, block))",
        "test_buffers test_no_two_arrays_overlap_and_the_peak_is_that_of_the_arrays",
    ),
    Mutant(
        "an array begins where the system's memory begins",
        "buffers.py",
        "begin + -begin % ALIGNMENT",
        "begin",
        "test_buffers test_no_two_arrays_overlap_and_the_peak_is_that_of_the_arrays",
    ),
    Mutant(
        "memory that is held raises the peak",
        "buffers.py",
        "self._let_go(most - self.in_use - size)",
        "self._let_go(most - size)",
        "test_buffers test_no_two_arrays_overlap_and_the_peak_is_that_of_the_arrays",
    ),
    # ---- the graph
    Mutant(
        "a second gradient overwrites the first",
        "autograd.py",
        "gradients[op.number] = accumulate(gradients[op.number], gradient)",
        "gradients[op.number] = gradient",
        "test_autograd test_a_diamond_counts_every_path",
    ),
    Mutant(
        "a diamond's corner is visited before all have arrived",
        "autograd.py",
        "heapq.heappush(waiting, (-op.number, op))",
        "heapq.heappush(waiting, (op.number, op))",
        "test_autograd test_a_diamond_with_sides_of_different_length",
    ),
    Mutant(
        "a second walk replaces the gradient of the first",
        "autograd.py",
        "leaf.grad = Tensor(accumulate(leaf.grad.data, gradient))",
        "leaf.grad = Tensor(gradient)",
        "test_autograd test_gradients_of_several_walks_add_up",
    ),
    Mutant(
        "two leaves share the memory of one gradient",
        "autograd.py",
        "Tensor(gradient.copy() if shared else gradient)",
        "Tensor(gradient)",
        "test_mutants gradients_share_no_memory",
    ),
    # ---- networks
    Mutant(
        "a last odd column is dropped",
        "models/rows.py",
        "row.kernel, row.stride, row.padding, row.dilation, ceil_mode=ceil_mode",
        "row.kernel, row.stride, row.padding, row.dilation, ceil_mode=False",
        "test_models test_kitti_needs_ceil_mode",
    ),
    Mutant(
        "the buffer around every layer",
        "models/contexts.py",
        "buffer = sum(dilations) if layer == 0 else 0",
        "buffer = sum(dilations)",
        "test_published test_maps_of_the_voc_context_module",
    ),
    Mutant(
        "finer scores are added one cell beside",
        "models/comparisons.py",
        "offset = _whole((place.centre - finer.centre) / place.stride, tap)",
        "offset = _whole((place.centre - finer.centre) / place.stride + 1, tap)",
        "test_comparisons test_names_and_cuts_of_fcn_8s",
    ),
    Mutant(
        "a field without its dilation",
        "field.py",
        "window.kernel[axis], window.stride[axis], window.before[axis], window.dilation[axis]",
        "window.kernel[axis], window.stride[axis], window.before[axis], 1",
        "test_receptive_field test_holes_of_three_layers_of_dilation_two",
    ),
    Mutant(
        "the centre half a pixel off",
        "field.py",
        "centres = [Fraction(p.first + p.last, 2) - i * self.stride for i, p in seen]",
        "centres = [Fraction(p.first + p.last + 1, 2) - i * self.stride for i, p in seen]",
        "test_receptive_field test_rows_and_columns_apart",
    ),
    Mutant(
        "the phases behind an upsampling ignored",
        "field.py",
        "period = reader.period * (self.period // gcd(self.period, reader.step.numerator))",
        "period = 1",
        "test_receptive_field test_phases_of_an_upsampling",
    ),
    Mutant(
        "holes filled in",
        "field.py",
        "return self.bits.bit_count()",
        "return self.extent",
        "test_receptive_field test_holes_of_three_layers_of_dilation_two",
    ),
    Mutant(
        "rows read for columns",
        "receptive_field/rules.py",
        "return _last_two(op, axes, Along(sliding(window, 0)), Along(sliding(window, 1)))",
        "return _last_two(op, axes, Along(sliding(window, 1)), Along(sliding(window, 0)))",
        "test_receptive_field test_rows_and_columns_apart",
    ),
    Mutant(
        "a border that moves the image the wrong way",
        "receptive_field/rules.py",
        "return Along(Slide(1, 1, op.borders[axis - first][0]), op.mode) if axis >= first else EACH",
        "return Along(Slide(1, 1, -op.borders[axis - first][0]), op.mode) if axis >= first else EACH",
        "test_receptive_field test_the_front_end_with_its_mirrored_border",
    ),
    Mutant(
        "zeros of a border seen as the mirrored image",
        "receptive_field/graph.py",
        "shown = index_map(len(self.inside), before, after, along.edge).tolist()",
        'shown = index_map(len(self.inside), before, after, "reflect").tolist()',
        "test_receptive_field test_rows_and_columns_apart",
    ),
    Mutant(
        "of two branches only one is followed",
        "receptive_field/graph.py",
        "products = union([product for branch in branches for product in branch.products])",
        "products = union([product for branch in branches[:1] for product in branch.products])",
        "test_receptive_field test_a_skip_connection",
    ),
    Mutant(
        "a cross taken for the box around it",
        "receptive_field/graph.py",
        "if self.rows == other.rows and self.columns.line.stride == other.columns.line.stride:",
        "if self.columns.line.stride == other.columns.line.stride:",
        "test_receptive_field test_a_field_that_is_no_product",
    ),
    Mutant(
        "the shift between branches forgotten",
        "receptive_field/graph.py",
        "apart = [abs(b[1] - a[1]) for a, b in zip(*places, strict=True)]",
        "apart = [abs(b[0] - a[0]) for a, b in zip(*places, strict=True)]",
        "test_receptive_field test_misaligned_branches_name_both_paths_and_the_shift",
    ),
    Mutant(
        "the closed form without the jumps",
        "receptive_field/effective_field.py",
        "variance[axis] += (jump * reader.dilation) ** 2 * (reader.kernel**2 - 1) / 12",
        "variance[axis] += reader.dilation**2 * (reader.kernel**2 - 1) / 12",
        "test_receptive_field test_closed_form_of_the_front_end",
    ),
    Mutant(
        "the first filter's gradient stands for all filters",
        "receptive_field/probes.py",
        "any_filter = (grads != 0).any(axis=2)",
        "any_filter = (grads != 0)[:, :, 0]",
        "test_receptive_field test_one_filter_stands_for_all_where_weights_are_positive",
    ),
    Mutant(
        "one filter stands for all where numbers count",
        "receptive_field/probes.py",
        "if rng is not None and type(op) is Convolution",
        "if type(op) is Convolution",
        "test_receptive_field test_one_filter_stands_for_all_where_weights_are_positive",
    ),
    Mutant(
        "a maximum that shows its winner alone",
        "receptive_field/probes.py",
        "backward: Callable[[Any, Array], Any] = PROBES.get(type(op)) or type(op).backward",
        "backward: Callable[[Any, Array], Any] = type(op).backward",
        "test_receptive_field test_a_maximum_shows_all_its_pixels",
    ),
    # ---- recipes
    Mutant(
        "each part of a batch divided by its own number of pixels",
        "recipes/stepping.py",
        "loss = summed * (1 / counted)",
        "loss = summed * (1 / np.count_nonzero(labels != IGNORE))",
        "test_recipes test_the_loss_is_a_mean_over_the_whole_batchs_pixels",
    ),
    Mutant(
        "biases decay like weights",
        "optim.py",
        '"weight_decay": bias_decay * weight_decay}',
        '"weight_decay": weight_decay}',
        "test_recipes test_biases_learn_twice_as_fast_and_do_not_decay",
    ),
    Mutant(
        "features of other weights taken for these",
        "recipes/starting.py",
        'digest.update(memoryview(array).cast("B") if array.size else b"")',
        "pass",
        "test_recipes test_one_changed_weight_changes_the_fingerprint",
    ),
    Mutant(
        "a small image reflected once, not twice",
        "recipes/stored.py",
        "in_border = reflect(rows + canvas.border, length + 2 * canvas.border)",
        "in_border = rows + canvas.border",
        "test_recipes test_an_image_on_its_canvas",
    ),
    # ---- weights of others
    Mutant(
        "the colours' factors changed, and not their order",
        "io/vgg.py",
        "return InMemory(kernels[:, back]),",
        "return InMemory(kernels),",
        "test_weights test_the_fold_is_exact",
    ),
    Mutant(
        "the bias knows nothing of the means",
        "io/vgg.py",
        "bias.array().astype(np.float64) + shift",
        "bias.array().astype(np.float64)",
        "test_weights test_the_fold_is_exact",
    ),
    Mutant(
        "whole numbers of 63 bits",
        "io/wire.py",
        "for shift in range(0, 70, 7):",
        "for shift in range(0, 63, 7):",
        "test_weight_files test_whole_numbers",
    ),
    Mutant(
        "every number of a run is a field of its own",
        "io/wire.py",
        "return count + int(other[0])",
        "return 1",
        "test_weight_files test_a_run_of_numbers_is_found_in_one_step",
    ),
    # ---- pictures
    Mutant(
        "the row of the truth shows one class everywhere",
        "see/training.py",
        "column[1].imshow(coloured(truth[n])",
        "column[1].imshow(coloured(0 * truth[n])",
        "test_training_pictures test_each_row_shows_what_its_title_says_of_each_scene",
    ),
    Mutant(
        "every scene beside the first one's prediction",
        "see/training.py",
        "_draw_mistakes(axes, labels[n], truth[n], ground)",
        "_draw_mistakes(axes, labels[0], truth[n], ground)",
        "test_training_pictures test_each_row_shows_what_its_title_says_of_each_scene",
    ),
    Mutant(
        "the loss drawn as the mean IoU",
        "see/training.py",
        '_series(log, stage.name, "validation_mean_iou", begin[stage.name])',
        '_series(log, stage.name, "loss", begin[stage.name])',
        "test_training_pictures test_scores_stand_at_their_steps_and_go_on_from_the_stage_before",
    ),
    Mutant(
        "what is seen of an image dimmed, and the rest lit",
        "see/fields.py",
        "np.where(mask[:, :, None], seen, 0.08 + 0.5 * colours)",
        "np.where(~mask[:, :, None], seen, 0.08 + 0.5 * colours)",
        "test_field_pictures test_what_an_output_sees_keeps_its_light_and_the_rest_is_dimmed",
    ),
    Mutant(
        "holes filled and what is seen pale",
        "see/fields.py",
        "np.where(patch.mask[:, :, None], to_rgb(SEEN), to_rgb(HOLE))",
        "np.where(patch.mask[:, :, None], to_rgb(HOLE), to_rgb(SEEN))",
        "test_field_pictures test_what_a_stack_sees_is_filled_and_what_it_spans_is_pale",
    ),
    Mutant(
        "other columns of the matrix coloured than windows of the image",
        "see/windows.py",
        "rank = chosen.index(output) if output in chosen else None",
        "rank = chosen.index(output[::-1]) if output[::-1] in chosen else None",
        "test_see test_im2col_shows_windows_and_columns_in_the_same_colours",
    ),
    # ---- machine code that is kept
    Mutant(
        "the constants outside a kernel's body are not in its recipe",
        "cubins.py",
        "waiting += [value.__globals__[n] for n in code.co_names if n in value.__globals__]",
        "waiting += [value.__globals__[n] for n in code.co_names if n in ()]",
        "test_cubins test_the_recipe_knows_what_a_body_leads_to",
    ),
    Mutant(
        "a kernel with a rule that is not ours is kept",
        "cubins.py",
        "if not Path(value.__code__.co_filename).is_relative_to(compiling.PACKAGE):",
        "if False:",
        "test_cubins test_what_is_not_ours_has_no_recipe",
    ),
]

# In LLVM's language, which does not run as Python: these are compiled. Each is killed by a test of
# test_simd, named alone.
INSTRUCTION_MUTANTS = [
    Mutant(
        "a single last row of the tile forgotten",
        "simd.py",
        "for size in (1, 2, 3):",
        "for size in (1, 2):",
        "check_every_tail",
    ),
    Mutant(
        "the mask of the last vector one lane too wide",
        "simd.py",
        "before_last = code.integer((vectors - 1) * code.lanes)",
        "before_last = code.integer((vectors - 1) * code.lanes - 1)",
        "check_every_tail",
    ),
    Mutant(
        "a tile of whole vectors taken for the next wider one",
        "simd.py",
        "least = code.integer((vectors - 1) * code.lanes)",
        "least = code.integer((vectors - 1) * code.lanes - 1)",
        "check_every_tail",
    ),
    Mutant(
        "the bias of the tile's first rows for its last",
        "simd.py",
        "spread = [code.spread(code.offset(bias_first, line), m) for m in range(height)]",
        "spread = [code.spread(bias_first, m) for m in range(height)]",
        "check_every_tail",
    ),
    Mutant(
        "nan cut by relu",
        "simd.py",
        'fcmp_ordered("<", total, least)',
        'fcmp_unordered("<", total, least)',
        "test_nan_passes_the_sandwichs_relu_and_keeps_to_its_lane",
    ),
    Mutant(
        "a run's later vectors masked as its first",
        "simd.py",
        "code.between(builder.sub(low, start), builder.sub(high, start))",
        "code.between(low, high)",
        "test_the_copy_of_runs_is_its_twin",
    ),
    Mutant(
        "a short run written to the end of its vector",
        "simd.py",
        "builder.select(written, values, code.load(to, 0))",
        "values",
        "test_the_copy_of_runs_is_its_twin",
    ),
    Mutant(
        "rows of a block read that do not exist",
        "simd.py",
        "masks = [builder.select(code.less(m, rows), read, nothing) for m in numbers]",
        "masks = [read for m in numbers]",
        "test_the_transposed_block_is_its_twin",
    ),
    Mutant(
        "columns of a block written that do not exist",
        "simd.py",
        "mask = builder.select(code.less(j, columns), written, nothing)",
        "mask = written",
        "test_the_transposed_block_is_its_twin",
    ),
    Mutant(
        "a weight of -1 taken for 1",
        "simd.py",
        "total = self.builder.fsub(total, value)",
        "total = self.builder.fadd(total, value)",
        "test_the_sandwich_is_its_twin_and_a_product_of_matrices",
    ),
]

# In the bodies of GPU kernels, which the simulator runs. Each is killed by a check of
# test_gpu_gemm, named alone.
GEMM = "gpu_gemm.py"
GPU_MUTANTS = [
    Mutant(
        "no barrier between writing a tile and reading it",
        GEMM,
        "            cuda.syncthreads()\n            step =",
        "            step =",
        "check_tails",
    ),
    Mutant(
        "no barrier in the sums over pixels",
        GEMM,
        "            cuda.syncthreads()\n            begun =",
        "            begun =",
        "check_parts",
    ),
    Mutant(
        "no barrier after the columns' places",
        GEMM,
        "        cuda.syncthreads()\n\n        # A thread fetches",
        "        # A thread fetches",
        "check_parts",
    ),
    Mutant(
        "the tile that is read is overwritten: one buffer for two",
        GEMM,
        "            if step > 0:\n"
        "                multiply(tile_a, tile_b, read_a, read_b, thread, sums)\n"
        "                read_a, read_b = np.uint32(read_a ^ SIZE_A), np.uint32(read_b ^ SIZE_B)",
        "            if step > 0:\n"
        "                multiply(tile_a, tile_b, read_a, read_b, thread, sums)\n"
        "                read_a, read_b = np.uint32(read_a & SIZE_A), np.uint32(read_b & SIZE_B)",
        "check_tails",
    ),
    Mutant(
        "filters written that do not exist",
        GEMM,
        "            if row < filters:\n                row =",
        "            if row < padded:\n                row =",
        "check_tails",
    ),
    Mutant(
        "pixels written that do not exist",
        GEMM,
        "if p < pixels else NOWHERE",
        "if True else NOWHERE",
        "check_tails",
    ),
    Mutant(
        "columns of the weights' gradient written that do not exist",
        GEMM,
        "if from_b + beside < columns:",
        "if from_b + beside < column0 + COLUMNS:",
        "check_tails",
    ),
    Mutant(
        "channels read that do not exist",
        GEMM,
        "if place < plane and np.uint32(k_b + np.uint32(n)) < left:",
        "if place < plane:",
        "check_tails",
    ),
    Mutant(
        "the GPU forgets the dilation",
        GEMM,
        "for place in (u * self.spacing[0], v * self.spacing[1])",
        "for place in (u, v)",
        "check_window",
    ),
    Mutant(
        "a stride's other pixels get a gradient",
        GEMM,
        "if np.uint32(row * over_y) != np.uint32(y) or",
        "if",
        "check_window",
    ),
    Mutant(
        "each part sums to the end of the pixels",
        GEMM,
        "last = min(pixels, np.uint32((part + np.uint32(1)) * each))",
        "last = pixels",
        "check_parts",
    ),
    Mutant(
        "the last part is not added",
        GEMM,
        "while n < count and part < parts:",
        "while n < count and part < parts - 1:",
        "check_parts",
    ),
    Mutant(
        "what the last thread added of a map's parts is forgotten",
        GEMM,
        "while y == 0 and below < down:",
        "while y == 0 and below < down - 1:",
        "check_map_in_parts",
    ),
    Mutant(
        "parts taken from others before they are there",
        GEMM,
        "    cuda.syncthreads()\n    below",
        "    below",
        "check_map_in_parts",
    ),
    Mutant(
        "rows of a plain product read that do not exist",
        GEMM,
        "if np.int32(n * apart) < left:",
        "if 0 < left:",
        "check_plain",
    ),
    Mutant(
        "a plain product reads on beyond its image",
        GEMM,
        "shown = 1, math.prod(shown)",
        "shown = 1, count * math.prod(shown)",
        "check_plain",
    ),
    Mutant(
        "weights of several taps are taken for packed",
        GEMM,
        "in_order = adjoint and taps == 1 and (deep,",
        "in_order = adjoint and (deep,",
        "check_order",
    ),
    Mutant(
        "each part of a map adds the bias",
        GEMM,
        "*(finish if parts == 1 else (0, 0))",
        "*finish",
        "check_map_in_parts",
    ),
    Mutant(
        "a part begins with the first tap",
        GEMM,
        "tap = np.uint32(start // in_a_tap)",
        "tap = np.uint32(0)",
        "check_map_in_parts",
    ),
    Mutant(
        "each part of a map sums to the end",
        GEMM,
        "steps = np.uint32(min(each, np.uint32(rounds - start)))",
        "steps = np.uint32(rounds - start)",
        "check_map_in_parts",
    ),
    Mutant(
        "weights turned over before they are read",
        GEMM,
        "        cuda.syncthreads()\n        f = np.uint32(f0 + x)\n",
        "        f = np.uint32(f0 + x)\n",
        "check_tails",
    ),
    Mutant(
        "the row of the next pixel is not looked up anew",
        GEMM,
        "if j >= out_w:",
        "if j == out_w:",
        "check_parts",
    ),
    Mutant(
        "tiles multiplied before they are complete",
        "functional/products.py",
        "        cuda.syncthreads()  # both tiles are complete\n",
        "",
        "check_products",
    ),
    Mutant(
        "a product written beyond its rows",
        "functional/products.py",
        "    if m < rows and n < columns:",
        "    if n < columns:",
        "check_products",
    ),
    Mutant(
        "fold takes every pixel for one that an output read",
        "functional/unfolding.py",
        "if i >= 0 and i % sizes[6] == 0 and",
        "if i >= 0 and",
        "check_columns",
    ),
]

# In what surrounds a tensor core's instruction, killed by a check of test_gpu_tf32.
GPU_TF32 = "gpu_tf32.py"
GPU_TF32_MUTANTS = [
    Mutant(
        "two registers of the left matrix have changed places",
        GPU_TF32,
        "left=(left, left + 1, left + 2, left + 3)",
        "left=(left, left + 2, left + 1, left + 3)",
        "check_lanes",
    ),
    Mutant(
        "two registers of the right matrix have changed places",
        GPU_TF32,
        "right=(right, right + 1)",
        "right=(right + 1, right)",
        "check_lanes",
    ),
    Mutant(
        "sums in columns where they belong in rows",
        GPU_TF32,
        "sums=(sums, sums + 1, sums + columns, sums + columns + 1)",
        "sums=(sums, sums + columns, sums + 1, sums + columns + 1)",
        "check_lanes",
    ),
    Mutant(
        "the second product takes the first one's steps in k",
        GPU_TF32,
        "left, right = 4 * (2 * m + step), 4 * n + 2 * step",
        "left, right = 4 * (2 * m + step), 4 * n",
        "check_lanes",
    ),
    Mutant(
        "the left matrix has its steps in k elsewhere than the right one",
        GPU_TF32,
        "np.uint32(4) * (row % np.uint32(8)) + k // np.uint32(4))",
        "np.uint32(4) * (row % np.uint32(8)) + k % np.uint32(4))",
        "check_lanes",
    ),
    Mutant(
        "lanes count their column as they count their row of sums",
        GPU_TF32,
        "warp % ACROSS * WARP_COLUMNS + lane // FOUR)",
        "warp % ACROSS * WARP_COLUMNS + lane % FOUR)",
        "check_lanes",
    ),
    Mutant(
        "every warp multiplies the first one's rows",
        GPU_TF32,
        "first = np.uint32(warp // ACROSS * WARP_ROWS * np.uint32(STEPS))",
        "first = np.uint32(0 * warp // ACROSS * WARP_ROWS * np.uint32(STEPS))",
        "check_warps",
    ),
    Mutant(
        "the right matrix is read without its swap",
        GPU_TF32,
        "np.uint32(read_b + place_right(column, np.uint32(FOUR * (lane % FOUR))))",
        "np.uint32(read_b + np.uint32(STEPS) * column + np.uint32(FOUR * (lane % FOUR)))",
        "check_lanes",
    ),
    Mutant(
        "pixels are not rounded",
        GEMM,
        "tile_b[read_b + beside_b(to_b, np.uint32(n))] = rounded(next_b[n])",
        "tile_b[read_b + beside_b(to_b, np.uint32(n))] = rounded and next_b[n]",
        "check_errors",
    ),
    Mutant(
        "weights are not rounded",
        GEMM,
        "packed[address(k, f, wide)] = rounded(value)",
        "packed[address(k, f, wide)] = rounded and value",
        "check_errors",
    ),
    Mutant(
        "gradients are not rounded",
        GEMM,
        "tile_a[read_a + to] = rounded(next_a[n])",
        "tile_a[read_a + to] = next_a[n]",
        "check_errors",
    ),
    Mutant(
        "bits are dropped where they should be rounded",
        GPU_TF32,
        "near = ((bits + _UNIT // 2)",
        "near = ((bits + 0)",
        "check_errors",
    ),
    Mutant(
        "packed weights of the second sixteen channels lie where the first do",
        GEMM,
        "np.uint32((k - in_round) * wide + place_left(f, in_round))",
        "np.uint32(0 * (k - in_round) * wide + place_left(f, in_round))",
        "check_layer",
    ),
    Mutant(
        "a part of a map begins with another tile's weights",
        GEMM,
        "at_a = np.uint32(at_a * padded + f0 * np.uint32(STEPS) + to_a)",
        "at_a = np.uint32(at_a * padded + f0 + to_a)",
        "check_layer",
    ),
]

# In the transforms of the GPU, killed by a check of test_gpu_winograd.
GPU_WINOGRAD = "gpu_winograd.py"
GPU_WINOGRAD_MUTANTS = [
    Mutant(
        "the kernel is not turned round for the gradient",
        GPU_WINOGRAD,
        "place = np.uint32(np.uint32(8) - place)",
        "place = np.uint32(place)",
        "check_padding",
    ),
    Mutant(
        "the gradient's padding is the layer's own",
        GPU_WINOGRAD,
        "tuple(2 * d - b for d, b",
        "tuple(b for d, b",
        "check_no_padding",
    ),
    Mutant(
        "tiles begin as if there were one phase",
        GPU_WINOGRAD,
        "z = np.int32(column % across + column // across * side * across)",
        "z = np.int32(column * side)",
        "check_phases",
    ),
    Mutant(
        "a tile's pixels lie side by side",
        GPU_WINOGRAD,
        "z = np.int32(z0 + np.int32(j) * layer[ACROSS])\n                value",
        "z = np.int32(z0 + np.int32(j))\n                value",
        "check_phases",
    ),
    Mutant(
        "gradients are padded as images are",
        GPU_WINOGRAD,
        "unpadded = grid._replace(before=(0, 0))",
        "unpadded = grid",
        "check_padding",
    ),
    Mutant(
        "outputs written that do not exist",
        GPU_WINOGRAD,
        "if y < rows and z < columns:",
        "if y < rows + 1 and z < columns + 1:",
        "check_padding",
    ),
    Mutant(
        "each band has the first tiles",
        GPU_WINOGRAD,
        "*(band.tiles, band.first, planes,",
        "*(band.tiles, 0, planes,",
        "check_bands",
    ),
    Mutant(
        "the last band's gradient is not added",
        GPU_WINOGRAD,
        "sums = part if sums is None else _add(sums, part)",
        "sums = part if sums is None else sums",
        "check_bands",
    ),
]

# On the other pages: the killer is a case of test_ops, whose twins for the GPU no longer agree, or a
# test of test_on_the_gpu.

PAD, SIZE, DROP = (f"functional/{page}.py" for page in ("padding", "resizing", "dropping"))

GPU_PAGE_MUTANTS = [
    Mutant(
        "the threads to spare write as well",
        POOL,
        "    if n >= values.size:\n        return\n",
        "    if n >= values.size + 8:\n        return\n",
        "max_pool2d",
    ),
    Mutant(
        "of equal numbers the last one wins",
        POOL,
        "    return (value > best) | (value != value)",
        "    return (value >= best) | (value != value)",
        "test_maxima_of_odd_images",
    ),
    Mutant(
        "the pixel below before the pixel beside",
        POOL,
        "at = tap_number // 2 * width + tap_number % 2",
        "at = tap_number % 2 * width + tap_number // 2",
        "test_maxima_of_odd_images",
    ),
    Mutant(
        "the row above the image is read",
        POOL,
        "if 0 <= y < height and 0 <= z < width:\n                value = x",
        "if -1 <= y < height and 0 <= z < width:\n                value = x",
        "max_pool2d",
    ),
    Mutant(
        "a pixel takes from every window that saw it",
        POOL,
        "if indices[out] == y * width + z:",
        "if indices[out] >= 0:",
        "max_pool2d",
    ),
    Mutant(
        "the tap rule solved without its dilation",
        "window.py",
        "steps = y + padding - u * dilation",
        "steps = y + padding - u",
        "max_pool2d",
    ),
    Mutant(
        "the output behind the last one is asked",
        "window.py",
        "i if steps >= 0 and steps == i * stride and i < outputs else -1",
        "i if steps >= 0 and steps == i * stride and i <= outputs else -1",
        "max_pool2d",
    ),
    Mutant(
        "pixels between the strides taken for read ones",
        "window.py",
        "i if steps >= 0 and steps == i * stride and i < outputs else -1",
        "i if steps >= 0 and i < outputs else -1",
        "max_pool2d",
    ),
    Mutant(
        "the last output that saw a pixel of a mean forgotten",
        POOL,
        "np.int32(min(last + 1, outputs))",
        "np.int32(min(last, outputs))",
        "avg_pool2d",
    ),
    Mutant(
        "means of windows that begin before the image begin with it",
        POOL,
        "first = -((kernel - 1 - y - padding) // stride)",
        "first = -((kernel - 1 - y) // stride)",
        "test_means_of_odd_images",
    ),
    Mutant(
        "the rows beyond a grid's height left out",
        "launching.py",
        "np.uint32(plane), np.uint32(down), np.uint32(deep)",
        "np.uint32(plane), np.uint32(2 * down), np.uint32(deep)",
        "test_a_thread_takes_all_that_a_grid_has_no_blocks_for",
    ),
    Mutant(
        "the planes beyond a grid's depth left out",
        "launching.py",
        "np.uint32(plane), np.uint32(down), np.uint32(deep)",
        "np.uint32(plane), np.uint32(down), np.uint32(2 * deep)",
        "test_a_thread_takes_all_that_a_grid_has_no_blocks_for",
    ),
    Mutant(
        "the gradient of a mean divided by the counts of the rows alone",
        POOL,
        "total += part / (by_row[np.uint32(i)] * by_column[np.uint32(j)])",
        "total += part / by_row[np.uint32(i)]",
        "avg_pool2d",
    ),
    Mutant(
        "pixels between windows apart get what the window above them gets",
        POOL,
        "given = part if u < kernel[0] else grad.dtype.type(0)",
        "given = part",
        "test_means_of_odd_images",
    ),
    Mutant(
        "columns between windows apart get what the window beside them gets",
        POOL,
        "seen = np.uint32(z + padding[1] - j * stride[1]) < kernel[1] and j < columns",
        "seen = j < columns",
        "test_means_of_odd_images",
    ),
    Mutant(
        "the divisor of a mean of four forgotten",
        POOL,
        "planes, count = out.shape[0] * out.shape[1], 4 if divisor is None else divisor",
        "planes, count = out.shape[0] * out.shape[1], 4",
        "test_means_of_odd_images",
    ),
    Mutant(
        "the largest score not taken away",
        LOSS,
        "total += math.exp(scores[k] - lowered)",
        "total += math.exp(scores[k])",
        "softmax",
    ),
    Mutant(
        "what was summed so far not lowered to a larger score",
        LOSS,
        "total *= math.exp(before - lowered)",
        "total *= math.exp(before - before)",
        "test_as_many_classes_as_are_asked_for_at_once_and_others",
    ),
    Mutant(
        "scores of -inf lowered by themselves",
        LOSS,
        "lowered = peak if peak > -np.inf else x.dtype.type(0)",
        "lowered = peak if peak == peak else x.dtype.type(0)",
        "test_scores_that_are_no_numbers",
    ),
    Mutant(
        "scores beyond the last class asked for",
        LOSS,
        "        scores[k] = beyond\n        if each < classes:",
        "        scores[k] = beyond\n        if each <= classes:",
        "test_as_many_classes_as_are_asked_for_at_once_and_others",
    ),
    Mutant(
        "the scores of every item read from the first",
        LOSS,
        "item = np.uint32(pixel // pixels)",
        "item = np.uint32(0)",
        "log_softmax",
    ),
    Mutant(
        "the loss as peak + log(total) less the score",
        LOSS,
        "loss = to_label * weights[c] * (peak - x[np.uint32(first + c * pixels)] + log)",
        "loss = to_label * weights[c] * (peak + log - x[np.uint32(first + c * pixels)])",
        "test_large_scores_keep_the_small_differences",
    ),
    Mutant(
        "ignored pixels pull on the scores",
        LOSS,
        "given = grad[np.uint32(pixel * step)] if label != ignore_index else grad.dtype.type(0)",
        "given = grad[np.uint32(pixel * step)]",
        "test_every_option_of_the_loss",
    ),
    Mutant(
        "ignored pixels count in the mean",
        LOSS,
        "known = (n < count) & (label != ignore_index) & _is_class(label, weights.size)",
        "known = (n < count) & _is_class(label, weights.size)",
        "test_a_class_may_be_ignored",
    ),
    Mutant(
        "the last pixel's weight counts for every thread to spare",
        LOSS,
        "known = (n < count) & (label != ignore_index) & _is_class(label, weights.size)",
        "known = (label != ignore_index) & _is_class(label, weights.size)",
        "test_the_mean_of_so_many_losses",
    ),
    Mutant(
        "the sums of later blocks left out of the mean",
        LOSS,
        "part = np.uint32(part + np.uint32(_THREADS))",
        "part = np.uint32(part + parts)",
        "test_the_mean_of_so_many_losses",
    ),
    Mutant(
        "a label that is no class read out of bounds",
        LOSS,
        "return (label >= 0) & (label < np.int64(classes))",
        "return label < np.int64(classes)",
        "test_a_label_on_the_gpu_that_is_no_class_makes_the_loss_nan",
    ),
    Mutant(
        "the elements counted from one",
        DROP,
        "return _random_bits(key, np.uint64(n)) >> _11 >= least",
        "return _random_bits(key, np.uint64(n) + _ONE) >> _11 >= least",
        "dropout",
    ),
    Mutant(
        "what shows nothing shows the last pixel",
        PAD,
        "inside = y >= 0 and z >= 0\n",
        "inside = y >= 0\n",
        "pad-constant",
    ),
    Mutant(
        "the adjoint of a border forgets the last output",
        PAD,
        "while b < across:",
        "while b + 1 < across:",
        "pad-replicate",
    ),
    Mutant(
        "a position that two rows showed gets the first one's number alone",
        PAD,
        "once = high == 1 and across == 1",
        "once = high >= 1 and across == 1",
        "pad-replicate",
    ),
    Mutant(
        "each output's share given to the other neighbour",
        SIZE,
        "np.where(lower[i] == y, 1 - weight[i], 0) + np.where(upper[i] == y, weight[i], 0)",
        "np.where(lower[i] == y, weight[i], 0) + np.where(upper[i] == y, 1 - weight[i], 0)",
        "interpolate-bilinear",
    ),
    Mutant(
        "rows blended with the weights of the columns",
        SIZE,
        "= _blend(above[k], below[k], share)",
        "= _blend(above[k], below[k], w)",
        "interpolate-bilinear",
    ),
    Mutant(
        "the row below kept as the row above where rows between were jumped over",
        SIZE,
        "if low == kept_high:",
        "if kept_high != _NONE:",
        "test_sizes",
    ),
    Mutant(
        "the shares of the last planes added to the first of them alone",
        SIZE,
        "totals[k] += share * grad[np.uint32(begins[k] + n * width)]",
        "totals[k] += share * grad[np.uint32(begins[0] + n * width)]",
        "interpolate-bilinear",
    ),
    Mutant(
        "weights decay in the wrong direction",
        "optim.py",
        "velocity = momentum * velocity + (grad + decay * w)",
        "velocity = momentum * velocity + (grad - decay * w)",
        "test_optimisers_agree",
    ),
    Mutant(
        "Adam's mean square without its memory",
        "optim.py",
        "square = old_square * square + new_square * grad * grad",
        "square = square + new_square * grad * grad",
        "test_optimisers_agree",
    ),
    Mutant(
        "every piece of a parameter begins where the first does",
        "device.py",
        "begin[:, array] + itemsize * start",
        "begin[:, array] + 0 * start",
        "test_optimisers_agree",
    ),
    Mutant(
        "a step goes one number beyond the end of a piece",
        "optim.py",
        """        w, velocity = _sgd_rule(w, grad, velocity, lr, momentum, decay)
        put_at(at_w, n, w, like)
""",
        """        w, velocity = _sgd_rule(w, grad, velocity, lr, momentum, decay)
        put_at(at_w, n + 1, w, like)
""",
        "test_optimisers_agree",
    ),
    Mutant(
        "the first block of a sum taken for the last",
        "launching.py",
        "    return before[0] == np.int32(blocks - 1)",
        "    return before[0] == np.int32(0)",
        "test_sums_of_so_many_numbers",
    ),
    Mutant(
        "blocks counted from where the launch before had ended",
        "launching.py",
        "            counters[number] = 0",
        "            counters[number] = 1",
        "test_sums_of_so_many_numbers",
    ),
    Mutant(
        "numbers added in pairs before they are all there",
        "launching.py",
        """        cuda.syncthreads()
        if thread < half:
            numbers[thread] += numbers[thread + half]
""",
        """        if thread < half:
            numbers[thread] += numbers[thread + half]
""",
        "test_sums_of_so_many_numbers",
    ),
    Mutant(
        "a part of a sum goes on into the next",
        "functional/arithmetic.py",
        "    end = min(run, np.uint32((part + np.uint32(1)) * part_size))",
        "    end = run",
        "test_sums_of_so_many_numbers",
    ),
]
