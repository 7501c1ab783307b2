"""Rows of measurements/gpu/*.jsonl for the scoreboard: the setup, the shape and card it ran on, and its peaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import shapes
from planner.errors import InputError
from planner.hardware.machine import Machine
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup, setup_from_mapping

Row = dict[str, Any]
METERS = {"allocated": "allocated_bytes", "reserved": "reserved_bytes", "nvidia-smi": "device_bytes"}
SOURCE = "bench/gpu_peaks.py"


def read(folder: Path) -> Iterator[Row]:
    """Every finished run of the folder, in the files' order; runs under a cap lie in a folder of their own."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["outcome"] == "ok" and row["device"] == "cuda":
                yield row


def stated(row: Row) -> tuple[TrainingSetup, ModelSpec, Machine, dict[str, int]]:
    """Setup, shape, card and measured bytes by meter of one row.

    Raises InputError for a row of the dry mode, which measured nothing.
    """
    if row["device"] != "cuda":
        raise InputError(f"{row['id']}: the dry mode measures nothing")
    setup = setup_from_mapping(row["setup"], place=row["id"])
    return setup, spec_of(row), shapes.machine_of(row["setup"]["gpus"]), measured(row)


def spec_of(row: Row) -> ModelSpec:
    """The shape that ran, with the layers that it had."""
    return shapes.spec_of(row["config"], row["setup"]["model"])


def measured(row: Row) -> dict[str, int]:
    """Bytes by meter. Pretended ranks have no NCCL, so what the card held then is no figure of theirs; an allocator
    that was told to work otherwise reserves otherwise.
    """
    hidden = {"nvidia-smi"} if row["ranks"] > 1 else set()
    hidden |= {"nvidia-smi", "reserved"} if row.get("alloc_conf") else set()
    meters = {name: row["peaks"].get(key) for name, key in METERS.items() if name not in hidden}
    return {name: size for name, size in meters.items() if size}


def published(row: Row) -> Row:
    """The row in the keys of measurements/published.jsonl; sizes in GiB are exact."""
    sizes = measured(row)
    others = [{"measure": name, "peak_gb": size / 2**30, "unit": "GiB"} for name, size in sizes.items()]
    first = others.pop(0)
    versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
    setup = row["setup"]
    return {
        "id": f"gpu-{row['card'].lower()}-{row['id']}",
        "source": f"{SOURCE} on {row['card_name']}",
        "stack": "hf-liger" if setup.get("liger_kernel") else "hf",
        "model": setup["model"], "layers": row["layers"], "method": setup.get("method", "lora"),
        "seq_len": setup.get("seq_len", 2048), "micro_batch": setup.get("micro_batch_size", 1),
        "gpus": row["ranks"], "gpu_model": row["card_name"], "tokens_per_s": row.get("tokens_per_s"),
        **first, "alt_peaks": others, "confidence": "high",
        "note": f"{row['date']}; driver {row['driver']}; {versions}",
        "setup": setup, "config": row["config"],
    }  # fmt: skip
