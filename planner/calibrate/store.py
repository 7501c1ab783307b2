"""The store of predictions against observations (an edge): one SQLite file, safe with several writers.

Every failure is a StoreError with one sentence; nothing else may fail because of it. A file that is not a healthy
database is set aside under a number and never deleted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.calibrate.observation import Observation, observation_from_json
from planner.calibrate.place import store_path
from planner.errors import EXIT_BAD_INPUT, PlannerError

SCHEMA = 1
WRITE_WAIT_S = 10.0  # another process's write takes milliseconds
READ_WAIT_S = 0.5
LOCAL, IMPORTED = "local", "imported"
_TABLES = """
CREATE TABLE IF NOT EXISTS observations (
    run_id TEXT PRIMARY KEY, started_at TEXT NOT NULL, machine_id TEXT NOT NULL, engine TEXT NOT NULL,
    model TEXT NOT NULL, origin TEXT NOT NULL, document TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_machine ON observations (machine_id, engine, started_at);
CREATE TABLE IF NOT EXISTS constants (
    machine_id TEXT PRIMARY KEY, measured_at TEXT NOT NULL, document TEXT NOT NULL);
"""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StoreError(PlannerError):
    """History cannot be read or written; the sentence says why and what was done about it."""

    exit_code = EXIT_BAD_INPUT


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One remembered observation, and whether it was made here or imported."""

    observation: Observation
    origin: str


@dataclass(frozen=True, kw_only=True)
class Store:
    """The file at ``path``; nothing is opened or created before something is asked of it."""

    path: Path

    def record(self, *observations: Observation, origin: str = LOCAL) -> None:
        """Remember them, all or none; a run_id that is known is replaced. Raises StoreError."""
        rows = [
            (one.run_id, one.started_at, one.machine.id, one.engine, str(one.setup["model"]), origin, one.to_json())
            for one in observations
        ]
        with self._open(write=True) as base:
            base.executemany("INSERT OR REPLACE INTO observations VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def observations(
        self,
        *,
        machine_id: str | None = None,
        engine: str | None = None,
        model: str | None = None,
        origin: str | None = None,
        newest: int = 10_000,
    ) -> list[Kept]:
        """What is remembered, newest first, of that machine, engine, model and origin. Raises StoreError.

        A row that no release of this schema can have written is left out.
        """
        asked = {"machine_id": machine_id, "engine": engine, "model": model, "origin": origin}
        given = {name: value for name, value in asked.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given) or "1"
        query = f"SELECT document, origin FROM observations WHERE {where} ORDER BY started_at DESC, run_id LIMIT ?"  # noqa: S608 - fixed names
        return list(_readable(self._select(query, [*given.values(), newest])))

    def forget(self, run_id: str) -> bool:
        """Remove one observation; False where there is none of that id. Raises StoreError."""
        if not self._is_there():
            return False
        with self._open(write=True) as base:
            return base.execute("DELETE FROM observations WHERE run_id = ?", [run_id]).rowcount > 0

    def keep_constants(self, machine_id: str, measured_at: str, document: Mapping[str, Any]) -> None:
        """Remember what `plan calibrate` measured, in place of an earlier measurement. Raises StoreError."""
        text = json.dumps(document, allow_nan=False)
        with self._open(write=True) as base:
            base.execute("INSERT OR REPLACE INTO constants VALUES (?, ?, ?)", [machine_id, measured_at, text])

    def constants(self, machine_id: str) -> dict[str, Any] | None:
        """What `plan calibrate` measured on that machine, or None. Raises StoreError."""
        rows = self._select("SELECT document FROM constants WHERE machine_id = ?", [machine_id])
        try:
            found = json.loads(rows[0][0]) if rows else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _is_there(self) -> bool:
        try:
            return self.path.exists()
        except OSError:  # a folder that may not be looked into
            return False

    def _select(self, query: str, values: list[Any]) -> list[Any]:
        """The rows of a query; none where there is no file, or one that a writer has only just begun."""
        if not self._is_there():
            return []
        with self._open(write=False) as base:
            return base.execute(query, values).fetchall() if _schema(base) else []

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        """One transaction on a checked file; every way to fail is a StoreError."""
        before = _inode(self.path)
        try:
            if write:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            base = self._connect(write=write)
            try:
                with _transaction(base, write=write):
                    self._check_schema(base, write=write)
                    yield base
            finally:
                base.close()
        except sqlite3.Error as problem:
            raise self._failure(problem, before, write=write) from None
        except OSError as problem:
            why = (problem.strerror or str(problem)).lower()
            raise StoreError(f"history cannot be kept in {str(self.path.parent)!r}: {why}") from None

    def _connect(self, *, write: bool) -> sqlite3.Connection:
        if write:
            base = sqlite3.connect(self.path, timeout=WRITE_WAIT_S, isolation_level=None)
            with suppress(sqlite3.OperationalError):  # another process is changing it this moment, to the same
                base.execute("PRAGMA journal_mode=WAL")
            return base
        where = self.path.absolute().as_uri()
        base = sqlite3.connect(f"{where}?mode=ro", uri=True, timeout=READ_WAIT_S, isolation_level=None)
        try:
            base.execute("PRAGMA user_version")
        except sqlite3.OperationalError:  # a folder that may not be written has no room for the shared index
            base.close()
            if self.path.with_name(self.path.name + "-wal").exists():
                raise
            base = sqlite3.connect(f"{where}?immutable=1", uri=True, isolation_level=None)
        return base

    def _check_schema(self, base: sqlite3.Connection, *, write: bool) -> None:
        found = _schema(base)
        if found > SCHEMA:
            where = f"history in {str(self.path)!r} has schema {found}"
            raise StoreError(
                f"{where}, written by a newer release; this one reads {SCHEMA}",
                hint="update vramplan, or name another folder with VRAMPLAN_HOME",
            )
        if found < SCHEMA and write:
            for statement in _TABLES.split(";"):
                base.execute(statement)
            base.execute(f"PRAGMA user_version = {SCHEMA}")

    def _failure(self, problem: sqlite3.Error, before: int | None, *, write: bool) -> StoreError:
        code = getattr(problem, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _DAMAGED:
            return StoreError(self._set_aside(problem, before))
        if code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreError(f"history in {str(self.path)!r} is held by another process; nothing was {_done(write)}")
        return StoreError(f"history in {str(self.path)!r} cannot be {_done(write)}: {problem}")

    def _set_aside(self, problem: sqlite3.Error, before: int | None) -> str:
        """Rename a damaged file, with its log, to the next free number; the sentence says to what."""
        where = f"history in {str(self.path)!r} is damaged ({problem})"
        if _inode(self.path) != before:
            return f"{where}; another process has set it aside"
        number = 1
        while (aside := self.path.with_name(f"{self.path.stem}.damaged-{number}{self.path.suffix}")).exists():
            number += 1
        try:
            for end in ("", "-wal", "-shm"):
                part = self.path.with_name(self.path.name + end)
                if part.exists():
                    part.rename(aside.with_name(aside.name + end))
        except OSError as refused:
            return f"{where} and cannot be set aside: {(refused.strerror or str(refused)).lower()}"
        return f"{where}; it is set aside as {aside.name}, and a new one begins with the next run"


@contextmanager
def _transaction(base: sqlite3.Connection, *, write: bool) -> Iterator[None]:
    base.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield
        base.execute("COMMIT")
    finally:
        if base.in_transaction:
            base.execute("ROLLBACK")


def _schema(base: sqlite3.Connection) -> int:
    return int(base.execute("PRAGMA user_version").fetchone()[0])


def _inode(path: Path) -> int | None:
    """Which file a name stands for; None where it stands for none."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _done(write: bool) -> str:
    return "written" if write else "read"


def _readable(rows: Iterable[tuple[str, str]]) -> Iterator[Kept]:
    for document, origin in rows:
        with suppress(PlannerError):
            yield Kept(observation=observation_from_json(document), origin=origin)


def store() -> Store:
    """The store of this user; see planner.calibrate.place."""
    return Store(path=store_path())


def remember(observation: Observation) -> str | None:
    """Record one run; the sentence to warn with where that failed, None where it is done or not wanted.

    This is the door for what must go on whatever becomes of history.
    """
    from planner.calibrate.place import is_wanted

    if not is_wanted():
        return None
    try:
        store().record(observation)
    except StoreError as problem:
        return problem.sentence
    return None
