"""Machine <-> JSON: what ``plan probe --json`` prints and ``--machine FILE`` reads back, exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from planner.errors import InputError, nearest
from planner.hardware.machine import Gpu, GpuKind, Holder, Links, Machine

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FORMAT = 1

# Values below these are impossible; None is always "unknown".
_LEAST = {
    "capacity_bytes": 1, "total_bytes": 1, "free_bytes": 0, "nominal_bytes": 1, "memory_bytes": 1, "cuda_bytes": 1,
    "reserve_bytes": 0, "nodes": 1, "ram_bytes": 1, "ram_free_bytes": 0, "cpu_cores": 1, "disk_free_bytes": 0,
    "used_bytes": 0, "bytes_per_s": 0, "internode_bytes_per_s": 0,
}  # fmt: skip


def machine_document(machine: Machine) -> dict[str, Any]:
    """The machine as plain JSON values, with the number of the format first."""
    return {"format": FORMAT, **asdict(machine)}


def machine_to_json(machine: Machine) -> str:
    """One readable JSON document that ``machine_from_json`` reads back to an equal record."""
    return json.dumps(machine_document(machine), indent=2, ensure_ascii=False, allow_nan=False)


def machine_from_json(text: str, *, place: str = "--machine") -> Machine:
    """The machine in a JSON document; ``place`` (the file) opens the sentence.

    Raises InputError for what is not JSON, not a machine, of another format, or has an unknown key, a wrong
    type or an impossible value. ``source`` stays what the file says: a probe replayed is still a probe.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{place}: not valid JSON: {problem}") from None
    if not isinstance(document, dict):
        raise InputError(f"{place}: not a saved machine: write one with `plan probe --json > machine.json`")
    _check_format(document.pop("format", None), place)
    found = next(_unknown_keys(document), None)
    if found:
        raise InputError(f"{place}: {found}")
    return _validated(document, place)


def _check_format(number: Any, place: str) -> None:
    if number is None:
        raise InputError(f"{place}: not a saved machine (no `format`): write one with `plan probe --json`")
    if number != FORMAT:
        raise InputError(f"{place}: format {number!r} is not {FORMAT}; write the file again with `plan probe --json`")


def _validated(document: dict[str, Any], place: str) -> Machine:
    from pydantic import ValidationError

    try:
        machine = _adapter().validate_json(json.dumps(document), strict=True)
    except ValidationError as problem:
        error = problem.errors()[0]
        where = ".".join(str(part) for part in error["loc"])
        raise InputError(f"{place}: {where}: {error['msg'][:1].lower()}{error['msg'][1:]}") from None
    impossible = next(_impossible(asdict(machine), ""), None)
    if impossible:
        raise InputError(f"{place}: {impossible}")
    return machine


@cache
def _adapter() -> TypeAdapter[Machine]:
    from pydantic import TypeAdapter

    return TypeAdapter(Machine)


def _unknown_keys(document: Mapping[str, Any]) -> Iterator[str]:
    """Misspelt keys would be silently lost, so each is named with its nearest neighbour."""
    yield from _unknown(document, Machine, "")
    gpus = document.get("gpus")
    for index, gpu in enumerate(gpus if isinstance(gpus, list) else []):
        yield from _unknown(gpu, Gpu, f"gpus.{index}.")
        if isinstance(gpu, dict):
            yield from _unknown(gpu.get("kind"), GpuKind, f"gpus.{index}.kind.")
            holders = gpu.get("holders")
            for number, holder in enumerate(holders if isinstance(holders, list) else []):
                yield from _unknown(holder, Holder, f"gpus.{index}.holders.{number}.")
    yield from _unknown(document.get("links"), Links, "links.")


def _unknown(value: Any, record: type, place: str) -> Iterator[str]:
    known = [field.name for field in fields(record)]
    for key in value if isinstance(value, dict) else ():
        if key not in known:
            close = nearest(str(key), known, limit=1)
            yield f"{place}{key} is not a key" + (f"; did you mean {close[0]}?" if close else "")


def _impossible(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            least = _LEAST.get(key)
            if least is not None and inner is not None and inner < least:
                yield f"{place}{key} is {inner}; the least that makes sense is {least}, and null means unknown"
            yield from _impossible(inner, f"{place}{key}.")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _impossible(inner, f"{place}{index}.")
