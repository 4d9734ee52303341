"""The command line of receptive fields: what is printed, what is written, what is refused."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tinydilate import cli, receptive_field
from tinydilate.cli import networks
from tinydilate.config import Config
from tinydilate.predict import save_network
from tinydilate.receptive_field import effective
from tinydilate.receptive_field.paper_claims import claim
from tinydilate.train import recipe_of

MODELS = [
    "demo", "demo-front", "front-end", "context-basic", "context-large", "voc",
    "dilation8_voc", "dilation8_camvid", "dilation7_kitti", "dilation10_cityscapes",
    "pooled-front-end", "deeplab-large-fov", "fcn-8s",
    "small-pooled-front-end", "small-large-fov", "small-fcn", "stack",
]  # fmt: skip
ACTIONS = ["claims", "verify", "effective", "explore"]


@pytest.fixture
def command(capsys):
    """Run ``tinydilate rf`` in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        try:
            code = cli.main(["rf", *map(str, arguments)])
        except SystemExit as stop:  # argparse, after --help
            code = stop.code
        return code, *capsys.readouterr()

    return run


def picture(path):
    with Image.open(path) as image:
        return image.format, len(np.unique(np.asarray(image.convert("L"))))


# ---- help ------------------------------------------------------------------------------------


def test_models_and_actions_stand_side_by_side(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in [*MODELS, *ACTIONS]:
        assert re.search(rf"^    {name}\b", out, re.MULTILINE), name
    assert list(networks.MODELS) == MODELS[:-1]
    assert not set(MODELS) & set(ACTIONS)


@pytest.mark.parametrize("name", [*MODELS, *ACTIONS])
def test_every_option_is_in_help_with_its_default(command, name):
    code, out, _ = command(name, "--help")
    assert code == 0
    for entry in re.split(r"\n  (?=--|-h)", out.split("options:", 1)[1])[1:]:
        flag = entry.split()[0]
        if flag not in ("-h,", "--json"):
            assert "(default: " in " ".join(entry.split()), flag


# ---- networks --------------------------------------------------------------------------------


def test_the_table_of_a_network(command):
    code, out, _ = command("context-basic")
    assert code == 0
    fields = [line.split()[2] for line in out.splitlines()[2:]]
    assert fields == ["3", "5", "9", "17", "33", "65", "67", "67"]  # Table 1


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_known(command, name):
    code, out, _ = command(name, "--json")
    value = json.loads(out)
    assert code == 0
    assert value["layers"][-1]["extent"][0] >= 15
    assert len(value["input_size"]) == 4
    code, out, _ = command(name)
    rows = out.splitlines()[2:]
    assert code == 0
    assert [row.split()[0] for row in rows] == [layer["name"] or "-" for layer in value["layers"]]


def test_a_stack_with_holes(command):
    value = json.loads(command("stack", "--dilations", "2,2,2", "--json")[1])
    last = value["layers"][-1]
    assert (last["extent"], last["reached"], last["holes"]) == ([13, 13], 49, 120)
    assert value["input_size"] == [1, 1, 64, 64]
    assert json.loads(command("stack", "--dilations", "64", "--json")[1])["input_size"][2] == 129
    sized = command("stack", "--size", "20x30", "--json")
    assert json.loads(sized[1])["input_size"] == [1, 1, 20, 30]


def test_one_layer(command):
    code, out, _ = command("stack", "--dilations", "2,2,2", "--layer", "layer3")
    assert code == 0
    assert re.search(r"^layer3 +Conv2d +13 ", out, re.MULTILINE)
    assert "layer2" not in out
    assert "Output (32, 32) sees 49 of the 169 pixels from (26, 26) to (38, 38); 120 holes." in out
    assert "Output (0, 0) has 67% of its field outside of the image." in out  # 33 of 49
    one = json.loads(command("stack", "--layer", "layer2", "--json")[1])["layers"]
    assert [layer["name"] for layer in one] == ["layer2"]


# ---- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("stack", "--dilations", "2,2,2"),
        ("stack", "--layer", "layer3"),
        ("demo",),
        ("demo", "--layer", "front_end.pool1", "--size", "40x60"),
    ],
)
def test_pictures(command, tmp_path, arguments):
    code, out, _ = command(*arguments, "--png", tmp_path / "a.png")
    assert code == 0
    assert out.endswith(f"\n\nWrote {tmp_path}/a.png.\n")
    kind, greys = picture(tmp_path / "a.png")
    assert kind == "PNG"
    assert greys > 20
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_layer_on_an_image(command, tmp_path):
    Image.fromarray(np.full((30, 50, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    options = ("--layer", "layer1", "--png", tmp_path / "a.png", "--image", tmp_path / "photo.png")
    code, out, _ = command("stack", *options, "--json")
    assert code == 0
    assert json.loads(out)["input_size"] == [1, 1, 30, 50]
    assert picture(tmp_path / "a.png")[0] == "PNG"


def test_a_gif_has_a_frame_for_each_layer(command, tmp_path):
    assert command("stack", "--dilations", "1,2", "--gif", tmp_path / "a.gif")[0] == 0
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.format, image.n_frames) == ("GIF", 2)


def test_the_page_and_the_address_that_shows_a_stack(command, tmp_path):
    code, out, _ = command("stack", "--dilations", "1,2", "--html", tmp_path / "a.html")
    assert code == 0
    link = "#stack=c3d1s1p1f1.c3d2s1p2f1&channels=1&size=64"
    assert f"Open file://{tmp_path}/a.html{link}\n" in out
    assert "<html" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert command("explore", "--out", tmp_path / "b.html")[0] == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_page_shows_layers_in_one_line_only(command, tmp_path):
    code, out, err = command("small-fcn", "--html", tmp_path / "a.html")
    assert (code, out) == (2, "")
    assert "expected a network of layers in one line with --html" in err
    assert not (tmp_path / "a.html").exists()
    _, out, _ = command("small-large-fov", "--html", tmp_path / "b.html")
    link = out.rpartition("#stack=")[2]
    assert ".m3d1s1p1.m3d1s1p1.c3d2s1p2f64." in link  # pool2, pool2a, conv3_1


# ---- actions ---------------------------------------------------------------------------------


def test_claims(command, monkeypatch):
    monkeypatch.setattr(
        receptive_field, "claims", lambda progress: [claim("field", "here", 3, 3, 3)]
    )
    code, out, _ = command("claims")
    assert code == 0
    assert re.search(r"^field +3 +3 +3 +agree$", out, re.MULTILINE)
    assert out.endswith("1 of 1 claims agree.\n")
    assert json.loads(command("claims", "--json")[1]) == [
        {"name": "field", "source": "here", "claimed": 3, "analysed": 3, "measured": 3,
         "agrees": True}
    ]  # fmt: skip
    monkeypatch.setattr(
        receptive_field, "claims", lambda progress: [claim("field", "here", 7, 15, 15)]
    )
    code, out, _ = command("claims")
    assert code == 1
    assert re.search(r"^field +7 +15 +15 +DIFFER$", out, re.MULTILINE)
    assert out.endswith("0 of 1 claims agree.\n")


def test_verify(command):
    code, out, _ = command("verify", "stack", "--dilations", "2,2", "--size", "24")
    assert code == 0
    assert out.endswith("analysis and measurement by gradient agree\n")
    value = json.loads(command("verify", "stack", "--size", "24", "--json")[1])
    assert value["agrees"]
    assert [layer["name"] for layer in value["layers"]] == ["layer1", "layer2", "layer3"]
    assert all(layer["counterexample"] is None for layer in value["layers"])


def test_a_difference_is_exit_code_1(command, monkeypatch):
    right = receptive_field.verify

    def wrong(*arguments, **options):
        found = right(*arguments, **options)
        bad = receptive_field.verification.Counterexample((0, 0), (1, 1), True, False)
        return found._replace(checks=[found.checks[0]._replace(counterexample=bad)])

    monkeypatch.setattr(receptive_field, "verify", wrong)
    code, out, _ = command("verify", "stack", "--size", "24")
    assert code == 1
    assert "output (0, 0) sees pixel (1, 1), says the analysis; measured, it does not" in out
    code, out, _ = command("verify", "stack", "--size", "24", "--json")
    assert code == 1
    assert json.loads(out)["layers"][0]["counterexample"]["pixel"] == [1, 1]


@pytest.mark.parametrize("name", ["demo-front", "context-basic"])
def test_verify_makes_room_for_the_field(command, name):
    assert command("verify", name, "--classes", "2")[0] == 0


def test_effective(command, tmp_path):
    options = ("stack", "--draws", "2", "--size", "20", "--png", tmp_path / "a.png")
    code, out, _ = command("effective", *options)
    assert code == 0
    assert re.search(r"^sigma, closed form +3\.74 +3\.74$", out, re.MULTILINE)  # sqrt(21 * 2 / 3)
    assert picture(tmp_path / "a.png")[0] == "PNG"
    value = json.loads(command("effective", "demo-front", "--draws", "1", "--json")[1])
    assert value["closed_form_sigma"] is None  # bilinear enlargement is no window
    assert value["sigma"][0] > 0


def test_effective_of_the_identity_start(command):
    """The context module begins as the identity, with a little noise: the own pixel counts."""
    arguments = ("context-basic", "--classes", "2", "--draws", "1", "--weights", "start", "--json")
    value = json.loads(command("effective", *arguments)[1])
    assert value["extent"] == [67, 67]
    assert max(value["sigma"]) < 1 < 15 < min(value["closed_form_sigma"])


def test_effective_of_trained_weights(command, tmp_path):
    recipe = recipe_of(Config(dilations=(1, 2)), context=True)
    network, file = recipe.build(), tmp_path / "checkpoints/joint.safetensors"
    file.parent.mkdir()
    save_network(file, network, recipe)
    options = ("--draws", "1", "--size", "24", "--json")
    code, out, _ = command("effective", "demo", "--trained", tmp_path, *options)
    expected = effective(network, (1, 1, 24, 24), draws=1)
    assert code == 0
    assert json.loads(out)["sigma"] == list(expected.sigma)
    assert json.loads(out)["extent"] == list(expected.layer.extent)  # of the run's dilations
    code, _, err = command("effective", "demo-front", "--trained", file)
    assert code == 2
    assert re.search("expected the weights of demo-front; .* holds a network with context", err)
    code, _, err = command("effective", "voc", "--trained", file, "--size", "500")
    assert code == 2
    assert "expected demo or demo-front with --trained; got voc. Runs train these." in err


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "required: MODEL"),
        (["resnet"], "invalid choice: 'resnet' .*'stack', 'claims'"),
        (["stack", "--dilations", "1,x"], r"expected --dilations, whole numbers .*; got '1,x'\."),
        (["stack", "--dilations", ""], "expected --dilations, .*; got ''"),
        (["stack", "--dilations", "0"], "expected --dilations, .*; got '0'"),
        (["stack", "--size", "big"], "expected --size as in 500x500; got 'big'"),
        (["stack", "--layer", "conv9"], "expected the name of a layer; got 'conv9'. There are lay"),
        (["stack", "--image", "a.png"], "expected --layer and --png with --image"),
        (
            ["stack", "--layer", "layer1", "--png", "a", "--image", "nothing.png"],
            "there is no such file",
        ),
        (["stack", "--dilations", "1,1,1,1,1,1,1,1,1", "--png", "a.png"], "from 1 to 8 dilations"),
        (["stack", "--png", "nowhere/a.png"], "expected to write .* to nowhere/a.png"),
        (["stack", "--gif", "nowhere/a.gif"], "expected to write .* to nowhere/a.gif"),
        (["verify", "stack", "--size", "8"], "layer3, 15 x 15 pixels; got one of 8 x 8"),
        (["verify", "voc"], "expected an image that holds the whole field"),
        (["verify", "resnet"], "invalid choice: 'resnet'"),
        (["effective", "stack", "--draws", "0"], "expected draws, .* of at least 1; got 0"),
        (["explore", "--out", "nowhere/a.html"], "expected to write .* to nowhere/a.html"),
        (["claims", "--quick"], "unrecognized arguments: --quick. Run tinydilate rf claims --help"),
    ],
)
def test_refused(command, arguments, pattern):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tinydilate: ")
    assert err.count("\n") == 1
    assert re.search(pattern, err), err
