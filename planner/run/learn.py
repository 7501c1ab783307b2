"""EDGE: a finished run into its folder and into the local store of observations."""

from __future__ import annotations

import importlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from planner.errors import PlannerError
from planner.run.job import Job
from planner.run.page import page
from planner.run.records import RunState
from planner.run.report import Point, points_of, report_of
from planner.run.state import REPORT, SAMPLES, RunFolder

PAGE = "report.html"
_OUTCOMES = {"finished": "finished", "stopped": "stopped"}


def read_points(folder: Path, started_at: float) -> list[Point]:
    """The samples of a run's folder; damaged lines are passed by."""
    samples = []
    with suppress(OSError), (folder / SAMPLES).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError):
                entry = json.loads(line)
                samples += [entry] if isinstance(entry, dict) else []
    return points_of(samples, started_at)


def write_report(folder: RunFolder, state: RunState, job: Job) -> tuple[dict[str, Any], str | None]:
    """``report.json`` and ``report.html``; the document, and a warning where it could not be written."""
    points = read_points(folder.path, state.started_at)
    report = report_of(state, job.setup.to_dict(), points)
    try:
        (folder / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(page(report, points), encoding="utf-8")
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        return report, f"the report cannot be written to {str(folder.path)!r}: {reason}"
    return report, None


def remember_observation(state: RunState, job: Job, report: dict[str, Any]) -> str | None:
    """The run as an observation in the local store. None where it was kept; else why it was not.

    Only what was measured on the machine that the plan was priced for says something about the prediction.
    """
    measured = report["measured"]
    told = {name: measured.get(name) for name in ("allocated_bytes", "reserved_bytes", "device_bytes")}
    if not any(told.values()):
        return "nothing was measured that could be compared: no GPU was seen"
    try:
        observation, place, store = (
            importlib.import_module(f"planner.calibrate.{name}") for name in ("observation", "place", "store")
        )
    except ImportError:
        return "this installation keeps no history"
    if not place.is_wanted():
        return "history is switched off (VRAMPLAN_HISTORY)"
    record = observation.Observation(
        run_id=state.id,
        started_at=observation.now(),
        engine=job.engine,
        machine=observation.mark_of(job.plan.machine),
        setup=job.setup.to_dict(),
        predicted=observation.predicted_of(job.setup, job.plan.model, job.plan.machine, job.estimate, job.speed),
        measured=observation.Measured(
            **told,
            host_bytes=measured["host_bytes"],
            tokens_per_second=measured["tokens_per_s"],
            phases=measured["phases"],
        ),
        outcome=_outcome(state),
        versions=dict(job.plan.machine.software),
    )
    try:
        store.Store(path=place.store_path()).record(record)
    except PlannerError as problem:
        return f"the run is not in the history: {problem.sentence}"
    return None


def _outcome(state: RunState) -> str:
    last = state.attempts[-1].diagnosis if state.attempts else None
    if last is not None and last.kind == "cuda_oom":
        return "out_of_memory"
    return _OUTCOMES.get(state.status, "failed")
