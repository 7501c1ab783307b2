"""The rules: that each row is sound, that they say no where they must, and that unknown hardware is no reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError
from planner.hardware.machine import Machine
from planner.hardware.parse import parse_machine
from planner.memory.regime import OWN_LOOPS, RESOLVED_VERSIONS, TRAINER_ENGINES
from planner.model.catalogue import resolve
from planner.model.spec import Attention, Block, Mlp, ModelSpec, Moe, Quantized, Run
from planner.rulebook.load import problems_in, read_rules
from planner.rulebook.schema import ConstraintRow, EngineRow
from planner.search.constraints import Laws, check, config_violations, required_packages, violations
from planner.search.facts import KNOWN_FIELDS, OF_THE_PLACE, Facts
from planner.training import TrainingSetup, setup_from_mapping
from tests.search.world import KIND, SPEC, machine

TOOLS = Path(__file__).resolve().parents[2] / "tools"
ROWS = read_rules("constraints")["constraint"]


def setup(**fields: Any) -> TrainingSetup:
    return TrainingSetup(**{"model": "7B", "parallelism": "ddp", **fields})


def test_every_row_is_valid() -> None:
    assert problems_in(ROWS, ConstraintRow, place="constraints.toml", known_fields=KNOWN_FIELDS) == []


def test_every_engine_named_by_a_rule_has_a_row() -> None:
    engines = read_rules("engines")["engine"]
    assert problems_in(engines, EngineRow, place="engines.toml") == []
    known = {row["id"] for row in engines} | {"*"}
    assert {name for row in ROWS for name in row.get("engines", ["*"])} <= known


def test_engine_rows_agree_with_what_is_priced() -> None:
    rows = {row["id"]: row for row in read_rules("engines")["engine"]}
    assert {name for name, row in rows.items() if row["own_rules"]} == TRAINER_ENGINES | OWN_LOOPS
    for name, priced in (("llamafactory", "llamafactory"), ("transformers", "other"), ("trl", "other")):
        stated = rows[name]["versions"]
        assert {package: stated[package] for package in RESOLVED_VERSIONS[priced]} == RESOLVED_VERSIONS[priced]


def test_all_rules_of_the_trainer_are_there() -> None:
    """LLaMA-Factory's own checks number 51 groups, from its argument classes to the models it loads."""
    numbers = {int(row["id"].split("-")[1][:2]) for row in ROWS if row["id"].startswith("lf-")}
    assert set(range(1, 52)) <= numbers


def test_bad_rows_are_all_reported_by_row_and_field() -> None:
    said = {"effect": "warn", "reason": "x" * 20, "source": "here"}
    rows: list[dict[str, Any]] = [
        {"id": "one", "when": [{"field": "methd", "op": "eq", "value": "full"}], **said},
        {"id": "two", "when": [], "effect": "forbids", "reason": "short", "source": "here", "efect": 1},
        {"id": "two", "when": [{"field": "method", "op": "true", "value": 1}], **said},
    ]
    found = problems_in(rows, ConstraintRow, place="own.toml", known_fields=KNOWN_FIELDS)
    assert any("row 1 (one), when: field 'methd' is not known; did you mean method?" in text for text in found)
    assert any("row 2 (two), efect: unknown key; did you mean effect?" in text for text in found)
    assert any("row 2 (two), when:" in text for text in found)
    assert any("row 2 (two), reason:" in text for text in found)
    assert any("row 3 (two), id: used twice" in text for text in found)
    assert any("row 3 (two)" in text and "takes no value" in text for text in found)


FORBIDDEN = [
    ("lf-16-several-gpus-one-process", {"parallelism": "none"}),
    ("lf-22-pure-bf16-zero3", {"method": "full", "param_dtype": "bf16", "parallelism": "zero3"}),
    ("lf-23d-badam-layer-zero3", {"method": "badam"}),
    ("lf-23c-badam-ratio-distributed", {"method": "badam", "badam_mode": "ratio"}),
    ("lf-24-galore-deepspeed", {"method": "galore", "parallelism": "zero2"}),
    ("lf-24b-apollo-deepspeed", {"method": "apollo", "parallelism": "zero3"}),
    ("lf-27-unsloth-zero3", {"unsloth": True, "parallelism": "zero3"}),
    ("lf-28-quantized-method", {"method": "full", "quantization_bit": 4}),
    ("lf-28-quantized-method", {"method": "freeze", "quantization_bit": 8}),
    ("lf-33-8bit-sharded", {"method": "qlora", "quantization_bit": 8, "parallelism": "fsdp"}),
    ("lf-33-8bit-sharded", {"method": "qlora", "quantization_bit": 8, "parallelism": "zero3"}),
    ("lf-36-freeze-layers", {"method": "freeze", "freeze_trainable_layers": 29}),
    ("lf-45-galore-optim", {"method": "galore", "optim": "sgd"}),
    ("lf-45b-apollo-optim", {"method": "apollo", "optim": "adamw_8bit"}),
    ("lf-52-grpo", {"stage": "grpo"}),
    ("lf-04b-pref-loss", {"stage": "dpo", "pref_loss": "sigmod"}),
    ("parallel-product", {"tensor_parallel": 2}),
    ("lf-53b-tensor-parallel-zero3", {"tensor_parallel": 3, "method": "full", "parallelism": "zero3"}),
    ("lf-53b-tensor-parallel-method", {"tensor_parallel": 3, "method": "lora", "parallelism": "zero1"}),
    ("lf-53b-tensor-parallel-stage", {"tensor_parallel": 3, "method": "full", "parallelism": "zero1", "stage": "dpo"}),
    ("lf-53b-tensor-parallel-liger", {"tensor_parallel": 3, "parallelism": "zero1", "liger_kernel": True}),
    ("lf-53b-tensor-parallel-kernels", {"tensor_parallel": 3, "parallelism": "zero1", "unsloth": True}),
    ("lf-53b-tensor-parallel-compile", {"tensor_parallel": 3, "parallelism": "zero1", "torch_compile": True}),
    ("parallel-too-large", {"tensor_parallel": 4}),
    ("lora-rank-width", {"lora_rank": 513}),
    ("offload-needs-sharding", {"offload": "optimizer"}),
    ("offload-params-stage", {"offload": "all", "parallelism": "zero2"}),
    ("optimizer-in-backward-accumulation", {"optimizer_in_backward": True, "gradient_accumulation_steps": 2}),
    ("fp16-weights", {"method": "full", "param_dtype": "fp16", "compute_dtype": "fp16"}),
    ("flash-attention-fp32", {"attention": "flash_attention_2", "compute_dtype": "fp32"}),
    ("experts-parallel", {"expert_parallel": 3}),
]


def test_a_module_trained_whole_must_be_one_of_the_models() -> None:
    for names in (["embed_tokens"], ["model.embed_tokens", "lm_head"], ["gate_proj", "norm"]):
        assert check(setup(additional_target=names), SPEC, machine(1)) == ()
    with pytest.raises(InputError, match="additional_target 'embeddings' is no module"):
        check(setup(additional_target=["embeddings"]), SPEC, machine(1))


@pytest.mark.parametrize(
    ("rule", "fields"), FORBIDDEN, ids=[f"{rule}-{number}" for number, (rule, _) in enumerate(FORBIDDEN)]
)
def test_impossible_combinations_are_refused_by_rule(rule: str, fields: dict[str, Any]) -> None:
    found = violations(setup(**fields), SPEC, machine(3))
    assert rule in {each.rule_id for each in found if each.effect == "forbid"}
    with pytest.raises(InputError, match=r"\(rule [a-z0-9.-]+\)"):
        check(setup(**fields), SPEC, machine(3))


def test_a_table_of_positions_ends_and_rotations_do_not() -> None:
    table = replace(SPEC, position_embeddings=32768)
    (refused,) = violations(setup(seq_len=32769), table, machine(3))
    assert (refused.rule_id, refused.effect) == ("context-length", "forbid")
    (warned,) = violations(setup(seq_len=32769), SPEC, machine(3))
    assert (warned.rule_id, warned.effect) == ("context-beyond-training", "warn")
    assert violations(setup(seq_len=32768), table, machine(3)) == ()


OLD_CARD = [
    ("gpu-bf16", {"compute_dtype": "bf16"}),
    ("gpu-bf16-weights", {"method": "full", "param_dtype": "bf16"}),
    ("gpu-flash-attention", {"attention": "flash_attention_2"}),
]


@pytest.mark.parametrize(("rule", "fields"), OLD_CARD, ids=[rule for rule, _ in OLD_CARD])
def test_a_turing_card_is_held_to_what_it_has(rule: str, fields: dict[str, Any]) -> None:
    old = {
        each.rule_id: each.sentence
        for each in violations(setup(**fields), SPEC, machine(3, capability=(7, 5), kind=None))
    }
    assert "this GPU has 7.5" in old[rule]
    assert rule not in {
        each.rule_id for each in violations(setup(**fields), SPEC, machine(3, capability=None, kind=None))
    }


def test_unsloth_on_several_gpus_is_priced_and_not_recommended() -> None:
    found = violations(setup(unsloth=True), SPEC, machine(3))
    assert [(each.rule_id, each.effect) for each in found] == [("unsloth-several-gpus", "unproven")]


def test_a_base_that_the_engine_would_leave_in_16_bit_is_priced_and_not_recommended() -> None:
    found = violations(setup(method="qlora", quantization_method="gptq"), SPEC, machine(1))
    assert [(each.rule_id, each.effect) for each in found] == [("lf-34d-method-silently-dropped", "unproven")]
    assert "silently keep 16 bits" in found[0].sentence


def test_no_published_run_is_refused() -> None:
    """They ran. (Rows that the contract cannot state are left out, as everywhere.)"""
    sys.path.insert(0, str(TOOLS))
    try:
        import measured_setups
    finally:
        sys.path.pop(0)
    judged, unknown = 0, set()
    for row in measured_setups.rows():
        try:
            stated = setup_from_mapping(measured_setups.statement(row))
        except measured_setups.NotStatableError:
            continue
        if "tiny-gpt2" in stated.model:
            continue  # two numbers wide, for trying scripts out: no rank is below its width
        try:
            spec = resolve(stated.model)
        except InputError:
            unknown.add(stated.model)
            continue
        check(stated, spec, parse_machine(str(stated.gpus)))
        judged += 1
    assert judged > 400
    assert unknown <= {"tencent/Hunyuan-0.5B-Instruct"}  # its config.json is not published anywhere that was read


def test_sensible_setups_pass_without_a_word() -> None:
    for fields in (
        {},
        {"method": "full", "parallelism": "zero3"},
        {"method": "qlora", "parallelism": "fsdp"},
        {"liger_kernel": True},
    ):
        assert check(setup(**fields), SPEC, machine(3)) == ()


def test_a_rank_as_wide_as_the_narrowest_target_is_allowed() -> None:
    assert check(setup(lora_rank=512), SPEC, machine(3)) == ()
    assert check(setup(lora_rank=1024, lora_target=("q_proj", "o_proj")), SPEC, machine(3)) == ()


def test_a_router_does_not_limit_the_rank() -> None:
    moe = Moe(experts=8, experts_per_token=2, expert=Mlp(width=14336))
    block = Block(attention=Attention(heads=32, kv_heads=8, head_dim=128), moe=moe)
    spec = ModelSpec(id="m", model_type="mixtral", hidden=4096, vocab=32000, runs=(Run(count=2, block=block),))
    assert not any(each.rule_id == "lora-rank-width" for each in violations(setup(lora_rank=64), spec, machine(3)))


def test_liger_is_dropped_for_a_model_it_does_not_know() -> None:
    spec = ModelSpec(id="m", model_type="bloom", hidden=3584, vocab=1000, runs=SPEC.runs)
    found = violations(setup(liger_kernel=True), spec, machine(3))
    assert [(each.rule_id, each.effect) for each in found] == [("lf-41-liger-model", "ignored")]
    assert "bloom" in found[0].sentence


def test_a_quantized_checkpoint_is_not_sharded() -> None:
    gptq = ModelSpec(
        id="m", model_type="llama", hidden=3584, vocab=1000, runs=SPEC.runs, quantized=Quantized(method="gptq", bits=4)
    )
    assert not any(each.effect == "forbid" for each in violations(setup(), gptq, machine(3)))
    with pytest.raises(InputError, match="gptq-quantized checkpoint cannot be sharded by zero3"):
        check(setup(parallelism="zero3"), gptq, machine(3))


def test_rules_of_one_engine_do_not_bind_another() -> None:
    pure = {"method": "full", "param_dtype": "bf16", "parallelism": "zero3", "engine": "transformers"}
    assert check(setup(**pure), SPEC, machine(3)) == ()


CONFIGS = [
    ("lf-09e-streaming-max-samples", {"streaming": True, "max_samples": 1000, "max_steps": 10}),
    ("lf-18-streaming-max-steps", {"streaming": True}),
    ("lf-25-fp8-quantized", {"fp8": True, "quantization_bit": 4}),
    ("lf-44-neat-packing-batch", {"neat_packing": True, "flash_attn": "fa2", "per_device_train_batch_size": 4}),
    ("lf-06-lora-galore", {"use_galore": True, "finetuning_type": "lora"}),
    ("lf-11-generate-outside-sft", {"predict_with_generate": True, "stage": "dpo"}),
    ("lf-09d-streaming-fraction", {"streaming": True, "val_size": 0.1, "max_steps": 10}),
    ("gpu-fp8", {"fp8": True}),
]


@pytest.mark.parametrize(("rule", "config"), CONFIGS, ids=[rule for rule, _ in CONFIGS])
def test_keys_of_a_train_yaml_are_judged(rule: str, config: dict[str, Any]) -> None:
    config = {"model_name_or_path": "x", **config}
    assert rule in {each.rule_id for each in config_violations(config, setup(), SPEC, machine(3))}
    assert rule not in {
        each.rule_id for each in config_violations({"model_name_or_path": "x"}, setup(), SPEC, machine(3))
    }


def test_an_empty_train_yaml_lacks_a_model_only() -> None:
    assert [each.rule_id for each in config_violations({}, setup(), SPEC, machine(3))] == ["lf-01-model-missing"]


def test_packages_follow_from_the_setup() -> None:
    wanted = setup(method="qlora", liger_kernel=True, parallelism="zero2", optim="paged_adamw_8bit")
    packages = required_packages(wanted, SPEC, machine(3))
    assert set(packages) == {
        "deepspeed>=0.10",
        "bitsandbytes>=0.43.0",
        "liger-kernel>=0.6.3",
    }
    assert required_packages(setup(), SPEC, machine(3)) == ()


def test_geforce_generations_are_read_from_the_name() -> None:
    from dataclasses import replace

    def named(name: str) -> Machine:
        return machine(2, kind=replace(KIND, name=name))

    def ids(where: Machine) -> set[str]:
        return {each.rule_id for each in violations(setup(tensor_parallel=2), SPEC, where)}

    assert "gpu-geforce-nvlink" in ids(named("NVIDIA GeForce RTX 4090"))
    assert "gpu-geforce-nvlink" not in ids(named("NVIDIA GeForce RTX 3090"))
    assert "gpu-geforce-nvlink" not in ids(named("NVIDIA RTX 6000 Ada Generation"))


def test_tensor_parallelism_without_zero_is_priced_and_not_recommended() -> None:
    """LLaMA-Factory has it outside DeepSpeed through its Megatron adapter only."""
    cut = setup(tensor_parallel=3, method="lora", parallelism="ddp")
    (found,) = [each for each in violations(cut, SPEC, machine(3)) if each.rule_id.startswith("lf-53b")][:1]
    assert (found.rule_id, found.effect) == ("lf-53b-tensor-parallel-zero", "unproven")
    assert not any(each.effect == "forbid" for each in violations(cut, SPEC, machine(3)) if "53b" in each.rule_id)


@pytest.mark.parametrize("gpus", ["1xT4", "2xRTX4090", "8xH100-80GB"])
@pytest.mark.parametrize("engine", ["llamafactory", "trl", "embedded"])
def test_rules_settled_by_model_and_machine_refuse_what_all_rules_refuse(gpus: str, engine: str) -> None:
    """What the search asks of each setup, against every rule read anew."""
    where, refused = parse_machine(gpus), 0
    for model in ("Qwen2.5-0.5B", "gemma-2-9b", "Mixtral-8x7B"):
        spec = resolve(model)
        laws = Laws(spec, where)
        for fields in _many():
            one = setup(model=model, engine=engine, **fields)
            found = next((each for each in violations(one, spec, where) if each.effect in ("forbid", "unproven")), None)
            said = None if found is None else f"{found.sentence} (rule {found.rule_id})"
            assert laws.refusal(one) == said, fields
            refused += said is not None
    assert refused > 0


def _many() -> Iterator[dict[str, Any]]:
    methods = ({"method": "full"}, {"method": "lora"}, {"method": "dora"}, {"method": "qlora", "quantization_bit": 4})
    for method, dtype, spread, kernels, length in product(
        methods,
        ("bf16", "fp16", "fp32"),
        ({"parallelism": "none"}, {"parallelism": "zero3", "offload": "optimizer"}, {"parallelism": "fsdp2"}),
        (
            {"attention": "sdpa", "liger_kernel": True},
            {"attention": "flash_attention_2"},
            {"unsloth": True},
            {"optim": "adamw_8bit"},
        ),
        (2048, 10**7),
    ):
        yield method | spread | kernels | {"compute_dtype": dtype, "seq_len": length}


def test_facts_of_the_place_are_known_without_a_setup() -> None:
    """Otherwise a rule would be settled by the first setup that is asked about."""
    where = parse_machine("2xRTX4090")
    for name in OF_THE_PLACE:
        Facts(None, SPEC, where).get(name)  # type: ignore[arg-type] # a fact that reads the setup fails here
