"""Predictions beside every published measurement, computed once for the whole suite."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tools"))

from comparisons import Comparison, Judged, compare, judge_rows


@pytest.fixture(scope="session")
def judged() -> list[Judged]:
    return judge_rows("published", "limits")


@pytest.fixture(scope="session")
def held_out() -> list[Judged]:
    return judge_rows("more")


@pytest.fixture(scope="session")
def compared(judged: list[Judged]) -> list[Comparison]:
    return compare(judged)
