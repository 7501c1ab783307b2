"""Ask NVIDIA's management library (an edge). The answer is plain JSON; nothing is interpreted here.

A reading that the driver refuses is None in its place and one line under ``refused``: never zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

Answer = dict[str, Any]
NOBODY: Answer = {"driver": None, "cuda_version": None, "gpus": [], "p2p": [], "refused": []}


def ask_nvml() -> Answer:
    """Everything a plan needs to know of the NVIDIA GPUs here; ``error`` says why there is nothing."""
    try:
        import pynvml
    except ImportError as problem:
        return {**NOBODY, "error": f"the Python package nvidia-ml-py is not installed ({problem})"}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as problem:
        return {**NOBODY, "error": str(problem)}
    try:
        return _Asking(pynvml).everything()
    finally:
        pynvml.nvmlShutdown()


class _Asking:
    """One conversation with the driver; remembers what it refused."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.refused: list[str] = []

    def ask(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """The reading, or None with a line in ``refused``."""
        try:
            return _text(call(*arguments))
        except self.nvml.NVMLError as problem:
            self.refused.append(f"{what}: {problem}")
        except (AttributeError, UnicodeDecodeError) as problem:  # an older library, or a name in no known encoding
            self.refused.append(f"{what}: {type(problem).__name__}")
        return None

    def everything(self) -> Answer:
        nvml = self.nvml
        count = self.ask("device count", nvml.nvmlDeviceGetCount) or 0
        handles = [(index, self.ask(f"gpu {index}", nvml.nvmlDeviceGetHandleByIndex, index)) for index in range(count)]
        alive = [(index, handle) for index, handle in handles if handle is not None]
        return {
            "error": None,
            "driver": self.ask("driver version", nvml.nvmlSystemGetDriverVersion),
            "cuda_version": self.ask("CUDA version", nvml.nvmlSystemGetCudaDriverVersion),
            "gpus": [self.gpu(index, handle) for index, handle in alive],
            "p2p": [self.pair(one, other) for one, other in combinations(alive, 2)],
            "refused": self.refused,
        }

    def gpu(self, index: int, handle: Any) -> Answer:
        nvml, place = self.nvml, f"gpu {index}"
        return {
            "index": index,
            "name": self.ask(f"{place} name", nvml.nvmlDeviceGetName, handle),
            "uuid": self.ask(f"{place} uuid", nvml.nvmlDeviceGetUUID, handle),
            **self.memory(place, handle),
            "compute_capability": self.ask(f"{place} capability", nvml.nvmlDeviceGetCudaComputeCapability, handle),
            "pcie_generation": self.ask(f"{place} PCIe generation", nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
            "pcie_lanes": self.ask(f"{place} PCIe lanes", nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
            "nvlinks": self.nvlinks(handle),
            "processes": self.processes(place, handle),
            "mig": self.mig(place, handle),
        }

    def memory(self, place: str, handle: Any) -> Answer:
        """Total, free, used, and what the driver keeps for itself where it tells (memory info version 2)."""
        info = self.quietly(lambda: self.nvml.nvmlDeviceGetMemoryInfo(handle, version=self.nvml.nvmlMemory_v2))
        if info is None:
            info = self.ask(f"{place} memory", self.nvml.nvmlDeviceGetMemoryInfo, handle)
        return {f"{part}_bytes": getattr(info, part, None) for part in ("total", "free", "used", "reserved")}

    def quietly(self, call: Callable[[], Any]) -> Any:
        """A reading that many drivers lack, where the lack says nothing."""
        try:
            return _text(call())
        except Exception:  # the binding raises its own, AttributeError or ctypes errors by release
            return None

    def nvlinks(self, handle: Any) -> int | None:
        """How many NVLink lanes are up; None where the card has no such thing."""
        states = []
        for link in range(self.nvml.NVML_NVLINK_MAX_LINKS):
            state = self.quietly(lambda link=link: self.nvml.nvmlDeviceGetNvLinkState(handle, link))  # type: ignore[misc]
            if state is None:
                break
            states.append(state)
        return sum(1 for state in states if state) if states else None

    def processes(self, place: str, handle: Any) -> list[Answer] | None:
        """Processes that hold memory, compute and graphics, each once; None if the driver does not tell."""
        nvml = self.nvml
        compute = self.ask(f"{place} processes", nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        graphics = self.quietly(lambda: nvml.nvmlDeviceGetGraphicsRunningProcesses(handle))
        if compute is None:
            return None
        by_pid = {process.pid: process for process in [*(graphics or []), *compute]}
        return [
            {"pid": pid, "name": self.process_name(pid), "used_bytes": getattr(process, "usedGpuMemory", None)}
            for pid, process in sorted(by_pid.items())
        ]

    def process_name(self, pid: int) -> str | None:
        """The program's name; a process of another container or user has none."""
        path: str | None = self.quietly(lambda: self.nvml.nvmlSystemGetProcessName(pid))
        return path.replace("\\", "/").rsplit("/", 1)[-1].split(" ", 1)[0] or None if path else None

    def mig(self, place: str, handle: Any) -> Answer | None:
        """Whether the card is cut into slices, and the slices; None for cards that cannot be."""
        mode = self.quietly(lambda: self.nvml.nvmlDeviceGetMigMode(handle))
        if mode is None:
            return None
        enabled = bool(mode[0])
        return {"enabled": enabled, "slices": self.slices(place, handle) if enabled else []}

    def slices(self, place: str, handle: Any) -> list[Answer]:
        nvml = self.nvml
        most = self.ask(f"{place} MIG count", nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        found = []
        for number in range(most):
            slice_handle = self.quietly(lambda number=number: nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))  # type: ignore[misc]
            if slice_handle is not None:
                found.append(self.slice(f"{place} slice {number}", number, slice_handle))
        return found

    def slice(self, place: str, number: int, handle: Any) -> Answer:
        nvml = self.nvml
        return {
            "number": number,
            "name": self.ask(f"{place} name", nvml.nvmlDeviceGetName, handle),
            "uuid": self.ask(f"{place} uuid", nvml.nvmlDeviceGetUUID, handle),
            "gpu_instance": self.quietly(lambda: nvml.nvmlDeviceGetGpuInstanceId(handle)),
            "compute_instance": self.quietly(lambda: nvml.nvmlDeviceGetComputeInstanceId(handle)),
            **self.memory(place, handle),
            "processes": self.processes(place, handle),
        }

    def pair(self, one: tuple[int, Any], other: tuple[int, Any]) -> Answer:
        """Whether two cards reach each other's memory, and whether over NVLink."""
        nvml = self.nvml
        place = f"gpus {one[0]} and {other[0]}"
        return {
            "pair": [one[0], other[0]],
            "read": self.reaches(f"{place} P2P", one[1], other[1], nvml.NVML_P2P_CAPS_INDEX_READ),
            "nvlink": self.reaches(f"{place} NVLink", one[1], other[1], nvml.NVML_P2P_CAPS_INDEX_NVLINK),
        }

    def reaches(self, place: str, one: Any, other: Any, capability: int) -> bool | None:
        status = self.ask(place, self.nvml.nvmlDeviceGetP2PStatus, one, other, capability)
        return None if status is None else status == self.nvml.NVML_P2P_STATUS_OK


def _text(value: Any) -> Any:
    """Older bindings answer in bytes; tuples would not survive JSON."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return list(value) if isinstance(value, tuple) else value


class MemoryMeter:
    """Memory of some GPUs, asked again and again in one conversation: what a run's watch needs each second.

    ``devices`` are indices or UUIDs as CUDA_VISIBLE_DEVICES takes them. Without a driver every reading is empty.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._asking: _Asking | None = None
        self._handles: list[tuple[int, Any]] = []
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # no binding, no library or no driver: there is nothing to read
            return
        self._asking = _Asking(pynvml)
        self._handles = [(number, handle) for number, handle in map(self._find, devices) if handle is not None]

    def _find(self, device: str) -> tuple[int, Any]:
        asking = self._asking
        if asking is None:
            return -1, None
        nvml = asking.nvml
        if device.isdigit():
            return int(device), asking.quietly(lambda: nvml.nvmlDeviceGetHandleByIndex(int(device)))
        handle = asking.quietly(lambda: nvml.nvmlDeviceGetHandleByUUID(device))
        index = asking.quietly(lambda: nvml.nvmlDeviceGetIndex(handle)) if handle is not None else None
        return (-1 if index is None else int(index)), handle

    def read(self) -> list[Answer]:
        """Index, name and bytes of each GPU now; a reading that is refused is None in its place."""
        asking = self._asking
        if asking is None:
            return []
        asking.refused.clear()
        return [
            {
                "index": index,
                "name": asking.quietly(lambda handle=handle: asking.nvml.nvmlDeviceGetName(handle)),  # type: ignore[misc]
                **asking.memory(f"gpu {index}", handle),
            }
            for index, handle in self._handles
        ]

    def holders(self) -> list[Answer]:
        """Processes that hold memory on these GPUs: pid, name and bytes as far as the driver tells."""
        asking = self._asking
        if asking is None:
            return []
        return [each for index, handle in self._handles for each in asking.processes(f"gpu {index}", handle) or []]

    def close(self) -> None:
        """End the conversation."""
        if self._asking is not None:
            self._asking.quietly(self._asking.nvml.nvmlShutdown)
            self._asking = None
