"""A setup's trace beside its estimate: peaks by phase, the difference, and whether it runs on the card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.hardware.machine import Machine
from planner.memory.estimate import with_parallelism
from planner.memory.regime import version_of
from planner.memory.result import Estimate
from planner.model.catalogue import config_for
from planner.model.spec import ModelSpec
from planner.trace.job import Job, job_of
from planner.trace.run import Opinion, opinion
from planner.training import TrainingSetup

# Phases that a trace has. Loading is not traced; the estimate's is the checkpoint on its way in.
COMPARED = ("forward", "loss", "backward", "optimizer", "eval")


@dataclass(frozen=True, kw_only=True)
class SecondOpinion:
    """``free_bytes``: memory of the card; the context and NCCL come off it before the allocator."""

    setup: TrainingSetup
    spec: ModelSpec
    machine: Machine
    job: Job
    opinion: Opinion
    estimate: Estimate
    free_bytes: int | None

    @property
    def runs(self) -> bool | None:
        """Whether the allocator model gets through both steps on the card; None where no capacity is known."""
        limited = self.opinion.limited
        return None if limited is None else limited.out_of_memory is None

    @property
    def difference(self) -> float:
        """Estimate / trace - 1, of allocated bytes."""
        return self.estimate.allocated_bytes / self.opinion.traced.allocated_bytes - 1

    def phase_differences(self) -> dict[str, float]:
        """The same by phase, where both have it."""
        both = [phase for phase in COMPARED if phase in self.opinion.traced.phases and phase in self.estimate.phases]
        return {p: self.estimate.phases[p].total / self.opinion.traced.phases[p].total - 1 for p in both}

    def assumptions(self) -> tuple[str, ...]:
        """What the trace rests on, beside what the estimate assumes."""
        said = [f"traced with {', '.join(f'{name} {number}' for name, number in self.opinion.versions.items())}"]
        asked = version_of(self.setup, "transformers")
        installed = tuple(int(part) for part in self.opinion.versions["transformers"].split(".")[:2])
        if asked[:2] != installed:
            stated = ".".join(map(str, asked))
            said.append(f"dtypes and loss are those of transformers {stated}, the model's code is the installed one")
        if self.job.quantization_bit is not None:
            said.append("bitsandbytes is stood in by what its kernels allocate")
        if self.job.parallelism == "ddp":
            said.append("DDP is stood in by its gradient buckets")
        if self.job.attention == "flash_attention_2":
            said.append("flash_attention_2 is stood in by torch's own flash kernel")
        return tuple(said)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``runs`` and ``capacity_bytes`` are absent where no capacity is known."""
        answer: dict[str, Any] = {
            "setup": self.setup.to_dict(),
            "traced": {
                **self.opinion.traced.to_dict(),
                "reserved_bytes": self.opinion.reserved.reserved_peak_bytes,
            },
            "estimate": self.estimate.to_dict(),
            "difference": {"allocated": self.difference, "phases": self.phase_differences()},
            "versions": self.opinion.versions,
            "seconds": round(self.opinion.seconds, 1),
            "assumptions": [*self.assumptions(), *self.estimate.assumptions],
            "warnings": list(self.estimate.warnings),
        }
        if self.opinion.limited is not None:
            answer["runs"], answer["capacity_bytes"] = self.runs, self.free_bytes
            lost = self.opinion.limited.out_of_memory
            if lost is not None:
                answer["out_of_memory"] = {
                    "requested_bytes": lost.requested_bytes,
                    "live_bytes": lost.live_bytes,
                    "reserved_bytes": lost.reserved_bytes,
                }
        return answer


def second_opinion(
    setup: TrainingSetup,
    spec: ModelSpec,
    machine: Machine,
    estimate: Estimate,
    *,
    free_bytes: int | None = None,
    expandable_segments: bool = False,
    timeline: bool = False,
) -> SecondOpinion:
    """Trace the setup that ``estimate`` prices. Raises PlannerError, UnsupportedError for what is not traced.

    ``free_bytes`` None: the smallest card's capacity, where one is known.
    """
    setup = with_parallelism(setup, machine)
    job = job_of(setup, spec, config_for(setup.model), machine)
    free = free_bytes if free_bytes is not None else estimate.capacity_bytes
    allocator = None if free is None else max(free - estimate.context_bytes, 0)
    traced = opinion(job, capacity_bytes=allocator, expandable_segments=expandable_segments, detailed=timeline)
    return SecondOpinion(
        setup=setup, spec=spec, machine=machine, job=job, opinion=traced, estimate=estimate, free_bytes=free
    )
