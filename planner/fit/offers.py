"""The least hardware for a job, and the largest models for given hardware: one search each, the plan's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from planner.errors import PlannerError
from planner.fit.job import Course, JobSize, course
from planner.hardware.catalogue import name_for_flags
from planner.hardware.machine import GpuKind, Machine
from planner.hardware.parse import parse_machine
from planner.memory.estimate import price
from planner.memory.result import Price
from planner.model.spec import ModelSpec
from planner.plan.plan import MethodClass, Request, Speed
from planner.search.team import search_machine
from planner.speed.estimate import predict_speed
from planner.training import TrainingSetup

PER_NODE = 8
# Of a model in 4 bit: no class of the search holds less on a GPU without offload.
LEAST_BYTES_PER_PARAMETER = 0.5


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Hardware that does a job: ``gpus`` as ``--gpus`` takes it, with the best plan on it.

    ``price_per_hour`` is of all GPUs together, in the prices file's currency; ``cost`` of the whole job.
    """

    gpus: str
    count: int
    setup: TrainingSetup
    method_class: MethodClass
    price: Price
    capacity_bytes: int
    speed: Speed | None
    course: Course | None = None
    price_per_hour: float | None = None

    @property
    def cost(self) -> float | None:
        """Price of the whole job, where its hours and the price of an hour are known."""
        if self.course is None or self.course.hours is None or self.price_per_hour is None:
            return None
        return self.course.hours * self.price_per_hour


def best_plan(request: Request, spec: ModelSpec, machine: Machine) -> Offer | None:
    """The plan that ``plan`` would choose on this machine or on fewer of its cards, without offload to a host that it
    does not know; None if none.
    """
    _, best = search_machine(request, spec, machine, price, predict_speed)
    desk, outcome = best.desk, best.outcome
    if outcome.chosen is None or outcome.round is None or outcome.verdict != "fits":
        return None
    found = desk.price(outcome.chosen)
    if found is None:
        return None
    return Offer(
        gpus=outcome.terms.request.gpus or "",
        count=desk.machine.world_size,
        setup=outcome.chosen,
        method_class=outcome.round.method_class,
        price=found,
        capacity_bytes=desk.capacity_bytes,
        speed=desk.speed(outcome.chosen),
    )


def offers(
    request: Request,
    spec: ModelSpec,
    kinds: Iterable[GpuKind],
    *,
    most: int,
    size: JobSize | None = None,
    prices: Mapping[str, float] | None = None,
    deadline_hours: float | None = None,
) -> list[Offer]:
    """For each card the smallest number of it that does the job (within the deadline); cheapest first.

    Without prices: fewest cards first, then the smallest of them. ``prices``: one card's price an hour by catalogue id.
    Only cards with a price are offered where prices are given.
    """
    found = []
    for kind in kinds:
        hourly = prices.get(kind.id) if prices is not None else None
        if prices is not None and hourly is None:
            continue
        offer = _least(request, spec, kind, most, size, deadline_hours)
        if offer is not None:
            found.append(replace(offer, price_per_hour=hourly * offer.count if hourly is not None else None))
    return sorted(found, key=_order)


def _order(offer: Offer) -> tuple[float, float, float]:
    cost = offer.cost if offer.cost is not None else offer.price_per_hour
    return (cost if cost is not None else math.inf, offer.count, offer.capacity_bytes)


def _least(
    request: Request, spec: ModelSpec, kind: GpuKind, most: int, size: JobSize | None, deadline_hours: float | None
) -> Offer | None:
    name = name_for_flags(kind.id)
    for count in counts(most):
        gpus = f"{count // PER_NODE}x{PER_NODE}x{name}" if count > PER_NODE else f"{count}x{name}"
        machine = parse_machine(gpus)
        if count * machine.smallest.capacity_bytes < LEAST_BYTES_PER_PARAMETER * spec.parameters:
            continue
        offer = _planned(replace(request, gpus=gpus), spec, machine)
        if offer is None:
            continue
        run = course(size, offer.setup, machine, offer.speed) if size else None
        if deadline_hours is None or (run is not None and run.hours is not None and run.hours <= deadline_hours):
            return replace(offer, course=run)
    return None


def _planned(request: Request, spec: ModelSpec, machine: Machine) -> Offer | None:
    """A card on which rules shut the request out is no offer."""
    try:
        return best_plan(request, spec, machine)
    except PlannerError:
        return None


def counts(most: int) -> Iterator[int]:
    """1, 2, 4, 8 and then whole nodes of eight, doubling, up to ``most``."""
    count = 1
    while count <= most:
        yield count
        count *= 2


def models(
    request: Request, specs: Iterable[tuple[str, ModelSpec]], machine: Machine
) -> list[tuple[str, ModelSpec, Offer | None]]:
    """Each named model with the best plan for it on this machine, or None where nothing fits."""
    return [(name, spec, _planned(replace(request, model=name), spec, machine)) for name, spec in specs]
