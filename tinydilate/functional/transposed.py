"""Transposed convolution: a convolution run backwards, from small images to large ones.

Definition: a convolution is linear, so it is a (large, sparse) matrix, ``out = A @ input``. The
transposed convolution multiplies by the transpose of A. Where the convolution's output i reads the
input at ``y = i*stride - padding + u*dilation``, the transposed convolution's input i is written
there, and what meets at one place is added:

    out[n, f, y, z] = sum over c, u, v of weight[c, f, u, v] * input[n, c, i, j]
        for all i, u with y = i * stride - padding + u * dilation       (the tap rule, rows)
        and all j, v with z = j * stride - padding + v * dilation       (columns)

With stride 2 the output is about twice as large as the input: networks upsample in this way, and
with weights of bilinear interpolation it is bilinear interpolation.

Derivative: the gradient of ``A @ input`` by the input multiplies by the transpose of A; so the
convolution's derivative is this operation, and the derivative of this operation is the convolution.
Nothing new has to be computed: forward is `conv2d_grad_input`, backward `conv2d_forward`, and the
weights' gradient is the convolution's, with the roles of image and output's gradient exchanged.
That is also why the weight is (C, F/groups, KH, KW), C first: it is the weight of the convolution
that leads from the F channels of the large image to the C channels of the small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinydilate.autograd import Op, Tensor, as_tensors, public
from tinydilate.errors import ShapeError
from tinydilate.functional.convolution import (
    check_bias,
    check_groups,
    conv2d_forward,
    conv2d_grad_input,
    conv2d_grad_weight,
)
from tinydilate.functional.padding import pad
from tinydilate.functional.unfolding import check_axes
from tinydilate.window import Pair, Window, pair


class TransposedConvolution(Op):
    """The adjoint of a convolution, applied to an image."""

    def __init__(self, size: Pair, window: Window, groups: int) -> None:
        self.size, self.window, self.groups = size, window, groups

    def forward(self, x: Any, w: Any) -> Any:
        self.x, self.w = x, w
        return conv2d_grad_input(x, w, self.size, self.window, self.groups)

    def backward(self, grad: Any) -> Any:
        dx = dw = None
        if self.needs[0]:
            dx = conv2d_forward(grad, self.w, None, self.window, self.groups)
        if self.needs[1]:
            dw = conv2d_grad_weight(grad, self.x, self.window, self.groups)
        return dx, dw


@public
def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Transposed two-dimensional convolution.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W)
    weight : (C, F/groups, KH, KW)
    bias : (F,), optional
    stride : int or (rows, columns)
        Pixels of the output from one pixel of the input to the next.
    padding : int or (rows, columns)
        Pixels taken away around the output, as many as the convolution would have added.
    output_padding : int or (rows, columns)
        Further rows and columns after the last: with a stride, convolutions of several input sizes
        have outputs of one size, and this chooses among them. Less than stride or dilation.
    groups : int
        Number of blocks of channels that do not see each other.
    dilation : int or (rows, columns)
        Pixels of the output from one tap to the next.

    Returns
    -------
    Tensor, (N, F, OH, OW), or (F, OH, OW) for an unbatched input, with
    ``OH = (H - 1) * stride - 2 * padding + dilation * (KH - 1) + 1 + output_padding``

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, nothing is left of the output, or ``output_padding``
        is too large.
    """
    tensors = as_tensors(*((input, weight) if bias is None else (input, weight, bias)))
    x, w = tensors[:2]
    if x.ndim == 3:
        batch = x.reshape(1, *x.shape)
        options = stride, padding, output_padding, groups, dilation
        result = conv_transpose2d(batch, w, tensors[2] if len(tensors) == 3 else None, *options)
        return result.reshape(*result.shape[1:])  # type: ignore[no-any-return]
    check_axes("conv_transpose2d", x.shape, 4, "(N, C, H, W) or (C, H, W)")
    check_axes("conv_transpose2d", w.shape, 4, "(C, F/groups, KH, KW) for its weight")
    if x.shape[1] != w.shape[0] or 0 in x.shape[1:]:
        raise ShapeError(
            f"expected a weight of shape (C, F/groups, KH, KW) for an input of {x.shape[1]} "
            f"channels and at least one pixel; got {w.shape} for an input of shape {x.shape}. "
            "The weight's first axis is the input's channels, unlike in conv2d."
        )
    filters = w.shape[1] * groups if isinstance(groups, int) else 0
    check_groups(groups, channels=filters, filters=x.shape[1], per_group=w.shape[1])
    check_bias([tensor.shape for tensor in tensors[2:]], filters)
    window = Window.of(w.shape[2:], stride, pair(padding, "padding", 0), dilation)
    extra = pair(output_padding, "output_padding", 0)
    for axis in (0, 1):
        if extra[axis] >= max(window.stride[axis], window.dilation[axis]):
            raise ShapeError(
                f"output_padding should be less than stride or dilation, got {extra[axis]} with "
                f"stride {window.stride[axis]} and dilation {window.dilation[axis]}. "
                "More rows or columns would be empty: pad the output instead."
            )
    size = window.input_size(x.shape[2:], extra)
    # With output_padding of a stride or more the convolution has outputs beyond the input: zeros.
    rows, columns = window.output_size(size)
    if (rows, columns) != x.shape[2:]:
        x = pad(x, (0, columns - x.shape[3], 0, rows - x.shape[2]))
    result = TransposedConvolution(size, window, groups)(x, w)
    return result if bias is None else result + tensors[2].reshape(-1, 1, 1)
