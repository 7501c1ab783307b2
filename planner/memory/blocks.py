"""Decoder blocks as programs, in the order in which the modeling code runs them.

Local names end where the modeling code's do, because a tensor lives as long as a name or a graph node holds it.
Source: transformers' modeling files of the families named in each function.
"""

from __future__ import annotations

from planner.errors import UnsupportedError
from planner.memory.attention import attend
from planner.memory.experts import experts
from planner.memory.habits import (
    BROADCAST_KEYS,
    JOINED_ROTATION,
    NAMES_ATTENTION,
    NORM_AFTER_ROTATION,
    WIDE_NORM,
    WRITTEN_OUT_NORM,
)
from planner.memory.linears import LinearModule
from planner.memory.mixers import delta_rule, short_conv
from planner.memory.ops import FP32, Program
from planner.memory.tape import PASS, Param, Tensor
from planner.model.modules import Linear
from planner.model.spec import Attention, Block, Mlp, NormKind


def normalise(p: Program, x: Tensor, kind: NormKind, width: int, *, model_type: str, rows: int = 1) -> Tensor:
    """A norm by kind and by the model's habit; frozen weights may be fp32 (kbit preparation)."""

    def weight() -> Param:
        return p.weight(
            width, p.mode.trained_itemsize if p.mode.trained else p.mode.norm_weight, trained=p.mode.trained
        )

    if kind == "none":
        return x
    if kind == "rms":
        return p.rms_norm(x, weight(), rows=rows, wide=model_type in WIDE_NORM)
    if model_type in WRITTEN_OUT_NORM:
        return p.written_out_norm(x, weight())
    return p.layer_norm(
        x, None if kind == "layernorm_no_params" else weight(), weight() if kind == "layernorm" else None
    )


class BlockModule:
    """One decoder layer under a mode: its weights, and ``forward``."""

    def __init__(self, p: Program, block: Block, linears: tuple[Linear, ...], *, model_type: str, hidden: int) -> None:
        self.p, self.block, self.hidden = p, block, hidden
        self.model_type = model_type
        mode = p.mode
        self.linears: dict[str, LinearModule] = {
            lin.role: LinearModule(p, lin, trained=mode.trained or lin.role in mode.trained_modules) for lin in linears
        }

    def norm(self, x: Tensor, kind: NormKind, width: int, *, rows: int = 1) -> Tensor:
        """One normalisation over ``width`` elements, ``rows`` of them a token."""
        return normalise(self.p, x, kind, width, rows=rows, model_type=self.model_type)

    # -- the layer ------------------------------------------------------------------------------------

    def forward(self, hidden: Tensor) -> Tensor:
        """Residual stream in, residual stream out."""
        if self.block.parallel:
            return self._parallel(hidden)
        if self.block.post_norm:
            return self._post_norm(hidden)
        return self._sequential(hidden)

    def _sequential(self, hidden: Tensor) -> Tensor:
        """Llama, Mistral, Qwen, Phi-3, GPT-2, OPT, BLOOM ...; four norms in Gemma 2 and 3 and GLM-4."""
        p, kind, four = self.p, self.block.norm, self.block.norms == 4
        residual = hidden
        hidden = self.norm(hidden, kind, self.hidden)
        hidden = self._dropped(self.attention(hidden))
        if four:
            hidden = self.norm(hidden, kind, self.hidden)
        named = hidden if self.model_type in NAMES_ATTENTION else None
        hidden = p.add(residual, hidden)
        residual = hidden
        hidden = self.norm(hidden, kind, self.hidden)
        hidden = self._dropped(self.feed_forward(hidden))
        if four:
            hidden = self.norm(hidden, kind, self.hidden)
        hidden = p.add(residual, hidden)
        del named
        return hidden

    def _post_norm(self, hidden: Tensor) -> Tensor:
        """OLMo 2: norms follow attention and feed-forward."""
        p, kind = self.p, self.block.norm
        residual = hidden
        hidden = self.attention(hidden)
        hidden = p.add(residual, self.norm(hidden, kind, self.hidden))
        residual = hidden
        hidden = self.feed_forward(hidden)
        return p.add(residual, self.norm(hidden, kind, self.hidden))

    def _parallel(self, hidden: Tensor) -> Tensor:
        """GPT-NeoX, Falcon, Phi, GPT-J, Cohere: attention and feed-forward read the same input."""
        p, kind = self.p, self.block.norm
        normed = self.norm(hidden, kind, self.hidden)
        attended = self._dropped(self.attention(normed))
        if self.block.norms >= 2:
            normed = self.norm(hidden, kind, self.hidden)
        fed = self._dropped(self.feed_forward(normed))
        del normed
        mixed = p.add(fed, attended)
        del fed, attended
        return p.add(mixed, hidden)

    def _dropped(self, x: Tensor) -> Tensor:
        return self.p.drop(x) if self.p.mode.residual_dropout else x

    # -- attention ------------------------------------------------------------------------------------

    def attention(self, hidden: Tensor) -> Tensor:
        """Projections, qk-norm, rotation, scores, output projection."""
        a = self.block.attention
        if a.kind == "mla":
            return self._latent_attention(hidden, a)
        if a.kind == "linear":
            return delta_rule(self.p, self.linears, hidden, a)
        if a.kind == "conv":
            return short_conv(self.p, self.linears, hidden, a)
        p = self.p
        q, k, v, gate = self._project(hidden, a)
        # v is a view of the fused projection, which then stays whole; grouped values are copied when they are expanded
        beside = (q, k) if p.mode.litgpt and a.kv_heads in (1, a.heads) else ()
        late = self.model_type in NORM_AFTER_ROTATION
        if not late:
            q, k = self._normed(q, k, a)
        if p.mode.liger and "qkv" in self.linears and a.rope == "full":  # Liger's kernel wants them contiguous
            q, k = p.clone(q), p.clone(k)
        if a.rope in ("full", "partial"):
            q = self._rotate(q, a, a.heads)
            k = self._rotate(k, a, a.kv_heads)
        if late:
            q, k = self._normed(q, k, a)
        if p.mode.cache:
            k, v = p.remember(k), p.remember(v)
        out = attend(p, q, k, v, a, beside=beside)
        joined = a.rope == "partial" or self.model_type in JOINED_ROTATION or p.mode.litgpt
        if joined and p.mode.kernel in ("sdpa", "flash") and not p.mode.liger:
            out = p.clone(out)
        if gate is not None:
            out = p.mul(out, p.unary(gate, saves="output"))
        return self.linears["o"](p, out)

    def _project(self, hidden: Tensor, a: Attention) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        p = self.p
        if p.mode.litgpt:
            return *self._fused_projection(hidden, a), None
        if "qkv" in self.linears:
            widths = (a.q_width, a.kv_width, a.kv_width)
            q, k, v = p.split(self.linears["qkv"](p, hidden), widths)
            if self.model_type in BROADCAST_KEYS:  # indexing with a list copies what split would view
                k, v = p.clone(k), p.clone(v)
            return q, k, v, None
        q = self.linears["q"](p, hidden)
        gate = None
        if a.gated:
            q, gate = p.split(q, (a.q_width, a.q_width))
        return q, self.linears["k"](p, hidden), self.linears["v"](p, hidden), gate

    def _fused_projection(self, hidden: Tensor, a: Attention) -> tuple[Tensor, Tensor, Tensor]:
        """litgpt's LoRAQKVLinear: one dropped input and one low-rank product for all targets, whose results are kept by
        ``index_copy`` when they are padded to the fused width. Source: litgpt lora.py, zero_pad.
        """
        p = self.p
        used = [m for role, m in self.linears.items() if role in ("q", "k", "v", "qkv")]
        parts = [module.base(p, hidden, module.linear.outputs) for module in used]
        adapted = [module for module in used if module.adapter_a is not None and module.adapter_b is not None]
        if adapted:
            dropped = p.drop(hidden) if p.mode.dropout else hidden
            low = p.matmul(dropped, adapted[0].adapter_a, 2 * p.mode.rank * len(adapted))  # type: ignore[arg-type]
            # of a fused projection without other targets, queries and values are meant, litgpt's default
            partial = len(adapted) < len(used) or p.mode.targets == {"qkv"}
            width = sum(module.linear.outputs for module in adapted)
            if partial and len(used) == 1:
                width -= a.kv_width
            source = padded = p.matmul(low, adapted[0].adapter_b, width)  # type: ignore[arg-type]
            if partial:
                padded = p.new((0, sum(module.linear.outputs for module in used), 0), source.itemsize)
                p.link(padded, (source,), ((source.elems, source.itemsize),), saved=(source,))
            del dropped, low, source
            parts = [p.add(part, padded) if i == 0 else part for i, part in enumerate(parts)]
        if len(parts) == 1:
            q, k, v = p.split(parts[0], (a.q_width, a.kv_width, a.kv_width))
            return q, k, v
        q, k, v = parts
        return q, k, v

    def _normed(self, q: Tensor, k: Tensor, a: Attention) -> tuple[Tensor, Tensor]:
        return (q, k) if a.qk_norm == "none" else (self._qk_norm(q, a, a.heads), self._qk_norm(k, a, a.kv_heads))

    def _qk_norm(self, x: Tensor, a: Attention, heads: int) -> Tensor:
        rows = 1 if a.qk_norm == "full" else heads
        return self.norm(x, a.qk_norm_kind, x.elems[1] // rows, rows=rows)

    def _rotate(self, x: Tensor, a: Attention, heads: int) -> Tensor:
        rotated = (0, heads * (a.rotary_dim or a.head_dim), 0)
        return self.p.rotate(x, rotated=rotated, table=self.p.mode.stream)

    def _latent_attention(self, hidden: Tensor, a: Attention) -> Tensor:
        """DeepSeek's MLA: q (through a latent), a compressed kv, a rotated part shared by all heads."""
        p = self.p
        if "q_a" in self.linears:
            low = self.norm(self.linears["q_a"](p, hidden), "rms", a.q_lora_rank or 0)
            q = self.linears["q_b"](p, low)
            del low
        else:
            q = self.linears["q"](p, hidden)
        nope, rope = a.qk_nope_dim, a.qk_rope_dim
        q_pass, q_rot = p.split(q, (a.heads * nope, a.heads * rope))
        del q
        compressed = self.linears["kv_a"](p, hidden)
        latent, k_rot = p.split(compressed, (a.kv_lora_rank, rope))
        up = self.linears["kv_b"](p, self.norm(latent, "rms", a.kv_lora_rank))
        k_pass, v = p.split(up, (a.heads * nope, a.heads * a.v_head_dim))
        del up
        q_rot, k_rot = (p.rotate(t, table=p.mode.stream) for t in (q_rot, k_rot))
        width = (0, a.heads * (nope + rope), 0)
        q_states = self._join(q_pass, q_rot, width)
        k_states = self._join(k_pass, k_rot, width)
        out = attend(p, q_states, k_states, v, a)
        if p.mode.kernel == "sdpa":  # equal widths of keys and values (GLM-4.7-Flash): laid out as the joined queries
            out = p.clone(out)
        return self.linears["o"](p, out)

    def _join(self, a: Tensor, b: Tensor, elems: tuple[int, int, int]) -> Tensor:
        """``torch.cat`` of the plain and the rotated part; backward narrows the gradient."""
        out = self.p.new(elems, a.itemsize)
        self.p.link(out, (a, b), (PASS, (b.elems, b.itemsize)))
        return out

    # -- feed-forward ---------------------------------------------------------------------------------

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """The dense module or the experts."""
        if self.block.mlp is not None:
            return self.dense(hidden, self.block.mlp)
        if self.block.moe is not None:
            return experts(self.p, self.linears, self.block.moe, hidden, shared=self.dense, model_type=self.model_type)
        raise UnsupportedError("a block has neither a feed-forward module nor experts; its config cannot be priced")

    def dense(self, hidden: Tensor, mlp: Mlp, prefix: str = "") -> Tensor:
        """``down(act(gate(x)) * up(x))`` or ``down(act(up(x)))``."""
        p = self.p
        down = self.linears[f"{prefix}down"]
        if not mlp.gated:
            return down(p, activate(p, self.linears[f"{prefix}up"](p, hidden), mlp.activation))
        if f"{prefix}gate_up" in self.linears:
            both = self.linears[f"{prefix}gate_up"](p, hidden)
            gate, up = p.split(both, (mlp.width, mlp.width))
            del both
            if p.mode.liger:  # Liger's kernel wants each half contiguous
                return down(p, gated_product(p, p.clone(gate), p.clone(up), mlp.activation))
            return down(p, gated_product(p, gate, up, mlp.activation))
        if p.mode.liger or p.mode.fused:
            gate = self.linears[f"{prefix}gate"](p, hidden)
            return down(p, gated_product(p, gate, self.linears[f"{prefix}up"](p, hidden), mlp.activation))
        acted = activate(p, self.linears[f"{prefix}gate"](p, hidden), mlp.activation)
        product = p.mul(acted, self.linears[f"{prefix}up"](p, hidden))
        del acted
        return down(p, product)


def gated_product(p: Program, gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """``act(gate) * up``; Liger's SwiGLU and GeGLU keep gate and up and overwrite them in backward."""
    if p.mode.liger:
        out = p.new(gate.elems, gate.itemsize)
        p.link(out, (gate, up), (PASS, PASS), saved=(gate, up))
        return out
    return p.mul(activate(p, gate, activation), up)


def activate(p: Program, x: Tensor, activation: str) -> Tensor:
    """An activation function by its transformers name."""
    if activation in ("gelu_new", "gelu_fast") and not p.mode.litgpt:
        return _python_gelu(p, x)
    if activation == "relu2":
        positive = p.unary(x, saves="output")
        return p.unary(positive, saves="input")
    return p.unary(x, saves="output" if activation == "relu" else "input")


def _python_gelu(p: Program, x: Tensor) -> Tensor:
    """NewGELUActivation: 0.5 * x * (1 + tanh(c * (x + 0.044715 * x**3))), one kernel an operation.

    Autocast runs the power in fp32, and all that follows from it.
    """
    half = p.scale(x)
    cube = p.unary(p.cast(x, FP32) if p.mode.autocast else x, saves="input")
    inner = p.scale(p.add(x, p.scale(cube)))
    del cube
    tanh = p.unary(inner, saves="output")
    del inner
    return p.mul(half, p.scale(tanh))
