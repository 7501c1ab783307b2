"""One search's desk: prices, speeds and refusals of setups, each looked up once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any, Protocol

from planner.errors import PlannerError
from planner.hardware.machine import Machine
from planner.memory.result import Price
from planner.model.spec import ModelSpec
from planner.plan.plan import Speed
from planner.search.constraints import Laws
from planner.training import FIELD_NAMES, TrainingSetup
from planner.units import show_gib


class PriceFunction(Protocol):
    """``planner.memory.estimate.price``, or something like it."""

    def __call__(self, setup: TrainingSetup, spec: ModelSpec, machine: Machine, *, coverage: float = 0.99) -> Price:
        """Bytes of a setup; required bytes at that coverage."""
        ...


SpeedFunction = Callable[[TrainingSetup, ModelSpec, Machine], "Speed | None"]

# What tells two setups of one search apart (buckets and versions never change within it).
_key: Callable[[TrainingSetup], tuple[Any, ...]] = attrgetter(
    *(name for name in FIELD_NAMES if name not in ("ds_config", "versions"))
)

CONSERVATIVE_SHARE = 0.80


@dataclass(eq=False, repr=False)
class Desk:
    """What the search may ask of the rest: bytes, speed, rules. ``tolerated`` are unproven rules asked for."""

    spec: ModelSpec
    machine: Machine
    price_of: PriceFunction
    speed_of: SpeedFunction
    tolerated: frozenset[str] = frozenset()
    _prices: dict[Any, Price | str] = field(default_factory=dict)
    _looked_at: list[TrainingSetup] = field(default_factory=list)
    _speeds: dict[Any, Speed | None] = field(default_factory=dict)
    _refusals: dict[Any, str | None] = field(default_factory=dict)

    @cached_property
    def _laws(self) -> Laws:
        return Laws(self.spec, self.machine)

    @property
    def capacity_bytes(self) -> int:
        """What a job may use on the GPU that decides."""
        return self.machine.smallest.capacity_bytes

    def price(self, setup: TrainingSetup) -> Price | None:
        """Bytes, or None where the setup cannot be priced."""
        found = self._priced(setup)
        return None if isinstance(found, str) else found

    def looked_at(self) -> tuple[TrainingSetup, ...]:
        """Every setup that was priced, or found to have no price."""
        return tuple(self._looked_at)

    def problem(self, setup: TrainingSetup) -> str | None:
        """Why the setup cannot be priced, or None."""
        found = self._priced(setup)
        return found if isinstance(found, str) else None

    def need(self, setup: TrainingSetup) -> int | None:
        """Required bytes at coverage 0.99, or None where the setup cannot be priced."""
        found = self._priced(setup)
        return None if isinstance(found, str) else found.required_bytes

    def speed(self, setup: TrainingSetup) -> Speed | None:
        """Predicted throughput, or None where nothing is known of it."""
        key = _key(setup)
        if key not in self._speeds:
            self._speeds[key] = self.speed_of(setup, self.spec, self.machine)
        return self._speeds[key]

    def slowdown(self, before: TrainingSetup, after: TrainingSetup) -> float | None:
        """How many times longer a token takes after; below 1 is faster."""
        first, second = self.speed(before), self.speed(after)
        return first.tokens_per_s / second.tokens_per_s if first and second else None

    def refusal(self, setup: TrainingSetup) -> str | None:
        """The rule that keeps the setup from being recommended, or None."""
        key = _key(setup)
        if key not in self._refusals:
            self._refusals[key] = self._laws.refusal(setup, self.tolerated)
        return self._refusals[key]

    def host_refusal(self, setup: TrainingSetup) -> str | None:
        """Why the host's memory or disk does not do; None if they do or are unknown."""
        price = self.price(setup)
        return None if price is None else host_refusal(price, self.machine)

    def fits(self, setup: TrainingSetup, limit_bytes: int, *, coverage: float = 0.99) -> bool:
        """True if the required bytes at that coverage stay within the limit, and the host holds its part."""
        price = self.price(setup)
        if price is None or self.host_refusal(setup) is not None:
            return False
        if price.required_bytes <= limit_bytes or coverage >= 0.99:
            return price.required_bytes <= limit_bytes
        hopeless = price.allocated_bytes + price.context_bytes > limit_bytes
        return not hopeless and self._required_at(setup, coverage) <= limit_bytes

    def _required_at(self, setup: TrainingSetup, coverage: float) -> int:
        key = (*_key(setup), coverage)
        if key not in self._prices:
            self._prices[key] = self.price_of(setup, self.spec, self.machine, coverage=coverage)
        found = self._prices[key]
        return self.capacity_bytes + 1 if isinstance(found, str) else found.required_bytes

    def _priced(self, setup: TrainingSetup) -> Price | str:
        key = _key(setup)
        if key not in self._prices:
            self._looked_at.append(setup)
            try:
                self._prices[key] = self.price_of(setup, self.spec, self.machine)
            except PlannerError as problem:
                self._prices[key] = problem.sentence
        return self._prices[key]


def host_refusal(price: Price, machine: Machine) -> str | None:
    """Why a machine's host memory or disk does not do for what a setup needs; None if they do or are unknown."""
    capacity = machine.smallest.capacity_bytes
    if machine.unified and price.host_bytes + price.required_bytes > capacity:
        return (
            f"GPU and host share one memory, {show_gib(capacity)}, and need "
            f"{show_gib(price.required_bytes)} and {show_gib(price.host_bytes)} of it"
        )
    room, disk = machine.host_room_bytes, machine.disk_free_bytes
    if room is not None and price.host_bytes > room:
        return f"it needs {show_gib(price.host_bytes)} of host memory a node, and {_there_is(machine)}"
    if disk is not None and price.least_disk_bytes > disk:
        return (
            f"it needs {show_gib(price.least_disk_bytes)} of disk a node with one checkpoint kept, "
            f"and {show_gib(disk)} are free"
        )
    return None


def _there_is(machine: Machine) -> str:
    total, room = machine.ram_bytes, machine.host_room_bytes or 0
    if total is None or room >= total:
        return f"there are {show_gib(room)}"
    return f"{show_gib(room)} of {show_gib(total)} are free"
