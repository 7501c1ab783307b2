"""From allocated bytes to what the card must hold: context, NCCL, cache, fragmentation, and the margin of trust.

Facts and calibrated margins lie in rules/overheads.toml. Everything here is a few multiplications, and every result
grows with the allocated bytes.
"""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from planner.hardware.machine import Machine
from planner.memory.result import COVERAGE
from planner.model.spec import ModelSpec
from planner.rulebook.paths import rules_dir
from planner.training import TrainingSetup
from planner.units import MIB

# Engines whose training step is transformers' and peft's own code, traced operation by operation.
TRACED_ENGINES = frozenset({"llamafactory", "transformers", "trl", "embedded", "axolotl"})
# cuBLAS keeps one workspace per handle and stream, two in a training step (forward and autograd threads):
# 4096 KiB x 2 + 16 KiB x 8 before Hopper, 32 MiB from Hopper on. Source: aten/src/ATen/cuda/CublasHandlePool.cpp.
WORKSPACES = 2
WORKSPACE_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
WORKSPACE_BYTES_HOPPER = 32 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Overheads:
    """Bytes on one GPU beyond the live tensors. ``interval`` bounds allocated, reserved and device bytes."""

    context_bytes: int
    nccl_bytes: int
    reserved_bytes: int
    device_bytes: int
    required_bytes: int
    allocated_interval: tuple[int, int]
    spread: float  # relative half width of what the cache adds

    def interval(self) -> dict[str, tuple[int, int]]:
        """Low and high bounds by meter, as the contract names them."""
        low, high = self.allocated_interval
        outside = self.device_bytes - self.reserved_bytes
        cache = self.reserved_bytes - (low + high) // 2 if self.reserved_bytes > high else 0
        least, most = int(cache * (1 - self.spread)), int(cache * (1 + self.spread))
        reserved = (min(low + least, self.reserved_bytes), max(high + most, self.reserved_bytes))
        device = (reserved[0] + outside // 2, reserved[1] + outside + outside // 2)
        return {"allocated_bytes": (low, high), "reserved_bytes": reserved, "device_bytes": device}


@lru_cache(maxsize=1)
def rules() -> dict[str, Any]:
    """rules/overheads.toml, read once."""
    return tomllib.loads((rules_dir() / "overheads.toml").read_text(encoding="utf-8"))


def workspace_bytes(machine: Machine | None) -> int:
    """cuBLAS workspaces of a training step, inside the allocator. Unknown cards count as older than Hopper."""
    capability = machine.smallest.compute_capability if machine is not None and machine.gpus else None
    if capability is not None and (9, 0) <= capability < (10, 0):
        return WORKSPACES * WORKSPACE_BYTES_HOPPER
    return WORKSPACES * WORKSPACE_BYTES


@lru_cache(maxsize=256)
def context_bytes(architecture: str | None) -> int:
    """CUDA context and loaded libraries of one process; None is a card that the catalogue does not know."""
    table = rules()["context"]
    return int(table["architecture_mib"].get(architecture, table["default_mib"])) * MIB


@lru_cache(maxsize=1024)
def nccl_bytes(ranks_per_node: int, nodes: int, nvlink: bool | None, communicators: int = 1) -> int:
    """Buffers of the process group outside the allocator; no links known counts as NVLink, the larger figure."""
    if ranks_per_node * nodes < 2:
        return 0
    table = rules()["nccl"]
    if nodes > 1:
        size = table["between_nodes_mib"]
    elif nvlink is False:
        size = table["pcie_mib"]
    else:
        size = table["pair_mib" if ranks_per_node == 2 else "node_mib"]
    return int(size) * MIB * communicators


def trust_class(setup: TrainingSetup, spec: ModelSpec, ranks: int) -> str:
    """Which residuals speak for this setup: the class whose margin is used. The widest that applies is named."""
    if setup.engine not in TRACED_ENGINES:
        return "foreign_sharded" if ranks > 1 else "foreign"
    if spec.remote_code:
        return "remote_code"
    if spec.is_moe:
        return "moe_sharded" if ranks > 1 else "moe"
    return "sharded" if ranks > 1 else "traced"


@lru_cache(maxsize=256)
def margins(name: str, coverage: float) -> tuple[float, float]:
    """(below, above): relative bounds on measured / predicted - 1 of class ``name`` at ``coverage``.

    The table holds two-sided bounds at 0.90 and 0.99; others follow on a line in log(1 - coverage), the scale on
    which an exponential tail is straight.
    """
    row = rules()["allocated"][name]
    place = math.log(0.1 / (1 - coverage)) / math.log(10)
    low = row["below_90"] + (row["below_99"] - row["below_90"]) * place
    high = row["above_90"] + (row["above_99"] - row["above_90"]) * place
    return max(low, 0.0), max(high, 0.0)


def expandable_segments() -> bool:
    """Whether the allocator of this environment grows segments in place (PYTORCH_CUDA_ALLOC_CONF)."""
    return "expandable_segments:True" in os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")


def _loss_share(setup: TrainingSetup) -> float:
    table = rules()["cache"]
    path = setup.loss or ("fused_linear" if setup.liger_kernel and setup.stage in ("pt", "sft") else "torch")
    return float(table.get(f"loss_{path}", table["loss_chunked"]))


def reserved_bytes(
    setup: TrainingSetup, allocated: int, *, logits: int, window: int, gathered: int, loss_phase: int, apart: int
) -> int:
    """The caching allocator's peak with unlimited memory.

    Three things keep blocks of one size from serving another: the loss's buffers differ in size from each other (the
    phase of the loss counts with a share of them on top), blocks of one purpose seldom serve another (``apart``), and
    unsharded groups are gathered on a stream of their own, whose blocks other streams cannot take.
    """
    table = rules()["cache"]
    live = max(
        allocated + int(table["apart"] * max(apart - allocated, 0)), loss_phase + int(_loss_share(setup) * logits)
    )
    return live + int(table["base_mib"]) * MIB + int(table["window"] * window + table["gathered"] * gathered)


def overheads(
    setup: TrainingSetup,
    spec: ModelSpec,
    machine: Machine,
    *,
    allocated_bytes: int,
    logits_bytes: int,
    window_bytes: int,
    gathered_bytes: int = 0,
    loss_phase_bytes: int = 0,
    apart_bytes: int = 0,
    coverage: float = COVERAGE,
    expandable: bool = False,
) -> Overheads:
    """What one GPU must hold for ``allocated_bytes`` of live tensors at the peak.

    ``logits_bytes`` are the loss's buffers, ``window_bytes`` what one layer needs in backward, ``gathered_bytes`` the
    unsharded groups alive together, ``loss_phase_bytes`` all live bytes of the loss phase, ``apart_bytes`` the sum over
    the parts of a breakdown of each part's largest size in any phase; 0 where it is not known. ``expandable`` says that
    the job sets expandable segments.
    """
    kind = machine.smallest.kind if machine.gpus else None
    context = context_bytes(kind.architecture if kind is not None else None)
    nccl = nccl_bytes(machine.gpus_per_node, machine.nodes, machine.links.nvlink)
    table = rules()
    reserved = reserved_bytes(
        setup,
        allocated_bytes,
        logits=logits_bytes,
        window=window_bytes,
        gathered=gathered_bytes,
        loss_phase=loss_phase_bytes,
        apart=apart_bytes,
    )
    fragments = table["fragmentation"]["dynamic"] * window_bytes + table["fragmentation"]["logits"] * logits_bytes
    if expandable:
        reserved = allocated_bytes + int((reserved - allocated_bytes) * table["cache"]["expandable"])
        fragments *= table["fragmentation"]["expandable"]
    below, above = margins(trust_class(setup, spec, machine.world_size), coverage)
    upper = int(allocated_bytes * (1 + above))
    return Overheads(
        context_bytes=context,
        nccl_bytes=nccl,
        reserved_bytes=reserved,
        device_bytes=reserved + context + nccl,
        required_bytes=upper + context + nccl + int(fragments),
        allocated_interval=(int(allocated_bytes * (1 - below)), upper),
        spread=float(table["cache"].get("spread", 0.8)),
    )
