"""How much memory a prediction takes, and the pieces that keep it within a bound.

An image of 2048 x 1024 pixels makes 64 maps of about its size behind conv1_1, 64 more behind
conv1_2, and while a layer runs both its input and its output are in memory: 1.7 GB at once. The
maps behind them are smaller. So the front end runs over *pieces* of the image, and the size of a
piece decides the peak. It is worked out beforehand, from shapes alone: the layers are run on
the meta device, and of each the bytes of input, output and room to work in are added up.

The estimate counts what the process holds at its peak:

* the interpreter, the libraries and the compiled kernels, and memory that was freed but that the C
  library keeps for itself (`PROCESS`);
* the network's weights;
* the image and what is made of it;
* scores of all cells, before the context module and behind it;
* the largest of: a layer of the front end on a piece, a layer of the context module on a piece, a
  band of pixels on its way from scores to labels.

It is meant to be a little too large rather than too small; the tests hold it beside what
`tinydilate.buffers` counted, and `benchmarks/prediction.py` beside the memory of a whole process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from tinydilate import nn, no_grad
from tinydilate.autograd import Tensor
from tinydilate.buffers import block_size
from tinydilate.device import MetaArray
from tinydilate.errors import ConfigError, ShapeError
from tinydilate.gemm import PACKED_BYTES
from tinydilate.predict.parts import Parts, halo
from tinydilate.threads import get_num_threads
from tinydilate.window import Pair
from tinydilate.winograd import TILES

MEMORY = "4GB"  # the default bound
PROCESS = 350 * 10**6  # bytes: 200 for interpreter and kernels, 150 that the C library keeps
BAND = 32 * 10**6  # bytes of a band of pixel scores
_SPARE = 64 * 2**20  # bytes that the pool of buffers may hold on to, beside an eighth of the peak
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str | float) -> int:
    """Bytes from "2GB", "500 MB", "1.5GiB" or a number.

    Raises
    ------
    ConfigError
        If it is none of these, or not above 0.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(k|m|g|ki|mi|gi|)b?", str(text).strip().lower())
    amount = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if amount < 1:
        raise ConfigError(
            f"expected an amount of memory such as 2GB, 500MB or 1.5GiB; got {text!r}."
        )
    return amount


def as_text(amount: int) -> str:
    """Bytes to read: "2.13 GB"."""
    return f"{amount / 1e9:.2f} GB" if amount >= 1e9 else f"{math.ceil(amount / 1e6)} MB"


class Plan(NamedTuple):
    """How an image is cut.

    Attributes
    ----------
    cells : (h, w)
        Of the coarse map of the whole image.
    classes : int
    beyond : (int, int)
        Rows and columns of reflection below and on the right, further than the border.
    front, context : (int, int)
        Cells of a piece, along rows and columns, in the front end and in the context module.
    band : int
        Rows of cells that are enlarged together.
    peak : int
        Estimated bytes of the whole process.
    """

    cells: Pair
    classes: int
    beyond: Pair
    front: Pair
    context: Pair
    band: int
    peak: int


class Shapes:
    """A network without its numbers, to work out sizes and memory with."""

    def __init__(self, parts: Parts) -> None:
        parameter = next(parts.front.parameters())
        self.parts, self.dtype = parts, parameter.dtype
        self.channels = _channels(parts.front)
        self.front, self.context = nn.as_meta(parts.front).eval(), nn.as_meta(parts.context).eval()
        self.on_cpu = parameter.device != "cuda"
        modules = [parts.front, parts.context, *([parts.upsampling] if parts.upsampling else [])]
        self.weights = sum(_bytes(p) for module in modules for p in module.parameters())
        self.known: dict[tuple[str, Pair], int] = {}

    def beyond(self, size: Pair) -> Pair:
        """Reflected pixels after the border that the last cells need.

        Where cell i stands at pixel S*i, the pixels behind the last whole step lie between two
        cells, and the second one is beyond the image.
        """
        stride = self.parts.stride
        if self.parts.place == "centre":
            return 0, 0
        rows, columns = (stride * (-(-(side - 1) // stride) + 1) - side for side in size)
        return rows, columns

    def cells(self, size: Pair) -> tuple[int, Pair]:
        """Classes, and cells of the whole image along rows and columns.

        Raises
        ------
        ShapeError
            If they do not cover the image.
        """
        border, stride = 2 * self.parts.border, self.parts.stride
        beyond = self.beyond(size)
        padded = size[0] + border + beyond[0], size[1] + border + beyond[1]
        _, classes, *cells = self._run(self.front, self.channels, padded)[0]
        if cells[0] * stride < size[0] or cells[1] * stride < size[1]:
            raise ShapeError(
                f"expected cells that cover the image of {size[0]} x {size[1]} pixels; got "
                f"{cells[0]} x {cells[1]} of {stride} pixels each. Build the front end with "
                "ceil_mode=True."
            )
        return classes, (cells[0], cells[1])

    def front_peak(self, piece: Pair) -> int:
        """Bytes that the front end takes on a piece of so many cells."""
        border, stride = 2 * self.parts.border, self.parts.stride
        pixels = stride * piece[0] + border, stride * piece[1] + border
        return self._peak("front", self.front, self.channels, pixels)

    def context_peak(self, piece: Pair, cells: Pair, classes: int) -> int:
        """Bytes that the context module takes on a piece, with what it sees around it."""
        reach = 2 * self.parts.reach
        seen = min(cells[0], piece[0] + reach), min(cells[1], piece[1] + reach)
        return self._peak("context", self.context, classes, seen)

    def _peak(self, name: str, layers: nn.Sequential, channels: int, size: Pair) -> int:
        if (name, size) not in self.known:
            self.known[name, size] = self._run(layers, channels, size)[1]
        return self.known[name, size]

    def _run(self, layers: nn.Sequential, channels: int, size: Pair) -> tuple[tuple[int, ...], int]:
        """Shape of the last layer's output, and the most bytes at once."""
        first = x = Tensor(MetaArray((1, channels, *size), self.dtype))
        most = _block(first)
        with no_grad():
            for layer in layers:
                out = layer(x)
                # Whoever called the first layer keeps its input. Dropout returns what it is given.
                alive = {id(each.data): each for each in (first, x, out)}
                most = max(most, sum(map(_block, alive.values())) + self._room(layer, out))
                x = out
        return x.shape, most

    def _room(self, layer: nn.Module, out: Tensor) -> int:
        """Bytes that a layer takes beside its input and output."""
        if isinstance(layer, nn.MaxPool2d):  # where each maximum was, for a derivative
            return 8 * math.prod(out.shape)
        if not isinstance(layer, nn.Conv2d) or not self.on_cpu:
            return 0
        channels, filters = layer.in_channels, layer.out_channels
        if layer.window.kernel != (3, 3):  # weights in the order of the product, a part at a time
            return min(PACKED_BYTES, _block(layer.weight))
        # Winograd: transformed kernels, and for each thread the transformed tiles of a job.
        tiles = get_num_threads() * TILES * (channels + 64)
        return 36 * out.dtype.itemsize * (channels * filters + tiles)


def plan(
    parts: Parts, size: Pair, memory: str | float | None = MEMORY, kept: int = 0, keep: bool = False
) -> Plan:
    """Choose the largest pieces that fit into memory.

    Parameters
    ----------
    parts : Parts
    size : (H, W)
        Of the image.
    memory : str or bytes
        Bound of the whole process, as in "2GB"; None is no bound: one piece.
    kept : int
        Bytes that the caller keeps meanwhile, beside the image in the network's numbers.
    keep : bool
        Whether the caller keeps the probabilities of all pixels.

    Raises
    ------
    ConfigError
        If not even the smallest piece fits.
    ShapeError
        If the front end's cells do not cover the image.
    """
    shapes = Shapes(parts)
    classes, cells = shapes.cells(size)
    item = shapes.dtype.itemsize
    still = PROCESS + shapes.weights + kept + item * shapes.channels * math.prod(size)
    still += 2 * item * classes * math.prod(cells) + keep * item * classes * math.prod(size)
    rows = max(1, BAND // (item * classes * size[1] * parts.stride))
    band = min(cells[0], rows)
    # Scores enlarged, cropped, their probabilities; and the cells around the band.
    bands = 3 * item * classes * size[1] * parts.stride * (band + 2 * halo(parts.upsampling))
    room = None if memory is None else parse_bytes(memory) - still
    front, most = _largest(cells, 2 * parts.border / parts.stride, room, shapes.front_peak)
    context, second = _largest(
        cells, 2 * parts.reach, room, lambda piece: shapes.context_peak(piece, cells, classes)
    )
    moving = _held(max(most, second, bands))
    if room is not None and moving > room:
        raise ConfigError(
            f"expected memory of at least {as_text(still + moving)} for an image of {size[0]} x "
            f"{size[1]} pixels with this network, whose weights take {as_text(shapes.weights)}; "
            f"got {memory}. Allow more, or scale the image down."
        )
    return Plan(cells, classes, shapes.beyond(size), front, context, band, still + moving)


def _largest(
    cells: Pair, shared: float, room: int | None, bytes_of: Callable[[Pair], int]
) -> tuple[Pair, int]:
    """The piece that makes the least work of those that fit, and its bytes; else the smallest one.

    Pieces overlap: each is computed with ``shared`` cells more along each axis.
    """
    too_large: list[Pair] = []
    peak = 0
    for piece in _candidates(cells, shared):
        if any(piece[0] >= large[0] and piece[1] >= large[1] for large in too_large):
            continue
        peak = bytes_of(piece)
        if room is None or _held(peak) <= room:
            return piece, peak
        too_large.append(piece)
    return (1, 1), peak


def _candidates(cells: Pair, shared: float) -> list[Pair]:
    """Sizes of pieces that cut the cells into nearly equal parts, those with least work first."""

    def work(piece: Pair) -> float:
        rows, columns = (-(-count // side) for count, side in zip(cells, piece, strict=True))
        return (cells[0] + rows * shared) * (cells[1] + columns * shared)

    rows, columns = (_sides(count) for count in cells)
    return sorted(product(rows, columns), key=lambda piece: (work(piece), -piece[0], -piece[1]))


def _sides(count: int) -> list[int]:
    """``count`` cut into 1, 2, 3 ... nearly equal parts; into many, in steps of an eighth."""
    sides, parts = [count], 1
    while sides[-1] > 1:
        parts += max(1, parts // 8)
        side = -(-count // parts)
        if side < sides[-1]:
            sides.append(side)
    return sides


def _held(peak: int) -> int:
    """What the pool of buffers holds at most where ``peak`` bytes were in use at once."""
    return peak + max(peak // 8, _SPARE)


def _block(tensor: Tensor) -> int:
    """Bytes of a tensor in the pool."""
    return block_size(_bytes(tensor))


def _bytes(tensor: Tensor) -> int:
    return int(math.prod(tensor.shape) * tensor.dtype.itemsize)


def _channels(front: nn.Sequential) -> int:
    """Of the image that the network takes."""
    return next(layer.in_channels for layer in front if isinstance(layer, nn.Conv2d))
