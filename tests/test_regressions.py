"""Bugs that were found once; each test failed before its mend."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

import tinydilate
import tinydilate.functional as F
from tinydilate import compiling, models, nn, tensor, use
from tinydilate.errors import ConfigError, DataError, DtypeError, GraphError, ShapeError
from tinydilate.functional.arithmetic import sum_to_shape
from tinydilate.functional.rectifier import relu_forward
from tinydilate.simd import copy_runs, host_tile, outer_tile


def in_another_process(program: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# ---- register tiles --------------------------------------------------------------------------


def test_the_twin_of_copy_runs_stops_where_the_run_does():
    """The row goes on behind the run; NUMBA_DISABLE_JIT=1 convolved wide images wrongly."""
    out, row = np.full(8, -1.0, np.float32), np.arange(8, dtype=np.float32)
    copy_runs.body(out, (1, 4), row, (0, 8), 3, (0, 8), 1, False)
    assert out.tolist() == [-1, 0, 1, 2, -1, -1, -1, -1]


def test_the_twin_of_the_outer_tile_leaves_alone_what_is_not_valid():
    """A panel's last columns hold whatever memory held: NumPy warned of their overflow."""
    tile = host_tile()
    out, b = np.zeros(tile.columns(), np.float32), np.full(tile.columns(), 3e38, np.float32)
    a, b[0] = np.full(tile.rows, 9, np.float32), 2
    with np.errstate(all="raise"):
        outer_tile.body(out, (0, 1), (1, 1), a, (0, 1, 1), b, (0, 0), 1, a, 0, True, False)
    assert out.tolist() == [27.0] + [0.0] * (tile.columns() - 1)


WIDE = """
import numpy as np
from tinydilate.functional.convolution import conv2d_forward
from tinydilate.window import Window
x = np.random.default_rng(0).random((1, 2, 2, 100), np.float32)
w = np.random.default_rng(1).random((2, 2, 1, 3), np.float32)
arguments = x, w, None, Window.of((1, 3), padding=(0, 2), dilation=2)
truth = conv2d_forward.implementations["numpy"](*arguments)
np.testing.assert_allclose(conv2d_forward(*arguments), truth, rtol=1e-5)
"""


def test_an_image_wider_than_a_tile_without_numba():
    in_another_process(WIDE, NUMBA_DISABLE_JIT="1")


OLD_PROCESSOR = """
import numpy as np
from tinydilate import gemm
gemm.matmul(np.ones((2, 3), np.float32), np.ones((3, 2), np.float32))
print(any("fmaf" in code for code in gemm._product.compiled.inspect_asm().values()))
"""


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="names an x86 processor"
)
def test_a_processor_without_fused_multiply_adds_calls_no_function_for_each(tmp_path):
    """It called one for each number, and was twelve times slower than multiplying and adding."""
    old = {"NUMBA_CPU_NAME": "core2", "NUMBA_CPU_FEATURES": "", "TINYDILATE_TILE": "plain"}
    found = in_another_process(OLD_PROCESSOR, **old, TINYDILATE_CACHE=str(tmp_path))
    assert found == "False"


# ---- kernels and their cache -----------------------------------------------------------------


def test_the_inner_one_of_two_blocks_of_the_same_name_ends_first():
    with tinydilate.use("numpy"), tinydilate.use("cpu"):
        with tinydilate.use("numpy"):
            pass
        assert relu_forward._choose("cpu") == "cpu"


def test_a_user_without_a_home_computes_without_a_cache():
    program = """
import pwd
def nobody(number): raise KeyError(number)
pwd.getpwuid = nobody
import numpy as np
from tinydilate import compiling, functional
print(functional.relu(np.ones(2, np.float32)).data.sum(), compiling.cache_folder())
"""
    pytest.importorskip("pwd")
    drop = {"HOME", "XDG_CACHE_HOME", "TINYDILATE_CACHE"}
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={name: value for name, value in os.environ.items() if name not in drop},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.stdout.strip() == "2.0 None", run.stderr


def test_an_empty_setting_of_the_cache_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYDILATE_CACHE", "")
    assert compiling.cache_home().name == "tinydilate"
    monkeypatch.setenv("TINYDILATE_CACHE", "here")
    assert compiling.cache_home().is_absolute()


MEETING = """
import threading, warnings
import numpy as np
import tinydilate.functional as F
warnings.simplefilter("error")
failures = []
def compute():
    try:
        start.wait()
        for dtype in (np.float32, np.float64):
            (F.exp(np.ones(3, dtype)) + 1).log()
    except Exception as failure:
        failures.append(failure)
start = threading.Barrier(6)
threads = [threading.Thread(target=compute) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failures)
"""


def test_threads_that_meet_in_a_rules_first_call_are_not_warned(tmp_path):
    assert in_another_process(MEETING, TINYDILATE_CACHE=str(tmp_path)) == "[]"


# ---- sums ------------------------------------------------------------------------------------


def test_a_long_sum_along_the_first_axis_keeps_its_digits():
    """In float32, 2**24 + 1 is 2**24: twenty million ones added one by one gave 16777216."""
    ones = np.broadcast_to(np.float32(1), (20_000_000, 2))
    assert sum_to_shape.implementations["cpu"](ones, (1, 2)).tolist() == [[2e7, 2e7]]


# ---- the graph -------------------------------------------------------------------------------


class Twice(tinydilate.Op):
    """a + b, whose backward returns ``answer(grad)``."""

    def __init__(self, answer):
        self.answer = answer

    def forward(self, a, b):
        return a + b

    def backward(self, grad):
        return self.answer(grad)


def two_leaves():
    return tensor([1.0, 2.0], requires_grad=True), tensor([3.0, 4.0], requires_grad=True)


def test_leaves_that_are_given_one_array_do_not_share_it():
    a, b = two_leaves()
    Twice(lambda grad: (2 * grad,) * 2)(a, b).sum().backward()
    a.grad.data[:] = 7
    assert b.grad.data.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("gradient", "came"),
    [(np.zeros(3, np.float32), "one of shape (3,)"), (None, "NoneType"), (1.0, "float")],
)
def test_a_gradient_of_another_shape_is_refused(gradient, came):
    a, b = two_leaves()
    with pytest.raises(GraphError) as caught:
        Twice(lambda grad: (grad, gradient))(a, b).sum().backward()
    assert str(caught.value) == (
        "Twice.backward expected to return a gradient of its input's shape (2,); it returned "
        f"{came}. Sum it over the axes that were broadcast, or reshape it."
    )
    assert a.grad is None


def test_what_learns_only_since_the_forward_pass_gets_no_gradient():
    a, b = two_leaves()
    b.requires_grad = False
    result = (a * b).sum()
    b.requires_grad = True
    result.backward()
    assert a.grad.data.tolist() == [3, 4]
    assert b.grad is None


@pytest.mark.parametrize("requires_grad", [False, True])
def test_an_unknown_target_is_named(requires_grad):
    text = (
        "expected a device (cpu, cuda, meta) or a dtype; got 'gpu'. "
        'Write .to("cpu") or .to(np.float32).'
    )
    with pytest.raises(DtypeError) as caught:
        tensor(1.0, requires_grad).to("gpu")
    assert str(caught.value) == text


# ---- layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("channels", "filters"), [(0, 2), (2, 0)])
def test_a_convolution_without_maps_is_refused(channels, filters, transposed):
    image = np.ones((1, channels, 5, 5), np.float32)
    first, second = (channels, filters) if transposed else (filters, channels)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    with pytest.raises(ShapeError, match="at least one"):
        convolve(image, np.ones((first, second, 3, 3), np.float32))


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_layer_takes_numpys_whole_numbers(layer):
    image = np.ones((1, 4, 5, 5), np.float32)
    two, four = np.int64(2), np.int64(4)
    assert layer(four, four, np.int64(1), groups=two)(image).shape == image.shape


@pytest.mark.parametrize("parameter", [False, True])
@pytest.mark.parametrize("kind", [list, tuple, set, dict])
def test_what_a_container_would_hide_is_refused(kind, parameter):
    class Net(nn.Module):
        def forward(self, x):
            return x

    net = Net()
    part = nn.Parameter(np.ones(2)) if parameter else nn.ReLU()
    held = {"a": part} if kind is dict else kind([part])
    with pytest.raises(ConfigError, match=r"would not be found\. Use nn\.Sequential"):
        net.parts = held
    net.sizes = {"a": 1}  # other dicts are no concern of ours


def test_a_name_that_is_no_text_is_listed_among_the_unexpected():
    with pytest.raises(DataError, match=r"unexpected 1\. Nothing was loaded"):
        nn.Linear(1, 1, bias=False).load_state_dict({1: np.ones(1), "weight": np.ones((1, 1))})


# ---- the door --------------------------------------------------------------------------------


def test_a_count_of_numpy_is_a_number():
    """``x * mask.sum()`` was refused: the sum of a mask is a NumPy integer."""
    assert (tensor(np.ones(2, np.float32)) * np.int64(3)).dtype == np.float32
    assert (np.int64(3) * tensor(np.ones(2))).dtype == np.float64


def test_numbers_that_no_window_has_are_refused():
    x = np.ones((1, 1, 4, 4), np.float32)
    with pytest.raises(ShapeError, match=f"dilation should be at most {2**31 - 1}, got {2**70}"):
        F.conv2d(x, x, dilation=2**70)


def test_an_image_without_pixels_is_refused():
    x, w = np.ones((2, 1, 0, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    with pytest.raises(ShapeError, match="at least one pixel along each axis; got 0 rows"):
        F.conv2d(x, w, padding=2)


def test_dilations_may_come_from_numpy():
    made = models.context(3, dilations=np.array([1, 2, 1]))
    assert [layer.window.dilation[0] for layer in made] == [1, 2, 1, 1]
    with pytest.raises(ConfigError, match="expected dilations"):
        models.context(3, dilations=[])


def test_kernels_work_while_the_interpreter_ends():
    program = (
        "import atexit, numpy as np, tinydilate, tinydilate.functional as F; "
        "tinydilate.set_num_threads(2); x = np.ones((4, 32, 64, 64), np.float32); "
        "w = np.ones((32, 32, 3, 3), np.float32); F.conv2d(x, w); "
        "atexit.register(lambda: print(F.conv2d(x, w).shape))"
    )
    assert in_another_process(program) == "(4, 32, 62, 62)"


@pytest.mark.parametrize("window", [(3, 2, 1, 1), (3, 1, 1, 2), ((2, 3), (1, 2), (1, 0), (3, 1))])
def test_pooling_by_columns_keeps_the_order_of_equals_and_of_nans(window):
    """The first of equal numbers and the last nan win, counted row by row, as in the reference."""
    random = np.random.default_rng(0)
    x = random.integers(0, 3, size=(2, 3, 9, 10)).astype(np.float32)
    x[random.random(x.shape) < 0.15] = np.nan
    x[0, 0], x[0, 1] = np.nan, -np.inf
    kernel_size, stride, padding, dilation = window
    results = []
    for way in ("numpy", "cpu:loops"):
        with use(way):
            out = F.max_pool2d(x, kernel_size, stride, padding, dilation, return_indices=True)
        results.append([tensor.numpy() for tensor in out])
    for mine, desired in zip(results[1], results[0], strict=True):
        np.testing.assert_array_equal(mine, desired)
