"""LoRA ranks to choose from: each a class of its own, the largest first."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from planner.errors import InputError
from planner.hardware.parse import parse_machine
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request
from planner.plan.serialize import plan_to_dict

RANKS = (8, 64, 512)


def plan(gpus: str = "1x24GB", **fields: Any) -> Plan:
    request = Request(**{"model": "7B", "gpus": gpus, "method": "lora", "lora_ranks": RANKS, **fields})
    return make_plan(request, resolve("7B"), parse_machine(gpus))


def test_quality_takes_the_largest_rank_that_fits() -> None:
    answer = plan()
    assert answer.chosen is not None
    assert (answer.chosen.setup.method, answer.chosen.setup.lora_rank) == ("lora", 64)
    assert answer.reasons[0].startswith("LoRA of rank 64 is the least intrusive method that fits")
    assert answer.reasons[1].startswith("LoRA of rank 512 does not fit")
    more = plan("1xA100-80GB").chosen
    assert more is not None and more.setup.lora_rank == 512
    assert {row.setup.lora_rank for row in answer.configurations} == {64}


def test_a_lower_rank_comes_before_a_quantized_base() -> None:
    answer = plan("1x20GB", method=None, lora_ranks=(8, 512))
    assert answer.chosen is not None
    assert (answer.chosen.setup.method, answer.chosen.setup.lora_rank) == ("lora", 8)


def test_speed_and_memory_weigh_the_ranks_too() -> None:
    fast, small, one = plan(objective="speed"), plan(objective="memory"), plan(lora_ranks=(8,))
    for answer in (fast, small):
        assert answer.chosen is not None and answer.chosen.setup.lora_rank == 8
    assert fast.chosen is not None and one.chosen is not None and fast.chosen.setup == one.chosen.setup


def test_the_ladder_ends_at_the_chosen_rank() -> None:
    answer = plan(method=None)
    applied = [each for each in answer.ladder if each.applied]
    assert all(before.after_bytes == after.before_bytes for before, after in pairwise(applied))
    assert answer.chosen is not None and applied[-1].after_bytes == answer.chosen.estimate.required_bytes


def test_what_trains_no_adapters_knows_no_ranks() -> None:
    answer = plan("8xA100-80GB", method=None)
    assert answer.chosen is not None and answer.chosen.method_class == "full"


def test_the_request_is_read_back() -> None:
    answer = plan()
    assert plan_to_dict(answer)["request"]["lora_ranks"] == [512, 64, 8]
    assert Request(model="7B", lora_ranks="8, 64,8").lora_ranks == (64, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lora_ranks": "8,many"}, "lora_ranks 'many' is not valid: it must be a whole number, 1 or more"),
        ({"lora_ranks": (0,)}, "lora_ranks 0 is not valid"),
        ({"lora_ranks": 8}, "name up to 16 ranks, such as 8,16,64"),
        ({"lora_ranks": tuple(range(1, 18))}, "name up to 16 ranks"),
        ({"lora_ranks": (8,), "pinned": {"lora_rank": 4}}, "lora_rank and lora_ranks are both given"),
    ],
)
def test_wrong_ranks_are_one_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as problem:
        Request(model="7B", **fields)
    assert said in problem.value.sentence
