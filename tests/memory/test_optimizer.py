"""Optimizer states and temporaries, against hand counts from the packages' sources and against real optimizers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError, UnsupportedError
from planner.memory.optimizer import OPTIMIZERS, Tensor2D, optimizer_cost, rule_for
from planner.memory.regime import Regime
from planner.training import TrainingSetup
from tests.memory.probes import probe

# transformers 5.6 training_args.py, OptimizerNames (5.23 drops adamw_apex_fused)
TRANSFORMERS_NAMES = """
adamw_torch adamw_torch_fused adamw_torch_xla adamw_torch_npu_fused adamw_apex_fused adafactor adamw_anyprecision
adamw_torch_4bit adamw_torch_8bit ademamix sgd adagrad adamw_bnb_8bit adamw_8bit ademamix_8bit lion_8bit lion_32bit
paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit rmsprop
rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit galore_adamw galore_adamw_8bit galore_adafactor galore_adamw_layerwise
galore_adamw_8bit_layerwise galore_adafactor_layerwise lomo adalomo grokadamw schedule_free_radam schedule_free_adamw
schedule_free_sgd apollo_adamw apollo_adamw_layerwise stable_adamw
""".split()

PURE = Regime(
    frozen="bf16", trained="bf16", gradient="bf16", compute="bf16", autocast=False, norms="bf16", adapter="bf16",
    state="bf16", master=False, loss="hf_4_49", head="bf16", embedding="bf16", reentrant=True, repeat_kv=False,
    stacked_experts=False,
)  # fmt: skip
FP32 = replace(PURE, trained="fp32", gradient="fp32", state="fp32", autocast=True)
ZERO = replace(PURE, state="fp32", master=True)

MATRICES = (Tensor2D(256, 64), Tensor2D(64, 300), Tensor2D(100, 1, kind="vector"), Tensor2D(5000, 1, kind="vector"))
ELEMENTS = 256 * 64 + 64 * 300 + 100 + 5000
DECAYED = 256 * 64 + 64 * 300


def setup(optim: str = "adamw_torch_fused", **fields: object) -> TrainingSetup:
    return TrainingSetup(model="any", method=fields.pop("method", "full"), optim=optim, **fields)  # type: ignore[arg-type]


def test_every_name_of_transformers_is_priced_or_refused_with_a_reason() -> None:
    assert len(TRANSFORMERS_NAMES) == 42
    for name in TRANSFORMERS_NAMES:
        try:
            assert optimizer_cost(setup(name), PURE, MATRICES).state_bytes >= 0
        except UnsupportedError as refusal:
            assert name in ("adamw_torch_xla", "adamw_torch_npu_fused")
            assert "adamw_torch_fused" in refusal.sentence
    assert set(OPTIMIZERS) <= set(TRANSFORMERS_NAMES)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"optim 'adamw_8bits' is not known; did you mean .*adamw_8bit"):
        rule_for("adamw_8bits")


@pytest.mark.parametrize(
    ("optim", "regime", "states", "temporary"),
    [
        ("adamw_torch", PURE, 4 * ELEMENTS, 2 * DECAYED),
        ("adamw_torch", FP32, 8 * ELEMENTS, 4 * DECAYED),
        ("adamw_torch_fused", FP32, 8 * ELEMENTS + 4 * 512, 0),
        ("adamw_apex_fused", PURE, 8 * ELEMENTS, 0),
        ("adamw_anyprecision", PURE, 8 * ELEMENTS, 12 * 64 * 300),
        ("lion_32bit", PURE, 4 * ELEMENTS, 0),
        ("ademamix", PURE, 12 * ELEMENTS, 0),
        ("sgd", PURE, 0, 0),
        ("rmsprop", PURE, 2 * ELEMENTS, 2 * DECAYED),
        ("adagrad", PURE, 2 * ELEMENTS, 4 * DECAYED),
        ("schedule_free_adamw", PURE, 4 * ELEMENTS, 2 * DECAYED),
        ("stable_adamw", PURE, 6 * ELEMENTS, 2 * DECAYED),
        ("stable_adamw", FP32, 8 * ELEMENTS, 4 * DECAYED),
        ("adafactor", PURE, 4 * (256 + 64 + 64 + 300 + 5100), 20 * 64 * 300),
        ("adafactor", FP32, 4 * (256 + 64 + 64 + 300 + 5100), 12 * 64 * 300),
        ("lomo", PURE, 0, 0),
        # 100 elements stay in fp32; the others 2 bytes and two fp32 scales per 256
        ("adamw_8bit", PURE, 2 * (ELEMENTS - 100) + 8 * 100 + 8 * (64 + 75 + 20), 0),
    ],
)
def test_states_and_temporaries_by_hand(optim: str, regime: Regime, states: int, temporary: int) -> None:
    cost = optimizer_cost(setup(optim), regime, MATRICES)
    assert (cost.state_bytes, cost.step_temporary_bytes) == (states, temporary)


def test_eight_bit_adam_keeps_embeddings_in_fp32_as_the_trainer_asks() -> None:
    vocabulary, width = 128_256, 4096
    cost = optimizer_cost(setup("adamw_8bit"), PURE, (Tensor2D(vocabulary, width, kind="embedding"),))
    assert cost.state_bytes == 8 * vocabulary * width
    head = optimizer_cost(setup("adamw_8bit"), PURE, (Tensor2D(vocabulary, width, kind="head"),))
    assert cost.state_bytes - head.state_bytes == pytest.approx(3.1e9, rel=0.02)


def test_paged_states_leave_the_allocator_but_their_scales_and_small_tensors_do_not() -> None:
    tensors = (Tensor2D(1000, 1000), Tensor2D(300, 300))
    cost = optimizer_cost(setup("paged_adamw_8bit"), PURE, tensors)
    assert cost.host_state_bytes == cost.managed_bytes == 2 * 1_000_000
    assert cost.state_bytes == 2 * 4 * 3907 + 2 * (90_000 + 4 * 352)


def test_deepspeed_steps_one_flat_fp32_vector() -> None:
    cost = optimizer_cost(setup("adamw_torch", parallelism="zero2"), ZERO, MATRICES)
    assert (cost.state_bytes, cost.master_bytes) == (8 * ELEMENTS, 4 * ELEMENTS)
    assert cost.step_temporary_bytes == 4 * ELEMENTS
    factored = optimizer_cost(setup("adafactor", parallelism="zero3"), ZERO, MATRICES)
    assert factored.state_bytes == 4 * ELEMENTS  # a vector has no rows and columns to factor
    flat = optimizer_cost(setup("adafactor", parallelism="fsdp"), FP32, MATRICES)
    assert flat.state_bytes == 4 * ELEMENTS


def test_galore_keeps_projected_states_and_one_projector() -> None:
    tall, wide, rank = Tensor2D(512, 128), Tensor2D(128, 512), 16
    embedding = Tensor2D(1000, 128, kind="embedding")
    cost = optimizer_cost(setup("adamw_torch", method="galore", galore_rank=rank), PURE, (tall, wide, embedding))
    projected = 2 * 512 * rank + rank * 128
    assert cost.state_bytes == 2 * (2 * projected + 2 * 1000 * 128)
    svd = 4 * 512 * 128 * 2 + 4 * 128 * (512 + 128)
    assert cost.step_temporary_bytes == max(svd, 2 * 2 * 1000 * 128) + 2 * 512 * 128
    apollo = optimizer_cost(setup("adamw_torch", method="apollo", apollo_rank=rank), PURE, (tall,))
    assert (apollo.state_bytes, apollo.step_temporary_bytes) == (2 * projected, 4 * 512 * 128)


def test_badam_holds_master_states_and_a_fp32_gradient_of_its_block() -> None:
    block = (Tensor2D(64, 64, copies=4),)
    cost = optimizer_cost(setup("adamw_torch", method="badam"), PURE, block)
    elements = 4 * 64 * 64
    assert (cost.master_bytes, cost.state_bytes) == (4 * elements, 8 * elements)
    assert cost.step_temporary_bytes == 4 * elements + 2 * elements


def test_stepping_in_backward_frees_gradients_and_shrinks_the_temporary() -> None:
    whole = optimizer_cost(setup("adamw_torch"), PURE, MATRICES)
    within = optimizer_cost(setup("adamw_torch", optimizer_in_backward=True), PURE, MATRICES)
    assert within.consumes_gradients and not whole.consumes_gradients
    assert within.state_bytes == whole.state_bytes
    assert within.step_temporary_bytes == 2 * 64 * 300


@given(
    optim=st.sampled_from(sorted(OPTIMIZERS)),
    rows=st.integers(1, 3000),
    cols=st.integers(1, 3000),
    copies=st.integers(1, 64),
)
def test_more_tensors_never_cost_less(optim: str, rows: int, cols: int, copies: int) -> None:
    def total(number: int) -> int:
        cost = optimizer_cost(setup(optim), PURE, (Tensor2D(rows, cols, number),))
        return cost.state_bytes + cost.host_state_bytes + cost.step_temporary_bytes

    assert 0 <= total(copies) <= total(copies + 1)


@pytest.mark.engines
@pytest.mark.parametrize(("dtype", "regime"), [("bfloat16", PURE), ("float32", FP32)])
def test_states_and_temporaries_equal_those_of_the_real_optimizers(dtype: str, regime: Regime) -> None:
    looped = ["adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop"]
    kernels = ["adamw_8bit", "lion_8bit", "lion_32bit", "ademamix", "rmsprop_bnb"]
    shapes = [[t.rows, t.cols] if t.kind != "vector" else [t.rows] for t in MATRICES]
    measured = probe("probe_optimizers.py", json.dumps(looped + kernels), json.dumps(shapes), dtype)
    said = {name: optimizer_cost(setup(name), regime, MATRICES) for name in measured}
    assert {name: one["states"] for name, one in measured.items()} == {n: c.state_bytes for n, c in said.items()}
    vectors = 2 * 4 * 5100  # in these tests' small tensors the undecayed vectors count; in a model they do not
    for name in looped:
        assert measured[name]["temporaries"] == pytest.approx(said[name].step_temporary_bytes, rel=0.06, abs=vectors)
