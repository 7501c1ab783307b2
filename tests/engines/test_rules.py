"""The rules about train.yaml, put to LLaMA-Factory's own parser: what we forbid it refuses, and the base it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.search.constraints import config_violations, violations
from planner.training import TrainingSetup
from tests.engines.conftest import ScriptEngine
from tests.search.world import machine

pytestmark = pytest.mark.engines

BASE = {
    "model_name_or_path": "org/model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "demo",
    "template": "default",
    "cutoff_len": 64,
    "output_dir": "out",
}
# Rule -> the keys that break it; None takes a key away.
CASES: dict[str, dict[str, Any]] = {
    "lf-01b-image-pixels": {"image_max_pixels": 10, "image_min_pixels": 100},
    "lf-01c-video-pixels": {"video_max_pixels": 10, "video_min_pixels": 100},
    "lf-02-finetuning-type": {"finetuning_type": "lorra"},
    "lf-02b-reference-bits": {"ref_model_quantization_bit": 5},
    "lf-02c-reward-bits": {"reward_model_quantization_bit": 3},
    "lf-03-ppo-reward-model": {"stage": "ppo"},
    "lf-03b-ppo-lora-reward": {
        "stage": "ppo",
        "reward_model": "org/reward",
        "reward_model_type": "lora",
        "finetuning_type": "full",
    },
    "lf-04-label-smoothing": {"stage": "dpo", "dpo_label_smoothing": 0.1, "pref_loss": "hinge"},
    "lf-05-llama-pro-full": {"use_llama_pro": True, "finetuning_type": "full"},
    "lf-06-lora-galore": {"use_galore": True},
    "lf-06b-lora-apollo": {"use_apollo": True},
    "lf-06c-lora-badam": {"use_badam": True},
    "lf-06d-galore-apollo": {"use_galore": True, "use_apollo": True, "finetuning_type": "full"},
    "lf-06e-galore-badam": {"use_galore": True, "use_badam": True, "finetuning_type": "full"},
    "lf-06f-apollo-badam": {"use_apollo": True, "use_badam": True, "finetuning_type": "full"},
    "lf-07-pissa-rl": {"pissa_init": True, "stage": "kto"},
    "lf-07b-pissa-dpo": {"pissa_init": True, "stage": "dpo", "pref_loss": "hinge"},
    "lf-07c-pissa-default-dpo": {"pissa_init": True, "stage": "dpo"},
    "lf-08-loraplus": {"loraplus_lr_ratio": 16.0, "finetuning_type": "full"},
    "lf-08b-rslora": {"use_rslora": True, "finetuning_type": "full"},
    "lf-08c-dora": {"use_dora": True, "finetuning_type": "full"},
    "lf-08d-pissa": {"pissa_init": True, "finetuning_type": "full"},
    "lf-09-val-size-without-data": {"val_size": 0.1, "dataset": None, "do_train": None},
    "lf-09b-val-size-and-eval-set": {"val_size": 0.1, "eval_dataset": "demo"},
    "lf-09c-probs-with-concat": {"interleave_probs": "0.5,0.5", "dataset": "demo,demo", "mix_strategy": "concat"},
    "lf-09h-probs-with-default": {"interleave_probs": "0.5,0.5", "dataset": "demo,demo"},
    "lf-09d-streaming-fraction": {"streaming": True, "val_size": 0.1, "max_steps": 10},
    "lf-09e-streaming-max-samples": {"streaming": True, "max_samples": 100, "max_steps": 10},
    "lf-09f-mask-history-prompt": {"mask_history": True, "train_on_prompt": True},
    "lf-11-generate-outside-sft": {"predict_with_generate": True, "stage": "dpo"},
    "lf-11b-neat-packing-outside-sft": {"neat_packing": True, "stage": "pt"},
    "lf-11c-train-on-prompt-outside-sft": {"train_on_prompt": True, "stage": "dpo"},
    "lf-11d-mask-history-outside-sft": {"mask_history": True, "stage": "kto"},
    "lf-12-predict-needs-generate": {"do_predict": True, "do_train": None, "eval_dataset": "demo"},
    "lf-14-best-model-rm-ppo": {
        "stage": "rm",
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_dataset": "demo",
    },
    "lf-15-ppo-trains": {"stage": "ppo", "reward_model": "org/reward", "do_train": False},
    "lf-15b-ppo-shift-attention": {"stage": "ppo", "reward_model": "org/reward", "shift_attn": True},
    "lf-15c-ppo-lora-reward-unsloth": {
        "stage": "ppo",
        "reward_model": "org/reward",
        "reward_model_type": "lora",
        "use_unsloth": True,
    },
    "lf-15d-ppo-loggers": {"stage": "ppo", "reward_model": "org/reward", "report_to": "mlflow"},
    "lf-18-streaming-max-steps": {"streaming": True},
    "lf-18b-train-without-data": {"dataset": None},
    "lf-18c-eval-without-data": {"do_eval": True},
    "lf-19b-generate-accuracy": {"predict_with_generate": True, "compute_accuracy": True},
    "lf-20-device-map-auto": {"quantization_device_map": "auto", "quantization_bit": 4},
    "lf-25-fp8-quantized": {"fp8": True, "quantization_bit": 4},
    "lf-26-infer-backend": {"infer_backend": "vllm"},
    "lf-28b-adapter-path": {"adapter_name_or_path": "org/adapter", "finetuning_type": "full"},
    "lf-28c-quantized-pissa": {"quantization_bit": 4, "pissa_init": True},
    "lf-28d-quantized-resize": {"quantization_bit": 4, "resize_vocab": True},
    "lf-28e-quantized-new-adapter": {
        "quantization_bit": 4,
        "adapter_name_or_path": "org/adapter",
        "create_new_adapter": True,
    },
}

# The same under a distributed launch: rule -> the setup that we forbid, and the keys that say it to the parser.
DISTRIBUTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lf-22-pure-bf16-zero3": (
        {"method": "full", "param_dtype": "bf16", "parallelism": "zero3"},
        {"finetuning_type": "full", "pure_bf16": True, "deepspeed": "zero3.json"},
    ),
    "lf-23-galore-layerwise-distributed": (
        {"method": "galore", "optimizer_in_backward": True},
        {"finetuning_type": "full", "use_galore": True, "galore_layerwise": True},
    ),
    "lf-23b-apollo-layerwise-distributed": (
        {"method": "apollo", "optimizer_in_backward": True},
        {"finetuning_type": "full", "use_apollo": True, "apollo_layerwise": True},
    ),
    "lf-23c-badam-ratio-distributed": (
        {"method": "badam", "badam_mode": "ratio"},
        {"finetuning_type": "full", "use_badam": True, "badam_mode": "ratio"},
    ),
    "lf-23d-badam-layer-zero3": (
        {"method": "badam"},
        {"finetuning_type": "full", "use_badam": True},
    ),
    "lf-24-galore-deepspeed": (
        {"method": "galore", "parallelism": "zero2"},
        {"finetuning_type": "full", "use_galore": True, "deepspeed": "zero2.json"},
    ),
    "lf-24b-apollo-deepspeed": (
        {"method": "apollo", "parallelism": "zero2"},
        {"finetuning_type": "full", "use_apollo": True, "deepspeed": "zero2.json"},
    ),
    "lf-27-unsloth-zero3": (
        {"unsloth": True, "parallelism": "zero3"},
        {"use_unsloth": True, "deepspeed": "zero3.json"},
    ),
    "lf-28-quantized-method": (
        {"method": "full", "quantization_bit": 4},
        {"finetuning_type": "full", "quantization_bit": 4},
    ),
}
# What the ladder counts on: these the parser must take.
ALLOWED: dict[str, dict[str, Any]] = {
    "pure-bf16-zero2": {"finetuning_type": "full", "pure_bf16": True, "deepspeed": "zero2.json"},
    "badam-zero3": {"finetuning_type": "full", "use_badam": True, "deepspeed": "zero3.json"},
    "qlora-zero3": {"quantization_bit": 4, "deepspeed": "zero3.json"},
    "galore-ddp": {"finetuning_type": "full", "use_galore": True, "pure_bf16": True, "optim": "adamw_torch"},
    "freeze-zero3": {"finetuning_type": "freeze", "deepspeed": "zero3.json"},
    "dora-zero2": {"use_dora": True, "deepspeed": "zero2.json"},
    "paged-zero2": {"finetuning_type": "full", "optim": "paged_adamw_8bit", "deepspeed": "zero2.json"},
}
ONE_RANK = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29613",
}


def config(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**BASE, **changes}.items() if value is not None}


@pytest.fixture(scope="module")
def answers(engine: ScriptEngine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What the parser says to the base and to every case, in one process."""
    root = tmp_path_factory.mktemp("rules")
    for name, changes in {"base": {}, **CASES}.items():
        (root / name).mkdir()
        (root / name / "train.yaml").write_text(yaml.safe_dump(config(changes)))
    out = engine.script("parse_train_yaml.py", *(str(root / name) for name in ("base", *CASES)), cwd=root)
    said = json.loads(out.rpartition("RESULT ")[2])
    return {Path(folder).name: answer for folder, answer in said.items()}


@pytest.fixture(scope="module")
def several(engine: ScriptEngine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """The same for the cases of a distributed launch."""
    root = tmp_path_factory.mktemp("several")
    changes = {name: keys for name, (_, keys) in DISTRIBUTED.items()} | ALLOWED
    for name, keys in changes.items():
        (root / name).mkdir()
        (root / name / "train.yaml").write_text(yaml.safe_dump(config({**keys, "bf16": "pure_bf16" not in keys})))
        for stage in (2, 3):
            text = json.dumps({"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": stage}})
            (root / name / f"zero{stage}.json").write_text(text)
    out = engine.script("parse_train_yaml.py", *(str(root / name) for name in changes), cwd=root, **ONE_RANK)
    said = json.loads(out.rpartition("RESULT ")[2])
    return {Path(folder).name: answer for folder, answer in said.items()}


@pytest.mark.parametrize("rule", DISTRIBUTED)
def test_what_we_forbid_on_several_gpus_the_parser_refuses(rule: str, several: dict[str, str | None]) -> None:
    setup = TrainingSetup(**{"model": "org/model", "parallelism": "ddp", **DISTRIBUTED[rule][0]})
    met = {each.rule_id for each in violations(setup, None, machine(3)) if each.effect == "forbid"}
    assert rule in met
    answer = several[rule]
    assert answer is not None
    assert answer.startswith("ValueError")


@pytest.mark.parametrize("name", ALLOWED)
def test_what_the_ladder_counts_on_the_parser_takes(name: str, several: dict[str, str | None]) -> None:
    assert several[name] is None


def test_the_base_is_accepted_by_both(answers: dict[str, str | None]) -> None:
    assert answers["base"] is None
    assert config_violations(config({}), TrainingSetup(model="org/model")) == ()


@pytest.mark.parametrize("rule", CASES)
def test_what_we_forbid_the_parser_refuses(rule: str, answers: dict[str, str | None]) -> None:
    found = {each.rule_id for each in config_violations(config(CASES[rule]), TrainingSetup(model="org/model"))}
    assert rule in found
    answer = answers[rule]
    assert answer is not None
    assert not answer.startswith("unknown")
