"""Endings: the allocator's own sentence, and what else means that memory is gone."""

from __future__ import annotations

from bench.outcome import ending, figures, is_out_of_memory

MIB, GIB = 2**20, 2**30
CAPPED = (
    "CUDA out of memory. Tried to allocate 250.00 MiB. GPU 0 has a total capacity of 79.19 GiB of which 2.07 GiB is "
    "free. Including non-PyTorch memory, this process has 77.11 GiB memory in use. 75.23 GiB allowed; Of the allocated "
    "memory 74.23 GiB is allocated by PyTorch, and 943.54 MiB is reserved by PyTorch but unallocated. If reserved but "
    "unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


class OutOfMemoryError(RuntimeError):
    """torch's class by name: torch is not imported here."""


def test_the_allocators_sentence_is_read() -> None:
    assert figures(CAPPED) == {
        "tried_bytes": 250 * MIB, "total_bytes": round(79.19 * GIB), "free_bytes": round(2.07 * GIB),
        "in_use_bytes": round(77.11 * GIB), "allowed_bytes": round(75.23 * GIB),
        "allocated_bytes": round(74.23 * GIB), "unallocated_bytes": round(943.54 * MIB),
    }  # fmt: skip


def test_figures_that_are_not_stated_are_none() -> None:
    without = CAPPED.replace("75.23 GiB allowed; ", "").replace("2.07 GiB is free", "0 bytes is free")
    found = figures(without)
    assert (found["allowed_bytes"], found["free_bytes"]) == (None, 0)
    assert set(figures("something else").values()) == {None}


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(OutOfMemoryError(CAPPED))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("CUDA out of memory"))


def test_an_ending_says_where_and_why() -> None:
    out = ending(OutOfMemoryError(CAPPED), "loss")
    assert (out["outcome"], out["phase"]) == ("out_of_memory", "loss")
    assert out["out_of_memory"]["allowed_bytes"] == round(75.23 * GIB)
    other = ending(ValueError(""), None)
    assert (other["outcome"], other["message"]) == ("error", "ValueError: ValueError")
