"""What a plan promises for a job, as a run keeps it to be held against what came of it. Pure."""

from __future__ import annotations

from planner.memory.result import Estimate
from planner.plan.plan import Speed
from planner.run.job import Job
from planner.run.records import Prediction


def title_of(job: Job) -> str:
    """``sft of Qwen2.5-7B by lora on 3x20GB``; a model of one's own by the name of its folder."""
    where = job.plan.request.gpus or f"{job.plan.machine.world_size} x {job.plan.machine.smallest.name}"
    model = job.plan.model.id.rstrip("/").rpartition("/")[2]
    return f"{job.setup.stage} of {model} by {job.setup.method} on {'the CPU' if job.on_cpu else where}"


def prediction_of(job: Job) -> Prediction:
    """What the plan promises for the job as its files state it."""
    return prediction(job.estimate, job.speed)


def prediction(estimate: Estimate, speed: Speed | None) -> Prediction:
    """The promises of one setup."""
    return Prediction(
        allocated_bytes=estimate.allocated_bytes,
        device_bytes=estimate.device_bytes,
        required_bytes=estimate.required_bytes,
        capacity_bytes=estimate.capacity_bytes,
        host_bytes=estimate.host_bytes,
        tokens_per_s=speed.tokens_per_s if speed else None,
        low_tokens_per_s=speed.low_tokens_per_s if speed else None,
        high_tokens_per_s=speed.high_tokens_per_s if speed else None,
        phases={name: parts.total for name, parts in estimate.phases.items()},
    )
