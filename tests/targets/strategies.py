"""Setups and surroundings for property tests: every value that the contract lists, in any combination."""

from __future__ import annotations

from hypothesis import strategies as st

from planner.targets.context import EmitContext
from planner.training import TrainingSetup

METHODS = ("full", "freeze", "lora", "dora", "qlora", "oft", "galore", "apollo", "badam")
STAGES = ("pt", "sft", "rm", "dpo", "kto", "orpo", "simpo", "ppo", "grpo")
PARALLELISMS = (None, "none", "ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp2")
DTYPES = (None, "bf16", "fp16", "fp32")

contexts = st.builds(
    EmitContext,
    model_path=st.sampled_from(["Qwen/Qwen2.5-7B", "/models/my model", "1e5"]),
    hidden=st.sampled_from([64, 3584, 8192]),
    gpus_per_node=st.sampled_from([1, 2, 3, 8]),
    nodes=st.sampled_from([1, 1, 2]),
    has_bf16=st.sampled_from([True, False, None]),
    ram_bytes=st.sampled_from([None, 12 << 30, 64 << 30, 1 << 40]),
    template=st.sampled_from([None, "qwen"]),
    stored_quantization=st.sampled_from([None, "gptq"]),
    eval_dataset=st.sampled_from([None, "valid"]),
)

setups = st.builds(
    TrainingSetup,
    model=st.just("7B"),
    stage=st.sampled_from(STAGES),
    pref_loss=st.sampled_from([None, None, None, "sigmoid", "hinge", "ipo", "kto_pair"]),
    ref_model=st.sampled_from([None, None, "org/ref"]),
    reward_model=st.sampled_from([None, None, "org/reward"]),
    method=st.sampled_from(METHODS),
    freeze_trainable_layers=st.integers(1, 8),
    galore_rank=st.sampled_from([16, 128]),
    apollo_rank=st.sampled_from([1, 256]),
    badam_mode=st.sampled_from(["layer", "ratio"]),
    lora_rank=st.sampled_from([1, 8, 64]),
    lora_target=st.sampled_from(["all", ("q_proj", "v_proj")]),
    lora_dropout=st.sampled_from([0.0, 0.05]),
    additional_target=st.sampled_from([(), (), ("embed_tokens", "lm_head")]),
    quantization_bit=st.sampled_from([None, None, 4, 8]),
    double_quantization=st.booleans(),
    quantization_method=st.sampled_from(["bnb", "bnb", "gptq", "hqq"]),
    seq_len=st.sampled_from([1, 512, 2048, 131072]),
    micro_batch_size=st.integers(1, 64),
    gradient_accumulation_steps=st.integers(1, 64),
    eval_micro_batch_size=st.sampled_from([None, 1, 8]),
    packing=st.booleans(),
    padded=st.booleans(),
    optim=st.sampled_from(["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"]),
    optimizer_in_backward=st.sampled_from([False, False, True]),
    torch_compile=st.booleans(),
    activation_offload=st.sampled_from([False, False, True]),
    param_dtype=st.sampled_from(DTYPES),
    compute_dtype=st.sampled_from(DTYPES),
    adapter_dtype=st.sampled_from(DTYPES),
    kbit_upcast=st.sampled_from([None, "none", "norms"]),
    gradient_checkpointing=st.sampled_from([True, False, True, False, "selective", 2]),
    attention=st.sampled_from(["eager", "sdpa", "flash_attention_2"]),
    liger_kernel=st.booleans(),
    unsloth=st.sampled_from([False, False, True]),
    loss=st.sampled_from([None, None, None, "torch", "fused_linear", "chunked"]),
    parallelism=st.sampled_from(PARALLELISMS),
    offload=st.sampled_from(["none", "none", "none", "optimizer", "params", "all", "nvme"]),
)
