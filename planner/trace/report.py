"""A ledger -> what is said about it: peaks by phase, parts, the largest tensors, and the log for the allocator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from planner.memory.result import PARTS, Breakdown, Phase
from planner.trace.job import Job
from planner.trace.ledger import Birth, Event, Ledger, rounded

LAST = 1  # the second step: optimizer states exist from its start
TOP = 10
# The contract's phases. Clipping reads gradients after backward and belongs to the step, as zeroing does.
PHASES: dict[str, Phase] = {
    "load": "load", "forward": "forward", "loss": "loss", "backward": "backward",
    "clip": "optimizer", "optimizer": "optimizer", "zero": "optimizer", "eval": "eval",
}  # fmt: skip
BLOCK = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)(?:\.| |$)")
VIEWS = {"view", "t", "transpose", "expand", "unsqueeze", "squeeze", "slice", "detach", "alias"}
VIEWS |= {"_unsafe_view", "permute", "select", "split", "unbind"}
RESIDENT = {"parameter", "buffer", "quantization scales"}


@dataclass(frozen=True, kw_only=True)
class TracedTensor:
    """One storage at the peak: where it was made, by which operation, in which phase."""

    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    op: str
    where: str
    phase: str
    part: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"bytes": self.nbytes, **{k: v for k, v in self.__dict__.items() if k != "nbytes"}}


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What a trace says: allocated bytes of one GPU, each request rounded up to 512, cuBLAS workspaces included.

    ``phases``: the largest moment of each phase over both steps, by part; ``breakdown`` that of the peak.
    """

    allocated_bytes: int
    peak_phase: Phase
    breakdown: Breakdown
    phases: dict[str, Breakdown]
    tensors: tuple[TracedTensor, ...]
    parameters: int
    trainable_parameters: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, in the words of an estimate."""
        return {
            "allocated_bytes": self.allocated_bytes,
            "peak_phase": self.peak_phase,
            "breakdown": self.breakdown.to_dict(),
            "phases": {phase: parts.to_dict() for phase, parts in self.phases.items()},
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "total_parameters": self.parameters,
            "trainable_parameters": self.trainable_parameters,
        }


def traced(ledger: Ledger, model: Any, job: Job) -> Traced:
    """The result of one traced job."""
    best: dict[Phase, tuple[int, int]] = {}
    for index, event, live in ledger.curve(round_up=True):
        phase = PHASES[event.phase.partition(" ")[0]]
        workspace = 0 if phase == "load" else job.workspace_bytes
        if live + workspace > best.get(phase, (-1, 0))[0]:
            best[phase] = (live + workspace, index)
    parts = _Parts(ledger, job)
    phases = {phase: parts.at(best[phase][1]) for phase in dict.fromkeys(PHASES.values()) if phase in best}
    peak = max(best, key=lambda phase: best[phase][0])
    return Traced(
        allocated_bytes=best[peak][0],
        peak_phase=peak,
        breakdown=phases[peak],
        phases={str(phase): at for phase, at in phases.items()},
        tensors=tuple(parts.tensors(best[peak][1])),
        parameters=sum(p.numel() for p in model.parameters()),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


class _Parts:
    """Says which part of the contract's breakdown a storage belongs to."""

    def __init__(self, ledger: Ledger, job: Job) -> None:
        self.ledger, self.job = ledger, job
        self.died = {event.number: event.phase for event in ledger.events if event.kind == "death"}

    def at(self, index: int) -> Breakdown:
        """The parts of one moment; cuBLAS workspaces are temporaries."""
        sizes = dict.fromkeys(PARTS, 0)
        for birth in self.ledger.live_at(index):
            sizes[self.of(birth)] += rounded(birth.nbytes)
        event = self.ledger.events[index]
        sizes["temporaries"] += rounded(event.nbytes) if event.kind == "spike" else 0
        sizes["temporaries"] += self.job.workspace_bytes if event.phase != "load" else 0
        return Breakdown(**sizes)

    def of(self, birth: Birth) -> str:
        """The part of one storage."""
        kind = birth.phase.partition(" ")[0]
        if birth.op in RESIDENT:
            return "weights"
        if birth.op in ("batch", "embedded"):
            return "activations"
        if birth.op.startswith(("gradient bucket", "gathered", "c10d", "fsdp")):
            return "communication"
        if birth.number in self.ledger.gradients:
            return "gradients"
        if kind in ("optimizer", "load"):
            return "temporaries" if self.died.get(birth.number) == birth.phase else "optimizer"
        if birth.shape and self.job.vocab in birth.shape[-1:] and _rows(birth) > 1:
            return "logits"
        if kind in ("forward", "loss", "eval") or (kind == "backward" and "<" not in birth.where):
            return "activations"
        return "temporaries"

    def tensors(self, index: int) -> Iterator[TracedTensor]:
        """The largest storages of one moment."""
        for birth in self.ledger.live_at(index)[:TOP]:
            yield TracedTensor(
                nbytes=birth.nbytes, shape=birth.shape, dtype=birth.dtype, op=birth.op,
                where=birth.where, phase=birth.phase, part=self.of(birth),
            )  # fmt: skip


def _rows(birth: Birth) -> int:
    rows = 1
    for size in birth.shape[:-1]:
        rows *= size
    return rows


def log(ledger: Ledger, job: Job) -> Iterator[tuple[str, int, int, int]]:
    """The log as the allocator model reads it: (alloc or free, key, bytes, stream); a kernel's workspace is both."""
    yield "alloc", -1, job.workspace_bytes, 0
    for index, event in enumerate(ledger.events):
        if event.kind == "birth":
            yield "alloc", event.number, event.nbytes, 0
        elif event.kind == "death":
            yield "free", event.number, event.nbytes, 0
        elif event.kind == "spike":
            yield "alloc", -2 - index, event.nbytes, 0
            yield "free", -2 - index, event.nbytes, 0


# -- for developers: what single blocks keep, and a log that a person can read ---------------------------------


def blocks(ledger: Ledger, step: int = LAST) -> dict[str, Any]:
    """``block_kept_bytes``: live bytes from one block's start to the next one's, blocks 1 to the last but one.

    A block starts with its first operation of the forward pass; the log must hold operations.
    """
    starts: dict[int, int] = {}
    for _, event, live in ledger.curve():
        found = BLOCK.search(event.where) if event.kind == "op" and event.phase == f"forward {step}.0" else None
        if found:
            starts.setdefault(int(found[1]), live)
    ordered = [starts[index] for index in sorted(starts)]
    return {"block_kept_bytes": [later - earlier for earlier, later in pairwise(ordered[1:])]}


def timeline(ledger: Ledger, *, step: int = LAST) -> Iterator[str]:
    """Every operation of one step with live bytes before, and each birth and death by number."""
    for _, event, live in ledger.curve():
        number = event.phase.split()[-1].split(".")[0]
        if number == str(step) and (event.kind != "op" or event.text.split("(")[0].split(".")[0] not in VIEWS):
            yield _timeline_line(ledger, event, live)


def _timeline_line(ledger: Ledger, event: Event, live: int) -> str:
    if event.kind == "op":
        return f"{live:>16,}  {event.text}  @{event.where}"
    if event.kind == "mark":
        return f"{live:>16,}  == {event.text}"
    if event.kind == "spike":
        return f"{live:>16,}      ^ {event.nbytes:,} {event.text}"
    birth = ledger.births[event.number]
    sign = "+" if event.kind == "birth" else "-"
    what = f"{birth.dtype}{list(birth.shape)} {birth.op} @{birth.where}"
    return f"{live:>16,}      {sign} #{birth.number} {birth.nbytes:,} {what}"
