"""What `plan run` is to run: the folder that was named, one planned from the flags, or the demo."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.cli.flags import PLAN_FLAGS, given
from planner.errors import InputError, NothingFitsError, unknown_choice

if TYPE_CHECKING:
    from planner.hardware.machine import Machine
    from planner.plan.plan import Plan, Request
    from planner.run.engine import Picked

_OF_A_FOLDER = ("allow", "machine", "json", "engine", "out", "force")
_OF_THE_DEMO = ("out", "json")
DEMOS = Path("plans")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A plan's folder, its engine with the reason for it, and the Python that has it where that is not this one."""

    folder: Path
    engine: str
    python: str | None = None


def source_of(plan: str | None, values: dict[str, Any]) -> Source:
    """Raises InputError for words that contradict each other, NothingFitsError where a plan has no choice."""
    if values["demo"]:
        return _demo(plan, values)
    if plan is None and not given(values, PLAN_FLAGS):
        raise InputError(
            "no plan is named, and --model is missing to make one",
            hint="`plan run DIR` runs the folder that `plan` wrote, `plan run --model 7B` plans and runs at once, "
            "`plan run --demo` shows how it goes",
        )
    return _taken(plan, values) if plan is not None else _planned(values)


# ---- the demo


def _demo(plan: str | None, values: dict[str, Any]) -> Source:
    from planner.cli.io import say
    from planner.run.engine import pythons
    from planner.targets.choose import BASIC, installed
    from planner.train.demo import next_place, write_demo

    stated = [] if plan is None else [plan]
    stated += ["--" + name.replace("_", "-") for name in given(values, PLAN_FLAGS) if name not in _OF_THE_DEMO]
    if stated:
        raise InputError(f"--demo brings its own plan: leave {stated[0]} out")
    found = pythons(values["python"], os.environ)
    able = next((each for each in found if all(name in installed(each) for name in BASIC)), found[0])
    say("demo:    making a tiny model")
    folder = write_demo(values["out"] or next_place(DEMOS), able)
    say(f"folder:  {os.path.relpath(folder)}")
    return Source(folder=folder, engine="the embedded engine: the demo's own", python=str(able))


# ---- a folder


def _taken(plan: str, values: dict[str, Any]) -> Source:
    """The named folder; flags that would plan something else are refused. --engine makes a folder of its own."""
    from planner.rulebook.engines import engine_name
    from planner.run.read_plan import folder_of, read_plan

    stated = [name for name in given(values, PLAN_FLAGS) if name not in _OF_A_FOLDER]
    if stated:
        flag = "--" + stated[0].replace("_", "-")
        raise InputError(f"{flag} plans anew, and {plan!r} is a plan already: give one of them")
    folder = folder_of(plan)
    engine = _engine_of(folder)
    if values["engine"] in (None, engine):
        if values["out"]:
            raise InputError(f"--out names a new folder, and {plan!r} is one already: leave it out")
        return Source(folder=folder, engine=f"{engine_name(engine)}: the folder's files are for it")
    return _through(read_plan(folder, machine=saved_machine(values)), folder, values)


def _engine_of(folder: Path) -> str:
    from planner.files import read_json_object
    from planner.run.read_plan import PLAN_FILE

    chosen = read_json_object(str(folder / PLAN_FILE), place="plan").get("chosen")
    setup = chosen.get("setup") if isinstance(chosen, dict) else None
    return str(setup.get("engine")) if isinstance(setup, dict) else "llamafactory"


def saved_machine(values: dict[str, Any]) -> Machine | None:
    """The machine that --machine stands for; None without it."""
    from planner.hardware.load import load_machine

    return load_machine(gpus=None, ram=None, machine_file=values["machine"]) if values["machine"] else None


def _through(plan: Plan, folder: Path, values: dict[str, Any]) -> Source:
    """The plan of a folder in a folder beside it, through the engine that was asked for."""
    from planner.cli.io import say
    from planner.emit.folder import plan_files
    from planner.emit.write import write_folder
    from planner.rulebook.engines import engine_name
    from planner.run.engine import through
    from planner.targets import TARGETS

    engine = values["engine"]
    if engine not in TARGETS:
        raise unknown_choice(engine, "--engine", TARGETS)
    versions, said = _versions_for(engine, values["python"], saved_machine(values))
    made = through(plan, engine, versions)
    made = replace(made, assumptions=(said, *made.assumptions))
    if made.verdict == "does_not_fit" and not values["anyway"]:
        raise NothingFitsError(
            f"through {engine_name(engine)} this plan does not fit, so no folder is written",
            hint="plan anew with --engine and the other flags, or start it all the same with --anyway",
        )
    where = values["out"] or folder.with_name(f"{folder.name}-{engine}")
    written = write_folder(plan_files(made), where, bool(values["force"]))
    say(f"folder:  {written.folder}")
    return Source(folder=written.folder.resolve(), engine=f"{engine_name(engine)}: asked for with --engine")


# ---- from flags


def _planned(values: dict[str, Any]) -> Source:
    """Plan as `plan` does and write the folder. Raises NothingFitsError, InputError."""
    from planner.cli.commands.plan import plan_from, written_folder
    from planner.cli.io import say
    from planner.rulebook.engines import engine_name
    from planner.training import AUTO_ENGINE

    if values["engine"] == AUTO_ENGINE:  # what is installed decides, as without the flag
        values = values | {"engine": None}
    choosing = _Choosing(values)
    asked = values["engine"]
    made = plan_from(values, settled=choosing)
    if made.chosen is None:
        raise NothingFitsError(
            "nothing that is allowed fits, so there is nothing to run", hint=next(iter(made.remedies), None)
        )
    picked = choosing.picked
    why = picked.sentence if picked else f"{engine_name(asked)}: asked for with --engine"
    assumptions = (choosing.said, *made.assumptions) if choosing.said else made.assumptions
    made = replace(made, reasons=(*made.reasons, f"engine {why}"), assumptions=assumptions)
    written = written_folder(made, values)
    say(f"planned: {made.reasons[0]}")
    if choosing.said:
        say(f"assumed: {choosing.said}")
    say(f"folder:  {written.folder}")
    python = str(picked.python) if picked and picked.python else None
    return Source(folder=written.folder.resolve(), engine=why, python=python)


class _Choosing:
    """Settles a request once the machine is known: the engine, its versions, and no rung whose package is missing."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._python, self._elsewhere = values["python"], bool(values["machine"])
        self._asked = bool(values["engine"])
        self.picked: Picked | None = None
        self.said = ""

    def __call__(self, request: Request, machine: Machine) -> Request:
        from planner.run.engine import pick

        if not self._asked:
            self.picked = pick(request, machine.world_size, named=self._python, environment=os.environ)
            without = request.forbid | frozenset(self.picked.without)
            request = replace(request, engine=self.picked.choice.value, forbid=without)
        if "versions" in request.pinned:  # stated by the user: what is installed instead is the preflight's to say
            return request
        versions, self.said = _versions_for(
            request.engine, self._python, machine if self._elsewhere else None, self.picked
        )
        return replace(request, pinned=request.pinned | {"versions": versions}) if versions else request


def _versions_for(
    engine: str, python: str | None, elsewhere: Machine | None, picked: Picked | None = None
) -> tuple[dict[str, str], str]:
    """The versions that will run, and the sentence about them: of another desk's only what its file carries."""
    from planner.run.engine import said_versions, versions_among, versions_of

    if elsewhere is not None:
        found = versions_among(elsewhere.software, engine)
        return found, said_versions(found, where="in the machine's file")
    found = picked.versions if picked else versions_of(engine, named=python, environment=os.environ)
    return found, said_versions(found, where="that are installed here")
