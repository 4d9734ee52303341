"""Names that PyTorch has and that are not here: what to write in their place.

Whoever asks for one is told, in place of a bare `AttributeError`. The documentation shows the same
table, on the page "Different from PyTorch", with lines to try: there ``x`` and ``y`` are tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from tinydilate.errors import MissingNameError, meant

# Lines to write, or sentences, which end with a full stop.

_OWN = "an op of your own, as in tutorial 2."
_NORMALISATION = "normalisation layers are not here."

OF_A_TENSOR = {
    "cuda": 'x.to("cuda")',
    "cpu": 'x.to("cpu")',
    "float": "x.to(np.float32)",
    "double": "x.to(np.float64)",
    "view": "x.reshape(3, 2)",
    "unsqueeze": "x[None]",
    "squeeze": "x[0]",
    "numel": "x.size",
    "dim": "x.ndim",
    "tolist": "x.detach().numpy().tolist()",
    "clone": "tensors are not changed, so x does; td.tensor(x.data.copy()) has no graph.",
    "contiguous": "all tensors lie in C order.",
    "requires_grad_": "x.requires_grad = True",
    "grad_fn": "x.op",
    "is_leaf": "x.op is None",
    "min": "-(-x).max()",
    "abs": "x.relu() + (-x).relu()",
    "sqrt": "x**0.5",
    "sigmoid": _OWN,
    "tanh": _OWN,
    "add": "F.add(x, y)",
    "mul": "F.mul(x, y)",
    "matmul": "x @ y.T",
    "mm": "x @ y.T",
    "t": "x.T",
    "register_hook": "gradients are looked at in .grad; there are no hooks.",
}

OF_A_MODULE = {
    "cuda": 'net.to("cuda")',
    "cpu": 'net.to("cpu")',
    "float": "net.to(np.float32)",
    "double": "net.to(np.float64)",
    "register_parameter": "self.name = nn.Parameter(array)",
    "register_buffer": "self.name = nn.Buffer(array)",
    "add_module": "self.name = module",
    "register_forward_hook": "with nn.watching_modules(print): net(maps)",
    "apply": "for module in net.modules(): print(module)",
}

OF_THE_PACKAGE = {
    "zeros": "td.tensor(np.zeros((2, 3), np.float32))",
    "ones": "td.tensor(np.ones((2, 3), np.float32))",
    "randn": "td.tensor(np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32))",
    "rand": "td.tensor(np.random.default_rng(0).random((2, 3), np.float32))",
    "arange": "td.tensor(np.arange(6, dtype=np.float32))",
    "zeros_like": "td.tensor(np.zeros(x.shape, np.float32))",
    "ones_like": "td.tensor(np.ones(x.shape, np.float32))",
    "from_numpy": "td.tensor(array)",
    "as_tensor": "td.tensor(array)",
    "stack": "F.cat([x[None], y[None]])",
    "cat": "F.cat([x, y])",
    "matmul": "x @ y.T",
    "relu": "x.relu()",
    "softmax": "x.softmax(dim=1)",
    "float32": "np.float32",
    "float64": "np.float64",
    "long": "np.int64",
    "int64": "np.int64",
    "save": 'save_checkpoint("net.safetensors", net.state_dict())',
    "load": 'load_checkpoint("net.safetensors")',
    "set_grad_enabled": "with td.no_grad(): net(maps)",
    "cuda": "td.device.cuda_problem() is None",
}

OF_FUNCTIONAL = {
    "mse_loss": "((x - y) ** 2).mean()",
    "l1_loss": "((x - y).relu() + (y - x).relu()).mean()",
    "nll_loss": "F.cross_entropy(x, np.array([0, 1]))",
    "sigmoid": _OWN,
    "tanh": _OWN,
    "leaky_relu": "F.relu(x) - 0.01 * F.relu(-x)",
    "one_hot": "np.eye(3)[np.array([0, 1])]",
    "upsample": 'F.interpolate(maps, scale_factor=2, mode="bilinear")',
    "adaptive_avg_pool2d": "maps.mean(dim=(2, 3), keepdim=True)",
    "conv1d": "F.conv2d(maps, np.ones((1, 1, 1, 3), np.float32))",
    "batch_norm": _NORMALISATION,
    "layer_norm": _NORMALISATION,
    "gelu": _OWN,
    "elu": _OWN,
}

OF_NN = {
    "ModuleList": 'nn.Sequential(("conv", nn.Conv2d(1, 4, 3)), ("act", nn.ReLU()))',
    "ModuleDict": 'nn.Sequential(("conv", nn.Conv2d(1, 4, 3)), ("act", nn.ReLU()))',
    "NLLLoss": "F.cross_entropy(x, np.array([0, 1]))",
    "MSELoss": "((x - y) ** 2).mean()",
    "L1Loss": "((x - y).relu() + (y - x).relu()).mean()",
    "Sigmoid": _OWN,
    "Tanh": _OWN,
    "BatchNorm2d": _NORMALISATION,
    "GroupNorm": _NORMALISATION,
    "LayerNorm": _NORMALISATION,
    "Conv1d": "nn.Conv2d(1, 4, (1, 3))",
    "AdaptiveAvgPool2d": "maps.mean(dim=(2, 3), keepdim=True)",
    "functional": "td.functional",
    "LSTM": "recurrent layers are not here.",
    "MultiheadAttention": "attention is not here.",
}

OF_OPTIM = {
    "lr_scheduler": "optimizer.lr_factor = optim.poly(100)(50)",
    "AdamW": "Adam is here; its weight decay is added to the gradient.",
    "RMSprop": "optim.Adam(net.parameters(), 1e-3)",
}

# As the documentation and the errors name whoever is asked.
TABLES: dict[str, Mapping[str, str]] = {
    "a tensor": OF_A_TENSOR,
    "a module": OF_A_MODULE,
    "tinydilate": OF_THE_PACKAGE,
    "tinydilate.functional": OF_FUNCTIONAL,
    "tinydilate.nn": OF_NN,
    "tinydilate.optim": OF_OPTIM,
}


def missing(owner: str, asked: Any, name: str) -> AttributeError:
    """The error for a name that is not found in ``asked``, which the tables call ``owner``."""
    if name.startswith("__"):  # whoever asks for protocols tries what there may be
        return AttributeError(name)
    if hasattr(type(asked), name):  # it is there, but a property that misses something itself
        try:
            object.__getattribute__(asked, name)
        except AttributeError as error:
            return error
    text = f"expected a name that {owner} has; got {name!r}."
    instead = TABLES[owner].get(name)
    if instead is not None:
        here = f": {instead}" if instead.endswith(".") else f". Here write {instead}"
        return MissingNameError(f"{text[:-1]}, which is PyTorch's{here}")
    if owner == "tinydilate" and name.isidentifier() and find_spec(f"tinydilate.{name}"):
        return MissingNameError(f"{text} It is a module: import tinydilate.{name}")
    if owner == "a tensor" and name.endswith("_") and not name.startswith("_"):
        return MissingNameError(
            f"{text} Tensors are computed and not changed in place; a leaf's numbers are in .data."
        )
    return MissingNameError(text + meant(name, (known for known in dir(asked) if known[0] != "_")))


def asked_of(module: str) -> Callable[[str], Any]:
    """``__getattr__`` for a module of the package that has a table."""

    def missing_name(name: str) -> Any:
        raise missing(module, sys.modules[module], name)

    return missing_name
