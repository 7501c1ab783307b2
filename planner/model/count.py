"""Exact parameter counts of a ModelSpec, by component."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

from planner.model.modules import block_linears
from planner.model.spec import Attention, Block, ModelSpec, NormKind

NORM_VECTORS: dict[NormKind, int] = {
    "rms": 1, "layernorm": 2, "layernorm_no_bias": 1, "layernorm_no_params": 0, "none": 0,
}  # fmt: skip
_EXPERT_ROLES = ("expert_gate", "expert_up", "expert_gate_up", "expert_down")
_ATTENTION_ROLES = frozenset(
    {"q", "k", "v", "qkv", "o", "q_a", "q_b", "kv_a", "kv_b", "linear_in", "linear_z", "linear_b", "linear_a"}
)


@dataclass(frozen=True, kw_only=True)
class BlockCount:
    """Parameters of one block; ``experts`` are those of all routed experts together."""

    attention: int
    mlp: int
    experts: int
    router: int
    shared: int
    norms: int

    @property
    def total(self) -> int:
        """The whole block."""
        return self.attention + self.mlp + self.experts + self.router + self.shared + self.norms


@dataclass(frozen=True, kw_only=True)
class Count:
    """Parameters by component; tied weights count once. ``blocks`` sums all layers, ``by_run`` gives one of each."""

    embedding: int
    positions: int
    blocks: int
    final_norm: int
    head: int
    vision: int
    projector: int
    active: int
    by_run: tuple[tuple[int, BlockCount], ...] = field(default=())

    @property
    def total(self) -> int:
        """Every parameter of the model."""
        return (
            self.embedding + self.positions + self.blocks + self.final_norm + self.head + self.vision + self.projector
        )


@lru_cache(maxsize=512)
def count(spec: ModelSpec) -> Count:
    """Parameters of the model by component; ``active`` are those one token is multiplied with (MoE).

    Embedding normalisation counts as embedding, OPT-350m's projections to and from its narrow embedding too.
    """
    by_run = tuple((run.count, count_block(spec, run.block)) for run in spec.runs)
    blocks = sum(number * each.total for number, each in by_run)
    idle = sum(run.count * _idle(run.block, each) for run, (_, each) in zip(spec.runs, by_run, strict=True))
    width = spec.embedding_width or spec.hidden
    projections = 2 * width * spec.hidden if width != spec.hidden else 0
    head = (0 if spec.tied_embeddings else spec.vocab * width) + (spec.vocab if spec.head_bias else 0)
    vision = spec.vision
    answer = Count(
        embedding=(spec.vocab + spec.embedding_extra_rows) * width
        + projections
        + NORM_VECTORS[spec.embedding_norm] * spec.hidden,
        positions=spec.position_embeddings * spec.hidden,
        blocks=blocks,
        final_norm=NORM_VECTORS[spec.final_norm] * spec.hidden,
        head=head,
        vision=vision.parameters if vision else 0,
        projector=vision.projector_parameters if vision else 0,
        active=0,
        by_run=by_run,
    )
    return replace(answer, active=answer.total - idle)


def count_block(spec: ModelSpec, block: Block) -> BlockCount:
    """Parameters of one block of this model."""
    sums = dict.fromkeys(("attention", "mlp", "experts", "router", "shared"), 0)
    for linear in block_linears(spec, block):
        sums[_component(linear.role)] += linear.parameters
    sums["attention"] += _attention_extras(block.attention)
    sums["mlp"] += block.extra_parameters
    if block.moe is not None and block.moe.router_correction_bias:
        sums["router"] += block.moe.experts
    return BlockCount(norms=block.norms * NORM_VECTORS[block.norm] * spec.hidden, **sums)


def _component(role: str) -> str:
    if role in _ATTENTION_ROLES:
        return "attention"
    if role in _EXPERT_ROLES:
        return "experts"
    if role in ("router", "shared_router"):
        return "router"
    return "shared" if role.startswith("shared_") else "mlp"


def _attention_extras(attention: Attention) -> int:
    """Parameters of attention that are no matrices: head norms, latent norms, sinks, the delta rule's gates."""
    if attention.kind == "linear":
        convolved = 2 * attention.kv_width + attention.heads * attention.v_head_dim
        return 2 * attention.heads + attention.conv_kernel * convolved + attention.v_head_dim
    if attention.kind == "conv":
        return attention.q_width * (attention.conv_kernel + (1 if attention.qkv_bias else 0))
    if attention.kind == "mla":
        return (attention.q_lora_rank or 0) + attention.kv_lora_rank
    widths = {"none": 0, "head": 2 * attention.head_dim, "full": attention.q_width + attention.kv_width}
    norms = NORM_VECTORS[attention.qk_norm_kind] * widths[attention.qk_norm]
    return norms + (attention.heads if attention.sinks else 0)


def _idle(block: Block, counted: BlockCount) -> int:
    """Expert parameters that one token passes by."""
    if block.moe is None:
        return 0
    return counted.experts * (block.moe.experts - block.moe.experts_per_token) // block.moe.experts
