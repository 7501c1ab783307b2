"""Caps: the borders are found where the verdict changes, and a wrong verdict is called one."""

from __future__ import annotations

from typing import Any

import pytest

from bench import caps, shapes
from bench.caps import edges, judged, judgement, table
from bench.grid import Run, read_grid
from planner.memory.estimate import estimate

GIB = 2**30
CASE = Run({"model": "meta-llama/Llama-3.2-3B", "method": "lora", "param_dtype": "bf16", "seq_len": 1024})


@pytest.mark.parametrize("gib", [12, 16, 24])
def test_borders_are_where_the_verdict_changes(gib: int) -> None:
    machine = shapes.machine_of("1xH200", gib)
    found = {edge.verdict: edge.run.fields["micro_batch_size"] for edge in edges(CASE, CASE.setup("H200"), machine)}

    def verdict(batch: int) -> str | None:
        return estimate(CASE.setup("H200").but(micro_batch_size=batch), CASE.spec, machine).verdict

    assert found["fits"] < found["does_not_fit"]
    assert (verdict(found["fits"]), verdict(found["fits"] + 1) == "fits") == ("fits", False)
    assert (verdict(found["does_not_fit"]), verdict(found["does_not_fit"] - 1) == "does_not_fit") == (
        "does_not_fit",
        False,
    )


def test_a_case_far_beyond_or_far_below_the_card_says_nothing() -> None:
    small = Run({"model": "Qwen/Qwen2.5-0.5B", "method": "lora", "param_dtype": "bf16", "seq_len": 128})
    large = Run({"model": "meta-llama/Meta-Llama-3-70B", "method": "full", "param_dtype": "bf16"})
    assert edges(small, small.setup("H200"), shapes.machine_of("1xH200", 80)) == []
    assert edges(large, large.setup("H200"), shapes.machine_of("1xH200", 24)) == []


@pytest.mark.parametrize("gib", caps.CAPS_GIB)
def test_the_grids_cases_have_borders_on_every_card(gib: int) -> None:
    machine = shapes.machine_of("1xH200", gib)
    found = [edge for case in read_grid()[1] for edge in edges(case, case.setup("H200"), machine)]
    assert len([edge for edge in found if edge.verdict == "fits"]) >= 8
    assert len([edge for edge in found if edge.verdict == "does_not_fit"]) >= 8


@pytest.mark.parametrize(
    ("verdict", "outcome", "expected"),
    [
        ("fits", "ok", "right"), ("fits", "out_of_memory", "contradiction"),
        ("does_not_fit", "out_of_memory", "right"), ("does_not_fit", "ok", "contradiction"),
        ("uncertain", "ok", "either"), ("uncertain", "out_of_memory", "either"),
        ("fits", "crashed", "no answer"),
    ],
)  # fmt: skip
def test_judgements(verdict: Any, outcome: str, expected: str) -> None:
    assert judgement(verdict, outcome) == expected


def row(outcome: str, *, context: int | None, limit: int = 22 * GIB, required: int = 23 * GIB) -> dict[str, Any]:
    return {
        "id": "a-run", "outcome": outcome, "limit_bytes": limit, "peaks": {"context_bytes": context},
        "cap": {"gib": 24, "capacity_bytes": 23 * GIB, "verdict": "fits"},
        "predicted": {"allocated_bytes": 20 * GIB, "context_bytes": GIB, "required_bytes": required},
    }  # fmt: skip


def test_a_run_that_ran_out_on_a_smaller_card_than_meant_contradicts_nothing() -> None:
    assert judged(row("out_of_memory", context=GIB))["judgement"] == "contradiction"
    assert judged(row("out_of_memory", context=GIB // 2))["judgement"] == "either"
    assert judged(row("out_of_memory", context=None))["capacity_bytes"] == 23 * GIB


def test_contradictions_come_first_in_the_table() -> None:
    lines = table([row("ok", context=GIB), row("out_of_memory", context=GIB)]).splitlines()
    assert [line.split()[4] for line in lines[1:]] == ["contradiction", "right"]
