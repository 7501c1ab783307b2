"""Families with a block of their own making: GPT-2 and kin, Falcon, BLOOM, MPT, OPT, and those of remote code."""

from __future__ import annotations

from dataclasses import replace

from planner.model.families import Traits
from planner.model.keys import Keys
from planner.model.spec import Attention, Block, ModelSpec, NormKind, Run

_BIASED = Traits(qkv_bias=True, out_bias=True, mlp_bias=True, gated=False, grouped=False, norm="layernorm")


def _one_key_head_if_multi_query(keys: Keys, attention: Attention, layer: int) -> Attention:
    """GPT-BigCode: a single key and value head unless ``multi_query`` is false."""
    return replace(attention, kv_heads=1 if keys.flag("multi_query", default=True) else attention.heads)


def _falcon_attention(keys: Keys, attention: Attention, layer: int) -> Attention:
    """Falcon-7B has one key head, the new architecture (40B, 180B, 11B) groups, Falcon-RW as many as queries."""
    if keys.flag("new_decoder_architecture"):
        kv_heads = keys.maybe("num_key_value_heads") or attention.heads
    else:
        kv_heads = 1 if keys.flag("multi_query", default=True) else attention.heads
    alibi = keys.flag("alibi")
    return replace(
        attention, kv_heads=kv_heads, rope="alibi" if alibi else "full", rotary_dim=0 if alibi else attention.head_dim
    )


def _falcon_finish(keys: Keys, spec: ModelSpec) -> ModelSpec:
    """Norms of a Falcon block: two in the new architecture unless told otherwise, one where only parallel."""
    parallel = keys.flag("parallel_attn", default=True)
    if not keys.flag("new_decoder_architecture"):
        return _each_block(spec, norms=1 if parallel else 2, parallel=parallel)
    return _each_block(spec, norms=keys.whole("num_ln_in_parallel_attn", 2), parallel=True)


def _opt_finish(keys: Keys, spec: ModelSpec) -> ModelSpec:
    """OPT-350m puts its norms behind, has no final one and a narrow embedding; Galactica drops the biases."""
    kind: NormKind = "layernorm" if keys.flag("layer_norm_elementwise_affine", default=True) else "layernorm_no_params"
    before = keys.flag("do_layer_norm_before", default=True) and not keys.flag("_remove_final_layer_norm")
    width = keys.whole("word_embed_proj_dim", spec.hidden) if "word_embed_proj_dim" in keys.config else spec.hidden
    spec = _each_block(spec, norm=kind)
    return replace(spec, final_norm=kind if before else "none", embedding_width=width if width != spec.hidden else None)


def _qwen_finish(keys: Keys, spec: ModelSpec) -> ModelSpec:
    """Qwen 1 gives w1 and w2 half of ``intermediate_size`` each. Source: modeling_qwen.py, QWenMLP."""
    mlp = spec.runs[0].block.mlp
    assert mlp is not None  # noqa: S101 - Qwen 1 is dense
    return _each_block(spec, mlp=replace(mlp, width=mlp.width // 2))


def _baichuan_attention(keys: Keys, attention: Attention, layer: int) -> Attention:
    """The 13B models (hidden 5120) use ALiBi, the 7B ones rotary positions. Source: modeling_baichuan.py."""
    return replace(attention, rope="alibi", rotary_dim=0) if keys.whole("hidden_size") >= 5120 else attention


def _chatglm_attention(keys: Keys, attention: Attention, layer: int) -> Attention:
    """ChatGLM2, 3 and GLM-4: grouped key heads, half of each head rotated. Source: modeling_chatglm.py."""
    grouped = keys.flag("multi_query_attention")
    head_dim = keys.maybe("kv_channels") or attention.head_dim
    kv_heads = keys.whole("multi_query_group_num") if grouped else attention.heads
    return replace(attention, kv_heads=kv_heads, head_dim=head_dim, rope="partial", rotary_dim=head_dim // 2)


def _chatglm_finish(keys: Keys, spec: ModelSpec) -> ModelSpec:
    """``rmsnorm`` false means LayerNorm."""
    if keys.flag("rmsnorm", default=True):
        return spec
    return replace(_each_block(spec, norm="layernorm"), final_norm="layernorm")


def _is_cross_attention(keys: Keys, layer: int) -> bool:
    """Llama 3.2 Vision: the layers that look at the image, every fifth from 3 on unless listed."""
    listed = keys.items("cross_attention_layers")
    return layer in (listed if listed is not None else range(3, 40, 5))


def _mllama_attention(keys: Keys, attention: Attention, layer: int) -> Attention:
    """Cross-attention normalises queries and keys and knows no positions. Source: modeling_mllama.py."""
    if not _is_cross_attention(keys, layer):
        return attention
    return replace(attention, qk_norm="head", rope="none", rotary_dim=0)


def _mllama_finish(keys: Keys, spec: ModelSpec) -> ModelSpec:
    """Each cross-attention layer has two learned gates, and the input embedding eight rows more than the head."""
    runs = tuple(
        replace(run, block=replace(run.block, extra_parameters=2)) if run.block.attention.qk_norm == "head" else run
        for run in spec.runs
    )
    note = "its cross-attention layers are taken to be as long as the text"
    return replace(spec, runs=runs, embedding_extra_rows=8, notes=(*spec.notes, note))


def _each_block(spec: ModelSpec, **changes: object) -> ModelSpec:
    def changed(block: Block) -> Block:
        return replace(block, **changes)  # type: ignore[arg-type]

    return replace(spec, runs=tuple(Run(count=run.count, block=changed(run.block)) for run in spec.runs))


CLASSIC: dict[str, Traits] = {
    "gpt2": replace(_BIASED, fused_qkv=True, rope="learned"),
    "gpt_bigcode": replace(_BIASED, fused_qkv=True, rope="learned", attention=_one_key_head_if_multi_query),
    "gpt_neo": replace(_BIASED, qkv_bias=False, rope="learned"),
    "gptj": replace(_BIASED, qkv_bias=False, out_bias=False, head_bias=True, norms=1, parallel=True),
    "codegen": replace(
        _BIASED, qkv_bias=False, out_bias=False, head_bias=True, norms=1, parallel=True, fused_qkv=True
    ),
    "bloom": replace(
        _BIASED, fused_qkv=True, rope="alibi", embedding_norm="layernorm", fixed={"hidden_act": "gelu_tanh"}
    ),
    "mpt": Traits(
        gated=False, grouped=False, fused_qkv=True, norm="layernorm_no_bias", rope="alibi",
        fixed={"hidden_act": "gelu"},
    ),
    "opt": replace(
        _BIASED, qkv_bias="enable_bias", out_bias="enable_bias", mlp_bias="enable_bias", rope="learned",
        extra_positions=2, finish=_opt_finish,
    ),
    "falcon": Traits(
        qkv_bias="bias", out_bias="bias", mlp_bias="bias", gated=False, fused_qkv=True, norm="layernorm",
        attention=_falcon_attention, finish=_falcon_finish, fixed={"hidden_act": "gelu"},
    ),
    "mllama_text_model": Traits(attention=_mllama_attention, finish=_mllama_finish),
    "qwen": Traits(
        qkv_bias=True, fused_qkv=True, remote_code=True, finish=_qwen_finish, fixed={"hidden_act": "silu"},
    ),
    "baichuan": Traits(fused_qkv=True, remote_code=True, attention=_baichuan_attention),
    "chatglm1": replace(
        _BIASED, fused_qkv=True, remote_code=True, fixed={"hidden_act": "gelu", "tie_word_embeddings": True}
    ),
    "exaone": Traits(remote_code=True),
    "internlm2": Traits(qkv_bias="bias", out_bias="bias", fused_qkv=True, remote_code=True),
    "chatglm": Traits(
        qkv_bias="add_qkv_bias", out_bias="add_bias_linear", mlp_bias="add_bias_linear", fused_qkv=True,
        fused_gate_up=True, remote_code=True, attention=_chatglm_attention, finish=_chatglm_finish,
        fixed={"hidden_act": "silu"},
    ),
}  # fmt: skip
