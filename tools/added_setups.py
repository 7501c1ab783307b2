"""Rows of measurements/added.jsonl as setups in the contract's fields, stated as a reader of their sources would."""

from __future__ import annotations

from collections.abc import Callable

import added_readings
from statements import NotStatableError, Row, Setup

CARDS = {
    "NVIDIA L40S": "L40S",
    "H20-96GB": "h20-96gb",
    "A800-80GB": "a800-sxm4-80gb",
    ">=80GB card": "80GB",
    "48GB card": "48GB",
    "80GB card": "80GB",
    **added_readings.CARDS,
}
# Same shapes as a catalogue row under another name.
SPELLED = {
    "axolotl-ai-co/gpt-oss-120b-dequantized": "openai/gpt-oss-120b",
    "katanemo/Plano-Orchestrator-4B": "Qwen/Qwen3-4B-Instruct-2507",
    "XiaomiMiMo/MiMo-7B-RL": "XiaomiMiMo/MiMo-7B-Base",
    "arcee-ai/AFM-4.5B": "arcee-ai/AFM-4.5B-Base",
    "swiss-ai/Apertus-8B-Instruct-2509": "swiss-ai/Apertus-8B-2509",
}
# Models that are no catalogue row: folders under measurements/configs.
OWN_CONFIGS = {
    "meta-llama/Llama-2-7b-hf with its positions scaled to 8,192": "llama-2-7b-8192",
    **added_readings.OWN_CONFIGS,
}
AXOLOTL_OPTIMS = {"adamw_bnb_8bit": "adamw_8bit", "adamw_torch_8bit": "adamw_8bit"}


def _peft(row: Row) -> Setup:
    """PEFT's benchmark: a hand-written loop around transformers and peft, whose ``outputs`` live through backward."""
    setup: Setup = {
        "engine": "pytorch",
        "versions": {"transformers": row["note"].split("transformers ")[1].split(";")[0]},
        "padded": True,
        "optim": "adamw_torch",
        "attention": "sdpa",
        "compute_dtype": "bf16",
        "param_dtype": "bf16",
    }
    if row["method"] != "full":
        setup |= {"lora_target": row["lora_targets"].split(","), "adapter_dtype": "fp32"}
    return setup


def _axolotl(row: Row) -> Setup:
    """One of axolotl's examples; its cut cross-entropy, which keeps no logits, is the fused linear loss here."""
    note, targets = row["note"], row["lora_targets"]
    if "experts quantized" in note:
        raise NotStatableError("stacked experts quantized by the trainer: the contract has no field for it")
    setup: Setup = {
        "engine": "axolotl",
        "optim": AXOLOTL_OPTIMS.get(row["optimizer"], row["optimizer"]),
        "attention": "flash_attention_2",
        "packing": row["packing"],
        "activation_offload": "activation offloading" in note,
        "loss": "fused_linear" if "cut cross-entropy" in note else "torch",
        "offload": "params" if row["offload"] == "cpu" else "none",
        "parallelism": {"FSDP2": "fsdp2", "FSDP1": "fsdp"}.get(row["sharding"], "none"),
    }
    if "gpt-oss" in row["model"]:  # the README's figures are of August 2025
        setup["versions"] = {"transformers": "4.55", "accelerate": "1.9.0"}
    if row["method"] != "full":
        setup |= {
            "lora_target": "all" if targets == "all linear" else targets.split(","),
            "lora_dropout": float(note.split("lora_dropout ")[1].split(";")[0]),
            "quantization_bit": row["quant_bits"],
        }
    return setup


def _swift(row: Row) -> Setup:
    """A command of ms-swift with the memory in a comment: HF Trainer or TRL's DPO, under DeepSpeed on several GPUs."""
    pairs = row.get("stage") == "dpo"  # a packed row holds chosen and rejected answers together
    setup: Setup = {
        "stage": row.get("stage", "sft"),
        "seq_len": row["seq_len"] // 2 if pairs else row["seq_len"],
        "engine": "transformers",
        "versions": {"transformers": "4.53"},
        "optim": "adamw_torch",
        "attention": row["attn"],
        "packing": row["packing"],
        "compute_dtype": "bf16",
        "liger_kernel": row["liger_or_fused_ce"],
        "parallelism": {"ZeRO-3": "zero3", "ZeRO-2": "zero2"}.get(row["sharding"], "none"),
    }
    if row["method"] == "full":
        return setup | {"param_dtype": "bf16"}
    return setup | {"lora_target": "all"}


def _swift_of_2023(row: Row) -> Setup:
    """ms-swift's first benchmark, around HF Trainer; without flash attention Qwen's own code takes SDPA with a mask."""
    setup: Setup = {
        "engine": "transformers",
        "versions": {"transformers": "4.36"},
        "optim": "adamw_torch",
        "attention": "flash_attention_2" if row["attn"] == "flash_attention_2" else "sdpa",
        "compute_dtype": "bf16",
    }
    if row["method"] == "full":
        return setup | {"param_dtype": "bf16"}
    targets = "all" if row["lora_targets"] == "all linear" else row["lora_targets"].split(",")
    setup |= {"lora_target": targets, "adapter_dtype": "fp32", "lora_dropout": 0.05}
    if row["quant_bits"]:
        setup |= {"quantization_bit": row["quant_bits"]}
        setup |= {"quantization_method": "bnb" if "bnb" in row["precision"] else "gptq"}
    return setup


def _atorch(row: Row) -> Setup:
    """ATorch's FSDP1 example around transformers of 2023: checkpoints by a wrapper, which leaves the cache on."""
    raise NotStatableError("the loop leaves use_cache on: its outputs hold every layer's keys and values")


def _llama_recipes(row: Row) -> Setup:
    """llama-recipes of July 2023: a plain loop in pure bf16 under FSDP1, attention written out."""
    return {
        "engine": "transformers",
        "versions": {"transformers": "4.31"},
        "optim": "adamw_torch",
        "attention": "eager",
        "packing": True,
        "param_dtype": "bf16",
        "compute_dtype": "bf16",
        "adapter_dtype": "bf16",
        "lora_target": row["lora_targets"].split(","),
        "lora_dropout": 0.05,
        "parallelism": "fsdp",
    }


def _deepspeed_gist(row: Row) -> Setup:
    """Full fine-tuning under DeepSpeed around transformers of early 2024, as a table states it."""
    offload = "all" if "parameters" in row["offload"] else "optimizer" if "optimizer" in row["offload"] else "none"
    return {
        "model": "meta-llama/Llama-2-7b-hf",  # the shapes of "LLaMA-7B", with the 4,096 positions that the runs used
        "stage": "pt",
        "engine": "transformers",
        "versions": {"transformers": "4.39"},
        "optim": "adamw_torch",
        "attention": "flash_attention_2",
        "packing": True,
        "compute_dtype": "bf16",
        "parallelism": "zero2" if row["sharding"] == "ZeRO-2" else "zero3",
        "offload": offload,
    }


def _longlora(row: Row) -> Setup:
    """LongLoRA's fine-tune.py without its own attention: HF Trainer under DeepSpeed ZeRO-2, transformers 4.34."""
    return {
        "stage": "pt",
        "engine": "transformers",
        "versions": {"transformers": "4.34"},
        "optim": "adamw_torch",
        "attention": "flash_attention_2",
        "packing": True,
        "compute_dtype": "bf16",
        "lora_target": row["lora_targets"].split(","),
        "parallelism": "zero2",
        # the repository's ds_configs/stage2.json
        "ds_config": {
            "zero_optimization": {
                "stage": 2,
                "allgather_bucket_size": 1e9,
                "reduce_bucket_size": 1e9,
                "overlap_comm": True,
                "contiguous_gradients": True,
            }
        },
    }


def _fms_orca(row: Row) -> Setup:
    """fms-acceleration's runs on Orca-Math: HF Trainer in float16, batches padded to their longest sample or joined."""
    framework = row["note"].split(";")[0].removeprefix("framework_config=")
    setup: Setup = {
        "engine": "transformers",
        "versions": {"transformers": "4.45"},
        "optim": "adamw_torch",
        "attention": "flash_attention_2",
        "padded": "padding-free" not in framework,
        "compute_dtype": "fp16",
    }
    if row["method"] == "full":
        return setup | {"param_dtype": "fp16"}
    fused, gptq = "foak" in framework, "gptq" in framework
    return setup | {
        "lora_target": row["lora_targets"].split(","),
        "lora_dropout": 0.1,
        "adapter_dtype": "fp32",
        "quantization_bit": 4,
        "quantization_method": "gptq" if gptq else "bnb",
        "double_quantization": not gptq,
        "kbit_upcast": "none",
        "unsloth": fused,
        "loss": "fused" if fused else "torch",
    }


def _torchtune(row: Row) -> Setup:
    """torchtune's 7B_full_low_memory of May 2024: no compilation, whole logits, paged AdamW stepping in backward."""
    return {
        "engine": "torchtune",
        "versions": {"torchtune": "0.1.1"},
        "optim": "paged_adamw_32bit",
        "optimizer_in_backward": True,
        "attention": "sdpa",
        "packing": True,
        "param_dtype": "bf16",
        "compute_dtype": "bf16",
        "loss": "torch",
    }


STATERS: dict[str, Callable[[Row], Setup]] = {
    "peft-": _peft,
    "axolotl-": _axolotl,
    "swift23-": _swift_of_2023,
    "swift-": _swift,
    "atorch-": _atorch,
    "llamarecipes-": _llama_recipes,
    "dsgist-": _deepspeed_gist,
    "longlora-": _longlora,
    "fms-orca-": _fms_orca,
    "torchtune-": _torchtune,
    **added_readings.STATERS,
}
