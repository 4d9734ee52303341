"""``data``: check and show data sets; ``score``: compare label files with the truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tinydilate.classes import CLASSES, Classes
from tinydilate.cli.common import columns, command, parse_size, show
from tinydilate.data.opening import KINDS, open_dataset
from tinydilate.errors import ConfigError


def add(commands: Any) -> None:
    """``data check``, ``data show``, ``data submit`` and ``score``."""
    title = "Check and show data sets"
    data = commands.add_parser(
        "data",
        help=title,
        description=f"{title}. What to download, and how it must lie, is in docs/datasets.md; a "
        "reader that misses something says it too. Nothing is fetched.",
        allow_abbrev=False,
    )
    what = data.add_subparsers(title="what to do", metavar="ACTION", required=True)
    check = command(what, "check", _check, "Check a data set's layout, read it, count its classes")
    _add_dataset(check)
    check.add_argument(
        "--quick", action="store_true",
        help="only see that every file is there (default: read all labels)",
    )  # fmt: skip
    check.add_argument(
        "--mean", action="store_true",
        help="work out the mean pixel of the images (default: do not read them)",
    )  # fmt: skip
    see = command(what, "show", _show, "Draw a contact sheet of images and labels")
    _add_dataset(see)
    see.add_argument("--out", default="sheet.png", metavar="FILE", help="default: sheet.png")
    see.add_argument("--count", type=int, default=8, metavar="N", help="images (default: 8)")
    see.add_argument("--first", type=int, default=0, metavar="I", help="begin here (default: 0)")
    see.add_argument("--columns", type=int, default=4, metavar="N", help="default: 4")
    submit = command(what, "submit", _submit, "Write label PNGs as an evaluation server wants them")
    submit.add_argument("predicted", metavar="PREDICTED", help="folder of label PNGs")
    submit.add_argument("out", metavar="OUT", help="folder for the results")
    submit.add_argument(
        "--classes", required=True, choices=("voc", "cityscapes"), help="which server"
    )
    score = command(commands, "score", _score, "Score label PNGs against the truth", _SCORE)
    score.add_argument("predicted", metavar="PREDICTED", help="folder of label PNGs")
    score.add_argument("true", metavar="TRUE", help="folder of label PNGs, or of a data set")
    score.add_argument(
        "--classes", metavar="NAME",
        help=f"what the labels mean: {', '.join(CLASSES)}, or a file with a class a line",
    )  # fmt: skip
    score.add_argument(
        "--data", choices=tuple(KINDS), metavar="KIND",
        help="TRUE is a data set of this kind (default: a folder of label PNGs)",
    )  # fmt: skip
    score.add_argument("--split", metavar="SPLIT", help="its split (default: val, or test)")
    score.add_argument(
        "--markdown", action="store_true", help="print the paper's tables in Markdown"
    )


_SCORE = (
    "Files with the same name belong together, without endings such as -labels or "
    "_gtFine_labelIds. Pixels whose truth is 255 do not count. Prints each class, and a row as in "
    "the paper's tables beside the paper's own."
)


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=tuple(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("folder", metavar="FOLDER", help="where its archives were unpacked")
    parser.add_argument(
        "--split", metavar="SPLIT", help="one of the kind's splits (default: its first)"
    )
    parser.add_argument(
        "--size", metavar="HxW", help="resize to this (default: the size of the files)"
    )


def _opened(arguments: argparse.Namespace) -> Any:
    split = arguments.split or KINDS[arguments.kind].splits[0]
    size = None if arguments.size is None else parse_size(arguments.size)
    return open_dataset(arguments.kind, arguments.folder, split, size), split


def _check(arguments: argparse.Namespace) -> int:
    from tinydilate.data.survey import survey

    dataset, split = _opened(arguments)
    told: dict[str, Any] = {
        "kind": arguments.kind,
        "split": split,
        "images": len(dataset),
        "labelled": dataset.labelled,
    }
    head = (
        f"{arguments.kind}, split {split}: {_images(len(dataset))}"
        f"{'' if dataset.labelled else ' without labels'}, every file is there."
    )
    if arguments.quick:
        show(told, arguments.json, lambda: head)
        return 0
    found = survey(dataset, arguments.mean, progress="reading")
    told |= found.to_dict()
    show(told, arguments.json, lambda: f"{head}\n{_survey_table(found)}")
    return 0


def _survey_table(found: Any) -> str:
    sizes = [f"{count:,} of {h} x {w}" for (h, w), count in found.sizes[:4]]
    more = f", {len(found.sizes) - 4} other sizes" if len(found.sizes) > 4 else ""
    lines = [f"Sizes (height x width): {', '.join(sizes)}{more}."]
    if sum(found.pixels):
        rows = [["class", "pixels", "share", "images"]]
        rows += [
            [name, f"{pixels:,}", f"{100 * share:.2f} %", f"{images:,}"]
            for name, pixels, share, images in zip(
                found.classes, found.pixels, found.shares, found.shown_in, strict=True
            )
        ]
        share = found.ignored / (sum(found.pixels) + found.ignored)
        lines += ["", columns(rows, right=(1, 2, 3)), ""]
        lines += [f"Not counted (255): {100 * share:.2f} % of all pixels."]
    if found.mean is not None:
        blue, green, red = found.mean
        lines += [f"Mean pixel: blue {blue:.2f}, green {green:.2f}, red {red:.2f}."]
    return "\n".join(lines)


def _show(arguments: argparse.Namespace) -> int:
    from tinydilate.io.images import write_rgb
    from tinydilate.see.sheet import contact_sheet

    if Path(arguments.out).suffix.lower() != ".png":
        raise ConfigError(
            f"expected --out to name a PNG, such as sheet.png; got {arguments.out!r}. Other "
            "programs turn a PNG into any picture."
        )
    dataset, split = _opened(arguments)
    if arguments.count < 1 or not 0 <= arguments.first < len(dataset):
        raise ConfigError(
            f"expected --count of at least 1 and --first of 0 to {len(dataset) - 1}; got "
            f"{arguments.count} and {arguments.first}."
        )
    numbers = range(arguments.first, min(len(dataset), arguments.first + arguments.count))
    write_rgb(arguments.out, contact_sheet(dataset, numbers, arguments.columns))
    told = {
        "sheet": str(arguments.out),
        "split": split,
        "images": [dataset.names[i] for i in numbers],
    }
    show(
        told,
        arguments.json,
        lambda: f"{arguments.out}: {_images(len(numbers))} of {arguments.kind}, split {split}.",
    )
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from tinydilate.data.pixels import read_labels
    from tinydilate.evaluation import code_of, label_files
    from tinydilate.submission import write_submission

    classes = CLASSES[arguments.classes]
    files = label_files(arguments.predicted)
    if not files:
        raise ConfigError(f"expected label PNGs in {arguments.predicted}; got none.")
    written = [
        write_submission(arguments.out, name, read_labels(path, code_of(path, classes)), classes)
        for name, path in tqdm(files.items(), desc="writing", unit="image", leave=False)
    ]
    told = {"files": [str(path) for path in written]}
    show(told, arguments.json, lambda: f"{_images(len(written))}, such as {written[0]}.")
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from tinydilate.evaluation import evaluate_files, evaluate_folders

    if (arguments.data is None) == (arguments.classes is None):
        raise ConfigError(
            "expected either --classes, for a folder of label PNGs, or --data, for a data set; "
            f"got {'neither' if arguments.data is None else 'both'}."
        )
    if arguments.data is None:
        found = evaluate_folders(
            arguments.predicted, arguments.true, _classes(arguments.classes), "scoring"
        )
    else:
        splits = KINDS[arguments.data].splits
        split = arguments.split or next(s for s in ("val", "test", "all") if s in splits)
        if arguments.data == "folder" and arguments.split is None:  # its lists are its owner's
            split = "val" if (Path(arguments.true) / "val.txt").exists() else split
        dataset = open_dataset(arguments.data, arguments.true, split)
        found = evaluate_files(arguments.predicted, dataset, "scoring")
    show(_score_dict(found), arguments.json, lambda: _score_table(found, arguments.markdown))
    return 0


def _classes(name: str) -> Classes:
    if name in CLASSES:
        return CLASSES[name]
    if Path(name).is_file():
        from tinydilate.data.folder import read_classes

        return read_classes(Path(name))
    raise ConfigError(
        f"expected --classes {', '.join(CLASSES)}, or a file with a class a line; got {name!r}."
    )


def _score_dict(found: Any) -> dict[str, Any]:
    from tinydilate.paper_tables import row_to_dict

    tables = [[row_to_dict(row) for row in rows] for rows in _paper_rows(found)]
    return {**found.to_dict(), "tables": tables}


def _paper_rows(found: Any) -> list[list[Any]]:
    """One's own row with the paper's below it, for classes and categories."""
    from tinydilate.paper_tables import beside_the_paper

    scores = [found.score] + ([found.categories] if found.categories else [])
    return [beside_the_paper(score.row(), found.classes.dataset) for score in scores]


def _score_table(found: Any, markdown: bool) -> str:
    from tinydilate.metrics import BACKGROUND
    from tinydilate.paper_tables import results_as

    form = "markdown" if markdown else "text"
    tables = [results_as(rows, form) for rows in _paper_rows(found)]
    score = found.score
    rows = [["class", "IoU", "accuracy", "true pixels"]]
    rows += [
        [name, _per_cent(iou), _per_cent(accuracy), f"{pixels:,}"]
        for name, iou, accuracy, pixels in zip(
            score.classes, score.iou, score.accuracy, found.matrix.sum(axis=1).tolist(), strict=True
        )
    ]
    without = f", {_per_cent(score.mean_iou_without_background)} without {BACKGROUND}"
    sums = [
        f"Mean IoU {_per_cent(score.mean_iou)} over {len(score.present)} of {len(score.classes)} "
        f"classes{without if BACKGROUND in score.classes else ''}.",
        f"Mean accuracy {_per_cent(score.mean_accuracy)}, pixel accuracy "
        f"{_per_cent(score.pixel_accuracy)}, frequency weighted IoU "
        f"{_per_cent(score.frequency_weighted_iou)}.",
        f"{_images(found.images)}, {score.pixels:,} pixels; all figures in per cent.",
    ]
    return "\n\n".join([columns(rows, right=(1, 2, 3)), "\n".join(sums), *tables])


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def _per_cent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"  # nan is not itself
