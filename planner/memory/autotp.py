"""DeepSpeed's AutoTP: tensor parallelism by a key of the DeepSpeed JSON, and what it leaves whole on every GPU.

DeepSpeed cuts the linear modules that transformers' plan of a model names when its engine is made; norms stay whole,
and so does the embedding of an untied model. With ``vocab_parallel_lm_head`` the head is cut by vocabulary, each rank
keeps the logits of its own part and the cross-entropy is taken over the ranks; without it all logits are gathered on
every rank. Source: deepspeed 0.19.8 runtime/engine.py (_apply_autotp_partitioning), runtime/tensor_parallel/config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import InputError
from planner.training import TrainingSetup

SECTION = "tensor_parallel"
SIZE = "autotp_size"
VOCABULARY = "vocab_parallel_lm_head"
GATHER_ON_SAVE = "stage3_gather_16bit_weights_on_model_save"  # its name, at every stage: accelerate asks for it


def is_autotp(setup: TrainingSetup) -> bool:
    """Whether tensor parallelism is LLaMA-Factory's by DeepSpeed, the engine's only kind without Megatron."""
    return setup.engine == "llamafactory" and setup.tensor_parallel > 1


def cuts_vocabulary(setup: TrainingSetup) -> bool:
    """Whether each rank holds its part of the head and of the logits: what is emitted, or the setup's own JSON says."""
    if not isinstance(setup.ds_config, Mapping):
        return True
    return _section(setup.ds_config, "ds_config").get(VOCABULARY) is True


def section(size: int) -> dict[str, Any]:
    """The part of the DeepSpeed JSON that cuts each layer over ``size`` GPUs; nothing for 1."""
    return {SECTION: {SIZE: size, VOCABULARY: True}} if size > 1 else {}


def read_size(config: Mapping[str, Any], *, place: str) -> int:
    """GPUs that share each layer by a DeepSpeed JSON. Raises InputError for what is no number of GPUs."""
    size = _section(config, place).get(SIZE, 0)
    if type(size) is not int or size < 0:
        raise InputError(f"{place}: {SECTION}.{SIZE} {size!r} is not valid: it must be a whole number, 0 or more")
    return max(1, size)


def is_emitted(config: Mapping[str, Any]) -> bool:
    """Whether the section of a DeepSpeed JSON is the one that a plan writes, or absent."""
    stated = config.get(SECTION)
    return stated is None or stated == section(read_size(config, place="ds_config")).get(SECTION)


def _section(config: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    stated = config.get(SECTION) or {}
    if not isinstance(stated, Mapping):
        raise InputError(f"{place}: {SECTION} {stated!r} is not an object with {SIZE}")
    return stated
