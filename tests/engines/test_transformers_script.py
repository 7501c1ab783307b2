"""The plain transformers script trains for real on the CPU: a tiny model, two steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.emit.folder import plan_files
from planner.emit.write import write_folder
from planner.training import TrainingSetup
from tests.emit.plans import machine, plan_of
from tests.engines.conftest import ScriptEngine

pytestmark = pytest.mark.engines

ON_CPU = ("arguments.use_cpu=true", "arguments.max_steps=2", "arguments.logging_steps=1", "data.cutoff_len=64")


def train(engine: ScriptEngine, folder: Path, model: Path, *extra: str) -> dict:
    words = ("bash", str(folder / "launch.sh"), f"model.name_or_path={model}", *ON_CPU, *extra)
    done = engine.run(*words, cwd=folder.parent, seconds=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    state: dict = json.loads((folder / "output" / "trainer_state.json").read_text())
    return state


@pytest.mark.parametrize(
    ("gpus", "changes"),
    [
        (1, {"method": "lora", "eval_micro_batch_size": 2, "micro_batch_size": 2}),
        (1, {"method": "full", "packing": True}),
        (1, {"method": "qlora", "stage": "pt"}),
        (2, {"method": "dora", "parallelism": "ddp"}),
    ],
    ids=["lora", "full-packed", "pt-qlora", "ddp-dora"],
)
def test_two_steps(engine: ScriptEngine, tiny_model: Path, tmp_path: Path, gpus: int, changes: dict) -> None:
    setup = TrainingSetup(model="-", engine="transformers", parallelism="none" if gpus == 1 else None).but(**changes)
    folder = write_folder(plan_files(plan_of(setup, on=machine(gpus))), tmp_path / "a plan").folder
    state = train(engine, folder, tiny_model)
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert state["global_step"] == 2
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)


def test_dialogues_in_a_file_of_ones_own(engine: ScriptEngine, tiny_model: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    data = tmp_path / "chat.jsonl"
    data.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(8)))
    setup = TrainingSetup(model="-", engine="transformers", parallelism="none")
    files = plan_files(plan_of(setup, on=machine(1), data=str(data)))
    assert train(engine, write_folder(files, tmp_path / "own").folder, tiny_model)["global_step"] == 2
