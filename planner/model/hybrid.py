"""Families that mix attention with something else from layer to layer: LFM2's short convolutions, Granite 4.

Source: the modelling code of transformers 5.23, one file a family.
"""

from __future__ import annotations

from dataclasses import replace

from planner.errors import UnsupportedError
from planner.model.experts import _moe
from planner.model.families import Traits
from planner.model.keys import Keys
from planner.model.spec import Attention, Mlp, ModelSpec, Moe


def _kind_of_layer(keys: Keys, layer: int, default: str) -> str:
    """The layer's entry in ``layer_types`` (once ``layers_block_type``)."""
    kinds = keys.items("layer_types") or keys.items("layers_block_type") or []
    return str(kinds[layer]) if len(kinds) > layer else default


def _lfm2_attention(keys: Keys, attention: Attention, layer: int) -> Attention:
    """Grouped attention where ``layer_types`` or the older ``full_attn_idxs`` says so, else the short convolution."""
    chosen = keys.items("full_attn_idxs")
    listed = "full_attention" if chosen is None or layer in chosen else "conv"
    if _kind_of_layer(keys, layer, listed) != "conv":
        return attention
    biased = keys.flag("conv_bias")
    return Attention(
        kind="conv", heads=1, kv_heads=1, head_dim=keys.whole("hidden_size"), rope="none", qkv_bias=biased,
        out_bias=biased, conv_kernel=keys.whole("conv_L_cache", 3),
    )  # fmt: skip


def _lfm2_width(keys: Keys) -> int:
    """Two thirds of ``block_ff_dim``, rounded up, unless ``block_auto_adjust_ff_dim`` is false. Source: Lfm2MLP."""
    width = keys.maybe("block_ff_dim") or keys.whole("intermediate_size")
    if not keys.flag("block_auto_adjust_ff_dim", default=True):
        return width
    width = int(keys.number("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3))
    multiple = keys.whole("block_multiple_of", 256)
    return -(-width // multiple) * multiple


def _lfm2_finish(keys: Keys, spec: ModelSpec) -> ModelSpec:
    """The width of the feed-forward modules, and ``tie_embedding``, the older name of a flag that is on by default."""
    spec = _tied(keys, spec)
    width = _lfm2_width(keys)

    def narrowed(mlp: Mlp | None) -> Mlp | None:
        return None if mlp is None else replace(mlp, width=width)

    runs = (replace(run, block=replace(run.block, mlp=narrowed(run.block.mlp))) for run in spec.runs)
    return replace(spec, runs=tuple(runs))


def _tied(keys: Keys, spec: ModelSpec) -> ModelSpec:
    return replace(spec, tied_embeddings=keys.flag("tie_embedding", default=spec.tied_embeddings))


def _lfm2_experts(keys: Keys, layer: int) -> Moe | None:
    """The first ``num_dense_layers`` layers are dense."""
    if layer < (keys.maybe("num_dense_layers") or 0):
        return None
    return _moe(keys, width=keys.whole("moe_intermediate_size"))


def _granite_attention(keys: Keys, attention: Attention, layer: int) -> Attention:
    """Granite 4: grouped attention, with rotary positions only where ``position_embedding_type`` asks for them."""
    kind = _kind_of_layer(keys, layer, "mamba")
    if kind != "attention":
        raise UnsupportedError(f"{keys.place}: layer {layer} is of kind {kind!r}, which has no rules here yet")
    rotates = keys.text("position_embedding_type", default="nope") == "rope"
    return attention if rotates else replace(attention, rope="none", rotary_dim=0)


def _granite_experts(keys: Keys, layer: int) -> Moe | None:
    if not keys.maybe("num_local_experts"):
        return None
    return _moe(
        keys, width=keys.whole("intermediate_size"), stacked=True, shared=keys.whole("shared_intermediate_size"),
        fused_shared=True,
    )  # fmt: skip


def _granite_finish(keys: Keys, spec: ModelSpec) -> ModelSpec:
    """Without routed experts what is called the shared one is the feed-forward module."""
    width = keys.whole("shared_intermediate_size")

    def dense(mlp: Mlp | None) -> Mlp | None:
        return None if mlp is None else replace(mlp, width=width)

    runs = (replace(run, block=replace(run.block, mlp=dense(run.block.mlp))) for run in spec.runs)
    return replace(spec, runs=tuple(runs))


HYBRID: dict[str, Traits] = {
    "lfm2": Traits(qk_norm="head", attention=_lfm2_attention, finish=_lfm2_finish),
    "lfm2_moe": Traits(qk_norm="head", attention=_lfm2_attention, experts=_lfm2_experts, finish=_tied),
    "granitemoehybrid": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", fused_gate_up=True, attention=_granite_attention,
        experts=_granite_experts, finish=_granite_finish,
    ),
}  # fmt: skip
