"""``plan runs``, ``plan attach``, ``plan stop``, ``plan report``: runs that were started before."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.errors import EXIT_FITS, InputError

if TYPE_CHECKING:
    from planner.run.records import RunState

POLL_S = 1.0
STOP_PATIENCE_S = 120.0
_JSON = typer.Option("--json", help="one JSON document on stdout")
_RUN = typer.Argument(help="a run's name or its beginning, a plan's folder, or last (the default)")


def runs_command(json_output: Annotated[bool, _JSON] = False) -> None:
    """The runs that are known here, the newest last, and what is left of those whose planner was killed.

    The index lies in $VRAMPLAN_HOME, else in the XDG state folder; everything else in the plans' own folders.
    """
    from planner.cli.io import say, screen, write_out
    from planner.run.state import known_runs, load_state

    states = []
    for path in known_runs():
        try:
            states.append(load_state(path))
        except InputError as problem:
            say(f"warning: {problem.sentence}")
    if json_output:
        from planner.cli.jsonout import document

        write_out(document({"runs": [_entry(state) for state in states]}))
    elif states:
        screen(_table(states))
    else:
        screen("no run is known here; `plan run` starts one")


def _entry(state: RunState) -> dict[str, Any]:
    from planner.run.recover import is_lost, left_running

    lost = is_lost(state)
    return {
        "run": state.id,
        "status": "lost" if lost else state.status,
        "title": state.title,
        "folder": state.folder,
        "machine": state.machine or None,
        "step": state.progress.step,
        "total_steps": state.progress.total_steps,
        "exit_code": state.exit_code,
        "still_running": [mark.pid for mark in left_running(state)] if lost else [],
        "message": state.message,
    }


def _table(states: list[RunState]) -> Any:
    from rich.text import Text

    from planner.cli.tables import plain_table
    from planner.run.recover import is_here

    table = plain_table("Runs")
    for heading in ("run", "status", "step"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what", overflow="fold")
    for state in states:
        entry = _entry(state)
        left = entry["still_running"]
        status = f"lost, {len(left)} still running" if left else entry["status"]
        step = "" if entry["step"] is None else f"{entry['step']} of {entry['total_steps'] or '?'}"
        where = state.folder if is_here(state) else f"{state.folder}\non {state.machine}"
        table.add_row(*map(Text, (state.id, status, step, f"{state.title}\n{where}")))
    return table


def attach_command(run: Annotated[str | None, _RUN] = None, json_output: Annotated[bool, _JSON] = False) -> int:
    """The screen of a run that goes on elsewhere; Ctrl-C leaves it, and the run goes on.

    Ends when the run ends, with the run's exit code.
    """
    from planner.cli.io import say, write_out
    from planner.cli.jsonout import document
    from planner.cli.live import showing
    from planner.run.recover import is_lost
    from planner.run.state import find_run, load_state

    path = find_run(run)
    try:
        with showing(quiet=json_output) as show:
            while True:
                state = load_state(path)
                show(state)
                if not state.is_active or is_lost(state):
                    break
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        say(f"run {path.name} goes on; `plan stop {path.name}` ends it")
        return EXIT_FITS
    if is_lost(state):
        say(f"the planner of run {state.id} was killed; `plan stop {state.id}` ends what it left, `plan run` resumes")
    if json_output:
        write_out(document(_entry(state)))
    return state.exit_code if state.exit_code is not None else EXIT_FITS


def stop_command(run: Annotated[str | None, _RUN] = None, json_output: Annotated[bool, _JSON] = False) -> None:
    """End a run and everything that it started, and say where it can be resumed.

    Where its planner was killed, what that left running is ended instead.
    """
    from planner.cli.io import screen, write_out
    from planner.cli.jsonout import document
    from planner.run.state import find_run, load_state

    path = find_run(run)
    sentence = _stopped(path, load_state(path))
    if json_output:
        write_out(document(_entry(load_state(path))))
    else:
        from rich.text import Text

        screen(Text(sentence))


def _stopped(path: Path, state: RunState) -> str:
    """Stop the run as far as there is something to stop; what came of it."""
    from planner.run.processes import send
    from planner.run.recover import is_here, is_lost, recover
    from planner.run.state import RunFolder

    if not state.is_active:
        return f"run {state.id} has ended already: {state.status}"
    if is_lost(state):
        found = recover(path, state)
        return f"the planner of run {state.id} was killed; {len(found)} processes that it had left were ended"
    RunFolder(path).ask_to_stop()
    if state.supervisor is not None and is_here(state):
        send(state.supervisor, signal.SIGTERM)
    state = _wait(path, state)
    return f"run {state.id}: {state.message or state.status}\n{state.next_step}"


def _wait(path: Path, state: RunState) -> RunState:
    from planner.run.recover import is_lost, recover
    from planner.run.state import load_state

    end = time.monotonic() + STOP_PATIENCE_S
    while state.is_active and time.monotonic() < end:
        time.sleep(POLL_S / 4)
        state = load_state(path)
        if is_lost(state):
            recover(path, state)
    if state.is_active:
        raise InputError(f"run {state.id} does not end; look at {str(path / 'supervisor.log')!r}")
    return state


def report_command(run: Annotated[str | None, _RUN] = None, json_output: Annotated[bool, _JSON] = False) -> None:
    """What a run was promised and what came of it; plots of memory and loss over time as one HTML page.

    The page is written into the run's folder, and needs nothing beside itself.
    """
    from planner.cli.io import screen, write_out
    from planner.run.state import find_run

    path = find_run(run)
    report, page = _report_of(path)
    if json_output:
        from planner.cli.jsonout import document

        write_out(document(report))
        return
    from planner.cli.show_run import report_screen

    screen(report_screen(report, page))


def _report_of(path: Path) -> tuple[dict[str, Any], str | None]:
    """The report that lies there, else one of what is known so far; and where its page is."""
    from planner.cli.io import say
    from planner.run.learn import PAGE, read_points
    from planner.run.page import page
    from planner.run.report import report_of
    from planner.run.state import REPORT, load_state

    state = load_state(path)
    points = read_points(path, state.started_at)
    report = report_of(state, _setup_of(path / REPORT), points)
    try:
        (path / PAGE).write_text(page(report, points), encoding="utf-8")
    except OSError as problem:
        say(f"note: no page is written: {(problem.strerror or str(problem)).lower()}")
        return report, None
    return report, str(path / PAGE)


def _setup_of(path: Path) -> dict[str, Any]:
    """The setup that the run's end has written down; empty while it goes on."""
    try:
        setup = json.loads(path.read_text(encoding="utf-8")).get("setup")
        return setup if isinstance(setup, dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}
