"""`plan run` on the real engines: tiny models on the CPU, real torchrun, a real torch.OutOfMemoryError."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planner.run.processes import marked
from planner.run.records import RunState
from planner.run.state import load_state, runs_of
from tests.engine_python import Engine, engine_python

pytestmark = pytest.mark.engines
ROOT = Path(__file__).resolve().parents[2]
MAKE_MODEL = ROOT / "tests" / "engines" / "scripts" / "make_tiny_model.py"
LLAMAFACTORY = ("use_cpu=true", "logging_steps=1", "save_steps=2", "dataloader_pin_memory=false",
                "enable_liger_kernel=false")  # fmt: skip
TRL = ("use_cpu=true", "logging_steps=1", "save_steps=2", "use_liger_kernel=false")
SCRIPT = ("arguments.use_cpu=true", "arguments.logging_steps=1", "arguments.save_steps=2",
          "arguments.use_liger_kernel=false")  # fmt: skip

# Python imports this module at its start where it finds it: the trainer then runs out of memory as torch says it.
OUT_OF_MEMORY = """
import os, sys
if "train" in sys.argv or any("train" in word for word in sys.argv):
    import transformers
    step = transformers.Trainer.training_step
    def training_step(self, *words, **named):
        if self.args.max_steps > 2 and self.state.global_step == 4 and self.args.per_device_train_batch_size > 4:
            import torch
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.28 GiB of which "
                "1.20 GiB is free. Including non-PyTorch memory, this process has 22.08 GiB memory in use. Of the "
                "allocated memory 21.40 GiB is allocated by PyTorch, and 210.00 MiB is reserved by PyTorch but "
                "unallocated."
            )
        return step(self, *words, **named)
    transformers.Trainer.training_step = training_step
"""


class Place:
    """A folder with a tiny model, and `plan` as a process of its own."""

    def __init__(self, path: Path, python: Path) -> None:
        self.path, self.python = path, python
        self.model = path / "model"
        engine = Engine(python)
        done = engine.run(str(python), str(MAKE_MODEL), str(self.model), cwd=path)
        assert done.returncode == 0, done.stderr
        self.environment = engine.environment(PYTHONPATH=str(ROOT), VRAMPLAN_HOME=str(path / "home"))

    def plan(self, name: str, *flags: str, gpus: int | str = 1) -> Path:
        cards = gpus if isinstance(gpus, str) else f"{gpus}x24GB"
        words = [sys.executable, "-m", "planner", "--gpus", cards, "--model", str(self.model)]
        words += ["--seq-len", "64", "--global-batch", "8", "--out", str(self.path / name), *flags]
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return self.path / name

    def start(self, folder: Path, settings: tuple[str, ...], *extra: str, **more: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "planner", "run", str(folder), "--python", str(self.python), *extra]
        for setting in settings:
            words += ["--set", setting]
        return subprocess.Popen(
            words, env=self.environment | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, folder: Path, settings: tuple[str, ...], *extra: str, **more: str) -> RunState:
        going = self.start(folder, settings, *extra, **more)
        out, err = going.communicate(timeout=280)
        if going.returncode == 4 and aborted_after_its_end(runs_of(folder)[-1]):
            begin_anew(folder)
            going = self.start(folder, settings, *extra, **more)
            out, err = going.communicate(timeout=280)
        log = (runs_of(folder)[-1] / "log").read_text()[-3000:]
        assert going.returncode == 0, out + err + log
        return load_state(runs_of(folder)[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("a place"), engine_python())


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same with the newest transformers, and TRL."""
    return Place(tmp_path_factory.mktemp("newest"), engine_python("VRAMPLAN_HF_PYTHON"))


def aborted_after_its_end(run: Path) -> bool:
    """A rank that had trained to the end and died as Python let go of gloo's threads (pytorch pull request 179291).

    Seen on the CPU about once in fifteen runs of LLaMA-Factory under ZeRO-3 on a busy machine, with these words and
    SIGABRT. `plan run` says so and fails, as it should.
    """
    state = load_state(run)
    found, now = state.attempts[-1].diagnosis, state.progress
    said = (run / "log").read_text()
    is_abort = found is not None and found.kind == "crashed" and found.facts["signal"] == signal.SIGABRT
    return is_abort and now.step == now.total_steps and "terminate called without an active exception" in said


def begin_anew(folder: Path) -> None:
    for name in ("output", "runs"):
        shutil.rmtree(folder / name)


def losses(folder: Path) -> list[int]:
    entries = map(json.loads, (folder / "output" / "trainer_log.jsonl").read_text().splitlines())
    return [entry["current_steps"] for entry in entries if "loss" in entry]


def test_a_true_out_of_memory_error_heals_and_resumes(place: Place) -> None:
    hook = place.path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(OUT_OF_MEMORY)
    folder = place.plan("heals", "--method", "lora")
    path = f"{hook}{os.pathsep}{ROOT}"
    state = place.run(folder, (*LLAMAFACTORY, "max_steps=6"), PYTHONPATH=path)
    rehearsal, first, second = state.attempts
    assert (rehearsal.purpose, rehearsal.last_step, rehearsal.diagnosis) == ("rehearsal", 2, None)
    assert first.diagnosis is not None
    assert first.diagnosis.kind == "cuda_oom"
    assert first.diagnosis.facts["requested_bytes"] == 2 << 30
    assert second.resumed_from is not None
    assert second.resumed_from.endswith("checkpoint-4")
    assert (second.first_step, second.last_step) == (5, 6)
    assert second.micro_batch_size < 8
    assert {first.effective_batch, second.effective_batch} == {8}
    assert losses(folder) == [1, 2, 3, 4, 5, 6]


def test_llamafactory_heals_on_two_processes(place: Place) -> None:
    """Under ZeRO-2: plain DDP cannot resume on several CPU processes (docs/running.md); DeepSpeed has its own files."""
    hook = place.path / "a hook for two"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(OUT_OF_MEMORY.replace("batch_size > 4", "batch_size > 2"))
    folder = place.plan("heals-on-two", "--method", "lora", "--parallelism", "zero2", gpus=2)
    path = f"{hook}{os.pathsep}{ROOT}"
    state = place.run(folder, (*LLAMAFACTORY, "max_steps=6"), "--skip-worst-case", PYTHONPATH=path)
    first, second = state.attempts
    assert first.diagnosis is not None
    assert first.diagnosis.kind == "cuda_oom"
    assert second.resumed_from is not None
    assert second.resumed_from.endswith("checkpoint-4")
    assert (first.micro_batch_size, first.effective_batch, second.effective_batch) == (4, 8, 8)
    assert second.micro_batch_size < 4
    assert losses(folder) == [1, 2, 3, 4, 5, 6]
    assert len(list((folder / "output" / "checkpoint-6").glob("global_step6/*optim_states.pt"))) == 2


ENGINES = {
    "llamafactory full": ("place", 1, LLAMAFACTORY, "--method full --packing"),
    "llamafactory lora ddp": ("place", 2, LLAMAFACTORY, "--method lora"),
    "llamafactory full zero2": ("place", 2, LLAMAFACTORY, "--method full --parallelism zero2"),
    "llamafactory lora zero3": ("place", 2, LLAMAFACTORY, "--method lora --parallelism zero3"),
    "trl full": ("newest", 1, TRL, "--engine trl --method full --packing"),
    "embedded full fsdp2": ("newest", 2, SCRIPT, "--engine embedded --method full --parallelism fsdp2"),
}


@pytest.mark.parametrize("name", ENGINES)
def test_to_the_end_with_a_checkpoint_and_a_report(name: str, request: pytest.FixtureRequest) -> None:
    where, gpus, settings, flags = ENGINES[name]
    place: Place = request.getfixturevalue(where)
    folder = place.plan(name.replace(" ", "-"), *flags.split(), gpus=gpus)
    section = "arguments." if settings is SCRIPT else ""
    state = place.run(folder, (*settings, f"{section}max_steps=2"), "--skip-worst-case")
    assert (state.status, state.progress.step) == ("finished", 2)
    assert losses(folder) == [1, 2]
    assert state.checkpoint == str(folder / "output" / "checkpoint-2")
    report = json.loads((runs_of(folder)[0] / "report.json").read_text())
    assert (report["exit_code"], report["error"]["tokens_per_s"]) == (0, None)
    assert (runs_of(folder)[0] / "report.html").exists()


def test_grpo_generates_rewards_and_learns_through_trl(newest: Place) -> None:
    """The whole of it on the CPU: the longest batch with completions of full length, then two steps, then a report."""
    folder = newest.plan("grpo", "--engine", "trl", "--stage", "grpo", "--method", "lora", "--seq-len", "32")
    state = newest.run(folder, (*TRL, "max_steps=2"))
    assert [(each.purpose, each.last_step, each.diagnosis) for each in state.attempts] == [
        ("rehearsal", 2, None), ("training", 2, None),
    ]  # fmt: skip
    prepared = [json.loads(line) for line in (folder / "prepared" / "train.jsonl").read_text().splitlines()]
    assert {tuple(each) for each in prepared} == {("prompt", "answer")}
    logged = (runs_of(folder)[-1] / "log").read_text()
    assert "'rewards/likeness/mean'" in logged
    assert "'completions/max_length': '16'" in logged or "'completions/max_length': 16" in logged
    assert state.checkpoint == str(folder / "output" / "checkpoint-2")


def test_the_embedded_engine_heals_on_two_processes(newest: Place) -> None:
    """DDP on gloo: the last process runs out of memory at step 4, half the micro batch goes on from step 2."""
    flags = ("--engine", "embedded", "--method", "lora", "--micro-batch-size", "2")
    folder = newest.plan("embedded-heals", *flags, gpus=2)
    settings = (*SCRIPT, "arguments.max_steps=5")
    state = newest.run(folder, settings, "--env", "VRAMPLAN_TEST_FAULT", VRAMPLAN_TEST_FAULT="oom@4:2")
    rehearsal, first, second = state.attempts
    assert (rehearsal.purpose, rehearsal.last_step, rehearsal.diagnosis) == ("rehearsal", 2, None)
    assert first.diagnosis is not None
    assert (first.diagnosis.kind, first.diagnosis.facts["phase"]) == ("cuda_oom", "forward")
    assert second.resumed_from is not None
    assert second.resumed_from.endswith("checkpoint-2")
    assert [(each.micro_batch_size, each.effective_batch) for each in (first, second)] == [(2, 8), (1, 8)]
    assert losses(folder) == [1, 2, 3, 3, 4, 5]
    assert "micro_batch_size 2 becomes 1, gradient_accumulation_steps 2 becomes 4" in state.healed[0]


def test_the_demo_in_any_python_that_trains(newest: Place) -> None:
    words = [sys.executable, "-m", "planner", "run", "--demo", "--python", str(newest.python), "--json"]
    words += ["--out", "a demo", "--skip-worst-case", "--set", "arguments.max_steps=60"]
    done = subprocess.run(words, cwd=newest.path, env=newest.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert (report["title"], report["steps"]) == ("sft of tiny-llama by full on the CPU", 60)
    lines = (newest.path / "a demo/output/trainer_log.jsonl").read_text().splitlines()
    found = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert found[-1] < found[0] - 1.5
    again = subprocess.run(words, cwd=newest.path, env=newest.environment, capture_output=True, text=True)
    assert (again.returncode, "needs an empty folder" in again.stderr) == (2, True)


def test_ctrl_c_ends_torchrun_and_its_workers(place: Place) -> None:
    folder = place.plan("stops", "--method", "lora", gpus=2)
    going = place.start(folder, (*LLAMAFACTORY, "max_steps=5000"), "--skip-worst-case")
    end = time.monotonic() + 120
    while time.monotonic() < end and not (folder / "output" / "checkpoint-4").exists():
        time.sleep(0.2)
    run_id = runs_of(folder)[0].name
    assert len(marked(run_id)) >= 4
    going.send_signal(signal.SIGINT)
    out, err = going.communicate(timeout=90)
    assert going.returncode == 130, out + err
    assert marked(run_id) == []
    assert "checkpoint-" in load_state(runs_of(folder)[0]).message


def test_the_transformers_script(place: Place) -> None:
    folder = place.plan("script", "--method", "lora", "--engine", "transformers")
    state = place.run(folder, (*SCRIPT, "arguments.max_steps=4"))
    assert [attempt.purpose for attempt in state.attempts] == ["rehearsal", "training"]
    assert state.progress.step == 4
    assert state.progress.loss is not None
