"""The paper's own results, Tables 2 to 8, as data; and any results as a table beside them.

All figures are intersection over union in per cent. Where a class is missing here, the paper gives
the mean only, or this list repeats only its systems of one kind. VOC's tables leave out the column
of the background, but their means include it: they are over 21 classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from tinydilate.classes import CAMVID, CITYSCAPES, KITTI, VOC
from tinydilate.data.cityscapes import CATEGORIES
from tinydilate.errors import ConfigError
from tinydilate.metrics import Row

# The paper's headings where they are shorter than the names of the classes.
SHORT = {
    "aeroplane": "aero",
    "bicycle": "bike",
    "diningtable": "table",
    "motorbike": "mbike",
    "motorcycle": "mbike",
    "pottedplant": "plant",
    "tvmonitor": "tv",
    "pedestrian": "ped",
    "bicyclist": "cyclist",
    "traffic light": "light",
    "traffic sign": "sign",
    "vegetation": "veg",
}

FORMS = ("text", "markdown", "json")


class PaperTable(NamedTuple):
    """One of the paper's tables.

    Attributes
    ----------
    number : int
    title : str
    dataset : str
        A key of `tinydilate.classes.CLASSES`.
    rows : tuple of Row
    """

    number: int
    title: str
    dataset: str
    rows: tuple[Row, ...]


def _row(name: str, mean: float, columns: Sequence[str], values: str = "") -> Row:
    numbers: list[float | None] = [float(value) for value in values.split()]
    return Row(name, tuple(columns), tuple(numbers or [None] * len(columns)), mean)


_THINGS = VOC.names[1:]

TABLES = (
    PaperTable(
        2,
        "Front ends without context, VOC-2012 test",
        "voc",
        (
            _row(
                "FCN-8s", 62.2, _THINGS,
                "76.8 34.2 68.9 49.4 60.3 75.3 74.7 77.6 21.4 62.5 "
                "46.8 71.8 63.9 76.5 73.9 45.2 72.4 37.4 70.9 55.1",
            ),
            _row(
                "DeepLab", 62.1, _THINGS,
                "72 31 71.2 53.7 60.5 77 71.9 73.1 25.2 62.6 "
                "49.1 68.7 63.3 73.9 73.6 50.8 72.3 42.1 67.9 52.6",
            ),
            _row(
                "DeepLab-Msc", 62.9, _THINGS,
                "74.9 34.1 72.6 52.9 61.0 77.9 73.0 73.7 26.4 62.2 "
                "49.3 68.4 64.1 74.0 75.0 51.7 72.7 42.5 67.2 55.7",
            ),
            _row(
                "front end", 67.6, _THINGS,
                "82.2 37.4 72.7 57.1 62.7 82.8 77.8 78.9 28 70 "
                "51.6 73.1 72.8 81.5 79.1 56.6 77.1 49.9 75.3 60.9",
            ),
        ),
    ),
    PaperTable(
        3,
        "What context adds, VOC-2012 val",
        "voc",
        (
            _row("front end", 69.8, _THINGS),
            _row("front + Basic", 71.3, _THINGS),
            _row("front + Large", 72.1, _THINGS),
            _row("front + CRF", 71.6, _THINGS),
            _row("front + Basic + CRF", 72.7, _THINGS),
            _row("front + Large + CRF", 73.3, _THINGS),
            _row("front + RNN", 72.5, _THINGS),
            _row("front + Basic + RNN", 73.1, _THINGS),
            _row("front + Large + RNN", 73.9, _THINGS),
        ),
    ),
    PaperTable(
        4,
        "With COCO, VOC-2012 test",
        "voc",
        (
            _row("DeepLab++", 72.7, _THINGS),
            _row("DeepLab-MSc++", 73.9, _THINGS),
            _row("CRF-RNN", 74.7, _THINGS),
            _row("front end", 71.3, _THINGS),
            _row("context", 73.5, _THINGS),
            _row("context + CRF", 74.7, _THINGS),
            _row("context + CRF-RNN", 75.3, _THINGS),
        ),
    ),
    PaperTable(
        5,
        "CamVid test",
        "camvid",
        (
            _row("ALE", 53.6, CAMVID.names),
            _row("SuperParsing", 42.0, CAMVID.names),
            _row("Liu and He", 47.2, CAMVID.names),
            _row("SegNet", 46.4, CAMVID.names),
            _row("DeepLab-LFOV", 61.6, CAMVID.names),
            _row(
                "Dilation8", 65.3, CAMVID.names,
                "82.6 76.2 89.9 84.0 46.9 92.2 56.3 35.8 23.4 75.3 55.5",
            ),
        ),
    ),
    PaperTable(
        6,
        "KITTI test",
        "kitti",
        (
            _row("Ros et al.", 39.9, KITTI.names),
            _row("DeepLab-LFOV", 54.2, KITTI.names),
            _row(
                "Dilation7", 59.2, KITTI.names,
                "84.6 81.1 83 81.4 41.8 92.9 4.6 47.1 35.2 73.1 26.4",
            ),
        ),
    ),
    PaperTable(
        7,
        "Cityscapes, classes",
        "cityscapes",
        (
            _row(
                "Dilation10, val", 68.7, CITYSCAPES.names,
                "97.2 79.5 90.4 44.9 52.4 55.1 56.7 69 91 58.7 "
                "92.6 75.7 50 92.2 56.2 72.6 54.3 46.2 70.1",
            ),
            _row(
                "Dilation10, test", 67.1, CITYSCAPES.names,
                "97.6 79.2 89.9 37.3 47.6 53.2 58.6 65.2 91.8 69.4 "
                "93.7 78.9 55 93.3 45.5 53.4 47.7 52.2 66",
            ),
        ),
    ),
    PaperTable(
        8,
        "Cityscapes, categories",
        "cityscapes",
        (
            _row("Dilation10, val", 86.3, CATEGORIES, "98.2 91.4 62.3 92.6 90.7 77.6 91"),
            _row("Dilation10, test", 86.5, CATEGORIES, "98.3 91.4 60.5 93.7 90.2 79.8 91.8"),
        ),
    ),
)  # fmt: skip


def tables_with(columns: Sequence[str], dataset: str) -> list[PaperTable]:
    """The paper's tables that list these classes of this data set."""
    return [
        table
        for table in TABLES
        if table.dataset == dataset and table.rows[0].columns == tuple(columns)
    ]


def beside_the_paper(row: Row, dataset: str) -> list[Row]:
    """A row of one's own, and below it all of the paper's with the same classes.

    The number of its table stands before each of the paper's.
    """
    return [
        row,
        *(
            theirs._replace(name=f"Table {table.number}: {theirs.name}")
            for table in tables_with(row.columns, dataset)
            for theirs in table.rows
        ),
    ]


def results_as(rows: Sequence[Row], form: str = "text") -> str:
    """Write rows of one set of classes as a table.

    Parameters
    ----------
    rows : sequence of Row
    form : {"text", "markdown", "json"}

    Raises
    ------
    ConfigError
        An unknown form, no rows, or rows of different classes.
    """
    if form not in FORMS:
        raise ConfigError(f"expected a form of table: {', '.join(FORMS)}; got {form!r}.")
    if len({row.columns for row in rows}) != 1:
        raise ConfigError(
            f"expected rows with one set of classes; got {len(rows)} rows and "
            f"{len({row.columns for row in rows})} sets. Write one table for each set."
        )
    if form == "json":
        return json.dumps([row_to_dict(row) for row in rows], indent=2)
    head = ["", *(SHORT.get(name, name) for name in rows[0].columns), "mean"]
    lines = [[row.name, *_cells(row), _cell(row.mean)] for row in rows]
    if form == "markdown":
        ruler = ["---", *["---:"] * (len(head) - 1)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ruler, *lines))
    widths = [max(len(line[k]) for line in (head, *lines)) for k in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *lines)
    )


def row_to_dict(row: Row) -> dict[str, Any]:
    """For JSON; a class without a figure becomes None."""
    return {
        "name": row.name,
        "mean_iou": row.mean,
        "iou": dict(zip(row.columns, row.values, strict=True)),
    }


def _cells(row: Row) -> list[str]:
    """Figures of the classes; blank where the row has none but its mean."""
    if all(value is None for value in row.values):
        return [""] * len(row.values)
    return [_cell(value) for value in row.values]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
