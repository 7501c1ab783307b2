"""A fixed plan to write: numbers of no real run, so that tests of emission do not depend on the search."""

from __future__ import annotations

from planner.hardware.machine import Gpu, GpuKind, Links, Machine
from planner.memory.result import Breakdown, Estimate
from planner.model.interpret import interpret
from planner.plan.plan import Configuration, Plan, Request, RungReport, Speed
from planner.training import TrainingSetup
from planner.units import GIB

QWEN = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def machine(
    gpus: int = 3, *, nodes: int = 1, name: str = "20GB", ram_gib: int | None = 12, p2p: bool | None = None
) -> Machine:
    """Some identical GPUs of 20 GiB."""
    kind = GpuKind(
        id="example", name=name, vendor="nvidia", architecture="ampere", memory_bytes=20 * GIB, memory_reported=True,
        compute_capability=(8, 6), dtypes=("fp32", "fp16", "bf16"),
    )  # fmt: skip
    return Machine(
        gpus=tuple(
            Gpu(index=i, name=name, kind=kind, capacity_bytes=20 * GIB, total_bytes=20 * GIB, compute_capability=(8, 6))
            for i in range(gpus)
        ),
        nodes=nodes,
        links=Links(p2p=p2p),
        ram_bytes=None if ram_gib is None else ram_gib * GIB,
    )


ESTIMATE = Estimate(
    allocated_bytes=12 * GIB,
    reserved_bytes=13 * GIB,
    device_bytes=14 * GIB,
    required_bytes=15 * GIB,
    coverage=0.99,
    verdict="fits",
    capacity_bytes=20 * GIB,
    interval=dict.fromkeys(("allocated_bytes", "reserved_bytes", "device_bytes"), (10 * GIB, 14 * GIB)),
    peak_phase="loss",
    breakdown=Breakdown(weights=5 * GIB, optimizer=1 * GIB, activations=2 * GIB, logits=4 * GIB),
    context_bytes=GIB // 2,
    phases={"loss": Breakdown(weights=5 * GIB, optimizer=1 * GIB, activations=2 * GIB, logits=4 * GIB)},
    host_bytes=6 * GIB,
    disk_bytes=20 * GIB,
    trainable_parameters=20_185_088,
    total_parameters=7_635_801_600,
    assumptions=("the card is an anonymous one of 20 GiB",),
    warnings=("63 sequences instead of 64",),
)


def plan_of(setup: TrainingSetup | None = None, *, on: Machine | None = None, data: str | None = None) -> Plan:
    """A plan whose choice is ``setup``."""
    where = on or machine()
    parallelism = "ddp" if where.world_size > 1 else "none"
    setup = setup or TrainingSetup(
        model="Qwen/Qwen2.5-7B-Instruct", method="qlora", parallelism=parallelism, gpus="3x20GB"
    )
    speed = Speed(
        tokens_per_s=2345.6, low_tokens_per_s=2000, high_tokens_per_s=3000, step_seconds=4.0, bound_by="compute"
    )
    row = Configuration(
        setup=setup,
        estimate=ESTIMATE,
        speed=speed,
        method_class="qlora",
        profile="recommended",
        safe=True,
        reason="best",
    )
    rung = RungReport(
        id="liger",
        title="Liger kernels",
        tier=0,
        applied=True,
        reason="saves logits",
        before_bytes=2,
        after_bytes=1,
        slowdown=1.0,
    )
    return Plan(
        verdict="fits",
        request=Request(model="7B", stage=setup.stage, data=data, gpus="3x20GB", allow=frozenset({"b", "a"})),
        machine=where,
        model=interpret(QWEN, id="Qwen/Qwen2.5-7B-Instruct", place="test"),
        chosen=row,
        configurations=(row,),
        alternatives=(),
        ladder=(rung,),
        reasons=("QLoRA is the best class that fits",),
        assumptions=(),
        warnings=("the demo data teaches nothing",),
    )
