"""How long until something happens: import, --help, and the first finished step, cold and warm.

Every figure is the wall time of a fresh Python process, interpreter start included: from the
command to the end of the process, or to the line in which it says that its step is finished.

    python benchmarks/startup.py --json startup.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import median, parser, table, write_json

STEP = """
import numpy as np
import tinydilate as td
from tinydilate import functional as F, models, nn, optim
td.manual_seed(0)
net = models.small_front_end(11)
images = np.random.default_rng(0).normal(size=(2, 1, 64, 64)).astype(np.float32)
labels = np.zeros((2, 64, 64), np.int64)
optimizer = optim.Adam(net.parameters(), lr=1e-3)
logits = F.interpolate(net(images), size=(64, 64), mode="bilinear", align_corners=False)
loss = F.cross_entropy(logits, labels, ignore_index=255)
loss.backward()
optimizer.step()
print("finished", flush=True)
"""


def seconds(command: list[str], to_line: bool = False, **environment: str) -> float:
    """Wall time of a process to its end, or to the first line that it prints; it must succeed."""
    # Byte code is kept, as it is wherever a package is installed.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **environment}
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        process.stdout.readline() if to_line else process.stdout.read()
        taken = time.perf_counter() - begin
        process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return taken


def main() -> None:
    """Time the starts and print them."""
    options = parser(__doc__.splitlines()[0]).parse_args()
    python = sys.executable
    threads = {"NUMBA_NUM_THREADS": str(options.threads)}
    figures: dict[str, float] = {}
    commands = {
        "python -c pass": [python, "-c", "pass"],
        "import numpy": [python, "-c", "import numpy"],
        "import tinydilate": [python, "-c", "import tinydilate"],
        "tinydilate --help": [python, "-m", "tinydilate", "--help"],
    }
    seconds(commands["tinydilate --help"])  # writes the byte code
    for name, command in commands.items():
        figures[name] = median([seconds(command) for _ in range(options.repeats)])
    with tempfile.TemporaryDirectory() as folder:
        step = [python, "-c", STEP]
        cache = dict(threads)
        for setting, name in (("off", ", without a second process"), ("on", "")):
            cache["TINYDILATE_CACHE"] = str(Path(folder) / setting)
            cache["TINYDILATE_SECOND_PROCESS"] = setting
            figures["first training step, cold cache" + name] = seconds(step, True, **cache)
        warm = range(max(3, options.repeats // 3))
        for name, to_line in (("", True), (", to the end of the process", False)):
            times = [seconds(step, to_line, **cache) for _ in warm]
            figures["first training step, warm cache" + name] = median(times)
    print(table(["start", "seconds"], [[name, f"{s:.2f}"] for name, s in figures.items()]))
    write_json(options.json, {"seconds": figures})


if __name__ == "__main__":
    main()
