"""``ops``, ``warmup`` and ``doctor``: what is installed, and whether it works."""

from __future__ import annotations

import argparse
from typing import Any

from tinydilate.cli.common import FAILED, columns, command, show
from tinydilate.config import Config


def add(commands: Any) -> None:
    """The commands on the installation."""
    command(commands, "ops", _ops, "Show which kernel exists on which device")
    _add_warmup(
        command(commands, "warmup", _warmup, "Compile the kernels now rather than when needed")
    )
    command(commands, "doctor", _doctor, "Check this installation and say what to do")


_DEVICES = ("numpy", "cpu", "cuda", "meta")


def _ops(arguments: argparse.Namespace) -> int:
    import tinydilate.optim  # noqa: F401 - its kernels are part of the table
    from tinydilate.kernel import KERNELS

    pages: dict[str, list[Any]] = {}
    for kernel in KERNELS.values():
        pages.setdefault(kernel.page, []).append(kernel)
    value = {
        page: {kernel.name: sorted(kernel.implementations) for kernel in kernels}
        for page, kernels in pages.items()
    }

    def table() -> str:
        rows: list[tuple[str, ...]] = [("page", "kernel", *_DEVICES, "variants")]
        for page, kernels in pages.items():
            for kernel in kernels:
                has = kernel.implementations
                others = ", ".join(name for name in has if name not in _DEVICES)
                marks = ["yes" if device in has else "-" for device in _DEVICES]
                rows.append((page if kernel is kernels[0] else "", kernel.name, *marks, others))
        totals = [sum(d in k.implementations for k in KERNELS.values()) for d in _DEVICES]
        rows.append((f"{len(pages)} pages", f"{len(KERNELS)} kernels", *map(str, totals), ""))
        return columns(rows)

    show(value, arguments.json, table)
    return 0


# ---- warmup ----------------------------------------------------------------------------------


def _add_warmup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--again", action="store_true", help="even if they are compiled already (default: no)"
    )


def _warmup(arguments: argparse.Namespace) -> int:
    from tinydilate import second_process
    from tinydilate.compiling import cache_folder
    from tinydilate.kernel import KERNELS
    from tinydilate.train import tiny_steps
    from tinydilate.warmup import every_kernel, warm_up

    second_process.start(second_process.EVERYTHING)
    again = arguments.again
    seconds = warm_up("training-adam", lambda: tiny_steps(Config()), again=again)
    seconds += warm_up("all", every_kernel, again=again)
    folder = cache_folder()
    value = {
        "seconds": round(seconds, 3),
        "kernels": len(KERNELS),
        "folder": None if folder is None else str(folder),
    }

    def table() -> str:
        if folder is None:
            return "Kernels work, but there is no folder to keep them in; see tinydilate doctor."
        done = f"compiled in {seconds:.1f} s" if seconds else "compiled before"
        return f"{len(KERNELS)} kernels {done}; machine code in {folder}."

    show(value, arguments.json, table)
    return 0


# ---- doctor ----------------------------------------------------------------------------------


def _doctor(arguments: argparse.Namespace) -> int:
    from tinydilate.doctor import examine

    findings = examine()

    def table() -> str:
        rows = [("", "what", "found")]
        for finding in findings:
            rows.append((finding.mark, finding.what, finding.found))
        advice = [f"{f.what}: {f.next_step}" for f in findings if f.next_step]
        return "\n".join([columns(rows), *([""] if advice else []), *advice])

    show([finding._asdict() for finding in findings], arguments.json, table)
    return FAILED if any(finding.mark == "fail" for finding in findings) else 0
