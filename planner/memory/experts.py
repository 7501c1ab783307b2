"""Mixture-of-experts modules: routing, the experts' matmuls, the shared expert.

Two ways of running experts exist. transformers up to 4 loops over expert modules; each takes its tokens, and its
tensors live until backward. transformers 5 holds the weights as 3-D parameters and runs one grouped matmul over
tokens sorted by expert. Balanced routing is assumed: every expert sees tokens x k / experts.
Source: transformers integrations/moe.py, models/mixtral/modeling_mixtral.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planner.memory.linears import LinearModule
from planner.memory.ops import FP32, Program
from planner.memory.tape import PASS, Tensor
from planner.model.spec import Mlp, Moe

Dense = Callable[[Tensor, Mlp, str], Tensor]
INDEX_BYTES = 8
LOOPED_PIECES = 16  # loops over more experts are taken in so many pieces


def experts(p: Program, linears: Mapping[str, LinearModule], moe: Moe, hidden: Tensor, *, shared: Dense) -> Tensor:
    """Routed experts (and the shared one); returns the summed output at hidden width."""
    weights = _route(p, linears["router"], moe, hidden)
    looped = "expert_gate_up" not in linears
    pieces = min(moe.experts, LOOPED_PIECES) if looped else 1
    total = p.new(hidden.elems, hidden.itemsize)  # zeros that index_add_ fills in place
    for _ in range(pieces):
        total = _add_piece(p, linears, moe, hidden, weights, total, Share(moe.experts_per_token, pieces))
    del weights
    if moe.shared is None:
        return total
    extra = shared(hidden, moe.shared, "shared_")
    if moe.shared_gate:
        gate = p.unary(linears["shared_router"](p, hidden), saves="output")
        extra = p.mul(extra, gate)
    return p.add(total, extra)


@dataclass(frozen=True, slots=True)
class Share:
    """Rows per token of one piece: ``k`` rows in all, dealt to ``pieces``."""

    k: int
    pieces: int

    def of(self, width: int) -> int:
        """Elements per token of a tensor that is ``width`` wide."""
        return -(-width * self.k // self.pieces)


def _add_piece(
    p: Program,
    linears: Mapping[str, LinearModule],
    moe: Moe,
    hidden: Tensor,
    weights: Tensor,
    total: Tensor,
    share: Share,
) -> Tensor:
    """Gather the tokens of some experts, run these, weigh the result and add it to the sum."""
    rows = _gather(p, hidden, share)
    out = _expert_mlp(p, linears, moe.expert, rows, share)
    weighted = p.mul(out, _narrowed(p, weights, share))
    del out, rows
    return _combine(p, weighted, total, share)


def _narrowed(p: Program, weights: Tensor, share: Share) -> Tensor:
    if share.pieces == 1:
        return weights
    part = p.new((0, share.of(1), 0), weights.itemsize)
    p.link(part, (weights,), ((weights.elems, weights.itemsize),))
    return part


def _route(p: Program, router: LinearModule, moe: Moe, hidden: Tensor) -> Tensor:
    """Router logits, fp32 softmax, top-k, renormalised weights."""
    logits = router(p, hidden)
    wide = p.cast(logits, FP32)
    probabilities = p.unary(wide, saves="output")
    index = p.new((0, moe.experts_per_token, 0), INDEX_BYTES)
    top = p.new((0, moe.experts_per_token, 0), FP32)
    p.link(top, (probabilities,), ((probabilities.elems, FP32),), saved=(index,))
    return p.cast(top, hidden.itemsize)


def _gather(p: Program, hidden: Tensor, share: Share) -> Tensor:
    """``hidden[token_index]``: backward scatters into zeros."""
    out = p.new((0, share.of(hidden.elems[1]), 0), hidden.itemsize)
    index = p.new((0, share.of(1), 0), INDEX_BYTES)
    p.link(out, (hidden,), ((hidden.elems, hidden.itemsize),), saved=(index,))
    return out


def _expert_mlp(p: Program, linears: Mapping[str, LinearModule], expert: Mlp, rows: Tensor, share: Share) -> Tensor:
    """``down(act(gate(x)) * up(x))`` on the gathered rows."""
    if "expert_gate_up" in linears:
        both = linears["expert_gate_up"].on_rows(p, rows, share.of(2 * expert.width))
        gate, up = p.split(both, (share.of(expert.width), share.of(expert.width)))
        del both
        product = p.mul(p.unary(gate, saves="input"), up)
        del gate, up
    elif expert.gated:
        acted = p.unary(linears["expert_gate"].on_rows(p, rows, share.of(expert.width)), saves="input")
        product = p.mul(acted, linears["expert_up"].on_rows(p, rows, share.of(expert.width)))
        del acted
    else:
        product = p.unary(linears["expert_up"].on_rows(p, rows, share.of(expert.width)), saves="input")
    return linears["expert_down"].on_rows(p, product, share.of(linears["expert_down"].linear.outputs))


def _combine(p: Program, weighted: Tensor, total: Tensor, share: Share) -> Tensor:
    """``index_add_`` in place: the sum's gradient passes on, the rows' gradient is gathered again.

    derivatives.yaml saves the source, for its shape.
    """
    out = p.view(total)
    index = p.new((0, share.of(1), 0), INDEX_BYTES)
    p.link(out, (total, weighted), (PASS, (weighted.elems, weighted.itemsize)), saved=(index, weighted))
    return out
