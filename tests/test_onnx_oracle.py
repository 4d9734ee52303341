"""ONNX files, run by others: what comes out is what tinydilate computes.

They are run by ONNX's own reference evaluator and, where it is installed, by ONNX Runtime.
"""

import importlib.util

import numpy as np
import pytest
from cases import CASES, Case
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tinydilate
import tinydilate.functional as F
from tinydilate import models, nn, no_grad, tensor
from tinydilate.errors import ConfigError
from tinydilate.functional.padding import reflect_border
from tinydilate.io.onnx import export_onnx

pytestmark = pytest.mark.oracle
onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
reference = pytest.importorskip("onnx.reference")


def results(path, image):
    """(engine, what comes out) for each engine that is here; the file is checked first."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    session = reference.ReferenceEvaluator(model, new_ops=[ConvTranspose])
    yield "evaluator", session.run(None, {"input": image})
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # warnings tell that a shape's name fits no other
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        yield "ONNX Runtime", session.run(None, {"input": image})


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
    network.eval()
    for each in (shape, *others):
        image = np.random.default_rng(rng).normal(size=each).astype(dtype)
        with no_grad():
            ours = network(tensor(image))
        ours = ours if isinstance(ours, tuple) else (ours,)
        for _, theirs in results(path, image):
            assert len(theirs) == len(ours)
            for a, b in zip(ours, theirs, strict=True):
                assert b.dtype == a.dtype
                compare(a.numpy(), b, tolerance)
    return exported, onnx.load(path)


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
    for _, (theirs,) in results(path, first):
        compare(ours.numpy(), theirs)


# ---- networks --------------------------------------------------------------------------------


def small(context=True, **options):
    front = models.small_front_end(5, rng=0, **options)
    behind = models.context(5, "basic", dilations=(1, 2, 1), noise=0.1, rng=1) if context else None
    return models.FrontEndWithContext(front, behind)


@pytest.mark.parametrize("size", [(12, 11), (7, 8)])  # wider and narrower than the border of 10
@pytest.mark.parametrize("context", [True, False])
def test_the_demos_network(tmp_path, context, size):
    agree(small(context), tmp_path / "a.onnx", (2, 1, *size))


def test_the_demos_network_on_images_of_any_size(tmp_path):
    """Sizes that the stride divides and that it does not, down to one pixel."""
    axes = ("batch", "height", "width")
    others = [(1, 1, 12, 9), (3, 1, 9, 12), (1, 1, 5, 6), (1, 1, 1, 1)]
    exported, model = agree(small(), tmp_path / "a.onnx", (2, 1, 16, 18), *others, dynamic=axes)
    assert exported.inputs == {"input": ("batch", 1, "height", "width")}
    assert exported.outputs == {"output": ("batch", 5, "height", "width")}
    (output,) = model.graph.output
    dims = [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim]
    assert dims == ["batch", 5, "height", "width"]


def shrunken(published, border):
    """A published network with a sixty-fourth of its maps: the same windows, names and order."""
    layers = []
    for name, layer in published.build(border=border, device="meta").named_children():
        if isinstance(layer, nn.Conv2d):
            classes = len(published.classes.names)
            maps = [n if n in (3, classes) else max(2, n // 64) for n in
                    (layer.in_channels, layer.out_channels)]  # fmt: skip
            if name == "conv1_1":
                maps[0] = 3
            window = layer.window
            kernel = (3, 3) if name == "fc6" else window.kernel
            layer = nn.Conv2d(
                *maps, kernel, dilation=window.dilation, padding=window.before, relu=layer.relu,
                rng=0,
            )  # fmt: skip
        elif isinstance(layer, nn.ConvTranspose2d):
            layer = models.bilinear_upsampling(layer.in_channels, 8)
        layers.append((name, layer))
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("name", "border"),
    [("dilation8_voc", False), ("dilation7_kitti", True), ("dilation10_cityscapes", False)],
)
def test_published_networks_with_fewer_maps(tmp_path, name, border):
    network = shrunken(models.PUBLISHED[name], border)
    size = (20, 12) if border else (260, 268)
    _, model = agree(network, tmp_path / "a.onnx", (1, 3, *size))
    weights = {tensor.name for tensor in model.graph.initializer}
    assert set(network.state_dict()) <= weights
    assert "conv1_1/Conv" in {node.name for node in model.graph.node}


def test_fcn_with_a_skip(tmp_path):
    """Branches that meet, after transposed convolutions and cuts."""
    network = models.small_fcn(3, rng=0)
    agree(network, tmp_path / "a.onnx", (1, 1, 20, 24))


# ---- geometry of any size --------------------------------------------------------------------


def enlarge_back(x):
    return F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:], mode="bilinear")


GROWING = {
    "mean of all pixels": lambda x: x.mean(dim=(2, 3)),
    "largest pixel": lambda x: x.max(dim=(2, 3), keepdim=True),
    "enlarged to the image": enlarge_back,
    "enlarged by a factor": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "corners aligned": lambda x: F.interpolate(
        x, scale_factor=3, mode="bilinear", align_corners=True
    ),
    "without the edge": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)[:, :, 1:-1, :-1],
    "the last rows backwards": lambda x: x[:, :, -3:][:, :, ::-1],
    "pixels in a row": lambda x: x.flatten(2).transpose(1, 2),
    "pixels as a batch": lambda x: x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]),
    "unfolded": lambda x: F.unfold(x, 3, dilation=2, padding=2),
    "folded": lambda x: F.fold(F.unfold(x, 2, padding=1, stride=1), x.shape[2:], 2, padding=1),
    "replicated border": lambda x: F.pad(x, (1, 2, 3, 4), "replicate"),
    "reflected border": lambda x: reflect_border(x, 7, 0, 1, 9),
    "softmax": lambda x: x.softmax(1) + x.log_softmax(3),
    "padded pooling": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "even pooling, padded": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "arithmetic": lambda x: (2 - 3 * x) / 7 + (x * x + 1) ** 0.5 - (-x).exp(),
}


@pytest.mark.parametrize("name", GROWING)
def test_images_of_any_size(tmp_path, name):
    others = [(1, 3, 8, 12), (4, 3, 13, 6)]
    if name == "padded pooling":  # the evaluator shifts a padded ceil_mode: look at the shape only
        exported = export_onnx(
            Run(GROWING[name]), tmp_path / "a.onnx", (2, 3, 9, 7), dynamic=("height",)
        )
        assert exported.operators == {"AveragePool": 1}
        return
    axes = ("batch", "height", "width")
    agree(Run(GROWING[name]), tmp_path / "a.onnx", (2, 3, 9, 7), *others, dynamic=axes)


@given(size=st.tuples(st.integers(1, 5), st.integers(1, 5)), width=st.integers(0, 23))
def test_any_reflection_of_any_image(tmp_path_factory, size, width):
    """Narrow ones by one Pad, wide ones by several in a row."""
    path = tmp_path_factory.getbasetemp() / "border.onnx"
    network = Run(lambda x: reflect_border(x, width, 2 * width, 1, width))
    agree(network, path, (1, 2, *size), tolerance=0)


def test_several_outputs_and_the_input_itself(tmp_path):
    network = Run(lambda x: (x.relu(), x, x.relu() + 1))
    exported, _ = agree(network, tmp_path / "a.onnx", (2, 3))
    assert list(exported.outputs) == ["output", "output_2", "output_3"]


def test_float64_and_casts(tmp_path):
    network = Run(lambda x, w: (x @ w).to(np.float32), np.eye(3))
    agree(network, tmp_path / "a.onnx", (2, 3), dtype=np.float64)


def test_buffers_and_shared_weights(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            self.conv = nn.Conv2d(2, 2, 1, rng=0)
            self.mean = nn.Buffer(np.ones((2, 1, 1), np.float32))

        def forward(self, x):
            return self.conv(self.conv(x - self.mean * 2))

    _, model = agree(Shared(), tmp_path / "a.onnx", (1, 2, 3, 3))
    assert {t.name for t in model.graph.initializer} == {
        "conv.weight", "conv.bias", "mean", "constant",
    }  # fmt: skip


def test_metadata(tmp_path):
    facts = {"classes": ["road", "tree"], "mean": [1.5, 2.5], "name": "Zürich"}
    export_onnx(small(), tmp_path / "a.onnx", (1, 1, 8, 8), metadata=facts)
    model = onnx.load(tmp_path / "a.onnx")
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert found == {"classes": '["road", "tree"]', "mean": "[1.5, 2.5]", "name": "Zürich"}
    assert model.producer_name == "tinydilate"
    assert model.producer_version == tinydilate.__version__


def test_dropout_vanishes_and_the_network_stays_in_training(tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 1, 1, rng=0), nn.Dropout(0.5))
    exported = export_onnx(network, tmp_path / "a.onnx", (1, 1, 4, 4))
    assert exported.operators == {"Conv": 1}
    assert network.training
    assert network[1].training
    agree(network, tmp_path / "a.onnx", (1, 1, 4, 4))


def test_a_pooling_that_cannot_be_said_for_any_size(tmp_path):
    network = Run(lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True))
    agree(network, tmp_path / "a.onnx", (1, 1, 5, 7))
    with pytest.raises(ConfigError, match="ceil_mode whose padding depends on the image's size"):
        export_onnx(network, tmp_path / "a.onnx", (1, 1, 5, 7), dynamic=("width",))


# ---- PyTorch and safetensors -----------------------------------------------------------------


def test_pytorch_loads_the_state_dictionary(tmp_path):
    from tinydilate.io.pth_writer import save_state_dict

    arrays = {
        "weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        "big-endian": np.arange(300, dtype=">i8")[::-2],
        "number": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "Zürich": np.array([True, False]),
        **{kind: np.arange(5).astype(kind) for kind in ("u1", "i1", "i2", "i4", "f2")},
    }
    path = tmp_path / "net.pth"
    save_state_dict(path, arrays)
    for options in ({}, {"mmap": True}):
        state = torch.load(path, weights_only=True, **options)
        assert list(state) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(state[name].numpy(), array)
            assert state[name].numpy().dtype == array.dtype.newbyteorder("=")


def test_a_twin_in_pytorch_computes_the_same(tmp_path):
    from safetensors.torch import load_file

    from tinydilate.io.checkpoint import save_checkpoint
    from tinydilate.io.pth_writer import save_state_dict

    network = nn.Sequential(
        ("conv1", nn.Conv2d(3, 4, 3, dilation=2, rng=0)),
        ("conv2", nn.Conv2d(4, 2, 1, bias=False, rng=1)),
    )
    twin = torch.nn.Sequential()
    twin.add_module("conv1", torch.nn.Conv2d(3, 4, 3, dilation=2))
    twin.add_module("conv2", torch.nn.Conv2d(4, 2, 1, bias=False))
    save_state_dict(tmp_path / "net.pth", network.state_dict())
    save_checkpoint(tmp_path / "net.safetensors", network.state_dict(), {"classes": 2})
    image = np.random.default_rng(0).normal(size=(1, 3, 9, 9)).astype(np.float32)
    ours = network(tensor(image)).detach().numpy()
    for state in (
        torch.load(tmp_path / "net.pth", weights_only=True),
        load_file(tmp_path / "net.safetensors"),
    ):
        twin.load_state_dict(state)
        theirs = twin(torch.from_numpy(image)).detach().numpy()
        compare(ours, theirs)
