"""Bounds from residuals: never narrower than they support, wider where they contradict, published without any."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.calibrate.fit import Residuals, fit, quantile

from .observed import observed

COVERAGES = st.sampled_from([0.9, 0.95, 0.99])
OFFS = st.floats(-0.3, 0.3)
LISTS = st.lists(OFFS, max_size=120)
PUBLISHED = st.floats(0.001, 0.2)


def residuals(values: list[float], models: int | None = None) -> Residuals:
    told = tuple(values)
    return Residuals(
        highs=told, lows=told, middles=told, runs=len(told), models=len(told) if models is None else models
    )


@given(PUBLISHED, COVERAGES)
def test_without_runs_the_bound_is_the_published_one(published: float, coverage: float) -> None:
    assert residuals([]).above(published, coverage) == residuals([]).below(published, coverage) == published


@given(LISTS, PUBLISHED, COVERAGES)
def test_a_bound_is_never_narrower_than_what_the_runs_support(
    values: list[float], published: float, coverage: float
) -> None:
    seen = residuals(values)
    for bound, side in (
        (seen.above(published, coverage), values),
        (seen.below(published, coverage), [-v for v in values]),
    ):
        assert bound >= quantile(side, coverage)
        # n runs alone speak for n / (n + 1): the rest of the way the published tail is kept
        rest = published * max(0.0, 1 - math.log10(len(values) + 1) / math.log10(1 / (1 - coverage)))
        assert bound >= min(published, rest) - 1e-12


@given(LISTS, PUBLISHED, COVERAGES)
def test_history_widens_only_where_a_run_went_beyond_the_published_bound(
    values: list[float], published: float, coverage: float
) -> None:
    seen = residuals(values)
    if quantile(values, coverage) <= published:
        assert seen.above(published, coverage) <= published
    else:
        assert seen.above(published, coverage) > published


@given(LISTS, PUBLISHED, COVERAGES)
def test_one_more_run_within_what_was_seen_never_widens(values: list[float], published: float, coverage: float) -> None:
    before, after = residuals(values, models=3), residuals([*values, 0.0], models=3)
    assert after.above(published, coverage) <= before.above(published, coverage) + 1e-12
    assert after.below(published, coverage) <= before.below(published, coverage) + 1e-12


@given(LISTS, OFFS, st.floats(0, 0.2), PUBLISHED, COVERAGES)
def test_a_run_that_is_farther_off_never_narrows(
    values: list[float], last: float, more: float, published: float, coverage: float
) -> None:
    near = residuals([*values, last]).above(published, coverage)
    far = residuals([*values, max(last, 0) + abs(last) + more]).above(published, coverage)
    assert far >= near - 1e-12


def exponential(draw: random.Random) -> float:
    return draw.expovariate(math.log(100))  # its 0.99 quantile is 1


def half(draw: random.Random) -> float:
    return exponential(draw) / 2


def signed(draw: random.Random) -> float:
    return draw.choice((-1, 1)) * exponential(draw)


def normal(draw: random.Random) -> float:
    return draw.gauss(0, 1 / 2.326)


@pytest.mark.parametrize("law", [exponential, half, signed, normal])
@pytest.mark.parametrize("runs", [1, 3, 9, 30, 99])
def test_coverage_where_the_published_bound_is_right(law: Callable[[random.Random], float], runs: int) -> None:
    """4,000 machines each: the next run stays within the bound as often as promised (two standard errors)."""
    draw = random.Random(runs)
    machines, within = 4000, 0
    for _ in range(machines):
        seen = residuals([law(draw) for _ in range(runs)], models=max(1, runs // 3))
        within += law(draw) <= seen.above(1.0, 0.99)
    assert within / machines >= 0.99 - 2 * math.sqrt(0.99 * 0.01 / machines)


def test_coverage_grows_where_the_published_bound_is_wrong() -> None:
    """Runs here that are off by twice what is published: ten of them bring the bound to where it belongs."""
    draw = random.Random(7)
    within = {0: 0, 10: 0, 50: 0}
    for runs in within:
        for _ in range(4000):
            seen = residuals([2 * exponential(draw) for _ in range(runs)], models=max(1, runs // 3))
            within[runs] += 2 * exponential(draw) <= seen.above(1.0, 0.99)
    assert within[0] < within[10] < within[50]
    assert within[10] >= 0.96 * 4000
    assert within[50] >= 0.99 * 4000


def test_runs_of_one_setup_count_as_one() -> None:
    once = fit_one([observed(1, 0.001)])
    often = fit_one([replace(observed(1, 0.001), run_id=f"again-{n}") for n in range(40)])
    assert often.runs == 40
    assert often.setups == once.setups == 1
    assert often.meters["allocated_bytes"].above(0.05, 0.99) == once.meters["allocated_bytes"].above(0.05, 0.99)


def fit_one(ones: list) -> object:
    found = fit(ones, machine_id=ones[0].machine.id, engine=ones[0].engine, release=ones[0].predicted.release)
    (only,) = found.classes.values()
    return only


def test_only_runs_of_this_machine_engine_and_release_count() -> None:
    mine = observed(1, 0.0)
    others = [
        observed(2, 0.3, gpus="1xA100-80GB"),
        replace(observed(3, 0.3), engine="trl"),
        replace(observed(4, 0.3), predicted=replace(mine.predicted, release="0.0.1")),
    ]
    found = fit([mine, *others], machine_id=mine.machine.id, engine=mine.engine, release=mine.predicted.release)
    assert [each.runs for each in found.classes.values()] == [1]
    assert found.of_other_releases == 1


def test_each_trust_class_speaks_for_itself() -> None:
    ones = [observed(1, 0.02), observed(2, 0.0, method="dora")]
    found = fit(ones, machine_id=ones[0].machine.id, engine="llamafactory", release=ones[0].predicted.release)
    assert set(found.classes) == {"traced", "rare"}


def test_what_did_not_finish_counts_only_beyond_the_prediction() -> None:
    low, high = observed(1, -0.4, outcome="stopped"), observed(2, 0.04, outcome="failed")
    assert fit_one([low, observed(3, 0.0)]).meters["allocated_bytes"].runs == 1
    assert fit_one([high]).meters["allocated_bytes"].highs == pytest.approx((0.04,))


def test_a_run_that_ran_out_where_it_was_to_fit_is_a_shortfall() -> None:
    one = observed(1, 0.0, outcome="out_of_memory", meters=())
    said = one.predicted
    assert said.capacity_bytes and said.required_bytes < said.capacity_bytes
    assert fit_one([one]).shortfall == pytest.approx(said.capacity_bytes / said.required_bytes - 1)
    no_wonder = replace(one, predicted=replace(said, capacity_bytes=said.required_bytes - 1))
    assert fit_one([no_wonder]).shortfall == 0


def test_the_cache_of_a_nearly_full_card_says_nothing() -> None:
    roomy = observed(1, 0.0, meters=("reserved_bytes", "device_bytes"))
    full = replace(roomy, predicted=replace(roomy.predicted, capacity_bytes=roomy.measured.device_bytes + 1))
    assert set(fit_one([roomy]).meters) == {"reserved_bytes", "device_bytes"}
    assert not fit_one([full]).meters


def test_an_offset_needs_five_setups_on_one_side() -> None:
    assert residuals([0.031] * 4).offset() is None
    assert residuals([0.031] * 5).offset() == 0.031
    assert residuals([-0.02] * 5).offset() == -0.02
    assert residuals([0.031] * 9 + [-0.001]).offset() is None
    assert residuals([0.0002] * 9).offset() is None
