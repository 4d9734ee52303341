"""tinydilate: dilated convolutions from scratch, to be read and measured.

Reading order: window, kernel, autograd, functional/arithmetic, functional/unfolding,
functional/convolution, then the other pages, nn, models, train.
"""

from tinydilate import functional
from tinydilate.autograd import Op, Tensor, is_grad_enabled, no_grad, tensor
from tinydilate.gradient_check import gradcheck
from tinydilate.kernel import use, watching
from tinydilate.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Op",
    "Tensor",
    "functional",
    "get_num_threads",
    "gradcheck",
    "is_grad_enabled",
    "no_grad",
    "set_num_threads",
    "tensor",
    "use",
    "watching",
]
