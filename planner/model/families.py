"""What sets each family apart: one row of traits per model type, one builder that reads them.

Source of every row: the modelling code of transformers 5.23 (``models/<type>/modeling_<type>.py``), or the remote
code of the model where that is said. A trait given as text is the config key that switches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

from planner.errors import InputError
from planner.model.keys import Keys
from planner.model.spec import Attention, Block, Mlp, ModelSpec, Moe, NormKind, Run

Switch = bool | str
ExpertsOf = Callable[[Keys, int], Moe | None]
WindowOf = Callable[[Keys, int], int | None]


def no_experts(keys: Keys, layer: int) -> Moe | None:
    """Dense everywhere."""
    return None


def no_window(keys: Keys, layer: int) -> int | None:
    """Full attention everywhere."""
    return None


@dataclass(frozen=True, kw_only=True)
class Traits:
    """How a family differs from Llama; the defaults are Llama."""

    qkv_bias: Switch = False
    out_bias: Switch = False
    mlp_bias: Switch = False
    head_bias: Switch = False
    gated: bool = True
    grouped: bool = True  # False where the family has as many key heads as heads, whatever the config says
    fused_qkv: bool = False
    fused_gate_up: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    qk_norm_kind: NormKind = "rms"
    qk_norm_if: str | None = None  # the key that switches qk_norm on
    norm: NormKind = "rms"
    norms: int = 2
    post_norm: bool = False
    parallel: Switch = False
    norms_if_parallel: int | None = None
    embedding_norm: NormKind = "none"
    rope: Literal["full", "partial", "none", "alibi", "learned"] = "full"
    extra_positions: int = 0  # rows of a learned table beyond max_position_embeddings (OPT)
    scaled_embedding: bool = False
    window: WindowOf = no_window
    experts: ExpertsOf = no_experts
    attention: Callable[[Keys, Attention, int], Attention] | None = None  # last word on one layer's attention
    extra_parameters: int = 0  # of each block
    remote_code: bool = False
    finish: Callable[[Keys, ModelSpec], ModelSpec] | None = None  # last word on the whole
    fixed: dict[str, Any] = field(default_factory=dict)  # keys this family takes for granted


MOST_LAYERS = 10_000  # far above any model; keeps a corrupt config from filling memory


def build(keys: Keys, traits: Traits) -> ModelSpec:
    """The ModelSpec of one text config; ``id``, totals and the vision side are filled in by the caller."""
    if traits.fixed:
        keys = Keys({**traits.fixed, **keys.config}, keys.model_type, place=keys.place, nested=keys.nested)
    layers = keys.whole("num_hidden_layers")
    if layers > MOST_LAYERS:
        raise InputError(f"{keys.place}: num_hidden_layers is {layers}; more than {MOST_LAYERS} is no model")
    blocks = (
        [build_block(keys, traits, 0)] * layers
        if _is_uniform(keys, traits)
        else [build_block(keys, traits, layer) for layer in range(layers)]
    )
    positions = keys.maybe("max_position_embeddings")
    learned = (positions or keys.whole("max_position_embeddings")) if traits.rope == "learned" else 0
    spec = ModelSpec(
        id="",
        model_type=keys.model_type,
        hidden=keys.whole("hidden_size"),
        vocab=keys.whole("vocab_size"),
        runs=tuple(Run(count=len(list(same)), block=block) for block, same in groupby(blocks)),
        tied_embeddings=keys.flag("tie_word_embeddings"),
        position_embeddings=learned + (traits.extra_positions if learned else 0),
        embedding_norm=traits.embedding_norm,
        final_norm=traits.norm,
        head_bias=is_on(keys, traits.head_bias),
        head_softcap=keys.number("final_logit_softcapping", 0.0) > 0,
        scaled_embedding=traits.scaled_embedding,
        max_positions=positions,
        remote_code=traits.remote_code,
    )
    return traits.finish(keys, spec) if traits.finish else spec


def _is_uniform(keys: Keys, traits: Traits) -> bool:
    """True where no trait looks at the number of a layer, so that one block stands for all."""
    same_window = traits.window in (no_window, uniform_window)
    same_window = same_window or (traits.window is qwen_window and not keys.flag("use_sliding_window"))
    return same_window and traits.experts is no_experts and traits.attention is None


def build_block(keys: Keys, traits: Traits, layer: int) -> Block:
    """One decoder layer."""
    attention = build_attention(keys, traits, layer)
    moe = traits.experts(keys, layer)
    parallel = is_on(keys, traits.parallel)
    norms = traits.norms_if_parallel if parallel and traits.norms_if_parallel is not None else traits.norms
    return Block(
        attention=traits.attention(keys, attention, layer) if traits.attention else attention,
        mlp=None if moe is not None else dense_mlp(keys, traits),
        moe=moe,
        norm=traits.norm,
        norms=norms,
        post_norm=traits.post_norm,
        parallel=parallel,
        extra_parameters=traits.extra_parameters,
    )


def build_attention(keys: Keys, traits: Traits, layer: int) -> Attention:
    """Grouped-query attention by the usual keys."""
    heads = keys.whole("num_attention_heads")
    head_dim = width_of_head(keys, heads)
    rotary = rotary_dim(keys, head_dim) if traits.rope in ("full", "partial") else 0
    has_qk_norm = traits.qk_norm_if is None or keys.flag(traits.qk_norm_if)
    return Attention(
        heads=heads,
        kv_heads=(keys.maybe("num_key_value_heads") if traits.grouped else None) or heads,
        head_dim=head_dim,
        qkv_bias=is_on(keys, traits.qkv_bias),
        out_bias=is_on(keys, traits.out_bias),
        fused_qkv=traits.fused_qkv,
        qk_norm=traits.qk_norm if has_qk_norm else "none",
        qk_norm_kind=traits.qk_norm_kind,
        rope="partial" if 0 < rotary < head_dim else traits.rope,
        rotary_dim=rotary,
        sliding_window=traits.window(keys, layer),
        softcap=keys.number("attn_logit_softcapping", 0.0) > 0,
    )


def dense_mlp(keys: Keys, traits: Traits) -> Mlp:
    """The feed-forward module; four times the hidden width where the config leaves its width out (GPT-2 and kin)."""
    return Mlp(
        width=keys.maybe("intermediate_size") or keys.whole("expansion_ratio", 4) * keys.whole("hidden_size"),
        gated=traits.gated,
        activation=activation_of(keys),
        bias=is_on(keys, traits.mlp_bias),
        fused_gate_up=traits.fused_gate_up,
    )


ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_pytorch": "gelu", "swish": "silu", "swiglu": "silu",
}  # fmt: skip


def activation_of(keys: Keys) -> str:
    """The activation's name, transformers' several spellings made one."""
    name = keys.text("hidden_activation", "hidden_act", "activation_function", "activation", default="silu")
    return ACTIVATIONS.get(name, name)


def is_on(keys: Keys, switch: Switch) -> bool:
    """A trait that is fixed, or that a config key switches."""
    return keys.flag(switch) if isinstance(switch, str) else switch


def width_of_head(keys: Keys, heads: int) -> int:
    """head_dim where given, else hidden / heads. Raises InputError where that does not divide."""
    given = keys.maybe("head_dim")
    if given is not None:
        return given
    hidden = keys.whole("hidden_size")
    if hidden % heads:
        raise InputError(f"{keys.place}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    return hidden // heads


def rotary_dim(keys: Keys, head_dim: int) -> int:
    """Elements of a head that are rotated."""
    given = keys.maybe("rotary_dim")
    if given is not None:
        return min(given, head_dim)
    rope = keys.section("rope_parameters")
    factor = keys.config.get("rotary_pct") or rope.get("partial_rotary_factor") or keys.raw("partial_rotary_factor")
    if factor is None:
        return head_dim
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 1:
        raise InputError(f"{keys.place}: the rotated share of a head is {factor!r}; it must lie between 0 and 1")
    return int(head_dim * factor)


def uniform_window(keys: Keys, layer: int) -> int | None:
    """Mistral: every layer slides where ``sliding_window`` is a number; null switches it off."""
    return None if keys.is_null("sliding_window") else keys.maybe("sliding_window")


def window_by_type(period: int, full_at: int) -> WindowOf:
    """Layers of two kinds: ``layer_types`` where given, else one full layer in ``sliding_window_pattern``."""

    def window(keys: Keys, layer: int) -> int | None:
        kinds = keys.items("layer_types")
        if kinds is not None and len(kinds) > layer:
            slides = kinds[layer] in ("sliding_attention", "chunked_attention")
        else:
            given = keys.raw("sliding_window_pattern")
            length = given if isinstance(given, int) and given > 0 else period
            slides = layer % length != full_at % length
        return uniform_window(keys, layer) if slides else None

    return window


def qwen_window(keys: Keys, layer: int) -> int | None:
    """Qwen2 and 3: layers from ``max_window_layers`` on slide, and only with ``use_sliding_window``."""
    if not keys.flag("use_sliding_window") or layer < keys.whole("max_window_layers", 28):
        return None
    return uniform_window(keys, layer)


_QWEN2 = Traits(qkv_bias=True, window=qwen_window)
_GEMMA = Traits(qkv_bias="attention_bias", out_bias="attention_bias", scaled_embedding=True)
_GEMMA2 = replace(_GEMMA, norms=4, window=window_by_type(2, 1))
_GRANITE = Traits(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
_COHERE = Traits(
    qkv_bias="attention_bias", out_bias="attention_bias", norm="layernorm_no_bias", norms=1, parallel=True,
    qk_norm="full", qk_norm_if="use_qk_norm", qk_norm_kind="layernorm_no_bias",
)  # fmt: skip
_OLMO2 = Traits(qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="full", post_norm=True)

DENSE: dict[str, Traits] = {
    "llama": _GRANITE,
    "mistral": Traits(window=uniform_window),
    "ministral": Traits(window=window_by_type(4, 3)),
    "ministral3": Traits(window=uniform_window),
    "qwen2": _QWEN2,
    "qwen3": Traits(qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head", window=qwen_window),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, qk_norm="head", window=window_by_type(6, 5)),
    "phi3": Traits(fused_qkv=True, fused_gate_up=True, window=uniform_window),
    "phi": Traits(
        qkv_bias=True, out_bias=True, mlp_bias=True, head_bias=True, gated=False, norm="layernorm", norms=1,
        parallel=True, qk_norm="head", qk_norm_if="qk_layernorm", qk_norm_kind="layernorm",
    ),
    "starcoder2": Traits(
        qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", gated=False, norm="layernorm",
        window=uniform_window,
    ),
    "stablelm": Traits(
        qkv_bias="use_qkv_bias", norm="layernorm", parallel="use_parallel_residual", norms_if_parallel=1,
        qk_norm="full", qk_norm_if="qk_layernorm", qk_norm_kind="layernorm_no_bias",
    ),
    "gpt_neox": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias=True, gated=False, fused_qkv=True,
        grouped=False, norm="layernorm", parallel="use_parallel_residual",
    ),
    "cohere": _COHERE,
    "cohere2": replace(_COHERE, qk_norm="none", window=window_by_type(4, 3)),
    "olmo": replace(_GRANITE, norm="layernorm_no_params", mlp_bias=False),
    "olmo2": _OLMO2,
    "olmo3": replace(_OLMO2, window=window_by_type(4, 3)),
    "granite": _GRANITE,
    "glm": Traits(qkv_bias="attention_bias", fused_gate_up=True),
    "glm4": Traits(qkv_bias="attention_bias", fused_gate_up=True, norms=4),
    "smollm3": _GRANITE,
    "ernie4_5": Traits(qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias"),
    "seed_oss": Traits(qkv_bias="attention_bias", out_bias="attention_out_bias", mlp_bias="mlp_bias"),
    "hunyuan_v1_dense": Traits(qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head"),
    "exaone4": Traits(qk_norm="head", post_norm=True, window=window_by_type(4, 3)),
    "nemotron": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias", gated=False, norm="layernorm",
    ),
    "arcee": Traits(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias", gated=False),
    "apertus": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", gated=False, qk_norm="head", extra_parameters=2,
    ),
    "helium": Traits(qkv_bias="attention_bias", mlp_bias="mlp_bias"),
    "internlm": Traits(qkv_bias="bias", out_bias="bias", remote_code=True),
    "minicpm": Traits(remote_code=True, scaled_embedding=True),
}  # fmt: skip
DENSE["internlm3"] = Traits(qkv_bias="qkv_bias", out_bias="bias", mlp_bias="bias")
