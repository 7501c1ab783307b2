"""Reserved memory from the caching allocator's own rules: a step's log, replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.memory.allocator import replay
from planner.memory.overhead import rules
from planner.memory.steplog import StepLog
from planner.memory.timeline import Timeline
from planner.units import MIB

# A log whose own live peak is further than this from the timeline's describes another run (selective checkpointing,
# pipelines, evaluation at the peak): then the formula's figure stands.
AGREES_WITHIN = 0.05
REPLAYED = frozenset({"none", "ddp", "fsdp", "fsdp2"})  # DeepSpeed's own buffers are not logged


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """What the allocator reserved for a log, in bytes: at its peak, and by the end of the first loss.

    ``logits_bytes`` is one fp32 copy of the logits where an in-place kernel computes the loss, else 0; ``sharded``:
    units were gathered.
    """

    peak_bytes: int
    at_loss_bytes: int
    logits_bytes: int
    sharded: bool

    def bytes(self, *, loss_fused: float, sharded_mib: int) -> int:
        """With the two fitted figures of rules/overheads.toml: what in-place loss kernels strand, what FSDP adds."""
        reserved = max(self.peak_bytes, self.at_loss_bytes + int(loss_fused * self.logits_bytes))
        return reserved + (sharded_mib * MIB if self.sharded else 0)


def reservation(timeline: Timeline, allocated_bytes: int, lengths: Sequence[int] = ()) -> Reservation | None:
    """The allocator's peak with unlimited memory; None where the log does not describe the run.

    ``lengths``: see ``StepLog``. Each length asks for blocks of its own size: those of shorter batches are too small
    for the next longer one's, and stay in the cache.
    """
    step = timeline.step
    if (step.setup.parallelism or "none") not in REPLAYED:
        return None
    log = StepLog(timeline, lengths=lengths)
    events = log.run()
    answer = replay(events)
    if abs(answer.requested_peak_bytes / allocated_bytes - 1) > AGREES_WITHIN:
        return None
    fused = step.regime.loss == "fused"
    return Reservation(
        peak_bytes=max(answer.reserved_peak_bytes, allocated_bytes),
        at_loss_bytes=replay(events[: log.loss_at]).reserved_peak_bytes if fused else 0,
        logits_bytes=4 * step.spec.vocab * timeline.tokens if fused else 0,
        sharded=log.sharded,
    )


def replayed_bytes(timeline: Timeline, allocated_bytes: int, lengths: Sequence[int] = ()) -> int | None:
    """Reserved bytes of a run; None where its log cannot be written."""
    found = reservation(timeline, allocated_bytes, lengths)
    return None if found is None else found.bytes(**rules()["replay"])
