"""Traces beside published peaks: the one-GPU rows of stack ``hf``, allocated bytes of torch's own meter.

Example: python tools/trace_published.py --only fms-base-032

Writes measurements/traced.jsonl: one line a row, with what was published, traced and estimated. Needs the extra
``trace``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools"))

from measured_setups import rows, statement  # noqa: E402

RESULT = ROOT / "measurements" / "traced.jsonl"
GIB = 2**30


def published() -> list[dict[str, Any]]:
    """The rows that a trace is held against."""
    return [
        row
        for row in rows("published")
        if row.get("stack") == "hf" and row["gpus"] == 1 and row["measure"] == "allocated"
    ]


def compared(row: dict[str, Any]) -> dict[str, Any]:
    """One row: GiB published and traced, and how far they are apart. Raises PlannerError."""
    from planner.hardware.parse import parse_machine
    from planner.memory.estimate import estimate
    from planner.model.catalogue import resolve
    from planner.trace.second_opinion import second_opinion
    from planner.training import setup_from_mapping

    setup = setup_from_mapping(statement(row), place=row["id"])
    spec, machine = resolve(setup.model), parse_machine(str(setup.gpus))
    answer = second_opinion(setup, spec, machine, estimate(setup, spec, machine))
    traced = answer.opinion.traced
    return {
        "id": row["id"],
        "model": row["model"],
        "method": row["method"],
        "published_gib": row["peak_gb"],
        "traced_gib": round(traced.allocated_bytes / GIB, 3),
        "error": round(traced.allocated_bytes / GIB / row["peak_gb"] - 1, 5),
        "estimated_gib": round(answer.estimate.allocated_bytes / GIB, 3),
        "peak_phase": traced.peak_phase,
        "seconds": round(answer.opinion.seconds, 1),
        "versions": answer.opinion.versions,
    }


def main() -> int:
    from planner.errors import PlannerError

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="these ids")
    asked = parser.parse_args()
    known = [json.loads(line) for line in RESULT.read_text().splitlines()] if RESULT.is_file() else []
    found = {each["id"]: each for each in known}
    failed = 0
    for row in published():
        if asked.only and row["id"] not in asked.only:
            continue
        try:
            found[row["id"]] = line = compared(row)
        except PlannerError as problem:
            print(f"{row['id']}: {problem.sentence}", file=sys.stderr)
            failed += 1
            continue
        figures = f"{line['published_gib']:8.3f} {line['traced_gib']:8.3f} {line['error']:+.3%} {line['peak_phase']}"
        print(f"{row['id']} {row['method']:6} {figures} {line['seconds']} s {row['model']}", flush=True)
        RESULT.write_text("".join(json.dumps(each) + "\n" for each in found.values()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
