"""Bytes of logits and cross-entropy, path by path.

Sources: transformers loss/loss_utils.py (4.45, 4.48, 5.x), Liger's fused_linear_cross_entropy.py, litgpt, torchtune;
slopes of published peaks over the batch for 4.45 and 4.48. V logits a token, h hidden width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.loss import LossBytes, loss_bytes
from planner.memory.regime import resolve_regime
from planner.training import TrainingSetup
from tests.memory.models import spec_of

SPEC = spec_of("llama-3-8b")
V, H = 128_256, 4096
TOKENS = 2 * 2048


def loss_of(tokens: int = TOKENS, *, head_trained: bool = False, **fields: Any) -> LossBytes:
    setup = TrainingSetup(model="llama-3-8b", **{"micro_batch_size": 2, **fields})
    return loss_bytes(setup, SPEC, resolve_regime(setup, SPEC), tokens, head_trained=head_trained)


def plain(version: str) -> dict[str, Any]:
    return {"engine": "transformers", "versions": {"transformers": version}}


@pytest.mark.parametrize(
    ("fields", "forward", "backward"),
    [
        pytest.param({}, 10, 12, id="transformers 5"),
        pytest.param(plain("4.49"), 10, 12, id="4.49"),
        pytest.param(plain("4.48.3"), 14, 12, id="4.48"),
        pytest.param(plain("4.45.2"), 12, 12, id="4.45"),
        pytest.param({"compute_dtype": "fp32"}, 8, 12, id="fp32 logits"),
        pytest.param({"loss": "fused"}, 8, 8, id="a fused kernel in place"),
        pytest.param({"engine": "torchtitan"}, 10, 12, id="a loop that deletes its prediction before backward"),
        pytest.param({"engine": "pytorch"}, 10, 14, id="a hand-written loop holds 16-bit outputs"),
        pytest.param({"engine": "trl", "versions": {"trl": "0.24"}}, 12, 12, id="TRL's metrics"),
    ],
)
def test_bytes_per_logit(fields: dict[str, Any], forward: int, backward: int) -> None:
    loss = loss_of(**fields)
    assert (loss.forward, loss.backward) == (forward * V * TOKENS, backward * V * TOKENS)
    assert loss.kept == loss.temporary == 0


@pytest.mark.parametrize(("version", "several", "one"), [("4.48.3", 14, 10), ("4.45.2", 12, 8), ("5.6", 10, 10)])
def test_one_sequence_without_its_last_token_is_no_copy(version: str, several: int, one: int) -> None:
    assert loss_of(4096, **plain(version)).forward == several * V * 4096
    assert loss_of(2048, micro_batch_size=1, **plain(version)).forward == one * V * 2048


def test_a_modeling_file_with_its_own_loss_keeps_16_bit_logits() -> None:
    """Two copies and the log-softmax; under autocast the outputs are made fp32 once the forward pass is over."""
    spec = replace(SPEC, model_type="gpt_neox")
    setup = TrainingSetup(model="m", method="full", micro_batch_size=2, **plain("4.48.1"))
    pure, mixed = (resolve_regime(setup.but(param_dtype=dtype), spec) for dtype in ("bf16", "fp32"))
    half, wide = (loss_bytes(setup, spec, each, TOKENS, head_trained=True) for each in (pure, mixed))
    assert (half.forward, half.backward, half.converted) == (6 * V * TOKENS, 6 * V * TOKENS, 0)
    assert (wide.forward, wide.backward, wide.converted) == (10 * V * TOKENS, 10 * V * TOKENS, 12 * V * TOKENS)
    alone = loss_bytes(setup.but(micro_batch_size=1), spec, pure, 2048, head_trained=True)
    assert alone.forward == 4 * V * 2048


def test_trl_projects_in_tiles_whatever_the_vocabulary() -> None:
    """4,096 tokens by 32,768 words at once; the hidden states are copied, their gradients summed in fp32."""
    base = {"engine": "trl", "param_dtype": "bf16"}
    loss, longer = loss_of(**base), loss_of(2 * TOKENS, **base)
    tile = 4096 * 32_768 * 2
    assert loss.forward == tile + TOKENS * H * 2
    assert loss.backward == loss.forward + TOKENS * H * (4 + 2)
    assert longer.forward == tile + 2 * TOKENS * H * 2
    assert loss.head_gradient == 0
    assert loss_of(**base, method="full", head_trained=True).head_gradient == V * H * 4
    assert loss_of(engine="trl").forward - loss.forward == (TOKENS * H * 2) + (TOKENS + 32_768) * H * 2  # fp32 weights


def test_liger_works_on_chunks() -> None:
    """ceil(V / h) = 32 chunks wanted, so 4096 tokens run in chunks of 128; the gradient of the input stays."""
    loss = loss_of(liger_kernel=True)
    assert loss.forward == 2 * (128 * V * 2) + TOKENS * H * 2
    assert loss.backward == TOKENS * H * 2
    assert loss.kept == 0


@given(tokens=st.integers(1, 1 << 20))
def test_liger_chunks_are_powers_of_two_and_no_longer_than_the_batch(tokens: int) -> None:
    loss = loss_of(tokens, liger_kernel=True)
    chunk = (loss.forward - tokens * H * 2) // (2 * V * 2)
    assert chunk <= tokens
    assert chunk == tokens or chunk & (chunk - 1) == 0
    assert chunk * 32 >= tokens


def test_liger_makes_the_gradient_of_a_trained_head_at_once() -> None:
    wide = loss_of(liger_kernel=True, method="full", head_trained=True)
    assert wide.kept == V * H * 4  # LLaMA-Factory's fp32 head
    assert wide.temporary == V * H * 2  # autocast's product of a chunk
    narrow = loss_of(liger_kernel=True, method="full", param_dtype="bf16", head_trained=True)
    assert (narrow.kept, narrow.temporary) == (V * H * 2, 0)


def test_liger_saves_most_of_the_logits() -> None:
    assert loss_of(liger_kernel=True).forward < loss_of().forward / 20


def test_litgpt_keeps_fp32_log_softmaxes_of_all_chunks() -> None:
    loss = loss_of(engine="litgpt")
    assert loss.forward == 8 * TOKENS * V + 6 * (2 * 128) * V


def test_thunders_loop_takes_the_loss_of_16_bit_logits() -> None:
    loss = loss_of(engine="thunder")
    assert (loss.forward, loss.backward) == (4 * TOKENS * V, 8 * TOKENS * V)


def test_torchtune_makes_one_chunk_of_eight_fp32_at_a_time() -> None:
    loss = loss_of(engine="torchtune", loss="chunked")
    assert loss.forward == 2 * TOKENS * V + 6 * (TOKENS // 8) * V


def test_torchtune_before_0_3_held_its_fp32_logits_through_backward() -> None:
    """Pull request 1235 deletes them; its parent's recipes name the shifted copy until the next batch."""
    new, old = (loss_of(engine="torchtune", versions={"torchtune": version}) for version in ("0.3.0", "0.2.1"))
    assert (old.forward, old.backward - new.backward) == (new.forward, 4 * TOKENS * V)
    assert old.head - new.head == 4 * TOKENS * V


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_a_reference_brings_logits_of_its_own(stage: str) -> None:
    assert loss_of(stage=stage).forward > 1.5 * loss_of().forward


def test_preference_without_a_reference_is_cheaper() -> None:
    assert loss_of(stage="orpo").forward < loss_of(stage="dpo").forward


def test_soft_capped_logits_keep_the_output_of_tanh() -> None:
    from planner.model.catalogue import resolve

    spec = resolve("gemma-2-9b")
    assert spec.head_softcap
    setup = TrainingSetup(model="gemma-2-9b", micro_batch_size=2)
    loss = loss_bytes(setup, spec, resolve_regime(setup, spec), TOKENS, head_trained=False)
    assert loss.forward == 12 * spec.vocab * TOKENS
    assert loss.backward == 14 * spec.vocab * TOKENS


@given(tokens=st.integers(1, 1 << 18), extra=st.integers(1, 1 << 12), liger=st.booleans())
def test_more_tokens_never_need_less(tokens: int, extra: int, liger: bool) -> None:
    less, more = (loss_of(n, liger_kernel=liger) for n in (tokens, tokens + extra))
    assert more.forward >= less.forward
    assert more.backward >= less.backward


def test_a_hand_written_loop_holds_its_outputs_through_backward() -> None:
    """fp32 logits of a head that kbit preparation made fp32: 4 bytes of them live beside the layers' backward."""
    fields = {"engine": "pytorch", "method": "qlora", "compute_dtype": "fp16"}
    assert loss_of(**fields, kbit_upcast="all").outputs == 4 * V * TOKENS
    assert loss_of(**fields, kbit_upcast="all").backward == 16 * V * TOKENS
    assert loss_of(**fields, kbit_upcast="none").outputs == 2 * V * TOKENS
    assert loss_of(engine="transformers").outputs == 0
