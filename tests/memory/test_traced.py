"""Estimates beside traces of the real training step (transformers 5.23, peft 0.21.2, torch 2.13 on fake tensors).

Every row of tests/data/traced.jsonl is a model of four real layers, or a whole one, in the contract's fields. The
bounds below are what was reached, not what was hoped for.
"""

from __future__ import annotations

import statistics
from collections import defaultdict

import pytest

from planner.memory.estimate import _has_flash
from planner.memory.regime import bytes_of, resolve_regime
from planner.memory.stretches import Stretch, named_cache, names_cache, stretches_of, unchecked_inputs
from tests.memory.traced import Traced, all_rows

MEDIAN_BOUND = 0.0003
ROW_BOUND = 0.005  # of every group that is not named below
LIGER_EXPERTS = (0.015, "Liger's fused experts make gradients of their own, which are not programmed")
BOUNDS = {
    "qlora-int8-autocast": (0.015, "fp32 copies of Falcon's math path beside the inputs that 8-bit products keep"),
    "full-bf16-liger, experts": LIGER_EXPERTS,
    "full-bf16-liger-flce, experts": LIGER_EXPERTS,
    "full-fp32-autocast-liger, experts": LIGER_EXPERTS,
    "full-fp32-autocast-liger-flce, experts": LIGER_EXPERTS,
}


def stated() -> tuple[Traced, ...]:
    return tuple(all_rows().values())


def by_group() -> dict[str, list[Traced]]:
    groups: dict[str, list[Traced]] = defaultdict(list)
    for row in stated():
        groups[row.group].append(row)
    return dict(groups)


GROUPS = by_group()


def test_the_median_row_is_exact() -> None:
    assert len(stated()) >= 400
    assert statistics.median(abs(row.error) for row in stated()) <= MEDIAN_BOUND


def test_nine_rows_of_ten_are_within_a_fifth_of_a_percent() -> None:
    errors = sorted(abs(row.error) for row in stated())
    assert errors[len(errors) * 9 // 10] <= 0.002


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_the_worst_row_of_a_group_is_within_its_bound(group: str) -> None:
    bound, _why = BOUNDS.get(group, (ROW_BOUND, ""))
    missed = {row.name: f"{row.error:+.2%}" for row in GROUPS[group] if abs(row.error) > bound}
    assert not missed


@pytest.mark.parametrize("group", sorted(BOUNDS))
def test_a_wider_bound_is_still_needed(group: str) -> None:
    assert max(abs(row.error) for row in GROUPS[group]) > ROW_BOUND


def test_the_peak_is_in_the_same_phase() -> None:
    """Or in one whose traced peak is as high, within a third of a percent (TIE)."""
    missed = {row.name: (row.row["peak_phase"], row.estimate.peak_phase) for row in stated() if not row.same_phase}
    assert not missed


def test_reserved_memory_is_that_of_the_traced_log() -> None:
    """The same allocator under the estimate's log and the traced one, on one GPU or DDP: what differs is the order.

    Left out are evaluation, whose blocks the estimate's log does not have, and FSDP2, whose streams a trace has not.
    """
    rows = [row for row in stated() if row.setup.parallelism in (None, "ddp") and not row.setup.eval_micro_batch_size]
    errors = sorted(abs(row.estimate.reserved_bytes / row.row["reserved_bytes"] - 1) for row in rows)
    assert len(errors) >= 400
    assert errors[len(errors) // 2] <= 0.012
    assert errors[len(errors) * 9 // 10] <= 0.08
    assert errors[-1] <= 0.25


def test_the_matrix_covers_what_can_be_traced() -> None:
    rows = stated()
    assert len(rows) >= 400 and len({row.model_type for row in rows}) >= 24
    for field, values in {
        "method": {"full", "freeze", "lora", "dora", "qlora"},
        "stage": {"sft", "dpo", "orpo", "simpo"},
        "attention": {"eager", "sdpa", "flash_attention_2"},
        "parallelism": {None, "ddp", "fsdp2"},
        "gradient_checkpointing": {True, False},
        "liger_kernel": {True, False},
        "gradient_accumulation_steps": {1, 2},
    }.items():
        assert {getattr(row.setup, field) for row in rows} >= values, field
    assert len({row.setup.optim for row in rows}) >= 8


def test_parameters_are_counted_to_the_last_one() -> None:
    """Trained and total; peft's "all-linear" leaves GPT-NeoX's head out, which LLaMA-Factory's own search takes in."""
    for row in stated():
        answer = row.estimate
        if row.model_type == "gpt_neox" and row.setup.method == "lora":
            continue
        assert answer.trainable_parameters == row.row["trainable_parameters"], row.name
        adapters = answer.trainable_parameters if row.setup.is_adapter else 0
        assert answer.total_parameters - adapters > 0


def test_states_and_weights_at_the_optimizer_step() -> None:
    """The step's own phase has no activations, so it says whether weights, gradients and states are right."""
    errors = {}
    for row in stated():
        errors[row.name] = row.phase_error("optimizer")
    assert statistics.median(abs(error) for error in errors.values()) <= 2e-4
    missed = {name: f"{error:+.2%}" for name, error in errors.items() if abs(error) > 0.003}
    assert {name for name in missed if not name.partition("-full-")[2].startswith(("sgd", "adafactor"))} == set()


# -- what one layer keeps, without any model around it ----------------------------------------------------------


def second_layer(row: Traced) -> Stretch:
    """The first one with a block below and one above, as the tracer's differences have."""
    from types import SimpleNamespace

    from planner.memory.units import build_parts

    setup, spec = row.setup, row.spec
    regime = resolve_regime(setup, spec)
    parts = build_parts(setup, spec, regime)
    step = SimpleNamespace(setup=setup, spec=spec, regime=regime, parts=parts, has_flash=_has_flash(row.machine))
    stretches = stretches_of(step)  # type: ignore[arg-type]
    return [stretch for stretch in stretches for _ in range(stretch.number)][1]


def with_layers() -> list[Traced]:
    """Rows of four equal layers: the tracer gives the bytes between the starts of the second, third and fourth."""
    return [row for row in stated() if len(set(row.row["block_kept_bytes"])) == 1 and row.setup.parallelism != "fsdp2"]


def test_layers_keep_what_their_traces_keep() -> None:
    """Without checkpointing: saved tensors, and the weight copies of autocast."""
    errors = {}
    for row in with_layers():
        if not row.setup.gradient_checkpointing:
            kept = second_layer(row).curve.kept.at(row.tokens, row.tokens * row.setup.seq_len)
            errors[row.name] = kept / row.row["block_kept_bytes"][0] - 1
    assert len(errors) >= 100
    assert statistics.median(abs(error) for error in errors.values()) <= 1e-4
    missed = {name: f"{error:+.3%}" for name, error in errors.items() if abs(error) > 0.006}
    # gpt-oss runs its experts in fp32; Liger's fused experts keep less
    known = (
        "gpt-oss-20b-4-full-fp32-autocast",
        "mixtral-8x7b-4-full",
    )
    assert not [name for name in missed if not name.startswith(known)], missed


def test_checkpointed_layers_keep_their_input() -> None:
    """And, in forward, autocast's copies and a cache that is named."""
    errors = {}
    for row in with_layers():
        if row.setup.gradient_checkpointing:
            regime, stretch = resolve_regime(row.setup, row.spec), second_layer(row)
            each = bytes_of(regime.stream) * row.spec.hidden + unchecked_inputs(row.setup, stretch.layer, regime)
            each += named_cache(stretch.layer, regime)[0] if names_cache(row.setup, row.spec) else 0
            errors[row.name] = (each * row.tokens + stretch.curve.casts) / row.row["block_kept_bytes"][0] - 1
    assert len(errors) >= 100
    assert statistics.median(abs(error) for error in errors.values()) <= 1e-4
    missed = {name: f"{error:+.3%}" for name, error in errors.items() if abs(error) > 0.01}
    # Falcon multiplies with weight.T, a view, whose copy autocast does not cache
    assert set(missed) <= {"falcon-7b-4-full-fp32-autocast-gc"}, missed
