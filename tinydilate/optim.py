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

A kernel takes the arrays of many parameters at once, in lists. A network has dozens, most of them
short, and on a GPU a launch for each would take longer than the numbers do: there one launch goes
through all of them, cut into pieces of which each block has one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tinydilate import buffers, device
from tinydilate.absent import asked_of
from tinydilate.autograd import Tensor
from tinydilate.device import SIMULATED, Array, CudaArray, MetaArray, move, pieces, write
from tinydilate.errors import ConfigError, DataError
from tinydilate.kernel import Int64Array, cuda, jit, kernel, number_at, put_at
from tinydilate.threads import share, worth_a_thread

if not TYPE_CHECKING:
    __getattr__ = asked_of("tinydilate.optim")

_THREADS = 8 if SIMULATED else 256  # of a block on the GPU

# ---- one step of each rule, in place ---------------------------------------------------------


@kernel
def sgd_step(
    ws: list[Array],
    grads: list[Array],
    velocities: list[Array],
    lr: float,
    momentum: float,
    decay: float,
) -> list[Array]:
    """Change each of ``ws`` and ``velocities`` in place; returns ``ws``."""
    for w, grad, velocity in zip(ws, grads, velocities, strict=True):
        velocity *= momentum
        velocity += grad + decay * w
        w -= lr * velocity
    return ws


@sgd_step.cpu
def sgd_step_cpu(
    ws: list[Array],
    grads: list[Array],
    velocities: list[Array],
    lr: float,
    momentum: float,
    decay: float,
) -> list[Array]:
    """See `sgd_step`."""
    numbers = [ws[0].dtype.type(x) for x in (lr, momentum, decay)]  # float32 is not widened
    for arrays in zip(ws, grads, velocities, strict=True):
        lines = [array.reshape(-1) for array in arrays]
        share(_sgd, arrays[0].size, *lines, *numbers, least=worth_a_thread())
    return ws


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
    ws: list[CudaArray],
    grads: list[CudaArray],
    velocities: list[CudaArray],
    lr: float,
    momentum: float,
    decay: float,
) -> list[CudaArray]:
    """See `sgd_step`."""
    table, blocks = pieces(ws, grads, velocities)
    _sgd_cuda[blocks, _THREADS](table, ws[0], lr, momentum, decay)
    return ws


@cuda.jit
def _sgd_cuda(table: Int64Array, like: Array, lr: float, momentum: float, decay: float) -> None:
    """A block has a piece: the addresses of its w, grad and velocity, and how many numbers each."""
    piece = np.uint32(4 * cuda.blockIdx.x)
    at_w, at_grad, at_velocity = table[piece], table[piece + 1], table[piece + 2]
    n, count = np.int64(cuda.threadIdx.x), table[piece + 3]
    while n < count:
        w, grad = number_at(at_w, n, like), number_at(at_grad, n, like)
        velocity = number_at(at_velocity, n, like)
        w, velocity = _sgd_rule(w, grad, velocity, lr, momentum, decay)
        put_at(at_w, n, w, like)
        put_at(at_velocity, n, velocity, like)
        n += _THREADS


sgd_step.meta(lambda ws, *rest: ws)


@kernel
def adam_step(
    ws: list[Array],
    grads: list[Array],
    means: list[Array],
    squares: list[Array],
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> list[Array]:
    """Change ``ws`` and the running ``means`` and ``squares`` in place; ``step`` counts from 1."""
    lr, root = _unbiased(step, lr, betas)
    for w, grad, mean, square in zip(ws, grads, means, squares, strict=True):
        grad = grad + decay * w
        mean += (1 - betas[0]) * (grad - mean)
        square *= betas[1]
        square += (1 - betas[1]) * grad * grad
        w -= lr * mean / (np.sqrt(square) / root + eps)
    return ws


def _unbiased(step: int, lr: float, betas: tuple[float, float]) -> tuple[float, float]:
    """What makes up for the running means' start at 0: ``lr / (1 - b1**t), sqrt(1 - b2**t)``."""
    return lr / (1 - betas[0] ** step), math.sqrt(1 - betas[1] ** step)


@adam_step.cpu
def adam_step_cpu(
    ws: list[Array],
    grads: list[Array],
    means: list[Array],
    squares: list[Array],
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> list[Array]:
    """See `adam_step`."""
    numbers = [ws[0].dtype.type(x) for x in _adam_numbers(step, lr, tuple(betas), eps, decay)]
    for arrays in zip(ws, grads, means, squares, strict=True):
        lines = [array.reshape(-1) for array in arrays]
        share(_adam, arrays[0].size, *lines, *numbers, least=worth_a_thread())
    return ws


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
    ws: list[CudaArray],
    grads: list[CudaArray],
    means: list[CudaArray],
    squares: list[CudaArray],
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> list[CudaArray]:
    """See `adam_step`."""
    table, blocks = pieces(ws, grads, means, squares)
    numbers = _adam_numbers(step, lr, tuple(betas), eps, decay)
    _adam_cuda[blocks, _THREADS](table, ws[0], *numbers)
    return ws


@cuda.jit
def _adam_cuda(
    table: Int64Array,
    like: Array,
    lr: float,
    per_root: float,
    new_mean: float,
    old_square: float,
    new_square: float,
    eps: float,
    decay: float,
) -> None:
    """As `_sgd_cuda`: a piece has a w, a grad, a mean and a square."""
    numbers = lr, per_root, new_mean, old_square, new_square, eps, decay
    piece = np.uint32(5 * cuda.blockIdx.x)
    at_w, at_grad = table[piece], table[piece + 1]
    at_mean, at_square = table[piece + 2], table[piece + 3]
    n, count = np.int64(cuda.threadIdx.x), table[piece + 4]
    while n < count:
        w, grad = number_at(at_w, n, like), number_at(at_grad, n, like)
        mean, square = number_at(at_mean, n, like), number_at(at_square, n, like)
        w, mean, square = _adam_rule(w, grad, mean, square, numbers)
        put_at(at_w, n, w, like)
        put_at(at_mean, n, mean, like)
        put_at(at_square, n, square, like)
        n += _THREADS


adam_step.meta(lambda ws, *rest: ws)

# ---- the optimisers --------------------------------------------------------------------------


State = dict[str, Array]  # what is remembered of one parameter


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
        given = _as_list(params)
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
    def state(self) -> list[State]:
        """What is remembered of each parameter.

        It is made when first asked for: at the end of the first step, in the memory that the
        results of its forward and backward pass have left. It is made where the parameters are, so
        move a network to another device before its first step.
        """
        return [self.initial_state(parameter) for parameter in self._parameters]

    @abstractmethod
    def initial_state(self, parameter: Tensor) -> State:
        """The arrays that the rule remembers for one parameter, as they begin."""

    @abstractmethod
    def update(
        self, ws: list[Array], grads: list[Array], states: list[State], lr: float, group: Any
    ) -> list[Array]:
        """Change the numbers and states of some parameters in place; returns the numbers.

        They are alike: of one device, one number type and one `age`.
        """

    def age(self, state: State) -> int:
        """Steps that a parameter has taken, if they matter to the rule."""
        return 0

    def step(self) -> None:
        """Change every parameter that has a gradient; the others are skipped."""
        device.refuse_while_recording(
            "an optimiser's step, which counts its steps", "Take it after each repetition."
        )
        states = iter(self.state)
        for group in self.param_groups:
            alike = defaultdict[Any, list[tuple[Tensor, State]]](list)
            for parameter, state in zip(group["params"], states, strict=False):
                if parameter.grad is not None:
                    kind = type(parameter.data), parameter.data.dtype, self.age(state)
                    alike[kind].append((parameter, state))
            for some in alike.values():
                self._step(some, group["lr"] * self.lr_factor, group)

    def _step(self, some: list[tuple[Tensor, State]], lr: float, group: Any) -> None:
        ws = [parameter.data for parameter, _ in some]
        grads = [cast(Tensor, parameter.grad).data for parameter, _ in some]
        changed = self.update(ws, grads, [state for _, state in some], lr, group)
        for (parameter, _), w in zip(some, changed, strict=True):
            parameter.data = w

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

    def initial_state(self, parameter: Tensor) -> State:
        return {"velocity": _zeros_for(parameter)}

    def update(
        self, ws: list[Array], grads: list[Array], states: list[State], lr: float, group: Any
    ) -> list[Array]:
        velocities = [state["velocity"] for state in states]
        changed = sgd_step(ws, grads, velocities, lr, group["momentum"], group["weight_decay"])
        return cast(list[Array], changed)


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

    def initial_state(self, parameter: Tensor) -> State:
        mean, square = _zeros_for(parameter), _zeros_for(parameter)
        return {"step": np.zeros(1, np.int64), "mean": mean, "square": square}

    def age(self, state: State) -> int:
        return state["step"].item()  # type: ignore[no-any-return]

    def update(
        self, ws: list[Array], grads: list[Array], states: list[State], lr: float, group: Any
    ) -> list[Array]:
        step = self.age(states[0]) + 1
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        options = group["betas"], group["eps"], group["weight_decay"]
        changed = adam_step(ws, grads, means, squares, step, lr, *options)
        for state in states:
            state["step"][0] = step
        return cast(list[Array], changed)


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


def _as_list(params: Any) -> list[Any]:
    """Parameters or groups in a list; what is neither is likely the module, or lacks its ()."""
    if not isinstance(params, Iterable) or isinstance(params, Tensor | Mapping):
        what = "a method" if callable(params) and hasattr(params, "__self__") else None
        raise ConfigError(
            f"expected parameters to train; got {what or type(params).__name__}. Pass "
            "module.parameters(), a list of parameters, or a list of groups."
        )
    return list(params)


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
