"""Further models on the GPU: references of preference training, reward models and value heads of PPO."""

from __future__ import annotations

from planner.memory.regime import Regime
from planner.model.count import count
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup

CAUSAL_BUFFER = frozenset({"gpt_bigcode"})  # keeps its causal mask of positions x positions as a boolean buffer
INFERENCE_BYTES = 2  # LLaMA-Factory loads reference and reward models in 16 bit for inference


def extra_model_bytes(setup: TrainingSetup, spec: ModelSpec, regime: Regime, ranks: int) -> int:
    """Weights of the models beside the trained one, on one GPU.

    A preference stage compares with the model as it was: adapters are switched off for that, full and freeze load a
    second model (LLaMA-Factory train/trainer_utils.py create_ref_model); ORPO and SimPO need none. DeepSpeed 3
    and FSDP shard it. PPO has a reward model besides (an adapter of the same base with LoRA). Source: the same file.
    """
    size = count(spec).total * INFERENCE_BYTES
    mask = (spec.max_positions or 0) ** 2 if spec.model_type in CAUSAL_BUFFER else 0
    if setup.parallelism in ("zero3", "fsdp", "fsdp2"):
        size = -(-size // ranks)
    needs_reference = setup.stage in ("dpo", "kto", "ppo") and setup.pref_loss not in ("orpo", "simpo")
    total = size if needs_reference and (not setup.is_adapter or setup.ref_model) else 0
    if setup.stage == "ppo" and not setup.is_adapter:
        total += size
    return total + mask
