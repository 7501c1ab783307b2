"""``plan models``: searched, readable at 80 columns, one JSON document."""

import json

import pytest
import typer
from typer.testing import CliRunner

from planner.cli.commands.models import models_command
from planner.errors import InputError
from planner.hardware.parse import parse_machine
from planner.hardware.store import machine_to_json

APP = typer.Typer()
APP.command()(models_command)


def run(monkeypatch, *words):
    monkeypatch.setenv("COLUMNS", "80")
    return CliRunner().invoke(APP, [*words], catch_exceptions=False)


def test_a_search_shows_shape_source_and_check(monkeypatch):
    shown = run(monkeypatch, "meta-llama-3-8b").stdout
    assert "Meta-Llama-3-8B +1" in shown
    assert "8,030,261,248" in shown
    assert "llama3" in shown
    assert "transformers meta-device" in shown


def test_a_size_shows_what_it_stands_for_and_why(monkeypatch):
    shown = run(monkeypatch, "7B").stdout
    assert "Qwen2.5-7B-Instruct" in shown
    assert "popular, and demanding" in shown


def test_the_whole_list_fits_80_columns(monkeypatch):
    shown = run(monkeypatch).stdout
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "Mixtral-8x7B" in shown


def test_json_is_one_document(monkeypatch):
    found = json.loads(run(monkeypatch, "qwen2.5-7b", "--json").stdout)
    entry = next(each for each in found["models"] if each["id"] == "Qwen/Qwen2.5-7B")
    assert (entry["parameters"], entry["layers"], entry["vocab"], entry["template"]) == (
        7_615_616_512,
        28,
        152064,
        "qwen",
    )


def test_nothing_found_offers_the_nearest(monkeypatch):
    with pytest.raises(InputError, match=r"no model of the catalogue matches 'quen2\.5-7b'; did you mean Qwen2\.5-7B"):
        run(monkeypatch, "quen2.5-7b")


def test_a_saved_machine_leaves_what_its_largest_card_can_hold(monkeypatch, tmp_path):
    saved = tmp_path / "machine.json"
    saved.write_text(machine_to_json(parse_machine("1xRTX4090", None)))
    shown = json.loads(run(monkeypatch, "qwen2.5", "--machine", str(saved), "--json").stdout)
    found = {entry["id"] for entry in shown["models"]}
    assert "Qwen/Qwen2.5-32B" in found
    assert "Qwen/Qwen2.5-72B" not in found
    with pytest.raises(InputError, match=r"23\.6 GiB"):
        run(monkeypatch, "deepseek-v3", "--machine", str(saved))
