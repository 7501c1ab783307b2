"""The effective batch: what was asked for, what the ranks can reach, and how it splits into micro batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import Any

from planner.errors import InputError, shown
from planner.training import TrainingSetup

MOST_SEQUENCES = 1_000_000
START_MICRO_BATCH = 8  # transformers' default of per_device_train_batch_size


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences per optimizer step: ``per_rank`` on each of ``ranks``; it holds on every rung."""

    asked: int
    ranks: int
    per_rank: int
    fixed_micro: int | None = None

    @property
    def effective(self) -> int:
        """Sequences of one optimizer step over all ranks."""
        return self.per_rank * self.ranks

    @property
    def micro_sizes(self) -> tuple[int, ...]:
        """Micro batches that reach the effective batch exactly, smallest first."""
        if self.fixed_micro is not None:
            return (self.fixed_micro,)
        return _divisors(self.per_rank)

    @property
    def start_micro(self) -> int:
        """Where the walk starts: the largest size up to transformers' default."""
        return max([size for size in self.micro_sizes if size <= START_MICRO_BATCH] or [self.micro_sizes[0]])

    @property
    def warning(self) -> str | None:
        """The one sentence that says the batch is not what was asked for."""
        if self.effective == self.asked:
            return None
        return (
            f"an effective batch of {self.asked} does not divide by {self._unit}: "
            f"{self.effective} is the nearest that does, and it holds on every rung"
        )

    @property
    def _unit(self) -> str:
        ranks = f"{self.ranks} GPUs" if self.ranks > 1 else "one GPU"
        return f"{ranks} x micro batch {self.fixed_micro}" if self.fixed_micro else ranks

    def split(self, setup: TrainingSetup, micro: int) -> TrainingSetup:
        """The setup with that micro batch and the accumulation that keeps the effective batch."""
        return setup.but(micro_batch_size=micro, gradient_accumulation_steps=self.per_rank // micro)


def plan_batch(asked: int, ranks: int, pinned: Mapping[str, Any]) -> Batch:
    """The reachable effective batch nearest to ``asked``; the smaller of two equally near.

    ``pinned`` may fix micro_batch_size, gradient_accumulation_steps, or both (which then decide).
    Raises InputError for a batch below one, or above what anyone trains with.
    """
    if asked < 1:
        raise InputError(f"--global-batch {asked} is not a batch: give at least 1")
    if asked > MOST_SEQUENCES:
        raise InputError(
            f"--global-batch {shown(asked)} is more than anyone trains with: give {MOST_SEQUENCES} or fewer"
        )
    micro, steps = pinned.get("micro_batch_size"), pinned.get("gradient_accumulation_steps")
    if micro and steps:
        return Batch(asked, ranks, int(micro) * int(steps), int(micro))
    unit = int(micro or steps or 1)
    per_rank = unit * _nearest_multiple(asked, unit * ranks)
    fixed = int(micro) if micro else per_rank // unit if steps else None
    return Batch(asked, ranks, per_rank, fixed)


@lru_cache(maxsize=64)
def _divisors(number: int) -> tuple[int, ...]:
    """Every divisor, smallest first."""
    low = [size for size in range(1, isqrt(number) + 1) if number % size == 0]
    return tuple(sorted({*low, *(number // size for size in low)}))


def _nearest_multiple(asked: int, unit: int) -> int:
    """How many units come nearest to ``asked``: at least one, the smaller of two equally near."""
    below, rest = divmod(asked, unit)
    return max(1, below + (1 if 2 * rest > unit else 0))
