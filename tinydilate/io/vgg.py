"""VGG-16, the network that everything starts from, as others have published it.

Two families of files hold its weights.

========================  ==================================  ================================
what                      Caffe (Oxford, 2014)                torchvision
========================  ==================================  ================================
names                     conv1_1 to conv5_3, fc6, fc7, fc8   features.0 to features.28,
                                                              classifier.0, .3 and .6
colours                   blue, green, red                    red, green, blue
pixels                    0 to 255                            0 to 1
what is subtracted        a mean pixel                        a mean pixel
divided by                nothing                             a standard deviation
========================  ==================================  ================================

In both, fc6 is a product with a vector: 4096 x 25088 weights, of which 25088 = 512 * 7 * 7 are a
window of 7 x 7 on 512 maps, in C order. As a convolution they are (4096, 512, 7, 7), the same
numbers in the same order. fc7 becomes a window of one pixel. fc8 tells a thousand classes of
ImageNet apart and has no use here.

Ours are Caffe's names, colours and pixels, for so the paper's networks are. torchvision's first
layer expects other pixels, which are a linear function of ours; a convolution is linear too, so the
one can be put into the other (`fold_colours`).

Sources: torchvision's documentation of vgg16; the paper's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tinydilate.errors import DataError
from tinydilate.io.mapped import InMemory, Stored
from tinydilate.models import VGG_16, Conv

Pixel = tuple[float, float, float]

LAYERS = tuple(row.name for row in VGG_16 if isinstance(row, Conv))  # conv1_1 to fc7
FINAL = ("final", "fc-final")  # what the paper's networks call the layer behind fc7
MEAN: Pixel = (103.939, 116.779, 123.68)  # of ImageNet: blue, green, red, 0 to 255

# In torchvision every convolution, rectifier, pooling and dropout has a number.
TORCHVISION = {
    "features.0": "conv1_1",
    "features.2": "conv1_2",
    "features.5": "conv2_1",
    "features.7": "conv2_2",
    "features.10": "conv3_1",
    "features.12": "conv3_2",
    "features.14": "conv3_3",
    "features.17": "conv4_1",
    "features.19": "conv4_2",
    "features.21": "conv4_3",
    "features.24": "conv5_1",
    "features.26": "conv5_2",
    "features.28": "conv5_3",
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "classifier.6": "fc8",
}


class Colours(NamedTuple):
    """How a network wants its pixels: ``(level / scale - mean) / std``, level from 0 to 255.

    Attributes
    ----------
    order : {"BGR", "RGB"}
    scale : float
    mean, std : three floats
        In that order.
    """

    order: str
    scale: float
    mean: Pixel
    std: Pixel


TORCHVISION_COLOURS = Colours("RGB", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def caffe_colours(mean: Pixel) -> Colours:
    """How the paper's networks want their pixels; the mean is (blue, green, red), 0 to 255."""
    return Colours("BGR", 1.0, mean, (1.0, 1.0, 1.0))


def is_torchvision(arrays: Mapping[str, Stored]) -> bool:
    """Whether arrays are named as torchvision names those of a VGG network."""
    return "features.0.weight" in arrays


def is_vgg(arrays: Mapping[str, Stored]) -> bool:
    """Whether arrays, in Caffe's names, are VGG-16 and not a network that was made of it."""
    whole = all(f"{layer}.weight" in arrays for layer in LAYERS)
    return whole and not any(f"{layer}.weight" in arrays for layer in FINAL)


def caffe_names(arrays: Mapping[str, Stored]) -> dict[str, str]:
    """Name in torchvision's VGG-16 -> name in Caffe's; names of anything else stay.

    Raises
    ------
    DataError
        If it is a VGG of another depth, or with batch normalisation.
    """
    features = {name.rpartition(".")[0] for name in arrays if name.startswith("features.")}
    expected = {name for name in TORCHVISION if name.startswith("features.")}
    if features != expected:
        other = "of another depth"
        if any(name.endswith("running_mean") for name in arrays):
            other = "with batch normalisation"
        raise DataError(
            f"expected torchvision's vgg16, 13 convolutions; got a VGG {other}, with weights in "
            f"{len(features)} layers called features. Take vgg16 without more letters."
        )
    named = {}
    for name in arrays:
        layer, _, what = name.rpartition(".")
        named[name] = f"{TORCHVISION.get(layer, layer)}.{what}"
    return named


def fold_colours(
    weight: Stored, bias: Stored, given: Colours, wanted: Colours
) -> tuple[Stored, Stored]:
    """A first layer that gives for pixels as wanted what it gave for pixels as given.

    A pixel's level in channel c is ``level = (wanted * std + mean) * scale``, with the wanted
    colours' numbers. Put into the given colours' formula, that is ``given = a * wanted + b`` for
    each channel, with numbers a and b. So the weights of channel c are multiplied by a, the bias
    takes up b times the sum of the weights, and the channels change places.

    That is exact as long as the layer has no padding: a border of zeros means the mean colour, and
    the means differ. The networks here have none; the image has its border before.

    Parameters
    ----------
    weight : Stored (F, 3, KH, KW)
    bias : Stored (F,)
    given, wanted : Colours

    Returns
    -------
    weight, bias : Stored
        float64, not rounded yet.

    Raises
    ------
    DataError
        If the layer does not see three channels.
    """
    if len(weight.shape) != 4 or weight.shape[1] != 3 or bias.shape != weight.shape[:1]:
        raise DataError(
            f"expected a first layer of weights (F, 3, KH, KW) and F biases; got {weight.shape} "
            f"and {bias.shape}. Its colours cannot be changed."
        )
    kernels = weight.array().astype(np.float64)  # (F, 3, KH, KW), channels in the given order
    place = [wanted.order.index(channel) for channel in given.order]  # of each in the wanted order
    mean, std = np.array(wanted.mean)[place], np.array(wanted.std)[place]
    per_level = 1 / (given.scale * np.array(given.std))
    slope = wanted.scale * std * per_level  # a, for each channel
    offset = wanted.scale * mean * per_level - np.array(given.mean) / np.array(given.std)  # b
    shift = (kernels.sum(axis=(2, 3)) * offset).sum(axis=1)  # (F, 3) -> (F,)
    kernels *= slope[:, None, None]
    back = [given.order.index(channel) for channel in wanted.order]
    return InMemory(kernels[:, back]), InMemory(bias.array().astype(np.float64) + shift)
