"""Linear modules by name, and what LoRA reaches. The printed numbers are public logs and trainers' own output."""

import pytest

from planner.errors import InputError
from planner.model.catalogue import resolve
from planner.model.interpret import interpret
from planner.model.modules import additional_parameters, block_linears, lora_parameters, lora_targets


def test_llama3_8b_lora_as_its_public_log_prints_it():
    spec = resolve("Llama-3-8B")
    assert spec.parameters == 8_030_261_248
    assert lora_parameters(spec, 8, "all") == 20_971_520
    assert spec.parameters + lora_parameters(spec, 8, "all") == 8_051_232_768
    assert lora_parameters(spec, 8, ("q_proj", "v_proj")) == 3_407_872


@pytest.mark.parametrize(
    ("model", "total", "by_rank"),
    [
        ("Qwen2.5-7B", 7_615_616_512, {16: 40_370_176, 32: 80_740_352, 64: 161_480_704}),
        ("Llama-2-7B", 6_738_415_616, {16: 39_976_960, 32: 79_953_920, 64: 159_907_840}),
    ],
)
def test_lora_on_all_linears(model, total, by_rank):
    spec = resolve(model)
    assert spec.parameters == total
    assert {rank: lora_parameters(spec, rank, "all") for rank in by_rank} == by_rank


def names(model):
    spec = resolve(model)
    return [linear.name for linear in block_linears(spec, spec.runs[-1].block)]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Llama-3-8B", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("Phi-3-mini", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
        ("gpt2", ["c_attn", "c_proj", "c_fc", "c_proj"]),
        ("pythia-70m", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
        ("phi-1_5", ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]),
        ("opt-1.3b", ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
        ("Qwen-7B", ["c_attn", "c_proj", "w2", "w1", "c_proj"]),
        ("Baichuan2-7B", ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("internlm2-7b", ["wqkv", "wo", "w1", "w3", "w2"]),
        ("chatglm3-6b", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
        ("Mixtral", ["q_proj", "k_proj", "v_proj", "o_proj", "gate", "gate_up_proj", "down_proj"]),
        ("mpt-7b", ["Wqkv", "out_proj", "up_proj", "down_proj"]),
    ],
)
def test_modules_are_named_as_their_code_names_them(model, expected):
    assert names(model) == expected


def test_stacked_experts_are_out_of_reach_and_modules_are_not():
    spec = resolve("Mixtral-8x7B")
    block = spec.runs[0].block
    reached = {linear.name for linear in lora_targets(spec, block, "all")}
    assert reached == {"q_proj", "k_proj", "v_proj", "o_proj"}
    as_modules = {linear.name for linear in lora_targets(spec, block, "all", stacked_experts=False)}
    assert as_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"}
    # transformers 4 with peft: 8 experts of three matrices, the router and attention, 32 layers
    per_layer = 4 * 8192 + 2 * (1024 - 4096) + (4096 + 8) + 8 * 3 * (4096 + 14336)
    assert lora_parameters(spec, 1, "all", stacked_experts=False) == 32 * per_layer


def test_experts_that_were_never_modules_stay_stacked():
    spec = resolve("gpt-oss-20b")
    reached = lora_targets(spec, spec.runs[0].block, "all", stacked_experts=False)
    assert {linear.role for linear in reached} == {"q", "k", "v", "o"}


def test_remote_code_keeps_its_experts_as_modules():
    spec = resolve("deepseek-moe-16b-base")
    reached = {linear.role for linear in lora_targets(spec, spec.runs[1].block, "all")}
    assert {"expert_gate", "expert_up", "expert_down", "shared_down"} <= reached


def test_both_ways_of_holding_experts_hold_the_same_parameters():
    spec = resolve("Qwen3-30B-A3B")
    block = spec.runs[0].block
    sums = {sum(each.parameters for each in block_linears(spec, block, stacked_experts=kind)) for kind in (True, False)}
    assert len(sums) == 1


def test_a_dotted_target_names_one_of_two_modules_of_a_name():
    spec = resolve("gpt2")
    both = lora_parameters(spec, 8, ("c_proj",))
    attention = lora_parameters(spec, 8, ("attn.c_proj",))
    assert attention == 12 * 8 * (768 + 768)
    assert both == attention + lora_parameters(spec, 8, ("mlp.c_proj",))


def test_an_unknown_target_is_refused_with_the_names_there_are():
    spec = resolve("Qwen2.5-7B")
    with pytest.raises(
        InputError, match=r"lora_target 'qproj' is no module .* did you mean q_proj\? It has q_proj, k_proj"
    ):
        lora_parameters(spec, 8, ("v_proj", "qproj"))


def test_dora_adds_one_magnitude_for_each_output():
    spec = resolve("Llama-3-8B")
    widths = 4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096
    assert lora_parameters(spec, 8, "all", dora=True) - lora_parameters(spec, 8, "all") == 32 * widths


def test_modules_trained_whole():
    spec = resolve("Qwen-7B")
    assert additional_parameters(spec, ["wte", "lm_head"]) == 2 * 151936 * 4096
    assert additional_parameters(resolve("Llama-3-8B"), ["model.embed_tokens"]) == 128256 * 4096
    with pytest.raises(InputError, match="additional_target 'embed' is no module of"):
        additional_parameters(spec, ["embed"])


def test_lora_on_the_head_and_the_embedding():
    spec = resolve("Llama-3-8B")
    assert lora_parameters(spec, 8, ("lm_head",)) == 8 * (128256 + 4096)


def test_mla_targets():
    spec = resolve("DeepSeek-V2-Lite")
    block = spec.runs[1].block
    shapes = {each.name: (each.inputs, each.outputs) for each in lora_targets(spec, block, "all")}
    assert shapes["q_proj"] == (2048, 16 * 192)
    assert shapes["kv_a_proj_with_mqa"] == (2048, 576)
    assert shapes["kv_b_proj"] == (512, 16 * 256)
    assert shapes["o_proj"] == (2048, 2048)


def test_gated_attention_doubles_the_query():
    config = {
        "model_type": "qwen3_next", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100, "num_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    spec = interpret(config)
    q = next(each for each in block_linears(spec, spec.runs[1].block) if each.role == "q")
    assert q.outputs == 2 * 4 * 16
