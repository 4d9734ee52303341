"""How long weights take to load, beside reading and copying the file; and how much memory.

A .caffemodel of the VOC network's 141,149,720 numbers is written into a temporary folder: 540 MB
of noise. Then, in turns, in one process:

* the file is read into memory and its bytes are copied once, as one line of NumPy does it;
* the same in pieces of 4 MB through one buffer, which stays in the processor's cache: the least
  that a program can do with ``read``;
* `load_weights` fills a network that is there already.

Both see the file in the system's cache, so neither waits for the disk. The peaks are those of fresh
processes, less what the same process takes with the network built and nothing loaded: its weights
then take no memory yet. The largest layer, fc6, has 411 MB.

    python benchmarks/weights.py --json weights.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from memory import peak
from side_by_side import median, paired_ratio, parser, table, write_json

from tinydilate import models
from tinydilate.io.conversion import convert_weights
from tinydilate.io.weights import load_weights

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from caffe_files import block, layer

NAME = "dilation8_voc"


def write_caffemodel(path: Path) -> int:
    """The network's shapes, filled with noise; returns how many bytes the weights have."""
    state = models.dilation8_voc(device="meta").state_dict()
    random, total = np.random.default_rng(0), 0
    with path.open("wb") as file:
        file.write(block(1, NAME))
        for name, shape in state.items():
            if not name.endswith(".weight"):
                continue
            arrays = [
                random.standard_normal(each.shape, np.float32) * np.float32(0.01)
                for each in (shape, state[name.replace("weight", "bias")])
            ]
            file.write(layer(name.removesuffix(".weight"), arrays))
            total += sum(array.nbytes for array in arrays)
    return total


def read_and_copy(path: Path, target: np.ndarray) -> None:
    """Read the file, and copy its bytes into memory that is there already."""
    target[:] = np.fromfile(path, np.uint8)


def read_in_pieces(path: Path, target: np.ndarray, size: int = 2**22) -> None:
    """The same with little memory."""
    buffer, start = np.empty(size, np.uint8), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            target[start : start + count] = buffer[:count]
            start += count


def highest() -> int:
    """Bytes that were resident at once in this process; on Linux nothing of its parent counts."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak()
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def in_a_child(work: str, folder: Path) -> int:
    """Peak of a fresh process that does one thing, in bytes."""
    command = [sys.executable, __file__, "--child", work, str(folder)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(run.stdout.split()[-1])


def work_here(work: str, folder: Path) -> None:
    """In the child."""
    network = models.dilation8_voc(weights="zeros")
    if work == "load":
        load_weights(network, folder / "voc.caffemodel")
    elif work == "load safetensors":
        load_weights(network, folder / "voc.safetensors")
    elif work == "convert":
        convert_weights(folder / "voc.caffemodel", folder / "again.safetensors")
    print(highest())


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.child:
        work_here(options.child[0], Path(options.child[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), options.repeats, options.json)


def measure(folder: Path, repeats: int, json: Path | None) -> None:
    """Write the files, time both sides, take the peaks."""
    caffe, ours = folder / "voc.caffemodel", folder / "voc.safetensors"
    total = write_caffemodel(caffe)
    size = caffe.stat().st_size
    print(f"{size / 1e6:,.0f} MB, of which {total / 1e6:,.0f} MB are weights")
    converting = timed(lambda: convert_weights(caffe, ours))
    network = models.dilation8_voc(weights="zeros")
    target = np.zeros(size, np.uint8)
    sides: dict[str, Callable[[], object]] = {
        "read and copy": lambda: read_and_copy(caffe, target),
        "read and copy, in pieces": lambda: read_in_pieces(caffe, target),
        "load_weights, .caffemodel": lambda: load_weights(network, caffe),
        "load_weights, .safetensors": lambda: load_weights(network, ours),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for run in sides.values():  # take the memory, fill the caches
        run()
    for _ in range(repeats):
        for side, run in sides.items():
            seconds[side].append(timed(run))
    whole, pieces = list(seconds.values())[:2]
    rows = [
        [
            side,
            f"{median(each):.3f}",
            f"{paired_ratio(each, whole):.2f}",
            f"{paired_ratio(each, pieces):.2f}",
        ]
        for side, each in seconds.items()
    ]
    print(table(["seconds", "median", "by read and copy", "by the same in pieces"], rows))
    print(f"convert, SHA-256 and writing to the disk included: {converting:.1f} s")
    before = in_a_child("nothing", folder)
    works = ("load", "load safetensors", "convert")
    peaks = {work: in_a_child(work, folder) - before for work in works}
    rows = [
        [work, f"{each / 1e6:,.0f}", f"{(each - total) / 1e6:+,.0f}"]
        for work, each in peaks.items()
    ]
    print(table(["peak of a fresh process, less its start", "MB", "beyond the weights, MB"], rows))
    figures = {
        "bytes": size, "weight_bytes": total, "seconds": seconds, "convert_seconds": converting,
        "peak_bytes_beyond_start": peaks,
    }  # fmt: skip
    write_json(json, figures)


if __name__ == "__main__":
    main()
