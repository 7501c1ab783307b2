"""Plans in folders of their own, and an engine whose processes are real."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from planner.cli.app import run
from planner.run.processes import marked
from planner.run.records import RunState
from planner.run.state import load_state, runs_of
from tests.run import furnished

ROOT = Path(__file__).resolve().parents[2]
TRAINER = Path(__file__).with_name("trainer.py")
ONE = "--gpus 1x24GB --ram 64GB --model Qwen2.5-0.5B --method lora --seq-len 512 --global-batch 8".split()
TWO = "--gpus 2x24GB --ram 64GB --model Qwen2.5-0.5B --method lora --seq-len 512 --global-batch 8".split()
TWELVE_STEPS = ("--set", "max_steps=12", "--set", "save_steps=4", "--set", "use_cpu=true")


class Desk:
    """A user's place: an engine, a home for the index, and plans."""

    def __init__(self, path: Path, plans: Path) -> None:
        self.path, self.plans = path, plans
        self.python = furnished.environment(path / "engine")
        furnished.cached_model(path / "hf", "Qwen/Qwen2.5-0.5B")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(path),
            "VRAMPLAN_HOME": str(path / "home"),
            "HF_HOME": str(path / "hf"),
            "PYTHONPATH": str(ROOT),
        }
        self._make_engine()

    def _make_engine(self) -> None:
        program = self.python.with_name("llamafactory-cli")
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {TRAINER} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def plan(self, words: list[str] = ONE, name: str = "plan") -> Path:
        """A folder as `plan` writes it: each plan is made once and copied."""
        made = self.plans / words[1]
        if not made.exists():
            assert run([*words, "--out", str(made)]) == 0
        return Path(shutil.copytree(made, self.path / name))

    def words(self, folder: Path, *extra: str) -> list[str]:
        return ["run", str(folder), "--python", str(self.python), *TWELVE_STEPS, *extra]

    def run(self, folder: Path, *extra: str) -> int:
        return run(self.words(folder, *extra))

    def start(self, folder: Path, *extra: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "planner", *self.words(folder, *extra)]
        return subprocess.Popen(
            command, env=self.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def state(self, folder: Path, number: int = -1) -> RunState:
        return load_state(runs_of(folder)[number])

    def logged(self, folder: Path) -> list[dict]:
        lines = (folder / "output" / "trainer_log.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture
def desk(tmp_path: Path, plans: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    made = Desk(tmp_path, plans)
    monkeypatch.setenv("VRAMPLAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    yield made
    for path in tmp_path.glob("*/runs/*"):
        assert marked(path.name) == [], "a process of the run is still there"


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch):
    def set_fault(**values: object) -> None:
        monkeypatch.setenv("LLAMAFACTORY_FAKE", json.dumps(values))

    return set_fault
