"""The effective batch: reached exactly where it can be, else the nearest, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.search.batch import plan_batch
from planner.training import TrainingSetup


def test_64_on_three_gpus_becomes_63_and_says_so() -> None:
    batch = plan_batch(64, 3, {})
    assert (batch.per_rank, batch.effective, batch.micro_sizes) == (21, 63, (1, 3, 7, 21))
    assert batch.warning == (
        "an effective batch of 64 does not divide by 3 GPUs: 63 is the nearest that does, and it holds on every rung"
    )


@pytest.mark.parametrize(
    ("asked", "ranks", "pinned", "effective", "micro"),
    [
        (64, 1, {}, 64, (1, 2, 4, 8, 16, 32, 64)),
        (384, 3, {}, 384, (1, 2, 4, 8, 16, 32, 64, 128)),
        (1, 8, {}, 8, (1,)),
        (64, 3, {"micro_batch_size": 4}, 60, (4,)),
        (64, 2, {"micro_batch_size": 8, "gradient_accumulation_steps": 4}, 64, (8,)),
        (64, 2, {"micro_batch_size": 3, "gradient_accumulation_steps": 5}, 30, (3,)),
        (64, 2, {"gradient_accumulation_steps": 8}, 64, (4,)),
    ],
)
def test_examples(asked: int, ranks: int, pinned: dict[str, int], effective: int, micro: tuple[int, ...]) -> None:
    batch = plan_batch(asked, ranks, pinned)
    assert (batch.effective, batch.micro_sizes) == (effective, micro)
    assert (batch.warning is None) == (effective == asked)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="--global-batch 0"):
        plan_batch(0, 1, {})


@given(asked=st.integers(1, 2000), ranks=st.integers(1, 64))
def test_nothing_reachable_is_nearer(asked: int, ranks: int) -> None:
    batch = plan_batch(asked, ranks, {})
    assert batch.effective % ranks == 0
    assert abs(batch.effective - asked) <= min(abs(ranks * count - asked) for count in range(1, asked + 2))


@given(asked=st.integers(1, 500), ranks=st.integers(1, 16))
def test_every_split_keeps_the_effective_batch(asked: int, ranks: int) -> None:
    batch = plan_batch(asked, ranks, {})
    for micro in batch.micro_sizes:
        setup = batch.split(TrainingSetup(model="7B"), micro)
        assert setup.micro_batch_size * setup.gradient_accumulation_steps * ranks == batch.effective


def test_a_large_batch_is_divided_at_once_and_an_absurd_one_is_refused() -> None:
    assert plan_batch(999_983, 1, {}).micro_sizes == (1, 999_983)
    assert len(plan_batch(720_720, 1, {}).micro_sizes) == 240
    for asked in (10**9, 10**400):
        with pytest.raises(InputError, match="more than anyone trains with: give 1000000 or fewer"):
            plan_batch(asked, 1, {})
