"""Predictions of rows that constants were fitted on, with the constants fitted again without their source.

``tools/calibrate_overheads.py`` fits the two [replay] figures of rules/overheads.toml on the reserved and nvidia-smi
meters of published.jsonl; allocated memory has no fitted constant (its margins only widen the interval). A row's
held-out prediction uses figures that its own repository had no part in.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from functools import lru_cache

import calibrate_overheads
from comparisons import FIGURE, Comparison, origin, peaks

from planner.memory import overhead


def is_fitted(one: Comparison) -> bool:
    """True for a peak that the calibration has seen: reserved and device meters of published.jsonl."""
    return one.file == "published" and one.meter in ("reserved", "nvidia-smi")


@lru_cache(maxsize=1)  # the calibration can look once a process
def held_out() -> dict[tuple[str, str], int]:
    """(row id, meter) -> bytes predicted without the row's source, for every fitted peak."""
    with contextlib.redirect_stdout(io.StringIO()):
        seen = calibrate_overheads.look(varied=True)
        figures = dict(overhead.rules()["replay"])
        try:
            return {key: size for left in sorted({origin_of(one) for one in seen}) for key, size in without(seen, left)}
        finally:
            overhead.rules()["replay"].update(figures)


def origin_of(one: calibrate_overheads.Seen) -> str:
    return origin(one.row["source"])


def without(seen: list[calibrate_overheads.Seen], left: str) -> Iterable[tuple[tuple[str, str], int]]:
    """Predictions of one source's rows after a fit on all others."""
    kept = [one for one in seen if origin_of(one) != left]
    overhead.rules()["replay"].update(calibrate_overheads.replay_figures(kept))
    for one in seen:
        if origin_of(one) == left:
            answer = one.answer()
            for meter, _ in peaks(one.row):
                if meter in ("reserved", "nvidia-smi"):
                    yield (one.row["id"], meter), getattr(answer, FIGURE[meter])
