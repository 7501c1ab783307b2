"""Files on disk become setups: written folders, and YAML files that others wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.emit.folder import plan_files
from planner.emit.write import write_folder
from planner.errors import InputError
from planner.targets.load import read_setup
from planner.training import TrainingSetup
from tests.emit.plans import machine, plan_of

SETUP = TrainingSetup(
    model="Qwen/Qwen2.5-7B-Instruct", method="full", parallelism="zero3", compute_dtype="bf16", gpus="3x20GB"
)


def test_a_written_folder_reads_back(tmp_path: Path) -> None:
    folder = write_folder(plan_files(plan_of(SETUP, on=machine(3))), tmp_path / "plan").folder
    assert read_setup(folder).setup == SETUP


def test_a_folder_of_the_transformers_script_reads_back(tmp_path: Path) -> None:
    setup = SETUP.but(engine="transformers", param_dtype="bf16")
    folder = write_folder(plan_files(plan_of(setup, on=machine(3))), tmp_path / "plan").folder
    assert read_setup(folder).setup == setup


def test_changes_by_hand_are_seen(tmp_path: Path) -> None:
    folder = write_folder(plan_files(plan_of(SETUP, on=machine(3))), tmp_path / "plan").folder
    train = folder / "train.yaml"
    train.write_text(train.read_text().replace("per_device_train_batch_size: 1", "per_device_train_batch_size: 4"))
    config = json.loads((folder / "ds_config.json").read_text())
    config["zero_optimization"]["reduce_bucket_size"] = 1000
    (folder / "ds_config.json").write_text(json.dumps(config))
    changed = read_setup(folder).setup
    assert changed.micro_batch_size == 4
    assert changed.ds_config == config


def test_a_guide_s_yaml_is_read_with_the_engines_defaults(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text(
        "model_name_or_path: Qwen/Qwen2.5-7B-Instruct\nstage: sft\ndo_train: true\nfinetuning_type: lora\n"
        "lora_rank: 16\nlora_target: q_proj,v_proj\nlearning_rate: 5e-5\ndeepspeed: zero2.json\nfp16: true\n"
        "cutoff_len: 4096\nflash_attn: fa2\nenable_liger_kernel: true\nval_size: 0.1\neval_strategy: steps\n"
    )
    (tmp_path / "zero2.json").write_text('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}')
    setup = read_setup(tmp_path / "sft.yaml").setup
    assert setup.lora_target == ("q_proj", "v_proj")
    assert (setup.seq_len, setup.micro_batch_size, setup.eval_micro_batch_size) == (4096, 8, 8)
    assert (setup.parallelism, setup.offload, setup.compute_dtype) == ("zero2", "optimizer", "fp16")
    assert setup.ds_config is not None
    assert (setup.attention, setup.liger_kernel) == ("flash_attention_2", True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model_name_or_path: m\nlora_rnk: 8\n", "lora_rank"),
        ("model_name_or_path: m\nevaluation_strategy: steps\n", "eval_strategy"),
        ("model_name_or_path: m\nflash_attn: fa9\n", "fa2"),
        ("model_name_or_path: m\ncutoff_len: long\n", "whole number"),
        ("model_name_or_path: m\nbf16: maybe\n", "true or false"),
        ("model_name_or_path: m\ndeepspeed: none.json\n", "none.json"),
        ("model_name_or_path: m\ndeepspeed_config: {cpu_offload: true}\n", "key deepspeed"),
        ("model_name_or_path: m\nfsdp: shard_grad_op\n", "full_shard"),
        ("stage: sft\n", "model is missing"),
        ("a: [1\n", "not YAML"),
        ("- 1\n", "not a mapping"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        read_setup(tmp_path / "x.yaml")


def test_json_is_no_configuration_of_the_engine(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="cannot read JSON"):
        read_setup(tmp_path / "x.json")


def test_a_folder_without_a_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.yaml"):
        read_setup(tmp_path)


def test_transformers_own_fsdp_arguments(tmp_path: Path) -> None:
    text = "model_name_or_path: m\nfinetuning_type: full\nfsdp: full_shard auto_wrap offload\n"
    (tmp_path / "x.yaml").write_text(text)
    assert read_setup(tmp_path / "x.yaml").setup.parallelism == "fsdp"
    assert read_setup(tmp_path / "x.yaml").setup.offload == "all"
