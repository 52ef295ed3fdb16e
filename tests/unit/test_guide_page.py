"""``docs/guide.md`` tells the truth: the tests it names exist, and they run the lines it says they run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guide.md").read_text()
MODULES = {
    short: ROOT / "tests" / "docker" / file for short, file in re.findall(r"`(\w+)`\s+is\s+`(test_\w+\.py)`", PAGE)
}
ROWS = [
    [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith(("|--", "| in the guide"))
]
NAMED = sorted(set(re.findall(r"`(\w+)::(test_\w+)`", PAGE)))
COMMANDS = [(row[0][1:-1], row[2]) for row in ROWS if re.fullmatch("`[^`]*`", row[0])]


def functions(module: Path) -> dict[str, ast.FunctionDef]:
    return {f.name: f for f in ast.parse(module.read_text()).body if isinstance(f, ast.FunctionDef)}


def strings(function: ast.FunctionDef) -> str:
    """Every string of the test, its parameters included."""
    return "\n".join(
        node.value for node in ast.walk(function) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_the_page_was_read():
    assert len(COMMANDS) > 25
    assert len(NAMED) > 25
    assert all(len(row) == 3 for row in ROWS)


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_a_named_test_exists(module, name):
    assert name in functions(MODULES[module])


@pytest.mark.parametrize(("command", "tests"), COMMANDS)
def test_a_line_is_run_by_the_test_that_is_named(command, tests):
    texts = [strings(functions(MODULES[module])[name]) for module, name in re.findall(r"`(\w+)::(\w+)`", tests)]
    assert any(command in text for text in texts)


def test_rows_without_a_test_say_that_it_is_not_there_yet():
    assert all("not yet" in row[1] for row in ROWS if not row[2])
