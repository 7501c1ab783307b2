"""Estimate and its parts: what the memory model answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Phase = Literal["load", "forward", "loss", "backward", "optimizer", "eval", "save"]
Verdict = Literal["fits", "uncertain", "does_not_fit"]
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "temporaries", "communication")
COVERAGE = 0.99


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Bytes by part at one moment; they sum to ``total`` exactly."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    temporaries: int = 0
    communication: int = 0

    @property
    def total(self) -> int:
        """The allocated bytes of that moment."""
        return sum(getattr(self, part) for part in PARTS)

    def to_dict(self) -> dict[str, int]:
        """Part name to bytes."""
        return {part: getattr(self, part) for part in PARTS}


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """The fast answer: bytes per GPU of the worst rank, nothing explained."""

    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    required_bytes: int
    context_bytes: int
    host_bytes: int
    peak_phase: Phase
    least_disk_bytes: int = 0  # with one checkpoint kept
    held_bytes: int = 0  # weights, gradients and states as they lie at the optimizer step
    gathered_bytes: int = 0  # unsharded weights alive together under ZeRO-3 and FSDP


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The explained answer; every field as the contract describes it, bytes as integers."""

    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    required_bytes: int
    coverage: float
    verdict: Verdict | None
    capacity_bytes: int | None
    interval: dict[str, tuple[int, int]]
    peak_phase: Phase
    breakdown: Breakdown
    context_bytes: int
    phases: dict[str, Breakdown]
    host_bytes: int
    disk_bytes: int
    trainable_parameters: int
    total_parameters: int
    checkpoint_bytes: int = 0
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the contract; ``verdict`` and ``capacity_bytes`` are absent where no capacity is known."""
        answer: dict[str, Any] = {
            "allocated_bytes": self.allocated_bytes,
            "reserved_bytes": self.reserved_bytes,
            "device_bytes": self.device_bytes,
            "required_bytes": self.required_bytes,
            "coverage": self.coverage,
            "interval": {meter: list(bounds) for meter, bounds in self.interval.items()},
            "peak_phase": self.peak_phase,
            "breakdown": self.breakdown.to_dict(),
            "context_bytes": self.context_bytes,
            "phases": {phase: parts.to_dict() for phase, parts in self.phases.items()},
            "host_bytes": self.host_bytes,
            "disk_bytes": self.disk_bytes,
            "checkpoint_bytes": self.checkpoint_bytes,
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
            "assumptions": list(self.assumptions),
            "warnings": list(self.warnings),
        }
        if self.capacity_bytes is not None:
            answer["capacity_bytes"] = self.capacity_bytes
            answer["verdict"] = self.verdict
        return answer


def judge(*, allocated_bytes: int, context_bytes: int, required_bytes: int, capacity_bytes: int) -> Verdict:
    """The contract's verdict for one GPU."""
    if required_bytes <= capacity_bytes:
        return "fits"
    return "uncertain" if allocated_bytes + context_bytes <= capacity_bytes else "does_not_fit"
