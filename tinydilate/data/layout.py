"""What the readers of data sets share: finding files, reading lists, and saying what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tinydilate.errors import ConfigError, DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")


def check_split(kind: str, split: str, splits: Sequence[str]) -> None:
    """Refuse a split that the data set does not have."""
    if split not in splits:
        raise ConfigError(f"expected a split of {kind}: {', '.join(splits)}; got {split!r}.")


def find_root(folder: Path | str, candidates: Sequence[str], mark: str, advice: str) -> Path:
    """The first of some folders below ``folder`` that holds the file or folder ``mark``.

    Parameters
    ----------
    folder : path
        What the user named.
    candidates : names relative to it, "." among them
    mark : name of a file or folder by which the data set is recognised
    advice : str
        What to download and where, for the error.

    Raises
    ------
    DataError
        If there is no such folder, or it holds no such thing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"expected a folder at {folder}; there is none. {advice}")
    for candidate in candidates:
        if (folder / candidate / mark).exists():
            return folder / candidate
    places = " or ".join(str(folder / candidate / mark) for candidate in candidates)
    raise DataError(f"expected {places}; there is none. {advice}")


def check_files(paths: Iterable[Path], what: str, advice: str) -> None:
    """Refuse a data set of whose files some are missing; the first is named, all are counted."""
    listed = list(paths)
    missing = [path for path in listed if not path.is_file()]
    if missing:
        raise DataError(
            f"expected {what} at {missing[0]}; there is no such file ({len(missing):,} of "
            f"{len(listed):,} are missing). {advice}"
        )


def read_list(path: Path, advice: str) -> list[str]:
    """The lines of a text file that are not empty, without blanks at their ends.

    Raises
    ------
    DataError
        If there is no such file, or it is empty or no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except FileNotFoundError:
        raise DataError(f"expected the list {path}; there is no such file. {advice}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"expected a list of names, one a line; {path} cannot be read: {error}. {advice}"
        ) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"expected names in {path}; it is empty. {advice}")
    return lines


def safe_path(root: Path, name: str, source: Path) -> Path:
    """``root / name``, for a name that came out of a file; it may not lead out of ``root``.

    Raises
    ------
    DataError
        If the name is an absolute path or climbs by ``..``.
    """
    parts = Path(name)
    if parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise DataError(
            f"expected names of files inside {root} in {source}; got {name!r}. Correct that line."
        )
    return root / parts


def images_in(folder: Path, advice: str) -> list[Path]:
    """Image files of a folder, by name.

    Raises
    ------
    DataError
        If there are none.
    """
    images = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
    )
    if not images:
        raise DataError(f"expected images in {folder}; got none. {advice}")
    return images
