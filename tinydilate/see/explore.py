"""The interactive page about receptive fields: one HTML file that needs no network.

The page stands beside this module, in explore.html, to be read like any other. What it shows first,
the examples, comes from the tables of `tinydilate.models`: here they become data, and the data goes
into the page where it says EXAMPLES.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from tinydilate.field import border_of
from tinydilate.io.files import write_text
from tinydilate.models.contexts import DILATIONS, DILATIONS_7, DILATIONS_10, context_rows
from tinydilate.models.front_ends import VGG_16
from tinydilate.models.rows import Conv, Pool, Row, build, plain_rows, readers_of

CELLS = 64  # maps of the published VOC network are so many cells a side (paper, section 3)
DOUBLING = (1, 2, 4, 8, 16)  # paper, equation 3

# Stacks of 3x3 layers whose fields have holes, and two that repair them: Wang et al. (2018),
# section 3.2, and what one meets where "doubling" begins at 2.
GRIDDING: tuple[tuple[tuple[int, ...], str], ...] = (
    (
        (2, 2, 2),
        "One dilation again and again: every path moves by an even number of pixels. The field "
        "falls apart into a grid of single pixels, and the hybrid-dilation rule does not notice.",
    ),
    (
        (2, 4, 8),
        "Doubling without a first layer of dilation 1. All steps are even: almost three pixels in "
        "four are never read.",
    ),
    (
        (1, 2, 9),
        "The jump from 2 to 9 is too wide: the first two layers see 7 pixels, and 9 apart such "
        "pieces leave gaps.",
    ),
    ((1, 2, 5), "The repair that Wang et al. propose: three layers again, and no holes."),
    ((1, 2, 4), "The paper's way: begin at 1 and double. No holes either."),
)


def write_explorer(path: Path | str) -> None:
    """Write the interactive page, whole or not at all.

    Parameters
    ----------
    path : path
        The HTML file. It needs nothing beside it: open it in any browser.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    write_text(path, explorer_html())


def explorer_html() -> str:
    """The page with its examples filled in."""
    page = files("tinydilate.see").joinpath("explore.html").read_text(encoding="utf-8")
    return page.replace(">EXAMPLES<", f">{as_data(examples())}<")


def as_data(value: Any) -> str:
    """JSON that stays data inside of HTML: no letter of it can open or close an element."""
    text = json.dumps(value, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def examples() -> list[dict[str, Any]]:
    """The stacks that the page offers, in its order.

    Each has a ``group``, a ``name``, a sentence ``about`` it, the image's ``channels`` and ``size``
    (pixels a side), and ``layers``: kind ("conv" or "pool"), kernel, dilation, stride, padding and
    maps (None: as many as go in).
    """
    paper, published, gridding = "The paper", "Published networks", "Gridding, and its repair"
    border = border_of(readers_of(layer for _, layer in build(VGG_16, 3, device="meta")))
    pixels = CELLS * 8 + 2 * border  # 8 is the stride of the front end
    return [
        _example(
            paper,
            "Table 1, Basic context module",
            "Eight layers that widen the view without losing resolution, behind a front end with "
            "21 classes. The maps keep their size.",
            context_rows(21),
            21,
            CELLS,
        ),
        _example(
            paper,
            "Table 1, Large context module",
            "The same field from wider layers: what it sees does not change, what it costs does.",
            context_rows(21, "large"),
            21,
            CELLS,
        ),
        _example(
            paper,
            "Equation 3, dilations that double",
            "Each layer doubles the dilation of the one before. The field grows exponentially, the "
            "parameters linearly.",
            plain_rows(DOUBLING),
            1,
            CELLS,
        ),
        _example(
            paper,
            "The same layers, not dilated",
            "As many parameters as equation 3, and a field that grows by two pixels a layer.",
            plain_rows((1,) * len(DOUBLING)),
            1,
            CELLS,
        ),
        _example(
            published,
            "Front end: VGG-16, two poolings removed",
            "Layers behind a removed pooling are dilated instead. Nothing pads: the image comes "
            f"with a border of {border} pixels on each side, which is counted here.",
            VGG_16,
            3,
            pixels,
        ),
        _example(
            published,
            "Dilation7, context module (KITTI)",
            "Without the layer of dilation 16, for smaller maps.",
            context_rows(11, dilations=DILATIONS_7),
            11,
            CELLS,
        ),
        _example(
            published,
            "Dilation8, context module (CamVid)",
            "Table 1 with 11 classes.",
            context_rows(11, dilations=DILATIONS),
            11,
            CELLS,
        ),
        _example(
            published,
            "Dilation10, context module (Cityscapes)",
            "Two layers more, with dilations 32 and 64, for maps twice as large.",
            context_rows(19, dilations=DILATIONS_10),
            19,
            2 * CELLS,
        ),
        _example(
            published,
            "Dilation8, front end and context",
            "The whole network, seen from the pixels of the image.",
            (*VGG_16, Conv("final", 1, 1, 11), *context_rows(11)),
            3,
            pixels,
        ),
        *(
            _example(
                gridding,
                f"Dilations {', '.join(map(str, dilations))}",
                about,
                plain_rows(dilations),
                1,
                32,
            )
            for dilations, about in GRIDDING
        ),
    ]


def _example(
    group: str, name: str, about: str, rows: Iterable[Row], channels: int, size: int
) -> dict[str, Any]:
    layers = []
    maps = channels
    for row in rows:
        if isinstance(row, Conv):
            out = None if row.maps == maps else row.maps
            layers.append(_layer("conv", row.kernel, row.dilation, 1, row.padding, out))
            maps = row.maps
        elif isinstance(row, Pool):
            layers.append(_layer("pool", row.kernel, row.dilation, row.stride, row.padding, None))
    return {
        "group": group,
        "name": name,
        "about": about,
        "channels": channels,
        "size": size,
        "layers": layers,
    }


def _layer(
    kind: str, kernel: int, dilation: int, stride: int, padding: int, maps: int | None
) -> dict[str, Any]:
    return {
        "kind": kind,
        "kernel": kernel,
        "dilation": dilation,
        "stride": stride,
        "padding": padding,
        "maps": maps,
    }
