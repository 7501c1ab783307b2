"""Over the whole ladder: what is emitted costs, byte for byte, what was priced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import pytest

from planner.emit.folder import plan_files
from planner.errors import InputError
from planner.hardware.parse import parse_machine
from planner.memory.estimate import price
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Configuration, Plan, Request
from planner.search.rungs import load_ladder
from planner.targets import TARGETS

RUNGS = [rung.id for rung in load_ladder().rungs]
SHARDING = frozenset({"zero1", "zero2", "zero3", "fsdp", "fsdp2"})  # for several GPUs
HARDWARE = (("3x20GB", "256GB"), ("1x24GB", "64GB"), ("8xA100-80GB", "1024GB"), ("2x8xH100-80GB", "1024GB"))


@lru_cache(maxsize=256)
def planned(gpus: str, ram: str, rung: str | None, stage: str = "sft") -> Plan | None:
    """The plan that takes a rung, or None where the rung cannot be taken on that hardware."""
    request = Request(
        model="7B", stage=stage, gpus=gpus, ram=ram, require=frozenset({rung} if rung else ()), global_batch=48
    )
    try:
        return make_plan(request, resolve("7B"), parse_machine(gpus, ram))
    except InputError:
        return None


def rows(plan: Plan) -> Iterator[Configuration]:
    yield from plan.configurations
    yield from plan.alternatives
    if plan.chosen is not None:
        yield plan.chosen


def assert_costs_the_same(plan: Plan, row: Configuration) -> None:
    files = plan_files(replace(plan, chosen=row))
    back = TARGETS["llamafactory"].read(files, hidden_of=lambda model: resolve(model).hidden).setup
    assert price(back, resolve(back.model), plan.machine) == price(row.setup, plan.model, plan.machine), row.setup


@pytest.mark.parametrize("rung", [None, *RUNGS])
def test_every_rung_is_emitted_at_its_price(rung: str | None) -> None:
    seen = 0
    for gpus, ram in HARDWARE:
        plan = None if gpus.startswith("1x") and rung in SHARDING else planned(gpus, ram, rung)
        for row in rows(plan) if plan is not None else ():
            assert_costs_the_same(plan, row)
            seen += 1
    assert seen or rung in CANNOT_BE_REQUIRED


# Rungs that no plan above takes: fp16 is for cards without bf16, and LLaMA-Factory checkpoints all layers or none; both
# are tested below.
CANNOT_BE_REQUIRED = {"fp16-compute", "partial-checkpointing"}


def test_checkpointing_of_some_layers_is_emitted_at_its_price() -> None:
    request = Request(model="7B", gpus="1x24GB", engine="embedded", require=frozenset({"partial-checkpointing"}))
    plan = make_plan(request, resolve("7B"), parse_machine("1x24GB"))
    assert plan.chosen is not None
    how = plan.chosen.setup.gradient_checkpointing
    assert type(how) is int and how >= 2
    back = TARGETS["embedded"].read(plan_files(plan), hidden_of=lambda model: resolve(model).hidden).setup
    assert back.gradient_checkpointing == how
    assert price(back, resolve(back.model), plan.machine) == price(plan.chosen.setup, plan.model, plan.machine)


def test_a_card_without_bf16_gets_fp16() -> None:
    plan = planned("4xV100-32GB", "256GB", None)
    assert plan is not None
    assert plan.chosen is not None
    assert_costs_the_same(plan, plan.chosen)
    assert "\nfp16: true\n" in plan_files(plan)["train.yaml"]


@pytest.mark.parametrize("stage", ["pt", "dpo", "orpo", "simpo", "kto", "rm"])
def test_every_stage_is_emitted_at_its_price(stage: str) -> None:
    plan = planned("8xA100-80GB", "1024GB", None, stage)
    assert plan is not None
    for row in rows(plan):
        assert_costs_the_same(plan, row)
