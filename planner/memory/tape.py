"""A symbolic autograd tape: which bytes are alive while a block runs forward and backward.

Tensors here have sizes and no values. A size is a linear form in the micro batch: ``const`` bytes, bytes per
token (batch x sequence), and bytes per squared length (batch x sequence x sequence). Block programs are written
as the modeling code is written, so that Python's own reference counts end the life of a tensor where
PyTorch's would: a tensor lives while a local name, a graph node's saved list or a gradient buffer holds it.

Source of the rules: torch/csrc/autograd (engine.cpp: highest sequence number first, saved variables released
after a node ran; input_buffer.cpp: gradients add in place where the buffer is the only owner; accumulate_grad.h:
the first gradient of a leaf is taken over without a copy) and tools/autograd/derivatives.yaml (what each
operation saves). Left out: rounding to 512 bytes, which is far below a thousandth for real shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

Elems = tuple[int, int, int]  # elements: constant, per token, per token x sequence length
ACTIVATION, GRADIENT, TEMPORARY = "activation", "gradient", "temporary"
PASS: Final = "pass"  # noqa: S105 - a backward that hands its gradient on without a copy


class Moment(NamedTuple):
    """Live bytes at one moment; ``gradient`` and ``temporary`` (weight-sized) are parts of ``const``."""

    const: int
    token: int
    square: int
    gradient: int = 0
    temporary: int = 0

    def at(self, tokens: int, squares: int) -> int:
        """Bytes for ``tokens`` = b*s and ``squares`` = b*s*s."""
        return self.const + self.token * tokens + self.square * squares

    def minus(self, other: Moment) -> Moment:
        """Difference, part by part."""
        return Moment(*(a - b for a, b in zip(self, other, strict=True)))

    def plus(self, other: Moment) -> Moment:
        """Sum, part by part."""
        return Moment(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = Moment(0, 0, 0)


class Meter:
    """Counts live bytes and remembers every local maximum."""

    __slots__ = ("const", "gradient", "log", "peaks", "rising", "square", "temporary", "token")

    def __init__(self) -> None:
        self.const = self.token = self.square = self.gradient = self.temporary = 0
        self.log: list[tuple[bool, Storage]] | None = None  # births (True) and deaths in order, where somebody asks
        self.peaks: list[Moment] = []
        self.rising = False

    def now(self) -> Moment:
        """The bytes alive at this moment."""
        return Moment(self.const, self.token, self.square, self.gradient, self.temporary)

    def restart(self) -> None:
        """Forget the maxima seen so far."""
        self.peaks = []
        self.rising = True

    def close(self) -> tuple[Moment, ...]:
        """The maxima since the last restart that no other one dominates."""
        self.peaks.append(self.now())
        return undominated(self.peaks)


def undominated(moments: Sequence[Moment]) -> tuple[Moment, ...]:
    """Those moments that can be the largest for some batch and length."""
    kept: list[Moment] = []
    for moment in sorted(set(moments), reverse=True):
        const, token, square = moment[:3]
        if not any(m[0] >= const and m[1] >= token and m[2] >= square for m in kept):
            kept.append(moment)
    return tuple(kept)


class Storage:
    """Bytes that live until the last tensor handle is gone."""

    __slots__ = ("bytes", "handles", "kind", "meter")

    def __init__(self, meter: Meter, elems: Elems, itemsize: int, kind: str) -> None:
        const, token, square = elems
        self.bytes = (const * itemsize, token * itemsize, square * itemsize)
        self.meter, self.kind, self.handles = meter, kind, 0
        self._count(1)
        meter.rising = True
        if meter.log is not None:
            meter.log.append((True, self))

    def _count(self, sign: int) -> None:
        meter = self.meter
        const, token, square = self.bytes
        meter.const += sign * const
        meter.token += sign * token
        meter.square += sign * square
        if self.kind is not ACTIVATION:
            if self.kind is GRADIENT:
                meter.gradient += sign * const
            else:
                meter.temporary += sign * const

    def free(self) -> None:
        """The last handle is gone."""
        if self.meter.rising:
            self.meter.peaks.append(self.meter.now())
            self.meter.rising = False
        self._count(-1)
        if self.meter.log is not None:
            self.meter.log.append((False, self))

    def become(self, kind: str) -> None:
        """Book the same bytes under another part."""
        self._count(-1)
        self.kind = kind
        self._count(1)


class Tensor:
    """A handle on a storage with its autograd edge (``node``, ``slot``)."""

    __slots__ = ("base", "elems", "itemsize", "node", "slot", "storage")

    def __init__(
        self, storage: Storage, elems: Elems, itemsize: int, node: Node | Param | None = None, slot: int = 0
    ) -> None:
        self.storage, self.elems, self.itemsize, self.node, self.slot = storage, elems, itemsize, node, slot
        self.base: Tensor | None = None  # a view keeps what it views
        storage.handles += 1

    def __del__(self) -> None:
        storage = self.storage
        storage.handles -= 1
        if storage.handles == 0:
            storage.free()

    @property
    def needs_grad(self) -> bool:
        """True where backward has to reach this tensor."""
        return self.node is not None


class Param:
    """A weight. Its bytes are counted elsewhere (weights are alive anyway); its gradient and casts are counted here."""

    __slots__ = ("cast", "count", "grad", "itemsize", "keeps_grad", "trained")

    def __init__(self, count: int, itemsize: int, *, trained: bool, keeps_grad: bool = True) -> None:
        self.count, self.itemsize, self.trained, self.keeps_grad = count, itemsize, trained, keeps_grad
        self.grad: Tensor | None = None
        self.cast: Tensor | None = None


Out = tuple[Elems, int] | str | None  # a new gradient (elements, itemsize), PASS, or no gradient
Edge = tuple["Node | Param", int] | None


class Node:
    """One graph node: what it saved, and what its backward allocates for each input."""

    __slots__ = ("arity", "grads", "inputs", "outs", "saved", "seq", "temps", "views")

    def __init__(
        self,
        seq: int,
        inputs: tuple[Edge, ...],
        outs: tuple[Out, ...],
        saved: tuple[Tensor, ...],
        temps: tuple[tuple[Elems, int, str], ...],
        arity: int,
        *,
        views: bool = False,
    ) -> None:
        self.views = views
        self.seq, self.inputs, self.outs, self.temps, self.arity = seq, inputs, outs, temps, arity
        self.saved: tuple[Tensor, ...] = saved
        self.grads: list[Tensor | None] | None = None


class Tape:
    """Runs operations, records their nodes, and replays them backwards."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.recording = True
        self.nodes: list[Node] = []
        self.last_save: tuple[int, Moment] = (0, NOTHING)  # maxima before the newest save, bytes alive then
        self._seq = 0

    def new(self, elems: Elems, itemsize: int, kind: str = ACTIVATION) -> Tensor:
        """Allocate; no graph edge."""
        return Tensor(Storage(self.meter, elems, itemsize, kind), elems, itemsize)

    def view(self, source: Tensor, elems: Elems | None = None) -> Tensor:
        """Another handle on the same storage with the same edge (reshape, transpose)."""
        return Tensor(source.storage, elems or source.elems, source.itemsize, source.node, source.slot)

    def detached(self, source: Tensor) -> Tensor:
        """The same storage without an edge."""
        return Tensor(source.storage, source.elems, source.itemsize)

    def link(
        self,
        result: Tensor | Sequence[Tensor],
        inputs: Sequence[Tensor | Param | None],
        outs: Sequence[Out],
        *,
        saved: Sequence[Tensor | None] = (),
        temps: Sequence[tuple[Elems, int, str]] = (),
        views: bool = False,
    ) -> None:
        """Give ``result`` a node over ``inputs`` if gradients are recorded and any input needs one.

        ``views``: the first input's gradient arrives as a view (of a matmul's flattened product).
        """
        if not self.recording:
            return
        edges = tuple(_edge(item) for item in inputs)
        if not any(edges):
            return
        results = (result,) if isinstance(result, Tensor) else tuple(result)
        kept = tuple(self.detached(item) for item in saved if item is not None)
        if kept:
            self._note_save(results, kept)
        node = Node(self._seq, edges, tuple(outs), kept, tuple(temps), len(results), views=views)
        self._seq += 1
        self.nodes.append(node)
        for slot, tensor in enumerate(results):
            tensor.node, tensor.slot = node, slot

    def _note_save(self, results: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
        """An input is saved before the operation allocates its result, a result afterwards."""
        held = {id(tensor.storage) for tensor in kept}
        alive = self.meter.now()
        for result in results:
            if id(result.storage) not in held:
                alive = alive.minus(Moment(*result.storage.bytes))
        self.last_save = len(self.meter.peaks), alive

    def forget_after_last_save(self) -> None:
        """Drop the maxima behind the newest save: a recomputation that only wants saved tensors stops there."""
        number, alive = self.last_save
        self.meter.peaks[number:] = [alive]
        self.meter.rising = False

    def backward(self, root: Tensor, grad: Tensor) -> None:
        """Run every recorded node in the engine's order; ``grad`` is handed over."""
        if isinstance(root.node, Node):
            root.node.grads = [None] * root.node.arity
            root.node.grads[root.slot] = grad
        del grad, root
        while self.nodes:
            node = self.nodes.pop()
            if node.grads is not None:
                self._run(node)

    def _run(self, node: Node) -> None:
        incoming: list[Tensor | None] = node.grads or []
        node.grads = None
        first = next(grad for grad in incoming if grad is not None)
        workspace = [self.new(elems, itemsize, kind) for elems, itemsize, kind in node.temps]
        outgoing: list[Tensor | None] = []
        for edge, out in zip(node.inputs, node.outs, strict=True):
            if edge is None or out is None:
                outgoing.append(None)
            elif isinstance(out, str):
                outgoing.append(self.detached(first))
            else:
                kind = GRADIENT if isinstance(edge[0], Param) and edge[0].keeps_grad else ACTIVATION
                outgoing.append(self.new(out[0], out[1], kind))
        if node.views and outgoing[0] is not None:
            outgoing[0].base = self.detached(outgoing[0])
        del workspace, first, incoming
        node.saved = ()
        edges = node.inputs
        node.inputs = ()
        for position, edge in enumerate(edges):
            gradient, outgoing[position] = outgoing[position], None
            if edge is not None and gradient is not None:
                self._deliver(edge, gradient)
            del gradient

    def _deliver(self, edge: tuple[Node | Param, int], gradient: Tensor) -> None:
        target, slot = edge
        if isinstance(target, Param):
            if target.grad is None and target.keeps_grad:
                target.grad = gradient
                if gradient.storage.kind is not GRADIENT:
                    gradient.storage.become(GRADIENT)
            return
        if target.grads is None:
            target.grads = [None] * target.arity
        held = target.grads[slot]
        if held is None:
            target.grads[slot] = gradient
        elif held.storage.handles > 1:  # somebody else reads it: the sum needs a storage of its own
            target.grads[slot] = self.new(gradient.elems, max(held.itemsize, gradient.itemsize))


def _edge(item: Tensor | Param | None) -> Edge:
    if isinstance(item, Param):
        return (item, 0) if item.trained else None
    if item is None or item.node is None:
        return None
    return (item.node, item.slot)
