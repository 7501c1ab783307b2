"""The README of a plan's folder: what was chosen, why, what it needs, and how to go on."""

from __future__ import annotations

from collections.abc import Sequence

from planner.data.source import DEMO, DataSource
from planner.emit.guides import guide_of
from planner.emit.render import render
from planner.memory.result import PARTS
from planner.plan.plan import Configuration, Plan
from planner.targets.context import EmitContext
from planner.training import ZERO, TrainingSetup
from planner.units import show_count, show_gib

_WHAT = {
    "train.py": "the training script",
    "train_args.json": "every setting of the script, which runs transformers' Trainer",
    "train.json": "every setting of the script, which is a loop around accelerate",
    "samples.py": "reads the data and makes token ids and labels of it",
    "model.py": "loads the model, quantized and with adapters where the settings say so",
    "progress.py": "writes `trainer_log.jsonl`",
    "checkpoints.py": "writes checkpoints, and goes on from the last one",
    "sharding.py": "FSDP 2 by PyTorch's fully_shard",
    "train.yaml": "the trainer's arguments, every one that memory depends on stated",
    "ds_config.json": "DeepSpeed's settings, with the buckets that were priced",
    "accelerate.yaml": "the launch configuration of accelerate",
    "dataset_info.json": "names the data and its columns",
    "launch.sh": "starts the run; other launchers as comments",
    "plan.json": "the whole plan: request, machine, choice, alternatives, ladder",
    "rewards.py": "the reward of a completion: likeness to the data's answer, until you write your own",
    "README.md": "this file",
}


def readme(
    plan: Plan,
    chosen: Configuration,
    setup: TrainingSetup,
    context: EmitContext,
    data: DataSource,
    *,
    names: Sequence[str],
) -> str:
    """The README as Markdown; ``setup`` is the settled one, ``names`` every file of the folder."""
    estimate, guide = chosen.estimate, guide_of(setup.engine)
    return render(
        "README.md.j2",
        title=_line(f"{plan.model.id}: {setup.stage} by {setup.method}"),
        summary=_line(_summary(chosen)),
        is_demo=data.is_demo,
        demo=DEMO,
        data=_line(data.shown),
        samples=data.samples,
        facts=[(name, _cell(value)) for name, value in _facts(chosen, setup, context)],
        breakdown=_breakdown(chosen),
        peak_phase=estimate.peak_phase,
        reasons=[_line(each) for each in (chosen.reason, *plan.reasons) if each],
        warnings=[_line(each) for each in dict.fromkeys((*plan.warnings, *estimate.warnings))],
        assumptions=[_line(each) for each in dict.fromkeys((*plan.assumptions, *estimate.assumptions))],
        files=[(name, _WHAT.get(name, "training samples")) for name in sorted(names)],
        packages=guide.packages(setup),
        nodes=context.nodes,
        smaller=_smaller(setup),
        batch_in_deepspeed=setup.parallelism in ZERO,
        is_nvme=setup.offload == "nvme",
        several=context.world_size > 1,
        has_unused_validation=data.eval_dataset is not None and setup.eval_micro_batch_size is None,
        log_note=guide.log_note,
        settings_file=guide.settings_file,
        after=guide.after(setup, context),
    )


def _smaller(setup: TrainingSetup) -> tuple[int, int] | None:
    """The next smaller micro batch with the same effective batch, and its accumulation; None at micro batch 1."""
    micro, each = setup.micro_batch_size, setup.micro_batch_size * setup.gradient_accumulation_steps
    size = next((size for size in range(micro - 1, 0, -1) if each % size == 0), None)
    return None if size is None else (size, each // size)


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _summary(chosen: Configuration) -> str:
    estimate = chosen.estimate
    needs = f"Needs {show_gib(estimate.required_bytes)} on each GPU"
    if estimate.capacity_bytes is None or estimate.verdict is None:
        return f"{needs}; the capacity of the GPU is not known."
    verdict = {"fits": "it fits", "uncertain": "it may not fit", "does_not_fit": "it does not fit"}[estimate.verdict]
    return f"{needs} of {show_gib(estimate.capacity_bytes)} ({estimate.coverage:.0%} coverage): {verdict}."


def _facts(chosen: Configuration, setup: TrainingSetup, context: EmitContext) -> list[tuple[str, str]]:
    estimate, speed = chosen.estimate, chosen.speed
    sequences = setup.micro_batch_size * setup.gradient_accumulation_steps * context.world_size
    batch = f"{setup.micro_batch_size} × {setup.gradient_accumulation_steps} accumulation × {context.world_size} GPU(s)"
    trained = f"{show_count(estimate.trainable_parameters)} of {show_count(estimate.total_parameters)}"
    facts = [
        ("model", context.model_path),
        ("method", _method(setup)),
        ("trained parameters", trained),
        ("sequence length", f"{setup.seq_len} tokens{', packed' if setup.packing else ''}"),
        ("effective batch", f"{sequences} sequences = {batch}"),
        ("parallelism", f"{setup.parallelism}, offload {setup.offload}"),
        ("optimizer", setup.optim),
        ("compute dtype", str(setup.compute_dtype)),
        ("gradient checkpointing", _checkpointing(setup)),
        ("attention", setup.attention),
        ("host memory", show_gib(estimate.host_bytes)),
    ]
    if speed is not None:
        low, high = speed.low_tokens_per_s, speed.high_tokens_per_s
        facts.append(("predicted speed", f"{speed.tokens_per_s:,.0f} tokens/s ({low:,.0f} to {high:,.0f})"))
    return facts


def _checkpointing(setup: TrainingSetup) -> str:
    how = setup.gradient_checkpointing
    return ("on" if how else "off") if isinstance(how, bool) else f"one layer in {how}"


def _method(setup: TrainingSetup) -> str:
    if not setup.is_adapter:
        return setup.method
    target = setup.lora_target if isinstance(setup.lora_target, str) else ", ".join(setup.lora_target)
    bits = f", base in {setup.quantization_bit} bit" if setup.quantization_bit else ""
    return f"{setup.method}, rank {setup.lora_rank} on {target}{bits}"


def _breakdown(chosen: Configuration) -> list[tuple[str, str]]:
    estimate = chosen.estimate
    parts = estimate.breakdown.to_dict()
    rows = [(part, show_gib(parts[part], digits=2)) for part in PARTS if parts[part]]
    rows.append(("**allocated**", show_gib(estimate.allocated_bytes, digits=2)))
    rows.append(("context and libraries", show_gib(estimate.context_bytes, digits=2)))
    rows.append(("as nvidia-smi shows it, with cache", show_gib(estimate.device_bytes, digits=2)))
    rows.append(("**required**", show_gib(estimate.required_bytes, digits=2)))
    if estimate.capacity_bytes is not None:
        rows.append(("capacity", show_gib(estimate.capacity_bytes, digits=2)))
    return rows
