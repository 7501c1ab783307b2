"""Bad input: one sentence that names it, exit code 2, no traceback, no folder left behind; a few in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from planner.cli.app import run

ROOT = Path(__file__).resolve().parents[2]
HARDWARE = "--gpus 3x20GB"


def plan(words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "planner", *words.split()]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


# The command line -> what its sentence must name: the value and the nearest valid choice, or the rule.
CASES = {
    f"{HARDWARE} --model Qwen2.5-7": ("Qwen2.5-7",),
    f"{HARDWARE} --model Lama-3.1-8B": ("Lama-3.1-8B", "Llama-3.1-8B"),
    f"{HARDWARE} --model no/such-model-anywhere": ("no/such-model-anywhere",),
    f"{HARDWARE}": ("--model", "7B"),
    "--gpus 2xRTX4900 --model 7B": ("RTX4900", "4090"),
    "--gpus 3x --model 7B": ("3x",),
    "--gpus 0x20GB --model 7B": ("0x20GB",),
    "--gpus 3x0GB --model 7B": ("0GB",),
    "--gpus 3x20GB --ram lots --model 7B": ("lots", "--ram"),
    f"{HARDWARE} --model 7B --seq-len -5": ("-5", "seq_len"),
    f"{HARDWARE} --model 7B --seq-len 0": ("0", "seq_len"),
    f"{HARDWARE} --model 7B --global-batch -1": ("-1", "--global-batch"),
    f"{HARDWARE} --model 7B --seq-len 10000000": ("10000000",),
    f"{HARDWARE} --model 7B --lora-rank 100000": ("100000", "rank"),
    f"{HARDWARE} --model 7B --method loar": ("loar", "lora"),
    f"{HARDWARE} --model 7B --stage sfft": ("sfft", "sft"),
    f"{HARDWARE} --model 7B --forbid ligre": ("ligre", "liger"),
    f"{HARDWARE} --model 7B --ladder nowhere.toml": ("nowhere.toml",),
    f"{HARDWARE} --model 7B --data nowhere.json": ("nowhere.json",),
    f"{HARDWARE} --model 7B --stage grpo": ("grpo", "trl"),
    "--gpus 1x24GB --model 7B --stage grpo --engine trl --global-batch 11": ("grpo", "effective batch of 11", "of 8"),
    f"{HARDWARE} --model 7B --parallelism none": ("none", "3"),
    f"{HARDWARE} --model 7B --method full --param-dtype bf16 --parallelism zero3": ("zero3", "pure_bf16"),
    f"{HARDWARE} --model 7B --quantization-bit 8 --parallelism fsdp": ("8", "fsdp"),
    f"{HARDWARE} --model 7B --method galore --parallelism zero2": ("galore", "deepspeed", "rule"),
    "--machine nowhere.json --model 7B": ("nowhere.json", "--machine"),
    "--gpus 3x20GB --machine x.json --model 7B": ("--gpus", "--machine"),
    "estimate --gpus 3x20GB": ("model",),
    "estimate --gpus 3x20GB --model 7B --parallelism none": ("none",),
    "estimate --gpus 1xA100-80GB --model 7B --lora-rank 99999": ("99999",),
    "estimate --gpus 1xA100-80GB --model 7B --seq-len 9999999": ("9999999",),
    "estimate --gpus 2xA100-80GB --model 7B --method qlora --quantization-bit 8 --parallelism fsdp": ("8", "fsdp"),
    "estimate --from nowhere.jsonl": ("nowhere.jsonl", "--from"),
}


def judge(words: str, code: int, out: str, err: str, cwd: Path) -> None:
    assert code == 2, out + err
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("error: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2
    for word in CASES[words]:
        assert word.lower() in lines[0].lower(), lines[0]
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize("words", CASES)
def test_bad_input_is_one_sentence(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = run(words.split())
    judge(words, code, *capsys.readouterr(), tmp_path)


@pytest.mark.parametrize("words", list(CASES)[::8])
def test_bad_input_in_a_fresh_process(words: str, tmp_path: Path) -> None:
    answer = plan(words, tmp_path)
    judge(words, answer.returncode, answer.stdout, answer.stderr, tmp_path)


def test_bad_input_with_json_is_one_document(tmp_path: Path) -> None:
    answer = plan(f"{HARDWARE} --model Lama-3.1-8B --json", tmp_path)
    assert answer.returncode == 2
    assert "Llama-3.1-8B" in json.loads(answer.stdout)["error"]


CORRUPT = {
    "empty": "",
    "cut off": '{"model_type": "llama", "hidden_size": 4096',
    "a list": "[1, 2]",
    "not text": b"\xff\xfe\x00\x01",
    "no widths": '{"model_type": "llama"}',
    "a negative width": '{"model_type": "llama", "hidden_size": -1, "num_hidden_layers": 2, "num_attention_heads": 2, '
    '"intermediate_size": 8, "vocab_size": 100}',
    "words for numbers": '{"model_type": "llama", "hidden_size": "wide", "num_hidden_layers": 2, '
    '"num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 100}',
}


@pytest.mark.parametrize("what", CORRUPT)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_corrupt_config_is_named(
    what: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "model" / "config.json"
    config.parent.mkdir()
    content = CORRUPT[what]
    config.write_bytes(content if isinstance(content, bytes) else content.encode())
    model = config if form == "file" else config.parent
    monkeypatch.chdir(tmp_path)
    assert run([*HARDWARE.split(), "--model", str(model)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "config.json" in err.splitlines()[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_an_explicit_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    answer = plan(f"{HARDWARE} --model 7B --out out", tmp_path)
    assert answer.returncode == 2
    assert "out" in answer.stderr
    assert "--force" in answer.stderr
    assert [entry.name for entry in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("out", ["blocked/out", "blocked"])
def test_a_folder_that_cannot_be_made_is_named(out: str, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a folder is wanted")
    answer = plan(f"{HARDWARE} --model 7B --out {out}", tmp_path)
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert "blocked" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert (tmp_path / "blocked").read_text() == "a file where a folder is wanted"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o555)
    answer = plan(f"{HARDWARE} --model 7B --out shut/out", tmp_path)
    assert answer.returncode == 2
    assert "shut" in answer.stderr
