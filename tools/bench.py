"""Time of the whole main job against the bare imports it cannot do without, and the rate of `plan estimate --from`.

Run by `make bench`. A benchmark, not a test: it prints what it measured on this machine and judges nothing but itself.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = "import typer, rich.table, pydantic, jinja2, psutil"
MAIN_JOB = ("--gpus", "3x20GB", "--model", "7B")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
REPEATS = 11
ROWS = 20_000


def seconds_of(*words: str, cwd: str) -> float:
    start = time.perf_counter()
    done = subprocess.run(words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode not in (0, 1, 5):  # verdicts; anything else measured nothing
        sys.exit(f"error: {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return seconds


def median_seconds(*words: str, cwd: str) -> float:
    seconds_of(*words, cwd=cwd)  # the first run compiles and warms the disk cache
    return statistics.median(seconds_of(*words, cwd=cwd) for _ in range(REPEATS))


def write_rows(path: Path, count: int) -> None:
    """Different setups, as a sweep would ask for them; repeated answers would be a rate of nothing."""
    axes = itertools.product(
        ("lora", "qlora", "full"),
        ("1xA100-80GB", "3x20GB", "8xH100-80GB"),
        ("7B", "Qwen2.5-0.5B", "Llama-3-8B"),
        (True, False),
        (1, 2, 4, 8),
        range(512, 8193, 8),
    )
    with path.open("w", encoding="utf-8") as out:
        for method, gpus, model, checkpointing, micro, length in itertools.islice(axes, 0, None, 7):
            row = {
                "model": model,
                "method": method,
                "gpus": gpus,
                "gradient_checkpointing": checkpointing,
                "micro_batch_size": micro,
                "seq_len": min(length, 8192),
            }
            out.write(json.dumps(row) + "\n")
            count -= 1
            if count == 0:
                return


def main() -> None:
    plan = [sys.executable, "-m", "planner"]
    with tempfile.TemporaryDirectory() as folder:
        bare = median_seconds(sys.executable, "-c", BARE, cwd=folder)
        job = median_seconds(*plan, *MAIN_JOB, cwd=folder)
        helped = median_seconds(*plan, "--help", cwd=folder)
        rows, one = Path(folder) / "rows.jsonl", Path(folder) / "one.jsonl"
        write_rows(rows, ROWS)
        write_rows(one, 1)
        many = median_seconds_of_rows(plan, rows, folder) - median_seconds_of_rows(plan, one, folder)
    print(f"bare imports            {bare:6.3f} s   python -c '{BARE}'")
    print(f"plan --help             {helped:6.3f} s")
    print(f"main job                {job:6.3f} s   plan {' '.join(MAIN_JOB)}")
    print(f"allowed for it          {1.5 * bare + 0.3:6.3f} s   1.5 x bare imports + 0.3 s")
    print(f"plan estimate --from    {ROWS / many:6.0f} setups/s after start ({ROWS} different rows)")


def median_seconds_of_rows(plan: list[str], path: Path, folder: str) -> float:
    words = [*plan, "estimate", "--from", str(path), "--json"]
    return statistics.median(seconds_of(*words, cwd=folder) for _ in range(3))


if __name__ == "__main__":
    main()
