"""Steps, time and cost of a whole job."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.hardware.machine import Machine
from planner.plan.plan import Speed
from planner.speed.estimate import data_ranks
from planner.training import TrainingSetup

WARMUP_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class JobSize:
    """How much is trained on: samples of the training split, and how often each is seen."""

    samples: int
    epochs: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Course:
    """Optimizer steps as transformers' Trainer counts them, tokens with padding, and hours with their interval."""

    steps_per_epoch: int
    steps: int
    warmup_steps: int
    tokens: int
    hours: float | None
    low_hours: float | None
    high_hours: float | None


def course(size: JobSize, setup: TrainingSetup, machine: Machine, speed: Speed | None) -> Course:
    """What a job of this size takes.

    A step per ``gradient_accumulation_steps`` batches of every rank, the last ones of an epoch perhaps fewer; warmup is
    10 %, rounded up. Source: transformers 5.23, set_initial_training_values, get_warmup_steps.
    Every sample counts with its full length: real ones are shorter and go faster.
    """
    batches = math.ceil(size.samples / (setup.micro_batch_size * data_ranks(setup, machine)))
    per_epoch = max(1, math.ceil(batches / setup.gradient_accumulation_steps))
    steps = max(1, math.ceil(size.epochs * per_epoch))
    tokens = math.ceil(size.samples * size.epochs) * setup.seq_len * setup.sequences_per_sample
    return Course(
        steps_per_epoch=per_epoch,
        steps=steps,
        warmup_steps=math.ceil(steps * WARMUP_SHARE),
        tokens=tokens,
        hours=_hours(tokens, speed.tokens_per_s) if speed else None,
        low_hours=_hours(tokens, speed.high_tokens_per_s) if speed else None,
        high_hours=_hours(tokens, speed.low_tokens_per_s) if speed else None,
    )


def _hours(tokens: int, tokens_per_s: float) -> float:
    return tokens / tokens_per_s / 3600
