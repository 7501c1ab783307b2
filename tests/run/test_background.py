"""The watch keeps out of the training's way: how often it wakes, how it is scheduled, how soon it notices."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from planner.run.background import in_background
from planner.run.launch import Engine, start
from planner.run.processes import marked
from planner.run.state import runs_of
from tests.run.conftest import TWO, Desk
from tests.run.test_faults import step_of, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc and its scheduling policies")
MOST_SHARE = 0.01  # of one core; 0.002 on an idle machine
OLDEST_S = 5.0  # of the state on disk: every other look writes it
MOST_WAKES_PER_S = 6.0  # 2 on an idle machine; 30 where the launcher was polled and half lines were waited for


def wakes(pid: int) -> int:
    """Times that the threads of a process went to sleep of themselves."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for text in texts)


def busy_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def policies(pid: int) -> set[int]:
    return {os.sched_getscheduler(thread.id) for thread in psutil.Process(pid).threads()}


def test_the_watch_wakes_rarely_as_a_batch_job_and_the_engine_runs_as_ever(desk: Desk) -> None:
    folder = desk.plan(TWO)
    going = desk.start(folder, "--skip-worst-case", "--set", "max_steps=100000", LLAMAFACTORY_FAKE='{"step_s": 0.05}')
    try:
        wait_for(lambda: step_of(desk, folder) >= 5)
        engine = [mark.pid for mark in marked(runs_of(folder)[0].name)]
        assert len(engine) == 4
        for pid in engine:
            assert policies(pid) == {os.SCHED_OTHER}
            assert psutil.Process(pid).nice() == psutil.Process().nice()
        assert policies(going.pid) == {os.SCHED_BATCH}
        woken, busy, start_at = wakes(going.pid), busy_s(going.pid), time.monotonic()
        time.sleep(4.0)
        took = time.monotonic() - start_at
        assert (wakes(going.pid) - woken) / took < MOST_WAKES_PER_S
        assert (busy_s(going.pid) - busy) / took < MOST_SHARE
        state = desk.state(folder)
        assert time.time() - state.updated_at < OLDEST_S
        assert {mark.pid for mark in state.processes} == set(engine)
        assert state.host.now_bytes == pytest.approx(
            sum(psutil.Process(pid).memory_info().rss for pid in engine), rel=0.1
        )
    finally:
        going.terminate()
        going.communicate(timeout=60)


def test_the_policy_is_given_back_and_one_of_somebody_elses_kept() -> None:
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    with in_background():
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        with in_background():
            pass
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def engine_of(words: str, tmp_path: Path, seen: list[bytes]) -> Engine:
    return start(
        ["/bin/sh", "-c", words], cwd=tmp_path, environment=dict(os.environ), run_id="test-background",
        log=tmp_path / "log", seen=seen.append,
    )  # fmt: skip


def test_an_end_is_noticed_at_once_and_nothing_printed_is_lost(tmp_path: Path) -> None:
    seen: list[bytes] = []
    engine = engine_of("echo first; sleep 0.3; echo second; printf half", tmp_path, seen)
    began = time.monotonic()
    engine.wait(30.0)
    assert time.monotonic() - began < 5.0
    assert engine.poll() == 0
    engine.stop()
    assert (tmp_path / "log").read_bytes() == b"first\nsecond\nhalf" == b"".join(seen)


def test_a_moving_bar_is_read_in_gulps(tmp_path: Path) -> None:
    seen: list[bytes] = []
    engine = engine_of(r"for i in $(seq 40); do printf '\rstep %s' $i; sleep 0.05; done", tmp_path, seen)
    engine.wait(30.0)
    engine.stop()
    assert b"".join(seen).count(b"step") == 40
    assert len(seen) < 15


def test_without_a_descriptor_the_launcher_is_waited_for_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(pid: int) -> int:
        raise OSError("no such call")

    monkeypatch.setattr(os, "pidfd_open", refused)
    engine = engine_of("sleep 0.2; exit 3", tmp_path, [])
    engine.wait(30.0)
    assert engine.poll() == 3
    engine.stop()


def test_an_engine_that_prints_without_end_never_waits_for_the_reader(tmp_path: Path) -> None:
    """64 MiB through a pipe of one: the reader pauses only where little is there."""
    began = time.monotonic()
    engine = engine_of("head -c 67108864 /dev/zero | tr '\\0' '\\n'", tmp_path, [])
    while engine.poll() is None:
        engine.wait(60.0)
    engine.stop()
    assert engine.printed_bytes == 64 << 20
    assert time.monotonic() - began < 30.0


def test_the_benchmarks_interval_is_that_of_ranks() -> None:
    """The sign test's tables: of 6 values all of the range (97 %), of 16 the 4th and 13th (97.9 %)."""
    found = subprocess.run(
        [sys.executable, "-c", "from tools.time_run import interval as i; print(i(range(6)), i(range(16)), i([1, 2]))"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert found.stdout.strip() == "(0, 5) (3, 12) (1, 2)"
