"""Scaled dot-product attention by kernel: what is kept for backward and what backward allocates.

Sources: torch/nn/functional SDPA dispatch and aten/native/transformers (flash and memory-efficient backends),
flash-attn's mha_bwd (fp32 softmax sums and dq accumulator, expanded dk/dv for grouped heads), transformers'
eager_attention_forward.
"""

from __future__ import annotations

from planner.memory.ops import FP32, Program
from planner.memory.tape import ACTIVATION, PASS, Tensor
from planner.model.spec import Attention


def attend(
    p: Program, q: Tensor, k: Tensor, v: Tensor, a: Attention, *, beside: tuple[Tensor, ...] = ()
) -> Tensor:  # fmt: skip
    """Attention of q (heads x head_dim), k and v (kv_heads wide) by the mode's kernel; returns heads x v head_dim.

    ``beside`` are tensors whose storage v shares and therefore keeps alive.
    """
    if p.mode.kernel in ("eager", "sinks"):
        return _eager(p, q, k, v, a)
    if p.mode.kernel == "math":
        return _math(p, q, k, v, a)
    if p.mode.kernel == "grouped" or _has_no_kernel(p, q, a):
        return _grouped_math(p, q, k, v, a)
    if p.mode.autocast or p.mode.kernel == "flash":
        q, k, v = (p.cast(t, p.mode.compute) for t in (q, k, v))
    if (p.mode.repeat_kv or p.mode.kernel == "masked") and a.kind == "gqa":
        broadcast = p.mode.litgpt and a.kv_heads == 1  # one head expands without a copy; rotation then fills the keys
        k, v = _repeat(p, k, a), v if broadcast else _repeat(p, v, a)
    return _fused(p, q, k, v, a, beside)


def _has_no_kernel(p: Program, q: Tensor, a: Attention) -> bool:
    """Whether SDPA is handed grouped heads in fp32, as fp32 norms before quantized linears do without autocast.

    The flash kernel takes 16 bits, the memory-efficient one a key head for every head: what is left is the math path.
    Source: aten/native/transformers/cuda/sdp_utils.cpp; transformers passes enable_gqa from 4.48 on (``repeat_kv``).
    """
    wide = q.itemsize == FP32 and not p.mode.autocast
    return p.mode.kernel == "sdpa" and wide and a.kv_heads != a.heads and not p.mode.repeat_kv


def _out_width(a: Attention) -> int:
    return a.heads * (a.v_head_dim or a.head_dim)


def _repeat(p: Program, x: Tensor, a: Attention) -> Tensor:
    """``repeat_kv``: expand and reshape makes a copy as wide as the query heads."""
    if a.kv_heads == a.heads:
        return x
    out = p.new((0, a.heads * a.head_dim, 0), x.itemsize)
    p.link(out, (x,), ((x.elems, x.itemsize),))
    return out


def _fused(p: Program, q: Tensor, k: Tensor, v: Tensor, a: Attention, beside: tuple[Tensor, ...]) -> Tensor:
    """Flash and memory-efficient kernels: q, k, v, the output and one fp32 logsumexp a head are kept."""
    out = p.new((0, _out_width(a), 0), q.itemsize)
    logsumexp = p.new((0, a.heads, 0), FP32)
    saved = [q, k, v, out, logsumexp, *beside]
    width = a.heads * a.head_dim
    temps = [((0, a.heads, 0), FP32, ACTIVATION)]
    if p.mode.kernel == "masked":
        saved.append(p.new((0, 0, 1), p.mode.compute))  # the additive mask, made for each layer
    elif p.mode.kernel not in ("efficient", "masked"):
        temps.append(((0, a.heads * _rounded(a.head_dim), 0), FP32, ACTIVATION))  # dq accumulator
        if k.elems[1] < width:  # grouped heads: dk and dv are made for every query head, then summed
            temps += [((0, width, 0), q.itemsize, ACTIVATION)] * 2
    outs = [(t.elems, t.itemsize) for t in (q, k, v)]
    p.link(out, (q, k, v), outs, saved=saved, temps=temps)
    return out


def _rounded(head_dim: int) -> int:
    """The kernel pads heads to a multiple of 32 elements."""
    return -(-head_dim // 32) * 32


def _eager(p: Program, q: Tensor, k: Tensor, v: Tensor, a: Attention) -> Tensor:
    """Scores, (soft-cap,) mask, fp32 softmax, weighted sum: the fp32 and the cast probabilities are kept."""
    heads = (0, 0, a.heads)
    if a.kind == "gqa":
        k, v = _repeat(p, k, a), _repeat(p, v, a)
    if p.mode.autocast:
        q, k, v = (p.cast(t, p.mode.compute) for t in (q, k, v))
    scores = p.new(heads, q.itemsize)
    p.link(scores, (q, k), ((q.elems, q.itemsize), (k.elems, k.itemsize)), saved=(q, k))
    scores = p.scale(scores)
    if a.softcap:
        scores = p.scale(p.unary(p.scale(scores), saves="output"))
    masked = p.new(heads, scores.itemsize)
    p.link(masked, (scores,), (PASS,))
    del scores
    weights = _probabilities(p, masked, v.itemsize)
    del masked
    out = p.new((0, _out_width(a), 0), v.itemsize)
    p.link(out, (weights, v), ((heads, weights.itemsize), (v.elems, v.itemsize)), saved=(weights, v))
    return out


def _math(p: Program, q: Tensor, k: Tensor, v: Tensor, a: Attention) -> Tensor:
    """``_scaled_dot_product_attention_math``: matmuls and softmax in fp32, under autocast too; probabilities stay.

    Sources: aten/native/transformers/attention.cpp; aten/autocast_mode.h brings the arguments to 16 bits and switches
    autocast off inside.
    """
    heads = (0, 0, a.heads)
    if p.mode.autocast:
        q, k, v = (p.cast(t, p.mode.compute) for t in (q, k, v))
    given = q.itemsize
    q, k, v = (p.cast(t, FP32) for t in (q, k, v))
    scores = p.new(heads, FP32)
    p.link(scores, (q, k), ((q.elems, FP32), (k.elems, FP32)), saved=(q, k))
    masked = p.new(heads, FP32)
    p.link(masked, (scores,), (PASS,))
    del scores
    weights = p.softmax(masked)
    del masked
    out = p.new((0, _out_width(a), 0), FP32)
    p.link(out, (weights, v), ((heads, FP32), (v.elems, FP32)), saved=(weights, v))
    return p.clone(p.cast(out, given))


def _grouped_math(p: Program, q: Tensor, k: Tensor, v: Tensor, a: Attention) -> Tensor:
    """The math path with ``enable_gqa``: keys and values are repeated, queries and keys scaled before they meet.

    Source: aten/native/transformers/attention.cpp, pre_process_group_query_attention_input.
    """
    if p.mode.autocast:
        q, k, v = (p.cast(t, p.mode.compute) for t in (q, k, v))
    given = q.itemsize
    q, k, v = (p.cast(t, FP32) for t in (q, k, v))
    q, k, v = p.scale(q), p.scale(_repeat(p, k, a)), _repeat(p, v, a)
    return p.cast(_math(p, q, k, v, a), given)


def _probabilities(p: Program, scores: Tensor, itemsize: int) -> Tensor:
    """Softmax over the scores: in fp32 and cast back, or, with gpt-oss's sinks, in the scores' own dtype."""
    if p.mode.kernel == "sinks":
        widened = p.mode.trained and p.mode.trained_itemsize == FP32  # concatenated with fp32 sinks
        joined = p.new(scores.elems, FP32 if widened else scores.itemsize)  # scores and sinks, then less their maximum
        p.link(joined, (scores,), ((scores.elems, scores.itemsize),))
        lowered = p.scale(joined)
        del joined
        return p.softmax(lowered)
    # softmax(dtype=float32) of bfloat16 converts first, of float16 one kernel does both (aten native/SoftMax.cpp)
    wide = scores if p.mode.half else p.cast(scores, FP32)
    probabilities = p.softmax(wide, FP32)
    del wide
    return p.cast(probabilities, itemsize)
