"""Which of SDPA's kernels a card and a model let transformers have."""

from __future__ import annotations

from planner.hardware.machine import Machine
from planner.model.spec import Attention, ModelSpec
from planner.training import TrainingSetup

FLASH_CAPABILITY = (8, 0)


def sdpa_in_tiles(setup: TrainingSetup, spec: ModelSpec, machine: Machine | None) -> bool:
    """Whether SDPA runs in tiles, or on its math path, which stores every score in fp32.

    The flash kernel needs compute capability 8.0; the memory-efficient one wants a key head for every query head, and
    transformers hands over grouped ones where no mask is padded. Unknown cards count as new ones. Sources:
    aten/native/transformers/cuda/sdp_utils.cpp; transformers integrations/sdpa_attention.py (use_gqa_in_sdpa).
    """
    known = [gpu.compute_capability for gpu in machine.gpus] if machine is not None else []
    old = any(capability is not None and capability < FLASH_CAPABILITY for capability in known)
    return not old or setup.padded or not any(_grouped(run.block.attention) for run in spec.runs)


def _grouped(attention: Attention) -> bool:
    return attention.kind == "gqa" and attention.heads != attention.kv_heads
