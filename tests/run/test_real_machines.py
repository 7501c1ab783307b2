"""A plan for two machines on the real engines: a `plan run` for each, on this one, over gloo and a shared folder."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from planner.run.processes import marked
from planner.run.records import RunState
from planner.run.state import load_state, runs_of
from tests.engine_python import engine_python
from tests.run.test_faults import wait_for
from tests.run.test_real_engines import LLAMAFACTORY, SCRIPT, Place, aborted_after_its_end, begin_anew, losses

pytestmark = pytest.mark.engines
PATIENCE_S = 120.0
RANKS = (0, 1)


class Pair:
    """Two machines' shares of one plan: a `plan run` with its own NODE_RANK each, all else alike."""

    def __init__(self, place: Place, folder: Path, settings: tuple[str, ...]) -> None:
        self.place, self.folder, self.settings = place, folder, settings
        self.going: list[subprocess.Popen[str]] = []
        self.runs: list[Path] = []

    def start(self, *more: str) -> None:
        before = set(runs_of(self.folder))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.going = [
            self.place.start(self.folder, (*self.settings, *more), NODE_RANK=str(rank), **meet) for rank in RANKS
        ]
        found = wait_for(lambda: new if len(new := self._since(before)) == len(RANKS) else [], PATIENCE_S)
        assert isinstance(found, list)
        self.runs = [path for _, path in sorted(found)]

    def _since(self, before: set[Path]) -> list[tuple[str, Path]]:
        new = [path for path in runs_of(self.folder) if path not in before and (path / "state.json").exists()]
        states = [(load_state(path), path) for path in new]
        return [(state.attempts[-1].environment["NODE_RANK"], path) for state, path in states if state.attempts]

    def state(self, rank: int) -> RunState:
        return load_state(self.runs[rank])

    def workers(self, rank: int) -> list[psutil.Process]:
        found = [psutil.Process(mark.pid) for mark in marked(self.runs[rank].name)]
        return [each for each in found if "LOCAL_RANK" in each.environ()]

    def codes(self) -> list[int]:
        """Both have to end by themselves; nothing of either may be left."""
        said = [going.communicate(timeout=PATIENCE_S) for going in self.going]
        assert [marked(path.name) for path in self.runs] == [[], []], said
        return [going.returncode for going in self.going]


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def step_of(folder: Path) -> int:
    there = [int(path.name.partition("-")[2]) for path in folder.glob("output/checkpoint-*[0-9]")]
    return max(there, default=0)


def saved_after(pair: Pair, step: int) -> None:
    """A checkpoint beyond that step is whole."""
    wait_for(lambda: step_of(pair.folder) > step, PATIENCE_S)
    time.sleep(0.3)
    assert [going.poll() for going in pair.going] == [None, None]


def test_machines_lose_each_other_and_resume_together(tmp_path_factory: pytest.TempPathFactory) -> None:
    """First a worker is killed, then one machine's run is stopped; the other ends by itself both times."""
    place = Place(tmp_path_factory.mktemp("two machines"), engine_python("VRAMPLAN_HF_PYTHON"))
    folder = place.plan("embedded", "--engine", "embedded", "--method", "lora", gpus="2x1x24GB")
    often = tuple(each.replace("save_steps=2", "save_steps=20") for each in SCRIPT)
    pair = Pair(place, folder, often)

    pair.start("arguments.max_steps=100000")
    saved_after(pair, 0)
    (worker,) = pair.workers(1)
    worker.kill()
    assert pair.codes() == [4, 4]
    first, second = (pair.state(rank).attempts[-1].diagnosis for rank in RANKS)
    assert first is not None
    assert second is not None
    assert (first.kind, second.kind) == ("lost_peer", "killed")
    assert first.cause == "a process on another machine ended, or the network to it broke"
    assert second.cause.startswith(f"process {worker.pid} was ended from outside (SIGKILL)")
    assert "resume on every machine with: plan run" in pair.state(0).next_step

    reached = step_of(folder)
    pair.start("arguments.max_steps=100000")
    saved_after(pair, reached)
    pair.going[0].send_signal(signal.SIGINT)
    assert pair.codes() == [130, 4]
    ended = pair.state(1).attempts[-1]
    assert ended.diagnosis is not None
    assert ended.diagnosis.kind == "lost_peer"
    assert ended.resumed_from == str(folder / "output" / f"checkpoint-{reached}")

    reached = step_of(folder)
    pair.start(f"arguments.max_steps={reached + 10}")
    assert pair.codes() == [0, 0]
    for rank in RANKS:
        (last,) = pair.state(rank).attempts
        assert last.resumed_from == str(folder / "output" / f"checkpoint-{reached}")
        assert (last.first_step, last.last_step, last.effective_batch) == (reached + 1, reached + 10, 8)
        report = json.loads((pair.runs[rank] / "report.json").read_text())
        assert (report["exit_code"], report["steps"]) == (0, reached + 10)
        assert (pair.runs[rank] / "report.html").exists()
    assert set(range(1, reached + 11)) <= set(losses(folder))


def test_llamafactory_on_two_machines(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = Place(tmp_path_factory.mktemp("two machines of the factory"), engine_python())
    folder = place.plan("zero2", "--method", "lora", "--parallelism", "zero2", gpus="2x1x24GB")
    pair = Pair(place, folder, LLAMAFACTORY)
    pair.start("max_steps=2")
    codes = pair.codes()
    if 4 in codes and any(aborted_after_its_end(pair.runs[rank]) for rank in RANKS):
        begin_anew(folder)
        pair.start("max_steps=2")
        codes = pair.codes()
    assert codes == [0, 0]
    assert losses(folder) == [1, 2]
    assert len(list(folder.glob("output/checkpoint-2/global_step2/*optim_states.pt"))) == 2
    for rank in RANKS:
        state = pair.state(rank)
        assert (state.status, state.attempts[-1].effective_batch) == ("finished", 8)
        assert state.checkpoint == str(folder / "output" / "checkpoint-2")
        assert (pair.runs[rank] / "report.html").exists()
