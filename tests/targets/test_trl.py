"""TRL's train.yaml: read back, priced as emitted, told from LLaMA-Factory's, and refusing what TRL cannot be told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.emit.folder import plan_files
from planner.emit.write import write_folder
from planner.errors import InputError, UnsupportedError
from planner.targets import TARGETS
from planner.targets.context import EmitContext
from planner.targets.load import read_setup
from planner.targets.yaml_text import load_yaml
from planner.training import TrainingSetup
from tests.emit.plans import machine, plan_of
from tests.targets.promises import check_prices, check_round_trip
from tests.targets.strategies import contexts, setups

TRL = TARGETS["trl"]
ONE_GPU = EmitContext(model_path="Qwen/Qwen2.5-7B", hidden=3584, has_bf16=True)
STAGES = ("pt", "sft", "dpo", "kto", "rm", "grpo")


def values_of(context: EmitContext = ONE_GPU, **changes: object) -> dict:
    text = TRL.files(TrainingSetup(model="7B").but(**changes), context)["train.yaml"]
    return load_yaml(text, place="train.yaml")


@settings(max_examples=400, deadline=None)
@given(setups, contexts, st.sets(st.sampled_from(list(TrainingSetup.__dataclass_fields__)), max_size=6))
def test_files_read_back_to_the_settled_setup(raw: TrainingSetup, context: EmitContext, kept: set[str]) -> None:
    check_round_trip(TRL, raw, context, kept, STAGES)


@pytest.mark.parametrize("gpus", ["1x24GB", "3x20GB", "8xA100-80GB"])
@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo"])
def test_plans_are_emitted_at_their_price(gpus: str, stage: str) -> None:
    check_prices(TRL, gpus, engine="trl", model="3B", stage=stage)


def test_the_dtype_is_always_stated_and_fp32_unless_asked_for() -> None:
    assert values_of()["dtype"] == "float32"
    assert values_of(param_dtype="bf16")["dtype"] == "bfloat16"
    assert values_of(method="qlora")["dtype"] == "bfloat16"


def test_every_stage_is_recognised_by_its_own_keys() -> None:
    for stage in STAGES:
        for method in ("full", "lora"):
            setup = TrainingSetup(model="7B", stage=stage, method=method, micro_batch_size=8)
            text = TRL.files(setup, ONE_GPU)["train.yaml"]
            assert TRL.read({"train.yaml": text}).setup.stage == stage, (stage, method)


def test_a_file_of_few_keys_means_trls_defaults() -> None:
    setup = TRL.read({"train.yaml": "model_name_or_path: org/m\nuse_peft: true\n"}).setup
    assert (setup.stage, setup.method, setup.lora_rank, setup.lora_dropout) == ("sft", "lora", 16, 0.05)
    assert (setup.seq_len, setup.micro_batch_size, setup.compute_dtype, setup.param_dtype) == (1024, 8, "bf16", "fp32")
    assert setup.gradient_checkpointing is True


def test_what_is_not_priced_is_said() -> None:
    reading = TRL.read({"train.yaml": "model_name_or_path: org/m\nactivation_offloading: true\n"})
    assert reading.warnings == ("activation_offloading: True is not priced: the estimate is made as if it were False",)


GRPO = "model_name_or_path: org/m\nreward_funcs: [think_format_reward]\n"


def test_grpo_states_trls_own_defaults_and_the_length_of_prompt_and_completion() -> None:
    values = values_of(stage="grpo", micro_batch_size=4, gradient_accumulation_steps=4)
    assert (values["num_generations"], values["max_completion_length"], values["vllm_max_model_length"]) == (
        8,
        512,
        2048,
    )
    assert (values["beta"], values["use_vllm"], values["reward_funcs"]) == (0.0, False, ["rewards.likeness"])
    assert "max_length" not in values
    on_three = replace(ONE_GPU, gpus_per_node=3)
    assert values_of(on_three, stage="grpo", micro_batch_size=21, parallelism="ddp")["num_generations"] == 7
    assert "rewards.py" in TRL.files(TrainingSetup(model="7B", stage="grpo", micro_batch_size=8), ONE_GPU)
    assert "rewards.py" not in TRL.files(TrainingSetup(model="7B"), ONE_GPU)


def test_what_a_grpo_file_states_beyond_a_setup_is_said() -> None:
    reading = TRL.read({"train.yaml": GRPO + "max_completion_length: 256\n"})
    assert (reading.setup.stage, reading.setup.seq_len) == ("grpo", 512)
    assert reading.warnings == ("no key says how long a prompt is: 256 tokens are priced, as many as of a completion",)
    reading = TRL.read({"train.yaml": GRPO + "max_completion_length: 2048\nvllm_max_model_length: 3072\nbeta: 0.04\n"})
    assert reading.setup.seq_len == 3072
    assert reading.warnings == (
        "beta: 0.04 is not priced: the estimate is made as if it were 0.0",
        "max_completion_length: 2048 is priced as 512 generated tokens of the 3072 of a sample",
    )
    assert "use_vllm: True is not priced" in TRL.read({"train.yaml": GRPO + "use_vllm: true\n"}).warnings[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("use_peft: true\n", "model_name_or_path is missing"),
        ("model_name_or_path: org/m\ndtype: half\n", "dtype half is not valid"),
        ("model_name_or_path: org/m\ndeepspeed: ds.json\n", "names the file 'ds.json', which is not there"),
    ],
)
def test_files_that_trl_would_refuse(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TRL.read({"train.yaml": text})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "ppo", "reward_model": "r"}, "stage ppo"),
        ({"stage": "orpo"}, "stage orpo"),
        ({"stage": "grpo"}, "an effective batch of 1: it compares 2 to 8 completions .* a multiple of 8"),
        ({"stage": "grpo", "micro_batch_size": 8, "eval_micro_batch_size": 11}, "an evaluation batch of 11"),
        ({"stage": "grpo", "micro_batch_size": 8, "packing": True}, "only pt and sft pack"),
        ({"stage": "dpo", "ref_model": "org/ref"}, "with ref_model"),
        ({"stage": "dpo", "pref_loss": "kto_pair"}, "planned for: sigmoid, hinge, ipo"),
        ({"stage": "dpo", "packing": True}, "only pt and sft pack"),
        ({"method": "galore"}, "dora, full, lora, qlora"),
        ({"loss": "torch"}, "tiles of its own"),
        ({"adapter_dtype": "bf16"}, "holds adapters in fp32"),
        ({"method": "qlora", "adapter_dtype": "fp32"}, "holds adapters in bf16"),
        ({"method": "qlora", "compute_dtype": "fp16"}, "its adapters are bf16"),
    ],
)
def test_what_trl_cannot_be_told_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        TRL.files(TrainingSetup(model="7B").but(**changes), ONE_GPU)


@pytest.mark.parametrize("engine", list(TARGETS))
def test_a_folder_is_read_by_its_own_engine(engine: str, tmp_path: Path) -> None:
    setup = TrainingSetup(model="-", engine=engine, param_dtype=None if engine == "llamafactory" else "bf16")
    own = {"method": "full", "parallelism": "zero1"} if engine == "megatron" else {"parallelism": "none"}
    files = plan_files(plan_of(setup.but(**own), on=machine(1)))
    folder = write_folder(files, tmp_path / "a folder").folder
    assert read_setup(folder).setup.engine == engine
    if engine in ("trl", "llamafactory", "megatron"):
        assert read_setup(folder / "train.yaml").setup.engine == engine


def test_zero_3_with_adapters_checkpoints_reentrantly_as_trl_forces() -> None:
    two = replace(ONE_GPU, gpus_per_node=2)
    assert values_of(two, parallelism="zero3")["gradient_checkpointing_kwargs"] == {"use_reentrant": True}
    assert values_of(two, parallelism="zero2")["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
