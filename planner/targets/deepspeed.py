"""DeepSpeed: a setup's JSON file, and that file's part of a setup."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.errors import InputError, UnsupportedError
from planner.memory import autotp
from planner.memory.deepspeed_config import default_deepspeed_config, read_offload
from planner.targets.context import EmitContext
from planner.targets.recipe import recipe
from planner.training import TrainingSetup

FILE_NAME = "ds_config.json"
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
_PARALLELISM: dict[int, str] = {stage: name for name, stage in STAGES.items()}
_LOSS_SCALING = {
    "loss_scale": 0,
    "loss_scale_window": 1000,
    "initial_scale_power": 16,
    "hysteresis": 2,
    "min_loss_scale": 1,
}


def named_config(config: Any, texts: Mapping[str, str], place: str) -> dict[str, Any]:
    """What a trainer's ``deepspeed`` key states: the settings themselves, or the name of a file among ``texts``.

    ``place`` is the trainer's file. Raises InputError where the file is not there or holds no JSON object.
    """
    if isinstance(config, dict):
        return config
    if config not in texts:
        raise InputError(f"{place}: deepspeed names the file {config!r}, which is not there")
    try:
        loaded = json.loads(texts[config])
    except ValueError as problem:
        raise InputError(f"{config}: is not JSON ({problem})") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{config}: is not a JSON object")
    return loaded


def emit(setup: TrainingSetup, context: EmitContext) -> dict[str, Any]:
    """The complete DeepSpeed JSON of a ZeRO setup: every value a number that the plan was priced with.

    The batch per GPU, the accumulation, the clipping and the precision repeat what the trainer's own file says;
    transformers refuses to start where the two differ. ``train_batch_size`` is left to DeepSpeed, which multiplies.
    """
    if setup.ds_config is not None:
        return aligned_config(setup)
    stage = STAGES[setup.parallelism or ""]
    compute = setup.compute_dtype or ("fp16" if context.has_bf16 is False else "bf16")
    return {
        "train_micro_batch_size_per_gpu": setup.micro_batch_size,
        "gradient_accumulation_steps": setup.gradient_accumulation_steps,
        "gradient_clipping": recipe(setup)["max_grad_norm"].value,
        "bf16": {"enabled": compute == "bf16"},
        "fp16": {"enabled": compute == "fp16"} | _LOSS_SCALING,
        **default_deepspeed_config(stage, setup.offload, context.hidden, setup.tensor_parallel),
    }


def read(config: Mapping[str, Any], hidden: int | None, *, place: str = FILE_NAME) -> dict[str, Any]:
    """The setup fields that a DeepSpeed JSON states: parallelism, offload, GPUs that share each layer and, where it is
    not ours, ds_config.

    ``hidden`` is the model's width; without it no file is recognised as the default one, and the whole is kept.
    Raises InputError for a stage that does not exist.
    """
    zero = config.get("zero_optimization") or {}
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else None
    if stage == 0:
        tensor = autotp.read_size(config, place=place)
        return {"parallelism": "ddp", "offload": "none", "tensor_parallel": tensor, "ds_config": dict(config)}
    if stage not in _PARALLELISM:
        raise InputError(f"{place}: zero_optimization.stage {stage!r} is not valid; choose 1, 2 or 3")
    offload = read_offload(zero, place=place)
    tensor = autotp.read_size(config, place=place)
    fields: dict[str, Any] = {"parallelism": _PARALLELISM[stage], "offload": offload, "tensor_parallel": tensor}
    if not _is_default(config, stage, offload, hidden, tensor):
        fields["ds_config"] = dict(config)
    return fields


def _is_default(config: Mapping[str, Any], stage: int, offload: Any, hidden: int | None, tensor: int) -> bool:
    if hidden is None or not autotp.is_emitted(config):
        return False
    try:
        ours = default_deepspeed_config(stage, offload, hidden, tensor)
    except UnsupportedError:
        return False
    return config.get("zero_optimization") == ours["zero_optimization"] and "data_types" not in config


def load_config(source: Mapping[str, Any] | str) -> dict[str, Any]:
    """A ``ds_config`` field as an object: itself, or the JSON file that it names."""
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise InputError(f"ds_config {source}: cannot be read ({problem.strerror})") from None
    except ValueError as problem:
        raise InputError(f"ds_config {source}: is not JSON ({problem})") from None
    if not isinstance(config, dict):
        raise InputError(f"ds_config {source}: is not a JSON object")
    return config


def aligned_config(setup: TrainingSetup) -> dict[str, Any]:
    """The user's own ``ds_config`` with the batch of the setup where the file states numbers.

    transformers refuses to start where the two files differ; ``"auto"`` and absent keys follow the trainer's file.
    """
    config = load_config(setup.ds_config or {})
    batch = {
        "train_micro_batch_size_per_gpu": setup.micro_batch_size,
        "gradient_accumulation_steps": setup.gradient_accumulation_steps,
    }
    if config.get("train_batch_size") != "auto":
        config.pop("train_batch_size", None)
    return config | {key: count for key, count in batch.items() if config.get(key, "auto") != "auto"}


def settle_sharding(setup: TrainingSetup, context: EmitContext) -> dict[str, Any]:
    """Parallelism and offload as they will run on the context's GPUs; UnsupportedError for what cannot run."""
    world = context.world_size
    parallelism = setup.parallelism or ("ddp" if world > 1 else "none")
    if parallelism == "none" and world > 1:
        raise UnsupportedError(f"parallelism none runs on one GPU, and {world} are given; choose ddp or a sharded one")
    if parallelism == "ddp" and world == 1:
        parallelism = "none"
    if setup.ds_config is not None and parallelism not in STAGES:
        raise UnsupportedError(f"ds_config is read under ZeRO only, and parallelism is {parallelism}")
    if parallelism in STAGES:
        _check_zero(setup, parallelism)
    elif setup.offload != "none" and not (parallelism.startswith("fsdp") and setup.offload == "all"):
        raise UnsupportedError(_no_offload(parallelism, setup.offload))
    return {"parallelism": parallelism}


def _check_zero(setup: TrainingSetup, parallelism: str) -> None:
    if setup.ds_config is None:
        default_deepspeed_config(STAGES[parallelism], setup.offload, 1)
        return
    stated = read(load_config(setup.ds_config), None)
    for field in ("parallelism", "offload", "tensor_parallel"):
        mine = parallelism if field == "parallelism" else getattr(setup, field)
        if stated[field] != mine:
            raise InputError(f"ds_config says {field} {stated[field]} and the setup says {mine}; make them agree")


def _no_offload(parallelism: str, offload: str) -> str:
    if parallelism.startswith("fsdp"):
        return f"offload {offload} is not FSDP's: it moves parameters, gradients and optimizer together (offload all)"
    return f"offload {offload} needs ZeRO (zero1, zero2, zero3) or FSDP, and parallelism is {parallelism}"
