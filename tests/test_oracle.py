"""Every public function beside its namesake in PyTorch, with the same arguments."""

import importlib

import numpy as np
import pytest
from cases import CASES, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import close, run

import tinydilate
import tinydilate.functional as F

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")

NAMED = [case for case in CASES if case.torch]


def namesake(case: Case):
    """PyTorch's function, taking arrays among its options as tensors."""
    module, _, name = case.torch.rpartition(".")
    function = getattr(importlib.import_module(module), name)

    def call(*arguments, **options):
        options = {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in options.items()
        }
        return function(*arguments, **options)

    return call


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case", NAMED, ids=[case.name for case in NAMED])
@settings(max_examples=60)
@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]))
def test_values_and_gradients_are_those_of_the_namesake(case, data, dtype):
    call = data.draw(case.calls)
    arrays = [array.astype(dtype) for array in call.arrays]
    theirs = [torch.tensor(array, requires_grad=case.differentiable) for array in arrays]
    expected = case.run(namesake(case), theirs, call)
    leaves, out = run(case, arrays, call, case.differentiable)
    close(out.data, expected.detach().numpy(), dtype)
    assert str(expected.dtype) == f"torch.{out.dtype}"
    if not case.differentiable:
        return
    gradient = np.random.default_rng(0).normal(size=out.shape).astype(dtype)
    out.backward(gradient)
    expected.backward(torch.from_numpy(gradient))
    for leaf, other in zip(leaves, theirs, strict=True):
        desired = np.zeros(leaf.shape) if other.grad is None else other.grad.numpy()
        close(leaf.grad.data, desired, dtype)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_positions_of_maxima_are_pytorchs(ceil_mode, dilation):
    x = np.random.default_rng(0).integers(0, 4, (2, 3, 9, 8)).astype(np.float32)  # many ties
    options = {"stride": 2, "padding": 1, "dilation": dilation, "ceil_mode": ceil_mode}
    ours, where = F.max_pool2d(x, 3, **options, return_indices=True)
    theirs, there = torch.nn.functional.max_pool2d(
        torch.from_numpy(x), 3, **options, return_indices=True
    )
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    np.testing.assert_array_equal(where.data, there.numpy())


def test_ties_share_the_gradient_of_a_maximum_as_in_amax():
    x = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    ours, theirs = tinydilate.tensor(x, True), torch.tensor(x, requires_grad=True)
    F.max(ours, 1).sum().backward()
    torch.amax(theirs, 1).sum().backward()
    np.testing.assert_array_equal(ours.grad.numpy(), theirs.grad.numpy())


def test_special_numbers_pass_through_as_in_pytorch():
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e38], np.float32)
    for name in ("relu", "exp", "log", "softmax", "log_softmax", "max", "argmax"):
        options = {"dim": 0} if "max" in name else {}
        ours = getattr(F, name)(x, **options).numpy()
        function = "amax" if name == "max" else name
        theirs = getattr(torch, function)(torch.from_numpy(x), **options).numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=name)


def test_a_batch_of_ignored_pixels_has_no_mean():
    x, target = np.zeros((2, 3)), np.full(2, 255)
    ours = F.cross_entropy(x, target, ignore_index=255).item()
    tensors = torch.from_numpy(x), torch.from_numpy(target)
    theirs = torch.nn.functional.cross_entropy(*tensors, ignore_index=255).item()
    assert np.isnan(ours)
    assert np.isnan(theirs)
