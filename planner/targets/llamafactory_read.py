"""LLaMA-Factory's files back into a setup, with the engine's own defaults for what is absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from planner.targets import accelerate, deepspeed
from planner.targets.context import Reading
from planner.targets.llamafactory_settle import ATTENTION, FILE_NAME
from planner.targets.schema import check_arguments, default_of
from planner.targets.sidecar import sidecar_fields
from planner.targets.yaml_text import load_yaml
from planner.training import TrainingSetup, setup_from_mapping

HiddenOf = Callable[[str], int | None]

# Settings that change memory and that a setup cannot state: key -> the value without effect.
UNPRICED: dict[str, Any] = {
    "adapter_name_or_path": None,
    "auto_find_batch_size": False,
    "fp8": False,
    "mixture_of_depths": None,
    "neat_packing": False,
    "neftune_noise_alpha": None,
    "pissa_init": False,
    "resize_vocab": False,
    "shift_attn": False,
    "train_from_scratch": False,
    "upcast_lmhead_output": False,
    "use_adam_mini": False,
    "use_asft_loss": False,
    "use_dft_loss": False,
    "use_eaft_loss": False,
    "use_kt": False,
    "use_llama_pro": False,
    "use_muon": False,
    "optim_target_modules": None,
    "loraplus_lr_ratio": None,
    "predict_with_generate": False,
    "ref_model_quantization_bit": None,
    "reward_model_quantization_bit": None,
    "ref_model_adapters": None,
}
_KERNELS = {word: kernel for kernel, word in ATTENTION.items()} | {"auto": "sdpa", "fa3": "flash_attention_2"}


def read(files: Mapping[str, str], *, hidden_of: HiddenOf | None = None, name: str = FILE_NAME) -> Reading:
    """The setup that ``files`` (name to text) state; ``name`` is the trainer's YAML among them.

    ``hidden_of`` gives a model's width, so that a default DeepSpeed JSON is recognised as such. Beside the YAML
    the DeepSpeed JSON that it names, ``accelerate.yaml`` and ``plan.json`` are read where present.
    Raises InputError for what LLaMA-Factory itself refuses: unknown keys, wrong types and choices.
    """
    values = load_yaml(files[name], place=name)
    check_arguments(values, place=name)
    state = _State(values)
    fields = (
        {"model": state["model_name_or_path"], "engine": "llamafactory"}
        | _stage(state)
        | _method(state)
        | _data_and_batch(state)
        | _precision(state)
        | _kernel_fields(state)
    )
    fields |= sidecar_fields(files)
    fields |= _sharding(state, files, hidden_of)
    setup = setup_from_mapping(fields, place=name)
    return Reading(setup=setup, warnings=_warnings(state, setup))


class _State:
    """Values of the file; absent keys answer with the engine's default."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values.get(key)
        return default_of(key) if value is None else value

    def flag(self, key: str) -> bool:
        """A switch; the parser also takes the words."""
        return str(self[key]).lower() == "true"

    def count(self, key: str) -> int:
        """A whole number."""
        return int(float(self[key]))


def _stage(state: _State) -> dict[str, Any]:
    fields: dict[str, Any] = {"stage": state["stage"]}
    if state["stage"] == "dpo":
        loss = state["pref_loss"]
        if loss in ("orpo", "simpo"):
            fields["stage"] = loss
        elif loss != "sigmoid":
            fields["pref_loss"] = loss
    fields["ref_model"] = state["ref_model"]
    fields["reward_model"] = state["reward_model"]
    return fields


def _method(state: _State) -> dict[str, Any]:
    kind = state["finetuning_type"]
    if kind in ("lora", "oft"):
        return _adapter(state, kind)
    if kind == "freeze":
        return {"method": "freeze", "freeze_trainable_layers": state.count("freeze_trainable_layers")}
    if state.flag("use_galore"):
        backward = state.flag("galore_layerwise")
        return {"method": "galore", "galore_rank": state.count("galore_rank"), "optimizer_in_backward": backward}
    if state.flag("use_apollo"):
        backward = state.flag("apollo_layerwise")
        return {"method": "apollo", "apollo_rank": state.count("apollo_rank"), "optimizer_in_backward": backward}
    if state.flag("use_badam"):
        return {"method": "badam", "badam_mode": state["badam_mode"]}
    return {"method": "full"}


def _adapter(state: _State, kind: str) -> dict[str, Any]:
    bits = None if state["quantization_bit"] is None else state.count("quantization_bit")
    method = "dora" if state.flag("use_dora") else kind
    fields: dict[str, Any] = {
        "method": "qlora" if method == "lora" and bits else method,
        "lora_target": state["lora_target"],
        "additional_target": state["additional_target"] or (),
        "quantization_bit": bits,
        "lora_dropout": float(state["module_dropout" if kind == "oft" else "lora_dropout"]),
    }
    if kind == "lora":
        fields["lora_rank"] = state.count("lora_rank")
    if bits is not None:
        fields["quantization_method"] = state["quantization_method"]
        fields["double_quantization"] = not (bits == 4 and not state.flag("double_quantization"))
    return fields


def _data_and_batch(state: _State) -> dict[str, Any]:
    packing = state["packing"]
    packed = state["stage"] == "pt" if packing is None else state.flag("packing")
    evaluates = state["eval_strategy"] != "no" or state.flag("do_eval")
    return {
        "seq_len": state.count("cutoff_len"),
        "packing": packed or state.flag("neat_packing"),
        "micro_batch_size": state.count("per_device_train_batch_size"),
        "gradient_accumulation_steps": state.count("gradient_accumulation_steps"),
        "eval_micro_batch_size": state.count("per_device_eval_batch_size") if evaluates else None,
        "optim": state["optim"],
    }


def _precision(state: _State) -> dict[str, Any]:
    pure = state.flag("pure_bf16")
    held = "adapter_dtype" if state["finetuning_type"] in ("lora", "oft") else "param_dtype"
    compute = "bf16" if pure or state.flag("bf16") else "fp16" if state.flag("fp16") else "fp32"
    return {
        "compute_dtype": compute,
        held: "bf16" if pure else None,
        "kbit_upcast": "norms" if state.flag("upcast_layernorm") else None,
    }


def _kernel_fields(state: _State) -> dict[str, Any]:
    offloads = state.flag("use_unsloth_gc")
    return {
        "attention": _KERNELS[state["flash_attn"]],
        "gradient_checkpointing": not state.flag("disable_gradient_checkpointing"),
        "activation_offload": offloads and not state.flag("disable_gradient_checkpointing"),
        "liger_kernel": state.flag("enable_liger_kernel"),
        "unsloth": state.flag("use_unsloth"),
        "torch_compile": state.flag("torch_compile"),
    }


def _sharding(state: _State, files: Mapping[str, str], hidden_of: HiddenOf | None) -> dict[str, Any]:
    config = state["deepspeed"]
    if config is not None:
        hidden = hidden_of(state["model_name_or_path"]) if hidden_of and state["model_name_or_path"] else None
        return deepspeed.read(deepspeed.named_config(config, files, FILE_NAME), hidden)
    if accelerate.FILE_NAME in files:
        return accelerate.read(load_yaml(files[accelerate.FILE_NAME], place=accelerate.FILE_NAME))
    return accelerate.read_trainer_fsdp(state["fsdp"], state["fsdp_config"])


def _warnings(state: _State, setup: TrainingSetup) -> tuple[str, ...]:
    found = [
        f"{key}: {state[key]} is not priced: the estimate is made as if it were {neutral}"
        for key, neutral in UNPRICED.items()
        if state[key] != neutral and str(state[key]).lower() != str(neutral).lower()
    ]
    if state["finetuning_type"] == "freeze" and state["freeze_trainable_modules"] != "all":
        found.append("freeze_trainable_modules: priced as all modules of the trained layers")
    if setup.tensor_parallel > 1 and state.flag("low_cpu_mem_usage"):
        found.append(
            "low_cpu_mem_usage: every GPU holds the whole model while it is loaded, before AutoTP cuts it; priced is "
            "low_cpu_mem_usage: false, which loads it on the host"
        )
    if state["reward_model"] and state["reward_model_type"] != "full":
        found.append("reward_model_type: priced as a whole reward model; an adapter or an API needs less")
    return tuple(found)
