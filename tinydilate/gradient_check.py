"""Is this derivative right? A check that compares it with the slope that it claims to be.

A function of many numbers is cut along a line: ``p(t) = <c, fn(x + t*d)>`` with a random direction
d and a random weight c for every output. That is an ordinary function of one number, and its slope
at t = 0 can be had in two ways: by differences of values, and as ``<gradient, d>`` from
``backward`` with c as the incoming gradient. One line tests every element of the gradient at once,
so an error at a single border pixel shows, where a test of some elements would miss it.

Differences: ``D(h) = (p(h) - p(-h)) / 2h`` is off by a multiple of h**2, so
``(4*D(h/2) - D(h)) / 3`` is off by a multiple of h**4 only. In float64 nine digits remain; float32
has too few to begin with.

Kinks: at a kink (relu at 0, a maximum of two equal numbers) a function has no derivative, and a
difference across it means nothing. The bend ``B(h) = (p(h) - 2*p(0) + p(-h)) / h``, the slope after
less the slope before, tells: where p is smooth B shrinks with h, B(h) = 2*B(h/2), and at a kink it
does not. A kink that lies beside the point is passed by with smaller steps; one that stays is
reported as what it is, and not as a wrong gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinydilate.autograd import Tensor, tensor
from tinydilate.device import Array
from tinydilate.errors import ConfigError, DtypeError, GradcheckError

STEPS = (1e-4, 1e-5, 1e-6)  # tried in turn where a kink is near
DIGITS = float(np.finfo(np.float64).eps)
FEW = 200  # elements that are worth naming one by one when the gradient is wrong


def gradcheck(
    fn: Callable[..., Any],
    *inputs: Any,
    seed: int = 0,
    directions: int = 2,
    tolerance: float = 1e-6,
) -> bool:
    """Compare the gradients of ``fn`` with differences of its values along random directions.

    Parameters
    ----------
    fn : callable
        Takes the inputs, the floating-point arrays among them as tensors, and returns a tensor of
        any shape. It must return the same for the same inputs.
    *inputs : float64 arrays or tensors, and anything else
        The gradient by each float64 array or tensor is checked, one after the other. Everything
        else (whole numbers, labels, options) is handed on as it is.
    seed : int
        Chooses the directions and the weights of the outputs.
    directions : int
        Random directions for each input.
    tolerance : float
        Largest relative error that passes. The default leaves room for rounding alone: a gradient
        that is wrong by a tenth of a per cent is a thousand times over it.

    Returns
    -------
    True

    Raises
    ------
    GradcheckError
        If a gradient is wrong; if the function has a kink at the point, gives nan or inf, or gives
        another result when called again.
    GraphError
        If a gradient has another shape than its input.
    DtypeError
        If an input is float32 (or smaller).
    ConfigError
        If no input is a float64 array, or ``directions`` is less than 1.

    Examples
    --------
    >>> import numpy as np
    >>> import tinydilate.functional as F
    >>> from tinydilate import gradcheck
    >>> rng = np.random.default_rng(0)
    >>> gradcheck(F.conv2d, rng.normal(size=(1, 2, 7, 7)), rng.normal(size=(3, 2, 3, 3)))
    True
    """
    points = _points(inputs)
    if directions < 1:
        raise ConfigError(f"directions should be at least 1, got {directions!r}.")
    rng = np.random.default_rng(seed)
    cut = _Cut(fn, inputs, points, rng)
    for position, gradient in cut.gradients().items():
        for _ in range(directions):
            _check_along(cut, position, gradient, rng, tolerance)
    return True


def _points(inputs: tuple[Any, ...]) -> dict[int, Array]:
    """Position -> array of every input whose gradient is checked."""
    points = {}
    for position, value in enumerate(inputs):
        array = value.data if isinstance(value, Tensor) else value
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            continue
        if array.dtype != np.float64:
            raise DtypeError(
                f"gradcheck expected float64; input {position} is {array.dtype}, which has too few "
                "digits for differences. Convert it with .astype(np.float64)."
            )
        points[position] = array.copy()
    if not points:
        packed = len(inputs) == 1 and isinstance(inputs[0], tuple | list)
        raise ConfigError(
            "gradcheck expected at least one float64 array or tensor among its inputs; got "
            f"{', '.join(type(value).__name__ for value in inputs) or 'none'}. "
            + (
                "Write gradcheck(f, *inputs), without a tuple."
                if packed
                else "Pass the arrays whose gradients are to be checked after the function."
            )
        )
    return points


class _Cut:
    """The function as one number: the outputs' sum with random weights."""

    def __init__(
        self,
        fn: Callable[..., Any],
        inputs: tuple[Any, ...],
        points: dict[int, Array],
        rng: np.random.Generator,
    ) -> None:
        self.fn, self.inputs, self.points = fn, inputs, points
        values: Any = self._call(points, requires_grad=False).data
        self.weights: Any = rng.normal(size=values.shape)
        # What is added up, taken for at least one an output: numbers around one inside the function
        # may cancel and leave zero with an error. It bounds the rounding error to expect.
        self.size = float(np.abs(self.weights * np.maximum(np.abs(values), 1.0)).sum())
        if not np.isfinite(self.size):
            raise GradcheckError(
                "gradcheck expected finite results; the function gives nan or inf at this point. "
                "Choose inputs inside its domain."
            )
        if not np.array_equal(values, self._call(points, requires_grad=False).data):
            raise GradcheckError(
                "gradcheck expected the same result for the same inputs; the function gave two. "
                "Fix its seed, or switch its randomness off."
            )

    def _call(self, points: dict[int, Array], requires_grad: bool) -> Tensor:
        arguments = list(self.inputs)
        for position, array in points.items():
            arguments[position] = tensor(array.copy(), requires_grad)
        self.leaves = {position: arguments[position] for position in points}
        result = self.fn(*arguments)
        if not isinstance(result, Tensor):
            raise GradcheckError(
                "gradcheck expected a function that returns one tensor; it returned "
                f"{type(result).__name__}. Wrap it: lambda x: fn(x)[0]."
            )
        return result

    def gradients(self) -> dict[int, Array]:
        """Position -> gradient by that input, from ``backward``."""
        result = self._call(self.points, requires_grad=True)
        if result.requires_grad:
            result.backward(self.weights)
        gradients = {}
        for position, leaf in self.leaves.items():
            # An input that the result does not depend on has no gradient, which claims zero.
            gradient = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.data
            if not np.isfinite(gradient).all():
                where = tuple(int(i) for i in np.argwhere(~np.isfinite(gradient))[0])
                raise GradcheckError(
                    f"the gradient by input {position}, of shape {gradient.shape}, is wrong: the "
                    f"result is finite here, but backward gives {gradient[where]} at {where}. "
                    "Look for a division by zero or a logarithm of zero in it."
                )
            gradients[position] = gradient
        return gradients

    def along(self, position: int, direction: Array, t: float) -> float:
        """``p(t)``: the value at ``t`` along a direction of one input."""
        moved = {**self.points, position: self.points[position] + t * direction}
        return float((self.weights * self._call(moved, requires_grad=False).data).sum())

    def slope(
        self, position: int, direction: Array, scale: float, tolerance: float
    ) -> tuple[float, float] | None:
        """(slope at t = 0, rounding error to expect), or None at a kink."""
        for step in STEPS:
            p = [self.along(position, direction, t * step) for t in (-1.0, -0.5, 0.0, 0.5, 1.0)]
            full, half = (p[4] - p[0]) / (2 * step), (p[3] - p[1]) / step
            bend, half_bend = (p[4] - 2 * p[2] + p[0]) / step, 2 * (p[3] - 2 * p[2] + p[1]) / step
            rounding = 16 * DIGITS * self.size / step
            allowed = tolerance * max(scale, abs(full), abs(half)) + 4 * rounding
            if abs(bend - 2 * half_bend) <= allowed:
                return (4 * half - full) / 3, rounding
        return None


def _check_along(
    cut: _Cut, position: int, gradient: Array, rng: np.random.Generator, tolerance: float
) -> None:
    direction: Array = rng.normal(size=gradient.shape)
    claimed = float((gradient * direction).sum())
    typical = float(np.sqrt(np.square(gradient * direction).sum()))
    found = cut.slope(position, direction, typical, tolerance)
    where = f"input {position}, of shape {gradient.shape}"
    if found is None:
        raise GradcheckError(
            f"the function has a kink or a jump at this point along {where}: the slopes before and "
            "after differ however small the step, so there is no derivative to compare with. "
            "Choose a point without ties and without zeros under relu."
        )
    slope, rounding = found
    # Relative to the larger of the two, and to what a sum of such terms amounts to: in an unlucky
    # direction the terms cancel, and the rest is all rounding.
    scale = max(abs(claimed), abs(slope), typical)
    error = abs(claimed - slope)
    if not error <= tolerance * scale + rounding:
        raise GradcheckError(
            f"the gradient by {where}, is wrong: along a random direction backward gives "
            f"{claimed:.9g}, differences give {slope:.9g}, a relative error of "
            f"{error / scale:.2g} where {tolerance:.2g} is allowed (relative to the size of the "
            "terms that the slope is the sum of)."
            f"{_worst_element(cut, position, gradient, tolerance)} Check what backward returns "
            "for that input."
        )


def _worst_element(cut: _Cut, position: int, gradient: Array, tolerance: float) -> str:
    """Name the element whose gradient is off by most, where there are few enough to try all."""
    if gradient.size > FEW:
        return ""
    worst, sentence = -1.0, ""
    for index in np.ndindex(*gradient.shape):
        direction = np.zeros_like(gradient)
        direction[index] = 1.0
        claimed = float(gradient[index])
        found = cut.slope(position, direction, abs(claimed), tolerance)
        if found is not None and not abs(claimed - found[0]) <= worst:
            worst = abs(claimed - found[0])
            sentence = f" It is off most at {index}: {claimed:.6g} instead of {found[0]:.6g}."
    return sentence
