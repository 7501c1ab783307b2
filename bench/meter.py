"""Memory of one run as it is used: the caching allocator's counters by phase, and the driver's view of the card.

Everything that touches CUDA or NVML is here. What each call answers (torch 2.4 and newer):

- ``torch.cuda.max_memory_allocated`` and ``max_memory_reserved``: memory_stats()["allocated_bytes.all.peak"] and
  ["reserved_bytes.all.peak"], counted where Python asks, so no synchronisation is needed to read them;
- ``reset_peak_memory_stats`` sets both peaks to the current values, so what lives across a border counts in both;
- ``set_per_process_memory_fraction``: the allocator refuses a segment that would take its reserved memory beyond
  fraction x totalGlobalMem, after it has released what it could, as it does when cudaMalloc fails. What the process
  holds outside the allocator (context, libraries) does not count there;
- NVML's ``used`` holds everything on the card, so the reading before this process touched it is taken off.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from typing import Any, Protocol

SAMPLE_S = 0.01
SMI_SAMPLE_MS = 50
MIB = 2**20


class Meter(Protocol):
    """What the steps need of a meter."""

    current: str | None

    def open(self, phase: str) -> None:
        """Close the phase that runs and begin another."""

    def synchronize(self) -> None:
        """Wait for the device."""

    def close(self) -> dict[str, Any]:
        """End the last phase; everything measured, in bytes."""


class CudaMeter:
    """The allocator's counters of CUDA device 0, and the card's own as ``driver`` sees it."""

    def __init__(self, torch: Any, driver: DriverMeter | None) -> None:
        self._cuda = torch.cuda
        self._cuda.init()  # the allocator has no counters to reset before
        self.driver = driver
        self.current: str | None = None
        self.phases: dict[str, dict[str, int]] = {}

    def limit(self, allowed_bytes: int) -> int:
        """Hold the allocator to so many reserved bytes; what it allows in fact."""
        total = self._cuda.get_device_properties(0).total_memory
        fraction = min(allowed_bytes / total, 1.0)
        self._cuda.set_per_process_memory_fraction(fraction, 0)
        return int(fraction * total)

    def open(self, phase: str) -> None:
        """Close the phase that runs and begin another."""
        self._note()
        self._cuda.reset_peak_memory_stats(0)
        self.current = phase

    def synchronize(self) -> None:
        """Wait for the device."""
        self._cuda.synchronize(0)

    def _note(self) -> None:
        if self.current is None:
            return
        seen = self.phases.setdefault(self.current, {"allocated": 0, "reserved": 0})
        seen["allocated"] = max(seen["allocated"], self._cuda.max_memory_allocated(0))
        seen["reserved"] = max(seen["reserved"], self._cuda.max_memory_reserved(0))

    def close(self) -> dict[str, Any]:
        """End the last phase; peaks over the phases of training, the load phase beside them.

        ``context_bytes`` is what the process holds on the card outside the allocator when it ends: the driver's
        figure less the reserved memory of the same moment. None where no driver answered.
        """
        self._note()
        self.current = None
        steps = {name: seen for name, seen in self.phases.items() if name != "load"}
        stats = self._cuda.memory_stats(0)
        reserved_now = self._cuda.memory_reserved(0)
        device = self.driver.close() if self.driver else {}
        used_now = device.get("used_bytes")
        return {
            "allocated_bytes": max((seen["allocated"] for seen in steps.values()), default=None),
            "reserved_bytes": max((seen["reserved"] for seen in steps.values()), default=None),
            "device_bytes": device.get("peak_bytes"),
            "context_bytes": None if used_now is None else used_now - reserved_now,
            "driver_meter": device.get("meter"),
            "process_bytes": device.get("process_bytes"),
            "load_allocated_bytes": self.phases.get("load", {}).get("allocated"),
            "phases": {name: seen["allocated"] for name, seen in steps.items()},
            "allocator_retries": stats.get("num_alloc_retries", 0),
        }


class PretendMeter:
    """Allocates nothing and counts what was predicted: the dry mode of a machine without a GPU.

    Beyond ``limit`` it raises what torch raises, with the allocator's own words.
    """

    def __init__(self, torch: Any, phases: dict[str, int], *, factor: float = 1.0) -> None:
        self._torch = torch
        self._predicted = {name: round(size * factor) for name, size in phases.items()}
        self._allowed: int | None = None
        self.current: str | None = None
        self.phases: dict[str, int] = {}

    def limit(self, allowed_bytes: int) -> int:
        """Hold what is pretended to so many bytes."""
        self._allowed = allowed_bytes
        return allowed_bytes

    def open(self, phase: str) -> None:
        """Begin a phase, or run out in it."""
        self.current = phase
        size = self._predicted.get(phase, 0)
        if self._allowed is not None and size > self._allowed:
            allowed = f"{self._allowed / 2**30:.2f} GiB"
            raise self._torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / 2**30:.2f} GiB. GPU 0 has a total capacity of "
                f"{allowed} of which 0 bytes is free. {allowed} allowed; Of the allocated memory 0 bytes is "
                "allocated by PyTorch, and 0 bytes is reserved by PyTorch but unallocated."
            )
        self.phases[phase] = size

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def close(self) -> dict[str, Any]:
        """What was pretended."""
        steps = {name: size for name, size in self.phases.items() if name != "load"}
        return {"allocated_bytes": max(steps.values(), default=None), "phases": steps, "pretended": True}


class DriverMeter:
    """The card's used memory, sampled in a thread: NVML where pynvml is installed, else nvidia-smi.

    Made before this process touches CUDA: the first reading is what others hold.
    """

    def __init__(self, read: Any, name: str) -> None:
        self._read, self.name = read, name
        self._stop = threading.Event()
        self.baseline_bytes = int(read.used())
        self.peak_bytes = self.baseline_bytes
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._look()

    def _look(self) -> int:
        used = int(self._read.used())
        self.peak_bytes = max(self.peak_bytes, used)
        return used

    def close(self) -> dict[str, Any]:
        """The peak, the last reading (both without the first one), and this process's own where it is told."""
        self._stop.set()
        self._thread.join(timeout=5)
        time.sleep(self._read.lag_s)
        used = self._look()
        answer = {
            "meter": self.name,
            "peak_bytes": self.peak_bytes - self.baseline_bytes,
            "used_bytes": used - self.baseline_bytes,
            "process_bytes": self._read.of_process(os.getpid()),
        }
        self._read.close()
        return answer


def driver_meter() -> DriverMeter | None:
    """A sampling meter of the card that CUDA device 0 will be, or None where no driver answers."""
    return _first_answer(lambda reader: DriverMeter(reader, type(reader).__name__.lower()))


def driver_facts() -> tuple[str, int] | None:
    """The driver's version and the card's total bytes by its words, or None where no driver answers."""

    def ask(reader: Any) -> tuple[str, int]:
        try:
            return reader.facts()
        finally:
            reader.close()

    return _first_answer(ask)


def _first_answer(ask: Any) -> Any:
    for kind in (Nvml, Smi):
        try:
            return ask(kind(visible_card()))
        except Exception:  # noqa: S112 (no NVML library, no driver, a refusal: the next reader, then none)
            continue
    return None


def visible_card() -> str:
    """Index (in the bus's order, which the batch sets) or UUID of the first visible card."""
    return (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0].strip()


class Nvml:
    """nvmlDeviceGetMemoryInfo: what nvidia-smi shows, without its process."""

    lag_s = 0.0

    def __init__(self, card: str) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        by_index = card.isdecimal()
        find = pynvml.nvmlDeviceGetHandleByIndex if by_index else pynvml.nvmlDeviceGetHandleByUUID
        self._card = find(int(card) if by_index else card)

    def used(self) -> int:
        """Bytes in use on the card by anybody."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._card).used)

    def facts(self) -> tuple[str, int]:
        """The driver's version and the card's total memory in bytes, as it reports it."""
        version = self._nvml.nvmlSystemGetDriverVersion()
        word = version.decode() if isinstance(version, bytes) else str(version)
        return word, int(self._nvml.nvmlDeviceGetMemoryInfo(self._card).total)

    def of_process(self, pid: int) -> int | None:
        """Bytes of one process; None where the driver does not say (a container's numbers are not the host's)."""
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._card)
        except self._nvml.NVMLError:
            return None
        return next((one.usedGpuMemory for one in running if one.pid == pid), None)

    def close(self) -> None:
        """Let the library go."""
        self._nvml.nvmlShutdown()


class Smi:
    """One nvidia-smi that prints the used memory again and again; the last line counts."""

    lag_s = 4 * SMI_SAMPLE_MS / 1000

    def __init__(self, card: str) -> None:
        self._named = card
        asked = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--loop-ms={SMI_SAMPLE_MS}"]
        self._process = subprocess.Popen(
            ["nvidia-smi", "-i", card, *asked], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._last = self._next()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _next(self) -> int:
        line = self._process.stdout.readline() if self._process.stdout else ""
        return int(line) * MIB

    def _follow(self) -> None:
        try:
            while True:
                self._last = self._next()
        except ValueError:  # the end of its output, or a refusal: the last reading stays
            return

    def used(self) -> int:
        """Bytes in use on the card by anybody, as last printed."""
        return self._last

    def facts(self) -> tuple[str, int]:
        """The driver's version and the card's total memory in bytes, as it reports it."""
        asked = ["--query-gpu=driver_version,memory.total", "--format=csv,noheader,nounits"]
        found = subprocess.run(["nvidia-smi", "-i", self._named, *asked], capture_output=True, text=True, check=True)
        version, total = found.stdout.strip().splitlines()[0].split(",")
        return version.strip(), int(total) * MIB

    def of_process(self, pid: int) -> int | None:
        """Not asked for."""
        return None

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._thread.join(timeout=5)
        if self._process.stdout and not self._thread.is_alive():
            self._process.stdout.close()
