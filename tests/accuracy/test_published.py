"""Published runs on real GPUs: the bounds that the project set itself, and what was reached on held-out rows."""

from __future__ import annotations

import json

import pytest
from accuracy import MEASURES, Measure
from comparisons import Comparison, Judged, compare, summary, wrong_verdicts
from required import excesses, medians
from trace_published import RESULT, published

NOT_STATABLE = {
    "torchtitan-8b-fsdp8-compile-fp8": "float8",
    "torchtitan-8b-fsdp128-compile-fp8": "float8",
    "xtuner-ce-microbench-eager": "component",
    "xtuner-ce-microbench-chunk1024": "component",
}


def test_every_row_is_compared_or_listed_with_its_reason(judged: list[Judged]) -> None:
    problems = {one.name: one.problem for one in judged if one.problem}
    assert problems.keys() == NOT_STATABLE.keys()
    for name, reason in NOT_STATABLE.items():
        assert reason in (problems[name] or "")


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.title)
def test_allocated_memory_is_within_the_bound(measure: Measure, compared: list[Comparison]) -> None:
    reached = summary([one.error for one in compared if measure.covers(one)])
    assert reached["median"] <= measure.median
    if measure.worst is not None:
        assert reached["worst"] <= measure.worst


@pytest.mark.parametrize("rule", ["ran_but_does_not_fit", "ran_out_but_fits", "required_below_allocated"])
def test_verdicts_hold_on_the_card_of_the_run(rule: str, judged: list[Judged]) -> None:
    assert wrong_verdicts(judged)[rule] == []


@pytest.mark.parametrize("rule", ["ran_but_does_not_fit", "ran_out_but_fits", "required_below_allocated"])
def test_verdicts_hold_on_rows_that_nothing_was_calibrated_on(rule: str, held_out: list[Judged]) -> None:
    assert wrong_verdicts(held_out)[rule] == []


def test_intervals_are_ordered_and_hold_the_prediction(judged: list[Judged]) -> None:
    for one in judged:
        if one.estimate is None:
            continue
        for meter, (low, high) in one.estimate.interval.items():
            assert low <= getattr(one.estimate, meter) <= high, (one.name, meter)


def test_required_memory_holds_the_measured_peak_and_the_context(judged: list[Judged], held_out: list[Judged]) -> None:
    found = excesses([*judged, *held_out])
    assert sum(one.covered for one in found) >= 0.99 * len(found) > 300


def test_required_memory_of_one_gpu_is_not_wide(judged: list[Judged], held_out: list[Judged]) -> None:
    for rows in (judged, held_out):
        assert medians([one for one in excesses(rows) if one.gpus == 1])["total"] <= 0.12


def test_held_out_rows_of_one_gpu_stay_close(held_out: list[Judged]) -> None:
    errors = [one.error for one in compare(held_out) if one.meter == "allocated" and one.gpus == 1]
    assert summary(errors)["median"] <= 0.01


def test_every_published_row_of_the_stack_was_traced_within_half_a_percent() -> None:
    found = {line["id"]: line for line in map(json.loads, RESULT.read_text().splitlines())}
    asked = {row["id"]: row["peak_gb"] for row in published()}
    assert found.keys() == asked.keys()
    for name, line in found.items():
        assert line["published_gib"] == asked[name]
        assert abs(line["traced_gib"] / asked[name] - 1) <= 0.005, name
        assert abs(line["estimated_gib"] / asked[name] - 1) <= 0.005, name
        assert line["versions"]["transformers"].startswith("4.48"), name
