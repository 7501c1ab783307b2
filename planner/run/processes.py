"""EDGE: find the processes of a run and end them; a number is only signalled together with its start time.

torchrun starts every worker in a session of its own, and a launcher that dies leaves workers to init. So they are
found in three ways: as descendants while the launcher lives, by what was recorded of them, and by a variable that all
of them inherit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable

import psutil

from planner.run.records import ProcessMark

MARKER = "VRAMPLAN_RUN_ID"
# psutil derives the start from the boot time, which moves by fractions of a second when the clock is set.
SAME_START_S = 1.0
TERM_GRACE_S = 20.0
KILL_GRACE_S = 10.0
POLL_S = 0.1

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def mark_of(pid: int) -> ProcessMark | None:
    """The process of that number as it is now; None where there is none."""
    try:
        return ProcessMark(pid, psutil.Process(pid).create_time())
    except _GONE:
        return None


def is_alive(mark: ProcessMark) -> bool:
    """True while the very process runs: a zombie has ended, and a number that came back is another process."""
    return _process(mark) is not None


def _process(mark: ProcessMark) -> psutil.Process | None:
    try:
        process = psutil.Process(mark.pid)
        is_same = abs(process.create_time() - mark.started) < SAME_START_S
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    except _GONE:
        return None


def descendants(mark: ProcessMark) -> list[ProcessMark]:
    """Children, their children and so on, as far as they have not been left to init."""
    process = _process(mark)
    try:
        children = process.children(recursive=True) if process else []
    except _GONE:
        return []
    return [ProcessMark(child.pid, child.create_time()) for child in children]


def marked(run_id: str) -> list[ProcessMark]:
    """Every process of this user that inherited the run's variable, whoever its parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == run_id and process.pid != os.getpid():
                found.append(ProcessMark(process.pid, process.create_time()))
        except (*_GONE, OSError):
            continue
    return found


def living(marks: Iterable[ProcessMark]) -> list[ProcessMark]:
    """Those that still run, in order, each once."""
    return [mark for mark in sorted(set(marks)) if is_alive(mark)]


def send(mark: ProcessMark, number: int) -> None:
    """Signal that very process; nothing happens where it is gone."""
    process = _process(mark)
    try:
        if process is not None:
            process.send_signal(number)
    except _GONE:
        return


def stop_everything(
    leader: ProcessMark | None,
    find: Callable[[], Iterable[ProcessMark]],
    *,
    grace_s: float = TERM_GRACE_S,
    hurry: Callable[[], bool] = lambda: False,
) -> list[ProcessMark]:
    """End a run: its launcher's group first, then every other process of it, by force last.

    ``find`` gives all processes of the run that are known at the moment. A launcher that is asked first ends its own
    workers in order; SIGTERM to llamafactory-cli alone would leave torchrun and its workers training. ``hurry`` ends
    the patience early. Returns what could not be ended.
    """
    known = set(find())
    group = [mark for mark in known if leader is not None and _group(mark.pid) == leader.pid]
    for mark in group:
        send(mark, signal.SIGTERM)
    left = _wait(known, find, grace_s if group else 0.0, hurry)
    for number, patience_s in ((signal.SIGTERM, grace_s / 2), (signal.SIGKILL, KILL_GRACE_S)):
        for mark in left:
            send(mark, number)
        left = _wait(set(left), find, patience_s, hurry if number == signal.SIGTERM else lambda: False)
    return left


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _wait(
    known: set[ProcessMark], find: Callable[[], Iterable[ProcessMark]], patience_s: float, hurry: Callable[[], bool]
) -> list[ProcessMark]:
    """Until all are gone or the patience is at its end: what still runs, newcomers included."""
    end = time.monotonic() + patience_s
    while True:
        left = living({*known, *find()})
        if not left or hurry() or time.monotonic() >= end:
            return left
        time.sleep(POLL_S)
        known.update(left)
