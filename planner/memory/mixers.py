"""What stands in the place of attention in hybrid models: gated short convolutions and the gated delta rule.

Written as the modelling code's torch paths run: the packages of kernels that may replace them (causal-conv1d,
flash-linear-attention) keep less.
Source: transformers 5.23, models/lfm2, models/qwen3_5, models/qwen3_next.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.memory.delta import looped_delta, solved_delta
from planner.memory.linears import LinearModule
from planner.memory.ops import FP32, Program
from planner.memory.tape import PASS, Out, Param, Tensor
from planner.model.spec import Attention


def short_conv(p: Program, linears: Mapping[str, LinearModule], hidden: Tensor, a: Attention) -> Tensor:
    """LFM2: ``out(C * conv(B * x))`` of one projection cut in three. Source: Lfm2ShortConv."""
    b, c, x = p.split(linears["linear_in"](p, hidden), (a.q_width,) * 3)
    convolved = causal_conv(p, p.mul(b, x), a.q_width, a.conv_kernel)
    y = p.clone(p.mul(c, convolved))  # laid out by channel until here
    return linears["o"](p, y)


def causal_conv(p: Program, x: Tensor, width: int, taps: int) -> Tensor:
    """A depthwise convolution over the tokens, cut back to their number; backward first fills what was cut off.

    Autograd keeps its input even where the weight is frozen (derivatives.yaml, convolution_overrideable).
    """
    itemsize = p.mode.trained_itemsize if p.mode.trained else p.mode.base
    weight = p.weight(width * taps, itemsize, trained=p.mode.trained)
    given = x.itemsize
    if not p.mode.looped_delta:
        x = p.cast(x, itemsize)
    if p.mode.autocast:
        x = p.cast(x, p.mode.compute)
    cast = p.cast_weight(weight)
    used: Param | Tensor = weight if cast is None else cast
    whole = p.new(x.elems, x.itemsize)
    grad_w: Out = ((weight.count, 0, 0), x.itemsize) if weight.trained else None
    p.link(whole, (x, used), ((x.elems, x.itemsize), grad_w), saved=(x, cast))
    cut = p.view(whole)
    p.link(cut, (whole,), ((whole.elems, whole.itemsize),))
    return p.cast(cut, given)


def delta_rule(p: Program, linears: Mapping[str, LinearModule], hidden: Tensor, a: Attention) -> Tensor:
    """Gated delta rule: projections, short convolution, chunked recurrence, gated norm.

    Source: Qwen3_5GatedDeltaNet. Heads of ``a`` are value heads, its key heads the recurrence's key heads.
    """
    keys, values = a.kv_width, a.heads * a.v_head_dim
    project = _projected if "linear_z" in linears else _projected_at_once
    mixed, z, b, steps = project(p, linears, hidden, a)
    mixed = p.unary(causal_conv(p, mixed, 2 * keys + values, a.conv_kernel), saves="input")
    q, k, v = p.split(mixed, (keys, keys, values))
    del mixed
    beta = p.unary(b, saves="output")
    del b
    decay = p.scale(p.unary(p.scale(p.cast(steps, FP32)), saves="input"))
    del steps
    recurrence = looped_delta if p.mode.looped_delta else solved_delta
    out = recurrence(p, q, k, v, beta, decay, a)
    del q, k, v, beta, decay
    return linears["o"](p, gated_norm(p, out, z, a))


Projected = tuple[Tensor, Tensor, Tensor, Tensor]  # queries, keys and values; the gate; beta; the step


def _projected(p: Program, linears: Mapping[str, LinearModule], hidden: Tensor, a: Attention) -> Projected:
    """Qwen3.5: a matrix for each."""
    mixed = linears["linear_in"](p, hidden)
    z = linears["linear_z"](p, hidden)
    return mixed, z, linears["linear_b"](p, hidden), linears["linear_a"](p, hidden)


def _projected_at_once(p: Program, linears: Mapping[str, LinearModule], hidden: Tensor, a: Attention) -> Projected:
    """Qwen3-Next: two matrices, laid out by key head, so that every part is copied when it is laid out anew."""
    keys, values = a.kv_width, a.heads * a.v_head_dim
    together, small = linears["linear_in"](p, hidden), linears["linear_b"](p, hidden)
    q, k, v, z = (p.clone(x) for x in p.split(together, (keys, keys, values, values)))
    b, steps = (p.clone(x) for x in p.split(small, (a.heads, a.heads)))
    mixed = p.new((0, 2 * keys + values, 0), q.itemsize)
    p.link(mixed, (q, k, v), (PASS, PASS, PASS))
    return mixed, z, b, steps


def gated_norm(p: Program, x: Tensor, gate: Tensor, a: Attention) -> Tensor:
    """Normalised by head, times its weight, times silu of the gate in fp32. Source: Qwen3_5RMSNormGated."""
    itemsize = p.mode.trained_itemsize if p.mode.trained else p.mode.norm_weight
    given = x.itemsize
    normed = p.rms_norm(x, p.weight(a.v_head_dim, itemsize, trained=p.mode.trained), rows=a.heads)
    opened = p.unary(p.cast(gate, FP32), saves="input")
    return p.cast(p.mul(normed, opened), given)
