"""What a run teaches: its report, and an observation in the local history."""

from __future__ import annotations

import json

import pytest

from planner.calibrate.place import store_path
from planner.calibrate.store import Store
from planner.run.job import load_job
from planner.run.learn import remember_observation, write_report
from planner.run.records import GpuUse
from planner.run.state import new_run
from planner.units import GIB
from tests.run.conftest import Desk
from tests.run.states import running

USED = GpuUse(index=0, name="x", now_bytes=0, peak_bytes=7 * GIB, before_bytes=GIB, capacity_bytes=24 * GIB)


def test_a_run_is_reported_and_remembered(desk: Desk) -> None:
    folder = desk.plan()
    job = load_job(folder, {})
    run = new_run(folder)
    state = running(id=run.id, status="finished", exit_code=0, ended_at=5000.0, gpus=(USED,))
    setup = job.setup.but(micro_batch_size=4, gradient_accumulation_steps=2)
    report, problem = write_report(run, state, setup)
    assert problem is None
    assert json.loads((run / "report.json").read_text())["setup"]["micro_batch_size"] == 4
    assert remember_observation(state, job, setup, report) is None
    (kept,) = Store(path=store_path()).observations()
    found = kept.observation
    assert (found.run_id, found.engine, found.outcome) == (run.id, "llamafactory", "finished")
    assert found.measured.device_bytes == 6 * GIB
    assert found.measured.tokens_per_second == pytest.approx(2312.4)
    assert found.predicted.device_bytes > 0
    assert found.setup["micro_batch_size"] == 4


def test_where_no_gpu_is_seen_nothing_is_learnt(desk: Desk) -> None:
    job = load_job(desk.plan(), {})
    state = running(status="finished", gpus=())
    report, _ = write_report(new_run(job.folder), state, job.setup)
    assert "no GPU was seen" in str(remember_observation(state, job, job.setup, report))
    assert not store_path().exists()
