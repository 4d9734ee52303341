"""The published networks beside the same networks in PyTorch, and read by OpenCV's Caffe importer.

PyTorch's are written down here, from the published files, and get their weights by name. OpenCV
reads files in Caffe's own format that are written here from our layers.
"""

import gc
import math
from collections import OrderedDict

import numpy as np
import pytest

import tinydilate as td
from tinydilate import functional as F
from tinydilate import models, nn, optim
from tinydilate.classes import IGNORE
from tinydilate.models import PUBLISHED

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
cv2 = pytest.importorskip("cv2")


@pytest.fixture(scope="module", autouse=True)
def prepared():
    """PyTorch's first optimiser loads its compiler, which changes the environment, once."""
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


SHARE = 32  # of the published maps, that the narrow networks have


def narrowed(rows):
    return [
        row._replace(maps=row.maps // SHARE) if isinstance(row, models.Conv) else row
        for row in rows
    ]


@pytest.fixture
def narrow(monkeypatch):
    """Front ends with few maps; context modules stay as they are."""

    def front_end(classes, **options):
        return models.front_end(classes, rows=narrowed(models.VGG_16), **options)

    monkeypatch.setattr("tinydilate.models.published.front_end", front_end)


def with_random_weights(network, seed=0):
    """Weights and biases that keep signals alive in every layer, drawn in place."""
    random = np.random.default_rng(seed)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            fan_in = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else 100
            random.standard_normal(dtype=np.float32, out=parameter.data)
            parameter.data *= np.float32(math.sqrt(2 / fan_in))
        assert parameter.data.any(), name
    return network


def image_of(height, width, seed=1):
    random = np.random.default_rng(seed)
    return random.uniform(-120, 140, (1, 3, height, width)).astype(np.float32)


def relative_error(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# ---- in PyTorch ------------------------------------------------------------------------------

CONTEXTS = {  # prefix, dilations, maps in units of the classes, padding of each layer
    "dilation8_voc": ("ct", (1, 1, 2, 4, 8, 16, 1), (2, 2, 4, 8, 16, 32, 32), (33, *[0] * 6)),
    "dilation8_camvid": ("ctx", (1, 1, 2, 4, 8, 16, 1), [1] * 7, (1, 1, 2, 4, 8, 16, 1)),
    "dilation7_kitti": ("ctx", (1, 1, 2, 4, 8, 1), [1] * 6, (1, 1, 2, 4, 8, 1)),
    "dilation10_cityscapes": (
        "ctx", (1, 1, 2, 4, 8, 16, 32, 64, 1), [1] * 9, (1, 1, 2, 4, 8, 16, 32, 64, 1),
    ),
}  # fmt: skip


def in_torch(name, classes, share=1):
    """The network as its published file has it; layers have no numbers yet."""
    layers, maps = OrderedDict(), 3

    def convolution(layer, kernel, dilation, out, padding=0, relu=True):
        nonlocal maps
        layers[layer] = torch.nn.Conv2d(maps, out, kernel, 1, padding, dilation, device="meta")
        if relu:
            layers[f"relu_{layer}"] = torch.nn.ReLU()
        maps = out

    for block, (times, out, dilation) in enumerate(
        [(2, 64, 1), (2, 128, 1), (3, 256, 1), (3, 512, 1), (3, 512, 2)], 1
    ):
        for place in range(times):
            convolution(f"conv{block}_{place + 1}", 3, dilation, out // share)
        if block <= 3:
            layers[f"pool{block}"] = torch.nn.MaxPool2d(2, 2, ceil_mode=True)
    convolution("fc6", 7, 4, 4096 // share)
    layers["drop6"] = torch.nn.Dropout(0.5)
    convolution("fc7", 1, 1, 4096 // share)
    layers["drop7"] = torch.nn.Dropout(0.5)
    final = "fc-final" if name == "dilation8_voc" else "final"
    convolution(final, 1, 1, classes, relu=False)
    prefix, dilations, widths, paddings = CONTEXTS[name]
    block = {1: 1, 2: 2, 4: 3, 8: 4, 16: 5, 32: 6, 64: 7}
    for n, (dilation, wide, padding) in enumerate(zip(dilations, widths, paddings, strict=True)):
        last = n == len(dilations) - 1
        layer = "fc1" if last else f"conv{block[dilation]}_{2 if n == 1 else 1}"
        convolution(f"{prefix}_{layer}", 3, dilation, wide * classes, padding)
    convolution(f"{prefix}_final", 1, 1, classes, relu=False)
    if name == "dilation10_cityscapes":
        layers["ctx_upsample"] = torch.nn.ConvTranspose2d(
            classes, classes, 16, 8, 4, groups=classes, bias=False, device="meta"
        )
    return torch.nn.Sequential(layers)


def twin_of(network, name, share=1, copy=True):
    """PyTorch's network with the weights of ours, by their names; a copy or the same memory."""
    theirs = in_torch(name, len(PUBLISHED[name].classes.names), share)
    arrays = {key: parameter.data for key, parameter in network.named_parameters()}
    tensors = {
        key: torch.from_numpy(array.copy() if copy else array) for key, array in arrays.items()
    }
    theirs.load_state_dict(tensors, assign=True)  # strict: the names must be the same ones
    for key, parameter in theirs.named_parameters():
        parameter.requires_grad = key != "ctx_upsample.weight"
    return theirs


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_scores_loss_and_a_step_of_narrow_networks(name):
    network = with_random_weights(PUBLISHED[name].build(weights="zeros")).eval()
    theirs = twin_of(network, name, SHARE).eval()  # without dropout, which draws differently
    image = image_of(372 + 16, 372 + 20)  # 2 x 2.5 cells
    scores, expected = network(image), theirs(torch.from_numpy(image))
    assert scores.shape == tuple(expected.shape)
    assert scores.shape[2:] == ((16, 24) if name == "dilation10_cityscapes" else (2, 3))
    assert relative_error(scores.data, expected.detach().numpy()) <= 1e-4

    scale = np.float32(1 / np.abs(scores.data).max())  # so that no class has all of it
    classes = scores.shape[1]
    labels = np.random.default_rng(2).integers(0, classes, (1, *scores.shape[2:]))
    labels[0, 0, 0] = IGNORE
    loss = F.cross_entropy(scores * scale, labels, ignore_index=IGNORE)
    wanted = torch.nn.functional.cross_entropy(
        expected * scale, torch.from_numpy(labels), ignore_index=IGNORE
    )
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)

    before = network.state_dict()
    recipe = {"lr": 1.0, "momentum": 0.9, "weight_decay": 5e-4}
    ours_sgd = optim.SGD([p for p in network.parameters() if p.requires_grad], **recipe)
    their_sgd = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], **recipe)
    loss.backward()
    wanted.backward()
    ours_sgd.step()
    their_sgd.step()
    for key, parameter in theirs.named_parameters():
        after = network.state_dict()[key]
        step = parameter.detach().numpy() - before[key]
        if key == "ctx_upsample.weight":
            assert np.array_equal(after, before[key])
            continue
        assert relative_error(after - before[key], step) <= 1e-3, key
        assert relative_error(after, parameter.detach().numpy()) <= 1e-4, key


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_border_is_numpys_reflection(name):
    network = with_random_weights(PUBLISHED[name].build(weights="zeros", border=True)).eval()
    theirs = twin_of(network, name, SHARE).eval()
    image = image_of(9, 20)  # smaller than its border
    padded = np.pad(image, ((0, 0), (0, 0), (186, 186), (186, 186)), mode="reflect")
    with td.no_grad(), torch.no_grad():
        ours, expected = network(image), theirs(torch.from_numpy(padded))
    assert relative_error(ours.data, expected.numpy()) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dilation8_voc"])
def test_a_whole_network_of_141_million_parameters(name):
    """All its maps. Both sides read the same weights, so 1.6 GB will do."""
    network = with_random_weights(PUBLISHED[name].build(weights="zeros")).eval()
    theirs = twin_of(network, name, copy=False).eval()
    image = image_of(372 + 8, 372 + 16)
    with td.no_grad(), torch.no_grad():
        ours, expected = network(image), theirs(torch.from_numpy(image))
    assert ours.shape == (1, 21, 1, 2)
    assert relative_error(ours.data, expected.numpy()) <= 1e-4
    del network, theirs
    gc.collect()


# ---- as a Caffe file, read by OpenCV ---------------------------------------------------------


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, content):
    """A field of a protobuf message: text, bytes (a message), or packed floats."""
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array):
    shape = field(1, b"".join(map(varint, array.shape)))
    data = array.astype("<f4").tobytes()
    return field(7, shape) + field(5, data)  # BlobProto: shape = 7, data = 5


def as_caffe(network, size):
    """(prototxt, caffemodel) of a line of layers."""
    _, channels, height, width = size
    text = [f'input: "data" input_dim: 1 input_dim: {channels}']
    text.append(f"input_dim: {height} input_dim: {width}")
    messages, bottom = [], "data"
    for name, layer in network.named_children():
        kind, told = caffe_parameters(layer)
        text.append(f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}"')
        text.append(f"{told} }}")
        blobs = [parameter.data for parameter in layer.parameters()]
        parts = [field(1, name), field(2, kind), field(3, bottom), field(4, name)]
        messages.append(field(100, b"".join([*parts, *(field(7, blob(b)) for b in blobs)])))
        if getattr(layer, "relu", False):
            text.append(
                f'layer {{ name: "relu_{name}" type: "ReLU" bottom: "{name}" top: "{name}" }}'
            )
        bottom = name
    return "\n".join(text).encode(), b"".join(messages)


def caffe_parameters(layer):
    if isinstance(layer, nn.MaxPool2d):
        return "Pooling", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }"
    if isinstance(layer, nn.Dropout):
        return "Dropout", f"dropout_param {{ dropout_ratio: {layer.p} }}"
    window, groups = layer.window, layer.groups
    told = (
        f"num_output: {layer.out_channels} kernel_size: {window.kernel[0]} group: {groups} "
        f"pad: {window.before[0]} stride: {window.stride[0]} dilation: {window.dilation[0]} "
        f"bias_term: {str(layer.bias is not None).lower()}"
    )
    kind = "Deconvolution" if isinstance(layer, nn.ConvTranspose2d) else "Convolution"
    return kind, f"convolution_param {{ {told} }}"


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_opencv_computes_the_same_from_a_caffe_file(name):
    network = with_random_weights(PUBLISHED[name].build(weights="zeros")).eval()
    image = image_of(372 + 16, 372 + 20)
    prototxt, caffemodel = as_caffe(network, image.shape)
    theirs = cv2.dnn.readNetFromCaffe(
        np.frombuffer(prototxt, np.uint8), np.frombuffer(caffemodel, np.uint8)
    )
    theirs.setInput(image)
    expected = theirs.forward()
    with td.no_grad():
        ours = network(image).data
    assert ours.shape == expected.shape  # 2.5 cells wide: 3, because both pool by ceil
    assert relative_error(ours, expected) <= 1e-4
