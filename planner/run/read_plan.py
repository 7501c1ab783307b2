"""plan.json -> Plan again: every value validated, no command taken from it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.errors import InputError, shown
from planner.files import read_json_object
from planner.plan.plan import Configuration, Plan, Request, RungReport
from planner.training import TrainingSetup, setup_from_mapping

if TYPE_CHECKING:
    from planner.hardware.machine import Machine
    from planner.memory.result import Estimate
    from planner.model.spec import ModelSpec
    from planner.plan.plan import Speed

PLAN_FILE = "plan.json"


def folder_of(path: str) -> Path:
    """The plan's folder that a word names: itself, or its ``plan.json``. Raises InputError."""
    place = Path(path).expanduser()
    folder = place.parent if place.name == PLAN_FILE else place
    if not (folder / PLAN_FILE).is_file():
        above = place.is_file() and (place.parent / PLAN_FILE).is_file()
        hint = "`plan --gpus ... --model ...` writes one; `plan run` with the same flags plans and runs at once"
        raise InputError(
            f"{path!r} is not the folder of a plan: it has no {PLAN_FILE}",
            hint=f"it lies in one: plan run {shlex.quote(str(place.parent))}" if above else hint,
        )
    return folder.resolve()


def share_of(folder: Path, environment: Mapping[str, str], *, machine: Machine | None = None) -> str:
    """Which machine of a plan over several this one is, as NODE_RANK says; empty where the plan is for one.

    Raises InputError for a number that none of them has.
    """
    stated = read_json_object(str(folder / PLAN_FILE), place="plan").get("machine")
    count = machine.nodes if machine else stated.get("nodes", 1) if isinstance(stated, dict) else 1
    if not isinstance(count, int) or count < 2:
        return ""
    rank = environment.get("NODE_RANK", "") or "0"  # the preflight says where it is not set
    if not rank.isdecimal() or int(rank) >= count:
        raise InputError(
            f"NODE_RANK {shown(rank)} is none of this plan's {count} machines: set it to 0 on the first, "
            f"{count - 1} on the last"
        )
    return str(int(rank))


def read_plan(folder: Path, *, machine: Machine | None = None) -> Plan:
    """The plan that a folder states, its choice priced anew. ``machine`` stands in for the one it was made for.

    Raises InputError for a file that is damaged, of something else, or names a model that is not known here.
    """
    from planner.model.catalogue import resolve

    place = str(folder / PLAN_FILE)
    document = read_json_object(place, place="plan")
    try:
        chosen = document["chosen"]
        setup = setup_from_mapping(chosen["setup"], place=place)
        request = _request(document["request"])
        ladder = tuple(RungReport(**row) for row in document["ladder"])
    except (KeyError, TypeError, AttributeError) as problem:
        raise InputError(
            f"{place} is not a plan that can be run ({type(problem).__name__}: {problem}): plan again"
        ) from None
    where = machine or _machine(document.get("machine"), place)
    spec = resolve(setup.model)
    return _plan(request, spec, where, setup, ladder, _class_of(chosen))


def _request(values: Any) -> Request:
    return Request(**{**values, "pinned": {name: _tuple(value) for name, value in values.get("pinned", {}).items()}})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _machine(value: Any, place: str) -> Machine:
    from planner.hardware.store import FORMAT, machine_from_json

    if not isinstance(value, dict):
        raise InputError(f"{place} names no machine: plan again")
    return machine_from_json(json.dumps({"format": FORMAT} | value), place=f"{place}: machine")


def _class_of(chosen: Mapping[str, Any]) -> Any:
    known = ("full", "lora", "qlora", "other")
    return chosen.get("class") if chosen.get("class") in known else "other"


def _plan(
    request: Request, spec: ModelSpec, machine: Machine, setup: TrainingSetup, ladder: tuple[RungReport, ...], kind: Any
) -> Plan:
    estimate, speed = priced(setup, spec, machine)
    row = Configuration(
        setup=setup, estimate=estimate, speed=speed, method_class=kind, profile="recommended",
        safe=estimate.verdict == "fits", reason="",
    )  # fmt: skip
    return Plan(
        verdict=estimate.verdict or "uncertain",
        request=request,
        machine=machine,
        model=spec,
        chosen=row,
        configurations=(row,),
        alternatives=(),
        ladder=ladder,
        reasons=(),
        assumptions=estimate.assumptions,
        warnings=estimate.warnings,
    )


def priced(setup: TrainingSetup, spec: ModelSpec, machine: Machine) -> tuple[Estimate, Speed | None]:
    """What a setup takes and how fast it should be. Raises InputError for what its engine refuses."""
    from planner.api import explain
    from planner.speed.estimate import predict_speed

    return explain(setup, spec, machine), predict_speed(setup, spec, machine)
