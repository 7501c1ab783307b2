"""Any setup the contract can state, on a handful of models and machines, for property tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from planner.hardware.parse import parse_machine
from planner.training import TrainingSetup

# dense, tied, four norms and soft-capping, learned positions, fused gate and up, experts, latent attention, parallel
MODELS = (
    "Qwen2.5-7B", "Qwen2.5-0.5B", "Meta-Llama-3-8B", "gemma-2-9b", "gpt2", "Phi-3-mini-4k-instruct",
    "Mixtral-8x7B-v0.1", "Qwen3-30B-A3B", "DeepSeek-V2-Lite", "pythia-6.9b",
)  # fmt: skip
ONE = ("1x24GB", "1xRTX4090", "1xA100-80GB", "1xH100-80GB", "1xV100-32GB")
SEVERAL = ("3x20GB", "2xRTX3090", "8xH100-80GB", "2x8xA100-80GB")
MACHINES = {text: parse_machine(text) for text in (*ONE, *SEVERAL)}

METHODS = ("full", "freeze", "lora", "dora", "qlora", "oft", "galore", "apollo", "badam")
STAGES = ("pt", "sft", "rm", "dpo", "kto", "orpo", "simpo", "ppo", "grpo")
ENGINES = (
    "llamafactory", "transformers", "trl", "embedded", "axolotl", "torchtune", "torchtitan", "litgpt", "pytorch",
    "pytorch-step", "someone-elses",
)  # fmt: skip
OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
    "sgd",
)
SHARDED = ("ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp2")
DTYPES = (None, None, None, "bf16", "fp16", "fp32")
DS_CONFIGS: tuple[dict[str, Any], ...] = (
    {"zero_optimization": {"stage": 3, "reduce_bucket_size": 5_000_000, "stage3_max_live_parameters": 1_000_000}},
    {"zero_optimization": {"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}}},
    {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
)


def _but(strategy: st.SearchStrategy[Any], usual: Any) -> st.SearchStrategy[Any]:
    """Mostly the usual value, so that one unusual one does not hide behind another."""
    return st.one_of(st.just(usual), st.just(usual), strategy)


_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "stage": _but(st.sampled_from(STAGES), "sft"),
    "pref_loss": _but(st.sampled_from(["sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo"]), None),
    "ref_model": _but(st.just("org/ref"), None),
    "reward_model": _but(st.just("org/reward"), None),
    "method": st.sampled_from(METHODS),
    "freeze_trainable_layers": st.integers(1, 40),
    "galore_rank": st.sampled_from([16, 1024]),
    "apollo_rank": st.sampled_from([1, 256]),
    "badam_mode": st.sampled_from(["layer", "ratio"]),
    "lora_rank": st.sampled_from([1, 8, 64]),
    "lora_target": _but(st.sampled_from([("q_proj", "v_proj"), ("down_proj",), ("lm_head", "q_proj")]), "all"),
    "additional_target": _but(st.sampled_from([("embed_tokens", "lm_head"), ("o_proj",)]), ()),
    "lora_dropout": st.sampled_from([0.0, 0.05]),
    "quantization_bit": _but(st.sampled_from([4, 8]), None),
    "double_quantization": st.booleans(),
    "quantization_method": _but(st.sampled_from(["gptq", "awq", "hqq", "aqlm"]), "bnb"),
    "seq_len": st.sampled_from([1, 17, 512, 2048, 32768]),
    "micro_batch_size": st.integers(1, 16),
    "gradient_accumulation_steps": st.sampled_from([1, 1, 2, 16]),
    "eval_micro_batch_size": _but(st.sampled_from([1, 8]), None),
    "packing": st.booleans(),
    "padded": st.booleans(),
    "optim": st.sampled_from(OPTIMIZERS),
    "optimizer_in_backward": _but(st.just(True), False),
    "torch_compile": _but(st.just(True), False),
    "activation_offload": _but(st.just(True), False),
    "param_dtype": st.sampled_from(DTYPES),
    "compute_dtype": st.sampled_from(DTYPES),
    "adapter_dtype": st.sampled_from(DTYPES),
    "kbit_upcast": _but(st.sampled_from(["none", "norms", "all"]), None),
    "gradient_checkpointing": st.sampled_from([True, True, False, "selective", 1, 2, 5, 999]),
    "attention": st.sampled_from(["eager", "sdpa", "flash_attention_2"]),
    "liger_kernel": st.booleans(),
    "unsloth": _but(st.just(True), False),
    "loss": _but(st.sampled_from(["torch", "fused", "chunked", "fused_linear"]), None),
    "engine": _but(st.sampled_from(ENGINES), "llamafactory"),
    "ds_config": _but(st.sampled_from(DS_CONFIGS), None),
    "versions": _but(
        st.sampled_from([{"transformers": "4.45"}, {"transformers": "4.48.1", "accelerate": "0.34"}, {"torch": "2.4"}]),
        {},
    ),
}
_SPLITS = ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel")
_OFFLOADS: dict[str | None, tuple[str, ...]] = {
    "zero2": ("none", "optimizer"), "zero3": ("none", "optimizer", "params", "all", "nvme"), "fsdp": ("none", "all"),
    "fsdp2": ("none", "all"),
}  # fmt: skip
TAME = frozenset({
    "stage", "method", "lora_rank", "lora_dropout", "double_quantization", "seq_len", "micro_batch_size", "padded",
    "gradient_accumulation_steps", "optim", "param_dtype", "gradient_checkpointing", "attention", "liger_kernel",
    "eval_micro_batch_size",
})  # fmt: skip


@st.composite
def any_setup(draw: st.DrawFn, fields: Callable[[str], bool] = lambda name: True) -> tuple[TrainingSetup, str]:
    """(setup, machine): every field may take any of its values; what cannot be is refused by the estimate."""
    gpus = draw(st.sampled_from((*ONE, *SEVERAL)))
    parallelism = draw(st.sampled_from(SHARDED if gpus in SEVERAL else (None, "none", "zero2", "zero3", "fsdp2")))
    values = {name: draw(strategy) for name, strategy in _FIELDS.items() if fields(name)}
    if gpus in SEVERAL and fields("tensor_parallel"):
        split = draw(st.sampled_from((None, None, None, *_SPLITS)))
        values |= {split: draw(st.sampled_from([2, 2, 3, 8]))} if split else {}
    if fields("offload"):
        values["offload"] = draw(st.sampled_from(_OFFLOADS.get(parallelism, ("none",) * 7 + ("optimizer",))))
    setup = TrainingSetup(model=draw(st.sampled_from(MODELS)), gpus=gpus, parallelism=parallelism, **values)
    return setup, gpus


def tame_setup() -> st.SearchStrategy[tuple[TrainingSetup, str]]:
    """Setups of the common engines that are rarely refused."""
    return any_setup(lambda name: name in TAME)
