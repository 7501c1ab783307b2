"""Which of the setups that fit is taken: a staircase from the least memory up, so that more memory is never slower.

Setups are taken in the order of the bytes they need, and each takes the place of the one before where it is worth it.
What stands there when the capacity is reached is the choice. More memory only makes the staircase longer, and no step
of it goes down: predicted tokens per second never fall as the memory of the GPUs grows, exactly and not within a
tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from planner.search.desk import Desk
from planner.search.walk import Terms
from planner.speed.work import recomputed
from planner.training import TrainingSetup

# What a setup must promise before it takes the place of one that needs less memory. Within one way of sharding the
# speed model errs by about 5 %: less than that is no reason to fill the memory by recomputing more or less.
WORTH_MEMORY = 0.95
# Across ways of sharding the speed model errs by more than within one (links, kernels, what overlaps): half of its
# stated error must be exceeded before states that fit one GPU are spread over several.
WORTH_SHARDING = 0.85


class Step(NamedTuple):
    """One setup as the choice sees it; in the order of the staircase."""

    need_bytes: int
    slowness: float  # tokens per second, negative: of equal needs the fastest comes first
    intrusion: int
    setup: TrainingSetup

    @property
    def rate(self) -> float:
        """Predicted tokens per second."""
        return -self.slowness


def best_of(desk: Desk, setups: Iterable[TrainingSetup], terms: Terms) -> TrainingSetup | None:
    """Quality and speed: where the staircase ends. Memory: the smallest, then the fastest."""
    steps = [Step(desk.need(setup) or 0, -rate(desk, setup), intrusion(terms, setup), setup) for setup in setups]
    if not steps:
        return None
    smallest = terms.request.objective == "memory"
    return (min(steps, key=lambda step: step[:3]) if smallest else top_of(steps)).setup


def top_of(steps: Iterable[Step]) -> Step:
    """Where the staircase of these setups, one or more, ends."""
    standing, *others = sorted(steps, key=lambda step: step[:3])
    for step in others:
        if _takes_the_place(step, standing):
            standing = step
    return standing


def _takes_the_place(step: Step, standing: Step) -> bool:
    """Never a slower one. A larger micro batch has to be faster at all; another recomputation or more sharding must be
    faster by more than the speed model errs; less sharding is worth it at the same speed.
    """
    if step.intrusion < standing.intrusion:
        return step.rate >= standing.rate
    if step.intrusion > standing.intrusion:
        return WORTH_SHARDING * step.rate > standing.rate
    held_alike = step.setup.gradient_checkpointing == standing.setup.gradient_checkpointing
    return (1.0 if held_alike else WORTH_MEMORY) * step.rate > standing.rate


def fastest_of(desk: Desk, setups: Iterable[TrainingSetup]) -> TrainingSetup:
    """The fastest; of equally fast ones the first."""
    return max(setups, key=lambda setup: rate(desk, setup))


def intrusion(terms: Terms, setup: TrainingSetup) -> int:
    """How far down the ladder the setup's sharding and offload stand; 0 for none of either."""
    rungs = enumerate(terms.ladder, start=1)
    taken = [place for place, rung in rungs if (rung.is_sharding or rung.is_offload) and rung.in_setup(setup)]
    return max(taken, default=0)


def rate(desk: Desk, setup: TrainingSetup) -> float:
    """Tokens per second; where nothing is known, larger micro batches without recomputation count as faster."""
    speed = desk.speed(setup)
    if speed is not None:
        return speed.tokens_per_s
    return setup.micro_batch_size * (1.3 - 0.3 * recomputed(setup, desk.spec.layers))
