"""Predictions against published measurements, by stack and source: ``make accuracy``.

    python tools/accuracy.py [--stack hf] [--files published more] [--rows] [--misses 12] [--json]

Allocated memory is compared where the source gives it, reserved and nvidia-smi figures with theirs. Rows that the
contract's fields cannot state are listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from comparisons import Comparison, Judged, compare, judge_rows, summary, wrong_verdicts  # noqa: E402
from measured_setups import FILES  # noqa: E402

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A bound that the project set itself on allocated memory of published.jsonl."""

    stack: str | None
    several: bool
    median: float
    worst: float | None = None

    @property
    def title(self) -> str:
        """``hf, one GPU``."""
        return f"{self.stack or 'all stacks'}, {'several GPUs' if self.several else 'one GPU'}"

    def covers(self, one: Comparison) -> bool:
        """True for the rows that the bound speaks of."""
        same_size = (one.gpus > 1) == self.several
        return one.file == "published" and one.meter == "allocated" and same_size and self.stack in (None, one.stack)


MEASURES = (
    Measure(stack="hf", several=False, median=0.002, worst=0.005),
    Measure(stack="hf-liger", several=False, median=0.03, worst=0.03),
    Measure(stack="hf-gptq", several=False, median=0.03, worst=0.03),
    Measure(stack="hf-fused-kernels", several=False, median=0.03, worst=0.03),
    Measure(stack="litgpt", several=False, median=0.03, worst=0.03),
    Measure(stack="torchtune", several=False, median=0.03),
    Measure(stack="thunder", several=False, median=0.03, worst=0.03),
    Measure(stack=None, several=True, median=0.03, worst=0.03),
)


def measured(compared: list[Comparison]) -> list[dict[str, Any]]:
    """Each bound with what was reached: the summary of its rows and whether it holds."""
    answers = []
    for measure in MEASURES:
        errors = [one.error for one in compared if measure.covers(one)]
        if not errors:
            continue
        reached = summary(errors)
        holds = reached["median"] <= measure.median and (measure.worst is None or reached["worst"] <= measure.worst)
        answers.append({"title": measure.title, "bounds": asdict(measure), "reached": reached, "holds": holds})
    return answers


def grouped(compared: list[Comparison], key: Callable[[Comparison], tuple[Any, ...]]) -> dict[Any, dict[str, Any]]:
    """Summaries of the errors by any key."""
    groups: dict[Any, list[float]] = defaultdict(list)
    for one in compared:
        groups[key(one)].append(one.error)
    return {name: summary(errors) for name, errors in sorted(groups.items(), key=str)}


def percent(value: float, *, signed: bool = False) -> str:
    return f"{value * 100:+.2f} %" if signed else f"{value * 100:.2f} %"


def print_groups(title: str, groups: dict[Any, dict[str, Any]]) -> None:
    print(f"\n{title}")
    print(f"  {'':58} {'rows':>4} {'median':>8} {'p90':>8} {'worst':>8} {'bias':>9}")
    for name, one in groups.items():
        label = " · ".join(str(part) for part in name)
        label = label if len(label) <= 58 else "…" + label[-57:]
        figures = f"{percent(one['median']):>8} {percent(one['p90']):>8} {percent(one['worst']):>8}"
        print(f"  {label:58} {one['count']:>4} {figures} {percent(one['bias'], signed=True):>9}")


def print_rows(compared: list[Comparison]) -> None:
    print(f"\n  {'row':42} {'meter':10} {'GPUs':>4} {'measured':>10} {'predicted':>10} {'error':>9}  peak")
    for one in compared:
        sizes = f"{one.measured_bytes / GIB:>6.2f} GiB {one.predicted_bytes / GIB:>6.2f} GiB"
        error = percent(one.error, signed=True)
        print(f"  {one.id:42} {one.meter:10} {one.gpus:>4} {sizes} {error:>9}  {one.peak_phase}")


def print_problems(judged: list[Judged]) -> None:
    problems: dict[str, list[str]] = defaultdict(list)
    for one in judged:
        if one.problem:
            problems[one.problem].append(one.name)
    print(f"\nNot compared: {sum(map(len, problems.values()))} of {len(judged)} rows")
    for problem, names in problems.items():
        print(f"  {len(names):>3} x {problem}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}")


def print_measures(compared: list[Comparison]) -> None:
    print("\nMeasures, allocated memory of published.jsonl")
    for one in measured(compared):
        bounds, reached = one["bounds"], one["reached"]
        asked = f"median <= {percent(bounds['median'])}"
        asked += f", worst <= {percent(bounds['worst'])}" if bounds["worst"] else ""
        got = f"median {percent(reached['median'])}, worst {percent(reached['worst'])} of {reached['count']} rows"
        print(f"  {'pass' if one['holds'] else 'MISS'}  {one['title']:30} {asked:36} reached {got}")


def print_verdicts(judged: list[Judged]) -> None:
    print("\nVerdicts on the card that each run had (uncertain is right on both sides)")
    counted = [one for one in judged if one.estimate is not None]
    for rule, names in wrong_verdicts(counted).items():
        shown = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
        print(f"  {'pass' if not names else 'MISS'}  {rule:26} {len(names)} of {len(counted)} rows  {shown}")


def arguments() -> argparse.Namespace:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--stack", help="only this stack, such as hf or litgpt")
    reader.add_argument("--files", nargs="+", default=list(FILES), choices=FILES, help="measurement files to read")
    reader.add_argument("--rows", action="store_true", help="every row, not only the misses")
    reader.add_argument("--misses", type=int, default=12, help="how many of the largest errors to list")
    reader.add_argument("--json", action="store_true", help="one JSON document")
    return reader.parse_args()


def main() -> None:
    asked = arguments()
    judged = judge_rows(*asked.files)
    if asked.stack:
        judged = [one for one in judged if one.row.get("stack") == asked.stack]
    compared = compare(judged)
    if asked.json:
        print(json.dumps(document(judged, compared)))
        return
    allocated = [one for one in compared if one.meter == "allocated"]
    several = {True: "several GPUs", False: "one GPU"}
    print_groups(
        "Allocated memory, by file, stack and GPUs",
        grouped(allocated, lambda one: (one.file, one.stack, several[one.gpus > 1])),
    )
    others = [one for one in compared if one.meter != "allocated"]
    print_groups(
        "Other meters (reserved_bytes, device_bytes)",
        grouped(others, lambda one: (one.file, one.stack, several[one.gpus > 1], one.meter)),
    )
    print_groups("By source, all meters", grouped(compared, lambda one: (one.source,)))
    worst = sorted(allocated, key=lambda one: -abs(one.error))[: asked.misses]
    print_rows(compared if asked.rows else worst)
    print_problems(judged)
    print_measures(compared)
    print_verdicts(judged)


def document(judged: list[Judged], compared: list[Comparison]) -> dict[str, Any]:
    """Everything that is printed, for scripts."""
    return {
        "rows": [{**asdict(one), "error": one.error} for one in compared],
        "not_compared": {one.name: one.problem for one in judged if one.problem},
        "measures": measured(compared),
        "wrong_verdicts": wrong_verdicts(judged),
    }


if __name__ == "__main__":
    main()
