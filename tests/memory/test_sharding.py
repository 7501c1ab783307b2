"""Layouts: by hand from the engines' sources, against published measurements, and against engines that run on CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError, UnsupportedError
from planner.memory.layout import Layout, Unit
from planner.memory.optimizer import Tensor2D, optimizer_cost
from planner.memory.regime import Regime
from planner.memory.sharding import kept_per_layer_bytes_per_token, lay_out
from planner.training import TrainingSetup
from tests.memory.models import Priced
from tests.memory.probes import probe

GIB = 2**30
CUBLAS = 2 * (2 * 4096 * 1024 + 8 * 16 * 1024)  # two workspaces on an A100, part of every measured figure
ATTENTION = "q_proj,k_proj,v_proj,o_proj"
FMS: dict[str, Any] = {
    "model": "mistral-7b",
    "engine": "transformers",
    "versions": {"transformers": "4.48"},
    "optim": "adamw_torch",
    "parallelism": "fsdp",
}


# -- published: foundation-model-stack/fms-acceleration, scripts/benchmarks/refs, A100-80GB, FSDP1 -------------------


@pytest.mark.parametrize(
    ("ranks", "dtype", "measured_gib"),
    [(2, "bf16", 33.738), (2, "fp32", 67.460), (4, "fp32", 33.738)],
)
def test_full_fine_tuning_under_fsdp1_peaks_in_the_optimizer_step(ranks: int, dtype: str, measured_gib: float) -> None:
    priced = Priced(ranks, method="full", param_dtype=dtype, **FMS)
    assert (priced.at_step + CUBLAS) / GIB == pytest.approx(measured_gib, abs=0.002)


@pytest.mark.parametrize(
    ("ranks", "batches_gib"),
    [(2, (19.762, 31.767)), (4, (16.340, 28.344))],  # 4 and 8 sequences of 4096 tokens
)
def test_what_lora_under_fsdp1_needs_apart_from_its_tokens(ranks: int, batches_gib: tuple[float, float]) -> None:
    constant_gib = 2 * batches_gib[0] - batches_gib[1]
    priced = Priced(ranks, method="lora", lora_rank=16, lora_target=ATTENTION, param_dtype="bf16", **FMS)
    assert (priced.constant_in_backward + CUBLAS) / GIB == pytest.approx(constant_gib, abs=0.005)


def test_lora_under_fsdp1_keeps_one_residual_gradient_a_layer() -> None:
    priced = Priced(2, method="lora", param_dtype="bf16", **FMS)
    kept = kept_per_layer_bytes_per_token(priced.setup, priced.regime, priced.spec.hidden)
    assert (priced.spec.layers - 2) * kept == 786_694 - 540_934
    for other in ({"parallelism": "fsdp2"}, {"versions": {"transformers": "5.23"}}, {"method": "full"}):
        apart = Priced(2, **({"method": "lora"} | FMS | other))
        assert kept_per_layer_bytes_per_token(apart.setup, apart.regime, apart.spec.hidden) == 0


# -- by hand -----------------------------------------------------------------------------------------------------


def test_ddp_holds_a_second_copy_of_the_gradients() -> None:
    alone, several = Priced(1, method="full", parallelism="none"), Priced(8, method="full", parallelism="ddp")
    gradients = 4 * alone.parts.trained
    assert several.layout.resident_buffers == gradients == alone.layout.gradients_at_step
    assert several.at_step - alone.at_step == gradients


def test_accumulation_carries_gradients_through_the_forward_pass() -> None:
    priced = Priced(1, method="full", parallelism="none", gradient_accumulation_steps=4)
    assert priced.layout.gradients_carried == priced.layout.gradients_at_step == 4 * priced.parts.trained
    assert not any(priced.layout.gradients.values())


def test_gradients_that_are_consumed_in_backward_leave_the_largest_one() -> None:
    priced = Priced(1, method="full", parallelism="none", optimizer_in_backward=True, optim="adamw_torch")
    vocabulary = 4 * 128256 * 4096
    assert (priced.layout.gradients_at_step, priced.layout.reducing) == (0, vocabulary)
    assert priced.layout.step_temporaries == 0 and priced.layout.end_of_backward == vocabulary


@pytest.mark.parametrize("ranks", [2, 8])
def test_zero_2_is_2_and_14_over_n_bytes_a_parameter(ranks: int) -> None:
    priced, p = Priced(ranks, method="full", parallelism="zero2"), Priced(ranks, method="full").parts.trained
    layout = priced.layout
    assert layout.weights == 2 * p
    assert layout.optimizer == pytest.approx(12 * p / ranks, abs=2 * ranks + 1024)
    assert layout.gradients_at_step == -(-2 * p // ranks)
    assert layout.load == 4 * p  # LLaMA-Factory's fp32 copy, before the engine casts it
    assert layout.step_temporaries == pytest.approx(6 * p / ranks, rel=1e-6)  # flat 16-bit and fp32 gradient


def test_zero_1_holds_all_gradients_until_backward_is_over() -> None:
    priced = Priced(8, method="full", parallelism="zero1")
    p, layout = priced.parts.trained, priced.layout
    assert sum(u.count * layout.gradients[u.name] for u in priced.units) == 2 * p
    assert layout.gradients_at_step == -(-2 * p // 8)


def test_the_whole_bucket_is_allocated_for_a_little_lora() -> None:
    priced = Priced(2, method="lora", parallelism="zero2")
    assert priced.layout.reducing == 2 * 500_000_000 + 2 * priced.parts.trained
    assert any("1.0 GB is allocated whole" in note for note in priced.layout.notes)
    small = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1_000_000}}
    trimmed = Priced(2, method="lora", parallelism="zero2", ds_config=small)
    twice = Priced(2, method="lora", parallelism="zero2", ds_config={"zero_optimization": {
        "stage": 2, "reduce_bucket_size": 1_000_000, "overlap_comm": True}})  # fmt: skip
    assert twice.layout.reducing - trimmed.layout.reducing == 2 * 1_000_000
    assert trimmed.layout.reducing < 2 * 2_000_000 + 2 * priced.parts.trained


def test_a_named_json_is_read_and_a_bad_one_is_told(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000000}}')
    named = Priced(2, method="full", parallelism="zero2", ds_config=str(file)).layout
    assert named == Priced(2, method="full", parallelism="zero2", ds_config=json.loads(file.read_text())).layout
    for text, sentence in (("[]", "holds no JSON object"), ("{", "is not JSON"), (None, "cannot be read")):
        bad = tmp_path / f"{sentence}.json"
        if text is not None:
            bad.write_text(text)
        with pytest.raises(InputError, match=sentence):
            Priced(2, method="full", parallelism="zero2", ds_config=str(bad))


def test_zero_3_splits_everything_but_what_is_gathered() -> None:
    priced = Priced(8, method="full", parallelism="zero3")
    p, layout = priced.parts.trained, priced.layout
    norms = 2 * (32 * 2 * 4096 + 4096)
    assert layout.weights == -(-2 * p // 8) + norms
    assert layout.gradients_carried == layout.gradients_at_step == 2 * -(-p // 8)
    assert layout.resident_buffers == 2 * 4096 * 4096  # the bucket that transformers puts for "auto"
    widest = 2 * 4096 * 14336
    assert layout.gathered_backward == layout.gathered_loss == 2 * 1_000_000_000 + widest  # stage3_max_live_parameters


def test_prefetching_fills_up_to_the_live_limit_or_the_whole_model() -> None:
    def gathered(**zero: int) -> int:
        config = {"zero_optimization": {"stage": 3, **zero}}
        return Priced(8, method="full", parallelism="zero3", ds_config=config).layout.gathered_backward

    p = Priced(8, method="full").parts.trained
    assert gathered(stage3_max_live_parameters=10**11) == 2 * p
    assert gathered(stage3_max_live_parameters=2 * 10**9) - gathered(stage3_max_live_parameters=10**9) == 2 * 10**9
    block = 2 * next(u for u in Priced(8, method="full").units if u.name == "block0").trained
    assert gathered(stage3_prefetch_bucket_size=0) == block


def test_layers_near_the_loss_stay_gathered_within_the_reuse_distance() -> None:
    def beside_the_head(model: str, vocabulary: int) -> int:
        config = {"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 0}}
        layout = Priced(8, method="full", parallelism="zero3", model=model, ds_config=config).layout
        return layout.gathered_loss - 2 * vocabulary * 4096

    block = 2 * next(u for u in Priced(8, method="full").units if u.name == "block0").trained
    assert beside_the_head("mistral-7b", 32000) > 2 * block  # 262 M + 3 x 218 M elements are below 1e9 twice
    assert beside_the_head("llama-3-8b", 128256) < block  # a head of 525 M elements ends the distance by itself


def test_offloading_leaves_buffers_on_the_gpu() -> None:
    optimizer = Priced(8, method="full", parallelism="zero2", offload="optimizer").layout
    assert (optimizer.optimizer, optimizer.step_temporaries, optimizer.gradients_at_step) == (0, 0, 0)
    assert optimizer.resident_buffers == 2 * 128256 * 4096
    everything = Priced(8, method="full", parallelism="zero3", offload="all").layout
    assert everything.optimizer == everything.gradients_carried == 0
    assert everything.weights < 2**20  # norms that stay gathered


def test_offload_where_nothing_offloads_is_refused_with_a_way_out() -> None:
    with pytest.raises(UnsupportedError, match=r"offload 'optimizer' needs DeepSpeed or FSDP.*choose zero2"):
        Priced(2, method="full", parallelism="ddp", offload="optimizer")
    with pytest.raises(UnsupportedError, match="choose offload all"):
        Priced(2, method="full", parallelism="fsdp", offload="optimizer")


def test_accumulation_under_fsdp_keeps_unsharded_gradients() -> None:
    once = Priced(8, method="full", parallelism="fsdp")
    often = Priced(8, method="full", parallelism="fsdp", gradient_accumulation_steps=8)
    assert once.layout.gradients_carried == 0
    assert often.layout.gradients_carried == 2 * often.parts.trained
    assert often.layout.gradients_at_step == once.layout.gradients_at_step
    assert any("accumulation under FSDP keeps 16.1 GB" in note for note in often.layout.notes)


def test_blocks_that_mix_frozen_and_trained_weights_have_gradients_for_all_of_them() -> None:
    def priced(engine: str, accumulation: int) -> Priced:
        return Priced(
            4, method="lora", parallelism="fsdp", engine=engine, gradient_accumulation_steps=accumulation,
            param_dtype="bf16", adapter_dtype="bf16",
        )  # fmt: skip

    blocks = 32 * sum(lin.parameters for lin in priced("litgpt", 1).parts.layers[0].linears)
    assert priced("litgpt", 1).at_step - priced("transformers", 1).at_step == pytest.approx(2 * blocks / 4, rel=2e-3)
    carried = priced("litgpt", 32).layout.gradients_carried - priced("transformers", 32).layout.gradients_carried
    assert carried == pytest.approx(2 * blocks, rel=2e-3)


def test_accelerate_1_11_makes_the_frozen_base_of_fsdp2_fp32() -> None:
    old = Priced(8, method="lora", parallelism="fsdp2", versions={"accelerate": "1.11.0"})
    new = Priced(8, method="lora", parallelism="fsdp2", versions={"accelerate": "1.15.0"})
    frozen = sum(u.count * u.frozen for u in old.units)
    assert old.layout.weights - new.layout.weights == pytest.approx(2 * frozen / 8, rel=1e-6)


@pytest.mark.parametrize(
    ("accelerate", "parallelism", "kept"),
    [("1.10.1", "fsdp2", False), ("1.11.0", "fsdp2", True), ("1.10.1", "fsdp", True)],
)
def test_accumulation_keeps_whole_gradients_where_no_sync_works(accelerate: str, parallelism: str, kept: bool) -> None:
    """accelerator.py no_sync of accelerate 1.10.1 and 1.11.0: the former looks for a method that FSDP2 lacks."""
    fields = {"engine": "axolotl", "parallelism": parallelism, "versions": {"accelerate": accelerate}}
    priced = Priced(8, method="full", gradient_accumulation_steps=2, **fields)
    trained = sum(u.count * u.trained for u in priced.units)
    assert (priced.layout.gradients_carried > 4 * trained // 8 + 1024) == kept  # else the shards of a round before


def test_reentrant_checkpointing_around_the_unit_leaves_fsdp1_no_layer_to_prefetch() -> None:
    def backward(version: str) -> Layout:
        return Priced(8, method="full", parallelism="fsdp", versions={"transformers": version}).layout

    block = 2 * next(u for u in Priced(8, method="full").units if u.name == "block0").trained
    around, within = backward("4.51"), backward("4.52")
    assert within.gathered_backward - around.gathered_backward == block
    assert around.gathered_backward - around.gathered_loss == block


def test_layers_that_checkpoint_themselves_let_go_of_their_inputs_under_fsdp1() -> None:
    for version, keeps in (("4.51", True), ("4.52", False)):
        priced = Priced(2, method="lora", param_dtype="bf16", **(FMS | {"versions": {"transformers": version}}))
        assert bool(kept_per_layer_bytes_per_token(priced.setup, priced.regime, priced.spec.hidden)) is keeps


def test_fsdp1_joins_and_reduces_a_layer_when_its_activations_are_gone() -> None:
    priced = Priced(4, method="full", param_dtype="fp32", compute_dtype="bf16", **FMS)
    block = next(u for u in priced.units if u.name == "block0").trained
    assert priced.layout.reducing == 0
    assert priced.layout.end_of_layer == 2 * block + 2 * block + (2 + 4) * block // 4  # single, flat, shard


def test_adapters_of_fused_functions_are_whole_on_every_rank() -> None:
    fields = FMS | {"method": "qlora", "lora_rank": 16, "lora_target": ATTENTION, "kbit_upcast": "none"}
    apart, whole = Priced(4, **fields), Priced(4, unsloth=True, **fields)
    adapters = 4 * whole.parts.trained
    assert whole.layout.optimizer == 2 * adapters == 4 * apart.layout.optimizer
    assert whole.layout.weights - apart.layout.weights == pytest.approx(adapters * 3 / 4, abs=4)
    assert whole.layout.gradients_at_step == adapters
    dense = Priced(4, unsloth=True, **(fields | {"method": "lora"}))
    assert dense.layout.optimizer < whole.layout.optimizer  # only beside quantized weights


def test_gptq_scales_and_group_indices_are_on_every_rank() -> None:
    fields: dict[str, Any] = FMS | {"method": "qlora", "quantization_method": "gptq", "quantization_bit": 4}
    two, four = Priced(2, **fields), Priced(4, **fields)
    buffers = sum(u.count * u.buffer_bytes for u in two.units)
    linears = two.parts.layers[0].linears
    assert buffers == 32 * sum(2 * lin.outputs + 4 * lin.inputs for lin in linears)  # one group a column
    held = sum(u.count * u.held_bytes for u in two.units) - buffers
    assert two.layout.weights - four.layout.weights == pytest.approx(held / 4, abs=4)


def test_scales_of_four_bit_weights_are_on_every_rank() -> None:
    two, many = (Priced(n, method="qlora", parallelism="fsdp") for n in (2, 1024))
    held = sum(u.count * u.held_bytes for u in two.units)
    packed = 32 * sum(lin.parameters for lin in two.parts.layers[0].linears)
    scales = packed // 64 + packed // 4096
    assert many.layout.weights == pytest.approx(scales + (held - scales) / 1024, rel=1e-3)
    assert two.layout.weights == pytest.approx(scales + (held - scales) / 2, rel=1e-4)


@pytest.mark.parametrize(("version", "whole"), [("4.48", False), ("5.6", True)])
def test_transformers_5_reads_quantized_weights_whole_onto_each_gpu(version: str, whole: bool) -> None:
    for parallelism in ("fsdp", "zero3"):
        priced = Priced(8, method="qlora", parallelism=parallelism, versions={"transformers": version})
        held = sum(u.count * u.held_bytes for u in priced.units)
        assert (priced.layout.load >= held) is whole


@given(
    parallelism=st.sampled_from(["zero1", "zero2", "zero3", "fsdp", "fsdp2"]),
    method=st.sampled_from(["full", "lora", "qlora", "freeze"]),
    ranks=st.integers(2, 64),
    accumulation=st.sampled_from([1, 4]),
)
def test_another_gpu_never_costs_the_others_more(parallelism: str, method: str, ranks: int, accumulation: int) -> None:
    def bytes_of(number: int) -> tuple[int, int]:
        priced = Priced(number, method=method, parallelism=parallelism, gradient_accumulation_steps=accumulation)
        return priced.at_step, priced.constant_in_backward

    fewer, more = bytes_of(ranks), bytes_of(ranks + 1)
    assert more[0] <= fewer[0] + 1024 and more[1] <= fewer[1] + 1024  # rounding of shares


# -- against engines that run here ---------------------------------------------------------------------------------


@pytest.mark.engines
@pytest.mark.parametrize(("stage", "accumulation"), [(1, 2), (2, 2), (3, 1)])
def test_deepspeed_holds_what_is_said(stage: int, accumulation: int) -> None:
    measured = probe("probe_deepspeed.py", str(stage), str(accumulation), ranks=2)
    p = measured["elements"]
    setup = TrainingSetup(
        model="any", method="full", parallelism=f"zero{stage}", gradient_accumulation_steps=accumulation,
        ds_config={"zero_optimization": {
            "stage": stage, "reduce_bucket_size": 10_000, "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 4096, "stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 8192,
        }},
    )  # fmt: skip
    regime = Regime(
        frozen="bf16", trained="bf16", gradient="bf16", compute="bf16", autocast=False, norms="bf16", adapter="bf16",
        state="fp32", master=True, loss="hf_4_49", head="bf16", embedding="bf16", reentrant=True, repeat_kv=False,
        stacked_experts=False,
    )  # fmt: skip
    each = p // 4
    layers = Unit(
        name="block0", count=4, frozen=0, frozen_bytes=0, trained=each, trained_bytes_each=2, largest_trained=each
    )
    cost = optimizer_cost(setup, regime, (Tensor2D(64, 64, copies=4),))
    layout = lay_out(setup, regime, (layers,), cost, 2, 2, 64)
    assert layout.weights == measured["weights"]
    counters = 512 // 2  # the fused optimizer's step counter, which the probe does not count
    assert layout.optimizer - counters == measured["master"] + measured["states"]
    assert layout.gradients_at_step == measured["gradient_part"]
    assert layout.step_temporaries == measured["gradient_part"] + measured["fp32_gradient"]
    if stage == 3:
        assert layout.resident_buffers == measured["bucket"]
        assert layout.gradients_carried == measured["gradient_part"]
        assert 2 * 8192 <= 2 * measured["live_elements"] <= layout.gathered_forward
    else:
        assert layout.reducing >= measured["bucket"]
        assert layout.gradients_carried == (measured["carried"] if accumulation > 1 else 0)


@pytest.mark.engines
def test_fsdp1_really_keeps_inputs_and_gradients_of_frozen_layers() -> None:
    kept = probe("probe_fsdp1.py", "around", "fsdp", ranks=2)
    plain = probe("probe_fsdp1.py", "plain", "fsdp", ranks=2)
    within = probe("probe_fsdp1.py", "within", "fsdp", ranks=2)
    assert kept["alive"] - plain["alive"] == 2 * kept["layers"] - 1  # every input, and all gradients but the last
    assert within["alive"] == plain["alive"]


@pytest.mark.engines
@pytest.mark.parametrize("accumulation", [1, 2])
def test_fsdp2_gathers_and_keeps_what_is_said(accumulation: int) -> None:
    """Six layers of two matrices, a root of two layers' size each side; mixed precision, two ranks."""
    measured = probe("probe_fsdp2.py", str(accumulation), ranks=2)
    setup = TrainingSetup(
        model="any", method="full", parallelism="fsdp2", engine="transformers",
        gradient_accumulation_steps=accumulation,
        versions={"accelerate": "1.13"},  # one root, as the script cuts it
    )  # fmt: skip
    width, vocabulary = 256, 1024
    regime = Regime(
        frozen="bf16", trained="fp32", gradient="fp32", compute="bf16", autocast=True, norms="fp32", adapter="fp32",
        state="fp32", master=False, loss="hf_4_49", head="fp32", embedding="fp32", reentrant=False, repeat_kv=False,
        stacked_experts=False,
    )  # fmt: skip
    sizes = {"embedding": (1, vocabulary * width), "block0": (6, 2 * width * width), "head": (1, vocabulary * width)}
    units = tuple(
        Unit(name=name, count=count, frozen=0, frozen_bytes=0, trained=size, trained_bytes_each=4, largest_trained=size)
        for name, (count, size) in sizes.items()
    )
    cost = optimizer_cost(setup, regime, (Tensor2D(width, width, copies=20),))
    layout = lay_out(setup, regime, units, cost, 2, 2, width)
    layer = 2 * 2 * width * width

    def bytes_at(point: str) -> float:
        return measured[point] * layer

    slack = layer / 4  # activations of one token, and Python's own tensors
    assert bytes_at("forward 3") == pytest.approx(layout.gathered_forward + layout.gradients_carried, abs=slack)
    assert bytes_at("forward loss") == pytest.approx(layout.gathered_loss + layout.gradients_carried, abs=slack)
    assert measured["end"] * layer == pytest.approx(layout.gradients_at_step, abs=slack)
    if accumulation == 1:
        own = layer  # the layer's own two gradients, which the block's window counts
        done = layout.gradients["head"] + layout.gradients["block0"]
        expected = layout.gathered_backward + layout.reducing + done + own
        assert bytes_at("backward 4") == pytest.approx(expected, abs=layer)
