"""What one token costs: floating-point operations, bytes that kernels read and write, kernels that are launched."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.memory.regime import Regime, resolve_regime
from planner.model.count import count
from planner.model.modules import Targets, block_linears, lora_parameters, lora_targets
from planner.model.spec import Attention, Block, ModelSpec
from planner.speed.rates import Rates
from planner.training import TrainingSetup


@dataclass(eq=False, repr=False)
class TokenWork:
    """Work of one token in one forward pass, and what a backward pass and a recomputation add.

    ``matmul_flops`` 2 per weight used, of which ``head_flops`` by the head and ``last_flops`` by the last linear of the
    blocks; ``weight_share`` part of these weights that also get a gradient;
    ``attention_flops`` of scores and values; ``moved_bytes`` by elementwise kernels; ``kernels`` launched per
    forward pass over all layers (not per token); ``linear_elements`` weights of the blocks, for dequantization.
    """

    matmul_flops: float
    head_flops: float
    last_flops: float
    weight_share: float
    attention_flops: float
    moved_bytes: float
    logit_bytes: float
    kernels: int
    linear_elements: int
    trained: int


def token_work(setup: TrainingSetup, spec: ModelSpec, rates: Rates) -> TokenWork:
    """Work of one token of this setup. Source: arXiv 2001.08361, 2.1 (2 FLOPs a weight); causal attention is half.

    ``last_flops`` is what a recomputation that stops early leaves out: torch.utils.checkpoint without reentry ends as
    soon as it has every saved tensor, and nobody saves what the last linear gives out.
    """
    fused = setup.liger_kernel or setup.unsloth or setup.torch_compile
    torchtune = setup.engine == "torchtune"
    rope = rates.rope_bytes_fused if fused else rates.torchtune["rope_bytes"] if torchtune else rates.rope_bytes
    base = _model_work(spec, setup.seq_len, fused, setup.attention == "eager", float(rope), rates)
    regime = resolve_regime(setup, spec)
    trained = trained_parameters(setup, spec)
    adapters = _adapter_bytes(setup, spec, regime, rates) if setup.is_adapter else 0.0
    share = 0.0 if setup.is_adapter else min(1.0, trained / spec.parameters) if spec.parameters else 1.0
    fused_loss = setup.liger_kernel or setup.torch_compile or setup.loss in ("fused", "fused_linear", "chunked")
    return TokenWork(
        matmul_flops=base.matmul_flops,
        head_flops=base.head_flops,
        last_flops=0.0 if regime.reentrant else base.last_flops,
        weight_share=share,
        attention_flops=base.attention_flops,
        moved_bytes=base.moved_bytes * (rates.stream["wide_factor"] if regime.stream == "fp32" else 1.0) + adapters,
        logit_bytes=spec.vocab * (rates.logit_bytes_fused if fused_loss else rates.logit_bytes),
        kernels=base.kernels + _extra_kernels(setup, spec, rates),
        linear_elements=base.linear_elements,
        trained=trained,
    )


def recomputed(setup: TrainingSetup, layers: int) -> float:
    """Part of the forward pass that backward runs again, in a model of so many layers."""
    if setup.gradient_checkpointing is True:
        return 1.0
    if setup.gradient_checkpointing is False:
        return 0.0
    if setup.gradient_checkpointing == "selective":
        return 0.15
    return layers // int(setup.gradient_checkpointing) / max(1, layers)


def trained_parameters(setup: TrainingSetup, spec: ModelSpec) -> int:
    """Trained elements, near enough for speed (a freeze run counts whole layers only)."""
    if setup.is_adapter:
        return lora_parameters(spec, setup.lora_rank, setup.lora_target, dora=setup.method == "dora")
    layers = max(1, spec.layers)
    if setup.method == "freeze":
        return spec.parameters * min(setup.freeze_trainable_layers, layers) // layers
    return spec.parameters // layers if setup.method == "badam" else spec.parameters


@lru_cache(maxsize=512)
def _model_work(spec: ModelSpec, seq_len: int, fused: bool, eager: bool, rope_bytes: float, rates: Rates) -> TokenWork:
    head = 2.0 * spec.vocab * (spec.embedding_width or spec.hidden)
    counted = count(spec)
    idle = counted.total - counted.active
    blocks = (counted.blocks - idle) * (rates.expert_factor if spec.is_moe else 1.0)
    return TokenWork(
        matmul_flops=2.0 * blocks + head,
        head_flops=head,
        last_flops=sum(2.0 * run.count * run.block.mlp.width * spec.hidden for run in spec.runs if run.block.mlp),
        weight_share=1.0,
        attention_flops=sum(run.count * _attention_flops(run.block, seq_len, eager) for run in spec.runs),
        moved_bytes=sum(run.count * _moved(spec, run.block, fused, rope_bytes, rates) for run in spec.runs),
        logit_bytes=0.0,
        kernels=spec.layers * rates.launch["per_block_fused" if fused else "per_block"],
        linear_elements=counted.blocks,
        trained=0,
    )


def _attention_flops(block: Block, seq_len: int, eager: bool) -> float:
    """Scores and values of one layer and token: 4·s·A, of which a causal kernel computes half.

    A gated delta rule reads a chunk of 64 tokens and a state as wide as its value heads, a short convolution its taps.
    """
    attention = block.attention
    if attention.kind == "conv":
        return 2.0 * attention.conv_kernel * attention.q_width
    if attention.kind == "linear":
        return 4.0 * (min(seq_len, 64) + attention.v_head_dim) * attention.heads * attention.head_dim
    seen = min(seq_len, attention.sliding_window or seq_len)
    return 4.0 * seen * attention.heads * attention.head_dim * (1.0 if eager else 0.5)


def _moved(spec: ModelSpec, block: Block, fused: bool, rope_bytes: float, rates: Rates) -> float:
    """Bytes that the elementwise kernels of one layer move for one token, forward."""
    one_kernel = fused or block.norm != "rms"  # torch has LayerNorm as one kernel; RMSNorm is written out in models
    norms = block.norms * spec.hidden * (rates.norm_bytes_fused if one_kernel else rates.norm_bytes)
    rope = _rotated(block.attention) * rope_bytes
    return norms + rope + _mlp_bytes(block, fused, rates)


def _rotated(attention: Attention) -> int:
    """Elements of queries and keys that rotary positions touch."""
    return attention.q_width + attention.kv_width if attention.rope in ("full", "partial") else 0


def _mlp_bytes(block: Block, fused: bool, rates: Rates) -> float:
    each = rates.mlp_bytes_fused if fused else rates.mlp_bytes
    used = [(1, block.mlp)] if block.mlp else []
    if block.moe:
        used += [(block.moe.experts_per_token, block.moe.expert)]
        used += [(1, block.moe.shared)] if block.moe.shared else []
    return sum(number * mlp.width * (each if mlp.gated else rates.mlp_bytes_fused) for number, mlp in used)


def _adapter_bytes(setup: TrainingSetup, spec: ModelSpec, regime: Regime, rates: Rates) -> float:
    """Adapters in the dtype of their input need no cast of it: only the sides that they write count."""
    inputs, outputs = _adapted_sides(spec, setup.lora_target)
    casts = regime.adapter != regime.stream or regime.autocast is not None
    return rates.adapter_bytes * (outputs + (inputs if casts else 0))


@lru_cache(maxsize=512)
def _adapted_sides(spec: ModelSpec, targets: Targets) -> tuple[int, int]:
    """Elements on the input and on the output sides of all adapted linears of the model."""
    inputs = outputs = 0
    for run in spec.runs:
        reached = [linear for linear in lora_targets(spec, run.block, targets) if linear.copies == 1]
        inputs += run.count * sum(linear.inputs for linear in reached)
        outputs += run.count * sum(linear.outputs for linear in reached)
    return inputs, outputs


def _extra_kernels(setup: TrainingSetup, spec: ModelSpec, rates: Rates) -> int:
    """Kernels of adapters and of dequantization, per forward pass over all layers."""
    if not setup.is_adapter:
        return 0
    total = 0
    for run in spec.runs:
        linears = block_linears(spec, run.block)
        adapted = len(lora_targets(spec, run.block, setup.lora_target))
        total += run.count * (adapted * int(rates.launch["per_adapter"]))
        total += run.count * len(linears) * int(rates.launch["per_quantized"]) if setup.quantization_bit else 0
    return total
