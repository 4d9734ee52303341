"""The check of gradients is itself checked: with gradients that are planted wrong."""

import re

import numpy as np
import pytest

import tinydilate.functional as F
from tinydilate import Op, gradcheck, tensor
from tinydilate.errors import ConfigError, DtypeError, GradcheckError, GraphError
from tinydilate.functional.arithmetic import unbroadcast

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(2, 3, 6, 7))


class Planted(Op):
    """``x * x`` with a derivative that something was done to."""

    def __init__(self, fault):
        self.fault = fault

    def forward(self, x):
        self.x = x
        return x * x

    def backward(self, grad):
        return self.fault(2 * grad * self.x)


def scaled(gradient):
    return gradient * 1.001


def one_border_element(gradient):
    gradient[..., -1, -1] *= 1.001
    return gradient


def sign(gradient):
    return -gradient


def shifted(gradient):
    return np.roll(gradient, 1, axis=-1)


def constant_added(gradient):
    return gradient + 1e-3


def border_left_out(gradient):
    gradient[..., 0] = 0
    return gradient


def nan(gradient):
    gradient[0] = np.nan
    return gradient


def test_a_right_gradient_passes():
    assert gradcheck(lambda x: Planted(lambda gradient: gradient)(x), IMAGE) is True


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "fault", [scaled, one_border_element, sign, shifted, constant_added, border_left_out, nan]
)
def test_a_planted_fault_is_caught(fault, seed):
    with pytest.raises(GradcheckError, match="the gradient by input 0"):
        gradcheck(lambda x: Planted(fault)(x), IMAGE, seed=seed)


@pytest.mark.parametrize("position", [0, 1])
def test_the_message_names_the_input_and_both_numbers(position):
    """A product whose gradient by one of its factors is wrong by a tenth of a per cent."""

    class Product(Op):
        def forward(self, a, b):
            self.a, self.b = a, b
            return a * b

        def backward(self, grad):
            gradients = [grad * self.b, grad * self.a]
            gradients[position][1] *= 1.001
            return tuple(gradients)

    a, b = np.array([1.0, 2.0, 3.0]), np.array([-1.0, 0.5, 2.0])
    with pytest.raises(GradcheckError) as raised:
        gradcheck(lambda *tensors: Product()(*tensors), a, b)
    found = re.fullmatch(
        rf"the gradient by input {position}, of shape \(3,\), is wrong: along a random direction "
        r"backward gives (\S+), differences give (\S+), a relative error of (\S+) where 1e-06 is "
        r"allowed \(relative to the size of the terms that the slope is the sum of\)\. "
        r"It is off most at \(1,\): (\S+) instead of (\S+)\. Check what backward returns "
        r"for that input\.",
        str(raised.value),
    )
    claimed, slope, error, wrong, right = (float(number) for number in found.groups())
    assert 1e-6 < error < 1.1e-3
    assert error <= 1.01 * abs(claimed - slope) / max(abs(claimed), abs(slope))
    assert wrong == pytest.approx(1.001 * right, rel=1e-5)


def test_a_missing_sum_over_repeats_is_caught():
    class Add(Op):
        def forward(self, a, b):
            return a + b

        def backward(self, grad):
            return grad, grad

    text = (
        r"Add\.backward expected to return a gradient of its input's shape \(3,\); it returned one "
        r"of shape \(2, 3\)\. Sum it over the axes that were broadcast, or reshape it\."
    )
    with pytest.raises(GraphError, match=f"^{text}$"):
        gradcheck(lambda a, b: Add()(a, b), np.ones((2, 3)), np.ones(3))


def test_a_mean_over_repeats_instead_of_a_sum_is_caught():
    class Add(Op):
        def forward(self, a, b):
            self.shape = b.shape
            return a + b

        def backward(self, grad):
            return grad, unbroadcast(grad, self.shape) / 2

    with pytest.raises(GradcheckError, match="the gradient by input 1"):
        gradcheck(lambda a, b: Add()(a, b), np.ones((2, 3)), np.ones(3))


KINKS = [
    ("relu at zero", F.relu, np.array([0.0, 1.0, -1.0])),
    ("a maximum of two equal numbers", F.max, np.array([1.0, 3.0, 3.0])),
    (
        "max pooling over a tie",
        lambda x: F.max_pool2d(x, 2),
        np.array([[[[1.0, 4.0], [4.0, 0.0]]]]),
    ),
    ("a jump", lambda x: F.relu(x) * 1e6 + tensor(np.floor(x.data)), np.array([1.0, 2.5])),
]


@pytest.mark.parametrize(("function", "point"), [k[1:] for k in KINKS], ids=[k[0] for k in KINKS])
def test_a_kink_is_reported_as_a_kink(function, point):
    with pytest.raises(GradcheckError, match="has a kink or a jump at this point along input 0"):
        gradcheck(function, point)


@pytest.mark.parametrize("distance", [1e-5, -1e-5, 3.3e-5, 7e-5])
def test_a_kink_beside_the_point_is_passed_by(distance):
    assert gradcheck(F.relu, np.array([distance, 0.5]))


def test_many_units_near_their_kinks_do_not_matter():
    assert gradcheck(lambda x: F.relu(x).sum(), RNG.normal(size=3000))


def test_curved_and_steep_functions_pass():
    gradcheck(F.exp, np.array([-20.0, 0.0, 10.0]))
    gradcheck(F.log, np.array([0.05, 1.0, 1e5]))
    gradcheck(lambda x: 1 / x, np.array([0.05, -3.0, 100.0]))
    gradcheck(lambda x: x * 0, np.ones(3))
    gradcheck(lambda x: x - x, np.ones(3))


def test_a_seed_gives_the_same_check():
    def message(seed):
        with pytest.raises(GradcheckError) as raised:
            gradcheck(lambda x: Planted(scaled)(x), IMAGE, seed=seed)
        return str(raised.value)

    assert message(3) == message(3)
    assert message(3) != message(4)


def test_a_result_that_does_not_depend_on_an_input_has_gradient_zero():
    assert gradcheck(lambda a, b: a + 0 * b.detach(), np.ones(2), np.ones(2))
    with pytest.raises(GradcheckError, match="the gradient by input 1"):
        gradcheck(lambda a, b: a * b.detach(), np.ones(2), np.ones(2))


def test_inputs_stay_as_they_were():
    x = tensor(np.array([1.0, 2.0]), requires_grad=True)
    assert gradcheck(F.exp, x)
    np.testing.assert_array_equal(x.data, [1.0, 2.0])
    assert x.grad is None


def test_whole_numbers_and_options_are_handed_on():
    labels = np.array([0, 2])
    gradcheck(F.cross_entropy, RNG.normal(size=(2, 3)), labels)
    gradcheck(F.sum, np.ones((2, 3)), 1)


REFUSED = [
    (
        "float32",
        lambda: gradcheck(F.exp, np.ones(2, np.float32)),
        DtypeError,
        "gradcheck expected float64; input 0 is float32, which has too few digits for differences. "
        "Convert it with .astype(np.float64).",
    ),
    (
        "nothing to check",
        lambda: gradcheck(F.exp, 1.0),
        ConfigError,
        "gradcheck expected at least one float64 array or tensor among its inputs; got float. Pass "
        "the arrays whose gradients are to be checked after the function.",
    ),
    (
        "inputs in a tuple",
        lambda: gradcheck(F.exp, (np.ones(2),)),
        ConfigError,
        "gradcheck expected at least one float64 array or tensor among its inputs; got tuple. "
        "Write gradcheck(f, *inputs), without a tuple.",
    ),
    (
        "no direction",
        lambda: gradcheck(F.exp, np.ones(2), directions=0),
        ConfigError,
        "directions should be at least 1, got 0.",
    ),
    (
        "outside the domain",
        lambda: gradcheck(F.log, np.array([-1.0])),
        GradcheckError,
        "gradcheck expected finite results; the function gives nan or inf at this point. Choose "
        "inputs inside its domain.",
    ),
    (
        "random",
        lambda: gradcheck(F.dropout, np.ones(64)),
        GradcheckError,
        "gradcheck expected the same result for the same inputs; the function gave two. Fix its "
        "seed, or switch its randomness off.",
    ),
    (
        "not a tensor",
        lambda: gradcheck(lambda x: (x, x), np.ones(2)),
        GradcheckError,
        "gradcheck expected a function that returns one tensor; it returned tuple. Wrap it: "
        "lambda x: fn(x)[0].",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_cannot_be_checked_is_refused(call, error, text):
    with pytest.raises(error, match="^" + re.escape(text) + "$"):
        call()
