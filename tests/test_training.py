"""A setup's values: wrong ones are one sentence each, whatever their type and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError
from planner.files import json_object, read_text
from planner.training import FIELD_NAMES, MOST, TrainingSetup, setup_from_mapping

ABSURD: tuple[Any, ...] = (
    True, 0, -1, 2**63, 10**400, 1.5, 1e308, float("nan"), float("inf"), "", "x", "+-5", "9" * 5000, "1e9", "\ud800",
    [], [1], {}, {"a": 1}, {"transformers": "new"}, (), object,
)  # fmt: skip


@pytest.mark.parametrize("field", FIELD_NAMES)
def test_any_value_of_any_field_is_taken_or_one_short_sentence(field: str) -> None:
    for value in ABSURD:
        try:
            setup_from_mapping({"model": "7B", field: value})
        except InputError as problem:
            assert field in problem.sentence
            assert len(problem.sentence) < 300


@pytest.mark.parametrize("field", ["seq_len", "micro_batch_size", "gradient_accumulation_steps", "lora_rank"])
def test_a_count_has_a_largest_value(field: str) -> None:
    assert getattr(setup_from_mapping({"model": "7B", field: MOST}), field) == MOST
    with pytest.raises(InputError, match=f"{field} .* it must be {MOST} or less"):
        setup_from_mapping({"model": "7B", field: MOST + 1})


@pytest.mark.parametrize(
    ("given", "read"),
    [(True, True), (False, False), (0, False), (3, 3), (2.0, 2), ("4", 4), ("full", True), ("selective", "selective")],
)
def test_checkpointing_reads_flags_words_and_layers(given: Any, read: Any) -> None:
    assert TrainingSetup(model="7B", gradient_checkpointing=given).gradient_checkpointing == read


def test_freezing_all_layers_is_no_training() -> None:
    with pytest.raises(InputError, match="freeze_trainable_layers 0 is not valid"):
        TrainingSetup(model="7B", method="freeze", freeze_trainable_layers=0)


def test_a_version_starts_with_a_number() -> None:
    assert TrainingSetup(model="7B", versions={"transformers": "4.48"}).versions == {"transformers": "4.48"}
    with pytest.raises(InputError, match=r"versions .* such as"):
        TrainingSetup(model="7B", versions={"transformers": "newest"})


def test_json_that_nests_too_deep_is_one_sentence() -> None:
    with pytest.raises(InputError, match="line 3 is not read: its lists or objects lie too deep"):
        json_object("[" * 100_000, place="line 3")


@pytest.mark.parametrize("name", ["\0", "\ud800"])
def test_a_name_that_no_file_can_have_is_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--from .* is no file name"):
        read_text(str(tmp_path / name), place="--from")
