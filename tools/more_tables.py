"""Rows of measurements/more.jsonl from tables of other public repositories, read out of git clones.

Each function takes one clone (a bare one does) and yields rows; ``more_measurements.py`` writes them.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
CONFIG_HUB = "config_hub/finetune/"
CONFIG_HUB_MODELS = {
    "falcon-7b": "tiiuae/falcon-7b",
    "gemma-2b": "google/gemma-2b",
    "gemma-7b": "google/gemma-7b",
    "gemma2-2b": "google/gemma-2-2b",
    "gemma2-9b": "google/gemma-2-9b",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama-3.2-1B": "meta-llama/Llama-3.2-1B",
    "llama-3.2-3B": "meta-llama/Llama-3.2-3B",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "phi-2": "microsoft/phi-2",
    "phi-3": "microsoft/Phi-3-mini-4k-instruct",
    "stablelm-base-alpha-3b": "stabilityai/stablelm-base-alpha-3b",
    "tiny-llama": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
}
# The table spells some folders otherwise.
CONFIG_HUB_FOLDERS = {"gemma2b": "gemma2-2b", "llama-3.2-1b": "llama-3.2-1B", "llama-3.2-3b": "llama-3.2-3B"}
LORA_PARTS = ("query", "key", "value", "projection", "mlp", "head")

TORCHTUNE_COMMIT = "30b8519e8"
# What the configuration of each row that one can state says: (method, card) -> its fields.
TORCHTUNE_ROWS: dict[tuple[str, str], Row] = {
    ("Full finetune", "1x 4090"): {"method": "full", "optimizer": "bitsandbytes PagedAdamW8bit, in backward"},
    ("LoRA", "1x 4090"): {"method": "lora", "lora_rank": 8, "lora_targets": "q_proj,v_proj"},
    ("QLoRA", "1x 4090"): {"method": "qlora", "lora_rank": 8, "lora_targets": "all", "quant_bits": 4},
}


def show(clone: Path, name: str) -> str:
    """The text of ``commit:path`` in a clone."""
    found = subprocess.run(["git", "-C", str(clone), "show", name], capture_output=True, text=True, check=True)
    return found.stdout


def setting(text: str, name: str) -> str:
    """The value of ``name`` in a flat YAML text, empty where it is not stated."""
    found = re.search(rf"^ *{name}: *(\S*)", text, re.MULTILINE)
    return found.group(1) if found else ""


def cells(line: str) -> list[str]:
    """The cells of one line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def config_hub_rows(clone: Path) -> Iterator[Row]:
    """litgpt's table of ready configurations: one A10G, Alpaca2k cut to 512 tokens, no activation checkpointing.

    Rows marked 4xA10G repeat the one-GPU configurations on such a machine (their files say ``devices: 1``); those
    whose files say more devices are left out, since the table does not say how many were used.
    """
    known = set()
    for line in show(clone, f"HEAD:{CONFIG_HUB}README.md").splitlines():
        found = cells(line)
        if len(found) < 9 or not found[0].endswith(".yaml") or found[5] != "1xA10G" or found[0] in known:
            continue
        known.add(found[0])
        folder, _, file = found[0].partition("/")
        folder = CONFIG_HUB_FOLDERS.get(folder, folder)
        text = show(clone, f"HEAD:{CONFIG_HUB}{folder}/{file}")
        if folder in CONFIG_HUB_MODELS and setting(text, "devices") == "1":
            yield config_hub_row(folder, file.removesuffix(".yaml"), text, found)


def config_hub_row(folder: str, method: str, text: str, found: list[str]) -> Row:
    micro = int(setting(text, "micro_batch_size"))
    parts = [part for part in LORA_PARTS if setting(text, f"lora_{part}") == "true"]
    row: Row = {
        "id": f"more-litgpthub-{folder}-{method}",
        "source": f"Lightning-AI/litgpt:{CONFIG_HUB}README.md",
        "model": CONFIG_HUB_MODELS[folder],
        "method": method,
        "lora_rank": int(setting(text, "lora_r")) if parts else None,
        "lora_targets": ",".join(parts) or None,
        "quant_bits": 4 if setting(text, "quantize") else None,
        "seq_len": int(found[3]),
        "micro_batch": micro,
        "grad_accum": int(setting(text, "global_batch_size")) // micro,
        "optimizer": "bitsandbytes PagedAdamW" if method == "qlora" else "torch AdamW (foreach)",
        "precision": "pure bf16 (bf16-true)",
        "grad_ckpt": False,
        "gpus": 1,
        "gpu_model": "A10G-24GB",
        "sharding": "none",
        "offload": "none",
        "note": f"Alpaca2k; lora_dropout {setting(text, 'lora_dropout') or 0}; quantize "
        f"{setting(text, 'quantize') or 'none'}; chunked loss in lora, whole logits in full",
        "stack": "litgpt",
    }
    if found[8] == "OOM":
        return row | {"kind": "OOM", "gpu_memory_gb": 24}
    return row | {"peak_gb": float(found[8].removesuffix(" GB")), "unit": "GB", "measure": "allocated"}


def fitcheck_rows(folder: Path) -> Iterator[Row]:
    """fitcheck's archive of single steps on one T4: ``folder`` is its ``data/measurements``.

    Rows that its manifest excludes or calls repeats are left out.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    for line in manifest["rows"]:
        if line["role"] in ("excluded", "repeat"):
            continue
        found = json.loads((folder / line["file"]).read_text())["runs"][line["index"]]
        yield fitcheck_row(line, found["measured"], found["model_config"], manifest["sessions"][line["session"]])


def fitcheck_row(line: Row, measured: Row, config: Row, session: Row) -> Row:
    ran = line["identity"]
    grouped = config["num_kv_heads"] != config["num_attention_heads"]
    attention = "eager" if ran["kernel"] == "eager" else "sdpa, memory-efficient backend"
    return {
        "id": f"more-fitcheck-{line['file'].removesuffix('.json')}-{line['index']:02}",
        "source": f"Anassbzdd/fitcheck:data/measurements/{line['file']}",
        "model": line["model_id"],
        "method": "qlora" if ran["quantization"] == "nf4" else "lora",
        "lora_rank": ran["lora_rank"],
        "lora_targets": ",".join(ran["lora_targets"]),
        "quant_bits": 4 if ran["quantization"] == "nf4" else None,
        "seq_len": ran["seq_len"],
        "micro_batch": ran["batch_size"],
        "optimizer": "torch AdamW",
        "precision": "fp16 base, fp32 adapters, no autocast",
        "grad_ckpt": ran["grad_checkpoint"],
        "attn": attention + (", grouped keys and values repeated" if grouped and "sdpa" in attention else ""),
        "gpus": 1,
        "gpu_model": "T4 16GB",
        "sharding": "none",
        "offload": "none",
        "peak_gb": round(measured["peak_allocated_mib"] / 1024, 6),
        "unit": "GiB",
        "measure": "allocated",
        "alt_peaks": [
            {"measure": "reserved", "peak_gb": round(measured["peak_reserved_mib"] / 1024, 6), "unit": "GiB"},
            {"measure": "nvidia-smi", "peak_gb": round(measured["process_mib"] / 1024, 6), "unit": "GiB"},
        ],
        "note": f"second step of a hand-written loop; prepare_model_for_kbit_training where quantized; transformers "
        f"{session['transformers']}; torch {session['torch']}; nvidia-smi: device memory less what was in use before",
        "stack": "hf-loop",
    }


def torchtune_rows(clone: Path) -> Iterator[Row]:
    """The README's table of Llama 3.1: batches of 2 packed to 2,048 tokens, compiled, chunked loss.

    The 24 GB rows run the single-device configurations of that commit as they are; rows on larger cards switch some of
    their measures off, and the table does not say which.
    """
    for line in show(clone, f"{TORCHTUNE_COMMIT}:README.md").splitlines():
        found = cells(line)
        if len(found) != 5 or found[0] != "Llama 3.1 8B" or (found[1], found[2]) not in TORCHTUNE_ROWS:
            continue
        row = TORCHTUNE_ROWS[found[1], found[2]]
        yield {
            "id": f"more-torchtune8b-{row['method']}",
            "source": f"pytorch/torchtune:README.md@{TORCHTUNE_COMMIT}",
            "model": "meta-llama/Llama-3.1-8B",
            "lora_rank": None,
            "lora_targets": None,
            "quant_bits": None,
            "seq_len": 2048,
            "micro_batch": 2,
            "optimizer": "torch AdamW",
            "precision": "pure bf16",
            "grad_ckpt": True,
            "gpus": 1,
            "gpu_model": "RTX 4090 24GB",
            "sharding": "none",
            "offload": "none",
            "peak_gb": float(found[3].removesuffix(" GiB")),
            "unit": "GiB",
            "measure": "allocated",
            "note": "peak memory per GPU as torchtune logs it; packed, torch.compile, CEWithChunkedOutputLoss",
            "stack": "torchtune",
        } | row
