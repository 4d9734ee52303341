"""The doctor: what it finds here, and what it says where something is broken."""

import json
import subprocess
import types

import pytest

from tinydilate import cli, doctor
from tinydilate.doctor import CHECKS, Finding, examine


def test_nothing_is_broken_here():
    findings = examine()
    assert [finding.what for finding in findings] == list(CHECKS)
    assert not [finding for finding in findings if finding.mark == "fail"]
    for finding in findings:
        assert finding.mark in ("ok", "note")
        assert finding.found
        assert bool(finding.next_step) == (finding.mark != "ok"), finding


def test_the_command(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {finding["what"] for finding in findings} == set(CHECKS)
    assert "numpy" in findings[0]["found"]


def test_a_failure_has_exit_code_1_and_a_next_step(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "CHECKS", {"disk": lambda what: Finding("fail", what, "none", "Buy one.")}
    )
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "disk: Buy one."


def test_a_check_that_breaks_is_a_finding():
    def broken(_):
        raise ValueError("no such luck")

    before = dict(CHECKS)
    CHECKS.clear()
    CHECKS["luck"] = broken
    try:
        (finding,) = examine()
    finally:
        CHECKS.clear()
        CHECKS.update(before)
    assert (finding.mark, finding.found) == ("fail", "ValueError: no such luck")
    assert "report this line" in finding.next_step


@pytest.mark.parametrize(
    ("count", "cores", "mark", "advice"),
    [(2, 2, "ok", ""), (4, 2, "note", "NUMBA_NUM_THREADS=2"), (1, 2, "note", "Unset NUMBA")],
)
def test_threads(monkeypatch, count, cores, mark, advice):
    monkeypatch.setattr(doctor, "get_num_threads", lambda: count)
    monkeypatch.setattr(doctor, "available_cores", lambda: cores)
    finding = doctor._threads("threads")
    assert finding.mark == mark
    assert advice in finding.next_step


def test_wrong_results_are_noticed(monkeypatch):
    answers = iter(range(100))
    monkeypatch.setattr(doctor, "_tiny_convolution", lambda: doctor.np.array([next(answers)]))
    assert doctor._two_threads("threads").mark == "fail"
    finding = doctor._compiling("kernels")
    assert finding.mark == "fail"
    assert "Delete the cache folder" in finding.next_step


def test_a_cache_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr(doctor, "cache_folder", lambda: None)
    finding = doctor._cache("cache")
    assert finding.mark == "fail"
    assert "Set TINYDILATE_CACHE" in finding.next_step


@pytest.mark.skipif(not hasattr(doctor.os, "fork"), reason="there is no fork")
def test_there_are_threads_before_the_child_is_forked(monkeypatch):
    seen = []
    monkeypatch.setattr(doctor, "set_num_threads", lambda count: seen.append(count))
    monkeypatch.setattr(doctor, "_tiny_convolution", lambda: seen.append("computed"))
    monkeypatch.setattr(doctor.os, "fork", lambda: seen.append("forked") or 7)
    monkeypatch.setattr(doctor.os, "waitpid", lambda child, _: (child, 3 << 8))
    with pytest.raises(SystemExit, match=r"^3$"):
        doctor._fork_a_child()
    assert seen == [2, "computed", "forked"]


def test_a_forked_child_that_fails(monkeypatch):
    done = types.SimpleNamespace(returncode=-14)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    finding = doctor._fork("fork")
    if hasattr(doctor.os, "fork"):
        assert finding.mark == "fail"
        assert "spawn" in finding.next_step


def test_a_missing_package(monkeypatch):
    real = doctor.importlib.metadata.version

    def version(name):
        if name == "tqdm":
            raise doctor.importlib.metadata.PackageNotFoundError
        return real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    finding = doctor._versions("versions")
    assert finding.mark == "fail"
    assert finding.next_step.endswith("-m pip install tqdm")
