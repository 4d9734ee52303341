"""Machine code on disk: two writers at once, a lock that nobody gives back, damaged files."""

import contextlib
import os
import pickle
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numba import types

from tinydilate import compiling, kept
from tinydilate.functional.arithmetic import _slope_base
from tinydilate.kept import Kept, locked
from tinydilate.kernel import Elementwise

FLOAT32, FLOAT64 = (types.float32,), (types.float64,)


class Code(NamedTuple):
    """What is kept in the place of machine code."""

    text: str
    kinds: tuple

    @property
    def signature(self):
        return types.void(*self.kinds)


class Files:
    """Numba's files of a loop, read slowly; the code is any object."""

    def __init__(self, folder):
        from numba.core.caching import IndexDataCacheFile

        class Slow(IndexDataCacheFile):
            def _load_index(self):
                found = super()._load_index()
                time.sleep(0.05)  # in which another process might choose the same number
                return found

        self.files = Slow(str(folder), "loop", "stamp")

    def load_overload(self, signature, context):
        return self.files.load(signature)

    def save_overload(self, signature, code):
        self.files.save(signature, code)

    def flush(self):
        self.files.flush()


def kept_in(folder, missing=lambda: None, no_room=lambda error: None):
    return Kept(Files(folder), folder / "lock", missing, no_room)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(Kept, "patience", 5.0)


@pytest.fixture
def unlocked(monkeypatch):
    monkeypatch.setattr(kept, "_acquire", lambda file, patience: True)


def write_both_at_once(folder):
    writers = [
        threading.Thread(target=kept_in(folder).save_overload, args=(kinds, Code("", kinds)))
        for kinds in (FLOAT32, FLOAT64)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    return [kept_in(folder).load_overload(kinds, None) for kinds in (FLOAT32, FLOAT64)]


BOTH = [Code("", FLOAT32), Code("", FLOAT64)]


def test_two_writers_at_once_keep_both():
    with tempfile.TemporaryDirectory() as folder:
        assert write_both_at_once(Path(folder)) == BOTH


def test_without_the_lock_they_do_not(tmp_path, unlocked):
    """What the lock is for: this is not Numba's promise, and the test above can fail."""
    assert write_both_at_once(tmp_path) != BOTH


def test_missing_code_is_announced(tmp_path):
    missing = []
    loop = kept_in(tmp_path, lambda: missing.append(1))
    assert loop.load_overload(FLOAT32, None) is None
    loop.save_overload(FLOAT32, Code("", FLOAT32))
    assert loop.load_overload(FLOAT32, None) == Code("", FLOAT32)
    assert missing == [1]


@pytest.mark.parametrize("damaged", ["loop.nbi", "loop.1.nbc"])
@pytest.mark.parametrize("left", [0, 3, 20])
def test_damaged_files_are_as_good_as_none(tmp_path, damaged, left):
    missing = []
    loop = kept_in(tmp_path, lambda: missing.append(1))
    loop.save_overload(FLOAT32, Code("some code, and more of it", FLOAT32))
    path = tmp_path / damaged
    path.write_bytes(path.read_bytes()[:left])
    assert loop.load_overload(FLOAT32, None) is None
    assert missing == [1]
    loop.save_overload(FLOAT32, Code("new", FLOAT32))
    assert loop.load_overload(FLOAT32, None).text == "new"


def test_code_for_other_types_is_none(tmp_path):
    """The index was emptied and written anew, and the process killed before it wrote the code."""
    loop = kept_in(tmp_path)
    loop.save_overload(FLOAT32, Code("old", FLOAT32))
    old = (tmp_path / "loop.1.nbc").read_bytes()
    (tmp_path / "loop.nbi").unlink()
    loop.save_overload(FLOAT64, Code("new", FLOAT64))
    (tmp_path / "loop.1.nbc").write_bytes(old)
    assert loop.load_overload(FLOAT64, None) is None


def test_without_room_nothing_is_kept_and_somebody_told(tmp_path):
    def full(*_):
        raise OSError("no space left")

    told = []
    loop = kept_in(tmp_path, no_room=told.append)
    loop._cache.save_overload = full
    loop.save_overload(FLOAT32, Code("", FLOAT32))
    assert [str(error) for error in told] == ["no space left"]


def test_a_file_that_cannot_be_read_is_none(tmp_path):
    """It was made by another user, or is no file."""
    missing = []
    loop = kept_in(tmp_path, lambda: missing.append(1))
    (tmp_path / "loop.nbi").mkdir()
    assert loop.load_overload(FLOAT32, None) is None
    assert missing == [1]


def test_whoever_holds_the_lock_keeps_others_waiting_but_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(Kept, "patience", 0.05)
    loop = kept_in(tmp_path)
    with locked(tmp_path / "lock") as mine, locked(tmp_path / "lock", patience=0) as second:
        assert mine
        assert not second
        loop.save_overload(FLOAT32, Code("", FLOAT32))
    assert loop.load_overload(FLOAT32, None) is None  # it was not kept
    assert Kept.patience == 0, "each further loop would wait as long"
    with locked(tmp_path / "lock", patience=0) as free:
        assert free


def test_an_exception_gives_the_lock_back(tmp_path):
    with contextlib.suppress(ZeroDivisionError), locked(tmp_path / "lock"):
        raise ZeroDivisionError
    with locked(tmp_path / "lock", patience=0) as free:
        assert free


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_was_forked_meanwhile_does_not_keep_the_lock(tmp_path):
    ours, theirs = os.pipe()
    with locked(tmp_path / "lock"):
        child = os.fork()
        if child == 0:  # lives on until the pipe's other end is closed
            os.close(theirs)
            os.read(ours, 1)
            os._exit(0)
    try:
        with locked(tmp_path / "lock", patience=0) as free:
            assert free
    finally:
        os.close(theirs)
        os.waitpid(child, 0)
        os.close(ours)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owner here")
def test_a_lock_of_another_users_is_seen(tmp_path, monkeypatch):
    real = os.open

    def not_ours(path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError("not yours")
        return real(path, flags, *mode)

    with locked(tmp_path / "lock"):
        monkeypatch.setattr(os, "open", not_ours)
        with locked(tmp_path / "lock", patience=0) as free:
            assert not free


def test_damaged_files_of_a_ufunc_are_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path)
    numbers = np.ones(2, np.float32)
    for _ in range(2):
        assert Elementwise(_slope_base)(numbers, numbers).dtype == np.float32
        files = sorted(tmp_path.rglob("*_slope_base*.nb*"))
        assert [path.suffix for path in files] == [".nbc", ".nbi"]
        assert all(path.stat().st_size > 100 for path in files)
        for path in files:
            path.write_bytes(path.read_bytes()[:20])


def test_where_files_cannot_be_locked_nobody_waits(tmp_path, monkeypatch):
    with locked(tmp_path / "no such folder" / "lock") as free:
        assert free

    def no_locks(file):
        raise OSError("not supported here")

    monkeypatch.setattr(kept, "_lock", no_locks)
    with locked(tmp_path / "lock") as free:
        assert free


def test_what_numba_asks_of_its_cache_it_is_told(tmp_path):
    loop = kept_in(tmp_path)
    assert loop.files is loop._cache.files
    with pytest.raises(AttributeError):
        pickle.dumps(loop.nothing)
