"""What the paper says of receptive fields, worked out and measured.

The field does not depend on the number of maps, so the networks are measured with one map in each
layer and the paper's windows. And rows and columns do not depend on each other, so the largest
networks are measured on a strip of the image: as high as the field of the whole network, as wide
as the front end's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tinydilate import nn
from tinydilate.device import Array
from tinydilate.models import (
    DILATIONS,
    DILATIONS_7,
    DILATIONS_10,
    VGG_16,
    Conv,
    context,
    front_end,
)
from tinydilate.receptive_field.analysis import analyse
from tinydilate.receptive_field.probes import measure

SOURCE = "Yu & Koltun 2016"
TABLE_1 = (3, 5, 9, 17, 33, 65, 67, 67)  # "receptive field", layers 1 to 8
PUBLISHED = {"Dilation8": 908, "Dilation7": 652, "Dilation10": 2444}
_LAYERS = 6  # of the stack of equation 3


class Claim(NamedTuple):
    """A number of the paper, as we find it.

    Attributes
    ----------
    name : str
    source : str
        Where it is claimed.
    claimed, analysed, measured : number or text
    agrees : bool
        Whether all three are the same.
    """

    name: str
    source: str
    claimed: Any
    analysed: Any
    measured: Any
    agrees: bool


def claim(name: str, source: str, claimed: Any, analysed: Any, measured: Any) -> Claim:
    """A claim, and whether it holds."""
    return Claim(name, source, claimed, analysed, measured, claimed == analysed == measured)


def claims(progress: bool = False) -> list[Claim]:
    """Every claim of the paper about receptive fields, with what analysis and measurement say.

    Parameters
    ----------
    progress : bool
        Show a bar on stderr: measuring takes some twenty seconds.
    """
    parts = (_table_1, _equation_3, _coverage, _published)
    bar = tqdm(parts, desc="checking claims", unit="part", leave=False, disable=not progress)
    return [claim for part in bar for claim in part()]


def stack(dilations: Sequence[int], device: str = "cpu") -> nn.Sequential:
    """3x3 layers of one map with these dilations, padded to keep the size."""
    return nn.Sequential(
        *(nn.Conv2d(1, 1, 3, padding=d, dilation=d, device=device, rng=0) for d in dilations)
    )


def thin_front_end() -> nn.Sequential:
    """The front end's windows with one map in each layer, for images that have their border."""
    rows = [row._replace(maps=1) if isinstance(row, Conv) else row for row in VGG_16]
    return front_end(1, rows=rows, in_channels=1, border=False, rng=0)


def extent_of(mask: Array) -> int:
    """Rows from the first with a pixel to the last."""
    rows = np.flatnonzero(mask.any(axis=1))
    return int(rows[-1] - rows[0] + 1) if len(rows) else 0


def _powers(layers: int) -> list[int]:
    return [2**i for i in range(layers)]


def _table_1() -> list[Claim]:
    net, size = context(1, rng=0), (1, 1, 67, 67)
    found = []
    for number, (layer, size_claimed) in enumerate(
        zip(analyse(net, size), TABLE_1, strict=True), 1
    ):
        measured = extent_of(measure(net, size, layer=layer.name))
        where = f"{SOURCE}, Table 1"
        found.append(
            claim(f"field of layer {number}", where, size_claimed, layer.extent[0], measured)
        )
    return found


def _equation_3() -> list[Claim]:
    """Behind layers of dilation 1, 2, 4, ..., 2**i the field is (2**(i+2) - 1) squared.

    Each layer adds as many parameters, and doubles the field (plus one).
    """
    parameters, analysed, measured = [], [], []
    where, found = f"{SOURCE}, section 2", []
    for i in range(_LAYERS):
        claimed = 2 ** (i + 2) - 1
        net, size = stack(_powers(i + 1)), (1, 1, claimed, claimed)
        parameters.append(sum(p.size for p in net.parameters()))
        analysed.append(analyse(net, size).output.extent[0])
        measured.append(extent_of(measure(net, size)))
        name = f"field of F{i + 1}, 2^({i}+2) - 1"
        found.append(claim(name, where, claimed, analysed[i], measured[i]))
    linear = all(parameters[n] == parameters[0] * (n + 1) for n in range(_LAYERS))
    counted = "linear" if linear else f"not linear: {parameters}"
    doubles = "doubles with each layer"
    return [
        *found,
        claim("number of parameters", where, "linear", counted, counted),
        claim("field and one", where, doubles, _doubling(analysed), _doubling(measured)),
    ]


def _doubling(extents: Sequence[int]) -> str:
    doubles = all(b + 1 == 2 * (a + 1) for a, b in pairwise(extents))
    return "doubles with each layer" if doubles else f"does not double: {list(extents)}"


def _coverage() -> list[Claim]:
    """No pixel of the field is left out: "without losing coverage"."""
    found = []
    for name, dilations in (("equation 3's stack", _powers(_LAYERS)), ("Table 1", DILATIONS)):
        net = stack(dilations)
        extent = 1 + 2 * sum(dilations)
        size = (1, 1, extent, extent)
        analysed, measured = analyse(net, size).output.reached, int(measure(net, size).sum())
        where = f"{SOURCE}, abstract"
        found.append(claim(f"pixels reached, {name}", where, extent**2, analysed, measured))
    return found


def _published() -> list[Claim]:
    """Fields in pixels of the networks whose weights were published."""
    front = thin_front_end()
    size = (1, 1, 380, 380)
    where = "published code, border of 186 = (380 - 8) / 2"
    analysed, measured = analyse(front, size).output.extent[0], extent_of(measure(front, size))
    found = [claim("field of the front end", where, 380, analysed, measured)]
    contexts = (DILATIONS, DILATIONS_7, DILATIONS_10)
    for (name, claimed), dilations in zip(PUBLISHED.items(), contexts, strict=True):
        net = nn.Sequential(*front, *context(1, dilations=dilations, rng=0))
        strip = (1, 1, claimed, 380)
        analysed = analyse(net, strip).output.extent[0]
        measured = extent_of(measure(net, strip))
        where = f"{SOURCE}, Table 1 and appendix A: 380 + 8 * (field in cells - 1)"
        found.append(claim(f"field of {name}", where, claimed, analysed, measured))
    return found
