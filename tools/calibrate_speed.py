"""Predicted against published throughput, and the fit of the [fitted] table of rules/speed.toml.

    python tools/calibrate_speed.py            # errors by source: as shipped, and with each group left out of the fit
    python tools/calibrate_speed.py --write    # fit again and write the table

Fitted on the A100 and H100 rows of foundation-model-stack/fms-acceleration and mosaicml/llm-foundry, both counting
alike. torchtune and torchtitan are never fitted on. A group is one model, method and set of kernels of a source: with
it left out, its rows are new to the model that predicts them. The fit is a search by coordinates on the mean
|log error|, each error capped so that outliers do not steer, with a small pull towards the figures as they stand.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools"))

import measured_setups  # noqa: E402

from planner.hardware.machine import Machine  # noqa: E402
from planner.hardware.parse import parse_machine  # noqa: E402
from planner.model.catalogue import resolve  # noqa: E402
from planner.model.interpret import interpret  # noqa: E402
from planner.model.spec import ModelSpec  # noqa: E402
from planner.speed.estimate import predict_speed  # noqa: E402
from planner.speed.rates import FACTS, Rates, make_rates, shipped  # noqa: E402
from planner.training import TrainingSetup, setup_from_mapping  # noqa: E402

TARGET = ROOT / "rules" / "speed.toml"
FITTED_SOURCES = ("fms", "foundry")
STEPS = (0.5, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 2.0)
CAP = 0.4
# llm-foundry's tables are of 2023, before FlashAttention-2: its kernels reached 25 to 40 % of an A100's rated
# throughput where FlashAttention-2 reaches 50 to 73 % (arXiv 2307.08691).
EARLIER_ATTENTION = 0.53
PULL = 0.002  # cost of moving one figure by a factor of e
BOUNDS = {"matmul_share": 0.95, "attention_share": 0.95, "bandwidth_share": 0.95, "overlap": 1.0, "exposed": 1.0}


@dataclass(frozen=True)
class Measured:
    """One published throughput, tokens per second and GPU, and the group that it is left out with."""

    name: str
    source: str
    group: str
    tokens_per_s: float
    setup: TrainingSetup
    spec: ModelSpec
    machine: Machine

    def log_error(self, rates: Rates) -> float:
        """log of predicted over measured."""
        speed = predict_speed(self.setup, self.spec, self.machine, rates)
        if speed is None:
            raise RuntimeError(f"{self.name}: its card's throughput is not in rules/gpus.toml")
        return math.log(speed.tokens_per_s / self.machine.world_size / self.tokens_per_s)


@dataclass(frozen=True)
class Model:
    """One set of fitted figures, as rates for today's attention kernels and for those of 2023."""

    today: Rates
    earlier: Rates

    @classmethod
    def of(cls, fitted: Mapping[str, float]) -> Model:
        """The model of a [fitted] table."""
        earlier = dict(fitted) | {"attention_share": fitted["attention_share"] * EARLIER_ATTENTION}
        return cls(make_rates(fitted), make_rates(earlier))

    def error(self, row: Measured) -> float:
        """log of predicted over measured for one row."""
        return row.log_error(self.earlier if row.source == "foundry" else self.today)

    def errors(self, rows: Iterable[Measured]) -> dict[str, float]:
        """The same for many, by name."""
        return {row.name: self.error(row) for row in rows}


def measured() -> list[Measured]:
    """Every row with a throughput that can be stated as a setup."""
    return [*_of_published(), *_of_foundry()]


def _of_published() -> Iterable[Measured]:
    for row in measured_setups.rows("published", "more"):
        if not row.get("tokens_per_s"):
            continue
        try:
            setup = setup_from_mapping(measured_setups.statement(row))
        except measured_setups.NotStatableError:
            continue
        source = row["id"].split("-")[0]
        group = "/".join((source, row["model"], row["method"], row["stack"]))
        machine = parse_machine(str(setup.gpus))
        yield Measured(row["id"], source, group, row["tokens_per_s"], setup, resolve(setup.model), machine)


def _of_foundry() -> Iterable[Measured]:
    for row in measured_setups.rows("throughput"):
        spec = interpret(row["config"], id=row["model"])
        count = row["gpus"]
        machine = parse_machine(f"{count // 8}x8x{row['gpu_model']}" if count > 8 else f"{count}x{row['gpu_model']}")
        if row["internode_gbit_per_s"]:
            node = row["internode_gbit_per_s"] * 1e9 / 8
            machine = replace(machine, links=replace(machine.links, internode_bytes_per_s=node))
        setup = TrainingSetup(
            model=row["model"], method="full", engine="transformers", parallelism="fsdp", stage="pt", packing=True,
            attention="flash_attention_2", seq_len=row["seq_len"], micro_batch_size=row["micro_batch"],
            gradient_accumulation_steps=row["grad_accum"], gradient_checkpointing=row["grad_ckpt"],
            param_dtype=row["param_dtype"], compute_dtype="bf16", optim="adamw_torch",
        )  # fmt: skip
        group = f"foundry/{row['model']}/{row['gpu_model']}"
        yield Measured(row["id"], "foundry", group, row["tokens_per_s"], setup, spec, machine)


def cost(rows: Iterable[Measured], fitted: Mapping[str, float], start: Mapping[str, float]) -> float:
    """Mean of the capped |log error|, groups of a source and sources counting alike, and the pull towards ``start``."""
    model = Model.of(fitted)
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(min(abs(model.error(row)), CAP))
    sources: dict[str, list[float]] = defaultdict(list)
    for group, errors in groups.items():
        sources[group.split("/")[0]].append(statistics.fmean(errors))
    moved = sum(abs(math.log(fitted[name] / start[name])) for name in fitted)
    return statistics.fmean(statistics.fmean(errors) for errors in sources.values()) + PULL * moved


def fit(rows: list[Measured]) -> dict[str, float]:
    """The fitted table that serves these rows best."""
    start = figures()
    best = dict(start)
    score, improved = cost(rows, best, start), True
    while improved:
        improved = False
        for name in best:
            for step in STEPS:
                tried = best | {name: min(best[name] * step, BOUNDS.get(name, math.inf))}
                result = cost(rows, tried, start)
                if result < score - 1e-6:
                    best, score, improved = tried, result, True
    return {name: float(f"{value:.3g}") for name, value in best.items()}


def figures() -> dict[str, float]:
    """The [fitted] table as it stands."""
    return {name: value for name, value in vars(shipped()).items() if name not in FACTS}


def left_out(rows: list[Measured], source: str) -> dict[str, float]:
    """Log error of every row of a fitted source by a fit that did not see its group."""
    fitted_on = [row for row in rows if row.source in FITTED_SOURCES]
    errors: dict[str, float] = {}
    for group in sorted({row.group for row in rows if row.source == source}):
        model = Model.of(fit([row for row in fitted_on if row.group != group]))
        errors |= model.errors(row for row in rows if row.group == group)
    return errors


def rank_correlation(rows: list[Measured], errors: Mapping[str, float]) -> float | None:
    """Spearman's, of predicted and measured throughput; None below four rows or where all are alike."""
    if len(rows) < 4:
        return None
    actual = [row.tokens_per_s for row in rows]
    predicted = [row.tokens_per_s * math.exp(errors[row.name]) for row in rows]
    return statistics.correlation(_ranks(actual), _ranks(predicted))


def _ranks(values: list[float]) -> list[float]:
    order = sorted(values)
    return [statistics.fmean([place for place, other in enumerate(order) if other == value]) for value in values]


def show(title: str, rows: list[Measured], errors: Mapping[str, float]) -> None:
    """One line: rows, median, 90th percentile, worst, bias; of groups the median rank correlation and the lowest."""
    sizes = sorted(abs(math.expm1(errors[row.name])) for row in rows)
    groups: dict[str, list[Measured]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    ranks = [value for part in groups.values() if (value := rank_correlation(part, errors)) is not None]
    said = f"rank {statistics.median(ranks):.2f}, lowest {min(ranks):.2f}" if ranks else ""
    bias = statistics.median(math.expm1(errors[row.name]) for row in rows)
    ninth = sizes[min(len(sizes) - 1, math.ceil(0.9 * len(sizes)) - 1)]
    figures = f"{statistics.median(sizes):6.1%}  {ninth:6.1%}  {sizes[-1]:6.1%}  {bias:+6.1%}"
    print(f"{title:32} {len(rows):4}  {figures}  {said}")


def report(rows: list[Measured], errors: Mapping[str, float], word: str) -> None:
    by: dict[str, list[Measured]] = defaultdict(list)
    for row in rows:
        by[row.source].append(row)
    for source, part in by.items():
        show(f"{source}, {word}", part, errors)


def show_rows(rows: list[Measured], errors: Mapping[str, float]) -> None:
    """Each row with its error, length, micro batch, checkpointing and GPUs."""
    for row in rows:
        setup = row.setup
        said = (
            f"{setup.seq_len} x {setup.micro_batch_size}, {setup.gradient_checkpointing}, {row.machine.world_size} GPUs"
        )
        print(f"  {row.group:60} {row.name:28} {math.expm1(errors[row.name]):+7.1%}  {said}")


def write(fitted: Mapping[str, Any]) -> None:
    text = TARGET.read_text(encoding="utf-8")
    for name, value in fitted.items():
        text = re.sub(rf"(?m)^({name} = )[\d.e-]+", rf"\g<1>{value}", text, count=1)
    TARGET.write_text(text, encoding="utf-8")


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--write", action="store_true", help="fit on all rows of the fitted source and write the table")
    reader.add_argument("--rows", metavar="SOURCE", help="each row of one source")
    asked = reader.parse_args()
    rows = measured()
    if asked.write:
        write(fit([row for row in rows if row.source in FITTED_SOURCES]))
        shipped.cache_clear()
    errors = Model.of(figures()).errors(rows)
    print(f"{'source':32} rows  median    90 %   worst    bias  rank correlation within a group")
    report([row for row in rows if row.source in FITTED_SOURCES], errors, "fitted on")
    report([row for row in rows if row.source not in FITTED_SOURCES], errors, "never fitted on")
    if asked.rows:
        show_rows([row for row in rows if row.source == asked.rows], errors)
    elif not asked.write:
        report([row for row in rows if row.source == "fms"], left_out(rows, "fms"), "each group left out")


if __name__ == "__main__":
    main()
