"""The settings files as text: what a reader of the folder sees. ``UPDATE_GOLDEN=1 pytest`` writes them anew."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from planner.targets import TARGETS
from planner.targets.context import EmitContext
from planner.training import TrainingSetup

GOLDEN = Path(__file__).parent / "golden"
ONE_GPU = EmitContext(model_path="Qwen/Qwen2.5-7B", hidden=3584, has_bf16=True, ram_bytes=64 << 30)
CASES = {
    "trl-dpo-lora.yaml": ("trl", 1, {"stage": "dpo", "param_dtype": "bf16", "micro_batch_size": 2}),
    "trl-sft-qlora.yaml": ("trl", 1, {"method": "qlora", "eval_micro_batch_size": 2, "liger_kernel": True}),
    "embedded-full-zero2.json": ("embedded", 2, {"method": "full", "parallelism": "zero2"}),
    "embedded-lora.json": ("embedded", 1, {"lora_rank": 64, "lora_dropout": 0.05, "eval_micro_batch_size": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_settings_are_as_they_were(name: str) -> None:
    engine, gpus, changes = CASES[name]
    target = TARGETS[engine]
    texts = target.files(TrainingSetup(model="7B").but(**changes), replace(ONE_GPU, gpus_per_node=gpus))
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(texts[target.file_name], encoding="utf-8")
    assert texts[target.file_name] == path.read_text(encoding="utf-8")
