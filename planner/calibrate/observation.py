"""Observation: one run's prediction beside what it used, as a frozen record and as JSON. Missing is None, never zero.

A record holds no user name, host name or path of this planner's making; a setup may (a model's folder), and
``planner.calibrate.share`` takes those out before a row leaves the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, get_args

from planner.errors import InputError, nearest, shown
from planner.units import GIB

if TYPE_CHECKING:
    from planner.hardware.machine import Machine
    from planner.memory.result import Estimate
    from planner.model.spec import ModelSpec
    from planner.plan.plan import Speed
    from planner.training import TrainingSetup

FORMAT = 1
Outcome = Literal["finished", "out_of_memory", "failed", "stopped"]
METERS = ("allocated_bytes", "reserved_bytes", "device_bytes")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_MOST_BYTES = 1 << 53  # what a JSON reader keeps exactly


@dataclass(frozen=True, kw_only=True)
class MachineMark:
    """Which machine a run was on, without saying whose: equal for equal cards, count, nodes and driver branch.

    ``id`` is a digest of the other fields; ``total_gib`` each card's memory rounded to whole GiB, since drivers
    differ by some MiB. ``driver`` is the number before the first dot; None where the machine was named by flags.
    """

    id: str
    names: tuple[str, ...]
    total_gib: tuple[int, ...]
    nodes: int = 1
    driver: str | None = None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What the planner said before the run, in bytes per GPU of the worst rank, and tokens per second over all GPUs.

    ``interval`` holds (low, high) by meter at ``coverage``, as published, without what history had narrowed;
    ``trust_class`` is planner.memory.overhead's; ``capacity_bytes`` what the card offered; ``release`` the planner's
    version, since a later one may predict otherwise.
    """

    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    required_bytes: int
    coverage: float
    interval: Mapping[str, tuple[int, int]]
    trust_class: str
    release: str
    capacity_bytes: int | None = None
    host_bytes: int | None = None
    tokens_per_second: float | None = None
    phases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the run used, the highest of its ranks; None is what was not measured.

    ``allocated_bytes`` and ``reserved_bytes`` are torch.cuda's peaks, ``device_bytes`` what NVML showed for the card,
    ``tokens_per_second`` over all GPUs, padding included, ``phases`` allocated peaks by phase.
    """

    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None
    host_bytes: int | None = None
    tokens_per_second: float | None = None
    phases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One run: when (ISO 8601, UTC), on what, with which setup (the contract's fields), predicted and measured."""

    run_id: str
    started_at: str
    engine: str
    machine: MachineMark
    setup: Mapping[str, Any]
    predicted: Predicted
    measured: Measured
    outcome: Outcome
    versions: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        _check(self)

    def error(self, meter: str) -> float | None:
        """measured / predicted - 1 of ``meter`` (a field of both records); None where either is missing."""
        used, said = getattr(self.measured, meter), getattr(self.predicted, meter)
        return used / said - 1 if used and said else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the number of the format first."""
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> str:
        """One line of JSON that ``observation_from_json`` reads back to an equal record."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)


def now() -> str:
    """The present moment as ``started_at`` writes it: 2026-11-20T09:30:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def mark_of(machine: Machine) -> MachineMark:
    """The mark of a machine: by the driver's names where it was probed, by the flags' where it was named."""
    names = tuple(gpu.name for gpu in machine.gpus)
    totals = tuple(round((gpu.total_bytes or gpu.capacity_bytes) / GIB) for gpu in machine.gpus)
    driver = machine.driver.split(".", 1)[0] if machine.driver else None
    return mark(names, totals, machine.nodes, driver)


def mark(names: tuple[str, ...], total_gib: tuple[int, ...], nodes: int, driver: str | None) -> MachineMark:
    """The mark with its digest; the order of the cards does not matter."""
    told = json.dumps([sorted(zip(names, total_gib, strict=True)), nodes, driver])
    return MachineMark(
        id=sha256(told.encode()).hexdigest()[:12], names=names, total_gib=total_gib, nodes=nodes, driver=driver
    )


def predicted_of(
    setup: TrainingSetup, spec: ModelSpec, machine: Machine, estimate: Estimate, speed: Speed | None = None
) -> Predicted:
    """What was predicted for a run, from the estimate of exactly its setup. Give the estimate without history."""
    from planner import __version__
    from planner.memory.overhead import trust_class

    return Predicted(
        allocated_bytes=estimate.allocated_bytes,
        reserved_bytes=estimate.reserved_bytes,
        device_bytes=estimate.device_bytes,
        required_bytes=estimate.required_bytes,
        coverage=estimate.coverage,
        interval=dict(estimate.interval),
        trust_class=trust_class(setup, spec, machine.world_size),
        release=__version__,
        capacity_bytes=estimate.capacity_bytes,
        host_bytes=estimate.host_bytes,
        tokens_per_second=speed.tokens_per_s if speed else None,
        phases={phase: parts.total for phase, parts in estimate.phases.items()},
    )


def observation_from_json(text: str, *, place: str = "observation") -> Observation:
    """The record in one JSON object. Raises InputError: one sentence with the place, the field and the value."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{place}: not valid JSON: {problem}") from None
    return observation_from_mapping(document, place=place)


def observation_from_mapping(document: Any, *, place: str = "observation") -> Observation:
    """The same from plain values."""
    if not isinstance(document, Mapping):
        raise InputError(f"{place}: holds no JSON object but a {type(document).__name__}")
    values = dict(document)
    number = values.pop("format", None)
    if number != FORMAT:
        raise InputError(
            f"{place}: format {shown(number)} is not {FORMAT}; a row is what `plan history --export` writes"
        )
    try:
        inner = {name: _record(kind, values.get(name), name) for name, kind in _INNER.items()}
        found: Observation = _record(Observation, values | inner, "")
    except InputError as problem:
        raise InputError(f"{place}: {problem.sentence}") from None
    return found


_INNER: dict[str, type] = {"machine": MachineMark, "predicted": Predicted, "measured": Measured}


def _record(kind: type, values: Any, place: str) -> Any:
    """``kind`` from a mapping: every key known, every value required there, lists as the tuples they were."""
    dot = f"{place}." if place else ""
    if not isinstance(values, Mapping):
        raise InputError(f"{place} {shown(values)} must be an object")
    known = getattr(kind, "__dataclass_fields__", {})
    for key in values:
        if key not in known:
            close = nearest(str(key), known, limit=1)
            raise InputError(f"{dot}{key} is not a field" + (f"; did you mean {close[0]}?" if close else ""))
    try:
        return kind(**{key: _tuples(value) if kind is not Observation else value for key, value in values.items()})
    except TypeError as problem:
        missing = re.findall(r"'(\w+)'", str(problem))
        raise InputError(f"{dot}{missing[0] if missing else '?'} is missing") from None


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return value


def _check(one: Observation) -> None:
    """Raises InputError for the first value that no run can have."""
    if not isinstance(one.run_id, str) or not _RUN_ID.fullmatch(one.run_id):
        raise InputError(f"run_id {shown(one.run_id)} must be letters, digits, dots and dashes, 80 at most")
    _check_moment(one.started_at)
    if one.outcome not in get_args(Outcome):
        close = nearest(str(one.outcome), get_args(Outcome))
        offer = f"did you mean {close[0]}?" if close else f"valid: {', '.join(get_args(Outcome))}"
        raise InputError(f"outcome {shown(one.outcome)} is not known; {offer}")
    _words({"engine": one.engine, "note": one.note or "-", "predicted.trust_class": one.predicted.trust_class})
    _words({f"versions.{name}": value for name, value in _mapping("versions", one.versions).items()})
    if not _mapping("setup", one.setup).get("model"):
        raise InputError("setup.model is missing; a setup has the fields of `plan estimate`")
    _check_mark(one.machine)
    _check_figures(one)


def _check_moment(text: Any) -> None:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.utcoffset() is None or moment.utcoffset() != UTC.utcoffset(None):
        raise InputError(f"started_at {shown(text)} must be a moment in UTC, such as 2026-11-20T09:30:00Z")


def _check_mark(one: MachineMark) -> None:
    _words({"machine.id": one.id, "machine.driver": one.driver or "-"})
    if not isinstance(one.names, tuple) or not all(isinstance(name, str) for name in one.names):
        raise InputError(f"machine.names {shown(one.names)} must be a list of names")
    if not isinstance(one.total_gib, tuple) or len(one.total_gib) != len(one.names):
        raise InputError(f"machine.total_gib {shown(one.total_gib)} must hold one number for each of machine.names")
    for total in (*one.total_gib, one.nodes):
        _number("machine.total_gib and machine.nodes", total, whole=True)
    if one.id != mark(one.names, one.total_gib, one.nodes, one.driver).id:
        raise InputError(f"machine.id {shown(one.id)} is not the digest of its cards, nodes and driver")


def _check_figures(one: Observation) -> None:
    for record, place in ((one.predicted, "predicted"), (one.measured, "measured")):
        for name in (*METERS, "required_bytes", "capacity_bytes", "host_bytes"):
            value = getattr(record, name, None)
            if value is not None or (place == "predicted" and name in (*METERS, "required_bytes")):
                _number(f"{place}.{name}", value, whole=True)
        if record.tokens_per_second is not None:
            _number(f"{place}.tokens_per_second", record.tokens_per_second, whole=False)
        for phase, value in _mapping(f"{place}.phases", record.phases).items():
            _number(f"{place}.phases.{phase}", value, whole=True, least=0)
    if not isinstance(one.predicted.coverage, float) or not 0 < one.predicted.coverage < 1:
        raise InputError(f"predicted.coverage {shown(one.predicted.coverage)} must lie between 0 and 1")
    for meter, bounds in _mapping("predicted.interval", one.predicted.interval).items():
        if not isinstance(bounds, tuple) or len(bounds) != 2:
            raise InputError(f"predicted.interval.{meter} {shown(bounds)} must be a low and a high bound")
        for bound in bounds:
            _number(f"predicted.interval.{meter}", bound, whole=True, least=0)


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{name} {shown(value)} must be an object")
    return value


def _words(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if not isinstance(value, str) or not value:
            raise InputError(f"{name} {shown(value)} must be a word")


def _number(name: str, value: Any, *, whole: bool, least: int = 1) -> None:
    if type(value) is int and least <= value <= _MOST_BYTES:
        return
    if not whole and isinstance(value, float) and 0 < value < _MOST_BYTES:
        return
    kind = "a whole number" if whole else "a number"
    raise InputError(f"{name} {shown(value)} must be {kind} from {least} up; what was not measured is null")
