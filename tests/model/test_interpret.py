"""config.json dicts become specs; what is missing or wrong is named."""

import pytest

from planner.errors import InputError, UnsupportedError
from planner.model.interpret import FAMILIES, WRAPPERS, interpret

LLAMA3 = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


def test_llama3_8b_is_read_whole():
    spec = interpret(LLAMA3, id="x")
    assert (spec.id, spec.model_type, spec.layers, spec.stored_dtype) == ("x", "llama", 32, "bf16")
    assert spec.parameters == 8_030_261_248
    assert len(spec.runs) == 1
    attention = spec.runs[0].block.attention
    assert (attention.q_width, attention.kv_width, attention.rope) == (4096, 1024, "full")


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_key_is_named(key):
    config = {name: value for name, value in LLAMA3.items() if name != key}
    with pytest.raises(InputError, match=f"config.json: key '{key}' is missing"):
        interpret(config)


def test_a_misspelt_key_is_offered():
    config = {**LLAMA3, "hiden_size": 4096}
    del config["hidden_size"]
    with pytest.raises(InputError, match="did you mean hidden_size where it says hiden_size"):
        interpret(config)


@pytest.mark.parametrize("value", [-1, 0.5, "4096", True, [4096]])
def test_an_impossible_width_is_named_with_its_value(value):
    with pytest.raises(InputError, match=r"hidden_size is .*; it must be a positive whole number"):
        interpret({**LLAMA3, "hidden_size": value})


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match="hidden_size 4096 is not a multiple of num_attention_heads 33"):
        interpret({**LLAMA3, "num_attention_heads": 33})


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 3}])
def test_a_config_without_model_type_is_refused(config):
    with pytest.raises(InputError, match="key 'model_type' is missing"):
        interpret(config)


def test_an_unknown_architecture_is_refused_with_its_neighbours():
    with pytest.raises(UnsupportedError, match="'lama' has no counting rules here; the nearest known are llama"):
        interpret({**LLAMA3, "model_type": "lama"})


def test_an_unknown_vision_tower_is_refused():
    config = {"model_type": "llava", "text_config": LLAMA3, "vision_config": {"model_type": "sam"}}
    with pytest.raises(UnsupportedError, match="vision tower 'sam'"):
        interpret(config)


def test_absent_keys_take_transformers_defaults_where_the_text_config_is_nested():
    nested = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096}
    config = {"model_type": "llava", "text_config": nested, "vision_config": {"model_type": "clip_vision_model"}}
    spec = interpret(config)
    assert (spec.hidden, spec.layers, spec.runs[0].block.mlp.width) == (4096, 32, 11008)


def test_gemma2_alternates_windows_and_caps_its_scores():
    config = {**LLAMA3, "model_type": "gemma2", "head_dim": 128, "sliding_window": 4096, "num_hidden_layers": 4}
    spec = interpret(config)
    windows = [run.block.attention.sliding_window for run in spec.runs]
    assert windows == [4096, None, 4096, None]
    assert spec.tied_embeddings
    assert spec.head_softcap
    assert spec.scaled_embedding
    assert spec.runs[0].block.attention.softcap
    assert spec.runs[0].block.norms == 4


def test_qwen_slides_only_when_told_to():
    config = {**LLAMA3, "model_type": "qwen2", "sliding_window": 4096, "max_window_layers": 30}
    assert len(interpret(config).runs) == 1
    windows = [
        (run.count, run.block.attention.sliding_window)
        for run in interpret({**config, "use_sliding_window": True}).runs
    ]
    assert windows == [(30, None), (2, 4096)]


def test_null_switches_mistrals_window_off():
    config = {**LLAMA3, "model_type": "mistral"}
    assert interpret(config).runs[0].block.attention.sliding_window == 4096
    assert interpret({**config, "sliding_window": None}).runs[0].block.attention.sliding_window is None


def test_deepseek_has_dense_layers_first_and_latent_attention():
    config = {
        **LLAMA3, "model_type": "deepseek_v2", "num_key_value_heads": 32, "q_lora_rank": None, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64,
        "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "n_shared_experts": 2, "first_k_dense_replace": 1,
    }  # fmt: skip
    spec = interpret(config)
    assert [run.count for run in spec.runs] == [1, 31]
    assert spec.runs[0].block.mlp.width == 14336
    assert spec.runs[1].block.moe.shared.width == 2816
    attention = spec.runs[0].block.attention
    assert (attention.kind, attention.head_dim, attention.q_lora_rank) == ("mla", 192, None)
    assert spec.is_moe
    assert spec.active_parameters < spec.parameters


def test_qwen3_next_mixes_linear_and_full_attention():
    config = {
        **LLAMA3, "model_type": "qwen3_next", "num_hidden_layers": 8, "head_dim": 256, "num_experts": 4,
        "num_experts_per_tok": 2,
    }  # fmt: skip
    kinds = [(run.count, run.block.attention.kind) for run in interpret(config).runs]
    assert kinds == [(3, "linear"), (1, "gqa"), (3, "linear"), (1, "gqa")]
    assert interpret(config).runs[1].block.attention.gated


@pytest.mark.parametrize(
    ("section", "method", "bits", "group"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq", 4, 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq", 8, None),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, "awq", 4, 64),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb", 4, None),
        ({"load_in_4bit": False, "load_in_8bit": True}, "bnb", 8, None),
        ({"quant_method": "fp8"}, "fp8", 8, None),
        ({"quant_method": "mxfp4"}, "mxfp4", 4, None),
    ],
)
def test_a_checkpoints_quantization_is_read(section, method, bits, group):
    found = interpret({**LLAMA3, "quantization_config": section}).quantized
    assert (found.method, found.bits, found.group_size) == (method, bits, group)


def test_a_dtype_is_read_under_both_names_and_is_fp32_where_absent():
    bare = {name: value for name, value in LLAMA3.items() if name != "torch_dtype"}
    assert interpret(bare).stored_dtype == "fp32"
    assert interpret({**bare, "dtype": "float16"}).stored_dtype == "fp16"
    assert interpret({**bare, "torch_dtype": "torch.bfloat16"}).stored_dtype == "bf16"


def test_every_wrapper_has_a_text_family():
    assert all(interpret({"model_type": kind, "text_config": {"num_hidden_layers": 2}}).vision for kind in WRAPPERS)
    assert len(FAMILIES) > 55


def test_falcons_three_shapes():
    base = {
        "model_type": "falcon",
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "vocab_size": 99,
    }
    old = interpret(base).runs[0].block
    assert (old.attention.kv_heads, old.norms, old.parallel) == (1, 1, True)
    new = interpret({**base, "new_decoder_architecture": True, "num_kv_heads": 4}).runs[0].block
    assert (new.attention.kv_heads, new.norms, new.parallel) == (4, 2, True)
    forty = interpret({**base, "model_type": "RefinedWeb", "n_head_kv": 4})
    assert (forty.model_type, forty.runs[0].block.attention.kv_heads) == ("falcon", 4)
    serial = interpret({**base, "multi_query": False, "parallel_attn": False, "alibi": True}).runs[0].block
    assert (serial.attention.kv_heads, serial.norms, serial.parallel, serial.attention.rope) == (8, 2, False, "alibi")
