"""Checkpoints: what comes back, what is refused, and that no accident leaves half a file."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tinydilate import nn
from tinydilate.errors import DataError
from tinydilate.io import files
from tinydilate.io.checkpoint import load_checkpoint, save_checkpoint

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "number": np.float64(1.5) * np.ones(()),
    "empty": np.zeros((0, 3), np.float32),
    "step": np.array([7], np.int64),
    "seen": np.array([True, False]),
    "labels": np.arange(4, dtype=np.uint8),
}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    note = {"step": 3, "rng": 2**127 + 1, "name": "Zürich"}
    save_checkpoint(path, ARRAYS, note)
    arrays, read = load_checkpoint(path)
    assert read == note
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        np.testing.assert_array_equal(arrays[name], array)
    assert names(tmp_path) == ["a.safetensors"]


def test_any_memory_layout_comes_back_right(tmp_path):
    """safetensors alone gets these wrong without a word."""
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    layouts = {
        "transposed": x.T,
        "strided": x[:, ::2],
        "reversed": x[::-1],
        "Fortran": np.asfortranarray(x),
        "repeated": np.broadcast_to(x[0], (3, 6)),
    }
    save_checkpoint(tmp_path / "a", layouts)
    arrays, note = load_checkpoint(tmp_path / "a")
    assert note is None
    for name, array in layouts.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_what_was_read_may_be_written_to(tmp_path):
    save_checkpoint(tmp_path / "a", ARRAYS)
    load_checkpoint(tmp_path / "a")[0]["conv.weight"] += 1


def test_files_of_other_programs(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.ones(3)}, tmp_path / "plain")
    assert load_checkpoint(tmp_path / "plain")[1] is None
    save_file({"x": np.ones(3)}, tmp_path / "theirs", metadata={"format": "pt"})
    arrays, note = load_checkpoint(tmp_path / "theirs")
    assert note is None
    assert list(arrays) == ["x"]


# ---- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 7, 8, 60, 300, -1])
def test_truncated(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, ARRAYS, "note")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"expected a safetensors file; got .*a\.safetensors"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "which is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "which is a web page: the download went wrong"),
        (b"<html>" + b" " * 1000, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(100), "PyTorch file"),
        (bytes(range(256)) * 40, "another kind of file"),
        (b"\x93NUMPY" + bytes(100), "another kind of file"),
        ((20).to_bytes(8, "little") + b'{"x": {"dtype": "F32', "damaged or cut short at 28 bytes"),
    ],
)
def test_foreign_files(tmp_path, content, text):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=text):
        load_checkpoint(path)


def test_a_damaged_note(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.ones(3)}, tmp_path / "a", metadata={"tinydilate": "{"})
    with pytest.raises(DataError, match="damaged or cut short"):
        load_checkpoint(tmp_path / "a")


def test_no_file(tmp_path):
    with pytest.raises(DataError, match=r"expected a checkpoint at .*nothing; there is no such"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(DataError, match="expected to read a checkpoint at"):
        load_checkpoint(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"No such file or directory\. Make its folder"):
        save_checkpoint(tmp_path / "nowhere" / "a", ARRAYS)


# ---- accidents -------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "a"
    save_checkpoint(path, ARRAYS, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if moment == "write":
        # The real thing, where there is one: a device that is always full.
        class Full(type(path)):
            def open(self, *_):
                return type(path)("/dev/full").open("wb")

        if not type(path)("/dev/full").exists():
            pytest.skip("needs /dev/full")
        monkeypatch.setattr(files, "Path", Full)
    else:
        monkeypatch.setattr(files.os, moment, full)
    with pytest.raises(DataError, match=r"expected to write .* bytes to .* No space left on dev"):
        save_checkpoint(path, ARRAYS, "new")
    monkeypatch.undo()
    assert load_checkpoint(path)[1] == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if not sys.platform.startswith("linux") or subprocess.run(mount, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        save_checkpoint(tmp_path / "a", {"x": np.ones(1000, np.float32)}, "old")
        with pytest.raises(DataError, match="No space left on device"):
            save_checkpoint(tmp_path / "a", {"x": np.ones(100_000, np.float32)}, "new")
        assert load_checkpoint(tmp_path / "a")[1] == "old"
        assert names(tmp_path) == ["a"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_while_writing(tmp_path, moment):
    """The name holds the old file; the part that was written lies beside it."""
    path = tmp_path / "a"
    save_checkpoint(path, ARRAYS, "old")
    program = f"""
        import os, signal
        from tinydilate.io import checkpoint, files
        files.os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        import numpy as np
        checkpoint.save_checkpoint({str(path)!r}, {{"x": np.ones(3)}}, "new")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert load_checkpoint(path)[1] == "old"
    assert len(names(tmp_path)) == 2


def test_what_cannot_be_saved_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(DataError, match=r"got ReLU\. Pass module\.state_dict\(\)\.$"):
        save_checkpoint(path, nn.ReLU())
    found = "^expected a note that JSON can hold: .* ndarray is not JSON serializable"
    with pytest.raises(DataError, match=found):
        save_checkpoint(path, {}, note={"mean": np.zeros(3)})
    assert not path.exists()
