"""The embedded engine trains for real on the CPU: it learns the same in any sharding, and goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from planner.emit.folder import plan_files
from planner.emit.write import write_folder
from planner.training import TrainingSetup
from tests.emit.plans import machine, plan_of
from tests.engines.conftest import ScriptEngine

pytestmark = pytest.mark.engines

Done = subprocess.CompletedProcess[str]
STEPS = 6
ON_CPU = (
    "arguments.use_cpu=true", f"arguments.max_steps={STEPS}", "arguments.logging_steps=1", "arguments.save_steps=3",
    "arguments.learning_rate=0.001", "data.cutoff_len=64",
)  # fmt: skip
WHOLE = {"method": "full", "packing": True, "gradient_accumulation_steps": 2}


def folder_for(path: Path, gpus: int = 1, **changes: object) -> Path:
    setup = TrainingSetup(model="-", engine="embedded", parallelism="none" if gpus == 1 else "ddp").but(**changes)
    return write_folder(plan_files(plan_of(setup, on=machine(gpus))), path).folder


def start(engine: ScriptEngine, folder: Path, model: Path, *extra: str, **environment: str) -> Done:
    words = ("bash", str(folder / "launch.sh"), f"model.name_or_path={model}", *ON_CPU, *extra)
    return engine.run(*words, cwd=folder.parent, seconds=240, **environment)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "output" / "trainer_log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    """Step to loss; of a step that was done again the last one counts."""
    return {line["current_steps"]: line["loss"] for line in log_of(folder) if "loss" in line}


def train(engine: ScriptEngine, folder: Path, model: Path, *extra: str) -> dict[int, float]:
    done = start(engine, folder, model, *extra)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return losses(folder)


@pytest.fixture(scope="module")
def whole(newest: ScriptEngine, newest_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Full fine-tuning in one process: what every sharding should learn too."""
    folder = folder_for(tmp_path_factory.mktemp("whole") / "a folder", **WHOLE, micro_batch_size=2)
    found = train(newest, folder, newest_tiny_model)
    assert sorted(found) == list(range(1, STEPS + 1))
    assert found[STEPS] < found[1] - 0.1
    return found


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_does(
    newest: ScriptEngine, newest_tiny_model: Path, tmp_path: Path, whole: dict[int, float], parallelism: str
) -> None:
    folder = folder_for(tmp_path / parallelism, gpus=2, **WHOLE, parallelism=parallelism)
    assert train(newest, folder, newest_tiny_model) == pytest.approx(whole, abs=2e-3)
    assert (folder / "output" / "model.safetensors").stat().st_size > 100_000


def test_leaving_layers_out_of_checkpointing_learns_the_same(
    newest: ScriptEngine, newest_tiny_model: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    folder = folder_for(tmp_path / "some", **WHOLE, micro_batch_size=2, gradient_checkpointing=2)
    assert train(newest, folder, newest_tiny_model) == pytest.approx(whole, abs=2e-3)
    which = (
        "import sys; sys.argv = ['train.py'];"
        "from train import leave_layers_out; from transformers import AutoConfig, AutoModelForCausalLM;"
        f"config = AutoConfig.from_pretrained({str(newest_tiny_model)!r}, num_hidden_layers=7);"
        "model = AutoModelForCausalLM.from_config(config); model.gradient_checkpointing_enable();"
        "print([[leave_layers_out(model, n), *(int(each.gradient_checkpointing) for each in model.model.layers)][1:]"
        " for n in (1, 2, 3)])"
    )
    done = newest.run(str(newest.python), "-c", which, cwd=folder)
    assert done.stdout.splitlines()[-1] == str([[1] * 7, [0, 1, 0, 1, 0, 1, 0], [0, 0, 1, 0, 0, 1, 0]]), done.stderr


def test_zero_2_learns_the_same(
    engine: ScriptEngine, tiny_model: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    """In LLaMA-Factory's environment, which has DeepSpeed; its grad norm is that of the whole effective batch too."""
    folder = folder_for(tmp_path / "zero2", gpus=2, **WHOLE, parallelism="zero2")
    assert train(engine, folder, tiny_model, "arguments.max_steps=2") == pytest.approx(
        {step: whole[step] for step in (1, 2)}, abs=2e-3
    )


def test_a_run_that_ran_out_of_memory_goes_on_as_if_nothing_had_happened(
    newest: ScriptEngine, newest_tiny_model: Path, tmp_path: Path
) -> None:
    """With dropout, so that the random state counts; the second half with half the micro batch would shift it."""
    setup = {"method": "lora", "lora_dropout": 0.1, "micro_batch_size": 2, "gradient_accumulation_steps": 2}
    straight = train(newest, folder_for(tmp_path / "straight", **setup), newest_tiny_model)
    folder = folder_for(tmp_path / "broken", **setup)
    broken = start(newest, folder, newest_tiny_model, VRAMPLAN_TEST_FAULT="oom@5:2")
    assert broken.returncode != 0
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB" in broken.stderr
    assert "out of memory at step 5, forward, batch 2 x" in broken.stderr
    assert json.loads((folder / "output/checkpoint-3/trainer_state.json").read_text())["global_step"] == 3
    assert train(newest, folder, newest_tiny_model) == straight
    assert [line["current_steps"] for line in log_of(folder) if line.get("event") == "checkpoint"] == [3, 6]
    assert (folder / "output" / "adapter_model.safetensors").exists()


def test_a_smaller_micro_batch_goes_on_with_the_same_samples(
    newest: ScriptEngine, newest_tiny_model: Path, tmp_path: Path, whole: dict[int, float]
) -> None:
    folder = folder_for(tmp_path / "healed", **WHOLE, micro_batch_size=2, eval_micro_batch_size=2)
    held_in = ("data.eval_dataset=vramplan_demo",)  # evaluated on what is trained on, so that nothing is held out
    assert start(newest, folder, newest_tiny_model, *held_in, VRAMPLAN_TEST_FAULT="oom@5:2").returncode != 0
    smaller = ("arguments.per_device_train_batch_size=1", "arguments.gradient_accumulation_steps=4")
    environment = {"VRAMPLAN_TEST_FAULT": "oom@5:2"}  # still there, and one sample at a time survives it
    done = start(newest, folder, newest_tiny_model, *held_in, *smaller, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert losses(folder) == pytest.approx(whole, abs=2e-3)
    assert any("eval_loss" in line for line in log_of(folder))
