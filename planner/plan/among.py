"""The engine as one more choice: every engine that a plan can be run through, each searched whole, and the best taken.

The best is what the search itself prefers among classes and cards: the verdict, no unasked offload, the better class,
then more tokens per second. Of equals the first in the order of preference is taken, so that nothing is gained by an
engine that promises the same. Each engine's speed never falls as memory grows, so the fastest of them does not either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from planner.errors import InputError
from planner.hardware.machine import Machine
from planner.model.spec import ModelSpec
from planner.plan.make import Pricing, searched, told
from planner.plan.plan import Census, EngineReport, Excluded, Plan, Request
from planner.rulebook.engines import MERITS, engine_name, never_runs
from planner.search.census import BOUNDS, census
from planner.search.team import Found
from planner.units import show_gib

ENGINES = tuple(MERITS)
SAME_RATE = 1e-6  # of a rate: below this two engines are equally fast


@dataclass(frozen=True)
class Tried:
    """One engine's search, told only where it is the best."""

    request: Request
    searches: tuple[Found, Found]
    pricing: Pricing

    @property
    def engine(self) -> str:
        """The engine that was searched."""
        return self.request.engine

    @property
    def best(self) -> Found:
        """On the cards that are best for it."""
        return self.searches[1]


def plan_among(request: Request, spec: ModelSpec, machine: Machine, pricing_of: Callable[[str], Pricing]) -> Plan:
    """The plan through the best engine, which the plan's request then names.

    Raises InputError with each engine's reason where none can do what was asked for.
    """
    tried, problems = _try_all(request, spec, machine, pricing_of)
    if not tried:
        raise InputError(f"no engine does this: {'; '.join(each.sentence for each in problems.values())}")
    best = tried[0]
    for other in tried[1:]:
        best = other if _is_better(other, best) else best
    plan = told(best.request, best.searches, best.pricing)
    spaces = {each.engine: plan.space if each is best else census(each.best.desk, each.best.outcome) for each in tried}
    reports = tuple(_reports(tried, problems, spaces))
    reasons = (*plan.reasons, _why(best, tried, problems))
    return replace(plan, reasons=reasons, engines=reports, space=_summed([each for each in spaces.values() if each]))


def _try_all(
    request: Request, spec: ModelSpec, machine: Machine, pricing_of: Callable[[str], Pricing]
) -> tuple[list[Tried], dict[str, InputError]]:
    tried, problems = [], {}
    for engine in ENGINES:
        never = never_runs(engine, request.stage, request.method, request.pinned.get("parallelism"))
        if never is not None:
            problems[engine] = InputError(f"{engine_name(engine)} {never}")
            continue
        asked, pricing = replace(request, engine=engine), pricing_of(engine)
        try:
            tried.append(Tried(asked, searched(asked, spec, machine, pricing), pricing))
        except InputError as problem:
            problems[engine] = problem
    return tried, problems


def _is_better(other: Tried, best: Tried) -> bool:
    found, standing = other.best, best.best
    if found.rank() != standing.rank():
        return found.rank() > standing.rank()
    if other.request.objective == "memory" or found.outcome.chosen is None:
        return 0 < found.need_bytes < standing.need_bytes
    return found.rate > standing.rate * (1 + SAME_RATE)


def _reports(
    tried: list[Tried], problems: Mapping[str, InputError], spaces: Mapping[str, Census | None]
) -> Iterator[EngineReport]:
    """Every engine, in the order of preference."""
    by_name = {each.engine: each for each in tried}
    for engine in ENGINES:
        if engine in problems:
            yield EngineReport(engine=engine, problem=problems[engine].sentence)
            continue
        one, space = by_name[engine], spaces[engine]
        outcome = one.best.outcome
        yield EngineReport(
            engine=engine,
            verdict=outcome.verdict,
            method_class=outcome.round.method_class if outcome.round else None,
            required_bytes=one.best.need_bytes or None,
            tokens_per_s=one.best.rate or None,
            valid=space.valid if space else 0,
        )


def _summed(spaces: list[Census]) -> Census:
    """Setups of different engines are different setups."""
    excluded: Counter[str] = Counter()
    for space in spaces:
        excluded.update({each.bound: each.count for each in space.excluded})
    return Census(
        valid=sum(space.valid for space in spaces),
        priced=sum(space.priced for space in spaces),
        excluded=tuple(Excluded(bound=name, count=excluded[name], because=BOUNDS[name]) for name in BOUNDS
                       if excluded[name]),
    )  # fmt: skip


def _why(best: Tried, tried: list[Tried], problems: Mapping[str, InputError]) -> str:
    """``engine LLaMA-Factory, LoRA in 19 GiB at about 9,000 tokens/s; TRL: the same; ...``."""
    words = {each.engine: each.best.told(f" in {show_gib(each.best.need_bytes)}") for each in tried}
    chosen = words.pop(best.engine)
    said = [f"{engine_name(best.engine)}, {chosen}"]
    said += [f"{engine_name(engine)}: {'the same' if text == chosen else text}" for engine, text in words.items()]
    said += [problem.sentence for problem in problems.values()]
    alike = f"; of equals the first: it {MERITS[best.engine]}" if chosen in words.values() else ""
    return f"engine {'; '.join(said)}{alike}"
