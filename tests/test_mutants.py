"""The tests of the tests: every planted bug must be noticed by the check that is there for it."""

import importlib

import numpy as np
import pytest
import test_ops
from cases import CASES, conv2d_oracle
from hypothesis import Phase, given, settings
from mutants import MUTANTS, planted

import tinydilate.functional as F
from tinydilate import gemm, kernel, tensor
from tinydilate.window import Window

EXAMPLES = 60
BY_NAME = {case.name: case for case in CASES}


def blocks_of_steps():
    """A product with more steps than a block holds, on one tile."""
    x = np.random.default_rng(0).normal(size=(1, gemm.STEPS + 3, 1, 2)).astype(np.float32)
    w = np.random.default_rng(1).normal(size=(2, gemm.STEPS + 3, 1, 1)).astype(np.float32)
    bias = np.array([5.0, -5.0], np.float32)
    rule = gemm.forward_gather(Window.of(1), (1, 2))
    for relu in (False, True):
        out = gemm.gathered_product(x, w, bias, rule, 1, relu)
        expected = conv2d_oracle(x.astype(float), w.astype(float), bias.astype(float))
        np.testing.assert_allclose(out, np.maximum(expected, 0) if relu else expected, atol=1e-3)


def nan_stays_nan():
    assert np.isnan(F.relu(np.array([np.nan])).numpy()).all()


def first_of_equals():
    assert F.argmax(np.array([1.0, 2.0, 2.0])).item() == 1


def ignored_pixels_do_not_count():
    scores = np.zeros((3, 2))  # each pixel's loss is log 2
    loss = F.cross_entropy(scores, np.array([1, 255, 0]), ignore_index=255)
    np.testing.assert_allclose(loss.item(), np.log(2))


def gradients_share_no_memory():
    a, b = tensor(np.ones(2), requires_grad=True), tensor(np.ones(2), requires_grad=True)
    (a + b).backward(np.ones(2))
    assert not np.shares_memory(a.grad.data, b.grad.data)


def killer(mutant):
    """The check that must fail, as a function without arguments."""
    first, second = mutant.killer.split(" ")
    if first == "test_mutants":
        return globals()[second]
    if first.startswith("test_"):
        return getattr(importlib.import_module(first), second)
    case = BY_NAME[second]
    check = {
        "forward": test_ops.check_forward,
        "slope": test_ops.check_slope,
        "adjoint": test_ops.check_adjoint,
        "twins": test_ops.check_twins,
        "twins32": lambda case, call: test_ops.check_twins(case, call, np.float32),
    }[first]

    @settings(max_examples=EXAMPLES, phases=[Phase.generate])  # one that fails is enough
    @given(call=case.calls)
    def walk(call):
        check(case, call)

    return walk


# A bug shows as a wrong number or as an error of the arithmetic; any other exception would mean
# that the mutant is not a program.
NOTICED = (AssertionError, ValueError, IndexError, RuntimeError)


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.filterwarnings("ignore:divide by zero encountered")
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_planted_bug_is_noticed(mutant):
    check = killer(mutant)
    with planted(mutant, really=False):
        check()  # in plain Python, but sound
    noticed = False
    with planted(mutant):
        try:
            check()
        except BaseExceptionGroup as several:
            noticed = several.split(NOTICED)[1] is None
        except NOTICED:
            noticed = True
    assert noticed, f"the mutant {mutant.name!r} survives {mutant.killer!r}"


def test_planting_leaves_no_trace():
    mutant = MUTANTS[0]
    assert Window.of(3).extent == (3, 3)
    with planted(mutant):
        assert Window.of(3).extent == (2, 3)
    assert Window.of(3).extent == (3, 3)
    assert kernel.tap(1, 1, 1, 0, 2) == 3


def test_no_two_mutants_bear_one_name():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 25
