"""ONNX files, run by ONNX's own reference evaluator: what comes out is what tinydilate computes."""

import numpy as np
import pytest
from cases import CASES, Case
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tinydilate.functional as F
from tinydilate import nn, no_grad, tensor
from tinydilate.io.onnx import export_onnx

pytestmark = pytest.mark.oracle
onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
reference = pytest.importorskip("onnx.reference")


class ConvTranspose(reference.op_run.OpRun):
    """By PyTorch: the evaluator's own is wrong where groups have more than one map each."""

    op_domain = ""

    def _run(self, x, w, dilations, group, kernel_shape, output_padding, pads, strides, **_):
        rows, columns = len(pads) // 2, len(pads) // 2
        assert pads[:rows] == pads[columns:], "PyTorch pads both sides alike"
        out = torch.conv_transpose2d(
            torch.tensor(x), torch.tensor(w), None, strides, pads[:2], output_padding,
            group, dilations,
        )  # fmt: skip
        return (out.numpy(),)


class Run(nn.Module):
    """A function of an image and of parameters, as a network."""

    def __init__(self, function, *parameters):
        self.function = function
        for n, parameter in enumerate(parameters):
            setattr(self, f"p{n}", nn.Parameter(parameter))

    def forward(self, x):
        return self.function(x, *self.parameters())


def agree(network, path, shape, *others, tolerance=1e-5, dtype=np.float32, rng=0, **options):
    """Export for one shape, then compare on images of this and of other shapes."""
    exported = export_onnx(network, path, shape, **options)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    session = reference.ReferenceEvaluator(model, new_ops=[ConvTranspose])
    network.eval()
    for each in (shape, *others):
        image = np.random.default_rng(rng).normal(size=each).astype(dtype)
        with no_grad():
            ours = network(tensor(image))
        ours = ours if isinstance(ours, tuple) else (ours,)
        theirs = session.run(None, {"input": image})
        assert len(theirs) == len(ours)
        for a, b in zip(ours, theirs, strict=True):
            assert b.dtype == a.dtype
            compare(a.numpy(), b, tolerance)
    return exported, model


def compare(ours, theirs, tolerance=1e-5):
    assert theirs.shape == ours.shape
    size = max(1.0, float(np.abs(ours[np.isfinite(ours)]).max(initial=0.0)))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * size)


# ---- every op --------------------------------------------------------------------------------

# Without a gradient (argmax), a loss, and chance: no part of a network in evaluation.
WITHOUT = {"argmax", "cross_entropy", "cross_entropy-probabilities", "dropout"}


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in WITHOUT], ids=lambda c: c.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the evaluator divides by zero and the like
@settings(max_examples=25)
@given(data=st.data(), opset=st.integers(15, 21))
def test_every_op(tmp_path_factory, case: Case, data, opset):
    call = data.draw(case.calls)
    first, *rest = (array.astype(np.float32) for array in call.arrays)
    assume(first.shape and 0 not in first.shape and all(0 not in array.shape for array in rest))

    def function(x, *parameters):
        return case.run(getattr(F, case.function), (x, *parameters), call)

    network, path = Run(function, *rest), tmp_path_factory.getbasetemp() / "op.onnx"
    with no_grad():
        ours = network(tensor(first))
    assume(0 not in ours.shape)
    export_onnx(network, path, first.shape, opset=opset)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    session = reference.ReferenceEvaluator(model, new_ops=[ConvTranspose])
    (theirs,) = session.run(None, {"input": first})
    compare(ours.numpy(), theirs)
