"""The batch: cheapest first, a process a run, nothing twice, an end in time, and a row for every ending."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import batch
from bench.batch import Planned, Worker, read_rows, row_key, run_batch, surroundings
from bench.grid import Run
from planner.errors import InputError

ANSWERS = (
    "import sys, json\nprint(json.dumps({'ready': True}), flush=True)\njob = json.loads(sys.stdin.readline())\n"
    "print('noise', file=sys.stderr)\nexec(job['do'])\n"
    "print(json.dumps({'outcome': 'ok', 'peaks': {'allocated_bytes': 2**30}}), flush=True)"
)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that import nothing and do what the job says."""
    start = Worker.__init__
    monkeypatch.setattr(Worker, "__init__", lambda self: start(self, (sys.executable, "-c", ANSWERS)))


def planned(name: str, seconds: float = 1.0, do: str = "pass", **changes: Any) -> Planned:
    row = {
        "id": name, "card": "H200", "driver": "580", "versions": {"torch": "2.13.0"}, "setup": {"model": name},
        "layers": 2, "ranks": 1, "cap": None, "predicted": {"allocated_bytes": 2**30}, **changes,
    }  # fmt: skip
    return Planned(run=Run({"model": name}), job={"do": do}, row=row, seconds=seconds)


def quiet(line: str) -> None:
    pass


def test_rows_are_written_as_they_end_the_cheapest_first(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "gpu" / "h200.jsonl"
    report = run_batch([planned("slow", 3), planned("quick", 1)], path, minutes=1, say=said.append)
    assert [row["id"] for row in read_rows(path)] == ["quick", "slow"]
    assert [row["outcome"] for row in report.rows] == ["ok", "ok"]
    assert "[1/2] quick:    1.00 GiB allocated, predicted +0.00 %" in said[0]


def test_what_is_there_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "h200.jsonl"
    run_batch([planned("one")], path, minutes=1, say=quiet)
    again = run_batch([planned("one"), planned("two")], path, minutes=1, say=quiet)
    assert ([row["id"] for row in again.known], [row["id"] for row in again.rows]) == (["one"], ["two"])


def test_a_known_run_is_judged_by_todays_prediction(tmp_path: Path) -> None:
    path = tmp_path / "h200.jsonl"
    run_batch([planned("one")], path, minutes=1, say=quiet)
    (known,) = run_batch([planned("one", predicted={"allocated_bytes": 5})], path, minutes=1, say=quiet).known
    assert (known["predicted"], known["peaks"]) == ({"allocated_bytes": 5}, {"allocated_bytes": 2**30})


@pytest.mark.parametrize(
    "change", [{"driver": "590"}, {"versions": {"torch": "2.14.0"}}, {"card": "A100-80GB"}, {"layers": 3}, {"ranks": 2},
               {"cap": {"gib": 24}}, {"alloc_conf": "expandable_segments:True"}],
)  # fmt: skip
def test_another_card_version_shape_or_cap_is_another_run(change: dict[str, Any]) -> None:
    assert row_key(planned("one").row) != row_key(planned("one", **change).row)


def test_the_versions_in_a_setup_do_not_make_it_another_run() -> None:
    named = planned("one", setup={"model": "one", "versions": {"numpy": "1"}})
    assert row_key(named.row) == row_key(planned("one").row)


def test_it_ends_in_time_and_says_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "h200.jsonl"
    report = run_batch([planned("one", 5), planned("long", 400)], path, minutes=1, say=quiet)
    assert ([row["id"] for row in report.rows], report.left) == (["one"], 1)


def test_a_crash_and_a_hang_cost_their_row_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LEAST_TIMEOUT_S", 1.0)
    path = tmp_path / "h200.jsonl"
    hangs, dies = planned("hangs", 0.03, "import time; time.sleep(60)"), planned("dies", 0.02, "import os; os.abort()")
    report = run_batch([hangs, dies, planned("lives", 0.1)], path, minutes=1, say=quiet)
    assert [(row["id"], row["outcome"]) for row in report.rows] == [
        ("dies", "crashed"), ("hangs", "timed_out"), ("lives", "ok"),
    ]  # fmt: skip
    assert "noise" in report.rows[0]["message"]
    assert run_batch([hangs, dies], path, minutes=1, say=quiet).rows == []
    retried = run_batch([planned("dies", 1)], path, minutes=1, retry=True, say=quiet)
    assert [row["outcome"] for row in retried.rows] == ["ok"]


def test_libraries_that_are_missing_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    worker = Worker((sys.executable, "-c", "import no_such_library"))
    with pytest.raises(InputError, match="No module named 'no_such_library'"):
        worker.wait_ready()


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "h200.jsonl"
    path.write_text(json.dumps({"outcome": "ok"}) + "\nhalf a li")
    with pytest.raises(InputError, match="line 2"):
        read_rows(path)


def test_workers_see_one_card_and_no_launcher() -> None:
    seen = surroundings({"CUDA_VISIBLE_DEVICES": "2,3", "WORLD_SIZE": "4", "PATH": "/bin", "PYTHONPATH": "/site"})
    assert seen["CUDA_VISIBLE_DEVICES"] == "2" and seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "WORLD_SIZE" not in seen
    assert seen["PYTHONPATH"].endswith(":/site") and seen["PATH"] == "/bin"
    assert surroundings({})["CUDA_VISIBLE_DEVICES"] == "0"
    assert surroundings({"CUDA_VISIBLE_DEVICES": ""})["CUDA_VISIBLE_DEVICES"] == ""  # none is none
