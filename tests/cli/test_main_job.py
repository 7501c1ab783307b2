"""The main job from end to end: the screen, the document, the folder and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import planner
from planner.cli.app import run
from planner.hardware.parse import parse_machine
from planner.plan.serialize import plan_to_dict

ROOT = Path(__file__).resolve().parents[2]
JOB = ["--gpus", "3x20GB", "--model", "7B"]
# The sections of the contract's plan object.
KEYS = {
    *("verdict", "request", "machine", "chosen", "configurations", "ladder"),
    *("folder", "files", "command", "assumptions", "warnings", "version"),
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    return answer


def test_the_document_has_the_contracts_sections(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*JOB, "--json"]) == 0
    answer = document(capsys)
    assert answer.keys() >= KEYS
    assert answer["verdict"] == "fits"
    chosen = answer["chosen"]
    assert chosen["estimate"]["required_bytes"] <= chosen["estimate"]["capacity_bytes"]
    assert {"setup", "estimate", "speed"} <= chosen.keys()
    assert chosen in answer["configurations"]
    assert [rung["id"] for rung in answer["ladder"] if rung["applied"]]


def test_the_folder_holds_what_the_document_names(capsys: pytest.CaptureFixture[str]) -> None:
    run([*JOB, "--json"])
    answer = document(capsys)
    folder = Path(answer["folder"])
    assert folder.parent == Path("plans")
    assert {"train.yaml", "launch.sh", "plan.json", "README.md", "dataset_info.json"} <= set(answer["files"])
    assert all((folder / name).is_file() for name in answer["files"])
    assert answer["command"] == f"bash {folder / 'launch.sh'}"
    stored = json.loads((folder / "plan.json").read_text())
    assert stored["chosen"] == answer["chosen"]
    assert subprocess.run(["bash", "-n", folder / "launch.sh"], check=False).returncode == 0


def test_the_same_plan_again_leaves_its_folder_alone(capsys: pytest.CaptureFixture[str]) -> None:
    run([*JOB, "--json"])
    first = Path(document(capsys)["folder"])
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert run(JOB) == 0
    assert "unchanged" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before


def test_a_different_plan_of_that_name_gets_the_next_number(capsys: pytest.CaptureFixture[str]) -> None:
    run([*JOB, "--json"])
    first = document(capsys)["folder"]
    run([*JOB, "--global-batch", "30", "--json"])
    assert document(capsys)["folder"] == f"{first}-2"


def test_an_explicit_folder_is_replaced_only_with_force(capsys: pytest.CaptureFixture[str]) -> None:
    out = Path("mine")
    out.mkdir()
    (out / "train.yaml").write_text("precious: true\n")
    assert run([*JOB, "--out", "mine"]) == 2
    assert (out / "train.yaml").read_text() == "precious: true\n"
    assert run([*JOB, "--out", "mine", "--force"]) == 0
    assert "precious" not in (out / "train.yaml").read_text()
    assert not Path("plans").exists()


def test_nothing_fits_ends_with_1_and_writes_nothing(capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    assert run(["--gpus", "1x8GB", "--model", "70B", "--json"]) == 1
    answer = document(capsys)
    assert answer["chosen"] is None
    assert answer["folder"] is None
    assert answer["nearest_miss"]["estimate"]["verdict"] != "fits"
    assert answer["remedies"]
    assert list(empty_folder.iterdir()) == []


def test_an_engine_without_files_is_planned_for_and_says_so(
    capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert run([*JOB, "--engine", "axolotl", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["folder"] is None
    assert "nothing is written for engine axolotl" in err
    assert list(empty_folder.iterdir()) == []
    assert run([*JOB, "--engine", "axolotl", "--out", "here"]) == 2


def test_full_fine_tuning_of_a_7b_is_refused_there_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*JOB, "--method", "full", "--ram", "12GB"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "full fine-tuning does not fit" in text
    assert "host memory" in text


@pytest.mark.parametrize(
    ("flags", "of_chosen"),
    [
        (["--method", "qlora"], {"method": "qlora", "quantization_bit": 4}),
        (["--forbid", "liger"], {"liger_kernel": False}),
        (["--lora-rank", "32"], {"lora_rank": 32}),
        (["--micro-batch-size", "1"], {"micro_batch_size": 1}),
        (["--seq-len", "512"], {"seq_len": 512}),
        (["--parallelism", "fsdp", "--method", "qlora"], {"parallelism": "fsdp"}),
    ],
)
def test_what_is_asked_for_is_kept(
    flags: list[str], of_chosen: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    run([*JOB, *flags, "--json"])
    setup = document(capsys)["chosen"]["setup"]
    assert {name: setup[name] for name in of_chosen} == of_chosen


def test_the_effective_batch_is_the_nearest_that_divides(capsys: pytest.CaptureFixture[str]) -> None:
    run([*JOB, "--json"])
    answer = document(capsys)
    setup = answer["chosen"]["setup"]
    assert setup["micro_batch_size"] * setup["gradient_accumulation_steps"] * 3 == 63
    assert any("63" in warning for warning in answer["warnings"])


def test_python_gives_the_same_plan(capsys: pytest.CaptureFixture[str]) -> None:
    run([*JOB, "--json"])
    answer = document(capsys)
    plan = planner.plan(planner.Request(model="7B", gpus="3x20GB"), parse_machine("3x20GB", None))
    mine = json.loads(json.dumps(plan_to_dict(plan)))
    assert {name: mine[name] for name in mine if name not in ("folder", "files", "command")} == {
        name: answer[name] for name in answer if name not in ("folder", "files", "command")
    }


def in_a_pipe(encoding: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "TERM": "dumb"}
    command = [sys.executable, "-m", "planner", *JOB]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, check=False)


def test_piped_it_is_plain_text_of_80_columns(empty_folder: Path) -> None:
    done = in_a_pipe("utf-8", empty_folder)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert "\x1b" not in text
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_piped_into_ascii_it_stays_readable(empty_folder: Path) -> None:
    done = in_a_pipe("ascii", empty_folder)
    assert done.returncode == 0
    text = done.stdout.decode("ascii")
    assert "\\u" not in text
    assert "->" in text


def test_a_reader_that_leaves_is_not_a_failure(empty_folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = f"set -o pipefail; {sys.executable} -m planner {' '.join(JOB)} | head -n 1"
    done = subprocess.run(["bash", "-c", pipe], env=environment, capture_output=True, check=False, cwd=empty_folder)
    assert (done.returncode, done.stderr) == (0, b"")
