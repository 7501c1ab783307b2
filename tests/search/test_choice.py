"""The staircase of the choice, on setups made up of any needs and speeds."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from planner.search.choice import WORTH_SHARDING, Step, top_of
from planner.training import TrainingSetup

HELD = {how: TrainingSetup(model="7B", gradient_checkpointing=how) for how in (False, True, 2)}
# Few different figures, so that ties are common.
figures = st.tuples(st.integers(1, 30), st.integers(80, 130), st.integers(0, 3), st.sampled_from([False, True, 2]))
several = st.lists(figures, min_size=1, max_size=25)


def step(figures: tuple[int, int, int, Any]) -> Step:
    need, rate, intrusion, how = figures
    return Step(need, -float(rate), intrusion, HELD[how])


@given(made=several, limits=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_a_higher_limit_is_never_slower(made: list[Any], limits: tuple[int, int]) -> None:
    steps = [step(each) for each in made]
    less, more = ([each for each in steps if each.need_bytes <= limit] for limit in sorted(limits))
    if less:
        assert top_of(more).rate >= top_of(less).rate


@given(made=several)
def test_what_is_taken_is_nearly_the_fastest_and_of_its_own_kind_the_fastest(made: list[Any]) -> None:
    steps = [step(each) for each in made]
    top = top_of(steps)
    assert top.rate >= WORTH_SHARDING * max(each.rate for each in steps)
    kind = [each for each in steps if each[2:] == top[2:]]
    assert top.rate == max(each.rate for each in kind)


@given(made=several)
def test_equal_speed_is_had_with_the_least_sharding_and_memory_of_its_kind(made: list[Any]) -> None:
    steps = [step(each) for each in made]
    top = top_of(steps)
    for each in steps:
        if each.setup is top.setup and each.intrusion == top.intrusion and each.rate == top.rate:
            assert each.need_bytes >= top.need_bytes
        if each.intrusion < top.intrusion and each.need_bytes >= top.need_bytes:
            assert each.rate < top.rate


@given(made=several, index=st.integers(0, 24), more=st.integers(0, 5), slower=st.integers(0, 5))
def test_a_setup_that_another_beats_changes_nothing(made: list[Any], index: int, more: int, slower: int) -> None:
    """Which is why setups without the free kernels need not be looked at."""
    need, rate, intrusion, how = made[index % len(made)]
    beaten = step((need + more, rate - slower, intrusion, how))
    before, after = top_of(map(step, made)), top_of([*map(step, made), beaten])
    assert (after.rate, after.intrusion) == (before.rate, before.intrusion)
