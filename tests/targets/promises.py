"""What every target must hold to: its files read back to what was settled, and at the price of the plan."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import assume

from planner.emit.folder import plan_files
from planner.errors import UnsupportedError
from planner.hardware.parse import parse_machine
from planner.memory.estimate import price
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Request
from planner.targets import Target
from planner.targets.context import EmitContext
from planner.training import TrainingSetup
from tests.targets.test_llamafactory_round_trip import mostly_default

METHODS = ("full", "lora", "dora", "qlora")


def check_round_trip(
    target: Target, raw: TrainingSetup, context: EmitContext, kept: set[str], stages: tuple[str, ...] = ("pt", "sft")
) -> None:
    method = raw.method if raw.method in METHODS else "lora"
    raw = raw.but(method=method, stage=raw.stage if raw.stage in stages else "sft")
    setup = mostly_default(raw, kept - {"model", "engine", "gpus", "ds_config", "versions"})
    try:
        settled = target.settle(setup, context)
    except UnsupportedError:
        assume(False)
    files = target.files(setup, context) | {"plan.json": json.dumps({"chosen": {"setup": setup.to_dict()}})}
    assert target.read(files, hidden_of=lambda _: context.hidden).setup == settled
    assert target.settle(settled, context) == settled


def check_prices(target: Target, gpus: str, *, engine: str, model: str = "7B", stage: str = "sft") -> None:
    """Three rows at least of a plan's table are emitted, and each is read back to its own price."""
    machine = parse_machine(gpus, "512GB")
    plan = make_plan(Request(model=model, engine=engine, gpus=gpus, stage=stage), resolve(model), machine)
    seen = 0
    for row in (*plan.configurations, *plan.alternatives):
        try:
            files = plan_files(replace(plan, chosen=row))
        except UnsupportedError:
            continue
        back = target.read(files, hidden_of=lambda name: resolve(name).hidden).setup
        assert price(back, resolve(back.model), machine) == price(row.setup, plan.model, machine)
        seen += 1
    assert seen >= 3
