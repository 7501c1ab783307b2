"""Which cards of a mixed or shared machine should take part: all of them, or fewer that are larger or faster.

Ranks wait for each other and hold equal shares, so the smallest card decides what fits and the slowest how long it
takes. Leaving cards out is tried group by group; cards within 5 % of each other's room are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.hardware.machine import Gpu, Links, Machine

ALIKE = 0.95
MOST_CREWS = 6  # subsets looked at: each is a whole search


def crews(machine: Machine) -> Iterator[Machine]:
    """The machine with fewer cards in each node: by room, then by speed, each at most once; not the whole itself."""
    seen = {len(machine.gpus): [machine.gpus]}
    found = 0
    for chosen in (*_by_room(machine.gpus), *_by_speed(machine.gpus)):
        if chosen in seen.setdefault(len(chosen), []) or found == MOST_CREWS:
            continue
        seen[len(chosen)].append(chosen)
        found += 1
        yield replace(machine, gpus=chosen, links=machine.links if len(chosen) > 1 else Links())


def _by_room(gpus: tuple[Gpu, ...]) -> Iterator[tuple[Gpu, ...]]:
    """Without the smallest cards, without the next smallest too, ..."""
    steps: list[int] = []
    for room in sorted({gpu.capacity_bytes for gpu in gpus}):
        if not steps or steps[-1] < ALIKE * room:
            steps.append(room)
    for least in steps[1:]:
        yield tuple(gpu for gpu in gpus if gpu.capacity_bytes >= least)


def _by_speed(gpus: tuple[Gpu, ...]) -> Iterator[tuple[Gpu, ...]]:
    """Without the slowest kind, ...; only where the speed of every card is known."""
    speeds = {gpu.index: _tflops(gpu) for gpu in gpus}
    known = sorted({speed for speed in speeds.values() if speed is not None})
    if None in speeds.values():
        return
    for least in known[1:]:
        yield tuple(gpu for gpu in gpus if (speeds[gpu.index] or 0.0) >= least)


def _tflops(gpu: Gpu) -> float | None:
    """Dense 16-bit throughput; the index alone tells cards apart."""
    rates = gpu.kind.dense_tflops if gpu.kind is not None else {}
    return rates.get("bf16") or rates.get("fp16")
