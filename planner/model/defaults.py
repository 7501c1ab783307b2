"""What transformers assumes where a config.json leaves a key out, by model type.

Source: the configuration classes of transformers 5.23 (``<Type>Config()``), Apache-2.0; a test compares the
two. Only keys that this package reads; values that are derived (heads for key heads, hidden/heads for the head
width) are left to the reader.
"""

from __future__ import annotations

from typing import Any

# fmt: off
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32000, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
    },
    "qwen2": {
        "num_key_value_heads": 32,
        "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 151936, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 32768,
        "max_window_layers": 28,
    },
    "qwen3": {
        "num_key_value_heads": 32, "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 151936, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 32768,
        "max_window_layers": 28,
    },
    "qwen2_moe": {
        "num_key_value_heads": 16,
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
        "vocab_size": 151936, "tie_word_embeddings": False, "qkv_bias": True, "hidden_act": "silu",
        "max_position_embeddings": 32768, "max_window_layers": 28, "num_experts": 60, "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1,
    },
    "qwen3_moe": {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 151936, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 32768, "num_local_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "decoder_sparse_step": 1,
    },
    "qwen3_next": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 151936, "tie_word_embeddings": False, "hidden_act":
        "silu", "max_position_embeddings": 32768, "num_experts": 512, "num_experts_per_tok": 10,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "decoder_sparse_step": 1,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "partial_rotary_factor": 0.25,
    },
    "mistral": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 131072, "sliding_window": 4096,
    },
    "mixtral": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 131072, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "gemma": {
        "num_key_value_heads": 16,
        "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
        "head_dim": 256, "vocab_size": 256000, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
    },
    "gemma2": {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000, "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "sliding_window": 4096,
        "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
    },
    "gemma3_text": {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072, "sliding_window": 4096,
    },
    "phi": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
        "vocab_size": 51200, "tie_word_embeddings": False, "hidden_act": "gelu_new", "max_position_embeddings":
        2048, "partial_rotary_factor": 0.5,
    },
    "phi3": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32064, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0,
    },
    "phimoe": {
        "hidden_size": 4096, "intermediate_size": 6400, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32064, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 131072, "num_local_experts": 16, "num_experts_per_tok": 2,
    },
    "gpt2": {
        "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "tie_word_embeddings": True,
        "activation_function": "gelu_new", "n_positions": 1024,
    },
    "gpt_bigcode": {
        "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257,
        "tie_word_embeddings": True, "activation_function": "gelu_pytorch_tanh", "n_positions": 1024, "multi_query":
        True,
    },
    "gptj": {
        "n_embd": 4096, "n_layer": 28, "n_head": 16, "vocab_size": 50400, "tie_word_embeddings": False,
        "activation_function": "gelu_new", "n_positions": 2048, "rotary_dim": 64,
    },
    "gpt_neox": {
        "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44, "num_attention_heads": 64,
        "vocab_size": 50432, "tie_word_embeddings": False, "attention_bias": True, "hidden_act": "gelu",
        "max_position_embeddings": 2048, "use_parallel_residual": True, "partial_rotary_factor": 0.25,
    },
    "falcon": {
        "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "vocab_size": 65024,
        "tie_word_embeddings": True, "max_position_embeddings": 2048, "parallel_attn": True, "multi_query": True,
    },
    "bloom": {
        "hidden_size": 64, "n_layer": 2, "n_head": 8, "vocab_size": 250880, "tie_word_embeddings": True,
    },
    "mpt": {
        "d_model": 2048, "n_layers": 24, "n_heads": 16, "vocab_size": 50368, "tie_word_embeddings": True,
        "max_seq_len": 2048, "expansion_ratio": 4,
    },
    "mllama_text_model": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 40, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 131072,
    },
    "opt": {
        "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size":
        50272, "tie_word_embeddings": True, "activation_function": "relu", "max_position_embeddings": 2048,
        "word_embed_proj_dim": 768, "do_layer_norm_before": True, "enable_bias": True,
        "layer_norm_elementwise_affine": True,
    },
    "starcoder2": {
        "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30, "num_attention_heads": 24,
        "num_key_value_heads": 2, "vocab_size": 49152, "tie_word_embeddings": True, "use_bias": True, "hidden_act":
        "gelu_pytorch_tanh", "max_position_embeddings": 4096,
    },
    "stablelm": {
        "num_key_value_heads": 32,
        "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 50304, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.25,
    },
    "cohere": {
        "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40, "num_attention_heads": 64,
        "vocab_size": 256000, "tie_word_embeddings": True, "hidden_act": "silu", "max_position_embeddings": 8192,
    },
    "cohere2": {
        "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40, "num_attention_heads": 64,
        "vocab_size": 256000, "tie_word_embeddings": True, "hidden_act": "silu", "max_position_embeddings": 8192,
        "sliding_window": 4096,
    },
    "olmo": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 50304, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
    },
    "olmo2": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 50304, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
    },
    "olmo3": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 50304, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
        "sliding_window": 4096,
    },
    "olmoe": {
        "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
        "vocab_size": 50304, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 4096,
        "num_experts": 64, "num_experts_per_tok": 8,
    },
    "granite": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32000, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
    },
    "granitemoe": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32000, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
        "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "granitemoeshared": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32000, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
        "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "glm": {
        "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 32,
        "num_key_value_heads": 2, "vocab_size": 151552, "tie_word_embeddings": False, "attention_bias": True,
        "hidden_act": "silu", "max_position_embeddings": 131072, "partial_rotary_factor": 0.5,
    },
    "glm4": {
        "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 32,
        "num_key_value_heads": 2, "vocab_size": 151552, "tie_word_embeddings": False, "attention_bias": True,
        "hidden_act": "silu", "max_position_embeddings": 131072, "partial_rotary_factor": 0.5,
    },
    "glm4_moe": {
        "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 46, "num_attention_heads": 96,
        "num_key_value_heads": 8, "vocab_size": 151552, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 131072, "n_routed_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 1408, "n_shared_experts": 1, "first_k_dense_replace": 1, "partial_rotary_factor":
        0.5,
    },
    "deepseek_v2": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 102400, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 2048, "n_routed_experts": 64, "moe_intermediate_size": 1407, "n_shared_experts":
        2, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim":
        128,
    },
    "deepseek_v3": {
        "num_key_value_heads": 128,
        "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61, "num_attention_heads": 128,
        "vocab_size": 129280, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 4096, "n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size":
        2048, "n_shared_experts": 1, "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    },
    "gpt_oss": {
        "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088, "tie_word_embeddings": False,
        "attention_bias": True, "hidden_act": "silu", "max_position_embeddings": 131072, "sliding_window": 128,
        "num_local_experts": 128, "num_experts_per_tok": 4,
    },
    "llama4_text": {
        "head_dim": 128,
        "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384, "num_hidden_layers": 48,
        "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 202048, "tie_word_embeddings": False,
        "hidden_act": "silu", "max_position_embeddings": 131072, "use_qk_norm": True, "num_local_experts": 16,
        "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
    },
    "smollm3": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 128256, "tie_word_embeddings": True, "hidden_act": "silu",
        "max_position_embeddings": 32768,
    },
    "ernie4_5": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 103424, "tie_word_embeddings": True, "hidden_act":
        "silu", "max_position_embeddings": 131072,
    },
    "ernie4_5_moe": {
        "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28, "num_attention_heads": 20,
        "num_key_value_heads": 4, "vocab_size": 103424, "tie_word_embeddings": True, "hidden_act": "silu",
        "max_position_embeddings": 131072, "moe_intermediate_size": 1536, "moe_num_experts": 64, "moe_k": 6,
        "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_interval": 1,
    },
    "seed_oss": {
        "hidden_size": 4096, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 80,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 155136, "tie_word_embeddings": False,
        "attention_bias": True, "hidden_act": "silu", "max_position_embeddings": 524288,
    },
    "hunyuan_v1_dense": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 290943, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
    },
    "hunyuan_v1_moe": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 290943, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
        "num_experts": 1, "moe_topk": 1,
    },
    "exaone4": {
        "num_key_value_heads": 32,
        "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 102400, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
        "sliding_window": 4096,
    },
    "internlm3": {
        "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 10240, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 2, "vocab_size": 128512, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 32768,
    },
    "ministral": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 131072, "sliding_window": 4096,
    },
    "ministral3": {
        "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 131072, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 262144,
    },
    "qwen3_5_text": {
        "head_dim": 256,
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 248320, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 32768, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "partial_rotary_factor": 0.25,
    },
    "qwen3_5_moe_text": {
        "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2,
        "head_dim": 256, "vocab_size": 248320, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 32768, "num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size":
        512, "shared_expert_intermediate_size": 512, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "partial_rotary_factor": 0.25,
    },
    "nemotron": {
        "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 32, "num_attention_heads": 48,
        "vocab_size": 256000, "tie_word_embeddings": False, "hidden_act": "relu2", "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.5,
    },
    "minicpm3": {
        "num_key_value_heads": 40,
        "hidden_size": 2560, "intermediate_size": 6400, "num_hidden_layers": 62, "num_attention_heads": 40,
        "vocab_size": 73448, "tie_word_embeddings": True, "hidden_act": "silu",
        "max_position_embeddings": 32768, "q_lora_rank": 768, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32, "v_head_dim": 64,
    },
    "apertus": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 131072, "tie_word_embeddings": False, "hidden_act": "xielu", "max_position_embeddings": 65536,
    },
    "arcee": {
        "hidden_size": 2560, "intermediate_size": 18432, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32000, "tie_word_embeddings": False, "hidden_act": "relu2", "max_position_embeddings": 4096,
    },
    "codegen": {
        "n_embd": 4096, "n_layer": 28, "n_head": 16, "vocab_size": 50400, "tie_word_embeddings": False,
        "activation_function": "gelu_new", "n_positions": 2048, "rotary_dim": 64,
    },
    "gpt_neo": {
        "hidden_size": 2048, "num_layers": 24, "vocab_size": 50257, "tie_word_embeddings": True,
        "activation_function": "gelu_new", "max_position_embeddings": 2048,
    },
    "dots1": {
        "num_key_value_heads": 32,
        "hidden_size": 4608, "intermediate_size": 10944, "num_hidden_layers": 62, "num_attention_heads": 32,
        "vocab_size": 152064, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
        "sliding_window": 4096, "max_window_layers": 62, "moe_intermediate_size": 1408,
    },
    "lfm2": {
        "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 65536, "tie_word_embeddings": True, "max_position_embeddings": 128000,
        "block_multiple_of": 256, "block_auto_adjust_ff_dim": True, "conv_L_cache": 3,
    },
    "lfm2_moe": {
        "hidden_size": 2048, "intermediate_size": 7168, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 65536, "tie_word_embeddings": True, "max_position_embeddings": 128000,
        "num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 1792, "num_dense_layers": 2,
        "conv_L_cache": 3,
    },
    "granitemoehybrid": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32000, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 2048,
        "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 1024,
    },
    "glm4_moe_lite": {
        "hidden_size": 2048, "intermediate_size": 10240, "num_hidden_layers": 47, "num_attention_heads": 20,
        "num_key_value_heads": 20, "vocab_size": 154880, "tie_word_embeddings": False, "hidden_act": "silu",
        "max_position_embeddings": 202752, "n_routed_experts": 64, "num_experts_per_tok": 4,
        "moe_intermediate_size": 1536, "n_shared_experts": 1, "q_lora_rank": 768, "kv_lora_rank": 512,
        "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256,
    },
    "minimax_m2": {
        "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62, "num_attention_heads": 48,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 200064, "tie_word_embeddings": False,
        "hidden_act": "silu", "max_position_embeddings": 196608, "num_local_experts": 256, "num_experts_per_tok": 8,
    },
    "helium": {
        "head_dim": 128, "num_key_value_heads": 20,
        "hidden_size": 2560, "intermediate_size": 7040, "num_hidden_layers": 24, "num_attention_heads": 20,
        "vocab_size": 48000, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 4096,
    },
}
