"""Compile every CUDA kernel for real GPUs, on a machine that has none.

Needs the extra ``cuda13`` (numba-cuda and NVIDIA's compiler libraries), and no GPU. Each kernel
goes the way that it goes when it is launched: Numba, LTO-IR, nvJitLink. It fails if a kernel does
not compile, if it spills registers to memory, if it takes more of them than it says, and, where
``nvdisasm`` is there, if one that declares wide loads reads shared memory by less than 128 bits, or
one that declares an instruction has none of it. A kernel that needs a later card is left out.

    python scripts/compile_kernels.py              all kernels, sm_75, sm_80 and sm_90
    python scripts/compile_kernels.py conv --sm 90 those with "conv" in their name, for one card
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import numpy as np

import tinydilate
import tinydilate.functional
from tinydilate.launching import CUDA_KERNELS, CudaKernel

CARDS = (75, 80, 90)


class Report(NamedTuple):
    """What nvJitLink says of a kernel, in bytes but for the registers; and its machine code."""

    registers: int
    spilled: int
    stack: int
    shared: int
    cubin: bytes


def compiled(kernel: CudaKernel, dtype: np.dtype, sm: int) -> Report:
    code = kernel.code_for(dtype, divmod(sm, 10), "ltoir")
    limit = kernel.options.get("max_registers")
    log, cubin = linked(code, sm, limit)
    return Report(
        registers=largest(r"Used (\d+) registers", log),
        spilled=largest(r"(\d+) bytes spill stores", log)
        + largest(r"(\d+) bytes spill loads", log),
        stack=largest(r"(\d+) bytes stack frame", log),
        shared=largest(r"(\d+) bytes smem", log),
        cubin=cubin,
    )


def linked(code: bytes, sm: int, limit: int | None) -> tuple[str, bytes]:
    from cuda.bindings import nvjitlink

    flags = [f"-arch=sm_{sm}", "-lto", "-verbose", "-O3"]
    flags += [f"-maxrregcount={limit}"] if limit else []
    handle = nvjitlink.create(len(flags), flags)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, code, len(code), "kernel")
        nvjitlink.complete(handle)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
    finally:
        nvjitlink.destroy(handle)
    return log.decode(errors="replace"), bytes(cubin)


def largest(pattern: str, log: str) -> int:
    return max((int(number) for number in re.findall(pattern, log)), default=0)


def disassembler() -> str | None:
    """nvdisasm: on the path, or where the wheel nvidia-cuda-nvdisasm puts it."""
    beside = sorted(Path(np.__file__).parent.parent.glob("nvidia/**/bin/nvdisasm"))
    return shutil.which("nvdisasm") or (str(beside[0]) if beside else None)


def machine_code(cubin: bytes, program: str) -> str:
    """A kernel's instructions, as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([program, "-c", path], capture_output=True, text=True, check=True)
    return text.stdout


def faults(kernel: CudaKernel, report: Report, program: str | None) -> list[str]:
    found = []
    if report.registers == 0:
        found.append("nvJitLink said nothing of its registers")
    if report.spilled or report.stack:
        found.append(f"{report.spilled} bytes spilled, {report.stack} bytes of stack")
    if report.registers > kernel.registers:
        found.append(f"{report.registers} registers, at most {kernel.registers} are declared")
    if program and (kernel.wide_loads or kernel.instruction):
        code = machine_code(report.cubin, program)
        if kernel.wide_loads and not re.search(r"LDS(\.U)?\.128", code):  # .U: sm_75
            found.append("no LDS.128, though it declares wide loads")
        if kernel.instruction not in code:
            found.append(f"no {kernel.instruction}, though it declares it")
    return found


def import_every_kernel() -> None:
    for page in iter_modules(tinydilate.functional.__path__, "tinydilate.functional."):
        import_module(page.name)
    for module in iter_modules(tinydilate.__path__, "tinydilate."):
        if module.name.rpartition(".")[2] in ("gpu_gemm", "optim"):
            import_module(module.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="", help="part of the kernels' names")
    parser.add_argument("--sm", type=int, nargs="+", default=CARDS, help="75 80 90, for example")
    arguments = parser.parse_args()
    try:
        from cuda.bindings import nvjitlink
    except ImportError as error:
        print(
            f"Expected numba-cuda with NVIDIA's compiler libraries; {error}. Install them: "
            f'{sys.executable} -m pip install ".[cuda13]" nvidia-cuda-nvdisasm'
        )
        return 2
    import_every_kernel()
    program = disassembler()
    print(f"nvJitLink {'.'.join(map(str, nvjitlink.version()))}, nvdisasm: {program or 'missing'}")
    failed = count = left_out = 0
    for kernel in CUDA_KERNELS:
        for dtype in kernel.dtypes if arguments.name in kernel.name else ():
            line: list[Any] = []
            for sm in arguments.sm:
                if divmod(sm, 10) < kernel.capability:
                    line.append("-")  # it cannot run there
                    left_out += 1
                    continue
                count += 1
                try:
                    report = compiled(kernel, dtype, sm)
                except Exception as error:
                    found = [f"{type(error).__name__}: {error}"]
                else:
                    line.append(report.registers)
                    found = faults(kernel, report, program)
                for fault in found:
                    failed += 1
                    print(f"FAILED {kernel.name} {dtype} sm_{sm}: {fault}")
            print(
                f"{kernel.name:<44} {dtype!s:<8} registers {' '.join(map(str, line))}", flush=True
            )
    return conclude(arguments.name, count, failed, left_out)


def conclude(name: str, count: int, failed: int, left_out: int) -> int:
    """Say what came of it; the exit status."""
    if not count and not left_out:
        print(f"Nothing was compiled: no kernel has {name!r} in its name.")
        return 2
    if not count:
        print(f"Nothing was compiled: all {left_out} (-) need a later card.")
        return 0
    print(f"{count - failed} passed, {failed} failed")
    if left_out:
        print(f"{left_out} left out (-): kernels that need a later card")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
