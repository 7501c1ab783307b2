"""Rewrite measurements/throughput.jsonl from a clone of mosaicml/llm-foundry (its tables of MPT training throughput).

    python tools/throughput_rows.py path/to/llm-foundry

Rows in fp8 and with activations offloaded are left out: the contract has no field for the first, and the tables none.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "measurements" / "throughput.jsonl"
TABLE = "scripts/train/benchmarking/README.md"
CARDS = {"h100_80gb": "H100-80GB", "a100_80gb": "A100-80GB", "a100_40gb": "A100-40GB"}
# Gbit/s between nodes, for all eight GPUs together, as the headings of the tables say; H100's is not said.
NETWORK = re.compile(r"with (\d+) Gbps")
# model: width, heads, layers (scripts/train/yamls/pretrain/mpt-*.yaml); every one has 50,368 tokens and a tied head.
SHAPES = {
    "125m": (768, 12, 12),
    "350m": (1024, 16, 24),
    "760m": (1536, 12, 24),
    "1b": (2048, 16, 24),
    "3b": (2560, 20, 32),
    "7b": (4096, 32, 32),
    "13b": (5120, 40, 40),
    "30b": (7168, 56, 48),
    "70b": (8192, 64, 80),
}


def tables(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(heading, row) of every table line."""
    heading, names = "", []
    for line in text.splitlines():
        if line.startswith("## "):
            heading, names = line[3:], []
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == "Model":
            names = cells
        elif names and len(cells) == len(names) and not cells[0].startswith("---"):
            yield heading, dict(zip(names, cells, strict=True))


def row(heading: str, cells: dict[str, str], source: str, number: int) -> dict[str, Any]:
    width, heads, layers = SHAPES[cells["Model"]]
    network = NETWORK.search(heading)
    return {
        "id": f"foundry-{number:03d}",
        "source": source,
        "model": f"mpt-{cells['Model']}",
        "config": {
            "model_type": "mpt", "d_model": width, "n_heads": heads, "n_layers": layers, "vocab_size": 50368,
            "max_seq_len": int(cells["SeqLen (T)"]), "expansion_ratio": 4,
        },
        "method": "full",
        "seq_len": int(cells["SeqLen (T)"]),
        "micro_batch": int(cells["MicroBatchSize"]),
        "grad_accum": int(cells["GradAccum"]),
        "grad_ckpt": cells["Activation Checkpointing"] == "True",
        "gpus": int(cells["# GPUs"]),
        "gpu_model": CARDS[cells["GPU"]],
        "param_dtype": "fp32" if cells["Precision"] == "amp_bf16" else "bf16",
        "sharding": f"FSDP {cells['Sharding Strategy']}, mixed precision {cells['MP Mode']}",
        "internode_gbit_per_s": int(network[1]) if network and int(cells["# GPUs"]) > 8 else None,
        "tokens_per_s": float(cells["Throughput (T/s/GPU)"]),
        "stack": "llm-foundry",
    }  # fmt: skip


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("clone", type=Path)
    clone = reader.parse_args().clone
    text = subprocess.run(["git", "-C", clone, "show", f"HEAD:{TABLE}"], capture_output=True, text=True, check=True)
    commit = subprocess.run(
        ["git", "-C", clone, "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True, check=True
    )
    source = f"mosaicml/llm-foundry:{TABLE}@{commit.stdout.strip()}"
    found = [
        (heading, cells)
        for heading, cells in tables(text.stdout)
        if cells["Precision"] in ("amp_bf16", "bf16") and cells["Activation CPUOffload"] == "False"
    ]
    rows = [row(heading, cells, source, number) for number, (heading, cells) in enumerate(found)]
    TARGET.write_text("".join(json.dumps(each) + "\n" for each in rows))
    print(f"{len(rows)} rows")


if __name__ == "__main__":
    main()
