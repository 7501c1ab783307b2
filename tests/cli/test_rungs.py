"""plan rungs: the ladder as it is walked, searchable, with reasons once few are left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.cli.app import run
from planner.hardware.parse import parse_machine
from planner.hardware.store import machine_to_json
from planner.search.rungs import load_ladder


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert run(["rungs", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["rungs"]


def test_all_rungs_in_the_order_of_the_walk(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys)
    assert [rung["id"] for rung in found] == [rung.id for rung in load_ladder()]
    assert [rung["tier"] for rung in found] == sorted(rung["tier"] for rung in found)
    assert all(rung["reason"] and rung["source"] and rung["quality_risk"] for rung in found)


def test_words_narrow_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert {rung["id"] for rung in listed(capsys, "offload")} >= {"offload-optimizer", "offload-params"}
    assert {rung["id"] for rung in listed(capsys, "offload", "nvme")} == {"offload-nvme"}


def test_few_rungs_show_their_reasons_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rungs", "liger"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "liger_kernel=true" in text
    assert "Source:" in text


def test_an_unknown_rung_is_answered_with_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rungs", "ligre"]) == 2
    assert "liger" in capsys.readouterr().err


def test_a_machine_rules_out_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "machine.json"
    saved.write_text(machine_to_json(parse_machine("1xRTX4090", None)))
    found = {rung["id"] for rung in listed(capsys, "--machine", str(saved))}
    assert "zero3" not in found
    assert "fp16-compute" not in found
    assert {"liger", "bf16-compute", "lora"} <= found


def test_a_users_ladder_has_its_own_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "mine.toml"
    own.write_text('[[rung]]\nid = "lora"\n\n[[rung]]\nid = "liger"\n')
    assert [rung["id"] for rung in listed(capsys, "--ladder", str(own)) if rung["id"] in own.read_text()] == [
        "lora",
        "liger",
    ]
