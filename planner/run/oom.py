"""torch's message about CUDA memory -> its figures. Pure.

The forms since torch 2.1 ("of which ... is free. Process N has ...") and before ("already allocated; ... free") are
both read; an amount that a form does not state is None. Sources: c10/cuda/CUDACachingAllocator.cpp, and messages
published in issues.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from planner.units import GIB, MIB

_AMOUNT = r"([\d.]+) (bytes|KiB|MiB|GiB|TiB)"
_SCALE = {"bytes": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40}
_OOM = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CU[A-Z]+_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation"
    r"|HIP out of memory|NPU out of memory|Cuda failure (?:2 )?'out of memory'|torch\.(?:cuda\.)?OutOfMemoryError"
)
_RANK = re.compile(r"\[(?:default\d+:)?rank(\d+)\]")
_FIELDS = {
    "requested_bytes": (rf"Tried to allocate {_AMOUNT}",),
    "total_bytes": (rf"total capac(?:i)?ty of {_AMOUNT}", rf"{_AMOUNT} total capacity"),
    "free_bytes": (rf"of which {_AMOUNT} is free", rf"already allocated; {_AMOUNT} free"),
    "own_bytes": (rf"this process has {_AMOUNT} memory in use",),
    "allowed_bytes": (rf"{_AMOUNT} allowed",),
    "allocated_bytes": (rf"{_AMOUNT} is allocated by PyTorch", rf"{_AMOUNT} already allocated"),
    "unallocated_bytes": (rf"{_AMOUNT} is reserved by PyTorch but unallocated",),
}
_NAMED = re.compile(rf"Process \d+ has {_AMOUNT} memory in use")
_GPU = re.compile(r"GPU (\d+)(?: has a total|;)")
# The scripts that ship with the planner say it in a line of their own.
_SAID = re.compile(r"out of memory at step \d+, (\w+), batch")
# Newest first in a traceback's words: which part of a step the frames belong to.
_PHASES = (
    ("save", r"\b(?:_save_checkpoint|save_pretrained|save_model|state_dict)\b"),
    ("eval", r"\b(?:evaluation_loop|prediction_step|evaluate|predict)\b"),
    ("optimizer", r"\boptimizer\.step|torch/optim/|\b_optimizer_step|deepspeed/runtime/zero/.*\bstep\b"),
    ("backward", r"\.backward\(|torch/autograd/__init__"),
    ("loss", r"cross_entropy|loss_utils\.py|logits\.float\(\)|ForCausalLMLoss"),
    ("load", r"from_pretrained|_load_pretrained_model|load_state_dict"),
    ("forward", r"\bforward\(|compute_loss|training_step"),
)


@dataclass(frozen=True, kw_only=True)
class Oom:
    """One CUDA out-of-memory error in bytes. ``own_bytes`` is all that the process held, context included.

    ``allowed_bytes`` is the share that set_per_process_memory_fraction left, ``named_bytes`` what the message says that
    other processes hold, by their numbers.
    """

    rank: int | None
    gpu: int | None
    phase: str | None
    requested_bytes: int | None
    total_bytes: int | None
    free_bytes: int | None
    own_bytes: int | None
    allowed_bytes: int | None
    allocated_bytes: int | None
    unallocated_bytes: int | None
    named_bytes: int = 0

    @property
    def others_bytes(self) -> int | None:
        """What other processes hold of the GPU."""
        if self.total_bytes is None or self.free_bytes is None or self.own_bytes is None:
            return None
        return max(0, self.total_bytes - self.free_bytes - self.own_bytes)

    @property
    def wanted_bytes(self) -> int | None:
        """What the process would have held with the allocation that failed: a lower bound on what the step needs."""
        held = self.own_bytes if self.own_bytes is not None else self.allocated_bytes
        return None if held is None or self.requested_bytes is None else held + self.requested_bytes

    @property
    def missing_bytes(self) -> int | None:
        """How much more free memory that allocation would have taken."""
        if self.requested_bytes is None or self.free_bytes is None:
            return None
        return max(0, self.requested_bytes - self.free_bytes)


def find_oom(lines: Sequence[str]) -> Oom | None:
    """The first such error of a log: later ones are of other ranks, or of what followed. None where there is none."""
    where = next((number for number, line in enumerate(lines) if _OOM.search(line) and not _is_quoted(line)), None)
    if where is None:
        return None
    stated = next((line for line in lines[where : where + 4] if "Tried to allocate" in line), lines[where])
    amounts = {name: _amount(stated, forms) for name, forms in _FIELDS.items()}
    rank, gpu = _RANK.search(stated), _GPU.search(stated)
    return Oom(
        rank=int(rank[1]) if rank else None,
        gpu=int(gpu[1]) if gpu else None,
        phase=_phase([*lines[:where], stated], rank[0] if rank else None),
        named_bytes=sum(int(float(size) * _SCALE[unit]) for size, unit in _NAMED.findall(stated)),
        **amounts,
    )


def _is_quoted(line: str) -> bool:
    """A frame of a traceback that shows source code with these words, or a handler that names the class."""
    return bool(re.search(r"\b(except|raise|isinstance|import)\b", line))


def _amount(text: str, forms: Sequence[str]) -> int | None:
    for form in forms:
        found = re.search(form, text)
        if found:
            return round(float(found[1]) * _SCALE[found[2]])
    return None


def _phase(before: Sequence[str], rank: str | None) -> str | None:
    """The part of a step that the traceback above the error was in; None where it does not say."""
    said = next((found for line in before[-120:] if (found := _SAID.search(line))), None)
    if said:
        return said[1]
    frames = [line for line in before[-120:] if rank is None or rank in line]
    start = next((n for n in range(len(frames) - 1, -1, -1) if "Traceback (most recent call last)" in frames[n]), None)
    text = "\n".join(frames[start:]) if start is not None else ""
    return next((name for name, pattern in _PHASES if re.search(pattern, text)), None)
