"""What keeps this machine from computing on its GPU, and the one command that helps.

First come the facts: which cards CUDA's driver lets a process see, what `nvidia-smi` says, which
packages are installed, and, of NVIDIA's libraries that are not, whether Numba would find them in
the system. Each step then judges them, in
the order in which the trouble would show: the driver, the card, numba-cuda, NVIDIA's compiler
libraries, NumPy. Where nothing is in the way, a process of its own compiles a kernel of one element
and launches it.

A machine without a GPU is no patient: the report has one line then, which says so.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from tinydilate.device import DRIVER, driver_library
from tinydilate.launching import OLDEST


class Finding(NamedTuple):
    """One line of the doctor's report."""

    mark: str  # "ok"; "note": works, but could do more; "fail"
    what: str
    found: str
    next_step: str = ""


class Card(NamedTuple):
    """One GPU, as CUDA's driver names it."""

    name: str
    capability: tuple[int, int]


class Facts(NamedTuple):
    """What the steps judge; an empty string stands for what is missing."""

    simulated: bool = False
    cards: tuple[Card, ...] = ()  # that a process sees, in CUDA's order
    cuda_says: str = ""  # why it sees none
    visible: str | None = None  # CUDA_VISIBLE_DEVICES, if it is set
    smi: bool = False  # whether there is an nvidia-smi
    smi_says: str = ""  # its complaint, if it has one
    listed: tuple[str, ...] = ()  # names of the cards that it lists, seen or not
    driver: str = ""  # "580.65.06"
    numba_cuda: str = ""
    numpy: str = ""
    nvvm: str = ""  # makes LLVM's code into the GPU's
    nvjitlink: str = ""  # links it
    nvrtc: str = ""
    cudart: str = ""

    @property
    def toolkit(self) -> int:
        """Major version of NVIDIA's libraries here, or 0."""
        for found in (self.nvjitlink, self.nvvm, self.nvrtc, self.cudart):
            if found not in ("", SYSTEM):
                return int(found.partition(".")[0])
        return 0

    @property
    def extra(self) -> str:
        """The extra of tinydilate that fits the driver."""
        return "cuda13" if branch_of(self.driver) >= NEEDS[13] else "cuda12"


NONE_SEEN = "CUDA_ERROR_NO_DEVICE", "it sees none"  # with a driver that works
SYSTEM = "the system's"  # in place of a version: no wheel, but Numba finds the library
NEEDS = {13: 580, 12: 525}  # the first branch of drivers that runs each CUDA
PIP = f"{sys.executable} -m pip install"


def branch_of(driver: str) -> int:
    """``"580.65.06"`` -> 580."""
    found = re.match(r"\d+", driver)
    return int(found[0]) if found else 0


# ---- the facts -------------------------------------------------------------------------------


def look() -> Facts:
    """The facts of this machine."""
    smi = shutil.which("nvidia-smi")
    driver, listed, says = _ask(smi) if smi else ("", (), "")
    cards, speaks, cuda_says = _see()
    return Facts(
        simulated=os.environ.get("NUMBA_ENABLE_CUDASIM") == "1",
        cards=cards,
        cuda_says=cuda_says,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        smi=smi is not None,
        smi_says=says,
        listed=listed,
        driver=driver or _branch_that_speaks(speaks),
        numba_cuda=_installed("numba-cuda"),
        numpy=_installed("numpy"),
        nvvm=_library("nvvm", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12"),
        nvjitlink=_library("nvJitLink", "nvidia-nvjitlink", "nvidia-nvjitlink-cu12"),
        nvrtc=_library("nvrtc", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"),
        cudart=_library("cudart", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"),
    )


_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def _see() -> tuple[tuple[Card, ...], int, str]:
    """The cards that this process may use, the CUDA that their driver speaks, why there are none.

    Asked of the driver's library, as Numba asks it: nvidia-smi knows nothing of
    CUDA_VISIBLE_DEVICES, counts in another order, and is not in every container.
    """
    library = driver_library()
    if library is None:
        return (), 0, f"no {DRIVER}"
    count, version, text = ctypes.c_int(), ctypes.c_int(), ctypes.c_char_p()
    if code := library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        library.cuGetErrorName(code, ctypes.byref(text))
        return (), 0, (text.value or str(code).encode()).decode()
    library.cuDriverGetVersion(ctypes.byref(version))
    cards = tuple(_card(library, number) for number in range(count.value))
    return cards, version.value // 1000, "" if cards else NONE_SEEN[1]


def _card(library: ctypes.CDLL, number: int) -> Card:
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(handle), number)
    library.cuDeviceGetName(name, len(name), handle)
    library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle)
    return Card(name.value.decode(errors="replace"), (major.value, minor.value))


def _branch_that_speaks(cuda: int) -> str:
    """What is known of a driver where there is no nvidia-smi to ask for its version."""
    return f"{NEEDS[min(cuda, max(NEEDS))]} or later" if cuda >= min(NEEDS) else ""


def _library(name: str, *wheels: str) -> str:
    """Version of the wheel that has a library, or `SYSTEM`, or "" where there is none."""
    if version := _installed(*wheels):
        return version
    try:
        from cuda import pathfinder  # comes with numba-cuda, which looks for libraries by it

        pathfinder.load_nvidia_dynamic_lib(name)
    except Exception:  # no pathfinder, no library, or one that cannot be loaded
        return ""
    return SYSTEM


def _ask(smi: str) -> tuple[str, tuple[str, ...], str]:
    command = [smi, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", (), f"{type(error).__name__}"
    driver, names = read_answer(done.stdout) if done.returncode == 0 else ("", ())
    said = (done.stdout + done.stderr).strip().splitlines()
    return driver, names, "" if names else (said or ["no answer"])[0]


def read_answer(text: str) -> tuple[str, tuple[str, ...]]:
    """The driver, and the cards' names, out of nvidia-smi's lines ``580.65.06, NVIDIA H100``."""
    rows = [[part.strip() for part in line.split(",", 1)] for line in text.splitlines()]
    known = [row for row in rows if len(row) == 2 and branch_of(row[0])]
    return known[0][0] if known else "", tuple(name for _, name in known)


def _installed(*names: str) -> str:
    """Version of the first of these packages that is there."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


# ---- the steps -------------------------------------------------------------------------------


def examine() -> list[Finding]:
    """Every step, and the kernel of one element if nothing stands in its way."""
    facts = look()
    findings = judge(facts)
    if facts.cards and not facts.simulated and not findings[-1].next_step:
        findings.append(check_launch(try_a_kernel()))
    return findings


def judge(facts: Facts) -> list[Finding]:
    """What the facts come to: line by line, until one needs something done."""
    if facts.simulated:
        return [check_simulator(facts)]
    if not facts.cards:
        return [check_presence(facts)]
    findings = []
    for step in (check_card, check_driver, check_numba_cuda, check_libraries, check_numpy):
        findings.append(step(facts))
        if findings[-1].next_step:  # what comes after would only suffer from the same
            break
    return findings


def check_simulator(facts: Facts) -> Finding:
    """The simulator takes the GPU's place, whether there is one or not."""
    if not facts.cards:
        return Finding("ok", "GPU", "simulated (NUMBA_ENABLE_CUDASIM=1)")
    return Finding(
        "note", "GPU", f"simulated (NUMBA_ENABLE_CUDASIM=1), while {facts.cards[0].name} is idle",
        "The simulator runs every kernel in Python; take the GPU again: "
        "unset NUMBA_ENABLE_CUDASIM",
    )  # fmt: skip


def check_presence(facts: Facts) -> Finding:
    """No GPU is fine, or one that is hidden; a driver that finds none is worth a note."""
    if facts.listed and facts.visible is not None and facts.cuda_says in NONE_SEEN:
        return Finding(
            "ok", "GPU", f'{facts.listed[0]}, hidden by CUDA_VISIBLE_DEVICES="{facts.visible}"; '
            "everything runs on the processor",
        )  # fmt: skip
    if facts.listed:
        return Finding(
            "note", "GPU", f"{facts.listed[0]}, which this process may not use ({facts.cuda_says})",
            "The driver is installed, but its library does not answer, as in a container without "
            "its GPU; see what it says: nvidia-smi",
        )  # fmt: skip
    if not facts.smi:
        return Finding("ok", "GPU", "no NVIDIA GPU or no driver; everything runs on the processor")
    return Finding(
        "note", "GPU", f"nvidia-smi finds none ({facts.smi_says})",
        "The driver may have to be loaded, or the machine restarted; see what it says: nvidia-smi",
    )  # fmt: skip


def check_card(facts: Facts) -> Finding:
    """Kernels are compiled for compute capability 7.5 and later."""
    card = facts.cards[0]
    found = f"{card.name}, compute capability {card.capability[0]}.{card.capability[1]}"
    if len(facts.cards) > 1:
        found += f", the first of {len(facts.cards)}"
    if card.capability >= OLDEST:
        return Finding("ok", "GPU: card", found)
    # By the names that they were made visible by, or by CUDA's own numbers.
    names = facts.visible.split(",") if facts.visible else map(str, range(len(facts.cards)))
    known = zip(names, facts.cards, strict=False)
    newer = [name for name, other in known if other.capability >= OLDEST]
    if newer:
        return Finding(
            "note", "GPU: card", found,
            "Kernels need 7.5 (Turing, 2018) or later, which another card here has: "
            f"export CUDA_VISIBLE_DEVICES={newer[0]}",
        )  # fmt: skip
    return Finding(
        "note", "GPU: card", found,
        "Kernels need 7.5 (Turing, 2018) or later, so everything runs on the processor; hide the "
        "card from programs that ask: export CUDA_VISIBLE_DEVICES=-1",
    )  # fmt: skip


def check_driver(facts: Facts) -> Finding:
    """Old drivers run no CUDA that numba-cuda compiles for."""
    if branch_of(facts.driver) >= NEEDS[12]:
        return Finding("ok", "GPU: driver", facts.driver)
    return Finding(
        "note", "GPU: driver", f"{facts.driver}, older than R{NEEDS[12]}",
        "CUDA 12 needs a newer driver; on Ubuntu this lists those that fit, elsewhere see "
        "nvidia.com/drivers: ubuntu-drivers list",
    )  # fmt: skip


def check_numba_cuda(facts: Facts) -> Finding:
    """Without the package numba-cuda, Numba falls back to a target that it no longer keeps up."""
    if facts.numba_cuda:
        return Finding("ok", "GPU: numba-cuda", facts.numba_cuda)
    return Finding(
        "note", "GPU: numba-cuda", "missing",
        "Kernels are compiled by the package numba-cuda; install it with NVIDIA's libraries: "
        f'{PIP} "tinydilate[{facts.extra}]"',
    )  # fmt: skip


def check_libraries(facts: Facts) -> Finding:
    """Compiler and linker of one release, not too new for the driver.

    PyTorch's wheels ask for a release of their own, and pip then replaces some and not others.
    """
    parts = {
        "nvvm": facts.nvvm,
        "nvjitlink": facts.nvjitlink,
        "nvrtc": facts.nvrtc,
        "cudart": facts.cudart,
    }
    if set(parts.values()) <= {"", SYSTEM}:
        return Finding("ok", "GPU: libraries", "the system's; no wheels of NVIDIA's are installed")
    what, found = "GPU: libraries", ", ".join(f"{n} {v or 'missing'}" for n, v in parts.items())
    if not all(parts.values()):
        return Finding(
            "fail", what, found,
            "numba-cuda needs all four, of one release: "
            f'{PIP} "tinydilate[{facts.extra}]"',
        )  # fmt: skip
    needed = NEEDS.get(facts.toolkit, NEEDS[13])
    if branch_of(facts.driver) < needed:
        return Finding(
            "fail", what, f"{found}; driver {facts.driver}",
            f"CUDA {facts.toolkit} needs a driver of R{needed} or later; with this one take "
            f'CUDA 12, in a fresh environment: {PIP} "tinydilate[cuda12]"',
        )  # fmt: skip
    if SYSTEM in (facts.nvjitlink, facts.nvvm):
        return Finding("ok", what, found)  # whose version nobody knows; the kernel below shows
    linker, compiler = release(facts.nvjitlink), release(facts.nvvm)
    if linker[0] != compiler[0] or linker < compiler:
        return Finding(
            "fail", what, found,
            "The linker (nvjitlink) cannot read what a newer compiler (nvvm) makes; bring all to "
            f"one release: {one_release(linker)}",
        )  # fmt: skip
    return Finding("ok", what, found)


def one_release(wanted: tuple[int, int]) -> str:
    """The command that brings all of NVIDIA's libraries to one release."""
    compiler = "nvcc" if wanted[0] == 12 else "nvvm"  # where CUDA keeps it
    parts = f"cudart,{compiler},nvrtc,nvjitlink,cccl"
    return f'{PIP} "cuda-toolkit[{parts}]=={wanted[0]}.{wanted[1]}.*"'


def release(text: str) -> tuple[int, int]:
    """``"13.0.88"`` -> (13, 0)."""
    major, minor = [*text.split("."), "0"][:2]
    return int(major), int(minor)


def check_numpy(facts: Facts) -> Finding:
    """NumPy 2.5 dropped a name that numba-cuda asks for; `device.numba_cuda` lends it."""
    if release(facts.numpy) < (2, 5):
        return Finding("ok", "GPU: NumPy", facts.numpy)
    return Finding("ok", "GPU: NumPy", f"{facts.numpy}, lent the row_stack that numba-cuda expects")


# ---- a kernel of one element -----------------------------------------------------------------

_TRIAL = """
from tinydilate import device, tensor
from tinydilate import functional as F
cuda = device.numba_cuda()
print("implementation", getattr(cuda, "implementation", "simulated"))
print("result", F.relu(tensor([3.0]).to("cuda")).item())
"""


def try_a_kernel() -> str:
    """What a process that compiles and launches a kernel prints, its last complaint included."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _TRIAL],
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "exit no answer within three minutes"
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    # Symptoms are looked for in all of it; the last line is what is shown.
    return f"{done.stdout}\nexit {done.returncode}\n" + "\n".join(lines[-40:])


class Symptom(NamedTuple):
    """Words that an error bears, and what they mean."""

    words: str
    sentence: str
    command: str


SYMPTOMS = (
    Symptom(
        r"row_stack|module 'numpy' has no attribute",
        "numba-cuda asks NumPy for a name that NumPy 2.5 dropped; take the one before",
        f'{PIP} "numpy<2.5"',
    ),
    Symptom(
        r"OUTDATED_LIBRARY",
        "The linker is older than the compiler, as when another package brought its own; bring "
        "all to one release",
        one_release((13, 0)),
    ),
    Symptom(
        r"UNSUPPORTED_PTX_VERSION|Unsupported \.version|INSUFFICIENT_DRIVER",
        "NVIDIA's libraries are newer than the driver; take those of CUDA 12, in a fresh "
        "environment",
        f'{PIP} "tinydilate[cuda12]"',
    ),
    Symptom(
        r"DynamicLibNotFoundError|NvvmSupportError|libNVVM|libnvvm|libcudart|libnvrtc",
        "A library of NVIDIA's cannot be found; install them all",
        f'{PIP} "tinydilate[cuda13]"',
    ),
    Symptom(
        r"package numba-cuda is missing",
        "Numba's built-in target answers in place of numba-cuda; install it where Python looks",
        f'{PIP} --force-reinstall --no-deps "numba-cuda>=0.30.4,<0.31"',
    ),
    Symptom(
        r"CCSupportError|UnsupportedComputeCapability|NO_BINARY_FOR_GPU",
        "The card is older than NVIDIA's libraries still compile for; take those of CUDA 12, in a "
        "fresh environment",
        f'{PIP} "tinydilate[cuda12]"',
    ),
    Symptom(
        r"OUT_OF_MEMORY|no room for them",
        "Other programs hold the GPU's memory; see which",
        "nvidia-smi",
    ),
    Symptom(
        r"driver library cannot be found|CUDA_ERROR_NO_DEVICE|found no GPU or no driver",
        "The driver is installed, but this process may not use it, as in a container without its "
        "GPU; see what it says",
        "nvidia-smi",
    ),
)


def check_launch(printed: str) -> Finding:
    """Judge what the trial printed."""
    what = "GPU: a kernel"
    if re.search(r"^implementation Built-in", printed, re.MULTILINE):
        printed += "\nthe package numba-cuda is missing"
    elif re.search(r"^result 3\.0$", printed, re.MULTILINE):
        return Finding("ok", what, "one element, compiled and launched, came back right")
    elif found := re.search(r"^result (.*)$", printed, re.MULTILINE):
        return Finding(
            "fail", what, f"computed {found[1]} for 3.0",
            "The GPU computes wrongly; compare with the simulator: NUMBA_ENABLE_CUDASIM=1 "
            "tinydilate doctor",
        )  # fmt: skip
    last = printed.strip().splitlines()[-1] if printed.strip() else "nothing was printed"
    for symptom in SYMPTOMS:
        if re.search(symptom.words, printed):
            return Finding("fail", what, last, f"{symptom.sentence}: {symptom.command}")
    return Finding(
        "fail", what, last,
        "Nobody has met this yet; report the line, and what this prints: "
        "TINYDILATE_CUDA_DEBUG=1 tinydilate doctor --json",
    )  # fmt: skip


# ---- for reports -----------------------------------------------------------------------------


def describe() -> dict[str, object]:
    """What figures and test results of a GPU are worth nothing without: device and versions."""
    facts = look()
    packages = ("numpy", "numba", "numba-cuda", "cuda-bindings", "torch", "cupy-cuda13x")
    return {
        "device": "Numba's simulator" if facts.simulated else [card.name for card in facts.cards],
        "compute_capability": [".".join(map(str, card.capability)) for card in facts.cards],
        "driver": facts.driver,
        "libraries": {
            "nvvm": facts.nvvm,
            "nvjitlink": facts.nvjitlink,
            "nvrtc": facts.nvrtc,
            "cudart": facts.cudart,
        },
        "packages": {name: _installed(name) for name in packages if _installed(name)},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
    }
