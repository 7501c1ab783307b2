"""The public functions: the same questions as the commands', asked from Python."""

from __future__ import annotations

from planner.hardware.machine import Machine
from planner.memory.result import Estimate
from planner.plan.plan import Plan, Request
from planner.training import TrainingSetup


def estimate(setup: TrainingSetup, machine: Machine | None = None) -> Estimate:
    """The memory of exactly this setup, in bytes per GPU of the worst rank.

    ``machine`` None: the one that ``setup.gpus`` names, else what is probed here. Raises InputError for a model,
    a card or a combination that is not known or not possible.
    """
    from planner.hardware.load import load_machine
    from planner.memory.estimate import estimate as explained
    from planner.model.catalogue import resolve

    where = machine or load_machine(gpus=setup.gpus, ram=None, machine_file=None)
    return explained(setup, resolve(setup.model), where)


def plan(request: Request, machine: Machine | None = None) -> Plan:
    """What fits on ``machine`` (None: ``request.gpus``, else what is probed here), what is best and why.

    A request that nothing fits is answered, not raised: ``verdict`` is then "does_not_fit" and ``chosen`` None.
    Raises InputError.
    """
    from planner.hardware.load import load_machine
    from planner.model.catalogue import resolve
    from planner.plan.make import make_plan

    where = machine or load_machine(gpus=request.gpus, ram=request.ram, machine_file=None)
    return make_plan(request, resolve(request.model), where)


def probe() -> Machine:
    """The hardware here: GPUs with free and total memory, links, host memory, disk. Unknown is None."""
    from planner.hardware.probe import probe as look

    return look()
