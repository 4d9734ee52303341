"""Machine code of GPU kernels on disk: what it is kept under, and files that are not to be trusted.

The driver and Numba are fakes, but for one test that needs a GPU.
"""

import math
import operator
import os
import subprocess
import sys
import time
import types
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from tinydilate import compiling, cubins, device, gpu_winograd, launching, window
from tinydilate.cubins import Cubin
from tinydilate.functional import padding, rectifier
from tinydilate.launching import CUDA_KERNELS, CudaElementwise, CudaKernel

CODE = Cubin("_Z3padv", b"\x7fELF\n code\n\n with lines \x00\xff")
RECIPE = "a" * 64


ROOT = Path(__file__).parents[1]


def call(program, *arguments, env):
    """What a process prints; it takes the package from here, wherever another one is installed."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.check_output(command, env=env, cwd=ROOT, text=True)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path)
    return tmp_path / "cuda"


# ---- the files -------------------------------------------------------------------------------


def test_what_is_kept_is_found_again(home):
    assert cubins.load(RECIPE) is None
    cubins.keep(RECIPE, CODE)
    assert cubins.load(RECIPE) == CODE
    assert cubins.load("b" * 64) is None
    assert [path.name for path in home.iterdir()] == [f"{RECIPE}.cubin"]


def test_a_file_that_is_not_whole_is_as_good_as_none(home):
    cubins.keep(RECIPE, CODE)
    path = home / f"{RECIPE}.cubin"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert cubins.load(RECIPE) is None, f"cut short to {length} bytes"
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert cubins.load(RECIPE) is None, f"byte {place} is another"
    path.write_bytes(whole + b"x")
    assert cubins.load(RECIPE) is None
    cubins.keep(RECIPE, CODE)
    assert cubins.load(RECIPE) == CODE, "it is written anew"


def test_code_of_another_recipe_is_as_good_as_none(home):
    cubins.keep(RECIPE, CODE)
    (home / f"{RECIPE}.cubin").rename(home / f"{'b' * 64}.cubin")
    assert cubins.load("b" * 64) is None


def test_a_write_that_fails_leaves_nothing(home, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cubins.keep(RECIPE, CODE)
    assert list(home.iterdir()) == []


def test_a_write_that_is_broken_off_leaves_nothing(home, monkeypatch):
    def stopped(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        cubins.keep(RECIPE, CODE)
    assert list(home.iterdir()) == []


def test_where_nothing_can_be_written_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(compiling, "cache_folder", lambda: None)
    cubins.keep(RECIPE, CODE)
    assert cubins.load(RECIPE) is None


def test_the_oldest_make_room(home, monkeypatch):
    monkeypatch.setattr(cubins, "_MOST", 3)
    for number in range(5):
        cubins.keep(f"{number}", CODE)
        os.utime(home / f"{number}.cubin", (number, number))
    assert sorted(path.stem for path in home.iterdir()) == ["2", "3", "4"]


def test_what_is_used_does_not_make_room(home, monkeypatch):
    monkeypatch.setattr(cubins, "_MOST", 2)
    for number in range(2):
        cubins.keep(f"{number}", CODE)
        os.utime(home / f"{number}.cubin", (number, number))
    assert cubins.load("0") == CODE
    cubins.keep("2", CODE)
    assert sorted(path.stem for path in home.iterdir()) == ["0", "2"]


def test_a_file_that_cannot_be_touched_is_read_all_the_same(home, monkeypatch):
    def refuse(path):
        raise PermissionError(1, "Operation not permitted")

    cubins.keep(RECIPE, CODE)
    monkeypatch.setattr(os, "utime", refuse)
    assert cubins.load(RECIPE) == CODE


def test_parts_that_were_left_behind_are_deleted_and_those_being_written_are_not(home):
    cubins.keep("0", CODE)
    for name, age in (("old", 7200), ("new", 60)):
        part = home / f"{name}.part"
        part.write_bytes(b"half")
        when = time.time() - age
        os.utime(part, (when, when))
    cubins.keep("1", CODE)
    assert sorted(path.name for path in home.iterdir()) == ["0.cubin", "1.cubin", "new.part"]


def test_a_file_that_cannot_be_deleted_does_not_keep_the_others(home, monkeypatch):
    monkeypatch.setattr(cubins, "_MOST", 1)
    home.mkdir()
    (home / "stuck").mkdir()  # a folder is no file to unlink
    os.utime(home / "stuck", (0, 0))
    for number in range(3):
        cubins.keep(f"{number}", CODE)
        os.utime(home / f"{number}.cubin", (number + 1, number + 1))
    assert sorted(path.name for path in home.iterdir()) == ["2.cubin", "stuck"]


# ---- the recipe ------------------------------------------------------------------------------


def in_our_sources(text: str, **names):
    """Functions of a text that is said to stand in the package."""
    scope = {"__name__": "tinydilate.ours", "np": np, **names}
    exec(compile(text, str(compiling.PACKAGE / "ours.py"), "exec"), scope)
    return types.SimpleNamespace(**scope)


def test_every_kernel_of_ours_has_a_recipe_of_its_own():
    recipes = {}
    for kernel in CUDA_KERNELS:
        if kernel.body.__code__.co_filename.startswith(str(compiling.PACKAGE)):
            recipes.setdefault(cubins.recipe(kernel.body, kernel.parameters), []).append(kernel)
    assert None not in recipes
    for alike in recipes.values():
        assert len({kernel.name for kernel in alike}) == 1
    read = gpu_winograd._READ[2].body, gpu_winograd._READ[4].body
    assert read[0].__code__ == read[1].__code__, "they differ by what they close over alone"
    assert cubins.recipe(read[0]) != cubins.recipe(read[1])


BODY = "def body(x): return rule(x) + LEVEL"
RULE = "def rule(x): return {} * x"


def test_the_recipe_knows_what_a_body_leads_to():
    def recipe(body=BODY, factor="2", level=1, *facts):
        inner = in_our_sources(RULE.format(factor)).rule
        rule = launching.CudaFunction(inner)
        return cubins.recipe(in_our_sources(body, rule=rule, LEVEL=level).body, *facts)

    first = recipe()
    assert first == recipe() is not None
    others = [
        recipe(BODY.replace("+", "-")),
        recipe(BODY.replace("body(x)", "body(x, y=3)")),
        recipe(BODY.replace("body(x)", "body(x, y=4)")),
        recipe(factor="3"),
        recipe(factor="2.0"),
        recipe(level=2),
        recipe(level=np.float32(1)),
        recipe(level=(1, 2)),
        recipe(BODY, "2", 1, (9, 0)),
        recipe(BODY, "2", 1, (8, 0)),
    ]
    assert len({first, *others}) == len(others) + 1


CLOSURES = """
def outer(first, second):
    def body(x): return first(x) - second(x)
    return body
def one(x): return x + 1
def two(x): return x + 2
"""


def test_the_recipe_knows_which_closure_cell_a_function_fills():
    ours = in_our_sources(CLOSURES)
    pairs = [(f, g) for f in (ours.one, ours.two) for g in (ours.one, ours.two)]
    three = in_our_sources("""
def outer(f, g, h):
    def body(x): return f(x) - g(x) * h(x)
    return body
""")
    one, two = ours.one, ours.two
    bodies = [ours.outer(*pair) for pair in pairs]
    bodies += [three.outer(*each) for each in ((one, one, two), (one, two, one), (two, one, one))]
    assert len({cubins.recipe(body) for body in bodies}) == len(bodies)


def test_the_recipe_knows_defaults_of_keywords():
    text = "def body(x, *, {}={}): return x"
    said = {
        cubins.recipe(in_our_sources(text.format(*each)).body)
        for each in (("y", 3), ("y", 4), ("z", 3))
    }
    assert len(said) == 3
    assert None not in said
    assert cubins.recipe(in_our_sources("def body(x, *, y=[3]): return x").body) is None


def test_the_recipe_is_the_same_in_each_process():
    program = (
        "from tinydilate import cubins, gpu_winograd; "
        "print(cubins.recipe(gpu_winograd._READ[4].body, {'a': 1}))"
    )
    said = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        said.add(call(program, env=environment))
    assert len(said) == 1


def _mine(x):
    return x + 1


def test_what_is_not_ours_has_no_recipe():
    """It may change while our sources stay the same, or be nothing that we can read."""
    assert cubins.recipe(_mine) is None
    rule = CudaElementwise(_mine)
    assert cubins.recipe(rule._alike.body) is None
    assert cubins.recipe(CudaElementwise(window.tapped_by)._alike.body) is not None
    ours = "def body(x): return thing"
    assert cubins.recipe(in_our_sources(ours, thing=3).body) is not None
    assert cubins.recipe(in_our_sources(ours, thing=object()).body) is None
    assert cubins.recipe(in_our_sources(ours, thing=[3]).body) is None, "a list may change"


@pytest.mark.parametrize("thing", [types, types.SimpleNamespace, pytest, time.sleep])
def test_modules_and_classes_that_we_do_not_know_have_no_recipe(thing):
    assert cubins.recipe(in_our_sources("def body(x): return thing", thing=thing).body) is None


@pytest.mark.parametrize("thing", [np, math, operator, np.float32, int, window, window.Window, abs])
def test_those_that_we_know_have_one(thing):
    assert cubins.recipe(in_our_sources("def body(x): return thing", thing=thing).body)


def test_another_compiler_is_another_recipe(monkeypatch):
    before = cubins.recipe(rectifier._relu_cuda.body)
    monkeypatch.setattr(cubins, "compilers", lambda: ["numba-cuda 9.9"])
    assert cubins.recipe(rectifier._relu_cuda.body) != before


@pytest.mark.parametrize(
    "name", ["NUMBA_CUDA_FASTMATH", "NUMBA_OPT", "NUMBA_FORCE_CUDA_CC", "CUDA_HOME", "CUDA_PATH"]
)
def test_settings_of_the_compiler_are_part_of_it(monkeypatch, name):
    before = cubins.compilers.__wrapped__()
    monkeypatch.setenv(name, "/elsewhere")
    assert set(cubins.compilers.__wrapped__()) - set(before) == {f"{name} /elsewhere"}


def test_the_version_of_llvmlite_is_part_of_it():
    assert f"llvmlite {metadata.version('llvmlite')}" in cubins.compilers.__wrapped__()


# ---- compiling and loading -------------------------------------------------------------------


class FakeDriver:
    """Takes machine code unless it is ``refusing``; ``loaded`` is what it took."""

    version = 13000

    def __init__(self):
        self.loaded, self.refusing, self.home = [], False, 0

    @contextmanager
    def at_home(self):
        self.home += 1
        yield
        self.home -= 1

    def load(self, code, entry):
        if self.refusing:
            raise device.DriverError("cuModuleLoadData", "CUDA_ERROR_INVALID_IMAGE")
        self.loaded.append((code, entry))
        return "function", "module"


class FakeNumba:
    """Compiles into the bytes of ``code``; ``compiled`` counts how often."""

    def __init__(self):
        self.compiled, self.code = 0, CODE

    def jit(self, signature, **options):
        def compiled(function):
            assert device.driver().home, "in our own context, whichever is current"
            self.compiled += 1
            library = types.SimpleNamespace(
                get_cufunc=lambda: types.SimpleNamespace(handle="handle"),
                get_cubin=lambda: types.SimpleNamespace(code=self.code.code),
                _entry_name=self.code.entry,
            )
            overload = types.SimpleNamespace(_codelibrary=library)
            return types.SimpleNamespace(overloads={signature: overload})

        return compiled


@pytest.fixture
def machine(home, monkeypatch):
    found = types.SimpleNamespace(driver=FakeDriver(), numba=FakeNumba())
    monkeypatch.setattr(launching, "SIMULATED", False)
    monkeypatch.setattr(launching, "CUDA_KERNELS", [])
    monkeypatch.setattr(device, "driver", lambda: found.driver)
    monkeypatch.setattr(device, "numba_cuda", lambda: found.numba)
    monkeypatch.setattr(device, "card", lambda: device.Card("fake", (9, 0), 1, 2**34))
    monkeypatch.setattr(CudaKernel, "source", lambda self: self.body)
    return found


def another_process(**options) -> CudaKernel:
    """A kernel that nobody has launched yet."""
    return CudaKernel(padding._pad_cuda.body, (np.float32, np.float64), **OPTIONS | options)


OPTIONS = {"wide_loads": False, "registers": 128}
FLOAT, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def test_the_next_process_need_not_compile(machine):
    first = another_process().compiled(FLOAT)
    assert (machine.numba.compiled, machine.driver.loaded) == (1, [])
    assert first.function == "handle"
    second = another_process().compiled(FLOAT)
    assert machine.numba.compiled == 1
    assert machine.driver.loaded == [(CODE.code, CODE.entry)]
    assert (second.function, second.owner) == ("function", "module")
    assert second.packing.format == first.packing.format


@pytest.mark.parametrize("what", ["dtype", "option", "card", "driver"])
def test_other_code_is_compiled(machine, monkeypatch, what):
    another_process().compiled(FLOAT)
    if what == "card":
        monkeypatch.setattr(device, "card", lambda: device.Card("fake", (8, 0), 1, 2**34))
    if what == "driver":
        machine.driver.version = 12080
    options = {"fastmath": {"contract", "nsz"}} if what == "option" else {}
    another_process(**options).compiled(DOUBLE if what == "dtype" else FLOAT)
    assert machine.numba.compiled == 2
    another_process(**options).compiled(DOUBLE if what == "dtype" else FLOAT)
    assert machine.numba.compiled == 2


def test_code_that_the_driver_refuses_is_compiled_and_written_anew(machine):
    another_process().compiled(FLOAT)
    machine.driver.refusing, machine.numba.code = True, Cubin("new", b"new code")
    assert another_process().compiled(FLOAT).function == "handle"
    assert machine.numba.compiled == 2
    machine.driver.refusing = False
    another_process().compiled(FLOAT)
    assert machine.driver.loaded == [(b"new code", "new")]


def test_a_kernel_of_the_users_is_compiled_each_time(machine, home):
    def mine(x: "Array", out: "Array") -> None:  # noqa: F821
        out[0] = x[0]

    for _ in range(2):
        CudaKernel(mine, (np.float32,), **OPTIONS).compiled(FLOAT)
    assert machine.numba.compiled == 2
    assert not home.exists()


PROGRAM = """
import sys
import numpy as np
from tinydilate import device, functional as F, tensor
from tinydilate.launching import CudaKernel
if sys.argv[1] == "again":
    def refuse(*arguments, **options):
        raise SystemExit("compiled again")
    device.numba_cuda().jit = refuse
x = tensor(np.array([-1, 2], np.float32), device="cuda")
print(*F.pad(F.relu(x), (1, 0)).numpy(), "%.3f %.3f" % tuple(F.softmax(x * x, 0).numpy()))
"""


@pytest.mark.gpu
@pytest.mark.skipif(device.SIMULATED, reason="the simulator compiles nothing")
def test_a_second_process_on_the_card_compiles_nothing(tmp_path):
    environment = {**os.environ, "TINYDILATE_CACHE": str(tmp_path)}
    said = [call(PROGRAM, which, env=environment) for which in ("first", "again")]
    assert said[0] == said[1] == "0.0 0.0 2.0 0.047 0.953\n"
