"""EDGE: runs whose planner was killed: what they left running is ended, and they are marked as lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from planner.errors import EXIT_JOB_FAILED, InputError
from planner.run.launch import clean_up
from planner.run.processes import TERM_GRACE_S, is_alive, living, marked
from planner.run.records import ProcessMark, RunState
from planner.run.state import RunFolder, load_state, runs_of


def is_lost(state: RunState) -> bool:
    """True where a run should be supervised and nobody does."""
    return state.is_active and (state.supervisor is None or not is_alive(state.supervisor))


def left_running(state: RunState) -> list[ProcessMark]:
    """Processes of a run that live, recorded or marked."""
    return sorted({*living(state.processes), *marked(state.id)})


def recover(path: Path, state: RunState, *, grace_s: float = TERM_GRACE_S) -> list[ProcessMark]:
    """End what a lost run left behind and mark it; returns what was found running."""
    folder = RunFolder(path)
    found = clean_up(state.id, state.processes, grace_s=grace_s)
    folder.event("recovered", ended=[mark.pid for mark in found])
    folder.save(
        replace(
            state,
            status="lost",
            processes=(),
            supervisor=None,
            ended_at=time.time(),
            updated_at=time.time(),
            exit_code=EXIT_JOB_FAILED,
            message="its planner was killed",
        )
    )
    return found


def recover_all(plan_folder: Path, *, grace_s: float = TERM_GRACE_S) -> Iterator[str]:
    """The same for every run of a plan's folder that this process holds the lock of: a sentence for each.

    Damaged states are said and set aside; their processes are found by the run's name.
    """
    for path in runs_of(plan_folder):
        try:
            state = load_state(path)
        except InputError as problem:
            found = clean_up(path.name, (), grace_s=grace_s)
            yield problem.sentence + (f"; {len(found)} processes that it had left running were ended" if found else "")
            continue
        if state.is_active:
            found = recover(path, state, grace_s=grace_s)
            ended = (
                f"{len(found)} processes that it had left running were ended" if found else "nothing of it still ran"
            )
            yield f"the planner of run {state.id} was killed; {ended}"
