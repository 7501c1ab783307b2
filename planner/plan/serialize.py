"""Plan -> the JSON object of the contract, and what of it can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from planner.plan.plan import Configuration, FrontPoint, Plan, RungReport


def plan_to_dict(
    plan: Plan, *, folder: str | None = None, files: Sequence[str] = (), command: str | None = None
) -> dict[str, Any]:
    """The contract's object: bytes as integers, unknown as null; ``folder``, ``files``, ``command`` once written."""
    answer: dict[str, Any] = {
        "version": plan.version,
        "verdict": plan.verdict,
        "request": plain(plan.request),
        "model": {"id": plan.model.id, "parameters": plan.model.parameters},
        "machine": plain(plan.machine),
        "chosen": configuration_to_dict(plan.chosen),
        "configurations": [configuration_to_dict(each) for each in plan.configurations],
        "alternatives": [configuration_to_dict(each) for each in plan.alternatives],
        "pareto": [_front_point(point) for point in plan.pareto],
        "space": plain(plan.space),
        "engines": [plain(each) for each in plan.engines],
        "ladder": [_rung(report) for report in plan.ladder],
        "reasons": list(plan.reasons),
        "data": plan.data.to_dict() if plan.data else None,
        "folder": folder or plan.folder,
        "files": list(files or plan.files),
        "command": command or plan.command,
        "assumptions": list(plan.assumptions),
        "warnings": list(plan.warnings),
    }
    if plan.chosen is None:
        answer["nearest_miss"] = configuration_to_dict(plan.nearest_miss)
    if plan.verdict != "fits":
        answer["remedies"] = list(plan.remedies)
    return answer


def configuration_to_dict(configuration: Configuration | None) -> dict[str, Any] | None:
    """One row of the table; None stays None."""
    if configuration is None:
        return None
    return {
        "class": configuration.method_class,
        "profile": configuration.profile,
        "safe": configuration.safe,
        "reason": configuration.reason,
        "setup": configuration.setup.to_dict(),
        "estimate": configuration.estimate.to_dict(),
        "speed": plain(configuration.speed),
    }


def _front_point(point: FrontPoint) -> dict[str, Any]:
    """Only what tells the points of the front apart: the rest of each setup is the chosen one's class's."""
    setup = point.setup
    return {
        "class": point.method_class,
        "required_bytes": point.required_bytes,
        "tokens_per_s": point.tokens_per_s,
        "parallelism": setup.parallelism,
        "offload": setup.offload,
        "micro_batch_size": setup.micro_batch_size,
        "gradient_accumulation_steps": setup.gradient_accumulation_steps,
        "gradient_checkpointing": setup.gradient_checkpointing,
        "quantization_bit": setup.quantization_bit,
        "lora_rank": setup.lora_rank if setup.is_adapter else None,
    }


def _rung(report: RungReport) -> dict[str, Any]:
    values: dict[str, Any] = plain(report)
    return values


def plain(value: Any) -> Any:
    """JSON-ready values of a record: tuples become lists, sets sorted lists, records objects."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(each) for each in value)
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
