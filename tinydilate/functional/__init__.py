"""The operations, one page each, with the names and meanings of ``torch.nn.functional``.

Read the pages in this order: arithmetic, rectifier, unfolding, convolution. Each page reads top to
bottom: definition, NumPy reference, Numba kernel, derivative, public function.
"""

from tinydilate.functional.arithmetic import add, div, exp, log, mul, neg, pow, sub
from tinydilate.functional.convolution import conv2d
from tinydilate.functional.padding import pad
from tinydilate.functional.pooling import avg_pool2d, max_pool2d
from tinydilate.functional.rectifier import relu
from tinydilate.functional.shaping import cat, flatten, getitem, permute, reshape, transpose
from tinydilate.functional.unfolding import fold, unfold

__all__ = [
    "add",
    "avg_pool2d",
    "cat",
    "conv2d",
    "div",
    "exp",
    "flatten",
    "fold",
    "getitem",
    "log",
    "max_pool2d",
    "mul",
    "neg",
    "pad",
    "permute",
    "pow",
    "relu",
    "reshape",
    "sub",
    "transpose",
    "unfold",
]
