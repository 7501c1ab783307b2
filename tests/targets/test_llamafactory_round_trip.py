"""What is emitted is what was priced: reading the files gives the setup back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.errors import InputError, UnsupportedError
from planner.targets import TARGETS
from planner.targets.context import EmitContext
from planner.targets.schema import check_arguments
from planner.targets.yaml_text import load_yaml
from planner.training import TrainingSetup
from tests.targets.strategies import METHODS, contexts, setups

LF = TARGETS["llamafactory"]
ONE_GPU = EmitContext(model_path="Qwen/Qwen2.5-7B", hidden=3584, has_bf16=True)


def folder(setup: TrainingSetup, context: EmitContext) -> dict[str, str]:
    """The emitted files, with the plan.json beside them that says what no trainer can."""
    return LF.files(setup, context) | {"plan.json": json.dumps({"chosen": {"setup": setup.to_dict()}})}


def read_back(setup: TrainingSetup, context: EmitContext) -> TrainingSetup:
    return LF.read(folder(setup, context), hidden_of=lambda _: context.hidden).setup


def mostly_default(raw: TrainingSetup, kept: set[str]) -> TrainingSetup:
    """Few fields at a time, so that combinations that the engine refuses do not hide the others."""
    plain = TrainingSetup(model="7B", method=raw.method, quantization_bit=4 if raw.method == "qlora" else None)
    return plain.but(**{name: getattr(raw, name) for name in kept})


@settings(max_examples=600, deadline=None)
@given(setups, contexts, st.sets(st.sampled_from(list(TrainingSetup.__dataclass_fields__)), max_size=8))
def test_files_read_back_to_the_settled_setup(raw: TrainingSetup, context: EmitContext, kept: set[str]) -> None:
    setup = mostly_default(raw, kept - {"model", "engine", "gpus", "ds_config", "versions"})
    try:
        settled = LF.settle(setup, context)
    except UnsupportedError:
        assume(False)
    assert read_back(setup, context) == settled
    assert LF.settle(settled, context) == settled
    assert read_back(settled, context) == settled


@settings(max_examples=200, deadline=None)
@given(setups, contexts)
def test_files_are_refused_exactly_where_settling_is(raw: TrainingSetup, context: EmitContext) -> None:
    try:
        LF.settle(raw, context)
    except UnsupportedError:
        with pytest.raises(UnsupportedError):
            LF.files(raw, context)
    else:
        assert LF.files(raw, context)


@pytest.mark.parametrize("method", METHODS)
def test_every_emitted_key_is_an_argument_of_the_engine(method: str) -> None:
    values = load_yaml(LF.files(TrainingSetup(model="7B", method=method), ONE_GPU)["train.yaml"], place="train.yaml")
    check_arguments(values, place="train.yaml")
    explicit = {
        "stage", "finetuning_type", "bf16", "fp16", "pure_bf16", "optim", "flash_attn", "use_unsloth",
        "disable_gradient_checkpointing", "enable_liger_kernel", "upcast_layernorm", "cutoff_len", "packing",
        "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "save_total_limit",
        "dataloader_num_workers", "preprocessing_num_workers", "dataloader_pin_memory", "learning_rate",
    }  # fmt: skip
    assert explicit <= set(values)


def test_absent_keys_mean_the_engines_own_defaults() -> None:
    setup = LF.read({"train.yaml": "model_name_or_path: org/m\n"}).setup
    assert setup.micro_batch_size == 8
    assert setup.seq_len == 2048
    assert setup.optim == "adamw_torch_fused"
    assert setup.method == "lora"
    assert setup.lora_rank == 8
    assert setup.gradient_checkpointing is True
    assert setup.attention == "sdpa"
    assert setup.compute_dtype == "fp32"
    assert setup.eval_micro_batch_size is None
    assert setup.parallelism is None
    assert not setup.packing


def test_pretraining_packs_unless_told_otherwise() -> None:
    assert LF.read({"train.yaml": "model_name_or_path: org/m\nstage: pt\n"}).setup.packing
    assert not LF.read({"train.yaml": "model_name_or_path: org/m\nstage: pt\npacking: false\n"}).setup.packing


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "grpo"}, "TRL has: --engine trl"),
        ({"method": "full", "quantization_bit": 4}, "LoRA or OFT"),
        ({"loss": "chunked"}, "chunked"),
        ({"gradient_checkpointing": "selective"}, "every layer"),
        ({"pipeline_parallel": 2}, "pipeline_parallel 2"),
        ({"tensor_parallel": 2}, "tensor_parallel 2 with none"),
        ({"tensor_parallel": 2, "parallelism": "zero1"}, "with method lora"),
        ({"tensor_parallel": 2, "parallelism": "zero2", "method": "full", "stage": "dpo"}, "in stage dpo"),
        ({"tensor_parallel": 2, "parallelism": "zero2", "method": "full", "liger_kernel": True}, "with liger_kernel"),
        ({"offload": "optimizer"}, "needs ZeRO"),
        ({"method": "galore", "parallelism": "zero2"}, "DeepSpeed"),
        ({"optim": "adamw_8bits"}, "adamw_8bit"),
        ({"method": "full", "param_dtype": "bf16", "parallelism": "zero3", "compute_dtype": "fp16"}, "param_dtype"),
        ({"quantization_method": "gptq", "quantization_bit": 4}, "not stored in gptq"),
        ({"additional_target": ("lm_head",), "method": "full"}, "additional_target"),
    ],
)
def test_what_the_engine_cannot_be_told_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        LF.files(TrainingSetup(model="7B").but(**changes), ONE_GPU)


def test_galore_and_apollo_get_the_optimizer_name_that_runs() -> None:
    for method in ("galore", "apollo"):
        assert "optim: adamw_torch\n" in LF.files(TrainingSetup(model="7B", method=method), ONE_GPU)["train.yaml"]


def test_small_hosts_get_few_workers() -> None:
    small = replace(ONE_GPU, ram_bytes=12 << 30)
    values = load_yaml(LF.files(TrainingSetup(model="7B"), small)["train.yaml"], place="train.yaml")
    assert values["preprocessing_num_workers"] == 2
    assert values["dataloader_num_workers"] == 0
    assert values["dataloader_pin_memory"] is False


def test_recipe_follows_the_method() -> None:
    def value(key: str, **changes: object) -> object:
        text = LF.files(TrainingSetup(model="7B").but(**changes), ONE_GPU)["train.yaml"]
        return load_yaml(text, place="train.yaml")[key]

    assert value("learning_rate") == 1e-4
    assert value("learning_rate", method="full") == 1e-5
    assert value("learning_rate", stage="dpo") == 5e-6
    assert value("lora_alpha", lora_rank=32) == 64
    assert value("use_rslora", lora_rank=32) is False
    assert value("use_rslora", lora_rank=64) is True
    assert value("lora_alpha", lora_rank=64) == 16
    assert value("lr_scheduler_type") == "cosine"
    assert value("warmup_ratio") == 0.1


def test_too_few_samples_cannot_be_split() -> None:
    few = replace(ONE_GPU, samples=9)
    with pytest.raises(InputError, match="only 9"):
        LF.files(TrainingSetup(model="7B", eval_micro_batch_size=1), few)
    assert "val_size" not in LF.files(TrainingSetup(model="7B"), few)["train.yaml"]
    with_file = replace(few, eval_dataset="valid")
    text = LF.files(TrainingSetup(model="7B", eval_micro_batch_size=1), with_file)["train.yaml"]
    assert "eval_dataset: valid" in text
    assert "val_size" not in text


def test_own_deepspeed_file_is_kept_and_follows_the_batch() -> None:
    own = {"train_micro_batch_size_per_gpu": 9, "train_batch_size": 99, "zero_optimization": {"stage": 2}}
    setup = TrainingSetup(model="7B", parallelism="zero2", ds_config=own, micro_batch_size=2)
    emitted = json.loads(LF.files(setup, ONE_GPU)["ds_config.json"])
    assert emitted == {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 2}}
    assert read_back(setup, ONE_GPU) == LF.settle(setup, ONE_GPU)


def test_settings_that_no_estimate_knows_are_named() -> None:
    reading = LF.read({"train.yaml": "model_name_or_path: org/m\nuse_muon: true\npissa_init: false\n"})
    assert len(reading.warnings) == 1
    assert "use_muon" in reading.warnings[0]
