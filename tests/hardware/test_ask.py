"""The edges: a driver that refuses, control groups of both versions, and what is never imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner.hardware.ask_host import ask_cgroup, ask_chip, ask_host, ask_software
from planner.hardware.ask_nvml import _Asking, ask_nvml
from planner.hardware.observed import machine_from_answer
from planner.hardware.probe import probe, raw_answer
from planner.units import GIB


class RefusedError(Exception):
    """What the binding raises."""


class FakeNvml:
    """As much of pynvml as is asked for; ``broken`` calls refuse."""

    NVMLError = RefusedError
    NVML_NVLINK_MAX_LINKS = 18
    NVML_P2P_CAPS_INDEX_READ, NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 0, 2, 0
    nvmlMemory_v2 = 2  # noqa: N815

    def __init__(self, *broken: str, cards: int = 2) -> None:
        self.broken, self.cards = broken, cards

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvmlDevice") and name in object.__getattribute__(self, "broken"):
            return self._refuse
        return object.__getattribute__(self, name)

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise RefusedError("Not Supported")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return b"550.90.07"

    def nvmlSystemGetCudaDriverVersion(self):  # noqa: N802
        return 12040

    def nvmlDeviceGetCount(self):  # noqa: N802
        return self.cards

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return "NVIDIA GeForce RTX 4090"

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):  # noqa: N802
        return SimpleNamespace(total=24 * GIB, free=20 * GIB, used=3 * GIB, reserved=GIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle):  # noqa: N802
        return (8, 9)

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle):  # noqa: N802
        return 4

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle):  # noqa: N802
        return 8

    def nvmlDeviceGetNvLinkState(self, handle, link):  # noqa: N802
        if link > 3:
            raise RefusedError("Not Supported")
        return 1

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return [SimpleNamespace(pid=7, usedGpuMemory=2 * GIB)]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):  # noqa: N802
        return [SimpleNamespace(pid=7, usedGpuMemory=2 * GIB), SimpleNamespace(pid=9, usedGpuMemory=None)]

    def nvmlSystemGetProcessName(self, pid):  # noqa: N802
        return "/usr/bin/python3.11 train.py"

    def nvmlDeviceGetP2PStatus(self, one, other, capability):  # noqa: N802
        return 0 if capability == 0 else 4


def asked(*broken: str) -> dict[str, Any]:
    answer = _Asking(FakeNvml(*broken)).everything()
    assert json.loads(json.dumps(answer)) == answer
    return answer


def machine_of(nvml: dict[str, Any]) -> Any:
    return machine_from_answer({"nvml": nvml, "host": {}, "environment": {}, "software": {}})


def test_a_whole_answer():
    answer = asked()
    first = answer["gpus"][0]
    assert answer["refused"] == []
    assert answer["driver"] == "550.90.07"
    assert first["total_bytes"] == 24 * GIB
    assert first["compute_capability"] == [8, 9]
    assert first["nvlinks"] == 4
    assert first["mig"] is None
    assert first["processes"] == [
        {"pid": 7, "name": "python3.11", "used_bytes": 2 * GIB},
        {"pid": 9, "name": "python3.11", "used_bytes": None},
    ]
    assert answer["p2p"] == [{"pair": [0, 1], "read": True, "nvlink": False}]
    assert machine_of(answer).links.bytes_per_s == pytest.approx(8 * 1.969e9)


@pytest.mark.parametrize(
    "call",
    [
        "nvmlDeviceGetName",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetP2PStatus",
        "nvmlDeviceGetMaxPcieLinkGeneration",
        "nvmlDeviceGetCurrPcieLinkWidth",
    ],
)
def test_one_refusal_leaves_the_rest_and_no_zero(call):
    answer = asked(call)
    assert any("Not Supported" in line for line in answer["refused"])
    assert 0 not in answer["gpus"][1].values()
    seen = machine_of(answer)
    assert len(seen.gpus) == 2
    assert all(gpu.capacity_bytes > 20 * GIB - 1 for gpu in seen.gpus)
    assert any("the driver refused" in sentence for sentence in seen.warnings)


def test_refused_memory_of_a_name_with_two_sizes_leaves_the_card_out():
    answer = asked("nvmlDeviceGetMemoryInfo")
    assert [gpu["total_bytes"] for gpu in answer["gpus"]] == [None, None]
    seen = machine_of(answer)
    assert seen.gpus == ()
    assert sum("left out" in sentence for sentence in seen.warnings) == 2


def test_a_driver_that_refuses_everything_still_gives_an_answer():
    every = [name for name in dir(FakeNvml) if name.startswith("nvmlDevice")]
    answer = asked(*every)
    assert answer["gpus"] == []
    assert machine_of(answer).gpus == ()


def test_a_host_without_driver_says_why(monkeypatch):
    pynvml = pytest.importorskip("pynvml")

    def absent() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    answer = ask_nvml()
    assert answer["gpus"] == []
    assert "Not Found" in answer["error"]


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_control_groups_version_2_take_the_tightest_level(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/job\n",
            "sys/fs/cgroup/user/job/memory.max": "max\n",
            "sys/fs/cgroup/user/memory.max": f"{12 * GIB}\n",
            "sys/fs/cgroup/user/memory.current": f"{5 * GIB}\n",
            "sys/fs/cgroup/user/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
            "sys/fs/cgroup/user/job/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/user/cpu.max": "max 100000\n",
        },
    )
    assert ask_cgroup(root) == {"memory_limit_bytes": 12 * GIB, "memory_room_bytes": 9 * GIB, "cpu_quota": 2.5}


def test_a_container_of_version_2_sees_its_limit_at_the_top(tmp_path):
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{GIB}\n"})
    assert ask_cgroup(root) == {"memory_limit_bytes": GIB, "memory_room_bytes": None, "cpu_quota": None}


def test_control_groups_version_1(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB}\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert ask_cgroup(root) == {"memory_limit_bytes": 8 * GIB, "memory_room_bytes": 6 * GIB, "cpu_quota": 4.0}


def test_no_limit_is_none_and_not_a_huge_number(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n3:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert ask_cgroup(root) == {"memory_limit_bytes": None, "memory_room_bytes": None, "cpu_quota": None}
    assert ask_cgroup(tmp_path / "nowhere")["memory_limit_bytes"] is None


def test_a_device_tree_names_the_chip(tmp_path):
    root = tree(tmp_path, {"proc/device-tree/compatible": "nvidia,p3768-0000\0nvidia,p3767-0000\0nvidia,tegra234\0"})
    assert ask_chip(root) == ["nvidia,p3768-0000", "nvidia,p3767-0000", "nvidia,tegra234"]
    assert ask_chip(tmp_path / "nowhere") == []


def test_the_host_answers(tmp_path):
    answer = ask_host(tmp_path / "not" / "there" / "yet")
    assert answer["ram_total_bytes"] >= answer["ram_available_bytes"] > 0
    assert answer["disk_free_bytes"] > 0
    assert answer["cpu_affinity"] >= 1


def test_a_probe_of_this_machine_is_a_machine(tmp_path):
    assert json.loads(json.dumps(raw_answer(tmp_path)))["host"]["ram_total_bytes"] > 0
    assert probe(tmp_path).ram_bytes > 0


def test_versions_are_read_without_importing():
    code = (
        "import sys; from planner.hardware.ask_host import ask_software; ask_software();"
        "from planner.hardware.parse import parse_machine; parse_machine('3x20GB');"
        "heavy = {'planner.hardware.catalogue', 'torch', 'transformers', 'pydantic', 'rich', 'pynvml', 'psutil'};"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert isinstance(ask_software(), dict)
