"""MIG slices: a card and a profile, ``A100-80GB:3g.40gb``, as a card of their own.

A slice has its own memory and a part of the card's multiprocessors and memory channels, eighths of which go with an
eighth of the memory (NVIDIA MIG user guide, partitioning). Slices have no peer-to-peer and no NVLink.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from planner.errors import InputError, nearest
from planner.hardware.catalogue import find_gpu, knows, name_for_flags, slices
from planner.hardware.identify import profile_of
from planner.hardware.machine import GpuKind
from planner.units import GIB

MARK = ":"


def names_slice(text: str) -> bool:
    """True for ``CARD:PROFILE`` with a card that is known."""
    card, mark, _ = text.partition(MARK)
    return bool(mark) and knows(card.strip())


def find_slice(text: str, *, place: str = "--gpus") -> GpuKind:
    """The slice that ``CARD:PROFILE`` names.

    Raises InputError for a card that is not known, and for a profile whose size is not known here.
    """
    card, _, profile = (part.strip() for part in text.partition(MARK))
    whole = find_gpu(card, place=place)
    known = _profiles(whole.id)
    row = known.get(profile.lower())
    if row is not None:
        return _cut(whole, row)
    if not known:
        raise InputError(
            f"{place} {text!r}: no MIG slice of {whole.name} is known here; write its size, such as 1x40GB"
        )
    close = nearest(profile, list(known), limit=3) or list(known)
    raise InputError(
        f"{place} {text!r}: {card} has no slice {profile!r} that is known here; write {' or '.join(close)}"
    )


def slice_named(name: str, whole: GpuKind | None) -> GpuKind | None:
    """The slice that a driver calls ``NVIDIA A100-SXM4-80GB MIG 3g.40gb``; None for one that is not known."""
    row = _profiles(whole.id).get(profile_of(name) or "") if whole is not None else None
    return _cut(whole, row) if row is not None and whole is not None else None


def slice_for_flags(identifier: str) -> str:
    """``A100-80GB:3g.40gb`` of a slice's id."""
    card, _, profile = identifier.partition(MARK)
    return f"{name_for_flags(card)}{MARK}{profile}"


@cache
def _profiles(card: str) -> dict[str, dict[str, Any]]:
    """Profile to its row, with the card's own multiprocessors as ``of``."""
    return {
        each["name"]: each | {"of": group["sms"]}
        for group in slices()
        if card in group["cards"]
        for each in group["profiles"]
    }


def _cut(whole: GpuKind, row: dict[str, Any]) -> GpuKind:
    size, part = int(row["gib"] * GIB), row["sms"] / row["of"]
    eighths = max(1, round(8 * size / whole.memory_bytes)) / 8
    speed = whole.bandwidth_bytes_per_s
    return replace(
        whole,
        id=f"{whole.id}{MARK}{row['name']}",
        name=f"{whole.name} MIG {row['name']}",
        memory_bytes=size,
        memory_reported=True,
        nominal_bytes=size,
        cuda_bytes=size,  # profiles are cut from what CUDA offers: 7g.80gb is 79.00 of 79.15 GiB
        dense_tflops={dtype: rate * part for dtype, rate in whole.dense_tflops.items()},
        bandwidth_bytes_per_s=None if speed is None else speed * eighths,
        nvlink_bytes_per_s=None,
        note="its speed is taken to be its part of the card's multiprocessors and memory channels; "
        "CUDA_VISIBLE_DEVICES takes its UUID (nvidia-smi -L)",
    )
