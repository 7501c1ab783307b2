"""ModelSpec: layers, widths, heads, experts; everything that counting and the memory model read.

All widths are in elements. A spec is made by ``planner.model.interpret`` from a Hugging Face config
dict (the catalogue stores such dicts too), never by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rms", "layernorm", "layernorm_no_bias", "none", "layernorm_no_params"]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One attention module, or what stands in its place.

    ``kind`` "mla" is DeepSeek's latent attention, whose own widths are below, "linear" the gated delta rule, "conv" a
    gated short convolution (LFM2).
    """

    kind: Literal["gqa", "mla", "linear", "conv"] = "gqa"
    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    fused_qkv: bool = False  # one Linear makes q, k and v (Phi-3, GPT-2, NeoX, Falcon, BLOOM)
    qk_norm: Literal["none", "head", "full"] = "none"  # per head (Qwen3, Gemma 3) or over all heads (OLMo 2)
    qk_norm_kind: NormKind = "rms"  # Phi: layernorm, StableLM: layernorm_no_bias, Llama 4: layernorm_no_params
    rope: Literal["full", "partial", "none", "alibi", "learned"] = "full"
    rotary_dim: int = 0  # elements of each head that are rotated
    sliding_window: int | None = None
    softcap: bool = False  # tanh soft-capping of the scores forces eager-like attention
    sinks: bool = False  # one learned logit a head (gpt-oss)
    gated: bool = False  # output gate computed beside q (Qwen3-Next)
    q_lora_rank: int | None = None  # MLA
    kv_lora_rank: int = 0
    qk_nope_dim: int = 0
    qk_rope_dim: int = 0
    v_head_dim: int = 0  # MLA, and the value head of "linear", whose `heads` are value heads and `kv_heads` key heads
    conv_kernel: int = 0  # "linear" and "conv": taps of the short depthwise convolution

    @property
    def q_width(self) -> int:
        """Elements of all query heads: A in the formulas."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of all key heads: K in the formulas."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """A dense feed-forward module: gated (gate, up, down) or plain (up, down)."""

    width: int
    gated: bool = True
    activation: str = "silu"  # silu gelu gelu_tanh relu relu2 gelu_new gelu_fast xielu ...
    bias: bool = False
    fused_gate_up: bool = False


@dataclass(frozen=True, kw_only=True)
class Moe:
    """A mixture-of-experts module. ``stacked``: expert weights are 3-D parameters, not Linear modules."""

    experts: int
    experts_per_token: int
    expert: Mlp
    shared: Mlp | None = None
    shared_gate: bool = False  # Qwen2-MoE multiplies the shared expert by a learned sigmoid gate
    router_bias: bool = False
    router_correction_bias: bool = False  # DeepSeek-V3: a buffer-like parameter of `experts` elements
    stacked: bool = False


@dataclass(frozen=True, kw_only=True)
class Block:
    """One decoder layer."""

    attention: Attention
    mlp: Mlp | None = None
    moe: Moe | None = None
    norm: NormKind = "rms"
    norms: int = (
        2  # LayerNorm/RMSNorm modules of hidden width: 1 (one shared by a parallel block), 2, 4 (Gemma 2 and 3, GLM-4)
    )
    post_norm: bool = False  # norms after attention and MLP only (OLMo 2)
    parallel: bool = False  # attention and MLP read the same residual (NeoX, Falcon, Phi-1.5)
    extra_parameters: int = 0  # single learned numbers that belong to no module above (Apertus' xIELU)


@dataclass(frozen=True, kw_only=True)
class Run:
    """``count`` identical consecutive blocks."""

    count: int
    block: Block


@dataclass(frozen=True, kw_only=True)
class VisionTower:
    """The image side of a vision-language model, as far as it holds memory.

    ``matrices`` are the elements of its Linear modules' weights, projector included, which bitsandbytes packs with the
    text model's; convolutions, embeddings, norms and biases are the rest.
    """

    parameters: int
    projector_parameters: int
    matrices: int
    hidden: int = 0
    layers: int = 0


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What a checkpoint's own quantization_config says (gptq, awq, bnb, fp8, mxfp4)."""

    method: str
    bits: int
    group_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder model. ``parameters`` is exact and equals what ``planner.model.count`` adds up.

    ``verified`` says against what the count was checked, or None. ``stored_bytes`` is the size of
    the weights on disk where safetensors headers were read.
    """

    id: str
    model_type: str
    hidden: int
    vocab: int
    runs: tuple[Run, ...]
    tied_embeddings: bool = False
    embedding_width: int | None = None  # where it differs from hidden (OPT-350m, ALBERT-like)
    embedding_extra_rows: int = 0  # rows of the input embedding beyond the head's vocabulary (Llama 3.2 Vision: 8)
    position_embeddings: int = 0  # rows of a learned position table
    embedding_norm: NormKind = "none"  # BLOOM
    final_norm: NormKind = "rms"
    head_bias: bool = False
    head_softcap: bool = False  # Gemma 2: tanh over the logits
    scaled_embedding: bool = False  # Gemma multiplies embeddings by sqrt(hidden)
    max_positions: int | None = None
    dropout: bool = False  # residual dropout in training by the model's own config (GPT-2, StarCoder 1)
    parameters: int = 0
    active_parameters: int | None = None  # MoE: used for one token
    stored_dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    stored_bytes: int | None = None
    quantized: Quantized | None = None
    vision: VisionTower | None = None
    remote_code: bool = False
    assumed_blocks: bool = False  # its architecture has no rules here: Llama's blocks stand for its own
    template: str | None = None  # LLaMA-Factory chat template
    local_path: str | None = None
    verified: str | None = None
    notes: tuple[str, ...] = ()

    def __hash__(self) -> int:
        # Equal specs agree in these; hashing every block of every run each time would dominate cached look-ups.
        return hash((self.id, self.model_type, self.hidden, self.vocab, self.parameters))

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return sum(run.count for run in self.runs)

    @property
    def is_moe(self) -> bool:
        """True where any layer routes to experts."""
        return any(run.block.moe is not None for run in self.runs)
