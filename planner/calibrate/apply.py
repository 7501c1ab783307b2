"""A Calibration and measured Constants -> bounds of an estimate, a price, a speed. Pure.

The point estimates of allocated and reserved memory are never moved. Bounds are, and ``required_bytes`` with the upper
one of allocated memory; measured context and NCCL bytes stand in for the catalogue's, and move ``device_bytes`` and
``required_bytes`` by the difference. Every estimate that history touched says so among its assumptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.calibrate.fit import SPEED, Calibration, History, Residuals
from planner.hardware.machine import Gpu, GpuKind, Machine
from planner.memory.overhead import context_bytes, margins, nccl_bytes, trust_class
from planner.memory.result import COVERAGE, Estimate, Price, judge
from planner.model.spec import ModelSpec
from planner.plan.plan import Speed
from planner.speed.rates import shipped
from planner.training import TrainingSetup
from planner.units import show_gib

if TYPE_CHECKING:
    from planner.calibrate.constants import Constants

# Phases whose peak is also the largest that activations reach: there the upper bound and what fragmentation takes
# grow together, so that required bytes may shrink by as much as the bound does (planner.memory.overhead.overheads).
ACTIVE_PHASES = frozenset({"forward", "loss", "backward"})
SPEED_COVERAGE = COVERAGE  # the published interval of speeds is about that wide: planner.speed.estimate


@dataclass(frozen=True, kw_only=True)
class Local:
    """What this machine told: runs, measured constants, and what could not be read (sentences)."""

    calibration: Calibration | None = None
    constants: Constants | None = None
    warnings: tuple[str, ...] = ()

    def history(self, setup: TrainingSetup, spec: ModelSpec, machine: Machine) -> History | None:
        """The runs that speak for a setup: those of its trust class."""
        name = trust_class(setup, spec, machine.world_size)
        return self.calibration.classes.get(name) if self.calibration else None


@dataclass(frozen=True, kw_only=True)
class _Shift:
    """How the bounds of one setup move: relative bounds above as published and as supported, and bytes of context."""

    published: float
    above: float
    shortfall: float
    context: int

    def required(self, before: int, allocated: int, context: int, *, active: bool) -> int:
        """Required bytes after the shift, never below the new upper bound with context."""
        change = self.above - self.published
        moved = before + self.context + (int(allocated * change) if change > 0 or active else 0)
        least = int(allocated * (1 + self.above)) + context + self.context
        short = -int(-before * (1 + self.shortfall) // 1) if self.shortfall else 0
        return max(moved, least, short)


def calibrated_price(price: Price, local: Local, setup: TrainingSetup, spec: ModelSpec, machine: Machine,
                     coverage: float = COVERAGE) -> Price:  # fmt: skip
    """The price with what this machine told; the same object where it told nothing."""
    shift = _shift(local, setup, spec, machine, coverage)
    if shift is None:
        return price
    active = price.peak_phase in ACTIVE_PHASES
    return replace(
        price,
        context_bytes=price.context_bytes + shift.context,
        device_bytes=price.device_bytes + shift.context,
        required_bytes=shift.required(price.required_bytes, price.allocated_bytes, price.context_bytes, active=active),
    )


def calibrated_estimate(
    estimate: Estimate, local: Local, setup: TrainingSetup, spec: ModelSpec, machine: Machine
) -> Estimate:
    """The estimate with what this machine told, and sentences that say so."""
    found = _with_remarks(estimate, local)
    history = local.history(setup, spec, machine)
    shift = _shift(local, setup, spec, machine, estimate.coverage)
    if shift is None:
        return found
    active = found.peak_phase in ACTIVE_PHASES
    required = shift.required(found.required_bytes, found.allocated_bytes, found.context_bytes, active=active)
    context, device = found.context_bytes + shift.context, found.device_bytes + shift.context
    moved = replace(
        found, context_bytes=context, device_bytes=device, required_bytes=required,
        interval=_intervals(found, device, history),
        assumptions=(*found.assumptions, *_said(local, history, found, required, shift)),
    )  # fmt: skip
    if moved.capacity_bytes is None:
        return moved
    verdict = judge(
        allocated_bytes=moved.allocated_bytes, context_bytes=context,
        required_bytes=required, capacity_bytes=moved.capacity_bytes,
    )  # fmt: skip
    return replace(moved, verdict=verdict)


def _with_remarks(estimate: Estimate, local: Local) -> Estimate:
    """What holds of every setup here: history that cannot be read, and runs that do not count."""
    left_out = local.calibration.of_other_releases if local.calibration else 0
    if not left_out and not local.warnings:
        return estimate
    said = (
        f"{_runs(left_out)} on this machine had the prediction of another release and did not count "
        "(`plan history --repredict` predicts them again)"
    )
    assumptions = (*estimate.assumptions, said) if left_out else estimate.assumptions
    return replace(estimate, assumptions=assumptions, warnings=(*estimate.warnings, *local.warnings))


def calibrated_speed(
    speed: Speed | None, local: Local, setup: TrainingSetup, spec: ModelSpec, machine: Machine
) -> Speed | None:
    """The speed with the bounds that runs here support; the prediction itself stays."""
    history = local.history(setup, spec, machine)
    seen = history.meters.get(SPEED) if history else None
    if speed is None or seen is None:
        return speed
    rate = speed.tokens_per_s
    above = seen.above(speed.high_tokens_per_s / rate - 1, SPEED_COVERAGE)
    below = seen.below(1 - speed.low_tokens_per_s / rate, SPEED_COVERAGE)
    return replace(speed, low_tokens_per_s=rate * (1 - below), high_tokens_per_s=rate * (1 + above))


def measured_machine(machine: Machine, constants: Constants | None) -> Machine:
    """The machine for the speed model with measured rates in place of the datasheet's.

    The speed model takes a share of each rated figure; measured ones are what is reached, so they are divided by
    that share first. Figures that were not measured stay the catalogue's.
    """
    if constants is None or not machine.gpus:
        return machine
    gpus = tuple(replace(gpu, kind=_measured_kind(gpu, constants)) if gpu.kind else gpu for gpu in machine.gpus)
    p2p = constants.p2p_bytes_per_s
    links = replace(machine.links, bytes_per_s=p2p / _ring_share()) if p2p and len(gpus) > 1 else machine.links
    return replace(machine, gpus=gpus, links=links)


def _ring_share() -> float:
    return float(shipped().links["ring_share"])


def _measured_kind(gpu: Gpu, constants: Constants) -> GpuKind | None:
    kind, rates = gpu.kind, shipped()
    if kind is None:
        return None
    generation = rates.generation.get(kind.architecture or "other", rates.generation["other"])
    share = rates.matmul_share * generation
    both = (constants.to_device_bytes_per_s, constants.to_host_bytes_per_s)
    host = min((rate for rate in both if rate), default=None)
    moved = constants.bandwidth_bytes_per_s
    return replace(
        kind,
        dense_tflops=kind.dense_tflops | {dtype: rate / share for dtype, rate in constants.matmul_tflops.items()},
        bandwidth_bytes_per_s=moved / rates.bandwidth_share if moved else kind.bandwidth_bytes_per_s,
        pcie_bytes_per_s=host / _ring_share() if host else kind.pcie_bytes_per_s,
    )


def _shift(local: Local, setup: TrainingSetup, spec: ModelSpec, machine: Machine, coverage: float) -> _Shift | None:
    """None where this machine told nothing about the setup's memory."""
    history, moved = local.history(setup, spec, machine), _context_change(local.constants, machine)
    if history is None and local.constants is None:
        return None
    _, published = margins(trust_class(setup, spec, machine.world_size), coverage)
    seen = history.meters.get("allocated_bytes") if history else None
    above = seen.above(published, coverage) if seen else published
    return _Shift(published=published, above=above, shortfall=history.shortfall if history else 0.0, context=moved)


def _context_change(constants: Constants | None, machine: Machine) -> int:
    """Measured context and communicator bytes less the catalogue's; a communicator of as many ranks only."""
    if constants is None or not machine.gpus:
        return 0
    change = 0
    kind = machine.smallest.kind
    if constants.context_bytes is not None:
        change += constants.context_bytes - context_bytes(kind.architecture if kind else None)
    same = machine.nodes == 1 and constants.nccl_ranks == machine.gpus_per_node
    if constants.nccl_bytes is not None and same:
        change += constants.nccl_bytes - nccl_bytes(machine.gpus_per_node, 1, machine.links.nvlink)
    return change


def _intervals(estimate: Estimate, device: int, history: History | None) -> dict[str, tuple[int, int]]:
    """The bounds of each meter, always around its prediction."""
    points = {"allocated_bytes": estimate.allocated_bytes, "reserved_bytes": estimate.reserved_bytes}
    points["device_bytes"] = device
    found = {}
    for meter, (low, high) in estimate.interval.items():
        point = points[meter]
        seen = history.meters.get(meter) if history else None
        low, high = min(low, point), max(high, point)
        found[meter] = _bounds(point, low, high, seen, estimate.coverage) if seen else (low, high)
    return found


def _bounds(point: int, low: int, high: int, seen: Residuals, coverage: float) -> tuple[int, int]:
    above, below = seen.above(high / point - 1, coverage), seen.below(1 - low / point, coverage)
    return int(point * (1 - below)), -int(-point * (1 + above) // 1)


def _said(local: Local, history: History | None, before: Estimate, required: int, shift: _Shift) -> Iterator[str]:
    """What a reader must know: which runs and figures counted, and what they changed."""
    if local.constants is not None:
        yield _said_of_constants(local.constants, shift.context)
    if history is None:
        return
    change = required - before.required_bytes - shift.context
    moved = f", and required bytes change by {_signed(change)}" if change else ""
    yield (
        f"{_runs(history.runs)} on this machine with this engine counted: the bounds follow them{moved} "
        "(`plan history` shows them)"
    )
    yield from _offsets(history.meters)
    if history.ran_out:
        runs = ", ".join(history.ran_out[:3])
        yield (
            f"runs that were to fit ran out of memory here ({runs}), so required bytes are raised by at least "
            f"{history.shortfall:.0%}; if another program had taken the memory, `plan history --forget` them"
        )


def _said_of_constants(constants: Constants, context: int) -> str:
    parts = ["context"] if constants.context_bytes is not None else []
    parts += ["NCCL buffers"] if constants.nccl_bytes is not None else []
    held = [f"{' and '.join(parts)} ({_signed(context)})"] if parts else []
    rates = constants.matmul_tflops or constants.bandwidth_bytes_per_s
    held += ["the speeds of arithmetic, memory and links"] if rates else []
    return f"{' and '.join(held) or 'nothing'} as measured here by `plan calibrate` on {constants.measured_at[:10]}"


def _offsets(meters: Mapping[str, Residuals]) -> Iterator[str]:
    words = {"allocated_bytes": "allocated", "reserved_bytes": "reserved", "device_bytes": "held on the device"}
    for meter, word in words.items():
        offset = meters[meter].offset() if meter in meters else None
        if offset is not None:
            side = "more" if offset > 0 else "less"
            then = "required bytes follow the upper bound" if meter == "allocated_bytes" else "its bounds follow"
            yield (
                f"runs on this machine {word} {abs(offset):.1%} {side} than predicted "
                f"({_runs(meters[meter].runs)}); the estimate is not moved, {then}"
            )


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _signed(size: int) -> str:
    return f"{'-' if size < 0 else '+'}{show_gib(abs(size), digits=2)}"
