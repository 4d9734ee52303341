"""The README keeps its word: its example prints what it says, its commands are there."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_prints_what_stands_below_it():
    example, printed = re.search(
        r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.DOTALL
    ).groups()
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(example, "README.md", "exec"), {})
    assert output.getvalue() == printed


@pytest.mark.parametrize("command", sorted(set(re.findall(r"\bmake ([\w-]+)", README))))
def test_the_makefile_has(command):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command}:.*##", makefile, re.MULTILINE)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_the_link_leads_somewhere(target):
    assert (ROOT / target).exists()
