"""How a run ended: out of memory, with the figures of the allocator's message, or an error of another kind.

The sentence is that of c10/cuda/CUDACachingAllocator.cpp; its parts come and go with versions and settings, so each
figure is looked for by itself, and one that is not there is None.
"""

from __future__ import annotations

import re
from typing import Any

# Words of CUDA, cuBLAS and cuDNN for memory that is gone, where they do not come as torch.OutOfMemoryError.
OTHER_WORDS = ("CUDA out of memory", "CUDA error: out of memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation")
_SIZE = r"([\d.]+) (bytes|KiB|MiB|GiB)"
_FIGURES = {
    "tried_bytes": rf"Tried to allocate {_SIZE}",
    "total_bytes": rf"total capacity of {_SIZE}",
    "free_bytes": rf"of which {_SIZE} is free",
    "in_use_bytes": rf"process has {_SIZE} memory in use",
    "allowed_bytes": rf"{_SIZE} allowed",
    "allocated_bytes": rf"allocated memory {_SIZE} is allocated by PyTorch",
    "unallocated_bytes": rf"{_SIZE} is reserved by PyTorch but unallocated",
}
_SCALE = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch.OutOfMemoryError and for a RuntimeError that says the same of the card."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OTHER_WORDS)


def figures(message: str) -> dict[str, int | None]:
    """Bytes by what they are, as far as the message states them (rounded there to two digits)."""
    found = {name: re.search(pattern, message) for name, pattern in _FIGURES.items()}
    return {name: None if one is None else round(float(one[1]) * _SCALE[one[2]]) for name, one in found.items()}


def ending(error: BaseException, phase: str | None) -> dict[str, Any]:
    """The part of a row that says how a run failed, and in which phase."""
    message = str(error).strip() or type(error).__name__
    if not is_out_of_memory(error):
        return {"outcome": "error", "phase": phase, "message": f"{type(error).__name__}: {message}"[:2000]}
    return {"outcome": "out_of_memory", "phase": phase, "message": message[:2000], "out_of_memory": figures(message)}
