"""EDGE: a plan's folder as a job: what its files say now, what that takes, and how it is started."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.data.source import DataSource, data_source
from planner.emit.folder import plan_files
from planner.emit.surroundings import emit_context, used_gpus
from planner.errors import EXIT_PREFLIGHT, InputError, PlannerError
from planner.plan.plan import Plan
from planner.run.overrides import SIDE_FILES, settings_of, target_of, with_settings, words_of
from planner.run.read_plan import priced, read_plan
from planner.run.surroundings import allowed
from planner.speed.estimate import data_ranks
from planner.targets.launchers import Launch, Ref
from planner.training import FIELD_NAMES, TrainingSetup

if TYPE_CHECKING:
    from planner.hardware.machine import Machine
    from planner.memory.result import Estimate
    from planner.plan.plan import Speed
    from planner.targets.context import EmitContext

SAID_ELSEWHERE = ("gpus", "versions", "padded")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be run. ``setup`` is what the files state with ``overrides``; ``edits`` how they differ from the plan,
    in sentences, ``held`` the fields that differ.

    ``texts`` maps a trainer's file to its text as it lies there; the estimate is of ``setup``, not of the plan.
    """

    folder: Path
    plan: Plan
    setup: TrainingSetup
    context: EmitContext
    estimate: Estimate
    speed: Speed | None
    texts: dict[str, str]
    overrides: dict[str, Any]
    data: DataSource
    edits: tuple[str, ...]
    held: tuple[str, ...]
    warnings: tuple[str, ...]

    def context_for(self, setup: TrainingSetup) -> EmitContext:
        """The surroundings of another setup of the same plan: which GPUs it takes depends on how it spreads."""
        return emit_context(self.plan, setup, self.data)

    @property
    def engine(self) -> str:
        """The trainer that runs it."""
        return self.setup.engine

    @property
    def ranks(self) -> int:
        """Processes that read different data."""
        return data_ranks(self.setup, self.plan.machine)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Key to value of the trainer's file, overrides included."""
        name = target_of(self.engine).file_name
        return settings_of(with_settings(self.texts[name], name, self.overrides), name)

    @cached_property
    def on_cpu(self) -> bool:
        """True where the trainer is told to leave the GPUs alone: predictions for a GPU then say nothing."""
        return self.settings.get("use_cpu", self.settings.get("arguments.use_cpu")) is True

    @cached_property
    def output(self) -> Path:
        """Where checkpoints go."""
        stated = self.settings.get("output_dir") or self.settings.get("arguments.output_dir") or "output"
        return self.folder / str(stated)

    def effective_batch(self, setup: TrainingSetup | None = None) -> int:
        """Sequences of one optimizer step over all ranks."""
        of = setup or self.setup
        return of.micro_batch_size * of.gradient_accumulation_steps * self.ranks

    def devices(self, environment: Mapping[str, str]) -> tuple[str, ...]:
        """The GPUs that the engine will use; none on the CPU."""
        if self.on_cpu:
            return ()
        chosen = environment.get("CUDA_VISIBLE_DEVICES")
        return self.context.devices if chosen is None else tuple(part.strip() for part in chosen.split(",") if part)

    def capacities(self) -> dict[int, int]:
        """Bytes that the plan counts on, by the driver's number of a GPU."""
        return {gpu.index: gpu.capacity_bytes for gpu in used_gpus(self.setup, self.plan.machine)}


def load_job(folder: Path, overrides: Mapping[str, Any], *, machine: Machine | None = None) -> Job:
    """The job of a plan's folder. Files changed by hand are read back and priced.

    Raises InputError for what cannot be read or what the engine would refuse.
    """
    plan = read_plan(folder, machine=machine)
    if plan.chosen is None:
        raise InputError(f"{str(folder)!r} states no choice: plan again")
    target = target_of(_engine_of(folder, plan.chosen.setup.engine))
    planned = plan_files(plan)
    texts = {name: _text(folder / name) for name in _names(folder, target.file_name)}
    seen = {**texts, target.file_name: with_settings(texts[target.file_name], target.file_name, overrides)}
    reading = target.read(seen | {"plan.json": planned["plan.json"]})
    as_planned = target.read({name: planned[name] for name in (target.file_name, *SIDE_FILES, "plan.json")
                              if name in planned})  # fmt: skip
    setup = reading.setup.but(**{name: getattr(plan.chosen.setup, name) for name in SAID_ELSEWHERE})
    estimate, speed = priced(setup, plan.model, plan.machine)
    data = data_source(plan.request.data, setup.stage, plan.request.mixing)
    fields = _changed_fields(as_planned.setup, reading.setup)
    return Job(
        folder=folder,
        plan=plan,
        setup=setup,
        context=emit_context(plan, setup, data),
        data=data,
        estimate=estimate,
        speed=speed,
        texts=texts,
        overrides=dict(overrides),
        edits=_edits(planned, texts, as_planned.setup, reading.setup, fields),
        held=fields,
        warnings=reading.warnings,
    )


def _engine_of(folder: Path, engine: str) -> str:
    name = target_of(engine).file_name
    if not (folder / name).is_file():
        raise InputError(f"{str(folder)!r} has no {name}, which engine {engine} reads: plan again with another --out")
    return engine


def _names(folder: Path, main: str) -> list[str]:
    return [main, *(name for name in SIDE_FILES if (folder / name).is_file())]


def _text(path: Path) -> str:
    from planner.files import read_text

    return read_text(str(path), place="plan")


def _changed_fields(before: TrainingSetup, after: TrainingSetup) -> tuple[str, ...]:
    return tuple(
        name
        for name in FIELD_NAMES
        if name not in (*SAID_ELSEWHERE, "ds_config") and getattr(before, name) != getattr(after, name)
    )


def _edits(
    planned: Mapping[str, str],
    texts: Mapping[str, str],
    before: TrainingSetup,
    after: TrainingSetup,
    fields: tuple[str, ...],
) -> tuple[str, ...]:
    """A sentence for each file changed by hand, and for each field of the setup that is changed."""
    touched = [f"{name} is not as it was planned" for name, text in texts.items() if planned.get(name) != text]
    changed = [f"{name} is {getattr(after, name)}; planned was {getattr(before, name)}" for name in fields]
    return (*touched, *changed)


# ---- how it is started


class EngineMissingError(PlannerError):
    """The engine's program is not there."""

    exit_code = EXIT_PREFLIGHT


@dataclass(frozen=True, kw_only=True)
class Command:
    """Words and environment of one start, ready for the kernel."""

    words: tuple[str, ...]
    environment: dict[str, str]
    cwd: Path
    files: dict[Path, str] = field(default_factory=dict)


def find_bin(python: str | None) -> Path:
    """The folder of programs of the Python that was named, else of the one that runs this."""
    chosen = Path(python).expanduser() if python else Path(sys.executable)
    if python and not chosen.exists():
        raise InputError(f"--python {python!r} does not exist")
    return chosen if chosen.is_dir() else chosen.absolute().parent


def search_path(python: str | None, environment: Mapping[str, str]) -> str:
    """PATH with the engine's own programs first."""
    return os.pathsep.join([str(find_bin(python)), environment.get("PATH", os.defpath)])


def find_program(launch: Launch, python: str | None, environment: Mapping[str, str]) -> str:
    """The launcher's program: beside the named Python, beside this one, or on PATH. Raises EngineMissingError."""
    name = str(launch.chosen.words[0])
    found = shutil.which(name, path=search_path(python, environment))
    if found is None:
        beside = f"beside {find_bin(python) / 'python'}" if python else "beside this Python or on PATH"
        raise EngineMissingError(
            f"{name} was not found {beside}", hint=f"{launch.remedy}; or name the Python that has it with --python"
        )
    return found


def engine_environment(launch: Launch, environment: Mapping[str, str], names: tuple[str, ...] = ()) -> dict[str, str]:
    """What passes of the caller's variables, and what the launch sets."""
    passed = allowed(environment, names)
    for variable in launch.environment:
        if variable.kind == "fixed" or (variable.kind == "default" and not passed.get(variable.name)):
            passed[variable.name] = variable.value
    return passed


def command_of(
    job: Job,
    setup: TrainingSetup,
    changes: Mapping[str, Any],
    *,
    python: str | None,
    environment: Mapping[str, str],
    extra: Mapping[str, str],
    names: tuple[str, ...] = (),
    cwd: Path | None = None,
    accelerate_file: str | None = None,
) -> Command:
    """The command of one attempt, rebuilt from the validated plan.

    ``environment`` is the caller's, of which the allowed part and ``names`` pass; ``extra`` is set on top. Raises
    InputError for a variable that is the caller's duty, EngineMissingError.
    """
    launch = target_of(job.engine).launch(setup, job.context_for(setup))
    passed = engine_environment(launch, environment, names)
    for variable in launch.environment:
        if variable.kind == "required" and not passed.get(variable.name):
            raise InputError(f"{variable.name} is not set: {variable.reason}")
    passed |= {"PYTHONUNBUFFERED": "1", "PATH": search_path(python, environment), **extra}
    program = find_program(launch, python, environment)
    words = [program, *(_word(word, passed, accelerate_file) for word in launch.chosen.words[1:])]
    return Command(words=(*words, *words_of(changes)), environment=passed, cwd=cwd or job.folder)


def _word(word: str | Ref, environment: Mapping[str, str], accelerate_file: str | None) -> str:
    if isinstance(word, Ref):
        return environment[word.name]
    return accelerate_file if accelerate_file and word == "accelerate.yaml" else word
