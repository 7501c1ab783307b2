"""The climb on a fake pricer: which class wins, what every rung says, and what holds whatever the machine."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request
from planner.search.rungs import load_ladder
from tests.search.world import SPEC, fake_estimate, fake_price, machine

LADDER = load_ladder()
IDS = [rung.id for rung in LADDER]
BY_ID = {rung.id: rung for rung in LADDER}


def plan(gpus: int = 3, gib: float = 20, *, ram_gib: float | None = None, **fields: Any) -> Plan:
    request = Request(**{"model": "7B", **fields})
    return make_plan(request, SPEC, machine(gpus, gib, ram_gib=ram_gib), price=fake_price, estimate=fake_estimate)


def names(*ids: str) -> frozenset[str]:
    return frozenset(ids)


def report(answer: Plan, rung_id: str) -> Any:
    return next(each for each in answer.ladder if each.id == rung_id)


# 7.6e9 parameters: full needs 113 GiB of states on one GPU, LoRA 14, QLoRA 4
CLASSES = [(1, 160, "full"), (8, 24, "full"), (1, 24, "lora"), (3, 20, "lora"), (1, 12, "qlora"), (3, 7, "lora")]


@pytest.mark.parametrize(("gpus", "gib", "expected"), CLASSES)
def test_the_least_intrusive_class_that_fits_wins(gpus: int, gib: float, expected: str) -> None:
    answer = plan(gpus, gib)
    assert answer.verdict == "fits"
    assert answer.chosen is not None
    assert (answer.chosen.method_class, answer.chosen.safe) == (expected, True)


def test_the_chosen_one_is_a_row_of_the_table() -> None:
    answer = plan()
    assert answer.chosen in answer.configurations
    assert answer.chosen is not None
    assert answer.chosen.profile == "recommended"


def test_every_rung_is_told_once_in_order() -> None:
    assert [each.id for each in plan().ladder] == IDS


def test_applied_rungs_chain_to_the_chosen_bytes() -> None:
    answer = plan()
    applied = [each for each in answer.ladder if each.applied]
    for before, after in pairwise(applied):
        assert after.before_bytes == before.after_bytes
    assert answer.chosen is not None
    assert applied[-1].after_bytes == answer.chosen.estimate.required_bytes


def test_what_is_not_applied_says_why() -> None:
    answer = plan()
    assert report(answer, "qlora-nf4").reason == "not needed: LoRA fits"
    assert "on request only: --allow galore" in report(answer, "galore").reason
    assert report(answer, "unsloth").reason.startswith("on request only")
    assert report(answer, "fp16-compute").reason.startswith("does not apply")
    assert all(each.reason for each in answer.ladder)


def test_profiles_stay_within_their_limits() -> None:
    answer = plan()
    capacity = 20 * 2**30
    for row in answer.configurations:
        if row.profile == "conservative":
            assert row.estimate.required_bytes <= 0.8 * capacity
        if row.profile == "recommended":
            assert row.estimate.required_bytes <= capacity
        assert row.safe == (row.profile != "aggressive")
    assert {row.method_class for row in answer.configurations} == {"lora", "qlora"}


def test_alternatives_are_priced_and_never_chosen() -> None:
    answer = plan()
    methods = {row.setup.method for row in answer.alternatives}
    assert {"dora", "freeze", "galore", "apollo"} <= methods
    assert answer.chosen is not None
    assert answer.chosen.method_class != "other"


def test_memory_and_speed_choose_by_their_own_measure() -> None:
    smallest = plan(objective="memory").chosen
    fastest = plan(objective="speed").chosen
    usual = plan().chosen
    assert smallest is not None
    assert fastest is not None
    assert usual is not None
    assert smallest.estimate.required_bytes <= usual.estimate.required_bytes
    assert fastest.speed is not None
    assert usual.speed is not None
    assert fastest.speed.tokens_per_s >= usual.speed.tokens_per_s


def test_unknown_host_memory_keeps_offload_out_unless_asked() -> None:
    assert plan(1, 3).chosen is None
    asked = plan(1, 24, method="full", allow=names("offload-params")).chosen
    assert asked is not None
    assert (asked.setup.offload, asked.setup.parallelism) == ("all", "zero3")


def test_known_host_memory_lets_offload_in_when_nothing_else_fits() -> None:
    answer = plan(1, 3.5, ram_gib=500)
    assert answer.chosen is not None
    assert answer.chosen.setup.offload != "none"
    assert answer.chosen.estimate.host_bytes <= 500 * 2**30


def test_too_little_host_memory_refuses_offload_with_the_figures() -> None:
    answer = plan(3, 20, ram_gib=12)
    full = next(each for each in answer.reasons if each.startswith("full fine-tuning"))
    assert "of host memory a node, and there are 12.0 GiB" in full
    assert answer.chosen is not None
    assert answer.chosen.setup.offload == "none"


def test_nothing_fits_names_the_nearest_and_what_would_do() -> None:
    answer = plan(1, 3)
    assert (answer.verdict, answer.chosen) == ("does_not_fit", None)
    assert answer.nearest_miss is not None
    assert answer.nearest_miss.setup.method == "qlora"
    text = " ".join(answer.remedies)
    assert "of these GPUs would do" in text
    assert "1 x 8 GB would do" in text
    assert "of host memory a node" in text


def test_too_little_host_memory_to_load_says_how_much_would_do() -> None:
    answer = plan(1, 24, ram_gib=0.5)
    assert answer.verdict == "does_not_fit"
    assert "host memory of at least 1.0 GiB a node would do: the GPUs are large enough" in answer.remedies
    assert any("there are 0.5 GiB" in reason for reason in answer.reasons)


def test_lora_on_four_bits_by_flag_is_the_qlora_class() -> None:
    answer = plan(1, 24, pinned={"quantization_bit": 4})
    assert answer.chosen is not None
    assert (answer.chosen.method_class, answer.chosen.setup.method) == ("qlora", "qlora")
    assert len(answer.configurations) == 3
    assert report(answer, "lora").reason == "does not apply: it needs a base in 16 bits"


def test_the_margin_alone_makes_it_uncertain() -> None:
    lean = plan(1, 3).nearest_miss
    assert lean is not None
    tight = (lean.estimate.required_bytes + lean.estimate.allocated_bytes + lean.estimate.context_bytes) / 2
    answer = plan(1, tight / 2**30)
    assert answer.verdict == "uncertain"
    assert answer.chosen is not None
    assert not answer.chosen.safe


def test_shorter_sequences_only_with_consent() -> None:
    assert plan(1, 5.5, seq_len=8192).chosen is None
    answer = plan(1, 5.5, seq_len=8192, allow=names("shorter-sequences"))
    assert answer.chosen is not None
    assert answer.chosen.setup.seq_len < 8192
    assert report(answer, "shorter-sequences").applied
    assert any("with your consent" in reason for reason in answer.reasons)


def test_allowing_an_unusual_method_lets_it_stand_in_its_place() -> None:
    answer = plan(1, 100, allow=names("adamw-8bit"))
    assert answer.chosen is not None
    assert (answer.chosen.setup.method, answer.chosen.setup.optim) == ("full", "adamw_8bit")
    unasked = plan(1, 100).chosen
    assert unasked is not None
    assert unasked.method_class == "lora"


PINS = [
    {"gradient_checkpointing": True},
    {"parallelism": "zero2"},
    {"micro_batch_size": 3},
    {"liger_kernel": False},
    {"lora_rank": 64},
    {"attention": "flash_attention_2"},
    {"compute_dtype": "fp16"},
    {"optim": "adamw_8bit"},
]


@pytest.mark.parametrize("pinned", PINS, ids=[next(iter(pin)) for pin in PINS])
def test_pinned_fields_never_change(pinned: dict[str, Any]) -> None:
    answer = plan(3, 48, pinned=pinned)
    for row in (*answer.configurations, *answer.alternatives):
        for name, value in pinned.items():
            assert getattr(row.setup, name) == value


BAD = [
    ({"forbid": names("ligr")}, "did you mean liger"),
    ({"allow": names("galor")}, "did you mean galore"),
    ({"require": names("lora"), "forbid": names("lora")}, "both --require and --forbid"),
    ({"require": names("zero2", "zero3")}, "exclude each other"),
    ({"require": names("lora"), "method": "full"}, "against"),
    ({"require": names("zero3"), "pinned": {"parallelism": "ddp"}}, "against --parallelism ddp"),
    ({"require": names("fp16-compute")}, "--require fp16-compute: does not apply"),
    ({"stage": "grpo"}, "rule lf-52-grpo"),
    ({"require": names("galore", "zero2")}, "rule lf-24-galore-deepspeed"),
    ({"require": names("pure-bf16", "zero3")}, "rule lf-22-pure-bf16-zero3"),
    ({"method": "qlora", "pinned": {"quantization_bit": 8, "parallelism": "fsdp"}}, "rule lf-33-8bit-sharded"),
    ({"forbid": names("zero2"), "pinned": {"parallelism": "zero2"}}, "stands against --parallelism zero2"),
    ({"forbid": names("lora"), "method": "lora"}, "stands against --method lora"),
    ({"global_batch": 0}, "global_batch 0 is not valid"),
]


@pytest.mark.parametrize(("fields", "part"), BAD, ids=[part[:20] for _, part in BAD])
def test_impossible_requests_are_one_sentence(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError) as problem:
        plan(**fields)
    assert part in problem.value.sentence


def test_a_length_beyond_the_models_is_planned_for_with_a_warning() -> None:
    """Rotary positions do not end; a learned table does."""
    assert any("33000 is longer than the 32768 positions" in said for said in plan(seq_len=33_000).warnings)


def test_requiring_what_the_engine_would_drop_is_bad_input() -> None:
    bloom = replace(SPEC, model_type="bloom")
    with pytest.raises(InputError, match=r"--require liger: Liger has no kernels for bloom"):
        make_plan(
            Request(model="7B", require=names("liger")), bloom, machine(1), price=fake_price, estimate=fake_estimate
        )
    unasked = make_plan(Request(model="7B"), bloom, machine(1), price=fake_price, estimate=fake_estimate)
    assert not report(unasked, "liger").applied
    assert "no kernels for bloom" in report(unasked, "liger").reason


def test_the_micro_batch_can_be_held_or_driven_down() -> None:
    held = plan(3, 80, forbid=names("micro-batch")).chosen
    least = plan(3, 80, require=names("micro-batch")).chosen
    assert held is not None
    assert least is not None
    assert (held.setup.micro_batch_size, least.setup.micro_batch_size) == (7, 1)


def test_requiring_shorter_sequences_cuts_once() -> None:
    answer = plan(3, 80, require=names("shorter-sequences"))
    assert answer.chosen is not None
    assert answer.chosen.setup.seq_len == 1024
    assert report(answer, "shorter-sequences").applied


def test_an_offload_that_is_required_brings_its_sharding() -> None:
    chosen = plan(1, 80, require=names("offload-optimizer")).chosen
    assert chosen is not None
    assert (chosen.method_class, chosen.setup.parallelism, chosen.setup.offload) == ("full", "zero2", "optimizer")


def test_a_machine_without_gpus_is_bad_input() -> None:
    with pytest.raises(InputError, match="no GPU was found"):
        make_plan(Request(model="7B"), SPEC, replace(machine(1), gpus=()), price=fake_price, estimate=fake_estimate)


def test_a_users_order_is_followed(tmp_path: Path) -> None:
    """With 4 bits before sharding, the walk takes QLoRA on three small cards where LoRA sharded would fit."""
    order = ["micro-batch", "checkpointing", "qlora-nf4", "zero3"]
    path = tmp_path / "mine.toml"
    path.write_text("".join(f'[[rung]]\nid = "{each}"\n' for each in order))
    answer = plan(3, 8, ladder_file=str(path))
    assert answer.chosen is not None
    assert answer.chosen.method_class == "qlora"
    assert [each.id for each in answer.ladder if each.tier > 0] == order


few = settings(max_examples=25)
requests = st.fixed_dictionaries(
    {
        "gpus": st.integers(1, 8),
        "gib": st.sampled_from([4, 6, 8, 12, 16, 24, 40, 80, 160]),
        "global_batch": st.integers(1, 200),
        "seq_len": st.sampled_from([256, 1024, 2048, 8192]),
        "objective": st.sampled_from(["quality", "speed", "memory"]),
        "ram_gib": st.sampled_from([None, 12, 64, 512]),
    }
)


@few
@given(fields=requests)
def test_the_effective_batch_is_the_same_everywhere(fields: dict[str, Any]) -> None:
    answer = plan(**fields)
    rows = [*answer.configurations, *answer.alternatives, *([answer.nearest_miss] if answer.nearest_miss else [])]
    reached = {row.setup.micro_batch_size * row.setup.gradient_accumulation_steps * fields["gpus"] for row in rows}
    assert len(reached) <= 1
    told = [text for text in answer.warnings if "effective batch" in text]
    assert len(told) == (1 if reached and reached != {fields["global_batch"]} else 0) or not reached


@few
@given(fields=requests)
def test_a_plan_that_fits_still_fits_with_more_room(fields: dict[str, Any]) -> None:
    answer = plan(**fields)
    assume(answer.verdict == "fits")
    more = plan(**{**fields, "gib": fields["gib"] * 2})
    assert more.verdict == "fits"
    if fields["objective"] == "quality":
        order = ["full", "lora", "qlora"]
        assert answer.chosen is not None
        assert more.chosen is not None
        offloaded = answer.chosen.setup.offload != "none"
        better = order.index(more.chosen.method_class) <= order.index(answer.chosen.method_class)
        assert better or offloaded


@few
@given(fields=requests)
def test_what_is_chosen_keeps_to_capacity_and_host(fields: dict[str, Any]) -> None:
    answer = plan(**fields)
    assume(answer.verdict == "fits")
    assert answer.chosen is not None
    assert answer.chosen.estimate.required_bytes <= fields["gib"] * 2**30
    if fields["ram_gib"] is not None:
        assert answer.chosen.estimate.host_bytes <= fields["ram_gib"] * 2**30


@few
@given(fields=requests, forbidden=st.sets(st.sampled_from(IDS), max_size=4))
def test_a_forbidden_rung_is_never_in_the_plan(fields: dict[str, Any], forbidden: set[str]) -> None:
    answer = plan(**fields, forbid=frozenset(forbidden))
    rows = [*answer.configurations, *answer.alternatives]
    for rung_id in forbidden:
        rung = BY_ID[rung_id]
        assert not report(answer, rung_id).applied
        assert not any(rung.in_setup(row.setup) for row in rows)


@few
@given(fields=requests, required=st.sampled_from(IDS))
def test_a_required_rung_is_in_the_plan_or_the_request_is_refused(fields: dict[str, Any], required: str) -> None:
    try:
        answer = plan(**fields, require=frozenset({required}))
    except InputError as problem:
        assert required in problem.sentence or "rule" in problem.sentence
        return
    rung = BY_ID[required]
    for row in (*answer.configurations, *([answer.nearest_miss] if answer.nearest_miss else [])):
        assert rung.in_setup(row.setup) or not rung.changes


@few
@given(fields=requests)
def test_the_same_request_gives_the_same_plan(fields: dict[str, Any]) -> None:
    assert plan(**fields) == plan(**fields)


def test_an_offload_that_no_rung_speaks_of_stays_where_the_walk_starts() -> None:
    """offload params is a setting of ZeRO-3 alone: no rung takes it, and FSDP would refuse it."""
    chosen = plan(4, 80, pinned={"offload": "params"}).chosen
    assert chosen is not None
    assert (chosen.setup.parallelism, chosen.setup.offload) == ("zero3", "params")


def test_bits_that_were_asked_for_bring_the_class_that_has_them() -> None:
    chosen = plan(1, 80, pinned={"quantization_bit": 8}).chosen
    assert chosen is not None
    assert (chosen.setup.method, chosen.setup.quantization_bit) == ("qlora", 8)


@pytest.mark.parametrize("pinned", [{"adapter_dtype": "bf16"}, {"additional_target": ("embed_tokens",)}])
def test_what_only_adapters_have_keeps_other_classes_out(pinned: dict[str, Any]) -> None:
    chosen = plan(8, 80, pinned=pinned).chosen
    assert chosen is not None
    assert chosen.setup.method == "lora"
    with pytest.raises(InputError, match=f"{next(iter(pinned))} belongs to an adapter, and method full has none"):
        plan(8, 80, method="full", pinned=pinned)


def test_ddp_of_one_gpu_is_none() -> None:
    chosen = plan(1, 80, pinned={"parallelism": "ddp"}).chosen
    assert chosen is not None
    assert chosen.setup.parallelism == "none"
