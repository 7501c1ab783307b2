"""Predictions beside measurements: one Comparison per row and meter, and the verdict of each run on its own card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from measured_lengths import lengths_of
from measured_setups import GPU, NotStatableError, Row, rows, statement

from planner.errors import PlannerError
from planner.hardware.machine import Machine
from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate
from planner.memory.result import Estimate
from planner.model.catalogue import resolve
from planner.model.interpret import interpret
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup, setup_from_mapping

WITHIN = (0.01, 0.03, 0.05, 0.10)
UNIT_BYTES = {"GB": 10**9, "GiB": 2**30}
# The meter of the source -> the figure of an Estimate. An unknown meter is compared with what nvidia-smi would show.
FIGURE = {
    "allocated": "allocated_bytes",
    "reserved": "reserved_bytes",
    "nvidia-smi": "device_bytes",
    "unknown": "device_bytes",
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measured peak and its prediction, in bytes per GPU."""

    id: str
    file: str
    stack: str
    source: str
    method: str
    gpus: int
    card: str
    meter: str
    measured_bytes: int
    predicted_bytes: int
    peak_phase: str

    @property
    def error(self) -> float:
        """Signed relative error: positive predicts too much."""
        return self.predicted_bytes / self.measured_bytes - 1


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One row with everything needed to compare it; ``estimate`` is None where ``problem`` says why."""

    row: Row
    setup: TrainingSetup | None = None
    spec: ModelSpec | None = None
    machine: Machine | None = None
    estimate: Estimate | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        """The row's id."""
        return str(self.row["id"])


def judge_rows(*names: str) -> list[Judged]:
    """Every row of the named files, estimated on the card that it ran on."""
    return [judge_row(row) for row in rows(*names)]


def judge_row(row: Row, *, varied: bool = True) -> Judged:
    """One row estimated; a problem is kept as its sentence. ``varied``: batches have the lengths that it tells of."""
    try:
        setup = setup_from_mapping(statement(row), place=row["id"])
        spec = interpret(row["config"], id=setup.model) if row.get("file") == GPU else resolve(setup.model)
        machine = parse_machine(setup.gpus or "", None)
        answer = estimate(setup, spec, machine, lengths=lengths_of(row) if varied else ())
    except NotStatableError as problem:
        return Judged(row=row, problem=f"not statable: {problem}")
    except PlannerError as problem:
        return Judged(row=row, problem=f"refused: {problem.sentence}")
    return Judged(row=row, setup=setup, spec=spec, machine=machine, estimate=answer)


def peaks(row: Row) -> Iterator[tuple[str, int]]:
    """(meter, bytes) of every published peak of a row."""
    if "peak_gb" in row:
        yield row["measure"], round(row["peak_gb"] * UNIT_BYTES[row["unit"]])
    for other in row.get("alt_peaks") or ():
        if other["measure"] in FIGURE:
            yield other["measure"], round(other["peak_gb"] * UNIT_BYTES[other["unit"]])


def compare(judged: Iterable[Judged]) -> list[Comparison]:
    """Every peak of every row that has an estimate."""
    return [
        Comparison(
            id=one.name,
            file=one.row["file"],
            stack=one.row.get("stack", "-"),
            source=one.row["source"],
            method=one.setup.method,
            gpus=one.row["gpus"],
            card=one.row["gpu_model"],
            meter=meter,
            measured_bytes=measured,
            predicted_bytes=getattr(one.estimate, FIGURE[meter]),
            peak_phase=one.estimate.peak_phase,
        )
        for one in judged
        if one.estimate is not None and one.setup is not None
        for meter, measured in peaks(one.row)
    ]


def origin(source: str) -> str:
    """The repository, paper or page that a row's source begins with."""
    return source if source.startswith("gist.") else re.split(r"[: ](?!\d)", source, maxsplit=1)[0]


def wrong_verdicts(judged: Iterable[Judged]) -> dict[str, list[str]]:
    """Ids of rows on which a verdict or a bound is wrong, by the rule that they break."""
    wrong: dict[str, list[str]] = {"ran_but_does_not_fit": [], "ran_out_but_fits": [], "required_below_allocated": []}
    for one in judged:
        if one.estimate is None:
            continue
        out = one.row.get("kind") == "OOM"
        if not out and one.estimate.verdict == "does_not_fit":
            wrong["ran_but_does_not_fit"].append(one.name)
        if out and one.estimate.verdict == "fits":
            wrong["ran_out_but_fits"].append(one.name)
        measured = [size for meter, size in peaks(one.row) if meter == "allocated"]
        if measured and one.estimate.required_bytes < max(measured):
            wrong["required_below_allocated"].append(one.name)
    return wrong


def summary(errors: list[float]) -> dict[str, Any]:
    """Count, median and 90th percentile of the absolute error, the worst, the signed bias (median), and the shares of
    rows within 1, 3, 5 and 10 %.
    """
    size = sorted(abs(error) for error in errors)
    signed = sorted(errors)
    return {
        "count": len(size),
        "within": {bound: sum(one <= bound for one in size) / len(size) for bound in WITHIN},
        "median": _at(size, 0.5),
        "p90": _at(size, 0.9),
        "worst": size[-1],
        "bias": _at(signed, 0.5),
    }


def _at(ordered: list[float], share: float) -> float:
    """The value at ``share`` of an ordered list, linear between neighbours."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
