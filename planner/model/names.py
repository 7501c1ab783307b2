"""What each family calls its matrices, so that LoRA targets can be named as peft sees them.

Source: the modelling code of transformers 5.23, or the model's own remote code where that is said. Where releases
differ (GPT-NeoX's head, Granite MoE's router), the name is that of 5.6, which LLaMA-Factory 0.9.5 resolves to.
"""

from __future__ import annotations

LLAMA_NAMES: dict[str, str] = {
    "q": "q_proj", "k": "k_proj", "v": "v_proj", "qkv": "qkv_proj", "o": "o_proj",
    "q_a": "q_a_proj", "q_b": "q_b_proj", "kv_a": "kv_a_proj_with_mqa", "kv_b": "kv_b_proj",
    "linear_in": "in_proj_qkvz", "linear_z": "in_proj_z", "linear_b": "in_proj_ba", "linear_a": "in_proj_a",
    "linear_o": "out_proj",
    "gate": "gate_proj", "up": "up_proj", "gate_up": "gate_up_proj", "down": "down_proj",
    "router": "gate", "shared_router": "shared_expert_gate",
}  # fmt: skip
_GPT2 = {"qkv": "c_attn", "o": "c_proj", "up": "c_fc", "down": "c_proj"}
_NEOX = {"qkv": "query_key_value", "o": "dense", "up": "dense_h_to_4h", "down": "dense_4h_to_h"}
_GPTJ = {"qkv": "qkv_proj", "o": "out_proj", "up": "fc_in", "down": "fc_out"}
_QWEN35 = {"linear_in": "in_proj_qkv", "linear_b": "in_proj_b"}
_W123 = {"gate": "w1", "up": "w3", "down": "w2"}
_LFM2 = {"o": "out_proj", "linear_in": "in_proj", **_W123}
MODULE_NAMES: dict[str, dict[str, str]] = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "starcoder2": {"up": "c_fc", "down": "c_proj"},
    "gpt_neox": _NEOX,
    "falcon": _NEOX,
    "bloom": _NEOX,
    "gptj": _GPTJ,
    "codegen": _GPTJ,
    "gpt_neo": {"o": "out_proj", "up": "c_fc", "down": "c_proj"},
    "opt": {"o": "out_proj", "up": "fc1", "down": "fc2"},
    "mpt": {"qkv": "Wqkv", "o": "out_proj"},
    "phi": {"o": "dense", "up": "fc1", "down": "fc2"},
    "phimoe": {"router": "router", **_W123},
    "mixtral": _W123,
    "gpt_oss": {"router": "router"},
    "llama4_text": {"router": "router"},
    "granitemoe": {"router": "layer"},
    "granitemoeshared": {"router": "layer", "gate_up": "input_linear", "down": "output_linear"},
    "qwen3_5_text": _QWEN35,
    "qwen3_5_moe_text": _QWEN35,
    "qwen3_5": _QWEN35,
    "qwen3_5_moe": _QWEN35,
    "lfm2": _LFM2,
    "lfm2_moe": _LFM2,
    "granitemoehybrid": {
        "router": "router",
        "gate_up": "input_linear",
        "down": "output_linear",
        "linear_in": "in_proj",
    },
    "llama4": {"router": "router"},
    "hunyuan_v1_moe": {"router": "wg"},
    # remote code
    "qwen": {"qkv": "c_attn", "o": "c_proj", "gate": "w2", "up": "w1", "down": "c_proj"},
    "baichuan": {"qkv": "W_pack"},
    "internlm2": {"qkv": "wqkv", "o": "wo", **_W123},
    "chatglm": {**_NEOX, "gate_up": "dense_h_to_4h"},
    "chatglm1": _NEOX,
    "exaone": {"o": "out_proj", "gate": "c_fc_0", "up": "c_fc_1", "down": "c_proj"},
}
# What the embedding, the head and the final norm are called where that is not embed_tokens, lm_head and norm.
OUTER_NAMES: dict[str, tuple[str, str]] = {
    "gpt2": ("wte", "lm_head"),
    "gpt_bigcode": ("wte", "lm_head"),
    "gptj": ("wte", "lm_head"),
    "gpt_neo": ("wte", "lm_head"),
    "codegen": ("wte", "lm_head"),
    "mpt": ("wte", "lm_head"),
    "qwen": ("wte", "lm_head"),
    "exaone": ("wte", "lm_head"),
    "chatglm1": ("word_embeddings", "lm_head"),
    "gpt_neox": ("embed_in", "embed_out"),
    "falcon": ("word_embeddings", "lm_head"),
    "bloom": ("word_embeddings", "lm_head"),
    "chatglm": ("word_embeddings", "output_layer"),
    "internlm2": ("tok_embeddings", "output"),
}
# Families whose head is a Linear that LLaMA-Factory's "all" reaches: it leaves out lm_head (and ChatGLM's and
# InternLM2's) by name only.
HEAD_IN_ALL = frozenset({"gpt_neox"})
# Families built of transformers' Conv1D: peft trains it when named, but LLaMA-Factory's "all" looks for classes with
# "Linear" in their name and finds none.
CONV1D = frozenset({"gpt2"})
