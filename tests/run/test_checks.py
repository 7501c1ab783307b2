"""What the preflight says of made-up surroundings: each check passed, warned and failed, with its remedy."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.hardware.machine import Links, Machine
from planner.hardware.observed import machine_from_answer
from planner.memory.host import DiskNeed
from planner.run.checks.disk import checkpoint_bytes
from planner.run.checks.needs import packages_of, setting
from planner.run.checks.records import (
    DataFacts,
    HostFacts,
    Limit,
    ModelFacts,
    Need,
    OutputFacts,
    Package,
    PythonFacts,
    Surroundings,
    TorchFacts,
    Unmet,
    Volume,
)
from planner.run.checks.software import numbers
from planner.run.preflight import judged
from planner.run.records import Check
from planner.training import TrainingSetup
from planner.units import GIB, MIB
from tests.emit.plans import ESTIMATE

ANSWERS = Path(__file__).resolve().parents[1] / "hardware" / "answers"
SETUP = TrainingSetup(model="Qwen/Qwen2.5-7B", method="qlora", parallelism="ddp", compute_dtype="bf16")


def answered(name: str) -> Machine:
    return machine_from_answer(json.loads((ANSWERS / f"{name}.json").read_text()))


TWO, BUSY, NVLINK, NOBODY = (answered(name) for name in ("two_gpus", "busy", "nvlink", "no_driver"))
TORCH = TorchFacts(
    version="2.13.0+cu126", cuda="12.6", available=True, count=2, architectures=("sm_80", "sm_90", "compute_90")
)
PYTHON = PythonFacts(
    path="/opt/lf/bin/python",
    version="3.11.2",
    packages={"torch": "2.13.0+cu126", "transformers": "5.6.0", "bitsandbytes": "0.49.0", "llamafactory": "0.9.5"},
    torch=TORCH,
)
BNB = Package(name="bitsandbytes", module="bitsandbytes", why="quantization_bit 4", least="0.43.0")
NEED = Need(
    engine="llamafactory",
    setup=SETUP,
    estimate=ESTIMATE,
    planned=TWO,
    disk=DiskNeed(model_bytes=15 * GIB, checkpoint_bytes=GIB, weights_bytes=GIB // 4, swapped_bytes=0),
    ranks=2,
    devices=("0", "1"),
    loader_workers=4,
    preprocessing_workers=16,
    batch_bytes=MIB,
    limit=3,
    model_names=(("model", "Qwen/Qwen2.5-7B"),),
    packages=(BNB,),
    versions={"llamafactory": "0.9.5", "transformers": "5.6.0", "torch": "2.13.0"},
    engine_package="llamafactory",
    port=29500,
    counted_link_bytes_per_s=10e9,
)
WHOLE = ModelFacts(role="model", name="Qwen/Qwen2.5-7B", folder="/models/qwen", is_local=True)
AWAY = ModelFacts(role="model", name="Qwen/Qwen2.5-7B", hub="huggingface.co", reach="reachable")
HERE = Surroundings(
    machine=TWO,
    program="/opt/lf/bin/llamafactory-cli",
    python=PYTHON,
    output=OutputFacts(shown="output"),
    host=HostFacts(
        swap_free_bytes=0,
        shared=Volume(path="/dev/shm", device=1, total_bytes=60 * GIB, free_bytes=60 * GIB),
        open_files=Limit(soft=1024, hard=524288),
        locked_bytes=Limit(soft=8 * MIB, hard=8 * MIB),
        processes=Limit(soft=4096, hard=4096),
        tasks=400,
        tasks_left=30000,
    ),
    cuda=(12, 4),
    link_bytes_per_s=10e9,
    output_volume=Volume(path="output", device=7, total_bytes=900 * GIB, free_bytes=800 * GIB),
    cache_volume=Volume(path="/home/me/.cache", device=8, total_bytes=90 * GIB, free_bytes=80 * GIB),
    models=(WHOLE,),
    data=(DataFacts(name="train", path="/data/train.jsonl"),),
)


def changed(record: Any, changes: dict[str, Any]) -> Any:
    """A copy; ``host__shared`` changes the field ``shared`` of the field ``host``."""
    for path, value in changes.items():
        outer, _, inner = path.partition("__")
        record = replace(record, **{outer: changed(getattr(record, outer), {inner: value}) if inner else value})
    return record


def checks(**changes: Any) -> dict[str, Check]:
    """The checks by name, with some fields of the need or of the surroundings changed."""
    own = {each.name for each in fields(Need)}
    need = {path: value for path, value in changes.items() if path.partition("__")[0] in own}
    here = {path: value for path, value in changes.items() if path not in need}
    found = judged(changed(NEED, need), changed(HERE, here))
    assert all(check.remedy for check in found if check.status == "failed")
    assert not any("\n" in check.sentence + check.remedy for check in found)
    return {check.name: check for check in found}


def test_all_passes_and_says_what_was_found() -> None:
    found = checks()
    assert {check.status for check in found.values()} == {"passed"}
    assert found["gpu 0"].sentence == "23.5 GiB free, 15.0 GiB required"
    assert (
        found["packages"].sentence == "torch 2.13.0+cu126, transformers 5.6.0, llamafactory 0.9.5, bitsandbytes 0.49.0"
    )
    assert found["disk"].sentence == "800.0 GiB free, checkpoints take 4.2 GiB"
    assert {"engine", "torch", "GPUs", "precision", "links", "host memory", "shared memory", "open files", "processes",
            "model", "data", "output", "port"} <= set(found)  # fmt: skip


def shm(total: int, free: int | None = None) -> Volume:
    return Volume(path="/dev/shm", device=1, total_bytes=total, free_bytes=total if free is None else free)


def room(free: int, device: int = 7) -> Volume:
    return Volume(path="there", device=device, total_bytes=900 * GIB, free_bytes=free)


FA2 = SETUP.but(attention="flash_attention_2")
OLD_CARDS = replace(
    TWO, gpus=tuple(replace(g, kind=None, compute_capability=(7, 5), name="Tesla T4") for g in TWO.gpus)
)
UNKNOWN_FREE = replace(TWO, gpus=tuple(replace(gpu, free_bytes=None) for gpu in TWO.gpus))
TIGHT = replace(TWO, gpus=tuple(replace(gpu, free_bytes=14 * GIB) for gpu in TWO.gpus))
IDLE = tuple(replace(gpu, index=gpu.index + 2) for gpu in TWO.gpus)
THREE_NODES = replace(TWO, nodes=3)
FEW_BYTES = 9_637_888 * 4
UNLIMITED = Limit(soft=None, hard=None)

CASES: list[tuple[dict[str, Any], str, str, str]] = [
    # ---- GPUs
    ({"machine": NOBODY}, "GPUs", "failed", "no NVIDIA driver answers here, and the plan is for 2 GPUs"),
    ({"machine": replace(TWO, gpus=TWO.gpus[:1])}, "GPUs", "failed", "the plan takes GPU 0, 1, and of these 1 GPU"),
    ({"machine": replace(TWO, gpus=TWO.gpus[:1]), "visible": "1"}, "GPUs", "failed", "leaves 1 GPU, and 2 processes"),
    ({"ranks": 1, "visible": "0,1"}, "GPUs", "failed", "shows 2 GPUs to a run on one"),
    ({"planned": NVLINK}, "GPUs", "warned", "that the figures are for"),
    ({"visible": "1,0"}, "GPUs", "passed", "(CUDA_VISIBLE_DEVICES=1,0)"),
    ({"on_cpu": True, "machine": NOBODY}, "GPUs", "passed", "on the CPU"),
    ({"on_cpu": True, "setup": SETUP.but(liger_kernel=True)}, "kernels", "warned", "Liger"),
    ({"vendor": "amd", "machine": NOBODY}, "GPUs", "warned", "amd cards are not asked"),
    ({"machine": BUSY}, "gpu 0", "failed", "8.8 GiB free, 15.0 GiB required; 15.2 GiB held by python (4242) 11.7 GiB"),
    ({"machine": BUSY}, "gpu 0", "failed", "end what holds it (process 4242, 977)"),
    ({"machine": BUSY, "others": IDLE}, "gpu 0", "failed", "CUDA_VISIBLE_DEVICES=1,2"),
    ({"machine": BUSY, "others": IDLE, "visible": "0,1"}, "gpu 0", "failed", "process 4242, 977"),
    ({"machine": BUSY}, "gpu 1", "passed", "19.5 GiB free"),
    ({"machine": TIGHT}, "gpu 1", "warned", "it may run out"),
    ({"machine": UNKNOWN_FREE}, "gpu 1", "warned", "does not tell how much is free"),
    ({"machine": OLD_CARDS}, "precision", "failed", "GPU 0 (Tesla T4, compute capability 7.5) has no bf16"),
    ({"machine": OLD_CARDS, "setup": FA2}, "attention", "failed", "too old for FlashAttention 2"),
    ({"link_bytes_per_s": 300e9}, "links", "passed", "no peer-to-peer"),
    ({"links_off": ("NCCL_P2P_DISABLE=1",)}, "links", "warned", "keeps NCCL off"),
    ({"machine": replace(TWO, links=Links(nvlink=True, p2p=True))}, "links", "passed", "NVLink"),
    # ---- host
    ({"machine": replace(TWO, ram_bytes=4 * GIB, ram_free_bytes=4 * GIB)}, "host memory", "failed", "machine has 4"),
    ({"machine": replace(TWO, ram_bytes=4 * GIB, ram_free_bytes=GIB), "host__in_container": True}, "host memory",
     "failed", "raise the container's memory limit"),
    ({"machine": replace(TWO, ram_bytes=32 * GIB, ram_free_bytes=5 * GIB)}, "host memory", "failed", "5.0 GiB of 32.0"),
    ({"machine": replace(TWO, ram_bytes=32 * GIB, ram_free_bytes=5 * GIB), "host__swap_free_bytes": 8 * GIB},
     "host memory", "warned", "swap"),
    ({"machine": replace(TWO, ram_bytes=None, ram_free_bytes=None)}, "host memory", "warned", "not known"),
    ({"host__shared": shm(64 * MIB)}, "shared memory", "warned", "NCCL advises 1 GiB"),
    ({"host__shared": shm(64 * MIB), "ranks": 4}, "shared memory", "failed", "0.1 GiB are needed"),
    ({"host__shared": shm(8 * GIB, FEW_BYTES)}, "shared memory", "failed", "--shm-size=1g"),
    ({"host__shared": shm(64 * MIB), "on_cpu": True}, "shared memory", "passed", "64 MiB"),
    ({"host__open_files": Limit(soft=128, hard=128)}, "open files", "failed", "raise the hard limit"),
    ({"host__open_files": Limit(soft=512, hard=4096)}, "open files", "warned", "ulimit -n 4096"),
    ({"host__open_files": UNLIMITED}, "open files", "passed", "any number"),
    ({"setup": SETUP.but(parallelism="zero3", offload="nvme")}, "locked memory", "warned", "8 MiB may be locked"),
    ({"planned": THREE_NODES, "host__locked_bytes": UNLIMITED}, "locked memory", "passed", "unlimited"),
    ({"host__tasks": 4090}, "processes", "failed", "6 more may start; the run has 26"),
    ({"host__tasks_left": 100}, "processes", "warned", "192 threads"),
    ({"host__tasks": None, "host__processes": Limit(soft=1, hard=1)}, "processes", "passed", "30000 more"),
    # ---- disk
    ({"output_volume": room(4 * GIB)}, "disk", "failed", "4.0 GiB free, checkpoints take 4.2 GiB"),
    ({"output_volume": room(4 * GIB), "output__whole": 3, "output__step": 9}, "disk", "passed", "take 1.2 GiB"),
    ({"limit": None}, "disk", "warned", "none is ever deleted, each takes 1.0 GiB"),
    ({"output_volume": None}, "disk", "warned", "not known"),
    ({"models": (AWAY,), "output_volume": room(16 * GIB, 8)}, "disk", "failed", "the model's download take 19.2 GiB"),
    ({"models": (AWAY,), "cache_volume": room(9 * GIB, 8)}, "model cache", "failed", "set HF_HOME"),
    ({"models": (AWAY,)}, "model cache", "passed", "takes 15.0 GiB"),
    # ---- software
    ({"program": None, "engine_problem": ("it was not found", "install it")}, "engine", "failed", "it was not found"),
    ({"named_python": "/x/python"}, "engine", "warned", "because /x/python has none beside it"),
    ({"python": PythonFacts(path="/x/python", problem="permission denied")}, "python", "failed", "permission denied"),
    ({"python__packages": {"torch": "2.13.0"}}, "bitsandbytes", "failed", "needed for quantization_bit 4"),
    ({"python__packages": {"bitsandbytes": "0.41.2"}}, "bitsandbytes", "failed", "0.43.0 or newer"),
    ({"python__broken": {"bitsandbytes": "OSError: libcudart.so.13"}}, "bitsandbytes", "failed", "libcudart"),
    ({"packages": (replace(BNB, name="torchvision", required=False),)}, "packages", "passed", "torch 2.13.0"),
    ({"versions": {"transformers": "5.7.1"}}, "versions", "warned", "transformers 5.6.0 (the figures are for 5.7.1)"),
    ({"versions": {"llamafactory": "0.9.6"}}, "versions", "warned", "--versions"),
    ({"python__unmet": (Unmet(stated="accelerate<=1.11.0", installed="1.15.0"),)}, "requirements", "warned",
     "llamafactory asks for accelerate<=1.11.0 (1.15.0 installed)"),
    ({"python__torch": replace(TORCH, version="2.13.0+cpu", cuda=None)}, "torch", "failed", "a build without CUDA"),
    ({"python__torch": replace(TORCH, cuda="13.0")}, "torch", "failed", "update the driver to 580 or newer"),
    ({"python__torch": replace(TORCH, available=False, problem="no device")}, "torch", "failed", "no device"),
    ({"python__torch": replace(TORCH, available=False)}, "torch", "failed", "is_available() is False"),
    ({"python__torch": replace(TORCH, count=1)}, "torch", "failed", "sees 1 of 2 GPUs"),
    ({"python__torch": replace(TORCH, architectures=("sm_90",))}, "torch", "failed", "has no kernels for GPU 0"),
    ({"python__torch": replace(TORCH, architectures=("sm_50", "compute_80"))}, "torch", "passed", "serves CUDA 12.4"),
    ({"python__torch": replace(TORCH, hip="6.4", cuda=None), "vendor": "amd"}, "torch", "passed", "for ROCm 6.4"),
    # ---- model and data
    ({"models": (replace(WHOLE, missing=("a", "b", "c", "d")),)}, "model", "failed", "lacks a, b, c and 1 more"),
    ({"models": (replace(WHOLE, problem="the weights are cut off"),)}, "model", "failed", "copy it there again"),
    ({"models": (replace(WHOLE, folder=None),)}, "model", "failed", "does not exist"),
    ({"models": (replace(AWAY, reach=None, offline="HF_HUB_OFFLINE"),)}, "model", "failed", "HF_HUB_OFFLINE forbids"),
    ({"models": (AWAY,)}, "model", "passed", "will be fetched from huggingface.co"),
    ({"models": (replace(AWAY, reach="gated", has_token=True),)}, "model", "failed", "refused; a token is set"),
    ({"models": (replace(AWAY, reach="absent"),)}, "model", "failed", "misspelt, or private; no token is set"),
    ({"models": (replace(AWAY, reach="refused"),)}, "model", "failed", "does not give it"),
    ({"models": (replace(AWAY, reach="unreachable", detail="timed out"),)}, "model", "failed", "reached (timed out)"),
    ({"models": (replace(AWAY, reach=None),)}, "model", "warned", "was not asked"),
    ({"data": (DataFacts(name="train", path="/d", problem="/d is empty"),)}, "data", "failed", "train: /d is empty"),
    ({"data": (DataFacts(name="train", remote="ModelScope"),)}, "data", "warned", "comes from ModelScope"),
    ({"data_problem": "dataset_info.json is not there", "data": ()}, "data", "failed", "put the file back"),
    # ---- the place
    ({"output": OutputFacts(shown="output", step=400, whole=2)}, "output", "warned", "resumes from step 400"),
    ({"output": OutputFacts(shown="output", torn=1)}, "output", "warned", "starts at the first step"),
    ({"output": OutputFacts(shown="output", models=("model.safetensors",))}, "output", "failed", "--out"),
    ({"output": OutputFacts(shown="output", step=4, whole=1), "overwrites": True}, "output", "warned", "gives up"),
    ({"output": OutputFacts(shown="output", unwritable="read-only file system")}, "output", "failed", "read-only"),
    ({"output": OutputFacts(shown="output", others=((41, "python"),))}, "folder", "failed", "python (41) works"),
    ({"port_taken": "address already in use"}, "port", "failed", "29500 is not free (address already in use)"),
    ({"planned": THREE_NODES}, "machines", "warned", "2 more take part"),
    ({"planned": THREE_NODES, "first_machine": "nod1", "unresolved": "name or service not known"}, "machines", "failed",
     "MASTER_ADDR 'nod1' leads nowhere from here (name or service not known); set it to the first machine's address"),
    ({"port": None, "no_port": "abc"}, "port", "failed", "MASTER_PORT 'abc' is no port; set it to a number from 1"),
    ({"planned": THREE_NODES, "unset": ("NODE_RANK", "MASTER_ADDR")}, "machines", "failed", "NODE_RANK, MASTER_ADDR"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "name", "status", "words"), CASES)
def test_one_fact_at_a_time(changes: dict[str, Any], name: str, status: str, words: str) -> None:
    check = checks(**changes)[name]
    assert check.status == status
    assert words in f"{check.sentence}; {check.remedy}"


def test_slower_links_than_the_plan_counts_on() -> None:
    links = checks(counted_link_bytes_per_s=300e9)["links"]
    assert links.status == "warned"
    assert "counts on 300 GB/s between the GPUs, and here are 10 GB/s (no peer-to-peer" in links.sentence


def test_what_does_not_concern_a_run_is_not_listed() -> None:
    alone = checks(ranks=1, port=None, loader_workers=0, machine=replace(TWO, gpus=TWO.gpus[:1]), devices=("0",))
    assert not {"links", "port", "shared memory", "locked memory", "gpu 1", "machines"} & set(alone)
    assert "precision" not in checks(setup=SETUP.but(compute_dtype="fp16"))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, {"torch", "transformers", "accelerate", "torchvision", "torchaudio", "peft"}),
        ({"method": "full"}, {"torch", "transformers", "accelerate", "torchvision", "torchaudio"}),
        ({"method": "qlora"}, {"bitsandbytes"}),
        ({"optim": "paged_adamw_8bit"}, {"bitsandbytes"}),
        ({"liger_kernel": True, "parallelism": "zero3"}, {"liger-kernel", "deepspeed"}),
        ({"attention": "flash_attention_2"}, {"flash-attn"}),
        ({"unsloth": True}, {"unsloth"}),
        ({"method": "galore"}, {"galore-torch"}),
        ({"method": "badam"}, {"badam"}),
        ({"engine": "trl"}, {"trl"}),
        ({"engine": "llamafactory"}, {"llamafactory"}),
    ],
)
def test_packages_that_a_configuration_needs(changes: dict[str, Any], names: set[str]) -> None:
    assert names <= {package.name for package in packages_of(TrainingSetup(model="m").but(**changes), {}, None)}


def test_packages_of_reports_and_stored_weights() -> None:
    found = {package.name for package in packages_of(SETUP, {"arguments.report_to": ["wandb", "none"]}, "gptq")}
    assert {"wandb", "gptqmodel"} <= found
    sharded = packages_of(SETUP.but(parallelism="fsdp"), {}, None)
    assert next(each for each in sharded if each.name == "bitsandbytes").least == "0.43.0"


def test_a_setting_is_found_in_any_section() -> None:
    assert setting({"use_cpu": True}, "use_cpu") is True
    assert setting({"arguments.use_cpu": True}, "use_cpu") is True
    assert setting({"data.dataset": "x"}, "set") is None


@pytest.mark.parametrize(("text", "parts"), [("2.13.0+cu130", (2, 13, 0)), ("5.7.0.dev0", (5, 7, 0)), ("odd", ())])
def test_versions_as_numbers(text: str, parts: tuple[int, ...]) -> None:
    assert numbers(text) == parts


@given(st.integers(1, 9), st.integers(0, 20))
def test_checkpoints_that_are_there_need_no_new_room(limit: int, whole: int) -> None:
    need = replace(NEED, limit=limit)
    assert checkpoint_bytes(need, whole + 1) <= checkpoint_bytes(need, whole)
    assert checkpoint_bytes(need, whole) >= need.disk.weights_bytes
    assert checkpoint_bytes(need, 0) == (limit + 1) * need.disk.checkpoint_bytes + need.disk.weights_bytes
