"""The programs that are run on a GPU, tried without one: what they report, and when they stop."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from tinydilate import gpu_checkup

ROOT = Path(__file__).parents[1]


def load(folder, name):
    spec = spec_from_file_location(f"{folder}_{name}", ROOT / folder / f"{name}.py")
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / folder))
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


script = load("scripts", "test_gpu")
SETTING = script.Setting(tiny=False, ends=float("inf"), select="")

JUNIT = """<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">
<testcase classname="test_ops" name="a"/>
<testcase classname="test_ops" name="b"><failure message="differs"/></testcase>
<testcase classname="test_ops" name="c"><skipped/></testcase>
</testsuite></testsuites>"""


def test_the_report_of_pytest_is_read(tmp_path):
    path = tmp_path / "report.xml"
    assert script.read_junit(path) == ({}, [])
    path.write_text(JUNIT, encoding="utf-8")
    counts = {"tests": 3, "failures": 1, "errors": 0, "skipped": 1}
    assert script.read_junit(path) == (counts, ["test_ops::b"])


@pytest.mark.parametrize(
    ("verdicts", "tiny", "code"),
    [
        ({"doctor": "passed", "demo": "passed"}, False, 0),
        ({"doctor": "passed", "sanitizer": "left out"}, False, 0),
        ({"tests": "left out", "demo": "passed"}, False, 2),
        ({"tests": "left out", "demo": "failed"}, False, 1),
        ({"tests": "passed", "demo": "left out"}, False, 2),
        ({"tests": "passed", "demo": "left out"}, True, 0),
    ],
)
def test_the_exit_code(verdicts, tiny, code):
    rows = [{"step": step, "verdict": verdict} for step, verdict in verdicts.items()]
    assert script.code_of(rows, tiny) == code


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ({"front": 0.476, "joint": 0.824}, "passed"),
        ({"front": 0.476, "joint": 0.70}, "failed"),
        ({"front": 0.1, "joint": 0.824}, "failed"),
        ({"joint": float("nan"), "front": 0.5}, "failed"),
        ({}, "failed"),
    ],
)
def test_the_demo_has_to_reach_the_figures_of_the_cpu(figures, verdict):
    outcome = script.judge_demo(figures)
    assert outcome.verdict == verdict
    assert "joint" in outcome.detail


def test_the_figures_are_those_of_the_measurements():
    text = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| 0 |"))
    front, _, joint, _ = (float(cell.strip(" *")) for cell in row.split("|")[2:6])
    assert front - 0.1 < script.DEMO["front"] < front
    assert joint - 0.1 < script.DEMO["joint"] < joint


def test_a_step_that_breaks_hides_none_after_it(monkeypatch, capsys):
    def breaks(setting):
        raise OSError("no such luck")

    steps = {"one": breaks, "two": lambda setting: script.Outcome("passed", "fine")}
    monkeypatch.setattr(script, "STEPS", steps)
    rows = script.run_steps(SETTING, ["one", "two"])
    assert [row["verdict"] for row in rows] == ["failed", "passed"]
    assert rows[0]["detail"] == "OSError: no such luck"
    late = script.run_steps(SETTING._replace(ends=0), ["two"])
    assert late[0]["verdict"] == "left out"
    assert "the time was up" in capsys.readouterr().out


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    outcome = script.tests(SETTING)
    assert outcome.verdict == "left out"
    assert outcome.detail == "missing: pytest hypothesis; pip install pytest hypothesis"


def test_a_program_that_takes_too_long():
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    assert script.call(command, 2.0) == (124, "begun\n")


def test_each_sanitizer_is_asked(monkeypatch):
    asked = []

    def call(command, seconds):
        asked.append(command[2])
        return (9, "Invalid __global__ write") if command[2] == "racecheck" else (0, "")

    monkeypatch.setattr(script.shutil, "which", lambda _: None)
    assert script.sanitizer(SETTING).verdict == "left out"
    monkeypatch.setattr(script.shutil, "which", lambda _: "/usr/bin/compute-sanitizer")
    monkeypatch.setattr(script, "call", call)
    outcome = script.sanitizer(SETTING)
    assert asked == list(script.SANITIZERS)
    assert outcome.verdict == "failed"
    assert "racecheck: exit code 9: Invalid __global__ write" in outcome.detail


def test_the_report_is_written(monkeypatch, tmp_path, capsys):
    steps = {"doctor": lambda setting: script.Outcome("passed", "fine")}
    monkeypatch.setattr(script, "STEPS", steps)
    monkeypatch.setattr(gpu_checkup, "look", lambda: gpu_checkup.Facts(simulated=True, numpy="2.4"))
    path = tmp_path / "report.json"
    assert script.main(["--json", str(path)]) == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["passed"]
    assert report["complete"]
    assert report["steps"][0]["step"] == "doctor"
    assert {"device", "driver", "date", "packages", "libraries"} <= report["machine"].keys()
    assert "all passed" in capsys.readouterr().out


def without_a_gpu(path, *arguments):
    code = "import runpy, sys; from tinydilate import gpu_checkup as g; g.look = lambda: g.Facts()"
    code += "; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(ROOT / path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_a_gpu_the_tests_say_so_and_stop():
    done = without_a_gpu("scripts/test_gpu.py")
    assert done.returncode == 2, done.stderr
    assert done.stdout == (
        "Expected a GPU; no NVIDIA GPU or no driver; everything runs on the processor. Run this "
        "where there is one, or try the script in the simulator: NUMBA_ENABLE_CUDASIM=1\n"
    )
