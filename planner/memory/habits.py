"""Habits of modeling code that matter for memory, by model type. Source: transformers 5.23, models/*/modeling_*.py."""

from __future__ import annotations

from planner.model.spec import ModelSpec
from planner.training import TrainingSetup

# litgpt runs every model through one file of its own, which thunder's benchmark script trains in a loop without Fabric;
# the habits below are transformers'.
OWN_MODELING = frozenset({"litgpt", "thunder"})
# No SDPA path: asked for it, the model runs its eager attention (_supports_sdpa absent or False).
WITHOUT_SDPA = frozenset(
    {"bloom", "mpt", "gpt_neo", "gptj", "codegen", "gemma2", "gpt_oss", "qwen", "baichuan", "internlm2", "chatglm"}
)
# Rotation ends in torch.cat, whose result is laid out head by head: the kernel's output follows that layout and is
# copied before the output projection. Partial rotation always does.
JOINED_ROTATION = frozenset({"phi3", "gpt_neox", "glm", "glm4", "glm4_moe", "qwen3_next"})
# The norm multiplies by its weight in fp32 and casts afterwards, so the fp32 product's input is what is kept.
WIDE_NORM = frozenset(
    {"gemma", "gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3", "gpt_oss", "qwen3_next", "qwen3_5", "qwen3_5_text"}
    | {"qwen3_5_moe", "qwen3_5_moe_text"}
)
# Normalises queries and keys after their rotation.
NORM_AFTER_ROTATION = frozenset({"hunyuan_v1_dense", "hunyuan_v1_moe"})
# Layer norm written out in fp32 operations: the centred input is made, and kept, twice.
WRITTEN_OUT_NORM = frozenset({"cohere", "cohere2"})
# The router's matmul runs on an fp32 copy of the hidden states.
WIDE_ROUTER = frozenset({"deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite"})
# Hands a mask and keys of one head, broadcast without a copy, to SDPA, which no fused kernel takes: S x S math path.
BROADCAST_KEYS = frozenset({"falcon"})
# Residual dropout of 0.1 in training unless the config says otherwise.
RESIDUAL_DROPOUT = frozenset({"gpt2", "gpt_bigcode", "opt"})
# Drops embeddings too (GPT-2 and kin by default, StarCoder 2 by its published configs).
EMBEDDING_DROPOUT = frozenset({"gpt2", "gpt_bigcode", "starcoder2"})
# The block names what attention hands out to its end.
NAMES_ATTENTION = frozenset({"gpt2", "gpt_bigcode"})
# Names every layer's keys and values to the end of its forward pass although it checkpoints; from 4.53 on it does not.
# They are views into the whole projection of queries, keys and values, which lives with them.
NAMES_CACHE = frozenset({"gpt_bigcode"})
# Multiplies embeddings by a number of its config.
SCALED_EMBEDDING = frozenset({"granite", "granitemoe", "granitemoeshared", "granitemoehybrid"})


def modeling(setup: TrainingSetup, spec: ModelSpec) -> str:
    """The model type whose modeling file runs, empty where the engine has a file of its own for all."""
    return "" if setup.engine in OWN_MODELING else spec.model_type


def makes_cache(setup: TrainingSetup) -> bool:
    """Whether the model makes a key-value cache in training: transformers does unless a loop says use_cache=False.

    Checkpointing switches it off; trainers and fsdp_qlora's script do it themselves. What a loop's ``outputs`` name is
    then every layer's keys and values, which torch.cat has copied (cache_utils.py, DynamicLayer.update).
    """
    return setup.engine in ("pytorch", "pytorch-step") and setup.gradient_checkpointing is False


def names_outputs_on(setup: TrainingSetup) -> bool:
    """Whether the last step's outputs live on until the next ones exist. fsdp_qlora lets go of them after its step."""
    return setup.engine == "pytorch"


def has_dropout(spec: ModelSpec) -> bool:
    """Whether the residual branches drop in training."""
    return spec.dropout or spec.model_type in RESIDUAL_DROPOUT
