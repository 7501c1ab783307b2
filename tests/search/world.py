"""A small world to search in: machines of any size and a pricer whose figures can be checked by hand."""

from __future__ import annotations

from planner.hardware.machine import Gpu, GpuKind, Machine
from planner.memory.result import Breakdown, Estimate, Price, judge
from planner.model.spec import Attention, Block, Mlp, ModelSpec, Run
from planner.training import TrainingSetup
from planner.units import GIB

BLOCK = Block(attention=Attention(heads=28, kv_heads=4, head_dim=128), mlp=Mlp(width=18944))
SPEC = ModelSpec(
    id="Qwen2.5-7B", model_type="qwen2", hidden=3584, vocab=152064, runs=(Run(count=28, block=BLOCK),),
    parameters=7_615_616_512, max_positions=32768,
)  # fmt: skip
KIND = GpuKind(
    id="example", name="NVIDIA Example", vendor="nvidia", architecture="ampere", memory_bytes=24 * GIB,
    memory_reported=True, compute_capability=(8, 6), dense_tflops={"bf16": 100.0, "fp16": 100.0, "fp32": 25.0},
    bandwidth_bytes_per_s=800e9, pcie_bytes_per_s=31.5e9,
)  # fmt: skip


def machine(
    gpus: int = 3,
    gib: float = 20,
    *,
    nodes: int = 1,
    capability: tuple[int, int] | None = (8, 6),
    ram_gib: float | None = None,
    kind: GpuKind | None = KIND,
) -> Machine:
    """``gpus`` cards a node with ``gib`` GiB each."""
    card = Gpu(
        index=0, name="NVIDIA Example", kind=kind, capacity_bytes=int(gib * GIB), total_bytes=int(gib * GIB),
        compute_capability=capability,
    )  # fmt: skip
    ram = None if ram_gib is None else int(ram_gib * GIB)
    return Machine(gpus=(card,) * gpus, nodes=nodes, ram_bytes=ram)


def fake_price(setup: TrainingSetup, spec: ModelSpec, machine: Machine, *, coverage: float = 0.99) -> Price:
    """States by the usual bytes a parameter, activations by tokens; every knob has the effect its name promises."""
    ranks = machine.world_size
    weights, states = _held(setup, spec.parameters)
    if setup.parallelism in ("zero3", "fsdp", "fsdp2"):
        weights, states = weights // ranks, states // ranks
    elif setup.parallelism == "zero2":
        states //= ranks
    host = (weights if setup.offload == "all" else 0) + (states if setup.offload != "none" else 0)
    weights = weights // 20 if setup.offload in ("all", "nvme") else weights
    states = 0 if setup.offload != "none" else states
    allocated = weights + states + _activations(setup)
    margin = 1.05 if coverage >= 0.99 else 1.02
    return Price(
        allocated_bytes=allocated, reserved_bytes=allocated, device_bytes=allocated + GIB,
        required_bytes=int(allocated * margin) + GIB, context_bytes=GIB // 2,
        host_bytes=host * machine.gpus_per_node + GIB, peak_phase="backward",
    )  # fmt: skip


def _held(setup: TrainingSetup, parameters: int) -> tuple[int, int]:
    if setup.method == "qlora":
        return parameters * (setup.quantization_bit or 4) // 8, GIB // 2
    if setup.is_adapter:
        return 2 * parameters, GIB // 2
    if setup.method == "freeze":
        return 2 * parameters, parameters
    each = 2 if setup.param_dtype == "bf16" else 4
    state = 2 if "8bit" in setup.optim or setup.method in ("galore", "apollo", "badam") else 2 * each
    return each * parameters, (each + state) * parameters


def _activations(setup: TrainingSetup) -> int:
    tokens = setup.micro_batch_size * setup.seq_len
    each = 300_000 if setup.gradient_checkpointing else 4_000_000
    logits = 0 if setup.liger_kernel else 1_500_000
    eager = 1000 * setup.seq_len if setup.attention == "eager" else 0
    factor = 2 if setup.compute_dtype == "fp32" else 1
    return tokens * (each + logits + eager) * factor


def fake_estimate(setup: TrainingSetup, spec: ModelSpec, where: Machine, *, coverage: float = 0.99) -> Estimate:
    """The same figures, explained."""
    price = fake_price(setup, spec, where, coverage=coverage)
    capacity = where.smallest.capacity_bytes
    parts = Breakdown(weights=price.allocated_bytes)
    return Estimate(
        allocated_bytes=price.allocated_bytes, reserved_bytes=price.reserved_bytes, device_bytes=price.device_bytes,
        required_bytes=price.required_bytes, coverage=coverage, capacity_bytes=capacity,
        verdict=judge(
            allocated_bytes=price.allocated_bytes, context_bytes=price.context_bytes,
            required_bytes=price.required_bytes, capacity_bytes=capacity,
        ),
        interval={}, peak_phase="backward", breakdown=parts, context_bytes=price.context_bytes,
        phases={"backward": parts}, host_bytes=price.host_bytes, disk_bytes=0, trainable_parameters=0,
        total_parameters=spec.parameters,
    )  # fmt: skip
