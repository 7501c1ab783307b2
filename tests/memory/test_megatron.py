"""Megatron-core under LLaMA-Factory's adapter: 6 + 12 / d bytes a parameter, and the one published figure."""

from __future__ import annotations

from typing import Any

import pytest

from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate
from planner.memory.overhead import trust_class
from planner.memory.split import split
from planner.model.catalogue import resolve
from planner.model.count import count
from planner.training import TrainingSetup
from planner.units import GIB

MACHINE = parse_machine("8xA100-80GB", "2TB")


def megatron(model: str, **fields: Any) -> TrainingSetup:
    return TrainingSetup(model=model, engine="megatron", method="full", parallelism="zero1", **fields)


@pytest.mark.parametrize(("tensor", "context", "replicas"), [(1, 1, 8), (4, 1, 2), (8, 1, 1), (2, 2, 4)])
def test_bytes_of_a_parameter(tensor: int, context: int, replicas: int) -> None:
    """Weights in 16 bit, gradients in fp32, twelve bytes of states over those that hold the same parameters."""
    spec = resolve("Meta-Llama-3-8B")
    setup = megatron(spec.id, tensor_parallel=tensor, context_parallel=context)
    held = count(split(setup, spec, 8).spec).total
    parts = estimate(setup, spec, MACHINE).phases["optimizer"]
    assert parts.weights == 2 * held
    assert parts.gradients == 4 * held
    assert parts.optimizer == pytest.approx(12 * held / replicas, rel=1e-6)


def test_llamafactorys_own_example_is_met() -> None:
    """examples/megatron/qwen3_moe_full.yaml: "GPU memory: 8 * 78GB"; experts have no replicas there."""
    spec = resolve("Qwen3-30B-A3B")
    setup = megatron(
        spec.id, pipeline_parallel=4, expert_parallel=2, seq_len=4096, gradient_accumulation_steps=8
    )  # fmt: skip
    assert estimate(setup, spec, MACHINE).device_bytes == pytest.approx(78 * GIB, rel=0.05)


def test_sequence_parallelism_divides_what_layers_hand_on() -> None:
    spec = resolve("Meta-Llama-3-8B")
    long = {"seq_len": 32768}
    whole = estimate(megatron(spec.id, **long), spec, MACHINE).phases["loss"].activations
    cut = estimate(megatron(spec.id, tensor_parallel=8, **long), spec, MACHINE).phases["loss"].activations
    inputs = 32 * 2 * 4096 * 32768
    assert whole - cut == pytest.approx(inputs * 7 / 8, rel=0.05)


def test_it_says_what_was_not_run() -> None:
    said = estimate(megatron("Meta-Llama-3-8B"), resolve("Meta-Llama-3-8B"), MACHINE).warnings
    assert any("Megatron adapter was not run here" in each for each in said)
    assert not any("no rules of its own" in each for each in said)


def test_it_is_trusted_as_little_as_an_engine_without_rules() -> None:
    spec = resolve("Meta-Llama-3-8B")
    assert trust_class(megatron(spec.id, tensor_parallel=2), spec, 8) == "foreign_sharded"
