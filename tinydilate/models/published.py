"""The four networks that were published with the paper, by the names in their files.

=======================  ===============  =======  ==========================================
network                  data set         classes  context module
=======================  ===============  =======  ==========================================
`dilation8_voc`          Pascal VOC 2012       21  Large; a buffer of 33 cells at its entrance
`dilation8_camvid`       CamVid                11  Basic
`dilation7_kitti`        KITTI                 11  Basic, without the layer of dilation 16
`dilation10_cityscapes`  Cityscapes            19  Basic, with dilations 32 and 64; upsampling
=======================  ===============  =======  ==========================================

Each is the front end and a context module in one line of layers. The layers have the names of the
published Caffe files, so a weight of those files is a weight here: "conv1_1.weight", "fc6.bias".

What goes in: images (N, 3, H, W), float, blue, green and red from 0 to 255, minus the mean pixel of
`Published.classes`. There is no division, by 255 or by a standard deviation. The image has a border
of 186 pixels that reflects it, unless the network is built with ``border=True`` and makes its own.

What comes out: scores (logits), one for each class: of cells 8 pixels apart, or of pixels
from the Cityscapes network, which ends with a fixed upsampling.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tinydilate import init, nn
from tinydilate.classes import CAMVID, CITYSCAPES, KITTI, VOC, Classes
from tinydilate.errors import ConfigError
from tinydilate.models.contexts import DILATIONS, DILATIONS_7, DILATIONS_10, context
from tinydilate.models.front_ends import front_end

PARTS = ("whole", "front end")
WEIGHTS = ("random", "zeros")


class Published(NamedTuple):
    """A published network: its table, and how to build it.

    Attributes
    ----------
    name : str
        Key in `PUBLISHED`.
    classes : Classes
        Names, colours and mean pixel.
    input_size : (H, W)
        Of the published file, border included. Any other size does as well.
    final_name : str
        The front end's last layer.
    prefix : str
        Of the context module's layer names.
    variant, dilations, padding, upsample
        Of the context module; see `context`.
    border : int
        Pixels that the front end needs around the image on every side: half of its field of 380,
        less half a cell of 8.
    stride : int
        Pixels from one cell of the front end to the next.
    """

    name: str
    classes: Classes
    input_size: tuple[int, int]
    final_name: str = "final"
    prefix: str = "ctx"
    variant: str = "basic"
    dilations: tuple[int, ...] = DILATIONS
    padding: str = "layers"
    upsample: int | None = None
    border: int = 186
    stride: int = 8

    @property
    def zoom(self) -> int:
        """Pixels a side for each score: 8, or 1 where the network upsamples by itself."""
        return self.stride // (self.upsample or 1)

    def build(
        self,
        *,
        border: bool = False,
        part: str = "whole",
        weights: str = "random",
        device: str = "cpu",
        dtype: Any = np.float32,
        rng: init.Seed = None,
    ) -> nn.Sequential:
        """Make the network.

        Parameters
        ----------
        border : bool
            Whether the network reflects the image about its edges itself. Off, as in the published
            files, images come with their border.
        part : {"whole", "front end"}
            The front end alone ends with ``final_name``.
        weights : {"random", "zeros"}
            "random" is the start for training: see `front_end` and `context`. "zeros" is for
            a network whose weights follow from a file: no numbers are drawn, and memory is taken
            only when the weights come. (The fixed upsampling has its numbers either way.)
        device, dtype, rng
            See `nn.Conv2d`.

        Returns
        -------
        nn.Sequential
            In training mode; call ``eval()`` before predicting, or dropout stays on.

        Raises
        ------
        ConfigError
            If ``part`` or ``weights`` is something else.
        """
        _check("part", part, PARTS)
        _check("weights", weights, WEIGHTS)
        made_on = device if weights == "random" else "meta"
        random = None if made_on == "meta" else init.generator(rng)  # one for both parts
        options: dict[str, Any] = {"device": made_on, "dtype": dtype, "rng": random}
        classes = len(self.classes.names)
        front = front_end(classes, border=border, final_name=self.final_name, **options)
        network = front if part == "front end" else self._with_context(front, options)
        return network if weights == "random" else self._without_numbers(network, device)

    def _with_context(self, front: nn.Sequential, options: dict[str, Any]) -> nn.Sequential:
        behind = context(
            len(self.classes.names),
            self.variant,
            self.dilations,
            padding=self.padding,
            upsample=self.upsample,
            prefix=self.prefix,
            **options,
        )
        return nn.Sequential(*front.named_children(), *behind.named_children())

    def _without_numbers(self, network: nn.Sequential, device: str) -> nn.Sequential:
        """Memory for a network of shapes; what is fixed gets its numbers."""
        network.to_empty(device)
        for layer in network:
            if isinstance(layer, nn.ConvTranspose2d):
                init.bilinear_(layer)
        return network


def _check(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        told = " or ".join(repr(each) for each in allowed)
        raise ConfigError(f"expected {name} to be {told}; got {value!r}.")


PUBLISHED = {
    network.name: network
    for network in (
        Published("dilation8_voc", VOC, (900, 900), "fc-final", "ct", "large", padding="buffer"),
        Published("dilation8_camvid", CAMVID, (900, 1100)),
        Published("dilation7_kitti", KITTI, (852, 1640), dilations=DILATIONS_7),
        Published(
            "dilation10_cityscapes", CITYSCAPES, (1396, 1396), dilations=DILATIONS_10, upsample=8
        ),
    )
}


def dilation8_voc(**options: Any) -> nn.Sequential:
    """Pascal VOC 2012: 21 classes, Large context on a buffer of 33 cells; 141,149,720 parameters.

    (1, 3, 900, 900) in, (1, 21, 66, 66) out. See `Published.build` for the options.
    """
    return PUBLISHED["dilation8_voc"].build(**options)


def dilation8_camvid(**options: Any) -> nn.Sequential:
    """CamVid: 11 classes, Basic context; 134,313,443 parameters.

    (1, 3, 900, 1100) in, (1, 11, 66, 91) out. See `Published.build` for the options.
    """
    return PUBLISHED["dilation8_camvid"].build(**options)


def dilation7_kitti(**options: Any) -> nn.Sequential:
    """KITTI: 11 classes, Basic context without the layer of dilation 16; 134,312,343 parameters.

    (1, 3, 852, 1640) in, (1, 11, 60, 159) out: 1640 pixels are 158.5 cells and a border, and
    pooling that drops a last odd column, as PyTorch's does by default, would give 158. See
    `Published.build` for the options.
    """
    return PUBLISHED["dilation7_kitti"].build(**options)


def dilation10_cityscapes(**options: Any) -> nn.Sequential:
    """Cityscapes: 19 classes, Basic context with dilations up to 64; 134,373,043 parameters.

    (1, 3, 1396, 1396) in, (1, 19, 1024, 1024) out: a fixed transposed convolution, ctx_upsample,
    enlarges the scores 8 times. See `Published.build` for the options.
    """
    return PUBLISHED["dilation10_cityscapes"].build(**options)
