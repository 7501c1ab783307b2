"""What one token costs: floating-point operations, bytes that kernels read and write, kernels that are launched."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.model.count import count
from planner.model.modules import Targets, block_linears, lora_parameters, lora_targets
from planner.model.spec import Block, ModelSpec
from planner.training import TrainingSetup

# Bytes that elementwise kernels move for one token and element of width, forward; fitted, with the other constants of
# planner.speed.estimate, to the 80 one-GPU rows of foundation-model-stack/fms-acceleration's A100 tables.
NORM_BYTES = 44  # a norm and the residual sum around it, in separate kernels with an fp32 copy
NORM_BYTES_FUSED = 14
MLP_BYTES = 16  # activation and product, separate
MLP_BYTES_FUSED = 8
ROPE_BYTES = 28
ROPE_BYTES_FUSED = 8
LOGIT_BYTES = 20  # fp32 copy, log-softmax and its backward, per vocabulary entry
LOGIT_BYTES_FUSED = 8
ADAPTER_BYTES = 10  # cast of the input, scaling and sum of the adapter's output, per element of a target's sides
EXPERT_FACTOR = 1.2  # routed tokens come in uneven, smaller matrices: fitted to the Mixtral rows of the same tables
KERNELS_PER_BLOCK = 45
KERNELS_PER_BLOCK_FUSED = 28
KERNELS_PER_ADAPTER = 14
KERNELS_PER_QUANTIZED = 6


@dataclass(eq=False, repr=False)
class TokenWork:
    """Work of one token in one forward pass, and what a backward pass and a recomputation add.

    ``matmul_flops`` 2 per weight used; ``weight_share`` part of these weights that also get a gradient;
    ``attention_flops`` of scores and values; ``moved_bytes`` by elementwise kernels; ``kernels`` launched per
    forward pass over all layers (not per token); ``linear_elements`` weights of the blocks, for dequantization.
    """

    matmul_flops: float
    head_flops: float
    weight_share: float
    attention_flops: float
    moved_bytes: float
    logit_bytes: float
    kernels: int
    linear_elements: int
    trained: int


def token_work(setup: TrainingSetup, spec: ModelSpec) -> TokenWork:
    """Work of one token of this setup. Source: arXiv 2001.08361, 2.1 (2 FLOPs a weight); causal attention is half."""
    fused = setup.liger_kernel or setup.unsloth or setup.torch_compile
    base = _model_work(spec, setup.seq_len, fused, setup.attention == "eager")
    trained = trained_parameters(setup, spec)
    adapters = _adapter_bytes(spec, setup.lora_target) if setup.is_adapter else 0.0
    kernels = base.kernels + _extra_kernels(setup, spec)
    share = 0.0 if setup.is_adapter else min(1.0, trained / spec.parameters) if spec.parameters else 1.0
    fused_loss = setup.liger_kernel or setup.loss in ("fused", "fused_linear", "chunked")
    return TokenWork(
        matmul_flops=base.matmul_flops,
        head_flops=base.head_flops,
        weight_share=share,
        attention_flops=base.attention_flops,
        moved_bytes=base.moved_bytes + adapters,
        logit_bytes=float(spec.vocab * (LOGIT_BYTES_FUSED if fused_loss else LOGIT_BYTES)),
        kernels=kernels,
        linear_elements=base.linear_elements,
        trained=trained,
    )


def trained_parameters(setup: TrainingSetup, spec: ModelSpec) -> int:
    """Trained elements, near enough for speed (a freeze run counts whole layers only)."""
    if setup.is_adapter:
        return lora_parameters(spec, setup.lora_rank, setup.lora_target, dora=setup.method == "dora")
    layers = max(1, spec.layers)
    if setup.method == "freeze":
        return spec.parameters * min(setup.freeze_trainable_layers, layers) // layers
    return spec.parameters // layers if setup.method == "badam" else spec.parameters


@lru_cache(maxsize=512)
def _model_work(spec: ModelSpec, seq_len: int, fused: bool, eager: bool) -> TokenWork:
    head = 2.0 * spec.vocab * (spec.embedding_width or spec.hidden)
    counted = count(spec)
    idle = counted.total - counted.active
    blocks = (counted.blocks - idle) * (EXPERT_FACTOR if spec.is_moe else 1.0)
    return TokenWork(
        matmul_flops=2.0 * blocks + head,
        head_flops=head,
        weight_share=1.0,
        attention_flops=sum(run.count * _attention_flops(run.block, seq_len, eager) for run in spec.runs),
        moved_bytes=sum(run.count * _moved(spec, run.block, fused) for run in spec.runs),
        logit_bytes=0.0,
        kernels=spec.layers * (KERNELS_PER_BLOCK_FUSED if fused else KERNELS_PER_BLOCK),
        linear_elements=counted.blocks,
        trained=0,
    )


def _attention_flops(block: Block, seq_len: int, eager: bool) -> float:
    """Scores and values of one layer and token: 4·s·A, of which a causal kernel computes half."""
    attention = block.attention
    seen = min(seq_len, attention.sliding_window or seq_len)
    return 4.0 * seen * attention.heads * attention.head_dim * (1.0 if eager else 0.5)


def _moved(spec: ModelSpec, block: Block, fused: bool) -> float:
    attention = block.attention
    width = block.mlp.width if block.mlp else 0
    if block.moe:
        width += block.moe.experts_per_token * block.moe.expert.width
        width += block.moe.shared.width if block.moe.shared else 0
    norms = block.norms * spec.hidden * (NORM_BYTES_FUSED if fused else NORM_BYTES)
    rope = (attention.q_width + attention.kv_width) * (ROPE_BYTES_FUSED if fused else ROPE_BYTES)
    return float(norms + rope + width * (MLP_BYTES_FUSED if fused else MLP_BYTES))


@lru_cache(maxsize=512)
def _adapter_bytes(spec: ModelSpec, targets: Targets) -> float:
    total = 0
    for run in spec.runs:
        reached = lora_targets(spec, run.block, targets)
        total += run.count * sum(linear.inputs + linear.outputs for linear in reached if linear.copies == 1)
    return float(ADAPTER_BYTES * total)


def _extra_kernels(setup: TrainingSetup, spec: ModelSpec) -> int:
    """Kernels of adapters and of dequantization, per forward pass over all layers."""
    if not setup.is_adapter:
        return 0
    total = 0
    for run in spec.runs:
        linears = block_linears(spec, run.block)
        adapted = len(lora_targets(spec, run.block, setup.lora_target))
        total += run.count * (adapted * KERNELS_PER_ADAPTER)
        total += run.count * len(linears) * KERNELS_PER_QUANTIZED if setup.quantization_bit else 0
    return total
