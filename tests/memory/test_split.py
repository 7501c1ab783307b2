"""What one GPU holds under tensor, pipeline, context and expert parallelism."""

from __future__ import annotations

from typing import Any

import pytest

from planner.errors import InputError
from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate
from planner.memory.split import Split, split
from planner.model.catalogue import resolve
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup

LLAMA = resolve("Meta-Llama-3-8B")
MIXTRAL = resolve("Mixtral-8x7B-v0.1")


def share(world: int, spec: ModelSpec = LLAMA, **fields: Any) -> Split:
    return split(TrainingSetup(model=spec.id, **fields), spec, world)


def test_without_model_parallelism_nothing_changes() -> None:
    whole = share(8)
    assert whole.spec is LLAMA
    assert (whole.ranks, whole.in_flight) == (8, 1)


def test_tensor_parallelism_divides_heads_widths_and_vocabulary() -> None:
    part = share(8, tensor_parallel=4)
    block = part.spec.runs[0].block
    assert (block.attention.heads, block.attention.kv_heads, block.attention.head_dim) == (8, 2, 128)
    assert block.mlp is not None
    assert block.mlp.width == 14336 // 4
    assert part.spec.vocab == 128256 // 4
    assert part.spec.hidden == 4096  # the residual stream stays whole
    assert part.ranks == 2


def test_key_heads_are_repeated_where_there_are_fewer_than_gpus() -> None:
    assert share(16, tensor_parallel=16).spec.runs[0].block.attention.kv_heads == 1


def test_a_pipeline_stage_holds_its_layers_and_several_micro_batches() -> None:
    part = share(8, pipeline_parallel=4, gradient_accumulation_steps=16)
    assert part.spec.layers == 8
    assert (part.ranks, part.in_flight) == (2, 4)
    assert share(8, pipeline_parallel=4, gradient_accumulation_steps=2).in_flight == 2
    assert share(3, pipeline_parallel=3).spec.layers == 11  # the fullest stage


def test_context_parallelism_divides_the_sequence() -> None:
    part = share(8, context_parallel=8, seq_len=8192)
    assert part.setup.seq_len == 1024
    assert part.spec is LLAMA or part.spec.layers == LLAMA.layers
    assert part.ranks == 1


def test_expert_parallelism_divides_experts() -> None:
    part = share(8, MIXTRAL, expert_parallel=4)
    moe = part.spec.runs[0].block.moe
    assert moe is not None
    assert moe.experts == 2
    assert part.ranks == 8


@pytest.mark.parametrize(
    ("world", "fields", "words"),
    [
        (3, {"tensor_parallel": 2}, r"= 2 does not divide 3 GPUs"),
        (8, {"tensor_parallel": 2, "pipeline_parallel": 8}, r"= 16 does not divide 8 GPUs"),
        (6, {"tensor_parallel": 3}, r"tensor_parallel 3 does not divide 32 attention heads"),
        (8, {"expert_parallel": 3}, r"expert_parallel 3 does not divide the 8 GPUs"),
    ],
)
def test_what_does_not_divide_is_said(world: int, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        share(world, **fields)


def test_experts_that_do_not_divide_are_named() -> None:
    with pytest.raises(InputError, match="does not divide 8 experts"):
        share(16, MIXTRAL, expert_parallel=16)


@pytest.mark.parametrize("field", ["tensor_parallel", "pipeline_parallel", "context_parallel"])
def test_each_kind_saves_memory_and_says_that_nobody_measured_it(field: str) -> None:
    setup = TrainingSetup(model=LLAMA.id, method="lora", seq_len=8192, parallelism="ddp")
    machine = parse_machine("8xA100-80GB")
    whole, part = (estimate(each, LLAMA, machine) for each in (setup, setup.but(**{field: 4})))
    assert part.allocated_bytes < whole.allocated_bytes
    assert any(field in sentence for sentence in part.warnings)
    assert part.total_parameters == whole.total_parameters
