"""Optimisers: from gradients to better parameters.

A step reads each parameter's ``.grad`` and changes the parameter in place. Names and rules are
those of ``torch.optim``.

    SGD:   v <- momentum * v + (g + decay * w)          w <- w - lr * v
    Adam:  m <- m + (1 - beta1) * (g - m)               a running mean of the gradient,
           s <- beta2 * s + (1 - beta2) * g * g         and of its square;
           w <- w - lr * m' / (sqrt(s') + eps)          m' = m / (1 - beta1**t), s' likewise:
                                                        both begin at 0 and are too small at first

With momentum mu, a steady gradient g ends in a velocity of g / (1 - mu): what counts is
lr / (1 - mu). That one number makes the paper's scattered settings agree.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from tinydilate import buffers, device
from tinydilate.autograd import Tensor
from tinydilate.device import Array, CudaArray, MetaArray, cover, move, write
from tinydilate.errors import ConfigError, DataError
from tinydilate.kernel import cuda, jit, kernel
from tinydilate.threads import share, worth_a_thread

# ---- one step of each rule, in place ---------------------------------------------------------


@kernel
def sgd_step(
    w: Array, grad: Array, velocity: Array, lr: float, momentum: float, decay: float
) -> Array:
    """Change ``w`` and ``velocity`` in place; returns ``w``."""
    velocity *= momentum
    velocity += grad + decay * w
    w -= lr * velocity
    return w


@sgd_step.cpu
def sgd_step_cpu(
    w: Array, grad: Array, velocity: Array, lr: float, momentum: float, decay: float
) -> Array:
    """See `sgd_step`."""
    number = w.dtype.type  # so that float32 is not computed in float64
    arrays = w.reshape(-1), grad.reshape(-1), velocity.reshape(-1)
    share(
        _sgd, w.size, *arrays, number(lr), number(momentum), number(decay), least=worth_a_thread()
    )
    return w


@jit
def _sgd(
    start: int,
    stop: int,
    w: Array,
    grad: Array,
    velocity: Array,
    lr: float,
    momentum: float,
    decay: float,
) -> None:
    w, grad, velocity = w[start:stop], grad[start:stop], velocity[start:stop]
    for n in range(len(w)):
        w[n], velocity[n] = _sgd_rule(w[n], grad[n], velocity[n], lr, momentum, decay)


@jit
def _sgd_rule(
    w: float, grad: float, velocity: float, lr: float, momentum: float, decay: float
) -> tuple[float, float]:
    """A parameter's next number and velocity."""
    velocity = momentum * velocity + (grad + decay * w)
    return w - lr * velocity, velocity


@sgd_step.cuda
def sgd_step_cuda(
    w: CudaArray, grad: CudaArray, velocity: CudaArray, lr: float, momentum: float, decay: float
) -> CudaArray:
    """See `sgd_step`."""
    _sgd_cuda[cover(w.size)](w, grad, velocity, lr, momentum, decay)
    return w


@cuda.jit
def _sgd_cuda(
    w: Array, grad: Array, velocity: Array, lr: float, momentum: float, decay: float
) -> None:
    n = np.uint32(cuda.grid(1))
    if n < w.size:
        w[n], velocity[n] = _sgd_rule(w[n], grad[n], velocity[n], lr, momentum, decay)


sgd_step.meta(lambda w, *rest: w)


@kernel
def adam_step(
    w: Array,
    grad: Array,
    mean: Array,
    square: Array,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> Array:
    """Change ``w`` and the running ``mean`` and ``square`` in place; ``step`` counts from 1."""
    grad = grad + decay * w
    mean += (1 - betas[0]) * (grad - mean)
    square *= betas[1]
    square += (1 - betas[1]) * grad * grad
    lr, root = _unbiased(step, lr, betas)
    w -= lr * mean / (np.sqrt(square) / root + eps)
    return w


def _unbiased(step: int, lr: float, betas: tuple[float, float]) -> tuple[float, float]:
    """What makes up for the running means' start at 0: ``lr / (1 - b1**t), sqrt(1 - b2**t)``."""
    return lr / (1 - betas[0] ** step), math.sqrt(1 - betas[1] ** step)


@adam_step.cpu
def adam_step_cpu(
    w: Array,
    grad: Array,
    mean: Array,
    square: Array,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> Array:
    """See `adam_step`."""
    arrays = w.reshape(-1), grad.reshape(-1), mean.reshape(-1), square.reshape(-1)
    numbers = _adam_numbers(step, lr, tuple(betas), eps, decay)
    share(_adam, w.size, *arrays, *map(w.dtype.type, numbers), least=worth_a_thread())
    return w


@lru_cache(64)
def _adam_numbers(
    step: int, lr: float, betas: tuple[float, float], eps: float, decay: float
) -> tuple[float, ...]:
    """What `_adam_rule` is given beside the arrays' numbers; the same for all parameters."""
    lr, root = _unbiased(step, lr, betas)
    return lr, 1 / root, 1 - betas[0], betas[1], 1 - betas[1], eps, decay


@jit
def _adam(
    start: int,
    stop: int,
    w: Array,
    grad: Array,
    mean: Array,
    square: Array,
    lr: float,
    per_root: float,
    new_mean: float,
    old_square: float,
    new_square: float,
    eps: float,
    decay: float,
) -> None:
    w, grad, mean, square = w[start:stop], grad[start:stop], mean[start:stop], square[start:stop]
    numbers = lr, per_root, new_mean, old_square, new_square, eps, decay
    for n in range(len(w)):
        w[n], mean[n], square[n] = _adam_rule(w[n], grad[n], mean[n], square[n], numbers)


@jit
def _adam_rule(
    w: float, grad: float, mean: float, square: float, numbers: tuple[float, ...]
) -> tuple[float, float, float]:
    """A parameter's next number, mean and mean square."""
    lr, per_root, new_mean, old_square, new_square, eps, decay = numbers
    grad += decay * w
    mean += new_mean * (grad - mean)
    square = old_square * square + new_square * grad * grad
    return w - lr * mean / (math.sqrt(square) * per_root + eps), mean, square


@adam_step.cuda
def adam_step_cuda(
    w: CudaArray,
    grad: CudaArray,
    mean: CudaArray,
    square: CudaArray,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> CudaArray:
    """See `adam_step`."""
    numbers = _adam_numbers(step, lr, tuple(betas), eps, decay)
    _adam_cuda[cover(w.size)](w, grad, mean, square, *numbers)
    return w


@cuda.jit
def _adam_cuda(
    w: Array,
    grad: Array,
    mean: Array,
    square: Array,
    lr: float,
    per_root: float,
    new_mean: float,
    old_square: float,
    new_square: float,
    eps: float,
    decay: float,
) -> None:
    n = np.uint32(cuda.grid(1))
    if n < w.size:
        numbers = lr, per_root, new_mean, old_square, new_square, eps, decay
        w[n], mean[n], square[n] = _adam_rule(w[n], grad[n], mean[n], square[n], numbers)


adam_step.meta(lambda w, *rest: w)

# ---- the optimisers --------------------------------------------------------------------------


class Optimizer(ABC):
    """What all optimisers share: groups of parameters, and a state for each parameter.

    Attributes
    ----------
    param_groups : list of dict
        Each with its ``"params"`` and its own options (``"lr"``, ``"weight_decay"``, ...).
    lr_factor : float
        Multiplies every group's learning rate; a schedule sets it before each step.
    remembered : int
        Numbers that the rule remembers for each number that it changes.
    """

    remembered: int

    def __init__(self, params: Iterable[Any], options: dict[str, Any]) -> None:
        given = list(params)
        groups = given if given and isinstance(given[0], Mapping) else [{"params": given}]
        self.param_groups = [
            {**options, **group, "params": list(group["params"])} for group in groups
        ]
        self.lr_factor = 1.0
        for group in self.param_groups:
            unknown = sorted(set(group) - set(options) - {"params"})
            if unknown:
                raise ConfigError(
                    f"expected the options {', '.join(options)} in a parameter group; "
                    f"got {', '.join(unknown)}."
                )
            _check_options(group)
        self._parameters = [w for group in self.param_groups for w in group["params"]]
        _check_parameters(self._parameters)

    @cached_property
    def state(self) -> list[dict[str, Array]]:
        """What is remembered of each parameter.

        It is made when first asked for: at the end of the first step, in the memory that the
        results of its forward and backward pass have left. It is made where the parameters are, so
        move a network to another device before its first step.
        """
        return [self.initial_state(parameter) for parameter in self._parameters]

    @abstractmethod
    def initial_state(self, parameter: Tensor) -> dict[str, Array]:
        """The arrays that the rule remembers for one parameter, as they begin."""

    @abstractmethod
    def update(self, w: Array, grad: Array, state: dict[str, Array], lr: float, group: Any) -> Any:
        """Change one parameter's numbers and state in place; returns the numbers."""

    def step(self) -> None:
        """Change every parameter that has a gradient; the others are skipped."""
        device.refuse_while_recording(
            "an optimiser's step, which counts its steps", "Take it after each repetition."
        )
        states = iter(self.state)
        for group in self.param_groups:
            lr = group["lr"] * self.lr_factor
            for parameter, state in zip(group["params"], states, strict=False):
                if parameter.grad is not None:
                    w, grad = parameter.data, parameter.grad.data
                    parameter.data = self.update(w, grad, state, lr, group)

    def zero_grad(self) -> None:
        """Forget the gradients; the next ``backward`` starts new sums."""
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Array]:
        """Everything remembered, as flat names: ``"3.velocity"`` belongs to parameter 3.

        The arrays are copies on the processor, wherever the parameters are.
        """
        return {
            f"{number}.{name}": move(array, "cpu") if _on_cuda(array) else array.copy()
            for number, state in enumerate(self.state)
            for name, array in state.items()
        }

    def load_state_dict(self, arrays: Mapping[str, Array]) -> None:
        """Take over what `state_dict` gave.

        Raises
        ------
        DataError
            If names or shapes are those of another optimiser or other parameters.
        """
        own = {f"{i}.{name}": a for i, state in enumerate(self.state) for name, a in state.items()}
        if set(own) != set(arrays):
            odd = sorted(set(own) ^ set(arrays))[:3]
            raise DataError(
                f"expected the state of {type(self).__name__} for {len(self.state)} parameters; "
                f"got another set of names (first differences: {', '.join(odd)}). "
                "Use the optimiser that wrote it."
            )
        for name, array in own.items():
            if array.shape != arrays[name].shape or array.dtype != arrays[name].dtype:
                raise DataError(
                    f"expected {name} as {array.dtype} {array.shape}; got {arrays[name].dtype} "
                    f"{arrays[name].shape}. Use the network that the state belongs to."
                )
        for name, array in own.items():  # only now, so that a refusal has changed nothing
            write(arrays[name], array)


def _on_cuda(array: Any) -> bool:
    return isinstance(array, CudaArray)


def _zeros_for(parameter: Tensor) -> Any:
    """Zeros of a parameter's shape, beside it."""
    zeros = device.zeros if _on_cuda(parameter.data) else buffers.zeros
    return zeros(parameter.shape, parameter.dtype)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum and weight decay.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        Parameters, or groups of them with options of their own.
    lr : float
        Learning rate.
    momentum : float in [0, 1)
    weight_decay : float
        Adds ``weight_decay * w`` to the gradient, the slope of a penalty on w².

    Raises
    ------
    ConfigError
        If an option is out of range or there is nothing to train.
    """

    remembered = 1

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def initial_state(self, parameter: Tensor) -> dict[str, Array]:
        return {"velocity": _zeros_for(parameter)}

    def update(self, w: Array, grad: Array, state: dict[str, Array], lr: float, group: Any) -> Any:
        return sgd_step(w, grad, state["velocity"], lr, group["momentum"], group["weight_decay"])


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015): a step of about ``lr`` whatever the gradient's scale.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        Parameters, or groups of them with options of their own.
    lr : float
        Learning rate.
    betas : (float, float), each in [0, 1)
        Memory of the running mean of the gradient and of its square.
    eps : float
        Keeps the quotient finite where the gradient has always been zero.
    weight_decay : float
        Adds ``weight_decay * w`` to the gradient.

    Raises
    ------
    ConfigError
        If an option is out of range or there is nothing to train.
    """

    remembered = 2

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options)

    def initial_state(self, parameter: Tensor) -> dict[str, Array]:
        mean, square = _zeros_for(parameter), _zeros_for(parameter)
        return {"step": np.zeros(1, np.int64), "mean": mean, "square": square}

    def update(self, w: Array, grad: Array, state: dict[str, Array], lr: float, group: Any) -> Any:
        count = state["step"]
        step = count[0] = count.item() + 1
        arrays = w, grad, state["mean"], state["square"]
        options = group["betas"], group["eps"], group["weight_decay"]
        return adam_step(*arrays, step, lr, *options)


def weights_and_biases(
    named_parameters: Iterable[tuple[str, Tensor]],
    lr: float,
    weight_decay: float = 0.0,
    bias_rate: float = 2.0,
    bias_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Two groups as in the paper's training files: biases learn twice as fast and do not decay.

    Caffe writes it as lr_mult 1 and 2, decay_mult 1 and 0. A parameter is a bias if its name ends
    in "bias"; ``bias_rate`` and ``bias_decay`` are its learning rate and its weight decay by those
    of the weights.
    """
    named = list(named_parameters)
    weights = [parameter for name, parameter in named if not name.endswith("bias")]
    biases = [parameter for name, parameter in named if name.endswith("bias")]
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": biases, "lr": bias_rate * lr, "weight_decay": bias_decay * weight_decay},
    ]


# ---- schedules: step number -> factor on the learning rate -----------------------------------

Schedule = Callable[[int], float]


def constant() -> Schedule:
    """Always 1."""
    return lambda step: 1.0


def stepped(every: int, gamma: float = 0.1) -> Schedule:
    """Times ``gamma`` after every ``every`` steps (Caffe's "step")."""
    return lambda step: gamma ** (step // every)


def poly(steps: int, power: float = 0.9) -> Schedule:
    """``(1 - step / steps) ** power``: from 1 to almost 0 over a whole stage (Caffe's "poly")."""
    return lambda step: max(0.0, 1 - step / steps) ** power


def warm_up(steps: int, schedule: Schedule) -> Schedule:
    """Rise in a straight line to the schedule over the first ``steps`` steps."""
    return lambda step: schedule(step) * min(1.0, (step + 1) / max(1, steps))


# ---- at the door -----------------------------------------------------------------------------


def _check_options(group: Mapping[str, Any]) -> None:
    for name in ("lr", "eps", "weight_decay"):
        value = group.get(name, 0.0)
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"expected {name} to be a finite number of at least 0; got {value}.")
    for value in (group.get("momentum", 0.0), *group.get("betas", ())):
        if not 0 <= value < 1:
            raise ConfigError(
                f"expected momentum and betas to lie in [0, 1); got {value}. At 1 the first "
                "gradient would never be forgotten; 0.9 is usual."
            )


def _check_parameters(parameters: list[Any]) -> None:
    if not any(getattr(parameter, "requires_grad", True) for parameter in parameters):
        raise ConfigError(
            f"expected parameters to train; got {len(parameters)}, none of which requires grad. "
            "Pass module.parameters(); an iterator that was used before is empty."
        )
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            raise ConfigError(
                f"expected tensors as parameters; got {type(parameter).__name__}. "
                "Pass module.parameters()."
            )
        if parameter.op is not None:
            raise ConfigError(
                f"expected leaves as parameters; got {parameter.shape}, the result of an "
                "operation. Pass module.parameters()."
            )
        if isinstance(parameter.data, MetaArray):
            raise ConfigError(
                f"expected parameters with numbers; got one on {parameter.device}, which has a "
                "shape only. Build the network outside the meta device."
            )
    if len({id(parameter) for parameter in parameters}) != len(parameters):
        raise ConfigError(
            "expected each parameter once; got one twice, which would take two steps at a time."
        )
