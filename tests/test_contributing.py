"""CONTRIBUTING.md, carried out as it stands in a copy of the repository: the op comes out green."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)

# The page's parts in the order that the text gives them: twins below their reference.
PARTS = [
    "leaky_relu_forward",
    "leaky_relu_forward_cpu",
    "_leaky_relu",
    "leaky_relu_forward_cuda",
    "_leaky_relu_cuda",
    "leaky_relu_forward_meta",
    "leaky_relu_backward",
    "leaky_relu_backward_cpu",
    "_leaky_relu_backward",
    "leaky_relu_backward_cuda",
    "_leaky_relu_backward_cuda",
    "leaky_relu_backward_meta",
    "LeakyReLU",
    "leaky_relu",
]


def block(beginning: str) -> str:
    (found,) = (text for text in BLOCKS if text.startswith(beginning))
    return found


def definitions() -> dict[str, str]:
    """Source of each function and class that the blocks define, decorators included."""
    found = {}
    for text in BLOCKS:
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first = min(each.lineno for each in [node, *node.decorator_list])
                lines = text.splitlines()[first - 1 : node.end_lineno]
                found[node.name] = "\n".join(lines)
    return found


def page() -> str:
    docstring = ast.get_docstring(ast.parse(block('"""The leaky rectifier')), clean=False)
    rectifier = (ROOT / "tinydilate/functional/rectifier.py").read_text(encoding="utf-8")
    begin = rectifier.index("from __future__")
    imports = rectifier[begin : rectifier.index("# ----")].replace("WORTH_A_THREAD, ", "")
    found = definitions()
    assert sorted(found) == sorted(PARTS)
    parts = "\n\n\n".join(found[name] for name in PARTS)
    return f'"""{docstring}"""\n\n{imports.rstrip()}\n\n\n{parts}\n'


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} has no {old!r} any more"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.fixture
def copy(tmp_path):
    """A copy of what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", "_build", "results")
    for name in ("tinydilate", "tests", "docs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def check(copy: Path, *arguments: str, **environment: str) -> str:
    """Run pytest in the copy; the numbers that it ends with."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=copy,
        env={**os.environ, "TINYDILATE_CACHE": str(copy / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
def test_the_op_is_added_as_the_page_says(copy):
    package, tests = copy / "tinydilate", copy / "tests"
    # 1. The case alone: the tests say that its kernels are missing, in a sentence.
    indented = "    " + block("Case(").replace("\n", "\n    ").rstrip() + ",\n"
    edit(
        tests / "cases.py",
        '    Case(\n        "relu",\n',
        indented + '    Case(\n        "relu",\n',
    )
    told = check(copy, "tests/test_ops.py", "-k", "its_kernels or has_a_case")
    assert "cases name kernels that do not exist: ['leaky_relu_backward', 'leaky_relu_for" in told

    # 2 to 5. The page, and the two files that name every page.
    (package / "functional" / "leaky_rectifier.py").write_text(page(), encoding="utf-8")
    edit(
        package / "functional" / "__init__.py",
        "from tinydilate.functional.padding",
        "from tinydilate.functional.leaky_rectifier import leaky_relu\n"
        "from tinydilate.functional.padding",
    )
    edit(
        package / "functional" / "__init__.py",
        '    "linear",\n',
        '    "leaky_relu",\n    "linear",\n',
    )
    edit(
        package / "functional" / "__init__.py",
        "rectifier, shaping",
        "rectifier, leaky_rectifier, shaping",
    )
    edit(
        tests / "test_architecture.py",
        '    "shaping",\n',
        '    "leaky_rectifier",\n    "shaping",\n',
    )

    # 6. Those who know every op; the rule for ONNX stands in the docstring there.
    importing = "from tinydilate.functional.padding import Pad\n"
    ours = "from tinydilate.functional.leaky_rectifier import LeakyReLU\n" + importing
    rules, onnx = package / "receptive_field" / "rules.py", package / "io" / "onnx_rules.py"
    for path in (rules, onnx):
        edit(path, importing, ours)
    edit(rules, "@rule(ReLU, Neg,", "@rule(ReLU, LeakyReLU, Neg,")
    rule = re.search(r"\n(    @rule\(LeakyReLU\).*?)\n\n", onnx.read_text("utf-8"), re.DOTALL)[1]
    with onnx.open("a", encoding="utf-8") as file:
        file.write("\n\n" + rule.replace("\n    ", "\n").removeprefix("    ") + "\n")
    edit(
        package / "warmup.py",
        "        F.dropout(x, 0.5),",
        "        F.dropout(x, 0.5), F.leaky_relu(x),",
    )

    # 7. The mutant.
    edit(
        tests / "mutants.py",
        "    Mutant(\n",
        "    " + block("Mutant(").rstrip().replace("\n", "\n    ") + ",\n    Mutant(\n",
    )

    assert failures(check(copy, "tests/test_ops.py", "-k", "leaky or kernel or function")) == []
    named = ["architecture", "warmup", "receptive_field"]
    files = [f"tests/test_{name}.py" for name in named]
    wanted = "order or pages or docstring or direction or every_kernel or has_a_rule"
    assert failures(check(copy, *files, "-k", wanted)) == []
    assert failures(check(copy, "tests/test_mutants.py", "-k", "slope and forgotten")) == []
    simulated = {"NUMBA_ENABLE_CUDASIM": "1"}
    files = ["tests/test_ops.py", "tests/test_gpu.py"]
    assert failures(check(copy, "-m", "gpu", *files, "-k", "leaky", **simulated)) == []
    plain = check(copy, "-m", "plain", "tests/test_ops.py", "-k", "leaky", NUMBA_DISABLE_JIT="1")
    assert failures(plain) == []


def failures(told: str) -> list[str]:
    """What pytest reports as failed; that anything passed is demanded as well."""
    assert re.search(r"\b[1-9][0-9]* passed", told), told
    return re.findall(r"^(?:FAILED|ERROR) (.*)", told, re.MULTILINE)
