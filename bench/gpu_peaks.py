"""Measure real training steps of catalogue shapes on this machine's NVIDIA GPU, beside what the planner predicts.

    python bench/gpu_peaks.py                        peaks over bench/grid.toml into measurements/gpu/
    python bench/gpu_peaks.py --cap 24               the card held to 24 GiB: what is called safe must run
    python bench/gpu_peaks.py --list --card H200     what would be run, and how long it is thought to take

It ends when --minutes are over and goes on from there when called again. Needs torch, transformers, peft and
accelerate; Liger and bitsandbytes runs are skipped, and said, where those are missing. Exit codes: 0 done (or out of
time), 1 a plan called safe ran out or one called impossible ran, 2 bad input, 4 a run failed otherwise.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from bench import caps, shapes  # noqa: E402
from bench.batch import ROOT, Planned, Report, ask_card, run_batch  # noqa: E402
from bench.grid import Run, read_grid  # noqa: E402
from bench.predict import predicted, seconds_of  # noqa: E402
from planner.errors import EXIT_JOB_FAILED, InputError, PlannerError  # noqa: E402
from planner.hardware.parse import parse_machine  # noqa: E402

STEPS = (2, 4)  # warm-up (the first step makes the optimizer's states), timed
LARGEST_DRY = 50_000_000  # parameters: the dry mode is for tiny shapes
GPU_ONLY = ("liger-kernel", "flash-attn")  # Triton and CUDA kernels
Row = dict[str, Any]


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--grid", type=Path, help="another grid than bench/grid.toml")
    reader.add_argument("--out", type=Path, help="folder of the rows (measurements/gpu)")
    reader.add_argument("--minutes", type=float, default=9.0, help="begin no run that would end later (9)")
    reader.add_argument("--only", default="", help="runs whose name holds this word, such as qlora")
    reader.add_argument(
        "--cap", type=float, nargs="+", default=[], metavar="GiB", help="cards to emulate, such as 24 40"
    )
    reader.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the dry mode, tiny shapes")
    reader.add_argument("--list", action="store_true", help="say what would be run and stop")
    reader.add_argument("--card", help="with --list: the card to list for, such as H200; no GPU is asked")
    reader.add_argument("--retry", action="store_true", help="try runs again that failed otherwise than out of memory")
    asked = reader.parse_args(words)
    if asked.minutes <= 0 or any(cap <= 0 for cap in asked.cap):
        raise InputError("--minutes and --cap take numbers above 0")
    if asked.card and not asked.list:
        raise InputError("--card goes with --list: a run is on the card that is here")
    if asked.device == "cpu" and asked.out is None and not asked.list:
        raise InputError("--device cpu measures nothing; name a folder for its rows with --out")
    asked.out = asked.out or ROOT / "measurements" / "gpu"
    return asked


def main(words: list[str] | None = None) -> int:
    """Run, print, and say by the exit code whether anything contradicted a verdict."""
    try:
        asked = arguments(words)
        return _run(asked)
    except PlannerError as problem:
        print(f"error: {problem.sentence}" + (f"\nhint: {problem.hint}" if problem.hint else ""), file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        return 130


def _run(asked: argparse.Namespace) -> int:
    runs, cases = read_grid(asked.grid)
    machine = card_named(asked.card) if asked.card else card_here(asked.device)
    chosen, skipped = select(cases if asked.cap else runs, machine, asked.only)
    planned = []
    if asked.cap:
        planned = [one for cap in asked.cap for case in chosen for one in plan_caps(case, machine, cap, asked.device)]
    else:
        for run in chosen:
            one = plan_run(run, machine, asked.device)
            if one.row["predicted"].get("verdict") == "does_not_fit":
                skipped[run.name] = "predicted not to fit this card"
            else:
                planned.append(one)
    for name, reason in sorted(skipped.items()):
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if asked.list:
        return _list(planned)
    folder = asked.out / "caps" if asked.cap else asked.out
    path = folder / f"{re.sub('[^a-z0-9.]+', '-', machine['card'].lower())}.jsonl"
    report = run_batch(planned, path, minutes=asked.minutes, retry=asked.retry)
    return _finish(report, path, capped=bool(asked.cap))


def card_here(device: str) -> Row:
    """The card and versions as a fresh process sees them, and the card's word for ``--gpus``."""
    found = ask_card(device)
    if device == "cpu":
        return {**found, "card": "80GB", "device": device}
    total = found.get("driver_total_bytes") or found["total_bytes"]
    return {**found, "card": shapes.card_word(found["card_name"], total), "device": device}


def card_named(word: str) -> Row:
    """A card that is not here, with every package taken to be installed."""
    has_bf16 = parse_machine(f"1x{word}").smallest.has_bf16 is not False
    everything = dict.fromkeys(("liger-kernel", "bitsandbytes", "flash-attn"), "0")
    return {
        "card": word, "card_name": word, "driver": None, "device": "cuda", "has_bf16": has_bf16, "versions": everything,
    }  # fmt: skip


def select(runs: list[Run], machine: Row, word: str) -> tuple[list[Run], dict[str, str]]:
    """The runs that this machine can do, and the reason for each other one."""
    chosen, skipped = [], {}
    for run in runs:
        if word not in run.name:
            continue
        missing = [package for package in run.needs() if package not in machine["versions"]]
        if missing:
            skipped[run.name] = f"{missing[0]} is not installed"
        elif machine["device"] == "cpu" and (bound := [name for name in run.needs() if name in GPU_ONLY]):
            skipped[run.name] = f"{bound[0]} runs on a GPU alone"
        elif not machine["has_bf16"]:
            skipped[run.name] = "the card has no bfloat16"
        elif machine["device"] == "cpu" and run.spec.parameters > LARGEST_DRY:
            skipped[run.name] = f"--device cpu runs tiny shapes only, up to {LARGEST_DRY:,} parameters"
        else:
            chosen.append(run)
    return chosen, skipped


def plan_run(run: Run, machine: Row, device: str, *, cap: Row | None = None) -> Planned:
    """The prediction, the worker's job and the row's fixed part of one run."""
    versions = {name: number for name, number in machine["versions"].items() if number != "0"}
    stated = run.stated(machine["card"], versions)
    setup = run.setup(machine["card"], versions)
    where = shapes.machine_of(stated["gpus"], cap["gib"] if cap else None)
    prediction = predicted(setup, run.spec, where)
    row = {
        "id": run.name, "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "card": machine["card"], "card_name": machine["card_name"], "device": device, "driver": machine["driver"],
        "versions": versions, "needs": list(run.needs()), "setup": stated, "layers": run.layers, "ranks": run.ranks,
        "config": run.config, "predicted": prediction, "steps": list(STEPS), "cap": cap,
        "alloc_conf": os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
    }  # fmt: skip
    job = {
        "setup": setup.to_dict(), "config": run.config, "ranks": run.ranks, "steps": list(STEPS),
        "device": device, "limit_bytes": cap["limit_bytes"] if cap else None, "phases": prediction.get("phases"),
    }  # fmt: skip
    return Planned(run=run, job=job, row=row, seconds=seconds_of(prediction, run.spec, sum(STEPS)))


def plan_caps(case: Run, machine: Row, cap_gib: float, device: str) -> list[Planned]:
    """The runs at the borders of one case on an emulated card that is smaller than this one."""
    where = shapes.machine_of(f"1x{machine['card']}", cap_gib)
    capacity = where.smallest.capacity_bytes
    if capacity >= parse_machine(f"1x{machine['card']}").smallest.capacity_bytes:
        raise InputError(f"--cap {cap_gib:g} is not below this card's own memory ({machine['card']})")
    setup = case.setup(machine["card"], {k: v for k, v in machine["versions"].items() if v != "0"})
    planned = []
    for edge in caps.edges(case, setup, where):
        context = predicted(edge.run.setup(machine["card"]), case.spec, where)["context_bytes"]
        cap = {
            "gib": cap_gib, "capacity_bytes": capacity, "verdict": edge.verdict,
            "limit_bytes": caps.limit_bytes(capacity, context),
        }  # fmt: skip
        planned.append(plan_run(edge.run, machine, device, cap=cap))
    return planned


def _list(planned: list[Planned]) -> int:
    for one in sorted(planned, key=lambda each: each.seconds):
        size = (one.row["predicted"].get("allocated_bytes") or 0) / 2**30
        cap = f"  {one.row['cap']['gib']:g} GB, {one.row['cap']['verdict']}" if one.row["cap"] else ""
        print(f"{one.seconds:6.0f} s {size:8.2f} GiB  {one.row['id']}{cap}")
    print(f"{len(planned)} runs, about {sum(one.seconds for one in planned) / 60:.0f} minutes")
    return 0


def _finish(report: Report, path: Path, *, capped: bool) -> int:
    rows = report.known + report.rows
    failed = [row for row in report.rows if row["outcome"] not in ("ok", "out_of_memory")]
    for row in failed:
        print(f"{row['id']}: {row['outcome']}: {row['message']}", file=sys.stderr)
    print(f"{len(report.rows)} new rows, {len(report.known)} known, {report.left} left for the next call: {path}")
    if capped and rows:
        print(caps.table(rows))
        if any(caps.judged(row)["judgement"] == "contradiction" for row in rows):
            return 1
    return EXIT_JOB_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
