"""What is known of the cause of rows that are missed: measurements/misses.toml.

[[miss]]
match = "added-atorch-*"     # a shell pattern over row ids, or id = "one row"
meter = "allocated"          # optional: the meter that is missed
cause = "one sentence"       # what is known, or thought, of the cause
tried = "one sentence"       # what was tried to find it
checked = 2026-11-21
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from measured_setups import MEASUREMENTS

TARGET = MEASUREMENTS / "misses.toml"


@dataclass(frozen=True, kw_only=True)
class Miss:
    """One entry: the rows that it speaks of and what it says."""

    match: str
    meter: str | None
    cause: str
    tried: str
    checked: Any

    def covers(self, id: str, meter: str) -> bool:
        """True for a row and meter that the entry speaks of."""
        return fnmatchcase(id, self.match) and self.meter in (None, meter)


@lru_cache(maxsize=1)
def misses() -> tuple[Miss, ...]:
    """The entries in the file's order; none where the file is absent. Raises KeyError where an entry lacks a key."""
    if not TARGET.is_file():
        return ()
    entries = tomllib.loads(TARGET.read_text(encoding="utf-8")).get("miss", [])
    return tuple(
        Miss(
            match=entry["match"] if "match" in entry else entry["id"],
            meter=entry.get("meter"),
            cause=entry["cause"],
            tried=entry.get("tried", ""),
            checked=entry["checked"],
        )
        for entry in entries
    )


def cause_of(id: str, meter: str) -> str:
    """What is known of a row's miss, empty where nothing is."""
    return next((one.cause for one in misses() if one.covers(id, meter)), "")
