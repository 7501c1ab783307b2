"""An observation reads back as it was written, and says in one sentence what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from planner.calibrate.observation import mark, mark_of, observation_from_json, observation_from_mapping
from planner.errors import InputError
from planner.hardware.parse import parse_machine

from .observed import observed


def test_a_record_reads_back_to_an_equal_one() -> None:
    one = observed(3, 0.01, meters=("allocated_bytes", "reserved_bytes", "tokens_per_second"), note="ü")
    assert observation_from_json(one.to_json()) == one


def test_the_error_is_relative_to_the_prediction_and_missing_is_none() -> None:
    one = observed(1, 0.02)
    assert one.error("allocated_bytes") == pytest.approx(0.02, abs=1e-9)
    assert one.error("device_bytes") is None


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("outcome", "finishd", "outcome 'finishd' is not known; did you mean finished?"),
        ("run_id", "../x", "run_id '../x' must be letters, digits, dots and dashes, 80 at most"),
        ("started_at", "yesterday", "started_at 'yesterday' must be a moment in UTC"),
        ("started_at", "2026-11-20T09:30:00+02:00", "must be a moment in UTC"),
        ("measured.allocated_bytes", 0, "measured.allocated_bytes 0 must be a whole number from 1 up"),
        ("measured.allocated_bytes", 1.5, "measured.allocated_bytes 1.5 must be a whole number"),
        ("measured.tokens_per_second", -3, "measured.tokens_per_second -3 must be a number"),
        ("predicted.required_bytes", None, "predicted.required_bytes None must be a whole number"),
        ("predicted.coverage", 1.0, "predicted.coverage 1.0 must lie between 0 and 1"),
        ("predicted.interval", {"allocated_bytes": [1]}, "must be a low and a high bound"),
        ("predicted.interval", [], "predicted.interval () must be an object"),
        ("machine.id", "0" * 12, "is not the digest of its cards"),
        ("machine.total_gib", [1, 2], "must hold one number for each of machine.names"),
        ("setup", {}, "setup.model is missing"),
        ("versions", {"torch": 2}, "versions.torch 2 must be a word"),
        ("format", 2, "format 2 is not 1"),
    ],
)
def test_what_is_wrong_is_one_sentence(path: str, value: Any, sentence: str) -> None:
    document = json.loads(observed().to_json())
    inner, *rest = path.split(".")
    if rest:
        document[inner][rest[0]] = value
    else:
        document[inner] = value
    with pytest.raises(InputError) as caught:
        observation_from_mapping(document, place="rows.jsonl line 4")
    assert caught.value.sentence.startswith("rows.jsonl line 4: ")
    assert sentence in caught.value.sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d["measured"].update(alocated_bytes=1), "measured.alocated_bytes is not a field; did you mean"),
        (lambda d: d.pop("outcome"), "outcome is missing"),
        (lambda d: d["predicted"].pop("release"), "predicted.release is missing"),
        (lambda d: d.update(machine=None), "machine None must be an object"),
    ],
)
def test_keys_that_are_wrong_or_missing_are_named(change: Any, sentence: str) -> None:
    document = json.loads(observed().to_json())
    change(document)
    with pytest.raises(InputError, match=sentence):
        observation_from_mapping(document)


@pytest.mark.parametrize("text", ["{", "[]", "7", "[" * 100_000])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        observation_from_json(text)


def test_a_mark_is_of_cards_count_and_driver_branch_only() -> None:
    one = parse_machine("2xRTX4090", "64GB")
    same = replace(one, ram_bytes=None, disk_free_bytes=7, software={"torch": "2"})
    assert mark_of(one) == mark_of(same)
    assert mark_of(one).id != mark_of(parse_machine("1xRTX4090", None)).id
    assert mark_of(replace(one, driver="550.54.14")) == mark_of(replace(one, driver="550.90.07"))
    assert mark_of(replace(one, driver="550.54.14")).id != mark_of(replace(one, driver="570.1")).id


def test_the_order_of_the_cards_makes_no_other_machine() -> None:
    assert mark(("a", "b"), (8, 24), 1, None).id == mark(("b", "a"), (24, 8), 1, None).id
    assert mark(("a", "b"), (8, 24), 1, None).id != mark(("a", "b"), (24, 8), 1, None).id


def test_drivers_that_differ_by_some_mebibytes_are_one_machine() -> None:
    one = parse_machine("1xRTX4090", None)
    gpu = one.gpus[0]
    shifted = replace(one, gpus=(replace(gpu, total_bytes=(gpu.total_bytes or 0) - (5 << 20)),))
    assert gpu.total_bytes and mark_of(one) == mark_of(shifted)
