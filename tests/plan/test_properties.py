"""What holds for every plan of the real models: nothing forbidden, nothing overfull, nothing left to chance."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.hardware.parse import parse_machine
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request
from planner.search.constraints import violations
from planner.search.rungs import load_ladder

RUNGS = {rung.id: rung for rung in load_ladder()}
few = settings(max_examples=20)
jobs = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["Qwen2.5-7B", "Qwen2.5-0.5B", "Mixtral-8x7B", "gemma-2-9b", "Llama-3.1-70B"]),
        "gpus": st.sampled_from(["3x20GB", "1x24GB", "8xA100-80GB", "1xT4", "2xRTX3090,1xRTX4090", "2x8xH100-80GB"]),
        "ram": st.sampled_from([None, "12GB", "512GB"]),
        "stage": st.sampled_from(["sft", "pt", "dpo", "rm", "kto", "ppo"]),
        "seq_len": st.sampled_from([512, 2048, 4096]),
        "global_batch": st.sampled_from([1, 64, 100]),
        "objective": st.sampled_from(["quality", "speed", "memory"]),
    }
)


def plan(job: dict[str, Any], **fields: Any) -> Plan:
    request = Request(**{**job, **fields})
    return make_plan(request, resolve(request.model), parse_machine(job["gpus"], job["ram"]))


@few
@given(job=jobs)
def test_what_is_chosen_is_allowed_and_fits(job: dict[str, Any]) -> None:
    answer = plan(job)
    assert (answer.chosen is None) == (answer.verdict == "does_not_fit")
    assume(answer.chosen is not None)
    assert answer.chosen is not None
    met = violations(answer.chosen.setup, answer.model, answer.machine)
    assert not [each for each in met if each.effect in ("forbid", "unproven", "ignored")]
    assert answer.chosen in answer.configurations
    assert answer.chosen.estimate.verdict == answer.verdict
    for row in answer.configurations:
        assert row.estimate.breakdown.total == row.estimate.allocated_bytes
        assert answer.verdict == "uncertain" or row.estimate.verdict == "fits"


@few
@given(job=jobs)
def test_every_rung_is_told_and_the_applied_ones_chain(job: dict[str, Any]) -> None:
    answer = plan(job)
    assert [each.id for each in answer.ladder] == list(RUNGS)
    applied = [each for each in answer.ladder if each.applied]
    for before, after in pairwise(applied):
        assert before.after_bytes == after.before_bytes
    shown = answer.chosen or answer.nearest_miss
    assert shown is not None
    assert applied[-1].after_bytes == shown.estimate.required_bytes


@few
@given(job=jobs, forbidden=st.sampled_from(sorted(RUNGS)))
def test_a_forbidden_rung_never_shows_up(job: dict[str, Any], forbidden: str) -> None:
    answer = plan(job, forbid=frozenset({forbidden}))
    rows = (*answer.configurations, *answer.alternatives)
    assert not any(RUNGS[forbidden].in_setup(row.setup) for row in rows)


@few
@given(job=jobs)
def test_nothing_fits_always_says_what_would(job: dict[str, Any]) -> None:
    answer = plan({**job, "model": "Llama-3.1-70B", "gpus": "1x24GB", "ram": None})
    assert answer.verdict == "does_not_fit"
    assert answer.nearest_miss is not None
    assert answer.remedies
    assert answer.reasons


def test_where_neither_more_nor_larger_cards_do_both_are_named() -> None:
    """PPO of 70B parameters holds two 16-bit models: one card never does, and 64 of 24 GB have no room beside them."""
    job = {"model": "Llama-3.1-70B", "gpus": "1x24GB", "ram": None, "stage": "ppo", "seq_len": 4096}
    assert plan(job).remedies == ("8 x 80 GB would do, with LoRA under ZeRO-3",)
