"""How a run ended: out of memory, with the figures of the allocator's message, or an error of another kind."""

from __future__ import annotations

from typing import Any

from planner.run.oom import find_oom

# A row's name of a figure -> the planner's.
_FIGURES = {
    "tried_bytes": "requested_bytes",
    "total_bytes": "total_bytes",
    "free_bytes": "free_bytes",
    "in_use_bytes": "own_bytes",
    "allowed_bytes": "allowed_bytes",
    "allocated_bytes": "allocated_bytes",
    "unallocated_bytes": "unallocated_bytes",
}


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch.OutOfMemoryError and for a RuntimeError that says the same of the card."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and find_oom(str(error).splitlines()) is not None


def figures(message: str) -> dict[str, int | None]:
    """Bytes by what they are, as far as the message states them (rounded there to two digits)."""
    found = find_oom(message.splitlines())
    return {name: getattr(found, ours, None) for name, ours in _FIGURES.items()}


def ending(error: BaseException, phase: str | None) -> dict[str, Any]:
    """The part of a row that says how a run failed, and in which phase."""
    message = str(error).strip() or type(error).__name__
    if not is_out_of_memory(error):
        return {"outcome": "error", "phase": phase, "message": f"{type(error).__name__}: {message}"[:2000]}
    return {"outcome": "out_of_memory", "phase": phase, "message": message[:2000], "out_of_memory": figures(message)}
