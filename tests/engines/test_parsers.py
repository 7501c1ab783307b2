"""The trainers' own parsers accept what is emitted, and understand it as it was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.emit.folder import plan_files
from planner.emit.write import write_folder
from planner.memory.deepspeed_config import read_buckets
from planner.targets.schema import arguments
from planner.training import TrainingSetup
from tests.emit.plans import machine, plan_of
from tests.engines.conftest import ScriptEngine

pytestmark = pytest.mark.engines

HIDDEN = 3584
SINGLE: dict[str, dict] = {
    "lora": {},
    "lora-targets": {"lora_target": ("q_proj", "v_proj"), "additional_target": ("embed_tokens", "lm_head")},
    "qlora": {"method": "qlora"},
    "qlora-8bit": {"method": "qlora", "quantization_bit": 8},
    "qlora-upcast": {"method": "qlora", "kbit_upcast": "norms", "double_quantization": False},
    "dora": {"method": "dora"},
    "oft": {"method": "oft"},
    "full": {"method": "full", "eval_micro_batch_size": 2},
    "full-pure": {"method": "full", "param_dtype": "bf16"},
    "full-8bit": {"method": "full", "optim": "paged_adamw_8bit"},
    "full-fp32": {"method": "full", "compute_dtype": "fp32"},
    "freeze": {"method": "freeze", "freeze_trainable_layers": 4},
    "galore": {"method": "galore", "galore_rank": 128},
    "galore-layerwise": {"method": "galore", "optimizer_in_backward": True},
    "apollo": {"method": "apollo"},
    "badam": {"method": "badam"},
    "badam-ratio": {"method": "badam", "badam_mode": "ratio"},
    "fp16": {"compute_dtype": "fp16", "attention": "eager"},
    "liger": {"liger_kernel": True, "attention": "flash_attention_2"},
    "unsloth": {"unsloth": True},
    "unsloth-gc": {"activation_offload": True},
    "no-checkpointing": {"gradient_checkpointing": False, "torch_compile": True},
    "packing": {"packing": True},
    "pt": {"stage": "pt", "packing": True},
    "rm": {"stage": "rm"},
    "dpo": {"stage": "dpo", "ref_model": "org/reference", "eval_micro_batch_size": 1},
    "ipo": {"stage": "dpo", "pref_loss": "ipo"},
    "orpo": {"stage": "orpo"},
    "simpo": {"stage": "simpo"},
    "kto": {"stage": "kto"},
    "ppo": {"stage": "ppo", "reward_model": "org/reward"},
}
SEVERAL: dict[str, dict] = {
    "ddp": {"parallelism": "ddp"},
    "ddp-full": {"parallelism": "ddp", "method": "full"},
    "zero1": {"parallelism": "zero1", "method": "full"},
    "zero2": {"parallelism": "zero2", "method": "full"},
    "zero2-optimizer": {"parallelism": "zero2", "method": "full", "offload": "optimizer"},
    "zero3": {"parallelism": "zero3", "method": "full"},
    "zero3-params": {"parallelism": "zero3", "offload": "params"},
    "zero3-all": {"parallelism": "zero3", "method": "full", "offload": "all"},
    "zero3-nvme": {"parallelism": "zero3", "method": "full", "offload": "nvme"},
    "zero3-qlora": {"parallelism": "zero3", "method": "qlora"},
    "zero3-badam": {"parallelism": "zero3", "method": "badam"},
    "zero2-pure": {"parallelism": "zero2", "method": "full", "param_dtype": "bf16"},
    "zero3-fp16": {"parallelism": "zero3", "method": "full", "compute_dtype": "fp16"},
    "fsdp": {"parallelism": "fsdp", "method": "full"},
    "fsdp-offload": {"parallelism": "fsdp", "method": "full", "offload": "all"},
    "fsdp2": {"parallelism": "fsdp2", "method": "full"},
    "fsdp2-pure": {"parallelism": "fsdp2", "method": "full", "param_dtype": "bf16"},
}


def written(changes: dict, folder: Path, gpus: int) -> Path:
    on = machine(gpus)
    setup = TrainingSetup(model="Qwen/Qwen2.5-7B-Instruct", parallelism="none" if gpus == 1 else None).but(**changes)
    return write_folder(plan_files(plan_of(setup, on=on)), folder).folder


def result(output: str) -> dict:
    return json.loads(output.rpartition("RESULT ")[2])


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("several")
    return {name: written(changes, base / name, gpus=3) for name, changes in SEVERAL.items()}


def test_the_vendored_schema_is_the_engines(engine: ScriptEngine, tmp_path: Path) -> None:
    found = result(engine.script("list_arguments.py", cwd=tmp_path))
    found.pop("help")
    rows = arguments()
    assert set(found) - set(rows) <= {name for name in found if name.startswith("no_")}
    assert set(rows) - set(found) == set()
    for name, row in rows.items():
        if row["type"] == "choice":
            assert sorted(found[name]) == sorted(row["choices"]), name


def test_one_gpu(engine: ScriptEngine, tmp_path: Path) -> None:
    folders = [str(written(changes, tmp_path / name, gpus=1)) for name, changes in SINGLE.items()]
    answers = result(engine.script("parse_train_yaml.py", *folders, cwd=tmp_path))
    assert {Path(folder).name: problem for folder, problem in answers.items() if problem} == {}
    assert len(answers) == len(SINGLE)


def test_the_check_itself_can_fail(engine: ScriptEngine, tmp_path: Path) -> None:
    wrong = {"typo": "lora_rnk: 8", "choice": "flash_attn: fa9", "type": "cutoff_len: long", "rule": "streaming: true"}
    for name, line in wrong.items():
        text = written({}, tmp_path / name, gpus=1).joinpath("train.yaml").read_text()
        key = line.partition(":")[0]
        kept = [each for each in text.splitlines() if not each.startswith(f"{key}:")]
        tmp_path.joinpath(name, "train.yaml").write_text("\n".join([*kept, line]))
    answers = result(engine.script("parse_train_yaml.py", *(str(tmp_path / name) for name in wrong), cwd=tmp_path))
    problems = {Path(folder).name: problem for folder, problem in answers.items()}
    assert "lora_rnk" in problems["typo"]
    assert "argparse" in problems["choice"]
    assert "argparse" in problems["type"]
    assert "max_steps" in problems["rule"]


def test_several_gpus(engine: ScriptEngine, several: dict[str, Path], tmp_path: Path) -> None:
    one_rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    folders = [str(folder) for folder in several.values()]
    answers = result(engine.script("parse_train_yaml.py", *folders, cwd=tmp_path, **one_rank, **place))
    assert {Path(folder).name: problem for folder, problem in answers.items() if problem} == {}
    assert len(answers) == len(SEVERAL)


def test_deepspeed_understands_the_buckets_that_were_priced(
    engine: ScriptEngine, several: dict[str, Path], tmp_path: Path
) -> None:
    files = {folder / "ds_config.json" for name, folder in several.items() if name.startswith("zero")}
    answers = result(engine.script("load_deepspeed.py", *map(str, files), cwd=tmp_path))
    assert len(answers) == len(files)
    for name, understood in answers.items():
        config = json.loads(Path(name).read_text())
        priced = read_buckets(config, HIDDEN)
        assert understood["stage"] == priced.stage
        assert understood["reduce"] == priced.reduce_bucket_elements
        assert understood["overlap"] == priced.overlap_comm
        if priced.stage == 3:
            assert understood["prefetch"] == priced.prefetch_elements
            assert understood["persistence"] == priced.persistence_elements
            assert understood["max_live"] == priced.max_live_elements
            assert understood["sub_group"] == priced.sub_group_elements
        else:
            assert understood["allgather"] == priced.allgather_bucket_elements
        devices = (understood["optimizer"], understood["param"])
        assert devices == _DEVICES[priced.offload]
        assert understood["bf16"] != understood["fp16"]


_DEVICES = {
    "none": ("none", "none"),
    "optimizer": ("cpu", "none"),
    "params": ("none", "cpu"),
    "all": ("cpu", "cpu"),
    "nvme": ("nvme", "nvme"),
}


def test_accelerate_understands_its_file(engine: ScriptEngine, several: dict[str, Path], tmp_path: Path) -> None:
    names = ("ddp", "fsdp", "fsdp-offload", "fsdp2", "fsdp2-pure")
    files = {name: str(several[name] / "accelerate.yaml") for name in names}
    answers = result(engine.script("load_accelerate.py", *files.values(), cwd=tmp_path))
    understood = {name: answers[file] for name, file in files.items()}
    for each in understood.values():
        assert each["unknown"] == []
        assert each["processes"] == 3
        assert each["machines"] == 1
    assert "FSDP_VERSION" not in understood["ddp"]["environment"]
    assert understood["fsdp"]["environment"]["FSDP_VERSION"] == "1"
    assert understood["fsdp"]["environment"]["FSDP_OFFLOAD_PARAMS"].lower() == "false"
    assert understood["fsdp-offload"]["environment"]["FSDP_OFFLOAD_PARAMS"].lower() == "true"
    assert understood["fsdp2"]["environment"]["FSDP_VERSION"] == "2"
    assert understood["fsdp2"]["environment"]["FSDP_RESHARD_AFTER_FORWARD"].lower() == "true"
    assert understood["fsdp2"]["mixed_precision"].lower() == "bf16"
    assert understood["fsdp2-pure"]["mixed_precision"].lower() == "no"
