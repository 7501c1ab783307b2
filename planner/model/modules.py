"""The Linear modules of a block by name: what LoRA targets, quantization replaces and matmuls read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from planner.errors import InputError, nearest
from planner.model.names import HEAD_IN_ALL, LLAMA_NAMES, MODULE_NAMES, OUTER_NAMES
from planner.model.spec import Attention, Block, Mlp, ModelSpec, Moe

Role = Literal[
    "q", "k", "v", "qkv", "o",  # attention
    "q_a", "q_b", "kv_a", "kv_b",  # latent attention (MLA)
    "linear_in", "linear_z", "linear_b", "linear_a",  # gated delta rule (Qwen3-Next, Qwen3.5)
    "gate", "up", "gate_up", "down",  # dense feed-forward
    "router", "expert_gate", "expert_up", "expert_gate_up", "expert_down",
    "shared_gate", "shared_up", "shared_gate_up", "shared_down", "shared_router",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Linear:
    """``copies`` weights of shape (outputs, inputs); ``name`` as peft sees it (``q_proj``).

    ``stacked``: the weight is a slice of a 3-D parameter, or the bare parameter of a router, and no nn.Linear,
    so neither LoRA's "all" nor bitsandbytes reaches it.
    """

    name: str
    role: Role
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    stacked: bool = False

    @property
    def parameters(self) -> int:
        """Weights and biases of all copies."""
        return self.copies * (self.inputs * self.outputs + (self.outputs if self.bias else 0))


# Routers that are an nn.Linear in transformers 5 (5.6 for DeepSeek-V2); the others hold a bare parameter.
_LINEAR_ROUTERS = frozenset({"hunyuan_v1_moe", "deepseek_v2", "granitemoe", "granitemoeshared"})
# Remote code that keeps one nn.Linear for each expert under every release.
_NEVER_STACKED = frozenset({"deepseek"})
# Routers that were an nn.Linear in transformers 4, where experts were modules too.
_LINEAR_ROUTERS_4 = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "phimoe"})


def block_linears(spec: ModelSpec, block: Block, *, stacked_experts: bool = True) -> tuple[Linear, ...]:
    """Every matrix of the block that a token may be multiplied with, in the order of the forward pass.

    ``stacked_experts``: expert weights are 3-D parameters as in transformers 5; False gives transformers 4's
    one nn.Linear for each expert, except in families that stacked there too (gpt-oss, Llama 4, Granite MoE).
    """
    return _linears(spec.model_type, spec.hidden, block, stacked_experts)


@lru_cache(maxsize=4096)
def _linears(model_type: str, hidden: int, block: Block, stacked_experts: bool) -> tuple[Linear, ...]:
    names = {**LLAMA_NAMES, **MODULE_NAMES.get(model_type, {})}
    linears = _attention_linears(names, block.attention, hidden)
    if block.mlp is not None:
        linears += _mlp_linears(names, block.mlp, hidden)
    if block.moe is not None:
        linears += _moe_linears(model_type, names, block.moe, hidden, stacked_experts)
    return tuple(linears)


def _attention_linears(names: dict[str, str], attention: Attention, hidden: int) -> list[Linear]:
    if attention.kind == "mla":
        return _latent_linears(names, attention, hidden)
    if attention.kind == "linear":
        return _delta_linears(names, attention, hidden)
    if attention.kind == "conv":
        return _short_conv_linears(names, attention, hidden)
    return _grouped_linears(names, attention, hidden)


def _grouped_linears(names: dict[str, str], attention: Attention, hidden: int) -> list[Linear]:
    queries = attention.q_width * (2 if attention.gated else 1)
    values, bias = attention.kv_width, attention.qkv_bias
    wanted: list[tuple[Role, int]] = (
        [("qkv", queries + 2 * values)] if attention.fused_qkv else [("q", queries), ("k", values), ("v", values)]
    )
    into = [Linear(name=names[r], role=r, inputs=hidden, outputs=width, bias=bias) for r, width in wanted]
    out = Linear(name=names["o"], role="o", inputs=attention.q_width, outputs=hidden, bias=attention.out_bias)
    return [*into, out]


def _latent_linears(names: dict[str, str], attention: Attention, hidden: int) -> list[Linear]:
    """DeepSeek-V2/V3: down-projections to the latent, up-projections to the heads. Source: arXiv 2405.04434, 2.1."""
    rank, bias = attention.q_lora_rank, attention.qkv_bias

    def one(role: Role, inputs: int, outputs: int, *, bias: bool = False) -> Linear:
        return Linear(name=names[role], role=role, inputs=inputs, outputs=outputs, bias=bias)

    if rank is None:
        queries = [one("q", hidden, attention.q_width)]
    else:
        queries = [one("q_a", hidden, rank, bias=bias), one("q_b", rank, attention.q_width)]
    keys = one("kv_a", hidden, attention.kv_lora_rank + attention.qk_rope_dim, bias=bias)
    up_width = attention.heads * (attention.qk_nope_dim + attention.v_head_dim)
    values = one("kv_b", attention.kv_lora_rank, up_width)
    out = one("o", attention.heads * attention.v_head_dim, hidden, bias=attention.out_bias)
    return [*queries, keys, values, out]


def _delta_linears(names: dict[str, str], attention: Attention, hidden: int) -> list[Linear]:
    """Gated delta rule: q, k, v and z, then b and a of each value head. Source: transformers' qwen3_next, qwen3_5."""
    keys, values = attention.kv_width, attention.heads * attention.v_head_dim
    qkv, heads = 2 * keys + values, attention.heads
    wanted: list[tuple[Role, int]] = (
        [("linear_in", qkv + values), ("linear_b", 2 * heads)]
        if attention.fused_qkv
        else [("linear_in", qkv), ("linear_z", values), ("linear_b", heads), ("linear_a", heads)]
    )
    into = [Linear(name=names[role], role=role, inputs=hidden, outputs=width) for role, width in wanted]
    return [*into, Linear(name=names["linear_o"], role="o", inputs=values, outputs=hidden)]


def _short_conv_linears(names: dict[str, str], attention: Attention, hidden: int) -> list[Linear]:
    """LFM2's operator: both gates and the convolution's input by one matrix. Source: transformers' Lfm2ShortConv."""
    into = Linear(name=names["linear_in"], role="linear_in", inputs=hidden, outputs=3 * hidden, bias=attention.qkv_bias)
    out = Linear(name=names["linear_o"], role="o", inputs=hidden, outputs=hidden, bias=attention.out_bias)
    return [into, out]


def _mlp_linears(
    names: dict[str, str], mlp: Mlp, hidden: int, *, prefix: str = "", copies: int = 1, stacked: bool = False
) -> list[Linear]:
    """A feed-forward module; ``prefix`` "expert_" or "shared_" marks whose it is."""
    wide: list[tuple[str, int]] = [("up", mlp.width)]
    if mlp.gated:
        wide = [("gate_up", 2 * mlp.width)] if mlp.fused_gate_up or stacked else [("gate", mlp.width), *wide]
    shapes = [(role, hidden, outputs) for role, outputs in wide] + [("down", mlp.width, hidden)]
    return [
        Linear(
            name=names[role], role=f"{prefix}{role}", inputs=inputs, outputs=outputs,  # type: ignore[arg-type]
            bias=mlp.bias, copies=copies, stacked=stacked,
        )
        for role, inputs, outputs in shapes
    ]  # fmt: skip


def _moe_linears(model_type: str, names: dict[str, str], moe: Moe, hidden: int, stacked_experts: bool) -> list[Linear]:
    stacked = moe.stacked or (stacked_experts and model_type not in _NEVER_STACKED)
    is_linear = model_type in _LINEAR_ROUTERS or (not stacked_experts and model_type in _LINEAR_ROUTERS_4)
    router = Linear(
        name=names["router"], role="router", inputs=hidden, outputs=moe.experts,
        bias=moe.router_bias, stacked=not is_linear,
    )  # fmt: skip
    linears = [router]
    expert_names = {**names, "gate_up": "gate_up_proj", "down": "down_proj"} if stacked else names
    linears += _mlp_linears(expert_names, moe.expert, hidden, prefix="expert_", copies=moe.experts, stacked=stacked)
    if moe.shared is not None:
        linears += _mlp_linears(names, moe.shared, hidden, prefix="shared_")
    if moe.shared_gate:
        linears.append(Linear(name=names["shared_router"], role="shared_router", inputs=hidden, outputs=1))
    return linears


Targets = Literal["all"] | tuple[str, ...]
_FEED_FORWARD = ("gate", "up", "gate_up", "down")


def embedding_and_head(spec: ModelSpec) -> tuple[str, str]:
    """Module names of the input embedding and of the output head."""
    return OUTER_NAMES.get(spec.model_type, ("embed_tokens", "lm_head"))


def lora_targets(
    spec: ModelSpec, block: Block, targets: Targets, *, stacked_experts: bool = True
) -> tuple[Linear, ...]:
    """The matrices of this block that LoRA reaches.

    "all" is every Linear module of the block, as peft's "all-linear" and LLaMA-Factory's search by class name take
    it: experts only where they are modules, routers only where they are. A dotted name (``mlp.c_proj``) is matched
    by its owner too. Raises InputError for a name that no block of the model has.
    """
    linears = tuple(each for each in block_linears(spec, block, stacked_experts=stacked_experts) if not each.stacked)
    if targets == "all":
        return linears
    check_targets(spec, targets, stacked_experts=stacked_experts)
    return tuple(each for each in linears if any(_is_named(each, name) for name in targets))


@lru_cache(maxsize=256)
def check_targets(spec: ModelSpec, targets: tuple[str, ...], *, stacked_experts: bool = True) -> None:
    """Raises InputError for a target that names no Linear module of the model."""
    linears = _distinct_linears(spec, stacked_experts)
    known = [*dict.fromkeys(each.name for each in linears), *embedding_and_head(spec)]
    for name in targets:
        if name not in known and not any(_is_named(each, name) for each in linears):
            close = nearest(name, known)
            offer = f"did you mean {close[0]}? It" if close else "it"
            raise InputError(f"lora_target {name!r} is no module of {spec.id}; {offer} has {', '.join(known)}")


def _distinct_linears(spec: ModelSpec, stacked_experts: bool) -> list[Linear]:
    blocks = dict.fromkeys(run.block for run in spec.runs)
    found = (each for block in blocks for each in block_linears(spec, block, stacked_experts=stacked_experts))
    return list(dict.fromkeys(each for each in found if not each.stacked))


def _is_named(linear: Linear, target: str) -> bool:
    owner, _, last = target.rpartition(".")
    if last != linear.name:
        return False
    owner = owner.rpartition(".")[2]
    in_mlp = linear.role.removeprefix("shared_").removeprefix("expert_") in _FEED_FORWARD
    return not owner or in_mlp == (not owner.endswith(("attn", "attention")))


def lora_parameters(
    spec: ModelSpec, rank: int, targets: Targets, *, dora: bool = False, stacked_experts: bool = True
) -> int:
    """Trained elements of LoRA's A (rank, inputs) and B (outputs, rank) over all layers.

    DoRA adds one magnitude for each output. A target that is the embedding or the head gets a pair of its own.
    Raises InputError for unknown targets. Source: arXiv 2106.09685, 4.1; arXiv 2402.09353, 4.
    """
    total = 0
    for run in spec.runs:
        reached = lora_targets(spec, run.block, targets, stacked_experts=stacked_experts)
        total += run.count * sum(_adapter(each, rank, dora) for each in reached)
    outer = sum(outer_targets(spec, targets))
    width = spec.embedding_width or spec.hidden
    return total + outer * (rank * (spec.vocab + width) + (spec.vocab if dora else 0))


def outer_targets(spec: ModelSpec, targets: Targets) -> tuple[bool, bool]:
    """Whether LoRA reaches the embedding, and whether it reaches the head.

    "all" leaves both out, but for GPT-NeoX, whose head LLaMA-Factory's search does not know by name.
    """
    if targets == "all":
        return False, spec.model_type in HEAD_IN_ALL
    embedding, head = embedding_and_head(spec)
    return embedding in targets, head in targets


def _adapter(linear: Linear, rank: int, dora: bool) -> int:
    return linear.copies * (rank * (linear.inputs + linear.outputs) + (linear.outputs if dora else 0))


def additional_parameters(spec: ModelSpec, names: Iterable[str]) -> int:
    """Elements of modules that are trained whole beside LoRA (``additional_target``).

    peft's ModulesToSave copies each, so embedding and head count separately even where they are tied. Blocks'
    modules count in every layer. Raises InputError for a name the model does not have.
    """
    return sum(_whole_module(spec, name.rpartition(".")[2]) for name in names)


def _whole_module(spec: ModelSpec, name: str) -> int:
    embedding, head = embedding_and_head(spec)
    table = spec.vocab * (spec.embedding_width or spec.hidden)
    if name in (embedding, head):
        return table + (spec.vocab if name == head and spec.head_bias else 0)
    found = sum(
        run.count * sum(each.parameters for each in block_linears(spec, run.block) if each.name == name)
        for run in spec.runs
    )
    if not found:
        known = [embedding, head, *dict.fromkeys(each.name for each in _distinct_linears(spec, True))]
        raise InputError(f"additional_target {name!r} is no module of {spec.id}; it has {', '.join(known)}")
    return found
