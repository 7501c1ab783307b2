"""The next setup after an out-of-memory error: less memory, the same training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.api import plan
from planner.hardware.parse import parse_machine
from planner.plan.plan import Plan, Request
from planner.run.diagnose import Evidence, diagnose
from planner.run.heal import Change, GiveUp, Situation, difference, remedy
from planner.run.replan import Shortfall, lowered_capacity, next_setup
from planner.speed.estimate import data_ranks
from planner.training import TrainingSetup
from planner.units import GIB
from tests.run.test_diagnose import lines

LEARNT = ("method", "seq_len", "lora_rank", "lora_target", "lora_dropout", "quantization_bit", "optim", "packing",
          "compute_dtype", "stage", "model")  # fmt: skip


def made(gpus: str = "2x24GB", model: str = "7B", ram: str | None = "128GB", **changes: object) -> Plan:
    return plan(Request(model=model, gpus=gpus, **changes), parse_machine(gpus, ram))


def setup_of(made: Plan) -> TrainingSetup:
    assert made.chosen is not None
    return made.chosen.setup


def batch(setup: TrainingSetup, made: Plan) -> int:
    return setup.micro_batch_size * setup.gradient_accumulation_steps * data_ranks(setup, made.machine)


@pytest.mark.parametrize("has_checkpoint", [True, False])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_rung_needs_less_and_learns_the_same(method: str, has_checkpoint: bool) -> None:
    model = "Qwen2.5-0.5B" if method == "full" else "7B"
    first = made(model=model, method=method, global_batch=48)
    assert first.chosen is not None
    failed, capacity = first.chosen.setup, first.chosen.estimate.required_bytes - 1
    seen = [failed]
    while (found := next_setup(first, seen[-1], capacity, consent=(), has_checkpoint=has_checkpoint)) is not None:
        assert all(getattr(found, name) == getattr(failed, name) for name in LEARNT)
        assert batch(found, first) == batch(failed, first) == 48
        if has_checkpoint:
            assert (found.parallelism, found.offload) == (failed.parallelism, failed.offload)
        assert found not in seen
        seen.append(found)
        capacity = int(capacity * 0.8)
    assert len(seen) > 1


def test_what_is_learnt_changes_with_consent_and_without_a_checkpoint_only() -> None:
    first = made(gpus="1x24GB", ram=None, method="lora")
    assert first.chosen is not None
    capacity = 10 * GIB
    failed = first.chosen.setup
    assert next_setup(first, failed, capacity, consent=(), has_checkpoint=False) is None
    assert next_setup(first, failed, capacity, consent={"qlora-nf4"}, has_checkpoint=True) is None
    found = next_setup(first, failed, capacity, consent={"qlora-nf4"}, has_checkpoint=False)
    assert found is not None
    assert (found.method, found.quantization_bit, found.lora_rank) == ("qlora", 4, failed.lora_rank)
    shorter = next_setup(first, failed, 17 * GIB, consent={"shorter-sequences"}, has_checkpoint=False)
    assert shorter is None or shorter.method == "lora"


def test_the_evidence_lowers_the_capacity_in_proportion() -> None:
    first = made()
    assert first.chosen is not None
    price = replace(first.chosen.estimate, allocated_bytes=10 * GIB, context_bytes=GIB, required_bytes=12 * GIB)
    capacity = 20 * GIB
    as_predicted = lowered_capacity(capacity, price, Shortfall(wanted_bytes=11 * GIB, available_bytes=None))
    assert as_predicted == 12 * GIB - 1
    double = lowered_capacity(capacity, price, Shortfall(wanted_bytes=21 * GIB, available_bytes=None))
    assert double == GIB + (capacity - GIB) // 2
    smaller = lowered_capacity(capacity, price, Shortfall(wanted_bytes=11 * GIB, available_bytes=8 * GIB))
    assert smaller == 8 * GIB
    assert lowered_capacity(capacity, price, Shortfall(wanted_bytes=None, available_bytes=None)) < 12 * GIB


def situation(first: Plan, **changes: object) -> Situation:
    assert first.chosen is not None
    values: dict = {
        "plan": first,
        "setup": first.chosen.setup,
        "estimate": first.chosen.estimate,
        "environment": {},
        "lines": (),
        "retries_left": 3,
        "has_checkpoint": True,
        "consent": (),
    }
    return Situation(**(values | changes))


def test_an_evaluation_that_runs_out_gets_smaller_batches_first() -> None:
    first = made(model="Qwen2.5-0.5B", seq_len=512, pinned={"eval_micro_batch_size": 8})
    text = ["Traceback (most recent call last):", "    self.evaluation_loop(", *lines("cuda_oom_old")]
    found = diagnose(Evidence(exit_status=1, lines=text))
    assert found is not None
    change = remedy(found, situation(first))
    assert isinstance(change, Change)
    assert difference(setup_of(first), change.setup) == "eval_micro_batch_size 8 becomes 4"


def test_what_cannot_be_healed_stops_with_cause_and_next_step() -> None:
    first = made(model="Qwen2.5-0.5B")
    for name in ("unknown_dataset", "missing_package", "disk_quota", "worker_sigkill", "nccl_timeout"):
        found = diagnose(Evidence(exit_status=1, lines=lines(name)))
        assert found is not None
        end = remedy(found, situation(first))
        assert isinstance(end, GiveUp)
        assert end.reason
        assert end.next_step


def test_no_attempt_is_left_after_the_last() -> None:
    found = diagnose(Evidence(exit_status=1, lines=lines("cuda_oom_old")))
    assert found is not None
    end = remedy(found, situation(made(model="Qwen2.5-0.5B"), retries_left=0))
    assert isinstance(end, GiveUp)
    assert "no attempt is left" in end.reason


def test_kernels_that_are_off_stay_off() -> None:
    first = made(model="Qwen2.5-0.5B", method="lora", seq_len=512)
    assert first.chosen is not None
    assert first.chosen.setup.liger_kernel
    failed, capacity = first.chosen.setup.but(liger_kernel=False), first.chosen.estimate.required_bytes // 2
    found = next_setup(first, failed, capacity, consent=(), has_checkpoint=False)
    assert found is not None
    assert not found.liger_kernel


def test_what_flags_pinned_or_somebody_set_by_hand_stays() -> None:
    open_to_all = made(model="7B", method="lora", ram="256GB", global_batch=16)
    pinned = made(model="7B", method="lora", ram="256GB", global_batch=16, pinned={"parallelism": "ddp"})
    failed, capacity = setup_of(pinned), 10 * GIB
    sharded = next_setup(open_to_all, failed, capacity, consent=(), has_checkpoint=False)
    assert sharded is not None
    assert sharded.parallelism != "ddp"
    assert next_setup(pinned, failed, capacity, consent=(), has_checkpoint=False) is None
    by_hand = next_setup(open_to_all, failed, capacity, consent=(), has_checkpoint=False, held=("parallelism",))
    assert by_hand is None
