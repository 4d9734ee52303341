"""One door to every data set: `open_dataset`, and the kinds that it knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tinydilate.data import camvid, cityscapes, coco, kitti, voc
from tinydilate.data.folder import ALL, open_folder
from tinydilate.data.labelled import LabelledImages
from tinydilate.errors import ConfigError


class Kind(NamedTuple):
    """How to open a kind of data set, and the splits that it has; a folder's are its lists."""

    open: Callable[[Path | str, str, tuple[int, int] | None], LabelledImages]
    splits: tuple[str, ...]


KINDS: dict[str, Kind] = {
    "voc": Kind(voc.open_voc, voc.VOC_SPLITS),
    "sbd": Kind(voc.open_sbd, voc.SBD_SPLITS),
    "coco": Kind(coco.open_coco, coco.SPLITS),
    "camvid": Kind(camvid.open_camvid, camvid.SPLITS),
    "kitti": Kind(kitti.open_kitti, tuple(kitti.FOLDERS)),
    "cityscapes": Kind(cityscapes.open_cityscapes, cityscapes.SPLITS),
    "folder": Kind(open_folder, (ALL,)),
}


def open_dataset(
    kind: str, folder: Path | str, split: str, size: tuple[int, int] | None = None
) -> LabelledImages:
    """Open one split of a data set that lies in a folder. Nothing is fetched, nothing written.

    Parameters
    ----------
    kind : {"voc", "sbd", "coco", "camvid", "kitti", "cityscapes", "folder"}
    folder : path
        Where its archives were unpacked.
    split : str
        Each kind has its own; an unknown one is refused with the list.
    size : (H, W), optional
        Resize images and labels to this. The paper reduced CamVid to (480, 640).

    Returns
    -------
    LabelledImages
        Every file has been seen to be there; none but lists has been read.

    Raises
    ------
    ConfigError
        If the kind or the split is unknown.
    DataError
        If the layout is not the expected one; the first missing file is named, and what to
        download.
    """
    if kind not in KINDS:
        raise ConfigError(f"expected a kind of data set: {', '.join(KINDS)}; got {kind!r}.")
    return KINDS[kind].open(folder, split, size)
