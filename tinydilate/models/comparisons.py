"""What the front end is compared with: the same network with its poolings kept (paper, Table 2).

VGG-16 halves its maps five times. A network that labels every pixel has to make up for the last
two halvings, pool4 and pool5, and there are four ways to do it. They are all tables of the same
rows:

===================  ==========================  ============  =================================
network              pool4 and pool5             cells         layers behind them
===================  ==========================  ============  =================================
`front_end`          deleted                     8 px apart    dilated by 2 and by 4
`pooled_front_end`   kept, but with stride 1     8 px apart    dilated by 2 and by 4
`deeplab_large_fov`  kept, 3x3 with stride 1     8 px apart    conv5 dilated by 2, fc6 by 12
`fcn_8s`             kept                        32 px apart   as they were; then finer maps help
===================  ==========================  ============  =================================

The paper's argument is the step from the second line to the first. A pooling with stride 1 does
no more than blur where the largest number was; that costs nothing where an image gets one label,
and precision where each pixel gets one.

The second line is also the exact one: a dilated network that keeps its poolings, dilated like the
layers around them, computes just what the classifier `VGG_16_STRIDED` computes, at every eighth
pixel instead of every 32nd (the "algorithme a trous"; a test holds it).

The small ones are the same for images of some 64 pixels, to be trained in minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from tinydilate import init, nn
from tinydilate.autograd import Tensor
from tinydilate.errors import ConfigError
from tinydilate.field import Field, field_of
from tinydilate.models.contexts import bilinear_upsampling
from tinydilate.models.front_ends import SMALL, VGG_16, front_end, small_front_end
from tinydilate.models.rows import Average, Conv, Drop, Pool, Row, readers_of

# ---- tables ----------------------------------------------------------------------------------

_TO_CONV4 = VGG_16[:13]  # conv1_1 to conv4_3, where the networks part

# VGG-16 as it was trained to classify, read as convolutions: field 404, stride 32.
VGG_16_STRIDED: tuple[Row, ...] = (
    *_TO_CONV4,
    Pool("pool4"),
    Conv("conv5_1", 3, 1, 512),
    Conv("conv5_2", 3, 1, 512),
    Conv("conv5_3", 3, 1, 512),
    Pool("pool5"),
    Conv("fc6", 7, 1, 4096),
    Drop("drop6", 0.5),
    Conv("fc7", 1, 1, 4096),
    Drop("drop7", 0.5),
)

# The paper's front end, had it kept the poolings: field 404, stride 8.
VGG_16_POOLED: tuple[Row, ...] = (
    *_TO_CONV4,
    Pool("pool4", stride=1),
    *VGG_16[13:16],  # conv5, dilation 2
    Pool("pool5", stride=1, dilation=2),
    *VGG_16[16:],  # fc6, dilation 4, and on
)

# VGG-16 in FCN-8s (Long et al. 2015): a border of 100 zeros, once, so that an image of any size
# has a cell; otherwise zeros as wide as the window needs, and none in fc6.
VGG_16_FCN: tuple[Row, ...] = tuple(
    row._replace(padding=100 if row.name == "conv1_1" else 1)
    if isinstance(row, Conv) and row.kernel == 3
    else row
    for row in VGG_16_STRIDED
)

# DeepLab-LargeFOV (Chen et al. 2015). Zeros pad every window. Poolings are 3x3, which have a
# centre, so cell i lies at pixel 8*i. fc6 has 9 taps and 1024 maps in place of 49 and 4096.
DEEPLAB_LARGE_FOV: tuple[Row, ...] = (
    #    name   kernel dilation maps           field on the image
    Conv("conv1_1", 3, 1, 64, padding=1),  #      3
    Conv("conv1_2", 3, 1, 64, padding=1),  #      5
    Pool("pool1", 3, padding=1),  #               7, stride 2
    Conv("conv2_1", 3, 1, 128, padding=1),  #    11
    Conv("conv2_2", 3, 1, 128, padding=1),  #    15
    Pool("pool2", 3, padding=1),  #              19, stride 4
    Conv("conv3_1", 3, 1, 256, padding=1),  #    27
    Conv("conv3_2", 3, 1, 256, padding=1),  #    35
    Conv("conv3_3", 3, 1, 256, padding=1),  #    43
    Pool("pool3", 3, padding=1),  #              51, stride 8
    Conv("conv4_1", 3, 1, 512, padding=1),  #    67
    Conv("conv4_2", 3, 1, 512, padding=1),  #    83
    Conv("conv4_3", 3, 1, 512, padding=1),  #    99
    Pool("pool4", 3, stride=1, padding=1),  #   115
    Conv("conv5_1", 3, 2, 512, padding=2),  #   147
    Conv("conv5_2", 3, 2, 512, padding=2),  #   179
    Conv("conv5_3", 3, 2, 512, padding=2),  #   211
    Pool("pool5", 3, stride=1, padding=1),  #   227
    Average("pool5a", 3),  #                    243
    Conv("fc6", 3, 12, 1024, padding=12),  #    435
    Drop("drop6", 0.5),
    Conv("fc7", 1, 1, 1024),  #                 435
    Drop("drop7", 0.5),
)

# The same four for images of some 64 pixels; the front end is `SMALL`, field 22 and stride 2.

SMALL_STRIDED: tuple[Row, ...] = (  # field 24, stride 4
    *SMALL[:5],
    Pool("pool2"),
    Conv("conv3_1", 3, 1, 64),
    Conv("fc", 1, 1, 64),
)

SMALL_POOLED: tuple[Row, ...] = (  # field 24, stride 2
    *SMALL[:5],
    Pool("pool2", stride=1),
    *SMALL[5:],
)

SMALL_LARGE_FOV: tuple[Row, ...] = (  # field 43, stride 2
    Conv("conv1_1", 3, 1, 16, padding=1),
    Conv("conv1_2", 3, 1, 16, padding=1),
    Pool("pool1", 3, padding=1),
    Conv("conv2_1", 3, 1, 32, padding=1),
    Conv("conv2_2", 3, 1, 32, padding=1),
    Pool("pool2", 3, stride=1, padding=1),
    Average("pool2a", 3),
    Conv("conv3_1", 3, 2, 64, padding=2),
    Conv("fc", 3, 3, 64, padding=3),
)


# ---- poolings with stride 1 ------------------------------------------------------------------


def pooled_front_end(num_classes: int, **options: Any) -> nn.Sequential:
    """The paper's front end with pool4 and pool5 kept, at stride 1; border 198 instead of 186.

    Parameters
    ----------
    num_classes, **options
        See `front_end`.
    """
    return front_end(num_classes, rows=VGG_16_POOLED, **options)


def small_pooled_front_end(num_classes: int, **options: Any) -> nn.Sequential:
    """`small_front_end` with pool2 kept, at stride 1; border 11 instead of 10."""
    return small_front_end(num_classes, rows=SMALL_POOLED, **options)


def deeplab_large_fov(
    num_classes: int, *, rows: Sequence[Row] = DEEPLAB_LARGE_FOV, **options: Any
) -> nn.Sequential:
    """DeepLab-LargeFOV: poolings kept at stride 1, all layers padded; 20,505,429 parameters at 21.

    Along each side n pixels give ceil((n - 1) / 8) + 1 cells of class scores, cell i centred at
    pixel 8*i: 321 pixels give 41. `FrontEndWithContext` enlarges them accordingly.

    Parameters
    ----------
    num_classes, rows, **options
        See `front_end`; there is no border, because every layer pads.
    """
    options = {"final_name": "fc8_voc12", "final_std": 0.01, **options}
    return front_end(num_classes, rows=rows, border=False, **options)


def small_large_fov(num_classes: int, *, in_channels: int = 1, **options: Any) -> nn.Sequential:
    """`deeplab_large_fov` for images of some 64 pixels, cell i centred at pixel 2*i."""
    options = {"rows": SMALL_LARGE_FOV, "in_channels": in_channels, "final_name": "fc8", **options}
    return deeplab_large_fov(num_classes, **options)


# ---- poolings as they were, and finer maps to help -------------------------------------------


class Fusion(NamedTuple):
    """Where finer scores are added to coarse ones.

    Attributes
    ----------
    tap : str
        The layer whose maps are scored.
    score, upscore : str
        The layers that score them, and that enlarge the coarse scores to their stride.
    offset : int
        The finer cell that lies on the first of the enlarged ones.
    """

    tap: str
    score: str
    upscore: str
    offset: int


class FCN(nn.Module):
    """Coarse scores, enlarged step by step; at each step the scores of finer maps are added.

    The paper's fully convolutional networks (Long et al. 2015). Their scores lie on grids that
    begin at different pixels, so finer ones are cut before they are added. Where to cut follows
    from the receptive fields: the cells of both then have their centres at the same pixels.

    Parameters
    ----------
    num_classes : int
    rows : sequence of rows
        The trunk, with its poolings.
    skips : sequence of str
        Layers of the trunk, coarse to fine, whose maps are scored and added.
    border : bool
        Whether the image is reflected around its edges; off for a trunk whose layers pad.
    in_channels, final_std, device, dtype, rng
        See `front_end`. The score layers of the skips start at 0: at first, coarse scores alone.

    Attributes
    ----------
    trunk : tuple of str
        Names of the trunk's layers; "score_fr" is its last one.
    fusions : tuple of Fusion
    last : str
        The layer that enlarges the sum to the image's pixels.
    offset : int
        The enlarged row and column that lie on the image's first.

    Raises
    ------
    ConfigError
        If a skip is no layer of the trunk, or its cells do not lie on the enlarged ones.
    """

    def __init__(
        self,
        num_classes: int,
        rows: Sequence[Row],
        skips: Sequence[str],
        *,
        border: bool,
        in_channels: int = 3,
        final_std: float = 0.001,
        device: str = "cpu",
        dtype: Any = np.float32,
        rng: init.Seed = None,
    ) -> None:
        on: dict[str, Any] = {"device": device, "dtype": dtype}
        options = {"final_name": "score_fr", "final_std": final_std, "rng": rng, **on}
        trunk = front_end(num_classes, rows=rows, border=border, in_channels=in_channels, **options)
        for name, layer in trunk.named_children():
            setattr(self, name, layer)
        self.trunk = tuple(name for name, _ in trunk.named_children())
        place = _place_of(trunk, "score_fr")  # of the scores so far
        fusions: list[Fusion] = []
        for tap in skips:
            maps, finer = _maps_of(rows, tap), _place_of(trunk, tap)
            factor = _factor(place, finer, tap)
            upscore = f"upscore_{fusions[-1].tap}" if fusions else f"upscore{factor}"
            setattr(self, upscore, bilinear_upsampling(num_classes, factor, cut=False, **on))
            place = _enlarged(place, factor)
            score = nn.Conv2d(maps, num_classes, 1, rng=0, **on)
            setattr(self, f"score_{tap}", init.zeros_(score))
            offset = _whole((place.centre - finer.centre) / place.stride, tap)
            fusions.append(Fusion(tap, f"score_{tap}", upscore, offset))
        self.fusions = tuple(fusions)
        factor = int(place.stride)
        # "upscore2" is taken where the last step doubles, too.
        self.last = f"upscore_{fusions[-1].tap}" if factor == 2 and fusions else f"upscore{factor}"
        setattr(self, self.last, bilinear_upsampling(num_classes, factor, cut=False, **on))
        self.offset = _whole(-_enlarged(place, factor).centre, "the image")

    def forward(self, image: Any) -> Tensor:
        maps, taps = image, {}
        for name in self.trunk:
            maps = getattr(self, name)(maps)
            if any(name == fusion.tap for fusion in self.fusions):
                taps[name] = maps
        scores = maps  # (N, C, h, w), one cell in 32 pixels
        for tap, score, upscore, offset in self.fusions:
            scores = getattr(self, upscore)(scores)  # (N, C, 2h + 2, 2w + 2)
            finer = getattr(self, score)(taps[tap])
            scores = scores + cut(finer, offset, scores.shape[-2:])
        scores = getattr(self, self.last)(scores)
        return cut(scores, self.offset, image.shape[-2:])  # (N, C, H, W)


def fcn_8s(
    num_classes: int,
    *,
    rows: Sequence[Row] = VGG_16_FCN,
    skips: Sequence[str] = ("pool4", "pool3"),
    border: bool = False,
    **options: Any,
) -> FCN:
    """FCN-8s (Long et al. 2015): all poolings, and the scores of pool4 and pool3 added.

    (N, 3, H, W) in, (N, C, H, W) scores of pixels out, for an image of any size. The border is the
    original's, 100 zeros and zeros in every layer. For a comparison that leaves nothing but the
    poolings to differ, give it the front end's: ``rows=VGG_16_STRIDED, border=True``. Its trunk has
    the same border, 186 pixels.

    The layers bear the names of the original. Its upscore layers connect each class with each,
    by weights that are 0 but for its own; ours, with one group a class, leave the zeros out.

    Parameters
    ----------
    num_classes, rows, skips, border, **options
        See `FCN`.
    """
    return FCN(num_classes, rows, skips, border=border, **options)


def small_fcn(num_classes: int, **options: Any) -> FCN:
    """`fcn_8s` for images of some 64 pixels: stride 4, the scores of pool1 added."""
    options = {"in_channels": 1, "final_std": 0.01, **options}
    return FCN(num_classes, SMALL_STRIDED, ("pool1",), border=True, **options)


def cut(maps: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """``size`` rows and columns, from ``offset`` on."""
    height, width = size
    return maps[..., offset : offset + height, offset : offset + width]  # type: ignore[no-any-return]


def _maps_of(rows: Sequence[Row], tap: str) -> int:
    """Maps that come out of a row: those of the last convolution up to it."""
    names = [row.name for row in rows]
    if tap not in names:
        raise ConfigError(
            f"expected skips out of the trunk's layers, {', '.join(names)}; got {tap!r}."
        )
    return [row.maps for row in rows[: names.index(tap) + 1] if isinstance(row, Conv)][-1]


def _place_of(trunk: nn.Sequential, name: str) -> Field:
    """Where a layer's cells lie on the image."""
    names = [each for each, _ in trunk.named_children()]
    return field_of(readers_of(list(trunk)[: names.index(name) + 1]))


def _factor(coarse: Field, finer: Field, tap: str) -> int:
    """How many cells of a skip lie on one cell of the scores so far, along a side."""
    factor = coarse.stride / finer.stride
    if factor.denominator != 1:
        raise ConfigError(
            "expected skips from coarse to fine, each with a stride that divides the one before; "
            f"got {tap}, with a stride of {finer.stride} behind {coarse.stride}."
        )
    return int(factor)


def _enlarged(place: Field, factor: int) -> Field:
    """Where cells lie after `bilinear_upsampling`: output 0 is half a kernel before cell 0."""
    taps = 2 * factor - factor % 2
    stride = place.stride / factor
    return place._replace(stride=stride, centre=place.centre - stride * Fraction(taps - 1, 2))


def _whole(number: Fraction, what: str) -> int:
    if number.denominator != 1 or number < 0:
        raise ConfigError(
            f"expected a trunk whose first cell, enlarged, lies on a cell of {what}; it lies on "
            f"number {number} of them. Add or take away padding in the first layer."
        )
    return int(number)
