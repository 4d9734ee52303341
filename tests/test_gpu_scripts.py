"""The programs that are run on a GPU, tried without one: what they report, and when they stop."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from programs import ROOT, load

from tinydilate import gpu_checkup
from tinydilate.errors import DeviceError

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
    text = (ROOT / "benchmarks/results/demo_seeds.json").read_text(encoding="utf-8")
    run = next(run for run in json.loads(text)["runs"] if run["seed"] == 0)
    front, joint = run["front end"], run["with context"]
    assert front - 0.1 < script.DEMO["front"] < front
    assert joint - 0.1 < script.DEMO["joint"] < joint


def test_a_step_that_breaks_hides_none_after_it(monkeypatch, capsys):
    def breaks(setting):
        raise OSError("no such luck")

    steps = {"one": breaks, "two": lambda setting: script.Outcome("passed", "fine")}
    monkeypatch.setattr(script, "STEPS", steps)
    written = []
    rows = script.run_steps(SETTING, ["one", "two"], lambda rows: written.append(len(rows)))
    assert written == [1, 2]
    assert [row["verdict"] for row in rows] == ["failed", "passed"]
    assert rows[0]["detail"] == "OSError: no such luck"
    late = script.run_steps(SETTING._replace(ends=0), ["two"], written.append)
    assert late[0]["verdict"] == "left out"
    assert "the time was up" in capsys.readouterr().out


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    outcome = script.tests(SETTING)
    assert outcome.verdict == "left out"
    assert outcome.detail == "missing: pytest hypothesis; pip install 'pytest' 'hypothesis'"


def test_a_pytest_that_would_not_read_our_settings_is_not_used(monkeypatch):
    monkeypatch.setattr(script, "version", lambda name: "8.4.2")
    outcome = script.tests(SETTING)
    assert outcome.verdict == "left out"
    assert outcome.detail == "missing: pytest>=9; pip install 'pytest>=9'"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_each_generation_of_libraries_has_an_environment_that_was_made_for_it():
    for line in ("cuda13", "cuda12"):
        command = ["make", "--dry-run", "test-gpu", f"CUDA={line}", "VENV=/nowhere/venv"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert "-m venv --clear /nowhere/venv-cuda" in said
        assert f"[test,{line}]" in said
        assert f"touch /nowhere/venv-cuda/ready-{line}" in said


def test_a_program_that_takes_too_long():
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    assert script.call(command, 2.0) == (124, "begun\n")


def test_each_sanitizer_is_asked(monkeypatch):
    asked = []

    def call(command, seconds):
        asked.append(command[2])
        return (9, "Invalid __global__ write") if command[2] == "racecheck" else (0, "")

    monkeypatch.setattr(script.shutil, "which", lambda name, path: None)
    assert script.sanitizer(SETTING).verdict == "left out"
    monkeypatch.setattr(script.shutil, "which", lambda name, path: "/usr/bin/compute-sanitizer")
    monkeypatch.setattr(script, "call", call)
    outcome = script.sanitizer(SETTING)
    assert asked == list(script.SANITIZERS)
    assert outcome.verdict == "failed"
    assert "racecheck: exit code 9: Invalid __global__ write" in outcome.detail
    late = script.sanitizer(SETTING._replace(ends=0))
    assert (late.verdict, late.detail) == ("left out", "the time was up before memcheck")


def test_the_small_run_is_timed_twice_with_one_cache(monkeypatch):
    folders = []

    def call(command, seconds, **settings):
        folders.append(settings["TINYDILATE_CACHE"])
        return len(folders) > 2, "loss 1.1"

    monkeypatch.setattr(script, "call", call)
    outcome = script.first_run(SETTING)
    assert outcome.verdict == "passed"
    assert list(outcome.figures) == ["seconds_compiling", "seconds_from_the_cache"]
    assert folders[0] == folders[1]
    assert script.first_run(SETTING).verdict == "failed"


def test_the_report_is_written(monkeypatch, tmp_path, capsys):
    steps = {"doctor": lambda setting: script.Outcome("passed", "fine")}
    monkeypatch.setattr(script, "STEPS", steps)
    monkeypatch.setattr(gpu_checkup, "look", lambda: gpu_checkup.Facts(simulated=True, numpy="2.4"))
    path = tmp_path / "report.json"
    assert script.main(["--json", str(path)]) == 0

    def stops(setting):
        before = json.loads(path.read_text(encoding="utf-8"))
        assert (before["passed"], len(before["steps"])) == (False, 1)
        raise KeyboardInterrupt

    steps["tests"] = stops
    with pytest.raises(KeyboardInterrupt):
        script.main(["--json", str(path)])
    del steps["tests"]
    assert script.main(["--json", str(path)]) == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["passed"]
    assert report["complete"]
    assert report["steps"][0]["step"] == "doctor"
    assert {"device", "driver", "date", "packages", "libraries"} <= report["machine"].keys()
    assert "all passed" in capsys.readouterr().out


def without_a_gpu(path, *arguments):
    code = "import runpy, sys; from tinydilate import gpu_checkup as g; g.look = lambda: g.Facts()"
    code += f"; sys.path.insert(0, {str((ROOT / path).parent)!r})"
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


# ---- benchmarks/gpu.py -----------------------------------------------------------------------

bench = load("benchmarks", "gpu")
ANYTHING = bench.Setting(None, 1, True, lambda part, name: True, lambda part, rows: None)


def test_without_a_gpu_the_benchmark_says_so_and_stops():
    done = without_a_gpu("benchmarks/gpu.py")
    assert done.returncode == 2, done.stderr
    assert done.stdout == (
        "Expected a GPU; no NVIDIA GPU or no driver; everything runs on the processor. Run this "
        "where there is one, or try the program itself: NUMBA_ENABLE_CUDASIM=1 python "
        "benchmarks/gpu.py --dry\n"
    )


def test_what_else_is_missing_is_said(monkeypatch):
    card = gpu_checkup.Card("NVIDIA H100", (9, 0))
    facts = gpu_checkup.Facts(smi=True, driver="580.65.06", cards=(card,))
    monkeypatch.setattr(bench.device, "SIMULATED", False)
    monkeypatch.setattr(gpu_checkup, "look", lambda: facts)
    monkeypatch.setattr(bench.device, "cuda_problem", lambda: "numba-cuda is missing.")
    assert bench.what_is_missing(False) == "Expected a GPU to compute on; numba-cuda is missing."
    said = "numba-cuda is missing. Or set NUMBA_ENABLE_CUDASIM=1 for a dry run."
    assert bench.what_is_missing(True) == said
    monkeypatch.setattr(bench.device, "cuda_problem", lambda: None)
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert bench.what_is_missing(False).startswith("Expected PyTorch to compare with: ")
    assert bench.what_is_missing(True) is None
    monkeypatch.setattr(bench.device, "SIMULATED", True)
    assert "Unset NUMBA_ENABLE_CUDASIM, or add --dry." in bench.what_is_missing(False)


def test_a_row_that_fails_is_reported_and_ends_nothing(capsys):
    def breaks():
        raise ValueError("the results differ\nby much")

    row = bench.attempt("conv1_1, forward", breaks)
    assert row == {"name": "conv1_1, forward", "failed": "ValueError: the results differ"}
    good = bench.attempt("conv1_2, forward", lambda: {"tinydilate_ms": 2.0, "tflops": 3.0})
    text = bench.as_table("layers", [row, good])
    assert text.splitlines()[2].split() == ["conv1_1,", "forward", "-", "-", "-"]
    assert text.splitlines()[3].split() == ["conv1_2,", "forward", "3.00", "-", "-"]
    assert text.splitlines()[4] == "conv1_1, forward: ValueError: the results differ"


def test_the_mean_is_of_the_layers_over_a_gflop():
    rows = [
        {"gflop": 2.0, "torch_over_tinydilate": 0.5},
        {"gflop": 9.0, "torch_over_tinydilate": 2.0},
        {"gflop": 0.5, "torch_over_tinydilate": 9.0},
        {"gflop": 9.0, "failed": "no such luck"},
    ]
    found = bench.over_a_gflop(rows)
    assert found == {"geometric_mean": 1.0, "smallest_ratio": 0.5, "over_a_gflop": 2}
    assert bench.over_a_gflop(rows[2:]) == {}


def test_results_that_differ_stop_a_row():
    class Torch:
        @staticmethod
        def as_tensor(array, device):
            return array

    setting = ANYTHING._replace(torch=Torch)
    ones = np.ones((2, 3))
    bench.check(setting, ones, ones + 1e-5)
    with pytest.raises(ValueError, match=r"^the results differ by 5\.0e-01 of the largest number$"):
        bench.check(setting, ones, 2 * ones)
    with pytest.raises(ValueError, match="differ by nan"):
        bench.check(setting, np.nan * ones, ones)


@pytest.mark.gpu
def test_a_dry_run_goes_through_all_parts(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert bench.main(["--dry", "--json", str(path)]) == 0
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert figures["dry"]
    assert figures["gpu"]["date"]
    for part in bench.PARTS:
        rows = figures[part]["rows"]
        assert [row.get("failed") for row in rows] == [None] * len(rows)
        assert all(row["tinydilate_ms"] > 0 for row in rows)
    assert "launches" in capsys.readouterr().out


@pytest.mark.gpu
def test_tf32_is_allowed_for_the_run_and_no_longer(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinydilate.gpu_tf32.check_card", lambda: None)  # older ones refuse it
        patch.setitem(bench.PARTS, "layers", lambda setting: seen.append(setting.tf32) or {})
        assert bench.main(["--dry", "--tf32", "--only", "layers", "--json", str(path)]) == 0
    assert seen == [True]
    assert json.loads(path.read_text(encoding="utf-8"))["tf32"] is True
    assert not bench.td.get_tf32()
    capsys.readouterr()


def test_a_card_that_cannot_is_said_and_ends_it(monkeypatch, capsys):
    def refuse(wanted):
        if wanted:
            raise DeviceError("expected a GPU of compute capability 8.0 or later")

    monkeypatch.setattr(bench, "what_is_missing", lambda dry: None)
    monkeypatch.setattr(bench.td, "set_tf32", refuse)
    assert bench.main(["--dry", "--tf32"]) == 2
    assert "8.0 or later" in capsys.readouterr().out


def test_an_option_that_the_card_refuses_costs_no_measurement(monkeypatch, capsys):
    """TINYDILATE_TF32=on on an old card: it is measured without, and ends well."""

    def refuse(wanted):
        if wanted:
            raise DeviceError("expected a GPU of compute capability 8.0 or later.")

    monkeypatch.setattr(bench, "what_is_missing", lambda dry: "")
    monkeypatch.setattr(bench.td, "get_tf32", lambda: True)
    monkeypatch.setattr(bench.td, "set_tf32", refuse)
    monkeypatch.setattr(bench, "run_parts", lambda options: 0)
    assert bench.main([]) == 0


# ---- scripts/compile_kernels.py --------------------------------------------------------------

compiling = load("scripts", "compile_kernels")


@pytest.mark.parametrize(
    ("numbers", "status", "said"),
    [
        ((0, 0, 0), 2, "Nothing was compiled: no kernel has 'pack' in its name.\n"),
        ((0, 0, 3), 0, "Nothing was compiled: all 3 (-) need a later card.\n"),
        ((4, 1, 0), 1, "3 passed, 1 failed\n"),
        ((4, 0, 1), 0, "4 passed, 0 failed\n1 left out (-): kernels that need a later card\n"),
    ],
)
def test_what_was_compiled_is_said(capsys, numbers, status, said):
    assert compiling.conclude("pack", *numbers) == status
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("LDS.128 R4, [R1] ;\nHMMA.1688.F32.TF32 R8, R4, R6, R8", []),
        ("LDS R4, [R1] ;\nHMMA.1688.F32.TF32 R8, R4, R6, R8", ["LDS.128"]),
        ("LDS.U.128 R4, [R1] ;\nFFMA R8, R4, R6, R8", ["HMMA.1688.F32.TF32"]),
    ],
)
def test_a_kernel_must_contain_what_it_declares(monkeypatch, code, found):
    monkeypatch.setattr(compiling, "machine_code", lambda cubin, program: code)
    kernel = SimpleNamespace(registers=128, wide_loads=True, instruction="HMMA.1688.F32.TF32")
    report = compiling.Report(128, 0, 0, 0, b"")
    faults = compiling.faults(kernel, report, "nvdisasm")
    assert len(faults) == len(found)
    assert all(
        f"no {name}, though it declares" in fault for name, fault in zip(found, faults, strict=True)
    )


@pytest.mark.gpu
def test_a_part_or_a_row_can_be_chosen(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert bench.main(["--dry", "--only", "F.relu", "--json", str(path)]) == 0
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert [row["name"] for part in bench.PARTS for row in figures[part]["rows"]] == ["F.relu"]
    assert bench.main(["--dry", "--only", "launches", "--json", str(path)]) == 0
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert "ops" not in figures
    assert len(figures["launches"]["rows"]) == 4
    capsys.readouterr()


@pytest.mark.gpu
def test_a_run_that_is_out_of_time_names_what_it_left_out(tmp_path, capsys, monkeypatch):
    path, seen = tmp_path / "gpu.json", []
    assert bench.main(["--dry", "--only", "launches", "--limit", "-1", "--json", str(path)]) == 0
    figures = json.loads(path.read_text(encoding="utf-8"))
    names = ["relu kernel", "F.relu", "F.add", "Adam, 28 parameters"]
    assert (figures["launches"]["rows"], figures["left_out"]) == ([], names)
    assert f"left out after -1 s: {', '.join(names)}" in capsys.readouterr().out

    def cut_short(name, measure):
        if path.exists():
            seen.append(json.loads(path.read_text(encoding="utf-8")))
        if name == "F.add":
            raise KeyboardInterrupt
        return {"name": name, "tinydilate_ms": 1.0}

    monkeypatch.setattr(bench, "attempt", cut_short)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--dry", "--only", "launches", "--json", str(path)])
    assert [row["name"] for row in seen[-1]["launches"]["rows"]] == ["relu kernel", "F.relu"]
    assert seen[-1]["finished"] is False
