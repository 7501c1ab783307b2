"""The space of a request: counted against every combination, and each bound put to setups that were not priced."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from planner.errors import PlannerError
from planner.hardware.parse import parse_machine
from planner.memory.estimate import price
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Request
from planner.plan.serialize import plan_to_dict
from planner.search.census import BOUNDS, census
from planner.search.climb import Outcome, Round, offload_rungs, search
from planner.search.constraints import violations
from planner.search.desk import Desk
from planner.search.rungs import load_ladder
from planner.search.spend import numbers_of_layers
from planner.search.walk import settle
from planner.speed.estimate import predict_speed
from planner.training import TrainingSetup

LARGER = 1.01  # what a free rung may cost: the fused optimizer keeps counters, Liger's loss a gradient of the head
ON_REQUEST = sorted(rung.id for rung in load_ladder() if rung.on_request and rung.id != "shorter-sequences")
WIDE = frozenset(ON_REQUEST) - {"unsloth"}
MACHINES = ("1x12GB", "3x20GB", "1xT4", "2xRTX3090", "8xA100-80GB")
MODELS = ("Qwen2.5-0.5B", "Qwen2.5-3B", "7B", "gemma-2-9b")


def requests() -> Iterator[tuple[Request, str, str | None]]:
    chance = random.Random(7)
    for _ in range(32):
        request = Request(
            model=chance.choice(MODELS),
            stage=chance.choice(["sft", "pt", "dpo"]),
            global_batch=chance.choice([1, 8, 24]),
            seq_len=chance.choice([512, 2048]),
            engine=chance.choice(["llamafactory", "llamafactory", "embedded", "trl"]),
            objective=chance.choice(["quality", "speed", "memory"]),
            allow=frozenset(chance.sample(ON_REQUEST, chance.choice([0, 0, 3]))),
        )
        yield request, chance.choice(MACHINES), chance.choice([None, "64GB", "1TB"])


def every_setup(desk: Desk, outcome: Outcome) -> dict[str, tuple[TrainingSetup, Round]]:
    """Every combination of what the request leaves open that rules allow, by the classes' own rules alone."""
    found: dict[str, tuple[TrainingSetup, Round]] = {}
    terms = outcome.terms
    free = [rung for rung in terms.ladder if rung.tier == 0 and rung.changes and terms.bar(rung) is None]
    for each in outcome.rounds:
        if terms.against(each.space.base):
            continue
        base, own = each.space.base, each.rung.changes if each.rung else {}
        usable = [rung for rung in free if not terms.unmet(rung, base, desk.spec, desk.machine)]
        values = {}
        allowed = {name for rung in usable if rung.on_request and rung.in_setup(base) for name in rung.changes}
        for name in dict.fromkeys(name for rung in free for name in rung.changes if name != "compute_dtype"):
            others = [rung.changes[name] for rung in usable if name in rung.changes]
            open_to = set() if name in {*terms.fixed, *own, *allowed} else {getattr(terms.start, name), *others}
            values[name] = {getattr(base, name)} | open_to
        for held in ways(desk, terms, each):
            dropped = {met.rule_id for met in violations(held, desk.spec, desk.machine) if met.effect == "ignored"}
            for combination in itertools.product(*values.values()):
                for size in terms.batch.micro_sizes:
                    setup = terms.batch.split(held.but(**dict(zip(values, combination, strict=True))), size)
                    met = violations(setup, desk.spec, desk.machine)
                    dropped_more = any(one.effect == "ignored" and one.rule_id not in dropped for one in met)
                    if not dropped_more and desk.refusal(setup) is None:
                        found.setdefault(repr(setup), (setup, each))
    return found


def ways(desk: Desk, terms: Any, each: Round) -> Iterator[TrainingSetup]:
    """Every sharding, offload and number of checkpointed layers of a class."""
    some = numbers_of_layers(desk.spec.layers) if terms.request.engine == "embedded" else ()
    kinds = [str(terms.start.parallelism)]
    kinds += [
        rung.changes["parallelism"]
        for rung in terms.ladder
        if rung.is_sharding and not terms.bar(rung) and desk.machine.world_size > 1
    ]
    held = [each.space.base.but(parallelism=kind) for kind in kinds]
    for rung in offload_rungs(terms):
        if not terms.bar(rung):
            held += [each.space.base.but(parallelism=kind, **rung.changes) for kind in rung.through]
    for setup, how in itertools.product(held, (False, True, *some)):
        yield setup.but(gradient_checkpointing=how)


@pytest.mark.parametrize("part", range(4))
def test_what_is_not_priced_is_excluded_by_a_bound_that_holds(part: int) -> None:
    counted = unpriced = 0
    for request, gpus, ram in itertools.islice(requests(), part, None, 4):
        spec, machine = resolve(request.model), parse_machine(gpus, ram)
        try:
            terms = settle(request, spec, machine)
            desk = Desk(spec, machine, price, predict_speed)
            outcome = search(desk, terms)
        except PlannerError:
            continue
        space = every_setup(desk, outcome)
        found = census(desk, outcome)
        assert found.valid == len(space), (request, gpus)
        assert found.priced + sum(one.count for one in found.excluded) == found.valid
        looked = {repr(setup) for setup in desk.looked_at()}
        left = [pair for name, pair in space.items() if name not in looked]
        assert found.priced == len(space) - len(left)
        for setup, each in random.Random(1).sample(left, min(150, len(left))):
            assert any(bounds(desk, outcome, setup, each)), (setup, request, gpus)
        counted, unpriced = counted + found.valid, unpriced + len(left)
    assert counted > 1000 and unpriced > 900


def bounds(desk: Desk, outcome: Outcome, setup: TrainingSetup, each: Round) -> Iterator[bool]:
    """Whether each of the bounds holds of a setup, found out by pricing it."""
    knobs = {name for rung in outcome.terms.ladder if rung.tier == 0 for name in rung.changes}
    twin = setup.but(**{name: getattr(each.space.base, name) for name in knobs})
    if twin != setup:
        need, other = desk.need(twin) or 0, desk.need(setup) or 0
        fast, slow = desk.speed(twin), desk.speed(setup)
        yield need <= LARGER * other and (fast is None or slow is None or fast.tokens_per_s >= slow.tokens_per_s)
    yield not desk.fits(setup, desk.capacity_bytes)
    unasked = outcome.used_offload is None or not outcome.used_offload.in_setup(setup)
    yield setup.offload != "none" and unasked
    later = outcome.round is not None and outcome.rounds.index(each) > outcome.rounds.index(outcome.round)
    yield later and outcome.terms.request.objective == "quality"


def test_a_wide_request_spans_fifty_thousand_setups_and_few_are_priced() -> None:
    request = Request(
        model="7B", gpus="8xA100-80GB", engine="embedded", global_batch=1024, allow=WIDE, lora_ranks=(8, 16, 32, 64)
    )
    answer = make_plan(request, resolve("7B"), parse_machine("8xA100-80GB", "1TB"))
    assert answer.space is not None
    assert answer.space.valid >= 50_000
    assert answer.space.priced <= 4_000
    assert answer.space.priced + sum(each.count for each in answer.space.excluded) == answer.space.valid


def test_the_document_says_what_was_decided_and_how() -> None:
    answer = make_plan(Request(model="7B", gpus="3x20GB"), resolve("7B"), parse_machine("3x20GB", "12GB"))
    told = plan_to_dict(answer)["space"]
    assert told["valid"] == told["priced"] + sum(each["count"] for each in told["excluded"]) > 1000
    assert {each["bound"] for each in told["excluded"]} <= set(BOUNDS)
    assert all(each["count"] and each["because"] == BOUNDS[each["bound"]] for each in told["excluded"])
