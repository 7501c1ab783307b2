"""Sums over units and the few rules that every kind of sharding shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.memory.layout import Unit
from planner.memory.regime import Regime, version_of
from planner.training import DTYPE_BYTES, TrainingSetup


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sums over all units, unsharded; bytes unless named otherwise."""

    held: int
    frozen: int
    trained_elements: int
    gradients: int
    load: int
    largest_trained: int  # elements


def sizes_of(units: Sequence[Unit], gradient_bytes: int, load_bytes: int) -> Sizes:
    """Add the units up; ``gradient_bytes`` and ``load_bytes`` per trained element."""
    held = frozen = trained = largest = gradients = 0
    for unit in units:
        held += unit.count * unit.held_bytes
        frozen += unit.count * unit.frozen_bytes
        trained += unit.count * unit.trained
        gradients += unit.count * unit.gradient_bytes(gradient_bytes)
        largest = max(largest, unit.largest_trained)
    return Sizes(held, frozen, trained, gradients, frozen + trained * load_bytes, largest)


def share(total: int, ranks: int) -> int:
    """The worst rank's part of ``total`` bytes or elements."""
    return -(-total // ranks)


def scale_bytes(setup: TrainingSetup, regime: Regime, unit: Unit) -> int:
    """Scales of one unit's quantized weights, which no sharding splits.

    GPTQ's are buffers. Those of bitsandbytes' 4-bit weights hang on the parameter as ``quant_state`` and are no
    parameters themselves: 8 bit per 64 elements and fp32 per 256 of these with double quantization, else fp32 per 64.
    How many elements q are packed follows from the unit's bytes: q * (1/2 + scale) + (frozen - q) * itemsize.
    """
    if regime.quantized == "gptq":
        return unit.buffer_bytes
    if regime.quantized != "nf4" or not unit.frozen:
        return 0
    scale = 65 if setup.double_quantization else 256  # 4096ths of a byte per element: 1/64 + 1/4096, or 4/64
    item = DTYPE_BYTES[regime.frozen]
    packed = max(0, unit.frozen * item - unit.frozen_bytes) * 4096 // (4096 * item - 2048 - scale)
    return packed * scale // 4096


def read_onto_gpu(setup: TrainingSetup, regime: Regime) -> bool:
    """Whether a sharded run first reads its quantized weights whole onto every GPU.

    transformers 5 gives a quantized model without device_map the current GPU (quantizer_bnb_4bit.py
    update_device_map) and has no path of its own for FSDP and ZeRO-3; 4.x moved each quantized tensor back to the
    host (modeling_utils.py _load_state_dict_into_meta_model).
    """
    return regime.quantized != "dense" and version_of(setup, "transformers") >= (5,)
