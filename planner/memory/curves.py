"""What one block costs, as curves in the tokens of a micro batch; computed once per block and mode."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.memory.blocks import BlockModule, normalise
from planner.memory.ops import Mode, Program
from planner.memory.tape import NOTHING, Moment, Node, Storage, Tensor, undominated
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


Size = tuple[int, int, int]  # bytes: constant, per token, per token x sequence length
Lines = tuple[tuple[int, Size | None], ...]  # (number, size) is born, (number, None) dies


@dataclass(frozen=True, kw_only=True)
class BlockLog:
    """What one block allocates and frees, in order: (number, size) is born, (number, None) dies.

    ``input`` is the output of the block below, ``incoming`` the gradient that the block above hands over; neither is
    born here. ``output`` and ``outgoing`` (None where nothing below wants a gradient) do not die here. ``casts`` die
    at the end of the model's forward pass. What else outlives backward are gradients of weights.
    """

    forward: Lines
    casts: tuple[int, ...]
    backward: Lines
    input: int
    output: int
    incoming: int
    outgoing: int | None
    output_saved: bool  # the block's own graph holds its output until its backward


@lru_cache(maxsize=256)
def block_log(
    block: Block,
    linears: tuple[Linear, ...],
    mode: Mode,
    *,
    model_type: str,
    hidden: int,
    checkpointed: bool,
    reentrant: bool,
    leaf: bool = False,
) -> BlockLog:
    """The same run as ``block_curve``, as a log."""
    run = _Run(block, linears, mode, model_type, hidden, leaf=leaf)
    log: list[tuple[bool, Storage]] = []
    run.p.meter.log = log
    _ = run.checkpointed(reentrant=reentrant) if checkpointed else run.plain()
    run.p.meter.log = None
    return run.logged(log)


class _Run:
    def __init__(
        self, block: Block, linears: tuple[Linear, ...], mode: Mode, model_type: str, hidden: int, *, leaf: bool
    ) -> None:
        self.leaf = leaf
        self.p = Program(mode)
        self.module = BlockModule(self.p, block, linears, model_type=model_type, hidden=hidden)
        self.elems = (0, hidden, 0)
        self.marks: dict[str, Storage] = {}  # the storages by which a block's log joins its neighbours'
        self.casts_held: set[int] = set()
        self.turn = 0

    def _mark(self, **storages: Storage) -> None:
        """Name the storages that a log must share with other blocks."""
        self.marks |= storages

    def _turn(self) -> None:
        """Here backward begins."""
        self.turn = len(self.p.meter.log or ())

    def plain(self) -> BlockCurve:
        """Everything that backward needs is kept."""
        p, meter = self.p, self.p.meter
        hidden, sink = self._input()
        start = meter.now()
        meter.restart()
        out = self.module.forward(hidden)
        self._mark(input=hidden.storage, output=out.storage)
        casts = self._drop_casts()
        forward = tuple(m.minus(start) for m in meter.close())
        size = Moment(0, out.elems[1] * out.itemsize, 0)
        del hidden  # the caller's handle goes once the next block has run; saved, it counts as kept here
        kept = meter.now().minus(size)
        root = self._edge_of(out)
        grads = [p.new(out.elems, out.itemsize)]
        self._mark(incoming=grads[0].storage)
        del out
        self._turn()
        meter.restart()
        backward, gradients = self._backward(root, sink, grads, baseline=NOTHING)
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
        self._mark(input=hidden.storage, output=out.storage)
        casts = self._drop_casts()
        size = Moment(0, out.elems[1] * out.itemsize, 0)
        grad_size = out.itemsize
        del out
        self._turn()
        p.recording = True
        p.nodes.clear()
        fresh, sink = self._rebuilt(hidden)
        meter.restart()
        grads = [p.new(self.elems, grad_size)]
        self._mark(incoming=grads[0].storage)
        ahead = p.new(self.elems, p.mode.compute) if not reentrant and self._starts_with_an_adapter() else None
        out = self.module.forward(fresh)
        self._drop_casts(kept_by_graph=True)
        del fresh
        # the reentrant kind calls backward with both; the other recomputes until the last saved tensor is there
        held = (out, grads[0]) if reentrant else ()
        root = self._edge_of(out)
        del out
        if not reentrant:
            p.forget_after_last_save()
        del ahead
        backward, gradients = self._backward(root, sink, grads, baseline=start)
        del held, hidden
        return BlockCurve(
            forward=forward, kept=NOTHING, output=size, casts=casts, backward=backward, weight_gradients=gradients
        )

    def _starts_with_an_adapter(self) -> bool:
        """Whether backward scales the gradient for the last adapter before it asks for anything that was saved."""
        mode, block = self.p.mode, self.module.block
        norm_first = block.norms == 4 or block.post_norm or mode.residual_dropout
        plain = mode.autocast or mode.adapter == mode.compute
        return "down" in mode.targets and block.mlp is not None and plain and not norm_first

    def _input(self) -> tuple[Tensor, Node]:
        return self._rebuilt(self.p.new(self.elems, self.p.mode.stream))

    def _rebuilt(self, hidden: Tensor) -> tuple[Tensor, Node]:
        """A handle on ``hidden`` whose gradient ends in a sink."""
        sink = Node(-1, (), (), (), (), 1)
        handle = self.p.detached(hidden)
        if not self.leaf:
            handle.node = sink
        return handle, sink

    def logged(self, log: list[tuple[bool, Storage]]) -> BlockLog:
        """The log in numbers, cut at the begin of backward, without what belongs to the neighbours."""
        names = {id(storage): number for number, storage in enumerate({id(s): s for _, s in log}.values())}
        own = {name: names[id(storage)] for name, storage in self.marks.items()}
        dead = {names[id(storage)] for born, storage in log[: self.turn] if not born}
        casts = dead & {names[key] for key in self.casts_held}  # others are in the graph and die with it
        outgoing = own.get("outgoing")
        skipped = {(True, own["input"]), (True, own["incoming"]), (False, outgoing)}

        def part(events: list[tuple[bool, Storage]], also: set[tuple[bool, int]]) -> Lines:
            lines = [(born, names[id(s)], s.bytes) for born, s in events]
            return tuple((n, size if born else None) for born, n, size in lines if (born, n) not in skipped | also)

        saved = any(not born and s is self.marks["output"] for born, s in log[self.turn :])
        return BlockLog(
            forward=part(log[: self.turn], {(False, own["output"])} | {(False, number) for number in casts}),
            casts=tuple(sorted(casts)),
            backward=part(log[self.turn :], set()),
            input=own["input"],
            output=own["output"],
            incoming=own["incoming"],
            outgoing=outgoing,
            output_saved=saved,
        )

    def _drop_casts(self, *, kept_by_graph: bool = False) -> int:
        """End of the autocast region: cached weight copies go, unless the graph holds them."""
        total = 0
        for param in self.p.params:
            if param.cast is not None:
                total += 0 if kept_by_graph else param.count * param.cast.itemsize
                if not kept_by_graph:
                    self.casts_held.add(id(param.cast.storage))
                param.cast = None
        return total

    def _edge_of(self, out: Tensor) -> Tensor:
        """A handle with the edge of ``out`` and without its bytes."""
        root = self.p.new((0, 0, 0), out.itemsize)
        root.node, root.slot = out.node, out.slot
        return root

    def _backward(
        self, root: Tensor, sink: Node, grads: list[Tensor], *, baseline: Moment
    ) -> tuple[tuple[Moment, ...], int]:
        """``grads`` holds the incoming gradient, which is handed over."""
        p, meter = self.p, self.p.meter
        p.backward(root, grads.pop())
        if sink.grads is not None and sink.grads[0] is not None:
            self._mark(outgoing=sink.grads[0].storage)
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
