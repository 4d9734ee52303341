"""The commands that README, documentation and tutorials name: the parser takes them all."""

import re
import shlex
from pathlib import Path

import pytest

from tinydilate.cli import make_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES += sorted(ROOT.glob("tutorials/*.md"))


def commands_of(text: str) -> set[str]:
    """Lines of code blocks, and what stands between backquotes, that begin with ``tinydilate``."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [" ".join(part.split()) for part in re.findall(r"`([^`]+)`", prose)]
    found = (re.match(r"(?:\.venv/bin/)?tinydilate ([a-z].*)", line) for line in lines)
    return {match[1].partition(" > ")[0] for match in found if match}


COMMANDS = sorted(set().union(*(commands_of(page.read_text(encoding="utf-8")) for page in PAGES)))


def test_they_are_found():
    text = "`tinydilate rf\nvoc`, `x`\n```sh\ntinydilate a \\\n  --b  # c\nmake d\n```\n"
    assert commands_of(text) == {"rf voc", "a    --b  # c"}
    assert len(COMMANDS) > 50


@pytest.mark.parametrize("command", COMMANDS)
def test_the_parser_takes(command):
    words = shlex.split(command, comments=True)
    if len(words) > 1:
        assert make_parser().parse_args(words).run
    else:  # only the command is named
        with pytest.raises(SystemExit, match=r"^0$"):
            make_parser().parse_args([*words, "--help"])
