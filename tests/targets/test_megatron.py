"""Files for LLaMA-Factory's Megatron adapter: read back, at their price, in words of the two public schemas."""

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
from planner.search.constraints import check
from planner.targets import TARGETS
from planner.targets.context import EmitContext
from planner.targets.load import read_setup
from planner.targets.schema import arguments, check_arguments, megatron_arguments
from planner.targets.yaml_text import load_yaml
from planner.training import TrainingSetup
from tests.targets.strategies import contexts, setups
from tests.targets.test_autotp import FIELDS
from tests.targets.test_llamafactory_round_trip import mostly_default

MCA = TARGETS["megatron"]
SIXTEEN = EmitContext(model_path="org/m", hidden=4096, gpus_per_node=8, nodes=2, has_bf16=True)
CUT = TrainingSetup(
    model="7B", engine="megatron", method="full", parallelism="zero1", tensor_parallel=4, pipeline_parallel=2
)


def values(setup: TrainingSetup, context: EmitContext = SIXTEEN) -> dict[str, Any]:
    return load_yaml(MCA.files(setup, context)["train.yaml"], place="train.yaml")


def plan(model: str = "Qwen2.5-32B", gpus: str = "2x8xH100-80GB", **pinned: Any) -> Plan:
    request = Request(model=model, gpus=gpus, engine="megatron", pinned=pinned)
    return make_plan(request, resolve(model), parse_machine(gpus, "2TB"))


@settings(max_examples=200, deadline=None)
@given(
    setups, contexts, st.sampled_from([1, 2, 8]), st.sampled_from([1, 2]), st.sampled_from([1, 2]),
    st.sets(st.sampled_from(FIELDS)),
)  # fmt: skip
def test_files_read_back(
    raw: TrainingSetup, context: EmitContext, tensor: int, pipeline: int, other: int, kept: set[str]
) -> None:
    fixed = {"method": "full", "quantization_bit": None, "parallelism": "zero1", "engine": "megatron"}
    sizes = {"tensor_parallel": tensor, "pipeline_parallel": pipeline, "context_parallel": other}
    try:
        settled = MCA.settle(mostly_default(raw, kept).but(**fixed, **sizes, expert_parallel=other), context)
    except UnsupportedError:
        assume(False)
    files = MCA.files(settled, context) | {"plan.json": json.dumps({"chosen": {"setup": settled.to_dict()}})}
    assert MCA.read(files, hidden_of=lambda _: context.hidden).setup == settled
    assert MCA.settle(settled, context) == settled


def test_every_key_is_an_argument_of_llamafactory_or_of_the_adapter() -> None:
    stated = values(CUT.but(expert_parallel=2))
    check_arguments(stated, place="train.yaml", more=megatron_arguments())
    own = set(stated) & set(megatron_arguments())
    assert own >= {
        "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size", "sequence_parallel",
        "expert_model_parallel_size", "use_distributed_optimizer", "recompute_granularity", "moe_token_dispatcher_type",
    }  # fmt: skip
    assert set(stated) - own <= set(arguments())
    assert stated["sequence_parallel"] is True
    assert values(CUT.but(tensor_parallel=1))["sequence_parallel"] is False
    assert "recompute_granularity" not in values(CUT.but(gradient_checkpointing=False))


def test_a_wrong_key_is_offered_the_adapters_own() -> None:
    text = MCA.files(CUT, SIXTEEN)["train.yaml"].replace("tensor_model_parallel_size", "tensor_model_parallel")
    with pytest.raises(InputError, match="did you mean tensor_model_parallel_size"):
        MCA.read({"train.yaml": text})


def test_the_launcher_is_told() -> None:
    launch = MCA.launch(MCA.settle(CUT, SIXTEEN), SIXTEEN)
    assert {each.name: each.value for each in launch.environment if each.kind == "fixed"}["USE_MCA"] == "1"
    assert launch.chosen.words == ("llamafactory-cli", "train", "train.yaml")
    assert [each.name for each in launch.others] == ["torchrun"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "lora"}, "method lora"),
        ({"parallelism": "zero3"}, "parallelism zero3"),
        ({"stage": "dpo"}, "stage dpo"),
        ({"liger_kernel": True}, "liger_kernel True"),
        ({"attention": "eager"}, "TransformerEngine"),
        ({"gradient_checkpointing": "selective"}, "every layer or none"),
        ({"eval_micro_batch_size": 1}, "eval_micro_batch_size 1"),
        ({"optim": "sgd"}, "optim sgd"),
        ({"tensor_parallel": 3}, "does not divide 16"),
        ({"expert_parallel": 4}, "expert_parallel 4"),
    ],
)
def test_what_the_adapter_cannot_be_told_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        MCA.files(CUT.but(**changes), SIXTEEN)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"parallelism": "ddp"}, "mca-parallelism"),
        ({"method": "lora"}, "mca-method"),
        ({"liger_kernel": True}, "mca-liger-kernel"),
        ({"offload": "optimizer"}, "mca-offload"),
        ({"optim": "adamw_8bit"}, "mca-optim"),
        ({"attention": "flash_attention_2"}, "mca-attention"),
        ({"eval_micro_batch_size": 1}, "mca-evaluation"),
    ],
)
def test_the_rules_refuse_it_too(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rf"\(rule {rule}\)"):
        check(CUT.but(**changes), resolve("7B"), parse_machine("2x8xH100-80GB"))


def test_a_plan_is_read_back_at_its_price_from_its_folder(tmp_path: Any) -> None:
    answer = plan(tensor_parallel=4, pipeline_parallel=2)
    assert answer.chosen is not None
    seen = 0
    for row in answer.configurations:
        for name, text in plan_files(replace(answer, chosen=row)).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        back = read_setup(tmp_path).setup
        assert back.engine == "megatron"
        assert (back.tensor_parallel, back.pipeline_parallel) == (4, 2)
        assert price(back, resolve(back.model), answer.machine) == price(row.setup, answer.model, answer.machine)
        seen += 1
    assert seen


def test_experts_are_spread_over_the_ranks() -> None:
    answer = plan("Qwen3-30B-A3B", "8xH100-80GB", pipeline_parallel=4, expert_parallel=2, micro_batch_size=1)
    assert answer.nearest_miss is not None or answer.chosen is not None
    row = answer.chosen or answer.nearest_miss
    assert row is not None and row.setup.engine == "megatron" and row.setup.parallelism == "zero1"


def test_what_is_not_priced_in_a_file_of_ones_own_is_said() -> None:
    text = (
        "model_name_or_path: org/m\nfinetuning_type: full\nbf16: true\nflash_attn: sdpa\n"
        "tensor_model_parallel_size: 2\nmoe_layer_recompute: true\n"
    )
    reading = MCA.read({"train.yaml": text})
    assert reading.setup.tensor_parallel == 2
    said = " ".join(reading.warnings)
    assert "moe_layer_recompute: True is not priced" in said
    assert "use_distributed_optimizer: off" in said
    assert "sequence_parallel: off" in said
    with pytest.raises(InputError, match="selective is not priced"):
        MCA.read({"train.yaml": text + "recompute_granularity: selective\n"})
