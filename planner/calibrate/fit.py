"""Observations -> Calibration: how far predictions were off here, and which bounds that supports. Pure.

The bound of one meter, n distinct setups seen, at coverage c, with ``published`` the class's bound at c:

    bound = q (1 + 1/sqrt(models)) + published x max(0, 1 - log10(n + 1) / log10(1 / (1 - c)))

q is the conformal quantile of the residuals, the ceil((n + 1) c)-th smallest, the largest where that lies beyond n
(Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005, chapter 2). It alone covers n / (n + 1) only,
so the tail beyond it is the published one: exponential, as rules/overheads.toml interpolates its margins, with the
published bound as its quantile at c. For exponential residuals of that scale the sum covers exactly c whatever n is.
The stretch by models is the one of tools/calibrate_overheads.py, for the same reason: later runs have other models.
With no residuals the bound is the published one.

It narrows only by what both sides of the residuals support (q of their magnitude), and widens where the residuals of
one side contradict the published bound. In simulation (tests/calibrate/test_fit.py) it covers c or more wherever the
published bound does.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from planner.calibrate.observation import METERS, Observation

# Within 7 % of the card the allocator gives back what it can, and its cache says nothing of one with room
# (the same limit as tools/calibrate_overheads.py).
NEARLY_FULL = 0.93
LEAST_SETUPS_OF_OFFSET = 5  # distinct ones, all on one side: 1 in 16 by chance
LEAST_OFFSET = 0.001
SPEED = "tokens_per_second"
_Run = tuple[str, Observation]  # a run under its setup's key


@dataclass(frozen=True, kw_only=True, eq=False)
class Residuals:
    """measured / predicted - 1 of one meter: the highest and the lowest of each distinct setup, and their middles.

    Compared by identity, so that quantiles are found once and remembered.
    """

    highs: tuple[float, ...]
    lows: tuple[float, ...]
    middles: tuple[float, ...]
    runs: int
    models: int

    def above(self, published: float, coverage: float) -> float:
        """The relative bound above the prediction, never negative."""
        return self._bound(1, published, coverage)

    def below(self, published: float, coverage: float) -> float:
        """The relative bound below the prediction, as a positive number below 1."""
        return min(self._bound(-1, published, coverage), 1.0)

    def offset(self) -> float | None:
        """The median residual where all setups lie on one side of the prediction, more than chance would, else None."""
        middle = median(self.middles) if self.middles else 0.0
        one_side = all(value > 0 for value in self.middles) or all(value < 0 for value in self.middles)
        enough = len(self.middles) >= LEAST_SETUPS_OF_OFFSET and abs(middle) >= LEAST_OFFSET
        return middle if one_side and enough else None

    def _bound(self, side: int, published: float, coverage: float) -> float:
        far, farthest = _quantiles(self, side, coverage)
        if far > published:
            return self._reach(far, published, coverage)
        return min(published, self._reach(farthest, published, coverage))

    def _reach(self, far: float, published: float, coverage: float) -> float:
        decades = math.log10(1 / (1 - coverage))
        beyond = max(0.0, 1 - math.log10(len(self.highs) + 1) / decades)
        stretch = 1 + 1 / math.sqrt(self.models) if self.models else 1.0
        return far * stretch + published * beyond


@lru_cache(maxsize=256)
def _quantiles(seen: Residuals, side: int, coverage: float) -> tuple[float, float]:
    """The quantile of one side (1 above, -1 below), and of the magnitude."""
    one_side = seen.highs if side > 0 else [-low for low in seen.lows]
    magnitudes = [max(abs(high), abs(low)) for high, low in zip(seen.highs, seen.lows, strict=True)]
    return quantile(one_side, coverage), quantile(magnitudes, coverage)


def quantile(values: Sequence[float], coverage: float) -> float:
    """The conformal quantile, at least 0: the ceil((n + 1) c)-th smallest, the largest where that lies beyond n."""
    if not values:
        return 0.0
    place = min(math.ceil((len(values) + 1) * coverage - 1e-9), len(values))
    return max(sorted(values)[place - 1], 0.0)


@dataclass(frozen=True, kw_only=True)
class History:
    """What runs of one trust class say, by meter.

    ``shortfall``: a run that was to fit ran out of memory, so that it required at least this share more than said;
    ``ran_out`` are the ids of such runs.
    """

    runs: int
    setups: int
    meters: Mapping[str, Residuals]
    shortfall: float = 0.0
    ran_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What runs on one machine with one engine say, by trust class (planner.memory.overhead.trust_class).

    ``of_other_releases`` counts the runs left out because another release of the planner predicted them.
    """

    machine_id: str
    engine: str
    classes: Mapping[str, History]
    of_other_releases: int = 0


def fit(observations: Iterable[Observation], *, machine_id: str, engine: str, release: str) -> Calibration:
    """The calibration of that machine and engine; observations of others, and of other releases, are left out."""
    here = [one for one in observations if one.machine.id == machine_id and one.engine == engine]
    own = [one for one in here if one.predicted.release == release]
    by_class: dict[str, list[_Run]] = defaultdict(list)
    for one in own:
        by_class[one.predicted.trust_class].append((setup_key(one), one))
    return Calibration(
        machine_id=machine_id,
        engine=engine,
        classes={name: _history(ones) for name, ones in sorted(by_class.items())},
        of_other_releases=len(here) - len(own),
    )


def _history(ones: Sequence[_Run]) -> History:
    meters = {meter: _residuals(ones, meter) for meter in (*METERS, SPEED)}
    short = {one.run_id: found for _, one in ones if (found := _shortfall(one)) is not None}
    return History(
        runs=len(ones),
        setups=len({key for key, _ in ones}),
        meters={meter: found for meter, found in meters.items() if found.runs},
        shortfall=max(short.values(), default=0.0),
        ran_out=tuple(sorted(short)),
    )


def _residuals(ones: Sequence[_Run], meter: str) -> Residuals:
    """One entry for each distinct setup: runs of one setup are alike, and count as one."""
    told = [(key, str(one.setup["model"]), residual) for key, one in ones for residual in _told(one, meter)]
    groups = [[value for *_, value in group] for _, group in groupby(sorted(told), key=lambda each: each[0])]
    return Residuals(
        highs=tuple(max(group) for group in groups),
        lows=tuple(min(group) for group in groups),
        middles=tuple(median(group) for group in groups),
        runs=len(told),
        models=len({model for _, model, _ in told}),
    )


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two; statistics.median, without the libraries that it brings along."""
    ranked, half = sorted(values), len(values) // 2
    return ranked[half] if len(values) % 2 else (ranked[half - 1] + ranked[half]) / 2


def setup_key(one: Observation) -> str:
    """What tells two setups apart; the spelling of the hardware does not."""
    return json.dumps({name: value for name, value in one.setup.items() if name != "gpus"}, sort_keys=True)


def _told(one: Observation, meter: str) -> list[float]:
    """The residual of a run, or nothing where it says nothing.

    What did not finish may have had its peak before it: it counts only where it went beyond the prediction. Cached
    and device memory of a nearly full card say nothing of a card with room.
    """
    found = one.error(meter)
    if found is None:
        return []
    if one.outcome != "finished" and (found <= 0 or meter == SPEED):
        return []
    room = one.predicted.capacity_bytes
    used = one.measured.device_bytes or one.measured.reserved_bytes or 0
    cached = meter in ("reserved_bytes", "device_bytes")
    return [] if cached and room is not None and used > NEARLY_FULL * room else [found]


def _shortfall(one: Observation) -> float | None:
    """How far the required bytes of a run that ran out were below what the card had; None where they were not."""
    said, room = one.predicted.required_bytes, one.predicted.capacity_bytes
    return room / said - 1 if one.outcome == "out_of_memory" and room is not None and said <= room else None
