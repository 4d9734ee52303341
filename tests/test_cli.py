"""The command line: what is printed where, exit codes, and one sentence for bad input."""

import errno
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tinydilate import cli, device, kernel
from tinydilate.cli import common
from tinydilate.config import Config
from tinydilate.errors import TinydilateError
from tinydilate.train import train

TINY = Config(
    train_scenes=4, validation_scenes=1, test_scenes=2, scene_size=36, batch=2,
    front_steps=2, context_steps=1, joint_steps=1, dilations=(1, 2),
)  # fmt: skip
FLAGS = [
    f"--{name}={value}"
    for name, value in {
        "train-scenes": 4, "validation-scenes": 1, "test-scenes": 2, "scene-size": 36,
        "batch": 2, "front-steps": 2, "context-steps": 1, "joint-steps": 1, "dilations": "1,2",
    }.items()
]  # fmt: skip


@pytest.fixture
def command(capsys):
    """Run a command in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse, after --help
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(TINY, folder, progress=False)
    return folder


def assert_refused(result, pattern):
    """Exit code 2, one sentence on stderr, nothing on stdout."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("tinydilate: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert re.search(pattern, err), err


# ---- help ------------------------------------------------------------------------------------


def test_help(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in ("train", "eval", "predict", "summary", "rf", "ops", "warmup", "doctor"):
        assert re.search(rf"^    {name} ", out, re.MULTILINE), name


@pytest.mark.parametrize("name", ["train", "eval", "predict", "summary", "ops", "warmup", "doctor"])
def test_every_option_is_in_help_with_its_default(command, name):
    code, out, _ = command(name, "--help")
    assert code == 0
    options = out.split("options:", 1)[1]
    for entry in re.split(r"\n  (?=--|-h)", options)[1:]:
        flag = entry.split()[0]
        if flag not in ("-h,", "--json", "--resume"):
            assert "(default: " in " ".join(entry.split()), flag


def test_version(command):
    assert command("--version")[1].startswith("tinydilate 0.")


def test_help_imports_no_heavy_library():
    """What --help needs decides how long it takes; benchmarks/startup.py measures that."""
    program = (
        "import sys; from tinydilate import cli; cli.make_parser().format_help(); "
        "print([n for n in ('numba', 'matplotlib', 'PIL', 'scipy', 'safetensors', 'tqdm.auto')"
        " if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_python_dash_m():
    command = [sys.executable, "-m", "tinydilate", "ops", "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert "conv2d_forward" in json.loads(done.stdout)["convolution"]


# ---- train, eval, predict --------------------------------------------------------------------


def test_train(command, tmp_path):
    code, out, err = command("train", "--out", tmp_path / "a", *FLAGS)
    assert code == 0
    assert "joint: front end + context" in out
    assert f"Look at {tmp_path}/a/predictions.png" in out
    assert "1/4 front end" in err  # the bars
    assert Config.read(tmp_path / "a/config.toml") == TINY
    again = command("train", "--out", tmp_path / "a", "--resume", "--json")
    assert again[0] == 0
    assert json.loads(again[1]) == json.loads((tmp_path / "a/results.json").read_text())


def test_a_file_holds_options_and_the_command_line_has_the_last_word(command, tmp_path):
    (tmp_path / "demo.toml").write_text(TINY.to_toml())
    options = ("--config", tmp_path / "demo.toml", "--front-steps", "3", "--no-comparison")
    code, out, _ = command("train", "--out", tmp_path / "a", "--json", *options)
    assert code == 0
    config = Config.read(tmp_path / "a/config.toml")
    assert config == Config.of({**TINY.to_dict(), "front_steps": 3, "comparison": False})
    assert json.loads(out)["networks"].keys() == {"front", "context", "joint"}


def test_eval(command, folder):
    code, out, _ = command("eval", folder, "--count", "2")
    assert code == 0
    assert "joint.safetensors" in out
    assert "mean IoU 0." in out
    code, out, _ = command("eval", folder, "--network", "front", "--count", "2", "--json")
    value = json.loads(out)
    assert value["checkpoint"].endswith("front.safetensors")
    expected = json.loads((folder / "results.json").read_text())["networks"]["front"]
    assert value["iou"] == expected["iou"]


def test_a_gpu_that_is_not_there(command, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "cuda_problem", lambda: "no driver answers.")
    image = folder / "example.png"
    for arguments in (
        ("train", "--out", tmp_path / "a"),
        ("eval", folder, "--count", 1),
        ("predict", folder, image, "--out", tmp_path / "b"),
    ):
        refused = command(*arguments, "--device", "cuda")
        assert_refused(
            refused, "expected a GPU to compute on; no driver answers. Without one, stay"
        )
    assert not any(tmp_path.iterdir()), "refused before anything was made"


def test_predict(command, folder, tmp_path):
    options = ("--out", tmp_path / "out", "--scale", "0.5")
    code, out, _ = command("predict", folder, folder / "example.png", *options)
    assert code == 0
    assert "background" in out
    with Image.open(tmp_path / "out/example-labels.png") as image:
        assert (image.mode, image.size) == ("P", (18, 18))
    code, out, _ = command("predict", folder, folder / "example.png", *options, "--json")
    (found,) = json.loads(out)["predictions"]
    assert found["overlay"] == str(tmp_path / "out/example-overlay.png")


# ---- tables ----------------------------------------------------------------------------------


def test_summary(command):
    code, out, _ = command("summary", "voc")
    assert code == 0
    assert "141,149,720" in out
    value = json.loads(command("summary", "context-basic", "--json")[1])
    assert value["parameters"] == 28_392
    assert json.loads(command("summary", "demo", "--json")[1])["input_shape"] == [1, 1, 64, 64]
    sized = command("summary", "front-end", "--classes", "19", "--size", "100x60", "--json")
    assert json.loads(sized[1])["input_shape"] == [1, 3, 100, 60]


@pytest.mark.parametrize(
    ("name", "parameters", "output"),
    [
        ("dilation8_voc", 141_149_720, [1, 21, 66, 66]),
        ("dilation8_camvid", 134_313_443, [1, 11, 66, 91]),
        ("dilation7_kitti", 134_312_343, [1, 11, 60, 159]),
        ("dilation10_cityscapes", 134_373_043, [1, 19, 1024, 1024]),
        ("pooled-front-end", 134_346_581, [1, 21, 63, 63]),
        ("deeplab-large-fov", 20_505_429, [1, 21, 41, 41]),
        ("fcn-8s", 134_368_799, [1, 21, 568, 568]),
        ("small-pooled-front-end", 39_739, [1, 11, 32, 32]),
        ("small-large-fov", 72_507, [1, 11, 33, 33]),
        ("small-fcn", 40_278, [1, 11, 70, 70]),
    ],
)
def test_summary_of_the_published_networks_and_what_they_are_compared_with(
    command, name, parameters, output
):
    value = json.loads(command("summary", name, "--json")[1])
    assert value["parameters"] == parameters
    assert value["layers"][-1]["output_shape"] == output


def test_rf_of_a_published_network(command):
    code, out, _ = command("rf", "dilation10_cityscapes", "--json")
    layers = {layer["name"]: layer for layer in json.loads(out)["layers"]}
    assert code == 0
    assert (layers["final"]["extent"], layers["final"]["stride"]) == ([380, 380], [8, 8])
    assert layers["ctx_final"]["extent"] == [2444, 2444]
    assert layers["ctx_upsample"]["stride"] == [1, 1]


def test_summary_knows_the_demo_that_is_trained(command, folder):
    """The table's network is the one that `train` builds."""
    results = json.loads((folder / "results.json").read_text())
    for model, stage in (("demo-front", "front"), ("demo", "joint")):
        value = json.loads(command("summary", model, "--json")[1])
        if stage == "front":
            assert value["parameters"] == results["networks"][stage]["parameters"]
        assert value["layers"][-1]["output_shape"] == [1, 11, 64, 64]


def test_ops(command):
    code, out, _ = command("ops")
    assert code == 0
    head = out.splitlines()[0].split()
    assert head == ["page", "kernel", "numpy", "cpu", "cuda", "meta", "variants"]
    variants = "cpu:direct, cpu:winograd2, cpu:winograd4, cpu:loops"
    assert re.search(rf"^convolution +conv2d_forward +yes +yes +yes +yes +{variants}", out, re.M)
    value = json.loads(command("ops", "--json")[1])
    names = {name for page in value.values() for name in page}
    assert names == set(kernel.KERNELS)
    assert value["optim"]["adam_step"] == ["cpu", "cuda", "meta", "numpy"]


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (
            ["train", "--btach", "3"],
            r"unrecognized arguments: --btach 3. Did you mean --batch\? Run tinydilate train",
        ),
        (
            ["predict", "net", "--scale", "2", "a.png"],
            "unrecognized arguments: a.png. Write options before or after all the paths, not betw",
        ),
        (["ops", "--quick"], "unrecognized arguments: --quick. Run tinydilate ops --help"),
        (["train", "--batch"], "argument --batch: expected one argument"),
        (["train", "--batch", "0"], "expected batch to be a whole number of at least 1; got 0"),
        (["train", "--batch", "many"], "got 'many'"),
        (["train", "--front-lr", "inf"], "expected front_lr to be a finite number"),
        (["train", "--optimizer", "lbfgs"], "expected optimizer to be one of adam, sgd"),
        (["train", "--dilations", "1,x"], "got '1,x'"),
        (["train", "--config", "nothing.toml"], "expected a configuration file at nothing.toml"),
        (["train", "--resume", "--out", "nowhere"], "expected a run to resume in nowhere"),
        (["eval", "nowhere"], "expected a checkpoint at nowhere"),
        (["eval", "."], "expected a run folder with a network in its checkpoints/"),
        (["predict", "nowhere", "a.png"], "expected a checkpoint at nowhere"),
        (["summary", "resnet"], r"invalid choice: 'resnet' \(choose from [^?]*\)\. Run tinydilate"),
        (
            ["summary", "fron-end"],
            r"'fron-end' .*\. Did you mean front-end\? Run tinydilate summary",
        ),
        (["trian"], r"invalid choice: 'trian' .*\. Did you mean train\? Run tinydilate --help"),
        (
            ["recipe", "lst"],
            r"invalid choice: 'lst' .*\. Did you mean list\? Run tinydilate recipe",
        ),
        (["summary", "demo", "--size", "big"], "expected --size as in 500x500; got 'big'"),
        (["summary", "demo", "--size", "0x5"], "expected an input size of whole numbers"),
        (["summary", "demo", "--classes", "0"], "expected num_classes"),
        (
            ["summary", "dilation8_voc", "--classes", "5"],
            "expected dilation8_voc with its 21 classes; got --classes 5. Leave --classes out",
        ),
    ],
)
def test_refused(command, arguments, pattern):
    assert_refused(command(*arguments), pattern)


def test_refused_with_a_run_at_hand(command, folder, tmp_path):
    assert_refused(command("train", "--out", folder), "holds a run already")
    assert_refused(
        command("train", "--out", folder, "--resume", "--seed", "3"), r"seed: 3 here, 0 there"
    )
    assert_refused(command("eval", folder, "--count", "0"), "expected count >= 1, got 0")
    assert_refused(command("eval", folder, "--network", "best"), "invalid choice: 'best'")
    assert_refused(command("predict", folder, tmp_path / "a.png"), "there is no such file")
    (tmp_path / "a.png").write_bytes(b"<html>")
    assert_refused(command("predict", folder, tmp_path / "a.png"), "none that Pillow knows")
    checkpoint = folder / "checkpoints/joint.safetensors"
    (tmp_path / "cut").write_bytes(checkpoint.read_bytes()[:1000])
    assert_refused(command("eval", tmp_path / "cut"), "damaged or cut short at 1,000 bytes")
    (tmp_path / "bad.toml").write_text("bach = 3\n")
    assert_refused(
        command("train", "--config", tmp_path / "bad.toml"),
        r"bad\.toml; got 'bach', which is none\. Did you mean batch\?",
    )
    (tmp_path / "file").write_text("")
    assert_refused(
        command("train", "--out", tmp_path / "file/run"), "expected a folder that can be written"
    )


def test_a_full_disk(command, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert_refused(command("train", "--out", tmp_path / "a", *FLAGS), "No space left on device")
    assert not [path for path in (tmp_path / "a").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("error", "code", "pattern"),
    [
        (TinydilateError("expected this; got that."), 2, "expected this; got that"),
        (PermissionError(13, "Permission denied", "a.txt"), 2, r"a\.txt: Permission denied\."),
        (MemoryError("8 GiB"), 2, r"expected enough memory; there is not \(8 GiB\)\. Take smaller"),
        (KeyboardInterrupt("go on with this"), 130, "go on with this"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_errors_anywhere_are_handled_in_one_place(command, monkeypatch, error, code, pattern):
    def broken(_):
        raise error

    monkeypatch.setattr(cli.machine, "_ops", broken)
    result = command("ops")
    assert result[:2] == (code, "")
    assert re.search(pattern, result[2])
    assert result[2].count("\n") == 1


def test_a_bug_is_not_hidden(monkeypatch):
    def broken(_):
        raise ZeroDivisionError

    monkeypatch.setattr(cli.machine, "_ops", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["ops"])


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise there")
def test_a_reader_that_goes_away():
    line = f"{sys.executable} -m tinydilate ops | head -1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_from_outside(tmp_path):
    """The process that a user stops: exit code 130, and a sentence that works."""
    program = [sys.executable, "-m", "tinydilate", "train", "--out", str(tmp_path / "a"), *FLAGS]
    program = [part.replace("--front-steps=2", "--front-steps=500") for part in program]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "a/log.jsonl"
    while not log.exists() or not log.stat().st_size:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1]
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    assert re.search(r"stopped after step \d+ of 500 of stage front; all is saved", last)
    words = last.split("Go on with: ")[1].split()
    resumed = subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.PIPE, text=True)
    lines = log.stat().st_size
    while log.stat().st_size <= lines:
        assert resumed.poll() is None
    resumed.send_signal(signal.SIGINT)
    resumed.communicate()
    assert resumed.returncode == 130
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))


def test_columns():
    rows = [("a", "number"), ("long name", "1")]
    assert common.columns(rows, right=(1,)).splitlines() == [
        "a          number",
        "-----------------",
        "long name       1",
    ]


def test_overlay_of_the_example_is_what_predict_says(command, folder, tmp_path):
    command("predict", folder, folder / "example.png", "--out", tmp_path)
    with Image.open(tmp_path / "example-overlay.png") as image:
        assert np.asarray(image).shape == (36, 36, 3)
