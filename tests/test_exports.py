"""Exported files, without the programs that read them: bytes, errors, wholeness."""

import errno
import json
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinydilate
import tinydilate.functional as F
from tinydilate import models, nn
from tinydilate.autograd import Op
from tinydilate.cli import main
from tinydilate.errors import ConfigError, DataError, DeviceError, ShapeError
from tinydilate.io import files, onnx, pth_writer
from tinydilate.io import wire_writer as wire
from tinydilate.io.checkpoint import load_checkpoint, save_checkpoint
from tinydilate.io.onnx import export_onnx
from tinydilate.io.onnx_rules import RULES
from tinydilate.io.pth_writer import save_state_dict
from tinydilate.io.weights import read_weights


def small(**options):
    front = models.small_front_end(3, rng=0)
    return models.FrontEndWithContext(front, models.context(3, dilations=(1, 2), rng=1), **options)


class Run(nn.Module):
    def __init__(self, function):
        self.function = function

    def forward(self, x):
        return self.function(x)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- the wire format -------------------------------------------------------------------------
# A decoder that shares nothing with the encoder.


def read_varint(data, at):
    number, shift = 0, 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at


def fields(data):
    """{field: [values]} of a message: whole numbers, bytes, and the four bytes of floats."""
    found, at = {}, 0
    while at < len(data):
        key, at = read_varint(data, at)
        if key & 7 == 0:
            value, at = read_varint(data, at)
        elif key & 7 == 2:
            size, at = read_varint(data, at)
            value, at = bytes(data[at : at + size]), at + size
            assert len(value) == size
        else:
            assert key & 7 == 5
            value, at = bytes(data[at : at + 4]), at + 4
        found.setdefault(key >> 3, []).append(value)
    return found


def joined(message):
    return b"".join(message)


@pytest.mark.parametrize(
    ("number", "code"), [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02")]
)
def test_varints_of_the_specification(number, code):
    assert wire.varint(number).hex() == code


def test_fields_of_the_specification():
    """The examples of protobuf.dev: a = 150 is 08 96 01, b = "testing" is 12 07 and the text."""
    assert joined(wire.whole_number(1, 150)).hex() == "089601"
    assert joined(wire.text(2, "testing")) == b"\x12\x07testing"
    assert joined(wire.inside(3, wire.whole_number(1, 150))).hex() == "1a03089601"


@given(
    whole=st.integers(-(2**63), 2**63 - 1),
    real=st.floats(width=32, allow_nan=False),
    text=st.text(max_size=300),
    data=st.binary(max_size=300),
    number=st.integers(1, 2**20),
)
def test_what_is_written_is_read(whole, real, text, data, number):
    message = [
        *wire.whole_number(number, whole),
        *wire.float_number(number + 1, real),
        *wire.text(number + 2, text),
        *wire.inside(number + 3, [data[:5], memoryview(data)[5:]]),
    ]
    encoded = joined(message)
    assert wire.length(message) == len(encoded)
    read = fields(encoded)
    assert read == {
        number: [whole % 2**64],
        number + 1: [struct.pack("<f", real)],
        number + 2: [text.encode()],
        number + 3: [data],
    }


# ---- ONNX files ------------------------------------------------------------------------------


def graph_of(path):
    model = fields(path.read_bytes())
    return model, fields(model[7][0])


def texts(message, field):
    return [value.decode() for value in message.get(field, [])]


def test_an_onnx_file_says_what_the_network_is(tmp_path):
    network = nn.Sequential(
        ("conv", nn.Conv2d(3, 2, 3, padding=2, dilation=2, relu=True, rng=0)),
        ("pool", nn.MaxPool2d(2, ceil_mode=True)),
    )
    path = tmp_path / "a.onnx"
    done = export_onnx(network, path, (1, 3, 6, 5), metadata={"classes": ["a", "b"]})
    model, graph = graph_of(path)
    assert model[1] == [8]  # IR version
    assert texts(model, 2) == ["tinydilate"]
    assert fields(model[8][0]) == {2: [17]}  # opset
    assert fields(model[14][0]) == {1: [b"classes"], 2: [b'["a", "b"]']}
    nodes = [fields(node) for node in graph[1]]
    assert [texts(node, 4) for node in nodes] == [["Conv"], ["Relu"], ["MaxPool"]]
    assert texts(nodes[0], 1) == ["input", "conv.weight", "conv.bias"]
    assert texts(nodes[1], 1) == texts(nodes[0], 2)
    assert texts(nodes[2], 2) == ["output"]
    said = {}
    for attribute in map(fields, nodes[0][5]):
        said[attribute[1][0].decode()] = attribute.get(8) or attribute[3][0]
    assert said == {
        "kernel_shape": [3, 3], "strides": [1, 1], "pads": [2, 2, 2, 2], "dilations": [2, 2],
        "group": 1,
    }  # fmt: skip
    weights = {fields(t)[8][0].decode(): fields(t) for t in graph[5]}
    assert set(weights) == {"conv.weight", "conv.bias"}
    assert weights["conv.weight"][1] == [2, 3, 3, 3]
    np.testing.assert_array_equal(
        np.frombuffer(weights["conv.weight"][9][0], "<f4").reshape(2, 3, 3, 3),
        network.state_dict()["conv.weight"],
    )
    assert done.size == path.stat().st_size
    assert done.parameters == 2 * 27 + 2
    assert done.operators == {"Conv": 1, "MaxPool": 1, "Relu": 1}
    assert done.inputs == {"input": (1, 3, 6, 5)}
    assert done.outputs == {"output": (1, 2, 3, 3)}


def test_the_weights_are_not_copied(tmp_path, monkeypatch):
    """What is written are views of the parameters."""
    network, seen = small(), []
    monkeypatch.setattr(onnx, "chunks", lambda pieces, watch: seen.extend(pieces) or [])
    export_onnx(network, tmp_path / "a.onnx", (1, 1, 8, 8))
    views = [np.frombuffer(piece, np.uint8) for piece in seen if isinstance(piece, memoryview)]
    for parameter in network.parameters():
        assert any(np.shares_memory(view, parameter.data) for view in views)


@pytest.mark.parametrize("kind", ["onnx", "pth"])
def test_writing_takes_no_memory_beside_the_weights(tmp_path, kind):
    network = nn.Linear(1024, 4096, rng=0)  # 16 MB
    weights = {name: parameter.data for name, parameter in network.named_parameters()}
    tracemalloc.start()
    try:
        if kind == "onnx":
            export_onnx(network, tmp_path / "a", (1, 1024))
        else:
            save_state_dict(tmp_path / "a", weights)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a").stat().st_size > 2**24
    assert peak < 2**22


def test_the_network_is_left_as_it_is(tmp_path):
    network = small()
    network.front_end.requires_grad_(False)
    before = {name: p.requires_grad for name, p in network.named_parameters()}
    state = tinydilate.get_rng_state()
    export_onnx(network, tmp_path / "a.onnx", (1, 1, 8, 8), dynamic=("batch", "height"))
    assert {name: p.requires_grad for name, p in network.named_parameters()} == before
    assert network.training
    assert tinydilate.get_rng_state() == state


def test_equal_networks_give_equal_files(tmp_path):
    for name in ("a", "b"):
        export_onnx(small(), tmp_path / name, (1, 1, 8, 8))
        save_state_dict(tmp_path / f"{name}.pth", small().state_dict())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("dynamic", [(), ("batch",), ("height", "width")])
def test_sizes_that_may_vary_have_names(tmp_path, dynamic):
    done = export_onnx(small(), tmp_path / "a", (1, 1, 9, 8), dynamic=dynamic)
    sizes = {"batch": 1, "height": 9, "width": 8}
    named = {axis: axis if axis in dynamic else size for axis, size in sizes.items()}
    assert done.inputs["input"] == (named["batch"], 1, named["height"], named["width"])
    assert done.outputs["output"] == (named["batch"], 3, named["height"], named["width"])


# ---- refused ---------------------------------------------------------------------------------


class Fancy(Op):
    def forward(self, x):
        return x

    def backward(self, grad):
        return grad


def depends_on_height(x):
    return x * float(x.shape[2])


def other_steps(x):
    return x.relu() if x.shape[2] > 12 else x.exp()


@pytest.mark.parametrize(
    ("function", "options", "text"),
    [
        (
            lambda x: Fancy()(x),
            {},
            r"got the op Fancy in the layer Run\. Give it a rule: from "
            r"tinydilate.io.onnx_rules import rule\. "
            r"Known: Add, AvgPool, Cast, Cat, Convolution, ",
        ),
        (
            F.dropout,
            {},
            r"the op Dropout in the layer Run\. It drops in evaluation too: use nn.Dropout",
        ),
        (
            lambda x: F.cross_entropy(x, np.zeros((1, 4, 4), np.int64)),
            {},
            r"the op CrossEntropy in the layer Run\. It is a loss: export the network",
        ),
        (
            lambda x: x * (x > 0).to(np.float32),
            {},
            r"a tensor of shape \(1, 2, 4, 4\) that no op computed in the layer Run\. Keep",
        ),
        (lambda x: x * np.ones(4, np.float32), {}, r"arrays are all parameters or nn.Buffer"),
        (lambda x: x.argmax(1), {}, r"returns a tensor computed from its image"),
        (lambda x: [x], {}, r"expected a network that returns a tensor"),
        (lambda x: (x + 1, 3), {}, r"a tensor or a tuple of tensors; got Tensor, int"),
        (depends_on_height, {"dynamic": ("height",)}, "a number in Mul that depends on the size"),
        (other_steps, {"dynamic": ("height",)}, "takes other steps where the image is larger"),
        (
            lambda x: x.reshape(x.shape[2] * x.shape[3], 2),
            {"dynamic": ("batch",)},
            r"it failed on one, with ShapeError",
        ),
        (
            lambda x: F.interpolate(x, size=x.shape[2] * x.shape[3]),
            {"dynamic": ("height", "width")},
            "Resize that depends on the size of the image in the layer Run. Export it for one",
        ),
    ],
)
def test_networks_that_cannot_be_said(tmp_path, function, options, text):
    with pytest.raises(ConfigError, match=text):
        export_onnx(Run(function), tmp_path / "a.onnx", (1, 2, 4, 4), **options)
    assert names(tmp_path) == []


def test_the_layer_is_named(tmp_path):
    network = nn.Sequential(("first", nn.ReLU()), ("second", Run(lambda x: Fancy()(x))))
    with pytest.raises(ConfigError, match="the op Fancy in the layer second"):
        export_onnx(network, tmp_path / "a.onnx", (1, 2, 4, 4))


def test_an_op_of_ones_own(tmp_path):
    RULES[Fancy] = lambda sketch, op, inputs, result: sketch.node("Identity", *inputs)
    try:
        done = export_onnx(Run(lambda x: Fancy()(x)), tmp_path / "a.onnx", (1, 2))
    finally:
        del RULES[Fancy]
    assert done.operators == {"Identity": 1}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"dynamic": ("depth",)}, ConfigError, r"out of batch, height, width, as in"),
        ({"dynamic": "batch"}, ConfigError, r"as in \('batch',\); got 'batch'"),
        ({"opset": 14}, ConfigError, "expected an opset from 15 to 21; got 14. 17 is read by"),
        ({"opset": True}, ConfigError, "got True"),
        ({"input_shape": (1, 1, 0, 4)}, ShapeError, "whole numbers of at least 1"),
        ({"input_shape": (1, 8, 8), "dynamic": ("batch",)}, ConfigError, r"got \(1, 8, 8\)"),
        ({"network": lambda x: x}, ConfigError, "expected a network, an nn.Module, to export; got"),
        (
            {"network": models.small_front_end(2, device="meta")},
            DeviceError,
            "got one on the meta device",
        ),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, error, text):
    given = {"network": small(), "path": tmp_path / "a", "input_shape": (1, 1, 8, 8)} | options
    with pytest.raises(error, match=text):
        export_onnx(**given)
    assert names(tmp_path) == []


def test_too_large_for_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "LARGEST", 20_000)
    with pytest.raises(DataError, match=r"less than 2 GiB.*got one of \d+,\d\d\d bytes"):
        export_onnx(small(), tmp_path / "a.onnx", (1, 1, 8, 8))
    assert names(tmp_path) == []


# ---- wholeness -------------------------------------------------------------------------------

WRITERS = {
    "onnx": lambda path: export_onnx(small(), path, (1, 1, 8, 8)),
    "pth": lambda path: save_state_dict(path, small().state_dict()),
    "safetensors": lambda path: save_checkpoint(path, small().state_dict()),
}


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, kind, moment):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if moment == "write":
        if not os.path.exists("/dev/full"):  # noqa: PTH110 - a device
            pytest.skip("needs /dev/full")

        class Full(type(path)):
            def open(self, *_):
                return type(path)("/dev/full").open("wb")

        monkeypatch.setattr(files, "Path", Full)
    else:
        monkeypatch.setattr(files.os, moment, full)
    with pytest.raises(DataError, match=r"expected to write [\d,]+ bytes to .*No space left on"):
        WRITERS[kind](path)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


# ---- .pth ------------------------------------------------------------------------------------

ARRAYS = {
    "weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "big-endian": np.arange(300, dtype=">i8")[::-2],
    "number": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "Zürich": np.array([True, False]),
    "half": np.arange(70_000, dtype=np.float16),
}


def test_our_own_reader_reads_it(tmp_path):
    save_state_dict(tmp_path / "net.pth", ARRAYS)
    weights = read_weights(tmp_path / "net.pth")
    assert weights.format == "pth"
    assert list(weights) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(weights[name], array)
        assert weights[name].dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("large", [False, True])
def test_numbers_begin_at_multiples_of_64(tmp_path, monkeypatch, large):
    """Of members above 2 GiB too, whose header is longer: here what counts as that is small."""
    if large:
        monkeypatch.setattr(pth_writer, "_ZIP64", 100)
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    path = tmp_path / "a.long.name.pth"
    save_state_dict(path, ARRAYS)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        members = archive.infolist()
    assert [m.filename.removeprefix("a.long.name/") for m in members] == [
        "data.pkl", "byteorder", *(f"data/{n}" for n in range(len(ARRAYS))), "version",
    ]  # fmt: skip
    for member in members:
        assert member.compress_type == zipfile.ZIP_STORED
        name, extra = struct.unpack("<HH", data[member.header_offset + 26 :][:4])
        assert (member.header_offset + 30 + name + extra) % 64 == 0


def test_types_that_pytorch_lacks(tmp_path):
    with pytest.raises(DataError, match=r"PyTorch has; x is an array of complex64\. Convert it"):
        save_state_dict(tmp_path / "a.pth", {"x": np.zeros(2, np.complex64)})
    assert names(tmp_path) == []


# ---- the command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tinydilate.classes import VOC
    from tinydilate.config import Config
    from tinydilate.predict import DemoRecipe, save_network

    recipe = DemoRecipe(Config(dilations=(1, 2)), True, VOC.names[:3], VOC.palette[:3], 0.25, 0.5)
    path = tmp_path_factory.mktemp("run") / "joint.safetensors"
    save_network(path, recipe.build(), recipe)
    return path


def test_the_command_writes_all_three(tmp_path, checkpoint, capsys):
    paths = {kind: tmp_path / f"net.{kind}" for kind in ("onnx", "pth", "safetensors")}
    options = [word for kind, path in paths.items() for word in (f"--{kind}", str(path))]
    command = ["export", str(checkpoint), *options, "--size", "10x12", "--dynamic", "batch"]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["weights"] == str(checkpoint)
    assert [each["kind"] for each in told["files"]] == ["ONNX", "PyTorch", "safetensors"]
    assert [each["size"] for each in told["files"]] == [p.stat().st_size for p in paths.values()]
    assert told["files"][0]["graph"]["inputs"] == {"input": ["batch", 1, 10, 12]}
    model, _ = graph_of(paths["onnx"])
    facts = {e[1][0].decode(): e[2][0].decode() for e in map(fields, model[14])}
    assert json.loads(facts["classes"]) == ["background", "aeroplane", "bicycle"]
    assert facts["mean"] == "0.25"
    arrays, note = load_checkpoint(checkpoint)
    assert load_checkpoint(paths["safetensors"])[1] == note
    weights = read_weights(paths["pth"])
    assert set(weights) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(weights[name], array)

    assert main(command) == 0
    table = capsys.readouterr().out
    assert "Inputs: input (batch, 1, 10, 12).\nOutputs: output (batch, 3, 10, 12)." in table
    assert "Operators (opset 17): " in table


def test_a_network_by_name(tmp_path, capsys):
    path = tmp_path / "a.onnx"
    assert main(["export", "context-basic", "--classes", "2", "--onnx", str(path)]) == 0
    assert "Weights: a random start." in capsys.readouterr().out
    assert path.exists()


def test_a_published_network(tmp_path, monkeypatch, capsys):
    """Its facts, and a border of its own; of the front end's first layers, to be quick."""
    published = models.PUBLISHED["dilation8_camvid"]

    def build(self, **options):
        return nn.Sequential(("conv1_1", nn.Conv2d(3, 11, 3, rng=0)))

    monkeypatch.setattr(type(published), "build", build)
    source = tmp_path / "camvid.safetensors"
    note = {"published": {"name": published.name, "classes": list(published.classes.names),
                          "mean": list(published.classes.mean), "border": 186}}  # fmt: skip
    save_checkpoint(source, build(published).state_dict(), note)
    path = tmp_path / "a.onnx"
    for border, size, told in (([], [900, 1100], "186"), (["--border"], [528, 728], "0")):
        assert main(["export", str(source), "--onnx", str(path), *border, "--json"]) == 0
        (written,) = json.loads(capsys.readouterr().out)["files"]
        assert written["graph"]["inputs"] == {"input": [1, 3, *size]}
        model, _ = graph_of(path)
        facts = {e[1][0].decode(): e[2][0].decode() for e in map(fields, model[14])}
        assert facts["border"] == told
        assert facts["input"] == "blue, green, red from 0 to 255, minus the mean"
        assert facts["name"] == "dilation8_camvid"


def test_the_network_of_a_recipe(tmp_path):
    """Its graph has the facts that its plan has."""
    classes = models.PUBLISHED["dilation8_camvid"].classes
    plan = models.Plan(classes, front_end="small", context="basic", dilations=(1, 2, 1))
    source, path = tmp_path / "network.safetensors", tmp_path / "a.onnx"
    save_checkpoint(source, plan.build(rng=0).state_dict(), {"plan": plan.to_note()})
    for border, told in (([], "10"), (["--border"], "0")):
        assert main(["export", str(source), "--onnx", str(path), *border]) == 0
        model, _ = graph_of(path)
        facts = {e[1][0].decode(): e[2][0].decode() for e in map(fields, model[14])}
        assert json.loads(facts["classes"]) == list(classes.names)
        assert json.loads(facts["palette"]) == [list(colour) for colour in classes.palette]
        assert json.loads(facts["mean"]) == list(classes.mean)
        assert (facts["dataset"], facts["stride"], facts["border"]) == ("camvid", "2", told)
        assert facts["input"] == "blue, green, red from 0 to 255, minus the mean"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["demo"], "expected a file to write; got none. Name one or several of --onnx"),
        (["demo", "--onnx", "a", "--dynamic", "depth"], "dynamic axes out of batch, height, width"),
        (["demo", "--onnx", "a", "--opset", "9"], "expected an opset from 15 to 21; got 9"),
        (
            ["demo", "--pth", "a", "--border"],
            "expected --border with a published network; got demo",
        ),
        (["demo", "--pth", "a", "--network", "front"], "expected --network with a run folder"),
        (["no/such/file", "--pth", "a"], "expected a checkpoint at no/such/file; there is no such"),
        (["demmo", "--pth", "a"], "got 'demmo'. Did you mean demo?"),
        (["demo", "--pth", "a", "--dynamic", "height"], "expected --onnx FILE with --dynamic"),
        (["demo", "--pth", "a", "--size", "9"], "got none. Add it, or leave --size out."),
        (["demo", "--pth", "no/such/folder"], "No such file or directory. Make its folder"),
    ],
)
def test_what_the_command_refuses(capsys, words, text):
    assert main(["export", *words]) == 2
    told = capsys.readouterr()
    assert text in told.err
    assert told.out == ""


def test_options_that_do_not_fit_a_run(checkpoint, capsys):
    for option in (["--classes", "3"], ["--border"]):
        assert main(["export", str(checkpoint), "--pth", "a", *option]) == 2
        assert f"Leave {option[0]} out." in capsys.readouterr().err
