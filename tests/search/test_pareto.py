"""The front of memory, speed and class; what more memory may and may not do; what a thousand GPUs cost to plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.hardware.machine import Machine
from planner.hardware.parse import parse_machine
from planner.memory.estimate import price
from planner.memory.result import Price
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import FrontPoint, Plan, Request
from planner.plan.serialize import plan_to_dict
from planner.search.choice import WORTH_SHARDING
from planner.search.pareto import CLASSES
from planner.units import GIB

VERDICTS = ("does_not_fit", "uncertain", "fits")
few = settings(max_examples=12)
gib = st.integers(6, 140)
jobs = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["Qwen2.5-7B", "Qwen2.5-0.5B", "Mixtral-8x7B", "Llama-3.1-70B"]),
        "seq_len": st.sampled_from([512, 2048, 8192]),
        "global_batch": st.sampled_from([8, 64]),
        "objective": st.sampled_from(["quality", "speed"]),
    }
)
layouts = st.sampled_from(["1xRTX3090", "3xRTX3090", "8xA100-80GB", "2x8xH100-80GB"])


def sized(gpus: str, size_gib: int, ram: str | None = None) -> Machine:
    """The cards of ``gpus`` with another capacity: speed and links as they are."""
    machine = parse_machine(gpus, ram)
    return replace(machine, gpus=tuple(replace(gpu, capacity_bytes=size_gib * GIB) for gpu in machine.gpus))


def plan(machine: Machine, **job: Any) -> Plan:
    return make_plan(Request(**job), resolve(job["model"]), machine)


def beats(one: FrontPoint, other: FrontPoint) -> bool:
    no_worse = CLASSES.index(one.method_class) <= CLASSES.index(other.method_class)
    return no_worse and one.required_bytes <= other.required_bytes and one.tokens_per_s >= other.tokens_per_s


@few
@given(job=jobs, gpus=layouts, size=gib)
def test_no_point_of_the_front_beats_another_and_each_fits(job: dict[str, Any], gpus: str, size: int) -> None:
    answer = plan(sized(gpus, size), **job)
    for one in answer.pareto:
        assert one.required_bytes <= size * GIB
        assert not any(beats(other, one) for other in answer.pareto if other is not one)


@few
@given(job=jobs, gpus=layouts, size=gib)
def test_the_choice_is_on_the_front_or_beaten_within_what_the_speed_model_errs(
    job: dict[str, Any], gpus: str, size: int
) -> None:
    answer = plan(sized(gpus, size), **job)
    if answer.verdict != "fits" or answer.chosen is None or answer.chosen.speed is None:
        return
    of_class = [each for each in answer.pareto if each.method_class == answer.chosen.method_class]
    fastest = max(each.tokens_per_s for each in of_class)
    assert answer.chosen.speed.tokens_per_s >= WORTH_SHARDING * fastest


@few
@given(job=jobs, gpus=layouts, sizes=st.tuples(gib, gib))
def test_more_memory_never_gives_a_worse_verdict_or_class_or_a_slower_plan(
    job: dict[str, Any], gpus: str, sizes: tuple[int, int]
) -> None:
    """Exactly: no tolerance stands between two predicted speeds of the same class."""
    less, more = (plan(sized(gpus, size), **job) for size in sorted(sizes))
    assert VERDICTS.index(more.verdict) >= VERDICTS.index(less.verdict)
    if less.verdict != "fits" or less.chosen is None or more.chosen is None:
        return
    places = [CLASSES.index(each.chosen.method_class) for each in (less, more) if each.chosen]
    if job["objective"] == "quality":
        assert places[1] <= places[0]
    if less.chosen.speed and more.chosen.speed and (places[0] == places[1] or job["objective"] == "speed"):
        assert more.chosen.speed.tokens_per_s >= less.chosen.speed.tokens_per_s


@few
@given(job=jobs, gpus=layouts, sizes=st.tuples(gib, gib))
def test_the_front_only_grows_with_memory(job: dict[str, Any], gpus: str, sizes: tuple[int, int]) -> None:
    """Exactly, without a tolerance: whatever fitted fits still, or is beaten."""
    less, more = (plan(sized(gpus, size), **job) for size in sorted(sizes))
    for point in less.pareto:
        assert any(beats(other, point) for other in more.pareto)


@few
@given(job=jobs, gpus=layouts, size=gib, rams=st.tuples(st.integers(4, 2000), st.integers(4, 2000)))
def test_more_host_memory_never_gives_a_worse_verdict(
    job: dict[str, Any], gpus: str, size: int, rams: tuple[int, int]
) -> None:
    less, more = (plan(sized(gpus, size, f"{ram}GB"), **job) for ram in sorted(rams))
    assert VERDICTS.index(more.verdict) >= VERDICTS.index(less.verdict)


def test_the_front_in_json_names_what_tells_its_points_apart() -> None:
    answer = plan(parse_machine("3x20GB"), model="7B")
    told = plan_to_dict(answer)["pareto"]
    assert len(told) == len(answer.pareto) > 3
    assert {each["class"] for each in told} == {"lora", "qlora"}
    assert len({tuple(each.values()) for each in told}) == len(told)


@pytest.mark.parametrize("gpus", ["8xH100-80GB", "16x8xH100-80GB", "128x8xH100-80GB"])
def test_planning_costs_as_many_prices_for_a_thousand_gpus_as_for_eight(gpus: str) -> None:
    priced = []

    def counted(setup: Any, spec: Any, machine: Machine, *, coverage: float = 0.99) -> Price:
        priced.append(setup)
        return price(setup, spec, machine, coverage=coverage)

    request = Request(model="70B", gpus=gpus, global_batch=4096)
    answer = make_plan(request, resolve("70B"), parse_machine(gpus, "2TB"), price=counted)
    assert answer.verdict == "fits"
    assert len(priced) < 400
