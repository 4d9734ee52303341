"""Optimisers against their rules by hand, against PyTorch, and what they refuse."""

import numpy as np
import pytest

import tinydilate as td
from tinydilate import nn, optim
from tinydilate.autograd import Tensor
from tinydilate.errors import ConfigError, DataError

SHAPES = [(3, 2, 3, 3), (3,), (70_000,)]  # the last is shared among threads


def parameters(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [td.tensor(rng.standard_normal(s).astype(dtype), requires_grad=True) for s in SHAPES]


def give_gradients(tensors, seed):
    rng = np.random.default_rng(seed)
    for tensor in tensors:
        tensor.grad = Tensor(rng.standard_normal(tensor.shape).astype(tensor.dtype))


def copies(tensors):
    return [tensor.data.copy() for tensor in tensors]


# ---- the rules -------------------------------------------------------------------------------


def test_sgd_by_hand():
    w = td.tensor([1.0, -2.0], requires_grad=True)
    sgd = optim.SGD([w], lr=0.5, momentum=0.5, weight_decay=0.1)
    for _ in range(2):
        w.grad = td.tensor([1.0, 1.0])
        sgd.step()
    # v = 1.1, 0.8; w = 0.45, -2.4; v = 0.55 + 1.045, 0.4 + 0.76; w = -0.3475, -2.98
    np.testing.assert_allclose(w.data, [-0.3475, -2.98], rtol=1e-6)


def test_adams_first_step_is_lr_long():
    w = td.tensor(np.zeros(4), requires_grad=True)
    w.grad = td.tensor(np.array([1e-3, -1e3, 1.0, 0.0]))
    optim.Adam([w], lr=0.01).step()
    np.testing.assert_allclose(w.data, [-0.01, 0.01, -0.01, 0.0], rtol=1e-4)


MAKERS = {
    "sgd": lambda m, w: m.SGD(w, lr=0.1),
    "momentum": lambda m, w: m.SGD(w, lr=0.1, momentum=0.9),
    "decay": lambda m, w: m.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda m, w: m.Adam(w, lr=0.01),
    "adam, all options": lambda m, w: m.Adam(
        w, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1
    ),
    "groups": lambda m, w: m.SGD(
        [{"params": w[:1]}, {"params": w[1:], "lr": 0.2, "weight_decay": 0.0}],
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
    ),
}


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch")
    # An optimiser's first step imports more of PyTorch, which sets environment variables.
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0).step()
    return torch


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", MAKERS)
def test_against_torch(torch, name, dtype):
    ours = parameters(dtype)
    theirs = [torch.nn.Parameter(torch.from_numpy(w.data.copy())) for w in ours]
    optimizer, oracle = MAKERS[name](optim, ours), MAKERS[name](torch.optim, theirs)
    for step in range(20):
        give_gradients(ours, step)
        for w, t in zip(ours, theirs, strict=True):
            t.grad = torch.from_numpy(w.grad.data.copy())
        optimizer.step()
        oracle.step()
    for w, t in zip(ours, theirs, strict=True):
        tolerance = 2e-6 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(w.data, t.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", MAKERS)
def test_twins_agree(name, dtype):
    """The Numba loops and the NumPy references, over several steps."""
    check_twins(name, dtype, steps=5)


@pytest.mark.plain
@pytest.mark.parametrize("name", ["decay", "adam"])
def test_twins_agree_in_a_step(name):
    check_twins(name, np.float32, steps=1)


def check_twins(name, dtype, steps):
    ours, reference = parameters(dtype), parameters(dtype)
    fast, slow = MAKERS[name](optim, ours), MAKERS[name](optim, reference)
    for step in range(steps):
        give_gradients(ours, step)
        give_gradients(reference, step)
        fast.step()
        with td.use("numpy"):
            slow.step()
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for w, r in zip(ours, reference, strict=True):
        assert w.dtype == dtype
        np.testing.assert_allclose(w.data, r.data, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("implementation", ["numpy", "cpu"])
@pytest.mark.parametrize("name", ["decay", "adam"])
def test_in_place(name, implementation):
    """The numbers keep their memory, so that whoever shares it sees the step."""
    tensors = parameters(np.float32)
    arrays, before = [w.data for w in tensors], copies(tensors)
    optimizer = MAKERS[name](optim, tensors)
    give_gradients(tensors, 1)
    with td.use(implementation):
        optimizer.step()
    for w, array, old in zip(tensors, arrays, before, strict=True):
        assert w.data is array
        assert not np.array_equal(array, old)


def test_a_transposed_parameter_learns_too():
    w = Tensor(np.ones((3, 2), np.float32).T, requires_grad=True)
    w.grad = Tensor(np.ones((2, 3), np.float32))
    optim.SGD([w], lr=0.5).step()
    np.testing.assert_array_equal(w.data, np.full((2, 3), 0.5))


def test_parameters_without_gradient_are_skipped():
    tensors = parameters()
    adam = optim.Adam(tensors, lr=0.1, weight_decay=0.5)
    before = copies(tensors)
    give_gradients(tensors[1:2], 0)
    adam.step()
    np.testing.assert_array_equal(tensors[0].data, before[0])
    assert not np.array_equal(tensors[1].data, before[1])
    assert [int(state["step"][0]) for state in adam.state] == [0, 1, 0]


def test_parameters_of_one_group_may_differ_in_age_and_in_type():
    together, alone = parameters(), parameters()
    for tensors in (together, alone):
        tensors[1] = Tensor(tensors[1].data.astype(np.float64), requires_grad=True)
    one = optim.Adam(together, lr=0.1)
    each = [optim.Adam([w], lr=0.1) for w in alone]
    for step in range(3):
        for tensors in (together, alone):
            give_gradients(tensors[step:], step)  # the first is one step old, the last three
        one.step()
        for optimizer in each:
            optimizer.step()
        for w in together + alone:
            w.grad = None
    for w, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(w.data, other.data)
    assert [int(state["step"][0]) for state in one.state] == [1, 2, 3]


def test_frozen_parameters_may_stand_among_the_others():
    tensors = parameters()
    tensors[0].requires_grad = False
    before = copies(tensors)
    sgd = optim.SGD(tensors, lr=0.1, weight_decay=0.5)
    give_gradients(tensors[1:], 0)
    sgd.step()
    np.testing.assert_array_equal(tensors[0].data, before[0])


def test_zero_grad():
    tensors = parameters()
    give_gradients(tensors, 0)
    optim.SGD(tensors, lr=0.1).zero_grad()
    assert [tensor.grad for tensor in tensors] == [None] * 3


def test_steps_descend():
    w = td.tensor(np.array([3.0, -4.0]), requires_grad=True)
    sgd = optim.SGD([w], lr=0.1, momentum=0.5)
    for _ in range(60):
        sgd.zero_grad()
        w.grad = Tensor(2 * w.data)  # of |w|^2
        sgd.step()
    np.testing.assert_allclose(w.data, 0, atol=1e-6)


# ---- groups, schedules, state ----------------------------------------------------------------


def test_weights_and_biases():
    w, b, head = parameters()
    named = [("conv.weight", w), ("conv.bias", b), ("head.weight", head)]
    weights, biases = optim.weights_and_biases(named, lr=0.1, weight_decay=0.01)
    assert weights == {"params": [w, head], "lr": 0.1, "weight_decay": 0.01}
    assert biases == {"params": [b], "lr": 0.2, "weight_decay": 0.0}
    groups = optim.SGD([weights, biases], lr=1, momentum=0.9).param_groups
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in groups] == [
        (0.1, 0.9, 0.01),
        (0.2, 0.9, 0.0),
    ]


def test_lr_factor_scales_every_group():
    w, b = (td.tensor(np.zeros(1), requires_grad=True) for _ in range(2))
    sgd = optim.SGD(optim.weights_and_biases([("weight", w), ("bias", b)], lr=1.0))
    w.grad, b.grad = td.tensor(np.ones(1)), td.tensor(np.ones(1))
    sgd.lr_factor = 0.25
    sgd.step()
    assert (w.item(), b.item()) == (-0.25, -0.5)


def test_schedules():
    assert [optim.constant()(n) for n in (0, 5)] == [1, 1]
    assert [optim.stepped(2, 0.5)(n) for n in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    assert [optim.poly(4, 1.0)(n) for n in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
    assert optim.poly(100)(99) == pytest.approx(0.01**0.9)
    assert [optim.warm_up(4, optim.constant())(n) for n in range(5)] == [0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("name", ["decay", "adam", "groups"])
def test_state_goes_on_bit_for_bit(name):
    straight, halves = parameters(np.float32), parameters(np.float32)
    optimizer, first = MAKERS[name](optim, straight), MAKERS[name](optim, halves)
    for step in range(4):
        give_gradients(straight, step)
        optimizer.step()
    for step in range(2):
        give_gradients(halves, step)
        first.step()
    second = MAKERS[name](optim, halves)
    second.load_state_dict(first.state_dict())
    for step in range(2, 4):
        give_gradients(halves, step)
        second.step()
    for a, b in zip(straight, halves, strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_state_is_a_copy_and_flat():
    tensors = parameters()[:2]
    adam = optim.Adam(tensors)
    state = adam.state_dict()
    assert sorted(state) == ["0.mean", "0.square", "0.step", "1.mean", "1.square", "1.step"]
    give_gradients(tensors, 0)
    adam.step()
    assert state["0.step"][0] == 0
    assert not state["0.mean"].any()


def test_a_refused_state_changes_nothing():
    adam = optim.Adam(parameters()[:2])
    before = adam.state_dict()
    with pytest.raises(DataError, match=r"expected the state of Adam for 2 .* 0\.mean"):
        adam.load_state_dict(optim.SGD(parameters()[:2]).state_dict())
    wrong = {name: array + 1 for name, array in before.items()}
    wrong["1.square"] = np.zeros(7)
    with pytest.raises(DataError, match=r"expected 1\.square as float64 \(3,\); got .* \(7,\)"):
        adam.load_state_dict(wrong)
    for name, array in adam.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


# ---- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": -1}, "expected lr to be a finite number of at least 0; got -1"),
        ({"lr": float("nan")}, "expected lr to be .* got nan"),
        ({"weight_decay": float("inf")}, "expected weight_decay .* got inf"),
        ({"momentum": 1.0}, r"momentum and betas to lie in \[0, 1\); got 1.0"),
    ],
)
def test_options_out_of_range(options, text):
    with pytest.raises(ConfigError, match=text):
        optim.SGD(parameters(), **options)


def test_betas_out_of_range():
    with pytest.raises(ConfigError, match=r"got 1\.5"):
        optim.Adam(parameters(), betas=(0.9, 1.5))


def test_what_cannot_be_trained():
    w = parameters()[0]
    with pytest.raises(ConfigError, match="expected parameters to train; got 0, none of which"):
        optim.SGD([])
    with pytest.raises(ConfigError, match="expected tensors as parameters; got ndarray"):
        optim.SGD([w.data])
    with pytest.raises(ConfigError, match="expected parameters to train; got 1, none of which"):
        optim.SGD([td.tensor([1.0])])
    with pytest.raises(ConfigError, match="expected leaves as parameters"):
        optim.SGD([w * 2])
    with pytest.raises(ConfigError, match="expected each parameter once"):
        optim.SGD([w, w])
    with pytest.raises(ConfigError, match="got one on meta"):
        optim.SGD([td.tensor([1.0], requires_grad=True, device="meta")])
    with pytest.raises(ConfigError, match=r"expected the options lr, .* got nesterov"):
        optim.SGD([{"params": [w], "nesterov": True}])


@pytest.mark.parametrize(
    ("params", "got"),
    [
        (nn.Conv2d(1, 1, 3), "Conv2d"),
        (nn.Conv2d(1, 1, 3).parameters, "a method"),
        (nn.Conv2d(1, 1, 3).weight, "Parameter"),
        ({"params": []}, "dict"),
        (None, "NoneType"),
    ],
)
def test_what_has_no_parameters_is_refused(params, got):
    with pytest.raises(ConfigError, match=f"^expected parameters to train; got {got}. Pass module"):
        optim.SGD(params, 0.1)
