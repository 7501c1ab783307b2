"""EDGE: start the engine in a session of its own, and end all of it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from planner.errors import PlannerError
from planner.run.logs import Pump, RotatingLog, Tail
from planner.run.processes import (
    MARKER,
    TERM_GRACE_S,
    descendants,
    living,
    mark_of,
    marked,
    stop_everything,
)
from planner.run.records import ProcessMark
from planner.run.surroundings import secrets_of

LOOK_S, DEEP_LOOK_S = 5.0, 30.0
# A look reads of every process on the machine: where there are thousands, it comes more rarely.
LOOK_SHARE = 1 / 500
DRAIN_S = 5.0
PIPE_BYTES = 1 << 20  # what Linux lets anybody have: half a second of a flood


class Engine:
    """One running engine with everything that it started."""

    def __init__(self, process: subprocess.Popen[bytes], run_id: str, pump: Pump) -> None:
        self.leader: ProcessMark | None = mark_of(process.pid)
        self._process = process
        self._run_id = run_id
        self._pump = pump
        self._known: set[ProcessMark] = {self.leader} if self.leader else set()
        self._look_at = self._deep_at = 0.0
        self._began = time.monotonic()
        self._ended = _ending_of(process.pid)

    @property
    def tail(self) -> Tail:
        """What it printed last."""
        return self._pump.tail

    @property
    def printed_bytes(self) -> int:
        """How much it printed so far."""
        return self._pump.read_bytes

    def poll(self) -> int | None:
        """The launcher's exit status (negative for a signal), None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> None:
        """Until the launcher ends, or so long; Popen.wait would look twenty times a second."""
        if self._ended is not None:
            select.select([self._ended], [], [], seconds)
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def processes(self) -> tuple[ProcessMark, ...]:
        """All processes of the run that lived at the last look.

        Children are looked for every five seconds, more often at first while it starts them; those that were left to
        init every thirty.
        """
        start = time.monotonic()
        if start < self._look_at:
            return tuple(sorted(self._known))
        found = set(descendants(self.leader)) if self.leader is not None else set()
        self._look_at = _next_look(start, min(LOOK_S, (start - self._began) / 2))
        if start >= self._deep_at:
            found.update(marked(self._run_id))
            self._deep_at = _next_look(start, DEEP_LOOK_S)
        self._known = found.union(living(self._known - found))
        return tuple(sorted(self._known))

    def stop(self, *, grace_s: float = TERM_GRACE_S, hurry: Callable[[], bool] = lambda: False) -> list[ProcessMark]:
        """End everything; what could not be ended comes back. Safe to call when all has ended by itself."""
        left = stop_everything(self.leader, self._everything, grace_s=grace_s, hurry=hurry)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._pump.finish(DRAIN_S)
        if self._ended is not None:
            os.close(self._ended)
            self._ended = None
        return left

    def _everything(self) -> set[ProcessMark]:
        self._process.poll()  # a launcher that ended is reaped, so that it does not count as alive
        found = descendants(self.leader) if self.leader is not None else []
        return {*self._known, *found, *marked(self._run_id)}


def _next_look(start: float, least_s: float) -> float:
    """When to look again after a look that began at ``start`` and ends now."""
    now = time.monotonic()
    return start + max(least_s, (now - start) / LOOK_SHARE)


def _ending_of(pid: int) -> int | None:
    """A descriptor that can be read from when the process ends; None where the system has none."""
    with suppress(OSError):
        return os.pidfd_open(pid) if sys.platform == "linux" else None
    return None


def _widened(pipe: int) -> None:
    """Room for what gathers between two reads; the system's own size where it allows no more."""
    import fcntl

    with suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def start(
    words: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    run_id: str,
    log: Path,
    seen: Callable[[bytes], None],
) -> Engine:
    """Start ``words`` with exactly that environment; stdout and stderr go to ``log``, whole lines to ``seen`` too.

    Raises PlannerError where the program cannot be started.
    """
    reading, writing = os.pipe()
    _widened(writing)
    try:
        process = subprocess.Popen(  # noqa: S603 - words of our own launchers, no shell
            list(words),
            cwd=cwd,
            env={**environment, MARKER: run_id},
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
            close_fds=True,
        )
    except OSError as problem:
        os.close(reading)
        reason = (problem.strerror or str(problem)).lower()
        raise CannotStartError(f"{words[0]} cannot be started: {reason}") from None
    finally:
        os.close(writing)
    pump = Pump(reading, RotatingLog(log), seen, secrets_of(environment))
    pump.start()
    return Engine(process, run_id, pump)


class CannotStartError(PlannerError):
    """The engine's program could not be started at all."""

    exit_code = 4


def clean_up(run_id: str, recorded: Sequence[ProcessMark], *, grace_s: float = TERM_GRACE_S) -> list[ProcessMark]:
    """End what a run left behind whose planner was killed: everything recorded or marked. Returns what was found."""
    found = sorted({*living(recorded), *marked(run_id)})
    if found:
        leaders = [mark for mark in found if _is_leader_of_several(mark, found)]
        leader = leaders[0] if leaders else None
        stop_everything(leader, lambda: {*living(recorded), *marked(run_id)}, grace_s=grace_s)
    return found


def _is_leader_of_several(mark: ProcessMark, others: Sequence[ProcessMark]) -> bool:
    """The launcher's group: whoever shares it with another is the launcher and torchrun, not a worker."""
    groups = []
    for other in others:
        with suppress(ProcessLookupError):
            groups.append(os.getpgid(other.pid))
    return groups.count(mark.pid) > 1
