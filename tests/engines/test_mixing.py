"""Mixtures as LLaMA-Factory and datasets make them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from planner.data.mixing import mixing
from planner.emit.folder import plan_files
from planner.emit.write import write_folder
from planner.plan.plan import Request
from planner.training import TrainingSetup
from tests.emit.plans import machine, plan_of
from tests.engines.conftest import ScriptEngine
from tests.engines.test_parsers import result
from tests.engines.test_training import train

pytestmark = pytest.mark.engines
MIXTURES = [
    ((3000, 700), (), "interleave_under"),
    ((3000, 700), (), "interleave_over"),
    ((3000, 700), (0.8, 0.2), "interleave_under"),
    ((3000, 700), (0.8, 0.2), "interleave_over"),
    ((5000, 2000, 900), (0.3, 0.3, 0.4), "interleave_under"),
    ((5000, 2000, 900), (0.3, 0.3, 0.4), "interleave_over"),
]


def test_an_epoch_is_what_datasets_makes(engine: ScriptEngine, tmp_path: Path) -> None:
    """Exactly where the sets take turns, to 5 % where chance draws them."""
    asked = json.dumps([[counts, probs or None, strategy] for counts, probs, strategy in MIXTURES])
    seen = result(engine.script("interleave.py", asked, cwd=tmp_path))
    for (counts, probs, strategy), (number, shares) in zip(MIXTURES, seen, strict=True):
        mix = mixing(strategy, probs)
        assert mix.samples(counts) == pytest.approx(number, rel=0.05 if probs else 0)
        assert mix.shares(counts) == pytest.approx(shares, abs=0.02 if probs else 0)


@pytest.mark.parametrize(
    ("strategy", "probs"), [("concat", ()), ("interleave_under", ()), ("interleave_over", (0.7, 0.3))]
)
def test_a_mixture_trains(
    engine: ScriptEngine, tiny_model: Path, tmp_path: Path, strategy: str, probs: tuple[float, ...]
) -> None:
    files = []
    for name in ("one.jsonl", "two.json"):
        rows = [{"instruction": f"Say {number}.", "output": str(number)} for number in range(20)]
        text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(text)
        files.append(str(tmp_path / name))
    request = Request(model="7B", data=",".join(files), mix_strategy=strategy, interleave_probs=probs)
    plan = replace(plan_of(TrainingSetup(model="-", parallelism="none"), on=machine(1)), request=request)
    folder = write_folder(plan_files(plan), tmp_path / "plan").folder
    answers = result(engine.script("parse_train_yaml.py", str(folder), cwd=tmp_path))
    assert answers == {str(folder): None}
    assert len(train(engine, folder, tiny_model)) == 2
