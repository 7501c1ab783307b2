"""TRL 1.15 and newer: the ``train.yaml`` that ``trl sft --config train.yaml`` (dpo, kto, reward, grpo) reads.

Its keys are those of TRL's ScriptArguments, stage configuration, ModelConfig and DatasetMixtureConfig. TRL has no
names for other people's columns and starts anew by itself, so ``train.py`` beside it brings the data into TRL's form,
runs TRL's own script of the stage and goes on from the last checkpoint. Source: trl 1.16.0 scripts/ and trainer/.
"""

from __future__ import annotations

import math
from typing import Any

from planner.errors import UnsupportedError, nearest
from planner.memory.generation import NUM_GENERATIONS, completion_tokens, generations
from planner.targets import deepspeed
from planner.targets.context import EmitContext
from planner.targets.launchers import (
    Launch,
    Launcher,
    accelerate_words,
    place_environment,
    sharding_files,
    torchrun_words,
)
from planner.targets.recipe import host_pipeline, recipe
from planner.targets.schema import arguments
from planner.targets.script import script_texts
from planner.targets.trl_read import COMMANDS, FILE_NAME, TORCH
from planner.targets.yaml_text import dump_sections
from planner.training import FSDP, ZERO, Dtype, TrainingSetup

ENGINE = "TRL"
SCRIPT = "train.py"
MODULES = ("trl/train.py", "trainer/samples.py", "trainer/progress.py")
METHODS = frozenset({"full", "lora", "dora", "qlora"})
PREFERENCE_LOSSES = ("sigmoid", "hinge", "ipo")
REWARD = "rewards.likeness"  # a function in the folder's rewards.py
PREPARED = "prepared"  # the folder into which train.py writes the data in TRL's form

_DEFAULT = TrainingSetup(model="-")
Values = dict[str, Any]


def _refuse(what: str, why: str) -> UnsupportedError:
    return UnsupportedError(f"{ENGINE} cannot run {what}: {why}")


def settle(setup: TrainingSetup, context: EmitContext) -> TrainingSetup:
    """The setup that reading the emitted files gives back; its price is that of ``setup``.

    Raises UnsupportedError naming the field that TRL has no argument for.
    """
    for step in (_stage, _method, _switches, _dtypes):
        setup = setup.but(**step(setup, context))
    changes = deepspeed.settle_sharding(setup, context)
    if setup.ds_config is not None:
        changes["ds_config"] = deepspeed.aligned_config(setup)
    return setup.but(model=context.model_path, engine="trl", **changes)


def _stage(setup: TrainingSetup, context: EmitContext) -> Values:
    if setup.stage not in COMMANDS:
        raise _refuse(f"stage {setup.stage}", f"its command has {', '.join(COMMANDS)}; LLaMA-Factory has the others")
    for field in ("ref_model", "reward_model"):
        if getattr(setup, field) is not None:
            raise _refuse(f"stage {setup.stage} with {field}", "its command compares with the model's own start")
    if setup.stage == "grpo":
        _groups(setup, context)
    if setup.stage != "dpo":
        if setup.pref_loss not in (None, setup.stage):
            raise _refuse(f"stage {setup.stage} with pref_loss {setup.pref_loss}", "pref_loss belongs to stage dpo")
        return {"pref_loss": None}
    if setup.pref_loss not in (None, *PREFERENCE_LOSSES):
        raise _refuse(f"pref_loss {setup.pref_loss}", f"planned for: {', '.join(PREFERENCE_LOSSES)}")
    return {"pref_loss": None if setup.pref_loss == "sigmoid" else setup.pref_loss}


def _groups(setup: TrainingSetup, context: EmitContext) -> tuple[int, int | None]:
    """Completions of a prompt in training and in evaluation: batches have to hold whole groups."""
    ranks = context.world_size
    found = []
    for name, size in (("an effective batch", _sequences(setup)), ("an evaluation batch", setup.eval_micro_batch_size)):
        number = None if size is None else generations(size * ranks)
        if size is not None and number is None:
            why = f"it compares 2 to {NUM_GENERATIONS} completions of a prompt, and no such group divides it"
            raise _refuse(f"stage grpo with {name} of {size * ranks}", f"{why}; choose a multiple of {NUM_GENERATIONS}")
        found.append(number)
    return found[0] or NUM_GENERATIONS, found[1]


def _sequences(setup: TrainingSetup) -> int:
    return setup.micro_batch_size * setup.gradient_accumulation_steps


def _method(setup: TrainingSetup, context: EmitContext) -> Values:
    if context.mixing is not None:
        raise _refuse("several data sets", "its script reads one; LLaMA-Factory and the embedded engine mix them")
    if setup.method not in METHODS:
        raise _refuse(f"method {setup.method}", f"its command has {', '.join(sorted(METHODS))}")
    changes: Values = {"method": "qlora" if setup.method == "lora" and setup.quantization_bit else setup.method}
    if not setup.is_adapter:
        if setup.additional_target or setup.quantization_bit:
            raise _refuse("method full with additional_target or quantization_bit", "these go with an adapter")
        changes |= {name: getattr(_DEFAULT, name) for name in ("lora_rank", "lora_target", "lora_dropout")}
    if setup.quantization_bit and setup.quantization_method != "bnb":
        raise _refuse(f"quantization_method {setup.quantization_method}", "it quantizes with bnb only")
    if setup.quantization_bit != 4:
        changes |= {"double_quantization": True, "quantization_method": "bnb"}
    if setup.packing and setup.stage not in ("pt", "sft"):
        raise _refuse(f"stage {setup.stage} with packing", "only pt and sft pack")
    unused = ("freeze_trainable_layers", "galore_rank", "apollo_rank", "badam_mode")
    return changes | {name: getattr(_DEFAULT, name) for name in unused}


def _switches(setup: TrainingSetup, context: EmitContext) -> Values:
    if setup.loss is not None:
        raise _refuse(f"loss {setup.loss}", "it projects through the head in tiles of its own; leave loss to it")
    if not isinstance(setup.gradient_checkpointing, bool):
        why = "it is planned for with every layer checkpointed, or none"
        raise _refuse(f"gradient_checkpointing {setup.gradient_checkpointing}", why)
    for name in ("activation_offload", "unsloth", "optimizer_in_backward"):
        if getattr(setup, name):
            raise _refuse(name, "no such switch of it is priced")
    for name in ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel"):
        if getattr(setup, name) > 1:
            raise _refuse(f"{name} {getattr(setup, name)}", "its command runs data-parallel only")
    if setup.kbit_upcast not in (None, "none"):
        raise _refuse(f"kbit_upcast {setup.kbit_upcast}", "norms and head keep their dtype since TRL 1.0")
    choices = arguments()["optim"]["choices"]
    if setup.optim not in choices:
        close = nearest(setup.optim, choices)
        raise _refuse(f"optim {setup.optim}", f"nearest valid: {close[0] if close else 'adamw_torch_fused'}")
    return {"loss": None, "kbit_upcast": None}


def _dtypes(setup: TrainingSetup, context: EmitContext) -> Values:
    """Weights are fp32 unless the setup says otherwise: so TRL's command loads them by itself."""
    compute = setup.compute_dtype or ("fp16" if context.has_bf16 is False else "bf16")
    held = setup.param_dtype or _loaded_dtype(setup, compute)
    if setup.quantization_bit and (compute != "bf16" or held != compute):
        raise _refuse(f"quantization_bit {setup.quantization_bit} in {held} and {compute}", "its adapters are bf16")
    if compute == "fp16" and held == "fp16" and not setup.is_adapter:
        raise _refuse("fp16 weights under fp16 autocast", "gradients cannot be unscaled; set param_dtype fp32")
    own = "bf16" if setup.quantization_bit else compute if setup.parallelism in ZERO else "fp32"
    if setup.adapter_dtype is not None and not setup.is_adapter:
        raise _refuse(f"method full with adapter_dtype {setup.adapter_dtype}", "there are no adapters")
    if setup.adapter_dtype not in (None, own):
        raise _refuse(f"adapter_dtype {setup.adapter_dtype}", f"with this setup it holds adapters in {own}")
    return {"compute_dtype": compute, "param_dtype": held, "adapter_dtype": None}


def _loaded_dtype(setup: TrainingSetup, compute: Dtype) -> Dtype:
    """DeepSpeed casts the whole model to the compute dtype, so nothing wider is loaded under it."""
    return compute if setup.quantization_bit or setup.parallelism in ZERO else "fp32"


def files(setup: TrainingSetup, context: EmitContext) -> dict[str, str]:
    """Name to text of train.yaml, the script that runs TRL on it, and the DeepSpeed or accelerate file."""
    settled = settle(setup, context)
    texts = {FILE_NAME: dump_sections(sections(settled, context))}
    modules = (*MODULES, "trl/rewards.py") if settled.stage == "grpo" else MODULES
    return texts | script_texts(modules) | sharding_files(settled, context)


def sections(setup: TrainingSetup, context: EmitContext) -> dict[str, Values]:
    """Key to value of train.yaml for a settled setup, by the titles under which the file shows them."""
    return {
        f"trl {COMMANDS[setup.stage]} --config train.yaml": _model(setup, context),
        "adapter": _adapter(setup) if setup.is_adapter else {"use_peft": False},
        "data": _data(setup, context),
        "stage": _generation(setup, context) if setup.stage == "grpo" else _stage_keys(setup),
        "training": _training(setup),
        "memory": _memory(setup),
        "evaluation": _evaluation(setup),
        "output": _output(setup, context),
    }


def _model(setup: TrainingSetup, context: EmitContext) -> Values:
    dtype = TORCH[setup.param_dtype or "fp32"]
    values: Values = {
        "model_name_or_path": context.model_path,
        "trust_remote_code": context.trust_remote_code,
        "dtype": dtype,
        "attn_implementation": setup.attention,
    }
    if setup.quantization_bit == 8:
        values["load_in_8bit"] = True
    elif setup.quantization_bit:
        # bnb_4bit_quant_storage: sharding engines can split 4-bit weights only where they are stored in a float dtype
        values |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "use_bnb_nested_quant": setup.double_quantization,
            "bnb_4bit_quant_storage": dtype,
        }
    return values


def _adapter(setup: TrainingSetup) -> Values:
    values, rank = recipe(setup), setup.lora_rank
    scale = values["lora_alpha_per_rank"].value
    is_stabilised = rank >= values["rslora_from_rank"].value
    modules = {"lora_modules_to_save": list(setup.additional_target)} if setup.additional_target else {}
    return {
        "use_peft": True,
        "lora_r": rank,
        "lora_alpha": round(scale * math.sqrt(rank)) if is_stabilised else scale * rank,
        "lora_dropout": setup.lora_dropout,
        "lora_target_modules": ["all-linear"] if setup.lora_target == "all" else list(setup.lora_target),
        **modules,
        "lora_task_type": "SEQ_CLS" if setup.stage == "rm" else "CAUSAL_LM",
        "use_dora": setup.method == "dora",
        "use_rslora": is_stabilised,
    }


def _data(setup: TrainingSetup, context: EmitContext) -> Values:
    pipeline = host_pipeline(context)
    own = {"dataset_num_proc": pipeline.preprocessing_num_workers, "max_length": setup.seq_len}
    return {
        "dataset_name": PREPARED,
        **({} if setup.stage == "grpo" else own),
        "dataloader_num_workers": pipeline.dataloader_num_workers,
        "dataloader_pin_memory": pipeline.dataloader_pin_memory,
    }


def _stage_keys(setup: TrainingSetup) -> Values:
    """What only this stage has, among it the key by which it is recognised."""
    if setup.stage in ("pt", "sft"):
        # wrapped: samples one after the other, cut at the length; bfd needs an attention without padding
        packing = {"packing": setup.packing, "packing_strategy": "wrapped"}
        return {"loss_type": "nll", **packing, "completion_only_loss": setup.stage == "sft"}
    if setup.stage == "rm":
        return {"disable_dropout": True}
    beta = recipe(setup)["pref_beta"].value
    if setup.stage == "dpo":
        return {"loss_type": [setup.pref_loss or "sigmoid"], "beta": beta, "precompute_ref_log_probs": False}
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    return {"loss_type": "kto", "beta": beta, **weights, "precompute_ref_log_probs": False}


def _generation(setup: TrainingSetup, context: EmitContext) -> Values:
    """GRPO's own keys at TRL's defaults. The key of vLLM's window is TRL's only word for prompt and completion
    together: train.py cuts prompts by it.
    """
    number, held_out = _groups(setup, context)
    return {
        "reward_funcs": [REWARD],
        "num_generations": number,
        **({} if held_out is None else {"num_generations_eval": held_out}),
        "max_completion_length": completion_tokens(setup.seq_len),
        "vllm_max_model_length": setup.seq_len,
        "use_vllm": False,
        "temperature": 1.0,
        "beta": 0.0,
        "num_iterations": 1,
        "loss_type": "dapo",
    }


def _training(setup: TrainingSetup) -> Values:
    values = recipe(setup)
    copied = ("learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "num_train_epochs", "seed")
    return {
        "per_device_train_batch_size": setup.micro_batch_size,
        "gradient_accumulation_steps": setup.gradient_accumulation_steps,
        **{key: values[key].value for key in copied},
        "warmup_steps": values["warmup_ratio"].value,  # below 1: a share of the steps, transformers 5
        "optim": setup.optim,
    }


def _memory(setup: TrainingSetup) -> Values:
    values: Values = {
        "bf16": setup.compute_dtype == "bf16",
        "fp16": setup.compute_dtype == "fp16",
        "gradient_checkpointing": bool(setup.gradient_checkpointing),
        "use_liger_kernel": setup.liger_kernel,
        "torch_compile": setup.torch_compile,
        "ddp_timeout": recipe(setup)["ddp_timeout"].value,
        "ddp_find_unused_parameters": False,
    }
    if setup.gradient_checkpointing:
        values["gradient_checkpointing_kwargs"] = {"use_reentrant": is_reentrant(setup)}
    if setup.parallelism in ZERO:
        values["deepspeed"] = deepspeed.FILE_NAME
    return values


def is_reentrant(setup: TrainingSetup) -> bool:
    """TRL forces it for adapters under ZeRO-3 (trainer/sft_trainer.py); elsewhere PyTorch's advice holds."""
    return setup.is_adapter and setup.parallelism == "zero3"


def _evaluation(setup: TrainingSetup) -> Values:
    if setup.eval_micro_batch_size is None:
        return {"eval_strategy": "no"}
    return {
        "eval_strategy": "steps",
        "eval_steps": recipe(setup)["eval_steps"].value,
        "per_device_eval_batch_size": setup.eval_micro_batch_size,
        "prediction_loss_only": True,
    }


def _output(setup: TrainingSetup, context: EmitContext) -> Values:
    values = recipe(setup)
    return {
        "output_dir": context.output_dir,
        "logging_steps": values["logging_steps"].value,
        "save_strategy": "steps",
        "save_steps": values["save_steps"].value,
        "save_total_limit": context.checkpoints_kept or values["save_total_limit"].value,
        "report_to": context.report_to,
        "include_num_input_tokens_seen": setup.stage in ("pt", "sft"),
    }


def launch(setup: TrainingSetup, context: EmitContext) -> Launch:
    """accelerate for FSDP, torchrun for the rest; TRL's own command where it starts as many processes as planned."""
    command = COMMANDS[setup.stage]
    tail = (SCRIPT, command)
    by_torchrun = Launcher(
        name="torchrun",
        words=torchrun_words(context, tail),
        note="one process a GPU; train.py brings the data into TRL's form and runs TRL's own script",
    )
    note = "FSDP's settings come from its file" if setup.parallelism in FSDP else "where accelerate is preferred"
    by_accelerate = Launcher(name="accelerate", words=accelerate_words(setup, context, tail), note=note)
    sharding = ("--num_processes", str(context.gpus_per_node))
    if setup.parallelism in FSDP or setup.parallelism == "ddp":
        sharding = ("--config_file", "accelerate.yaml")
    own = Launcher(
        name="trl",
        words=("trl", command, "--config", FILE_NAME, *sharding),
        note=f"TRL's command alone, once train.py has written {PREPARED}/; it neither resumes nor logs memory",
    )
    is_fsdp = setup.parallelism in FSDP
    others = [] if is_fsdp or context.world_size == 1 else [by_accelerate]
    if context.nodes == 1:
        others.append(own)
    return Launch(
        chosen=by_accelerate if is_fsdp else by_torchrun,
        others=tuple(others),
        environment=place_environment(context),
        remedy="install TRL: pip install trl peft",
        alone="No other launcher passes FSDP's settings on.",
        override="max_steps=10",
    )
