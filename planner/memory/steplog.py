"""One training run as a log of allocations and frees: the timeline's step, tensor by tensor, for the allocator's model.

The timeline asks for the largest moment of a step; how much the caching allocator reserves depends on the order and
the sizes of everything before it. So blocks are logged by their programs (``curves.block_log``), the loss by the code
that makes it, optimizer states when the first step makes them, and the run takes a few steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from planner.memory.allocator import Event
from planner.memory.curves import BlockLog, Lines, block_log, final_norm
from planner.memory.fsdp import group_bytes
from planner.memory.habits import modeling, names_outputs_on
from planner.memory.layout import Unit
from planner.memory.lossscripts import LAST, Script, loss_script
from planner.memory.regime import bytes_of
from planner.memory.stretches import Stretch, block_mode
from planner.memory.timeline import INPUT_BYTES_PER_TOKEN, Timeline
from planner.training import FSDP

STEPS = 2  # the second has optimizer states from its start; later ones repeat it
MAIN, GATHER, REDUCE = 0, 1, 2  # streams


@dataclass(frozen=True, slots=True)
class LoggedLayer:
    """One layer of the stack."""

    stretch: Stretch
    log: BlockLog


class StepLog:
    """Writes the events of a few steps.

    ``lengths`` are the tokens of consecutive micro batches' longest sequences; none: all are as long as the setup says.
    """

    def __init__(self, timeline: Timeline, *, steps: int = STEPS, lengths: Sequence[int] = ()) -> None:
        self.timeline, self.step = timeline, timeline.step
        self.each = min(2, timeline.step.setup.gradient_accumulation_steps)  # micro batches that a step logs
        self.steps = math.ceil(len(lengths) / self.each) if lengths else steps
        self.events: list[Event] = []
        self.serial = 0
        self.layers = [layer for stretch in timeline.stretches for layer in [self._logged(stretch)] * stretch.number]
        setup = self.step.setup
        self.sharded = (setup.parallelism or "none") in FSDP
        self.lengths = cycle(lengths or (setup.seq_len,))
        self.root, self.layer, self.ahead = 0, 0, 1
        if self.sharded:
            self.root, self.layer = group_bytes(setup, self.step.regime, self.step.parts.units)
            self.ahead = max(1, (self.step.layout.gathered_backward - self.root) // max(self.layer, 1))
        self.held: list[int] = []  # outputs that a loop's name keeps alive
        self.pending: list[int] = []
        self.loss_at = 0  # events up to the end of the first loss

    def _logged(self, stretch: Stretch) -> LoggedLayer:
        step, layer = self.step, stretch.layer
        log = block_log(
            layer.block, layer.linears, block_mode(step, layer), model_type=modeling(step.setup, step.spec),
            hidden=step.spec.hidden, checkpointed=stretch.checkpointed, reentrant=step.regime.reentrant,
            leaf=stretch.leaf,
        )  # fmt: skip
        return LoggedLayer(stretch, log)

    # -- pieces ---------------------------------------------------------------------------------------

    def born(self, nbytes: int, stream: int = MAIN) -> int:
        """Allocate; the key to free it by."""
        self.serial += 1
        self.events.append(("alloc", self.serial, nbytes, stream))
        return self.serial

    def dead(self, *keys: int) -> None:
        """Free."""
        for key in keys:
            self.events.append(("free", key, 0, MAIN))

    def run(self) -> list[Event]:
        """The whole log."""
        self._load()
        states: list[int] = []
        for _ in range(self.steps):
            gradients = []
            for micro in range(self.each):
                gradients += self._micro_batch(next(self.lengths), accumulate=bool(micro))
            if not states:
                states = [self.born(size) for size in self._states()]
            self.dead(*[self.born(size) for size in self._temporaries()])
            self.dead(*gradients)
        return self.events

    def _load(self) -> None:
        """Weights as they lie between steps.

        A packed model that FSDP shards was on the GPU whole before, matrix by matrix: the other ranks' parts stay in
        the cache, in blocks too small for most activations.
        """
        layout, step = self.step.layout, self.step
        whole = max(sum(unit.count * unit.held_bytes for unit in step.parts.units), 1)
        packed = self.sharded and step.regime.quantized != "dense"
        left: list[int] = []
        for unit in step.parts.units:
            sizes = self._matrices(unit) if packed else [unit.held_bytes]
            for size in sizes * unit.count:
                mine = size * layout.weights // whole
                self.born(mine)
                if packed:
                    left.append(self.born(size - min(mine, size)))
        self.dead(*left)
        for size in (step.extra_weights, layout.resident_buffers, step.workspace_bytes):
            self.born(size)

    def _matrices(self, unit: Unit) -> list[int]:
        """Bytes of one unit's weights, matrix by matrix."""
        linears = {layer.name: layer.linears for layer in self.step.parts.layers}.get(unit.name, ())
        sizes = [lin.inputs * lin.outputs for lin in linears for _ in range(lin.copies)]
        total = sum(sizes)
        return [unit.held_bytes * size // total for size in sizes] or [unit.held_bytes]

    def _states(self) -> list[int]:
        return self._per_tensor(self.step.layout.optimizer, copies=2)

    def _temporaries(self) -> list[int]:
        return self._per_tensor(self.step.layout.step_temporaries, copies=1)

    def _per_tensor(self, total: int, *, copies: int) -> list[int]:
        """``total`` bytes over the trained tensors in proportion, ``copies`` of each in turn."""
        tensors = [
            t.elements for t in (*self.step.parts.tensors, *self.step.parts.whole_tensors) for _ in range(t.copies)
        ]
        whole = sum(tensors)
        if not whole or not total:
            return []
        return [total * elements // whole // copies for elements in tensors for _ in range(copies)]

    # -- one micro batch ------------------------------------------------------------------------------

    def _micro_batch(self, length: int, *, accumulate: bool) -> list[int]:
        """Forward, loss and backward; returns the gradients that stay."""
        step = self.step
        sequences = step.setup.micro_batch_size * step.setup.sequences_per_sample
        self.tokens, self.squares = sequences * length, sequences * length * length
        inputs = self.born(INPUT_BYTES_PER_TOKEN * self.tokens)
        root = self.born(self.root, GATHER)
        hidden = self.born(bytes_of(step.regime.embedding) * step.spec.hidden * self.tokens)
        holds: dict[int, int] = {hidden: 1}
        kept: list[dict[int, int]] = []
        casts: list[int] = []
        named: list[int] = []
        for layer in self.layers:
            names = {layer.log.input: hidden}
            unsharded = self._gather()
            self._play(layer.log.forward, names, holds)
            self._scatter(unsharded)
            hidden = names[layer.log.output]
            holds[hidden] = 2 if layer.log.output_saved else 1
            casts += [names[number] for number in layer.log.casts]
            kept.append(names)
            named += [self.born(size) for size in self.timeline.named(layer.stretch)]
        gradients, incoming = self._head(hidden, holds, casts + named)
        lingering: list[int] = []
        ahead: list[int] = []
        for left, layer, names in zip(reversed(range(len(kept))), reversed(self.layers), reversed(kept), strict=True):
            names[layer.log.incoming] = incoming
            while self.layer and len(ahead) < min(self.ahead, left + 1):
                ahead.append(self._gather())
            if step.kept_per_layer_token:  # FSDP1 holds a finished layer's input and its gradient, see sharding.py
                holds[names[layer.log.input]] = 2
                lingering.append(names[layer.log.input])
            born = self._play(layer.log.backward, names, holds)
            outgoing = layer.log.outgoing
            if outgoing is None:
                incoming = self.born(0)
            else:
                incoming = names[outgoing]
                born.discard(incoming)
                if step.kept_per_layer_token:
                    holds[incoming] = 2
                    lingering.append(incoming)
            if ahead:
                self._scatter(ahead.pop(0))
            gradients += self._reduced(layer.stretch.layer.name, sorted(born))
        self.dead(*{incoming, *lingering})
        gradients += self._embedding_gradient()
        self.dead(inputs, root)
        if not names_outputs_on(step.setup):
            self.dead(*self.held)
            self.held = []
        for key in self.pending:
            self.dead(key)
        self.pending = []
        if accumulate:
            self.dead(*gradients)
            return []
        return gradients

    def _gather(self) -> int:
        """The next unit of weights, on a stream of its own; at most two freed ones still wait for the GPU."""
        if not self.layer:
            return 0
        while len(self.pending) > 1:
            self.dead(self.pending.pop(0))
        return self.born(self.layer, GATHER)

    def _scatter(self, key: int) -> None:
        """The host lets go of a unit, whose block another stream still uses (record_stream)."""
        if key:
            self.pending.append(key)

    def _reduced(self, name: str, gradients: list[int]) -> list[int]:
        """Gradients of a finished layer: kept as they are, or joined, reduced and kept as a shard."""
        if not self.sharded:
            return gradients
        size = self.step.layout.gradients.get(name, 0)
        joined = self.born(max(0, self.step.layout.reducing - size))
        self.dead(*gradients)
        shard = [self.born(size, REDUCE)] if size else []
        self.dead(joined)
        return shard

    def _play(self, lines: Lines, names: dict[int, int], holds: dict[int, int]) -> set[int]:
        """Run a block's lines; returns what was born and did not die."""
        tokens, squares, alive = self.tokens, self.squares, set()
        for number, size in lines:
            if size is not None:
                key = names[number] = self.born(size[0] + size[1] * tokens + size[2] * squares)
                alive.add(key)
                continue
            key = names[number]
            alive.discard(key)
            left = holds.get(key, 1) - 1
            holds[key] = left
            if not left:
                self.dead(key)
        return alive

    def _head(self, hidden: int, holds: dict[int, int], casts: list[int]) -> tuple[list[int], int]:
        """Final norm, head and loss, forward and backward; gradients that stay, and the gradient for the last layer."""
        step, timeline = self.step, self.timeline
        norm_kept, norm_out = (n * self.tokens for n in final_norm(step.spec, timeline._norm_mode()))
        saved, out = self.born(norm_kept), self.born(norm_out)
        script = loss_script(step, self.tokens)
        keys = self._loss(script.forward, {})
        self.dead(*self.held)  # the last step's outputs, whose name the new ones take
        self.loss_at = self.loss_at or len(self.events)
        self.dead(*casts)
        self._loss(script.backward, keys)
        gradients = [keys.pop(name) for name in script.gradients]
        incoming = self.born(norm_out)
        if "gradient" in keys:
            self.dead(keys.pop("gradient"))
        widened = self.born(timeline.stream_each * self.tokens)
        self.held = [keys.pop(name) for name in (LAST,) if name in keys]
        self.dead(incoming, saved, out, *keys.values())
        holds[hidden] -= 1
        if not holds[hidden]:
            self.dead(hidden)
        return gradients, widened

    def _loss(self, lines: Script, keys: dict[str, int]) -> dict[str, int]:
        for name, size in lines:
            if size is not None:
                keys[name] = self.born(size)
            else:
                self.dead(keys.pop(name))
        return keys

    def _embedding_gradient(self) -> list[int]:
        step = self.step
        size = step.layout.gradients.get("embedding", 0)
        return [self.born(size)] if size else []
