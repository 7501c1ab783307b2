"""What stands in the place of attention: the gated delta rule by release, short convolutions, assumed blocks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate
from planner.memory.overhead import margins
from planner.memory.regime import resolve_regime
from planner.memory.stretches import stretches_of
from planner.memory.units import build_parts
from planner.model.assumed import llama_like
from planner.model.catalogue import config_for, resolve
from planner.model.interpret import interpret
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup, setup_from_mapping

GIB = 2**30
CARD = parse_machine("1xH100-80GB")
DELTA: dict[str, Any] = {
    "model_type": "qwen3_5_text", "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "num_hidden_layers": 4, "layer_types": ["linear_attention"] * 4,
}  # fmt: skip


def setup(**more: Any) -> TrainingSetup:
    stated = {
        "model": "x", "engine": "transformers", "gpus": "1xH100-80GB", "method": "full", "param_dtype": "bf16",
        "compute_dtype": "bf16", "gradient_checkpointing": False,
    }  # fmt: skip
    return setup_from_mapping({**stated, **more})


def kept_bytes(spec: ModelSpec, asked: TrainingSetup) -> int:
    """What one of the upper layers keeps for its backward pass."""
    regime = resolve_regime(asked, spec)
    parts = build_parts(asked, spec, regime)
    step = SimpleNamespace(setup=asked, spec=spec, regime=regime, parts=parts, has_flash=True)
    curve = stretches_of(step)[-1].curve  # type: ignore[arg-type]
    return curve.kept.at(asked.seq_len, asked.seq_len**2)


@pytest.mark.parametrize(
    ("release", "traced_bytes"),
    [("5.23.0", 1_109_893_376), ("5.6.0", 1_482_129_536)],
)
def test_a_delta_rule_layer_keeps_what_its_release_was_traced_to_keep(release, traced_bytes):
    """Traces of plan trace with both releases: 2,048 tokens of Qwen3.5-9B's layer, bf16, without checkpointing."""
    spec = replace(interpret(DELTA), stored_dtype="bf16")
    kept = kept_bytes(spec, setup(versions={"transformers": release}))
    assert kept == pytest.approx(traced_bytes, rel=0.002)


def test_the_default_engine_brings_the_looped_delta_rule():
    spec = resolve("Qwen/Qwen3.5-9B")
    asked = {"method": "lora", "param_dtype": None, "model": spec.id}
    newest = estimate(setup(**asked), spec, CARD)
    factory = estimate(setup(**asked, engine="llamafactory"), spec, CARD)
    assert factory.allocated_bytes > newest.allocated_bytes + 5 * GIB
    assert any("flash-linear-attention" in said for said in newest.assumptions)


def test_a_short_convolution_keeps_less_than_attention():
    config: dict[str, Any] = {
        "model_type": "lfm2", "hidden_size": 2048, "block_ff_dim": 12288, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 65536, "num_hidden_layers": 4,
    }  # fmt: skip
    conv, attention = (
        kept_bytes(interpret({**config, "layer_types": [kind] * 4}), setup()) for kind in ("conv", "full_attention")
    )
    assert conv < attention < conv * 1.05


@pytest.mark.parametrize("name", ["google/gemma-4-31B-it", "ibm-granite/granite-4.0-h-tiny", "google/gemma-3n-E4B-it"])
def test_an_architecture_without_rules_is_priced_with_a_wide_margin_and_says_so(name):
    spec = resolve(name)
    assert spec.assumed_blocks and "has no rules here" in spec.notes[0]
    answer = estimate(setup(model=name, gradient_checkpointing=True), spec, CARD)
    assert answer.total_parameters == spec.parameters
    assert any("priced with Llama's blocks" in said for said in answer.warnings)
    low, high = answer.interval["allocated_bytes"]
    assert high >= answer.allocated_bytes * (1 + margins("assumed", 0.99)[1]) * 0.999
    assert low < answer.allocated_bytes * 0.8


def test_llama_like_blocks_come_near_what_a_known_family_needs_under_checkpointing():
    known = resolve("LiquidAI/LFM2-2.6B")
    assumed = llama_like(config_for(known.id), known.parameters, id=known.id, place="here")
    asked = setup(model=known.id, gradient_checkpointing=True)
    ours, theirs = (estimate(asked, spec, CARD).allocated_bytes for spec in (assumed, known))
    assert ours == pytest.approx(theirs, rel=margins("assumed", 0.99)[1])
