"""The table: full, LoRA and QLoRA at their best in each profile, and what is only chosen on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from planner.memory.result import Estimate
from planner.plan.plan import Configuration, MethodClass, Profile
from planner.search.climb import Outcome, Rivals, Round, method_class_of, offload_rungs
from planner.search.desk import CONSERVATIVE_SHARE, Desk
from planner.search.rungs import Rung
from planner.training import TrainingSetup
from planner.units import show_gib

Explain = Callable[[TrainingSetup, float], Estimate]
MAINSTREAM: tuple[MethodClass, ...] = ("full", "lora", "qlora")
PROFILES: tuple[tuple[Profile, float, float], ...] = (
    ("conservative", CONSERVATIVE_SHARE, 0.99),
    ("recommended", 1.0, 0.99),
    ("aggressive", 1.0, 0.90),
)
_WHY = {
    "conservative": "needs at most 80 % of the capacity",
    "recommended": "fits with probability 0.99",
    "aggressive": "fits with probability 0.90 only: not safe",
}


@dataclass(eq=False, repr=False)
class Tabler:
    """Turns setups into configurations; each setup is explained once."""

    desk: Desk
    outcome: Outcome
    explain: Explain
    rivals: Rivals
    _estimates: dict[Any, Estimate] = field(default_factory=dict)

    def table(self) -> tuple[Configuration, ...]:
        """Class by class, profile by profile; what does not fit in any way has no row."""
        rows: list[Configuration] = []
        for each in self._shown():
            rows += self._profiles(each)
        if self.outcome.chosen is not None and self.pick(rows) is None:
            profile: Profile = "recommended" if self.outcome.verdict == "fits" else "aggressive"
            reason = _WHY["recommended"] if self.outcome.verdict == "fits" else "may fit: the margin is used up"
            rows.append(self.row(self.outcome.chosen, profile, reason, coverage=0.99))
        return tuple(rows)

    def _shown(self) -> Iterator[Round]:
        """The mainstream classes; of ranks to choose from the chosen one, else the largest that fits."""
        usual = [each for each in self.outcome.rounds if each.refused is None and each.method_class in MAINSTREAM]
        for _, group in groupby(usual, key=lambda each: each.rung):
            rounds = list(group)
            fits = (each for each in rounds if each.best(self.desk.capacity_bytes) is not None)
            chosen = self.outcome.round
            yield chosen if chosen in rounds and chosen is not None else next(fits, rounds[-1])

    def pick(self, rows: Sequence[Configuration]) -> Configuration | None:
        """The row of the table that was chosen: safe, of the recommended profile (or the last resort's own)."""
        wanted = "recommended" if self.outcome.verdict == "fits" else "aggressive"
        of_setup = (row for row in rows if row.setup == self.outcome.chosen and row.profile == wanted)
        return next((row for row in of_setup if row.estimate.coverage >= 0.99), None)

    def _profiles(self, each: Round) -> list[Configuration]:
        rows: list[Configuration] = []
        for profile, share, coverage in PROFILES:
            limit = int(self.desk.capacity_bytes * share)
            setup = self._best(each, limit, coverage)
            if setup is not None:
                nothing_gained = coverage < 0.99 and any(row.setup == setup for row in rows)
                reason = "the recommended setup: less caution gains nothing here" if nothing_gained else _WHY[profile]
                rows.append(self.row(setup, profile, reason, coverage=coverage))
        return rows

    def _best(self, each: Round, limit_bytes: int, coverage: float) -> TrainingSetup | None:
        """The chosen setup in its own cell, so that the table and the choice agree."""
        if each is self.outcome.round and coverage >= 0.99 and limit_bytes == self.desk.capacity_bytes:
            return self.outcome.chosen if self.outcome.verdict == "fits" else None
        used = self.outcome.used_offload
        offload = [used] if used is not None and each is self.outcome.round else []
        return each.best(limit_bytes, coverage=coverage, offload=offload)

    def row(self, setup: TrainingSetup, profile: Profile, reason: str, *, coverage: float) -> Configuration:
        """One explained configuration; ``safe`` says whether it fits at coverage 0.99."""
        key = (repr(setup), coverage)
        if key not in self._estimates:
            self._estimates[key] = self.explain(setup, coverage)
        return Configuration(
            setup=setup,
            estimate=self._estimates[key],
            speed=self.desk.speed(setup),
            method_class=method_class_of(setup),
            profile=profile,
            safe=profile != "aggressive" and self.desk.fits(setup, self.desk.capacity_bytes),
            reason=reason,
        )

    def alternatives(self) -> tuple[Configuration, ...]:
        """Every class that is chosen on request only, at its best, with why it is not chosen unasked."""
        taken = {each.rung.id for each in self.outcome.rounds if each.rung is not None}
        rungs = [rung for rung in self.outcome.terms.ladder if rung.is_class and rung.id not in taken]
        found = (self._alternative(rung) for rung in rungs if self._may_be_shown(rung))
        return tuple(row for row in found if row is not None)

    def _may_be_shown(self, rung: Rung) -> bool:
        terms, desk = self.outcome.terms, self.desk
        barred = terms.bar(rung)
        if rung.in_setup(terms.start) or not (barred is None or barred.startswith("on request")):
            return False
        return terms.unmet(rung, terms.take(rung, terms.start), desk.spec, desk.machine) is None

    def _alternative(self, rung: Rung) -> Configuration | None:
        """One class at its best, or at its leanest where it does not fit; None where rules shut it out."""
        setup = self.rivals.of(rung).shown()
        if setup is None:
            return None
        remark = rung.quality_risk
        if not self.desk.fits(setup, self.desk.capacity_bytes):
            remark = (
                f"does not fit: needs {show_gib(self.desk.need(setup) or 0)} of {show_gib(self.desk.capacity_bytes)}"
            )
        return self.row(setup, "recommended", f"--allow {rung.id}: {remark}", coverage=0.99)

    def offloads(self) -> tuple[Configuration, ...]:
        """What offload would make of the first class, where it was neither used nor ruled out."""
        first = next((each for each in self.outcome.rounds if each.refused is None), None)
        if first is None or self.outcome.used_offload is not None or first is self.outcome.round:
            return ()
        for rung in offload_rungs(self.outcome.terms):
            setup = first.best(self.desk.capacity_bytes, offload=[rung]) if self._may_be_shown(rung) else None
            if setup is not None:
                return (self.row(setup, "recommended", self._offload_remark(rung, setup), coverage=0.99),)
        return ()

    def _offload_remark(self, rung: Rung, setup: TrainingSetup) -> str:
        price = self.desk.price(setup)
        need = show_gib(price.host_bytes) if price else "an unknown amount"
        return f"--allow {rung.id}: needs {need} of host memory a node; {rung.reason}"
