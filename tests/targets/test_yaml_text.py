"""What is dumped is what readers of YAML see, whatever the values."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from planner.targets.yaml_text import dump_sections, dump_yaml, load_yaml

TRICKY = (
    "no", "Yes", "null", "~", "1e-4", "1e5", "0x1f", "1_000", "12:30", "2026-11-20", ".5", ".inf", "-", "- a", "a: b",
    "a #b", "#", "'", '"', "{{x}}", "${x}", "a\nb", "\t", "\x7f", "\x85", "\ufeff", "é", "模型", "q_proj,v_proj", " a ",
)  # fmt: skip
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(TRICKY)
scalars = texts | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
mappings = st.dictionaries(texts, scalars | st.lists(scalars, max_size=3), max_size=4)


@given(st.dictionaries(texts, scalars | st.lists(scalars, max_size=3) | mappings.filter(bool), min_size=1, max_size=5))
def test_pyyaml_and_our_reader_see_the_values(values: dict) -> None:
    text = dump_yaml(values)
    assert yaml.safe_load(text) == values
    assert load_yaml(text, place="x") == values


@pytest.mark.parametrize("value", [1e-4, 1e-5, 5e-6, 0.1, 1.0, 3e20, 2.5e-300, 180000000])
def test_numbers_are_numbers_to_every_reader(value: float) -> None:
    text = dump_yaml({"a": value}).removeprefix("a: ").strip()
    assert "e" not in text or "." in text.partition("e")[0]
    assert math.isclose(yaml.safe_load(text), value, rel_tol=0)


def test_sections_are_comments() -> None:
    text = dump_sections({"one": {"a": 1}, "none": {}, "two": {"b": "x y"}})
    assert text == '### one\na: 1\n\n### two\nb: "x y"\n'
