"""Files that are no weights, or damaged, or made to do harm: a clear refusal, and little memory."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from caffe_files import (
    ORDERED,
    block,
    caffemodel,
    layer,
    legacy_layout,
    name_of,
    number,
    pickled_state,
    tag,
    tensor,
    text,
    varint,
    whole,
    zip_layout,
)

from tinydilate import nn
from tinydilate.errors import DataError, TinydilateError
from tinydilate.io import archives, caffe, opcodes
from tinydilate.io.checkpoint import save_checkpoint
from tinydilate.io.conversion import convert_weights
from tinydilate.io.opcodes import Machine
from tinydilate.io.weights import load_weights, read_weights
from tinydilate.io.wire import Wire

ONES = np.ones(6, np.float32)
STATE = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(4, 6, 1, 1),
    "a.bias": np.arange(4, dtype=np.float32),
    "b.weight": np.arange(8, dtype=np.float32).reshape(2, 4, 1, 1),
    "b.bias": np.arange(2, dtype=np.float32),
}


def network():
    return nn.Sequential(("a", nn.Conv2d(6, 4, 1)), ("b", nn.Conv2d(4, 2, 1)))


def refused(path, content, pattern):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=pattern) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights"


# ---- other kinds of files --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "which is empty"),
        (b"\n <!DOCTYPE html><html>404 Not Found</html>", "is a web page: the download went wrong"),
        (b"<html>" + b" " * 9999, "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256)) * 9, "is a JPEG image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is a PNG image"),
        (b"GIF89a" + bytes(99), "is a GIF image"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, as Keras writes"),
        (b"\x1f\x8b\x08" + bytes(99), "is compressed with gzip: unpack it first"),
        (b'name: "dilation8"\nlayer {\n  name: "data"\n', "is text, such as Caffe's description"),
        (b"%PDF-1.4", "is a PDF document"),
        (b"\x93NUMPY\x01\x00" + bytes(99), r"a single array \(\.npy\); name the arrays"),
        (b"\x08\x01\x10\x03", "Caffe's mean image or solver state, perhaps"),
        (bytes(257) + b"ustar" + bytes(300), "is a tar archive: unpack it first .* before 2017"),
        (bytes(range(255, 0, -1)) * 9, "which is another kind of file"),
        (bytes(1000), "which is another kind of file"),
        (b"# a comment\nlayer { }", "is text"),
    ],
)
def test_other_kinds_of_files(path, content, pattern):
    refused(path, content, f"expected weights as .caffemodel, .pth, .npz or safetensors.*{pattern}")


def test_no_file(tmp_path):
    refused(tmp_path / "x", None, r"expected a file of weights at .*x; there is no such file\. Ch")
    refused(tmp_path, None, r"expected to read .*; the system said: .*\. Check the path and its p")


@pytest.mark.parametrize("name", ["layers_of_x", "layer", "#", "input: a", "x" * 32, "layer" * 7])
def test_a_network_whose_name_looks_like_text(path, name):
    """Its length stands in front: 9 to 13 and 32 are white space."""
    path.write_bytes(caffemodel(STATE, name=name))
    load_weights(network(), path)


def test_headers_of_every_length(path):
    """The first byte is the header's length, and 8, say, opens Caffe's mean images."""
    for extra in range(0, 264, 8):
        save_checkpoint(path, {"a": np.ones(1, np.float32)}, "x" * extra)
        assert read_weights(path).note == "x" * extra


# ---- cut short -------------------------------------------------------------------------------


def formats(folder):
    """One small file of every kind: name -> bytes."""
    pickle, storages = pickled_state(STATE)
    zip_layout(folder / "a", pickle, storages)
    save_checkpoint(folder / "b", STATE, "note")
    np.savez(folder / "c.npz", **STATE)
    np.savez_compressed(folder / "d.npz", **STATE)
    return {
        "V2": caffemodel(STATE),
        "V1": caffemodel(STATE, v1=True, legacy=True, double=True),
        "not packed": caffemodel(STATE, packed=False),
        "legacy pth": legacy_layout(*pickled_state(STATE, "<f2", legacy=True), width=2),
        "pth": (folder / "a").read_bytes(),
        "safetensors": (folder / "b").read_bytes(),
        "npz": (folder / "c.npz").read_bytes(),
        "compressed npz": (folder / "d.npz").read_bytes(),
    }


KINDS = [
    "V2", "V1", "not packed", "legacy pth", "pth", "safetensors", "npz", "compressed npz",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    return formats(tmp_path_factory.mktemp("formats"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_that_is_cut_short(path, whole_files, kind):
    """Wherever it ends: refused when it is opened, or a layer is missed. Never half a network."""
    content = whole_files[kind]
    path.write_bytes(content)
    load_weights(network(), path)
    step = max(1, len(content) // 120)
    for keep in [*range(0, len(content), step), len(content) - 1]:
        path.write_bytes(content[:keep])
        with pytest.raises(DataError):
            load_weights(network(), path)


def test_what_is_said_of_a_download_that_stopped(path, whole_files):
    """The first layer behind which nothing is left."""
    refused(
        path, whole_files["V2"][:-3],
        r"expected a file of weights that is whole; got .*weights of \d+ bytes: a field of \d+ "
        r"bytes begins at byte \d+, where only \d+ are left\. Copy or download it again",
    )  # fmt: skip
    refused(path, whole_files["pth"][:-99], "the archive has no directory at its end: it is cut sh")
    refused(path, whole_files["legacy pth"][:-3], "should go on until byte .* and ends at")
    refused(path, whole_files["safetensors"][:-3], "damaged or cut short")


# ---- Caffe -----------------------------------------------------------------------------------


def one_blob(content):
    return block(1, "n") + block(100, block(1, "x") + block(7, content))


def shaped(*dims):
    return block(7, block(1, b"".join(map(varint, dims)))) + block(5, ONES.tobytes())


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (one_blob(shaped(7)), r"x\.weight has the shape \(7,\), and 6 numbers"),
        (one_blob(shaped(-2, -3)), r"x\.weight has the impossible shape \(-2, -3\)"),
        (one_blob(shaped(0)), r"the impossible shape \(0,\)"),
        (one_blob(shaped(2**32, 2**32, 6)), r"has the shape \(4294967296, 4294967296, 6\), and 6"),
        (one_blob(shaped(2**62)), r"has the shape \(4611686018427387904,\), and 6 numbers"),
        (one_blob(shaped(*[1] * 33, 6)), "begins a list of more than 32 numbers"),
        (one_blob(block(7, whole(1, 1) * 33)), "has more than 32 axes"),
        (one_blob(block(7, block(1, varint(6)))), r"has the shape \(6,\), and 0 numbers"),
        (one_blob(shaped(2, 3) + block(8, bytes(12))), "take 12 bytes, no multiple of 8"),
        (one_blob(b"".join(whole(n, 2**40) for n in (1, 2, 3, 4))), "and 0 numbers"),
        (one_blob(whole(1, 1) + block(5, ONES.tobytes())), r"impossible shape \(1, 0, 0, 0\)"),
        (layer("x", [ONES]) * 2, "two layers called 'x', both with weights"),
        (layer("", [ONES]), "has weights and no name"),
        (block(2, block(1, block(1, "conv"))), "before 2014; Caffe's upgrade_net_proto_binary"),
        (block(1, "n") + layer("data", []), "none of its 1 layers has weights"),
        (block(1, "n") + tag(3, 3) + tag(3, 4), "begins a field of kind 3, which is not used"),
        (block(1, "n") + tag(3, 7), "begins a field of kind 7"),
        (block(1, "n") + b"\xff" * 11, "has more than ten bytes"),
        (block(1, "n") + b"\x00" * 9, "should begin a field, and does not"),
        (block(1, "n") + tag(7, 5) + b"12", "is cut off"),
        (block(1, "n") + tag(100, 2) + varint(2**63) + b"x", "a field of 9,223,372,036,854,775,8"),
    ],
)  # fmt: skip
def test_caffe(path, content, pattern):
    refused(path, content, pattern)


def test_messages_in_messages(path):
    """Only three levels mean something; how deep it goes on below, nobody asks."""
    inside = b""
    for _ in range(3000):
        inside = block(7, inside)
    refused(path, one_blob(inside), "begins a field|numbers|is cut off")


def test_bounds_of_what_a_caffe_file_may_cost(path, monkeypatch):
    monkeypatch.setattr(caffe, "_MOST_LAYERS", 5)
    refused(path, layer("data", []) * 6, "it has more than 5 layers")
    monkeypatch.undo()
    monkeypatch.setattr(caffe, "_MOST_RUNS", 5)
    scattered = (block(5, ONES.tobytes()) + whole(99, 1)) * 6
    refused(path, one_blob(scattered), "lie in more than 5 pieces")
    with pytest.raises(DataError, match="more than 200,000 fields"):
        list(Wire(np.frombuffer(whole(1, 1) * 9, np.uint8), most_fields=8).fields(0, 18))


# ---- pickles ---------------------------------------------------------------------------------


def pickled(*instructions):
    return b"\x80\x02" + b"".join(instructions) + b"."


def in_a_state(*instructions):
    return pickled(ORDERED, b"(", text("x"), *instructions, b"u")


LINE = b"(" + text("storage") + name_of("torch", "FloatStorage") + text("0") + text("cpu")


@pytest.fixture(params=["zip", "legacy"])
def refused_pickle(request, path):
    def refuse(pickle, pattern, storages=(("0", bytes(24)),)):
        if request.param == "zip":
            zip_layout(path, pickle, list(storages))
            refused(path, None, pattern)
        else:
            refused(path, legacy_layout(pickle, list(storages)), pattern)

    return refuse


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("tinydilate.io.opcodes", "Machine"),
        ("numpy.core.multiarray", "_reconstruct"),
    ],
)
def test_names_that_are_not_tensors(refused_pickle, tmp_path, module, name):
    """Nothing is looked up, so nothing can be called."""
    told = rf"it asks for '{module}\.{name}', and only tensors in dictionaries are read: anything "
    told += r".*torch\.save\(network\.state_dict\(\), path\)\.$"  # and no advice beside it
    proof = tmp_path / "proof"
    command = text(f"touch {proof}")
    for code in (
        pickled(name_of(module, name), command, b"\x85R"),
        in_a_state(name_of(module, name), command, b"\x85R"),
        pickled(text(module), text(name), b"\x93", command, b"\x85R"),
        pickled(name_of(module, name), b")\x81"),
    ):
        refused_pickle(code, told)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("code", "pattern"),
    [
        (pickled(b"(", text("touch x"), b"ios\nsystem\n"), "the instruction 0x69, which no file"),
        (pickled(b"(", name_of("torch", "FloatStorage"), text("x"), b"o"), "instruction 0x6f"),
        (pickled(b"\x82\x01"), "the instruction 0x82"),
        (pickled(b"\x97"), "the instruction 0x97"),
        (pickled(text("x"), text("y"), b"\x85R"), "calls something that is no function"),
        (pickled(name_of("torch", "FloatStorage"), b")R"), "calls something that is no function"),
        (pickled(name_of("collections", "OrderedDict"), b"NR"), "calls something that is no func"),
        (pickled(b"K\x01", b")\x93"), "asks for something without a name"),
        (pickled(text("module"), b"Q"), "it holds more than a state: a whole network, perhaps"),
        (pickled(b"(", text("module"), b"NNNNtQ"), "it holds more than a state"),
        (pickled(b"}"), "a dictionary without a single tensor"),
        (pickled(b"]"), "it holds no dictionary of tensors"),
        (pickled(b"N"), "no dictionary of tensors"),
        (pickled(b"R"), "takes something from an empty stack"),
        (pickled(b"t"), "has no mark where it needs one"),
        (pickled(b"(R"), "takes something from an empty stack"),
        (pickled(b"h\x07"), "recalls what it never remembered"),
        (pickled(b"K\x01K\x02a"), "fills something that cannot be filled"),
        (pickled(b"}(K\x01u"), "has a key without a value"),
        (pickled(b"})K\x01s"), "a dictionary with a key of type tuple"),
        (pickled(b"K\x01K\x02b"), "fills something that cannot be filled"),
        (pickled(b"c" + b"x" * 3000), "whose name has no end|is cut short"),
        (pickled(name_of("collections", "OrderedDict"), b"]K\x01a\x85R"), "made of other things"),
        (pickled(name_of("torch.nn.parameter", "Parameter"), b"K\x01\x85R"), "without a tensor"),
        (in_a_state(b"X\xff\xff\xff\x7f"), "is cut short"),
        (in_a_state(LINE, b"NNtQ"), "a storage without type, name or length"),
        (in_a_state(LINE, number(6), b"K\x01tQ"), "an impossible part of the storage '0'"),
        (in_a_state(LINE, number(6), b"NtQ", LINE, number(5), b"NtQ"), "'0' in two ways"),
        (in_a_state(name_of("torch._utils", "_rebuild_tensor_v2"), b")R"), "without a storage"),
    ],
)  # fmt: skip
def test_pickles_that_make_no_sense(refused_pickle, code, pattern):
    refused_pickle(code, pattern)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "pattern"),
    [
        ((7,), (1,), 0, r"the tensor 'x' of shape \(7,\) reaches beyond its storage of 6 numbers"),
        ((6,), (1,), 1, "reaches beyond its storage"),
        ((2, 2), (5, 1), 0, "reaches beyond its storage"),
        ((2,), (2**62,), 0, "reaches beyond its storage"),
        ((2,), (1,), 2**62, "reaches beyond its storage"),
        ((2**31, 2**31), (0, 0), 0, "its tensors claim 4,611,686,018,427,387,904 numbers of 6"),
        ((7,), (0,), 0, "reaches beyond its storage"),
        ((2,), (-1,), 5, "an impossible shape, stride or offset"),
        ((-2,), (1,), 0, "an impossible shape, stride or offset"),
        ((2,), (1,), -1, "an impossible shape, stride or offset"),
        ((2, 3), (1,), 0, "another number of strides than of axes"),
        ((1,) * 33, (1,) * 33, 0, "whose shape is no tuple of up to 32 numbers"),
        ((0, 2**62), (1, 1), 0, "the impossible shape"),
    ],
)
def test_windows_beyond_their_storage(refused_pickle, shape, strides, offset, pattern):
    refused_pickle(in_a_state(tensor("0", "<f4", 6, shape, strides, offset)), pattern)


def test_storages_that_are_not_there(refused_pickle):
    code = in_a_state(tensor("0", "<f4", 6, (6,), (1,)))
    refused_pickle(code, "the storage '0' is missing from it|lists a storage", [("1", bytes(24))])
    refused_pickle(code, "the storage '0' has ", [("0", bytes(20))])


def test_tuples_of_tuples_of_tuples(refused_pickle):
    """Each level twice the one before: 2 to the 60th elements to print or to compare."""
    deep = b"K\x01" + b"q\x00h\x00\x86" * 60
    refused_pickle(pickled(deep), "no dictionary of tensors")
    refused_pickle(pickled(b"}", deep, b"K\x01s"), "a key of type tuple")
    refused_pickle(pickled(deep, deep, b"\x93"), "asks for something without a name")
    refused_pickle(pickled(deep, b"Q"), "it holds more than a state")
    refused_pickle(in_a_state(LINE, deep, b"NtQ"), "a storage without type, name or length")


def test_long_pickles(refused_pickle, monkeypatch):
    monkeypatch.setattr(opcodes, "MOST_INSTRUCTIONS", 1000)
    refused_pickle(pickled(b"}" * 1001), "has more than 1,000 instructions")
    pairs = b"](" + (b"](" + text("k") + b"Ne") * 100 + b"e"
    many = name_of("collections", "OrderedDict") + b"h\x00\x85R0"
    again = pickled(pairs, b"q\x00", (many[:-1]) * 9)
    refused_pickle(again, "has more than 1,000 instructions")


def test_other_pickles(path):
    refused(path, pickled(b"K\x07"), "it is a pickle that PyTorch did not write")
    version = pickled(number(0x1950A86A20F9469CFC6C)) + pickled(number(1002))
    refused(path, version + pickled(b"}") + pickled(b"}") + pickled(b"]"), "that is not known")
    with pytest.raises(DataError, match="no pickle of protocol 2 to 5 begins at byte 0"):
        Machine(np.frombuffer(b"(lp0\n.", np.uint8), 0, 6).run()


# ---- archives --------------------------------------------------------------------------------


def archive(*members, method=zipfile.ZIP_STORED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (archive(("readme.txt", b"x")), "an archive of other things than arrays: unpack it first"),
        (archive(), "an archive of other things"),
        (archive(("a/data.pkl", b"x"), ("b/data.pkl", b"y")), "2 members called data.pkl"),
        (archive(("a/data.pkl", b"x"), ("a/constants.pkl", b"y")), "it is a TorchScript program"),
        (archive(("a/data.pkl", b"x" * 99), method=8), "'a/data.pkl' is compressed"),
        (archive(("a.npy", b"no array")), "'a.npy' in it is no array"),
        (archive(("a/data.pkl", b"x"), method=12), "compressed in a way that is not used"),
    ],
)
def test_archives(path, content, pattern):
    refused(path, content, pattern)


def test_an_order_of_bytes_that_nobody_uses(path):
    zip_layout(path, *pickled_state(STATE), byteorder="middle")
    refused(path, None, "an unknown order of bytes")


def test_bombs(path):
    """80 MB of zeros in 80 KB; a directory larger than any; both before anything is unpacked."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name in range(4):
            file.writestr(f"{name}.npy", bytes(20_000_000))
    refused(path, content.getvalue(), r"would unpack to 80,000,000, which may be a trap that fill")
    end = bytearray(archive(("a.npy", b"x")))
    at = end.rfind(b"PK\x05\x06")
    end[at + 12 : at + 16] = struct.pack("<I", 2**31)
    refused(path, bytes(end), "its directory claims 2,147,483,648 bytes")


def test_members_that_are_not_where_they_should_be(path, monkeypatch):
    pickle, storages = pickled_state(STATE)
    zip_layout(path, pickle, storages)
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x03\x04", 4)] = 0
    refused(path, bytes(content), "is not where the archive's directory says")
    twice = archive(("a.npy", b"x"), ("b.npy", b"x")).replace(b"b.npy", b"a.npy")
    refused(path, twice, "two members called 'a.npy'")
    locked = bytearray(archive(("a.npy", b"x")))
    locked[locked.find(b"PK\x01\x02") + 8] |= 1
    refused(path, bytes(locked), "'a.npy' in it is encrypted")
    monkeypatch.setattr(archives, "_LARGEST_DIRECTORY", 10)
    refused(path, archive(("a.npy", b"x")), "its directory claims")


def npy(header, numbers=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + numbers


def described(descr="<f4", shape="(6,)"):
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    ("member", "pattern"),
    [
        (npy(described("|O")), "an array of object: only numbers are read, for anything else may"),
        (npy(described("<U4"), bytes(96)), "an array of <U4: only numbers"),
        (npy(described("<c8"), bytes(48)), "an array of complex64: only numbers"),
        (npy(described(), bytes(20)), r"another number of bytes than its shape \(6,\) takes"),
        (npy(described(), bytes(28)), "another number of bytes"),
        (npy(described(shape="(2**40,)"), bytes(24)), "is no array"),
        (npy(described(shape="(1099511627776, 1099511627776)")), "another number of bytes"),
        (npy(described(shape="(-6,)"), bytes(24)), "another number of bytes"),
        (npy(described(shape="[" * 30 + "]" * 30)), "is no array"),
        (npy("__import__('os').system('x')"), "is no array"),
        (b"\x93NUMPY\x09\x09", "is no array"),
    ],
)
def test_npz(path, member, pattern):
    refused(path, archive(("x.npy", member)), pattern)


def test_a_checksum_that_does_not_fit(path):
    """Found when the numbers are wanted, for that is when they are unpacked."""
    numbers = np.random.default_rng(0).normal(size=(100, 200, 1, 1)).astype(np.float32)
    np.savez_compressed(path.with_suffix(".npz"), **{"a.weight": numbers})
    content = bytearray(path.with_suffix(".npz").read_bytes())
    content[content.find(b"PK\x01\x02") + 16] ^= 1
    content[content.find(b"PK\x03\x04") + 14] ^= 1
    path.write_bytes(content)
    target = nn.Sequential(("a", nn.Conv2d(200, 100, 1, bias=False)))
    with pytest.raises(DataError, match=r"a\.weight is broken: the archive is damaged"):
        load_weights(target, path)
    with pytest.raises(DataError, match="archive is damaged"):
        convert_weights(path, path.with_name("out"))


# ---- safetensors -----------------------------------------------------------------------------


def safetensors(header, numbers=b""):
    return len(header).to_bytes(8, "little") + header.encode() + numbers


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (safetensors("{" + " " * (5 * 2**20)), "its header claims 5,242,881 bytes"),
        (safetensors('{"a":' * 500), "damaged or cut short"),
        (safetensors('{"x":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'), "cut short"),
        (
            safetensors('{"x":{"dtype":"F8_E4M3","shape":[6],"data_offsets":[0,6]}}', bytes(6)),
            "numbers of type F8_E4M3, which NumPy cannot hold",
        ),
        (
            safetensors('{"x":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}'),
            "impossible shape|cut short",
        ),
        (safetensors('{"__metadata__":{"tinydilate":"{"}}'), "damaged or cut short"),
    ],
)  # fmt: skip
def test_safetensors(path, content, pattern):
    refused(path, content, pattern)


# ---- chance ----------------------------------------------------------------------------------

SPLICES = [b"\xff" * 8, bytes(8), b"\x7f", b"\x80", b"\xff\xff\xff\xff\x0f", b"\x00\x00\x00\x80"]


def mutated(content, random):
    """A file with one to four accidents: bits, bytes, numbers, pieces lost, doubled or swapped."""
    content = bytearray(content)
    for _ in range(random.integers(1, 5)):
        if not content:
            break
        at, kind = int(random.integers(len(content))), random.integers(6)
        length = int(random.integers(1, 24))
        if kind == 0:
            content[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            content[at] = int(random.integers(256))
        elif kind == 2:
            splice = SPLICES[int(random.integers(len(SPLICES)))]
            content[at : at + len(splice)] = splice
        elif kind == 3:
            del content[at : at + length]
        elif kind == 4:
            content[at:at] = content[at : at + length]
        else:
            other = int(random.integers(len(content)))
            content[at : at + length] = content[other : other + length]
    return bytes(content)


ROUNDS = 100


@pytest.mark.parametrize("kind", KINDS)
def test_accidents(path, whole_files, kind):
    """Whatever happens to a file: it is loaded, or one of our errors says why not."""
    random = np.random.default_rng([KINDS.index(kind), 1])
    outcomes = {"loaded": 0, "refused": 0}
    accidents(path, whole_files[kind], random, ROUNDS, outcomes)
    assert outcomes["refused"] > ROUNDS / 10
    assert outcomes["loaded"] > 0


def accidents(path, content, random, rounds, outcomes):
    target, longest = network(), 0
    for _ in range(rounds):
        path.write_bytes(mutated(content, random))
        try:
            load_weights(target, path)
            outcomes["loaded"] += 1
        except TinydilateError as error:
            outcomes["refused"] += 1
            longest = max(longest, len(str(error)))
        try:
            convert_weights(path, path.with_name("out"))
        except TinydilateError:
            assert not path.with_name("out").exists()
        path.with_name("out").unlink(missing_ok=True)
    assert longest < 1000


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_accidents(path, whole_files, kind):
    outcomes = {"loaded": 0, "refused": 0}
    accidents(path, whole_files[kind], np.random.default_rng(), 4000, outcomes)


# ---- memory ----------------------------------------------------------------------------------


def peak_of(action):
    """Bytes that Python and NumPy took at once."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def attempt(path):
    with pytest.raises(TinydilateError):
        read_weights(path)


def test_accidents_take_little_memory(path, whole_files):
    """A file of some kilobytes, whatever it claims, costs no more than a megabyte or two."""
    random = np.random.default_rng(7)
    outcomes = {"loaded": 0, "refused": 0}

    def all_kinds():
        for content in whole_files.values():
            accidents(path, content, random, 10, outcomes)

    accidents(path, whole_files["npz"], random, 1, outcomes)  # imports what it needs
    assert peak_of(all_kinds) < 4e6


@pytest.mark.parametrize(
    ("content", "most"),
    [
        (block(1, "n") + whole(99, 1) * 30_000, 2e6),
        (block(1, "n") + block(100, b"") * 9_000, 2e6),
        (one_blob(block(7, b"")) * 2000, 2e6),
        (one_blob((block(5, ONES.tobytes()) + whole(99, 1)) * 9000), 2e6),
        (legacy_layout(pickled(b"}" * 30_000), []), 6e6),
        (legacy_layout(pickled(b"(" * 30_000), []), 6e6),
    ],
)
def test_large_files_of_nothing(path, content, most):
    """Many fields or instructions, and no numbers: memory in proportion to the file."""
    path.write_bytes(content)
    assert peak_of(lambda: attempt(path)) < most


def test_a_layer_at_a_time(path):
    """Nothing beside the network, but for a part of the layer that is being copied."""
    rows = 1500
    state = {f"l{n}.weight": np.full((rows, 1000, 1, 1), n, np.float32) for n in range(4)}
    target = nn.Sequential(
        *((f"l{n}", nn.Conv2d(1000, rows, 1, bias=False, rng=0)) for n in range(4))
    )
    layer_bytes = rows * 1000 * 4
    path.write_bytes(caffemodel(state))
    assert peak_of(lambda: load_weights(target, path)) < 1e6
    assert target.state_dict()["l3.weight"][-1, -1] == 3
    assert peak_of(lambda: convert_weights(path, path.with_name("b"))) < 1e6
    assert peak_of(lambda: load_weights(target, path.with_name("b"))) < 1e6
    path.write_bytes(caffemodel(state, double=True))
    assert peak_of(lambda: load_weights(target, path)) < 1e6
    path.write_bytes(caffemodel(state, double=True))
    assert peak_of(lambda: convert_weights(path, path.with_name("c"))) < 8e6  # parts
    pickle, storages = pickled_state(state, "bfloat16")
    zip_layout(path, pickle, storages)
    assert peak_of(lambda: load_weights(target, path)) < 2 * layer_bytes
    np.savez_compressed(path.with_suffix(".npz"), **state)
    assert peak_of(lambda: load_weights(target, path.with_suffix(".npz"))) < 1.5 * layer_bytes
