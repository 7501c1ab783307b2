"""Every measured run as a setup in the contract's fields, stated as an independent reader of its source would.

``statement(row)`` returns the mapping for one row of ``measurements/*.jsonl``; ``NotStatableError`` carries the
reason where the contract has no field for what the run did. Rows are never dropped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import added_setups
from statements import NotStatableError, Row, Setup

MEASUREMENTS = Path(__file__).resolve().parent.parent / "measurements"
CONFIGS = MEASUREMENTS / "configs"
GPU = "gpu"  # runs of bench/gpu_peaks.py, in measurements/gpu/
FILES = ("published", "limits", "more", "added", GPU)

# Models that are no catalogue row: truncated models and GPTQ checkpoints, whose group size is in their config.
OWN_CONFIGS = {
    "meta-llama/Llama-2-13b-hf truncated to 10 layers": "llama-2-13b-10-layers",
    "meta-llama/Llama-2-13b-hf truncated to 20 layers": "llama-2-13b-20-layers",
    "TheBloke/Mistral-7B-v0.1-GPTQ": "mistral-7b-gptq",
    "TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ": "mixtral-8x7b-gptq",
    "TechxGenus/Meta-Llama-3-8B-GPTQ": "llama-3-8b-gptq",
    "TheBloke/Llama-2-70B-GPTQ": "llama-2-70b-gptq",
    **added_setups.OWN_CONFIGS,
}
# Names of sources that the hub spells otherwise.
SPELLED = {
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "NousResearch/Llama-2-70b-hf": "meta-llama/Llama-2-70b-hf",
    "Qwen/Qwen-7B-Chat-Int4": "Qwen/Qwen-7B-Chat",
    **added_setups.SPELLED,
}
# Cards by the source's words; "40GB card" is what the source says and no more.
CARDS = {
    "A100-SXM4-80GB": "A100-80GB",
    "A100-80GB": "A100-80GB",
    "A100": "A100-80GB",
    "A100-SXM4-40GB": "A100-40GB",
    "H100-80GB": "H100-80GB",
    "H100-96GB": "H100-96GB-HBM2e",
    "RTX 3090 24GB": "RTX3090",
    "RTX 4090 24GB": "RTX4090",
    "A5000 24GB": "RTXA5000",
    "A10G-24GB": "A10G-24GB",
    "T4 16GB": "T4",
    "40GB card": "40GB",
    ">=40GB card": "40GB",
    "24GB card": "24GB",
    **added_setups.CARDS,
}


# Models whose attention projection is one linear module.
FUSED_LINEARS = {"falcon": ["query_key_value"], "stablelm": ["query_key_value"], "Phi-3": ["qkv_proj"]}


def rows(*names: str) -> Iterator[Row]:
    """Rows of the named files under ``measurements/`` (all of them without a name), each with its ``file``."""
    for name in names or FILES:
        if name == GPU:
            yield from _gpu_rows()
            continue
        path = MEASUREMENTS / f"{name}.jsonl"
        if path.is_file():
            for line in path.read_text().splitlines():
                yield {**json.loads(line), "file": name}


def _gpu_rows() -> Iterator[Row]:
    """Our own runs on real cards, in the keys of published.jsonl, with their ``setup`` and ``config`` as they ran."""
    from bench.rows import published, read

    for row in read(MEASUREMENTS / GPU):
        yield {**published(row), "file": GPU}


def statement(row: Row) -> Setup:
    """The setup of one row. Raises NotStatableError with the reason."""
    if row.get("file") == GPU:
        return dict(row["setup"])
    readings = added_setups.STATERS if row["file"] == "added" else STATERS
    for beginning, state in readings.items():
        if row["id"].removeprefix("limit-").removeprefix("more-").removeprefix("added-").startswith(beginning):
            own = state(row)
            return {name: value for name, value in {**_common(row), **own}.items() if value is not None}
    raise NotStatableError(f"no reading is written for the source {row['source']!r}")


def _common(row: Row) -> Setup:
    model = row["model"]
    if model in OWN_CONFIGS:
        model = str(CONFIGS / OWN_CONFIGS[model] / "config.json")
    return {
        "model": SPELLED.get(model, model),
        "stage": "sft",
        "method": row["method"],
        "lora_rank": row.get("lora_rank"),
        "seq_len": row["seq_len"],
        "micro_batch_size": row["micro_batch"],
        "gradient_accumulation_steps": row.get("grad_accum") or 1,
        "gradient_checkpointing": bool(row["grad_ckpt"]),
        "gpus": _gpus(row),
        "parallelism": "none" if row["gpus"] == 1 else "fsdp",
    }


def _gpus(row: Row) -> str:
    card = CARDS.get(row.get("gpu_model") or "")
    if card is None:
        raise NotStatableError(f"the card is not stated ({row.get('gpu_model')!r})")
    count = row["gpus"]
    return f"{count // 8}x8x{card}" if count > 8 else f"{count}x{card}"


def _fms(row: Row) -> Setup:
    """HF Trainer / TRL under accelerate FSDP1; kernels of the foak plugin are Unsloth's norm, rope, LoRA and CE.

    Rows of mixed_precision=no run without autocast. bitsandbytes by the requirements.txt beside every table.
    """
    framework = row["note"].split(";")[0].removeprefix("framework_config=")
    autocast = "autocast" in row["precision"] or bool(row["quant_bits"])
    fp16 = row["precision"].startswith("float16")
    setup: Setup = {
        "engine": "transformers" if autocast else "transformers-pure",
        "versions": {
            "transformers": "4.48" if "a100_80gb.csv" in row["source"] else "4.45",
            "bitsandbytes": "0.43.3",
        },
        "optim": "adamw_torch",
        "attention": "flash_attention_2",
        "packing": True,
        "compute_dtype": "fp16" if fp16 else "bf16",
        "unsloth": "foak" in framework or None,
        "loss": "fused_linear" if "liger" in framework else "fused" if "foak" in framework else "torch",
    }
    if row["method"] == "full":
        # FSDP under mixed precision holds trained weights in fp32 (accelerate upcasts), one GPU in the loaded dtype.
        return setup | {"param_dtype": "fp32" if autocast and row["gpus"] > 1 else "bf16"}
    # The benchmark names c_attn beside the four projections; peft takes those that the model has.
    targets = ["c_attn"] if "santacoder" in row["model"] else [*row["lora_targets"].replace(",c_attn", "").split(",")]
    setup |= {"lora_target": targets, "lora_dropout": 0.1, "adapter_dtype": "fp32"}
    if "autogptq" in framework:
        return setup | {"quantization_bit": 4, "quantization_method": "gptq", "double_quantization": False}
    if row["quant_bits"]:
        upcast = "norms" if framework == "baseline-peft-bnb" else "none"
        setup |= {"quantization_bit": 4, "double_quantization": True, "kbit_upcast": upcast}
    return setup


def _litgpt(row: Row) -> Setup:
    """litgpt of 2023, before its releases: LoRA on q and v, pure bf16, logits in chunks of 128 tokens, the longest
    sample first and alone at its length.
    """
    fused = "stablelm" in row["model"] or "falcon" in row["model"]
    setup: Setup = {
        "engine": "litgpt",
        "versions": {"litgpt": "0.1", "bitsandbytes": "0.41"},
        "optim": "adamw_torch" if row["method"] != "qlora" else "paged_adamw_32bit",
        "attention": "sdpa",
        "param_dtype": "bf16",
        "compute_dtype": "bf16",
        "adapter_dtype": "bf16",
        "lora_target": ["query_key_value"] if fused else ["q_proj", "v_proj"],
        "lora_dropout": 0.05,
        "loss": "chunked",
    }
    if row.get("quant_bits"):
        setup |= {"quantization_bit": 4, "double_quantization": "nf4-dq" in row["note"], "kbit_upcast": "none"}
    if row["gpus"] > 1:  # its scripts accumulate to 128 samples over all devices
        setup["gradient_accumulation_steps"] = max(2, 128 // row["gpus"] // row["micro_batch"])
    return setup


TORCHTUNE_STEPS = ("packed", "compile", "chunkce", "actckpt", "optinbwd", "actoffload", "adamw8bit")


def _torchtune(row: Row) -> Setup:
    """A cumulative table: a row adds one measure to those before it; LoRA rows have all but the optimizer ones."""
    name = row["id"].removeprefix("torchtune-flags-")
    step = TORCHTUNE_STEPS.index(name) if name in TORCHTUNE_STEPS else TORCHTUNE_STEPS.index("actoffload")
    setup: Setup = {
        "engine": "torchtune",
        "optim": "adamw_torch_8bit" if name == "adamw8bit" else "adamw_torch_fused",
        "attention": "sdpa",
        "packing": True,
        "param_dtype": "bf16",
        "compute_dtype": "bf16",
        "torch_compile": step >= 1,
        "loss": "chunked" if step >= 2 else "torch",
        "optimizer_in_backward": row["method"] == "full" and step >= 4,
        "activation_offload": step >= 5,
    }
    if row["method"] != "full":
        targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        setup |= {"lora_target": targets, "adapter_dtype": "bf16"}
    if row["quant_bits"]:
        setup |= {"quantization_bit": 4, "double_quantization": True, "kbit_upcast": "none"}
    return setup


def _litgpt_hub(row: Row) -> Setup:
    """litgpt's ready configurations: LoRA parts as their files name them, the head with them where they do."""
    setup: Setup = {
        "engine": "litgpt",
        "versions": {"litgpt": "0.4", "bitsandbytes": "0.42"},
        "optim": "paged_adamw_32bit" if row["method"] == "qlora" else "adamw_torch",
        "attention": "sdpa",
        "param_dtype": "bf16",
        "compute_dtype": "bf16",
        "loss": "torch" if row["method"] == "full" else "chunked",
    }
    if row["method"] == "full":
        if "tiny-llama" not in row["id"]:
            raise NotStatableError("16-bit weights, gradients and states on one GPU exceed the published peak")
        return setup
    parts = row["lora_targets"].split(",")
    fused = next((names for name, names in FUSED_LINEARS.items() if name in row["model"]), None)
    setup |= {
        "lora_target": "all" if len(parts) > 2 else fused or ["q_proj", "v_proj"],
        "lora_dropout": float(row["note"].split("lora_dropout ")[1].split(";")[0]),
        "adapter_dtype": "bf16",
    }
    if row["quant_bits"]:
        setup |= {"quantization_bit": 4, "double_quantization": "nf4-dq" in row["note"], "kbit_upcast": "none"}
    return setup


def _torchtune_readme(row: Row) -> Setup:
    """torchtune's single-device configurations of September 2024."""
    setup: Setup = {
        "engine": "torchtune",
        "optim": "paged_adamw_8bit" if row["method"] == "full" else "adamw_torch",
        "optimizer_in_backward": row["method"] == "full",
        "attention": "sdpa",
        "packing": True,
        "param_dtype": "bf16",
        "compute_dtype": "bf16",
        "torch_compile": True,
        "loss": "chunked",
    }
    if row["method"] == "full":
        return setup
    setup |= {"lora_target": "all" if row["lora_targets"] == "all" else row["lora_targets"].split(",")}
    setup |= {"adapter_dtype": "bf16"}
    if row["quant_bits"]:
        setup |= {"quantization_bit": 4, "double_quantization": True, "kbit_upcast": "none"}
    return setup


def _torchtitan(row: Row) -> Setup:
    if "fp8" in row["id"]:
        raise NotStatableError("float8 linear layers: the contract has no field for them")
    return {
        "stage": "pt",
        "engine": "torchtitan",
        "parallelism": "fsdp2",
        "optim": "adamw_torch_fused",
        "attention": "sdpa",
        "packing": True,
        "param_dtype": "fp32",
        "compute_dtype": "bf16",
        "gradient_checkpointing": "selective",
        "torch_compile": "compile" in row["id"],
    }


def _thunder(row: Row) -> Setup:
    """thunder/benchmarks/benchmark_litgpt.py: litgpt's blocks in a bare loop."""
    return {
        "stage": "pt",
        "engine": "thunder",
        "optim": "adamw_torch",
        "attention": "sdpa",
        "packing": True,
        "param_dtype": "bf16",
        "compute_dtype": "bf16",
        "torch_compile": True,
        "loss": "torch",
    }


def _swift(row: Row) -> Setup:
    """ms-swift around HF Trainer on Qwen-7B (remote code). Batches of one sequence carry no padding."""
    eager = row["attn"].startswith("Qwen eager")
    setup: Setup = {
        "engine": "transformers",
        "versions": {"transformers": "4.36"},
        "optim": "adamw_torch",
        "attention": "eager" if eager else "flash_attention_2",
        "compute_dtype": "bf16",
    }
    if row["method"] == "full":
        return setup | {"param_dtype": "bf16"}
    targets = "all" if row["lora_targets"] == "all linear" else ["c_attn"]
    setup |= {"lora_target": targets, "adapter_dtype": "fp32"}
    if row["quant_bits"]:
        method = "bnb" if "bnb" in row["precision"] else "gptq"
        setup |= {"quantization_bit": row["quant_bits"], "quantization_method": method}
    return setup


def _qwen(row: Row) -> Setup:
    """The Qwen-1 README: finetune.py around HF Trainer; the GPTQ runs under DeepSpeed ZeRO-2 on one GPU."""
    setup: Setup = {
        "engine": "transformers",
        "versions": {"transformers": "4.32"},
        "optim": "adamw_torch",
        "attention": "flash_attention_2",
        "compute_dtype": "fp16" if row["quant_bits"] else "bf16",
        "lora_target": ["c_attn", "attn.c_proj", "w1", "w2", "mlp.c_proj"],
        "lora_dropout": 0.05,
    }
    if "trainable" in row["lora_targets"]:
        setup |= {"additional_target": ["wte", "lm_head"]}
    if row["quant_bits"]:
        setup |= {"quantization_bit": 4, "quantization_method": "gptq", "parallelism": "zero2"}
    return setup


def _fsdp_qlora(row: Row) -> Setup:
    """The fsdp_qlora script: a plain loop, pure bf16, reentrant checkpoints, no LoRA on o_proj; rank 64 and dropout 0.1
    by default (train.py). Its README rules transformers 4.38 and 4.39 out; peft before 0.11 gave adapters the base's
    dtype (tuners/lora/layer.py, update_layer).
    """
    setup: Setup = {
        "engine": "fsdp_qlora",
        "versions": {"transformers": "4.37"},
        "packing": True,  # dummy samples of exactly the context length
        "optim": "adamw_torch",
        "attention": "sdpa",
        "param_dtype": "bf16",
        "compute_dtype": "bf16",
        "adapter_dtype": "bf16",
        "lora_rank": row.get("lora_rank") or 64,
        "lora_dropout": 0.1,
        "lora_target": ["q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj"],
        "offload": "params" if "CPU" in row["offload"] else "none",
        "parallelism": "ddp" if "NO_SHARD" in row["sharding"] else "fsdp",
    }
    if row.get("quant_bits"):
        setup |= {"quantization_bit": 4, "double_quantization": True, "kbit_upcast": "none"}
    return setup


def _peft_docs(row: Row) -> Setup:
    """TRL's SFTTrainer under accelerate, in March 2024; the example loads the model in bf16."""
    setup: Setup = {
        "engine": "trl",
        "versions": {"transformers": "4.39"},
        "param_dtype": "bf16",
        "optim": "adamw_torch",
        "attention": "flash_attention_2",
        "packing": True,
        "compute_dtype": "bf16",
        "lora_target": "all",
        "offload": "params" if "cpu" in row["offload"] else "none",
        "parallelism": "zero3" if row["sharding"] == "ZeRO-3" else "fsdp",
    }
    if row["quant_bits"]:
        setup |= {"quantization_bit": 4, "double_quantization": True}
    return setup


def _fitcheck(row: Row) -> Setup:
    """One step of a hand-written loop around transformers and peft, whose ``outputs`` live through backward."""
    if "repeated" in row["attn"]:
        raise NotStatableError("keys and values repeated by a patch in front of the attention kernel")
    setup: Setup = {
        "engine": "pytorch-step",
        "versions": {"transformers": row["note"].split("transformers ")[1].split(";")[0]},
        "optim": "adamw_torch",
        "attention": "eager" if row["attn"] == "eager" else "sdpa",
        "compute_dtype": "fp16",
        "adapter_dtype": "fp32",
        "lora_target": row["lora_targets"].split(","),
    }
    if row["quant_bits"]:
        setup |= {"quantization_bit": 4, "double_quantization": False, "kbit_upcast": "all"}
    return setup


def _component(row: Row) -> Setup:
    raise NotStatableError("a component alone (lm_head and loss), not a training step")


STATERS: dict[str, Callable[[Row], Setup]] = {
    "fms-": _fms,
    "litgpthub-": _litgpt_hub,
    "litgpt-": _litgpt,
    "torchtune8b-": _torchtune_readme,
    "torchtune-": _torchtune,
    "torchtitan-": _torchtitan,
    "thunder474-": _thunder,
    "swift-": _swift,
    "qwen1-": _qwen,
    "fsdpqlora-": _fsdp_qlora,
    "peftdocs-": _peft_docs,
    "fitcheck-": _fitcheck,
    "xtuner-": _component,
}
