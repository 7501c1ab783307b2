"""The plain transformers script: its settings read back, and cost what was priced."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError, UnsupportedError
from planner.targets import TARGETS
from planner.targets.context import EmitContext
from planner.training import TrainingSetup
from tests.targets.promises import check_prices, check_round_trip
from tests.targets.strategies import contexts, setups

SCRIPT = TARGETS["transformers"]
ONE_GPU = EmitContext(model_path="Qwen/Qwen2.5-7B", hidden=3584, has_bf16=True)


@settings(max_examples=400, deadline=None)
@given(setups, contexts, st.sets(st.sampled_from(list(TrainingSetup.__dataclass_fields__)), max_size=6))
def test_files_read_back_to_the_settled_setup(raw: TrainingSetup, context: EmitContext, kept: set[str]) -> None:
    check_round_trip(SCRIPT, raw, context, kept)


@pytest.mark.parametrize("gpus", ["1x24GB", "3x20GB", "8xA100-80GB"])
def test_plans_are_emitted_at_their_price(gpus: str) -> None:
    check_prices(SCRIPT, gpus, engine="transformers")


def test_the_dtype_is_always_stated() -> None:
    stated = json.loads(SCRIPT.files(TrainingSetup(model="7B", method="full"), ONE_GPU)["train_args.json"])
    assert stated["model"]["dtype"] == "bfloat16"
    fp32 = TrainingSetup(model="7B", method="full", param_dtype="fp32")
    assert json.loads(SCRIPT.files(fp32, ONE_GPU)["train_args.json"])["model"]["dtype"] == "float32"


def test_several_gpus_never_share_a_process() -> None:
    for context in (ONE_GPU, replace(ONE_GPU, gpus_per_node=3)):
        setup = SCRIPT.settle(TrainingSetup(model="7B"), context)
        assert SCRIPT.launch(setup, context).chosen.words[0] == "torchrun"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "dpo"}, "LLaMA-Factory has the others"),
        ({"method": "galore"}, "dora, full, lora, qlora"),
        ({"unsloth": True}, "unsloth"),
        ({"loss": "chunked"}, "chunked"),
        ({"quantization_bit": 4, "quantization_method": "gptq"}, "bnb only"),
        ({"optim": "adamw_8bits"}, "adamw_8bit"),
        ({"adapter_dtype": "fp16"}, "adapter_dtype fp16"),
    ],
)
def test_what_the_script_cannot_do_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        SCRIPT.files(TrainingSetup(model="7B").but(**changes), ONE_GPU)


def test_other_settings_are_not_read() -> None:
    with pytest.raises(InputError, match="not the settings"):
        SCRIPT.read({"train_args.json": "{}"})


def test_the_script_parses() -> None:
    ast.parse(SCRIPT.files(TrainingSetup(model="7B"), ONE_GPU)["train.py"])
