"""Sweeps over setup fields: every combination of the stated values, priced."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from planner.errors import InputError, unknown_choice
from planner.fit.largest import priced, verdict_of
from planner.hardware.machine import Machine
from planner.model.spec import ModelSpec
from planner.speed.estimate import predict_speed
from planner.training import FIELD_NAMES, setup_from_mapping

MOST_POINTS = 10_000
COLUMNS = (
    "verdict", "allocated_bytes", "reserved_bytes", "device_bytes", "required_bytes", "capacity_bytes", "host_bytes",
    "peak_phase", "tokens_per_s",
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One swept field and its values, as words."""

    field: str
    values: tuple[str, ...]


def read_axis(text: str) -> Axis:
    """``seq_len=512,1024`` or ``seq_len=512..8192`` (doubling). Raises InputError."""
    name, sign, words = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in FIELD_NAMES:
        raise unknown_choice(name, "--sweep", FIELD_NAMES)
    values = _doubling(words, text) if ".." in words else tuple(w.strip() for w in words.split(",") if w.strip())
    if not sign or not values:
        raise InputError(f"--sweep {text!r} names no values: write {name}=512,1024,2048 or {name}=512..8192")
    return Axis(name, values)


def _doubling(words: str, text: str) -> tuple[str, ...]:
    first, _, last = (part.strip() for part in words.partition(".."))
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise InputError(f"--sweep {text!r} is no range: write the smaller whole number first, such as 512..8192")
    doubled = itertools.takewhile(lambda value: value <= int(last), (int(first) << k for k in itertools.count()))
    return tuple(str(value) for value in doubled)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One combination: the swept values, and the figures of COLUMNS (``error`` in their place where it has none)."""

    swept: Mapping[str, str]
    figures: Mapping[str, Any]
    error: str | None = None


def sweep(
    stated: Mapping[str, Any],
    axes: Iterable[Axis],
    spec_of: Callable[[str], ModelSpec],
    machine_of: Callable[[str | None], Machine],
) -> list[Point]:
    """Every combination in order, the last axis fastest. Raises InputError for too many."""
    axes = list(axes)
    combinations = list(itertools.islice(itertools.product(*(axis.values for axis in axes)), MOST_POINTS + 1))
    if len(combinations) > MOST_POINTS:
        raise InputError(f"--sweep names more than {MOST_POINTS} combinations: name fewer values")
    names = [axis.field for axis in axes]
    return [_point(stated, dict(zip(names, words, strict=True)), spec_of, machine_of) for words in combinations]


def _point(
    stated: Mapping[str, Any],
    swept: Mapping[str, str],
    spec_of: Callable[[str], ModelSpec],
    machine_of: Callable[[str | None], Machine],
) -> Point:
    setup = setup_from_mapping({**stated, **swept}, place="--sweep")
    spec, machine = spec_of(setup.model), machine_of(setup.gpus)
    found = priced(setup, spec, machine)
    if found is None:
        return Point(swept=swept, figures={}, error="cannot be priced")
    speed = predict_speed(setup, spec, machine)
    figures = {
        "verdict": verdict_of(found, machine),
        "capacity_bytes": machine.smallest.capacity_bytes,
        "tokens_per_s": round(speed.tokens_per_s, 1) if speed else None,
    }
    figures |= {name: getattr(found, name) for name in COLUMNS if name not in figures}
    return Point(swept=swept, figures=figures)


def as_csv(points: Iterable[Point]) -> str:
    """The table for a spreadsheet, a header line first; bytes are integers."""
    rows = list(points)
    names = [*rows[0].swept, *COLUMNS]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({**row.swept, **row.figures} for row in rows)
    return text.getvalue()
