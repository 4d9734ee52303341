"""The context module: eight layers that widen the view without losing resolution (paper, Table 1).

    layer               1    2    3    4    5    6    7    8
    convolution        3x3  3x3  3x3  3x3  3x3  3x3  3x3  1x1
    dilation            1    1    2    4    8   16    1    1
    max(x, 0)          yes  yes  yes  yes  yes  yes  yes  no
    receptive field     3    5    9   17   33   65   67   67
    maps, Basic         C    C    C    C    C    C    C    C
    maps, Large        2C   2C   4C   8C  16C  32C  32C   C

Maps come in and go out with the number of classes C and, padded, with the same size, so the module
fits behind any network that labels pixels. It starts as the identity (equations 4 and 5): a random
start did not help at all, says the paper.

One thing the identity does change: the first rectifier cuts negative scores off. At the start the
module returns max(x, 0), so probabilities differ from the front end's, though the class with the
largest score stays the same wherever that score is positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydilate import init, nn
from tinydilate.errors import ConfigError
from tinydilate.models.rows import Conv, build, check_count

# The 3x3 layers of Table 1, and those of the networks for KITTI and for Cityscapes (appendix A).
DILATIONS = (1, 1, 2, 4, 8, 16, 1)
DILATIONS_7 = (1, 1, 2, 4, 8, 1)
DILATIONS_10 = (1, 1, 2, 4, 8, 16, 32, 64, 1)

VARIANTS = ("basic", "large")
PADDINGS = ("layers", "buffer")


def context_rows(
    num_classes: int,
    variant: str = "basic",
    dilations: Sequence[int] = DILATIONS,
    padding: str = "layers",
    prefix: str = "ctx",
) -> tuple[Conv, ...]:
    """Table 1 as rows, for the dilations given; the parameters are those of `context`.

    Two rules continue the table to other dilations. Width of Large: twice the largest dilation so
    far, times C. Names: the last 3x3 layer is fc1; of the others, a layer of another dilation than
    the one before opens the next block, conv1_1, conv1_2, conv2_1 and so on.
    """
    _check(variant, dilations, padding)
    rows = []
    block = place = 0
    for layer, dilation in enumerate(dilations):
        new = layer == 0 or dilation != dilations[layer - 1]
        block, place = (block + 1, 1) if new else (block, place + 1)
        last = layer == len(dilations) - 1
        name = "fc1" if last else f"conv{block}_{place}"
        widest = max(dilations[: layer + 1])
        maps = num_classes * (2 * widest if variant == "large" else 1)
        buffer = sum(dilations) if layer == 0 else 0
        pad = dilation if padding == "layers" else buffer
        rows.append(Conv(f"{prefix}_{name}", 3, dilation, maps, padding=pad))
    return *rows, Conv(f"{prefix}_final", 1, 1, num_classes, relu=False)


def context(
    num_classes: int,
    variant: str = "basic",
    dilations: Sequence[int] = DILATIONS,
    *,
    padding: str = "layers",
    noise: float = 0.01,
    absolute_noise: bool = False,
    upsample: int | None = None,
    prefix: str = "ctx",
    device: str = "cpu",
    dtype: Any = np.float32,
    rng: init.Seed = None,
) -> nn.Sequential:
    """The context module, started as the identity (paper, section 3 and Table 1).

    (N, C, h, w) class scores in, (N, C, h, w) class scores out. At C = 21, Basic has 28,392
    parameters (64*C*C + 8*C), Large 6,803,139 (15422*C*C + 97*C).

    Parameters
    ----------
    num_classes : int
        C.
    variant : {"basic", "large"}
    dilations : sequence of int
        One for each 3x3 layer: `DILATIONS`; `DILATIONS_7`, for smaller maps; `DILATIONS_10`, for
        larger ones; or others.
    padding : {"layers", "buffer"}
        "layers": every layer is padded by zeros as wide as its dilation (the street networks).
        "buffer": the first layer is padded by the sum of all dilations, 33 in Table 1, and no other
        one (the VOC network).
    noise : float
        Of the start: sigma in units of the identity's weight, see `init.identity_`. 0 is
        equation 4, and leaves the copies in Large alike for ever.
    absolute_noise : bool
        Take ``noise`` as sigma itself, as the paper's code does.
    upsample : int, optional
        Append a fixed transposed convolution that enlarges the scores so many times bilinearly, as
        the published Cityscapes network has (8). It is saved, but never learnt.
    prefix : str
        Of the layers' names: "ctx" in the published street files, "ct" in the VOC file.
    device, dtype, rng
        See `nn.Conv2d`.

    Returns
    -------
    nn.Sequential

    Raises
    ------
    ConfigError
        If an argument makes no sense.
    """
    num_classes = check_count(num_classes, "num_classes")
    random = None if device == "meta" else init.generator(rng)
    rows = context_rows(num_classes, variant, dilations, padding, prefix)
    layers = build(rows, num_classes, device=device, dtype=dtype, rng=random)
    for _, layer in layers:
        init.identity_(layer, num_classes, noise, absolute_noise, random)
    if upsample is not None:
        layers.append(
            (f"{prefix}_upsample", bilinear_upsampling(num_classes, upsample, device, dtype))
        )
    return nn.Sequential(*layers)


def bilinear_upsampling(
    maps: int, factor: int, device: str = "cpu", dtype: Any = np.float32, *, cut: bool = True
) -> nn.ConvTranspose2d:
    """A fixed transposed convolution that enlarges each map ``factor`` times; see `init.bilinear_`.

    For 8: kernel 16, stride 8, padding 4, one group a map, no bias. With ``cut=False`` the padding
    is 0: the margin, where the taps fade out beyond the map, is not cut off.
    """
    kernel = 2 * check_count(factor, "upsample") - factor % 2
    layer = nn.ConvTranspose2d(
        maps,
        maps,
        kernel,
        stride=factor,
        padding=(kernel - factor) // 2 if cut else 0,
        groups=maps,
        bias=False,
        device=device,
        dtype=dtype,
        rng=0,
    )
    init.bilinear_(layer).requires_grad_(False)
    return layer


def _check(variant: str, dilations: Sequence[int], padding: str) -> None:
    if variant not in VARIANTS:
        raise ConfigError(f"expected a variant out of {', '.join(VARIANTS)}; got {variant!r}.")
    if padding not in PADDINGS:
        raise ConfigError(f"expected a padding out of {', '.join(PADDINGS)}; got {padding!r}.")
    whole = all(type(d) is not bool and isinstance(d, int | np.integer) for d in dilations)
    if not len(dilations) or not whole or min(dilations) < 1:
        raise ConfigError(
            "expected dilations, one whole number of at least 1 for each 3x3 layer; got "
            f"{dilations!r}. The paper's are {DILATIONS}."
        )
