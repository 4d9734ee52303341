"""Files of weights beside those who made the formats: PyTorch writes and reads, OpenCV reads."""

import numpy as np
import pytest
from caffe_files import caffemodel, legacy_layout, pickled_state, zip_layout
from test_weight_files import STATE

import tinydilate as td
from tinydilate import nn
from tinydilate.io.weights import load_weights, read_weights

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
cv2 = pytest.importorskip("cv2")


def tensors():
    """A state with all that a state can hold."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ConvTranspose2d(4, 2, 3)
    )
    line = torch.arange(24.0)
    return {
        **network.state_dict(),
        "turned": line.reshape(4, 6).T,
        "part": line.reshape(4, 6)[1:3, 2:5],
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": line[3:5].expand(4, 2),
        "shared": line,
        "nothing": torch.empty(0, 3),
        "one": torch.tensor(2.5),
        "half": torch.randn(3).half(),
        "brain": torch.randn(3, 2).bfloat16(),
        "double": torch.randn(2).double(),
        "flags": torch.tensor([True, False]),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "short": torch.tensor([-3], dtype=torch.int16),
    }


def same(weights, state):
    assert set(weights) == set(state)
    for name, tensor in state.items():
        assert weights[name].shape == tuple(tensor.shape), name
        expected = tensor.detach().double().numpy()
        np.testing.assert_array_equal(weights[name].astype(np.float64), expected, err_msg=name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_pytorch_writes(tmp_path, zipped, protocol):
    options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    torch.manual_seed(0)
    state = tensors()
    optimizer = {"state": {0: {"momentum": torch.ones(2)}}, "groups": [{"lr": 0.1, "on": [0]}]}
    parameters = torch.nn.Linear(2, 3).state_dict(keep_vars=True)  # not detached
    for saved, expected in [
        (state, state),
        ({"epoch": 3, "state_dict": state, "optimizer": optimizer}, state),
        ({f"module.{name}": tensor for name, tensor in state.items()}, state),
        (parameters, parameters),
    ]:
        torch.save(saved, tmp_path / "a.pth", **options)
        same(read_weights(tmp_path / "a.pth"), expected)


@pytest.mark.parametrize("kind", ["<f4", "<f8", "<f2", "bfloat16"])
def test_pytorch_reads_what_the_tests_write(tmp_path, kind):
    """So these are true files, and what we read of them is what they say."""
    width = {"<f4": 4, "<f8": 8}.get(kind, 2)
    zip_layout(tmp_path / "a", *pickled_state(STATE, kind))
    content = legacy_layout(*pickled_state(STATE, kind, legacy=True), width)
    (tmp_path / "b").write_bytes(content)
    for name in ("a", "b"):
        same(read_weights(tmp_path / name), torch.load(tmp_path / name, weights_only=True))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_network_of_pytorchs(tmp_path, zipped):
    """The same weights in both: the same scores."""
    torch.manual_seed(0)
    theirs = torch.nn.Sequential()
    theirs.add_module("a", torch.nn.Conv2d(3, 8, 3, dilation=2))
    theirs.add_module("b", torch.nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=8))
    torch.save(theirs.state_dict(), tmp_path / "a", _use_new_zipfile_serialization=zipped)
    ours = nn.Sequential(
        ("a", nn.Conv2d(3, 8, 3, dilation=2)),
        ("b", nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=8)),
    )
    load_weights(ours, tmp_path / "a")
    image = np.random.default_rng(0).normal(size=(1, 3, 12, 13)).astype(np.float32)
    expected = theirs(torch.from_numpy(image)).detach().numpy()
    with td.no_grad():
        np.testing.assert_allclose(ours(image).data, expected, rtol=0, atol=1e-5)


PROTOTXT = """
name: "small"
input: "data" input_dim: 1 input_dim: 3 input_dim: 12 input_dim: 13
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 dilation: 2 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "up" type: "Deconvolution" bottom: "conv" top: "up"
  convolution_param { num_output: 4 kernel_size: 4 stride: 2 pad: 1 group: 4 bias_term: false } }
layer { name: "final" type: "Convolution" bottom: "up" top: "final"
  convolution_param { num_output: 2 kernel_size: 1 } }
"""


@pytest.mark.parametrize(
    "options",
    [{}, {"legacy": True}, {"v1": True, "legacy": True}, {"pieces": 3}, {"packed": False}],
    ids=str,
)
def test_opencv_reads_the_same_network(tmp_path, options):
    random = np.random.default_rng(0)
    shapes = {
        "conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "up.weight": (4, 1, 4, 4),
        "final.weight": (2, 4, 1, 1), "final.bias": (2,),
    }  # fmt: skip
    state = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    ours = nn.Sequential(
        ("conv", nn.Conv2d(3, 4, 3, dilation=2, relu=True)),
        ("up", nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4, bias=False)),
        ("final", nn.Conv2d(4, 2, 1)),
    )
    (tmp_path / "net.prototxt").write_text(PROTOTXT)
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(state, **options))
    paths = [str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")]
    theirs = cv2.dnn.readNetFromCaffe(*paths)
    image = random.normal(size=(1, 3, 12, 13)).astype(np.float32)
    theirs.setInput(image)
    expected = theirs.forward()
    load_weights(ours, tmp_path / "net.caffemodel")
    with td.no_grad():
        found = ours(image).data
    assert found.shape == expected.shape == (1, 2, 16, 18)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
