"""Host memory and disk of a node."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.host import HostNeed, checkpoints_kept, host_bytes, pinned
from tests.memory.models import Priced

GIB = 2**30
P = 8_030_261_248  # Llama-3-8B


def need(ranks: int, **fields: Any) -> HostNeed:
    priced = Priced(ranks, **fields)
    return host_bytes(
        priced.setup, priced.regime, priced.units, ranks, min(8, ranks), cost=priced.cost, hidden=priced.spec.hidden
    )


@pytest.mark.parametrize(("asked", "given_out"), [(0, 0), (1, 1), (4096, 4096), (4097, 8192), (9 * GIB, 16 * GIB)])
def test_pinned_blocks_are_powers_of_two(asked: int, given_out: int) -> None:
    assert pinned(asked) == given_out


def test_three_ranks_of_lora_fit_a_desk_with_12_gib() -> None:
    assert 5 * GIB < need(3, method="lora", parallelism="ddp").peak_bytes < 9 * GIB


def test_zero_offload_needs_16_to_18_bytes_a_parameter_and_what_pinning_rounds_up() -> None:
    for parallelism, offload in (("zero2", "optimizer"), ("zero3", "optimizer")):
        with_, without = (need(8, method="full", parallelism=parallelism, offload=o) for o in (offload, "none"))
        assert 16 * P <= with_.steady_bytes - without.steady_bytes <= 22 * P


def test_a_part_just_over_a_power_of_two_pins_twice_as_much() -> None:
    def master_gib(ranks: int) -> float:
        offloaded, plain = (need(ranks, method="full", parallelism="zero2", offload=o) for o in ("optimizer", "none"))
        return (offloaded.steady_bytes - plain.steady_bytes) / min(8, ranks) / (P / ranks)

    assert master_gib(7) > 1.1 * master_gib(8)  # 4 bytes of P/7 pass 4 GiB, of P/8 they do not


def test_fsdp_in_transformers_5_6_fills_the_model_once_per_rank() -> None:
    every = need(8, method="full", parallelism="fsdp", versions={"transformers": "5.6.0"})
    first = need(8, method="full", parallelism="fsdp", versions={"transformers": "5.23.0"})
    assert every.peak_bytes > 8 * 4 * P  # LLaMA-Factory casts trained weights to fp32 on the host
    assert first.peak_bytes < 4 * P + 8 * P + 32 * GIB
    assert "every rank fills a whole copy" in every.notes[0]
    assert "every rank" not in first.notes[0]


def test_zero3_stacks_all_experts_on_every_rank_before_transformers_5_23() -> None:
    job = {"model": "mixtral-8x7b", "method": "lora", "parallelism": "zero3"}
    before, since = (need(8, **job, versions={"transformers": version}) for version in ("5.22.0", "5.23.0"))
    apart = need(8, **job, versions={"transformers": "4.57.3"})
    stored = 2 * 46_702_792_704  # all parameters of Mixtral-8x7B
    assert before.peak_bytes > 8 * stored
    assert since.peak_bytes < stored
    experts = 8 * 3 * 4096 * 14336  # of one layer; gate and up are stacked and then joined on rank 0
    assert 0 <= since.peak_bytes - apart.peak_bytes - 4 * experts * 2 // 3 < GIB
    assert "stacks all experts" in before.notes[0]
    assert "stacks" not in since.notes[0]


def test_full_state_dicts_gather_states_on_the_first_node() -> None:
    fsdp = need(8, method="full", parallelism="fsdp", versions={"transformers": "5.23.0"})
    assert fsdp.peak_bytes - fsdp.steady_bytes >= 8 * P
    zero3 = need(8, method="full", parallelism="zero3")
    assert zero3.peak_bytes - zero3.steady_bytes == 2 * P


def test_paged_states_count_where_they_lie() -> None:
    paged = need(1, method="full", optim="paged_adamw_32bit", param_dtype="bf16")
    plain = need(1, method="full", optim="adamw_torch_fused", param_dtype="bf16")
    assert paged.steady_bytes - plain.steady_bytes == pytest.approx(8 * P, rel=1e-3)


def test_activations_moved_to_the_host_are_pinned_layer_by_layer() -> None:
    moved = need(1, method="lora", activation_offload=True, micro_batch_size=3, seq_len=4096)
    kept = need(1, method="lora", micro_batch_size=3, seq_len=4096)
    assert moved.steady_bytes - kept.steady_bytes == 32 * pinned(3 * 4096 * 4096 * 2)


def test_disk_holds_the_model_checkpoints_with_states_and_the_result() -> None:
    lora = need(1, method="lora")
    assert 2 * 2 * P < lora.disk_bytes < 2 * 2 * P + 2 * GIB
    full = need(1, method="full")
    assert full.disk_bytes == pytest.approx(2 * P + 4 * 12 * P + 4 * P, rel=1e-3)
    nvme = need(8, method="full", parallelism="zero3", offload="nvme")
    plain = need(8, method="full", parallelism="zero3")
    assert nvme.disk_bytes - plain.disk_bytes == pytest.approx(18 * P, rel=1e-3)


def test_a_small_disk_keeps_fewer_checkpoints_and_never_none() -> None:
    full = need(1, method="full")
    assert full.disk.checkpoint_bytes == pytest.approx(12 * P, rel=1e-3)
    assert full.disk_bytes - full.disk.least_bytes == 2 * full.disk.checkpoint_bytes
    kept = [
        checkpoints_kept(full.disk_bytes, full.disk.checkpoint_bytes, free)
        for free in (None, full.disk_bytes, full.disk_bytes - 1, full.disk.least_bytes, 0)
    ]
    assert kept == [3, 3, 2, 1, 1]


@given(
    parallelism=st.sampled_from(["ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp2"]),
    method=st.sampled_from(["full", "lora", "qlora"]),
    ranks=st.integers(2, 16),
)
def test_peaks_cover_steady_needs(parallelism: str, method: str, ranks: int) -> None:
    found = need(ranks, method=method, parallelism=parallelism)
    assert 0 < found.steady_bytes <= found.peak_bytes
    assert found.disk_bytes > 0 and found.notes
