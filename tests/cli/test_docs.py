"""docs/cli.md and docs/screen.svg are generated: what changes without `make docs screenshot` fails here."""

from __future__ import annotations

import html
import re
import runpy
from pathlib import Path

import pytest

from planner.cli.app import run
from planner.cli.flags import ESTIMATE_FLAGS, PLAN_FLAGS

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_page_is_current() -> None:
    page = runpy.run_path(str(ROOT / "tools" / "gen_docs.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page, "run `make docs`"


def test_the_command_page_names_every_flag() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    spelled = {f"--[no-]{flag.option[2:]}" if flag.negative else flag.option for flag in (*PLAN_FLAGS, *ESTIMATE_FLAGS)}
    assert {option for option in spelled if f"| `{option}" not in text} == set()


def test_the_picture_of_the_readme_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The chosen configuration and the whole table of the picture are today's; `make screenshot` renews it."""
    monkeypatch.chdir(tmp_path)
    run(["--gpus", "3x20GB", "--model", "7B"])
    picture = html.unescape(re.sub(r"<[^>]+>", "", (ROOT / "docs" / "screen.svg").read_text(encoding="utf-8")))
    printed = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(printed) if line.startswith("What fits"))
    end = next(number for number, line in enumerate(printed) if line.startswith("fits  needs"))
    rows = [line for line in printed[start : end + 1] if not line.startswith("─")]
    missing = [line for line in rows if "".join(line.split()) not in "".join(picture.split())]
    assert missing == [], "run `make screenshot`"
