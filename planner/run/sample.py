"""EDGE: memory of GPUs and host while a run goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from planner.hardware.ask_host import ask_cgroup
from planner.run.records import GpuUse, HostUse, ProcessMark

Reading = Mapping[str, Any]
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class GpuSampler:
    """The most that each GPU of the run held, from readings of the driver."""

    def __init__(self, read: Callable[[], Sequence[Reading]], capacities: Mapping[int, int]) -> None:
        self._read = read
        self._capacities = capacities
        self._before = {int(each["index"]): each.get("used_bytes") for each in self._safely()}
        self._peak: dict[int, int] = {}

    def forget_peaks(self) -> None:
        """Begin anew: from here on another setup runs."""
        self._peak.clear()

    def _safely(self) -> Sequence[Reading]:
        with suppress(Exception):  # a driver that goes away must not take the training along
            return self._read()
        return ()

    def now(self) -> tuple[GpuUse, ...]:
        """Every GPU with what it holds now; nothing where the driver does not answer."""
        return tuple(self._use(each) for each in self._safely())

    def _use(self, reading: Reading) -> GpuUse:
        index, used = int(reading["index"]), reading.get("used_bytes")
        if used is not None:
            self._peak[index] = max(self._peak.get(index, 0), used)
        return GpuUse(
            index=index,
            name=reading.get("name"),
            now_bytes=used,
            peak_bytes=self._peak.get(index),
            before_bytes=self._before.get(index),
            capacity_bytes=self._capacities.get(index) or reading.get("total_bytes"),
        )


class HostSampler:
    """Resident memory of the run's processes, and the limit that they share."""

    def __init__(self) -> None:
        self._peak = 0
        memory = psutil.virtual_memory()
        limits = [memory.total, ask_cgroup().get("memory_limit_bytes")]
        self._limit = min(limit for limit in limits if limit)

    def now(self, processes: Iterable[ProcessMark]) -> HostUse:
        """Their sum now, and the most so far."""
        used = sum(_resident_bytes(mark.pid) for mark in processes)
        self._peak = max(self._peak, used)
        return HostUse(now_bytes=used, peak_bytes=self._peak, limit_bytes=self._limit)


def _resident_bytes(pid: int) -> int:
    """What a process holds in memory, zero where it has gone; on Linux from the one file that says it (proc(5))."""
    try:
        if sys.platform != "linux":
            return int(psutil.Process(pid).memory_info().rss)
        with Path(f"/proc/{pid}/statm").open("rb", buffering=0) as file:
            return int(file.read(128).split()[1]) * _PAGE_BYTES
    except (OSError, psutil.Error, IndexError):
        return 0


def oom_kills(root: Path = Path("/")) -> int | None:
    """Kills for want of memory in this process's control group so far; None where the kernel does not tell.

    Version 2: ``memory.events`` (which counts the groups below too); version 1: ``memory.oom_control``.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version_1 = "memory" in controllers.split(",")
        if controllers and not version_1:
            continue
        top = root / ("sys/fs/cgroup/memory" if version_1 else "sys/fs/cgroup")
        name = "memory.oom_control" if version_1 else "memory.events"
        for folder in (top / path.lstrip("/"), top):  # a container sees its own group at the top
            counts = dict(pair.split() for pair in _text(folder / name).splitlines() if len(pair.split()) == 2)
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
