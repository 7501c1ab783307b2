"""From allocated bytes to what the card must hold: context, NCCL, cache, fragmentation, and the margin of trust.

Facts and calibrated margins lie in rules/overheads.toml. Everything here is a few multiplications, and every result
grows with the allocated bytes.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from planner.hardware.machine import Machine
from planner.memory.megatron import is_megatron
from planner.memory.regime import OWN_LOOPS, TRAINER_ENGINES
from planner.memory.result import COVERAGE
from planner.model.spec import ModelSpec
from planner.rulebook.paths import rules_dir
from planner.training import ZERO, TrainingSetup
from planner.units import MIB

SPLITS = ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel")  # a process group each
# cuBLAS keeps one workspace per handle and stream, two in a training step (forward and autograd threads):
# 4096 KiB x 2 + 16 KiB x 8 before Hopper, 32 MiB from Hopper on. Source: aten/src/ATen/cuda/CublasHandlePool.cpp.
WORKSPACES = 2
WORKSPACE_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
WORKSPACE_BYTES_HOPPER = 32 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Overheads:
    """Bytes on one GPU beyond the live tensors, and (low, high) bounds of the three meters at the asked coverage."""

    context_bytes: int
    nccl_bytes: int
    reserved_bytes: int
    device_bytes: int
    required_bytes: int
    allocated_interval: tuple[int, int]
    reserved_interval: tuple[int, int]
    device_interval: tuple[int, int]
    trust: str  # the class whose residuals made the margin
    margin: float  # the upper one, relative to the allocated bytes
    rows: int  # published runs of that class
    models: int
    fragmented_bytes: int  # what fragments may hold at the peak of activations

    def interval(self) -> dict[str, tuple[int, int]]:
        """Low and high bounds by meter, as the contract names them."""
        return {
            "allocated_bytes": self.allocated_interval,
            "reserved_bytes": self.reserved_interval,
            "device_bytes": self.device_interval,
        }


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
    """Which residuals speak for this setup: the class whose margin is used. The widest that applies is named.

    ``rare`` is what no published peak covers: the parts are traced or read from the source, their sum was never
    measured on a GPU. ``loop``: engines with a training loop of their own, read and measured, of which litgpt has runs
    enough (17 of 4 models) to speak for itself; ``foreign``: engines of which nothing here knows or measured anything;
    ``assumed``: architectures priced with another's blocks; ``generating``: stages that write their own completions.
    DDP adds nothing uncertain to one GPU, so it shares its class.
    """
    if setup.stage == "grpo":
        return "generating"
    sharded = ranks > 1 and setup.parallelism not in (None, "none", "ddp")
    own_loop = setup.engine in OWN_LOOPS and not is_megatron(setup)  # of Megatron no run was measured
    if setup.engine not in TRAINER_ENGINES and not own_loop:
        return "foreign_sharded" if ranks > 1 else "foreign"
    if spec.assumed_blocks:
        return "assumed_sharded" if ranks > 1 else "assumed"
    if spec.remote_code:
        return "remote_code"
    if own_loop and ranks > 1:
        return "loop_sharded"
    if _is_rare(setup, spec):
        return "rare_sharded" if sharded else "rare"
    if own_loop:
        return "litgpt" if setup.engine == "litgpt" and not spec.is_moe else "loop"
    if spec.is_moe:
        return "moe_sharded" if sharded else "moe"
    return "sharded" if sharded else "traced"


def _is_rare(setup: TrainingSetup, spec: ModelSpec) -> bool:
    """Settings that no row of measurements/published.jsonl has."""
    parallel = setup.parallelism in ZERO | {"fsdp2"} or setup.offload != "none"
    split = any(getattr(setup, name) > 1 for name in SPLITS)
    usual = setup.method in ("full", "lora", "qlora") and setup.stage in ("pt", "sft")
    compiled = setup.torch_compile and setup.engine in TRAINER_ENGINES  # torchtune's and thunder's rows are compiled
    return parallel or split or not usual or compiled or spec.vision is not None


@lru_cache(maxsize=256)
def margins(name: str, coverage: float) -> tuple[float, float]:
    """(below, above): relative bounds on measured / predicted - 1 of class ``name`` at ``coverage``.

    The table holds two-sided bounds at 0.90 and 0.99; others follow on a line in log(1 - coverage), the scale on
    which an exponential tail is straight.
    """
    row, place = rules()["allocated"][name], _place(coverage)
    low = row["below_90"] + (row["below_99"] - row["below_90"]) * place
    high = row["above_90"] + (row["above_99"] - row["above_90"]) * place
    return max(low, 0.0), max(high, 0.0)


def _place(coverage: float) -> float:
    """0 at a coverage of 0.90, 1 at 0.99, on the scale of log(1 - coverage)."""
    return math.log10(0.1 / (1 - coverage))


def _loss_share(setup: TrainingSetup) -> float:
    table = rules()["cache"]
    path = setup.loss or ("fused_linear" if setup.liger_kernel and setup.stage in ("pt", "sft") else "torch")
    return float(table.get(f"loss_{path}", table["loss_chunked"]))


def reserved_bytes(
    setup: TrainingSetup, allocated: int, *, logits: int, window: int, gathered: int, loss_phase: int, apart: int,
    idle: int = 0,
) -> int:  # fmt: skip
    """The caching allocator's peak with unlimited memory.

    Three things keep blocks of one size from serving another: the loss's buffers differ in size from each other (the
    phase of the loss counts with a share of them on top, ``idle`` are blocks that nothing later fits into), blocks of
    one purpose seldom serve another (``apart``), and unsharded groups are gathered on a stream of their own, whose
    blocks other streams cannot take.
    """
    table = rules()["cache"]
    live = max(
        allocated + int(table["apart"] * max(apart - allocated, 0)), loss_phase + int(_loss_share(setup) * logits)
    )
    return live + idle + int(table["base_mib"]) * MIB + int(table["window"] * window + table["gathered"] * gathered)


@lru_cache(maxsize=256)
def fragmented_share(kind: str, coverage: float, expandable: bool) -> float:
    """The share of activations and loss buffers that free space between live blocks takes away, at ``coverage``."""
    table = rules()["fragmentation"]
    at_99 = float(table[kind])
    at_90 = at_99 * float(table["at_90"])
    share = at_90 + (at_99 - at_90) * _place(coverage)
    return max(0.0, share) * (float(table["expandable"]) if expandable else 1.0)


def _fragmentation_kind(setup: TrainingSetup) -> str:
    if setup.parallelism in ("fsdp", "fsdp2", "zero3"):
        return "sharded"
    return "adapter" if setup.is_adapter else "full"


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
    idle_bytes: int = 0,
    static_bytes: int = 0,
    active_bytes: int | None = None,
    replayed_bytes: int | None = None,
    coverage: float = COVERAGE,
    expandable: bool = False,
) -> Overheads:
    """What one GPU must hold for ``allocated_bytes`` of live tensors at the peak.

    ``logits_bytes`` are the loss's buffers, ``window_bytes`` what one layer needs in backward, ``gathered_bytes`` the
    unsharded groups alive together, ``loss_phase_bytes`` all live bytes of the loss phase, ``apart_bytes`` the sum over
    the parts of a breakdown of each part's largest size in any phase; ``idle_bytes`` are blocks of the loss's forward
    pass that nothing later fits into; ``static_bytes`` are weights and optimizer states, ``active_bytes`` the peak of
    forward, loss and backward with them (None: ``allocated_bytes``).
    ``replayed_bytes`` is the reservation that a replayed log found; None takes the formula's.
    ``expandable`` says that the job sets expandable segments.
    """
    kind = machine.smallest.kind if machine.gpus else None
    context = context_bytes(kind.architecture if kind is not None else None)
    groups = 1 + sum(getattr(setup, name) > 1 for name in SPLITS)
    nccl = nccl_bytes(machine.gpus_per_node, machine.nodes, machine.links.nvlink, groups)
    reserved = reserved_bytes(
        setup,
        allocated_bytes,
        logits=logits_bytes,
        window=window_bytes,
        gathered=gathered_bytes,
        loss_phase=loss_phase_bytes,
        apart=apart_bytes,
        idle=idle_bytes,
    )
    if replayed_bytes is not None:
        reserved = replayed_bytes
    cache = rules()["cache"]
    if expandable:
        reserved = allocated_bytes + int((reserved - allocated_bytes) * cache["expandable"])
    trust = trust_class(setup, spec, machine.world_size)
    below, above = margins(trust, coverage)
    low, high = int(allocated_bytes * (1 - below)), int(allocated_bytes * (1 + above))
    active = allocated_bytes if active_bytes is None else active_bytes
    lost = int(fragmented_share(_fragmentation_kind(setup), coverage, expandable) * max(active - static_bytes, 0))
    kept = reserved - allocated_bytes
    spread = cache["spread_packed" if setup.packing else "spread_varied"]
    reserved_interval = (low + int(kept * (1 - cache["spread_low"])), high + int(kept * (1 + spread)))
    return Overheads(
        context_bytes=context,
        nccl_bytes=nccl,
        reserved_bytes=reserved,
        device_bytes=reserved + context + nccl,
        required_bytes=max(high, int(active * (1 + above)) + lost) + context + nccl,
        allocated_interval=(low, high),
        reserved_interval=reserved_interval,
        device_interval=(
            reserved_interval[0] + int(rules()["context"]["low_mib"]) * MIB + nccl // 2,
            reserved_interval[1] + int(rules()["context"]["high_mib"]) * MIB + nccl * 2,
        ),
        trust=trust,
        margin=above,
        rows=int(rules()["allocated"][trust]["rows"]),
        models=int(rules()["allocated"][trust]["models"]),
        fragmented_bytes=lost,
    )
