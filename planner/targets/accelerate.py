"""accelerate: the YAML of ``accelerate launch`` for FSDP 1, FSDP 2 and DDP, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import InputError, UnsupportedError
from planner.targets.context import EmitContext
from planner.training import FSDP, TrainingSetup

FILE_NAME = "accelerate.yaml"


def emit(setup: TrainingSetup, context: EmitContext) -> dict[str, Any]:
    """The launch configuration of a settled setup whose parallelism is ddp, fsdp or fsdp2.

    ``machine_rank`` and the address of the first node differ per node: ``launch.sh`` gives them as options.
    """
    is_fsdp = setup.parallelism in FSDP
    if not is_fsdp and setup.parallelism != "ddp":
        raise UnsupportedError(f"accelerate's own file covers ddp, fsdp and fsdp2, not {setup.parallelism}")
    values: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "FSDP" if is_fsdp else "MULTI_GPU",
        "downcast_bf16": "no",
        "enable_cpu_affinity": False,
    }
    if is_fsdp:
        values["fsdp_config"] = _fsdp2(setup) if setup.parallelism == "fsdp2" else _fsdp1(setup)
    return values | {
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": mixed_precision(setup),
        "num_machines": context.nodes,
        "num_processes": context.world_size,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }


def mixed_precision(setup: TrainingSetup) -> str:
    """The autocast dtype as accelerate names it; LLaMA-Factory has none where trained weights are 16-bit themselves."""
    pure = setup.engine == "llamafactory" and "bf16" in (setup.adapter_dtype, setup.param_dtype)
    return "no" if pure or setup.compute_dtype in (None, "fp32") else str(setup.compute_dtype)


def _fsdp1(setup: TrainingSetup) -> dict[str, Any]:
    return {
        "fsdp_version": 1,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_backward_prefetch": "BACKWARD_PRE",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_forward_prefetch": False,
        "fsdp_offload_params": setup.offload == "all",
        "fsdp_sharding_strategy": "FULL_SHARD",
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_sync_module_states": True,
        "fsdp_use_orig_params": True,
    }


def _fsdp2(setup: TrainingSetup) -> dict[str, Any]:
    return {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": setup.offload == "all",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
    }


def read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The setup fields that a launch configuration states: parallelism and offload.

    Raises InputError for a ``distributed_type`` that is not planned for.
    """
    kind = str(values.get("distributed_type", "NO")).upper()
    if kind == "FSDP":
        return _read_fsdp(values.get("fsdp_config") or {}, FILE_NAME)
    if kind in ("MULTI_GPU", "NO"):
        several = kind == "MULTI_GPU" and int(values.get("num_processes", 1)) > 1
        return {"parallelism": "ddp" if several else "none"}
    raise InputError(f"{FILE_NAME}: distributed_type {kind} is not planned for; valid: FSDP, MULTI_GPU, NO")


def _read_fsdp(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    version = int(config.get("fsdp_version", config.get("version", 1)))
    if version not in (1, 2):
        raise InputError(f"{place}: fsdp_version {version} is not valid; choose 1 or 2")
    strategy = str(config.get("fsdp_sharding_strategy", "FULL_SHARD")).upper()
    if version == 1 and strategy not in ("FULL_SHARD", "1"):
        raise UnsupportedError(f"{place}: fsdp_sharding_strategy {strategy} is not priced; only FULL_SHARD is")
    offloads = str(config.get("fsdp_offload_params", config.get("offload_params", False))).lower() == "true"
    return {"parallelism": "fsdp2" if version == 2 else "fsdp", "offload": "all" if offloads else "none"}


def read_trainer_fsdp(fsdp: Any, config: Any) -> dict[str, Any]:
    """The same from transformers' own ``fsdp`` and ``fsdp_config`` arguments; empty where they are not set."""
    words = fsdp.split() if isinstance(fsdp, str) else [str(word) for word in fsdp or []]
    if not words or words == ["False"]:
        return {}
    options = dict(config) if isinstance(config, dict) else {}
    if "offload" in words:
        options["fsdp_offload_params"] = True
    if "full_shard" not in words and words != ["True"]:
        raise UnsupportedError(f"fsdp {' '.join(words)} is not priced; only full_shard is")
    return _read_fsdp(options, "fsdp_config")
