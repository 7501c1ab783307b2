"""Emitted folders train for real: LLaMA-Factory on the CPU, a tiny model, two steps.

Full fine-tuning and ZeRO run through `plan run`, in tests/run/test_real_engines.py.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from planner.emit.folder import plan_files
from planner.emit.write import write_folder
from planner.training import TrainingSetup
from tests.emit.plans import machine, plan_of
from tests.engines.conftest import ScriptEngine

pytestmark = pytest.mark.engines

# What differs on a machine without a GPU: the device, and kernels that need one.
ON_CPU = ("use_cpu=true", "max_steps=2", "logging_steps=1", "cutoff_len=64", "dataloader_pin_memory=false")


def folder_for(path: Path, gpus: int = 1, data: str | None = None, **changes: object) -> Path:
    setup = TrainingSetup(model="-", parallelism="none" if gpus == 1 else "ddp").but(**changes)
    return write_folder(plan_files(plan_of(setup, on=machine(gpus), data=data)), path).folder


def logged_steps(folder: Path) -> list[dict]:
    lines = (folder / "output" / "trainer_log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


def train(engine: ScriptEngine, folder: Path, model: Path, *extra: str, **environment: str) -> list[dict]:
    words = ("bash", str(folder / "launch.sh"), f"model_name_or_path={model}", *ON_CPU, *extra)
    done = engine.run(*words, cwd=folder.parent, seconds=240, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return logged_steps(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora", "eval_micro_batch_size": 2},
        {"stage": "pt", "method": "freeze", "freeze_trainable_layers": 1, "packing": True},
        {"stage": "dpo", "method": "lora"},
        {"stage": "kto", "method": "lora"},
    ],
    ids=["sft-lora", "pt-freeze", "dpo-lora", "kto-lora"],
)
def test_one_process(engine: ScriptEngine, tiny_model: Path, tmp_path: Path, changes: dict) -> None:
    steps = train(engine, folder_for(tmp_path / "a folder with spaces", **changes), tiny_model)
    assert [step["current_steps"] for step in steps] == [1, 2]
    assert all(step["loss"] > 0 for step in steps)


def test_the_other_launchers_start_the_same_files(engine: ScriptEngine, tiny_model: Path, tmp_path: Path) -> None:
    folder = folder_for(tmp_path / "others", gpus=2)
    script = (folder / "launch.sh").read_text()
    commands = {line.split()[1]: line[1:].strip() for line in script.splitlines() if "llamafactory.launcher" in line}
    assert set(commands) == {"accelerate", "torchrun", "deepspeed"}
    for name in commands:
        overrides = [f"model_name_or_path={tiny_model}", *ON_CPU, f"output_dir={name}"]
        words = [*shlex.split(commands[name]), *overrides]
        if name == "accelerate":  # MULTI_GPU asks for GPUs before anything starts
            words = [word for word in words if word not in ("--config_file", "accelerate.yaml")]
            words[2:2] = ["--cpu", "--num_processes", "2"]
        if name == "deepspeed":  # the GPUs of CUDA_VISIBLE_DEVICES, of which there are none here
            words[1:1] = ["--num_gpus", "2"]
        done = engine.run(*words, cwd=folder, seconds=240)
        assert done.returncode == 0, name + done.stdout[-3000:] + done.stderr[-3000:]
        assert (folder / name / "train_results.json").exists()


def test_own_jsonl_with_input_and_target(engine: ScriptEngine, tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "my data.jsonl"
    data.write_text("".join(json.dumps({"input": f"Say {n}.", "target": str(n)}) + "\n" for n in range(20)))
    steps = train(engine, folder_for(tmp_path / "own", data=str(data)), tiny_model)
    assert len(steps) == 2
