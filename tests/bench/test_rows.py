"""Rows of measurements/gpu: what the scoreboard reads of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_peaks import card_named, plan_run
from bench.grid import Run
from bench.rows import measured, published, read, stated
from planner.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tools"))

import comparisons
import measured_setups

RUN = Run({"model": "Qwen/Qwen2.5-7B", "method": "lora", "param_dtype": "bf16", "seq_len": 1024}, layers=4)
PEAKS = {"allocated_bytes": 5_000_000_001, "reserved_bytes": 6_000_000_000, "device_bytes": 6_500_000_000}


def row(**changes: Any) -> dict[str, Any]:
    fixed = plan_run(RUN, card_named("H200"), "cuda").row
    return {**fixed, "outcome": "ok", "peaks": PEAKS, "tokens_per_s": 1234.5, **changes}


def test_a_row_says_its_setup_shape_card_and_peaks() -> None:
    setup, spec, machine, sizes = stated(row())
    assert (setup.seq_len, setup.engine, setup.gpus) == (1024, "transformers", "1xH200")
    assert spec.layers == 4 and spec.parameters < 2.1e9
    assert machine.smallest.kind is not None
    assert sizes == {"allocated": 5_000_000_001, "reserved": 6_000_000_000, "nvidia-smi": 6_500_000_000}


def test_pretended_ranks_and_a_changed_allocator_hide_meters() -> None:
    assert measured(row(ranks=2)).keys() == {"allocated", "reserved"}
    assert measured(row(alloc_conf="expandable_segments:True")).keys() == {"allocated"}


def test_the_dry_mode_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dry mode"):
        stated(row(device="cpu"))
    rows = [row(), row(device="cpu"), row(outcome="out_of_memory")]
    (tmp_path / "h200.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert len(list(read(tmp_path))) == 1


def test_the_scoreboard_compares_the_shape_that_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "h200.jsonl").write_text(json.dumps(row()) + "\n")
    monkeypatch.setattr(measured_setups, "MEASUREMENTS", tmp_path)
    (one,) = comparisons.judge_rows("gpu")
    assert one.problem is None and one.spec is not None and one.spec.layers == 4
    found = {each.meter: each for each in comparisons.compare([one])}
    assert found["allocated"].measured_bytes == 5_000_000_001
    assert found["allocated"].predicted_bytes == row()["predicted"]["allocated_bytes"]
    assert found.keys() == {"allocated", "reserved", "nvidia-smi"}


def test_a_published_row_has_the_files_keys() -> None:
    first = json.loads((measured_setups.MEASUREMENTS / "published.jsonl").read_text().splitlines()[0])
    needed = {
        "id",
        "source",
        "model",
        "method",
        "gpus",
        "gpu_model",
        "peak_gb",
        "unit",
        "measure",
        "alt_peaks",
        "stack",
    }
    assert needed <= published(row()).keys() & first.keys()
