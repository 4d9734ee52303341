"""Where a network's front end ends, and where its coarse cells lie in the image.

The paper's networks have up to three parts, and predicting a large image in pieces asks for each:

    image  ->  front end  ->  context module  ->  upsampling  ->  a score for every pixel
               no padding     padded: as many     transposed convolution,
               inside         cells out as in     or bilinear interpolation

The layers say themselves where one part ends. The front end is everything before the first layer
that pads; its field and its stride give the border that the image needs, 186 pixels for VGG-16. The
context module is what follows; its field says how many cells beyond its own an output sees.

**Where is cell i?** Its field is centred on pixel S*i + (S-1)/2 for a stride of S: 8*i + 3.5. But
the published front ends were *trained* with the label of pixel 8*i, so they learnt to answer for
a pixel 3.5 pixels up and left of the middle of what they see. Each network must be read by the
convention that it was trained with; the wrong one shifts the labels by 3.5 pixels.

==========  ==================  ================================================================
place       cell i stands at    networks
==========  ==================  ================================================================
"corner"    pixel S*i           published ones without an upsampling of their own: VOC, CamVid,
                                KITTI, and every front end trained on labels of those pixels
"centre"    pixel S*i+(S-1)/2   those that upsample by themselves: Cityscapes (a transposed
                                convolution), and `FrontEndWithContext`
==========  ==================  ================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tinydilate import nn
from tinydilate.errors import ConfigError
from tinydilate.field import border_of, field_of, joined, line_of, spreading
from tinydilate.models import FrontEndWithContext
from tinydilate.models.rows import readers_of

PLACES = ("corner", "centre")


class Parts(NamedTuple):
    """A network, taken apart. The modules are the network's own.

    Attributes
    ----------
    front : nn.Sequential
        The front end, without the layer that makes the border.
    context : nn.Sequential
        As many cells out as in; it may be empty.
    upsampling : nn.ConvTranspose2d or None
        The network's own, from cells to pixels.
    border : int
        Pixels that the front end sees beyond the image on each side.
    stride : int
        Pixels from one cell to the next, S.
    reach : int
        Cells that the context module sees beyond its own, on each side.
    place : {"corner", "centre"}
        Where cell i stands: at pixel S*i, or S*i + (S-1)/2.
    """

    front: nn.Sequential
    context: nn.Sequential
    upsampling: nn.ConvTranspose2d | None
    border: int
    stride: int
    reach: int
    place: str


def parts_of(network: nn.Module, place: str | None = None) -> Parts:
    """Take a network apart.

    Parameters
    ----------
    network : FrontEndWithContext, or nn.Sequential
        A published network, a front end alone, or anything built by the same rules. Its windows
        are square.
    place : {"corner", "centre"}, optional
        Where its cells stand. By default "centre" for a `FrontEndWithContext` and for a network
        that ends with a transposed convolution, "corner" for another one.

    Raises
    ------
    ConfigError
        If the layers are not those of a front end, a context module and an upsampling.
    ShapeError
        If the front end would need a border that differs from side to side.
    """
    layers = _layers(network)
    upsampling = layers[-1] if layers and isinstance(layers[-1], nn.ConvTranspose2d) else None
    layers = layers[:-1] if upsampling else layers
    made = layers[0] if layers and isinstance(layers[0], nn.ReflectionBorder) else None
    layers = layers[1:] if made else layers
    split = next((n for n, layer in enumerate(layers) if _pads(layer)), len(layers))
    front, context = layers[:split], layers[split:]
    readers = readers_of(front)
    if not readers:
        raise ConfigError(
            "expected a front end: layers that do not pad, behind a border at most; got "
            f"{network!r:.80}. Build one with tinydilate.models.front_end."
        )
    own = "centre" if upsampling or isinstance(network, FrontEndWithContext) else "corner"
    place = _checked(place, own, upsampling)
    border, stride = border_of(readers), int(field_of(readers).stride)
    reach = _reach(context)
    _check_border(made, border)
    _check_upsampling(upsampling, stride)
    parts = (nn.Sequential(*front), nn.Sequential(*context), upsampling)
    return Parts(*parts, border, stride, reach, place)


def halo(upsampling: nn.ConvTranspose2d | None) -> int:
    """Cells beyond its own that the pixels of a cell are blended from, on each side.

    1 for bilinear interpolation, and for the published transposed convolution.
    """
    if upsampling is None:
        return 1
    seen = joined(line_of([spreading(upsampling.window, 0)]).phases)
    return max(-seen.first, seen.last)


def _layers(network: nn.Module) -> list[nn.Module]:
    """The layers in their order, out of all nesting."""
    if isinstance(network, FrontEndWithContext):
        waiting = [network.front_end, *([network.context] if network.context else [])]
    else:
        waiting = [network]
    layers: list[nn.Module] = []
    while waiting:
        module = waiting.pop(0)
        if isinstance(module, nn.Sequential):
            waiting = [*module, *waiting]
        else:
            layers.append(module)
    return layers


def _pads(layer: nn.Module) -> bool:
    window = getattr(layer, "window", None)
    return window is not None and max(window.padding[0]) > 0


def _checked(place: str | None, own: str, upsampling: nn.Module | None) -> str:
    place = own if place is None else place
    if place not in PLACES:
        raise ConfigError(f"expected a place out of {', '.join(PLACES)}; got {place!r}.")
    if upsampling and place != own:
        raise ConfigError(
            f"expected no place for cells but {own!r}: the network upsamples by itself; got "
            f"{place!r}. Leave it out."
        )
    return place


def _reach(context: Sequence[nn.Module]) -> int:
    if not context:
        return 0
    field = field_of(readers_of(context))
    if field.stride != 1 or field.centre != 0 or field.extent % 2 == 0:
        raise ConfigError(
            "expected a front end without padding inside, and behind it layers that keep each cell "
            f"in its place (stride 1, centre 0); those behind the first padding, {context[0]!r:.60}"
            f", have a stride of {field.stride} and a centre of {field.centre}. Take the padding "
            "out of the front end: its border is made around the image."
        )
    return field.extent // 2


def _check_border(made: nn.ReflectionBorder | None, border: int) -> None:
    if made and made.width != border:
        raise ConfigError(
            f"expected a border of {border} pixels, (field - stride) / 2 of the front end; got "
            f"{made.width}. Build the network with border=True, or leave its border out."
        )


def _check_upsampling(upsampling: nn.ConvTranspose2d | None, stride: int) -> None:
    if upsampling and upsampling.window.stride != (stride, stride):
        raise ConfigError(
            f"expected an upsampling by the front end's stride, {stride}, from cells to pixels; "
            f"got one by {upsampling.window.stride[0]}. Build it with "
            f"models.context(..., upsample={stride})."
        )
