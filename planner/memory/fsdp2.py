"""FSDP2 (fully_shard) as accelerate and torchtitan set it up: groups of parameters, gathered and reduced one by one.

Source: torch/distributed/fsdp/_fully_shard (2.13), accelerate 1.11 to 1.15 (utils/fsdp_utils.py fsdp2_prepare_model);
traced with torch's own code (planner.trace.sharded). A group is gathered into a buffer (``out``) and copied out of it
(``whole``); the buffer lives until the next group's copy. A group's gradients are copied into a reduce buffer, which
lives until the next group's; its shard is made in the reduce dtype and cast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.memory.layout import Unit
from planner.memory.regime import Regime, version_of
from planner.memory.shares import share
from planner.training import DTYPE_BYTES, TrainingSetup

REDUCES_IN_FP32 = frozenset({"torchtitan"})  # its MixedPrecisionPolicy; accelerate reduces in the compute dtype
WRAPS_OUTER_APART = frozenset({"torchtitan"})  # its parallelize_llama: the embedding alone, the norm with the head


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Parameters gathered together, in bytes unless named otherwise.

    ``whole`` gathered, ``gradients`` unsharded, ``reduced`` the same in the reduce dtype, ``made`` the shard as it
    comes out of the reduction and as it is kept, ``last`` the gradient that torch's loop over the group names last:
    it outlives the others until the reduction is done.
    """

    whole: int = 0
    gradients: int = 0
    reduced: int = 0
    made: int = 0
    last: int = 0

    @property
    def reducing(self) -> int:
        """The reduction at its worst: the buffer beside all gradients, or beside the new shard and the last one."""
        return self.reduced + max(self.gradients, self.made + self.last)


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """Root (or tail) and embedding, and the largest layer.

    ``tail``: the norm and the head (with a tied embedding) are a group below the root, which the loss's backward does
    not ask for; ``apart``: the embedding is one too.
    """

    root: Group
    embedding: Group
    layer: Group
    tail: bool
    apart: bool

    @property
    def start(self) -> int:
        """Before the first layer runs: the first group's buffer beside it, then the layer's."""
        first = self.embedding if self.apart else self.root
        kept = 0 if self.apart else self.root.whole
        return max(2 * first.whole, first.whole + kept + 2 * self.layer.whole, kept + 3 * self.layer.whole)

    @property
    def forward(self) -> int:
        """While a layer runs: it and its buffer."""
        return (0 if self.apart else self.root.whole) + 2 * self.layer.whole

    @property
    def loss(self) -> int:
        """While logits and loss are made: the last buffer is still there, here the tail's own, there a layer's."""
        return 2 * self.root.whole if self.apart else self.root.whole + self.layer.whole

    @property
    def loss_backward(self) -> int:
        """The root's hook runs before the loss's backward and asks for the last layer; a tail waits for its own."""
        return self.root.whole if self.tail else self.root.whole + self.layer.whole

    @property
    def head(self) -> int:
        """While the head's backward runs: the last layer is on its way."""
        return self.root.whole + self.layer.whole

    @property
    def tail_reduced(self) -> int:
        """A tail's gradients are reduced before the layers' backward, a root's after it."""
        return self.root.reducing + self.layer.whole if self.apart else 0

    @property
    def backward(self) -> int:
        """While a layer's backward runs: it and the buffer of the next one."""
        return (0 if self.apart else self.root.whole) + 2 * self.layer.whole

    @property
    def backward_last(self) -> int:
        """The lowest layer's: the embedding is next, or nothing."""
        return self.layer.whole + (self.embedding.whole if self.apart else self.root.whole)

    @property
    def reducing_first(self) -> int:
        """The uppermost layer's backward beside a tail's reduce buffer."""
        return self.root.reduced if self.apart else 0

    def end(self, held: int) -> int:
        """After the layers, beyond ``held`` bytes of gradients that are counted elsewhere."""
        last = self.embedding if self.apart else self.root
        gathering = 2 * last.whole - last.gradients if self.apart else 0
        moments = (gathering + self.layer.reduced, last.whole + self.layer.reduced, last.reducing - held)
        return max(0, *moments)


def groups_of(setup: TrainingSetup, units: Sequence[Unit], whole: dict[str, int], regime: Regime, ranks: int) -> Groups:
    """The groups of a model; ``whole``: gathered bytes of one unit by its name."""
    held = DTYPE_BYTES[regime.gradient]
    compute = min(held, DTYPE_BYTES[regime.compute])
    reduce = 4 if setup.engine in REDUCES_IN_FP32 else compute

    def group(members: Sequence[Unit]) -> Group:
        trained = sum(unit.count * unit.trained for unit in members)
        made = reduce + (held if held != reduce else 0)
        return Group(
            whole=sum(unit.count * whole[unit.name] for unit in members),
            gradients=trained * compute,
            reduced=trained * reduce,
            made=share(trained * made, ranks),
            last=members[-1].largest_trained * compute if members and members[-1].is_root else 0,
        )

    roots = [unit for unit in units if unit.is_root]
    layers = [group([_one(unit)]) for unit in units if not unit.is_root]
    tail, tied = has_tail(setup), is_tied(roots)
    apart = tail and not tied
    return Groups(
        root=group([unit for unit in roots if unit.name != "embedding"] if apart else roots),
        embedding=group([unit for unit in roots if unit.name == "embedding"]),
        layer=max(layers, key=lambda each: (each.whole, each.reduced), default=Group()),
        tail=tail,
        apart=apart,
    )


def has_tail(setup: TrainingSetup) -> bool:
    """Whether embedding and tail are cut off the root: torchtitan does it, and accelerate from 1.14 on."""
    return setup.engine in WRAPS_OUTER_APART or version_of(setup, "accelerate") >= (1, 14)


def is_tied(roots: Sequence[Unit]) -> bool:
    """Whether the head has no weight of its own: a tied pair is gathered with the norm, for the whole step."""
    return not any(unit.frozen + unit.trained > unit.small_elements for unit in roots if unit.name == "head")


def _one(unit: Unit) -> Unit:
    return replace(unit, count=1)
