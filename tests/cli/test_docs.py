"""docs/cli.md is generated: a flag that changes without `make docs` fails here."""

from __future__ import annotations

import runpy
from pathlib import Path

from planner.cli.flags import ESTIMATE_FLAGS, PLAN_FLAGS

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_page_is_current() -> None:
    page = runpy.run_path(str(ROOT / "tools" / "gen_docs.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page, "run `make docs`"


def test_the_command_page_names_every_flag() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    spelled = {f"--[no-]{flag.option[2:]}" if flag.negative else flag.option for flag in (*PLAN_FLAGS, *ESTIMATE_FLAGS)}
    assert {option for option in spelled if f"| `{option}" not in text} == set()
