"""Arrays on the GPU: the pool, the errors, and what needs a GPU or its simulator."""

from __future__ import annotations  # the signatures of kernels are read as they are written

import copy
import ctypes
import gc
import re
import runpy
import struct
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from guarded_cuda import guarded

import tinydilate
import tinydilate.functional as F
from tinydilate import device, dlpack, gpu_gemm, gpu_winograd, kernel, launching, nn, tensor
from tinydilate.device import Array, CudaArray, cover
from tinydilate.errors import DeviceError, DtypeError, KernelError, ShapeError
from tinydilate.kernel import cuda
from tinydilate.window import Window

# ---- without a GPU ---------------------------------------------------------------------------


class FakeDriver:
    """The driver as far as the pool needs it.

    It has ``room`` bytes; ``made`` are the sizes that were asked for, ``freed`` the addresses that
    came back.
    """

    def __init__(self):
        self.room, self.made, self.freed, self.code = 2**40, [], [], "CUDA_ERROR_OUT_OF_MEMORY"

    def call(self, name, number):
        if name == "cuMemFree":
            self.freed.append(number)
            return None
        assert name == "cuMemAlloc"
        if number > self.room:
            raise device.DriverError(name, self.code)
        self.made.append(number)
        return 2**20 * len(self.made)


@pytest.fixture
def card(monkeypatch):
    fake = FakeDriver()
    monkeypatch.setattr(device, "SIMULATED", False)
    monkeypatch.setattr(device, "driver", lambda: fake)
    monkeypatch.setattr(device, "_pool", device._CudaPool())
    monkeypatch.setattr(device, "card", lambda: device.Card("fake", (9, 0), 1, 2**34))
    return fake


def test_memory_is_used_again(card):
    first = device.empty((300, 4), np.float32)
    line = first.flat
    del first
    again = device.empty((1200,), np.float32)
    assert again.flat is line, "the same numbers in the same place, found and not made"
    assert card.made == [5120]
    view, other = again.reshape(2, -1), device.empty((1200,), np.float32)
    assert view.shape == (2, 600)
    assert view.base is again
    del again
    assert device.empty((1200,), np.float32).flat is not view.flat, "a view holds the memory"
    assert device.cuda_statistics().in_use == 2 * 5120
    del view, other
    assert device.cuda_statistics() == (0, 3 * 5120, 3 * 5120, 3)
    assert card.freed == []
    device.cuda_empty_cache()
    assert device.cuda_statistics() == (0, 0, 0, 3)
    assert sorted(card.freed) == [2**20, 2**21, 3 * 2**20]


def test_memory_in_a_cycle_comes_back_whole(card):
    class Node:
        pass

    node = Node()
    node.itself, node.array = node, device.empty((1200,), np.float32)
    place = node.array.flat.address
    del node
    gc.collect()
    assert device.cuda_statistics().held == 5120
    assert card.freed == [], "it waits in the pool, so the driver must not have it"
    assert device.empty((1200,), np.float32).flat.address == place


def test_another_type_in_the_same_memory(card):
    whole = device.empty((256,), np.float32)
    place = whole.flat.address
    del whole
    again = device.empty((128,), np.float64)
    assert again.flat.dtype == np.float64
    assert (again.flat.size, again.flat.address) == (128, place)
    part = again.flat[8:100]
    assert (part.size, part.address) == (92, place + 64)
    assert struct.unpack("<7Q", part.words) == (0, 0, 92, 8, place + 64, 92, 8)
    assert len(card.made) == 1


def test_a_block_that_held_many_sizes_forgets_the_first(card):
    for count in range(1, 129):  # all of them in one block, of the least size
        device.empty((count,), np.float32)
    assert card.made == [512]
    for blocks in device._pool.waiting.values():
        for memory in blocks:
            assert len(memory.lines) <= 32


class SeveralCards(FakeDriver):
    """Two cards: our queue is on the first, and memory from 2**40 on is the second's.

    The second is what this thread has made current since.
    """

    card = 0
    synchronized = 0

    bindings = types.SimpleNamespace(
        CUpointer_attribute=types.SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9)
    )

    def call(self, name, *arguments):
        if name == "cuCtxGetDevice":
            return 1
        if name == "cuStreamSynchronize":
            SeveralCards.synchronized += 1
            return None
        if name == "cuPointerGetAttribute":
            assert arguments[0] == 9
            return int(arguments[1] >= 2**40)
        return super().call(name, *arguments)


def test_an_array_on_another_card_is_refused(card, monkeypatch):
    monkeypatch.setattr(device, "driver", SeveralCards)
    monkeypatch.setattr(device, "check_device", lambda name: name)
    text = (
        "expected an array on the GPU that computes here, number 0; got one on number 1. Copy it "
        "there first (x.to('cuda:0')), or make the other one the first: CUDA_VISIBLE_DEVICES=1 "
        "before Python starts."
    )
    for place in (2**20, 2**40):
        there = Foreign(shape=(2,), typestr="<f4", data=(place, False), version=3, stream=7)
        monkeypatch.setattr(SeveralCards, "synchronized", 0)
        if place < 2**40:
            assert device.adopt(there).flat.address == place
        else:
            with pytest.raises(DeviceError, match="^" + re.escape(text) + "$"):
                device.adopt(there)
        assert SeveralCards.synchronized == (place < 2**40), "a queue of our card, and no other"


class Bindings:
    """The driver's functions: ``seen`` are those that were called, and on which card."""

    def __init__(self, current):
        self.current, self.seen = current, []

    def cuCtxGetCurrent(self):
        return 0, len(self.current)

    def cuCtxPushCurrent(self, card):
        self.current.append(card)
        return (0,)

    def cuCtxPopCurrent(self):
        return 0, self.current.pop()

    def __getattr__(self, name):
        def call(*arguments):
            self.seen.append((name, self.current[-1]))
            return (0,) if name == "cuLaunchKernel" else (0, name)

        return call


def driver_at(home, current, several=True):
    """Our driver on card ``home``, in a thread whose ``current`` cards are these."""
    made = object.__new__(device._Driver)
    made.context = types.SimpleNamespace(handle=home)
    made.bindings, made.several = Bindings(current), several
    made.queue, made.here = "queue", threading.local()
    return made


@pytest.mark.parametrize("current", [[1], []], ids=["PyTorch is on card 1", "a new thread"])
def test_all_is_asked_of_the_card_of_our_queue(current):
    fake = driver_at(0, current)
    before = current[:] or [0]
    assert fake.load(b"code", "entry") == ("cuModuleGetFunction", "cuModuleLoadData")
    assert fake.call("cuMemAlloc", 512) == "cuMemAlloc"
    fake.launch("function", (1, 1, 1, 32, 1, 1, 0), 0)
    asked = ["cuModuleLoadData", "cuModuleGetFunction", "cuMemAlloc", "cuLaunchKernel"]
    assert fake.bindings.seen == [(name, 0) for name in asked]
    assert current == before, "and the thread is left as it was, if it was anywhere"
    with pytest.raises(KeyboardInterrupt), fake.at_home():
        raise KeyboardInterrupt
    assert current == before


def test_a_context_that_cannot_be_entered_is_not_left():
    current = ["another library's"]
    fake = driver_at(0, current)
    code = types.SimpleNamespace(name="CUDA_ERROR_INVALID_CONTEXT")
    fake.bindings.cuCtxPushCurrent = lambda card: (code,)
    with pytest.raises(device.DriverError, match=r"^cuCtxPushCurrent: CUDA_ERROR_INVALID_CONTEXT$"):
        fake.call("cuMemAlloc", 512)
    assert current == ["another library's"]


def test_where_there_is_one_card_a_launch_changes_nothing():
    current = [0]
    fake = driver_at(0, current, several=False)
    fake.bindings.cuCtxPushCurrent = lambda card: pytest.fail("a launch has no time for that")
    fake.launch("function", (1, 1, 1, 32, 1, 1, 0), 0)
    assert fake.bindings.seen == [("cuLaunchKernel", 0)]


def test_a_failure_of_an_earlier_kernel_is_not_the_next_launchs():
    fake = driver_at(0, [0])
    code = types.SimpleNamespace(name="CUDA_ERROR_ILLEGAL_ADDRESS")
    fake.bindings.cuLaunchKernel = fake.bindings.cuMemAlloc = lambda *rest: (code,)
    found = r"^expected the GPU to finish its work; a kernel failed earlier on \(cu\w+: CUDA_ERROR_"
    with pytest.raises(DeviceError, match=found):
        fake.launch("function", (1, 1, 1, 32, 1, 1, 0), 0)
    with pytest.raises(DeviceError, match=found):
        fake.call("cuMemAlloc", 512)
    code.name = "CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(device.DriverError, match=r"^cuLaunchKernel: CUDA_ERROR_INVALID_VALUE$"):
        fake.launch("function", (1, 1, 1, 32, 1, 1, 0), 0)


def test_out_of_memory_says_what_is_held_and_what_to_do(card):
    kept, waiting = device.empty((2**18,), np.float32), device.empty((2**20,), np.float32)
    del waiting
    card.room = 2**21
    text = (
        "expected 16.0 MiB more memory on the GPU; it has no room for them. Arrays of this process "
        "hold 1.0 MiB of 16.00 GiB, at most 5.0 MiB so far. Use a smaller batch or crop, compute "
        "without gradients inside no_grad(), let go of tensors that still hold a graph (keep "
        "loss.item(), not loss), or stop other programs on the GPU (nvidia-smi)."
    )
    with pytest.raises(DeviceError, match="^" + re.escape(text) + "$"):
        device.empty((2**22,), np.float32)
    assert device.cuda_statistics().held == 0, "what waited was let go to make room"
    del kept
    card.room = 2**40
    assert device.empty((2**22,), np.float32).size == 2**22


def test_another_failure_of_the_driver_is_not_called_lack_of_memory(card):
    card.room, card.code = 0, "CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(device.DriverError, match=r"^cuMemAlloc: CUDA_ERROR_ILLEGAL_ADDRESS$"):
        device.empty((4,), np.float32)


def test_what_there_may_be_one_of_is_made_once():
    made = []

    @device._once
    def slowly():
        time.sleep(0.05)
        made.append(1)
        return object()

    found = []
    threads = [threading.Thread(target=lambda: found.append(slowly())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert found[0] is found[1]


def test_too_many_elements_to_count(card):
    with pytest.raises(ShapeError, match=r"^expected at most 2147483647 elements .* Use smaller"):
        device.empty((2**16, 2**15), np.float32)


class RecordingDriver(FakeDriver):
    """The driver as far as a recording needs it; ``calls`` are the names of what was called."""

    queue = "queue"
    bindings = types.SimpleNamespace(
        CUstreamCaptureMode=types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2)
    )

    def __init__(self):
        super().__init__()
        self.calls, self.invalid = [], False

    def call(self, name, *arguments):
        if name in ("cuMemAlloc", "cuMemFree"):
            return super().call(name, *arguments)
        self.calls.append(name)
        if name == "cuStreamEndCapture" and self.invalid:
            raise device.DriverError(name, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        return name


@pytest.fixture
def recorder(card, monkeypatch):
    fake = RecordingDriver()
    monkeypatch.setattr(device, "driver", lambda: fake)
    return fake


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that were launched, with their sizes and words; none of them runs."""
    launches = []

    def compiled(self, dtype):
        def launch(sizes, words):
            launches.append((self.name, sizes, words))

        return types.SimpleNamespace(launch=launch)

    def fresh(self, shape):  # one that is kept would launch nothing in the tests to come, either
        return launching._Launcher(self, *shape)

    monkeypatch.setattr(launching, "SIMULATED", False)
    monkeypatch.setattr(launching.CudaKernel, "compiled", compiled)
    monkeypatch.setattr(launching.CudaKernel, "__getitem__", fresh)
    return launches


def test_a_recording_keeps_the_memory_that_its_launches_use(recorder, launched):
    relu = kernel.KERNELS["relu_forward"].implementations["cuda"]
    arrays = [device.empty((1200,), np.float32), device.empty((1200,), np.float32)]
    places = [array.flat.address for array in arrays]

    def function():
        arrays[1] = relu(relu(arrays[1]))  # the old one is forgotten while launches read it
        return relu(arrays[0])

    recorded = device.capture(function)
    assert len(launched) == 3
    del arrays[0]  # and this one after it
    others = [device.empty((1200,), np.float32) for _ in range(3)]
    mine = {array.flat.address for array in (recorded.result, arrays[0])}
    assert not {array.flat.address for array in others} & {*places, *mine}
    assert len(recorded.kept) == 2, "and not what it took from its own pool, which is used again"
    assert len({words[0] for _, _, words in launched}) == 3


def test_a_recording_leaves_its_memory_to_others(recorder, launched):
    relu = kernel.KERNELS["relu_forward"].implementations["cuda"]
    x = device.empty((1200,), np.float32)
    recorded = device.capture(lambda: relu(relu(x)))
    assert recorder.calls == [
        *("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy")
    ]
    out = recorded.result
    del recorded
    assert recorder.calls[4:] == ["cuGraphExecDestroy"]
    assert device.cuda_statistics() == (2 * 5120, 5120, 2 * 5120, 3)
    place = out.flat.address
    del out
    assert device.empty((1200,), np.float32).flat.address == place
    device.cuda_empty_cache()
    assert len(recorder.freed) == 2


def test_memory_for_a_recording_is_made_outside_of_it(recorder):
    waiting = device.empty((2**20,), np.float32)
    place = waiting.flat.address
    del waiting

    def function():
        device.empty((2**19,), np.float32)  # launches that are recorded may have used it
        recorder.room = 0
        device.empty((2**21,), np.float32)

    with pytest.raises(DeviceError, match="no room for them"):
        device.capture(function)
    assert recorder.freed == [place]


@pytest.mark.parametrize("invalid", [False, True])
def test_what_goes_wrong_in_a_recording_is_what_is_said(recorder, invalid):
    def function():
        recorder.invalid = invalid
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match=r"^mine$"):
        device.capture(function)
    ended = ["cuStreamEndCapture"] if invalid else ["cuStreamEndCapture", "cuGraphDestroy"]
    assert recorder.calls == ["cuStreamBeginCapture", *ended]
    recorder.invalid = False
    assert device.capture(lambda: 5).result == 5


def test_each_launch_is_waited_for_unless_it_is_recorded(recorder, launched, monkeypatch):
    waits = []
    queue = types.SimpleNamespace(synchronize=lambda: waits.append(1))
    monkeypatch.setattr(launching, "DEBUG", True)
    monkeypatch.setattr(device, "stream", lambda: queue)
    relu = kernel.KERNELS["relu_forward"].implementations["cuda"]
    x = device.empty((4,), np.float32)
    device.capture(lambda: relu(x))
    assert waits == []
    relu(x)
    assert waits == [1]


def test_a_batch_of_more_matrices_than_a_grid_is_high(card, launched, monkeypatch):
    monkeypatch.setattr(gpu_gemm, "card", device.card)
    table = device.empty((64,), np.int32)
    monkeypatch.setattr(device, "constants", lambda *numbers: table)
    a, b = device.empty((70_000, 2, 3), np.float32), device.empty((70_000, 3, 2), np.float32)
    kernel.KERNELS["matmul_forward"].implementations["cuda"](a, b)
    assert len(launched) == 2
    for _, sizes, _ in launched:
        assert sizes[0] >= 70_000
        assert sizes[1:3] == (1, 1)


def test_tables_are_let_go_with_what_waits(recorder, monkeypatch):
    def uploaded(numbers):
        return device.empty(numbers.shape, numbers.dtype)

    monkeypatch.setattr(device, "_upload", uploaded)
    device.cuda_empty_cache()

    def make():
        device.constants(3, 1, 4)
        device.kept(np.arange(300))
        device.tables(lambda a: (a, 2 * a), (np.arange(300),))

    make()
    used = device.cuda_statistics().in_use
    assert used > 0
    device.capture(device.cuda_empty_cache)
    assert device.cuda_statistics().in_use == used, "what is recorded could not make them again"
    device.cuda_empty_cache()
    assert device.cuda_statistics()[:2] == (0, 0)
    make()
    assert device.cuda_statistics().in_use == used
    device.cuda_empty_cache()


def test_a_recording_keeps_the_tables_that_are_let_go(recorder, launched, monkeypatch):
    relu = kernel.KERNELS["relu_forward"].implementations["cuda"]
    monkeypatch.setattr(device, "_upload", lambda a: device.empty(a.shape, np.float32))
    device.cuda_empty_cache()
    place = device.constants(*range(300)).flat.address
    recorded = device.capture(lambda: relu(device.constants(*range(300))))
    device.cuda_empty_cache()
    others = [device.empty((300,), np.float32) for _ in range(3)]
    assert place not in {array.flat.address for array in others}
    assert len(recorded.kept) == 1


def test_the_sums_of_many_bands_take_the_memory_of_one(recorder, launched, monkeypatch):
    monkeypatch.setattr(gpu_gemm, "card", device.card)
    table = device.empty((64,), np.int32)
    monkeypatch.setattr(device, "constants", lambda *numbers: table)
    window, tiles = Window.of(3, padding=1), 64
    x, grad = (device.empty((tiles, 32, 2, 2), np.float32) for _ in "xg")

    def peak(bands):
        monkeypatch.setattr(gpu_winograd, "BAND_BYTES", 4 * 16 * 64 * (tiles // bands))
        device.cuda_empty_cache()
        gpu_winograd.weight_gradient(x, grad, window, side=2)
        return device.cuda_statistics().peak

    assert peak(32) <= peak(2), "smaller bands, and no more sums of them"


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_padding_too_large_for_float32_is_inf(card, launched, monkeypatch):
    monkeypatch.setattr(device, "kept", lambda array: device.empty(array.shape, array.dtype))
    F.pad(tensor(device.empty((1, 2, 2), np.float32)), (1, 1), value=1e39)
    ((_, _, words),) = launched
    assert struct.pack("<f", words[3]) == struct.pack("<f", np.inf)


def test_an_array_knows_its_shape(card):
    a = device.empty((2, 3), np.float64)
    assert (a.ndim, a.size, a.nbytes, len(a)) == (2, 6, 48, 2)
    assert repr(a) == "CudaArray(shape=(2, 3), dtype=float64)"
    assert a.reshape((3, 2)).shape == (3, 2)
    assert a.reshape(-1).shape == (6,)
    assert a.reshape(6).reshape(2, 3, 1).flat is a.flat
    for wrong in ((4,), (-1, 4), (-2, -3)):
        with pytest.raises(ShapeError, match=r"^expected sizes for 6 elements \(shape \(2, 3\)\)"):
            a.reshape(*wrong)
    with pytest.raises(ShapeError, match=r"Take \.item\(\)\.$"):
        len(device.empty((), np.float32))
    with pytest.raises(DeviceError, match=r'NumPy does not reach there: move it with \.to\("cpu"'):
        np.asarray(a)
    with pytest.raises(DeviceError, match=r"of Numba's takes its line, x\.data\.flat\.$"):
        a[0]
    with pytest.raises(DeviceError, match=r"got one on cuda\. Take an optimiser, or tinydilate"):
        a -= 1
    assert device.device_of(a) == "cuda"
    assert not device.is_foreign(a)
    assert tinydilate.buffers.is_view(a.reshape(6))
    assert not tinydilate.buffers.is_view(a)


INSTALL = r'Install it: .* -m pip install "tinydilate\[cuda13\]" \(or cuda12, for drivers older'


@pytest.mark.parametrize(
    ("fake", "found"),
    [
        ({"implementation": "Built-in"}, "^the package numba-cuda is missing. " + INSTALL),
        (
            {"implementation": "Built-in", "driver": None},
            r"^there is no NVIDIA GPU here, or no driver for it \(no libcuda\.so\.1\)\.$",
        ),
        (
            {
                "implementation": "NVIDIA",
                "is_available": lambda: False,
                "cuda_error": lambda: "Error at driver init: libcuda.so cannot be found\nmore",
            },
            r"^numba-cuda found no GPU or no driver \(Error at driver init: libcuda.so cannot be "
            r"found\)\. If this machine has a GPU, see what `nvidia-smi` and `tinydilate doctor`",
        ),
        (None, r"^numba.cuda cannot be loaded \(OSError: libcudart.so.13\)\. " + INSTALL),
    ],
)
def test_why_there_is_no_gpu(monkeypatch, fake, found):
    def load():
        if fake is None:
            raise OSError("libcudart.so.13\nlooked in many places")
        return types.SimpleNamespace(**fake)

    monkeypatch.setattr(device, "numba_cuda", load)
    monkeypatch.setattr(device, "DRIVER", "libcuda.so.1")
    monkeypatch.setattr(device, "driver_library", lambda: (fake or {}).get("driver", "there"))
    monkeypatch.setattr(device, "SIMULATED", False)
    assert re.match(found, device.cuda_problem.__wrapped__())


def test_a_tensor_for_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(device, "cuda_problem", lambda: "no driver answers. Call nvidia-smi.")
    text = (
        "expected a GPU to compute on; no driver answers. Call nvidia-smi. Without one, stay on "
        'device="cpu", or step through the kernels in Numba\'s simulator: set '
        "NUMBA_ENABLE_CUDASIM=1 before Python starts."
    )
    for attempt in (
        lambda: tensor([1.0], device="cuda"),
        lambda: tensor([1.0]).to("cuda"),
        lambda: nn.ReLU().to("cuda") and nn.Linear(2, 2).to("cuda"),
        lambda: nn.Conv2d(1, 1, 3, device="cuda"),
    ):
        with pytest.raises(DeviceError, match="^" + re.escape(text) + "$"):
            attempt()


def test_every_element_has_a_thread():
    assert cover(0, 256) == (0, 256)
    assert cover(1, 256) == (1, 256)
    assert cover(257, 256) == (2, 256)


@pytest.mark.parametrize(
    ("shape", "blocks", "threads"),
    [
        ((64, 518, 518), (17, 65, 16), (32, 8, 1)),  # four planes a thread
        ((64, 64, 64), (2, 8, 64), (32, 8, 1)),  # one: four would leave multiprocessors idle
        ((176, 4, 4), (1, 1, 11), (4, 4, 16)),  # a block has several tiny maps
        ((1, 1, 10_000_000), (312_500, 1, 1), (32, 1, 1)),
        ((10_000_000, 1, 1), (1, 1, 39_063), (1, 1, 64)),
        ((3, 20_000_000, 1), (1, 65_535, 1), (1, 256, 1)),
        ((0, 3, 3), (1, 1, 0), (4, 4, 1)),
    ],
)
def test_planes_are_covered(card, monkeypatch, shape, blocks, threads):
    h100 = device.Card("fake", (9, 0), 132, 2**34)
    monkeypatch.setattr(device, "card", lambda: h100)
    monkeypatch.setattr(device, "_THREADS", 256)
    monkeypatch.setattr(device, "_FULL", 16 * 256)
    device.cover_planes.cache_clear()
    assert device.cover_planes(*shape) == (blocks, threads)
    device.cover_planes.cache_clear()


def test_kernels_refuse_what_they_were_not_compiled_for(card):
    body = kernel.KERNELS["relu_forward"].implementations["cuda"].__globals__["_relu_cuda"]
    a, b = device.empty((2,), np.float32), device.empty((2,), np.float64)
    with pytest.raises(DtypeError, match=r"^rectifier\._relu_cuda expected arrays of float32"):
        body[1, 32](a, b)
    with pytest.raises(DeviceError, match=r"on the GPU; got ndarray\.$"):
        body[1, 32](a, np.ones(2, np.float32))
    with pytest.raises(KernelError, match=r"expected 2 arguments; got 1\.$"):
        body[1, 32](a)
    scaled = kernel.KERNELS["dropout_forward"].implementations["cuda"].__globals__["_drop_cuda"]
    with pytest.raises(DtypeError, match=r"expected a number; got an array of shape \(2,\)\. Take"):
        scaled[1, 32](a, a, 0, 1.0, a)
    with pytest.raises(KernelError, match=r"Write rectifier\._relu_cuda\[cover\(count\)\]\("):
        body(a, a)
    with pytest.raises(DtypeError, match=r"expected float32 or float64; got int64\. Convert"):
        body.compiled(np.dtype(np.int64))


def test_an_unknown_annotation_is_refused():
    with pytest.raises(KernelError, match=r"to annotate x with one of Array, .*; got 'list'\."):

        @cuda.jit
        def wrong(x: list) -> None:
            pass


def test_cuda_is_for_the_bodies_of_kernels():
    with pytest.raises(KernelError, match=r"^expected cuda\.grid inside the body of a kernel;"):
        cuda.grid(1)


# ---- on a GPU, or in the simulator -----------------------------------------------------------

gpu = pytest.mark.gpu


@gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_there_and_back(dtype, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    there = tensor(x).to("cuda")
    assert (there.device, there.shape, there.dtype) == ("cuda", shape, x.dtype)
    np.testing.assert_array_equal(there.numpy(), x)
    np.testing.assert_array_equal(device.move(there.data.copy(), "cpu"), x)
    zeros = device.move(device.zeros(shape, dtype), "cpu")
    np.testing.assert_array_equal(zeros, np.zeros(shape, dtype))


@gpu
def test_copies_longer_than_the_staging_memory(monkeypatch):
    monkeypatch.setattr(device._Staging, "piece", 48)
    monkeypatch.setattr(device, "_staging", tinydilate.device.cache(device._Staging))
    x = np.arange(101, dtype=np.float32)
    np.testing.assert_array_equal(tensor(x, device="cuda").numpy(), x)


@gpu
def test_a_tensor_on_the_gpu_behaves():
    x = tensor(np.array([[1.5, -2.0]], np.float32), requires_grad=True, device="cuda")
    assert repr(x) == "tensor([[ 1.5, -2. ]], device='cuda', requires_grad=True)"
    assert (x > 0).numpy().tolist() == [[True, False]]
    assert (x == x.detach()).numpy().all()
    assert x.sum().item() == -0.5
    assert float(x[0, 0]) == 1.5
    y = x.to(np.float64)
    assert (y.dtype, y.device) == (np.float64, "cuda")
    (y * 2).backward(np.ones((1, 2)))
    assert (x.grad.device, x.grad.dtype) == ("cuda", np.float32)
    assert x.grad.numpy().tolist() == [[2.0, 2.0]]
    with pytest.raises(
        DeviceError,
        match=r"expected tensors on one device; got one of shape .* on cuda and one of shape",
    ):
        x + tensor([1.0])


@gpu
def test_gradients_flow_through_an_expression_as_on_the_cpu():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 5)), rng.normal(size=(3, 1))
    results = []
    for place in ("cpu", "cuda"):
        x, y = (tensor(z, requires_grad=True) for z in (a, b))
        p, q = x.to(place), y.to(place)
        joined = F.cat([F.relu(p * q + 1) / 2, (q - p)[:, ::-1]], 1)
        loss = (joined.transpose(0, 2).max(dim=1) ** 2).sum() + p.mean() + F.exp(q).sum()
        loss.backward()
        results.append([loss.item(), x.grad.numpy(), y.grad.numpy()])
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-13)


@gpu
def test_a_module_goes_there_and_back():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    before = net.state_dict()
    net.to("cuda")
    assert {p.device for p in net.parameters()} == {"cuda"}
    state = net.state_dict()
    for name, array in before.items():
        np.testing.assert_array_equal(state[name], array)
    net.load_state_dict({name: 2 * array for name, array in before.items()})
    twin = copy.deepcopy(net)
    for name, parameter in twin.to("cpu").named_parameters():
        np.testing.assert_array_equal(parameter.data, 2 * before[name])
    born = nn.Conv2d(1, 2, 3, device="cuda", rng=0)
    np.testing.assert_array_equal(
        device.move(born.weight.data, "cpu"), nn.Conv2d(1, 2, 3, rng=0).weight.data
    )


class Foreign:
    """An array of another library: all that it shows is the interface."""

    def __init__(self, **interface):
        self.__cuda_array_interface__ = interface


@gpu
def test_arrays_of_other_libraries_share_their_memory():
    mine = device.move(np.arange(6.0).reshape(2, 3), "cuda")
    theirs = Foreign(**mine.__cuda_array_interface__)
    x = tensor(theirs)
    assert (x.device, x.shape, x.dtype) == ("cuda", (2, 3), np.float64)
    assert x.dtype is mine.dtype, "so that nobody has to look twice at what goes with our own"
    device.write(np.full((2, 3), 7.0), mine)
    assert x.numpy().tolist() == [[7.0] * 3] * 2
    assert tinydilate.buffers.is_view(x.data)
    assert (x * 2).numpy().tolist() == [[14.0] * 3] * 2
    del mine
    gc.collect()
    strided = {**theirs.__cuda_array_interface__, "strides": (8, 16)}
    with pytest.raises(ShapeError, match=r"^expected an array in C order; .*x\.contiguous\(\)"):
        tensor(Foreign(**strided))
    for typestr, name in (("<c8", "complex64"), (">f8", ">f8"), ("<f2", "float16")):
        found = f"^expected whole numbers, float32 or float64; got an array of dtype {name}"
        with pytest.raises(DtypeError, match=found):
            tensor(Foreign(**{**theirs.__cuda_array_interface__, "typestr": typestr}))
    with pytest.raises(DtypeError, match=r"^expected an array without a mask; got one with"):
        tensor(Foreign(**{**theirs.__cuda_array_interface__, "mask": theirs}))
    place = theirs.__cuda_array_interface__["data"][0]
    found = f"^expected float64 at an address that 8 divides; got {place + 4:#x}\\. .* x.clone"
    with pytest.raises(ShapeError, match=found):
        tensor(Foreign(**{**theirs.__cuda_array_interface__, "data": (place + 4, False)}))
    assert tensor(Foreign(**{**strided, "shape": (0, 3), "data": (0, False)})).shape == (0, 3)
    long = {**theirs.__cuda_array_interface__, "shape": (2**16, 2**15)}
    with pytest.raises(ShapeError, match=r"^expected at most 2147483647 elements"):
        tensor(Foreign(**long))


@gpu
def test_memory_that_may_not_be_written_to_is_copied():
    mine = device.move(np.arange(6.0), "cuda")
    there = mine.__cuda_array_interface__
    x = tensor(Foreign(**{**there, "data": (there["data"][0], True)}))
    assert not tinydilate.buffers.is_view(x.data)
    device.write(np.zeros(6), x.data)
    assert device.move(mine, "cpu").tolist() == [0, 1, 2, 3, 4, 5]


@gpu
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_memory_is_written_as_long_as_it_is(place):
    target = device.move(np.zeros((2, 3)), place)
    for shape in ((3, 3), (1, 3), (6,), ()):
        with pytest.raises(ShapeError, match=r"^expected numbers for an array of shape \(2, 3\);"):
            device.write(np.ones(shape), target)
    assert not device.move(target, "cpu").any()


@gpu
def test_what_may_not_be_written_to_is_known_by_either_protocol(monkeypatch):
    mine = device.move(np.arange(6.0), "cuda")
    there = mine.__cuda_array_interface__
    for readonly in (True, False):
        view = types.SimpleNamespace(
            dtype=np.float64, ptr=there["data"][0], shape=(6,), strides=None, readonly=readonly
        )
        seen = types.SimpleNamespace(
            StridedMemoryView=types.SimpleNamespace(from_dlpack=lambda *_, view=view, **__: view)
        )
        monkeypatch.setitem(sys.modules, "cuda.core.utils", seen)
        monkeypatch.setitem(sys.modules, "cuda.core", types.ModuleType("cuda.core"))
        monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
        found = device.adopt(object())
        assert tinydilate.buffers.is_view(found) == (not readonly)
        assert device.move(found, "cpu").tolist() == [0, 1, 2, 3, 4, 5]


def test_memory_that_another_stream_worked_on_is_waited_for(monkeypatch, card):
    """When it comes back: what the stream was asked for may still be going on."""
    asked = []
    monkeypatch.setattr(device, "synchronize", lambda: None)
    monkeypatch.setattr(dlpack, "capsule", lambda *given: given[-1])
    monkeypatch.setattr(card, "card", 0, raising=False)
    array = device.empty((4,), np.float32)
    monkeypatch.setattr(card, "call", asked.append)
    for stream in (None, 1, -1):
        assert array.__dlpack__(stream=stream) is None, "ours waits for it anyway"
    at_its_end = array.__dlpack__(stream=7)
    assert asked == []
    at_its_end()
    assert asked == ["cuCtxSynchronize"]


@gpu
def test_the_kernel_that_the_page_shows_prints_what_stands_there(tmp_path, capsys):
    page = Path(__file__).parent.parent / "docs" / "gpu.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if "def double" in block)
    path = tmp_path / "own_kernel.py"  # its source is read
    path.write_text(block, encoding="utf-8")
    runpy.run_path(str(path))
    said = re.search(r"print\(td.tensor\(out\)\)  # (.*)", block)[1]
    assert capsys.readouterr().out == said + "\n"


@cuda.jit
def _add_one(x: Array, out: Array, beside: int) -> None:
    n = np.uint32(cuda.grid(1))
    if n < x.size:
        out[n + np.uint32(beside)] = x[n] + 1


@gpu
def test_guards_notice_a_kernel_that_writes_beside_its_array():
    def run(beside):
        with guarded():
            x = device.move(np.ones(3), "cuda")
            out = device.empty((3,), x.dtype)
            # A longer line, as a kernel on a GPU sees it: nothing checks its indices there.
            wide = CudaArray(out.flat, out.shape, out.dtype, out.memory)
            wide.flat = _beyond(out)
            _add_one[cover(3)](x, wide, beside)

    run(0)
    with pytest.raises(AssertionError, match="a kernel wrote behind an array of 3"):
        run(1)


def _beyond(array):
    """The line of an array, and what lies behind it."""
    return device._line_of(array.__cuda_array_interface__, array.size + 4, array.dtype)


@gpu
@pytest.mark.skipif(not device.SIMULATED, reason="a GPU checks no index")
def test_a_failing_kernel_is_named(monkeypatch):
    def twin(x):
        out = device.empty_like(x)
        _add_one[cover(x.size)](x, out, 9)
        return out

    monkeypatch.setitem(kernel.KERNELS["relu_forward"].implementations, "cuda", twin)
    found = (
        r"^relu_forward: the GPU kernel test_device\._add_one failed on 1 blocks of 8 threads: "
        r"IndexError: tid=.* index 9 is out of bounds"
    )
    with pytest.raises(KernelError, match=found):
        F.relu(tensor([1.0], device="cuda"))


@gpu
def test_time_is_measured():
    x = device.move(np.ones(4, np.float32), "cuda")
    assert 0 < device.seconds(kernel.KERNELS["relu_forward"], x) < 60
    device.synchronize()
    assert device.card().multiprocessors >= 1


def test_a_kernels_arguments_are_packed_as_numba_reads_them(monkeypatch):
    """What the driver is handed: one address for each argument, an array's in seven words."""
    taken = []

    class Driver:
        def launch(self, function, shape, arguments):
            places = (ctypes.c_void_p * 12).from_address(arguments)
            kinds = [ctypes.c_int32, *[ctypes.c_uint64] * 7, ctypes.c_bool]
            kinds += [ctypes.c_float, ctypes.c_double, ctypes.c_int64]
            read = [kind.from_address(at).value for kind, at in zip(kinds, places, strict=True)]
            taken.append((function, shape, read))

    monkeypatch.setattr(device, "driver", Driver)
    compiled = launching._Compiled("function", "<i4x56s?7xf4xdq")
    line = device.Line(4096, 10, np.dtype(np.float32))
    compiled.launch((1, 2, 3, 4, 5, 6, 0), [-7, line.words, True, 0.5, 0.25, 2**40])
    assert taken == [
        ("function", (1, 2, 3, 4, 5, 6, 0), [-7, 0, 0, 10, 4, 4096, 10, 4, True, 0.5, 0.25, 2**40])
    ]
