"""Machine code on disk: two writers at once, a lock that nobody gives back, damaged files."""

import contextlib
import pickle
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tinydilate import kept
from tinydilate.kept import Kept, locked


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


def kept_in(folder, missing=lambda: None):
    return Kept(Files(folder), folder / "lock", missing)


@pytest.fixture
def unlocked(monkeypatch):
    monkeypatch.setattr(kept, "_acquire", lambda file, patience: True)


def write_both_at_once(folder):
    writers = [
        threading.Thread(target=kept_in(folder).save_overload, args=(kind, f"code for {kind}"))
        for kind in ("float32", "float64")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    return [kept_in(folder).load_overload(kind, None) for kind in ("float32", "float64")]


def test_two_writers_at_once_keep_both():
    with tempfile.TemporaryDirectory() as folder:
        assert write_both_at_once(Path(folder)) == ["code for float32", "code for float64"]


def test_without_the_lock_they_do_not(tmp_path, unlocked):
    """What the lock is for: this is not Numba's promise, and the test above can fail."""
    assert write_both_at_once(tmp_path) != ["code for float32", "code for float64"]


def test_missing_code_is_announced(tmp_path):
    missing = []
    loop = kept_in(tmp_path, lambda: missing.append(1))
    assert loop.load_overload("float32", None) is None
    loop.save_overload("float32", "code")
    assert loop.load_overload("float32", None) == "code"
    assert missing == [1]


@pytest.mark.parametrize("damaged", ["loop.nbi", "loop.1.nbc"])
@pytest.mark.parametrize("left", [0, 3, 20])
def test_damaged_files_are_as_good_as_none(tmp_path, damaged, left):
    missing = []
    loop = kept_in(tmp_path, lambda: missing.append(1))
    loop.save_overload("float32", "some code, and more of it")
    path = tmp_path / damaged
    path.write_bytes(path.read_bytes()[:left])
    assert loop.load_overload("float32", None) is None
    assert missing == [1]
    loop.save_overload("float32", "new code")
    assert loop.load_overload("float32", None) == "new code"


def test_an_error_of_the_disk_is_not_taken_for_damage(tmp_path):
    def full(*_):
        raise OSError("no space left")

    loop = kept_in(tmp_path)
    loop._cache.load_overload = loop._cache.save_overload = full
    with pytest.raises(OSError, match="no space"):
        loop.load_overload("float32", None)
    with pytest.raises(OSError, match="no space"):
        loop.save_overload("float32", "code")


def test_whoever_holds_the_lock_keeps_others_waiting_but_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "locked", lambda path: locked(path, patience=0.05))
    loop = kept_in(tmp_path)
    with locked(tmp_path / "lock") as mine, locked(tmp_path / "lock", patience=0) as second:
        assert mine
        assert not second
        loop.save_overload("float32", "code")
    assert loop.load_overload("float32", None) is None  # it was not kept
    with locked(tmp_path / "lock", patience=0) as free:
        assert free


def test_an_exception_gives_the_lock_back(tmp_path):
    with contextlib.suppress(ZeroDivisionError), locked(tmp_path / "lock"):
        raise ZeroDivisionError
    with locked(tmp_path / "lock", patience=0) as free:
        assert free


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
