"""Models beside the trained one: each by its own size, shared out where weights are sharded."""

from __future__ import annotations

from typing import Any

import pytest

from planner.api import estimate
from planner.memory.models import extra_model_bytes
from planner.memory.regime import resolve_regime
from planner.model.catalogue import resolve
from planner.model.count import count
from planner.training import TrainingSetup

MODEL = "Qwen/Qwen2.5-1.5B"
OWN, SMALL, LARGE = (2 * count(resolve(f"Qwen/Qwen2.5-{size}")).total for size in ("1.5B", "0.5B", "7B"))


def beside(**fields: Any) -> int:
    setup, spec = TrainingSetup(model=MODEL, gpus="1xA100-80GB", **fields), resolve(MODEL)
    return extra_model_bytes(setup, spec, resolve_regime(setup, spec), 4)


@pytest.mark.parametrize(
    ("fields", "expected_bytes"),
    [
        ({"stage": "sft"}, 0),
        ({"stage": "dpo"}, 0),
        ({"stage": "dpo", "method": "oft"}, OWN),
        ({"stage": "dpo", "method": "full"}, OWN),
        ({"stage": "orpo", "method": "full"}, 0),
        ({"stage": "dpo", "method": "full", "pref_loss": "simpo"}, 0),
        ({"stage": "dpo", "ref_model": "Qwen/Qwen2.5-0.5B"}, SMALL),
        ({"stage": "kto", "method": "full", "ref_model": "Qwen/Qwen2.5-7B"}, LARGE),
        ({"stage": "ppo"}, OWN),
        ({"stage": "ppo", "reward_model": "Qwen/Qwen2.5-7B"}, LARGE),
        ({"stage": "ppo", "method": "full", "reward_model": "Qwen/Qwen2.5-7B"}, OWN + LARGE),
        ({"stage": "dpo", "method": "full", "parallelism": "zero3"}, -(-OWN // 4)),
    ],
)
def test_each_further_model_counts_with_its_own_size(fields: dict[str, Any], expected_bytes: int) -> None:
    assert beside(**fields) == expected_bytes


def test_a_reward_model_that_no_one_knows_is_assumed_aloud() -> None:
    answer = estimate(TrainingSetup(model=MODEL, stage="ppo", reward_model="somewhere/else", gpus="1xA100-80GB"))
    assert any("reward_model somewhere/else is not known here" in each for each in answer.warnings)
    assert answer.breakdown.weights >= 2 * OWN


def test_dpo_with_a_loss_without_reference_is_that_stage() -> None:
    named = TrainingSetup(model=MODEL, gpus="1xA100-80GB", stage="dpo", pref_loss="orpo")
    asked = TrainingSetup(model=MODEL, gpus="1xA100-80GB", stage="orpo")
    assert named.stage == "orpo"
    assert estimate(named).to_dict() == estimate(asked).to_dict()
