"""Rows of measurements/added.jsonl that machine-readable public results give, read out of git clones.

Each function takes one clone (a bare one does) and yields rows; ``added_measurements.py`` writes them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from more_tables import show

Row = dict[str, Any]
GIB = 2**30
PEFT_RESULTS = "method_comparison/MetaMathQA/results"
# Variants of LoRA that the contract has no field for, by the setting that switches them on.
PEFT_VARIANTS = ("use_bdlora", "use_qalora", "velora_config", "monteclora_config", "lora_ga_config", "eva_config")

CANIFINETUNE = "DaoyuanLi2816/can-i-finetune-this"
CANIFINETUNE_RESULTS = "benchmarks/results"
CANIFINETUNE_VERSIONS = "transformers 5.8.1; torch 2.6.0; peft 0.19.1; bitsandbytes 0.49.2"  # docs/rtx4080_baselines.md

AXOLOTL = "axolotl-ai-cloud/axolotl"
# Figures of axolotl's example READMEs, in GiB unless the text says GB: (configuration, card, figure, unit).
AXOLOTL_FIGURES: tuple[tuple[str, str, float, str], ...] = (
    ("apertus/apertus-8b-qlora.yaml", "24GB card", 8.7, "GiB"),
    ("arcee/afm-4.5b-qlora.yaml", "24GB card", 7.8, "GiB"),
    ("devstral/devstral-small-qlora.yml", "24GB card", 21, "GB"),
    ("magistral/magistral-small-qlora.yaml", "48GB card", 24, "GB"),
    ("mimo/mimo-7b-qlora.yaml", "24GB card", 17.2, "GiB"),
    ("ministral/ministral-small-qlora.yaml", "24GB card", 8.76, "GiB"),
    ("plano/plano-4b-qlora.yaml", "24GB card", 5.1, "GiB"),
    ("seed-oss/seed-oss-36b-qlora.yaml", "48GB card", 27.7, "GiB"),
    ("gpt-oss/gpt-oss-20b-sft-lora-singlegpu.yaml", "48GB card", 44, "GiB"),
    ("gpt-oss/gpt-oss-20b-fft-fsdp2-offload.yaml", "2x 24GB card", 21, "GiB"),
    ("gpt-oss/gpt-oss-20b-fft-fsdp2.yaml", "8x 48GB card", 36, "GiB"),
    ("gpt-oss/gpt-oss-20b-fft-fsdp2.yaml", "4x 80GB card", 46, "GiB"),
    ("gpt-oss/gpt-oss-120b-fft-fsdp2-offload.yaml", "8x 80GB card", 49, "GiB"),
    ("hunyuan/hunyuan-v1-dense-qlora.yaml", "24GB card", 4.7, "GB"),
    ("olmo3/olmo3-7b-qlora.yaml", "24GB card", 11.3, "GiB"),
    ("magistral/think/magistral-small-think-qlora.yaml", "24GB card", 19.1, "GiB"),
    ("ministral3/think/ministral3-3b-think-qlora.yaml", "24GB card", 4.76, "GiB"),
    ("qwen3.5/27b-qlora.yaml", "80GB card", 47, "GiB"),
    ("glm45/glm-45-air-qlora.yaml", "80GB card", 63.4, "GiB"),
    ("qwen3-next/qwen3-next-80b-a3b-qlora.yaml", "80GB card", 47, "GiB"),
)


def peft_rows(clone: Path) -> Iterator[Row]:
    """PEFT's method comparison on MetaMathQA: methods that the contract can name, one run a transformers release.

    ``accelerator_memory_max`` is ``max_memory_reserved`` over the run (its cache is emptied every ten steps).
    """
    logged = subprocess.run(
        ["git", "-C", str(clone), "log", "--format=%h", "--reverse", "--", PEFT_RESULTS],
        capture_output=True,
        text=True,
        check=True,
    )
    newest = {}
    for commit in logged.stdout.split():
        for name in show(clone, f"{commit}:{PEFT_RESULTS}").splitlines()[2:]:
            if not name.endswith(".json") or not name.startswith(("lora--", "oft--", "full-finetuning--")):
                continue
            result = json.loads(show(clone, f"{commit}:{PEFT_RESULTS}/{name}"))
            version = result["meta_info"]["package_info"]["transformers-version"]
            if peft_method(result["run_info"]):
                newest[name, version] = peft_row(name.removesuffix(".json"), commit, result)
    yield from newest.values()


def peft_method(ran: Row) -> str | None:
    """The contract's method, None for variants that it cannot name."""
    adapter, training = ran["peft_config"], ran["train_config"]
    if training["optimizer_type"] != "AdamW" or training["compile"]:
        return None
    if adapter is None:
        return "full"
    if adapter["peft_type"] == "OFT":
        return "oft"
    if adapter.get("init_lora_weights") is not True or any(adapter.get(name) for name in PEFT_VARIANTS):
        return None
    return "dora" if adapter["use_dora"] else "lora"


def peft_row(name: str, commit: str, result: Row) -> Row:
    ran, packages = result["run_info"], result["meta_info"]["package_info"]
    training, adapter = ran["train_config"], ran["peft_config"] or {}
    targets = adapter.get("target_modules")
    version = packages["transformers-version"]
    return {
        "id": f"added-peft-{name}-{version}",
        "source": f"huggingface/peft:{PEFT_RESULTS}/{name}.json@{commit}",
        "model": training["model_id"],
        "method": peft_method(ran),
        "lora_rank": adapter.get("r"),
        "lora_targets": ",".join(sorted(targets)) if targets else None,
        "quant_bits": None,
        "seq_len": training["max_seq_length"],
        "micro_batch": training["batch_size"],
        "grad_accum": 1,
        "optimizer": "torch AdamW (foreach)",
        "precision": "bf16 model, adapters in fp32, no autocast" if adapter else "pure bf16",
        "grad_ckpt": bool(training.get("use_gc")),
        "attn": "sdpa",
        "packing": False,
        "gpus": 1,
        "gpu_model": result["meta_info"]["system_info"]["accelerator"]
        if "accelerator" in result["meta_info"]["system_info"]
        else result["meta_info"]["system_info"]["gpu"],
        "sharding": "none",
        "offload": "none",
        "peak_gb": round(peak(result["train_info"]) / GIB, 6),
        "unit": "GiB",
        "measure": "reserved",
        "note": f"transformers {version}; torch {packages['torch-version']}; texts of up to 1,300 characters cut at "
        "768 tokens, in buckets of similar length; cache emptied every 10 steps; the run also generates for 50 prompts",
        "stack": "peft",
    }


def peak(trained: Row) -> int:
    """Bytes: the key was renamed when other accelerators came in."""
    return int(trained.get("accelerator_memory_max") or trained["cuda_memory_max"])


def canifinetune_rows(clone: Path) -> Iterator[Row]:
    """canifinetune's own benchmark: a hand-written loop of random tokens on an RTX 4080, both of torch's meters."""
    commit = show(clone, "HEAD")[7:16]
    for name in show(clone, f"HEAD:{CANIFINETUNE_RESULTS}").splitlines()[2:]:
        if name.endswith(".json"):
            ran = json.loads(show(clone, f"HEAD:{CANIFINETUNE_RESULTS}/{name}"))
            yield canifinetune_row(name.removesuffix(".json"), commit, ran)


def canifinetune_row(name: str, commit: str, ran: Row) -> Row:
    config, peaks = ran["config"], ran["measured"]
    # estimator/formulas.py, TARGET_MODULES_BY_FAMILY: the scope "attention"
    targets = "c_attn,c_proj" if "gpt2" in config["model_id"] else "q_proj,k_proj,v_proj,o_proj"
    return {
        "id": f"added-canifinetune-{name}",
        "source": f"{CANIFINETUNE}:{CANIFINETUNE_RESULTS}/{name}.json@{commit}",
        "model": config["model_id"],
        "method": config["method"],
        "lora_rank": config["lora_rank"],
        "lora_targets": targets,
        "quant_bits": 4 if config["method"] == "qlora" else None,
        "seq_len": config["seq_len"],
        "micro_batch": config["micro_batch_size"],
        "grad_accum": 1,
        "optimizer": f"bitsandbytes {config['optimizer']}",
        "precision": "bf16 base, adapters in fp32, no autocast; a quantized base is prepared by peft",
        "grad_ckpt": config["gradient_checkpointing"],
        "attn": config["attention_implementation"],
        "packing": False,
        "gpus": 1,
        "gpu_model": ran["gpu"]["name"].removeprefix("NVIDIA "),
        "sharding": "none",
        "offload": "none",
        "peak_gb": peaks["peak_allocated_gb"],
        "unit": "GiB",
        "measure": "allocated",
        "alt_peaks": [{"measure": "reserved", "peak_gb": peaks["peak_reserved_gb"], "unit": "GiB"}],
        "note": f"{CANIFINETUNE_VERSIONS}; Windows, with a display on the card; {config['steps']} steps of random "
        "tokens, no padding; outputs are named until the next step",
        "stack": "canifinetune",
    }


def axolotl_rows(clone: Path) -> Iterator[Row]:
    """axolotl's examples whose README states what they use. The meter is not named, nor is the card of most."""
    commit = show(clone, "HEAD")[7:16]
    for name, cards, figure, unit in AXOLOTL_FIGURES:
        yield axolotl_row(yaml.safe_load(show(clone, f"HEAD:examples/{name}")), name, commit, cards) | {
            "peak_gb": figure,
            "unit": unit,
        }


def axolotl_row(config: Row, name: str, commit: str, cards: str) -> Row:
    count, _, card = cards.rpartition("x ")
    gpus = int(count or 1)
    bits = 4 if config.get("load_in_4bit") else 8 if config.get("load_in_8bit") else None
    targets = config.get("lora_target_modules")
    return {
        "id": f"added-axolotl-{Path(name).stem}" + (f"-{gpus}" if gpus > 1 else ""),
        "source": f"{AXOLOTL}:examples/{name} and its README.md@{commit}",
        "model": config["base_model"],
        "method": "qlora" if bits else config.get("adapter") or "full",
        "lora_rank": config.get("lora_r"),
        "lora_targets": "all linear" if config.get("lora_target_linear") else ",".join(targets or ()) or None,
        "quant_bits": bits,
        "seq_len": config["sequence_len"],
        "micro_batch": config["micro_batch_size"],
        "grad_accum": config["gradient_accumulation_steps"],
        "optimizer": config["optimizer"],
        "precision": "bf16",
        "grad_ckpt": bool(config.get("gradient_checkpointing")),
        "attn": "flash_attention_2",
        "packing": bool(config.get("sample_packing")),
        "gpus": gpus,
        "gpu_model": card,
        "sharding": "none" if gpus == 1 else "FSDP2" if config.get("fsdp_version") == 2 else "FSDP1",
        "offload": "cpu" if str(config.get("fsdp_config")).find("offload_params': True") >= 0 else "none",
        "measure": "unknown",
        "note": axolotl_note(config),
        "stack": "axolotl",
    }


def axolotl_note(config: Row) -> str:
    """What else the configuration says: the loss kernel, dropout, offloaded activations, modules trained whole."""
    cross_entropy = any("cut_cross_entropy" in name for name in config.get("plugins") or ())
    parts = [
        "cut cross-entropy" if cross_entropy else "whole logits",
        f"lora_dropout {config.get('lora_dropout') or 0}",
        "activation offloading" if config.get("activation_offloading") else "",
        "trainable " + ",".join(config["lora_modules_to_save"]) if config.get("lora_modules_to_save") else "",
        "experts quantized" if config.get("quantize_moe_experts") else "",
        f"evaluation set {config['val_set_size']}" if config.get("val_set_size") else "",
    ]
    return "; ".join(part for part in parts if part) + "; what the README says the configuration uses"
