"""The folder of a plan: what is in it, what its script says, and that it reads back."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from planner.emit.folder import plan_files, plan_name
from planner.emit.write import write_folder
from planner.errors import NothingFitsError, UnsupportedError
from planner.targets import TARGETS
from planner.training import FIELD_NAMES, TrainingSetup
from tests.emit.plans import QWEN, machine, plan_of

ANY = TrainingSetup(model="Qwen/Qwen2.5-7B-Instruct", compute_dtype="bf16")
PARALLELISMS = ("ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp2")


def files_of(setup: TrainingSetup = ANY, **place: object) -> dict[str, str]:
    return plan_files(plan_of(setup, on=machine(**place)))


def test_the_folder_has_the_files_of_the_contract() -> None:
    always = {"train.yaml", "dataset_info.json", "data/vramplan_demo.json", "launch.sh", "plan.json", "README.md"}
    assert set(files_of(ANY.but(parallelism="none"), gpus=1)) == always
    assert set(files_of(ANY.but(parallelism="zero2"))) == always | {"ds_config.json"}
    assert set(files_of(ANY.but(parallelism="fsdp2"))) == always | {"accelerate.yaml"}


@pytest.mark.parametrize("parallelism", PARALLELISMS)
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_the_written_folder_reads_back_to_the_chosen_setup(parallelism: str, method: str) -> None:
    quantized = 4 if method == "qlora" else None
    setup = ANY.but(method=method, quantization_bit=quantized, parallelism=parallelism, gpus="3x20GB", padded=True)
    files = files_of(setup)
    assert TARGETS["llamafactory"].read(files, hidden_of=lambda _: QWEN["hidden_size"]).setup == setup


def test_same_plan_same_texts() -> None:
    assert files_of() == files_of()


def test_plan_json_has_the_fields_of_the_contract() -> None:
    plan = json.loads(files_of()["plan.json"])
    fields = "verdict request machine chosen configurations ladder folder files command assumptions warnings version"
    assert set(fields.split()) <= set(plan)
    assert {"setup", "estimate", "speed"} <= set(plan["chosen"])
    assert {"class", "profile"} <= set(plan["configurations"][0])
    assert set(plan["chosen"]["setup"]) == set(FIELD_NAMES)
    assert {"id", "tier", "applied", "before_bytes", "after_bytes", "slowdown"} <= set(plan["ladder"][0])
    assert plan["command"] == "bash launch.sh"
    assert set(plan["files"]) == set(files_of())


def exports(script: str, **given: str) -> dict[str, str]:
    """The environment that a launch script makes, by letting bash run all but its last command."""
    body = script.partition("command -v")[0]
    path = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-c", f"{body}\nenv -0"], env=path | given, capture_output=True, text=True, check=True
    )  # fmt: skip
    return dict(line.partition("=")[::2] for line in done.stdout.split("\0") if "=" in line)


def last_command(script: str) -> list[str]:
    (line,) = [line for line in script.splitlines() if line.startswith("exec ")]
    return shlex.split(line)[1:]


def test_torchrun_plans_start_through_llamafactory_cli() -> None:
    script = files_of(ANY.but(parallelism="zero3"))["launch.sh"]
    assert last_command(script) == ["llamafactory-cli", "train", "train.yaml", "$@"]
    made = exports(script)
    assert made["FORCE_TORCHRUN"] == "1"
    assert made["NPROC_PER_NODE"] == "3"
    assert made["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    assert made["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert made["RECORD_VRAM"] == "1"


def test_fsdp_plans_start_through_accelerate() -> None:
    files = files_of(ANY.but(parallelism="fsdp"))
    assert last_command(files["launch.sh"])[:4] == ["accelerate", "launch", "--config_file", "accelerate.yaml"]
    assert yaml.safe_load(files["accelerate.yaml"])["num_processes"] == 3
    assert "FORCE_TORCHRUN" not in files["launch.sh"]


def test_one_gpu_plans_hide_the_other_gpus() -> None:
    script = files_of(ANY.but(parallelism="none"))["launch.sh"]
    made = exports(script)
    assert made["CUDA_VISIBLE_DEVICES"] == "0"
    assert made["NPROC_PER_NODE"] == "1"
    assert "FORCE_TORCHRUN" not in made
    assert exports(script, CUDA_VISIBLE_DEVICES="2")["CUDA_VISIBLE_DEVICES"] == "2"


def test_deepspeed_on_one_gpu_needs_a_launcher() -> None:
    script = files_of(ANY.but(parallelism="zero3", offload="all"), gpus=1)["launch.sh"]
    assert exports(script)["FORCE_TORCHRUN"] == "1"


def test_a_forbidden_allocator_setting_stays_out() -> None:
    plan = plan_of(ANY.but(parallelism="ddp"))
    off = replace(plan.ladder[0], id="expandable-segments", applied=False)
    script = plan_files(replace(plan, ladder=(off,)))["launch.sh"]
    assert "expandable_segments" not in script
    assert exports(script)["OPTIM_TORCH"] == "0"


def test_slices_of_a_gpu_are_named_by_uuid() -> None:
    on = machine(1)
    slices = tuple(replace(gpu, mig=True, uuid="MIG-1234-abcd") for gpu in on.gpus)
    script = plan_files(plan_of(ANY.but(parallelism="none"), on=replace(on, gpus=slices)))["launch.sh"]
    assert exports(script)["CUDA_VISIBLE_DEVICES"] == "MIG-1234-abcd"


def test_several_machines_ask_for_their_rank() -> None:
    script = files_of(ANY.but(parallelism="zero3"), gpus=8, nodes=2)["launch.sh"]
    with pytest.raises(subprocess.CalledProcessError) as refused:
        exports(script)
    assert "NODE_RANK" in refused.value.stderr
    made = exports(script, NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    assert (made["NNODES"], made["NODE_RANK"], made["MASTER_PORT"]) == ("2", "1", "29500")


def test_nccl_is_told_only_what_the_links_need() -> None:
    assert "NCCL" not in files_of()["launch.sh"]
    assert "NCCL_P2P_DISABLE" in files_of(ANY, p2p=False)["launch.sh"]
    geforce = exports(files_of(ANY, name="NVIDIA GeForce RTX 4090")["launch.sh"])
    assert geforce["NCCL_P2P_DISABLE"] == geforce["NCCL_IB_DISABLE"] == "1"
    for driver, said in (("535.129.03", True), ("550.54.14", False), ("580.65", False)):
        on = replace(machine(2, name="NVIDIA GeForce RTX 4090"), driver=driver)
        assert ("NCCL_IB_DISABLE" in plan_files(plan_of(ANY, on=on))["launch.sh"]) is said


@pytest.mark.parametrize("parallelism", ["none", *PARALLELISMS])
@pytest.mark.parametrize("nodes", [1, 2])
def test_commands_that_do_not_work_are_never_emitted(parallelism: str, nodes: int) -> None:
    changes = {"parallelism": parallelism, "eval_micro_batch_size": 1}
    for name, text in files_of(ANY.but(**changes), nodes=nodes).items():
        for broken in (
            "deepspeed --num_gpus", "torchrun -m llamafactory.train", "llamafactory.train ", "ACCELERATE_USE_GLOO",
            "NCCL_TIMEOUT", "evaluation_strategy", "llmtuner", "train.json", "src/train.py", "python train.py",
            "streaming: true", "max_samples",
        ):  # fmt: skip
            assert broken not in text, f"{name}: {broken}"


def test_every_launcher_of_the_guide_is_there_in_a_working_form() -> None:
    script = files_of(ANY.but(parallelism="zero2"))["launch.sh"]
    for words in (
        "llamafactory-cli train train.yaml",
        "accelerate launch --multi_gpu --num_machines 1 --num_processes 3 -m llamafactory.launcher train.yaml",
        "deepspeed --no_local_rank --module llamafactory.launcher train.yaml",
        "torchrun --standalone --nproc_per_node 3 -m llamafactory.launcher train.yaml",
    ):
        assert words in script


def test_the_script_runs_from_anywhere_in_a_folder_with_spaces(tmp_path: Path) -> None:
    folder = write_folder(files_of(ANY.but(parallelism="none"), gpus=1), tmp_path / "a plan; $(touch x)").folder
    programs = tmp_path / "bin"
    programs.mkdir()
    fake = programs / "llamafactory-cli"
    fake.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        [str(folder / "launch.sh"), "max_steps=2"],
        cwd=tmp_path, env={"PATH": f"{programs}:{os.environ['PATH']}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [str(folder), "train", "train.yaml", "max_steps=2"]
    assert not list(tmp_path.glob("**/x"))


def test_a_missing_trainer_is_one_sentence(tmp_path: Path) -> None:
    folder = write_folder(files_of(ANY.but(parallelism="none"), gpus=1), tmp_path / "plan").folder
    path = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/bash", str(folder / "launch.sh")], env=path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 6
    assert "pip install llamafactory==0.9.5" in done.stderr


def test_names_with_shell_letters_stay_data() -> None:
    plan = plan_of(ANY.but(parallelism="none"), on=machine(1))
    model = replace(plan.model, id='evil"; touch x; # \n- b: $(id)', local_path=None)
    files = plan_files(replace(plan, model=model))
    assert yaml.safe_load(files["train.yaml"])["model_name_or_path"] == model.id
    assert "\ntouch" not in files["launch.sh"]
    assert subprocess.run(["bash", "-n"], input=files["launch.sh"], text=True, check=False).returncode == 0
    assert "/" not in plan_name(replace(plan, model=model))


def test_without_a_choice_there_is_nothing_to_write() -> None:
    with pytest.raises(NothingFitsError):
        plan_files(replace(plan_of(), chosen=None))


def test_an_engine_without_files_is_named() -> None:
    with pytest.raises(UnsupportedError, match="torchtune"):
        files_of(ANY.but(engine="torchtune"))


def test_readme_shows_the_price_and_marks_the_demo() -> None:
    text = files_of()["README.md"]
    assert "| weights | 5.00 GiB |" in text
    assert "| **allocated** | 12.00 GiB |" in text
    assert "| **required** | 15.00 GiB |" in text
    assert "demo set of 60 samples" in text
    assert "63 sequences instead of 64" in text


@pytest.mark.parametrize(
    ("micro", "accumulation", "advice"),
    [
        (3, 7, "Set `per_device_train_batch_size` to 1 and `gradient_accumulation_steps` to 21"),
        (8, 2, "Set `per_device_train_batch_size` to 4 and `gradient_accumulation_steps` to 4"),
        (1, 21, "The micro batch is 1 already"),
    ],
)
def test_readme_lowers_the_micro_batch_to_one_that_divides(micro: int, accumulation: int, advice: str) -> None:
    text = files_of(ANY.but(micro_batch_size=micro, gradient_accumulation_steps=accumulation))["README.md"]
    assert advice in text


def test_readme_speaks_to_llamafactory_in_flags() -> None:
    """Settings without dashes are read behind a YAML file only (LLaMA-Factory 0.9.5 hparams/parser.py read_args)."""
    text = files_of()["README.md"]
    assert "llamafactory-cli export --model_name_or_path " in text
    assert "--adapter_name_or_path output" in text
    assert " model_name_or_path=" not in text
