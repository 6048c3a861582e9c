"""docs/reliability.md names tests that exist, and no promise is without one."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISES = (ROOT / "docs/reliability.md").read_text(encoding="utf-8").partition("## Promises")[2].partition("\n## ")[0]
ROWS = [row.strip("| ").split(" | ") for row in PROMISES.splitlines() if row.startswith("|")][2:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_promise_names_a_test_that_exists(row):
    _, promise, names = row
    found = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", names)
    assert promise and found
    for file, name in found:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_table_is_read():
    assert len(ROWS) > 30
