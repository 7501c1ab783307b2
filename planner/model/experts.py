"""Families with routed experts, latent attention (DeepSeek) or the gated delta rule (Qwen3-Next, Qwen3.5).

Source: the modelling code of transformers 5.23, one file a family.
"""

from __future__ import annotations

from dataclasses import replace

from planner.model.families import (
    DENSE,
    ExpertsOf,
    Traits,
    activation_of,
    qwen_window,
    uniform_window,
    window_by_type,
)
from planner.model.keys import Keys
from planner.model.spec import Attention, Mlp, ModelSpec, Moe


def _moe(
    keys: Keys, *, width: int, shared: int | None = None, shared_gate: bool = False, bias: bool = False,
    router_bias: bool = False, correction: bool = False, stacked: bool = False, fused_shared: bool = False,
    shared_bias: bool = False,
) -> Moe:  # fmt: skip
    activation = activation_of(keys)
    chosen = keys.whole("num_experts_per_tok")
    return Moe(
        experts=keys.whole("num_local_experts"),
        experts_per_token=chosen,
        expert=Mlp(width=width, activation=activation, bias=bias),
        shared=Mlp(width=shared, activation=activation, fused_gate_up=fused_shared, bias=shared_bias)
        if shared
        else None,
        shared_gate=shared_gate and bool(shared),
        router_bias=router_bias,
        router_correction_bias=correction,
        stacked=stacked,
    )


def _mixtral(keys: Keys, layer: int) -> Moe | None:
    return _moe(keys, width=keys.whole("intermediate_size"))


def _granite(keys: Keys, layer: int) -> Moe | None:
    shared = keys.maybe("shared_intermediate_size") if keys.model_type == "granitemoeshared" else None
    return _moe(keys, width=keys.whole("intermediate_size"), stacked=True, shared=shared, fused_shared=True)


def _gpt_oss(keys: Keys, layer: int) -> Moe | None:
    return _moe(keys, width=keys.whole("intermediate_size"), bias=True, router_bias=True, stacked=True)


def _qwen(keys: Keys, layer: int) -> Moe | None:
    """Qwen MoE: dense layers by ``mlp_only_layers`` and between the steps of ``decoder_sparse_step``."""
    dense = layer in (keys.items("mlp_only_layers") or [])
    if dense or keys.raw("num_local_experts") in (None, 0) or (layer + 1) % keys.whole("decoder_sparse_step", 1):
        return None
    return _qwen_everywhere(keys, layer)


def _qwen_everywhere(keys: Keys, layer: int) -> Moe | None:
    """Qwen3.5 routes in every layer."""
    shared = None if keys.model_type == "qwen3_moe" else keys.maybe("shared_expert_intermediate_size")
    return _moe(keys, width=keys.whole("moe_intermediate_size"), shared=shared, shared_gate=True)


def _first_dense(keys: Keys, layer: int) -> Moe | None:
    """DeepSeek, GLM-4.5, dots.1: the first ``first_k_dense_replace`` layers are dense."""
    if layer < (keys.maybe("first_k_dense_replace") or 0):
        return None
    width = keys.whole("moe_intermediate_size")
    biased = keys.model_type == "deepseek_v2" and keys.flag("mlp_bias")
    return _moe(keys, width=width, shared=width * (keys.maybe("n_shared_experts") or 0), shared_bias=biased)


def _glm_lite(keys: Keys, layer: int) -> Moe | None:
    """GLM-4.7-Flash: dense layers by ``mlp_layer_types``, else the first alone."""
    kinds = keys.items("mlp_layer_types")
    kind = kinds[layer] if kinds is not None and len(kinds) > layer else ("dense" if layer == 0 else "sparse")
    width = keys.whole("moe_intermediate_size")
    return None if kind == "dense" else _moe(keys, width=width, shared=width * (keys.maybe("n_shared_experts") or 0))


def _llama4(keys: Keys, layer: int) -> Moe | None:
    """Llama 4: experts in the layers of ``moe_layers``, else in every ``interleave_moe_layer_step``-th."""
    chosen = keys.items("moe_layers")
    step = keys.whole("interleave_moe_layer_step", 1)
    if layer not in chosen if chosen else (layer + 1) % step:
        return None
    width = keys.whole("intermediate_size")
    return _moe(keys, width=width, shared=width, stacked=True)


def _llama4_attention(keys: Keys, attention: Attention, layer: int) -> Attention:
    """Every fourth layer has no positions (and then no query norm) unless ``no_rope_layers`` says otherwise."""
    rotates = keys.items("no_rope_layers") or []
    rope = bool(rotates[layer]) if len(rotates) > layer else bool((layer + 1) % keys.whole("no_rope_layer_interval", 4))
    normed = rope and keys.flag("use_qk_norm")
    return replace(
        attention, rope="full" if rope else "none", rotary_dim=attention.head_dim if rope else 0,
        qk_norm="head" if normed else "none", sliding_window=keys.maybe("attention_chunk_size") if rope else None,
    )  # fmt: skip


def _llama4_finish(keys: Keys, spec: ModelSpec) -> ModelSpec:
    """Dense layers of Llama 4 (Maverick) are ``intermediate_size_mlp`` wide."""
    wide = keys.whole("intermediate_size_mlp")
    runs = tuple(
        replace(run, block=replace(run.block, mlp=replace(run.block.mlp, width=wide))) if run.block.mlp else run
        for run in spec.runs
    )
    return replace(spec, runs=runs)


def _ernie(keys: Keys, layer: int) -> Moe | None:
    """ERNIE 4.5: experts from ``moe_layer_start_index`` to ``moe_layer_end_index``, every ``moe_layer_interval``-th."""
    first = keys.maybe("moe_layer_start_index") or 0
    last = keys.raw("moe_layer_end_index")
    last = keys.whole("num_hidden_layers") - 1 if last in (None, -1) else keys.whole("moe_layer_end_index")
    if not first <= layer <= last or (layer + 1) % keys.whole("moe_layer_interval", 1):
        return None
    width = keys.whole("moe_intermediate_size")
    shared = width * (keys.maybe("moe_num_shared_experts") or 0)
    return _moe(keys, width=width, shared=shared, correction=True, shared_bias=keys.flag("use_bias"))


def _hunyuan(keys: Keys, layer: int) -> Moe | None:
    width = keys.whole("intermediate_size")
    return _moe(keys, width=width, shared=width)


def _latent(keys: Keys, attention: Attention, layer: int) -> Attention:
    """DeepSeek's MLA: queries and keys carry a part with positions and one without."""
    nope, rope = keys.whole("qk_nope_head_dim"), keys.whole("qk_rope_head_dim")
    biased = keys.flag("attention_bias")
    return replace(
        attention, kind="mla", kv_heads=attention.heads, head_dim=nope + rope, rope="partial", rotary_dim=rope,
        q_lora_rank=None if keys.is_null("q_lora_rank") else keys.maybe("q_lora_rank"),
        kv_lora_rank=keys.whole("kv_lora_rank"), qk_nope_dim=nope, qk_rope_dim=rope,
        v_head_dim=keys.whole("v_head_dim"), qkv_bias=biased, out_bias=biased,
    )  # fmt: skip


def _sinks(keys: Keys, attention: Attention, layer: int) -> Attention:
    return replace(attention, sinks=True)


def is_linear_layer(keys: Keys, layer: int) -> bool:
    """Qwen3-Next and Qwen3.5: three delta-rule layers, then one of full attention, unless ``layer_types`` is given."""
    kinds = keys.items("layer_types")
    if kinds is not None and len(kinds) > layer:
        return bool(kinds[layer] == "linear_attention")
    return bool((layer + 1) % keys.whole("full_attention_interval", 4))


def _delta(keys: Keys, attention: Attention, layer: int) -> Attention:
    """A gated delta-rule layer, or full attention with an output gate beside q."""
    if not is_linear_layer(keys, layer):
        return replace(attention, gated=True, qk_norm="head")
    return Attention(
        kind="linear",
        heads=keys.whole("linear_num_value_heads"),
        kv_heads=keys.whole("linear_num_key_heads"),
        head_dim=keys.whole("linear_key_head_dim"),
        v_head_dim=keys.whole("linear_value_head_dim"),
        conv_kernel=keys.whole("linear_conv_kernel_dim"),
        fused_qkv=keys.model_type == "qwen3_next",
        rope="none",
    )


def _routed(base: str, experts: ExpertsOf, **changes: object) -> Traits:
    return replace(DENSE[base], experts=experts, **changes)  # type: ignore[arg-type]


_DELTA = Traits(qkv_bias="attention_bias", out_bias="attention_bias", attention=_delta)
_DEEPSEEK = Traits(experts=_first_dense, attention=_latent)
_LLAMA4 = Traits(
    qkv_bias="attention_bias", out_bias="attention_bias", experts=_llama4, attention=_llama4_attention,
    finish=_llama4_finish, qk_norm_kind="layernorm_no_params",
)  # fmt: skip

EXPERTS: dict[str, Traits] = {
    "mixtral": _routed("mistral", _mixtral),
    "phimoe": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", head_bias="lm_head_bias", norm="layernorm",
        experts=_mixtral, window=uniform_window,
    ),
    "qwen2_moe": Traits(qkv_bias="qkv_bias", experts=_qwen, window=qwen_window),
    "qwen3_moe": _routed("qwen3", _qwen),
    "qwen3_next": replace(_DELTA, experts=_qwen),
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": replace(_DELTA, experts=_qwen_everywhere),
    "olmoe": _routed("olmo2", _mixtral, post_norm=False),
    "granitemoe": _routed("granite", _granite),
    "granitemoeshared": _routed("granite", _granite),
    "gpt_oss": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", experts=_gpt_oss, attention=_sinks,
        window=window_by_type(2, 1),
    ),
    "glm4_moe": Traits(qkv_bias="attention_bias", qk_norm="head", qk_norm_if="use_qk_norm", experts=_first_dense),
    "dots1": _routed("qwen3", _first_dense),
    "deepseek": Traits(qkv_bias="attention_bias", out_bias="attention_bias", experts=_first_dense, remote_code=True),
    "deepseek_v2": replace(_DEEPSEEK, mlp_bias="mlp_bias"),
    "deepseek_v3": _DEEPSEEK,
    "minicpm3": Traits(mlp_bias="mlp_bias", attention=_latent),
    # its hidden width is no multiple of its heads, whose own width `_latent` sets
    "glm4_moe_lite": Traits(experts=_glm_lite, attention=_latent, fixed={"head_dim": 256}),
    "minimax_m2": Traits(qk_norm="full", experts=_mixtral),
    "llama4_text": _LLAMA4,
    "ernie4_5_moe": _routed("ernie4_5", _ernie, head_bias="use_bias"),
    "hunyuan_v1_moe": _routed("hunyuan_v1_dense", _hunyuan),
}  # fmt: skip
