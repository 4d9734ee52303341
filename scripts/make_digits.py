"""Write tinydilate/data/digits.npz: the 1,797 handwritten digits that the scenes are made of.

Only developers run this, and only to recreate the file; users have it in the package.

    pip install scikit-learn
    python scripts/make_digits.py            # writes the file
    python scripts/make_digits.py --check    # compares the file with scikit-learn's copy

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0. These are the 1,797 images of its
test part, as `sklearn.datasets.load_digits` carries them. Change made: none but the storage.

The archive holds `images`, uint8 (1797, 8, 8) with values 0..16 (the number of inked pixels in a
4x4 block of the scan), and `digits`, uint8 (1797,), what each image shows. `numpy.savez` would put
the time of day into the archive; here every entry is dated 1980, so that the same images and the
same zlib give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TARGET = Path(__file__).resolve().parent.parent / "tinydilate" / "data" / "digits.npz"


def original() -> dict[str, NDArray[np.uint8]]:
    """The two arrays as scikit-learn carries them, checked and narrowed to bytes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, digits = bunch.images, bunch.target
    assert images.shape == (1797, 8, 8)
    assert np.array_equal(np.unique(images), np.arange(17)), "whole numbers, 0 to 16"
    return {"images": images.astype(np.uint8), "digits": digits.astype(np.uint8)}


def archive(arrays: dict[str, NDArray[np.uint8]]) -> bytes:
    """The bytes of an .npz that depend on nothing but the arrays (and zlib)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # the same on every operating system
            info.external_attr = 0o644 << 16
            zipped.writestr(info, entry.getvalue(), compresslevel=9)
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description="write tinydilate/data/digits.npz")
    parser.add_argument("--check", action="store_true", help="compare the file, write nothing")
    options = parser.parse_args()
    arrays = original()
    if options.check:
        with np.load(TARGET, allow_pickle=False) as stored:
            same = set(stored.files) == set(arrays) and all(
                np.array_equal(stored[name], arrays[name]) for name in arrays
            )
        print(f"{TARGET.name} {'equals' if same else 'DIFFERS FROM'} scikit-learn's copy")
        return 0 if same else 1

    data = archive(arrays)
    half_written = TARGET.with_suffix(".tmp")
    half_written.write_bytes(data)
    os.replace(half_written, TARGET)  # the file is there whole, or not at all
    print(f"wrote {TARGET.name}: {len(data):,} bytes, {len(arrays['digits'])} digits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
