"""EDGE: leave the terminal: the rest of the run goes on in a process of its own session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path


def detach(work: Callable[[], int], log: Path) -> bool:
    """Do ``work`` in a grandchild that no terminal can reach; its own complaints go to ``log``.

    True in the process that called, which goes on at once; the grandchild never returns.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return True
    os.setsid()
    if os.fork():
        os._exit(0)
    code = 1
    try:
        _without_terminal(log)
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _without_terminal(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(nothing, 0)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.close(nothing)
    os.close(written)
