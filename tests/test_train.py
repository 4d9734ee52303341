"""Training: what a run leaves, that nothing but its configuration decides it, and accidents."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tinydilate import nn, optim, running
from tinydilate import train as module
from tinydilate.cli.runs import results_table
from tinydilate.config import Config
from tinydilate.data import digits
from tinydilate.data.sets import Data, Scenes, batch_members, check_data
from tinydilate.errors import ConfigError, DataError
from tinydilate.io import files
from tinydilate.io.checkpoint import load_checkpoint
from tinydilate.io.logbook import read_log
from tinydilate.running import Interrupted, Sitting, Standing
from tinydilate.train import make_scenes, stages_of, train

CONFIG = Config(
    train_scenes=6,
    validation_scenes=2,
    test_scenes=3,
    scene_size=36,
    batch=2,
    front_steps=5,
    context_steps=3,
    joint_steps=4,
    dilations=(1, 2),
    validate_every=2,
    save_every=2,
)
STAGES = ["front", "context", "joint", "alone"]


def run(folder, resume=False, config=CONFIG, data=None):
    return train(config, folder, resume=resume, data=data, progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(folder)
    return folder


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k != "seconds"}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def assert_same_run(folder, other):
    """Weights byte by byte; log and results but for the times."""
    for stage in STAGES:
        name = f"checkpoints/{stage}.safetensors"
        assert (folder / name).read_bytes() == (other / name).read_bytes(), stage
    logs = [without_times(read_log(f / "log.jsonl")) for f in (folder, other)]
    assert logs[0] == logs[1]
    results = [without_times(json.loads((f / "results.json").read_text())) for f in (folder, other)]
    assert results[0] == results[1]
    for picture in ("curves.png", "predictions.png", "example.png"):
        assert (folder / picture).read_bytes() == (other / picture).read_bytes(), picture


# ---- what a run leaves -----------------------------------------------------------------------


def test_files(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        "checkpoints",
        "config.toml",
        "curves.png",
        "example.png",
        "log.jsonl",
        "predictions.png",
        "results.json",
    ]
    assert sorted(path.stem for path in (finished / "checkpoints").iterdir()) == [
        "alone",
        "context",
        "front",
        "joint",
        "latest",
    ]
    assert Config.read(finished / "config.toml") == CONFIG


def test_results(finished):
    results = json.loads((finished / "results.json").read_text())
    networks = results["networks"]
    assert list(networks) == STAGES
    assert [networks[stage]["steps"] for stage in STAGES] == [5, 8, 12, 12]
    assert networks["alone"]["parameters"] == networks["front"]["parameters"]
    # Two 3x3 layers and one 1x1 layer of 11 maps.
    context = networks["joint"]["parameters"] - networks["front"]["parameters"]
    assert context == (2 * 9 + 1) * 11 * 11 + 3 * 11
    for network in networks.values():
        assert set(network["iou"]) == set(digits.CLASSES)
        assert 0 <= network["mean_iou"] <= 1
        assert "background" in network["mean_over"]
    assert results["gain"] == networks["joint"]["mean_iou"] - networks["alone"]["mean_iou"]
    assert results["classes"] == list(digits.CLASSES)
    assert results["config"] == {**CONFIG.to_dict(), "dilations": [1, 2]}
    assert results["skipped_batches"] == 0
    assert {"tinydilate", "python", "numpy", "numba"} == set(results["versions"])
    assert results["threads"] >= 1


def test_table(finished):
    results = json.loads((finished / "results.json").read_text())
    table = results_table(results, str(finished))
    assert "joint: front end + context" in table
    assert (
        "over 11 classes, background included: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, background." in table
    )
    assert "over the front end alone, trained for as many steps." in table
    assert f"Look at {finished}/predictions.png and {finished}/curves.png. Label an image:" in table
    assert table.endswith("/example.png")
    # What is gone, or was never drawn, is not spoken of.
    assert results_table(results, "somewhere").endswith("for as many steps.")


def test_log(finished):
    log = read_log(finished / "log.jsonl")
    losses = [(entry["stage"], entry["step"]) for entry in log if "loss" in entry]
    assert losses == [
        (stage.name, step + 1) for stage in stages_of(CONFIG) for step in range(stage.steps)
    ]
    scored = [(e["stage"], e["step"]) for e in log if "validation_mean_iou" in e]
    assert scored[:3] == [("front", 2), ("front", 4), ("front", 5)]
    assert log[0]["loss"] == pytest.approx(math.log(11), abs=0.2)  # it begins by knowing nothing
    alone = [entry["lr"] for entry in log if entry["stage"] == "alone" and "lr" in entry]
    assert alone == [CONFIG.alone_lr * (1 - step / 7) ** 0.9 for step in range(7)]


def test_each_stage_learns_what_it_should(finished):
    weights = {s: load_checkpoint(finished / f"checkpoints/{s}.safetensors")[0] for s in STAGES}

    def moved(stage, since, part):
        names = [name for name in weights[since] if name.startswith(part)]
        assert names
        return [not np.array_equal(weights[stage][n], weights[since][n]) for n in names]

    assert not any(moved("context", "front", "front_end."))  # frozen
    assert all(moved("joint", "context", "front_end."))
    assert any(moved("joint", "context", "context."))
    assert all(moved("alone", "front", "front_end."))
    assert not any(name.startswith("context.") for name in weights["alone"])


def test_pictures_are_pictures(finished):
    from PIL import Image

    for name in ("curves.png", "predictions.png"):
        with Image.open(finished / name) as image:
            assert image.width > 700
            assert len(image.convert("RGB").getcolors(2**20)) > 20
    with Image.open(finished / "example.png") as image:
        assert (image.mode, image.size) == ("L", (36, 36))


def test_training_lowers_the_loss(tmp_path):
    config = Config.of(
        {**CONFIG.to_dict(), "front_steps": 60, "context_steps": 1, "joint_steps": 1}
        | {"comparison": False, "train_scenes": 4, "batch": 4, "validate_every": 100}
    )
    results = run(tmp_path / "a", config=config)
    log = read_log(tmp_path / "a/log.jsonl")
    losses = [entry["loss"] for entry in log if entry["stage"] == "front" and "loss" in entry]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert list(results["networks"]) == STAGES[:3]
    assert results["compared_with"] == "front"
    assert "trained for fewer steps" in results_table(results, "a")


# ---- a run is decided by its configuration ---------------------------------------------------


def test_batches_depend_on_seed_stage_and_step_alone():
    first = [batch_members(3, 1, step, 4, 10).tolist() for step in range(10)]
    again = [batch_members(3, 1, step, 4, 10).tolist() for step in reversed(range(10))]
    assert first == again[::-1]
    visited = np.concatenate(first)
    for epoch in range(4):  # each scene once an epoch, though 4 does not divide 10
        assert sorted(visited[epoch * 10 : (epoch + 1) * 10]) == list(range(10))
    assert first != [batch_members(3, 2, step, 4, 10).tolist() for step in range(10)]
    assert first != [batch_members(4, 1, step, 4, 10).tolist() for step in range(10)]


def test_a_batch_may_be_larger_than_the_data():
    assert sorted(batch_members(0, 0, 0, 6, 3)) == [0, 0, 1, 1, 2, 2]


def test_another_seed_is_another_run(finished, tmp_path):
    config = Config.of({**CONFIG.to_dict(), "seed": 1})
    run(tmp_path / "a", config=config)
    logs = [read_log(folder / "log.jsonl")[0]["loss"] for folder in (finished, tmp_path / "a")]
    assert logs[0] != logs[1]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_optimizer_is_the_one_asked_for(optimizer):
    config = Config(optimizer=optimizer, momentum=0.7, weight_decay=0.01, bias_rate=2.0)
    stages = stages_of(config)
    network = module.recipe_of(config, context=True).build()
    made = module.make_optimizer(config, stages[2], network)
    assert type(made).__name__.lower() == optimizer
    weights, biases = made.param_groups
    assert (weights["lr"], weights["weight_decay"]) == (config.joint_lr, 0.01)
    assert (biases["lr"], biases["weight_decay"]) == (2 * config.joint_lr, 0.0)
    assert weights.get("momentum", 0.7) == 0.7
    frozen = module.make_optimizer(config, stages[1], network)
    count = sum(len(group["params"]) for group in frozen.param_groups)
    assert count == len(list(network.context.parameters()))


@pytest.mark.slow
def test_warm_up_leaves_nothing_to_compile(tmp_path):
    """After the tiny steps, the real ones find all their machine code on disk."""
    program = """
        import os, pathlib, sys
        from tinydilate.config import Config
        from tinydilate import compiling, train, warmup
        config = Config(train_scenes=16, validation_scenes=2, test_scenes=2)
        warmup.warm_up("training", lambda: train.tiny_steps(config), progress=False)
        count = lambda: sum(1 for _ in compiling.cache_folder().rglob("*.nbc"))
        before = count()
        images, labels = train.make_scenes(config, progress=False).train
        for stage in train.stages_of(config):
            network = train.recipe_of(config, stage.context).build()
            train.batch_loss(network, images, labels, stage.frozen).backward()
            train.make_optimizer(config, stage, network).step()
        print(before, count())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    empty = {**os.environ, "TINYDILATE_CACHE": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=empty)
    before, after = map(int, done.stdout.split())
    assert before == after > 10


# ---- accidents -------------------------------------------------------------------------------


class Accident(BaseException):
    """What a power cut looks like from inside one process."""


def break_after(monkeypatch, count, error=None):
    """Let the count-th action on the file system fail, and every later one."""
    actions = iter(range(count))
    real = {name: getattr(os, name) for name in ("fsync", "replace")}

    def unreliable(name):
        def action(*arguments):
            if next(actions, None) is None:
                raise Accident if error is None else error
            return real[name](*arguments)

        return action

    for name in real:
        monkeypatch.setattr(os, name, unreliable(name))


def test_accidents_at_any_moment_change_nothing(finished, tmp_path, monkeypatch):
    """Interrupted again and again, in steps, in checkpoints and between: bit for bit the same."""
    folder = tmp_path / "disturbed"
    accidents = 0
    for count in (1, 5, 9, 10, 3, 13, 14, 4, 15, 11, 16, 17, 12, 8):
        with monkeypatch.context() as patch:
            break_after(patch, count)
            try:
                run(folder, resume=folder.exists() and (folder / "config.toml").exists())
                break
            except Accident:
                accidents += 1
    if not (folder / "results.json").exists():
        run(folder, resume=True)
    assert accidents >= 8
    assert_same_run(folder, finished)
    leftovers = [path for path in folder.rglob("*") if path.name.endswith(".part")]
    assert not leftovers


def test_what_was_logged_after_the_checkpoint_is_cut(finished, tmp_path, monkeypatch):
    folder = tmp_path / "a"
    with monkeypatch.context() as patch:
        break_after(patch, 12)
        with pytest.raises(Accident):
            run(folder)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"stage": "front", "step": 77, "loss": 1.0}\n{"stage": "fr')
    run(folder, resume=True)
    assert_same_run(folder, finished)


def test_a_full_disk_stops_with_a_sentence_and_can_go_on(finished, tmp_path, monkeypatch):
    folder = tmp_path / "a"
    with monkeypatch.context() as patch:
        break_after(patch, 9, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(DataError, match=r"No space left on device\. Make room"):
            run(folder)
    assert not list(folder.rglob("*.part"))
    run(folder, resume=True)
    assert_same_run(folder, finished)


@pytest.mark.parametrize("step", [3, 6, 9])
def test_ctrl_c_saves_and_says_how_to_go_on(finished, tmp_path, monkeypatch, step, capsys):
    folder, steps = tmp_path / "a", iter(range(1, step))
    real = module.batch_loss

    def interrupted(*arguments):
        if next(steps, None) is None:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(module, "batch_loss", interrupted)
        with pytest.raises(Interrupted, match=r"tinydilate train --resume --out \S+/a$") as stop:
            run(folder)
    assert "stopped after step" in str(stop.value)
    assert "Stopping after this step" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    assert len([e for e in read_log(folder / "log.jsonl") if "loss" in e]) == step
    run(folder, resume=True)
    assert_same_run(folder, finished)


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(module, "batch_loss", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        run(tmp_path / "a")
    assert not isinstance(stop.value, Interrupted)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_at_random_moments(finished, tmp_path):
    """The real thing: processes that are killed while they run."""
    folder, rng = tmp_path / "killed", np.random.default_rng(0)
    options = [
        part
        for name, value in CONFIG.to_dict().items()
        if name not in ("comparison", "dilations")
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    command = [sys.executable, "-m", "tinydilate", "train", "--out", str(folder)]
    command += ["--dilations", "1,2", *options]
    kills = 0
    for _ in range(60):
        resume = ["--resume"] if (folder / "config.toml").exists() else []
        process = subprocess.Popen([*command, *resume], stderr=subprocess.DEVNULL)
        log = folder / "log.jsonl"
        length = log.stat().st_size if log.exists() else 0
        while process.poll() is None and (not log.exists() or log.stat().st_size <= length):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.02))  # a few steps: the run must not end before five kills
        if process.poll() is None:
            process.kill()
            kills += 1
        if process.wait() == 0:
            break
        if kills == 12:
            subprocess.run([*command, "--resume"], check=True, stderr=subprocess.DEVNULL)
            break
    assert kills >= 5
    assert_same_run(folder, finished)


# ---- batches and losses that make no sense ---------------------------------------------------


def scenes(count=4, size=36, seed=0):
    return Scenes(*digits.scenes("train", count, seed, size=size))


def data(**parts):
    fine = {"train": scenes(), "validation": scenes(2), "test": scenes(2)}
    return Data(**{**fine, **parts}, classes=digits.CLASSES)


def test_batches_of_nothing_but_ignored_pixels_are_skipped_and_counted(tmp_path):
    images, labels = scenes(4)
    labels[1] = labels[2] = digits.IGNORE
    config = Config.of({**CONFIG.to_dict(), "batch": 1, "front_steps": 8, "comparison": False})
    results = run(tmp_path / "a", config=config, data=data(train=Scenes(images, labels)))
    log = read_log(tmp_path / "a/log.jsonl")
    skipped = [entry for entry in log if entry.get("skipped")]
    assert results["skipped_batches"] == len(skipped)
    assert len([entry for entry in skipped if entry["stage"] == "front"]) == 4  # two epochs of two
    assert all(math.isfinite(entry["loss"]) for entry in log if "loss" in entry)


def test_a_learning_rate_that_explodes_is_named(tmp_path):
    config = Config.of(
        {**CONFIG.to_dict(), "optimizer": "sgd", "front_lr": 1e30, "front_steps": 50}
    )
    with pytest.raises(ConfigError, match=r"got (nan|inf) at step \d+ of stage front") as stop:
        run(tmp_path / "a", config=config)
    assert "learning rate over 1 - momentum is 1e+31" in str(stop.value)
    assert "--front-lr 0.004 --out another-folder" in str(stop.value)


def test_a_damaged_checkpoint_ends_a_run(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "results.json").unlink()
    latest = folder / "checkpoints/latest.safetensors"
    latest.write_bytes(latest.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"Start a new one with another --out, or delete .*run"):
        run(folder, resume=True)


def test_checkpoints_that_were_deleted(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "checkpoints/joint.safetensors").unlink()
    assert "Label an image" not in results_table(run(folder, resume=True), str(folder))
    (folder / "results.json").unlink()
    with pytest.raises(DataError, match=r"stages that this run has finished; there is no ") as stop:
        run(folder, resume=True)
    again = f"train --config {folder}/config.toml --out another-folder"
    assert "joint.safetensors. Put them back" in str(stop.value)
    assert str(stop.value).endswith(again)
    shutil.rmtree(folder / "checkpoints")  # nothing is left to go on from: from the beginning
    run(folder, resume=True)
    assert_same_run(folder, finished)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_results_are_named(finished, tmp_path, content):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"it is damaged. Delete that file: --resume writes it"):
        run(folder, resume=True)
    (folder / "results.json").unlink()
    run(folder, resume=True)
    assert_same_run(folder, finished)


@pytest.mark.parametrize(("factor", "step"), [(50.0, 2), (4.5, 19)])
def test_a_loss_far_above_ln_c_stops(tmp_path, monkeypatch, factor, step):
    """As soon as it is certain that the mean over 20 steps will be above four times ln C."""
    real = module.batch_loss
    monkeypatch.setattr(module, "batch_loss", lambda *a: real(*a) * factor)
    config = Config.of({**CONFIG.to_dict(), "front_steps": 30, "front_lr": 1e-9})
    told = rf"from ln 11 = 2\.40; got .* over {step} steps at step {step} of stage front"
    with pytest.raises(ConfigError, match=told):
        run(tmp_path / "a", config=config)


def test_a_bad_patch_is_no_divergence():
    standing = Standing()
    assert not any(standing.take_in(loss, 11) for loss in (2.4, 100, *[2.4] * 20, 100, 2.4))
    standing = Standing()
    assert standing.take_in(1e9, 11) == ""  # weights that do not belong, and no step's doing
    assert standing.take_in(2.4, 11) == "5e+08 over 2 steps"


# ---- refused at the door ---------------------------------------------------------------------


def test_a_folder_that_holds_a_run(finished):
    with pytest.raises(ConfigError, match=r"holds a run already. Go on with it by adding --resume"):
        run(finished)


def test_a_folder_with_files_that_a_run_would_write_over(tmp_path):
    (tmp_path / "log.jsonl").write_text("precious")
    with pytest.raises(ConfigError, match="holds a log or a checkpoint, which a run would write"):
        run(tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == "precious"


def test_resuming_a_finished_run_gives_its_results(finished):
    assert run(finished, resume=True) == json.loads((finished / "results.json").read_text())


def test_resuming_nothing(tmp_path):
    with pytest.raises(ConfigError, match="expected a run to resume in"):
        run(tmp_path, resume=True)


def test_resuming_with_another_configuration(finished):
    other = Config.of({**CONFIG.to_dict(), "batch": 3, "seed": 5})
    with pytest.raises(ConfigError, match=r"\(seed: 5 here, 0 there; batch: 3 here, 2 there\)"):
        run(finished, resume=True, config=other)


def test_resuming_without_the_log(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "a")
    (tmp_path / "a/results.json").unlink()
    (tmp_path / "a/log.jsonl").write_text("")
    with pytest.raises(DataError, match=r"at the latest checkpoint; got 0\. Put the file back"):
        run(tmp_path / "a", resume=True)


def test_resuming_from_a_foreign_checkpoint(tmp_path):
    from tinydilate.io.checkpoint import save_checkpoint

    folder = tmp_path / "a"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG.to_toml())
    save_checkpoint(folder / "checkpoints/latest.safetensors", {"x": np.ones(3)}, "hello")
    with pytest.raises(DataError, match="expected the checkpoint of a run"):
        run(folder, resume=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"expected a folder that can be written to; .*--out"):
        run(tmp_path / "file" / "run")


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_an_unwritable_folder(tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)

    def forbidden(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files.os, "replace", forbidden)  # even root is refused so
    with pytest.raises(DataError, match=r"Permission denied\. Make room or choose"):
        run(tmp_path / "run")
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def test_data_that_cannot_be_learnt_from():
    images, labels = scenes(3)
    check_data(data())
    with pytest.raises(DataError, match=r"expected train images; got none"):
        check_data(data(train=Scenes(images[:0], labels[:0])))
    with pytest.raises(DataError, match=r"expected test images \(N, C, H, W\) .* \(3, 35, 36\)"):
        check_data(data(test=Scenes(images, labels[:, 1:])))
    for value in (np.nan, np.inf):
        broken = images.copy()
        broken[1, 0, 5, 5] = value
        with pytest.raises(DataError, match="infinity in 1 of 3, the first of them number 1"):
            check_data(data(validation=Scenes(broken, labels)))
    wrong = labels.copy()
    wrong[0, 0, 0] = 11
    with pytest.raises(DataError, match=r"expected train labels 0\.\.10, or 255 .*; got 11"):
        check_data(data(train=Scenes(images, wrong)))
    for part in ("train", "test"):
        with pytest.raises(DataError, match=f"expected {part} labels that count; got 255 every"):
            check_data(data(**{part: Scenes(images, np.full_like(labels, 255))}))


def test_splits_share_no_handwriting_and_the_test_scenes_no_seed():
    config = Config.of({**CONFIG.to_dict(), "seed": 9})
    made, other = make_scenes(config, progress=False), make_scenes(CONFIG, progress=False)
    np.testing.assert_array_equal(made.test.images, other.test.images)
    assert not np.array_equal(made.train.images, other.train.images)


def test_a_checkpoint_knows_the_seconds_until_it_was_written(monkeypatch, tmp_path):
    """Those of validations and skipped batches among them, which log none."""
    (tmp_path / "checkpoints").mkdir()
    clock = iter([10.0, 13.0, 20.0])
    monkeypatch.setattr(running, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    standing, network = Standing(), nn.Linear(1, 1)
    sitting = Sitting(tmp_path, standing)
    assert sitting.take_in(0.5, lr=1.0, classes=2) == ""
    sitting.skip()
    sitting.save(network, optim.SGD(network.parameters(), 0.1))
    sitting.log.close()
    assert standing.seconds == 10
    again = Standing()
    running.SavedState(tmp_path / "checkpoints" / running.LATEST, again)
    assert (again.seconds, again.skipped) == (10, 1)
