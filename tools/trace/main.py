"""Traces training steps of real models on fake tensors.

Example: python tools/trace/main.py --from setups.jsonl --out traced.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import guard

guard.install()

import peft  # noqa: E402, F401 - imported once, inherited by every row's process
import report  # noqa: E402 - torch may only be imported behind the guard
from setups import Setup, read_setup  # noqa: E402
from step import trace  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="one setup per line")
    parser.add_argument("--out", type=Path, help="traced rows are appended here")
    parser.add_argument("--timeline", type=Path, help="a folder: one text per setup, operation by operation")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [json.loads(line) for line in options.source.read_text().splitlines() if line.strip()]
    for row in rows:
        _apart(row, options.out, options.timeline)
    return 0


def _apart(row: dict[str, Any], out: Path | None, folder: Path | None) -> None:
    """Every row in a process of its own: kernels patched for one model must not reach the next."""
    child = multiprocessing.get_context("fork").Process(target=_one, args=(row, out, folder))
    child.start()
    child.join()


def _one(row: dict[str, Any], out: Path | None, folder: Path | None) -> None:
    started = time.monotonic()
    setup = read_setup(row)
    try:
        result = traced(setup, folder)
    except Exception as problem:
        print(f"{setup.name}: {type(problem).__name__}: {str(problem).splitlines()[0][:200]}", file=sys.stderr)
        if out is None:
            raise
        return
    text = json.dumps({"setup": row, **result, "versions": versions()})
    if out is None:
        print(text)
    else:
        with out.open("a") as file:
            file.write(text + "\n")
    print(f"{setup.name}: {result['peak_allocated_bytes']:,} {result['peak_phase']}", end=" ", file=sys.stderr)
    print(f"{time.monotonic() - started:.1f} s", file=sys.stderr)


def traced(setup: Setup, folder: Path | None) -> dict[str, Any]:
    """The traced result of a setup at its own depth."""
    ledger, model = trace(setup)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{setup.name}.txt").write_text("\n".join(report.timeline(ledger)) + "\n")
        middle = setup.layers // 2 - 1
        (folder / f"{setup.name}.kept.txt").write_text("\n".join(report.kept(ledger, middle)) + "\n")
    return {**report.summary(ledger, model), **report.segments(ledger)}


def versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "liger-kernel"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
