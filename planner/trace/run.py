"""EDGE: traces jobs, each in a process of its own: what is patched for one model must not reach the next.

``prepare`` looks for the extra's packages, loads the CUDA guard and imports torch behind it, once; every job then
forks from there.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from planner.errors import EXIT_PREFLIGHT, InputError, PlannerError
from planner.memory.allocator import Replay, replay
from planner.trace.job import Job

PACKAGES = ("torch", "transformers", "peft", "accelerate")
NAMED = (*PACKAGES, "liger-kernel")


class MissingToolError(PlannerError):
    """Something that tracing needs is not installed here."""

    exit_code = EXIT_PREFLIGHT


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """A traced job: ``reserved`` with unlimited memory, ``limited`` at the capacity asked for, if any."""

    traced: Any
    reserved: Replay
    limited: Replay | None
    versions: dict[str, str]
    seconds: float
    blocks: dict[str, Any] = field(default_factory=dict)
    timeline: tuple[str, ...] = ()


def prepare() -> None:
    """Packages, guard, torch. Raises MissingToolError, UnsupportedError."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingToolError(
            f"plan trace needs {', '.join(missing)}, not installed here", hint="pip install 'vramplan[trace]'"
        )
    if "planner.trace.step" in sys.modules:
        return
    from planner.trace import guard

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # only configs that are here are read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guard.install()
        from planner.trace import bitsandbytes_like

        bitsandbytes_like.install()
        import peft  # noqa: F401 - imported once, inherited by every job's process

        import planner.trace.step  # noqa: F401


def opinion(
    job: Job, *, capacity_bytes: int | None = None, expandable_segments: bool = False, detailed: bool = False
) -> Opinion:
    """Trace one job; ``capacity_bytes`` is what the allocator may take from the card; ``detailed`` adds blocks.

    Raises PlannerError: UnsupportedError for what cannot be traced, and a sentence for a step that fails.
    """
    prepare()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_apart, args=(sender, job, capacity_bytes, expandable_segments, detailed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's idle threads are no danger to a child that starts its own
        child.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = PlannerError("the traced step was ended from outside, for want of memory perhaps")
    child.join()
    if isinstance(answer, PlannerError):
        raise answer
    return answer  # type: ignore[no-any-return]


def _apart(sender: Any, job: Job, capacity_bytes: int | None, expandable: bool, detailed: bool) -> None:
    try:
        sender.send(_opinion(job, capacity_bytes, expandable, detailed))
    except PlannerError as problem:
        sender.send(_portable(problem))
    except Exception as problem:
        if os.environ.get("VRAMPLAN_DEBUG") == "1":
            traceback.print_exc()
        what = f"{type(problem).__name__}: {problem}".splitlines()[0][:300]
        sender.send(_portable(PlannerError(f"the traced step failed ({what})", hint="VRAMPLAN_DEBUG=1 shows where")))


def _portable(problem: PlannerError) -> PlannerError:
    """An exception that survives the pipe: one with the code of the original."""
    kind = InputError if isinstance(problem, InputError) else PlannerError
    copy = kind(problem.sentence)
    copy.hint = problem.hint
    return copy


def _opinion(job: Job, capacity_bytes: int | None, expandable: bool, detailed: bool) -> Opinion:
    warnings.simplefilter("ignore")
    started = time.monotonic()
    from planner.trace import report
    from planner.trace.step import trace

    ledger, model = trace(job, op_log=detailed)
    events = list(report.log(ledger, job))
    return Opinion(
        traced=report.traced(ledger, model, job),
        reserved=replay(events, expandable_segments=expandable),
        limited=_limited(events, capacity_bytes, expandable),
        versions=versions(),
        seconds=time.monotonic() - started,
        blocks=report.blocks(ledger) if detailed else {},
        timeline=tuple(report.timeline(ledger)) if detailed else (),
    )


def _limited(events: list[Any], capacity_bytes: int | None, expandable: bool) -> Replay | None:
    if capacity_bytes is None:
        return None
    return replay(events, capacity_bytes=capacity_bytes, expandable_segments=expandable)


def versions() -> dict[str, str]:
    """What traced it."""
    found = {}
    for name in NAMED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
