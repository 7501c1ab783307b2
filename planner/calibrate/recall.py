"""What this machine told, brought to the planner (an edge): the one place where history enters a plan.

Nothing is opened, and SQLite not even imported, where there is no store. Nothing here raises: what cannot be read is a
warning, and planning goes on as if there were no history.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from planner.calibrate.place import is_wanted, stamp, store_path

if TYPE_CHECKING:
    from pathlib import Path

    from planner.calibrate.apply import Local
    from planner.calibrate.constants import Constants
    from planner.hardware.machine import Machine

NEWEST = 100  # runs; older ones no longer count, so that reading them stays a matter of milliseconds


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
    from planner.calibrate.fit import fit
    from planner.calibrate.store import LOCAL, Store
    from planner.errors import PlannerError

    store = Store(path=path)
    try:
        kept = store.observations(machine_id=machine_id, engine=engine, origin=LOCAL, newest=NEWEST)
        document = store.constants(machine_id)
        constants = _constants(document) if document else None
    except PlannerError as problem:
        return Local(warnings=(f"{problem.sentence}; planned without it",))
    found = fit((each.observation for each in kept), machine_id=machine_id, engine=engine, release=__version__)
    told = found.classes or found.of_other_releases or constants
    return Local(calibration=found, constants=constants) if told else None


def _constants(document: dict[str, Any]) -> Constants:
    from planner.calibrate.constants import constants_from_mapping

    return constants_from_mapping(document)
