"""The planner's models of one machine, with what it told: what a search asks instead of the plain ones. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.calibrate.apply import (
    Local,
    calibrated_estimate,
    calibrated_price,
    calibrated_speed,
    measured_machine,
)
from planner.hardware.machine import Machine
from planner.memory.estimate import estimate, price
from planner.memory.result import Estimate, Price
from planner.model.spec import ModelSpec
from planner.plan.plan import Speed
from planner.speed.estimate import predict_speed
from planner.training import TrainingSetup


@dataclass(frozen=True)
class Models:
    """``price``, ``estimate`` and ``predict_speed`` of one machine, with what it told."""

    local: Local

    def price(self, setup: TrainingSetup, spec: ModelSpec, machine: Machine, *, coverage: float = 0.99) -> Price:
        """As planner.memory.estimate.price."""
        plain = price(setup, spec, machine, coverage=coverage)
        return calibrated_price(plain, self.local, setup, spec, machine, coverage)

    def estimate(
        self, setup: TrainingSetup, spec: ModelSpec, machine: Machine, *, coverage: float = 0.99, replayed: bool = True,
        lengths: Sequence[int] = (),
    ) -> Estimate:  # fmt: skip
        """As planner.memory.estimate.estimate."""
        plain = estimate(setup, spec, machine, coverage=coverage, replayed=replayed, lengths=lengths)
        return calibrated_estimate(plain, self.local, setup, spec, machine)

    def speed(self, setup: TrainingSetup, spec: ModelSpec, machine: Machine) -> Speed | None:
        """As planner.speed.estimate.predict_speed."""
        plain = predict_speed(setup, spec, measured_machine(machine, self.local.constants))
        return calibrated_speed(plain, self.local, setup, spec, machine)
