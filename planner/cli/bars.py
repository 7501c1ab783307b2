"""A stacked bar of memory against a card: every part has its own sign, so that it reads without colour too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.memory.result import PARTS
from planner.units import gib

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from planner.memory.result import Estimate

# part -> (sign, colour); the signs have ASCII letters of their own where the terminal has no Unicode.
_SIGNS = {
    "weights": ("█", "blue"),
    "gradients": ("▓", "cyan"),
    "optimizer": ("▒", "magenta"),
    "activations": ("░", "green"),
    "logits": ("▚", "yellow"),
    "temporaries": ("▞", "bright_black"),
    "communication": ("≡", "red"),
    "context": ("▪", "white"),
    "margin": ("╌", "bright_black"),
    "free": ("·", "bright_black"),
}


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One part of the bar, in bytes."""

    part: str
    size_bytes: int


def segments_of(estimate: Estimate) -> list[Segment]:
    """What fills the card at the peak: the parts, the context, the safety margin up to what is required, the rest.

    Where the parts with their context pass the required bytes (freed cache can be given back), the margin is nothing.
    """
    sizes = {part: getattr(estimate.breakdown, part) for part in PARTS}
    sizes["context"] = estimate.context_bytes
    used = sum(sizes.values())
    sizes["margin"] = max(0, estimate.required_bytes - used)
    if estimate.capacity_bytes is not None:
        sizes["free"] = max(0, estimate.capacity_bytes - max(used, estimate.required_bytes))
    return [Segment(part=part, size_bytes=size) for part, size in sizes.items() if size]


def cells_of(sizes: list[int], width: int) -> list[int]:
    """Cells per size that sum to ``width``: largest remainders get what rounding leaves; a part never vanishes."""
    total = sum(sizes)
    if total == 0:
        return [0 for _ in sizes]
    exact = [size * width / total for size in sizes]
    cells = [max(1, int(share)) if size else 0 for share, size in zip(exact, sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: exact[i] - cells[i], reverse=True)
    while sum(cells) < width:
        for i in order[: width - sum(cells)]:
            cells[i] += 1
    while sum(cells) > width and max(cells) > 1:
        cells[cells.index(max(cells))] -= 1
    return cells


def stacked_bar(estimate: Estimate, *, width: int = 78) -> RenderableType:
    """The bar and its legend in GiB. A card that is too small is marked on the bar where it ends."""
    from rich.console import Group

    return Group(_bar(estimate, width), _legend(segments_of(estimate)))


def _bar(estimate: Estimate, width: int) -> Text:
    from rich.text import Text

    segments = segments_of(estimate)
    cells = cells_of([segment.size_bytes for segment in segments], width)
    bar = Text()
    for segment, count in zip(segments, cells, strict=True):
        sign, colour = _SIGNS[segment.part]
        bar.append(sign * count, style=colour)
    capacity = estimate.capacity_bytes
    length = sum(segment.size_bytes for segment in segments)
    if capacity is None or capacity >= length:
        return bar
    edge = max(0, capacity * width // length)
    return Text.assemble(bar[:edge], ("|", "bold red"), bar[edge + 1 :], f"\n{' ' * edge}^ the card ends here")


def _legend(segments: list[Segment]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    entries = []
    for segment in segments:
        sign, colour = _SIGNS[segment.part]
        entries.append(
            Text.assemble((sign, colour), f" {segment.part:<13} {gib(segment.size_bytes):6.2f}  ", no_wrap=True)
        )
    for start in range(0, len(entries), 3):
        grid.add_row(*entries[start : start + 3])
    return grid
