"""Rows that may leave the machine: what is taken out before, and what is checked of those that come in. Pure.

An exported row is an observation with the hardware by kind and the contract's setup fields beside predicted and
measured figures, so that other tools can state and price it again. Taken out are the note, the run's name, the time of
day, and every value of a setup that could be a path; drivers' GPU names and package versions stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from planner.calibrate.observation import Observation, observation_from_json
from planner.training import setup_from_mapping

# A hub id is one word, or owner/name; everything else that names a model is a place on somebody's disk.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LOCAL_ENDINGS = (".json", ".bin", ".safetensors", ".gguf", ".pt")
LOCAL_MODEL = "local-model"
MODELS = ("model", "ref_model", "reward_model")


def shared(one: Observation, is_here: Callable[[str], bool] = lambda name: False) -> Observation:
    """The observation without what could tell whose it is; the same run always gets the same id.

    ``is_here`` says whether a model's name is a folder here, which looks like a hub's name at times.
    """
    return replace(
        one,
        run_id=shared_id(one.run_id),
        started_at=f"{one.started_at[:10]}T00:00:00Z",
        setup=_without_places(one.setup, is_here),
        versions={name: _public_version(version) for name, version in one.versions.items()},
        note="",
    )


def shared_id(run_id: str) -> str:
    """``shared-`` and a digest; an id that is one already stays."""
    if re.fullmatch(r"shared-[0-9a-f]{16}", run_id):
        return run_id
    return f"shared-{sha256(run_id.encode()).hexdigest()[:16]}"


def rows_of(text: str, *, place: str) -> list[Observation]:
    """The observations of a JSONL text. Raises InputError naming the first bad line."""
    return list(_rows(text, place))


def new_rows(rows: Iterable[Observation], known: Iterable[str]) -> list[Observation]:
    """Those that are not remembered yet, under their own id or the one that they were exported with."""
    taken = {shared_id(run_id) for run_id in known}
    return [one for one in rows if shared_id(one.run_id) not in taken]


def _rows(text: str, place: str) -> Iterator[Observation]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{place} line {number}"
            one = observation_from_json(line, place=where)
            setup_from_mapping(one.setup, place=where)
            yield one


def _without_places(setup: Mapping[str, Any], is_here: Callable[[str], bool]) -> dict[str, Any]:
    found = {name: _named(value, is_here) if name in MODELS else value for name, value in setup.items()}
    if isinstance(found.get("ds_config"), str):
        found["ds_config"] = None
    elif isinstance(found.get("ds_config"), Mapping):
        found["ds_config"] = _without_paths(found["ds_config"])
    return found


def _named(value: Any, is_here: Callable[[str], bool]) -> Any:
    if not isinstance(value, str):
        return value
    public = _HUB_NAME.fullmatch(value) and not value.endswith(_LOCAL_ENDINGS) and not is_here(value)
    return value if public else LOCAL_MODEL


def _without_paths(value: Any) -> Any:
    """A DeepSpeed configuration without its paths (``nvme_path``, monitors' folders and names)."""
    if isinstance(value, Mapping):
        return {key: _without_paths(inner) for key, inner in value.items() if not re.search("path|_dir|name", key)}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return None if isinstance(value, str) and re.search(r"[/\\~]", value) else value


def _public_version(version: str) -> str:
    """``2.6.0+cu124`` stays; a local build's words after the plus sign do not, nor does anything like a path."""
    kept = re.match(r"\d[\w.]*(\+(cu|rocm)[\d.]+|\+cpu)?", version)
    return kept[0] if kept else "unknown"
