"""What the planner says of a run today: written beside what was measured, and the order of the batch."""

from __future__ import annotations

from typing import Any

from planner import __version__
from planner.errors import PlannerError
from planner.hardware.machine import Machine
from planner.memory.estimate import estimate
from planner.model.spec import ModelSpec
from planner.speed.estimate import predict_speed
from planner.training import TrainingSetup

FIGURES = ("allocated_bytes", "reserved_bytes", "device_bytes", "required_bytes", "context_bytes", "capacity_bytes")
START_S = 8.0  # a process that imports torch and transformers, and its first kernels
FILL_BYTES_PER_S = 20e9  # weights made on the card, parameter by parameter
UNKNOWN_STEP_S = 2.0


def predicted(setup: TrainingSetup, spec: ModelSpec, machine: Machine) -> dict[str, Any]:
    """The figures of an Estimate with the total of each phase, the verdict, tokens/s of all GPUs and step seconds.

    A setup that the planner cannot price is {"error": the sentence}.
    """
    try:
        answer = estimate(setup, spec, machine)
        speed = predict_speed(setup, spec, machine)
    except PlannerError as problem:
        return {"planner": __version__, "error": problem.sentence}
    return {
        "planner": __version__,
        **{name: getattr(answer, name) for name in FIGURES},
        "peak_phase": answer.peak_phase,
        "phases": {name: parts.total for name, parts in answer.phases.items()},
        "verdict": answer.verdict,
        "tokens_per_s": round(speed.tokens_per_s, 1) if speed else None,
        "step_seconds": round(speed.step_seconds, 4) if speed else None,
    }


def seconds_of(prediction: dict[str, Any], spec: ModelSpec, steps: int) -> float:
    """About how long the run takes, start included."""
    step = prediction.get("step_seconds") or UNKNOWN_STEP_S
    return START_S + 2 * spec.parameters / FILL_BYTES_PER_S + 1.3 * steps * float(step)
