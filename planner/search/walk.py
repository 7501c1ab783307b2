"""What a request allows: the setup the walk starts from, and which rungs may be taken at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.hardware.machine import Machine
from planner.model.spec import ModelSpec
from planner.plan.plan import Request
from planner.search.batch import Batch, plan_batch
from planner.search.conditions import first_unmet
from planner.search.facts import Facts
from planner.search.rungs import Ladder, Rung, load_ladder
from planner.training import TrainingSetup, setup_from_mapping


@dataclass(frozen=True, slots=True)
class Terms:
    """A request made definite: ladder, batch, the start of the walk, and the fields that no rung may change."""

    request: Request
    ladder: Ladder
    batch: Batch
    start: TrainingSetup
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def bar(self, rung: Rung) -> str | None:
        """Why the request keeps a rung out, or None."""
        if rung.id in self.request.require:
            return None
        if rung.id in self.request.forbid:
            return f"forbidden by --forbid {rung.id}"
        for name, value in rung.changes.items():
            if name in self.fixed and self.fixed[name] != value:
                return f"{name} {_said(self.fixed[name])} was asked for"
        if rung.steps is not None and self._is_fixed(rung):
            return f"{rung.steps} was asked for"
        if rung.on_request and rung.id not in self.request.allow:
            return f"on request only: --allow {rung.id}"
        return None

    def unmet(self, rung: Rung, setup: TrainingSetup, spec: ModelSpec, machine: Machine) -> str | None:
        """Why a rung does not apply to a setup, or None."""
        condition = first_unmet(rung.when, Facts(setup, spec, machine))
        return None if condition is None else f"does not apply: it needs {condition.words()}"

    def take(self, rung: Rung, setup: TrainingSetup) -> TrainingSetup:
        """The setup with the rung's changes; fields that were asked for stay."""
        changes = {name: value for name, value in rung.changes.items() if name not in self.fixed}
        return setup.but(**changes) if changes else setup

    def _is_fixed(self, rung: Rung) -> bool:
        if rung.steps == "micro_batch_size":
            return self.batch.fixed_micro is not None
        return False


def _said(value: Any) -> str:
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def settle(request: Request, spec: ModelSpec, machine: Machine) -> Terms:
    """Read a request. Raises InputError for rungs that do not exist, contradictions, and impossible values."""
    if not machine.gpus:
        raise InputError("no GPU was found to plan for: name some, such as --gpus 3x20GB")
    ladder = load_ladder(Path(request.ladder_file) if request.ladder_file else None)
    _check_ids(request, ladder)
    required = _required(request, ladder)
    pinned = {**_from_request(request), **request.pinned}
    fixed = {**pinned, **_changes(required, pinned)}
    shared = [int(fixed.get(f"{kind}_parallel", 1)) for kind in ("tensor", "pipeline", "context")]
    ranks = max(1, machine.world_size // (shared[0] * shared[1] * shared[2]))
    batch = plan_batch(request.global_batch, ranks, pinned)
    start = _start(request, machine, fixed, batch)
    terms = Terms(request=request, ladder=ladder, batch=batch, start=start, fixed=fixed)
    _check_required(terms, required, spec, machine)
    return terms


def _check_ids(request: Request, ladder: Ladder) -> None:
    for flag, ids in (("allow", request.allow), ("require", request.require), ("forbid", request.forbid)):
        ladder.require_known(ids, place=f"--{flag}: rung")
    for kept, place in ((request.require, "--require"), (request.allow, "--allow")):
        both = sorted(kept & request.forbid)
        if both:
            raise InputError(f"rung {both[0]} stands in both {place} and --forbid: keep one")


def _required(request: Request, ladder: Ladder) -> list[Rung]:
    """The required rungs in the ladder's order. Raises InputError for two that exclude each other."""
    wanted = [rung for rung in ladder if rung.id in request.require]
    for rung in wanted:
        other = next((each for each in wanted if each.id in rung.forbids), None)
        if other is not None:
            raise InputError(f"--require {rung.id} and --require {other.id} exclude each other: keep one")
    return wanted


def _changes(required: list[Rung], pinned: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the required rungs set. Raises InputError where two rungs, or a rung and a flag, disagree."""
    changes: dict[str, Any] = {}
    origin = {name: f"--{name.replace('_', '-')} {_said(value)}" for name, value in pinned.items()}
    for rung in required:
        for name, value in rung.changes.items():
            held = changes.get(name, pinned.get(name, value))
            if held != value:
                raise InputError(f"--require {rung.id} sets {name} to {_said(value)}, against {origin[name]}: keep one")
            changes[name] = value
            origin[name] = f"--require {rung.id}"
        if rung.through and "parallelism" not in changes and "parallelism" not in pinned:
            changes["parallelism"] = rung.through[-1]
    return changes


def _from_request(request: Request) -> dict[str, Any]:
    return {"method": request.method} if request.method not in (None, "auto") else {}


def _start(request: Request, machine: Machine, fixed: Mapping[str, Any], batch: Batch) -> TrainingSetup:
    """Full fine-tuning as naively as it can be written; the free rungs are part of the walk."""
    naive: dict[str, Any] = {
        "model": request.model,
        "stage": request.stage,
        "method": "full",
        "seq_len": request.seq_len,
        "engine": request.engine,
        "gpus": request.gpus,
        "attention": "eager",
        "optim": "adamw_torch",
        "compute_dtype": "fp32",
        "gradient_checkpointing": False,
        "parallelism": "ddp" if machine.world_size > 1 else "none",
    }
    setup = setup_from_mapping({**naive, **fixed}, place="the request")
    return batch.split(setup, batch.start_micro)


def _check_required(terms: Terms, required: list[Rung], spec: ModelSpec, machine: Machine) -> None:
    """Raises InputError for a required rung that cannot be taken here."""
    for rung in required:
        reason = terms.unmet(rung, terms.start, spec, machine)
        if reason is not None and not _only_for_sharding(rung, machine):
            raise InputError(f"--require {rung.id}: {reason}")


def _only_for_sharding(rung: Rung, machine: Machine) -> bool:
    """ZeRO on one GPU shards nothing, and offload still needs it: then it may be required."""
    return rung.is_sharding and machine.world_size == 1 and str(rung.changes["parallelism"]).startswith("zero")
