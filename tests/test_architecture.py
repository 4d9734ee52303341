"""The house keeps its order: who may import whom, and what is imported when."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinydilate
import tinydilate.functional as F
from tinydilate.autograd import FUNCTIONS

PACKAGE = Path(tinydilate.__file__).parent

PAGES = [
    "arithmetic",
    "rectifier",
    "shaping",
    "reduction",
    "products",
    "padding",
    "unfolding",
    "convolution",
    "transposed",
    "pooling",
    "softmax_loss",
    "resizing",
    "dropping",
]

# Each link of the chain may import from the links before it, and a link that is a folder from
# within itself. Modules that share a link do not know each other.
CHAIN = [
    ["errors"],
    ["window", "options", "buffers", "dlpack", "classes", "kept", "pictures", "absent"],
    ["config"],
    ["compiling"],
    ["handover"],
    ["threads"],
    ["device", "field", "cubins", "second_process"],
    ["launching", "recording"],
    ["kernel"],
    ["simd"],
    ["gemm", "winograd", "gpu_tf32"],
    ["gpu_gemm"],
    ["gpu_winograd"],
    ["autograd"],
    *([f"functional.{page}"] for page in PAGES),
    ["functional"],
    ["gradient_check", "init"],
    [""],  # tinydilate itself: the public names
    ["nn"],
    ["models"],
    ["receptive_field"],
    ["optim", "data", "metrics", "io"],
    ["evaluation", "submission", "paper_tables"],
    ["see", "warmup", "gpu_checkup", "running"],
    ["predict"],
    ["exporting"],
    ["train", "recipes"],
    ["compiling_ahead"],
    ["doctor"],
    ["cli"],
    ["__main__"],
]


def modules() -> dict[str, ast.Module]:
    """Dotted name below the package -> syntax tree; a folder's name is its ``__init__``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def link_of(name: str) -> int:
    """Place in the chain; a module in a folder stands where the folder stands."""
    for place, names in enumerate(CHAIN):
        if name in names or (name.partition(".")[0] in names and "." in name):
            return place
    pytest.fail(f"{name or 'tinydilate'} has no place in the chain of tests/test_architecture.py")


def ours(tree: ast.Module) -> list[tuple[str, int]]:
    """(module of ours, line) for each import in a file, those inside functions included."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else node.module for name in below]
        else:
            continue
        found += [
            (name.removeprefix("tinydilate").lstrip("."), node.lineno)
            for name in names
            if name.split(".")[0] == "tinydilate"
        ]
    return found


def is_module(name: str) -> bool:
    return name.removeprefix("tinydilate.") in MODULES


def packages(tree: ast.AST) -> set[str]:
    """Top-level names of all that a piece of code imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def imported_at_once(tree: ast.Module) -> set[str]:
    """What importing the module imports: imports outside functions."""
    outside = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {name for node in outside for name in packages(node)}


def test_imports_point_in_one_direction():
    wrong = []
    for name, tree in MODULES.items():
        if name == "":  # the front door shows what lies behind it
            continue
        for imported, line in ours(tree):
            here, there = link_of(name), link_of(imported)
            same_folder = here == there and name.split(".")[0] == imported.split(".")[0]
            if not (there < here or (same_folder and name.split(".")[0] != "functional")):
                wrong.append(f"{name}:{line} imports {imported or 'tinydilate'}")
    chain = " < ".join(", ".join(name or "tinydilate" for name in link) for link in CHAIN)
    assert not wrong, "\n".join([*wrong, f"The chain is {chain}"])


def test_no_two_modules_import_each_other():
    """Within a folder too, where the chain says nothing."""
    graph = {
        name: {imported for imported, _ in ours(tree) if imported not in ("", name)}
        for name, tree in MODULES.items()
        if name
    }
    while graph:
        free = [name for name, imports in graph.items() if not imports & graph.keys()]
        assert free, f"these import each other in a circle: {sorted(graph)}"
        for name in free:
            del graph[name]


def test_the_chain_names_every_page_in_order():
    assert {f"functional.{page}" for page in PAGES} == {
        name for name in MODULES if name.startswith("functional.")
    }


def test_numba_is_imported_in_few_places_and_late():
    """By the modules that bind it; and by those that report on it. Never while importing."""
    allowed = {
        "compiling",
        "handover",
        "launching",
        "kernel",
        "device",
        "simd",
        "gpu_tf32",
        "doctor",
        "running",
    }
    for name, tree in MODULES.items():
        if packages(tree) & {"numba", "llvmlite"}:
            assert name in allowed, f"{name} imports Numba; pages get it through compiling.py"
        assert not imported_at_once(tree) & {"numba", "llvmlite"}, f"{name} imports Numba at once"


def test_matplotlib_is_imported_inside_functions():
    for name, tree in MODULES.items():
        assert not imported_at_once(tree) & {"matplotlib", "scipy", "PIL"}, name


def test_matplotlib_is_never_asked_for_a_display():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            imported = isinstance(node, ast.Import | ast.ImportFrom)
            assert not (imported and "pyplot" in ast.unparse(node)), f"{name}:{node.lineno}"


def test_no_module_bears_the_name_of_a_public_function():
    """Or ``tinydilate.pool`` would be a module or a function, depending on who was imported."""
    functions = {*FUNCTIONS, *F.__all__}
    functions |= {n for n in tinydilate.__all__ if not inspect.ismodule(getattr(tinydilate, n))}
    names = {part for name in MODULES for part in name.split(".")}
    assert not functions & names


def test_public_names_of_pages_are_public():
    for page in PAGES:
        module = sys.modules[f"tinydilate.functional.{page}"]
        for name, function in FUNCTIONS.items():
            if function.__module__ == module.__name__:
                assert getattr(F, name) is function


@pytest.mark.parametrize("name", [name for name in MODULES if "." not in name and name])
def test_nothing_reads_code_out_of_data(name):
    """No pickle, eval or exec; arrays are loaded without objects."""
    for module, tree in MODULES.items():
        if module.split(".")[0] != name:
            continue
        banned = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        assert not packages(tree) & banned, module
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__"), module
                if called in ("np.load", "numpy.load"):
                    options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert options.get("allow_pickle") == "False", f"{module}:{node.lineno}"


@pytest.mark.parametrize("name", list(MODULES))
def test_no_star_imports(name):
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names)


@pytest.mark.parametrize("name", ["autograd", "window", "threads", "device", "simd", "gemm"])
def test_the_engine_does_not_recurse(name):
    """No function calls itself, by its name or through the other functions of its module."""
    calls: dict[str, set[str]] = {}
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            inside = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
            own = {call.func.id for call in inside if isinstance(call.func, ast.Name)}
            own |= {
                call.func.attr
                for call in inside
                if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "self"
            }
            calls[node.name] = own
    while True:  # leave out what calls nothing of ours, until only circles are left
        free = [function for function, called in calls.items() if not called & calls.keys()]
        if not free:
            break
        for function in free:
            del calls[function]
    assert not calls, f"these call each other in a circle: {sorted(calls)}"


def test_the_pages_write_their_kernels_in_one_order():
    """Reference, CPU and its variants, CUDA and its variants, shape rule: so on every page."""
    rank = {"numpy": 0, "cpu": 1, "cpu:": 2, "cuda": 3, "cuda:": 3, "meta": 4}
    for entry in tinydilate.kernel.KERNELS.values():
        order = [rank["".join(name.partition(":")[:2])] for name in entry.implementations]
        assert order == sorted(order), f"{entry.name}: {', '.join(entry.implementations)}"


def test_pages_have_a_docstring_with_definition_and_derivative():
    for page in PAGES:
        text = ast.get_docstring(MODULES[f"functional.{page}"])
        assert "Definition:" in text, page
        assert "Derivative:" in text, page


def test_importing_brings_neither_numba_nor_matplotlib_nor_scipy():
    code = (
        "import sys, tinydilate; "
        "late = {'numba', 'llvmlite', 'matplotlib', 'scipy', 'PIL', 'hypothesis', 'torch'}; "
        "print(sorted(late & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert run.stdout.strip() == "[]", run.stderr


def test_the_first_loop_brings_none_of_scipys_linear_algebra_and_takes_none_away():
    """Numba imports it to see whether it is there, in a third of the time of the first step."""
    code = (
        "import sys, numpy as np, tinydilate; "
        "tinydilate.functional.max_pool2d(np.ones((1, 2, 4, 4), np.float32), 2); "
        "assert 'numba.np.arraymath' in sys.modules; "
        "print('scipy.linalg' in sys.modules); "
        "import numba; "
        "dot = numba.njit(lambda a: (np.dot(a, a), np.correlate(a, a))); "
        "print(dot(np.arange(3.0)), 'scipy.linalg.cython_blas' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split("\n")[:2] == ["False", "(5.0, array([5.])) True"], run.stderr


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").exists()
