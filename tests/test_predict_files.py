"""Files labelled by published networks and by those of runs: images, folders, animations."""

import json
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tinydilate import cli, models
from tinydilate.classes import CAMVID
from tinydilate.config import Config
from tinydilate.errors import ConfigError, DataError
from tinydilate.io.checkpoint import save_checkpoint
from tinydilate.io.images import Frames, animation_of, image_files, read_frames
from tinydilate.models.rows import Conv, Pool
from tinydilate.predict import (
    Options,
    as_original,
    label_image,
    load_any,
    load_network,
    predict_file,
    predict_files,
    save_network,
    whole_image,
)
from tinydilate.see.legend import draw_legend
from tinydilate.train import recipe_of

ROWS = (Conv("conv1_1", 3, 1, 4), Pool("pool1"), Conv("conv2_1", 3, 1, 6))  # border 3, stride 2
RGB = np.random.default_rng(0).integers(0, 256, (20, 26, 3)).astype(np.uint8)
PALETTE = np.array(CAMVID.palette, np.uint8)


@pytest.fixture(scope="module")
def small():
    """Published networks with a front end of two layers: nothing else of them is changed."""
    with pytest.MonkeyPatch.context() as patch:
        small = partial(models.front_end, rows=ROWS)
        patch.setattr("tinydilate.models.published.front_end", small)
        yield


@pytest.fixture(scope="module")
def weights(small, tmp_path_factory):
    """Converted weights, as `tinydilate convert` writes them; many classes win somewhere."""
    network = models.dilation8_camvid(rng=0)
    rng = np.random.default_rng(0)
    for name, parameter in network.named_parameters():
        if "final" in name:
            parameter.data[...] = rng.standard_normal(parameter.shape) / 3
    path = tmp_path_factory.mktemp("weights") / "camvid.safetensors"
    note = {"published": {"name": "dilation8_camvid"}}
    save_checkpoint(path, network.state_dict(), note)
    return path


@pytest.fixture(scope="module")
def trained(weights):
    return load_any(weights)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "street.png"
    Image.fromarray(RGB).save(path)
    return path


def labels_in(path):
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image)


def prepared(rgb):
    """What the original gives the network: blue, green, red, 0 to 255, minus the mean."""
    bgr = rgb[..., ::-1].astype(np.float32) - np.array(CAMVID.mean, np.float32)
    return np.ascontiguousarray(bgr.transpose(2, 0, 1))


# ---- published networks in files -------------------------------------------------------------


def test_a_published_network(trained, weights):
    assert trained.path == weights
    assert trained.recipe.classes == CAMVID.names
    assert trained.recipe.palette == CAMVID.palette
    assert trained.recipe.tile == (900, 1100)
    assert not trained.network.training


def test_images_are_prepared_as_the_original_does(trained):
    levels = np.ascontiguousarray(RGB.transpose(2, 0, 1)) / np.float32(255)
    np.testing.assert_array_equal(trained.recipe.prepare(levels), prepared(RGB))


def test_the_fixed_upsampling_need_not_be_in_the_file(small, tmp_path):
    network = models.dilation10_cityscapes(rng=0)
    state = network.state_dict()
    upsampling = state.pop("ctx_upsample.weight")
    note = {"published": {"name": "dilation10_cityscapes"}}
    save_checkpoint(tmp_path / "a", state, note)
    loaded = load_any(tmp_path / "a").network.state_dict()
    np.testing.assert_array_equal(loaded["ctx_upsample.weight"], upsampling)
    np.testing.assert_array_equal(loaded["conv1_1.weight"], state["conv1_1.weight"])


def test_the_front_end_alone(small, tmp_path):
    front = models.dilation8_camvid(part="front end", rng=0)
    note = {"published": {"name": "dilation8_camvid", "part": "front end"}}
    save_checkpoint(tmp_path / "a", front.state_dict(), note)
    assert len(load_any(tmp_path / "a").network) == len(front)


@pytest.mark.parametrize("published", [{"name": "dilation9"}, {}, "dilation9", None])
def test_no_published_network(tmp_path, published):
    save_checkpoint(tmp_path / "a", {"x": np.ones(3)}, {"published": published})
    with pytest.raises(DataError, match=r"expected the weights of a published network, dilation8_"):
        load_any(tmp_path / "a")


def test_missing_weights_are_no_zeros(weights, tmp_path, small):
    state = models.dilation8_camvid(rng=0).state_dict()
    del state["conv2_1.weight"]
    save_checkpoint(tmp_path / "a", state, {"published": {"name": "dilation8_camvid"}})
    with pytest.raises(DataError, match=r"conv2_1\.weight"):
        load_any(tmp_path / "a")


def test_published_weights_are_no_run(weights):
    with pytest.raises(DataError, match="expected the checkpoint of a trained network"):
        load_network(weights)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The checkpoint of a run's front end."""
    recipe = recipe_of(Config(seed=3), False)
    path = tmp_path_factory.mktemp("run") / "front.safetensors"
    save_network(path, recipe.build(), recipe)
    return path


def test_load_any_takes_runs_too(run):
    assert load_any(run).recipe == load_network(run).recipe


# ---- one image -------------------------------------------------------------------------------


def test_an_image(trained, image):
    found = predict_file(trained, image)
    probabilities = whole_image(trained.network, prepared(RGB))
    labels = labels_in(found.labels)
    np.testing.assert_array_equal(labels, probabilities.argmax(0))
    assert len(np.unique(labels)) >= 3
    with Image.open(found.labels) as written:
        np.testing.assert_array_equal(np.asarray(written.convert("RGB")), PALETTE[labels])
    assert found.shares["sky"] == np.mean(labels == CAMVID.names.index("sky"))
    names = sorted(path.name for path in image.parent.iterdir())
    assert names == ["street-labels.png", "street-overlay.png", "street.png"]


def test_the_original_method(trained, image):
    found = predict_file(trained, image, options=Options(method="original"))
    expected = as_original(trained.network, prepared(RGB), (900, 1100)).argmax(0)
    np.testing.assert_array_equal(labels_in(found.labels), expected)


def test_methods_that_make_no_sense(trained, run, image):
    with pytest.raises(ConfigError, match="expected a method out of whole, original; got 'best'"):
        predict_file(trained, image, options=Options(method="best"))
    with pytest.raises(ConfigError, match="expected a published network for the method original"):
        predict_file(load_any(run), image, options=Options(method="original"))


def test_probabilities(trained, image):
    options = Options(probabilities=True, overlay=False)
    found = predict_file(trained, image, options=options)
    assert found.overlay is None
    with np.load(found.probabilities, allow_pickle=False) as kept:
        assert kept["probabilities"].dtype == np.float16
        expected = whole_image(trained.network, prepared(RGB))
        np.testing.assert_allclose(kept["probabilities"], expected, atol=5e-4)
        assert tuple(kept["classes"]) == CAMVID.names
    assert sorted(path.name for path in image.parent.iterdir()) == [
        "street-labels.png", "street-probabilities.npz", "street.png",
    ]  # fmt: skip


def test_classes(trained, image, tmp_path):
    every = labels_in(predict_file(trained, image, tmp_path / "all").labels)
    common = np.bincount(every.reshape(-1)).argsort()[-2:]
    names = tuple(CAMVID.names[label] for label in common)
    options = Options(classes=names, probabilities=True)
    found = predict_file(trained, image, tmp_path / "some", options)
    labels = labels_in(found.labels)
    counts = np.isin(every, common)
    np.testing.assert_array_equal(labels, np.where(counts, every, 255))
    with Image.open(found.overlay) as shown:
        pixels = np.asarray(shown)
    np.testing.assert_array_equal(pixels[~counts], RGB[~counts])
    assert (pixels[counts] != RGB[counts]).any()
    assert found.shares.keys() == set(names)
    with np.load(found.probabilities, allow_pickle=False) as kept:
        assert sorted(kept["classes"]) == sorted(names)
        assert len(kept["probabilities"]) == 2
    with pytest.raises(
        ConfigError, match=r"expected classes out of .*'bicyclists'.*mean bicyclist"
    ):
        predict_file(trained, image, options=Options(classes=("bicyclists",)))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2)])
def test_small_images(trained, size):
    levels = np.random.default_rng(0).random((3, *size), np.float32)
    assert label_image(trained, levels).labels.shape == size


def saved(name, image, tmp_path, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_images_of_every_mode_are_read(trained, tmp_path):
    """The same picture in another mode has the labels that it has in RGB."""
    plain = Image.fromarray(RGB)
    grey = Image.fromarray(RGB[..., 0])
    clear = Image.fromarray(np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)]))
    exif = Image.Exif()
    exif[0x0112] = 8
    few = plain.quantize(16)
    sixteen = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)
    pairs = {
        "grey": (grey, grey.convert("RGB"), {}),
        "alpha": (clear, plain, {}),
        "palette": (few, few.convert("RGB"), {}),
        "exif": (plain, Image.fromarray(np.ascontiguousarray(np.rot90(RGB))), {"exif": exif}),
        "sixteen": (sixteen, grey.convert("RGB"), {}),
    }
    for name, (image, same, options) in pairs.items():
        one = predict_file(trained, saved(f"{name}.png", image, tmp_path, **options))
        other = predict_file(trained, saved(f"{name}-same.png", same, tmp_path))
        np.testing.assert_array_equal(labels_in(one.labels), labels_in(other.labels), name)
    inks = predict_file(trained, saved("inks.tiff", plain.convert("CMYK"), tmp_path))
    same = predict_file(trained, saved("same.png", plain.convert("CMYK").convert("RGB"), tmp_path))
    np.testing.assert_array_equal(labels_in(inks.labels), labels_in(same.labels))


# ---- folders and animations ------------------------------------------------------------------


@pytest.fixture
def video(tmp_path):
    """A folder of frames, whose numbers have no leading zeros."""
    folder = tmp_path / "video"
    folder.mkdir()
    for number in (1, 2, 10):
        Image.fromarray(np.roll(RGB, number, axis=1)).save(folder / f"frame{number}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def test_images_in_a_folder_by_their_numbers(video, tmp_path):
    assert [path.name for path in image_files(video)] == [
        "frame1.png", "frame2.png", "frame10.png",
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected images in the folder .*empty; there are none"):
        image_files(tmp_path / "empty")


def test_a_folder(trained, video, capsys):
    found = predict_files(trained, [video], progress="predicting")
    assert [each.image.name for each in found] == ["frame1.png", "frame2.png", "frame10.png"]
    assert "predicting" in (bar := capsys.readouterr().err)
    assert "0/3" in bar
    for each in found:
        assert each.labels.parent == video / "predicted"
        with Image.open(each.image) as frame:
            expected = whole_image(trained.network, prepared(np.asarray(frame))).argmax(0)
        np.testing.assert_array_equal(labels_in(each.labels), expected)
    again = predict_files(trained, [video])  # results are not taken for images
    assert len(again) == 3


def test_results_beside_the_images_are_not_labelled_again(trained, video):
    Image.fromarray(RGB).save(video / "wine-labels.png")  # there is no wine.*: a picture
    names = ["frame1.png", "frame2.png", "frame10.png", "wine-labels.png"]
    draw_legend(video / "legend.png", CAMVID.names, CAMVID.palette)
    found = predict_files(trained, [video], video)
    assert [each.image.name for each in found] == [*names[:3], "legend.png", names[3]]
    (video / "legend-labels.png").unlink()
    (video / "legend-overlay.png").unlink()
    again = predict_files(trained, [video], video)  # now the legend is one of the results
    assert [each.image.name for each in again] == names
    named = predict_files(trained, [video / "frame1-labels.png"])  # who names one gets it
    assert named[0].labels.name == "frame1-labels-labels.png"


def test_images_whose_results_would_have_one_name(trained, image, tmp_path):
    Image.fromarray(RGB).save(tmp_path / "street.jpg")
    with pytest.raises(DataError, match=r"expected images of different names; .*street-labels"):
        predict_files(trained, [image, tmp_path / "street.jpg"])
    assert not list(tmp_path.glob("*-labels.*"))


def animation(path, count=3, **options):
    frames = [Image.fromarray(np.roll(RGB, 3 * n, axis=0)) for n in range(count)]
    options = {"duration": [40, 80, 120][:count], "loop": 0, **options}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_frames(tmp_path, name):
    lossless = {"lossless": True} if name.endswith("webp") else {}
    path = animation(tmp_path / name, **lossless)
    assert animation_of(path) == (3, 0)
    frames, durations = zip(*read_frames(path), strict=True)
    assert durations == (40, 80, 120)
    for n, frame in enumerate(frames):
        expected = np.roll(RGB, 3 * n, axis=0).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(frame, expected, atol=0.25 if name == "a.gif" else 1e-6)


def test_an_animation(trained, tmp_path):
    path = animation(tmp_path / "a.gif")
    found = predict_file(trained, path)
    assert found.labels.name == "a-labels.gif"
    with Image.open(found.labels) as written:
        assert (written.n_frames, written.info["loop"]) == (3, 0)
        for n, (levels, duration) in enumerate(read_frames(path)):
            written.seek(n)
            labels = label_image(trained, levels).labels
            assert written.info["duration"] == duration
            np.testing.assert_array_equal(np.asarray(written.convert("RGB")), PALETTE[labels])
    with Image.open(found.overlay) as written:
        assert (written.n_frames, written.size) == (3, (26, 20))
    counts = [label_image(trained, levels).labels for levels, _ in read_frames(path)]
    assert found.shares["car"] == pytest.approx(np.mean(np.stack(counts) == 3))
    with pytest.raises(
        ConfigError, match=r"expected images to write probabilities for; .* 3 frames"
    ):
        predict_file(trained, path, options=Options(probabilities=True))


def test_what_is_no_animation(tmp_path, image):
    assert animation_of(image) is None
    still = saved("still.gif", Image.fromarray(RGB), tmp_path)
    assert animation_of(still) is None
    pages = tmp_path / "pages.tiff"
    animation(pages)
    assert animation_of(pages) is None
    with pytest.raises(DataError, match="expected an animation with frames; got none"):
        Frames().write(tmp_path / "b.gif")


def test_an_animation_that_is_cut_short(trained, tmp_path):
    path = animation(tmp_path / "a.gif")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match="expected a whole image"):
        predict_file(trained, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_legend(tmp_path):
    draw_legend(tmp_path / "all.png", CAMVID.names, CAMVID.palette)
    draw_legend(tmp_path / "one.png", CAMVID.names, CAMVID.palette, ["sky"])
    with Image.open(tmp_path / "all.png") as every, Image.open(tmp_path / "one.png") as one:
        assert every.height > 3 * one.height
        colours = set(map(tuple, np.asarray(every.convert("RGB")).reshape(-1, 3)))
        assert set(CAMVID.palette) <= colours
        colours = set(map(tuple, np.asarray(one.convert("RGB")).reshape(-1, 3)))
        assert set(CAMVID.palette) & colours == {(128, 128, 128)}


# ---- the command -----------------------------------------------------------------------------


@pytest.fixture
def command(capsys):
    def call(*arguments):
        code = cli.main(["predict", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_command(command, weights, image, tmp_path):
    options = ("--out", tmp_path / "out", "--memory", "2GB", "--probabilities", "--legend")
    code, out, err = command("--weights", weights, image, *options, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["legend"] == str(tmp_path / "out/legend.png")
    (found,) = told["predictions"]
    assert found["image"] == str(image)
    assert sum(found["shares"].values()) == pytest.approx(1)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"legend.png", *(f"street-{kind}" for kind in (
        "labels.png", "overlay.png", "probabilities.npz"))}  # fmt: skip
    code, out, _ = command(weights, image, "--no-overlay", "--method", "original")
    assert code == 0
    assert re.search(r"^class +pixels\n-+\n\w", out)
    assert out.endswith("street-labels.png.\n")
    assert not (tmp_path / "street-overlay.png").exists()


def test_the_command_on_some_classes(command, weights, image, tmp_path):
    """What the table leaves to the other classes is said too, so that it adds up."""
    options = ("--out", tmp_path, "--no-overlay", "--classes", "sky")
    code, out, err = command("--weights", weights, image, *options)
    assert code == 0, err
    shares = re.findall(r"^(sky|none of these) +([0-9.]+)%$", out, re.MULTILINE)
    assert "none of these" in dict(shares)
    assert sum(float(share) for _, share in shares) == pytest.approx(100, abs=0.11)


def test_the_command_on_several_images(command, weights, image, video, tmp_path):
    code, out, err = command("--weights", weights, image, video, "--out", tmp_path / "out")
    assert code == 0
    assert f"Wrote 8 files for 4 images to {tmp_path / 'out'}." in out
    assert "0/4" in err


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--memory", "lots"], "expected an amount of memory such as 2GB.* got 'lots'"),
        (["--memory", "2GB", "--method", "original"], "expected --memory with the method whole"),
        (["--memory", "100MB"], r"expected memory of at least \d+ MB for an image of 20 x 26"),
        (["--classes", "skye"], "expected classes out of .*; got 'skye'. Did you mean sky"),
        (["--network", "joint"], "expected a run folder to take the network 'joint' from"),
        (["--method", "best"], "invalid choice: 'best'"),
    ],
)
def test_the_command_refuses(command, weights, image, options, pattern):
    code, out, err = command("--weights", weights, image, *options)
    assert (code, out) == (2, "")
    assert err.startswith("tinydilate: ")
    assert err.count("\n") == 1
    assert re.search(pattern, err), err


def test_the_command_without_images(command, weights):
    code, _, err = command(weights)
    assert code == 2
    assert f"expected images to label behind the network {weights}; got none" in err
