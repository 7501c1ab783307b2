"""Faults, each injected for real into real processes: healed or explained, nothing lost, nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from planner.cli.app import run
from planner.run.processes import marked
from planner.run.state import load_state, runs_of
from tests.run.conftest import ONE, TWO, Desk

Fault = Callable[..., None]
HANGS = '{"kind": "hang", "at": 5}'


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> object:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


def step_of(desk: Desk, folder: Path) -> int:
    path = folder / "output" / "trainer_log.jsonl"
    return desk.logged(folder)[-1]["current_steps"] if path.exists() and path.read_text().endswith("\n") else 0


def is_launcher(process: psutil.Process) -> bool:
    return not {"torchrun", "worker"} & set(process.cmdline())


def test_a_run_to_its_end(desk: Desk) -> None:
    folder = desk.plan()
    assert desk.run(folder) == 0
    state = desk.state(folder)
    assert [attempt.purpose for attempt in state.attempts] == ["rehearsal", "training"]
    assert (state.status, state.progress.step, state.exit_code) == ("finished", 12, 0)
    assert state.checkpoint is not None
    assert state.checkpoint.endswith("checkpoint-12")
    report = json.loads((runs_of(folder)[0] / "report.json").read_text())
    assert report["measured"]["tokens_per_s"] == 1234.5
    assert not (runs_of(folder)[0] / "longest-batch").exists()
    assert desk.run(folder) == 0
    assert desk.state(folder).message == "nothing was left to train: checkpoint-12 is of the last step"


def test_out_of_memory_heals_resumes_and_keeps_the_effective_batch(desk: Desk, fault: Fault) -> None:
    folder = desk.plan()
    before = (folder / "train.yaml").read_bytes()
    fault(kind="oom", at=6, above=4)
    assert desk.run(folder) == 0
    state, log = desk.state(folder), desk.logged(folder)
    assert [entry["current_steps"] for entry in log] == [*range(1, 7), *range(5, 13)]
    assert {entry["effective_batch"] for entry in log} == {8}
    trained = [attempt for attempt in state.attempts if attempt.purpose == "training"]
    assert [attempt.effective_batch for attempt in trained] == [8, 8]
    assert trained[1].resumed_from is not None
    assert trained[1].resumed_from.endswith("checkpoint-4")
    assert trained[1].micro_batch_size == 4
    assert trained[0].diagnosis is not None
    assert trained[0].diagnosis.kind == "cuda_oom"
    assert (folder / "train.yaml").read_bytes() == before
    assert len(state.healed) == 1


def test_a_later_run_goes_on_as_the_healed_one_did(desk: Desk, fault: Fault) -> None:
    folder = desk.plan()
    fault(kind="oom", at=6, above=4)
    assert desk.run(folder, "--skip-worst-case") == 0
    fault(kind="oom", at=14, above=4)
    assert desk.run(folder, "--skip-worst-case") == 0
    assert desk.state(folder, 1).attempts[0].micro_batch_size == 4
    assert "as run" in desk.state(folder, 1).healed[0]
    assert desk.run(folder, "--skip-worst-case", "--set", "max_steps=16") == 0
    changed = desk.state(folder, 2).attempts
    assert [attempt.micro_batch_size for attempt in changed] == [8, 4]


def test_out_of_memory_that_no_rung_cures_stops_with_the_checkpoint(
    desk: Desk, fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = desk.plan()
    fault(kind="oom", at=6, above=0)
    assert desk.run(folder, "--retries", "1") == 4
    state = desk.state(folder)
    assert state.status == "failed"
    assert "checkpoint-4" in state.next_step
    assert "plan run" in state.next_step
    assert len([each for each in state.attempts if each.purpose == "training"]) == 2


def test_a_worker_killed_with_9_is_said_and_the_rest_ended(desk: Desk, fault: Fault) -> None:
    folder = desk.plan(TWO)
    fault(kind="kill worker", after_s=0.3, step_s=0.1)
    assert desk.run(folder, "--skip-worst-case") == 4
    found = desk.state(folder).attempts[-1].diagnosis
    assert found is not None
    assert found.kind == "killed"
    assert "SIGKILL" in found.cause


def test_a_launcher_killed_with_9_leaves_no_worker(desk: Desk, fault: Fault) -> None:
    folder = desk.plan(TWO)
    going = desk.start(folder, "--skip-worst-case", LLAMAFACTORY_FAKE=HANGS)
    wait_for(lambda: step_of(desk, folder) >= 2)
    run_id = runs_of(folder)[0].name
    launcher = next(each for each in map(psutil.Process, [mark.pid for mark in marked(run_id)]) if is_launcher(each))
    assert len(marked(run_id)) == 4
    launcher.kill()
    going.communicate(timeout=60)
    assert going.returncode == 4
    assert marked(run_id) == []
    found = desk.state(folder).attempts[-1].diagnosis
    assert found is not None
    assert found.kind == "killed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything_and_names_the_checkpoint(desk: Desk, number: int) -> None:
    folder = desk.plan(TWO)
    going = desk.start(folder, "--skip-worst-case", LLAMAFACTORY_FAKE=HANGS)
    wait_for(lambda: step_of(desk, folder) >= 5)
    os.kill(going.pid, number)
    out, _ = going.communicate(timeout=60)
    assert going.returncode == 130
    state = desk.state(folder)
    assert state.status == "stopped"
    assert "checkpoint-4" in state.message
    assert "planrun" in "".join(out.split())
    assert marked(state.id) == []


def test_a_planner_killed_with_9_is_cleaned_up_after_and_resumed(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = desk.plan(TWO)
    going = desk.start(folder, "--skip-worst-case", LLAMAFACTORY_FAKE=HANGS)
    wait_for(lambda: step_of(desk, folder) >= 5)
    first = runs_of(folder)[0].name
    going.kill()
    going.communicate()
    assert len(marked(first)) >= 3
    assert run(["runs"]) == 0
    assert "still running" in capsys.readouterr().out
    assert desk.run(folder, "--skip-worst-case") == 0
    assert marked(first) == []
    assert "its planner" in load_state(runs_of(folder)[0]).message
    assert "ended" in capsys.readouterr().err
    second = desk.state(folder)
    assert second.attempts[0].resumed_from is not None
    assert second.attempts[0].first_step == 5


def test_a_full_disk_is_said_and_the_cut_off_checkpoint_is_set_aside(desk: Desk, tmp_path: Path) -> None:
    """On a file system of 3 MB, where one can be mounted; else under a limit on file sizes."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        folder = desk.plan(name="small/plan")
        code = run_limited(desk, folder, fake={"kind": "write", "at": 6, "megabytes": 64}, extra=("--anyway",))
        assert code == 4
        found = desk.state(folder).attempts[-1].diagnosis
        assert found is not None
        assert found.kind == "disk_full"
        (folder / "output" / "big").unlink()
        half = folder / "output" / "checkpoint-8"
        half.mkdir()
        (half / "model.safetensors").write_bytes(b"w")
        assert desk.run(folder, "--skip-worst-case", "--anyway") == 0
        assert desk.state(folder).attempts[0].first_step == 5
        assert (folder / "output" / "checkpoint-8.incomplete").is_dir()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def run_limited(desk: Desk, folder: Path, *, fake: dict, before: str = "", extra: tuple[str, ...] = ()) -> int:
    """`plan run` in a shell that first sets a limit."""
    import shlex

    words = [sys.executable, "-m", "planner", *desk.words(folder, "--skip-worst-case", *extra)]
    command = f"{before} exec {shlex.join(words)}"
    environment = desk.environment | {"LLAMAFACTORY_FAKE": json.dumps(fake)}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.returncode


def test_a_file_size_limit_is_told_as_such(desk: Desk) -> None:
    folder = desk.plan()
    fake = {"kind": "write", "at": 6, "megabytes": 64}
    assert run_limited(desk, folder, fake=fake, before="ulimit -f 8192;") == 4
    found = desk.state(folder).attempts[-1].diagnosis
    assert found is not None
    assert found.kind in ("disk_full", "killed")


def test_host_memory_that_runs_out_under_a_limit_is_said(desk: Desk) -> None:
    folder = desk.plan()
    fake = {"kind": "memory", "at": 6, "megabytes": 4000}
    assert run_limited(desk, folder, fake=fake, before="ulimit -v 900000;") == 4
    found = desk.state(folder).attempts[-1].diagnosis
    assert found is not None
    assert found.kind == "host_oom"


def test_the_kernels_kill_in_a_memory_group_is_said(desk: Desk) -> None:
    group = Path("/sys/fs/cgroup/memory") / f"vramplan-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(400 << 20))
    except OSError:
        pytest.skip("no memory control group of version 1 can be made here")
    try:
        folder = desk.plan()
        fake = {"kind": "memory", "at": 6, "megabytes": 1000}
        assert run_limited(desk, folder, fake=fake, before=f"echo $$ > {group}/cgroup.procs;") == 4
        found = desk.state(folder).attempts[-1].diagnosis
        assert found is not None
        assert found.kind == "host_oom"
        assert found.facts["oom_kills"] >= 1
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_a_taken_port_is_changed_once(desk: Desk, fault: Fault) -> None:
    folder = desk.plan(TWO)
    said = (
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
        "port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
    )
    fault(kind="once", at=3, say=said)
    assert desk.run(folder, "--skip-worst-case") == 0
    state = desk.state(folder)
    assert "MASTER_PORT" in state.attempts[-1].environment
    assert "port" in state.healed[0]


def test_broken_links_are_gone_around_once_each(desk: Desk, fault: Fault) -> None:
    folder = desk.plan(TWO)
    said = (
        "misc/shmutils.cc:112 NCCL WARN Error while creating shared memory segment /dev/shm/nccl-zTYolS (size 5967872)"
    )
    fault(kind="exit", at=3, say=said + "\ntorch.distributed.DistBackendError: NCCL error in: ncclSystemError")
    assert desk.run(folder, "--skip-worst-case", "--retries", "5") == 4
    set_then = [
        {name for name in attempt.environment if name.startswith("NCCL_")} for attempt in desk.state(folder).attempts
    ]
    assert set_then == [set(), {"NCCL_SHM_DISABLE"}, {"NCCL_SHM_DISABLE", "NCCL_P2P_DISABLE"}]


def test_a_flood_of_100_megabytes_leaves_a_small_log_and_the_error(desk: Desk, fault: Fault) -> None:
    folder = desk.plan()
    fault(kind="flood", at=2, megabytes=100)
    assert desk.run(folder, "--skip-worst-case") == 0
    place = runs_of(folder)[0]
    assert sum(path.stat().st_size for path in place.glob("log*")) < 24 << 20
    assert desk.state(folder).progress.step == 12


def test_a_hung_run_is_ended_and_said(desk: Desk, fault: Fault) -> None:
    folder = desk.plan(TWO)
    fault(kind="hang", at=5)
    assert desk.run(folder, "--skip-worst-case", "--stall-minutes", "0.04") == 4
    state = desk.state(folder)
    found = state.attempts[-1].diagnosis
    assert found is not None
    assert found.kind == "hung"
    assert "after step 5" in found.cause
    assert "checkpoint-4" in state.next_step


def test_a_loss_that_is_no_number_ends_the_run(desk: Desk, fault: Fault) -> None:
    folder = desk.plan()
    fault(kind="nan", at=5, step_s=0.3)
    assert desk.run(folder, "--skip-worst-case") == 4
    found = desk.state(folder).attempts[-1].diagnosis
    assert found is not None
    assert found.kind == "nan_loss"


def test_a_damaged_state_is_one_sentence_and_set_aside(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    folder = desk.plan()
    assert desk.run(folder, "--skip-worst-case", "--set", "max_steps=4") == 0
    state = runs_of(folder)[0] / "state.json"
    state.write_text(state.read_text()[:-40])
    capsys.readouterr()
    assert run(["runs"]) == 0
    told = capsys.readouterr()
    assert "damaged" in told.err
    assert "Traceback" not in told.err
    assert (state.parent / "state.json.damaged-1").exists()
    assert run(["report", str(state.parent)]) == 2
    assert desk.run(folder, "--skip-worst-case") == 0
    assert desk.state(folder).attempts[0].first_step == 5


def test_two_runs_in_one_folder(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    folder = desk.plan()
    going = desk.start(folder, "--skip-worst-case", LLAMAFACTORY_FAKE=HANGS)
    wait_for(lambda: step_of(desk, folder) >= 1)
    capsys.readouterr()
    assert desk.run(folder) == 2
    assert "run already" in capsys.readouterr().err
    assert len(runs_of(folder)) == 1
    going.send_signal(signal.SIGINT)
    going.communicate(timeout=60)
    assert going.returncode == 130


def test_a_detached_run_is_seen_and_stopped_from_elsewhere(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    folder = desk.plan()
    going = desk.start(folder, "--skip-worst-case", "--detach", LLAMAFACTORY_FAKE=HANGS)
    out, err = going.communicate(timeout=60)
    assert going.returncode == 0, err
    name = runs_of(folder)[0].name
    assert name in out
    wait_for(lambda: step_of(desk, folder) >= 5)
    assert desk.state(folder).is_active
    assert run(["stop", name]) == 0
    assert "checkpoint-4" in capsys.readouterr().out
    assert desk.state(folder).status == "stopped"
    assert run(["attach", name]) == 130


def test_a_detached_run_ends_by_itself_with_a_report(desk: Desk) -> None:
    folder = desk.plan()
    going = desk.start(folder, "--skip-worst-case", "--detach")
    going.communicate(timeout=60)
    wait_for(lambda: (runs_of(folder)[0] / "report.html").exists())
    assert desk.state(folder).status == "finished"


def test_nothing_secret_is_written(desk: Desk, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = desk.plan()
    secret = "hf_" + "Q7" * 12
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_OWN_VARIABLE", "stays here")
    fault(kind="exit", at=3, say=f"ValueError: bad token {secret} of 0123456789abcdef")
    assert desk.run(folder, "--skip-worst-case") == 4
    place = runs_of(folder)[0]
    for path in place.iterdir():
        text = path.read_text(errors="replace")
        assert secret not in text, path.name
        assert "0123456789abcdef" not in text, path.name
        assert "stays here" not in text, path.name
    assert desk.state(folder).attempts[0].environment["HF_TOKEN"] == "<redacted>"


def test_files_changed_by_hand_are_read_back_and_priced(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    folder = desk.plan()
    text = (folder / "train.yaml").read_text()
    (folder / "train.yaml").write_text(text.replace("cutoff_len: 512", "cutoff_len: 30000"))
    capsys.readouterr()
    assert desk.run(folder) == 1
    told = capsys.readouterr().err
    assert "seq_len is 30000; planned was 512" in told
    assert "does not fit" in told
    assert runs_of(folder) == []


def test_a_command_in_the_plan_is_never_run(desk: Desk, tmp_path: Path) -> None:
    folder = desk.plan()
    plan = json.loads((folder / "plan.json").read_text())
    plan["command"] = f"touch {tmp_path / 'owned'}"
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "launch.sh").write_text(f"touch {tmp_path / 'owned'}\n")
    assert desk.run(folder, "--skip-worst-case") == 0
    assert not (tmp_path / "owned").exists()


def test_without_the_engine_nothing_starts(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    folder = desk.plan(ONE)
    desk.python.with_name("llamafactory-cli").unlink()
    assert desk.run(folder) == 6
    assert "llamafactory-cli was not found" in capsys.readouterr().out
    assert runs_of(folder) == []
