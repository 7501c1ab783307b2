"""Bytes of a model's weights as they lie on disk or in memory, quantized or not."""

from __future__ import annotations

from planner.model.modules import block_linears
from planner.model.spec import ModelSpec

DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
NF4_BLOCK = 64  # weights that share one scale; bitsandbytes' blocksize
NF4_NESTED_BLOCK = 256  # scales that share one scale of scales, with double quantization
NF4_MAP_BYTES = 16 * 4  # the 16 values of nf4 in fp32, saved with every tensor
NF4_NESTED_MAP_BYTES = 256 * 4  # the 256 values the 8-bit scales index


def quantizable_parameters(spec: ModelSpec, *, stacked_experts: bool = True) -> int:
    """Elements of the matrices that bitsandbytes replaces: every Linear of the blocks, weights without biases.

    The head stays as it is, and experts where they are 3-D parameters. Vision towers are left out: their matrices
    are replaced too, and count as 16-bit here.
    """
    return sum(
        run.count * each.copies * each.inputs * each.outputs
        for run in spec.runs
        for each in block_linears(spec, run.block, stacked_experts=stacked_experts)
        if not each.stacked
    )


def quantizable_tensors(spec: ModelSpec, *, stacked_experts: bool = True) -> int:
    """Number of those matrices."""
    return sum(
        run.count * each.copies
        for run in spec.runs
        for each in block_linears(spec, run.block, stacked_experts=stacked_experts)
        if not each.stacked
    )


def stored_bytes_nf4(spec: ModelSpec, *, double: bool = True, maps: bool = False, stacked_experts: bool = True) -> int:
    """Bytes of the checkpoint with its block matrices in bitsandbytes nf4 and the rest in 16 bit.

    Half a byte an element; one scale for 64 elements, in fp32, or with ``double`` in 8 bit with one fp32 scale for
    256 of those. ``maps`` adds the code books that the file repeats for each tensor. Source: arXiv 2305.14314,
    section 3, and bitsandbytes' QuantState.
    """
    elements = quantizable_parameters(spec, stacked_experts=stacked_experts)
    scales = elements // NF4_BLOCK
    scale_bytes = scales + 4 * scales // NF4_NESTED_BLOCK if double else 4 * scales
    total = elements // 2 + scale_bytes + 2 * (spec.parameters - elements)
    if maps:
        each = NF4_MAP_BYTES + (NF4_NESTED_MAP_BYTES if double else 0)
        total += each * quantizable_tensors(spec, stacked_experts=stacked_experts)
    return total


def stored_bytes_plain(spec: ModelSpec) -> int:
    """Bytes of the weights on disk: what headers said, else parameters in the stored dtype."""
    return spec.stored_bytes or spec.parameters * DTYPE_BYTES[spec.stored_dtype]
