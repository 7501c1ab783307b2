"""Gpu and Machine: what is known of the hardware, as frozen records. Missing is None, never zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Vendor = Literal["nvidia", "amd", "ascend", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds memory on a GPU."""

    pid: int
    name: str | None
    used_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class GpuKind:
    """What the catalogue (rules/gpus.toml) says of a card; None where no source says so.

    ``dense_tflops`` maps a dtype ("bf16", "fp16", "tf32", "fp32", "fp8") to dense tensor throughput in TFLOP/s;
    ``dtypes`` names what the architecture computes in hardware, also where no throughput is published.
    ``memory_bytes`` is what the driver reports as total where ``memory_reported``, else nominal; ``cuda_bytes``
    is the part of it that CUDA offers a program (the driver keeps the rest), where a public log shows it.
    Links are bytes/s in one direction (datasheets print NVLink as the sum of both);
    ``nvlink_bridge``: NVLink only with a bridge, and between two cards. ``unified``: the GPU has no memory of its own
    and shares the host's, so that both come out of ``memory_bytes``, of which an idle system holds ``system_bytes``.
    """

    id: str
    name: str
    vendor: Vendor
    architecture: str | None
    memory_bytes: int
    memory_reported: bool
    compute_capability: tuple[int, int] | None
    dense_tflops: dict[str, float] = field(default_factory=dict, hash=False)
    dtypes: tuple[str, ...] = ()
    bandwidth_bytes_per_s: float | None = None
    nvlink_bytes_per_s: float | None = None
    nvlink_bridge: bool = False
    pcie_bytes_per_s: float | None = None
    nominal_bytes: int | None = None
    cuda_bytes: int | None = None
    unified: bool = False
    system_bytes: int | None = None
    note: str | None = None
    source: str = ""
    checked: str = ""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One device. ``capacity_bytes`` is what a job may use: free memory when probed, else the total that the
    CUDA driver offers a program where known, else the nominal size; ``reserve_bytes`` is what is left out of the
    driver's total or the nominal size. ``index`` is the driver's number, which CUDA_VISIBLE_DEVICES takes under
    CUDA_DEVICE_ORDER=PCI_BUS_ID (a MIG slice goes by ``uuid``).
    """

    index: int
    name: str
    kind: GpuKind | None
    capacity_bytes: int
    total_bytes: int | None
    free_bytes: int | None = None
    nominal_bytes: int | None = None
    reserve_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
    uuid: str | None = None
    mig: bool = False
    holders: tuple[Holder, ...] = ()

    @property
    def has_bf16(self) -> bool | None:
        """bfloat16 in hardware: compute capability 8.0 or newer; None if the card is unknown."""
        if self.kind is not None and self.kind.dtypes:
            return "bf16" in self.kind.dtypes
        if self.compute_capability is None:
            return None
        return self.compute_capability >= (8, 0)


@dataclass(frozen=True, kw_only=True)
class Links:
    """How the GPUs of one node reach each other: bytes/s in one direction. None is unknown.

    ``nvlink`` and ``p2p`` hold for every pair; one pair without them makes them False.
    """

    nvlink: bool | None = None
    p2p: bool | None = None
    bytes_per_s: float | None = None
    internode_bytes_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The hardware of a job: the GPUs of every node (nodes alike), host memory, disk.

    ``source`` is "flags", "file" or "probe". ``ram_bytes`` is per node and already the smaller of
    physical memory and the cgroup limit. ``software`` maps a package to its installed version (probe only).
    """

    gpus: tuple[Gpu, ...]
    nodes: int = 1
    source: Literal["flags", "file", "probe"] = "flags"
    links: Links = Links()
    ram_bytes: int | None = None
    ram_free_bytes: int | None = None
    cpu_cores: int | None = None
    disk_free_bytes: int | None = None
    driver: str | None = None
    software: dict[str, str] = field(default_factory=dict, hash=False)
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def gpus_per_node(self) -> int:
        """Devices on one node."""
        return len(self.gpus)

    @property
    def world_size(self) -> int:
        """Data-parallel ranks when every GPU takes part."""
        return self.nodes * len(self.gpus)

    @property
    def host_room_bytes(self) -> int | None:
        """Host memory that a job may use on a node: what is free where that was read, else all of it."""
        return self.ram_bytes if self.ram_free_bytes is None else self.ram_free_bytes

    @property
    def unified(self) -> bool:
        """True where a GPU lives in the host's memory."""
        return any(gpu.kind is not None and gpu.kind.unified for gpu in self.gpus)

    @property
    def smallest(self) -> Gpu:
        """The card that decides what fits."""
        return min(self.gpus, key=lambda gpu: gpu.capacity_bytes)
