"""Running recipes: what a run leaves, that it can be interrupted, and what is refused."""

import json
import math
import os
import shutil
import signal
import tomllib

import numpy as np
import pytest
from recipe_data import NAMES, context_recipe, joint_recipe, recipe, write_folder

from tinydilate.cli import main
from tinydilate.errors import ConfigError, DataError
from tinydilate.io.checkpoint import load_checkpoint, save_checkpoint
from tinydilate.io.logbook import read_log
from tinydilate.models import Plan, plan_of_note
from tinydilate.predict import load_any
from tinydilate.recipes import preparing
from tinydilate.recipes import stage as module
from tinydilate.recipes.preparing import Call, estimate_recipe, told_forecast
from tinydilate.recipes.stage import dry_run, run_recipe
from tinydilate.recipes.starting import load_start
from tinydilate.recipes.table import Recipe, read_recipe
from tinydilate.running import Interrupted

CHAIN = {
    "front": (recipe(), None),
    "context": (context_recipe(), "front"),
    "joint": (joint_recipe(), "context"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a data set and the three stages, run one after the other."""
    home = tmp_path_factory.mktemp("recipes")
    write_folder(home / "data")
    for name, (r, before) in CHAIN.items():
        run(home, name, r, before)
    return home


def call(home, name, before=None, **options):
    init = None if before is None else home / before
    return Call([home / "data"], home / name, init, progress=False, **options)


def run(home, name, r, before=None, resume=False, **options):
    return run_recipe(r, call(home, name, before, **options), resume)


def arrays(path):
    return load_checkpoint(path / "network.safetensors")[0]


# ---- what a run leaves -----------------------------------------------------------------------


def test_files(home):
    common = ["checkpoints", "log.jsonl", "network.safetensors", "recipe.toml", "results.json"]
    for name in CHAIN:
        found = sorted(path.name for path in (home / name).iterdir())
        more = ["features"] if name == "context" else []
        assert found == sorted([*common, "start.json", *more])
        assert Recipe.read(home / name / "recipe.toml") == CHAIN[name][0]


def test_results(home):
    for name, (r, _) in CHAIN.items():
        results = json.loads((home / name / "results.json").read_text())
        assert results["steps"] == 6
        assert set(results["iou"]) == set(NAMES)
        assert results["scored_images"] == 2
        assert results["scored_on"] == "folder:val"
        assert results["forecast"]["steps"] == 6
        assert results["forecast"]["images"] == 6
        assert results["forecast"]["seconds"] == 6 * results["forecast"]["seconds_per_step"]
        shape = [4, 3, 12, 14] if r.learns == "context" else [4, 3, 26, 26]
        assert results["forecast"]["input_shape"] == shape


def test_log(home):
    for name in CHAIN:
        log = read_log(home / name / "log.jsonl")
        assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6]
        scored = [entry["step"] for entry in log if "validation_mean_iou" in entry]
        assert scored == [2, 4, 6]
        assert all(entry["lr"] == 0.01 for entry in log if "lr" in entry)
    first = read_log(home / "front" / "log.jsonl")[0]["loss"]
    assert first == pytest.approx(math.log(3), abs=0.05)


def test_each_stage_learns_what_it_should(home):
    front, context, joint = (arrays(home / name) for name in CHAIN)
    assert list(context) == list(joint)
    assert {name for name in context if name not in front} == {
        f"ctx_{layer}.{kind}"
        for layer in ("conv1_1", "fc1", "final")
        for kind in ("weight", "bias")
    }
    for name, array in front.items():
        np.testing.assert_array_equal(context[name], array)  # frozen
    for name, array in context.items():
        moved = not np.array_equal(joint[name], array)
        assert moved == (name != "scale.weight"), name


def test_a_context_module_starts_as_the_identity(home):
    start = context_recipe().plan(load_any(home / "front").recipe.plan.classes)
    untrained = start.build("context", rng=0).state_dict()
    trained = arrays(home / "context")
    centre = untrained["ctx_conv1_1.weight"][:, :, 1, 1]
    np.testing.assert_allclose(centre, np.eye(3), atol=0.05)
    assert not np.array_equal(trained["ctx_conv1_1.weight"], untrained["ctx_conv1_1.weight"])
    assert np.abs(trained["ctx_conv1_1.weight"] - untrained["ctx_conv1_1.weight"]).max() < 0.5


def test_where_weights_came_from_is_noted(home):
    told = json.loads((home / "joint" / "start.json").read_text())
    assert told["init"] == str(home / "context")
    assert "conv1_1.weight" in told["weights"]["loaded"]
    assert told["weights"]["fresh"] == []
    assert told["images"]["train"]["images"] == 6
    assert json.loads((home / "front" / "start.json").read_text())["weights"] is None


def test_the_network_can_be_used(home, tmp_path, capsys):
    for name in CHAIN:
        trained = load_any(home / name)
        assert trained.recipe.classes == NAMES
        assert plan_of_note(trained.recipe.plan.to_note()) == trained.recipe.plan
    image = home / "data/images/picture7.png"
    assert main(["predict", str(home / "joint"), str(image), "--out", str(tmp_path)]) == 0
    assert "ground" in capsys.readouterr().out
    from PIL import Image

    with Image.open(tmp_path / "picture7-labels.png") as labels:
        assert labels.size == (28, 24)
    assert main(["export", str(home / "joint"), "--onnx", str(tmp_path / "net.onnx")]) == 0


def test_a_published_network_is_noted_by_its_name(tmp_path, monkeypatch):
    """The notes of a run whose plan is a published one, without training 134 million weights."""
    write_folder(tmp_path / "data")
    r = joint_recipe(start="nothing", steps=1, save_every=1, validate_images=1)
    monkeypatch.setattr(Plan, "published", "dilation8_camvid")
    run(tmp_path, "a", r)
    note = load_checkpoint(tmp_path / "a/network.safetensors")[1]
    assert note["published"]["name"] == "dilation8_camvid"
    assert note["recipe"]["steps"] == 1


def test_learning_beats_chance(tmp_path):
    """Grey everywhere would give an IoU of a third of its share; noise less."""
    write_folder(tmp_path / "data", counts=(8, 4))
    r = recipe(steps=80, validate_every=80, save_every=80, validate_images=4)
    results = run(tmp_path, "a", r)
    assert results["mean_iou"] > 0.5
    losses = [e["loss"] for e in read_log(tmp_path / "a/log.jsonl") if "loss" in e]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_context_trained_with_labels_of_pixels(home):
    r = context_recipe(upsample=2)
    results = run(home, "pixels", r, "front")
    assert "ctx_upsample.weight" in arrays(home / "pixels")
    assert 0 <= results["mean_iou"] <= 1
    shutil.rmtree(home / "pixels")


@pytest.mark.parametrize("name", ["front", "context"])
def test_parts_of_a_batch_train_the_same_network(home, tmp_path, name):
    write_folder(tmp_path / "data")
    shutil.copytree(home / "front", tmp_path / "front")
    r, before = CHAIN[name]
    table = [row for row in r.table if "drop" not in row]
    options = {**r.to_dict(), "batch": 4, "table": table if name == "front" else r.table}
    run(tmp_path, "whole", Recipe.of(options), before)
    run(tmp_path, "parts", Recipe.of({**options, "iter_size": 3}), before)
    whole, parts = arrays(tmp_path / "whole"), arrays(tmp_path / "parts")
    for key, array in whole.items():
        np.testing.assert_allclose(parts[key], array, rtol=1e-3, atol=1e-5, err_msg=key)


def test_features_can_be_shared(home, tmp_path):
    for name in ("shared1", "shared2"):
        run(home, name, context_recipe(), "front", features=tmp_path / "features")
        assert not (home / name / "features").exists()
    assert sorted(p.name for p in (tmp_path / "features").iterdir()) == [
        "train.features",
        "validation.features",
    ]
    np.testing.assert_equal(arrays(home / "shared1"), arrays(home / "context"))
    other = context_recipe(start="network")
    with pytest.raises(DataError, match=r"are stale or of something else \(front end: "):
        run(home, "shared3", other, "joint", features=tmp_path / "features")
    for name in ("shared1", "shared2", "shared3"):
        shutil.rmtree(home / name)


# ---- interrupted -----------------------------------------------------------------------------


class Accident(BaseException):
    """What a power cut looks like from inside one process."""


def same_run(folder, other):
    def told(path):
        return [{k: v for k, v in entry.items() if k != "seconds"} for entry in read_log(path)]

    assert told(folder / "log.jsonl") == told(other / "log.jsonl")
    first, second = arrays(folder), arrays(other)
    assert list(first) == list(second)
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize("name", CHAIN)
def test_accidents_at_any_moment_change_nothing(home, name, monkeypatch):
    """Interrupted again and again, in steps, in checkpoints and between: bit for bit the same."""
    r, before = CHAIN[name]
    folder = home / f"disturbed-{name}"
    accidents = 0
    for count in (1, 2, 3, 5, 7, 8, 4, 9, 6, 11, 10, 14, 20):
        actions = iter(range(count))
        with monkeypatch.context() as patch:
            for action in ("fsync", "replace"):
                real = getattr(os, action)

                def unreliable(*arguments, real=real, actions=actions):
                    if next(actions, None) is None:
                        raise Accident
                    return real(*arguments)

                patch.setattr(os, action, unreliable)
            try:
                resume = (folder / "recipe.toml").exists()
                run(home, folder.name, r, before, resume)
                break
            except Accident:
                accidents += 1
    assert accidents >= 4
    run(home, folder.name, r, before, resume=True)
    same_run(folder, home / name)
    assert not list(folder.rglob("*.part"))
    shutil.rmtree(folder)


def test_ctrl_c_saves_and_says_how_to_go_on(home, monkeypatch, capsys):
    real, steps = module.batch_gradient, iter(range(3))

    def interrupted(*arguments):
        if next(steps, None) is None:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "batch_gradient", interrupted)
        with pytest.raises(Interrupted, match=r"stopped after step 4 of 6; all is saved") as stop:
            run(home, "stopped", recipe())
    command = str(stop.value).split("Go on with: ")[1].split()
    assert command[1:4] == ["recipe", "run", f"{home}/stopped/recipe.toml"]
    assert main(command[1:]) == 0  # what it says can be typed
    assert "Mean IoU" in capsys.readouterr().out
    same_run(home / "stopped", home / "front")
    shutil.rmtree(home / "stopped")


def test_ctrl_c_while_features_are_stored(home, monkeypatch):
    from tinydilate.recipes import stored

    real, images = stored.canvas_input, iter(range(5))

    def interrupted(*arguments):
        if next(images, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    r, before = CHAIN["context"]
    with monkeypatch.context() as patch:
        patch.setattr(stored, "canvas_input", interrupted)
        with pytest.raises(Interrupted, match=r"stopped while features were stored; .* --resume\."):
            run(home, "stopped", r, before)
    assert (home / "stopped/features/train.features.part").exists()
    run(home, "stopped", r, before, resume=True)
    same_run(home / "stopped", home / "context")
    shutil.rmtree(home / "stopped")


def test_a_finished_run_shows_its_results_again(home):
    r, _ = CHAIN["front"]
    results = run(home, "front", r, resume=True)
    assert results == json.loads((home / "front" / "results.json").read_text())


def test_what_was_deleted_is_made_again(home):
    r, _ = CHAIN["front"]
    shutil.copytree(home / "front", home / "again")
    shutil.rmtree(home / "again/checkpoints")
    for name in ("results.json", "network.safetensors"):
        (home / "again" / name).unlink()
    run(home, "again", r, resume=True)
    same_run(home / "again", home / "front")
    shutil.rmtree(home / "again")


def test_resuming_refuses_what_is_another_run(home, tmp_path):
    with pytest.raises(ConfigError, match=r"started with; got another one \(batch: 3 here, 4 ther"):
        run(home, "front", recipe(batch=3), resume=True)
    with pytest.raises(ConfigError, match=r"a run to resume in .*; there is no recipe\.toml"):
        run(home, "nowhere", recipe(), resume=True)
    shutil.copytree(home / "front", tmp_path / "front")
    (tmp_path / "front/results.json").unlink()
    write_folder(tmp_path / "data", counts=(5, 3))
    with pytest.raises(DataError, match=r"got others \(what differs: train, validation\)\. Check"):
        run(tmp_path, "front", recipe(), resume=True)
    shutil.rmtree(tmp_path / "data")
    write_folder(tmp_path / "data")
    classes = (tmp_path / "data/classes.txt").read_text().splitlines()
    (tmp_path / "data/classes.txt").write_text("\n".join([*classes[::-1], "mean 1 2 3"]))
    with pytest.raises(DataError, match=r"got others \(what differs: classes, mean pixel\)\."):
        run(tmp_path, "front", recipe(), resume=True)
    (tmp_path / "front/start.json").write_text("{")
    with pytest.raises(DataError, match=r"start\.json to say what the run started from"):
        run(tmp_path, "front", recipe(), resume=True)
    (tmp_path / "front/results.json").write_text("[]")
    with pytest.raises(DataError, match=r"is damaged\. Delete that file: --resume writes it"):
        run(tmp_path, "front", recipe(), resume=True)


def test_a_folder_that_holds_a_run(home):
    with pytest.raises(ConfigError, match=r"holds a run already. Go on with it by adding --resume"):
        run(home, "front", recipe())


# ---- first weights ---------------------------------------------------------------------------


def test_what_a_recipe_starts_from_is_asked_for(home):
    with pytest.raises(ConfigError, match=r"--init with a trained front end.*--set start=nothing"):
        run(home, "new", context_recipe())
    with pytest.raises(ConfigError, match="--init with VGG-16's weights, trained on ImageNet; got"):
        run(home, "new", recipe(start="vgg-16"))
    with pytest.raises(ConfigError, match=r"expected no --init.*Leave it out"):
        run(home, "new", recipe(), "front")
    with pytest.raises(DataError, match=r"no network\.safetensors. Finish .* \(delete results"):
        run(home, "new", context_recipe(), "data")
    assert not (home / "new").exists()


def test_layers_are_missing_or_fresh(home, tmp_path):
    plan = joint_recipe().plan(load_any(home / "front").recipe.plan.classes)
    network = plan.build(rng=5)
    before = network.state_dict()
    with pytest.raises(DataError, match=r"missing ctx_conv1_1\.weight.*fresh=\[\"ctx_conv1_1\", "):
        load_start(network, home / "front", plan.classes.mean)
    np.testing.assert_equal(network.state_dict(), before)
    start = load_start(network, home / "front", plan.classes.mean, ["ctx_*"])
    assert set(start.fresh) == {name for name in before if name.startswith("ctx_")}
    found = network.state_dict()
    for name, array in arrays(home / "front").items():
        np.testing.assert_array_equal(found[name], array)
    for name in start.fresh:
        np.testing.assert_array_equal(found[name], before[name])
    # What is fresh starts anew even if the file has it, in whatever shape.
    wrong = {**arrays(home / "front"), "final.weight": np.ones((7, 16, 1, 1), np.float32)}
    save_checkpoint(tmp_path / "wrong.safetensors", wrong)
    with pytest.raises(DataError, match=r"of another shape final\.weight \(7, 16, 1, 1\)"):
        load_start(network, tmp_path / "wrong.safetensors", plan.classes.mean, ["ctx_*"])
    start = load_start(
        network, tmp_path / "wrong.safetensors", plan.classes.mean, ["ctx_*", "final"]
    )
    assert {"final.weight", "final.bias"} <= set(start.fresh)
    assert {"final.weight", "final.bias"} <= set(start.left_over)
    with pytest.raises(
        ConfigError, match=r"such as final or ctx_\*; got 'fc-final'. Its layers ar"
    ):
        load_start(network, home / "front", plan.classes.mean, ["fc-final"])


def test_first_weights_from_caffe(home, tmp_path):
    from caffe_files import caffemodel

    front = arrays(home / "front")
    del front["scale.weight"]  # it is fixed: no other program's file has it
    path = tmp_path / "front.caffemodel"
    weights_first = dict(sorted(front.items(), reverse=True))
    path.write_bytes(caffemodel(weights_first))
    r = context_recipe()
    run_recipe(r, Call([home / "data"], tmp_path / "a", path, progress=False))
    np.testing.assert_equal(arrays(tmp_path / "a"), arrays(home / "context"))


# ---- dry runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAIN)
def test_a_dry_run_writes_nothing(home, name):
    def everything():
        return {path: path.stat().st_mtime_ns for path in home.rglob("*")}

    before = everything()
    r, start = CHAIN[name]
    found = dry_run(r, call(home, "new", start))
    assert everything() == before
    assert 0 < found["loss"] < 3
    assert found["seconds"] == 6 * found["seconds_per_step"] > 0
    assert found["fits"]
    assert found["iter_size_that_fits"] is None
    assert ("seconds_per_image" in found) == (name == "context")


def test_a_dry_run_says_what_would_fit(home, monkeypatch):
    r = recipe(batch=16, crop=74)
    room = estimate_recipe(Recipe.of({**r.to_dict(), "iter_size": 4}), 3).memory
    monkeypatch.setattr(preparing, "free_memory", lambda device: room)
    found = dry_run(r, call(home, "new"))
    assert not found["fits"]
    assert found["iter_size_that_fits"] == 4
    text = told_forecast(r, found)
    assert "It will not fit. The same step in more parts would: --set iter_size=4." in text
    monkeypatch.setattr(preparing, "free_memory", lambda device: 2**20)
    text = told_forecast(r, dry_run(r, call(home, "new")))
    assert "not even one image at a time. Take a smaller crop" in text


def test_hot_steps_are_warned_of():
    forecast = dict.fromkeys(
        ("images", "classes", "memory_bytes", "seconds_per_step", "seconds", "free_bytes"), 1
    ) | {"input_shape": [1, 3, 900, 900], "fits": True}
    from tinydilate.recipes.table import read_recipe

    fine = read_recipe("kitti-1-front-end")
    assert "(1 - momentum)" not in told_forecast(fine, forecast)
    hot = read_recipe("kitti-1-front-end", ["lr=1e-3"])  # issue 25 of fyu/dilation
    text = told_forecast(hot, forecast)
    assert "lr / (1 - momentum) is 0.1; the paper's largest is 0.01." in text


# ---- losses that make no sense ---------------------------------------------------------------


def test_a_learning_rate_that_explodes_is_named(home):
    with pytest.raises(ConfigError, match=r"falls from ln 3 = 1\.10; got (nan|inf) at st") as stop:
        run(home, "hot", recipe(lr=1e30, steps=30))
    assert "The learning rate over 1 - momentum is 1e+31" in str(stop.value)
    assert "--set lr=1e+29 --out another-folder" in str(stop.value)
    shutil.rmtree(home / "hot")


def test_a_loss_that_stays_high_stops(home, monkeypatch):
    real = module.batch_gradient
    monkeypatch.setattr(module, "batch_gradient", lambda *a: real(*a) + 50)
    with pytest.raises(ConfigError, match=r"got 51\S* over 2 steps at step 2\. The learning"):
        run(home, "high", recipe(steps=30, lr=1e-6))
    shutil.rmtree(home / "high")


def test_validation_images_that_are_trained_on_are_told(tmp_path, capsys):
    write_folder(tmp_path / "data")
    (tmp_path / "data/val.txt").write_text("picture1\npicture6\n")
    run_recipe(recipe(steps=1), Call([tmp_path / "data"], tmp_path / "run", progress=True), False)
    told = capsys.readouterr().err
    assert "1 of 2 validation images are trained on as well (picture1): scores" in told


def test_a_bad_first_loss_is_warned_of(home, capsys):
    r = recipe(final_std=30.0, lr=0, steps=1)
    run_recipe(r, Call([home / "data"], home / "bad"))
    told = capsys.readouterr().err
    assert "A network that knows nothing has ln 3 = 1.10" in told
    assert "weights that do not belong to these images" in told
    shutil.rmtree(home / "bad")


def test_batches_without_labels_are_skipped_and_counted(home, tmp_path):
    from PIL import Image

    write_folder(tmp_path / "data")
    for number in range(5):
        path = tmp_path / f"data/labels/picture{number}.png"
        Image.fromarray(np.full((24, 28), 255, np.uint8)).save(path)
    results = run(tmp_path, "a", recipe(batch=1))
    assert results["skipped_batches"] == 5  # one epoch of six images
    log = read_log(tmp_path / "a/log.jsonl")
    assert len([entry for entry in log if entry.get("skipped")]) == 5


# ---- the command line ------------------------------------------------------------------------


def test_listing(capsys):
    assert main(["recipe", "list"]) == 0
    text = capsys.readouterr().out
    assert "voc-1-front-end " in text
    assert "paper appendix A.3" in text
    assert "0.004      Adam" in text
    assert main(["recipe", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kitti-1-front-end"]["momentum"] == 0.99


def test_showing(capsys):
    assert main(["recipe", "show", "voc-2-context-large"]) == 0
    text = capsys.readouterr().out
    assert "batch = 60                 # code docs/training.md; the paper does not say" in text
    assert "6,803,139 parameters, 6,803,139 of them learn" in text
    assert Recipe.of(tomllib.loads(text)) == read_recipe("voc-2-context-large")
    assert "GiB of memory: weights 26.0 MiB" in text
    assert main(["recipe", "show", "small-1-front-end", "--classes", "4", "--set", "batch=2"]) == 0
    assert "batch = 2  # images in a step" in capsys.readouterr().out
    assert main(["recipe", "show", "voc-3-joint", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimate"]["parameters"] == 141_149_720
    assert main(["recipe", "show", "small-1-front-end", "--classes", "0"]) == 2
    assert "expected classes, a whole number of at least 1; got 0" in capsys.readouterr().err


def test_running(home, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(recipe().to_toml())
    words = ["recipe", "run", str(path), "--data", str(home / "data")]
    assert main([*words, "--dry-run", "--json", "--set", "batch=2"]) == 0
    assert json.loads(capsys.readouterr().out)["input_shape"] == [2, 3, 26, 26]
    assert main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "One step was run: loss 1." in told
    assert "Nothing was written." in told
    assert "Memory: about " in told
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "Mean IoU" in captured.out
    assert "Time: about" in captured.err
    assert main([*words, "--out", str(tmp_path / "run"), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6
    assert main(words) == 2
    assert (
        "expected --out FOLDER for the run; got none. Or add --dry-run." in capsys.readouterr().err
    )
    assert main([*words, "--dry-run", "--resume"]) == 2
    assert "expected --dry-run or --resume; got both" in capsys.readouterr().err


def test_a_dry_run_of_stored_features_tells_their_time(home, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(context_recipe().to_toml())
    words = ["--data", str(home / "data"), "--init", str(home / "front"), "--dry-run"]
    assert main(["recipe", "run", str(path), *words]) == 0
    assert "Features: about" in capsys.readouterr().out
