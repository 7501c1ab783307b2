"""Plan -> EmitContext: the model's place, the GPUs that take part, the host, the data."""

from __future__ import annotations

from pathlib import Path

from planner.data.source import DataSource
from planner.hardware.machine import Gpu, Machine
from planner.memory.host import CHECKPOINTS_KEPT, checkpoints_kept
from planner.plan.plan import Plan
from planner.targets.context import EmitContext
from planner.training import TrainingSetup


def emit_context(plan: Plan, setup: TrainingSetup, data: DataSource) -> EmitContext:
    """What the trainer's files need beside the setup; GPUs are the plan's, or its roomiest where one is used."""
    machine, spec = plan.machine, plan.model
    gpus = used_gpus(setup, machine)
    return EmitContext(
        model_path=_absolute(spec.local_path) if spec.local_path else spec.id,
        hidden=spec.hidden,
        gpus_per_node=len(gpus),
        nodes=1 if setup.parallelism == "none" else machine.nodes,
        devices=tuple(gpu.uuid if gpu.mig and gpu.uuid else str(gpu.index) for gpu in gpus),
        gpu_names=tuple(gpu.kind.name if gpu.kind else gpu.name for gpu in gpus),
        vendor=gpus[0].kind.vendor if gpus[0].kind else "nvidia",
        p2p=machine.links.p2p,
        driver=machine.driver,
        expandable_segments=all(rung.applied for rung in plan.ladder if rung.id == "expandable-segments"),
        has_bf16=_all_have_bf16(gpus),
        ram_bytes=machine.ram_bytes,
        host_spare_bytes=_host_spare_bytes(plan),
        checkpoints_kept=_checkpoints_kept(plan),
        cpu_cores=machine.cpu_cores,
        template=spec.template,
        trust_remote_code=spec.remote_code,
        stored_dtype=spec.stored_dtype,
        stored_quantization=spec.quantized.method if spec.quantized else None,
        dataset=data.dataset,
        eval_dataset=data.eval_dataset,
        samples=data.samples,
        mixing=data.mixing,
    )


def _host_spare_bytes(plan: Plan) -> int | None:
    room = plan.machine.host_room_bytes
    return None if room is None or plan.chosen is None else room - plan.chosen.estimate.host_bytes


def _checkpoints_kept(plan: Plan) -> int | None:
    """Fewer than the recipe keeps where the free disk is known and too small for them."""
    if plan.chosen is None:
        return None
    needed = plan.chosen.estimate
    kept = checkpoints_kept(needed.disk_bytes, needed.checkpoint_bytes, plan.machine.disk_free_bytes)
    return kept if kept < CHECKPOINTS_KEPT else None


def anchored(setup: TrainingSetup) -> TrainingSetup:
    """Local reference and reward models by absolute path: the run starts in its own folder."""
    paths = {name: getattr(setup, name) for name in ("ref_model", "reward_model")}
    return setup.but(**{name: _absolute(path) for name, path in paths.items() if path and Path(path).exists()})


def _absolute(path: str) -> str:
    """A model's folder, also where its config.json was named."""
    place = Path(path).expanduser().resolve()
    return str(place.parent if place.is_file() else place)


def used_gpus(setup: TrainingSetup, machine: Machine) -> tuple[Gpu, ...]:
    """The GPUs of one node that the setup runs on."""
    if setup.parallelism != "none":
        return machine.gpus
    return (max(machine.gpus, key=lambda gpu: gpu.capacity_bytes),)


def _all_have_bf16(gpus: tuple[Gpu, ...]) -> bool | None:
    answers = {gpu.has_bf16 for gpu in gpus}
    return False if False in answers else (True if answers == {True} else None)
