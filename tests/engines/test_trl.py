"""TRL reads what is emitted with its own parser, and trains on it: a tiny model on the CPU."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from planner.emit.folder import plan_files
from planner.emit.write import write_folder
from planner.targets.trl_read import COMMANDS
from planner.training import TrainingSetup
from tests.emit.plans import machine, plan_of
from tests.engine_python import HUNG
from tests.engines.conftest import ScriptEngine

pytestmark = pytest.mark.engines

CASES: dict[str, dict] = {
    "lora": {},
    "lora-16-bit-base": {"param_dtype": "bf16", "lora_target": ("q_proj", "v_proj"), "additional_target": ("lm_head",)},
    "qlora": {"method": "qlora"},
    "qlora-8-bit": {"method": "qlora", "quantization_bit": 8},
    "dora": {"method": "dora", "gradient_checkpointing": False},
    "full": {"method": "full", "eval_micro_batch_size": 2, "optim": "paged_adamw_8bit"},
    "liger": {"liger_kernel": True, "attention": "flash_attention_2"},
    "pt": {"stage": "pt", "packing": True},
    "dpo": {"stage": "dpo"},
    "ipo": {"stage": "dpo", "pref_loss": "ipo", "method": "full"},
    "kto": {"stage": "kto"},
    "grpo": {"stage": "grpo", "gradient_accumulation_steps": 8, "eval_micro_batch_size": 8},
    "rm": {"stage": "rm"},
    "rm-full": {"stage": "rm", "method": "full"},
}
STEPS = 4
ON_CPU = ("use_cpu=true", f"max_steps={STEPS}", "logging_steps=1", "save_steps=2", "max_length=64", "eval_steps=2")


def folder_for(path: Path, gpus: int = 1, **changes: object) -> Path:
    setup = TrainingSetup(model="-", engine="trl", parallelism="none" if gpus == 1 else "ddp").but(**changes)
    return write_folder(plan_files(plan_of(setup, on=machine(gpus))), path).folder


def train(engine: ScriptEngine, folder: Path, model: Path, *extra: str, ok: bool = True, **environment: str) -> str:
    words = ("bash", str(folder / "launch.sh"), f"model_name_or_path={model}", *ON_CPU, *extra)
    done = _run(engine, folder, words, environment)
    if HUNG in done.stderr and STEPS in losses(folder):
        # Seen once: all was saved, and a rank waited on a lock of gloo's threads as its Python ended.
        shutil.rmtree(folder / "output")
        done = _run(engine, folder, words, environment)
    assert (done.returncode == 0) == ok, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr


def _run(
    engine: ScriptEngine, folder: Path, words: tuple[str, ...], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return engine.run(*words, cwd=folder.parent, seconds=120, HF_HOME=str(folder / ".cache"), **environment)


def log_of(folder: Path) -> list[dict]:
    log = folder / "output" / "trainer_log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def losses(folder: Path) -> dict[int, float]:
    return {line["current_steps"]: line["loss"] for line in log_of(folder) if "loss" in line}


def spoilt(folder: Path, line: str) -> Path:
    """The folder with one line of train.yaml replaced by what TRL has to refuse: the check itself can fail."""
    path = folder / "train.yaml"
    kept = [each for each in path.read_text().splitlines() if not each.startswith(line.partition(":")[0] + ":")]
    path.write_text("\n".join([*kept, line]))
    return folder


def test_trls_own_parser_understands_every_stage(newest: ScriptEngine, tmp_path: Path) -> None:
    folders = {name: folder_for(tmp_path / name, **changes) for name, changes in CASES.items()}
    stages = {name: CASES[name].get("stage", "sft") for name in CASES}
    words = [f"{COMMANDS[stages[name]]}={folder}" for name, folder in folders.items()]
    wrong = {"optim": "optim: adamw_fastest", "type": "lora_r: many"}
    refused = [spoilt(folder_for(tmp_path / f"wrong {name}"), line) for name, line in wrong.items()]
    words += [f"sft={folder}" for folder in refused]
    found = json.loads(newest.script("parse_trl_yaml.py", *words, cwd=tmp_path).rpartition("RESULT ")[2])
    assert all("problem" in found[str(folder)] for folder in refused)
    understood = {name: found[str(folder)] for name, folder in folders.items()}
    assert {name: each["problem"] for name, each in understood.items() if "problem" in each} == {}
    grpo = understood.pop("grpo")
    assert (grpo["length"], grpo["batch"], grpo["groups"]) == (512, [1, 8], [8, 8, 8])
    assert all(each["length"] == 2048 and each["batch"] == [1, 1] for each in understood.values())
    assert understood["lora"]["dtype"] == "float32"
    assert understood["lora"]["targets"] == "all-linear"
    assert understood["lora-16-bit-base"]["dtype"] == "bfloat16"
    assert (understood["qlora"]["bits"], understood["qlora"]["double"], understood["qlora-8-bit"]["bits"]) == (
        4,
        True,
        8,
    )
    assert understood["full"]["rank"] is None
    assert understood["full"]["optim"] == "paged_adamw_8bit"
    assert understood["dora"]["checkpointing"] is False
    assert understood["liger"]["liger"] is True
    assert understood["liger"]["attention"] == "flash_attention_2"
    assert understood["ipo"]["loss"] == ["ipo"]
    assert understood["rm"]["task"] == "SEQ_CLS"


def test_sft_with_adapters_goes_on_where_it_stopped(
    newest: ScriptEngine, newest_tiny_model: Path, tmp_path: Path
) -> None:
    setup = {"param_dtype": "bf16", "micro_batch_size": 2, "eval_micro_batch_size": 2}
    folder = folder_for(tmp_path / "a folder with spaces", **setup)
    message = train(newest, folder, newest_tiny_model, ok=False, VRAMPLAN_TEST_FAULT="oom@4")
    assert "torch.OutOfMemoryError: CUDA out of memory" in message
    before = losses(folder)
    train(newest, folder, newest_tiny_model)
    after = losses(folder)
    assert sorted(before) == [1, 2, 3]
    assert sorted(after) == [1, 2, 3, 4]
    assert after[3] == pytest.approx(before[3], abs=1e-4)
    assert {"eval_loss", "lr", "epoch"} <= {key for line in log_of(folder) for key in line}
    assert (folder / "output" / "adapter_model.safetensors").exists()


def test_preference_pairs_on_two_processes(newest: ScriptEngine, newest_tiny_model: Path, tmp_path: Path) -> None:
    folder = folder_for(tmp_path / "run", 2, stage="dpo", micro_batch_size=2)
    train(newest, folder, newest_tiny_model)
    assert sorted(losses(folder)) == [1, 2, 3, 4]
