"""The speed model: within its stated error of published throughputs, and monotone where it must be."""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.hardware.parse import parse_machine
from planner.model.catalogue import resolve
from planner.speed.estimate import predict_speed
from planner.speed.exchange import expert_traffic_s, ring_traffic_s, tensor_traffic_s
from planner.speed.links import paths
from planner.speed.rates import shipped
from planner.training import TrainingSetup

ROOT = Path(__file__).resolve().parents[2]


def rate(gpus: str = "1xA100-80GB", model: str = "Qwen2.5-7B", **fields: Any) -> float:
    setup = TrainingSetup(model=model, **fields)
    found = predict_speed(setup, resolve(model), parse_machine(gpus))
    assert found is not None
    return found.tokens_per_s


@pytest.fixture(scope="module")
def tool() -> Any:
    """tools/calibrate_speed.py as a module: it states the published throughputs as setups."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import calibrate_speed
    finally:
        sys.path.pop(0)
    return calibrate_speed


def sizes(errors: dict[str, float]) -> list[float]:
    return sorted(abs(math.expm1(error)) for error in errors.values())


@pytest.mark.parametrize(
    ("source", "least", "median", "ninth"),
    [
        ("fms", 141, 0.04, 0.12),
        ("foundry", 209, 0.04, 0.12),
        ("torchtune", 9, 0.06, 0.10),
        ("torchtitan", 4, 0.10, 0.13),
    ],
)
def test_published_throughputs_are_met(tool: Any, source: str, least: int, median: float, ninth: float) -> None:
    """The last two were never fitted on."""
    rows = [row for row in tool.measured() if row.source == source]
    assert len(rows) >= least
    found = sizes(tool.Model.of(tool.figures()).errors(rows))
    assert statistics.median(found) <= median
    assert found[math.ceil(0.9 * len(found)) - 1] <= ninth


def test_setups_of_one_group_are_ordered_as_they_were_measured(tool: Any) -> None:
    rows = tool.measured()
    errors = tool.Model.of(tool.figures()).errors(rows)
    ranks = []
    for group in {row.group for row in rows if row.source in tool.FITTED_SOURCES}:
        found = tool.rank_correlation([row for row in rows if row.group == group], errors)
        ranks += [] if found is None else [found]
    assert len(ranks) >= 20
    assert statistics.median(ranks) >= 0.9


@pytest.mark.parametrize("source", ["torchtune", "torchtitan"])
def test_sources_that_the_fit_never_saw_are_ordered_too(tool: Any, source: str) -> None:
    rows = [row for row in tool.measured() if row.source == source]
    errors = tool.Model.of(tool.figures()).errors(rows)
    found = (tool.rank_correlation([row for row in rows if row.group == group], errors)
             for group in {row.group for row in rows})  # fmt: skip
    ranks = [rank for rank in found if rank is not None]
    assert ranks
    assert min(ranks) >= 0.9


def test_quantized_states_are_no_faster_than_a_fused_step() -> None:
    """torchao's README: 3,200 tokens/s with fused AdamW, 3,000 with bitsandbytes' and 2,900 with torchao's."""
    plain, bnb, ao = (
        rate(model="Llama-2-7b-hf", method="full", param_dtype="bf16", optim=optim, seq_len=1050, engine="torchtune")
        for optim in ("adamw_torch_fused", "adamw_bnb_8bit", "adamw_torch_8bit")
    )
    assert plain > bnb > ao
    assert bnb / plain == pytest.approx(3000 / 3200, abs=0.04)
    assert ao / plain == pytest.approx(2900 / 3200, abs=0.04)


@pytest.mark.parametrize(
    "group", ["fms/mistralai/Mistral-7B-v0.1/lora/hf-liger", "fms/mistralai/Mixtral-8x7B-Instruct-v0.1/qlora/hf"]
)
def test_a_group_that_the_fit_never_saw_is_met_too(tool: Any, group: str) -> None:
    rows = tool.measured()
    fitted = tool.fit([row for row in rows if row.source in tool.FITTED_SOURCES and row.group != group])
    unseen = [row for row in rows if row.group == group]
    assert statistics.median(sizes(tool.Model.of(fitted).errors(unseen))) <= 0.12


def test_the_shipped_figures_are_those_of_the_fit(tool: Any) -> None:
    rows = [row for row in tool.measured() if row.source in tool.FITTED_SOURCES]
    start = tool.figures()
    assert tool.cost(rows, tool.fit(rows), start) >= tool.cost(rows, start, start) - 0.001


def test_the_guides_run_on_one_h100_is_in_its_interval() -> None:
    """Llama-3-8B in 4 bit, 2 x 4 samples of about 217 tokens: 1,566.6 padded tokens/s measured."""
    setup = TrainingSetup(
        model="Llama-3-8B",
        method="qlora",
        seq_len=217,
        micro_batch_size=2,
        gradient_accumulation_steps=4,
        compute_dtype="fp16",
    )
    found = predict_speed(setup, resolve("Llama-3-8B"), parse_machine("1xH100-80GB"))
    assert found is not None
    assert found.low_tokens_per_s < 1566.6 < found.high_tokens_per_s
    assert 0.7 < found.tokens_per_s / 1566.6 < 1.4


def test_an_unnamed_card_has_a_wide_interval_and_says_so() -> None:
    setup = TrainingSetup(model="Qwen2.5-7B")
    found = predict_speed(setup, resolve("Qwen2.5-7B"), parse_machine("1x24GB"))
    assert found is not None
    assert found.high_tokens_per_s / found.low_tokens_per_s >= 5
    assert "assumed" in found.bound_by


def test_a_card_of_unknown_throughput_has_no_speed() -> None:
    setup = TrainingSetup(model="Qwen2.5-7B")
    assert predict_speed(setup, resolve("Qwen2.5-7B"), parse_machine("1xRTX3080-Laptop-16GB")) is None


def test_what_costs_time_costs_time() -> None:
    assert rate(gradient_checkpointing=True) < rate(gradient_checkpointing=False)
    assert rate(method="qlora") < rate(method="lora")
    assert rate(method="full") < rate(method="lora")
    assert rate(liger_kernel=True) > rate(liger_kernel=False)
    assert rate(attention="eager", seq_len=8192) < rate(attention="sdpa", seq_len=8192)
    assert rate(compute_dtype="fp32") < rate(compute_dtype="bf16")
    full = {"method": "full", "parallelism": "zero3"}
    assert rate("2xRTX4090", **full, offload="all") < rate("2xRTX4090", **full)
    assert rate("8xRTX4090", method="full", parallelism="zero3") < 8 * rate("1xRTX4090", method="full")


@settings(max_examples=40)
@given(micro=st.sampled_from([1, 2, 4, 8]), steps=st.sampled_from([1, 2, 8]), length=st.sampled_from([256, 2048, 8192]))
def test_larger_micro_batches_are_never_slower(micro: int, steps: int, length: int) -> None:
    fields = {"seq_len": length, "gradient_accumulation_steps": steps}
    assert rate(micro_batch_size=2 * micro, **fields) >= rate(micro_batch_size=micro, **fields)


def test_states_on_a_drive_wait_for_the_drive_that_a_nodes_gpus_share() -> None:
    """32 bytes of each element go through the node's one drive in every step, and the weights in every pass."""
    spec = resolve("7B")

    def step(gpus: int, offload: Any) -> float:
        setup = TrainingSetup(model="7B", method="full", parallelism="zero3", offload=offload)
        speed = predict_speed(setup, spec, parse_machine(f"{gpus}xA100-80GB"))
        assert speed is not None
        return speed.step_seconds

    swapped = 32 * spec.parameters / shipped().links["nvme_bytes_per_s"]
    for gpus in (2, 8):  # however many share it, the same bytes pass through the drive
        assert step(gpus, "nvme") - step(gpus, "all") > swapped
        assert step(gpus, "nvme") - step(gpus, "optimizer") > swapped


def test_tensor_parallelism_waits_for_its_links() -> None:
    """Two all-reduces of a layer in forward, two in backward, two in recomputation: 1.5 x 8 MB of 2048 x 4096 each."""
    setup = TrainingSetup(model="Meta-Llama-3-8B", tensor_parallel=4)

    def seconds(gpus: str, **fields: Any) -> float:
        return tensor_traffic_s(setup.but(**fields), resolve(setup.model), parse_machine(gpus), shipped())

    over = paths(parse_machine("4xRTX4090"), shipped()).between_gpus
    waits = shipped().links["latency_seconds"] + 3 * shipped().hop_seconds
    assert seconds("4xRTX4090") == pytest.approx(6 * 32 * (1.5 * 2 * 2048 * 4096 / over + waits))
    assert seconds("4xRTX4090") > 5 * seconds("4xH100-80GB")
    assert seconds("4x4xH100-80GB") == seconds("4xH100-80GB")  # it stays within a node
    assert seconds("4xRTX4090", tensor_parallel=1) == 0
    assert rate("4xH100-80GB", tensor_parallel=4) < rate("4xH100-80GB")


def test_keys_and_values_go_round_the_ring() -> None:
    """Of 4 chunks of 2,048 tokens 3 pass by, once forward, twice back, once recomputed."""
    setup = TrainingSetup(model="Meta-Llama-3-8B", context_parallel=4, seq_len=8192)

    def seconds(gpus: str, **fields: Any) -> float:
        return ring_traffic_s(setup.but(**fields), resolve(setup.model), parse_machine(gpus), shipped())

    over = paths(parse_machine("4xRTX4090"), shipped()).between_gpus
    assert seconds("4xRTX4090") == pytest.approx(4 * 3 * 32 * 2 * 2 * 2048 * 1024 / over)
    assert seconds("4xRTX4090", gradient_checkpointing=False) == pytest.approx(0.75 * seconds("4xRTX4090"))
    assert seconds("4xRTX4090", context_parallel=1) == 0
    assert rate("2x1xH100-80GB", context_parallel=2) < rate("1x2xH100-80GB", context_parallel=2)


def test_tokens_travel_to_their_experts_and_back() -> None:
    """Mixtral: two of 4,096 elements a token and layer, there and back, and half of them stay on two GPUs."""
    setup = TrainingSetup(model="Mixtral-8x7B", expert_parallel=2)

    def seconds(gpus: str, **fields: Any) -> float:
        return expert_traffic_s(setup.but(**fields), resolve(setup.model), parse_machine(gpus), shipped())

    over = paths(parse_machine("2xH100-80GB"), shipped()).between_gpus
    waits = shipped().links["latency_seconds"] + shipped().hop_seconds
    assert seconds("2xH100-80GB") == pytest.approx(6 * 32 * (2 * 2048 * 2 * 4096 / 2 / over + waits))
    assert seconds("2x1xH100-80GB") > 2 * seconds("2xH100-80GB")
    assert expert_traffic_s(setup, resolve("Meta-Llama-3-8B"), parse_machine("2xH100-80GB"), shipped()) == 0
    assert rate("2xH100-80GB", model="Mixtral-8x7B", expert_parallel=2) < rate("2xH100-80GB", model="Mixtral-8x7B")


def test_a_pipeline_fills_and_drains() -> None:
    """(m + p - 1) / m of the time with m micro batches and p stages (GPipe, arXiv 1811.06965)."""
    few = rate("4xH100-80GB", method="full", pipeline_parallel=4, gradient_accumulation_steps=4)
    many = rate("4xH100-80GB", method="full", pipeline_parallel=4, gradient_accumulation_steps=64)
    assert 1.4 < many / few < 1.9
