"""What `plan run` takes: the pace of a trainer with and without it, its processor time, its memory, its own seconds.

Run by `make bench`. The trainer is the tests' own: a process for each core that does the same work either way and waits
for the others at every step, so that whoever takes a core for a moment holds up all of it.

The pace is measured in turns, since other load on a machine drifts by more than what is looked for. First within one
training, whose watch is halted every other two seconds (SIGSTOP) and goes on in between (SIGCONT): neighbouring turns
are pairs. A turn is timed from the last step before the signal, so that the look which the signal lets go counts.
Then as whole trainings, alone and under `plan run` by turns. Of both: the median of the paired differences, with the
interval of ranks that holds it at 95 %.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import comb
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[1]
TRAINER = ROOT / "tests" / "run" / "trainer.py"
CORES = min(8, os.cpu_count() or 1)
ROUNDS = 1_000_000  # about 20 ms a step
# A turn is as long as two looks of the watch: one as it goes on, one a second later; the next comes when it is halted.
TURN_S, TURNS = 2.0, 60  # pairs of turns
STEPS, PAIRS, LEFT_OUT = 200, 6, 20
TRUST = 0.95
ENDLESS = 1_000_000
LAST_BYTES = 1 << 10  # some lines of the trainer's log


class Taken(NamedTuple):
    """What the watch took while the trainer ran: its share of all cores, wake-ups a second, resident bytes."""

    share: float
    wakes_per_s: float
    resident_bytes: int


def main() -> None:
    """Run both comparisons and print their figures."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        environment = _desk(folder)
        _plan(folder, environment)
        taken, changes = _in_turns(folder, environment)
        print(f"plan run: {taken.share:.2%} of {CORES} cores, {taken.wakes_per_s:.1f} wake-ups a second, ", end="")
        print(f"{taken.resident_bytes / 1e6:.0f} MB resident at most")
        print(f"a step with the watch against one with it halted: {_median_of(changes)}")
        pairs = [_pair(folder, environment, number % 2 == 0) for number in range(PAIRS)]
        print(f"a step under plan run against one alone: {_median_of([change for change, _ in pairs])}")
        own = statistics.median(seconds for _, seconds in pairs)
        print(f"plan run: {own:.1f} s of its own before and after the training, once a run")


def _median_of(changes: Sequence[float]) -> str:
    low, high = interval(changes)
    pairs = f"{len(changes)} pairs"
    return f"{statistics.median(changes):+.2%} (95 % interval {low:+.2%} to {high:+.2%}, {pairs})"


def interval(values: Sequence[float], trust: float = TRUST) -> tuple[float, float]:
    """The median's interval by ranks, whatever the distribution: the sign test turned round.

    Below six values no such interval reaches 95 %, and it is all of their range.
    """
    ordered, count = sorted(values), len(values)
    below, outside = 0, 0.0
    while 2 * (outside + comb(count, below) / 2**count) <= 1 - trust:
        outside += comb(count, below) / 2**count
        below += 1
    below = max(0, below - 1)
    return ordered[below], ordered[count - 1 - below]


# ---- one training, its watch halted by turns


def _in_turns(folder: Path, environment: dict[str, str]) -> tuple[Taken, list[float]]:
    """What the watch takes, and for each pair of turns how much longer a step is with it."""
    _clear(folder)
    with _quiet(_words(folder, ENDLESS), folder, environment) as going:
        planner = psutil.Process(going.pid)
        _wait_for_steps(folder, LEFT_OUT, going)
        taken = _taken(planner)
        changes = [_turn(folder, planner, number % 2 == 0) for number in range(TURNS)]
        planner.send_signal(signal.SIGINT)
        going.wait()
    return taken, changes


def _taken(planner: psutil.Process) -> Taken:
    """Over half as long as all turns of one kind last."""
    most, seconds = 0, TURN_S * TURNS / 2
    before, woken, start = planner.cpu_times(), _wakes(planner), time.monotonic()
    while time.monotonic() < start + seconds:
        time.sleep(1.0)
        most = max(most, planner.memory_info().rss)
    after, took = planner.cpu_times(), time.monotonic() - start
    busy = after.user + after.system - before.user - before.system
    return Taken(busy / took / CORES, (_wakes(planner) - woken) / took, most)


def _wakes(planner: psutil.Process) -> int:
    """Times that any of its threads went to sleep, and so woke: those that ended count no more."""
    return sum(_sleeps(each.id, planner.pid) for each in planner.threads())


def _sleeps(thread: int, pid: int) -> int:
    lines = Path(f"/proc/{pid}/task/{thread}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def _turn(folder: Path, planner: psutil.Process, watched_first: bool) -> float:
    """One turn with the watch and one without, in either order."""
    paces = {}
    for watched in (watched_first, not watched_first):
        paces[watched] = _pace_after(folder, planner, signal.SIGCONT if watched else signal.SIGSTOP)
    planner.send_signal(signal.SIGCONT)
    return paces[True] / paces[False] - 1


def _pace_after(folder: Path, planner: psutil.Process, number: int) -> float:
    """Seconds a step from the last one before the signal on; only what was logged lately is read, in little time."""
    start = max(0, _log(folder).stat().st_size - LAST_BYTES)
    planner.send_signal(number)
    at = time.time()
    time.sleep(TURN_S)
    times = _steps(folder, start)
    return _pace([time for time in times if time <= at][-1:] + [time for time in times if time > at])


# ---- whole trainings by turns


def _pair(folder: Path, environment: dict[str, str], alone_first: bool) -> tuple[float, float]:
    """How much longer a step is under `plan run`, and the seconds that it takes beside the training."""
    paces, own = {}, 0.0
    for alone in (alone_first, not alone_first):
        _clear(folder)
        if alone:
            _alone(folder, environment)
        else:
            own = _under(folder, environment)
        paces[alone] = _pace(_steps(folder)[LEFT_OUT:])
    return paces[False] / paces[True] - 1, own


def _alone(folder: Path, environment: dict[str, str]) -> None:
    spread = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(CORES)} if CORES > 1 else {}
    words = [str(folder / "engine" / "llamafactory-cli"), "train", "train.yaml", f"max_steps={STEPS}"]
    subprocess.run(words, cwd=folder / "plan", env=environment | spread, check=True)


def _under(folder: Path, environment: dict[str, str]) -> float:
    """Seconds beside the training."""
    start = time.monotonic()
    with _quiet(_words(folder, STEPS), folder, environment) as going:
        going.wait()
    took = time.monotonic() - start
    if going.returncode:
        sys.exit(f"error: plan run ended with {going.returncode}")
    state = json.loads(max((folder / "plan" / "runs").glob("*/state.json")).read_text(encoding="utf-8"))
    return took - sum(each["ended_at"] - each["started_at"] for each in state["attempts"])


# ---- what both need


def _desk(folder: Path) -> dict[str, str]:
    (folder / "engine").mkdir()
    program = folder / "engine" / "llamafactory-cli"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {TRAINER} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (folder / "engine" / "python").symlink_to(sys.executable)
    own = {"PYTHONPATH": str(ROOT), "VRAMPLAN_HOME": str(folder / "home")}
    return os.environ | own | {"LLAMAFACTORY_FAKE": json.dumps({"rounds": ROUNDS})}


def _plan(folder: Path, environment: dict[str, str]) -> None:
    words = f"--gpus {CORES}x24GB --ram 64GB --model Qwen2.5-0.5B --method lora --seq-len 512 --out plan".split()
    words += ["--global-batch", str(4 * CORES)]
    command = [sys.executable, "-m", "planner", *words]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


def _words(folder: Path, steps: int) -> list[str]:
    words = f"-m planner run plan --python {folder / 'engine' / 'python'} --skip-worst-case --anyway".split()
    return [sys.executable, *words, "--set", f"max_steps={steps}"]


def _clear(folder: Path) -> None:
    shutil.rmtree(folder / "plan" / "output", ignore_errors=True)


def _log(folder: Path) -> Path:
    return folder / "plan" / "output" / "trainer_log.jsonl"


def _steps(folder: Path, start: int = 0) -> list[float]:
    """When each step ended, by the whole lines of the trainer's own log from that byte on."""
    if not _log(folder).exists():
        return []
    with _log(folder).open("rb") as file:
        file.seek(start)
        text = file.read()
    lines = text.splitlines(keepends=True)[1 if start else 0 :]
    return [json.loads(line)["at"] for line in lines if line.endswith(b"\n")]


def _pace(times: Sequence[float]) -> float:
    """Seconds a step."""
    if len(times) < 2:
        sys.exit("error: the trainer made no steps")
    return (times[-1] - times[0]) / (len(times) - 1)


def _wait_for_steps(folder: Path, count: int, going: subprocess.Popen[bytes]) -> None:
    while len(_steps(folder)) < count:
        if going.poll() is not None:
            sys.exit(f"error: plan run ended with {going.returncode}")
        time.sleep(0.25)


@contextmanager
def _quiet(words: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=quiet, stderr=quiet) as going:
        yield going


if __name__ == "__main__":
    main()
