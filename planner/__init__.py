"""vramplan: what fits, what is fastest among what fits, why, and the folder to run.

The public names are imported on first use, so that ``import planner`` stays light:

    planner.estimate(TrainingSetup(model="7B", gpus="1xA100-80GB")) -> Estimate
    planner.plan(Request(model="7B"), machine) -> Plan
    planner.probe() -> Machine
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.api import estimate, plan, probe
    from planner.hardware.machine import Machine
    from planner.memory.result import Estimate
    from planner.plan.plan import Plan, Request
    from planner.training import TrainingSetup

__version__ = "0.1.0"
__all__ = ["Estimate", "Machine", "Plan", "Request", "TrainingSetup", "__version__", "estimate", "plan", "probe"]

# `plan` is a room of its own (planner/plan), which is callable: see its __init__.
_HOMES = {
    "Estimate": "planner.memory.result",
    "Machine": "planner.hardware.machine",
    "Plan": "planner.plan.plan",
    "Request": "planner.plan.plan",
    "TrainingSetup": "planner.training",
    "estimate": "planner.api",
    "probe": "planner.api",
}


def __getattr__(name: str) -> Any:
    if name == "plan":
        return importlib.import_module("planner.plan")
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
