"""Dilated two-dimensional convolution, the paper's operator (equation 2).

Definition: output (i, j) of filter f is a weighted sum over the taps of a window whose taps lie
``dilation`` pixels apart:

    out[n, f, i, j] = bias[f] + sum over c, u, v of  weight[f, c, u, v] * input[n, c, y, z]
        y = i * stride - padding + u * dilation          (the tap rule, rows)
        z = j * stride - padding + v * dilation          (the tap rule, columns)

and input is 0 in the padding. With G ``groups`` the channels and the filters are cut into G equal
blocks, and a filter sees the channels of its own block only: c then runs over C/G channels, and the
input's channel is ``f // (F/G) * (C/G) + c``. With one group that is c.

No "dilated filter" with zeros between its taps is ever built: the window reads the input with gaps.
A 3x3 kernel with dilation l sees 2*l + 1 pixels along each axis and still costs nine
multiplications.

The paper's equation 2, p = s + l*t, is a true convolution, which counts the taps backwards. Like
every framework we count them forwards (correlation); learning does not care.

Derivative: the output is linear in the input, in the weights and in the bias. So each gradient is
an adjoint: the input's gradient spreads each output's gradient back over the pixels that it read,
the weights' gradient is the product of the output's gradient with the columns (see unfolding), the
bias's is the sum over all pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from tinydilate import buffers, gpu_gemm, gpu_tf32, gpu_winograd, winograd
from tinydilate.autograd import Op, Tensor, as_tensors, public
from tinydilate.device import Array, CudaArray, MetaArray, as_own, cover
from tinydilate.errors import ShapeError
from tinydilate.functional.arithmetic import sum_to_shape
from tinydilate.functional.products import matmul_forward_readable, transposed
from tinydilate.functional.rectifier import relu_backward
from tinydilate.functional.unfolding import (
    check_axes,
    fold_forward,
    fold_forward_cuda,
    unfold_forward,
    unfold_forward_cuda,
)
from tinydilate.gemm import forward_gather, gathered_outer, gathered_product, input_gradient
from tinydilate.kernel import Kernel, cuda, jit, kernel, tap
from tinydilate.threads import share
from tinydilate.window import Pair, Window, are_plain
from tinydilate.winograd import winograd_outer, winograd_product

_A_FEW = 16_384  # multiply-adds that the plain loops have done before tiles are laid out

# ---- forward ---------------------------------------------------------------------------------


@kernel
def conv2d_forward(
    x: Array, w: Array, b: Array | None, window: Window, groups: int = 1, relu: bool = False
) -> Array:
    """(N, C, H, W), (F, C/groups, KH, KW), (F,) -> (N, F, OH, OW): weights times im2col."""
    # The reference calls the reference, whichever implementation is in use.
    columns = unfold_forward.implementations["numpy"](x, window)  # (N, C, KH, KW, OH, OW)
    columns = columns.reshape(len(x), groups, w[0].size, *columns.shape[4:])
    weights = w.reshape(groups, len(w) // groups, w[0].size)  # (G, F/G, K), K = C/G*KH*KW
    out = np.einsum("gfk,ngkij->ngfij", weights, columns)
    out = out.reshape(len(x), len(w), *columns.shape[3:])  # (N, F, OH, OW)
    if b is not None:
        out = out + b[:, None, None]
    return np.where(out < 0, 0, out) if relu else out  # nan < 0 is false: nan stays nan


@conv2d_forward.cpu
def conv2d_forward_cpu(
    x: Array,
    w: Array,
    b: Array | None,
    window: Window,
    groups: int = 1,
    relu: bool = False,
    side: int | None = None,
) -> Array:
    size = window.output_size(x.shape[2:])
    if side is None and len(x) * size[0] * size[1] * w.size < _A_FEW:  # multiply-adds
        return _loops(x, w, b, window, size, groups, relu, few=True)
    if tiles := _side(side, x, w.shape, window, size, groups):
        return winograd_product(x, w, b, window, size, groups, relu, side=tiles)
    return gathered_product(x, w, b, forward_gather(window, size), groups, relu)


def _side(
    forced: int | None,
    images: Array,
    weights: tuple[int, ...],
    window: Window,
    size: Pair,
    groups: int,
) -> int:
    """Side of Winograd's tiles, 0 for direct multiplication: the faster, unless one is forced."""
    if forced is not None:
        return forced if winograd.fits(window) and len(images) else 0
    filters, channels = weights[0] // groups, weights[1]
    return winograd.fastest_side(len(images), channels, filters, window, size, images.dtype)


def _add_forced(entry: Kernel, twin: Callable[..., Array]) -> None:
    """Let `use` force one way: "cpu:direct", or Winograd's wherever its tiles fit the window."""
    for name, tiles in (("direct", 0), ("winograd2", 2), ("winograd4", 4)):
        entry.variant(f"cpu:{name}")(partial(twin, side=tiles))


_add_forced(conv2d_forward, conv2d_forward_cpu)


# The loops are the definition, for reading. The fast paths are tinydilate/gemm.py and winograd.py.
@conv2d_forward.variant("cpu:loops")
def conv2d_forward_loops(
    x: Array, w: Array, b: Array | None, window: Window, groups: int = 1, relu: bool = False
) -> Array:
    return _loops(x, w, b, window, window.output_size(x.shape[2:]), groups, relu, few=False)


def _loops(
    x: Array,
    w: Array,
    b: Array | None,
    window: Window,
    size: Pair,
    groups: int,
    relu: bool,
    few: bool,
) -> Array:
    out = buffers.empty((len(x), len(w), *size), x.dtype)
    bias = np.zeros(len(w), x.dtype) if b is None else b
    jobs, arrays = len(x) * len(w), (x, w, bias, out)
    # window.before is the padding before the first row and the first column.
    options = window.stride, window.before, window.dilation, groups
    if few:  # less than handing parts to threads takes
        _conv2d(0, jobs, *arrays, *options)
    else:  # each thread gets a part of the jobs
        share(_conv2d, jobs, *arrays, *options)
    return np.where(out < 0, 0, out) if relu else out


@jit
def _conv2d(
    start: int,
    stop: int,
    x: Array,
    w: Array,
    b: Array,
    out: Array,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> None:
    """The definition, loop by loop; job n*F + f is one output plane."""
    height, width = x.shape[2:]
    filters, channels, kernel_h, kernel_w = w.shape
    for job in range(start, stop):
        n, f = divmod(job, filters)
        first = f // (filters // groups) * channels  # the first input channel of f's group
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                total = b[f]
                for c in range(channels):
                    for u in range(kernel_h):
                        y = tap(i, u, stride[0], padding[0], dilation[0])
                        if 0 <= y < height:
                            for v in range(kernel_w):
                                z = tap(j, v, stride[1], padding[1], dilation[1])
                                if 0 <= z < width:
                                    total += w[f, c, u, v] * x[n, first + c, y, z]
                out[n, f, i, j] = total


# On the GPU, too, the readable way comes first: write the columns down and multiply matrices, as
# the reference does. The columns are KH*KW times as large as the image, and go to memory and back.
@conv2d_forward.variant("cuda:readable")
def conv2d_forward_readable(
    x: CudaArray,
    w: CudaArray,
    b: CudaArray | None,
    window: Window,
    groups: int = 1,
    relu: bool = False,
) -> CudaArray:
    columns = unfold_forward_cuda(x, window)  # (N, C, KH, KW, OH, OW)
    size, each = columns.shape[4:], w.shape[0] // groups
    inner = w.shape[1] * window.taps  # K = C/G*KH*KW
    columns = columns.reshape(x.shape[0], groups, inner, size[0] * size[1])
    out = matmul_forward_readable(w.reshape(groups, each, inner), columns)  # (N, G, F/G, OH*OW)
    out = out.reshape(x.shape[0], w.shape[0], *size)
    if b is not None or relu:
        _finish_cuda[cover(out.size)](
            out, out if b is None else b, b is not None, relu, size[0] * size[1], w.shape[0]
        )
    return out


@cuda.jit
def _finish_cuda(
    out: Array, bias: Array, biased: bool, relu: bool, plane: np.uint32, filters: np.uint32
) -> None:
    """Add the bias, and cut at zero."""
    n = np.uint32(cuda.grid(1))
    if n < out.size:
        total = out[n] + bias[n // plane % filters] if biased else out[n]
        out[n] = out.dtype.type(0) if relu and total < 0 else total


@conv2d_forward.cuda
def conv2d_forward_cuda(
    x: CudaArray,
    w: CudaArray,
    b: CudaArray | None,
    window: Window,
    groups: int = 1,
    relu: bool = False,
    tile: str = "",
    side: int | None = None,
) -> CudaArray:
    if x.dtype != np.float32:
        return conv2d_forward_readable(x, w, b, window, groups, relu)
    tf32 = side is None and gpu_tf32.is_wanted()  # who is told the way does not choose
    size, tiles, gather = _forward_way(x.shape, w.shape, window, groups, side, tf32)
    if tiles:
        return gpu_winograd.convolution(x, w, b, window, size, groups, relu, side=tiles)
    tf32 = not tile and gpu_tf32.is_wanted()  # a tile that is given says by itself
    return gpu_gemm.gathered_product(x, w, b, gather, groups, relu, tile=tile, tf32=tf32)


# A network asks for the same layers in every step, so the way that each goes is looked up.
@lru_cache(4096)
def _forward_way(
    images: tuple[int, ...],
    weights: tuple[int, ...],
    window: Window,
    groups: int,
    forced: int | None,
    tf32: bool,
) -> tuple[Pair, int, gpu_gemm.Gather]:
    """Size of the map; side of Winograd's tiles, or 0; what is read to multiply directly."""
    size = window.output_size(images[2:])
    side = _gpu_side(forced, images, weights, window, size, groups, tf32)
    return size, side, gpu_gemm.forward_gather(window, size)


def _gpu_side(
    forced: int | None,
    images: tuple[int, ...],
    weights: tuple[int, ...],
    window: Window,
    size: Pair,
    groups: int,
    tf32: bool,
    outward: bool = False,
) -> int:
    """`_side` for the GPU; ``outward`` for the gradient by the weights."""
    if forced is not None:
        return forced if winograd.fits(window) and images[0] else 0
    channels = images[1] // groups
    filters = weights[0] * weights[1] // images[1]  # the other side of the weights
    return gpu_winograd.fastest_side(
        images[0], channels, filters, window, size, groups, outward=outward, tf32=tf32
    )


def _add_forced_on_gpu(entry: Kernel, twin: Callable[..., CudaArray]) -> None:
    """Let `use` force Winograd's tiles, or direct multiplication and the size of its tile.

    "cuda:winograd2" and "cuda:winograd4"; "cuda:tile128", "cuda:tile64", "cuda:tile32" and
    "cuda:tile32_16"; "cuda:tf32_128" and "cuda:tf32_64".
    """
    for tile in gpu_gemm.TILES:
        entry.variant(f"cuda:{tile}")(partial(twin, tile=tile, side=0))
    for side in (2, 4):
        entry.variant(f"cuda:winograd{side}")(partial(twin, side=side))


_add_forced_on_gpu(conv2d_forward, conv2d_forward_cuda)


@conv2d_forward.meta
def conv2d_forward_meta(
    x: MetaArray,
    w: MetaArray,
    b: MetaArray | None,
    window: Window,
    groups: int = 1,
    relu: bool = False,
) -> MetaArray:
    return MetaArray((x.shape[0], w.shape[0], *window.output_size(x.shape[2:])), x.dtype)


# ---- adjoint by the input --------------------------------------------------------------------


@kernel
def conv2d_grad_input(grad: Array, w: Array, size: Pair, window: Window, groups: int = 1) -> Array:
    """(N, F, OH, OW), (F, C/groups, KH, KW) -> (N, C, H, W): columns of gradients, folded."""
    count, filters, out_h, out_w = grad.shape
    weights = w.reshape(groups, filters // groups, w[0].size)  # (G, F/G, K)
    grads = grad.reshape(count, groups, filters // groups, out_h, out_w)
    columns = np.einsum("gfk,ngfij->ngkij", weights, grads)  # (N, G, K, OH, OW)
    columns = columns.reshape(count, groups * w.shape[1], *window.kernel, out_h, out_w)
    return np.asarray(fold_forward.implementations["numpy"](columns, size, window))


@conv2d_grad_input.cpu
def conv2d_grad_input_cpu(
    grad: Array, w: Array, size: Pair, window: Window, groups: int = 1, side: int | None = None
) -> Array:
    if tiles := _side(side, grad, w.shape, window, size, groups):
        return winograd_product(grad, w, None, window, size, groups, side=tiles, adjoint=True)
    return input_gradient(grad, w, window, size, groups)


_add_forced(conv2d_grad_input, conv2d_grad_input_cpu)


@conv2d_grad_input.variant("cpu:loops")
def conv2d_grad_input_loops(
    grad: Array, w: Array, size: Pair, window: Window, groups: int = 1
) -> Array:
    result = buffers.zeros((len(grad), w.shape[1] * groups, *size), grad.dtype)
    jobs = result.shape[0] * result.shape[1]
    share(_spread, jobs, grad, w, result, window.stride, window.before, window.dilation)
    return result


@jit
def _spread(
    start: int,
    stop: int,
    grad: Array,
    w: Array,
    result: Array,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> None:
    """Each output's gradient, spread over the pixels it read; job n*C + c is one input plane."""
    channels, height, width = result.shape[1:]
    filters, per_group, kernel_h, kernel_w = w.shape
    each = filters // (channels // per_group)  # filters in a group
    for job in range(start, stop):
        n, channel = divmod(job, channels)
        group, c = divmod(channel, per_group)
        for f in range(group * each, (group + 1) * each):
            for i in range(grad.shape[2]):
                for u in range(kernel_h):
                    y = tap(i, u, stride[0], padding[0], dilation[0])
                    if 0 <= y < height:
                        for j in range(grad.shape[3]):
                            for v in range(kernel_w):
                                z = tap(j, v, stride[1], padding[1], dilation[1])
                                if 0 <= z < width:
                                    result[n, channel, y, z] += w[f, c, u, v] * grad[n, f, i, j]


@conv2d_grad_input.variant("cuda:readable")
def conv2d_grad_input_readable(
    grad: CudaArray, w: CudaArray, size: Pair, window: Window, groups: int = 1
) -> CudaArray:
    count, filters, out_h, out_w = grad.shape
    weights = w.reshape(groups, filters // groups, w.shape[1] * window.taps)  # (G, F/G, K)
    grads = grad.reshape(count, groups, filters // groups, out_h * out_w)
    columns = matmul_forward_readable(transposed(weights), grads)  # (N, G, K, OH*OW)
    columns = columns.reshape(count, groups * w.shape[1], *window.kernel, out_h, out_w)
    return fold_forward_cuda(columns, size, window)


@conv2d_grad_input.cuda
def conv2d_grad_input_cuda(
    grad: CudaArray,
    w: CudaArray,
    size: Pair,
    window: Window,
    groups: int = 1,
    tile: str = "",
    side: int | None = None,
) -> CudaArray:
    if grad.dtype != np.float32:
        return conv2d_grad_input_readable(grad, w, size, window, groups)
    tf32 = side is None and gpu_tf32.is_wanted()  # who is told the way does not choose
    tiles, folds, gather = _adjoint_way(grad.shape, w.shape, size, window, groups, side, tf32)
    if tiles:
        return gpu_winograd.convolution(
            grad, w, None, window, size, groups, side=tiles, adjoint=True
        )
    if folds:
        return conv2d_grad_input_folded(grad, w, size, window, groups)
    tf32 = not tile and gpu_tf32.is_wanted()  # a tile that is given says by itself
    return gpu_gemm.gathered_product(
        grad, w, None, gather, groups, adjoint=True, tile=tile, tf32=tf32
    )


_add_forced_on_gpu(conv2d_grad_input, conv2d_grad_input_cuda)


@lru_cache(4096)
def _adjoint_way(
    grad: tuple[int, ...],
    weights: tuple[int, ...],
    size: Pair,
    window: Window,
    groups: int,
    forced: int | None,
    tf32: bool,
) -> tuple[int, bool, gpu_gemm.Gather]:
    """Side of Winograd's tiles, or 0; whether to fold; what is read to multiply directly."""
    side = _gpu_side(forced, grad, weights, window, size, groups, tf32)
    folds = forced is None and _folds(grad, weights, size, window, groups, tf32)
    return side, folds, gpu_gemm.adjoint_gather(window, size)


# Who gathers from the pixel's side asks all taps of every pixel, also those that no output has: of
# fc6's 40x40 pixels and 49 taps, six in seven. Who multiplies first and folds then does what there
# is to do, and moves the columns to memory and back.
@conv2d_grad_input.variant("cuda:folded")
def conv2d_grad_input_folded(
    grad: CudaArray, w: CudaArray, size: Pair, window: Window, groups: int = 1
) -> CudaArray:
    if grad.dtype != np.float32:
        return conv2d_grad_input_readable(grad, w, size, window, groups)
    out: Pair = (grad.shape[2], grad.shape[3])
    one_pixel = gpu_gemm.forward_gather(Window.of(1), out)
    weights = w.reshape(w.shape[0], w.shape[1] * window.taps, 1, 1)  # (F, K, 1, 1)
    tf32 = gpu_tf32.is_wanted()
    columns = gpu_gemm.gathered_product(
        grad, weights, None, one_pixel, groups, adjoint=True, tf32=tf32
    )
    columns = columns.reshape(grad.shape[0], groups * w.shape[1], *window.kernel, *out)
    return fold_forward_cuda(columns, size, window)


COLUMN_BYTES = 2 << 30  # that all columns may take; who gathers needs no memory for them


def _folds(
    grad: tuple[int, ...],
    w: tuple[int, ...],
    size: Pair,
    window: Window,
    groups: int,
    tf32: bool,
) -> bool:
    """Whether folding is faster, and its columns not too many."""
    filters, inner = w[0] // groups, w[1] * window.taps
    outputs = grad[0] * grad[2] * grad[3]
    columns = 4 * groups * inner * outputs  # bytes
    if columns > COLUMN_BYTES:
        return False
    pixels = grad[0] * size[0] * size[1]
    gathered = gpu_gemm.product_clocks(w[1], pixels, groups, filters, window.taps, tf32)
    folded = gpu_gemm.product_clocks(inner, outputs, groups, filters, 1, tf32)
    folded += 2 * columns / gpu_gemm.BYTES_A_CLOCK + gpu_gemm.LAUNCH  # written, and read
    return folded < gpu_gemm.SURE * gathered


@conv2d_grad_input.meta
def conv2d_grad_input_meta(
    grad: MetaArray, w: MetaArray, size: Pair, window: Window, groups: int = 1
) -> MetaArray:
    return MetaArray((grad.shape[0], w.shape[1] * groups, *size), grad.dtype)


# ---- adjoint by the weights ------------------------------------------------------------------


@kernel
def conv2d_grad_weight(x: Array, grad: Array, window: Window, groups: int = 1) -> Array:
    """(N, C, H, W), (N, F, OH, OW) -> (F, C/groups, KH, KW): gradients times columns."""
    count, filters, out_h, out_w = grad.shape
    columns = unfold_forward.implementations["numpy"](x, window)  # (N, C, KH, KW, OH, OW)
    columns = columns.reshape(count, groups, x.shape[1] // groups * window.taps, out_h, out_w)
    grads = grad.reshape(count, groups, filters // groups, out_h, out_w)
    result: Array = np.einsum("ngfij,ngkij->gfk", grads, columns)  # (G, F/G, K)
    return result.reshape(filters, x.shape[1] // groups, *window.kernel)


@conv2d_grad_weight.cpu
def conv2d_grad_weight_cpu(
    x: Array, grad: Array, window: Window, groups: int = 1, side: int | None = None
) -> Array:
    size = (grad.shape[2], grad.shape[3])
    shape = (grad.shape[1], x.shape[1] // groups, *window.kernel)
    if tiles := _side(side, x, shape, window, size, groups):
        return winograd_outer(x, grad, window, groups, side=tiles)
    return gathered_outer(x, grad, forward_gather(window, size), groups)


_add_forced(conv2d_grad_weight, conv2d_grad_weight_cpu)


@conv2d_grad_weight.variant("cpu:loops")
def conv2d_grad_weight_loops(x: Array, grad: Array, window: Window, groups: int = 1) -> Array:
    result = buffers.zeros((grad.shape[1], x.shape[1] // groups, *window.kernel), x.dtype)
    jobs = result.shape[0] * result.shape[1]
    share(_correlate, jobs, x, grad, result, window.stride, window.before, window.dilation, groups)
    return result


@jit
def _correlate(
    start: int,
    stop: int,
    x: Array,
    grad: Array,
    result: Array,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> None:
    """Each tap's gradient: output gradients times what the tap read; job f*C/G + c."""
    height, width = x.shape[2:]
    filters, channels, kernel_h, kernel_w = result.shape
    for job in range(start, stop):
        f, c = divmod(job, channels)
        channel = f // (filters // groups) * channels + c
        for u in range(kernel_h):
            for v in range(kernel_w):
                total = x.dtype.type(0)
                for n in range(grad.shape[0]):
                    for i in range(grad.shape[2]):
                        y = tap(i, u, stride[0], padding[0], dilation[0])
                        if 0 <= y < height:
                            for j in range(grad.shape[3]):
                                z = tap(j, v, stride[1], padding[1], dilation[1])
                                if 0 <= z < width:
                                    total += grad[n, f, i, j] * x[n, channel, y, z]
                result[f, c, u, v] = total


@conv2d_grad_weight.variant("cuda:readable")
def conv2d_grad_weight_readable(
    x: CudaArray, grad: CudaArray, window: Window, groups: int = 1
) -> CudaArray:
    count, filters, out_h, out_w = grad.shape
    columns = unfold_forward_cuda(x, window)  # (N, C, KH, KW, OH, OW)
    inner = x.shape[1] // groups * window.taps  # K
    columns = columns.reshape(count, groups, inner, out_h * out_w)
    grads = grad.reshape(count, groups, filters // groups, out_h * out_w)
    each = matmul_forward_readable(grads, transposed(columns))  # (N, G, F/G, K)
    result: CudaArray = sum_to_shape(each, each.shape[1:])
    return result.reshape(filters, x.shape[1] // groups, *window.kernel)


@conv2d_grad_weight.cuda
def conv2d_grad_weight_cuda(
    x: CudaArray,
    grad: CudaArray,
    window: Window,
    groups: int = 1,
    tile: str = "",
    side: int | None = None,
) -> CudaArray:
    if x.dtype != np.float32:
        return conv2d_grad_weight_readable(x, grad, window, groups)
    tf32 = side is None and gpu_tf32.is_wanted()  # who is told the way does not choose
    tiles, gather = _outer_way(x.shape, grad.shape, window, groups, side, tf32)
    if tiles:
        return gpu_winograd.weight_gradient(x, grad, window, groups, side=tiles)
    tf32 = not tile and gpu_tf32.is_wanted()  # a tile that is given says by itself
    return gpu_gemm.gathered_outer(x, grad, gather, groups, tile=tile, tf32=tf32)


_add_forced_on_gpu(conv2d_grad_weight, conv2d_grad_weight_cuda)


@lru_cache(4096)
def _outer_way(
    images: tuple[int, ...],
    grad: tuple[int, ...],
    window: Window,
    groups: int,
    forced: int | None,
    tf32: bool,
) -> tuple[int, gpu_gemm.Gather]:
    """Side of Winograd's tiles, or 0; what is read to multiply directly."""
    size = (grad[2], grad[3])
    weights = (grad[1], images[1] // groups, *window.kernel)
    side = _gpu_side(forced, images, weights, window, size, groups, tf32, outward=True)
    return side, gpu_gemm.forward_gather(window, size)


@conv2d_grad_weight.meta
def conv2d_grad_weight_meta(
    x: MetaArray, grad: MetaArray, window: Window, groups: int = 1
) -> MetaArray:
    shape = (grad.shape[1], x.shape[1] // groups, *window.kernel)
    return MetaArray(shape, x.dtype)


# ---- the operation ---------------------------------------------------------------------------


class Convolution(Op):
    """Dilated convolution of an input with weights and an optional bias."""

    def __init__(self, window: Window, groups: int = 1, relu: bool = False) -> None:
        self.window, self.groups, self.relu = window, groups, relu

    def forward(self, x: Any, w: Any, b: Any = None) -> Any:
        self.x, self.w = x, w
        out = conv2d_forward(x, w, b, self.window, self.groups, self.relu)
        if self.relu:
            self.out = out  # positive where the sum was
        return out

    def backward(self, grad: Any) -> Any:
        if self.relu:
            grad = relu_backward(grad, self.out)
        dx = dw = db = None
        if self.needs[0]:
            dx = conv2d_grad_input(grad, self.w, self.x.shape[2:], self.window, self.groups)
        if self.needs[1]:
            dw = conv2d_grad_weight(self.x, grad, self.window, self.groups)
        if len(self.needs) == 3 and self.needs[2]:
            filters = grad.shape[1]
            db = as_own(sum_to_shape(grad, (1, filters, 1, 1)), (filters,))
        return (dx, dw, db)[: len(self.needs)]


@public
def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    relu: bool = False,
) -> Tensor:
    """Dilated two-dimensional convolution (Yu & Koltun 2016, equation 2; as correlation).

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W)
    weight : (F, C/groups, KH, KW)
    bias : (F,), optional
    stride : int or (rows, columns)
        Pixels from one output's window to the next one's.
    padding : int, (rows, columns), "same" or "valid"
        Zeros around the input. "same" keeps the size (stride 1 only).
    dilation : int or (rows, columns)
        Pixels from one tap to the next, the paper's factor l; 1 is the ordinary convolution.
    groups : int
        Number of blocks of channels that do not see each other.
    relu : bool
        Whether to truncate the result at zero in the same pass over memory: `relu` of the result.

    Returns
    -------
    Tensor, (N, F, OH, OW), or (F, OH, OW) for an unbatched input

    Raises
    ------
    ShapeError
        If the shapes do not fit each other or the window does not fit into the padded input.

    Notes
    -----
    3x3 kernels of float32 with stride 1 and enough channels are computed by Winograd's tiles: an
    output then depends on pixels of its tile outside its window, though only by rounding. To
    multiply directly use ``tinydilate.use("cpu:direct")`` or set ``TINYDILATE_WINOGRAD=off``.
    On a GPU, `tinydilate.set_tf32` allows tensor cores, which round their inputs; it is off.
    """
    tensors = as_tensors(*((input, weight) if bias is None else (input, weight, bias)))
    shapes = tuple([tensor.data.shape for tensor in tensors])
    if len(shapes[0]) == 3:
        x, *others = tensors
        batch = x.reshape(1, *x.shape)
        result = conv2d(
            batch,
            *others,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            relu=relu,
        )
        return result.reshape(*result.shape[1:])  # type: ignore[no-any-return]
    # A network asks the same in every step. Of anything but whole numbers the answer cannot be
    # remembered: as a key, True is 1.
    options = stride, padding, dilation, groups
    window = (_known_window if are_plain(*options) else _window)(shapes, *options)
    return Convolution(window, groups, relu)._run(tensors)


def _window(
    shapes: tuple[tuple[int, ...], ...], stride: Any, padding: Any, dilation: Any, groups: Any
) -> Window:
    """The window of a convolution of tensors of these shapes, if they fit each other."""
    x, w, *bias = shapes
    check_axes("conv2d", x, 4, "(N, C, H, W) or (C, H, W)")
    check_axes("conv2d", w, 4, "(F, C/groups, KH, KW) for its weight")
    check_groups(groups, channels=x[1], filters=w[0], per_group=w[1])
    check_bias(bias, w[0])
    return Window.of(w[2:], stride, padding, dilation)


_known_window = lru_cache(4096)(_window)


def check_groups(groups: int, channels: int, filters: int, per_group: int) -> None:
    """Refuse channels and filters that do not fall into ``groups`` equal parts."""
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ShapeError(f"groups should be an integer of at least 1, got {groups!r}.")
    if min(channels, filters) < 1:
        raise ShapeError(
            f"expected at least one channel and one filter; got {channels} channels and {filters} "
            "filters. Give the input and the weight at least one map each."
        )
    if channels % groups or filters % groups:
        raise ShapeError(
            f"expected channels and filters that divide into {groups} groups; got {channels} "
            f"channels and {filters} filters. Choose groups that divides both."
        )
    if channels // groups != per_group:
        raise ShapeError(
            f"expected a weight for {channels // groups} channels ({channels} input channels in "
            f"{groups} group{'s' if groups > 1 else ''}); got one for {per_group}. "
            "The weight's second axis is channels / groups."
        )


def check_bias(bias: Sequence[tuple[int, ...]], filters: int) -> None:
    """Refuse the shape of a bias, if there is one, that does not hold one number a filter."""
    if bias and bias[0] != (filters,):
        raise ShapeError(
            f"expected a bias of shape ({filters},), one number a filter; got {bias[0]}."
        )
