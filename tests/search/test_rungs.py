"""The ladder that ships, and a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.errors import InputError
from planner.rulebook.load import problems_in, read_rules
from planner.rulebook.schema import RungRow, TierRow
from planner.search.facts import KNOWN_FIELDS
from planner.search.rungs import load_ladder
from planner.training import FIELD_NAMES, TrainingSetup

LADDER = load_ladder()


def test_every_rung_and_tier_is_valid() -> None:
    raw = read_rules("ladder")
    assert problems_in(raw["rung"], RungRow, place="ladder.toml", known_fields=KNOWN_FIELDS) == []
    assert [TierRow.model_validate(row).tier for row in raw["tier"]] == [0, 1, 2, 3, 4, 5]


def test_rungs_stand_in_the_order_of_their_tiers() -> None:
    tiers = [rung.tier for rung in LADDER]
    assert tiers == sorted(tiers)


def test_changes_are_fields_with_valid_values() -> None:
    for rung in LADDER:
        assert set(rung.changes) <= set(FIELD_NAMES)
        TrainingSetup(model="7B", **rung.changes)


def test_rungs_that_exclude_each_other_do_so_both_ways() -> None:
    by_id = {rung.id: rung for rung in LADDER}
    for rung in LADDER:
        for other in rung.forbids:
            assert rung.id in by_id[other].forbids


def test_what_changes_the_result_unusually_is_on_request_only() -> None:
    unasked = {rung.id for rung in LADDER if not rung.on_request}
    assert {"lora", "qlora-nf4", "zero2", "zero3", "liger", "checkpointing"} <= unasked
    asked = {
        "pure-bf16",
        "adamw-8bit",
        "galore",
        "apollo",
        "badam",
        "freeze",
        "qlora-8bit",
        "dora",
        "shorter-sequences",
    }
    assert not asked & unasked


def test_lora_stands_before_a_quantized_base_and_offload_after_both() -> None:
    order = [rung.id for rung in LADDER]
    assert (
        order.index("lora")
        < order.index("qlora-nf4")
        < order.index("offload-optimizer")
        < order.index("offload-params")
    )


def test_an_unknown_rung_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"--forbid: rung 'ligr' is not known; did you mean liger"):
        LADDER.find("ligr", place="--forbid: rung")


def test_a_users_file_has_its_own_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[rung]]\nid = "qlora-nf4"\n[[rung]]\nid = "zero3"\n')
    own = load_ladder(path)
    assert [rung.id for rung in own if rung.tier > 0] == ["qlora-nf4", "zero3"]
    assert {rung.id for rung in own if rung.tier == 0} == {rung.id for rung in LADDER if rung.tier == 0}


BAD_FILES = [
    ("", "has no [[rung]] tables"),
    ("[[rung]\n", "is not valid TOML"),
    ('[[rung]]\nid = "ligr"\n', "'ligr' is not known; did you mean liger"),
    ('[[rung]]\nid = "mine"\ntitle = "mine"\ntier = 9\n', "row 1 (mine), tier"),
    (
        '[[rung]]\nid = "mine"\ntitle = "m"\ntier = 1\nchanges = { lora_rnk = 4 }\n'
        'reason = "because I say so here"\nsource = "my own runs"\nchecked = 2026-01-01\n',
        "'lora_rnk' is not known; did you mean lora_rank",
    ),
]


@pytest.mark.parametrize(("text", "part"), BAD_FILES, ids=["empty", "toml", "id", "row", "changes"])
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as problem:
        load_ladder(path)
    assert part in problem.value.sentence


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_ladder(tmp_path / "none.toml")
