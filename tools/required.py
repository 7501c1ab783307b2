"""How far ``required_bytes`` lies above measured allocated peaks, and what the distance is made of."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from comparisons import Judged, peaks


@dataclass(frozen=True, kw_only=True)
class Excess:
    """One measured allocated peak under its ``required_bytes``; parts are shares of the measured bytes.

    ``rest`` is the margin of trust, the fragments, and the error of the prediction itself.
    """

    file: str
    gpus: int
    covered: bool  # required_bytes hold the measured peak and the context
    total: float
    context: float

    @property
    def rest(self) -> float:
        return self.total - self.context


def excesses(judged: list[Judged]) -> list[Excess]:
    """Every row with a measured allocated peak."""
    found = []
    for one in judged:
        measured = [size for meter, size in peaks(one.row) if meter == "allocated"]
        if one.estimate is None or one.machine is None or not measured:
            continue
        size, context = max(measured), one.estimate.context_bytes
        found.append(
            Excess(
                file=one.row["file"],
                gpus=one.machine.world_size,
                covered=one.estimate.required_bytes >= size + context,
                total=one.estimate.required_bytes / size - 1,
                context=context / size,
            )
        )
    return found


def medians(ones: list[Excess]) -> dict[str, float]:
    """Medians of the distance and of its parts."""
    return {name: statistics.median(getattr(one, name) for one in ones) for name in ("total", "context", "rest")}
