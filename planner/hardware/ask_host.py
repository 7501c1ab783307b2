"""Ask the host (an edge): memory, cores, disk, what a container may use of them, and installed packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Answer = dict[str, Any]

PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "trl", "deepspeed", "bitsandbytes", "liger-kernel", "flash-attn",
    "llamafactory", "unsloth",
)  # fmt: skip

# Control groups version 1 write "no limit" as the largest page-aligned number, about 2**63.
NO_LIMIT_BYTES = 1 << 60


def ask_host(folder: Path | None = None, *, root: Path = Path("/")) -> Answer:
    """Host memory, cores and the free disk under ``folder``, with the limits of control groups beside them."""
    import psutil

    memory = psutil.virtual_memory()
    return {
        "ram_total_bytes": memory.total,
        "ram_available_bytes": memory.available,
        "cpu_affinity": _affinity(),
        "disk_free_bytes": _disk_free_bytes(folder or Path.cwd()),
        "cgroup": ask_cgroup(root),
        "compatible": ask_chip(root),
    }


def ask_chip(root: Path = Path("/")) -> list[str]:
    """What the device tree calls the board and its chip, most particular first; nothing where there is no such tree."""
    text = _read(root / "proc/device-tree/compatible") or ""
    return [word for word in text.split("\0") if word]


def ask_cgroup(root: Path = Path("/")) -> Answer:
    """Memory limits, headroom and CPU quota of this process's control groups, the tightest level of each.

    Both versions are read; a level without limit, and a file that is not there, count as no limit (None).
    """
    memory = [_memory_level(folder) for folder in _levels(root, "memory")]
    quotas = [quota for folder in _levels(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    limits = [limit for limit, _ in memory if limit is not None]
    rooms = [room for _, room in memory if room is not None]
    return {
        "memory_limit_bytes": min(limits, default=None),
        "memory_room_bytes": min(rooms, default=None),
        "cpu_quota": min(quotas, default=None),
    }


def ask_software() -> dict[str, str]:
    """Installed versions of the packages that decide what a training run holds; nothing is imported."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _affinity() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _disk_free_bytes(folder: Path) -> int | None:
    """Of the file system that holds the folder, or will once it exists."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return None


def _levels(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups for one controller, from its own up to the top."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            yield from _upwards(root / "sys/fs/cgroup", path)
        elif controller in controllers.split(","):
            yield from _upwards(root / "sys/fs/cgroup" / controller, path)


def _upwards(top: Path, path: str) -> Iterator[Path]:
    """``top/a/b``, ``top/a``, ``top``. A container sees its own group at the top whatever path it is told."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield top.joinpath(*parts[:depth])


def _memory_level(folder: Path) -> tuple[int | None, int | None]:
    limit = _first_number(folder, "memory.max", "memory.limit_in_bytes")
    if limit is None or limit >= NO_LIMIT_BYTES:
        return None, None
    used = _first_number(folder, "memory.current", "memory.usage_in_bytes")
    if used is None:
        return limit, None
    return limit, max(0, limit - used + _reclaimable_bytes(folder))


def _reclaimable_bytes(folder: Path) -> int:
    """Page cache counts as used and is given back under pressure: total_inactive_file where it is told."""
    stat = dict(line.split(" ", 1) for line in (_read(folder / "memory.stat") or "").splitlines() if " " in line)
    text = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
    return int(text) if text.isdigit() else 0


def _cpu_quota(folder: Path) -> float | None:
    """Cores that the group may use at a time."""
    words = (_read(folder / "cpu.max") or "").split()
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        return int(words[0]) / int(words[1])
    quota, period = _first_number(folder, "cpu.cfs_quota_us"), _first_number(folder, "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _first_number(folder: Path, *names: str) -> int | None:
    for name in names:
        text = (_read(folder / name) or "").strip()
        if text.isdigit():
            return int(text)
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
