"""Bytes in, readable GiB out: the only place that divides by 1024."""

from __future__ import annotations

import re

from planner.errors import InputError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(gib|gb|g|mib|mb|m|tib|tb|t)?\s*$", re.IGNORECASE)
_SCALE = {"g": GIB, "m": MIB, "t": 1 << 40}


def parse_size_bytes(text: str, *, place: str) -> int:
    """Bytes of a nominal size such as ``20GB`` (N x 2**30, the contract's reading of GB).

    ``place`` names the flag for the error message. Raises InputError for anything that is
    not a positive number with an optional unit.
    """
    found = _SIZE.match(text)
    if not found or float(found[1]) <= 0:
        raise InputError(f"{place} {text!r} is not a size: write a positive number with a unit, such as 20GB")
    unit = (found[2] or "g")[0].lower()
    return int(float(found[1]) * _SCALE[unit])


def gib(size_bytes: int | float) -> float:
    """Size in GiB (2**30 bytes)."""
    return size_bytes / GIB


def show_gib(size_bytes: int | float, *, digits: int = 1) -> str:
    """``'18.4 GiB'``; small sizes in MiB so that nothing shows as 0.0 GiB."""
    if 0 < abs(size_bytes) < GIB / 10:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / GIB:.{digits}f} GiB"


def show_count(count: int) -> str:
    """``'7.62 B'``, ``'41.9 M'``: parameter counts for people."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return str(count)
