"""Which tensor is held in which dtype: engine by engine, against what real runs printed.

Source: dtypes measured in runs of LLaMA-Factory 0.9.5 (print_param_status), DeepSpeed 0.19.8 and transformers 5.23, and
the source of LLaMA-Factory model/adapter.py and loader.py, accelerate utils/fsdp_utils.py, peft tuners/lora.
P trained parameters, F frozen ones, N data-parallel ranks; bytes per parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given

from planner.hardware.parse import parse_machine
from planner.memory.regime import Regime, _resolve, resolve_regime, version_of
from planner.memory.remarks import assumptions_of
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup
from tests.memory.models import Priced, spec_of
from tests.memory.setups import any_setup

SPEC = spec_of("llama-3-8b")
PSI = SPEC.parameters


def regime(spec: ModelSpec = SPEC, **fields: Any) -> Regime:
    return resolve_regime(TrainingSetup(model="llama-3-8b", **fields), spec)


# -- bytes per parameter, row by row -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Bytes per trained parameter at the optimizer step; ``buckets`` is DDP's further copy of the gradients."""

    name: str
    fields: dict[str, Any]
    weights: float
    gradients: float
    states: float
    ranks: int = 1
    buckets: float = 0
    sum: float | None = None


FULL: dict[str, Any] = {"method": "full"}
OLD = {"transformers": "4.57"}
PURE: dict[str, Any] = {"method": "full", "param_dtype": "bf16"}
ROWS = [
    Row("full", FULL, 4, 4, 8, sum=16),
    Row("full, DDP", {**FULL, "parallelism": "ddp"}, 4, 4, 8, ranks=4, buckets=4, sum=20),
    Row("full, pure_bf16", PURE, 2, 2, 4, sum=8),
    Row("full, pure_bf16, DDP", {**PURE, "parallelism": "ddp"}, 2, 2, 4, ranks=4, buckets=2, sum=10),
    Row("ZeRO-1", {**FULL, "parallelism": "zero1"}, 2, 2 / 4, 12 / 4, ranks=4),
    Row("ZeRO-2", {**FULL, "parallelism": "zero2"}, 2, 2 / 4, 12 / 4, ranks=4, sum=2 + 14 / 4),
    Row("ZeRO-2 on 8", {**FULL, "parallelism": "zero2"}, 2, 2 / 8, 12 / 8, ranks=8, sum=2 + 14 / 8),
    Row("ZeRO-3", {**FULL, "parallelism": "zero3"}, 2 / 4, 2 / 4, 12 / 4, ranks=4, sum=16 / 4),
    Row("FSDP1", {**FULL, "parallelism": "fsdp"}, 4 / 4, 4 / 4, 8 / 4, ranks=4, sum=16 / 4),
    Row("FSDP2", {**FULL, "parallelism": "fsdp2"}, 4 / 4, 4 / 4, 8 / 4, ranks=4, sum=16 / 4),
    Row("plain transformers 5", {**FULL, "engine": "transformers"}, 2, 2, 4, sum=8),
    Row("plain transformers 4", {**FULL, "engine": "transformers", "versions": OLD}, 4, 4, 8, sum=16),
    Row("TRL 1.16", {**FULL, "engine": "trl"}, 4, 4, 8, sum=16),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_full_fine_tuning(row: Row) -> None:
    layout = Priced(row.ranks, optim="adamw_torch_fused", **row.fields).layout
    assert layout.weights / PSI == pytest.approx(row.weights, rel=1e-3)
    assert layout.optimizer / PSI == pytest.approx(row.states, rel=1e-3)
    assert layout.gradients_at_step is not None
    if "zero" not in str(row.fields.get("parallelism")):  # DeepSpeed's step brings flat and fp32 gradients along
        assert layout.gradients_at_step / PSI == pytest.approx(row.gradients, rel=1e-3)
    if row.buckets:
        assert layout.resident_buffers / PSI == pytest.approx(row.buckets, rel=1e-3)
    if row.sum is not None:
        assert row.weights + row.gradients + row.states + row.buckets == pytest.approx(row.sum)


def test_zero_2_adds_its_step_to_two_and_fourteen_over_n() -> None:
    """At the step: + 2/N flattened and + 4/N of fp32 gradients (deepspeed stage_1_and_2.py)."""
    ranks = 4
    layout = Priced(ranks, method="full", parallelism="zero2").layout
    assert layout.gradients_at_step is not None
    at_step = layout.weights + layout.optimizer + layout.gradients_at_step + layout.step_temporaries
    assert at_step / PSI >= 2 + 14 / ranks
    assert at_step / PSI <= 2 + (14 + 2 + 4 + 4) / ranks


@pytest.mark.parametrize(
    ("fields", "ranks", "base", "adapter", "states"),
    [
        pytest.param({"method": "lora"}, 1, 2, 4, 8, id="LoRA"),
        pytest.param({"method": "lora", "parallelism": "ddp"}, 4, 2, 4, 8, id="LoRA, DDP"),
        pytest.param({"method": "lora", "parallelism": "zero2"}, 4, 2, 2, 12 / 4, id="LoRA, ZeRO-2"),
        pytest.param({"method": "lora", "parallelism": "zero3"}, 4, 2 / 4, 2 / 4, 12 / 4, id="LoRA, ZeRO-3"),
        pytest.param({"method": "lora", "parallelism": "fsdp"}, 4, 2 / 4, 4 / 4, 8 / 4, id="LoRA, FSDP1"),
        pytest.param({"method": "lora", "adapter_dtype": "bf16"}, 1, 2, 2, 4, id="LoRA, bf16 adapters"),
    ],
)
def test_adapters(fields: dict[str, Any], ranks: int, base: float, adapter: float, states: float) -> None:
    priced = Priced(ranks, lora_rank=64, **fields)
    trained = priced.parts.trained
    assert trained == 64 * 2_621_440
    assert priced.layout.optimizer / trained == pytest.approx(states, rel=1e-3)
    expected = base * PSI + adapter * trained
    # ZeRO-3 keeps parameters under the persistence threshold gathered: norms and slim adapters
    assert priced.layout.weights == pytest.approx(expected, rel=0.03 if "zero3" in fields.values() else 1e-3)


def test_four_bit_weights_by_hand() -> None:
    """Half a byte, scales of 8 bit per 64 and fp32 per 256 of these; embedding and head stay in 16 bit."""
    linears = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    outside = PSI - linears
    held = {double: Priced(1, method="qlora", double_quantization=double).parts for double in (True, False)}
    adapters = 4 * held[True].trained
    assert held[True].held_bytes == linears // 2 + linears // 64 + 4 * (linears // (64 * 256)) + 2 * outside + adapters
    assert held[False].held_bytes == linears // 2 + 4 * (linears // 64) + 2 * outside + adapters
    assert held[True].held_bytes - adapters == pytest.approx(5_702_295_552, rel=1e-3)  # the file on the hub


def test_eight_bit_weights_by_hand() -> None:
    linears = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    rows = 32 * (4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096)
    parts = Priced(1, method="lora", quantization_bit=8).parts
    assert parts.held_bytes == linears + 4 * rows + 2 * (PSI - linears) + 4 * parts.trained


# -- dtypes ------------------------------------------------------------------------------------------------------


def test_llamafactory_trains_fp32_weights_under_autocast() -> None:
    found = regime(method="full")
    assert (found.trained, found.gradient, found.state, found.autocast) == ("fp32", "fp32", "fp32", "bf16")
    assert found.load_dtype == "fp32"
    assert not found.master


@pytest.mark.parametrize("method", ["full", "freeze", "galore", "apollo"])
def test_llamafactory_casts_what_trains(method: str) -> None:
    assert regime(method=method).trained == "fp32"
    assert regime(method=method, param_dtype="bf16").trained == "bf16"


def test_badam_and_pure_bf16_stay_in_16_bit() -> None:
    for found in (regime(method="badam"), regime(method="full", param_dtype="bf16")):
        assert (found.trained, found.gradient, found.autocast) == ("bf16", "bf16", None)


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_deepspeed_holds_16_bit_weights_and_fp32_masters(stage: str, method: str) -> None:
    found = regime(method=method, parallelism=stage)
    held = found.adapter if method == "lora" else found.trained
    assert (held, found.gradient, found.state, found.master) == ("bf16", "bf16", "fp32", True)
    assert found.autocast is None


@pytest.mark.parametrize("engine", ["llamafactory", "transformers", "trl", "embedded", "axolotl"])
def test_trainers_keep_adapters_in_fp32(engine: str) -> None:
    found = regime(method="lora", engine=engine)
    assert (found.adapter, found.state, found.autocast) == ("fp32", "fp32", "bf16")


@pytest.mark.parametrize("engine", ["torchtune", "litgpt"])
def test_own_loops_follow_the_base(engine: str) -> None:
    found = regime(method="lora", engine=engine)
    assert (found.adapter, found.autocast) == ("bf16", None)


def test_the_newest_plain_trainer_loads_as_stored_and_the_old_one_in_fp32() -> None:
    assert regime(method="full", engine="transformers").trained == "bf16"
    assert regime(method="full", engine="transformers", versions={"transformers": "4.57.1"}).trained == "fp32"
    assert regime(method="full", engine="llamafactory", versions={"transformers": "4.57.1"}).trained == "fp32"


def test_trl_makes_even_a_frozen_base_fp32_and_prepared_quantized_models_before_1_0() -> None:
    assert regime(method="lora", engine="trl").frozen == "fp32"
    assert regime(method="lora", engine="trl").adapter == "fp32"
    newest = regime(method="qlora", engine="trl")
    assert (newest.norms, newest.embedding, newest.adapter) == ("bf16",) * 3
    prepared = regime(method="qlora", engine="trl", versions={"trl": "0.24"})
    assert prepared.adapter == "fp32"
    assert (prepared.norms, prepared.embedding, prepared.head, prepared.stream) == ("fp32",) * 4
    plain = regime(method="qlora")
    assert (plain.norms, plain.embedding, plain.head, plain.stream) == ("bf16",) * 4


def test_a_frozen_base_in_fp32_is_said() -> None:
    def says(**fields: Any) -> bool:
        setup = TrainingSetup(model="llama-3-8b", **{"method": "lora", "engine": "trl", **fields})
        found = assumptions_of(setup, SPEC, parse_machine("1x80GB"), resolve_regime(setup, SPEC))
        return any("--param-dtype bf16" in each for each in found)

    assert says()
    assert not says(param_dtype="bf16")
    assert not says(method="qlora")


@pytest.mark.parametrize(
    ("upcast", "norms", "embedding"), [("none", "bf16", "bf16"), ("norms", "fp32", "bf16"), ("all", "fp32", "fp32")]
)
def test_kbit_preparation_by_name(upcast: str, norms: str, embedding: str) -> None:
    found = regime(method="qlora", kbit_upcast=upcast)
    assert (found.norms, found.embedding, found.head) == (norms, embedding, embedding)


def test_fsdp_1_cannot_mix_types_in_a_layer() -> None:
    assert regime(method="qlora", parallelism="fsdp", kbit_upcast="norms").norms == "bf16"


@pytest.mark.parametrize(("accelerate", "upcast"), [("1.11", True), ("1.12", True), ("1.13", False), ("1.15.0", False)])
def test_accelerate_upcasts_the_whole_model_for_fsdp2(accelerate: str, upcast: bool) -> None:
    found = regime(method="lora", parallelism="fsdp2", versions={"accelerate": accelerate})
    assert found.upcast_frozen_on_sharding is upcast
    assert not regime(method="lora", parallelism="fsdp", versions={"accelerate": accelerate}).upcast_frozen_on_sharding


def test_zero_3_never_holds_an_fp32_copy_at_load() -> None:
    assert regime(method="full", parallelism="zero2").load_dtype == "fp32"
    assert regime(method="full", parallelism="zero3").load_dtype == "bf16"
    assert regime(method="full", engine="transformers", parallelism="zero2").load_dtype == "bf16"


def test_cards_without_bf16_compute_in_fp16() -> None:
    setup = TrainingSetup(model="llama-3-8b", method="lora")
    assert resolve_regime(setup, SPEC, has_bf16=False).compute == "fp16"
    assert resolve_regime(setup, SPEC, has_bf16=None).compute == "bf16"
    assert resolve_regime(setup.but(compute_dtype="bf16"), SPEC, has_bf16=False).compute == "bf16"


# -- paths of loss, checkpointing and attention ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "loss"),
    [
        ({}, "hf_4_49"),
        ({"versions": {"transformers": "4.48.3"}}, "hf_4_48"),
        ({"versions": {"transformers": "4.45.2"}}, "hf_4_45"),
        ({"liger_kernel": True}, "fused_linear"),
        ({"liger_kernel": True, "stage": "pt"}, "fused_linear"),
        ({"liger_kernel": True, "stage": "dpo"}, "hf_4_49"),  # LLaMA-Factory switches it off there
        ({"liger_kernel": True, "loss": "torch"}, "hf_4_49"),
        ({"loss": "chunked"}, "chunked"),
        ({"unsloth": True}, "fused"),
        ({"engine": "trl"}, "tiles"),
        ({"engine": "trl", "liger_kernel": True}, "tiles"),  # TRL switches Liger's fused loss off
        ({"engine": "trl", "versions": {"trl": "1.0"}}, "trl"),
        ({"engine": "trl", "versions": {"transformers": "4.57"}}, "trl"),
        ({"engine": "torchtune"}, "torchtune"),
        ({"engine": "litgpt"}, "chunked"),
        ({"engine": "torchtitan"}, "torchtune"),
        ({"engine": "thunder"}, "raw"),
        ({"engine": "fsdp_qlora"}, "loop"),
    ],
)
def test_the_path_of_the_loss(fields: dict[str, Any], loss: str) -> None:
    assert regime(**fields).loss == loss


@pytest.mark.parametrize(
    ("model_type", "version", "loss"),
    [
        ("gpt_bigcode", "4.48.2", "in_model"),
        ("gpt_bigcode", "4.48.3", "hf_4_48"),
        ("gpt_neox", "4.45", "in_model"),
        ("gpt_neo", "4.45", "hf_4_48"),  # made fp32 before its loss
        ("gpt_bigcode", "4.49", "hf_4_49"),
    ],
)
def test_modeling_files_that_computed_their_loss(model_type: str, version: str, loss: str) -> None:
    spec = replace(SPEC, model_type=model_type)
    setup = TrainingSetup(model="m", engine="transformers", versions={"transformers": version})
    assert resolve_regime(setup, spec).loss == loss


@pytest.mark.parametrize(
    ("norm", "fields", "stream"),
    [
        ("layernorm", {}, "fp32"),
        ("layernorm", {"quantization_bit": 8}, "fp32"),
        ("layernorm", {"method": "lora"}, "bf16"),  # plain linears cast to the compute dtype and hand that out
        ("layernorm", {"adapter_dtype": "bf16"}, "bf16"),  # nothing is fp32, so there is no autocast
        ("rms", {}, "bf16"),
    ],
)
def test_layer_norm_under_autocast_widens_the_stream_of_packed_models(
    norm: str, fields: dict[str, Any], stream: str
) -> None:
    runs = tuple(replace(run, block=replace(run.block, norm=norm)) for run in SPEC.runs)
    spec = replace(SPEC, runs=runs, model_type="phi")
    asked = {"method": "qlora", "adapter_dtype": "fp32", "kbit_upcast": "none", **fields}
    if asked["method"] == "lora":
        del asked["kbit_upcast"]
    setup = TrainingSetup(model="m", engine="transformers", compute_dtype="bf16", **asked)
    assert resolve_regime(setup, spec).stream == stream


def test_a_trainer_without_bf16_or_fp16_runs_without_autocast() -> None:
    fields: dict[str, Any] = {"method": "lora", "compute_dtype": "bf16"}
    pure, usual = (regime(engine=engine, **fields) for engine in ("transformers-pure", "transformers"))
    assert (pure.autocast, usual.autocast) == (None, "bf16")
    assert pure.adapter == usual.adapter == "fp32"
    assert (pure.loss, pure.reentrant, pure.known_engine) == (usual.loss, usual.reentrant, True)


@pytest.mark.parametrize(
    ("fields", "reentrant"),
    [
        ({}, True),
        ({"parallelism": "fsdp2"}, False),
        ({"engine": "transformers"}, False),
        ({"engine": "transformers", "versions": {"transformers": "4.57"}}, True),
        ({"engine": "torchtune"}, False),
    ],
)
def test_the_kind_of_checkpointing(fields: dict[str, Any], reentrant: bool) -> None:
    assert regime(**fields).reentrant is reentrant


def test_keys_are_repeated_for_sdpa_before_4_48_and_the_answer_does_not_depend_on_what_was_asked_before() -> None:
    old = {"engine": "transformers", "versions": {"transformers": "4.45"}}
    for _ in range(2):
        assert regime(attention="sdpa", **old).repeat_kv
        assert not regime(attention="flash_attention_2", **old).repeat_kv
    assert not regime(attention="sdpa", engine="transformers").repeat_kv


def test_an_unknown_engine_is_known_to_be_unknown() -> None:
    assert not regime(engine="someone-elses").known_engine
    assert regime().known_engine


@pytest.mark.parametrize(
    ("versions", "expected"),
    [({}, (5, 6, 0)), ({"transformers": "4.48"}, (4, 48)), ({"transformers": "4.48.1.dev0"}, (4, 48, 1)),
     ({"transformers": "5"}, (5,))],
)  # fmt: skip
def test_versions(versions: dict[str, str], expected: tuple[int, ...]) -> None:
    assert version_of(TrainingSetup(model="7B", versions=versions), "transformers") == expected


@given(asked=any_setup())
def test_the_cache_returns_what_it_would_compute(asked: tuple[TrainingSetup, str]) -> None:
    """The key names every field that a regime depends on: nothing else of the setup changes the answer."""
    setup, _gpus = asked
    first = resolve_regime(setup, SPEC)
    _resolve.cache_clear()
    assert resolve_regime(setup, SPEC) == first


def test_freeze_widens_only_the_layers_that_train() -> None:
    """LLaMA-Factory casts trainable parameters to fp32; embedding, head and frozen layers stay as loaded."""
    found = regime(method="freeze")
    assert (found.trained, found.frozen, found.embedding, found.head, found.stream) == ("fp32", *["bf16"] * 4)
    parts = Priced(1, method="freeze", freeze_trainable_layers=2).parts
    layer = PSI - 2 * 128256 * 4096 - 4096
    assert parts.trained == 2 * layer // 32
    assert parts.held_bytes == 2 * (PSI - parts.trained) + 4 * parts.trained


@pytest.mark.parametrize(
    "fields",
    [
        {"engine": "transformers", "versions": {"transformers": "4.53"}, "method": "full"},
        {"engine": "trl", "method": "full"},
        {"engine": "trl", "method": "lora"},
    ],
    ids=lambda fields: f"{fields['engine']} {fields['method']}",
)
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_deepspeed_casts_what_was_loaded_in_fp32(fields: dict[str, Any], stage: str) -> None:
    """DeepSpeed's engine calls ``module.bfloat16()``: norms and the residual stream are 16-bit with all the rest."""
    found = regime(parallelism=stage, **fields)
    assert (found.frozen, found.norms, found.embedding, found.stream) == ("bf16",) * 4
    assert regime(**fields).norms == "fp32"


def test_unsloth_hands_trl_a_model_that_is_prepared_already() -> None:
    """Its norms, embedding and head stay 16-bit, where TRL before 1.0 prepared a quantized model in fp32."""
    old = {"engine": "trl", "method": "qlora", "versions": {"trl": "0.24"}}
    assert regime(**old).embedding == "fp32"
    assert regime(**old, unsloth=True).embedding == regime(**old, unsloth=True).stream == "bf16"
