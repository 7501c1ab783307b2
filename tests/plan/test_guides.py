"""What field guides promise, planned for real: their presets, their tables, and what is wrong with them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from planner.errors import InputError
from planner.hardware.parse import parse_machine
from planner.model.catalogue import resolve
from planner.plan.guides import rule_of_thumb
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request

GB = 10**9


@cache
def _plan(
    gpus: str, model: str, ram: str | None, items: tuple[tuple[str, Any], ...], pins: tuple[tuple[str, Any], ...]
) -> Plan:
    request = Request(model=model, gpus=gpus, ram=ram, pinned=dict(pins), **dict(items))
    return make_plan(request, resolve(model), parse_machine(gpus, ram))


def plan(
    gpus: str, model: str = "Qwen2.5-7B", ram: str | None = None, pinned: dict[str, Any] | None = None, **fields: Any
) -> Plan:
    return _plan(gpus, model, ram, tuple(fields.items()), tuple((pinned or {}).items()))


def the_full_one(answer: Plan) -> str:
    return next(each for each in answer.reasons if each.startswith("full fine-tuning"))


def test_three_20_gb_cards_do_not_train_all_of_a_7b() -> None:
    """A workstation guide calls its hardware entirely enough; states alone are 113 GiB, a third of it 38 a card."""
    answer = plan("3x20GB", ram="12GB")
    assert answer.verdict == "fits"
    assert answer.chosen is not None
    assert answer.chosen.method_class == "lora"
    full = the_full_one(answer)
    assert "does not fit" in full
    assert "113.5 GiB on one GPU, 37.8 GiB sharded over 3 GPUs" in full
    assert "offload is ruled out too" in full
    assert "there are 12.0 GiB" in full


@pytest.mark.parametrize(
    ("sharding", "fits", "too_large"),
    [("ddp", 0.9e9, 1.2e9), ("zero2", 2.6e9, 3.4e9), ("zero3", 3.2e9, 4.0e9)],
)
def test_what_three_20_gb_cards_hold_by_states_alone(sharding: str, fits: float, too_large: float) -> None:
    """20 bytes a parameter under DDP (with its buckets), 2 + 14/3 and more under ZeRO-2, 16/3 and more under ZeRO-3."""
    capacity = parse_machine("3x20GB").smallest.capacity_bytes
    each = {"ddp": 20.0, "zero2": 2 + 14 / 3, "zero3": 16 / 3}[sharding]
    assert each * fits < capacity < each * too_large


def test_the_same_cards_train_all_of_a_small_model() -> None:
    answer = plan("3x20GB", model="Qwen2.5-0.5B")
    assert answer.chosen is not None
    assert answer.chosen.method_class == "full"


def test_profiles_come_with_a_predicted_throughput() -> None:
    """A guide promises 1,500 samples/s at length 512 on three RTX 3080; a 7B stays below 20."""
    answer = plan("3xRTX3080-20GB", seq_len=512)
    profiles = {row.profile for row in answer.configurations}
    assert profiles == {"conservative", "recommended", "aggressive"}
    for row in answer.configurations:
        assert row.speed is not None
        assert 1 < row.speed.tokens_per_s / 512 < 30
        assert row.speed.low_tokens_per_s < row.speed.tokens_per_s < row.speed.high_tokens_per_s


def test_preset_of_one_24_gb_card_fits() -> None:
    pins = {"lora_rank": 16, "micro_batch_size": 1, "liger_kernel": True, "attention": "flash_attention_2"}
    answer = plan("1x24GB", method="lora", global_batch=8, pinned=pins)
    assert answer.verdict == "fits"
    assert answer.chosen is not None
    assert answer.chosen.setup.gradient_accumulation_steps == 8


def test_preset_of_two_48_gb_cards_fits_at_33_gb() -> None:
    pins = {
        "lora_rank": 32,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "liger_kernel": False,
        "parallelism": "ddp",
        "gradient_checkpointing": True,
    }
    answer = plan("2x48GB", method="lora", seq_len=4096, pinned=pins)
    assert answer.verdict == "fits"
    assert answer.chosen is not None
    assert 32.5 * GB < answer.chosen.estimate.allocated_bytes < 34.5 * GB


def test_the_guides_formula_is_shown_beside_the_figure() -> None:
    guide = rule_of_thumb(7 * GB, samples=1, seq_tokens=2048)
    assert guide.words() == "14 + 28 + 5 + 1.5 = 48.5 GB"
    told = next(each for each in plan("3x20GB").reasons if "rule of thumb" in each)
    assert "15.2 + 30.5 + 5 + 1.5 = 52.2 GB" in told
    ours = int(told.rpartition("it is ")[2].removesuffix(" GB"))
    assert 120 < ours < 180


PRESET_80 = {"micro_batch_size": 4, "gradient_accumulation_steps": 4, "liger_kernel": False, "parallelism": "ddp"}


def test_preset_of_80_gb_cards_is_not_safe_without_liger() -> None:
    answer = plan("8x80GB", method="lora", seq_len=8192, pinned={**PRESET_80, "lora_rank": 64})
    assert answer.verdict != "fits"
    shown = answer.chosen or answer.nearest_miss
    assert shown is not None
    assert shown.estimate.breakdown.logits == pytest.approx(59.8 * GB, rel=0.001)


def test_or_full_on_80_gb_cards_is_refused_by_states() -> None:
    answer = plan("8x80GB", method="full", seq_len=8192, pinned=PRESET_80)
    assert answer.verdict == "does_not_fit"
    assert answer.nearest_miss is not None
    parts = answer.nearest_miss.estimate.breakdown
    assert parts.weights + parts.gradients + parts.optimizer == pytest.approx(121.8 * GB, rel=0.001)


def test_eight_80_gb_cards_train_all_of_a_7b() -> None:
    answer = plan("8xA100-80GB")
    assert answer.chosen is not None
    assert answer.chosen.method_class == "full"
    assert answer.chosen.setup.parallelism != "ddp"


def test_states_that_fit_one_gpu_are_not_sharded() -> None:
    answer = plan("2xRTX3090", model="Qwen2.5-0.5B")
    assert answer.chosen is not None
    assert (answer.chosen.method_class, answer.chosen.setup.parallelism) == ("full", "ddp")


def test_70b_on_24_gb_says_what_would_do() -> None:
    answer = plan("1x24GB", model="70B")
    assert answer.verdict == "does_not_fit"
    text = " ".join(answer.remedies)
    assert "of these GPUs would do" in text
    assert "1 x 48 GB would do, with QLoRA" in text


def test_a_turing_card_computes_in_fp16() -> None:
    answer = plan("1xT4", model="Qwen2.5-1.5B")
    assert answer.chosen is not None
    assert answer.chosen.setup.compute_dtype == "fp16"
    assert next(each for each in answer.ladder if each.id == "fp16-compute").applied


def test_a_method_by_name_is_what_is_planned() -> None:
    for method in ("galore", "badam", "freeze", "dora", "oft", "apollo"):
        answer = plan("1x192GB", method=method)
        shown = answer.chosen or answer.nearest_miss
        assert shown is not None
        assert shown.setup.method == method


def test_a_rank_above_the_width_is_bad_input() -> None:
    with pytest.raises(InputError, match="lora_rank 4096 is above 512"):
        plan("1x24GB", method="lora", pinned={"lora_rank": 4096})


def test_every_choice_is_explicit_in_what_is_chosen() -> None:
    answer = plan("3x20GB")
    assert answer.chosen is not None
    chosen = answer.chosen.setup
    assert chosen.optim == "adamw_torch_fused"
    assert chosen.compute_dtype == "bf16"
    assert chosen.parallelism is not None
    assert chosen.gpus == "3x20GB"


def test_the_price_of_a_choice_is_its_estimate() -> None:
    """What the walk priced and what the table explains are the same bytes."""
    from planner.memory.estimate import price

    answer = plan("3x20GB")
    where, spec = parse_machine("3x20GB"), resolve("Qwen2.5-7B")
    for row in answer.configurations:
        found = price(row.setup, spec, where, coverage=row.estimate.coverage)
        assert found.allocated_bytes == row.estimate.allocated_bytes == row.estimate.breakdown.total
        assert found.required_bytes == row.estimate.required_bytes <= where.smallest.capacity_bytes


def test_adapter_settings_without_adapters_are_said() -> None:
    idle = plan("8xA100-80GB", pinned={"lora_rank": 32})
    assert idle.chosen is not None
    assert idle.chosen.setup.method == "full"
    assert any("--lora-rank has no effect" in said for said in idle.warnings)
    used = plan("1xRTX4090", pinned={"lora_rank": 32})
    assert used.chosen is not None
    assert used.chosen.setup.lora_rank == 32
    assert not any("no effect" in said for said in used.warnings)
