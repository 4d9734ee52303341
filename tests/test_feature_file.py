"""Stored feature maps: what comes back, what is refused, and that writing can be interrupted."""

import errno
import os
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tinydilate.errors import DataError, PositionError, ShapeError
from tinydilate.io import feature_file
from tinydilate.io.feature_file import MAGIC, Features, FeatureWriter, Layout, read_layout

LAYOUT = Layout((3, 4, 5), "float32", 4, {"front end": "abc", "mean pixel": [1.0, 2.5, 3.0]})


def maps(layout=LAYOUT, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((layout.records, *layout.shape)).astype(np.float32)


def written(path, layout=LAYOUT):
    with FeatureWriter(path, layout) as writer:
        for one in maps(layout):
            writer.append(one)
        writer.finish()
    return path


@given(
    values=arrays(
        np.float32,
        st.tuples(st.integers(1, 3), *[st.integers(1, 4)] * 3),
        elements=st.floats(-1e4, 1e4, width=32),
    ),
    dtype=st.sampled_from(feature_file.DTYPES),
)
def test_what_was_written_comes_back(tmp_path_factory, values, dtype):
    path = tmp_path_factory.mktemp("features") / "a.features"
    layout = Layout(values.shape[1:], dtype, len(values), {"of": "noise"})
    with FeatureWriter(path, layout) as writer:
        for one in values:
            writer.append(one)
        writer.finish()
    features = Features(path, layout)
    assert len(features) == len(values)
    assert features.layout == layout
    expected = values.astype(dtype).astype(np.float32)
    found = features.take(range(len(values)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert features[0].dtype == np.dtype(dtype)


def test_the_bytes_are_those_of_the_table(tmp_path):
    content = written(tmp_path / "a").read_bytes()
    assert content[:8] == MAGIC == b"TDFEATS\n"
    version, length, crc = np.frombuffer(content[8:20], "<u4")
    assert version == 1
    assert (20 + length) % 64 == 0
    assert zlib.crc32(content[20 : 20 + length]) == crc
    record = 8 + 3 * 4 * 5 * 4
    assert len(content) == 20 + length + 4 * record
    second = content[20 + length + record :][:record]
    assert zlib.crc32(second[4:]) == int.from_bytes(second[:4], "little")
    assert int.from_bytes(second[4:8], "little") == 1
    np.testing.assert_array_equal(np.frombuffer(second[8:], "<f4").reshape(3, 4, 5), maps()[1])


def test_reading_takes_what_is_asked_for_alone(tmp_path):
    """A damaged record is no matter until it is read."""
    path = written(tmp_path / "a")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    features = Features(path, LAYOUT)
    np.testing.assert_array_equal(features.take([2, 0]), maps()[[2, 0]])
    with pytest.raises(DataError, match="record 3 has another checksum: the disk or a program"):
        features[3]
    with pytest.raises(PositionError, match="expected a number of 0 to 3; got 4"):
        features[4]


# ---- interrupted -----------------------------------------------------------------------------


def test_writing_goes_on_where_it_was_interrupted(tmp_path):
    path, whole = tmp_path / "a", written(tmp_path / "b").read_bytes()
    with FeatureWriter(path, LAYOUT) as writer:
        assert writer.done == 0
        writer.append(maps()[0])
        writer.append(maps()[1])
    part = tmp_path / "a.part"
    assert not path.exists()
    with part.open("ab") as file:
        file.write(b"half a rec")
    with FeatureWriter(path, LAYOUT) as writer:
        assert writer.done == 2
        for one in maps()[2:]:
            writer.append(one)
        writer.finish()
    assert path.read_bytes() == whole
    assert not part.exists()


@pytest.mark.parametrize("length", [0, 7, 19, 30, 5000])
def test_a_part_of_any_length_is_gone_on_with(tmp_path, length):
    whole = written(tmp_path / "b").read_bytes()
    (tmp_path / "a.part").write_bytes(whole[:length])
    with FeatureWriter(tmp_path / "a", LAYOUT) as writer:
        for one in maps()[writer.done :]:
            writer.append(one)
        writer.finish()
    assert (tmp_path / "a").read_bytes() == whole


def test_a_part_with_a_damaged_record_goes_on_before_it(tmp_path):
    content = bytearray(written(tmp_path / "b").read_bytes())
    content[len(LAYOUT.head) + LAYOUT.record.itemsize + 20] ^= 1  # in record 1
    (tmp_path / "a.part").write_bytes(content)
    with FeatureWriter(tmp_path / "a", LAYOUT) as writer:
        assert writer.done == 1


def test_a_part_of_another_front_end_is_refused(tmp_path):
    with FeatureWriter(tmp_path / "a", LAYOUT) as writer:
        writer.append(maps()[0])
    other = LAYOUT._replace(identity={**LAYOUT.identity, "front end": "xyz"})
    with pytest.raises(DataError, match=r"front end: abc there, xyz here"):
        FeatureWriter(tmp_path / "a", other)


def test_a_full_disk_keeps_what_there_is(tmp_path, monkeypatch):
    writer = FeatureWriter(tmp_path / "a", LAYOUT)
    for one in maps():
        writer.append(one)
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(feature_file.os, "fsync", full)
        with pytest.raises(DataError, match=r"No space left on device\. Make room .* is kept"):
            writer.finish()
    with writer:
        writer.finish()
    assert len(Features(tmp_path / "a", LAYOUT)) == 4


# ---- refused ---------------------------------------------------------------------------------


def test_maps_that_do_not_belong(tmp_path):
    with FeatureWriter(tmp_path / "a", LAYOUT) as writer:
        with pytest.raises(ShapeError, match=r"got number 0 of shape \(3, 4, 6\)"):
            writer.append(np.zeros((3, 4, 6), np.float32))
        broken = maps()[0]
        broken[0, 0, 0] = np.nan
        with pytest.raises(DataError, match=r"finite features; got nan or infinity in number 0"):
            writer.append(broken)
        with pytest.raises(DataError, match=r"expected 4 maps in .*; got 0"):
            writer.finish()
    half = LAYOUT._replace(dtype="float16")
    with (
        FeatureWriter(tmp_path / "b", half) as writer,
        pytest.raises(DataError, match="or store float32"),
    ):
        writer.append(maps()[0] + 1e6)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01", "is a JPEG image"),
        (b"<html><body>404", "is a web page: the download went wrong"),
        (b"", "is empty"),
        (b"\x05\x00\x00\x00\x04\x00\x00\x00", "another kind of file, and begins with b'\\x05"),
    ],
)
def test_other_files(tmp_path, content, text):
    """A list of JPEG images where features belong is fyu/dilation's issue 36."""
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError) as error:
        Features(tmp_path / "a")
    assert text in str(error.value)
    assert "begins with b'TDFEATS" in str(error.value)
    assert "name their file with --features" in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"No such file or directory\. Check the path"):
        Features(tmp_path / "a")


def test_every_cut_is_noticed(tmp_path):
    whole = written(tmp_path / "a").read_bytes()
    for length in (8, 12, 19, 20, 40, len(LAYOUT.head), len(whole) - 1):
        (tmp_path / "b").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"damaged|bytes in|begins with"):
            Features(tmp_path / "b")
    (tmp_path / "b").write_bytes(whole + b"x")
    with pytest.raises(DataError, match=r"cut short or written to since\. Delete it"):
        Features(tmp_path / "b")


def test_every_changed_byte_of_the_header_is_noticed(tmp_path):
    whole = written(tmp_path / "a").read_bytes()
    for place in range(len(LAYOUT.head)):
        changed = bytearray(whole)
        changed[place] ^= 0x41
        (tmp_path / "b").write_bytes(changed)
        with pytest.raises(DataError):
            Features(tmp_path / "b", LAYOUT)


def test_a_header_that_lies(tmp_path):
    """With a right checksum, but of nonsense, or of more than anybody has."""
    for text in (b"[]", b"{}", b'{"shape": [3, 4]}', b"\xff", b'{"shape": 3}'):
        sizes = np.array([1, len(text), zlib.crc32(text)], "<u4").tobytes()
        (tmp_path / "a").write_bytes(MAGIC + sizes + text)
        with pytest.raises(DataError, match="damaged"):
            Features(tmp_path / "a")
    sizes = np.array([1, 2**32 - 1, 0], "<u4").tobytes()
    (tmp_path / "a").write_bytes(MAGIC + sizes + b"{}")
    with pytest.raises(DataError, match="damaged"):
        Features(tmp_path / "a")
    huge = LAYOUT._replace(shape=(10**9, 10**9, 10**9))
    (tmp_path / "a").write_bytes(huge.head)
    with pytest.raises(DataError, match="of at most 536,870,908 numbers; got shape"):
        Features(tmp_path / "a")
    sizes = np.array([2, 2, 0], "<u4").tobytes()
    (tmp_path / "a").write_bytes(MAGIC + sizes + b"{}")
    with pytest.raises(DataError, match=r"has version 2\. Delete it"):
        Features(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"identity": {**LAYOUT.identity, "front end": "xyz"}}, "front end: abc there, xyz here"),
        ({"identity": {"front end": "abc"}}, r"mean pixel: \[1.0, 2.5, 3.0\] there, None here"),
        ({"shape": (3, 5, 5)}, r"shape: \[3, 4, 5\] there, \[3, 5, 5\] here"),
        ({"records": 5}, "records: 4 there, 5 here"),
        ({"dtype": "float16"}, "dtype: float32 there, float16 here"),
    ],
)
def test_stale_features(tmp_path, change, text):
    path = written(tmp_path / "a")
    with pytest.raises(DataError, match=rf"are stale or of something else \({text}"):
        Features(path, LAYOUT._replace(**change))


def test_layouts_that_make_no_sense(tmp_path):
    for change in ({"shape": (3, 4)}, {"shape": (3, 0, 4)}, {"dtype": "int8"}, {"records": 0}):
        with pytest.raises(DataError, match=r"expected features of shape \(C, h, w\)"):
            FeatureWriter(tmp_path / "a", LAYOUT._replace(**change))


def test_the_layout_can_be_read_alone(tmp_path):
    assert read_layout(written(tmp_path / "a")) == LAYOUT
