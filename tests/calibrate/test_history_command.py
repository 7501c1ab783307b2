"""plan history: what it shows, takes in, gives out and refuses; nothing of a user's own leaves the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.api import estimate
from planner.calibrate.observation import observation_from_json
from planner.calibrate.share import LOCAL_MODEL, shared, shared_id
from planner.calibrate.store import IMPORTED, store
from planner.cli.app import run
from planner.hardware.parse import parse_machine
from planner.hardware.store import machine_to_json
from planner.training import TrainingSetup

from .observed import observed

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: str) -> tuple[int, str, str]:
        code = run(["history", *words])
        return code, *capsys.readouterr()

    return call


def document(ask: Ask, *words: str) -> dict[str, Any]:
    code, out, _ = ask(*words, "--json")
    assert code == 0
    return dict(json.loads(out))


def test_an_empty_history_says_so_and_makes_no_file(ask: Ask) -> None:
    code, out, _ = ask()
    assert code == 0
    assert out.startswith("no run is remembered")
    assert document(ask)["runs"] == []
    assert not store().path.exists()


def test_the_table_shows_signed_errors_within_80_columns(ask: Ask) -> None:
    store().record(observed(1, 0.031), observed(2, -0.004, meters=("reserved_bytes", "tokens_per_second")))
    store().record(observed(3, 0.0, outcome="out_of_memory"), origin=IMPORTED)
    _, out, _ = ask()
    assert max(map(len, out.splitlines())) <= 80
    assert "+3.1%" in out and "-0.4%" in out
    assert "imported" in out and "out of" in out


def test_json_holds_the_record_its_origin_and_the_errors(ask: Ask) -> None:
    store().record(observed(1, 0.031))
    (row,) = document(ask)["runs"]
    assert row["origin"] == "local"
    assert row["errors"]["allocated_bytes"] == pytest.approx(0.031)
    assert row["errors"]["device_bytes"] is None
    assert row["predicted"]["allocated_bytes"] == observed(1).predicted.allocated_bytes


def test_filters(ask: Ask, tmp_path: Path) -> None:
    store().record(observed(1), observed(2, model="Llama-3-8B"), replace(observed(3), engine="trl"))
    store().record(observed(4, gpus="1xA100-80GB"))
    assert [row["run_id"] for row in document(ask, "--model", "llama")["runs"]] == ["run-2"]
    assert [row["run_id"] for row in document(ask, "--engine", "trl")["runs"]] == ["run-3"]
    probe = tmp_path / "machine.json"
    probe.write_text(machine_to_json(parse_machine("1xA100-80GB", None)))
    assert [row["run_id"] for row in document(ask, "--machine", str(probe))["runs"]] == ["run-4"]


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


HAND = {"setup": {"model": "7B", "method": "qlora", "gpus": "1xRTX4090"}, "measured": {"allocated_bytes": 10**10}}


def test_a_measurement_made_by_hand_is_priced_and_remembered_once(ask: Ask, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", HAND, "", HAND | {"outcome": "out_of_memory", "measured": {}})
    code, out, _ = ask("--add", path)
    assert (code, out.split()[0]) == (0, "2")
    ask("--add", path)
    rows = document(ask)["runs"]
    assert len(rows) == 2
    assert {row["outcome"] for row in rows} == {"finished", "out_of_memory"}
    said = run_estimate(ask)
    assert rows[0]["predicted"]["allocated_bytes"] == said["allocated_bytes"]
    assert "on this machine with this engine counted" in " ".join(said["assumptions"])


def run_estimate(ask: Ask) -> dict[str, Any]:
    return estimate(TrainingSetup(**HAND["setup"])).to_dict()


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"setup": {"model": "7B"}}, "line 2: setup and measured must be given, each an object"),
        (HAND | {"mesured": {}}, "line 2: mesured is not a field; did you mean measured?"),
        (HAND | {"measured": {}}, "line 2: measured is empty; state at least one figure"),
        (HAND | {"measured": {"allocated_bytes": -1}}, "line 2: measured.allocated_bytes -1 must be a whole number"),
        (HAND | {"measured": {"alocated_bytes": 1}}, "line 2: measured.alocated_bytes is not a field"),
        (HAND | {"setup": {"model": "7B", "methd": "lora"}}, "line 2: field 'methd' is not known; did you mean method"),
        (HAND | {"outcome": "crashed"}, "line 2: outcome 'crashed' is not known"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_nothing_is_added(ask: Ask, tmp_path: Path, row: Any, sentence: str) -> None:
    code, _, err = ask("--add", written(tmp_path / "rows.jsonl", HAND, row))
    assert code == 2
    assert sentence in err and "Traceback" not in err
    assert store().observations() == []


def test_rows_go_out_without_anything_of_the_user_and_come_back_elsewhere(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = observed(1, 0.02, note="on anna's desk")
    setup = dict(home.setup) | {
        "model": "/home/anna/models/secret", "reward_model": "~/rm", "ref_model": "Qwen/Qwen2.5-7B",
        "ds_config": {"zero_optimization": {"stage": 3, "offload_param": {"nvme_path": "/anna/nvme"}},
                      "tensorboard": {"output_path": "/anna/tb", "job_name": "anna"}, "x": ["~/anna"]},
    }  # fmt: skip
    versions = {"torch": "2.6.0+cu124", "transformers": "4.48.1+anna", "llamafactory": "/home/anna/lf"}
    store().record(replace(home, run_id="anna-laptop-1", setup=setup, versions=versions))
    out = tmp_path / "rows.jsonl"
    assert ask("--export", str(out))[0] == 0
    text = out.read_text()
    assert "anna" not in text and "/home" not in text and "secret" not in text and "~" not in text
    row = observation_from_json(text)
    assert row.setup["model"] == row.setup["reward_model"] == LOCAL_MODEL
    assert row.setup["ref_model"] == "Qwen/Qwen2.5-7B"
    assert row.setup["ds_config"]["zero_optimization"]["stage"] == 3
    assert row.versions == {"torch": "2.6.0+cu124", "transformers": "4.48.1", "llamafactory": "unknown"}
    assert row.measured == home.measured and row.predicted == home.predicted
    assert document(ask, "--import", str(out))["imported"] == []
    monkeypatch.setenv("VRAMPLAN_HOME", str(tmp_path / "elsewhere"))
    assert document(ask, "--import", str(out))["imported"] == [row.run_id]
    assert document(ask, "--import", str(out))["imported"] == []
    assert [each.origin for each in store().observations()] == [IMPORTED]


def test_the_setup_of_a_row_can_be_estimated_again(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the card was probed: the row then names it by its flags."""
    probe = tmp_path / "machine.json"
    probe.write_text(machine_to_json(parse_machine("1xRTX4090", None)))
    plain = {name: value for name, value in HAND["setup"].items() if name != "gpus"}
    ask("--add", written(tmp_path / "rows.jsonl", HAND | {"setup": plain}), "--machine", str(probe))
    ask("--export", str(tmp_path / "out.jsonl"))
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert run(["estimate", "--from", written(tmp_path / "setups.jsonl", row["setup"]), "--json"]) == 0
    (again,) = json.loads(capsys.readouterr().out)["estimates"]
    assert again["allocated_bytes"] == row["predicted"]["allocated_bytes"]


def test_sharing_what_was_shared_changes_nothing() -> None:
    once = shared(observed(1, note="mine"))
    assert shared(once) == once
    assert shared_id(once.run_id) == once.run_id


def test_a_folder_that_looks_like_a_hub_name_is_none(tmp_path: Path) -> None:
    one = replace(observed(1), setup={"model": "models/mine"})
    assert shared(one).setup["model"] == "models/mine"
    assert shared(one, lambda name: True).setup["model"] == LOCAL_MODEL


def test_imported_rows_are_not_passed_on(ask: Ask, tmp_path: Path) -> None:
    store().record(observed(1), origin=IMPORTED)
    assert document(ask, "--export", str(tmp_path / "rows.jsonl"))["exported"] == []


def test_an_export_never_overwrites(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("mine")
    code, _, err = ask("--export", str(tmp_path / "rows.jsonl"))
    assert (code, (tmp_path / "rows.jsonl").read_text()) == (2, "mine")
    assert "exists; name a new file" in err
    assert ask("--export", str(tmp_path / "no" / "rows.jsonl"))[0] == 2


@pytest.mark.parametrize("bad", ["{", "[]", '{"format": 7}', ""])
def test_an_import_is_all_or_nothing_and_names_the_line(ask: Ask, tmp_path: Path, bad: str) -> None:
    good = observed(1).to_json()
    wrong_setup = json.loads(good) | {"setup": {"model": "7B", "methd": "lora"}}
    path = written(tmp_path / "rows.jsonl", good, "", bad or wrong_setup)
    code, _, err = ask("--import", path)
    assert code == 2
    assert "rows.jsonl line 3" in err
    assert store().observations() == []


def test_forgetting(ask: Ask) -> None:
    assert "is not known; nothing is remembered" in ask("--forget", "run-1")[2]
    store().record(observed(1), observed(2))
    code, _, err = ask("--forget", "run-11")
    assert code == 2 and "did you mean run-1" in err
    assert document(ask, "--forget", "run-1")["forgotten"] == ["run-1"]
    assert [row["run_id"] for row in document(ask)["runs"]] == ["run-2"]


def test_two_actions_at_once_are_refused(ask: Ask) -> None:
    code, _, err = ask("--forget", "a", "--export", "b")
    assert code == 2 and "--export and --forget are asked for together" in err


def test_a_damaged_store_is_one_sentence(ask: Ask) -> None:
    store().path.parent.mkdir(parents=True)
    store().path.write_bytes(b"damaged" * 1000)
    code, out, err = ask()
    assert (code, out) == (2, "")
    assert err.startswith("error: history in ") and "set aside as history.damaged-1.sqlite" in err
    assert ask()[0] == 0


def test_runs_of_another_release_count_again_once_they_are_predicted_again(ask: Ask) -> None:
    old = observed(1, 0.0)
    stale = replace(old, predicted=replace(old.predicted, release="0.0.1", allocated_bytes=10**9, capacity_bytes=7))
    gone = replace(stale, run_id="gone", setup=dict(old.setup) | {"model": "/no/such/folder"})
    store().record(stale, gone)
    setup = TrainingSetup(**old.setup)
    assert "2 runs on this machine had the prediction of another release" in " ".join(estimate(setup).assumptions)
    code, out, err = ask("--repredict")
    assert (code, out) == (0, "1 run predicted again\n")
    assert "gone stays as it was" in err
    again = {each.observation.run_id: each.observation for each in store().observations()}
    assert again["run-1"].predicted == replace(old.predicted, capacity_bytes=7)
    assert again["run-1"].measured == old.measured and again["gone"] == gone
    said = " ".join(estimate(setup).assumptions)
    assert "1 run on this machine with this engine counted" in said and "1 run on this machine had" in said
