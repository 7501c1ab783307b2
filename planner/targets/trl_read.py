"""TRL's train.yaml back into a setup, with TRL's own defaults for what is absent (trl 1.16.0)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from planner.errors import InputError
from planner.memory.generation import MAX_COMPLETION_TOKENS, completion_tokens
from planner.targets import accelerate, deepspeed
from planner.targets.context import Reading
from planner.targets.sidecar import sidecar_fields
from planner.targets.yaml_text import load_yaml
from planner.training import setup_from_mapping

FILE_NAME = "train.yaml"
COMMANDS = {
    "pt": "sft",
    "sft": "sft",
    "dpo": "dpo",
    "kto": "kto",
    "rm": "reward",
    "grpo": "grpo",
}  # stage -> trl's subcommand
TORCH = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_DTYPES = {word: dtype for dtype, word in TORCH.items()}
# Keys that LLaMA-Factory's train.yaml does not have, and the two that every one of its files has.
OWN_KEYS = frozenset({"use_peft", "dtype", "attn_implementation", "dataset_name", "datasets", "max_length"})
FOREIGN_KEYS = frozenset({"stage", "finetuning_type"})
UNPRICED: dict[str, Any] = {
    "activation_offloading": False,
    "padding_free": False,
    "precompute_ref_log_probs": False,
    "neftune_noise_alpha": None,
    "lora_target_parameters": None,
    "auto_find_batch_size": False,
    "optim_target_modules": None,
    "label_smoothing_factor": 0.0,
    "router_aux_loss_coef": None,
    "model_init_kwargs": None,
}
# What GRPO's price takes for granted: TRL's own defaults.
UNPRICED_GENERATION: dict[str, Any] = {
    "use_vllm": False,
    "use_transformers_continuous_batching": False,
    "cache_implementation": None,
    "num_iterations": 1,
    "steps_per_generation": None,
    "generation_batch_size": None,
    "beta": 0.0,
    "reward_model_name_or_path": None,
    "cast_lm_head_to_fp32": False,
    "ds3_gather_for_generation": True,
}


def is_ours(values: Mapping[str, Any]) -> bool:
    """Whether a train.yaml is TRL's rather than LLaMA-Factory's."""
    return not FOREIGN_KEYS & set(values) and bool(OWN_KEYS & set(values))


def read(
    texts: Mapping[str, str], *, hidden_of: Callable[[str], int | None] | None = None, name: str = FILE_NAME
) -> Reading:
    """The setup that ``texts`` state; ``name`` is TRL's YAML among them. Raises InputError for what is not TRL's."""
    values = load_yaml(texts[name], place=name)
    if not isinstance(values.get("model_name_or_path"), str):
        raise InputError(f"{name}: model_name_or_path is missing; TRL's command needs it")
    fields = _stage(values) | _model(values, name) | _adapter(values) | _batch(values) | _precision(values, name)
    fields |= sidecar_fields(texts)
    fields |= _sharding(values, texts, hidden_of, name)
    return Reading(setup=setup_from_mapping({"engine": "trl", **fields}, place=name), warnings=_warnings(values))


def _stage(values: Mapping[str, Any]) -> dict[str, Any]:
    """The stage by the keys that only it has: TRL's file does not name its command."""
    if "desirable_weight" in values or values.get("loss_type") in ("kto", "apo_zero_unpaired"):
        return {"stage": "kto"}
    if _is_grpo(values):
        return {"stage": "grpo"}
    if "beta" in values or isinstance(values.get("loss_type"), list):
        losses = values.get("loss_type") or ["sigmoid"]
        loss = losses[0] if isinstance(losses, list) else losses
        return {"stage": "dpo", "pref_loss": None if loss == "sigmoid" else loss}
    if values.get("lora_task_type") == "SEQ_CLS" or "center_rewards_coefficient" in values or "packing" not in values:
        is_reward = values.get("lora_task_type") == "SEQ_CLS" or bool(
            {"center_rewards_coefficient", "disable_dropout"} & set(values)
        )
        return {"stage": "rm" if is_reward else "sft"}
    return {"stage": "pt" if values.get("completion_only_loss") is False else "sft"}


def _model(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    word = values.get("dtype") or "float32"
    if word != "auto" and word not in _DTYPES:
        raise InputError(f"{name}: dtype {word} is not valid; choose auto, {', '.join(_DTYPES)}")
    fields = {
        "model": values["model_name_or_path"],
        "attention": values.get("attn_implementation") or "sdpa",
        "seq_len": _length(values),
        "packing": bool(values.get("packing", False)),
    }
    return fields if word == "auto" else fields | {"param_dtype": _DTYPES[word]}


def _is_grpo(values: Mapping[str, Any]) -> bool:
    return "num_generations" in values or "reward_funcs" in values


def _length(values: Mapping[str, Any]) -> int:
    """Tokens of a sample. GRPO states those of a completion alone, and of both together in vLLM's key."""
    if not _is_grpo(values):
        return values.get("max_length") or 1024
    return values.get("vllm_max_model_length") or 2 * _completion(values)


def _completion(values: Mapping[str, Any]) -> int:
    return values.get("max_completion_length") or MAX_COMPLETION_TOKENS


def _adapter(values: Mapping[str, Any]) -> dict[str, Any]:
    if not values.get("use_peft", False):
        return {"method": "full"}
    bits = 4 if values.get("load_in_4bit") else 8 if values.get("load_in_8bit") else None
    target = values.get("lora_target_modules") or "all"
    fields: dict[str, Any] = {
        "method": "dora" if values.get("use_dora") else "qlora" if bits else "lora",
        "lora_rank": values.get("lora_r", 16),
        "lora_dropout": values.get("lora_dropout", 0.05),
        "lora_target": "all" if target in ("all-linear", ["all-linear"], "all") else target,
        "additional_target": values.get("lora_modules_to_save") or (),
        "quantization_bit": bits,
    }
    if bits == 4:
        fields["double_quantization"] = bool(values.get("use_bnb_nested_quant", False))
    return fields


def _batch(values: Mapping[str, Any]) -> dict[str, Any]:
    evaluates = values.get("eval_strategy", "no") != "no"
    return {
        "micro_batch_size": values.get("per_device_train_batch_size", 8),
        "gradient_accumulation_steps": values.get("gradient_accumulation_steps", 1),
        "eval_micro_batch_size": values.get("per_device_eval_batch_size", 8) if evaluates else None,
        "optim": values.get("optim", "adamw_torch_fused"),
        "gradient_checkpointing": bool(values.get("gradient_checkpointing", True)),
        "liger_kernel": bool(values.get("use_liger_kernel", False)),
        "torch_compile": bool(values.get("torch_compile", False)),
    }


def _precision(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """bf16 is on unless fp16 is, or it is switched off (trainer/base_config.py)."""
    half = bool(values.get("fp16", False))
    brain = values.get("bf16")
    return {"compute_dtype": "fp16" if half else "bf16" if brain is None or brain else "fp32"}


def _sharding(
    values: Mapping[str, Any],
    texts: Mapping[str, str],
    hidden_of: Callable[[str], int | None] | None,
    name: str,
) -> dict[str, Any]:
    config = values.get("deepspeed")
    if config is not None:
        hidden = hidden_of(values["model_name_or_path"]) if hidden_of else None
        return deepspeed.read(deepspeed.named_config(config, texts, name), hidden)
    if accelerate.FILE_NAME in texts:
        return accelerate.read(load_yaml(texts[accelerate.FILE_NAME], place=accelerate.FILE_NAME))
    return accelerate.read_trainer_fsdp(values.get("fsdp"), values.get("fsdp_config"))


def _warnings(values: Mapping[str, Any]) -> tuple[str, ...]:
    assumed = UNPRICED | (UNPRICED_GENERATION if _is_grpo(values) else {})
    said = [
        f"{key}: {values[key]} is not priced: the estimate is made as if it were {neutral}"
        for key, neutral in assumed.items()
        if values.get(key, neutral) != neutral
    ]
    return (*said, *(_generation_warnings(values) if _is_grpo(values) else ()))


def _generation_warnings(values: Mapping[str, Any]) -> Iterator[str]:
    """The lengths that are priced where they are not those of the file."""
    stated, length = _completion(values), _length(values)
    if not values.get("vllm_max_model_length"):
        yield f"no key says how long a prompt is: {length - stated} tokens are priced, as many as of a completion"
    priced = completion_tokens(length)
    if stated != priced:
        yield f"max_completion_length: {stated} is priced as {priced} generated tokens of the {length} of a sample"
