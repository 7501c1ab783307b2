"""Raw answers -> Machine: two cards, busy ones, slices, refusals, no driver, containers, CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.hardware.machine import Holder, Machine
from planner.hardware.observed import machine_from_answer
from planner.units import GIB, MIB

ANSWERS = Path(__file__).parent / "answers"


def answer(name: str, **environment: str) -> dict[str, Any]:
    raw = json.loads((ANSWERS / f"{name}.json").read_text(encoding="utf-8"))
    return {**raw, "environment": environment}


def machine(name: str, **environment: str) -> Machine:
    return machine_from_answer(answer(name, **environment))


def test_two_quiet_cards():
    seen = machine("two_gpus")
    assert seen.source == "probe"
    assert [gpu.kind.id for gpu in seen.gpus] == ["rtx-4090-24gb"] * 2
    assert [gpu.capacity_bytes for gpu in seen.gpus] == [24110 * MIB] * 2
    assert seen.gpus[0].total_bytes == 24564 * MIB
    assert seen.gpus[0].compute_capability == (8, 9)
    assert seen.links.nvlink is False
    assert seen.links.p2p is False
    assert seen.links.bytes_per_s == pytest.approx(31.5e9, rel=0.01)
    assert seen.driver == "550.90.07"
    assert seen.cpu_cores == 32
    assert seen.ram_bytes == 135_000_000_000
    assert seen.software["torch"] == "2.6.0"
    assert seen.warnings == ()


def test_nvlink_between_every_pair():
    seen = machine("nvlink")
    assert seen.links.nvlink is True
    assert seen.links.p2p is True
    assert seen.links.bytes_per_s == 450e9


def test_what_holds_memory_is_named_and_capacity_is_what_is_free():
    seen = machine("busy")
    assert seen.gpus[0].capacity_bytes == 9000 * MIB
    assert seen.gpus[0].holders[0] == Holder(pid=4242, name="python", used_bytes=12000 * MIB)
    first, second = seen.warnings
    assert "gpu 0" in first
    assert "python (4242) 11.7 GiB" in first
    assert "Xorg (977) 0.3 GiB" in first
    assert "2.7 GiB by what is not visible from here" in first
    assert "process (5151)" in second
    assert seen.links.nvlink is None
    assert seen.links.p2p is None


def test_one_slice_is_planned_for_and_the_rest_named():
    seen = machine("mig")
    (gpu,) = seen.gpus
    assert gpu.mig
    assert gpu.kind is not None
    assert gpu.kind.id == "a100-sxm4-80gb:3g.40gb"
    assert gpu.name == "NVIDIA A100-SXM4-80GB MIG 3g.40gb"
    assert gpu.capacity_bytes == 40155 * MIB
    assert gpu.compute_capability == (8, 0)
    assert any("2 other devices are left out" in sentence for sentence in seen.warnings)
    assert "the driver refused gpu 0 processes: Insufficient Permissions" in seen.warnings


@pytest.mark.parametrize(
    ("chosen", "uuid"),
    [
        ("MIG-5e1f0001", "MIG-5e1f0001-1111-2222-3333-444444444444"),
        ("0", "MIG-5e1f0000-1111-2222-3333-444444444444"),
        ("1", "GPU-a100a100-1111-0000-0000-000000000000"),
        ("GPU-a100a100-1111", "GPU-a100a100-1111-0000-0000-000000000000"),
        ("GPU-a100a100-0000", "MIG-5e1f0000-1111-2222-3333-444444444444"),
        ("MIG-GPU-a100a100-0000-0000-0000-000000000000/2/0", "MIG-5e1f0001-1111-2222-3333-444444444444"),
    ],
)
def test_slices_and_cards_are_chosen_by_name(chosen, uuid):
    assert [gpu.uuid for gpu in machine("mig", CUDA_VISIBLE_DEVICES=chosen).gpus] == [uuid]


def test_refused_readings_are_unknown_and_never_zero():
    seen = machine("refused")
    first, second = seen.gpus
    assert first.name == "NVIDIA GeForce RTX 4080"
    assert first.total_bytes is None
    assert first.free_bytes is None
    assert first.capacity_bytes == 16049 * MIB  # what CUDA offers of the only size that the name is sold in
    assert first.compute_capability == (8, 9)
    assert second.total_bytes == 24564 * MIB
    assert second.capacity_bytes == 24207 * MIB
    assert [gpu.index for gpu in seen.gpus] == [0, 2]
    text = "\n".join(seen.warnings)
    assert "gpu 1 (NVIDIA GeForce RTX 3080) is left out" in text
    assert "planned as if all 15.7 GiB were free" in text
    assert "the driver refused gpu 0 memory: Not Supported" in text
    assert seen.links.nvlink is None
    assert seen.links.bytes_per_s is None


def test_no_driver_is_a_machine_without_gpus_and_a_warning():
    seen = machine("no_driver")
    assert seen.gpus == ()
    assert seen.driver is None
    assert seen.ram_bytes == 135_000_000_000
    assert "no NVIDIA driver answered (NVML Shared Library Not Found)" in seen.warnings[0]


def test_a_container_has_the_memory_and_cores_that_it_may_use():
    seen = machine("container")
    assert seen.ram_bytes == 32 * GIB
    assert seen.ram_free_bytes == 30 * GIB
    assert seen.cpu_cores == 7
    assert seen.disk_free_bytes is None
    assert any("torch 2.6.0+cpu is a build without CUDA" in sentence for sentence in seen.warnings)


def test_an_unknown_card_keeps_what_was_measured():
    (gpu,) = machine("unknown_card").gpus
    assert gpu.kind is None
    assert gpu.capacity_bytes == 49000 * MIB
    assert gpu.compute_capability == (13, 0)
    assert gpu.has_bf16 is True


@pytest.mark.parametrize(
    ("chosen", "uuids"),
    [
        ("1", ["GPU-00000001"]),
        ("1,0", ["GPU-00000001", "GPU-00000000"]),
        ("GPU-00000001", ["GPU-00000001"]),
        ("0,7,1", ["GPU-00000000"]),
        ("GPU-0000000", []),
        ("0,0", []),
        ("-1", []),
        ("", []),
        ("nonsense", []),
    ],
)
def test_visible_devices_follow_cuda(chosen, uuids):
    seen = machine("two_gpus", CUDA_VISIBLE_DEVICES=chosen)
    assert [gpu.uuid[:12] for gpu in seen.gpus] == uuids
    assert [gpu.index for gpu in seen.gpus] == [int(uuid[-1]) for uuid in uuids]
    if len(uuids) != len(chosen.split(",")):
        assert any("CUDA_VISIBLE_DEVICES" in sentence for sentence in seen.warnings)


def test_indices_of_different_cards_need_the_bus_order():
    raw = answer("two_gpus", CUDA_VISIBLE_DEVICES="0")
    raw["nvml"]["gpus"][1]["name"] = "NVIDIA GeForce RTX 3090"
    assert any("CUDA_DEVICE_ORDER=PCI_BUS_ID" in sentence for sentence in machine_from_answer(raw).warnings)
    raw["environment"]["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    assert machine_from_answer(raw).warnings == ()


def test_a_cut_card_without_slices_is_no_device():
    raw = answer("mig")
    raw["nvml"]["gpus"] = raw["nvml"]["gpus"][:1]
    raw["nvml"]["gpus"][0]["mig"]["slices"] = []
    seen = machine_from_answer(raw)
    assert seen.gpus == ()
    assert "gpu 0 is in MIG mode without a slice" in seen.warnings[0]


@pytest.mark.parametrize(
    ("name", "row", "capability"),
    [
        ("jetson_orin", "jetson-orin-nx-16gb", (8, 7)),
        ("jetson_thor", "jetson-t5000-128gb", (11, 0)),
        ("jetson_without_nvml", "jetson-agx-orin-64gb", (8, 7)),
    ],
)
def test_a_jetson_has_what_is_free_of_the_hosts_memory(name, row, capability):
    seen = machine(name)
    (gpu,) = seen.gpus
    host = answer(name)["host"]
    assert gpu.kind.id == row
    assert gpu.compute_capability == capability
    assert (gpu.total_bytes, gpu.free_bytes) == (host["ram_total_bytes"], host["ram_available_bytes"])
    assert gpu.capacity_bytes == seen.host_room_bytes == host["ram_available_bytes"]
    assert seen.unified
    assert gpu.has_bf16


def test_a_jetson_without_nvml_says_how_it_was_known():
    (sentence,) = machine("jetson_without_nvml").warnings
    assert "no NVIDIA driver answered (NVML Shared Library Not Found)" in sentence
    assert "the device tree says that the GPU is Orin (nvgpu)" in sentence


def test_a_container_on_a_jetson_has_its_limit_and_is_known_by_the_board():
    raw = answer("jetson_orin")
    raw["host"]["cgroup"] = {"memory_limit_bytes": 6 * GIB, "memory_room_bytes": 5 * GIB, "cpu_quota": None}
    (gpu,) = machine_from_answer(raw).gpus
    assert gpu.kind.id == "jetson-orin-nx-16gb"
    assert (gpu.total_bytes, gpu.capacity_bytes) == (6 * GIB, 5 * GIB)


def test_an_integrated_gpu_that_nobody_knows_stays_unknown():
    raw = answer("jetson_orin")
    raw["nvml"]["gpus"][0]["name"] = "Xavier (nvgpu)"
    seen = machine_from_answer(raw)
    assert seen.gpus == ()
    assert any("(Xavier (nvgpu)) is left out" in sentence for sentence in seen.warnings)
    raw = answer("jetson_without_nvml")
    raw["host"]["compatible"] = ["nvidia,p2888-0001", "nvidia,tegra194"]
    assert machine_from_answer(raw).gpus == ()
    del raw["host"]["compatible"]  # a raw answer of an older version
    assert machine_from_answer(raw).gpus == ()
