"""More rows of measurements/added.jsonl as setups: hand-written loops, torchtune of 2024, lit-gpt."""

from __future__ import annotations

from collections.abc import Callable

from statements import Row, Setup


def _canifinetune(row: Row) -> Setup:
    """canifinetune's ``bench``: a hand-written loop around transformers, peft and bitsandbytes, without autocast."""
    setup: Setup = {
        "engine": "pytorch",
        "versions": {"transformers": "5.8.1", "torch": "2.6.0", "peft": "0.19.1", "bitsandbytes": "0.49.2"},
        "optim": row["optimizer"].removeprefix("bitsandbytes "),
        "attention": row["attn"],
        "compute_dtype": "bf16",
        "adapter_dtype": "fp32",
        "lora_target": row["lora_targets"].split(","),
    }
    if row["quant_bits"]:
        setup |= {"quantization_bit": 4, "double_quantization": True, "kbit_upcast": "all"}
    return setup


def _expllm(row: Row) -> Setup:
    """exp-llm's scripts: a hand-written loop around transformers under DDP or FSDP1, in one dtype throughout."""
    dtype = "fp16" if "fp16" in row["precision"] else "fp32"
    return {
        "stage": "pt",
        "engine": "pytorch",
        "optim": "adamw_torch",
        "attention": "sdpa",
        "param_dtype": dtype,
        "compute_dtype": dtype,
        "parallelism": "none" if row["gpus"] == 1 else "ddp" if row["sharding"] == "DDP" else "fsdp",
    }


TORCHTUNE_OPTIMS = {
    "torch AdamW": "adamw_torch",
    "torch AdamW (fused)": "adamw_torch_fused",
    "bitsandbytes PagedAdamW": "paged_adamw_32bit",
    "bitsandbytes PagedAdamW, in backward": "paged_adamw_32bit",
    "bitsandbytes AdamW8bit": "adamw_8bit",
    "torchao AdamW8bit": "adamw_torch_8bit",
    "torchao AdamW4bit": "adamw_torch_4bit",
}


def _torchtune_2024(row: Row) -> Setup:
    """torchtune's README of May 2024: whole fp32 logits, which its recipes then held through backward."""
    setup: Setup = {
        "engine": "torchtune",
        "versions": {"torchtune": "0.1"},
        "optim": TORCHTUNE_OPTIMS[row["optimizer"]],
        "optimizer_in_backward": "in backward" in row["optimizer"],
        "attention": "sdpa",
        "packing": True,
        "param_dtype": "bf16",
        "compute_dtype": "bf16",
        "torch_compile": "torch.compile" in row["note"],
        "loss": "torch",
    }
    if row["method"] == "full":
        return setup
    setup |= {"lora_target": row["lora_targets"].split(","), "adapter_dtype": "bf16"}
    if row["quant_bits"]:
        setup |= {"quantization_bit": 4, "double_quantization": True, "kbit_upcast": "none"}
    return setup


def _torchao(row: Row) -> Setup:
    """torchao's comparison of optimizers: torchtune's full_finetune_single_device of September 2024, in bf16."""
    return {
        "engine": "torchtune",
        "versions": {"torchtune": "0.3"},
        "optim": TORCHTUNE_OPTIMS[row["optimizer"]],
        "attention": "sdpa",
        "param_dtype": "bf16",
        "compute_dtype": "bf16",
        "loss": "chunked",
    }


def _litgpt_article(row: Row) -> Setup:
    """Lightning's article on hundreds of LoRA runs: lit-gpt of October 2023, as in the tables of its repository."""
    targets = row["lora_targets"].split(",")
    if "lm_head" in targets:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    setup: Setup = {
        "engine": "litgpt",
        "versions": {"litgpt": "0.1", "bitsandbytes": "0.41"},
        "optim": {"torch AdamW (foreach)": "adamw_torch", "bitsandbytes PagedAdamW": "paged_adamw_32bit"}.get(
            row["optimizer"], "sgd"
        ),
        "attention": "sdpa",
        "param_dtype": "bf16",
        "compute_dtype": "bf16",
        "adapter_dtype": "bf16",
        "lora_target": targets,
        "lora_dropout": 0.05,
        "loss": "chunked",
    }
    if row["quant_bits"]:
        setup |= {"quantization_bit": 4, "double_quantization": False, "kbit_upcast": "none"}
    return setup


STATERS: dict[str, Callable[[Row], Setup]] = {
    "canifinetune-": _canifinetune,
    "expllm-": _expllm,
    "torchtune24-": _torchtune_2024,
    "torchao-": _torchao,
    "litgptarticle-": _litgpt_article,
}
CARDS = {
    "GeForce RTX 4080": "RTX4080",
}
# Folders under measurements/configs of models that are no catalogue row.
OWN_CONFIGS = {"sshleifer/tiny-gpt2": "tiny-gpt2"}
