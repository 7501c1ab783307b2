"""What `plan run` takes while a trainer runs under it: processor time by the second, and memory.

Run by `make bench`. The trainer is the tests' own, which does next to nothing; everything measured is the planner's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
TRAINER = ROOT / "tests" / "run" / "trainer.py"
STEPS, STEP_S = 300, 0.1
PLAN = "--gpus 2x24GB --ram 64GB --model Qwen2.5-0.5B --method lora --seq-len 512 --global-batch 8".split()  # noqa: SIM905


def main() -> None:
    """Run once and print both figures."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        share, most = measured(folder)
    print(f"plan run: {share:.2%} of one core while a trainer runs, {most / 1e6:.0f} MB resident at most")


def measured(folder: Path) -> tuple[float, int]:
    """Processor seconds for each second of the training, and the largest resident size."""
    python = _engine(folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VRAMPLAN_HOME": str(folder / "home")}
    environment["LLAMAFACTORY_FAKE"] = json.dumps({"step_s": STEP_S})
    plan = [sys.executable, "-m", "planner"]
    subprocess.run([*plan, *PLAN, "--out", "plan"], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    words = ["run", "plan", "--python", str(python), "--skip-worst-case", "--set", f"max_steps={STEPS}"]
    going = subprocess.Popen(
        [*plan, *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return _watch(psutil.Process(going.pid), folder / "plan" / "output" / "trainer_log.jsonl", going)


def _engine(folder: Path) -> Path:
    (folder / "engine").mkdir()
    program = folder / "engine" / "llamafactory-cli"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {TRAINER} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (folder / "engine" / "python").symlink_to(sys.executable)
    return folder / "engine" / "python"


def _watch(planner: psutil.Process, log: Path, going: subprocess.Popen[bytes]) -> tuple[float, int]:
    most, first, last = 0, None, None
    while going.poll() is None:
        steps = log.read_text(encoding="utf-8").count("\n") if log.exists() else 0
        times = planner.cpu_times()
        most = max(most, planner.memory_info().rss)
        if 10 <= steps < STEPS - 10:  # neither its start nor its report
            last = (time.monotonic(), times.user + times.system)
            first = first or last
        time.sleep(0.25)
    if first is None or last is None or last[0] == first[0]:
        sys.exit("error: the trainer never ran")
    return (last[1] - first[1]) / (last[0] - first[0]), most


if __name__ == "__main__":
    main()
