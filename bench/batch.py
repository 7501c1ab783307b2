"""EDGE: runs one after the other, each in a process of its own, until the time is up; one JSON line a run.

The next worker imports its libraries while a run is on the card. What is in the file already, for the same card,
versions and setup, is not run again.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.grid import Run
from planner.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "bench.worker")
KEY_VERSIONS = ("torch", "transformers", "peft", "accelerate")
START_TIMEOUT_S = 300.0
LEAST_TIMEOUT_S = 90.0
SLACK = 6.0  # a run may take so many times its predicted seconds
BASICS = "the bench needs torch, transformers, peft and accelerate"
FINAL = frozenset({"ok", "out_of_memory"})  # errors are tried again when asked

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run with what the planner says of it, what the worker is told, and what its row says beside the outcome."""

    run: Run
    job: dict[str, Any]
    row: Row
    seconds: float

    @property
    def key(self) -> str:
        """What makes two rows the same run."""
        return row_key(self.row)


@dataclass(kw_only=True)
class Report:
    """What a batch did: new rows, how many were there before, and how many are left for the next one."""

    rows: list[Row] = field(default_factory=list)
    known: list[Row] = field(default_factory=list)
    left: int = 0


def row_key(row: Row) -> str:
    """Card, driver, versions, setup without versions, layers and cap, as one text."""
    versions = {**row["versions"], "driver": row.get("driver")}
    named = {name: versions.get(name) for name in (*KEY_VERSIONS, "driver", *row.get("needs", ()))}
    setup = {name: value for name, value in row["setup"].items() if name != "versions"}
    cap = (row.get("cap") or {}).get("gib")
    environment = row.get("alloc_conf")
    return json.dumps([row["card"], named, setup, row["layers"], row["ranks"], cap, environment], sort_keys=True)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that may not exist. Raises InputError for a line that is no JSON object."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(dict(json.loads(line)))
        except ValueError:
            raise InputError(f"{path}, line {number}: is not a JSON object; remove it, or name another --out") from None
    return found


def run_batch(
    planned: list[Planned],
    path: Path,
    *,
    minutes: float,
    retry: bool = False,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Run what is not in ``path`` yet, the quickest first, and append each row as it ends."""
    deadline = clock() + 60 * minutes
    before = {row_key(row): row for row in read_rows(path) if row["outcome"] in FINAL or not retry}
    # a run's figures stay; what is predicted of it is today's
    known = [{**before[one.key], "predicted": one.row["predicted"]} for one in planned if one.key in before]
    report = Report(known=known)
    todo = sorted((one for one in planned if one.key not in before), key=lambda one: one.seconds)
    waiting: Worker | None = None
    try:
        for place, one in enumerate(todo):
            if clock() + one.seconds > deadline:
                report.left = len(todo) - place
                break
            worker = waiting or Worker()
            worker.wait_ready()
            waiting = Worker() if place + 1 < len(todo) else None
            limit = min(max(LEAST_TIMEOUT_S, SLACK * one.seconds), max(deadline - clock(), LEAST_TIMEOUT_S))
            row = {**one.row, **worker.work(one.job, limit)}
            append(path, row)
            report.rows.append(row)
            say(line_of(row, place + 1, len(todo)))
    finally:
        if waiting is not None:
            waiting.end()
    return report


def append(path: Path, row: Row) -> None:
    """One line at the end of the file, on the disk before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def line_of(row: Row, number: int, count: int) -> str:
    """The screen's line of one finished run."""
    measured = (row.get("peaks") or {}).get("allocated_bytes")
    expected = row["predicted"].get("allocated_bytes")
    shown = row["outcome"] + (f" in {row['phase']}" if row.get("phase") else "")
    if measured and expected and row["outcome"] == "ok":
        shown = f"{measured / 2**30:7.2f} GiB allocated, predicted {100 * (expected / measured - 1):+.2f} %"
        if row.get("tokens_per_s"):
            shown += f", {row['tokens_per_s']:,.0f} tokens/s"
    return f"[{number}/{count}] {row['id']}: {shown}"


class Worker:
    """A process that has imported its libraries, or is about to, and does one job."""

    def __init__(self, command: tuple[str, ...] = COMMAND) -> None:
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (see end)
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=surroundings(os.environ), text=True, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._is_ready = False

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put("")

    def _line(self, limit_s: float) -> dict[str, Any] | None:
        """The next message; None where the process ended. Raises queue.Empty when the time is up."""
        line = self._lines.get(timeout=max(limit_s, 0.01))
        return json.loads(line) if line else None

    def wait_ready(self) -> None:
        """Return when it waits for its job. Raises InputError where its libraries cannot be imported."""
        if self._is_ready:
            return
        try:
            message = self._line(START_TIMEOUT_S)
        except queue.Empty:
            message = None
        if message is None:
            self.end()
            raise InputError(f"the bench's worker cannot start: {_last_line(self.complaint())}", hint=BASICS)
        self._is_ready = True

    def work(self, job: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Do the job and end; a crash or a time-out is an outcome."""
        try:
            self._process.stdin.write(json.dumps(job) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            message = self._line(limit_s)
        except queue.Empty:
            self.end()
            return {"outcome": "timed_out", "phase": None, "message": f"still running after {limit_s:.0f} s"}
        except BrokenPipeError:
            message = None
        if message is None:
            code = self._process.wait()
            self.end()
            words = self.complaint().strip()[-1500:]
            return {"outcome": "crashed", "phase": None, "message": f"the process ended with {code}: {words}"}
        self._finish()
        return message

    def _finish(self) -> None:
        """Wait until its memory is given back: the next run begins on an empty card."""
        try:
            self._process.wait(timeout=60)
        finally:
            self.end()

    def complaint(self) -> str:
        """What it wrote to stderr."""
        if self._errors.closed:
            return self._words
        self._errors.seek(0)
        return self._errors.read()

    def end(self) -> None:
        """Stop it, if it runs."""
        if self._errors.closed:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._words = self.complaint()
        self._errors.close()


def surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    """The worker's environment: one card, counted as nvidia-smi counts, no hub, no telemetry."""
    first = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    own = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": first,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH")))),
    }
    left_out = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return {name: value for name, value in environment.items() if name not in left_out} | own


def ask_card(device: str) -> Row:
    """What ``bench.worker`` says of the card and the versions. Raises InputError where there is no card."""
    done = subprocess.run(
        (*COMMAND, "probe", device), cwd=ROOT, env=surroundings(os.environ), capture_output=True, text=True
    )
    answer: Row = json.loads(done.stdout) if done.stdout.strip() else {"error": _last_line(done.stderr)}
    if "error" in answer:
        raise InputError(str(answer["error"]), hint=BASICS)
    return answer


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
