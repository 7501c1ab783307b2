"""Time of the whole main job against the bare imports it cannot do without, and the rate of `plan estimate --from`.

Run by `make bench`. A benchmark, not a test: it prints what it measured on this machine and judges nothing but itself.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

BARE = "import typer, rich.table, pydantic, jinja2, psutil"
# Everything open: more than a hundred thousand valid setups, each priced or excluded by a bound.
WIDE = (
    "--gpus", "8xA100-80GB", "--ram", "1TB", "--model", "7B", "--engine", "auto", "--global-batch", "1024",
    "--lora-ranks", "8,64", "--allow",
    "flash-attention-2,fsdp2,zero1,adamw-8bit,paged-adamw-8bit,pure-bf16,dora,qlora-8bit,offload-nvme",
)  # fmt: skip
MAIN_JOB = ("--gpus", "3x20GB", "--model", "7B")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
REPEATS = 11
ROWS = 20_000


@dataclass(frozen=True)
class Spent:
    """Seconds of one process: on the clock, and of processor time, which a loaded machine does not stretch."""

    clock: float
    processor: float

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.clock - other.clock, self.processor - other.processor)


def spent(*words: str, cwd: str) -> Spent:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1, 5):  # verdicts; anything else measured nothing
        sys.exit(f"error: {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return Spent(clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def said(*words: str, cwd: str) -> str:
    done = subprocess.run(words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1, 5):
        sys.exit(f"error: {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def median(*words: str, cwd: str, repeats: int = REPEATS) -> Spent:
    spent(*words, cwd=cwd)  # the first run compiles and warms the disk cache
    runs = [spent(*words, cwd=cwd) for _ in range(repeats)]
    return Spent(statistics.median(run.clock for run in runs), statistics.median(run.processor for run in runs))


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
        bare = median(sys.executable, "-c", BARE, cwd=folder)
        job = median(*plan, *MAIN_JOB, cwd=folder)
        wide = median(*plan, *WIDE, cwd=folder, repeats=3)
        space = json.loads(said(*plan, *WIDE, "--json", cwd=folder))["space"]
        helped = median(*plan, "--help", cwd=folder)
        many, one = (rows_spent(plan, Path(folder), count) for count in (ROWS, 1))
    allowed = Spent(1.5 * bare.clock + 0.3, 1.5 * bare.processor + 0.3)
    each = many - one
    print(f"{'':<22} clock s   processor s")
    for name, seconds in (
        ("bare imports", bare),
        ("plan --help", helped),
        ("main job", job),
        ("allowed for it", allowed),
        ("a wide space, whole", wide),
    ):
        print(f"{name:<22} {seconds.clock:7.3f}   {seconds.processor:11.3f}")
    print(f"{'estimate --from, rows/s':<22} {ROWS / each.clock:6.0f}   {ROWS / each.processor:11.0f}")
    print(f"\na wide space: {space['valid']:,} valid setups decided, of which {space['priced']:,} priced, on one core")
    print(
        f"\nbare imports: python -c '{BARE}'; allowed: 1.5 x bare imports + 0.3 s; {ROWS} different rows, after start"
    )


def rows_spent(plan: list[str], folder: Path, count: int) -> Spent:
    path = folder / f"{count}.jsonl"
    write_rows(path, count)
    return median(*plan, "estimate", "--from", str(path), "--json", cwd=str(folder), repeats=3)


if __name__ == "__main__":
    main()
