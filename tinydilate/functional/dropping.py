"""Dropout: in training, each number is dropped with probability p and the others make up for it.

Definition:

    out[k] = 0                        with probability p
    out[k] = input[k] / (1 - p)       otherwise

so that the expected output is the input ("inverted" dropout: nothing need be scaled afterwards).
The published front ends drop half the outputs of fc6 and of fc7.

Where does chance come from? Not from a generator that steps from number to number, because
threads would have to take turns. It is counted: element k of call number c under seed s is kept or
dropped by a hash of (s, c, k), the mixing function of SplitMix64 (Steele, Lea & Flood 2014). Any
thread of any device can compute any element, in any order, and gets the same bits. Two integers,
the seed and the number of the next call, are the whole state.

Derivative: ``dx = dout / (1 - p)`` where the number was kept, else 0, which is dropout itself
with the same seed and call. So the mask is hashed again instead of being remembered.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np

from tinydilate import buffers, device
from tinydilate.autograd import Op, Tensor, as_tensors, public
from tinydilate.device import Array, CudaArray, MetaArray, cover
from tinydilate.errors import ConfigError
from tinydilate.kernel import cuda, jit, kernel
from tinydilate.threads import share, worth_a_thread

# ---- chance by counting ----------------------------------------------------------------------

# Beside a uint64 every number must be one: with an int NumPy and Numba would leave the integers.
_ONE, _STEP = np.uint64(1), np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)
_11 = np.uint64(11)


def random_bits(key: Any, k: Any) -> Any:
    """Number ``k`` of the stream ``key``: 64 random bits, all arithmetic modulo 2**64."""
    z = key + (k + _ONE) * _STEP
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


_random_bits = jit(random_bits)


def stream(seed: int, call: int) -> Any:
    """The key of one call's stream: the hash of the call under the hash of the seed."""
    s, c, zero = (np.array([number], np.uint64) for number in (seed, call, 0))
    return random_bits(random_bits(s, zero), c)[0]


def threshold(p: float) -> Any:
    """Bits are 53-bit integers below 2**53; those below this one are dropped."""
    return np.uint64(round(p * 2**53))


class Chance:
    """The seed, and how many random calls it has served: dropouts, and starts of layers."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.seed, self.calls = 0, 0

    def draw(self) -> tuple[int, int]:
        """The seed and the number of this call."""
        with self.lock:
            self.calls += 1
            return self.seed, self.calls - 1


chance = Chance()


def manual_seed(seed: int) -> None:
    """Begin all random calls anew under ``seed``, an integer in [0, 2**64).

    Random calls are those of dropout, and the starting values of layers that are given no ``rng``.

    Without it the seed is 0, so that every program is repeatable.

    Raises
    ------
    ConfigError
        If the seed is not such an integer.
    """
    set_rng_state({"seed": seed, "calls": 0})


def get_rng_state() -> dict[str, int]:
    """State of the random calls, two integers that JSON can hold.

    Returns
    -------
    dict
        ``seed``, and ``calls``, the number of random calls since `manual_seed`.
    """
    with chance.lock:
        return {"seed": chance.seed, "calls": chance.calls}


def set_rng_state(state: dict[str, int]) -> None:
    """Go on from a state of `get_rng_state`: the same numbers follow as did then.

    Raises
    ------
    ConfigError
        If the state does not hold two such integers.
    """
    if not isinstance(state, dict) or set(state) != {"seed", "calls"}:
        raise ConfigError(
            f'expected a state {{"seed": int, "calls": int}}; got {state!r}. '
            "Take one from get_rng_state()."
        )
    for name, number in state.items():
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if not whole or not 0 <= number < 2**64:
            raise ConfigError(
                f"expected an integer of at least 0 and below 2**64 as {name}; got {number!r}."
            )
    with chance.lock:
        chance.seed, chance.calls = int(state["seed"]), int(state["calls"])


# ---- forward, which is its own adjoint -------------------------------------------------------


@kernel
def dropout_forward(x: Array, p: float, seed: int, call: int) -> Array:
    """Zero where the hash of (seed, call, element) says so, ``x / (1 - p)`` elsewhere."""
    bits = random_bits(stream(seed, call), np.arange(x.size, dtype=np.uint64)) >> _11
    kept = (bits >= threshold(p)).reshape(x.shape)
    return np.where(kept, x * x.dtype.type(_scale(p)), 0).astype(x.dtype)


def _scale(p: float) -> float:
    return 1 / (1 - p) if p < 1 else 0.0


@dropout_forward.cpu
def dropout_forward_cpu(x: Array, p: float, seed: int, call: int) -> Array:
    out = buffers.empty_like(x)
    options = stream(seed, call), threshold(p), x.dtype.type(_scale(p))
    with np.errstate(over="ignore"):  # run as Python, the hash's scalars would warn of wrapping
        share(_drop, x.size, x.reshape(-1), *options, out.reshape(-1), least=worth_a_thread())
    return out


@jit
def _drop(start: int, stop: int, x: Array, key: Any, least: Any, scale: Any, out: Array) -> None:
    for n in range(start, stop):
        out[n] = x[n] * scale if _is_kept(n, key, least) else 0


@jit
def _is_kept(n: Any, key: Any, least: Any) -> Any:
    return _random_bits(key, np.uint64(n)) >> _11 >= least


@dropout_forward.cuda
def dropout_forward_cuda(x: CudaArray, p: float, seed: int, call: int) -> CudaArray:
    device.refuse_while_recording(
        "dropout, which would drop the same numbers in each repetition",
        "Call network.eval(), or take it out.",
    )
    out = device.empty_like(x)
    _drop_cuda[cover(x.size)](x, stream(seed, call), threshold(p), _scale(p), out)
    return out


@cuda.jit
def _drop_cuda(x: Array, key: np.uint64, least: np.uint64, scale: float, out: Array) -> None:
    n = np.uint32(cuda.grid(1))
    if n < out.size:
        out[n] = x[n] * scale if _is_kept(n, key, least) else x.dtype.type(0)


@dropout_forward.meta
def dropout_forward_meta(x: MetaArray, p: float, seed: int, call: int) -> MetaArray:
    return x


# ---- the operation ---------------------------------------------------------------------------


class Dropout(Op):
    """Numbers dropped at random, as one call of one seed has it."""

    def __init__(self, p: float, seed: int, call: int) -> None:
        self.options = p, seed, call

    def forward(self, x: Any) -> Any:
        return dropout_forward(x, *self.options)

    def backward(self, grad: Any) -> Any:
        return dropout_forward(grad, *self.options)


@public
def dropout(input: Any, p: float = 0.5, training: bool = True) -> Tensor:
    """Drop each number with probability ``p`` and divide the others by ``1 - p``.

    Each call drops others; `tinydilate.manual_seed` makes the calls of a program repeatable, on
    any number of threads.

    Parameters
    ----------
    input : Tensor or array of any shape
    p : float
        Probability of being dropped, from 0 (the input itself) to 1 (zeros).
    training : bool
        With False the input itself is returned.

    Returns
    -------
    Tensor of the input's shape

    Raises
    ------
    ConfigError
        If ``p`` is not a number from 0 to 1.
    """
    (x,) = as_tensors(input)
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ConfigError(f"dropout expected a probability p from 0 to 1; got {p!r}.")
    if not training or p == 0:
        return x
    seed, call = (0, 0) if x.device == "meta" else chance.draw()  # shapes leave chance alone
    return Dropout(float(p), seed, call)(x)
