"""What one block costs, as curves in the tokens of a micro batch; computed once per block and mode."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.memory.blocks import BlockModule, normalise
from planner.memory.ops import Mode, Program
from planner.memory.tape import ACTIVATION, NOTHING, Moment, Node, Tensor, undominated
from planner.model.modules import Linear
from planner.model.spec import Block, ModelSpec


@dataclass(frozen=True, kw_only=True)
class BlockCurve:
    """Bytes of one block above what was alive before it.

    ``forward`` are the undominated maxima while it runs forward, over a baseline that holds its input. ``kept`` is
    what stays once the next block has run, the input among it where something saved it (nothing under checkpointing,
    where the caller keeps the input). ``output`` is the output itself, ``casts`` the autocast weight copies that
    stay until the model's forward pass ends. ``backward`` are the maxima while it runs backward, the incoming
    gradient included: over a baseline without ``kept``, or with the kept input under checkpointing.
    ``weight_gradients`` is what it leaves behind.
    """

    forward: tuple[Moment, ...]
    kept: Moment
    output: Moment
    casts: int
    backward: tuple[Moment, ...]
    weight_gradients: int


@lru_cache(maxsize=2048)
def block_curve(
    block: Block,
    linears: tuple[Linear, ...],
    mode: Mode,
    *,
    model_type: str,
    hidden: int,
    checkpointed: bool,
    reentrant: bool,
    leaf: bool = False,
) -> BlockCurve:
    """Run the block's program once forward and once backward; ``leaf``: its input needs no gradient."""
    run = _Run(block, linears, mode, model_type, hidden, leaf=leaf)
    return run.checkpointed(reentrant=reentrant) if checkpointed else run.plain()


class _Run:
    def __init__(
        self, block: Block, linears: tuple[Linear, ...], mode: Mode, model_type: str, hidden: int, *, leaf: bool
    ) -> None:
        self.leaf = leaf
        self.p = Program(mode)
        self.module = BlockModule(self.p, block, linears, model_type=model_type, hidden=hidden)
        self.elems = (0, hidden, 0)

    def plain(self) -> BlockCurve:
        """Everything that backward needs is kept."""
        _p, meter = self.p, self.p.meter
        hidden, sink = self._input()
        start = meter.now()
        meter.restart()
        out = self.module.forward(hidden)
        casts = self._drop_casts()
        forward = tuple(m.minus(start) for m in meter.close())
        size = Moment(0, out.elems[1] * out.itemsize, 0)
        del hidden  # the caller's handle goes once the next block has run; saved, it counts as kept here
        kept = meter.now().minus(size)
        backward, gradients = self._backward(out, sink, baseline=NOTHING)
        return BlockCurve(
            forward=forward, kept=kept, output=size, casts=casts, backward=backward, weight_gradients=gradients
        )

    def checkpointed(self, *, reentrant: bool) -> BlockCurve:
        """Only the input is kept (by the caller); backward runs the block again first."""
        p, meter = self.p, self.p.meter
        hidden, _ = self._input()
        start = meter.now()
        p.recording = False
        meter.restart()
        out = self.module.forward(hidden)
        forward = tuple(m.minus(start) for m in meter.close())
        casts = self._drop_casts()
        size = Moment(0, out.elems[1] * out.itemsize, 0)
        grad_size = out.itemsize
        del out
        p.recording = True
        p.nodes.clear()
        fresh, sink = self._rebuilt(hidden)
        meter.restart()
        grad = p.new(self.elems, grad_size)
        out = self.module.forward(fresh)
        self._drop_casts(kept_by_graph=True)
        del fresh
        held = (p.detached(out), p.detached(grad)) if reentrant else ()
        backward, gradients = self._backward(out, sink, baseline=start, grad=grad)
        del held, hidden
        return BlockCurve(
            forward=forward, kept=NOTHING, output=size, casts=casts, backward=backward, weight_gradients=gradients
        )

    def _input(self) -> tuple[Tensor, Node]:
        return self._rebuilt(self.p.new(self.elems, self.p.mode.stream))

    def _rebuilt(self, hidden: Tensor) -> tuple[Tensor, Node]:
        """A handle on ``hidden`` whose gradient ends in a sink."""
        sink = Node(-1, (), (), (), (), 1)
        handle = self.p.detached(hidden)
        if not self.leaf:
            handle.node = sink
        return handle, sink

    def _drop_casts(self, *, kept_by_graph: bool = False) -> int:
        """End of the autocast region: cached weight copies go, unless the graph holds them."""
        total = 0
        for param in self.p.params:
            if param.cast is not None:
                total += 0 if kept_by_graph else param.count * param.cast.itemsize
                param.cast = None
        return total

    def _backward(
        self, out: Tensor, sink: Node, *, baseline: Moment, grad: Tensor | None = None
    ) -> tuple[tuple[Moment, ...], int]:
        p, meter = self.p, self.p.meter
        if grad is None:
            meter.restart()
            grad = p.new(out.elems, out.itemsize, ACTIVATION)
        root = p.detached(out)
        root.node, root.slot = out.node, out.slot
        p.backward(root, grad)
        sink.grads = None
        maxima = [m.minus(baseline) for m in meter.close()]
        return undominated(maxima), meter.gradient


@lru_cache(maxsize=512)
def final_norm(spec: ModelSpec, mode: Mode) -> tuple[int, int]:
    """Bytes per token that the final norm keeps for backward, and those of its output."""
    p = Program(mode)
    hidden = p.new((0, spec.hidden, 0), mode.stream)
    hidden.node = Node(-1, (), (), (), (), 1)
    out = normalise(p, hidden, spec.final_norm, spec.hidden, model_type=spec.model_type)
    del hidden
    size = out.elems[1] * out.itemsize
    return p.meter.token - size, size
