"""Kernels: twins by name, variants by force, and machine code that is never stale."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from programs import load

import tinydilate
import tinydilate.functional as F
from tinydilate import compiling, kernel, use
from tinydilate.device import MetaArray
from tinydilate.errors import DeviceError, DtypeError, KernelError
from tinydilate.kernel import KERNELS, Elementwise, jit

PACKAGE = Path(tinydilate.__file__).parent


@pytest.fixture
def registry():
    """Kernels that a test makes are forgotten after it."""
    before = dict(KERNELS)
    yield KERNELS
    KERNELS.clear()
    KERNELS.update(before)


# ---- dispatch --------------------------------------------------------------------------------


def test_a_missing_twin_is_a_named_error(registry):
    @kernel.kernel
    def halve_for_test(x):
        """Half."""
        return x / 2

    text = (
        'halve_for_test has no cpu kernel yet; it has numpy. Move the tensors with .to("cpu"), '
        "or add the twin on the page tinydilate/functional/test_kernel.py."
    )
    with pytest.raises(KernelError, match="^" + re.escape(text) + "$"):
        halve_for_test(np.ones(2))
    with pytest.raises(KernelError, match="has no meta kernel yet; it has numpy"):
        halve_for_test(MetaArray((2,)))
    with use("numpy"):
        assert halve_for_test(np.ones(2)).tolist() == [0.5, 0.5]
    assert repr(halve_for_test) == "<kernel halve_for_test: numpy>"
    assert halve_for_test.__doc__ == "Half."


def test_two_kernels_of_one_name_are_refused(registry):
    def exp_forward(x):
        return x

    with pytest.raises(KernelError, match=r"^expected one kernel named exp_forward; got a second"):
        kernel.kernel(exp_forward)


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(KernelError, match=r"got 'gpu'\.$") as raised, use("gpu"):
        pass
    assert str(raised.value).startswith("expected an implementation out of cpu, cpu:direct, ")


def test_variants_nest_and_the_innermost_counts():
    x = np.ones((1, 1, 4, 4), np.float32)
    seen = []
    with tinydilate.watching(lambda launch: seen.append(launch.implementation)):
        with use("numpy"):
            F.conv2d(x, x)
            with use("cpu:loops"):
                F.conv2d(x, x)
                F.relu(x)  # has no loops: the next one out
            F.conv2d(x, x)
        F.conv2d(x, x)
    assert seen == ["numpy", "cpu:loops", "numpy", "numpy", "cpu"]


def test_a_variant_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), use("numpy"):
        raise ZeroDivisionError
    assert kernel._forced == []


def test_shape_rules_are_not_forced():
    with use("numpy"):
        assert F.exp(tinydilate.tensor(MetaArray((2,)), device="meta")).shape == (2,)


def test_arrays_on_two_devices_are_refused_by_name():
    with pytest.raises(DeviceError, match=r"^add_forward expected its arrays on one device; got"):
        KERNELS["add_forward"](np.ones(2), MetaArray((2,), np.float64))


def test_arrays_of_two_dtypes_are_refused_by_name():
    text = (
        "add_forward expected arrays of one dtype; got float64 and float32. Convert one of them, "
        "for example with .to('float64')."
    )
    with pytest.raises(DtypeError, match="^" + re.escape(text) + "$"):
        KERNELS["add_forward"](np.ones(2), np.ones(2, np.float32))


def test_arrays_are_made_contiguous_at_the_door(registry):
    @kernel.kernel
    def flags_for_test(arrays, x):
        return [array.flags.carray for array in (*arrays, x)]

    flags_for_test.cpu(flags_for_test.implementations["numpy"])
    wide = np.ones((4, 4))
    fixed = np.ones(3)
    fixed.flags.writeable = False
    odd = np.frombuffer(bytearray(17), np.uint8)[1:].view(np.float64)  # not aligned
    assert flags_for_test([wide.T[1:], wide[:, ::2]], fixed) == [True] * 3
    assert flags_for_test([odd], wide) == [True] * 2


@pytest.mark.parametrize("order", [(np.float32, np.float64), (np.float64, np.float32)])
def test_a_rule_keeps_the_dtype_whichever_came_first(order):
    rule = Elementwise(lambda a: 1 / (a + 1))
    for dtype in (*order, *order):
        result = rule(np.ones(3, dtype))
        assert result.dtype == dtype
        assert result.tolist() == [0.5, 0.5, 0.5]
    assert np.asarray(rule(np.ones((), np.float32))).dtype == np.float32


def quotient(a, b):
    return a / b


@pytest.mark.parametrize("threads", [1, 2])
def test_a_rule_on_many_numbers_gives_what_it_gives_on_few(threads):
    rule, before = Elementwise(quotient, shared=True), tinydilate.get_num_threads()
    a = np.random.default_rng(0).normal(size=(3, 70_000)).astype(np.float32)
    b = a[::-1].copy()
    b[0, 0] = 0
    tinydilate.set_num_threads(threads)
    try:
        with np.errstate(all="raise"):  # inf and nan are answers, on every thread
            whole, repeated = rule(a, b), rule(a, a[:1] + 9)
    finally:
        tinydilate.set_num_threads(before)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(whole, a / b)
    np.testing.assert_array_equal(repeated, a / (a[:1] + 9))
    assert whole.dtype == repeated.dtype == np.float32


def test_the_door_sees_what_hides_among_ready_arrays():
    class Named(np.ndarray):
        pass

    ready, odd = np.ones((2, 2)), np.ones((2, 4))[:, ::2]
    assert kernel._ready((ready, 3, [ready, ready], ready.astype(np.int64), None))
    alike = ready.view(ready.dtype.newbyteorder("="))  # the same dtype in another object
    assert alike.dtype is not ready.dtype
    assert kernel._ready((ready, alike))
    others = odd, odd.view(Named), [odd], [1.0], [ready, MetaArray((2, 2))], MetaArray((2, 2))
    for other in (*others, np.ones(2, np.float32), [ready, np.ones(2, np.float32)]):
        assert not kernel._ready((ready, other))


# ---- compiled loops --------------------------------------------------------------------------


@jit
def _square(x):
    return x * x


@jit
def _sum_of_squares(n):
    total = 0
    for i in range(n):
        total += _square(i)
    return total


def test_a_loop_calls_other_loops():
    assert _sum_of_squares(5) == 30
    assert _sum_of_squares.__name__ == "_sum_of_squares"


def test_defining_a_loop_compiles_nothing():
    fresh = jit(lambda x: x)
    assert fresh._compiled is None


# ---- the cache on disk -----------------------------------------------------------------------


def in_another_process(code, package=PACKAGE.parent, **environment):
    """Run code on a copy of the package; its standard output."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(package), **environment},
        cwd=package,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture
def copy(tmp_path):
    """A copy of the package's sources that a test may edit."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "copy" / "tinydilate", ignore=ignore)
    return tmp_path / "copy"


COMPILE = """
import numpy as np
import tinydilate.functional as F
print(F.relu(np.array([-1.0, 2.0])).numpy().tolist())
"""


def test_an_edit_is_never_answered_with_stale_code(copy, tmp_path):
    """Not even one in a rule that a loop of another file calls, which Numba's own cache misses."""
    package, cache = copy / "tinydilate", tmp_path / "cache"
    importing = "from tinydilate.kernel import jit\n"
    rule = importing + "@jit\ndef rule(x):\n    return 2 * x\n"
    loop = importing + "from tinydilate.rule import rule\n@jit\ndef loop(x):\n    return rule(x)\n"
    (package / "rule.py").write_text(rule, encoding="utf-8")
    (package / "loop.py").write_text(loop, encoding="utf-8")
    ask = "from tinydilate.loop import loop; print(loop(21))"
    assert in_another_process(ask, copy, TINYDILATE_CACHE=str(cache)) == "42"
    assert len(list(cache.iterdir())) == 1
    assert list(cache.rglob("loop*.nbi")), "machine code was kept"
    (package / "rule.py").write_text(rule.replace("2 * x", "3 * x"), encoding="utf-8")
    assert in_another_process(ask, copy, TINYDILATE_CACHE=str(cache)) == "63"
    assert len(list(cache.iterdir())) == 2


def test_an_edit_in_a_helper_changes_the_digest(copy):
    digest = "from tinydilate.compiling import source_digest; print(source_digest())"
    before = in_another_process(digest, copy)
    checked = in_another_process(digest, copy, NUMBA_BOUNDSCHECK="1")
    assert len({before, checked}) == 2
    with (copy / "tinydilate" / "window.py").open("a", encoding="utf-8") as file:
        file.write("# an edit\n")
    assert in_another_process(digest, copy) not in (before, checked)


def test_old_machine_code_is_pruned(tmp_path):
    for number in range(8):
        folder = tmp_path / f"numba-{number}"
        folder.mkdir()
        os.utime(folder, (number, number))
    (tmp_path / "something else").mkdir()
    current = tmp_path / "numba-0"
    compiling._prune(current)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["numba-0", "numba-5", "numba-6", "numba-7", "something else"]


def test_machine_code_of_today_is_kept(tmp_path):
    for number in range(8):
        (tmp_path / f"numba-{number}").mkdir()
    compiling._prune(tmp_path / "numba-0")
    assert len(list(tmp_path.iterdir())) == 8


def test_the_users_own_kernels_are_cached_where_they_were(tmp_path):
    code = (
        "import numba; before = numba.config.CACHE_DIR\n"
        + COMPILE
        + "assert numba.config.CACHE_DIR == before, numba.config.CACHE_DIR"
    )
    in_another_process(code, TINYDILATE_CACHE=str(tmp_path))
    mine = str(tmp_path / "mine")
    code += f"; assert before == {mine!r}"
    in_another_process(code, TINYDILATE_CACHE=str(tmp_path / "ours"), NUMBA_CACHE_DIR=mine)
    assert not (tmp_path / "mine").exists()


def test_without_a_folder_to_write_to_all_works(tmp_path):
    """The folder's place is taken by a file, which stops root too."""
    (tmp_path / "taken").write_text("")
    place = tmp_path / "taken"
    code = COMPILE + "from tinydilate.compiling import cache_folder; print(cache_folder())"
    assert in_another_process(code, TINYDILATE_CACHE=str(place)) == "[0.0, 2.0]\nNone"


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYDILATE_CACHE", str(tmp_path))
    assert compiling.cache_home() == tmp_path
    monkeypatch.delenv("TINYDILATE_CACHE")
    assert compiling.cache_home().name == "tinydilate"


# ---- Numba's own switches --------------------------------------------------------------------

BESIDE = """
import numpy as np
from tinydilate.compiling import jit
@jit
def last(numbers, n):
    return numbers[n]
three = np.ones(3)
assert last(three, 2) == 1
try:
    last(three, 3)
except IndexError as error:
    print(error)
"""


def test_checked_bounds_catch_an_index_beside_its_array(tmp_path):
    """What `make bounds` relies on. Vectors it does not check: test_guarded.py does."""
    cache = {"TINYDILATE_CACHE": str(tmp_path)}
    assert "out of bounds" in in_another_process(BESIDE, NUMBA_BOUNDSCHECK="1", **cache)


@pytest.fixture(scope="module")
def plain_python():
    """The program behind `make plain`."""
    return load("scripts", "plain_python")


def test_lines_that_never_ran_are_named_unless_excused(plain_python):
    """What `make plain` relies on."""
    code = kernel._over_two.__code__
    first = code.co_firstlineno
    every = list(range(first - 2, first + 9))  # beyond the function on both sides

    def watcher(*missed):
        return SimpleNamespace(analysis2=lambda path: (path, every, [], list(missed), ""))

    def objections(*missed, **excused):
        loops = list(
            plain_python.measured(watcher(*missed), [code, test_a_loop_calls_other_loops.__code__])
        )
        assert [loop.name for loop in loops] == ["tinydilate/kernel.py:_over_two"]  # of the package
        return plain_python.objections(loops, {f"tinydilate/kernel.py:{n}": "" for n in excused})

    assert objections() == []
    assert objections(first - 1, first + 8) == []  # of somebody else
    text = (
        f"tinydilate/kernel.py:_over_two: lines {first + 1}, {first + 3} never ran as plain "
        "Python. Give it a test that gets there, and mark that test `plain`."
    )
    assert objections(first + 1, first + 3) == [text]
    assert objections(first + 1, _over_two="why not") == []
    text = (
        "tinydilate/kernel.py:_over_two: excused, but all of its lines ran, or there is no such "
        "loop. Take the name out of EXCUSED in scripts/plain_python.py."
    )
    assert objections(_over_two="why not") == [text]


def test_every_loop_of_the_package_is_watched(plain_python):
    """As many as there are lines in the sources that mark one, and one of each other kind."""
    codes = {
        (Path(code.co_filename).name, code.co_name) for code in plain_python.compiled_functions()
    }
    marked = {
        (path.name, name)
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(
            r"^@(?:jit(?:_\w+)?|native\(.*\))\ndef (\w+)", path.read_text("utf-8"), re.MULTILINE
        )
    }
    assert len(marked) > 90
    assert not marked - codes
    of_other_kinds = [
        ("arithmetic.py", "_slope_base"),  # a rule
        ("handover.py", "together"),  # frames
        ("handover.py", "together_in_rooms"),
        ("kernel.py", "_over_two"),
        ("window.py", "tap"),
        ("simd.py", "_twin"),
    ]
    assert set(of_other_kinds) <= codes


def test_a_body_that_stands_in_its_head_counts_as_missed(plain_python):
    """Its line runs when it is defined, whether anybody calls it or not."""
    code = compile("one = lambda x: x + 1", str(PACKAGE / "one.py"), "exec").co_consts[0]
    watcher = SimpleNamespace(analysis2=lambda path: (path, [1], [], [], ""))
    (loop,) = plain_python.measured(watcher, [code])
    assert loop == ("tinydilate/one.py:<lambda>", 1, (1,))


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_a_full_disk_stops_no_computation(tmp_path):
    """Files may not grow beyond 1 KB here, as on a full disk: loops are compiled, not kept."""
    code = (
        "import resource, signal, warnings; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); "
        "import numpy as np, tinydilate.functional as F; from tinydilate import tensor\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    x = tensor(np.ones((1, 1, 4, 4), np.float32), requires_grad=True)\n"
        "    (F.conv2d(x, np.ones((1, 1, 3, 3), np.float32)) * 2).sum().backward()\n"
        "assert x.grad.data[0, 0, 1, 1] == 8\n"
        "texts = [str(w.message) for w in caught if 'could not be kept' in str(w.message)]\n"
        "assert len(texts) == 1 and 'set TINYDILATE_CACHE to another folder' in texts[0], texts"
    )
    in_another_process(code, TINYDILATE_CACHE=str(tmp_path))
