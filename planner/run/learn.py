"""EDGE: a finished run into its folder and into the local store of observations."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from planner.calibrate.observation import Outcome
from planner.run.job import Job
from planner.run.page import page
from planner.run.records import RunState
from planner.run.report import Point, points_of, report_of
from planner.run.state import REPORT, SAMPLES, RunFolder
from planner.training import TrainingSetup

PAGE = "report.html"
_OUTCOMES: dict[str, Outcome] = {"finished": "finished", "stopped": "stopped"}


def read_points(folder: Path, started_at: float) -> list[Point]:
    """The samples of a run's folder; damaged lines are passed by."""
    samples = []
    with suppress(OSError), (folder / SAMPLES).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError):
                entry = json.loads(line)
                samples += [entry] if isinstance(entry, dict) else []
    return points_of(samples, started_at)


def write_report(folder: RunFolder, state: RunState, setup: TrainingSetup) -> tuple[dict[str, Any], str | None]:
    """``report.json`` and ``report.html``; the document, and a warning where it could not be written."""
    points = read_points(folder.path, state.started_at)
    report = report_of(state, setup.to_dict(), points)
    try:
        (folder / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(page(report, points), encoding="utf-8")
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        return report, f"the report cannot be written to {str(folder.path)!r}: {reason}"
    return report, None


def remember_observation(state: RunState, job: Job, setup: TrainingSetup, report: dict[str, Any]) -> str | None:
    """The run as an observation in the local store. None where it was kept; else why it was not.

    ``setup`` is what ran last: peaks begin anew when a run is healed.

    Only what was measured on the machine that the plan was priced for says something about the prediction.
    """
    if state.on_cpu:
        return None  # and the report says that nothing was predicted for it
    measured = report["measured"]
    told = {name: measured.get(name) for name in ("allocated_bytes", "reserved_bytes", "device_bytes")}
    if not any(told.values()):
        return "nothing was measured that could be compared: no GPU was seen"
    from planner.calibrate.observation import Measured, Observation, mark_of, now, predicted_of
    from planner.calibrate.store import remember
    from planner.memory.estimate import estimate
    from planner.speed.estimate import predict_speed

    plan = job.plan
    speed = predict_speed(setup, plan.model, plan.machine)
    record = Observation(
        run_id=state.id,
        started_at=now(),
        engine=job.engine,
        machine=mark_of(plan.machine),
        setup=setup.to_dict(),
        # As published, without what history had narrowed: else it would learn from itself.
        predicted=predicted_of(setup, plan.model, plan.machine, estimate(setup, plan.model, plan.machine), speed),
        measured=Measured(
            **told,
            host_bytes=measured["host_bytes"],
            tokens_per_second=measured["tokens_per_s"],
            phases=measured["phases"],
        ),
        outcome=_outcome(state),
        versions=dict(plan.machine.software),
    )
    problem = remember(record)
    return problem and f"the run is not in the history: {problem}"


def _outcome(state: RunState) -> Outcome:
    last = state.attempts[-1].diagnosis if state.attempts else None
    if last is not None and last.kind == "cuda_oom":
        return "out_of_memory"
    return _OUTCOMES.get(state.status, "failed")
