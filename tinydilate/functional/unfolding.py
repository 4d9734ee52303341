"""im2col and its adjoint: a sliding window written out as a matrix.

Definition: ``unfold`` lays the window at every output position and writes what it sees as a column:

    columns[n, (c, u, v), (i, j)] = input[n, c, y, z]
        y = i * stride - padding + u * dilation          (the tap rule, rows)
        z = j * stride - padding + v * dilation          (the tap rule, columns)

and 0 where (y, z) lies in the padding. A convolution is then one matrix product:
``weights (F, C*KH*KW) @ columns (C*KH*KW, OH*OW)``. ``fold`` is the adjoint: it adds each number of
a column back to the pixel that it came from, so pixels seen by several windows get the sum.

Derivative: both are linear, and each is the other's adjoint, so each is the other's derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydilate import buffers, device
from tinydilate.autograd import Op, Tensor, as_tensors, public
from tinydilate.device import Array, CudaArray, MetaArray, cover
from tinydilate.errors import ShapeError
from tinydilate.kernel import Int32Array, cuda, jit, kernel, tap
from tinydilate.threads import share
from tinydilate.window import Pair, Window, pair


def padded(x: Array, window: Window) -> Array:
    """(N, C, H, W) -> (N, C, H + padding, W + padding), with zeros around the image."""
    return np.pad(x, ((0, 0), (0, 0), *window.padding))


def seen_by_tap(x: Array, window: Window, output: Pair, u: int, v: int) -> Array:
    """The view of a padded input that tap (u, v) reads: (N, C, PH, PW) -> (N, C, OH, OW)."""
    (rows, columns), (step_y, step_x) = output, window.stride
    y, z = u * window.dilation[0], v * window.dilation[1]  # where the first output's tap lies
    return x[
        :, :, y : y + (rows - 1) * step_y + 1 : step_y, z : z + (columns - 1) * step_x + 1 : step_x
    ]


# ---- im2col ----------------------------------------------------------------------------------


@kernel
def unfold_forward(x: Array, window: Window) -> Array:
    """(N, C, H, W) -> (N, C, KH, KW, OH, OW): what each tap of each output reads."""
    output = window.output_size(x.shape[2:])
    image = padded(x, window)  # (N, C, PH, PW)
    columns = np.empty((*x.shape[:2], *window.kernel, *output), x.dtype)
    for u in range(window.kernel[0]):
        for v in range(window.kernel[1]):
            columns[:, :, u, v] = seen_by_tap(image, window, output, u, v)
    return columns


@unfold_forward.cpu
def unfold_forward_cpu(x: Array, window: Window) -> Array:
    count, channels = x.shape[:2]
    shape = (*x.shape[:2], *window.kernel, *window.output_size(x.shape[2:]))
    columns = buffers.empty(shape, x.dtype)
    planes = x.reshape(count * channels, *x.shape[2:])  # (N*C, H, W)
    result = columns.reshape(count * channels, *columns.shape[2:])  # (N*C, KH, KW, OH, OW)
    # Each thread gets a part of the planes; window.before is the padding before row and column 0.
    share(_unfold, len(planes), planes, result, window.stride, window.before, window.dilation)
    return columns


@jit
def _unfold(
    start: int, stop: int, x: Array, columns: Array, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    height, width = x.shape[1:]
    kernel_h, kernel_w, out_h, out_w = columns.shape[1:]
    for plane in range(start, stop):
        for u in range(kernel_h):
            for v in range(kernel_w):
                for i in range(out_h):
                    y = tap(i, u, stride[0], padding[0], dilation[0])
                    for j in range(out_w):
                        z = tap(j, v, stride[1], padding[1], dilation[1])
                        inside = 0 <= y < height and 0 <= z < width
                        columns[plane, u, v, i, j] = x[plane, y, z] if inside else 0


@unfold_forward.cuda
def unfold_forward_cuda(x: CudaArray, window: Window) -> CudaArray:
    output = window.output_size(x.shape[2:])
    columns = device.empty((*x.shape[:2], *window.kernel, *output), x.dtype)
    _unfold_cuda[cover(columns.size)](x, columns, window_table(window, x.shape[2:], output))
    return columns


@cuda.jit
def _unfold_cuda(x: Array, columns: Array, sizes: Int32Array) -> None:
    """One thread, one number of the columns; neighbouring threads have neighbouring outputs."""
    n = np.uint32(cuda.grid(1))
    if n < columns.size:
        height, width = np.uint32(sizes[0]), np.uint32(sizes[1])
        out_h, out_w = np.uint32(sizes[2]), np.uint32(sizes[3])
        kernel_h, kernel_w = np.uint32(sizes[4]), np.uint32(sizes[5])
        i, j = n // out_w % out_h, n % out_w
        u, v = n // (out_w * out_h * kernel_w) % kernel_h, n // (out_w * out_h) % kernel_w
        plane = n // (out_w * out_h * kernel_w * kernel_h)
        # int: where a tap lies before the image, its place is negative.
        y = tap(int(i), int(u), sizes[6], sizes[8], sizes[10])
        z = tap(int(j), int(v), sizes[7], sizes[9], sizes[11])
        value = x.dtype.type(0)
        if 0 <= y < int(height) and 0 <= z < int(width):
            value = x[(plane * height + np.uint32(y)) * width + np.uint32(z)]
        columns[n] = value


def window_table(window: Window, size: Sequence[int], output: Sequence[int]) -> CudaArray:
    """Image, output, taps, stride, padding before and dilation, (rows, columns) of each: 12 ints.

    On the GPU they come as an array: one more argument of a launch, where they would be twelve.
    """
    return device.constants(
        *size, *output, *window.kernel, *window.stride, *window.before, *window.dilation
    )


@unfold_forward.meta
def unfold_forward_meta(x: MetaArray, window: Window) -> MetaArray:
    return MetaArray((*x.shape[:2], *window.kernel, *window.output_size(x.shape[2:])), x.dtype)


# ---- its adjoint, col2im ---------------------------------------------------------------------


@kernel
def fold_forward(columns: Array, size: Pair, window: Window) -> Array:
    """(N, C, KH, KW, OH, OW) -> (N, C, H, W): each number added where `unfold_forward` read it."""
    output = window.output_size(size)
    (top, bottom), (left, right) = window.padding
    shape = (*columns.shape[:2], size[0] + top + bottom, size[1] + left + right)
    image = np.zeros(shape, columns.dtype)  # (N, C, PH, PW)
    for u in range(window.kernel[0]):
        for v in range(window.kernel[1]):
            view = seen_by_tap(image, window, output, u, v)
            view += columns[:, :, u, v]
    return image[:, :, top : top + size[0], left : left + size[1]].copy()


@fold_forward.cpu
def fold_forward_cpu(columns: Array, size: Pair, window: Window) -> Array:
    count, channels = columns.shape[:2]
    image = buffers.zeros((count, channels, *size), columns.dtype)
    planes = image.reshape(count * channels, *size)  # (N*C, H, W)
    parts = columns.reshape(count * channels, *columns.shape[2:])  # (N*C, KH, KW, OH, OW)
    # Threads share planes, so no two of them add to one pixel.
    share(_fold, len(planes), parts, planes, window.stride, window.before, window.dilation)
    return image


@jit
def _fold(
    start: int, stop: int, columns: Array, x: Array, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    height, width = x.shape[1:]
    kernel_h, kernel_w, out_h, out_w = columns.shape[1:]
    for plane in range(start, stop):
        for u in range(kernel_h):
            for v in range(kernel_w):
                for i in range(out_h):
                    y = tap(i, u, stride[0], padding[0], dilation[0])
                    for j in range(out_w):
                        z = tap(j, v, stride[1], padding[1], dilation[1])
                        if 0 <= y < height and 0 <= z < width:
                            x[plane, y, z] += columns[plane, u, v, i, j]


@fold_forward.cuda
def fold_forward_cuda(columns: CudaArray, size: Pair, window: Window) -> CudaArray:
    image = device.empty((*columns.shape[:2], *size), columns.dtype)
    table = window_table(window, size, columns.shape[4:])
    _fold_cuda[cover(image.size)](columns, image, table)
    return image


# If each number of a column were added by a thread of its own, two threads would meet at one pixel.
# So it is turned around: a thread has a pixel, and looks for the outputs i whose tap u read it. The
# tap rule y = i*stride - padding + u*dilation, solved for i, says where they are:
# i = (y + padding - u*dilation) / stride, if that is a whole number.


@cuda.jit
def _fold_cuda(columns: Array, x: Array, sizes: Int32Array) -> None:
    n = np.uint32(cuda.grid(1))
    if n < x.size:
        height, width = np.uint32(sizes[0]), np.uint32(sizes[1])
        out_h, out_w, kernel_h, kernel_w = sizes[2], sizes[3], sizes[4], sizes[5]
        y, z, plane = int(n // width % height), int(n % width), n // (width * height)
        total = x.dtype.type(0)
        for u in range(kernel_h):
            i = y + sizes[8] - u * sizes[10]
            if i >= 0 and i % sizes[6] == 0 and i // sizes[6] < out_h:
                for v in range(kernel_w):
                    j = z + sizes[9] - v * sizes[11]
                    if j >= 0 and j % sizes[7] == 0 and j // sizes[7] < out_w:
                        # (plane, u, v, i, j) of the columns
                        at = (np.int64(plane) * kernel_h + u) * kernel_w + v
                        at = (at * out_h + i // sizes[6]) * out_w + j // sizes[7]
                        total += columns[np.uint32(at)]
        x[n] = total


@fold_forward.meta
def fold_forward_meta(columns: MetaArray, size: Pair, window: Window) -> MetaArray:
    return MetaArray((*columns.shape[:2], *size), columns.dtype)


# ---- the operations --------------------------------------------------------------------------


class Unfold(Op):
    """Sliding windows as columns."""

    def __init__(self, window: Window) -> None:
        self.window = window

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        columns = unfold_forward(x, self.window)  # (N, C, KH, KW, OH, OW)
        rows = x.shape[1] * self.window.taps
        return columns.reshape(x.shape[0], rows, columns.shape[4] * columns.shape[5])

    def backward(self, grad: Any) -> Any:
        output = self.window.output_size(self.shape[2:])
        columns = grad.reshape(*self.shape[:2], *self.window.kernel, *output)
        return fold_forward(columns, self.shape[2:], self.window)


class Fold(Op):
    """Columns added back into an image."""

    def __init__(self, size: Pair, window: Window) -> None:
        self.size, self.window = size, window

    def forward(self, columns: Any) -> Any:
        channels = columns.shape[1] // self.window.taps
        output = self.window.output_size(self.size)
        columns = columns.reshape(columns.shape[0], channels, *self.window.kernel, *output)
        return fold_forward(columns, self.size, self.window)

    def backward(self, grad: Any) -> Any:
        columns = unfold_forward(grad, self.window)  # (N, C, KH, KW, OH, OW)
        rows = grad.shape[1] * self.window.taps
        return columns.reshape(grad.shape[0], rows, columns.shape[4] * columns.shape[5])


@public
def unfold(
    input: Any,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
) -> Tensor:
    """Write every window as a column (im2col).

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W)
    kernel_size, dilation, padding, stride : int or (rows, columns)

    Returns
    -------
    Tensor, (N, C*KH*KW, OH*OW), or without the first axis for an unbatched input

    Raises
    ------
    ShapeError
        If the input has another number of axes or the window does not fit into it.
    """
    (x,) = as_tensors(input)
    op = Unfold(Window.of(kernel_size, stride, padding, dilation))
    if x.ndim == 3:
        result = op(x.reshape(1, *x.shape))
        return result.reshape(*result.shape[1:])  # type: ignore[no-any-return]
    check_axes("unfold", x.shape, 4, "(N, C, H, W) or (C, H, W)")
    return op(x)


@public
def fold(
    input: Any,
    output_size: int | Sequence[int],
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
) -> Tensor:
    """Add columns back into an image (col2im), the adjoint of `unfold`.

    Parameters
    ----------
    input : (N, C*KH*KW, OH*OW) or (C*KH*KW, OH*OW)
    output_size : int or (H, W)
        Size of the image.
    kernel_size, dilation, padding, stride : int or (rows, columns)

    Returns
    -------
    Tensor, (N, C, H, W), or (C, H, W) for an unbatched input

    Raises
    ------
    ShapeError
        If the columns are not those of such a window on an image of ``output_size``.
    """
    (x,) = as_tensors(input)
    size = pair(output_size, "output_size", 1)
    window = Window.of(kernel_size, stride, padding, dilation)
    if x.ndim == 2:
        result = fold(x.reshape(1, *x.shape), output_size, kernel_size, dilation, padding, stride)
        return result.reshape(*result.shape[1:])  # type: ignore[no-any-return]
    check_axes("fold", x.shape, 3, "(N, C*KH*KW, OH*OW) or (C*KH*KW, OH*OW)")
    out_h, out_w = window.output_size(size)
    if x.shape[1] % window.taps or x.shape[2] != out_h * out_w:
        raise ShapeError(
            f"fold expected (N, C*{window.taps}, {out_h}*{out_w}) for a window of {window.taps} "
            f"taps on an image of {size}; got {x.shape}. Check output_size and the window."
        )
    return Fold(size, window)(x)


def check_axes(name: str, shape: tuple[int, ...], axes: int, expected: str) -> None:
    """Refuse the shape of a tensor that has another number of axes than ``axes``."""
    if len(shape) != axes:
        missing = axes - len(shape)
        add = f", or add what is missing in front with x[{', '.join(['None'] * missing)}]"
        raise ShapeError(
            f"{name} expected the shape {expected}; got {shape}. "
            f"Reshape it{add if missing > 0 else ''}."
        )
