"""Estimates beside traces of the real training step (transformers 5.23, peft 0.21.2, torch 2.13 on fake tensors).

Every row of tests/data/traced.jsonl is a model of two or four real layers. Traces count allocated bytes exactly and
contain no cuBLAS workspaces, which are taken off. The bounds below are what was reached, not what was hoped for.
"""

from __future__ import annotations

import statistics
from collections import defaultdict

import pytest

from planner.memory.curves import BlockCurve
from planner.memory.regime import bytes_of, resolve_regime
from planner.memory.stretches import stretches_of
from tests.memory.traced import WORKSPACE_BYTES, Traced, all_rows, stated

MEDIAN_BOUND = 0.0003
ROW_BOUND = 0.005  # of every group that is not named below
LIGER_EXPERTS = (0.015, "Liger's fused experts make gradients of their own, which are not programmed")
BOUNDS = {
    "full-adafactor": (0.02, "the update of the tensor before is priced beside the next one's; the trace has one"),
    "full-fp32": (0.007, "the S x S math path of fp32 attention"),
    "full-fp32-autocast": (0.006, "Phi-2's window under checkpointing"),
    "full-bf16-liger, experts": LIGER_EXPERTS,
    "full-bf16-liger-flce, experts": LIGER_EXPERTS,
    "full-fp32-autocast-liger, experts": LIGER_EXPERTS,
    "full-fp32-autocast-liger-flce, experts": LIGER_EXPERTS,
}
UNSTATED = {
    "transformers has no name for AdamW's for-loop",
    'peft 0.21 reaches stacked experts with "all-linear"; LLaMA-Factory\'s peft 0.18 does not',
}


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


def test_what_the_contract_cannot_state_is_listed() -> None:
    assert {row.unstated for row in all_rows().values()} - {None} <= UNSTATED
    assert sum(row.unstated is not None for row in all_rows().values()) < len(all_rows()) / 10


def test_parameters_are_counted_to_the_last_one() -> None:
    """Trained and total; peft's "all-linear" leaves GPT-NeoX's head out, which LLaMA-Factory's own search takes in."""
    for row in stated():
        answer = row.estimate
        if row.model_type == "gpt_neox" and row.asked["method"] == "lora":
            continue
        assert answer.trainable_parameters == row.row["trainable_parameters"], row.name
        adapters = answer.trainable_parameters if row.asked.get("method", "full") != "full" else 0
        assert answer.total_parameters - adapters > 0


def test_states_and_weights_at_the_optimizer_step() -> None:
    """The step's own phase has no activations, so it says whether weights, gradients and states are right."""
    errors = {}
    for row in stated():
        traced = max(bytes_ for phase, bytes_ in row.row["phase_peak_bytes"].items() if phase.startswith("optimizer"))
        errors[row.name] = (row.estimate.phases["optimizer"].total - WORKSPACE_BYTES) / traced - 1
    assert statistics.median(abs(error) for error in errors.values()) <= 2e-4
    missed = {name: f"{error:+.2%}" for name, error in errors.items() if abs(error) > 0.003}
    assert {name for name in missed if not name.partition("-full-")[2].startswith(("sgd", "adafactor"))} == set()


# -- what one layer keeps, without any model around it ----------------------------------------------------------


def last_layer(row: Traced) -> BlockCurve:
    from types import SimpleNamespace

    from planner.memory.units import build_parts

    setup, spec = row.setup, row.spec
    regime = resolve_regime(setup, spec)
    parts = build_parts(setup, spec, regime)
    step = SimpleNamespace(setup=setup, spec=spec, regime=regime, parts=parts, has_flash=True)
    return stretches_of(step)[-1].curve  # type: ignore[arg-type]


def with_layers() -> list[Traced]:
    """Rows of four equal layers: the tracer gives the bytes between the starts of the second, third and fourth."""
    return [row for row in stated() if len(set(row.row["block_kept_bytes"])) == 1]


def test_layers_keep_what_their_traces_keep() -> None:
    """Without checkpointing: saved tensors, and the weight copies of autocast."""
    errors = {}
    for row in with_layers():
        if not row.asked.get("gradient_checkpointing", False):
            kept = last_layer(row).kept.at(row.tokens, row.tokens * row.asked.get("seq_len", 2048))
            errors[row.name] = kept / row.row["block_kept_bytes"][0] - 1
    assert len(errors) >= 100
    assert statistics.median(abs(error) for error in errors.values()) <= 1e-4
    missed = {name: f"{error:+.3%}" for name, error in errors.items() if abs(error) > 0.006}
    # gpt-oss runs its experts in fp32; Liger's fused experts keep less; fp32 attention takes the S x S path
    known = ("gpt-oss-20b-4-full-fp32-autocast", "mixtral-8x7b-4-full", "llama3-8b-4-full-fp32")
    assert not [name for name in missed if not name.startswith(known)], missed


def test_checkpointed_layers_keep_their_input() -> None:
    """And, in forward, autocast's copies."""
    errors = {}
    for row in with_layers():
        if row.asked.get("gradient_checkpointing", False):
            stream = bytes_of(resolve_regime(row.setup, row.spec).stream) * row.spec.hidden * row.tokens
            errors[row.name] = (stream + last_layer(row).casts) / row.row["block_kept_bytes"][0] - 1
    assert len(errors) >= 100
    assert statistics.median(abs(error) for error in errors.values()) <= 1e-4
    missed = {name: f"{error:+.3%}" for name, error in errors.items() if abs(error) > 0.01}
    # Falcon multiplies with weight.T, a view, whose copy autocast does not cache
    assert set(missed) <= {"falcon-7b-4-full-fp32-autocast-gc"}, missed
