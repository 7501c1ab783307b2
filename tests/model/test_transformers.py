"""Our counts against transformers' own model code on the meta device, to the parameter.

Needs torch and transformers (the rows were checked with transformers 5.23): pytest -m transformers.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.model.catalogue import catalogue, config_of, from_row
from planner.model.count import count
from planner.model.defaults import DEFAULTS
from planner.model.interpret import FAMILIES, WRAPPERS, interpret
from planner.model.modules import lora_parameters
from planner.model.names import CONV1D

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.transformers, pytest.mark.filterwarnings("ignore")]
transformers.logging.set_verbosity_error()

NULL_AS_ZERO = ("sliding_window", "q_lora_rank")  # TOML has no null
# Llama 3.2's text side is built inside its wrapper only.
KNOWN = sorted(kind for kind in FAMILIES if kind in transformers.CONFIG_MAPPING and kind != "mllama_text_model")


def build(config: dict[str, Any], *, vision: bool = False) -> Any:
    """transformers' model of this config, without memory."""
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    plain = {key: None if key in NULL_AS_ZERO and value == 0 else value for key, value in plain.items()}
    seen = vision or plain["model_type"] in WRAPPERS
    kind = "AutoModelForImageTextToText" if seen else "AutoModelForCausalLM"
    with torch.device("meta"):
        made = transformers.CONFIG_MAPPING[plain["model_type"]](**json.loads(json.dumps(plain)))
        return getattr(transformers, kind).from_config(made)


def counted(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def has_rules(row: Any) -> bool:
    return not from_row(row).assumed_blocks


def catalogue_configs() -> dict[str, dict[str, Any]]:
    """One config for each distinct shape that transformers knows, under the first id that has it."""
    shapes: dict[str, tuple[str, dict[str, Any]]] = {}
    for row in catalogue().rows:
        if row.kind == "model" and "same_as" not in row.fields:
            config = config_of(row.fields)
            if config["model_type"] in transformers.CONFIG_MAPPING and has_rules(row):
                unseen = {
                    key: value for key, value in config.items() if key not in ("torch_dtype", "quantization_config")
                }
                shapes.setdefault(json.dumps(unseen, sort_keys=True), (row.names[0], config))
    return dict(shapes.values())


CONFIGS = catalogue_configs()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_catalogue_row_equals_transformers(name):
    assert interpret(CONFIGS[name]).parameters == counted(build(CONFIGS[name]))


ASSUMED = {row.names[0]: row for row in catalogue().rows if row.kind == "model" and not has_rules(row)}


@pytest.mark.parametrize("name", ASSUMED)
def test_rows_without_rules_carry_the_count_of_transformers(name):
    fields = ASSUMED[name].fields
    if "meta-device" not in fields["verified"]:
        pytest.skip("its vision tower needs timm: the row says that its total is the known one")
    assert fields["parameters"] == counted(build(config_of(fields), vision="vision_config" in config_of(fields)))


def test_rows_that_claim_this_check_are_checked():
    claimed = {
        row.fields["id"]
        for row in catalogue().rows
        if row.kind == "model" and "meta-device" in row.fields.get("verified", "")
    }
    known = {
        row.fields["id"]
        for row in catalogue().rows
        if row.kind == "model" and config_of(row.fields)["model_type"] in transformers.CONFIG_MAPPING
    }
    assert claimed <= known
    assert len(CONFIGS) > 200


@pytest.mark.parametrize("kind", sorted(WRAPPERS))
def test_vision_sides_equal_transformers(kind):
    config = transformers.CONFIG_MAPPING[kind]().to_dict()
    model = build({**config, "model_type": kind})
    text = ("language_model", "lm_head")
    vision = sum(p.numel() for name, p in model.named_parameters() if not any(word in name for word in text))
    ours = count(interpret(config))
    assert ours.vision + ours.projector == vision
    linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    matrices = sum(m.weight.numel() for name, m in linears.items() if not any(word in name for word in text))
    assert interpret(config).vision.matrices == matrices
    assert ours.total == counted(model)


# Keys that a config class computes from others where it is left alone.
DERIVED = {"partial_rotary_factor", "max_window_layers"}


@pytest.mark.parametrize("kind", sorted(DEFAULTS))
def test_our_defaults_are_transformers(kind):
    made = transformers.CONFIG_MAPPING[kind]().to_dict()
    wrong = {
        key: (value, made.get(key))
        for key, value in DEFAULTS[kind].items()
        if key not in DERIVED and made.get(key) != value
    }
    assert wrong == {}


SWITCHES = (
    "tie_word_embeddings", "attention_bias", "mlp_bias", "use_bias", "use_qkv_bias", "qkv_bias", "bias", "qk_layernorm",
    "use_qk_norm", "lm_head_bias", "use_parallel_residual", "attention_out_bias", "parallel_attn", "enable_bias",
    "multi_query", "new_decoder_architecture", "alibi",
)  # fmt: skip
_GPT = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "intermediate_size": "n_inner", "max_position_embeddings": "n_positions",
}  # fmt: skip
_LOCAL, _ROUTED = {"num_experts": "num_local_experts"}, {"num_experts": "n_routed_experts"}
NATIVE = {
    "gpt2": _GPT, "gpt_bigcode": _GPT, "gptj": _GPT, "codegen": _GPT,
    "bloom": {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    "mpt": {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
    "opt": {"intermediate_size": "ffn_dim"},
    "falcon": {"num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size"},
    "gpt_neo": {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    "ernie4_5_moe": {"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    "hunyuan_v1_moe": {"num_experts_per_tok": "moe_topk"},
    "mixtral": _LOCAL, "phimoe": _LOCAL, "granitemoe": _LOCAL, "granitemoeshared": _LOCAL, "gpt_oss": _LOCAL,
    "granitemoehybrid": _LOCAL, "minimax_m2": _LOCAL, "glm4_moe_lite": _ROUTED,
    "llama4_text": _LOCAL, "deepseek_v2": _ROUTED, "deepseek_v3": _ROUTED, "glm4_moe": _ROUTED, "dots1": _ROUTED,
}  # fmt: skip
# Classes whose weights do not follow the switch: the key is no part of their config.
HEAD_DIM_IS_DERIVED = {
    "gpt2", "gpt_bigcode", "gptj", "codegen", "bloom", "mpt", "opt", "falcon", "gpt_neo", "gpt_neox", "phi", "phi3",
    "stablelm", "starcoder2", "phimoe", "qwen2", "qwen2_moe", "olmo", "cohere", "granite", "granitemoe",
    "granitemoeshared", "granitemoehybrid", "olmoe", "olmo2", "olmo3", "lfm2", "lfm2_moe", "glm4_moe_lite",
}  # fmt: skip


@st.composite
def small_configs(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """A config of this family, small enough that hundreds of them build in a second."""
    heads = draw(st.sampled_from([2, 4, 8]))
    kv_heads = draw(st.sampled_from([n for n in (1, 2, 4, 8) if heads % n == 0]))
    head_dim = draw(st.sampled_from([8, 16, 24]))
    layers = draw(st.integers(1, 6))
    width = draw(st.sampled_from([8, 24, 40]))
    config: dict[str, Any] = {
        "hidden_size": heads * head_dim, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": width, "vocab_size": draw(st.integers(50, 200)),
        "max_position_embeddings": draw(st.sampled_from([32, 64])), "num_experts": draw(st.sampled_from([4, 8])),
        "num_experts_per_tok": 2, "moe_intermediate_size": draw(st.sampled_from([8, 16])),
        "shared_expert_intermediate_size": draw(st.sampled_from([8, 16])), "n_shared_experts": draw(st.integers(1, 2)),
        "moe_num_shared_experts": draw(st.integers(1, 2)), "first_k_dense_replace": draw(st.integers(0, layers)),
        "q_lora_rank": draw(st.sampled_from([None, 12])), "kv_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4, "v_head_dim": draw(st.sampled_from([8, 12])), "n_group": 1, "topk_group": 1,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
        "linear_conv_kernel_dim": draw(st.sampled_from([2, 4])), "decoder_sparse_step": draw(st.integers(1, 2)),
        "interleave_moe_layer_step": draw(st.integers(1, 2)), "intermediate_size_mlp": 48, "rotary_dim": 4,
        "word_embed_proj_dim": draw(st.sampled_from([heads * head_dim, 8])), "shared_intermediate_size": 16,
        "attention_types": [[["global"], layers]], "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    if kind not in HEAD_DIM_IS_DERIVED:
        config["head_dim"] = draw(st.sampled_from([8, 16, 32]))
    for switch in SWITCHES:
        config[switch] = draw(st.booleans())
    if kind == "granitemoehybrid":  # its Mamba layers have no rules here
        config |= {"layer_types": ["attention"] * layers, "mamba_n_heads": 2}
        config["num_experts"] = draw(st.sampled_from([0, 4, 8]))
    if kind in ("lfm2", "lfm2_moe"):
        kinds = st.sampled_from(["conv", "full_attention"])
        config["layer_types"] = draw(st.lists(kinds, min_size=layers, max_size=layers))
        config |= {"conv_bias": draw(st.booleans()), "block_auto_adjust_ff_dim": draw(st.booleans())}
        config |= {
            "num_dense_layers": draw(st.integers(0, layers)),
            "block_multiple_of": draw(st.sampled_from([8, 256])),
        }
    if kind == "minicpm3":
        config["q_lora_rank"] = 12
    if kind == "helium":  # its o_proj is square
        config["head_dim"] = head_dim
    if kind == "internlm3":  # transformers builds no other
        config["qkv_bias"] = config["bias"]
    if kind in ("bloom", "mpt"):  # always four times the width there
        del config["intermediate_size"]
    renamed = NATIVE.get(kind, {})
    return {"model_type": kind, **{renamed.get(key, key): value for key, value in config.items()}}


@pytest.mark.parametrize("kind", KNOWN)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_configs_of_every_family_equal_transformers(kind, data):
    config = data.draw(small_configs(kind))
    assert interpret(config).parameters == counted(build(config))


def shallow(kind: str) -> dict[str, Any] | None:
    """The family's first catalogue config with four layers."""
    found = next((config for config in CONFIGS.values() if config["model_type"] == kind), None)
    if found is None:
        return None
    layers = dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4)
    short = {key: layers.get(key, value) for key, value in found.items() if key != "attention_types"}
    return {key: value[:4] if key == "layer_types" else value for key, value in short.items()}


# Releases of transformers differ in these: a router, or the head, is a Linear in one and not in the next.
DIFFER = {"deepseek_v2", "granitemoe", "gpt_neox"}
# peft from 0.19 also reaches stacked experts whose names match those of a shared expert; LLaMA-Factory 0.9.5 has 0.18.
PEFT_REACHES_EXPERTS = {
    "deepseek_v3", "dots1", "ernie4_5_moe", "glm4_moe", "glm4_moe_lite", "hunyuan_v1_moe", "qwen3_next",
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [each for each in KNOWN if each not in DIFFER | PEFT_REACHES_EXPERTS | CONV1D and shallow(each)]
)
def test_lora_on_all_linears_is_what_peft_makes(kind):
    peft = pytest.importorskip("peft")
    config = shallow(kind)
    if kind == "gpt_neo":
        config["attention_types"] = [[["global"], 4]]
    if kind == "exaone4":
        config["layer_types"] = ["full_attention"] * 4
    model = build(config)
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if "Linear" in type(module).__name__ and "lm_head" not in name
    }
    with torch.device("meta"):
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=sorted(names)))
    made = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    assert lora_parameters(interpret(config), 8, "all") == made
