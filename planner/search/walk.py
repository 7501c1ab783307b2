"""What a request allows: the setup the walk starts from, and which rungs may be taken at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.hardware.machine import Machine
from planner.model.spec import ModelSpec
from planner.plan.plan import Request
from planner.rulebook.load import engine_rows
from planner.search.batch import Batch, plan_batch
from planner.search.conditions import first_unmet
from planner.search.constraints import newly_met
from planner.search.facts import Facts
from planner.search.rungs import Ladder, Rung, load_ladder
from planner.training import TrainingSetup, setup_from_mapping

ADAPTER_FIELDS = ("adapter_dtype", "additional_target")
# What switches of free rungs are when they are off; a required rung is compared with the setup without it.
_PLAIN: dict[str, Any] = {"liger_kernel": False, "unsloth": False, "attention": "eager", "optim": "adamw_torch"}


@dataclass(eq=False, repr=False)
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
        if rung.on_request and rung.id not in self.request.allow and not self._is_pinned(rung):
            return f"on request only: --allow {rung.id}"
        return None

    def _is_pinned(self, rung: Rung) -> bool:
        """True where flags ask for all that the rung changes beside the method: --quantization-bit 8, say."""
        changes = {name: value for name, value in rung.changes.items() if name != "method"}
        return bool(changes) and all(self.request.pinned.get(name) == value for name, value in changes.items())

    def against(self, setup: TrainingSetup) -> str | None:
        """Why a class leaves out something that was asked for, or None."""
        asked = [name for name in ADAPTER_FIELDS if self.request.pinned.get(name)]
        if asked and not setup.is_adapter:
            return f"{asked[0]} belongs to an adapter, and method {setup.method} has none: use lora, qlora or dora"
        return None

    def unmet(self, rung: Rung, setup: TrainingSetup, spec: ModelSpec, machine: Machine) -> str | None:
        """Why a rung does not apply to a setup, or None."""
        condition = first_unmet(rung.when, Facts(setup, spec, machine))
        return None if condition is None else f"does not apply: it needs {rung.needs or condition.words()}"

    def take(self, rung: Rung, setup: TrainingSetup) -> TrainingSetup:
        """The setup with the rung's changes; fields that were asked for stay."""
        changes = {name: value for name, value in rung.changes.items() if name not in self.fixed}
        return setup.but(**changes) if changes else setup

    def _is_fixed(self, rung: Rung) -> bool:
        if rung.steps == "micro_batch_size":
            return self.batch.fixed_micro is not None
        return rung.steps in self.fixed


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
    if machine.world_size == 1 and pinned.get("parallelism") == "ddp":
        pinned["parallelism"] = "none"  # one process: no trainer wraps the model for that
    fixed = {**pinned, **_changes(required, pinned)}
    shared = [int(fixed.get(f"{kind}_parallel", 1)) for kind in ("tensor", "pipeline", "context")]
    ranks = max(1, machine.world_size // (shared[0] * shared[1] * shared[2]))
    batch = _held(plan_batch(request.global_batch, ranks, pinned), request, ladder)
    start = _start(request, _carrier(request, fixed, ladder, machine), fixed, batch)
    terms = Terms(request=request, ladder=ladder, batch=batch, start=start, fixed=fixed)
    _check_required(terms, required, spec, machine)
    return terms


def _check_ids(request: Request, ladder: Ladder) -> None:
    for flag, ids in (("allow", request.allow), ("require", request.require), ("forbid", request.forbid)):
        ladder.require_known(ids, place=f"--{flag}: rung")
    _check_forbidden(request, ladder)
    for kept, place in ((request.require, "--require"), (request.allow, "--allow")):
        both = sorted(kept & request.forbid)
        if both:
            raise InputError(f"rung {both[0]} stands in both {place} and --forbid: keep one")


def _check_forbidden(request: Request, ladder: Ladder) -> None:
    """Raises InputError for a rung that is forbidden and asked for field by field."""
    asked = {**_from_request(request), **request.pinned}
    for rung in ladder:
        if rung.id in request.forbid and rung.changes and all(asked.get(k) == v for k, v in rung.changes.items()):
            flags = " ".join(f"--{name.replace('_', '-')} {_said(asked[name])}" for name in rung.changes)
            raise InputError(f"--forbid {rung.id} stands against {flags}: keep one")


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
    return changes


def _held(batch: Batch, request: Request, ladder: Ladder) -> Batch:
    """The micro batch fixed where it starts if the rung that lowers it is forbidden, at 1 if it is required."""
    if batch.fixed_micro is not None:
        return batch
    rung = next((rung for rung in ladder if rung.steps == "micro_batch_size"), None)
    if rung is None or rung.id in request.forbid:
        return replace(batch, fixed_micro=batch.start_micro)
    return replace(batch, fixed_micro=1) if rung.id in request.require else batch


def _carrier(request: Request, fixed: Mapping[str, Any], ladder: Ladder, machine: Machine) -> str:
    """Where the walk starts: one process a GPU, what carries an offload that was asked for, or an engine's only way to
    do what was asked for.
    """
    only = engine_rows().get(request.engine, {}).get("starts_with")
    if only is not None:
        return str(only)
    if request.engine == "llamafactory" and int(fixed.get("tensor_parallel", 1)) > 1:
        return "zero1"  # DeepSpeed cuts the layers
    wanted = fixed.get("offload", "none")
    if wanted != "none":
        through = next(
            (rung.through for rung in ladder if rung.changes.get("offload") == wanted and rung.through), None
        )
        return through[0] if through else "zero3"
    return "ddp" if machine.world_size > 1 else "none"


def _from_request(request: Request) -> dict[str, Any]:
    return {"method": request.method} if request.method not in (None, "auto") else {}


def _start(request: Request, parallelism: str, fixed: Mapping[str, Any], batch: Batch) -> TrainingSetup:
    """Full fine-tuning as naively as it can be written; the free rungs are part of the walk."""
    naive: dict[str, Any] = {
        "model": request.model,
        "stage": request.stage,
        "method": "full",
        "seq_len": _length(request),
        "engine": request.engine,
        "gpus": request.gpus,
        "attention": "eager",
        "optim": "adamw_torch",
        "compute_dtype": "fp32",
        "gradient_checkpointing": False,
        "parallelism": parallelism,
    }
    setup = setup_from_mapping({**naive, **fixed}, place="the request")
    return batch.split(setup, batch.start_micro)


def _length(request: Request) -> int:
    """Half of what was asked for where shorter sequences are required, else all of it."""
    return max(1, request.seq_len // 2) if "shorter-sequences" in request.require else request.seq_len


def _check_required(terms: Terms, required: list[Rung], spec: ModelSpec, machine: Machine) -> None:
    """Raises InputError for a required rung that cannot be taken here."""
    for rung in required:
        reason = terms.unmet(rung, terms.start, spec, machine)
        if reason is not None and not _only_for_sharding(rung, machine):
            raise InputError(f"--require {rung.id}: {reason}")
        without = terms.start.but(**{name: _PLAIN[name] for name in rung.changes if name in _PLAIN})
        dropped = newly_met(without, terms.start, spec, machine, effects=("ignored",))
        if dropped is not None:
            raise InputError(f"--require {rung.id}: {dropped}")


def _only_for_sharding(rung: Rung, machine: Machine) -> bool:
    """ZeRO on one GPU shards nothing, and offload still needs it: then it may be required."""
    return rung.is_sharding and machine.world_size == 1 and str(rung.changes["parallelism"]).startswith("zero")
