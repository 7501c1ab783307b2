"""A request, a model and a machine -> the whole plan. No files, no clock, no environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from planner.errors import InputError
from planner.hardware.machine import Machine
from planner.memory.result import Estimate
from planner.model.spec import ModelSpec
from planner.plan.explain import assumptions_of, reasons_of, warnings_of
from planner.plan.plan import Plan, Request
from planner.plan.remedies import remedies_of
from planner.search.census import census
from planner.search.climb import Outcome, Rivals
from planner.search.desk import Desk, PriceFunction, SpeedFunction
from planner.search.pareto import pareto_front
from planner.search.report import Teller
from planner.search.table import Tabler
from planner.search.team import Found, search_machine, why_these
from planner.training import TrainingSetup

EstimateFunction = Callable[..., Estimate]


def make_plan(
    request: Request,
    spec: ModelSpec,
    machine: Machine,
    *,
    price: PriceFunction | None = None,
    estimate: EstimateFunction | None = None,
    speed: SpeedFunction | None = None,
) -> Plan:
    """What fits, what is best among it and why.

    ``price``, ``estimate`` and ``speed`` default to the real models. A request that nothing fits is answered, not
    raised: ``chosen`` is None, and ``nearest_miss`` and ``remedies`` say more. Raises InputError for rungs that do
    not exist, contradictions, and a request that the rules forbid whatever the class.
    """
    real = real_pricing()
    pricing = Pricing(price or real.price, speed or real.speed, estimate)
    return told(request, searched(request, spec, machine, pricing), pricing)


@dataclass(frozen=True)
class Pricing:
    """What a search asks for bytes and speed; ``estimate`` None is the real one."""

    price: PriceFunction
    speed: SpeedFunction
    estimate: EstimateFunction | None = None


def searched(request: Request, spec: ModelSpec, machine: Machine, pricing: Pricing) -> tuple[Found, Found]:
    """The search on the whole machine, and the best one; raises as ``make_plan`` does."""
    whole, best = search_machine(request, spec, machine, pricing.price, pricing.speed)
    _refuse_impossible(whole.outcome)
    return whole, best


def told(request: Request, searches: tuple[Found, Found], pricing: Pricing) -> Plan:
    """A search told as a plan."""
    whole, best = searches
    desk, outcome = best.desk, best.outcome
    tabler = Tabler(desk, outcome, _explainer(desk.spec, desk.machine, pricing.estimate), Rivals(desk, outcome.terms))
    plan = _plan(desk, outcome, tabler)
    reasons = (*plan.reasons, *why_these(whole, best))
    return replace(plan, request=request, reasons=reasons, space=census(desk, outcome))


def real_pricing() -> Pricing:
    """The models themselves, loaded when they are asked for."""
    from planner.memory.estimate import price
    from planner.speed.estimate import predict_speed

    return Pricing(price, predict_speed)


def _explainer(
    spec: ModelSpec, machine: Machine, estimate: EstimateFunction | None
) -> Callable[[TrainingSetup, float], Estimate]:
    if estimate is None:
        from planner.memory.estimate import estimate as real

        estimate = partial(real, replayed=False)  # the table shows several; the search has priced them by the formula
    explained = estimate
    return lambda setup, coverage: explained(setup, spec, machine, coverage=coverage)


def _refuse_impossible(outcome: Outcome) -> None:
    """Raises InputError where rules shut out every class: then the request itself is wrong."""
    if all(each.refused is not None for each in outcome.rounds):
        raise InputError(str(outcome.rounds[0].refused))


def _plan(desk: Desk, outcome: Outcome, tabler: Tabler) -> Plan:
    table = tabler.table()
    chosen = tabler.pick(table)
    nearest = outcome.nearest if chosen is None else None
    return Plan(
        verdict=outcome.verdict,
        request=outcome.terms.request,
        machine=desk.machine,
        model=desk.spec,
        chosen=chosen,
        configurations=table,
        alternatives=tabler.alternatives() + tabler.offloads(),
        ladder=Teller(desk, outcome, tabler.rivals).tell(),
        reasons=reasons_of(desk, outcome),
        pareto=pareto_front(desk, outcome),
        assumptions=assumptions_of(desk, outcome, chosen),
        warnings=warnings_of(desk, outcome, chosen),
        nearest_miss=tabler.row(nearest, "recommended", "comes closest", coverage=0.99) if nearest else None,
        remedies=remedies_of(desk, outcome) if outcome.verdict != "fits" else (),
    )
