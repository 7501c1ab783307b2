"""Which parallelism and why: replicas while states fit, shards while what is gathered fits, else a cut model."""

from __future__ import annotations

from typing import Any

from planner.hardware.parse import parse_machine
from planner.memory.estimate import price
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request
from planner.plan.ways import AUTOTP, autotp_that_fits
from planner.search.desk import Desk
from planner.speed.estimate import predict_speed
from planner.training import TrainingSetup


def plan(gpus: str, model: str, **fields: Any) -> Plan:
    return make_plan(Request(model=model, gpus=gpus, **fields), resolve(model), parse_machine(gpus))


def reason(answer: Plan, start: str) -> str:
    return next((each for each in answer.reasons if each.startswith(start)), "")


def test_states_that_fit_are_replicated() -> None:
    answer = plan("8xA100-80GB", "Qwen2.5-0.5B", pinned={"parallelism": "ddp"})
    assert "fit each GPU whole" in reason(answer, "DDP: ")


def test_states_that_do_not_fit_are_sharded_and_what_is_gathered_is_said() -> None:
    answer = plan("16x8xH100-80GB", "70B", method="full", global_batch=1024)
    said = reason(answer, "ZeRO-3 over 128 GPUs")
    assert "whole on each GPU it would need" in said
    assert "are gathered at a time, which fits beside the rest" in said


def test_shards_that_are_taken_for_their_speed_say_so() -> None:
    answer = plan("8xA100-80GB", "Qwen2.5-0.5B")
    assert answer.chosen is not None and answer.chosen.speed is not None
    said = reason(answer, "ZeRO-2 over 8 GPUs: whole on each GPU it fits too, at about ")
    replicas, _, shards = said.partition("at about ")[2].partition(" tokens/s against ")
    assert int(replicas.replace(",", "")) < int(shards.replace(",", "")) == round(answer.chosen.speed.tokens_per_s)


def test_one_gpu_has_no_word_of_it() -> None:
    answer = plan("1xRTX4090", "Qwen3-8B")
    assert not any("gathered" in each or each.startswith("DDP") for each in answer.reasons)


def test_a_gathered_block_that_does_not_fit_beside_its_shard_is_named() -> None:
    """Mixtral's experts come a block at a time under ZeRO-3: 2.6 GiB and more beside 32 shards of 2.7 GiB."""
    answer = plan("4x8xRTX3060-8GB", "Mixtral-8x7B", pinned={"parallelism": "zero3", "method": "lora"}, method="lora")
    assert answer.verdict != "fits"
    said = next((each for each in answer.remedies if "at a time" in each), "")
    assert said.startswith("ZeRO-3 gathers")
    assert "does not fit beside its shard" in said


def test_a_sequence_that_does_not_fit_is_cut() -> None:
    answer = plan("8xRTX3090", "Llama-3.1-8B", seq_len=131072)
    assert answer.verdict == "does_not_fit"
    said = next(each for each in answer.remedies if each.startswith("one sequence of 131072 tokens"))
    assert "context parallelism over" in said
    assert "no files are written for that here" in said


def test_fewer_sequences_than_gpus_call_for_a_cut_model_or_fewer_gpus() -> None:
    answer = plan("128x8xH100-80GB", "70B")
    said = next(each for each in answer.warnings if "data-parallel GPUs" in each)
    assert "to keep 64, plan for 64 GPUs, or cut the model over 16 GPUs each" in said
    assert "--engine megatron with --pipeline-parallel" in said
    assert not any("data-parallel GPUs read" in each for each in plan("8xH100-80GB", "7B").warnings)


def test_a_network_that_bounds_sharding_names_pipeline_stages() -> None:
    slow = plan("8x1xRTX4090", "7B", method="full", pinned={"parallelism": "zero3"}, seq_len=512)
    assert slow.chosen is not None and slow.chosen.speed is not None
    assert slow.chosen.speed.bound_by == "links between GPUs"
    assert any("pipeline stages across nodes" in each for each in slow.reasons)


def test_a_cut_that_files_are_written_for_is_named_with_its_flags() -> None:
    """One sequence's logits and activations beside all states: AutoTP cuts both, and its flags give that plan."""
    machine, spec = parse_machine("8xH100-80GB", "2TB"), resolve("Llama-3.1-8B")
    desk = Desk(spec, machine, price, predict_speed)
    setup = TrainingSetup(model=spec.id, method="full", seq_len=32768, parallelism="zero3", micro_batch_size=1)
    said = autotp_that_fits(desk, setup) or ""
    assert "--tensor-parallel" in said and "--parallelism zero" in said
    size = int(said.partition("--tensor-parallel ")[2].split()[0])
    zero = said.partition("--parallelism ")[2].split(":")[0]
    assert {"parallelism": zero, "liger_kernel": False} in AUTOTP
    answer = plan(
        "8xH100-80GB", spec.id, method="full", seq_len=32768, ram="2TB",
        pinned={"tensor_parallel": size, "parallelism": zero},
    )  # fmt: skip
    assert answer.chosen is not None and answer.chosen.setup.tensor_parallel == size
    assert autotp_that_fits(desk, setup.but(method="lora")) is None
