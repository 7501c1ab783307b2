"""Engines that are a script in the folder: ``train.py``, its modules, and a JSON file with every setting that counts.

The file has the sections model, quantization, adapter, data, parallelism and arguments; the last have the names of
transformers' TrainingArguments (5.x). Weights load in the stated dtype: a script that states none gets the
checkpoint's since transformers 5, and 16-bit weights then have 16-bit Adam states. ``transformers_script`` runs
transformers' Trainer on it, ``embedded`` a loop around accelerate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from planner.errors import InputError, UnsupportedError, nearest
from planner.rulebook.paths import templates_dir
from planner.targets import accelerate, deepspeed
from planner.targets.context import EmitContext, Reading
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
from planner.targets.sidecar import sidecar_fields
from planner.targets.yaml_text import load_yaml
from planner.training import FSDP, ZERO, Dtype, TrainingSetup, setup_from_mapping

SCRIPT = "train.py"
METHODS = frozenset({"full", "lora", "dora", "qlora"})
SHARED = ("trainer/samples.py", "trainer/model.py", "trainer/progress.py")
_TORCH = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_DTYPES = {word: dtype for dtype, word in _TORCH.items()}
_DEFAULT = TrainingSetup(model="-")
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Script:
    """One engine of this kind: its id, its name in sentences, its settings file, its modules under ``templates/``.

    ``trains_in_fp32``: weights of full fine-tuning are made fp32 unless the setup says otherwise. ``check`` says what
    only this script cannot do, and why; ``unread`` are arguments of the Trainer that it has no use for;
    ``leaves_layers_out``: it can checkpoint every n-th layer.
    """

    id: str
    name: str
    file_name: str
    modules: tuple[str, ...]
    trains_in_fp32: bool
    check: Callable[[TrainingSetup], tuple[str, str] | None]
    unread: frozenset[str] = frozenset()
    leaves_layers_out: bool = False

    def refuse(self, what: str, why: str) -> UnsupportedError:
        """The error for ``what`` this engine cannot run."""
        return UnsupportedError(f"{self.name} cannot run {what}: {why}")


def settle(script: Script, setup: TrainingSetup, context: EmitContext) -> TrainingSetup:
    """The setup that reading the emitted files gives back; UnsupportedError for what the script cannot do."""
    for step in (_method, _switches, _dtypes):
        setup = setup.but(**step(script, setup, context))
    changes = deepspeed.settle_sharding(setup, context)
    if setup.ds_config is not None:
        changes["ds_config"] = deepspeed.aligned_config(setup)
    settled = setup.but(model=context.model_path, engine=script.id, **changes)
    if context.mixing is not None and context.mixing.strategy != "concat":
        raise script.refuse(f"mix_strategy {context.mixing.strategy}", "it reads several data sets one after the other")
    refused = script.check(settled)
    if refused is not None:
        raise script.refuse(*refused)
    return settled


def _method(script: Script, setup: TrainingSetup, context: EmitContext) -> Values:
    if setup.stage not in ("pt", "sft"):
        raise script.refuse(
            f"stage {setup.stage}", "it trains on text and answers (pt, sft); LLaMA-Factory has the others"
        )
    if setup.method not in METHODS:
        raise script.refuse(f"method {setup.method}", f"it knows {', '.join(sorted(METHODS))}")
    for field in ("pref_loss", "ref_model", "reward_model"):
        if getattr(setup, field) is not None:
            raise script.refuse(f"stage {setup.stage} with {field}", "no such stage reads it")
    changes: Values = {"method": "qlora" if setup.method == "lora" and setup.quantization_bit else setup.method}
    if not setup.is_adapter:
        if setup.additional_target or setup.quantization_bit:
            raise script.refuse("method full with additional_target or quantization_bit", "these go with an adapter")
        changes |= {name: getattr(_DEFAULT, name) for name in ("lora_rank", "lora_target", "lora_dropout")}
    if setup.quantization_bit and setup.quantization_method != "bnb":
        raise script.refuse(f"quantization_method {setup.quantization_method}", "it quantizes with bnb only")
    if setup.quantization_bit != 4:
        changes |= {"double_quantization": True, "quantization_method": "bnb"}
    unused = ("freeze_trainable_layers", "galore_rank", "apollo_rank", "badam_mode")
    return changes | {name: getattr(_DEFAULT, name) for name in unused}


def _switches(script: Script, setup: TrainingSetup, context: EmitContext) -> Values:
    own_loss = "fused_linear" if setup.liger_kernel else "torch"
    if setup.loss not in (None, own_loss):
        raise script.refuse(f"loss {setup.loss}", f"with these kernels its loss is {own_loss}")
    how = setup.gradient_checkpointing
    if isinstance(how, str) or not (isinstance(how, bool) or script.leaves_layers_out):
        whole = "every layer, every n-th or none" if script.leaves_layers_out else "every layer or none"
        raise script.refuse(f"gradient_checkpointing {how}", f"it checkpoints {whole}")
    for name in ("activation_offload", "unsloth", "optimizer_in_backward"):
        if getattr(setup, name):
            raise script.refuse(name, "the Trainer has no such switch")
    for name in ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel"):
        if getattr(setup, name) > 1:
            raise script.refuse(f"{name} {getattr(setup, name)}", "it runs data-parallel only")
    if setup.kbit_upcast not in (None, "none"):
        raise script.refuse(f"kbit_upcast {setup.kbit_upcast}", "norms and head keep their dtype")
    choices = arguments()["optim"]["choices"]
    if setup.optim not in choices:
        close = nearest(setup.optim, choices)
        raise script.refuse(f"optim {setup.optim}", f"nearest valid: {close[0] if close else 'adamw_torch_fused'}")
    return {"loss": None, "kbit_upcast": None}


def _dtypes(script: Script, setup: TrainingSetup, context: EmitContext) -> Values:
    compute = setup.compute_dtype or ("fp16" if context.has_bf16 is False else "bf16")
    held = setup.param_dtype or _loaded_dtype(script, setup, context, compute)
    if compute == "fp16" and held == "fp16" and not setup.is_adapter:
        raise script.refuse("fp16 weights under fp16 autocast", "gradients cannot be unscaled; set param_dtype fp32")
    own = compute if setup.parallelism in ZERO else "fp32"
    adapter = None if setup.adapter_dtype == own else setup.adapter_dtype
    if not setup.is_adapter and adapter is not None:
        raise script.refuse(f"method full with adapter_dtype {adapter}", "there are no adapters")
    if adapter is not None and (adapter != held or setup.parallelism in ZERO):
        raise script.refuse(f"adapter_dtype {adapter}", f"peft holds adapters in fp32 or in the base's {held}")
    return {"compute_dtype": compute, "param_dtype": held, "adapter_dtype": adapter}


def _loaded_dtype(script: Script, setup: TrainingSetup, context: EmitContext, compute: Dtype) -> Dtype:
    if setup.quantization_bit:
        return compute
    if script.trains_in_fp32 and not setup.is_adapter:
        return compute if setup.parallelism in ZERO else "fp32"
    return context.stored_dtype


def files(script: Script, setup: TrainingSetup, context: EmitContext) -> dict[str, str]:
    """Name to text of the script, its settings, and the DeepSpeed or accelerate file where the plan needs one."""
    settled = settle(script, setup, context)
    values = emit(settled, context)
    values["arguments"] = {key: value for key, value in values["arguments"].items() if key not in script.unread}
    texts = {script.file_name: json.dumps(values, indent=2, ensure_ascii=False) + "\n"}
    return texts | script_texts((*script.modules, *SHARED)) | sharding_files(settled, context)


def script_texts(paths: tuple[str, ...]) -> dict[str, str]:
    """File name to text of modules, named by their place under ``templates/``."""
    return {path.rpartition("/")[2]: (templates_dir() / path).read_text(encoding="utf-8") for path in paths}


def emit(setup: TrainingSetup, context: EmitContext) -> Values:
    """The object of train_args.json for a settled setup."""
    return {
        "model": {
            "name_or_path": context.model_path,
            "dtype": _TORCH[setup.param_dtype or "fp32"],
            "attention": setup.attention,
            "trust_remote_code": context.trust_remote_code,
        },
        "quantization": _quantization(setup),
        "adapter": _adapter(setup) if setup.is_adapter else None,
        "data": _data(setup, context),
        "parallelism": {"kind": setup.parallelism},
        "arguments": _arguments(setup, context),
    }


def _quantization(setup: TrainingSetup) -> Values | None:
    if setup.quantization_bit is None:
        return None
    return {"bits": setup.quantization_bit, "type": "nf4", "double": setup.double_quantization}


def _adapter(setup: TrainingSetup) -> Values:
    values, rank = recipe(setup), setup.lora_rank
    scale = values["lora_alpha_per_rank"].value
    is_stabilised = rank >= values["rslora_from_rank"].value
    return {
        "rank": rank,
        "alpha": round(scale * math.sqrt(rank)) if is_stabilised else scale * rank,
        "dropout": setup.lora_dropout,
        "target": setup.lora_target if isinstance(setup.lora_target, str) else list(setup.lora_target),
        "modules_to_save": list(setup.additional_target) or None,
        "dora": setup.method == "dora",
        "rslora": is_stabilised,
        "upcast": setup.adapter_dtype is None,
    }


def _data(setup: TrainingSetup, context: EmitContext) -> Values:
    evaluates = setup.eval_micro_batch_size is not None
    share = recipe(setup)["val_size"].value if evaluates and not context.eval_dataset else 0.0
    return {
        "stage": setup.stage,
        "cutoff_len": setup.seq_len,
        "packing": setup.packing,
        "dataset": context.dataset,
        "eval_dataset": context.eval_dataset if evaluates else None,
        "val_size": share,
    }


def _arguments(setup: TrainingSetup, context: EmitContext) -> Values:
    values, pipeline = recipe(setup), host_pipeline(context)
    copied = ("learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "num_train_epochs", "seed")
    return {
        "output_dir": context.output_dir,
        "per_device_train_batch_size": setup.micro_batch_size,
        "gradient_accumulation_steps": setup.gradient_accumulation_steps,
        **{key: values[key].value for key in copied},
        "warmup_steps": values["warmup_ratio"].value,  # below 1: a share of the steps, transformers 5
        "optim": setup.optim,
        "bf16": setup.compute_dtype == "bf16",
        "fp16": setup.compute_dtype == "fp16",
        "gradient_checkpointing": setup.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_liger_kernel": setup.liger_kernel,
        "torch_compile": setup.torch_compile,
        **_evaluation(setup),
        "logging_steps": values["logging_steps"].value,
        "save_strategy": "steps",
        "save_steps": values["save_steps"].value,
        "save_total_limit": context.checkpoints_kept or values["save_total_limit"].value,
        "report_to": context.report_to,
        "include_num_input_tokens_seen": "all",
        "dataloader_num_workers": pipeline.dataloader_num_workers,
        "dataloader_pin_memory": pipeline.dataloader_pin_memory,
        "remove_unused_columns": False,
        "ddp_timeout": values["ddp_timeout"].value,
        "ddp_find_unused_parameters": False,
        **({"deepspeed": deepspeed.FILE_NAME} if setup.parallelism in ZERO else {}),
    }


def _evaluation(setup: TrainingSetup) -> Values:
    if setup.eval_micro_batch_size is None:
        return {"eval_strategy": "no"}
    steps = recipe(setup)["eval_steps"].value
    return {
        "eval_strategy": "steps",
        "eval_steps": steps,
        "per_device_eval_batch_size": setup.eval_micro_batch_size,
        "prediction_loss_only": True,
    }


def read(
    script: Script, texts: Mapping[str, str], *, hidden_of: Callable[[str], int | None] | None, name: str
) -> Reading:
    """The setup that the files state. Raises InputError for a file that is not one of ours."""
    try:
        raw = json.loads(texts[name])
        fields = {"engine": script.id} | _read_model(raw) | _read_arguments(raw)
        fields |= sidecar_fields(texts) | {"parallelism": raw["parallelism"]["kind"]}
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise InputError(
            f"{name}: is not the settings of {script.name} ({type(problem).__name__}: {problem})"
        ) from None
    if fields["parallelism"] in ZERO:
        hidden = hidden_of(fields["model"]) if hidden_of else None
        fields |= deepspeed.read(json.loads(texts[raw["arguments"]["deepspeed"]]), hidden)
    elif fields["parallelism"] in FSDP and accelerate.FILE_NAME in texts:
        fields |= accelerate.read(load_yaml(texts[accelerate.FILE_NAME], place=accelerate.FILE_NAME))
    return Reading(setup=setup_from_mapping(fields, place=name))


def _read_model(raw: Mapping[str, Any]) -> Values:
    model, adapter, quantization, data = raw["model"], raw["adapter"], raw["quantization"], raw["data"]
    fields: Values = {
        "model": model["name_or_path"],
        "attention": model["attention"],
        "param_dtype": _DTYPES[model["dtype"]],
        "stage": data["stage"],
        "seq_len": data["cutoff_len"],
        "packing": data["packing"],
        "method": "full",
    }
    if adapter:
        fields["method"] = "dora" if adapter["dora"] else ("qlora" if quantization else "lora")
        fields |= {"lora_rank": adapter["rank"], "lora_target": adapter["target"], "lora_dropout": adapter["dropout"]}
        fields["additional_target"] = adapter["modules_to_save"] or ()
        fields["adapter_dtype"] = None if adapter["upcast"] else _DTYPES[model["dtype"]]
    if quantization:
        fields["quantization_bit"] = quantization["bits"]
        fields["double_quantization"] = quantization["double"]
    return fields


def _read_arguments(raw: Mapping[str, Any]) -> Values:
    """TrainingArguments with transformers' own defaults for absent keys."""
    stated = raw["arguments"]
    evaluates = stated.get("eval_strategy", "no") != "no"
    return {
        "micro_batch_size": stated.get("per_device_train_batch_size", 8),
        "gradient_accumulation_steps": stated.get("gradient_accumulation_steps", 1),
        "eval_micro_batch_size": stated.get("per_device_eval_batch_size", 8) if evaluates else None,
        "optim": stated.get("optim", "adamw_torch_fused"),
        "compute_dtype": "bf16" if stated.get("bf16") else ("fp16" if stated.get("fp16") else "fp32"),
        "gradient_checkpointing": stated.get("gradient_checkpointing", False),
        "liger_kernel": stated.get("use_liger_kernel", False),
        "torch_compile": stated.get("torch_compile", False),
    }


def launch(setup: TrainingSetup, context: EmitContext) -> Launch:
    """accelerate for FSDP, torchrun for the rest, on one GPU too: plain python would wrap several in DataParallel."""
    by_torchrun = Launcher(
        name="torchrun",
        words=torchrun_words(context, (SCRIPT,)),
        note="one process a GPU; without a launcher several visible GPUs would silently share one process",
    )
    by_accelerate = Launcher(
        name="accelerate",
        words=accelerate_words(setup, context, (SCRIPT,)),
        note="FSDP's settings come from its file" if setup.parallelism in FSDP else "where accelerate is preferred",
    )
    is_fsdp = setup.parallelism in FSDP
    return Launch(
        chosen=by_accelerate if is_fsdp else by_torchrun,
        others=() if is_fsdp or context.world_size == 1 else (by_accelerate,),
        environment=place_environment(context),
        remedy="install it with: pip install torch transformers accelerate peft",
        alone="Do not start train.py with plain python where several GPUs are visible.",
        override="arguments.max_steps=10",
    )
