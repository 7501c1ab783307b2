"""Known remedies for GPUs that cannot talk to each other: one variable each, by what NCCL says. Pure.

Source: NCCL's user guide, environment variables and troubleshooting; accelerate's check for GeForce 40 cards.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Remedy:
    """Variables that route around a transport, and why."""

    variables: tuple[tuple[str, str], ...]
    pattern: str
    why: str


REMEDIES = (
    Remedy(
        (("NCCL_SHM_DISABLE", "1"),),
        r"shared memory segment|/dev/shm|shm\.(?:h|cc)|shmutils",
        "shared memory between the ranks failed (/dev/shm is often too small in a container): go through sockets",
    ),
    Remedy(
        (("NCCL_IB_DISABLE", "1"),),
        r"ibv_|NET/IB|libibverbs|ib_plugin|Infini[Bb]and|ibvwrap",
        "InfiniBand failed: go over plain sockets",
    ),
    Remedy(
        (("NCCL_P2P_DISABLE", "1"),),
        r"P2P|peer access|cudaIpc|p2p\.cc|invalid device ordinal|CUMEM|doesn't support faster communication broadband",
        "direct access between the GPUs failed: go through host memory",
    ),
    Remedy(
        (("NCCL_NVLS_ENABLE", "0"),),
        r"NVLS|nvls\.cc|multicast",
        "NVLink multicast failed: reduce without it",
    ),
    Remedy(
        (("NCCL_SOCKET_FAMILY", "AF_INET"),),
        r"Bootstrap : no socket interface found|socketStartConnect|Connect to .*failed|Net.*No route to host",
        "the ranks found no common network interface: IPv4 only",
    ),
)
# Where the log does not say which transport it was: direct access is what most often does not work as promised.
_BY_DEFAULT = REMEDIES[2]


def remedy_for(lines: Sequence[str], tried: Collection[str]) -> Remedy | None:
    """The remedy for what the log says, unless it was tried already; None where nothing is left to try."""
    text = "\n".join(lines)
    named = [remedy for remedy in REMEDIES if re.search(remedy.pattern, text)]
    for remedy in (*named, _BY_DEFAULT):
        if not any(name in tried for name, _ in remedy.variables):
            return remedy
    return None
