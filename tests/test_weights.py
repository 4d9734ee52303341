"""Filling networks from files, and converting files: names, shapes, colours, reports, refusals."""

import hashlib
import json
import re

import numpy as np
import pytest
from caffe_files import caffemodel, legacy_layout, pickled_state, zip_layout
from test_cli import assert_refused, command  # noqa: F401 - a fixture

import tinydilate as td
from tinydilate import models, nn
from tinydilate.classes import VOC
from tinydilate.errors import ConfigError, DataError, DeviceError
from tinydilate.io import conversion, vgg
from tinydilate.io.checkpoint import load_checkpoint, save_checkpoint
from tinydilate.io.conversion import convert_weights, describe, places_of
from tinydilate.io.mapped import InMemory
from tinydilate.io.weights import load_weights, read_weights

# VGG-16 with its names, kernels and dilations, but two maps a layer.
ROWS = tuple(row._replace(maps=2) if isinstance(row, models.Conv) else row for row in models.VGG_16)
CLASSES = 3


def front_end(**options):
    return models.front_end(CLASSES, rows=ROWS, border=False, **{"rng": 0, **options})


def whole(final="final", prefix="ctx", **options):
    """A published network in small: front end and context in one line."""
    options = {"rng": 1, **options}
    front = front_end(final_name=final, **options)
    behind = models.context(CLASSES, prefix=prefix, noise=0.1, **options)
    return nn.Sequential(*front.named_children(), *behind.named_children())


def noise(network, seed=5):
    """A state of the network's shapes, and none of its numbers."""
    random = np.random.default_rng(seed)
    state = network.state_dict()
    return {name: random.normal(size=each.shape).astype(np.float32) for name, each in state.items()}


def as_vgg(state):
    """A front end's state as VGG-16 was published: fc6 and fc7 flat, fc8 behind them."""
    made = {name: array for name, array in state.items() if not name.startswith("final")}
    for layer in ("fc6", "fc7"):
        made[f"{layer}.weight"] = made[f"{layer}.weight"].reshape(2, -1)
    return {**made, "fc8.weight": np.ones((5, 2), np.float32), "fc8.bias": np.ones(5, np.float32)}


def as_torchvision(state):
    """The same under torchvision's names."""
    theirs = {ours: name for name, ours in vgg.TORCHVISION.items()}
    made = {}
    for name, array in as_vgg(state).items():
        layer, _, what = name.rpartition(".")
        made[f"{theirs[layer]}.{what}"] = array
    return made


def write(path, content):
    path.write_bytes(content)
    return path


def holds(network, state, names=None):
    for name in names or state:
        np.testing.assert_array_equal(network.state_dict()[name], state[name], err_msg=name)


@pytest.fixture
def tiny(monkeypatch):
    """The published VOC network in small, for conversion to find."""

    class Tiny:
        name, classes, input_size = "dilation8_voc", VOC, (900, 900)
        zoom, stride, border = 8, 8, 186

        def build(self, part="whole", **options):
            if part == "front end":
                return front_end(final_name="fc-final", **options)
            return whole("fc-final", "ct", **options)

    monkeypatch.setattr(conversion, "PUBLISHED", {"dilation8_voc": Tiny()})
    monkeypatch.setattr(conversion, "TARGETS", ("dilation8_voc", "vgg16"))
    monkeypatch.setattr(conversion, "front_end", lambda classes, **o: front_end(device="meta"))
    return Tiny()


# ---- loading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"v1": True, "legacy": True}, {"double": True}], ids=str)
def test_every_layer_is_filled(tmp_path, options):
    network, state = whole(), noise(whole())
    report = load_weights(network, write(tmp_path / "a", caffemodel(state, **options)))
    holds(network, state)
    assert [each.name for each in report.loaded] == list(state)
    assert report.missing == report.left_over == ()
    assert not report.folded
    assert report.format == "caffemodel"
    assert json.loads(json.dumps(report.to_dict()))["loaded"][0] == {
        "name": "conv1_1.weight", "shape": [2, 3, 3, 3], "source": "conv1_1.weight",
        "source_shape": [2, 3, 3, 3], "dtype": "float64" if options.get("double") else "float32",
    }  # fmt: skip


def test_numbers_go_into_the_memory_that_is_there(tmp_path):
    network, state = whole(), noise(whole())
    before = {name: each.data for name, each in network.named_parameters()}
    load_weights(network, write(tmp_path / "a", caffemodel(state)))
    assert all(each.data is before[name] for name, each in network.named_parameters())


def test_weights_that_were_read_before(tmp_path):
    state = noise(whole())
    weights = read_weights(write(tmp_path / "a", caffemodel(state)))
    for _ in range(2):
        network = whole()
        load_weights(network, weights)
        holds(network, state)


@pytest.mark.parametrize("kind", ["<f8", "<f2", "bfloat16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_of_other_widths(tmp_path, kind, dtype):
    network, state = whole(dtype=dtype), noise(whole())
    pickle, storages = pickled_state(state, kind)
    zip_layout(tmp_path / "a", pickle, storages)
    report = load_weights(network, tmp_path / "a")
    precision = {"<f8": 0, "<f2": 2**-10, "bfloat16": 2**-7}[kind]
    for name, array in network.state_dict().items():
        assert array.dtype == dtype
        np.testing.assert_allclose(array, state[name], rtol=precision, atol=1e-6)
    assert {each.dtype for each in report.loaded} == {
        {"<f8": "float64", "<f2": "float16"}.get(kind, kind)
    }


def test_vgg_16(tmp_path):
    """fc6 and fc7 become windows; fc8 is left over; the layer behind fc7 keeps its start."""
    network, state = front_end(), noise(front_end())
    start = network.state_dict()["final.weight"]
    report = load_weights(
        network, write(tmp_path / "a", caffemodel(as_vgg(state), v1=True, legacy=True))
    )
    holds(network, state, [name for name in state if not name.startswith("final")])
    np.testing.assert_array_equal(network.state_dict()["final.weight"], start)
    assert report.missing == ("final.weight", "final.bias")
    assert report.left_over == ("fc8.weight", "fc8.bias")
    fc6 = next(each for each in report.loaded if each.name == "fc6.weight")
    assert (fc6.shape, fc6.source_shape) == ((2, 2, 7, 7), (2, 98))


def test_vgg_16_whose_fc6_is_a_window_already(tmp_path):
    """The original's vgg_conv.caffemodel."""
    network, state = front_end(), noise(front_end())
    file = {name: array for name, array in state.items() if not name.startswith("final")}
    load_weights(network, write(tmp_path / "a", caffemodel(file)))
    holds(network, file)


def test_a_context_module_is_not_excused_by_vgg(tmp_path):
    path = write(tmp_path / "a", caffemodel(as_vgg(noise(front_end()))))
    with pytest.raises(DataError, match=r"missing ctx_conv1_1\.weight.* and 10 more\. Nothing was"):
        load_weights(whole(), path)
    report = load_weights(whole(), path, allow_missing=["ctx_*"])
    assert len(report.missing) == 18


def test_a_front_end_from_a_whole_network(tmp_path):
    state = noise(whole("fc-final", "ct"))
    network = front_end(final_name="fc-final")
    report = load_weights(network, write(tmp_path / "a", caffemodel(state)))
    holds(network, state, network.state_dict())
    assert report.left_over == tuple(name for name in state if name.startswith("ct_"))


# ---- refused ---------------------------------------------------------------------------------


def test_a_missing_layer(tmp_path):
    state = noise(whole())
    del state["conv5_3.weight"], state["conv5_3.bias"]
    network = whole()
    before = network.state_dict()
    path = write(tmp_path / "a", caffemodel(state))
    with pytest.raises(
        DataError,
        match=r"expected .*a to have every layer of the network; got one with these differences: "
        r"missing conv5_3\.weight, conv5_3\.bias\. Nothing was loaded\. The file has conv1_1\.w"
        r".* and \d+ more\. Build the network that the file is for, or name layers that may keep",
    ):
        load_weights(network, path)
    holds(network, before)
    report = load_weights(network, path, allow_missing=["conv5_3"])
    assert report.missing == ("conv5_3.weight", "conv5_3.bias")
    np.testing.assert_array_equal(network.state_dict()["conv5_3.weight"], before["conv5_3.weight"])


def test_other_shapes(tmp_path):
    state = noise(whole())
    state["final.weight"] = np.ones((4, 2, 1, 1), np.float32)
    state["conv1_2.weight"] = state["conv1_2.weight"][..., 0]
    network = whole()
    before = network.state_dict()
    with pytest.raises(
        DataError,
        match=r"of another shape conv1_2\.weight \(2, 2, 3\) in the file, \(2, 2, 3, 3\) in the "
        r"network, final\.weight \(4, 2, 1, 1\) in the file, \(3, 2, 1, 1\) in the network\. Noth",
    ):
        load_weights(network, write(tmp_path / "a", caffemodel(state)))
    holds(network, before)


@pytest.mark.parametrize("shape", [(2, 97), (98, 2), (1, 196), (2, 2, 49), (196,)])
def test_only_an_inner_product_of_as_many_taps_becomes_a_window(tmp_path, shape):
    state = as_vgg(noise(front_end()))
    state["fc6.weight"] = np.ones(shape, np.float32)
    with pytest.raises(DataError, match=rf"fc6\.weight {re.escape(str(shape))} in the file"):
        load_weights(front_end(), write(tmp_path / "a", caffemodel(state)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(tmp_path, bad):
    state = noise(whole())
    state["fc7.weight"][1, 1] = bad
    with pytest.raises(DataError, match=r"fc7\.weight is broken: some numbers are infinite or not"):
        load_weights(whole(), write(tmp_path / "a", caffemodel(state)))
    with pytest.raises(DataError, match=r"fc7\.weight is broken.* Nothing was written"):
        convert_weights(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_large_numbers_are_numbers(tmp_path):
    state = noise(whole())
    state["conv1_2.weight"][:] = 3e38  # their sum is infinite
    network = whole()
    load_weights(network, write(tmp_path / "a", caffemodel(state)))
    holds(network, state)


def test_a_double_beyond_floats(tmp_path):
    state = {name: array.astype(np.float64) for name, array in noise(whole()).items()}
    state["fc7.bias"][0] = 1e300
    path = write(tmp_path / "a", caffemodel(state, double=True))
    with pytest.raises(DataError, match=r"fc7\.bias is broken"):
        load_weights(whole(), path)
    load_weights(whole(dtype=np.float64), path)


def test_a_layer_never_stays_zeros(tmp_path):
    network = front_end(device="meta").to_empty("cpu")
    path = write(tmp_path / "a", caffemodel(as_vgg(noise(front_end()))))
    with pytest.raises(
        DataError, match=r'final\.weight is not in the file and would stay zeros.*"r'
    ):
        load_weights(network, path)


def test_a_network_without_memory(tmp_path):
    path = write(tmp_path / "a", caffemodel(noise(whole())))
    with pytest.raises(DeviceError, match=r"got one on the meta device.*to_empty\(\"cpu\"\)"):
        load_weights(whole(device="meta"), path)


def test_options(tmp_path):
    path = write(tmp_path / "a", caffemodel(noise(whole())))
    with pytest.raises(ConfigError, match=r"the network has no layer 'conv9'\. It has conv1_1\.w"):
        load_weights(whole(), path, allow_missing=["conv9"])
    with pytest.raises(ConfigError, match="allow_missing as a list of names; got the text 'final'"):
        load_weights(whole(), path, allow_missing="final")
    with pytest.raises(ConfigError, match="expected colours torchvision or caffe; got 'rgb'"):
        load_weights(whole(), path, colours="rgb")


# ---- torchvision -----------------------------------------------------------------------------


@pytest.fixture(params=["zip", "legacy", "safetensors"])
def torchvision(request, tmp_path):
    """Write a state as torchvision's VGG-16 in one of its formats."""

    def make(state):
        path = tmp_path / "vgg16"
        arrays = as_torchvision(state)
        pickle, storages = pickled_state(arrays, legacy=request.param == "legacy")
        if request.param == "zip":
            zip_layout(path, pickle, storages)
        elif request.param == "legacy":
            write(path, legacy_layout(pickle, storages))
        else:
            save_checkpoint(path, arrays)
        return path

    return make


def test_both_ways_to_the_same_scores(torchvision):
    """An image prepared as torchvision does, and as Caffe does: the network says the same."""
    state = noise(front_end())
    for name, array in state.items():  # signals neither die nor grow on their way
        if name.endswith(".weight") and name != "conv1_1.weight":
            state[name] = np.abs(array) * 1.2 / np.prod(array.shape[1:])
    path = torchvision(state)
    theirs, ours = front_end().eval(), front_end().eval()
    load_weights(theirs, path, colours="caffe")  # as they are, for their own pixels
    report = load_weights(ours, path, mean=VOC.mean)
    assert report.folded
    assert report.left_over == ("classifier.6.weight", "classifier.6.bias")
    rgb = np.random.default_rng(3).integers(0, 256, (1, 3, 388, 396)).astype(np.float64)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for_theirs = (rgb / 255 - mean[:, None, None]) / std[:, None, None]
    for_ours = rgb[:, ::-1] - np.array(VOC.mean)[:, None, None]
    with td.no_grad():
        expected = theirs(for_theirs.astype(np.float32)).data
        found = ours(for_ours.astype(np.float32)).data
    assert expected.shape == (1, CLASSES, 2, 3)
    assert expected.std() > 1e-3 * np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_the_fold_is_exact():
    """In float64, on pixels of every level: nothing but rounding between the two ways."""
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(5, 3, 3, 3)), random.normal(size=5)
    mean = (10.0, 100.0, 200.0)
    wanted = vgg.caffe_colours(mean)
    folded = vgg.fold_colours(InMemory(weight), InMemory(bias), vgg.TORCHVISION_COLOURS, wanted)
    rgb = random.integers(0, 256, (2, 3, 6, 7)).astype(float)
    given = vgg.TORCHVISION_COLOURS
    theirs = (rgb / 255 - np.reshape(given.mean, (3, 1, 1))) / np.reshape(given.std, (3, 1, 1))
    expected = td.functional.conv2d(theirs, weight, bias).data
    found = td.functional.conv2d(
        rgb[:, ::-1] - np.reshape(mean, (3, 1, 1)), *(each.array() for each in folded)
    ).data
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    # And back again.
    back = vgg.fold_colours(*folded, wanted, given)
    np.testing.assert_allclose(back[0].array(), weight, atol=1e-13)
    np.testing.assert_allclose(back[1].array(), bias, atol=1e-13)


def test_the_mean_has_to_be_known(torchvision):
    path = torchvision(noise(front_end()))
    with pytest.raises(
        ConfigError, match=r"expected mean=\(blue, green, red\).*torchvision's name"
    ):
        load_weights(front_end(), path)


@pytest.mark.parametrize(
    "mean", [(0.4, 0.5, 0.5), 110.0, (1, 2), (1, 2, "x"), (-1, 9, 9), (9, 9, 999)]
)
def test_a_mean_that_is_none(tmp_path, mean):
    save_checkpoint(tmp_path / "a", as_torchvision(noise(front_end())))
    with pytest.raises(ConfigError, match="expected mean as three levels from 0 to 255, blue, gre"):
        load_weights(front_end(), tmp_path / "a", mean=mean)


def test_caffe_weights_under_torchvisions_names(torchvision):
    """Somebody renamed them: Caffe's numbers, which want Caffe's pixels."""
    state = noise(front_end())
    network = front_end()
    report = load_weights(network, torchvision(state), colours="caffe")
    assert not report.folded
    holds(network, state, ["conv1_1.weight", "conv1_1.bias", "fc6.weight"])


@pytest.mark.parametrize(
    ("name", "text"),
    [("features.1.running_mean", "with batch normalisation"), ("features.34.weight", "of another")],
)
def test_other_vggs(tmp_path, name, text):
    arrays = {**as_torchvision(noise(front_end())), name: np.ones(2, np.float32)}
    save_checkpoint(tmp_path / "a", arrays)
    with pytest.raises(
        DataError, match=f"expected torchvision's vgg16.*got a VGG {text}.*14 layers"
    ):
        load_weights(front_end(), tmp_path / "a", mean=VOC.mean)


def test_a_grey_first_layer():
    grey = InMemory(np.ones((2, 1, 3, 3))), InMemory(np.ones(2))
    with pytest.raises(DataError, match=r"expected a first layer of weights \(F, 3, KH, KW\)"):
        vgg.fold_colours(*grey, vgg.TORCHVISION_COLOURS, vgg.caffe_colours(VOC.mean))


def test_torchvisions_table():
    """Convolution and rectifier take two numbers, a pooling one, as its list of layers says."""
    place, expected = 0, {}
    blocks = [name.split("_")[0] for name in vgg.LAYERS if name.startswith("conv")]
    for position, name in enumerate(name for name in vgg.LAYERS if name.startswith("conv")):
        expected[f"features.{place}"] = name
        last = position + 1 == len(blocks) or blocks[position + 1] != blocks[position]
        place += 3 if last else 2
    assert expected == {k: v for k, v in vgg.TORCHVISION.items() if k.startswith("features")}


# ---- converting ------------------------------------------------------------------------------


def test_convert_a_published_network(tmp_path, tiny):
    state = noise(tiny.build())
    path = write(tmp_path / "voc.caffemodel", caffemodel(state, v1=True, legacy=True, double=True))
    done = convert_weights(path, tmp_path / "voc.safetensors")
    arrays, note = load_checkpoint(tmp_path / "voc.safetensors")
    assert list(note) == ["source", "published"]
    assert note["source"] == {
        "file": "voc.caffemodel", "bytes": path.stat().st_size, "format": "caffemodel",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    assert done.sha256 == note["source"]["sha256"]
    published = note["published"]
    assert published["name"] == done.network == "dilation8_voc"
    assert published["classes"] == list(VOC.names)
    assert published["mean"] == list(VOC.mean)
    assert published["palette"][1] == [128, 0, 0]
    assert (published["zoom"], published["border"], published["stride"]) == (8, 186, 8)
    assert set(arrays) == set(state)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    network = tiny.build()
    weights = read_weights(tmp_path / "voc.safetensors")
    assert weights.note == note
    load_weights(network, weights)
    holds(network, state)


def test_convert_vgg(tmp_path, tiny):
    """Out comes what Caffe's file would have given: its names, shapes and colours."""
    state = noise(front_end())
    pickle, storages = pickled_state(as_torchvision(state), "<f2")
    zip_layout(tmp_path / "vgg.pth", pickle, storages)
    done = convert_weights(tmp_path / "vgg.pth", tmp_path / "vgg.safetensors")
    assert done.network == "vgg16"
    assert done.report.folded
    assert done.report.left_over == ("classifier.6.weight", "classifier.6.bias")
    arrays, note = load_checkpoint(tmp_path / "vgg.safetensors")
    assert note["published"] == {"name": "vgg16", "mean": [103.939, 116.779, 123.68]}
    assert arrays["fc6.weight"].shape == (2, 2, 7, 7)
    assert set(arrays) == {f"{layer}.{what}" for layer in vgg.LAYERS for what in ("weight", "bias")}
    expected, network = front_end(), front_end()
    load_weights(expected, tmp_path / "vgg.pth", mean=vgg.MEAN)
    load_weights(network, tmp_path / "vgg.safetensors")
    holds(network, expected.state_dict())


def test_convert_what_nobody_knows(tmp_path):
    arrays = {"a.weight": np.float64([[1, 2]]), "steps": np.array(7)}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    done = convert_weights(tmp_path / "a.npz", tmp_path / "b")
    assert done.network == ""
    found, note = load_checkpoint(tmp_path / "b")
    assert "published" not in note
    assert found["a.weight"].dtype == np.float32
    np.testing.assert_array_equal(found["a.weight"], [[1, 2]])
    assert found["steps"] == 7


def test_convert_keeps_what_a_file_says_of_itself(tmp_path):
    """The note by which `predict` builds the network of a recipe."""
    source, target = tmp_path / "run.safetensors", tmp_path / "out.safetensors"
    save_checkpoint(source, {"a.weight": np.ones(3, np.float32)}, {"plan": {"some": "words"}})
    convert_weights(source, target)
    note = load_checkpoint(target)[1]
    assert note["plan"] == {"some": "words"}
    assert note["source"]["file"] == "run.safetensors"


def test_convert_a_front_end(tmp_path, tiny):
    state = noise(tiny.build())
    path = write(tmp_path / "a", caffemodel(state))
    done = convert_weights(path, tmp_path / "b", "dilation8_voc", part="front end")
    arrays, note = load_checkpoint(tmp_path / "b")
    assert (note["published"]["name"], note["published"]["part"]) == ("dilation8_voc", "front end")
    assert set(arrays) == {name for name in state if not name.startswith("ct_")}
    assert len(done.report.left_over) == len(state) - len(arrays)
    for options, text in (
        ({"part": "front end"}, r"such as dilation8_voc; got none\..* takes it as --as NAME"),
        ({"network": "vgg16", "part": "front end"}, "such as dilation8_voc; got vgg16"),
        ({"part": "x"}, "expected part to be whole or front end; got 'x'"),
    ):
        with pytest.raises(ConfigError, match=text):
            convert_weights(path, tmp_path / "c", **options)


def test_a_vgg_is_no_front_end(tmp_path, tiny):
    """It lacks the layer that tells classes apart, which loading for training excuses."""
    state = as_vgg(noise(front_end()))
    with pytest.raises(DataError, match=r"missing fc-final\.weight, fc-final\.bias\. Nothing"):
        convert_weights(
            write(tmp_path / "a", caffemodel(state)), tmp_path / "b", "dilation8_voc",
            part="front end",
        )  # fmt: skip


def test_a_fixed_layer_may_be_missing(tmp_path, tiny, monkeypatch):
    """The original's training networks have no ctx_upsample; its numbers are known anyway."""

    def build(part="whole", **options):
        front, up = whole("fc-final", "ct", **options), models.bilinear_upsampling(3, 8, **options)
        return nn.Sequential(*front.named_children(), ("ctx_upsample", up))

    monkeypatch.setattr(type(tiny), "build", staticmethod(build))
    network = build()
    state = noise(network)
    for keep in (state, {name: a for name, a in state.items() if not name.startswith("ctx_up")}):
        path = write(tmp_path / "a", caffemodel(keep))
        done = convert_weights(path, tmp_path / "b")
        assert done.network == "dilation8_voc"
        assert set(load_checkpoint(tmp_path / "b")[0]) == set(keep)
        assert done.report.missing == (() if keep is state else ("ctx_upsample.weight",))


def test_convert_for_a_network_that_it_is_not(tmp_path, tiny):
    path = write(tmp_path / "a", caffemodel(as_vgg(noise(front_end()))))
    with pytest.raises(DataError, match=r"missing fc-final\.weight.*, ct_conv1_1\.weight"):
        convert_weights(path, tmp_path / "b", "dilation8_voc")
    with pytest.raises(ConfigError, match="one of dilation8_voc, vgg16; got 'alexnet'"):
        convert_weights(path, tmp_path / "b", "alexnet")
    with pytest.raises(ConfigError, match=r"is the one to read\. Choose a new name"):
        convert_weights(path, path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a"]


def test_an_accident_leaves_the_old_file(tmp_path, monkeypatch):
    state = noise(whole())
    path = write(tmp_path / "a", caffemodel(state))
    convert_weights(path, tmp_path / "b")
    before = (tmp_path / "b").read_bytes()
    state["ctx_final.bias"][:] = np.nan  # the last number of all
    write(tmp_path / "a2", caffemodel(state))
    with pytest.raises(DataError, match="Nothing was written"):
        convert_weights(tmp_path / "a2", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("network", ["dilation10_cityscapes", "dilation7_kitti"])
def test_what_a_file_says_of_the_true_networks(network):
    note = describe(network)
    assert json.loads(json.dumps(note)) == note
    assert (
        len(note["classes"])
        == len(note["palette"])
        == {"d": 11, "c": 19}["c" if "city" in network else "d"]
    )
    assert note["zoom"] == (1 if "city" in network else 8)
    shapes, fixed = places_of(network)
    assert shapes["fc6.weight"] == (4096, 512, 7, 7)
    assert fixed == (["ctx_upsample.weight"] if "city" in network else [])
    assert set(fixed) <= set(shapes)


def test_the_true_networks_are_told_apart_by_their_names():
    names = [frozenset(places_of(network).shapes) for network in conversion.TARGETS]
    assert len(set(names)) == len(names) == 5


# ---- the command -----------------------------------------------------------------------------


def test_command(command, tmp_path, tiny):  # noqa: F811
    state = noise(front_end())
    save_checkpoint(tmp_path / "vgg", as_torchvision(state))
    code, out, err = command("convert", tmp_path / "vgg", tmp_path / "out.safetensors")
    assert code == 0
    assert re.search(
        r"^fc6\.weight +2 x 2 x 7 x 7 +classifier\.0\.weight +2 x 98 +float32$", out, re.M
    )
    assert "(safetensors): vgg16" in out
    assert "torchvision's were put into conv1_1" in out
    assert "Left over: classifier.6.weight, classifier.6.bias" in out
    assert "converting" in err
    code, out, _ = command(
        "convert",
        tmp_path / "vgg",
        tmp_path / "out",
        "--as",
        "vgg16",
        "--colours",
        "caffe",
        "--json",
    )
    told = json.loads(out)
    assert (told["network"], told["report"]["folded"]) == ("vgg16", False)
    assert told["sha256"] == hashlib.sha256((tmp_path / "vgg").read_bytes()).hexdigest()


def test_help(command):  # noqa: F811
    code, out, _ = command("--help")
    assert code == 0
    assert re.search("^    convert +Convert weights to safetensors$", out, re.MULTILINE)
    out = " ".join(command("convert", "--help")[1].split())
    assert "dilation10_cityscapes or vgg16 (default: told by the names of the layers)" in out
    assert "from 0 to 255 (default: torchvision)" in out


def test_command_refuses(command, tmp_path):  # noqa: F811
    write(tmp_path / "a", b"<html>404</html>")
    result = command("convert", tmp_path / "a", tmp_path / "b")
    assert_refused(result, "which is a web page: the download went wrong")
    assert_refused(command("convert", tmp_path / "x", tmp_path / "b"), "there is no such file")
    assert not (tmp_path / "b").exists()
