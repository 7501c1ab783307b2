"""Hand-built records for tests of the screen: plausible shapes, invented sizes, no formula behind them."""

from __future__ import annotations

from typing import Any

from planner.hardware.machine import Gpu, Machine
from planner.memory.result import Breakdown, Estimate, judge
from planner.model.spec import Attention, Block, Mlp, ModelSpec, Run
from planner.plan.plan import Configuration, Plan, Request, RungReport, Speed
from planner.training import TrainingSetup

MIB = 1 << 20
GIB = 1 << 30
METERS = ("allocated_bytes", "reserved_bytes", "device_bytes")


def a_machine(count: int = 3, capacity_bytes: int = 20 * GIB, **changes: Any) -> Machine:
    gpus = tuple(
        Gpu(index=i, name="20GB card", kind=None, capacity_bytes=capacity_bytes, total_bytes=None) for i in range(count)
    )
    return Machine(**({"gpus": gpus} | changes))


def a_spec() -> ModelSpec:
    block = Block(attention=Attention(heads=4, kv_heads=2, head_dim=16), mlp=Mlp(width=128))
    return ModelSpec(
        id="sample-7b",
        model_type="llama",
        hidden=64,
        vocab=512,
        runs=(Run(count=2, block=block),),
        parameters=7_615_616_512,
    )


def an_estimate(scale: int = 1, capacity_bytes: int | None = 20 * GIB, **changes: Any) -> Estimate:
    parts = Breakdown(
        weights=5 * GIB * scale,
        gradients=100 * MIB,
        optimizer=300 * MIB,
        activations=2 * GIB,
        logits=3 * GIB,
        temporaries=50 * MIB,
    )
    context, allocated = 500 * MIB, parts.total
    required = allocated + context + GIB
    verdict = None
    if capacity_bytes is not None:
        verdict = judge(
            allocated_bytes=allocated, context_bytes=context, required_bytes=required, capacity_bytes=capacity_bytes
        )
    values: dict[str, Any] = {
        "allocated_bytes": allocated,
        "reserved_bytes": allocated + 200 * MIB,
        "device_bytes": allocated + 700 * MIB,
        "required_bytes": required,
        "coverage": 0.99,
        "verdict": verdict,
        "capacity_bytes": capacity_bytes,
        "interval": dict.fromkeys(
            ("allocated_bytes", "reserved_bytes", "device_bytes"), (allocated - GIB // 4, allocated + GIB)
        ),
        "peak_phase": "loss",
        "breakdown": parts,
        "context_bytes": context,
        "phases": {"load": Breakdown(weights=5 * GIB * scale), "loss": parts},
        "host_bytes": 9 * GIB,
        "disk_bytes": 20 * GIB,
        "trainable_parameters": 20_185_088,
        "total_parameters": 7_635_801_600,
        "assumptions": ("the card is anonymous: 20 GB less a reserve",),
        "warnings": ("links between the cards are unknown",),
    }
    return Estimate(**(values | changes))


def a_configuration(**changes: Any) -> Configuration:
    speed = Speed(
        tokens_per_s=3456.7, low_tokens_per_s=2000, high_tokens_per_s=5000, step_seconds=12.5, bound_by="compute"
    )
    values: dict[str, Any] = {
        "setup": TrainingSetup(model="7B", micro_batch_size=3, gradient_accumulation_steps=7, parallelism="ddp"),
        "estimate": an_estimate(),
        "speed": speed,
        "method_class": "lora",
        "profile": "recommended",
        "safe": True,
        "reason": "",
    }
    return Configuration(**(values | changes))


def a_plan(**changes: Any) -> Plan:
    chosen = a_configuration()
    qlora = a_configuration(
        setup=TrainingSetup(model="7B", method="qlora", parallelism="ddp", micro_batch_size=7),
        method_class="qlora",
        profile="aggressive",
        safe=False,
        reason="runs out of memory in 1 of 10 runs",
    )
    full = a_configuration(
        setup=TrainingSetup(model="7B", method="full", parallelism="zero3"),
        method_class="full",
        safe=False,
        estimate=an_estimate(scale=7),
        speed=None,
    )
    values: dict[str, Any] = {
        "verdict": "fits",
        "request": Request(model="7B"),
        "machine": a_machine(),
        "model": a_spec(),
        "chosen": chosen,
        "configurations": (full, chosen, qlora),
        "alternatives": (
            a_configuration(
                setup=TrainingSetup(model="7B", method="galore", parallelism="ddp"),
                method_class="other",
                reason="projects gradients to rank 16; layer-wise updates give up accumulation",
            ),
        ),
        "ladder": (
            RungReport(
                id="sdpa",
                title="PyTorch's fused attention",
                tier=0,
                applied=True,
                reason="the scores are never held",
                before_bytes=130 * GIB,
                after_bytes=121 * GIB,
                slowdown=0.9,
            ),
            RungReport(
                id="flash-attention-2",
                title="FlashAttention 2",
                tier=0,
                applied=False,
                reason="the card is unknown, and the kernel needs compute capability 8.0 or newer",
                before_bytes=None,
                after_bytes=None,
                slowdown=None,
            ),
            RungReport(
                id="lora",
                title="LoRA",
                tier=3,
                applied=True,
                reason="states and gradients exist for adapters only",
                before_bytes=121 * GIB,
                after_bytes=18 * GIB,
                slowdown=0.75,
            ),
        ),
        "reasons": ("LoRA is the best class that fits without offload", "full fine-tuning needs 48.1 GiB a card"),
        "assumptions": ("3 cards alike",),
        "warnings": ("64 sequences do not divide by 3 GPUs: 63 are used on every rung",),
    }
    return Plan(**(values | changes))
