"""The facts behind emission are complete: every recipe row has its reason, every key is an argument."""

from __future__ import annotations

import tomllib
from itertools import pairwise

import pytest

from planner.memory.host import WORKER_BYTES
from planner.rulebook.paths import rules_dir
from planner.targets.context import EmitContext
from planner.targets.recipe import host_pipeline, recipe
from planner.targets.schema import arguments, check_arguments
from planner.training import TrainingSetup
from planner.units import GIB

RAW = tomllib.loads((rules_dir() / "recipes.toml").read_text())
NOT_ARGUMENTS = {"lora_alpha_per_rank", "rslora_from_rank"}  # from these the emitter computes lora_alpha, use_rslora


@pytest.mark.parametrize("row", RAW["value"], ids=lambda row: f"{row['key']}-{row['value']}")
def test_every_value_has_a_reason_a_source_and_a_valid_key(row: dict) -> None:
    assert row["reason"]
    assert row["source"]
    assert row["checked"].year >= 2026
    assert set(row) <= {"key", "value", "methods", "stages", "reason", "source", "checked"}
    if row["key"] not in NOT_ARGUMENTS:
        check_arguments({row["key"]: row["value"]}, place="recipes.toml")


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo", "kto", "orpo", "simpo", "ppo"])
@pytest.mark.parametrize("method", ["full", "freeze", "lora", "dora", "qlora", "oft", "galore", "apollo", "badam"])
def test_every_setup_finds_its_rates(stage: str, method: str) -> None:
    values = recipe(TrainingSetup(model="m", stage=stage, method=method))
    adapters = {"lora", "dora", "qlora", "oft"}
    assert 1e-7 < values["learning_rate"].value <= (1e-4 if method in adapters else 1e-5)
    assert values["lr_scheduler_type"].value == "cosine"
    assert values["warmup_ratio"].value == 0.1
    assert values["save_total_limit"].value == 3


def desk(ram_bytes: int | None, cores: int | None, **fields: int) -> EmitContext:
    return EmitContext(model_path="m", hidden=64, ram_bytes=ram_bytes, cpu_cores=cores, **fields)


def test_loader_processes_fit_what_every_rank_leaves_of_cores_and_memory() -> None:
    roomy = host_pipeline(desk(512 * GIB, 64, gpus_per_node=8, host_spare_bytes=200 * GIB))
    assert roomy.dataloader_num_workers == 4
    assert host_pipeline(desk(512 * GIB, 16, gpus_per_node=8)).dataloader_num_workers == 2
    tight = host_pipeline(desk(512 * GIB, 64, gpus_per_node=8, host_spare_bytes=8 * WORKER_BYTES))
    assert tight.dataloader_num_workers == 1
    assert tight.preprocessing_num_workers == 8
    full = host_pipeline(desk(512 * GIB, 64, gpus_per_node=8, host_spare_bytes=0))
    assert (full.dataloader_num_workers, full.preprocessing_num_workers) == (0, 1)


def test_more_host_memory_never_means_fewer_workers() -> None:
    rows = [host_pipeline(desk(ram * GIB, 64)) for ram in (1, 12, 24, 25, 64, 65, 512)]
    for less, more in pairwise(rows):
        assert more.preprocessing_num_workers >= less.preprocessing_num_workers
        assert more.dataloader_num_workers >= less.dataloader_num_workers
    assert host_pipeline(desk(512 * GIB, 2)).preprocessing_num_workers == 2
    assert host_pipeline(desk(None, None)).dataloader_num_workers == 0


def test_defaults_and_choices_are_the_engines() -> None:
    rows = arguments()
    assert len(rows) == 346
    assert rows["per_device_train_batch_size"]["default"] == 8
    assert rows["cutoff_len"]["default"] == 2048
    assert rows["optim"]["default"] == "adamw_torch_fused"
    assert len(rows["optim"]["choices"]) == 42
    for row in rows.values():
        if row["type"] == "choice" and row["default"] is not None:
            assert row["default"] in row["choices"]
