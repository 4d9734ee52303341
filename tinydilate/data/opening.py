"""One door to every data set: `open_dataset` and what it knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tinydilate.data.folder import open_folder
from tinydilate.data.labelled import LabelledImages
from tinydilate.errors import ConfigError

Reader = Callable[[Path | str, str, "tuple[int, int] | None"], LabelledImages]

READERS: dict[str, Reader] = {"folder": open_folder}


def open_dataset(
    kind: str, folder: Path | str, split: str, size: tuple[int, int] | None = None
) -> LabelledImages:
    """Open one split of a data set that lies in a folder. Nothing is fetched, nothing written.

    Parameters
    ----------
    kind : str
        A key of `READERS`.
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
    if kind not in READERS:
        raise ConfigError(f"expected a kind of data set: {', '.join(READERS)}; got {kind!r}.")
    return READERS[kind](folder, split, size)
