"""The engine left open: each searched whole, the best of them taken, and all of them told."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner.api import make
from planner.errors import InputError
from planner.hardware.parse import parse_machine
from planner.model.catalogue import resolve
from planner.plan.among import ENGINES
from planner.plan.plan import Plan, Request
from planner.rulebook.load import engine_rows
from planner.training import AUTO_ENGINE

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"full": 0, "lora": 1, "qlora": 2}


def planned(gpus: str, engine: str = AUTO_ENGINE, **asked: Any) -> Plan:
    request = Request(engine=engine, gpus=gpus, **{"model": "Qwen2.5-7B", **asked})
    return make(request, resolve(request.model), parse_machine(gpus))


def requests() -> list[tuple[str, dict[str, Any]]]:
    chance = random.Random(20261122)
    machines = ("1x12GB", "3x20GB", "1xRTX4090", "2xRTX3090", "1xT4", "4xA100-40GB", "8xH100-80GB")
    return [
        (
            chance.choice(machines),
            {
                "model": chance.choice(["Qwen2.5-0.5B", "Qwen2.5-3B", "Qwen2.5-7B", "Mixtral-8x7B"]),
                "stage": chance.choice(["sft", "sft", "dpo", "pt"]),
                "seq_len": chance.choice([512, 2048, 4096]),
                "global_batch": chance.choice([8, 24]),
                "objective": chance.choice(["quality", "speed", "memory"]),
            },
        )
        for _ in range(16)
    ]


@pytest.mark.parametrize(("gpus", "asked"), requests())
def test_no_engine_alone_has_a_better_plan(gpus: str, asked: dict[str, Any]) -> None:
    """Against the three plans made one by one, by the objective's own measure."""
    alone = {engine: _alone(gpus, engine, asked) for engine in ENGINES}
    worths = {engine: _worth(plan, asked["objective"]) for engine, plan in alone.items() if plan is not None}
    best = max(worths.values())
    found = planned(gpus, **asked)
    assert found.request.engine == next(engine for engine in worths if worths[engine] == best)  # of equals the first
    expected = alone[found.request.engine]
    assert expected is not None
    assert (found.verdict, found.chosen) == (expected.verdict, expected.chosen)
    assert found.space is not None
    spaces = [plan.space for plan in alone.values() if plan is not None]
    assert found.space.valid == sum(space.valid for space in spaces if space)
    assert found.space.valid == found.space.priced + sum(each.count for each in found.space.excluded)
    assert [report.engine for report in found.engines] == list(ENGINES)
    assert [report.problem is None for report in found.engines] == [engine in worths for engine in ENGINES]


def _alone(gpus: str, engine: str, asked: dict[str, Any]) -> Plan | None:
    if asked["stage"] not in engine_rows()[engine]["stages"]:
        return None
    try:
        return planned(gpus, engine, **asked)
    except InputError:
        return None


def _worth(plan: Plan, objective: str) -> tuple[float, ...]:
    """The verdict, no offload that nobody asked for, for quality the class; then least memory or most tokens."""
    verdict = ("does_not_fit", "uncertain", "fits").index(plan.verdict)
    if plan.chosen is None:
        return (verdict,)
    setup, rate = plan.chosen.setup, plan.chosen.speed.tokens_per_s if plan.chosen.speed else 0.0
    place = -PLACES[setup.method] if objective == "quality" else 0
    last = -float(plan.chosen.estimate.required_bytes) if objective == "memory" else round(rate, 3)
    return (verdict, -float(setup.offload != "none"), place, last)


@pytest.mark.parametrize("objective", ["quality", "speed"])
def test_more_memory_is_never_slower_whatever_the_engine(objective: str) -> None:
    """Within a class for quality, at all for speed."""
    before: tuple[str, float] | None = None
    for gib in range(8, 81, 6):
        plan = planned(f"2x{gib}GB", objective=objective, model="Qwen2.5-3B")
        if plan.chosen is None or plan.chosen.speed is None:
            continue
        setup, rate = plan.chosen.setup, plan.chosen.speed.tokens_per_s
        alike = before is not None and (objective == "speed" or before[0] == setup.method)
        if alike and before is not None:
            assert rate >= before[1] * (1 - 1e-5), f"{gib} GB"
        before = (setup.method, rate)
    assert before is not None


def test_an_engine_without_the_stage_is_named_with_its_reason() -> None:
    plan = planned("1xA100-80GB", stage="grpo")
    problems = {report.engine: report.problem for report in plan.engines}
    assert plan.request.engine == "trl"
    assert problems["trl"] is None
    assert problems["llamafactory"] == "LLaMA-Factory has no stage grpo"
    assert any(reason.startswith("engine TRL, ") and problems["llamafactory"] in reason for reason in plan.reasons)


def test_what_no_engine_can_do_is_refused_with_each_ones_reason() -> None:
    words = "no engine does this: LLaMA-Factory has no stage grpo; TRL has no method galore; the embedded"
    with pytest.raises(InputError, match=words):
        planned("1xA100-80GB", stage="grpo", method="galore")


def command(words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "planner", *words.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_command_writes_the_files_of_the_engine_that_won(tmp_path: Path) -> None:
    answer = json.loads(command("--gpus 1xRTX4090 --model 7B --engine auto --json --out plan", tmp_path).stdout)
    engine = answer["chosen"]["setup"]["engine"]
    assert answer["request"]["engine"] == engine
    rates = {each["engine"]: each["tokens_per_s"] for each in answer["engines"] if each["method_class"] == "lora"}
    assert rates[engine] == max(rates.values())
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["chosen"]["setup"]["engine"] == engine


def test_only_a_plan_compares_engines(tmp_path: Path) -> None:
    done = command("estimate --gpus 1x24GB --model 7B --engine auto", tmp_path)
    assert done.returncode == 2
    assert "engine auto compares engines, which only a plan does: name one here, such as llamafactory" in done.stderr
