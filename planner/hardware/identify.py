"""What the driver says (name, total bytes) -> catalogue row, or an honest None."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from planner.hardware.catalogue import Row, kind, rows, socs
from planner.hardware.machine import GpuKind
from planner.units import GIB

# A total lies a little under the nominal size: 1/16 goes to inline ECC (T4, A10, L40S: 0.937), up to 3 % to the
# driver itself (older releases). Sizes under one name differ by 1.2 and more (10, 12, 20 GB), so the bands never touch.
LOWEST_SHARE = 0.90
HIGHEST_SHARE = 1.03
# Firmware carves its part out of memory that a GPU shares with the host before the system counts it: 6.3 to 7.4 of 8 GB
# (github.com/cranky-cyborg/Jetson-Flash-Manager issue 1), 14.1 of 16 GB. Sizes under one name double.
LEAST_OF_SHARED = 0.75

_MIG = re.compile(r"\s+MIG\s+(?P<profile>\d+g\.\d+gb).*$", re.IGNORECASE)


def identify(name: str, total_bytes: int | None) -> GpuKind | None:
    """The catalogue row of a driver's whole name and total memory; None if either does not match one.

    Names are compared whole, with any case and with or without the leading ``NVIDIA``, which drivers
    before 465 leave out. Without a total, a name that only one row has still identifies.
    """
    candidates = _by_name().get(_whole_name(name), ())
    if total_bytes is None:
        return kind(candidates[0]) if len(candidates) == 1 else None
    shares = [(abs(1 - _share(row, total_bytes)), row) for row in candidates if _matches(row, total_bytes)]
    return kind(min(shares, key=lambda pair: pair[0])[1]) if shares else None


def identify_shared(name: str, host_bytes: int | None) -> GpuKind | None:
    """The row of a GPU without memory of its own, by the driver's whole name and the host's total."""
    rows = [row for row in _by_name().get(_whole_name(name), ()) if row.get("unified")]
    return _nearest_size(rows, host_bytes)


def name_of_chip(compatible: Sequence[str]) -> str | None:
    """What drivers call the GPU of a system on a chip, by its device tree's words for it; None for others."""
    return next((str(row["names"][0]) for row in rows() if set(socs(row)) & set(compatible)), None)


def _nearest_size(found: Sequence[Row], host_bytes: int | None) -> GpuKind | None:
    if host_bytes is None:
        return kind(found[0]) if len(found) == 1 else None
    shares = [(abs(1 - _share(row, host_bytes)), row) for row in found]
    fitting = [(gap, row) for gap, row in shares if LEAST_OF_SHARED <= _share(row, host_bytes) <= HIGHEST_SHARE]
    return kind(min(fitting, key=lambda pair: pair[0])[1]) if fitting else None


def without_slice(name: str) -> str:
    """A MIG slice's name without its profile: the card it is cut from."""
    return _MIG.sub("", name)


def profile_of(name: str) -> str | None:
    """``3g.40gb``: the profile of a MIG slice's name."""
    found = _MIG.search(name)
    return found["profile"].lower() if found else None


def _share(row: Row, total_bytes: int) -> float:
    return total_bytes / float(row["memory"]["gib"] * GIB)


def _matches(row: Row, total_bytes: int) -> bool:
    return LOWEST_SHARE <= _share(row, total_bytes) <= HIGHEST_SHARE


def _whole_name(name: str) -> str:
    return " ".join(name.split()).casefold().removeprefix("nvidia ")


@cache
def _by_name() -> dict[str, tuple[Row, ...]]:
    found: dict[str, list[Row]] = {}
    for row in rows():
        for name in dict.fromkeys(_whole_name(name) for name in row["names"]):
            found.setdefault(name, []).append(row)
    return {name: tuple(kept) for name, kept in found.items()}
