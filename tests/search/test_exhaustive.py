"""The search against brute force: every combination of the knobs it may turn, priced one by one.

A request's space is each class with every sharding, checkpointing of none, some or all layers, with and without fused
kernels, either attention and optimizer, and every micro batch that keeps the effective batch. The search leaves most of
it out because something else is never worse; here nothing is left out.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from planner.errors import PlannerError
from planner.hardware.parse import parse_machine
from planner.memory.estimate import price
from planner.model.catalogue import resolve
from planner.plan.plan import Request
from planner.search.choice import WORTH_MEMORY, WORTH_SHARDING
from planner.search.climb import Outcome, search
from planner.search.constraints import violations
from planner.search.desk import Desk
from planner.search.rungs import load_ladder
from planner.search.walk import Terms, settle
from planner.speed.estimate import predict_speed
from planner.speed.work import recomputed
from planner.training import TrainingSetup

REQUESTS = 200
SAME = 1 - 1e-9
SMALLEST = 1.001  # free rungs are always taken, and the fused optimizer costs kilobytes
CLASSES = ({"method": "full"}, {"method": "lora"}, {"method": "qlora", "quantization_bit": 4})
SHARDINGS = [rung.changes["parallelism"] for rung in load_ladder() if rung.is_sharding and not rung.on_request]
MODELS = ("Qwen2.5-0.5B", "Llama-3.2-1B", "Qwen2.5-3B", "Qwen2.5-7B", "gemma-2-9b", "Qwen2.5-14B", "Mixtral-8x7B")
MACHINES = (
    "1x12GB", "3x20GB", "1xRTX4090", "2xRTX3090", "1xT4", "2xV100-16GB", "4xA100-40GB", "8xA100-80GB", "1xH100-80GB",
    "8xRTX4090", "2x8xH100-80GB",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One setup that fits and that no rule refuses."""

    setup: TrainingSetup
    place: int  # of its class
    sharding: int  # 0 where the walk starts, then as the ladder orders them
    need: int
    rate: float


def requests() -> Iterator[tuple[Request, str]]:
    chance = random.Random(20261121)
    for _ in range(REQUESTS):
        request = Request(
            model=chance.choice(MODELS),
            stage=chance.choice(["sft", "sft", "pt", "dpo"]),
            seq_len=chance.choice([512, 1024, 2048, 4096]),
            global_batch=chance.choice([1, 4, 8, 24]),
            objective=chance.choice(["quality", "quality", "speed", "memory"]),
            engine=chance.choice(["llamafactory", "llamafactory", "llamafactory", "embedded"]),
        )
        yield request, chance.choice(MACHINES)


def space(desk: Desk, terms: Terms) -> Iterator[TrainingSetup]:
    """Every combination, whatever becomes of it."""
    start = str(terms.start.parallelism)
    dtype = "bf16" if desk.machine.smallest.kind is None or "bf16" in desk.machine.smallest.kind.dtypes else "fp16"
    shardings = [start] + [name for name in SHARDINGS if desk.machine.world_size > 1]
    for fields, sharding, checkpointing, liger, attention, optim in itertools.product(
        CLASSES,
        shardings,
        held_how(desk, terms),
        (False, True),
        ("eager", "sdpa"),
        ("adamw_torch", "adamw_torch_fused"),
    ):
        setup = terms.start.but(
            **fields, parallelism=sharding, gradient_checkpointing=checkpointing, liger_kernel=liger,
            attention=attention, optim=optim, compute_dtype=dtype,
        )  # fmt: skip
        for micro in terms.batch.micro_sizes:
            yield terms.batch.split(setup, micro)


def held_how(desk: Desk, terms: Terms) -> tuple[bool | int, ...]:
    """Which layers are checkpointed: none, all, or every n-th where the engine can."""
    some = range(2, desk.spec.layers + 1) if terms.request.engine == "embedded" else ()
    return (False, True, *some)


def brute_force(desk: Desk, terms: Terms) -> list[Point]:
    found = []
    order = [str(terms.start.parallelism), *SHARDINGS]
    for setup in space(desk, terms):
        if desk.refusal(setup) is not None or not desk.fits(setup, desk.capacity_bytes) or dropped(setup, desk):
            continue
        speed = desk.speed(setup)
        place = next(number for number, fields in enumerate(CLASSES) if fields["method"] == setup.method)
        need = desk.need(setup) or 0
        found.append(Point(setup, place, order.index(str(setup.parallelism)), need, speed.tokens_per_s if speed else 0))
    return found


def dropped(setup: TrainingSetup, desk: Desk) -> bool:
    """True where the engine would run something else: sdpa under Gemma 2's soft-capped scores, say."""
    return any(met.effect == "ignored" for met in violations(setup, desk.spec, desk.machine))


def check(outcome: Outcome, points: list[Point], desk: Desk, objective: str) -> None:
    """The stated rules of choice, read off the whole space."""
    assert outcome.chosen is not None
    need, speed = desk.need(outcome.chosen), desk.speed(outcome.chosen)
    assert desk.fits(outcome.chosen, desk.capacity_bytes) and desk.refusal(outcome.chosen) is None
    assert need is not None
    if objective == "memory":
        assert need <= SMALLEST * min(point.need for point in points)
        return
    if objective == "quality":
        best_class = min(point.place for point in points)
        points = [point for point in points if point.place == best_class]
        assert outcome.chosen.method == CLASSES[best_class]["method"]
    if speed is None:
        return
    if objective == "speed":
        ends = [end_of(place, points) for place in {point.place for point in points}]
        assert speed.tokens_per_s >= SAME * max(point.rate for point in ends)
        return
    end = end_of(best_class, points)
    assert outcome.chosen.parallelism == end.setup.parallelism
    assert recomputed(outcome.chosen, desk.spec.layers) == recomputed(end.setup, desk.spec.layers)
    assert speed.tokens_per_s == pytest.approx(end.rate, rel=1e-3)


def end_of(place: int, points: list[Point]) -> Point:
    """Where the staircase of a class ends: each point in the order of memory, against the one that stands."""
    climbed = sorted((point for point in points if point.place == place), key=lambda each: (each.need, -each.rate))
    standing = climbed[0]
    for point in climbed[1:]:
        further = point.sharding - standing.sharding
        alike = point.setup.gradient_checkpointing == standing.setup.gradient_checkpointing
        worth = WORTH_SHARDING if further > 0 else 1.0 if further < 0 or alike else WORTH_MEMORY
        if worth * point.rate > standing.rate or (further < 0 and point.rate == standing.rate):
            standing = point
    return standing


@pytest.mark.parametrize("part", range(4))
def test_the_search_finds_what_brute_force_finds(part: int) -> None:
    chosen = priced = 0
    for request, gpus in itertools.islice(requests(), part, None, 4):
        spec, machine = resolve(request.model), parse_machine(gpus)
        terms = settle(request, spec, machine)
        desk, own = Desk(spec, machine, price, predict_speed), Desk(spec, machine, price, predict_speed)
        try:
            outcome = search(own, terms)
        except PlannerError:
            continue
        points = brute_force(desk, terms)
        priced += sum(1 for _ in space(desk, terms))
        assert (outcome.verdict == "fits") == bool(points), (request, gpus)
        if points:
            check(outcome, points, desk, request.objective)
            chosen += 1
    assert chosen >= 20 and priced >= 10_000
