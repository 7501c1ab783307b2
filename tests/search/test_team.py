"""Different cards, and cards that others use: all take part, or those that together do better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.emit.folder import plan_files
from planner.hardware.machine import Machine
from planner.hardware.observed import machine_from_answer
from planner.hardware.parse import parse_machine
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request
from planner.search.crews import MOST_CREWS, crews

ANSWERS = Path(__file__).parent.parent / "hardware" / "answers"


def probed(name: str, **environment: str) -> Machine:
    raw = json.loads((ANSWERS / f"{name}.json").read_text(encoding="utf-8"))
    return machine_from_answer({**raw, "environment": environment})


def plan(gpus: str, model: str = "7B", **fields: Any) -> Plan:
    return make_plan(Request(model=model, gpus=gpus, **fields), resolve(model), parse_machine(gpus))


def left_out(answer: Plan) -> list[str]:
    return [reason for reason in answer.reasons if "left out" in reason]


def test_equal_cards_have_no_crews_whatever_little_they_differ_in_free_memory() -> None:
    assert list(crews(parse_machine("8xH100-80GB"))) == []
    machine = parse_machine("4x24GB")
    gpus = [replace(gpu, capacity_bytes=gpu.capacity_bytes - gpu.index * 2**27) for gpu in machine.gpus]
    assert list(crews(replace(machine, gpus=tuple(gpus)))) == []


def test_crews_leave_out_the_smallest_and_the_slowest() -> None:
    found = [[gpu.index for gpu in crew.gpus] for crew in crews(parse_machine("2xRTX3090,1xRTX4060,1xRTX4090"))]
    assert found == [[0, 1, 3], [3]]


def test_few_crews_are_tried_however_many_sizes_there_are() -> None:
    many = parse_machine(",".join(f"1x{size}GB" for size in (8, 10, 12, 16, 20, 24, 32, 40, 48, 80)))
    assert 0 < len(list(crews(many))) <= MOST_CREWS


def test_a_small_card_that_would_decide_is_left_out() -> None:
    answer = plan("2xRTX3090,1xRTX4060")
    assert answer.chosen is not None
    assert answer.chosen.setup.gpus == "2xRTX3090"
    assert answer.chosen.method_class == "lora"
    assert len(answer.machine.gpus) == 2
    assert answer.request.gpus == "2xRTX3090,1xRTX4060"
    (why,) = left_out(answer)
    assert "gpu 2 (NVIDIA GeForce RTX 4060, 7.8 GiB) is left out" in why
    script = plan_files(answer)["launch.sh"]
    assert 'CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0,1}"' in script
    assert "NPROC_PER_NODE=2" in script


def test_a_slow_card_that_would_hold_fast_ones_up_is_left_out() -> None:
    """A T4 beside an L40S: with it everything runs at the T4's pace, in fp16."""
    answer = plan("2xL40S,1xT4", "Qwen2.5-0.5B")
    assert answer.chosen is not None
    assert answer.chosen.setup.gpus == "2xL40S"
    assert answer.chosen.setup.compute_dtype == "bf16"


def test_a_card_that_helps_stays_and_why_is_said() -> None:
    answer = plan("2xRTX3090,1xRTX4090")
    assert len(answer.machine.gpus) == 3
    assert not left_out(answer)
    assert any("these cards differ" in reason for reason in answer.reasons)


def test_what_needs_every_card_keeps_every_card() -> None:
    answer = plan("1xRTX4090,1xRTX4060", "Qwen2.5-0.5B", require={"fsdp"})  # nothing is sharded on one card
    assert len(answer.machine.gpus) == 2


@pytest.mark.parametrize("objective", ["quality", "speed", "memory"])
def test_leaving_cards_out_is_never_worse(objective: str) -> None:
    """As good a plan exists on the chosen cards alone, and the whole machine has no faster one of its class."""
    answer = plan("1xA100-80GB,2xRTX3090", objective=objective)
    assert answer.chosen is not None
    alone = plan(str(answer.chosen.setup.gpus), objective=objective)
    assert alone.chosen is not None
    assert alone.chosen.setup == answer.chosen.setup


def test_a_card_that_someone_else_uses_is_left_out_of_a_probed_machine() -> None:
    machine = probed("busy")  # 8.8 GiB free on the first card, 19.5 GiB on the second
    answer = make_plan(Request(model="7B"), resolve("7B"), machine)
    assert [gpu.index for gpu in answer.machine.gpus] == [1]
    (why,) = left_out(answer)
    assert "gpu 0 (NVIDIA GeForce RTX 4090, 8.8 GiB)" in why
    assert 'CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-1}"' in plan_files(answer)["launch.sh"]


def test_a_mig_slice_is_planned_for_by_its_own_size_and_name() -> None:
    machine = probed("mig")
    answer = make_plan(Request(model="Qwen2.5-0.5B"), resolve("Qwen2.5-0.5B"), machine)
    assert answer.chosen is not None
    (gpu,) = answer.machine.gpus
    assert gpu.mig and gpu.uuid is not None
    assert answer.chosen.estimate.required_bytes <= gpu.capacity_bytes
    assert f"CUDA_VISIBLE_DEVICES:-{gpu.uuid}" in plan_files(answer)["launch.sh"]


def test_unified_memory_holds_the_job_twice_over() -> None:
    """A GB10 reports no memory of its own: what is free of the host's is the GPU's, and the host's part too."""
    machine = probed("unified")
    (gpu,) = machine.gpus
    assert gpu.kind is not None and gpu.kind.unified
    assert gpu.capacity_bytes == gpu.free_bytes == machine.ram_free_bytes == 118_566_368 * 1024
    answer = make_plan(Request(model="7B"), resolve("7B"), machine)
    assert answer.chosen is not None
    needed = answer.chosen.estimate
    assert needed.required_bytes + needed.host_bytes <= gpu.capacity_bytes
    offloaded = make_plan(
        Request(model="7B", method="full", require=frozenset({"offload-optimizer"})), resolve("7B"), machine
    )
    assert offloaded.chosen is None
    assert any("GPU and host share one memory" in each for each in (*offloaded.reasons, *offloaded.warnings))
