"""Front ends: from an image to a coarse map of class scores (paper, section 4).

The recipe turns a network that classifies images into one that labels every pixel:

1. The last poolings are deleted, so that the maps keep their resolution.
2. Every convolution behind a deleted pooling is dilated by 2 for each of them: its taps meet the
   same pixels as before, and weights that were learnt with the poolings still fit.
3. Layers inside do not pad. Instead the image is given a border, once: its own reflection.

With a field of R pixels and a stride of S, the border is (R - S) / 2 pixels on each side: then
n*S pixels give n cells. For VGG-16, R = 380 and S = 8: the 186 pixels of the published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydilate import init, nn
from tinydilate.field import border_of
from tinydilate.models.rows import (
    Conv,
    Drop,
    Pool,
    Row,
    build,
    check_count,
    check_rows,
    readers_of,
)

# VGG-16, made dense.
VGG_16: tuple[Row, ...] = (
    #    name   kernel dilation maps        field on the image
    Conv("conv1_1", 3, 1, 64),  #             3
    Conv("conv1_2", 3, 1, 64),  #             5
    Pool("pool1"),  #                         6, stride 2
    Conv("conv2_1", 3, 1, 128),  #           10
    Conv("conv2_2", 3, 1, 128),  #           14
    Pool("pool2"),  #                        16, stride 4
    Conv("conv3_1", 3, 1, 256),  #           24
    Conv("conv3_2", 3, 1, 256),  #           32
    Conv("conv3_3", 3, 1, 256),  #           40
    Pool("pool3"),  #                        44, stride 8
    Conv("conv4_1", 3, 1, 512),  #           60
    Conv("conv4_2", 3, 1, 512),  #           76
    Conv("conv4_3", 3, 1, 512),  #           92
    # pool4 is deleted: from here on a dilation of 2.
    Conv("conv5_1", 3, 2, 512),  #          124
    Conv("conv5_2", 3, 2, 512),  #          156
    Conv("conv5_3", 3, 2, 512),  #          188
    # pool5 is deleted: from here on a dilation of 4.
    Conv("fc6", 7, 4, 4096),  #             380
    Drop("drop6", 0.5),
    Conv("fc7", 1, 1, 4096),  #             380
    Drop("drop7", 0.5),
)

# The same rules for images of some 64 pixels.
SMALL: tuple[Row, ...] = (
    #    name   kernel dilation maps        field on the image
    Conv("conv1_1", 3, 1, 16),  #             3
    Conv("conv1_2", 3, 1, 16),  #             5
    Pool("pool1"),  #                         6, stride 2
    Conv("conv2_1", 3, 1, 32),  #            10
    Conv("conv2_2", 3, 1, 32),  #            14
    # pool2 is deleted: from here on a dilation of 2.
    Conv("conv3_1", 3, 2, 64),  #            22
    Conv("fc", 1, 1, 64),  #                 22
)


def front_end(
    num_classes: int,
    *,
    rows: Sequence[Row] = VGG_16,
    in_channels: int = 3,
    border: bool = True,
    ceil_mode: bool = True,
    final_name: str = "final",
    final_std: float = 0.001,
    device: str = "cpu",
    dtype: Any = np.float32,
    rng: init.Seed = None,
) -> nn.Sequential:
    """VGG-16 as a dense predictor: pool4 and pool5 deleted, conv5 and fc6 dilated.

    An image of H x W gives ceil(H / 8) x ceil(W / 8) cells of class scores (logits), cell i centred
    at pixel 8*i + 3.5. Without the border, N pixels give (N - 372) / 8.

    Parameters
    ----------
    num_classes : int
        C, the number of maps out.
    rows : sequence of Conv, Pool, Average and Drop
        The table to build; by default `VGG_16`. The last row, a 1x1 convolution to ``num_classes``
        maps without rectifier, is added to it.
    in_channels : int
        Channels of the image.
    border : bool
        Whether to surround the image by its reflection first, repeatedly where the image is
        smaller than the border. Off, the network takes images that have their border already.
    ceil_mode : bool
        Whether a last row or column of a map with an odd size is pooled too, as Caffe does; False
        is PyTorch's default. The published sizes are the same either way but for KITTI's 1640
        pixels with their border: 159 cells, or 158.
    final_name : str
        Name of the last layer. The published VOC file calls it "fc-final".
    final_std : float
        Standard deviation of its Gaussian start, 0.001 in the paper's code, so that the first loss
        is ln C. The other layers start with `init.he_normal_`; biases are 0.
    device, dtype, rng
        See `nn.Conv2d`.

    Returns
    -------
    nn.Sequential
        With the layer names of VGG-16, and "border" in front.

    Raises
    ------
    ConfigError
        If the number of classes or a row makes no sense.
    ShapeError
        If the field of a table of your own asks for a border that is not the same on both sides.
    """
    check_rows(rows)
    final = Conv(final_name, 1, 1, check_count(num_classes, "num_classes"), relu=False)
    random = None if device == "meta" else init.generator(rng)
    options: Any = {"ceil_mode": ceil_mode, "device": device, "dtype": dtype, "rng": random}
    layers = build([*rows, final], in_channels, **options)
    for name, layer in layers:
        if name == final_name:
            init.gaussian_(layer, final_std, rng=random)
        elif isinstance(layer, nn.Conv2d):
            init.he_normal_(layer, rng=random)
    if border:
        width = border_of(readers_of(layer for _, layer in layers))
        layers.insert(0, ("border", nn.ReflectionBorder(width)))
    return nn.Sequential(*layers)


def small_front_end(
    num_classes: int,
    *,
    rows: Sequence[Row] = SMALL,
    in_channels: int = 1,
    final_std: float = 0.01,
    **options: Any,
) -> nn.Sequential:
    """A front end for images of some 64 pixels, by the same rules: field 22, stride 2, border 10.

    An image of H x W gives ceil(H / 2) x ceil(W / 2) cells, cell i centred at pixel 2*i + 0.5. A
    field of 22 pixels is smaller than a digit of 24 to 30: what the front end cannot see, the
    context module can.

    Parameters
    ----------
    num_classes, rows, in_channels, final_std, **options
        See `front_end`.
    """
    return front_end(
        num_classes, rows=rows, in_channels=in_channels, final_std=final_std, **options
    )
