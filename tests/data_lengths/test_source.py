"""Data files are registered by their columns, without a data library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.data.columns import describe_table
from planner.data.source import data_source
from planner.errors import InputError


def jsonl(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def columns(path: str, stage: str = "sft") -> dict:
    return data_source(path, stage).info["train"]


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo", "orpo", "simpo", "kto", "ppo"])
def test_every_stage_has_demo_samples_of_its_form(stage: str) -> None:
    source = data_source(None, stage)
    ((name, text),) = source.texts.items()
    rows = json.loads(text)
    entry = source.info[source.dataset]
    assert source.is_demo
    assert entry["file_name"] == name
    assert source.samples == len(rows) >= 20
    assert all(column in row for row in rows for column in entry["columns"].values())
    assert len({json.dumps(row) for row in rows}) == len(rows)


def test_instruction_data(tmp_path: Path) -> None:
    row = {"instruction": "a", "input": "b", "output": "c", "system": "s"}
    entry = columns(jsonl(tmp_path / "a.jsonl", row, row))
    assert entry["columns"] == {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    assert data_source(str(tmp_path / "a.jsonl"), "sft").samples == 2


def test_input_and_target(tmp_path: Path) -> None:
    entry = columns(jsonl(tmp_path / "a.jsonl", {"input": "a", "target": "b"}))
    assert entry["columns"] == {"prompt": "input", "response": "target"}
    assert entry["file_name"] == str(tmp_path / "a.jsonl")


def test_openai_messages(tmp_path: Path) -> None:
    entry = columns(jsonl(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "hi"}]}))
    assert entry["formatting"] == "sharegpt"
    assert entry["columns"] == {"messages": "messages"}
    assert entry["tags"]["assistant_tag"] == "assistant"


def test_sharegpt_conversations(tmp_path: Path) -> None:
    entry = columns(jsonl(tmp_path / "a.jsonl", {"conversations": [{"from": "human", "value": "hi"}]}))
    assert entry["columns"] == {"messages": "conversations"}
    assert "tags" not in entry


def test_preference_pairs(tmp_path: Path) -> None:
    entry = columns(jsonl(tmp_path / "a.jsonl", {"prompt": "p", "chosen": "c", "rejected": "r"}), "dpo")
    assert entry["ranking"] is True
    assert entry["columns"] == {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


def test_json_csv_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"question": "q", "answer": "a"}] * 3))
    (tmp_path / "a.csv").write_text("prompt,completion\nhi,there\nyou,too\n")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert columns(str(tmp_path / "a.json"))["columns"] == {"prompt": "question", "response": "answer"}
    assert columns(str(tmp_path / "a.csv"))["columns"] == {"prompt": "prompt", "response": "completion"}
    assert columns(str(tmp_path / "a.txt"), "pt")["columns"] == {"prompt": "text"}
    assert [describe_table(tmp_path / f"a.{end}").samples for end in ("json", "csv", "txt")] == [3, 2, 2]


def test_a_folder_with_train_and_valid_files(tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl", "other.jsonl"):
        jsonl(tmp_path / name, {"input": "a", "target": "b"})
    source = data_source(str(tmp_path), "sft")
    assert (source.dataset, source.eval_dataset) == ("train", "valid")
    assert source.info["valid"]["file_name"].endswith("valid.jsonl")


# Thrift compact protocol, written by hand: what a parquet file of two columns ends with.
def _field(delta: int, kind: int) -> bytes:
    return bytes([delta << 4 | kind])


def _element(name: str, children: int = 0) -> bytes:
    count = _field(1, 5) + bytes([children << 1]) if children else b""
    return _field(4, 8) + bytes([len(name)]) + name.encode() + count + b"\0"


def parquet(path: Path, *elements: bytes, rows: int) -> str:
    schema = _field(1, 9) + bytes([len(elements) << 4 | 12]) + b"".join(elements)
    footer = _field(1, 5) + b"\x02" + schema + _field(1, 6) + bytes([rows << 1]) + b"\0"
    path.write_bytes(b"PAR1" + b"data" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return str(path)


def test_parquet_columns_are_read_from_the_footer(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", _element("root", 2), _element("input"), _element("target"), rows=7)
    assert columns(file)["columns"] == {"prompt": "input", "response": "target"}
    assert data_source(file, "sft").samples == 7


def test_parquet_messages_show_their_inner_names(tmp_path: Path) -> None:
    nested = [_element("root", 1), _element("messages", 1), _element("list", 1), _element("element", 2)]
    file = parquet(tmp_path / "a.parquet", *nested, _element("role"), _element("content"), rows=1)
    assert columns(file)["tags"]["role_tag"] == "role"


@pytest.mark.parametrize("size", [0, 3, 8, 20])
def test_what_is_no_parquet_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" * 6 if size == 20 else b"x" * size)
    with pytest.raises(InputError, match="parquet"):
        data_source(str(tmp_path / "a.parquet"), "sft")


@pytest.mark.parametrize(
    ("name", "text", "stage", "words"),
    [
        ("a.jsonl", '{"x": 1}\n', "sft", "columns x; stage sft needs"),
        ("a.jsonl", '{"text": "t"}\n', "dpo", "chosen and rejected"),
        ("a.jsonl", '{"instruction": "a", "output": "b"}\n', "kto", "kto_tag"),
        ("a.jsonl", '{"instruction": "a", "output": "b"}\n', "pt", "text"),
        ("a.jsonl", "", "sft", "empty"),
        ("a.json", "[]", "sft", "empty"),
        ("a.json", "[1]", "sft", "int"),
        ("a.json", "[{", "sft", "not JSON"),
        ("a.csv", "a,b\n", "sft", "no rows"),
        ("a.xlsx", "x", "sft", "no known ending"),
        ("a[1].jsonl", '{"input": "a", "target": "b"}\n', "sft", "pattern"),
    ],
)
def test_bad_data_is_one_sentence(tmp_path: Path, name: str, text: str, stage: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        data_source(str(tmp_path / name), stage)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        data_source(str(tmp_path / "none.jsonl"), "sft")
    with pytest.raises(InputError, match="no train file"):
        data_source(str(tmp_path), "sft")


def test_json_that_nests_too_deep_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="too deep"):
        data_source(str(path), "sft")
