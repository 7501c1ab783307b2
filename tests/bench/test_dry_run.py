"""The whole chain on the CPU: real Trainer steps in their own processes, fake ranks, resuming, and a capped card.

About 20 seconds. What is metered here is what was predicted: the CPU has no allocator that counts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench import caps
from bench.batch import read_rows, run_batch
from bench.gpu_peaks import card_here, main, plan_caps
from bench.grid import read_grid
from bench.worker import run
from tests.bench.shapes_of_tests import TINY, write_grid, write_tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = [pytest.mark.transformers, pytest.mark.filterwarnings("ignore")]

GRID = """
[[runs]]
model = "{model}"
layers = 2
method = "lora"
param_dtype = "bf16"
seq_len = 16
[[runs]]
model = "{model}"
method = "full"
param_dtype = "fp32"
parallelism = "fsdp2"
ranks = 4
seq_len = 16
gradient_accumulation_steps = 2
[[runs]]
model = "{model}"
method = "lora"
liger_kernel = true
[[caps]]
model = "{model}"
method = "full"
param_dtype = "bf16"
seq_len = 32
"""


def test_a_batch_runs_is_resumed_and_says_what_it_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, GRID.format(model=write_tiny(tmp_path)))
    words = ["--device", "cpu", "--grid", str(grid), "--out", str(tmp_path / "rows")]
    assert main(words) == 0
    assert re.search("liger-kernel (is not installed|runs on a GPU alone)", capsys.readouterr().err)
    rows = {row["setup"]["method"]: row for row in read_rows(next((tmp_path / "rows").glob("*.jsonl")))}
    assert {row["outcome"] for row in rows.values()} == {"ok"}, [row["message"] for row in rows.values()]
    assert rows["lora"]["layers"] == 2 and rows["lora"]["config"] == {**TINY, "num_hidden_layers": 2}
    assert rows["lora"]["wrapped"] == "PeftModelForCausalLM" and rows["lora"]["tokens_per_s"] > 0
    assert rows["full"]["wrapped"].startswith("FSDP") and rows["full"]["tokens_per_s"] is None
    assert rows["lora"]["peaks"]["phases"].keys() == {"forward", "loss", "backward", "optimizer"}
    assert rows["lora"]["use_reentrant"] is False
    assert json.dumps(rows["lora"]["versions"]).count(torch.__version__.partition("+")[0]) >= 1
    assert main([*words, "--list"]) == 0
    again = capsys.readouterr()
    assert "2 runs, about" in again.out


def test_a_capped_card_finds_the_lie(tmp_path: Path) -> None:
    """A wide vocabulary fills half a GiB with few tokens. The second time, runs take 1.5 times what was predicted."""
    model = write_tiny(tmp_path, vocab_size=100_000)
    (case,) = read_grid(write_grid(tmp_path, GRID.format(model=model)))[1]
    planned = plan_caps(case, card_here("cpu"), 1, "cpu")
    assert [one.row["cap"]["verdict"] for one in planned] == ["fits", "does_not_fit"]
    honest = run_batch(planned, tmp_path / "honest.jsonl", minutes=5)
    assert [caps.judged(row)["judgement"] for row in honest.rows] == ["right", "right"]
    out = next(row for row in honest.rows if row["outcome"] == "out_of_memory")
    assert out["out_of_memory"]["allowed_bytes"] == pytest.approx(out["limit_bytes"], rel=0.01)
    told = planned[0]
    lied = {**told.row, **run(torch, {**told.job, "factor": 1.5})}
    assert lied["outcome"] == "out_of_memory"
    assert caps.judged(lied)["judgement"] == "contradiction"


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["--card", "H200"]) == 2
    assert main(["--list", "--card", "H200", "--cap", "200"]) == 2
    assert "not below" in capsys.readouterr().err
    assert main(["--minutes", "0"]) == 2
