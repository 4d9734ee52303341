"""A GPU in NumPy: the driver of a card that ptx.py stands in for.

Everything above the driver is what it is on a card: Numba compiles the kernels (to PTX and no
further), the arguments are packed, memory comes from the pool, launches are recorded.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from ptx import Memory, Program

from tinydilate import compiling, device, launching
from tinydilate.io.files import write_text

WANTED = os.environ.get("TINYDILATE_EMULATED_GPU") == "1"
CAPABILITY = (8, 0)  # that kernels are compiled for: the first with tensor cores for TF32
Work = Callable[[], Any]

LONG = "it would take hours in the emulation"
NUMBA = "it launches by Numba itself, which asks the real driver"
PROCESS = "it starts a process of its own, which has no emulation"
LEFT_OUT = {  # tests for a GPU that the emulation is none for
    "test_wide_layers_use_it_and_no_others": LONG,
    "test_the_kernel_is_tried_in_earnest": NUMBA,
    "test_it_runs_and_draws_the_pictures_that_it_shows": NUMBA,
    "test_each_exercise_is_of_the_size_that_it_says": NUMBA,
    "test_what_is_wrong_does_not_pass": NUMBA,
    "test_a_second_process_on_the_card_compiles_nothing": PROCESS,
}


class Driver:
    """CUDA's driver, as far as we call it: each function answers 0 for success, and a result."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2)
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9)

    def __init__(self) -> None:
        self.memory = Memory()
        self.recorded: list[Work] | None = None  # what is to be done at each repetition
        self.graphs: dict[int, list[Work]] = {}

    def __getattr__(self, name: str) -> Any:
        """A function by the driver's name for it: ``cuMemAlloc`` is `mem_alloc`."""
        if not name.startswith("cu"):
            raise AttributeError(name)
        ours = re.sub(r"(?<!^)([A-Z])", r"_\1", name.removeprefix("cu")).lower()
        return getattr(self, ours)

    def _do(self, work: Work) -> tuple[int]:
        """Now, for the queue is always empty; or in each repetition."""
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)
        return (0,)

    def driver_get_version(self) -> tuple[int, int]:
        return 0, 13000

    def ctx_get_current(self) -> tuple[int, int]:
        return 0, 1

    def ctx_synchronize(self) -> tuple[int]:
        return (0,)

    def ctx_push_current(self, context: int) -> tuple[int]:
        return (0,)

    def ctx_pop_current(self) -> tuple[int, int]:
        return 0, 1

    def mem_alloc(self, size: int) -> tuple[int, int]:
        return 0, self.memory.take(size)

    def mem_free(self, address: int) -> tuple[int]:
        self.memory.give_back(address)
        return (0,)

    def memset_d8_async(self, address: int, value: int, size: int, queue: Any) -> tuple[int]:
        return self._do(lambda: ctypes.memset(address, value, size))

    def copy(self, to: int, source: int, size: int, queue: Any) -> tuple[int]:
        return self._do(lambda: ctypes.memmove(to, source, size))

    memcpy_dto_d_async = memcpy_hto_d_async = memcpy_dto_h_async = copy

    def launch_kernel(self, program: Program, *rest: Any) -> tuple[int]:
        blocks, threads, (_, _, places, _) = rest[:3], rest[3:6], rest[6:]
        first = ctypes.c_void_p.from_address(places).value  # they lie one after the other
        words = ctypes.string_at(first, 8 * program.parameters)
        return self._do(lambda: program.run(self.memory, blocks, threads, words))

    def stream_begin_capture(self, queue: Any, mode: Any) -> tuple[int]:
        self.recorded = []
        return (0,)

    def stream_end_capture(self, queue: Any) -> tuple[int, list[Work]]:
        recorded, self.recorded = self.recorded, None
        return 0, recorded

    def graph_instantiate(self, graph: list[Work], flags: int) -> tuple[int, int]:
        number = len(self.graphs)
        self.graphs[number] = graph
        return 0, number

    def graph_destroy(self, graph: list[Work]) -> tuple[int]:
        return (0,)

    def graph_exec_destroy(self, number: int) -> tuple[int]:
        self.graphs[number] = []
        return (0,)

    def graph_launch(self, number: int, queue: Any) -> tuple[int]:
        for work in self.graphs[number]:
            work()
        return (0,)

    def pointer_get_attribute(self, attribute: Any, address: int) -> tuple[int, int]:
        return 0, 0

    def stream_synchronize(self, queue: Any) -> tuple[int]:
        return (0,)


class Event:
    """A moment: by the clock, for the queue is always empty."""

    def __init__(self, timing: bool = True) -> None:
        self.time = 0.0

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass


class Context:
    """What a process has on the card."""

    handle = 1
    device = SimpleNamespace(
        id=0, name="an emulated GPU", compute_capability=CAPABILITY, MULTIPROCESSOR_COUNT=4
    )

    def get_memory_info(self) -> Any:
        return SimpleNamespace(total=2**33, free=2**33)


class Host:
    """``numba.cuda`` from the host's side: what asks the driver is answered here."""

    event, gpus = Event, [None]  # one card

    def __init__(self, real: Any) -> None:
        self.real, self.context = real, Context()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def current_context(self) -> Context:
        return self.context

    def stream(self) -> Any:
        return SimpleNamespace(handle=0, synchronize=lambda: None)

    def pinned_array(self, shape: Any, dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def event_elapsed_time(self, before: Event, after: Event) -> float:
        return 1000 * (after.time - before.time)


def text_of(kernel: launching.CudaKernel, dtype: np.dtype[Any]) -> str:
    """A kernel's PTX, kept where machine code is for the next process."""
    recipe, folder = kernel.recipe(dtype), compiling.cache_home() / "ptx"
    path = folder / f"{compiling.source_digest()}-{recipe}.ptx"
    if recipe and path.exists():
        return path.read_text(encoding="utf-8")
    code = kernel.code_for(dtype, CAPABILITY, "ptx")
    text = code if isinstance(code, str) else code.decode()
    if recipe:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return text


def install() -> None:
    """Have this process take it for its GPU; before the first array goes there."""
    real, compile_for_a_card = device.numba_cuda(), launching.CudaKernel._compile
    start = device._Driver.__init__
    host = Host(real)

    emulated = Driver()

    def begin(driver: Any) -> None:
        start(driver)
        driver.bindings = emulated

    def compile_(kernel: launching.CudaKernel, dtype: np.dtype[Any]) -> Any:
        if dtype not in kernel.dtypes:
            return compile_for_a_card(kernel, dtype)  # which refuses it
        return launching._Compiled(Program(text_of(kernel, dtype)), kernel.forms(dtype))

    # The pool asks the driver for more than an array has, and keeps what is given back. What is
    # recorded goes on being read and written, whoever else has forgotten it.
    empty, give_back = device.empty, device._CudaPool.give_back

    def empty_(shape: tuple[int, ...], dtype: Any) -> device.CudaArray:
        array = empty(shape, dtype)
        if device.being_recorded:
            return array
        block = array.memory.memory
        emulated.memory.ask_for(block.address, block.size, wanted=False)
        emulated.memory.ask_for(block.address, array.nbytes)
        return array

    def give_back_(pool: Any, block: Any) -> None:
        emulated.memory.ask_for(block.address, block.size, wanted=pool.outside is not None)
        give_back(pool, block)

    device.empty, device._CudaPool.give_back = empty_, give_back_
    device.numba_cuda, device.cuda_in_kernels = lambda: host, lambda: real
    device.cuda_problem = lambda: None
    device._Driver.__init__ = begin
    launching.CudaKernel._compile = compile_
