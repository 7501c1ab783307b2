"""What stands in the place of attention in hybrid models: LFM2's gated short convolution.

Written as the modelling code's torch paths run: the packages of kernels that may replace them (causal-conv1d) keep less.
Source: transformers 5.23, models/lfm2.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.memory.linears import LinearModule
from planner.memory.ops import Program
from planner.memory.tape import Out, Param, Tensor
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

