"""A setup as LLaMA-Factory would run it: its own choices filled in, what it cannot do refused.

Settling makes writing and reading inverse to each other: fields without effect take their default, fields that
state what the engine does anyway become None, and whatever LLaMA-Factory has no argument for is refused here,
never dropped. Facts: LLaMA-Factory 0.9.5, hparams/parser.py, model/adapter.py, train/trainer_utils.py.
"""

from __future__ import annotations

from typing import Any

from planner.errors import UnsupportedError, nearest
from planner.targets.context import EmitContext
from planner.targets.deepspeed import aligned_config, settle_sharding
from planner.targets.schema import arguments
from planner.training import REFERENCE_STAGES, ZERO, TrainingSetup

ENGINE = "LLaMA-Factory 0.9.5"
FILE_NAME = "train.yaml"
ATTENTION = {"eager": "disabled", "sdpa": "sdpa", "flash_attention_2": "fa2"}
WHOLE_MODEL = frozenset({"full", "freeze", "galore", "apollo", "badam"})
PTQ_METHODS = frozenset({"gptq", "awq", "aqlm", "quanto", "mxfp4", "fp8"})  # nothing quantizes these at load
GALORE_OPTIMIZERS = ("adamw_torch", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adafactor")
PREFERENCE_LOSSES = ("sigmoid", "hinge", "ipo", "kto_pair")

_DEFAULT = TrainingSetup(model="-")


def settle(setup: TrainingSetup, context: EmitContext) -> TrainingSetup:
    """The setup that reading the emitted files gives back; its price is that of ``setup``.

    Raises UnsupportedError naming the field that LLaMA-Factory has no argument for.
    """
    for step in (_stage, _method, _quantization, _kernels, _dtypes, _optimizer, _parallelism):
        setup = setup.but(**step(setup, context))
    return setup.but(model=context.model_path, engine="llamafactory")


def _refuse(what: str, why: str) -> UnsupportedError:
    return UnsupportedError(f"{ENGINE} cannot run {what}: {why}")


def _stage(setup: TrainingSetup, context: EmitContext) -> dict[str, Any]:
    if setup.stage == "grpo":
        raise _refuse("stage grpo", "it has no such stage; TRL has: --engine trl")
    if setup.stage == "ppo" and setup.eval_micro_batch_size is not None:
        raise _refuse("stage ppo with eval_micro_batch_size", "its PPO trainer does not evaluate")
    changes: dict[str, Any] = {"pref_loss": None}
    if setup.stage == "dpo":
        changes["pref_loss"] = _preference_loss(setup.pref_loss)
    elif setup.pref_loss not in (None, setup.stage):
        raise _refuse(f"stage {setup.stage} with pref_loss {setup.pref_loss}", "pref_loss belongs to stage dpo")
    if setup.ref_model and setup.stage not in REFERENCE_STAGES:
        raise _refuse(f"stage {setup.stage} with a ref_model", "only dpo, kto and ppo read one")
    if setup.stage == "ppo" and setup.reward_model is None:
        raise _refuse("stage ppo without a reward_model", "name one that was trained with stage rm")
    if setup.stage != "ppo" and setup.reward_model is not None:
        raise _refuse(f"stage {setup.stage} with a reward_model", "only ppo reads one")
    return changes


def _preference_loss(word: str | None) -> str | None:
    if word in (None, "sigmoid"):
        return None
    if word not in PREFERENCE_LOSSES:
        close = nearest(str(word), (*PREFERENCE_LOSSES, "orpo", "simpo"))
        raise _refuse(f"pref_loss {word}", f"nearest valid: {close[0] if close else 'sigmoid'}")
    return word


def _method(setup: TrainingSetup, context: EmitContext) -> dict[str, Any]:
    method = "qlora" if setup.method == "lora" and setup.quantization_bit else setup.method
    unused: set[str] = set()
    if not setup.is_adapter:
        unused |= {"lora_rank", "lora_target", "lora_dropout"}
        if setup.additional_target:
            raise _refuse(f"method {method} with additional_target", "it trains modules beside an adapter only")
    if method == "oft":
        unused |= {"lora_rank"}
    for owner, field in (("freeze", "freeze_trainable_layers"), ("galore", "galore_rank"), ("apollo", "apollo_rank")):
        unused |= set() if method == owner else {field}
    if method != "badam":
        unused.add("badam_mode")
    if method in ("dora", "oft") and setup.unsloth:
        raise _refuse(f"method {method} with unsloth", "Unsloth's kernels cover plain LoRA only")
    return {"method": method} | {field: getattr(_DEFAULT, field) for field in unused}


def _quantization(setup: TrainingSetup, context: EmitContext) -> dict[str, Any]:
    if setup.quantization_bit is None:
        return {"double_quantization": True, "quantization_method": "bnb"}
    if not setup.is_adapter:
        raise _refuse(f"method {setup.method} with quantization_bit", "quantization goes with LoRA or OFT only")
    way, stored = setup.quantization_method, context.stored_quantization
    if way in PTQ_METHODS and stored is None:
        raise _refuse(f"quantization_method {way}", f"the checkpoint {context.model_path} is not stored in {way}")
    if way not in arguments()["quantization_method"]["choices"]:
        close = nearest(way, arguments()["quantization_method"]["choices"])
        raise _refuse(f"quantization_method {way}", f"nearest valid: {close[0] if close else 'bnb'}")
    return {} if way == "bnb" and setup.quantization_bit == 4 else {"double_quantization": True}


def _kernels(setup: TrainingSetup, context: EmitContext) -> dict[str, Any]:
    own_loss = "fused_linear" if setup.liger_kernel and setup.stage in ("pt", "sft") else "torch"
    if setup.loss not in (None, own_loss):
        raise _refuse(f"loss {setup.loss}", f"with this stage and kernels its loss is {own_loss}")
    if not isinstance(setup.gradient_checkpointing, bool):
        raise _refuse(f"gradient_checkpointing {setup.gradient_checkpointing}", "it checkpoints every layer or none")
    if setup.activation_offload and not setup.gradient_checkpointing:
        raise _refuse("activation_offload without gradient_checkpointing", "use_unsloth_gc offloads checkpoints only")
    if setup.activation_offload and setup.unsloth:
        raise _refuse("activation_offload with unsloth", "Unsloth brings its own checkpointing")
    if setup.kbit_upcast == "all":
        raise _refuse("kbit_upcast all", "upcast_layernorm casts norms only")
    for name in ("pipeline_parallel", "context_parallel", "expert_parallel"):
        if getattr(setup, name) > 1:
            raise _refuse(f"{name} {getattr(setup, name)}", "its own trainer has no such parallelism")
    return {"loss": None, "kbit_upcast": "norms" if setup.kbit_upcast == "norms" else None}


def _dtypes(setup: TrainingSetup, context: EmitContext) -> dict[str, Any]:
    compute = setup.compute_dtype or ("fp16" if context.has_bf16 is False else "bf16")
    field = "adapter_dtype" if setup.is_adapter else "param_dtype"
    other = "param_dtype" if setup.is_adapter else "adapter_dtype"
    if getattr(setup, other) is not None:
        raise _refuse(f"method {setup.method} with {other} {getattr(setup, other)}", _WHY_OTHER[other])
    return {"compute_dtype": compute, field: _held_dtype(setup, field, compute)}


_WHY_OTHER = {
    "param_dtype": "the frozen base keeps the checkpoint's dtype",
    "adapter_dtype": "there are no adapters",
}


def _held_dtype(setup: TrainingSetup, field: str, compute: str) -> str | None:
    """None where ``field`` says what the engine does anyway, ``"bf16"`` where pure_bf16 asks for it.

    Under ZeRO-1 and ZeRO-2 pure_bf16 spares the fp32 copy at load; ZeRO-3 has none, and refuses the switch.
    """
    asked = getattr(setup, field)
    own = compute if setup.parallelism in ZERO else "fp32"
    if setup.method == "badam" and asked == "fp32":
        raise _refuse("method badam with param_dtype fp32", "BAdam trains weights in the checkpoint's dtype")
    spares_nothing = setup.parallelism == "zero3" or (own == "fp32" and setup.method != "badam")
    if asked is None or (asked == own and (spares_nothing or asked != "bf16")):
        return None
    if asked != "bf16" or compute != "bf16" or setup.parallelism == "zero3":
        raise _refuse(f"{field} {asked}", f"with this setup it holds trained weights in {own}, or bf16 with pure_bf16")
    return "bf16"


def _optimizer(setup: TrainingSetup, context: EmitContext) -> dict[str, Any]:
    choices = arguments()["optim"]["choices"]
    if setup.optim not in choices:
        close = nearest(setup.optim, choices)
        raise _refuse(f"optim {setup.optim}", f"nearest valid: {close[0] if close else 'adamw_torch_fused'}")
    if setup.optimizer_in_backward and setup.method not in ("galore", "apollo"):
        raise _refuse("optimizer_in_backward", "only GaLore and APOLLO have a layer-wise mode")
    if setup.optimizer_in_backward and (setup.gradient_accumulation_steps > 1 or context.world_size > 1):
        raise _refuse("layer-wise GaLore or APOLLO here", "it needs one GPU and gradient_accumulation_steps 1")
    optim = setup.optim
    if setup.method in ("galore", "apollo") and optim == "adamw_torch_fused":
        optim = "adamw_torch"  # the fused name raises NotImplementedError in create_custom_optimizer
    allowed = {"galore": GALORE_OPTIMIZERS, "apollo": ("adamw_torch",)}.get(setup.method)
    if allowed and optim not in allowed:
        raise _refuse(f"method {setup.method} with optim {optim}", f"valid: {', '.join(allowed)}")
    return {"optim": optim}


def _parallelism(setup: TrainingSetup, context: EmitContext) -> dict[str, Any]:
    changes = settle_sharding(setup, context)
    parallelism = changes["parallelism"]
    if parallelism in ZERO and setup.method in ("galore", "apollo"):
        raise _refuse(f"method {setup.method} with {parallelism}", "GaLore and APOLLO do not work with DeepSpeed")
    if setup.method == "badam" and parallelism != "none":
        _check_badam(setup, parallelism)
    if parallelism == "zero3" and setup.unsloth:
        raise _refuse("unsloth with zero3", "Unsloth does not work with DeepSpeed ZeRO-3")
    if setup.tensor_parallel > 1:
        _check_autotp(setup, parallelism)
    if setup.ds_config is not None:
        changes["ds_config"] = aligned_config(setup)
    return changes


def _check_badam(setup: TrainingSetup, parallelism: str) -> None:
    if setup.badam_mode == "ratio":
        raise _refuse("BAdam by ratio on several GPUs", "only badam_mode layer runs distributed")
    if parallelism != "zero3":
        raise _refuse(f"method badam with {parallelism}", "layer-wise BAdam on several GPUs needs zero3")


def _check_autotp(setup: TrainingSetup, parallelism: str) -> None:
    """What of DeepSpeed's AutoTP was run through LLaMA-Factory; the rules of ``lf-53b`` say the rest."""
    what = f"tensor_parallel {setup.tensor_parallel}"
    if parallelism not in ("zero1", "zero2"):
        raise _refuse(f"{what} with {parallelism}", "DeepSpeed's AutoTP trains under ZeRO-1 and ZeRO-2")
    if setup.method != "full":
        raise _refuse(f"{what} with method {setup.method}", "DeepSpeed's AutoTP loses track of parameters beside it")
    if setup.stage not in ("pt", "sft"):
        raise _refuse(f"{what} in stage {setup.stage}", "each rank sees its part of the logits only")
    for name in ("liger_kernel", "unsloth", "torch_compile"):
        if getattr(setup, name):
            raise _refuse(f"{what} with {name}", "its kernels read the whole head, and each rank holds a part")
