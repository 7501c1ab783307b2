"""The training recipe of rules/recipes.toml: values for keys that no one stated, each with its reason."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from planner.rulebook.paths import rules_dir
from planner.training import TrainingSetup
from planner.units import GIB


@dataclass(frozen=True, kw_only=True)
class Value:
    """One key's value for some methods and stages (None: any), and why."""

    key: str
    value: Any
    methods: tuple[str, ...] | None
    stages: tuple[str, ...] | None
    reason: str

    def covers(self, setup: TrainingSetup) -> bool:
        """True where this row speaks of the setup's method and stage."""
        return (self.methods is None or setup.method in self.methods) and (
            self.stages is None or setup.stage in self.stages
        )


@dataclass(frozen=True, kw_only=True)
class HostPipeline:
    """Worker processes and pinning that a host's memory allows; ``ram_gib_up_to`` None is the rest."""

    ram_gib_up_to: float | None
    unknown: bool
    preprocessing_num_workers: int
    dataloader_num_workers: int
    dataloader_pin_memory: bool
    reason: str


@lru_cache(maxsize=1)
def _tables() -> tuple[tuple[Value, ...], tuple[HostPipeline, ...]]:
    raw = tomllib.loads((rules_dir() / "recipes.toml").read_text(encoding="utf-8"))
    return tuple(_value(row) for row in raw["value"]), tuple(_host(row) for row in raw["host"])


def _value(row: dict[str, Any]) -> Value:
    methods, stages = row.get("methods"), row.get("stages")
    return Value(
        key=row["key"],
        value=row["value"],
        methods=tuple(methods) if methods else None,
        stages=tuple(stages) if stages else None,
        reason=row["reason"],
    )


def _host(row: dict[str, Any]) -> HostPipeline:
    return HostPipeline(
        ram_gib_up_to=row.get("ram_gib_up_to"),
        unknown=row.get("unknown", False),
        preprocessing_num_workers=row["preprocessing_num_workers"],
        dataloader_num_workers=row["dataloader_num_workers"],
        dataloader_pin_memory=row["dataloader_pin_memory"],
        reason=row["reason"],
    )


def recipe(setup: TrainingSetup) -> dict[str, Value]:
    """Key to its row, the first that covers the setup; a key without such a row is absent."""
    chosen: dict[str, Value] = {}
    for row in _tables()[0]:
        if row.key not in chosen and row.covers(setup):
            chosen[row.key] = row
    return chosen


def host_pipeline(ram_bytes: int | None, cpu_cores: int | None) -> HostPipeline:
    """The row for a node with ``ram_bytes`` of memory, its process counts cut to the cores where those are known."""
    rows = _tables()[1]
    if ram_bytes is None:
        return next(row for row in rows if row.unknown)
    known = (row for row in rows if not row.unknown)
    row = next(row for row in known if row.ram_gib_up_to is None or ram_bytes <= row.ram_gib_up_to * GIB)
    if cpu_cores is None or cpu_cores >= row.preprocessing_num_workers:
        return row
    fewer = max(1, cpu_cores)
    return HostPipeline(
        ram_gib_up_to=row.ram_gib_up_to,
        unknown=False,
        preprocessing_num_workers=fewer,
        dataloader_num_workers=min(row.dataloader_num_workers, fewer),
        dataloader_pin_memory=row.dataloader_pin_memory,
        reason=row.reason,
    )
