"""Everything that only a GPU can show, in one command of at most eight minutes.

    make test-gpu                                      with an environment .venv-cuda
    make test-gpu GPU_PYTHON=python3                   with a Python that has all it needs already
    python3 scripts/test_gpu.py --json report.json

The steps: the doctor's look at the GPU; a small run; the demo, trained there to the figures that it
reaches on the CPU; the small run under compute-sanitizer, where that program is; and every test
that is marked for a GPU (each twin against its reference between guards, each op from end to end
against the CPU, gradients in float64, the same bits twice, ten thousand training steps in the
memory of a few). Nothing has to be installed: the folder that this script stands in is put on
Python's path. The tests come last, for they take what time is left: on one H100 the rest took a
minute, and the tests 58 seconds in fourteen processes, which is how many there are at most, and for
which pytest-xdist has to be there.

The report is written after each step. One that cannot run for want of a package or of time is
reported as left out, and the report as incomplete.
With NUMBA_ENABLE_CUDASIM=1 or --tiny the steps are the same and small, to try the script itself.
Exit code 0: all passed. 1: something failed. 2: there is no GPU, or a step was left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LIMIT = 470  # seconds for all steps together
# Mean IoU of the demo, seed 0, on the CPU (docs/measurements.md), less what seeds differ by.
DEMO = {"front": 0.42, "joint": 0.77}
SANITIZERS = ("memcheck", "racecheck", "initcheck")


class Outcome(NamedTuple):
    """How a step went."""

    verdict: str  # "passed", "failed", "left out"
    detail: str
    figures: dict[str, Any] | None = None


class Setting(NamedTuple):
    """What the steps are given."""

    tiny: bool
    ends: float  # of time.monotonic()
    select: str  # pytest's -k

    def rest(self, most: float) -> float:
        """Seconds that a step may take."""
        return max(1.0, min(most, self.ends - time.monotonic()))


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {name: value for name, value in os.environ.items() if name != "TINYDILATE_EMULATED_GPU"}
    return {**given, "PYTHONPATH": os.pathsep.join(paths)}


def call(
    command: list[str], seconds: float, folder: Path = ROOT, **settings: str
) -> tuple[int, str]:
    """Exit code and output of a program; 124 if it took too long."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment() | settings, timeout=seconds, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as stop:
        output = stop.stdout or b""
        return 124, output.decode(errors="replace") if isinstance(output, bytes) else output
    return done.returncode, done.stdout


def tail(text: str, lines: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


# ---- the steps -------------------------------------------------------------------------------


def look(setting: Setting) -> Outcome:
    """The doctor's lines on the GPU."""
    from tinydilate import gpu_checkup

    findings = gpu_checkup.examine()
    said = "\n".join(f"{f.what}: {f.found} {f.next_step}".strip() for f in findings)
    simulated = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
    sound = simulated or findings[-1].what == "GPU: a kernel"
    sound = sound and not any(f.mark == "fail" for f in findings)
    return Outcome("passed" if sound else "failed", said)


def tests(setting: Setting) -> Outcome:
    """Every test marked `gpu`."""
    missing = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    if "pytest" not in missing and int(version("pytest").partition(".")[0]) < 9:
        missing.append("pytest>=9")  # which reads its settings from where ours stand
    if missing:
        wanted = " ".join(f"'{name}'" for name in missing)
        return Outcome("left out", f"missing: {' '.join(missing)}; pip install {wanted}")
    has_xdist = find_spec("xdist") is not None
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            *(sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short"),
            *("-W", "default", f"--junitxml={report}"),  # warnings are shown, and fail nothing
            *(["-k", setting.select] if setting.select else []),
            # Each process compiles for itself, which takes longer than to run; so several.
            *(["-n", str(min(14, os.cpu_count() or 1))] if has_xdist and not setting.tiny else []),
        ]
        code, output = call(command, setting.rest(LIMIT))
        counts, failed = read_junit(report)
    verdict = "passed" if code == 0 and counts.get("tests") else "failed"
    detail = tail(output) if code else f"{counts}"
    if code == 124:
        detail = f"took too long\n{detail}"
    return Outcome(verdict, detail, {**counts, "failed": failed})


def read_junit(report: Path) -> tuple[dict[str, int], list[str]]:
    """(how many tests, failures, errors, skipped; the names of those that did not pass)."""
    if not report.exists():
        return {}, []
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    counts = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in names}
    cases = [case for suite in suites for case in suite.iter("testcase")]
    return counts, [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]


def demo(setting: Setting) -> Outcome:
    """The demo's training, on the GPU, beside the figures that it reaches on the CPU."""
    if setting.tiny:
        return Outcome("left out", "its steps would take hours in the simulator")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "tinydilate", "train", "--device", "cuda"]
        command += ["--out", str(out)]
        begin = time.monotonic()
        code, output = call(command, setting.rest(150), Path(folder))
        if code:
            return Outcome("failed", f"exit code {code}\n{tail(output)}")
        networks = json.loads((out / "results.json").read_text(encoding="utf-8"))["networks"]
    figures = {name: networks[name]["mean_iou"] for name in DEMO if name in networks}
    figures["seconds"] = round(time.monotonic() - begin, 1)
    return judge_demo(figures)


def judge_demo(figures: dict[str, float]) -> Outcome:
    short = [name for name, least in DEMO.items() if not figures.get(name, 0) >= least]
    said = ", ".join(
        f"{name} {figures.get(name)} (at least {least})" for name, least in DEMO.items()
    )
    return Outcome("failed" if short else "passed", said, dict(figures))


def sanitizer(setting: Setting) -> Outcome:
    """The small run below under compute-sanitizer: wrong addresses, races, unwritten memory."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(str(Path(home, "bin")) for home in homes if home)]
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if program is None:
        return Outcome("left out", "there is no compute-sanitizer on the path (CUDA toolkit)")
    found = {}
    for tool in SANITIZERS:
        if setting.rest(60) < 20:
            return Outcome("left out", f"the time was up before {tool}", found)
        # Python's bindings of the driver ask for functions that an older one may not have.
        command = [program, "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
        command += [sys.executable, str(ROOT / "scripts" / "test_gpu.py"), "--small-run"]
        code, output = call(command, setting.rest(60))
        found[tool] = "clean" if code == 0 else f"exit code {code}: {tail(output)}"
    verdict = "passed" if set(found.values()) == {"clean"} else "failed"
    return Outcome(verdict, "\n".join(f"{tool}: {text}" for tool, text in found.items()), found)


def small_run() -> None:
    """A training step of a small network: its kernels once forwards and once backwards."""
    import numpy as np

    from tinydilate import functional as F
    from tinydilate import nn, optim, tensor

    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, relu=True, rng=0),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 3, padding=2, dilation=2, rng=1),
    ).to("cuda")
    optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    random = np.random.default_rng(0)
    x = tensor(random.normal(size=(2, 1, 16, 16)).astype(np.float32), device="cuda")
    labels = tensor(random.integers(0, 3, size=(2, 16, 16)), device="cuda")
    scores = F.interpolate(network(x), scale_factor=2, mode="bilinear")
    loss = F.cross_entropy(scores, labels)
    loss.backward()
    optimizer.step()
    if not 0 < loss.item() < 10:
        raise SystemExit(f"expected a loss near ln 3 = 1.1; got {loss.item()}")
    print(f"loss {loss.item():.4f}")


def first_run(setting: Setting) -> Outcome:
    """The small run by itself, without which the rest has no sense: compiling, and once more."""
    command = [sys.executable, str(ROOT / "scripts" / "test_gpu.py"), "--small-run"]
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for which in ("seconds_compiling", "seconds_from_the_cache"):
            begin = time.monotonic()
            code, output = call(command, setting.rest(120), TINYDILATE_CACHE=folder)
            if code:
                return Outcome("failed", tail(output), figures)
            figures[which] = round(time.monotonic() - begin, 1)
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
    return Outcome("passed", f"{tail(output)}\n{said}", figures)


STEPS: dict[str, Callable[[Setting], Outcome]] = {
    "doctor": look,
    "small run": first_run,
    "demo": demo,
    "sanitizer": sanitizer,
    "tests": tests,
}


# ---- the report ------------------------------------------------------------------------------


Rows = list[dict[str, Any]]


def run_steps(setting: Setting, names: list[str], write: Callable[[Rows], None]) -> Rows:
    rows: Rows = []
    for name in names:
        begin = time.monotonic()
        if setting.ends <= begin:
            outcome = Outcome("left out", "the time was up")
        else:
            try:
                outcome = STEPS[name](setting)
            except Exception as error:  # the steps after it may still tell something
                outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        seconds = round(time.monotonic() - begin, 1)
        print(f"{name:10} {outcome.verdict:9} {seconds:6.1f} s", flush=True)
        print("\n".join(f"           {line}" for line in outcome.detail.splitlines()), flush=True)
        rows.append({"step": name, "seconds": seconds, **outcome._asdict()})
        write(rows)
    return rows


def code_of(rows: list[dict[str, Any]], tiny: bool) -> int:
    """0 all passed, 1 something failed, 2 something was left out that had to run."""
    free = {"sanitizer", "demo"} if tiny else {"sanitizer"}  # the program is not everywhere
    verdicts = [row["verdict"] for row in rows]
    left_out = {row["step"] for row in rows if row["verdict"] == "left out"}
    return 1 if "failed" in verdicts else 2 if left_out - free else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report here")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), help="these steps alone")
    parser.add_argument("-k", default="", help="passed on to pytest: part of the tests' names")
    parser.add_argument("--tiny", action="store_true", help="small steps, to try the script")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds (default: {LIMIT})")
    parser.add_argument("--small-run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.small_run:
        small_run()
        return 0
    from tinydilate import gpu_checkup
    from tinydilate.io.files import write_text

    facts = gpu_checkup.look()
    if not facts.cards and not facts.simulated:
        print(
            f"Expected a GPU; {gpu_checkup.judge(facts)[0].found}. Run this where there is one, or "
            "try the script in the simulator: NUMBA_ENABLE_CUDASIM=1"
        )
        return 2
    setting = Setting(options.tiny or facts.simulated, time.monotonic() + options.limit, options.k)
    begin, names, machine = time.monotonic(), options.only or list(STEPS), gpu_checkup.describe()

    def write(rows: Rows) -> None:
        if options.json:
            done = len(rows) == len(names)
            report = {
                "machine": machine,
                "passed": done and code_of(rows, setting.tiny) == 0,
                "complete": done and all(row["verdict"] != "left out" for row in rows),
                "seconds": round(time.monotonic() - begin, 1),
                "steps": rows,
            }
            write_text(options.json, json.dumps(report, indent=2) + "\n")

    rows = run_steps(setting, names, write)
    code = code_of(rows, setting.tiny)
    if options.json:
        print(f"written: {options.json}")
    print("all passed" if code == 0 else "see above")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
