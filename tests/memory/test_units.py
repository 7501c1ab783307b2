"""A model cut into units: parameters, trained ones, bytes as held."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from planner.errors import InputError
from planner.memory.regime import resolve_regime
from planner.memory.units import Parts, build_parts
from planner.model.catalogue import resolve
from planner.model.modules import lora_parameters
from planner.training import DTYPE_BYTES, TrainingSetup
from tests.memory.setups import MODELS, any_setup


def parts_of(model: str, **fields: Any) -> Parts:
    setup, spec = TrainingSetup(model=model, **fields), resolve(model)
    return build_parts(setup, spec, resolve_regime(setup, spec))


@pytest.mark.parametrize("model", MODELS)
def test_full_fine_tuning_trains_every_parameter_once(model: str) -> None:
    parts, spec = parts_of(model, method="full"), resolve(model)
    assert parts.trained == parts.total == spec.parameters
    assert sum(unit.count * (unit.trained + unit.frozen) for unit in parts.units) == spec.parameters
    assert parts.held_bytes == 4 * spec.parameters


@pytest.mark.parametrize("model", MODELS)
def test_adapters_leave_the_base_whole(model: str) -> None:
    parts, spec = parts_of(model, method="lora"), resolve(model)
    assert parts.total == spec.parameters + parts.trained
    assert sum(unit.count * unit.frozen for unit in parts.units) == spec.parameters
    stored = DTYPE_BYTES[spec.stored_dtype]  # GPT-2 is published in fp32 and stays so
    assert parts.held_bytes == stored * spec.parameters + 4 * parts.trained


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["full", "lora", "freeze"])
def test_tensors_add_up_to_what_trains(model: str, method: str) -> None:
    parts = parts_of(model, method=method)
    grouped = (*parts.tensors, *parts.whole_tensors)
    assert sum(t.rows * t.cols * t.copies * t.stack for t in grouped) == parts.trained


@pytest.mark.parametrize(
    ("model", "rank", "targets", "trained"),
    [
        ("Meta-Llama-3-8B", 8, "all", 20_971_520),
        ("Meta-Llama-3-8B", 8, ("q_proj", "v_proj"), 3_407_872),
        ("Qwen2.5-7B", 16, "all", 40_370_176),
        ("Qwen2.5-7B", 32, "all", 80_740_352),
        ("Qwen2.5-7B", 64, "all", 161_480_704),
        ("Llama-2-7b-hf", 16, "all", 39_976_960),
        ("Llama-2-7b-hf", 64, "all", 159_907_840),
    ],
)
def test_printed_numbers_of_adapters(model: str, rank: int, targets: Any, trained: int) -> None:
    parts = parts_of(model, method="lora", lora_rank=rank, lora_target=targets)
    assert parts.trained == trained


def test_the_printed_share_of_llama_3() -> None:
    parts = parts_of("Meta-Llama-3-8B", method="lora", lora_rank=8)
    assert parts.total == 8_051_232_768
    assert parts.trained / parts.total == pytest.approx(0.002605, abs=5e-7)


def test_dora_adds_a_magnitude_for_each_output() -> None:
    outputs = 4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096
    more = parts_of("Meta-Llama-3-8B", method="dora").trained - parts_of("Meta-Llama-3-8B", method="lora").trained
    assert more == 32 * outputs


def test_whole_modules_are_copied_beside_adapters() -> None:
    table = 128_256 * 4096
    plain = parts_of("Meta-Llama-3-8B", method="lora")
    parts = parts_of("Meta-Llama-3-8B", method="lora", additional_target=("embed_tokens", "lm_head"))
    assert parts.trained - plain.trained == 2 * table
    assert parts.total - plain.total == 2 * table  # peft keeps the originals
    assert parts.held_bytes - plain.held_bytes == 4 * 2 * table
    assert parts.embedding_trained
    assert parts.head_trained


def test_whole_modules_of_a_tied_model_are_two_copies() -> None:
    table = 151_936 * 896
    plain = parts_of("Qwen2.5-0.5B", method="lora")
    parts = parts_of("Qwen2.5-0.5B", method="lora", additional_target=("embed_tokens", "lm_head"))
    assert parts.trained - plain.trained == 2 * table


@pytest.mark.parametrize("method", ["full", "freeze", "galore", "apollo", "badam"])
def test_whole_modules_mean_nothing_without_adapters(method: str) -> None:
    asked = parts_of("Qwen2.5-0.5B", method=method, additional_target=("embed_tokens", "lm_head"))
    assert asked.trained == parts_of("Qwen2.5-0.5B", method=method).trained


def test_freeze_trains_the_last_layers() -> None:
    parts = parts_of("Meta-Llama-3-8B", method="freeze", freeze_trainable_layers=3)
    assert [(layer.kind, layer.count) for layer in parts.layers] == [("frozen", 29), ("trained", 3)]
    assert not parts.head_trained
    assert not parts.embedding_trained
    everything = parts_of("Meta-Llama-3-8B", method="freeze", freeze_trainable_layers=99)
    assert [(layer.kind, layer.count) for layer in everything.layers] == [("trained", 32)]


def test_badam_trains_one_block_at_a_time() -> None:
    parts = parts_of("Meta-Llama-3-8B", method="badam")
    assert [(layer.kind, layer.count) for layer in parts.layers] == [("trained", 1), ("adapted", 31)]


def test_experts_are_stacked_from_transformers_5_on() -> None:
    """As modules they are reached by "all"; as 3-D parameters they are not."""
    old = {"engine": "transformers", "versions": {"transformers": "4.57"}}
    modules = parts_of("Mixtral-8x7B-v0.1", method="lora", **old)
    stacked = parts_of("Mixtral-8x7B-v0.1", method="lora")
    experts = 32 * 8 * 3 * 8 * (4096 + 14336)
    router = modules.trained - stacked.trained - experts
    assert router == 32 * 8 * (4096 + 8)


@given(asked=any_setup())
@settings(max_examples=60)
def test_no_part_is_negative_and_trained_is_part_of_all(asked: tuple[TrainingSetup, str]) -> None:
    setup, _gpus = asked
    spec = resolve(setup.model)
    try:
        parts = build_parts(setup, spec, resolve_regime(setup, spec))
    except InputError as refusal:
        assert "is no module of" in refusal.sentence
        return
    assert 0 < parts.trained <= parts.total
    assert parts.total >= spec.parameters
    for unit in parts.units:
        assert unit.count > 0
        assert min(unit.frozen, unit.frozen_bytes, unit.trained, unit.largest_trained) >= 0
        assert unit.largest_trained <= unit.trained
        assert unit.held_bytes > 0


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize(
    ("model", "targets"), [("pythia-410m", "all"), ("Llama-3-8B", ("q_proj", "lm_head")), ("Qwen2.5-7B", "all")]
)
def test_trained_adapters_are_those_that_lora_reaches(method: str, model: str, targets: str | tuple[str, ...]) -> None:
    spec = resolve(model)
    setup = TrainingSetup(model=model, method=method, lora_target=targets, lora_rank=16)
    parts = build_parts(setup, spec, resolve_regime(setup, spec))
    assert parts.trained == lora_parameters(spec, 16, setup.lora_target, dora=method == "dora")


def test_bitsandbytes_packs_the_image_side_too() -> None:
    """Linear modules of the tower and the projector; patches, positions, norms and biases keep their 16 bits."""
    tower = resolve("Qwen2.5-VL-7B-Instruct").vision
    assert tower is not None
    whole, packed = (parts_of("Qwen2.5-VL-7B-Instruct", method=method).units[0] for method in ("lora", "qlora"))
    assert whole.frozen == packed.frozen
    left = packed.frozen_bytes - (whole.frozen_bytes - 2 * tower.matrices)
    assert left == pytest.approx(tower.matrices * (0.5 + 1 / 64 + 4 / (64 * 256)), rel=1e-5)
    assert 0.98 < tower.matrices / (tower.parameters + tower.projector_parameters) < 1
