"""What is known of a run, as frozen records: written to ``state.json`` whole, and read back whole.

Times are seconds since the epoch. Missing is None, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["preparing", "rehearsing", "running", "healing", "stopping", "finished", "failed", "stopped", "lost"]
Purpose = Literal["rehearsal", "training"]
ACTIVE: frozenset[Status] = frozenset({"preparing", "rehearsing", "running", "healing", "stopping"})
LOSSES_KEPT = 120


@dataclass(frozen=True, order=True)
class ProcessMark:
    """A process as it may be signalled: its number together with when it started (psutil's ``create_time``)."""

    pid: int
    started: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the preflight list: what was looked at, how it came out, and what helps where it did not pass."""

    name: str
    status: Literal["passed", "warned", "failed"]
    sentence: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the training stands. ``tokens_per_s`` is over all GPUs; ``losses`` are the newest, oldest first.

    ``phases`` maps a phase of the step to the most that torch allocated in it, where the engine tells.
    """

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    tokens_per_s: float | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    seconds_per_step: float | None = None
    losses: tuple[float, ...] = ()
    phases: dict[str, int] = field(default_factory=dict)

    @property
    def remaining_s(self) -> float | None:
        """Seconds to the last step at the pace of this attempt."""
        if self.step is None or self.total_steps is None or self.seconds_per_step is None:
            return None
        return max(0, self.total_steps - self.step) * self.seconds_per_step


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """One GPU of the run: bytes in use now, the most seen, and what was held before the run began."""

    index: int
    name: str | None
    now_bytes: int | None
    peak_bytes: int | None
    before_bytes: int | None
    capacity_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class HostUse:
    """Host memory: resident bytes of the run's processes (shared pages count in each), the peak, and the limit."""

    now_bytes: int | None = None
    peak_bytes: int | None = None
    limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What ended an attempt: ``cause`` and ``next_step`` are sentences, ``facts`` the figures behind them."""

    kind: str
    cause: str
    next_step: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the engine. ``change`` says what differs from the attempt before, and why; empty for the first.

    ``environment`` is what the engine saw, secrets hidden; ``healing`` the variables that healing set.
    """

    number: int
    purpose: Purpose
    command: tuple[str, ...]
    overrides: dict[str, Any]
    environment: dict[str, str]
    change: str
    resumed_from: str | None
    started_at: float
    micro_batch_size: int
    gradient_accumulation_steps: int
    effective_batch: int
    healing: dict[str, str] = field(default_factory=dict)
    ended_at: float | None = None
    exit_status: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    diagnosis: Diagnosis | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the plan promised, per GPU of the worst rank; speed over all GPUs."""

    allocated_bytes: int
    device_bytes: int
    required_bytes: int
    capacity_bytes: int | None
    host_bytes: int
    tokens_per_s: float | None = None
    low_tokens_per_s: float | None = None
    high_tokens_per_s: float | None = None
    phases: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The whole of a run at one moment. ``on_cpu``: nothing that was predicted for a GPU is comparable.

    ``machine`` is the name of the one that it runs on: process numbers mean nothing on another.
    """

    id: str
    folder: str
    title: str
    engine: str
    status: Status
    started_at: float
    prediction: Prediction
    on_cpu: bool = False
    machine: str = ""
    fingerprint: str = ""
    supervisor: ProcessMark | None = None
    processes: tuple[ProcessMark, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    progress: Progress = Progress()
    gpus: tuple[GpuUse, ...] = ()
    host: HostUse = HostUse()
    healed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    checkpoint: str | None = None
    updated_at: float = 0.0
    ended_at: float | None = None
    exit_code: int | None = None
    message: str = ""
    next_step: str = ""

    @property
    def is_active(self) -> bool:
        """True where a supervisor should be at work on it."""
        return self.status in ACTIVE
