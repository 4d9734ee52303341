"""The map from the paper to the code names things that are there."""

import re
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "paper_to_code.md"
TABLE = re.compile(r"^```\{paper-to-code\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROWS = [
    row.split(" | ")
    for table in TABLE.findall(PAGE.read_text(encoding="utf-8"))
    for row in table.splitlines()
]


@pytest.mark.parametrize("row", ROWS, ids=[" ".join(row[:2]) for row in ROWS])
def test_what_a_row_names_exists(row):
    _, _, names = row
    for entry in names.split(", "):
        module, _, name = entry.partition(":")
        assert attrgetter(name)(import_module(f"tinydilate.{module}")) is not None


def test_every_equation_and_table_has_a_row():
    places = "; ".join(row[0] for row in ROWS)
    equations = {int(number) for number in re.findall(r"Eq\. \((\d)\)", places)}
    tables = {
        int(n) for group in re.findall(r"Tables? ([\d, ]+)", places) for n in group.split(",")
    }
    assert equations == set(range(1, 6))
    assert tables == set(range(1, 9))
