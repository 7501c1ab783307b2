"""Breakdowns by phase and part, committed: two wrong parts can add up to a right-looking sum.

After a change that is meant, ``VRAMPLAN_UPDATE_GOLDEN=1 pytest tests/memory/test_golden.py`` writes the files anew, and
the diff says what moved.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate
from planner.model.catalogue import resolve
from planner.training import setup_from_mapping
from tests.memory.golden_setups import SETUPS

FOLDER = Path(__file__).resolve().parent / "golden"
UPDATE = os.environ.get("VRAMPLAN_UPDATE_GOLDEN") == "1"
# Reserved and required bytes are left out: their margins are fitted to measurements and have suites of their own.
POINTS = (
    "allocated_bytes", "context_bytes", "host_bytes", "disk_bytes", "trainable_parameters", "total_parameters",
    "peak_phase",
)  # fmt: skip


def answer_of(fields: dict[str, Any]) -> dict[str, Any]:
    setup = setup_from_mapping(fields)
    found = estimate(setup, resolve(setup.model), parse_machine(str(setup.gpus))).to_dict()
    return {"setup": fields, **{name: found[name] for name in POINTS}, "phases": found["phases"]}


@pytest.mark.parametrize("name", sorted(SETUPS))
def test_breakdown(name: str) -> None:
    path = FOLDER / f"{name}.json"
    found = json.loads(json.dumps(answer_of(SETUPS[name])))
    if UPDATE:
        FOLDER.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    known = json.loads(path.read_text(encoding="utf-8"))
    for phase, parts in known["phases"].items():
        assert found["phases"].get(phase) == parts, f"phase {phase}"
    assert found == known


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(SETUPS)


def test_the_files_cover_methods_parallelisms_and_stages() -> None:
    methods = {fields.get("method") for fields in SETUPS.values()}
    assert methods >= {"full", "lora", "qlora", "dora", "freeze", "galore", "badam"}
    assert {fields.get("parallelism") for fields in SETUPS.values()} >= {
        "ddp",
        "zero1",
        "zero2",
        "zero3",
        "fsdp",
        "fsdp2",
    }
    assert {fields.get("stage", "sft") for fields in SETUPS.values()} >= {"sft", "pt", "rm", "dpo"}
