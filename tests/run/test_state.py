"""A run's folder: whole or not at all, found by name, small."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from planner.errors import InputError
from planner.run.checkpoints import last_whole, set_unfinished_aside
from planner.run.logs import RotatingLog, Tail
from planner.run.processes import is_alive, mark_of
from planner.run.records import ProcessMark
from planner.run.state import RunFolder, find_run, load_state, new_run, only_run, remember
from planner.run.tails import JsonlTail
from tests.run.states import running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRAMPLAN_HOME", str(tmp_path / "home"))


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    folder.save(running())
    assert load_state(folder.path) == running()
    assert sorted(path.name for path in folder.path.iterdir()) == ["state.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9}', "null", "\x00\x01", "[" * 100_000])
def test_a_damaged_state_is_one_sentence_and_kept(tmp_path: Path, text: str) -> None:
    folder = new_run(tmp_path)
    (folder / "state.json").write_text(text)
    with pytest.raises(InputError, match="damaged"):
        load_state(folder.path)
    assert (folder / "state.json.damaged-1").read_text() == text


def test_a_full_disk_does_not_raise(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    folder.save(running())
    missing = RunFolder(tmp_path / "gone")
    missing.save(running())
    missing.event("step")
    missing.sample(step=1)
    assert missing.problem is not None
    assert "cannot be written" in missing.problem


def test_runs_are_found_by_name_folder_and_the_word_last(tmp_path: Path) -> None:
    first, second = new_run(tmp_path / "a"), new_run(tmp_path / "b")
    for folder in (first, second):
        folder.save(running())
        assert remember(folder) is None
    (tmp_path / "home" / "runs" / "0-damaged.json").write_text("{")
    newest = max(first.path, second.path, key=lambda path: path.name)
    assert find_run(None) == find_run("last") == newest
    assert find_run(first.id) == first.path
    assert find_run(str(tmp_path / "b")) == second.path
    with pytest.raises(InputError, match="may be"):
        find_run("20")
    with pytest.raises(InputError, match="is not known"):
        find_run("nothing")


def test_runs_of_the_same_millisecond_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.run.state.time.time", lambda: 1_700_000_000.0)
    assert len({new_run(tmp_path).id for _ in range(50)}) == 50
    (tmp_path / "file" / "runs").parent.mkdir()
    (tmp_path / "file" / "runs").touch()
    with pytest.raises(InputError, match="cannot be made"):
        new_run(tmp_path / "file")


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with only_run(tmp_path, "run x"), pytest.raises(InputError, match="being run already"), only_run(tmp_path, "y"):
        raise AssertionError("two at a time")
    with only_run(tmp_path, "run x"):
        pass


def test_a_number_that_came_back_is_another_process() -> None:
    own = mark_of(os.getpid())
    assert own is not None
    assert is_alive(own)
    assert not is_alive(ProcessMark(own.pid, own.started - 60))
    assert mark_of(2**22 + 1) is None


def test_samples_get_rarer_as_a_run_gets_older(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    for number in range(5):
        folder.sample(step=number)
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 1


def test_a_log_stays_small_and_keeps_its_beginning(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "log", first_bytes=100, part_bytes=1000)
    for number in range(1000):
        log.write(f"line {number:05}\n".encode())
    log.close()
    assert sum(path.stat().st_size for path in tmp_path.glob("log*")) <= 100 + 11 + 2 * 1011
    assert (tmp_path / "log").read_text().endswith("line 00999\n")
    assert (tmp_path / "log.first").read_text().startswith("line 00000\n")


def test_a_remarkable_line_outlives_a_flood_in_its_place() -> None:
    tail = Tail()
    tail.add(b"begin\nValueError: the cause\n")
    for _ in range(50):
        tail.add(b"again\r" * 1000)
    tail.add(b"the end")
    lines = tail.lines()
    assert lines[0] == "ValueError: the cause"
    assert lines[-1] == "the end"
    assert len(lines) < 1000
    assert tail.last(1) == ["the end"]


def test_a_growing_file_is_read_by_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("old\n")
    tail = JsonlTail(path)
    with path.open("a") as file:
        file.write('{"a": 1}\n{"b"')
        file.flush()
        assert tail.new_lines() == ['{"a": 1}']
        file.write(": 2}\n")
        file.flush()
        assert tail.new_lines() == ['{"b": 2}']
    path.write_text("new\n")
    assert tail.new_lines() == ["new"]


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    for step, state, weights in ((2, "{}", b"w"), (10, "{}", b"w"), (12, "{", b"w"), (14, "{}", b""), (16, None, b"w")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_whole(tmp_path) == tmp_path / "checkpoint-10"
    set_unfinished_aside(tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["checkpoint-10", "checkpoint-12.incomplete", "checkpoint-14.incomplete", "checkpoint-16.incomplete",
                    "checkpoint-2"]  # fmt: skip
    assert last_whole(tmp_path / "nowhere") is None


def test_an_event_is_one_line_of_json(tmp_path: Path) -> None:
    folder = new_run(tmp_path)
    folder.event("step", loss=float("nan"), text="two\nlines")
    entry = json.loads((folder / "events.jsonl").read_text())
    assert (entry["event"], entry["text"], entry["loss"]) == ("step", "two\nlines", None)
