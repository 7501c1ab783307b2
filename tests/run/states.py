"""A run in its middle, as its screen would show it: numbers of no real run."""

from __future__ import annotations

from planner.run.records import (
    Attempt,
    Diagnosis,
    GpuUse,
    HostUse,
    Prediction,
    ProcessMark,
    Progress,
    RunState,
)
from planner.units import GIB

LOSSES = tuple(2.4 / (1 + 0.05 * number) + 0.02 * (number % 5) for number in range(60))

OOM = Diagnosis(
    kind="cuda_oom",
    cause="GPU 1 (rank 1) ran out of memory in the backward pass: it asked for 1.2 GiB more, 310 MiB were free and it "
    "held 19.0 GiB",
    next_step="a smaller micro batch",
    facts={"requested_bytes": 1288490188},
)


def attempt(number: int, **changes: object) -> Attempt:
    values: dict = {
        "number": number,
        "purpose": "training",
        "command": ("llamafactory-cli", "train", "train.yaml"),
        "overrides": {},
        "environment": {"PATH": "/usr/bin"},
        "change": "",
        "resumed_from": None,
        "started_at": 1000.0,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "effective_batch": 48,
    }
    return Attempt(**(values | changes))


def running(**changes: object) -> RunState:
    healed = f"{OOM.cause}; effective batch and seed stay; next: micro_batch_size 4 becomes 2, " \
             "gradient_accumulation_steps 4 becomes 8"  # fmt: skip
    values: dict = {
        "id": "20261121-134141-ab12",
        "folder": "/data/plans/qwen2.5-7b-sft-qlora-3x20gb",
        "title": "sft of Qwen/Qwen2.5-7B-Instruct by qlora on 3x20GB",
        "engine": "llamafactory",
        "status": "running",
        "started_at": 1000.0,
        "prediction": Prediction(
            allocated_bytes=13 * GIB,
            device_bytes=int(15.1 * GIB),
            required_bytes=16 * GIB,
            capacity_bytes=int(19.4 * GIB),
            host_bytes=9 * GIB,
            tokens_per_s=2346.0,
            low_tokens_per_s=2000.0,
            high_tokens_per_s=3000.0,
            phases={"loss": 13 * GIB},
        ),
        "supervisor": ProcessMark(4711, 999.5),
        "processes": (ProcessMark(4712, 1000.1),),
        "attempts": (
            attempt(1, purpose="rehearsal", ended_at=1060.0, exit_status=0, first_step=1, last_step=2),
            attempt(2, ended_at=1900.0, exit_status=1, first_step=1, last_step=128, diagnosis=OOM),
            attempt(3, change=healed, resumed_from="/data/plans/x/output/checkpoint-100", micro_batch_size=2,
                    gradient_accumulation_steps=8, first_step=101),
        ),
        "progress": Progress(
            step=412, total_steps=1200, loss=LOSSES[-1], eval_loss=1.31, learning_rate=4.1e-5, epoch=0.62,
            tokens_per_s=2312.4, seconds_per_step=9.6, losses=LOSSES,
        ),
        "gpus": tuple(
            GpuUse(index=number, name="RTX 3080", now_bytes=int((13.2 + number) * GIB),
                   peak_bytes=int((14.6 + number) * GIB), before_bytes=GIB // 4, capacity_bytes=int(19.4 * GIB))
            for number in range(3)
        ),
        "host": HostUse(now_bytes=int(6.1 * GIB), peak_bytes=7 * GIB, limit_bytes=12 * GIB),
        "healed": (healed,),
        "checkpoint": "/data/plans/x/output/checkpoint-400",
    }  # fmt: skip
    return RunState(**(values | changes))
