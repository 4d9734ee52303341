"""The rectifier, the truncation max(x, 0) that follows every layer of the paper but the last.

Definition: ``out = max(x, 0)``, element by element; nan stays nan.

Derivative: ``dx = dout`` where ``out > 0``, else 0. At the kink itself we take 0, as everyone
does. The output alone tells where the input was positive, so the input need not be kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydilate import buffers, device
from tinydilate.autograd import Op, Tensor, public
from tinydilate.device import Array, CudaArray, MetaArray, cover
from tinydilate.kernel import cuda, jit, kernel
from tinydilate.threads import WORTH_A_THREAD, share, worth_a_thread

# ---- forward ---------------------------------------------------------------------------------


@kernel
def relu_forward(x: Array) -> Array:
    """``max(x, 0)``, any shape."""
    return np.maximum(x, 0)


@relu_forward.cpu
def relu_forward_cpu(x: Array) -> Array:
    if x.size < WORTH_A_THREAD:  # NumPy's own loop is called sooner
        return np.asarray(np.maximum(x, x.dtype.type(0)))
    out = buffers.empty_like(x)
    share(_relu, x.size, x.reshape(-1), out.reshape(-1), least=worth_a_thread())
    return out


@jit
def _relu(start: int, stop: int, x: Array, out: Array) -> None:
    x, out = x[start:stop], out[start:stop]  # counting from 0, Numba need not ask whether n < 0
    for n in range(len(x)):
        value = x[n]
        out[n] = value if not value < 0 else x.dtype.type(0)  # nan < 0 is false: nan passes


@relu_forward.cuda
def relu_forward_cuda(x: CudaArray) -> CudaArray:
    out = device.empty_like(x)
    _relu_cuda[cover(x.size)](x, out)
    return out


@cuda.jit
def _relu_cuda(x: Array, out: Array) -> None:
    n = np.uint32(cuda.grid(1))  # this thread's element
    if n < out.size:  # the last block has threads to spare
        out[n] = x.dtype.type(0) if x[n] < 0 else x[n]


@relu_forward.meta
def relu_forward_meta(x: MetaArray) -> MetaArray:
    return x


# ---- derivative ------------------------------------------------------------------------------


@kernel
def relu_backward(grad: Array, out: Array) -> Array:
    """Gradient where the output is positive, 0 elsewhere."""
    return np.where(out > 0, grad, 0).astype(grad.dtype)


@relu_backward.cpu
def relu_backward_cpu(grad: Array, out: Array) -> Array:
    result = buffers.empty_like(grad)
    arrays = grad.reshape(-1), out.reshape(-1), result.reshape(-1)
    share(_relu_backward, grad.size, *arrays, least=worth_a_thread())
    return result


@jit
def _relu_backward(start: int, stop: int, grad: Array, out: Array, result: Array) -> None:
    grad, out, result = grad[start:stop], out[start:stop], result[start:stop]
    for n in range(len(grad)):
        value = grad[n]  # read in any case: a choice between two values needs no jump
        result[n] = value if out[n] > 0 else 0


@relu_backward.cuda
def relu_backward_cuda(grad: CudaArray, out: CudaArray) -> CudaArray:
    result = device.empty_like(grad)
    _relu_backward_cuda[cover(grad.size)](grad, out, result)
    return result


@cuda.jit
def _relu_backward_cuda(grad: Array, out: Array, result: Array) -> None:
    n = np.uint32(cuda.grid(1))
    if n < result.size:
        value = grad[n]
        result[n] = value if out[n] > 0 else grad.dtype.type(0)


@relu_backward.meta
def relu_backward_meta(grad: MetaArray, out: MetaArray) -> MetaArray:
    return grad


# ---- the operation ---------------------------------------------------------------------------


class ReLU(Op):
    """Truncation at zero."""

    def forward(self, x: Any) -> Any:
        self.out = relu_forward(x)
        return self.out

    def backward(self, grad: Any) -> Any:
        return relu_backward(grad, self.out)


@public
def relu(input: Any) -> Tensor:
    """``max(input, 0)``, element by element.

    Parameters
    ----------
    input : Tensor or array of any shape

    Returns
    -------
    Tensor of the input's shape
    """
    return ReLU()(input)
