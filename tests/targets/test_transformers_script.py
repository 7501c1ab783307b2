"""The plain transformers script: its settings read back, and cost what was priced."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.emit.folder import plan_files
from planner.errors import InputError, UnsupportedError
from planner.hardware.parse import parse_machine
from planner.memory.estimate import price
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Request
from planner.targets import TARGETS
from planner.targets.context import EmitContext
from planner.training import TrainingSetup
from tests.targets.strategies import contexts, setups
from tests.targets.test_llamafactory_round_trip import mostly_default

SCRIPT = TARGETS["transformers"]
ONE_GPU = EmitContext(model_path="Qwen/Qwen2.5-7B", hidden=3584, has_bf16=True)


@settings(max_examples=400, deadline=None)
@given(setups, contexts, st.sets(st.sampled_from(list(TrainingSetup.__dataclass_fields__)), max_size=6))
def test_files_read_back_to_the_settled_setup(raw: TrainingSetup, context: EmitContext, kept: set[str]) -> None:
    method = raw.method if raw.method in ("full", "lora", "dora", "qlora") else "lora"
    raw = raw.but(method=method, stage="pt" if raw.stage == "pt" else "sft")
    setup = mostly_default(raw, kept - {"model", "engine", "gpus", "ds_config", "versions"})
    try:
        settled = SCRIPT.settle(setup, context)
    except UnsupportedError:
        assume(False)
    files = SCRIPT.files(setup, context) | {"plan.json": json.dumps({"chosen": {"setup": setup.to_dict()}})}
    assert SCRIPT.read(files, hidden_of=lambda _: context.hidden).setup == settled
    assert SCRIPT.settle(settled, context) == settled


@pytest.mark.parametrize("gpus", ["1x24GB", "3x20GB", "8xA100-80GB"])
def test_plans_are_emitted_at_their_price(gpus: str) -> None:
    machine = parse_machine(gpus, "512GB")
    plan = make_plan(Request(model="7B", engine="transformers", gpus=gpus), resolve("7B"), machine)
    seen = 0
    for row in (*plan.configurations, *plan.alternatives):
        try:
            files = plan_files(replace(plan, chosen=row))
        except UnsupportedError:
            continue
        back = SCRIPT.read(files, hidden_of=lambda model: resolve(model).hidden).setup
        assert price(back, resolve(back.model), machine) == price(row.setup, plan.model, machine)
        seen += 1
    assert seen >= 3


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
