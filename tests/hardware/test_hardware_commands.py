"""plan probe and plan gpus: readable at 80 columns, one JSON document, bad input in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.cli.app import run
from planner.hardware.observed import machine_from_answer
from planner.hardware.parse import parse_machine
from planner.hardware.store import machine_from_json, machine_to_json

ANSWERS = Path(__file__).parent / "answers"


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def save(name: str) -> str:
        seen = machine_from_answer(json.loads((ANSWERS / f"{name}.json").read_text(encoding="utf-8")))
        path = tmp_path / f"{name}.json"
        path.write_text(machine_to_json(seen), encoding="utf-8")
        return str(path)

    return save


@pytest.mark.parametrize("name", [path.stem for path in sorted(ANSWERS.glob("*.json"))])
def test_every_saved_probe_is_shown_within_80_columns(name, saved, capsys):
    assert run(["probe", "--machine", saved(name)]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "host RAM" in out


def test_the_screen_shows_what_holds_memory(saved, capsys):
    run(["probe", "--machine", saved("busy")])
    out = " ".join(capsys.readouterr().out.split())
    assert "python (4242) 11.7 GiB" in out
    assert "8.79" in out
    assert "NVLink unknown, peer access unknown" in out
    assert "--gpus 2xRTX4090" in out


def test_probe_json_is_one_document_that_reads_back(saved, capsys):
    path = saved("two_gpus")
    assert run(["probe", "--machine", path, "--json"]) == 0
    out = capsys.readouterr().out
    assert machine_from_json(out) == machine_from_json(Path(path).read_text(encoding="utf-8"))


def test_probe_here_is_one_document(capsys):
    assert run(["probe", "--json"]) == 0
    assert machine_from_json(capsys.readouterr().out).source == "probe"


def test_the_raw_answer_is_one_document(capsys):
    assert run(["probe", "--raw"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"nvml", "host", "environment", "software"}


def test_gpus_are_searched(saved, capsys, monkeypatch):
    assert run(["gpus", "3080"]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert all(name in out for name in ("RTX3080-10GB", "RTX3080-12GB", "RTX3080-20GB"))
    assert "rebuild" in out


def test_all_gpus_fit_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["gpus"]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "H100-80GB" in out


def test_gpus_json_is_one_document(capsys):
    assert run(["gpus", "a100", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["gpus"]
    assert [entry["gpus_flag"] for entry in entries] == ["A100-40GB", "A100-80GB", "A100-PCIe-40GB", "A100-PCIe-80GB"]
    assert entries[1]["memory_bytes"] == 81920 << 20


def test_gpus_shows_the_capacity_that_a_plan_counts_on(capsys):
    assert run(["gpus", "--json"]) == 0
    for entry in json.loads(capsys.readouterr().out)["gpus"]:
        assert parse_machine(f"1x{entry['gpus_flag']}").gpus[0].capacity_bytes == entry["capacity_bytes"]


def test_gpus_of_a_saved_machine(saved, capsys):
    assert run(["gpus", "--machine", saved("two_gpus"), "--json"]) == 0
    assert [entry["id"] for entry in json.loads(capsys.readouterr().out)["gpus"]] == ["rtx-4090-24gb"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpus", "RTX4091"], "did you mean RTX4090"),
        (["probe", "--machine", "nowhere.json"], "nowhere.json"),
        (["gpus", "--machine", "nowhere.json"], "nowhere.json"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, capsys):
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
