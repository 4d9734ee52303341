"""Networks as tables: what a row may be, and the builder that turns rows into layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydilate import init, nn
from tinydilate.errors import ConfigError
from tinydilate.field import Reader, field_of, sliding


class Conv(NamedTuple):
    """A square convolution with a bias, and the rectifier unless ``relu`` is False."""

    name: str
    kernel: int
    dilation: int
    maps: int
    relu: bool = True
    padding: int = 0


class Pool(NamedTuple):
    """The largest number in each window; as it stands, of each 2x2 block: maps halve."""

    name: str
    kernel: int = 2
    stride: int = 2
    dilation: int = 1
    padding: int = 0


class Average(NamedTuple):
    """The mean of the window around each place, the border's zeros counted; maps keep their size.

    ``kernel`` is odd.
    """

    name: str
    kernel: int


class Drop(NamedTuple):
    """Dropout."""

    name: str
    p: float


Row = Conv | Pool | Average | Drop


def plain_rows(dilations: Iterable[int]) -> list[Conv]:
    """3x3 layers of one map with these dilations, padded so that maps keep their size."""
    return [Conv(f"layer{n}", 3, d, 1, padding=d) for n, d in enumerate(dilations, 1)]


def build(
    rows: Iterable[Row],
    maps: int,
    *,
    ceil_mode: bool = False,
    device: str = "cpu",
    dtype: Any = np.float32,
    rng: init.Seed = None,
) -> list[tuple[str, nn.Module]]:
    """Turn rows into (name, layer) pairs; ``maps`` is the number of maps that go in."""
    layers: list[tuple[str, nn.Module]] = []
    for row in rows:
        layer: nn.Module
        if isinstance(row, Conv):
            layer = nn.Conv2d(
                maps,
                row.maps,
                row.kernel,
                padding=row.padding,
                dilation=row.dilation,
                relu=row.relu,
                device=device,
                dtype=dtype,
                rng=rng,
            )
            maps = row.maps
        elif isinstance(row, Pool):
            layer = nn.MaxPool2d(
                row.kernel, row.stride, row.padding, row.dilation, ceil_mode=ceil_mode
            )
        elif isinstance(row, Average):
            layer = nn.AvgPool2d(row.kernel, 1, row.kernel // 2)
        else:
            layer = nn.Dropout(row.p)
        layers.append((row.name, layer))
    return layers


def readers_of(layers: Iterable[nn.Module]) -> list[Reader]:
    """What each layer reads along the rows; our windows are square, so columns are alike.

    Raises
    ------
    ConfigError
        If a layer is not a window.
    """
    readers: list[Reader] = []
    for layer in layers:
        if isinstance(layer, nn.Dropout | nn.ReLU | nn.Identity):
            continue  # each place reads itself
        if not hasattr(layer, "window") or isinstance(layer, nn.ConvTranspose2d):
            raise ConfigError(
                f"expected layers that slide a window over their input; got {layer!r:.80}."
            )
        readers.append(sliding(layer.window, 0))
    return readers


def stride_of(layers: Iterable[nn.Module]) -> int:
    """Image pixels from one output to the next."""
    return int(field_of(readers_of(layers)).stride)


def check_count(number: Any, name: str) -> int:
    """Return a number of things if it is one.

    Raises
    ------
    ConfigError
        If it is not a whole number of at least 1.
    """
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or number < 1:
        raise ConfigError(f"expected {name}, a whole number of at least 1; got {number!r}.")
    return int(number)


def check_rows(rows: Sequence[Any]) -> None:
    """Refuse what is not a row of a table.

    Raises
    ------
    ConfigError
        If there are no rows, or one of them is something else.
    """
    wrong = [row for row in rows if not isinstance(row, Row)]
    if wrong or not rows:
        raise ConfigError(
            f"expected a table of rows, each a Conv, Pool, Average or Drop; got {wrong[0]!r:.60}."
            if wrong
            else "expected a table with rows; got an empty one."
        )
