"""Host memory and disk as limits of the search: a plan that would not load, or not be saved, is not chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planner.emit.folder import plan_files
from planner.hardware.machine import Machine
from planner.hardware.parse import parse_machine
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request
from planner.plan.serialize import plan_to_dict
from planner.units import GIB


def plan(gpus: str, model: str, *, ram: str | None = None, **fields: Any) -> Plan:
    return plan_on(parse_machine(gpus, ram), model, **fields)


def plan_on(machine: Machine, model: str, **fields: Any) -> Plan:
    return make_plan(Request(model=model, **fields), resolve(model), machine)


def with_disk(gpus: str, gib: float) -> Machine:
    return replace(parse_machine(gpus, "512GB"), disk_free_bytes=int(gib * GIB))


def test_with_12_gb_of_ram_no_plan_loads_copies_on_the_host() -> None:
    """transformers 5.6 fills a whole copy a rank under FSDP: 3 x 15 GB. DDP maps the files, tensor by tensor."""
    free = plan("3x20GB", "7B", ram="12GB")
    assert free.chosen is not None
    assert free.chosen.estimate.host_bytes < 12 * GIB
    forced = plan("3x20GB", "7B", ram="12GB", method="lora", pinned={"parallelism": "fsdp"})
    assert forced.verdict == "does_not_fit"
    assert any("of host memory a node, and there are 12.0 GiB" in reason for reason in forced.reasons)
    assert forced.remedies[0].startswith("host memory of at least")


def test_free_memory_counts_where_it_was_read_and_is_said() -> None:
    machine = replace(parse_machine("3x20GB", "64GB"), ram_free_bytes=4 * GIB)
    answer = plan_on(machine, "7B")
    assert answer.verdict == "does_not_fit"
    assert any("4.0 GiB of 64.0 GiB are free" in reason for reason in answer.reasons)
    assert plan_on(replace(machine, ram_free_bytes=40 * GIB), "7B").verdict == "fits"


def test_a_small_disk_keeps_fewer_checkpoints_in_the_emitted_files_too() -> None:
    roomy, tight = (plan_on(with_disk("8xA100-80GB", gib), "7B", method="full") for gib in (2000, 250))
    assert roomy.chosen is not None and tight.chosen is not None
    assert roomy.chosen.setup == tight.chosen.setup
    assert not any("save_total_limit" in warning for warning in roomy.warnings)
    assert any("save_total_limit is 1" in warning for warning in tight.warnings)
    assert "save_total_limit: 3\n" in plan_files(roomy)["train.yaml"]
    assert "save_total_limit: 1\n" in plan_files(tight)["train.yaml"]


def test_a_disk_too_small_for_one_checkpoint_moves_the_choice_on() -> None:
    answer = plan_on(with_disk("8xA100-80GB", 60), "7B")
    assert answer.chosen is not None
    assert answer.chosen.method_class == "lora"
    assert any("of disk a node with one checkpoint kept, and 60.0 GiB are free" in each for each in answer.reasons)
    nowhere = plan_on(with_disk("8xA100-80GB", 1), "7B")
    assert nowhere.chosen is None
    assert nowhere.remedies[0].startswith("free disk of at least")


def test_an_unknown_host_that_must_be_huge_is_a_warning() -> None:
    answer = plan("8xH100-80GB", "Qwen3-235B-A22B")
    assert answer.chosen is not None
    assert any("say --ram" in warning and "of host memory" in warning for warning in answer.warnings)
    known = plan("8xH100-80GB", "Qwen3-235B-A22B", ram="2TB")
    assert known.chosen is None
    assert any("--versions transformers=4.57.3" in remedy for remedy in known.remedies)
    earlier = plan("8xH100-80GB", "Qwen3-235B-A22B", ram="2TB", pinned={"versions": {"transformers": "4.57.3"}})
    assert earlier.verdict == "fits"


def test_an_uncertain_plan_says_what_would_be_certain() -> None:
    answer = plan("2x8xH100-80GB", "Qwen2.5-72B", method="full")
    assert answer.verdict == "uncertain"
    assert any(remedy.startswith("24 of these GPUs would do") for remedy in answer.remedies)
    assert any("optimizer states in host memory" in remedy for remedy in answer.remedies)
    assert plan_to_dict(answer)["remedies"] == list(answer.remedies)
    offload = next(rung for rung in answer.ladder if rung.id == "offload-optimizer")
    assert offload.reason.startswith("not chosen unasked: host memory is unknown")


def test_a_plan_that_leaves_less_than_a_desktop_takes_says_so() -> None:
    tight = plan("1x8GB", "8B", method="qlora")
    assert any("no free memory was read" in warning for warning in tight.warnings)
    read = parse_machine("1x8GB")
    read = replace(read, gpus=tuple(replace(gpu, free_bytes=gpu.capacity_bytes) for gpu in read.gpus))
    assert not any("no free memory was read" in warning for warning in plan_on(read, "8B", method="qlora").warnings)
