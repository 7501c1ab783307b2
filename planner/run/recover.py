"""EDGE: runs whose planner was killed: what they left running is ended, and they are marked as lost."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from planner.errors import EXIT_JOB_FAILED, InputError
from planner.run.launch import clean_up
from planner.run.processes import TERM_GRACE_S, is_alive, living, marked
from planner.run.records import ProcessMark, RunState
from planner.run.state import STATE, RunFolder, load_state, runs_of

# What another machine's planner writes at least, on storage that both see; clocks may differ by some of it.
SILENCE_S = 300.0


def is_here(state: RunState) -> bool:
    """True for a run of this machine: of another one's, the process numbers say nothing."""
    return state.machine in ("", socket.gethostname())


def is_lost(state: RunState) -> bool:
    """True where a run should be supervised and nobody does; elsewhere, where nothing was heard of it for long."""
    if not state.is_active:
        return False
    if not is_here(state):
        return time.time() - state.updated_at > SILENCE_S
    return state.supervisor is None or not is_alive(state.supervisor)


def left_running(state: RunState) -> list[ProcessMark]:
    """Processes of a run that live here, recorded or marked."""
    return sorted({*(living(state.processes) if is_here(state) else ()), *marked(state.id)})


def recover(path: Path, state: RunState, *, grace_s: float = TERM_GRACE_S) -> list[ProcessMark]:
    """End what a lost run left behind and mark it; returns what was found running."""
    folder = RunFolder(path)
    found = clean_up(state.id, state.processes if is_here(state) else (), grace_s=grace_s)
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


def recover_all(plan_folder: Path, *, shared: bool = False, grace_s: float = TERM_GRACE_S) -> Iterator[str]:
    """The same for every run of a plan's folder that this process holds the lock of: a sentence for each.

    ``shared``: other machines, which have locks of their own, may be at work in it too; theirs are passed by. Damaged
    states are said and set aside; their processes are found by the run's name.
    """
    for path in runs_of(plan_folder):
        if shared and not (path / STATE).exists():  # another machine is just about to write it
            continue
        try:
            state = load_state(path)
        except InputError as problem:
            found = clean_up(path.name, (), grace_s=grace_s)
            yield problem.sentence + (f"; {len(found)} processes that it had left running were ended" if found else "")
            continue
        if is_lost(state) if shared else state.is_active:
            found = recover(path, state, grace_s=grace_s)
            ended = (
                f"{len(found)} processes that it had left running were ended" if found else "nothing of it still ran"
            )
            yield f"the planner of run {state.id} was killed; {ended}"
