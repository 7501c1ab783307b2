"""Stored traces traced afresh, and the command as a user runs it. Needs the extra ``trace``; about 40 seconds."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.memory.traced import Traced, all_rows

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = 6
SEED = os.environ.get("VRAMPLAN_TRACE_SEED") or datetime.datetime.now(datetime.UTC).strftime("%G-W%V")
STOOD_IN = ("liger-kernel", "bitsandbytes")  # which a trace does not run
TINY = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "vocab_size": 1024,
    "num_key_value_heads": 2, "num_hidden_layers": 3, "torch_dtype": "bfloat16",
}  # fmt: skip

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft", "accelerate")),
        reason="the extra `trace` is not installed",
    ),
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or not any(map(shutil.which, ("c++", "g++", "clang++"))),
        reason="tracing needs Linux and a C++ compiler",
    ),
]


def plan_trace(*words: str) -> tuple[int, Any, str]:
    """Exit code, the document, stderr: a process of its own, where torch may not have come before the guard."""
    done = subprocess.run(
        [sys.executable, "-m", "planner", "trace", "--json", *words],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def can_be_traced(row: Traced) -> bool:
    needs_liger = row.asked.get("liger_kernel") and importlib.util.find_spec("liger_kernel") is None
    return len(row.row["block_kept_bytes"]) <= 2 and not needs_liger  # four blocks: about two seconds


def test_a_sample_of_the_matrix_traces_as_it_is_stored(tmp_path: Path) -> None:
    """Another sample each week; VRAMPLAN_TRACE_SEED repeats one."""
    print(f"VRAMPLAN_TRACE_SEED={SEED}")
    rows = random.Random(SEED).sample([row for row in all_rows().values() if can_be_traced(row)], SAMPLE)
    lines = []
    for number, row in enumerate(rows):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**row.config, "torch_dtype": "bfloat16"}))
        lines.append(json.dumps({**row.asked, "model": str(folder)}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    _code, document, _err = plan_trace("--from", str(tmp_path / "rows.jsonl"))
    for row, found in zip(rows, document["traces"], strict=True):
        assert "error" not in found, (SEED, row.name, found)
        traced = found["traced"]
        same = all(importlib.metadata.version(n) == v for n, v in row.row["versions"].items() if n not in STOOD_IN)
        assert traced["allocated_bytes"] == pytest.approx(row.peak_bytes, rel=0 if same else 0.01), (SEED, row.name)
        assert traced["peak_phase"] == row.row["peak_phase"] or not same, (SEED, row.name)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY))
    return str(folder)


def test_parts_sum_and_the_timeline_is_written(tiny: str, tmp_path: Path) -> None:
    words = ["--model", tiny, "--gpus", "1xRTX4090", "--method", "qlora", "--eval-micro-batch-size", "2"]
    code, document, _ = plan_trace(*words, "--timeline", str(tmp_path / "ops.txt"))
    traced = document["traced"]
    assert (code, document["runs"]) == (0, True)
    assert sum(traced["breakdown"].values()) == traced["allocated_bytes"] <= traced["reserved_bytes"]
    assert max(sum(parts.values()) for parts in traced["phases"].values()) == traced["allocated_bytes"]
    assert set(traced["phases"]) == {"load", "forward", "loss", "backward", "optimizer", "eval"}
    assert traced["breakdown"]["weights"] > 0
    assert document["difference"]["phases"].keys() <= traced["phases"].keys()
    assert "mm.default(" in (tmp_path / "ops.txt").read_text()


def test_a_card_that_is_too_small_runs_out(tiny: str, tmp_path: Path) -> None:
    job = {"model": tiny, "gpus": "1xRTX4090", "method": "full", "micro_batch_size": 64}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(job) + "\n" + json.dumps({**job, "stage": "rm"}))
    code, document, _ = plan_trace("--from", str(rows), "--capacity", "1GB")
    ran_out, refused = document["traces"]
    assert code == 2  # the worst of the rows
    assert ran_out["runs"] is False
    assert ran_out["out_of_memory"]["reserved_bytes"] <= ran_out["capacity_bytes"]
    assert "'rm'" in refused["error"]


def test_an_architecture_that_is_not_here_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "model_type": "qwen", "vocab_size": 151936}))
    code, document, err = plan_trace("--model", str(tmp_path), "--gpus", "1x24GB", "--engine", "transformers")
    assert code == 2
    assert "qwen" in document["error"] and err.count("error:") == 1


def test_every_other_layer_checkpointed_is_traced_as_it_is_priced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "num_hidden_layers": 12, "vocab_size": 256}))
    found = {}
    for how in ("true", "2", "false"):
        words = ("--model", str(tmp_path), "--gpus", "1x24GB", "--engine", "embedded", "--method", "full")
        held = ("--gradient-checkpointing", how, "--micro-batch-size", "4")
        _code, document, _err = plan_trace(*words, *held)
        traced, ours = document["traced"]["allocated_bytes"], document["estimate"]["allocated_bytes"]
        assert ours == pytest.approx(traced, rel=0.01), how
        found[how] = traced
    assert found["true"] < found["2"] < found["false"]
