"""Checkpointing of every n-th layer: a choice where the engine can run it, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from planner.emit.folder import plan_files
from planner.errors import InputError
from planner.hardware.parse import parse_machine
from planner.memory.estimate import price
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request
from planner.search.spend import numbers_of_layers
from planner.targets import TARGETS
from planner.training import setup_from_mapping

JOBS = (("Qwen2.5-0.5B", "quality"), ("7B", "speed"), ("7B", "memory"), ("Qwen2.5-32B", "quality"))


def plan(gpus: str, model: str = "7B", engine: str = "embedded", **fields: Any) -> Plan:
    return make_plan(Request(model=model, gpus=gpus, engine=engine, **fields), resolve(model), parse_machine(gpus))


def test_every_number_of_layers_is_met_once() -> None:
    for layers in (1, 2, 3, 7, 28, 80):
        every = numbers_of_layers(layers)
        assert sorted(layers // n for n in every) == sorted({layers // n for n in range(2, layers + 1)})
        assert list(every) == sorted(every, reverse=True)


def test_more_layers_need_less_memory_and_more_time() -> None:
    from planner.speed.estimate import predict_speed

    spec, machine = resolve("gemma-2-9b"), parse_machine("1xA100-80GB")  # its layers alternate: forty runs of one
    for method in ("full", "lora", "qlora"):
        fields = {"method": method, "micro_batch_size": 4, "seq_len": 2048, "parallelism": "none"}
        setup = setup_from_mapping({"model": "gemma-2-9b", "engine": "embedded", **fields}, place="a test")
        held: list[Any] = [True, *reversed(numbers_of_layers(spec.layers)), False]
        tried = [setup.but(gradient_checkpointing=how) for how in held]
        needs = [price(each, spec, machine).allocated_bytes for each in tried]
        speeds = [speed.tokens_per_s for each in tried if (speed := predict_speed(each, spec, machine))]
        assert needs == sorted(needs) and len(set(needs)) > 5
        assert speeds == sorted(speeds)


def test_some_layers_are_left_out_where_that_is_faster_than_all() -> None:
    answer = plan("1xRTX4090")
    assert answer.chosen is not None and answer.chosen.speed is not None
    how = answer.chosen.setup.gradient_checkpointing
    assert type(how) is int and how >= 2
    told = next(each for each in answer.ladder if each.id == "partial-checkpointing")
    assert told.applied
    assert f"checkpointing of one layer in {how}" in answer.reasons[0]
    whole = plan("1xRTX4090", forbid=frozenset({"partial-checkpointing"})).chosen
    assert whole is not None and whole.speed is not None
    assert isinstance(whole.setup.gradient_checkpointing, bool)
    assert whole.speed.tokens_per_s < answer.chosen.speed.tokens_per_s


def test_an_engine_that_cannot_leave_layers_out_says_so() -> None:
    answer = plan("1xRTX4090", engine="llamafactory")
    assert answer.chosen is not None and isinstance(answer.chosen.setup.gradient_checkpointing, bool)
    told = next(each for each in answer.ladder if each.id == "partial-checkpointing")
    assert told.reason == "does not apply: it needs an engine that can leave layers out"
    with pytest.raises(InputError, match="--require partial-checkpointing: does not apply"):
        plan("1xRTX4090", engine="llamafactory", require=frozenset({"partial-checkpointing"}))
    with pytest.raises(InputError, match="exclude each other"):
        plan("1xRTX4090", require=frozenset({"partial-checkpointing", "checkpointing"}))


@pytest.mark.parametrize("engine", sorted(TARGETS))
@pytest.mark.parametrize("gpus", ["1xT4", "2xV100-16GB", "1xRTX4090", "3x20GB", "8xA100-80GB", "2x8xH100-80GB"])
def test_what_is_chosen_can_be_written(engine: str, gpus: str) -> None:
    if engine == "megatron" and parse_machine(gpus).smallest.has_bf16 is False:
        with pytest.raises(InputError, match="rule mca-fp16"):
            plan(gpus, JOBS[0][0], engine)
        return
    written = 0
    for model, objective in JOBS:
        answer = plan(gpus, model, engine, objective=objective)
        written += answer.chosen is not None and len(plan_files(answer)) > 3
    assert written


@pytest.mark.parametrize("gpus", ["2xV100-16GB", "3x20GB"])
def test_what_no_run_of_our_own_sharding_has_shown_is_not_chosen(gpus: str) -> None:
    """FSDP2 and what the script's fully_shard has never run with: the plan is another one, and can be written."""
    for allow in ({"fsdp2"}, {"fsdp2", "adamw-8bit"}, {"fsdp2", "offload-params"}):
        answer = plan(gpus, "Qwen2.5-32B", allow=frozenset(allow))
        assert answer.chosen is None or plan_files(answer)
