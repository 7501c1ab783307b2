"""How fast bytes travel between GPUs, nodes and host: what is known, else an assumption that is said."""

from __future__ import annotations

from dataclasses import dataclass

from planner.hardware.machine import Machine
from planner.speed.rates import Rates


@dataclass(eq=False, repr=False)
class Paths:
    """Bytes per second: between the GPUs of a collective, from one GPU to host memory, of host memory and of the
    drive that a node's GPUs offload to together.
    """

    between_gpus: float
    to_host: float
    host_memory: float
    drive: float
    assumed: tuple[str, ...]


def paths(machine: Machine, rates: Rates) -> Paths:
    """Usable bandwidths of the machine's links, one way."""
    links, kind = rates.links, machine.smallest.kind
    pcie = (kind.pcie_bytes_per_s if kind else None) or links["pcie_bytes_per_s"]
    assumed = () if kind and kind.pcie_bytes_per_s else ("GPUs on PCIe 4.0 x16",)
    between, said = _between(machine, pcie, rates)
    return Paths(
        between_gpus=links["ring_share"] * between,
        to_host=links["ring_share"] * pcie,
        host_memory=links["host_memory_bytes_per_s"],
        drive=links["nvme_bytes_per_s"],
        assumed=assumed + said,
    )


def _between(machine: Machine, pcie: float, rates: Rates) -> tuple[float, tuple[str, ...]]:
    """Bytes/s in one direction over the slowest hop of a ring through all GPUs, and what had to be assumed.

    NCCL lays as many rings as a node has ports and each ring enters a node once, so what counts between nodes is what
    all ports of a node carry together.
    """
    kind = machine.smallest.kind
    if machine.nodes > 1:
        found = machine.links.internode_bytes_per_s
        return (found, ()) if found else _between_nodes(machine, rates)
    if machine.links.bytes_per_s:
        return machine.links.bytes_per_s, ()
    wired = machine.links.nvlink if machine.links.nvlink is not None else bool(kind and not kind.nvlink_bridge)
    if kind and kind.nvlink_bytes_per_s and wired:
        return kind.nvlink_bytes_per_s, () if machine.links.nvlink else ("NVLink between the GPUs",)
    if len(machine.gpus) == 1:
        return pcie, ()
    return pcie * rates.links["no_p2p_share"], ("GPUs that reach each other through host memory over PCIe",)


def _between_nodes(machine: Machine, rates: Rates) -> tuple[float, tuple[str, ...]]:
    """Bytes/s that leave a node. Cards on a board with NVLink come in servers with a network port for each GPU."""
    links, kind, ports = rates.links, machine.smallest.kind, machine.gpus_per_node
    if kind is None or not kind.nvlink_bytes_per_s or kind.nvlink_bridge:
        return links["other_node_bytes_per_s"], ("100 Gbit/s between nodes",)
    newest = (kind.compute_capability or (0, 0)) >= (9, 0)
    port = links["server_port_bytes_per_s" if newest else "older_server_port_bytes_per_s"]
    said = f"a network port of {port * 8e-9:.0f} Gbit/s for each GPU"
    return min(kind.nvlink_bytes_per_s, port * ports), (said,)
