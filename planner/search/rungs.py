"""The ladder as typed rungs: the one that ships, or a user's own file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from planner.errors import InputError, unknown_choice
from planner.rulebook.load import read_rules, read_toml, validated
from planner.search.conditions import Condition, compile_conditions
from planner.search.facts import KNOWN_FIELDS
from planner.training import FIELD_NAMES, Parallelism

CLASS_TIER = 3
SHARDING_TIER = 2
OFFLOAD_TIER = 4


@dataclass(eq=False, repr=False)
class Rung:
    """One step of the ladder. ``changes`` are setup fields and values; ``steps`` a field lowered as far as needed."""

    id: str
    title: str
    tier: int
    changes: Mapping[str, Any]
    steps: Literal["micro_batch_size", "seq_len", "gradient_checkpointing"] | None
    through: tuple[Parallelism, ...]
    environment: Mapping[str, str]
    when: tuple[Condition, ...]
    needs: str
    forbids: frozenset[str]
    on_request: bool
    quality_risk: str
    reason: str
    source: str

    @property
    def is_class(self) -> bool:
        """True where the rung changes what is trained: a class of its own."""
        return self.tier == CLASS_TIER

    @property
    def is_sharding(self) -> bool:
        """True where the rung is a way to spread one training over GPUs."""
        return "parallelism" in self.changes

    @property
    def sets_fields(self) -> bool:
        """True where the rung changes how a setup is held, its batch and length aside."""
        return bool(self.changes) or self.steps == "gradient_checkpointing"

    @property
    def is_offload(self) -> bool:
        """True where states or weights leave the GPU."""
        return "offload" in self.changes

    def in_setup(self, setup: Any) -> bool:
        """True if the setup has everything that the rung would set."""
        return bool(self.changes) and all(getattr(setup, name) == value for name, value in self.changes.items())


@dataclass(eq=False, repr=False)
class Ladder:
    """Rungs in the order of the walk, and why each tier stands where it stands."""

    rungs: tuple[Rung, ...]
    tiers: Mapping[int, str]

    def __iter__(self) -> Iterator[Rung]:
        return iter(self.rungs)

    def find(self, rung_id: str, *, place: str) -> Rung:
        """The rung of that id. Raises InputError with the nearest ids; ``place`` names the flag."""
        for rung in self.rungs:
            if rung.id == rung_id:
                return rung
        raise unknown_choice(rung_id, place, (rung.id for rung in self.rungs))

    def require_known(self, ids: Iterable[str], *, place: str) -> None:
        """Raises InputError for the first id that is no rung of this ladder."""
        for rung_id in sorted(ids):
            self.find(rung_id, place=place)


def load_ladder(path: Path | None = None) -> Ladder:
    """The ladder that ships (``path`` None), or a user's TOML file.

    A user's file lists ``[[rung]]`` tables in the wanted order. A table with nothing but an ``id`` takes the
    rung of that id from the ladder that ships. Free rungs (tier 0) that the file leaves out stand before it, because
    they cost nothing; others that it leaves out are not used. Raises InputError that lists every bad row.
    """
    return _shipped() if path is None else _own(path)


@cache
def _shipped() -> Ladder:
    return _ladder(read_rules("ladder"))


def _own(path: Path) -> Ladder:
    from planner.rulebook.schema import RungRow

    raw = read_toml(path)
    shipped = {row["id"]: row for row in read_rules("ladder")["rung"]}
    rows = [_filled(row, shipped, path) for row in _rows(raw, path)]
    validated(rows, RungRow, place=str(path), known_fields=KNOWN_FIELDS)
    _check_changes(rows, path)
    listed = {row.get("id") for row in rows}
    rows = [row for row in shipped.values() if row["tier"] == 0 and row["id"] not in listed] + rows
    return _ladder({"rung": rows, "tier": raw.get("tier", read_rules("ladder")["tier"])})


def _rows(raw: Mapping[str, Any], path: Path) -> list[Mapping[str, Any]]:
    rows = raw.get("rung")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} has no [[rung]] tables: list the rungs in the order you want, each with its id")
    return rows


def _filled(row: Mapping[str, Any], shipped: Mapping[str, Mapping[str, Any]], path: Path) -> Mapping[str, Any]:
    if set(row) != {"id"}:
        return row
    if row["id"] not in shipped:
        raise unknown_choice(str(row["id"]), f"{path}, rung", shipped)
    return shipped[row["id"]]


def _check_changes(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    for row in rows:
        for name in row.get("changes", {}):
            if name not in FIELD_NAMES:
                raise unknown_choice(name, f"{path}, rung {row['id']}, changes", FIELD_NAMES)


def _ladder(raw: Mapping[str, Any]) -> Ladder:
    tiers = {row["tier"]: f"{row['title']}: {row['why']}" for row in raw["tier"]}
    return Ladder(rungs=tuple(_rung(row) for row in raw["rung"]), tiers=tiers)


def _rung(row: Mapping[str, Any]) -> Rung:
    return Rung(
        id=row["id"],
        title=row["title"],
        tier=row["tier"],
        changes=row.get("changes", {}),
        steps=row.get("steps"),
        through=tuple(row.get("through", ())),
        environment=row.get("environment", {}),
        when=compile_conditions(row.get("when", ())),
        needs=row.get("needs", ""),
        forbids=frozenset(row.get("forbids", ())),
        on_request=row.get("on_request", False),
        quality_risk=row.get("quality_risk", ""),
        reason=row["reason"],
        source=row["source"],
    )
