"""The setups whose breakdowns are committed, one family, method, parallelism or stage after the other."""

from __future__ import annotations

from typing import Any

ADAPTERS: dict[str, Any] = {"model": "Qwen2.5-7B", "method": "lora", "lora_rank": 16, "gpus": "1xRTX4090"}
WHOLE: dict[str, Any] = {"model": "Qwen2.5-7B", "method": "full", "gpus": "8xA100-80GB"}

SETUPS: dict[str, dict[str, Any]] = {
    # presets
    "lora-24gb": {**ADAPTERS, "liger_kernel": True, "attention": "flash_attention_2"},
    "lora-2x48gb": {**ADAPTERS, "lora_rank": 32, "micro_batch_size": 2, "seq_len": 4096, "gpus": "2x48GB"},
    "lora-80gb-long": {**ADAPTERS, "lora_rank": 64, "micro_batch_size": 4, "seq_len": 8192, "gpus": "8xA100-80GB"},
    # methods on one card
    "qlora": {**ADAPTERS, "method": "qlora", "lora_dropout": 0.05},
    "qlora-8bit": {**ADAPTERS, "method": "lora", "quantization_bit": 8},
    "dora": {**ADAPTERS, "method": "dora"},
    "freeze": {**ADAPTERS, "method": "freeze", "freeze_trainable_layers": 4},
    "galore": {**ADAPTERS, "method": "galore", "galore_rank": 128, "optim": "adamw_torch", "gpus": "1xA100-80GB"},
    "badam": {**ADAPTERS, "method": "badam"},
    "full-8bit-adam": {**WHOLE, "optim": "adamw_8bit", "param_dtype": "bf16", "gpus": "1xH100-80GB"},
    "embeddings-too": {**ADAPTERS, "additional_target": ["embed_tokens", "lm_head"], "gpus": "1x48GB"},
    # parallelism
    "full-ddp": {**WHOLE, "parallelism": "ddp", "gradient_accumulation_steps": 4},
    "full-zero2": {**WHOLE, "parallelism": "zero2"},
    "full-zero3": {**WHOLE, "parallelism": "zero3"},
    "full-zero3-offload": {**WHOLE, "parallelism": "zero3", "offload": "all", "gpus": "3x20GB"},
    "full-fsdp2": {**WHOLE, "parallelism": "fsdp2"},
    "lora-fsdp": {**ADAPTERS, "parallelism": "fsdp", "gpus": "4xRTX3090"},
    "full-tensor-parallel": {**WHOLE, "parallelism": "zero1", "tensor_parallel": 4, "micro_batch_size": 4},
    # stages
    "dpo": {**ADAPTERS, "stage": "dpo", "gpus": "1xA100-80GB"},
    "dpo-full": {**WHOLE, "stage": "dpo", "parallelism": "zero3"},
    "reward": {**ADAPTERS, "stage": "rm"},
    "pretraining-with-evaluation": {**WHOLE, "stage": "pt", "parallelism": "zero3", "liger_kernel": True,
                                    "eval_micro_batch_size": 4},
    # families
    "llama-3-8b": {"model": "Meta-Llama-3-8B", "method": "lora", "gpus": "1xRTX4090"},
    "llama-3-8b-plain": {"model": "Meta-Llama-3-8B", "method": "full", "engine": "transformers", "gpus": "1xH100-80GB"},
    "qwen2.5-0.5b-tied": {"model": "Qwen2.5-0.5B", "method": "full", "gradient_checkpointing": False,
                          "gpus": "1xRTX4090"},
    "gemma-2-9b-eager": {"model": "gemma-2-9b", "method": "qlora", "attention": "eager", "gpus": "1xRTX4090"},
    "mixtral-zero3": {"model": "Mixtral-8x7B-v0.1", "method": "lora", "parallelism": "zero3", "gpus": "8xA100-80GB"},
    "qwen3-30b-a3b": {"model": "Qwen3-30B-A3B", "method": "qlora", "gpus": "1x48GB"},
    "gpt2": {"model": "gpt2", "method": "full", "gpus": "1x8GB"},
}  # fmt: skip
