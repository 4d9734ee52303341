"""Run the tests of the CUDA kernels in Numba's simulator: NUMBA_ENABLE_CUDASIM=1 is to be set.

Says so, and stops, where no kernel has a CUDA twin: an empty test run would look like a green one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

import tinydilate.functional
from tinydilate.kernel import KERNELS


def main() -> int:
    if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
        print("Expected NUMBA_ENABLE_CUDASIM=1 in the environment. Run `make simulator`.")
        return 2
    for page in iter_modules(tinydilate.functional.__path__, "tinydilate.functional."):
        import_module(page.name)
    twins = [name for name, kernel in KERNELS.items() if "cuda" in kernel.implementations]
    if not twins:
        print(f"None of the {len(KERNELS)} kernels has a CUDA twin yet: nothing was simulated.")
        return 0
    print(f"{len(twins)} of {len(KERNELS)} kernels have a CUDA twin: {', '.join(sorted(twins))}")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *sys.argv[1:]]
    return subprocess.call(command)


if __name__ == "__main__":
    raise SystemExit(main())
