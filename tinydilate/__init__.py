"""tinydilate: dilated convolutions from scratch, to be read and measured.

Reading order: window, kernel, autograd, functional/arithmetic, functional/unfolding,
functional/convolution, then the other pages, nn, models, train.
"""

from typing import TYPE_CHECKING

from tinydilate import functional, init, models, nn, optim
from tinydilate import second_process as _second_process  # noqa: F401 - waits to be needed
from tinydilate.absent import asked_of as _asked_of
from tinydilate.autograd import Op, Tensor, is_grad_enabled, no_grad, tensor
from tinydilate.functional.dropping import get_rng_state, manual_seed, set_rng_state
from tinydilate.gpu_tf32 import get_tf32, set_tf32
from tinydilate.gradient_check import gradcheck
from tinydilate.kernel import use, watching
from tinydilate.recording import Recording, record
from tinydilate.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Op",
    "Recording",
    "Tensor",
    "functional",
    "get_num_threads",
    "get_rng_state",
    "get_tf32",
    "gradcheck",
    "init",
    "is_grad_enabled",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "optim",
    "record",
    "set_num_threads",
    "set_rng_state",
    "set_tf32",
    "tensor",
    "use",
    "watching",
]

if not TYPE_CHECKING:  # a type checker would take every name to be there
    __getattr__ = _asked_of(__name__)
