"""One step as a timeline: what each phase holds, worked out by hand for Llama-3-8B, and which kernel runs.

L 32 layers, h 4096, V 128256, 2048 tokens unless said; sources as in planner/memory/timeline.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate
from planner.memory.overhead import workspace_bytes
from planner.memory.result import Breakdown, Estimate
from planner.memory.stretches import block_mode
from planner.memory.timeline import INPUT_BYTES_PER_TOKEN
from planner.memory.units import build_parts
from planner.model.catalogue import resolve
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup

LLAMA = resolve("Meta-Llama-3-8B")
L, H, V, PSI, TOKENS = 32, 4096, 128_256, 8_030_261_248, 2048
INPUTS = INPUT_BYTES_PER_TOKEN * TOKENS
WORKSPACE = workspace_bytes(parse_machine("1xA100-80GB"))
CAST_OF_LAYERS = 2 * (PSI - 2 * V * H - H - L * 2 * H)  # autocast's copies of all matrices of all layers
COUNTERS = 512 * (L * 8 + 3)  # the fused kernel's step numbers; both norms of a layer count as one tensor
PURE: dict[str, Any] = {"method": "full", "param_dtype": "bf16"}


def run(spec: ModelSpec = LLAMA, gpus: str = "1xA100-80GB", **fields: Any) -> Estimate:
    return estimate(TrainingSetup(model=spec.id, **fields), spec, parse_machine(gpus))


def phase(name: str, **fields: Any) -> Breakdown:
    return run(**fields).phases[name]


# -- phases ------------------------------------------------------------------------------------------------------


def test_the_loss_of_full_fine_tuning_under_checkpointing() -> None:
    """L inputs of 4h in fp32, final norm 4h + 4h + 4 (its weight is fp32), logits 10V, casts of layers and head."""
    loss = phase("loss", method="full")
    assert loss.weights == 4 * PSI
    assert loss.optimizer == 8 * PSI + COUNTERS
    assert loss.logits == 10 * V * TOKENS
    kept_in_norm = loss.activations - INPUTS - L * 4 * H * TOKENS
    assert 0 < kept_in_norm <= (4 + 4 + 4) * H * TOKENS + 4 * TOKENS
    assert loss.temporaries == CAST_OF_LAYERS + 2 * V * H + WORKSPACE
    assert loss.gradients == loss.communication == 0


def test_the_loss_of_pure_bf16_under_checkpointing() -> None:
    """L inputs of 2h, then 4h fp32 copy, 2h normalised, 2h output and rsqrt of the final norm; nothing is cast."""
    loss = phase("loss", **PURE)
    assert loss.activations == INPUTS + L * 2 * H * TOKENS + (8 * H + 4) * TOKENS
    assert loss.temporaries == WORKSPACE


def test_the_end_of_backward_holds_every_gradient() -> None:
    backward = phase("backward", **PURE)
    assert backward.gradients == 2 * PSI
    assert backward.activations == INPUTS + 2 * H * TOKENS  # the gradient of the embedding's output
    step = phase("optimizer", **PURE)
    assert (step.weights, step.gradients, step.optimizer) == (2 * PSI, 2 * PSI, 4 * PSI + COUNTERS)


def test_accumulation_adds_the_largest_gradient() -> None:
    once, twice = (phase("backward", **PURE, seq_len=16, gradient_accumulation_steps=n) for n in (1, 2))
    assert twice.gradients - once.gradients == 2 * V * H
    assert phase("forward", **PURE, gradient_accumulation_steps=2).gradients == 2 * PSI


def test_foreach_adam_needs_one_more_copy() -> None:
    """10 bytes a parameter in pure bf16, as measured on four models."""
    step = phase("optimizer", **PURE, optim="adamw_torch")
    assert step.total - INPUTS - WORKSPACE == pytest.approx(10 * PSI, rel=1e-3)


def test_without_checkpointing_every_layer_keeps_its_tensors() -> None:
    plain = phase("loss", **PURE, gradient_checkpointing=False)
    checkpointed = phase("loss", **PURE)
    assert plain.activations - checkpointed.activations == L * (200_840 - 2 * H) * TOKENS


@pytest.mark.parametrize(("every", "wrapped"), [(1, 32), (2, 16), (5, 6), (33, 0)])
def test_every_nth_layer_is_checkpointed(every: int, wrapped: int) -> None:
    loss = phase("loss", **PURE, gradient_checkpointing=every)
    whole = phase("loss", **PURE)
    assert loss.activations - whole.activations == (L - wrapped) * (200_840 - 2 * H) * TOKENS


def test_selective_checkpointing_lies_between() -> None:
    totals = [phase("loss", **PURE, gradient_checkpointing=kind).activations for kind in (True, "selective", False)]
    assert totals == sorted(totals)
    assert len(set(totals)) == 3


def test_offloaded_activations_leave_the_gpu() -> None:
    here, away = (phase("loss", **PURE, activation_offload=value) for value in (False, True))
    assert here.activations - away.activations == L * 2 * H * TOKENS


def test_evaluation_materialises_logits_even_with_liger() -> None:
    answer = run(method="lora", liger_kernel=True, eval_micro_batch_size=8)
    assert answer.peak_phase == "eval"
    assert answer.breakdown.logits == 10 * V * 8 * TOKENS
    assert "eval" not in run(method="lora").phases


def test_preference_pairs_run_both_answers_at_once() -> None:
    """DPO at batch b is SFT at 2b as far as layers are concerned; without adapters a second model is held."""
    pairs, double = phase("forward", stage="dpo", method="lora"), phase("forward", method="lora", micro_batch_size=2)
    assert pairs.activations == double.activations
    assert phase("forward", stage="dpo", method="full").weights == 4 * PSI + 2 * PSI
    assert phase("forward", stage="orpo", method="full").weights == 4 * PSI


def test_stages_of_a_pipeline_keep_several_micro_batches() -> None:
    """Eight layers on each of four GPUs; the first stage has four micro batches in flight."""
    common: dict[str, Any] = {**PURE, "gpus": "4xA100-80GB", "parallelism": "ddp", "pipeline_parallel": 4}
    one, many = (phase("forward", **common, gradient_accumulation_steps=n) for n in (1, 16))
    assert many.activations - one.activations == 3 * (L // 4) * 2 * H * TOKENS


def test_a_frozen_prefix_keeps_nothing() -> None:
    few, all_ = (phase("forward", method="freeze", freeze_trainable_layers=n) for n in (2, 32))
    assert few.activations < all_.activations
    assert few.gradients == 0


# -- tied embeddings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "further"),
    [
        pytest.param({"param_dtype": "bf16"}, 2, id="a matmul's gradient is a view: waiting, arriving and sum"),
        pytest.param({}, 1, id="autocast's cast is no view: the sum is made in place"),
        pytest.param({"param_dtype": "bf16", "liger_kernel": True}, 1, id="the fused loss makes it anew"),
    ],
)
def test_gradients_of_tied_embeddings_meet_at_the_end(fields: dict[str, Any], further: int) -> None:
    """Traced: Granite, StarCoder 2, Gemma and others; torch/csrc/autograd/input_buffer.cpp."""
    spec = resolve("Qwen2.5-0.5B")
    assert spec.tied_embeddings
    setup: dict[str, Any] = {"method": "full", "seq_len": 16, **fields}
    backward = run(spec, **setup).phases["backward"]
    each = 2 if "param_dtype" in fields else 4
    assert backward.gradients == each * (spec.parameters + further * spec.vocab * spec.hidden)


# -- what programs of their time kept and converted -----------------------------------------------------------------

SANTACODER = resolve("bigcode/gpt_bigcode-santacoder")
PROJECTED = 24 * (2048 + 2 * 128)  # of every layer: queries, and keys and values of one head, per token


def of_santacoder(version: str, **fields: Any) -> Estimate:
    return run(SANTACODER, **{"engine": "transformers", "versions": {"transformers": version}, **fields})


def test_a_named_cache_keeps_whole_projections_to_the_end_of_the_forward_pass() -> None:
    """gpt_bigcode's code names it until 4.52; nothing of it is left in backward."""
    named, gone = (of_santacoder(version, **PURE) for version in ("4.52", "4.53"))
    assert named.phases["loss"].activations - gone.phases["loss"].activations == 2 * PROJECTED * TOKENS
    assert named.phases["backward"] == gone.phases["backward"]
    wide = {"method": "qlora", "kbit_upcast": "none", "adapter_dtype": "fp32"}
    named, gone = (of_santacoder(version, **wide) for version in ("4.52", "4.53"))
    assert named.phases["loss"].activations - gone.phases["loss"].activations == 4 * PROJECTED * TOKENS


@pytest.mark.parametrize("fields", [{"engine": "llamafactory"}, {"gradient_checkpointing": False}])
def test_where_the_cache_is_off_or_kept_anyway_it_costs_nothing(fields: dict[str, Any]) -> None:
    named, gone = (of_santacoder(version, **PURE, **fields) for version in ("4.52", "4.53"))
    assert named.phases["loss"] == gone.phases["loss"]


def test_4_bit_modules_followed_their_first_input_before_bitsandbytes_0_47() -> None:
    """With fp32 norms the largest matrix is converted to fp32 beside 16 bit; its scales are gone by then."""
    spec = resolve("mistralai/Mixtral-8x7B-v0.1")
    fields: dict[str, Any] = {
        "engine": "transformers", "method": "qlora", "adapter_dtype": "fp32", "kbit_upcast": "norms",
        "lora_target": ["q_proj", "v_proj"], "attention": "flash_attention_2", "micro_batch_size": 4, "seq_len": 4096,
    }  # fmt: skip
    matrix = 4096 * 14336

    def peak(version: str, **more: Any) -> int:
        versions = {"transformers": "4.48", "bitsandbytes": version}
        return run(spec, **{**fields, **more}, versions=versions).phases["backward"].total

    old, new = (peak(version) for version in ("0.46.1", "0.47"))
    assert old - new == 4 * matrix - 4 * matrix // 64
    assert len({peak(version, kbit_upcast="none") for version in ("0.46.1", "0.47")}) == 1


# -- kernels -----------------------------------------------------------------------------------------------------


def kernel_of(model: str, *, has_flash: bool = True, layer: int = 0, **fields: Any) -> str:
    from types import SimpleNamespace

    from planner.memory.regime import resolve_regime

    setup, spec = TrainingSetup(model=model, **fields), resolve(model)
    regime = resolve_regime(setup, spec)
    parts = build_parts(setup, spec, regime)
    step = SimpleNamespace(setup=setup, spec=spec, regime=regime, parts=parts, has_flash=has_flash)
    return block_mode(step, parts.layers[layer]).kernel  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "fields", "kernel"),
    [
        ("Qwen2.5-7B", {}, "sdpa"),
        ("Qwen2.5-7B", {"attention": "flash_attention_2"}, "flash"),
        ("Qwen2.5-7B", {"attention": "eager"}, "eager"),
        ("Qwen2.5-7B", {"padded": True}, "masked"),
        ("Qwen2.5-7B", {"padded": True, "attention": "flash_attention_2"}, "flash"),
        ("gemma-2-9b", {}, "eager"),  # soft-capped scores have no SDPA path
        ("Phi-3-mini-4k-instruct", {"seq_len": 2046}, "sdpa"),
        ("Phi-3-mini-4k-instruct", {"seq_len": 2047}, "masked"),  # a window of 2047 masks from its own length on
        ("DeepSeek-V2-Lite", {}, "efficient"),  # keys wider than values
    ],
)
def test_the_kernel_that_runs(model: str, fields: dict[str, Any], kernel: str) -> None:
    assert kernel_of(model, **fields) == kernel


@pytest.mark.parametrize("fields", [{"compute_dtype": "fp32", "param_dtype": "fp32"}, {"has_flash": False}])
def test_grouped_heads_without_flash_kernels_fall_back_to_the_math_path(fields: dict[str, Any]) -> None:
    """Traced in fp32; the memory-efficient kernel takes equal numbers of heads alone."""
    assert kernel_of("Qwen2.5-7B", **fields) not in ("sdpa", "flash", "efficient")
    assert kernel_of("pythia-6.9b", **fields) == "efficient"
