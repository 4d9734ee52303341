"""Scores of whole data sets, the paper's tables beside them, and files for the servers."""

import json

import numpy as np
import pytest
import tiny_datasets as tiny
from PIL import Image

from tinydilate.classes import CAMVID, CITYSCAPES, IGNORE, KITTI, VOC
from tinydilate.cli import main
from tinydilate.data import open_dataset
from tinydilate.data.survey import survey
from tinydilate.errors import ConfigError, DataError, ShapeError
from tinydilate.evaluation import (
    Evaluation,
    evaluate,
    evaluate_dataset,
    evaluate_files,
    evaluate_folders,
    label_files,
)
from tinydilate.io.images import write_labels
from tinydilate.metrics import Row, confusion_matrix
from tinydilate.paper_tables import TABLES, beside_the_paper, results_as, tables_with
from tinydilate.see.sheet import contact_sheet
from tinydilate.submission import write_submission


def some_mistakes(labels, count, seed=0):
    """A label for every pixel, a fifth of them at random."""
    rng = np.random.default_rng(seed)
    guess = rng.integers(0, count, labels.shape, dtype=np.uint8)
    return np.where((labels == IGNORE) | (rng.random(labels.shape) < 0.2), guess, labels)


def write_predictions(folder, truth, classes, end=""):
    """As ``tinydilate predict`` writes them; returns the confusion matrix by counting."""
    matrix = np.zeros((len(classes.names),) * 2, np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    for k, (name, labels) in enumerate(truth.items()):
        predicted = some_mistakes(labels, len(classes.names), seed=k)
        write_labels(folder / f"{name}{end}.png", predicted, np.array(classes.palette, np.uint8))
        for t, p in zip(labels.ravel(), predicted.ravel(), strict=True):
            if t != IGNORE:
                matrix[t, p] += 1
    return matrix


# ---- whole data sets -------------------------------------------------------------------------


def test_intersections_and_unions_are_summed_before_they_are_divided():
    """Two images, one right in 1 of 1 pixels, one in 1 of 9: 2/10, not the mean 5/9."""
    first = ("a", np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    found = np.ones((3, 3), np.uint8)
    found[0, 0] = 0
    second = ("b", np.zeros((3, 3), np.uint8), found)
    result = evaluate([first, second], VOC)
    assert result.score.iou[0] == 0.2
    assert result.images == 2


def test_errors_name_the_image():
    good = np.zeros((2, 2), np.uint8)
    with pytest.raises(ShapeError, match=r"^berlin: expected truth and prediction of one shape"):
        evaluate([("berlin", good, good[:1])], VOC)
    with pytest.raises(DataError, match=r"^berlin: expected prediction labels in 0..20"):
        evaluate([("berlin", good, good + 21)], VOC)
    with pytest.raises(DataError, match=r"expected images to score; got none"):
        evaluate([], VOC)


def test_a_network_on_a_data_set(tmp_path):
    truth = tiny.write_kitti(tmp_path)["train"]
    dataset = open_dataset("kitti", tmp_path, "train")
    guesses = [some_mistakes(labels, 11, k) for k, labels in enumerate(truth.values())]
    found = evaluate_dataset(dataset, lambda i: guesses[i])
    expected = sum(
        confusion_matrix(labels, guess, 11)
        for labels, guess in zip(truth.values(), guesses, strict=True)
    )
    np.testing.assert_array_equal(found.matrix, expected)
    assert found.categories is None


@pytest.mark.parametrize("end", ["", "-labels"])
def test_files_against_a_data_set(tmp_path, end):
    truth = tiny.write_voc(tmp_path)["val"]
    matrix = write_predictions(tmp_path / "p", truth, VOC, end)
    found = evaluate_files(tmp_path / "p", open_dataset("voc", tmp_path, "val"))
    np.testing.assert_array_equal(found.matrix, matrix)
    assert found.images == 2


@pytest.mark.parametrize("classes", [VOC, CAMVID, KITTI])
def test_folder_against_folder_of_colour_maps(tmp_path, classes):
    truth = {name: tiny.some_labels(name, len(classes.names)) for name in "abc"}
    border = (224, 224, 192) if classes is VOC else (0, 0, 0)
    for name, labels in truth.items():
        if classes is VOC:
            labels[labels == 0] = 1  # so that black is left for nothing
        tiny.save(tmp_path / "t" / f"{name}.png", tiny.in_colours(labels, classes.palette, border))
    matrix = write_predictions(tmp_path / "p", truth, classes)
    found = evaluate_folders(tmp_path / "p", tmp_path / "t", classes)
    np.testing.assert_array_equal(found.matrix, matrix)


@pytest.mark.parametrize("ids", ["ids predicted", "trainIds predicted"])
def test_cityscapes_by_ids_or_train_ids(tmp_path, ids):
    truth = tiny.write_cityscapes(tmp_path)["train"]
    matrix = write_predictions(tmp_path / "p", truth, CITYSCAPES, "_leftImg8bit-labels")
    if ids == "ids predicted":
        for k, (name, labels) in enumerate(truth.items()):
            (tmp_path / "p" / f"{name}_leftImg8bit-labels.png").unlink()
            write_submission(tmp_path / "p", name, some_mistakes(labels, 19, k), CITYSCAPES)
    found = evaluate_folders(tmp_path / "p", tmp_path / "gtFine" / "train", CITYSCAPES)
    np.testing.assert_array_equal(found.matrix, matrix)
    np.testing.assert_array_equal(
        evaluate_files(tmp_path / "p", open_dataset("cityscapes", tmp_path, "train")).matrix, matrix
    )


def test_cityscapes_categories():
    """A truck taken for a car is no mistake of its category; for a road it is."""
    number = CITYSCAPES.names.index
    truck, car, road = number("truck"), number("car"), number("road")
    matrix = confusion_matrix([truck, truck, road], [car, road, road], 19)
    categories = Evaluation(CITYSCAPES, matrix, 1).categories
    assert categories.classes == (
        "flat", "nature", "object", "sky", "construction", "human", "vehicle",
    )  # fmt: skip
    found = dict(zip(categories.classes, categories.iou, strict=True))
    assert (found["flat"], found["vehicle"]) == (0.5, 0.5)
    assert np.isnan(found["sky"])


def test_label_files_are_known_by_their_images(tmp_path):
    for name in (
        "a-labels.png", "a-overlay.png", "b.png", "c_gtFine_labelIds.png", "c_gtFine_color.png",
        "sub/d_L.png", "e.txt", "legend.png",
    ):  # fmt: skip
        tiny.save(tmp_path / name, np.zeros((2, 2), np.uint8), format="png")
    assert list(label_files(tmp_path)) == ["a", "b", "c", "d"]
    tiny.save(tmp_path / "d.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(
        DataError, match=r"one label file for each image .*d.png and .*d_L.png for d"
    ):
        label_files(tmp_path)


def test_missing_files_are_named(tmp_path):
    truth = tiny.write_voc(tmp_path)["val"]
    labels = tmp_path / "VOCdevkit/VOC2012/SegmentationClass"
    write_predictions(tmp_path / "p", dict(list(truth.items())[:1]), VOC)
    with pytest.raises(
        DataError, match=r"label PNG for 2007_000042 below .*p; .* \(1 of 2 are mis"
    ):
        evaluate_files(tmp_path / "p", open_dataset("voc", tmp_path, "val"))
    with pytest.raises(DataError, match=r"label PNG for 2007_000032 below .*\(3 of 4 are missing"):
        evaluate_folders(tmp_path / "p", labels, VOC)
    with pytest.raises(DataError, match=r"a folder of label PNGs at .*nowhere; there is none"):
        evaluate_folders(tmp_path / "nowhere", labels, VOC)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected label PNGs in .*empty; got none"):
        evaluate_folders(labels, tmp_path / "empty", VOC)


# ---- the paper's tables ----------------------------------------------------------------------


def rows_with_classes():
    return [(table, row) for table in TABLES for row in table.rows if row.values[0] is not None]


@pytest.mark.parametrize(
    ("table", "row"),
    [
        pytest.param(table, row, id=f"{table.number} {row.name}")
        for table, row in rows_with_classes()
    ],
)
def test_the_papers_means_are_those_of_its_classes(table, row):
    """So the figures were copied rightly, and VOC's means are over 21 classes."""
    assert len(row.values) == len(row.columns)
    total = sum(row.values)
    if table.dataset == "voc":
        background = 21 * row.mean - total  # what the background must have had
        assert 91 < background < 95
    else:
        assert total / len(row.values) == pytest.approx(row.mean, abs=0.051)


def test_every_table_is_there():
    assert [table.number for table in TABLES] == [2, 3, 4, 5, 6, 7, 8]
    for table in TABLES:
        assert len({row.columns for row in table.rows}) == 1
    assert [table.number for table in tables_with(CITYSCAPES.names, "cityscapes")] == [7]
    assert [table.number for table in tables_with(VOC.names[1:], "voc")] == [2, 3, 4]


def test_the_order_of_the_classes_is_the_papers():
    """Figures that are known by name: only in the right order does each find its class."""
    found = {(table.number, row.name): dict(zip(row.columns, row.values, strict=True))
             for table, row in rows_with_classes()}  # fmt: skip
    assert found[2, "front end"]["bicycle"] == 37.4
    assert found[2, "front end"]["tvmonitor"] == 60.9
    assert found[5, "Dilation8"]["pole"] == 23.4
    assert found[6, "Dilation7"]["pedestrian"] == 4.6
    assert found[7, "Dilation10, val"]["train"] == 54.3
    assert found[8, "Dilation10, test"]["human"] == 79.8


def test_text_markdown_and_json():
    rows = [
        Row("yours", ("aeroplane", "cat"), (82.24, None), 70.0),
        Row("theirs", ("aeroplane", "cat"), (9.0, 100.0), None),
    ]
    assert results_as(rows) == (
        "        aero    cat  mean\nyours   82.2      -  70.0\ntheirs   9.0  100.0     -"
    )
    assert results_as(rows, "markdown") == (
        "|  | aero | cat | mean |\n| --- | ---: | ---: | ---: |\n"
        "| yours | 82.2 | - | 70.0 |\n| theirs | 9.0 | 100.0 | - |"
    )
    assert json.loads(results_as(rows, "json"))[0] == {
        "name": "yours",
        "mean_iou": 70.0,
        "iou": {"aeroplane": 82.24, "cat": None},
    }
    with pytest.raises(ConfigError, match=r"a form of table: text, markdown, json; got 'latex'"):
        results_as(rows, "latex")
    with pytest.raises(ConfigError, match=r"rows with one set of classes; got 2 rows and 2 sets"):
        results_as([rows[0], TABLES[0].rows[0]])


def test_beside_the_paper():
    matrix = confusion_matrix(range(11), range(11), 11)
    row = Evaluation(CAMVID, matrix, 1).score.row()
    names = [each.name for each in beside_the_paper(row, "camvid")]
    assert names[0] == "yours"
    assert names[-1] == "Table 5: Dilation8"
    assert beside_the_paper(row, "my own") == [row]


# ---- for the servers -------------------------------------------------------------------------


def test_submission_to_voc(tmp_path):
    labels = some_mistakes(tiny.some_labels("a", 21), 21)
    path = write_submission(tmp_path, "2008_000006", labels, VOC)
    assert path.relative_to(tmp_path).as_posix() == (
        "results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png"
    )
    image = Image.open(path)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    assert tuple(image.getpalette()[15 * 3 : 15 * 3 + 3]) == (192, 128, 128)  # a person


def test_submission_to_cityscapes(tmp_path):
    labels = np.arange(19, dtype=np.int64)[None]
    path = write_submission(tmp_path / "new", "berlin_000000_000019", labels, CITYSCAPES)
    assert path.name == "berlin_000000_000019_pred_labelIds.png"
    image = Image.open(path)
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [
        [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    ]


def test_submissions_that_are_refused(tmp_path):
    labels = np.zeros((2, 2), np.uint8)
    with pytest.raises(
        ConfigError, match=r"voc or cityscapes, which have .*; got kitti. Score such"
    ):
        write_submission(tmp_path, "a", labels, KITTI)
    with pytest.raises(DataError, match=r"labels 0..20 for every pixel of a; got 0 to 255"):
        write_submission(tmp_path, "a", np.array([[0, 255]]), VOC)
    with pytest.raises(ShapeError, match=r"class numbers \(H, W\) for a; got float64 \(2, 2\)"):
        write_submission(tmp_path, "a", labels / 1.0, VOC)
    (tmp_path / "results").write_text("a file")
    with pytest.raises(DataError, match=r"expected a folder for the results; .*Choose another one"):
        write_submission(tmp_path, "a", labels, VOC)


# ---- surveys and sheets ----------------------------------------------------------------------


def test_survey(tmp_path):
    truth = tiny.write_kitti(tmp_path)["train"]
    found = survey(open_dataset("kitti", tmp_path, "train"), mean=True)
    maps = list(truth.values())
    assert found.pixels == tuple(sum(int((m == c).sum()) for m in maps) for c in range(11))
    assert found.shown_in == tuple(sum(bool((m == c).any()) for m in maps) for c in range(11))
    assert found.ignored == sum(int((m == IGNORE).sum()) for m in maps) > 0
    assert found.sizes == ((tiny.SIZE, 2),)
    assert sum(found.shares) == pytest.approx(1)
    pixels = np.stack([tiny.noise("Training_00" + name) for name in truth])
    assert found.mean == pytest.approx(tuple(pixels.mean(axis=(0, 1, 2))[::-1]))
    json.dumps(found.to_dict(), allow_nan=False)


def test_survey_of_a_split_without_labels(tmp_path):
    tiny.write_voc(tmp_path)
    found = survey(open_dataset("voc", tmp_path, "test"))
    assert (sum(found.pixels), found.sizes, found.mean) == (0, ((tiny.SIZE, 1),), None)


def test_a_contact_sheet(tmp_path):
    truth = tiny.write_folder(tmp_path, names=("a", "b", "c"))
    dataset = open_dataset("folder", tmp_path, "all")
    sheet = contact_sheet(dataset, range(3), columns=2, width=16)
    assert sheet.shape == (2 * (24 + 4), 2 * (16 + 4), 3)
    np.testing.assert_array_equal(sheet[:12, 20:36], tiny.noise("b"))
    labels = sheet[12:24, :16].astype(int)  # the first image again, red where there is an animal
    red = truth["a"] == 1
    assert labels[red][:, 0].mean() > 140 > labels[truth["a"] == 0][:, 0].mean()
    assert (sheet[-1] == 255).all()
    with pytest.raises(ConfigError, match=r"got 0 images, 2 columns, width 16"):
        contact_sheet(dataset, [], columns=2, width=16)


# ---- commands --------------------------------------------------------------------------------


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_data_check(tmp_path, capsys):
    tiny.write_voc(tmp_path)
    code, out, err = run(capsys, "data", "check", "voc", tmp_path, "--split", "val", "--mean")
    assert (code, err.count("expected")) == (0, 0)
    assert "voc, split val: 2 images, every file is there." in out
    assert "Sizes (height x width): 2 of 12 x 16." in out
    assert "Mean pixel: blue " in out
    assert "aeroplane" in out
    code, out, _ = run(capsys, "data", "check", "voc", tmp_path, "--json", "--quick")
    told = {"kind": "voc", "split": "train", "images": 2, "labelled": True}
    assert (code, json.loads(out)) == (0, told)
    _, out, _ = run(capsys, "data", "check", "voc", tmp_path, "--split", "test", "--json")
    assert json.loads(out)["labelled"] is False
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/2007_000039.jpg").unlink()
    code, out, err = run(capsys, "data", "check", "voc", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("tinydilate: expected an image at ")
    assert "2007_000039.jpg" in err


def test_data_show(tmp_path, capsys):
    tiny.write_camvid_raw(tmp_path)
    sheet = tmp_path / "sheet.png"
    code, out, _ = run(
        capsys, "data", "show", "camvid", tmp_path, "--split", "val", "--out", sheet, "--json"
    )
    assert code == 0
    assert json.loads(out)["images"] == ["0016E5_07959", "0016E5_08159"]
    with Image.open(sheet) as image:
        assert image.size == (4 * 244, 364)
    code, _, err = run(capsys, "data", "show", "camvid", tmp_path, "--first", "9", "--out", sheet)
    assert code == 2
    assert "--first of 0 to 2; got 8 and 9" in err
    other = tmp_path / "sheet.jpg"
    code, _, err = run(capsys, "data", "show", "camvid", tmp_path, "--out", other)
    assert code == 2
    assert "expected --out to name a PNG, such as sheet.png; got " in err
    assert not other.exists()


def test_data_submit(tmp_path, capsys):
    truth = tiny.write_cityscapes(tmp_path)["val"]
    write_predictions(tmp_path / "p", truth, CITYSCAPES, "_leftImg8bit-labels")
    out = tmp_path / "out"
    options = ("--classes", "cityscapes", "--json")
    code, text, _ = run(capsys, "data", "submit", tmp_path / "p", out, *options)
    assert code == 0
    assert json.loads(text) == {"files": [str(out / "lindau_000000_000019_pred_labelIds.png")]}
    truth = tmp_path / "gtFine" / "val"
    again = evaluate_folders(out, truth, CITYSCAPES)
    np.testing.assert_array_equal(
        again.matrix, evaluate_folders(tmp_path / "p", truth, CITYSCAPES).matrix
    )
    code, _, err = run(capsys, "data", "submit", tmp_path / "leftImg8bit/none", out, *options)
    assert (code, "expected a folder of label PNGs at" in err) == (2, True)


def test_score_a_data_set(tmp_path, capsys):
    truth = tiny.write_cityscapes(tmp_path)["val"]
    matrix = write_predictions(tmp_path / "p", truth, CITYSCAPES)
    code, out, _ = run(capsys, "score", tmp_path / "p", tmp_path, "--data", "cityscapes")
    assert code == 0
    assert "Table 7: Dilation10, val" in out
    assert "Table 8: Dilation10, val" in out
    assert f"1 image, {matrix.sum():,} pixels" in out
    code, out, _ = run(
        capsys,
        "score",
        tmp_path / "p",
        tmp_path / "gtFine/val",
        "--classes",
        "cityscapes",
        "--json",
    )
    told = json.loads(out)
    assert told["confusion"] == matrix.tolist()
    assert [len(table) for table in told["tables"]] == [3, 3]
    assert told["categories"]["mean_iou"] > told["classes"]["mean_iou"]


def test_score_with_classes_of_your_own(tmp_path, capsys):
    truth = tiny.write_folder(tmp_path)
    for name, labels in truth.items():
        tiny.save(tmp_path / "p" / f"{name}.png", np.where(labels == 1, 1, 0).astype(np.uint8))
    classes = tmp_path / "classes.txt"
    code, out, _ = run(
        capsys, "score", tmp_path / "p", tmp_path / "labels", "--classes", classes, "--markdown"
    )
    assert code == 0
    assert "| yours | 100.0 | 100.0 | 100.0 |" in out
    code, out, _ = run(capsys, "score", tmp_path / "p", tmp_path, "--data", "folder")
    assert (code, "Mean IoU 100.0 over 2 of 2 classes" in out) == (0, True)
    first = next(iter(truth))
    (tmp_path / "val.txt").write_text(first + "\n")
    for name in truth:
        if name != first:
            (tmp_path / "p" / f"{name}.png").unlink()
    code, out, _ = run(capsys, "score", tmp_path / "p", tmp_path, "--data", "folder")
    assert (code, "1 image" in out) == (0, True), f"its own val.txt is what is meant: {out}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            [],
            "expected either --classes, for a folder of label PNGs, or --data, for a data set; got",
        ),
        (["--classes", "voc", "--data", "voc"], "got both"),
        (["--classes", "ade20k"], "expected --classes voc, camvid, kitti, cityscapes, or a file"),
    ],
)
def test_score_options_that_are_refused(tmp_path, capsys, options, text):
    code, _, err = run(capsys, "score", tmp_path, tmp_path, *options)
    assert code == 2
    assert text in err


def test_a_row_with_its_mean_alone_leaves_its_cells_blank():
    rows = [Row("a", ("cat", "cow"), (1.0, 2.0), 1.5), Row("b", ("cat", "cow"), (None, None), 9.0)]
    assert results_as(rows).splitlines()[2] == "b             9.0"
    assert results_as(rows, "markdown").splitlines()[3] == "| b |  |  | 9.0 |"
