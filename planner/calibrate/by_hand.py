"""Today's prediction beside a measurement that was made by hand, or beside a run that an older release predicted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

from planner.calibrate.observation import Observation, mark_of, observation_from_mapping, predicted_of
from planner.errors import InputError, nearest
from planner.hardware.machine import Machine
from planner.hardware.parse import format_gpus
from planner.memory.estimate import estimate
from planner.model.catalogue import resolve
from planner.speed.estimate import predict_speed
from planner.training import setup_from_mapping

FIELDS = ("setup", "measured", "outcome", "run_id", "started_at", "versions", "note")


def observation_by_hand(
    row: Mapping[str, Any], machine_for: Callable[[str | None], Machine], *, now: str, place: str
) -> Observation:
    """``row`` holds ``setup`` (the contract's fields) and ``measured`` (bytes a GPU, tokens/s); the rest has defaults.

    The prediction beside it is today's, of exactly that setup on ``machine_for(setup's gpus)``, without what history
    had narrowed. The same row always gets the same id. Raises InputError naming the place and the field.
    """
    for key in row:
        if key not in FIELDS:
            close = nearest(str(key), FIELDS, limit=1)
            raise InputError(f"{place}: {key} is not a field" + (f"; did you mean {close[0]}?" if close else ""))
    if not isinstance(row.get("setup"), Mapping) or not isinstance(row.get("measured"), Mapping):
        raise InputError(f"{place}: setup and measured must be given, each an object")
    setup = setup_from_mapping(row["setup"], place=place)
    machine, spec = machine_for(setup.gpus), resolve(setup.model)
    said = predicted_of(setup, spec, machine, estimate(setup, spec, machine), predict_speed(setup, spec, machine))
    if not row["measured"] and row.get("outcome", "finished") != "out_of_memory":
        raise InputError(f"{place}: measured is empty; state at least one figure, such as allocated_bytes")
    plain = {"machine": mark_of(machine), "predicted": said}
    document: dict[str, Any] = {name: json.loads(_json(record)) for name, record in plain.items()}
    document |= {
        "format": 1, "engine": setup.engine,
        "setup": setup.but(gpus=setup.gpus or format_gpus(machine)).to_dict(), "measured": dict(row["measured"]),
        "outcome": row.get("outcome", "finished"), "run_id": row.get("run_id") or _id(row),
        "started_at": row.get("started_at") or now, "versions": row.get("versions") or dict(setup.versions),
        "note": row.get("note", ""),
    }  # fmt: skip
    return observation_from_mapping(document, place=place)


def repredicted(one: Observation, machine_for: Callable[[str | None], Machine]) -> Observation:
    """The run with this release's prediction of its setup; what the card had then, and what was measured, stay.

    Raises InputError for a setup that this release refuses, and a model that is no longer there.
    """
    setup = setup_from_mapping(one.setup, place=one.run_id)
    machine, spec = machine_for(setup.gpus), resolve(setup.model)
    said = predicted_of(setup, spec, machine, estimate(setup, spec, machine), predict_speed(setup, spec, machine))
    return replace(one, predicted=replace(said, capacity_bytes=one.predicted.capacity_bytes))


def _json(record: Any) -> str:
    return json.dumps(asdict(record))


def _id(row: Mapping[str, Any]) -> str:
    told = json.dumps(row, sort_keys=True, default=str)
    return f"hand-{sha256(told.encode()).hexdigest()[:12]}"
