"""A setup and a config.json -> its trace as one JSON object: the rows of the trace matrix, and their fresh samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate, with_parallelism
from planner.memory.result import Estimate
from planner.model.interpret import interpret
from planner.trace.job import Job, job_of
from planner.trace.run import opinion
from planner.training import setup_from_mapping


def job_from(setup: Mapping[str, Any], config: Mapping[str, Any]) -> Job:
    """The job of a row, whose ``setup`` names its ``gpus``. Raises UnsupportedError for what is not traced."""
    machine = parse_machine(str(setup["gpus"]))
    whole = with_parallelism(setup_from_mapping(setup), machine)
    return job_of(whole, _spec(setup, config), config, machine)


def estimate_of(setup: Mapping[str, Any], config: Mapping[str, Any]) -> Estimate:
    """The estimate of a row."""
    machine = parse_machine(str(setup["gpus"]))
    return estimate(setup_from_mapping(setup), _spec(setup, config), machine)


def _spec(setup: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    return replace(interpret(dict(config), id=str(setup["model"])), stored_dtype="bf16")


def detailed_opinion(setup: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Peaks by phase, parameters, what blocks keep, and what traced it. Raises PlannerError."""
    answer = opinion(job_from(setup, config), detailed=True)
    traced = answer.traced
    return {
        "allocated_bytes": traced.allocated_bytes,
        "reserved_bytes": answer.reserved.reserved_peak_bytes,
        "peak_phase": traced.peak_phase,
        "phases": {phase: parts.total for phase, parts in traced.phases.items()},
        "parameters": traced.parameters,
        "trainable_parameters": traced.trainable_parameters,
        **answer.blocks,
        "versions": answer.versions,
    }
