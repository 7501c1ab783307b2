"""What a row of rules/gpus.toml may say. Used by tests and tools: start-up does not pay for validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planner.errors import InputError, nearest
from planner.hardware.identify import LEAST_OF_SHARED

FILE = "gpus.toml"
KnownDtype = Literal["fp32", "tf32", "fp16", "bf16", "fp8"]
Positive = Annotated[float, Field(gt=0)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Memory(_Row):
    """Size as sold in GiB, and in MiB the driver's total, what CUDA offers of it, and what an idle system holds of
    memory that it shares with the GPU, where somebody saw them.
    """

    gib: Annotated[int, Field(ge=1, le=1024)]
    driver_mib: Annotated[int, Field(ge=1024)] | None = None
    cuda_mib: Annotated[int, Field(ge=1024)] | None = None
    system_mib: Annotated[int, Field(ge=1)] | None = None


class Pcie(_Row):
    """Generation and lanes of the card's connector."""

    generation: Literal[3, 4, 5, 6]
    lanes: Literal[4, 8, 16]


class ArchitectureRow(_Row):
    """One ``[[architecture]]``: what all its cards share."""

    id: str
    vendor: Literal["nvidia", "amd", "ascend"]
    compute_capability: tuple[int, int] | None = None
    dtypes: list[KnownDtype]
    soc: list[str] = []
    source: Annotated[str, Field(min_length=8)]
    checked: date


class GpuRow(_Row):
    """One ``[[gpu]]``: a card in one memory size."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    names: Annotated[list[str], Field(min_length=1)]
    aliases: Annotated[list[str], Field(min_length=1)]
    architecture: str
    memory: Memory
    memory_source: str | None = None
    tflops: dict[KnownDtype, Positive] = {}
    bandwidth_gb_per_s: Positive | None = None
    nvlink_gb_per_s: Positive | None = None
    nvlink_bridge: bool = False
    pcie: Pcie | None = None
    rebuilt: bool = False
    unified: bool = False
    stands_for: str | None = None
    note: str | None = None
    source: Annotated[str, Field(min_length=8)]
    checked: date


class ProfileRow(_Row):
    """One MIG profile: its name, what the driver gives a slice of it, and its multiprocessors."""

    name: Annotated[str, Field(pattern=r"^[1-7]g\.\d+gb$")]
    gib: Positive
    sms: Annotated[int, Field(ge=1)]


class SlicesRow(_Row):
    """One ``[[slices]]``: the MIG profiles of cards that are cut alike, of so many multiprocessors."""

    cards: Annotated[list[str], Field(min_length=1)]
    sms: Annotated[int, Field(ge=1)]
    profiles: Annotated[list[ProfileRow], Field(min_length=1)]
    source: Annotated[str, Field(min_length=8)]
    checked: date


def problems(document: Mapping[str, Any]) -> list[str]:
    """Everything wrong with a gpus.toml document, one line each: ``gpus.toml: gpu 'id': field: what``."""
    found = _unknown_tables(document)
    for table, model in (("architecture", ArchitectureRow), ("gpu", GpuRow)):
        rows = document.get(table, [])
        for index, row in enumerate(rows):
            found += _row_problems(table, index, row, model)
        found += _repeated(table, (str(row.get("id")) for row in rows))
    for index, row in enumerate(document.get("slices", [])):
        found += _row_problems("slices", index, row, SlicesRow)
    return found + _cross_problems(document)


def validate(document: Mapping[str, Any]) -> None:
    """Raises InputError with every problem at once."""
    found = problems(document)
    if found:
        raise InputError("; ".join(found))


def _unknown_tables(document: Mapping[str, Any]) -> list[str]:
    known = ("architecture", "gpu", "slices")
    return [f"{FILE}: table {name!r} is not known{_offer(name, known)}" for name in document if name not in known]


def _row_problems(table: str, index: int, row: Mapping[str, Any], model: type[_Row]) -> list[str]:
    try:
        model.model_validate(row)
    except ValidationError as failure:
        place = f"{FILE}: {table} {row.get('id', f'number {index + 1}')!r}"
        return [f"{place}: {_field_problem(error, model)}" for error in failure.errors()]
    return []


def _field_problem(error: Any, model: type[_Row]) -> str:
    field_name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = [*model.model_fields, *Memory.model_fields, *Pcie.model_fields]
        return f"{field_name}: not a key{_offer(str(error['loc'][-1]), known)}"
    return f"{field_name}: {error['msg']}"


def _offer(value: str, known: Iterable[str]) -> str:
    close = nearest(value, known, limit=1)
    return f", nearest is {close[0]!r}" if close else ""


def _repeated(table: str, ids: Iterable[str]) -> list[str]:
    return [f"{FILE}: {table} {name!r}: id: used {count} times" for name, count in Counter(ids).items() if count > 1]


def _cross_problems(document: Mapping[str, Any]) -> list[str]:
    architectures = {row.get("id"): row for row in document.get("architecture", [])}
    found: list[str] = []
    seen: dict[tuple[str, int], str] = {}
    for row in document.get("gpu", []):
        place = f"{FILE}: gpu {row.get('id')!r}"
        architecture = architectures.get(row.get("architecture"))
        if architecture is None:
            known = [str(name) for name in architectures]
            found.append(f"{place}: architecture: unknown{_offer(str(row.get('architecture')), known)}")
        else:
            extra = set(row.get("tflops", {})) - set(architecture.get("dtypes", []))
            found += [f"{place}: tflops.{dtype}: its architecture does not compute it" for dtype in sorted(extra)]
        found += _memory_problems(place, row) + _name_clashes(place, row, seen)
    return found + _slices_problems(document)


def _slices_problems(document: Mapping[str, Any]) -> list[str]:
    """Slices of cards that are there, smaller than the card."""
    sizes = {row.get("id"): row.get("memory", {}).get("gib", 0) for row in document.get("gpu", [])}
    found = []
    for index, row in enumerate(document.get("slices", [])):
        place = f"{FILE}: slices number {index + 1}"
        for card in row.get("cards", []):
            if card not in sizes:
                found.append(f"{place}: cards: {card!r} is no gpu's id{_offer(str(card), map(str, sizes))}")
            elif any(profile.get("gib", 0) > sizes[card] for profile in row.get("profiles", [])):
                found.append(f"{place}: profiles: one is larger than {card!r}")
    return found


def _memory_problems(place: str, row: Mapping[str, Any]) -> list[str]:
    memory = row.get("memory")
    if not isinstance(memory, Mapping):
        return []
    if "system_mib" in memory and not row.get("unified"):
        return [f"{place}: memory.system_mib: only a GPU that shares the host's memory (unified) has a system in it"]
    reported, nominal = memory.get("driver_mib"), memory.get("gib")
    if reported is None or not isinstance(nominal, int):
        return []
    if not row.get("memory_source"):
        return [f"{place}: memory_source: missing beside memory.driver_mib"]
    least = LEAST_OF_SHARED if row.get("unified") else 0.9
    if not least <= reported / (nominal * 1024) <= 1.03:
        return [f"{place}: memory.driver_mib: {reported} is not near {nominal} GiB"]
    if not 0.965 <= memory.get("cuda_mib", reported) / reported <= 1:
        return [f"{place}: memory.cuda_mib: {memory['cuda_mib']} is not a little under the driver's {reported}"]
    return []


def _name_clashes(place: str, row: Mapping[str, Any], seen: dict[tuple[str, int], str]) -> list[str]:
    memory = row.get("memory")
    size = memory.get("gib", 0) if isinstance(memory, Mapping) else 0
    found = []
    for name in row.get("names", []):
        other = seen.setdefault((name, size), str(row.get("id")))
        if other != row.get("id"):
            found.append(f"{place}: names: {name!r} with {size} GiB is also {other!r}")
    return found
