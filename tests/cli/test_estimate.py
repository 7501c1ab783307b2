"""plan estimate: exactly the stated setup; a file answers row by row, and the worst row decides the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner import TrainingSetup, estimate
from planner.cli.app import run
from planner.memory.result import PARTS

FITS = {"model": "7B", "method": "qlora", "gpus": "1xA100-80GB"}
TOO_MUCH = {"model": "7B", "method": "full", "gpus": "1x8GB", "parallelism": "none"}


def rows(tmp_path: Path, *lines: Any) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def answers(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return json.loads(capsys.readouterr().out)["estimates"]


def test_one_setup_as_json_is_the_contracts_object(capsys: pytest.CaptureFixture[str]) -> None:
    code = run("estimate --gpus 1xA100-80GB --model 7B --method qlora --seq-len 1024 --json".split())
    answer = json.loads(capsys.readouterr().out)
    assert (code, answer["verdict"]) == (0, "fits")
    assert sum(answer["breakdown"][part] for part in PARTS) == answer["allocated_bytes"]
    assert answer["breakdown"] == answer["phases"][answer["peak_phase"]]
    for meter, (low, high) in answer["interval"].items():
        assert low <= answer[meter] <= high
    setup = TrainingSetup(model="7B", method="qlora", seq_len=1024, gpus="1xA100-80GB")
    assert estimate(setup).to_dict() == answer


def test_what_does_not_fit_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("estimate --gpus 1x8GB --model 7B --method full".split()) == 1
    assert "does not fit" in capsys.readouterr().out


def test_rows_answer_in_order_and_a_bad_one_in_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path, FITS, "{not json", {"model": "7B", "lora_rnak": 8}, "", TOO_MUCH)
    assert run(["estimate", "--from", path, "--json"]) == 2
    found = answers(capsys)
    assert [row.get("verdict") for row in found] == ["fits", None, None, "does_not_fit"]
    assert "line 2" in found[1]["error"]
    assert "lora_rank" in found[2]["error"]


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ((FITS, FITS), 0),
        ((FITS, TOO_MUCH), 1),
        ((TOO_MUCH, {"model": "no-such-model", "gpus": "1x8GB"}), 2),
        ((FITS | {"gpus": "1xRTX4900"},), 2),
    ],
)
def test_the_worst_row_decides(
    lines: tuple[Any, ...], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["estimate", "--from", rows(tmp_path, *lines), "--json"]) == code
    assert len(answers(capsys)) == len(lines)


def test_flags_are_defaults_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path, {"model": "7B"}, {"model": "7B", "seq_len": 512})
    assert run(["estimate", "--from", path, "--gpus", "1xA100-80GB", "--seq-len", "4096", "--json"]) == 0
    long, short = answers(capsys)
    run("estimate --gpus 1xA100-80GB --model 7B --seq-len 4096 --json".split())
    assert json.loads(capsys.readouterr().out) == long
    assert short["allocated_bytes"] < long["allocated_bytes"]


def test_a_bug_in_one_row_leaves_the_others_their_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import planner.memory.estimate as memory

    honest = memory.estimate

    def fails_at_512(setup: TrainingSetup, *others: Any, **how: Any) -> Any:
        if setup.seq_len == 512:
            raise ZeroDivisionError("oops")
        return honest(setup, *others, **how)

    monkeypatch.setattr(memory, "estimate", fails_at_512)
    path = rows(tmp_path, FITS | {"seq_len": 512}, FITS)
    assert run(["estimate", "--from", path, "--json"]) == 3
    broken, fine = answers(capsys)
    assert "bug of ours" in broken["error"]
    assert fine["verdict"] == "fits"


def test_a_long_file_takes_the_formula_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.cli.commands.estimate.REPLAYED_ROWS", 1)
    assert run(["estimate", "--from", rows(tmp_path, FITS, FITS), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("note: 2 rows are many")
    monkeypatch.setattr("planner.cli.commands.estimate.REPLAYED_ROWS", 2)
    assert run(["estimate", "--from", rows(tmp_path, FITS, FITS), "--json"]) == 0
    alone = capsys.readouterr()
    assert alone.err == ""
    many, few = (json.loads(text.out)["estimates"][0] for text in (said, alone))
    assert many["required_bytes"] == few["required_bytes"]
    assert many["reserved_bytes"] != few["reserved_bytes"]


def test_a_file_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["estimate", "--from", rows(tmp_path, FITS, TOO_MUCH)]) == 1
    text = capsys.readouterr().out
    assert "does not fit" in text
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_bad_input(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert run(["estimate", "--from", str(path)]) == 2
    assert "holds no setup" in capsys.readouterr().err


def test_a_saved_machine_answers_like_its_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from planner.hardware.parse import parse_machine
    from planner.hardware.store import machine_to_json

    path = tmp_path / "machine.json"
    path.write_text(machine_to_json(parse_machine("1xA100-80GB", None)))
    run(["estimate", "--machine", str(path), "--model", "7B", "--json"])
    from_file = json.loads(capsys.readouterr().out)
    run(["estimate", "--gpus", "1xA100-80GB", "--model", "7B", "--json"])
    assert json.loads(capsys.readouterr().out)["allocated_bytes"] == from_file["allocated_bytes"]


def test_a_mark_in_front_other_line_ends_and_odd_letters_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "windows.jsonl"
    first, second = '{"model": "7B", "gpus": "1x24GB"}', '{"model": "7B", "gpus": "1x24GB", "engine": "a\u2028b"}'
    path.write_bytes(f"\ufeff{first}\r\n{second}\r\n".encode())
    assert run(["estimate", "--from", str(path), "--json"]) == 0
    assert [each["verdict"] for each in answers(capsys)] == ["fits", "fits"]
