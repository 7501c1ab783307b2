"""The chunked recurrence of the gated delta rule in torch operations, as transformers' releases write it.

Everything runs in fp32: pairs of tokens within a chunk of 64, one state a chunk. Source: models/qwen3_5,
``torch_chunk_gated_delta_rule``, of transformers 5.23 (a triangular system is solved) and 5.6 (it is inverted row by
row in a loop, whose every step is kept). Left out: the padding to whole chunks.
"""

from __future__ import annotations

from planner.memory.ops import FP32, Program
from planner.memory.tape import ACTIVATION, Tensor
from planner.model.spec import Attention

CHUNK = 64  # tokens of one chunk of the recurrence
PIECES = 16  # the loop over the chunks is taken in so many pieces


def solved_delta(p: Program, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, a: Attention) -> Tensor:
    """transformers 5.23: two solutions of a triangular system, products with the decay taken before the loop."""
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
    value, states = _share(new_values.elems[1]), _share(a.heads * a.head_dim * a.v_head_dim // CHUNK)
    state = p.new((0, states, 0), FP32)
    for _ in range(PIECES):
        part = {
            n: _piece(p, x, _share(x.elems[1])) for n, x in (("v", new_values), ("r", read), ("q", q), ("w", within))
        }
        v_new = p.add(part.pop("v"), _product(p, part.pop("r"), state, value))
        inter = _product(p, part.pop("q"), state, value)
        piece = p.add(inter, _product(p, part.pop("w"), v_new, value))
        del inter
        total = _written(p, total, piece)
        del piece
        fed = _product(p, _piece(p, k, _share(k.elems[1])), v_new, states)
        del v_new
        state = p.add(_kept_state(p, state), fed)
        del fed
    return total


def _share(width: int) -> int:
    return -(-width // PIECES)


def _written(p: Program, total: Tensor, piece: Tensor) -> Tensor:
    """A chunk's result put into its place: backward copies the whole gradient each time (CopySlices)."""
    written = p.view(total)
    p.link(written, (total, piece), ((total.elems, FP32), (piece.elems, piece.itemsize)))
    return written


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
    total = p.new((0, heads, 0), FP32 if p.mode.autocast else x.itemsize)
    p.link(total, (square,), (((0, heads, 0), total.itemsize),))  # an expanded view until the product's backward
    del square
    inverse = p.unary(total, saves="output")
    del total
    return _by_head(p, x, inverse)


def _padded(p: Program, x: Tensor) -> Tensor:
    """``F.pad``, which copies even where nothing is to be filled."""
    return p.scale(x)


def _by_head(p: Program, x: Tensor, factor: Tensor) -> Tensor:
    """``x * factor`` with one factor a head: its gradient is a whole product before it is summed."""
    out = p.new(x.elems, max(x.itemsize, factor.itemsize))
    p.link(
        out, (x, factor), ((x.elems, x.itemsize), (factor.elems, factor.itemsize)), saved=(factor, x),
        temps=((x.elems, out.itemsize, ACTIVATION),),
    )  # fmt: skip
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


def looped_delta(p: Program, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, a: Attention) -> Tensor:
    """transformers 5.6: the inverse row by row, products with the decay within the loop over the chunks."""
    given = q.itemsize
    keys, values, pairs = a.heads * a.head_dim, a.heads * a.v_head_dim, a.heads * CHUNK
    q, k = (_unit(p, _repeated(p, x, keys), a.heads) for x in (q, k))
    q, k, v, beta = (p.cast(p.clone(x), FP32) for x in (q, k, v, beta))
    q, k, v = [_padded(p, x) for x in (q, k, v)]
    beta, decay = [_padded(p, x) for x in (beta, decay)]
    q = p.scale(q)
    v_beta, k_beta = _by_head(p, v, beta), _by_head(p, k, beta)
    del v, beta
    decay = p.scale(decay)
    fall = p.scale(p.unary(p.scale(_spread(p, decay, pairs)), saves="output"))
    system = p.scale(p.scale(p.mul(_product(p, k_beta, k, pairs), fall)))
    for row in range(1, CHUNK):
        system = _with_row(p, system, row, a.heads)
    system = p.scale(system)
    new_values = _product(p, system, v_beta, values)
    read = _product(p, system, _by_head(p, k_beta, p.unary(decay, saves="output")), keys)
    del system, v_beta, k_beta
    total = _scanned_late(p, new_values, read, q, k, fall, decay, a)
    return p.cast(p.clone(total), given)


def _with_row(p: Program, system: Tensor, row: int, heads: int) -> Tensor:
    """One more row of the inverse, written in place: the rows above it are copied and kept for the backward pass."""
    line, above = (-(-heads * row**power // CHUNK) for power in (1, 2))
    copied = p.clone(p.slices(system, (line,))[0])
    block = p.clone(p.slices(system, (above,))[0])
    product = p.new(block.elems, FP32)
    p.link(
        product, (copied, block), ((copied.elems, FP32), (block.elems, FP32)), saved=(copied, block),
        temps=((block.elems, FP32, ACTIVATION),),
    )  # fmt: skip
    summed = p.new(copied.elems, FP32)
    p.link(summed, (product,), ((copied.elems, FP32),))
    del product, block
    written = p.view(system)
    p.link(written, (system, p.add(copied, summed)), ((system.elems, FP32), (copied.elems, FP32)))
    return written


def _scanned_late(
    p: Program, new_values: Tensor, read: Tensor, q: Tensor, k: Tensor, fall: Tensor, decay: Tensor, a: Attention
) -> Tensor:
    """The loop over the chunks with its products inside."""
    value, states = _share(a.heads * a.v_head_dim), _share(a.heads * a.head_dim * a.v_head_dim // CHUNK)
    total = p.new(new_values.elems, FP32)
    state = p.new((0, states, 0), FP32)
    for _ in range(PIECES):
        q_i, k_i, v_i = (_piece(p, x, _share(x.elems[1])) for x in (q, k, new_values))
        within = p.mul(_product(p, q_i, k_i, _share(fall.elems[1])), _piece(p, fall, _share(fall.elems[1])))
        v_new = p.add(v_i, _product(p, _piece(p, read, _share(read.elems[1])), state, value))
        opened = p.unary(_piece(p, decay, _share(decay.elems[1])), saves="output")
        inter = _product(p, _by_head(p, q_i, opened), state, value)
        total = _written(p, total, p.add(inter, _product(p, within, v_new, value)))
        del inter, within
        fed = _product(p, _by_head(p, k_i, opened), v_new, states)
        state = p.add(_kept_state(p, state), fed)
        del fed
    return total
