"""The scoreboard: pages as generated, causes that speak of rows, peers that need no network, rows of new sources."""

from __future__ import annotations

import json

import accuracy_page
import pytest
from accuracy_peers import CLAIMS, stored
from comparisons import Comparison, Judged, compare, judge_rows, origin, summary, wrong_verdicts
from held_out import held_out, is_fitted
from measured_lengths import FUDAN_NEWS, LEAST, drawn
from measured_setups import FILES, MEASUREMENTS, rows
from misses import misses


@pytest.fixture(scope="module")
def added() -> list[Judged]:
    return judge_rows("added")


@pytest.mark.parametrize("name", ["accuracy.md", "accuracy-rows.md"])
def test_pages_are_as_generated(name: str, all_pages: dict[str, str]) -> None:
    assert (accuracy_page.DOCS / name).read_text(encoding="utf-8") == all_pages[name], "stale: run make accuracy"


@pytest.fixture(scope="module")
def all_pages() -> dict[str, str]:
    return accuracy_page.pages()


def test_every_compared_peak_stands_on_the_rows_page(all_pages: dict[str, str], added: list[Judged]) -> None:
    for one in compare(added):
        assert f"| {one.id} | {one.method} | {one.card} | {one.meter} |" in all_pages["accuracy-rows.md"]


def test_ids_are_unique_and_sources_are_named() -> None:
    every = list(rows(*FILES))
    assert len({row["id"] for row in every}) == len(every)
    assert all(row["source"] and row["note"] for row in rows("added"))


def test_origins_are_repositories_papers_and_pages() -> None:
    assert origin("huggingface/peft:method_comparison/x.json@51c2ff666") == "huggingface/peft"
    assert origin("Lightning-AI/lightning-thunder issue 474") == "Lightning-AI/lightning-thunder"
    assert origin("arXiv:2309.12307 table 12") == "arXiv:2309.12307"
    assert origin("gist.github.com/a/b") == "gist.github.com/a/b"


def test_every_cause_speaks_of_rows(compared: list[Comparison], added: list[Judged]) -> None:
    known = [*compared, *compare(added), *compare(judge_rows("more"))]
    for miss in misses():
        assert any(miss.covers(one.id, one.meter) for one in known), miss.match
        assert miss.cause
        assert miss.checked


def test_a_fitted_row_is_never_scored_by_its_own_source_alone(compared: list[Comparison]) -> None:
    fitted = {(one.id, one.meter) for one in compared if is_fitted(one)}
    assert held_out().keys() == fitted
    assert not any(one.meter == "allocated" for one in compared if is_fitted(one))


def test_what_peers_say_is_about_rows_that_exist() -> None:
    ids = {row["id"] for row in rows(*FILES)}
    lines = stored()
    assert {one["peer"] for one in lines} == CLAIMS.keys()
    assert all(one["id"] in ids and min(one["bytes"].values()) > 0 for one in lines if "id" in one)
    for peer in CLAIMS:
        (told,) = [one for one in lines if one["peer"] == peer and "asked" in one]
        answered = sum("id" in one for one in lines if one["peer"] == peer)
        assert answered + sum(told["cannot_say"].values()) == told["asked"]


def test_new_sources_are_judged_safely(added: list[Judged]) -> None:
    """No run that finished is refused, none that ran out fits, none that is allocated exceeds what is required."""
    assert not any(wrong_verdicts(added).values())


def test_adapters_of_peft_agree_on_one_length(added: list[Judged]) -> None:
    """Reserved memory of 17 runs over LoRA, DoRA and OFT: one unknown length, so one common error.

    Every batch is priced as long as the longest text, which came once among shorter ones: too much is predicted.
    """
    errors = [one.error for one in compare(added) if one.id.startswith("added-peft-") and one.method != "full"]
    assert len(errors) == 17
    assert max(errors) - min(errors) <= 0.05
    assert abs(summary(errors)["median"]) <= 0.125


@pytest.mark.parametrize("cut", [True, False])
def test_drawn_lengths_are_those_that_the_source_tells_of(cut: bool) -> None:
    lengths = drawn(*FUDAN_NEWS, 1, 2048, cut=cut)
    assert lengths == drawn(*FUDAN_NEWS, 1, 2048, cut=cut)
    assert all(LEAST <= length <= 2048 for length in lengths)
    assert lengths[-1] == 2048
    assert (sum(length == 2048 for length in lengths) > len(lengths) / 2) is cut


def test_batches_of_varying_length_explain_ms_swift(compared: list[Comparison]) -> None:
    errors = [one.error for one in compared if one.id.startswith("swift-bench-")]
    assert len(errors) == 28
    assert summary(errors)["median"] < 0.15


def test_added_rows_are_one_json_object_a_line() -> None:
    for line in (MEASUREMENTS / "added.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["id"].startswith("added-")
