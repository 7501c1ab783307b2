"""The bench packs weights to 4 bit by itself: the model must be the one that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engines.conftest import ScriptEngine

pytestmark = pytest.mark.engines
ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_4_bit_model_is_what_transformers_loads(engine: ScriptEngine, tmp_path: Path) -> None:
    out = engine.script("bench_4bit.py", str(tmp_path / "model"), cwd=tmp_path, PYTHONPATH=str(ROOT))
    found = json.loads(next(line for line in out.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))
    assert found["made"] == found["loaded"]
    packed = [each for each in found["made"].values() if each[0] == "Params4bit"]
    assert len(packed) == 2 * 7 and all(each[4][1] for each in packed)
    assert found["trained"]["wrapped"] == "PeftModelForCausalLM"
