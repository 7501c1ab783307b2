"""What stands in the place of attention in hybrid models: gated short convolutions and the gated delta rule.

Written as the modelling code's torch paths run: the packages of kernels that may replace them (causal-conv1d, flash-linear-attention) keep less.
Source: transformers 5.23, models/lfm2, models/qwen3_5, models/qwen3_next.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.memory.linears import LinearModule
from planner.memory.ops import FP32, Program
from planner.memory.tape import ACTIVATION, PASS, Out, Param, Tensor
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
    out = chunked_delta(p, q, k, v, beta, decay, a)
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
    """RMSNormGated: normalised by head, times its weight, times silu of the gate in fp32. Source: Qwen3_5RMSNormGated."""
    itemsize = p.mode.trained_itemsize if p.mode.trained else p.mode.norm_weight
    given = x.itemsize
    normed = p.rms_norm(x, p.weight(a.v_head_dim, itemsize, trained=p.mode.trained), rows=a.heads)
    opened = p.unary(p.cast(gate, FP32), saves="input")
    return p.cast(p.mul(normed, opened), given)


CHUNK = 64  # tokens of one chunk of the recurrence
PIECES = 16  # the loop over the chunks is taken in so many pieces


def chunked_delta(p: Program, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, a: Attention) -> Tensor:
    """``torch_chunk_gated_delta_rule``: everything in fp32, pairs of tokens within a chunk of 64, one state a chunk."""
    given = q.itemsize
    keys, values, pairs = a.heads * a.head_dim, a.heads * a.v_head_dim, a.heads * CHUNK
    q, k = (_repeated(p, x, keys) for x in (q, k))
    q, k, v, beta = (p.cast(x, FP32) for x in (q, k, v, beta))
    q, k = _unit(p, q, a.heads), _unit(p, k, a.heads)
    q = p.scale(q)
    q, k, v = [_padded(p, x) for x in (q, k, v)]
    beta, decay = [_padded(p, x) for x in (beta, decay)]
    v_beta, k_beta = _by_head(p, v, beta), _by_head(p, k, beta)
    decay = p.scale(decay)  # summed up within the chunk
    fall = _spread(p, decay, pairs)
    fall = p.scale(fall)
    fall = p.unary(fall, saves="output")
    system = p.mul(_product(p, k_beta, k, pairs), fall)
    within = p.mul(_product(p, q, k, pairs), fall)
    del fall
    decayed = _by_head(p, k_beta, p.unary(decay, saves="output"))
    new_values, read = _solved(p, system, v_beta), _solved(p, system, decayed)
    total = p.new((0, values, 0), FP32)
    q, k = (_by_head(p, x, p.unary(decay, saves="output")) for x in (q, k))
    total = _scanned(p, new_values, read, q, k, within, total, a)
    return p.cast(total, given)


def _scanned(
    p: Program, new_values: Tensor, read: Tensor, q: Tensor, k: Tensor, within: Tensor, total: Tensor, a: Attention
) -> Tensor:
    """The loop over the chunks: each reads the state before it, and hands on its own."""

    def share(width: int) -> int:
        return -(-width // PIECES)

    value, states = share(new_values.elems[1]), share(a.heads * a.head_dim * a.v_head_dim // CHUNK)
    state = p.new((0, states, 0), FP32)
    for _ in range(PIECES):
        part = {n: _piece(p, x, share(x.elems[1])) for n, x in (("v", new_values), ("r", read), ("q", q), ("w", within))}
        v_new = p.add(part.pop("v"), _product(p, part.pop("r"), state, value))
        inter = _product(p, part.pop("q"), state, value)
        piece = p.add(inter, _product(p, part.pop("w"), v_new, value))
        del inter
        written = p.view(total)
        p.link(written, (total, piece), ((total.elems, FP32), (piece.elems, piece.itemsize)))
        total = written
        del written, piece
        fed = _product(p, _piece(p, k, share(k.elems[1])), v_new, states)
        del v_new
        state = p.add(_kept_state(p, state), fed)
        del fed
    return total


def _kept_state(p: Program, state: Tensor) -> Tensor:
    """The state times the decay of its chunk, one number a head."""
    out = p.new(state.elems, FP32)
    p.link(out, (state,), ((state.elems, FP32),), saved=(state,))
    return out


def _piece(p: Program, x: Tensor, width: int) -> Tensor:
    """One chunk of a tensor: a view, whose backward fills a whole tensor of zeros."""
    return p.slices(x, (width,))[0]


def _repeated(p: Program, x: Tensor, width: int) -> Tensor:
    """``repeat_interleave`` of key heads for the value heads that share them."""
    if x.elems[1] == width:
        return x
    out = p.new((0, width, 0), x.itemsize)
    p.link(out, (x,), ((x.elems, x.itemsize),))
    return out


def _unit(p: Program, x: Tensor, heads: int) -> Tensor:
    """``l2norm``: x times the reciprocal root of its sum of squares, by head."""
    square = p.mul(x, x)
    total = p.new((0, heads, 0), FP32)
    p.link(total, (square,), (((0, heads, 0), FP32),))  # an expanded view until the product's backward
    del square
    inverse = p.unary(total, saves="output")
    del total
    return _by_head(p, x, inverse)


def _padded(p: Program, x: Tensor) -> Tensor:
    """``F.pad``, which copies even where nothing is to be filled."""
    return p.scale(x)


def _by_head(p: Program, x: Tensor, factor: Tensor) -> Tensor:
    """``x * factor`` with one factor a head: its gradient is a whole product before it is summed."""
    out = p.new(x.elems, FP32)
    p.link(
        out, (x, factor), ((x.elems, FP32), (factor.elems, FP32)), saved=(factor, x), temps=((x.elems, FP32, ACTIVATION),)
    )
    return out


def _spread(p: Program, decay: Tensor, pairs: int) -> Tensor:
    """The difference of every pair of tokens of a chunk."""
    out = p.new((0, pairs, 0), FP32)
    p.link(out, (decay, decay), ((decay.elems, FP32), (decay.elems, FP32)))
    return out


def _product(p: Program, x: Tensor, y: Tensor, width: int) -> Tensor:
    """A batched product of two tensors, both kept for each other's gradient; autocast runs it in its own dtype."""
    if p.mode.autocast:
        x, y = p.cast(x, p.mode.compute), p.cast(y, p.mode.compute)
    out = p.new((0, width, 0), x.itemsize)
    p.link(out, (x, y), ((x.elems, x.itemsize), (y.elems, y.itemsize)), saved=(x, y))
    return out


def _solved(p: Program, system: Tensor, right: Tensor) -> Tensor:
    """``solve_triangular``: keeps the system and its result; backward solves again and cuts the system's gradient."""
    out = p.new(right.elems, FP32)
    p.link(
        out, (system, right), ((system.elems, FP32), (right.elems, FP32)), saved=(system, out),
        temps=((system.elems, FP32, ACTIVATION),),
    )  # fmt: skip
    return out
