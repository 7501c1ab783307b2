"""What this machine told, brought to the planner (an edge): the one place where history enters a plan.

Nothing is opened, and SQLite not even imported, where there is no store. Nothing here raises: what cannot be read is a
warning, and planning goes on as if there were no history.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from planner.calibrate.place import is_wanted, stamp, store_path

if TYPE_CHECKING:
    from pathlib import Path

    from planner.calibrate.apply import Local
    from planner.hardware.machine import Machine
    from planner.memory.result import Estimate, Price
    from planner.model.spec import ModelSpec
    from planner.plan.plan import Speed
    from planner.training import TrainingSetup

NEWEST = 500  # runs; older ones no longer count


def recall(machine: Machine, engine: str) -> Local | None:
    """Runs and constants of this machine; None where there is none, or history is not wanted.

    A machine of unnamed cards (``3x20GB``) is no machine that anything could have been measured on.
    """
    named = bool(machine.gpus) and all(gpu.kind is not None or gpu.total_bytes is not None for gpu in machine.gpus)
    path = store_path()
    seen = stamp(path) if named and is_wanted() else None
    if seen is None:
        return None
    from planner.calibrate.observation import mark_of

    return _read(path, seen, mark_of(machine).id, engine)


@lru_cache(maxsize=64)
def _read(path: Path, seen: tuple[int, ...], machine_id: str, engine: str) -> Local | None:
    """The store's answer; ``seen`` changes whenever the file does."""
    from planner import __version__
    from planner.calibrate.apply import Local
    from planner.calibrate.constants import constants_from_mapping
    from planner.calibrate.fit import fit
    from planner.calibrate.store import LOCAL, Store
    from planner.errors import PlannerError

    store = Store(path=path)
    try:
        kept = store.observations(machine_id=machine_id, engine=engine, origin=LOCAL, newest=NEWEST)
        document = store.constants(machine_id)
        constants = constants_from_mapping(document) if document else None
    except PlannerError as problem:
        return Local(warnings=(f"{problem.sentence}; planned without it",))
    found = fit((each.observation for each in kept), machine_id=machine_id, engine=engine, release=__version__)
    told = found.classes or found.of_other_releases or constants
    return Local(calibration=found, constants=constants) if told else None


@dataclass(frozen=True)
class Models:
    """``price``, ``estimate`` and ``predict_speed`` of one machine, with what it told."""

    local: Local

    def price(self, setup: TrainingSetup, spec: ModelSpec, machine: Machine, *, coverage: float = 0.99) -> Price:
        """As planner.memory.estimate.price."""
        from planner.calibrate.apply import calibrated_price
        from planner.memory.estimate import price

        plain = price(setup, spec, machine, coverage=coverage)
        return calibrated_price(plain, self.local, setup, spec, machine, coverage)

    def estimate(self, setup: TrainingSetup, spec: ModelSpec, machine: Machine, *, coverage: float = 0.99) -> Estimate:
        """As planner.memory.estimate.estimate."""
        from planner.calibrate.apply import calibrated_estimate
        from planner.memory.estimate import estimate

        plain = estimate(setup, spec, machine, coverage=coverage)
        return calibrated_estimate(plain, self.local, setup, spec, machine)

    def speed(self, setup: TrainingSetup, spec: ModelSpec, machine: Machine) -> Speed | None:
        """As planner.speed.estimate.predict_speed."""
        from planner.calibrate.apply import calibrated_speed, measured_machine
        from planner.speed.estimate import predict_speed

        plain = predict_speed(setup, spec, measured_machine(machine, self.local.constants))
        return calibrated_speed(plain, self.local, setup, spec, machine)
