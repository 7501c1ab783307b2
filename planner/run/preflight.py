"""EDGE: is what a plan needs there, before anything starts?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from planner.hardware.machine import Machine
from planner.plan.plan import Plan
from planner.run.checkpoints import checkpoints, last_whole
from planner.run.job import EngineMissingError, Job, find_program
from planner.run.overrides import target_of
from planner.run.records import Check
from planner.units import show_gib

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")


def preflight(plan: Plan, machine: Machine, python: str | None, *, job: Job) -> list[Check]:
    """Everything that can be told before the start. ``machine`` is what is here now, ``job`` the plan's folder."""
    return [*_engine(job, python), *_output(job), *_disk(job, machine)]


def _engine(job: Job, python: str | None) -> Iterator[Check]:
    launch = target_of(job.engine).launch(job.setup, job.context)
    try:
        program = find_program(launch, python, os.environ)
    except EngineMissingError as problem:
        yield Check(name="engine", status="failed", sentence=problem.sentence, remedy=problem.hint or "")
        return
    yield Check(name="engine", status="passed", sentence=f"{program} starts it")


def _output(job: Job) -> Iterator[Check]:
    """A folder with checkpoints is resumed; finished weights without any would be overwritten."""
    output = job.output
    whole = last_whole(output)
    if whole is not None:
        yield Check(name="output", status="warned", sentence=f"{_short(whole, job)} is there: the run resumes from it")
    elif any((output / name).exists() for name in WEIGHTS):
        yield Check(
            name="output",
            status="failed",
            sentence=f"{_short(output, job)} holds a trained model and no checkpoint to resume from",
            remedy="move it away, or plan into another folder with --out",
        )
    elif checkpoints(output):
        yield Check(
            name="output",
            status="warned",
            sentence=f"no checkpoint in {_short(output, job)} is whole: the run starts at the first step",
        )
    else:
        yield Check(name="output", status="passed", sentence=f"{_short(output, job)} is new")


def _short(path: Path, job: Job) -> str:
    return str(path.relative_to(job.folder)) if path.is_relative_to(job.folder) else str(path)


def _disk(job: Job, machine: Machine) -> Iterator[Check]:
    need, free = job.estimate.disk_bytes, shutil.disk_usage(job.folder).free
    if free < need:
        yield Check(
            name="disk",
            status="failed",
            sentence=f"{show_gib(free)} are free, and checkpoints take {show_gib(need)}",
            remedy="make room, or keep fewer checkpoints (save_total_limit)",
        )
    else:
        yield Check(name="disk", status="passed", sentence=f"{show_gib(free)} free, checkpoints take {show_gib(need)}")
