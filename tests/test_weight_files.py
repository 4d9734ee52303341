"""Files of weights in every format: what comes out is what went in."""

import struct
import zipfile

import numpy as np
import pytest
from caffe_files import (
    ORDERED,
    blob,
    block,
    c_strides,
    caffemodel,
    layer,
    legacy_layout,
    name_of,
    number,
    pickled_state,
    sizes,
    tag,
    tensor,
    text,
    whole,
    zip_layout,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinydilate.io.checkpoint import save_checkpoint
from tinydilate.io.mapped import MappedFile
from tinydilate.io.weights import read_weights
from tinydilate.io.wire import Wire

RANDOM = np.random.default_rng(0)
STATE = {
    "conv1_1.weight": RANDOM.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "conv1_1.bias": RANDOM.normal(size=4).astype(np.float32),
    "fc6.weight": RANDOM.normal(size=(5, 36)).astype(np.float32),
    "fc6.bias": RANDOM.normal(size=5).astype(np.float32),
}


def write(path, content):
    path.write_bytes(content)
    return path


def same(weights, state, kind=np.float32):
    assert list(weights) == list(state)
    for name, array in state.items():
        assert weights[name].shape == array.shape, name
        np.testing.assert_array_equal(weights[name], array.astype(kind), err_msg=name)


# ---- Caffe -----------------------------------------------------------------------------------

LAYOUTS = [
    {},
    {"v1": True},
    {"legacy": True},
    {"v1": True, "legacy": True},
    {"double": True},
    {"double": True, "both": True},
    {"packed": False},
    {"packed": False, "double": True},
    {"pieces": 3},
]


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_caffe(tmp_path, options):
    weights = read_weights(write(tmp_path / "a", caffemodel(STATE, **options)))
    assert weights.format == "caffemodel"
    same(weights, STATE)
    double = options.get("double", False)
    assert all(each.dtype == (np.float64 if double else np.float32) for each in weights.values())


def test_caffe_lies_in_the_file_until_it_is_wanted(tmp_path):
    weights = read_weights(write(tmp_path / "a", caffemodel(STATE)))
    array = weights["conv1_1.weight"]
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_data_layers_of_the_street_networks(tmp_path):
    """Field 143 is a data layer's there, and another message in today's Caffe."""
    image_label_data = whole(1, 7) + block(2, "list.txt") + tag(15, 5) + bytes(4)
    snapshot = block(1, "street") + layer("data", [], kind="Data", extra=block(143, b"\xff" * 9))
    snapshot += layer("data2", [], kind="Data", extra=block(143, image_label_data))
    snapshot += layer("final", [STATE["fc6.weight"], STATE["fc6.bias"]], extra=whole(144, 2**63))
    weights = read_weights(write(tmp_path / "a", snapshot))
    assert list(weights) == ["final.weight", "final.bias"]
    np.testing.assert_array_equal(weights["final.weight"], STATE["fc6.weight"])


def test_what_is_not_needed_is_stepped_over(tmp_path):
    """Gradients (packed or not), an engine, blobs of solvers: everything that Caffe also writes."""
    diff = block(6, np.ones(5, "<f4").tobytes())
    diff += b"".join(tag(6, 5) + bytes(4) for _ in range(5)) + tag(9, 1) + bytes(8)
    bias = blob(STATE["fc6.bias"]) + diff
    inside = block(1, "fc6") + block(2, "Convolution") + tag(5, 5) + bytes(4)
    inside += block(6, block(1, "shared") + tag(3, 5) + bytes(4)) + whole(10, 1)
    net = block(100, inside + block(7, bias)) + block(8, block(1, varints(1, 3)))
    weights = read_weights(write(tmp_path / "a", block(1, "n") + net))
    same(weights, {"fc6.weight": STATE["fc6.bias"]})


def varints(*values):
    return b"".join(bytes([value]) for value in values)


def test_shapes_that_old_files_wrote(tmp_path):
    """(1, 1, 1, n) is a bias, (1, 1, out, in) an inner product; a convolution keeps its ones."""
    one = {"conv.weight": np.ones((1, 1, 3, 3), np.float32), "conv.bias": np.ones(1, np.float32)}
    model = caffemodel({**STATE, **one}, v1=True, legacy=True)
    weights = read_weights(write(tmp_path / "a", model))
    assert weights["conv.weight"].shape == (1, 1, 3, 3)
    assert weights["conv.bias"].shape == (1,)
    assert weights["fc6.weight"].shape == (5, 36)
    # Where both kinds of shape stand, Caffe takes the old one.
    legacy = blob(STATE["fc6.bias"], legacy=True) + block(7, block(1, varints(9)))
    inside = block(1, "a") + block(7, blob(STATE["fc6.weight"])) + block(7, legacy)
    weights = read_weights(write(tmp_path / "a", block(100, inside)))
    assert weights["a.bias"].shape == (5,)


def test_a_shape_that_is_not_packed(tmp_path):
    shape = block(7, whole(1, 2) + whole(1, 3))
    data = block(5, np.arange(6, dtype="<f4").tobytes())
    weights = read_weights(
        write(tmp_path / "a", block(100, block(1, "a") + block(7, shape + data)))
    )
    np.testing.assert_array_equal(weights["a.weight"], np.arange(6).reshape(2, 3))


def test_further_blobs_have_numbers(tmp_path):
    arrays = [np.ones(2, np.float32)] * 3
    weights = read_weights(write(tmp_path / "a", layer("norm", arrays, kind="BatchNorm")))
    assert list(weights) == ["norm.weight", "norm.bias", "norm.blob2"]


@given(st.data())
def test_any_array_in_any_layout_of_caffe(tmp_path_factory, data):
    array = data.draw(hnp.arrays(np.float32, hnp.array_shapes(max_dims=5, max_side=4)))
    options = data.draw(
        st.fixed_dictionaries(
            {
                "double": st.booleans(),
                "packed": st.booleans(),
                "pieces": st.integers(1, 5),
                "v1": st.booleans(),
            }
        )
    )
    path = tmp_path_factory.mktemp("caffe") / "a"
    weights = read_weights(write(path, layer("x", [array], **options)))
    np.testing.assert_array_equal(weights["x.weight"], array)
    assert weights["x.weight"].shape == array.shape


def test_a_run_of_numbers_is_found_in_one_step():
    """Else a hundred million floats that are not packed would take minutes."""
    run = np.zeros((300, 5), np.uint8)
    run[:, 0] = 5 << 3 | 5
    # Behind it stands as much else as a value takes, so that the run's end has to be seen.
    data = np.concatenate([run.reshape(-1), np.frombuffer(3 * whole(1, 7), np.uint8)])
    fields = list(Wire(data, most_fields=4).fields(0, data.size))
    found = [(field.number, field.repeats, field.step) for field in fields]
    assert found == [(5, 300, 5), *[(1, 1, 0)] * 3]


def test_whole_numbers():
    for value in (0, 1, 127, 128, 300, 2**31, 2**63, 2**64 - 1):
        data = np.frombuffer(whole(1, value), np.uint8)
        assert next(Wire(data).fields(0, data.size)).value == value


# ---- PyTorch ---------------------------------------------------------------------------------


@pytest.fixture(params=["pth", "legacy pth"])
def write_pth(request, tmp_path):
    """Write a state's pickle and storages in one of the layouts; returns what is read of it."""

    def write_and_read(pickle, storages, width=4, order="little"):
        path = tmp_path / "a.pth"
        if request.param == "pth":
            zip_layout(path, pickle, storages, byteorder=order)
        else:
            write(path, legacy_layout(pickle, storages, width, order == "little"))
        weights = read_weights(path)
        assert weights.format == request.param
        return weights

    write_and_read.legacy = request.param != "pth"
    return write_and_read


@pytest.mark.parametrize("kind", ["<f4", "<f8", "<f2"])
def test_pth(write_pth, kind):
    pickle, storages = pickled_state(STATE, kind, write_pth.legacy)
    same(write_pth(pickle, storages, np.dtype(kind).itemsize), STATE, kind)


def test_bfloat16(write_pth):
    pickle, storages = pickled_state(STATE, "bfloat16", write_pth.legacy)
    weights = write_pth(pickle, storages, 2)
    for name, array in STATE.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_allclose(weights[name], array, rtol=2**-7)
        assert (weights[name].view(np.uint32) & 0xFFFF == 0).all()
    assert weights.stored["fc6.bias"].kind == "bfloat16"


def test_the_other_order_of_bytes(write_pth):
    pickle, storages = pickled_state(STATE, "<f4", write_pth.legacy)
    turned = [(key, np.frombuffer(data, "<f4").astype(">f4").tobytes()) for key, data in storages]
    same(write_pth(pickle, turned, order="big"), STATE)


def state_of(*items):
    return b"\x80\x02" + ORDERED + b"(" + b"".join(items) + b"u."


def test_windows_into_one_storage(write_pth):
    """Offsets, transposed strides, repeated rows: all that a view can be."""
    line = np.arange(24, dtype=np.float32)
    windows = {
        "turned": (line.reshape(4, 6).T, (6, 4), (1, 6), 0),
        "part": (line.reshape(4, 6)[1:3, 2:5], (2, 3), (6, 1), 8),
        "row": (line[6:12], (6,), (1,), 6),
        "repeated": (np.stack([line[3:5]] * 4), (4, 2), (0, 1), 3),
        "one": (line[5], (), (), 5),
        "nothing": (line[:0], (0,), (1,), 24),
        "ones": (line[4:8].reshape(1, 4, 1), (1, 4, 1), (99, 1, 7), 4),
    }
    items = [
        text(name) + tensor("0", "<f4", 24, shape, strides, offset, write_pth.legacy)
        for name, (_, shape, strides, offset) in windows.items()
    ]
    weights = write_pth(state_of(*items), [("0", line.tobytes())])
    for name, (expected, *_) in windows.items():
        np.testing.assert_array_equal(weights[name], expected, err_msg=name)
        assert weights[name].shape == expected.shape


def test_parts_of_a_storage_as_they_were_written_once(tmp_path):
    """A storage may be a view of another: its tensors count from where it begins."""
    line = np.arange(10, dtype=np.float32)
    item = text("a") + tensor("0", "<f4", 10, (3,), (1,), 1, view=(4, 6))
    content = legacy_layout(state_of(item), [("0", line.tobytes())])
    np.testing.assert_array_equal(read_weights(write(tmp_path / "a", content))["a"], [5, 6, 7])


def test_a_state_of_the_time_when_vgg_16_was_published(tmp_path):
    """Python 2's strings and dictionaries, parameters, the first rebuilding function."""
    array = np.arange(6, dtype=np.float32)

    def short(value):
        return b"U" + bytes([len(value)]) + value.encode()

    storage = (
        b"(" + short("storage") + name_of("torch", "FloatStorage") + short("94") + short("cpu")
        + number(6) + b"NtQ"
    )  # fmt: skip
    built = name_of("torch._utils", "_rebuild_tensor") + b"(" + storage + number(0)
    built += sizes((2, 3)) + sizes((3, 1)) + b"tR"
    parameter = name_of("torch.nn.parameter", "Parameter") + built + b"\x85R"
    state = b"(\x88\x89" + name_of("collections", "OrderedDict") + b"]\x85Rtb"
    pair = b"](" + short("features.0.weight") + parameter + state + b"e"
    pickle = b"\x80\x02" + name_of("collections", "OrderedDict") + b"](" + pair + b"e\x85R."
    weights = read_weights(write(tmp_path / "a", legacy_layout(pickle, [("94", array.tobytes())])))
    same(weights, {"features.0.weight": array.reshape(2, 3)})


@pytest.mark.parametrize("around", ["state_dict", "model"])
def test_a_training_checkpoint(write_pth, around):
    pickle, storages = pickled_state(STATE, "<f4", write_pth.legacy)
    inside = pickle[2:-1]
    epoch = text("epoch") + number(3) + text("rate") + b"G" + struct.pack(">d", 0.1)
    state = b"\x80\x02}(" + epoch + text(around) + inside + text("best") + b"Nu."
    same(write_pth(state, storages), STATE)


def test_names_of_data_parallel(write_pth):
    parallel = {f"module.{name}": array for name, array in STATE.items()}
    same(write_pth(*pickled_state(parallel, "<f4", write_pth.legacy)), STATE)


# ---- NumPy and safetensors -------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    turned = {**STATE, "turned": np.asfortranarray(STATE["fc6.weight"]), "half": np.float16([1, 2])}
    save(tmp_path / "a.npz", **turned)
    weights = read_weights(tmp_path / "a.npz")
    assert weights.format == "npz"
    for name, array in turned.items():
        assert weights.stored[name].shape == array.shape
        assert weights[name].dtype == array.dtype
        np.testing.assert_array_equal(weights[name], array)


def test_safetensors(tmp_path):
    save_checkpoint(tmp_path / "a", STATE, {"seen": 3})
    weights = read_weights(tmp_path / "a")
    assert weights.format == "safetensors"
    assert weights.note == {"seen": 3}
    same(weights, STATE)
    assert not weights["fc6.weight"].flags.owndata


def test_safetensors_of_others(tmp_path):
    from safetensors.numpy import save_file

    save_file({**STATE, "half": np.float16([1, 2])}, tmp_path / "a", metadata={"format": "pt"})
    weights = read_weights(tmp_path / "a")
    assert weights.note is None
    assert set(weights) == {*STATE, "half"}
    np.testing.assert_array_equal(weights["fc6.weight"], STATE["fc6.weight"])
    header = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    upper = (np.float32([1.5, -2]).view(np.uint32) >> 16).astype("<u2").tobytes()
    write(tmp_path / "b", len(header).to_bytes(8, "little") + header + upper)
    np.testing.assert_array_equal(read_weights(tmp_path / "b")["x"], np.float32([1.5, -2]))


def test_the_name_of_the_file_does_not_matter(tmp_path):
    pickle, storages = pickled_state(STATE)
    zip_layout(tmp_path / "vgg.caffemodel", pickle, storages)
    same(read_weights(str(tmp_path / "vgg.caffemodel")), STATE)


def test_a_mapping(tmp_path):
    weights = read_weights(write(tmp_path / "a.caffemodel", caffemodel(STATE)))
    assert len(weights) == 4
    assert "fc6.weight" in weights
    assert "fc7.weight" not in weights
    with pytest.raises(KeyError):
        weights["fc7.weight"]
    assert repr(weights).endswith("a.caffemodel', caffemodel, 4 arrays)")


def test_numbers_can_be_looked_at_again_after_they_were_forgotten(tmp_path):
    content = np.arange(100_000, dtype=np.uint8)
    file = MappedFile(write(tmp_path / "a", content.tobytes()))
    for _ in range(2):
        np.testing.assert_array_equal(file.bytes, content)
        file.forget(5000, 90_000)
        file.forget(0, file.size)


def test_the_helpers_write_what_python_reads(tmp_path):
    """The zip archives of these tests are true ones."""
    pickle, storages = pickled_state(STATE)
    zip_layout(tmp_path / "a", pickle, storages)
    with zipfile.ZipFile(tmp_path / "a") as archive:
        assert archive.testzip() is None
    assert c_strides((2, 3, 4)) == (12, 4, 1)
