"""Lines as SVG text, light and dark. Pure: numbers in, text out; every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 40
MOST_POINTS = 1200
HEADING = 30
# Of a file of its own: a page has these in its own style sheet.
STYLE = (
    ":root { color-scheme: light dark; --ink: #1d1d1f; --soft: #6a6a70; --line: #d9d9de; --page: #ffffff; }"
    "@media (prefers-color-scheme: dark) "
    "{ :root { --ink: #ececf0; --soft: #a0a0a8; --line: #3a3a40; --page: #17171a; } }"
    "text { fill: var(--soft); font: 11px system-ui, sans-serif; } .heading { fill: var(--ink); font-size: 14px; }"
    ".grid { stroke: var(--line); } .level { stroke: var(--soft); stroke-dasharray: 5 4; } .page { fill: var(--page); }"
)
COLOURS = ("#2a6fbb", "#c2571a", "#2f8f4e", "#8a4fb0", "#b8860b", "#c23b5a", "#3a8f8f", "#6b6b6b")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: its name and (x, y) pairs in the axes' units, x growing."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line: what was predicted, or what there is."""

    name: str
    y: float


def chart(lines: Sequence[Line], levels: Sequence[Level], *, y_unit: str, x_unit: str, from_zero: bool = True) -> str:
    """A chart with axes, a legend of words, and a title for readers that cannot see it. Empty without points."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points] + [level.y for level in levels]
    frame = _Frame(max(max(xs), 1e-9), min(0.0, min(ys)) if from_zero else min(ys), max(ys))
    parts = [*_axes(frame, y_unit, x_unit)]
    for number, line in enumerate(lines):
        parts.append(_curve(frame, line, COLOURS[number % len(COLOURS)]))
    parts += [_level(frame, level) for level in levels]
    parts.append(_legend(lines))
    title = escape(f"{', '.join(line.name for line in lines)} in {y_unit} over {x_unit}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{title}</title>{''.join(parts)}</svg>"
    )


def figure(charts: Sequence[tuple[str, str]]) -> str:
    """Charts under one another, each with its heading, as an SVG file of its own, light and dark."""
    each = HEIGHT + HEADING
    parts = [f"<style>{STYLE}</style>", f'<rect class="page" width="{WIDTH}" height="{each * len(charts)}"/>']
    for number, (heading, drawn) in enumerate(charts):
        top = each * number
        parts.append(f'<text class="heading" x="{LEFT}" y="{top + HEADING - 8}">{escape(heading)}</text>')
        parts.append(drawn.replace("<svg ", f'<svg y="{top + HEADING}" width="{WIDTH}" height="{HEIGHT}" ', 1))
    size = f'width="{WIDTH}" height="{each * len(charts)}" viewBox="0 0 {WIDTH} {each * len(charts)}"'
    return f'<svg {size} xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>\n'


@dataclass(frozen=True)
class _Frame:
    """Where values lie on the page."""

    x_most: float
    y_least: float
    y_most: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_most

    def y(self, value: float) -> float:
        span = (self.y_most - self.y_least) or 1.0
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y_least) / span


def ticks(least: float, most: float, count: int = 5) -> list[float]:
    """Round values within the limits: steps of 1, 2 or 5 times a power of ten."""
    span = most - least
    if span <= 0:
        return [least]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(least / step - 1e-9) * step
    return [first + step * number for number in range(int((most - first) / step + 1e-9) + 1)]


def _axes(frame: _Frame, y_unit: str, x_unit: str) -> list[str]:
    parts = []
    for value in ticks(frame.y_least, frame.y_most):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(0.0, frame.x_most):
        x = frame.x(value)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_unit)}</text>')
    parts.append(f'<text class="tick" x="6" y="{TOP}">{escape(y_unit)}</text>')
    return parts


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many points; of each bundle the highest stays, because peaks are what is looked for."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    return [max(points[start : start + size], key=lambda point: point[1]) for start in range(0, len(points), size)]


def _curve(frame: _Frame, line: Line, colour: str) -> str:
    places = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in thinned(line.points))
    return f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{places}"/>'


def _level(frame: _Frame, level: Level) -> str:
    y = frame.y(level.y)
    return (
        f'<line class="level" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{WIDTH - RIGHT - 4}" y="{y - 4:.1f}" text-anchor="end">{escape(level.name)}</text>'
    )


def _legend(lines: Sequence[Line]) -> str:
    """Names under the x axis, each with a stroke of its colour."""
    parts, x = [], float(LEFT)
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{x:.0f}" y="{HEIGHT - 13}" width="14" height="3" fill="{colour}"/>')
        parts.append(f'<text class="tick" x="{x + 19:.0f}" y="{HEIGHT - 7}">{escape(line.name)}</text>')
        x += 34 + 7 * len(line.name)
    return "".join(parts)
