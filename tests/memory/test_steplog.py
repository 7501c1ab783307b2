"""The step as a log: it frees what it allocates, agrees with the timeline's peak, and grows with the batch."""

from __future__ import annotations

from typing import Any

import pytest

from planner.hardware.parse import parse_machine
from planner.memory import estimate as module
from planner.memory.allocator import replay
from planner.memory.estimate import estimate, price
from planner.memory.loss import loss_bytes
from planner.memory.lossscripts import SCRIPTS, loss_script
from planner.memory.replayed import reservation
from planner.memory.steplog import StepLog
from planner.model.catalogue import resolve
from planner.training import TrainingSetup
from planner.units import GIB

NAME = "Qwen2.5-0.5B"
USUAL = TrainingSetup(model=NAME, gpus="1xA100-80GB", seq_len=2048, micro_batch_size=2, packing=True)
NAMED: dict[str, Any] = {"model": "bigcode/gpt_bigcode-santacoder", "versions": {"transformers": "4.48"}}
VARIANTS = {
    "lora": {},
    "lora without checkpointing": {"gradient_checkpointing": False},
    "qlora": {"method": "qlora", "quantization_bit": 4},
    "full": {"method": "full"},
    "full, accumulated": {"method": "full", "gradient_accumulation_steps": 4},
    "fused linear loss": {"liger_kernel": True},
    "transformers 4.48": {"engine": "transformers", "versions": {"transformers": "4.48"}},
    "transformers 4.45": {"engine": "transformers", "versions": {"transformers": "4.45"}},
    "in-place loss kernel": {"engine": "transformers", "loss": "fused", "versions": {"transformers": "4.45"}},
    "fsdp": {"gpus": "2xA100-80GB", "parallelism": "fsdp"},
    "fsdp full": {"gpus": "2xA100-80GB", "parallelism": "fsdp", "method": "full"},
}


def worked(setup: TrainingSetup) -> module.Worked:
    return module._work(setup, resolve(setup.model), parse_machine(setup.gpus or "", None))


def test_the_log_of_a_cache_that_is_named_reaches_the_timelines_peak() -> None:
    done = worked(USUAL.but(**NAMED, engine="transformers", method="full", param_dtype="bf16", micro_batch_size=8))
    assert done.peak == "loss"
    assert replay(StepLog(done.timeline).run()).requested_peak_bytes == pytest.approx(done.allocated_bytes, rel=0.01)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_logs_own_peak_is_the_timelines(name: str) -> None:
    done = worked(USUAL.but(**VARIANTS[name]))
    answer = replay(StepLog(done.timeline).run())
    assert answer.requested_peak_bytes == pytest.approx(done.allocated_bytes, rel=0.03)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_third_step_finds_all_it_needs_in_the_cache(name: str) -> None:
    done = worked(USUAL.but(**VARIANTS[name]))
    two, three = (replay(StepLog(done.timeline, steps=steps).run()) for steps in (2, 3))
    assert three.live_bytes == two.live_bytes
    assert three.reserved_peak_bytes == pytest.approx(two.reserved_peak_bytes, rel=0.02)


def test_longer_batches_reserve_more() -> None:
    found = [worked(USUAL.but(micro_batch_size=size)) for size in (1, 2, 4, 8)]
    reserved = [reservation(done.timeline, done.allocated_bytes) for done in found]
    sizes = [one.peak_bytes for one in reserved if one is not None]
    assert sizes == sorted(sizes)
    assert len(sizes) == 4


def kept(*lengths: int) -> int:
    """Reserved bytes of a run whose micro batches have these lengths."""
    setup = USUAL.but(packing=False)
    return module.estimate(setup, resolve(NAME), parse_machine("1xA100-80GB", None), lengths=lengths).reserved_bytes


def test_batches_that_grow_keep_the_blocks_of_the_shorter_ones() -> None:
    rising = kept(256, 512, 768, 1024, 1280, 1536, 1792, 2048)
    falling = kept(2048, 1792, 1536, 1280, 1024, 768, 512, 256)
    assert rising > 1.2 * kept()
    assert falling == pytest.approx(kept(), rel=0.05)  # what is shorter fits into what the longest left


def test_lengths_move_reserved_and_device_memory_alone() -> None:
    spec, machine = resolve(NAME), parse_machine("1xA100-80GB", None)
    plain, varied = (module.estimate(USUAL, spec, machine, lengths=each) for each in ((), (512, 1024, 2048)))
    ours, theirs = plain.to_dict(), varied.to_dict()
    assert {key for key in ours if ours[key] != theirs[key]} == {"reserved_bytes", "device_bytes", "interval"}


def test_accumulated_micro_batches_take_the_lengths_in_turn() -> None:
    done = worked(USUAL.but(gradient_accumulation_steps=4))
    log = StepLog(done.timeline, lengths=(256, 512, 1024, 2048))
    assert (log.steps, log.each) == (2, 2)
    assert replay(log.run()).requested_peak_bytes == pytest.approx(done.allocated_bytes, rel=0.03)


PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "hf_4_49": ("hf_4_49", {"versions": {"transformers": "5.0"}}),
    "hf_4_48": ("hf_4_48", {"versions": {"transformers": "4.48"}}),
    "hf_4_45": ("hf_4_45", {"versions": {"transformers": "4.45"}}),
    "in_model": ("in_model", {**NAMED, "method": "full", "param_dtype": "bf16"}),
    "in_model under autocast": ("in_model", {**NAMED, "method": "full", "param_dtype": "fp32"}),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_loss_script_reaches_the_worst_moments_of_its_curve(name: str) -> None:
    path, fields = PATHS[name]
    step = worked(USUAL.but(engine="transformers", **fields)).timeline.step
    assert step.regime.loss == path
    assert path in SCRIPTS
    tokens = USUAL.micro_batch_size * USUAL.seq_len
    script, sizes = (
        loss_script(step, tokens),
        loss_bytes(step.setup, step.spec, step.regime, tokens, head_trained=False),
    )
    live: dict[str, int] = {}
    for lines, worst in ((script.forward, max(sizes.forward, sizes.converted)), (script.backward, sizes.backward)):
        peak = 0
        for name, size in lines:
            live.pop(name) if size is None else live.update({name: size})
            peak = max(peak, sum(live.values()))
        assert peak == pytest.approx(worst, rel=0.002)


def test_the_explained_estimate_replays_and_the_fast_one_does_not() -> None:
    spec, machine = resolve(NAME), parse_machine("1xA100-80GB", None)
    explained, fast = estimate(USUAL, spec, machine), price(USUAL, spec, machine)
    assert explained.allocated_bytes == fast.allocated_bytes
    assert explained.required_bytes == fast.required_bytes
    log = worked(USUAL)
    assert explained.reserved_bytes == replay(StepLog(log.timeline).run()).reserved_peak_bytes
    assert estimate(USUAL, spec, machine, replayed=False).reserved_bytes == fast.reserved_bytes


def test_what_the_log_cannot_describe_keeps_the_formula() -> None:
    sharded = USUAL.but(gpus="2xA100-80GB", parallelism="zero3")
    done = worked(sharded)
    assert reservation(done.timeline, done.allocated_bytes) is None
    assert done.overheads.reserved_bytes > 0
    assert reservation(worked(USUAL).timeline, 100 * GIB) is None
