"""EDGE: is what a plan needs there, before anything starts?

``checks.look`` gathers, ``checks.needs`` says what is needed, and the other modules of ``checks`` compare the two.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planner.run.checks.cards import cards
from planner.run.checks.disk import disk
from planner.run.checks.host import host
from planner.run.checks.inputs import inputs
from planner.run.checks.place import place
from planner.run.checks.records import Need, Surroundings
from planner.run.checks.software import software
from planner.run.records import Check

if TYPE_CHECKING:
    from planner.run.job import Job

TOPICS = (software, cards, host, disk, inputs, place)


def preflight(
    job: Job, python: str | None = None, *, names: tuple[str, ...] = (), answer: Mapping[str, Any] | None = None
) -> list[Check]:
    """Everything that can be told before the start.

    ``python`` is the Python with the engine where it was named, ``names`` variables that the run passes on; ``answer``
    a raw probe of this machine, None to probe it. Some seconds where torch or kernels have to be imported.
    """
    from planner.hardware.probe import raw_answer
    from planner.run.checks.look import look
    from planner.run.checks.needs import need_of
    from planner.run.job import engine_environment
    from planner.run.overrides import target_of

    launch = target_of(job.engine).launch(job.setup, job.context)
    environment = engine_environment(launch, os.environ, names)
    need = need_of(job, launch, environment)
    here = look(
        job, need, launch, answer or raw_answer(job.output), python=python, caller=os.environ, environment=environment
    )
    return judged(need, here)


def judged(need: Need, here: Surroundings) -> list[Check]:
    """Every check on what was found, topic by topic. Pure."""
    return [check for topic in TOPICS for check in topic(need, here)]
