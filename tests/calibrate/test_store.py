"""The store under real faults: damage, locks, folders without rights, two writers, newer schemas."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.calibrate import store as room
from planner.calibrate.place import store_path
from planner.calibrate.store import Store, StoreError, remember

from .observed import observed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(path=tmp_path / "data" / "history.sqlite")


def ids(store: Store, **asked: Any) -> list[str]:
    return [each.observation.run_id for each in store.observations(**asked)]


def test_what_is_recorded_is_found_newest_first(store: Store) -> None:
    store.record(observed(1), observed(2, gpus="1xA100-80GB"), observed(3))
    assert ids(store) == ["run-3", "run-2", "run-1"]
    assert store.observations()[0].observation == observed(3)
    assert ids(store, machine_id=observed(1).machine.id) == ["run-3", "run-1"]
    assert ids(store, engine="trl") == []
    assert ids(store, model="Qwen2.5-7B", newest=1) == ["run-3"]


def test_asking_creates_nothing(store: Store) -> None:
    assert store.observations() == [] and store.constants("x") is None and store.forget("x") is False
    assert not store.path.parent.exists()


def test_a_run_id_is_remembered_once_and_can_be_forgotten(store: Store) -> None:
    store.record(observed(1, 0.1))
    store.record(observed(1, 0.2))
    assert [each.observation.error("allocated_bytes") for each in store.observations()] == [pytest.approx(0.2)]
    assert store.forget("run-1") is True
    assert store.forget("run-1") is False
    assert ids(store) == []


def test_constants_are_of_one_machine_and_the_newest(store: Store) -> None:
    store.keep_constants("a", "2026-11-01T00:00:00Z", {"n": 1})
    store.keep_constants("a", "2026-11-02T00:00:00Z", {"n": 2})
    assert store.constants("a") == {"n": 2}
    assert store.constants("b") is None


@pytest.mark.parametrize("damage", ["text", "page", "short"])
@pytest.mark.parametrize("write", [True, False])
def test_a_damaged_file_is_set_aside_and_never_lost(store: Store, damage: str, write: bool) -> None:
    store.record(*(observed(number) for number in range(40)))
    whole = store.path.read_bytes()
    broken = {"text": b"no database at all, " * 400, "page": whole[:4096] + b"\xff" * (len(whole) - 4096),
              "short": whole[:5000]}[damage]  # fmt: skip
    for number in (1, 2):
        store.path.write_bytes(broken)
        with pytest.raises(StoreError) as caught:
            store.record(observed(7)) if write else store.observations()
        assert f"set aside as history.damaged-{number}.sqlite" in caught.value.sentence
        assert store.path.with_name(f"history.damaged-{number}.sqlite").read_bytes() == broken
    store.record(observed(9))
    assert ids(store) == ["run-9"]


def test_an_empty_file_is_an_empty_store(store: Store) -> None:
    store.path.parent.mkdir()
    store.path.touch()
    assert ids(store) == []
    store.record(observed(1))
    assert ids(store) == ["run-1"]


def test_a_newer_schema_is_left_alone(store: Store) -> None:
    store.record(observed(1))
    base = sqlite3.connect(store.path)
    base.execute("PRAGMA user_version = 99")
    base.close()
    for ask in (store.observations, lambda: store.record(observed(2))):
        with pytest.raises(StoreError, match="has schema 99, written by a newer release; this one reads 1"):
            ask()
    assert store.path.exists() and not list(store.path.parent.glob("*damaged*"))


def test_a_row_that_cannot_be_read_costs_only_itself(store: Store) -> None:
    store.record(observed(1), observed(2))
    base = sqlite3.connect(store.path)
    base.execute("UPDATE observations SET document = '{}' WHERE run_id = 'run-2'")
    base.commit()
    base.close()
    assert ids(store) == ["run-1"]


HOLD = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(store: Store) -> Iterator[Store]:
    """A store that another process is writing to."""
    store.record(observed(1))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout and holder.stdin and holder.stdout.readline() == "held\n"
        yield store
        holder.stdin.close()


def test_a_locked_store_can_be_read_and_says_that_it_was_not_written(
    held: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "WRITE_WAIT_S", 0.1)
    assert ids(held) == ["run-1"]
    with pytest.raises(StoreError, match="is held by another process; nothing was written"):
        held.record(observed(2))
    assert ids(held) == ["run-1"]


WRITE = """
import sys
from pathlib import Path
from planner.calibrate.observation import observation_from_json
from planner.calibrate.store import Store
from dataclasses import replace
one, store = observation_from_json(sys.stdin.read()), Store(path=Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    store.record(replace(one, run_id=f"{sys.argv[2]}-{number}"))
"""


def start_writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path), name, str(count)],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert writer.stdin
    writer.stdin.write(observed(1).to_json())
    writer.stdin.close()
    return writer


def test_two_processes_write_at_once_and_nothing_is_lost(store: Store) -> None:
    writers = [start_writer(store.path, name, 60) for name in ("one", "two")]
    for writer in writers:
        with writer:
            assert writer.stderr and writer.stderr.read() == ""
        assert writer.returncode == 0
    assert sorted(ids(store)) == sorted(f"{name}-{number}" for name in ("one", "two") for number in range(60))


def test_two_processes_meeting_a_damaged_file_keep_it_and_go_on(store: Store) -> None:
    store.path.parent.mkdir()
    store.path.write_bytes(b"damaged " * 2000)
    writers = [start_writer(store.path, name, 1) for name in ("one", "two")]
    for writer in writers:
        with writer:
            writer.wait()
    kept = [each for each in store.path.parent.glob("history.damaged-*.sqlite") if each.read_bytes()[:7] == b"damaged"]
    assert len(kept) == 1
    store.record(observed(5))
    assert "run-5" in ids(store)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = Store(path=tmp_path / "file" / "vramplan" / "history.sqlite")
    assert blocked.observations() == []
    with pytest.raises(StoreError, match=r"cannot be kept in .*: not a directory"):
        blocked.record(observed(1))


TRY = """
import os, sys
from pathlib import Path
from planner.calibrate.observation import observation_from_json
from planner.calibrate.store import Store, StoreError
store, one = Store(path=Path(sys.argv[1])), observation_from_json(sys.stdin.read())
if os.geteuid() == 0:  # root may write everywhere, so it becomes nobody
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print([each.observation.run_id for each in store.observations()])
try:
    store.record(one)
except StoreError as problem:
    print(problem.sentence)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such rights there")
@pytest.mark.parametrize("closed", ["folder", "file and folder"])
def test_a_folder_without_rights_is_read_and_never_fails_planning(closed: str) -> None:
    with tempfile.TemporaryDirectory(prefix="vramplan-rights-") as name:
        folder = Path(name)
        store = Store(path=folder / "history.sqlite")
        store.record(observed(1))
        folder.chmod(0o555)
        store.path.chmod(0o444 if "file" in closed else 0o666)
        done = subprocess.run(
            [sys.executable, "-c", TRY, str(store.path)],
            input=observed(2).to_json(), capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        folder.chmod(0o755)
    assert done.stderr == ""
    read, said = done.stdout.splitlines()
    assert read == "['run-1']"
    assert "cannot be written" in said


def test_remembering_warns_and_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRAMPLAN_HOME", str(tmp_path))
    assert remember(observed(1)) is None
    assert ids(Store(path=store_path())) == ["run-1"]
    monkeypatch.setenv("VRAMPLAN_HISTORY", "off")
    assert remember(observed(2)) is None
    assert ids(Store(path=store_path())) == ["run-1"]
    monkeypatch.delenv("VRAMPLAN_HISTORY")
    store_path().write_bytes(b"x" * 5000)
    assert "is damaged" in str(remember(observed(3)))


def test_the_folder_is_the_users_own(store: Store) -> None:
    store.record(observed(1))
    if os.name == "posix":
        assert store.path.parent.stat().st_mode & 0o077 == 0
