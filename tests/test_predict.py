"""Labelling: networks kept and found again, images of any size, files written."""

import numpy as np
import pytest
from PIL import Image

from tinydilate.config import Config
from tinydilate.data import digits
from tinydilate.errors import ConfigError, DataError, ShapeError
from tinydilate.io.checkpoint import save_checkpoint
from tinydilate.metrics import confusion_matrix, mean_iou
from tinydilate.models import PUBLISHED
from tinydilate.predict import (
    DemoRecipe,
    Options,
    label_maps,
    load_network,
    predict_file,
    save_network,
    score,
)
from tinydilate.predict.checkpoints import PublishedRecipe
from tinydilate.train import recipe_of

CONFIG = Config(dilations=(1, 2), seed=3)


@pytest.fixture(scope="module")
def network():
    """Random weights, large enough that several classes win somewhere."""
    network = recipe_of(CONFIG, context=True).build()
    rng = np.random.default_rng(0)
    for name, parameter in network.named_parameters():
        if "final" in name:
            parameter.data[...] = rng.standard_normal(parameter.shape)
    return network


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """A run folder with networks of two stages."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    save_network(folder / "checkpoints/joint.safetensors", network, recipe_of(CONFIG, True))
    front = recipe_of(CONFIG, False)
    save_network(folder / "checkpoints/front.safetensors", front.build(), front)
    return folder


# ---- checkpoints -----------------------------------------------------------------------------


def test_a_checkpoint_is_all_that_is_needed(network, folder):
    trained = load_network(folder / "checkpoints/joint.safetensors")
    assert trained.recipe == recipe_of(CONFIG, context=True)
    images = digits.scenes("test", 2, 0, size=36)[0]
    np.testing.assert_array_equal(label_maps(trained.network, images), label_maps(network, images))
    assert not trained.network.training


def test_a_run_folder_gives_its_best_network(folder):
    assert load_network(folder).path.stem == "joint"
    assert load_network(folder).recipe.context
    assert load_network(folder, "front").path.stem == "front"
    assert not load_network(folder, "front").recipe.context


def test_first_weights_follow_from_the_seed():
    def weights(**options):
        return recipe_of(Config(**options), context=True).build().state_dict()

    first, again, other = weights(seed=1), weights(seed=1), weights(seed=2)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["front_end.conv1_1.weight"], other["front_end.conv1_1.weight"])
    front = recipe_of(Config(seed=1), context=False).build().state_dict()
    assert all(np.array_equal(front[name], first[name]) for name in front)


def test_no_network(folder, tmp_path):
    with pytest.raises(DataError, match="expected a run folder with a network in its checkpoints/"):
        load_network(tmp_path)
    with pytest.raises(DataError, match="expected a run folder with alone in its checkpoints/"):
        load_network(folder, "alone")
    with pytest.raises(DataError, match="there is no such file"):
        load_network(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="expected a run folder to take the network 'front' from"):
        load_network(folder / "checkpoints/joint.safetensors", "front")


def test_no_network_in_a_complete_run(tmp_path):
    """`train --resume` would show its table, and nothing would be mended."""
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(DataError, match="whose run is complete: they were deleted") as stop:
        load_network(tmp_path)
    again = f"train --config {tmp_path}/config.toml --out another-folder"
    assert str(stop.value).endswith(f"Put them back, or train them again with: tinydilate {again}")


def test_no_network_of_a_recipe(tmp_path):
    (tmp_path / "recipe.toml").write_text("")
    command = f"recipe run {tmp_path}/recipe.toml --resume --out {tmp_path} --data FOLDER"
    with pytest.raises(DataError, match=r"there is no such file. Finish the run, by: ") as stop:
        load_network(tmp_path)
    assert str(stop.value).endswith(command)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(DataError, match=r"Delete .*results\.json, then: ") as stop:
        load_network(tmp_path)
    assert str(stop.value).endswith(command)
    (tmp_path / "network.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"recipe, which has one; got 'joint'\. Leave it out\.$"):
        load_network(tmp_path, "joint")


def test_a_folder_that_is_no_runs(tmp_path):
    with pytest.raises(DataError, match=r"which holds no run\. Name the folder that training w"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("levels", "error", "text"),
    [
        (np.zeros((8, 8, 3), np.float32), ShapeError, r"got \(8, 8, 3\)\. Of \(H, W, 3\) take"),
        (np.full((3, 8, 8), 9, np.uint8), DataError, r"got uint8 up to 9\. Divide by 255"),
        (np.full((3, 8, 8), 255, np.float32), DataError, r"got float32 up to 255\. Divide by 255"),
    ],
)
def test_an_image_that_is_none_for_a_published_network(levels, error, text):
    recipe = PublishedRecipe(next(iter(PUBLISHED.values())))
    with pytest.raises(error, match=text):
        recipe.prepare(levels)
    assert recipe.prepare(np.ones((3, 2, 2), np.float32)).max() < 256


@pytest.mark.parametrize(
    "note",
    [
        None,
        {"run": {}},
        {"network": {"classes": ["a"]}},
        {
            "network": {
                **DemoRecipe(Config(), True, ("a",), ((0, 0, 0),), 0, 1)._asdict(),
                "config": {},
            }
        },
        {"network": {"config": {"bach": 1}}},
    ],
)
def test_checkpoints_of_other_things(tmp_path, note):
    save_checkpoint(tmp_path / "a", {"x": np.ones(3)}, note)
    with pytest.raises(
        DataError, match=r"expected (the checkpoint of a trained network|a state of)"
    ):
        load_network(tmp_path / "a")


# ---- labelling -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (37, 41), (36, 36), (90, 20)])
def test_images_of_any_size(network, size):
    image = np.random.default_rng(0).standard_normal((1, 1, *size)).astype(np.float32)
    labels = label_maps(network, image)
    assert labels.shape == (1, *size)
    assert labels.dtype == np.uint8
    assert labels.max() < 11


def test_batches_do_not_change_labels(network):
    images = digits.scenes("test", 5, 0, size=36)[0]
    together = label_maps(network, images)
    np.testing.assert_array_equal(label_maps(network, images, batch=2), together)
    assert len(np.unique(together)) >= 3


def test_labelling_leaves_the_network_as_it_was(network):
    images = digits.scenes("test", 1, 0, size=36)[0]
    for mode in (True, False):
        network.train(mode)
        label_maps(network, images)
        assert network.training is mode
    assert all(parameter.grad is None for parameter in network.parameters())


def test_score_is_that_of_the_labels(network):
    images, labels = digits.scenes("test", 3, 0, size=36)
    found = score(network, images, labels, digits.CLASSES)
    matrix = confusion_matrix(labels, label_maps(network, images), 11)
    assert found.mean_iou == mean_iou(matrix)
    assert found.classes == digits.CLASSES


# ---- files -----------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path):
    """An image file, and what the network is given of it."""
    grey = np.rint(digits.grey(digits.scenes("test", 1, 0, size=40)[0])[0, 0] * 255)
    path = tmp_path / "scene.png"
    Image.fromarray(grey.astype(np.uint8)).save(path)
    return path, grey.astype(np.float32) / 255


def test_predict_file(folder, scene):
    path, grey = scene
    trained = load_network(folder)
    found = predict_file(trained, path)
    with Image.open(found.labels) as image:
        assert image.mode == "P"
        labels = np.asarray(image)
        colours = np.asarray(image.convert("RGB"))
    prepared = (grey - np.float32(digits.MEAN)) / np.float32(digits.STD)
    np.testing.assert_array_equal(labels, label_maps(trained.network, prepared[None, None])[0])
    np.testing.assert_array_equal(colours, digits.PALETTE[labels])
    with Image.open(found.overlay) as image:
        assert (image.mode, image.size) == ("RGB", (40, 40))
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares["background"] == np.mean(labels == 10)
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["scene-labels.png", "scene-overlay.png", "scene.png"]


def test_predict_into_another_folder_at_another_scale(folder, scene, tmp_path):
    found = predict_file(
        load_network(folder), scene[0], tmp_path / "new" / "place", Options(scale=0.5)
    )
    assert found.labels.parent == tmp_path / "new" / "place"
    with Image.open(found.labels) as image:
        assert image.size == (20, 20)


def test_invert(folder, scene, tmp_path):
    path, grey = scene
    trained = load_network(folder)
    plain = predict_file(trained, path, tmp_path / "plain")
    negative = tmp_path / "negative.png"
    Image.fromarray(np.rint((1 - grey) * 255).astype(np.uint8)).save(negative)
    inverted = predict_file(trained, negative, tmp_path / "inverted", Options(invert=True))
    images = []
    for file in (plain.labels, inverted.labels):
        with Image.open(file) as image:
            images.append(np.asarray(image))
    assert np.mean(images[0] == images[1]) > 0.99


def test_nothing_is_written_for_an_image_that_cannot_be_read(folder, scene, tmp_path):
    path = scene[0]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="expected a whole image"):
        predict_file(load_network(folder), path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_result_folder_that_cannot_be_made(folder, scene, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected a folder for the results"):
        predict_file(load_network(folder), scene[0], tmp_path / "file" / "out")
