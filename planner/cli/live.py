"""What shows a run as it goes on: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from planner.run.records import RunState

PLAIN_EVERY_S = 10.0


@contextmanager
def showing(*, quiet: bool) -> Iterator[Callable[[RunState], None]]:
    """A function that shows a state; ``quiet``: stdout is somebody else's, so lines go to stderr."""
    if not quiet and sys.stdout is not None and sys.stdout.isatty():
        with _live() as show:
            yield show
    else:
        yield PlainLines()


@contextmanager
def _live() -> Iterator[Callable[[RunState], None]]:
    from rich.live import Live

    from planner.cli.io import result_console
    from planner.cli.show_run import run_view

    with Live(console=result_console(), auto_refresh=False, transient=False) as live:

        def show(state: RunState) -> None:
            live.update(run_view(state), refresh=True)

        yield show


class PlainLines:
    """A line when something changes, and every ten seconds in which a step was made."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        from planner.cli.io import say as to_stderr

        self._say = say or to_stderr
        self._status: Any = None
        self._healed = 0
        self._step: int | None = None
        self._next = 0.0

    def __call__(self, state: RunState) -> None:
        """Show what is new in the state."""
        from planner.cli.show_run import plain_line

        for sentence in state.healed[self._healed :]:
            self._say(f"healed: {sentence}")
        self._healed = len(state.healed)
        changed = state.status != self._status
        stepped = state.progress.step != self._step and time.monotonic() >= self._next
        if changed or stepped:
            self._status, self._step, self._next = state.status, state.progress.step, time.monotonic() + PLAIN_EVERY_S
            self._say(plain_line(state))
