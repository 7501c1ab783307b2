"""EDGE: what one attempt starts: command, variables, files beside the plan's, the checkpoint that it resumes from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.memory.result import Estimate
from planner.run.checkpoints import last_whole, set_unfinished_aside
from planner.run.job import Command, Job, command_of
from planner.run.launch import CannotStartError
from planner.run.overrides import Changed, changed_between, target_of
from planner.run.processes import TERM_GRACE_S
from planner.run.state import RunFolder
from planner.run.worst import can_rehearse, rehearsal
from planner.targets import Target
from planner.training import TrainingSetup


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is to be driven. ``consent`` are rungs that may change what is learnt, ``names`` variables to pass,
    ``again`` the flags that a command to resume repeats.
    """

    python: str | None = None
    retries: int = 3
    stall_minutes: float = 30.0
    skip_worst_case: bool = False
    consent: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    grace_s: float = TERM_GRACE_S
    again: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the next attempt differs from the plan: another setup, the words that say so, variables."""

    setup: TrainingSetup
    estimate: Estimate
    values: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    change: str = ""
    room_bytes: int | None = None


class Preparation:
    """Makes the commands of a run's attempts."""

    def __init__(self, job: Job, folder: RunFolder, options: Options, environment: Mapping[str, str]) -> None:
        self.job, self.folder, self.options = job, folder, options
        self._environment = environment

    def has_rehearsal(self) -> bool:
        """False where it is not asked for, not known for the engine, or a checkpoint shows that steps went well."""
        several = self.job.plan.machine.nodes > 1  # the other machines may not see the same checkpoints
        if self.options.skip_worst_case or several or last_whole(self.job.output) is not None:
            return False
        return can_rehearse(self.job.setup)

    def files_for(self, setup: TrainingSetup) -> Changed:
        """What says another setup to the engine, on top of the plan's own files."""
        job, target = self.job, target_of(self.job.engine)
        before, after = (_files(job, target, each) for each in (job.setup, setup))
        return changed_between(before, after, target)

    def training(self, way: Way) -> tuple[Command, Path | None]:
        """The command of a training attempt, and the checkpoint that it resumes from."""
        moved = set_unfinished_aside(self.job.output)
        for each in moved:
            self.folder.event("checkpoint set aside", path=str(each))
        checkpoint = last_whole(self.job.output)
        values = way.values | self._placed(way) | self._resume(checkpoint)
        command = command_of(
            self.job, way.setup, values, python=self.options.python, environment=self._environment,
            extra=way.environment, names=self.options.names,
            accelerate_file=self._own_file(way, "accelerate.yaml"),
        )  # fmt: skip
        return command, checkpoint

    def longest_batch(self, way: Way) -> Command:
        """The same files in a scratch folder of the run's, on made-up samples of full length."""
        found = rehearsal(way.setup, self.texts() | way.files, ranks=self.job.ranks)
        if found is None:
            raise CannotStartError(
                f"no rehearsal is known for engine {self.job.engine} in stage {way.setup.stage}: say --skip-worst-case"
            )
        scratch = self.folder / "longest-batch"
        shutil.rmtree(scratch, ignore_errors=True)
        for name, text in found.files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_text(text, encoding="utf-8")
        return command_of(
            self.job, way.setup, {**way.values, **found.overrides}, python=self.options.python,
            environment=self._environment, extra=way.environment, names=self.options.names, cwd=scratch,
        )  # fmt: skip

    def texts(self) -> dict[str, str]:
        """The trainer's files as they lie in the plan's folder, its script included."""
        scripts = {each.name: each.read_text(encoding="utf-8") for each in self.job.folder.glob("*.py")}
        return {**scripts, **self.job.texts}

    def _placed(self, way: Way) -> dict[str, Any]:
        """New files beside the trainer's own lie in the run's folder, and the engine is told where."""
        told = {}
        for name, text in way.files.items():
            path = self.folder / name
            path.write_text(text, encoding="utf-8")
            if name == "ds_config.json":
                in_sections = target_of(self.job.engine).file_name.endswith(".json")
                key = "arguments.deepspeed" if in_sections else "deepspeed"
                told[key] = self.relative(path)
        return told

    def _own_file(self, way: Way, name: str) -> str | None:
        return self.relative(self.folder / name) if name in way.files else None

    def _resume(self, checkpoint: Path | None) -> dict[str, Any]:
        """The others find the last checkpoint by themselves; LLaMA-Factory splits its words at spaces."""
        where = "" if checkpoint is None else self.relative(checkpoint)
        if self.job.engine != "llamafactory" or not where or " " in where:
            return {}
        return {"resume_from_checkpoint": where}

    def relative(self, path: Path) -> str:
        """As the engine, which starts in the plan's folder, would find it: no spaces of parent folders in it."""
        return os.path.relpath(path, self.job.folder)


def _files(job: Job, target: Target, setup: TrainingSetup) -> dict[str, str]:
    context = job.context_for(setup)
    return target.files(target.settle(setup, context), context)
