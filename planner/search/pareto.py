"""The Pareto front: every way to train that no other beats in memory, speed and quality class at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.plan.plan import FrontPoint
from planner.search.climb import Outcome, Round, method_class_of, offload_rungs
from planner.search.desk import Desk
from planner.search.rungs import Rung
from planner.training import TrainingSetup

CLASSES = ("full", "lora", "qlora")  # best first; what is chosen on request only has no place in this order


@dataclass(eq=False, repr=False)
class _Front:
    """Points kept so far, each of (need, rate, class place)."""

    points: list[tuple[int, float, int, TrainingSetup]]

    def add(self, need: int, rate: float, place: int, setup: TrainingSetup) -> None:
        if any(a <= need and b >= rate and c <= place for a, b, c, _ in self.points):
            return
        kept = [each for each in self.points if not (need <= each[0] and rate >= each[1] and place <= each[2])]
        self.points = [*kept, (need, rate, place, setup)]


def pareto_front(desk: Desk, outcome: Outcome) -> tuple[FrontPoint, ...]:
    """Setups that fit (at coverage 0.99, host and disk too), ordered by class, then by memory; empty without speeds.

    Offload counts for a class that fits in no other way, where the climb could use it. A point is left out if another
    needs no more memory, is no slower and of no worse class.
    """
    front = _Front([])
    for each in outcome.rounds:
        if each.refused is None and each.method_class in CLASSES:
            place = CLASSES.index(each.method_class)
            for setup in _fitting(desk, outcome, each):
                speed, need = desk.speed(setup), desk.need(setup)
                if speed is not None and need is not None:
                    front.add(need, speed.tokens_per_s, place, setup)
    points = sorted(front.points, key=lambda each: (each[2], each[0]))
    return tuple(
        FrontPoint(setup=setup, method_class=method_class_of(setup), required_bytes=need, tokens_per_s=rate)
        for need, rate, _, setup in points
    )


def _fitting(desk: Desk, outcome: Outcome, each: Round) -> Iterator[TrainingSetup]:
    """Every setup of a class that may be used here, micro batch by micro batch as far as memory goes."""
    plain = each.space.fitting(desk.capacity_bytes)
    rungs = [None] if plain else _offloads(desk, outcome)
    for rung in rungs:
        yield from plain if rung is None else each.space.fitting(desk.capacity_bytes, offload=rung)


def _offloads(desk: Desk, outcome: Outcome) -> Sequence[Rung | None]:
    known = desk.machine.host_room_bytes is not None
    asked = outcome.terms.start.offload != "none"
    rungs = [rung for rung in offload_rungs(outcome.terms) if known and not outcome.terms.bar(rung)]
    return [None] if asked else rungs
