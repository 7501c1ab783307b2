"""The card held to fewer GiB: which batch is the longest safe one, which the first impossible one, and who was wrong.

A real card of that size would hold the process's context and libraries too, which the allocator's limit does not
count. So the limit is the capacity less the predicted context, and when the run is over its measured context is put
back: limit + context is the capacity that was emulated in truth, and the verdict is passed again on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bench.grid import Run
from planner.errors import PlannerError
from planner.hardware.machine import Machine
from planner.memory.estimate import price
from planner.memory.result import Price, Verdict, judge
from planner.training import TrainingSetup

MOST_BATCH = 32  # where even this fits, the case says nothing about this card
PLAINLY_TOO_LARGE = 1.5  # times the capacity: that such a run ends is no news
CAPS_GIB = (12, 16, 20, 24, 40, 48, 80)
Judgement = Literal["right", "contradiction", "either", "no answer"]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One case on one card: the micro batch that is run and the verdict that made it the one."""

    run: Run
    verdict: Verdict


def edges(case: Run, setup: TrainingSetup, machine: Machine) -> list[Edge]:
    """The largest micro batch that fits and the smallest that does not, up to ``MOST_BATCH``; none for other cases.

    Verdicts worsen with the batch, so both borders are found by halving. A setup that cannot be priced has none.
    """
    capacity = machine.smallest.capacity_bytes

    def priced(batch: int) -> Price:
        return price(setup.but(micro_batch_size=batch), case.spec, machine)

    def verdict(batch: int) -> Verdict:
        tried = priced(batch)
        return judge(
            allocated_bytes=tried.allocated_bytes, context_bytes=tried.context_bytes,
            required_bytes=tried.required_bytes, capacity_bytes=capacity,
        )  # fmt: skip

    try:
        safe = _largest(lambda batch: verdict(batch) == "fits")
        possible = _largest(lambda batch: verdict(batch) != "does_not_fit")
        least = priced(1).allocated_bytes
    except PlannerError:
        return []
    if least > PLAINLY_TOO_LARGE * capacity:
        return []
    found = []
    if 0 < safe < MOST_BATCH:
        found.append(Edge(run=case.but(micro_batch_size=safe), verdict="fits"))
    if possible < MOST_BATCH:
        found.append(Edge(run=case.but(micro_batch_size=possible + 1), verdict="does_not_fit"))
    return found


def _largest(holds: Any) -> int:
    """The largest batch up to MOST_BATCH for which it holds; 0 for none."""
    low, high = 0, MOST_BATCH
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def limit_bytes(capacity_bytes: int, context_bytes: int) -> int:
    """What the allocator may reserve on a card of that capacity."""
    return max(capacity_bytes - context_bytes, 0)


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """Verdict, outcome and who was right, on the capacity that the run had in truth."""
    predicted, cap = row["predicted"], row["cap"]
    capacity = effective_capacity(row)
    again = judge(
        allocated_bytes=predicted["allocated_bytes"], context_bytes=predicted["context_bytes"],
        required_bytes=predicted["required_bytes"], capacity_bytes=capacity,
    )  # fmt: skip
    return {
        "id": row["id"], "gib": cap["gib"], "verdict": again, "planned": cap["verdict"], "outcome": row["outcome"],
        "capacity_bytes": capacity, "judgement": judgement(again, row["outcome"]),
    }  # fmt: skip


def effective_capacity(row: dict[str, Any]) -> int:
    """Limit plus the context that the process had when it ended; the planned capacity where no driver told it."""
    context = (row.get("peaks") or {}).get("context_bytes")
    limit = row.get("limit_bytes")
    capacity: int = row["cap"]["capacity_bytes"]
    return capacity if context is None or limit is None else limit + context


def judgement(verdict: Verdict, outcome: str) -> Judgement:
    """``fits`` must run, ``does_not_fit`` must run out, ``uncertain`` may do either."""
    if outcome not in ("ok", "out_of_memory"):
        return "no answer"
    if verdict == "uncertain":
        return "either"
    return "right" if (verdict == "fits") == (outcome == "ok") else "contradiction"


def table(rows: list[dict[str, Any]]) -> str:
    """The runs under caps as text, contradictions first."""
    order = {"contradiction": 0, "no answer": 1, "either": 2, "right": 3}
    all_judged = sorted((judged(row) for row in rows), key=lambda one: (order[one["judgement"]], one["gib"], one["id"]))
    lines = [f"{'card':>7}  {'verdict':12} {'outcome':14} {'judgement':13} plan"]
    for one in all_judged:
        lines.append(f"{one['gib']:>4g} GB  {one['verdict']:12} {one['outcome']:14} {one['judgement']:13} {one['id']}")
    return "\n".join(lines)
