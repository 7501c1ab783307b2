"""What `plan run` takes: the pace of a trainer with and without it, its processor time, its memory, its own seconds.

Run by `make bench`. The trainer is the tests' own, with a process for each core that does the same work either way: a
planner that needs a core takes it from the training.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
TRAINER = ROOT / "tests" / "run" / "trainer.py"
STEPS, ROUNDS, PAIRS, LEFT_OUT = 200, 6_000_000, 3, 10
CORES = min(8, os.cpu_count() or 1)
SET = f"max_steps={STEPS}"


def main() -> None:
    """Run both in turns and print the figures of the quickest of each."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        environment = _desk(folder)
        _plan(folder, environment)
        pairs = [_pair(folder, environment) for _ in range(PAIRS)]
    alone, under, shares, sizes, own = map(list, zip(*pairs, strict=True))
    change = min(under) / min(alone) - 1
    print(f"a step alone {min(alone) * 1e3:.1f} ms, under plan run {min(under) * 1e3:.1f} ms: {change:+.2%}")
    print(f"plan run: {min(shares):.2%} of {CORES} cores, {max(sizes) / 1e6:.0f} MB resident at most")
    print(f"plan run: {min(own):.1f} s of its own before and after the training, once a run")


def _pair(folder: Path, environment: dict[str, str]) -> tuple[float, ...]:
    """Seconds a step alone and under `plan run`, then what ``_under`` measures."""
    took: list[float] = []
    alone = _pace(folder, lambda: _alone(folder, environment))
    under = _pace(folder, lambda: took.extend(_under(folder, environment)))
    return alone, under, *took


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


def _pace(folder: Path, work: Callable[[], None]) -> float:
    """Seconds a step, by the trainer's own log."""
    output = folder / "plan" / "output"
    shutil.rmtree(output, ignore_errors=True)
    work()
    lines = (output / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    times = [json.loads(line)["at"] for line in lines][LEFT_OUT:]
    return float(times[-1] - times[0]) / (len(times) - 1)


def _alone(folder: Path, environment: dict[str, str]) -> None:
    spread = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(CORES)} if CORES > 1 else {}
    words = [str(folder / "engine" / "llamafactory-cli"), "train", "train.yaml", SET]
    subprocess.run(words, cwd=folder / "plan", env=environment | spread, check=True)


def _under(folder: Path, environment: dict[str, str]) -> tuple[float, float, float]:
    """Share of all cores while the trainer runs, the largest resident size, and the seconds beside the training."""
    words = [
        "run",
        "plan",
        "--python",
        str(folder / "engine" / "python"),
        "--skip-worst-case",
        "--anyway",
        "--set",
        SET,
    ]
    start = time.monotonic()
    with _quiet([sys.executable, "-m", "planner", *words], folder, environment) as going:
        share, most = _watch(psutil.Process(going.pid), folder / "plan" / "output" / "trainer_log.jsonl", going)
    if going.returncode:
        sys.exit(f"error: plan run ended with {going.returncode}")
    state = json.loads(max((folder / "plan" / "runs").glob("*/state.json")).read_text(encoding="utf-8"))
    trained = sum(each["ended_at"] - each["started_at"] for each in state["attempts"])
    return share, most, time.monotonic() - start - trained


@contextmanager
def _quiet(words: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=quiet, stderr=quiet) as going:
        yield going


def _watch(planner: psutil.Process, log: Path, going: subprocess.Popen[bytes]) -> tuple[float, int]:
    most, first, last = 0, None, None
    while going.poll() is None:
        steps = log.read_text(encoding="utf-8").count("\n") if log.exists() else 0
        try:
            times, resident = planner.cpu_times(), planner.memory_info().rss
        except psutil.NoSuchProcess:
            break
        most = max(most, resident)
        if LEFT_OUT <= steps < STEPS - LEFT_OUT:  # neither its start nor its report
            last = (time.monotonic(), times.user + times.system)
            first = first or last
        time.sleep(0.25)
    if first is None or last is None or last[0] == first[0]:
        sys.exit("error: the trainer never ran")
    return (last[1] - first[1]) / (last[0] - first[0]) / CORES, most


if __name__ == "__main__":
    main()
