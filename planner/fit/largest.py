"""The largest micro batch, length or rank with which a stated setup still fits, and the map of lengths and batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.calibrate.recall import recall
from planner.errors import PlannerError
from planner.hardware.machine import Machine
from planner.memory.estimate import price
from planner.memory.result import Price, Verdict, judge
from planner.model.spec import ModelSpec
from planner.search.desk import host_refusal
from planner.training import TrainingSetup

LENGTH_STEP_TOKENS = 128
MOST_LENGTH_TOKENS = 1 << 20  # of models that state no longest position
MOST_MICRO_BATCH = 4096
MOST_RANK = 1024
GRID_LENGTHS = 7
GRID_BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest ``value`` of ``field`` that fits with all else as stated; None where even the least does not.

    ``bounded_by`` says what stopped it: "memory", or the reason why no larger value was tried.
    """

    field: str
    value: int | None
    required_bytes: int | None
    bounded_by: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the map: what a length and a micro batch need, and how that is judged. None: cannot be priced."""

    seq_len: int
    micro_batch_size: int
    required_bytes: int | None
    verdict: Verdict | None


def largest_of_each(setup: TrainingSetup, spec: ModelSpec, machine: Machine) -> tuple[Largest, ...]:
    """Micro batch, length and (with adapters) rank, each alone. Memory grows with each, so bisection finds them."""
    positions = spec.max_positions or MOST_LENGTH_TOKENS
    ends = f"the model's {positions} positions" if spec.max_positions else "what was tried"
    found = [
        _largest(setup, "micro_batch_size", 1, MOST_MICRO_BATCH, "what was tried", spec, machine),
        _largest(setup, "seq_len", LENGTH_STEP_TOKENS, max(positions, setup.seq_len), ends, spec, machine),
    ]
    if setup.is_adapter:
        found.append(_largest(setup, "lora_rank", 1, MOST_RANK, "what was tried", spec, machine))
    return tuple(found)


def _largest(
    setup: TrainingSetup, name: str, step: int, most: int, ends: str, spec: ModelSpec, machine: Machine
) -> Largest:
    def needs(steps: int) -> int | None:
        found = priced(setup.but(**{name: steps * step}), spec, machine)
        return found.required_bytes if found is not None and fits(found, machine) else None

    steps = last_true(lambda count: needs(count) is not None, most // step)
    if steps == 0:
        return Largest(field=name, value=None, required_bytes=None, bounded_by="memory")
    stopped = ends if steps == most // step else "memory"
    return Largest(field=name, value=steps * step, required_bytes=needs(steps), bounded_by=stopped)


def last_true(holds: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to ``most`` for which ``holds``, which is false from some number on; 0 for none."""
    low, high = 0, 1
    while high <= most and holds(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def grid(setup: TrainingSetup, spec: ModelSpec, machine: Machine) -> tuple[tuple[Cell, ...], ...]:
    """Rows of micro batches over columns of lengths, doubling from a quarter of the stated length (at least 256)."""
    first = max(256, setup.seq_len // 4)
    lengths = [first << place for place in range(GRID_LENGTHS)]
    kept = [length for length in lengths if length <= (spec.max_positions or MOST_LENGTH_TOKENS)] or lengths[:1]
    return tuple(tuple(_cell(setup, length, batch, spec, machine) for length in kept) for batch in GRID_BATCHES)


def _cell(setup: TrainingSetup, length: int, batch: int, spec: ModelSpec, machine: Machine) -> Cell:
    found = priced(setup.but(seq_len=length, micro_batch_size=batch), spec, machine)
    return Cell(
        seq_len=length,
        micro_batch_size=batch,
        required_bytes=found.required_bytes if found else None,
        verdict=verdict_of(found, machine) if found else None,
    )


def priced(setup: TrainingSetup, spec: ModelSpec, machine: Machine) -> Price | None:
    """The price, with what earlier runs on this machine told; None where the setup cannot be priced."""
    try:
        found = price(setup, spec, machine)
    except PlannerError:
        return None
    local = recall(machine, setup.engine)
    if local is None:
        return found
    from planner.calibrate.apply import calibrated_price

    return calibrated_price(found, local, setup, spec, machine)


def verdict_of(found: Price, machine: Machine) -> Verdict:
    """The contract's verdict on the GPU that decides; a host that does not do is a run that dies."""
    if host_refusal(found, machine) is not None:
        return "does_not_fit"
    return judge(
        allocated_bytes=found.allocated_bytes,
        context_bytes=found.context_bytes,
        required_bytes=found.required_bytes,
        capacity_bytes=machine.smallest.capacity_bytes,
    )


def fits(found: Price, machine: Machine) -> bool:
    """True where the verdict is "fits"."""
    return found.required_bytes <= machine.smallest.capacity_bytes and host_refusal(found, machine) is None
