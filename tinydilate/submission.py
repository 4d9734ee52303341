"""Files as the evaluation servers of VOC and Cityscapes want them.

* **VOC**: ``results/VOC2012/Segmentation/comp6_test_cls/NAME.png``, class numbers with VOC's
  palette; "comp6" because the network was trained on more than VOC's own images (ImageNet, SBD).
* **Cityscapes**: ``NAME_pred_labelIds.png``, where NAME is CITY_SEQUENCE_FRAME; ids instead of the
  trainIds that networks learn, in grey.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydilate.classes import CITYSCAPES, VOC, Classes
from tinydilate.data.cityscapes import ID_OF
from tinydilate.errors import ConfigError, DataError, ShapeError
from tinydilate.io.images import write_labels, write_rgb

VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


def write_submission(folder: Path | str, name: str, labels: NDArray[Any], classes: Classes) -> Path:
    """Write the labels of one image as its server wants them.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    name : str
        Of the image in the data set.
    labels : integers (H, W)
        Class numbers; every pixel needs one, so 255 is refused.
    classes : Classes
        VOC's or Cityscapes'; other data sets have no server.

    Returns
    -------
    path
        Of the file.

    Raises
    ------
    ConfigError, ShapeError, DataError
        Other classes, no label map, or labels that are no classes.
    """
    if classes.names not in (VOC.names, CITYSCAPES.names):
        raise ConfigError(
            f"expected the classes of voc or cityscapes, which have evaluation servers; got "
            f"{classes.dataset}. Score such labels with: tinydilate score"
        )
    _check_labels(name, labels, len(classes.names))
    is_voc = classes.names == VOC.names
    path = Path(folder) / (f"{VOC_FOLDER}/{name}.png" if is_voc else f"{name}_pred_labelIds.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"expected a folder for the results; {path.parent}: {error.strerror or error}. "
            "Choose another one."
        ) from None
    if is_voc:
        write_labels(path, labels, np.array(VOC.palette, np.uint8))
    else:
        ids = np.array([ID_OF[label] for label in range(len(ID_OF))], np.uint8)
        write_rgb(path, ids[labels])  # one channel: a grey PNG
    return path


def _check_labels(name: str, labels: NDArray[Any], count: int) -> None:
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ShapeError(
            f"expected class numbers (H, W) for {name}; got {labels.dtype} {labels.shape}."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < count:
        raise DataError(
            f"expected labels 0..{count - 1} for every pixel of {name}; got {labels.min()} to "
            f"{labels.max()}. Take the argmax over the classes."
        )
