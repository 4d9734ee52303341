"""The operations, one page each, with the names and meanings of ``torch.nn.functional``.

Read the pages in this order: arithmetic, rectifier, shaping, reduction, products, padding,
unfolding, convolution, transposed, pooling, softmax_loss, resizing, dropping. Each page reads top
to bottom: definition, NumPy reference, Numba kernel, derivative, public function.
"""

from typing import TYPE_CHECKING

from tinydilate.absent import asked_of as _asked_of
from tinydilate.functional.arithmetic import add, div, exp, log, mul, neg, pow, sub
from tinydilate.functional.convolution import conv2d
from tinydilate.functional.dropping import dropout
from tinydilate.functional.padding import pad
from tinydilate.functional.pooling import avg_pool2d, max_pool2d
from tinydilate.functional.products import linear, matmul
from tinydilate.functional.rectifier import relu
from tinydilate.functional.reduction import argmax, max, mean, sum
from tinydilate.functional.resizing import interpolate
from tinydilate.functional.shaping import cat, flatten, getitem, permute, reshape, transpose
from tinydilate.functional.softmax_loss import cross_entropy, log_softmax, softmax
from tinydilate.functional.transposed import conv_transpose2d
from tinydilate.functional.unfolding import fold, unfold

__all__ = [
    "add",
    "argmax",
    "avg_pool2d",
    "cat",
    "conv2d",
    "conv_transpose2d",
    "cross_entropy",
    "div",
    "dropout",
    "exp",
    "flatten",
    "fold",
    "getitem",
    "interpolate",
    "linear",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "mean",
    "mul",
    "neg",
    "pad",
    "permute",
    "pow",
    "relu",
    "reshape",
    "softmax",
    "sub",
    "sum",
    "transpose",
    "unfold",
]

if not TYPE_CHECKING:  # a type checker would take every name to be there
    __getattr__ = _asked_of(__name__)
