"""Mixture-of-experts modules: routing, the experts' matmuls, the shared expert.

Two ways of running experts exist. transformers up to 4 loops over expert modules; each takes its tokens, and its
tensors live until backward. transformers 5 holds the weights as 3-D parameters and runs one grouped matmul over
tokens sorted by expert. Balanced routing is assumed: every expert sees tokens x k / experts.
Source: transformers integrations/moe.py, models/mixtral/modeling_mixtral.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planner.memory.habits import WIDE_ROUTER
from planner.memory.linears import LinearModule
from planner.memory.ops import FP32, Program
from planner.memory.tape import PASS, Tensor
from planner.model.spec import Mlp, Moe

Dense = Callable[[Tensor, Mlp, str], Tensor]
INDEX_BYTES = 8
LOOPED_PIECES = 16  # loops over more experts are taken in so many pieces


def experts(
    p: Program, linears: Mapping[str, LinearModule], moe: Moe, hidden: Tensor, *, shared: Dense, model_type: str
) -> Tensor:
    """Routed experts (and the shared one); returns the summed output at hidden width."""
    weights = _route(p, linears["router"], moe, hidden, in_fp32=model_type in WIDE_ROUTER)
    if "expert_gate_up" in linears:
        total = _grouped(p, linears, moe, hidden, weights, clamped=model_type == "gpt_oss")
    else:
        total = _looped(p, linears, moe, hidden, weights)
    del weights
    if moe.shared is None:
        return total
    extra = shared(hidden, moe.shared, "shared_")
    if moe.shared_gate:
        gate = p.unary(linears["shared_router"](p, hidden), saves="output")
        extra = p.mul(extra, gate)
    return p.add(total, extra)


def _looped(p: Program, linears: Mapping[str, LinearModule], moe: Moe, hidden: Tensor, weights: Tensor) -> Tensor:
    """transformers 4: expert by expert, each result added to the sum in place."""
    total = p.new(hidden.elems, hidden.itemsize)
    pieces = min(moe.experts, LOOPED_PIECES)
    for _ in range(pieces):
        total = _add_piece(p, linears, moe, hidden, weights, total, Share(moe.experts_per_token, pieces))
    return total


def _grouped(
    p: Program, linears: Mapping[str, LinearModule], moe: Moe, hidden: Tensor, weights: Tensor, *, clamped: bool
) -> Tensor:
    """transformers 5: rows sorted by expert, two grouped matmuls, rows weighed, back in order, summed by token."""
    share = Share(moe.experts_per_token, 1)
    rows = _gather(p, hidden, share)
    width = share.of(moe.expert.width)
    gate, up = p.split(linears["expert_gate_up"].on_rows(p, rows, 2 * width), (width, width))
    del rows
    product = _clamped_product(p, gate, up) if clamped else p.mul(p.unary(gate, saves="input"), up)
    del gate, up
    out = linears["expert_down"].on_rows(p, product, share.of(linears["expert_down"].linear.outputs))
    del product
    weighted = p.mul(out, weights)
    del out
    ordered = p.new(weighted.elems, weighted.itemsize)
    order = p.new((0, share.of(1), 0), INDEX_BYTES)
    p.link(ordered, (weighted,), ((weighted.elems, weighted.itemsize),), saved=(order,))
    del weighted
    total = p.new(hidden.elems, ordered.itemsize)
    p.link(total, (ordered,), ((ordered.elems, ordered.itemsize),))
    return p.cast(total, hidden.itemsize)


def _clamped_product(p: Program, gate: Tensor, up: Tensor) -> Tensor:
    """gpt-oss: (clamp(up) + 1) * clamp(gate) * sigmoid(alpha * clamp(gate)), one kernel an operation."""
    gate = p.unary(gate, saves="input")
    up = p.unary(up, saves="input")
    glu = p.mul(gate, p.unary(p.scale(gate), saves="output"))
    return p.mul(p.scale(up), glu)


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


def _route(p: Program, router: LinearModule, moe: Moe, hidden: Tensor, *, in_fp32: bool) -> Tensor:
    """Router logits (on an fp32 copy of the input where ``in_fp32``), fp32 softmax, top-k, renormalised weights."""
    logits = router(p, p.cast(hidden, FP32) if in_fp32 else hidden)
    probabilities = p.unary(p.cast(logits, FP32), saves="output")
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
    if expert.gated:
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
