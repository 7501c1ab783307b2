"""The training recipe of rules/recipes.toml: values for keys that no one stated, each with its reason."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from planner.memory.host import WORKER_BYTES
from planner.rulebook.paths import rules_dir
from planner.targets.context import EmitContext
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


def host_pipeline(context: EmitContext) -> HostPipeline:
    """The row for a node's memory, its process counts cut to its cores and to the memory that the job leaves.

    Loader processes are one set per rank; every rank's come out of the same cores and the same memory.
    """
    rows = _tables()[1]
    if context.ram_bytes is None:
        return next(row for row in rows if row.unknown)
    known = (row for row in rows if not row.unknown)
    row = next(row for row in known if row.ram_gib_up_to is None or context.ram_bytes <= row.ram_gib_up_to * GIB)
    readers, loaders = row.preprocessing_num_workers, row.dataloader_num_workers
    if context.host_spare_bytes is not None:
        room = max(0, context.host_spare_bytes) // WORKER_BYTES
        readers, loaders = min(readers, max(1, room)), min(loaders, room // context.gpus_per_node)
    if context.cpu_cores is not None:
        cores = max(1, context.cpu_cores)
        readers, loaders = min(readers, cores), min(loaders, cores // context.gpus_per_node)
    return replace(row, preprocessing_num_workers=readers, dataloader_num_workers=loaders)
