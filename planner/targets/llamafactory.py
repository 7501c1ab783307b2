"""LLaMA-Factory 0.9.5: the values of its ``train.yaml``, every memory-relevant one explicit."""

from __future__ import annotations

import math
from typing import Any

from planner.errors import InputError
from planner.targets import deepspeed
from planner.targets.context import EmitContext
from planner.targets.launchers import sharding_files
from planner.targets.llamafactory_launch import launch
from planner.targets.llamafactory_settle import ATTENTION, ENGINE, FILE_NAME, settle
from planner.targets.recipe import host_pipeline, recipe
from planner.targets.yaml_text import dump_sections
from planner.training import REFERENCE_STAGES, ZERO, TrainingSetup

__all__ = ["ENGINE", "FILE_NAME", "emit", "files", "launch", "sections", "settle"]

Values = dict[str, Any]


def files(setup: TrainingSetup, context: EmitContext) -> dict[str, str]:
    """Name to text of every file that LLaMA-Factory and its launchers read for a setup.

    ``train.yaml`` always, ``ds_config.json`` under ZeRO, ``accelerate.yaml`` for DDP and FSDP.
    Raises UnsupportedError for what LLaMA-Factory has no argument for.
    """
    settled = settle(setup, context)
    return {FILE_NAME: dump_sections(sections(settled, context))} | sharding_files(settled, context)


def emit(setup: TrainingSetup, context: EmitContext) -> Values:
    """Key to value of train.yaml for a setup, in reading order.

    Raises UnsupportedError for what LLaMA-Factory has no argument for.
    """
    return {key: value for part in sections(setup, context).values() for key, value in part.items()}


def sections(setup: TrainingSetup, context: EmitContext) -> dict[str, Values]:
    """The same, by the titles under which the file shows them."""
    setup = settle(setup, context)
    return {
        "model": _model(setup, context),
        "method": _stage(setup) | _method(setup),
        "data": _data(setup, context),
        "training": _batch(setup) | _schedule(setup),
        "memory": _memory(setup),
        "distributed": _distributed(setup),
        "evaluation": _evaluation(setup, context),
        "output": _output(setup, context),
    }


def _model(setup: TrainingSetup, context: EmitContext) -> Values:
    values: Values = {"model_name_or_path": context.model_path, "trust_remote_code": context.trust_remote_code}
    if setup.tensor_parallel > 1:  # AutoTP cuts the model where it lies: on the host it need not fit one GPU whole
        values["low_cpu_mem_usage"] = False
    if setup.quantization_bit is not None:
        values["quantization_method"] = setup.quantization_method
        values["quantization_bit"] = setup.quantization_bit
        if setup.quantization_method == "bnb":
            values["quantization_type"] = "nf4"
            values["double_quantization"] = setup.double_quantization
    return values


def _stage(setup: TrainingSetup) -> Values:
    is_dpo = setup.stage in ("dpo", "orpo", "simpo")
    values: Values = {"stage": "dpo" if is_dpo else setup.stage, "do_train": True}
    if is_dpo:
        values["pref_loss"] = setup.stage if setup.stage != "dpo" else (setup.pref_loss or "sigmoid")
    if is_dpo or setup.stage == "kto":
        values["pref_beta"] = recipe(setup)["pref_beta"].value
    if setup.ref_model and setup.stage in REFERENCE_STAGES:
        values["ref_model"] = setup.ref_model
    if setup.reward_model:
        values |= {"reward_model": setup.reward_model, "reward_model_type": "full"}
    return values


def _method(setup: TrainingSetup) -> Values:
    if setup.method in ("lora", "dora", "qlora"):
        return _lora(setup)
    if setup.method == "oft":
        return {"finetuning_type": "oft", "oft_rank": 0, "oft_block_size": 32} | _adapter_targets(setup)
    if setup.method == "freeze":
        layers = setup.freeze_trainable_layers
        return {"finetuning_type": "freeze", "freeze_trainable_layers": layers, "freeze_trainable_modules": "all"}
    return {"finetuning_type": "full"} | _full_variant(setup)


def _lora(setup: TrainingSetup) -> Values:
    values, rank = recipe(setup), setup.lora_rank
    scale = values["lora_alpha_per_rank"].value
    is_stabilised = rank >= values["rslora_from_rank"].value
    return {
        "finetuning_type": "lora",
        "lora_rank": rank,
        # LoRA scales its update by alpha / r, rsLoRA by alpha / sqrt(r): the same scale either way.
        "lora_alpha": round(scale * math.sqrt(rank)) if is_stabilised else scale * rank,
        "lora_dropout": setup.lora_dropout,
        **_adapter_targets(setup),
        "use_dora": setup.method == "dora",
        "use_rslora": is_stabilised,
    }


def _adapter_targets(setup: TrainingSetup) -> Values:
    target = setup.lora_target if isinstance(setup.lora_target, str) else ",".join(setup.lora_target)
    values: Values = {"lora_target": target}
    if setup.method == "oft":
        values["module_dropout"] = setup.lora_dropout
    if setup.additional_target:
        values["additional_target"] = ",".join(setup.additional_target)
    return values


def _full_variant(setup: TrainingSetup) -> Values:
    if setup.method == "galore":
        return {
            "use_galore": True,
            "galore_target": "all",
            "galore_rank": setup.galore_rank,
            "galore_update_interval": 200,
            "galore_scale": 2.0,
            "galore_layerwise": setup.optimizer_in_backward,
        }
    if setup.method == "apollo":
        return {
            "use_apollo": True,
            "apollo_target": "all",
            "apollo_rank": setup.apollo_rank,
            "apollo_update_interval": 200,
            "apollo_scale": 32.0,
            "apollo_layerwise": setup.optimizer_in_backward,
        }
    if setup.method == "badam":
        return {"use_badam": True, "badam_mode": setup.badam_mode}
    return {}


def _data(setup: TrainingSetup, context: EmitContext) -> Values:
    pipeline = host_pipeline(context)
    values: Values = {"dataset_dir": ".", "dataset": context.dataset}
    if context.eval_dataset and setup.eval_micro_batch_size is not None:
        values["eval_dataset"] = context.eval_dataset
    if context.mixing is not None:
        values["mix_strategy"] = context.mixing.strategy
        if context.mixing.probs:
            values["interleave_probs"] = ",".join(map(repr, context.mixing.probs))
    if context.template and setup.stage != "pt":
        values["template"] = context.template
    return values | {
        "cutoff_len": setup.seq_len,
        "packing": setup.packing,
        "neat_packing": False,
        "streaming": False,
        "preprocessing_num_workers": pipeline.preprocessing_num_workers,
        "dataloader_num_workers": pipeline.dataloader_num_workers,
        "dataloader_pin_memory": pipeline.dataloader_pin_memory,
    }


def _batch(setup: TrainingSetup) -> Values:
    return {
        "per_device_train_batch_size": setup.micro_batch_size,
        "gradient_accumulation_steps": setup.gradient_accumulation_steps,
    }


def _schedule(setup: TrainingSetup) -> Values:
    values = recipe(setup)
    keys = ("learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_grad_norm", "num_train_epochs")
    return {key: values[key].value for key in keys} | {"optim": setup.optim, "seed": values["seed"].value}


def _memory(setup: TrainingSetup) -> Values:
    pure = (setup.adapter_dtype or setup.param_dtype) == "bf16"
    return {
        "bf16": setup.compute_dtype == "bf16" and (not pure or setup.parallelism in ZERO),
        "fp16": setup.compute_dtype == "fp16",
        "pure_bf16": pure,
        "flash_attn": ATTENTION[setup.attention],
        "disable_gradient_checkpointing": not setup.gradient_checkpointing,
        "use_unsloth_gc": setup.activation_offload,
        "enable_liger_kernel": setup.liger_kernel,
        "use_unsloth": setup.unsloth,
        "upcast_layernorm": setup.kbit_upcast == "norms",
        "upcast_lmhead_output": False,
        "torch_compile": setup.torch_compile,
    }


def _distributed(setup: TrainingSetup) -> Values:
    values: Values = {"ddp_timeout": recipe(setup)["ddp_timeout"].value, "ddp_find_unused_parameters": False}
    if setup.parallelism in ZERO:
        values["deepspeed"] = deepspeed.FILE_NAME
    return values


def _evaluation(setup: TrainingSetup, context: EmitContext) -> Values:
    if setup.eval_micro_batch_size is None:
        return {"eval_strategy": "no"}
    values = recipe(setup)
    part: Values = {} if context.eval_dataset else {"val_size": _held_out(values["val_size"].value, context)}
    return part | {
        "per_device_eval_batch_size": setup.eval_micro_batch_size,
        "eval_strategy": "steps",
        "eval_steps": values["eval_steps"].value,
    }


def _held_out(share: float, context: EmitContext) -> float:
    if context.samples is not None and context.samples * share < 1:
        raise InputError(
            f"evaluation holds out {share:.0%} of the samples, and there are only {context.samples}: "
            "give a validation file, or leave eval_micro_batch_size out"
        )
    return share


def _output(setup: TrainingSetup, context: EmitContext) -> Values:
    values = recipe(setup)
    return {
        "output_dir": context.output_dir,
        "overwrite_output_dir": False,
        "logging_steps": values["logging_steps"].value,
        "include_num_input_tokens_seen": setup.stage in ("pt", "sft"),
        "save_strategy": "steps",
        "save_steps": values["save_steps"].value,
        "save_total_limit": context.checkpoints_kept or values["save_total_limit"].value,
        "report_to": context.report_to,
    }
