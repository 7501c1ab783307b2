"""Request and Plan: what was asked, what was chosen, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from planner.hardware.machine import Machine
from planner.memory.result import Estimate, Verdict
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup

Objective = Literal["quality", "speed", "memory"]
Profile = Literal["conservative", "recommended", "aggressive"]
MethodClass = Literal["full", "lora", "qlora", "other"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for. ``pinned`` holds the setup fields given explicitly: no rung may change them.

    ``method`` None is auto. ``global_batch`` counts sequences per optimizer step over all ranks.
    """

    model: str
    stage: str = "sft"
    method: str | None = None
    seq_len: int = 2048
    global_batch: int = 64
    engine: str = "llamafactory"
    objective: Objective = "quality"
    allow: frozenset[str] = frozenset()
    require: frozenset[str] = frozenset()
    forbid: frozenset[str] = frozenset()
    ladder_file: str | None = None
    data: str | None = None
    gpus: str | None = None
    ram: str | None = None
    pinned: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Predicted throughput of a setup over all GPUs, an interval, and what bounds it."""

    tokens_per_s: float
    low_tokens_per_s: float
    high_tokens_per_s: float
    step_seconds: float
    bound_by: str


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One row of the table: a setup, its price, and the class and profile it stands for."""

    setup: TrainingSetup
    estimate: Estimate
    speed: Speed | None
    method_class: MethodClass
    profile: Profile
    safe: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class RungReport:
    """One rung of the walk: applied or why not, required bytes before and after, the slowdown it costs."""

    id: str
    title: str
    tier: int
    applied: bool
    reason: str
    before_bytes: int | None
    after_bytes: int | None
    slowdown: float | None
    quality_risk: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole answer. ``chosen`` None: nothing allowed fits, and ``nearest_miss`` and ``remedies`` say more."""

    verdict: Verdict
    request: Request
    machine: Machine
    model: ModelSpec
    chosen: Configuration | None
    configurations: tuple[Configuration, ...]
    alternatives: tuple[Configuration, ...]
    ladder: tuple[RungReport, ...]
    reasons: tuple[str, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    nearest_miss: Configuration | None = None
    remedies: tuple[str, ...] = ()
