"""Writes the rows behind tests/data/traced.jsonl: families at their real widths, two and four blocks deep."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]

# Widths as in the published config.json of the model named; depth is set by the suite.
FAMILIES: dict[str, Row] = {
    "llama3-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
    "mistral-7b": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32768,
        "sliding_window": None,
        "max_position_embeddings": 32768,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
    },
    "gemma-7b": {
        "model_type": "gemma",
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
    },
    "gemma2-9b": {
        "model_type": "gemma2",
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
    },
    "gemma3-text-12b": {
        "model_type": "gemma3_text",
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window": 1024,
        "query_pre_attn_scalar": 256,
    },
    "phi-2": {
        "model_type": "phi",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_attention_heads": 32,
        "vocab_size": 51200,
        "partial_rotary_factor": 0.4,
        "max_position_embeddings": 2048,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.0,
        "attention_dropout": 0.0,
    },
    "phi3-mini": {
        "model_type": "phi3",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "pad_token_id": 32000,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 32768,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "max_position_embeddings": 40960,
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2",
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 102400,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "first_k_dense_replace": 0,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "vocab_size": 129280,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "first_k_dense_replace": 0,
        "n_group": 8,
        "topk_group": 4,
    },
    "gpt2-xl": {
        "model_type": "gpt2",
        "n_embd": 1600,
        "n_head": 25,
        "n_positions": 2048,
        "vocab_size": 50257,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
    },
    "pythia-6.9b": {
        "model_type": "gpt_neox",
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_attention_heads": 32,
        "vocab_size": 50432,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "max_position_embeddings": 2048,
    },
    "starcoder": {
        "model_type": "gpt_bigcode",
        "n_embd": 6144,
        "n_head": 48,
        "n_inner": 24576,
        "n_positions": 8192,
        "vocab_size": 49152,
        "multi_query": True,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
    },
    "falcon-7b": {
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "vocab_size": 65024,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "new_decoder_architecture": False,
        "alibi": False,
    },
    "bloom-7b1": {"model_type": "bloom", "hidden_size": 4096, "n_head": 32, "vocab_size": 250880},
    "opt-6.7b": {
        "model_type": "opt",
        "hidden_size": 4096,
        "ffn_dim": 16384,
        "num_attention_heads": 32,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": 4096,
        "dropout": 0.1,
        "attention_dropout": 0.0,
    },
    "starcoder2-7b": {
        "model_type": "starcoder2",
        "hidden_size": 4608,
        "intermediate_size": 18432,
        "num_attention_heads": 36,
        "num_key_value_heads": 4,
        "vocab_size": 49152,
        "use_bias": True,
        "sliding_window": 4096,
        "max_position_embeddings": 16384,
        "residual_dropout": 0.1,
        "embedding_dropout": 0.1,
        "attention_dropout": 0.1,
    },
    "stablelm-2-12b": {
        "model_type": "stablelm",
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 100352,
        "use_parallel_residual": True,
        "qk_layernorm": True,
        "partial_rotary_factor": 0.25,
        "use_qkv_bias": False,
    },
    "stablelm-2-1.6b": {
        "model_type": "stablelm",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 100352,
        "partial_rotary_factor": 0.25,
        "use_qkv_bias": True,
    },
    "olmo2-7b": {
        "model_type": "olmo2",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 100352,
        "max_position_embeddings": 4096,
    },
    "granite-8b": {
        "model_type": "granite",
        "hidden_size": 4096,
        "intermediate_size": 12800,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 49155,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "command-r-7b": {
        "model_type": "cohere",
        "hidden_size": 8192,
        "intermediate_size": 22528,
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
    },
    "glm4-9b": {
        "model_type": "glm4",
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 151552,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
    },
    "smollm3-3b": {
        "model_type": "smollm3",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 201088,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
    },
}

EAGER_ONLY = frozenset({"gemma2", "bloom", "gpt_oss"})  # transformers 5.23 gives these no sdpa path

MODES: dict[str, Row] = {
    "full-bf16": {"method": "full"},
    "full-fp32-autocast": {"method": "full", "param_dtype": "fp32", "autocast": "bf16"},
    "lora-autocast": {"method": "lora", "autocast": "bf16"},
}
LAYER_KEYS = {"gpt2": "n_layer", "gpt_bigcode": "n_layer", "bloom": "n_layer"}


def deep(config: Row, layers: int) -> Row:
    """The config with that many blocks."""
    return {**config, LAYER_KEYS.get(config["model_type"], "num_hidden_layers"): layers}


def families(names: list[str]) -> Iterator[Row]:
    """Every family under three modes, with and without checkpointing, at two and four blocks."""
    for family in names:
        for mode, options in MODES.items():
            for checkpointing in (False, True):
                for layers in (2, 4):
                    suffix = "-gc" if checkpointing else ""
                    yield {
                        "name": f"{family}-{layers}-{mode}{suffix}",
                        "config": deep(FAMILIES[family], layers),
                        **options,
                        "gradient_checkpointing": checkpointing,
                        "attention": "eager" if FAMILIES[family]["model_type"] in EAGER_ONLY else "sdpa",
                    }


def experts() -> Iterator[Row]:
    """Adapters on the attention of expert models alone: peft's "all-linear" wraps the stacked experts too."""
    targets = {"deepseek_v2": "q_proj kv_a_proj_with_mqa kv_b_proj o_proj"}
    targets["deepseek_v3"] = "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj"
    for family in ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite", "deepseek-v3", "gpt-oss-20b"):
        config = FAMILIES[family]
        names = targets.get(config["model_type"], "q_proj k_proj v_proj o_proj").split()
        for layers, checkpointing in ((2, False), (4, False), (2, True), (4, True)):
            yield {
                "name": f"{family}-{layers}-lora-attention-autocast{'-gc' if checkpointing else ''}",
                "config": deep(config, layers),
                **MODES["lora-autocast"],
                "lora_target": names,
                "gradient_checkpointing": checkpointing,
                "attention": "eager" if family == "gpt-oss-20b" else "sdpa",
            }


def windows() -> Iterator[Row]:
    """Sliding windows: a mask, and another kernel, from the length that reaches the window on."""
    gemma3 = FAMILIES["gemma3-text-12b"]
    mistral = {**FAMILIES["mistral-7b"], "sliding_window": 4096}
    cases: dict[str, Row] = {
        "gemma3-text-12b-{}-full-attention": {"config": gemma3, "all_full": True},
        "gemma3-text-12b-{}-s512": {"config": gemma3, "seq_len": 512},
        "gemma3-text-12b-{}-eager": {"config": gemma3, "attention": "eager"},
        "phi3-mini-{}-window-2047": {"config": {**FAMILIES["phi3-mini"], "sliding_window": 2047}},
        "mistral-7b-{}-window-4096-s4096": {"config": mistral, "seq_len": 4096},
        "mistral-7b-{}-window-4096-s4096-fa2": {
            "config": mistral,
            "seq_len": 4096,
            "attention": "flash_attention_2",
        },
        "mistral-7b-{}-window-4096-s4095": {"config": mistral, "seq_len": 4095},
        "llama3-8b-{}-full-s4096": {"config": FAMILIES["llama3-8b"], "seq_len": 4096},
        "qwen2.5-0.5b-{}-full-s4096": {"config": FAMILIES["qwen2.5-0.5b"], "seq_len": 4096, "micro_batch_size": 2},
    }
    for name, case in cases.items():
        for layers, checkpointing in ((2, False), (4, False), (4, True)):
            row = {key: value for key, value in case.items() if key not in ("config", "all_full")}
            config = deep(case["config"], layers)
            if "all_full" in case:
                config["layer_types"] = ["full_attention"] * layers
            tail = "-gc" if checkpointing else ""
            yield {"name": name.format(layers) + tail, "config": config, **row, "gradient_checkpointing": checkpointing}


def variants() -> Iterator[Row]:
    """Other modes of a few families: adapters, kernels, losses, optimizers, padding, accumulation."""
    llama = FAMILIES["llama3-8b"]
    lora = MODES["lora-autocast"]
    changes: dict[str, Row] = {
        "lora-qv-autocast": {**lora, "lora_target": ["q_proj", "v_proj"]},
        "lora-bf16": {"method": "lora", "adapter_dtype": "bf16"},
        "lora-fp32-noautocast": {"method": "lora"},
        "lora-r64-autocast": {**lora, "lora_rank": 64},
        "lora-dropout-autocast": {**lora, "lora_dropout": 0.1},
        "lora-eager-autocast": {**lora, "attention": "eager"},
        "full-eager": {"attention": "eager"},
        "full-fa2": {"attention": "flash_attention_2"},
        "full-padded": {"padded": True},
        "lora-padded-autocast": {**lora, "padded": True},
        "full-b4-s512": {"micro_batch_size": 4, "seq_len": 512},
        "full-b2-s1000": {"micro_batch_size": 2, "seq_len": 1000},
        "full-accumulation-2": {"gradient_accumulation_steps": 2},
        "lora-accumulation-2": {**lora, "gradient_accumulation_steps": 2},
        "full-loss-4.48": {"loss": "transformers-4.48"},
        "full-fp32": {"param_dtype": "fp32"},
        "full-adamw-foreach": {"optim": "adamw_torch"},
        "full-adamw-forloop": {"optim": "adamw_forloop"},
        "full-sgd": {"optim": "sgd"},
        "full-adafactor": {"optim": "adafactor"},
        "lora-adamw-foreach-autocast": {**lora, "optim": "adamw_torch"},
        "dora-autocast": {**lora, "dora": True},
        "lora-embeddings-autocast": {**lora, "additional_target": ["embed_tokens", "lm_head"]},
    }
    for name, options in changes.items():
        for checkpointing in (False, True):
            for layers in (2, 4):
                suffix = "-gc" if checkpointing else ""
                row = {"name": f"llama3-8b-{layers}-{name}{suffix}", "config": deep(llama, layers)}
                yield {**row, **options, "gradient_checkpointing": checkpointing}
    for mode, options in MODES.items():
        row = {"name": f"llama3-8b-4-{mode}-gc-reentrant", "config": deep(llama, 4), **options}
        yield {**row, "gradient_checkpointing": True, "use_reentrant": True}
    for layers in (2, 4):
        for mode, options in MODES.items():
            row = {"name": f"gemma2-9b-{layers}-{mode}-fa2", "config": deep(FAMILIES["gemma2-9b"], layers)}
            yield {**row, **options, "attention": "flash_attention_2"}


def extras() -> Iterator[Row]:
    """What needs bitsandbytes or Liger, and preference pairs."""
    lora = MODES["lora-autocast"]
    for layers, checkpointing in ((2, False), (4, False), (2, True), (4, True)):
        tail = "-gc" if checkpointing else ""
        for upcast in ("none", "norms", "all"):
            for family in ("llama3-8b", "qwen2.5-7b", "gemma2-9b"):
                yield {
                    "name": f"{family}-{layers}-qlora-{upcast}-autocast{tail}",
                    "config": deep(FAMILIES[family], layers),
                    "method": "qlora",
                    "autocast": "bf16",
                    "kbit_upcast": upcast,
                    "attention": "eager" if family == "gemma2-9b" else "sdpa",
                    "gradient_checkpointing": checkpointing,
                }
        llama = {"config": deep(FAMILIES["llama3-8b"], layers), "gradient_checkpointing": checkpointing}
        single = {"double_quantization": False, "method": "qlora"}
        yield {"name": f"llama3-8b-{layers}-qlora-single-autocast{tail}", **llama, **single, "autocast": "bf16"}
        yield {"name": f"llama3-8b-{layers}-qlora-bf16{tail}", **llama, "method": "qlora", "adapter_dtype": "bf16"}
        yield {"name": f"llama3-8b-{layers}-dpo-lora{tail}", **llama, **lora, "stage": "dpo", "seq_len": 1024}
        yield {"name": f"llama3-8b-{layers}-dpo-full{tail}", **llama, "stage": "dpo", "seq_len": 1024}
        for family in ("llama3-8b", "qwen2.5-7b", "mistral-7b", "gemma2-9b", "qwen3-8b", "phi3-mini", "mixtral-8x7b"):
            for fused in (False, True):
                for mode, options in MODES.items():
                    yield {
                        "name": f"{family}-{layers}-{mode}-liger{'-flce' if fused else ''}{tail}",
                        "config": deep(FAMILIES[family], layers),
                        **options,
                        "liger_kernel": True,
                        "fused_linear": fused,
                        "gradient_checkpointing": checkpointing,
                        "attention": "eager" if family == "gemma2-9b" else "sdpa",
                    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["families", "variants", "extras", "experts", "windows"])
    parser.add_argument("--only", nargs="*", help="these families")
    options = parser.parse_args()
    chosen = {
        "families": lambda: families(options.only or list(FAMILIES)),
        "variants": variants,
        "extras": extras,
        "experts": experts,
        "windows": windows,
    }
    for row in chosen[options.what]():
        print(json.dumps(row))


if __name__ == "__main__":
    main()
