"""Several data sets in one run: in which order LLaMA-Factory mixes them, and how many samples that makes.

Source: LLaMA-Factory 0.9.5 data/data_utils.py (merge_dataset), datasets 4.0 arrow_dataset.py
(_interleave_map_style_datasets). interleave_once is left out: it needs a newer datasets than LLaMA-Factory 0.9.5
allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from planner.errors import InputError, shown, unknown_choice

STRATEGIES = ("concat", "interleave_under", "interleave_over")


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """``concat`` takes every sample once. Interleaving draws from the sets in turn, or by ``probs``, until the first
    set is used up (``interleave_under``) or all are, smaller ones again and again (``interleave_over``).
    """

    strategy: str = "concat"
    probs: tuple[float, ...] = ()

    def check(self, sets: int, validation: int) -> None:
        """Raises InputError where the numbers do not go with so many data sets to train on and to evaluate on."""
        if sets == 1 and self != Mixing():
            raise InputError(f"--mix-strategy {self.strategy} mixes several data sets, and --data names one")
        if self.probs and len(self.probs) != sets:
            raise InputError(f"--interleave-probs has {len(self.probs)} numbers, and --data names {sets} data sets")
        if self.probs and validation not in (0, sets):
            raise InputError(
                f"--interleave-probs with {validation} validation files beside {sets} data sets: LLaMA-Factory wants "
                "as many numbers as either; give each data set one, or none"
            )

    def shares(self, sizes: Sequence[int]) -> tuple[float, ...]:
        """The part of the mixture that each set makes; ``sizes`` in samples, or in anything that goes with them."""
        if self.strategy == "concat":
            return tuple(size / sum(sizes) for size in sizes)
        return self.probs or (1 / len(sizes),) * len(sizes)

    def samples(self, counts: Sequence[int | None]) -> int | None:
        """Samples of an epoch, None where a set is not counted. With probabilities: what is to be expected."""
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        if self.strategy == "concat":
            return sum(known)
        last = min if self.strategy == "interleave_under" else max
        if not self.probs:
            return len(known) * last(known)
        return round(last(count / prob for count, prob in zip(known, self.probs, strict=True)))

    @property
    def words(self) -> str:
        """``interleave_under, 0.7 : 0.3``"""
        return ", ".join([self.strategy, *([" : ".join(f"{prob:g}" for prob in self.probs)] if self.probs else [])])


def mixing(strategy: Any = None, probs: Any = None) -> Mixing:
    """A strategy and its probabilities as they were written: numbers, or one comma list. Raises InputError."""
    name = strategy or "concat"
    if name not in STRATEGIES:
        raise unknown_choice(str(name), "--mix-strategy", STRATEGIES)
    numbers = _numbers(probs)
    if numbers and name == "concat":
        raise InputError("--interleave-probs goes with --mix-strategy interleave_under or interleave_over, not concat")
    return Mixing(strategy=name, probs=numbers)


def _numbers(probs: Any) -> tuple[float, ...]:
    parts = [part for part in probs.split(",") if part.strip()] if isinstance(probs, str) else list(probs or ())
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        numbers = (-1.0,)
    if any(not 0 < number <= 1 for number in numbers):
        raise InputError(f"--interleave-probs {shown(probs)} is not valid: numbers above 0, such as 0.7,0.3")
    if numbers and not math.isclose(sum(numbers), 1, rel_tol=0, abs_tol=1e-8):
        raise InputError(f"--interleave-probs {shown(probs)} add up to {sum(numbers):.9g}: they must add up to 1")
    return numbers
