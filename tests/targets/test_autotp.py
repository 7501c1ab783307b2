"""Tensor parallelism through LLaMA-Factory: what is written for DeepSpeed's AutoTP is read back, at its price."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.emit.folder import plan_files
from planner.errors import InputError, UnsupportedError
from planner.hardware.parse import parse_machine
from planner.memory.estimate import price
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request
from planner.targets import TARGETS
from planner.targets.context import EmitContext
from planner.targets.yaml_text import load_yaml
from planner.training import TrainingSetup
from tests.targets.strategies import contexts, setups
from tests.targets.test_llamafactory_round_trip import mostly_default

LF = TARGETS["llamafactory"]
EIGHT = EmitContext(model_path="org/m", hidden=4096, gpus_per_node=8, has_bf16=True)
CUT = TrainingSetup(model="7B", method="full", parallelism="zero1", tensor_parallel=4)


def plan(**pinned: Any) -> Plan:
    request = Request(model="Qwen2.5-14B", gpus="8xH100-80GB", method="full", pinned=pinned)
    return make_plan(request, resolve("Qwen2.5-14B"), parse_machine("8xH100-80GB", "2TB"))


FIELDS = sorted(set(TrainingSetup.__dataclass_fields__) - {"model", "engine", "gpus", "ds_config", "versions"})


@settings(max_examples=200, deadline=None)
@given(setups, contexts, st.sampled_from(["zero1", "zero2"]), st.sampled_from([2, 8]), st.sets(st.sampled_from(FIELDS)))
def test_files_read_back(raw: TrainingSetup, context: EmitContext, zero: str, size: int, kept: set[str]) -> None:
    cut = {"method": "full", "quantization_bit": None, "parallelism": zero, "tensor_parallel": size}
    try:
        settled = LF.settle(mostly_default(raw, kept).but(**cut), context)
    except UnsupportedError:
        assume(False)
    assert settled.tensor_parallel == size
    files = LF.files(settled, context) | {"plan.json": json.dumps({"chosen": {"setup": settled.to_dict()}})}
    assert LF.read(files, hidden_of=lambda _: context.hidden).setup == settled
    assert LF.settle(settled, context) == settled


def test_the_json_cuts_layers_and_vocabulary_and_gathers_what_is_saved() -> None:
    files = LF.files(CUT, EIGHT)
    config = json.loads(files["ds_config.json"])
    assert config["tensor_parallel"] == {"autotp_size": 4, "vocab_parallel_lm_head": True}
    assert config["zero_optimization"]["stage"] == 1
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert load_yaml(files["train.yaml"], place="train.yaml")["low_cpu_mem_usage"] is False


def test_without_it_nothing_of_it_is_written() -> None:
    files = LF.files(CUT.but(tensor_parallel=1), EIGHT)
    assert "tensor_parallel" not in files["ds_config.json"]
    assert "gather_16bit" not in files["ds_config.json"]
    assert "low_cpu_mem_usage" not in files["train.yaml"]


def test_a_plan_for_it_is_read_back_at_its_price() -> None:
    answer = plan(tensor_parallel=4)
    assert answer.chosen is not None
    assert answer.chosen.setup.tensor_parallel == 4
    assert answer.chosen.setup.parallelism in ("zero1", "zero2")
    assert not answer.chosen.setup.liger_kernel
    assert answer.chosen.setup.micro_batch_size * answer.chosen.setup.gradient_accumulation_steps * 2 == 64
    seen = 0
    for row in answer.configurations:
        back = LF.read(plan_files(replace(answer, chosen=row)), hidden_of=lambda name: resolve(name).hidden).setup
        assert price(back, resolve(back.model), answer.machine) == price(row.setup, answer.model, answer.machine)
        seen += 1
    assert seen


def test_nobody_gets_it_unasked_where_something_else_fits() -> None:
    answer = plan()
    rows = [answer.chosen, *answer.configurations, *answer.alternatives]
    assert all(row is not None and row.setup.tensor_parallel == 1 for row in rows)


def test_a_json_of_ones_own_says_its_size() -> None:
    config = {"zero_optimization": {"stage": 2}, "tensor_parallel": {"autotp_size": 2}}
    yaml = "model_name_or_path: org/m\nfinetuning_type: full\ndeepspeed: ds.json\n"
    reading = LF.read({"train.yaml": yaml, "ds.json": json.dumps(config)})
    assert (reading.setup.tensor_parallel, reading.setup.parallelism) == (2, "zero2")
    assert reading.setup.ds_config == config
    assert any("before AutoTP cuts it" in warning for warning in reading.warnings)


@pytest.mark.parametrize(
    ("section", "words"),
    [({"autotp_size": "two"}, "autotp_size 'two' is not valid"), (2, "tensor_parallel 2 is not an object")],
)
def test_a_json_that_is_wrong_is_refused(section: Any, words: str) -> None:
    config = {"zero_optimization": {"stage": 2}, "tensor_parallel": section}
    with pytest.raises(InputError, match=words):
        LF.read({"train.yaml": "deepspeed: ds.json\n", "ds.json": json.dumps(config)})


def test_a_json_and_a_setup_that_disagree_are_refused() -> None:
    config = {"zero_optimization": {"stage": 1}, "tensor_parallel": {"autotp_size": 2}}
    with pytest.raises(InputError, match="ds_config says tensor_parallel 2 and the setup says 4"):
        LF.settle(CUT.but(ds_config=config), EIGHT)
