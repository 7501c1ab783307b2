"""Observations for the tests: real predictions beside figures made from them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from planner.calibrate.observation import Measured, Observation, mark_of, predicted_of
from planner.hardware.machine import Machine
from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate
from planner.model.catalogue import resolve
from planner.speed.estimate import predict_speed
from planner.training import TrainingSetup

GPUS = "1xRTX4090"


@lru_cache(maxsize=64)
def predicted(setup_words: tuple[tuple[str, Any], ...], gpus: str) -> tuple[TrainingSetup, Machine, Any]:
    setup, machine = TrainingSetup(gpus=gpus, **dict(setup_words)), parse_machine(gpus, None)
    spec = resolve(setup.model)
    priced, speed = estimate(setup, spec, machine), predict_speed(setup, spec, machine)
    return setup, machine, predicted_of(setup, spec, machine, priced, speed)


def observed(
    number: int = 1,
    off: float = 0.0,
    *,
    outcome: Any = "finished",
    meters: tuple[str, ...] = ("allocated_bytes",),
    gpus: str = GPUS,
    note: str = "",
    **fields: Any,
) -> Observation:
    """Run ``number`` (its length differs with it), whose meters read ``off`` more than predicted."""
    words = {"model": "Qwen2.5-7B", "method": "qlora", "seq_len": 256 + 8 * number} | fields
    setup, machine, said = predicted(tuple(sorted(words.items())), gpus)
    used = {meter: round(getattr(said, meter) * (1 + off)) for meter in meters}
    return Observation(
        run_id=f"run-{number}",
        started_at=f"2026-11-{1 + number % 28:02d}T09:30:00Z",
        engine=setup.engine,
        machine=mark_of(machine),
        setup=setup.to_dict(),
        predicted=said,
        measured=Measured(**used),
        outcome=outcome,
        versions={"torch": "2.13.0"},
        note=note,
    )
