"""Write measurements/more.jsonl: rows of the same public sources that published.jsonl and limits.jsonl leave out.

    python tools/more_measurements.py FMS_CLONE LITGPT_CLONE FITCHECK_FOLDER TORCHTUNE_CLONE

Git clones (bare ones do) of foundation-model-stack/fms-acceleration, Lightning-AI/litgpt and pytorch/torchtune, and
data/measurements of Anassbzdd/fitcheck (in its source distribution on PyPI, fitcheck-llm 0.3.1).
"""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured_setups import MEASUREMENTS, rows
from more_tables import config_hub_rows, fitcheck_rows, torchtune_rows

Row = dict[str, Any]
FMS = "foundation-model-stack/fms-acceleration:scripts/benchmarks/refs/"
TABLES = {"base": "a100_80gb.csv", "granite": "a100_80gb_granite.csv", "liger": "a100_80gb_liger.csv"}
VERSIONS = {"base": "transformers 4.48.1", "granite": "transformers 4.45.2", "liger": "transformers 4.45.2"}
FSDP = "FSDP1 FULL_SHARD (accelerate, TRANSFORMER_BASED_WRAP, BACKWARD_PRE)"
# A failed run counts as out of memory only if it was seen near the card's 81,920 MiB.
NEARLY_FULL_MIB = 78_000
LITGPT = "Lightning-AI/litgpt:tutorials/resource-tables.md"
LITGPT_COMMIT = "0cc02afa"
LITGPT_MODELS = {
    "phi-1.5": ("microsoft/phi-1_5", 1044),
    "StableLM Alpha": ("stabilityai/stablelm-base-alpha-3b", 1034),
    "7 B Llama 2": ("meta-llama/Llama-2-7b-hf", 1304),
    "13 B Llama 2": ("meta-llama/Llama-2-13b-hf", 1304),
}


def show(clone: Path, name: str) -> str:
    """The text of ``commit:path`` in a clone."""
    found = subprocess.run(["git", "-C", str(clone), "show", name], capture_output=True, text=True, check=True)
    return found.stdout


def key(row: Row) -> tuple[Any, ...]:
    """What makes two fms rows the same run."""
    framework = row["note"].split(";")[0].removeprefix("framework_config=")
    return (row["source"], row["model"], row["method"], framework, row["gpus"], row["micro_batch"])


def fms_rows(clone: Path) -> Iterator[Row]:
    for table, name in TABLES.items():
        lines = csv.DictReader(io.StringIO(show(clone, f"HEAD:scripts/benchmarks/refs/{name}")))
        for number, line in enumerate(lines):
            row = fms_row(line, table, name) | {"id": f"more-fms-{table}-{number:03}"}
            if "peak_gb" in row or row["high_water_mib"] >= NEARLY_FULL_MIB:
                yield row


def fms_row(line: dict[str, str], table: str, name: str) -> Row:
    framework, model = line["framework_config"], line["model_name_or_path"]
    quantized = "bnb" in framework or "gptq" in framework
    gpus, lora = int(line["num_gpus"]), line["peft_method"] == "lora"
    autocast = line["torch_dtype"] + (
        " load + HF autocast" if line["bf16"] or line["fp16"] else " (mixed_precision=no)"
    )
    smi, peak = float(line["mem_nvidia_mem_reserved"] or 0), line["mem_peak_torch_mem_alloc_in_bytes"]
    row: Row = {
        "source": FMS + name,
        "model": model,
        "method": "qlora" if quantized else "lora" if lora else "full",
        "lora_rank": int(float(line["r"])) if lora else None,
        "lora_targets": line["target_modules"].replace(" ", ",") if lora else None,
        "quant_bits": 4 if quantized else None,
        "seq_len": 2048 if "santacoder" in model else 4096,
        "micro_batch": int(line["per_device_train_batch_size"]),
        "grad_accum": 1,
        "optimizer": "HF Trainer default adamw_torch (foreach)",
        "precision": autocast,
        "grad_ckpt": True,
        "attn": "flash_attention_2",
        "packing": True,
        "gpus": gpus,
        "gpu_model": "A100-SXM4-80GB",
        "sharding": FSDP if gpus > 1 else "none",
        "offload": "none",
        "note": f"framework_config={framework}; lora_dropout 0.1; torch 2.4.1 {VERSIONS[table]}",
        "stack": stack(framework),
    }
    if not peak:
        return row | {"kind": "OOM", "gpu_memory_gb": 80, "high_water_mib": smi}
    peaks = {"peak_gb": round(float(peak) / 2**30, 6), "unit": "GiB", "measure": "allocated"}
    device = {"measure": "nvidia-smi", "peak_gb": round(smi / 1024, 3), "unit": "GiB"}
    return row | peaks | {"alt_peaks": [device]}


def stack(framework: str) -> str:
    """The stack names of published.jsonl."""
    for part, name in (("gptq", "hf-gptq"), ("liger", "hf-liger"), ("foak", "hf-fused-kernels")):
        if part in framework:
            return name
    return "hf"


def litgpt_rows(clone: Path) -> Iterator[Row]:
    """The table of several GPUs (FSDP1 with activation checkpointing on every block)."""
    text = show(clone, f"{LITGPT_COMMIT}:tutorials/resource-tables.md").split("on Multiple GPUs")[1]
    for number, line in enumerate(text.split("Single-GPU")[0].splitlines()):
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) < 9 or not re.fullmatch(r"[\d.]+ GB", cells[6]):
            continue
        model, seq_len = LITGPT_MODELS.get(cells[1]) or LITGPT_MODELS[f"{cells[0]} {cells[1]}"]
        yield {
            "id": f"more-litgpt-multi-{number:03}",
            "source": LITGPT,
            "model": model,
            "method": "lora",
            "lora_rank": 8,
            "lora_targets": "q,v (fused qkv LoRA)",
            "seq_len": seq_len,
            "micro_batch": int(cells[3]),
            "optimizer": "torch AdamW (foreach)",
            "precision": "pure bf16 (bf16-true)",
            "grad_ckpt": True,
            "gpus": int(cells[5].split()[0]),
            "gpu_model": "A100-SXM4-40GB",
            "sharding": "FSDP1 FULL_SHARD",
            "offload": "none",
            "peak_gb": float(cells[6].removesuffix(" GB")),
            "unit": "GB",
            "measure": "allocated",
            "note": "lora_dropout 0.05; activation checkpointing on every Block; torch 2.1.0",
            "stack": "litgpt",
        }


def main() -> None:
    known = {key(row) for row in rows("published", "limits") if row["id"].removeprefix("limit-").startswith("fms-")}
    found = {key(row): row for row in fms_rows(Path(sys.argv[1]))}
    kept = [row for name, row in found.items() if name not in known] + list(litgpt_rows(Path(sys.argv[2])))
    kept += config_hub_rows(Path(sys.argv[2]))
    kept += fitcheck_rows(Path(sys.argv[3]))
    kept += torchtune_rows(Path(sys.argv[4]))
    target = MEASUREMENTS / "more.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in kept))
    print(f"{len(kept)} rows in {target.name}")


if __name__ == "__main__":
    main()
