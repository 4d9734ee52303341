"""The doctor's look at the GPU: every trap is found, and its sentence and command are these."""

import subprocess
import types

import pytest

from tinydilate import device, doctor, gpu_checkup
from tinydilate.gpu_checkup import PIP, Card, Facts, check_launch, judge, look, read_answer

H100 = Card("NVIDIA H100 80GB HBM3", (9, 0))
GOOD = Facts(
    smi=True,
    listed=(H100.name,),
    driver="580.65.06",
    cards=(H100,),
    numba_cuda="0.30.4",
    numpy="2.4.6",
    nvvm="13.0.88",
    nvjitlink="13.0.88",
    nvrtc="13.0.88",
    cudart="13.0.96",
)
OLD = Card("Tesla P100", (6, 0))
CUDA12 = {"nvvm": "12.9.86", "nvjitlink": "12.9.86", "nvrtc": "12.9.86", "cudart": "12.9.79"}


def test_a_machine_where_nothing_is_amiss():
    assert [(f.mark, f.what, f.found, f.next_step) for f in judge(GOOD)] == [
        ("ok", "GPU: card", "NVIDIA H100 80GB HBM3, compute capability 9.0", ""),
        ("ok", "GPU: driver", "580.65.06", ""),
        ("ok", "GPU: numba-cuda", "0.30.4", ""),
        ("ok", "GPU: libraries", LIBRARIES, ""),
        ("ok", "GPU: NumPy", "2.4.6", ""),
    ]


LIBRARIES = "nvvm 13.0.88, nvjitlink 13.0.88, nvrtc 13.0.88, cudart 13.0.96"
PINNED = f'{PIP} "cuda-toolkit[cudart,nvvm,nvrtc,nvjitlink,cccl]==13.0.*"'


@pytest.mark.parametrize(
    ("changes", "mark", "what", "found", "advice"),
    [
        (
            {"smi": False, "listed": (), "cards": (), "driver": ""},
            *("ok", "GPU", "no NVIDIA GPU or no driver; everything runs on the processor", ""),
        ),
        (
            {"cards": (), "listed": (), "smi_says": "No devices were found"},
            *("note", "GPU", "nvidia-smi finds none (No devices were found)"),
            "The driver may have to be loaded, or the machine restarted; see what it says: "
            "nvidia-smi",
        ),
        (
            {"cards": (), "visible": "-1", "cuda_says": "CUDA_ERROR_NO_DEVICE"},
            *("ok", "GPU"),
            'NVIDIA H100 80GB HBM3, hidden by CUDA_VISIBLE_DEVICES="-1"; everything runs on the '
            "processor",
            "",
        ),
        (
            {"cards": (), "visible": "", "cuda_says": "it sees none"},
            *("ok", "GPU"),
            'NVIDIA H100 80GB HBM3, hidden by CUDA_VISIBLE_DEVICES=""; everything runs on the '
            "processor",
            "",
        ),
        (
            {"cards": (), "visible": "0", "cuda_says": "CUDA_ERROR_SYSTEM_NOT_READY"},
            *("note", "GPU"),
            "NVIDIA H100 80GB HBM3, which this process may not use (CUDA_ERROR_SYSTEM_NOT_READY)",
            "The driver is installed, but its library does not answer, as in a container without "
            "its GPU; see what it says: nvidia-smi",
        ),
        (
            {"cards": (), "cuda_says": "no libcuda.so.1"},
            *("note", "GPU"),
            "NVIDIA H100 80GB HBM3, which this process may not use (no libcuda.so.1)",
            "The driver is installed, but its library does not answer, as in a container without "
            "its GPU; see what it says: nvidia-smi",
        ),
        (
            {"simulated": True, "cards": ()},
            *("ok", "GPU", "simulated (NUMBA_ENABLE_CUDASIM=1)", ""),
        ),
        (
            {"simulated": True},
            *("note", "GPU"),
            "simulated (NUMBA_ENABLE_CUDASIM=1), while NVIDIA H100 80GB HBM3 is idle",
            "The simulator runs every kernel in Python; take the GPU again: "
            "unset NUMBA_ENABLE_CUDASIM",
        ),
        (
            {"cards": (OLD,)},
            *("note", "GPU: card", "Tesla P100, compute capability 6.0"),
            "Kernels need 7.5 (Turing, 2018) or later, so everything runs on the processor; hide "
            "the card from programs that ask: export CUDA_VISIBLE_DEVICES=-1",
        ),
        (
            {"cards": (OLD, H100)},
            *("note", "GPU: card", "Tesla P100, compute capability 6.0, the first of 2"),
            "Kernels need 7.5 (Turing, 2018) or later, which another card here has: "
            "export CUDA_VISIBLE_DEVICES=1",
        ),
        (
            {"cards": (OLD, H100), "visible": "4,GPU-8932"},
            *("note", "GPU: card", "Tesla P100, compute capability 6.0, the first of 2"),
            "Kernels need 7.5 (Turing, 2018) or later, which another card here has: "
            "export CUDA_VISIBLE_DEVICES=GPU-8932",
        ),
        (
            {"driver": "470.82.01"},
            *("note", "GPU: driver", "470.82.01, older than R525"),
            "CUDA 12 needs a newer driver; on Ubuntu this lists those that fit, elsewhere see "
            "nvidia.com/drivers: ubuntu-drivers list",
        ),
        (
            {"numba_cuda": ""},
            *("note", "GPU: numba-cuda", "missing"),
            "Kernels are compiled by the package numba-cuda; install it with NVIDIA's libraries: "
            f'{PIP} "tinydilate[cuda13]"',
        ),
        (
            {"numba_cuda": "", "driver": "570.10"},
            *("note", "GPU: numba-cuda", "missing"),
            "Kernels are compiled by the package numba-cuda; install it with NVIDIA's libraries: "
            f'{PIP} "tinydilate[cuda12]"',
        ),
        (
            {"nvvm": "", "nvrtc": ""},
            *("fail", "GPU: libraries"),
            "nvvm missing, nvjitlink 13.0.88, nvrtc missing, cudart 13.0.96",
            f'numba-cuda needs all four, of one release: {PIP} "tinydilate[cuda13]"',
        ),
        (
            {"nvvm": "13.5.37"},
            *("fail", "GPU: libraries", LIBRARIES.replace("nvvm 13.0.88", "nvvm 13.5.37")),
            "The linker (nvjitlink) cannot read what a newer compiler (nvvm) makes; bring all to "
            f"one release: {PINNED}",
        ),
        (
            {**CUDA12, "nvjitlink": "12.6.85"},
            *("fail", "GPU: libraries"),
            "nvvm 12.9.86, nvjitlink 12.6.85, nvrtc 12.9.86, cudart 12.9.79",
            "The linker (nvjitlink) cannot read what a newer compiler (nvvm) makes; bring all to "
            f'one release: {PIP} "cuda-toolkit[cudart,nvcc,nvrtc,nvjitlink,cccl]==12.6.*"',
        ),
        (
            {"driver": "570.86.10"},
            *("fail", "GPU: libraries", f"{LIBRARIES}; driver 570.86.10"),
            "CUDA 13 needs a driver of R580 or later; with this one take CUDA 12, in a fresh "
            f'environment: {PIP} "tinydilate[cuda12]"',
        ),
        (
            {"driver": "570.86.10", **CUDA12},
            *("ok", "GPU: NumPy", "2.4.6", ""),
        ),
        (
            {"nvvm": "", "nvjitlink": "", "nvrtc": "", "cudart": "", "numpy": "2.5.1"},
            *("ok", "GPU: NumPy", "2.5.1, lent the row_stack that numba-cuda expects", ""),
        ),
    ],
)
def test_each_trap_is_found(changes, mark, what, found, advice):
    findings = judge(GOOD._replace(**changes))
    assert findings[-1] == (mark, what, found, advice)
    assert all(f.mark == "ok" and not f.next_step for f in findings[:-1]), "it is the first"


RAN = "implementation NVIDIA\n"


@pytest.mark.parametrize(
    ("printed", "mark", "found", "advice"),
    [
        (
            RAN + "result 3.0\n",
            *("ok", "one element, compiled and launched, came back right", ""),
        ),
        (
            RAN + "result 0.0\n",
            *("fail", "computed 0.0 for 3.0"),
            "The GPU computes wrongly; compare with the simulator: NUMBA_ENABLE_CUDASIM=1 "
            "tinydilate doctor",
        ),
        (
            "\nexit 1\nnvJitLinkError: ERROR_OUTDATED_LIBRARY (14)",
            *("fail", "nvJitLinkError: ERROR_OUTDATED_LIBRARY (14)"),
            "The linker is older than the compiler, as when another package brought its own; "
            f"bring all to one release: {PINNED}",
        ),
        (
            "\nexit 1\nAttributeError: module 'numpy' has no attribute 'row_stack'",
            *("fail", "AttributeError: module 'numpy' has no attribute 'row_stack'"),
            "numba-cuda asks NumPy for a name that NumPy 2.5 dropped; take the one before: "
            f'{PIP} "numpy<2.5"',
        ),
        (
            RAN + "exit 1\nLinkerError: CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            *("fail", "LinkerError: CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
            "NVIDIA's libraries are newer than the driver; take those of CUDA 12, in a fresh "
            f'environment: {PIP} "tinydilate[cuda12]"',
        ),
        (
            "\nexit 1\nDynamicLibNotFoundError: Failure finding libcudart.so: looked everywhere",
            *("fail", "DynamicLibNotFoundError: Failure finding libcudart.so: looked everywhere"),
            f'A library of NVIDIA\'s cannot be found; install them all: {PIP} "tinydilate[cuda13]"',
        ),
        (
            "implementation Built-in\nexit 1\nCudaSupportError: no good",
            *("fail", "the package numba-cuda is missing"),
            "Numba's built-in target answers in place of numba-cuda; install it where Python "
            f'looks: {PIP} --force-reinstall --no-deps "numba-cuda>=0.30.4,<0.31"',
        ),
        (
            RAN + "exit 1\nCCSupportError: GPU compute capability 7.0 is not supported",
            *("fail", "CCSupportError: GPU compute capability 7.0 is not supported"),
            "The card is older than NVIDIA's libraries still compile for; take those of CUDA 12, "
            f'in a fresh environment: {PIP} "tinydilate[cuda12]"',
        ),
        (
            RAN + "exit 1\nDeviceError: expected 0.5 MiB; the GPU has no room for them.",
            *("fail", "DeviceError: expected 0.5 MiB; the GPU has no room for them."),
            "Other programs hold the GPU's memory; see which: nvidia-smi",
        ),
        (
            RAN + "exit 1\nDeviceError: numba-cuda found no GPU or no driver (CUDA_ERROR_NO_DEVICE",
            *("fail", "DeviceError: numba-cuda found no GPU or no driver (CUDA_ERROR_NO_DEVICE"),
            "The driver is installed, but this process may not use it, as in a container without "
            "its GPU; see what it says: nvidia-smi",
        ),
        (
            "exit no answer within three minutes",
            *("fail", "exit no answer within three minutes"),
            "Nobody has met this yet; report the line, and what this prints: "
            "TINYDILATE_CUDA_DEBUG=1 tinydilate doctor --json",
        ),
    ],
)
def test_each_failure_of_the_first_kernel_is_explained(printed, mark, found, advice):
    assert check_launch(printed) == (mark, "GPU: a kernel", found, advice)


def test_what_device_py_says_is_recognised():
    """The sentences of the two modules go together."""
    text = device._out_of_memory.__code__.co_consts
    assert "no room for them" in " ".join(part for part in text if isinstance(part, str))
    assert "package numba-cuda is missing" in check_launch("implementation Built-in").found


def test_the_answer_of_nvidia_smi_is_read():
    text = "580.65.06, NVIDIA H100 80GB HBM3\n580.65.06, Tesla T4, with a comma\n"
    assert read_answer(text) == ("580.65.06", (H100.name, "Tesla T4, with a comma"))
    assert read_answer("No devices were found\n") == ("", ())
    assert read_answer("Unable to determine the device, whatever\n") == ("", ())
    assert read_answer("") == ("", ())


class Library:
    """CUDA's driver as far as it is asked: it has these cards, or answers with an error."""

    def __init__(self, *cards, speaks=13000, code=0):
        self.cards, self.speaks, self.cuInit = cards, speaks, lambda flags: code

    def cuGetErrorName(self, code, name):
        name._obj.value = b"CUDA_ERROR_NO_DEVICE"

    def cuDriverGetVersion(self, version):
        version._obj.value = self.speaks

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.cards)

    def cuDeviceGet(self, handle, number):
        handle._obj.value = 7 + number  # a handle is no number

    def cuDeviceGetName(self, name, size, handle):
        assert size == 256
        name.value = self.cards[handle.value - 7].name.encode()

    def cuDeviceGetAttribute(self, value, attribute, handle):
        value._obj.value = self.cards[handle.value - 7].capability[{75: 0, 76: 1}[attribute]]


@pytest.mark.parametrize(
    ("library", "seen", "driver", "says"),
    [
        (Library(H100, OLD), (H100, OLD), "580 or later", ""),
        (Library(OLD, speaks=12080), (OLD,), "525 or later", ""),
        (Library(OLD, speaks=11040), (OLD,), "", ""),
        (Library(H100, speaks=14020), (H100,), "580 or later", ""),
        (Library(H100, code=100), (), "", "CUDA_ERROR_NO_DEVICE"),
        (Library(), (), "580 or later", "it sees none"),
        (None, (), "", f"no {device.DRIVER}"),
    ],
)
def test_the_cards_are_those_that_cuda_sees(monkeypatch, library, seen, driver, says):
    monkeypatch.setattr(gpu_checkup.shutil, "which", lambda _: None)
    monkeypatch.setattr(gpu_checkup, "driver_library", lambda: library)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    facts = look()
    assert (facts.cards, facts.driver, facts.cuda_says) == (seen, driver, says)
    assert (facts.visible, facts.smi, facts.listed) == ("2,0", False, ())


@pytest.mark.parametrize(
    ("program", "code", "answer", "expected"),
    [
        (None, 0, "", ("", (), "")),
        ("nvidia-smi", 0, f"580.65.06, {H100.name}\n", ("580.65.06", (H100.name,), "")),
        ("nvidia-smi", 9, "Failed to initialize NVML\n", ("", (), "Failed to initialize NVML")),
    ],
)
def test_the_facts_are_looked_up(monkeypatch, program, code, answer, expected):
    done = types.SimpleNamespace(returncode=code, stdout=answer, stderr="")
    monkeypatch.setattr(gpu_checkup.shutil, "which", lambda _: program)
    monkeypatch.setattr(gpu_checkup, "_see", lambda: ((), 0, ""))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    facts = look()
    assert (facts.driver, facts.listed, facts.smi_says) == expected
    assert facts.smi == (program is not None)
    assert facts.simulated
    assert facts.numpy


def test_a_driver_that_does_not_answer(monkeypatch):
    def run(*_, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", options["timeout"])

    monkeypatch.setattr(gpu_checkup.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(gpu_checkup, "_see", lambda: ((), 0, ""))
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    assert judge(look())[0].found == "nvidia-smi finds none (TimeoutExpired)"
    assert gpu_checkup.try_a_kernel() == "exit no answer within three minutes"


@pytest.mark.parametrize(("facts", "launched"), [(GOOD, True), (GOOD._replace(nvvm=""), False)])
def test_a_kernel_is_tried_where_nothing_stands_in_its_way(monkeypatch, facts, launched):
    monkeypatch.setattr(gpu_checkup, "look", lambda: facts)
    monkeypatch.setattr(gpu_checkup, "try_a_kernel", lambda: RAN + "result 3.0\n")
    findings = doctor._gpu("GPU")
    assert (findings[-1].what == "GPU: a kernel") == launched


@pytest.mark.gpu
def test_the_kernel_is_tried_in_earnest():
    """On a GPU, or in the simulator, whose `implementation` is its own."""
    finding = check_launch(gpu_checkup.try_a_kernel().replace("Built-in", "simulated"))
    assert finding.mark == "ok"
