"""A setup, a model and a machine -> bytes: ``price`` for the search, ``estimate`` for the reader.

Both run the same timeline; ``price`` keeps totals only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from planner.errors import InputError
from planner.hardware.machine import Machine
from planner.memory.habits import OWN_MODELING
from planner.memory.host import DiskNeed, HostNeed, host_bytes
from planner.memory.models import extra_model_bytes
from planner.memory.optimizer import OptimizerCost, optimizer_cost, together
from planner.memory.overhead import Overheads, overheads, workspace_bytes
from planner.memory.regime import Regime, resolve_regime
from planner.memory.remarks import assumptions_of, warnings_of, width_of
from planner.memory.replayed import replayed_bytes
from planner.memory.result import COVERAGE, PARTS, Breakdown, Estimate, Phase, Price, judge
from planner.memory.sharding import kept_per_layer_bytes_per_token, lay_out
from planner.memory.split import split
from planner.memory.stretches import Step, pinned_inputs
from planner.memory.timeline import ORDER, Timeline
from planner.memory.units import Parts, build_parts
from planner.model.spec import ModelSpec, Run
from planner.training import TrainingSetup


@dataclass(frozen=True, kw_only=True, slots=True)
class Worked:
    """One setup worked through: what both entry points read."""

    setup: TrainingSetup
    regime: Regime
    parts: Parts
    timeline: Timeline
    peak: Phase
    allocated_bytes: int
    overheads: Overheads
    host: HostNeed


def price(setup: TrainingSetup, spec: ModelSpec, machine: Machine, *, coverage: float = COVERAGE) -> Price:
    """Bytes per GPU of the worst rank, as integers, without explanation; required bytes at that coverage.

    Raises InputError for a parallelism that the machine's GPU count rules out.
    """
    worked = _work(setup, spec, machine, coverage=coverage)
    over = worked.overheads
    return Price(
        allocated_bytes=worked.allocated_bytes,
        reserved_bytes=over.reserved_bytes,
        device_bytes=over.device_bytes,
        required_bytes=over.required_bytes,
        context_bytes=over.context_bytes + over.nccl_bytes,
        host_bytes=worked.host.peak_bytes,
        peak_phase=worked.peak,
        least_disk_bytes=worked.host.disk.least_bytes,
        held_bytes=sum(worked.timeline.best["optimizer"][:3]),
        gathered_bytes=_gathered(worked.timeline),
    )


def estimate(
    setup: TrainingSetup, spec: ModelSpec, machine: Machine, *, coverage: float = COVERAGE, replayed: bool = True,
    lengths: Sequence[int] = (),
) -> Estimate:  # fmt: skip
    """The explained estimate of exactly this setup; bytes are integers, per GPU of the worst rank.

    ``replayed``: reserved and device memory come from the run's log under the caching allocator's own rules, which
    takes some hundredths of a second; False takes the formula that the search uses. ``lengths`` are those of
    consecutive micro batches where they differ and are known, ``seq_len`` among them: they move reserved and device
    memory alone.

    ``spec`` and ``machine`` are what the setup's model and gpus stand for. A machine without GPUs (a driver that
    answers nothing) is priced as one unknown card: no capacity, no verdict.
    Raises InputError for a parallelism that the machine's GPU count rules out.
    """
    worked = _work(setup, spec, machine, coverage=coverage)
    over, timeline = worked.overheads, worked.timeline
    found = replayed_bytes(timeline, worked.allocated_bytes, lengths) if replayed else None
    if found is not None:
        over = _overheads(timeline, machine, worked.allocated_bytes, coverage, replayed=found)
    capacity = machine.smallest.capacity_bytes if machine.gpus else None
    context = over.context_bytes + over.nccl_bytes
    verdict = None
    if capacity is not None:
        verdict = judge(
            allocated_bytes=worked.allocated_bytes, context_bytes=context,
            required_bytes=over.required_bytes, capacity_bytes=capacity,
        )  # fmt: skip
    phases = {phase: breakdown_of(timeline.best[phase]) for phase in ORDER if phase in timeline.best}
    return Estimate(
        allocated_bytes=worked.allocated_bytes,
        reserved_bytes=over.reserved_bytes,
        device_bytes=over.device_bytes,
        required_bytes=over.required_bytes,
        coverage=coverage,
        verdict=verdict,
        capacity_bytes=capacity,
        interval=over.interval(),
        peak_phase=worked.peak,
        breakdown=phases[worked.peak],
        context_bytes=context,
        phases={str(phase): parts for phase, parts in phases.items()},
        host_bytes=worked.host.peak_bytes,
        disk_bytes=worked.host.disk_bytes,
        checkpoint_bytes=worked.host.disk.checkpoint_bytes,
        trainable_parameters=worked.parts.trained,
        total_parameters=worked.parts.total,
        assumptions=(*assumptions_of(worked.setup, spec, machine, worked.regime), width_of(over, coverage)),
        warnings=warnings_of(worked.setup, spec, machine, worked.regime),
    )


def disk_need(setup: TrainingSetup, spec: ModelSpec, machine: Machine) -> DiskNeed:
    """What ``disk_bytes`` of a setup's estimate is made of."""
    return _work(setup, spec, machine).host.disk


def breakdown_of(values: tuple[int, ...]) -> Breakdown:
    """Seven integers in the order of ``PARTS``."""
    return Breakdown(**dict(zip(PARTS, values, strict=True)))


def with_parallelism(setup: TrainingSetup, machine: Machine) -> TrainingSetup:
    """The setup with the contract's default: ddp on several GPUs, none on one.

    Raises InputError for none on several.
    """
    ranks = max(machine.world_size, 1)
    if setup.parallelism is None:
        return setup.but(parallelism="ddp" if ranks > 1 else "none")
    if setup.parallelism == "none" and ranks > 1:
        raise InputError(
            f"parallelism 'none' cannot use {ranks} GPUs; choose ddp, zero2, zero3, fsdp or fsdp2, or name one GPU"
        )
    return setup


def as_built(setup: TrainingSetup, spec: ModelSpec) -> ModelSpec:
    """The model as its engine builds it: litgpt's file never ties the head to the embedding (litgpt/model.py, GPT),
    and its gate and up projections are always two modules (LLaMAMLP's fc_1 and fc_2), Phi-3's among them.
    """
    return _as_litgpt(spec) if setup.engine in OWN_MODELING else spec


@lru_cache(maxsize=64)
def _as_litgpt(spec: ModelSpec) -> ModelSpec:
    return replace(spec, tied_embeddings=False, runs=tuple(_with_gate_apart(run) for run in spec.runs))


def _with_gate_apart(run: Run) -> Run:
    mlp = run.block.mlp
    if mlp is None or not mlp.fused_gate_up:
        return run
    return replace(run, block=replace(run.block, mlp=replace(mlp, fused_gate_up=False)))


def _work(setup: TrainingSetup, spec: ModelSpec, machine: Machine, *, coverage: float = COVERAGE) -> Worked:
    setup = with_parallelism(setup, machine)
    if setup.stage == "grpo":  # prompts are as long as they are: every batch carries a mask
        setup = setup.but(padded=True)
    spec = as_built(setup, spec)
    regime = resolve_regime(setup, spec, has_bf16=_has_bf16(machine))
    whole = build_parts(setup, spec, regime)
    share = split(setup, spec, max(machine.world_size, 1))
    ranks, spec, asked, setup = share.ranks, share.spec, setup, share.setup
    parts = build_parts(setup, spec, regime)
    cost = optimizer_cost(setup, regime, parts.tensors)
    if parts.whole_tensors:
        state = regime.state if regime.master else regime.whole
        cost = together(cost, optimizer_cost(setup, replace(regime, state=state), parts.whole_tensors))
    layout = lay_out(setup, regime, parts.units, cost, ranks, max(machine.gpus_per_node, 1), spec.hidden)
    step = Step(
        setup=setup, spec=spec, regime=regime, parts=parts, layout=layout, workspace_bytes=workspace_bytes(machine),
        in_flight=share.in_flight,
        has_flash=_has_flash(machine),
        extra_weights=extra_model_bytes(setup, spec, regime, ranks),
        pinned_per_token=pinned_inputs(setup, parts, spec, regime),
        kept_per_layer_token=kept_per_layer_bytes_per_token(setup, regime, spec.hidden),
    )  # fmt: skip
    timeline = Timeline(step).run()
    totals = timeline.totals
    peak = max(totals, key=lambda phase: totals[phase])
    if not share.alone:
        setup, parts, cost = asked, whole, optimizer_cost(asked, regime, whole.tensors)
    host = _host(setup, spec, machine, regime, parts, cost)
    return Worked(
        setup=asked, regime=regime, parts=whole, timeline=timeline, peak=peak, allocated_bytes=totals[peak],
        overheads=_overheads(timeline, machine, totals[peak], coverage), host=host,
    )  # fmt: skip


def _host(
    setup: TrainingSetup, spec: ModelSpec, machine: Machine, regime: Regime, parts: Parts, cost: OptimizerCost
) -> HostNeed:
    """What the node needs, by the whole model: a cut one is read, saved and offloaded by all its ranks together."""
    return host_bytes(
        setup, regime, parts.units, max(machine.world_size, 1), max(machine.gpus_per_node, 1), cost=cost,
        hidden=spec.hidden, stored_here=spec.local_path is not None,
    )  # fmt: skip


def _overheads(
    timeline: Timeline, machine: Machine, allocated: int, coverage: float, *, replayed: int | None = None
) -> Overheads:
    step = timeline.step
    best = timeline.best
    loss = max(best["loss"][4], best["backward"][4])
    static = timeline.weights + step.layout.optimizer
    # Loading is over when the cache is empty: DeepSpeed empties it where it has partitioned (deepspeed/runtime/zero,
    # stage_1_and_2.py and stage3.py), FSDP shards what lies on the CPU, and elsewhere what is loaded stays.
    running = [values for phase, values in best.items() if phase != "load"]
    apart = sum(max(values[i] for values in running) for i in range(len(PARTS)))
    return overheads(
        step.setup, step.spec, machine,
        allocated_bytes=allocated, logits_bytes=loss,
        window_bytes=max(0, min(timeline.totals["backward"] - static, timeline.window)),
        gathered_bytes=_gathered(timeline), loss_phase_bytes=timeline.totals["loss"], apart_bytes=apart,
        idle_bytes=timeline.loss.idle, coverage=coverage, replayed_bytes=replayed,
        static_bytes=static, active_bytes=max(timeline.totals[phase] for phase in ("forward", "loss", "backward")),
    )  # fmt: skip


def _gathered(timeline: Timeline) -> int:
    return max(timeline.step.layout.gathered_forward, timeline.step.layout.gathered_backward)


@lru_cache(maxsize=512)
def _has_flash(machine: Machine) -> bool:
    """Flash attention kernels need compute capability 8.0; unknown cards are assumed to have it."""
    return all(gpu.compute_capability is None or gpu.compute_capability >= (8, 0) for gpu in machine.gpus)


@lru_cache(maxsize=512)
def _has_bf16(machine: Machine) -> bool | None:
    if not machine.gpus:
        return None
    known = [gpu.has_bf16 for gpu in machine.gpus]
    return False if False in known else (None if None in known else True)
