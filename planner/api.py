"""The public functions: the same questions as the commands', asked from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.hardware.machine import Machine
from planner.memory.result import Estimate
from planner.model.spec import ModelSpec
from planner.plan.plan import Plan, Request
from planner.training import AUTO_ENGINE, TrainingSetup

if TYPE_CHECKING:
    from planner.plan.make import Pricing

ENGINES_WITH_RULES = frozenset({"llamafactory", "megatron"})


def estimate(setup: TrainingSetup, machine: Machine | None = None) -> Estimate:
    """The memory of exactly this setup, in bytes per GPU of the worst rank.

    ``machine`` None: the one that ``setup.gpus`` names, else what is probed here. Raises InputError for a model,
    a card or a combination that is not known or not possible.
    """
    from planner.hardware.load import load_machine
    from planner.model.catalogue import resolve

    where = machine or load_machine(gpus=setup.gpus, ram=None, machine_file=None)
    return explain(setup, resolve(setup.model), where)


def explain(setup: TrainingSetup, spec: ModelSpec, machine: Machine, *, replayed: bool = True) -> Estimate:
    """The rules first, then the memory: what the setup's engine would refuse to run is not estimated.

    An engine without rules of its own is priced as plain transformers, so a rule that forbids is a warning there.
    ``replayed`` as in planner.memory.estimate. Raises InputError with the sentence and the id of the rule.
    """
    from dataclasses import replace

    from planner.calibrate.recall import recall
    from planner.search.constraints import violations

    met = [each for each in violations(setup, spec, machine) if each.effect != "ignored"]
    if met and met[0].effect == "forbid" and setup.engine in ENGINES_WITH_RULES:
        raise InputError(f"{met[0].sentence} (rule {met[0].rule_id})")
    local = recall(machine, setup.engine)
    if local is None:
        from planner.memory.estimate import estimate as priced
    else:
        from planner.calibrate.models import Models

        priced = Models(local).estimate
    answer = priced(setup, spec, machine, replayed=replayed)
    remarks = tuple(f"{each.sentence} (rule {each.rule_id})" for each in met)
    return replace(answer, warnings=answer.warnings + remarks) if remarks else answer


def plan(request: Request, machine: Machine | None = None) -> Plan:
    """What fits on ``machine`` (None: ``request.gpus``, else what is probed here), what is best and why.

    A request that nothing fits is answered, not raised: ``verdict`` is then "does_not_fit" and ``chosen`` None.
    Raises InputError.
    """
    from planner.hardware.load import load_machine
    from planner.model.catalogue import resolve

    where = machine or load_machine(gpus=request.gpus, ram=request.ram, machine_file=None)
    return make(request, resolve(request.model), where)


def make(request: Request, spec: ModelSpec, machine: Machine) -> Plan:
    """The plan, with what earlier runs on this machine told (planner.calibrate) where there were any."""
    if request.engine == AUTO_ENGINE:
        from planner.plan.among import plan_among

        return plan_among(request, spec, machine, lambda engine: _pricing(machine, engine))
    from planner.plan.make import make_plan

    found = _pricing(machine, request.engine)
    return make_plan(request, spec, machine, price=found.price, estimate=found.estimate, speed=found.speed)


def _pricing(machine: Machine, engine: str) -> Pricing:
    """The real prices, as this machine's history of the engine has narrowed them."""
    from functools import partial

    from planner.calibrate.recall import recall
    from planner.plan.make import Pricing, real_pricing

    local = recall(machine, engine)
    if local is None:
        return real_pricing()
    from planner.calibrate.models import Models

    known = Models(local)
    return Pricing(known.price, known.speed, partial(known.estimate, replayed=False))  # as make_plan's own


def probe() -> Machine:
    """The hardware here: GPUs with free and total memory, links, host memory, disk. Unknown is None."""
    from planner.hardware.probe import probe as look

    return look()
