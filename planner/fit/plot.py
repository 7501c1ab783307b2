"""A sweep as a picture: memory and speed over one swept field, a line for each combination of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from planner.errors import InputError
from planner.fit.sweep import Axis, Point
from planner.svg import COLOURS, Level, Line, chart, figure
from planner.units import gib, show_gib

MOST_LINES = len(COLOURS)


def plot(axes: Sequence[Axis], points: Sequence[Point]) -> str:
    """An SVG file. Raises InputError where no swept field has numbers, or there are too many lines to tell apart."""
    along = _along(axes)
    known = [point for point in points if point.error is None]
    if not known:
        raise InputError("--plot has nothing to draw: no combination of the sweep can be priced")
    needs = _lines(along, known, lambda figures: gib(figures["required_bytes"]))
    speeds = _lines(along, [point for point in known if point.figures["tokens_per_s"]], _rate)
    if len(needs) > MOST_LINES:
        raise InputError(f"--plot tells {MOST_LINES} lines apart, and this sweep has {len(needs)}: name fewer values")
    drawn = [("Memory that a GPU must hold", chart(needs, _capacities(known), y_unit="GiB", x_unit=along))]
    drawn += [("Predicted throughput", chart(speeds, (), y_unit="tokens/s", x_unit=along))] if speeds else []
    return figure(drawn)


def _along(axes: Sequence[Axis]) -> str:
    """The field that the x axis shows: the first of several whole numbers."""
    for axis in axes:
        if len(axis.values) > 1 and all(word.isdecimal() for word in axis.values):
            return axis.field
    raise InputError("--plot needs a swept field with several numbers, such as --sweep seq_len=512..8192")


def _rate(figures: Mapping[str, Any]) -> float:
    return float(figures["tokens_per_s"])


def _lines(along: str, points: Sequence[Point], y_of: Callable[[Mapping[str, Any]], float]) -> list[Line]:
    found: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        others = ", ".join(word for name, word in point.swept.items() if name != along) or along
        found.setdefault(others, []).append((float(point.swept[along]), y_of(point.figures)))
    return [Line(name=name, points=sorted(places)) for name, places in found.items()]


def _capacities(points: Sequence[Point]) -> list[Level]:
    known = sorted({point.figures["capacity_bytes"] for point in points})
    return [Level(name=f"capacity {show_gib(size)}", y=gib(size)) for size in known]
