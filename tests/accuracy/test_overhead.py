"""From allocated bytes to what a card must hold."""

from __future__ import annotations

from typing import Any

import pytest

from planner.hardware.parse import parse_machine
from planner.memory.overhead import (
    Overheads,
    context_bytes,
    margins,
    nccl_bytes,
    overheads,
    rules,
    trust_class,
    workspace_bytes,
)
from planner.model.catalogue import resolve
from planner.training import TrainingSetup
from planner.units import GIB, MIB

LLAMA = resolve("meta-llama/Meta-Llama-3-8B")
SETUP = TrainingSetup(model="meta-llama/Meta-Llama-3-8B")


def ask(gpus: str = "1xA100-80GB", setup: TrainingSetup = SETUP, **changes: Any) -> Overheads:
    sizes = {"allocated_bytes": 20 * GIB, "logits_bytes": 2 * GIB, "window_bytes": 3 * GIB, **changes}
    return overheads(setup, LLAMA, parse_machine(gpus, None), **sizes)


def test_each_meter_adds_to_the_one_before() -> None:
    one = ask()
    assert 20 * GIB < one.reserved_bytes < one.device_bytes
    assert one.device_bytes == one.reserved_bytes + one.context_bytes + one.nccl_bytes
    assert one.required_bytes > 20 * GIB + one.context_bytes


@pytest.mark.parametrize("field", ["allocated_bytes", "logits_bytes", "window_bytes", "gathered_bytes", "apart_bytes"])
def test_more_of_anything_never_needs_less(field: str) -> None:
    sizes = [ask(**{field: size * GIB}) for size in (1, 2, 8, 30)]
    for meter in ("reserved_bytes", "device_bytes", "required_bytes"):
        figures = [getattr(one, meter) for one in sizes]
        assert figures == sorted(figures)


def test_a_process_group_costs_buffers_outside_the_allocator() -> None:
    assert nccl_bytes(1, 1, None) == 0
    assert nccl_bytes(2, 1, True) == 544 * MIB
    assert nccl_bytes(8, 1, True) == 688 * MIB
    assert nccl_bytes(8, 2, True) > nccl_bytes(8, 1, True) > nccl_bytes(8, 1, False)


def test_workspaces_grow_with_hopper() -> None:
    assert workspace_bytes(parse_machine("1xA100-80GB", None)) == 2 * 8_519_680
    assert workspace_bytes(parse_machine("1xH100-80GB", None)) == 2 * 32 * MIB
    assert workspace_bytes(parse_machine("1x20GB", None)) == 2 * 8_519_680


def test_an_unknown_card_gets_the_stated_context() -> None:
    assert context_bytes(None) == rules()["context"]["default_mib"] * MIB
    assert context_bytes("a card of the future") == context_bytes(None)


@pytest.mark.parametrize("name", sorted(rules()["allocated"]))
def test_margins_widen_with_coverage(name: str) -> None:
    pairs = [margins(name, coverage) for coverage in (0.5, 0.9, 0.99, 0.999)]
    assert pairs == sorted(pairs)
    assert all(low >= 0 and high >= 0 for low, high in pairs)
    assert margins(name, 0.99)[1] > 0


def test_less_is_known_of_several_gpus_and_of_other_engines() -> None:
    alone = margins(trust_class(SETUP, LLAMA, 1), 0.99)[1]
    assert margins(trust_class(SETUP.but(parallelism="fsdp"), LLAMA, 2), 0.99)[1] > alone
    assert margins(trust_class(SETUP.but(engine="torchtune"), LLAMA, 1), 0.99)[1] > alone
    assert margins(trust_class(SETUP.but(engine="litgpt"), LLAMA, 1), 0.99)[1] > alone  # fewer runs, no traces


def test_an_engine_without_rules_is_trusted_least() -> None:
    read, unknown = (trust_class(SETUP.but(engine=name), LLAMA, 1) for name in ("torchtune", "an-engine-of-the-future"))
    assert (read, unknown) == ("loop", "foreign")
    assert margins(unknown, 0.99)[1] > 2 * margins(read, 0.99)[1]


def test_what_was_never_measured_gets_a_wider_margin() -> None:
    usual = margins(trust_class(SETUP, LLAMA, 1), 0.99)[1]
    for changes in ({"stage": "dpo"}, {"method": "galore"}, {"torch_compile": True}, {"parallelism": "zero2"}):
        assert margins(trust_class(SETUP.but(**changes), LLAMA, 2), 0.99)[1] > usual
    assert trust_class(SETUP.but(parallelism="ddp"), LLAMA, 2) == trust_class(SETUP, LLAMA, 1)


def test_expandable_segments_keep_less() -> None:
    grown, usual = ask(expandable=True), ask()
    assert grown.reserved_bytes < usual.reserved_bytes
    assert grown.required_bytes < usual.required_bytes


def test_a_lower_coverage_requires_less() -> None:
    assert ask(coverage=0.9).required_bytes < ask(coverage=0.99).required_bytes


def test_a_fused_linear_loss_caches_less_than_materialised_logits() -> None:
    sizes = {"loss_phase_bytes": 20 * GIB, "logits_bytes": 8 * GIB}
    assert ask(setup=SETUP.but(loss="fused"), **sizes).reserved_bytes > ask(setup=SETUP, **sizes).reserved_bytes
    pieces = {"loss_phase_bytes": 13 * GIB, "logits_bytes": GIB}  # it makes the logits piece by piece
    linear = ask(setup=SETUP.but(loss="fused_linear"), **pieces).reserved_bytes
    assert ask(setup=SETUP, **sizes).reserved_bytes >= linear
