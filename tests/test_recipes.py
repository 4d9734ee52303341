"""Recipes: what they say, what they build, what a step of them is, and what is refused."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tiny_datasets as tiny
from hypothesis import given
from hypothesis import strategies as st
from recipe_data import context_recipe, joint_recipe, recipe

from tinydilate import buffers, models, optim, tensor
from tinydilate.classes import CAMVID, CITYSCAPES, IGNORE, KITTI, VOC
from tinydilate.data import open_dataset
from tinydilate.data.crops import Batch, feature_labels
from tinydilate.errors import ConfigError, DataError, ShapeError
from tinydilate.models import PUBLISHED, Plan, plan_of_note, plan_of_published
from tinydilate.models.plans import rows_of
from tinydilate.recipes.batches import Maps, StoredSource, open_images, spread
from tinydilate.recipes.estimates import (
    estimate,
    fitting_iter_size,
    free_memory,
    told_bytes,
    told_seconds,
)
from tinydilate.recipes.preparing import build_parts, crop_of, estimate_recipe
from tinydilate.recipes.starting import fingerprint
from tinydilate.recipes.stepping import batch_gradient, make_optimizer, schedule_of
from tinydilate.recipes.stored import Canvas, canvas_input, store_features
from tinydilate.recipes.table import Recipe, read_recipe, read_setting, recipe_names, recipe_path

# ---- the recipes that come with tinydilate ---------------------------------------------------

# The paper, sections 4 and 5 and appendix A: batch, learning rate, momentum, steps, crop.
PAPER = {
    "voc-1-front-end": (14, 1e-3, 0.9, 60_000, 500),
    "coco-1-front-end": (14, 1e-3, 0.9, 100_000, 500),
    "coco-2-front-end": (14, 1e-4, 0.9, 40_000, 500),
    "coco-3-fine-tune": (14, 1e-5, 0.9, 50_000, 500),
    "camvid-1-front-end": (8, 1e-4, 0.99, 20_000, 628),
    "kitti-1-front-end": (8, 1e-4, 0.99, 10_000, 628),
    "cityscapes-1-front-end": (8, 1e-4, 0.99, 40_000, 628),
    "camvid-2-joint": (1, 1e-5, 0.9, 20_000, 852),
    "kitti-2-joint": (1, 1e-5, 0.99, 20_000, 900),
    "cityscapes-3-joint": (1, 1e-5, 0.99, 60_000, 1396),
}
SHIPPED = recipe_names()


def test_there_is_one_for_each_stage():
    assert set(PAPER) < set(SHIPPED)
    assert {name for name in SHIPPED if name not in PAPER} == {
        "voc-1-front-end-code",
        "voc-2-context-basic",
        "voc-2-context-basic-code",
        "voc-2-context-large",
        "voc-3-joint",
        "cityscapes-2-context",
        "small-1-front-end",
        "small-2-context",
        "small-3-joint",
    }


@pytest.mark.parametrize("name", PAPER)
def test_the_numbers_are_the_papers(name):
    r = read_recipe(name)
    assert (r.batch, r.lr, r.momentum, r.steps, r.crop) == PAPER[name]


def test_the_numbers_of_the_code():
    """train.py: weight decay, rate of biases, and steps of the learning rate."""
    for name in SHIPPED:
        r = read_recipe(name)
        assert (r.bias_lr_mult, r.bias_decay_mult) == (2, 0)
        small = name.startswith("small")
        assert (r.weight_decay, r.optimizer) == ((0, "adam") if small else (5e-4, "sgd"))
    front, context, joint = (
        read_recipe(n) for n in ("voc-1-front-end-code", "voc-2-context-basic-code", "voc-3-joint")
    )
    assert [r.lr for r in (front, context, joint)] == [1e-4, 1e-3, 1e-5]
    assert [r.batch for r in (front, context, joint)] == [14, 60, 14]
    for r in (front, context, joint):
        assert (r.schedule, r.step_every, r.step_gamma, r.steps) == ("step", 10**5, 0.1, 4 * 10**5)
        schedule = schedule_of(r)
        assert [schedule(step) for step in (0, 99_999, 100_000)] == pytest.approx([1, 1, 0.1])
    assert (context.noise, context.absolute_noise) == (0.01, True)
    assert read_recipe("voc-2-context-basic").noise == 0  # equation 4


def test_one_number_makes_the_papers_settings_agree():
    """Lr / (1 - momentum); see paper.md's derivation."""
    heats = {name: read_recipe(name).heat for name in PAPER}
    for name in ("voc", "coco", "camvid", "kitti", "cityscapes"):
        assert heats[f"{name}-1-front-end"] == pytest.approx(0.01)
    assert read_recipe("cityscapes-2-context").heat == pytest.approx(0.01)
    for name in ("kitti-2-joint", "cityscapes-3-joint"):
        assert heats[name] == pytest.approx(0.001)
    assert heats["camvid-2-joint"] == pytest.approx(1e-4)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_has_its_source_beside_it(name):
    text = recipe_path(name).read_text(encoding="utf-8")
    seen = set()
    for line in text.splitlines():
        if not line or line.startswith(("title = ", "source = ", "learns = ")):
            continue
        found = re.fullmatch(r"(\w+) = (\S.*?) +# (.+)", line)
        assert found, line
        seen.add(found[1])
        # Where nothing is taken from anybody, the comment says what that means.
        told = ("paper", "code", "ours", "the paper", "without noise", "not used", "nothing starts")
        assert found[3].startswith((*told, "labels of cells")), line
    assert seen == set(tomllib.loads(text)) - {"title", "source", "learns"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_builds_and_says_what_it_takes(name):
    r = read_recipe(name)
    guess = estimate_recipe(r)
    assert guess.input_shape[0] == r.batch
    assert 2**28 < guess.memory < 2**33
    assert guess.macs > 0
    fixed = guess.parameters - guess.trainable
    assert fixed == (3 if r.divisor != 1 and r.learns != "context" else 0) + (
        19 * 16 * 16 if r.upsample else 0
    )
    halved = estimate_recipe(Recipe.of({**r.to_dict(), "iter_size": min(2, r.batch)}))
    assert halved.macs == guess.macs
    assert halved.memory <= guess.memory or r.batch == 1


@pytest.mark.parametrize(
    ("name", "classes", "published"),
    [
        ("voc-3-joint", VOC, "dilation8_voc"),
        ("camvid-2-joint", CAMVID, "dilation8_camvid"),
        ("kitti-2-joint", KITTI, "dilation7_kitti"),
        ("cityscapes-3-joint", CITYSCAPES, "dilation10_cityscapes"),
    ],
)
def test_the_last_stages_train_the_published_networks(name, classes, published):
    plan = read_recipe(name).plan(classes)
    assert plan.published == published
    assert plan == plan_of_published(published)
    ours = plan.build(device="meta").state_dict()
    theirs = PUBLISHED[published].build(device="meta").state_dict()
    assert {n: a.shape for n, a in ours.items()} == {n: a.shape for n, a in theirs.items()}
    assert plan._replace(upsample=2).published is None
    assert read_recipe(name).plan(classes._replace(dataset="mine")).published is None


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("voc-1-front-end", 16),
        ("camvid-1-front-end", 32),
        ("camvid-2-joint", 60),
        ("kitti-2-joint", 66),
        ("cityscapes-3-joint", 1024),  # of pixels: it upsamples by itself
        ("small-1-front-end", 32),
    ],
)
def test_labels_of_a_crop(name, labels):
    r = read_recipe(name)
    parts = build_parts(r, r.plan(VOC), "meta")
    assert crop_of(r, parts).outputs == (labels, labels)
    assert (parts.border, parts.stride) == ((10, 2) if name.startswith("small") else (186, 8))


def test_the_table_of_the_documentation():
    page = Path(__file__).parents[1] / "docs/recipes.md"
    rows = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 9 and cells[0] in SHIPPED:
            rows[cells[0]] = cells[1:]
    assert list(rows) == list(SHIPPED)
    for name, (learns, _, batch, lr, momentum, steps, memory, source) in rows.items():
        r = read_recipe(name)
        rule = f"{r.momentum:g}" if r.optimizer == "sgd" else "Adam"
        numbers = (str(r.batch), f"{r.lr:g}", rule, f"{r.steps:,}")
        assert (batch, lr, momentum, steps) == numbers
        assert learns == r.learns
        assert memory == told_bytes(estimate_recipe(r).memory)
        assert r.source.startswith(source)


def test_stages_follow_each_other():
    """What a stage leaves has the layers that the next one wants, in their shapes."""
    chains = [
        ("voc-1-front-end", "voc-2-context-large", "voc-3-joint"),
        ("cityscapes-1-front-end", "cityscapes-2-context", "cityscapes-3-joint"),
        ("camvid-1-front-end", "camvid-2-joint"),
        ("kitti-1-front-end", "kitti-2-joint"),
        ("coco-1-front-end", "coco-2-front-end", "coco-3-fine-tune", "voc-2-context-basic"),
        ("small-1-front-end", "small-2-context", "small-3-joint"),
    ]
    for chain in chains:
        before = None
        for name in chain:
            r = read_recipe(name)
            network = r.plan(VOC).build(device="meta")
            has = {n: a.shape for n, a in network.state_dict().items()}
            if before is not None:
                new = {n for n in has if n.startswith("ct")} if r.learns == "context" else set()
                new |= {n for n in has if any(n.startswith(f.rstrip("*")) for f in r.fresh)}
                new |= {n for n in has if "upsample" in n}
                assert {n: s for n, s in has.items() if n not in new}.items() <= before.items()
            before = has


# ---- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bach": 3}, "got 'bach', which is none. Did you mean batch?"),
        ({"momentun": 3}, "Did you mean momentum?"),
        ({"momentum": 1.0}, "expected momentum to be a finite number of at least 0 and below 1"),
        ({"batch": 0}, "expected batch to be a whole number of at least 1; got 0."),
        ({"batch": 10**400}, "expected batch to be a whole number"),
        ({"lr": float("inf")}, "got inf."),
        ({"lr": 10**400}, "expected lr to be a finite number"),
        ({"learns": "fast"}, "expected learns to be one of front end, context, all; got 'fast'."),
        ({"title": 3}, "expected title to be a text; got 3."),
        (
            {"train": "voc:train"},
            """expected train to be a list of texts, written ["..."]; got 'voc:train'.""",
        ),
        ({"size": [1, 2, 3]}, "whole numbers such as 1,1,2,4, each of at least 1, 0 to 2 of them"),
        ({"size": [3]}, "expected size to be [height, width], or []; got [3]."),
        ({"train": ["voc"]}, "expected data sets as KIND:SPLIT, for example voc:trainaug; got 'v"),
        (
            {"train": ["vok:train"]},
            "kind out of voc, sbd, coco, camvid, kitti, cityscapes, folder; g",
        ),
        ({"validation": "folders:val"}, "got 'folders' in 'folders:val'."),
        ({"learns": "context"}, 'a context module where learns is "context"; got context = "none"'),
        (
            {"learns": "front end", "context": "basic"},
            'no context module where learns is "front end"; got context = "basic"',
        ),
        (
            {"learns": "front end", "mirror": "features"},
            'expected mirror = "image" or "none" where images are the input; got "features"',
        ),
        ({"learns": "front end", "front_end": "table"}, "expected rows in table where front_end"),
        ({"learns": "front end", "iter_size": 15}, "expected iter_size to be at most batch, 14"),
    ],
)
def test_refused(options, text):
    with pytest.raises(ConfigError) as error:
        Recipe.of(options, "mine.toml")
    assert str(error.value).startswith("mine.toml: ") or "in mine.toml" in str(error.value)
    assert text in str(error.value)


@given(
    title=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lr=st.floats(0, 1e3),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_recipe_survives_its_file(title, lr, seed):
    r = recipe(title=title, lr=lr, seed=seed)
    assert Recipe.of(tomllib.loads(r.to_toml())) == r


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(recipe(batch=3).to_toml())
    assert read_recipe(str(path)) == recipe(batch=3)
    assert read_recipe(str(path), ["batch=2", "title=two at a time"]) == recipe(
        batch=2, title="two at a time"
    )


def test_names_of_recipes():
    with pytest.raises(ConfigError, match=r"got 'voc-front-end'\. Did you mean voc-1-front-end\?"):
        read_recipe("voc-front-end")
    with pytest.raises(ConfigError, match=r"expected a configuration file at nothing\.toml"):
        read_recipe("nothing.toml")
    with pytest.raises(ConfigError, match=r"got 'zzz'\. `tinydilate recipe list` shows them"):
        read_recipe("zzz")


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("batch=4", ("batch", 4)),
        ("lr = 1e-3", ("lr", 1e-3)),
        ("size=[480, 640]", ("size", [480, 640])),
        ('train=["voc:train", "coco:train"]', ("train", ["voc:train", "coco:train"])),
        ("start=front end", ("start", "front end")),
        ('start="front end"', ("start", "front end")),
        ("validation=folder:val", ("validation", "folder:val")),
        ("absolute_noise=true", ("absolute_noise", True)),
        ("title=a=b", ("title", "a=b")),
    ],
)
def test_settings(text, setting):
    assert read_setting(text) == setting


@pytest.mark.parametrize("text", ["batch", "=4", "batch=", ""])
def test_settings_that_are_none(text):
    with pytest.raises(ConfigError, match=r"expected --set KEY=VALUE, for example batch=4; got '"):
        read_setting(text)
    with pytest.raises(ConfigError, match="expected one key"):
        read_setting("batch=4\nlr=5")


def test_a_setting_of_no_key():
    with pytest.raises(ConfigError, match=r"known options in --set; got 'bach'.*mean batch\?"):
        read_recipe("voc-1-front-end", ["bach=4"])


# ---- plans -----------------------------------------------------------------------------------


def test_rows_out_of_words():
    rows = rows_of(["conv1_1 3 1 8", "pool1 pool", "drop2 drop 0.5"])
    assert rows == (
        models.Conv("conv1_1", 3, 1, 8),
        models.Pool("pool1"),
        models.Drop("drop2", 0.5),
    )
    for line in ("conv1_1 3 1", "conv1_1 3 1 x", "pool1 pol", "drop1 drop 2", "", "a b c d e"):
        with pytest.raises(ConfigError, match="expected the rows of a front end as in"):
            rows_of([line])


@pytest.mark.parametrize("name", [*PUBLISHED, "small", "table"])
def test_a_plan_survives_its_note(name):
    import json

    plan = {
        "small": Plan(VOC, "small", context="large", dilations=(1, 2), divisor=64),
        "table": recipe().plan(CAMVID),
    }.get(name) or plan_of_published(name)
    assert plan_of_note(json.loads(json.dumps(plan.to_note()))) == plan


@pytest.mark.parametrize(
    "change",
    [
        {"front_end": "vgg-19"},
        {"context": "huge"},
        {"padding": 3},
        {"classes": None},
        {"extra": 1},
        {"dilations": [0]},
    ],
)
def test_notes_that_are_no_plans(change):
    with pytest.raises(DataError, match="expected the plan of a network, as a recipe's run notes"):
        plan_of_note({**Plan(VOC, "small", context="basic").to_note(), **change})


def test_parts_of_a_plan():
    plan = Plan(VOC, "small", context="basic", dilations=(1, 2), divisor=64)
    whole = plan.build(rng=0).state_dict()
    front = plan.build("front end", rng=0).state_dict()
    context = plan.build("context", rng=0).state_dict()
    assert list(whole) == [*front, *context]
    for name, array in {**front, **context}.items():  # the same start, together or apart
        np.testing.assert_array_equal(whole[name], array)
    np.testing.assert_array_equal(front["scale.weight"], np.full((3, 1, 1, 1), 1 / 64, np.float32))
    assert plan.cells() == (10, 2)
    with pytest.raises(ConfigError, match="a context module for the second; got 'context'"):
        plan._replace(context="none").build("context")


def test_an_upsampling_that_does_not_divide_the_stride():
    r = joint_recipe(upsample=3)
    with pytest.raises(ConfigError, match="upsample to divide the front end's stride of 2 pixels"):
        build_parts(r, r.plan(VOC), "meta")


def test_a_crop_that_leaves_half_a_cell():
    r = recipe(crop=27)
    with pytest.raises(ShapeError, match=r"expected a crop of 10 \+ a multiple of 2 pixels"):
        crop_of(r, build_parts(r, r.plan(VOC), "meta"))


# ---- steps -----------------------------------------------------------------------------------


def network_of(r, classes=VOC, seed=0):
    network = r.plan(classes).build(rng=seed)
    for module in network.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0  # its masks are others in parts
    return network


def gradients(network):
    return {name: p.grad.numpy() for name, p in network.named_parameters() if p.requires_grad}


@given(
    batch=st.integers(1, 5),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 10),
    data=st.data(),
)
def test_a_batch_in_parts_is_the_batch(batch, ignored, seed, data):
    """Gradients and loss agree but for rounding, wherever the labels that count lie."""
    parts = data.draw(st.integers(1, batch))
    r = joint_recipe(iter_size=1)
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 60, (batch, 3, 26, 26)).astype(np.float32)
    labels = rng.integers(0, 21, (batch, 8, 8))
    labels[rng.random(labels.shape) < ignored] = IGNORE
    labels[0, :, 1:] = IGNORE  # one part has fewer labels than another
    whole, split = network_of(r), network_of(r)
    loss = batch_gradient(whole, Batch(images, labels))
    assert batch_gradient(split, Batch(images, labels), parts) == pytest.approx(loss, rel=1e-5)
    if loss is None:
        assert all(p.grad is None for p in whole.parameters())
        return
    theirs = gradients(split)
    for name, grad in gradients(whole).items():
        scale = np.abs(grad).max()
        np.testing.assert_allclose(theirs[name], grad, atol=2e-5 * scale + 1e-12, err_msg=name)


def test_the_loss_is_a_mean_over_the_whole_batchs_pixels():
    """Not a mean of means: that would weigh the one label of the second image like 64."""
    r = joint_recipe()
    network = network_of(r)
    rng = np.random.default_rng(0)
    images = rng.normal(0, 60, (2, 3, 26, 26)).astype(np.float32)
    labels = rng.integers(0, 21, (2, 8, 8))
    labels[1] = IGNORE
    labels[1, 0, 0] = 5
    both = batch_gradient(network, Batch(images, labels), 2)
    alone = [batch_gradient(network, Batch(images[k : k + 1], labels[k : k + 1])) for k in (0, 1)]
    assert both == pytest.approx((64 * alone[0] + alone[1]) / 65, rel=1e-5)


def test_a_step_of_nothing_but_ignored_pixels():
    network = network_of(joint_recipe())
    batch = Batch(np.zeros((2, 3, 26, 26), np.float32), np.full((2, 8, 8), IGNORE))
    assert batch_gradient(network, batch, 2) is None


def test_adam_takes_the_same_groups():
    optimizer = make_optimizer(joint_recipe(optimizer="adam", lr=0.5), network_of(joint_recipe()))
    assert type(optimizer).__name__ == "Adam"
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]


def test_the_first_loss_is_ln_c():
    """With final's sigma of 0.001 (issue 12 of fyu/dilation: 2.94 for 19 classes, 3.05 for 21)."""
    rng = np.random.default_rng(0)
    for classes, expected in ((VOC, 3.05), (CITYSCAPES, 2.94), (CAMVID, 2.40)):
        network = recipe(final_std=0.001).plan(classes).build(rng=0)
        images = rng.normal(0, 60, (2, 3, 26, 26)).astype(np.float32)
        labels = rng.integers(0, len(classes.names), (2, 8, 8))
        assert batch_gradient(network, Batch(images, labels)) == pytest.approx(expected, abs=0.02)


def test_biases_learn_twice_as_fast_and_do_not_decay():
    r = joint_recipe(lr=0.5, weight_decay=0.25, bias_lr_mult=3, bias_decay_mult=2, momentum=0.5)
    network = network_of(r)
    optimizer = make_optimizer(r, network)
    weights, biases = optimizer.param_groups
    assert (weights["lr"], weights["weight_decay"], weights["momentum"]) == (0.5, 0.25, 0.5)
    assert (biases["lr"], biases["weight_decay"], biases["momentum"]) == (1.5, 0.5, 0.5)
    learning = [p for p in network.parameters() if p.requires_grad]
    assert len(weights["params"]) + len(biases["params"]) == len(learning)
    assert len(learning) < len(list(network.parameters()))  # the fixed scale is not among them
    default = make_optimizer(joint_recipe(), network).param_groups[1]
    assert (default["lr"], default["weight_decay"]) == (0.02, 0)


# ---- estimates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("front", "size", "batch", "parts", "rule"),
    [
        ("small", 148, 2, 1, "sgd"),
        ("small", 148, 4, 2, "sgd"),
        ("vgg-like", 180, 1, 1, "sgd"),
        ("vgg-like", 180, 1, 1, "adam"),
    ],
)
def test_the_estimate_is_near_the_peak(front, size, batch, parts, rule):
    """In the pool, from which all maps and gradients come: within 15 %."""
    table = ("a 3 1 16", "b 3 1 16", "p pool", "c 3 1 32", "d 3 2 64", "fc 7 4 128", "x drop 0.5")
    layers = {"front_end": "table", "table": table} if front == "vgg-like" else {
        "front_end": "small", "table": []
    }  # fmt: skip
    r = recipe(**layers, optimizer=rule)
    network = r.plan(VOC).build(rng=0)
    border, stride = r.plan(VOC).cells()
    optimizer = make_optimizer(r, network)
    rng = np.random.default_rng(0)
    images = rng.normal(0, 60, (batch, 3, size, size)).astype(np.float32)
    cells = (size - 2 * border) // stride
    labels = rng.integers(0, 21, (batch, cells, cells))
    buffers.empty_cache()
    before = buffers.statistics().in_use
    for _ in range(2):
        batch_gradient(network, Batch(images, labels), parts)
        optimizer.step()
        optimizer.zero_grad()
    measured = buffers.statistics().peak - before
    guess = estimate(network, (3, size, size), batch, parts, optimizer.remembered)
    assert guess.pass_bytes + guess.optimizer_bytes == pytest.approx(measured, rel=0.15)


def test_adam_remembers_twice_what_momentum_does():
    guesses = [estimate_recipe(recipe(optimizer=rule)) for rule in ("sgd", "adam")]
    assert guesses[1].optimizer_bytes == 2 * guesses[0].optimizer_bytes == 8 * guesses[0].trainable
    for rule in (optim.SGD, optim.Adam):
        weight = tensor(np.zeros((3, 5), np.float32), requires_grad=True)
        (state,) = rule([weight], lr=1.0).state
        kept = [array for array in state.values() if array.shape == weight.shape]
        assert rule.remembered == len(kept)


def test_the_estimate_of_the_published_front_end():
    """benchmarks/memory.py measured 2,739 MB for the third step at 500 x 500; one image, Basic."""
    r = read_recipe("voc-3-joint", ["context=basic", "batch=1"])
    assert estimate_recipe(r).memory == pytest.approx(2_739e6, rel=0.15)


def test_multiplications_are_counted():
    r = recipe(front_end="table", table=["a 3 1 4"], divisor=1)
    guess = estimate(r.plan(VOC).build(device="meta"), (3, 10, 10), 5, 2)
    assert guess.macs == 3 * 5 * (8 * 8) * (27 * 4 + 4 * 21)
    assert guess.input_shape == (3, 3, 10, 10)
    assert guess.parameters == 27 * 4 + 4 + 4 * 21 + 21


def test_the_fewest_parts_that_fit():
    network = read_recipe("small-1-front-end").plan(VOC).build(device="meta")
    sizes = {n: estimate(network, (3, 84, 84), 16, n).memory for n in range(1, 17)}
    for room in (sizes[1], sizes[2], sizes[4], sizes[16]):
        fewest = min(n for n, size in sizes.items() if size <= room)
        assert fitting_iter_size(network, (3, 84, 84), 16, room) == fewest
    assert fitting_iter_size(network, (3, 84, 84), 16, sizes[16] // 2) is None


def test_numbers_for_people():
    assert [told_bytes(n) for n in (2048, 3 * 2**20, 1.5 * 2**30)] == [
        "2 KiB",
        "3.0 MiB",
        "1.5 GiB",
    ]
    told = [told_seconds(s) for s in (0.0123, 1.5, 41, 600, 7500, 86400 * 28)]
    assert told == ["0.012 s", "1.5 s", "41 s", "10 min", "2 h 5 min", "28 days"]


def test_free_memory_is_told():
    free = free_memory("cpu")
    assert free is None or 2**26 < free < 2**46


# ---- data ------------------------------------------------------------------------------------

WRITERS = {
    "voc": (tiny.write_voc, ["voc:train"], "voc:val"),
    "camvid": (tiny.write_camvid_segnet, ["camvid:train"], "camvid:val"),
    "kitti": (tiny.write_kitti, ["kitti:train"], "kitti:test"),
    "cityscapes": (tiny.write_cityscapes, ["cityscapes:train"], "cityscapes:val"),
    "coco": (tiny.write_coco, ["coco:train"], "coco:train"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_data_set_is_learnt_from(tmp_path, kind):
    write, train, validation = WRITERS[kind]
    write(tmp_path)
    r = recipe(train=train, validation=validation, batch=2)
    images = open_images(r, [tmp_path])
    parts = build_parts(r, r.plan(images.train.classes))
    from tinydilate.recipes.batches import CropSource

    source = CropSource(images, r, crop_of(r, parts))
    for batch in source.steps(range(2)):
        assert batch.images.shape == (2, 3, 26, 26)
        assert batch.labels.shape == (2, 8, 8)
        assert batch_gradient(parts.learning, batch) is not None
    assert [len(batch.labels) for batch in source.scored()] == [1] * min(2, len(images.validation))


def test_two_data_sets_together(tmp_path):
    tiny.write_voc(tmp_path / "voc")
    tiny.write_coco(tmp_path / "coco")
    r = recipe(train=["voc:train", "coco:train"], validation="voc:val")
    images = open_images(r, [tmp_path / "voc", tmp_path / "coco"])
    alone = [
        open_dataset("voc", tmp_path / "voc", "train"),
        open_dataset("coco", tmp_path / "coco", "train"),
    ]
    assert images.train.names == alone[0].names + alone[1].names
    assert images.validation.names == open_dataset("voc", tmp_path / "voc", "val").names
    with pytest.raises(ConfigError, match=r"one --data FOLDER for each of voc:train, coco:train"):
        open_images(r, [tmp_path / "voc"])
    other = recipe(train=["voc:train"], validation="coco:train")
    with pytest.raises(ConfigError, match=r"a data set that is learnt from, voc; got 'coco:train'"):
        open_images(other, [tmp_path / "voc"])


def test_spread():
    assert spread(10, 3) == [0, 4, 9]
    assert spread(3, 50) == [0, 1, 2]
    assert spread(1, 50) == [0]


# ---- stored features -------------------------------------------------------------------------


class Fixed:
    """Images in memory."""

    def __init__(self, *pictures, classes=VOC):
        self.pictures, self.classes = pictures, classes
        self.names = tuple(f"picture{n}" for n in range(len(pictures)))

    def __len__(self):
        return len(self.pictures)

    def image(self, i):
        return self.pictures[i]

    def labels(self, i):
        return (self.pictures[i][..., 0] % 21).astype(np.uint8)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


FRONT = recipe().plan(VOC).build("front end", rng=0)
CANVAS = Canvas((6, 7), 5, 2, False)


@given(height=st.integers(1, 12), width=st.integers(1, 14), mirrored=st.booleans())
def test_an_image_on_its_canvas(height, width, mirrored):
    """Reflected twice: about the image with its border, after the image's own border is made."""
    images = Fixed(picture(height, width))
    found = canvas_input(images, 0, CANVAS, mirrored)
    image = images.image(0)[:, ::-1] if mirrored else images.image(0)
    bordered = np.pad(image, ((5, 5), (5, 5), (0, 0)), "reflect")
    filled = np.pad(bordered, ((0, 12 - height), (0, 14 - width), (0, 0)), "reflect")
    expected = filled[..., ::-1].transpose(2, 0, 1) - np.array(VOC.mean, np.float32)[:, None, None]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_an_image_that_is_larger_than_the_canvas():
    with pytest.raises(DataError, match=r"picture0 has 13 x 14 pixels.*label_shape=\[7, 7\]"):
        canvas_input(Fixed(picture(13, 14)), 0, CANVAS, False)


@pytest.mark.parametrize("mirrored", [False, True])
def test_stored_features_are_the_front_ends(tmp_path, mirrored):
    images = Fixed(picture(12, 14), picture(9, 8, 1), picture(11, 11, 2))
    canvas = CANVAS._replace(mirrored=mirrored)
    features = store_features(tmp_path / "f", FRONT, images, [2, 0], canvas, progress=False)
    turns = (False, True) if mirrored else (False,)
    for place, (turned, number) in enumerate((t, n) for t in turns for n in (2, 0)):
        expected = (
            FRONT.eval()(canvas_input(images, number, canvas, turned)[None]).detach().numpy()[0]
        )
        np.testing.assert_array_equal(features[place], expected)
    changed = (tmp_path / "f").stat().st_mtime_ns
    store_features(tmp_path / "f", FRONT, images, [2, 0], canvas, progress=False)
    assert (tmp_path / "f").stat().st_mtime_ns == changed  # nothing was computed again


def test_computing_features_goes_on(tmp_path):
    images = Fixed(picture(12, 14), picture(9, 8, 1), picture(11, 11, 2))
    whole = store_features(tmp_path / "a", FRONT, images, range(3), CANVAS, progress=False)
    asked = []

    class Interrupting(Fixed):
        def image(self, i):
            asked.append(i)
            if len(asked) == 3 + 3:  # three are looked at for the identity
                raise KeyboardInterrupt
            return super().image(i)

    broken = Interrupting(*images.pictures)
    with pytest.raises(KeyboardInterrupt):
        store_features(tmp_path / "b", FRONT, broken, range(3), CANVAS, progress=False)
    assert (tmp_path / "b.part").exists()
    asked.clear()
    again = Interrupting(*images.pictures)
    found = store_features(tmp_path / "b", FRONT, again, range(3), CANVAS, progress=False)
    assert asked == [0, 1, 2, 2]  # the identity's, and the one that was missing
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert len(found) == len(whole)


def test_stale_features_are_refused(tmp_path):
    images = Fixed(picture(12, 14), picture(12, 14, 1))
    path = tmp_path / "f"
    store_features(path, FRONT, images, range(2), CANVAS, progress=False)

    def again(front=FRONT, images=images, numbers=range(2), canvas=CANVAS):
        return store_features(path, front, images, numbers, canvas, progress=False)

    assert len(again()) == 2
    other = recipe().plan(VOC).build("front end", rng=1)
    with pytest.raises(DataError, match=r"are stale or of something else \(front end: "):
        again(front=other)
    with pytest.raises(DataError, match=r"pixels of images: "):
        again(images=Fixed(picture(12, 14), picture(12, 14, 2)))
    renamed = Fixed(*images.pictures)
    renamed.names = ("a", "b")
    with pytest.raises(DataError, match="names of images: "):
        again(images=renamed)
    with pytest.raises(DataError, match=r"names of images: .*pixels of images: "):
        again(numbers=[1, 0])
    with pytest.raises(DataError, match="mean pixel: "):
        again(images=Fixed(*images.pictures, classes=VOC._replace(mean=(1.0, 2.0, 3.0))))
    with pytest.raises(DataError, match="mirror images: False there, True here"):
        again(canvas=CANVAS._replace(mirrored=True))
    with pytest.raises(DataError, match="shape: "):
        again(canvas=CANVAS._replace(cells=(7, 7)))
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(DataError, match="is a JPEG image"):
        again()


def test_one_changed_weight_changes_the_fingerprint():
    network = recipe().plan(VOC).build("front end", rng=0)
    before = fingerprint(network)
    assert fingerprint(recipe().plan(VOC).build("front end", rng=0)) == before
    network.final.bias.data[3] = np.nextafter(network.final.bias.data[3], np.float32(1))
    assert fingerprint(network) != before


def source_of(tmp_path, mirror, images=None):
    images = images or Fixed(picture(12, 14), picture(11, 13, 1), picture(10, 9, 2))
    numbers = range(len(images))
    canvas = CANVAS._replace(mirrored=mirror == "image")
    features = store_features(tmp_path / "f", FRONT, images, numbers, canvas, progress=False)
    maps = Maps(features, images, numbers, canvas)
    return StoredSource(maps, maps, context_recipe(mirror=mirror, batch=4, seed=3), 2), maps


@pytest.mark.parametrize("mirror", ["none", "image", "features"])
def test_batches_of_stored_features(tmp_path, mirror):
    source, maps = source_of(tmp_path, mirror)
    batches = list(source.steps(range(6)))
    turned = 0
    for images, labels in batches:
        assert (images.shape, labels.shape) == ((4, 21, 6, 7), (4, 6, 7))
        assert labels.dtype == np.int64
        for one, truth in zip(images, labels, strict=True):
            plain = [k for k in range(3) if np.array_equal(one, maps.features[k])]
            turned += not plain
            if mirror == "features" and not plain:
                k = next(k for k in range(3) if np.array_equal(one[..., ::-1], maps.features[k]))
                np.testing.assert_array_equal(truth[:, ::-1], maps.one(k, 2)[1])
    assert (turned > 5) == (mirror != "none")
    assert turned < 19
    again = list(source.steps(range(4, 6)))  # a run can go on at any step
    for batch, other in zip(batches[4:], again, strict=True):
        np.testing.assert_array_equal(batch.images, other.images)
        np.testing.assert_array_equal(batch.labels, other.labels)


def test_the_offset_of_labels_keeps_its_direction(tmp_path):
    """Mirrored images keep a cell's label left of its field; mirrored features turn it round."""
    images = Fixed(np.tile(np.arange(14, dtype=np.uint8)[:, None], (12, 1, 3)))
    _, maps = source_of(tmp_path, "image", images)
    plain, labels = maps.one(0, 2)
    np.testing.assert_array_equal(labels[0], [0, 2, 4, 6, 8, 10, 12])  # pixel 2j
    _, mirrored = maps.one(0, 2, "image")
    np.testing.assert_array_equal(mirrored[0], [13, 11, 9, 7, 5, 3, 1])  # 13 - 2j: the same side
    turned, flipped = maps.one(0, 2, "features")
    np.testing.assert_array_equal(flipped[0], [12, 10, 8, 6, 4, 2, 0])  # 2(6 - j): the other side
    np.testing.assert_array_equal(turned, plain[..., ::-1])


def test_labels_of_pixels(tmp_path):
    _, maps = source_of(tmp_path, "none", Fixed(picture(12, 14)))
    _, labels = maps.one(0, 1)
    np.testing.assert_array_equal(labels, maps.images.labels(0))


def test_labels_beyond_the_image_do_not_count(tmp_path):
    _, maps = source_of(tmp_path, "none", Fixed(picture(8, 9)))
    _, labels = maps.one(0, 2)
    np.testing.assert_array_equal(labels, feature_labels(maps.images.labels(0), (6, 7), 2))
    assert (labels[:4, :5] < 21).all()
    assert (labels[4:] == IGNORE).all()
    assert (labels[:, 5:] == IGNORE).all()
