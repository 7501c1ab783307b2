"""How many valid setups a request spans, which of them were priced, and by which bound each other one is excluded.

A valid setup is one class of the request with one sharding or offload, checkpointing of all, some or no layers, each
free rung taken or not (those that were allowed by name are taken), in the dtype that the cards compute in, and one
micro batch that keeps the effective batch, which no rule forbids, calls unproven or says the engine would drop. Nothing
is sampled: what was not priced is excluded by a bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from planner.plan.plan import Census, Excluded
from planner.search.climb import Outcome, Round, offload_rungs
from planner.search.desk import Desk
from planner.search.rungs import Rung
from planner.search.sieve import Sieve, Values
from planner.training import FIELD_NAMES, TrainingSetup

BOUNDS = {
    "free-rung": "a free rung left out: with it the same setup is no slower, and at most 1 % larger",
    "larger-batch": "memory grows with the micro batch, and a smaller one does not fit",
    "less-recomputation": "memory grows with each layer that is not checkpointed, and with fewer it does not fit",
    "offload": "offload comes in where nothing fits without and the host is known to hold it, no further than needed",
    "later-class": "a class or rank before it fits, and the objective quality takes the first that does",
}
CARDS_OWN = "compute_dtype"  # bf16 where the cards have it, else fp16: no choice of the search
BATCH = frozenset({"micro_batch_size", "gradient_accumulation_steps"})


@dataclass(eq=False, repr=False)
class Line:
    """Setups that differ in micro batch and free rungs only: ``held`` has the rungs, ``sizes`` the micro batches."""

    held: TrainingSetup
    sizes: tuple[int, ...]
    is_offload: bool
    round: Round


@dataclass(eq=False, repr=False)
class Counting:
    """One outcome's space, counted line by line."""

    desk: Desk
    outcome: Outcome
    sieve: Sieve
    _line_key: Callable[[TrainingSetup], Values] = field(init=False)
    _size: int = 0
    _priced: int = 0
    _excluded: Counter[str] = field(default_factory=Counter)
    _looked: dict[Values, dict[Values, set[int]]] = field(default_factory=dict)
    _counted: dict[Values, frozenset[Values]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        apart = BATCH | set(self.sieve.knobs) | {"ds_config", "versions"}
        self._line_key = attrgetter(*(name for name in FIELD_NAMES if name not in apart))

    def count(self) -> Census:
        """All lines of all classes; a setup that two classes share counts once."""
        for setup in self.desk.looked_at():
            of_line = self._looked.setdefault(self._line_key(setup), {})
            of_line.setdefault(self.sieve.values(setup), set()).add(setup.micro_batch_size)
        for each in self.outcome.rounds:
            for family in self._families(each):
                self._count_family(family)
        excluded = tuple(Excluded(bound=name, count=self._excluded[name], because=BOUNDS[name]) for name in BOUNDS)
        return Census(valid=self._size, priced=self._priced, excluded=tuple(each for each in excluded if each.count))

    def _families(self, each: Round) -> Iterator[list[Line]]:
        """The lines of a class, each sharding's lightest first."""
        terms = self.outcome.terms
        barred_offload = each.space.base.offload != "none"
        rungs: list[Rung | None] = [None]
        rungs += [] if barred_offload else [rung for rung in offload_rungs(terms) if not terms.bar(rung)]
        for rung in rungs if terms.against(each.space.base) is None else ():
            for family in each.space.families(rung):
                yield [Line(setup, self._sizes(setup), rung is not None, each) for setup in family]

    def _sizes(self, setup: TrainingSetup) -> tuple[int, ...]:
        """The micro batches that rules leave: all, or only the one that does not accumulate."""
        sizes = self.outcome.terms.batch.micro_sizes
        return sizes if self.desk.refusal(setup) is None else sizes[-1:]

    def _count_family(self, family: list[Line]) -> None:
        too_large = False
        for line in family:
            key = self._line_key(line.held)
            known = self._counted.get(key, frozenset())
            fresh = self.sieve.left(line.held, line.round.space.choices(self.sieve.knobs)) - known
            self._counted[key] = known | fresh
            self._size += len(fresh) * len(line.sizes)
            looked = self._looked.get(key, {})
            held = self.sieve.values(line.held)
            if held in fresh:
                sizes = looked.setdefault(held, set())
                self._count_held(line, sizes, too_large)
                too_large = too_large or self._is_too_large(line, sizes)
            self._count_others(line, looked, fresh - {held})

    def _count_others(self, line: Line, looked: dict[Values, set[int]], knobs: frozenset[Values]) -> None:
        """With a free rung left out; some were priced to say what a rung brings."""
        priced = sum(len(sizes.intersection(line.sizes)) for values, sizes in looked.items() if values in knobs)
        self._priced += priced
        self._excluded["free-rung"] += len(knobs) * len(line.sizes) - priced

    def _count_held(self, line: Line, looked: set[int], too_large: bool) -> None:
        for size in line.sizes:
            bound = None if size in looked else self._bound(line, size, looked, too_large)
            if bound is None:
                self.desk.price(self._with(line, size))
                self._priced += 1
            else:
                self._excluded[bound] += 1

    def _bound(self, line: Line, size: int, looked: set[int], too_large: bool) -> str | None:
        """Which bound excludes a setup that was not priced; None where none does, and it has to be."""
        if any(other < size and not self._fits(line, other) for other in looked):
            return "larger-batch"
        if too_large:
            return "less-recomputation"
        if line.is_offload:
            return "offload"
        return "later-class" if self._is_later(line.round) else None

    def _is_later(self, each: Round) -> bool:
        chosen, rounds = self.outcome.round, list(self.outcome.rounds)
        by_class = self.outcome.terms.request.objective == "quality"
        return by_class and chosen is not None and rounds.index(each) > rounds.index(chosen)

    def _is_too_large(self, line: Line, looked: set[int]) -> bool:
        """Neither the smallest micro batch nor the one that does not accumulate fits."""
        ends = {line.sizes[0], line.sizes[-1]}
        return ends <= looked and not any(self._fits(line, size) for size in ends)

    def _fits(self, line: Line, size: int) -> bool:
        return self.desk.fits(self._with(line, size), self.desk.capacity_bytes)

    def _with(self, line: Line, size: int) -> TrainingSetup:
        return self.outcome.terms.batch.split(line.held, size)


def census(desk: Desk, outcome: Outcome) -> Census:
    """The space of what was asked for, on the cards that were chosen; made after all else that prices setups."""
    free = (rung for rung in outcome.terms.ladder if rung.tier == 0)
    knobs = dict.fromkeys(name for rung in free for name in rung.changes if name != CARDS_OWN)
    return Counting(desk, outcome, Sieve(desk, outcome.terms.start.engine, tuple(knobs))).count()
