"""EDGE: the watch over one attempt: progress, memory, signs of life."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from planner.run.attempt import Options
from planner.run.checkpoints import checkpoints, last_whole
from planner.run.job import Job
from planner.run.launch import Engine
from planner.run.progress import NON_FINITE_IN_A_ROW, Tracker
from planner.run.records import Purpose, RunState
from planner.run.state import RunFolder
from planner.run.tails import JsonlTail

TICK_S = 1.0


class Owner(Protocol):
    """Whoever started the attempt."""

    job: Job
    folder: RunFolder
    options: Options
    state: RunState

    @property
    def is_stopping(self) -> bool:
        """True once somebody asked for the end."""
        ...

    def sample(self, watch: Watch) -> None:
        """Called once a second."""
        ...


class Watch:
    """The watch over one attempt: looks once a second, and ends it where it has to be ended."""

    def __init__(
        self, owner: Owner, engine: Engine, tracker: Tracker, lock: threading.Lock, tail: JsonlTail,
        purpose: Purpose,
    ) -> None:  # fmt: skip
        self.owner, self.engine, self.tracker = owner, engine, tracker
        self._lock, self._tail, self._purpose = lock, tail, purpose
        self._alive_at, self._marks = time.monotonic(), (0, 0)
        self.was_stopped = False
        self.stalled_minutes: float | None = None
        self.disk_free_bytes: int | None = None
        self.checkpoint = owner.state.checkpoint

    def until_it_ends(self) -> None:
        """Returns when the launcher has ended, or when it has to be ended."""
        while self.engine.poll() is None:
            self.look()
            self.owner.sample(self)
            if self._must_end():
                return
            self.engine.wait(TICK_S)

    def look(self) -> None:
        """Read what the trainer logged since the last look."""
        with self._lock:
            at = time.time()
            read = (self.tracker.log_line(line, at) for line in self._tail.new_lines())
            steps = [{"purpose": self._purpose, **entry} for entry in read if entry is not None]
            if steps:
                self.owner.folder.events("step", steps)
            marks = (self.tracker.marks, 0 if self.tracker.marks else self.engine.printed_bytes)
        if marks != self._marks:
            self._marks, self._alive_at = marks, time.monotonic()
        if self._purpose == "training":
            self._look_for_checkpoints()

    def _look_for_checkpoints(self) -> None:
        """Only a new name is read: a trainer's state grows with its history."""
        there = checkpoints(self.owner.job.output)
        if there and str(there[-1]) != self.checkpoint:
            newest = last_whole(self.owner.job.output)
            self.checkpoint = None if newest is None else str(newest)

    def _must_end(self) -> bool:
        if self.owner.is_stopping:
            self.was_stopped = True
        silent = (time.monotonic() - self._alive_at) / 60
        if silent >= self.owner.options.stall_minutes:
            self.stalled_minutes = silent
        sick = self.tracker.sick >= NON_FINITE_IN_A_ROW
        return self.was_stopped or sick or self.stalled_minutes is not None
