"""The convolution layers of the networks, as the benchmarks of processor and GPU time them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tinydilate.window import Window


class Layer(NamedTuple):
    """A convolution of a square image with stride 1."""

    name: str
    batch: int
    channels: int
    filters: int
    size: int
    kernel: int
    dilation: int
    padding: int

    @property
    def window(self) -> Window:
        """The layer's window."""
        return Window.of((self.kernel, self.kernel), 1, self.padding, self.dilation)

    @property
    def flop(self) -> int:
        """Multiplications and additions of one pass."""
        out = self.window.output_size((self.size, self.size))
        taps = self.kernel * self.kernel
        return 2 * self.batch * self.filters * self.channels * taps * out[0] * out[1]


def same(name: str, channels: int, filters: int, size: int, dilation: int, batch: int = 1) -> Layer:
    """A 3x3 layer that keeps the size of its map."""
    return Layer(name, batch, channels, filters, size, 3, dilation, dilation)


CONTEXT = (1, 1, 2, 4, 8, 16, 1)  # dilations of the context networks' 3x3 layers (Table 1)
LARGE = (2, 2, 4, 8, 16, 32, 32, 32)  # multiples of C that go in and out (Table 1)
LAYERS = [
    *(same(f"Basic d={d}", 21, 21, 66, d) for d in sorted(set(CONTEXT))),
    same("Large 21->42 d=1", 21, 42, 66, 1),
    same("Large 42->42 d=1", 42, 42, 66, 1),
    same("Large 42->84 d=2", 42, 84, 66, 2),
    same("Large 84->168 d=4", 84, 168, 66, 4),
    same("Large 168->336 d=8", 168, 336, 66, 8),
    same("Large 336->672 d=16", 336, 672, 66, 16),
    same("Large 672->672 d=1", 672, 672, 66, 1),
    *(same(f"32->32 d={d}", 32, 32, 64, d, batch=8) for d in (1, 2, 4, 8, 16)),
    # A 500x500 crop through the front end, which does not pad inside.
    Layer("conv1_1", 1, 3, 64, 500, 3, 1, 0),
    Layer("conv1_2", 1, 64, 64, 498, 3, 1, 0),
    Layer("conv2_2", 1, 128, 128, 246, 3, 1, 0),
    Layer("conv3_2", 1, 256, 256, 120, 3, 1, 0),
    Layer("conv4_2", 1, 512, 512, 56, 3, 1, 0),
    Layer("conv5_1 d=2", 1, 512, 512, 52, 3, 2, 0),
    Layer("fc6 7x7 d=4", 1, 512, 4096, 40, 7, 4, 0),
    Layer("fc7 1x1", 1, 4096, 4096, 16, 1, 1, 0),
]


def arrays_for(layer: Layer) -> tuple[Any, ...]:
    """Random input, weights, bias and output gradient."""
    random = np.random.default_rng(0)
    out = layer.window.output_size((layer.size, layer.size))
    shapes = (
        (layer.batch, layer.channels, layer.size, layer.size),
        (layer.filters, layer.channels, layer.kernel, layer.kernel),
        (layer.filters,),
        (layer.batch, layer.filters, *out),
    )
    return tuple(random.standard_normal(shape, np.float32) for shape in shapes)
