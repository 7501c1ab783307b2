"""LLaMA-Factory's Megatron adapter (USE_MCA=1): its train.yaml, with Megatron-core's own words for parallelism.

The file is LLaMA-Factory's but for the keys that transformers' Trainer would read and Megatron does not. Source:
LLaMA-Factory 0.9.5 train/mca and examples/megatron, mcore_adapter training_args.py; rules/megatron_args.toml.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planner.errors import UnsupportedError
from planner.memory.megatron import ENGINE
from planner.targets import llamafactory, llamafactory_launch
from planner.targets.context import EmitContext
from planner.targets.launchers import Launch, Variable
from planner.targets.llamafactory_settle import FILE_NAME
from planner.targets.yaml_text import dump_sections
from planner.training import TrainingSetup

Values = dict[str, Any]
NAME = "LLaMA-Factory's Megatron adapter"
# A setup's field -> the adapter's argument.
SIZES = {
    "tensor_parallel": "tensor_model_parallel_size",
    "pipeline_parallel": "pipeline_model_parallel_size",
    "context_parallel": "context_parallel_size",
    "expert_parallel": "expert_model_parallel_size",
}
# What its trainer does with no argument to say otherwise: field -> the value it must have.
FIXED: Values = {
    "method": "full",
    "parallelism": "zero1",
    "offload": "none",
    "quantization_bit": None,
    "liger_kernel": False,
    "unsloth": False,
    "torch_compile": False,
    "activation_offload": False,
    "optimizer_in_backward": False,
    "eval_micro_batch_size": None,
    "ds_config": None,
}
_UNUSED = frozenset({"optim", "ddp_find_unused_parameters", "include_num_input_tokens_seen"})
_DEFAULT = TrainingSetup(model="-")


def _refuse(what: str, why: str) -> UnsupportedError:
    return UnsupportedError(f"{NAME} cannot run {what}: {why}")


def settle(setup: TrainingSetup, context: EmitContext) -> TrainingSetup:
    """The setup that reading the emitted files gives back. Raises UnsupportedError for what the adapter cannot run."""
    setup = setup.but(parallelism=setup.parallelism or "zero1")
    if setup.stage not in ("pt", "sft"):
        raise _refuse(f"stage {setup.stage}", "planned for: pt, sft")
    for name, value in FIXED.items():
        if getattr(setup, name) != value:
            raise _refuse(f"{name} {getattr(setup, name)}", f"planned for: {value}")
    _check_kernels(setup, context)
    _check_sizes(setup, context)
    settled = llamafactory.settle(_as_llamafactory(setup), context)
    sizes = {name: getattr(setup, name) for name in SIZES}
    return settled.but(engine=ENGINE, parallelism="zero1", param_dtype=None, kbit_upcast=None, **sizes)


def _check_kernels(setup: TrainingSetup, context: EmitContext) -> None:
    if setup.attention != "sdpa":
        raise _refuse(f"attention {setup.attention}", "TransformerEngine chooses its kernel; write sdpa")
    if setup.gradient_checkpointing not in (True, False):
        raise _refuse(f"gradient_checkpointing {setup.gradient_checkpointing}", "planned for: every layer or none")
    if setup.compute_dtype not in (None, "bf16") or setup.param_dtype not in (None, "bf16"):
        raise _refuse("weights that are not bf16", "planned for: bf16 with fp32 master weights")
    if setup.optim not in ("adamw_torch", "adamw_torch_fused"):
        raise _refuse(f"optim {setup.optim}", "planned for: its fused Adam, adamw_torch_fused")
    if context.has_bf16 is False:
        raise _refuse("fp16", "planned for: GPUs with bf16")


def _check_sizes(setup: TrainingSetup, context: EmitContext) -> None:
    size = setup.tensor_parallel * setup.pipeline_parallel * setup.context_parallel
    if context.world_size % size:
        raise _refuse(f"a cut over {size} GPUs", f"it does not divide {context.world_size}")
    if context.world_size // (setup.tensor_parallel * setup.pipeline_parallel) % setup.expert_parallel:
        raise _refuse(f"expert_parallel {setup.expert_parallel}", "it does not divide the GPUs that share no layer")


def _as_llamafactory(setup: TrainingSetup) -> TrainingSetup:
    """What the two files have in common, as a setup that LLaMA-Factory's own trainer has an argument for."""
    common = dict.fromkeys(SIZES, 1)
    return setup.but(engine="llamafactory", parallelism=None, param_dtype=None, optim=_DEFAULT.optim, **common)


def files(setup: TrainingSetup, context: EmitContext) -> dict[str, str]:
    """``train.yaml`` alone: the launcher is told the rest by its environment."""
    return {FILE_NAME: dump_sections(sections(settle(setup, context), context))}


def sections(setup: TrainingSetup, context: EmitContext) -> dict[str, Values]:
    """Key to value of a settled setup's train.yaml, by the titles under which the file shows them."""
    shared = llamafactory.sections(_as_llamafactory(setup), context)
    kept = {title: shared[title] for title in ("model", "method", "data", "training", "evaluation", "output")}
    own = {"memory": _memory(setup), "distributed": _distributed(setup)}
    whole = {title: own.get(title, kept.get(title, {})) for title in shared}
    return {
        title: {key: value for key, value in part.items() if key not in _UNUSED} for title, part in whole.items()
    } | {"output": {**kept["output"], "include_num_input_tokens_seen": False, "save_hf_model": True}}


def _memory(setup: TrainingSetup) -> Values:
    values: Values = {"bf16": True, "transformer_impl": "transformer_engine"}
    if setup.gradient_checkpointing:
        values |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return values


def _distributed(setup: TrainingSetup) -> Values:
    values: Values = {argument: getattr(setup, name) for name, argument in SIZES.items()}
    values |= {"sequence_parallel": setup.tensor_parallel > 1, "use_distributed_optimizer": True}
    if setup.expert_parallel > 1:
        values["moe_token_dispatcher_type"] = "alltoall"  # noqa: S105 - tokens of text
    return values | {"overlap_grad_reduce": False, "overlap_param_gather": False}


def launch(setup: TrainingSetup, context: EmitContext) -> Launch:
    """LLaMA-Factory's own command, told by USE_MCA to hand the run to Megatron; torchrun as the other way."""
    shared = llamafactory_launch.launch(_as_llamafactory(setup).but(parallelism="zero1"), context)
    mca = Variable(name="USE_MCA", value="1", reason="Megatron-core trains, not transformers' Trainer")
    return replace(
        shared,
        others=tuple(each for each in shared.others if each.name == "torchrun"),
        environment=(*shared.environment, mca),
        remedy="install LLaMA-Factory 0.9.5 with mcore_adapter, megatron-core and TransformerEngine",
    )
