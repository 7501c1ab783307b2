"""Properties that every estimate has, and the mission's printed figures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.hardware.machine import Machine
from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate, price
from planner.memory.regime import resolve_regime
from planner.memory.result import PARTS, Estimate
from planner.memory.timeline import ORDER
from planner.model.catalogue import resolve, specs
from planner.training import TrainingSetup
from planner.units import GIB
from tests.memory.setups import MACHINES, any_setup, tame_setup

MANY = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
SOME = settings(MANY, max_examples=50)
GB = 10**9
Asked = tuple[TrainingSetup, str]
VERDICTS = ("fits", "uncertain", "does_not_fit")


def run(setup: TrainingSetup, gpus: str) -> Estimate:
    """By formula: many setups in little time. Replays have tests of their own, in test_steplog.py and below."""
    return estimate(setup, resolve(setup.model), MACHINES[gpus], replayed=False)


def run_or_skip(setup: TrainingSetup, gpus: str) -> Estimate:
    try:
        return run(setup, gpus)
    except InputError:
        assume(False)
        raise


# -- any setup ------------------------------------------------------------------------------------------------


@given(asked=any_setup())
@settings(MANY, max_examples=400)
def test_every_setup_is_estimated_or_refused_with_a_sentence(asked: Asked) -> None:
    try:
        answer = run(*asked)
    except InputError as refusal:
        assert refusal.sentence
        assert "\n" not in refusal.sentence
        assert len(refusal.sentence) > 20
        return
    check_whole(answer)


@given(asked=tame_setup())
@MANY
def test_common_setups_are_whole(asked: Asked) -> None:
    check_whole(run_or_skip(*asked))


def check_whole(answer: Estimate) -> None:
    """Parts sum, the peak is the largest phase, bounds lie around the points."""
    assert set(answer.phases) <= set(ORDER)
    assert {"load", "forward", "loss", "backward", "optimizer", "save"} <= set(answer.phases)
    for phase, parts in answer.phases.items():
        values = parts.to_dict()
        assert tuple(values) == PARTS
        assert sum(values.values()) == parts.total
        assert all(isinstance(value, int) for value in values.values())
        assert min(values.values()) >= 0, (phase, values)
    assert answer.allocated_bytes == answer.breakdown.total == max(p.total for p in answer.phases.values())
    assert answer.phases[answer.peak_phase] == answer.breakdown
    assert answer.allocated_bytes <= answer.reserved_bytes
    assert answer.reserved_bytes + answer.context_bytes == answer.device_bytes
    assert answer.required_bytes >= answer.allocated_bytes + answer.context_bytes
    for meter, (low, high) in answer.interval.items():
        assert 0 <= low <= getattr(answer, meter) <= high, meter
    assert answer.verdict in VERDICTS
    assert 0 < answer.trainable_parameters <= answer.total_parameters
    assert answer.host_bytes > 0
    assert answer.disk_bytes >= 0
    json.dumps(answer.to_dict())


@given(asked=any_setup())
@SOME
def test_the_fast_answer_is_the_explained_one(asked: Asked) -> None:
    setup, gpus = asked
    answer = run_or_skip(setup, gpus)
    fast = price(setup, resolve(setup.model), MACHINES[gpus])
    for field in ("allocated_bytes", "reserved_bytes", "device_bytes", "required_bytes", "context_bytes", "host_bytes"):
        assert getattr(fast, field) == getattr(answer, field)
    assert fast.peak_phase == answer.peak_phase


@given(asked=any_setup())
@settings(SOME, max_examples=8)
def test_a_replay_moves_reserved_and_device_alone(asked: Asked) -> None:
    setup, gpus = asked
    answer = run_or_skip(setup, gpus)
    explained = estimate(setup, resolve(setup.model), MACHINES[gpus])
    assert explained.allocated_bytes <= explained.reserved_bytes
    assert explained.reserved_bytes + explained.context_bytes == explained.device_bytes
    for meter, (low, high) in explained.interval.items():
        assert low <= getattr(explained, meter) <= high
    moved = {"reserved_bytes", "device_bytes", "interval"}
    one, other = explained.to_dict(), answer.to_dict()
    assert {key for key in one if one[key] != other[key]} <= moved


@given(asked=any_setup())
@SOME
def test_the_same_inputs_give_the_same_bytes(asked: Asked) -> None:
    setup, gpus = asked
    first = run_or_skip(setup, gpus)
    assert run(setup.but(), gpus).to_dict() == first.to_dict()


# -- more of something never needs less --------------------------------------------------------------------------


def check_grows(less: Estimate, more: Estimate) -> None:
    assert more.allocated_bytes >= less.allocated_bytes
    assert more.required_bytes >= less.required_bytes


@given(asked=any_setup(), extra=st.integers(1, 8))
@MANY
def test_a_larger_batch_never_needs_less(asked: Asked, extra: int) -> None:
    setup, gpus = asked
    less = run_or_skip(setup, gpus)
    check_grows(less, run(setup.but(micro_batch_size=setup.micro_batch_size + extra), gpus))


@given(asked=any_setup(), extra=st.integers(1, 4096))
@MANY
def test_a_longer_sequence_never_needs_less(asked: Asked, extra: int) -> None:
    setup, gpus = asked
    less = run_or_skip(setup, gpus)
    check_grows(less, run(setup.but(seq_len=setup.seq_len + extra), gpus))


@given(asked=any_setup(), extra=st.integers(1, 120))
@MANY
def test_a_higher_rank_never_needs_less(asked: Asked, extra: int) -> None:
    setup, gpus = asked
    assume(setup.is_adapter)
    assume(setup.parallelism != "zero3")  # there, small adapters stay gathered on every rank
    assume("8bit" not in setup.optim and "paged" not in setup.optim)  # small tensors are neither packed nor paged
    less = run_or_skip(setup, gpus)
    more = run(setup.but(lora_rank=setup.lora_rank + extra), gpus)
    check_grows(less, more)
    assert more.trainable_parameters > less.trainable_parameters


@given(asked=any_setup())
@MANY
def test_checkpointing_never_needs_more_than_a_few_hidden_states(asked: Asked) -> None:
    """At the lowest layer, where all weight gradients are alive, both hold that layer's saved tensors; checkpointing
    holds the layer's input, its recomputed output and the incoming gradient besides.
    """
    setup, gpus = asked
    assume(setup.method != "dora")  # recomputing its weights' norms takes whole weights beside backward's own buffers
    kept = run_or_skip(setup.but(gradient_checkpointing=False), gpus)
    tokens = setup.micro_batch_size * setup.seq_len * setup.sequences_per_sample
    slack = 4 * 4 * resolve(setup.model).hidden * max(tokens, 64)
    assert run(setup.but(gradient_checkpointing=True), gpus).allocated_bytes <= kept.allocated_bytes + slack


@given(asked=any_setup())
@SOME
def test_dropout_never_needs_less(asked: Asked) -> None:
    setup, gpus = asked
    less = run_or_skip(setup.but(lora_dropout=0.0), gpus)
    assert run(setup.but(lora_dropout=0.1), gpus).allocated_bytes >= less.allocated_bytes


@given(asked=tame_setup(), factor=st.sampled_from([1.01, 1.5, 4.0]))
@SOME
def test_more_capacity_never_worsens_the_verdict(asked: Asked, factor: float) -> None:
    setup, gpus = asked
    machine = MACHINES[gpus]
    spec = resolve(setup.model)
    small = run_or_skip(setup, gpus)
    large = estimate(setup, spec, grown(machine, factor), replayed=False)
    assert large.required_bytes == small.required_bytes
    assert VERDICTS.index(str(large.verdict)) <= VERDICTS.index(str(small.verdict))


def grown(machine: Machine, factor: float) -> Machine:
    return replace(machine, gpus=tuple(replace(g, capacity_bytes=int(g.capacity_bytes * factor)) for g in machine.gpus))


@given(asked=tame_setup())
@SOME
def test_a_wider_coverage_needs_no_less(asked: Asked) -> None:
    setup, gpus = asked
    spec, machine = resolve(setup.model), MACHINES[gpus]
    narrow = run_or_skip(setup, gpus)
    bold, bolder = (estimate(setup, spec, machine, coverage=c, replayed=False) for c in (0.90, 0.80))
    assert bolder.required_bytes <= bold.required_bytes <= narrow.required_bytes
    assert bold.allocated_bytes == narrow.allocated_bytes


@pytest.mark.parametrize("parallelism", ["zero1", "zero2", "zero3", "fsdp", "fsdp2"])
def test_more_ranks_never_need_more_of_states(parallelism: str) -> None:
    setup = TrainingSetup(model="7B", method="full", parallelism=parallelism)
    parts = [estimate(setup, resolve("7B"), parse_machine(f"{n}xA100-80GB")).phases["optimizer"] for n in (2, 4, 8)]
    assert [p.optimizer for p in parts] == sorted((p.optimizer for p in parts), reverse=True)
    assert parts[-1].optimizer < 0.3 * parts[0].optimizer


@pytest.mark.parametrize("method", ["full", "freeze", "galore", "apollo", "badam", "lora", "dora", "qlora", "oft"])
def test_saying_the_engines_own_dtypes_changes_nothing(method: str) -> None:
    """What is emitted states every dtype, and is priced again as it was."""
    setup, spec = TrainingSetup(model="Qwen2.5-7B", method=method), resolve("Qwen2.5-7B")
    found = resolve_regime(setup, spec)
    held = found.frozen if setup.is_adapter else found.trained
    said = setup.but(param_dtype=held, compute_dtype=found.compute, adapter_dtype=found.adapter)
    machine = parse_machine("1xA100-80GB")
    assert estimate(said, spec, machine).phases == estimate(setup, spec, machine).phases


def test_no_gpu_no_verdict() -> None:
    answer = estimate(TrainingSetup(model="7B"), resolve("7B"), Machine(gpus=()))
    assert answer.verdict is None
    assert answer.capacity_bytes is None
    assert "verdict" not in answer.to_dict()
    assert any("no GPU" in sentence for sentence in answer.assumptions)


def test_none_on_several_gpus_is_bad_input() -> None:
    with pytest.raises(InputError, match=r"parallelism 'none' cannot use 3 GPUs"):
        run(TrainingSetup(model="7B", parallelism="none"), "3x20GB")


# -- the mission's figures ---------------------------------------------------------------------------------------


def qwen(gpus: str, **fields: Any) -> Estimate:
    return estimate(TrainingSetup(model="Qwen2.5-7B", gpus=gpus, **fields), resolve("Qwen2.5-7B"), parse_machine(gpus))


def test_full_fine_tuning_of_a_7b_holds_sixteen_bytes_a_parameter() -> None:
    """7,615,616,512 parameters in fp32 with gradients and two Adam states: 121.8 GB."""
    answer = qwen("1xH200-141GB", method="full")
    step = answer.phases["optimizer"]
    states = step.weights + step.gradients + step.optimizer
    assert answer.total_parameters == answer.trainable_parameters == 7_615_616_512
    assert states == pytest.approx(16 * 7_615_616_512, rel=1e-5)  # and the tables of positions
    assert states == pytest.approx(121.8 * GB, rel=1e-3)
    assert qwen("1xA100-80GB", method="full").verdict == "does_not_fit"
    assert qwen("8xA100-80GB", method="full", parallelism="ddp").verdict == "does_not_fit"


def test_the_guides_sum_is_not_what_a_7b_needs() -> None:
    """The guide adds 14 + 28 + 5 + 1.5 = 48.5 GB for a 7B at batch 1, length 2048."""
    full = qwen("1xH200-141GB", method="full")
    adapters = qwen("1x48GB", method="lora")
    assert full.allocated_bytes > 2.4 * 48.5 * GB
    assert adapters.allocated_bytes < 0.5 * 48.5 * GB


class TestPresets:
    """Three presets of a public guide on Qwen2.5-7B, which set no dtype."""

    def test_one_24_gb_card(self) -> None:
        answer = qwen(
            "1xRTX4090", method="lora", lora_rank=16, seq_len=2048, liger_kernel=True, attention="flash_attention_2"
        )
        assert answer.trainable_parameters == 40_370_176
        assert answer.verdict == "fits"
        assert 16 * GIB < answer.required_bytes < 21 * GIB

    def test_two_48_gb_cards(self) -> None:
        """About 33 GB, most of it logits: 12 bytes x 152,064 x 8,192 tokens = 14.9 GB."""
        answer = qwen("2x48GB", method="lora", lora_rank=32, micro_batch_size=2, seq_len=4096)
        assert answer.trainable_parameters == 80_740_352
        assert answer.verdict == "fits"
        assert 30 * GB < answer.allocated_bytes < 36 * GB

    def test_80_gb_cards_at_four_times_8192(self) -> None:
        """Logits alone: 12 bytes x 152,064 x 32,768 tokens = 59.8 GB."""
        answer = qwen("8xA100-80GB", method="lora", lora_rank=64, micro_batch_size=4, seq_len=8192)
        assert answer.breakdown.logits == 12 * 152_064 * 4 * 8192
        assert answer.breakdown.logits == pytest.approx(59.8 * GB, rel=1e-3)
        assert answer.trainable_parameters == 161_480_704
        assert answer.verdict != "fits"

    def test_the_same_with_liger(self) -> None:
        answer = qwen("8xA100-80GB", method="lora", lora_rank=64, micro_batch_size=4, seq_len=8192, liger_kernel=True)
        assert answer.verdict == "fits"
        assert answer.breakdown.logits < 3 * GB


class TestWorkstation:
    """3 x 20 GB: by states alone 1.0B parameters under DDP, 3.0B under ZeRO-2, 3.75B under ZeRO-3."""

    @pytest.mark.parametrize(("parallelism", "bytes_each"), [("ddp", 20), ("zero2", 2 + 14 / 3), ("zero3", 16 / 3)])
    def test_bytes_of_states(self, parallelism: str, bytes_each: float) -> None:
        answer = estimate(
            TrainingSetup(model="Qwen2.5-7B", method="full", parallelism=parallelism),
            resolve("Qwen2.5-7B"), parse_machine("3x20GB"),
        )  # fmt: skip
        step = answer.phases["optimizer"]
        states = step.weights + step.gradients + step.optimizer + (step.communication if parallelism == "ddp" else 0)
        assert states / answer.total_parameters == pytest.approx(bytes_each, rel=0.01)
        assert answer.verdict == "does_not_fit"

    def test_qlora_of_a_7b_fits(self) -> None:
        answer = estimate(
            TrainingSetup(model="Qwen2.5-7B", method="qlora", liger_kernel=True), resolve("Qwen2.5-7B"),
            parse_machine("3x20GB"),
        )  # fmt: skip
        assert answer.verdict == "fits"


def test_the_4090_guides_second_configuration_does_not_fit_at_full_length() -> None:
    """Llama-3-8B, all linears, length 4096, batch 2: 16.1 GB of weights and logits of 10.5 GB or more on 24 GB."""
    spec = resolve("Meta-Llama-3-8B")
    setup = TrainingSetup(model="Meta-Llama-3-8B", method="lora", seq_len=4096, micro_batch_size=2)
    full = estimate(setup, spec, parse_machine("1xRTX4090"))
    assert full.breakdown.weights == pytest.approx(16.1 * GB, rel=0.01)
    assert full.breakdown.logits >= 10.5 * GB
    assert full.verdict == "does_not_fit"
    assert estimate(setup.but(seq_len=256), spec, parse_machine("1xRTX4090")).verdict == "fits"


def test_every_model_of_the_catalogue_is_estimated() -> None:
    machine = MACHINES["1xH100-80GB"]
    for spec in specs():
        for method in ("full", "qlora"):
            answer = estimate(TrainingSetup(model=spec.id, method=method), spec, machine, replayed=False)
            assert answer.allocated_bytes == max(parts.total for parts in answer.phases.values()), spec.id
            assert 0 < answer.trainable_parameters <= answer.total_parameters, spec.id
            assert answer.phases["load"].weights > spec.parameters // 2, spec.id


def test_experts_that_quantization_does_not_reach_are_said() -> None:
    setup = TrainingSetup(model="Mixtral-8x7B-v0.1", method="qlora", gpus="1xA100-80GB")
    spec, machine = resolve(setup.model), parse_machine("1xA100-80GB", None)
    assert any("stacked parameters" in said for said in estimate(setup, spec, machine).warnings)
    modules = setup.but(engine="transformers", versions={"transformers": "4.48"})
    old = estimate(modules, spec, machine)
    assert not any("stacked parameters" in said for said in old.warnings)
    assert old.phases["forward"].weights < estimate(setup, spec, machine).phases["forward"].weights / 3
