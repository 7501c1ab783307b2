"""Inside one class: every way to hold it that the request allows, and which of them fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from typing import Any

from planner.search.constraints import newly_met
from planner.search.desk import Desk
from planner.search.rungs import Rung
from planner.search.walk import Terms
from planner.training import Parallelism, TrainingSetup


@dataclass(eq=False, repr=False)
class Space:
    """The setups of one class: ``base`` with the ``free`` rungs taken where they work, and what may come on top."""

    desk: Desk
    terms: Terms
    base: TrainingSetup
    shardings: tuple[Parallelism, ...]
    light: tuple[Rung, ...]
    free: tuple[Rung, ...]
    own: frozenset[str]  # fields that the class sets
    _fitting: dict[tuple[int, float, str | None], list[TrainingSetup]] = field(default_factory=dict)

    def families(self, offload: Rung | None = None) -> Iterator[list[TrainingSetup]]:
        """For each sharding the setups that no rule refuses, at the smallest micro batch, the lightest first."""
        smallest = self.terms.batch.micro_sizes[0]
        for parallelism in self._shardings(offload):
            held = self.base.but(parallelism=parallelism)
            held = self.terms.take(offload, held) if offload else held
            setups = self._lightened(self.terms.batch.split(held, smallest))
            allowed = [setup for setup in setups if self._is_usable(setup)]
            if allowed:
                yield allowed[::-1]

    def _is_usable(self, setup: TrainingSetup) -> bool:
        """Whether rules leave the setup at its smallest micro batch, or at the one that does not accumulate."""
        if self.desk.refusal(setup) is None:
            return True
        return self.desk.refusal(self.terms.batch.split(setup, self.terms.batch.micro_sizes[-1])) is None

    def choices(self, knobs: Sequence[str]) -> tuple[tuple[Any, ...], ...]:
        """For each field that free rungs change, the values it may have: theirs, and what it is without them."""
        return tuple(tuple(dict.fromkeys(self._values(name))) for name in knobs)

    def _values(self, name: str) -> Iterator[Any]:
        """What was asked for, by a flag or by allowing a rung, is not left out again."""
        yield getattr(self.base, name)
        allowed = (rung for rung in self.free if rung.on_request and rung.in_setup(self.base))
        if name not in self.terms.fixed and name not in self.own and not any(name in rung.changes for rung in allowed):
            yield getattr(self.terms.start, name)
            yield from (rung.changes[name] for rung in self.free if name in rung.changes)

    def _shardings(self, offload: Rung | None) -> tuple[Parallelism, ...]:
        """Parallelism to try; with offload only what can carry it, which then may be ZeRO on one GPU too."""
        if offload is None and self.base.offload == "none":
            return self.shardings
        if "parallelism" in self.terms.fixed:
            return (self.terms.fixed["parallelism"],)
        rungs = [offload] if offload else [rung for rung in self.terms.ladder if rung.in_setup(self.base)]
        through = dict.fromkeys(name for rung in rungs if rung for name in rung.through)
        carriers = through or self.shardings[:1]  # an offload that no rung speaks of stays where the walk starts
        return tuple(name for name in carriers if name not in self.terms.request.forbid)

    def _lightened(self, setup: TrainingSetup) -> Iterator[TrainingSetup]:
        """The setup with none, one, two ... of the light rungs; a required one is in all of them."""
        required = [rung for rung in self.light if rung.id in self.terms.request.require]
        if not required:
            yield setup
        for rung in required or self.light:
            if rung.steps is not None:
                every = numbers_of_layers(self.desk.spec.layers)
                yield from (setup.but(gradient_checkpointing=number) for number in every)
            elif (lighter := self.terms.take(rung, setup)) is not setup:
                setup = lighter
                yield setup
            elif required:
                yield setup

    def fitting(self, limit_bytes: int, *, coverage: float = 0.99, offload: Rung | None = None) -> list[TrainingSetup]:
        """Every setup that stays within the limit: each variant at each micro batch.

        Where a light variant does not fit, its heavier ones are not even priced.
        """
        key = (limit_bytes, coverage, offload.id if offload else None)
        if key not in self._fitting:
            self._fitting[key] = self._found(limit_bytes, coverage, offload)
        return self._fitting[key]

    def _found(self, limit_bytes: int, coverage: float, offload: Rung | None) -> list[TrainingSetup]:
        found: list[TrainingSetup] = []
        for family in self.families(offload):
            for setup in family:
                sizes = self._sizes(setup, limit_bytes, coverage)
                if not sizes:
                    break
                found += sizes
        return found

    def _sizes(self, setup: TrainingSetup, limit_bytes: int, coverage: float) -> list[TrainingSetup]:
        """The micro batches that keep the effective batch and fit: memory grows with each, so the first misfit ends it.

        But for the largest: a step of one micro batch does not accumulate, and may need less than a smaller one.
        """
        *smaller, whole = (self.terms.batch.split(setup, size) for size in self.terms.batch.micro_sizes)
        found = list(takewhile(lambda tried: self._may(tried, limit_bytes, coverage), smaller))
        return [*found, whole] if self._may(whole, limit_bytes, coverage) else found

    def _may(self, setup: TrainingSetup, limit_bytes: int, coverage: float) -> bool:
        return self.desk.fits(setup, limit_bytes, coverage=coverage) and self.desk.refusal(setup) is None

    def leanest(self, offload: Rung | None = None) -> TrainingSetup | None:
        """The setup that needs least, fitting or not; None if nothing may be used or priced."""
        sizes = self.terms.batch.micro_sizes
        lightest = [family[0] for family in self.families(offload)]
        ends = [self.terms.batch.split(setup, size) for setup in lightest for size in {sizes[0], sizes[-1]}]
        tried = [setup for setup in ends if self.desk.refusal(setup) is None]
        needs = [(self.desk.need(setup), setup) for setup in tried]
        known = [(need, setup) for need, setup in needs if need is not None]
        return min(known, key=lambda pair: pair[0])[1] if known else None

    def refused(self) -> str | None:
        """Why no setup of the class may be used, or None if one may."""
        problems = (self.desk.problem(family[0]) for family in self.families())
        for problem in problems:
            if problem is None:
                return None
        smallest = self.terms.batch.split(self.base, self.terms.batch.micro_sizes[0])
        tried = [smallest.but(parallelism=name) for name in self._shardings(None)] or [smallest]
        reasons = (self.desk.refusal(setup) or self.desk.problem(setup) for setup in tried)
        return next((reason for reason in reasons if reason), "no sharding is left to hold it")


@cache
def numbers_of_layers(layers: int) -> tuple[int, ...]:
    """For every n-th layer: an n for each number of layers that can be met so, from one layer to half of them."""
    return tuple(sorted({layers // (layers // every) for every in range(2, layers + 1)}, reverse=True))


def build_space(desk: Desk, terms: Terms, rung: Rung | None, rungs: Iterable[Rung]) -> Space:
    """The space of a class: free rungs are taken at once, sharding and light ones become choices.

    What the class's own rung sets, no other rung changes.
    """
    start = terms.take(rung, terms.start) if rung else terms.start
    held = rung.changes if rung else {}
    return _gather(desk, terms, start, (each for each in rungs if not _against(each, held)), frozenset(held))


def _against(rung: Rung, held: Mapping[str, object]) -> bool:
    return any(name in held and held[name] != value for name, value in rung.changes.items())


def _gather(desk: Desk, terms: Terms, start: TrainingSetup, rungs: Iterable[Rung], own: frozenset[str]) -> Space:
    base = start
    shardings: list[Parallelism] = [start.parallelism or "none"]
    light: list[Rung] = []
    free: list[Rung] = []
    for rung in rungs:
        if terms.bar(rung) or rung.is_class or rung.is_offload or not rung.sets_fields:
            continue
        if terms.unmet(rung, base, desk.spec, desk.machine):
            continue
        if rung.is_sharding:
            shardings += [] if "parallelism" in terms.fixed else [rung.changes["parallelism"]]
        elif rung.tier == 0:
            base = _freely(desk, terms, base, rung)
            free.append(rung)
        else:
            light.append(rung)
    return Space(desk, terms, base, tuple(dict.fromkeys(shardings)), tuple(light), tuple(free), own)


def _freely(desk: Desk, terms: Terms, base: TrainingSetup, rung: Rung) -> TrainingSetup:
    """The base with a free rung, or as it was where the rung would be refused or dropped by the engine."""
    taken = terms.take(rung, base)
    return base if taken is base or newly_met(base, taken, desk.spec, desk.machine) else taken
