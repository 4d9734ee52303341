"""What the labels of the paper's data sets mean: names, colours, and the mean pixel of the images.

The networks, the readers of data sets, prediction and evaluation all ask here.

====================  =======  ===========================================================
data set              classes  in the paper
====================  =======  ===========================================================
`VOC`                      21  background and 20 kinds of things (sections 4 and 5)
`CAMVID`                   11  a street in Cambridge (appendix A.1)
`KITTI`                    11  streets in Karlsruhe, with CamVid's classes (appendix A.2)
`CITYSCAPES`               19  streets of 50 cities, numbered by trainIds (appendix A.3)
====================  =======  ===========================================================
"""

from __future__ import annotations

from typing import NamedTuple

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255

IGNORE = 255  # a label that counts nowhere: not in the loss, not in a score


class Classes(NamedTuple):
    """Names and colours of a data set's classes, in the order of their numbers.

    Attributes
    ----------
    dataset : str
    names : tuple of str
        Of class 0, 1, 2, ...
    palette : tuple of (red, green, blue)
        What each class is drawn in.
    mean : (blue, green, red)
        Mean pixel of the training images, 0 to 255, that the published networks subtract. The
        order is that of their code, which read images by OpenCV.
    """

    dataset: str
    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    mean: tuple[float, float, float]


def voc_palette(count: int) -> tuple[Colour, ...]:
    """The first colours of VOC: bits 0, 3, 6, ... of a label become red's bits 7, 6, 5, ...

    Bits 1, 4, ... become green's, bits 2, 5, ... blue's, so neighbouring numbers differ strongly.
    """
    return tuple(
        tuple(  # type: ignore[misc]
            sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
            for channel in range(3)
        )
        for label in range(count)
    )


_VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
)
VOC = Classes("voc", tuple(_VOC_NAMES.split()), voc_palette(21), (102.93, 111.36, 116.52))

_STREET: dict[str, Colour] = {
    "building": (128, 0, 0),
    "tree": (128, 128, 0),
    "sky": (128, 128, 128),
    "car": (64, 0, 128),
    "sign": (192, 128, 128),
    "road": (128, 64, 128),
    "pedestrian": (64, 64, 0),
    "fence": (64, 64, 128),
    "pole": (192, 192, 128),
    "sidewalk": (0, 0, 192),
    "bicyclist": (0, 128, 192),
}
CAMVID = Classes(
    "camvid",
    tuple(_STREET),
    tuple(_STREET.values()),
    (110.70313206, 108.77808759, 105.41212523),
)
KITTI = CAMVID._replace(dataset="kitti", mean=(96.19429688, 95.55136972, 91.34692262))

_CITY: dict[str, Colour] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
CITYSCAPES = Classes("cityscapes", tuple(_CITY), tuple(_CITY.values()), (72.39, 82.91, 73.16))

CLASSES = {each.dataset: each for each in (VOC, CAMVID, KITTI, CITYSCAPES)}
