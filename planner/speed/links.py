"""How fast bytes travel between GPUs, nodes and host: what is known, else an assumption that is said."""

from __future__ import annotations

from dataclasses import dataclass

from planner.hardware.machine import Machine

# Usable part of a link's rated bandwidth in ring collectives (nccl-tests, bus bandwidth of large messages).
LINK_SHARE = 0.75
# PCIe 4.0 x16 moves 31.5e9 bytes/s one way; consumer boards without peer-to-peer stage through host memory.
ASSUMED_PCIE_BYTES_PER_S = 31.5e9
NO_P2P_SHARE = 0.4
ASSUMED_INTERNODE_BYTES_PER_S = 12.5e9  # one 100 Gbit/s port a node
# A socket of current servers reads memory at 150e9 to 400e9 bytes/s, a desktop at 50e9; CPU Adam uses about half.
ASSUMED_HOST_BYTES_PER_S = 40e9


@dataclass(eq=False, repr=False)
class Paths:
    """Bytes per second: between the GPUs of a collective, and from one GPU to host memory."""

    between_gpus: float
    to_host: float
    host_memory: float
    assumed: tuple[str, ...]


def paths(machine: Machine) -> Paths:
    """Usable bandwidths of the machine's links, one way."""
    kind = machine.smallest.kind
    pcie = (kind.pcie_bytes_per_s if kind else None) or ASSUMED_PCIE_BYTES_PER_S
    assumed = () if kind and kind.pcie_bytes_per_s else ("GPUs on PCIe 4.0 x16",)
    between, said = _between(machine, pcie)
    return Paths(
        between_gpus=LINK_SHARE * between,
        to_host=LINK_SHARE * pcie,
        host_memory=ASSUMED_HOST_BYTES_PER_S,
        assumed=assumed + said,
    )


def _between(machine: Machine, pcie: float) -> tuple[float, tuple[str, ...]]:
    """Bytes/s in one direction over the slowest hop of a ring through all GPUs, and what had to be assumed."""
    if machine.nodes > 1:
        found = machine.links.internode_bytes_per_s
        said = () if found else ("100 Gbit/s between nodes",)
        return (found or ASSUMED_INTERNODE_BYTES_PER_S), said
    if machine.links.bytes_per_s:
        return machine.links.bytes_per_s, ()
    kind = machine.smallest.kind
    wired = machine.links.nvlink if machine.links.nvlink is not None else bool(kind and not kind.nvlink_bridge)
    if kind and kind.nvlink_bytes_per_s and wired:
        return kind.nvlink_bytes_per_s, () if machine.links.nvlink else ("NVLink between the GPUs",)
    if len(machine.gpus) == 1:
        return pcie, ()
    return pcie * NO_P2P_SHARE, ("GPUs that reach each other through host memory over PCIe",)
