"""The bytes that TRL's generation holds alive on the CPU: those that tests/memory/test_generation.py has on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engines.conftest import ScriptEngine
from tests.memory.test_generation import LIVE

pytestmark = pytest.mark.engines


@pytest.mark.parametrize("case", LIVE)
def test_live_bytes_are_those_on_record(case: tuple[str, str, str], newest: ScriptEngine, tmp_path: Path) -> None:
    text = newest.script("live_generation.py", *case, cwd=tmp_path)
    found = json.loads(text.rpartition("RESULT ")[2])
    prompts, last, cache = LIVE[case]
    assert found["cache"] == cache
    assert (found["prompts"], found["last"]) == pytest.approx((prompts, last), rel=0.03)
    width = "torch.float32" if case[1] == "fp32" else "torch.bfloat16"
    assert found["dtypes"] == [[width, width]]
