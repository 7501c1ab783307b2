"""Seven plans as an expert would sign them, kept as text with a sentence of justification each.

After a change that is meant, ``VRAMPLAN_UPDATE_GOLDEN=1 pytest tests/plan/test_golden_plans.py`` writes them anew, and
the diff says what moved. Words of reasons and warnings are kept too: they are what a reader signs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.emit.folder import plan_files
from planner.hardware.parse import parse_machine
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request
from planner.units import show_gib

FOLDER = Path(__file__).resolve().parent / "golden"
UPDATE = os.environ.get("VRAMPLAN_UPDATE_GOLDEN") == "1"

# name -> flags, and why an expert signs what comes out.
JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "workstation-7b": (
        {"gpus": "3x20GB", "ram": "12GB", "model": "7B"},
        "Full fine-tuning needs 38 GiB of states a card and 12 GB of RAM rule offload out, so LoRA; the 16-bit base "
        "fits each card, so DDP, whose three ranks map the checkpoint and move it to the GPU tensor by tensor: nothing "
        "is copied on the host, and no loader processes or pinned memory are asked of it.",
    ),
    "rtx4090-8b": (
        {"gpus": "1xRTX4090", "model": "Qwen3-8B"},
        "15.3 GiB of weights leave room for LoRA with checkpointing and micro batch 4, without quantization; full "
        "fine-tuning would need the states of 122 GiB in host memory, of which nothing is known.",
    ),
    "a100x4-70b-full": (
        {"gpus": "4xA100-80GB", "model": "70B", "method": "full"},
        "16 bytes for each of 70.6 B parameters are 263 GiB a card over four: no plan is right, and LoRA, 24 such "
        "cards or 1.5 TB of host memory for the optimizer are the ways on.",
    ),
    "h100x16-72b-full": (
        {"gpus": "2x8xH100-80GB", "model": "Qwen2.5-72B", "method": "full"},
        "ZeRO-3 over sixteen holds 68 GiB of states a card, and with activations, gathered weights, context and NCCL "
        "the card is full to the last GiB: uncertain is the honest word, and a third node or the optimizer in host "
        "memory what makes it certain.",
    ),
    "h100x8-235b": (
        {"gpus": "8xH100-80GB", "model": "Qwen3-235B-A22B"},
        "470 GB of weights are 55 GiB a card, so LoRA under ZeRO-3 and nothing above it; that experts get no adapters "
        "and that every rank stacks the experts on a host of 3.5 TB with transformers 5.6 is said before it is run.",
    ),
    "t4-3b": (
        {"gpus": "1xT4", "model": "3B"},
        "A T4 has neither bf16 nor flash attention: fp16 under autocast with fp32 adapters, SDPA, and LoRA on the "
        "16-bit base, which fits without quantization.",
    ),
    "8gb-8b-qlora": (
        {"gpus": "1x8GB", "model": "8B", "method": "qlora"},
        "Five of the 7.8 GiB are an nf4 base with its 16-bit embedding and head; micro batch 1, checkpointing and the "
        "fused cross-entropy leave 0.1 GiB, so that a card that also drives a screen is warned of.",
    ),
}
SETUP = (
    "method", "parallelism", "offload", "quantization_bit", "micro_batch_size", "gradient_accumulation_steps",
    "gradient_checkpointing", "liger_kernel", "attention", "compute_dtype", "optim",
)  # fmt: skip
YAML = (
    "finetuning_type", "quantization_bit", "per_device_train_batch_size", "bf16", "fp16", "flash_attn",
    "enable_liger_kernel", "preprocessing_num_workers", "dataloader_num_workers", "dataloader_pin_memory",
    "deepspeed", "save_total_limit", "optim",
)  # fmt: skip


def command_of(flags: dict[str, Any]) -> str:
    return "plan " + " ".join(f"--{name} {value}" for name, value in flags.items())


def plan_of(flags: dict[str, Any]) -> Plan:
    request = Request(**flags)
    return make_plan(request, resolve(request.model), parse_machine(flags["gpus"], flags.get("ram")))


def lines(name: str) -> Iterator[str]:
    flags, why = JOBS[name]
    answer = plan_of(flags)
    yield f"$ {command_of(flags)}"
    yield f"signed because: {why}"
    yield f"verdict: {answer.verdict}"
    shown = answer.chosen or answer.nearest_miss
    assert shown is not None
    yield "chosen:" if answer.chosen else "nearest miss, not chosen:"
    yield from (f"  {field}: {json.dumps(getattr(shown.setup, field))}" for field in SETUP)
    need = shown.estimate
    yield f"  needs {show_gib(need.required_bytes)} of {show_gib(need.capacity_bytes or 0)} a GPU"
    yield f"  allocated {show_gib(need.allocated_bytes)} at the peak, which is {need.peak_phase}"
    yield f"  each node: {show_gib(need.host_bytes)} of RAM, {show_gib(need.disk_bytes)} of disk"
    yield f"  about {shown.speed.tokens_per_s:,.0f} tokens/s" if shown.speed else "  speed unknown"
    for title, sentences in (("why", answer.reasons), ("try", answer.remedies), ("warning", answer.warnings)):
        yield from (f"{title}: {sentence}" for sentence in sentences)
    yield from _emitted(answer)


def _emitted(answer: Plan) -> Iterator[str]:
    if answer.chosen is None:
        yield "files: none"
        return
    files = plan_files(answer)
    yield f"files: {', '.join(sorted(files))}"
    for line in files["train.yaml"].splitlines():
        if line.partition(":")[0] in YAML:
            yield f"train.yaml: {line}"
    for line in files["launch.sh"].splitlines():
        if line.startswith(("export ", ": ", "exec ")):
            yield f"launch.sh: {line.partition('  #')[0]}"


@pytest.mark.parametrize("name", sorted(JOBS))
def test_plan(name: str) -> None:
    path = FOLDER / f"{name}.txt"
    found = "\n".join(lines(name)) + "\n"
    if UPDATE:
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


def test_no_golden_plan_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(JOBS)


def test_the_guides_machine_gets_a_plan_that_loads() -> None:
    """12 GB of RAM: less than one 16-bit copy of the model, so that none may be made there."""
    answer = plan_of(JOBS["workstation-7b"][0])
    assert answer.verdict == "fits" and answer.chosen is not None
    assert answer.chosen.estimate.host_bytes < 12 * 2**30 < 2 * answer.model.parameters
