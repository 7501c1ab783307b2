"""EDGE: the watch in the background: it wakes without taking a core from a trainer that computes.

A trainer's threads wait for each other at barriers, so that one which is put off for a moment puts off all of them.
Linux gives a thread of SCHED_BATCH its turn when a core is free or another's slice is over, never the moment it wakes
(sched(7)). Elsewhere nothing is changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def in_background() -> Iterator[None]:
    """Make this thread a batch job, and what it was afterwards. Nothing may be started inside: children inherit it."""
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:  # somebody chose already
        yield
        return
    _schedule(os.SCHED_BATCH)
    try:
        yield
    finally:
        _schedule(os.SCHED_OTHER)


def _schedule(policy: int) -> None:
    with suppress(OSError):  # a sandbox may forbid it: the watch then runs as it was started
        os.sched_setscheduler(0, policy, os.sched_param(0))
