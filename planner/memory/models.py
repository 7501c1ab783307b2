"""What lies on the GPU beside the trained weights: references of preference training, reward models and value heads of
PPO, and buffers of the modeling code.
"""

from __future__ import annotations

from functools import lru_cache

from planner.errors import InputError
from planner.memory.regime import Regime
from planner.model.catalogue import resolve
from planner.model.count import count
from planner.model.spec import ModelSpec
from planner.training import REFERENCE_STAGES, TrainingSetup

CAUSAL_BUFFER = frozenset({"gpt_bigcode"})  # keeps its causal mask of positions x positions as a boolean buffer
REFERENCE_FREE = frozenset({"orpo", "simpo"})
SWITCHED_OFF = frozenset({"lora", "dora", "qlora"})  # finetuning_type lora: the base below is the reference
INFERENCE_BYTES = 2  # LLaMA-Factory loads reference and reward models in 16 bit for inference


def extra_model_bytes(setup: TrainingSetup, spec: ModelSpec, regime: Regime, ranks: int) -> int:
    """Weights of the models beside the trained one, on one GPU.

    A preference stage compares with the model as it was: LoRA is switched off for that, everything else, OFT too,
    loads a second model, as a named one is (LLaMA-Factory 0.9.5 train/trainer_utils.py create_ref_model); ORPO and
    SimPO need none. PPO has a whole reward model besides (create_reward_model with reward_model_type full, which is
    what is written for it). DeepSpeed 3 and FSDP shard both. What no one knows the size of counts as the trained model.
    """
    mask = (spec.max_positions or 0) ** 2 if spec.model_type in CAUSAL_BUFFER else 0
    total = 0
    if setup.stage in REFERENCE_STAGES and setup.pref_loss not in REFERENCE_FREE:
        total += _weights(setup.ref_model, spec) if setup.ref_model or setup.method not in SWITCHED_OFF else 0
    if setup.stage == "ppo":
        total += _weights(setup.reward_model, spec)
    buffers = mask + _rotation_table(setup, spec)
    return (-(-total // ranks) if setup.parallelism in ("zero3", "fsdp", "fsdp2") else total) + buffers


def _rotation_table(setup: TrainingSetup, spec: ModelSpec) -> int:
    """torchtune's fp32 cosines and sines of every position that the model knows, one table for all layers
    (modules/position_embeddings.py, models/llama3_1/_position_embeddings.py build_rope_cache).
    """
    if setup.engine != "torchtune":
        return 0
    attention = spec.runs[0].block.attention
    return 4 * (spec.max_positions or 0) * (attention.rotary_dim or attention.head_dim)


def _weights(name: str | None, spec: ModelSpec) -> int:
    """Bytes of a model held for inference."""
    return count(named(name) or spec).total * INFERENCE_BYTES


@lru_cache(maxsize=64)
def named(name: str | None) -> ModelSpec | None:
    """The spec of a reference or reward model, or None for one that is neither in the catalogue nor on this disk."""
    try:
        return resolve(name) if name else None
    except InputError:
        return None
