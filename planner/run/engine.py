"""EDGE: which engine a run takes, and in which Python: chosen among what is installed, or as it was asked for."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from planner.errors import InputError, UnsupportedError
from planner.plan.plan import Plan, Request
from planner.rulebook.engines import engine_name
from planner.run.checks.look_python import interpreter_of
from planner.run.read_plan import priced
from planner.search.rungs import load_ladder
from planner.targets.choose import BASIC, NEEDS, Choice, choose_engine, installed, packages_beside
from planner.training import TrainingSetup, setup_from_mapping

DEFAULT = "llamafactory"
PROGRAMS = ("llamafactory-cli", "torchrun")
# Packages by whose versions memory is priced.
DECIDING = ("torch", "transformers", "accelerate", "peft", "trl", "deepspeed", "bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class Picked:
    """An engine with the reason, the Python that has it (None: the one that runs this), and what that one lacks.

    ``without`` maps rungs of the ladder that need a package to the package that is not installed there; ``versions``
    are those of what will run, by whose code memory is priced.
    """

    choice: Choice
    python: Path | None
    without: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """``TRL: it is installed and has this stage (LLaMA-Factory is not installed)``."""
        said = f"{engine_name(self.choice.value)}: {self.choice.because}"
        if not self.without:
            return said
        packages = ", ".join(sorted(set(self.without.values())))
        return f"{said}; not installed there, and planned without: {packages}"


def pythons(named: str | None, environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where an engine is looked for: the named Python alone, else this one, then those of launchers on PATH."""
    if named:
        place = Path(named).expanduser()
        if not place.exists():
            raise InputError(f"--python {named!r} does not exist")
        return (place / "python" if place.is_dir() else place,)
    found = [Path(sys.executable)]
    for program in PROGRAMS:
        path = shutil.which(program, path=environment.get("PATH"))
        python = Path(interpreter_of(path)) if path else None
        if python and python.parent not in [each.parent for each in found]:
            found.append(python)
    return tuple(found)


def pick(request: Request, gpus: int, *, named: str | None, environment: Mapping[str, str]) -> Picked:
    """The engine for a request on ``gpus`` GPUs in all; LLaMA-Factory, with why, where nothing installed can run it.

    Raises InputError for a named Python that does not exist or does not answer.
    """
    setup = least_setup(request, gpus)
    why = ""
    for python in pythons(named, environment):
        packages = installed(python)
        try:
            choice = choose_engine(packages, setup, setup.stage, gpus)
        except UnsupportedError as problem:
            why = why or problem.sentence
            continue
        here = python if str(python) != sys.executable else None
        return Picked(
            choice=choice, python=here, without=_rungs_without(packages, setup, request),
            versions=versions_among(packages, choice.value),
        )  # fmt: skip
    return Picked(choice=Choice(value=DEFAULT, because=f"the default, because {why}"), python=None, without={})


def versions_of(engine: str, *, named: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Versions in the first Python that has the engine; none where no Python has it.

    Raises InputError for a named Python that does not exist or does not answer.
    """
    for python in pythons(named, environment):
        packages = installed(python)
        if all(name in packages for name in NEEDS.get(engine, BASIC)):
            return versions_among(packages, engine)
    return {}


def versions_among(packages: Mapping[str, str], engine: str) -> dict[str, str]:
    """Those that memory depends on; TRL's counts where it is the engine, elsewhere it only lies beside it."""
    return {name: packages[name] for name in DECIDING if name in packages and (name != "trl" or engine == "trl")}


def said_versions(versions: Mapping[str, str], *, where: str) -> str:
    """What the figures are for, as an assumption of the plan."""
    if not versions:
        return f"no version of a training package is known {where}: memory is priced for the engine's newest release"
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"memory is priced for the versions {where}: {listed}"


def least_setup(request: Request, gpus: int) -> TrainingSetup:
    """What the request asks for at least: full fine-tuning without packages of its own where the method is free."""
    values: dict[str, Any] = dict(request.pinned)
    values.setdefault("parallelism", "none" if gpus == 1 else "ddp")
    values |= {"model": request.model, "stage": request.stage, "method": request.method or "full"}
    return setup_from_mapping(values, place="plan")


def _rungs_without(packages: Mapping[str, str], setup: TrainingSetup, request: Request) -> dict[str, str]:
    """Rungs that would be taken unasked and need a package that is not there."""
    lacking, asked = {}, request.require | request.allow
    for rung in load_ladder():
        if rung.id in asked or rung.on_request or not rung.changes:
            continue
        changed = setup.but(**rung.changes, **({"parallelism": rung.through[0]} if rung.through else {}))
        missing = [name for name in packages_beside(changed) if name not in packages]
        if missing:
            lacking[rung.id] = missing[0]
    return lacking


def through(plan: Plan, engine: str, versions: Mapping[str, str] | None = None) -> Plan:
    """The same choice through another engine, priced for it and its ``versions`` (None: its newest release's).

    Raises InputError for an engine that is not known, or that cannot run it.
    """
    if plan.chosen is None:
        raise InputError("the plan states no choice: plan again")
    setup = plan.chosen.setup.but(engine=engine, versions=dict(versions or {}))
    estimate, speed = priced(setup, plan.model, plan.machine)
    row = replace(plan.chosen, setup=setup, estimate=estimate, speed=speed, safe=estimate.verdict == "fits")
    reason = f"the choice of a plan for {engine_name(plan.chosen.setup.engine)}, through {engine_name(engine)}"
    return replace(
        plan,
        verdict=estimate.verdict or "uncertain",
        request=replace(plan.request, engine=engine),
        chosen=row,
        configurations=(row,),
        reasons=(reason,),
        assumptions=estimate.assumptions,
        warnings=estimate.warnings,
    )
