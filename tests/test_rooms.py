"""Imports follow the arrows of docs/design.md: a room knows the rooms before it, never those after."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = tuple(re.findall(r"^\| `planner\.(\w+)` \|", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"), re.M))
OPEN_TO_ALL = "planner.plan.plan"


def imported(path: Path) -> Iterator[str]:
    """Every module of the package that a file names, at its top or late."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)


def test_every_room_is_in_the_table() -> None:
    folders = {path.parent.name for path in (ROOT / "planner").glob("*/__init__.py")}
    assert set(ROOMS) - {"training"} == folders


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_those_before_it(room: str) -> None:
    later = {f"planner.{name}" for name in ROOMS[ROOMS.index(room) + 1 :]}
    files = [*(ROOT / "planner" / room).rglob("*.py"), *(ROOT / "planner").glob(f"{room}.py")]
    assert files
    found = {
        (path.name, module)
        for path in files
        for module in imported(path)
        if module != OPEN_TO_ALL and ".".join(module.split(".")[:2]) in later
    }
    assert found == set()
