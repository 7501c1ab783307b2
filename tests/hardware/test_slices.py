"""MIG slices: named by card and profile, or as the driver names them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from planner.errors import InputError
from planner.hardware.catalogue import find_gpu, name_for_flags, slices
from planner.hardware.parse import format_gpus, parse_machine
from planner.hardware.schema import problems
from planner.hardware.slices import find_slice, slice_for_flags, slice_named
from planner.rulebook.load import read_rules
from planner.units import GIB

EVERY = [(card, row) for group in slices() for card in group["cards"] for row in group["profiles"]]


def test_a_slice_has_its_part_of_the_card() -> None:
    (gpu,) = parse_machine("1xA100-80GB:3g.40gb").gpus
    whole = find_gpu("A100-80GB")
    assert (gpu.mig, gpu.capacity_bytes) == (True, int(39.25 * GIB))
    assert gpu.kind is not None
    assert gpu.kind.dense_tflops["bf16"] == pytest.approx(whole.dense_tflops["bf16"] * 42 / 108)
    assert gpu.kind.bandwidth_bytes_per_s == (whole.bandwidth_bytes_per_s or 0) / 2
    assert gpu.kind.nvlink_bytes_per_s is None
    assert gpu.compute_capability == (8, 0)


@pytest.mark.parametrize(("card", "row"), EVERY, ids=[f"{card}-{row['name']}" for card, row in EVERY])
def test_every_known_profile_is_found_by_the_word_that_is_written_for_it(card: str, row: dict[str, Any]) -> None:
    word = f"{name_for_flags(card)}:{row['name']}"
    found = find_slice(word)
    assert slice_for_flags(found.id) == word
    assert format_gpus(parse_machine(f"1x{word}")) == f"1x{word}"
    nominal = int(row["name"].partition(".")[2].removesuffix("gb"))
    assert 0.8 * nominal <= row["gib"] <= nominal
    whole = find_gpu(name_for_flags(card))
    assert slice_named(f"{whole.name} MIG {row['name']}", whole) == found


def test_a_name_with_media_engines_is_the_same_slice_and_others_are_none() -> None:
    whole = find_gpu("A100-80GB")
    plain = slice_named("NVIDIA A100-SXM4-80GB MIG 1g.10gb", whole)
    assert slice_named("NVIDIA A100-SXM4-80GB MIG 1g.10gb+me", whole) == plain is not None
    assert slice_named("NVIDIA A100-SXM4-80GB", whole) is None
    assert slice_named("NVIDIA A100-SXM4-80GB MIG 5g.50gb", whole) is None
    assert slice_named("NVIDIA Unheard MIG 1g.10gb", None) is None


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ("A100-80GB:3g.20gb", "A100-80GB has no slice '3g.20gb' that is known here; write 3g.40gb"),
        ("1xRTX4090:1g.6gb", "no MIG slice of NVIDIA GeForce RTX 4090 is known here; write its size"),
        ("1xA100-80GB:", "A100-80GB has no slice '' that is known here; write 1g.10gb"),
        ("1xB1000:1g.10gb", "GPU 'B1000:1g.10gb' is not in the catalogue"),
        ("1x40GB:3g.20gb", "GPU '40GB:3g.20gb' is not in the catalogue"),
    ],
)
def test_what_is_no_slice_is_said(gpus: str, words: str) -> None:
    with pytest.raises(InputError) as problem:
        parse_machine(gpus)
    assert words in problem.value.sentence


def test_rows_of_slices_are_checked_against_their_cards() -> None:
    document = copy.deepcopy(dict(read_rules("gpus")))
    document["slices"] = [
        {"cards": ["a100-sxm4-80g"], "sms": 108, "profiles": [{"name": "3g.40gb", "gib": 39.25, "sms": 42}],
         "source": "public logs", "checked": "2026-11-21"},
        {"cards": ["a100-sxm4-40gb"], "sms": 108, "profiles": [{"name": "3g40", "gib": 79.0, "sms": 42}],
         "source": "public logs", "checked": "2026-11-21"},
    ]  # fmt: skip
    found = " | ".join(problems(document))
    assert "'a100-sxm4-80g' is no gpu's id, nearest is 'a100-sxm4-80gb'" in found
    assert "profiles: one is larger than 'a100-sxm4-40gb'" in found
    assert "profiles.0.name" in found
