"""A run's state and samples -> what was promised beside what came of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from planner.run.records import RunState

FORMAT = 1
METERS = ("allocated_bytes", "device_bytes", "host_bytes", "tokens_per_s")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One sample: seconds since the start, the attempt, and what was measured; None is unknown."""

    at_s: float
    attempt: int
    step: int | None
    loss: float | None
    gpu_bytes: Mapping[str, int]
    host_bytes: int | None


def points_of(samples: Iterable[Mapping[str, Any]], started_at: float) -> list[Point]:
    """``samples.jsonl`` as points; lines of another make are passed by."""
    return [
        Point(
            at_s=float(each["at"]) - started_at,
            attempt=int(each.get("attempt") or 0),
            step=each.get("step"),
            loss=each.get("loss"),
            gpu_bytes={index: used for index, used in (each.get("gpus") or {}).items() if used is not None},
            host_bytes=each.get("host_bytes"),
        )
        for each in samples
        if isinstance(each.get("at"), int | float)
    ]


def report_of(state: RunState, setup: Mapping[str, Any], points: Sequence[Point]) -> dict[str, Any]:
    """The document of ``report.json``: predicted, measured, their ratio, and every attempt."""
    measured = measured_of(state, points)
    predicted = asdict(state.prediction)
    return {
        "format": FORMAT,
        "run": state.id,
        "title": state.title,
        "folder": state.folder,
        "engine": state.engine,
        "status": state.status,
        "exit_code": state.exit_code,
        "message": state.message,
        "next_step": state.next_step,
        "started_at": state.started_at,
        "ended_at": state.ended_at,
        "seconds": None if state.ended_at is None else round(state.ended_at - state.started_at, 3),
        "steps": state.progress.step,
        "total_steps": state.progress.total_steps,
        "loss": state.progress.loss,
        "checkpoint": state.checkpoint,
        "setup": dict(setup),
        "on_cpu": state.on_cpu,
        "predicted": predicted,
        "measured": measured,
        "error": {
            meter: None if state.on_cpu else _error(measured.get(meter), predicted.get(meter)) for meter in METERS
        },
        "healed": list(state.healed),
        "attempts": [asdict(attempt) for attempt in state.attempts],
        "warnings": list(state.warnings),
    }


def measured_of(state: RunState, points: Sequence[Point]) -> dict[str, Any]:
    """Peaks of the worst GPU and rank; None for what nobody measured. ``attempts``: of rehearsal and training."""
    before = {str(gpu.index): gpu.before_bytes or 0 for gpu in state.gpus}
    peaks = [gpu.peak_bytes - (gpu.before_bytes or 0) for gpu in state.gpus if gpu.peak_bytes is not None]
    return {
        "allocated_bytes": state.progress.allocated_bytes,
        "reserved_bytes": state.progress.reserved_bytes,
        "device_bytes": max(peaks, default=None),
        "host_bytes": state.host.peak_bytes,
        "tokens_per_s": state.progress.tokens_per_s,
        "seconds_per_step": state.progress.seconds_per_step,
        "phases": dict(state.progress.phases),
        "attempts": _by_purpose(state, points, before),
    }


def _by_purpose(state: RunState, points: Sequence[Point], before: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    purposes = {attempt.number: attempt.purpose for attempt in state.attempts}
    for point in points:
        purpose = purposes.get(point.attempt)
        used = [size - before.get(index, 0) for index, size in point.gpu_bytes.items()]
        if purpose and used:
            found[purpose] = max(found.get(purpose, 0), *used)
    return found


def _error(measured: float | None, predicted: float | None) -> float | None:
    """measured / predicted - 1."""
    return None if not measured or not predicted else round(measured / predicted - 1, 4)
