"""A run over several machines, each with its own `plan run` in one folder that all of them see: who is whose."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from planner.cli.app import run
from planner.run.checkpoints import set_unfinished_aside
from planner.run.processes import marked
from planner.run.records import RunState
from planner.run.recover import is_lost, left_running, recover_all
from planner.run.state import RunFolder, load_state, new_run, remember, runs_of
from tests.run.conftest import Desk
from tests.run.states import running
from tests.run.test_faults import step_of, wait_for

SHARES = "--gpus 2x1x24GB --ram 64GB --model Qwen2.5-0.5B --method lora --seq-len 512 --global-batch 8".split()
ENDLESS = '{"step_s": 0.05}'


def start(desk: Desk, folder: Path, rank: str, *extra: str) -> subprocess.Popen[str]:
    here = {"NODE_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617", "LLAMAFACTORY_FAKE": ENDLESS}
    return desk.start(folder, "--set", "max_steps=5000", *extra, **here)


def by_share(folder: Path) -> dict[str, RunState]:
    states = [load_state(path) for path in runs_of(folder) if (path / "state.json").exists()]
    return {state.attempts[-1].environment["NODE_RANK"]: state for state in states if state.attempts}


def test_every_machine_has_its_own_run_in_the_folder_and_leaves_the_others_alone(desk: Desk) -> None:
    folder = desk.plan(SHARES)
    shares = {rank: start(desk, folder, rank) for rank in ("0", "1")}
    states = wait_for(lambda: found if len(found := by_share(folder)) == 2 else {})
    assert {state.status for state in states.values()} == {"running"}
    assert {state.machine for state in states.values()} == {socket.gethostname()}
    wait_for(lambda: step_of(desk, folder) >= 5)

    twice = start(desk, folder, "1")
    _, err = twice.communicate(timeout=60)
    assert (twice.returncode, "is being run already" in err, "as NODE_RANK 1" in err) == (2, True, True)

    shares["1"].kill()
    shares["1"].communicate()
    lost = states["1"]
    assert len(marked(lost.id)) >= 1
    again = start(desk, folder, "1")
    wait_for(lambda: by_share(folder)["1"].id != lost.id)
    assert marked(lost.id) == []
    assert load_state(folder / "runs" / lost.id).status == "lost"
    assert by_share(folder)["0"].is_active
    for going in (again, shares["0"]):
        going.send_signal(signal.SIGINT)
        _, err = going.communicate(timeout=60)
        assert going.returncode == 130, err
    assert "resume on every machine with: plan run" in by_share(folder)["0"].next_step


@pytest.mark.parametrize("rank", ["2", "-1", "first", "1.0"])
def test_a_rank_that_no_machine_has_is_one_sentence(desk: Desk, rank: str) -> None:
    going = start(desk, desk.plan(SHARES), rank)
    _, err = going.communicate(timeout=60)
    assert going.returncode == 2
    assert f"NODE_RANK '{rank}' is none of this plan's 2 machines: set it to 0 on the first, 1 on the last" in err


def test_without_a_rank_the_preflight_says_so(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk.run(desk.plan(SHARES), "--preflight-only") == 6
    assert "NODE_RANK, MASTER_ADDR is not set" in " ".join(capsys.readouterr().out.split())


def elsewhere(**changes: object) -> RunState:
    """A run of another machine whose process numbers exist here, too."""
    return replace(running(machine="another-machine", updated_at=time.time()), **changes)


def test_a_run_of_another_machine_is_not_judged_by_process_numbers() -> None:
    assert not is_lost(elsewhere())
    assert is_lost(elsewhere(updated_at=time.time() - 3600))
    assert not is_lost(elsewhere(status="finished", updated_at=0.0))
    assert is_lost(elsewhere(machine=socket.gethostname()))  # its number belongs to nobody here
    assert left_running(elsewhere()) == []


def test_a_run_of_another_machine_is_passed_by_when_ours_starts(tmp_path: Path) -> None:
    theirs, gone, new = new_run(tmp_path), new_run(tmp_path), new_run(tmp_path)
    theirs.save(elsewhere(id=theirs.id))
    gone.save(elsewhere(id=gone.id, updated_at=1.0))
    new.event("engine")  # its state is about to be written
    assert list(recover_all(tmp_path, shared=True)) == [
        f"the planner of run {gone.id} was killed; nothing of it still ran"
    ]
    assert load_state(theirs.path).status == "running"


def test_a_run_of_another_machine_is_listed_and_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VRAMPLAN_HOME", str(tmp_path / "home"))
    folder = new_run(tmp_path)
    folder.save(elsewhere(id=folder.id))
    assert remember(folder) is None
    assert run(["runs", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["runs"]
    assert (entry["status"], entry["machine"], entry["still_running"]) == ("running", "another-machine", [])
    assert run(["runs"]) == 0
    assert "on another-machine" in capsys.readouterr().out

    def its_planner_ends_it(self: RunFolder) -> None:
        assert not self.is_asked_to_stop
        self.save(elsewhere(id=self.id, status="stopped", exit_code=130, message="the run was stopped"))

    monkeypatch.setattr(RunFolder, "ask_to_stop", its_planner_ends_it)
    monkeypatch.setattr("planner.run.processes.send", lambda *_: pytest.fail("a number of another machine's"))
    assert run(["stop", folder.id]) == 0
    assert "the run was stopped" in capsys.readouterr().out


def test_two_machines_may_set_the_same_checkpoint_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    rename = Path.rename

    def after_the_other(self: Path, target: Path) -> Path:
        rename(self, target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", after_the_other)
    assert set_unfinished_aside(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4.incomplete"]
